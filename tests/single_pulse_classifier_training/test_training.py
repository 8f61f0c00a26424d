"""Training through the command line, its metrics and its augmentation."""

import contextlib
import json
import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from single_pulse_classifier_training import evaluate, training
from single_pulse_classifier_training.augment import FainterPulse, RollInTime, RowDropOut, augmentation
from single_pulse_classifier_training.checkpoint import load_checkpoint, save_checkpoint, weights_checksum
from single_pulse_classifier_training.config import TrainingConfig
from single_pulse_classifier_training.dataset import TrainingBatches
from single_pulse_classifier_training.distributed import Ranks
from single_pulse_classifier_training.metrics import ConfusionCounts, confusion_counts
from single_pulse_classifier_training.optimisation import choose_precision
from single_pulse_classifier_training.training_report import check_learned, constant_loss
from tests.command_line import run_here

RESOLUTION = 32


def streaks(n_pages: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a sloped streak (Pulse) or without (Artefact), uint8 (N, 32, 32), and their labels."""
    random = np.random.default_rng(seed)
    pages = 60 + 10 * random.normal(size=(n_pages, RESOLUTION, RESOLUTION))
    labels = np.arange(n_pages) % 2
    rows = np.arange(RESOLUTION)
    for index in np.flatnonzero(labels):
        pages[index, rows, (random.integers(RESOLUTION) + rows // 2) % RESOLUTION] += 60
    return pages.clip(0, 255).astype(np.uint8), np.array(["Artefact", "Pulse"])[labels]


@pytest.fixture
def training_set(tmp_path):
    """A folder with a small set and its config in the original's keys, plus a few."""
    pages, labels = streaks(600)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "set_32x32.npy", pages)
    np.save(tmp_path / "data" / "labels.npy", labels)
    config = {
        "path_to_files": "./data/",
        "path_to_checkpoints": "./checkpoints/",
        "path_to_images": "./images/",
        "resolution": RESOLUTION,
        "model_name": "DM_time_binary_classificator_241002_3",
        "files_by_resolution": {"256": "set.npy", "default": "set_{res}x{res}.npy"},
        "labels": "labels.npy",
        "learning_rate": 0.001,
        "num_epochs": 8,
        "patience": 5,
    }
    return tmp_path, config


def train(folder: Path, config: dict, *options: str) -> subprocess.CompletedProcess:
    (folder / "config.json").write_text(json.dumps(config))
    # One thread: the networks are tiny, and threads that wait for each other on a busy machine take most of the time.
    torch.set_num_threads(1)
    return run_here(training, folder / "config.json", *options)


def test_a_training_starts_from_the_weights_it_is_given_and_keeps_no_thresholds(training_set, caplog):
    folder, config = training_set
    assert train(folder, config | {"num_epochs": 3}).returncode == 0
    first = folder / "checkpoints" / "ch_point_DM_time_binary_classificator_241002_3_32" / "best.pth"
    initial = load_checkpoint(first, "cpu")
    initial.threshold, initial.thresholds = 0.2, [{"threshold": 0.3, "false_per_hour": 1.0}]
    initial.normaliser, initial.measured_pair = "robust", {"candidate_classifier": weights_checksum(initial.model)}
    save_checkpoint(folder / "first.pth", initial)
    keys = {"initial_weights": "first.pth", "num_epochs": 1, "learning_rate": 1e-9}
    caplog.clear()
    caplog.set_level(logging.INFO)
    done = train(folder, config | keys)
    assert done.returncode == 0, done.stderr
    said = [record.message for record in caplog.records if "initial_weights" in record.message]
    assert len(said) == 2 and "normaliser robust, the config has minmax" in said[1]
    assert "threshold 0.2, temperature 1 and 1 thresholds by false positives per hour are not kept" in said[0]
    trained = load_checkpoint(first, "cpu")
    assert (trained.threshold, trained.thresholds, trained.measured_pair) == (0.5, [], None)
    before, after = (load_checkpoint(path, "cpu").metrics["val_loss"] for path in (folder / "first.pth", first))
    assert after == pytest.approx(before, rel=1e-3)
    [own, of_initial], [first_record] = trained.trained_images, initial.trained_images
    assert own == of_initial == first_record and own["n_images"] == 600 and len(own["trained_on"]) == 150
    wrong = train(folder, config | keys | {"seed": 5})
    assert wrong.returncode == 2
    assert "initial_weights first.pth: the validation images must not be images that it was trained on" in wrong.stderr
    wrong = train(folder, config | {"initial_weights": "first.pth", "model_name": "DM_time_small_residual"})
    assert wrong.returncode == 2 and "first.pth, got 'DM_time_small_residual'" in wrong.stderr


