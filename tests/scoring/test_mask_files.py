"""Folders of PNG masks: what is in them is what is scored, and what is wrong with them is told at once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluate_metrics import mask_files
from evaluate_metrics.clip_rows import clip_row
from evaluate_metrics.mask_files import PredictionsError, Reading, Target, read_prediction

CONDITIONS = ("positive", "noise")
CLIPS = [("dog_1", "dog"), ("cat.2", "cat"), ("-og_3", "dog")]
SIZE = (5, 4)  # (height, width)


def score_predictions(*arguments, **options):
    rows, _ = mask_files.score_predictions(*arguments, **options)
    return rows


def save(path: Path, image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)


def values_of(condition: str, clip_id: str, k: int) -> np.ndarray:
    """uint8 noise of a mask of its own, with 0 and 255 in it."""
    seed = [CONDITIONS.index(condition), [clip for clip, _ in CLIPS].index(clip_id), k]
    values = np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)
    values[0, :2] = 0, 255
    return values


@pytest.fixture
def targets(tmp_path):
    """Three clips of three frames; the last has one mask only."""
    found = []
    for number, (clip_id, category) in enumerate(CLIPS):
        masks = [tmp_path / f"truth/{clip_id}_{k}.png" for k in range(1, 2 if number == 2 else 4)]
        for k, path in enumerate(masks):
            save(path, np.random.default_rng([9, number, k]).random(SIZE) < 0.4)
        found.append(Target(clip_id, category, "animal", clip_id, tuple(masks), frames=3))
    return found


@pytest.fixture
def write(tmp_path):
    """write(first k, with categories, change of the values): a whole folder of predictions."""

    def write(first=1, nested=True, change=lambda values: values) -> Path:
        folder = tmp_path / "predictions"
        shutil.rmtree(folder, ignore_errors=True)
        for condition in CONDITIONS:
            for clip_id, category in CLIPS:
                for k in range(3):
                    place = folder / condition / (category if nested else "") / clip_id
                    save(place / f"{clip_id}_{k + first}.png", change(values_of(condition, clip_id, k)))
        return folder

    return write


def expected_rows(targets, change=lambda values: values / np.float32(255)):
    rows = []
    for target in targets:
        masks = np.stack([np.array(Image.open(path)) for path in target.masks])
        frames = {
            condition: np.stack(
                [change(values_of(condition, target.clip_id, k)).astype(np.float32) for k in range(len(masks))]
            )
            for condition in CONDITIONS
        }
        rows.append(clip_row(target.clip_metadata, masks, frames))
    return rows


def problems_of(folder, targets, conditions=CONDITIONS, **options):
    with pytest.raises(PredictionsError) as caught:
        score_predictions(folder, conditions, targets, **options)
    plural = "" if len(caught.value.problems) == 1 else "s"
    assert str(caught.value).startswith(f"{folder}: nothing is scored, {len(caught.value.problems)} problem{plural} (")
    return caught.value.problems


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("nested", [True, False])
def test_layouts_are_scored_alike(write, targets, first, nested):
    folder = write(first, nested)
    (folder / "positive/.DS_Store").write_bytes(b"")
    (folder / "positive/Thumbs.db").write_bytes(b"")
    (folder / "desktop.ini").write_bytes(b"")
    (folder / "__MACOSX").mkdir()
    (folder / ".notes").write_text("")  # beside the conditions
    assert score_predictions(folder, CONDITIONS, targets) == expected_rows(targets)


def test_layouts_may_differ_between_conditions(write, targets):
    folder = write(0, True)
    shutil.move(folder / "noise", folder / ".noise_from_0")
    for clip_id, category in CLIPS:
        for k in range(3):
            source = folder / ".noise_from_0" / category / clip_id / f"{clip_id}_{k}.png"
            save(folder / "noise" / clip_id / f"{clip_id}_{k + 1}.png", Image.open(source))
    assert score_predictions(folder, CONDITIONS, targets) == expected_rows(targets)


def test_a_part_of_the_clips(write, targets):
    folder = write()
    rows = expected_rows(targets)
    assert score_predictions(folder, CONDITIONS, targets) == rows
    assert score_predictions(folder, CONDITIONS, targets, kept=[2, 0]) == [rows[2], rows[0]]
    alone = score_predictions(folder, ["noise"], targets)
    assert [list(row["conditions"]) for row in alone] == [["noise"]] * 3
    shutil.rmtree(folder / "positive/cat")  # a clip that is not asked for
    assert score_predictions(folder, CONDITIONS, targets, kept=[2, 0]) == [rows[2], rows[0]]


def binary(values):
    return values > 127


def paletted(colours, indices=lambda values: (values > 127).astype(np.uint8)):
    def change(values):
        image = Image.fromarray(indices(values), mode=None).convert("L")
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(colours)
        return image

    return change


GREYS = [value for value in range(256) for _ in range(3)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (binary, binary),  # mode 1
        (lambda values: binary(values) * np.uint8(255), binary),
        (lambda values: binary(values).astype(np.uint8), binary),  # 0 and 1 in the whole folder
        (paletted([0, 0, 0, 128, 0, 0]), binary),  # the palette of PASCAL VOC
        (paletted([255, 255, 255, 0, 0, 0]), lambda values: ~binary(values)),
        (paletted([0, 0, 0, 255, 255, 255]), binary),
        (paletted([0, 0, 0, 0, 0, 0]), binary),
        (paletted([9, 0, 0, 0, 9, 0]), binary),
        (paletted(GREYS), binary),  # greys 0 and 1
        (paletted(GREYS, lambda values: values), lambda values: values / np.float32(255)),
    ],
    ids="1 L255 L1 voc inverted p255 black colours grey01 grey".split(),
)
def test_modes(write, targets, change, expected):
    folder = write(change=change)
    assert score_predictions(folder, CONDITIONS, targets) == expected_rows(targets, expected)


def test_greys_of_0_and_1_need_the_positives(write, targets):
    """A perfect model's probabilities on noise may be 0 and 1/255: alone, they could be masks of 0 and 1."""
    folder = write(change=lambda values: binary(values).astype(np.uint8))
    (problem,) = problems_of(folder, targets, ["noise"])
    assert problem.startswith("ambiguous: no value above 1")
    folder = write(change=lambda values: np.zeros_like(values))
    (row, *_) = score_predictions(folder, ["noise"], targets)
    assert row["conditions"]["noise"]["area"] == [0, 0, 0]


