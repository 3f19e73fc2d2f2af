"""Keeps the rows of an evaluation that may be interrupted, so that the same command goes on where it stopped."""

import hashlib
import json
import zlib
from pathlib import Path

from avsbench_robust_dataset.files import writing

__all__ = ["Journal"]


class Journal:
    """An append-only file of rows beside the results, named after a digest of the run's settings.

    As a context manager it adds a note to an exception: how many clips are kept, and where. Each line carries a
    checksum of its row; what follows the last valid line is dropped.

    Attributes:
        rows: clip id -> row, of this run and of earlier runs with the same settings.
        resumed: the number of rows at the start.
    """

    def __init__(self, folder: Path, settings: dict, is_writer: bool = True):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"clips-{digest[:16]}.partial.jsonl"
        self.is_writer = is_writer
        self.rows: dict[str, dict] = {}
        self._whole = 0  # bytes of valid lines
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines(keepends=True):
                row = _read(line)
                if row is None:
                    break
                self.rows[row["clip_id"]] = row
                self._whole += len(line)
        self.resumed = len(self.rows)

    def __enter__(self) -> "Journal":
        return self

    def append(self, rows: list[dict]) -> None:
        """Writes `rows` to the disk, except those of known clips.

        Raises:
            OutputError: they cannot be written; earlier rows are kept.
        """
        rows = [row for row in rows if row["clip_id"] not in self.rows]
        if self.is_writer and rows:
            checked = [row | {"crc32": _checksum(row)} for row in rows]
            lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in checked).encode()
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("r+b" if self.path.exists() else "wb") as file:
                    file.truncate(self._whole)
                    file.seek(self._whole)
                    file.write(lines)
            self._whole += len(lines)
        self.rows |= {row["clip_id"]: row for row in rows}

    def __exit__(self, kind, error, trace) -> None:
        if error is not None and self.rows:
            error.add_note(
                f"{len(self.rows)} scored clips are kept in {self.path}: the same command goes on from there."
            )

    def remove(self) -> None:
        """Deletes the file, once the results are written."""
        if self.is_writer:
            self.path.unlink(missing_ok=True)


def _checksum(row: dict) -> int:
    return zlib.crc32(json.dumps(row, allow_nan=False).encode())


def _read(line: bytes) -> dict | None:
    """The row of a line that `Journal.append` wrote, None for anything else."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
        if not isinstance(row, dict) or row.pop("crc32", None) != _checksum(row):
            return None
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row.get("clip_id"), str) else None
