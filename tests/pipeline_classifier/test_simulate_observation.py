"""The command line of simulate_observation.py."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier import simulate_observation as script
from pipeline_classifier.simulation.observation import EFFELSBERG
from tests.command_line import run_here


def run_script(*options: object, folder: Path) -> subprocess.CompletedProcess:
    return run_here(script, *options, folder=folder)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    small = ("--nchans", 32, "--foff", -10, "--duration-s", 3, "--pulses", 4, "--rfi", "strong", "--dm-max", 60)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = run_script(f"{name}.fil", *small, "--seed", seed, folder=tmp_path)
        assert done.returncode == 0 and done.stdout == "", done.stderr
    contents = {name: (tmp_path / f"{name}.fil").read_bytes() for name in "abc"}
    truths = {name: (tmp_path / f"{name}_truth.csv").read_text() for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"] and truths["a"] == truths["b"] != truths["c"]
    assert len(list(tmp_path.iterdir())) == 6, "no temporary file is left"
    columns = np.genfromtxt(tmp_path / "a_truth.csv", delimiter=",", names=True)
    np.testing.assert_allclose(columns["mjd"], EFFELSBERG.tstart + columns["time_s"] / 86400, atol=1e-10)
    assert (np.diff(columns["time_s"]) >= 0.25 - 1e-6).all()


@pytest.mark.parametrize("level", ["field", "hard"])
def test_coherent_data_in_interference_of_the_field(tmp_path, level):
    options = ("--nchans", 32, "--foff", -10, "--duration-s", 4, "--pulses", 4, "--rfi", level, "--short-sweep", 0.5)
    done = run_script("a.fil", *options, "--coherent-dm", 60, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    columns = np.genfromtxt(tmp_path / "a_truth.csv", delimiter=",", names=True)
    assert (columns["coherent_dm_pc_cm3"] == 60).all()


@pytest.mark.parametrize(
    "options, named",
    [
        (("--nchans", 0), "nchans"),
        (("--tsamp-us", 0), "tsamp"),
        (("--foff", 0), "foff"),
        (("--fch1", "nan"), "fch1"),
        (("--duration-s", -1), "--duration-s"),
        (("--duration-s", 0.2), "must fit"),
        (("--pulses", -1), "pulses"),
        (("--snr-min", 60), "snr"),
        (("--dm-min", "nan"), "dm_pc_cm3"),
        (("--width-ms-min", 0), "width_ms"),
        (("--rfi", "heavy"), "none, mild, strong"),
        (("--seed", -1), "--seed"),
        (("--pulse-free", 0), "--pulse-free must be above 0, got 0"),
        (("--pulse-free", 1, "--pulses", 3), "--pulses must be 0 with --pulse-free, got 3"),
        (("--pulse-free", 1e6), "bytes, the free space on disk, got 9000000000000000"),
        (("--band-limited", 2), "band_limited"),
        (("--coherent-dm", -1), "coherent_dm must be from 0 to 1e5, got -1"),
        (("--short-sweep", 1.5), "short_sweep must be from 0 to 1, got 1.5"),
        (("--duration-s", 1e12), "bytes, the free space on disk, got 2500000000000000000"),
        (("--duration-s", 1e300), "the free space on disk"),
        (("--pulses", 10**12), "pulses must be from 0 to 100000, got 1000000000000"),
        (("--fch1", 1.53), "look like GHz"),
    ],
)
def test_a_wrong_option_ends_in_one_sentence(tmp_path, options, named):
    done = run_script("a.fil", *options, folder=tmp_path)
    assert done.returncode == 2 and named in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_not_simulated_is_not_overwritten(tmp_path):
    small = ("--nchans", 32, "--foff", -10, "--duration-s", 1, "--pulses", 0)
    (tmp_path / "a.fil").write_bytes(b"precious")
    done = run_script("a.fil", *small, folder=tmp_path)
    assert done.returncode == 2 and done.stderr == (
        "simulate_observation.py: error: a.fil: must be a new file or have a truth table, got one without; "
        "use another name\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.fil"]
    assert (tmp_path / "a.fil").read_bytes() == b"precious"
    assert run_script("b.fil", *small, folder=tmp_path).returncode == 0
    before = (tmp_path / "b.fil").read_bytes()
    assert run_script("b.fil", *small, "--seed", 1, folder=tmp_path).returncode == 0
    assert (tmp_path / "b.fil").read_bytes() != before


def test_a_name_too_long_for_the_truth_table_is_refused_before_the_simulation(tmp_path):
    done = run_script("x" * 240 + ".fil", folder=tmp_path)
    assert done.returncode == 2 and "must have at most 209 bytes" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    done = run_script("absent/a.fil", folder=tmp_path)
    assert done.returncode == 2 and "folder must exist, got absent" in done.stderr and "Traceback" not in done.stderr