def test_training_learns_and_leaves_checkpoints_and_plot(training_set):
    folder, config = training_set
    done = train(folder, config)
    assert done.returncode == 0, done.stderr

    name = "DM_time_binary_classificator_241002_3_32"
    checkpoints = folder / "checkpoints" / f"ch_point_{name}"
    written = sorted(checkpoints.glob("prot-*.pth"))
    best = load_checkpoint(checkpoints / "best.pth", "cpu")
    metrics = best.metrics
    assert metrics["val_accuracy"] > 0.95
    assert written[-1].name == (
        f"prot-{metrics['epoch']:03d}-{metrics['train_accuracy']:.3f}-{metrics['val_accuracy']:.3f}.pth"
    )
    losses = [load_checkpoint(path, "cpu").metrics["val_loss"] for path in written]
    assert losses == sorted(losses, reverse=True), "a checkpoint was written without an improvement"
    assert {path.name for path in checkpoints.iterdir()} == {path.name for path in written} | {"best.pth", "last.pth"}
    assert best.config["learning_rate"] == 0.001 and best.normaliser == "minmax"

    # The weights are those of the metrics: a set that it has not seen is classified as well.
    pages, labels = streaks(200, seed=1)
    with torch.inference_mode():
        predictions = best.model(torch.from_numpy(pages)[:, None].float()).argmax(1).numpy()
    assert (predictions == (labels == "Pulse")).mean() > 0.95

    plot = folder / "images" / f"accuracy_across_epochs_for_{name}x32.jpg"
    with Image.open(plot) as image:
        assert image.format == "JPEG" and image.width > 800
    assert list(plot.parent.iterdir()) == [plot]
    for word in ("best", "training:", "validation:", "confusion:", str(written[-1]), "wall time:"):
        assert word in done.stdout


