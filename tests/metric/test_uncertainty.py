"""The bootstrap against plain loops with the same draws, and its coverage on data whose truth is known."""

import time
import tracemalloc

import numpy as np
import pytest

from evaluate_metrics import uncertainty
from evaluate_metrics.avs_robust.avs_robust import condition_scores, flat_scores, without_repeats

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


@pytest.mark.parametrize("per_video", [1, 3])
def test_equals_a_plain_loop_over_the_same_draws(per_video):
    rows = make_rows(10, per_video=per_video)
    videos = sorted({row["source_video"] for row in rows})
    draws = np.random.default_rng(5).integers(len(videos), size=(300, len(videos)))
    expected = {}
    for draw in draws:
        chosen = [row for video in draw for row in rows if row["source_video"] == videos[video]]
        for key, value in metric_scores(chosen).items():
            expected.setdefault(key, []).append(value)
    shuffled = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    scores, samples = uncertainty.resampled_scores([shuffled], resamples=300, seed=5)
    assert scores == pytest.approx(metric_scores(rows), abs=1e-12)
    assert samples.keys() == expected.keys() and len(samples) == 3 * 4 + 3 + 2 * 3 + 1
    for key, values in expected.items():
        np.testing.assert_allclose(samples[key], values, atol=1e-12)
    bounds = uncertainty.intervals(rows, resamples=300, seed=5, level=0.8)
    for key, values in expected.items():
        assert bounds[key] == pytest.approx(np.quantile(values, [0.1, 0.9]), abs=1e-12)


def test_seeds_are_averaged_within_each_draw():
    first, second = make_rows(seed=1), make_rows(seed=2)
    _, both = uncertainty.resampled_scores([first, second], resamples=50)
    _, one = uncertainty.resampled_scores([first], resamples=50)
    _, other = uncertainty.resampled_scores([second], resamples=50)
    np.testing.assert_allclose(both["g_miou"], (one["g_miou"] + other["g_miou"]) / 2, atol=1e-15)
    shuffled = [second[i] for i in np.random.default_rng(0).permutation(len(second))]
    _, again = uncertainty.resampled_scores([first, shuffled], resamples=50)
    np.testing.assert_allclose(again["g_miou"], both["g_miou"], atol=1e-15)


def test_same_seed_same_interval_and_more_than_one_block():
    rows = make_rows()
    assert uncertainty.intervals(rows, seed=3) == uncertainty.intervals(rows, seed=3)
    assert uncertainty.intervals(rows, seed=3) != uncertainty.intervals(rows, seed=4)
    values = np.random.default_rng(0).random((5, 2))
    few = uncertainty.bootstrap_means(values, resamples=10)
    many = uncertainty.bootstrap_means(values, resamples=2 * uncertainty._BLOCK + 3)
    np.testing.assert_array_equal(few, many[:10])
    assert len(many) == 2 * uncertainty._BLOCK + 3 and not np.isnan(many).any()


def test_interval_of_a_mean_covers_the_truth_in_95_percent_of_samples():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        values = rng.beta(2, 1, (100, 1))  # skewed as IoU is; mean 2/3
        low, high = uncertainty.interval(uncertainty.bootstrap_means(values, resamples=1000)[:, 0])
        covered += low <= 2 / 3 <= high
    # Binomial(300, .95): between 272 and 296 with probability .999; percentile intervals are a little narrow.
    assert 272 <= covered <= 296


def test_clips_of_one_video_need_clusters():
    """40 videos of 5 clips that resemble each other: drawn clip by clip, the interval is far too narrow."""
    rng = np.random.default_rng(0)
    covered = {"cluster": 0, "clip": 0}
    clusters = np.repeat(np.arange(40), 5)
    for _ in range(200):
        values = (0.5 + 0.1 * rng.normal(size=40)[clusters] + 0.03 * rng.normal(size=200))[:, None]
        for name, of in (("cluster", clusters), ("clip", None)):
            low, high = uncertainty.interval(uncertainty.bootstrap_means(values, of, resamples=500)[:, 0])
            covered[name] += low <= 0.5 <= high
    # A percentile interval of 40 videos covers 94 %: 188, less 4 deviations of the binomial.
    assert covered["cluster"] >= 174 and covered["clip"] < 140


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
    assert bounds["f_score_positive"] == [0.25, 0.25]  # draws without this clip have no F
    assert "f_score_silence" not in bounds
    assert bounds["g_f_score"] == bounds["g_f_score_noise"] == pytest.approx([2 * 0.25 * 0.75] * 2)


