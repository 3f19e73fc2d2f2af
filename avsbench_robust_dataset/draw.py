"""Who gets whose sound: the off-screen draw, a pure function of (seed, subset, split, clip ids, categories).

The rule (AVSBench-Robust's): a partner's groups differ from all groups of the clip; in S4 they are not the least
suitable contrast either (in MS3 such pairs are avoided where that is free); never the same source video.

`matched` is a random one-to-one assignment within the split. Where that cannot be (MS3, small splits), sounds are
reused as evenly as possible, and only a clip with no partner at all under the rule is relaxed: an optimal
semi-matching (Harvey et al. 2006, "Semi-matchings for bipartite graphs and load balancing"), which has the lowest
possible `DrawStatistics.sound_auc`. `released` follows the released script: a random allowed class, then a random clip
of it.
"""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .conditions import generator
from .subsets import Clip, Subset

DRAWS = ("matched", "released")
MIXING_ROUNDS = 100  # each proposes every clip an exchange with another one, and with another two


@dataclass(frozen=True)
class Pair:
    """A clip and the clip whose sound it gets off screen.

    Attributes:
        relaxation: None where the pair follows the rule, else what had to be allowed: "least_suitable" (contrast),
            "shared_group" or "shared_category" (of MS3: an object in common).
        least_suitable: whether the partner's sound is the least suitable contrast to one of the clip's groups.
    """

    clip: Clip
    partner: Clip
    relaxation: str | None
    least_suitable: bool


def _share(values: Sequence[Iterable[str]], others: Sequence[Iterable[str]]) -> np.ndarray:
    """bool (n, n): whether clip i's values and clip j's others have one in common."""
    from sklearn.preprocessing import MultiLabelBinarizer  # here, because it takes a second to import

    binarizer = MultiLabelBinarizer(sparse_output=True).fit([*values, *others])
    return (binarizer.transform(values) @ binarizer.transform(others).T).toarray() > 0


def _allowed_pairs(clips: list[Clip], subset: Subset) -> tuple[list[tuple[str | None, np.ndarray]], np.ndarray]:
    """Who may get whose sound, as (what is relaxed, bool (n, n)), the rule first, and which contrasts are least."""
    groups = [subset.groups_of(clip) for clip in clips]
    sources = [(clip.source_video,) for clip in clips]
    labels = [clip.labels for clip in clips]
    least = _share([[subset.least_suitable.get(g, "") for g in own] for own in groups], groups)
    other_source = ~_share(sources, sources)
    other_label = other_source & ~_share(labels, labels)
    other_group = other_label & ~_share(groups, groups)
    levels: list[tuple[str | None, np.ndarray]] = [(None, other_group)]
    if subset.least_suitable_is_rule:
        levels = [(None, other_group & ~least), ("least_suitable", other_group)]
    return [*levels, ("shared_group", other_label), ("shared_category", other_source)], least


def _nearest(levels: list[tuple[str | None, np.ndarray]]) -> np.ndarray:
    """bool (n, n): the rule's pairs; for a clip without any, those of the nearest relaxation that has some."""
    allowed = levels[0][1]
    for _, wider in levels[1:]:
        allowed = np.where(allowed.any(axis=1, keepdims=True), allowed, wider)
    return allowed


def pairing_rules(clips: Sequence[Clip], subset: Subset) -> tuple[np.ndarray, np.ndarray]:
    """Which sounds are off screen for which of one split's clips, and which of the clips may share a picture.

    Returns:
        (may_hear, may_meet), bool (n, n). `may_hear[i, j]`: the sound of clip j follows the rule for clip i, or is
        what a "matched" draw gives it. `may_meet[i, j]`: the clips are of different source videos, their objects are
        known, and they have none in common.
    """
    levels, _ = _allowed_pairs(list(clips), subset)
    known = np.array([bool(clip.labels) for clip in clips])
    return _nearest(levels), dict(levels)["shared_group"] & known & known[:, None]


