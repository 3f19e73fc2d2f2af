"""`avs-report compare`: which differences stand, and what is refused."""

import itertools
import json

import numpy as np
import pytest

from evaluate_metrics import compare, report, uncertainty
from evaluate_metrics.__main__ import main
from evaluate_metrics.avs_robust.avs_robust import condition_scores, robust_scores
from evaluate_metrics.report import tables

CONDITIONS = ("positive", "silence", "noise", "off_screen")


def make_rows(shift=0.0, clips=30, seed=0, conditions=CONDITIONS):
    """Clips whose positive IoU is higher by `shift`; all else depends on `seed` alone."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(clips):
        row = {"clip_id": f"clip{i:02d}", "category": "c", "group": None, "source_video": f"v{i}", "conditions": {}}
        row["mask_area"] = [0.1, 0.2]
        for condition in conditions:
            iou = rng.uniform(0.2, 0.7, 2) + (shift if condition == "positive" else 0)
            row["conditions"][condition] = {
                "iou": iou.tolist(),
                "area": rng.uniform(0, 0.3, 2).tolist(),
                "f_score": float(rng.uniform()),
            }
        rows.append(row)
    return rows


def write_results(folder, rows, **others):
    folder.mkdir(parents=True)
    used = rows[0]["conditions"]
    by_condition = {c: condition_scores([row["conditions"][c] for row in rows]) for c in used}
    scores = {f"{k}_{c}": v for c, of in by_condition.items() for k, v in of.items()} | robust_scores(by_condition)
    results = {
        "subset": "s4",
        "split": "test",
        "scores": scores,
        "clips_file": "clips.jsonl",
        "settings": {"seed": 42},
    }
    (folder / "results.json").write_text(json.dumps(results | others))
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "results.json"


def table_of(text):
    """First column -> the further columns; columns are two or more spaces apart."""
    head, *lines = text.splitlines()
    starts = [head.index(name) for name in ("better", " a ", " b ", "b - a", "95 %", " p ", "stands")]
    ends = [*starts[1:], None]
    return {
        line[: starts[0]].strip(): [line[a:b].strip() for a, b in zip(starts, ends, strict=True)]
        for line in itertools.takewhile(bool, lines)
        if line[0] != "-"
    }


def test_command_says_which_differences_stand(tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows())
    b = write_results(tmp_path / "b", make_rows(shift=0.1))
    main(["compare", str(a), str(b)])  # returns: exit status 0
    printed = capsys.readouterr().out
    rows = table_of(printed)
    scores = [json.loads(path.read_text(encoding="utf-8"))["scores"] for path in (a, b)]
    found = {d.metric: d for d in uncertainty.compare([make_rows()], [make_rows(shift=0.1)])}
    g = found["g_miou"]
    assert rows["G-mIoU"] == [
        "higher",
        f"{scores[0]['g_miou']:.3f}",
        f"{scores[1]['g_miou']:.3f}",
        f"{g.b - g.a:+.3f}",
        f"[{g.low:+.3f}, {g.high:+.3f}]",
        "0.0001",
        "yes, b is better",
    ]
    assert rows["mIoU, positive"][3:] == ["+0.100", "[+0.100, +0.100]", "0.0019", "yes, b is better"]
    assert rows["mIoU, silence"][3:] == ["+0.000", "[-0.116, +0.116]", "1.0000", "no"]
    stands = [name for name, cells in rows.items() if cells[-1].startswith("yes")]
    of_negatives = [f"G-mIoU, {condition}" for condition in ("silence", "noise", "off-screen")]
    assert stands == ["G-mIoU", "mIoU, positive", *of_negatives]
    assert rows["audio-blind floor of G-mIoU"][-2:] == ["", ""]  # neither direction is better
    assert (
        "The primary score is G-mIoU; its difference stands. Of the 19 others that can be better 4 stand; their p-val"
        in printed
    )
    assert "Training seeds are not covered: each side is a single training run" in printed
    assert "over 30 clips of 30 source videos; 10000 resamples, seed 0." in printed


def test_lower_is_better_where_it_is(tmp_path, capsys):
    rows = make_rows()
    for row in rows:
        row["conditions"]["noise"]["area"] = [v + 0.2 for v in row["conditions"]["noise"]["area"]]
        row["conditions"]["positive"]["area"] = [v + 0.2 for v in row["conditions"]["positive"]["area"]]
    a, b = write_results(tmp_path / "a", make_rows()), write_results(tmp_path / "b", rows)
    main(["compare", str(a.parent), str(b.parent)])  # a folder will do
    table = table_of(capsys.readouterr().out)
    assert table["FPR, noise"][-1] == table["G-FPR"][-1] == "yes, a is better"
    assert table["FPR, positive"][-2:] == ["", ""]  # the predicted area: neither is better


def test_few_clips_cannot_decide(tmp_path, capsys):
    paths = [write_results(tmp_path / name, make_rows(shift=shift)[:19]) for name, shift in (("a", 0), ("b", 0.1))]
    main(["compare", *map(str, paths), "--format", "json"])
    content = json.loads(capsys.readouterr().out)
    assert content["notes"] == [
        "19 clips cannot decide: below 20 no difference is said to stand. Score more clips.",
    ]
    assert content["scores"]["g_miou"]["p"] < 0.01 and not content["scores"]["g_miou"]["stands"]
    assert content["scores"]["audio_blind_floor"]["p_adjusted"] is None


@pytest.mark.parametrize(
    ("folders", "names"),
    [(("ours/eval", "theirs/eval"), ("ours", "theirs")), (("x/1", "x/2"), ("1", "2")), (("x", "x"), ("a", "b"))],
)
def test_sides_are_called_by_their_folders(folders, names, tmp_path, capsys):
    paths = [write_results(tmp_path / folder, make_rows()) for folder in dict.fromkeys(folders)] * 2
    main(["compare", str(paths[0]), str(paths[1].parent), "--resamples", "100"])
    printed = capsys.readouterr().out
    assert printed.split("\n")[0].split()[2:6] == [*names, names[1], "-"]
    assert f"{names[1]}: {paths[1].parent}" in printed


def test_front_ends_are_not_mixed():
    runs = [report.Run(name, {}, clips=make_rows(), settings={"front_end": name}) for name in ("vggish", "released")]
    with pytest.raises(ValueError, match="one front end, got released and vggish"):
        compare.compare_runs(runs[:1], runs[1:], resamples=100)


def test_seeds_of_a_side_are_averaged(tmp_path, capsys):
    paths = [str(write_results(tmp_path / str(k), make_rows(seed=k))) for k in range(4)]
    main(["compare", *paths[:2], "--more_a", paths[2], "--more_b", paths[3], "--format", "json"])
    content = json.loads(capsys.readouterr().out)
    scores = [
        json.loads((tmp_path / str(k) / "results.json").read_text(encoding="utf-8"))["scores"]["g_miou"]
        for k in range(4)
    ]
    assert content["scores"]["g_miou"]["a"] == pytest.approx((scores[0] + scores[2]) / 2)
    assert content["scores"]["g_miou"]["b"] == pytest.approx((scores[1] + scores[3]) / 2)
    low, high = content["scores"]["g_miou"]["interval"]
    assert low < content["scores"]["g_miou"]["difference"] < high
    assert content["bootstrap"]["clusters"] == 30 and content["notes"] == []
    assert content["seeds"] == [2, 2] and content["covers_training_seeds"] is True
    assert content["primary"] == "g_miou" and "Holm" in content["correction"]
    assert "The units are the training seeds, 2 and 2: Student's test" in content["explanation"][1]
    for form in ("text", "markdown", "latex"):
        main(["compare", *paths[:2], "--more_a", paths[2], "--format", form])
        printed = capsys.readouterr().out
        assert "The units are the training seeds, 2 and 1" in printed and "not covered" not in printed
        assert "One side has a single training seed" in printed


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "json"])
def test_every_format_says_what_is_corrected_and_what_is_not_covered(form, tmp_path, capsys):
    a, b = write_results(tmp_path / "a", make_rows()), write_results(tmp_path / "b", make_rows(seed=1))
    main(["compare", str(a), str(b), "--format", form])
    printed = capsys.readouterr().out
    assert (
        "The primary score is G-mIoU; its difference does not stand. Of the 19 others that can be better 0 stand"
        in printed
    )
    assert "corrected for their number (Holm)" in printed and "Training seeds are not covered" in printed


def bits(rows, values=2):
    """The rows' curves as those of masks with two values, or of probabilities."""
    for row in rows:
        for clip in row["conditions"].values():
            clip["fpr_curve"] = [0.1] * 10 + [0.0] if values == 2 else [0.9 - k / 20 for k in range(11)]
    return rows


