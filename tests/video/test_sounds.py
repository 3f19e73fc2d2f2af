"""What the model hears at each moment."""

import numpy as np
import pytest
import soundfile

pytest.importorskip("av", reason="needs PyAV, which reads sound: pip install av")

from modeling_avsegformer.log_mel import MIN_SAMPLES, SAMPLE_RATE
from modeling_avsegformer.video.sounds import Muted, Noise, Recording, Silence, Siren, hear


@pytest.fixture
def wav(tmp_path):
    """wav(samples, rate): a file of 32-bit floats, exact at 16 kHz."""

    def write(samples, rate=SAMPLE_RATE, name="sound.wav"):
        soundfile.write(tmp_path / name, samples, rate, subtype="FLOAT")
        return tmp_path / name

    return write


def test_a_recording_is_read_as_it_is(wav):
    samples = np.random.default_rng(0).uniform(-1, 1, 50001).astype(np.float32)
    sound = Recording(wav(samples))
    for start in (0, 100, 20000, 19000, 45000):
        stop = start + 9000
        expected = np.pad(samples, (0, 9000))[start:stop]
        np.testing.assert_array_equal(sound.read(start, stop), expected)
    assert sound.length == 50001


def test_channels_are_averaged_and_other_rates_resampled(wav):
    """A tone of 440 Hz on the left, nothing on the right: half as loud, at 16 kHz."""
    tone = 0.8 * np.sin(2 * np.pi * 440 * np.arange(44100) / 44100)
    heard = Recording(wav(np.stack([tone, 0 * tone], 1), 44100)).read(2000, 12000)
    expected = 0.4 * np.sin(2 * np.pi * 440 * np.arange(2000, 12000) / 16000)
    np.testing.assert_allclose(heard, expected, atol=0.004)


def test_a_recording_may_repeat(wav):
    samples = np.arange(1000, dtype=np.float32) / 1000
    sound = Recording(wav(samples), loop=True)
    np.testing.assert_array_equal(sound.read(900, 3100), np.tile(samples, 4)[900:3100])
    assert sound.length is None


def test_the_files_time_zero_may_lie_elsewhere(wav):
    samples = np.random.default_rng(0).uniform(-1, 1, 32000).astype(np.float32)
    np.testing.assert_array_equal(Recording(wav(samples), start=0.5).read(0, 100), samples[8000:8100])
    late = Recording(wav(samples), start=-0.25).read(0, 4100)  # it begins after the first frame
    np.testing.assert_array_equal(late, np.pad(samples[:100], (4000, 0)))


def test_a_muted_sound_is_silent_in_two_of_each_five_seconds(wav):
    samples = np.random.default_rng(0).uniform(-1, 1, 10 * SAMPLE_RATE).astype(np.float32)
    sound = Muted(Recording(wav(samples)))
    heard = [sound.is_heard(second) for second in range(10)]
    assert sum(heard[:5]) == sum(heard[5:]) == 3
    assert heard == [Muted(Silence()).is_heard(second) for second in range(10)]  # of the seed alone
    expected = samples * np.repeat(heard, SAMPLE_RATE)
    for start, stop in ((0, 9000), (9000, 40000), (39000, 80000), (80000, 160000)):
        np.testing.assert_array_equal(sound.read(start, stop), expected[start:stop])
    assert {tuple(Muted(Silence(), seed).is_heard(k) for k in range(5)) for seed in range(99)} != {tuple(heard[:5])}


@pytest.mark.parametrize(
    ("length", "time", "start"),
    [
        (80000, 2.5, 40000 - 7800),  # in the middle, half a window before
        (80000, 0.0, 0),  # the first second
        (80000, 4.9, 80000 - MIN_SAMPLES),  # the last second
        (80000, 5.2, 83200 - 7800),  # over: what is left of it, then zeros
        (5000, 0.1, 0),  # shorter than a window: zeros follow
    ],
)
def test_the_second_around_a_moment(wav, length, time, start):
    samples = np.random.default_rng(0).uniform(0.1, 1, length).astype(np.float32)
    expected = np.pad(samples, (0, 100000))[start : start + MIN_SAMPLES]
    np.testing.assert_array_equal(hear(Recording(wav(samples)), time), expected)


def test_noise_is_the_benchmarks_and_does_not_depend_on_how_it_is_read():
    """White, uniform in [-1, 1): variance 1/3, no correlation."""
    from avsbench_robust_dataset import conditions

    noise = Noise().read(0, 80000)
    np.testing.assert_array_equal(np.concatenate([Noise().read(0, 23), Noise().read(23, 80000)]), noise)
    np.testing.assert_array_equal(Noise().read(33000, 48000), noise[33000:48000])
    benchmark = conditions.noise(noise, conditions.generator("any"))
    for waveform in (noise, benchmark):
        assert waveform.min() >= -1 and waveform.max() < 1
        assert waveform.var() == pytest.approx(1 / 3, rel=0.02)
        assert abs(np.corrcoef(waveform[1:], waveform[:-1])[0, 1]) < 0.02


def test_silence_is_silent_and_the_siren_is_not():
    assert not Silence().read(5, 900).any()
    siren = Siren().read(0, 16000)
    assert 0.1 < np.sqrt(np.mean(siren**2)) and np.abs(siren).max() < 1
    np.testing.assert_allclose(Siren().read(8000, 9000), siren[8000:9000], rtol=1e-6)


def test_a_hole_in_the_sound_is_silence(tmp_path):
    """Webcams drop packets; what comes later keeps its time."""
    import av

    with av.open(str(tmp_path / "hole.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for begin in (0, 16000):  # the second half a second is missing
            frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 8192, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16000, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    heard = Recording(tmp_path / "hole.mkv").read(0, 26000)
    expected = np.zeros(26000, np.float32)
    expected[:8000] = expected[16000:24000] = 0.25
    np.testing.assert_allclose(heard, expected, atol=1e-6)


def test_a_long_hole_is_not_held_in_memory(tmp_path):
    """A wrong time, ten hours late, would be 2.3 GB of zeros."""
    import av

    with av.open(str(tmp_path / "hole.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for begin in (0, 36000 * 16000):
            frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 8192, np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16000, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    sound = Recording(tmp_path / "hole.mkv")
    heard = [sound.read(start, start + 16000) for start in range(0, 80000, 16000)]
    np.testing.assert_allclose(np.concatenate(heard), np.repeat([0.25, 0], [8000, 72000]))
    assert len(sound._buffer) < 10 * SAMPLE_RATE


def test_a_file_without_sound_is_refused(clip):
    with pytest.raises(ValueError, match="Expected a file with sound, but .*mute.mp4 has no audio track"):
        Recording(clip("mute.mp4", audio=None))
