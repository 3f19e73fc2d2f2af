"""How sure a score is: 95 % intervals by bootstrap over clips, and paired intervals of the difference of two models.

Clips are drawn again with replacement, as many as there are, and every score is computed on each draw; an interval
holds the middle 95 % of what comes out (percentile bootstrap, Efron and Tibshirani 1993, ch. 13). Clips of one source
video are drawn together (cluster bootstrap): they resemble each other, and an interval that takes them for
independent is too narrow. On simulated means the 95 % interval covers the truth in 94 % of samples of 40 videos and in
95 % of 100. All conditions of a clip, all training seeds of a model and both sides of a comparison see the same draws.

What an interval covers is the choice of clips. It says nothing of training seeds, of the draw of negative sounds, or
of source videos that a test split shares with the training split (`shared_source_videos` counts those).

Below, a *row* is one clip's line of `clips.jsonl`: {"clip_id", "source_video", "conditions": {condition: {"iou": [one
a frame], "area": [one a frame], "f_score": float or None, "similarity": [one a frame] or None}}}, see `clip_rows.py`.
Which scores there are is read from the table of metrics in `avs_robust.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .avs_robust.avs_robust import METRICS, NEGATIVE_CONDITIONS, SELECTIVITY, clip_values, flat_scores, without_repeats

__all__ = [
    "Difference",
    "bootstrap_auroc",
    "bootstrap_means",
    "bootstrap_settings",
    "common_conditions",
    "compare",
    "interval",
    "intervals",
    "paired_rows",
    "resampled_scores",
    "shared_source_videos",
    "source_clusters",
]

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
_ROUNDING = 1e-6  # a difference no larger than this is an error of rounding
_BLOCK = 256  # resamples at a time: a few MB for 740 clips


@dataclass(frozen=True)
class Difference:
    """A score of two models, and the interval of b - a; `stands` where it leaves out 0 by more than 1e-6."""

    metric: str
    a: float
    b: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def stands(self) -> bool:
        return self.low > _ROUNDING or self.high < -_ROUNDING


def bootstrap_means(
    values: np.ndarray, clusters: np.ndarray | None = None, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """The mean of every column in each resample.

    Args:
        values (float64[N, K]): NaN is left out of its column's mean.
        clusters (int[N]): from 0 to G - 1, each used; G clusters are drawn of G. None: every row is its own.
        seed: of numpy's PCG64. Resample b takes the b-th line of `default_rng(seed).integers(G, size=(resamples, G))`.

    Returns:
        float64[resamples, K]; NaN where a resample holds no value of the column.
    """
    if clusters is None:
        clusters = np.arange(len(values))
    count = int(clusters.max()) + 1
    defined = np.isfinite(values)
    sums, counts = np.zeros((2, count, values.shape[1]))
    np.add.at(sums, clusters, np.where(defined, values, 0.0))
    np.add.at(counts, clusters, defined)
    means = np.empty((resamples, values.shape[1]))
    for part, weights in _weights(count, resamples, seed):
        with np.errstate(invalid="ignore"):
            means[part] = (weights @ sums) / (weights @ counts)
    return means


def bootstrap_auroc(
    positive: np.ndarray,
    negative: np.ndarray,
    clusters: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, np.ndarray]:
    """How often a clip with its own sound scores higher than one with negative sound; ties count one half.

    Args:
        positive, negative (float64[N]): the scores of the same N clips.
        clusters, resamples, seed: as in `bootstrap_means`. A clip is drawn with both its sounds.

    Returns:
        (AUROC over all N x N pairs, float64[resamples])
    """
    if clusters is None:
        clusters = np.arange(len(positive))
    count = int(clusters.max()) + 1
    order = np.argsort(clusters, kind="stable")
    starts = np.searchsorted(clusters[order], np.arange(count))
    negative, sizes = negative[order], np.bincount(clusters, minlength=count)
    wins = np.zeros((count, count))  # pairs that are the right way round, by the clusters they come from
    for cluster, score in zip(clusters, positive, strict=True):
        right = (score > negative) + 0.5 * (score == negative)
        wins[cluster] += np.add.reduceat(right, starts)
    samples = np.empty(resamples)
    for part, weights in _weights(count, resamples, seed):
        samples[part] = np.einsum("bi,bi->b", weights @ wins, weights) / (weights @ sizes) ** 2
    return float(wins.sum() / len(positive) ** 2), samples


def interval(samples: np.ndarray, level: float = LEVEL) -> list[float] | None:
    """[low, high] that holds the middle `level` of the resamples; None if no resample has a value."""
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return None
    return [float(bound) for bound in np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])]


def source_clusters(rows: Sequence[Mapping]) -> np.ndarray:
    """int[N]: clips of one source video have one number. A clip without `source_video` is a cluster of its own."""
    names = [(0, row["source_video"]) if row.get("source_video") else (1, row["clip_id"]) for row in rows]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names])


def resampled_scores(
    runs: Sequence[Sequence[Mapping]],
    *,
    further_negatives: Iterable[str] = (),
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Every score on the clips as they are, and on each resample of them.

    Args:
        runs: the rows of each training seed of one model, the same clips in all; scores are means over the seeds.
        further_negatives: conditions beside silence, noise and off_screen in which nothing visible is heard: each
            has a harmonic mean of its own, as they do, but does not enter `g_miou`, `g_f_score` and `g_fpr`.

    Returns:
        (metric -> score, metric -> float64[resamples]), keys as the metric `avs_robust` has them, and
        `similarity_auroc_{negative}` where the rows hold similarities.

    Raises:
        ValueError: no clips, clips or conditions that differ; the message names them.
    """
    runs = paired_rows(runs)
    clusters = source_clusters(runs[0])
    further_negatives = tuple(further_negatives)
    scores, samples = [], []
    for rows in runs:
        keys, values = _columns(rows, further_negatives)
        counts = np.isfinite(values).sum(axis=0)
        means = np.divide(np.nansum(values, axis=0), counts, out=np.full(len(keys), np.nan), where=counts > 0)
        resampled = bootstrap_means(values, clusters, resamples, seed)
        scores.append(without_repeats(_named(keys, means[:, None], further_negatives)))
        samples.append(_named(keys, resampled.T, further_negatives))
        for condition in [*NEGATIVE_CONDITIONS, *further_negatives]:
            if all(_similarity(row, c) for row in rows for c in ("positive", condition)):
                pair = [np.array([np.mean(_similarity(row, c)) for row in rows]) for c in ("positive", condition)]
                auroc, drawn = bootstrap_auroc(*pair, clusters, resamples, seed)
                key = f"similarity_auroc_{condition}"
                scores[-1][key], samples[-1][key] = np.array([auroc]), drawn
    kept = [key for key in scores[0] if all(key in score and np.isfinite(score[key][0]) for score in scores)]
    return (
        {key: float(np.mean([score[key][0] for score in scores])) for key in kept},
        {key: np.mean([sample[key] for sample in samples], axis=0) for key in kept},
    )


