"""The log-mel front end against the original's numbers and against a plain loop."""

import time
from pathlib import Path

import numpy as np
import pytest

from modeling_avsegformer.log_mel import MIN_SAMPLES, log_mel, mel_matrix, resample, to_mono

REFERENCE = np.load(Path(__file__).parents[1] / "fixtures" / "vggish_logmel.npz")


def waveform(name: str) -> np.ndarray:
    rate = 44100 if "44100" in name else 16000
    seconds = np.arange(5 * rate) / rate
    return {
        "silence_16000": np.zeros(5 * rate),
        "chirp_16000": 0.5 * np.sin(2 * np.pi * (100 * seconds + 6900 * seconds**2 / 10)),
        "noise_44100": np.random.RandomState(7).uniform(-0.8, 0.8, 5 * rate),
        "short_16000_15600": np.random.RandomState(3).uniform(-0.8, 0.8, 15600),
    }[name]


@pytest.mark.parametrize("name", ["silence_16000", "chirp_16000", "short_16000_15600"])
def test_agrees_with_the_original(name):
    examples = log_mel(waveform(name))
    assert examples.dtype == np.float32
    np.testing.assert_allclose(examples, REFERENCE[f"{name}/logmel"], rtol=0, atol=1e-5)


def test_mel_matrix_agrees_with_the_original():
    np.testing.assert_allclose(mel_matrix(), REFERENCE["mel_matrix"], rtol=0, atol=1e-12)


def test_resampled_sound_is_near_the_original():
    # resampy, which the original uses, and torchaudio differ near the Nyquist frequency (0.42 at most on noise).
    examples = log_mel(resample(waveform("noise_44100"), 44100))
    error = np.abs(examples - REFERENCE["noise_44100/logmel"])
    assert error.mean() < 0.01
    assert error.max() < 0.5


def test_agrees_with_a_plain_loop():
    samples = np.random.default_rng(0).uniform(-1, 1, MIN_SAMPLES + 30)
    window = [0.5 - 0.5 * np.cos(2 * np.pi * n / 400) for n in range(400)]
    for frame, mel in [(0, 0), (0, 63), (95, 31), (40, 5)]:
        piece = samples[160 * frame : 160 * frame + 400] * window
        total = 0.0
        for k in range(257):
            magnitude = abs(np.sum(piece * np.exp(-2j * np.pi * k * np.arange(400) / 512)))
            total += magnitude * mel_matrix()[k, mel]
        assert log_mel(samples)[0, 0, frame, mel] == pytest.approx(np.log(total + 0.01), abs=1e-6)


def test_silence_is_the_logarithm_of_the_offset():
    np.testing.assert_allclose(log_mel(np.zeros(80000)), -4.605170, atol=1e-6)


def test_only_a_repeated_window_repeats_its_example():
    """Windows of 15600 samples begin every 15360: two of them fill 30960 samples and share 240."""
    sound = np.random.default_rng(0).uniform(-1, 1, 30960)
    repeated = np.concatenate([sound, sound[15600:], sound[15600:]])
    np.testing.assert_array_equal(log_mel(repeated)[2:], log_mel(repeated)[[1, 1]])
    repeated[-1] += 0.25  # one sample of the last window differs
    examples = log_mel(repeated)
    assert (examples[2] == examples[1]).all() and (examples[3] != examples[2]).any()
    click = np.zeros(46320)
    click[15400] = 1.0  # in the 240 samples that the first two windows share; then silence, which repeats nothing
    assert (log_mel(click)[1, 0, :2] > -4.6).any() and not (log_mel(click)[2, 0] > -4.6).any()


@pytest.mark.parametrize(("samples", "examples"), [(0, 0), (399, 0), (15599, 0), (15600, 1), (80000, 5), (160000, 10)])
def test_number_of_examples(samples, examples):
    assert log_mel(np.zeros(samples)).shape == (examples, 1, 96, 64)


def test_channels_are_averaged_and_integers_scaled():
    stereo = np.random.default_rng(0).integers(-32768, 32768, (16000, 2), dtype=np.int16)
    np.testing.assert_array_equal(to_mono(stereo), (stereo / 32768.0).mean(1))
    assert to_mono(np.array([-32768, 16384], dtype=np.int16)).tolist() == [-1.0, 0.5]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.array([0.0, np.nan]), "got 1 NaN or infinite ones of 2"),
        (np.full((3, 2), np.inf), "got 3 NaN or infinite ones of 3"),
        (np.zeros((2, 2, 2)), r"got \(2, 2, 2\)"),
        (np.zeros(3, dtype=np.uint8), "got uint8"),
    ],
)
def test_bad_waveforms(bad, message):
    with pytest.raises(ValueError, match=message):
        log_mel(bad)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 96000])
def test_resample_keeps_a_tone(rate):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    resampled = resample(np.stack([tone, -tone], 1), rate)
    assert resampled.shape == (16000, 2)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(resampled[500:-500, 0], expected[500:-500], atol=2e-3)
    np.testing.assert_allclose(resampled[:, 1], -resampled[:, 0], atol=1e-6)


def test_resample_at_the_same_rate_gives_the_waveform_itself():
    samples = np.zeros(5)
    assert resample(samples, 16000) is samples


@pytest.mark.parametrize("rate", [0, -1, 16000.5])
def test_resample_refuses(rate):
    with pytest.raises(ValueError, match="positive whole number of Hz for `original_rate`"):
        resample(np.zeros(5), rate)


def test_a_clip_takes_less_than_ten_milliseconds():
    samples = np.random.default_rng(0).uniform(-1, 1, 80000)
    log_mel(samples)
    times = []
    for _ in range(20):
        start = time.process_time()  # our own work, whatever else the machine does
        log_mel(samples)
        times.append(time.process_time() - start)
    assert min(times) < 0.010
