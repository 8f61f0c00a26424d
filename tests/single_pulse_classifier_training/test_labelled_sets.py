"""Labelled sets of the two scripts that make them: the description, the ready training config, and what training
refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_classifier import create_candidate_dataset, create_dataset, simulate_observation
from single_pulse_classifier_training import training
from single_pulse_classifier_training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from single_pulse_classifier_training.set_description import SetDescription, description_of
from single_pulse_classifier_training.training_models import build_model
from tests.command_line import run_here

PAGES, PEAKS = "DM_time_dataset_realbased", "DM_time_dataset_peaks"
TSAMP_S = 4e-4


def run(script, *options: object, folder: Path) -> str:
    done = run_here(script, *options, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def simulate(folder: Path, name: str, *options: object) -> None:
    band = ("--nchans", 32, "--foff", -8, "--tsamp-us", TSAMP_S * 1e6, "--rfi", "none", "--dm-max", 60)
    run(simulate_observation, f"{name}.fil", *band, *options, folder=folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Sets "robust" and "minmax" of one observation and "other" of another, of 32 x 32 pixels; candidates "robust"."""
    folder = tmp_path_factory.mktemp("sets")
    for name, seed in (("a", 1), ("b", 2)):
        simulate(folder, name, "--duration-s", 4, "--pulses", 6, "--snr-min", 20, "--seed", seed)
    sets = (("a", "robust", "robust"), ("a", "minmax", "minmax"), ("b", "other", "robust"))
    for observation, name, normaliser in sets:
        options = ("--shifts", 4, "--resolutions", 32, "--name", name, "--normaliser", normaliser)
        run(create_dataset, f"{observation}.fil", *options, folder=folder)
    # To this truth table half of the pulses of a.fil are artefacts.
    (folder / "c.fil").symlink_to("a.fil")
    (folder / "c_truth.csv").write_text("".join((folder / "a_truth.csv").open().readlines()[:4]))
    run(create_candidate_dataset, "c.fil", "b.fil", "--name", "robust", folder=folder)
    return folder


@pytest.fixture
def sets(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "sets", symlinks=True)
    return tmp_path / "sets"


def train(folder: Path, config: str = "training_robust.json", **changes: object) -> subprocess.CompletedProcess:
    """Train one epoch with changed keys of a config; None removes a key."""
    content = json.loads((folder / config).read_text()) | changes
    (folder / "changed.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    torch.set_num_threads(1)
    return run_here(training, folder / "changed.json", "--epochs", 1)


def trained(folder: Path, model_name: str, resolution: int):
    return load_checkpoint(folder / f"checkpoints/robust/ch_point_{model_name}_{resolution}/best.pth", "cpu")


def test_the_description_says_what_is_in_the_files(made):
    path = made / f"robust_{PAGES}_training_32x32.npy"
    description = description_of(path)
    labels, groups = (np.load(made / f"robust_{PAGES}_{key}_training.npy") for key in ("labels", "groups"))
    assert description.files_by_resolution == {"32": path.name} and description.normaliser == "robust"
    assert description.labels == f"robust_{PAGES}_labels_training.npy"
    assert description.dms == [0.5 * n for n in range(256)]
    assert (description.tsamp_s, description.page_s) == pytest.approx((TSAMP_S, 256 * TSAMP_S))
    assert description.classes == {"Pulse": (labels == "Pulse").sum(), "Artefact": (labels == "Artefact").sum()}
    assert (description.n_images, description.n_events) == (len(labels), len(set(groups)))
    assert description.pulse_free_hours is None
    [origin] = description.origin
    assert (origin.file, origin.truth) == ("a.fil", "a_truth.csv") and origin.duration_s == pytest.approx(4)
    assert description_of(made / "sky.npy") is None

    candidates = description_of(made / f"robust_{PEAKS}_training_64x64.npy")
    assert candidates.normaliser == "noise" and candidates.dms is candidates.tsamp_s is candidates.page_s is None
    assert [origin.file for origin in candidates.origin] == ["c.fil", "b.fil"]


@pytest.mark.parametrize(
    "config, model_name, resolution, normaliser",
    [
        ("training_robust.json", "DM_time_small_residual", 32, "robust"),
        ("training_robust_candidates.json", "DM_time_freq_time_candidate_classifier", 64, "noise"),
    ],
)
def test_the_ready_config_trains_the_network_of_the_model_card(sets, config, model_name, resolution, normaliser):
    torch.set_num_threads(1)
    done = run_here(training, sets / config, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    checkpoint = trained(sets, model_name, resolution)
    assert checkpoint.normaliser == normaliser and type(checkpoint.model) is type(build_model(model_name, resolution))
    assert checkpoint.config["learning_rate"] == 2e-3 and checkpoint.config["groups"] is not None


def test_a_config_that_does_not_say_it_takes_normaliser_dms_and_sampling_time_of_the_set(sets):
    done = train(sets, normaliser=None, dms=None, tsamp_s=None)
    assert done.returncode == 0, done.stderr
    checkpoint = trained(sets, "DM_time_small_residual", 32)
    assert checkpoint.normaliser == checkpoint.config["normaliser"] == "robust"
    assert checkpoint.dms == [0.5 * n for n in range(256)] and checkpoint.tsamp_s == pytest.approx(TSAMP_S)


def names(*sets: str) -> dict[str, object]:
    """Config keys that join the files of sets."""
    keys = ("labels", "groups")
    images = {"files_by_resolution": {"32": [f"{name}_{PAGES}_training_32x32.npy" for name in sets]}}
    return images | {key: [f"{name}_{PAGES}_{key}_training.npy" for name in sets] for key in keys} | {"snr": None}


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"normaliser": "minmax"}, "key 'normaliser' must be 'robust', as .*robust_DM.*_set.json says"),
        ({"tsamp_s": 5e-4}, "key 'tsamp_s' must be 0.0004, as .* got 0.0005"),
        ({"dms": [0.0, 1.0]}, "key 'dms' must be 256 from 0 to 127.5, as .* got 2 from 0 to 1"),
        ({"resolution": 64, "files_by_resolution": {"64": f"robust_{PAGES}_training_32x32.npy"}}, "key 'resolution'"),
        ({"labels": f"minmax_{PAGES}_labels_training.npy"}, "key 'labels' must name files of the same set"),
        ({"groups": f"minmax_{PAGES}_groups_training.npy"}, "key 'groups' must name files of the same set"),
        ({"snr": f"minmax_{PAGES}_snr_training.npy"}, "key 'snr' must name files of the same set"),
        (names("robust", "minmax") | {"normaliser": None}, "normaliser must be 'robust', as in .* got 'minmax'"),
        (names("robust", "other") | {"labels": names("other", "robust")["labels"]}, "key 'labels' must name files"),
        ({"test_files": {k: v for k, v in names("minmax").items() if v}}, "normaliser must be 'robust', as in"),
    ],
    ids=["normaliser", "tsamp", "dms", "resolution", "labels", "groups", "snr", "joined", "order", "test files"],
)
def test_what_contradicts_the_description_is_refused(sets, changes, named):
    done = train(sets, **changes)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(named, done.stderr.splitlines()[-1]), done.stderr


