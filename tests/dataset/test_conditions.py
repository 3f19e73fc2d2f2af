"""Conditions are pure functions of (waveform, rng, partner)."""

import hashlib

import numpy as np
import pytest

from avsbench_robust_dataset.conditions import (
    CONDITIONS,
    Condition,
    generator,
    get_condition,
    heard_frames,
    mix,
    negative_conditions,
    noise,
    off_screen,
    positive,
    silence,
    split_name,
)

WAVEFORM = np.linspace(-0.5, 0.5, 80000, dtype=np.float32)
PARTNER = np.cos(np.arange(80000) / 7).astype(np.float32)


def test_conditions_are_in_the_order_of_the_class_label():
    assert list(CONDITIONS) == ["positive", "silence", "noise", "off_screen"]


@pytest.mark.parametrize("name", list(CONDITIONS))
def test_pure_float32_of_the_same_shape(name):
    before = WAVEFORM.copy(), PARTNER.copy()
    heard = CONDITIONS[name].make(WAVEFORM, generator(1, name), PARTNER)
    again = CONDITIONS[name].make(WAVEFORM, generator(1, name), PARTNER)
    assert heard.shape == (80000,) and heard.dtype == np.float32
    np.testing.assert_array_equal(heard, again)
    np.testing.assert_array_equal(before[0], WAVEFORM)
    np.testing.assert_array_equal(before[1], PARTNER)


def test_positive_silence_off_screen():
    np.testing.assert_array_equal(positive(WAVEFORM), WAVEFORM)
    np.testing.assert_array_equal(silence(WAVEFORM), np.zeros(80000))
    np.testing.assert_array_equal(off_screen(WAVEFORM, None, PARTNER), PARTNER)


def test_noise_is_the_raw_words_of_pcg64():
    """Oracle: Python integers; the first word of the key's PCG64 is written down."""
    key = "42/s4/test/noise/abc"
    words = np.random.PCG64(int(hashlib.sha256(key.encode()).hexdigest(), 16)).random_raw(4)
    assert int(words[0]) == 7954185767913794258
    expected = [(int(word) >> 40) / 2**23 - 1 for word in words]
    assert noise(WAVEFORM, generator(42, "s4", "test", "noise", "abc"))[:4].tolist() == expected


def test_noise_is_white_and_uniform():
    x = noise(WAVEFORM, generator(0)).astype(np.float64)
    assert -1 <= x.min() < -0.9999 and 0.9999 < x.max() < 1
    assert abs(x.mean()) < 4 * np.sqrt(1 / 3 / len(x))  # four standard errors
    histogram = np.histogram(x, bins=20, range=(-1, 1))[0]
    assert abs(histogram - 4000).max() < 5 * np.sqrt(4000)
    power = (np.abs(np.fft.rfft(x)[1:-1]) ** 2 / len(x))[:39900].reshape(38, 1050).mean(axis=1)
    assert abs(power * 3 - 1).max() < 5 / np.sqrt(1050)  # each of 38 bands has the same power, 1/3 a bin
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / np.sqrt(len(x))


def test_each_key_has_noise_of_its_own():
    keys = [(42, "s4", "test", "noise", "a"), (42, "s4", "test", "noise", "b"), (43, "s4", "test", "noise", "a")]
    first = [noise(WAVEFORM, generator(*key)) for key in keys]
    for i in range(3):
        for j in range(i):
            assert abs(np.corrcoef(first[i], first[j])[0, 1]) < 0.02


def power_ratio(waveform, mixed):
    """dB of the waveform over what was added to it, both as they are in the mix (least squares finds its scale)."""
    waveform, mixed = waveform.astype(np.float64), mixed.astype(np.float64)
    scale = (waveform @ mixed) / (waveform @ waveform)
    return 10 * np.log10(np.mean((scale * waveform) ** 2) / np.mean((mixed - scale * waveform) ** 2))


@pytest.mark.parametrize("snr", [-10, 0, 7.5])
def test_mix_has_the_ratio_of_powers(snr):
    time = np.arange(80000)
    own, other = (np.sin(2 * np.pi * k * time / 80000).astype(np.float32) for k in (300, 500))  # orthogonal
    mixed = mix(own * 0.2, other * 0.9, snr)
    assert mixed.dtype == np.float32 and np.abs(mixed).max() <= 1
    assert power_ratio(own, mixed) == pytest.approx(snr, abs=1e-4)
    quiet = mix(own * 0.01, other, snr)  # far from 1: the own sound stays as it is
    np.testing.assert_allclose(quiet - own * 0.01, other * 0.01 * 10 ** (-snr / 20), atol=1e-7)


