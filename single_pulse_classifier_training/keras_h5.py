"""Keras models in .h5 files, read with h5py alone, and the networks of this project that correspond to them.

Whole models and weights-only files of Keras 2 and Keras 3 are read. Layers are identified by the shapes of their
weights, which differ within every ``241002`` network; their names and order are ignored, because they depend on what
else the Python process had built. Only hard links inside the file are followed, and only plain datasets are read.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from single_pulse_classifier_training.checkpoint import HDF5_SIGNATURE
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.input_files import check_is_file
from single_pulse_classifier_training.training_models import RESOLUTIONS, build_model, models_htable

# Raised by h5py and json on a damaged file.
DAMAGED = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError)
# Groups with one group per layer, which has its weights in vars/0 and vars/1: Keras 3, and Keras 2.12 to 2.15.
LAYER_GROUPS = ("layers", "_layer_checkpoint_dependencies")
WITHOUT_EFFECT = ("InputLayer", "Dropout", "SpatialDropout2D")
SETTINGS: dict[str, dict[str, Any]] = {
    "Conv2D": {"kernel_size": [5, 5], "strides": [1, 1], "padding": "valid", "dilation_rate": [1, 1], "groups": 1},
    "MaxPooling2D": {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"},
}


@dataclass(frozen=True)
class KerasLayer:
    """A convolution, kernel (height, width, in, out), or a dense layer, kernel (in, out); bias (out,)."""

    name: str
    kernel: h5py.Dataset
    bias: h5py.Dataset

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.kernel.shape, self.bias.shape


@dataclass(frozen=True)
class KerasModel:
    """An open Keras file: its layers with weights, convolutions first; for a whole model, the configs of all layers."""

    path: Path
    layout: str
    layers: list[KerasLayer]
    description: list[dict] | None


@contextmanager
def open_keras(path: str | Path) -> Iterator[KerasModel]:
    """Open a Keras .h5 file of any layout; only names and shapes are read.

    Raises
    ------
    InputError
        If the file is missing, damaged, not HDF5, not a Keras model, or refers to a weight in another file.
    """
    path = Path(path)
    check_is_file(path, "Keras model")
    with open(path, "rb") as file:
        if file.read(len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
            hint = ": a .keras file is a zip archive; save it as .h5 in Keras" if path.suffix == ".keras" else ""
            raise InputError(f"{path} is not an HDF5 file{hint}")
    try:
        root = h5py.File(path, "r", locking=False)
    except DAMAGED as error:
        raise InputError(f"{path} is truncated or damaged ({error})") from None
    with root:
        try:
            model = _read_structure(path, root)
        except DAMAGED as error:
            raise InputError(f"{path} is damaged or not a Keras model ({error})") from None
        yield model


def _read_structure(path: Path, root: h5py.File) -> KerasModel:
    whole = _has(root, "model_weights")
    weights = _walk(path, root, "model_weights") if whole else root
    version = _text(weights.attrs.get("keras_version", root.attrs.get("keras_version", "of unknown version")))
    names = _name_list(weights, "layer_names")
    if names is not None:
        layout = f"{'whole model' if whole else 'weights'}, Keras {version}"
        found = []
        for name in names:
            group = _walk(path, weights, name)
            found.append((name, [_walk(path, group, weight) for weight in _name_list(group, "weight_names") or []]))
    else:
        parent = next((name for name in LAYER_GROUPS if _has(root, name)), None)
        if parent is None:
            raise InputError(f"{path}: a Keras model must have layer_names or the group {LAYER_GROUPS[0]}")
        layout = f"weights, in the group {parent}"
        found = []
        for name in _walk(path, root, parent):
            layer = _walk(path, root, f"{parent}/{name}")
            if _has(layer, "vars"):
                group = _walk(path, layer, "vars")
                found.append((name, [_walk(path, group, index) for index in sorted(group, key=_by_number)]))
    layers = [_layer(path, name, datasets) for name, datasets in found if datasets]
    layers.sort(key=lambda layer: (-layer.kernel.ndim, _by_number(layer.name)))
    return KerasModel(path, layout, layers, _description(root))


def _has(group: h5py.Group, name: str) -> bool:
    # The operator "in" of h5py would follow a link, even out of the file.
    return isinstance(group, h5py.Group) and group.id.links.exists(name.encode())


def _walk(path: Path, group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return the object at a path below ``group``, reached through hard links only."""
    found = group
    for part in filter(None, name.split("/")):
        if not _has(found, part):
            raise InputError(f"{path}: {group.name.rstrip('/')}/{name} is missing")
        if found.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise InputError(f"{path}: {found.name.rstrip('/')}/{part} must be an object in this file, got a link")
        found = found[part]
    return found


