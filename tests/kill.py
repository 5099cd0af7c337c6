"""Kill train.py at random instants, go on, and compare bits: `python -m tests.kill --instants 20`; a few are in pytest.

Each configuration first runs unbroken. Then runs of it are killed by SIGKILL, all processes at once, after random
times of training, and started again with `--resume auto`, until they finish. Every finished run must have the same
weights, bit for bit, and the same metrics.csv but for its times. They save after every update, so that many kills hit
the writing of a checkpoint. Each start is a process of its own, forked from one that has only imported train.py: a kill
then costs a second and not the time of the imports.
"""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from safetensors.torch import load_file

SERVER = multiprocessing.get_context('forkserver')
SERVER.set_forkserver_preload(['train'])
PLAIN = (
    '--model test_efficientnet --drop 0.5 --batch-size 4 --epochs 3 --img-size 32 --threads 1 --workers 0 '
    '--checkpoint-every 1'
)
GROWN = '--model tf_efficientnet_lite0_wa64 --epochs 2 --checkpoint-every 3'
CONFIGURATIONS = {
    'plain': '',
    'accumulation': '--grad-accum-steps 2 --batch-size 2 --clip-grad 1',
    'two processes': '--batch-size 2',
    'two processes, accumulation': '--batch-size 2 --grad-accum-steps 2',
    'three processes': '--batch-size 2',
    'bf16': '--mixed-precision bf16',
    'regime new': f'{GROWN} --regime new',
    'regime between': f'{GROWN} --regime conv_head-new',
    'regime all': GROWN,
    'no dropout': '--drop 0.0',
    'workers 2': '--workers 2',
    'cached images': '--cache-images',
    'cached features': f'{GROWN} --regime new --cache-features 2',
    'two processes, cached features': f'{GROWN} --regime new --cache-features 1 --batch-size 2',
    'thaw, moving average, mixup': '--regime new --thaw all@1 --model-ema --mixup 0.2 --reprob 0.5',
    'several labels, mixup': '--multi-label --mixup 0.2',
    'grow': f'{GROWN} --grow wa32@1 --model-ema --epochs 3',
    'adamw, skip': '--opt adamw --lr 0.001 --nonfinite skip --sched cosine',
}
PROCESSES = {
    'two processes': 2,
    'three processes': 3,
    'two processes, accumulation': 2,
    'two processes, cached features': 2,
}


@dataclass(frozen=True)
class Options:
    """Options of the long kill test."""

    instants: int = 20
    """Kills of each configuration."""
    only: tuple[str, ...] = ()
    """These configurations only (none: all)."""
    images: int = 40
    """Training images of each of the three classes."""
    seed: int = 0
    """Of the instants."""


@dataclass
class Killed:
    """What became of the killed runs of a configuration."""

    kills: int = 0
    """That left a checkpoint to go on from."""
    while_saving: int = 0
    before_first: int = 0
    """Kills besides, before the first checkpoint."""
    finished: int = 0


def make_images(root: Path, count: int) -> Path:
    """Make a folder of small images in three colours, and lists that call some of them first as well."""
    draw = np.random.default_rng(0)
    for split, images in (('train', count), ('val', 3)):
        labels = ''
        for channel, name in enumerate(('blue', 'green', 'red')):
            (root / split / name).mkdir(parents=True)
            for index in range(images):
                pixels = draw.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., 2 - channel] += 130
                Image.fromarray(pixels).save(root / split / name / f'{index}.png')
                labels += f'{name}/{index}.png,{name}{",first" if index == 0 else ""}\n'
        (root / split / 'labels.csv').write_text(labels)
    return root


