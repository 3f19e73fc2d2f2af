"""The off-screen draw: who may get whose sound, that it is one to one where it can be, and that it is random."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avsbench_robust_dataset import OBJECT_GROUPS, SINGLE_SOURCE_GROUPS, SUBSETS
from avsbench_robust_dataset.draw import draw_off_screen, draw_statistics, explain, manifest, summarize
from avsbench_robust_dataset.subsets import Clip

S4, MS3 = SUBSETS["s4"], SUBSETS["ms3"]
CATEGORIES = sorted(SINGLE_SOURCE_GROUPS)


def s4_clips(categories, split="train"):
    return [Clip(f"clip{i:05d}", split, name, (name,), f"clip{i:05d}") for i, name in enumerate(categories)]


def ms3_clips(labels_and_sources, split="train"):
    return [
        Clip(f"{source}_{i}", split, "_".join(labels), tuple(labels), source)
        for i, (labels, source) in enumerate(labels_and_sources)
    ]


# --- the rule, written down a second time, for one pair ---


def broken(clip, partner, subset):
    """How far a pair is from the rule: 0 follows it, None never allowed."""
    if clip.source_video == partner.source_video:
        return None
    if set(clip.labels) & set(partner.labels):
        return "shared_category"
    own = {subset.groups.get(label, label) for label in clip.labels}
    other = {subset.groups.get(label, label) for label in partner.labels}
    if own & other:
        return "shared_group"
    if subset.name != "ms3" and is_least_suitable(clip, partner, subset):
        return "least_suitable"
    return 0


def is_least_suitable(clip, partner, subset):
    contrasts = {("music", "human"), ("human", "music"), ("animal", "human")}
    if subset.name == "ms3":
        contrasts.add(("device", "music"))
    own = {subset.groups.get(label, label) for label in clip.labels}
    other = {subset.groups.get(label, label) for label in partner.labels}
    return bool(contrasts & set(itertools.product(own, other)))


ORDER = [0, "least_suitable", "shared_group", "shared_category"]


def options(clips, subset):
    """Per clip: the partners at the first step of relaxation that has any."""
    found = []
    for clip in clips:
        steps = [[j for j, other in enumerate(clips) if broken(clip, other, subset) == step] for step in ORDER]
        # a wider step admits the narrower ones too, but those are empty when it is reached
        found.append(next(step for step in steps if step))
    return found


def best_by_trying_everything(clips, subset):
    """(least sum of squared uses, most partners that are not least suitable) over all assignments."""

    def score(assignment):
        uses = np.bincount(assignment, minlength=len(clips))
        suitable = sum(not is_least_suitable(clips[i], clips[j], subset) for i, j in enumerate(assignment))
        return int((uses**2).sum()), -suitable

    return min(map(score, itertools.product(*options(clips, subset)))), score


def check_against_trying_everything(clips, subset, seed):
    clips = sorted(clips, key=lambda clip: clip.clip_id)
    pairs = draw_off_screen(clips, subset, seed)
    assert [pair.clip for pair in pairs] == clips
    for pair in pairs:
        fault = broken(pair.clip, pair.partner, subset)
        assert fault is not None
        assert pair.relaxation == (fault or None)
        assert pair.least_suitable == is_least_suitable(pair.clip, pair.partner, subset)
    index = {clip.clip_id: i for i, clip in enumerate(clips)}
    assignment = [index[pair.partner.clip_id] for pair in pairs]
    assert all(j in allowed for j, allowed in zip(assignment, options(clips, subset), strict=True))
    best, score = best_by_trying_everything(clips, subset)
    if subset.name == "ms3":
        assert score(assignment) == best
    else:
        assert score(assignment)[0] == best[0]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(CATEGORIES), min_size=2, max_size=6), st.integers(0, 2**32))
def test_s4_is_as_even_as_any_assignment_can_be(categories, seed):
    check_against_trying_everything(s4_clips(categories), S4, seed)


objects = st.lists(st.sampled_from(["guitar", "man", "dog", "car", "baby", "piano", "cat"]), max_size=2, unique=True)
ms3_tables = st.lists(st.tuples(objects, st.sampled_from("uvwxyz")), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ms3_tables.filter(lambda rows: len({source for _, source in rows}) > 1), st.integers(0, 2**32))
def test_ms3_is_as_even_and_then_as_suitable_as_any_assignment_can_be(rows, seed):
    check_against_trying_everything(ms3_clips(rows), MS3, seed)


def test_ms3_chooses_which_sound_to_reuse_by_suitability():
    """A table on which exchanges between clips alone stop short of the best: a clip has to move to a spare sound."""
    labels = [
        ["piano"],
        ["baby", "background", "car"],
        ["car"],
        ["violin"],
        ["dog", "guitar"],
        ["car", "dog", "piano"],
    ]
    clips = ms3_clips(zip(labels, ["v3", "v1", "v2", "v0", "v2", "v3"], strict=True))
    for seed in range(20):
        check_against_trying_everything(clips, MS3, seed)


def auc_of_the_sound(uses):
    """By definition: every off-screen sound against every positive one, scored by how often it is heard off screen."""
    off_screen = [score for score in uses for _ in range(score)]
    wins = [(score > other) + (score == other) / 2 for score in off_screen for other in uses]
    return sum(wins) / len(wins)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(ms3_tables.filter(lambda rows: len({source for _, source in rows}) > 1), st.integers(0, 2**32))
def test_no_draw_under_the_rule_tells_less_by_the_sound_alone(rows, seed):
    clips = sorted(ms3_clips(rows), key=lambda clip: clip.clip_id)
    auc = draw_statistics(draw_off_screen(clips, MS3, seed), MS3).sound_auc
    assignments = itertools.product(*options(clips, MS3))
    least = min(auc_of_the_sound(np.bincount(assignment, minlength=len(clips))) for assignment in assignments)
    assert auc == pytest.approx(least, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_many_clips_of_few_groups_are_as_even_as_the_assignment_problem_allows(seed):
    """Oracle: scipy's assignment of clips to copies of the sounds, the k-th copy at the cost of 2k - 1."""
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(seed)
    names = rng.choice(["guitar", "man", "dog", "car"], size=(120, 2), p=[0.5, 0.3, 0.15, 0.05])
    rows = [(list(dict.fromkeys(pair[: rng.integers(1, 3)])), f"v{rng.integers(100)}") for pair in names]
    clips = sorted(ms3_clips(rows), key=lambda clip: clip.clip_id)
    allowed = np.zeros((120, 120), dtype=bool)
    for i, partners in enumerate(options(clips, MS3)):
        allowed[i, partners] = True
    copies = 12
    cost = np.concatenate([np.where(allowed, 2 * k + 1, 10**6) for k in range(copies)], axis=1)
    chosen = linear_sum_assignment(cost)
    assert cost[chosen].max() < 2 * copies - 1  # more copies would not help
    uses = np.bincount(chosen[1] % 120, minlength=120)
    assert (uses == 0).sum() > 10
    pairs = draw_off_screen(clips, MS3, seed)
    drawn = Counter(pair.partner.clip_id for pair in pairs)
    assert sorted(drawn[clip.clip_id] for clip in clips) == sorted(uses)
    assert draw_statistics(pairs, MS3).sound_auc == pytest.approx(auc_of_the_sound(uses), abs=1e-12)


