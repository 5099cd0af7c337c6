import os
import signal

import pytest
from accelerate import Accelerator

from training.interruption import Interruption


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted(number: int) -> None:
    with Interruption() as interruption:
        assert not interruption.is_agreed(Accelerator(cpu=True), may_wait=False)
        os.kill(os.getpid(), number)
        assert interruption.is_agreed(Accelerator(cpu=True), may_wait=False)


def test_a_second_signal_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
