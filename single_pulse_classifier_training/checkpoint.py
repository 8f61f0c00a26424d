"""The checkpoint format: a .pth file that describes its network and is read without running code from it."""

import hashlib
import logging
import os
import pickle
import platform
import re
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import nn

from single_pulse_classifier_training.channels import DM_TIME, check_channels
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import Normaliser, first_error
from single_pulse_classifier_training.input_files import ZIP_SIGNATURE, check_archive, check_is_file
from single_pulse_classifier_training.runtime import atomic_writer
from single_pulse_classifier_training.training_models import CLASS_NAMES, build_model, current_name

logger = logging.getLogger(__name__)

NO_TENSOR = "none (no such tensor)"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Raised by torch.load(weights_only=True) on a file that is damaged, has another format or holds code.
UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
)


def _library_versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


@dataclass
class Checkpoint:
    """A network and everything that inference needs to know about it.

    Parameters
    ----------
    model : nn.Module
        The network.
    model_name : str
    resolution : int
        Arguments of ``build_model`` that rebuild the network.
    class_names : list of str
        Names of the two outputs, in their order.
    normaliser : {"minmax", "robust", "noise"}
        How the training images were scaled to 0..255.
    channels : tuple of str
        Channels of an image that the network takes, in their order.
    dms : list of float, optional
        DM of each row of the training images, lowest first, in pc cm^-3.
    tsamp_s : float, optional
        Sampling time of the training images in seconds.
    thresholds : list of dict
        ``{"threshold", "false_per_hour", "page_s", "false_positives", "hours"}``: a probability, the false pages per
        hour measured at it, the length of these pages in seconds, and the number and the hours behind the rate. For a
        candidate classifier, false events per hour, without ``page_s``. The last three may be missing.
    threshold : float
        Images with at least this probability are classified as Pulse.
    measured_pair : dict, optional
        In a candidate classifier, the two networks with which the false events were measured, as
        ``Classifiers.pair`` of the pipeline describes them; None if the thresholds were not measured.
    temperature : float
        Divides the logits before softmax (Guo et al. 2017, arXiv:1706.04599).
    trained_images : list of dict, optional
        Files of the training, and which of their images were trained on, as ``trained_images.record_of`` describes
        them; None if it is not known.
    metrics, config, versions : dict
        Metrics of the training and evaluation, the training config, and the versions of the libraries.
    """

    model: nn.Module
    model_name: str
    resolution: int
    class_names: list[str] = field(default_factory=lambda: list(CLASS_NAMES))
    normaliser: str = "minmax"
    channels: tuple[str, ...] = DM_TIME
    dms: list[float] | None = None
    tsamp_s: float | None = None
    thresholds: list[dict[str, float]] = field(default_factory=list)
    threshold: float = 0.5
    temperature: float = 1.0
    measured_pair: dict[str, Any] | None = None
    trained_images: list[dict[str, Any]] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=_library_versions)


DESCRIPTION_KEYS = tuple(entry.name for entry in fields(Checkpoint) if entry.name != "model")


class _Numbers(BaseModel):
    # strict: "0.5" is not a number; a checkpoint may have further keys
    model_config = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


class _Threshold(_Numbers):
    threshold: float = Field(ge=0, le=1)
    false_per_hour: float = Field(ge=0)
    page_s: float | None = Field(default=None, gt=0)
    false_positives: int | None = Field(default=None, ge=0)
    hours: float | None = Field(default=None, gt=0)


class _TrainedImages(_Numbers):
    file: str
    checksum: str
    n_images: int = Field(ge=0)
    trained_on: str

    @model_validator(mode="after")
    def _one_bit_per_image(self) -> Self:
        n_digits = 2 * -(-self.n_images // 8)
        if not re.fullmatch(rf"[0-9a-f]{{{n_digits}}}", self.trained_on):
            raise ValueError(f"trained_on must have {n_digits} hexadecimal digits for {self.n_images} images")
        return self


class _Description(_Numbers):
    """Types and ranges of the values beside the weights; ``build_model`` checks name and resolution of the network."""

    model_name: str
    resolution: int
    class_names: list[str] = CLASS_NAMES
    normaliser: Normaliser = "minmax"
    channels: tuple[str, ...] = DM_TIME
    dms: list[float] | None = None
    tsamp_s: float | None = Field(default=None, gt=0)
    thresholds: list[_Threshold] = []
    threshold: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=1.0, ge=0.01, le=100)  # wider than the range of the fit, see calibration.py
    measured_pair: dict | None = None
    trained_images: list[_TrainedImages] | None = None
    metrics: dict = {}
    config: dict = {}
    versions: dict = {}

    @field_validator("class_names")
    @classmethod
    def _both_classes(cls, names: list[str]) -> list[str]:
        if sorted(names) != CLASS_NAMES:
            raise ValueError(f"must hold {' and '.join(CLASS_NAMES)}, got {names}")
        return names

    @field_validator("channels")
    @classmethod
    def _known_channels(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_channels(names)
        return names


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, **training_state: Any) -> None:
    """Write a checkpoint atomically, with tensors and Python builtins only.

    Parameters
    ----------
    path : str or Path
    checkpoint : Checkpoint
    **training_state
        State of the optimiser, epoch, ...; stored under the key "training", which ``load_checkpoint`` ignores.

    Raises
    ------
    TypeError
        If ``torch.load(weights_only=True)`` could not read a value.
    """
    content = {key: getattr(checkpoint, key) for key in DESCRIPTION_KEYS}
    content["state_dict"] = {
        name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.state_dict().items()
    }
    if training_state:
        content["training"] = training_state
    write_content(path, _plain(content))


