"""How sure a score is: 95 % intervals over clips, and paired tests of the difference of two models.

Every resample gives each source video a random weight (exponential with mean 1: the Bayesian bootstrap, Rubin 1981),
and computes every score on the weighted clips. Clips of one source video share a weight: they resemble each other, and
an interval that takes them for independent is too narrow. Conditions, training seeds and sides share them, too.

A sample without a failure does not show that failures never happen. Each resample therefore has one further source
video that nobody has seen, a good one for one end of the interval and a bad one for the other, see `_unseen`. For
scores that are 0 or 1 in each clip the interval is that of Clopper and Pearson (1934), for others it follows
Learned-Miller and Thomas (2019, arXiv:1905.06208). benchmarks/README.md has the simulated coverage of every score.

An interval covers the choice of clips, not training seeds, the draw of negative sounds, or source videos that a test
split shares with the training split. `compare` takes training seeds into account where a side has several.

A *row* is one clip's line of `clips.jsonl`, see `clip_rows.py`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .avs_robust.avs_robust import (
    METRICS,
    NEGATIVE_CONDITIONS,
    SELECTIVITY,
    clip_parts,
    flat_scores,
    partly_heard_values,
    with_partly_heard,
    without_repeats,
)

__all__ = [
    "PRIMARY",
    "Difference",
    "auroc_of_clips",
    "bootstrap_means",
    "bootstrap_settings",
    "common_conditions",
    "compare",
    "holm",
    "intervals",
    "mean_intervals",
    "paired_rows",
    "run_scores",
    "shared_source_videos",
    "source_clusters",
]

PRIMARY = "g_miou"  # the score that a comparison is about; the others are corrected for their number
RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
_ROUNDING = 1e-6  # a difference no larger than this is an error of rounding
_BLOCK = 256  # resamples at a time: a few MB for 740 clips


@dataclass(frozen=True)
class Difference:
    """A score of two models.

    Attributes:
        a, b: the score of each, of several training seeds the mean.
        low, high: the interval of b - a, not corrected for the number of scores.
        p: two-sided p-value of "the models are equal".
        adjusted: `p` of the primary score, that of others corrected for their number (Holm); NaN of a score of which
            neither direction is better.
        stands: whether `adjusted` is at most 1 - level and b - a is more than rounding.
    """

    metric: str
    a: float
    b: float
    low: float
    high: float
    p: float
    adjusted: float
    stands: bool

    @property
    def difference(self) -> float:
        return self.b - self.a


def bootstrap_means(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    unseen: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> np.ndarray:
    """The weighted mean of every column in each resample.

    Args:
        values (float64[N, K]): NaN is left out of its column's mean.
        clusters (int[N]): from 0 to G - 1, each used; each has one weight. None: every row is its own.
        unseen (float64[K]): the value of one further cluster, which counts as many rows as the others do on average.
            None: there is none.
        seed: of numpy's PCG64. Resample b has the b-th line of `default_rng(seed).exponential(size=(resamples,
            G + 1))` as weights; the last one is that of the unseen cluster.

    Returns:
        float64[resamples, K]; NaN where a column holds no value.
    """
    sums, counts = _cluster_sums(values, np.arange(len(values)) if clusters is None else clusters)
    blocks = [_weighted_means(sums, counts, weights, unseen) for weights in _weights(len(sums), resamples, seed)]
    return np.concatenate(blocks)


def mean_intervals(
    values: np.ndarray,
    clusters: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> np.ndarray:
    """float64[K, 2]: the interval of the mean of each column of `values` (float64[N, K] in [0, 1]).

    Other arguments as in `bootstrap_means`.
    """
    ends = [bootstrap_means(values, clusters, unseen, resamples, seed) for unseen in _unseen(values)]
    return np.stack([np.quantile(ends[0], (1 - level) / 2, axis=0), np.quantile(ends[1], (1 + level) / 2, axis=0)], 1)


def auroc_of_clips(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """How often a clip with its own sound scores higher than another clip with negative sound, clip by clip.

    A clip's own pair is left out. The mean over clips is the AUROC, ties counting one half; the values spread as the
    clips' influence on it does, so that they may leave [0, 1].

    Args:
        positive, negative (float64[N]): the scores of the same N clips, N at least 2.

    Returns:
        float64[N]
    """
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    np.fill_diagonal(wins, 0)
    shares = (wins.sum(axis=0) + wins.sum(axis=1)) / (len(positive) - 1)
    return shares - shares.mean() / 2


def source_clusters(rows: Sequence[Mapping]) -> np.ndarray:
    """int[N]: clips of one source video have one number. A clip without `source_video` is a cluster of its own."""
    names = [(0, row["source_video"]) if row.get("source_video") else (1, row["clip_id"]) for row in rows]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.array([numbers[name] for name in names])


def run_scores(*runs: Sequence[Mapping], extra_negatives: Iterable[str] = ()) -> dict[str, float]:
    """Every score on the clips as they are.

    Args:
        runs: the rows of each training seed of one model, the same clips in all; scores are means over the seeds.
        extra_negatives: conditions beside silence, noise and off_screen in which nothing visible is heard.

    Returns:
        Keys as the metric `avs_robust` has them, and `similarity_auroc_{negative}` where the rows hold similarities.

    Raises:
        ValueError: no clips, clips or conditions that differ; the message names them.
    """
    found = _mean_over(table.plain for table in _tables(runs, extra_negatives))
    return {key: float(values[0]) for key, values in found.items()}


def intervals(
    *runs: Sequence[Mapping],
    extra_negatives: Iterable[str] = (),
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> dict[str, list[float]]:
    """metric -> [low, high] of every score that `run_scores` gives; {} for clips of a single source video.

    Clips whose masks are all empty have no F-score and are left out of F alone, as in the metric.

    Raises:
        ValueError: as `run_scores`.
    """
    tables = _tables(runs, extra_negatives)
    if len(tables[0].sums) == 1:
        return {}
    ends = []
    for table in tables:
        blocks = [table.ends(weights) for weights in _weights(len(table.sums), resamples, seed)]
        ends.append(
            [{key: np.concatenate([block[end][key] for block in blocks]) for key in table.metrics} for end in (0, 1)]
        )
    lows, highs = (_mean_over(run[end] for run in ends) for end in (0, 1))
    quantiles = (1 - level) / 2, (1 + level) / 2
    return {
        key: [float(np.quantile(of[key], q)) for of, q in zip((lows, highs), quantiles, strict=True)] for key in lows
    }


def bootstrap_settings(
    rows: Sequence[Mapping], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> dict[str, int | float | str]:
    """What a reader needs to repeat `intervals`, and how many clusters there are among how many clips."""
    return {
        "method": "Bayesian bootstrap with one unseen cluster",
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
    extra_negatives: Iterable[str] = (),
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> list[Difference]:
    """The differences b - a of every score that both have.

    One result a side: a permutation test that swaps the two results of random source videos (Fisher 1935), and the
    paired bootstrap, where the source video that changes the difference most comes once more. Training seeds on a
    side: the seeds are the units of Student's test, whose variance includes what other clips would bring.

    Args:
        a, b: for each side the rows of one result, or of several training seeds, whose mean is compared.

    Raises:
        ValueError: clips or conditions that are not the same on both sides, or a single source video.
    """
    runs = _tables([*a, *b], extra_negatives)
    if len(runs[0].sums) == 1:
        raise ValueError("Expected clips of at least two source videos to compare, got one.")
    sides = runs[: len(a)], runs[len(a) :]
    means = [_mean_over(table.plain for table in side) for side in sides]
    metrics = [metric for metric in means[0] if metric in means[1]]
    if len(runs) == 2:
        p = _swap_test(runs[0], runs[1], metrics, resamples, seed)
        bounds = _paired_intervals(runs[0], runs[1], metrics, resamples, level, seed)
    else:
        p, bounds = _seeds_test(sides, metrics, level)
    undirected = _without_direction(runs[0])
    others = [metric for metric in metrics if metric != PRIMARY and metric not in undirected]
    corrected = dict(zip(others, holm([p[metric] for metric in others]), strict=True))
    adjusted = p | corrected | dict.fromkeys(undirected, np.nan)
    found = []
    for metric in metrics:
        first, second = (float(side[metric][0]) for side in means)
        low, high = bounds[metric]
        stands = adjusted[metric] <= 1 - level + 1e-12 and abs(second - first) > _ROUNDING
        found.append(Difference(metric, first, second, low, high, p[metric], adjusted[metric], stands))
    return found


def _without_direction(table):
    """The scores of which neither direction is better."""
    negatives = {*NEGATIVE_CONDITIONS, *table.extra_negatives}
    both = {metric.key for metric in METRICS if not metric.heard}
    found = {f"{key}_{c}" for c, key in table.keys if c and c not in negatives and key in both}
    return found | {"audio_blind_floor"}


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): the chance of any false one below 0.05 is at most 5 %.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = float(largest)
    return adjusted


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
    reduced: list[list[Mapping]] = [
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
    splits_of = Counter(video for videos in sources.values() for video in videos)
    shared = {video for video, count in splits_of.items() if count > 1}
    return {
        "source_videos": len(splits_of),
        "in_several_splits": len(shared),
        "by_split": {split: len(videos & shared) for split, videos in sources.items()},
    }


def _weights(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of resamples, float64[block, count + 1]: the weight of each cluster and of the unseen one."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        yield rng.exponential(size=(min(_BLOCK, resamples - start), count + 1))


def _cluster_sums(values, clusters):
    """(float64[G, K], float64[G, K]): the sum and the number of the values of each cluster; NaN is left out."""
    defined = np.isfinite(values)
    sums, counts = np.zeros((2, int(clusters.max()) + 1, values.shape[1]))
    np.add.at(sums, clusters, np.where(defined, values, 0.0))
    np.add.at(counts, clusters, defined)
    return sums, counts


def _weighted_means(sums, counts, weights, unseen=None):
    """float64[R, K] for weights float64[R, G + 1]; the last weight is that of the unseen cluster."""
    weights, last = weights[:, :-1], weights[:, -1:]
    total, number = weights @ sums, weights @ counts
    if unseen is not None:
        size = counts.sum(axis=0) / np.maximum(np.count_nonzero(counts, axis=0), 1)
        total, number = total + last * size * unseen, number + last * size
    return _ratio(total, number)


def _ratio(total, number):
    """NaN where `number` is 0."""
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def _unseen(values):
    """(float64[K], float64[K]): the lowest and the highest value that a further clip is taken to have.

    Half-way from the lowest clip to 0 and from the highest to 1; the limit itself where every clip is at the other.
    """
    empty = ~np.isfinite(values).any(axis=0)
    low = np.where(empty, 1.0, np.nanmin(np.where(empty, 1.0, values), axis=0))
    high = np.where(empty, 0.0, np.nanmax(np.where(empty, 0.0, values), axis=0))
    return np.where(low >= 1, 0.0, low / 2), np.where(high <= 0, 1.0, (high + 1) / 2)


def _unseen_clips(keys, values):
    """`_unseen` of the columns of `_columns`; of a ratio of sums it is the clip's ratio, at a union of mean size."""
    unseen = list(_unseen(values))
    place = {key: column for column, key in enumerate(keys)}
    for condition in {condition for condition, _ in keys if condition}:
        for metric in METRICS:
            if not metric.over:
                continue
            part, whole = place[condition, metric.key], place[condition, metric.over]
            size = values[:, whole].mean()
            shares = _ratio(values[:, part], values[:, whole])
            for end, share in zip(unseen, _unseen(shares[:, None]), strict=True):
                end[part], end[whole] = share[0] * size, size
    return unseen


class _Table:
    """One run's clips by column, summed by source video, and every score from a mean of the columns.

    Attributes:
        keys: the K columns, as `_columns` names them.
        sums, counts (float64[G, K]): of each cluster.
        plain: metric -> float64[1], the scores of the clips as they are.
    """

    def __init__(self, rows: Sequence[Mapping], clusters: np.ndarray, extra_negatives: Sequence[str]):
        self.keys, values = _columns(rows, extra_negatives)
        self.extra_negatives = extra_negatives
        unseen = _unseen_clips(self.keys, values)
        for condition in [*NEGATIVE_CONDITIONS, *extra_negatives]:
            if len(rows) > 1 and all(_similarity(row, c) for row in rows for c in ("positive", condition)):
                pair = [np.array([np.mean(_similarity(row, c)) for row in rows]) for c in ("positive", condition)]
                of_clips = auroc_of_clips(*pair)
                self.keys.append(("", f"similarity_auroc_{condition}"))
                values = np.column_stack([values, of_clips])
                # A further clip that loses, or wins, against all others.
                unseen = [np.append(unseen[0], -of_clips.mean()), np.append(unseen[1], 2 - of_clips.mean())]
        self.unseen = unseen
        self.sums, self.counts = _cluster_sums(values, clusters)
        self.keep(self.keys)

    def keep(self, keys: Sequence[tuple[str, str]]) -> None:
        """Leaves out the columns that are not among `keys`."""
        places = [self.keys.index(key) for key in keys]
        self.keys = list(keys)
        self.sums, self.counts = self.sums[:, places], self.counts[:, places]
        self.unseen = [values[places] for values in self.unseen]
        self.plain = without_repeats(self.scores(np.ones((1, len(self.sums) + 1))))
        self.metrics = list(self.plain)

    def scores(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """metric -> float64[R] of the clips as `weights` (float64[R, G + 1]) weigh them; undefined ones left out."""
        return self.from_means(_weighted_means(self.sums, self.counts, weights))

    def from_means(self, means: np.ndarray) -> dict[str, np.ndarray]:
        """metric -> float64[R] from the columns' means, float64[R, K]."""
        scores = _named(self.keys, means.T, self.extra_negatives)
        return {key: values.clip(0, 1) for key, values in scores.items() if np.isfinite(values).all()}

    def ends(self, weights: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """As `scores`, with an unseen source video that makes each score low, and one that makes it high."""
        low, high = (_weighted_means(self.sums, self.counts, weights, unseen) for unseen in self.unseen)
        is_heard = np.array([condition == "positive" or key.endswith("_heard") for condition, key in self.keys])
        # What is good under positive sound is bad under negative: G-scores need both ends at once.
        good, bad = (self.from_means(np.where(is_heard, *pair)) for pair in ((high, low), (low, high)))
        pairs = {key: (good[key], bad[key]) for key in self.metrics}
        lows = {key: np.minimum(*pair) for key, pair in pairs.items()}
        return lows, {key: np.maximum(*pair) for key, pair in pairs.items()}


def _tables(runs, extra_negatives):
    """The runs' tables, with the columns that all have: a run without a similarity head has fewer."""
    runs = paired_rows(runs)
    clusters = source_clusters(runs[0])
    tables = [_Table(rows, clusters, tuple(extra_negatives)) for rows in runs]
    common = [key for key in tables[0].keys if all(key in table.keys for table in tables)]
    for table in tables:
        table.keep(common)
    return tables


def _mean_over(runs):
    """metric -> the mean over the runs, of the metrics that all of them have."""
    runs = list(runs)
    return {key: np.mean([run[key] for run in runs], axis=0) for key in runs[0] if all(key in run for run in runs)}


def _swap_test(a, b, metrics, resamples, seed):
    """metric -> p-value of the test that swaps the two results of random source videos."""
    observed = {metric: abs(b.plain[metric][0] - a.plain[metric][0]) for metric in metrics}
    reached = dict.fromkeys(metrics, 0)
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        swapped = rng.integers(2, size=(min(_BLOCK, resamples - start), len(a.sums))).astype(float)
        totals = [swapped @ (y - x) for x, y in ((a.sums, b.sums), (a.counts, b.counts))]
        sides = []
        for table, sign in ((a, 1), (b, -1)):
            number = table.counts.sum(axis=0) + sign * totals[1]
            total = table.sums.sum(axis=0) + sign * totals[0]
            sides.append(table.from_means(_ratio(total, number)))
        for metric in metrics:
            if metric in sides[0] and metric in sides[1]:
                larger = np.abs(sides[1][metric] - sides[0][metric]) >= observed[metric] - 1e-12
                reached[metric] += int(np.count_nonzero(larger))
            else:  # swaps that leave a side without a value decide nothing
                reached[metric] += len(swapped)
    return {metric: (count + 1) / (resamples + 1) for metric, count in reached.items()}


def _influence(table):
    """metric -> float64[G]: how the score changes where a source video counts twice."""
    once_more = np.ones((len(table.sums), len(table.sums) + 1))
    once_more[:, :-1] += np.eye(len(table.sums))
    scores = table.scores(once_more)
    return {metric: scores[metric] - plain[0] for metric, plain in table.plain.items()}


def _paired_intervals(a, b, metrics, resamples, level, seed):
    """metric -> (low, high) of b - a; each end has the source video once more that moves it furthest."""
    changes = [_influence(table) for table in (a, b)]
    weights = np.concatenate(list(_weights(len(a.sums), resamples, seed)))
    weights, last = weights[:, :-1], weights[:, -1:]
    drawn = [(weights @ table.sums, weights @ table.counts) for table in (a, b)]
    bounds: dict[str, tuple[float, float]] = {}
    for metric in metrics:
        change = changes[1][metric] - changes[0][metric]
        if np.abs(change).max() < 1e-12 and abs(b.plain[metric] - a.plain[metric])[0] < 1e-12:
            # No clip tells the models apart; of other clips, so many may (Clopper and Pearson).
            share = 1 - ((1 - level) / 2) ** (1 / len(change))
            bounds[metric] = (-share, share)
            continue
        ends = []
        for cluster, quantile in ((change.argmin(), (1 - level) / 2), (change.argmax(), (1 + level) / 2)):
            scores = []
            for table, (total, number) in zip((a, b), drawn, strict=True):
                means = _ratio(total + last * table.sums[cluster], number + last * table.counts[cluster])
                scores.append(table.from_means(means)[metric])
            ends.append(float(np.quantile(scores[1] - scores[0], quantile)))
        bounds[metric] = (ends[0], ends[1])
    return bounds


def _seeds_test(sides, metrics, level):
    """(metric -> p-value, metric -> (low, high) of b - a) by Student's test over the training seeds.

    The choice of clips adds the variance over source videos of what all seeds of a side have in common (a two-way
    layout, seeds by source videos).
    """
    influence = [[_influence(table) for table in side] for side in sides]
    counts = [len(side) for side in sides]
    freedom = sum(counts) - 2
    share = sum(1 / count for count in counts)
    p, bounds = {}, {}
    for metric in metrics:
        of_seeds = [np.array([table.plain[metric][0] for table in side]) for side in sides]
        of_clips = [np.array([run[metric] for run in side]) for side in influence]  # seeds by source videos
        difference = float(of_seeds[1].mean() - of_seeds[0].mean())
        between_seeds = share * sum(np.sum((values - values.mean()) ** 2) for values in of_seeds) / freedom
        between_clips = np.sum((of_clips[1].mean(axis=0) - of_clips[0].mean(axis=0)) ** 2)
        mixed = share * sum(np.sum((values - values.mean(axis=0)) ** 2) for values in of_clips) / freedom
        added = max(0.0, between_clips - mixed)
        variance = between_seeds + added
        if variance < _ROUNDING**2:  # seeds and clips all agree
            p[metric] = 0.0 if abs(difference) > _ROUNDING else 1.0
            bounds[metric] = (difference, difference)
            continue
        # Welch and Satterthwaite
        degrees = variance**2 / (between_seeds**2 / freedom + added**2 / (of_clips[0].shape[1] - 1))
        error = np.sqrt(variance)
        p[metric] = float(2 * stats.t.sf(abs(difference) / error, degrees))
        width = float(error * stats.t.ppf((1 + level) / 2, degrees))
        bounds[metric] = (difference - width, difference + width)
    return p, bounds


def _columns(rows, extra_negatives):
    """([(condition, metric), …], float64[N, K]) with NaN where a clip does not define a metric.

    The metrics of `SELECTIVITY`, and those of conditions that are heard in some frames, have "" for a condition.
    """
    keys: list[tuple[str, str]] = []
    columns: list[Sequence[float]] = []
    for condition, first in rows[0]["conditions"].items():
        if first.get("heard"):
            keys += [("", f"miou_{condition}_heard"), ("", f"fpr_{condition}")]
            columns += zip(*(partly_heard_values(row["conditions"][condition]) for row in rows), strict=True)
            continue
        is_negative = condition in (*NEGATIVE_CONDITIONS, *extra_negatives)
        for metric in METRICS:
            parts = [
                clip_parts(metric, row["conditions"][condition], row.get("mask_area"), is_negative) for row in rows
            ]
            of_clips, wholes = zip(*parts, strict=True)
            keys.append((condition, metric.key))
            columns.append(of_clips)
            if metric.over:
                keys.append((condition, metric.over))
                columns.append(wholes)
    if any(row.get("selectivity") for row in rows):
        keys += [("", metric.key) for metric in SELECTIVITY]
        columns += [[(row.get("selectivity") or {}).get(m.statistic, np.nan) for row in rows] for m in SELECTIVITY]
    return keys, np.array(columns, float).T


def _named(keys, means, extra_negatives):
    """score -> float64[B], from the means of the columns of `_columns`, float64[K, B]."""
    by_condition: dict[str, dict[str, np.ndarray]] = {}
    by_clip = {}
    for (condition, metric), values in zip(keys, means, strict=True):
        if condition:
            by_condition.setdefault(condition, {})[metric] = values
        else:
            by_clip[metric] = values
    for of in by_condition.values():
        for metric in METRICS:
            if metric.over:
                of[metric.key] = _ratio(of[metric.key], of.pop(metric.over))
    return flat_scores(by_condition, extra_negatives) | with_partly_heard(by_clip)


def _similarity(row, condition):
    return row["conditions"].get(condition, {}).get("similarity")


def _shown(names):
    names = sorted(names)
    return ", ".join(repr(name) for name in names[:5]) + (f", … ({len(names)})" if len(names) > 5 else "")
