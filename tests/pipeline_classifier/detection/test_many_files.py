"""Many observations: divided among processes, resumed, and joined to one catalogue."""

import csv
import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from pipeline_classifier import run_inference
from pipeline_classifier.config import DEFAULT_CONFIG, load_pipeline_config
from pipeline_classifier.detection import many_files
from pipeline_classifier.events import Event
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError
from tests.command_line import run_here

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


def search(*options: object, **variables: str) -> subprocess.CompletedProcess:
    with mock.patch.dict(os.environ, variables):
        return run_here(run_inference, *options, "--no-plots")


def catalogue(folder: Path) -> list[tuple[str, int]]:
    """Observation and second of each event."""
    with open(folder / many_files.CATALOGUE, newline="") as file:
        return [(row["observation"], round(float(row["time_s"]))) for row in csv.DictReader(file)]


EVENTS = [("a", 1), ("b", 2), ("c", 3)]


def test_an_observation_in_the_catalogue_is_no_formula(observations, tmp_path):
    (tmp_path / "=b\t.fil").write_bytes((observations / "b.fil").read_bytes())
    files = (tmp_path / "=b\t.fil", observations / "c.fil")
    done = search("--filterbank", *files, "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert catalogue(tmp_path / "out") == [("'=b_", 2), ("c", 3)]


def test_two_processes_of_torchrun_share_the_files(observations, tmp_path):
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    options = ("--filterbank", observations / "*.fil", "--output-dir", tmp_path, "--no-plots")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = list(map(str, (*launcher, SCRIPT, *options)))
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert catalogue(tmp_path) == EVENTS
    assert len([line for line in done.stdout.splitlines() if "times real time" in line]) == 3


def test_resume_searches_the_files_of_a_process_that_did_not_run(observations, tmp_path):
    """The second of two tasks of a Slurm array never ran; the same command without an array searches its files alone."""
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


@pytest.fixture
def short(tmp_path) -> Path:
    """A config whose observation of 0.8 s has a pulse at 0.4 s; the results are in the folder ``out``."""
    simulate(tmp_path / "short.fil", HEADER, 2048, [Pulse(0.4, 56.77, 20.0, 2.0)], Rfi(), seed=1)
    (tmp_path / "models").mkdir()
    for name in ("default.pth", "candidate_classifier.pth"):
        shutil.copy(DEFAULT_CONFIG.with_name("models") / name, tmp_path / "models")
    keys = {
        "path_to_filterbanks": "./",
        "name_of_the_filterbank": "short.fil",
        "path_to_a_transientx_config": "transientx.json",
        "path_to_models": "models",
        "candidate_classifier": "models/candidate_classifier.pth",
        "output_dir": "out",
    }
    (tmp_path / "config.json").write_text(json.dumps(keys))
    (tmp_path / "transientx.json").write_text('{"subdedispersion": {"ddm": 2.0, "ndm": 64}}')
    return tmp_path / "config.json"


@pytest.fixture
def searched(monkeypatch) -> list[str]:
    """Names of the observations that this process searches, in addition to those that are skipped."""
    names, search_and_write = [], run_inference.search_and_write

    def noted_search(source, *args):
        names.append(source.name)
        return search_and_write(source, *args)

    monkeypatch.setattr(run_inference, "search_and_write", noted_search)
    return names


def resume(config: Path, *options: str) -> list[float]:
    """Search what is not finished, in this process; return the times of all events of the catalogue."""
    words = ["-c", str(config), "--filterbank", "--resume", "--no-plots", *options]
    run_inference.run(run_inference.get_parser().parse_args(words))
    with open(config.parent / "out" / many_files.CATALOGUE, newline="") as file:
        return [float(row["time_s"]) for row in csv.DictReader(file)]


THE_PULSE = [pytest.approx(0.4, abs=2e-3)]


def set_keys(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_finished_search_is_not_repeated(short, searched):
    assert resume(short) == THE_PULSE and searched == ["short"]
    set_keys(short, threads=1)
    shutil.copytree(short.parent / "out", short.parent / "copy")
    assert resume(short) == THE_PULSE and resume(short, "--output-dir", str(short.parent / "copy")) == THE_PULSE
    assert searched == ["short"], "neither the number of threads nor the folder changes a result"


def test_a_changed_config_is_searched_anew(short, searched):
    assert resume(short) == THE_PULSE
    set_keys(short, min_snr=1000.0)
    assert resume(short) == [] and searched == ["short"] * 2


def test_a_changed_transientx_file_is_searched_anew(short, searched):
    assert resume(short) == THE_PULSE
    set_keys(short.parent / "transientx.json", subdedispersion={"dms": 200.0, "ddm": 2.0, "ndm": 64})
    assert resume(short) == [] and searched == ["short"] * 2


def test_an_overlap_that_the_config_now_sets_is_searched_anew(short, searched):
    """Even if the value is that of the default: before, the TransientX file decided."""
    set_keys(short.parent / "transientx.json", subdedispersion={"overlap": 0.5})
    resume(short)
    set_keys(short, page_overlap=0.0)
    resume(short)
    assert searched == ["short"] * 2


def test_a_search_without_resume_replaces_a_finished_one(short, searched):
    content = short.read_text()
    assert resume(short) == THE_PULSE
    set_keys(short, min_snr=1000.0)
    run_inference.run(run_inference.get_parser().parse_args(["-c", str(short), "--filterbank", "--no-plots"]))
    short.write_text(content)
    assert resume(short) == THE_PULSE and searched == ["short"] * 3


def test_an_observation_whose_results_are_missing_is_searched_again(short, searched):
    assert resume(short) == THE_PULSE
    (short.parent / "out" / "candidates_short.csv").unlink()
    assert many_files.write_catalogue(short.parent / "out").read_text() == ""
    assert resume(short) == THE_PULSE and searched == ["short"] * 2


@pytest.mark.parametrize("name", ["default.pth", "candidate_classifier.pth"])
def test_a_model_replaced_by_one_of_the_same_size_is_searched_anew(short, searched, name):
    path = short.parent / "models" / name
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint, path)
    before = path.stat()
    assert resume(short) == THE_PULSE
    bias = "fc2.bias" if name == "candidate_classifier.pth" else "fc.bias"
    checkpoint["state_dict"][bias][1] -= 1000  # no image is a pulse for this network
    torch.save(checkpoint, path)
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns > before.st_mtime_ns
    # The page classifier gives the predictions, and has no part in what is an event.
    assert resume(short) == ([] if name == "candidate_classifier.pth" else THE_PULSE) and searched == ["short"] * 2


def test_a_search_that_fails_half_way_is_not_finished(short, searched, monkeypatch):
    """Its results have replaced some of an earlier search, which must not count as those of a finished one."""
    assert resume(short) == THE_PULSE
    noted_search = run_inference.search_and_write

    def failing_search(*args):
        noted_search(*args)
        raise OSError("no space left")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space left"):
        patched.setattr(run_inference, "search_and_write", failing_search)
        content = short.read_text()
        set_keys(short, min_snr=1000.0)
        resume(short)
    catalogue = many_files.write_catalogue(short.parent / "out")
    assert catalogue.read_text() == "", "no search is finished"
    short.write_text(content)
    assert resume(short) == THE_PULSE and searched == ["short"] * 3


def test_outputs_that_are_missing_or_newly_asked_for_are_made(short, searched):
    """Pictures and the report come with a search; afterwards nothing is left to do, also without asking for them."""
    out, count = short.parent / "out", 0
    for change, options in [
        (None, ()),
        (None, ("--plots",)),
        ("event_short_0001.png", ("--plots",)),
        ("predictions_short.npy", ()),
        (None, ("--plots", "--report")),
        ("report_short.html", ("--plots", "--report")),
    ]:
        if change:
            (out / change).unlink()
        words = ["-c", str(short), "--filterbank", "--resume", *(option for option in options if option != "--plots")]
        run_inference.run(run_inference.get_parser().parse_args(words + ["--no-plots"] * ("--plots" not in options)))
        count += 1
        assert searched == ["short"] * count and (not change or (out / change).exists()), (change, options)
        assert ("--plots" in options) == (out / "event_short_0001.png").exists()
    assert resume(short) == THE_PULSE and len(searched) == count
    (short.parent / "out" / "candidates_short.cands").write_text("another length")
    assert resume(short) == THE_PULSE and len(searched) == count + 1


@pytest.fixture
def finished(tmp_path) -> Callable[..., bool]:
    """A finished search of an observation; whether it still counts as one. Its contents are not read."""
    content = np.random.default_rng(0).bytes(1 << 20)
    files = {"a.fil": content, "page.pth": b"page", "candidate.pth": b"candidate", "predictions_a.npy": b"numbers"}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "transientx.json").write_text("{}")
    keys = {"path_to_models": ".", "name_of_the_model": "page.pth", "candidate_classifier": "candidate.pth"}
    (tmp_path / "config.json").write_text(json.dumps(keys | {"path_to_a_transientx_config": "transientx.json"}))

    def identity(folder: Path) -> dict[str, object]:
        settings = many_files.settings_fingerprint(load_pipeline_config(folder / "config.json"))
        return many_files.fingerprint(tmp_path / "a.fil", settings)

    def is_done(folder: Path = tmp_path, asked: tuple[str, ...] = ("plots",)) -> bool:
        return many_files.is_done(tmp_path, tmp_path / "a.fil", identity(folder), asked)

    many_files.finish(tmp_path, tmp_path / "a.fil", identity(tmp_path), [tmp_path / "predictions_a.npy"], ["plots"])
    assert is_done()
    return is_done


