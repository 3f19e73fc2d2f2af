"""Names that come from files are printed so that a terminal obeys none of them and none begins a line."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from avs_engine.commands import evaluate_cli
from avsbench_robust_dataset.__main__ import main as data_main
from avsbench_robust_dataset.files import printable
from evaluate_metrics.__main__ import main as report_main
from evaluate_metrics.clip_rows import results
from evaluate_metrics.results import read_run

EVIL = "\x1b[2Ja\r\nforged: G-mIoU 1.0\x9b31m\u202e\udcff"


@pytest.fixture
def harmless(capsys):
    """harmless(): what was printed, after a look at it."""

    def check() -> str:
        out, err = capsys.readouterr()
        text = out + err
        assert text and all(character == "\n" or printable(character) == character for character in text)
        assert not any(line.lstrip().startswith("forged") for line in text.splitlines())
        return text

    return check


def test_printable():
    assert printable("chat_noir_é犬 \u3000😀") == "chat_noir_é犬 \u3000😀"
    assert printable("a\nb\x1b[1m\u202e\udcff\u2028") == r"a\nb\x1b[1m\u202e\udcff\u2028"
    assert printable(12) == "12"


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="a POSIX locale has no file names of this kind")
def test_what_lies_among_predicted_masks(demo_tree, tmp_path, harmless, monkeypatch):
    folder = tmp_path / "masks/positive" / EVIL.replace("/", "")
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "x_1.png")
    (folder / f"{EVIL}.txt").write_text("")
    command = ["--predictions", str(tmp_path / "masks"), "--subset", "demo", "--data_dir", demo_tree]
    command += ["--conditions", "positive", "--output_dir", str(tmp_path / "eval")]
    monkeypatch.setattr("sys.argv", ["avs-evaluate", *command])
    with pytest.raises(SystemExit) as caught:
        evaluate_cli()
    assert caught.value.code == 2 and r"\x1b[2Ja" in harmless()


def test_tables_and_manifests_of_a_download(tmp_path, harmless):
    table = tmp_path / "data/Single-source/s4_meta_data.csv"
    table.parent.mkdir(parents=True)
    evil = EVIL.replace("\udcff", "")
    table.write_text(f'name,"{evil}"\nx,y\n', encoding="utf-8")
    where = ["--subset", "s4", "--data_dir", str(tmp_path / "data")]
    assert data_main(["check", *where]) == 1
    assert r"\x1b[2Ja" in harmless()
    table.write_text("name,category,split\nx,dog_barking,test\ny,helicopter,test\n")
    rows = [{"split": "test", "clip_id": name, "category": evil, "off_screen_source": evil} for name in ("x", "y")]
    (tmp_path / "manifest").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert data_main(["manifest", *where, "--verify", str(tmp_path / "manifest")]) == 1
    harmless()


def test_results_and_clips(tmp_path, harmless):
    evil = EVIL.replace("\udcff", "")
    frames = {"iou": [0.5], "area": [0.2], "f_score": 0.5, "fpr_curve": [0.1] * 11, "similarity": None}
    rows = [
        {"clip_id": f"{evil}{k}", "category": evil, "conditions": dict.fromkeys(("positive", "silence"), frames)}
        for k in range(3)
    ]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = results([row | {"mask_area": [0.2], "group": None, "source_video": row["clip_id"]} for row in rows])
    found |= {"model": evil, "subset": evil, "split": "test", "clips_file": "clips.jsonl"}
    found |= {"mute_clips": {"positive": [evil], evil: [evil]}, "settings": {"conditions": [evil]}}
    found["scores"][f"miou_{evil}"] = 0.5
    (folder / "results.json").write_text(json.dumps(found))
    report_main([f"--run=m={folder}", f"--out={tmp_path / 'out'}"])
    harmless()
    assert read_run("m", folder).subset.startswith(r"\x1b[2Ja\r\nforged")
    report_main(["compare", str(folder), str(folder)])
    harmless()
    found["settings"] = {evil: evil, "seed": evil}
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit):
        report_main(["entry", str(folder)])
    harmless()
