"""evaluate.py on a network whose logits are known: every metric follows from the images."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from single_pulse_classifier_training import pulse_free
from single_pulse_classifier_training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import TrainingConfig, load_config
from single_pulse_classifier_training.evaluate import get_parser, run
from single_pulse_classifier_training.evaluation import Predictions, write_predictions
from single_pulse_classifier_training.split import Split, load_splits
from single_pulse_classifier_training.trained_images import check_not_trained_on, record_of
from single_pulse_classifier_training.training_models import build_model

SCRIPT = Path(__file__).resolve().parents[2] / "single_pulse_classifier_training" / "evaluate.py"
MODEL_NAME = "DM_time_binary_classificator_241002_3_GAP"
RESOLUTION = 32
SLOPE = 1 / 16
TEMPERATURE = 2.0
PAGE_S = 3.6  # a thousand pages an hour


def grey_network() -> torch.nn.Module:
    """A network for images of one grey level v: the logit of Pulse over Artefact is SLOPE (v - 128)."""
    model = build_model(MODEL_NAME, RESOLUTION)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for convolution in (model.conv1, model.conv2, model.conv3):
            convolution.weight[0, 0, 2, 2] = 1.0
        model.fc2.weight[1, 0] = SLOPE
        model.fc2.bias[1] = -128 * SLOPE
    return model


def grey_set(folder: Path, name: str, n_images: int, seed: int) -> dict:
    """Images of one grey level each, Pulse with the probability sigmoid(margin / TEMPERATURE), and their files."""
    random = np.random.default_rng(seed)
    levels = random.integers(0, 256, n_images)
    margin = SLOPE * (levels - 128)
    labels = (random.random(n_images) < 1 / (1 + np.exp(-margin / TEMPERATURE))).astype(np.int64)
    snr = np.where(labels == 1, levels / 10, np.nan).astype(np.float32)
    images = np.broadcast_to(levels[:, None, None].astype(np.uint8), (n_images, RESOLUTION, RESOLUTION))
    np.save(folder / f"{name}.npy", images)
    np.save(folder / f"{name}_labels.npy", labels)
    np.save(folder / f"{name}_groups.npy", np.arange(n_images))
    np.save(folder / f"{name}_snr.npy", snr)
    return {"files_by_resolution": {"default": f"{name}.npy"}, "labels": f"{name}_labels.npy",
            "groups": f"{name}_groups.npy", "snr": f"{name}_snr.npy"}  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, dict, dict]:
    folder = tmp_path_factory.mktemp("data")
    return folder, grey_set(folder, "training", 4000, 0), grey_set(folder, "test", 3000, 1)


@pytest.fixture
def job(sets, tmp_path) -> tuple[Path, Path]:
    """A config with a test split, and a checkpoint with a training state, in a folder of their own."""
    data, training, test = sets
    config = training | {"path_to_files": str(data), "path_to_images": "out/", "resolution": RESOLUTION,
                         "model_name": MODEL_NAME, "test_files": test, "batch_size": 256,
                         "validation_fraction": 0.5}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(grey_network(), MODEL_NAME, RESOLUTION, tsamp_s=PAGE_S / 256, threshold=0.8,
                            metrics={"epoch": 3}, thresholds=[{"threshold": 0.9, "false_per_hour": 7.0}])  # fmt: skip
    save_checkpoint(tmp_path / "grey.pth", checkpoint, optimiser={"step": torch.tensor(5)}, epoch=3)
    return tmp_path / "config.json", tmp_path / "grey.pth"


def evaluate(*options: object) -> dict:
    return run(get_parser().parse_args([str(option) for option in options]))


def change(config: Path, **keys: object) -> Path:
    config.write_text(json.dumps(json.loads(config.read_text()) | keys))
    return config


def without_test(config: Path, **keys: object) -> Path:
    return change(config, test_files=None, **keys)


def truth(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and margins of a set."""
    levels = np.load(data / f"{name}.npy")[:, 0, 0].astype(float)
    return np.load(data / f"{name}_labels.npy"), SLOPE * (levels - 128)


