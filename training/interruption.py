"""Being asked to stop: a signal is noted, the step is finished, and the run is saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

from accelerate import Accelerator

T = TypeVar('T')

# EX_TEMPFAIL of sysexits.h: nothing went wrong, start again to go on.
EXIT_INTERRUPTED = 75


# Launchers of several processes pass a signal on that reaches their processes anyway, when it is sent to every process
# of a job; what arrives within this time of the first one is taken for the same request.
SAME_REQUEST_S = 2.0


class InterruptedRun(Exception):
    """A run that was saved because it was asked to stop; the message says how to go on."""


class Interruption:
    """Notes SIGTERM and SIGINT while it is entered; a second one acts as if this were not here."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.is_requested = False
        self.noted_at_s = 0.0
        self.is_passed_on = 'TORCHELASTIC_RUN_ID' in os.environ
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        # Python delivers signals to the main thread only; a run in another thread is stopped by other means.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if not self.is_requested:
            self.is_requested, self.noted_at_s = True, now_s
            if not self.is_passed_on:
                self._restore()
        elif now_s - self.noted_at_s > SAME_REQUEST_S:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned
        self._handlers = {}

    def stoppable(self, batches: Iterable[T], accelerator: Accelerator) -> Iterator[T]:
        """Go through the batches of an evaluation, which nothing is lost by breaking off.

        Raises:
            InterruptedRun: It was asked to stop.
        """
        for batch in batches:
            if self.is_agreed(accelerator, may_wait=True):
                raise InterruptedRun('stopped in an evaluation')
            yield batch

    def is_agreed(self, accelerator: Accelerator, may_wait: bool) -> bool:
        """Tell whether to stop now; several processes must do so after the same step.

        Args:
            accelerator: Its processes are asked.
            may_wait: Whether this is a step at which processes may wait for each other.
        """
        if accelerator.num_processes == 1:
            return self.is_requested
        if not may_wait:
            return False
        if self.is_requested:
            accelerator.set_trigger()
        return accelerator.check_trigger()
