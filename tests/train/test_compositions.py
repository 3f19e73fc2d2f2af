"""Two clips in one picture, and the items of an epoch that show them."""

import json
from collections import Counter

import numpy as np
import pytest
import soundfile
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from avs_engine.compositions import COMPOSITIONS, inset, resize, side_by_side
from avs_engine.epochs import TrainingClips
from avs_engine.training_arguments import RECIPES
from avsbench_robust_dataset import SUBSETS
from avsbench_robust_dataset.draw import pairing_rules
from avsbench_robust_dataset.subsets import Clip
from avsbench_robust_dataset.unseen import folder_digest
from train_accelerate import main


def images(value, height, width, frames=3, masks=2):
    """All of one colour, the object everywhere."""
    return np.full((frames, height, width, 3), value, np.uint8), np.ones((masks, height, width), np.uint8)


def test_resizing_averages_what_a_pixel_covers():
    frames = np.array([[0, 30, 90]], np.uint8)[None, ..., None].repeat(3, -1)  # one row of three pixels
    masks = np.array([[[1, 1, 0]]], np.uint8)
    smaller, cover = resize((frames, masks), 1, 2)
    # a pixel covers 1.5: (0 + 30 / 2) / 1.5 = 10 and (30 / 2 + 90) / 1.5 = 70; the object covers 1 and 1/3
    assert smaller[0, 0, :, 0].tolist() == [10, 70] and cover[0, 0].tolist() == [1, 0]
    larger, cover = resize((frames, masks), 2, 3)
    assert larger[0, :, :, 1].tolist() == [[0, 30, 90]] * 2 and cover[0].tolist() == [[1, 1, 0]] * 2
    assert resize((frames, masks), 1, 3)[0] is frames


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("second", [(5, 7), (8, 3)])
def test_each_pixel_is_of_one_clip_and_so_is_its_mask(composition, second):
    first, other = images(10, 5, 7), images(200, *second)
    shares = []
    for seed in range(30):
        frames, masks, other_masks = composition(first, other, np.random.default_rng(seed))
        assert frames.shape == (3, 5, 7, 3) and masks.shape == other_masks.shape == (2, 5, 7)
        assert frames.dtype == masks.dtype == np.uint8
        np.testing.assert_array_equal(masks == 1, frames[:2, ..., 0] == 10)
        np.testing.assert_array_equal(other_masks == 1, frames[:2, ..., 0] == 200)
        assert masks.any() and other_masks.any() and ((masks + other_masks) == 1).all()
        again = composition(first, other, np.random.default_rng(seed))
        np.testing.assert_array_equal(again[0], frames)
        shares.append(masks[0].mean())
    assert min(shares) < 0.5 < max(shares), "one clip always has the larger part"


def test_halves_lie_beside_and_above_each_other():
    layouts = set()
    for seed in range(40):
        _, masks, _ = side_by_side(images(10, 4, 6), images(200, 4, 6), np.random.default_rng(seed))
        layouts.add(masks[0].tobytes())
    halves = [np.zeros((4, 6), np.uint8) for _ in range(4)]
    halves[0][:, :3] = halves[1][:, 3:] = halves[2][:2] = halves[3][2:] = 1
    assert layouts == {half.tobytes() for half in halves}


def test_an_inset_is_a_rectangle_of_half_to_three_quarters():
    for seed in range(40):
        _, masks, other_masks = inset(images(10, 20, 40), images(200, 20, 40), np.random.default_rng(seed))
        inner = next(mask[0] for mask in (masks, other_masks) if not (mask[0].any(0).all() and mask[0].any(1).all()))
        rows, columns = np.flatnonzero(inner.any(1)), np.flatnonzero(inner.any(0))
        assert inner.sum() == len(rows) * len(columns)
        assert 10 <= len(rows) <= 15 and 20 <= len(columns) <= 30


def test_objects_are_squeezed_with_the_picture():
    frames, masks = images(10, 4, 4, masks=1)
    masks[0, :, 2:] = 0  # the left half
    for seed in range(10):
        _, found, _ = side_by_side((frames, masks), images(200, 4, 4, masks=1), np.random.default_rng(seed))
        assert found.sum() == 4  # half of half of the picture


CATEGORIES = ["dog_barking", "cat_meowing", "playing_piano", "helicopter", "male_speech", "dog_barking"]


def clip(name, category, subset="s4"):
    labels = tuple(filter(None, category.split("_"))) if subset == "ms3" else (category,)
    return Clip(name, "", category, labels, SUBSETS[subset].source_video(name))


