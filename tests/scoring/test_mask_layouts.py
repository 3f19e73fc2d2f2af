"""Masks as public codes write them are scored as they are; what may mean two things is refused with the choice."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avs_engine.commands import evaluate_cli as cli
from evaluate_metrics.mask_files import PredictionsError, Reading, Target, predictions_digest, score_predictions
from evaluate_metrics.mask_folders import named_folders

CONDITIONS = ("positive", "silence")
CLIPS = [("yt-_0", "dog"), ("yt-_0b", "dog"), ("c.a_12", "cat")]
SIZE = 32
SHARED = Path(__file__).resolve().parents[3] / "shared"


def truth_of(number: int, k: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[4 + 2 * number : 20, 6 + k : 24] = True
    return mask


@pytest.fixture
def targets(tmp_path):
    found = []
    for number, (clip_id, category) in enumerate(CLIPS):
        paths = [tmp_path / f"truth/{clip_id}_{k}.png" for k in range(5)]
        for k, path in enumerate(paths):
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(truth_of(number, k)).save(path)
        found.append(Target(clip_id, category, "animal", clip_id, tuple(paths), frames=5))
    return found


def grey(mask):
    return Image.fromarray(mask * np.uint8(255))


def colour(mask, inside=(128, 0, 0), outside=(0, 0, 0)):
    return Image.fromarray(np.where(mask[..., None], np.uint8(inside), np.uint8(outside)))


def write(root, name="{clip}/{clip}_{k}.png", image=grey, conditions=CONDITIONS, first=0, clips=None):
    """A perfect model's masks: the truth under positive, nothing elsewhere."""
    for condition in conditions:
        for number, (clip_id, category) in list(enumerate(CLIPS))[slice(clips)]:
            for k in range(5):
                mask = truth_of(number, k) & (condition == "positive")
                path = root / condition / name.format(clip=clip_id, category=category, k=k + first)
                path.parent.mkdir(parents=True, exist_ok=True)
                image(mask).save(path)
    return root


def ious(rows, condition):
    return np.array([row["conditions"][condition]["iou"] for row in rows])


def check_perfect(source, targets, least=1.0, **reading):
    rows, facts = score_predictions(source, CONDITIONS, targets, reading=Reading(**reading))
    assert ious(rows, "positive").mean() >= least - 1e-9 and ious(rows, "silence").max() == 0
    return facts


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("{category}/{clip}/{clip}_{k}.png", "<clip>/<clip>_<k>.png"),
        ("run 7/masks/{clip}/{k}.png", "<clip>/<k>.png"),
        ("{clip}_4000_9000/{k}.png", "<uid>/<k>.png"),
        ("{clip}_0_5000/frames/{k}.png", "<uid>/frames/<k>.png"),
        ("masks/{clip}_0_5000/{clip}_0_5000_{k}_pred.png", "<uid>/<uid>_<k>_pred.png"),
        ("{clip}/{clip}_pred_{k}.png", "<clip>/<clip>_pred_<k>.png"),
        ("{clip}/frame_{k:05d}.PNG", "<clip>/frame_<k>.PNG"),
        ("ms3_data/visual_frames/{clip}/{clip}.mp4_{k}.png", "<clip>/<clip>.mp4_<k>.png"),
        ("{clip}_{k}.png", "<clip>_<k>.png"),
        ("{category}/{clip}_0_5000_{k}_mask.png", "<uid>_<k>_mask.png"),
    ],
)
def test_names(targets, tmp_path, name, first, pattern):
    facts = check_perfect(write(tmp_path / "masks", name, first=first), targets)
    assert facts["layout"] == f"15 masks of 3 clips a condition, {pattern}, <k> from {first} (positive, silence)"
    assert facts["resize"] is None and facts["original_sizes"] == {}


@pytest.mark.parametrize(
    "image",
    [
        grey,
        colour,
        lambda mask: colour(mask, (255, 255, 255)),
        lambda mask: colour(mask).convert("RGBA"),
        lambda mask: colour(mask, (64, 128, 192)).quantize(2),
        lambda mask: grey(mask).convert("LA"),
        lambda mask: grey(mask).convert("P"),
        lambda mask: grey(mask).convert("1"),
    ],
    ids="L RGB white RGBA quantized LA P 1".split(),
)
def test_modes(targets, tmp_path, image):
    check_perfect(write(tmp_path / "masks", image=image), targets)


