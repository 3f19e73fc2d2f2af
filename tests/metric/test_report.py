"""The report: tables against their inputs, the gallery's rule by hand, a page that is safe and self-contained."""

import base64
import io
import json
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from avsbench_robust_dataset.sources import read_masks
from evaluate_metrics import report, uncertainty
from evaluate_metrics.__main__ import main
from evaluate_metrics.mask_files import predictions_digest
from evaluate_metrics.report import Clip, Run, chart_sections, charts, gallery, overlay
from evaluate_metrics.report.gallery import ClipScore, choose_clips

CONDITIONS = ("positive", "silence", "noise", "off_screen")
VOID = {"meta", "img", "link", "br", "hr", "input"}


def make_scores(positive=0.8, negative=0.25, **changes):
    scores = {}
    for condition in CONDITIONS:
        value = positive if condition == "positive" else negative
        scores |= {f"miou_{condition}": value, f"f_score_{condition}": value + 0.05, f"fpr_{condition}": value / 10}
    for condition in CONDITIONS[1:]:
        scores |= {f"g_miou_{condition}": 0.7, f"g_f_score_{condition}": 0.71}
    return scores | {"g_miou": 0.77419, "g_f_score": 0.75, "g_fpr": 0.025, "audio_blind_floor": 0.32} | changes


class Page(HTMLParser):
    """Checks that tags close in order; keeps start tags, and visible text by innermost tag."""

    def __init__(self, html):
        super().__init__()
        self.stack, self.tags, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style" and data.strip():
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def square(left, top, side, size=(16, 20)):
    """bool (height, width); odd sizes so that swapped axes fail."""
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def make_clip(clip_id, category="dog_barking", truth=None, frames=3):
    truth = square(4, 6, 8) if truth is None else truth
    frame = Image.new("RGB", truth.shape[::-1], (90, 140, 60))
    masks = [Image.fromarray(truth) for _ in range(frames)]
    return Clip(clip_id, category, [frame] * frames, masks, {"off_screen": "playing_piano"})


def save_predictions(folder, clip, masks, with_category=True, first=1):
    """`masks`: condition -> bool array, the same in every frame."""
    for condition, mask in masks.items():
        parts = [condition, clip.category, clip.clip_id] if with_category else [condition, clip.clip_id]
        target = folder.joinpath(*parts)
        target.mkdir(parents=True)
        for k in range(len(clip.masks)):
            Image.fromarray(mask * np.uint8(200)).save(target / f"{clip.clip_id}_{k + first}.png")
    return folder


def read_page(path):
    return Page(path.read_text(encoding="utf-8"))


def table_rows(html):
    """First column without arrow -> the following cells' texts, from the table of scores."""
    table = html[html.index('<table class="scores">') : html.index("</table>")]
    rows = {}
    for row in re.findall(r"<tr[^>]*>(<th scope=\"row\">.*?)</tr>", table):
        cells = [re.sub(r"<[^>]+>", " ", c).replace("&nbsp;", " ") for c in re.findall(r"<t[hd].*?</t[hd]>", row)]
        cells = [" ".join(c.split()) for c in cells]
        rows.setdefault(cells[0].rstrip(" ↑↓"), []).append(cells[1:])
    return rows


@pytest.fixture
def two_models(tmp_path):
    """A clip on which the baseline always fires and the robust model only when it should."""
    clip, hit, empty = make_clip("clipA"), square(4, 6, 8), square(0, 0, 0)
    runs = []
    for name, negative in (("baseline", hit), ("robust", empty)):
        masks = dict.fromkeys(CONDITIONS, negative) | {"positive": hit}
        folder = save_predictions(tmp_path / name, clip, masks)
        log = [{"step": s, "loss": 1 / s} for s in range(1, 9)]
        log += [{"step": 4, "validation": {"g_miou": 0.4, "miou_positive": 0.5, "fpr_silence": 0.0}}]
        runs.append(Run(name, make_scores(), log, folder, "demo", "test", {"seed": 0}, {"torch": "2.11"}))
    return runs, [clip]