def test_the_whole_job_through_the_command_line(job, sets):
    config, path = job
    command = [sys.executable, SCRIPT, config, path, "--device", "cpu"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = config.parent / "out"
    names = ["evaluation_grey_test.png", "metrics_grey_test.json", "predictions_grey_test.npz"]
    assert sorted(file.name for file in out.iterdir()) == names
    with Image.open(out / names[0]) as image:
        assert image.format == "PNG" and image.width > 1000
    for name in names:
        assert str(out / name) in done.stdout
    assert "not random sky" in done.stdout

    labels, margin = truth(sets[0], "test")
    metrics = json.loads((out / names[1]).read_text())
    assert (metrics["images"], metrics["pulses"], metrics["side"]) == (3000, labels.sum(), "test")
    assert metrics["temperature"] == pytest.approx(TEMPERATURE, rel=0.07)
    assert metrics["temperature_fitted_on"] == "validation"
    error = metrics["expected_calibration_error"]
    assert error["before"] > 0.05 and error["after"] < 0.03
    likelihood = metrics["negative_log_likelihood"]
    assert likelihood["before"] == pytest.approx(np.logaddexp(0, np.where(labels == 1, -margin, margin)).mean())
    assert likelihood["after"] < likelihood["before"]

    # The decision is the one of the threshold that the checkpoint had, with the temperature it had.
    predicted = 1 / (1 + np.exp(-margin)) >= 0.8
    assert metrics["confusion"] == {
        "true_positives": (predicted & (labels == 1)).sum(),
        "false_positives": (predicted & (labels == 0)).sum(),
        "true_negatives": (~predicted & (labels == 0)).sum(),
        "false_negatives": (~predicted & (labels == 1)).sum(),
    }
    assert metrics["recall"] == pytest.approx(predicted[labels == 1].mean())
    difference = margin[labels == 1][:, None] - margin[labels == 0][None, :]
    assert metrics["roc_auc"] == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())
    # S/N is a tenth of the grey level, and the threshold lies at the level 128 + 16 ln 4 = 150.2.
    recall = {entry["snr"]: entry["recall"] for entry in metrics["recall_by_snr"]}
    levels = np.load(sets[0] / "test.npy")[:, 0, 0][labels == 1]
    assert recall == {"<6": 0, "6-8": 0, "8-10": 0, "10-15": 0,
                      ">15": pytest.approx((levels >= 151).sum() / (levels >= 150).sum())}  # fmt: skip


def test_thresholds_let_exactly_the_allowed_artefacts_through(job, sets):
    labels, margin = truth(sets[0], "test")
    metrics = evaluate(*job, "--false-per-hour", 100, 20, 0.1)
    hours = (labels == 0).sum() * PAGE_S / 3600
    assert metrics["pulse_free"] == {
        "files": [], "pages": (labels == 0).sum(), "page_s": PAGE_S, "hours": pytest.approx(hours),
        "rates_left_out": [0.1]}  # fmt: skip
    probability = 1 / (1 + np.exp(-margin / metrics["temperature"]))
    for entry, rate in zip(metrics["thresholds"], (100, 20), strict=True):
        allowed = math.floor(rate * hours)
        passed = (probability[labels == 0] >= entry["threshold"]).sum()
        next_level = probability[labels == 0][probability[labels == 0] < entry["threshold"]].max()
        assert passed <= allowed < (probability[labels == 0] >= next_level).sum()
        assert entry["recall"] == pytest.approx((probability[labels == 1] >= entry["threshold"]).mean())
        assert (entry["false_per_hour"], entry["page_s"]) == (rate, PAGE_S)