def test_a_further_negative_has_its_own_g_and_no_part_in_the_mean():
    rows = make_rows(conditions=(*CONDITIONS, "unseen", "mixed_snr_0"))
    scores, _ = uncertainty.resampled_scores([rows], further_negatives=["unseen"], resamples=10)
    without, _ = uncertainty.resampled_scores(
        [make_rows(conditions=(*CONDITIONS, "unseen", "mixed_snr_0"))], resamples=10
    )
    assert scores["g_miou"] == without["g_miou"] and scores["g_fpr"] == without["g_fpr"]
    p, n = scores["miou_positive"], scores["miou_unseen"]
    assert scores["g_miou_unseen"] == pytest.approx(2 * p * (1 - n) / (p + 1 - n))
    assert "g_miou_unseen" not in without and "g_miou_mixed_snr_0" not in scores
    assert "miou_mixed_snr_0" in uncertainty.intervals(rows, resamples=10)


@pytest.mark.parametrize("clusters", [None, np.array([0, 1, 0, 2, 1, 2, 2])])
def test_auroc_equals_a_plain_loop(clusters):
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 4, 7) + 1.0, rng.integers(0, 4, 7) + 0.0  # with ties

    def auroc(clips):
        pairs = [(positive[i] > negative[j]) + 0.5 * (positive[i] == negative[j]) for i in clips for j in clips]
        return np.mean(pairs)

    members = np.arange(7) if clusters is None else clusters
    count = members.max() + 1
    draws = np.random.default_rng(9).integers(count, size=(40, count))
    expected = [auroc([i for video in draw for i in np.flatnonzero(members == video)]) for draw in draws]
    value, samples = uncertainty.bootstrap_auroc(positive, negative, clusters, resamples=40, seed=9)
    assert value == pytest.approx(auroc(range(7)))
    np.testing.assert_allclose(samples, expected, atol=1e-12)


def test_similarity_auroc_is_of_the_clips_means():
    rows = make_rows(9, similarity=True)
    scores, samples = uncertainty.resampled_scores([rows], resamples=20)
    means = {c: [np.mean(row["conditions"][c]["similarity"]) for row in rows] for c in ("positive", "noise")}
    expected = np.mean([p > n for p in means["positive"] for n in means["noise"]])
    assert scores["similarity_auroc_noise"] == pytest.approx(expected)
    assert {key for key in samples if "auroc" in key} == {f"similarity_auroc_{c}" for c in CONDITIONS[1:]}


def test_comparison_pairs_the_draws():
    a = make_rows(40, seed=1)
    b = make_rows(40, seed=1)
    for row in b:  # every clip better by the same amount: its difference is certain, whatever the clips
        row["conditions"]["positive"]["iou"] = [v + 0.01 for v in row["conditions"]["positive"]["iou"]]
    found = {d.metric: d for d in uncertainty.compare([a], [b], resamples=200)}
    better, same = found["miou_positive"], found["miou_noise"]
    assert (better.low, better.difference, better.high) == pytest.approx((0.01, 0.01, 0.01)) and better.stands
    assert (same.low, same.high) == (0, 0) and not same.stands
    low, high = uncertainty.intervals(a, resamples=200)["miou_positive"]
    assert high - low > 0.1  # unpaired, it would be lost
    shuffled = [b[i] for i in np.random.default_rng(0).permutation(len(b))]
    again = {d.metric: d for d in uncertainty.compare([a], [shuffled], resamples=200)}["miou_positive"]
    assert (again.low, again.high) == pytest.approx((0.01, 0.01))
    back = {d.metric: d for d in uncertainty.compare([b], [a], resamples=200)}
    assert (back["g_miou"].low, back["g_miou"].high) == pytest.approx((-found["g_miou"].high, -found["g_miou"].low))


def test_a_comparison_of_equals_stands_in_5_percent():
    rng = np.random.default_rng(2)
    stands = 0
    for _ in range(200):
        sides = []
        for _ in range(2):
            values = rng.random(50)
            sides.append(
                [
                    {
                        "clip_id": str(i),
                        "conditions": {"positive": {"iou": [float(v)], "area": [0.1], "f_score": None}},
                    }
                    for i, v in enumerate(values)
                ]
            )
        found = uncertainty.compare(*([side] for side in sides), resamples=300)
        stands += next(d for d in found if d.metric == "miou_positive").stands
    assert stands <= 22  # Binomial(200, .05): at most 22 with probability .999


def test_one_source_video_has_no_interval():
    rows = make_rows(3, per_video=3)
    assert uncertainty.intervals(rows) == {}
    with pytest.raises(ValueError, match="at least two source videos"):
        uncertainty.compare([rows], [rows])


def test_settings_say_how_to_repeat_it():
    rows = make_rows(10, per_video=2)
    assert uncertainty.bootstrap_settings(rows, seed=3) == {
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