def test_page_is_self_contained_and_well_formed(two_models, tmp_path):
    path = report.write_report(tmp_path / "out", *two_models, title="A title", notes=["Noise was held out."])
    assert path == tmp_path / "out" / "index.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    markup = re.sub(r'"data:image/[^"]*"', "", html)  # base64 may hold two slashes
    assert "//" not in markup and "url(" not in markup and "@import" not in markup
    pictures = re.findall(r'"data:image/svg\+xml;base64,([^"]*)"', html)
    assert not any(re.search(rb'(href|src)="(?!#)|url\((?!#)', base64.b64decode(picture)) for picture in pictures)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert page.all("html")[0]["lang"] == "en" and html.startswith("<!DOCTYPE html>")
    images = page.all("img")
    # 3 bar charts, 4 curves; a card a condition with truth and 2 models; frame + truth + 4 conditions x 2 models
    assert len(images) == 3 + 4 + 4 * 3 + 10
    assert all(image["src"].startswith("data:image/") and image["alt"].strip() for image in images)
    ids = {attrs["id"] for attrs in page.all("section")}
    assert {a["href"] for a in page.all("a")} == {f"#{name}" for name in ids}
    assert ids == {"results", "charts", "curves", "gallery", "notes", "settings"}
    assert "Noise was held out." in page.text and "sound: playing_piano" in page.text
    assert "Measured on DEMO test under positive, silence, noise and off-screen audio" in page.text


@pytest.mark.slow
def test_same_input_gives_the_same_bytes(two_models, tmp_path):
    pages = [report.write_report(tmp_path / name, *two_models).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


@pytest.mark.skipif(sys.getfilesystemencoding() != "utf-8", reason="a POSIX locale has no file names of this kind")
def test_hostile_text_is_shown_and_not_run(tmp_path):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    clip = make_clip(evil.replace("/", "\N{DIVISION SLASH}"), "<b>category</b>".replace("/", "|"))
    folder = save_predictions(tmp_path / "p", clip, {"positive": square(4, 6, 8)})
    clip = Clip(clip.clip_id, clip.category, clip.frames, clip.masks, {"positive": evil})
    runs = [Run(evil, make_scores(), [{"step": 1, "loss": 1.0}], folder, evil, evil, {evil: evil}, {evil: evil})]
    path = report.write_report(tmp_path / "out", runs, [clip], title=evil, notes=[evil], settings={evil: [evil]})
    page = read_page(path)
    assert "script" not in {tag for tag, _ in page.tags} and "b" in {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert page.text.count("<script>alert(1)") >= 6 and "<b>category<|b>" in page.text
    policy = page.all("meta")[1]
    assert policy["content"].startswith("default-src 'none'")


def test_table_numbers_are_the_inputs(tmp_path):
    scores = {key: 0.01 * i + 0.10049 for i, key in enumerate(make_scores())}
    path = report.write_report(tmp_path, [Run("only", scores)])
    rows = table_rows(path.read_text(encoding="utf-8"))
    assert rows["G-mIoU"] == [[f"{scores['g_miou']:.3f}"]]
    assert rows["audio-blind floor of G-mIoU"] == [[f"{scores['audio_blind_floor']:.3f}"]]
    assert rows["G-F, off-screen"] == [[f"{scores['g_f_score_off_screen']:.3f}"]]
    assert rows["G-FPR"] == [[f"{scores['g_fpr']:.3f}"]]
    for condition in CONDITIONS:
        expected = [f"{scores[f'{key}_{condition}']:.3f}" for key in ("miou", "f_score", "fpr")]
        assert [cells[0] for cells in rows[condition.replace("_", "-")]] == expected
    assert len([c for cells in rows.values() for c in cells]) == len(scores)


def test_a_flat_table_can_be_copied_from(tmp_path):
    runs = [Run("a", make_scores(), intervals={"g_miou": (0.7, 0.81234)}), Run("b", make_scores(g_miou=None))]
    html = report.write_report(tmp_path, runs).read_text(encoding="utf-8")
    flat = html[html.index('<table class="flat">') :].partition("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in flat.split("<tr>")[1:]]
    assert rows[0] == ["metric", "a", "low", "high", "b", "low", "high"]
    assert ["g_miou", "0.7742", "0.7000", "0.8123", "", "", ""] in rows
    assert {row[0] for row in rows[1:]} == set(make_scores())
    assert {len(cell) for row in rows[1:] for cell in row[1:]} == {0, 6}  # as many digits everywhere


def test_dark_mode_changes_colours_alone(tmp_path):
    """Every colour of the page's ground and text is a variable, which a dark screen sets anew."""
    html = report.write_report(tmp_path, [Run("a", make_scores())]).read_text(encoding="utf-8")
    css = html[html.index("<style>") : html.index("</style>")]
    light, dark = (set(re.findall(r"(--\w+):", part)) for part in css.split("prefers-color-scheme: dark")[:2])
    assert light == dark >= {"--ink", "--paper", "--link"}
    rules = css.split("prefers-color-scheme: dark")[1].partition("* {")[2]
    assert not re.findall(r"[^-]color: #\w+", rules)


def test_seeds_become_mean_half_range_and_difference(tmp_path):
    runs = [Run("baseline", make_scores(g_miou=v)) for v in (0.5, 0.6)]
    runs += [Run("robust", make_scores(g_miou=v)) for v in (0.8, 0.9)]
    path = report.write_report(tmp_path, runs)
    html = path.read_text(encoding="utf-8")
    # by hand: means .55 and .85, half-ranges .05, difference .30
    assert table_rows(html)["G-mIoU"] == [["0.550 ± 0.050 0.500 · 0.600", "0.850 ± 0.050 0.800 · 0.900", "+0.300"]]
    headline = re.search(r'class="headline">(.*?)</p>', html)[1]
    assert re.sub("<.*?>", "", headline).endswith(
        "G-mIoU (means over 2 training seeds): baseline 0.550 and robust 0.850."
    )


def test_arrows_say_which_direction_is_better(tmp_path):
    html = report.write_report(tmp_path, [Run("m", make_scores())]).read_text(encoding="utf-8")
    rows = re.findall(r'<tr[^>]*><th scope="row">(.*?)</th>', html)
    rows = [re.sub("<.*?>", "", row).replace("&nbsp;", " ") for row in rows]
    assert rows[:4] == ["G-mIoU ↑", "audio-blind floor of G-mIoU", "G-F ↑", "G-FPR ↓"]
    assert rows[4:16] == 2 * ["positive ↑", "silence ↓", "noise ↓", "off-screen ↓"] + [
        "positive",  # of FPR: the predicted area, neither better nor worse
        "silence ↓",
        "noise ↓",
        "off-screen ↓",
    ]


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_missing_scores_show_a_dash(missing, tmp_path):
    scores = make_scores(g_miou=missing, audio_blind_floor=missing, miou_noise=missing)
    del scores["fpr_noise"]
    runs = [Run("full", make_scores()), Run("part", scores), Run("part", make_scores(miou_noise=missing))]
    html = report.write_report(tmp_path, runs).read_text(encoding="utf-8")
    rows = table_rows(html)
    assert rows["noise"][0][1:] == ["–", "–"]  # mIoU: no seed has it; no difference either
    assert rows["G-mIoU"][0][1] == "0.774 – · 0.774"  # the mean is of the seeds that have it
    assert not re.search(r"\b(nan|inf|None)\b", re.sub(r'src="[^"]*"', "", html))


def test_only_positive_scores_still_make_a_page(tmp_path):
    scores = {"miou_positive": 0.5, "f_score_positive": 0.6, "fpr_positive": 0.1}
    page = read_page(report.write_report(tmp_path, [Run("m", scores)]))
    assert "under positive audio" in page.text and "G-mIoU: m –." in page.text.replace("  ", " ").replace(" :", ":")


def test_an_extra_condition_is_a_value():
    scores = make_scores(miou_unseen=0.1, f_score_unseen=0.2, fpr_unseen=0.03, g_miou_unseen=0.8)
    scores |= {"miou_mixed": 0.7, "f_score_mixed": 0.75, "fpr_mixed": 0.08, "miou_alone": 1.0}
    table = report.markdown_table([Run("m", scores)])
    assert "| mIoU, unseen ↓ | 0.100 |" in table and "| G-mIoU, unseen ↑ | 0.800 |" in table
    assert "| mIoU, mixed ↑ | 0.700 |" in table and "| FPR, mixed | 0.080 |" in table
    assert "alone" not in table  # no condition: it has no F and no FPR


def test_plain_table_is_ascii_and_aligned():
    runs = [Run("baseline", make_scores(g_miou=v)) for v in (0.5, 0.6)] + [Run("robust", make_scores(g_miou=None))]
    table = report.results_table(runs)
    lines = table.splitlines()
    assert table.isascii()
    assert lines[0].split("  ")[0] == "metric" and lines[0].endswith("baseline (2 seeds)  robust")
    row = next(line for line in lines if line.startswith("G-mIoU "))
    assert row[lines[0].index("baseline") :].startswith("0.550 +/- 0.050")
    assert row[lines[0].index("robust") :] == "-"
    assert sum(not set(line) <= {"-", " "} for line in lines) == 1 + len(make_scores())


def test_markdown_and_latex_tables_escape_names():
    runs = [Run(r"a|b_c*", make_scores()), Run(r"50%_\x", make_scores(g_miou=None))]
    markdown, latex = report.markdown_table(runs), report.latex_table(runs)
    assert markdown.splitlines()[0] == r"| metric | a\|b\_c\* | 50%\_\\x |"
    assert "| G-mIoU ↑ | 0.774 | – |" in markdown
    assert r"metric & a|b\_c* & 50\%\_\textbackslash{}x \\" in latex
    assert r"G-mIoU $\uparrow$ & 0.774 & -- \\" in latex
    assert latex.count(r" \\") == 1 + len(make_scores())


def test_gallery_rule_by_hand():
    # clip: (bias, g_miou). Eight places: two most biased, two best of the rest, two worst, two evenly spread.
    table = {
        "a": (0.9, 0.95),
        "b": (0.1, 0.50),
        "c": (0.8, 0.10),
        "d": (0.2, 0.90),
        "e": (0.3, 0.85),
        "f": (0.0, 0.05),
    }
    table |= {"g": (0.1, 0.20), "h": (0.1, 0.60), "i": (0.1, 0.61), "j": (0.1, 0.62), "k": (np.nan, np.nan)}
    scores = [ClipScore(name, "one", *values) for name, values in table.items()]
    chosen = [(scores[i].clip_id, rule) for i, rule in choose_clips(scores, 8)]
    assert chosen == [
        ("a", "most biased"),
        ("c", "most biased"),
        ("d", "best"),
        ("e", "best"),
        ("f", "worst"),
        ("g", "worst"),
        # b h i j k are left: positions floor(5/4) = 1 and floor(15/4) = 3
        ("h", "evenly spread"),
        ("j", "evenly spread"),
    ]
    shuffled = [scores[i] for i in np.random.default_rng(0).permutation(len(scores))]
    assert [(shuffled[i].clip_id, rule) for i, rule in choose_clips(shuffled, 8)] == chosen


@pytest.mark.parametrize("count, clips", [(12, 5), (3, 7), (0, 4), (12, 0), (4, 4)])
def test_gallery_has_every_place_once(count, clips):
    scores = [ClipScore(str(i), "", 0.5, 0.5) for i in range(clips)]
    chosen = [i for i, _ in choose_clips(scores, count)]
    assert len(set(chosen)) == len(chosen) == min(count, clips)


def test_gallery_shows_each_clips_own_scores(two_models, tmp_path):
    page = read_page(report.write_report(tmp_path / "out", *two_models))
    alts = [image["alt"] for image in page.all("img")]
    about = "clip clipA (dog_barking)"
    assert f"frame 2 of {about}" in alts and f"Ground truth of {about}" in alts
    for sound in ("silence", "noise", "off-screen audio"):
        assert f"baseline on {about}, {sound}: mIoU 1.00" in alts
        assert f"robust on {about}, {sound}: mIoU 0.00, empty mask" in alts
    assert f"robust on {about}, positive audio: mIoU 1.00" in alts


def test_clip_score_is_the_mean_over_frames(tmp_path):
    # Truth 8x8; frame 1: 4x8 of it predicted (1/2), frame 2: all; frame 3: no object, 20 of 320 pixels predicted.
    truths = [square(4, 6, 8), square(4, 6, 8), square(0, 0, 0)]
    half, stripe = square(4, 6, 8), square(0, 0, 0)
    half[10:] = False
    stripe[0, :] = True
    clip = Clip("v", "", [Image.new("RGB", (20, 16))] * 3, [Image.fromarray(t) for t in truths])
    folder = tmp_path / "p" / "positive" / "v"
    folder.mkdir(parents=True)
    for k, mask in enumerate((half, truths[1], stripe), start=1):
        # 127/255 is below one half, 128/255 above
        Image.fromarray(np.where(mask, 128, 127).astype(np.uint8)).save(folder / f"v_{k}.png")
    page = read_page(report.write_report(tmp_path / "out", [Run("m", {}, predictions=tmp_path / "p")], [clip]))
    value = (0.5 + 1 + (1 - 20 / 320)) / 3
    assert f"m on clip v, positive audio: mIoU {value:.2f}" in [image["alt"] for image in page.all("img")]


def test_a_condition_without_predictions_shows_a_dash(two_models, tmp_path):
    runs, clips = two_models
    (tmp_path / "robust" / "noise").rename(tmp_path / "elsewhere")
    page = read_page(report.write_report(tmp_path / "out", runs, clips))
    alts = " ".join(image["alt"] for image in page.all("img"))
    assert "baseline on clip clipA (dog_barking), noise" in alts
    assert "robust on clip clipA (dog_barking), noise" not in alts


@pytest.mark.parametrize("with_category, first", [(True, 0), (False, 1), (False, 0)])
def test_layouts_of_other_codes(with_category, first, tmp_path):
    clip = make_clip("clipA")
    masks = {"positive": square(4, 6, 8), "silence": square(0, 0, 0)}
    folder = save_predictions(tmp_path / "p", clip, masks, with_category, first)
    page = read_page(report.write_report(tmp_path / "out", [Run("m", {}, predictions=folder)], [clip]))
    assert "m on clip clipA (dog_barking), positive audio: mIoU 1.00" in [image["alt"] for image in page.all("img")]


@pytest.mark.slow
def test_clips_are_read_once_and_the_size_is_bounded(tmp_path):
    rng = np.random.default_rng(0)
    truth = square(40, 60, 80, (224, 224))

    def clips():
        for i in range(14):
            coarse = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8))
            clip = make_clip(f"clip{i:02d}", truth=truth, frames=1)
            yield Clip(clip.clip_id, clip.category, [coarse.resize((224, 224))], clip.masks)

    masks = dict.fromkeys(CONDITIONS, truth)
    for i in range(14):
        for name in ("a", "b"):
            save_predictions(tmp_path / name, make_clip(f"clip{i:02d}", truth=truth, frames=1), masks)
    runs = [Run(name, make_scores(), predictions=tmp_path / name) for name in ("a", "b")]
    path = report.write_report(tmp_path / "out", runs, clips())
    assert path.stat().st_size < 8e6
    page = read_page(path)
    # 12 under every sound; under each an equally good one and (under the three negatives) an equally biased one
    assert sum(attrs.get("alt", "").startswith("Ground truth") for attrs in page.all("img")) == 12 + 1 + 3 * 2
    assert "12 of 14 clips" in page.text


def missing_frame(folder):
    (folder / "noise/dog_barking/clipA/clipA_2.png").unlink()


def missing_clip(folder):
    (folder / "noise/dog_barking/clipA").rename(folder / "gone")


def truncated(folder):
    path = folder / "noise/dog_barking/clipA/clipA_2.png"
    path.write_bytes(path.read_bytes()[:40])


def another_size(folder):
    Image.new("L", (16, 20)).save(folder / "noise/dog_barking/clipA/clipA_2.png")


def colour(folder):
    Image.new("RGBA", (20, 16)).save(folder / "noise/dog_barking/clipA/clipA_2.png")


@pytest.mark.parametrize(
    "damage, error, message",
    [
        (missing_frame, FileNotFoundError, r"clipA_2\.png: not found"),
        (missing_clip, FileNotFoundError, r"dog_barking.clipA.clipA_\d\.png: not found"),
        (truncated, ValueError, r"unreadable: .*clipA_2\.png"),
        (another_size, ValueError, r"of another size: .*clipA_2\.png has 16 x 20 pixels, its ground truth 20 x 16"),
        (colour, ValueError, r"of a wrong mode: .*clipA_2\.png is RGBA"),
    ],
)
def test_a_bad_prediction_is_named_and_the_old_page_stays(damage, error, message, two_models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("old")
    damage(tmp_path / "robust")
    with pytest.raises(error, match=message):
        report.write_report(out, *two_models)
    assert [path.name for path in out.iterdir()] == ["index.html"] and (out / "index.html").read_text(
        encoding="utf-8"
    ) == "old"


def test_an_interrupted_write_leaves_the_old_page(two_models, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(out, *two_models)
    assert [path.name for path in out.iterdir()] == ["index.html"] and (out / "index.html").read_text(
        encoding="utf-8"
    ) == "old"


@pytest.mark.parametrize("clip_id, category", [("../x", "c"), ("x", ".."), ("a/b", "c"), ("", "c")])
def test_ids_that_leave_the_folder_are_refused(clip_id, category, tmp_path):
    (tmp_path / "p" / "positive").mkdir(parents=True)
    with pytest.raises(ValueError, match="plain folder name"):
        report.write_report(
            tmp_path / "out", [Run("m", {}, predictions=tmp_path / "p")], [make_clip(clip_id, category)]
        )
    assert not (tmp_path / "out").exists()


def test_no_runs_and_no_masks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        report.write_report(tmp_path, [])
    clip = make_clip("v", frames=0)
    with pytest.raises(ValueError, match="Expected 1 to 0 masks .* clip 'v', got 0"):
        report.write_report(tmp_path, [Run("m", {}, predictions=tmp_path)], [clip])


def write_run(folder, scores=None, log=None, **others):
    folder.mkdir(parents=True)
    results = {"model": "m", "subset": "demo", "split": "test", "scores": scores or make_scores()} | others
    (folder / "results.json").write_text(json.dumps(results))
    if log is not None:
        (folder.parent / "train_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


def test_read_run_finds_scores_log_and_predictions(tmp_path):
    folder = write_run(tmp_path / "run" / "eval", log=[{"step": 1, "loss": 0.5}], versions={"torch": "2.11"})
    (folder / "predictions").mkdir()
    run = report.read_run("robust", folder)
    assert run == Run(
        "robust",
        make_scores(),
        [{"step": 1, "loss": 0.5}],
        folder / "predictions",
        "demo",
        "test",
        {},
        {"torch": "2.11"},
    )
    other = tmp_path / "other.jsonl"
    other.write_text('{"step": 7, "loss": 1}\n\n')
    assert report.read_run("robust", folder, other).log == [{"step": 7, "loss": 1}]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not valid JSON"),
        ("\xff", "not valid JSON"),
        ("[]", "expected"),
        ('{"scores": 1}', "expected"),
        ('{"scores": {"g_miou": "high"}}', r"scores\['g_miou'\], got 'high'"),
        ('{"scores": {"g_miou": true}}', r"scores\['g_miou'\], got True"),
        ('{"scores": {}, "settings": 3}', "an object for settings, got 3"),
    ],
)
def test_bad_results_name_the_file(text, message, tmp_path):
    (tmp_path / "results.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"results\.json: .*{message}"):
        report.read_run("m", tmp_path)


def test_missing_results_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json: not found"):
        report.read_run("m", tmp_path)


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"loss": 1}', b'{"step": "3"}', b"\xff"])
def test_bad_log_lines_are_named(line, tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "train_log.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"train_log\.jsonl, line 2"):
        report.read_run("m", folder)


def test_curves_keep_the_later_line_of_a_resumed_step():
    log = [{"step": 2, "loss": 9.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "loss": None}]
    log += [{"step": 3, "validation": {"g_miou": float("nan")}}, {"step": 4, "validation": {"g_miou": 0.5}}]
    steps, values = chart_sections._curve(log, "loss", None)
    assert steps.tolist() == [1, 2] and values.tolist() == [3, 2]
    steps, values = chart_sections._curve(log, "g_miou", "validation")
    assert steps.tolist() == [4] and values.tolist() == [0.5]


def test_mean_curve_by_hand():
    # Steps 0..4 and 2..6: both are known from 2 to 4; the second has no value at 3, so it is read off its line.
    first = (np.array([0.0, 2, 3, 4]), np.array([0.0, 2, 3, 4]))
    second = (np.array([2.0, 4, 6]), np.array([4.0, 8, 12]))
    steps, values = charts._mean_curve([first, second])
    assert steps.tolist() == [2, 3, 4] and values.tolist() == [3, 4.5, 6]


def test_long_logs_are_averaged_in_bins():
    steps, values = charts._thin(np.arange(1000), np.arange(1000))
    assert len(steps) == charts.MAX_POINTS and steps[0] == 2 and values[-1] == 997


def test_tiles_show_prediction_and_truth():
    frame = overlay.fit_tile(Image.new("RGB", (28, 56), (100, 100, 100)))
    assert frame.size == (112, 224)  # longer side at 224
    truth, predicted = np.zeros((2, 56, 28), bool)
    truth[5:20, 5:20] = True
    predicted[30:50, 5:20] = True
    tile = np.asarray(overlay.prediction_tile(frame, predicted * np.uint8(255), truth, "#0072B2"))
    red, _, blue = tile[160, 50].astype(int)  # inside the prediction
    assert blue > red + 60
    assert np.ptp(tile[50, 50].astype(int)) == 0  # inside the truth, not predicted: untinted
    assert (tile == 255).all(-1).any(0).nonzero()[0].min() in range(17, 22)  # the white outline begins at x = 5 * 4
    spot = np.asarray(overlay.truth_tile(frame, truth))
    assert spot[50, 50].tolist() == [100] * 3 and spot[160, 50].tolist() == [30] * 3


def test_the_gallery_outlines_what_the_metric_scores(tmp_path):
    truth = square(4, 6, 8)
    indices = truth.astype(np.uint8)
    indices[:3] = 2
    palettes = {"black/white/black": [0, 0, 0, 255, 255, 255, 0, 0, 0], "black/black": [0, 0, 0, 0, 0, 0]}
    masks = {"1-bit": Image.fromarray(truth), "0 and 1": Image.fromarray(truth.astype(np.uint8))}
    masks["dark"] = Image.fromarray(truth[..., None] * np.array([0, 0, 1], np.uint8))
    for name, palette in palettes.items():
        masks[name] = Image.fromarray(indices if name == "black/white/black" else truth.astype(np.uint8))
        masks[name].putpalette(palette)
    for name, mask in masks.items():
        mask.save(tmp_path / "mask.png")
        clip = Clip("c", "", [Image.new("RGB", mask.size)], [Image.open(tmp_path / "mask.png")])
        (scored,) = read_masks([tmp_path / "mask.png"])
        outlined = gallery._score_clip(clip, {}, [], {}).truth
        assert (outlined == truth).all(), name
        assert (outlined == (np.asarray(Image.open(io.BytesIO(scored)).convert("L")) > 0)).all(), name


def test_charts_take_any_name_and_missing_values():
    svg = charts.bar_chart("$x", ["a", "b"], {"_$\\no$": [[np.nan], [0.5, 0.7]], "": [[], [0.0]]}, digits=2)
    assert b"<svg" in svg
    curve = (np.array([1.0]), np.array([-0.5]))
    assert b"<svg" in charts.curve_chart("t", {"_$\\no$": [curve]})
    assert not charts._legend_label("_hidden").startswith("_")


def test_photographs_are_jpeg_and_open():
    uri = overlay.data_uri(Image.new("RGB", (5, 4), (200, 30, 60)))
    kind, data = uri.split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg" and image.size == (5, 4) and image.getpixel((2, 2))[0] > 180


def write_gallery(folder, clip):
    entry = {"clip_id": clip.clip_id, "category": clip.category, "frames": [], "masks": []}
    for k, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
        frame.save(folder / f"f{k}.png")
        mask.save(folder / f"m{k}.png")
        entry["frames"].append(f"f{k}.png")
        entry["masks"].append(f"m{k}.png")
    path = folder / "gallery.json"
    path.write_text(json.dumps([entry]))
    return path


def test_command_writes_page_and_tables(tmp_path, capsys):
    clip = make_clip("clipA")
    for seed in (0, 1):
        folder = write_run(tmp_path / f"b{seed}" / "eval", make_scores(g_miou=0.5 + 0.1 * seed))
        save_predictions(folder / "predictions", clip, {"positive": square(4, 6, 8)})
    robust = write_run(tmp_path / "r" / "eval", log=[{"step": 1, "loss": 0.5}])
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 5, "loss": 0.25}\n')
    arguments = [f"--run=baseline={tmp_path / 'b0' / 'eval'}", f"--run=baseline={tmp_path / 'b1' / 'eval'}"]
    arguments += [f"--run=robust={robust}", f"--log=baseline={log}", f"--gallery={write_gallery(tmp_path, clip)}"]
    main([*arguments, f"--out={tmp_path / 'out'}", "--note", "One note."])
    printed = capsys.readouterr().out
    assert "0.550 +/- 0.050" in printed and printed.rstrip().endswith("index.html")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["index.html", "table.md", "table.tex"]
    page = read_page(tmp_path / "out" / "index.html")
    alts = " ".join(image["alt"] for image in page.all("img"))
    assert "baseline ends at 0.250 after 5 steps; robust ends at 0.500 after 1 steps" in alts
    assert "baseline on clip clipA" in alts and "One note." in page.text


@pytest.mark.parametrize("value", ["baseline", "=dir", "baseline="])
def test_command_refuses_run_without_name_or_path(value, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--run", value, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert f"expected NAME=PATH, got {value!r}" in capsys.readouterr().err


def test_command_reports_errors_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([f"--run=a={tmp_path}", f"--out={tmp_path / 'out'}"])
    message = capsys.readouterr().err
    assert stop.value.code == 1 and message.startswith("avs-report: ") and message.count("\n") == 1
    assert not (tmp_path / "out").exists()
    folder = write_run(tmp_path / "run")
    with pytest.raises(SystemExit):
        main([f"--run=a={folder}", f"--out={tmp_path / 'out'}", f"--log=b={tmp_path / 'x'}"])
    assert "--log b: 1 given, but 0 --run of this name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, message",
    [("{}", "expected a list"), ("[", "not valid JSON"), ('[{"clip_id": "a"}]', "entry 0"), ("[1]", "entry 0")],
)
def test_bad_gallery_files_are_named(text, message, tmp_path):
    path = tmp_path / "gallery.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"gallery\.json: .*{message}"):
        list(report.read_gallery(path))


def test_missing_gallery_frames_are_named(tmp_path):
    path = write_gallery(tmp_path, make_clip("clipA"))
    (tmp_path / "f1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"f1\.png: not found"):
        list(report.read_gallery(path))


def test_settings_say_where_runs_differ(tmp_path):
    runs = [Run("m", {}, settings={"seed": s, "optimizer": {"lr": 0.1}}, versions={"torch": "2"}) for s in (3, 4)]
    html = report.write_report(tmp_path, runs, settings={"steps": 600}).read_text(encoding="utf-8")
    for key, value in (("steps", "600"), ("optimizer.lr", "0.1"), ("versions.torch", "2")):
        assert f'<tr><th scope="row">{key}</th><td>{value}</td></tr>' in html
    assert '<th scope="col">m #1</th><th scope="col">m #2</th>' in html
    assert '<tr><th scope="row">seed</th><td>3</td><td>4</td></tr>' in html


def make_rows(clips=8, seed=0, conditions=CONDITIONS, positive=0.8, negative=0.3):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(clips):
        row = {"clip_id": f"clip{i}", "category": ("dog_barking", "playing_piano")[i % 2], "source_video": f"v{i}"}
        row |= {"group": ("animal", "music")[i % 2], "mask_area": [0.01 * (i + 1)] * 2, "conditions": {}}
        for condition in conditions:
            centre = negative if condition in CONDITIONS[1:] else positive
            iou = np.clip(centre + 0.1 * rng.normal(size=2), 0, 1)
            row["conditions"][condition] = {
                "iou": iou.tolist(),
                "area": (iou / 10).tolist(),
                "f_score": float(iou.mean()),
                "fpr_curve": [float(iou.mean() * (1 - t / 10)) for t in range(11)],
                "similarity": (rng.normal(size=2) + (condition == "positive")).tolist(),
            }
        rows.append(row)
    return rows


def scores_of(rows, **options):
    return uncertainty.run_scores(rows, **options)


def write_rows(folder, rows, **others):
    """results.json and clips.jsonl as evaluate_accelerate.py writes them."""
    scores = {k: v for k, v in scores_of(rows).items() if "auroc" not in k}
    write_run(folder, scores, clips_file="clips.jsonl", **others)
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_score_has_its_interval(tmp_path):
    similar = {c: scores_of(make_rows())[f"similarity_auroc_{c}"] for c in CONDITIONS[1:]}
    run = report.read_run("m", write_rows(tmp_path / "run", make_rows(), similarity_auroc=similar))
    html = report.write_report(tmp_path / "out", [run]).read_text(encoding="utf-8")
    rows, bounds = table_rows(html), uncertainty.intervals(make_rows())
    low, high = bounds["g_miou"]
    assert rows["G-mIoU"] == [[f"{run.scores['g_miou']:.3f} [{low:.3f}, {high:.3f}]"]]
    assert f"95 % interval {low:.3f} to {high:.3f}; audio-blind floor" in html
    cells = [cell for found in rows.values() for found_cells in found for cell in found_cells]
    # of each condition mIoU, F, FPR; G-mIoU, G-F, G-FPR, floor; G-mIoU, G-F and AUROC of three negatives
    assert len(cells) == 3 * 4 + 4 + 3 * 3 and all(re.search(r" \[.*, .*\]$", cell) for cell in cells)
    assert "95 % bootstrap over 8 clips of 8 source videos, 10000 resamples" in html
    for table, text in ((report.markdown_table([run]), "| G-mIoU ↑ | {} [{}, {}] |"),):
        assert text.format(f"{run.scores['g_miou']:.3f}", f"{low:.3f}", f"{high:.3f}") in table
    latex = report.latex_table([run])
    assert rf"G-mIoU $\uparrow$ & {run.scores['g_miou']:.3f} {{\scriptsize [{low:.3f}, {high:.3f}]}} \\" in latex
    assert f"{run.scores['g_miou']:.3f} [{low:.3f}, {high:.3f}]" in report.results_table([run])


def test_intervals_of_results_json_are_shown_as_they_are(tmp_path):
    made = {"intervals": {"g_miou": [0.111, 0.999]}, "bootstrap": {"resamples": 7, "level": 0.9, "clusters": 3}}
    run = report.read_run("m", write_run(tmp_path / "run", **made))
    html = report.write_report(tmp_path / "out", [run]).read_text(encoding="utf-8")
    assert table_rows(html)["G-mIoU"] == [["0.774 [0.111, 0.999]"]]
    assert "90 % bootstrap over ? clips of 3 source videos, 7 resamples" in html


@pytest.mark.slow
def test_the_difference_of_two_models_is_paired(tmp_path):
    better = make_rows(20)
    for row in better:  # each clip by the same amount
        row["conditions"]["positive"]["iou"] = [v - 0.05 for v in row["conditions"]["positive"]["iou"]]
    runs = [report.read_run(n, write_rows(tmp_path / n, rows)) for n, rows in (("a", make_rows(20)), ("b", better))]
    rows = table_rows(report.write_report(tmp_path / "out", runs).read_text(encoding="utf-8"))
    # Equal in all 20 clips, which up to 1 - 0.025^(1/20) of other clips may not be.
    assert rows["silence"][0][2] == "+0.000 [−0.168, +0.168] may be chance"
    assert rows["positive"][0][2] == "−0.050 [−0.050, −0.050] stands"
    assert rows["G-mIoU"][0][2].endswith(" stands")
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "The primary score is G-mIoU; its difference stands. Of the 22 others that can be better 4 stand" in html
    assert "corrected for their number (Holm)" in html and "Training seeds are not covered" in html
    fewer = report.read_run("b", write_rows(tmp_path / "fewer", make_rows(5)))
    rows = table_rows(report.write_report(tmp_path / "out", [runs[0], fewer]).read_text(encoding="utf-8"))
    assert len(rows["positive"][0]) == 2  # other clips: no column of differences


def test_charts_say_their_numbers_in_words(tmp_path):
    rows = make_rows()
    page = read_page(report.write_report(tmp_path / "out", [report.read_run("m", write_rows(tmp_path / "run", rows))]))
    alts = [image["alt"] for image in page.all("img")]
    assert {attrs["id"] for attrs in page.all("section")} >= {"thresholds", "categories", "parts"}
    curve = np.mean([row["conditions"]["noise"]["fpr_curve"] for row in rows], axis=0)
    shown = next(alt for alt in alts if "Under noise" in alt)
    assert f"above 0 {curve[0]:.3f}, above 0.1 {curve[1]:.3f}" in shown and f"above 1 {curve[10]:.3f}" in shown
    dogs = scores_of([row for row in rows if row["category"] == "dog_barking"])["g_miou"]
    shown = next(alt for alt in alts if alt.startswith("Bar chart by category. G-mIoU"))
    assert f"dog_barking {dogs:.2f}" in shown
    shown = next(alt for alt in alts if "G-mIoU by semantic group" in alt)
    assert f"animal {dogs:.2f}" in shown
    # eight clips of areas 1 % to 8 %: quarters of two
    small = scores_of(rows[:2])["g_miou"]
    assert f"Q1: 0.01 to 0.02 {small:.2f}, Q2: 0.03 to 0.04" in next(
        alt for alt in alts if "by size of the object" in alt
    )
    second = [float(np.mean([row["conditions"][c]["iou"][1] for row in rows])) for c in CONDITIONS]
    p, n = second[0], np.mean(second[1:])
    assert f"2 {2 * p * (1 - n) / (p + 1 - n):.2f}" in next(alt for alt in alts if "by frame" in alt)


def test_a_clip_on_the_edge_belongs_to_the_smaller_quarter():
    run = Run("m", {}, clips=make_rows(5))  # 1 % to 5 %: the quartiles are clips
    found = chart_sections._part_scores([run], "mask_area")
    assert list(found) == ["Q1: 0.01 to 0.02", "Q2: 0.03 to 0.03", "Q3: 0.04 to 0.04", "Q4: 0.05 to 0.05"]


def test_breakdown_and_curves_of_results_json_are_enough(tmp_path):
    values = {"g_miou": 0.5, "miou_positive": 0.25, "g_fpr": None}
    parts = {"category": {"dog": values, "cat": {**values, "g_miou": 0.75}}, "frame": {"1": values, "2": values}}
    curve = {"thresholds": [0, 0.5, 1], "silence": [0.9, 0.125, 0]}
    run = report.read_run("m", write_run(tmp_path / "run", breakdown=parts, fpr_curve=curve))
    alts = [image["alt"] for image in read_page(report.write_report(tmp_path / "out", [run])).all("img")]
    assert "Bar chart by category. G-mIoU ↑. m: cat 0.75, dog 0.50." in alts
    assert any("above 0 0.900, above 0.5 0.125, above 1 0.000" in alt for alt in alts)
    assert not any("G-FPR" in alt for alt in alts if "category" in alt)


def test_extra_figures_are_rows(tmp_path):
    extra = {"unseen": {"miou": 0.1, "f_score": 0.2, "fpr": 0.03, "clips": 8, "g_miou": 0.8}}
    extra |= {f"noise_snr_{k}": {"miou": 0.5 + k / 100, "f_score": 0.5, "fpr": 0.1} for k in (10, -5, 0)}
    run = report.read_run(
        "m", write_run(tmp_path / "run", extra_conditions=extra, similarity_auroc={"noise": 0.75, "silence": None})
    )
    table = report.markdown_table([run])
    assert "| mIoU, unseen ↓ | 0.100 |" in table and "| G-mIoU, unseen ↑ | 0.800 |" in table
    assert "| Similarity AUROC, noise ↑ | 0.750 |" in table and "| Similarity AUROC, silence ↑ | – |" in table
    none = report.read_run("m", write_run(tmp_path / "none", similarity_auroc={"noise": None}))  # no similarity head
    assert "AUROC" not in report.markdown_table([none])
    sweep = [line.split(" |")[0] for line in table.splitlines() if " dB" in line and "mIoU" in line]
    assert sweep == [f"| mIoU, noise at {k} dB ↑" for k in (-5, 0, 10)]
    alts = [image["alt"] for image in read_page(report.write_report(tmp_path / "out", [run])).all("img")]
    said = "Line chart over the signal-to-noise ratio. mIoU with the own sound and noise ↑. m: "
    assert f"{said}-5 dB 0.45, 0 dB 0.50, 10 dB 0.60." in alts


def test_shared_source_videos_are_a_note(tmp_path):
    shared = {"source_videos": 219, "in_several_splits": 56, "by_split": {"train": 51, "val": 30, "test": 29}}
    run = report.read_run("m", write_run(tmp_path / "run", source_videos=shared))
    page = read_page(report.write_report(tmp_path / "out", [run]))
    assert "56 of 219 source videos have clips in more than one split, 29 of those in the test split" in page.text


def test_hostile_rows_are_shown_and_not_run(tmp_path):
    evil = '"><script>alert(1)</script>$x_1$'
    rows = make_rows()
    for i, row in enumerate(rows):
        row["clip_id"], row["category"], row["group"] = f"{evil}{i}", f"{evil}{i % 2}", f"{evil}{i % 2}"
    page = read_page(report.write_report(tmp_path / "out", [report.read_run("m", write_rows(tmp_path / "run", rows))]))
    assert "script" not in {tag for tag, _ in page.tags}
    assert any(evil in image["alt"] for image in page.all("img") if "category" in image["alt"])


NESTED = json.loads("[" * 40 + "]" * 40)


def test_json_that_no_parser_can_hold_is_named(tmp_path):
    (tmp_path / "results.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"results\.json: (expected at most 32 objects|not valid JSON)"):
        report.read_run("m", tmp_path)


@pytest.mark.parametrize(
    "others, message",
    [
        ({"intervals": {"g_miou": [1]}}, r"at least 2 numbers for intervals\['g_miou'\], got \[1\]"),
        ({"breakdown": {"category": [1]}}, r"an object for breakdown\['category'\], got \[1\]"),
        (
            {"breakdown": {"category": {"dog": {"g_miou": "x"}}}},
            r"breakdown\['category'\]\['dog'\]\['g_miou'\], got 'x'",
        ),
        ({"fpr_curve": {"silence": [0.1]}}, "equally long lists"),
        ({"similarity_auroc": {"noise": "high"}}, r"similarity_auroc\['noise'\], got 'high'"),
        ({"source_videos": {"by_split": {}}}, r"a value for source_videos\['source_videos'\], got nothing"),
        ({"intervals": {"g_miou": [0.9, 0.1]}}, r"\[low, high\] for intervals\['g_miou'\], got \[0.9, 0.1\]"),
        ({"scores": {"miou_positive": 1.5}}, r"a number from 0 to 1 for scores\['miou_positive'\], got 1.5"),
        ({"scores": {"clips_positive": -1}}, r"at least 0 for scores\['clips_positive'\], got -1"),
        ({"breakdown": {"frame": {"1": {"g_miou": -0.1}}}}, r"breakdown\['frame'\]\['1'\]\['g_miou'\], got -0.1"),
        ({"fpr_curve": {"thresholds": [0.5], "silence": [7]}}, "less than or equal to 1"),
        ({"settings": {"a": NESTED}}, "at most 32 objects and lists"),
        ({"clips_file": "../run2/clips.jsonl"}, "a file of its own folder for 'clips_file', got '.*run2/clips.jsonl'"),
        ({"scores": {"g_miou": -5}}, r"a number from 0 to 1 for scores\['g_miou'\], got -5"),
        ({"scores": {"g_miou": 10**400}}, r"a valid number for scores\['g_miou'\], got 1000"),
        ({"bootstrap": {"resamples": 10**400}}, r"for bootstrap\['resamples'\], got 1000"),
        ({"settings": {"seed": 10**400}}, r"for settings\['seed'\], got 1000"),
        ({"settings": {"conditions": "positive"}}, r"a list for settings\['conditions'\], got 'positive'"),
        ({"subset": 4}, "text for subset, got 4"),
        ({"clips_file": "/etc/passwd"}, "a file of its own folder for 'clips_file'"),
        ({"bootstrap": {"level": "most"}}, r"bootstrap\['level'\], got 'most'"),
    ],
)
def test_bad_details_name_the_file(others, message, tmp_path):
    with pytest.raises(ValueError, match=rf"results\.json: .*{message}"):
        report.read_run("m", write_run(tmp_path / "run", **others))


def test_a_copy_of_results_json_alone_is_enough(tmp_path):
    folder = write_rows(tmp_path / "run", make_rows())
    (folder / "clips.jsonl").unlink()
    run = report.read_run("m", folder)
    assert run.clips == () and "G-mIoU" in report.results_table([run])
    assert "[" not in report.results_table([run])


def write_download(folder, rows, truth, subset="s4"):
    frame = Image.new("RGB", truth.shape[::-1], (90, 140, 60))
    for row in rows:
        name = row["clip_id"]
        for k in range(1, 6):
            if subset == "s4":
                media, inner = folder / "Single-source" / "s4_data", f"test/{row['category']}/{name}"
                paths = [media / part / inner / f"{name}_{k}.png" for part in ("visual_frames", "gt_masks")]
            else:
                media = folder / "Multi-sources" / "ms3_data"
                paths = [media / "visual_frames" / name / f"{name}.mp4_{k}.png"]
                paths.append(media / "gt_masks" / "test" / name / f"{name}_{k}.png")
            for path, image in zip(paths, (frame, Image.fromarray(truth)), strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)


def gallery_rows():
    """Three clips; what each is best, worst or most biased in differs by condition."""
    table = {
        # positive, silence, noise, off_screen
        "a": (0.90, 0.95, 0.00, 0.10),
        "b": (0.50, 0.10, 0.90, 0.20),
        "c": (0.70, 0.20, 0.10, 0.85),
    }
    rows = []
    for name, values in table.items():
        conditions = {c: {"iou": [v], "area": [0.1], "f_score": None} for c, v in zip(CONDITIONS, values, strict=True)}
        rows.append({"clip_id": name, "category": "dog", "source_video": name, "conditions": conditions})
    return rows


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_gallery_of_each_condition_from_the_download(subset, tmp_path):
    """The clips' scores come from clips.jsonl, the pictures from the download and the predictions."""
    rows, truth = gallery_rows(), square(4, 6, 8)
    folder = write_rows(tmp_path / "run", rows, subset=subset)
    write_download(tmp_path / "data", rows, truth, subset)
    for row in rows:
        clip = make_clip(row["clip_id"], "dog", truth, frames=5)
        save_predictions(folder / "predictions", clip, dict.fromkeys(CONDITIONS, truth), with_category=subset == "s4")
    main([f"--run=m={folder}", f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"])
    html = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    chosen = {}
    for part in html.split('<div class="condition">')[1:]:
        condition = re.search(r"<h3>Under (.*?)</h3>", part)[1]
        chosen[condition] = re.findall(r'<b class="rule">(.*?)</b> (\w)', part)
    assert chosen == {
        "positive audio": [("best", "a"), ("worst", "b")],
        # most biased by hand; of the two others the better and the worse harmonic mean of P and 1 - N:
        "silence": [("most biased", "a"), ("best", "c"), ("worst", "b")],  # c 0.747, b 0.643
        "noise": [("most biased", "b"), ("best", "a"), ("worst", "c")],  # a 0.947, c 0.788
        "off-screen audio": [("most biased", "c"), ("best", "a"), ("worst", "b")],  # a 0.900, b 0.615
    }
    alts = [image["alt"] for image in Page(html).all("img")]
    assert "m on clip a (dog), silence: mIoU 0.95" in alts  # of the clips file: the saved masks would have 1.00


def test_clips_are_named_where_there_are_no_pictures(tmp_path):
    runs = [report.read_run("m", write_rows(tmp_path / "run", gallery_rows()))]
    html = report.write_report(tmp_path / "out", runs).read_text(encoding="utf-8")
    part = html[html.index("<h3>Under silence<") : html.index("<h3>Under noise<")]
    assert re.findall(r'<b class="rule">(.*?)</b> (\w)', part) == [("most biased", "a"), ("best", "c"), ("worst", "b")]
    assert "mIoU: m 0.95" in part and "--data_dir" in html and 'class="gallery"' not in html


def test_predictions_elsewhere_are_named_on_the_command_line(tmp_path, capsys):
    rows, truth = gallery_rows()[:1], square(4, 6, 8)
    folder = write_rows(tmp_path / "run", rows)
    write_download(tmp_path / "data", rows, truth)
    save_predictions(tmp_path / "masks", make_clip("a", "dog", truth, frames=5), {"positive": truth})
    arguments = [f"--run=m={folder}", f"--data_dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"]
    main([*arguments, f"--predictions=m={tmp_path / 'masks'}"])
    alts = [image["alt"] for image in read_page(tmp_path / "out" / "index.html").all("img")]
    assert "m on clip a (dog), positive audio: mIoU 0.90" in alts
    for wrong, message in (("x=" + str(tmp_path), "no --run of this name"), (f"m={tmp_path / 'no'}", "not a folder")):
        with pytest.raises(SystemExit):
            main([*arguments, f"--predictions={wrong}"])
        assert message in capsys.readouterr().err


def test_a_download_that_lacks_a_clip_is_named(tmp_path):
    rows = gallery_rows()
    run = report.read_run("m", write_rows(tmp_path / "run", rows, subset="s4"))
    with pytest.raises(FileNotFoundError, match="s4_data: not found"):
        list(report.read_download(tmp_path, run))
    write_download(tmp_path, rows[:2], square(4, 6, 8))
    with pytest.raises(FileNotFoundError, match=r"dog.c: no masks found. Expected those of clip 'c'"):
        list(report.read_download(tmp_path, run))
    (tmp_path / "Single-source/s4_data/visual_frames/test/dog/a/a_4.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"a_4\.png: not found"):
        list(report.read_download(tmp_path, run))
    with pytest.raises(ValueError, match="clips.jsonl beside the results of 'x'"):
        list(report.read_download(tmp_path, Run("x", {})))


@pytest.mark.slow
def test_hundreds_of_categories_are_cut_to_the_largest(tmp_path):
    rows = make_rows(80)
    for i, row in enumerate(rows):
        row["category"] = f"kind{min(i, 60):02d}"  # the last has 20 clips, the others one
    page = read_page(report.write_report(tmp_path / "out", [report.read_run("m", write_rows(tmp_path / "run", rows))]))
    shown = next(i["alt"] for i in page.all("img") if i["alt"].startswith("Bar chart by category. G-mIoU"))
    assert len(re.findall(r"kind\d\d ", shown)) == 30 and "kind60" in shown
    assert "The 30 categories with most clips of 61" in page.text


def save_pngs(folder, clip, image, first=1):
    target = folder / "positive" / clip.clip_id
    target.mkdir(parents=True)
    for k in range(len(clip.masks)):
        image.save(target / f"{clip.clip_id}_{k + first}.png")


@pytest.mark.parametrize("form", ["palette", "0 and 1", "1 bit"])
def test_the_gallery_reads_masks_as_the_evaluator_does(form, tmp_path):
    """Masks that the evaluator accepts are drawn, and not as empty ones under the right number."""
    clip, truth = make_clip("a", "dog"), square(4, 6, 8)
    image = Image.fromarray(truth if form == "1 bit" else truth.astype(np.uint8))
    if form == "palette":
        image.putpalette([0, 0, 0, 128, 0, 0])
    settings = {"grey_of_one": 1} if form == "0 and 1" else {}
    run_folder = write_run(tmp_path / "run", settings=settings)
    save_pngs(run_folder / "predictions", clip, image, first=0)
    run = report.read_run("m", run_folder)
    alts = [i["alt"] for i in read_page(report.write_report(tmp_path / "out", [run], [clip])).all("img")]
    assert "m on clip a (dog), positive audio: mIoU 1.00" in alts  # nor "empty mask"


def test_grey_of_one_is_checked(tmp_path):
    with pytest.raises(ValueError, match=r"results\.json: expected 1 or 255 for settings\['grey_of_one'\], got 7"):
        report.read_run("m", write_run(tmp_path / "run", settings={"grey_of_one": 7}))


def test_most_clips_say_where_frames_are_counted_from(tmp_path):
    """A stray file of one clip looks like counting from 0; the condition counts from 1, as the evaluator decides."""
    clips = [make_clip(name, "dog") for name in "abc"]
    for clip in clips:
        save_pngs(tmp_path / "p", clip, Image.fromarray(square(4, 6, 8)))
    Image.fromarray(square(0, 0, 3)).save(tmp_path / "p/positive/a/a_0.png")
    run = Run("m", {}, predictions=tmp_path / "p")
    alts = [i["alt"] for i in read_page(report.write_report(tmp_path / "out", [run], clips)).all("img")]
    assert "m on clip a (dog), positive audio: mIoU 1.00" in alts


def pictures(html, about):
    """SVG text of the charts whose alternative text holds `about`."""
    found = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]*)" alt="([^"]*)"', html)
    return [base64.b64decode(data).decode().lower() for data, alt in found if about in alt]


def test_a_model_keeps_its_colour_where_another_has_no_curve(tmp_path):
    curve = {"thresholds": [0, 0.5, 1], "silence": [0.9, 0.5, 0]}
    both, one = curve | {"noise": [0.8, 0.4, 0]}, curve
    validation = {"step": 2, "validation": {"g_miou": 0.5}}
    runs = [
        Run("none", make_scores(), [{"step": 2, "loss": 1.0}]),
        Run("one", make_scores(), [{"step": 2, "loss": 1.0}], fpr_curve=one),
        Run("both", make_scores(), [validation, {"step": 3, "validation": {"g_miou": 0.6}}], fpr_curve=both),
    ]
    for k in (0, 5):
        runs[1].scores.update({f"{key}_noise_snr_{k}": 0.5 for key in ("miou", "f_score", "fpr")})
    html = report.write_report(tmp_path, runs).read_text(encoding="utf-8")
    first, second, third = (color.lower() for color in overlay.COLORS[:3])
    for about, present in (
        ("Under silence:", {second, third}),
        ("Under noise:", {third}),
        ("Validation G-mIoU", {third}),
        ("Training loss", {first, second}),
        ("over the signal-to-noise ratio", {second}),
    ):
        (svg,) = pictures(html, about)
        assert {color for color in (first, second, third) if color in svg} == present, about
    assert "Under noise: part of the frame predicted. both: above 0 0.800" in html


@pytest.mark.parametrize("groups", [1, 2])
def test_models_without_a_bar_keep_their_room(groups, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "_svg", drawn.append)
    values = {"a": [[0.5]] * groups, "b": [[np.nan]] * groups, "c": [[]] * groups}
    charts.bar_chart("t", ["0 dB", "5 dB"][:groups], values, digits=2)
    assert drawn[0].axes[0].get_xlim() == (-0.5, groups - 0.5)


@pytest.mark.slow
def test_an_extra_condition_of_one_model_leaves_the_intervals(tmp_path):
    extra = make_rows(conditions=(*CONDITIONS, "unseen"))
    plain = [{**row, "conditions": {c: row["conditions"][c] for c in CONDITIONS}} for row in make_rows(seed=1)]
    runs = [report.read_run(n, write_rows(tmp_path / n, rows)) for n, rows in (("a", extra), ("b", plain))]
    rows = table_rows(report.write_report(tmp_path / "out", runs).read_text(encoding="utf-8"))
    found = {d.metric: d for d in compare_rows(extra, plain)}["g_miou"]
    difference, low, high = (float(v) for v in re.findall(r"[+-][\d.]+", rows["G-mIoU"][0][2].replace("−", "-")))
    assert (difference, low, high) == pytest.approx((found.difference, found.low, found.high), abs=5e-4)
    assert rows["unseen"][0][1:] == ["–", "–"]
    without = [{**row, "conditions": {"positive": row["conditions"]["positive"]}} for row in plain]
    runs[1] = Run("b", {**runs[1].scores, "miou_silence": None}, clips=without)
    rows = table_rows(report.write_report(tmp_path / "out", runs).read_text(encoding="utf-8"))
    assert "[" not in rows["G-mIoU"][0][2]  # means over other conditions: nothing to pair


def compare_rows(a, b):
    common = [{**row, "conditions": {c: row["conditions"][c] for c in CONDITIONS}} for row in a]
    return uncertainty.compare([common], [b])


@pytest.mark.slow
def test_a_small_difference_is_shown_at_its_size(tmp_path):
    better, equal = make_rows(), make_rows()
    for rows, shift in ((better, 0.0002), (equal, -1e-9)):
        for row in rows:
            row["conditions"]["silence"]["iou"] = [v + shift for v in row["conditions"]["silence"]["iou"]]
    a, b, c = (
        report.read_run(n, write_rows(tmp_path / n, rows))
        for n, rows in (("a", make_rows()), ("b", better), ("c", equal))
    )
    rows = table_rows(report.write_report(tmp_path / "b_", [a, b]).read_text(encoding="utf-8"))
    assert rows["silence"][0][2] == "+0.00020 [+0.00020, +0.00020] may be chance"
    rows = table_rows(report.write_report(tmp_path / "c_", [a, c]).read_text(encoding="utf-8"))
    assert rows["silence"][0][2] == "+0.000 [+0.000, +0.000] may be chance"


def test_clips_that_are_all_equal_are_not_called_best_or_worst(tmp_path):
    rows = gallery_rows()
    for row in rows:
        row["conditions"]["positive"]["iou"] = [0.9]
        row["conditions"]["silence"]["iou"] = [0.0]
    runs = [report.read_run("m", write_rows(tmp_path / "run", rows))]
    html = report.write_report(tmp_path / "out", runs).read_text(encoding="utf-8")
    chosen = {}
    for part in html.split('<div class="condition">')[1:]:
        condition = re.search(r"<h3>Under (.*?)</h3>", part)[1]
        chosen[condition] = re.findall(r'<b class="rule">(.*?)</b> (\w)', part)
    assert chosen["positive audio"] == [("equally good", "a")]
    assert chosen["silence"] == [("equally biased", "a"), ("equally good", "b")]
    assert chosen["noise"] == [("most biased", "b"), ("best", "a"), ("worst", "c")]
    assert html.count("so it is on all 3 clips, of which this is the first by name") == 3


def test_equal_clips_of_the_gallery_say_so(tmp_path):
    hit = square(4, 6, 8)
    for name in "abcd":
        save_predictions(tmp_path / "p", make_clip(name), dict.fromkeys(CONDITIONS, hit))
    runs = [Run("m", make_scores(), predictions=tmp_path / "p")]
    html = report.write_report(tmp_path / "out", runs, map(make_clip, "abcd")).read_text(encoding="utf-8")
    assert "Where all clips are equal, the first by name are taken." in html
    why = re.findall(r'<span class="why">([^<]*)</span>', html[html.index('class="gallery"') :])
    assert why[0] == "by name: all clips are equal; m has a mean mIoU of 1.00 under negative audio"
    assert why[1] == why[2] == "by name: all clips are equal; m has a G-mIoU of 0.00" and why[3] == "evenly spread"


def test_the_headline_counts_extra_conditions(tmp_path):
    extra = {f"noise_snr_{k}": {"miou": 0.5, "f_score": 0.5, "fpr": 0.1} for k in range(5)}
    run = report.read_run("m", write_run(tmp_path / "run", extra_conditions=extra))
    text = read_page(report.write_report(tmp_path / "out", [run])).text
    assert "test under positive, silence, noise, off-screen audio and 5 more conditions: does a model" in text


def test_cells_name_their_column_for_narrow_screens(tmp_path):
    runs = [Run('"><b>', make_scores()), Run("second", make_scores())]
    page = read_page(report.write_report(tmp_path, runs))
    labels = [attrs["data-label"] for attrs in page.all("td") if "data-label" in attrs]
    assert labels == ['"><b>', "second", "difference"] * len(make_scores())


def test_masks_of_another_run_are_not_shown(two_models, tmp_path):
    runs, clips = two_models
    runs = [
        replace(
            run,
            settings={"conditions": list(CONDITIONS)},
            predictions_digest=predictions_digest(run.predictions, CONDITIONS),
        )
        for run in runs
    ]
    report.write_report(tmp_path / "page", runs, clips)
    with pytest.raises(ValueError, match=f"{runs[1].predictions}: expected the masks that the scores of 'baseline'"):
        report.write_report(tmp_path / "page", [replace(runs[0], predictions=runs[1].predictions)], clips)


def test_a_run_without_saved_masks_has_none(tmp_path):
    new, old = write_run(tmp_path / "new", predictions_dir=None), write_run(tmp_path / "old")
    for folder in (new, old):
        (folder / "predictions").mkdir()
    assert report.read_run("a", new).predictions is None
    assert report.read_run("a", old).predictions == old / "predictions"  # written when files did not say it
