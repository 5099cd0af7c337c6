"""The run folder: everything a run leaves behind, each file whole at every moment."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import importlib.metadata
import io
import itertools
import json
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from .config import Config
from .data import InputFormat
from .files import replace_file, replace_text
from .measures import WORDS, measure_of
from .predictions import name_outputs
from .sources import Source, fingerprint
from .tensor_files import write_tensors

# Where the images are listed whose loss was not finite.
NONFINITE = 'nonfinite.txt'


def checkpoints(state: Path) -> list[Path]:
    """List the checkpoints in a folder, oldest first."""
    return sorted(state.glob('epoch-*-step-*'))


class RunFolder:
    """One run's folder: run.json, metrics.csv, curves.png, best/, last/, state/, predictions.csv, report.html."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def state(self) -> Path:
        """Where the checkpoints are."""
        return self.path / 'state'

    @property
    def features(self) -> Path:
        """Where cached features are while the run lasts."""
        return self.path / 'features'

    @contextlib.contextmanager
    def kept_if_useful(self) -> Iterator[None]:
        """Remove the folder if an error ends the run before there is a result or a finding in it."""
        try:
            yield
        except BaseException:
            results = (*checkpoints(self.state), self.path / 'last' / 'model.safetensors', self.path / NONFINITE)
            if not any(path.exists() for path in results):
                shutil.rmtree(self.path, ignore_errors=True)  # each process tries
            raise

    def write_run(self, facts: dict[str, Any]) -> None:
        """Write run.json: the configuration, and all that one must know to repeat the run."""
        replace_text(self.path / 'run.json', json.dumps(facts, indent=2) + '\n')

    def adopt_choices(self, config: Config) -> Config:
        """Repeat what was chosen by measuring when this run began, unless the user says otherwise."""
        with contextlib.suppress(FileNotFoundError):
            saved = json.loads((self.path / 'run.json').read_text())['config']
            if config.memory_format is None:
                return dataclasses.replace(config, memory_format=saved.get('memory_format'))
        return config

    def refuse_changes(self, facts: dict[str, Any]) -> None:
        """Refuse to go on with this run under other options or on other data than it began with.

        Raises:
            ValueError: Names what differs.
        """
        try:
            saved = json.loads((self.path / 'run.json').read_text())
        except FileNotFoundError as error:
            raise ValueError(f'{self.path} is not a run folder: it has no run.json') from error
        config = Config(**facts['config'])
        config.refuse_changes(Config(**saved['config']))
        before, now = saved['data'], facts['data']
        if before['classes'] != now['classes']:
            raise ValueError(f'{self.path} began with other classes than the data has now: restore them, or start anew')
        if before != now and not config.allow_changed_data:
            raise ValueError(
                f'the images are not those that {self.path} began with ({before["train_images"]} and '
                f'{before["val_images"]} of them then, now {now["train_images"]} and {now["val_images"]}): restore '
                'them, start a new run, or give --allow-changed-data'
            )

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write metrics.csv, and curves.png where something was measured: drawing takes as long as a small epoch."""
        table = io.StringIO()
        columns = dict.fromkeys(name for row in history for name in row)  # what learns may change, and so the columns
        writer = csv.DictWriter(table, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(history)
        replace_text(self.path / 'metrics.csv', table.getvalue())
        if history[-1][measure_of(history[-1]).column] is not None:
            replace_file(self.path / 'curves.png', lambda path: draw_curves(history, self.path.name, path))

    def write_predictions(self, table: str) -> None:
        """Write predictions.csv."""
        replace_text(self.path / 'predictions.csv', table)

    def write_report(self, page: str) -> None:
        """Write report.html."""
        replace_text(self.path / 'report.html', page)

    def has_current_report(self) -> bool:
        """Tell whether the report was written after the last epoch."""
        report, metrics = self.path / 'report.html', self.path / 'metrics.csv'
        return report.exists() and report.stat().st_mtime_ns >= metrics.stat().st_mtime_ns

    def read_run(self) -> dict[str, Any]:
        """Read run.json."""
        return json.loads((self.path / 'run.json').read_text())

    def read_metrics(self) -> list[dict[str, float | None]]:
        """Read metrics.csv; None stands for what was not measured."""
        with open(self.path / 'metrics.csv', newline='') as file:
            return [{name: float(text) if text else None for name, text in row.items()} for row in csv.DictReader(file)]

    def add_bad_images(self, names: list[str]) -> None:
        """Add unreadable images to bad_images.txt, one a line, each once."""
        path = self.path / 'bad_images.txt'
        known = path.read_text().splitlines() if path.exists() else []
        replace_text(path, ''.join(f'{name}\n' for name in sorted({*known, *names})))

    def add_nonfinite(self, batches: list[str]) -> None:
        """Add batches whose loss was not finite to nonfinite.txt, each once."""
        path = self.path / NONFINITE
        known = path.read_text() if path.exists() else ''
        replace_text(path, known + ''.join(batch for batch in batches if batch not in known))

    def describe_nonfinite(self, batch: str, is_skipping: bool) -> str:
        """Say what stopped the run, where its images are listed, and what to do."""
        if is_skipping:
            batch += ', and too many updates were skipped in a row'
        advice = 'start again with a lower --lr'
        if checkpoints(self.state) and not is_skipping:
            advice += f', or go on from before it with --nonfinite skip --resume {self.path}'
        return f'{batch}; its images are in {self.path / NONFINITE}: {advice}'

    def write_weights(
        self,
        model: nn.Module,
        weights: dict[str, Tensor],
        classes: list[str],
        input_format: InputFormat,
        config: Config,
        is_best: bool,
    ) -> None:
        """Write a network to last/ in timm's own layout, and also to best/ if it is the best so far.

        The configuration goes along inside the weights' metadata. The weights are given besides the network, which may
        hold only this process's part of them.
        timm's save_for_hf would write both files in place and refuse channels-last tensors, as safetensors does.
        """
        last, best = self.path / 'last', self.path / 'best'
        names = name_outputs(classes, cast(Any, model).num_classes)  # transformers wants one for each output
        described: dict[str, Any] = {'label_names': names, 'pretrained_cfg': input_format.timm_config()}
        if config.multi_label:
            described['problem_type'] = 'multi_label_classification'  # for transformers; timm passes over it
        replace_file(last / 'config.json', lambda path: write_config(path, model, described))
        metadata = {'format': 'pt', 'config': config.to_json()}
        replace_file(last / 'model.safetensors', lambda path: write_tensors(path, weights, metadata))
        for name in ('config.json', 'model.safetensors') if is_best else ():
            replace_file(best / name, partial(shutil.copyfile, last / name))


def write_config(path: Path, model: nn.Module, described: dict[str, Any]) -> None:
    """Describe a network in timm's own config.json.

    timm would keep num_classes among the model's arguments, which transformers then passes twice.

    Args:
        path: The file.
        model: As timm made it.
        described: What timm does not know of it: label_names, pretrained_cfg where it differs from the network's own.
    """
    save_config_for_hf(model, str(path), model_config=described)
    contents = json.loads(path.read_text())
    contents.get('model_args', {}).pop('num_classes', None)
    path.write_text(json.dumps(contents, indent=2) + '\n')


def describe_run(config: Config, sources: dict[str, Source], train_images: int) -> dict[str, Any]:
    """Gather what run.json says of the run: what must be the same when it goes on, and how it was made."""
    split_files = {split: getattr(source, 'split_files', {}) for split, source in sources.items()}
    return {
        'config': dataclasses.asdict(config),
        'data': {
            'classes': sources['train'].classes,
            'train_images': train_images,
            'val_images': len(sources['val'].targets),
            'fingerprint': fingerprint(*sources.values()),
            # Of a named data set: the official lists that the splits were read from, and their checksums.
            **({'split_files': split_files} if any(split_files.values()) else {}),
        },
        'command': shlex.join(sys.argv),
        'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        'versions': {name: installed_version(name) for name in ('timm-devnet', 'timm', 'torch', 'accelerate')},
        'python': platform.python_version(),
    }


def installed_version(package: str) -> str | None:
    """Tell a package's version; None for one that runs from its source folder without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run_name(config: Config) -> str:
    """Name a run after its model and its data, if the user did not."""
    if config.experiment:
        return config.experiment
    data = config.dataset if config.dataset else Path(config.data_dir or '.').resolve().name
    name = f'{config.model.rpartition(":")[2]}-{data.rpartition("/")[2]}'
    return re.sub(r'[^\w.+-]+', '_', name.replace('/', '_')).lower()


