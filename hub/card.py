"""README.md of a staged folder: the model card, written from the run and from the network, nothing by hand.

Names of classes, data sets and files and the command come from outside: what is put into the text goes through
`plain`, `code_block` or huggingface_hub's YAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import get_pretrained_cfg, model_entrypoint

import timm_devnet
from training.costs import multiply_adds
from training.predictions import printable
from training.report import interval

from .picture import describe_growth
from .record import Record

# Stands for the repository until its name is known; see `name_repository`.
PLACEHOLDER = 'ORG/NAME'
HUB = 'hf-hub:'
SHOWN_CLASSES = 100
# What the Hub's metadata may call a licence; any other is `other` with a name of its own.
LICENSES = frozenset(
    'apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 '
    'bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 '
    'cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 '
    'cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl '
    'ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c '
    'ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl '
    'fair-noncommercial-research-license gemma'.split()
)


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


def write_card(subject: Subject, repo_id: str | None = None) -> str:
    """Write the model card.

    Args:
        subject: What it is about.
        repo_id: The repository that it will lie in; None if that is not known yet.

    Returns:
        README.md, valid for huggingface_hub's ModelCard.
    """
    sections = (
        show_head(subject),
        show_growth(subject),
        show_size(subject),
        show_results(subject),
        show_use(subject),
        show_origin(subject),
        show_making(subject),
        show_classes(subject),
    )
    metadata = describe(subject).to_yaml()
    card = f'---\n{metadata}\n---\n\n' + '\n'.join(section for section in sections if section)
    ModelCard(card)  # it must be able to read it
    return card if repo_id is None else name_repository(card, repo_id)


def name_repository(card: str, repo_id: str) -> str:
    """Put a repository's name where a card was written before it was known."""
    return card.replace(PLACEHOLDER, repo_id)


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


# Escaping -------------------------------------------------------------------------------------------------------------


def plain(text: object) -> str:
    """Make any text stand in Markdown, also inside tables and HTML, as what it is: nothing of it is rendered.

    Example:
        >>> plain('a_b | <i>*c*</i>')
        'a&#95;b &#124; &#60;i&#62;&#42;c&#42;&#60;&#47;i&#62;'
    """
    return ''.join(
        character if character.isalnum() or character in ' ,-' or (ord(character) > 127) else f'&#{ord(character)};'
        for character in one_line(text)
    )


def one_line(text: object) -> str:
    """Write a text in one line, with escapes for what cannot be seen: line ends, controls, marks of direction."""
    return ''.join(
        character if character.isprintable() else character.encode('unicode_escape').decode()
        for character in printable(str(text))
    )


