"""The bootstrap against plain loops with the same draws, and its coverage on data whose truth is known."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from evaluate_metrics import uncertainty
from evaluate_metrics.avs_robust.avs_robust import (
    condition_scores,
    flat_scores,
    harmonic_mean,
    without_repeats,
)

CONDITIONS = ("positive", "silence", "noise", "off_screen")


def make_rows(clips=7, seed=0, conditions=CONDITIONS, per_video=1, similarity=False):
    """Clips of 1 to 3 frames; every fourth has no F-score, `per_video` neighbours share a source video."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(clips):
        row = {"clip_id": f"clip{i:03d}", "source_video": f"video{i // per_video:03d}", "conditions": {}}
        for condition in conditions:
            frames = 1 + i % 3
            row["conditions"][condition] = {
                "iou": rng.random(frames).tolist(),
                "area": (rng.random(frames) / 3).tolist(),
                "f_score": None if i % 4 == 3 else float(rng.random()),
                "similarity": rng.normal(condition == "positive", 1, frames).tolist() if similarity else None,
            }
        rows.append(row)
    return rows


def metric_scores(rows):
    """What the metric itself makes of the rows."""
    by_condition = {c: condition_scores([row["conditions"][c] for row in rows]) for c in rows[0]["conditions"]}
    return {k: v for k, v in without_repeats(flat_scores(by_condition)).items() if "clips" not in k}


def unseen_values(values):
    """What a further clip is taken to have, by hand."""
    low, high = min(values), max(values)
    return (0.0 if low == 1 else low / 2), (1.0 if high == 0 else (1 + high) / 2)


@pytest.mark.parametrize("per_video", [1, 3])
def test_equals_a_plain_loop_over_the_same_weights(per_video):
    rows = make_rows(10, per_video=per_video)
    videos = sorted({row["source_video"] for row in rows})
    weights = np.random.default_rng(5).exponential(size=(300, len(videos) + 1))
    values = {}  # column -> one number a clip, None without
    for condition in CONDITIONS:
        clips = [row["conditions"][condition] for row in rows]
        values[f"miou_{condition}"] = [np.mean(clip["iou"]) for clip in clips]
        values[f"f_score_{condition}"] = [clip["f_score"] for clip in clips]
        values[f"fpr_{condition}"] = [np.mean(clip["area"]) for clip in clips]
    lows, highs = {}, {}
    for *seen, last in weights:
        ends = {}
        for column, of_clips in values.items():
            defined = [(v, row["source_video"]) for v, row in zip(of_clips, rows, strict=True) if v is not None]
            size = len(defined) / len({video for _, video in defined})
            of_videos = dict(zip(videos, seen, strict=True))
            number = sum(of_videos[video] for _, video in defined) + last * size
            total = sum(of_videos[video] * v for v, video in defined)
            ends[column] = [(total + last * size * u) / number for u in unseen_values([v for v, _ in defined])]
        for key in ("miou", "f_score"):
            for name, negatives in [("", CONDITIONS[1:]), *((f"_{c}", [c]) for c in CONDITIONS[1:])]:
                bad, good = (
                    harmonic_mean(
                        ends[f"{key}_positive"][end], 1 - np.mean([ends[f"{key}_{c}"][1 - end] for c in negatives])
                    )
                    for end in (0, 1)
                )
                ends[f"g_{key}{name}"] = [bad, good]
        ends["g_fpr"] = np.mean([ends[f"fpr_{c}"] for c in CONDITIONS[1:]], axis=0)
        ends["audio_blind_floor"] = sorted(2 * p * (1 - p) for p in ends["miou_positive"])
        for key, (low, high) in ends.items():
            lows.setdefault(key, []).append(low)
            highs.setdefault(key, []).append(high)
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    assert uncertainty.run_scores(shuffled) == pytest.approx(metric_scores(rows), abs=1e-12)
    bounds = uncertainty.intervals(shuffled, resamples=300, seed=5, level=0.8)
    assert bounds.keys() == lows.keys() and len(bounds) == 3 * 4 + 3 + 2 * 3 + 1
    for key in bounds:
        expected = [np.quantile(lows[key], 0.1), np.quantile(highs[key], 0.9)]
        assert bounds[key] == pytest.approx(expected, abs=1e-12), key