def test_statistics_by_hand():
    """Five dogs hear two cars, three and two of them; the cars hear one dog each."""
    clips = s4_clips(["dog_barking"] * 5 + ["race_car"] * 2)
    statistics = draw_statistics(draw_off_screen(clips, S4, seed=0), S4)
    assert (statistics.clips, statistics.sounds_unused, statistics.sounds_reused, statistics.most_uses) == (7, 3, 2, 3)
    # 3 sounds with no use, 2 with one, 1 with two, 1 with three: wins of 7 off-screen against 7 positive sounds
    wins = 2 * (3 + 2 / 2) + 2 * (3 + 2 + 1 / 2) + 3 * (3 + 2 + 1 + 1 / 2)
    assert statistics.sound_auc == pytest.approx(wins / 49, abs=1e-12)
    assert (statistics.relaxed, statistics.least_suitable) == ({}, 0)
    assert statistics.group_pairs == {"animal > device": 5, "device > animal": 2}


def test_what_is_said_of_a_draw():
    whole = draw_statistics(draw_off_screen(s4_clips(["dog_barking", "race_car"]), S4, 0), S4)
    assert whole.sound_auc == 0.5 and explain({"train": whole}) == ""
    few = draw_statistics(draw_off_screen(s4_clips(["dog_barking"] * 2 + ["race_car"]), S4, 0), S4)
    note = explain({"train": whole, "test": few})
    assert "Never heard off screen are 1 of 3 in test;" in note and "AUC of 0.72 in test (0.50 is guessing)" in note
    assert "train" not in note and "not one to one: " in note and "allowed sound" not in note
    assert "as in the released script" in explain({"test": few}, "released")
    alike = draw_statistics(draw_off_screen(s4_clips(["dog_barking", "cat_meowing"]), S4, 0), S4)
    assert explain({"val": alike}).startswith("No other clip has an allowed sound for 2 of 2 in val (2 shared_group):")


