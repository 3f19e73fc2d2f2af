"""Any model's masks, any callable, and conditions beyond the four: scored as the project's own model is."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.nn import functional as F

from avs_engine.clips import evenly_spaced, load_splits
from avs_engine.predict import load_segmenter
from avsbench_robust_dataset.conditions import mix
from avsbench_robust_dataset.unseen import draw_unseen, find_wavs
from evaluate_accelerate import cli, main
from evaluate_metrics.mask_files import predictions_digest
from evaluate_metrics.report import results_table
from evaluate_metrics.results import read_run
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

CONDITIONS = ("positive", "silence", "noise", "off_screen")


@pytest.fixture(scope="session")
def model_folder(write_model):
    return write_model(size=96)


@pytest.fixture
def evaluate(demo_tree, tmp_path):
    """evaluate(name, *options): results.json and the rows of clips.jsonl of an evaluation of the demo tree."""

    def evaluate(name, *options):
        main(["--cpu", "--subset", "demo", "--data_dir", demo_tree, "--output_dir", str(tmp_path / name), *options])
        rows = [
            json.loads(line) for line in (tmp_path / name / "clips.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        return json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")), rows

    return evaluate


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(source): writes my_model.py into the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def module(source):
        sys.modules.pop("my_model", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        (tmp_path / "my_model.py").write_text(source, encoding="utf-8")

    yield module
    sys.modules.pop("my_model", None)


LOUD = """
import numpy as np
import torch

calls = []

def loud(frames, waveform, sampling_rate):
    "Bright pixels, as many as the sound is loud."
    assert frames.shape == (5, 64, 64, 3) and frames.dtype == np.uint8 and sampling_rate == 16000
    assert waveform.shape == (80000,) and waveform.dtype == np.float32
    calls.append(float(np.abs(waveform).mean()))
    level = 0.6 - calls[-1]
    probabilities = (frames.mean(axis=-1) / 255 >= level) * 0.75
    frames[:] = 0  # the next condition has frames of its own
    waveform[:] = 0
    return torch.tensor(probabilities, dtype=torch.float16, requires_grad=True) if len(calls) % 2 else probabilities
