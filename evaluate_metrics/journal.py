"""Keeps the rows of an evaluation that may be interrupted, so that the same command goes on where it stopped."""

import hashlib
import json
from pathlib import Path

__all__ = ["Journal"]


class Journal:
    """An append-only file of rows beside the results, named after a digest of the run's settings.

    Runs with other settings have files of their own: they are neither read nor overwritten. As a context manager it
    notes on whatever stops the run how many clips are kept, and where.

    Attributes:
        rows: clip id -> row, of this run and of those before it with the same settings.
        resumed: how many of them were there at the start.
    """

    def __init__(self, folder: Path, settings: dict, is_writer: bool = True):
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"clips-{digest[:16]}.partial.jsonl"
        self.is_writer = is_writer
        self.rows: dict[str, dict] = {}
        self._whole = 0  # bytes of whole lines; a killed process may leave a piece of one
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                row = json.loads(line)
                self.rows[row["clip_id"]] = row
                self._whole += len(line)
        self.resumed = len(self.rows)
        self._file = None

    def __enter__(self) -> "Journal":
        return self

    def append(self, rows: list[dict]) -> None:
        self.rows |= {row["clip_id"]: row for row in rows}
        if not self.is_writer or not rows:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            self._file.truncate(self._whole)
        self._file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
        self._file.flush()

    def __exit__(self, kind, error, trace) -> None:
        if self._file is not None:
            self._file.close()
        if error is not None and self.rows:
            error.add_note(
                f"{len(self.rows)} scored clips are kept in {self.path}: the same command goes on from there."
            )

    def remove(self) -> None:
        """Deletes the file, once the results are written."""
        if self.is_writer:
            self.path.unlink(missing_ok=True)