def test_seeds_are_averaged_within_each_draw():
    first, second = make_rows(seed=1), make_rows(seed=2)
    both = uncertainty.run_scores(first, second)
    for key, value in uncertainty.run_scores(first).items():
        assert both[key] == pytest.approx((value + uncertainty.run_scores(second)[key]) / 2, abs=1e-15)
    bounds = uncertainty.intervals(first, second, resamples=50)
    assert uncertainty.intervals(first, second[::-1], resamples=50) == bounds
    of_clips = [[np.mean(row["conditions"]["positive"]["iou"]) for row in rows] for rows in (first, second)]
    ends = [
        np.quantile(uncertainty.bootstrap_means(np.mean(of_clips, axis=0)[:, None], unseen=unseen, resamples=50), q)
        for unseen, q in zip(
            np.mean([unseen_values(values) for values in of_clips], axis=0), (0.025, 0.975), strict=True
        )
    ]
    assert bounds["miou_positive"] == pytest.approx(ends)


def test_same_seed_same_interval_and_more_than_one_block():
    rows = make_rows()
    assert uncertainty.intervals(rows, seed=3) == uncertainty.intervals(rows, seed=3)
    assert uncertainty.intervals(rows, seed=3) != uncertainty.intervals(rows, seed=4)
    values = np.random.default_rng(0).random((5, 2))
    few = uncertainty.bootstrap_means(values, resamples=10)
    many = uncertainty.bootstrap_means(values, resamples=2 * uncertainty._BLOCK + 3)
    np.testing.assert_array_equal(few, many[:10])
    assert len(many) == 2 * uncertainty._BLOCK + 3 and not np.isnan(many).any()


@pytest.mark.parametrize("clips, failing", [(20, 0), (64, 0), (64, 1), (64, 64), (160, 5)])
def test_shares_have_the_interval_of_clopper_and_pearson(clips, failing):
    """Values that are 0 or 1: their mean is a share, whose exact interval is known."""
    values = (np.arange(clips) < failing).astype(float)[:, None]
    ((low, high),) = uncertainty.mean_intervals(values)
    # A further clip at 1 and one at 0; between all 0 and all 1 they are half-way from the limits, which they are at.
    exact = stats.binomtest(failing, clips).proportion_ci(0.95)
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.004)


def test_no_leak_is_not_the_certainty_of_none():
    """FPR 0.0000 [0.0000, 0.0000] of 64 clips was wrong: with 1 % of leaking clips every second sample has none."""
    rows = make_rows(64)
    for row in rows:
        row["conditions"]["silence"] |= {"iou": [0.0], "area": [0.0]}
        row["conditions"]["positive"]["iou"] = [1.0]
    bounds = uncertainty.intervals(rows)
    upper = 1 - 0.025 ** (1 / 64)  # Clopper and Pearson
    assert bounds["fpr_silence"] == pytest.approx([0, upper], abs=0.002)
    assert bounds["miou_silence"] == pytest.approx([0, upper], abs=0.002)
    assert bounds["miou_positive"] == pytest.approx([1 - upper, 1], abs=0.002)
    assert bounds["g_miou_silence"] == pytest.approx([1 - upper, 1], abs=0.002)


def leaking_values(clips, clusters, leak, rng, repeats):
    """(float64[clips, repeats] mIoU under silence, the same of a positive condition, their means), by a known law."""
    own = np.arange(clusters) if clusters == clips else np.arange(clips) % clusters
    leaks, misses = (rng.random((clusters, repeats))[own] < leak for _ in range(2))
    negative = np.where(leaks, rng.beta(4, 2, (clips, repeats)), 0.0)
    positive = np.where(misses, 0.0, rng.beta(18, 2, (clips, repeats)))
    return negative, positive, (leak * 4 / 6, (1 - leak) * 0.9)


@pytest.mark.parametrize("clips, clusters, leak", [(20, 20, 0.03), (64, 64, 0.01), (64, 64, 0.08), (160, 40, 0.03)])
def test_rare_failures_are_covered(clips, clusters, leak):
    """Samples of which some hold no failure. Percentile intervals covered 0.45, 0.49, 0.92 and 0.70 of them."""
    rng = np.random.default_rng(0)
    repeats = 400
    *samples, truths = leaking_values(clips, clusters, leak, rng, repeats)
    of_clips = np.arange(clips) % clusters
    for values, truth in zip(samples, truths, strict=True):
        bounds = uncertainty.mean_intervals(values, of_clips, resamples=1000)
        covered = np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1]))
        # 0.93 to 0.99 is the aim; few clips lie above it. Three deviations of 400 samples are 0.03.
        assert covered >= 0.925


