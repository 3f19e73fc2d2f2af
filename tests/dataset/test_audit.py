"""The audit: its numbers by hand, and on small data with and without shortcuts."""

import json

import numpy as np
import pytest
import soundfile

from avs_engine import audit as audit_module
from avs_engine.audit import (
    ROW_KINDS,
    SOUND_KINDS,
    assign_folds,
    audit,
    cross_validated_scores,
    estimate_auc,
    main,
    row_features,
    sound_features,
    weighted_auc,
)
from avsbench_robust_dataset import SUBSETS
from avsbench_robust_dataset.__main__ import main as avs_data
from avsbench_robust_dataset.sources import media_files, read_clips
from avsbench_robust_dataset.waveform import Waveform

CATEGORIES = ("dog_barking", "race_car", "playing_piano", "male_speech")


@pytest.fixture
def tree(write_s4, tmp_path, monkeypatch):
    """24 test clips, six a category, each with a sound of its own level and spectrum."""
    monkeypatch.setattr(audit_module, "RESAMPLES", 200)
    rows = [(f"clip{i:07d}", CATEGORIES[i % 4], "test") for i in range(24)]
    write_s4(tmp_path, rows)
    for index, clip in enumerate(read_clips(SUBSETS["s4"], tmp_path)):
        rng = np.random.default_rng(index)
        tone = np.sin(2 * np.pi * rng.uniform(200, 4000) * np.arange(rng.integers(64000, 80000)) / 16000)
        path = media_files(SUBSETS["s4"], tmp_path, clip)[2]
        soundfile.write(path, rng.uniform(0.1, 0.9) * tone, 16000, subtype="PCM_16")
    return tmp_path


def comparison(result, condition, draw=None):
    (found,) = [c for c in result.comparisons if c.condition == condition and draw in (None, c.draw)]
    return found


# The numbers


def measured(samples, examples=None):
    examples = np.zeros((1, 1, 2, 3)) if examples is None else examples
    return dict(zip(SOUND_KINDS, sound_features(np.asarray(samples), 16000, 32, examples), strict=True))


def test_sound_features_by_hand():
    samples = np.zeros(16000, np.float32)
    samples[100:200] = 0.5
    samples[300] = -1.0
    values = measured(samples, np.array([[[[0.0, 0.0, 0.0], [1.0, 0.0, -2.0]]]]))
    assert values["leading_zeros"] == 100
    assert values["trailing_zeros"] == 16000 - 301
    assert values["zero_fraction"] == pytest.approx(1 - 101 / 16000)
    assert values["longest_run"] == 16000 - 301
    assert values["samples"] == 16000 and values["sampling_rate"] == 16000 and values["bits"] == 32
    assert values["sounding_seconds"] == 201 / 16000
    assert values["rms_db"] == pytest.approx(10 * np.log10(26 / 16000))
    assert values["peak_db"] == pytest.approx(0, abs=1e-4)
    assert values["clipped_fraction"] == 1 / 16000
    assert values["dc_offset"] == pytest.approx(49 / 16000)
    assert values["off_16_bit_grid"] == 0
    assert values["input_constant_frames"] == 0.5
    assert values["input_zero_fraction"] == 4 / 6
    assert (values["input_minimum"], values["input_maximum"]) == (-2, 1)
    assert values["input_mean"] == pytest.approx(-1 / 6)
    assert values["input_std"] == pytest.approx(np.std([0, 0, 0, 1, 0, -2]))


def test_spectrum_edges_of_tones():
    t = np.arange(16000) / 16000
    low, mid, high = (np.sin(2 * np.pi * hertz * t) for hertz in (20, 1000, 7800))
    values = measured(0.5 * mid + 0.05 * low + 0.005 * high)  # -20 and -40 dB beside the tone
    assert values["below_50_hz_db"] == pytest.approx(-20, abs=0.1)
    assert values["above_7500_hz_db"] == pytest.approx(-40, abs=0.1)
    assert values["off_16_bit_grid"] > 0.9


def test_silence_has_finite_features():
    values = measured(np.zeros(16000))
    assert np.isfinite(list(values.values())).all()
    assert values["leading_zeros"] == values["trailing_zeros"] == values["longest_run"] == 16000


