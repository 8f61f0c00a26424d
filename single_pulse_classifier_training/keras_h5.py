"""Keras models in .h5 files, read with h5py alone, and the network of this project that each of them is.

Whole models and weights-only files of Keras 2 and Keras 3. Layers are told apart by the shapes of their weights, which
differ within every ``241002`` network: names and their order, which depend on what else a Python process had built,
say nothing. Only hard links inside the file are followed and only plain datasets are read.
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
from single_pulse_classifier_training.training_models import RESOLUTIONS, build_model, models_htable

# What h5py and json raise on a damaged file.
DAMAGED = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError)
# Groups that hold one group per layer, each with its weights in vars/0, vars/1: Keras 3, and Keras 2.12 to 2.15.
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
    """An open Keras file: its layers with weights, convolutions first, and the layers' configs of a whole model."""

    path: Path
    layout: str
    layers: list[KerasLayer]
    description: list[dict] | None


@contextmanager
def open_keras(path: str | Path) -> Iterator[KerasModel]:
    """Open a Keras .h5 file of any layout; nothing but names and shapes is read.

    Raises
    ------
    InputError : no such file, no HDF5 file, damaged, no Keras model, or a weight that is stored elsewhere.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"Keras model {path} does not exist")
    with open(path, "rb") as file:
        if file.read(len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
            hint = ": a .keras file is a zip archive, save it as .h5 in Keras" if path.suffix == ".keras" else ""
            raise InputError(f"{path} is not an HDF5 file{hint}")
    try:
        root = h5py.File(path, "r", locking=False)
    except DAMAGED as error:
        raise InputError(f"{path} is truncated or damaged ({error})") from None
    with root:
        try:
            model = _read_structure(path, root)
        except DAMAGED as error:
            raise InputError(f"{path} is damaged or no Keras model ({error})") from None
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
            raise InputError(f"{path} holds no Keras model: it has neither layer_names nor a group {LAYER_GROUPS[0]}")
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
    # h5py's own "in" follows the link, out of the file if it leads there.
    return isinstance(group, h5py.Group) and group.id.links.exists(name.encode())


def _walk(path: Path, group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """The object at a path below ``group``, reached through hard links only."""
    found = group
    for part in filter(None, name.split("/")):
        if not _has(found, part):
            raise InputError(f"{path}: {group.name.rstrip('/')}/{name} is missing")
        if found.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise InputError(f"{path}: {found.name.rstrip('/')}/{part} is a link to elsewhere, which is not followed")
        found = found[part]
    return found


def _layer(path: Path, name: str, datasets: list[h5py.Dataset]) -> KerasLayer:
    if not all(isinstance(dataset, h5py.Dataset) for dataset in datasets):
        raise InputError(f"{path}: layer {name} holds a group where its weights should be")
    weights = [dataset for dataset in datasets if dataset.dtype.kind != "u"]  # unsigned: Dropout's random state
    kernels = [dataset for dataset in weights if dataset.ndim in (2, 4)]
    biases = [dataset for dataset in weights if dataset.ndim == 1]
    if len(weights) != 2 or len(kernels) != 1 or len(biases) != 1:
        shapes = ", ".join(str(dataset.shape) for dataset in datasets)
        raise InputError(f"{path}: layer {name} has weights {shapes}, not a kernel and a bias of Conv2D or Dense")
    return KerasLayer(name, kernels[0], biases[0])


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _name_list(group: h5py.Group, key: str) -> list[str] | None:
    """A list of names in an attribute, which Keras splits into ``key0``, ``key1``, ... when it is long."""
    if key in group.attrs:
        parts = [group.attrs[key]]
    else:
        numbered = sorted((name for name in group.attrs if re.fullmatch(rf"{key}\d+", name)), key=_by_number)
        parts = [group.attrs[name] for name in numbered]
    return [_text(name) for part in parts for name in np.atleast_1d(part).tolist()] if parts else None


def _by_number(name: str) -> list[str | int]:
    """A sorting key under which conv2d_10 comes after conv2d_9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _description(root: h5py.File) -> list[dict] | None:
    if "model_config" not in root.attrs:
        return None
    config = json.loads(_text(root.attrs["model_config"]))["config"]
    return [dict(layer) for layer in (config["layers"] if isinstance(config, dict) else config)]