def test_the_grey_of_1_is_told(write, targets):
    for change, grey in (
        (lambda values: values, 255),
        (lambda values: (values > 127).astype(np.uint8), 1),
        (binary, 255),
    ):
        _, facts = mask_files.score_predictions(write(change=change), CONDITIONS, targets)
        assert facts["grey_of_one"] == grey


@pytest.mark.parametrize("of_ones", CONDITIONS)
def test_masks_of_0_and_1_beside_masks_of_0_and_255(write, targets, of_ones):
    """Scored as probabilities of 1/255, the negatives would be empty: a robust model, without a word."""
    (other,) = set(CONDITIONS) - {of_ones}
    folder = write(change=lambda values: binary(values) * np.uint8(255))
    for path in (folder / of_ones).rglob("*.png"):
        save(path, np.asarray(Image.open(path)) // np.uint8(255))
    (problem,) = problems_of(folder, targets)
    assert problem.startswith(
        f"ambiguous: {folder}/{of_ones} holds no value above 1 but {folder}/{other} does; save masks as 0 and 255"
    )
    for path in (folder / of_ones).rglob("*.png"):
        save(path, np.zeros(SIZE, np.uint8))  # no masks at all: nothing to mistake
    assert score_predictions(folder, CONDITIONS, targets)[0]["conditions"][of_ones]["area"] == [0, 0, 0]


def test_the_grey_of_1_may_be_said(write, targets):
    """A robust model's probabilities on noise may be 1/255 at most; told so, they are scored as such."""
    folder = write()
    for path in (folder / "noise").rglob("*.png"):
        save(path, np.ones(SIZE, np.uint8))
    reading = Reading(grey_of_one=255)
    rows, facts = mask_files.score_predictions(folder, CONDITIONS, targets, reading=reading)
    assert facts["grey_of_one"] == 255 and rows[0]["conditions"]["noise"]["area"] == [0, 0, 0]
    reading = Reading(grey_of_one=1)
    rows, facts = mask_files.score_predictions(folder, ["noise"], targets, reading=reading)
    assert facts["grey_of_one"] == 1 and rows[0]["conditions"]["noise"]["area"] == [1, 1, 1]
    with pytest.raises(PredictionsError, match="1 of another range"):
        mask_files.score_predictions(folder, CONDITIONS, targets, reading=reading)


@pytest.mark.slow
def test_what_lies_beside_the_conditions(write, targets, capsys):
    folder = write()
    score_predictions(folder, ["noise"], targets)
    assert f"not scored: {folder}/positive; add it to --conditions\n" in capsys.readouterr().err
    (folder / "silence").mkdir()
    score_predictions(folder, ["noise"], targets)
    assert f"not scored: {folder}/positive, {folder}/silence; add them to" in capsys.readouterr().err
    score_predictions(folder, [*CONDITIONS], targets)
    save(folder / "stray_1.png", np.zeros(SIZE, np.uint8))
    (folder / "unsene").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "off_screen").write_text("")  # a condition's name, but a file
    names = ["off_screen", "stray_1.png", "unsene"]
    assert problems_of(folder, targets) == [f"extra: {folder}/{name}" for name in names]


