"""What training takes of a machine: memory by regime, and how time and memory grow with images and epochs."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .images import make_folder

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Usage:
    """What one run of train.py took."""

    seconds: float
    """From start to end, the start of Python included."""
    peak_bytes: int
    """Largest resident memory of its process."""
    epoch_s: list[float]
    """Training time of each epoch."""


def memory(model: str = 'vgg16_wa2048', batch_size: int = 8, updates: int = 4, limit: float = 0.5) -> int:
    """Compare the peak resident memory of regimes new and all.

    Args:
        model: Name of a grown network.
        batch_size: Images in a batch.
        updates: Batches that are trained on.
        limit: Largest allowed ratio.

    Returns:
        Exit code: 1 if the ratio is larger.
    """
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        images = make_folder(Path(folder), batch_size * updates, (256, 256))
        for regime in ('new', 'all'):
            flags = ['--model', model, '--regime', regime, '--batch-size', str(batch_size), '--epochs', '1']
            peaks[regime] = run(Path(folder), images, ['--img-size', '224', *flags]).peak_bytes
            print(f'{model}, regime {regime}, batch {batch_size} at 224 px: peak {peaks[regime] / 1e9:.2f} GB')
    ratio = peaks['new'] / peaks['all']
    print(f'ratio {ratio:.2f}, at most {limit:g} wanted')
    return int(ratio > limit)


def scaling(counts: tuple[int, ...] = (1000, 10_000, 100_000), epochs: tuple[int, ...] = (1, 4)) -> int:
    """Train a tiny network on generated images: how time and memory grow with their number, and with epochs.

    Args:
        counts: Numbers of training images.
        epochs: Numbers of epochs, tried with the fewest images.

    Returns:
        Exit code 0.
    """
    small = ['--model', 'test_efficientnet', '--img-size', '32', '--batch-size', '50']
    cases = [(count, epochs[0]) for count in counts] + [(counts[0], number) for number in epochs[1:]]
    print('| images | epochs | training, ms an image | whole run, s | peak memory, MB |')
    print('| --- | --- | --- | --- | --- |')
    with tempfile.TemporaryDirectory() as folder:
        for count, number in cases:
            images = make_folder(Path(folder), count, (40, 40))
            usage = run(Path(folder), images, [*small, '--epochs', str(number)])
            per_image_ms = 1000 * sum(usage.epoch_s) / (count * number)
            row = f'{count} | {number} | {per_image_ms:.2f} | {usage.seconds:.0f} | {usage.peak_bytes / 1e6:.0f}'
            print(f'| {row} |', flush=True)
    return 0


def run(folder: Path, images: Path, flags: list[str]) -> Usage:
    """Train in a process of its own.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, str(ROOT / 'train.py'), '--data-dir', str(images), '--output', str(folder / 'runs')]
    command += ['--no-pretrained', '--tracker', 'none', '--no-report', *flags]
    # The user's own caches stay as they are, and the choice of a memory format is made here, and counts.
    environment = {**os.environ, 'XDG_CACHE_HOME': str(folder / 'cache')}
    start = time.monotonic()
    with tempfile.TemporaryFile('w+') as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f'{" ".join(command)} failed: {text[-2000:]}')
    (run_folder,) = re.findall(r'^run folder (.*)$', text, re.MULTILINE)
    with open(Path(run_folder) / 'metrics.csv') as file:
        rates = [float(row['images_per_s']) for row in csv.DictReader(file)]
    count = int(re.findall(r'^(\d+) training', text, re.MULTILINE)[0])
    # ru_maxrss counts kibibytes on Linux and bytes on macOS.
    unit = 1 if sys.platform == 'darwin' else 1024
    return Usage(seconds, usage.ru_maxrss * unit, [count / rate for rate in rates])