def test_sets_that_agree_are_joined(sets):
    done = train(sets, **names("robust", "other"))
    assert done.returncode == 0, done.stderr
    path = sets / f"other_{PAGES}_set.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tsamp_s": 5e-4}))
    done = train(sets, tsamp_s=None, **names("robust", "other"))
    assert done.returncode == 0 and trained(sets, "DM_time_small_residual", 32).tsamp_s is None, done.stderr


def test_a_set_without_a_description_that_is_joined_with_a_described_one_is_named(sets, caplog):
    """What the described set says is taken for both, and its groups are not used: both is said."""
    robust, other = f"robust_{PAGES}", sets / f"other_{PAGES}_training_32x32.npy"
    description = sets / f"other_{PAGES}_set.json"
    silent = {"normaliser": None, "dms": None, "tsamp_s": None, "groups": None}
    assert train(sets, **names("robust", "other") | silent).returncode == 0
    assert "also for" not in caplog.text and "is not used" not in caplog.text
    description.unlink()
    assert train(sets, **names("robust", "other") | silent).returncode == 0
    assert f"normaliser, dms, tsamp_s: taken from {robust}_set.json, also for {other}, which has no" in caplog.text
    assert f"groups: {robust}_groups_training.npy is not used, because {other} has no groups file" in caplog.text
    caplog.clear()
    assert train(sets, **names("robust", "other")).returncode == 0
    assert "also for" not in caplog.text and "is not used" not in caplog.text, "the config says everything"


def test_labels_of_a_described_set_are_refused_for_other_images(sets):
    """Of the same number, and without a description of their own: the names say that they are of two sets."""
    (sets / f"minmax_{PAGES}_set.json").unlink()
    done = train(sets, **names("minmax"), normaliser="minmax")
    assert done.returncode == 0, done.stderr
    done = train(sets, **names("minmax") | {"labels": f"robust_{PAGES}_labels_training.npy"}, normaliser="minmax")
    assert done.returncode == 2 and "key 'labels' must name files of the same sets as the images" in done.stderr


def test_labels_that_contradict_the_classes_of_the_description_are_refused(sets):
    path = sets / f"robust_{PAGES}_labels_training.npy"
    labels = np.load(path)
    n = (labels == "Pulse").sum()
    labels[np.flatnonzero(labels == "Artefact")[0]] = "Pulse"
    np.save(path, labels)
    done = train(sets)
    assert done.returncode == 2
    assert re.search(f"{path}: the number of pulses must be {n}, as in .*_set.json, got {n + 1}$", done.stderr)


