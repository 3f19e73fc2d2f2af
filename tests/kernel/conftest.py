"""Inputs and an oracle for the op's tests."""

import itertools
import math
import shutil

import pytest
import torch

# Largest difference relative to the largest number of the expected tensor: forward, gradients.
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (8e-3, 8e-3),  # one rounding, to 8 bits
    torch.float16: (1e-3, 1e-3),
}


def _make_inputs(
    dtype=torch.float32,
    batch=2,
    queries=7,
    heads=3,
    channels=5,
    points=3,
    shapes=((5, 6), (4, 1), (2, 3)),
    device="cpu",
    requires_grad=False,
    seed=0,
):
    """value, spatial_shapes, sampling_locations (a quarter of them outside), attention_weights."""
    generator = torch.Generator().manual_seed(seed)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    pixels, levels = sum(height * width for height, width in shapes), len(shapes)
    value = torch.randn(batch, pixels, heads, channels, generator=generator, dtype=torch.float64).to(dtype)
    locations = torch.rand(batch, queries, heads, levels, points, 2, generator=generator, dtype=compute) * 1.5 - 0.25
    weights = torch.randn(batch, queries, heads, levels, points, generator=generator, dtype=compute)
    spatial_shapes = torch.tensor(shapes, dtype=torch.int64).reshape(levels, 2)
    value, locations, weights = (tensor.to(device) for tensor in (value, locations, weights))
    if requires_grad:
        value, locations, weights = (tensor.requires_grad_() for tensor in (value, locations, weights))
    return value, spatial_shapes, locations, weights


def _loops(value, spatial_shapes, sampling_locations, attention_weights):
    """The op in plain Python, one sample after the other."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = sampling_locations.shape
    output = torch.zeros(batch, queries, heads, channels, dtype=torch.float64)
    shapes = spatial_shapes.tolist()
    starts = [sum(height * width for height, width in shapes[:level]) for level in range(levels)]
    for n, q, m, level, k in itertools.product(
        range(batch), range(queries), range(heads), range(levels), range(points)
    ):
        height, width = shapes[level]
        x = float(sampling_locations[n, q, m, level, k, 0]) * width - 0.5
        y = float(sampling_locations[n, q, m, level, k, 1]) * height - 0.5
        for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            if 0 <= row < height and 0 <= column < width:
                bilinear = (1 - abs(y - row)) * (1 - abs(x - column))
                pixel = value[n, starts[level] + row * width + column, m].double()
                output[n, q, m] += float(attention_weights[n, q, m, level, k]) * bilinear * pixel
    return output.reshape(batch, queries, heads * channels)


def _assert_close(got, expected, tolerance):
    assert got.shape == expected.shape
    largest = max(1.0, expected.double().abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=tolerance * largest, check_device=False)


@pytest.fixture
def make_inputs():
    return _make_inputs


@pytest.fixture
def loops():
    return _loops


@pytest.fixture
def assert_close():
    return _assert_close


@pytest.fixture
def tolerance():
    return TOLERANCE


@pytest.fixture
def cxx():
    """The C++ compiler, or a skip."""
    path = shutil.which("g++") or shutil.which("clang++")
    if path is None:
        pytest.skip("no C++ compiler (g++ or clang++)")
    return path
