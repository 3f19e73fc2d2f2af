"""Tables, images and waveforms as they lie on disk: what is accepted, what it becomes, what is refused and how."""

import io
import logging

import numpy as np
import pytest
import soundfile
from PIL import Image

from avsbench_robust_dataset import SUBSETS
from avsbench_robust_dataset.sounds import read_waveform
from avsbench_robust_dataset.sources import (
    check_complete,
    content_digest,
    media_files,
    read_clips,
    read_frames,
    read_masks,
)
from modeling_avsegformer import VGGishFeatureExtractor

S4, MS3 = SUBSETS["s4"], SUBSETS["ms3"]
HEADER = "name,start,category,split\n"
ROWS = "aaa,0,dog_barking,train\nbbb,0,race_car,val\n"


@pytest.fixture
def table(tmp_path):
    def write(text, encoding="utf-8"):
        (tmp_path / "s4_meta_data.csv").write_bytes(text.encode(encoding))
        return tmp_path

    return write


# --- tables ---


@pytest.mark.parametrize(
    "text",
    [
        HEADER + ROWS,
        (HEADER + ROWS).replace("\n", "\r\n"),
        "\ufeff" + HEADER + ROWS,
        "split,uid,category,name\ntrain,7,dog_barking,aaa\nval,8,race_car,bbb\n",
        HEADER + "bbb,0,race_car,val\n\naaa,0,dog_barking,train",
        "name, start, category, split\naaa, 0, dog_barking, train\nbbb, 0, race_car, val\n",
        '"name","start","category","split"\n"aaa","0","dog_barking","train"\n"bbb","0","race_car","val"\n',
    ],
    ids=["plain", "crlf", "bom", "order_and_more_columns", "rows_and_blank_lines", "spaces", "quotes"],
)
def test_columns_are_read_by_name(table, text):
    clips = read_clips(S4, table(text))
    assert [(clip.clip_id, clip.category, clip.split) for clip in clips] == [
        ("aaa", "dog_barking", "train"),
        ("bbb", "race_car", "val"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"columns name, split, category in .*s4_meta_data.csv, got an empty file"),
        ("name,start,split\naaa,0,train\n", r"s4_meta_data.csv.* Add category to its first line"),
        (HEADER, r"Expected clips in .*s4_meta_data.csv"),
        (HEADER + ROWS + "ccc,0\n", r"4 values in .*s4_meta_data.csv, line 4, got fewer"),
        (HEADER + "aaa,0,dog_barking,validation\n", r"one of train, val, test as split in .*line 2, got 'validation'"),
        (HEADER + "aaa,0,dog_barking,\n", r"as split in .*line 2, got ''"),
        (HEADER + ROWS + "aaa,1,helicopter,test\n", r"'aaa' is there again in line 4"),
        (
            HEADER + "aaa,0,dog_barkin,train\n",
            r"23 categories in .*line 2, got 'dog_barkin'.*did you mean dog_barking",
        ),
        (HEADER + "aaa,0,,train\n", r"23 categories in .*line 2, got ''"),
        (HEADER + "aaa,0,../dog_barking,train\n", r"23 categories in .*line 2, got '../dog_barking'"),
        *(
            (HEADER + f"{bad},0,dog_barking,train\n", r"plain file name as clip id in .*line 2")
            for bad in ("..", ".", "", "../aaa", "a/b", "/etc/aaa", "a\\b", "a..b", "a\0b", "a\x07b")
        ),
    ],
)
def test_bad_tables_are_refused_by_file_and_line(table, text, message):
    with pytest.raises(ValueError, match=message):
        read_clips(S4, table(text))


def test_a_table_that_is_not_utf8_is_refused(table):
    with pytest.raises(ValueError, match="UTF-8 text in .*s4_meta_data.csv"):
        read_clips(S4, table(HEADER + "é,0,dog_barking,train\n", encoding="latin-1"))


def test_ms3_clips_know_their_objects_and_source_video(write_ms3, tmp_path):
    clips = {clip.clip_id: clip for clip in read_clips(MS3, write_ms3(tmp_path, media=False))}
    assert clips["aaaaaaaaaaa_3"].source_video == clips["aaaaaaaaaaa_0"].source_video == "aaaaaaaaaaa"
    assert clips["ccccccccccc"].source_video == "ccccccccccc"
    assert clips["aaaaaaaaaaa_0"].category == "dog_car"
    assert clips["aaaaaaaaaaa_0"].labels == ("dog", "car")
    assert MS3.groups_of(clips["aaaaaaaaaaa_0"]) == ("animal", "device")