def test_the_checkpoint_gets_what_was_measured_and_keeps_the_rest(job):
    config, path = job
    before = torch.load(path, weights_only=True)
    metrics = evaluate(config, path)
    after = torch.load(path, weights_only=True)
    assert after["metrics"] == {"epoch": 3, "evaluation": json.loads(json.dumps(metrics))}
    assert after["temperature"] == metrics["temperature"] and after["threshold"] == metrics["threshold"]
    assert [set(entry) for entry in after["thresholds"]] == [
        {"threshold", "false_per_hour", "page_s", "false_positives", "hours"}
    ] * 6
    logit = math.log(0.8 / 0.2)
    assert after["threshold"] == pytest.approx(1 / (1 + math.exp(-logit / metrics["temperature"])))
    for name, tensor in before.pop("state_dict").items():
        assert torch.equal(tensor, after["state_dict"][name]), name
    changed = {"metrics", "temperature", "threshold", "thresholds"}
    assert {key: value for key, value in before.items() if key not in changed} == {
        key: value for key, value in after.items() if key not in changed | {"state_dict"}
    }
    assert after["training"] == {"optimiser": {"step": torch.tensor(5)}, "epoch": 3}
    assert load_checkpoint(path, "cpu").temperature == metrics["temperature"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["config.json", "grey.pth", "out"]

    again = evaluate(config, path)
    assert again.pop("threshold") == pytest.approx(metrics.pop("threshold"), rel=1e-12)
    assert again == metrics, "a calibrated checkpoint measures the same as before"


def test_the_default_threshold_by_its_false_positives(job, sets):
    config, path = job
    metrics = evaluate(config, path, "--max-false-per-hour", 50)
    checkpoint = load_checkpoint(path, "cpu")
    entry = next(entry for entry in checkpoint.thresholds if entry["false_per_hour"] == 50)
    assert checkpoint.threshold == entry["threshold"] == metrics["threshold"]
    assert 0 < metrics["confusion"]["false_positives"] <= 50 * metrics["pulse_free"]["hours"]


def test_keep_checkpoint_leaves_every_byte(job):
    config, path = job
    content = path.read_bytes()
    evaluate(config, path, "--keep-checkpoint", "--output-dir", config.parent / "elsewhere")
    assert path.read_bytes() == content
    assert len(list((config.parent / "elsewhere").iterdir())) == 3


@pytest.mark.parametrize("options", [(), ("--max-false-per-hour", 50, "--false-per-hour", 10, 20)])
def test_metrics_again_from_the_predictions_alone(job, options):
    config, path = job
    metrics = evaluate(config, path, *options)
    out = config.parent / "out"
    first = (out / "metrics_grey_test.json").read_bytes()
    path.unlink()
    config.unlink()
    assert evaluate("--predictions", out / "predictions_grey_test.npz", "--output-dir", config.parent / "x") == metrics
    assert (config.parent / "x" / "metrics_grey_test.json").read_bytes() == first
    other = evaluate("--predictions", out / "predictions_grey_test.npz", "--page-s", 2 * PAGE_S)
    assert other["pulse_free"]["hours"] == pytest.approx(2 * metrics["pulse_free"]["hours"])
    assert sorted(file.suffix for file in (config.parent / "x").iterdir()) == [".json", ".png"]


def test_predictions_and_options_of_earlier_versions_are_read(job):
    config, path = job
    metrics = evaluate(config, path, "--keep-checkpoint", "--side", "validation")
    predictions = config.parent / "out" / "predictions_grey_validation.npz"
    with np.load(predictions) as archive:
        content = dict(archive)
    content["side"] = content.pop("split")
    np.savez(predictions, **content)
    assert evaluate("--predictions", predictions) == metrics


def test_evaluations_of_two_checkpoints_do_not_replace_each_other(job, monkeypatch):
    """Those that training.py calls best.pth differ in the network; other names are refused in another folder."""
    monkeypatch.setattr("single_pulse_classifier_training.evaluate.plot_evaluation", lambda *_: None)  # takes long
    config, path = job
    out, options = config.parent / "out", ("--keep-checkpoint", "--split", "validation")
    best = [config.parent / folder / "best.pth" for folder in ("ch_point_a_32", "ch_point_b_32", "again/ch_point_a_32")]
    for copy in (*best, config.parent / "again" / "grey.pth"):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for checkpoint in (path, best[0], best[1], best[0]):
        evaluate(config, checkpoint, *options)
    names = {file.name for file in out.glob("metrics_*")}
    assert names == {f"metrics_{name}_validation.json" for name in ("grey", "a_32_best", "b_32_best")}
    for second, first, name in ((best[2], best[0], "a_32_best"), (config.parent / "again" / "grey.pth", path, "grey")):
        with pytest.raises(InputError, match=f"predictions_{name}_validation.npz has the evaluation of {first}, and"):
            evaluate(config, second, *options)
    evaluate(config, second, *options, "--output-dir", config.parent / "x")
    with pytest.raises(InputError, match="would be replaced"):
        evaluate("--predictions", config.parent / "x" / "predictions_grey_validation.npz", "--output-dir", out)


def test_without_a_test_split_the_validation_split_is_evaluated(job):
    config, path = job
    metrics = evaluate(without_test(config), path, "--keep-checkpoint")
    assert metrics["side"] == "validation" and 1900 < metrics["images"] < 2100
    training = evaluate(config, path, "--keep-checkpoint", "--split", "training")
    assert training["images"] + metrics["images"] == 4000
    assert training["temperature"] == metrics["temperature"], "always fitted on the validation split"
    assert (config.parent / "out" / "predictions_grey_training.npz").exists()


def test_pulse_free_files_set_the_rates(job):
    config, path = job
    levels = np.arange(100, 200, dtype=np.uint8)
    files = [config.parent / "sky_1.npy", config.parent / "sky_2.npy"]
    for file, part in zip(files, np.split(levels, 2)):
        np.save(file, np.broadcast_to(part[:, None, None], (50, RESOLUTION, RESOLUTION)))
    metrics = evaluate(config, path, "--pulse-free", *files, "--page-s", 36, "--max-false-per-hour", 3)  # an hour
    assert metrics["pulse_free"]["files"] == ["sky_1.npy", "sky_2.npy"]
    assert metrics["pulse_free"]["pages"] == 100 and metrics["pulse_free"]["hours"] == pytest.approx(1)
    probability = 1 / (1 + np.exp(-SLOPE * (levels - 128.0) / metrics["temperature"]))
    passed = {entry["false_per_hour"]: (probability >= entry["threshold"]).sum() for entry in metrics["thresholds"]}
    assert passed == {1000: 100, 200: 100, 100: 100, 30: 30, 10: 10, 3: 3, 1: 1}


def described(folder: Path, normaliser: str, pulses: int) -> Path:
    """Images of the grey levels 100 to 199 with a description beside them, half a minute each."""
    images = np.broadcast_to(np.arange(100, 200, dtype=np.uint8)[:, None, None], (100, RESOLUTION, RESOLUTION))
    np.save(folder / "sky_training.npy", images)
    description = {
        "files_by_resolution": {str(RESOLUTION): "sky_training.npy"}, "labels": "sky_labels_training.npy",
        "normaliser": normaliser, "dms": None, "tsamp_s": None, "page_s": 30.0, "n_images": 100,
        "classes": {"Pulse": pulses, "Artefact": 100 - pulses}, "n_events": pulses,
        "pulse_free_hours": None if pulses else 100 / 120, "origin": [], "version": "0"}  # fmt: skip
    (folder / "sky_set.json").write_text(json.dumps(description))
    return folder / "sky_training.npy"


def test_the_page_length_comes_from_the_description_of_the_images(job, capsys):
    config, path = job
    options = (config, path, "--pulse-free", described(config.parent, "minmax", 0), "--false-per-hour", 12, 1)
    metrics = evaluate(*options)
    assert metrics["pulse_free"]["hours"] == pytest.approx(100 / 120) and metrics["pulse_free"]["page_s"] == 30
    (entry,) = load_checkpoint(path, "cpu").thresholds
    assert (entry["false_positives"], entry["hours"]) == (10, metrics["pulse_free"]["hours"])
    said = capsys.readouterr().out
    assert "10 of the pages: 12 (5.75 to 22.1) per hour (95 %)" in said
    assert "1/h     not measured: 1 per hour needs at least 1 h of pulse-free data, got 0.8333 h" in said


def test_the_page_length_is_that_of_the_evaluated_split(job):
    """The test set has pages of half a minute, the training set has no description: rates are those of the former."""
    config, path = job
    images = described(config.parent, "minmax", 50)
    np.save(config.parent / "sky_labels_training.npy", np.arange(100) // 50)
    files = {
        "files_by_resolution": {str(RESOLUTION): str(images)},
        "labels": str(images.with_name("sky_labels_training.npy")),
    }
    assert evaluate(change(config, test_files=files), path, "--keep-checkpoint")["pulse_free"]["page_s"] == 30
    metrics = evaluate(config, path, "--keep-checkpoint", "--split", "validation")
    assert metrics["pulse_free"]["page_s"] == PAGE_S
    config = change(config, test_files=None, validation_files=files)
    assert evaluate(config, path, "--keep-checkpoint")["pulse_free"]["page_s"] == 30


def test_images_of_the_training_are_not_pulse_free_pages(job, sets, caplog, monkeypatch):
    """Exact copies are found wherever they are, unless they are in the validation split or have one grey level."""
    config, path = job
    folder = config.parent
    images = np.load(sets[0] / "training.npy")
    images[:, 0, :2] = np.arange(len(images))[:, None] // [1, 256] % 256  # where the network sees nothing
    np.save(folder / "marked.npy", images)
    np.save(folder / "other.npy", images[::-1, ::-1])
    keys = json.loads(config.read_text()) | {
        "files_by_resolution": {"default": str(folder / "marked.npy")},
        "labels": str(sets[0] / "training_labels.npy"),
    }
    change(without_test(config), **keys | {"test_files": None})
    loaded, checkpoint = load_config(config, TrainingConfig), load_checkpoint(path, "cpu")
    splits = load_splits(loaded)
    validation = splits["validation"]
    seen, unseen = splits["training"].indices[-1], validation.indices[validation.labels == 0][:50]
    pulse = validation.indices[validation.labels == 1][3]
    sky = folder / "sky.npy"

    def check(content: np.ndarray) -> None:
        np.save(sky, content)
        opened = pulse_free.open_pulse_free([str(sky)], checkpoint)
        pulse_free.check_pulse_free(opened, splits, checkpoint, loaded)

    np.save(sky, images[[*unseen, seen]])
    with pytest.raises(InputError, match=f"image 50 of .*sky.npy, which is image {seen} of .*marked.npy"):
        evaluate(config, path, "--pulse-free", sky)
    check(images[unseen])
    assert "it does not name them" in caplog.text
    with pytest.raises(
        InputError, match=f"pulses of the validation split, got image 50 of .*, which is image {pulse} of"
    ):
        check(images[[*unseen, pulse]])
    checkpoint.trained_images = record_of(splits)
    with pytest.raises(
        InputError, match=f"those of the training, got image {splits['training'].indices[0]} of .*sky.npy"
    ):
        check(images)
    checkpoint.trained_images = None

    checkpoint.config = keys | {"files_by_resolution": {"default": [str(folder / "other.npy")]}}
    check(images[unseen])
    with pytest.raises(InputError, match=f"image 1 of .*sky.npy, which is image {3999 - unseen[0]} of .*other.npy"):
        check(np.stack([images[unseen[0]], images[unseen[0], ::-1]]))
    (folder / "other.npy").unlink()
    caplog.clear()
    check(images[unseen])
    assert "not of the checkpoint: files_by_resolution: the file" in caplog.text and "other.npy" in caplog.text

    monkeypatch.setattr(pulse_free, "_hash", lambda image: b"the same for all")
    check(images[unseen[:2]])


def test_images_that_the_checkpoint_was_trained_on_are_refused(job, sets, caplog):
    """By a record of every image: with another split, or without the separate validation files of the training."""
    config, path = job
    without_test(config)
    splits, checkpoint = load_splits(load_config(config, TrainingConfig)), load_checkpoint(path, "cpu")
    caplog.clear()
    check_not_trained_on(None, splits, "grey.pth")
    assert "does not say on which images it was trained" in caplog.text
    caplog.clear()
    checkpoint.trained_images = record_of(splits)
    save_checkpoint(path, checkpoint)
    evaluate(config, path, "--keep-checkpoint")
    assert "trained" not in caplog.text
    change(config, seed=1)
    drawn = load_splits(load_config(config, TrainingConfig))["validation"].indices
    both = len(np.intersect1d(splits["training"].indices, drawn))
    named = f"grey.pth: the validation images must not be .*, got {both} of {len(drawn)}, such as image .*training.npy"
    with pytest.raises(InputError, match=named):
        evaluate(config, path)
    names = {"files_by_resolution": {"default": ["test.npy", "training.npy"]}}
    names |= {"labels": ["test_labels.npy", "training_labels.npy"], "groups": None, "snr": None}
    kept = config.read_text()
    with pytest.raises(InputError, match="the validation images must not be images that it was trained on"):
        evaluate(change(config, **names), path)
    config.write_text(kept)

    whole = {"training": Split(splits["training"].dataset, np.arange(4000), None), "validation": splits["validation"]}
    checkpoint.trained_images = record_of(whole)
    save_checkpoint(path, checkpoint)
    with pytest.raises(InputError, match="validation images must not be .* trained on, got (\\d+) of \\1, such as"):
        evaluate(change(config, seed=0), path, "--split", "training")
    assert [entry["file"] for entry in load_checkpoint(path, "cpu").trained_images] == ["training.npy"]


def test_without_a_page_length_the_old_thresholds_move_with_the_temperature(job):
    config, path = job
    checkpoint = load_checkpoint(path, "cpu")
    checkpoint.tsamp_s = None
    save_checkpoint(path, checkpoint)
    metrics = evaluate(config, path)
    assert metrics["thresholds"] == [] and metrics["pulse_free"] is None
    (entry,) = load_checkpoint(path, "cpu").thresholds
    moved = 1 / (1 + math.exp(-math.log(9) / metrics["temperature"]))
    assert entry == {"threshold": pytest.approx(moved), "false_per_hour": 7.0}
    assert evaluate(change(config, tsamp_s=PAGE_S / 256), path)["pulse_free"]["page_s"] == PAGE_S


def test_bare_weights_are_evaluated_and_left_as_they_are(job):
    config, path = job
    torch.save(grey_network().state_dict(), path)
    content = path.read_bytes()
    metrics = evaluate(config, path, "--page-s", PAGE_S)
    assert metrics["threshold"] == 0.5 and metrics["temperature"] == pytest.approx(TEMPERATURE, rel=0.07)
    assert path.read_bytes() == content


def test_a_set_without_snr_has_no_recall_by_snr(job, sets):
    config, path = job
    assert evaluate(without_test(config, snr=None), path)["recall_by_snr"] is None


def npy_bytes(shape: str) -> bytes:
    """A .npy file with this shape in its header, and one image."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode() + bytes(RESOLUTION**2)


def make_error(kind: str, config: Path, path: Path) -> list[object]:
    """Make one error; return the command line."""
    folder = config.parent
    match kind:
        case "another network":
            change(config, model_name="resnet18")
        case "another resolution":
            change(config, resolution=64)
        case "no test split":
            return [without_test(config), path, "--split", "test"]
        case "rate without page length":
            checkpoint = load_checkpoint(path, "cpu")
            checkpoint.tsamp_s = None
            save_checkpoint(path, checkpoint)
            return [config, path, "--max-false-per-hour", 10]
        case "rate too low":
            return [config, path, "--max-false-per-hour", 0.01]
        case "rate of candidates" | "rate of training images":
            checkpoint = load_checkpoint(path, "cpu")
            checkpoint.normaliser = "noise" if kind == "rate of candidates" else "minmax"
            save_checkpoint(path, checkpoint)
            return [config, path, "--max-false-per-hour", 10, "--split", "training"]
        case "pulse-free with pulses":
            return [config, path, "--pulse-free", described(folder, "minmax", pulses=1)]
        case "pulse-free normaliser":
            return [config, path, "--pulse-free", described(folder, "robust", pulses=0)]
        case "pulse-free trial DMs" | "pulse-free sampling time":
            checkpoint = load_checkpoint(path, "cpu")
            checkpoint.dms, checkpoint.tsamp_s = [0.0, 127.5], 1e-3
            save_checkpoint(path, checkpoint)
            images = described(folder, "minmax", pulses=0)
            other = {"dms": [1000.0, 1001.0]} if kind == "pulse-free trial DMs" else {"tsamp_s": 0.01}
            change(folder / "sky_set.json", **other)
            return [config, path, "--pulse-free", images]
        case "pulse-free twice":
            images = described(folder, "minmax", pulses=0)
            return [config, path, "--pulse-free", images, folder / "out" / ".." / images.name]
        case "pulse-free missing":
            return [config, path, "--pulse-free", folder / "sky.npy"]
        case "pulse-free no images":
            (folder / "sky.npy").write_bytes(b"sky")
            return [config, path, "--pulse-free", folder / "sky.npy"]
        case "pulse-free header":
            (folder / "sky.npy").write_bytes(npy_bytes("(-100000, 32, 32)"))
            return [config, path, "--pulse-free", folder / "sky.npy"]
        case "pulse-free folder":
            (folder / "sky.npy").mkdir()
            return [config, path, "--pulse-free", folder / "sky.npy"]
        case "pulse-free resolution":
            np.save(folder / "sky.npy", np.zeros((3, 64, 64), np.uint8))
            return [config, path, "--pulse-free", folder / "sky.npy"]
        case "page length":
            return [config, path, "--page-s", 0]
        case "rate":
            return [config, path, "--false-per-hour", 10, -1]
        case "nothing given":
            return []
        case "config alone":
            return [config]
        case "both":
            return [config, path, "--predictions", folder / "predictions.npz"]
        case "predictions":
            np.savez(folder / "predictions.npz", labels=np.zeros(3))
            return ["--predictions", folder / "predictions.npz"]
        case "predictions missing":
            return ["--predictions", folder / "predictions.npz"]
        case "predictions compressed":
            np.savez_compressed(folder / "predictions.npz", labels=np.zeros(10**6))
            return ["--predictions", folder / "predictions.npz"]
        case "predictions shapes":
            two, logits, none = np.arange(2), np.zeros((2, 2), np.float32), np.zeros(0)
            split = (two, logits[:1], np.zeros(2, np.float32), two, logits, logits, none.astype(str), PAGE_S, none, 1.0)
            names = ("a.pth", "test", MODEL_NAME, RESOLUTION, 1.0, 0.5)
            write_predictions(folder / "predictions.npz", Predictions(*split, *names))
            return ["--predictions", folder / "predictions.npz"]
        case "predictions npy":
            np.save(folder / "predictions.npy", np.zeros(3))
            return ["--predictions", folder / "predictions.npy"]
        case "damaged weights":
            checkpoint = load_checkpoint(path, "cpu")
            checkpoint.model.fc2.bias.data[0] = math.nan
            save_checkpoint(path, checkpoint)
    return [config, path]


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("another network", "model_name must be .*GAP', as in the checkpoint .*grey.pth, got 'resnet18'"),
        ("another resolution", "resolution must be 32, as in the checkpoint .*grey.pth, got 64"),
        ("no test split", "--split must be training or validation .*, got test"),
        ("rate without page length", "--max-false-per-hour.*--page-s"),
        ("rate too low", "must be at least 0[.].*: 0.01 per hour needs at least 100 h of pulse-free data, got 1"),
        ("rate of candidates", "--max-false-per-hour .* candidate classifier, .* by evaluate_pipeline.py --pulse-free"),
        ("rate of training images", "--max-false-per-hour cannot be used .* not measured on images of the training"),
        ("pulse-free with pulses", "sky_training.npy: must have no pulses, got 1 in the description"),
        ("pulse-free normaliser", "sky_training.npy: the normaliser must be 'minmax', .*, got 'robust'"),
        (
            "pulse-free trial DMs",
            "trial DMs must be 2 from 0 to 127.5, as in the checkpoint, got 2 from 1000 to 1001 in",
        ),
        ("pulse-free sampling time", "sampling time in seconds must be 0.001, as in the checkpoint, got 0.01 in"),
        ("pulse-free twice", "--pulse-free: a file must be named once, got .*sky_training.npy twice"),
        ("pulse-free no images", "--pulse-free: .*sky.npy must be a .npy file of .*, got a text file"),
        ("pulse-free missing", "--pulse-free: the file .*sky.npy does not exist"),
        ("pulse-free folder", "--pulse-free: the file .*sky.npy must be a file, got a folder"),
        ("pulse-free header", "--pulse-free: .*sky.npy must be .*, got a .npy file that is damaged"),
        ("pulse-free resolution", "sky.npy: the images must have 32 x 32 pixels, got 64 x 64"),
        ("page length", "--page-s must be .*, got 0"),
        ("rate", "--false-per-hour must be .*, got -1"),
        ("nothing given", "config.json and checkpoint.pth"),
        ("config alone", "checkpoint.pth"),
        ("both", "config.json .*--predictions"),
        ("predictions", "predictions.npz must be a predictions file"),
        ("predictions missing", "--predictions .*predictions.npz does not exist"),
        ("predictions compressed", "predictions.npz: the content must be stored uncompressed, got 8,000,128 bytes in"),
        ("predictions shapes", "predictions.npz must be a predictions file"),
        ("predictions npy", "predictions.npy must be a predictions file"),
        ("damaged weights", "must be finite"),
    ],
)
def test_an_error_is_named_in_one_sentence_and_nothing_is_written(job, kind, named):
    config, path = job
    options = make_error(kind, config, path)
    content = path.read_bytes()
    with pytest.raises(InputError, match=named) as error:
        evaluate(*options)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content
    assert not [file for file in config.parent.rglob("*") if file.suffix in (".json", ".png", ".npz", ".tmp")
                and file.stem not in ("config", "predictions", "sky_set")]  # fmt: skip


def test_the_command_line_ends_with_code_2(job):
    config, path = job
    command = [sys.executable, SCRIPT, *make_error("pulse-free missing", config, path)]
    done = subprocess.run(list(map(str, command)), cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("evaluate.py: error: ") and "sky.npy" in done.stderr