def intervals(
    rows: Sequence[Mapping],
    *,
    further_negatives: Iterable[str] = (),
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> dict[str, list[float]]:
    """metric -> [low, high] of every score that the rows define; {} for clips of a single source video.

    Clips whose masks are all empty have no F-score and are left out of F alone, as in the metric.
    """
    if source_clusters(rows).max(initial=0) == 0:
        return {}
    _, samples = resampled_scores([rows], further_negatives=further_negatives, resamples=resamples, seed=seed)
    found = {metric: interval(values, level) for metric, values in samples.items()}
    return {metric: bounds for metric, bounds in found.items() if bounds}


def bootstrap_settings(
    rows: Sequence[Mapping], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> dict[str, int | float | str]:
    """What a reader needs to repeat `intervals`, and how many clusters there are among how many clips."""
    return {
        "resamples": resamples,
        "level": level,
        "cluster": "source_video" if any(row.get("source_video") for row in rows) else "clip",
        "clusters": int(source_clusters(rows).max(initial=-1)) + 1,
        "clips": len(rows),
        "seed": seed,
    }


def compare(
    a: Sequence[Sequence[Mapping]],
    b: Sequence[Sequence[Mapping]],
    *,
    further_negatives: Iterable[str] = (),
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> list[Difference]:
    """The differences b - a of every score that both have, by paired bootstrap: each resample is scored by both.

    Args:
        a, b: for each side the rows of one result, or of several training seeds, whose mean is compared.

    Raises:
        ValueError: clips or conditions that are not the same on both sides, or a single source video.
    """
    runs = paired_rows([*a, *b])
    if source_clusters(runs[0]).max() == 0:
        raise ValueError("Expected clips of at least two source videos to compare by bootstrap, got one.")
    options = dict(further_negatives=tuple(further_negatives), resamples=resamples, seed=seed)
    scores_a, samples_a = resampled_scores(runs[: len(a)], **options)
    scores_b, samples_b = resampled_scores(runs[len(a) :], **options)
    found = []
    for metric, score in scores_a.items():
        if metric in scores_b and (bounds := interval(samples_b[metric] - samples_a[metric], level)):
            found.append(Difference(metric, score, scores_b[metric], *bounds))
    return found


def paired_rows(runs: Sequence[Sequence[Mapping]]) -> list[list[Mapping]]:
    """The runs' rows in one order, that of the first run.

    Raises:
        ValueError: no rows, a clip twice, clips, conditions or source videos that differ; the message names them.
    """
    if not runs or not all(len(rows) for rows in runs):
        raise ValueError("Expected the scores of at least one clip, got none.")
    tables = []
    for number, rows in enumerate(runs, start=1):
        table = {row["clip_id"]: row for row in rows}
        if len(table) < len(rows):
            twice = {row["clip_id"] for row in rows if table[row["clip_id"]] is not row}
            raise ValueError(f"Expected each clip once, but result {number} has {_shown(twice)} again.")
        tables.append(table)
    first = tables[0]
    conditions = set(next(iter(first.values()))["conditions"])
    for number, table in enumerate(tables, start=1):
        if number > 1 and table.keys() != first.keys():
            parts = []
            for missing, where in ((first.keys() - table.keys(), number), (table.keys() - first.keys(), 1)):
                if missing:
                    parts.append(f"{len(missing)} missing in result {where}: {_shown(missing)}")
            raise ValueError(
                f"Expected the same clips in all results, but of {len(first.keys() | table.keys())} "
                f"{'; '.join(parts)}. Score the same split of the same subset."
            )
        others = {clip_id for clip_id, row in table.items() if set(row["conditions"]) != conditions}
        if others:
            got = sorted(table[min(others)]["conditions"])
            raise ValueError(
                f"Expected the conditions {', '.join(sorted(conditions))} for every clip, but result {number} has "
                f"{', '.join(got)} for {_shown(others)}. Score both under the same conditions."
            )
        moved = {c for c, row in table.items() if row.get("source_video") != first[c].get("source_video")}
        if moved:
            raise ValueError(
                f"Expected the same `source_video` of a clip in all results, but result {number} has another for "
                f"{_shown(moved)}. Evaluate both with the same version."
            )
    return [[table[clip_id] for clip_id in first] for table in tables]


def common_conditions(runs: Sequence[Sequence[Mapping]]) -> tuple[list[list[Mapping]], list[str]]:
    """(the runs' rows with the conditions that all runs have, the other conditions, sorted)."""
    conditions = [set(rows[0]["conditions"]) for rows in runs]
    common = set.intersection(*conditions)
    left_out = sorted(set.union(*conditions) - common)
    if not left_out:
        return [list(rows) for rows in runs], []
    reduced = [
        [{**row, "conditions": {c: v for c, v in row["conditions"].items() if c in common}} for row in rows]
        for rows in runs
    ]
    return reduced, left_out


def shared_source_videos(splits: Mapping[str, Iterable[str]]) -> dict[str, int | dict[str, int]]:
    """How many source videos the splits share, from the source video of each of their clips.

    >>> shared_source_videos({"train": ["a", "a", "b"], "val": ["b", "c"], "test": ["d"]})
    {'source_videos': 4, 'in_several_splits': 1, 'by_split': {'train': 1, 'val': 1, 'test': 0}}
    """
    sources = {split: set(videos) for split, videos in splits.items()}
    shared = {
        split: {video for video in videos if any(video in sources[other] for other in sources if other != split)}
        for split, videos in sources.items()
    }
    return {
        "source_videos": len(set().union(*sources.values())),
        "in_several_splits": len(set().union(*shared.values())),
        "by_split": {split: len(videos) for split, videos in shared.items()},
    }


def _weights(count, resamples, seed):
    """Blocks of resamples: (slice, float64[block, count]), how often each of `count` clusters was drawn."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        drawn = rng.integers(count, size=(size, count))
        drawn += count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield slice(start, start + size), weights.astype(float)


def _columns(rows, further_negatives):
    """([(condition, metric), …], float64[N, K]) with NaN where a clip does not define a metric.

    The metrics of `SELECTIVITY` have "" for a condition.
    """
    keys, columns = [], []
    for condition in rows[0]["conditions"]:
        is_negative = condition in (*NEGATIVE_CONDITIONS, *further_negatives)
        clips = [clip_values(row["conditions"][condition], row.get("mask_area"), is_negative) for row in rows]
        keys += [(condition, metric.key) for metric in METRICS]
        columns += [[values[metric.key] for values in clips] for metric in METRICS]
    if any(row.get("selectivity") for row in rows):
        keys += [("", metric.key) for metric in SELECTIVITY]
        columns += [[(row.get("selectivity") or {}).get(m.statistic, np.nan) for row in rows] for m in SELECTIVITY]
    return keys, np.array(columns, float).T


def _named(keys, means, further_negatives):
    """score -> float64[B], from the means of the columns of `_columns`, float64[K, B]."""
    by_condition, by_clip = {}, {}
    for (condition, metric), values in zip(keys, means, strict=True):
        if condition:
            by_condition.setdefault(condition, {})[metric] = values
        else:
            by_clip[metric] = values
    return flat_scores(by_condition, further_negatives) | by_clip


def _similarity(row, condition):
    return row["conditions"].get(condition, {}).get("similarity")


def _shown(names):
    names = sorted(names)
    return ", ".join(repr(name) for name in names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
