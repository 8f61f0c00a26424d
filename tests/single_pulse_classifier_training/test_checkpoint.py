"""Checkpoints: what is written is read back, and unsuitable files are refused."""

import contextlib
import math
import os
import pickle
import resource
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from single_pulse_classifier_training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    update_checkpoint,
    weights_checksum,
)
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.training_models import build_model

NAME = "DM_time_small_residual"
SHIPPED = sorted((Path(__file__).resolve().parents[2] / "pipeline_classifier" / "models").glob("*.pth"))


@pytest.fixture
def checkpoint():
    torch.manual_seed(0)
    return Checkpoint(
        model=build_model(NAME, 32).eval(),
        model_name=NAME,
        resolution=32,
        normaliser="robust",
        dms=[0.0, 0.5],
        tsamp_s=102.4e-6,
        thresholds=[{"threshold": 0.9, "false_per_hour": 1.5}],
        threshold=0.7,
        temperature=1.3,
        measured_pair={"page_temperature": 1.0},
        metrics={"val_loss": np.float32(0.25), "epoch": np.int64(4), "confusion": np.array([1, 2])},
        config={"seed": 3},
    )


def test_round_trip_keeps_every_field_and_every_weight(checkpoint, tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, checkpoint, optimiser={"step": torch.ones(2), "betas": (0.9, 0.999)}, epoch=4)
    loaded = load_checkpoint(path, "cpu")
    for name in ("model_name", "resolution", "class_names", "normaliser", "dms", "tsamp_s", "thresholds"):
        assert getattr(loaded, name) == getattr(checkpoint, name), name
    for name in ("threshold", "temperature", "measured_pair", "config", "versions"):
        assert getattr(loaded, name) == getattr(checkpoint, name), name
    assert loaded.metrics == {"val_loss": 0.25, "epoch": 4, "confusion": [1, 2]}
    assert not loaded.model.training
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name
    pages = torch.rand(2, 1, 32, 32) * 255
    assert torch.equal(loaded.model(pages), checkpoint.model(pages))
    assert torch.load(path, weights_only=True)["training"]["optimiser"]["betas"] == (0.9, 0.999)


def test_values_are_replaced_and_the_checksum_of_the_weights_stays(checkpoint, tmp_path):
    path, link = tmp_path / "a.pth", tmp_path / "link.pth"
    save_checkpoint(path, checkpoint, epoch=4)
    link.symlink_to(path)
    before = torch.load(path, weights_only=True)
    update_checkpoint(link, threshold=np.float64(0.25), measured_pair={"page_temperature": 2.0})
    after = torch.load(path, weights_only=True)
    assert link.is_symlink() and after.pop("measured_pair") == {"page_temperature": 2.0}
    assert after.pop("threshold") == 0.25 and {*before} - {*after} == {"threshold", "measured_pair"}
    assert all(torch.equal(tensor, after["state_dict"][name]) for name, tensor in before["state_dict"].items())
    assert {key: value for key, value in after.items() if key != "state_dict"} == {
        key: before[key] for key in after if key != "state_dict"
    }
    loaded = load_checkpoint(path, "cpu").model
    assert weights_checksum(loaded.to(memory_format=torch.channels_last)) == weights_checksum(checkpoint.model)
    with torch.no_grad():
        loaded.fc.bias[0] += 1e-7
    assert weights_checksum(loaded) != weights_checksum(checkpoint.model)
    torch.save(checkpoint.model.state_dict(), path)
    with pytest.raises(InputError, match="a.pth: a checkpoint must have the key 'state_dict' .*, got bare weights"):
        update_checkpoint(path, threshold=0.5)


