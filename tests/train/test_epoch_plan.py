"""What an epoch consists of, and what is random about its items."""

from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from avs_engine.epochs import TrainingClips, collate, epoch_plan
from avs_engine.training_arguments import RECIPES, negative_conditions, parse_args
from modeling_avsegformer import AVSegFormerImageProcessor, AVSegFormerProcessor

BOTH = {"silence": 1.0, "off_screen": 1.0}


@pytest.mark.parametrize(
    ("clips", "ratio", "negatives"),
    # n r / (1 - r): 20 * 0.1 / 0.9 = 2.2; 9 * 0.1 / 0.9 = 1; as many as positives at one half; 3 * 0.8 / 0.2 = 12;
    # 3 * 0.1 / 0.9 = 0.3, but one at least
    [(20, 0.0, 0), (20, 0.1, 2), (9, 0.1, 1), (7, 0.5, 7), (3, 0.8, 12), (3, 0.1, 1)],
)
def test_every_clip_once_and_the_share_of_negatives(clips, ratio, negatives):
    plan = epoch_plan(clips, ratio, BOTH, seed=0, epoch=0)
    assert sorted(clip for condition, clip in plan if condition == "positive") == list(range(clips))
    drawn = [clip for condition, clip in plan if condition != "positive"]
    assert len(drawn) == negatives
    counts = Counter(drawn).values()
    assert not counts or max(counts) <= -(-negatives // clips), "a clip came again before all others had come"


def test_epochs_differ_and_repeat():
    plans = [epoch_plan(50, 0.3, BOTH, seed=5, epoch=epoch) for epoch in (0, 1, 0)]
    assert plans[0] == plans[2] != plans[1]
    assert plans[0] != epoch_plan(50, 0.3, BOTH, seed=6, epoch=0)
    drawn = [{item for item in plan if item[0] != "positive"} for plan in plans]
    assert drawn[0] != drawn[1], "the negative clips are not drawn anew"
    assert plans[0] != sorted(plans[0])


def test_weights_of_the_conditions():
    # 30 negatives at 1 : 4 are exactly 6 and 24; 31 are 6.2 and 24.8, rounded either way, right on average.
    exact = Counter(condition for condition, _ in epoch_plan(30, 0.5, {"silence": 1, "off_screen": 4}, 0, 0))
    assert exact == {"positive": 30, "silence": 6, "off_screen": 24}
    silent = [
        sum(condition == "silence" for condition, _ in epoch_plan(31, 0.5, {"silence": 1, "off_screen": 4}, 1, epoch))
        for epoch in range(400)
    ]
    assert set(silent) == {6, 7}
    assert np.mean(silent) == pytest.approx(6.2, abs=0.08)  # four standard errors


def clips(masks: int, cache_bytes: float = 0, **options) -> TrainingClips:
    """Three clips of five 4x3 frames whose pixels tell clip, frame and column, with `masks` masks each."""

    def frame(clip, t):
        array = np.zeros((3, 4, 3), np.uint8)
        array[..., 0], array[..., 1], array[..., 2] = clip, t, np.arange(4)
        return PILImage.fromarray(array)

    def mask(clip, t):
        array = np.zeros((3, 4), np.uint8)
        array[clip, 0] = 255
        array[0, 3] = t
        return PILImage.fromarray(array)

    features = Features({"clip_id": Value("string"), "frames": List(Image()), "masks": List(Image())})
    rows = [
        {"clip_id": f"c{i}", "frames": [frame(i, t) for t in range(5)], "masks": [mask(i, t) for t in range(masks)]}
        for i in range(3)
    ]
    keys = {name: [f"{name} {i}" for i in range(3)] for name in ("positive", "silence")}
    settings = {"negative_ratio": 0.5, "negative_conditions": {"silence": 1.0}, "seed": 0} | options
    return TrainingClips(Dataset.from_list(rows, features=features), keys, cache_bytes=cache_bytes, **settings)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_items(cache_bytes):
    items = clips(5, cache_bytes)
    assert (items.decoded is None) == (cache_bytes == 0)
    assert len(items) == 6
    for index, (condition, clip) in enumerate(items.plan):
        item = items[index]
        assert item["clip"] == f"c{clip} ({condition})"
        assert item["audio_label"] == (condition == "positive")
        assert (item["frames"][..., 0] == clip).all()
        assert item["frames"][:, 0, 0, 1].tolist() == [0, 1, 2, 3, 4]
        assert item["sound"] == (f"{condition} {clip}", [0, 1, 2, 3, 4])
        if condition == "positive":
            assert item["masks"].sum((1, 2)).tolist() == ([1, 2, 2, 2, 2] if clip else [1, 2, 2, 2, 2])
            assert (item["masks"][:, clip, 0] == 1).all()
        else:
            assert item["masks"].shape == (5, 3, 4) and not item["masks"].any()


@pytest.mark.parametrize(
    ("masks", "frames", "labelled"),
    [(5, 2, 2), (1, 2, 1), (1, 1, 1), (2, 4, 2), (5, 5, 5), (1, 5, 1), (1, None, 1)],
)
def test_labelled_frames_come_first(masks, frames, labelled):
    items = clips(masks, frames_per_clip=frames)
    seen = set()
    for epoch in range(12):
        items.set_epoch(epoch)
        for index in range(len(items)):
            item = items[index]
            chosen = item["frames"][:, 0, 0, 1].tolist()
            assert len(chosen) == len(set(chosen)) == (frames or 5)
            assert len(item["masks"]) == labelled
            assert all(t < masks for t in chosen[:labelled]), "a label belongs to a frame without a mask"
            assert item["sound"][1] == chosen, "sound and image of different seconds"
            if item["audio_label"]:
                # the mask of second t > 0 has a pixel that the first one lacks
                assert item["masks"][:, 0, 3].tolist() == [int(t > 0) for t in chosen[:labelled]]
            seen.update(chosen)
    expected = set(range(5)) if frames != 1 else set(range(masks))
    assert seen == expected, "some frames are never drawn"


def test_a_batch_has_labels_of_the_frames_that_are_labelled_in_all_items():
    processor = AVSegFormerProcessor(image_processor=AVSegFormerImageProcessor(size={"height": 32, "width": 32}))
    batch = collate(processor, [clips(masks)[0] for masks in (2, 1, 5)])
    assert batch["labels"].shape == (3, 1, 32, 32) and batch["pixel_values"].shape[:2] == (3, 5)


def test_flips_turn_image_and_mask_together():
    items = clips(5, augment=True)
    flipped = 0
    for epoch in range(20):
        items.set_epoch(epoch)
        for index in range(len(items)):
            item = items[index]
            columns = item["frames"][0, 0, :, 2].tolist()
            assert columns in ([0, 1, 2, 3], [3, 2, 1, 0])
            if item["audio_label"]:
                clip = int(item["frames"][0, 0, 0, 0])
                assert item["masks"][0, clip, columns.index(0)] == 1
            flipped += columns[0] == 3
    assert 40 < flipped < 80  # of 120


def test_an_item_is_a_function_of_seed_epoch_and_index():
    first, second = (clips(5, frames_per_clip=2, augment=True) for _ in range(2))
    for items in (first, second):
        items.set_epoch(3)
    order = list(range(len(first)))
    forward = [first[index] for index in order]
    np.random.seed(1)
    torch.manual_seed(1)
    backward = [second[index] for index in reversed(order)][::-1]
    for ours, theirs in zip(forward, backward, strict=True):
        assert ours["clip"] == theirs["clip"]
        assert (ours["frames"] == theirs["frames"]).all() and (ours["masks"] == theirs["masks"]).all()


def test_negative_conditions():
    # in the data set's order, whatever the order on the command line: the plan depends on it
    assert list(negative_conditions(["off_screen=4", "silence"]).items()) == [("silence", 1.0), ("off_screen", 4.0)]


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        (["slience"], "one of silence, noise, off_screen, timbre, recorded, got 'slience'"),
        (["positive=1"], "got 'positive=1'"),
        (["silence=0"], "positive number as the weight of silence, got '0'"),
        (["silence=much"], "got 'much'"),
        (["noise=nan"], "got 'nan'"),
        (["noise", "noise=2"], "'noise' twice"),
    ],
)
def test_wrong_negative_conditions(texts, match, capsys):
    with pytest.raises(ValueError, match=match):
        negative_conditions(texts)
    with pytest.raises(SystemExit):
        parse_args(["--subset", "demo", "--output_dir", "x", "--negative_conditions", *texts])
    assert "--negative_conditions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--subset", "s5"], "invalid choice: 's5'"),
        (["--negative_ratio", "1"], r"expected a number in \[0, 1\), got 1.0"),
        (["--negative_ratio", "-0.1"], "got -0.1"),
        (["--compose_share", "1.5"], r"--compose_share: expected a number in \[0, 1\], got 1.5"),
        (["--negative_conditions", "recorded"], "--negative_dir: goes together with recorded"),
        (["--negative_dir", "wavs"], "--negative_dir: goes together with recorded"),
        (["--negative_conditions", "unseen"], "got 'unseen'"),
        (["--negative_ratio", "nan"], "got nan"),
        (["--batch_size", "0"], "--batch_size: expected at least 1, got 0"),
        (["--max_steps", "0"], "--max_steps: expected at least 1"),
        (["--learning_rate", "nan"], "--learning_rate: expected at least 0, got nan"),
        (["--checkpointing_steps", "often"], "expected a number or 'epoch', got 'often'"),
        (["--checkpointing_steps", "0"], "got '0'"),
        (["--loss_type", "iou"], "invalid choice: 'iou'"),
        (["--model", "folder", "--backbone", "resnet50"], "brings its own backbone"),
        (["--resume_from_checkpoint", "latest", "--overwrite_output_dir"], "give one of them"),
    ],
)
def test_wrong_arguments(arguments, match, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--output_dir", "x", "--subset", "s4", *arguments])
    import re

    assert re.search(match, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("subset", "epochs", "frozen", "rate", "size"), [("s4", 30, 5, 2e-5, 224), ("ms3", 60, 10, 2e-5, 224)]
)
def test_presets_follow_the_subset(subset, epochs, frozen, rate, size):
    args = parse_args(["--subset", subset, "--output_dir", "x"])
    assert (args.epochs, args.freeze_backbone_epochs, args.learning_rate, args.image_size) == (
        epochs,
        frozen,
        rate,
        size,
    )
    assert (args.weight_decay, args.lr_scheduler, args.backbone) == (0.01, "constant", "pvt_v2_b5")
    paper = parse_args(["--subset", subset, "--output_dir", "x", "--recipe", "paper"])
    assert (paper.negative_ratio, paper.negative_conditions) == (0.1, BOTH)  # noise is held out
    assert (paper.compose_share, paper.redraw_sounds) == (0, False)
    assert {"silence", "off_screen", "timbre"} <= args.negative_conditions.keys()
    assert not {"noise", "unseen"} & args.negative_conditions.keys() and 0 < args.compose_share < 1
    given = [
        "--negative_ratio",
        "0.25",
        "--compose_share",
        "0",
        "--no-redraw_sounds",
        "--negative_conditions",
        "noise",
    ]
    for recipe in RECIPES:  # which what is given wins over
        args = parse_args(["--subset", subset, "--output_dir", "x", "--recipe", recipe, *given])
        assert (args.negative_ratio, args.compose_share, args.redraw_sounds) == (0.25, 0, False)
        assert args.negative_conditions == {"noise": 1}
    assert parse_args(["--subset", subset, "--output_dir", "x", "--epochs", "3"]).epochs == 3
