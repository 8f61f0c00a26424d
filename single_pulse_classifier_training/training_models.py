"""The networks: DM-time image in, two raw logits (Artefact, Pulse) out.

Every network takes float images of shape (N, 1, resolution, resolution) with the raw values 0..255 of a normalised page
(any scaling is inside the network) and returns logits of shape (N, 2). There is no softmax: ``CrossEntropyLoss`` wants
logits, and inference applies its temperature to them.

Build one by name: ``build_model("DM_time_small_residual", 256)``.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from single_pulse_classifier_training.cli import InputError

N_CLASSES = 2
CLASS_NAMES = ["Artefact", "Pulse"]
RESOLUTIONS = (256, 128, 64, 32)

# resolution: (channels of the 5x5 convolutions, width of the dense layer)
LAYERS_241002_1 = {256: ((16,), 256), 128: ((8,), 128), 64: ((8,), 256), 32: ((16,), 256)}
LAYERS_241002_2 = {256: ((16, 16), 512), 128: ((16, 16), 128), 64: ((16, 16), 128), 32: ((16, 16), 512)}
LAYERS_241002_3 = {256: ((8, 8, 12), 256), 128: ((8, 12, 12), 256), 64: ((8, 12, 8), 512), 32: ((8, 12, 12), 512)}

# DM_time_small_residual: channels of the stem and of the three stages
SMALL_RESIDUAL_CHANNELS = (24, 32, 48, 64)


def _flattened_size(resolution: int, channels: tuple[int, ...]) -> int:
    """Values left after valid 5x5 convolutions with a 2x2 max-pool between every two of them."""
    side = resolution - 4
    for _ in channels[1:]:
        side = side // 2 - 4
    return channels[-1] * side * side


def _pool_relu(x: torch.Tensor) -> torch.Tensor:
    # ReLU is monotonic, so this equals pooling after ReLU at a quarter of the ReLU work.
    return F.relu(F.max_pool2d(x, 2))


class DMTimeBinaryClassificator241002_1(nn.Module):
    """One 5x5 convolution and a dense layer."""

    def __init__(self, resolution: int):
        super().__init__()
        channels, dense_width = LAYERS_241002_1[resolution]
        self.conv1 = nn.Conv2d(1, channels[0], 5)
        self.fc1 = nn.Linear(_flattened_size(resolution, channels), dense_width)
        self.fc2 = nn.Linear(dense_width, N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(images))
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
        x = _pool_relu(self.conv1(images))
        x = F.relu(self.conv2(x))
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
        x = _pool_relu(self.conv1(images))
        x = _pool_relu(self.conv2(x))
        x = self.dropout_features(F.relu(self.conv3(x)))
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
        x = _pool_relu(self.conv1(images))
        x = _pool_relu(self.conv2(x))
        x = F.relu(self.conv3(x))
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
    """Residual network with a coarse stem: a fiftieth of ``241002_3``'s weights, and a third of its time on a CPU.

    A weak pulse is local, and the mean over the page dilutes it: the output layer sees the maximum as well.
    """

    def __init__(self, dropout: float = 0.2):
        super().__init__()
        stem, *stages = SMALL_RESIDUAL_CHANNELS
        self.stem = nn.Sequential(
            nn.Conv2d(1, stem, 8, stride=4, padding=2, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        self.stages = nn.Sequential()
        for before, after in zip(SMALL_RESIDUAL_CHANNELS, stages):
            self.stages.extend(
                [
                    nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(inplace=True),
                    ResidualBlock(after),
                ]
            )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * stages[-1], N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The robust normaliser maps -5..+20 sigma to 0..255: back to units of the noise.
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
    "resnet18": _resnet18,
    "mobilenet_v3_small": _mobilenet_v3_small,
}


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