def numbered_runs(config: Config) -> list[Path]:
    """List the folders of this run's name, in the order they were made: NAME, NAME-2, NAME-3, ..."""
    name = run_name(config)
    pattern = re.compile(re.escape(name) + r'(?:-(\d+))?')
    matches = [(pattern.fullmatch(path.name), path) for path in Path(config.output).glob(f'{name}*') if path.is_dir()]
    return [path for _, path in sorted((int(match[1] or 1), path) for match, path in matches if match)]


def make_folder(config: Config, accelerator: Accelerator) -> RunFolder:
    """Make the first free folder of this run's name; all processes get the one that the main process makes."""
    path = None
    if accelerator.is_main_process:
        root, name = Path(config.output), run_name(config)
        root.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = root / (name if number == 1 else f'{name}-{number}')
            with contextlib.suppress(FileExistsError):
                path.mkdir()  # fails if it exists, so two runs started at once never share a folder
                break
    return RunFolder(broadcast_object_list([path])[0])


def find_folder(config: Config, accelerator: Accelerator) -> RunFolder | None:
    """Find the run to go on with: the folder given, or for auto the newest of this name that has a checkpoint.

    All processes get what the main one finds: a shared disk is not the same everywhere at once.

    Raises:
        ValueError: The folder given has no checkpoint.
    """
    if config.resume is None:
        return None
    if config.resume == 'auto':
        resumable = [path for path in numbered_runs(config) if checkpoints(path / 'state')]
        path = broadcast_object_list([resumable[-1] if resumable else None])[0]
        return None if path is None else RunFolder(path)
    folder = RunFolder(Path(config.resume))
    if not broadcast_object_list([bool(checkpoints(folder.state))])[0]:
        raise ValueError(f'--resume {config.resume} has no checkpoint: give a run folder with some in state/, or auto')
    return folder


def draw_curves(history: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw loss and top-1, or mAP, of training and validation over the epochs."""
    figure = Figure(figsize=(10, 4), dpi=120, layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(1, 2)
    measure = measure_of(history[-1])
    labels = (measure.loss, f'{WORDS[measure.name]} (%)')
    for axes, key, label in zip(panels, ('loss', measure.name), labels, strict=True):
        for split, color in (('train', 'tab:blue'), ('val', 'tab:orange')):
            if all(f'{split}_{key}' not in row for row in history):
                continue
            rows = [row for row in history if row[f'{split}_{key}'] is not None]
            axes.plot(
                [row['epoch'] for row in rows],
                [row[f'{split}_{key}'] for row in rows],
                marker='o' if len(rows) < 40 else None,
                color=color,
                label='training' if split == 'train' else 'validation',
            )
        axes.set_xlabel('epoch')
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format='png')
