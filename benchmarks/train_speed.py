"""How fast train.py is beside timm's: the same model, images, batch and threads, each as a user starts it."""

from __future__ import annotations

import csv
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from timm_devnet.layers import WeightsFirst
from training import devices

from .images import CLASSES, make_folder

ROOT = Path(__file__).parent.parent
IMAGE_SIZE = 400, 300
BATCH_SIZES = {'tf_efficientnet_lite0': 32, 'vgg16': 8, 'alexnet': 32}
# Runs timm's script with this plugin's networks in its process, since timm has no AlexNet.
TIMM_SCRIPT = (
    'import runpy, sys, timm_devnet; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'
)
# The mean seconds of an update in the last line of an epoch: "Time: 1.2s, 3.4/s  (5.6s, 7.8/s)".
TIMM_MEAN = re.compile(r'Train: (\d+) \[.*?\(100%\).*?\((\d+\.\d+)s,')


@dataclass(frozen=True)
class Run:
    """One training, by timm's script or by ours."""

    model: str
    flags: tuple[str, ...] = ()
    is_timm: bool = False
    epoch_images: int | None = None
    """Images in an epoch; None: as many as --updates asks for."""

    @property
    def base(self) -> str:
        return self.model.partition('_wa')[0]

    @property
    def name(self) -> str:
        script = 'timm' if self.is_timm else 'train.py'
        return ' '.join([f'{script} {self.model}', *self.flags])


def timm_run(model: str, *flags: str) -> Run:
    return Run(model, flags, is_timm=True)


LITE, VGG, ALEX = BATCH_SIZES
AMP = ('--amp', '--amp-dtype', 'bfloat16')
BF16 = ('--mixed-precision', 'bf16')
FROZEN = ('--regime', 'new', '--cache-features', '1')
# Ours, timm's, and the ratio of images/s that is wanted at least.
IN_FP32 = (
    (Run(LITE), timm_run(LITE), 2.5),
    (Run(VGG), timm_run(VGG), 1.7),
    (Run(ALEX), timm_run(ALEX), 1.15),
    (Run(LITE, ('--cache-images',)), timm_run(LITE, '--channels-last'), 1.3),
    (Run('alexnet_wa2048', FROZEN, epoch_images=1024), timm_run(ALEX), 20.0),
)
# Where the CPU computes in bf16, the best flags of VGG and AlexNet are with it, and else without.
WITH_BF16 = (
    (Run(VGG, BF16), timm_run(VGG), 2.5),
    (Run(ALEX, BF16), timm_run(ALEX), 1.7),
    (Run(VGG, (*BF16, '--cache-images')), timm_run(VGG, '--channels-last', *AMP), 1.3),
    (Run(ALEX, (*BF16, '--cache-images')), timm_run(ALEX, *AMP), 1.0),
    (Run('alexnet_wa2048', (*FROZEN, *BF16), epoch_images=1024), timm_run(ALEX), 30.0),
)
WITHOUT_BF16 = (
    (Run(VGG, ('--cache-images',)), timm_run(VGG, '--channels-last'), 1.3),
    (Run(ALEX, ('--cache-images',)), timm_run(ALEX, '--channels-last'), 1.0),
)


def train(
    timm_train: Path,
    repeats: int = 5,
    updates: int = 8,
    models: tuple[str, ...] = tuple(BATCH_SIZES),
    csv_file: Path | None = None,
) -> int:
    """Time whole epochs of training, reading the images included, beside timm's own script.

    Every run is two epochs at 224 px, of which the second counts, without evaluation and saving; the runs take turns.

    Args:
        timm_train: The path of timm's train.py, which is in its repository and not in its wheel.
        repeats: Rounds.
        updates: Batches in an epoch.
        models: Which of tf_efficientnet_lite0, vgg16 and alexnet.
        csv_file: Keeps every speed as soon as it is measured; what is there already, with as many updates, is not
            measured again.

    Returns:
        Exit code: 1 if a median ratio is below what is wanted.
    """
    has_bf16 = devices.computes_bf16()
    if not has_bf16:
        print('This CPU has no instructions for bf16, so nothing is measured in it.\n')
    comparisons = (*IN_FP32, *(WITH_BF16 if has_bf16 else WITHOUT_BF16))
    wanted = [(ours, theirs, least) for ours, theirs, least in comparisons if theirs.model in models]
    runs = list(dict.fromkeys(run for ours, theirs, _ in wanted for run in (theirs, ours)))
    speeds: dict[Run, list[float]] = {run: [] for run in runs}
    known = read_speeds(csv_file, updates)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats):
            for run in runs:
                if (turn, run.name) not in known:
                    count = run.epoch_images or updates * BATCH_SIZES[run.base]
                    images = make_folder(Path(folder), count, IMAGE_SIZE)
                    known[turn, run.name] = images_per_s(run, images, Path(folder) / 'runs', timm_train)
                    keep_speed(csv_file, updates, turn, run, known[turn, run.name])
                    shutil.rmtree(Path(folder) / 'runs')  # some of them write gigabytes
                    print(f'{turn + 1}/{repeats} {run.name}: {known[turn, run.name]:.1f} images/s', file=sys.stderr)
                speeds[run].append(known[turn, run.name])
        rates = [head_rate() for _ in range(repeats)]
    print(f'{torch.get_num_threads()} threads, 224 px, {updates} updates an epoch, {repeats} rounds, median (range)\n')
    rows = [row_of(ours, theirs, least, speeds) for ours, theirs, least in wanted]
    print('| ours | images/s | timm | images/s | ratio | wanted |\n| --- | --- | --- | --- | --- | --- |')
    for cells, _ in rows:
        print(f'| {" | ".join(cells)} |')
    print(f'\nmatrix products of the head alone: {describe(rates, 2)} of the rate of large ones')
    return int(any(is_missed for _, is_missed in rows))