"""


def loud_means(demo_tree, conditions=CONDITIONS):
    """condition -> mean over clips and frames of (IoU, predicted area) of `loud`, in plain loops."""
    means = {}
    for condition, split in load_splits("demo", demo_tree, 42, "test", conditions).items():
        values = []
        for clip in split:
            level = 0.6 - float(np.abs(np.array(clip["audio"]["array"], np.float32)).mean())
            for frame, mask in zip(clip["frames"], clip["masks"], strict=True):
                predicted, target = np.asarray(frame).mean(axis=-1) / 255 >= level, np.asarray(mask) > 0
                values.append([(predicted & target).sum() / (predicted | target).sum(), predicted.mean()])
        means[condition] = np.mean(values, axis=0)
    return means


def test_the_results_of_another_run_are_replaced_only_if_told_to(evaluate, module, tmp_path):
    module(LOUD)
    first, _ = evaluate("fn", "--model-fn", "my_model:loud", "--save_predictions")
    digest = predictions_digest(tmp_path / "fn/predictions", CONDITIONS)
    assert first["predictions_digest"] == digest
    again, _ = evaluate("fn", "--model-fn", "my_model:loud", "--save_predictions")  # the same command
    assert again["scores"] == first["scores"] and again["predictions_digest"] == digest
    other = ("fn", "--model-fn", "my_model:loud", "--seed", "7")
    with pytest.raises(ValueError, match=r"results.json is of seed 42 \(now 7\).*--overwrite_output_dir"):
        evaluate(*other)
    assert json.loads((tmp_path / "fn/results.json").read_text(encoding="utf-8")) == again
    replaced, _ = evaluate(*other, "--overwrite_output_dir")
    assert replaced["settings"]["seed"] == 7 and replaced["predictions_dir"] is None
    assert read_run("fn", tmp_path / "fn").predictions is None  # what lies there is the first run's


def test_a_callable(evaluate, module, demo_tree, tmp_path, capsys):
    module(LOUD)
    results, rows = evaluate("fn", "--model-fn", "my_model:loud", "--save_predictions")
    means = loud_means(demo_tree)
    for condition in CONDITIONS:
        assert results["scores"][f"miou_{condition}"] == pytest.approx(means[condition][0], abs=1e-6)
        assert results["scores"][f"fpr_{condition}"] == pytest.approx(means[condition][1], abs=1e-6)
    assert means["silence"][1] < means["positive"][1] < means["noise"][1]
    assert len(sys.modules["my_model"].calls) == 5 * 4
    assert results["model"] == "my_model:loud" and results["clips"] == 5 and results["clips_file"] == "clips.jsonl"
    assert results["similarity_auroc"] == {"silence": None, "noise": None, "off_screen": None}
    assert [row["clip_id"] for row in rows] == sorted(row["clip_id"] for row in rows)
    assert not list((tmp_path / "fn").glob("*.partial.jsonl"))
    again, _ = evaluate("png", "--predictions", str(tmp_path / "fn/predictions"))
    assert again["scores"] == pytest.approx(results["scores"], abs=1e-12)
    assert (results["predictions_dir"], again["predictions_dir"]) == ("predictions", "../fn/predictions")
    assert again["settings"]["grey_of_one"] == 255 and "grey_of_one" not in results["settings"]
    for path in (tmp_path / "fn/predictions").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // np.uint8(128)).save(path)  # 0.75 as 1
    ones, _ = evaluate("ones", "--predictions", str(tmp_path / "fn/predictions"))
    levels = [found["settings"]["prediction_levels"] for found in (results, again, ones)]
    assert levels == ["1-bit"] * 3 and "hold two values only" in capsys.readouterr().err
    assert ones["settings"]["grey_of_one"] == 1 and ones["scores"] == pytest.approx(results["scores"], abs=1e-12)


@pytest.mark.slow
def test_model_rows_and_its_masks_as_png(evaluate, model_folder, demo_tree, tmp_path, capsys):
    results, rows = evaluate("model", "--model", model_folder, "--save_predictions")
    png, png_rows = evaluate("png", "--predictions", str(tmp_path / "model/predictions"))
    assert png["scores"].keys() == results["scores"].keys()
    assert (results["settings"]["prediction_levels"], png["settings"]["prediction_levels"]) == ("float", "8-bit")
    assert "two values" not in capsys.readouterr().err
    for name, value in results["scores"].items():
        # 8 bits keep the threshold of mIoU and FPR exactly, F's 255 thresholds nearly
        assert png["scores"][name] == pytest.approx(value, abs=1e-2 if "f_score" in name else 1e-12)
    processor = AVSegFormerProcessor.from_pretrained(model_folder)
    model = AVSegFormerForSegmentation.from_pretrained(model_folder).eval()
    splits = load_splits("demo", demo_tree, 42, "test", CONDITIONS)
    for row, png_row, clip in zip(rows, png_rows, splits["off_screen"], strict=True):
        assert {name: row[name] for name in row if name != "conditions"} == {
            name: png_row[name] for name in row if name != "conditions"
        }
        assert (row["clip_id"], row["category"]) == (clip["clip_id"], clip["category"])
        assert row["group"] in ("music", "human", "animal", "device") and row["source_video"] == clip["clip_id"]
        assert row["mask_area"] == [(np.asarray(mask) > 0).mean() for mask in clip["masks"]]
        inputs = processor(frames=[clip["frames"]], audio=[np.array(clip["audio"]["array"])], sampling_rate=16000)
        with torch.no_grad():
            output = model(**inputs)
        got = row["conditions"]["off_screen"]
        assert got["similarity"] == pytest.approx(output.similarity[0].tolist(), abs=1e-5)
        logits = F.interpolate(output.logits, size=(64, 64), mode="bilinear", align_corners=False)[0]
        assert got["area"] == pytest.approx((logits.sigmoid() > 0.5).float().mean(dim=(1, 2)).tolist(), abs=1e-3)
        assert png_row["conditions"]["off_screen"]["similarity"] is None
    assert 0 <= results["similarity_auroc"]["silence"] <= 1
    assert results["source_videos"]["in_several_splits"] == 0
    run = read_run("model", tmp_path / "model")
    assert len(run.clips) == 5 and run.breakdown.keys() == {"category", "group", "mask_area", "frame"}


@pytest.mark.slow
def test_conditions_beyond_the_four(evaluate, module, demo_tree, tmp_path, capsys):
    (tmp_path / "unseen").mkdir()
    for name, value in (("a.wav", 0.1), ("b.wav", 0.9)):
        soundfile.write(tmp_path / "unseen" / name, np.full(80000, value), 16000)
    module(LOUD)
    extra = ["unseen", "mixed_snr_0", "noise_snr_-10"]
    names = ["noise_snr_-10", "positive", "silence", "unseen", "mixed_snr_0", "unseen"]
    options = ["--conditions", *names, "--unseen_dir", str(tmp_path / "unseen")]
    results, rows = evaluate("fn", "--model-fn", "my_model:loud", *options, "--save_predictions")
    calls = np.reshape(sys.modules["my_model"].calls, (5, 5))
    order = ["positive", "silence", "noise_snr_-10", "unseen", "mixed_snr_0"]
    assert results["settings"]["conditions"] == order == list(rows[0]["conditions"])
    splits = load_splits("demo", demo_tree, 42, "test", CONDITIONS)
    heard = {name: [np.array(clip["audio"]["array"], np.float32) for clip in splits[name]] for name in splits}
    drawn = draw_unseen(splits["positive"]["clip_id"], find_wavs(tmp_path / "unseen"), 42, "demo", "test")
    for place, row in enumerate(rows):
        own = heard["positive"][place]
        levels = [np.abs(own).mean(), 0, np.abs(mix(own, heard["noise"][place], -10)).mean()]
        levels += [{"a.wav": 0.1, "b.wav": 0.9}[drawn[row["clip_id"]].name]]
        levels += [np.abs(mix(own, heard["off_screen"][place], 0)).mean()]
        assert calls[place] == pytest.approx(levels, abs=1e-4)
    assert set(results["extra_conditions"]) == set(extra)
    assert "g_miou" in results["extra_conditions"]["unseen"]
    assert "g_miou" not in results["extra_conditions"]["mixed_snr_0"]
    assert results["scores"].keys() >= {"miou_positive", "g_miou_silence"}
    assert len(results["settings"]["unseen_sha256"]) == 64
    table = capsys.readouterr().out
    assert f"{results['extra_conditions']['unseen']['miou']:.4f}" in table and "G unseen" in table
    names_of_rows = [line[:20].strip() for line in table[table.index("condition  ") :].splitlines()]
    assert names_of_rows[:9] == (
        ["condition", "positive", "silence", "G (all negatives)", "audio-blind floor"]
        + ["noise_snr_-10", "unseen", "G unseen", "mixed_snr_0"]
    )
    by_category = results["breakdown"]["category"]
    means = [values["miou_unseen"] * values["clips_positive"] for values in by_category.values()]
    assert sum(means) / 5 == pytest.approx(results["extra_conditions"]["unseen"]["miou"])
    png, _ = evaluate("png", "--predictions", str(tmp_path / "fn/predictions"), "--conditions", *names)
    assert png["extra_conditions"] == results["extra_conditions"]


def test_muted_is_scored_by_frames(evaluate, module, demo_tree, tmp_path, capsys):
    module(LOUD)
    options = ["--conditions", "positive", "silence", "muted"]
    results, rows = evaluate("fn", "--model-fn", "my_model:loud", *options, "--save_predictions")
    splits = load_splits("demo", demo_tree, 42, "test", ["positive", "muted"])
    heard = [clip["heard"] for clip in splits["muted"]]
    assert [row["conditions"]["muted"]["heard"] for row in rows] == heard
    p, n = (
        np.mean(
            [
                np.array(row["conditions"]["muted"][name])[np.array(row["conditions"]["muted"]["heard"]) == kind]
                for row in rows
            ]
        )
        for name, kind in (("iou", True), ("area", False))
    )
    scores = results["scores"]
    assert scores["miou_muted_heard"] == pytest.approx(p) and scores["fpr_muted"] == pytest.approx(n)
    assert scores["g_muted"] == pytest.approx(2 * p * (1 - n) / (p + 1 - n)) and 0 < n < 1 and 0 < p < 1
    assert not {"miou_muted", "f_score_muted", "g_miou_muted"} & scores.keys()
    assert "muted" not in results["extra_conditions"] and "muted" not in results["fpr_curve"]
    for key in ("miou_muted_heard", "fpr_muted", "g_muted"):
        low, high = results["intervals"][key]
        assert low < scores[key] < high
    assert f"muted: mIoU, heard frames {p:.4f}, FPR, other frames {n:.4f}" in capsys.readouterr().out
    first = results["breakdown"]["frame"]["1"]
    of_first = [row["conditions"]["muted"] for row in rows]
    assert first["miou_muted_heard"] == pytest.approx(np.mean([of["iou"][0] for of in of_first if of["heard"][0]]))
    png, _ = evaluate("png", "--predictions", str(tmp_path / "fn/predictions"), *options)
    assert png["scores"] == pytest.approx(scores)
    table = results_table([read_run("fn", tmp_path / "fn")])
    assert "Muted, mIoU, heard frames" in table and f"{scores['g_muted']:.3f}" in table


@pytest.mark.slow
def test_a_model_hears_extra_conditions(evaluate, model_folder, demo_tree, monkeypatch):
    """As the model itself on the mixed waveform; sounds still pass the audio encoder once each."""
    seen = []
    sounds = AVSegFormerForSegmentation.get_audio_embeddings
    monkeypatch.setattr(
        AVSegFormerForSegmentation,
        "get_audio_embeddings",
        lambda self, input_features: seen.append(len(input_features)) or sounds(self, input_features),
    )
    options = ["--conditions", "positive", "mixed_snr_-3", "noise_snr_0", "--max_clips", "3"]
    results, rows = evaluate("extra", "--model", model_folder, *options)
    assert sum(seen) == 3 * 3 and len(rows) == 3
    processor = AVSegFormerProcessor.from_pretrained(model_folder)
    model = AVSegFormerForSegmentation.from_pretrained(model_folder).eval()
    splits = load_splits("demo", demo_tree, 42, "test", CONDITIONS)
    for place, row in zip((0, 1, 3), rows, strict=True):
        clip, other, white = (splits[name][place] for name in ("positive", "off_screen", "noise"))
        assert row["clip_id"] == clip["clip_id"]
        own, other, white = (np.array(c["audio"]["array"], np.float32) for c in (clip, other, white))
        for name, waveform in (("mixed_snr_-3", mix(own, other, -3)), ("noise_snr_0", mix(own, white, 0))):
            inputs = processor(frames=[clip["frames"]], audio=[waveform], sampling_rate=16000)
            with torch.no_grad():
                similarity = model(**inputs).similarity[0].tolist()
            assert row["conditions"][name]["similarity"] == pytest.approx(similarity, abs=1e-5)


FAILING = (
    LOUD
    + """
