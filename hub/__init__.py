"""Grown networks on the Hugging Face Hub: staged, published, pulled and checked; `python -m hub --help`.

The commands are functions, each in the module that is named after what it does: `hub.staging.stage` and `stage_model`,
`hub.publishing.push`, `pull` and `verify`, `hub.listing.list_models`.
"""