def _layer(path: Path, name: str, datasets: list[h5py.Dataset]) -> KerasLayer:
    if not all(isinstance(dataset, h5py.Dataset) for dataset in datasets):
        raise InputError(f"{path}: the weights of layer {name} must be datasets, got a group")
    weights = [dataset for dataset in datasets if dataset.dtype.kind != "u"]  # unsigned: Dropout's random state
    kernels = [dataset for dataset in weights if dataset.ndim in (2, 4)]
    biases = [dataset for dataset in weights if dataset.ndim == 1]
    if len(weights) != 2 or len(kernels) != 1 or len(biases) != 1:
        shapes = ", ".join(str(dataset.shape) for dataset in datasets)
        raise InputError(f"{path}: layer {name} must have a kernel and a bias of Conv2D or Dense, got {shapes}")
    return KerasLayer(name, kernels[0], biases[0])


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _name_list(group: h5py.Group, key: str) -> list[str] | None:
    """Return a list of names in an attribute, which Keras splits into ``key0``, ``key1``, ... when it is long."""
    if key in group.attrs:
        parts = [group.attrs[key]]
    else:
        numbered = sorted((name for name in group.attrs if re.fullmatch(rf"{key}\d+", name)), key=_by_number)
        parts = [group.attrs[name] for name in numbered]
    return [_text(name) for part in parts for name in np.atleast_1d(part).tolist()] if parts else None