def most_sounds(allowed):
    """Size of a maximum matching, by Kuhn's algorithm as textbooks give it."""
    owner = {}

    def serve(i, tried):
        for j in allowed[i]:
            if j not in tried:
                tried.add(j)
                if j not in owner or serve(owner[j], tried):
                    owner[j] = i
                    return True
        return False

    return sum(serve(i, set()) for i in range(len(allowed)))


@pytest.mark.parametrize("size", [30, 200])
@pytest.mark.parametrize("subset", [S4, MS3], ids=["s4", "ms3"])
def test_large_random_tables_hear_as_many_sounds_as_can_be(subset, size):
    rng = np.random.default_rng(size)
    if subset is S4:
        clips = s4_clips(rng.choice(CATEGORIES, size=size))
    else:
        names = sorted(OBJECT_GROUPS)
        clips = ms3_clips(
            [
                (list(dict.fromkeys(rng.choice(names, size=rng.integers(1, 3)))), f"v{rng.integers(size)}")
                for _ in range(size)
            ]
        )
    pairs = draw_off_screen(clips, subset, seed=7)
    found = options(sorted(clips, key=lambda clip: clip.clip_id), subset)
    ids = [clip.clip_id for clip in sorted(clips, key=lambda clip: clip.clip_id)]
    for pair, allowed in zip(pairs, found, strict=True):
        assert ids.index(pair.partner.clip_id) in allowed
        assert pair.relaxation is None
    assert len({pair.partner.clip_id for pair in pairs}) == most_sounds(found)


# --- relaxation, by hand ---


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        # music may not get human, human not music: only the contrast can be relaxed
        (["playing_piano", "male_speech"], ["least_suitable", "least_suitable"]),
        # animal may not get human, but human may get animal
        (["dog_barking", "male_speech"], ["least_suitable", None]),
        (["dog_barking", "cat_meowing"], ["shared_group", "shared_group"]),
        (["dog_barking", "dog_barking"], ["shared_category", "shared_category"]),
        (["dog_barking", "race_car"], [None, None]),
        # the second dog shares the car's sound rather than break the rule
        (["dog_barking", "dog_barking", "race_car"], [None, None, None]),
    ],
)
def test_nearest_relaxation_is_taken_and_recorded(categories, expected):
    pairs = draw_off_screen(s4_clips(categories), S4, seed=0)
    assert [pair.relaxation for pair in pairs] == expected


def test_reuse_comes_before_relaxation_and_is_even():
    pairs = draw_off_screen(s4_clips(["dog_barking"] * 6 + ["race_car"] * 3), S4, seed=0)
    uses = Counter(pair.partner.category for pair in pairs)
    assert uses == {"race_car": 6, "dog_barking": 3}
    assert Counter(Counter(pair.partner.clip_id for pair in pairs).values()) == {2: 3, 1: 3}
    assert not [pair for pair in pairs if pair.relaxation]
    statistics = draw_statistics(pairs, S4)
    assert "3 sounds unused, one used up to 2 times, relaxed: none" in summarize(statistics)
    assert statistics.group_pairs == {"animal > device": 6, "device > animal": 3}


def test_ms3_compares_all_objects_and_source_videos():
    rows = [(["dog", "car"], "u"), (["guitar"], "u"), (["cat"], "v"), (["piano"], "w")]
    for seed in range(20):
        partner = {p.clip.clip_id: p.partner.clip_id for p in draw_off_screen(ms3_clips(rows), MS3, seed)}
        # dog_car shares animal with cat and its source with guitar: piano is left
        assert partner["u_0"] == "w_3"


def test_ms3_prefers_suitable_contrasts():
    rows = [(["guitar"], "a"), (["man"], "b"), (["dog"], "c"), (["car"], "d")]
    for seed in range(20):
        pairs = draw_off_screen(ms3_clips(rows), MS3, seed)
        # one to one without a least suitable contrast: guitar and man get dog and car, dog guitar, car man
        assert not [pair for pair in pairs if pair.least_suitable]


def test_ms3_takes_unsuitable_contrasts_rather_than_reuse_a_sound():
    pairs = draw_off_screen(ms3_clips([(["guitar"], "a"), (["man"], "b")]), MS3, 0)
    assert [pair.relaxation for pair in pairs] == [None, None]
    assert [pair.least_suitable for pair in pairs] == [True, True]


