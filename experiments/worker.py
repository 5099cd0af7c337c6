"""What runs in the process of one cell."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
import traceback
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path

from training.config import Config
from training.files import replace_text
from training.interruption import EXIT_INTERRUPTED, InterruptedRun
from training.run_folder import checkpoints

USAGE = 'usage.json'


def run_cell(config: Config, gpu: int | None, drops_weights: bool, told: Connection) -> None:
    """Train one cell, or go on with it; the process ends as train.py would.

    Args:
        config: Of the cell.
        gpu: Which GPU it has to itself; None for all there are, or none.
        drops_weights: Whether to remove its weights in the end, which nobody wants and no other cell begins with.
        told: Takes the message of an error.
    """
    # Ctrl-C reaches a whole group of processes; here the one that started it tells it when to stop.
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which the process that it was copied from ignores
    threading.Thread(target=die_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ['CUDA_VISIBLE_DEVICES'] = str(gpu)
    folder = Path(config.output) / str(config.experiment)
    log = folder.with_suffix('.log')
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'a', buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            train(config, folder)
        except InterruptedRun as interrupted:
            print(interrupted)
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:  # whatever it is: the other cells go on, and the table says what it was
            traceback.print_exc()
            told.send(f'{" ".join(str(error).split())}' or type(error).__name__)
            sys.exit(1)
        # Only the last epoch is evaluated, so best/ holds the same; and a finished cell never goes on.
        for name in ('state', 'last', *(('best',) if drops_weights else ())):
            shutil.rmtree(folder / name, ignore_errors=True)


def train(config: Config, folder: Path) -> None:
    """Train in the folder of the cell, or measure, and note what it took."""
    import train

    if config.eval_only:
        measured = train.main(config)
        folder.mkdir(exist_ok=True)
        replace_text(folder / USAGE, json.dumps({'measured': measured, 'peak_memory_bytes': peak_memory()}) + '\n')
        return
    if folder.exists() and not checkpoints(folder / 'state'):
        shutil.rmtree(folder)  # killed before there was anything to go on with; train.py would make NAME-2
    train.main(config)
    replace_text(folder / USAGE, json.dumps({'peak_memory_bytes': peak_memory()}) + '\n')


def peak_memory() -> int:
    """Tell the most memory that this process has had, on its GPU or else in all."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # ru_maxrss counts kibibytes on Linux and bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def die_with_parent() -> None:
    """End this process at once when the one that started it is gone, since the next one may begin the same cell."""
    parent = parent_process()
    assert parent is not None, 'a cell has a process of its own'
    parent.join()
    os._exit(1)