def test_loaded_network_can_be_trained_further(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "a.pth", checkpoint)
    model = load_checkpoint(tmp_path / "a.pth", "cpu").model
    model(torch.rand(2, 1, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_failed_write_leaves_the_old_file_and_nothing_else(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, checkpoint)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_could_not_be_read_back_is_not_written(checkpoint, tmp_path):
    checkpoint.metrics["when"] = object()
    with pytest.raises(TypeError, match="object"):
        save_checkpoint(tmp_path / "a.pth", checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_bare_weights_load_when_the_caller_names_the_network(checkpoint, tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(checkpoint.model.state_dict(), path)
    loaded = load_checkpoint(path, "cpu", model_name=NAME, resolution=32)
    assert torch.equal(loaded.model.fc.weight, checkpoint.model.fc.weight)
    assert (loaded.normaliser, loaded.threshold) == ("minmax", 0.5)
    with pytest.raises(InputError, match="model_name and resolution must be given"):
        load_checkpoint(path, "cpu")


@pytest.mark.parametrize("given", [{"model_name": "resnet18"}, {"resolution": 64}])
def test_contradiction_between_file_and_caller(checkpoint, tmp_path, given):
    save_checkpoint(tmp_path / "a.pth", checkpoint)
    ((key, value),) = given.items()
    with pytest.raises(
        InputError, match=rf"^{key} must be .*{getattr(checkpoint, key)}'?, as in .*a.pth, got '?{value}"
    ):
        load_checkpoint(tmp_path / "a.pth", "cpu", **given)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_checkpoints_load_unchanged(path):
    weights = load_checkpoint(path, "cpu").model.state_dict()
    for name, tensor in torch.load(path, weights_only=True)["state_dict"].items():
        assert torch.equal(tensor, weights[name]), name


def test_a_checkpoint_with_the_old_name_of_its_network_loads_by_either_name(tmp_path):
    old, new = "DM_time_second_look", "DM_time_candidate_classifier"
    written = Checkpoint(build_model(old, 32), old, 32, normaliser="noise")
    save_checkpoint(tmp_path / "a.pth", written)
    for name in (None, old, new):
        loaded = load_checkpoint(tmp_path / "a.pth", "cpu", name)
        assert torch.equal(loaded.model.fc.weight, written.model.fc.weight) and loaded.model_name == old
    with pytest.raises(InputError, match=f"model_name must be '{old}', as in .*, got 'resnet18'"):
        load_checkpoint(tmp_path / "a.pth", "cpu", "resnet18")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.pth does not exist"):
        load_checkpoint(tmp_path / "none.pth", "cpu")


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "model.hdf5", "renamed.pth"])
def test_keras_models_name_the_converter(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x89HDF\r\n\x1a\n" if name == "renamed.pth" else b"anything")
    with pytest.raises(InputError, match=rf"is a Keras model: convert it with `python convert_to_pytorch.py .*{name}`"):
        load_checkpoint(path, "cpu")


class RunsCode:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("writer", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_malicious_pickle_is_refused_and_runs_nothing(tmp_path, writer):
    victim, path = tmp_path / "victim", tmp_path / "evil.pth"
    writer({"state_dict": RunsCode(victim), "model_name": NAME, "resolution": 32}, path)
    with pytest.raises(InputError, match=r"evil\.pth cannot be read"):
        load_checkpoint(path, "cpu")
    assert not victim.exists()
    # The attack is real: the unsafe way of reading runs it.
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert victim.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04aaaa", b"\x80\x02}q\x00.", b"\x80\x04\x95\xff"])
def test_damaged_files_end_in_one_sentence(tmp_path, content):
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pth"):
        load_checkpoint(path, "cpu")


def test_truncated_or_altered_checkpoints_never_end_in_a_traceback(checkpoint, tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, checkpoint)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(40):
        cut = int(random.integers(len(whole)))
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError):
            load_checkpoint(path, "cpu")
        # The pickle is at the start of the file, where a changed byte has most effect.
        altered = bytearray(whole)
        altered[int(random.integers(20_000))] ^= int(random.integers(1, 256))
        path.write_bytes(altered)
        try:
            load_checkpoint(path, "cpu")
        except InputError:
            pass


def test_weights_of_another_network_name_the_first_tensor_and_both_shapes(checkpoint, tmp_path):
    weights = checkpoint.model.state_dict()
    weights["stem.0.weight"] = torch.zeros(24, 1, 5, 5)
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"'stem.0.weight' must be \(24, 1, 8, 8\) .*, got \(24, 1, 5, 5\)"):
        load_checkpoint(tmp_path / "a.pth", "cpu", NAME, 32)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_missing_and_extra_tensors_are_named(checkpoint, tmp_path, change):
    weights = checkpoint.model.state_dict()
    if change == "missing":
        del weights["fc.bias"]
    else:
        weights["fc.scale"] = torch.ones(2)
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(
        InputError, match="'fc.bias' .*, got none" if change == "missing" else "'fc.scale' must be none"
    ):
        load_checkpoint(tmp_path / "a.pth", "cpu", NAME, 32)


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], {"state_dict": {}}, {}])
def test_foreign_dictionaries_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(InputError, match="a.pth: .*( must |'model_name' is missing)"):
        load_checkpoint(tmp_path / "a.pth", "cpu")


