"""Weights of every Keras layout give the same network; files with other content are refused and nothing is written."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from single_pulse_classifier_training.checkpoint import load_checkpoint
from tests.single_pulse_classifier_training.keras_models import (
    NAME,
    keras,
    keras_softmax,
    keras_softmax_of,
    make_images,
    make_keras,
    refused,
    run,
    torch_softmax,
    write_keras2,
    write_layout,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own

PARAMETERS = {
    "1": {256: 260_113_570, 128: 15_745_618, 64: 7_373_778, 32: 3_212_450},
    "2": {256: 121_938_098, 128: 6_896_690, 64: 1_391_666, 32: 827_570},
    "3": {256: 9_985_926, 128: 1_927_002, 64: 338_342, 32: 13_914},
}
LAYOUTS = ("keras3_whole", "keras3_weights", "keras2_whole", "keras2_weights", "keras2_12_weights")


def assert_converts(folder, variant, resolution, layout, n=24):
    (path,) = run(write_layout(folder, make_keras(variant, resolution), layout), "-o", folder / "new.pth")
    outputs = keras_softmax_of(variant, resolution, n)
    difference = np.abs(torch_softmax(path, make_images(resolution, n)) - outputs).max()
    assert difference < 1e-5
    checkpoint = load_checkpoint(path, "cpu")
    assert (checkpoint.model_name, checkpoint.resolution) == (NAME + variant, resolution)
    assert checkpoint.normaliser == "minmax" and checkpoint.class_names == ["Artefact", "Pulse"]
    assert sum(p.numel() for p in checkpoint.model.parameters()) == PARAMETERS[variant][resolution]
    for file in folder.iterdir():
        file.unlink()  # up to 2 GB


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("resolution", [64, 32])
@pytest.mark.parametrize("variant", ["1", "2", "3"])
def test_softmax_equals_keras(tmp_path, variant, resolution, layout):
    assert_converts(tmp_path, variant, resolution, layout)


def test_softmax_equals_keras_at_256(tmp_path):
    assert_converts(tmp_path, "3", 256, "keras3_whole", n=8)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["keras3_whole", "keras3_weights"])
@pytest.mark.parametrize(("variant", "resolution"), [("1", 128), ("2", 128), ("3", 128), ("2", 256), ("1", 256)])
def test_softmax_equals_keras_large(tmp_path, variant, resolution, layout):
    assert_converts(tmp_path, variant, resolution, layout, n=8)


@pytest.mark.parametrize("variant", ["3_dropout", "3_GAP"])
def test_later_variants_are_identified_in_a_whole_model(tmp_path, variant):
    model, images = make_keras(variant, 128), make_images(128, 8)
    model.save(tmp_path / "old.h5")
    (path,) = run(tmp_path / "old.h5")
    assert load_checkpoint(path, "cpu").model_name == NAME + variant
    assert load_checkpoint(path, "cpu").resolution == 128
    assert np.abs(torch_softmax(path, images) - keras_softmax(model, images)).max() < 1e-5


def test_weights_that_fit_two_resolutions_need_the_option(tmp_path, monkeypatch, capsys):
    path = tmp_path / "old.weights.h5"
    make_keras("3_GAP", 32).save_weights(path)
    assert "128, 32" in refused(monkeypatch, capsys, path)
    (new,) = run(path, "--resolution", 32)
    assert load_checkpoint(new, "cpu").resolution == 32


@pytest.mark.parametrize("layout", ["keras2_whole", "keras2_weights", "keras2_12_weights"])
@pytest.mark.parametrize(
    "options",
    [
        {"names": ["conv2d_9", "conv2d_10", "conv2d_11", "dense_9", "dense_10"]},
        {"names": ["z", "y", "x", "b", "a"], "as_bytes": True},
        {"reverse": True, "as_bytes": True},
        {"split": True},
    ],
)
def test_names_their_type_and_their_order_do_not_matter(tmp_path, layout, options):
    model, images = make_keras("3", 32), make_images(32)
    (path,) = run(write_keras2(tmp_path / "old.h5", model, layout, **options))
    assert np.abs(torch_softmax(path, images) - keras_softmax_of("3", 32, len(images))).max() < 1e-5


@pytest.mark.parametrize("layout", ["keras3_whole", "keras3_weights"])
def test_second_model_of_a_process(tmp_path, layout):
    make_keras.__wrapped__()
    model, images = make_keras.__wrapped__(), make_images(32)
    assert model.layers[0].name not in ("conv2d", "conv2d_1", "conv2d_2")
    (path,) = run(write_layout(tmp_path, model, layout))
    assert np.abs(torch_softmax(path, images) - keras_softmax(model, images)).max() < 1e-5


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file["model_weights"], file)


def replace(name, **how):
    def change(weights, file):
        values = weights[name][:]
        del weights[name]
        weights.create_dataset(name, data=how.get("data", values), **{k: v for k, v in how.items() if k != "data"})

    return change


def external_storage(weights, file):
    name = "conv2d/conv2d/bias:0"
    del weights[name]
    outside = Path(file.filename).with_name("outside.raw")
    outside.write_bytes(bytes(32))
    weights.create_dataset(name, (8,), "f4", external=[(str(outside), 0, 32)])


def virtual_dataset(weights, file):
    outside = Path(file.filename).with_name("outside.h5")
    with h5py.File(outside, "w") as other:
        other["bias"] = np.zeros(8, dtype="f4")
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource(str(outside), "bias", (8,))
    del weights["conv2d/conv2d/bias:0"]
    weights.create_virtual_dataset("conv2d/conv2d/bias:0", layout)


def link(target):
    def change(weights, file):
        if isinstance(target, h5py.ExternalLink):
            with h5py.File(Path(file.filename).with_name(target.filename), "w") as other:
                other["bias"] = np.zeros(8, dtype="f4")
        del weights["conv2d/conv2d/bias:0"]
        weights["conv2d/conv2d/bias:0"] = target

    return change


def never_written(weights, file):
    del weights["dense/dense/kernel:0"]
    weights.create_dataset("dense/dense/kernel:0", (10**9, 10**6), "f4")


def configured(change):
    def edit_config(weights, file):
        config = json.loads(file.attrs["model_config"])
        change(config["config"]["layers"])
        file.attrs["model_config"] = json.dumps(config)

    return edit_config


def first(kind, **settings):
    return configured(lambda layers: next(x for x in layers if x["class_name"] == kind)["config"].update(settings))


NOT_A_NUMBER = np.full((5, 5, 1, 8), np.nan, dtype=np.float32)
BAD_FILES = {
    "layer missing": (lambda weights, file: weights.__delitem__("conv2d_1"), "model_weights/conv2d_1 is missing"),
    "layer not listed": (
        lambda weights, file: weights.attrs.__setitem__("layer_names", ["conv2d", "conv2d_2", "dense", "dense_1"]),
        "Conv2D (5, 5, 8, 12) + (12,) is missing",
    ),
    "bias missing": (lambda weights, file: weights.__delitem__("dense/dense/bias:0"), "dense/bias:0 is missing"),
    "wrong shape": (replace("dense/dense/kernel:0", data=np.zeros((13, 512), "f4")), "Dense (13, 512)"),
    "NaN": (replace("conv2d/conv2d/kernel:0", data=NOT_A_NUMBER), "must be finite"),
    "beyond float32": (replace("conv2d/conv2d/bias:0", data=np.full(8, 1e300)), "must be finite"),
    "integers": (replace("conv2d/conv2d/bias:0", data=np.zeros(8, "i4")), "must be a float, got int32"),
    "compressed": (replace("dense/dense/kernel:0", compression="gzip"), "compressed"),
    "external storage": (external_storage, "must be stored in this file"),
    "virtual dataset": (virtual_dataset, "must be stored in this file"),
    "external link": (link(h5py.ExternalLink("outside.h5", "/bias")), "got a link"),
    "soft link": (link(h5py.SoftLink("/model_weights/conv2d_1/conv2d_1/bias:0")), "got a link"),
    "absurd size": (never_written, "Dense (1000000000, 1000000)"),
    "channels_first": (first("Conv2D", data_format="channels_first"), "channels_first"),
    "other padding": (first("Conv2D", padding="same"), "must be valid, got same"),
    "other activation": (first("Conv2D", activation="tanh"), "Conv2D 8 tanh"),
    "other pooling": (
        configured(lambda layers: layers[2].update(class_name="AveragePooling2D")),
        "AveragePooling2D",
    ),
    "scaled input": (
        configured(lambda layers: layers.insert(1, {"class_name": "Rescaling", "config": {"name": "r"}})),
        "Rescaling",
    ),
    "other input": (first("InputLayer", batch_input_shape=[None, 64, 64, 1]), "(64, 64, 1)"),
    "config damaged": (lambda weights, file: file.attrs.__setitem__("model_config", "{"), "damaged"),
    "no Keras model": (lambda weights, file: file.__delitem__("model_weights"), "a Keras model must have"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_weights_are_refused_and_nothing_is_written(tmp_path, monkeypatch, capsys, case):
    change, reason = BAD_FILES[case]
    path = write_keras2(tmp_path / "old.h5", make_keras())
    edit(path, change)
    before = sorted(tmp_path.iterdir())
    assert reason in refused(monkeypatch, capsys, path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda whole: b"not a model", "is not an HDF5 file"),
        (lambda whole: b"", "is not an HDF5 file"),
        (lambda whole: whole[: len(whole) // 2], "truncated or damaged"),
        (lambda whole: whole[:-1], "truncated or damaged"),
        (lambda whole: whole[:100], "truncated or damaged"),
    ],
)
def test_an_incomplete_hdf5_file_is_refused(tmp_path, monkeypatch, capsys, content, reason):
    path = write_keras2(tmp_path / "old.h5", make_keras())
    path.write_bytes(content(path.read_bytes()))
    assert reason in refused(monkeypatch, capsys, path)
    assert list(tmp_path.iterdir()) == [path]


def test_another_architecture_is_refused_with_what_was_tried(tmp_path, monkeypatch, capsys):
    layers = [keras.Input((32, 32, 1)), keras.layers.Conv2D(7, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    keras.Sequential(layers).save(tmp_path / "old.h5")
    message = refused(monkeypatch, capsys, tmp_path / "old.h5")
    assert "Conv2D (3, 3, 1, 7)" in message
    assert all(NAME + variant in message for variant in ("1", "2", "3", "3_dropout", "3_GAP"))
    assert list(tmp_path.iterdir()) == [tmp_path / "old.h5"]
