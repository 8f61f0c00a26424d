"""Files of a search: whole or absent, replaced as a whole, and never those of another observation."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier import run_inference, run_pipeline_simulation
from pipeline_classifier.config import load_pipeline_config
from pipeline_classifier.detection import many_files
from pipeline_classifier.detection.classifiers import load_classifiers
from pipeline_classifier.detection.decision import decide
from pipeline_classifier.detection.search import events_by_threshold, search
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.output import run_files
from pipeline_classifier.output.results import search_and_write
from pipeline_classifier.output.run_files import InUse, check_names, keep_earlier, lock, outputs_in, publish
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError
from tests.command_line import run_here

HEADER = replace(EFFELSBERG, nchans=64, foff=-5.0, tsamp=4.096e-4)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    """4 s with pulses at 0.5 s and 3.5 s."""
    path = tmp_path_factory.mktemp("observation") / "obs.fil"
    pulses = [Pulse(0.5, 56.77, 40.0, 2.0), Pulse(3.5, 30.0, 40.0, 2.0)]
    simulate(path, HEADER, round(4 / HEADER.tsamp), pulses, Rfi(), seed=1)
    return path


@pytest.fixture
def observation(simulated, tmp_path) -> Path:
    """A copy of the observation, beside a config that searches it in blocks of 0.84 s."""
    shutil.copy(simulated, tmp_path / "obs.fil")
    (tmp_path / "config.json").write_text('{"block_samples": 2048, "threads": 1}')
    return tmp_path / "obs.fil"


def run(observation: Path, *options: object):
    config, out = observation.with_name("config.json"), observation.with_name("out")
    return run_here(run_inference, "-c", config, "--output-dir", out, "--filterbank", observation, *options)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rows(path: Path) -> list[float]:
    with open(path, newline="") as file:
        return [float(row["time_s"]) for row in csv.DictReader(file)]


RESULTS = {
    *(f"{kind}_obs.npy" for kind in ("predictions", "probabilities")),
    *(f"candidates_obs.{suffix}" for suffix in ("csv", "cands")),
    "heimdall_obs.csv",
    "summary_obs.json",
}


def test_results_of_a_search_that_fails_are_on_disk_as_far_as_it_came(observation, monkeypatch):
    """What is known after the third of five chunks; the results of the search before are as they were."""
    assert run(observation, "--no-plots").returncode == 0
    out, unfinished = observation.with_name("out"), observation.with_name("out") / "unfinished_obs"
    before = {name: (out / name).read_bytes() for name in RESULTS}
    assert names(out) == RESULTS and len(rows(out / "candidates_obs.csv")) == 2
    cleaned = FilterbankPages.cleaned

    def failing(self, start, n, out=None, cleaning=None):
        if start >= 4 * 2048:
            raise OSError(5, "Input/output error", "obs.fil")
        return cleaned(self, start, n, out, cleaning)

    with monkeypatch.context() as patched:
        patched.setattr(FilterbankPages, "cleaned", failing)
        failed = run(observation, "--no-plots")
    assert failed.returncode == 2 and failed.stderr.splitlines()[-1].endswith("obs.fil: Input/output error")
    assert names(out) == RESULTS | {"unfinished_obs"}
    assert before == {name: (out / name).read_bytes() for name in RESULTS}
    whole = np.load(out / "predictions_obs.npy")
    known = np.load(unfinished / "predictions_obs.npy")
    assert known.dtype == np.int32 and known.tolist() == [*whole[:22], *[-1] * (len(whole) - 22)]
    probabilities = np.load(unfinished / "probabilities_obs.npy")
    assert probabilities.dtype == np.float32 and (probabilities[:22] >= 0).all() and (probabilities[22:] == -1).all()
    [early] = rows(unfinished / "candidates_obs.csv")
    assert early == pytest.approx(0.5, abs=5e-3)

    assert run(observation, "--no-plots").returncode == 0
    assert names(out) == RESULTS


@contextmanager
def largest_file(size: int):
    """Files cannot grow beyond ``size`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 200, 16384], ids=["at once", "in the lists", "in the pictures"])
def test_a_full_disk_leaves_the_results_of_the_search_before(observation, size):
    assert run(observation, "--no-plots", "--resume").returncode == 0
    out = observation.with_name("out")
    before = {name: (out / name).read_bytes() for name in names(out) if name != ".catalogue.lock"}
    with largest_file(size):
        failed = run(observation, "--resume")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "obs" in failed.stderr, failed.stderr
    assert before == {name: (out / name).read_bytes() for name in before}
    assert run(observation, "--resume").returncode == 0
    pictures = {"event_obs_0001.png", "event_obs_0002.png"}
    assert names(out) == RESULTS | pictures | {"done_obs.json", "catalogue.csv", ".catalogue.lock"}


def test_everything_of_an_earlier_search_and_nothing_else_is_replaced(observation):
    out = observation.with_name("out")
    out.mkdir()
    mine = {"event_obs_0004.png", "event_obs_12345.png", "predictions_obs_x4.npy", "probabilities_obs_dms1_x4.npy"}
    mine |= {"report_obs.html", "done_obs.json"}
    others = {
        *("candidates_obs_2.csv", "event_obs_2_0001.png", "predictions_obs_2.npy", "summary_obs_2.json"),
        *("candidates_obs_x8.csv", "predictions_obs_x8.npy", "probabilities_obs_x8.npy", "done_obs_x8.json"),
        *("my_obs.png", "event_obs_1.png", "report_obs.html.txt", "candidates_obs.notes.csv", "obs_truth.csv"),
        *("event_my_obs_0001.png", "candidates_my_obs.csv"),
    }
    for name in mine | others | {".candidates_obs.csv.123.tmp"}:
        (out / name).write_text(name)
    done = run(observation, "--no-plots")
    assert done.returncode == 0, done.stderr
    assert names(out) - {".candidates_obs.csv.123.tmp"} == RESULTS | others
    assert all((out / name).read_text() == name for name in others)


def test_results_of_a_live_search_are_renamed(tmp_path):
    (tmp_path / "unfinished_obs").mkdir()
    for name in ("status_obs.json", "predictions_obs.npy"):
        (tmp_path / name).write_text("live")
    (tmp_path / "unfinished_obs" / "predictions_obs.npy").write_text("new")
    publish(tmp_path / "unfinished_obs", [tmp_path / "unfinished_obs" / "predictions_obs.npy"], tmp_path, "obs")
    kept, new, status = sorted(names(tmp_path))
    assert new == "predictions_obs.npy" and (tmp_path / new).read_text() == "new"
    assert re.fullmatch(r"predictions_obs\.\d{8}T\d{6}\.npy", kept) and (tmp_path / kept).read_text() == "live"
    assert re.fullmatch(r"status_obs\.\d{8}T\d{6}\.json", status)


def test_files_of_the_same_second_are_all_kept(tmp_path):
    for content in "abc":
        (tmp_path / "predictions_obs.npy").write_text(content)
        os.utime(tmp_path / "predictions_obs.npy", ns=(0, 0))
        keep_earlier(tmp_path / "predictions_obs.npy")
    assert sorted(path.read_text() for path in tmp_path.glob("predictions_obs.19700101T000000*.npy")) == ["a", "b", "c"]


def checked(folder: Path, *files: str, suffixes=("", "_x4"), inputs=()) -> None:
    paths = [Path(file) for file in files]
    check_names([(path.stem, [path]) for path in paths], suffixes, [*paths, *inputs], folder)


def test_outputs_with_the_same_names_are_refused(tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match="obs_x4.fil: must be searched in a run with another --output-dir than obs.fil"
    ):
        checked(tmp_path, "obs.fil", "obs_x4.fil")
    with pytest.raises(InputError, match="b/obs.fil: must be .* than a/obs.fil, as their results would have the same"):
        checked(tmp_path, "a/obs.fil", "b/obs.fil", suffixes=[""])
    checked(tmp_path, "obs.fil", "obs_x4.fil", suffixes=[""])
    checked(tmp_path, "obs.fil", "obs_x8.fil", "obs_2.fil", "Obs.fil")
    monkeypatch.setattr(run_files, "_ignores_case", lambda folder: True)
    with pytest.raises(InputError, match="Obs.fil: must be searched in a run with another --output-dir than obs.fil"):
        checked(tmp_path, "obs.fil", "Obs.fil")


def test_outputs_that_would_replace_those_of_another_observation_are_refused(tmp_path):
    """Of two names, one is that of a layer of the other."""
    (tmp_path / "candidates_obs_x4.csv").touch()
    with pytest.raises(InputError, match=r"obs.fil: .* it would replace predictions_obs_x4.npy of another observation"):
        checked(tmp_path, "obs.fil")
    checked(tmp_path, "obs_x4.fil")
    checked(tmp_path, "obs.fil", suffixes=[""])
    (tmp_path / "candidates_obs_x4.csv").rename(tmp_path / "candidates_obs.csv")
    checked(tmp_path, "obs_x4.fil")
    (tmp_path / "predictions_obs_x4.npy").touch()
    with pytest.raises(InputError, match=r"obs_x4.fil: .* predictions_obs_x4.npy of another observation"):
        checked(tmp_path, "obs_x4.fil")
    assert names(tmp_path) == {path.name for path in outputs_in(tmp_path, "obs")} and not outputs_in(tmp_path, "obs_x4")


def test_outputs_that_would_replace_an_input_are_refused(observation):
    """A config, and an observation that is told by its content, not by its name."""
    folder = observation.parent
    (folder / "config.json").rename(folder / "summary_obs.json")
    for files, named in (
        (("--filterbank", observation, "-c", folder / "summary_obs.json"), "would replace .*summary_obs.json"),
        (("--filterbank", observation, folder / "candidates_obs.csv"), "would replace .*candidates_obs.csv"),
    ):
        shutil.copy(observation, folder / "candidates_obs.csv")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        done = run_here(run_inference, *files, "--output-dir", folder)
        assert done.returncode == 2 and re.search(named, done.stderr), done.stderr
        assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
        (folder / "candidates_obs.csv").unlink()
    done = run_here(
        run_pipeline_simulation, "--filterbank", observation, "-c", folder / "summary_obs.json", "--output-dir", folder
    )
    assert done.returncode == 2 and "would replace" in done.stderr


SEARCHER = """
import sys
from pathlib import Path
from pipeline_classifier.output.run_files import unfinished_folder

with unfinished_folder(Path(sys.argv[1]), "obs") as folder:
    (folder / "predictions_obs.npy").touch()
    print("searches", flush=True)
    sys.stdin.readline()
"""


def test_two_searches_at_once_are_refused_until_the_first_is_killed(observation, start):
    out = observation.with_name("out")
    out.mkdir()
    first = start(SEARCHER, out)
    assert first.says() == "searches"
    other = shutil.copy(observation, observation.with_name("other.fil"))
    sentence = f"{out}: obs must be searched by one process at a time, got another one that is searching it\n"
    for options in ((), (other,)):
        second = run(observation, *options, "--no-plots")
        assert second.returncode == 2 and second.stderr.endswith(sentence)
        assert names(out) == {".obs.lock", "unfinished_obs"}, "the folder of the first one is untouched"
    first.kill()
    assert run(observation, "--no-plots").returncode == 0
    assert names(out) >= RESULTS and not names(out) & {".obs.lock", "unfinished_obs"}


def test_resume_skips_a_file_that_another_process_is_searching(observation, start):
    """The others are searched, and the end names the file until it is finished."""
    out = observation.with_name("out")
    out.mkdir()
    first = start(SEARCHER, out)
    assert first.says() == "searches"
    other = shutil.copy(observation, observation.with_name("other.fil"))
    second = run(observation, other, "--no-plots", "--resume")
    assert second.returncode == 2 and second.stderr.splitlines()[-1].endswith(
        f"{out}: all 2 files must be finished, got 1 that another process is searching ({observation})"
    )
    with open(out / "catalogue.csv", newline="") as file:
        assert {row["observation"] for row in csv.DictReader(file)} == {"other"}
    assert {".obs.lock", "unfinished_obs", "done_other.json"} <= names(out) and "done_obs.json" not in names(out)
    first.kill()
    assert run(observation, other, "--no-plots", "--resume").returncode == 0
    assert {"done_obs.json", "done_other.json"} <= names(out) and not names(out) & {".obs.lock", "unfinished_obs"}


def test_a_file_that_another_process_finishes_meanwhile_is_no_error(observation, monkeypatch):
    """And a finished file that another process is searching again is skipped."""

    def searched_by_another_process(source, classifiers, decision, config, output):
        result = search_and_write(source, classifiers, decision, config, output)
        identity = many_files.fingerprint(observation, many_files.settings_fingerprint(config))
        many_files.finish(config.output_path, observation, identity, result.files)
        raise InUse

    with monkeypatch.context() as patched:
        patched.setattr(run_inference, "search_and_write", searched_by_another_process)
        assert run(observation, "--no-plots", "--resume").returncode == 0
    out = observation.with_name("out")
    assert len(rows(out / "catalogue.csv")) == 2
    with lock(out, "obs"):
        assert run(observation, "--no-plots", "--resume").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_search_with_a_message(observation, monkeypatch, caplog, number):
    """The results so far remain, and --resume finishes the search; the handlers are then those of before."""
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    defaults = [
        signal.SIG_DFL,
        signal.SIG_DFL,
        signal.default_int_handler,
    ]  # a shell may ignore SIGINT in the background
    handlers = [signal.signal(*each) for each in zip(numbers, defaults, strict=True)]
    cleaned = FilterbankPages.cleaned

    def cleaned_until_signal(self, start, n, out=None, cleaning=None):
        if start >= 4 * 2048:
            os.kill(os.getpid(), number)
        return cleaned(self, start, n, out, cleaning)

    out = observation.with_name("out")
    try:
        with monkeypatch.context() as patched:
            patched.setattr(FilterbankPages, "cleaned", cleaned_until_signal)
            stopped = run(observation, "--no-plots", "--resume")
        assert stopped.returncode == 128 + number
        [message] = [text for text in caplog.messages if "was stopped" in text]
        assert message == (
            f"obs: the search was stopped by {number.name}; its results so far are in {out / 'unfinished_obs'}; repeat "
            "the command to search it again (with --resume, files that are finished are skipped)"
        )
        assert names(out) == {"unfinished_obs"} and len(rows(out / "unfinished_obs" / "candidates_obs.csv")) == 1
        # A second Ctrl-C ends the script at once, without a traceback.
        after = [*defaults[:2], signal.SIG_DFL if number == signal.SIGINT else defaults[2]]
        assert [signal.getsignal(n) for n in numbers] == after
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert run(observation, "--no-plots", "--resume").returncode == 0
        assert names(out) >= RESULTS and "unfinished_obs" not in names(out)
    finally:
        for n, handler in zip(numbers, handlers, strict=True):
            signal.signal(n, handler)


def test_events_merged_as_pages_arrive_are_those_merged_at_the_end(observation):
    """Bit for bit, with two time resolutions, two stacks of trial DMs and pages that overlap."""
    keys = {"block_samples": 2048, "time_downsample": [1, 2], "ndm": 300, "page_overlap": 0.5, "min_snr": 5.0}
    observation.with_name("config.json").write_text(json.dumps(keys))
    config = load_pipeline_config(observation.with_name("config.json"))
    source, classifiers = FilterbankPages(observation, config.front_end()), load_classifiers(config)
    decision = replace(decide(config, classifiers, source.layers), event_threshold=0.02)
    settled: list[Event] = []
    result = search(source, classifiers, decision, progress=lambda _, __, events: settled.extend(events))
    _, at_once = events_by_threshold(source, classifiers, decision, [0.02])
    assert result.events == at_once[0.02] and len(result.events) >= 2
    assert settled and settled == result.events[: len(settled)]


def test_what_a_killed_search_left_is_removed_when_nothing_is_left_to_do(observation):
    out = observation.with_name("out")
    assert run(observation, "--no-plots", "--resume").returncode == 0
    before = names(out)
    (out / "unfinished_obs").mkdir()
    (out / ".obs.lock").touch()
    assert run(observation, "--no-plots", "--resume").returncode == 0
    assert names(out) == before


@pytest.mark.slow
def test_nothing_is_lost_twice_or_stale_after_kills_and_on_a_full_disk():
    script = Path(__file__).parents[2] / "tools" / "soak_search.py"
    words = [sys.executable, script, "--kills", "4", "--pairs", "2", "--full", "4"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