def test_row_features_by_hand():
    frames = [{"bytes": b"abc", "path": None}, {"bytes": b"ab", "path": "x.png"}]
    values = dict(zip(ROW_KINDS, row_features(7, frames, [{"bytes": b"a", "path": None}]), strict=True))
    assert values == {"row": 7, "frames": 2, "masks": 1, "frame_bytes": 5, "mask_bytes": 1, "paths": 1}


def test_auc_against_all_pairs():
    """Plain loops over pairs of two groups within a fold, ties and weights included."""
    rng = np.random.default_rng(0)
    scores, negative, fold = rng.integers(0, 4, 30), rng.random(30) < 0.4, rng.integers(0, 3, 30)
    group = np.arange(30) // 2
    counts = rng.integers(0, 3, (4, 15)).astype(float)
    for count, auc in zip(counts, weighted_auc(scores, negative, fold, group, counts), strict=True):
        weight = count[group]
        won = pairs = 0
        for i in np.flatnonzero(negative):
            for j in np.flatnonzero(~negative):
                if fold[i] == fold[j] and group[i] != group[j]:
                    pairs += weight[i] * weight[j]
                    won += weight[i] * weight[j] * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
        assert auc == pytest.approx(won / pairs)


def test_auc_by_hand():
    scores, negative = np.array([1.0, 2, 3, 4]), np.array([False, True, False, True])
    estimate = estimate_auc(scores, negative, ["a", "b", "c", "d"], np.zeros(4, int))
    assert estimate.auc == 3 / 4
    assert 0 <= estimate.low <= 3 / 4 <= estimate.high == 1
    assert np.isnan(
        weighted_auc(scores, negative, np.arange(4), np.arange(4), np.ones((1, 4)))
    ).all()  # no pair within a fold
    nothing = estimate_auc(scores, negative, ["a", "b", "c", "d"], np.arange(4))
    assert (nothing.auc, nothing.low, nothing.high) == (0.5, 0, 1)


def test_the_interval_covers_the_truth():
    """Unit normals 0.5 apart: the AUC is Phi(0.5 / sqrt 2) = 0.638; about 95 of 100 intervals hold it."""
    covered = 0
    for seed in range(100):
        negative = np.arange(120) < 60
        scores = np.random.default_rng(seed).normal(size=120) + 0.5 * negative
        estimate = estimate_auc(scores, negative, np.arange(120), np.zeros(120, int), resamples=200)
        covered += estimate.low <= 0.638163 <= estimate.high
    assert 88 <= covered <= 99


