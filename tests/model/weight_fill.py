"""Deterministic weights and inputs by name, with which the numbers in tests/fixtures were made; no file of weights."""

import zlib

import numpy as np
import torch


def noise(name: str, size: int) -> np.ndarray:
    """Values in [-1, 1) that depend on the name and the flat index only (murmur3's finaliser)."""
    seed = (0x9E3779B9 * (zlib.crc32(name.encode()) + 1)) & 0xFFFFFFFF
    x = np.arange(size, dtype=np.uint32) + np.uint32(seed)  # uint32 arrays wrap around
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return x / 2**31 - 1


def weight(name: str, shape: list[int]) -> torch.Tensor:
    """The weight with this original name. The first rule that fits counts."""
    values = noise(name, int(np.prod(shape))).reshape(shape)
    if name.endswith("running_var"):
        values = 1 + 0.1 * values
    elif name.endswith("running_mean"):
        values = 0.05 * values
    elif name.endswith("sampling_offsets.bias") or name == "head.query_generator.query.weight":
        values = 3 * values
    elif name == "head.learnable_query.weight":
        values = 2 * values
    elif len(shape) == 1 and name.endswith("weight"):
        values = 1 + 0.1 * values
    elif len(shape) >= 2:
        gain = 2.0 if name.startswith("vggish.") else 0.1 if name == "audio_proj.weight" else 1.0
        values = np.sqrt(3 * gain / np.prod(shape[1:])) * values
    else:
        values = 0.05 * values
    return torch.from_numpy(values.astype(np.float32))


def state_dict(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    counters = {name: torch.tensor(0) for name in shapes if name.endswith("num_batches_tracked")}
    return {name: counters[name] if name in counters else weight(name, shape) for name, shape in shapes.items()}


def inputs(frames: int, height: int = 224, width: int = 224) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (frames, 3, height, width) and log-mel examples (frames, 1, 96, 64)."""
    n = np.arange(frames).reshape(-1, 1, 1, 1)
    channel = np.arange(3).reshape(1, 3, 1, 1) + 1
    y, x = np.arange(height).reshape(1, 1, -1, 1), np.arange(width).reshape(1, 1, 1, -1)
    images = 1.2 * np.sin(0.11 * channel * x + 0.07 * y * (n + 1) + n)
    images += 0.5 * noise("input.frames", images.size).reshape(images.shape)
    time, mel = np.arange(96).reshape(1, 1, -1, 1), np.arange(64).reshape(1, 1, 1, -1)
    audio = -1.5 + 2 * np.sin(0.13 * time * (n + 1) + 0.21 * mel)
    audio += noise("input.audio", audio.size).reshape(audio.shape)
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(audio.astype(np.float32))


def discs(frames: int, empty: tuple[int, ...] = ()) -> torch.Tensor:
    """Masks (frames, 224, 224): a disc that moves and grows."""
    n = np.arange(frames).reshape(-1, 1, 1)
    y, x = np.arange(224).reshape(1, -1, 1), np.arange(224).reshape(1, 1, -1)
    masks = ((x - 80 - 12 * n) ** 2 + (y - 112) ** 2 < (30 + 6 * n) ** 2).astype(np.float32)
    masks[list(empty)] = 0
    return torch.from_numpy(masks)