def test_avss_vid_may_be_the_clip_id_or_the_youtube_id(write_ms3, tmp_path):
    rows = [("aaaaaaaaaaa_0", "", "train"), ("aaaaaaaaaaa_1", "", "train"), ("bbbbbbbbbbb_0", "", "val")]
    write_ms3(tmp_path, rows, metadata=False, media=False)
    (tmp_path / "metadata.csv").write_text(  # the second place, other columns in another order
        "uid,split,label,vid,a_obj\n"
        "1,train,v1m,aaaaaaaaaaa,dog_man\n"
        "2,train,v1m,aaaaaaaaaaa,guitar_dog\n"  # rows of one bare id: united
        "3,train,v1m,aaaaaaaaaaa_1,cat\n"  # the exact id wins
        "4,val,v2,bbbbbbbbbbb_0,tank\n"  # another part of AVSS
        "5,val,v1m,bbbbbbbbbbb_0,background\n"
    )
    categories = {clip.clip_id: clip.category for clip in read_clips(MS3, tmp_path)}
    assert categories == {
        "aaaaaaaaaaa_0": "dog_man_guitar",
        "aaaaaaaaaaa_1": "cat",
        "bbbbbbbbbbb_0": "background",
    }


def test_ms3_without_avss_loads_and_says_so_once(write_ms3, tmp_path, caplog):
    write_ms3(tmp_path, metadata=False, media=False)
    with caplog.at_level(logging.WARNING):
        clips = read_clips(MS3, tmp_path)
        read_clips(MS3, tmp_path)
    assert {clip.category for clip in clips} == {""}
    assert len(caplog.records) == 1 and "metadata.csv" in caplog.text


def test_clips_and_objects_unknown_to_avss_are_named(write_ms3, tmp_path, caplog):
    write_ms3(tmp_path, [("aaaaaaaaaaa_0", "theremin_dog", "train"), ("bbbbbbbbbbb_0", "", "train")], media=False)
    with caplog.at_level(logging.WARNING):
        read_clips(MS3, tmp_path)
    assert "objects that are not AVSS's: theremin." in caplog.text
    assert "1 of 2 clips (bbbbbbbbbbb_0" in caplog.text


# --- layout ---


def test_paths_are_avsbench_s(write_s4, write_ms3, tmp_path):
    """Spelled out from the official layout."""
    write_s4(tmp_path, media=False)
    clip = next(clip for clip in read_clips(S4, tmp_path) if clip.clip_id == "dog00000000")
    frames, masks, wav = media_files(S4, tmp_path, clip)
    base = tmp_path / "Single-source/s4_data"
    assert frames == [base / f"visual_frames/train/dog_barking/dog00000000/dog00000000_{k}.png" for k in range(1, 6)]
    assert masks == [base / "gt_masks/train/dog_barking/dog00000000/dog00000000_1.png"]
    assert wav == base / "audio_wav/train/dog_barking/dog00000000.wav"
    assert len(media_files(SUBSETS["demo"], tmp_path, clip)[1]) == 5

    write_ms3(tmp_path, media=False)
    clip = next(clip for clip in read_clips(MS3, tmp_path) if clip.clip_id == "ddddddddddd_0")
    frames, masks, wav = media_files(MS3, tmp_path, clip)
    base = tmp_path / "Multi-sources/ms3_data"
    assert frames == [base / f"visual_frames/ddddddddddd_0/ddddddddddd_0.mp4_{k}.png" for k in range(1, 6)]
    assert masks == [base / f"gt_masks/val/ddddddddddd_0/ddddddddddd_0_{k}.png" for k in range(1, 6)]
    assert wav == base / "audio_wav/val/ddddddddddd_0.wav"


