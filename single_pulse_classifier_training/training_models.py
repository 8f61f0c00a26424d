"""Networks that map an image to two logits, Artefact and Pulse.

Every network takes float images of shape (N, C, resolution, resolution) with the values 0..255 of a normalised page
(any scaling is inside the network) and returns logits of shape (N, 2), without softmax: ``CrossEntropyLoss`` expects
logits, and inference divides them by its temperature. C is 1, DM-time alone, unless channels are named.

Build one by name: ``build_model("DM_time_small_residual", 256)``.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from single_pulse_classifier_training.channels import CHANNELS, DM_TIME, FREQUENCY_TIME
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.cpu_kernels import convolve, pool_relu

N_CLASSES = 2
CLASS_NAMES = ["Artefact", "Pulse"]
RESOLUTIONS = (256, 128, 64, 32)
LARGEST_RESOLUTION = 4096  # a batch of 32 such images takes 2 GB

# The original's networks; resolution: (channels of the 5x5 convolutions, width of the dense layer)
LAYERS_241002_1 = {256: ((16,), 256), 128: ((8,), 128), 64: ((8,), 256), 32: ((16,), 256)}
LAYERS_241002_2 = {256: ((16, 16), 512), 128: ((16, 16), 128), 64: ((16, 16), 128), 32: ((16, 16), 512)}
LAYERS_241002_3 = {256: ((8, 8, 12), 256), 128: ((8, 12, 12), 256), 64: ((8, 12, 8), 512), 32: ((8, 12, 12), 512)}

TWO_TOWERS = "DM_time_freq_time_candidate_classifier"
# Channels of the stem and of the stages of each of its towers, and width of its dense layer. Chosen by hand for the
# time on a CPU; not tuned on data. In batches of 4 to 16, fused, on one core of a busy AMD EPYC, a candidate takes 0.52
# to 0.54 ms; with DM_time_candidate_classifier, it took 0.64 to 0.74 ms at the same time.
DM_TIME_TOWER, FREQ_TIME_TOWER, TWO_TOWERS_DENSE = (16, 32, 64), (16, 32, 64), 64

# DM_time_small_residual: channels of the stem and of the three stages. Chosen by hand; not tuned on data.
SMALL_RESIDUAL_CHANNELS = (24, 32, 48, 64)


def _flattened_size(resolution: int, channels: tuple[int, ...]) -> int:
    """Number of values after valid 5x5 convolutions with a 2x2 max-pool between consecutive ones."""
    side = resolution - 4
    for _ in channels[1:]:
        side = side // 2 - 4
    return channels[-1] * side * side


class DMTimeBinaryClassificator241002_1(nn.Module):
    """One 5x5 convolution and a dense layer."""

    def __init__(self, resolution: int, inputs: Sequence[str] = DM_TIME):
        super().__init__()
        channels, dense_width = LAYERS_241002_1[resolution]
        self.conv1 = nn.Conv2d(len(inputs), channels[0], 5)
        self.fc1 = nn.Linear(_flattened_size(resolution, channels), dense_width)
        self.fc2 = nn.Linear(dense_width, N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(convolve(self.conv1, images))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class DMTimeBinaryClassificator241002_2(nn.Module):
    """Two 5x5 convolutions with a max-pool between them, and a dense layer."""

    def __init__(self, resolution: int, inputs: Sequence[str] = DM_TIME):
        super().__init__()
        channels, dense_width = LAYERS_241002_2[resolution]
        self.conv1 = nn.Conv2d(len(inputs), channels[0], 5)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5)
        self.fc1 = nn.Linear(_flattened_size(resolution, channels), dense_width)
        self.fc2 = nn.Linear(dense_width, N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = pool_relu(convolve(self.conv1, images))
        x = F.relu(convolve(self.conv2, x))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class DMTimeBinaryClassificator241002_3(nn.Module):
    """Three 5x5 convolutions with max-pools between them, and a dense layer; only the ``_dropout`` variant has dropout.

    Parameters
    ----------
    resolution : int
        256, 128, 64 or 32.
    inputs : sequence of str
        Channels of an image.
    dropout_features, dropout_dense : float
        Probability that a feature map, or a value of the dense layer, is set to zero during training.
    """

    def __init__(
        self,
        resolution: int,
        inputs: Sequence[str] = DM_TIME,
        dropout_features: float = 0.0,
        dropout_dense: float = 0.0,
    ):
        super().__init__()
        channels, dense_width = LAYERS_241002_3[resolution]
        self.conv1 = nn.Conv2d(len(inputs), channels[0], 5)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5)
        self.conv3 = nn.Conv2d(channels[1], channels[2], 5)
        self.dropout_features = nn.Dropout2d(dropout_features)
        self.fc1 = nn.Linear(_flattened_size(resolution, channels), dense_width)
        self.dropout_dense = nn.Dropout(dropout_dense)
        self.fc2 = nn.Linear(dense_width, N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = pool_relu(convolve(self.conv1, images))
        x = pool_relu(convolve(self.conv2, x))
        x = self.dropout_features(F.relu(convolve(self.conv3, x)))
        x = self.dropout_dense(F.relu(self.fc1(x.flatten(1))))
        return self.fc2(x)


class DMTimeBinaryClassificator241002_3_GAP(nn.Module):
    """Convolutions of ``241002_3``, global average pooling, and an output layer (4,254 parameters at 256)."""

    def __init__(self, resolution: int, inputs: Sequence[str] = DM_TIME):
        super().__init__()
        channels, _ = LAYERS_241002_3[resolution]
        self.conv1 = nn.Conv2d(len(inputs), channels[0], 5)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5)
        self.conv3 = nn.Conv2d(channels[1], channels[2], 5)
        self.fc2 = nn.Linear(channels[2], N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = pool_relu(convolve(self.conv1, images))
        x = pool_relu(convolve(self.conv2, x))
        x = F.relu(convolve(self.conv3, x))
        return self.fc2(x.mean(dim=(2, 3)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (basic block of He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class ResidualTower(nn.Module):
    """Strided convolutions with residual blocks between them, whose maps are pooled.

    Parameters
    ----------
    n_inputs : int
        Channels of an image.
    channels : tuple of int
        Channels of the stem and of each stage; each stage halves the height and width.
    kernel, stride : (int, int)
        Kernel size and stride of the stem.
    plain : int
        Number of first stages without a residual block, which would take most of the time at their size.
    pooled : (int, int), optional
        Height and width to which the maps are averaged; by default the result is the mean and the maximum of each.
    """

    def __init__(
        self,
        n_inputs: int,
        channels: tuple[int, ...],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        plain: int = 0,
        pooled: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.pooled = pooled
        padding = (kernel[0] - stride[0] + 1) // 2, (kernel[1] - stride[1] + 1) // 2
        stem = nn.Conv2d(n_inputs, channels[0], kernel, stride, padding, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True))
        self.stages = nn.Sequential()
        for number, (before, after) in enumerate(pairwise(channels)):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            self.stages.extend([convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)])
            if number >= plain:
                self.stages.append(ResidualBlock(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages(self.stem(x))
        if self.pooled is not None:
            return F.adaptive_avg_pool2d(x, self.pooled).flatten(1)
        return torch.cat((x.mean(dim=(2, 3)), x.amax(dim=(2, 3))), dim=1)


class DMTimeSmallResidual(ResidualTower):
    """Residual network with a coarse stem: 1/60 of the weights of ``241002_3`` and less than half its time on a CPU.

    A weak pulse is local, and the mean over the page dilutes it: the output layer takes the maximum as well.

    Parameters
    ----------
    inputs : sequence of str
        Channels of an image.
    channels : tuple of int
    kernel, stride : int
    plain : int
        As in ``ResidualTower``.
    dropout : float
        Dropout probability before the output layer.
    """

    def __init__(
        self,
        inputs: Sequence[str] = DM_TIME,
        channels: tuple[int, ...] = SMALL_RESIDUAL_CHANNELS,
        kernel: int = 8,
        stride: int = 4,
        plain: int = 1,
        dropout: float = 0.2,
    ):
        super().__init__(len(inputs), channels, (kernel, kernel), (stride, stride), plain)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * channels[-1], N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(super().forward(in_sigma(images))))


class CandidateTwoTowers(nn.Module):
    """One tower for DM-time and one for the frequency-time channels; dense layers combine their features.

    The frequency-time tower begins with a stride of four sub-bands and two columns: a pulse is a few columns wide and
    tens of sub-bands high. The maps are not pooled to one value, since the pulse is in the middle, and interference may
    be anywhere. Sub-bands without a good channel, whose values are 0, are set to the mean of the noise.

    Parameters
    ----------
    inputs : sequence of str
        Channels of an image: dm_time and at least freq_time.
    """

    def __init__(self, inputs: Sequence[str]):
        super().__init__()
        dm_time = list(inputs).index("dm_time")
        freq_time = [number for number, name in enumerate(inputs) if name in FREQUENCY_TIME]
        self.dm_time_channel = slice(dm_time, dm_time + 1)
        self.freq_time_channels = slice(freq_time[0], None, 1 + len(inputs) - len(freq_time))
        # Of images of 64 x 64, maps of 8 x 8 pixels are averaged to 4 x 4, and those of 4 x 8 pixels remain.
        self.dm_time = ResidualTower(1, DM_TIME_TOWER, (5, 5), (2, 2), pooled=(4, 4))
        self.freq_time = ResidualTower(len(freq_time), FREQ_TIME_TOWER, (8, 5), (4, 2), pooled=(4, 8))
        self.fc1 = nn.Linear(16 * DM_TIME_TOWER[-1] + 32 * FREQ_TIME_TOWER[-1], TWO_TOWERS_DENSE)
        self.dropout = nn.Dropout(0.3)
        self.fc2 = nn.Linear(TWO_TOWERS_DENSE, N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dm_time, freq_time = images[:, self.dm_time_channel], images[:, self.freq_time_channels]
        freq_time = torch.where(freq_time > 0, in_sigma(freq_time), 0.0)
        features = torch.cat((self.dm_time(in_sigma(dm_time)), self.freq_time(freq_time)), dim=1)
        return self.fc2(self.dropout(F.relu(self.fc1(features))))


def in_sigma(images: torch.Tensor) -> torch.Tensor:
    """Return images in units of sigma: the robust and noise normalisers map -5..+20 sigma to 0..255."""
    return (images - 51.0) / 10.2


class ScaledTo01(nn.Module):
    """Divide the input by 255 for a network that expects values 0..1."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images / 255.0)


