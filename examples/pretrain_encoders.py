"""Pre-trains the demo model's two encoders by classification: small stand-ins for VGGish's and ImageNet's weights.

Writes a `from_pretrained` folder with the small AVSegFormer that the demo trains: its audio encoder and its backbone
know the categories of the training clips, everything else is as initialised. No mask is used, and no sound is paired
with a picture. The audio encoder also hears silence, coloured noise (1/f**0.3 to 1/f**2) and random timbres, which
belong to no category, as VGGish heard a world of other sounds in its own training; white noise, which the benchmark
plays, and the kinds of the condition `unseen` are not among them.
Sounds of no category are drawn to an embedding of zero, the objectosphere loss of Dhamija et al. 2018
(https://arxiv.org/abs/1811.04110): else each of them has a large embedding in a direction of its own, and a decoder
that learned to ignore silence does not know that noise is nothing either.

    python examples/pretrain_encoders.py --subset demo --data_dir data_demo --output_dir outputs/demo/init
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from datasets import Dataset, load_dataset

import avsbench_robust_dataset  # noqa: F401  (registers the data set)
from avsbench_robust_dataset.synthetic import coloured_noise
from avsbench_robust_dataset.timbres import random_timbre
from modeling_avsegformer import (
    AVSegFormerConfig,
    AVSegFormerForSegmentation,
    AVSegFormerImageProcessor,
    AVSegFormerProcessor,
    VGGishConfig,
    VGGishFeatureExtractor,
)
from modeling_avsegformer.log_mel import SAMPLE_RATE

# About 1 million parameters, against 186 million of the paper's model; every part of it is there.
SMALL_MODEL = dict(
    backbone="test_resnet",
    audio_config=VGGishConfig(conv_channels=[8, 16, 24, 32], fc_size=64),
    hidden_size=64,
    num_attention_heads=4,
    norm_groups=8,
    num_queries=16,
    query_generator_layers=2,
    query_generator_ffn_size=128,
    encoder_layers=2,
    encoder_ffn_size=256,
    decoder_layers=2,
    decoder_ffn_size=256,
    mask_mlp_size=128,
    prediction_channels=[64, 32],
    dropout=0.0,
)


def objects(subset: str, category: str) -> list[str]:
    """Names of what sounds in a clip: S4's category is one name, MS3's is several joined by `_`, or nothing known."""
    return [name for name in (category.split("_") if subset == "ms3" else [category]) if name]


def targets(subset: str, clips: Dataset) -> tuple[torch.Tensor, list[str]]:
    """One row per clip, one column per name: 1 where the name is among what sounds."""
    named = [objects(subset, category) for category in clips["category"]]
    names = sorted({name for row in named for name in row})
    return torch.tensor([[float(name in row) for name in names] for row in named]), names


def batches(parts: Sequence[tuple[int, int]], steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Row numbers for each step, drawn from consecutive parts given as (rows of the part, how many to draw)."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows, begin = [], 0
        for count, size in parts:
            rows.append(begin + torch.randint(count, (size,), generator=generator))
            begin += count
        yield torch.cat(rows)


def background_sounds(count: int, seed: int) -> list[np.ndarray]:
    """Waveforms (80000,) that belong to no category: silence, and coloured noise at any usual level."""
    rng = np.random.default_rng(seed)
    sounds = [np.zeros(5 * SAMPLE_RATE, dtype=np.float32)]
    while len(sounds) < count:
        level = 10 ** (rng.uniform(-45, -4) / 20)  # root mean square, full scale 1
        sounds.append((coloured_noise(5 * SAMPLE_RATE, rng.uniform(0.3, 2), rng) * level).astype(np.float32))
    return sounds


def log_mel_of(processor: AVSegFormerProcessor, sounds: Iterable[np.ndarray]) -> torch.Tensor:
    """(seconds of all sounds, 1, 96, 64) from waveforms (80000,)."""
    extract = processor.feature_extractor
    examples = [extract(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features[0] for sound in sounds]
    return torch.cat(examples) if examples else torch.zeros(0, 1, 96, 64)


def fit(encode, parameters, width: int, labels, draws, learning_rate: float, steps: int, nothing_weight: float = 0):
    """Trains `encode(rows) -> (n, width)` and a linear classifier on it by multi-label cross-entropy.

    `nothing_weight` is that of the objectosphere term, which keeps the mean square of the embeddings of rows without
    any label small.

    Returns the mean of the last tenth of the losses.
    """
    classifier = torch.nn.Linear(width, labels.shape[1])
    parameters = [*parameters, *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, learning_rate)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    losses = []
    for rows in draws:
        embeddings, target = encode(rows), labels[rows]
        loss = F.binary_cross_entropy_with_logits(classifier(embeddings), target)
        unlabelled = target.sum(1) == 0
        if unlabelled.any():
            loss = loss + nothing_weight * embeddings[unlabelled].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return float(np.mean(losses[-max(1, steps // 10) :]))


def pretrain(model: AVSegFormerForSegmentation, processor, clips: Dataset, subset: str, args) -> None:
    """Trains the audio encoder, then the backbone, in place."""
    labels, names = targets(subset, clips)
    if not names:
        print(
            "No categories are known (MS3 without AVSS's metadata.csv): the encoders stay as initialised.", flush=True
        )
        return
    frames = model.config.num_frames
    labels = labels.repeat_interleave(frames, 0)  # a clip's label holds for each of its seconds

    rng = np.random.default_rng([args.seed, 1])
    log_mel = [
        log_mel_of(processor, sounds)
        for sounds in (
            (clip["audio"]["array"] for clip in clips.select_columns("audio").with_format("numpy")),
            background_sounds(64, args.seed),
            (random_timbre(rng) for _ in range(args.timbres)),
        )
    ]
    parts = [(len(part), size) for part, size in zip(log_mel, (64, 10, 64), strict=True) if len(part)]
    usual = len(log_mel[0]) + len(log_mel[1])  # seconds of the clips and of background
    log_mel = torch.cat(log_mel)
    nothing = torch.zeros(len(log_mel) - len(labels), len(names))
    encoder = model.model.audio_encoder
    encoder.requires_grad_(True).train()
    loss = fit(
        lambda rows: encoder(log_mel[rows]).embeddings,
        list(encoder.parameters()),
        model.config.audio_config.embedding_size,
        torch.cat([labels, nothing]),
        batches(parts, args.audio_steps, args.seed),
        3e-3,
        args.audio_steps,
        args.nothing_weight,
    )
    with torch.no_grad():  # a scale that the layers behind it are made for; the classes stay where they are
        embeddings = torch.cat([encoder(part).embeddings for part in log_mel[:usual].split(256)])
        spread = embeddings.square().mean().sqrt()
        encoder.embeddings[-2].weight /= spread
        encoder.embeddings[-2].bias /= spread
    encoder.requires_grad_(not model.config.freeze_audio_encoder).eval()
    print(f"audio encoder: {args.audio_steps} steps, {len(names)} categories, cross-entropy {loss:.4f}", flush=True)

    pixels = [
        processor.image_processor(clip["frames"], return_tensors="pt")["pixel_values"]
        for clip in clips.select_columns("frames")
    ]
    pixels = torch.cat(pixels)
    backbone = model.model.backbone
    backbone.train()

    def encode(rows):
        images = pixels[rows]
        flipped = torch.rand(len(rows)) < 0.5
        images[flipped] = images[flipped].flip(-1)
        return backbone(images)[-1].mean((2, 3))

    loss = fit(
        encode,
        list(backbone.parameters()),
        backbone.channels[-1],
        labels,
        batches([(len(labels), 48)], args.image_steps, args.seed + 1),
        2e-3,
        args.image_steps,
    )
    print(f"backbone: {args.image_steps} steps, cross-entropy {loss:.4f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subset", default="demo", choices=["s4", "ms3", "demo"])
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--audio_steps", type=int, default=300)
    parser.add_argument("--timbres", type=int, default=1500, help="random sounds that belong to no category")
    parser.add_argument("--nothing_weight", type=float, default=0.1, help="of the objectosphere term")
    parser.add_argument("--image_steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    set_seed(args.seed)
    clips = load_dataset("avsbench_robust", args.subset, data_dir=args.data_dir, split="train_positive")
    model = AVSegFormerForSegmentation(AVSegFormerConfig(**SMALL_MODEL))
    processor = AVSegFormerProcessor(
        AVSegFormerImageProcessor(size={"height": args.image_size, "width": args.image_size}), VGGishFeatureExtractor()
    )
    pretrain(model, processor, clips, args.subset, args)
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
