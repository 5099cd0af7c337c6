"""Runs cells, several at a time, each in a process of its own; goes on where it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from training.interruption import EXIT_INTERRUPTED, Interruption

from .grids import Cell
from .results import folder_of, read_result
from .worker import run_cell

# How often the processes and the wish to stop are looked at.
LOOK_S = 0.5


@dataclass
class Running:
    """A cell that is being run."""

    cell: Cell
    process: BaseProcess
    told: Connection
    place: int
    """Which of the processes it is, and so which GPU."""


class Stopped(Exception):
    """A signal asked to stop; every cell under way is saved."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others from working in the folder of a table.

    Raises:
        ValueError: Another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / '.lock')
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f'another reproduce.py works in {folder}: wait for it, or give another --output') from error
    try:
        yield
    finally:
        lock.release()


class Pool:
    """The cells that wait, run, and have failed.

    Args:
        cells: In the order wanted; none begins with the weights of a later one.
        processes: How many run at a time.
        threads: CPU threads of each; None for what its configuration says.
        keeps_weights: Whether cells keep their weights that no other cell begins with.
        say: Prints a line.
        note: Is called whenever a cell has finished.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        processes: int,
        threads: int | None,
        keeps_weights: bool,
        say: Callable[[str], None],
        note: Callable[[], None],
    ):
        self.threads, self.say, self.note, self.count = threads, say, note, len(cells)
        self.context = processes_of_cells()
        self.gpus = torch.cuda.device_count()
        begun_with = {cell.start for cell in cells}
        self.dropped = set() if keeps_weights else {cell.name for cell in cells} - begun_with
        self.finished = {cell.name for cell in cells if read_result(cell)}
        self.waiting = [cell for cell in cells if cell.name not in self.finished]
        self.running: list[Running] = []
        self.free = list(range(processes))
        self.failed: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Run what is not finished yet.

        Returns:
            The errors of the cells that failed, by name.

        Raises:
            Stopped: It was asked to stop.
        """
        with Interruption() as interruption:
            while self.waiting or self.running:
                if interruption.is_requested:
                    self.stop()
                    raise Stopped
                self.begin_due()
                self.collect()
        return self.failed

    def begin_due(self) -> None:
        """Start as many cells as there is room for, in their order; those that begin with others' weights wait."""
        for cell in list(self.waiting):
            if cell.start in self.failed:
                self.waiting.remove(cell)
                self.failed[cell.name] = f'it begins with the weights of {cell.start}, which failed'
            elif self.free and (not cell.start or cell.start in self.finished):
                self.waiting.remove(cell)
                self.begin(cell)

    def begin(self, cell: Cell) -> None:
        """Start a cell in a process of its own."""
        place = self.free.pop(0)
        told, tells = self.context.Pipe(duplex=False)
        config = cell.config if self.threads is None else dataclasses.replace(cell.config, threads=self.threads)
        gpu = place % self.gpus if self.gpus > 1 else None
        process = self.context.Process(target=run_cell, args=(config, gpu, cell.name in self.dropped, tells))
        process.start()
        tells.close()
        self.running.append(Running(cell, process, told, place))

    def collect(self) -> None:
        """Wait a moment for cells to end, and take down how they did."""
        ended = wait([running.process.sentinel for running in self.running], timeout=LOOK_S)
        for running in [running for running in self.running if running.process.sentinel in ended]:
            running.process.join()
            self.running.remove(running)
            self.free.append(running.place)
            self.take_down(running)

    def take_down(self, running: Running) -> None:
        """Say how a cell has ended."""
        cell, code = running.cell, running.process.exitcode
        result = read_result(cell)
        if code == 0 and result is not None:
            self.finished.add(cell.name)
            done = len(self.finished) + len(self.failed)
            self.say(f'{done}/{self.count} {cell.name}: top-1 {result.top1:.2f} % after {result.seconds:.0f} s')
            self.note()
            return
        message = f'exit code {code}'
        if code is not None and code < 0:
            message = f'killed by signal {-code}' + (' (memory?)' if code == -signal.SIGKILL else '')
        elif code == EXIT_INTERRUPTED:
            message = 'stopped by a signal; it is saved'
        with contextlib.suppress(EOFError):  # it said nothing
            message = running.told.recv()
        self.failed[cell.name] = f'{message} (see {folder_of(cell)}.log)'
        self.say(f'{cell.name} failed: {self.failed[cell.name]}')

    def stop(self) -> None:
        """Ask all cells under way to save and stop, and wait until they have; a second signal ends them at once."""
        self.say(f'stopping: {len(self.running)} cells are saved')
        for running in self.running:
            running.process.terminate()
        while any(running.process.is_alive() for running in self.running):
            time.sleep(0.1)


def processes_of_cells() -> SpawnContext | ForkServerContext:
    """Tell how processes are made.

    Where there are GPUs each starts anew, since what has used one cannot be copied. Elsewhere all are copies of one
    that has imported train.py and done nothing else, which takes seconds for each.
    """
    if torch.cuda.is_available() or 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['train'])
    # A signal to the whole group of processes must not end the one that all others are copied from.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGTERM, before)
    return context
