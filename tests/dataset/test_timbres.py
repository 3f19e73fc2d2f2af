"""Two families of procedural sounds: one to train on, one to be tested with."""

import numpy as np
import pytest

from avsbench_robust_dataset import timbres
from avsbench_robust_dataset.conditions import generator, get_condition, negative_conditions
from avsbench_robust_dataset.timbres import UNSEEN_KINDS, random_timbre, unseen_sound


def is_a_clip(sound):
    assert sound.shape == (80000,) and sound.dtype == np.float32
    level = 20 * np.log10(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
    assert np.abs(sound).max() < 1 and -40 < level < -7.9, f"root mean square of {level:.1f} dB of full scale"


def test_random_timbres_are_clips_and_of_their_generator_alone():
    sounds = [random_timbre(generator("timbre", k)) for k in range(12)]
    for k, sound in enumerate(sounds):
        is_a_clip(sound)
        np.testing.assert_array_equal(sound, random_timbre(generator("timbre", k)))
    assert len({sound.tobytes() for sound in sounds}) == 12


@pytest.mark.parametrize("kind", UNSEEN_KINDS)
def test_unseen_sounds_are_clips_and_of_their_generator_alone(kind):
    first, again, other = (unseen_sound(kind, generator(kind, seed)) for seed in (0, 0, 1))
    is_a_clip(first)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def steadiness(sound):
    """The least cosine between the spectra of half-second windows: 1 where only the level moves."""
    spectra = np.abs(np.fft.rfft(sound.reshape(10, 8000) * np.hanning(8000)))
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    return (spectra @ spectra.T).min()


@pytest.mark.parametrize("source", [timbres._partials, timbres._frequency_modulation])
def test_what_is_trained_on_has_a_steady_spectrum(source):
    assert min(steadiness(source(np.random.default_rng(seed))) for seed in range(20)) > 0.9


def test_a_wandering_tone_moves_and_stays_below_half_of_the_sampling_rate():
    sounds = [timbres._wandering_tone(np.random.default_rng(seed)) for seed in range(20)]
    assert sum(steadiness(sound) < 0.5 for sound in sounds) > 10
    for sound in sounds:
        power = np.abs(np.fft.rfft(sound)) ** 2
        assert power[5 * 7700 :].sum() < 1e-4 * power.sum(), "partials above 8 kHz come back below it"


def test_half_of_the_spectra_fall_smoothly():
    ratios = np.arange(1, 9.0)
    drawn = [timbres._amplitudes(ratios, np.random.default_rng(seed)) for seed in range(400)]
    assert all((amplitudes >= 0).all() for amplitudes in drawn)
    assert 160 < sum((np.diff(amplitudes) < 0).all() for amplitudes in drawn) < 240


@pytest.mark.parametrize("kind", ["alarm", "wail", "sweeps", "animal", "guitar", "bells"])
def test_the_spectrum_of_held_out_kinds_moves(kind):
    assert max(steadiness(unseen_sound(kind, np.random.default_rng(seed))) for seed in range(3)) < 0.9


def test_a_level_curve_switches_no_sound_on_for_less_than_a_tenth_of_a_second():
    shortest = []
    for seed in range(200):
        curve = timbres._level_curve(np.random.default_rng(seed))
        assert curve.shape == (80000,) and curve.min() >= 0
        on = curve > 0.9 * curve.max()
        if len(np.unique(np.round(curve[::16], 6))) < 20:  # switched, not trembling or wandering
            edges = np.flatnonzero(np.diff(np.concatenate([[False], on, [False]]).astype(int)))
            inner = [end - begin for begin, end in edges.reshape(-1, 2) if begin > 0 and end < 80000]
            shortest += inner
    assert shortest and min(shortest) >= 0.09 * 16000


def test_conditions_of_the_two_families():
    assert {"alarm", "wail"} <= UNSEEN_KINDS.keys() and len(UNSEEN_KINDS) >= 6
    assert not {"timbre", "unseen", "recorded"} & set(negative_conditions())  # the benchmark has four conditions
    made = get_condition("timbre").make(None, generator(1), None)
    np.testing.assert_array_equal(made, random_timbre(generator(1)))
    unseen = get_condition("unseen").make
    kinds = list(UNSEEN_KINDS)
    rng = generator(2)
    kind = kinds[int(rng.integers(len(kinds)))]
    np.testing.assert_array_equal(unseen(None, generator(2), None), unseen_sound(kind, rng))
    partner = np.ones(80000, np.float32)
    assert unseen(None, None, partner) is partner
