"""SIGTERM, with which schedulers announce that they take a machine away."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import torch
from accelerate import Accelerator


class Terminated(BaseException):  # as KeyboardInterrupt: nothing that handles errors may hold it up
    """SIGTERM came where it may cut work short."""


class Termination:
    """Notes SIGTERM, with which schedulers announce that they take a machine away, for the run to save and end.

    Attributes:
        requested: the signal came.
    """

    def __init__(self):
        self.requested = False
        self._may_raise = False
        # `accelerate launch` does not pass the signal on: it dies, and leaves the script with another parent.
        launched = any(name.startswith("ACCELERATE_") for name in os.environ)
        self._launcher = os.getppid() if launched else None

    def __enter__(self):
        self._handles = threading.current_thread() is threading.main_thread()  # Python allows no other
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
        """Within, SIGTERM raises `Terminated`: for long work that changes nothing."""
        self._may_raise = allowed
        try:
            if allowed and self.requested:
                raise Terminated
            yield
        finally:
            self._may_raise = False

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether the signal came to any process, or killed the launcher; a collective call."""
        if self._launcher not in (None, os.getppid()):
            self.requested = True
        if accelerator.num_processes == 1:
            return self.requested
        came = torch.tensor(float(self.requested), device=accelerator.device)
        return bool(accelerator.reduce(came, reduction="sum"))


@contextlib.contextmanager
def ends_on_sigterm(hint: str) -> Iterator[None]:
    """SIGTERM, with which schedulers take a machine away, ends the block with `hint` and exit code 0."""
    if threading.current_thread() is not threading.main_thread():  # Python allows no other
        yield
        return

    def end(number, frame) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise Terminated

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Terminated:
        print(f"Stopped by SIGTERM. {hint}", flush=True)
        raise SystemExit(0) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def leave_sigterm_to_parent(worker: int) -> None:
    """For a worker of a `DataLoader`: schedulers send SIGTERM to all processes at once, but the main process still
    needs its workers until it has saved what it has to."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
