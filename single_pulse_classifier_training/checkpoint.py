"""The one checkpoint format: a .pth file that describes itself and is read without running code from it."""

import os
import pickle
import platform
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer
from single_pulse_classifier_training.training_models import CLASS_NAMES, build_model

NO_TENSOR = "none (it is missing)"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# What torch.load(weights_only=True) raises on a file that is damaged, foreign or holds code.
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
    """A network with all that inference needs to know about it.

    Attributes
    ----------
    model : the network, in evaluation mode, on the device that load_checkpoint was given
    model_name, resolution : what ``build_model`` rebuilds it from
    class_names : name of class 0, name of class 1
    normaliser : "minmax", "robust" or "noise", how the pages it was trained on were brought to 0..255
    dms : DM of each row of the training pages, lowest first, pc cm^-3; None if unknown
    tsamp_s : sampling time of the training pages, seconds; None if unknown
    thresholds : [{"threshold": probability, "false_per_hour": measured false pages per hour, "page_s": their length}]
    threshold : probability of Pulse from which a page counts as one
    temperature : the logits are divided by it before softmax (Guo et al. 2017, arXiv:1706.04599)
    metrics, config, versions : measured values, the training config, the versions of the libraries
    """

    model: nn.Module
    model_name: str
    resolution: int
    class_names: list[str] = field(default_factory=lambda: list(CLASS_NAMES))
    normaliser: str = "minmax"
    dms: list[float] | None = None
    tsamp_s: float | None = None
    thresholds: list[dict[str, float]] = field(default_factory=list)
    threshold: float = 0.5
    temperature: float = 1.0
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=_library_versions)


DESCRIPTION_KEYS = tuple(entry.name for entry in fields(Checkpoint) if entry.name != "model")


def save_checkpoint(path: str | Path, checkpoint: Checkpoint, **training_state: Any) -> None:
    """Write a checkpoint: tensors and Python builtins only, all of it or nothing.

    ``training_state`` (optimiser state, epoch, ...) is stored under the key "training", which ``load_checkpoint``
    ignores.

    Raises
    ------
    TypeError : a value that ``weights_only=True`` could not read back.
    """
    content = {key: getattr(checkpoint, key) for key in DESCRIPTION_KEYS}
    content["state_dict"] = {
        name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.model.state_dict().items()
    }
    if training_state:
        content["training"] = training_state
    content = _plain(content)
    with atomic_writer(path) as file:
        torch.save(content, file)


def load_checkpoint(
    path: str | Path, device: torch.device | str, model_name: str | None = None, resolution: int | None = None
) -> Checkpoint:
    """Read a checkpoint, or a bare state dict of a network that the caller names.

    Parameters
    ----------
    path : a .pth file
    device : where the network goes
    model_name, resolution : needed for a bare state dict; otherwise they must agree with what the file says

    Raises
    ------
    InputError : no such file, a Keras model, an unreadable or unsafe file, or weights that do not fit the network.
    """
    path = Path(path)
    return _checkpoint(path, _read(path), device, model_name, resolution)


def _checkpoint(
    path: Path, content: dict[str, Any], device: torch.device | str, model_name: str | None, resolution: int | None
) -> Checkpoint:
    if "state_dict" not in content:
        if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise InputError(f"{path} is no checkpoint of this project: it has neither a 'state_dict' nor bare weights")
        if model_name is None or resolution is None:
            raise InputError(f"{path} holds bare weights: give the model_name and the resolution they belong to")
        content = {"state_dict": content, "model_name": model_name, "resolution": resolution, "versions": {}}

    for key, given in (("model_name", model_name), ("resolution", resolution)):
        if key not in content:
            raise InputError(f"{path} is no checkpoint of this project: the key {key!r} is missing")
        if given is not None and given != content[key]:
            raise InputError(f"{path} was trained with {key} {content[key]!r}, but {given!r} was asked for")

    model = _build_with_weights(path, content["model_name"], content["resolution"], content["state_dict"])
    description = {key: content[key] for key in DESCRIPTION_KEYS if key in content}
    return Checkpoint(model=model.to(device).eval(), **description)


def load_training_state(path: str | Path) -> tuple[Checkpoint, dict[str, Any]]:
    """Read a checkpoint (on the CPU) and the ``training_state`` that it was saved with.

    Raises
    ------
    InputError : as ``load_checkpoint``, or a file without a training state.
    """
    path = Path(path)
    content = _read(path)
    checkpoint = _checkpoint(path, content, "cpu", None, None)
    if not isinstance(content.get("training"), dict):
        raise InputError(f"{path} holds no state of a training: only last.pth does")
    return checkpoint, content["training"]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    with open(path, "rb") as file:
        is_hdf5 = file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    if is_hdf5 or path.suffix.lower() in (".h5", ".hdf5", ".keras"):
        raise InputError(f"{path} is a Keras model; convert it with `python convert_to_pytorch.py {path}`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE:
        raise InputError(f"{path} is refused: it is damaged, no PyTorch checkpoint, or holds code to run") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no checkpoint of this project: it holds a {type(content).__name__}")
    return content


def _build_with_weights(path: Path, model_name: str, resolution: int, state_dict: dict[str, torch.Tensor]) -> nn.Module:
    if not isinstance(model_name, str) or not isinstance(resolution, int) or not isinstance(state_dict, dict):
        raise InputError(f"{path} is no checkpoint of this project: its model_name, resolution or weights are none")
    # On the meta device the network costs neither memory nor time until its weights are put in.
    with torch.device("meta"):
        model = build_model(model_name, resolution)
    expected = model.state_dict()
    for name in [*expected, *state_dict]:
        found, wanted = _shape(state_dict.get(name)), _shape(expected.get(name))
        if found != wanted or wanted == NO_TENSOR:
            raise InputError(
                f"{path} does not fit {model_name} at {resolution}: "
                f"tensor {name!r} has shape {found} in the file and {wanted} in the network"
            )
    model.load_state_dict(state_dict, assign=True)
    return model.float()


def _shape(tensor: object) -> str:
    return str(tuple(tensor.shape)) if isinstance(tensor, torch.Tensor) else NO_TENSOR


def _plain(value: Any) -> Any:
    """The same value in tensors and builtins, which are all that ``weights_only=True`` reads."""
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
