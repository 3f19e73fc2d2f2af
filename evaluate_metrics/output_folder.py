"""What a run needs of its output folder: nobody else in it, whole files or none, and a clear word where that fails."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["FolderInUseError", "OutputError", "only_run_in", "write_whole", "writing"]

LOCK, OWNER = ".run.lock", ".run.owner"  # two files: some systems let nobody read a locked one
ATTEMPTS = 100  # at a folder that comes and goes


class OutputError(OSError):
    """The output cannot be written; the message says why and what to do."""


class FolderInUseError(OutputError):
    """Another run works in the folder; the message says which."""


@contextmanager
def only_run_in(folder: str | Path) -> Iterator[None]:
    """Holds the output folder of a run, which is made if need be; for the run's main process.

    The operating system frees the folder when the process dies, however that happens.

    Raises:
        FolderInUseError: another process holds it; the message names process, host and start.
        OutputError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    lock, owner = FileLock(folder / LOCK, blocking=False), folder / OWNER
    is_new = False
    try:
        with writing(folder):
            is_new = _hold(folder, lock)
            since = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()} (since {since})", encoding="utf-8")
        yield
    finally:
        if lock.is_locked:
            for file in (owner, folder / LOCK):
                with suppress(OSError):
                    file.unlink()
            lock.release()
            if is_new:
                with suppress(OSError):  # it holds something, as it should
                    folder.rmdir()


def _hold(folder: Path, lock: FileLock) -> bool:
    """Takes the lock in the folder; whether the folder had to be made."""
    for left in reversed(range(ATTEMPTS)):
        is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            break
        except Timeout:
            try:
                who = (folder / OWNER).read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                who = ""
            raise FolderInUseError(
                errno.EBUSY,
                f"Expected an output folder of this run alone, but {who or 'another process'} works there. Wait for "
                "it, or name another folder",
                str(folder),
            ) from None
        except (FileNotFoundError, FileExistsError):
            if not left:
                raise
            # Else it was there for one of the two steps only: another run has just removed its empty folder.
    return is_new


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns an OSError of the block, a full disk say, into an OutputError that names `path` and what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            error.errno,
            f"Expected a place to write to, but: {error.strerror or error}. Free some room or name another output "
            "folder; what was finished before is kept, and the same command goes on from there",
            str(path),
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, also where the power fails; for the one run that `only_run_in` lets in.

    Raises:
        OutputError: a full disk and the like; what was in the file before is still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # the name must not be on the disk before the content
            os.replace(partial, path)
        finally:
            with suppress(OSError):  # it is gone, as it should be
                partial.unlink()
