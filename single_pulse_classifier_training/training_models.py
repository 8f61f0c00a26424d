"""The networks: DM-time image in, two raw logits (Artefact, Pulse) out.

Every network takes float images of shape (N, 1, resolution, resolution) with the raw values 0..255 of a normalised page
(any scaling is inside the network) and returns logits of shape (N, 2). There is no softmax: ``CrossEntropyLoss`` wants
logits, and inference applies its temperature to them.

Build one by name: ``build_model("DM_time_small_residual", 256)``.
"""

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from single_pulse_classifier_training.cli import InputError

N_CLASSES = 2
CLASS_NAMES = ["Artefact", "Pulse"]
RESOLUTIONS = (256, 128, 64, 32)

# resolution: (channels of the 5x5 convolutions, width of the dense layer)
LAYERS_241002_1 = {256: ((16,), 256), 128: ((8,), 128), 64: ((8,), 256), 32: ((16,), 256)}
LAYERS_241002_2 = {256: ((16, 16), 512), 128: ((16, 16), 128), 64: ((16, 16), 128), 32: ((16, 16), 512)}
LAYERS_241002_3 = {256: ((8, 8, 12), 256), 128: ((8, 12, 12), 256), 64: ((8, 12, 8), 512), 32: ((8, 12, 12), 512)}

# On a CPU: float32 values in a vector register, and the width from which computing pixels in pairs pays (measured)
VECTOR_LENGTH = 16
WIDE_ENOUGH_FOR_PAIRS = 100

# DM_time_small_residual: channels of the stem and of the three stages
SMALL_RESIDUAL_CHANNELS = (24, 32, 48, 64)


def _flattened_size(resolution: int, channels: tuple[int, ...]) -> int:
    """Values left after valid 5x5 convolutions with a 2x2 max-pool between every two of them."""
    side = resolution - 4
    for _ in channels[1:]:
        side = side // 2 - 4
    return channels[-1] * side * side