def test_interval_of_a_mean_covers_the_truth_in_95_percent_of_samples():
    values = np.random.default_rng(0).beta(2, 1, (100, 1000))  # skewed as IoU is; mean 2/3
    low, high = uncertainty.mean_intervals(values, resamples=1000).T
    assert 0.94 <= np.mean((low <= 2 / 3) & (2 / 3 <= high)) <= 0.985


def test_clips_of_one_video_need_clusters():
    """40 videos of 5 clips that resemble each other: drawn clip by clip, the interval is far too narrow."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 5)
    values = 0.5 + 0.1 * rng.normal(size=(40, 400))[clusters] + 0.03 * rng.normal(size=(200, 400))
    covered = {}
    for name, of in (("cluster", clusters), ("clip", None)):
        low, high = uncertainty.mean_intervals(values, of, resamples=500).T
        covered[name] = np.mean((low <= 0.5) & (0.5 <= high))
    assert covered["cluster"] >= 0.93 and covered["clip"] < 0.75


@pytest.mark.slow
def test_g_miou_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    means = {"positive": 0.8, "silence": 0.1, "noise": 0.3, "off_screen": 0.2}
    truth = 2 * 0.8 * (1 - 0.2) / (0.8 + 1 - 0.2)
    covered = 0
    for _ in range(200):
        rows = []
        for i in range(60):
            conditions = {
                c: {"iou": [float(rng.beta(4 * m, 4 * (1 - m)))], "area": [0.1], "f_score": None}
                for c, m in means.items()
            }
            rows.append({"clip_id": str(i), "source_video": str(i), "conditions": conditions})
        low, high = uncertainty.intervals(rows, resamples=400)["g_miou"]
        covered += low <= truth <= high
    assert covered >= 178


def test_clips_without_f_are_left_out_of_f_alone():
    rows = make_rows(6)
    for row in rows:
        for clip in row["conditions"].values():
            clip["f_score"] = None
    bounds = uncertainty.intervals(rows, resamples=100)
    assert "miou_positive" in bounds and "g_miou" in bounds
    assert not [key for key in bounds if "f_score" in key]
    rows[2]["conditions"]["positive"]["f_score"] = rows[2]["conditions"]["noise"]["f_score"] = 0.25
    bounds = uncertainty.intervals(rows, resamples=100)
    low, high = bounds["f_score_positive"]
    assert 0.125 < low < 0.25 < high < 0.625  # half-way to 0 and to 1 lie the values that an unseen clip may have
    assert "f_score_silence" not in bounds
    assert bounds["g_f_score"] == bounds["g_f_score_noise"]


def test_an_extra_negative_has_its_own_g_and_no_part_in_the_mean():
    rows = make_rows(conditions=(*CONDITIONS, "unseen", "mixed_snr_0"))
    scores = uncertainty.run_scores(rows, extra_negatives=["unseen"])
    without = uncertainty.run_scores(make_rows(conditions=(*CONDITIONS, "unseen", "mixed_snr_0")))
    assert scores["g_miou"] == without["g_miou"] and scores["g_fpr"] == without["g_fpr"]
    p, n = scores["miou_positive"], scores["miou_unseen"]
    assert scores["g_miou_unseen"] == pytest.approx(2 * p * (1 - n) / (p + 1 - n))
    assert "g_miou_unseen" not in without and "g_miou_mixed_snr_0" not in scores
    assert "miou_mixed_snr_0" in uncertainty.intervals(rows, resamples=10)


def test_auroc_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 4, 7) + 1.0, rng.integers(0, 4, 7) + 0.0  # with ties
    pairs = itertools.permutations(range(7), 2)  # no clip's own pair
    wins = [(positive[i] > negative[j]) + 0.5 * (positive[i] == negative[j]) for i, j in pairs]
    assert uncertainty.auroc_of_clips(positive, negative).mean() == pytest.approx(np.mean(wins))


def test_the_interval_of_auroc_covers_the_truth_and_never_says_certain():
    """Unit normals 1 apart: AUROC is Phi(1 / sqrt 2) = 0.760."""
    rng = np.random.default_rng(0)
    samples = [uncertainty.auroc_of_clips(rng.normal(1, 1, 40), rng.normal(0, 1, 40)) for _ in range(300)]
    drawn = uncertainty.bootstrap_means(np.array(samples).T, resamples=1000)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert np.mean((low <= 0.7602) & (0.7602 <= high)) >= 0.9  # without the further clip, which widens it
    rows = make_rows(20, similarity=True)
    for row in rows:
        row["conditions"]["positive"]["similarity"] = [9.0]
    assert uncertainty.run_scores(rows)["similarity_auroc_noise"] == 1
    low, high = uncertainty.intervals(rows)["similarity_auroc_noise"]
    assert low == pytest.approx(1 - 2 * (1 - 0.025 ** (1 / 20)), abs=0.005) and high == 1


def test_similarity_auroc_is_of_the_clips_means():
    rows = make_rows(9, similarity=True)
    scores = uncertainty.run_scores(rows)
    means = {c: [np.mean(row["conditions"][c]["similarity"]) for row in rows] for c in ("positive", "noise")}
    pairs = itertools.permutations(range(len(rows)), 2)
    expected = np.mean([means["positive"][i] > means["noise"][j] for i, j in pairs])
    assert scores["similarity_auroc_noise"] == pytest.approx(expected)
    assert {key for key in scores if "auroc" in key} == {f"similarity_auroc_{c}" for c in CONDITIONS[1:]}


def test_comparison_pairs_the_draws():
    a = make_rows(40, seed=1)
    b = make_rows(40, seed=1)
    for row in b:  # every clip better by the same amount: its difference is certain, whatever the clips
        row["conditions"]["positive"]["iou"] = [v + 0.01 for v in row["conditions"]["positive"]["iou"]]
    found = {d.metric: d for d in uncertainty.compare([a], [b], resamples=2000)}
    better, same = found["miou_positive"], found["miou_noise"]
    assert (better.low, better.difference, better.high) == pytest.approx((0.01, 0.01, 0.01)) and better.stands
    assert (same.low, same.high) == pytest.approx((0.025 ** (1 / 40) - 1, 1 - 0.025 ** (1 / 40))) and not same.stands
    low, high = uncertainty.intervals(a, resamples=200)["miou_positive"]
    assert high - low > 0.1  # unpaired, it would be lost
    shuffled = [b[i] for i in np.random.default_rng(0).permutation(len(b))]
    again = {d.metric: d for d in uncertainty.compare([a], [shuffled], resamples=200)}["miou_positive"]
    assert (again.low, again.high) == pytest.approx((0.01, 0.01))
    back = {d.metric: d for d in uncertainty.compare([b], [a], resamples=2000)}
    assert (back["g_miou"].low, back["g_miou"].high) == pytest.approx((-found["g_miou"].high, -found["g_miou"].low))


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_model_without_similarities_compares_with_one_that_has_them(seeds):
    with_head = [make_rows(12, seed=seed, similarity=True) for seed in range(seeds)]
    without = [make_rows(12, seed=9 - seed) for seed in range(seeds)]
    found = [d.metric for d in uncertainty.compare(with_head, without, resamples=50)]
    assert found == [d.metric for d in uncertainty.compare(without, with_head, resamples=50)]
    assert "g_miou" in found and not [metric for metric in found if "auroc" in metric]


def equal_models(clips, rng, effects):
    """Results of one model on the same clips: a list of runs a side, with the effect of its training seed for each."""
    difficulty = rng.beta(6, 3, clips)
    sides = []
    for of_side in effects:
        runs = []
        for effect in of_side:
            rows = [{"clip_id": str(i), "conditions": {}} for i in range(clips)]
            for condition in CONDITIONS:
                level = difficulty if condition == "positive" else 0.6 * (rng.random(clips) < 0.1)
                ious = (level + effect * (level > 0) + 0.03 * rng.normal(size=clips)).clip(0, 1)
                for row, iou in zip(rows, ious.tolist(), strict=True):
                    row["conditions"][condition] = {"iou": [iou], "area": [iou / 5], "f_score": iou}
            runs.append(rows)
        sides.append(runs)
    return sides


@pytest.mark.slow
@pytest.mark.parametrize("seeds, seed_effect", [(1, 0.0), (3, 0.03)])
def test_equal_models_differ_in_5_percent_of_comparisons(seeds, seed_effect):
    """Of the primary score, and of all others together; without correction one stood in 25 to 44 %."""
    rng = np.random.default_rng(2)
    primary = others = 0
    for _ in range(150):
        found = uncertainty.compare(*equal_models(20, rng, seed_effect * rng.normal(size=(2, seeds))), resamples=600)
        primary += next(d for d in found if d.metric == uncertainty.PRIMARY).stands
        others += any(d.stands for d in found if d.metric != uncertainty.PRIMARY)
    assert primary <= 16 and others <= 16  # Binomial(150, 0.05): at most 16 with probability 0.998


def test_two_seeds_of_one_method_do_not_differ_where_seeds_are_counted():
    """Each seed shifts all clips alike: certain if only clips are counted, chance if seeds are."""
    a, b = equal_models(60, np.random.default_rng(0), [(0.0, 0.06, 0.11), (0.08, 0.02, 0.1)])
    single = {d.metric: d for d in uncertainty.compare(a[:1], b[:1], resamples=1000)}
    several = {d.metric: d for d in uncertainty.compare(a, b)}
    assert single["miou_positive"].p < 0.01 and single["miou_positive"].stands
    assert several["miou_positive"].p > 0.05
    assert not any(difference.stands for difference in several.values())
    better = [[{**row, "conditions": {**row["conditions"]}} for row in rows] for rows in b]
    for rows in better:
        for row in rows:
            row["conditions"]["positive"] = row["conditions"]["positive"] | {"iou": [0.98]}
    found = next(d for d in uncertainty.compare(a, better) if d.metric == "miou_positive")
    assert found.difference > 0.2 and found.low > 0 and found.p < 0.01


def test_students_test_over_seeds_by_hand():
    """Clips that are all alike add nothing to the variance between seeds."""
    levels = {"a": (0.5, 0.52, 0.57), "b": (0.6, 0.66, 0.63)}
    sides = [
        [
            [
                {"clip_id": str(i), "conditions": {"positive": {"iou": [v], "area": [0.1], "f_score": None}}}
                for i in range(9)
            ]
            for v in of_side
        ]
        for of_side in levels.values()
    ]
    found = next(d for d in uncertainty.compare(*sides) if d.metric == "miou_positive")
    expected = stats.ttest_ind(levels["b"], levels["a"])
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95))


def test_clips_that_differ_add_their_variance_less_what_is_noise_of_seeds():
    """Seeds by source videos, a two-way layout: what each seed does with each clip counts between seeds already."""
    rng = np.random.default_rng(4)
    clips = rng.uniform(0.3, 0.6, 8) + np.array([[[0.0]], [[0.1]]]) * rng.uniform(0, 1, 8)  # side, seed, clip
    ious = clips + rng.normal(scale=0.01, size=(2, 3, 8))
    sides = [
        [
            [
                {"clip_id": str(i), "conditions": {"positive": {"iou": [v], "area": [0.1], "f_score": None}}}
                for i, v in enumerate(of_seed)
            ]
            for of_seed in side
        ]
        for side in ious.tolist()
    ]
    found = next(d for d in uncertainty.compare(*sides) if d.metric == "miou_positive")
    seeds = ious.mean(axis=2)
    between = (2 / 3) * np.sum((seeds - seeds.mean(axis=1, keepdims=True)) ** 2) / 4
    influence = (ious - ious.mean(axis=2, keepdims=True)) / 9  # of a clip that counts twice
    common = np.sum((influence[1].mean(axis=0) - influence[0].mean(axis=0)) ** 2)
    noise = (2 / 3) * np.sum((influence - influence.mean(axis=1, keepdims=True)) ** 2) / 4
    assert common > 1.2 * noise > 0
    variance = between + common - noise
    degrees = variance**2 / (between**2 / 4 + (common - noise) ** 2 / 7)
    difference = seeds[1].mean() - seeds[0].mean()
    assert found.p == pytest.approx(2 * stats.t.sf(abs(difference) / np.sqrt(variance), degrees))


def test_a_p_value_is_never_below_what_the_swaps_can_tell():
    a, b = (make_rows(30, seed=1, conditions=("positive",)) for _ in range(2))
    for row in b:
        row["conditions"]["positive"] = row["conditions"]["positive"] | {"iou": [1.0]}
    found = next(d for d in uncertainty.compare([a], [b], resamples=9) if d.metric == "miou_positive")
    assert found.p == pytest.approx(1 / 10)  # none of 9 swaps


def test_swaps_by_hand():
    """Six clips have 2^6 swaps; the share of them that differ as much as the results do is the p-value."""
    rows = {name: make_rows(6, seed=seed, conditions=("positive", "silence")) for name, seed in (("a", 1), ("b", 2))}

    def g_miou(pairs):
        scores = [uncertainty.run_scores([pair[side] for pair in pairs])["g_miou"] for side in (0, 1)]
        return scores[1] - scores[0]

    pairs = list(zip(rows["a"], rows["b"], strict=True))
    swaps = itertools.product([False, True], repeat=6)
    reached = [
        abs(g_miou([pair[::-1] if swap else pair for pair, swap in zip(pairs, of, strict=True)]))
        >= abs(g_miou(pairs)) - 1e-12
        for of in swaps
    ]
    found = next(d for d in uncertainty.compare([rows["a"]], [rows["b"]]) if d.metric == "g_miou")
    assert found.p == found.adjusted == pytest.approx(np.mean(reached), abs=0.02)


def test_holm_by_hand():
    assert uncertainty.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert uncertainty.holm([0.5, 0.9]) == [1, 1] and uncertainty.holm([]) == []


def test_one_source_video_has_no_interval():
    rows = make_rows(3, per_video=3)
    assert uncertainty.intervals(rows) == {}
    with pytest.raises(ValueError, match="at least two source videos"):
        uncertainty.compare([rows], [rows])


def test_settings_say_how_to_repeat_it():
    rows = make_rows(10, per_video=2)
    assert uncertainty.bootstrap_settings(rows, seed=3) == {
        "method": "Bayesian bootstrap with one unseen cluster",
        "resamples": 10_000,
        "level": 0.95,
        "cluster": "source_video",
        "clusters": 5,
        "clips": 10,
        "seed": 3,
    }
    for row in rows:
        del row["source_video"]
    assert uncertainty.bootstrap_settings(rows)["cluster"] == "clip"
    assert uncertainty.bootstrap_settings(rows)["clusters"] == 10


def drop_clip(rows):
    del rows[2]


def rename_clip(rows):
    rows[2]["clip_id"] = "other"


def repeat_clip(rows):
    rows.append(dict(rows[2]))


def drop_condition(rows):
    del rows[2]["conditions"]["noise"]


def move_clip(rows):
    rows[2]["source_video"] = "elsewhere"


@pytest.mark.parametrize(
    "damage, message",
    [
        (drop_clip, r"of 7 1 missing in result 2: 'clip002'\. Score the same split"),
        (rename_clip, r"1 missing in result 2: 'clip002'; 1 missing in result 1: 'other'"),
        (repeat_clip, r"result 2 has 'clip002' again"),
        (drop_condition, r"result 2 has off_screen, positive, silence for 'clip002'"),
        (move_clip, r"another for 'clip002'"),
    ],
)
def test_results_that_cannot_be_paired_are_named(damage, message):
    other = make_rows(7)
    damage(other)
    with pytest.raises(ValueError, match=message):
        uncertainty.compare([make_rows(7)], [other], resamples=10)
    with pytest.raises(ValueError, match="at least one clip"):
        uncertainty.compare([[]], [other])


def test_shared_source_videos_by_hand():
    # v2 is in train and test, v3 in all three
    splits = {"train": ["v1", "v2", "v2", "v3"], "val": ["v3"], "test": ["v3", "v2", "v4"]}
    assert uncertainty.shared_source_videos(splits) == {
        "source_videos": 4,
        "in_several_splits": 2,
        "by_split": {"train": 2, "val": 1, "test": 2},
    }


def test_s4_test_set_takes_seconds_and_little_memory():
    """740 clips, four conditions, 10,000 draws: asked for in 5 s on one core, measured 0.2 s."""
    rows = make_rows(740)
    started = time.process_time()
    uncertainty.intervals(rows)
    assert time.process_time() - started < 5
    tracemalloc.start()
    uncertainty.intervals(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
