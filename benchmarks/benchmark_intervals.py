"""How often the 95 % intervals hold the truth, and how often equal models "differ", on simulated results.

    OMP_NUM_THREADS=1 python benchmarks/benchmark_intervals.py coverage --repeats 200
    OMP_NUM_THREADS=1 python benchmarks/benchmark_intervals.py equal --repeats 300

Clips have a mask area (log-normal, 10 % of the frame). A model marks the object under positive sound with an IoU from
Beta(18, 2) and misses it altogether in a share `leak` of clips; under each negative condition it marks the object in a
share `leak` of clips, with an IoU from Beta(4, 2), and nothing else. F is that of a whole picture where nothing is
marked. `clustered`: four clips a source video (eight videos of 20 clips), which share each draw with probability 0.8.

`coverage` prints, for each score, how many of the repeated samples have an interval that holds the mean of 200,000
clips; `equal` compares two results of one model on the same clips, with and without an effect of the training seed.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np

from evaluate_metrics import uncertainty

NEGATIVES = ("silence", "noise", "off_screen")
CONDITIONS = ("positive", *NEGATIVES)
SCORES = [f"{metric}_{condition}" for metric in ("miou", "f_score", "fpr") for condition in CONDITIONS[:2]]
SCORES += ["g_miou", "g_miou_silence", "g_f_score", "g_fpr"]


def clip_values(clips: int, videos: np.ndarray, leak: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """ "{iou | area | f_score}_{condition}" -> float64[clips]; `videos` (int[clips]) numbers the source videos."""

    def shared(draw: Callable[[int], np.ndarray]) -> np.ndarray:
        if videos.max() + 1 == clips:
            return draw(clips)
        return np.where(rng.random(clips) < 0.8, draw(videos.max() + 1)[videos], draw(clips))

    area = shared(lambda n: np.exp(rng.normal(np.log(0.1), 0.8, n)).clip(0.005, 0.7))
    whole = 1.3 * area / (0.3 * area + 1)  # F of the whole picture
    found_f = shared(lambda n: rng.beta(30, 2, n))
    misses = shared(rng.random) < leak
    values = {
        "iou_positive": np.where(misses, 0.0, shared(lambda n: rng.beta(18, 2, n))),
        "area_positive": np.where(misses, 0.0, area),
        "f_score_positive": np.where(misses, whole, np.maximum(found_f, whole)),
    }
    for condition in NEGATIVES:
        leaks = shared(rng.random) < leak
        values[f"iou_{condition}"] = np.where(leaks, shared(lambda n: rng.beta(4, 2, n)), 0.0)
        values[f"area_{condition}"] = np.where(leaks, area * shared(lambda n: rng.uniform(0.3, 1.3, n)), 0.0)
        values[f"f_score_{condition}"] = np.where(leaks, np.maximum(0.9 * found_f, whole), whole)
    return values


def rows_of(values: dict[str, np.ndarray], videos: np.ndarray) -> list[dict]:
    """The values as lines of `clips.jsonl`."""
    columns = {key: column.tolist() for key, column in values.items()}
    rows = []
    for clip, video in enumerate(videos.tolist()):
        conditions = {}
        for condition in CONDITIONS:
            iou, area, f_score = (columns[f"{key}_{condition}"][clip] for key in ("iou", "area", "f_score"))
            conditions[condition] = {"iou": [iou], "area": [area], "f_score": f_score}
        rows.append({"clip_id": str(clip), "source_video": str(video), "conditions": conditions})
    return rows


def videos_of(clips: int, clustered: bool) -> np.ndarray:
    return np.arange(clips) % max(8, clips // 4) if clustered else np.arange(clips)


def coverages(clips: int, clustered: bool, leak: float, repeats: int, resamples: int) -> dict[str, float]:
    """score -> the share of `repeats` samples whose interval holds the truth."""
    rng = np.random.default_rng(0)
    whole = clip_values(200_000, np.arange(200_000), leak, rng)
    means = {
        key: {"iou": [column.mean()], "area": [column.mean()], "f_score": column.mean()}
        for key, column in whole.items()
    }
    one = {c: {key: means[f"{key}_{c}"][key] for key in ("iou", "area", "f_score")} for c in CONDITIONS}
    truth = uncertainty.run_scores([{"clip_id": "mean", "conditions": one}])
    videos = videos_of(clips, clustered)
    held = dict.fromkeys(SCORES, 0)
    for _ in range(repeats):
        bounds = uncertainty.intervals(rows_of(clip_values(clips, videos, leak, rng), videos), resamples=resamples)
        for score in SCORES:
            held[score] += bounds[score][0] <= truth[score] + 1e-12 and truth[score] - 1e-12 <= bounds[score][1]
    return {score: count / repeats for score, count in held.items()}


def print_coverage(repeats: int, resamples: int) -> None:
    print("clips  source videos  leak   " + "  ".join(SCORES))
    found = []
    for clustered in (False, True):
        for clips in (20, 64, 160, 740):
            for leak in (0.005, 0.01, 0.03, 0.1):
                cell = coverages(clips, clustered, leak, repeats, resamples)
                found += cell.values()
                shares = "  ".join(f"{cell[score]:>{len(score)}.3f}" for score in SCORES)
                print(f"{clips:>5}  {videos_of(clips, clustered).max() + 1:>13}  {leak:<5}  {shares}", flush=True)
    inside = np.mean([0.93 <= share <= 0.99 for share in found])
    print(f"lowest {min(found):.3f}, highest {max(found):.3f}; {inside:.0%} of {len(found)} lie in 0.93 to 0.99")


def equal_models(clips: int, seeds: int, seed_effect: float, rng: np.random.Generator) -> Iterator[list[list[dict]]]:
    """Two sides of `seeds` results of one model on the same clips, which differ by chance and by the training seed."""
    videos = np.arange(clips)
    common = clip_values(clips, videos, 0.03, rng)
    for _ in range(2):
        side = []
        for effect in seed_effect * rng.normal(size=seeds):
            own = clip_values(clips, videos, 0.03, rng)
            values = {key: np.where(rng.random(clips) < 0.8, common[key], own[key]) for key in common}
            values["iou_positive"] = (values["iou_positive"] + effect).clip(0, 1)
            side.append(rows_of(values, videos))
        yield side


def print_equal(repeats: int, resamples: int) -> None:
    print("clips  seeds a side  effect of the seed  primary score stands  any other score stands  any at p <= 0.05")
    for clips in (20, 64, 160):
        for seeds, effect in ((1, 0.0), (1, 0.02), (3, 0.0), (3, 0.02)):
            rng = np.random.default_rng(0)
            primary = others = uncorrected = 0
            for _ in range(repeats):
                found = uncertainty.compare(*equal_models(clips, seeds, effect, rng), resamples=resamples)
                rest = [difference for difference in found if difference.metric != uncertainty.PRIMARY]
                primary += len(found) - len(rest) and any(d.stands for d in found if d not in rest)
                others += any(difference.stands for difference in rest)
                uncorrected += any(difference.p <= 0.05 for difference in rest)
            shares = (primary / repeats, others / repeats, uncorrected / repeats)
            print(
                f"{clips:>5}  {seeds:>12}  {effect:>18}  {shares[0]:>20.3f}  {shares[1]:>22.3f}  {shares[2]:>16.3f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("coverage", "equal"))
    parser.add_argument("--repeats", type=int, default=1000, help="simulated samples a cell")
    parser.add_argument("--resamples", type=int, default=1000, help="resamples of each sample")
    args = parser.parse_args()
    {"coverage": print_coverage, "equal": print_equal}[args.table](args.repeats, args.resamples)


if __name__ == "__main__":
    main()