def update_checkpoint(path: str | Path, **values: Any) -> None:
    """Replace values of a checkpoint, such as its thresholds; the rest of the file stays unchanged.

    Raises
    ------
    InputError
        If the file holds bare weights, or cannot be read.
    """
    path = Path(path).resolve()  # a link stays a link
    content = _read(path)
    if "state_dict" not in content:
        raise InputError(f"{path}: a checkpoint must have the key 'state_dict' to be changed, got bare weights")
    write_content(path, content | _plain(values))


def write_content(path: str | Path, content: dict[str, Any]) -> None:
    """Write the dictionary of a checkpoint atomically."""
    with atomic_writer(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch replaces the error of a failed write, for example on a full disk, by one of its own archive.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def load_checkpoint(
    path: str | Path, device: torch.device | str, model_name: str | None = None, resolution: int | None = None
) -> Checkpoint:
    """Read a checkpoint, or a bare state dict of a network that the caller names.

    Parameters
    ----------
    path : str or Path
        A .pth file.
    device : torch.device or str
        Device of the returned network.
    model_name, resolution : str, int, optional
        Required for a bare state dict. Otherwise they must agree with the file.

    Returns
    -------
    checkpoint : Checkpoint
        With the network in evaluation mode.

    Raises
    ------
    InputError
        If the file is missing, a Keras model, damaged or unsafe, if its weights do not fit the network or are not
        finite, or if another value has the wrong type or range.
    """
    path = Path(path)
    return _checkpoint(path, _read(path), device, model_name, resolution)


def weights_checksum(model: nn.Module) -> str:
    """Compute the SHA-256 of names, types, shapes and values of all weights; it does not depend on device or file."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        total.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        total.update(values.numpy().tobytes())
    return total.hexdigest()


def _checkpoint(
    path: Path, content: dict[str, Any], device: torch.device | str, model_name: str | None, resolution: int | None
) -> Checkpoint:
    if "state_dict" not in content:
        if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise InputError(f"{path}: a checkpoint must have the key 'state_dict' or be a bare state dict")
        if model_name is None or resolution is None:
            raise InputError(f"{path}: model_name and resolution must be given for a bare state dict")
        content = {"state_dict": content, "model_name": model_name, "resolution": resolution, "versions": {}}

    try:
        _Description.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {first_error(error, content, _Description)}") from None
    for key, given in (("model_name", model_name), ("resolution", resolution)):
        if given is not None and _current(given) != _current(content[key]):
            raise InputError(f"{key} must be {content[key]!r}, as in the checkpoint {path}, got {given!r}")

    description = {key: content[key] for key in DESCRIPTION_KEYS if key in content}
    model = _build_with_weights(path, description, content["state_dict"])
    return Checkpoint(model=model.to(device).eval(), **description)


def _current(value: Any) -> Any:
    return current_name(value) if isinstance(value, str) else value


def load_training_state(path: str | Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Read a checkpoint on the CPU, and the ``training_state`` that was saved with it.

    Raises
    ------
    InputError
        As ``load_checkpoint``, or if the file has no training state.
    """
    path = Path(path)
    content = _read(path)
    checkpoint = _checkpoint(path, content, "cpu", None, None)
    if not isinstance(content.get("training"), dict):
        raise InputError(f"{path}: a checkpoint to resume from must hold a training state, as last.pth does")
    return checkpoint, content["training"]


def _read(path: Path) -> dict[str, Any]:
    check_is_file(path, "checkpoint")
    with open(path, "rb") as file:
        signature = file.read(len(HDF5_SIGNATURE))
    if signature == HDF5_SIGNATURE or path.suffix.lower() in (".h5", ".hdf5", ".keras"):
        raise InputError(f"{path} is a Keras model: convert it with `python convert_to_pytorch.py {path}`")
    if signature.startswith(ZIP_SIGNATURE):
        check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        raise InputError(f"{path} cannot be read: it is damaged, not a PyTorch file, or holds code") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a checkpoint must be a dictionary, got {type(content).__name__}")
    return content


def _build_with_weights(path: Path, description: dict[str, Any], state_dict: Any) -> nn.Module:
    model_name, resolution = description["model_name"], description["resolution"]
    channels = description.get("channels", DM_TIME)
    if not isinstance(state_dict, dict):
        raise InputError(f"{path}: state_dict must be a dictionary, got {type(state_dict).__name__}")
    try:
        # On the meta device, a network takes no memory and no time until its weights are assigned.
        with torch.device("meta"):
            model = build_model(model_name, resolution, channels)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    expected = model.state_dict()
    for name in [*expected, *state_dict]:
        tensor = state_dict.get(name)
        found, wanted = _shape(tensor), _shape(expected.get(name))
        if found != wanted or wanted == NO_TENSOR:
            raise InputError(
                f"{path}: the shape of tensor {name!r} must be {wanted} for {model_name} at {resolution} with the "
                f"channels {', '.join(channels)}, got {found}"
            )
        assert isinstance(tensor, torch.Tensor)
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not is_plain or tensor.is_floating_point() != expected[name].is_floating_point():
            raise InputError(
                f"{path}: tensor {name!r} must be dense, of the type of {expected[name].dtype}, and in the file, "
                f"got {tensor.layout}, {tensor.dtype}, {tensor.device.type}"
            )
    model.load_state_dict(state_dict, assign=True)
    model = model.float()
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: the weights must be finite, got NaN or infinity in tensor {name!r}")
    return model


def _shape(tensor: object) -> str:
    return str(tuple(tensor.shape)) if isinstance(tensor, torch.Tensor) else NO_TENSOR


def _plain(value: Any) -> Any:
    """Convert a value to tensors and builtins, the only types that ``weights_only=True`` reads."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(entry) for entry in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.Tensor)):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")
