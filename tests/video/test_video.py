"""Reading and writing video files."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="needs PyAV, which reads and writes videos: pip install av")

import av

from modeling_avsegformer.video.video import MaskFolderWriter, VideoWriter, read_frames, read_info, to_rgb


def frames_of(path):
    info = read_info(path)
    frames = [(time, to_rgb(frame, info)) for time, frame in read_frames(info)]
    return info, [time for time, _ in frames], np.stack([frame for _, frame in frames])


def red_corner(frame) -> tuple[bool, bool]:
    """(at the bottom?, at the right?), of the corner that `picture` paints red."""
    rows, columns = np.nonzero(frame[..., 0] > 120)
    return bool(rows.mean() > frame.shape[0] / 2), bool(columns.mean() > frame.shape[1] / 2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": (65, 49), "pix_fmt": "yuv444p"},
        {"name": "ten_bit.mkv", "codec": "ffv1", "pix_fmt": "yuv420p10le"},
        {"name": "vp9.webm", "codec": "libvpx-vp9", "audio": "libopus", "audio_rate": 48000},
        {"name": "old.avi", "codec": "mjpeg", "pix_fmt": "yuvj420p", "audio": "pcm_s16le"},
        {"start": 7.5, "name": "late.mkv"},
    ],
    ids=["plain", "odd", "10 bit", "webm", "avi", "late start"],
)
def test_frames_of_any_format(clip, options):
    info, times, frames = frames_of(clip(**options))
    width, height = options.get("size", (64, 48))
    assert (info.width, info.height, info.rate) == (width, height, 10)
    np.testing.assert_allclose(times, np.arange(10) / 10, atol=1e-6)
    assert frames.shape == (10, height, width, 3)
    # The colours, away from edges: lossy codecs stay within a few of 255 levels.
    np.testing.assert_allclose(frames[3, 8, 8], (200, 30, 30), atol=12)
    np.testing.assert_allclose(frames[3, 40, 50], (40, 40, 40), atol=6)


def test_frames_keep_their_own_times(clip):
    times = [0, 0.04, 0.3, 0.31, 0.9, 1.5]
    _, found, frames = frames_of(clip(times=times))
    np.testing.assert_allclose(found, times, atol=1e-6)
    assert len(frames) == 6


def test_a_recording_that_was_cut_begins_with_its_first_whole_frame(clip):
    """Frames that lean on what is missing are left out; the next one that can be read by itself is time 0."""
    path = clip("cut.ts", group=5, audio=None)
    with av.open(str(path)) as container:
        second = sorted(packet.pos for packet in container.demux(video=0) if packet.pos)[1]
    path.write_bytes(path.read_bytes()[second // 188 * 188 :])
    _, times, frames = frames_of(path)
    assert 5 <= len(frames) < 10
    np.testing.assert_allclose(times, np.arange(len(frames)) / 10, atol=1e-6)
    np.testing.assert_allclose(frames[:, 8, 8, 2], 10 * np.arange(10)[-len(frames) :], atol=4)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_end_is_known(clip, suffix):
    """Ten frames from 7.5 s on, the last one over a second after the first began."""
    info = read_info(clip(f"clip.{suffix}", start=7.5))
    assert info.end == pytest.approx(1.0, abs=0.002) and info.num_frames == 10


@pytest.mark.parametrize(("degrees", "corner"), [(90, (False, True)), (180, (True, True)), (270, (True, False))])
def test_a_rotated_video_is_upright(clip, degrees, corner):
    """The red corner is stored at the top left; turned clockwise by 90 degrees it is at the top right."""
    info, _, frames = frames_of(clip(rotation=degrees, pixel_aspect=Fraction(4, 3)))
    turned = degrees != 180
    assert frames.shape[1:3] == ((64, 48) if turned else (48, 64)) == (info.height, info.width)
    assert red_corner(frames[0]) == corner
    assert info.pixel_aspect == (Fraction(3, 4) if turned else Fraction(4, 3))


@pytest.mark.parametrize(("suffix", "sound"), [("mp4", "aac"), ("mov", "aac"), ("mkv", "aac"), ("webm", "opus")])
def test_what_is_written_is_there(clip, tmp_path, read, read_sound, suffix, sound):
    """Times, size, pictures and sound of a video with frames at uneven times."""
    source = clip(times=[0, 0.04, 0.3, 0.31, 0.9])
    info, times, frames = frames_of(source)
    out = tmp_path / f"out.{suffix}"
    writer = VideoWriter(out, info, (64, 48), copy_audio=True)
    for time, frame in zip(times, frames, strict=True):
        assert not out.exists()
        writer.write(frame, time)
    writer.finish()
    writer.publish()
    written_times, written = read(out)
    np.testing.assert_allclose(written_times, times, atol=1.1e-3)  # mkv and webm count milliseconds
    np.testing.assert_allclose(written[:, 8, 8], frames[:, 8, 8], atol=12)
    codec, rate, samples = read_sound(out)
    assert (codec, rate) == (sound, 44100 if sound == "aac" else 48000)
    if sound == "aac":
        # Packets are taken over. mkv has no place for the one before time 0, which the first 1024 samples lean on; nor
        # has the decoder's substitute for noise then the same state.
        begin, atol = (1024, 1e-3) if suffix == "mkv" else (0, 0)
        np.testing.assert_allclose(samples[begin:], read_sound(source)[2][begin:], rtol=0, atol=atol)
    else:
        assert abs(len(samples) / 48000 - 1) < 0.05
        assert np.sqrt(np.mean(samples[5000:40000] ** 2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_an_output_lasts_until_its_last_frame_is_over(clip, tmp_path, suffix):
    """Players stop where the file says that it ends. Five frames in 9 s are 1.8 s each."""
    info, times, frames = frames_of(clip(times=[0, 0.1, 0.2, 0.3, 9], audio=None))
    writer = VideoWriter(tmp_path / f"out.{suffix}", info, (64, 48))
    for time, frame in zip(times, frames, strict=True):
        writer.write(frame, time)
    writer.finish()
    writer.publish()
    with av.open(str(tmp_path / f"out.{suffix}")) as container:
        assert container.duration / av.time_base >= 9.03


def test_sound_that_goes_back_in_time_is_left_out(clip, tmp_path, read_sound):
    """Two recordings of a second in one file, the second one from 0.5 s on."""
    first = clip("first.ts", start=1.0)
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + clip("second.ts", start=1.5).read_bytes())
    info, times, frames = frames_of(both)
    writer = VideoWriter(tmp_path / "out.mp4", info, (64, 48), copy_audio=True)
    for time, frame in zip(times, frames, strict=True):
        writer.write(frame, time)
    writer.finish()
    writer.publish()
    assert times == pytest.approx(np.arange(15) / 10)
    assert len(read_sound(tmp_path / "out.mp4")[2]) / 44100 == pytest.approx(1.5, abs=0.1)


def test_colours_say_how_they_are_meant(clip, tmp_path, read):
    """BT.709 in, BT.709 out, marked; the same colours on any player."""
    info, times, frames = frames_of(clip())
    writer = VideoWriter(tmp_path / "out.mp4", info, (64, 48))
    for time, frame in zip(times, frames, strict=True):
        writer.write(frame, time)
    writer.finish()
    writer.publish()
    with av.open(str(tmp_path / "out.mp4")) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (1, 1)
    # Y of (200, 30, 0) by BT.709: 16 + 219/255 * (0.2126 * 200 + 0.7152 * 30) = 70.9
    assert frame.to_ndarray()[8, 8] == pytest.approx(71, abs=2)


def test_an_odd_size_stays(clip, tmp_path, read):
    info, _, frames = frames_of(clip(size=(65, 49), pix_fmt="yuv444p"))
    writer = VideoWriter(tmp_path / "out.mp4", info, (65, 49))
    writer.write(frames[0], 0.0)
    writer.finish()
    writer.publish()
    assert read(tmp_path / "out.mp4")[1].shape == (1, 49, 65, 3)


def test_a_sound_of_its_own_lasts_as_long_as_the_pictures(clip, tmp_path, read_sound):
    info, times, frames = frames_of(clip(audio=None))

    def endless():
        while True:
            yield np.full(1600, 0.25, np.float32)

    writer = VideoWriter(tmp_path / "out.mkv", info, (64, 48), audio=(16000, endless()))
    for time, frame in zip(times, frames, strict=True):
        writer.write(frame, time)
    writer.finish()
    writer.publish()
    codec, rate, samples = read_sound(tmp_path / "out.mkv")
    assert (codec, rate) == ("aac", 16000)
    assert abs(len(samples) / 16000 - 1) < 0.2  # AAC has frames of 64 ms here, and begins with one


@pytest.mark.parametrize(("suffix", "decoder"), [("mov", None), ("webm", "libvpx-vp9")])
def test_transparent_masks(clip, tmp_path, read, suffix, decoder):
    info = read_info(clip())
    frame = np.zeros((48, 64, 4), np.uint8)
    frame[10:30, 20:50] = (213, 94, 0, 255)
    writer = VideoWriter(tmp_path / f"masks.{suffix}", info, (64, 48), alpha=True)
    for time in (0.0, 0.5):
        writer.write(frame, time)
    writer.finish()
    writer.publish()
    times, written = read(tmp_path / f"masks.{suffix}", decoder)
    np.testing.assert_allclose(times, [0, 0.5], atol=1e-3)
    assert np.array_equal(written[1, ..., 3] > 127, frame[..., 3] > 127)
    np.testing.assert_allclose(written[1, 20, 35], frame[20, 35], atol=10)


def test_masks_as_a_folder(tmp_path):
    frame = np.zeros((5, 7, 4), np.uint8)
    frame[1:3, 2:6] = (213, 94, 0, 255)
    writer = MaskFolderWriter(tmp_path / "masks")
    writer.write(frame, 0.0)
    writer.write(0 * frame, 0.1)
    assert not (tmp_path / "masks").exists()
    writer.finish()
    writer.publish()
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["000000.png", "000001.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "masks" / "000000.png")), frame)
    with pytest.raises(ValueError, match="Expected a new or empty folder for the masks, but .* holds something"):
        MaskFolderWriter(tmp_path / "masks")


def test_an_abandoned_file_leaves_nothing(clip, tmp_path):
    info, _, frames = frames_of(clip())
    before = sorted(tmp_path.iterdir())
    writer = VideoWriter(tmp_path / "out.mp4", info, (64, 48), copy_audio=True)
    writer.write(frames[0], 0.0)
    writer.abandon()
    assert sorted(tmp_path.iterdir()) == before


def write_audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_song_with_cover(path):
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        container.mux(cover.encode(None))


def write_no_frames(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.mp4", lambda path: None, "does not exist or is a folder"),
        ("folder.mp4", lambda path: path.mkdir(), "does not exist or is a folder"),
        ("empty.mp4", lambda path: path.write_bytes(b""), "FFmpeg cannot open .*empty.mp4"),
        ("text.mp4", lambda path: path.write_text("no video"), "FFmpeg cannot open .*text.mp4 .*Invalid data"),
        ("song.m4a", write_audio_only, "Expected a video, but .*song.m4a has only sound"),
        ("cover.mp4", write_song_with_cover, "Expected a video, but .*cover.mp4 has only sound"),
        ("no_frames.avi", write_no_frames, "video track without a single frame"),
        ("text.txt", lambda path: path.write_text(100 * "no video\n"), "Expected a video or audio file, .* is a text"),
        ("photo.jpg", lambda path: Image.new("RGB", (64, 48)).save(path), "photo.jpg is a still picture"),
    ],
)
def test_what_is_no_video_is_said(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_info(tmp_path / name)


def test_a_cut_off_file_is_said(clip):
    path = clip()
    path.write_bytes(path.read_bytes()[:-3000])  # an mp4's table of contents is at its end
    with pytest.raises(ValueError, match="FFmpeg cannot open .* cut off"):
        read_info(path)


def test_damage_is_said_with_its_time(clip):
    """Frames of PNG, the sixth with another signature; H.264 would conceal it."""
    path = clip("clip.mov", codec="png", pix_fmt="rgb24", audio=None)
    data = bytearray(path.read_bytes())
    place = -1
    for _ in range(6):
        place = data.index(b"\x89PNG", place + 1)
    data[place : place + 8] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"clip.mov, but its data are damaged after 0\.40 s .*Copy it again"):
        list(read_frames(read_info(path)))


def test_a_folder_is_no_output(clip, tmp_path):
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(ValueError, match="Expected a file's name as output, but .*out.mp4 is a folder"):
        VideoWriter(tmp_path / "out.mp4", read_info(clip()), (64, 48))


@pytest.mark.parametrize("name", ["out.gif", "out"])
def test_an_unknown_suffix_is_said(clip, tmp_path, name):
    with pytest.raises(ValueError, match=r"Expected a video \(.mp4, .m4v, .mov, .mkv, .webm\) as output, got .*out"):
        VideoWriter(tmp_path / name, read_info(clip()), (64, 48))
