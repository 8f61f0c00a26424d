"""The false rate of an observation with pulses: searched backwards in time it agrees with the events of no pulse."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier import evaluate_pipeline
from pipeline_classifier.evaluation.false_rate import FalseEvents
from pipeline_classifier.evaluation.null_search import NullEvents, has_short_sweep, responses_to
from pipeline_classifier.events import Event
from pipeline_classifier.formats.sigproc import Filterbank, FilterbankWriter
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.simulation.interference import Rfi, random_rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, PulseRanges, random_pulses, simulate
from pipeline_classifier.simulation.random_observation import NSAMPLES, random_observation
from single_pulse_classifier_training.calibration import poisson_interval
from single_pulse_classifier_training.cli import InputError
from tests.command_line import run_here

GRID = PageGrid(0.5 * np.arange(256), 256, 0.5e-3, 59000.0, 1530.0, 1215.0)


def event(time_s: float, dm: float, snr: float, width_ms: float = 1.0) -> Event:
    return Event(time_s, 59000.0, dm, snr, width_ms, 1.0, 0, 0, 2)


def agree(count: int, other: int) -> bool:
    """Whether two numbers in the same time differ by at most a factor of 2, or within their Poisson intervals."""
    (low, high), (other_low, other_high) = poisson_interval(count, 1), poisson_interval(other, 1)
    return max(count, other) <= 2 * min(count, other) or (low <= other_high and other_low <= high)


@pytest.mark.parametrize(
    "forward, backward, is_response",
    [
        # DM 50 sweeps 52.4 ms, DM 10 sweeps 10.5 ms: 1.5 x 100 sqrt(1 / (1 + 52.4 + 10.5)) = 18.8.
        (event(5.0, 50, 100), event(10 - 5.03, 10, 18.7), True),
        (event(5.0, 50, 100), event(10 - 5.03, 10, 18.9), False),
        (event(2.0, 50, 100), event(7.97, 10, 18.7), True),  # times backwards count from the end at 10 s
        (event(2.0, 50, 100), event(2.03, 10, 18.7), False),
        # The tracks cross from 5 s - 3 ms to 5 s + 52.4 + 10.5 + 3 ms.
        (event(5.0, 50, 100), event(10 - 4.996, 10, 10), False),
        (event(5.0, 50, 100), event(10 - 4.998, 10, 10), True),
        (event(5.0, 50, 100), event(10 - 5.065, 10, 10), True),
        (event(5.0, 50, 100), event(10 - 5.067, 10, 10), False),
        # A sweep of 1.9 ms is short for a width of 1 ms, one of 2.1 ms is not.
        (event(5.0, 1.8, 100), event(5.0, 2.0, 10), False),
        (event(5.0, 2.0, 100), event(5.0, 2.0, 10), True),
    ],
)
def test_responses_to_bright_pulses_cross_them_and_are_faint(forward, backward, is_response):
    others = [event(1.0, 100, 8), event(9.0, 100, 8)]
    assert responses_to([*others, forward], [backward, event(7.0, 50, 7)], GRID, 10.0).tolist() == [is_response, False]
    assert responses_to([], [backward], GRID, 10.0).tolist() == [False]
    assert responses_to([forward], [], GRID, 10.0).tolist() == []


def test_a_short_sweep_is_below_two_widths_in_the_band_in_use():
    events = [event(1.0, 1.8, 10), event(1.0, 2.0, 10), event(1.0, 20.0, 10, 12.0), event(1.0, 0.0, 10)]
    assert has_short_sweep(events, GRID).tolist() == [True, False, True, True]
    assert has_short_sweep(events[1:2], replace(GRID, zaplist=((1200.0, 1260.0),))).tolist() == [True]


def test_the_threshold_for_a_rate_is_the_lowest_one_with_at_most_that_rate():
    counts = {0.1: 9, 0.5: 4, 0.9: 1, 0.95: 0}
    nothing = dict.fromkeys(counts, 0)
    null = NullEvents(
        FalseEvents(1, counts, np.zeros(1), 7200.0), dict.fromkeys(counts, 20), nothing, {**nothing, 0.1: 3}
    )
    assert null.threshold_for(2.0) == (0.5, 4) and null.threshold_for(0.5) == (0.9, 1)
    with pytest.raises(InputError, match="--wanted-rate must be at least 0.5, the lowest rate measured, got 0.4"):
        null.threshold_for(0.4)
    assert [row["false_per_hour"] for row in null.rows()] == [4.5, 2.0, 0.5, 0.5]
    assert null.rows()[0]["false_per_hour_interval"] == poisson_interval(9, 2.0)
    assert null.table()[2].split() == ["0.1", "9", "4.5", "(2.06", "to", "8.54)", "3", "0", "20"]


def parts_of(path: Path, folder: Path) -> list[Path]:
    """Write the samples of a file to two files, the later part first."""
    whole = Filterbank(path)
    half, paths = whole.nsamples // 2, []
    for name, first in (("late", half), ("early", 0)):
        header = replace(whole.header, tstart=whole.tstart + first * whole.tsamp / 86400)
        with FilterbankWriter(folder / f"{name}.fil", header) as file:
            file.write(whole.read(first, half))
        paths.append(folder / f"{name}.fil")
    return paths


def test_a_search_backwards_finds_no_pulse_and_as_many_false_events(tmp_path):
    header, n = replace(EFFELSBERG, nchans=64, foff=-5.0, tsamp=0.5e-3), 30_000
    ranges = PulseRanges(dm_pc_cm3=(20, 110), snr=(20, 60), width_ms=(0.5, 4), min_separation_s=0.6)
    pulses = random_pulses(20, ranges, header, n, 5)
    simulate(tmp_path / "a.fil", header, n, pulses, random_rfi("extreme", header, n, 5), seed=5)
    options = ("--output-dir", tmp_path, "--no-plots")
    assert run_here(evaluate_pipeline, tmp_path / "a.fil", *options).returncode == 0
    parts = parts_of(tmp_path / "a.fil", tmp_path)
    done = run_here(evaluate_pipeline, "--null", *parts, "--joined", "--wanted-rate", 3000, *options)
    assert done.returncode == 0 and "threshold for 3000 per hour" in done.stdout, done.stderr
    null = json.loads((tmp_path / "null_events.json").read_text())
    assert null["observations"] == [[str(part) for part in parts]] and null["hours"] == pytest.approx(15 / 3600)
    truth = json.loads((tmp_path / "evaluation.json").read_text())["by_threshold"]
    for known, row in zip(truth, null["thresholds"], strict=True):
        assert row["threshold"] == known["threshold"]
        assert row["events_forward"] == known["found"] + known["false_events"]
        assert agree(row["false_positives"], known["false_events"])
    assert truth[0]["found"] >= 15 and null["thresholds"][0]["false_positives"] < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "level, snrs, numbers", [("strong", (6, 50), (1, 14, 19, 24)), ("none", (50, 5000), (1, 4, 6, 8))], ids=str
)
def test_the_null_rate_is_that_of_events_without_a_pulse(tmp_path, level, snrs, numbers):
    """In strong interference, and where bright pulses alone could give events: backwards at most a factor of 2."""
    files = []
    for number in numbers:
        drawn = random_observation(number, np.random.default_rng(1000 + number))
        names = ("fch1", "foff", "nchans")
        header = replace(EFFELSBERG, tsamp=drawn["tsamp_us"] * 1e-6, **{name: drawn[name] for name in names})
        widths_ms = (drawn["width_ms_min"], drawn["width_ms_max"])
        separation_s = drawn["min_separation_s"]
        ranges = PulseRanges((8, 125), snr=snrs, width_ms=widths_ms, band_limited=0.2, min_separation_s=separation_s)
        pulses = random_pulses(40, ranges, header, NSAMPLES, drawn["seed"])
        rfi = random_rfi(level, header, NSAMPLES, drawn["seed"]) if level != "none" else Rfi()
        files.append(tmp_path / f"{number}.fil")
        simulate(files[-1], header, NSAMPLES, pulses, rfi, drawn["seed"])
    options = ("--output-dir", tmp_path, "--no-plots")
    assert run_here(evaluate_pipeline, *files, *options).returncode == 0
    assert run_here(evaluate_pipeline, "--null", *files, *options).returncode == 0
    truth = json.loads((tmp_path / "evaluation.json").read_text())["by_threshold"]
    null = json.loads((tmp_path / "null_events.json").read_text())["thresholds"]
    counts = [(row["false_positives"], known["false_events"]) for row, known in zip(null, truth, strict=True)]
    assert all(agree(*pair) for pair in counts), counts
