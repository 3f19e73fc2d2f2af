"""What a card takes from results and settings is text in it: no HTML, no link, no further cell."""

import re

import pytest
from huggingface_hub import ModelCard

from avs_engine.model_card import MARKER, evaluation_results, with_results
from evaluate_metrics.avs_robust.avs_robust import METRICS

EVIL = [
    "<script>alert(1)</script>",
    "a --> <img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "a | b\n| c",
]


def card_with(**changes) -> str:
    card = ModelCard(f"---\nlibrary_name: transformers\n---\n\n# x\n\n{MARKER}\n", ignore_metadata_errors=True)
    scores = {"miou_positive": 0.5, "g_miou": 0.6}
    results = {"subset": "s4", "split": "test", "scores": scores, "settings": {"conditions": ["positive"]}, "clips": 3}
    return with_results(card, results | changes).text


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize(
    "where",
    [
        lambda evil: {"subset": evil},
        lambda evil: {"split": evil},
        lambda evil: {"settings": {"conditions": [evil], "seed": evil}},
        lambda evil: {"extra_conditions": {evil: {"miou": 0.1}}},
        lambda evil: {"versions": {evil: evil}},
        lambda evil: {"mute_clips": {evil: [evil]}},
        lambda evil: {"weights": {"source": evil, "sha256": {evil: evil}}},
    ],
)
def test_hostile_text_is_shown(where, evil):
    text = card_with(**where(evil))
    body = text[: text.index(MARKER)]
    assert "<script" not in body and "<img" not in body and not re.search(r"(?<!\\)\]\(", body)
    assert body.count("-->") == body.count("<!--") == 2  # the two markers, which nothing closes before their end
    rows = [line for line in body.splitlines() if line.startswith("| ") and "---" not in line]
    columns = 1 + sum(not metric.variant_of for metric in METRICS)
    assert {line.replace("\\|", "").count("|") for line in rows} == {columns + 1}


def test_the_card_says_masks_draw_mute_clips_and_weights():
    draw = {"clips": 64, "sounds_unused": 8, "sounds_reused": 7, "most_uses": 2, "sound_auc": 0.609}
    weights = {"source": "run", "sha256": {"model.safetensors": "ab12"}}
    text = card_with(annotation="semantic", draw=draw, mute_clips={"positive": ["a_b"]}, weights=weights)
    assert "Masks: AVSBench-semantic's; " in text and "AUC of 0.61" in text and "1 in their own sound (a_b)." in text
    assert "Weights that were scored: model: run (SHA-256 ab12)." in text


def test_scores_on_the_other_masks_are_marked_as_such():
    results = {"subset": "s4", "split": "test", "scores": {"g_miou": 0.6}}
    entries = [evaluation_results(results | {"annotation": whose})[0] for whose in ("object", "semantic")]
    assert entries[0].dataset_args is None and entries[1].dataset_args == {"annotation": "semantic"}
