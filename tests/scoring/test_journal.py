"""Rows of an interrupted evaluation are kept, and read by a run of the same settings only."""

import json
import resource
from contextlib import contextmanager

import pytest

from avs_engine.journal import Journal
from avsbench_robust_dataset.files import OutputError


@contextmanager
def file_size_limit(size: int):
    """Files of this process end at `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


ROWS = [{"clip_id": name, "iou": [0.1, 1 / 3]} for name in "abc"]


def kept(journal) -> list[dict]:
    """The rows in the file, without their checksums."""
    rows = [json.loads(line) for line in journal.path.read_text(encoding="utf-8").splitlines()]
    assert all(isinstance(row.pop("crc32"), int) for row in rows)
    return rows


def test_rows_survive_an_exception_which_says_where_they_are(tmp_path):
    folder = tmp_path / "eval"
    with pytest.raises(KeyError) as caught, Journal(folder, {"seed": 1}) as journal:
        assert not folder.exists()  # nothing is written before there is something to keep
        journal.append(ROWS[:2])
        raise KeyError("dog")
    assert caught.value.__notes__ == [
        f"2 scored clips are kept in {journal.path}: the same command goes on from there."
    ]
    with Journal(folder, {"seed": 1}) as again:
        assert again.path == journal.path and again.resumed == 2
        assert list(again.rows.values()) == ROWS[:2]
        again.append(ROWS[2:])
    assert kept(again) == ROWS
    again.remove()
    assert not list(folder.iterdir())


def test_other_settings_are_another_file(tmp_path):
    with Journal(tmp_path, {"seed": 1}) as journal:
        journal.append(ROWS)
    with Journal(tmp_path, {"seed": 2}) as other:
        assert not other.rows and other.path != journal.path
        other.append(ROWS[:1])
    assert Journal(tmp_path, {"seed": 1}).resumed == 3
    settings = {f"setting {k:02d}": "as usual" for k in range(40)}
    paths = {Journal(tmp_path, settings | {name: "another"}).path for name in settings}
    assert len(paths) == 40, "each setting counts, the last one too"


def test_a_torn_last_line_is_written_again(tmp_path):
    with Journal(tmp_path, {}) as journal:
        journal.append(ROWS)
    journal.path.write_bytes(journal.path.read_bytes()[:-5])
    with Journal(tmp_path, {}) as again:
        assert list(again.rows) == ["a", "b"]
        again.append(ROWS[2:])
    assert kept(again) == ROWS


def test_only_one_process_writes(tmp_path):
    with Journal(tmp_path, {}, is_writer=False) as journal:
        journal.append(ROWS)
    assert len(journal.rows) == 3 and not list(tmp_path.iterdir())
    journal.remove()


def test_a_known_clip_is_not_written_twice(tmp_path):
    with Journal(tmp_path, {}) as journal:
        journal.append(ROWS[:2])
        journal.append([{"clip_id": "b", "iou": [9.0]}, ROWS[2]])
    assert kept(journal) == ROWS


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 50,
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b'"text"\n',
        b'{"clip_id": "z"}\n',
        b'{"clip_id": "z", "crc32": 5}\n',
        b'{"clip_id": ["z"], "crc32": 5}\n',
        b'{"clip_id": "z", "iou": NaN, "crc32": 1}\n',
        b"[" * 200_000 + b"\n",
        b"1" * 10_000 + b"\n",
        b"\n\n\r\n",
    ],
)
def test_garbage_ends_what_is_read(tmp_path, garbage):
    with Journal(tmp_path, {}) as journal:
        journal.append(ROWS)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(lines[0] + lines[1] + garbage + lines[2])
    again = Journal(tmp_path, {})
    assert list(again.rows.values()) == ROWS[:2]
    again.append(ROWS[2:])
    assert again.path.read_bytes() == b"".join(lines)


def test_one_wrong_digit_is_noticed(tmp_path):
    with Journal(tmp_path, {}) as journal:
        journal.append(ROWS)
    journal.path.write_bytes(journal.path.read_bytes().replace(b"0.1", b"0.7", 1))
    assert not Journal(tmp_path, {}).rows


@pytest.mark.parametrize("limit", [1, 60, 61, 130])  # bytes; a line has some 65
def test_a_full_disk_keeps_what_was_there(tmp_path, limit):
    with Journal(tmp_path, {}) as journal:
        journal.append(ROWS[:1])
        size = journal.path.stat().st_size
        with file_size_limit(size + limit), pytest.raises(OutputError, match=r"File too large.*Free some room.*jsonl"):
            journal.append(ROWS[1:] * 3 + [{"clip_id": str(i)} for i in range(99)])
        assert list(Journal(tmp_path, {}).rows)[0] == "a"
        journal.append(ROWS[1:])  # there is room again
    assert kept(journal) == ROWS
