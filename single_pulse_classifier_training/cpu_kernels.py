"""Convolution and pooling that are fast on a CPU for images with few channels; on a GPU, PyTorch's own operations."""

from functools import partial

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# float32 values in a 512-bit vector register: with fewer output channels, part of the register stays empty.
VECTOR_LENGTH = 16
# Image width in pixels from which the pair form was measured to be faster; the timings are not recorded.
WIDE_ENOUGH_FOR_PAIRS = 100


def convolve(convolution: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Apply a valid 5x5 convolution; with few channels, compute two neighbouring pixels of a row as one.

    In memory (N, H, W, C), an image of W pixels with C channels is also an image of W/2 pixels with 2C channels. With
    ``q`` and ``p`` the parity of the output and input columns, the same convolution of those *pairs* has the 5x3 kernel

        K[q, o, p, i, y, x] = k[o, i, y, 2x + p - q]    (zero outside 0 <= 2x + p - q < 5)

    (the polyphase form of a filter: Vaidyanathan 1990, Proc. IEEE 78, 56). No data are moved, and 8 channels fill a
    vector register of 16 values: a fifth more multiplications take half the time. The sums have the same terms.

    Parameters
    ----------
    convolution : nn.Conv2d
        Kernel 5x5, stride 1, no padding, with bias.
    x : (N, C, H, W) tensor
        W must be even.

    Returns
    -------
    y : (N, out_channels, H - 4, W - 4) tensor
    """
    n, channels, height, width = x.shape
    # For a small image, building the larger kernel takes longer than the plain convolution.
    if convolution.out_channels >= VECTOR_LENGTH or width < WIDE_ENOUGH_FOR_PAIRS or x.device.type != "cpu":
        return convolution(x)
    assert convolution.bias is not None
    kernel = torch.stack((F.pad(convolution.weight, (0, 1)), F.pad(convolution.weight, (1, 0))))
    kernel = kernel.unflatten(-1, (3, 2)).permute(0, 1, 5, 2, 3, 4).flatten(0, 1).flatten(1, 2)
    pairs = x.permute(0, 2, 3, 1).reshape(n, height, width // 2, 2 * channels).permute(0, 3, 1, 2)
    y = F.conv2d(pairs, kernel.contiguous(memory_format=torch.channels_last), convolution.bias.repeat(2))
    return y.permute(0, 2, 3, 1).reshape(n, height - 4, width - 4, convolution.out_channels).permute(0, 3, 1, 2)


def pool_relu(x: torch.Tensor) -> torch.Tensor:
    """Apply a 2x2 max-pool and ReLU to (N, C, H, W), H and W even.

    ReLU is monotonic: pooling first gives the same result with a quarter of the ReLU operations. ``max_pool2d`` stores
    the place of every maximum as an int64, channel by channel; with few channels on a CPU, the maxima of strided views
    take a fifth of its time. In float32 training, the tensors that these views keep for the backward pass do not fit in
    the cache, and ``max_pool2d`` is faster.
    """
    if x.device.type != "cpu" or x.requires_grad and x.dtype == torch.float32:
        return F.relu(F.max_pool2d(x, 2))
    return _PoolReLU.apply(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


class _PoolReLU(torch.autograd.Function):
    """2x2 max-pool and ReLU of (N, H, W, C), H and W even; among equal values, the lower right one is the maximum."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        rows = torch.maximum(x[:, 0::2], x[:, 1::2])
        if not ctx.needs_input_grad[0]:
            return torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2]).relu_()
        left, right = _split_columns(rows)
        pooled = torch.maximum(left, right).relu_()
        ctx.save_for_backward(x, left, right, pooled)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        x, left, right, pooled = ctx.saved_tensors
        # where_positive(g, d): g where d > 0, else 0
        where_positive = partial(torch.ops.aten.threshold_backward, threshold=0)
        gradient = where_positive(gradient, pooled)
        to_left = where_positive(gradient, left - right)
        to_rows = _join_columns(to_left, gradient - to_left)
        result = torch.empty_like(x)
        result[:, 0::2] = where_positive(to_rows, x[:, 0::2] - x[:, 1::2])
        torch.sub(to_rows, result[:, 0::2], out=result[:, 1::2])
        return result


def _as_wide_words(x: torch.Tensor) -> torch.Tensor:
    # Pixels with few channels are copied several times faster as words of 8 or 16 bytes.
    pixel_bytes = x.shape[-1] * x.element_size()
    return x.view(torch.complex128 if pixel_bytes % 16 == 0 else torch.int64)


def _split_columns(x: torch.Tensor) -> list[torch.Tensor]:
    """Even and odd columns of (N, H, W, C)."""
    words = _as_wide_words(x)
    return [words[:, :, parity::2].contiguous().view(x.dtype) for parity in (0, 1)]


def _join_columns(even: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    """Inverse of ``_split_columns``."""
    return torch.stack((_as_wide_words(even), _as_wide_words(odd)), dim=3).flatten(2, 3).view(even.dtype)