def _resnet18(resolution: int, inputs: Sequence[str]) -> nn.Module:
    from torchvision.models import resnet18

    network = resnet18(weights=None, num_classes=N_CLASSES)
    network.conv1 = nn.Conv2d(len(inputs), 64, 7, stride=2, padding=3, bias=False)
    return ScaledTo01(network)


def _mobilenet_v3_small(resolution: int, inputs: Sequence[str]) -> nn.Module:
    from torchvision.models import mobilenet_v3_small

    network = mobilenet_v3_small(weights=None, num_classes=N_CLASSES)
    network.features[0][0] = nn.Conv2d(len(inputs), 16, 3, stride=2, padding=1, bias=False)
    return ScaledTo01(network)


models_htable: dict[str, Callable[[int, Sequence[str]], nn.Module]] = {
    "DM_time_binary_classificator_241002_1": DMTimeBinaryClassificator241002_1,
    "DM_time_binary_classificator_241002_2": DMTimeBinaryClassificator241002_2,
    "DM_time_binary_classificator_241002_3": DMTimeBinaryClassificator241002_3,
    "DM_time_binary_classificator_241002_3_dropout": partial(
        DMTimeBinaryClassificator241002_3, dropout_features=0.2, dropout_dense=0.4
    ),
    "DM_time_binary_classificator_241002_3_GAP": DMTimeBinaryClassificator241002_3_GAP,
    "DM_time_small_residual": lambda resolution, inputs: DMTimeSmallResidual(inputs),
    "DM_time_candidate_classifier": lambda resolution, inputs: DMTimeSmallResidual(
        inputs, (24, 48, 96), 5, 2, plain=0, dropout=0.3
    ),
    TWO_TOWERS: lambda resolution, inputs: CandidateTwoTowers(inputs),
    "resnet18": _resnet18,
    "mobilenet_v3_small": _mobilenet_v3_small,
}
# Names in checkpoints and configs of earlier versions
OLD_NAMES = {"DM_time_second_look": "DM_time_candidate_classifier"}