def test_pairing_rules():
    may_hear, may_meet = pairing_rules([clip(f"c{k}", name) for k, name in enumerate(CATEGORIES)], SUBSETS["s4"])
    # animals hear neither animals nor humans, their least suitable contrast; music and humans none of each other
    assert may_hear[0].tolist() == [False, False, True, True, False, False]
    assert may_hear[2].tolist() == [True, True, False, True, False, True]
    assert may_meet[0].tolist() == [False, True, True, True, True, False]
    names = ["dog_cat", "cat", "piano", "", "piano_man"]
    clips = [clip(f"v{k}_1", name, "ms3") for k, name in enumerate(names)] + [clip("v2_2", "dog", "ms3")]
    _, may_meet = pairing_rules(clips, SUBSETS["ms3"])
    assert may_meet[0].tolist() == [False, False, True, False, True, False]
    assert not may_meet[3].any() and not may_meet[2, 5]  # objects unknown; of one source video


def items(categories=CATEGORIES, subset="s4", masks=1, **options) -> TrainingClips:
    """Clips of five 6x8 frames of one colour each, the object everywhere; sounds tell condition and clip."""
    n = len(categories)
    features = Features(
        {
            "clip_id": Value("string"),
            "category": Value("string"),
            "frames": List(Image()),
            "masks": List(Image()),
        }
    )
    rows = [
        {
            "clip_id": f"c{k}",
            "category": category,
            "frames": [PILImage.fromarray(np.full((6, 8, 3), 10 * k + 10, np.uint8))] * 5,
            "masks": [PILImage.fromarray(np.full((6, 8), 255, np.uint8))] * masks,
        }
        for k, category in enumerate(categories)
    ]
    names = ("positive", "silence", "timbre", "off_screen")
    partners = [(k + 2) % n for k in range(n)]
    keys = {name: [f"{name} {k}" for k in range(n)] for name in names}
    keys["off_screen"] = [f"positive {k}" for k in partners]
    settings = dict(negative_ratio=0.5, negative_conditions={"off_screen": 1.0, "timbre": 1.0}, seed=0)
    settings |= dict(subset=SUBSETS[subset], off_screen_sources=[f"c{k}" for k in partners]) | options
    return TrainingClips(Dataset.from_list(rows, features=features), keys, **settings)


def over_epochs(clips, epochs=12):
    for epoch in range(epochs):
        clips.set_epoch(epoch)
        for index, (condition, clip) in enumerate(clips.plan):
            yield condition, clip, clips[index]


