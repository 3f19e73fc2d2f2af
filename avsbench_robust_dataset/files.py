"""Writes whole files, locks folders, computes digests of files; errors name the file."""

import errno
import hashlib
import os
import socket
import struct
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from PIL import Image

# What Pillow raises for a file that is not an image, or a broken or truncated one.
BROKEN_IMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,  # no IDAT
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOCK, OWNER = ".run.lock", ".run.owner"  # two files: some systems let nobody read a locked one


def printable(text: object) -> str:
    """`text` with escapes for line breaks and control characters, which a terminal obeys, and what is not Unicode.

    Names of files and of what files hold pass through this before they are printed: they may come from anybody.
    """
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in str(text)
    )


class OutputError(OSError):
    """The output cannot be written; the message says why and what to do."""


class FolderInUseError(OutputError, BlockingIOError):
    """Another run works in the folder; the message says which."""


@contextmanager
def only_run_in(folder: str | Path) -> Iterator[None]:
    """Locks the output folder of a run, and makes it if it is missing; for the run's main process.

    Raises:
        FolderInUseError: another process holds it; the message names process, host and start.
        OutputError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    lock, owner = FileLock(folder / LOCK, blocking=False), folder / OWNER
    is_new = not folder.exists()
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _acquire(lock, folder)
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
                with suppress(OSError):  # a folder with content stays
                    folder.rmdir()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Locks a folder that is replaced as a whole, by a file beside it, `.<name>.lock`.

    Raises:
        FolderInUseError: another process holds it.
        OutputError: the folder around it cannot be made or written to.
    """
    lock = FileLock(out.with_name(f".{out.name}.lock"), blocking=False)
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, out)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire()
    except Timeout:
        owner = folder / OWNER
        who = owner.read_text(encoding="utf-8", errors="replace") if owner.is_file() else "another process"
        raise FolderInUseError(
            errno.EBUSY,
            f"Expected an output folder of this run alone, but {who} works there. Wait for it, or name another folder",
            str(folder),
        ) from None


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns an OSError of the block, for example of a full disk, into an OutputError that names `path`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            error.errno,
            f"Expected a place to write to, but: {error.strerror or error}. Free some room or name another output "
            "folder, then repeat the same command",
            str(path),
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, and the folders that it lies in, whole or not at all, also where the power fails.

    No two processes may write one file at a time: `only_run_in` and `locked` see to that.

    Raises:
        OutputError: the disk is full or the like; what was in the file before is still there.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # the name must not be on the disk before the content
            os.replace(partial, path)
        finally:
            with suppress(OSError):  # after success there is none
                partial.unlink()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
