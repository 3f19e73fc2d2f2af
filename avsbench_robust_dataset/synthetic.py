"""Writes the demo subset: small procedurally made clips in S4's layout. Nothing here is AVSBench media.

Every clip shows one sounding object, and some a silent one as well, of the other category of the same semantic group:
within a group only hearing tells which of the two sounds, and an off-screen sound, drawn from another group, is never
the sound of anything in the picture.
"""

import csv
import functools
import hashlib
import io
import logging
import math
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from .files import writing
from .processes import available_cpus
from .progress import progress
from .sounds import encode_wav
from .sources import media_files, numbered_files
from .subsets import FRAMES_PER_CLIP, SAMPLING_RATE, SUBSETS, Clip

logger = logging.getLogger(__name__)

DEMO = SUBSETS["demo"]
SECONDS = FRAMES_PER_CLIP
FRAME_SIZE = 64  # pixels, square
SUPERSAMPLING = 2  # pixels are averages of 2 x 2 samples
DISTRACTOR_SHARES = {"train": 0.1, "val": 0.1, "test": 0.5}  # of a split's clips show a second, silent object
DEMO_SIZES = {"train": 800, "val": 80, "test": 160}  # clips


def _generator(*parts) -> np.random.Generator:
    """A generator of its own for each name, so that no clip depends on how many were made before it."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


# --- sound ---


def _time(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE


def _tone(frequency: np.ndarray | float, t: np.ndarray, amplitudes: list[float], phase: float = 0.0) -> np.ndarray:
    """Harmonics of a (possibly gliding) frequency in Hz, with one amplitude each."""
    angle = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, t.shape)) / SAMPLING_RATE + phase
    return sum((a * np.sin((k + 1) * angle) for k, a in enumerate(amplitudes)), start=np.zeros(t.shape))


def _place(out: np.ndarray, start: float, event: np.ndarray) -> None:
    """Adds an event at `start` seconds; what reaches past the end is cut."""
    begin = round(start * SAMPLING_RATE)
    piece = event[: max(0, len(out) - begin)]
    out[begin : begin + len(piece)] += piece


def coloured_noise(count: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """float64 array (count,) of noise whose power falls with frequency as 1/f**exponent, of unit mean square."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    frequency = np.maximum(np.fft.rfftfreq(count), 1 / count)
    noise = np.fft.irfft(spectrum / frequency ** (exponent / 2), count)
    return noise / np.sqrt(np.mean(noise**2))


def _piano(rng):
    out = np.zeros(SECONDS * SAMPLING_RATE)
    scale = 220 * 2 ** (rng.integers(0, 12) / 12)
    for start in np.arange(0, SECONDS, rng.uniform(0.22, 0.38)):
        t = _time(0.9)
        note = scale * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 12]) / 12)
        _place(out, start, _tone(note, t, [1, 0.5, 0.3, 0.15, 0.08]) * np.exp(-t / 0.22) * np.minimum(1, t / 0.005))
    return out


def _violin(rng):
    t = _time(SECONDS)
    steps = rng.choice([0, 2, 3, 5, 7], size=SECONDS + 1)
    note = rng.uniform(380, 520) * 2 ** (steps[np.minimum(t, SECONDS - 1e-6).astype(int)] / 12)
    vibrato = 1 + 0.012 * np.sin(2 * np.pi * rng.uniform(5, 6.5) * t)
    return _tone(note * vibrato, t, [1, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]) * (0.8 + 0.2 * np.sin(2 * np.pi * 0.7 * t))


def _speech(rng):
    out = np.zeros(SECONDS * SAMPLING_RATE)
    pitch = rng.uniform(95, 135)
    for start in np.arange(0, SECONDS, rng.uniform(0.2, 0.27)):
        t = _time(0.19)
        first, second = rng.uniform(350, 800), rng.uniform(1000, 2000)  # Hz, the vowel's formants
        glide = pitch * rng.uniform(0.9, 1.15) * (1 - 0.3 * t)
        amplitudes = [
            math.exp(-(((k * pitch - first) / 180) ** 2)) + 0.5 * math.exp(-(((k * pitch - second) / 250) ** 2)) + 0.02
            for k in range(1, 26)
        ]
        _place(out, start, _tone(glide, t, amplitudes) * np.hanning(len(t)))
    return out