def code_block(text: str, language: str = '') -> str:
    """Set text as it is, between fences that it does not contain."""
    longest = max((len(run) for run in re.findall('`+', text)), default=0)
    fence = '`' * max(3, longest + 1)
    return f'{fence}{language}\n{text}\n{fence}\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a Markdown table of cells that are safe already; numbers stand to the right."""
    lines = [head, ['---', *['---:'] * (len(head) - 1)], *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


# Metadata -------------------------------------------------------------------------------------------------------------


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


def describe_license(name: str, subject: Subject) -> dict[str, str]:
    """Name a licence as the Hub's metadata does."""
    if name in LICENSES:
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


# Text -----------------------------------------------------------------------------------------------------------------


def show_head(subject: Subject) -> str:
    """Say what the model is, in two sentences."""
    section, record = subject.section, subject.record
    labels = 'multi-label image classifier' if subject.is_multi_label else 'image classifier'
    start = f'the pretrained {base_link(subject)}' if subject.base_model else f'`{base_name(subject)}`'
    grown = f'{start}, grown by `{section["growth"]}`' if section['growth'] else f'{start}, with a new classifier'
    trained = ''
    if record:
        trained = f' and trained on {plain(record.dataset)} in regime `{plain(record.config["regime"])}`'
        trained = trained.replace('`', '')
    what = 'Its old units read only old units, and new ones stand beside or above them' if section['growth'] else ''
    what = f'{what}; it' if what else 'It'
    return (
        f'# {plain(title(subject))}\n\nAn {labels} for {subject.config["num_classes"]} classes'.replace('An m', 'A m')
        + f': {grown}{trained}. {what} loads as any timm model does.\n'
    )


def base_name(subject: Subject) -> str:
    """The architecture that the network was before it grew."""
    return getattr(subject.network, 'base_name', None) or subject.architecture


def base_link(subject: Subject) -> str:
    hub_id = subject.base_hub_id
    return f'[`{subject.base_model}`](https://huggingface.co/{hub_id})' if hub_id else f'`{subject.base_model}`'


def show_growth(subject: Subject) -> str:
    if not subject.section['growth']:
        return ''
    words = describe_growth(subject.network)
    return f'## Growth\n\n![{plain(words)}](growth.png)\n'


def show_size(subject: Subject) -> str:
    """Parameters and multiply-adds beside the base's."""
    size = subject.config['pretrained_cfg']['input_size'][-1]
    networks = {subject.architecture: subject.network}
    if subject.section['growth']:
        options = {
            name: value
            for name, value in subject.config.get('model_args', {}).items()
            if name in ('in_chans', 'global_pool')
        }
        classes = subject.config['num_classes']
        base = timm.create_model(base_name(subject), device='meta', num_classes=classes, **options)
        networks = {base_name(subject): base, **networks}
    numbers = {
        name: (sum(parameter.numel() for parameter in network.parameters()), multiply_adds(network, size))
        for name, network in networks.items()
    }
    first = next(iter(numbers.values()))
    rows = [
        [f'`{name}`', f'{parameters / 1e6:.2f} M', f'{work / 1e9:.3f} G']
        + ([f'{parameters / first[0]:.3f}', f'{work / first[1]:.3f}'] if subject.section['growth'] else [])
        for name, (parameters, work) in numbers.items()
    ]
    head = ['network', 'parameters', 'multiply-adds']
    head += ['parameters of base', 'multiply-adds of base'] if subject.section['growth'] else []
    both = f', both with {subject.config["num_classes"]} classes' if len(rows) > 1 else ''
    return f'## Size\n\nFor one image of {size} x {size} pixels{both}.\n\n{table(head, rows)}'


def show_results(subject: Subject) -> str:
    """What was measured, and plainly what was not."""
    section, record = subject.section, subject.record
    metrics = section['metrics']
    if metrics is None or record is None:
        return (
            '## Results\n\nNothing was measured: neither accuracy nor anything else is known of these weights from this '
            'card.\n'
        )
    count = metrics['images']
    rows = []
    for key, name in (('top1', 'top-1'), ('top5', 'top-5'), ('map', 'mean average precision')):
        value, stored = metrics.get(key), metrics.get(f'{key}_stored')
        if value is not None:
            rows.append([name, f'{value:.2f} %', spread(value, count) if key != 'map' else 'not computed'])
        if stored is not None:
            interval_of = spread(stored, count) if key != 'map' else 'not computed'
            rows.append([f'{name} of the weights as stored', f'{stored:.2f} %', interval_of])
    if metrics['loss'] is not None:
        kind = 'binary cross-entropy' if subject.is_multi_label else 'cross-entropy'
        rows.append([kind, f'{metrics["loss"]:.4f}', 'not computed'])
    done, asked = int(record.history[-1]['epoch'] or 0), record.config['epochs']
    unfinished = f' The run was staged after {done} of {asked} epochs.' if done < asked else ''
    which = 'the last' if record.weights.name == 'last' else 'the best'
    return (
        f'## Results\n\nOn the {count} validation images of {plain(record.dataset)}; weights of epoch '
        f'{metrics["epoch"]}, {which} of {done}, regime {plain(record.config["regime"])}.{unfinished}\n\n'
        + table(['metric', 'value', '95 % interval'], rows)
        + show_storage(subject)
        + '\n'
        + show_unmeasured(subject)
    )


def spread(value: float, count: int) -> str:
    """Wilson's interval of a percentage, as text."""
    if not count:
        return 'no images'
    low, high = interval(value / 100, count)
    return f'{low:.1f} to {high:.1f} %'


def show_storage(subject: Subject) -> str:
    """Say what rounding cost."""
    metrics = subject.section['metrics']
    for key, unit in (('top1', 'top-1'), ('map', 'mean average precision')):
        stored = metrics.get(f'{key}_stored')
        if stored is not None:
            change = stored - metrics[key]
            return (
                f'\nThe weights were trained in float32 and are stored in bfloat16, half the bytes. Measured again as '
                f'stored, on the same images: {unit} {stored:.2f} % instead of {metrics[key]:.2f} %, '
                f'{change:+.2f} points.\n'
            )
    return ''


def show_unmeasured(subject: Subject) -> str:
    """Say plainly what is not known."""
    assert subject.record is not None
    config = subject.record.config
    chosen = (
        'The epoch was chosen by these same images, so they flatter it a little; there was no further test set.'
        if subject.record.weights.name == 'best'
        else 'There was no further test set.'
    )
    return (
        f'Not measured: {chosen[0].lower()}{chosen[1:]} It is one run with one seed ({config["seed"]}); the interval '
        'is that of the images alone and says nothing of other seeds. The base fine-tuned without growth was not '
        'trained beside it in this run. Nothing is known of other data, of images that look otherwise, of calibration, '
        'of fairness among groups of people, or of speed.\n'
    )


def show_use(subject: Subject) -> str:
    """How to load it: snippets that run as they stand once the repository is there."""
    plugin = (
        '\nWithout `import timm_devnet` timm answers `RuntimeError: Unknown model '
        f'({subject.architecture})`, and transformers fails for the same reason: install '
        '[timm_devnet](https://pypi.org/project/timm-devnet) where it is not, and import it before the model is created, '
        'in every process that does so.\n'
        if subject.needs_plugin
        else ''
    )
    return (
        '## Use\n\nWith timm:\n\n'
        + code_block(timm_snippet(subject), 'python')
        + '\nWith another number of classes it becomes a starting point: '
        + f"`timm.create_model('{HUB}{PLACEHOLDER}', pretrained=True, num_classes=10)`.\n\n"
        + show_transformers(subject)
        + plugin
    )


def imports(subject: Subject) -> str:
    return 'import timm_devnet  # registers the grown networks with timm\n' if subject.needs_plugin else ''


def timm_snippet(subject: Subject) -> str:
    """Load it, prepare an image, name the answers."""
    count = min(5, subject.config['num_classes'])
    squash = 'sigmoid()' if subject.is_multi_label else 'softmax(1)'
    named = len(subject.classes) >= subject.config['num_classes']
    names = "names = model.pretrained_cfg['label_names']\n" if named else ''
    name = 'names[index]' if named else "f'class {index}'"
    return (
        f'import timm\n{imports(subject)}import torch\nfrom PIL import Image\n\n'
        f"model = timm.create_model('{HUB}{PLACEHOLDER}', pretrained=True).eval()\n"
        'transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))\n'
        f"{names}image = Image.new('RGB', (320, 240))  # yours: Image.open('photo.jpg').convert('RGB')\n"
        'with torch.no_grad():\n'
        f'    shares = model(transform(image)[None]).{squash}[0]\n'
        f'for share, index in zip(*(values.tolist() for values in shares.topk({count}))):\n'
        f'    print({name}, round(100 * share, 1))'
    )


def show_transformers(subject: Subject) -> str:
    """How transformers loads it; of a delta it needs a whole copy."""
    if subject.section['delta']:
        return (
            'transformers does not complete delta checkpoints. Make a whole copy first, then give its folder in the '
            'place of the name below:\n\n'
            + code_block(f'python -m hub pull {PLACEHOLDER} --local-dir whole-copy', 'bash')
            + '\n'
            + code_block(transformers_snippet(subject, 'whole-copy'), 'python')
        )
    return 'With transformers:\n\n' + code_block(transformers_snippet(subject, PLACEHOLDER), 'python')


def transformers_snippet(subject: Subject, place: str) -> str:
    return (
        f'{imports(subject)}from PIL import Image\nfrom transformers import pipeline\n\n'
        f"classifier = pipeline('image-classification', model='{place}')\n"
        "print(classifier(Image.new('RGB', (320, 240))))  # or a path, or a URL"
    )


def show_origin(subject: Subject) -> str:
    """What it stands on, and under which licence."""
    section, base = subject.section, subject.section['base']
    if base is None:
        is_random = subject.record is not None and not subject.record.config['pretrained']
        where = 'The run started from random numbers' if is_random else 'What the weights began with is not recorded'
        text = f'{where}, so no base model is named.\n'
    else:
        at = f' at revision `{base["revision"]}`' if base['revision'] else ''
        text = f'It began with {base_link(subject)}{at}, whose tensors have checksum `{base["tensors"]}`.\n'
        if subject.base_hub_id is None:
            text += 'The base has no repository on the Hub, so the metadata names no base model.\n'
    if section['delta']:
        text += (
            '\nThis is a delta checkpoint: model.safetensors holds only what differs from the base. Loading fetches the '
            'base, checks its checksum, and gives the whole network bit for bit; if the base is missing or another one, '
            'it is refused by name.\n'
        )
    origin = ', that of the base' if section['license'] == subject.base_license else ', as its publisher says'
    of_base = ''
    if subject.base_license and section['license'] != subject.base_license:
        of_base = f'; the base has {plain(subject.base_license)}'
    return f'## Base and licence\n\n{text}\nLicence: {plain(section["license"])}{origin}{of_base}.\n'


def show_making(subject: Subject) -> str:
    """Command, versions, date, seed, fingerprint, curves."""
    record = subject.record
    if record is None:
        return ''
    facts, data = record.facts, record.facts['data']
    versions = {
        'timm_devnet that wrote this': subject.section['version'],
        'python': facts['python'],
        **facts['versions'],
    }
    rows = [
        ['date', plain(facts.get('date') or 'not recorded')],
        ['seed', str(record.config['seed'])],
        ['training images', str(data['train_images'])],
        ['validation images', str(data['val_images'])],
        ['fingerprint of the images', plain(data['fingerprint'])],
        ['machine', plain(facts.get('machine') or 'not recorded')],
        *([f'{plain(name)}', plain(version or 'not installed as a package')] for name, version in versions.items()),
    ]
    return (
        '## How it was made\n\n'
        + code_block(record.command(), 'bash')
        + '\nAbsolute paths are shortened to their last part, here and in the configuration inside model.safetensors.\n\n'
        + table(['', 'value'], rows).replace('---:', '---')
        + '\n![Loss and accuracy of training and validation over the epochs; the numbers are in metrics.csv]'
        + '(curves.png)\n'
    )


def show_classes(subject: Subject) -> str:
    """The names of the outputs, in their order."""
    if not subject.classes:
        return ''
    shown = ', '.join(plain(name) for name in subject.classes[:SHOWN_CLASSES])
    more = len(subject.classes) - SHOWN_CLASSES
    rest = f' and {more} more; all of them are in config.json under label_names' if more > 0 else ''
    return f'## Classes\n\n{shown}{rest}.\n'
