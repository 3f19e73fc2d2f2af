"""`avs-report entry`, and the entry that publishing an evaluation writes, read by huggingface_hub's own reader."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from avs_engine.hub import push_checkpoint
from evaluate_metrics.__main__ import main
from evaluate_metrics.entry import STANDING_HEAD, with_model_index

CONDITIONS = ["positive", "silence", "noise", "off_screen"]


@pytest.fixture
def whole() -> dict:
    """What results.json says of the whole test split of S4."""
    scores = {f"{key}_{name}": 0.5 for name in CONDITIONS for key in ("miou", "f_score", "fpr")}
    scores |= {"g_miou": 0.75, "g_f_score": 0.625, "g_fpr": 0.0625, "audio_blind_floor": 0.5}
    settings = {"seed": 42, "max_clips": None, "conditions": CONDITIONS}
    about = {"model": "runs/a", "subset": "s4", "split": "test", "annotation": "object", "clips": 740}
    return about | {"settings": settings, "scores": scores}


@pytest.fixture
def entry(tmp_path, capsys):
    """entry(results, *options): (the Hub's entries, the card, what was printed)."""

    def entry(results: dict, *options: str):
        (tmp_path / "eval").mkdir(exist_ok=True)
        (tmp_path / "eval/results.json").write_text(json.dumps(results))
        main(["entry", str(tmp_path / "eval/results.json"), "--out", str(tmp_path / "repo"), *options])
        (file,) = (tmp_path / "repo/.eval_results").iterdir()
        entries = parse_eval_result_entries(yaml.safe_load(file.read_text(encoding="utf-8")))
        return file.name, entries, ModelCard.load(tmp_path / "repo/README.md"), capsys.readouterr().out

    return entry


def test_the_entry_of_a_whole_split(entry, whole):
    options = ["--dataset_id", "me/avsbench_robust", "--source_url", "https://example.org/a", "--date", "2026-11-27"]
    name, entries, card, out = entry(whole, *options)
    assert name == "avsbench_robust_s4.yaml"
    assert {(e.dataset_id, e.source_url, e.date) for e in entries} == {
        ("me/avsbench_robust", "https://example.org/a", "2026-11-27")
    }
    assert {e.task_id: e.value for e in entries} == {
        "s4_g_miou": 0.75,
        "s4_g_f_score": 0.625,
        "s4_g_fpr": 0.0625,
        "s4_miou_positive": 0.5,
        "s4_f_score_positive": 0.5,
    }
    assert "740 clips, seed 42, masks of AVSBench-object" in entries[0].notes and "PARTIAL" not in entries[0].notes
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == whole["scores"] and card.data.model_name == "a"
    assert out.splitlines()[-1] == (
        "| a | S4, object | 50.00 | 50.00 | 50.00 | 75.00 | 62.50 | 6.25 | https://example.org/a |"
    )


def test_a_card_keeps_what_it_says(entry, whole, tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/README.md").write_text("---\nlicense: mit\n---\n\n# Ours\n\nThanks to all.\n")
    entry(whole)
    whole["scores"]["g_miou"] = 0.875  # the same data again: in place of the first
    _, entries, card, _ = entry(whole)
    assert card.data.license == "mit" and "Thanks to all." in card.text and card.data.model_name == "Ours"
    assert [r.metric_value for r in card.data.eval_results if r.metric_type == "g_miou"] == [0.875]
    assert entries[0].value == 0.875


def test_masks_of_the_other_annotation_are_another_task(entry, whole):
    name, entries, card, out = entry(whole | {"annotation": "semantic"})
    assert name == "avsbench_robust_s4_semantic.yaml" and entries[0].task_id == "s4_semantic_g_miou"
    assert card.data.eval_results[0].dataset_args["annotation"] == "semantic" and "| S4, semantic |" in out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.update(clips=20), "20 of 740 clips"),
        (lambda r: r.pop("clips"), "an unknown number of 740 clips"),
        (lambda r: r["scores"].pop("miou_noise"), "without noise"),
        (lambda r: r["settings"].update(front_end="released"), "with the released front end"),
        (lambda r: r.update(subset="demo"), "the test split of demo is none of the benchmark's"),
    ],
)
def test_a_partial_run_is_refused_or_marked(entry, whole, change, reason, tmp_path, capsys):
    change(whole)
    with pytest.raises(SystemExit) as error:
        entry(whole)
    said = capsys.readouterr().err
    assert error.value.code == 1 and reason in said and "--partial" in said and "results.json" in said
    assert not (tmp_path / "repo").exists()
    name, entries, _, out = entry(whole, "--partial")
    assert name.endswith("_partial.yaml") and all(f"PARTIAL: {reason}" in e.notes for e in entries)
    assert f"(partial: {reason}" in out


def test_fewer_clips_do_not_replace_a_whole_evaluation_on_a_card(entry, whole):
    fewer = whole | {"clips": 20, "scores": whole["scores"] | {"g_miou": 0.25}}

    def on_card(card):
        return [r.metric_value for r in card.data.eval_results if r.metric_type == "g_miou"]

    first = with_model_index(with_model_index(ModelCard("# a"), fewer), fewer)
    assert on_card(first) == [0.25] and first.data.eval_results[0].dataset_args["clips"] == 20
    second = with_model_index(first, whole)
    assert on_card(second) == on_card(with_model_index(second, fewer)) == [0.75]


def test_wrong_files_are_named(entry, whole, tmp_path, capsys):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/README.md").write_text("---\na: [\n---\n")
    with pytest.raises(SystemExit):
        entry(whole)
    assert f"Expected a model card at {tmp_path / 'repo/README.md'}" in capsys.readouterr().err
    assert not (tmp_path / "repo/.eval_results").exists()
    with pytest.raises(SystemExit):
        main(["entry", str(tmp_path / "nowhere")])
    assert "not found" in capsys.readouterr().err


def test_publishing_an_evaluation_writes_its_entry(client, model, processor, whole, caplog):
    push_checkpoint(model, "x", processor=processor, results=whole)
    path = ".eval_results/avsbench_robust_s4.yaml"
    entries = parse_eval_result_entries(yaml.safe_load(client.read("me/x", path)))
    assert {e.task_id: e.value for e in entries}["s4_g_miou"] == 0.75
    push_checkpoint(model, "y", processor=processor, results=whole | {"clips": 20})
    (commit,) = client.repositories()["models/me/y"]["commits"][1:]
    assert not [name for name in commit[2] if ".eval_results" in name] and "README.md" in commit[2]


def test_the_standing_gives_sources_and_the_floor_of_every_score():
    text = (Path(__file__).parents[2] / "docs/standing.md").read_text(encoding="utf-8")
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert head == STANDING_HEAD and len(rows) >= 10
    for row in rows:
        _, subset, miou, f_score, floor, *general, source = [cell.strip() for cell in row.strip("|").split("|")]
        assert "](https://" in source and subset.startswith(("S4, ", "MS3, "))
        assert float(floor) == pytest.approx(2 * float(miou) * (1 - float(miou) / 100), abs=0.00501), row
        assert all(0 < float(value) < 100 for value in (f_score, *general) if value)
