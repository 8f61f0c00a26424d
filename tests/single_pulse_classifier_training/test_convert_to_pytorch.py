"""Keras models become checkpoints that compute the same; what is not such a model is refused and nothing written.

Keras 3, on its torch backend, makes the models, both Keras 3 layouts and the outputs that are compared with. The
layouts of Keras 2 are written with h5py.
"""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from pipeline_classifier.config import load_pipeline_config
from single_pulse_classifier_training import convert_to_pytorch
from single_pulse_classifier_training.checkpoint import load_checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import TrainingConfig, load_config
from single_pulse_classifier_training.training_models import models_htable

os.environ["KERAS_BACKEND"] = "torch"
keras = pytest.importorskip("keras")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own

ROOT = Path(__file__).resolve().parents[2]
NAME = "DM_time_binary_classificator_241002_"
# resolution: (filters of the 5x5 convolutions, units of the dense layer)
ARCHITECTURES = {
    "1": {256: ([16], 256), 128: ([8], 128), 64: ([8], 256), 32: ([16], 256)},
    "2": {256: ([16, 16], 512), 128: ([16, 16], 128), 64: ([16, 16], 128), 32: ([16, 16], 512)},
    "3": {256: ([8, 8, 12], 256), 128: ([8, 12, 12], 256), 64: ([8, 12, 8], 512), 32: ([8, 12, 12], 512)},
}
PARAMETERS = {
    "1": {256: 260_113_570, 128: 15_745_618, 64: 7_373_778, 32: 3_212_450},
    "2": {256: 121_938_098, 128: 6_896_690, 64: 1_391_666, 32: 827_570},
    "3": {256: 9_985_926, 128: 1_927_002, 64: 338_342, 32: 13_914},
}
LAYOUTS = ("keras3_whole", "keras3_weights", "keras2_whole", "keras2_weights", "keras2_12_weights")
ORIGINAL_PIPELINE_CONFIG = {
    "path_to_filterbanks": "./",
    "name_of_the_filterbank": "B0531+21_59000_48386.fil",
    "n_spectra": 50060,
    "key_input": "1111",
    "key_output": "2222",
    "path_to_a_transientx_config": "dbdedispdb_config.json",
    "path_to_pulsarx_singularity_image": "pulsarx.sif",
    "path_to_tensorflow_psrdada_singularity_image": "tensorflow.sif",
    "path_to_models": "./models/",
    "name_of_the_model": "old.h5",
    "threads_for_transientx": 48,
    "input_buffer_size": 65536,
    "use_multiprocessing": False,
    "workers_for_tensorflow": 4,
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
    """The names that Keras gives to the layers of the first model of a process."""
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
    """The sentence with which the command line refuses; it must be one line, with exit code 2 and no result."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["convert_to_pytorch.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        convert_to_pytorch.main()
    output = capsys.readouterr()
    message = output.err.strip().splitlines()[-1]
    assert stop.value.code == 2 and output.out == "" and "error: " in message
    assert "Traceback" not in output.err
    return message


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


def test_a_converted_model_is_evaluated_and_used_like_any_other(tmp_path):
    """Its temperature and thresholds are stored, and run_inference gives the probabilities that Keras gives."""
    model, images = make_keras("3", 32), make_images(32, 200)
    model.save(tmp_path / "old.h5")
    (path,) = run(tmp_path / "old.h5")
    odds = keras_softmax(model, images)[:, 1]
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", np.random.default_rng(0).random(200) < odds)
    config = {"path_to_files": "./", "resolution": 32, "model_name": NAME + "3", "labels": "labels.npy",
              "files_by_resolution": {"32": "images.npy"}, "tsamp_s": 0.01}  # fmt: skip
    (tmp_path / "training.json").write_text(json.dumps(config))
    evaluation = [ROOT / "single_pulse_classifier_training" / "evaluate.py", tmp_path / "training.json", path]
    subprocess.run([sys.executable, *evaluation], check=True, capture_output=True)
    checkpoint = load_checkpoint(path, "cpu")
    assert checkpoint.thresholds and checkpoint.metrics["evaluation"]["images"] > 20

    pipeline = {"path_to_models": "./", "name_of_the_model": path.name, "model_name": NAME + "3", "resolution": 32}
    (tmp_path / "pipeline.json").write_text(json.dumps(pipeline))
    inference = [ROOT / "pipeline_classifier" / "run_inference.py", "-c", tmp_path / "pipeline.json", "--output-dir",
                 tmp_path, "--no-plots", "--pages", tmp_path / "images.npy"]  # fmt: skip
    subprocess.run([sys.executable, *inference], check=True, capture_output=True)
    calibrated = 1 / (1 + ((1 - odds) / odds) ** (1 / checkpoint.temperature))
    assert np.abs(np.load(tmp_path / "probabilities_images.npy") - calibrated).max() < 1e-5


@pytest.mark.parametrize("variant", ["3_dropout", "3_GAP"])
def test_later_variants_are_told_apart_in_a_whole_model(tmp_path, variant):
    model, images = make_keras(variant, 128), make_images(128, 8)
    model.save(tmp_path / "old.h5")
    (path,) = run(tmp_path / "old.h5")
    assert load_checkpoint(path, "cpu").model_name == NAME + variant
    assert load_checkpoint(path, "cpu").resolution == 128
    assert np.abs(torch_softmax(path, images) - keras_softmax(model, images)).max() < 1e-5


def test_weights_that_fit_two_resolutions_need_to_be_told(tmp_path, monkeypatch, capsys):
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
    "NaN": (replace("conv2d/conv2d/kernel:0", data=NOT_A_NUMBER), "not finite"),
    "beyond float32": (replace("conv2d/conv2d/bias:0", data=np.full(8, 1e300)), "not finite"),
    "integers": (replace("conv2d/conv2d/bias:0", data=np.zeros(8, "i4")), "dtype int32"),
    "compressed": (replace("dense/dense/kernel:0", compression="gzip"), "compressed"),
    "external storage": (external_storage, "stored in another file"),
    "virtual dataset": (virtual_dataset, "stored in another file"),
    "external link": (link(h5py.ExternalLink("outside.h5", "/bias")), "link to elsewhere"),
    "soft link": (link(h5py.SoftLink("/model_weights/conv2d_1/conv2d_1/bias:0")), "link to elsewhere"),
    "absurd size": (never_written, "Dense (1000000000, 1000000)"),
    "channels_first": (first("Conv2D", data_format="channels_first"), "channels_first"),
    "other padding": (first("Conv2D", padding="same"), "padding same"),
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
    "no Keras model": (lambda weights, file: file.__delitem__("model_weights"), "no Keras model"),
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
def test_what_is_no_whole_hdf5_file_is_refused(tmp_path, monkeypatch, capsys, content, reason):
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


def test_folder_is_converted_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    old = tmp_path / "old"
    (old / "deeper").mkdir(parents=True)
    write_keras2(old / "a.h5", make_keras(seed=1))
    make_keras("2", 32).save_weights(old / "deeper" / "b.weights.h5")
    (old / "z.h5").write_text("no model")
    assert "z.h5" in refused(monkeypatch, capsys, old, "-o", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (old / "z.h5").unlink()
    written = run(old, "-o", tmp_path / "new")
    assert written == [tmp_path / "new" / "a.pth", tmp_path / "new" / "deeper" / "b.weights.pth"]
    assert [load_checkpoint(path, "cpu").model_name for path in written] == [NAME + "3", NAME + "2"]
    before = written[0].read_bytes()
    assert "--overwrite" in refused(monkeypatch, capsys, old, "-o", tmp_path / "new")
    assert written[0].read_bytes() == before
    assert run(old, "-o", tmp_path / "new", "--overwrite") == written


def test_verify_compares_with_keras(tmp_path, monkeypatch, capsys):
    model, images = make_keras(), make_images(32)
    path = write_keras2(tmp_path / "old.h5", model)
    outputs = keras_softmax(model, images)
    np.save(tmp_path / "pages.npy", images[..., None])
    np.save(tmp_path / "outputs.npy", outputs)
    np.save(tmp_path / "logits.npy", np.log(outputs) + 3)
    np.save(tmp_path / "wrong.npy", outputs[::-1])
    wrong = ("--verify", tmp_path / "pages.npy", tmp_path / "wrong.npy")
    assert "nothing was written" in refused(monkeypatch, capsys, path, *wrong)
    assert not (tmp_path / "old.pth").exists()
    run(path, "--verify", tmp_path / "pages.npy", tmp_path / "outputs.npy")
    printed = capsys.readouterr().out
    assert "same class for 24 of 24 images" in printed
    assert "dense" in printed and "fc1.weight (512, 12), inputs reordered" in printed
    run(path, "--overwrite", "--verify", tmp_path / "pages.npy", tmp_path / "logits.npy")


def test_every_template_loads_and_follows_its_seed(tmp_path):
    written = run("--all", "--resolution", 32, "-o", tmp_path)
    assert [load_checkpoint(path, "cpu").model_name for path in written] == list(models_htable)
    (same,) = run("--template", NAME + "3", "--resolution", 32, "-o", tmp_path / "same.pth")
    (other,) = run("--template", NAME + "3", "--resolution", 32, "--seed", 1, "-o", tmp_path / "other.pth")
    images = make_images(32, 4)
    template = torch_softmax(tmp_path / f"{NAME}3_32_template.pth", images)
    assert np.array_equal(template, torch_softmax(same, images))
    assert not np.array_equal(template, torch_softmax(other, images))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give one of"),
        (["--template", "no_such_model", "--resolution", "32"], "no_such_model"),
        (["--template", NAME + "1"], "--resolution"),
        (["--all", "--resolution", "33"], "33"),
        (["no_such_file.h5"], "does not exist"),
        (["--config", "no_such_config.json"], "does not exist"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    assert reason in refused(monkeypatch, capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_original_training_config_needs_no_change():
    config = load_config(ROOT / "single_pulse_classifier_training" / "config.json", TrainingConfig)
    assert (config.learning_rate, config.num_epochs, config.patience) == (1e-4, 100, 5)


def test_old_pipeline_config_and_model_end_to_end(tmp_path):
    """From the old config and the Keras model to predictions that are Keras' own, by the command lines."""
    model, images = make_keras(resolution=64), make_images(64)
    (tmp_path / "models").mkdir()
    model.save(tmp_path / "models" / "old.h5")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(ORIGINAL_PIPELINE_CONFIG))
    (tmp_path / "dbdedispdb_config.json").write_text("{}")
    with pytest.raises(InputError) as message:
        load_pipeline_config(config)
    for part in ('"name_of_the_model": "old.h5" -> "old.pth"', "convert_to_pytorch.py", '"workers_for_pytorch": 4'):
        assert part in str(message.value)

    np.save(tmp_path / "pages.npy", images)
    convert_script = ROOT / "single_pulse_classifier_training" / "convert_to_pytorch.py"
    subprocess.run([sys.executable, convert_script, "--config", config], check=True, cwd="/")
    migrated = tmp_path / "config_pytorch.json"
    changed = {"name_of_the_model": "old.pth", "model_name": NAME + "3", "resolution": 64, "workers_for_pytorch": 4}
    expected = {k: v for k, v in (ORIGINAL_PIPELINE_CONFIG | changed).items() if k != "workers_for_tensorflow"}
    assert json.loads(migrated.read_text()) == expected
    assert json.loads(config.read_text()) == ORIGINAL_PIPELINE_CONFIG

    inference = ROOT / "pipeline_classifier" / "run_inference.py"
    options = ["--pages", tmp_path / "pages.npy", "--output-dir", tmp_path, "--device", "cpu", "--no-plots"]
    subprocess.run([sys.executable, inference, "-c", migrated, *options], check=True, cwd="/", capture_output=True)
    outputs = keras_softmax(model, images)
    probabilities = np.load(tmp_path / "probabilities_pages.npy")[: len(images)]
    assert np.abs(probabilities - outputs[:, 1]).max() < 1e-5
    predictions = np.load(tmp_path / "predictions_pages.npy")
    assert predictions.shape == (50060,) and (predictions[len(images) :] == -1).all()  # n_spectra; pages not reached
    predictions = predictions[: len(images)]
    assert np.array_equal(predictions, outputs.argmax(1)) and len(np.unique(predictions)) == 2


def test_config_that_needs_no_change_or_lacks_its_model(tmp_path, monkeypatch, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(ORIGINAL_PIPELINE_CONFIG))
    assert "path_to_models './models/'" in refused(monkeypatch, capsys, "--config", config)
    config.write_text('{"name_of_the_model": "default.pth"}')
    assert "needs no change" in refused(monkeypatch, capsys, "--config", config)
    assert list(tmp_path.iterdir()) == [config]