def current_name(model_name: str) -> str:
    """Return the key of ``models_htable`` for a name that may be an old one."""
    return OLD_NAMES.get(model_name, model_name)


def default_channels(model_name: str) -> tuple[str, ...]:
    """Return the channels that a network takes if none are named."""
    return CHANNELS if current_name(model_name) == TWO_TOWERS else DM_TIME


def fuse_for_inference(model: nn.Module) -> nn.Module:
    """Copy a network in evaluation mode, with each batch normalisation merged into the convolution before it."""
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


def build_model(model_name: str, resolution: int, channels: Sequence[str] | None = None) -> nn.Module:
    """Build a network with random weights.

    Parameters
    ----------
    model_name : str
        A key of ``models_htable``, or an old name.
    resolution : int
        Height and width of the images in pixels. The ``241002`` networks exist for 256, 128, 64 and 32; the others,
        which end in a global pooling, take any multiple of 32 up to 4096.
    channels : sequence of str, optional
        Channels of an image, some of ``CHANNELS``; the default is ``default_channels``.

    Raises
    ------
    InputError
        If the network does not exist, or not at this resolution or for these channels.
    """
    name = current_name(model_name)
    if name not in models_htable:
        raise InputError(f"model_name must be one of {', '.join(models_htable)}, got {model_name!r}")
    if "241002" in name:
        valid, is_valid = "256, 128, 64 or 32", resolution in RESOLUTIONS
    else:
        valid = f"a multiple of 32 up to {LARGEST_RESOLUTION}"
        is_valid = resolution in range(32, LARGEST_RESOLUTION + 1, 32)
    if not is_valid:
        raise InputError(f"resolution of {model_name} must be {valid}, got {resolution}")
    inputs = default_channels(name) if channels is None else channels
    if name == TWO_TOWERS and not {"freq_time", "dm_time"} <= set(inputs):
        raise InputError(
            f"the channels of {model_name} must hold freq_time and dm_time, got {', '.join(inputs)}: set input to dmft "
            "or model_name to DM_time_candidate_classifier"
        )
    return models_htable[name](resolution, inputs)
