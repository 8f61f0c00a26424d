"""The live search: a process that reads a real ring; what it leaves is valid whenever and however it ends."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier import run_inference
from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.classifiers import load_classifiers
from pipeline_classifier.frontend import boxcar_kernels
from pipeline_classifier.frontend.pages import PageBatch
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.live import live_search
from pipeline_classifier.live.live_results import GROWTH, GrowingNpy
from pipeline_classifier.live.live_search import missing_pages
from pipeline_classifier.live.psrdada.client import Writer, create_rings
from pipeline_classifier.output.candidate_lists import read_candidates
from pipeline_classifier.output.plots import foremost
from single_pulse_classifier_training.checkpoint import Checkpoint, save_checkpoint
from single_pulse_classifier_training.training_models import build_model
from tests.command_line import run_here

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "pipeline_classifier" / "run_inference.py"
MODEL_NAME = "DM_time_binary_classificator_241002_3_GAP"
SIDE, PATIENCE_S = 32, 60.0
HEADER = {
    "dms": 10.0,
    "ddm": 1.0,
    "ndm": SIDE,
    "ndump": SIDE,
    "tsamp": 1e-3,
    "tstart": 59000.5,
    "fmax": 1530,
    "fmin": 1210,
}
# Writes images in portions of so many; waits for a line before the portions that follow, and before it ends.
WRITER = f"""
import json, sys
import numpy as np
from pipeline_classifier.live.psrdada.client import (Writer)
key, header, counts = json.loads(sys.argv[1])
images = np.random.default_rng(0).standard_normal((sum(counts), {SIDE}, {SIDE})).astype(np.float32)
images[::5, 7, 9] += 30
done = 0
with Writer(key) as writer:
    writer.setHeader(json.dumps(header))
    for count in counts:
        writer.write(images[done : done + count])
        done += count
        print(done, flush=True)
        input()
