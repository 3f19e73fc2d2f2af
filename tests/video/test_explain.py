"""What is said about a result: what the model was trained on, and whether it listens."""

import json
import re

import pytest

from modeling_avsegformer.video.explain import Heard, trained_on, verdict


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "trainer_state.json",
            json.dumps({"settings": {"subset": "s4"}}),
            "s4, real videos of 23 kinds .*dog barking",
        ),
        (
            "trainer_state.json",
            json.dumps({"settings": {"subset": "demo"}}),
            "demo, drawn shapes .*never a real video",
        ),
        ("trainer_state.json", json.dumps({"settings": {"subset": "mine"}}), "Trained on AVSBench-Robust mine\\."),
        ("conversion.json", json.dumps({"file": "S4_pvt.pth"}), "original checkpoint S4_pvt.pth; its file does not"),
        (
            "README.md",
            "Trained on the train split of AVSBench-Robust `ms3`, 9 steps.",
            "ms3, real videos with several",
        ),
        (
            "README.md",
            "Converted from the original checkpoint S4.pth (SHA-256 …)",
            "original checkpoint S4.pth; its card",
        ),
        ("README.md", "# A card of someone else", "do not say what it was trained on"),
        ("config.json", "{}", "do not say what it was trained on"),
    ],
)
def test_what_a_model_was_trained_on_is_read_from_its_files(tmp_path, name, content, said):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert re.search(said, trained_on(str(tmp_path)))


def test_a_card_that_we_write_says_it(tmp_path, tiny_model):
    """The sentence is found in the card of `avs_engine.model_card`, which is all that the Hub has."""
    from avs_engine.model_card import model_card
    from modeling_avsegformer import AVSegFormerForSegmentation

    training = {"settings": {"subset": "s4"}, "step": 7, "versions": {}, "data": "0"}
    model = AVSegFormerForSegmentation.from_pretrained(tiny_model)
    model_card(model, "user/model", training).save(tmp_path / "README.md")
    assert trained_on(str(tmp_path)).startswith("Trained on AVSBench-Robust s4, real videos")


@pytest.mark.parametrize(
    ("areas", "said"),
    [
        ((0.2, 0, 0, 0, 0), "It listens: what it marks with the clip's own sound vanishes"),
        ((0.2, 0, 0, 0.02, 0), "It listens: .* little is left with off_screen"),
        ((0.2, 0.19, 0.2, 0.21, 0.2), "It does not listen"),
        ((0.2, 0, 0, 0.15, 0.01), "It listens in part: with off_screen it still marks much"),
        ((0.001, 0, 0.001, 0, 0), "It marks nothing, whatever it hears"),  # it has never seen a dog
        ((0, 0, 0.1, 0.1, 0), "something with noise and off_screen: it is mistaken"),
    ],
)
def test_listening_and_not_knowing_are_told_apart(areas, said):
    names = ("positive", "silence", "noise", "off_screen", "unseen")
    heard = {name: Heard(name, [area], [0.5]) for name, area in zip(names, areas, strict=True)}
    assert re.search(said, verdict(heard))
    # A part of the own sound is not another sound: to mark the object in it is right.
    assert verdict(heard | {"muted": Heard("muted", [0.6 * areas[0]], [0.5])}) == verdict(heard)


def test_numbers_for_people():
    assert str(Heard("a", [0.1, 0.2], [0.5, 1.0])) == "15.0 % of the picture marked, similarity +0.75"
    assert str(Heard("a", [0.1], [float("nan")])) == "10.0 % of the picture marked"
