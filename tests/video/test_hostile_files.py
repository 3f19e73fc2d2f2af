"""Files that strangers send: times without end, holes, huge pictures, playlists. None blocks, none fills the disk."""

import time
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("av") is None:
    pytest.skip("needs PyAV, which reads videos: pip install av", allow_module_level=True)

import av

from modeling_avsegformer.video import read_frames, read_info, video
from modeling_avsegformer.video.sounds import Recording


@pytest.fixture(autouse=True)
def quick():
    """Each of these files once blocked a process for minutes or for ever."""
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < 30


def test_a_frame_of_a_far_time_is_refused(pipe, clip, tmp_path):
    """14 kB, the last frame at 10^9 s: 32 years of siren were written until the disk was full."""
    path = clip("far.mkv", times=[0, 0.1, 0.2, 1e9], audio=None)
    for condition in ("off_screen", "noise"):
        with pytest.raises(ValueError, match=r"far.mkv .* less than a day apart, but 1000000000.0 s follows 0.2 s"):
            pipe(path, output=tmp_path / "out.mp4", condition=condition)
    assert [file.name for file in tmp_path.iterdir()] == ["far.mkv"]


@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_a_hole_of_years_in_the_sound_is_refused(pipe, tmp_path, suffix):
    """The sound is copied into .mkv, encoded anew for .webm."""
    path = tmp_path / "hole.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height = 64, 48
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for _ in range(20):
            container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(video.encode(None))
        for place in (*range(10), 10**9):
            frame = av.AudioFrame.from_ndarray(np.full((1, 1024), 0.1, np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, place * (1024 if place < 10**9 else 16000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    with pytest.raises(ValueError, match=r"hole.mkv .* less than a day apart"):
        pipe(path, output=tmp_path / f"out{suffix}")
    assert [file.name for file in tmp_path.iterdir()] == ["hole.mkv"]


def test_a_sound_of_one_sample_is_opened_once(tmp_path, monkeypatch):
    """Repeated 16,000 times a second it took minutes."""
    import soundfile

    from modeling_avsegformer.video import sounds

    opened = []
    monkeypatch.setattr(sounds, "open_media", lambda path, open=sounds.open_media: opened.append(path) or open(path))
    soundfile.write(tmp_path / "one.wav", np.full(1, 0.5, np.float32), 16000, subtype="FLOAT")
    sound = Recording(tmp_path / "one.wav", loop=True)
    np.testing.assert_array_equal(sound.read(50000, 60000), np.full(10000, 0.5, np.float32))
    assert len(opened) == 2  # once to see whether there is sound


@pytest.mark.parametrize(
    ("name", "text"),
    [
        # Without an end and with a missing part: FFmpeg asked for it again for 100 s.
        ("live.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.3,\nmissing.ts\n"),
        ("list.mp4", "ffconcat version 1.0\nfile clip.mp4\n"),
        ("stream.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 1234 RTP/AVP 96\n"),
        ("sub.idx", "# VobSub index file, v7 (do not modify this line!)\n"),
    ],
)
def test_files_that_name_other_files_are_not_opened(clip, tmp_path, name, text):
    clip()
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name} is a playlist, which names other files"):
        read_info(tmp_path / name)


def test_a_video_of_huge_pictures_is_refused_before_it_is_decoded(clip, tmp_path, monkeypatch):
    """48 kB of 16,000 x 16,000 took 6.6 GB. Neither the first picture nor a later one may be larger than the limit."""
    assert video.MAX_PIXELS >= 7680 * 4320
    monkeypatch.setattr(video, "MAX_PIXELS", 80 * 60)
    small, huge = (clip(f"{width}.ts", size=(width, 60), audio=None) for width in (80, 160))
    with pytest.raises(ValueError, match=r"160.ts has 160 x 60 pixels, more than 4800. Scale it down"):
        read_info(huge)
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + huge.read_bytes())
    with pytest.raises(ValueError, match="both.ts, but its data are damaged after"):
        list(read_frames(read_info(both)))


def test_a_clip_may_be_too_long(pipe, clip, tmp_path):
    """`max_seconds` holds for what a file says, and for the frames of one that says nothing."""
    with pytest.raises(ValueError, match=r"Expected a clip of at most 0.5 s, but .*clip.mp4 lasts 1.0 s. Cut it"):
        pipe(clip(), output=tmp_path / "out.mp4", max_seconds=0.5)
    silent = clip("clip.ts", times=[0, 0.1, 0.7])
    with pytest.raises(ValueError, match=r"Expected a clip of at most 0.5 s, but .*clip.ts"):
        pipe(silent, output=tmp_path / "out.mp4", max_seconds=0.5)
    assert len(pipe(clip(), max_seconds=1.1)) == 10
