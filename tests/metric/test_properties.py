"""What must hold for all masks: bounds, monotonicity, and that batches, order and processes do not matter."""

import itertools
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

METRIC = Path(__file__).parents[2] / "evaluate_metrics" / "avs_robust"
CONDITIONS = ("positive", "silence", "noise", "off_screen")
SCORES = ("miou", "f_score", "fpr")
few = settings(max_examples=40, deadline=None)

# Values on a threshold, beside one, and in between; few of them, so that ties and equal frames are common.
PROBABILITIES = st.one_of(st.integers(0, 254).map(lambda k: k / 254), st.sampled_from([0, 0.5, 0.500001, 1]))


@cache
def load():
    return evaluate.load(str(METRIC), cache_dir=tempfile.mkdtemp(), keep_in_memory=True)


@st.composite
def clip_lists(draw, at_least=1, with_empty=True):
    """(probabilities, masks): lists of clips of 1 to 3 frames of 1x1 to 3x4 pixels."""
    probabilities, masks = [], []
    for _ in range(draw(st.integers(at_least, 6))):
        shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)))
        probabilities.append(draw(hnp.arrays(np.float32, shape, elements=PROBABILITIES.map(np.float32))))
        mask = draw(hnp.arrays(bool, shape))
        if not with_empty:
            mask[:, 0, 0] = True
        masks.append(mask)
    return probabilities, masks


def compute(probabilities, masks, condition="positive", **options):
    scores = load().compute(
        predictions=probabilities,
        references=masks,
        conditions=[condition] * len(masks),
        clip_ids=[str(index) for index in range(len(masks))],
        **options,
    )
    return {key: scores.get(f"{key}_{condition}") for key in SCORES}


def f_floor(mask):
    """The mean over frames of F with everything predicted, which the threshold 0 admits."""
    shares = [frame.mean() for frame in mask if frame.any()]
    return np.mean([1.3 * share / (0.3 * share + 1) for share in shares])


@few
@given(clip_lists(), st.integers(1, 6))
def test_scores_are_fractions(clips, batch_size):
    for options in ({}, {"official": True, "batch_size": batch_size}):
        for value in compute(*clips, **options).values():
            assert value is None or -1e-12 <= value <= 1 + 1e-7


@few
@given(clip_lists(with_empty=False))
def test_f_never_falls_below_what_predicting_everything_scores(clips):
    floor = np.mean([f_floor(mask) for mask in clips[1]])
    assert compute(*clips)["f_score"] >= floor - 1e-7


@few
@given(clip_lists(with_empty=False))
def test_the_mask_itself_is_perfect_and_its_complement_overlaps_nothing(clips):
    _, masks = clips
    perfect = compute([mask.astype(float) for mask in masks], masks)
    assert perfect["miou"] == pytest.approx(1, abs=3e-7)
    assert perfect["f_score"] == pytest.approx(1)
    assert perfect["fpr"] == pytest.approx(np.mean([mask.mean() for mask in masks]))
    assert compute([1.0 - mask for mask in masks], masks)["miou"] == 0


@pytest.mark.slow
@few
@given(clip_lists(), st.data())
def test_one_pixel_more(clips, data):
    """A predicted pixel more: FPR rises by its share; IoU rises on the mask and does not rise off it."""
    probabilities, masks = clips
    before = compute(probabilities, masks)
    frames, height, width = probabilities[0].shape
    place = tuple(data.draw(st.integers(0, size - 1)) for size in (frames, height, width))
    more = [clip.copy() for clip in probabilities]
    added = more[0][place] <= 0.5
    more[0][place] = 1
    after = compute(more, masks)
    assert after["fpr"] == pytest.approx(before["fpr"] + added / probabilities[0].size / len(masks))
    if masks[0][place]:
        assert after["miou"] >= before["miou"] - 1e-12
        # F too at every threshold, hence its maximum
        assert after["f_score"] >= before["f_score"] - 1e-7
    else:
        assert after["miou"] <= before["miou"] + 1e-12
    assert (after["miou"] == before["miou"]) or added


