"""Data: building S4, what it takes on disk, and how fast it is read, against one-at-a-time processing.

python benchmarks/benchmark_data.py --table s4_meta_data.csv --folder FOLDER [--json FILE]

Media of AVSBench's shape (frames of 224 x 224 as PNG of photographs' size, masks of 1 bit, 5 s of 16 kHz in 16 bits)
are written for every clip of the table, about 3 GB, into FOLDER, which is removed in the end. Without --table the
clips are the 4932 of the published manifest.

The yardstick does what the released script does, from its description, one clip and condition after the other: decode
the whole wav at 22.05 kHz, make librosa's log-mel features (n_fft 1024, hop 512, dB, standardised by second), pickle
them, and write a wav of the condition. Noise is a wav of 20 s at 44.1 kHz there. It runs on a sample of clips and is
scaled to all of them; build and yardstick take turns on that sample, so that the ratio is one of the same minutes.
Times are of the processor, which other programs disturb less than those of the clock; both are written to --json.
"""

import argparse
import gc
import io
import json
import logging
import pickle
import platform
import shutil
import time
from pathlib import Path

import datasets
import librosa
import numpy as np
import soundfile
import torch
from datasets import load_dataset
from PIL import Image
from torch.utils.data import DataLoader

import avsbench_robust_dataset  # noqa: F401  (registers the data set)
from avsbench_robust_dataset import CONDITIONS, SUBSETS
from avsbench_robust_dataset.draw import draw_off_screen, read_manifest
from avsbench_robust_dataset.sources import media_files, read_clips

S4 = SUBSETS["s4"]
MANIFEST = Path(avsbench_robust_dataset.__file__).with_name("manifests") / "s4_seed42.jsonl.gz"
POOL = 48  # different pictures and sounds; files of the same content, as reading them does not tell


# --- media ---


