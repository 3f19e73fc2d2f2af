import pytest
import torch
from torch.nn import functional as F

from modeling_avsegformer.modeling_avsegformer import upsampled_conv


@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (1, 4, 1, 2), (3, 2, 7, 8)])
def test_equals_upsampling_and_then_the_convolution(shape):
    torch.manual_seed(0)
    arguments = [torch.randn(size, dtype=torch.float64) for size in (shape, (4, shape[1], 3, 3), (4,))]
    for argument in arguments:
        argument.requires_grad_()
    features, weight, bias = arguments
    expected = F.conv2d(F.interpolate(features, scale_factor=4, mode="bilinear"), weight, bias, padding=1)
    found = upsampled_conv(*arguments)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    sides = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, arguments, sides), torch.autograd.grad(expected, arguments, sides), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