def _by_number(name: str) -> list[str | int]:
    """Return a sorting key that puts conv2d_10 after conv2d_9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _description(root: h5py.File) -> list[dict] | None:
    if "model_config" not in root.attrs:
        return None
    config = json.loads(_text(root.attrs["model_config"]))["config"]
    return [dict(layer) for layer in (config["layers"] if isinstance(config, dict) else config)]


@cache
def _networks() -> dict[tuple[str, int], dict[str, tuple[int, ...]]]:
    """Kernel shapes of the networks that exist in Keras: (model_name, resolution) -> {PyTorch layer: Keras shape}."""
    networks = {}
    for model_name in (name for name in models_htable if "241002" in name):
        for resolution in RESOLUTIONS:
            with torch.device("meta"):
                state = build_model(model_name, resolution).state_dict()
            kernels = {name.removesuffix(".weight"): w.shape for name, w in state.items() if name.endswith(".weight")}
            networks[model_name, resolution] = {
                name: (*shape[2:], *shape[1::-1]) for name, shape in kernels.items()
            }  # (out, in, height, width) -> (height, width, in, out)
    return networks


def find_network(keras: KerasModel, resolution: int | None = None) -> tuple[str, int]:
    """Find the network with the weights and, for a whole model, the layers of a Keras model.

    Parameters
    ----------
    keras : KerasModel
        An open file.
    resolution : int, optional
        Expected resolution; required where several fit (weights of a ``_GAP`` network).

    Returns
    -------
    model_name : str
    resolution : int

    Raises
    ------
    InputError
        If no network fits (the message says which were tried and what differs), or several do.
    """
    have = Counter(layer.shapes for layer in keras.layers)
    wanted = {key: Counter((k, k[-1:]) for k in kernels.values()) for key, kernels in _networks().items()}
    fits = [key for key, shapes in wanted.items() if shapes == have]
    if not fits:
        nearest = max(wanted, key=lambda key: (have & wanted[key]).total())
        tried = ", ".join(dict.fromkeys(name for name, _ in wanted))
        raise InputError(
            f"{keras.path} has the layers {_listed(have) or 'none'}, which fit no network (tried {tried} at 256, 128, "
            f"64, 32); compared with the nearest, {nearest[0]} at {nearest[1]}, "
            f"{_listed(wanted[nearest] - have) or 'nothing'} is missing and "
            f"{_listed(have - wanted[nearest]) or 'nothing'} is in excess"
        )
    if keras.description is not None:
        fits = _fitting_description(keras, fits)
    if resolution is not None and resolution not in (size for _, size in fits):
        raise InputError(f"--resolution must be {fits[0][1]} for {keras.path} ({fits[0][0]}), got {resolution}")
    fits = [(name, size) for name, size in fits if resolution in (None, size)]
    # The dropout variant has the same weights: it is chosen only if the file has a dropout layer.
    has_dropout = any("Dropout" in layer["class_name"] for layer in keras.description or [])
    fits = [fit for fit in fits if fit[0].endswith("_dropout") == has_dropout] or fits
    if len(fits) > 1:
        sizes = ", ".join(str(size) for _, size in fits)
        raise InputError(f"{keras.path} fits {fits[0][0]} at {sizes}: choose one with --resolution")
    return fits[0]


def _listed(shapes: Counter) -> str:
    kinds = {2: "Dense", 4: "Conv2D"}
    return ", ".join(f"{kinds[len(kernel)]} {kernel} + {bias}" for kernel, bias in shapes.elements())


def _fitting_description(keras: KerasModel, fits: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the networks that agree with the model_config of a whole model; raise InputError if none does."""
    assert keras.description is not None
    steps: list[tuple] = []
    input_shapes: set[tuple] = set()
    try:
        for layer in keras.description:
            kind, config = layer["class_name"], dict(layer["config"])
            shape = config.get("batch_shape") or config.get("batch_input_shape")
            if shape:
                input_shapes.add(tuple(shape[1:]))
            if config.get("data_format") == "channels_first":
                raise InputError(
                    f"{keras.path}: data_format of {config['name']} must be channels_last, got channels_first"
                )
            if kind == "Activation" and steps and steps[-1][2] == "linear":
                steps[-1] = (*steps[-1][:2], config["activation"])
            elif kind not in WITHOUT_EFFECT:
                for key, value in SETTINGS.get(kind, {}).items():
                    if config.get(key) not in (None, value):
                        name = config["name"]
                        raise InputError(f"{keras.path}: {key} of {name} must be {value}, got {config[key]}")
                steps.append((kind, config.get("filters", config.get("units")), config.get("activation")))
    except DAMAGED as error:
        raise InputError(f"{keras.path}: its model_config is damaged ({type(error).__name__}: {error})") from None
    if steps and steps[-1][2] in ("softmax", "linear"):  # the networks of this project return logits
        steps[-1] = (*steps[-1][:2], None)
    expected = _expected_steps(_networks()[fits[0]])
    if steps != expected:
        raise InputError(
            f"{keras.path}: the layers of {fits[0][0]} at {fits[0][1]} must be {_steps_text(expected)}, "
            f"got {_steps_text(steps)}"
        )
    known = [shape for shape in input_shapes if None not in shape]
    matching = [fit for fit in fits if all(shape == (fit[1], fit[1], 1) for shape in known)]
    if not matching:
        name, size = fits[0]
        raise InputError(f"{keras.path}: the images of {name} must have shape ({size}, {size}, 1), got {known[0]}")
    return matching


