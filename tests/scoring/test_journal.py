"""Rows of an interrupted evaluation are kept, and read by a run of the same settings only."""

import json

import pytest

from evaluate_metrics.journal import Journal

ROWS = [{"clip_id": name, "iou": [0.1, 1 / 3]} for name in "abc"]


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
    assert [json.loads(line) for line in again.path.read_text().splitlines()] == ROWS
    again.remove()
    assert not list(folder.iterdir())


def test_other_settings_are_another_file(tmp_path):
    with Journal(tmp_path, {"seed": 1}) as journal:
        journal.append(ROWS)
    with Journal(tmp_path, {"seed": 2}) as other:
        assert not other.rows and other.path != journal.path
        other.append(ROWS[:1])
    assert Journal(tmp_path, {"seed": 1}).resumed == 3


def test_a_torn_last_line_is_written_again(tmp_path):
    with Journal(tmp_path, {}) as journal:
        journal.append(ROWS)
    journal.path.write_bytes(journal.path.read_bytes()[:-5])
    with Journal(tmp_path, {}) as again:
        assert list(again.rows) == ["a", "b"]
        again.append(ROWS[2:])
    assert [json.loads(line) for line in again.path.read_text().splitlines()] == ROWS


def test_only_one_process_writes(tmp_path):
    with Journal(tmp_path, {}, is_writer=False) as journal:
        journal.append(ROWS)
    assert len(journal.rows) == 3 and not list(tmp_path.iterdir())
    journal.remove()