def test_composed_items_show_two_categories_and_the_mask_of_what_sounds():
    seen = Counter()
    for condition, clip, item in over_epochs(items(compose_share=0.5, redraw_sounds=True)):
        visible = sorted({int(colour) // 10 - 1 for colour in np.unique(item["frames"])})
        seen[len(visible)] += 1
        assert clip in visible and len({CATEGORIES[k] for k in visible}) == len(visible)
        assert item["clip"].startswith(f"c{clip}") and item["masks"].shape[0] == 1
        if condition == "positive":
            assert item["sound"] == (f"positive {clip}", [0, 1, 2, 3, 4])
            np.testing.assert_array_equal(item["masks"][0] == 1, item["frames"][0, ..., 0] == 10 * clip + 10)
        else:
            assert not item["masks"].any() and item["audio_label"] == 0
    assert seen.keys() == {1, 2} and 0.4 < seen[2] / seen.total() < 0.6


def test_off_screen_sounds_are_of_neither_clip_and_drawn_anew():
    may_hear, _ = pairing_rules([clip(f"c{k}", name) for k, name in enumerate(CATEGORIES)], SUBSETS["s4"])
    heard = {}
    for condition, own, item in over_epochs(items(compose_share=0.5, redraw_sounds=True), 40):
        visible = {int(colour) // 10 - 1 for colour in np.unique(item["frames"])}
        name, sound = item["sound"][0].split()
        sound = int(sound)
        if condition == "off_screen":
            allowed = may_hear[sorted(visible)].all(0)
            assert name == "positive" and may_hear[own, sound] and (allowed[sound] or not allowed.any())
            heard.setdefault(own, set()).add(sound)
        elif condition == "timbre":
            assert name == "timbre" and 0 <= sound < 6
    assert {3, 2} <= heard[0], "the sounds of a clip do not change"


def test_off_screen_sounds_of_two_clips_follow_the_rule_without_new_draws_too():
    may_hear, _ = pairing_rules([clip(f"c{k}", name) for k, name in enumerate(CATEGORIES)], SUBSETS["s4"])
    pairs = 0
    for condition, own, item in over_epochs(items(compose_share=1.0), 20):
        visible = {int(colour) // 10 - 1 for colour in np.unique(item["frames"])}
        if condition == "off_screen" and len(visible) == 2:
            allowed = may_hear[sorted(visible)].all(0)
            sound = int(item["sound"][0].split()[1])
            assert may_hear[own, sound] and (allowed[sound] or not allowed.any())
            pairs += 1
    assert pairs > 20


def test_where_no_sound_suits_both_clips_it_suits_the_first():
    for condition, own, item in over_epochs(items(["dog", "guitar"], "ms3", compose_share=1.0), 8):
        assert len(np.unique(item["frames"])) == 2
        if condition == "off_screen":
            assert item["sound"][0] == f"positive {1 - own}"


def test_without_composition_and_new_draws_items_are_as_before():
    for condition, clip, item in over_epochs(items()):
        expected = {"off_screen": f"positive {(clip + 2) % 6}"}.get(condition, f"{condition} {clip}")
        assert item["sound"][0] == expected and (item["frames"] == 10 * clip + 10).all()


def test_clips_whose_objects_are_unknown_stay_alone():
    for _, clip, item in over_epochs(items(["dog_cat", "", "cat"], "ms3", masks=5, compose_share=1.0), 4):
        assert (item["frames"] == 10 * clip + 10).all()


def test_composed_items_are_functions_of_seed_epoch_and_index():
    options = dict(compose_share=1.0, redraw_sounds=True, augment=True, frames_per_clip=2)
    first, second = items(**options), items(**options)
    for clips in (first, second):
        clips.set_epoch(3)
    forward = [first[index] for index in range(len(first))]
    np.random.seed(1)
    for index in reversed(range(len(second))):
        ours, theirs = forward[index], second[index]
        assert ours["clip"] == theirs["clip"] and ours["sound"] == theirs["sound"]
        assert (ours["frames"] == theirs["frames"]).all() and (ours["masks"] == theirs["masks"]).all()
    first.set_epoch(4)
    assert [item["clip"] for item in forward] != [first[index]["clip"] for index in range(len(first))]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["listen", "paper"])
def test_each_recipe_trains_and_goes_on_bit_for_bit(recipe, demo_tree, tiny_model, tmp_path):
    arguments = ["--cpu", "--subset", "demo", "--data_dir", demo_tree, "--model", tiny_model, "--recipe", recipe]
    arguments += [
        "--batch_size",
        "4",
        "--frames_per_clip",
        "1",
        "--checkpointing_steps",
        "1",
        "--validation_every",
        "0",
    ]
    main([*arguments, "--lr_scheduler", "constant", "--max_steps", "3", "--output_dir", str(tmp_path / "whole")])
    cut = tmp_path / "cut"
    main([*arguments, "--lr_scheduler", "constant", "--max_steps", "1", "--output_dir", str(cut)])
    main([*arguments, "--max_steps", "3", "--output_dir", str(cut), "--resume_from_checkpoint", "latest"])
    weights = [(folder / "last/model.safetensors").read_bytes() for folder in (tmp_path / "whole", cut)]
    assert weights[0] == weights[1]
    state = json.loads((cut / "trainer_state.json").read_text(encoding="utf-8"))["settings"]
    assert state.get("compose_share", 0) == RECIPES[recipe].compose_share


@pytest.mark.slow
def test_recorded_negatives_are_part_of_the_run(demo_tree, tiny_model, tmp_path):
    wavs = tmp_path / "wavs"
    wavs.mkdir()
    soundfile.write(wavs / "hum.wav", np.full(80000, 0.25), 16000)
    arguments = ["--cpu", "--subset", "demo", "--data_dir", demo_tree, "--model", tiny_model, "--recipe", "paper"]
    arguments += ["--batch_size", "4", "--negative_conditions", "recorded", "--negative_dir", str(wavs)]
    arguments += ["--output_dir", str(tmp_path / "run"), "--validation_every", "0"]
    main([*arguments, "--max_steps", "1"])
    state = json.loads((tmp_path / "run/trainer_state.json").read_text(encoding="utf-8"))["settings"]
    assert state["negative_dir_sha256"] == folder_digest(wavs)
    soundfile.write(wavs / "hum.wav", np.full(80000, 0.5), 16000)
    with pytest.raises(ValueError, match="negative_dir_sha256"):
        main([*arguments, "--max_steps", "2", "--resume_from_checkpoint", "latest"])