def _expected_steps(kernels: dict[str, tuple[int, ...]]) -> list[tuple[str, int | None, str | None]]:
    """Return (class, filters or units, activation) of each layer of a network, in Keras' terms."""
    convolutions = [kernel for kernel in kernels.values() if len(kernel) == 4]
    dense = [kernel for kernel in kernels.values() if len(kernel) == 2]
    steps = []
    for kernel in convolutions:
        steps += [("Conv2D", kernel[-1], "relu"), ("MaxPooling2D", None, None)]
    steps[-1] = ("Flatten" if len(dense) == 2 else "GlobalAveragePooling2D", None, None)
    steps += [("Dense", kernel[-1], "relu") for kernel in dense[:-1]]
    return [*steps, ("Dense", dense[-1][-1], None)]


def _steps_text(steps: list[tuple]) -> str:
    return " - ".join(" ".join(str(part) for part in step if part is not None) for step in steps)


def read_state_dict(keras: KerasModel, model_name: str, resolution: int) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Read the weights as the state dict of a network.

    Convolution kernels (height, width, in, out) become (out, in, height, width), dense kernels (in, out) become
    (out, in), and the inputs of the dense layer after Flatten go from (H, W, C) to (C, H, W).

    Returns
    -------
    state_dict : dict of float32 tensors
    mapping : list of str
        One line per tensor: which Keras weight became which PyTorch weight.

    Raises
    ------
    InputError
        If a weight is not finite, damaged, compressed, or stored outside the file.
    """
    kernels = _networks()[model_name, resolution]
    channels = [shape[-1] for shape in kernels.values() if len(shape) == 4][-1]
    by_shape = {layer.kernel.shape: layer for layer in keras.layers}
    datasets = [dataset for layer in keras.layers for dataset in (layer.kernel, layer.bias)]
    for dataset in datasets:
        _check_storage(keras.path, dataset)
    state_dict, mapping = {}, []
    for name, shape in kernels.items():
        layer, note = by_shape[shape], ""
        kernel = _read(keras.path, layer.kernel)
        if len(shape) == 4:
            kernel = kernel.transpose(3, 2, 0, 1)
        elif name == "fc1":
            size = round((shape[0] / channels) ** 0.5)
            kernel = kernel.reshape(size, size, channels, -1).transpose(3, 2, 0, 1).reshape(shape[1], shape[0])
            note = f", inputs reordered from {(size, size, channels)} to {(channels, size, size)}"
        else:
            kernel = kernel.T
        state_dict[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
        state_dict[f"{name}.bias"] = torch.from_numpy(_read(keras.path, layer.bias))
        for kind, dataset in (("weight", layer.kernel), ("bias", layer.bias)):
            new = f"{name}.{kind} {tuple(state_dict[f'{name}.{kind}'].shape)}"
            mapping.append(f"{layer.name} {dataset.shape} -> {new}{note if kind == 'weight' else ''}")
    return state_dict, mapping


def _check_storage(path: Path, dataset: h5py.Dataset) -> None:
    storage = dataset.id.get_create_plist()
    if dataset.is_virtual or storage.get_external_count():
        raise InputError(f"{path}: {dataset.name} must be stored in this file, got data in another")
    if storage.get_nfilters():
        raise InputError(f"{path}: {dataset.name} must not be compressed; `h5repack -f NONE` removes the compression")
    if dataset.dtype.kind != "f":
        raise InputError(f"{path}: the dtype of {dataset.name} must be a float, got {dataset.dtype}")
    if not dataset.id.get_storage_size():
        raise InputError(f"{path}: {dataset.name} has no data")


def _read(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    values = np.empty(dataset.shape, dtype=np.float32)
    try:
        dataset.read_direct(values)
    except DAMAGED as error:
        raise InputError(f"{path}: {dataset.name} cannot be read ({error})") from None
    if not np.isfinite(values).all():
        raise InputError(f"{path}: the values of {dataset.name} must be finite, got NaN or infinity")
    return values