@few
@given(st.floats(0.01, 1), st.floats(0, 0.99), st.floats(0.001, 0.2))
def test_g_rises_with_positives_and_falls_with_negatives(positive, negative, step):
    robust_scores = sys.modules[type(load()).__module__].robust_scores

    def g(positive, negative):
        return robust_scores({"positive": {"miou": positive}, "noise": {"miou": negative, "fpr": 0.0}})["g_miou"]

    assert 0 <= g(positive, negative) <= 1
    assert g(min(1, positive + step), negative) >= g(positive, negative) - 1e-12
    assert g(positive, min(1, negative + step)) <= g(positive, negative) + 1e-12
    assert g(positive, positive) == pytest.approx(2 * positive * (1 - positive))


@pytest.mark.slow
@few
@given(clip_lists(with_empty=False), st.integers(1, 6))
def test_a_larger_released_batch_never_raises_f(clips, batch_size):
    """A maximum of means is at most the mean of maxima; equal weights need frames and batches of equal number."""
    probabilities, masks = ([clip[:1] for clip in of_kind] for of_kind in clips)
    ours = compute(probabilities, masks)
    assert compute(probabilities, masks, official=True) == pytest.approx(ours, abs=1e-6)
    batch_size = max(size for size in range(1, batch_size + 1) if len(masks) % size == 0)
    batched = compute(probabilities, masks, official=True, batch_size=batch_size)
    whole = compute(probabilities, masks, official=True, batch_size=len(masks))
    assert whole["f_score"] <= batched["f_score"] + 1e-7 and batched["f_score"] <= ours["f_score"] + 1e-7
    assert batched["miou"] == pytest.approx(ours["miou"], abs=1e-9)


@pytest.mark.slow
@few
@given(clip_lists(), st.integers(1, 4), st.lists(st.integers(1, 4)), st.randoms(use_true_random=False))
def test_neither_batches_nor_order_matter(clips, conditions, sizes, random):
    rows = [
        (condition, str(index), probability if condition == "positive" else 1 - probability, mask)
        for index, (probability, mask) in enumerate(zip(*clips, strict=True))
        for condition in CONDITIONS[:conditions]
    ]

    def scores(rows, sizes):
        rows = iter(rows)
        for size in sizes:
            batch = list(itertools.islice(rows, size))
            if batch:
                conditions, clip_ids, predictions, references = zip(*batch, strict=True)
                load().add_batch(
                    predictions=predictions, references=references, conditions=conditions, clip_ids=clip_ids
                )
        return load().compute()

    expected = scores(rows, [len(rows)])
    random.shuffle(rows)
    assert scores(rows, [*sizes, len(rows)]) == pytest.approx(expected, abs=1e-12)


def score_part(cache_dir, count, rank, rows):
    metric = evaluate.load(
        str(METRIC), num_process=count, process_id=rank, experiment_id="p", cache_dir=cache_dir, timeout=60
    )
    for condition, clip_id, prediction, reference in rows:
        metric.add(prediction=prediction, reference=reference, condition=condition, clip_id=clip_id)
    return metric.compute()


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(clip_lists(at_least=3), st.integers(2, 3))
def test_the_number_of_processes_does_not_matter(clips, count):
    rows = [
        (condition, str(index), probability, mask)
        for index, (probability, mask) in enumerate(zip(*clips, strict=True))
        for condition in ("positive", "noise")
    ]
    for condition, clip_id, prediction, reference in rows:
        load().add(prediction=prediction, reference=reference, condition=condition, clip_id=clip_id)
    expected = load().compute()
    with (
        tempfile.TemporaryDirectory() as cache_dir,
        # Forked, since importing evaluate anew takes longer than everything else here.
        ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("fork")) as pool,
    ):
        parts = [pool.submit(score_part, cache_dir, count, rank, rows[rank::count]) for rank in range(count)]
        first, *others = [part.result() for part in parts]
    assert first == pytest.approx(expected, abs=1e-12)
    assert others == [None] * (count - 1)
