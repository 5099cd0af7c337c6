"""README.md of a staged folder: the model card, written from the run and from the network, nothing by hand.

Names of classes, data sets and files and the command come from outside: what is put into the text goes through
`markdown.code` or `markdown.code_block`.
"""

from __future__ import annotations

from typing import Any

import timm
from huggingface_hub import ModelCard

from training.costs import multiply_adds
from training.earlier import EarlierTask
from training.measures import interval

from .markdown import code, code_block, table
from .metadata import HUB, Subject, describe, title
from .picture import describe_growth
from .record import Record

# Stands for the repository until its name is known; see `name_repository`.
PLACEHOLDER = 'ORG/NAME'
SHOWN_CLASSES = 100


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
        show_heads(subject),
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


def show_head(subject: Subject) -> str:
    """Say what the model is, in two sentences."""
    section, record = subject.section, subject.record
    kind = 'A multi-label image classifier' if subject.is_multi_label else 'An image classifier'
    start = f'the pretrained {base_link(subject)}' if subject.base_model else f'`{base_name(subject)}`'
    grown = f'grown by `{section["growth"]}`' if section['growth'] else 'with a new classifier'
    trained = f' and trained on {code(record.dataset)} in regime {code(record.config["regime"])}' if record else ''
    units = (
        'Its old units read only old units, and what is new stands beside or above them'
        if section['growth']
        else 'It has not grown'
    )
    return (
        f'# {code(title(subject))}\n\n{kind} for {subject.config["num_classes"]} classes: {start}, {grown}{trained}. '
        f'{units}; timm loads it like any of its models.\n'
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
    return f'## Growth\n\n![{words}](growth.png)\n'


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
    head += ['parameters / base', 'multiply-adds / base'] if subject.section['growth'] else []
    both = f', both with {subject.config["num_classes"]} classes' if len(rows) > 1 else ''
    return f'## Size\n\nFor one image of {size} x {size} pixels{both}.\n\n{table(head, rows)}'


def show_results(subject: Subject) -> str:
    """What was measured, and plainly what was not."""
    section, record = subject.section, subject.record
    metrics = section['metrics']
    if metrics is None or record is None:
        return '## Results\n\nNothing was measured: neither accuracy nor anything else is known of these weights.\n'
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
        f'## Results\n\nOn the {count} validation images of {code(record.dataset)}; weights of epoch '
        f'{metrics["epoch"]}, {which} of {done}, regime {code(record.config["regime"])}.{unfinished}\n\n'
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


def show_heads(subject: Subject) -> str:
    """The heads that are kept of earlier tasks, what was measured by them, and how they are asked."""
    kept = getattr(subject.network, 'kept', {})
    if not kept:
        return ''
    is_measured = subject.record is not None and subject.record.weights.name == 'best'
    tasks = read_tasks(subject.record.facts) if subject.record is not None and is_measured else {}
    rows = []
    for name, head in kept.items():
        task = tasks.get(name)
        before, after = (percent(value) for value in ((task.before, task.after) if task else (None, None)))
        reads = f'the first {head.steps} of the steps it has grown by' if head.steps else 'the base alone'
        classes = ', '.join(code(label) for label in head.label_names[:SHOWN_CLASSES])
        more = ' and more' if len(head.label_names) > SHOWN_CLASSES else ''
        rows.append([code(name), str(head.num_classes), reads, before, after, f'{classes}{more}'])
    first = next(iter(kept))
    head_row = ['head', 'classes', 'reads', 'before the last task', 'now', 'in the order of its outputs']
    return (
        '## Earlier tasks\n\nThe network learnt other tasks before this one and keeps their classifiers, each a head '
        'with a name. What was measured by them, top-1 or mean average precision, is on the validation images of their '
        'own tasks.\n\n'
        + table(head_row, rows, numeric=False)
        + '\nAll heads in one pass, and a network for one of them:\n\n'
        + code_block(
            f'import timm\n{imports(subject)}import torch\n\n'
            f"model = timm.create_model('{HUB}{PLACEHOLDER}', pretrained=True).eval()\n"
            "images = torch.rand(2, *model.pretrained_cfg['input_size'])\n"
            'with torch.no_grad():\n'
            '    answers = timm_devnet.forward_heads(model, images)  # None: the present task\n'
            f"earlier = timm_devnet.recall_head(model, '{first}')\n"
            'print({name: tuple(logits.shape) for name, logits in answers.items()}, type(earlier).__name__)',
            'python',
        )
    )


def read_tasks(facts: dict[str, Any]) -> dict[str, EarlierTask]:
    """What a run has recorded of its earlier tasks, by the names of their heads."""
    return {task['head']: EarlierTask.from_dict(task) for task in facts.get('earlier', ())}


def percent(value: float | None) -> str:
    return 'not measured' if value is None else f'{value:.2f} %'


def show_use(subject: Subject) -> str:
    """How to load it: snippets that run as they stand once the repository is there."""
    plugin = (
        '\nWithout `import timm_devnet` timm answers `RuntimeError: Unknown model '
        f'({subject.architecture})`, and transformers fails for the same reason: install '
        'timm_devnet where it is not (`pip install .` in a copy of its repository), and import it before the model is '
        'created, in every process that does so.\n'
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
            'transformers does not complete delta checkpoints. Make a whole copy first, and give its folder in the '
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


def missing_base(record: Record | None) -> str:
    """Say why there is no base to name."""
    if record is None or 'base' not in record.facts:
        return 'What the weights began with is not recorded'
    if record.facts['base'] is None:
        return 'The run started from random numbers'
    return 'The run began with weights that cannot be had by a name'


def show_origin(subject: Subject) -> str:
    """What it stands on, and under which licence."""
    section, base = subject.section, subject.section['base']
    if base is None:
        text = f'{missing_base(subject.record)}, so no base model is named.\n'
    else:
        at = f' at revision `{base["revision"]}`' if base['revision'] else ''
        text = f'It began with {base_link(subject)}{at}, whose tensors have checksum `{base["tensors"]}`.\n'
        if subject.record is not None and subject.record.began_in_file:
            text += 'The run read them from a file; whether others get the same by that name, the checksum tells.\n'
        if subject.base_hub_id is None:
            text += 'The base has no repository on the Hub, so the metadata names no base model.\n'
    if section['delta']:
        text += (
            '\nThis is a delta checkpoint: model.safetensors holds only what differs from the base. Loading fetches '
            'the base, checks its checksum, and gives the whole network bit for bit; if the base is missing or another '
            'one, it is refused by name.\n'
        )
    origin = ', that of the base' if section['license'] == subject.base_license else ', as its publisher says'
    of_base = ''
    if subject.base_license and section['license'] != subject.base_license:
        of_base = f'; the base has {code(subject.base_license)}'
    return f'## Base and licence\n\n{text}\nLicence: {code(section["license"])}{origin}{of_base}.\n'


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
        ['date', facts.get('date') or 'not recorded'],
        ['seed', str(record.config['seed'])],
        ['training images', str(data['train_images'])],
        ['validation images', str(data['val_images'])],
        ['fingerprint of the images', code(data['fingerprint'])],
        ['machine', code(facts.get('machine') or 'not recorded')],
        *([name, version or 'not installed as a package'] for name, version in versions.items()),
    ]
    return (
        '## How it was made\n\n'
        + code_block(record.command(), 'bash')
        + '\nAbsolute paths are shortened to their last part, here and in the configuration in model.safetensors.\n\n'
        + table(['', 'value'], rows, numeric=False)
        + '\n![Loss and accuracy of training and validation over the epochs; the numbers are in metrics.csv]'
        + '(curves.png)\n'
    )


def show_classes(subject: Subject) -> str:
    """The names of the outputs, in their order."""
    if not subject.classes:
        return ''
    shown = ', '.join(code(name) for name in subject.classes[:SHOWN_CLASSES])
    more = len(subject.classes) - SHOWN_CLASSES
    rest = f' and {more} more; all of them are in config.json under label_names' if more > 0 else ''
    return f'## Classes\n\nIn the order of the outputs: {shown}{rest}.\n'
