"""What is known of a model that is published, and the metadata of its card: what the Hub reads and searches by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from timm.models import get_pretrained_cfg, model_entrypoint

from training.predictions import printable

from .markdown import one_line
from .record import HUB, Record

# What the Hub's metadata may call a licence; any other is `other` with a name of its own.
LICENSE_NAMES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m afl-3.0 artistic-2.0
    bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
    cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql
    ofl-1.1 ncsa unlicense zlib pddl fair-noncommercial-research-license gemma
"""


@dataclass(frozen=True)
class Subject:
    """What a card is about."""

    config: Mapping[str, Any]
    """config.json, with its section timm_devnet."""
    network: Any
    """Built from it; it may be on the meta device."""
    record: Record | None
    """Of the run, if there was one."""
    base_license: str | None
    """The licence of the base, if it is known."""

    @property
    def section(self) -> Mapping[str, Any]:
        return self.config['timm_devnet']

    @property
    def architecture(self) -> str:
        return self.config['architecture']

    @property
    def base_model(self) -> str | None:
        """timm's name of the base with its tag, or hf-hub:ORG/NAME."""
        return self.section['base']['model'] if self.section['base'] else None

    @property
    def base_hub_id(self) -> str | None:
        """The base's repository on the Hub, if it has one."""
        return None if self.base_model is None else hub_id_of(self.base_model)

    @property
    def needs_plugin(self) -> bool:
        """Whether timm alone cannot build it."""
        return model_entrypoint(self.architecture).__module__.partition('.')[0] == 'timm_devnet'

    @property
    def is_multi_label(self) -> bool:
        return 'map' in (self.section['metrics'] or {})

    @property
    def classes(self) -> list[str]:
        """Names of the outputs, none if they are not known."""
        return [printable(str(name)) for name in self.config.get('label_names') or ()]


def hub_id_of(model: str) -> str | None:
    """The repository of a base, which may have none.

    Example:
        >>> hub_id_of('vgg16.tv_in1k'), hub_id_of('alexnet.tv_in1k')
        ('timm/vgg16.tv_in1k', None)
    """
    if model.startswith(HUB):
        return model.removeprefix(HUB).partition('@')[0]
    cfg = get_pretrained_cfg(model)
    return cfg.hf_hub_id.partition('@')[0] if cfg and cfg.hf_hub_id else None


def license_of(model: str) -> str | None:
    """The licence that timm knows of a base, None if it knows none."""
    cfg = None if model.startswith(HUB) else get_pretrained_cfg(model)
    return cfg.license if cfg and cfg.license != 'unknown' else None


def describe(subject: Subject) -> ModelCardData:
    """Make the metadata that the Hub reads."""
    section, record = subject.section, subject.record
    metrics = section['metrics']
    dataset = record.hub_dataset if record else None
    tags = ['timm', 'timm_devnet', *(['grown', 'developmental-network'] if section['growth'] else [])]
    # None for what is not known: ModelCardData leaves it out.
    return ModelCardData(
        **describe_license(section['license'], subject),
        library_name='timm',
        pipeline_tag='image-classification',
        tags=[*tags, *(['delta'] if section['delta'] else [])],
        base_model=subject.base_hub_id,
        base_model_relation='finetune' if subject.base_hub_id else None,
        datasets=[dataset] if dataset else None,
        metrics=(['mean_average_precision'] if subject.is_multi_label else ['accuracy']) if metrics else None,
        model_name=title(subject) if metrics else None,
        eval_results=describe_results(subject) if metrics else None,
    )


def describe_license(name: str, subject: Subject) -> dict[str, Any]:
    """Name a licence as the Hub's metadata does."""
    if name in LICENSE_NAMES.split():
        return {'license': name}
    slug = re.sub('[^a-z0-9.]+', '-', name.lower()).strip('-.') or 'license'
    link = {'license_link': f'https://huggingface.co/{subject.base_hub_id}'} if subject.base_hub_id else {}
    return {'license': 'other', 'license_name': slug, **link}


def title(subject: Subject) -> str:
    """What the model is called as long as no repository gives it a name."""
    return one_line(subject.record.name if subject.record else subject.architecture)


def describe_results(subject: Subject) -> list[EvalResult]:
    """Say for model-index what was measured; shares of 1, as the Hub's metrics are."""
    assert subject.record is not None, 'only runs have metrics'
    metrics = subject.section['metrics']
    known = {
        'map': ('mean_average_precision', 'Mean average precision'),
        'top1': ('accuracy', 'Top-1 accuracy'),
        'top1_stored': ('accuracy', 'Top-1 accuracy as stored'),
        'map_stored': ('mean_average_precision', 'Mean average precision as stored'),
        'top5': ('accuracy', 'Top-5 accuracy'),
    }
    hub_dataset = subject.record.hub_dataset
    return [
        EvalResult(
            task_type='image-classification',
            task_name='Image classification',
            dataset_type=hub_dataset or 'imagefolder',
            dataset_name=subject.record.dataset,
            dataset_split=without_number(subject.record.config.get('val_split')),
            metric_type=kind,
            metric_name=name,
            metric_value=round(metrics[key] / 100, 6),
        )
        for key, (kind, name) in known.items()
        if metrics.get(key) is not None
    ]


def without_number(split: str | None) -> str | None:
    """The name of a split; a part that was carved out of the training images has none."""
    return None if split is None or re.fullmatch(r'\d*\.\d*', split) else printable(split)
