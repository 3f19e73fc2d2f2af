"""The released pipeline's front end: against librosa, and how it is asked for."""

import json

import librosa
import numpy as np
import pytest
from transformers.utils import logging

from modeling_avsegformer import AVSegFormerImageProcessor, AVSegFormerProcessor, VGGishFeatureExtractor
from modeling_avsegformer.log_mel import log_mel, released_log_mel


def waveform(name: str, rate: int = 16000) -> np.ndarray:
    t = np.arange(5 * rate) / rate
    noise = np.random.default_rng(0).uniform(-0.8, 0.8, len(t))
    return {
        "noise": noise,
        "chirp": 0.5 * np.sin(2 * np.pi * (100 * t + 690 * t**2)),
        "bursts": noise * (np.sin(2 * np.pi * t) > 0),
        "silence": 0 * t,
        "silent_end": noise * (t < 2.5),
        "faint": 3e-5 * np.sin(2 * np.pi * 300 * t),  # partly below -100 dB, where the decibels end
    }[name]


def by_librosa(samples: np.ndarray) -> np.ndarray:
    """The released script's calls, on samples at 22050 Hz: power, Slaney, centred, dB, z-normalised by the second."""
    examples = np.zeros((5, 1, 96, 64), dtype=np.float32)
    for example, second in zip(examples[:, 0], samples.reshape(5, 22050), strict=True):
        mel = librosa.feature.melspectrogram(y=second, sr=22050, n_mels=64, n_fft=1024, hop_length=512)
        decibels = librosa.power_to_db(mel)
        if decibels.std() > 0:
            decibels = (decibels - decibels.mean()) / decibels.std()
        example[:44] = decibels.T
    return examples


@pytest.mark.slow
@pytest.mark.parametrize("name", ["noise", "chirp", "bursts", "silence", "silent_end", "faint"])
def test_agrees_with_librosa(name):
    samples = waveform(name, 22050)
    features = released_log_mel(samples, 22050)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, by_librosa(samples), rtol=0, atol=2e-6)


@pytest.mark.slow
def test_resampled_sound_is_near_librosa():
    samples = waveform("bursts")
    expected = by_librosa(librosa.resample(samples, orig_sr=16000, target_sr=22050))
    error = np.abs(released_log_mel(samples) - expected)
    assert error.mean() < 0.003 and error.max() < 0.3  # unit: standard deviations; only beside 8 kHz


def test_more_than_half_of_every_map_is_zero_and_silence_is_minus_100_db():
    for name in ("noise", "silence"):
        features = released_log_mel(waveform(name))
        assert (features[:, :, 44:] == 0).all() and (features[:, :, :44] != 0).any(axis=(2, 3)).all()
    np.testing.assert_array_equal(features[:, :, :44], -100)
    assert not (log_mel(waveform("noise")) == 0).any()


def test_short_and_long_sounds():
    samples = waveform("noise", 22050)
    padded = np.concatenate([samples[:40000], np.zeros(len(samples) - 40000)])
    np.testing.assert_array_equal(released_log_mel(samples[:40000], 22050), released_log_mel(padded, 22050))
    longer = np.concatenate([samples, samples])
    np.testing.assert_array_equal(released_log_mel(longer, 22050), released_log_mel(samples, 22050))


@pytest.fixture
def said(monkeypatch):
    """What the feature extractor warns of."""
    lines = []
    logger = logging.get_logger("modeling_avsegformer.processing_avsegformer")
    monkeypatch.setattr(logger, "warning_once", lines.append)
    return lines


def test_positive_and_negative_sounds_pass_other_front_ends_and_a_warning_says_so(said):
    sounds = [waveform("noise"), waveform("chirp"), waveform("silence")]
    extractor = VGGishFeatureExtractor(front_end="released")
    conditions = ["positive", "off_screen", "silence"]
    features = extractor(sounds, sampling_rate=16000, conditions=conditions)["input_features"]
    np.testing.assert_array_equal(features[0], log_mel(sounds[0]))
    np.testing.assert_array_equal(features[1], released_log_mel(sounds[1]))
    np.testing.assert_array_equal(features[2], released_log_mel(sounds[2]))
    assert len(said) == 1 and "comparing with published numbers only" in said[0]


def test_the_default_front_end_looks_at_no_condition(said):
    extractor = VGGishFeatureExtractor()
    features = extractor(waveform("noise"), sampling_rate=16000, conditions=["silence"])["input_features"]
    np.testing.assert_array_equal(features[0], log_mel(waveform("noise")))
    assert not said


def test_other_rates_are_resampled_once():
    samples = waveform("chirp", 44100)
    features = VGGishFeatureExtractor(front_end="released")(samples, sampling_rate=44100, conditions=["noise"])
    np.testing.assert_array_equal(features["input_features"][0], released_log_mel(samples, 44100))


def test_the_processor_passes_conditions_on_saves_the_front_end_and_takes_another_one(tmp_path):
    AVSegFormerProcessor(AVSegFormerImageProcessor(), VGGishFeatureExtractor(front_end="released")).save_pretrained(
        tmp_path
    )
    rows = [{"array": waveform("noise"), "sampling_rate": 16000}] * 2
    released = AVSegFormerProcessor.from_pretrained(tmp_path)
    features = released(audio=rows, conditions=["positive", "noise"])["input_features"]
    np.testing.assert_array_equal(features[1], released_log_mel(waveform("noise")))
    np.testing.assert_array_equal(features[0], log_mel(waveform("noise")))
    ours = AVSegFormerProcessor.from_pretrained(tmp_path, front_end="vggish")
    np.testing.assert_array_equal(ours(audio=rows)["input_features"][1], features[0])


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (None, "one str for each of 2 waveforms, got None"),
        ("positive", "got 'positive'"),
        (["positive"], "got 1 of them"),
        ([0, 3], "Expected str in `conditions`, got 0"),
    ],
)
def test_bad_conditions(conditions, message):
    with pytest.raises(ValueError, match=message):
        VGGishFeatureExtractor(front_end="released")([waveform("noise")] * 2, 16000, conditions=conditions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"front_end": "librosa"}, "vggish, released .* got 'librosa'"), ({"num_seconds": 3}, "num_seconds=5 .* got 3")],
)
def test_bad_front_ends(arguments, message):
    with pytest.raises(ValueError, match=message):
        VGGishFeatureExtractor(**{"front_end": "released"} | arguments)


def test_a_processor_saved_before_the_option_existed_takes_it(tmp_path):
    AVSegFormerProcessor().save_pretrained(tmp_path)
    for path in tmp_path.glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        for part in (content, *(value for value in content.values() if isinstance(value, dict))):
            part.pop("front_end", None)
        path.write_text(json.dumps(content))
    assert AVSegFormerProcessor.from_pretrained(tmp_path).feature_extractor.front_end == "vggish"
    released = AVSegFormerProcessor.from_pretrained(tmp_path, front_end="released")
    assert released.feature_extractor.front_end == "released"


def test_the_front_end_is_an_option_of_the_processor():
    assert AVSegFormerProcessor(front_end="released").feature_extractor.front_end == "released"
    with pytest.raises(ValueError, match="Expected a feature extractor with front_end='released', got one with 'vgg"):
        AVSegFormerProcessor(feature_extractor=VGGishFeatureExtractor(), front_end="released")