def test_ms3_without_labels_draws_from_other_source_videos():
    pairs = draw_off_screen(ms3_clips([([], "a"), ([], "a"), ([], "b"), ([], "b")]), MS3, 1)
    assert all(pair.clip.source_video != pair.partner.source_video for pair in pairs)
    assert len({pair.partner.clip_id for pair in pairs}) == 4
    assert not [pair for pair in pairs if pair.relaxation]


def test_an_object_that_avss_does_not_know_is_a_group_of_its_own():
    clips = ms3_clips([(["theremin"], "a"), (["theremin"], "b"), (["dog"], "c")])
    pairs = draw_off_screen(clips, MS3, 0)
    assert [pair.partner.category for pair in pairs] == ["dog", "dog", "theremin"]


def test_one_source_video_is_refused():
    clips = ms3_clips([(["dog"], "a"), (["car"], "a")], split="val")
    with pytest.raises(ValueError, match=r"two source videos in split 'val' of ms3.*2 clip\(s\) of 'a'"):
        draw_off_screen(clips, MS3, 0)
    with pytest.raises(ValueError, match="two source videos"):
        draw_off_screen(s4_clips(["dog_barking"]), S4, 0)


def test_an_empty_split_has_no_pairs():
    assert draw_off_screen([], S4, 0) == []


def test_unknown_draw_is_refused():
    with pytest.raises(ValueError, match="Expected one of matched, released for `draw`, got 'matchd'"):
        draw_off_screen(s4_clips(["dog_barking", "race_car"]), S4, 0, draw="matchd")


# --- a pure, random function ---


@pytest.mark.parametrize("draw", ["matched", "released"])
def test_the_order_of_the_clips_does_not_matter(draw):
    clips = s4_clips(np.random.default_rng(0).choice(CATEGORIES, size=40))
    assert draw_off_screen(clips, S4, 5, draw) == draw_off_screen(clips[::-1], S4, 5, draw)


@pytest.mark.parametrize("draw", ["matched", "released"])
def test_seed_subset_and_split_each_change_the_draw(draw):
    def partners(clips, subset, seed):
        return [pair.partner.clip_id for pair in draw_off_screen(clips, subset, seed, draw)]

    categories = np.random.default_rng(0).choice(CATEGORIES, size=40)
    base = partners(s4_clips(categories), S4, 1)
    assert base != partners(s4_clips(categories), S4, 2)
    assert base != partners(s4_clips(categories), SUBSETS["demo"], 1)
    assert base != partners(s4_clips(categories, split="val"), S4, 1)


@pytest.mark.slow
def test_matched_is_uniform_over_the_valid_assignments():
    """Oracle: all permutations that keep the rule, counted; each should come equally often."""
    clips = s4_clips(["playing_piano", "dog_barking", "lions_roaring", "race_car", "helicopter"])
    valid = {
        order
        for order in itertools.permutations(range(5))
        if all(broken(clips[i], clips[j], S4) == 0 for i, j in enumerate(order))
    }
    assert len(valid) > 10
    seeds = 20 * len(valid)
    drawn = Counter(
        tuple(clips.index(pair.partner) for pair in draw_off_screen(clips, S4, seed)) for seed in range(seeds)
    )
    assert set(drawn) == valid
    chi_square = sum((drawn[order] - 20) ** 2 / 20 for order in valid)
    freedom = len(valid) - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_reuse_is_spread_over_the_sounds():
    """Five dogs, two cars: each dog's sound is as likely to be among the two that are heard off screen."""
    clips = s4_clips(["dog_barking"] * 5 + ["race_car"] * 2)
    heard = Counter()
    for seed in range(100):
        pairs = draw_off_screen(clips, S4, seed)
        heard.update(pair.partner.clip_id for pair in pairs if pair.partner.category == "dog_barking")
    assert sum(heard.values()) == 200
    assert all(20 < heard[clip.clip_id] < 60 for clip in clips[:5])  # 40 expected, standard deviation 6


def test_partners_spread_over_the_allowed_categories():
    """Music may get animal or device only, and gets both; and so on for every category and what it may get."""
    categories = ["playing_piano", "male_speech", "dog_barking", "race_car", "helicopter"] * 100
    seen = Counter()
    for seed in range(5):
        for pair in draw_off_screen(s4_clips(categories), S4, seed):
            seen[pair.clip.category, pair.partner.category] += 1
    allowed = {
        "playing_piano": {"dog_barking", "race_car", "helicopter"},
        "male_speech": {"dog_barking", "race_car", "helicopter"},
        "dog_barking": {"playing_piano", "race_car", "helicopter"},
        "race_car": {"playing_piano", "male_speech", "dog_barking"},
        "helicopter": {"playing_piano", "male_speech", "dog_barking"},
    }
    assert set(seen) == {(own, other) for own, others in allowed.items() for other in others}
    # speech can only go to the two devices, half of it to each
    assert seen["race_car", "male_speech"] + seen["helicopter", "male_speech"] == 500
    assert abs(seen["race_car", "male_speech"] - 250) < 50
    assert abs(seen["playing_piano", "race_car"] - seen["playing_piano", "helicopter"]) < 60


