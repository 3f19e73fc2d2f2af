"""Tables for papers, and which runs may share a column of differences."""

import shutil
import subprocess

import pytest

from evaluate_metrics import report
from evaluate_metrics.__main__ import main
from evaluate_metrics.report import Run, tables

CLIPS = {"s4": 740, "ms3": 64}
KEYS = ("miou_positive", "f_score_positive", "g_miou", "g_f_score", "g_fpr")


def make_run(name, value, subset="s4", **changes):
    """All scores are `value`, G-FPR the rest to 1; intervals of two percent points."""
    scores = {key: 1 - value if key == "g_fpr" else value for key in KEYS}
    scores |= {f"miou_{condition}": 0.1 for condition in ("silence", "noise", "off_screen")}
    intervals = {key: (scores[key] - 0.01, scores[key] + 0.01) for key in KEYS}
    made = dict(subset=subset, split="test", bootstrap={"clips": CLIPS.get(subset, 9)}, intervals=intervals)
    return Run(name, scores, **(made | changes))


def cells(table):
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_models_are_rows_and_subsets_stand_side_by_side():
    runs = [make_run("a", 0.8), make_run("b", 0.60049), make_run("c", 0.7), make_run("b", 0.9, "ms3")]
    rows = cells(report.markdown_paper_table(runs))
    labels = ["mIoU ↑", "F ↑", "G-mIoU ↑", "G-F ↑", "G-FPR ↓"]
    assert rows["model"] == [f"{subset} {label}" for subset in ("S4", "MS3") for label in labels]
    assert rows["a"] == [*["**80.0**"] * 4, "**20.0**", *["–"] * 5]
    assert rows["b"] == [*["60.0"] * 4, "40.0", *["90.0"] * 4, "10.0"]  # alone on MS3: nothing to rank
    assert rows["c"] == [*["<u>70.0</u>"] * 4, "<u>30.0</u>", *["–"] * 5]
    rows = cells(report.markdown_paper_table(runs, intervals=True))
    assert rows["a"][0] == "**80.0** [79.0, 81.0]" and rows["a"][9] == "–"


def test_equal_values_share_a_place():
    rows = cells(report.markdown_paper_table([make_run("a", 0.8), make_run("b", 0.80001), make_run("c", 0.7)]))
    assert rows["a"][0] == rows["b"][0] == "**80.0**" and rows["c"][0] == "<u>70.0</u>"


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        (dict(bootstrap={"clips": 20}), "20 of 740 clips"),
        (dict(settings={"front_end": "released"}), "with the released front end"),
        (dict(annotation="semantic"), "semantic masks"),
        (dict(split="validation"), "validation split"),
    ],
)
def test_what_cannot_be_ranked_is_marked(changes, note):
    runs = [make_run("a", 0.8), make_run("b", 0.7), make_run("part", 0.9, **changes)]
    table = report.markdown_paper_table(runs)
    rows = cells(table)
    assert rows["part"][0] == "90.0†" and rows["a"][0] == "**80.0**"
    assert table.endswith(f"\n† {note}: not ranked\n")


def test_seeds_are_those_of_one_subset_and_protocol():
    runs = [make_run("a", 0.8), make_run("a", 0.6), make_run("a", 0.9, "ms3"), make_run("b", 0.5)]
    models = tables.group_by_name(runs)
    assert {name: len(seeds) for name, seeds in models.items()} == {"a (S4)": 2, "a (MS3)": 1, "b": 1}
    assert cells(report.markdown_paper_table(runs))["a"][:1] == ["**70.0**"]
    part = make_run("a", 0.1, bootstrap={"clips": 20})
    assert list(tables.group_by_name([runs[0], part])) == ["a (740 clips)", "a (20 clips)"]
    assert "a (20 clips) (20 of 740 clips)" in report.markdown_table([runs[0], part])


@pytest.mark.parametrize(
    ("changes", "has_differences"),
    [
        ({}, True),
        (dict(subset="ms3"), False),
        (dict(bootstrap={"clips": 20}), False),
        (dict(settings={"front_end": "released"}), False),
        (dict(annotation="semantic"), False),
    ],
)
def test_only_runs_of_one_protocol_share_a_difference_column(tmp_path, changes, has_differences):
    runs = [make_run("a", 0.8, settings={"front_end": "vggish"}), make_run("b", 0.7, **changes)]
    page = report.write_report(tmp_path, runs, mixed_annotations=True).read_text(encoding="utf-8")
    assert ('<th scope="col">difference' in page) == has_differences
    assert ("partial: 20 of 740 clips" in page) == ("bootstrap" in changes)


def test_the_command_writes_the_tables_of_a_paper(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/results.json").write_text('{"subset": "s4", "scores": {"g_miou": 0.5, "miou_positive": 0.75}}')
    main(["--run", f"a={tmp_path}/a", "--out", str(tmp_path), "--latex", "paper", "--markdown", "paper"])
    assert r"a & 75.0 & -- & 50.0 & -- & -- \\" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert "| a | 75.0 | – | 50.0 | – | – |" in (tmp_path / "table.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("intervals", [False, True])
def test_the_latex_compiles_with_six_models_and_no_overfull_box(tmp_path, intervals):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex (Debian: texlive-latex-base and texlive-latex-recommended)")
    names = ["AVSegFormer (PVT-v2-B5), 5 seeds", "TPAVI & co_50%", "COMBO^2", "CAVP~{x}", "KEVA #3", "a \\ b $c$"]
    runs = [make_run(name, 0.5 + number / 20, s) for number, name in enumerate(names) for s in CLIPS]
    runs[4] = make_run(names[2], 0.9, bootstrap={"clips": 20})
    document = (
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n\\begin{table}\n"
        + report.latex_paper_table(runs, intervals)
        + "\\end{table}\n\\end{document}\n"
    )
    (tmp_path / "table.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "table.log").read_text(errors="replace")
    assert "Overfull" not in log and (tmp_path / "table.pdf").is_file()