def test_the_same_seed_gives_the_same_weights_and_every_option_runs(training_set):
    folder, config = training_set
    config |= {
        "model_name": "DM_time_small_residual", "groups": "groups.npy", "augment": True, "class_weights": True,
        "optimiser": "adamw", "weight_decay": 0.01, "scheduler": "cosine", "num_workers": 1, "normaliser": "robust",
        "early_stopping_metric": "val_accuracy", "tsamp_s": 1e-4, "batch_size": 64, "amp": "bf16", "warmup_epochs": 0.5,
        "gradient_clip": 1.0,
    }  # fmt: skip
    np.save(folder / "data" / "groups.npy", np.arange(600) // 4)
    best = folder / "checkpoints" / "ch_point_DM_time_small_residual_32" / "best.pth"
    states = []
    for _ in range(2):
        done = train(folder, config, "--epochs", "1", "--device", "cpu")
        assert done.returncode == 0, done.stderr
        assert "epochs:      1" in done.stdout
        states.append(load_checkpoint(best, "cpu"))
    assert (states[0].normaliser, states[0].tsamp_s) == ("robust", 1e-4)
    for name, tensor in states[0].model.state_dict().items():
        assert torch.equal(tensor, states[1].model.state_dict()[name]), name


def test_validation_counts_and_loss_are_those_of_evaluate(training_set):
    """In bf16, some of the images, whose probabilities are near 0.5, would be counted otherwise."""
    folder, config = training_set
    config |= {"num_epochs": 1, "learning_rate": 1e-6, "amp": "bf16", "validation_fraction": 0.5}
    assert train(folder, config, "--device", "cpu").returncode == 0
    best = folder / "checkpoints" / "ch_point_DM_time_binary_classificator_241002_3_32" / "best.pth"
    trained = load_checkpoint(best, "cpu").metrics
    done = run_here(evaluate, folder / "config.json", best, "--split", "validation", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    measured = load_checkpoint(best, "cpu").metrics["evaluation"]
    assert measured["confusion"] == trained["validation_confusion"]
    assert measured["negative_log_likelihood"]["before"] == pytest.approx(trained["val_loss"], rel=1e-6)


def test_the_speed_counts_the_images_of_the_epoch(training_set, caplog):
    """A batch larger than the set has the images of the training split only."""
    caplog.set_level(logging.INFO)
    folder, config = training_set
    assert train(folder, config | {"num_epochs": 1, "batch_size": 2**20}).returncode == 0
    (line,) = [line for line in caplog.text.splitlines() if "images/s" in line]
    assert 0 < float(line.split()[-2]) < 1e5
    batches = TrainingBatches(np.arange(21), 10, seed=0)
    assert batches.n_images == sum(map(len, batches)) == 20, "a last batch of one image is left out"
    batches.first = 1
    assert batches.n_images == sum(map(len, batches)) == 10
    assert TrainingBatches(np.arange(25), 10, seed=0).n_images == 25


def test_training_stops_early(training_set):
    """Labels without meaning: the validation loss soon grows, and training ends after `patience` more epochs."""
    folder, config = training_set
    np.save(folder / "data" / "labels.npy", np.random.default_rng(0).integers(0, 2, 600))
    done = train(folder, config | {"num_epochs": 60, "patience": 2})
    assert done.returncode == 2 and "the images do not distinguish the classes" in done.stderr.splitlines()[-1]
    epochs, best = (int("".join(filter(str.isdigit, part))) for part in done.stdout.splitlines()[0].split(","))
    assert epochs == best + 2 < 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "resnet19"}, "model_name must be one of"),
        ({"resolution": 48}, "resolution of DM_time_binary_classificator_241002_3 must be"),
        ({"labels": "none.npy"}, "none.npy does not exist"),
        ({"path_to_images": "./data/labels.npy"}, "path_to_images: cannot write"),
        ({"path_to_checkpoints": "./data/labels.npy"}, "path_to_checkpoints: cannot write"),
        ({"learning_rate": 1e30}, "learning_rate 1e+30 is too high"),
        ({"patiense": 3}, "did you mean 'patience'"),
    ],
)
def test_errors_end_with_exit_code_2_and_one_sentence(training_set, changes, message):
    folder, config = training_set
    done = train(folder, config | changes)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert not list(folder.rglob("*.pth"))


def test_a_training_that_diverged_ends_with_exit_code_2_and_keeps_its_checkpoint(training_set):
    folder, config = training_set
    model_name = "DM_time_small_residual"
    done = train(folder, config | {"model_name": model_name, "learning_rate": 1e6, "num_epochs": 2})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    message = "learning_rate 1e+06 is too high, or the images do not distinguish the classes: "
    assert f"{message}the lowest validation loss must be below 0.6931" in done.stderr.splitlines()[-1]
    best = folder / "checkpoints" / f"ch_point_{model_name}_32" / "best.pth"
    assert best.exists() and "epochs:      2" in done.stdout


@pytest.mark.parametrize(
    ("losses", "outcome"),
    [
        ([0.562], "passes"),
        ([300.0], "warns"),  # a slow start: batch normalisation has not settled
        ([2.0, 0.9, 0.8, 0.7, 0.6], "warns"),
        ([300.0, 0.9, 0.8, 0.7, 0.6, 0.58], "fails"),  # more than `patience` epochs
        ([300.0, 0.9, 0.8, 0.7, 0.6, 0.5], "passes"),
        ([0.5, 0.9, 2.0, 5.0, 9.0, 20.0], "passes"),  # overfits
        ([0.6] * 6, "fails"),
        ([1e4, 1e5], "fails"),
    ],
)
def test_a_network_must_be_better_than_the_class_shares(caplog, losses, outcome):
    constant = constant_loss(np.array([0, 0, 0, 1]), np.ones(2))
    assert constant == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert constant_loss(np.array([0, 0, 0, 1]), np.array([1 / 3, 1])) == pytest.approx(np.log(2))
    keys = {"path_to_files": ".", "resolution": 32, "model_name": "x", "files_by_resolution": {"32": ["x"]}}
    config = TrainingConfig(**keys, labels=["x"], patience=5)
    with pytest.raises(training.InputError) if outcome == "fails" else contextlib.nullcontext():
        check_learned(config, [{"val_loss": loss} for loss in losses], constant)
    assert ("has not learned" in caplog.text) == (outcome == "warns")