"""


def images_of(count: int) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((count, SIDE, SIDE)).astype(np.float32)
    images[::5, 7, 9] += 30
    return images


@pytest.fixture
def config(tmp_path, ring_key) -> Path:
    """A ring, and a network with random weights that finds a pulse in every third image or so."""
    create_rings(ring_key, 4 * SIDE * SIDE, 64)
    torch.manual_seed(3)
    save_checkpoint(tmp_path / "model.pth", Checkpoint(build_model(MODEL_NAME, SIDE).eval(), MODEL_NAME, SIDE))
    keys = {"path_to_models": "./", "name_of_the_model": "model.pth", "key_output": f"0x{ring_key:X}", "threads": 2}
    keys |= {"name_of_the_filterbank": "a.b 1.fil", "output_dir": "out", "max_latency_s": 0.1, "idle_timeout_s": 30.0}
    keys |= {"candidate_classifier": None, "min_snr": 0.0}  # they would refuse what a random network finds
    (tmp_path / "config.json").write_text(json.dumps(keys))
    threshold = float(np.quantile(probabilities(tmp_path / "config.json", 60), 0.67))
    return change(tmp_path / "config.json", threshold=threshold)


def change(config: Path, **keys: object) -> Path:
    config.write_text(json.dumps(json.loads(config.read_text()) | keys))
    return config


def probabilities(config: Path, count: int) -> np.ndarray:
    classifier = load_classifiers(load_pipeline_config(config, {"device": "cpu"})).pages
    return classifier.classify(PageBatch.of_pages(images_of(count), np.arange(count) * SIDE, 0)).probabilities


@pytest.fixture
def search():
    """Start run_inference.py in the background."""
    processes = []

    def begin(config: Path, *options: object) -> subprocess.Popen:
        command = [sys.executable, SCRIPT, "-c", config, *options]
        processes.append(
            subprocess.Popen(
                [*map(str, command)],
                cwd="/",
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # also where nohup runs the tests
            )
        )
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def classified(out: Path) -> int:
    """Pages that the predictions on disk hold now."""
    path = out / "predictions_a.b 1.npy"
    return int((np.load(path) != -1).sum()) if path.exists() else 0


def rows(out: Path, name: str = "candidates_a.b 1.csv") -> list[dict[str, str]]:
    with open(out / name, newline="") as file:
        return list(csv.DictReader(file))


def status(out: Path) -> dict:
    return json.loads((out / "status_a.b 1.json").read_text())


def check(config: Path, out: Path, count: int, length: int) -> None:
    """Predictions and probabilities are those of ``count`` pages, and -1 to the end."""
    expected = probabilities(config, count)
    threshold = json.loads(config.read_text())["threshold"]
    values, classes = np.load(out / "probabilities_a.b 1.npy"), np.load(out / "predictions_a.b 1.npy")
    assert values.dtype == np.float32 and classes.dtype == np.int32 and values.shape == classes.shape == (length,)
    assert np.array_equal(values[:count], expected) and (values[count:] == -1).all()
    assert np.array_equal(classes[:count], expected >= threshold) and (classes[count:] == -1).all()


def test_no_input_means_the_ring_until_n_spectra_pages_came(config, search, start, ring_key, tmp_path):
    change(config, n_spectra=50, max_plots=3)
    writer = start(WRITER, json.dumps([ring_key, HEADER, [60]]))
    out, errors = search(config).communicate(timeout=PATIENCE_S)
    assert "n_spectra of 50 pages reached" in out, errors
    check(config, tmp_path / "out", 50, 50)
    found = rows(tmp_path / "out")
    times = [float(row["time_s"]) for row in found]
    assert times == sorted(times) and len(found) > 3
    assert all(0 <= time_s < 50 * SIDE * 1e-3 for time_s in times)
    for row in found:
        assert float(row["mjd"]) == pytest.approx(59000.5 + float(row["time_s"]) / 86400, abs=1e-9)
        assert 10 <= float(row["dm_pc_cm3"]) <= 41 and float(row["probability"]) >= 0
    names = {
        "candidates_a.b 1.csv",
        "predictions_a.b 1.npy",
        "probabilities_a.b 1.npy",
        "status_a.b 1.json",
        "summary_a.b 1.json",
    }
    drawn = foremost(read_candidates(tmp_path / "out" / "candidates_a.b 1.csv"), 3)
    names |= {f"event_a.b 1_{number:04d}.png" for number in drawn}
    assert len(drawn) == 3 and {path.name for path in (tmp_path / "out").iterdir()} == names
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (tmp_path / "out").glob("*.png"))
    said = status(tmp_path / "out")
    assert said["state"] == "ended" and said["pages"] == 50 and said["events"] == len(found)
    assert (
        said["ring_blocks"] == 64
        and 0 <= said["ring_blocks_full"] == said["ring_full"] <= 64
        and said["latency_s"] >= 0
    )
    writer.kill()


def test_a_killed_search_leaves_valid_files_and_the_next_one_goes_on(config, search, start, ring_key, tmp_path):
    out = tmp_path / "out"
    writer = start(WRITER, json.dumps([ring_key, HEADER, [40, 20]]))
    first = search(config)
    wait_until(lambda: classified(out) == 40, first)
    wait_until(lambda: status(out)["pages"] == 40, first)
    first.kill()
    first.wait()
    check(config, out, 40, GROWTH)
    assert status(out)["state"] == "running"
    found = rows(out)
    assert len(found) > 3 and all(None not in row.values() and None not in row for row in found)

    assert writer.says() == "40"
    writer.tell()
    assert writer.says() == "60"
    second = search(change(config, n_spectra=20), "--output-dir", out)
    _, errors = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, errors
    assert np.array_equal(np.load(out / "probabilities_a.b 1.npy"), probabilities(config, 60)[40:])
    # What came later has the times and page numbers of the observation, and what was found before is still there.
    assert all(float(row["time_s"]) >= 40 * SIDE * 1e-3 for row in rows(out)) and rows(out)
    assert all(int(row["first_page"]) >= 40 for row in rows(out)) and status(out)["first_page"] == 40
    assert json.loads((out / "summary_a.b 1.json").read_text())["first_page"] == 40
    [kept] = out.glob("candidates_a.b 1.2*.csv")
    assert rows(out, kept.name) == found
    [kept] = out.glob("predictions_a.b 1.2*.npy")
    assert (np.load(kept)[:40] != -1).all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_everything_written(config, search, start, ring_key, tmp_path, number):
    out = tmp_path / "out"
    change(config, n_spectra=100)
    start(WRITER, json.dumps([ring_key, HEADER, [40, 20]]))
    process = search(config)
    wait_until(lambda: classified(out) == 40, process)
    process.send_signal(number)
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    printed = dict(
        line.strip().split("  ", 1) for line in said.splitlines() if line.startswith(" ") and "  " in line.strip()
    )
    assert printed["end of the stream"] == number.name and printed["pages"] == "40"
    check(config, out, 40, 100)
    assert int(printed["events"]) == len(rows(out)) == status(out)["events"]
    assert status(out)["state"] == "ended" and status(out)["stopped"] == number.name


def test_pages_of_a_writer_that_died(config, search, start, ring_key, tmp_path):
    writer = start(WRITER, json.dumps([ring_key, HEADER, [40, 20]]))
    assert writer.says() == "40"
    process = search(config)
    wait_until(lambda: classified(tmp_path / "out") > 0, process)
    writer.kill()
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and "the writer died" in said, errors
    check(config, tmp_path / "out", 40, 40)


def test_a_ring_that_stays_empty(config, search, ring_key, tmp_path):
    process = search(change(config, idle_timeout_s=0.2))
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2 and said == "" and "Traceback" not in errors
    assert f"{ring_key:x}" in errors.splitlines()[-1] and list((tmp_path / "out").iterdir()) == []
    assert errors.splitlines()[-1].endswith("no header and no page came (waited for 0.2 s, idle_timeout_s)")


def test_a_ring_whose_pages_have_another_length(config, ring_key):
    """The header of dada_dbdedispdb has no page length; 65536 bytes are 512 samples of 128 channels."""
    obsinfo = {"fch1": 1530.0, "foff": -2.5, "nchans": 128, "tsamp": 1.024e-4, "tstart": 59000.5}
    with Writer(ring_key) as writer:
        writer.setHeader(json.dumps({"ddm": 0.5, "dms": 0.0, "ndm": SIDE, "obsinfo": obsinfo}))
        writer.write(images_of(3))
        done = run_here(run_inference, "-c", config)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "page_samples must be the page length" in last and "is 512 if" in last
    assert "got 256, for which the input blocks must have 32768 bytes" in last


def test_a_ring_without_any_usable_page_is_an_error(config, ring_key, tmp_path):
    """All results of an earlier search of this name are kept, of a file too."""
    (tmp_path / "out").mkdir()
    earlier = ["candidates_a.b 1.cands", "candidates_a.b 1.csv", "event_a.b 1_0001.png", "summary_a.b 1.json"]
    for name in earlier:
        (tmp_path / "out" / name).write_text("earlier")
    with Writer(ring_key) as writer:
        writer.setHeader(json.dumps(HEADER))
        writer.write(np.full((3, SIDE, SIDE), np.nan, np.float32))
        done = run_here(run_inference, "-c", change(config, n_spectra=3))
    assert done.returncode == 2 and done.stderr.endswith(
        f"the ring 0x{ring_key:x}: to be classified, a page must be finite, not constant and small enough "
        "to be scaled in float32, got none among 3\n"
    )
    summary = json.loads((tmp_path / "out" / "summary_a.b 1.json").read_text())
    assert (summary["samples_read"], summary["samples_searched"], summary["duration_s"]) == (3 * SIDE, 0, 0)
    kept = [path for path in (tmp_path / "out").iterdir() if re.search(r"\.\d{8}T\d{6}\.", path.name)]
    assert sorted(re.sub(r"\.\d{8}T\d{6}", "", path.name) for path in kept) == earlier
    assert all(path.read_text() == "earlier" for path in kept)


@pytest.mark.parametrize(
    ("pages", "pages_expected", "stopped", "missing"),
    [
        (23, 24, "no page for 1 s", "23 of 24 pages came (no page for 1 s)"),
        (24, 24, "no page for 1 s", ""),
        (25, 24, "the sender ended", ""),
        (23, None, "the sender ended", ""),
        (23, 24, "SIGTERM", ""),
    ],
)
def test_when_pages_are_missing(pages, pages_expected, stopped, missing):
    assert missing_pages(RunSummary(pages=pages, pages_expected=pages_expected, stopped=stopped)) == missing


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 2 * GROWTH), max_size=5), expected=st.sampled_from([None, 1, 100]))
def test_a_growing_file_is_valid_after_every_step(tmp_path_factory, lengths, expected):
    path = tmp_path_factory.mktemp("growing") / "a.npy"
    file, done = GrowingNpy(path, np.int32, expected), 0
    values = np.random.default_rng(0).integers(0, 9, sum(lengths))
    for length in [0, *lengths]:
        file.write(done, values[done : done + length])
        done += length
        content = np.load(path)
        assert content.dtype == np.int32 and len(content) >= max(done, expected or 0)
        assert np.array_equal(content[:done], values[:done]) and (content[done:] == -1).all()
        assert np.array_equal(file.values(), content)
    file.close(done)
    assert np.array_equal(np.load(path), values) and path.stat().st_size == 128 + 4 * done


@pytest.mark.slow
def test_readers_that_end_again_and_again_lose_no_page():
    soak = ROOT / "tests" / "benchmarks" / "bench_soak.py"
    command = [sys.executable, str(soak), "--pages", "4000", "--restarts", "4"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_loops_are_compiled_before_a_ring_is_attached(monkeypatch):
    loops = [boxcar_kernels.largest_boxcars, boxcar_kernels.best_boxcars]

    def attach(*_):
        assert all(loop.compiled.signatures for loop in loops)
        raise InterruptedError

    for loop in loops:
        monkeypatch.setattr(loop, "_compiled", None)  # as in a new process
    monkeypatch.setattr(live_search, "RingPages", attach)
    with pytest.raises(InterruptedError):
        live_search.open_ring(PipelineConfig())