def train_in_process(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Do what `python train.py` does, in a process that was just forked."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    # Here the workers that read images would be started as this process was; train.py starts them as the system does.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    import train

    sys.exit(train.cli(arguments))


class Run:
    """A run of train.py in processes of its own, one or several."""

    def __init__(
        self,
        name: str,
        output: Path,
        flags: list[str],
        processes: int = 1,
        target: Callable[[list[str], dict[str, str], Path], None] = train_in_process,
    ):
        output.mkdir(exist_ok=True)
        self.name, self.output, self.count, self.target = name, output, processes, target
        self.log = output / f'{name}.log'
        self.flags = ['--output', str(output), *flags, '--experiment', name, '--resume', 'auto', '--no-pretrained']

    @contextlib.contextmanager
    def started(self) -> Iterator[list[ForkServerProcess]]:
        """Start or go on; whatever still runs at the end is killed."""
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.log.write_text('')
        processes = []
        for rank in range(self.count):
            environment = {'OMP_NUM_THREADS': '1'}
            if self.count > 1:  # what a launcher sets, without its own processes
                environment |= {'ACCELERATE_USE_CPU': 'true', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
                environment |= {'RANK': str(rank), 'LOCAL_RANK': str(rank)}
                environment |= {'WORLD_SIZE': str(self.count), 'LOCAL_WORLD_SIZE': str(self.count)}
            processes.append(SERVER.Process(target=self.target, args=(self.flags, environment, self.log)))
            processes[-1].start()
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.join()

    def finish(self, timeout_s: float | None = None) -> float | None:
        """Run until the end, or kill it after so many seconds of training.

        Returns:
            Seconds of training until the end; None if it was killed.

        Raises:
            RuntimeError: It ended with an error.
        """
        with self.started() as processes:
            while processes[0].is_alive() and 'run folder' not in self.log.read_text():
                time.sleep(0.002)
            start = time.monotonic()
            for process in processes:
                process.join(None if timeout_s is None else max(0.0, start + timeout_s - time.monotonic()))
            codes = [process.exitcode for process in processes]
        if any(codes):
            raise RuntimeError(f'{self.name} failed: {self.log.read_text()}')
        return None if None in codes else time.monotonic() - start

    def folder(self) -> Path:
        """Find the run's folder; one that was killed before its first checkpoint is left behind by the next."""
        return max(self.output.glob(f'{self.name}*/metrics.csv'), key=lambda path: path.stat().st_mtime).parent


def results(folder: Path) -> tuple[dict, list[dict[str, str]]]:
    """Read what must not differ: weights, and metrics.csv without its times."""
    weights = {
        (name, key): tensor.view(-1).contiguous().numpy().tobytes()
        for name in ('best', 'last')
        for key, tensor in load_file(folder / name / 'model.safetensors').items()
    }
    with open(folder / 'metrics.csv') as file:
        rows = [
            {key: value for key, value in row.items() if key not in ('images_per_s', 'elapsed_s')}
            for row in csv.DictReader(file)
        ]
    return weights, rows


def kill_and_compare(name: str, output: Path, data: Path, instants: int, draw: random.Random) -> Killed:
    """Kill runs of a configuration at so many instants, and compare each that finishes with an unbroken one.

    Raises:
        AssertionError: A run's weights or metrics differ.
    """
    flags = ['--data-dir', str(data), *PLAIN.split(), *CONFIGURATIONS[name].split()]
    unbroken = Run('unbroken', output, flags, PROCESSES.get(name, 1))
    duration_s = unbroken.finish()
    assert duration_s is not None
    expected = results(unbroken.folder())
    killed = Killed()
    while killed.kills < instants:
        run = Run(f'killed-{killed.finished}', output, flags, PROCESSES.get(name, 1))
        leftovers: set[int] = set()
        # Once every kill is made, the run may finish.
        while run.finish(draw.uniform(0, duration_s / 2) if killed.kills < instants else None) is None:
            if any(output.glob(f'{run.name}*/state/epoch-*')):
                killed.kills += 1
            else:  # it begins anew, so this kill shows nothing of going on
                killed.before_first += 1
                assert killed.before_first <= instants, f'{name}: kills come before the first checkpoint'
            found_now = {path.stat().st_ino for path in output.glob(f'{run.name}*/state/.*')}
            killed.while_saving += bool(found_now - leftovers)
            leftovers = found_now
        killed.finished += 1
        found = results(run.folder())
        assert found[1] == expected[1], f'{name}: metrics differ: {found[1]} and {expected[1]}'
        assert found[0] == expected[0], f'{name}: weights differ'
    return killed


def main(options: Options) -> None:
    os.environ['PYTHONWARNINGS'] = 'ignore:resource_tracker'  # what the killed ones leave is cleaned up by it
    draw = random.Random(options.seed)
    root = Path(tempfile.mkdtemp())
    data = make_images(root / 'images', options.images)
    print('configuration: kills after which it went on; while a checkpoint was written; besides, before the first one')
    for name in options.only or CONFIGURATIONS:
        output = root / name.replace(' ', '-')
        killed = kill_and_compare(name, output, data, options.instants, draw)
        print(
            f'{name}: {killed.kills} kills, {killed.while_saving}, {killed.before_first}; {killed.finished} runs '
            'equal the unbroken one bit for bit',
            flush=True,
        )
    shutil.rmtree(root)


if __name__ == '__main__':
    main(tyro.cli(Options, description=__doc__))
