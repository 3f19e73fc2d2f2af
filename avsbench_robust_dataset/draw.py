"""Who gets whose sound: the off-screen draw, a pure function of (seed, subset, split, clip ids, categories).

The rule (AVSBench-Robust's): a partner's groups differ from all groups of the clip; in S4 they are not the least
suitable contrast either (in MS3 such pairs are avoided where that is free); never the same source video.

Two draws. `matched` is a seeded random one-to-one assignment within the split, so that every sound is heard once as a
positive and once off screen, and nobody who only listens can tell the two conditions apart. Where one to one cannot
be, sounds are reused as evenly as possible; only a clip with no partner at all under the rule is relaxed, by the
nearest step. `released` follows the released script: a random allowed class, then a random clip of it.
"""

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .conditions import generator
from .subsets import Clip, Subset

__all__ = ["DRAWS", "Pair", "compare_manifests", "draw_off_screen", "manifest", "read_manifest", "summarize"]

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


def _share(values: list[Iterable[str]], others: list[Iterable[str]]) -> np.ndarray:
    """bool (n, n): whether clip i's values and clip j's others have one in common."""
    n = len(values)
    common = np.zeros((n, n), dtype=bool)
    columns: dict[str, list[int]] = {}
    for j, names in enumerate(others):
        for name in names:
            columns.setdefault(name, []).append(j)
    rows: dict[str, list[int]] = {}
    for i, names in enumerate(values):
        for name in names:
            rows.setdefault(name, []).append(i)
    for name in rows.keys() & columns.keys():
        common[np.ix_(rows[name], columns[name])] = True
    return common


def _allowed_pairs(clips: list[Clip], subset: Subset) -> tuple[list[tuple[str | None, np.ndarray]], np.ndarray]:
    """Who may get whose sound, as (what is relaxed, bool (n, n)), the rule first, and which contrasts are least."""
    groups = [subset.groups_of(clip) for clip in clips]
    sources = [(clip.source_video,) for clip in clips]
    labels = [clip.labels for clip in clips]
    least = _share([[subset.least_suitable.get(g, "") for g in own] for own in groups], groups)
    other_source = ~_share(sources, sources)
    other_label = other_source & ~_share(labels, labels)
    other_group = other_label & ~_share(groups, groups)
    levels = [("least_suitable", other_group), ("shared_group", other_label), ("shared_category", other_source)]
    if subset.least_suitable_is_rule:
        levels.insert(0, (None, other_group & ~least))
    else:
        levels[0] = (None, other_group)
    return levels, least


def _permutation(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.argsort(rng.bit_generator.random_raw(n), kind="stable")


def _augment(allowed: np.ndarray, sound: np.ndarray, users: list[list[int]], waiting: list[int], capacity: int):
    """Gives waiting clips a sound, at most `capacity` clips a sound, rearranging others where needed.

    Augmenting paths (Kuhn's algorithm, breadth first) over bool (n, n) `allowed`; `sound` and `users` are updated in
    place, sounds in use stay in use, and as many clips as can be are served. Returns those that still wait.
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

    Every row of `allowed` has a True; `preferred` implies `allowed`. The assignment is random: clips and sounds are
    visited in random order, then exchanged at random between clips, which leaves the sounds used as evenly as before
    and never lowers the number of preferred pairs.
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


def _matched(clips: list[Clip], subset: Subset, levels, least: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    allowed = levels[0][1].copy()
    for _, wider in levels[1:]:
        alone = ~allowed.any(axis=1)
        allowed[alone] = wider[alone]
    preferred = allowed & ~least
    return _assign(allowed, preferred, rng)


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
    partner = (_matched if draw == "matched" else _released)(clips, subset, levels, least, rng)
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
        FileNotFoundError: no such file.
        ValueError: a line is no row, or a clip comes twice.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"Expected a manifest at {path}, found no file.") from None
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"Expected a whole gzip file at {path}: {error}. Download it again.") from error
    lines = data.splitlines(keepends=True)
    last = lines.pop() if lines and lines[-1].startswith(b"sha256 ") else b""
    is_whole = last.split() == [b"sha256", hashlib.sha256(b"".join(lines)).hexdigest().encode()]
    rows, seen = [], set()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            key = row["split"], row["clip_id"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"Expected a row with split and clip_id in {path}, line {number}: {error!r}.") from error
        if key in seen:
            raise ValueError(f"Expected each clip once in {path}, but {key[1]!r} is there again in line {number}.")
        seen.add(key)
        rows.append(row)
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


def summarize(pairs: list[Pair]) -> str:
    """One line on a split's draw: how often sounds are reused, what was relaxed."""
    uses = Counter(pair.partner.clip_id for pair in pairs)
    unused = len(pairs) - len(uses)
    relaxed = Counter(pair.relaxation for pair in pairs if pair.relaxation is not None)
    return (
        f"{len(pairs)} clips, "
        + (f"{unused} sounds unused, one used up to {max(uses.values())} times" if unused else "every sound used once")
        + f", relaxed: {', '.join(f'{count} {name}' for name, count in sorted(relaxed.items())) or 'none'}"
        + f", least suitable contrasts: {sum(pair.least_suitable for pair in pairs)}"
    )