def test_released_takes_the_class_first():
    """99 lions and one dog: the script hears the two classes equally often, whatever their size."""
    clips = s4_clips(["race_car"] * 300 + ["lions_roaring"] * 99 + ["dog_barking"])
    heard = Counter(
        p.partner.category for p in draw_off_screen(clips, S4, 0, "released") if p.clip.category == "race_car"
    )
    assert set(heard) == {"lions_roaring", "dog_barking"}
    assert abs(heard["dog_barking"] - 150) < 4 * np.sqrt(75)


@pytest.mark.parametrize("seed", range(5))
def test_released_keeps_the_rule(seed):
    clips = s4_clips(np.random.default_rng(seed).choice(CATEGORIES, size=100))
    assert {broken(p.clip, p.partner, S4) for p in draw_off_screen(clips, S4, seed, "released")} == {0}
    clips = ms3_clips(
        [(["guitar"], "a"), (["man"], "b"), (["dog"], "c"), (["car"], "d"), (["dog", "car", "man"], "e")]
    )
    for pair in draw_off_screen(clips, MS3, seed, "released"):
        suitable = [
            other
            for other in clips
            if broken(pair.clip, other, MS3) == 0 and not is_least_suitable(pair.clip, other, MS3)
        ]
        assert pair.partner in (suitable or [other for other in clips if other != pair.clip])


# --- the manifest ---


def test_manifest_is_pinned():
    """Written down on NumPy 2.4; it has to come out the same on every machine and NumPy."""
    pairs = draw_off_screen(s4_clips(CATEGORIES, "test"), S4, 42) + draw_off_screen(s4_clips(CATEGORIES), S4, 42)
    lines = list(manifest(pairs, S4))
    rows = [json.loads(line) for line in lines[:-1]]
    assert [(row["split"], row["clip_id"]) for row in rows] == sorted((row["split"], row["clip_id"]) for row in rows)
    assert list(rows[0])[:6] == ["split", "clip_id", "category", "groups", "off_screen_source", "off_screen_category"]
    assert list(rows[0])[6:] == ["off_screen_groups", "relaxation", "least_suitable"]
    assert lines[-1] == "sha256 7f6061914ceebbb6dbc2c4c3e201478e6921ebc77d7ed8aa5743db387fd254eb\n"


# --- S4's size ---


@pytest.mark.slow
def test_s4_s_size_and_balance_has_a_one_to_one_draw():
    """S4's numbers of clips per category (Zhou et al. 2022), 3452 of 4932 in one split."""
    counts = {
        "helicopter": 311, "female_singing": 305, "playing_acoustic_guitar": 299, "playing_piano": 298,
        "playing_violin": 293, "typing_on_computer_keyboard": 277, "playing_tabla": 276, "dog_barking": 260,
        "lions_roaring": 249, "chainsawing_trees": 247, "male_speech": 222, "playing_glockenspiel": 220,
        "race_car": 205, "mynah_bird_singing": 200, "playing_ukulele": 197, "ambulance_siren": 196,
        "horse_clip-clop": 192, "cat_meowing": 180, "driving_buses": 149, "cap_gun_shooting": 122, "baby_laughter": 91,
        "lawn_mowing": 81, "coyote_howling": 62,
    }  # fmt: skip
    assert sum(counts.values()) == 4932
    categories = [name for name, count in counts.items() for _ in range(round(count * 0.7))]
    pairs = draw_off_screen(s4_clips(categories), S4, 42)
    assert {pair.relaxation for pair in pairs} == {None}
    assert len({pair.partner.clip_id for pair in pairs}) == len(pairs)
    seen = Counter((pair.clip.category, pair.partner.category) for pair in pairs)
    groups = SINGLE_SOURCE_GROUPS
    rule = {("music", "human"), ("human", "music"), ("animal", "human")}
    allowed = [(a, b) for a in counts for b in counts if groups[a] != groups[b] and (groups[a], groups[b]) not in rule]
    assert set(seen) <= set(allowed)
    assert len(seen) > 0.95 * len(allowed)