@pytest.mark.parametrize("resampling", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("size", [(50, 40), (64, 64), (23, 27)])
def test_other_sizes_are_scaled_if_told_to(targets, tmp_path, size, resampling):
    folder = write(tmp_path / "masks", image=lambda mask: colour(mask, (0, 128, 64)).resize(size, resampling))
    with pytest.raises(PredictionsError, match="30 of another size"):
        score_predictions(folder, CONDITIONS, targets)
    facts = check_perfect(folder, targets, 1.0 if size == (64, 64) else 0.9, resize=True)
    assert facts["resize"] == "nearest" and facts["original_sizes"] == {f"{size[0]} x {size[1]}": 30}
    assert f"30 of {size[0]} x {size[1]}" in facts["layout"]


def test_one_folder_for_each_condition(targets, tmp_path):
    write(tmp_path / "masks")
    for condition in CONDITIONS:
        (tmp_path / "masks" / condition).rename(tmp_path / f"test run of {condition}=1")
    source = named_folders([f"{condition}={tmp_path}/test run of {condition}=1" for condition in CONDITIONS])
    check_perfect(source, targets)
    assert predictions_digest(source, CONDITIONS) == predictions_digest(write(tmp_path / "again"), CONDITIONS)
    del source["silence"]
    rows, _ = score_predictions(source, ["positive"], targets)
    assert ious(rows, "positive").min() == 1
    for given in (["positive=a", "b"], ["a", "b"], ["positive=a", "positive=b"], ["positive=a", "noise=a"]):
        with pytest.raises(ValueError, match="CONDITION=DIR with each condition and each folder once"):
            named_folders(given)


def test_conditions_below_folders_of_any_name(targets, tmp_path):
    check_perfect(write(tmp_path / "out/epoch 30/masks").parents[1], targets)


def test_masks_without_a_folder_of_a_condition(targets, tmp_path):
    folder = write(tmp_path / "masks") / "positive"
    rows, _ = score_predictions(folder, ["positive"], targets)
    assert ious(rows, "positive").min() == 1
    (problem,) = problems_of(folder, targets)
    assert problem.startswith(f"ambiguous: {folder} has no folder of a condition; say which sound")
    assert f"--predictions positive={folder}" in problem


def problems_of(folder, targets, **reading):
    with pytest.raises(PredictionsError) as caught:
        score_predictions(folder, CONDITIONS, targets, reading=Reading(**reading))
    return caught.value.problems


def test_masks_of_two_codes(targets, tmp_path):
    folder = write(tmp_path / "masks", "{clip}/{clip}_{k}_pred.png", lambda mask: grey(~mask))
    write(folder, "{clip}/{clip}_{k}.png")
    problems = problems_of(folder, targets)
    assert len(problems) == 2 and all(problem.startswith("ambiguous: ") for problem in problems)
    choice = "say which to score: --mask_pattern '<clip>/<clip>_<k>.png' or '<clip>/<clip>_<k>_pred.png'"
    assert all(choice in problem for problem in problems)
    facts = check_perfect(folder, targets, pattern="<clip>/<clip>_<k>.png")
    assert facts["pattern"] == "<clip>/<clip>_<k>.png"


def test_half_of_the_clips_of_another_code(targets, tmp_path):
    folder = write(tmp_path / "masks", "{clip}/{clip}_{k}.png")
    shutil.rmtree(folder / "positive/yt-_0")
    write(folder, "{clip}_0_5000/{k}.png", conditions=["positive"], clips=1)
    ambiguous, *missing = problems_of(folder, targets)
    assert ambiguous.startswith(
        f"ambiguous: {folder}/positive has 10 masks named <clip>/<clip>_<k>.png and 5 named <uid>"
    )
    assert missing == [f"missing: {folder}/positive/yt-_0/yt-_0_{k}.png" for k in range(5)]


def test_half_of_the_clips_counted_from_one(targets, tmp_path):
    folder = write(tmp_path / "masks")
    shutil.rmtree(folder / "positive/yt-_0")
    write(folder, first=1, conditions=["positive"], clips=1)
    assert problems_of(folder, targets)[0].startswith(
        f"ambiguous: {folder}/positive counts the masks of 2 clips from 0"
    )


def test_a_clip_twice(targets, tmp_path):
    folder = write(write(tmp_path / "masks", "run 1/{clip}/{k}.png"), "run 2/{clip}/{k}.png", clips=1)
    problems = problems_of(folder, targets)
    where = f"{folder}/positive/run 1/yt-_0/0.png and {folder}/positive/run 2/yt-_0/0.png"
    assert problems[0] == f"ambiguous: clip yt-_0 has masks twice, {where}; name one folder: CONDITION=DIR"


def test_colours_of_which_any_may_be_the_object(targets, tmp_path):
    folder = write(tmp_path / "masks", image=lambda mask: colour(mask, (255, 0, 0), (0, 0, 255)))
    assert problems_of(folder, targets)[0].startswith(f"in colour: {folder}/positive/")
    check_perfect(folder, targets, background=(0, 0, 255))


def test_numbers_of_classes(targets, tmp_path):
    """Read as probabilities of at most 23/255 they would be empty masks, without a word."""
    folder = write(tmp_path / "masks", image=lambda mask: Image.fromarray(mask * np.uint8(23)))
    (problem,) = problems_of(folder, targets)
    assert problem.startswith("ambiguous: no value above 23") and "--grey_of_one 255" in problem


def test_many_problems_are_grouped_and_listed_in_a_file(targets, tmp_path):
    folder = write(tmp_path / "masks", image=lambda mask: grey(mask).resize((8, 8)))
    (folder / "positive/c.a_12/c.a_12_3.png").unlink()
    with pytest.raises(PredictionsError) as caught:
        score_predictions(folder, CONDITIONS, targets)
    lines = caught.value.told(tmp_path / "out/problems.txt").splitlines()
    assert lines[0] == f"missing: {folder}/positive/c.a_12/c.a_12_3.png"
    assert lines[1].startswith(f"29 of another size, for example {folder}/positive/yt-_0/yt-_0_0.png has 8 x 8 pixels")
    assert len(lines) == 4 and lines[-1] == f"Every problem is listed in {tmp_path}/out/problems.txt."
    assert (tmp_path / "out/problems.txt").read_text(encoding="utf-8").splitlines() == caught.value.problems


def test_a_folder_that_links_to_itself(targets, tmp_path):
    folder = write(tmp_path / "masks")
    (folder / "positive/yt-_0/back").symlink_to(folder / "positive", target_is_directory=True)
    check_perfect(folder, targets)


@pytest.fixture(scope="session")
def public_layouts(tmp_path_factory):
    if not (SHARED / "cases/mask_layouts.py").is_file():
        pytest.skip("needs ../shared/cases/mask_layouts.py")
    spec = importlib.util.spec_from_file_location("mask_layouts", SHARED / "cases/mask_layouts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path_factory.mktemp("layouts")
    module.main(out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tpavi_s4", []),
        ("tpavi_ms3", []),
        ("avsegformer_512_s4", ["--resize", "nearest"]),
        ("stepping_stones_ms3", []),
        ("gavs_256_ms3", ["--resize", "nearest"]),
        ("ease_ms3", ["--resize", "nearest"]),
        ("combo_s4", []),
        ("tpavi_one_run_s4", ["--predictions", "positive={}"]),
    ],
)
def test_public_codes(public_layouts, tmp_path, monkeypatch, capsys, name, options):
    folder = str(public_layouts / name)
    arguments = ["--predictions", folder, *[option.format(folder) for option in options]]
    arguments += ["--subset", name.rpartition("_")[2], "--data_dir", str(SHARED / "real_mini")]
    monkeypatch.setattr("sys.argv", ["avs-evaluate", *arguments, "--output_dir", str(tmp_path / "out")])
    cli()
    assert capsys.readouterr().out.startswith("predictions: ")
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    scores = results["scores"]
    assert scores["miou_positive"] >= (0.97 if "--resize" in options else 1)
    assert all(value == 0 for key, value in scores.items() if key in ("miou_silence", "miou_noise", "miou_off_screen"))
    assert len(results["settings"]["conditions"]) == (1 if "one_run" in name else 4)
    assert bool(results["settings"]["original_sizes"]) == ("--resize" in options)