def _convolve(convolution: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A valid 5x5 convolution; with few channels, two neighbouring pixels of a row are computed as one.

    In memory (N, H, W, C), an image of W pixels with C channels is also one of W/2 pixels with 2C channels. With ``q``
    and ``p`` the parity of the output and input columns, the same convolution of those *pairs* has the 5x3 kernel

        K[q, o, p, i, y, x] = k[o, i, y, 2x + p - q]    (zero outside 0 <= 2x + p - q < 5)

    (the polyphase form of a filter: Vaidyanathan 1990, Proc. IEEE 78, 56). Nothing is moved, and 8 channels fill a
    vector register of 16 values: a fifth more multiplications, in half the time. The terms are those of the plain form.
    """
    n, channels, height, width = x.shape
    # A small image is over before the larger kernel is built.
    if convolution.out_channels >= VECTOR_LENGTH or width < WIDE_ENOUGH_FOR_PAIRS or x.device.type != "cpu":
        return convolution(x)
    assert convolution.bias is not None
    kernel = torch.stack((F.pad(convolution.weight, (0, 1)), F.pad(convolution.weight, (1, 0))))
    kernel = kernel.unflatten(-1, (3, 2)).permute(0, 1, 5, 2, 3, 4).flatten(0, 1).flatten(1, 2)
    pairs = x.permute(0, 2, 3, 1).reshape(n, height, width // 2, 2 * channels).permute(0, 3, 1, 2)
    y = F.conv2d(pairs, kernel.contiguous(memory_format=torch.channels_last), convolution.bias.repeat(2))
    return y.permute(0, 2, 3, 1).reshape(n, height - 4, width - 4, convolution.out_channels).permute(0, 3, 1, 2)


def _pool_relu(x: torch.Tensor) -> torch.Tensor:
    """2x2 max-pool and ReLU. ReLU is monotonic: pooling first gives the same at a quarter of the ReLU's work.

    ``max_pool2d`` notes the place of every maximum as an int64, channel by channel: with few channels on a CPU the
    maxima of strided views take a fifth of its time. In float32 training the tensors that the views need for the way
    back do not fit in the cache, and ``max_pool2d`` wins.
    """
    if x.device.type != "cpu" or x.requires_grad and x.dtype == torch.float32:
        return F.relu(F.max_pool2d(x, 2))
    return _PoolReLU.apply(x.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


class _PoolReLU(torch.autograd.Function):
    """2x2 max-pool and ReLU of (N, H, W, C), H and W even; of equal values the lower and right one is the maximum."""

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
    # Pixels of few channels are copied several times faster as words of 8 or 16 bytes.
    pixel_bytes = x.shape[-1] * x.element_size()
    return x.view(torch.complex128 if pixel_bytes % 16 == 0 else torch.int64)


def _split_columns(x: torch.Tensor) -> list[torch.Tensor]:
    """Even and odd columns of (N, H, W, C)."""
    words = _as_wide_words(x)
    return [words[:, :, parity::2].contiguous().view(x.dtype) for parity in (0, 1)]


def _join_columns(even: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    return torch.stack((_as_wide_words(even), _as_wide_words(odd)), dim=3).flatten(2, 3).view(even.dtype)


class DMTimeBinaryClassificator241002_1(nn.Module):
    """One 5x5 convolution and a dense layer."""

    def __init__(self, resolution: int):
        super().__init__()
        channels, dense_width = LAYERS_241002_1[resolution]
        self.conv1 = nn.Conv2d(1, channels[0], 5)
        self.fc1 = nn.Linear(_flattened_size(resolution, channels), dense_width)
        self.fc2 = nn.Linear(dense_width, N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(_convolve(self.conv1, images))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class DMTimeBinaryClassificator241002_2(nn.Module):
    """Two 5x5 convolutions with a pooling between them, and a dense layer."""

    def __init__(self, resolution: int):
        super().__init__()
        channels, dense_width = LAYERS_241002_2[resolution]
        self.conv1 = nn.Conv2d(1, channels[0], 5)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5)
        self.fc1 = nn.Linear(_flattened_size(resolution, channels), dense_width)
        self.fc2 = nn.Linear(dense_width, N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = _pool_relu(_convolve(self.conv1, images))
        x = F.relu(_convolve(self.conv2, x))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class DMTimeBinaryClassificator241002_3(nn.Module):
    """Three 5x5 convolutions with poolings between them, and a dense layer; dropout only in the ``_dropout`` variant.

    Parameters
    ----------
    resolution : 256, 128, 64 or 32
    dropout_features, dropout_dense : probability that a feature map, or a value of the dense layer, is set to zero.
    """

    def __init__(self, resolution: int, dropout_features: float = 0.0, dropout_dense: float = 0.0):
        super().__init__()
        channels, dense_width = LAYERS_241002_3[resolution]
        self.conv1 = nn.Conv2d(1, channels[0], 5)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5)
        self.conv3 = nn.Conv2d(channels[1], channels[2], 5)
        self.dropout_features = nn.Dropout2d(dropout_features)
        self.fc1 = nn.Linear(_flattened_size(resolution, channels), dense_width)
        self.dropout_dense = nn.Dropout(dropout_dense)
        self.fc2 = nn.Linear(dense_width, N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = _pool_relu(_convolve(self.conv1, images))
        x = _pool_relu(_convolve(self.conv2, x))
        x = self.dropout_features(F.relu(_convolve(self.conv3, x)))
        x = self.dropout_dense(F.relu(self.fc1(x.flatten(1))))
        return self.fc2(x)


class DMTimeBinaryClassificator241002_3_GAP(nn.Module):
    """The convolutions of ``241002_3``, global average pooling, and the output layer (4,254 parameters at 256)."""

    def __init__(self, resolution: int):
        super().__init__()
        channels, _ = LAYERS_241002_3[resolution]
        self.conv1 = nn.Conv2d(1, channels[0], 5)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5)
        self.conv3 = nn.Conv2d(channels[1], channels[2], 5)
        self.fc2 = nn.Linear(channels[2], N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = _pool_relu(_convolve(self.conv1, images))
        x = _pool_relu(_convolve(self.conv2, x))
        x = F.relu(_convolve(self.conv3, x))
        return self.fc2(x.mean(dim=(2, 3)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, arXiv:1512.03385, the basic block)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class DMTimeSmallResidual(nn.Module):
    """Residual network with a coarse stem: a sixtieth of ``241002_3``'s weights, and a fifth of its time on a CPU.

    A weak pulse is local, and the mean over the page dilutes it: the output layer sees the maximum as well.

    Parameters
    ----------
    channels : of the stem and of every stage after it, each at half the size of the one before
    kernel, stride : of the stem
    plain : stages, the first ones, that have no residual block: at their size it would take most of the time
    dropout : before the output layer
    """

    def __init__(
        self,
        channels: tuple[int, ...] = SMALL_RESIDUAL_CHANNELS,
        kernel: int = 8,
        stride: int = 4,
        plain: int = 1,
        dropout: float = 0.2,
    ):
        super().__init__()
        stem = nn.Conv2d(1, channels[0], kernel, stride, (kernel - stride + 1) // 2, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True))
        self.stages = nn.Sequential()
        for number, (before, after) in enumerate(pairwise(channels)):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            self.stages.extend([convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)])
            if number >= plain:
                self.stages.append(ResidualBlock(after))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * channels[-1], N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The robust and noise normalisers map -5..+20 sigma to 0..255: back to units of the noise.
        x = (images - 51.0) / 10.2
        x = self.stages(self.stem(x))
        x = torch.cat((x.mean(dim=(2, 3)), x.amax(dim=(2, 3))), dim=1)
        return self.fc(self.dropout(x))


class ScaledTo01(nn.Module):
    """A network that wants its input in 0..1."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images / 255.0)


def _resnet18(resolution: int) -> nn.Module:
    from torchvision.models import resnet18

    network = resnet18(weights=None, num_classes=N_CLASSES)
    network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    return ScaledTo01(network)


def _mobilenet_v3_small(resolution: int) -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    network = mobilenet_v3_small(weights=None, num_classes=N_CLASSES)
    network.features[0][0] = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
    return ScaledTo01(network)


models_htable: dict[str, Callable[[int], nn.Module]] = {
    "DM_time_binary_classificator_241002_1": DMTimeBinaryClassificator241002_1,
    "DM_time_binary_classificator_241002_2": DMTimeBinaryClassificator241002_2,
    "DM_time_binary_classificator_241002_3": DMTimeBinaryClassificator241002_3,
    "DM_time_binary_classificator_241002_3_dropout": partial(
        DMTimeBinaryClassificator241002_3, dropout_features=0.2, dropout_dense=0.4
    ),
    "DM_time_binary_classificator_241002_3_GAP": DMTimeBinaryClassificator241002_3_GAP,
    "DM_time_small_residual": lambda resolution: DMTimeSmallResidual(),
    "DM_time_second_look": lambda resolution: DMTimeSmallResidual((24, 48, 96), 5, 2, plain=0, dropout=0.3),
    "resnet18": _resnet18,
    "mobilenet_v3_small": _mobilenet_v3_small,
}


def fuse_for_inference(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, its batch normalisations part of the convolutions before them: the same function."""
    model = copy.deepcopy(model).eval()
    for part in model.modules():
        if isinstance(part, ResidualBlock):
            pairs = [("conv1", "norm1"), ("conv2", "norm2")]
        elif isinstance(part, nn.Sequential):
            pairs = list(pairwise(part._modules))
        else:
            continue
        for first, second in pairs:
            convolution, norm = getattr(part, first), getattr(part, second)
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(part, first, fuse_conv_bn_eval(convolution, norm))
                setattr(part, second, nn.Identity())
    return model


def build_model(model_name: str, resolution: int) -> nn.Module:
    """Build a network with fresh weights.

    Parameters
    ----------
    model_name : a key of ``models_htable``
    resolution : side of the image in pixels. The ``241002`` networks exist for 256, 128, 64 and 32; the others, which
        end in a global pooling, take any multiple of 32.

    Raises
    ------
    InputError : unknown name or resolution; the message lists the valid ones.
    """
    if model_name not in models_htable:
        raise InputError(f"model_name {model_name!r} is unknown: valid are {', '.join(models_htable)}")
    if "241002" in model_name:
        valid, is_valid = "256, 128, 64, 32", resolution in RESOLUTIONS
    else:
        valid, is_valid = "multiples of 32", resolution >= 32 and resolution % 32 == 0
    if not is_valid:
        raise InputError(f"resolution {resolution} does not exist for {model_name}: valid are {valid}")
    return models_htable[model_name](resolution)
