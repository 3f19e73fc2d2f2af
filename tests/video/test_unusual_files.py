"""Files of recorders and joiners: names with a colon, formats that change, times that begin anew, playlists."""

from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("av") is None:
    pytest.skip("needs PyAV, which reads videos: pip install av", allow_module_level=True)

from modeling_avsegformer.video import VideoWriter, read_frames, read_info, to_rgb
from modeling_avsegformer.video.sounds import Recording


def rewrite(source, target) -> None:
    info = read_info(source)
    writer = VideoWriter(target, info, (info.width, info.height), copy_audio=True)
    try:
        for time, frame in read_frames(info):
            writer.write(to_rgb(frame, info), time)
        writer.finish()
        writer.publish()
    finally:
        writer.abandon()


def tone(pitch: float, seconds: float, rate: int) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)[None].repeat(2, 0)


def pitch_of(samples: np.ndarray, rate: int = 16000) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 16))
    return np.argmax(spectrum) * rate / (1 << 16)


def test_a_colon_in_a_name_is_no_protocol(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip("clip.mp4", seconds=0.3).rename(tmp_path / "2024-05-01T12:30.mp4")
    rewrite("2024-05-01T12:30.mp4", "12:31.mp4")
    assert sum(1 for _ in read_frames(read_info("12:31.mp4"))) == 3


def test_a_playlist_is_refused(clip, tmp_path):
    clip("secret.ts", seconds=0.3)
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:1", "#EXTINF:0.3,", "secret.ts", "#EXT-X-ENDLIST", ""]
    (tmp_path / "list.m3u8").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"list.m3u8 is a playlist, which names other files"):
        read_info(tmp_path / "list.m3u8")
    (tmp_path / "other.mp4").write_text("ffconcat version 1.0\nfile secret.ts\n")
    with pytest.raises(ValueError, match="other.mp4"):
        read_info(tmp_path / "other.mp4")


def test_times_that_begin_anew_go_on(clip, tmp_path, read_sound):
    parts = [clip(f"{p}.ts", seconds=2, start=1.4, waveform=tone(p, 2, 44100)) for p in (400, 900)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    times = [time for time, _ in read_frames(read_info(joined))]
    assert times == pytest.approx(np.arange(40) / 10)
    rewrite(joined, tmp_path / "out.mp4")
    sound = Recording(tmp_path / "out.mp4", 0.0)
    for start, pitch in ((8000, 400), (40000, 900)):
        assert pitch_of(sound.read(start, start + 16000)) == pytest.approx(pitch, abs=5)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_rate_that_changes_midway(clip, tmp_path, suffix):
    """The sound is copied into .mp4 and encoded anew into .webm."""
    first = clip("a.ts", seconds=2, waveform=tone(400, 2, 48000), audio_rate=48000)
    second = clip("b.ts", seconds=2, start=2.0, waveform=tone(900, 2, 44100), audio_rate=44100)
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    sounds = [Recording(both)]
    if suffix == ".webm":
        rewrite(both, tmp_path / f"out{suffix}")
        sounds.append(Recording(tmp_path / f"out{suffix}"))
    for sound in sounds:
        for start, pitch in ((8000, 400), (40000, 900)):
            assert pitch_of(sound.read(start, start + 16000)) == pytest.approx(pitch, abs=5)


def test_sound_before_the_first_picture_is_left_out(clip, tmp_path):
    """The pitch rises by 100 Hz a second, so that it tells the time; pictures begin after one second."""
    time = np.arange(4 * 44100) / 44100
    sweep = 0.3 * np.sin(2 * np.pi * (300 * time + 50 * time**2))
    times = [1 + index / 10 for index in range(30)]
    source = clip("lead.mkv", seconds=4, times=times, waveform=np.stack([sweep, sweep]))
    assert read_info(source).start == pytest.approx(1.0, abs=0.05)
    rewrite(source, tmp_path / "out.webm")
    out = tmp_path / "out.webm"
    for path in (source, out):
        heard = Recording(path, read_info(path).start).read(16000, 32000)  # around 1.5 s of the picture, 2.5 s in all
        assert pitch_of(heard) == pytest.approx(300 + 100 * 2.5, abs=20)
