"""Faults that end every process of a run at once, and are told once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError


class Fault(ValueError):
    """A fault that every process of the run raises at the same place, so that only the main one needs to tell."""


def disk_error(error: BaseException) -> str | None:
    """Tell what the system said when a file could not be written; None if the error is of another kind.

    torch.save and safetensors report a full disk as errors of their own, with the system's behind or inside them.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError | SafetensorError):
            return str(cause)
        cause = cause.__context__
    return None


@contextlib.contextmanager
def shared_writing(accelerator: Accelerator, consequence: str) -> Iterator[None]:
    """Write files, in one process or in all; where that fails, every process ends with the same error.

    Every process enters this. Nothing inside may wait for other processes.

    Args:
        accelerator: Joins the processes.
        consequence: What the failure means for the run, said after the system's reason.

    Raises:
        Fault: A file could not be written.
    """
    message = None
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        message = disk_error(error)
        if message is None:
            raise
    messages = [message for message in gather_object([message]) if message is not None]
    if messages:
        raise Fault(f'cannot write: {messages[0]}; {consequence}')