def failing(frames, waveform, sampling_rate):
    if len(calls) == 9:
        raise MemoryError("no more")
    return loud(frames, waveform, sampling_rate)
"""
)


@pytest.mark.slow
def test_an_exception_keeps_what_was_scored(evaluate, module, tmp_path, capsys):
    module(LOUD.replace("def loud", "def failing"))
    expected, expected_rows = evaluate("whole", "--model-fn", "my_model:failing")
    module(FAILING)
    with pytest.raises(MemoryError, match="no more") as caught:
        evaluate("fn", "--model-fn", "my_model:failing")
    (kept,) = (tmp_path / "fn").iterdir()  # no results of a part
    notes = "\n".join(caught.value.__notes__)
    third = expected_rows[2]["clip_id"]
    assert f"my_model:failing at clip {third!r} (silence)" in notes and f"2 scored clips are kept in {kept}" in notes
    module(LOUD.replace("def loud", "def failing"))  # repaired
    capsys.readouterr()
    results, rows = evaluate("fn", "--model-fn", "my_model:failing")
    assert f"resumed: 2 of 5 clips were scored before, in {kept}" in capsys.readouterr().out
    assert len(sys.modules["my_model"].calls) == 3 * 4
    assert rows == expected_rows and results["scores"] == expected["scores"]
    assert sorted(path.name for path in (tmp_path / "fn").iterdir()) == ["clips.jsonl", "results.json"]


def test_other_settings_do_not_resume(evaluate, module, tmp_path, capsys):
    module(FAILING)
    with pytest.raises(MemoryError):
        evaluate("fn", "--model-fn", "my_model:failing")
    module(LOUD.replace("def loud", "def failing"))
    evaluate("fn", "--model-fn", "my_model:failing", "--seed", "43")
    assert "resumed" not in capsys.readouterr().out
    assert len(sys.modules["my_model"].calls) == 5 * 4
    assert len(list((tmp_path / "fn").glob("*.partial.jsonl"))) == 1  # the first run's is still there


@pytest.mark.slow
def test_a_model_s_evaluation_resumes_too(evaluate, model_folder, tmp_path, monkeypatch, capsys):
    options = ["--model", model_folder, "--batch_size", "2"]
    _, expected = evaluate("whole", *options)
    images, calls = AVSegFormerForSegmentation.get_image_embeddings, []

    def stop(self, pixel_values):
        calls.append(len(pixel_values))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return images(self, pixel_values)

    monkeypatch.setattr(AVSegFormerForSegmentation, "get_image_embeddings", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate("stopped", *options)
    calls[:] = [0, 0]
    _, rows = evaluate("stopped", *options)
    assert "resumed: 2 of 5" in capsys.readouterr().out and calls == [0, 0, 2, 1]
    assert rows == expected, "not the same to the last digit"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("np.full(frames.shape[:3], np.nan)", "got nan to nan"),
        ("np.full(frames.shape[:3], 1.5)", r"got 1.5 to 1.5"),
        (
            "frames[..., :1] / 255",
            r"\(T, H, W\) = \(5, 64, 64\) from my_model:wrong, got float64 of shape \(5, 64, 64, 1",
        ),
        ("[['a']]", "got <U1 of shape"),
        ("None", r"got object of shape \(\)"),
    ],
)
def test_what_a_callable_may_not_return(evaluate, module, tmp_path, body, message):
    module(f"import numpy as np\ndef wrong(frames, waveform, sampling_rate):\n    return {body}\n")
    with pytest.raises(ValueError, match=message) as caught:
        evaluate("fn", "--model-fn", "my_model:wrong", "--conditions", "silence")
    assert "(silence)" in str(caught.value) and "clip '" in str(caught.value)
    assert not (tmp_path / "fn").exists()


def test_probabilities_that_rounding_put_outside(evaluate, module):
    source = "import numpy as np\ndef rounded(frames, *sound):\n    return np.where(frames[..., 0] > 99, {})\n"
    module(source.format("1, 0"))
    expected, _ = evaluate("exact", "--model-fn", "my_model:rounded", "--conditions", "positive")
    module(source.format("1 + 9e-7, -9e-7"))
    got, _ = evaluate("rounded", "--model-fn", "my_model:rounded", "--conditions", "positive")
    assert got["scores"] == expected["scores"] and got["fpr_curve"] == expected["fpr_curve"]
    module(source.format("1, -2e-6"))
    with pytest.raises(ValueError, match="got -2e-06 to 1"):
        evaluate("off", "--model-fn", "my_model:rounded", "--conditions", "positive")


def test_the_released_front_end_changes_what_negative_sounds_are(evaluate, model_folder):
    arguments = ["--model", model_folder, "--conditions", "positive", "off_screen", "--max_clips", "2", "--front_end"]
    ours, released = (evaluate(name, *arguments, name)[0] for name in ("vggish", "released"))
    assert released["settings"]["front_end"] == "released"
    assert released["scores"]["miou_positive"] == ours["scores"]["miou_positive"]
    assert released["scores"]["miou_off_screen"] != ours["scores"]["miou_off_screen"]


def test_the_command_line_says_in_one_line_what_the_user_can_mend(module, demo_tree, tmp_path, monkeypatch, capsys):
    module("import no_such_library\n")
    (tmp_path / "fine.py").write_text("def broken(*inputs):\n    raise ValueError('of the model')\n")

    def run(*options):
        arguments = ["--cpu", "--subset", "demo", "--output_dir", str(tmp_path / "eval"), *options]
        monkeypatch.setattr(sys, "argv", ["evaluate_accelerate.py", *arguments])
        cli()

    data = ["--data_dir", demo_tree]
    for options, said in (
        (["--model", "./nowhere", *data], "the folder ./nowhere does not exist"),
        (["--model-fn", "fine", *data], "Expected module:function"),
        (["--model-fn", "fine:nothing", *data], "'nothing'"),
        (["--model-fn", "no_such_module_here:f", *data], f"looked first in {tmp_path}"),
        (["--model-fn", "fine:broken", "--data_dir", "nowhere"], "nowhere"),
        (["--predictions", ".", "--data_dir", "nowhere"], "nowhere"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(*options)
        assert caught.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("avs-evaluate: error: ") and said in err and "Traceback" not in err
    with pytest.raises(ValueError, match="of the model"):
        run("--model-fn", "fine:broken", *data)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        run("--model-fn", "my_model:f", *data)


def test_naming_a_callable(module, tmp_path):
    module(
        "import numpy as np\nclass Model:\n    def predict(self):\n        return 1\nmodel = Model()\nrate = 16000\n"
    )
    assert load_segmenter("my_model:model.predict").function() == 1
    for name, message in (
        ("my_model", "Expected module:function"),
        ("my_model:", "Expected module:function"),
        ("my_model:nothing", "nothing"),
        ("my_model:rate", "got int"),
    ):
        with pytest.raises(ValueError, match=message):
            load_segmenter(name)
    with pytest.raises(ModuleNotFoundError) as caught:
        load_segmenter("no_such_module_here:f")
    assert str(tmp_path) in caught.value.__notes__[0]


@pytest.mark.slow
def test_a_folder_that_cannot_be_scored(evaluate, module, tmp_path, capsys):
    module(LOUD)
    evaluate("fn", "--model-fn", "my_model:loud", "--save_predictions")
    folder = tmp_path / "fn/predictions"
    missing = sorted((folder / "noise").rglob("*.png"))[3]
    missing.unlink()
    shutil.rmtree(folder / "silence")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        evaluate("png", "--predictions", str(folder))
    assert caught.value.code == 2 and not (tmp_path / "png").exists()
    *problems, last = capsys.readouterr().err.splitlines()
    assert problems == [
        f"folder missing: {folder}/silence; {folder} holds noise, off_screen, positive",
        f"missing: {missing}",
    ]
    assert last.startswith(f"{folder}: nothing is scored, 2 problems (1 folder missing, 1 missing).")
    (folder / "noise_snr_5").mkdir()
    results, rows = evaluate("png", "--predictions", str(folder), "--conditions", "positive", "off_screen")
    assert set(rows[0]["conditions"]) == {"positive", "off_screen"} and results["settings"]["max_clips"] is None
    noted = f"not scored: {folder}/noise, {folder}/noise_snr_5; add them to --conditions\n"
    assert noted in capsys.readouterr().err
    _, few = evaluate("few", "--predictions", str(folder), "--conditions", "positive", "--max_clips", "2")
    assert [row["clip_id"] for row in few] == [rows[place]["clip_id"] for place in evenly_spaced(len(rows), 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "one of the arguments --model --predictions"),
        (["--model", "m", "--predictions", "p"], "not allowed with"),
        (["--predictions", "p", "--save_predictions"], "--save_predictions: not allowed with argument --predictions"),
        (["--predictions", "p", "--conditions", "noise_snr_x"], "noise_snr_x"),
        (["--model", "m", "--conditions", "silence", "noise_snr_5"], "add positive"),
        (["--model", "m", "--conditions", "positive", "recorded"], "--unseen_dir"),
        (["--model", "m", "--unseen_dir", "x"], "--unseen_dir"),
    ],
)
def test_options_that_do_not_go_together(evaluate, capsys, tmp_path, options, message):
    with pytest.raises(SystemExit):
        evaluate("eval", *options)
    assert message in capsys.readouterr().err and not (tmp_path / "eval").exists()


def test_no_such_subset_or_data(tmp_path):
    arguments = ["--predictions", str(tmp_path), "--output_dir", str(tmp_path / "eval")]
    with pytest.raises(SystemExit):
        main([*arguments, "--subset", "s5"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main([*arguments, "--subset", "s4", "--data_dir", str(tmp_path / "nowhere")])