def read_speeds(csv_file: Path | None, updates: int) -> dict[tuple[int, str], float]:
    """Read what was measured before, by round and run."""
    if csv_file is None or not csv_file.exists():
        return {}
    with open(csv_file, newline='') as file:
        rows = [row for row in csv.reader(file) if row[0] == str(updates)]
    return {(int(turn), name): float(speed) for _, turn, name, speed in rows}


def keep_speed(csv_file: Path | None, updates: int, turn: int, run: Run, speed: float) -> None:
    """Add what was measured to the file, if one is wanted."""
    if csv_file is not None:
        csv_file.parent.mkdir(parents=True, exist_ok=True)
        with open(csv_file, 'a', newline='') as file:
            csv.writer(file).writerow((updates, turn, run.name, speed))


def row_of(ours: Run, theirs: Run, least: float, speeds: dict[Run, list[float]]) -> tuple[tuple[str, ...], bool]:
    """One line of the table, and whether its ratio is below what is wanted."""
    ratios = [our / their for our, their in zip(speeds[ours], speeds[theirs], strict=True)]
    cells = (ours.name, describe(speeds[ours], 1), theirs.name, describe(speeds[theirs], 1), describe(ratios, 2))
    return (*cells, f'{least:g}'), statistics.median(ratios) < least


def describe(values: Sequence[float], digits: int) -> str:
    """Median and range."""
    return f'{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})'


def images_per_s(run: Run, images: Path, output: Path, timm_train: Path) -> float:
    """Train and tell the speed of the second epoch."""
    common = ['--data-dir', str(images), '--model', run.model, '--batch-size', str(BATCH_SIZES[run.base])]
    common += ['--epochs', '2', '--output', str(output), '--warmup-epochs', '0']
    # As on a user's machine: neither script is told how many threads to use.
    environment = {name: value for name, value in os.environ.items() if name != 'OMP_NUM_THREADS'}
    environment['XDG_CACHE_HOME'] = str(output.parent / 'cache')  # the user's own stays as it is
    environment['PYTHONPATH'] = os.pathsep.join([str(ROOT), environment.get('PYTHONPATH', '')])
    if run.is_timm:
        more = ['--num-classes', str(CLASSES), '--val-split', 'val', '--device', 'cpu', '--log-interval', '1000000']
        command = [sys.executable, '-c', TIMM_SCRIPT, str(timm_train), *common, *more, *run.flags]
        done = run_command(command, environment)
        seconds = {int(epoch): float(mean) for epoch, mean in TIMM_MEAN.findall(done.stdout + done.stderr)}
        return BATCH_SIZES[run.base] / seconds[1]
    command = [
        sys.executable,
        str(ROOT / 'train.py'),
        *common,
        '--no-pretrained',
        '--img-size',
        '224',
        '--no-report',
        *run.flags,
    ]
    done = run_command(command, environment)
    (folder,) = re.findall(r'^run folder (.*)$', done.stdout, re.MULTILINE)
    with open(Path(folder) / 'metrics.csv') as file:
        return float(list(csv.DictReader(file))[1]['images_per_s'])


def run_command(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a script to its end.

    Raises:
        RuntimeError: It failed; tells the last of what it said.
    """
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)} failed: {done.stderr[-2000:]}')
    return done


def head_rate(batch_size: int = 32, repeats: int = 20) -> float:
    """Speed of the matrix products of alexnet_wa2048's new layer, forward and backward, as a share of large ones'.

    The allocator is set as train.py sets it.
    """
    devices.keep_freed_memory()
    units, reads, large = 2048, 4096, 2048
    layer = WeightsFirst(reads, units)
    values, gradient = torch.randn(batch_size, reads), torch.randn(batch_size, units)
    square = torch.randn(large, large)

    def learn() -> None:
        layer(values).backward(gradient)
        layer.zero_grad()

    products: dict[int, Callable[[], object]] = {
        # Of the backward pass the weights' gradient alone; what is read is frozen and needs none.
        4 * batch_size * reads * units: learn,
        2 * large**3: lambda: square @ square,
    }
    ours, largest = (operations / fastest(product, repeats) for operations, product in products.items())
    return ours / largest


def fastest(action: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of several calls."""
    return min(timeit.repeat(action, number=1, repeat=repeats))
