"""Training sets: images, labels and groups from a truth table or a TransientX list, by the command line."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier import create_dataset as script
from pipeline_classifier.config import DEFAULT_CONFIG
from pipeline_classifier.formats.sigproc import Filterbank, FilterbankWriter
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import to_images
from pipeline_classifier.frontend.settings import FrontEndSettings
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate, write_truth
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.checkpoint import Checkpoint, save_checkpoint
from single_pulse_classifier_training.training_models import build_model
from tests.command_line import run_here

DEFAULT_MODEL = Path(script.__file__).with_name("models") / "default.pth"
HEADER = replace(EFFELSBERG, nchans=64, foff=-5.0, tsamp=4.096e-4)
PULSES = [Pulse(1.0, 56.77, 40.0, 2.0), Pulse(3.0, 57.2, 30.0, 3.0)]
SHIFTS = 8


def create_dataset(*options: object, folder: Path) -> subprocess.CompletedProcess:
    return run_here(script, *options, folder=folder)


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("observation") / "crab.fil"
    simulate(path, HEADER, round(5 / HEADER.tsamp), PULSES, Rfi(), seed=2)
    return path


def load(folder: Path, name: str) -> dict[str, np.ndarray]:
    prefix = f"{name}_DM_time_dataset_realbased_"
    return {
        path.name.removeprefix(prefix).removesuffix(".npy"): np.load(path) for path in folder.glob(f"{prefix}*.npy")
    }


def pulse_columns(images: np.ndarray) -> np.ndarray:
    """Column of the brightest pixels around the rows of DM 57 (N,); row 0 is the highest DM, 127.5."""
    rows = images[:, 255 - 116 : 255 - 111].astype(float).sum(axis=1)
    return rows.argmax(axis=1)


def test_a_set_from_the_truth_of_a_simulation(observation, tmp_path):
    options = ("--shifts", SHIFTS, "--sky-pages", 0.5, "--resolutions", 256, 64, "--name", "set", "--seed", 1)
    options += ("--normaliser", "minmax")
    done = create_dataset(observation, *options, "--output-dir", tmp_path / "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    files = load(tmp_path / "out", "set")
    assert set(files) == {"training", "training_64x64", "labels_training", "groups_training", "snr_training"}
    images, labels, groups, snr = (
        files[key] for key in ("training", "labels_training", "groups_training", "snr_training")
    )
    n = 3 * SHIFTS
    assert images.shape == (n, 256, 256) and images.dtype == np.uint8 and files["training_64x64"].shape == (n, 64, 64)
    assert groups.dtype == np.int64 and snr.dtype == np.float32
    assert (labels == "Pulse").sum() == 2 * SHIFTS and (labels == "Artefact").sum() == SHIFTS
    assert (images.max(axis=(1, 2)) == 255).all() and (images.min(axis=(1, 2)) == 0).all()
    assert '"normaliser": "minmax"' in done.stdout

    # One group per pulse, its images shifted copies; every page of sky is a group of its own.
    sizes = {group: (groups == group).sum() for group in groups}
    assert sorted(sizes.values()) == [1] * SHIFTS + [SHIFTS] * 2
    for pulse in PULSES:
        chosen = np.flatnonzero(np.isclose(snr, pulse.snr))
        assert len(chosen) == SHIFTS and len(set(groups[chosen])) == 1 and (labels[chosen] == "Pulse").all()
        columns = pulse_columns(images[chosen[1:-1]])  # at the very edge half of the pulse is cut off
        expected = np.round(np.linspace(0, 255, SHIFTS))[::-1][1:-1]
        assert np.abs(columns - expected).max() <= 5
        a, b = chosen[3], chosen[4]
        shift = int(round(np.linspace(0, 255, SHIFTS)[4]) - round(np.linspace(0, 255, SHIFTS)[3]))
        left, right = images[a][:, shift:].astype(float).ravel(), images[b][:, :-shift].astype(float).ravel()
        assert np.corrcoef(left, right)[0, 1] > 0.98
    assert np.isnan(snr[labels == "Artefact"]).all()

    # Another resolution is the average of the same image.
    mean = images.reshape(n, 64, 4, 64, 4).mean(axis=(2, 4))
    assert np.abs(files["training_64x64"] - mean).max() <= 1
    first_line = done.stdout.splitlines()[0]
    assert first_line.startswith(f"{n} images: {2 * SHIFTS} Pulse, {SHIFTS} Artefact")


def save_model(path: Path, normaliser: str) -> None:
    name, resolution = "DM_time_small_residual", 256
    save_checkpoint(path, Checkpoint(build_model(name, resolution), name, resolution, normaliser=normaliser))


@pytest.mark.parametrize(
    "keys, options, expected",
    [
        (None, (), "robust"),
        (None, ("--normaliser", "minmax"), "minmax"),
        ({"name_of_the_model": "trained_later.pth"}, (), "robust"),
        ({"path_to_models": ".", "name_of_the_model": "mine.pth"}, (), "minmax"),
        ({"path_to_models": ".", "name_of_the_model": "mine.pth"}, ("--normaliser", "robust"), "robust"),
    ],
)
def test_an_image_is_what_the_pipeline_sees(observation, tmp_path, keys, options, expected):
    """Scaled as the model of the config expects, unless the command line says otherwise."""
    if keys is not None:
        save_model(tmp_path / "mine.pth", "minmax")
        (tmp_path / "config.json").write_text(json.dumps(keys))
        options += ("-c", "config.json")
    done = create_dataset(observation, "--shifts", 1, "--sky-pages", 0, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    images = load(tmp_path, "crab")["training"]
    starts = np.array([int(pulse.time_s / HEADER.tsamp) for pulse in PULSES])
    source = FilterbankPages(observation, FrontEndSettings(0.5 * np.arange(256))).with_starts(starts)
    [batch] = source.batches(64)
    np.testing.assert_array_equal(images, to_images(batch.pages, expected, 256)[0])
    assert f'"normaliser": "{expected}"' in done.stdout


@pytest.mark.parametrize("option", ["-c", "--hard-negatives"])
def test_a_model_for_candidates_is_not_one_for_pages(observation, tmp_path, option):
    model = DEFAULT_CONFIG.with_name("models") / "candidate_classifier.pth"
    (tmp_path / "config.json").write_text(json.dumps({"name_of_the_model": str(model)}))
    value = {"-c": "config.json", "--hard-negatives": model}[option]
    done = create_dataset(observation, option, value, "--shifts", 1, folder=tmp_path)
    assert done.returncode == 2 and "candidate_classifier.pth: must be a model for pages (normaliser" in done.stderr
    assert not list(tmp_path.glob("*.npy"))


def test_pages_of_several_stacks_of_trial_dms_are_no_set(observation, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"ndm": 257}))
    done = create_dataset(observation, "-c", "config.json", "--output-dir", "out", folder=tmp_path)
    assert done.returncode == 2 and "ndm must be at most 256 in a training set of pages, got 257" in done.stderr
    assert not (tmp_path / "out").exists()


def test_ifs_and_exact_dedispersion_of_the_config_are_obeyed(observation, tmp_path):
    samples = Filterbank(observation).read(0, Filterbank(observation).nsamples)
    noise = np.random.default_rng(4).integers(80, 120, samples.shape, dtype=np.uint8)
    with FilterbankWriter(tmp_path / "two.fil", replace(HEADER, nifs=2)) as file:
        file.write(np.stack([noise, samples], axis=1))
    (tmp_path / "two_truth.csv").write_bytes(observation.with_name("crab_truth.csv").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"ifs": 1, "exact_dedispersion": True}))
    options = ("-c", "config.json", "--shifts", 1, "--sky-pages", 0)
    done = create_dataset(tmp_path / "two.fil", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    starts = np.array([int(pulse.time_s / HEADER.tsamp) for pulse in PULSES])
    settings = FrontEndSettings(0.5 * np.arange(256), exact=True)
    [batch] = FilterbankPages(observation, settings).with_starts(starts).batches(64)
    expected = to_images(batch.pages, "robust", 256)[0]
    np.testing.assert_array_equal(load(tmp_path, "two")["training"], expected)


def candidate(number: int, time_s: float, dm: float, snr: float, width_ms: float = 2.0) -> str:
    mjd = f"{HEADER.tstart + time_s / 86400:.12f}"
    return (
        "\t".join(
            [
                "1",
                str(number),
                mjd,
                str(dm),
                str(width_ms),
                str(snr),
                "1532.5",
                "1212.5",
                f"image_{number}.png",
                "x",
                "crab.fil",
            ]
        )
        + "\n"
    )


def test_a_set_from_a_transientx_list(observation, tmp_path, caplog):
    (tmp_path / "crab.cands").write_text(
        candidate(1, 1.0, 56.9, 38)
        + candidate(2, 2.0, 0.0, 12)
        + candidate(3, 2.5, 30.0, 9)
        + candidate(4, 3.0, 57.2, 29)
    )
    done = create_dataset(
        observation,
        "--cands",
        "crab.cands",
        "--shifts",
        SHIFTS,
        "--sky-pages",
        0,
        "--resolutions",
        128,
        "--name",
        "list",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    files = load(tmp_path, "list")
    labels, groups, snr = (files[f"{key}_training"] for key in ("labels", "groups", "snr"))
    assert files["training_128x128"].shape == (3 * SHIFTS, 128, 128) and "training" not in files
    assert sorted(np.unique(groups, return_counts=True)[1]) == [SHIFTS] * 3, "the candidate at DM 30 is neither"
    assert (labels == "Pulse").sum() == 2 * SHIFTS and set(snr[labels == "Pulse"]) == {38, 29}
    assert all(len(set(labels[groups == group])) == 1 for group in groups)

    elsewhere = create_dataset(
        observation, "--cands", "crab.cands", "--shifts", 1, "--pulse-dm", 20, 21, "--name", "none", folder=tmp_path
    )
    assert elsewhere.returncode == 0 and "no training config" in elsewhere.stdout
    assert "no candidate is a pulse, with a DM in --pulse-dm [20.0, 21.0]; the brightest of 4 has a DM of 56.9" in (
        caplog.text
    )

    wide = create_dataset(
        observation,
        "--cands",
        "crab.cands",
        "--shifts",
        SHIFTS,
        "--sky-pages",
        0,
        "--pulse-dm",
        57,
        60,
        "--artefact-dm",
        29,
        31,
        "--name",
        "wide",
        folder=tmp_path,
    )
    assert wide.returncode == 0, wide.stderr
    files = load(tmp_path, "wide")
    assert set(files["snr_training"][files["labels_training"] == "Pulse"]) == {29}
    assert (files["labels_training"] == "Artefact").sum() == SHIFTS


def test_sky_without_pulses_alone_and_several_observations(observation, tmp_path):
    simulate(tmp_path / "sky.fil", HEADER, 3000, [], Rfi(), seed=4)
    done = create_dataset(observation, "sky.fil", "--shifts", 2, "--name", "both", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    files = load(tmp_path, "both")
    labels, groups = files["labels_training"], files["groups_training"]
    # Every pulse-free page of an observation without pulses is taken.
    assert (labels == "Pulse").sum() == 4 and len(labels) >= 8 + 3000 // 256 - 1
    assert sorted(np.unique(groups[labels == "Pulse"], return_counts=True)[1]) == [2, 2]
    assert not set(groups[labels == "Pulse"]) & set(groups[labels == "Artefact"])
    assert len(set(groups[labels == "Artefact"])) == (labels == "Artefact").sum()


def test_hard_negatives_are_the_sky_that_fools_a_model(observation, tmp_path):
    """The truth names the first pulse alone: to the model the second one is no sky."""
    (tmp_path / "crab.fil").symlink_to(observation)
    write_truth(tmp_path / "crab_truth.csv", PULSES[:1], [2.0], HEADER.tstart)
    options = ("--shifts", 1, "--sky-pages", 100, "--normaliser", "robust", "--hard-negatives", DEFAULT_MODEL)
    done = create_dataset("crab.fil", *options, "--name", "set", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    files = load(tmp_path, "set")
    sky = files["training"][files["labels_training"] == "Artefact"]
    assert 1 <= len(sky) <= 4 and sky[:, 255 - 116 : 255 - 111].max() > 150


def test_candidates_outside_the_observation_are_left_out(observation, tmp_path):
    (tmp_path / "crab.cands").write_text(
        candidate(1, 3.0, 57.2, 29) + candidate(2, -50.0, 57, 30) + candidate(3, 99, 57, 31)
    )
    done = create_dataset(
        observation, "--cands", "crab.cands", "--shifts", 4, "--sky-pages", 0, "--name", "a", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert set(load(tmp_path, "a")["snr_training"]) == {29}


GOOD = candidate(1, 1.0, 57.0, 20)


@pytest.mark.parametrize(
    "content, options, named",
    [
        (None, (), "crab.cands"),
        (b"1\t2\t3\n", (), "line 1"),
        (GOOD.encode() + GOOD.replace("57.0", "high").encode(), (), "line 2"),
        (GOOD.replace("\t", ",").encode(), (), "line 1"),
        (GOOD.replace("57.0", "nan").encode(), (), "line 1"),
        (GOOD.replace("1\t1\t59000", "1\t1\tnan59000").encode(), (), "line 1"),
        (candidate(1, 999, 57, 20).encode(), (), "no page"),
        (b"\xff\xfe\x00\x01" * 50, (), "crab.cands"),
        (GOOD.encode(), ("--shifts", 0), "--shifts"),
        (GOOD.encode(), ("--sky-pages", -1), "--sky-pages"),
        (GOOD.encode(), ("--resolutions", 0), "--resolutions"),
        (GOOD.encode(), ("--normaliser", "zscore"), "minmax"),
        (GOOD.encode(), ("--seed", -1), "--seed"),
    ],
    ids=[
        "missing",
        "short",
        "a word",
        "commas",
        "DM nan",
        "no MJD",
        "elsewhere",
        "binary",
        "shifts",
        "sky",
        "resolution",
        "normaliser",
        "seed",
    ],
)
def test_a_bad_list_or_option_ends_in_one_sentence(observation, tmp_path, content, options, named):
    if content is not None:
        (tmp_path / "crab.cands").write_bytes(content)
    done = create_dataset(
        observation, "--cands", "crab.cands", "--sky-pages", 0, "--output-dir", "out", *options, folder=tmp_path
    )
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert named in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr and done.stdout == ""
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_dm_window_upside_down_is_refused(observation, tmp_path):
    done = create_dataset(observation, "--cands", "b", "--pulse-dm", 58, 56, folder=tmp_path)
    assert done.returncode == 2 and "--pulse-dm must be a lower and a higher DM, got 58 56" in done.stderr


@pytest.mark.parametrize("kind", ["no truth", "wrong truth", "no observation", "no filterbank", "two lists"])
def test_a_bad_observation_or_truth(observation, tmp_path, kind):
    (tmp_path / "a.fil").write_bytes(b"nothing" if kind == "no filterbank" else observation.read_bytes())
    options = {"no observation": ["b.fil"], "two lists": ["a.fil", "--cands", "b", "c"]}.get(kind, ["a.fil"])
    if kind == "wrong truth":
        (tmp_path / "a_truth.csv").write_text("time_s,dm_pc_cm3\n1,2\n")
    done = create_dataset(*options, "--output-dir", "out", folder=tmp_path)
    named = {
        "no truth": "a_truth.csv",
        "wrong truth": "snr",
        "no observation": "b.fil",
        "no filterbank": "a.fil",
        "two lists": "--cands must name a list for each",
    }[kind]
    assert done.returncode == 2 and named in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
    assert Filterbank(observation).nsamples > 0