def test_strangers_are_neither_missing_nor_content(write_s4, tmp_path):
    write_s4(tmp_path)
    clips = read_clips(S4, tmp_path)
    before = content_digest(S4, tmp_path)
    folder = media_files(S4, tmp_path, clips[0])[0][0].parent
    for path in (folder / ".DS_Store", folder.parent / ".DS_Store", folder / "copy of 1.png", tmp_path / "notes.txt"):
        path.write_bytes(b"\0\0\0\1Bud1")
    check_complete(S4, tmp_path, clips)
    assert content_digest(S4, tmp_path) == before
    assert len(read_frames(media_files(S4, tmp_path, clips[0])[0])[0]) == 5


# --- images ---


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


INSIDE = np.array([[0, 1, 0], [1, 1, 0]], dtype=bool)  # (2, 3), so that swapped axes fail


def grey(value):
    return Image.fromarray(np.where(INSIDE, value, 0).astype(np.uint8))


def palette(colours):
    image = Image.fromarray(INSIDE.astype(np.uint8), mode="P")
    image.putpalette(colours)
    return image


def colours(mode, inside, outside):
    image = Image.new(mode, (3, 2), outside)
    for y, x in zip(*np.nonzero(INSIDE), strict=True):
        image.putpixel((int(x), int(y)), inside)
    return image


MASKS = {  # name: (image, whether reading it as 8-bit grey would lose the object)
    "1": (Image.fromarray(INSIDE), False),
    "L_255": (grey(255), False),
    "L_1": (grey(1), False),
    "LA": (colours("LA", (9, 0), (0, 255)), False),
    "P_bright": (palette([0, 0, 0, 255, 255, 255]), False),
    "P_dark_blue": (palette([0, 0, 0, 0, 0, 1]), True),
    "L_soft": (Image.fromarray(np.where(INSIDE, [[5, 9, 5], [8, 9, 3]], 0).astype(np.uint8)), True),
    "P_without_palette_1": (Image.fromarray(INSIDE.astype(np.uint8), mode="P"), True),
    "P_without_palette_255": (Image.fromarray(np.where(INSIDE, 255, 0).astype(np.uint8), mode="P"), True),
    "P_all_black": (palette([0, 0, 0] * 256), True),
    "P_no_black": (palette([9, 9, 9, 200, 0, 0]), True),
    "RGB": (colours("RGB", (255, 0, 0), (0, 0, 0)), False),
    "RGB_dark": (colours("RGB", (0, 0, 2), (0, 0, 0)), True),
    "RGBA": (colours("RGBA", (0, 0, 1, 0), (0, 0, 0, 255)), True),
    "16_bit": (Image.fromarray(np.where(INSIDE, 40000, 0).astype(np.uint16)), False),
    "16_bit_dark": (Image.fromarray(np.where(INSIDE, 1, 0).astype(np.uint16)), None),
}


@pytest.mark.parametrize("name", list(MASKS))
def test_the_object_is_what_is_above_0_in_any_mode(tmp_path, name):
    image, lost_in_grey = MASKS[name]
    (tmp_path / "mask.png").write_bytes(png(image))
    (data,) = read_masks([tmp_path / "mask.png"], (3, 2))
    assert ((np.asarray(Image.open(io.BytesIO(data)).convert("L")) > 0) == INSIDE).all()
    if lost_in_grey is not None:  # how Pillow narrows 16 bits differs between its releases
        assert (data == png(image)) == (not lost_in_grey)


def test_a_palette_is_judged_by_colour_not_by_index(tmp_path):
    """Index 0 is white here and index 1 black: the object is where index 0 is."""
    (tmp_path / "mask.png").write_bytes(png(palette([255, 255, 255, 0, 0, 0])))
    (data,) = read_masks([tmp_path / "mask.png"], (3, 2))
    assert ((np.asarray(Image.open(io.BytesIO(data)).convert("L")) > 0) == ~INSIDE).all()


@pytest.mark.parametrize(
    ("index", "colour", "inside"), [(0, [0, 0, 0], False), (1, [0, 0, 0], True), (0, [9] * 3, True)]
)
def test_a_palette_mask_of_one_index(tmp_path, index, colour, inside):
    """The colour decides where the palette has one for the index, else the index."""
    image = Image.fromarray(np.full((2, 3), index, dtype=np.uint8), mode="P")
    image.putpalette(colour)
    (tmp_path / "mask.png").write_bytes(png(image))
    (data,) = read_masks([tmp_path / "mask.png"], (3, 2))
    assert ((np.asarray(Image.open(io.BytesIO(data)).convert("L")) > 0) == inside).all()