@pytest.mark.parametrize(
    "first, second",
    [({}, {}), ({"prediction_levels": "8-bit"}, {"prediction_levels": "1-bit"}), ({}, {"prediction_levels": "1-bit"})],
)
def test_f_of_other_grey_levels_is_refused(first, second, tmp_path, capsys):
    """The same masks as 1-bit gave G-F 0.199 instead of 0.158."""
    rows = bits(make_rows(seed=1), 2), bits(make_rows(seed=1), 255)
    a = write_results(tmp_path / "a", rows[1], settings={"seed": 42, **first})
    b = write_results(tmp_path / "b", rows[0], settings={"seed": 42, **second})
    for form in ("text", "markdown", "latex", "json"):
        main(["compare", str(a), str(b), "--format", form])
        printed = capsys.readouterr().out
        assert "F and G-F are left out: they depend on the predictions" in printed
        assert "G-F," not in printed and "f_score" not in printed
    main(["compare", str(a), str(b), "--mixed_levels"])
    printed = capsys.readouterr().out
    assert "G-F" in table_of(printed) and "different numbers of grey levels" in printed
    main(["compare", str(b), str(b)])
    assert "G-F" in table_of(capsys.readouterr().out)


def test_masks_of_two_kinds_are_refused(tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows(), annotation="object")
    b = write_results(tmp_path / "b", make_rows(0.1), annotation="semantic")
    earlier = write_results(tmp_path / "c", make_rows(0.1))  # of the time when only AVSBench-object was read
    code, error = failing(capsys, str(a), str(b))
    assert (
        code == 1 and f"AVSBench-object: '{a}'; AVSBench-semantic: '{b}'" in error and "--mixed_annotations" in error
    )
    main(["compare", str(a), str(b), "--resamples", "20", "--mixed_annotations"])
    assert "The results are of masks of different annotations (AVSBench-object: " in capsys.readouterr().out
    main(["compare", str(a), str(earlier), "--resamples", "20"])
    assert "different annotations" not in capsys.readouterr().out
    runs = ["--run", f"first={a.parent}", "--run", f"second={b.parent}", "--out", str(tmp_path / "page")]
    with pytest.raises(SystemExit) as ended:
        main(runs)
    assert ended.value.code == 1 and not (tmp_path / "page").exists()
    assert "AVSBench-object: 'first'; AVSBench-semantic: 'second'" in capsys.readouterr().err
    main([*runs, "--mixed_annotations"])
    page = (tmp_path / "page/index.html").read_text(encoding="utf-8")
    assert "The results are of masks of different annotations" in page and "second: Masks: AVSBench-semantic" in page
    for name in ("table.md", "table.tex"):
        head = next(
            line for line in (tmp_path / "page" / name).read_text(encoding="utf-8").splitlines() if "first" in line
        )
        assert "second (semantic masks" in head and "semantic" not in head.partition("second")[0]
    capsys.readouterr()
    main(["compare", str(b), str(b), "--resamples", "20"])
    assert "All scores are on the masks of AVSBench-semantic" in capsys.readouterr().out


