"""The results of an observation are never replaced by those of another one of the same name."""

import csv
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier import run_inference
from pipeline_classifier.detection import many_files
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from tests.command_line import run_here

HEADER = replace(EFFELSBERG, nchans=64, foff=-5.0, tsamp=4.096e-4)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> list[Path]:
    """Two observations of 0.8 s, with a pulse at 0.3 s and at 0.5 s."""
    folder = tmp_path_factory.mktemp("observations")
    for number, time_s in enumerate((0.3, 0.5)):
        simulate(folder / f"{number}.fil", HEADER, 2048, [Pulse(time_s, 56.77, 40.0, 2.0)], Rfi(), seed=number)
    return [folder / "0.fil", folder / "1.fil"]


@pytest.fixture
def files(simulated, tmp_path) -> list[Path]:
    """Copies x1/a.fil and x2/a.fil."""
    copies = [tmp_path / name / "a.fil" for name in ("x1", "x2")]
    for path, copy in zip(simulated, copies, strict=True):
        copy.parent.mkdir()
        shutil.copy(path, copy)
    return copies


def search(*options: object, out: Path):
    return run_here(run_inference, *options, "--output-dir", out, "--no-plots")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(".lock")}


def times(path: Path) -> list[float]:
    with open(path, newline="") as file:
        return [round(float(row["time_s"]), 1) for row in csv.DictReader(file)]


@pytest.mark.parametrize("first", [(), ("--resume",)])
def test_results_of_another_input_are_not_replaced(files, tmp_path, first):
    """Neither by a file of the same name, alone, with others or joined, nor by a batch of pages."""
    out = tmp_path / "out"
    assert search("--filterbank", files[0], *first, out=out).returncode == 0
    np.save(tmp_path / "a.npy", np.zeros((2, 256, 256), np.float32))
    shutil.copy(files[1], tmp_path / "b.fil")
    before = contents(out)
    for options, other in (
        (["--filterbank", files[1]], files[1]),
        (["--filterbank", files[1], tmp_path / "b.fil"], files[1]),
        (["--filterbank", files[1], "--joined"], files[1]),
        (["--filterbank", files[1], "--resume"], files[1]),
        (["--pages", tmp_path / "a.npy"], tmp_path / "a.npy"),
    ):
        done = search(*options, out=out)
        assert done.returncode == 2 and done.stderr.splitlines()[-1] == (
            f"run_inference.py: error: {other}: must be searched in a run with another --output-dir, as the results "
            f"would replace those of {files[0]} in {out}"
        )
        assert contents(out) == before
    assert search("--filterbank", files[1], out=tmp_path / "other").returncode == 0


def test_results_of_the_same_input_are_replaced(files, tmp_path):
    """With other settings, and after the file was moved."""
    out = tmp_path / "out"
    assert search("--filterbank", files[0], out=out).returncode == 0
    names = set(contents(out))
    (tmp_path / "config.json").write_text('{"min_snr": 1000}')
    assert search("--filterbank", files[0], "-c", tmp_path / "config.json", out=out).returncode == 0
    assert times(out / "candidates_a.csv") == []
    moved = tmp_path / "moved" / "a.fil"
    moved.parent.mkdir()
    os.rename(files[0], moved)
    assert search("--filterbank", moved, out=out).returncode == 0
    assert times(out / "candidates_a.csv") == [0.3] and set(contents(out)) == names
    [file] = json.loads((out / "summary_a.json").read_text())["inputs"]
    assert (file["path"], file["size"], file["mtime_ns"]) == (
        str(moved),
        moved.stat().st_size,
        moved.stat().st_mtime_ns,
    )


@pytest.mark.parametrize("change", ["another observation", "a value between the blocks of the hash"])
def test_results_of_a_file_that_was_replaced_are_kept(files, tmp_path, caplog, monkeypatch, change):
    monkeypatch.setattr(many_files, "BLOCK_BYTES", 64)
    out = tmp_path / "out"
    assert search("--filterbank", files[0], out=out).returncode == 0
    before = contents(out)
    if change == "another observation":
        shutil.copy(files[1], files[0])
    else:
        content, position = many_files.content_of(files[0]), files[0].stat().st_size - 100
        with open(files[0], "r+b") as file:
            file.seek(position)
            value = file.read(1)[0]
            file.seek(position)
            file.write(bytes([value ^ 1]))
        assert many_files.content_of(files[0]) == content
    with caplog.at_level(logging.INFO):
        assert search("--filterbank", files[0], out=out).returncode == 0
    assert f"{files[0]} has changed since its earlier results were made; they are kept" in caplog.text
    assert times(out / "candidates_a.csv") == [0.5 if change == "another observation" else 0.3]
    kept = {name: content for name, content in contents(out).items() if ".20" in name}
    assert sorted(kept.values()) == sorted(before.values()) and len(contents(out)) == 2 * len(before)


def test_the_catalogue_has_the_events_of_the_last_search(files, tmp_path):
    """A search of one file, with other settings, changes its rows in the catalogue of an earlier search of several.

    As soon as its results are being replaced, also by those of a ring, the catalogue does not list them any more.
    """
    out = tmp_path / "out"
    shutil.copy(files[1], tmp_path / "b.fil")
    assert search("--filterbank", files[0], tmp_path / "b.fil", out=out).returncode == 0
    assert times(out / "catalogue.csv") == [0.3, 0.5]
    (tmp_path / "config.json").write_text('{"min_snr": 1000}')
    assert search("--filterbank", files[0], "-c", tmp_path / "config.json", out=out).returncode == 0
    assert times(out / "catalogue.csv") == [0.5]
    assert search("--filterbank", files[0], out=out).returncode == 0
    assert times(out / "catalogue.csv") == [0.3, 0.5]
    many_files.begin(out, "a")
    assert times(out / "catalogue.csv") == [0.5]