@cache
def _networks() -> dict[tuple[str, int], dict[str, tuple[int, ...]]]:
    """Of each network that Keras models can be: (model_name, resolution) -> {PyTorch layer: Keras kernel shape}."""
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
    """The (model_name, resolution) whose weights and, in a whole model, whose layers a Keras model has.

    Parameters
    ----------
    keras : an open file
    resolution : what it must be; needed where several fit (weights of a ``_GAP`` network)

    Raises
    ------
    InputError : none fits (the message says what was tried and what differs), or several do.
    """
    have = Counter(layer.shapes for layer in keras.layers)
    wanted = {key: Counter((k, k[-1:]) for k in kernels.values()) for key, kernels in _networks().items()}
    fits = [key for key, shapes in wanted.items() if shapes == have]
    if not fits:
        nearest = max(wanted, key=lambda key: (have & wanted[key]).total())
        tried = ", ".join(dict.fromkeys(name for name, _ in wanted))
        raise InputError(
            f"{keras.path} has the layers {_listed(have) or 'none'}: no network fits, the nearest is {nearest[0]} at "
            f"{nearest[1]} where {_listed(wanted[nearest] - have) or 'nothing'} is missing and "
            f"{_listed(have - wanted[nearest]) or 'nothing'} is too much (tried {tried} at 256, 128, 64, 32)"
        )
    if keras.description is not None:
        fits = _fitting_description(keras, fits)
    if resolution is not None and resolution not in (side for _, side in fits):
        raise InputError(f"{keras.path} is {fits[0][0]} at {fits[0][1]}, but --resolution {resolution} was given")
    fits = [(name, side) for name, side in fits if resolution in (None, side)]
    # The dropout variant computes the same: it is named only where the file says so.
    has_dropout = any("Dropout" in layer["class_name"] for layer in keras.description or [])
    fits = [fit for fit in fits if fit[0].endswith("_dropout") == has_dropout] or fits
    if len(fits) > 1:
        sides = ", ".join(str(side) for _, side in fits)
        raise InputError(f"{keras.path} may be {fits[0][0]} at {sides}: say which with --resolution")
    return fits[0]


def _listed(shapes: Counter) -> str:
    kinds = {2: "Dense", 4: "Conv2D"}
    return ", ".join(f"{kinds[len(kernel)]} {kernel} + {bias}" for kernel, bias in shapes.elements())


def _fitting_description(keras: KerasModel, fits: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Those of the networks that do what the model_config of a whole model says; InputError if it says otherwise."""
    assert keras.description is not None
    steps: list[tuple] = []
    sides: set[tuple] = set()
    try:
        for layer in keras.description:
            kind, config = layer["class_name"], dict(layer["config"])
            shape = config.get("batch_shape") or config.get("batch_input_shape")
            if shape:
                sides.add(tuple(shape[1:]))
            if config.get("data_format") == "channels_first":
                raise InputError(f"{keras.path} is channels_first ({config['name']}): only channels_last is known")
            if kind == "Activation" and steps and steps[-1][2] == "linear":
                steps[-1] = (*steps[-1][:2], config["activation"])
            elif kind not in WITHOUT_EFFECT:
                for key, value in SETTINGS.get(kind, {}).items():
                    if config.get(key) not in (None, value):
                        raise InputError(f"{keras.path}: {config['name']} has {key} {config[key]}, the network {value}")
                steps.append((kind, config.get("filters", config.get("units")), config.get("activation")))
    except DAMAGED as error:
        raise InputError(f"{keras.path}: its model_config is damaged ({type(error).__name__}: {error})") from None
    if steps and steps[-1][2] in ("softmax", "linear"):  # softmax is dropped: a network here returns logits
        steps[-1] = (*steps[-1][:2], None)
    expected = _expected_steps(_networks()[fits[0]])
    if steps != expected:
        raise InputError(
            f"{keras.path} has the weights of {fits[0][0]} at {fits[0][1]}, but other layers: "
            f"{_steps_text(steps)} in place of {_steps_text(expected)}"
        )
    known = [side for side in sides if None not in side]
    matching = [fit for fit in fits if all(side == (fit[1], fit[1], 1) for side in known)]
    if not matching:
        raise InputError(f"{keras.path} takes images of shape {known[0]}, which {fits[0][0]} at {fits[0][1]} does not")
    return matching


def _expected_steps(kernels: dict[str, tuple[int, ...]]) -> list[tuple[str, int | None, str | None]]:
    """(class, filters or units, activation) of each layer of a network, in Keras' terms."""
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
    state_dict : float32 tensors
    mapping : one line per tensor, what was mapped to what

    Raises
    ------
    InputError : a weight that is not finite, damaged, compressed, or stored outside the file.
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
            side = round((shape[0] / channels) ** 0.5)
            kernel = kernel.reshape(side, side, channels, -1).transpose(3, 2, 0, 1).reshape(shape[1], shape[0])
            note = f", inputs reordered from {(side, side, channels)} to {(channels, side, side)}"
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
        raise InputError(f"{path}: {dataset.name} is stored in another file, which is not opened")
    if storage.get_nfilters():
        raise InputError(f"{path}: {dataset.name} is compressed, which Keras never does: undo it with h5repack -f NONE")
    if dataset.dtype.kind != "f":
        raise InputError(f"{path}: {dataset.name} has dtype {dataset.dtype}, not float32")
    if not dataset.id.get_storage_size():
        raise InputError(f"{path}: {dataset.name} was never written")


def _read(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    values = np.empty(dataset.shape, dtype=np.float32)
    try:
        dataset.read_direct(values)
    except DAMAGED as error:
        raise InputError(f"{path}: {dataset.name} cannot be read ({error})") from None
    if not np.isfinite(values).all():
        raise InputError(f"{path}: {dataset.name} holds values that are not finite numbers")
    return values