def test_an_interval_holds_its_own_estimate():
    """Own pairs, twice in a resample, counted four times: 0.521 had the interval [0.523, 0.539]."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        common = rng.normal(size=60)  # each sound once in both, the negative one a little higher
        scores, negative = np.concatenate([common, common + 0.001]), np.arange(120) >= 60
        group = np.concatenate([np.arange(60)] * 2)
        estimate = estimate_auc(scores, negative, group, np.zeros(120, int))
        assert estimate.low <= estimate.auc <= estimate.high
        assert estimate.auc == pytest.approx(0.5, abs=0.005)  # of other sounds it tells nothing


def test_groups_stay_in_one_fold():
    group = [f"sound {index % 17}" for index in range(60)]
    fold = assign_folds(group)
    assert {name: len({f for g, f in zip(group, fold, strict=True) if g == name}) for name in group} == dict.fromkeys(
        group, 1
    )
    assert set(fold) == set(range(5))


def test_the_probe_finds_a_weak_direction_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    negative = np.arange(400) % 2 == 0
    features = rng.normal(size=(400, 6)) * [1, 100, 0.01, 1, 1, 0] + [0, 5, 0, 0, 0, 3]  # the last one is constant
    fold = assign_folds(np.arange(400))
    group = np.arange(400)
    chance = estimate_auc(cross_validated_scores(features, negative, fold), negative, group, fold)
    assert chance.at_chance
    features[negative, 2] += 0.02
    found = estimate_auc(cross_validated_scores(features, negative, fold), negative, group, fold)
    assert found.auc > 0.85 and not found.at_chance


def test_the_probe_has_not_seen_the_rows_that_it_scores():
    """Neither their labels nor their scale: one wild row moves no score of the others in its fold."""
    rng = np.random.default_rng(1)
    negative = np.arange(100) % 2 == 0
    features, fold = rng.normal(size=(100, 4)) + 0.5 * negative[:, None], np.arange(100) % 5
    before = cross_validated_scores(features, negative, fold)
    features[0] *= 1000
    after = cross_validated_scores(features, negative, fold)
    others = (fold == 0) & (np.arange(100) > 0)
    np.testing.assert_array_equal(after[others], before[others])
    assert (after[fold != 0] != before[fold != 0]).any(), "the row is wild enough to be noticed"


# On data


def test_one_front_end_and_the_matched_draw_leave_exactly_chance(tree):
    """Every sound is there once as positive and once off screen, so that any score of the sound alone ties."""
    result = audit("s4", str(tree), draws=("matched",))
    assert result.clips == 24
    off_screen = comparison(result, "off_screen")
    assert off_screen.at_chance and off_screen.same_sounds and not off_screen.by_definition
    for estimate in (*off_screen.probes.values(), *off_screen.features.values()):
        assert (estimate.auc, estimate.low, estimate.high) == (0.5, 0.5, 0.5)
    for condition in ("silence", "noise"):
        found = comparison(result, condition)
        assert found.by_definition and found.probes["sound"].auc == found.probes["audio_only"].auc == 1
        assert found.probes["row"].auc == 0.5


def test_each_distinct_sound_is_measured_once(tree, monkeypatch):
    """24 sounds, which are also the off-screen ones of both draws, one silence, 24 noises."""
    calls = []
    original = audit_module.sound_features
    monkeypatch.setattr(audit_module, "sound_features", lambda *args: calls.append(1) or original(*args))
    audit("s4", str(tree))
    assert len(calls) == 24 + 1 + 24


@pytest.mark.slow
def test_the_released_front_end_gives_negatives_away(tree):
    result = audit("s4", str(tree), front_end="released")
    for draw in ("matched", "released"):
        off_screen = comparison(result, "off_screen", draw)
        assert off_screen.probes["sound"].auc == off_screen.probes["audio_only"].auc == 1
        assert off_screen.features["input_zero_fraction"].auc == 1
        assert off_screen.features["rms_db"].auc == pytest.approx(0.5, abs=0.3)  # the waveform is not to blame
        assert not off_screen.at_chance


@pytest.mark.slow
@pytest.mark.parametrize("shortcut", ["shift", "polarity", "last bit"])
def test_sounds_that_are_not_the_very_same_fail_the_matched_draw(tree, monkeypatch, capsys, shortcut):
    """No probe tells them, and a network may: the matched draw promises equal sounds."""
    from avsbench_robust_dataset.builder import AvsbenchRobust

    original = AvsbenchRobust.example

    def tampered(self, row):
        example = original(self, row)
        if row.condition == "off_screen":
            sound = Waveform().decode_example(Waveform().encode_example(example["audio"]))["array"].copy()
            if shortcut == "shift":
                sound = np.roll(sound, 1)
            elif shortcut == "polarity":
                sound = -sound
            else:
                sound[1000] += np.float32(2**-15)
            example["audio"] = {"array": sound}
        return example

    monkeypatch.setattr(AvsbenchRobust, "example", tampered)
    assert main(["--subset", "s4", "--data_dir", str(tree), "--draw", "matched", "--json", str(tree / "a.json")]) == 0
    off_screen = json.loads((tree / "a.json").read_text(encoding="utf-8"))["comparisons"][-1]
    assert off_screen["same_sounds"] is False and off_screen["at_chance"] is False
    assert "NOT at chance: the sounds are not the very same in both" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("shortcut", ["level", "padding", "DC", "order", "files"])
def test_a_shortcut_is_found(tree, monkeypatch, shortcut):
    """A data set that treats off-screen sounds a little differently."""
    from avsbench_robust_dataset.builder import AvsbenchRobust

    original = AvsbenchRobust.example

    def tampered(self, row):
        example = original(self, row)
        if row.condition == "off_screen":
            sound = Waveform().decode_example(Waveform().encode_example(example["audio"]))["array"]
            if shortcut == "level":
                sound *= 0.01
            elif shortcut == "padding":
                sound = np.concatenate([np.zeros(160, np.float32), sound[:-160]])
            elif shortcut == "DC":
                sound += 0.02
            elif shortcut == "files":
                example["masks"] = example["masks"][:1]
            example["audio"] = {"array": sound}
        return example

    monkeypatch.setattr(AvsbenchRobust, "example", tampered)
    if shortcut == "order":
        read = audit_module.Reader.read

        def later(self, splits, condition):
            rows = read(self, splits, condition)
            if condition == "off_screen":
                rows = [row._replace(row=row.row + [100, 0, 0, 0, 0, 0]) for row in rows]
            return rows

        monkeypatch.setattr(audit_module.Reader, "read", later)
    off_screen = comparison(audit("s4", str(tree), draws=("matched",)), "off_screen")
    assert not off_screen.at_chance
    kinds = SOUND_KINDS | ROW_KINDS
    kind = {"order": "ordering"}.get(shortcut, shortcut)
    assert any(not e.at_chance for name, e in off_screen.features.items() if kinds[name] == kind)
    assert off_screen.probes["row" if shortcut in ("order", "files") else "sound"].auc > 0.75


def test_sounds_that_tell_by_their_category_are_found_in_an_uneven_draw(tree, monkeypatch):
    """A draw that takes every off-screen sound from few clips: who listens to those can tell."""
    from avsbench_robust_dataset import recipes

    def uneven(clips, subset, seed, draw):
        pairs = draw_off_screen(clips, subset, seed, draw)
        if not pairs:  # of a split without clips
            return pairs
        speech = next(pair.clip for pair in pairs if pair.clip.category == "male_speech")
        piano = next(pair.clip for pair in pairs if pair.clip.category == "playing_piano")
        return [
            type(pair)(pair.clip, piano if pair.clip.category != "playing_piano" else speech, None, False)
            for pair in pairs
        ]

    draw_off_screen = recipes.draw_off_screen
    monkeypatch.setattr(recipes, "draw_off_screen", uneven)
    off_screen = comparison(audit("s4", str(tree), draws=("matched",)), "off_screen")
    assert not all(estimate.at_chance for name, estimate in off_screen.features.items() if name in SOUND_KINDS)


def test_command_line(tree, capsys):
    out = tree / "deep" / "audit.json"
    assert main(["--subset", "s4", "--data_dir", str(tree), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "off_screen, matched draw  0.500 [0.500, 0.500]" in text and "off_screen, released draw" in text
    assert "only 24 sounds: the intervals are rough" in text
    verdicts = {line[:26].strip(): line for line in text.splitlines()}
    assert verdicts["off_screen, matched draw"].endswith("at chance, by construction: each sound comes once in both")
    assert verdicts["off_screen, released draw"].endswith(" too few sounds to tell")
    assert "padding: leading_zeros" in text and "told apart by what is heard, by definition" in text
    content = json.loads(out.read_text(encoding="utf-8"))
    assert [(row["condition"], row["draw"]) for row in content["comparisons"]] == [
        ("silence", None),
        ("noise", None),
        ("off_screen", "matched"),
        ("off_screen", "released"),
    ]
    matched = content["comparisons"][2]
    assert matched["probes"]["audio_only"] == {"auc": 0.5, "low": 0.5, "high": 0.5} and matched["at_chance"]
    assert [row["same_sounds"] for row in content["comparisons"]] == [False, False, True, False]
    assert set(matched["features"]) == set(content["kinds"]) == {*SOUND_KINDS, *ROW_KINDS}
    assert (content["splits"], content["clips"], content["front_end"]) == (["test"], 24, "vggish")
    assert [path.name for path in out.parent.iterdir()] == ["audit.json"]


@pytest.mark.slow
def test_one_draw_and_the_released_front_end_on_the_command_line(tree, capsys, monkeypatch):
    arguments = ["--data_dir", str(tree), "--draw", "released", "--front_end", "released", "--seed", "7"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "matched draw" not in text and "seed 7, front end released" in text and "too few sounds to tell" in text
    monkeypatch.setattr(audit_module, "FEW_SOUNDS", 24)
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "NOT at chance" in text and "too few" not in text


def test_nothing_to_compare(tree, capsys):
    assert main(["--data_dir", str(tree), "--splits", "train"]) == 1
    assert "clips in the split train of s4, but there are none" in capsys.readouterr().err
    assert main(["--data_dir", str(tree / "nowhere")]) == 1
    assert "Single-source/s4_meta_data.csv" in capsys.readouterr().err


def test_the_old_call_says_where_the_command_is(capsys):
    assert avs_data(["audit", "--subset", "s4"]) == 2 and "call avs-audit" in capsys.readouterr().err