def test_markdown_and_latex_escape_names(tmp_path, capsys):
    a, b = write_results(tmp_path / "a", make_rows()), write_results(tmp_path / "b", make_rows(shift=0.1))
    main(["compare", str(a), str(b), "--format", "markdown", "--names", "a|b", "c_d"])
    first, rule, line, *_ = capsys.readouterr().out.splitlines()
    assert first == r"| metric | a\|b | c\_d | c\_d - a\|b | 95 % interval | p | stands |"
    assert rule.count("|") == 8 and line.startswith("| G-mIoU ↑ | 0.") and line.endswith(r"yes, c\_d is better |")
    main(["compare", str(a), str(b), "--format", "latex", "--names", "50%", "c_d"])
    latex = capsys.readouterr().out
    assert r"metric & 50\% & c\_d & c\_d - 50\% & 95 \% interval & p & stands \\" in latex
    assert r"mIoU, positive $\uparrow$ & " in latex and "$[" not in latex and r"[$+0.100$, $+0.100$]" in latex


def failing(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(["compare", *map(str, argv)])
    return stop.value.code, capsys.readouterr().err


def test_other_clips_are_named(tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows())
    b = write_results(tmp_path / "b", make_rows(clips=28))
    code, message = failing(capsys, a, b)
    assert code == 1 and message.startswith("avs-report compare: ")
    assert "2 missing in result 2: 'clip28', 'clip29'" in message


def test_other_conditions_are_named(tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows())
    b = write_results(tmp_path / "b", make_rows(conditions=("positive", "silence")))
    code, message = failing(capsys, a, b)
    assert code == 1 and "not every result has noise, off_screen" in message


def test_an_extra_condition_of_one_side_is_left_out(tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows(conditions=(*CONDITIONS, "unseen")))
    b = write_results(tmp_path / "b", make_rows())
    main(["compare", str(a), str(b)])
    printed = capsys.readouterr().out
    assert "Left out, because not every result has them: unseen." in printed
    assert "mIoU, unseen" not in table_of(printed)


def test_what_may_differ_is_said(tmp_path, capsys):
    rows = make_rows()
    rows[3]["mask_area"] = [0.5, 0.5]
    a = write_results(tmp_path / "a", make_rows())
    b = write_results(tmp_path / "b", rows, settings={"seed": 43}, split="validation")
    main(["compare", str(a), str(b)])
    printed = capsys.readouterr().out
    assert "different seeds of the draw" in printed and "different subsets or splits" in printed
    assert "1 clips were scored against masks of another area, 'clip03' among them" in printed


def test_results_without_clips_are_refused(tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows())
    b = write_results(tmp_path / "b", make_rows())
    (tmp_path / "b" / "clips.jsonl").unlink()
    code, message = failing(capsys, a, b)
    assert code == 1 and "clips.jsonl" in message and str(b) in message
    code, message = failing(capsys, a, tmp_path / "nowhere")
    assert code == 1 and "nowhere" in message and "not found" in message


def test_clips_of_another_evaluation_are_refused(tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows())
    b = write_results(tmp_path / "b", make_rows())
    (tmp_path / "b" / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(shift=0.1)))
    code, message = failing(capsys, a, b)
    assert code == 1 and "miou_positive is" in message and "two evaluations" in message


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: expected an object, got [1]"),
        (
            '{"clip_id": "x", "conditions": {"positive": {"iou": [], "area": [0.1]}}}',
            "line 2: expected at least 1 numbers for conditions['positive']['iou'], got []",
        ),
        (
            '{"clip_id": "x", "conditions": {"positive": {"iou": ["1"], "area": [0.1]}}}',
            "line 2: expected a valid number for conditions['positive']['iou'][0], got '1'",
        ),
        ('{"clip_id": "x", "conditions": {"positive": 1}}', "line 2: expected an object for conditions['positive']"),
        ('{"clip_id": "x", "conditions": {"positive": {"iou": [NaN], "area": [0.1]}}}', "line 2: expected a finite"),
        ('{"clip_id": "x", "conditions": {"positive": {"iou": [1.5], "area": [0.1]}}}', "line 2: expected less than"),
        (
            '{"clip_id": "x", "conditions": {"positive": {"iou": [1, 1], "area": [0.1]}}}',
            "line 2: expected equally many values in iou, area, mask_area, heard",
        ),
        ('{"clip_id": "x", "conditions": [1]}', "line 2: expected an object for conditions, got [1]"),
        (
            '{"conditions": {"positive": {"iou": [1], "area": [1]}}}',
            "line 2: expected a value for clip_id",
        ),
        (
            '{"clip_id": "x", "category": 3, "conditions": {"positive": {"iou": [1], "area": [1]}}}',
            "line 2: expected text for category, got 3",
        ),
        (
            '{"clip_id": "x", "conditions": {"positive": {"iou": [0.1], "area": [0.1], "similarity": 1}}}',
            "line 2: expected a list for conditions['positive']['similarity'], got 1",
        ),
        (
            '{"clip_id": "x", "conditions": {"positive": {"iou": [0.1], "area": [0.1], "f_score": "a"}}}',
            "line 2: expected a valid number for conditions['positive']['f_score'], got 'a'",
        ),
    ],
)
def test_bad_clip_lines_are_named(line, message, tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows())
    first = json.dumps(make_rows()[0])
    (tmp_path / "a" / "clips.jsonl").write_text(f"{first}\n{line}\n")
    code, error = failing(capsys, a, a)
    assert code == 1 and f"clips.jsonl, {message}" in error