def altered(checkpoint, path: Path, **changes) -> Path:
    """A checkpoint with other values, written by torch itself; a value for "weights" is that of the tensor fc.weight."""
    save_checkpoint(path, checkpoint)
    content = torch.load(path, weights_only=True)
    if "weights" in changes:
        content["state_dict"]["fc.weight"] = changes.pop("weights")
    torch.save(content | changes, path)
    return path


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("class_names", 5, "must be a list, got 5"),
        ("class_names", ["Artefact", "RFI"], r"must hold Artefact and Pulse, got \['Artefact', 'RFI'\]"),
        ("class_names", ["Pulse", "Pulse"], "must hold Artefact and Pulse, got"),
        ("threshold", "0.5", "must be a number, got '0.5'"),
        ("threshold", math.nan, "must be .*, got nan"),
        ("threshold", 1.5, "must be at most 1, got 1.5"),
        ("temperature", 0, "must be at least 0.01, got 0"),
        ("temperature", -1.0, "must be at least 0.01, got -1.0"),
        ("temperature", math.inf, "must be .*, got inf"),
        ("temperature", 1e30, "must be at most 100, got 1e[+]30"),
        ("thresholds", [{"threshold": math.nan, "false_per_hour": 1.0}], "0.threshold' must be .*, got nan"),
        ("thresholds", [{"threshold": "abc", "false_per_hour": 1.0}], "0.threshold' must be a number, got 'abc'"),
        ("thresholds", [{"threshold": 0.5}], "thresholds.0.false_per_hour' is missing"),
        ("thresholds", [{"threshold": 0.5, "false_per_hour": -1.0}], "must be at least 0, got -1.0"),
        ("thresholds", [{"threshold": 0.5, "false_per_hour": 1.0, "page_s": 0.0}], "page_s' must be above 0, got 0.0"),
        ("thresholds", None, "must be a list, got None"),
        ("thresholds", [{"threshold": 0.5, "false_per_hour": 1.0, "hours": 0.0}], "hours' must be above 0, got 0.0"),
        ("measured_pair", "x", "must be an object, got 'x'"),
        ("trained_images", [{"file": "a", "checksum": "b", "n_images": 9, "trained_on": "ff"}], "4 hexadecimal digits"),
        ("resolution", 1e9, "must be an integer, got 1000000000.0"),
        ("resolution", True, "must be an integer, got True"),
        ("resolution", 32 * 10**8, "resolution of DM_time_small_residual must be .* up to 4096, got 3200000000"),
        ("model_name", 3, "must be a string, got 3"),
        ("model_name", "resnet19", "model_name must be one of .*, got 'resnet19'"),
        ("normaliser", "zscore", "must be 'minmax', 'robust' or 'noise', got 'zscore'"),
        ("dms", [0.0, math.nan], "dms.1' must be a finite number, got nan"),
        ("tsamp_s", 0.0, "must be above 0, got 0.0"),
        ("metrics", [], r"must be an object, got \[\]"),
        ("config", "x", "must be an object, got 'x'"),
        ("state_dict", 5, "state_dict must be a dictionary, got int"),
    ],
)
def test_values_of_the_wrong_type_or_range_are_named(checkpoint, tmp_path, key, value, said):
    path = altered(checkpoint, tmp_path / "a.pth", **{key: value})
    with pytest.raises(InputError, match=rf"a\.pth: .*{key}.* {said}|a\.pth: .*{said}") as error:
        load_checkpoint(path, "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (torch.full((2, 128), math.nan), "must be finite, got NaN or infinity in tensor 'fc.weight'"),
        (torch.full((2, 128), 1e300, dtype=torch.float64), "must be finite"),
        (
            torch.ones(2, 128, dtype=torch.complex64),
            "'fc.weight' must be dense, .*, got torch.strided, torch.complex64",
        ),
        (torch.ones(2, 128, dtype=torch.int64), "'fc.weight' must be .* type of torch.float32, .* torch.int64"),
        (torch.ones(2, 128).to_sparse(), "'fc.weight' must be dense, .*, got torch.sparse_coo"),
        (torch.ones(2, 128, device="meta"), "'fc.weight' must be .* in the file, got .* meta"),
        (5, r"'fc.weight' must be \(2, 128\) .*, got none"),
    ],
    ids=["NaN", "too large", "complex", "integers", "sparse", "meta", "no tensor"],
)
def test_weights_that_are_no_finite_numbers_are_named(checkpoint, tmp_path, weights, said):
    path = altered(checkpoint, tmp_path / "a.pth", weights=weights)
    with pytest.raises(InputError, match=rf"a\.pth: .*{said}"):
        load_checkpoint(path, "cpu")


def test_every_flipped_bit_is_found_by_the_checksums(checkpoint, tmp_path):
    """The highest bit of the exponent of a weight, of the temperature, of the threshold: finite numbers before and after."""
    save_checkpoint(tmp_path / "a.pth", checkpoint)
    whole = (tmp_path / "a.pth").read_bytes()
    weight = whole.index(checkpoint.model.fc.weight.detach().numpy().tobytes())
    places = [weight + 3, *(whole.index(struct.pack(">d", value)) for value in (1.3, 0.7))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        (tmp_path / "a.pth").write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.pth is damaged: the checksum of its entry '.*' differs"):
            load_checkpoint(tmp_path / "a.pth", "cpu")


def test_a_zip_bomb_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as entry:
        for _ in range(64):
            entry.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"a\.pth: the content must be stored uncompressed, got 67,108,864 bytes"):
        load_checkpoint(path, "cpu")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 4 << 20


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="checkpoint .* must be a file, got a folder"):
        load_checkpoint(tmp_path, "cpu")


def test_a_disk_that_is_full_at_any_byte_gives_the_error_of_the_system(checkpoint, tmp_path):
    """torch replaces it by an error of its own archive, depending on the position."""
    path = tmp_path / "a.pth"
    save_checkpoint(path, checkpoint)
    before = path.read_bytes()
    no_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in np.linspace(0, len(before) - 1, 40).astype(int):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), no_limit[1]))
        try:
            with pytest.raises(OSError, match="File too large") as error:
                save_checkpoint(path, checkpoint)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, no_limit)
        assert error.value.filename == str(path)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