def photograph(rng: np.random.Generator, size: int = 224) -> bytes:
    """A PNG that takes what one of a photograph does, 80 to 100 kB: smooth shapes, and grain."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((size, size), Image.BICUBIC)
    grain = rng.normal(0, 4, (size, size, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def mask(rng: np.random.Generator, size: int = 224) -> bytes:
    y, x = np.mgrid[:size, :size] / size
    (cy, cx), (ry, rx) = rng.uniform(0.3, 0.7, 2), rng.uniform(0.1, 0.3, 2)
    buffer = io.BytesIO()
    Image.fromarray(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1).save(buffer, format="PNG")
    return buffer.getvalue()


def sound(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.2 * rng.standard_normal(80000), 16000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write_media(table: Path | None, root: Path, clips: int | None) -> None:
    """A download in AVSBench's layout; `clips` of each split, or all."""
    target = root / S4.folder / S4.table
    target.parent.mkdir(parents=True)
    rows, _ = read_manifest(MANIFEST)
    lines = [f"{row['clip_id']},0,{row['category']},{row['split']}" for row in rows]
    if table is not None:
        lines = table.read_text(encoding="utf-8").splitlines()[1:]
    if clips is not None:
        lines = [
            line for split in ("train", "val", "test") for line in [x for x in lines if x.endswith(split)][:clips]
        ]
    target.write_text("\n".join(["name,start,category,split", *lines]) + "\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    pools = [[make(rng) for _ in range(POOL)] for make in (photograph, mask, sound)]
    folders = set()
    for number, clip in enumerate(read_clips(S4, root)):
        frames, masks, wav = media_files(S4, root, clip)
        for kind, paths in enumerate((frames, masks, [wav])):
            for k, path in enumerate(paths):
                if path.parent not in folders:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    folders.add(path.parent)
                path.write_bytes(pools[kind][(number + 7 * k) % POOL])


# --- the yardstick ---


def features(path: Path) -> torch.Tensor:
    """(5, 1, 96, 64): librosa's log-mel at 22.05 kHz, standardised by second, padded with zeros."""
    waveform, rate = librosa.load(path, sr=22050)
    seconds = []
    for second in range(5):
        piece = waveform[second * rate : (second + 1) * rate]
        mel = librosa.feature.melspectrogram(y=piece, sr=rate, n_fft=1024, hop_length=512, n_mels=64)
        decibels = librosa.power_to_db(mel).T[:96]
        decibels = (decibels - decibels.mean()) / (decibels.std() + 1e-8)
        seconds.append(np.pad(decibels, ((0, 96 - len(decibels)), (0, 0))))
    return torch.from_numpy(np.stack(seconds)[:, None].astype(np.float32))


def one_at_a_time(root: Path, pairs: list, out: Path) -> None:
    """A wav and a pickle of features for each clip and condition."""
    rng = np.random.default_rng(42)
    for pair in pairs:
        for condition in CONDITIONS:
            folder = out / condition / pair.clip.split / pair.clip.category
            folder.mkdir(parents=True, exist_ok=True)
            wav = folder / f"{pair.clip.clip_id}.wav"
            if condition == "silence":
                soundfile.write(wav, np.zeros(80000, np.int16), 16000)
            elif condition == "noise":
                soundfile.write(wav, rng.uniform(-1, 1, 5 * 44100).view(np.int16), 44100)
            else:
                source = pair.clip if condition == "positive" else pair.partner
                samples, rate = soundfile.read(media_files(S4, root, source)[2], dtype="int16")
                soundfile.write(wav, samples, rate)
            with wav.with_suffix(".pkl").open("wb") as file:
                pickle.dump(features(wav), file)


# --- ours ---


def build(root: Path, cache: Path, num_proc: int | None = None):
    return load_dataset("avsbench_robust", "s4", data_dir=str(root), cache_dir=str(cache), num_proc=num_proc)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def seconds_of(function, *arguments, **options) -> np.ndarray:
    """(of the processor, of the clock)"""
    gc.collect()
    start = np.array([time.process_time(), time.perf_counter()])
    function(*arguments, **options)
    return np.array([time.process_time(), time.perf_counter()]) - start


def reading(dataset, workers: int, clips: int) -> dict[str, float]:
    """Frames, masks and waveform of random clips, decoded, through a DataLoader; its start not counted."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[: clips + 32].tolist()
    options = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
    batches = iter(DataLoader(dataset, batch_size=4, sampler=order, collate_fn=decoded, **options))
    for _ in range(8):
        next(batches)
    start, count = np.array([time.process_time(), time.perf_counter()]), 0
    for batch in batches:
        count += len(batch)
    processor, clock = np.array([time.process_time(), time.perf_counter()]) - start
    return {"clips/s": count / clock} | ({} if workers else {"processor, ms a clip": 1000 * processor / count})


def decoded(rows: list[dict]) -> list[tuple]:
    return [
        (
            np.stack([np.asarray(frame) for frame in row["frames"]]),
            np.stack([np.asarray(image) for image in row["masks"]]),
            row["audio"]["array"],
        )
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="must not exist; 3 GB are written and removed")
    parser.add_argument("--table", type=Path, help="S4's s4_meta_data.csv; default: the published manifest's clips")
    parser.add_argument("--clips", type=int, help="of each split; default: all")
    parser.add_argument("--sample", type=int, default=24, help="clips of the yardstick, in each split")
    parser.add_argument("--repeats", type=int, default=5, help="turns on the sample; medians are printed")
    parser.add_argument("--read", type=int, default=200, help="clips to read")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    args.folder.mkdir(parents=True)
    try:
        result = measure(args)
    finally:
        shutil.rmtree(args.folder)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(args: argparse.Namespace) -> dict:
    root, sample_root = args.folder / "s4", args.folder / "sample"
    write_media(args.table, root, args.clips)
    write_media(args.table, sample_root, args.sample)
    clips, sample = read_clips(S4, root), read_clips(S4, sample_root)
    pairs = [
        pair
        for split in ("train", "val", "test")
        for pair in draw_off_screen([clip for clip in sample if clip.split == split], S4, 42)
    ]
    features(media_files(S4, sample_root, sample[0])[2])  # librosa compiles and loads on the first call
    build(sample_root, args.folder / "warm-up")

    times: dict[str, list[np.ndarray]] = {"build": [], "yardstick": []}
    for turn in range(args.repeats):
        cache, out = args.folder / f"cache{turn}", args.folder / f"yardstick{turn}"
        times["build"].append(seconds_of(build, sample_root, cache))
        times["yardstick"].append(seconds_of(one_at_a_time, sample_root, pairs, out))
        sizes = [size_of(cache), size_of(out)]
        shutil.rmtree(cache)
        shutil.rmtree(out)
    ratios = np.array(times["yardstick"]) / np.array(times["build"])
    scale = len(clips) / len(sample)

    cache = args.folder / "cache"
    seconds = {
        "yardstick": np.median(times["yardstick"], axis=0) * scale,
        "build": seconds_of(build, root, cache),
        "load again": seconds_of(build, root, cache),
    }
    megabytes = {"yardstick": sizes[1] * scale / 1e6, "build": size_of(cache) / 1e6, "media": size_of(root) / 1e6}
    faster = seconds["yardstick"] / seconds["build"]
    print(f"{len(clips)} clips x 12 splits; the yardstick on {len(sample)} clips, scaled by {scale:.1f}")
    print(f"{'':<30}{'processor, s':>14}{'MB':>10}")
    for name, (processor, _) in seconds.items():
        print(f"{name:<30}{processor:>14.1f}{megabytes.get(name, 0):>10.0f}")
    print(f"media, which both need{megabytes['media']:>32.0f}")
    print(
        f"faster: {faster[0]:.0f} x on all clips, {np.median(ratios[:, 0]):.0f} x on the sample, with its fixed costs"
    )
    print(f"disk: {megabytes['build'] / megabytes['yardstick']:.4f} of the yardstick's")
    result = {
        "clips": len(clips),
        "sample": len(sample),
        "seconds (processor, clock)": {name: list(both) for name, both in seconds.items()},
        "faster (processor, clock)": list(faster),
        "faster on the sample, medians of turns (processor, clock)": list(np.median(ratios, axis=0)),
        "MB": megabytes,
        "reading": {},
    }
    loaded = build(root, cache)
    for name in ("train_positive", "test_noise"):
        for workers in (0, 1, 2):
            rate = reading(loaded[name], workers, min(args.read, len(loaded[name]) - 32))
            result["reading"][f"{name}, {workers} workers"] = rate
            print(f"reading {name}, {workers} workers: " + ", ".join(f"{v:.1f} {k}" for k, v in rate.items()))
    result["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "versions": {module.__name__: module.__version__ for module in (datasets, librosa, np, torch)},
        "date": time.strftime("%Y-%m-%d"),
    }
    return result


if __name__ == "__main__":
    main()