def test_an_empty_mask_stays_empty(tmp_path):
    (tmp_path / "mask.png").write_bytes(png(grey(0)))
    (data,) = read_masks([tmp_path / "mask.png"], (3, 2))
    assert data == png(grey(0))


def test_a_jpeg_is_no_mask_whatever_its_name(tmp_path):
    """JPEG rings around edges: of this disc 10 % more pixels are above 0 than belong to it."""
    y, x = np.mgrid[:224, :224]
    disc = (y - 100) ** 2 + (x - 120) ** 2 < 50**2
    Image.fromarray(np.where(disc, 255, 0).astype(np.uint8)).save(tmp_path / "mask_1.png", format="JPEG", quality=75)
    assert (np.asarray(Image.open(tmp_path / "mask_1.png")) > 0).sum() > 1.05 * disc.sum()
    with pytest.raises(ValueError, match=r"PNG as mask at .*mask_1.png, got a JPEG.*convert"):
        read_masks([tmp_path / "mask_1.png"], (224, 224))
    read_frames([tmp_path / "mask_1.png"])  # a photograph may be one


@pytest.mark.parametrize("read", [read_frames, read_masks])
def test_a_png_cut_anywhere_is_refused(tmp_path, read):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(8, 9), dtype=np.uint8))
    whole = png(image)
    path = tmp_path / "cut_1.png"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"complete PNG at .*cut_1.png"):
            read([path])
    path.write_bytes(whole)
    read([path])


def test_a_flipped_byte_is_refused(tmp_path):
    data = bytearray(png(Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(8, 9), dtype=np.uint8))))
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"complete PNG at .*flipped.png"):
        read_frames([tmp_path / "flipped.png"])


def test_frames_of_one_clip_have_one_size(tmp_path):
    for name, size in (("a_1.png", (3, 2)), ("a_2.png", (2, 3))):
        (tmp_path / name).write_bytes(png(Image.new("RGB", size)))
    with pytest.raises(ValueError, match=r"3 x 2 pixels at .*a_2.png, as in a_1.png, got 2 x 3"):
        read_frames([tmp_path / "a_1.png", tmp_path / "a_2.png"])


def test_a_mask_has_the_size_of_its_frame(tmp_path):
    (tmp_path / "m.png").write_bytes(png(grey(1)))
    with pytest.raises(ValueError, match=r"mask of 2 x 3 pixels at .*m.png, as its frame, got 3 x 2"):
        read_masks([tmp_path / "m.png"], (2, 3))


@pytest.mark.parametrize("read", [read_frames, read_masks, lambda paths: read_waveform(paths[0])])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"file at .*gone_1, got none.*avs-data check"):
        read([tmp_path / "gone_1"])


# --- waveforms ---


def write_wav(path, samples, rate=16000, subtype="PCM_16"):
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def test_16_kHz_mono_is_exact(tmp_path):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, size=80000, dtype=np.int16)
    waveform = read_waveform(write_wav(tmp_path / "a.wav", samples))
    assert waveform.dtype == np.float32 and waveform.shape == (80000,)
    np.testing.assert_array_equal(waveform, samples / 32768)


def test_channels_are_averaged(tmp_path):
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, size=(80000, 2), dtype=np.int16)
    waveform = read_waveform(write_wav(tmp_path / "a.wav", samples))
    np.testing.assert_array_equal(waveform, samples.astype(np.float64).sum(axis=1) / 65536)


def test_24_bits_are_kept(tmp_path):
    samples = np.arange(-40000, 40000, dtype=np.int32) * 200
    waveform = read_waveform(write_wav(tmp_path / "a.wav", samples << 8, subtype="PCM_24"))
    np.testing.assert_array_equal(waveform, (samples / 2**23).astype(np.float32))