def _permutation(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.argsort(rng.bit_generator.random_raw(n), kind="stable")


def _augment(allowed: np.ndarray, sound: np.ndarray, users: list[list[int]], waiting: list[int], capacity: int):
    """Gives waiting clips a sound, at most `capacity` clips a sound; returns those that still wait.

    Augmenting paths (Kuhn's algorithm, breadth first) over bool (n, n) `allowed`; `sound` and `users` are updated in
    place, sounds in use stay in use, and as many clips as can be are served.
    """
    n = len(sound)
    is_open = np.array([len(clips) < capacity for clips in users])
    closed = np.zeros(n, dtype=bool)  # reached by a failed search: no later search at this capacity gets on from here
    failed = []
    for start in waiting:
        seen, reached_by = closed.copy(), {}
        queue, end = [start], None
        for clip in queue:
            fresh = allowed[clip] & ~seen
            free = fresh & is_open
            end = int(free.argmax())
            if free[end]:
                reached_by[end] = clip
                break
            end = None
            seen |= fresh
            for taken in np.flatnonzero(fresh).tolist():
                reached_by[taken] = clip
                queue.extend(users[taken])
        if end is None:
            closed = seen
            failed.append(start)
            continue
        position = end
        while True:  # shift each clip on the path to the sound at which the search reached it
            clip = reached_by[position]
            previous = int(sound[clip])
            users[position].append(clip)
            sound[clip] = position
            if clip == start:
                break
            users[previous].remove(clip)
            position = previous
        is_open[end] = len(users[end]) < capacity
    return failed


def _assign(allowed: np.ndarray, preferred: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int (n,): a sound for each clip, one to one if that can be, else reused as evenly as possible.

    Every row of `allowed` has a True; `preferred` implies `allowed`. Clips and sounds are visited in random order,
    then exchanged at random, which leaves the sounds used as evenly and never lowers the number of preferred pairs.
    """
    n = len(allowed)
    clip_order, sound_order = _permutation(rng, n), _permutation(rng, n)
    shuffled = allowed[np.ix_(clip_order, sound_order)]
    sound = np.full(n, -1)
    users: list[list[int]] = [[] for _ in range(n)]
    waiting, capacity = list(range(n)), 0
    while waiting:
        capacity += 1
        waiting = _augment(shuffled, sound, users, waiting, capacity)
    partner = np.empty(n, dtype=np.int64)
    partner[clip_order] = sound_order[sound]

    uses = np.bincount(partner, minlength=n)
    for _ in range(MIXING_ROUNDS):
        for size in (2, 3):
            members = _permutation(rng, n)[: n - n % size].reshape(size, -1)
            own, offered = partner[members], np.roll(partner[members], 1, axis=0)
            accepted = allowed[members, offered].all(axis=0)
            accepted &= preferred[members, offered].sum(axis=0) >= preferred[members, own].sum(axis=0)
            partner[members[:, accepted]] = offered[:, accepted]
        if uses.max() > 1:  # move single clips too, from a sound to one used once less, which is as even as before
            clips, offered = np.arange(n), _permutation(rng, n)
            accepted = allowed[clips, offered] & (preferred[clips, offered] >= preferred[clips, partner])
            for clip in np.flatnonzero(accepted).tolist():
                old, new = partner[clip], offered[clip]
                if uses[new] == uses[old] - 1:
                    partner[clip] = new
                    uses[old] -= 1
                    uses[new] += 1
    return partner


def _released(clips: list[Clip], subset: Subset, levels, least: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    def choose(options: list):
        return options[int(rng.bit_generator.random_raw()) * len(options) >> 64]

    # The MS3 script keeps away from least suitable groups too, and falls back to any other video at once.
    steps = [m for _, m in levels] if subset.least_suitable_is_rule else [levels[0][1] & ~least, levels[-1][1]]
    partner = []
    for i in range(len(clips)):
        row = next(step[i] for step in steps if step[i].any())
        options = np.flatnonzero(row).tolist()
        if subset.category_column is not None:
            category = choose(sorted({clips[j].category for j in options}))
            options = [j for j in options if clips[j].category == category]
        partner.append(choose(options))
    return np.array(partner)


def draw_off_screen(clips: Iterable[Clip], subset: Subset, seed: int, draw: str = "matched") -> list[Pair]:
    """The partner of each clip of one split, sorted by clip id.

    Args:
        clips: all clips of one split, in any order.
        draw: "matched" or "released".

    Raises:
        ValueError: `draw` is unknown, or the split has clips of a single source video only.
    """
    if draw not in DRAWS:
        raise ValueError(f"Expected one of {', '.join(DRAWS)} for `draw`, got {draw!r}.")
    clips = sorted(clips, key=lambda clip: clip.clip_id)
    if not clips:
        return []
    split = clips[0].split
    if len({clip.source_video for clip in clips}) < 2:
        raise ValueError(
            f"Expected clips of at least two source videos in split {split!r} of {subset.name}, to draw off-screen "
            f"sounds from, got {len(clips)} clip(s) of {clips[0].source_video!r} only. Add clips to {subset.table}."
        )
    levels, least = _allowed_pairs(clips, subset)
    rng = generator(seed, subset.name, split, "off_screen")
    if draw == "matched":
        allowed = _nearest(levels)
        partner = _assign(allowed, allowed & ~least, rng)
    else:
        partner = _released(clips, subset, levels, least, rng)
    return [
        Pair(
            clip=clips[i],
            partner=clips[j],
            relaxation=next(name for name, level in levels if level[i, j]),
            least_suitable=bool(least[i, j]),
        )
        for i, j in enumerate(partner.tolist())
    ]


def manifest(pairs: Iterable[Pair], subset: Subset) -> Iterator[str]:
    """The draw as JSON lines sorted by (split, clip id), then `sha256 <hex>` of these lines with their newlines."""
    digest = hashlib.sha256()
    for pair in sorted(pairs, key=lambda pair: (pair.clip.split, pair.clip.clip_id)):
        row = {
            "split": pair.clip.split,
            "clip_id": pair.clip.clip_id,
            "category": pair.clip.category,
            "groups": subset.groups_of(pair.clip),
            "off_screen_source": pair.partner.clip_id,
            "off_screen_category": pair.partner.category,
            "off_screen_groups": subset.groups_of(pair.partner),
            "relaxation": pair.relaxation,
            "least_suitable": pair.least_suitable,
        }
        line = json.dumps(row) + "\n"  # ASCII, so that the digest does not depend on an encoding
        digest.update(line.encode())
        yield line
    yield f"sha256 {digest.hexdigest()}\n"


def read_manifest(path: Path) -> tuple[list[dict], bool]:
    """The rows of a file that holds what `manifest` yields, also gzipped, and whether its last line is their SHA-256.

    Raises:
        OSError, ValueError: it cannot be read, or a line is not a row.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"Expected a whole gzip file at {path}: {error}. Download it again.") from error
    lines = data.splitlines(keepends=True)
    last = lines.pop() if lines and lines[-1].startswith(b"sha256 ") else b""
    is_whole = last.split() == [b"sha256", hashlib.sha256(b"".join(lines)).hexdigest().encode()]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
            rows[-1]["split"], rows[-1]["clip_id"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"Expected a row with split and clip_id in {path}, line {number}: {error!r}.") from error
    return rows, is_whole


def compare_manifests(published: Iterable[dict], drawn: Iterable[dict]) -> list[str]:
    """One line for each clip whose rows differ or that only one side has, sorted by (split, clip id)."""
    sides = [{(row["split"], row["clip_id"]): row for row in rows} for rows in (published, drawn)]
    lines = []
    for key in sorted(sides[0].keys() | sides[1].keys()):
        ours, theirs = (side.get(key) for side in reversed(sides))
        name = " ".join(key)
        if ours is None or theirs is None:
            lines.append(f"{name}: only in {'the file' if ours is None else 'the draw here'}")
        elif ours != theirs:
            fields = [field for field in {**theirs, **ours} if theirs.get(field) != ours.get(field)]
            values = (f"{f} {json.dumps(theirs.get(f))} in the file, {json.dumps(ours.get(f))} here" for f in fields)
            lines.append(f"{name}: {'; '.join(values)}")
    return lines


@dataclass(frozen=True)
class DrawStatistics:
    """How far a split's draw is from one to one, and which contrasts it hears. `dataclasses.asdict` gives plain JSON.

    Attributes:
        sounds_unused, sounds_reused: sounds that are heard off screen never, and more than once.
        most_uses: off-screen uses of the sound that has most of them.
        sound_auc: the area under the ROC curve, off-screen against positive, of the best score that is a function of
            the sound alone. 0.5 is chance, and what one to one gives.
        relaxed: what had to be allowed (`Pair.relaxation`) -> number of pairs.
        least_suitable: pairs whose contrast is the least suitable one.
        group_pairs: "groups of the picture > groups of the sound" -> number of pairs, most frequent first. Groups of
            one clip are joined by "+"; "?" where AVSS does not name the clip's objects.
    """

    clips: int
    sounds_unused: int
    sounds_reused: int
    most_uses: int
    sound_auc: float
    relaxed: dict[str, int]
    least_suitable: int
    group_pairs: dict[str, int]


def draw_statistics(pairs: Iterable[Pair], subset: Subset) -> DrawStatistics:
    """The statistics of the pairs of one split, of which there is at least one."""
    pairs = list(pairs)
    uses_of = Counter(pair.partner.clip_id for pair in pairs)
    uses = np.sort([uses_of[pair.clip.clip_id] for pair in pairs])
    n = len(uses)
    # Each sound is positive once and off screen `uses` times, so the best score is the number of uses. A pair of
    # sounds adds the larger of its two numbers to the wins: the AUC is (1 + Gini coefficient of the uses) / 2.
    differences = int((uses * (2 * np.arange(n) - n + 1)).sum())  # sum of |uses - uses'| over pairs of sounds
    relaxed = Counter(pair.relaxation for pair in pairs if pair.relaxation is not None)
    groups = Counter(
        " > ".join("+".join(subset.groups_of(clip)) or "?" for clip in (pair.clip, pair.partner)) for pair in pairs
    )
    return DrawStatistics(
        clips=n,
        sounds_unused=int((uses == 0).sum()),
        sounds_reused=int((uses > 1).sum()),
        most_uses=int(uses[-1]),
        sound_auc=0.5 + differences / (2 * n * n),
        relaxed=dict(sorted(relaxed.items())),
        least_suitable=sum(pair.least_suitable for pair in pairs),
        group_pairs=dict(sorted(groups.items(), key=lambda item: (-item[1], item[0]))),
    )


def summarize(statistics: DrawStatistics) -> str:
    """Two lines on a split's draw: reuse, relaxations and what a sound tells by itself; then the group pairings."""
    reuse = "every sound used once"
    if statistics.sounds_unused:
        reuse = f"{statistics.sounds_unused} sounds unused, one used up to {statistics.most_uses} times"
    return (
        f"{statistics.clips} clips, {reuse}, relaxed: {_counts(statistics.relaxed) or 'none'}, "
        f"least suitable contrasts: {statistics.least_suitable}, AUC of the sound alone: {statistics.sound_auc:.2f}\n"
        f"  picture > sound: {', '.join(f'{names} {count}' for names, count in statistics.group_pairs.items())}"
    )


def explain(statistics: Mapping[str, DrawStatistics], draw: str = "matched") -> str:
    """What to know before believing off-screen scores, in plain sentences; "" where the draw is one to one.

    Args:
        statistics: split -> its statistics, of one subset.
    """
    sentences = []
    uneven = {split: of_split for split, of_split in statistics.items() if of_split.sounds_unused}
    if uneven:
        reason = (
            "not one to one: each must come from another video and from another semantic group (music, human, animal, "
            "device) than the picture, and these clips are too few or too alike for that"
            if draw == "matched"
            else "drawn anew for each clip, as in the released script, whether or not another clip has the same one"
        )
        unused = [f"{of_split.sounds_unused} of {of_split.clips} in {split}" for split, of_split in uneven.items()]
        auc = [f"{of_split.sound_auc:.2f} in {split}" for split, of_split in uneven.items()]
        sentences += [
            f"Off-screen sounds are {reason}.",
            f"Never heard off screen are {', '.join(unused)}; others are heard there twice or more.",
            "Whoever only recognises which sound it is, and never looks at the picture, tells off-screen from "
            f"positive sound with an AUC of {', '.join(auc)} (0.50 is guessing), so small differences in off-screen "
            "scores can come from the draw.",
        ]
    relaxed = [
        f"{sum(of_split.relaxed.values())} of {of_split.clips} in {split} ({_counts(of_split.relaxed)})"
        for split, of_split in statistics.items()
        if of_split.relaxed
    ]
    if relaxed:
        sentences.append(
            f"No other clip has an allowed sound for {', '.join(relaxed)}: these hear the nearest there is, so a "
            "model that marks the visible object may be right about the kind of sound."
        )
    return " ".join(sentences)


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in numbers.items())