@pytest.mark.parametrize("key", ["training_32x32", "labels_training", "groups_training"])
def test_a_file_of_another_number_of_images_is_refused(sets, key):
    path = sets / f"robust_{PAGES}_{key}.npy"
    np.save(path, np.load(path)[:-1])
    done = train(sets)
    assert done.returncode == 2 and f"{path}: the number must be" in done.stderr


def test_a_set_that_is_not_complete_has_no_description(sets, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "x.npy")

    monkeypatch.setattr(create_dataset, "write_images", fail)
    assert run_here(create_dataset, "a.fil", "--name", "robust", folder=sets).returncode == 2
    assert not (sets / f"robust_{PAGES}_set.json").exists() and (sets / f"minmax_{PAGES}_set.json").exists()


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"normaliser": "zscore"}, "key 'normaliser' must be 'minmax', 'robust' or 'noise'"),
        ({"labels": "/etc/labels.npy"}, "must be a file name without a folder"),
        ({"n_images": 3}, "classes must have 3 images together"),
        ({"files_by_resolution": {"32": "x_training_32x32.npy"}}, "files_by_resolution must name robust_DM"),
        ({"dms": None, "tsamp_s": "fast"}, "key 'tsamp_s' must be a number"),
        ({"dms": [127.5, 0.0]}, "key 'dms' must be trial DMs, lowest first, got 127.5 before 0"),
        ({"dms": []}, "key 'dms' must be a list of trial DMs, got []"),
    ],
)
def test_a_damaged_description_is_refused_and_unknown_keys_are_tolerated(sets, caplog, changes, named):
    path = sets / f"robust_{PAGES}_set.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"telescope": "GBT"}))
    assert isinstance(description_of(sets / f"robust_{PAGES}_training_32x32.npy"), SetDescription)
    assert "unknown keys are ignored: telescope" in caplog.text
    path.write_text(json.dumps(content | changes))
    done = train(sets)
    assert done.returncode == 2 and f"{path}: " in done.stderr and named in done.stderr, done.stderr


def test_pulse_free_sky_knows_its_hours(made, tmp_path):
    simulate(tmp_path, "sky", "--pulse-free", 0.002)
    assert len((tmp_path / "sky_truth.csv").read_text().splitlines()) == 1
    out = run(create_dataset, "sky.fil", "--resolutions", 32, folder=tmp_path)
    description = description_of(tmp_path / f"sky_{PAGES}_training_32x32.npy")
    assert description.pulse_free_hours == pytest.approx(0.002, abs=2 * 256 * TSAMP_S / 3600)
    hours = description.n_images * description.page_s / 3600
    assert description.pulse_free_hours == pytest.approx(hours) and description.classes["Pulse"] == 0
    assert f"pulse-free: {hours:.4g} h in {description.n_images} pages" in out
    assert not (tmp_path / "training_sky.json").exists()

    # Pages beside pulses, and those that a model selects, are no measure of time.
    name = "DM_time_small_residual"
    save_checkpoint(tmp_path / "any.pth", Checkpoint(build_model(name, 32), name, 32, normaliser="robust"))
    for observations in (("sky.fil", made / "a.fil"), ("sky.fil", "--hard-negatives", "any.pth")):
        options = ("--resolutions", 32, "--shifts", 1, "--name", "selected")
        run(create_dataset, *observations, *options, folder=tmp_path)
        assert description_of(tmp_path / f"selected_{PAGES}_training_32x32.npy").pulse_free_hours is None


@pytest.mark.slow
def test_the_commands_of_the_guide_run_as_they_are(tmp_path):
    """The chapter "Your own set", with less data and one epoch; the scripts are links, so that data/ is a new folder."""
    here = Path(training.__file__).parent
    chapter = (here / "README.md").read_text().split("### Your own set\n")[1].split("\n### ")[0]
    commands = chapter.split("```\n")[1]
    for word, shorter in (
        ("--duration-s 120 --pulses 80", "--duration-s 20 --pulses 16"),
        ("--pulse-free 0.05", "--pulse-free 0.012"),
        ("--shifts 24", "--shifts 4"),
        ("training_mine.json\npython evaluate.py", "training_mine.json --epochs 1\npython evaluate.py"),
    ):
        assert commands.count(word) == 1
        commands = commands.replace(word, shorter)
    (tmp_path / "training" / "data").mkdir(parents=True)
    for script in ("training.py", "evaluate.py"):
        (tmp_path / "training" / script).symlink_to(here / script)
    (tmp_path / "pipeline_classifier").symlink_to(Path(create_dataset.__file__).parent)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=tmp_path / "training",
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "training" / "data" / "out" / "candidates_mine.csv").exists()