def test_everything_that_is_wrong_is_told_at_once(write, targets):
    folder = write()
    (folder / "positive/dog/dog_1/dog_1_2.png").unlink()
    shutil.rmtree(folder / "noise/cat/cat.2")
    save(folder / "noise/dog/dog_1/dog_1_4.png", np.zeros(SIZE, np.uint8))
    save(folder / "noise/dog/fox_1/fox_1_1.png", np.zeros(SIZE, np.uint8))
    save(folder / "positive/cat.2/cat.2_1.png", np.zeros(SIZE, np.uint8))  # beside that in its category
    (folder / "noise/dog/dog_1/empty").mkdir()
    save(folder / "noise/dog/-og_3/-og_3_1.png", np.zeros((4, 5), np.uint8))
    save(folder / "positive/dog/-og_3/-og_3_1.png", np.zeros((*SIZE, 4), np.uint8))
    cut = folder / "positive/cat/cat.2/cat.2_3.png"
    cut.write_bytes(cut.read_bytes()[:60])
    problems = problems_of(folder, targets, [*CONDITIONS, "silence"])
    assert f"folder missing: {folder}/silence; {folder} holds noise, positive" in problems
    named = [problem for problem in problems if problem.startswith(("missing", "extra"))]
    assert sorted(named) == sorted(
        [f"missing: {folder}/positive/dog/dog_1/dog_1_2.png"]
        + [f"missing: {folder}/noise/cat/cat.2/cat.2_{k}.png" for k in (1, 2, 3)]
        + [f"extra: {folder}/noise/dog/dog_1/dog_1_4.png", f"extra: {folder}/noise/dog/fox_1/fox_1_1.png"]
        + [f"extra: {folder}/positive/cat.2/cat.2_1.png"]
    )
    others = [problem for problem in problems if problem not in named and not problem.startswith("folder")]
    assert len(others) == 3
    sizes = "5 x 4 pixels, its ground truth 4 x 5; score it with --resize nearest"
    assert f"of another size: {folder}/noise/dog/-og_3/-og_3_1.png has {sizes}" in others
    assert any(f"of a wrong mode: {folder}/positive/dog/-og_3/-og_3_1.png is RGBA" in problem for problem in others)
    assert any(problem.startswith(f"unreadable: {cut}, ") for problem in others)


def test_a_clip_without_files_is_named_as_its_neighbours_lie(write, targets):
    folder = write(0, nested=False)
    shutil.rmtree(folder / "noise/cat.2")
    assert problems_of(folder, targets) == [f"missing: {folder}/noise/cat.2/cat.2_{k}.png" for k in (0, 1, 2)]


def test_one_stray_file_does_not_change_the_count(write, targets):
    folder = write(1)
    save(folder / "noise/dog/dog_1/dog_1_0.png", np.zeros(SIZE, np.uint8))
    assert problems_of(folder, targets) == [f"extra: {folder}/noise/dog/dog_1/dog_1_0.png"]


def test_no_folder_at_all(targets, tmp_path):
    problems = problems_of(tmp_path / "none", targets)
    assert problems == [
        f"folder missing: {tmp_path}/none/{name}; {tmp_path}/none holds no folder" for name in CONDITIONS
    ]
    (tmp_path / "empty/positive").mkdir(parents=True)
    assert len(problems_of(tmp_path / "empty", targets, ["positive"])) == 3 + 3 + 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16"])
def test_more_than_one_byte_a_pixel(tmp_path, mode):
    path = tmp_path / "mask.png"
    Image.new(mode, (4, 5)).save(path)
    with pytest.raises(ValueError, match=f"of a wrong mode: {path} is {mode}"):
        read_prediction(path)


def test_a_picture_in_a_palette(tmp_path):
    path = tmp_path / "mask.png"
    save(path, paletted([0, 0, 0, 9, 0, 0, 0, 9, 0], lambda values: values % 3)(values_of("noise", "dog_1", 0)))
    with pytest.raises(ValueError, match="in colour: .* any of its 3 may be an object"):
        read_prediction(path)


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "EPS"])
def test_other_formats_are_not_opened(tmp_path, kind):
    """Each further decoder is one more that a hostile file could reach; that of EPS starts another program."""
    path = tmp_path / "mask.png"
    Image.new("L", (4, 5)).save(path, kind)
    with pytest.raises(ValueError, match=f"unreadable: {path}, cannot identify image file"):
        read_prediction(path)


def test_no_image(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"unreadable: {tmp_path}/mask.png, "):
        read_prediction(tmp_path / "mask.png")


def test_the_reader_of_masks_is_heard(write, targets):
    """Ground truth that is missing is the reader's error, not a problem of the predictions."""
    targets[1].masks[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"cat.2_1.png"):
        score_predictions(write(), CONDITIONS, targets)