def test_long_is_cut_and_short_repeats_its_last_window(tmp_path):
    samples = np.random.default_rng(0).integers(1, 2**15, size=100000, dtype=np.int16)
    whole = read_waveform(write_wav(tmp_path / "long.wav", samples))
    np.testing.assert_array_equal(whole, samples[:80000] / 32768)
    short = read_waveform(write_wav(tmp_path / "short.wav", samples[:64000]))  # windows end at 61680
    expected = np.r_[samples[:61680], samples[61680 - 15360 : 61680], samples[46320 : 46320 + 2960]] / 32768
    np.testing.assert_array_equal(short, expected)
    two = read_waveform(write_wav(tmp_path / "two.wav", samples[:31000]))
    np.testing.assert_array_equal(two[30960:], np.tile(samples[15600:30960], 4)[: 80000 - 30960] / 32768)
    for length in (1, 15599, 77040, 79999):  # no whole window, or all five: there is nothing to repeat
        waveform = read_waveform(write_wav(tmp_path / "other.wav", samples[:length]))
        np.testing.assert_array_equal(waveform, np.r_[samples[:length] / 32768, np.zeros(80000 - length)])


@pytest.mark.parametrize("seconds", [0.975, 1.5, 2.0, 3.999, 4.0, 4.5, 4.9, 5.0])
def test_data_set_and_processor_have_one_rule_for_short_sounds(tmp_path, seconds):
    """AVSBench's: the last whole log-mel example comes again, exactly."""
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, size=round(seconds * 16000), dtype=np.int16)
    waveform = read_waveform(write_wav(tmp_path / "a.wav", samples))
    extractor = VGGishFeatureExtractor()
    heard, raw = (extractor(sound, sampling_rate=16000)["input_features"][0] for sound in (waveform, samples / 32768))
    np.testing.assert_array_equal(heard, raw)
    assert (heard[4] == heard[3]).all() == (seconds < 4.8)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000, 96000])
def test_any_rate_becomes_16_kHz(tmp_path, rate):
    """A chord keeps its values at the new times, save at its ends, where any filter sees the edge."""

    def chord(time):
        return sum(0.2 * np.sin(2 * np.pi * frequency * time + frequency) for frequency in (101, 440, 3000))

    samples = chord(np.arange(5 * rate) / rate)
    waveform = read_waveform(write_wav(tmp_path / "a.wav", samples, rate, "FLOAT"))
    assert waveform.shape == (80000,) and waveform.dtype == np.float32
    np.testing.assert_allclose(waveform[800:-800], chord(np.arange(80000) / 16000)[800:-800], atol=1e-4)


def test_stereo_at_another_rate_is_averaged_first(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, size=(5 * 44100, 2))
    stereo = read_waveform(write_wav(tmp_path / "stereo.wav", samples, 44100, "DOUBLE"))
    mono = read_waveform(write_wav(tmp_path / "mono.wav", samples.mean(axis=1), 44100, "DOUBLE"))
    np.testing.assert_allclose(stereo, mono, atol=1e-6)


def test_above_8_kHz_nothing_is_left(tmp_path):
    time = np.arange(5 * 48000) / 48000
    waveform = read_waveform(write_wav(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 9000 * time), 48000, "FLOAT"))
    assert np.abs(waveform[800:-800]).max() < 1e-3  # an alias would stand at 7 kHz


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
def test_a_tone_that_goes_on_does_not_fade_at_the_clip_s_end(tmp_path, rate):
    """The filter looks a few milliseconds ahead: a file that was cut before resampling would end in silence there."""
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(6 * rate) / rate + 1)
    waveform = read_waveform(write_wav(tmp_path / "tone.wav", tone, rate, "DOUBLE"))
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(80000) / 16000 + 1)
    np.testing.assert_allclose(waveform[-2000:], expected[-2000:], rtol=0, atol=1e-3)


def test_what_follows_a_long_file_s_five_seconds_does_not_matter(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, size=8 * 44100)
    first = read_waveform(write_wav(tmp_path / "long.wav", samples, 44100, "FLOAT"))
    second = read_waveform(write_wav(tmp_path / "six.wav", samples[: 6 * 44100], 44100, "FLOAT"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(tmp_path, value):
    samples = np.zeros(80000)
    samples[777] = value
    with pytest.raises(ValueError, match=r"finite samples at .*bad.wav"):
        read_waveform(write_wav(tmp_path / "bad.wav", samples, subtype="FLOAT"))


def test_empty_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without samples|sound file at .*none.wav"):
        read_waveform(write_wav(tmp_path / "none.wav", np.zeros(0)))
    (tmp_path / "nothing.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"sound file at .*nothing.wav"):
        read_waveform(tmp_path / "nothing.wav")
    (tmp_path / "text.wav").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"sound file at .*text.wav"):
        read_waveform(tmp_path / "text.wav")
