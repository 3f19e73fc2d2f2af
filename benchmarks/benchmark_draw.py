"""How near the off-screen draw comes to the best that its rule allows: the search, as an assignment problem.

    python benchmarks/benchmark_draw.py --subset ms3 --data_dir data          tables only, no media

drawn        `avs-data manifest`'s draw of this seed
optimum      the least uneven draw under the rule and, of those, one with the fewest least suitable contrasts. Each
             clip is assigned to a copy of a sound; the k-th copy costs 2k - 1, so that the least total is the least
             sum of squared uses (`scipy.optimize.linear_sum_assignment`, exact)
one to one   what one to one would take: clips whose sound shares a semantic group, or an object, with the picture

AUC is what the sound alone tells of off-screen against positive (`DrawStatistics.sound_auc`).
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from avsbench_robust_dataset import SUBSETS
from avsbench_robust_dataset.draw import Pair, draw_off_screen, draw_statistics
from avsbench_robust_dataset.sources import read_clips
from avsbench_robust_dataset.subsets import SPLITS, Clip, Subset

STEPS = (None, "least_suitable", "shared_group", "shared_category")  # from the rule to the last relaxation
COPIES = 8  # of a sound; each split is checked not to need more
FORBIDDEN = 10**9


def judge(clip: Clip, partner: Clip, subset: Subset) -> tuple[int | None, bool]:
    """(place in `STEPS`, None where never allowed; whether the contrast is the least suitable one) of a pair."""
    own, other = set(subset.groups_of(clip)), set(subset.groups_of(partner))
    least = any(subset.least_suitable.get(group) in other for group in own)
    if clip.source_video == partner.source_video:
        return None, least
    if set(clip.labels) & set(partner.labels):
        return 3, least
    if own & other:
        return 2, least
    return int(least and subset.least_suitable_is_rule), least


def search(clips: list[Clip], subset: Subset, one_to_one: bool) -> list[Pair]:
    """The least uneven draw with each clip at its first possible step; or one to one with the fewest steps."""
    n = len(clips)
    judged = [[judge(clip, partner, subset) for partner in clips] for clip in clips]
    least = np.array([[pair[1] for pair in row] for row in judged])
    step = np.array([[FORBIDDEN if pair[0] is None else pair[0] for pair in row] for row in judged])
    if one_to_one:
        cost = np.where(step < FORBIDDEN, step * (n + 1) + least, FORBIDDEN)
    else:
        allowed = step == step.min(axis=1, keepdims=True)
        cost = np.concatenate(
            [np.where(allowed, (2 * copy + 1) * (n + 1) + least, FORBIDDEN) for copy in range(COPIES)], axis=1
        )
    rows, columns = linear_sum_assignment(cost)
    assert cost[rows, columns].max() < (2 * COPIES - 1) * (n + 1), "needs more copies"
    return [
        Pair(clips[i], clips[j], STEPS[step[i, j]], bool(least[i, j])) for i, j in enumerate((columns % n).tolist())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subset", choices=list(SUBSETS), default="ms3")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    subset = SUBSETS[args.subset]
    print("| split | draw | sounds unused | most uses | AUC | relaxed | least suitable |\n" + "| --- " * 7 + "|")
    for split in SPLITS.values():
        clips = [clip for clip in read_clips(subset, args.data_dir) if clip.split == split]
        draws = {
            "drawn": draw_off_screen(clips, subset, args.seed),
            "optimum": search(clips, subset, one_to_one=False),
            "one to one": search(clips, subset, one_to_one=True),
        }
        for name, pairs in draws.items():
            found = draw_statistics(pairs, subset)
            relaxed = ", ".join(f"{count} {step}" for step, count in found.relaxed.items()) or "none"
            print(
                f"| {split} | {name} | {found.sounds_unused} of {found.clips} | {found.most_uses} "
                f"| {found.sound_auc:.3f} | {relaxed} | {found.least_suitable} |"
            )


if __name__ == "__main__":
    main()
