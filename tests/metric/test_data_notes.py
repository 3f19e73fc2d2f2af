"""Whose masks, which draw, which clips are mute: the sentences, and where they stand."""

import pytest

from evaluate_metrics.data_notes import data_notes

ONE_TO_ONE = {"clips": 740, "sounds_unused": 0, "sounds_reused": 0, "most_uses": 1, "sound_auc": 0.5}
MS3 = {"clips": 64, "sounds_unused": 8, "sounds_reused": 7, "most_uses": 2, "sound_auc": 0.609}


def test_nothing_is_said_of_what_is_not_known():
    assert data_notes({"subset": "s4", "scores": {}}) == []


@pytest.mark.parametrize("whose, other", [("object", "semantic"), ("semantic", "object")])
def test_masks(whose, other):
    (note,) = data_notes({"subset": "s4", "annotation": whose})
    assert note.startswith(f"Masks: AVSBench-{whose}'s; ") and f"AVSBench-{other}'s masks" in note


def test_draw():
    (whole,) = data_notes({"draw": ONE_TO_ONE})
    assert "each of the split's 740 sounds is heard once" in whole and "AUC 0.50" in whole
    (uneven,) = data_notes({"draw": MS3})
    assert "8 of the 64 sounds of the split are never heard off screen and 7 more than once (at most 2" in uneven
    assert "AUC of 0.61 (0.50 is guessing)" in uneven


def test_mute_clips():
    (none,) = data_notes({"mute_clips": {"positive": [], "off_screen": []}})
    assert none.startswith("Mute clips: none")
    (some,) = data_notes({"mute_clips": {"positive": ["a"], "off_screen": list("bcdefgh")}})
    assert "1 in their own sound (a), 7 in their off-screen sound (b, c, d, e, f and 2 more)." in some
