"""Networks that map a DM-time image to two logits, Artefact and Pulse.

Every network takes float images of shape (N, 1, resolution, resolution) with the values 0..255 of a normalised page
(any scaling is inside the network) and returns logits of shape (N, 2), without softmax: ``CrossEntropyLoss`` expects
logits, and inference divides them by its temperature.

Build one by name: ``build_model("DM_time_small_residual", 256)``.
"""

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

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

    def __init__(self, resolution: int):
        super().__init__()
        channels, dense_width = LAYERS_241002_1[resolution]
        self.conv1 = nn.Conv2d(1, channels[0], 5)
        self.fc1 = nn.Linear(_flattened_size(resolution, channels), dense_width)
        self.fc2 = nn.Linear(dense_width, N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(convolve(self.conv1, images))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class DMTimeBinaryClassificator241002_2(nn.Module):
    """Two 5x5 convolutions with a max-pool between them, and a dense layer."""

    def __init__(self, resolution: int):
        super().__init__()
        channels, dense_width = LAYERS_241002_2[resolution]
        self.conv1 = nn.Conv2d(1, channels[0], 5)
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
    dropout_features, dropout_dense : float
        Probability that a feature map, or a value of the dense layer, is set to zero during training.
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
        x = pool_relu(convolve(self.conv1, images))
        x = pool_relu(convolve(self.conv2, x))
        x = self.dropout_features(F.relu(convolve(self.conv3, x)))
        x = self.dropout_dense(F.relu(self.fc1(x.flatten(1))))
        return self.fc2(x)


class DMTimeBinaryClassificator241002_3_GAP(nn.Module):
    """Convolutions of ``241002_3``, global average pooling, and an output layer (4,254 parameters at 256)."""

    def __init__(self, resolution: int):
        super().__init__()
        channels, _ = LAYERS_241002_3[resolution]
        self.conv1 = nn.Conv2d(1, channels[0], 5)
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


class DMTimeSmallResidual(nn.Module):
    """Residual network with a coarse stem: 1/60 of the weights of ``241002_3`` and less than half its time on a CPU.

    A weak pulse is local, and the mean over the page dilutes it: the output layer takes the maximum as well.

    Parameters
    ----------
    channels : tuple of int
        Channels of the stem and of each stage; each stage halves the height and width.
    kernel, stride : int
        Kernel size and stride of the stem.
    plain : int
        Number of first stages without a residual block, which would take most of the time at their size.
    dropout : float
        Dropout probability before the output layer.
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
        # The robust and noise normalisers map -5..+20 sigma to 0..255; this returns to units of sigma.
        x = (images - 51.0) / 10.2
        x = self.stages(self.stem(x))
        x = torch.cat((x.mean(dim=(2, 3)), x.amax(dim=(2, 3))), dim=1)
        return self.fc(self.dropout(x))


class ScaledTo01(nn.Module):
    """Divide the input by 255 for a network that expects values 0..1."""

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
    "DM_time_candidate_classifier": lambda resolution: DMTimeSmallResidual((24, 48, 96), 5, 2, plain=0, dropout=0.3),
    "resnet18": _resnet18,
    "mobilenet_v3_small": _mobilenet_v3_small,
}
# Names in checkpoints and configs of earlier versions
OLD_NAMES = {"DM_time_second_look": "DM_time_candidate_classifier"}


def current_name(model_name: str) -> str:
    """Return the key of ``models_htable`` for a name that may be an old one."""
    return OLD_NAMES.get(model_name, model_name)


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


def build_model(model_name: str, resolution: int) -> nn.Module:
    """Build a network with random weights.

    Parameters
    ----------
    model_name : str
        A key of ``models_htable``, or an old name.
    resolution : int
        Height and width of the images in pixels. The ``241002`` networks exist for 256, 128, 64 and 32; the others,
        which end in a global pooling, take any multiple of 32 up to 4096.

    Raises
    ------
    InputError
        If the network does not exist, or not at this resolution.
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
    return models_htable[name](resolution)
