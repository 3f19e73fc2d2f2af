"""Scores a model on AVSBench-Robust: the same clips with their own sound, silence, noise and another clip's sound.

    accelerate launch evaluate_accelerate.py --model runs/s4 --subset s4 --data_dir data --output_dir runs/s4/eval

The same file runs on one CPU (`--cpu`), one GPU, or several processes (`torchrun --nproc_per_node N`, with `--cpu` for
CPU processes). Each clip's frames pass the backbone once, each distinct sound passes the audio encoder once; only the
head runs once per clip and condition. Masks are scored at their own resolution.

`results.json` holds the scores, `--save_predictions` writes the probability masks beside it.
"""

import argparse
import itertools
import json
import math
import os
import platform
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import evaluate
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, load_dataset
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from avsbench_robust_dataset import CONDITIONS
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

METRIC = Path(__file__).resolve().parent / "evaluate_metrics" / "avs_robust"
SOUND_BATCH = 16  # clips that pass the audio encoder together; fixed, so that no setting of a run changes their bits


def spread(count: int, limit: int | None) -> list[int]:
    """`limit` of `count` indices, evenly spaced: where clips are sorted by category, a prefix would be biased."""
    if limit is None or limit >= count:
        return list(range(count))
    return [index * count // limit for index in range(limit)]


def decode_clip(clip: dict) -> tuple[np.ndarray, np.ndarray]:
    """A row's frames, (T, H, W, 3) uint8 RGB, and its masks, (K, H, W) uint8 with 1 = object."""
    frames = np.stack([np.asarray(frame.convert("RGB")) for frame in clip["frames"]])
    masks = np.stack([np.asarray(mask.convert("L")) > 0 for mask in clip["masks"]]).astype(np.uint8)
    return frames, masks


def sound_keys(condition: str, split: Dataset) -> list[str]:
    """One key per clip, equal where the waveforms are: a clip's own sound is also another clip's off-screen sound."""
    if condition == "silence":
        return ["silence"] * len(split)
    rows = split.select_columns(["clip_id", "audio_source"])
    return [f"clip {row['audio_source']}" if row["audio_source"] else f"{condition} {row['clip_id']}" for row in rows]


def encode_sounds(
    processor: AVSegFormerProcessor,
    splits: dict[str, Dataset],
    encoder: Callable[[torch.Tensor], torch.Tensor] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[str, torch.Tensor]:
    """The features of every distinct sound of `splits`, keyed as in `sound_keys`.

    Positive and negative sounds pass the same front end, each once.

    Args:
        encoder: log-mel (N, T, 1, 96, 64) on `device` -> embeddings (N, T, 128), run without gradients and in the
            precision of its weights. None keeps the log-mel.

    Returns:
        Tensors on the CPU: (T, 128) with an encoder, (T, 1, 96, 64) without.
    """
    places: dict[str, tuple[str, int]] = {}
    for condition, split in splits.items():
        for index, key in enumerate(sound_keys(condition, split)):
            places.setdefault(key, (condition, index))
    audio = {condition: split.select_columns(["audio"]).with_format("numpy") for condition, split in splits.items()}
    sounds = {}
    keys = list(places)
    for start in tqdm(range(0, len(keys), SOUND_BATCH), desc="sounds", disable=not progress, leave=False):
        batch = keys[start : start + SOUND_BATCH]
        rows = [audio[condition][index]["audio"] for condition, index in map(places.get, batch)]
        features = processor(audio=rows).input_features
        if encoder is not None:
            with torch.no_grad():
                features = encoder(features.to(device)).float().cpu()
        sounds.update(zip(batch, features, strict=True))
    return sounds


class DecodedClips(torch.utils.data.Dataset):
    """The clips at `indices` of a split, decoded: (index, frames, masks)."""

    def __init__(self, split: Dataset, indices: Sequence[int]):
        self.split = split.select_columns(["frames", "masks"])  # the waveforms are read once, by `encode_sounds`
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[int, np.ndarray, np.ndarray]:
        return (self.indices[item], *decode_clip(self.split[self.indices[item]]))


def predict(
    model: AVSegFormerForSegmentation,
    processor: AVSegFormerProcessor,
    splits: dict[str, Dataset],
    accelerator: Accelerator,
    batch_size: int = 4,
    num_workers: int = 0,
    sounds: dict[str, torch.Tensor] | None = None,
) -> Iterator[list[dict]]:
    """This process's share of the clips, batch by batch; every process yields the same number of batches.

    A clip is a dict: `clip_id`, `category`, `masks` (K, H, W) uint8, and `probabilities` (C, K, H, W) float32 in
    [0, 1], of the C conditions in the order of `splits` and the K frames that have a mask; the logits are resized
    bilinearly to the masks' resolution.
    """
    first = next(iter(splits.values()))
    clip_ids, categories = first["clip_id"][:], first["category"][:]
    share = range(accelerator.process_index, len(first), accelerator.num_processes)
    if sounds is None:
        mine = {condition: split.select(share) for condition, split in splits.items()}
        sounds = encode_sounds(
            processor, mine, model.get_audio_embeddings, accelerator.device, accelerator.is_main_process
        )
    keys = {condition: sound_keys(condition, split) for condition, split in splits.items()}
    loader = DataLoader(
        DecodedClips(first, share),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # else the loader draws from the global generator, which a training run owns
    )
    rounds = math.ceil(math.ceil(len(first) / accelerator.num_processes) / batch_size)
    for batch in itertools.islice(itertools.chain(loader, itertools.repeat([])), rounds):
        clips = [
            {"clip_id": clip_ids[i], "category": categories[i], "masks": masks, "probabilities": []}
            for i, _, masks in batch
        ]
        if clips:
            pixel_values = processor(frames=[list(frames) for _, frames, _ in batch]).pixel_values.to(
                accelerator.device
            )
            with torch.no_grad(), accelerator.autocast():
                image_embeddings = model.get_image_embeddings(pixel_values)
                for condition in splits:
                    audio_embeddings = torch.stack([sounds[keys[condition][i]] for i, _, _ in batch])
                    logits = model(
                        image_embeddings=image_embeddings, audio_embeddings=audio_embeddings.to(accelerator.device)
                    ).logits
                    for clip, clip_logits in zip(clips, logits.float(), strict=True):
                        count, *size = clip["masks"].shape
                        resized = F.interpolate(
                            clip_logits[None, :count], size=size, mode="bilinear", align_corners=False
                        )
                        clip["probabilities"].append(resized[0].sigmoid().cpu().numpy())
            for clip in clips:
                clip["probabilities"] = np.stack(clip["probabilities"])
        yield clips


def score(
    batches: Iterable[list[dict]],
    conditions: Sequence[str],
    accelerator: Accelerator,
    metric_path: str | os.PathLike = METRIC,
    total: int | None = None,
) -> dict[str, float]:
    """The metric of all processes' clips (as `predict` yields them), the same dict in every process.

    Clips are gathered as objects: exact, without the duplicates that padding would bring, whatever the masks' sizes.
    """
    if accelerator.is_main_process:
        # An id of its own: two evaluations on one machine never meet in the cache.
        metric = evaluate.load(str(metric_path), experiment_id=uuid.uuid4().hex)
    bar = tqdm(total=total, desc="clips", disable=not accelerator.is_main_process, leave=False)
    for clips in batches:
        clips = gather_object(clips) if accelerator.num_processes > 1 else clips
        if accelerator.is_main_process:
            for clip in clips:
                probabilities = clip["probabilities"]
                metric.add_batch(
                    predictions=probabilities,
                    references=np.broadcast_to(clip["masks"], probabilities.shape),
                    conditions=list(conditions),
                    clip_ids=[clip["clip_id"]] * len(conditions),
                )
        bar.update(len(clips))
    bar.close()
    scores = [metric.compute() if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(scores)
    return scores[0]


def save_predictions(batches: Iterable[list[dict]], conditions: Sequence[str], folder: Path) -> Iterator[list[dict]]:
    """Passes `batches` on and writes them: FOLDER/<condition>/<category>/<clip>/<clip>_<k>.png, k from 1.

    A probability p is stored as 255 p, rounded to the nearest, halves down: `value / 255 > 0.5` exactly where p > 0.5.
    """
    for clips in batches:
        for clip in clips:
            for condition, frames in zip(conditions, clip["probabilities"], strict=True):
                target = folder / condition / clip["category"] / clip["clip_id"]
                target.mkdir(parents=True, exist_ok=True)
                for k, frame in enumerate(np.ceil(frames * 255 - 0.5).astype(np.uint8), start=1):
                    Image.fromarray(frame).save(target / f"{clip['clip_id']}_{k}.png")
        yield clips


def evaluate_model(
    model: AVSegFormerForSegmentation,
    processor: AVSegFormerProcessor,
    splits: dict[str, Dataset],
    accelerator: Accelerator,
    metric_path: str | os.PathLike = METRIC,
    batch_size: int = 4,
    num_workers: int = 0,
    sounds: dict[str, torch.Tensor] | None = None,
    predictions_dir: str | os.PathLike | None = None,
) -> dict[str, float]:
    """The robustness scores of `model` over `splits`, the same in every process.

    Args:
        model: on the accelerator's device, not wrapped for distributed training. Its training mode is restored.
        splits: condition -> Dataset, the same clips in the same order, as `load_dataset("avsbench_robust", …)` gives.
        sounds: embeddings from `encode_sounds` to reuse; None computes them.
        predictions_dir: where to write the probability masks, see `save_predictions`; None: nowhere.

    Returns:
        The metric's keys (`miou_positive`, …, `g_miou`, …), fractions in [0, 1].

    Raises:
        ValueError: splits of different clips.
    """
    conditions = list(splits)
    first = splits[conditions[0]]
    for condition in conditions[1:]:
        if splits[condition]["clip_id"][:] != first["clip_id"][:]:
            raise ValueError(
                f"Expected the same clips in the same order in every condition, but those of {conditions[0]!r} and "
                f"{condition!r} differ. Take the splits of one load_dataset call."
            )
    was_training = model.training
    model.eval()
    batches = predict(model, processor, splits, accelerator, batch_size, num_workers, sounds)
    if predictions_dir is not None:
        batches = save_predictions(batches, conditions, Path(predictions_dir))
    scores = score(batches, conditions, accelerator, metric_path, total=len(first))
    model.train(was_training)
    return scores


def format_scores(scores: dict[str, float], conditions: Sequence[str]) -> str:
    """An aligned table: a row per condition, then the G-metrics and the score of a model that ignores audio."""

    def row(name: str, values: Sequence[float | None]) -> str:
        return f"{name:<20}" + "".join(f"{'-' if value is None else f'{value:.4f}':>10}" for value in values)

    lines = [f"{'condition':<20}{'mIoU':>10}{'F':>10}{'FPR':>10}"]
    lines += [row(c, [scores.get(f"{name}_{c}") for name in ("miou", "f_score", "fpr")]) for c in conditions]
    lines += [row("G (all negatives)", [scores.get(f"g_{name}") for name in ("miou", "f_score", "fpr")])]
    negatives = [c for c in conditions if c != "positive"]
    if len(negatives) > 1:
        lines += [
            row(f"G {c}", [scores.get(f"g_{name}_{c}") for name in ("miou", "f_score")] + [None]) for c in negatives
        ]
    lines += [row("audio-blind floor", [scores.get("audio_blind_floor"), None, None])]
    return "\n".join(lines)


def write_json(path: Path, content: dict) -> None:
    """Writes whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def library_versions() -> dict[str, str]:
    names = ("torch", "transformers", "datasets", "accelerate", "evaluate", "timm", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def load_splits(
    subset: str,
    data_dir: str | None,
    seed: int,
    splits: Sequence[str],
    conditions: Sequence[str],
    num_proc: int | None = None,
) -> list[dict[str, Dataset]]:
    """For each of `splits` of the subset, condition -> clips; `num_proc` processes build what is not cached yet.

    Raises:
        ValueError: a split without clips; an unknown subset.
        FileNotFoundError: missing data; the builder's message says what.
    """
    names = [f"{split}_{condition}" for split in splits for condition in conditions]
    loaded = load_dataset("avsbench_robust", subset, data_dir=data_dir, seed=seed, split=names, num_proc=num_proc)
    for name, clips in zip(names, loaded, strict=True):
        if not len(clips):
            raise ValueError(
                f"Expected clips in the split {name} of {subset}, but there are none. See `avs-data check`."
            )
    clips = iter(loaded)
    return [{condition: next(clips) for condition in conditions} for _ in splits]


def check_model_path(model: str) -> None:
    """Raises FileNotFoundError if `model` is neither a folder that `save_pretrained` wrote nor a possible Hub id."""
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(
                f"Expected a model in {path}, but it holds no config.json. Name the folder that train_accelerate.py "
                "or save_pretrained wrote."
            )
    elif path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2:
        raise FileNotFoundError(
            f"Expected the folder of a model or its Hub id as --model, but the folder {model} does not exist."
        )


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="from_pretrained folder or Hub id")
    parser.add_argument("--subset", required=True, help="s4, ms3 or demo")
    parser.add_argument("--data_dir", help="the AVSBench download; default: $AVSBENCH_DIR, else ./data")
    parser.add_argument("--seed", type=int, default=42, help="of the draw of negative sounds")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=list(CONDITIONS))
    parser.add_argument("--output_dir", required=True, help="receives results.json and, if asked for, predictions/")
    parser.add_argument("--batch_size", type=int, default=4, help="clips per process")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read the data")
    parser.add_argument("--max_clips", type=int, help="score only so many clips, evenly spaced over the split")
    parser.add_argument("--save_predictions", action="store_true", help="write 8-bit PNG probability masks")
    parser.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="default: accelerate's own setting")
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    args = parser.parse_args(argv)
    for name in ("batch_size", "max_clips"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"argument --{name}: expected at least 1, got {getattr(args, name)}")
    args.conditions = [condition for condition in CONDITIONS if condition in args.conditions]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_model_path(args.model)
    disable_progress_bar()  # transformers' own
    accelerator = Accelerator(cpu=args.cpu, mixed_precision=args.mixed_precision)
    with accelerator.main_process_first():  # one process builds the data, the others read its cache
        (splits,) = load_splits(
            args.subset, args.data_dir, args.seed, [args.split], args.conditions, args.num_workers or None
        )
    kept = spread(len(splits[args.conditions[0]]), args.max_clips)
    splits = {condition: split.select(kept) for condition, split in splits.items()}
    model = AVSegFormerForSegmentation.from_pretrained(args.model).to(accelerator.device)
    processor = AVSegFormerProcessor.from_pretrained(args.model)
    output_dir = Path(args.output_dir)
    scores = evaluate_model(
        model,
        processor,
        splits,
        accelerator,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        predictions_dir=output_dir / "predictions" if args.save_predictions else None,
    )
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        settings = {
            "seed": args.seed,
            "conditions": args.conditions,
            "batch_size": args.batch_size,
            "mixed_precision": accelerator.mixed_precision,
            "max_clips": args.max_clips,
            "num_processes": accelerator.num_processes,
            "device": accelerator.device.type,
        }
        results = {
            "model": args.model,
            "subset": args.subset,
            "split": args.split,
            "scores": scores,
            "clips": len(kept),
            "settings": settings,
            "versions": library_versions(),
        }
        write_json(output_dir / "results.json", results)
        print(f"{args.model} on {args.subset}, {args.split} split, {len(kept)} clips")
        print(format_scores(scores, args.conditions))
        print(f"written to {output_dir / 'results.json'}")
    accelerator.wait_for_everyone()  # without it, processes have been seen to abort at shutdown
    accelerator.end_training()


if __name__ == "__main__":
    main()
