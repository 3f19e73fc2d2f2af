"""Fuzzes the readers of the tables: any bytes give clips whose files lie in the download, or a ValueError that names
the table.

    python fuzz/fuzz_csv.py -max_total_time=300 fuzz/corpus/csv

Needs `atheris`, which is no part of the test environment. The first byte says which table the rest is: S4's, MS3's, or
AVSS's beside a good one of MS3.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["csv", "avsbench_robust_dataset"]):
    from avsbench_robust_dataset.sources import media_files, read_clips
    from avsbench_robust_dataset.subsets import SPLITS, SUBSETS

ROOT = Path(tempfile.mkdtemp())
TABLES = [("s4", "Single-source/s4_meta_data.csv"), ("ms3", "Multi-sources/ms3_meta_data.csv")]
MS3 = b"video_id,split\naaaaaaaaaaa_0,train\nbbbbbbbbbbb,test\n"


def test_one_input(data: bytes) -> None:
    kind = data[0] % 3 if data else 0
    subset, table = TABLES[min(kind, 1)]
    (ROOT / table).write_bytes(data[1:] if kind < 2 else MS3)
    (ROOT / "AVSS/metadata.csv").write_bytes(data[1:] if kind == 2 else b"vid,label,a_obj\n")
    path = ROOT / ("AVSS/metadata.csv" if kind == 2 else table)
    try:
        clips = read_clips(SUBSETS[subset], ROOT)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 2000, error
        return
    assert clips and len({clip.clip_id for clip in clips}) == len(clips)
    for clip in clips:
        assert clip.split in SPLITS.values()
        frames, masks, wav = media_files(SUBSETS[subset], ROOT, clip)
        for file in (*frames, *masks, wav):
            assert os.path.normpath(file) == str(file) and file.is_relative_to((ROOT / table).parent)
            assert not file.is_file()  # a name that the system takes


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    for folder in ("Single-source", "Multi-sources", "AVSS"):
        (ROOT / folder).mkdir()
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
