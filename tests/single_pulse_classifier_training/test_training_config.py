"""Training configs: the original's format works, and every error is one sentence."""

import json
import os
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel, ValidationError

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import ConfigFile, TrainingConfig, load_config
from single_pulse_classifier_training.runtime import choose_device, make_output_folder

FOLDER = Path(__file__).resolve().parents[2] / "single_pulse_classifier_training"
ORIGINAL = json.loads((FOLDER / "config.json").read_text())
ORIGINAL_KEYS = {
    "path_to_files", "path_to_checkpoints", "path_to_images", "resolution", "model_name", "files_by_resolution",
    "labels", "learning_rate", "num_epochs", "patience",
}  # fmt: skip


def load(folder: Path, **changes) -> TrainingConfig:
    content = {key: value for key, value in (ORIGINAL | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(content))
    return load_config(folder / "config.json", TrainingConfig)


def test_original_format_is_unchanged_and_gives_the_original_training():
    assert set(ORIGINAL) == ORIGINAL_KEYS
    config = load_config(FOLDER / "config.json", TrainingConfig)
    assert config.learning_rate == 1e-4 and config.num_epochs == 100 and config.patience == 5
    assert config.batch_size == 32 and config.validation_fraction == 0.2 and config.optimiser == "adam"
    assert config.image_paths(config) == [FOLDER / "data/B0531+21_59000_48386_DM_time_dataset_realbased_training.npy"]
    labels = FOLDER / "data/B0531+21_59000_48386_DM_time_dataset_realbased_labels_training.npy"
    assert config.data_paths(config.labels) == [labels]


def test_a_loaded_config_cannot_be_changed(tmp_path):
    config = load(tmp_path, test_files={"files_by_resolution": {"256": "a.npy"}, "labels": "b.npy"})
    with pytest.raises(ValidationError, match="frozen"):
        config.num_epochs = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.test_files.labels = ["c.npy"]
    assert config.model_copy(update={"num_epochs": 3}).resolve("data") == tmp_path / "data"


def test_default_file_name_is_filled_in(tmp_path):
    config = load(tmp_path, resolution=64)
    assert config.image_paths(config)[0].name.endswith("_training_64x64.npy")


def test_no_file_for_the_resolution(tmp_path):
    config = load(tmp_path, files_by_resolution={"256": "a.npy"}, resolution=64)
    with pytest.raises(InputError, match="files_by_resolution must have the key '64' or 'default', got 256"):
        config.image_paths(config)


def test_paths_are_relative_to_the_config_whatever_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(ORIGINAL | {"path_to_images": "/plots"}))
    monkeypatch.chdir(tmp_path)
    config = load_config("run/config.json", TrainingConfig)
    os.chdir("/")
    assert config.resolve(config.path_to_checkpoints) == tmp_path / "run" / "checkpoints"
    assert config.resolve(config.path_to_images) == Path("/plots")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 0.1}, "unknown key 'learning_rat': did you mean 'learning_rate'"),
        ({"zzz": 1}, "unknown key 'zzz': a key must be one of .*path_to_files, .*tsamp_s"),
        ({"labels": ..., "label": "a.npy"}, "unknown key 'label': did you mean 'labels'"),
        ({"labels": ...}, "the key 'labels' is missing"),
        ({"resolution": "256"}, "key 'resolution' must be an integer, got '256'$"),
        ({"resolution": 1e9}, "key 'resolution' must be an integer, got 1000000000.0$"),
        ({"patience": 0}, "key 'patience' must be at least 1, got 0$"),
        ({"patience": True}, "key 'patience' must be an integer, got True$"),
        ({"learning_rate": -1.0}, "key 'learning_rate' must be above 0, got -1.0$"),
        ({"learning_rate": float("nan")}, "key 'learning_rate' must be a finite number, got nan$"),
        ({"warmup_epochs": 10**400}, "key 'warmup_epochs' must be .*, got 10000+[.]{3}$"),
        ({"num_epochs": 10**300}, "key 'num_epochs' must be at most 1000000, got 10000+[.]{3}$"),
        ({"compile": "yes"}, "key 'compile' must be true or false, got 'yes'$"),
        ({"validation_fraction": 1.0}, "key 'validation_fraction' must be below 1, got 1.0$"),
        ({"normaliser": "zscore"}, "key 'normaliser' must be 'minmax', 'robust' or 'noise', got 'zscore'$"),
        ({"files_by_resolution": {"256": 3}}, "key 'files_by_resolution.256' must be a file name or a list .*, got 3$"),
        ({"files_by_resolution": []}, "key 'files_by_resolution' must be an object, got \\[\\]$"),
        ({"labels": []}, "key 'labels' must be a list of at least 1, got \\[\\]$"),
        ({"labels": [5]}, "key 'labels.0' must be a string, got 5$"),
        ({"labels": ""}, "key 'labels' must be a string that is not empty, got ''$"),
        ({"dms": [0.0, None]}, "key 'dms.1' must be a number, got None$"),
        ({"dms": [0.0, 1.0, 1.0]}, "key 'dms' must be trial DMs, lowest first, got 1 before 1$"),
        ({"test_files": "a.npy"}, "key 'test_files' must be an object, got 'a.npy'$"),
        ({"test_files": {"labels": "a.npy"}}, "the key 'test_files.files_by_resolution' is missing$"),
        (
            {"path_to_images": "~nosuchuser/a"},
            "'path_to_images' must begin with the home folder .*, got '~nosuchuser/a'$",
        ),
        ({"labels": ["a", "b\0"]}, r"key 'labels.1' must be a name that a file can have, got 'b\\x00'$"),
        ({"labels": "b\0"}, r"key 'labels' must be a name that a file can have, got 'b\\x00'$"),
        ({"path_to_files": "\ud800"}, r"key 'path_to_files' must be a string of Unicode .*, got '\\ud800'$"),
        ({"test_files": {"labels": "a.npy", "label": 1}}, "unknown key 'test_files.label': did you mean 'labels'"),
    ],
)
def test_errors_are_one_sentence_with_key_value_and_choices(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', "not valid JSON: .*line 2 column 6"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[1]", "JSON object"),
        (b'{"ddm": 1, "ddm": 0.5}', "c.json: key 'ddm' must have one value, got 1 and 0.5$"),
        (b'{"test_files": {"labels": "a", "labels": "a"}}', "key 'labels' must have one value, got 'a' and 'a'$"),
        (b'{"a\\nb": 1, "a\\nb": 1}', r"key 'a\\nb' must have one value, got 1 and 1$"),
        (b'{"a": ' * 900 + b"1" + b"}" * 900, "values must be nested at most 20 deep$"),
        (b"[" * 100_000, "values must be nested at most 20 deep$"),
        (b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", "values must be nested at most 20 deep$"),
        (b'{"patience": ' + b"9" * 5000 + b"}", "c.json: a number must have fewer digits"),
        (b" " * (16 * 2**20 + 1), "must be a JSON file of at most 16,777,216 bytes"),
    ],
)
def test_files_that_are_no_config(tmp_path, content, message):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_config(tmp_path / "c.json", TrainingConfig)
    with pytest.raises(InputError, match="none.json does not exist"):
        load_config(tmp_path / "none.json", TrainingConfig)
    with pytest.raises(InputError, match="config file .* must be a file, got a folder"):
        load_config(tmp_path, TrainingConfig)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_configs_of_windows_editors_are_read(tmp_path, encoding):
    (tmp_path / "c.json").write_text(json.dumps(ORIGINAL | {"labels": "mésures.npy"}, ensure_ascii=False), encoding)
    assert load_config(tmp_path / "c.json", TrainingConfig).labels == ["mésures.npy"]


def test_unknown_key_of_a_nested_object_names_its_neighbours(tmp_path):
    class Rfi(BaseModel, extra="forbid"):
        zaplist: list[float] = []

    class Pipeline(ConfigFile):
        rfi: Rfi | None = None

    (tmp_path / "c.json").write_text('{"rfi": {"zaplis": []}}')
    with pytest.raises(InputError, match="unknown key 'rfi.zaplis': did you mean 'zaplist'"):
        load_config(tmp_path / "c.json", Pipeline)


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="device must be one of auto, cpu, cuda, got 'tpu'"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no GPU"):
            choose_device("cuda")


def test_a_file_in_the_place_of_the_output_folder(tmp_path):
    (tmp_path / "images").write_text("")
    with pytest.raises(InputError, match="path_to_images: cannot write to the folder"):
        make_output_folder(tmp_path / "images", "path_to_images")
    assert make_output_folder(tmp_path / "a" / "b", "key").is_dir()
