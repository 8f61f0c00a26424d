"""The command line of convert_to_pytorch.py: files, folders, configs, templates, and the use of a converted model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier.config import load_pipeline_config
from single_pulse_classifier_training.checkpoint import load_checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import TrainingConfig, load_config
from single_pulse_classifier_training.training_models import models_htable
from tests.single_pulse_classifier_training.keras_models import (
    NAME,
    keras_softmax,
    make_images,
    make_keras,
    refused,
    run,
    torch_softmax,
    write_keras2,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own

ROOT = Path(__file__).resolve().parents[2]
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
def test_errors_on_the_command_line(tmp_path, monkeypatch, capsys, arguments, reason):
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
    assert "config.json: the Keras model" in refused(monkeypatch, capsys, "--config", config)
    config.write_text(json.dumps(ORIGINAL_PIPELINE_CONFIG | {"path_to_models": "~nosuchuser"}))
    assert "'path_to_models' must begin with the home folder" in refused(monkeypatch, capsys, "--config", config)
    config.write_text('{"name_of_the_model": "a.h5"}')
    assert "the key 'path_to_models' is missing" in refused(monkeypatch, capsys, "--config", config)
    config.write_text('{"name_of_the_model": "a.h5", "workers_for_tensorflow": ' + "[" * 100 + "]" * 100 + "}")
    assert "values must be nested at most 20 deep" in refused(monkeypatch, capsys, "--config", config)
    config.write_text('{"name_of_the_model": "default.pth"}')
    assert "needs no change" in refused(monkeypatch, capsys, "--config", config)
    assert list(tmp_path.iterdir()) == [config]
