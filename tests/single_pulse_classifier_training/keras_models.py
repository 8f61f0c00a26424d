"""Keras models of the original, in every layout of their files, and the outputs to compare with.

Keras 3 with its torch backend makes the models, both Keras 3 layouts and the outputs. The layouts of Keras 2 are written
with h5py.
"""

import json
import os
import sys
from functools import lru_cache

import h5py
import numpy as np
import pytest
import torch

from single_pulse_classifier_training import convert_to_pytorch
from single_pulse_classifier_training.checkpoint import load_checkpoint

os.environ["KERAS_BACKEND"] = "torch"
keras = pytest.importorskip("keras")

NAME = "DM_time_binary_classificator_241002_"
# resolution: (filters of the 5x5 convolutions, units of the dense layer)
ARCHITECTURES = {
    "1": {256: ([16], 256), 128: ([8], 128), 64: ([8], 256), 32: ([16], 256)},
    "2": {256: ([16, 16], 512), 128: ([16, 16], 128), 64: ([16, 16], 128), 32: ([16, 16], 512)},
    "3": {256: ([8, 8, 12], 256), 128: ([8, 12, 12], 256), 64: ([8, 12, 8], 512), 32: ([8, 12, 12], 512)},
}


@lru_cache(maxsize=2)
def make_keras(variant="3", resolution=32, seed=0):
    """A Keras model with random weights and biases whose softmax is not saturated on images of 0..255."""
    kind = keras.layers
    filters, units = ARCHITECTURES[variant[0]][resolution]
    layers = [keras.Input((resolution, resolution, 1))]
    for i, n in enumerate(filters):
        layers += [kind.MaxPooling2D(2)] if i else []
        layers += [kind.Conv2D(n, 5, activation="relu")]
    if variant.endswith("GAP"):
        layers += [kind.GlobalAveragePooling2D()]
    else:
        layers += [kind.Flatten(), kind.Dense(units, activation="relu")]
    layers += [kind.Dropout(0.4)] if variant.endswith("dropout") else []
    model = keras.Sequential([*layers, kind.Dense(2, activation="softmax")])
    generator = np.random.default_rng(seed)
    for layer in (layer for layer in model.layers if layer.weights):
        kernel, bias = layer.get_weights()
        scale = np.float32(1.5 / np.sqrt(kernel.size // kernel.shape[-1]))
        kernel = generator.standard_normal(kernel.shape, dtype=np.float32) * scale
        kernel /= 128 if layer is model.layers[0] else 1
        layer.set_weights([kernel, generator.normal(0, 0.2, bias.shape).astype(np.float32)])
    outputs = predict(model, make_images(resolution, 8))
    odds = np.log(outputs[:, 1] / outputs[:, 0])
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel / odds.std(), (bias - [0, odds.mean()]) / odds.std()])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    return model


def first_names(model):
    """Return the names that Keras gives to the layers of the first model of a process."""
    convolutions = sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers)
    return ["conv2d", "conv2d_1", "conv2d_2"][:convolutions] + ["dense", "dense_1"]


def keras2_config(model):
    config = json.loads(model.to_json())
    for layer in config["config"]["layers"]:
        layer["config"]["dtype"] = "float32"
        if "batch_shape" in layer["config"]:
            layer["config"]["batch_input_shape"] = layer["config"].pop("batch_shape")
    return {"class_name": "Sequential", "config": config["config"]}


def write_keras2(path, model, layout="keras2_whole", names=None, as_bytes=False, reverse=False, split=False):
    encode = (lambda text: text.encode()) if as_bytes else (lambda text: text)
    names = names or first_names(model)
    layers = zip(names, (layer.get_weights() for layer in model.layers if layer.weights), strict=True)
    with h5py.File(path, "w") as file:
        if layout == "keras2_12_weights":
            for name, weights in layers:
                group = file.create_group(f"_layer_checkpoint_dependencies/{name}/vars")
                for i, values in enumerate(weights):
                    group[str(i)] = values
            file.create_group("_layer_checkpoint_dependencies/flatten/vars")
            return path
        top = file
        if layout == "keras2_whole":
            top = file.create_group("model_weights")
            file.attrs["keras_version"] = file.attrs["backend"] = encode("2.15.0")
            file.attrs["model_config"] = encode(json.dumps(keras2_config(model)))
        for name, weights in layers:
            group = top.create_group(name)
            labels = [f"{name}/{kind}:0" for kind in ("kernel", "bias")]
            group.attrs["weight_names"] = np.array(labels, dtype="S") if as_bytes else labels
            for label, values in zip(labels, weights, strict=True):
                group[label] = values
        top.create_group("flatten").attrs["weight_names"] = np.array([], dtype=np.float64)
        listed = ["flatten", *names][:: -1 if reverse else 1]
        parts = {"layer_names0": listed[:2], "layer_names1": listed[2:]} if split else {"layer_names": listed}
        for key, part in parts.items():
            top.attrs[key] = np.array(part, dtype="S") if as_bytes else part
    return path


def write_layout(folder, model, layout):
    if layout == "keras3_whole":
        model.save(folder / "old.h5")
        return folder / "old.h5"
    if layout == "keras3_weights":
        model.save_weights(folder / "old.weights.h5")
        return folder / "old.weights.h5"
    return write_keras2(folder / "old.h5", model, layout)


def make_images(resolution, n=24):
    generator = np.random.default_rng(1)
    contrast = generator.uniform(50, 255, (n, 1, 1))
    return (generator.uniform(size=(n, resolution, resolution)) * contrast).astype(np.uint8)


@lru_cache(maxsize=2)
def keras_softmax_of(variant, resolution, n):
    return keras_softmax(make_keras(variant, resolution), make_images(resolution, n))


def predict(model, images):
    return model.predict(images[..., None].astype(np.float32), batch_size=16, verbose=0)


def keras_softmax(model, images):
    outputs = predict(model, images)
    # Where the softmax is 0 or 1 the comparison would show nothing.
    assert outputs.std() > 0.1 and 1e-3 < outputs.min() < outputs.max() < 0.999
    return outputs


def torch_softmax(path, images):
    model = load_checkpoint(path, "cpu").model
    with torch.inference_mode():
        return model(torch.from_numpy(images[:, None].astype(np.float32))).softmax(1).numpy()


def run(*arguments):
    return convert_to_pytorch.run(convert_to_pytorch.get_parser().parse_args([str(a) for a in arguments]))


def refused(monkeypatch, capsys, *arguments):
    """Return the message of a command line that must fail with one line, exit code 2 and no output."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["convert_to_pytorch.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        convert_to_pytorch.main()
    output = capsys.readouterr()
    message = output.err.strip().splitlines()[-1]
    assert stop.value.code == 2 and output.out == "" and "error: " in message
    assert "Traceback" not in output.err
    return message
