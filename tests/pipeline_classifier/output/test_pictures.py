"""Pictures of events: which are drawn, by whom, and that the same event always gives the same file."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline_classifier import run_inference
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.frontend.sources import Cutout
from pipeline_classifier.output.candidate_lists import as_written, read_candidates, write_candidates
from pipeline_classifier.output.event_picture import EventFigures, EventPicture, Saliency
from pipeline_classifier.output.picture_workers import PictureWorkers
from pipeline_classifier.output.plots import foremost
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError
from tests.command_line import run_here

ROOT = Path(__file__).resolve().parents[3]
PULSES = [Pulse(0.4, 56.77, 25.0, 1.0), Pulse(1.1, 30.0, 14.0, 2.0), Pulse(1.8, 90.0, 40.0, 3.0)]


def event(snr: float = 20.0, probability: float = 0.99, width: int = 4) -> Event:
    return Event(1.23456789, 59000.1, 30.123456, snr, 0.4, probability, 10, 11, width)


def picture(seed: int, n_time: int = 64, spectrum: bool = True, saliency: bool = False, known: bool = True):
    """A picture of noise; the seed also changes the ranges of all axes."""
    rng = np.random.default_rng(seed)
    plane = rng.normal(size=(32, n_time)).astype(np.float32) * 10.0**seed
    dms = np.linspace(0, 10.0 ** (seed - 1), 32) if known else np.full(32, np.nan)
    channels = rng.normal(size=(70, n_time)).astype(np.float32)
    channels[3:20] = np.nan
    frequencies = 1500 - (0.1 + seed) * np.arange(70.0)
    cutout = Cutout(-n_time // 2, dms, plane, *((channels, frequencies) if spectrum else ()))
    drop = rng.normal(size=(32, 32)).astype(np.float32) * seed
    of_page = Saliency(PageGrid(dms, 64, 1e-4), 100, 7, rng.integers(0, 255, (32, 32), np.uint8), drop)
    tsamp = 10.0 ** (seed - 5) if known else np.nan
    return EventPicture(f"a${seed}$", event(width=seed), cutout, tsamp, of_page if saliency else None)


PICTURES = [
    picture(1),
    picture(3, n_time=256),
    picture(2, spectrum=False),
    picture(4, spectrum=False, known=False),
    picture(2, saliency=True),
    picture(5, saliency=True),
    picture(3, spectrum=False),
]


def test_a_picture_does_not_depend_on_those_before_it():
    figures, again = EventFigures(), EventFigures()
    files = [figures.png(one) for one in PICTURES]
    assert [again.png(one) for one in reversed(PICTURES)] == files[::-1]
    assert len(set(files)) == len(files)
    for one, file in zip(PICTURES, files, strict=True):
        with Image.open(io.BytesIO(file)) as image:
            image.load()  # checks the sums of its chunks
            assert image.mode == "RGB" and image.info["dpi"] == pytest.approx((110, 110), abs=0.1)
            assert image.height > image.width * (1 if one.cutout.spectrum is not None else 0.9)
            colours = np.asarray(image).reshape(-1, 3)
            assert (colours == 255).all(axis=1).mean() < 0.5, "panels are filled"


def test_the_most_probable_and_brightest_come_first():
    events = [event(*numbers) for numbers in ((8, 0.9), (9, 0.998), (30, 0.6), (12, 0.996), (9, 0.997))]
    assert foremost(events, None) == [4, 2, 5, 1, 3]
    assert foremost(events, 2) == [4, 2] and foremost(events, 0) == []


def test_candidates_are_read_as_they_were_written(tmp_path):
    events = [event(20.123456), Event(*[np.nan] * 3, 8.0, np.nan, 0.5, 3, 3, 2)]
    write_candidates(tmp_path / "list.csv", events)
    assert repr(read_candidates(tmp_path / "list.csv")) == repr(as_written(events))
    text = (tmp_path / "list.csv").read_text().replace("8.00", "bright")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match="line 3: every field must be a number, got .*bright"):
        read_candidates(tmp_path / "list.csv")


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("observation") / "pulses.fil"
    simulate(path, EFFELSBERG, round(2.2 / EFFELSBERG.tsamp), PULSES, Rfi(), seed=5)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("event_*"))


def test_pictures_drawn_later_are_those_of_the_search(observation, tmp_path, caplog):
    """Whatever the number of workers and the order in which they draw."""

    def run(out: str, *options: object) -> str:
        caplog.clear()
        done = run_here(run_inference, *options, "--filterbank", observation, "--output-dir", tmp_path / out)
        assert done.returncode == 0, done.stderr + caplog.text
        return caplog.text

    caplog.set_level("INFO")
    capped, every = tmp_path / "capped", tmp_path / "every"
    (tmp_path / "config.json").write_text(json.dumps({"max_plots": 1, "threads": 1}))
    said = run("capped", "-c", tmp_path / "config.json", "--report")
    assert "3 events: pictures are drawn of 1, the most probable and brightest" in said
    events = read_candidates(capped / "candidates_pulses.csv")
    (first,) = foremost(events, 1)
    assert names(capped) == [f"event_pulses_{first:04d}.png"]
    report = (capped / "report_pulses.html").read_text()
    assert report.count("data:image/jpeg") == 1 and "2 events were not drawn" in report
    made = (capped / names(capped)[0]).stat().st_mtime_ns
    said = run("capped", "--plots-only", "--max-plots", 2)
    assert "1 pictures of 3 events drawn, 1 existed" in said
    run("capped", "--plots-only", "--all-plots")
    assert (capped / f"event_pulses_{first:04d}.png").stat().st_mtime_ns == made
    said = run("every", "--all-plots")
    assert "max_plots" not in said
    assert names(capped) == names(every) == [f"event_pulses_{number:04d}.png" for number in (1, 2, 3)]
    for name in names(every):
        assert (capped / name).read_bytes() == (every / name).read_bytes()
    assert not list(capped.glob(".*.lock")) and not list(capped.glob(".*.tmp"))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--plots-only"], "--plots-only must be used with a file, got a ring"),
        (["--plots-only", "--no-plots", "--filterbank"], "only one of --plots-only and --no-plots"),
        (["--plots-only", "--filterbank", "OBSERVATION"], "candidates_pulses.csv: must be the list of an earlier"),
        (["--max-plots", -1, "--filterbank", "OBSERVATION"], "--max-plots must be 0 or more, got -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(observation, tmp_path, caplog, options, message):
    options = [observation if option == "OBSERVATION" else option for option in options]
    done = run_here(run_inference, *options, "--output-dir", tmp_path)
    assert done.returncode == 2 and message in done.stderr + caplog.text


def children() -> set[int]:
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def test_a_worker_that_is_killed_is_an_error(tmp_path):
    before = children()

    def kill() -> EventPicture:
        (worker,) = children() - before
        os.kill(worker, signal.SIGKILL)
        return picture(1)

    tasks = [(tmp_path / "a.png", lambda: picture(1)), (tmp_path / "b.png", kill), (tmp_path / "c.png", kill)]
    with PictureWorkers(3, 1) as workers:
        drawn = workers.draw(tasks)
        assert next(drawn) == tmp_path / "a.png"
        with pytest.raises(InputError, match=r"b\.png: the process that draws must run until the end, got SIGKILL"):
            next(drawn)
    assert children() == before and os.listdir(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == EventFigures().png(picture(1))


def test_no_worker_outlives_a_killed_search():
    code = "import os; from pipeline_classifier.output.picture_workers import PictureWorkers as P; w = P(1, 1)\n"
    code += "w.__enter__(); print(w._workers[0].pid, flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, timeout=60)
    worker = Path("/proc") / killed.stdout.decode().strip()
    until = time.monotonic() + 30
    while worker.exists() and "Z" not in (worker / "stat").read_text().rpartition(")")[2].split()[:1]:
        assert time.monotonic() < until
        time.sleep(0.05)
