"""Many observations: shared by processes, resumed, and joined to one catalogue."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier.detection import many_files
from pipeline_classifier.detection.many_files import Part, part_of_this_process
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError

SCRIPT = Path(__file__).resolve().parents[3] / "pipeline_classifier" / "run_inference.py"
HEADER = replace(EFFELSBERG, nchans=64, foff=-5.0, tsamp=4.096e-4)
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def observations(tmp_path_factory) -> Path:
    """Three files with one pulse each, at 1, 2 and 3 seconds."""
    folder = tmp_path_factory.mktemp("observations")
    for number, name in enumerate(NAMES, start=1):
        pulse = Pulse(float(number), 56.77, 40.0, 2.0)
        simulate(folder / f"{name}.fil", HEADER, round(4 / HEADER.tsamp), [pulse], Rfi(), seed=number)
    return folder


def run(*words: object, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment)


def search(*options: object, **variables: str) -> subprocess.CompletedProcess:
    return run(sys.executable, SCRIPT, *options, "--no-plots", **variables)


def catalogue(folder: Path) -> list[tuple[str, int]]:
    """Observation and second of each event."""
    with open(folder / many_files.CATALOGUE, newline="") as file:
        return [(row["observation"], round(float(row["time_s"]))) for row in csv.DictReader(file)]


EVENTS = [("a", 1), ("b", 2), ("c", 3)]


def test_two_processes_of_torchrun_share_the_files(observations, tmp_path):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    options = ("--filterbank", observations / "*.fil", "--output-dir", tmp_path, "--no-plots")
    done = run(*launcher, SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    assert catalogue(tmp_path) == EVENTS
    assert len([line for line in done.stdout.splitlines() if "times real time" in line]) == 3


def test_a_dead_process_is_made_up_for_by_resume(observations, tmp_path):
    """The second of two tasks of a Slurm array never ran; the same command without an array does its files alone."""
    options = ("--filterbank", *(observations / f"{name}.fil" for name in NAMES), "--output-dir", tmp_path, "--resume")
    first = search(*options, SLURM_ARRAY_TASK_ID="5", SLURM_ARRAY_TASK_MIN="5", SLURM_ARRAY_TASK_COUNT="2")
    assert first.returncode == 0, first.stderr
    assert catalogue(tmp_path) == [("a", 1), ("c", 3)]
    times = {name: (tmp_path / f"candidates_{name}.csv").stat().st_mtime_ns for name in ("a", "c")}
    second = search(*options)
    assert second.returncode == 0, second.stderr
    assert catalogue(tmp_path) == EVENTS
    assert [line.split(":")[0] for line in second.stdout.splitlines()[:-1]] == [str(observations / "b.fil")]
    assert times == {name: (tmp_path / f"candidates_{name}.csv").stat().st_mtime_ns for name in ("a", "c")}


@pytest.mark.parametrize("change", ["time", "size", "settings", "cut off"])
def test_what_has_changed_is_searched_again(observations, tmp_path, change):
    path = tmp_path / "a.fil"
    shutil.copy(observations / "a.fil", path)
    model, settings = observations / "b.fil", ["x"]
    identity = many_files.fingerprint(path, [model], settings)
    many_files.begin(tmp_path, path)
    assert not many_files.is_done(tmp_path, path, identity)
    many_files.finish(tmp_path, path, identity)
    assert many_files.is_done(tmp_path, path, many_files.fingerprint(path, [model], settings))
    if change == "time":
        os.utime(path, ns=(0, 0))
    elif change == "size":
        path.write_bytes(path.read_bytes()[:-1])
    elif change == "settings":
        settings = ["y"]
    else:
        (tmp_path / "done_a.json").write_text(json.dumps(identity)[:-5])
    assert not many_files.is_done(tmp_path, path, many_files.fingerprint(path, [model], settings))


def test_files_that_would_overwrite_each_other_or_are_not_there_are_refused(observations, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(observations / "a.fil", tmp_path / "other")
    with pytest.raises(InputError, match="same names as those of"):
        many_files.expand([str(observations / "a.fil"), str(tmp_path / "other" / "a.fil")])
    with pytest.raises(InputError, match="no such file"):
        many_files.expand([str(tmp_path / "*.fil")])
    assert len(many_files.expand([str(observations / "*.fil"), str(observations / "a.fil")])) == 3
    (tmp_path / "z.fil").write_bytes(b"no filterbank")
    done = search("--filterbank", observations / "a.fil", tmp_path / "z.fil", "--output-dir", tmp_path / "out")
    assert done.returncode == 2 and "z.fil" in done.stderr and not (tmp_path / "out").exists()


def test_the_place_of_a_process():
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    slurm = {"SLURM_PROCID": "2", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2", "SLURM_NTASKS_PER_NODE": "4"}
    array = {"SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_STEP": "2",
             "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}  # fmt: skip
    assert part_of_this_process({}) == Part()
    assert part_of_this_process(torchrun) == Part(3, 4, 1, 2)
    assert part_of_this_process(slurm) == Part(2, 8, 2, 4)
    assert part_of_this_process(array) == Part(2, 3)
    files = [Path(str(number)) for number in range(10)]
    shares = [Part(rank, 4).of(files) for rank in range(4)]
    assert sorted(sum(shares, [])) == files and max(map(len, shares)) - min(map(len, shares)) <= 1


def test_joined_files_are_one_observation(observations, tmp_path):
    later = replace(HEADER, tstart=HEADER.tstart + round(4 / HEADER.tsamp) * HEADER.tsamp / 86400)
    simulate(tmp_path / "later.fil", later, round(4 / HEADER.tsamp), [Pulse(2.0, 56.77, 40.0, 2.0)], Rfi(), seed=1)
    files = ("--filterbank", tmp_path / "later.fil", observations / "a.fil")
    done = search(*files, "--joined", "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "candidates_a.csv", newline="") as file:
        times = [float(row["time_s"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(times, [1.0, 6.0], atol=0.01)
    assert search("--joined", "--pages", "x.npy").returncode == 2
