"""Grown networks on the Hugging Face Hub: stage, push, pull, list, verify."""

from __future__ import annotations

import dataclasses
import json as json_format
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

import timm_devnet  # noqa: F401  registers the grown architectures with timm

from . import listing, publishing, staging
from .publishing import Dtype

EXIT_PROBLEMS = 1
EXIT_USER_ERROR = 2


@dataclasses.dataclass(frozen=True)
class Storing:
    """How weights are stored."""

    delta: bool = False
    """Store only what differs from the base; whoever loads it gets the rest from there."""
    dtype: Dtype | None = None
    """Store floating-point tensors in half the bytes; accuracy is then measured again, on the run's own images."""
    license: str | None = None
    """Licence of the weights (None: the base's)."""
    base_file: Path | None = None
    """The base's weights, for --delta (None: those that the run began with, or as others will get them)."""


def stage(run: Positional[Path], folder: Positional[Path], how: Annotated[Storing, tyro.conf.arg(name='')]) -> int:
    """Make the folder that would be published, and nothing else, to look at before anything leaves the machine.

    Args:
        run: A run folder of train.py, its best/ or last/, or another folder in timm's layout.
        folder: The new folder.
        how: How weights are stored.
    """
    staging.stage(run, folder, **vars(how))
    return 0


def push(
    run: Positional[Path],
    repo: Positional[str],
    how: Annotated[Storing, tyro.conf.arg(name='')],
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    replaces: str | None = None,
    dry_run: bool = False,
) -> int:
    """Stage a run and put it on the Hub as one commit.

    Args:
        run: A run folder of train.py, another folder in timm's layout, or one that `stage` has made.
        repo: ORG/NAME.
        how: How weights are stored.
        private: Make the repository visible to its owners only.
        revision: Branch (None: the main one).
        create_pr: Propose the commit as a pull request instead of making it.
        message: Title of the commit.
        replaces: The last commit of what is overwritten, at least 7 digits of it.
        dry_run: Change nothing: list files and sizes, and show the card.
    """
    pushed = publishing.push(
        run,
        repo,
        **vars(how),
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message,
        replaces=replaces,
        dry_run=dry_run,
    )
    if pushed is None:
        return 0
    print(f'{pushed.url}, commit {pushed.commit[:12]}; to load it:')
    print(f"import timm, timm_devnet; model = timm.create_model('hf-hub:{pushed.repo_id}', pretrained=True)")
    return 0


def pull(
    repo: Positional[str],
    revision: str | None = None,
    local_dir: Path | None = None,
    base_file: Path | None = None,
) -> int:
    """Fetch a network into the Hub's cache, check it and say what it is.

    Args:
        repo: ORG/NAME.
        revision: Branch, tag or commit (None: the main branch).
        local_dir: New folder for a copy, always of a whole network: a delta is completed.
        base_file: The base's weights, to complete a delta (None: from where timm finds them).
    """
    pulled = publishing.pull(repo, revision=revision, local_dir=local_dir, base_file=base_file)
    for line in publishing.describe(pulled.facts):
        print(line)
    print(f'it is what it says, and lies in {pulled.path}')
    return 0


def list_networks(org: Positional[str], limit: int | None = None, json: bool = False) -> int:
    """List an account's grown networks.

    Args:
        org: Name of the organisation or user.
        limit: Most repositories to look at, newest first.
        json: Print JSON instead of a table.
    """
    listed = listing.list_models(org, limit=limit, say=partial(print, file=sys.stderr))
    if json:
        print(json_format.dumps([dataclasses.asdict(network) for network in listed], indent=2))
    else:
        print(listing.format_table(listed) if listed else f'{org} has no grown networks')
    return 0


def verify(what: Positional[str], revision: str | None = None) -> int:
    """Look for all that is wrong with a folder or a repository; exit code 1 if there is something.

    Args:
        what: A folder, or ORG/NAME.
        revision: Branch, tag or commit of a repository.
    """
    problems = publishing.verify(what, revision=revision)
    for problem in problems:
        print(f'{what}: {problem}')
    print(f'{len(problems)} problems' if problems else f'{what} is what it says')
    return EXIT_PROBLEMS if problems else 0


COMMANDS: dict[str, Callable[..., Any]] = {
    'stage': stage,
    'push': push,
    'pull': pull,
    'list': list_networks,
    'verify': verify,
}


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        Exit code: 0, `EXIT_PROBLEMS` or `EXIT_USER_ERROR`.
    """
    try:
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog='python -m hub', description=__doc__, args=argv, config=(OmitArgPrefixes,)
        )
    except (ValueError, OSError) as error:
        print(f'hub: error: {" ".join(str(error).split())}', file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print('hub: stopped; start again, what has arrived is not sent again', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
