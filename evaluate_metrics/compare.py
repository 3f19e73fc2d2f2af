"""Which differences between two results stand: `avs-report compare a/results.json b/results.json`.

Both are compared clip by clip. One score, G-mIoU, decides; the p-values of the others are corrected for their number.
Where a side has several training seeds, the seeds are the units.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from . import uncertainty
from .avs_robust.avs_robust import CONDITIONS
from .clip_rows import have_two_values
from .results import Run, check_annotations, extra_negatives

__all__ = ["MIN_CLIPS", "Comparison", "compare_runs"]

MIN_CLIPS = 20  # fewer decide nothing


@dataclass(frozen=True)
class Comparison:
    """Two models' scores side by side.

    Attributes:
        differences: metric -> its difference.
        settings: how the intervals were made, as `uncertainty.bootstrap_settings` gives them.
        seeds: how many training seeds each side has.
        notes: what the reader should know: left-out conditions, another draw of sounds.
    """

    differences: Mapping[str, uncertainty.Difference]
    settings: dict
    seeds: tuple[int, int]
    notes: Sequence[str]

    @property
    def covers_training_seeds(self) -> bool:
        return sum(self.seeds) > 2

    @property
    def explanation(self) -> list[str]:
        """How to read the differences, a sentence or two a line."""
        scores = {metric: found for metric, found in self.differences.items() if not math.isnan(found.adjusted)}
        others = [found for metric, found in scores.items() if metric != uncertainty.PRIMARY]
        primary = self.differences.get(uncertainty.PRIMARY)
        verdict = "was not measured" if primary is None else "stands" if primary.stands else "does not stand"
        lines = [
            f"The primary score is G-mIoU; its difference {verdict}. Of the {len(others)} others that can be better "
            f"{sum(found.stands for found in others)} stand; their p-values are corrected for their number (Holm). A "
            f"difference stands if its p is at most {1 - self.settings['level']:.3g}. The intervals are not corrected."
        ]
        clips = f"{self.settings['clips']} clips of {self.settings['clusters']} source videos"
        if self.covers_training_seeds:
            a, b = self.seeds
            lines.append(
                f"The units are the training seeds, {a} and {b}: Student's test and interval, with the variance that "
                f"the choice of the {clips} adds."
            )
            if 1 in self.seeds:
                lines.append(
                    "One side has a single training seed: its variance is taken to be that of the other side."
                )
        else:
            lines.append(
                "Training seeds are not covered: each side is a single training run, and another seed of the same "
                "method may differ as much. Give several seeds a side."
            )
            lines.append(
                f"Permutation test that swaps the results of a source video, and paired bootstrap, over {clips}; "
                f"{self.settings['resamples']} resamples, seed {self.settings['seed']}."
            )
        return [*lines, *self.notes]


def compare_runs(
    a: Sequence[Run],
    b: Sequence[Run],
    *,
    resamples: int = uncertainty.RESAMPLES,
    level: float = uncertainty.LEVEL,
    seed: int = uncertainty.SEED,
    mixed_levels: bool = False,
    mixed_annotations: bool = False,
) -> Comparison:
    """The differences b - a of all scores that both sides have; several runs of a side are training seeds.

    An extra condition that one side lacks is left out, with a note; of silence, noise and off_screen both must have
    the same, because the G-scores average over them. F and G-F are left out, with a note, where the predictions have
    different numbers of grey levels: the maximum over thresholds is higher for the same masks in 1-bit.

    Args:
        mixed_levels: compare F and G-F all the same.
        mixed_annotations: compare scores on AVSBench-object's masks with scores on AVSBench-semantic's.

    Raises:
        ValueError: a run without clips, or clips, conditions or annotations that differ; the message names them.
    """
    runs = [*a, *b]
    for run in runs:
        if not run.clips:
            raise ValueError(
                f"Expected clips.jsonl beside the results of {run.name!r}, as evaluate_accelerate.py writes it: a "
                "paired comparison needs each clip's scores. Evaluate again."
            )
    notes = []
    if other_masks := check_annotations(runs, mixed_annotations):
        notes.append(other_masks)
    elif any(run.annotation == "semantic" for run in runs):
        notes.append("All scores are on the masks of AVSBench-semantic, not on the benchmark's of AVSBench-object.")
    front_ends = {str(run.settings["front_end"]) for run in runs if run.settings.get("front_end")}
    if len(front_ends) > 1:
        raise ValueError(
            f"Expected results of one front end, got {' and '.join(sorted(front_ends))}: the released one tells a "
            "model which sounds are negative, so that the difference is not one of models. Score both with the same."
        )
    rows, left_out = uncertainty.common_conditions([run.clips for run in runs])
    if set(left_out) & set(CONDITIONS):
        missing = ", ".join(c for c in CONDITIONS if c in left_out)
        raise ValueError(
            f"Expected the same conditions on both sides, but not every result has {missing}. Score both under them."
        )
    if left_out:
        notes.append(f"Left out, because not every result has them: {', '.join(left_out)}.")
    if len({(run.subset, run.split) for run in runs}) > 1:
        notes.append("The results name different subsets or splits, but have the same clips.")
    if len({json.dumps(run.settings.get("seed"), default=str) for run in runs}) > 1:
        notes.append("The results name different seeds of the draw: the negative sounds may not be the same ones.")
    levels = _levels_note(runs, mixed_levels)
    if levels:
        notes.append(levels)
        if not mixed_levels:
            rows = [[_without_f(row) for row in of_run] for of_run in rows]
    rows = uncertainty.paired_rows(rows)
    other = {
        row["clip_id"]
        for table in rows[1:]
        for row, first in zip(table, rows[0], strict=True)
        if row.get("mask_area") != first.get("mask_area")
    }
    if other:
        notes.append(f"{len(other)} clips were scored against masks of another area, {min(other)!r} among them.")
    options = dict(resamples=resamples, seed=seed)
    found = uncertainty.compare(
        rows[: len(a)], rows[len(a) :], extra_negatives=extra_negatives(runs), level=level, **options
    )
    differences = {difference.metric: difference for difference in found}
    if len(rows[0]) < MIN_CLIPS:
        notes.append(
            f"{len(rows[0])} clips cannot decide: below {MIN_CLIPS} no difference is said to stand. Score more clips."
        )
        differences = {metric: replace(found, stands=False) for metric, found in differences.items()}
    settings = uncertainty.bootstrap_settings(rows[0], level=level, **options)
    return Comparison(differences, settings, (len(a), len(b)), notes)


def _levels_note(runs, mixed_levels):
    """What to say of predictions with different numbers of grey levels; "" where they are the same."""
    levels: dict[str, list[str]] = {}
    for run in runs:
        level = run.settings.get("prediction_levels") or ("1-bit" if have_two_values(run.clips) else "unknown")
        levels.setdefault(level, []).append(repr(run.name))
    known = levels.keys() - {"unknown"}
    if len(known) < 2 and not ("1-bit" in levels and len(levels) > 1):
        return ""
    found = "; ".join(f"{level}: {', '.join(names)}" for level, names in levels.items())
    if mixed_levels:
        return f"The predictions have different numbers of grey levels ({found}), on which F and G-F depend."
    return (
        f"F and G-F are left out: they depend on the predictions' grey levels, which differ ({found}). Save both as "
        "8-bit probabilities, or compare them all the same with --mixed_levels."
    )


def _without_f(row):
    return {**row, "conditions": {c: {**values, "f_score": None} for c, values in row["conditions"].items()}}