def change_bytes(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the content of a file, but not its time."""
    before = path.stat().st_mtime_ns
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(before, before))


@pytest.mark.parametrize(
    "name, change",
    [
        ("a.fil", lambda content: content[:-1]),
        ("a.fil", lambda content: content[:1000] + content[1000:][::-1]),
        ("a.fil", lambda content: b"h" + content[1:]),
        ("a.fil", lambda content: content[:-1] + b"x"),
        ("page.pth", bytes.upper),
        ("candidate.pth", bytes.upper),
        ("transientx.json", lambda _: b'{"rfi": {"zaplist": [[1300, 1310]]}}'),
        ("config.json", lambda content: content.replace(b"{", b'{"min_snr": 6.25, ')),
        ("config.json", lambda content: content.replace(b"{", b'{"page_overlap": 0.5, ')),
        ("config.json", lambda content: content.replace(b'"candidate.pth"', b"null")),
        ("predictions_a.npy", lambda content: content[:-1]),
        ("done_a.json", lambda content: content[:-5]),
        ("done_a.json", lambda _: b"[]"),
    ],
)
def test_what_has_changed_is_searched_again(finished, tmp_path, name, change):
    """Also if size and time are those of before; `min_snr` counts even if the value is that of the default."""
    change_bytes(tmp_path / name, change)
    assert not finished()


def test_another_time_and_other_outputs_are_searched_again(finished, tmp_path):
    assert finished(asked=()) and not finished(asked=("plots", "report"))
    os.utime(tmp_path / "a.fil", ns=(0, 0))
    assert not finished()


def test_config_and_models_in_another_folder_change_nothing(finished, tmp_path):
    (tmp_path / "other" / "models").mkdir(parents=True)
    for name in ("page.pth", "candidate.pth", "transientx.json", "config.json"):
        (tmp_path / name).rename(tmp_path / "other" / ("models/" if name.endswith("pth") else "") / name)
    change = {"path_to_models": "models", "candidate_classifier": "models/candidate.pth", "threads": 1}
    set_keys(tmp_path / "other" / "config.json", **change)
    os.utime(tmp_path / "other" / "models" / "page.pth", ns=(0, 0))
    assert finished(tmp_path / "other")


def test_the_end_names_the_files_that_no_process_has_searched(observations, tmp_path, caplog):
    """Two of three tasks of a step never ran; what an earlier search left of their files is not in the catalogue."""
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}
    options = ("--filterbank", *(observations / f"{name}.fil" for name in NAMES), "--output-dir", tmp_path / "out")
    (tmp_path / "config.json").write_text('{"min_snr": 6}')
    for task in range(2):
        assert search(*options, "-c", tmp_path / "config.json", **step, SLURM_PROCID=str(task)).returncode == 0
    assert catalogue(tmp_path / "out") == EVENTS[:2]
    with caplog.at_level(logging.INFO):
        assert search(*options, **step, SLURM_PROCID="0").returncode == 0
    assert "share 1 of 3: 1 of 3 files" in caplog.messages
    last = caplog.messages[-1]
    assert f"2 of 3 files are not searched yet: {observations / 'b.fil'}, {observations / 'c.fil'};" in last
    assert catalogue(tmp_path / "out") == EVENTS[:1]


def test_one_process_searches_what_cannot_be_divided(observations, tmp_path, caplog):
    array = {f"SLURM_ARRAY_TASK_{name}": value for name, value in (("ID", "1"), ("COUNT", "2"), ("MAX", "1"))}
    files = (observations / "a.fil", "--joined")
    for options in (("--filterbank", *files), ("--pages", "x.npy")):
        with caplog.at_level(logging.INFO):
            assert search(*options, "--output-dir", tmp_path / "out", **array).returncode == 0
        assert caplog.messages[-1] == "share 2 of 2: nothing, as share 1 searches the one observation"
    assert not (tmp_path / "out").exists()
    done = search("--filterbank", *files, "--output-dir", tmp_path / "out", **(array | {"SLURM_ARRAY_TASK_ID": "x"}))
    assert done.returncode == 2 and "SLURM_ARRAY_TASK_ID: must be a whole number, got 'x'" in done.stderr


WRITER = """
import fcntl, sys
from pathlib import Path
from pipeline_classifier.detection import many_files

flock = fcntl.flock

def flock_with_notice(file, operation):
    print("waits for the lock", flush=True)
    fcntl.flock = flock  # other files are locked later
    flock(file, operation)

fcntl.flock = flock_with_notice
many_files.write_catalogue(Path(sys.argv[1]))
print("written", flush=True)
"""


def leave_results(folder: Path, name: str) -> None:
    """Leave the results of a finished search of one event."""
    (folder / f"candidates_{name}.csv").write_text(f"time_s\n{dict(EVENTS)[name]}\n")
    many_files.finish(folder, Path(f"{name}.fil"), {}, [])


def test_a_slow_writer_does_not_replace_a_newer_catalogue(tmp_path, start):
    """A process reads the folder only when it has the lock: files that others finish until then are in its table."""
    leave_results(tmp_path, "a")
    with open(tmp_path / ".catalogue.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writer = start(WRITER, tmp_path)
        assert writer.says() == "waits for the lock"
        assert not (tmp_path / many_files.CATALOGUE).exists()
        leave_results(tmp_path, "b")
    assert writer.says() == "written"
    assert catalogue(tmp_path) == EVENTS[:2]


def test_the_catalogue_is_locked_until_it_is_written(tmp_path, monkeypatch):
    leave_results(tmp_path, "a")
    atomic_writer = many_files.atomic_writer

    def writer_that_tries_the_lock(path):
        with open(tmp_path / ".catalogue.lock", "w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return atomic_writer(path)

    monkeypatch.setattr(many_files, "atomic_writer", writer_that_tries_the_lock)
    many_files.write_catalogue(tmp_path)
    assert catalogue(tmp_path) == EVENTS[:1]


def test_lists_of_other_versions_keep_their_columns_and_damaged_ones_are_left_out(tmp_path, caplog):
    leave_results(tmp_path, "a")
    leave_results(tmp_path, "b")
    (tmp_path / "candidates_b.csv").write_text("new,snr,time_s\n7,20.5,2\n")
    for name, content in (("c", ""), ("d", "time_s,snr\n1\n")):
        (tmp_path / f"candidates_{name}.csv").write_text(content)
        many_files.finish(tmp_path, Path(f"{name}.fil"), {}, [])
    with open(many_files.write_catalogue(tmp_path), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["observation"], row["time_s"], row["snr"]) for row in rows] == [("a", "1", ""), ("b", "2", "20.5")]
    assert list(rows[0]) == ["observation", *(field.name for field in fields(Event))]
    assert "candidates_c.csv, line 1: the heading must name time_s" in caplog.text
    assert "candidates_d.csv, line 2: must have 2 fields, as the heading, got 1; the observation is not" in caplog.text


def test_files_whose_results_have_the_same_names_and_missing_files_are_refused(observations, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(observations / "a.fil", tmp_path / "other")
    first, second = observations / "a.fil", tmp_path / "other" / "a.fil"
    done = search("--filterbank", first, second, "--output-dir", tmp_path / "out")
    sentence = f"{second}: must be searched in a run with another --output-dir than {first}, as their results"
    assert done.returncode == 2 and sentence in done.stderr and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"\*.fil: must be a file or a pattern that matches one"):
        many_files.expand([str(tmp_path / "*.fil")])
    assert len(many_files.expand([str(observations / "*.fil"), str(observations / "a.fil")])) == 3
    (tmp_path / "z.fil").write_bytes(b"no filterbank")
    done = search("--filterbank", observations / "a.fil", tmp_path / "z.fil", "--output-dir", tmp_path / "out")
    assert done.returncode == 2 and "z.fil" in done.stderr and not (tmp_path / "out").exists()


def test_joined_files_are_one_observation(observations, tmp_path):
    later = replace(HEADER, tstart=HEADER.tstart + round(4 / HEADER.tsamp) * HEADER.tsamp / 86400)
    # The names may be equal, as the results are named after the first file only.
    simulate(tmp_path / "a.fil", later, round(4 / HEADER.tsamp), [Pulse(2.0, 56.77, 40.0, 2.0)], Rfi(), seed=1)
    files = ("--filterbank", tmp_path / "a.fil", observations / "a.fil")
    done = search(*files, "--joined", "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "candidates_a.csv", newline="") as file:
        times = [float(row["time_s"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(times, [1.0, 6.0], atol=0.01)
    assert search("--joined", "--pages", "x.npy").returncode == 2