def _laughter(rng):
    out = np.zeros(SECONDS * SAMPLING_RATE)
    pitch = rng.uniform(480, 620)
    for start in np.arange(0, SECONDS, rng.uniform(0.16, 0.21)):
        t = _time(0.11)
        glide = pitch * rng.uniform(0.9, 1.2) * (1 - 1.8 * t)
        _place(out, start, _tone(glide, t, [0.5, 1, 0.7, 0.3, 0.6, 0.2]) * np.hanning(len(t)))
    return out


def _barking(rng):
    out = np.zeros(SECONDS * SAMPLING_RATE)
    pitch = rng.uniform(420, 600)
    for start in np.arange(0, SECONDS, rng.uniform(0.34, 0.46)):
        t = _time(0.17)
        glide = pitch * (1.25 - 4.2 * np.abs(t - 0.05))
        growl = 1 + 0.7 * np.sin(2 * np.pi * 70 * t)
        _place(out, start, _tone(glide, t, [1, 0.9, 0.7, 0.4, 0.3]) * growl * np.exp(-t / 0.07))
    return out


def _bird(rng):
    out = np.zeros(SECONDS * SAMPLING_RATE)
    for start in np.arange(0, SECONDS, rng.uniform(0.13, 0.2)):
        t = _time(rng.uniform(0.06, 0.12))
        low, high = sorted(rng.uniform(2400, 5200, size=2))
        begin, end = (low, high) if rng.random() < 0.5 else (high, low)
        _place(out, start, _tone(begin + (end - begin) * t / t[-1], t, [1, 0.1]) * np.hanning(len(t)))
    return out


def _helicopter(rng):
    t = _time(SECONDS)
    rotor = np.maximum(0, np.sin(2 * np.pi * rng.uniform(10, 14) * t)) ** 3
    rumble = _tone(rng.uniform(70, 95), t, [1, 0.8, 0.6, 0.5, 0.4, 0.3])
    return (0.25 + rotor) * (rumble + 0.4 * coloured_noise(len(t), 2.0, rng))


def _siren(rng):
    t = _time(SECONDS)
    sweep = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.8, 1.4) * t + rng.uniform(0, 2 * np.pi))
    return _tone(rng.uniform(650, 800) + rng.uniform(500, 700) * sweep, t, [1, 0.15, 0.35, 0.1])


# category -> (silent partner of the same group, hue in turns, shape, texture, timbre)
LOOKS = {
    "playing_piano": ("playing_violin", 0.00, "bar", "stripes", _piano),
    "playing_violin": ("playing_piano", 0.09, "hourglass", "plain", _violin),
    "male_speech": ("baby_laughter", 0.18, "ellipse", "plain", _speech),
    "baby_laughter": ("male_speech", 0.33, "disc", "rings", _laughter),
    "dog_barking": ("mynah_bird_singing", 0.47, "triangle", "dots", _barking),
    "mynah_bird_singing": ("dog_barking", 0.57, "diamond", "plain", _bird),
    "helicopter": ("ambulance_siren", 0.68, "cross", "checks", _helicopter),
    "ambulance_siren": ("helicopter", 0.83, "square", "stripes", _siren),
}
DEMO_CATEGORIES = tuple(sorted(LOOKS))


def make_sound(category: str, rng: np.random.Generator) -> np.ndarray:
    """float32 (80000,) in (-1, 1), 16 kHz: the category's timbre, audible in every second, and a faint background.

    Args:
        category: one of `DEMO_CATEGORIES`.
    """
    sound = LOOKS[category][-1](rng)
    sound = sound / np.sqrt(np.mean(sound**2))
    background = coloured_noise(len(sound), rng.uniform(1.0, 2.0), rng)  # room and wind, never white
    mixture = sound + background * 10 ** (-rng.uniform(18, 36) / 20)
    level = 10 ** (rng.uniform(-26, -14) / 20)  # root mean square, full scale 1
    return np.clip(mixture * level, -0.999, 0.999).astype(np.float32)