def test_arguments_are_checked(tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows())
    code, message = failing(capsys, a, a, "--resamples", 0)
    assert code == 2 and "expected at least 1, got 0" in message
    code, message = failing(capsys, a, a, "--level", 95)
    assert code == 2 and "between 0 and 1" in message
    code, _ = failing(capsys, a)
    assert code == 2


def test_identical_results_differ_nowhere(tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows())
    main(["compare", str(a), str(a), "--resamples", "100"])
    printed = capsys.readouterr().out
    assert "its difference does not stand. Of the 19 others that can be better 0 stand" in printed


def test_a_run_read_by_hand_compares_too(tmp_path):
    runs = [report.Run(str(k), {}, clips=make_rows(seed=k)) for k in range(2)]
    found = compare.compare_runs(runs[:1], runs[1:], resamples=100)
    assert {"g_miou", "audio_blind_floor", "g_f_score", "g_fpr"} < set(found.differences)
    with pytest.raises(ValueError, match="results of 'x'"):
        compare.compare_runs([report.Run("x", {})], runs)


@pytest.mark.parametrize(
    "shift, cells",
    [
        (0.0002, ["+0.00020", "[+0.00020, +0.00020]", "0.0019", "yes, b is better"]),
        (-0.0002, ["-0.00020", "[-0.00020, -0.00020]", "0.0019", "yes, a is better"]),
        (0.000012, ["+0.000012", "[+0.000012, +0.000012]", "0.0019", "yes, b is better"]),
        (-1e-9, ["+0.000", "[+0.000, +0.000]", "0.0019", "no"]),  # nothing but rounding
        (0.0621, ["+0.062", "[+0.062, +0.062]", "0.0019", "yes, b is better"]),
    ],
)
def test_a_difference_is_shown_at_its_size(shift, cells, tmp_path, capsys):
    a, b = write_results(tmp_path / "a", make_rows()), write_results(tmp_path / "b", make_rows(shift=shift))
    for form in ("text", "markdown", "latex"):
        main(["compare", str(a), str(b), "--format", form])
        printed = capsys.readouterr().out
        assert "-0.000 " not in printed and "-0.000," not in printed and "-0.000]" not in printed
        if form == "text":
            assert table_of(printed)["mIoU, positive"][3:] == cells