def test_mix_of_silence():
    zeros = np.zeros_like(WAVEFORM)
    np.testing.assert_array_equal(mix(WAVEFORM, zeros, 0), WAVEFORM)
    np.testing.assert_array_equal(mix(zeros, PARTNER, 0), zeros)
    np.testing.assert_array_equal(mix(zeros, zeros, 0), zeros)


def test_conditions_with_a_number_in_their_name():
    unseen = get_condition("unseen")
    assert (unseen.partner, unseen.needs_own, unseen.heard) == ("unseen_dir", False, "none")
    np.testing.assert_array_equal(unseen.make(None, None, PARTNER), PARTNER)
    mixed = get_condition("mixed_snr_2.5")
    assert (mixed.partner, mixed.needs_own, mixed.heard) == ("off_screen", True, "all")
    np.testing.assert_array_equal(mixed.make(WAVEFORM, None, PARTNER), mix(WAVEFORM, PARTNER, 2.5))
    for name in ("noise_snr_-5", "noise_snr_m5"):
        noisy = get_condition(name)
        assert (noisy.name, noisy.partner, noisy.noise_of, noisy.heard) == (name, None, "noise", "all")
        heard = noisy.make(WAVEFORM, generator(1), None)
        np.testing.assert_array_equal(heard, mix(WAVEFORM, noise(WAVEFORM, generator(1)), -5))
        assert split_name("test", name) == "test_noise_snr_m5"


def test_muted_silences_two_seconds_whole():
    drawn = set()
    for number in range(200):
        muted, key = get_condition("muted"), f"42/s4/test/muted/clip{number}"
        words = np.random.PCG64(int(hashlib.sha256(key.encode()).hexdigest(), 16)).random_raw(5).tolist()
        silent = sorted(sorted(range(5), key=words.__getitem__)[:2])
        sound = muted.make(WAVEFORM, generator(key), None)
        assert heard_frames("muted", key) == [second not in silent for second in range(5)]
        changed = np.zeros(80000, bool)
        for second in silent:  # both the second and the window of 0.975 s that VGGish's front end takes for it
            changed[second * 16000 : (second + 1) * 16000] = True
            changed[second * 15360 : second * 15360 + 15600] = True
        np.testing.assert_array_equal(sound, np.where(changed, 0, WAVEFORM))
        drawn.add(tuple(silent))
    assert len(drawn) == 10
    assert heard_frames("positive", "k") == heard_frames("noise_snr_0", "k") == [True] * 5
    assert heard_frames("off_screen", "k") == [False] * 5


def test_the_negatives_are_derived(monkeypatch):
    assert negative_conditions() == ("silence", "noise", "off_screen")
    monkeypatch.setitem(CONDITIONS, "hum", Condition("hum", silence))
    half = Condition("half", positive, needs_own=True, heard="some", draw_heard=lambda rng: np.arange(5) < 2)
    monkeypatch.setitem(CONDITIONS, "half", half)
    assert heard_frames("half", "key") == [True, True, False, False, False]
    with pytest.raises(ValueError, match="Expected `draw_heard` exactly where `heard` is 'some', got heard='all'"):
        Condition("whole", positive, heard="all", draw_heard=half.draw_heard)
    assert negative_conditions() == ("silence", "noise", "off_screen", "hum")


@pytest.mark.parametrize(
    "name", ["slience", "mixed", "mixed_snr_", "noise_snr_1e3", "noise_snr_ 5", "noise_snr_m-5", "Unseen", ""]
)
def test_unknown_conditions(name):
    with pytest.raises(ValueError, match=f"got {name!r}"):
        get_condition(name)


def test_lists_of_the_conditions_agree():
    """The metric and the model's pipeline for videos may not import this package."""
    pytest.importorskip("av")
    from evaluate_metrics.avs_robust.avs_robust import CONDITIONS as scored
    from modeling_avsegformer.video.pipeline import CONDITIONS as shown

    assert tuple(scored) == tuple(shown) == tuple(CONDITIONS)
