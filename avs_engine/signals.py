"""Handles SIGTERM, which job schedulers send before they take a machine away."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import torch
from accelerate import Accelerator


class Terminated(BaseException):  # like KeyboardInterrupt, so that error handlers do not catch it
    """SIGTERM arrived during work that may be interrupted."""


class Termination:
    """Records SIGTERM inside its block, so that the run can save a checkpoint and end.

    Attributes:
        requested: whether the signal has arrived.
    """

    def __init__(self):
        self.requested = False
        self._may_raise = False
        # `accelerate launch` does not forward the signal: it dies, and the script gets another parent process.
        launched = any(name.startswith("ACCELERATE_") for name in os.environ)
        self._launcher = os.getppid() if launched else None

    def __enter__(self):
        self._handles = threading.current_thread() is threading.main_thread()  # only there may handlers be set
        if self._handles:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind, error, trace):
        if self._handles:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, number, frame) -> None:
        self.requested = True
        if self._may_raise:
            self._may_raise = False
            raise Terminated

    @contextlib.contextmanager
    def cuts_short(self, allowed: bool = True) -> Iterator[None]:
        """Inside the block the first SIGTERM raises `Terminated` at once; for long work that can be repeated."""
        self._may_raise = allowed
        try:
            if allowed and self.requested:
                raise Terminated
            yield
        finally:
            self._may_raise = False

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process has received the signal or lost its launcher; all processes have to call this."""
        if self._launcher not in (None, os.getppid()):
            self.requested = True
        if accelerator.num_processes == 1:
            return self.requested
        came = torch.tensor(float(self.requested), device=accelerator.device)
        return bool(accelerator.reduce(came, reduction="sum"))


def leave_sigterm_to_parent(worker: int) -> None:
    """Makes a worker of a `DataLoader` ignore SIGTERM.

    Schedulers send it to all processes at once, but the main process needs its workers until it has saved a
    checkpoint.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