# --- picture ---


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points (u, v), in units of the object's radius, lie inside its outline."""
    if shape == "bar":
        return (np.abs(u) < 1.25) & (np.abs(v) < 0.6)
    if shape == "hourglass":
        return ((u - 0.55) ** 2 + v**2 < 0.62**2) | ((u + 0.6) ** 2 + v**2 < 0.75**2)
    if shape == "ellipse":
        return (u / 0.7) ** 2 + (v / 1.25) ** 2 < 1
    if shape == "disc":
        return u**2 + v**2 < 0.9**2
    if shape == "triangle":
        return (v > -0.75) & (v < 1.05 - 1.75 * np.abs(u))
    if shape == "diamond":
        return np.abs(u) / 1.35 + np.abs(v) / 0.9 < 1
    if shape == "cross":
        return ((np.abs(u) < 1.1) & (np.abs(v) < 0.38)) | ((np.abs(v) < 1.1) & (np.abs(u) < 0.38))
    return (np.abs(u) < 0.85) & (np.abs(v) < 0.85)  # square


def _texture(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Brightness in [0.55, 1] over the object."""
    if kind == "stripes":
        on = np.sin(9 * u) > 0
    elif kind == "rings":
        on = np.sin(11 * np.hypot(u, v)) > 0
    elif kind == "dots":
        on = (np.sin(9 * u) * np.sin(9 * v)) > 0.25
    elif kind == "checks":
        on = (np.sin(8 * u) * np.sin(8 * v)) > 0
    else:
        on = np.ones_like(u, dtype=bool)
    return np.where(on, 1.0, 0.55)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in [0, 1] of a hue in turns."""
    wheel = np.clip(np.abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return value * (1 - saturation + saturation * wheel)


class _Object:
    """One moving object: where it is, how it is turned and what it looks like, all drawn once."""

    def __init__(self, category: str, rng: np.random.Generator):
        _, hue, self.shape, self.texture, _ = LOOKS[category]
        self.radius = rng.uniform(0.145, 0.195)  # in units of the frame
        self.colour = _colour((hue + rng.uniform(-0.02, 0.02)) % 1, rng.uniform(0.75, 1.0), rng.uniform(0.8, 1.0))
        self.position = rng.uniform(0.2, 0.8, size=2)  # (x, y)
        self.velocity = rng.uniform(-0.08, 0.08, size=2)  # per second
        self.angle = rng.uniform(-0.5, 0.5)
        self.spin = rng.uniform(-0.15, 0.15)  # radians per second

    def centre(self, second: int) -> np.ndarray:
        """(x, y) at a second; the object bounces off the margins."""
        low, high = 0.17, 0.83
        folded = (self.position + second * self.velocity - low) % (2 * (high - low))
        return low + np.minimum(folded, 2 * (high - low) - folded)

    def paint(self, canvas: np.ndarray, x: np.ndarray, y: np.ndarray, second: int) -> np.ndarray:
        """Paints over the canvas in place; returns where, as bool."""
        cx, cy = self.centre(second)
        turn = self.angle + second * self.spin
        u = (math.cos(turn) * (x - cx) + math.sin(turn) * (y - cy)) / self.radius
        v = (-math.sin(turn) * (x - cx) + math.cos(turn) * (y - cy)) / self.radius
        inside = _inside(self.shape, u, -v)
        canvas[inside] = (self.colour * _texture(self.texture, u, v)[..., None])[inside]
        return inside


def _background(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A dull, textured background with a few bands and blobs of clutter, RGB in [0, 1]."""
    base = _colour(rng.random(), rng.uniform(0.05, 0.25), rng.uniform(0.35, 0.65))
    light = np.ones_like(x)
    for _ in range(4):
        fx, fy = rng.uniform(-14, 14, size=2)
        light += rng.uniform(0.03, 0.1) * np.sin(fx * x + fy * y + rng.uniform(0, 6.3))
    canvas = base * light[..., None]
    for _ in range(rng.integers(1, 4)):
        grey = _colour(rng.random(), rng.uniform(0.0, 0.25), rng.uniform(0.25, 0.85))
        if rng.random() < 0.5:
            turn, offset = rng.uniform(0, np.pi), rng.uniform(0.1, 0.9)
            where = np.abs(math.cos(turn) * (x - 0.5) + math.sin(turn) * (y - 0.5) - offset + 0.5) < 0.04
        else:
            bx, by = rng.uniform(0, 1, size=2)
            where = ((x - bx) / rng.uniform(0.05, 0.16)) ** 2 + ((y - by) / rng.uniform(0.05, 0.16)) ** 2 < 1
        canvas[where] = 0.35 * canvas[where] + 0.65 * grey
    return canvas


def draw_scene(categories: list[str], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames of a scene with one moving object per category, and the masks of the first one and of the others.

    Args:
        categories: visible objects; the first is painted last, so that nothing hides it.

    Returns:
        (frames, masks, silent_masks): uint8 (5, 64, 64, 3), and twice (5, 64, 64) in {0, 255}. No pixel is in both
        masks.
    """
    grid = (np.arange(FRAME_SIZE * SUPERSAMPLING) + 0.5) / (FRAME_SIZE * SUPERSAMPLING)
    x, y = np.meshgrid(grid, grid)
    background = _background(x, y, rng)
    objects = [_Object(category, rng) for category in categories]
    for other in objects[1:]:  # moved away from the first, so that both are seen
        away = rng.uniform(0.35, 0.5, size=2) * rng.choice([-1, 1], size=2)
        other.position = 0.17 + (objects[0].position + away - 0.17) % 0.66
    frames, masks, silent_masks = [], [], []
    for second in range(SECONDS):
        canvas = background.copy()
        silent = np.zeros(x.shape, dtype=bool)
        for other in objects[:0:-1]:
            silent |= other.paint(canvas, x, y, second)
        sounding = objects[0].paint(canvas, x, y, second)
        canvas = canvas.reshape(FRAME_SIZE, SUPERSAMPLING, FRAME_SIZE, SUPERSAMPLING, 3).mean((1, 3))
        mask = _covers_half(sounding)
        canvas += rng.normal(0, 0.02, size=canvas.shape)  # sensor noise
        frames.append((np.clip(canvas, 0, 1) * 255).astype(np.uint8))
        masks.append(np.where(mask, 255, 0).astype(np.uint8))
        silent_masks.append(np.where(_covers_half(silent & ~sounding) & ~mask, 255, 0).astype(np.uint8))
    return np.stack(frames), np.stack(masks), np.stack(silent_masks)


def _covers_half(samples: np.ndarray) -> np.ndarray:
    """bool (64, 64): whether at least half of a pixel's samples are inside."""
    return samples.reshape(FRAME_SIZE, SUPERSAMPLING, FRAME_SIZE, SUPERSAMPLING).mean((1, 3)) >= 0.5


# --- the tree ---


def demo_digest() -> str:
    """SHA-256 over the recipe of the demo clips: equal digests and seeds mean equal clips."""
    sources = [Path(__file__).with_name(name) for name in ("synthetic.py", "categories.py", "subsets.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def demo_root(cache_dir: str | Path) -> Path:
    """The root of a demo tree below `cache_dir`, written there on the first call and whenever its recipe changes."""
    root = Path(cache_dir).expanduser().resolve() / f"avsbench_robust_demo-{demo_digest()[:16]}"
    if not (root / DEMO.folder).is_dir():
        logger.warning("Writing the demo subset's clips to %s, once.", root)
        write_demo(root, num_proc=1)  # more would spawn, which a script without a main guard forbids
    return root


def _plan(seed: int, sizes: dict[str, int]) -> list[Clip]:
    clips = []
    for split, count in sizes.items():
        for number in range(count):
            # eleven characters, as YouTube's ids in AVSBench have
            clip_id = "d" + hashlib.sha256(f"{seed}/{split}/{number}".encode()).hexdigest()[:10]
            category = DEMO_CATEGORIES[number % len(DEMO_CATEGORIES)]
            clips.append(Clip(clip_id, split, category, (category,), clip_id))
    return clips


def _table(clips: list[Clip]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["name", "start", "category", "split"])
    writer.writerows(sorted((clip.clip_id, 0, clip.category, clip.split) for clip in clips))
    return file.getvalue().encode()


def _start_clip(seed: int, clip: Clip) -> tuple[list[str], np.random.Generator]:
    """The categories that a clip shows, the sounding one first, and the generator of all else in it."""
    rng = _generator("demo", seed, clip.split, clip.clip_id)
    shows_two = rng.random() < DISTRACTOR_SHARES[clip.split]
    return [clip.category, *([LOOKS[clip.category][0]] if shows_two else [])], rng


def _images(root: Path, seed: int, clip: Clip) -> list[list[Path]]:
    """The files of a clip's frames, of its masks and, where it shows a silent object, of that one's masks."""
    visible, _ = _start_clip(seed, clip)
    patterns = (DEMO.frame, DEMO.mask, str(DEMO.silent_mask))[: 1 + len(visible)]
    return [numbered_files(DEMO, root, clip, pattern) for pattern in patterns]


def _check_same(final: Path, table: bytes, seed: int, clips: list[Clip]) -> None:
    path = final / DEMO.table
    if path.is_file() and path.read_bytes() == table:
        files = [path for clip in clips for paths in _images(final, seed, clip) for path in paths]
        files += [media_files(DEMO, final, clip)[2] for clip in clips]
        if all(path.is_file() for path in files):
            return
    raise FileExistsError(
        f"Expected no `{DEMO.folder}` folder in {final.parent}, or this very demo, but there is another one or a part "
        "of it. Choose another folder or remove it."
    )


def _write_clip(root: Path, seed: int, clip: Clip) -> None:
    visible, rng = _start_clip(seed, clip)
    scene = draw_scene(visible, rng)
    wav = media_files(DEMO, root, clip)[2]
    with writing(root):
        for paths, images in zip(_images(root, seed, clip), scene, strict=False):
            paths[0].parent.mkdir(parents=True)
            for path, image in zip(paths, images, strict=True):
                Image.fromarray(image).save(path, compress_level=1)
        wav.parent.mkdir(parents=True, exist_ok=True)
        wav.write_bytes(encode_wav(make_sound(clip.category, rng)))


def write_demo(
    out_dir: str | Path, seed: int = 0, sizes: dict[str, int] | None = None, num_proc: int | None = None
) -> bool:
    """Writes the demo tree, `out_dir/Single-source/{s4_meta_data.csv, s4_data/…}`, all at once or not at all.

    Args:
        seed: the same seed writes the same files.
        sizes: clips per split, e.g. `{"train": 8, "val": 4, "test": 4}`; `DEMO_SIZES` when None.
        num_proc: processes; as many as it may use processors, at most 8, when None.

    Returns:
        Whether it was written: False where this very tree was there already.

    Raises:
        FileExistsError: `out_dir` already holds another `Single-source` folder, or one that lacks files.
    """
    out_dir = Path(out_dir)
    final = out_dir / DEMO.folder
    clips = _plan(seed, DEMO_SIZES if sizes is None else sizes)
    table = _table(clips)
    if final.exists():
        _check_same(final, table, seed, clips)
        return False
    out_dir.mkdir(parents=True, exist_ok=True)
    for leftover in out_dir.glob(".demo-*"):
        logger.warning("%s is of a demo that is still written or was killed; if it was killed, remove it.", leftover)
    partial = Path(tempfile.mkdtemp(prefix=".demo-", dir=out_dir))
    try:
        with writing(partial):
            (partial / DEMO.table).write_bytes(table)
        write = functools.partial(_write_clip, partial, seed)
        workers = num_proc or min(8, available_cpus())
        if workers == 1:
            for clip in progress(clips, len(clips), "demo"):
                write(clip)
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for _ in progress(pool.map(write, clips, chunksize=16), len(clips), "demo"):
                    pass
        partial.chmod(0o755)  # mkdtemp's folders are private
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():
                raise
            _check_same(final, table, seed, clips)  # another process was faster
            return False
        return True
    finally:
        shutil.rmtree(partial, ignore_errors=True)