def test_two_significant_digits_by_hand():
    for values, digits in (
        ((0.2, 0.011, 0.4), 3),
        ((0.2, 0.01, 0.4), 3),
        ((0.2, 0.0099, 0.4), 4),
        ((0.03, -0.0004, 0.06), 5),
        ((0.0, 0.0, 0.0), 3),
        ((2e-6, 1e-6, 3e-6), 6),
        ((2e-9, 1e-9, 0.3), 3),
    ):
        difference, low, high = values
        assert (
            tables.difference_digits(uncertainty.Difference("m", 0.0, difference, low, high, 1.0, 1.0, False), 3)
            == digits
        )
    assert [tables.signed(v, 3) for v in (-0.0004, 0.0, -0.0006, float("nan"))] == ["+0.000", "+0.000", "-0.001", "–"]


def test_a_single_seed_of_a_side_is_said_and_only_then():
    settings = {"level": 0.95, "clips": 30, "clusters": 30, "resamples": 20, "seed": 0}
    said = "One side has a single training seed: its variance is taken to be that of the other side."
    assert said in compare.Comparison({}, settings, (1, 2), ()).explanation
    assert said not in compare.Comparison({}, settings, (2, 2), ()).explanation


def test_unknown_grey_levels_do_not_hide_f_of_eight_bit_masks(tmp_path, capsys):
    a = write_results(tmp_path / "a", make_rows(), settings={"seed": 42, "prediction_levels": "8-bit"})
    b = write_results(tmp_path / "b", make_rows(0.1))
    main(["compare", str(a), str(b), "--resamples", "20"])
    out = capsys.readouterr().out
    assert "left out" not in out and "G-F " in out
