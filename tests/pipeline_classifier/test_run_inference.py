"""The command line that finds pulses: what goes in comes out, and no input, however wrong, leaves half a result."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_classifier import run_inference as script
from pipeline_classifier.config import DEFAULT_CONFIG
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import to_images
from pipeline_classifier.frontend.settings import FrontEndSettings
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.checkpoint import load_checkpoint, save_checkpoint
from tests.command_line import run_here

SCRIPT = Path(DEFAULT_CONFIG).with_name("run_inference.py")
PULSES = [
    Pulse(1.0, 56.77, 20.0, 1.0),
    Pulse(2.2, 30.0, 14.0, 2.0),
    Pulse(3.4, 90.0, 30.0, 3.0),
    Pulse(4.6, 56.77, 60.0, 0.5),
]
DMS = 0.5 * np.arange(256)


def run_inference(*options: object) -> subprocess.CompletedProcess:
    return run_here(script, *options)


def candidates(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    """6 s of four known pulses."""
    path = tmp_path_factory.mktemp("observation") / "pulses.fil"
    simulate(path, EFFELSBERG, round(6 / EFFELSBERG.tsamp), PULSES, Rfi(), seed=5)
    return path


@pytest.fixture(scope="module")
def pages(observation) -> np.ndarray:
    """Pages (8, 256, 256) of the observation: four with a pulse in the middle, four without."""
    middles = [round(pulse.time_s / EFFELSBERG.tsamp) for pulse in PULSES]
    starts = np.sort(np.array([middle - 128 for middle in middles] + [middle - 5000 for middle in middles]))
    source = FilterbankPages(observation, FrontEndSettings(DMS)).with_starts(starts)
    return np.concatenate([batch.pages for batch in source.batches(64)])


WITH_PULSE = [0, 1, 0, 1, 0, 1, 0, 1]


def test_dm_time_and_snr_of_every_pulse(observation, tmp_path):
    done = run_inference("--filterbank", observation, "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = candidates(tmp_path / "out" / "candidates_pulses.csv")
    assert len(rows) == len(PULSES), "each pulse is one event, and there is no other"
    for row, pulse in zip(rows, PULSES):
        assert float(row["dm_pc_cm3"]) == pytest.approx(pulse.dm_pc_cm3, abs=1.5)
        assert float(row["time_s"]) == pytest.approx(pulse.time_s, abs=3e-3)
        assert float(row["snr"]) == pytest.approx(pulse.snr, rel=0.2)
        assert float(row["mjd"]) == pytest.approx(EFFELSBERG.tstart + pulse.time_s / 86400, abs=4e-8)
        assert int(row["first_page"]) <= int(pulse.time_s / EFFELSBERG.tsamp) // 256 <= int(row["last_page"])
        assert 0.5 <= float(row["probability"]) <= 1
    predictions = np.load(tmp_path / "out" / "predictions_pulses.npy")
    probabilities = np.load(tmp_path / "out" / "probabilities_pulses.npy")
    n_pages = -(-Filterbank(observation).nsamples // 256)
    assert predictions.dtype == np.int32 and probabilities.dtype == np.float32
    assert len(predictions) == len(probabilities) == n_pages and set(predictions) == {0, 1}
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    pictures = sorted((tmp_path / "out").glob("event_pulses_*.png"))
    assert len(pictures) == len(PULSES) and all(p.read_bytes()[:4] == b"\x89PNG" for p in pictures)
    assert len(list((tmp_path / "out").iterdir())) == 6 + len(PULSES), "no temporary file is left"


def test_the_gate_spares_the_network_and_keeps_the_pulses(observation, tmp_path):
    (tmp_path / "config.json").write_text('{"snr_gate": 7}')
    done = run_inference(
        "-c", tmp_path / "config.json", "--filterbank", observation, "--output-dir", tmp_path, "--no-plots"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary_pulses.json").read_text())
    assert summary["pages"] * 0.8 < summary["pages_gated"] < summary["pages"] - len(PULSES) + 1
    probabilities = np.load(tmp_path / "probabilities_pulses.npy")
    assert (probabilities == 0).sum() >= summary["pages_gated"]
    assert len(candidates(tmp_path / "candidates_pulses.csv")) == len(PULSES)


def test_the_longest_name_has_results(pages, tmp_path):
    name = "x" * 209
    np.save(tmp_path / f"{name}.npy", pages[:2])
    done = run_inference("--pages", tmp_path / f"{name}.npy", "--output-dir", tmp_path, "--report")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"probabilities_{name}.npy").is_file() and (tmp_path / f"event_{name}_0001.png").is_file()


def test_noise_alone_gives_nothing(tmp_path):
    simulator = SCRIPT.with_name("simulate_observation.py")
    options = ["--pulses", "0", "--rfi", "none", "--duration-s", "10", "--seed", "11"]
    subprocess.run([sys.executable, simulator, tmp_path / "noise.fil", *options], check=True, capture_output=True)
    done = run_inference("--filterbank", tmp_path / "noise.fil", "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert candidates(tmp_path / "out" / "candidates_noise.csv") == []
    assert (np.load(tmp_path / "out" / "predictions_noise.npy") == 1).mean() < 0.01, (
        "except for a page whose peaks are refused"
    )
    assert list((tmp_path / "out").glob("*.png")) == []


@pytest.mark.parametrize("layout", ["float32", "channel", "uint8"])
def test_a_batch_of_pages_or_images(pages, tmp_path, layout):
    checkpoint = torch.load(DEFAULT_CONFIG.with_name("models") / "default.pth", weights_only=True)
    batch = {
        "float32": pages,
        "channel": pages[:, None],
        "uint8": to_images(pages, checkpoint["normaliser"], 256)[0],
    }[layout]
    np.save(tmp_path / "batch.npy", batch)
    done = run_inference("--pages", tmp_path / "batch.npy", "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "predictions_batch.npy").tolist() == WITH_PULSE
    rows = candidates(tmp_path / "candidates_batch.csv")
    assert [int(row["first_page"]) for row in rows] == [1, 3, 5, 7]
    assert [row["time_s"] + row["mjd"] + row["width_ms"] for row in rows] == [""] * 4, "no times are known"
    for row, pulse in zip(rows, PULSES):
        assert float(row["dm_pc_cm3"]) == pytest.approx(pulse.dm_pc_cm3, abs=2.5)
    assert len(list(tmp_path.glob("event_batch_*.png"))) == 4
    assert "Warning" not in done.stderr


def test_images_of_another_scaling_get_the_probabilities_of_their_pages(pages, tmp_path, caplog):
    for name, batch in (("pages", pages), ("images", to_images(pages, "minmax", 256)[0])):
        np.save(tmp_path / f"{name}.npy", batch)
        done = run_inference("--pages", tmp_path / f"{name}.npy", "--output-dir", tmp_path, "--no-plots")
        assert done.returncode == 0, done.stderr
    assert "images.npy: the images seem to be scaled by minmax" in caplog.text
    assert "pages.npy: the images" not in caplog.text
    found, expected = (np.load(tmp_path / f"probabilities_{name}.npy") for name in ("images", "pages"))
    np.testing.assert_allclose(found, expected, atol=0.02)
    rows = [candidates(tmp_path / f"candidates_{name}.csv") for name in ("images", "pages")]
    for one, other in zip(*rows, strict=True):
        assert float(one["dm_pc_cm3"]) == pytest.approx(float(other["dm_pc_cm3"]), abs=1.5)


def test_constant_and_non_finite_pages_are_not_classified(pages, tmp_path):
    batch = pages.copy()
    batch[0], batch[2] = 3.0, np.nan
    batch[4, 10, 10] = np.inf
    np.save(tmp_path / "batch.npy", batch)
    done = run_inference("--pages", tmp_path / "batch.npy", "--output-dir", tmp_path, "--no-plots")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "predictions_batch.npy").tolist() == [-1, 1, -1, 1, -1, 1, 0, 1]
    assert (np.load(tmp_path / "probabilities_batch.npy")[[0, 2, 4]] == -1).all()
    assert json.loads((tmp_path / "summary_batch.json").read_text())["pages_unusable"] == 3
    assert any(line.endswith("pages constant, not finite, out of range  3") for line in done.stdout.splitlines())
    large = np.linspace(0, 1e38, 3 * 256 * 256, dtype=np.float32).reshape(3, 256, 256)
    for unusable in np.full((3, 256, 256), 7, np.uint8), large:
        np.save(tmp_path / "batch.npy", unusable)
        done = run_inference("--pages", tmp_path / "batch.npy", "--output-dir", tmp_path)
        assert done.returncode == 2 and done.stderr.endswith(
            "batch.npy: to be classified, a page must be finite, not constant and small enough to be scaled in float32, "
            "got none among 3\n"
        )
        assert np.load(tmp_path / "predictions_batch.npy").tolist() == [-1, -1, -1]
        assert candidates(tmp_path / "candidates_batch.csv") == []


def overflowing(name: str, folder: Path) -> Path:
    """A copy of an included model with weights that are finite, but overflow in the network."""
    checkpoint = load_checkpoint(DEFAULT_CONFIG.with_name("models") / name, "cpu")
    for parameter in checkpoint.model.parameters():
        parameter.data.fill_(3e38)
    save_checkpoint(folder / name, checkpoint)
    return folder / name


def test_pages_whose_probability_is_not_finite_are_not_classified(pages, tmp_path, caplog):
    """Nothing but the output shows it. The constant page is unusable for any model."""
    model = overflowing("default.pth", tmp_path)
    batch = pages.copy()
    batch[2] = 1.0
    np.save(tmp_path / "batch.npy", batch)
    config = write_config(tmp_path, path_to_models=".", name_of_the_model=model.name)
    done = run_inference("-c", config, "--pages", tmp_path / "batch.npy", "--output-dir", tmp_path, "--no-plots")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith(
        f"{model}: the output of the model must be finite, got none that is for the 7 pages of {tmp_path}/batch.npy: "
        "its weights overflow"
    )
    assert (np.load(tmp_path / "predictions_batch.npy") == -1).all()
    assert (np.load(tmp_path / "probabilities_batch.npy") == -1).all()
    summary = json.loads((tmp_path / "summary_batch.json").read_text())
    assert (summary["pages_classified"], summary["pages_unusable"], summary["pages_without_output"]) == (0, 1, 7)
    assert "batch: 1 of 8 pages are constant, not finite or out of range" in caplog.messages
    assert "batch: the model has no finite output for 7 of 8 pages" in caplog.messages


def test_candidates_whose_probability_is_not_finite_are_counted(observation, tmp_path, caplog):
    """The file is not finished: the candidate classifier has refused nothing."""
    model = overflowing("candidate_classifier.pth", tmp_path)
    config = write_config(tmp_path, candidate_classifier=str(model))
    words = ("-c", config, "--filterbank", observation, "--output-dir", tmp_path, "--no-plots", "--resume")
    done = run_inference(*words)
    summary = json.loads((tmp_path / "summary_pulses.json").read_text())
    assert summary["candidates"] == summary["candidates_without_output"] >= len(PULSES) and summary["events"] == 0
    assert summary["pages_classified"] == summary["pages"] and "pages_without_output" not in summary
    assert f"{model}: the output of the model must be finite, got none that is for the " in caplog.text
    assert done.returncode == 2 and done.stderr.endswith(
        f"all 1 files must be finished, got 1 without anything that could be classified ({observation})\n"
    )
    assert not (tmp_path / "done_pulses.json").exists()


def write_config(folder: Path, **keys: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(keys))
    return path


@pytest.mark.parametrize("n_spectra, length", [(3, 8), (8, 8), (12, 12)])
def test_a_wrong_page_count_loses_nothing(pages, tmp_path, n_spectra, length):
    np.save(tmp_path / "batch.npy", pages)
    config = write_config(tmp_path, n_spectra=n_spectra, batch_size=3)
    done = run_inference("-c", config, "--pages", tmp_path / "batch.npy", "--output-dir", tmp_path, "--no-plots")
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "predictions_batch.npy").tolist() == WITH_PULSE + [-1] * (length - 8)
    assert (np.load(tmp_path / "probabilities_batch.npy")[8:] == -1).all()
    assert len(candidates(tmp_path / "candidates_batch.csv")) == 4


def test_the_config_names_the_observation_and_the_threshold_decides(observation, tmp_path):
    config = write_config(
        tmp_path,
        path_to_filterbanks=str(observation.parent),
        name_of_the_filterbank=observation.name,
        output_dir="results",
        threshold=0.0,
        ndm=128,
    )
    assert run_inference("-c", config, "--no-plots", "--filterbank").returncode == 0
    assert (np.load(tmp_path / "results" / "predictions_pulses.npy") == 1).all()
    done = run_inference("-c", config, "--filterbank", "--no-plots", "--threshold", 1)
    assert done.returncode == 0 and (np.load(tmp_path / "results" / "predictions_pulses.npy") == 0).mean() > 0.95


def wrong_input(kind: str, folder: Path, observation: Path) -> list[object]:
    """Prepare a wrong input; return the command line that uses it."""
    whole = observation.read_bytes()
    batch, filterbank = folder / "wrong.npy", folder / "wrong.fil"
    if kind == "missing filterbank":
        return ["--filterbank", filterbank]
    if kind == "missing batch":
        return ["--pages", batch]
    if kind == "missing config":
        return ["-c", folder / "wrong.json"]
    if kind in ("truncated header", "header only", "not a filterbank", "empty file"):
        content = {
            "truncated header": whole[:100],
            "header only": whole[: Filterbank(observation).header.header_bytes],
            "not a filterbank": b"no filterbank at all" * 100,
            "empty file": b"",
        }[kind]
        filterbank.write_bytes(content)
        return ["--filterbank", filterbank]
    if kind in ("wrong shape", "empty batch", "no bytes", "npz", "axes", "HDF5"):
        shape = {"wrong shape": (4, 256), "axes": (256, 256, 6)}.get(kind, (0, 256, 256))
        np.save(batch, np.zeros(shape, np.float32))
        if kind in ("no bytes", "HDF5"):
            batch.write_bytes(b"" if kind == "no bytes" else b"\x89HDF\r\n\x1a\n")
        elif kind == "npz":
            np.savez(folder / "pages.npz", pages=np.zeros((2, 256, 256)))
            (folder / "pages.npz").rename(batch)
        return ["--pages", batch]
    if kind in ("long name", "not UTF-8"):
        filterbank = folder / ("x" * 250 + ".fil" if kind == "long name" else os.fsdecode(b"caf\xe9.fil"))
        filterbank.write_bytes(whole)
        return ["--filterbank", filterbank]
    if kind in ("long name of pages", "not UTF-8 pages"):
        batch = folder / ("x" * 215 + ".npy" if kind == "long name of pages" else os.fsdecode(b"caf\xe9.npy"))
        np.save(batch, np.zeros((1, 256, 256), np.float32))
        return ["--pages", batch]
    if kind in ("folder as filterbank", "folder as batch"):
        return ["--filterbank" if kind == "folder as filterbank" else "--pages", folder]
    if kind == "pattern of batches":
        np.save(folder / "o1.npy", np.zeros((1, 256, 256), np.float32))
        return ["--pages", folder / "o*.npy"]
    if kind == "threshold":
        return ["--filterbank", observation, "--threshold", 2]
    (folder / "weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (folder / "weights.pth").write_bytes(b"\x89HDF\r\n\x1a\n")
    (folder / "damaged.pth").write_bytes((DEFAULT_CONFIG.with_name("models") / "default.pth").read_bytes()[:5000])
    default = torch.load(DEFAULT_CONFIG.with_name("models") / "default.pth", weights_only=True)
    torch.save(default["state_dict"], folder / "bare.pth")
    (folder / "transientx.json").write_text(json.dumps({"preprocesslite": {"fd": 4096}}))
    keys = {
        "unknown key": {"tresholds": 1},
        "h5 model": {"name_of_the_model": "weights.h5"},
        "h5 in disguise": {"path_to_models": str(folder), "name_of_the_model": "weights.pth"},
        "damaged model": {"path_to_models": str(folder), "name_of_the_model": "damaged.pth"},
        "missing model": {"name_of_the_model": "wrong.pth"},
        "another model": {"model_name": "resnet18"},
        "another resolution": {"resolution": 64},
        "weights of another model": {
            "path_to_models": str(folder),
            "name_of_the_model": "bare.pth",
            "model_name": "resnet18",
            "resolution": 256,
        },
        "unknown architecture": {
            "path_to_models": str(folder),
            "name_of_the_model": "bare.pth",
            "model_name": "resnet19",
            "resolution": 256,
        },
        "no GPU": {"device": "gpu"},
        "huge n_spectra": {"n_spectra": 10**14},
        "fd": {"path_to_a_transientx_config": "transientx.json"},
    }[kind]
    return ["-c", write_config(folder, **keys), "--filterbank", observation]


@pytest.mark.parametrize(
    "kind, named",
    [
        ("missing filterbank", "wrong.fil"),
        ("missing batch", "wrong.npy: must be one .npy file of pages, got no such file"),
        ("missing config", "wrong.json"),
        ("truncated header", "wrong.fil"),
        ("header only", "wrong.fil"),
        ("not a filterbank", "wrong.fil"),
        ("empty file", "wrong.fil"),
        ("wrong shape", "got (4, 256); save page[None] for a batch of one page"),
        ("empty batch", "wrong.npy"),
        ("no bytes", "wrong.npy"),
        ("npz", "wrong.npy"),
        ("axes", "(n_dm, n_time, N): save pages.transpose(2, 0, 1)"),
        ("HDF5", "an HDF5 file"),
        ("folder as filterbank", "must be a filterbank file, got a folder; name the files in it, as '"),
        ("folder as batch", "must be one .npy file of pages, got a folder"),
        ("pattern of batches", "o*.npy: must be one .npy file of pages, got a pattern: search the files"),
        ("long name", "must have at most 209 bytes without its suffix, as outputs are named after it, got 250"),
        ("not UTF-8", "the file name must be UTF-8"),
        ("long name of pages", "must have at most 209 bytes"),
        ("not UTF-8 pages", "the file name must be UTF-8"),
        ("threshold", "--threshold must be a probability"),
        ("unknown key", "tresholds"),
        ("h5 model", "convert_to_pytorch.py"),
        ("h5 in disguise", "convert_to_pytorch.py"),
        ("damaged model", "damaged.pth"),
        ("missing model", "wrong.pth"),
        ("another model", "resnet18"),
        ("another resolution", "64"),
        ("weights of another model", "bare.pth"),
        ("unknown architecture", "resnet19"),
        ("no GPU", "device"),
        ("huge n_spectra", "key 'n_spectra' must be at most 100000000, got 100000000000000"),
        ("fd", "pulses.fil: must have at least 4096 channels (fd), got 256"),
    ],
)
def test_a_wrong_input_ends_in_one_sentence(kind, named, observation, tmp_path):
    options = wrong_input(kind, tmp_path, observation)
    before = sorted(tmp_path.iterdir())
    done = run_inference(*options, "--output-dir", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    *log_lines, last = done.stderr.splitlines()
    assert last.startswith("run_inference.py: error: ") and named in last
    # Lines of the log begin with the time; nothing else may stand before the sentence.
    assert all(line[:2].isdigit() and line[2] == ":" for line in log_lines), done.stderr
    out = tmp_path / "out"
    assert not out.exists() or list(out.iterdir()) == []
    assert [path for path in sorted(tmp_path.iterdir()) if path != out] == before