@pytest.mark.parametrize(("n_processes", "least"), [(2, 4), (4, 8)])
def test_batches_must_have_two_images_per_process(training_set, monkeypatch, n_processes, least):
    folder, config = training_set
    monkeypatch.setattr(training, "process_group", lambda device: contextlib.nullcontext(Ranks(0, n_processes)))
    done = train(folder, config | {"batch_size": least - 1})
    assert done.returncode == 2
    expected = f"batch_size must be at least {least} for {n_processes} processes, got {least - 1}"
    assert expected in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_auto_precision_is_bf16_only_on_gpus_with_such_instructions(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert choose_precision("auto", 256, torch.device("cuda")) is dtype
    assert choose_precision("bf16", 256, torch.device("cuda")) is torch.bfloat16


def test_epochs_option_must_be_positive(training_set):
    done = train(*training_set, "--epochs", "0")
    assert done.returncode == 2 and "--epochs must be at least 1, got 0" in done.stderr.splitlines()[-1]


def test_confusion_counts():
    counts = confusion_counts(np.array([1, 1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 1, 1]))
    assert counts == ConfusionCounts(true_positives=3, false_positives=1, true_negatives=1, false_negatives=1)
    assert counts.accuracy == 4 / 6
    assert counts.precision == 3 / 4
    assert counts.recall == 3 / 4
    assert counts.f1 == 0.75


def test_rates_without_a_denominator_are_zero():
    nothing = confusion_counts(np.array([], int), np.array([], int))
    assert (nothing.accuracy, nothing.precision, nothing.recall, nothing.f1) == (0, 0, 0, 0)
    assert confusion_counts(np.array([0, 0]), np.array([0, 0])).recall == 0


def test_roll_moves_each_page_by_its_own_shift_and_loses_nothing():
    torch.manual_seed(0)
    pages = torch.arange(50 * 4 * 32).float().reshape(50, 1, 4, 32)
    shifts = set()
    for page, moved in zip(pages, RollInTime()(pages)):
        shift = next(s for s in range(32) if torch.equal(page.roll(s, dims=2), moved))
        shifts.add(shift)
    assert len(shifts) > 10


def test_a_fainter_pulse_stands_in_the_same_noise():
    torch.manual_seed(0)
    pages = 100 + 10 * torch.randn(64, 1, 128, 128)
    pages[..., 60] += 40
    fainter = FainterPulse()(pages)
    noise = fainter[..., :50].std(dim=(1, 2, 3))
    assert (noise - 10).abs().max() < 0.7
    height = fainter[..., 60].mean(dim=(1, 2)) - fainter[..., :50].mean(dim=(1, 2, 3))
    assert 40 * 0.6 - 2 < height.min() < 28 and 36 < height.max() < 40 + 2


def test_dropped_rows_are_blank_and_few():
    torch.manual_seed(0)
    pages = torch.randn(200, 1, 64, 32)
    dropped = (RowDropOut()(pages).std(dim=3) < 1e-6)[:, 0]
    part = dropped.float().mean(dim=1)
    assert 0.1 < (part > 0).float().mean() < 0.4
    assert part.max() < 0.25


def test_augmented_pages_stay_in_range_and_keep_a_strong_pulse():
    pages = 60 + 5 * torch.randn(16, 1, 32, 32)
    pages[..., 5] = 255.0
    change = augmentation()
    torch.manual_seed(1)
    augmented = change(pages)
    assert augmented.shape == pages.shape
    assert augmented.min() >= 0 and augmented.max() <= 255
    profile = augmented.mean(dim=(1, 2))
    assert (profile.amax(dim=1) - profile.median(dim=1).values > 90).all()
    torch.manual_seed(1)
    assert torch.equal(augmented, change(pages))
    assert not torch.equal(augmented, change(pages))
