"""Read an original AVSegFormer or AVSBench-Robust checkpoint and write a `from_pretrained` folder.

    python -m modeling_avsegformer.convert_original_checkpoint CKPT OUT_DIR [--backbone pvt_v2_b5] [--image_size 512]

The file is read as tensors only; code in it is never run. The command prints what matched and what was dropped, reads
the written folder again and compares the masks.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from .checkpoint_reader import read_tensors
from .configuration_avsegformer import AVSegFormerConfig
from .modeling_avsegformer import SMALLEST_IMAGE, AVSegFormerForSegmentation
from .original_state_dict import convert_and_report, detect_backbone
from .original_state_dict import convert_original_state_dict as convert_original_state_dict
from .processing_avsegformer import AVSegFormerImageProcessor, AVSegFormerProcessor, VGGishFeatureExtractor


def convert_original_checkpoint(
    checkpoint: str | Path, out_dir: str | Path, backbone: str | None = None, image_size: int = 224
) -> None:
    """Write the `from_pretrained` folder of an original checkpoint: model, configuration, processor, and
    `conversion.json`, which names the original file.

    Args:
        checkpoint: a `.pth` or `.safetensors` file.
        out_dir: is created, whole or not at all; stays unchanged if it already holds this conversion.
        backbone (`str`, *optional*): timm name; detected in the checkpoint if not given.
        image_size (`int`, defaults to 224): pixels of the processor's frames. The weights do not depend on it: the
            released configurations use 224 and 512.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        FileExistsError: `out_dir` has other content, or another process is converting into it.
        ValueError: the file is not an original checkpoint or has another backbone, or the masks are not finite or
            change when the folder is read again.
    """
    checkpoint, out_dir = Path(checkpoint), Path(out_dir)
    if image_size < SMALLEST_IMAGE:
        raise ValueError(f"Expected an `image_size` of at least {SMALLEST_IMAGE} pixels, got {image_size}.")
    state_dict = read_tensors(checkpoint)
    with open(checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    made_from = {"file": checkpoint.name, "sha256": digest, "image_size": image_size}
    if _has_conversion(out_dir, made_from):
        print(f"{out_dir}: has been converted from {checkpoint} already")
        return
    config = AVSegFormerConfig(
        backbone=backbone or detect_backbone(state_dict) or AVSegFormerConfig.backbone,
        use_similarity_head="cosine_sim.audio_proj.weight" in state_dict,
        loss_type="dice",
    )
    converted, unused, unknown = convert_and_report(state_dict, config)
    model = AVSegFormerForSegmentation(config).eval()
    model.load_state_dict(converted)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(1, 1, 3, image_size, image_size, generator=generator),
        "input_features": torch.randn(1, 1, 1, 96, 64, generator=generator),
    }
    with torch.no_grad():
        logits = model(**inputs).logits
    if not logits.isfinite().all():
        raise ValueError(f"Expected finite masks from the converted model, but {checkpoint} gives NaN or infinity.")

    matched = state_dict.keys() - {*unused, *unknown}
    with _new_folder(out_dir) as partial:
        model.save_pretrained(partial)
        image_processor = AVSegFormerImageProcessor(size={"height": image_size, "width": image_size})
        AVSegFormerProcessor(image_processor, VGGishFeatureExtractor()).save_pretrained(partial)
        (partial / "conversion.json").write_text(json.dumps(made_from, indent=2) + "\n", encoding="utf-8")
        del model, converted, state_dict  # frees memory for the model that is read again
        with torch.no_grad():
            again = AVSegFormerForSegmentation.from_pretrained(partial).eval()(**inputs).logits
        difference = (again - logits).abs().max().item()
        # Sums over tensors at other addresses may differ in their last bits.
        if not difference <= 1e-4 * max(1.0, logits.abs().max().item()):
            raise ValueError(f"The written model differs from {checkpoint} by {difference} in its logits.")
    print(f"matched: {_by_part(matched)}")
    print(f"dropped, never used by the original: {_by_part(unused)}")
    print(f"dropped, unknown: {', '.join(unknown) or 'none'}")
    print(
        f"verified: a forward at {image_size}x{image_size}; the largest difference after reading is {difference:.1g}"
    )
    print(
        f"{out_dir}: {len(matched)} tensors, backbone {config.backbone}, "
        f"{'with' if config.use_similarity_head else 'without'} the similarity head; {len(unused)} tensors "
        f"that the original never uses and {len(unknown)} unknown ones were left out."
    )


def _has_conversion(out_dir: Path, made_from: dict) -> bool:
    """Whether `out_dir` already holds this conversion; False if it is new or empty."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    record = out_dir / "conversion.json"
    whole = record.is_file() and (out_dir / "model.safetensors").is_file()
    if whole and record.read_text(encoding="utf-8") == json.dumps(made_from, indent=2) + "\n":
        return True
    raise FileExistsError(f"Expected a new or empty folder, but {out_dir} has content. Name another.")


@contextmanager
def _new_folder(out_dir: Path) -> Iterator[Path]:
    """A folder beside `out_dir` that is renamed to it at the end, unless an error occurs; it survives a killed run."""
    import fcntl

    partial = out_dir.parent / f".{out_dir.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    folder = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        except BlockingIOError as error:
            raise FileExistsError(
                f"Expected no other process that converts into {out_dir}, but there is one."
            ) from error
        try:
            for path in partial.iterdir():
                path.unlink()
            yield partial
            os.replace(partial, out_dir)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(folder)


def _by_part(names: Collection[str]) -> str:
    """Counts the names by their first two parts, as in "backbone.layer1 60, head.fc 5"."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{part} {count}" for part, count in sorted(counts.items())) or "none"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="original .pth file")
    parser.add_argument("out_dir", help="folder to create")
    parser.add_argument("--backbone", help="timm name, e.g. pvt_v2_b5; default: detected in the checkpoint")
    parser.add_argument("--image_size", type=int, default=224, help="pixels of the frames: 224 or 512, as in training")
    arguments = parser.parse_args(argv)
    try:
        convert_original_checkpoint(arguments.checkpoint, arguments.out_dir, arguments.backbone, arguments.image_size)
    except (OSError, ValueError, SafetensorError) as error:  # the last for a full disk, too
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
