"""The kernels for images with few channels against PyTorch's own operations."""

import pytest
import torch

from single_pulse_classifier_training.cpu_kernels import WIDE_ENOUGH_FOR_PAIRS, convolve, pool_relu


@pytest.mark.parametrize("width", [WIDE_ENOUGH_FOR_PAIRS - 2, WIDE_ENOUGH_FOR_PAIRS, 256])
@pytest.mark.parametrize(("inside", "outside"), [(1, 8), (8, 12), (8, 16)])
def test_convolution_equals_that_of_pytorch(inside, outside, width):
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(inside, outside, 5, dtype=torch.float64)
    x = torch.rand(2, inside, 20, width, dtype=torch.float64)
    torch.testing.assert_close(convolve(convolution, x), convolution(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [8, 12, 16])
def test_pooling_gives_the_gradient_of_a_window_to_one_of_equal_maxima(channels):
    """In bfloat16 equal values are common: the gradient of a window is neither lost nor counted twice."""
    x = torch.randint(-2, 4, (3, channels, 10, 14)).to(torch.bfloat16).requires_grad_()
    pooled = pool_relu(x)
    expected = torch.nn.functional.max_pool2d(x.detach(), 2).relu()
    assert torch.equal(pooled, expected)
    pooled.sum().backward()
    of_window = torch.nn.functional.avg_pool2d(x.grad, 2, divisor_override=1)
    assert torch.equal(of_window, (expected > 0).to(torch.bfloat16))
    assert (x[x.grad > 0] == expected.repeat_interleave(2, 2).repeat_interleave(2, 3)[x.grad > 0]).all()
