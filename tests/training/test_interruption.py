import os
import signal

import pytest
from accelerate import Accelerator

from training.interruption import SAME_REQUEST_S, InterruptedRun, Interruption


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted(number: int) -> None:
    with Interruption() as interruption:
        assert not interruption.is_agreed(Accelerator(cpu=True), may_wait=False)
        os.kill(os.getpid(), number)
        assert interruption.is_agreed(Accelerator(cpu=True), may_wait=False)


def test_a_signal_that_a_launcher_passes_on_is_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'run')
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.is_requested
        interruption.noted_at_s -= 2 * SAME_REQUEST_S
        os.kill(os.getpid(), signal.SIGINT)


def test_an_evaluation_stops_at_a_signal() -> None:
    with Interruption() as interruption:
        batches = interruption.stoppable(range(3), Accelerator(cpu=True))
        assert next(batches) == 0
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(InterruptedRun):
            next(batches)


def test_a_second_signal_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
