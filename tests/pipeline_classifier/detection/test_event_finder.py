"""Events: measured on the plane, whole across the edges of pages, batches and pieces of a run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.detection import event_finder
from pipeline_classifier.detection.decision import Decision
from pipeline_classifier.detection.event_finder import EventFinder
from pipeline_classifier.detection.event_merging import merge_duplicates
from pipeline_classifier.detection.page_classifier import Classified
from pipeline_classifier.detection.peaks import Peak
from pipeline_classifier.frontend.boxcar import BoxcarSearch, boxcar_search, page_snrs
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.frontend.sources import Layer
from tests.pipeline_classifier.detection.planes import GRID, N_TIME, classified, find, plane

LAYER = Layer(GRID, np.empty(0, np.int64))


@pytest.mark.parametrize("width", [1, 3, 8, 20])
def test_a_pulse_on_the_edge_of_two_pages_is_one_event(width):
    column = 2 * N_TIME - width // 2
    [event] = find(plane(5, [(20, column, width, 40.0)]), [1, 2], 10)
    assert (event.first_page, event.last_page) == (1 if width > 1 else 2, 2) and event.probability == pytest.approx(0.9)
    assert event.dm_pc_cm3 == 20.0
    assert event.snr == pytest.approx(40, rel=0.15)
    assert event.time_s == pytest.approx((column + width / 2) * 1e-3, abs=1.1e-3)
    assert event.mjd == pytest.approx(59000.25 + event.time_s / 86400, abs=1e-10)
    assert event.width_ms == pytest.approx(width, rel=0.4)
    assert event.width_samples * 1.0 == pytest.approx(event.width_ms)


def test_a_pulse_at_the_very_start_and_the_very_end():
    events = find(plane(4, [(5, 0, 2, 30.0), (9, 4 * N_TIME - 2, 2, 30.0)]), [0, 3], 4)
    assert [event.dm_pc_cm3 for event in events] == [5.0, 9.0]
    assert events[0].time_s == pytest.approx(1e-3, abs=1e-3) and events[1].time_s == pytest.approx(0.255, abs=1e-3)


def test_pages_that_are_not_positive_give_nothing():
    assert find(plane(4, [(20, 100, 2, 50.0)]), [], 2) == []


def test_two_pulses_in_adjacent_pages_are_two_events():
    events = find(plane(4, [(20, 70, 2, 30.0), (10, 185, 3, 20.0)]), [1, 2], 10)
    assert sorted((event.dm_pc_cm3, round(event.time_s, 2)) for event in events) == [(10.0, 0.19), (20.0, 0.07)]


positive_pages = st.sets(st.integers(0, 39)).map(sorted)


@given(positive=positive_pages, batch_size=st.integers(1, 45), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_batches_change_no_event(positive, batch_size, seed):
    rng = np.random.default_rng(seed)
    pulses = [(int(rng.integers(32)), page * N_TIME + int(rng.integers(60)), 2, 30.0) for page in positive]
    values = plane(40, pulses, seed)
    events = find(values, positive, batch_size)
    assert events == find(values, positive, 100)
    # The centre of a pulse lies in a page that is positive, or at most a quarter of a page beside it.
    centres = [event.time_s / GRID.tsamp / N_TIME for event in events]
    assert all(any(page - 0.3 <= centre <= page + 1.3 for page in positive) for centre in centres)
    assert len(events) >= (len(positive) > 0)


@given(batch_size=st.integers(1, 80))
@settings(max_examples=20, deadline=None)
def test_batches_change_no_event_of_a_long_run(batch_size):
    values = plane(80, [(20, 32 * N_TIME - 1, 2, 40.0), (8, 75 * N_TIME, 2, 40.0)])
    events = find(values, list(range(80)), batch_size)
    assert {20.0, 8.0} <= {event.dm_pc_cm3 for event in events if event.snr > 20}
    assert events == find(values, list(range(80)), 100)


@pytest.mark.parametrize("batch_size", [7, 206])
def test_pages_are_measured_in_groups_and_every_pulse_found_once(batch_size, monkeypatch):
    """A plane has one group and its context, and no page is kept for longer than that needs."""
    group = event_finder.GROUP * N_TIME
    # In the middle of a group, and at its edges: on both sides, and within a quarter of a page beside them.
    columns = [group * (3 + 6 * number) + shift for number, shift in enumerate((20, -1, 0, -12, 12, 300, 0))]
    pulses = [(3 * number + 5, column, 2, 40.0) for number, column in enumerate(columns)]
    pages = plane(206, pulses).reshape(32, 206, N_TIME).transpose(1, 0, 2)
    probabilities = np.where((np.arange(206) >= 3) & (np.arange(206) < 203), 0.9, 0.1)
    lengths = []

    def noted_search(values: np.ndarray, widest: int, noise: float) -> BoxcarSearch:
        lengths.append(values.shape[1])
        return boxcar_search(values, widest, noise)

    monkeypatch.setattr(event_finder, "boxcar_search", noted_search)
    finder, events = EventFinder(LAYER, Decision(threshold=0.5)), []
    longest = group + 2 * event_finder.LONGEST_REACH * N_TIME
    for first in range(0, 206, batch_size):
        batch = PageBatch.of_pages(pages, N_TIME * np.arange(206), 0)[first : first + batch_size]
        events += finder.add(batch, classified(probabilities[first : first + batch_size]))
        assert (first + len(batch)) * N_TIME - finder.until_s / GRID.tsamp <= longest + batch_size * N_TIME
    events += finder.finish()
    assert len(lengths) == 51 and max(lengths) <= longest
    merged = merge_duplicates([event for event in events if event.snr > 20], GRID)
    assert [event.dm_pc_cm3 for event in merged] == [row for row, *_ in pulses]
    assert [event.time_s for event in merged] == pytest.approx([(column + 1) * 1e-3 for column in columns], abs=1.1e-3)
    assert [event.snr for event in merged] == pytest.approx([40.0] * 7, rel=0.15)


def test_what_is_found_does_not_depend_on_which_other_pages_pass_the_gate():
    values = plane(40, [(20, 9 * N_TIME + 5, 2, 30.0), (10, 21 * N_TIME, 4, 12.0)])
    alone, all_pages = find(values, [9, 20, 21], 7), find(values, list(range(40)), 7)
    bright = [event for event in alone if event.snr > 8]
    assert [event for event in all_pages if event.snr > 8] == bright and len(bright) == 2


@pytest.mark.parametrize("batch_size", [1, 4, 40])
@pytest.mark.parametrize("column", [4 * N_TIME - 10, 8 * N_TIME - 10, 13 * N_TIME - 10])
def test_the_gate_lets_a_pulse_pass_that_is_across_two_pages_or_batches(column, batch_size):
    """Each page has half of the pulse, whose S/N of 8.4 is below the gate of 6.5 there."""
    values = plane(16, [(20, column, 20, 8.4)], seed=5)
    decision = Decision(threshold=0.5, event_threshold=0.5, min_snr=6.0, snr_gate=6.5)
    finder, events = EventFinder(LAYER, decision, OnlyDm20(0.9)), []
    starts = N_TIME * np.arange(16)
    for first in range(0, 16, batch_size):
        batch = PageBatch(values, starts, starts, N_TIME, 0)[first : first + batch_size]
        part = PageBatch.of_pages(batch.pages, batch.starts, first)
        within, beginning, _ = page_snrs(part, GRID.noise)
        assert (within < 6.5).all()
        events += finder.add(part, Classified(np.zeros(len(part), np.float32), beginning, 0, 0))
    [event] = events + finder.finish()
    assert event.time_s / GRID.tsamp == pytest.approx(column + 10, abs=5) and event.snr > 6


@given(batch_size=st.integers(1, 20))
@settings(max_examples=15, deadline=None)
def test_overlapping_pages_show_a_pulse_once(batch_size):
    values = plane(6, [(20, 130, 2, 40.0)])
    starts = np.arange(0, 5 * N_TIME + 1, N_TIME // 2)
    positive = [i for i, start in enumerate(starts) if start <= 130 < start + N_TIME]
    assert len(positive) == 2
    [event] = find(values, positive, batch_size, starts)
    assert event.dm_pc_cm3 == 20.0 and event.time_s == pytest.approx(0.131, abs=1e-3)


def test_pages_with_a_gap_between_them_are_separate():
    values = plane(6, [(20, 10, 2, 40.0), (7, 3 * N_TIME + 10, 2, 40.0)])
    events = find(values, [0, 1], 5, np.array([0, 3 * N_TIME]))
    assert [(event.first_page, event.last_page, event.dm_pc_cm3) for event in events] == [(0, 0, 20.0), (1, 1, 7.0)]


class OnlyDm20:
    """A candidate classifier for which every peak of the trial DM 20 is a pulse, with a given probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def probabilities(self, searched: BoxcarSearch, grid: PageGrid, peaks: list[Peak], _: None) -> np.ndarray:
        assert all(peak.snr >= 6.0 for peak in peaks)
        return np.array([self.probability if grid.dms[peak.row] == 20 else 0.01 for peak in peaks])


@pytest.mark.parametrize("probability, page_probability, found", [(0.97, 0.4, 1), (0.85, 0.4, 0), (0.97, 0.01, 1)])
def test_the_candidate_classifier_decides_on_every_peak_whatever_the_probability_of_its_page(
    probability, page_probability, found
):
    """A brighter streak of interference is in the page too: only what is classified as a pulse is an event."""
    values = plane(5, [(20, 2 * N_TIME + 5, 2, 25.0), (3, 2 * N_TIME + 40, 4, 60.0)])
    decision = Decision(threshold=0.5, event_threshold=0.9, min_snr=6.0)
    finder = EventFinder(LAYER, decision, OnlyDm20(probability))
    pages = np.stack([values[:, first : first + N_TIME] for first in range(0, 5 * N_TIME, N_TIME)])
    batch = PageBatch.of_pages(pages, N_TIME * np.arange(5), 0)
    probabilities = np.array([0, 0, page_probability, 0, 0], np.float32)
    events = finder.add(batch, classified(probabilities)) + finder.finish()
    assert [(e.dm_pc_cm3, e.probability) for e in events] == [(20.0, pytest.approx(0.97))] * found


def test_the_time_at_infinite_frequency():
    [pulse] = find(plane(3, [(20, 100, 2, 30.0)]), [1], 10)
    assert (pulse.mjd - pulse.mjd_infinite) * 86400 == pytest.approx(4148.808 * 20 / 1500**2, abs=1e-5)


class EveryPeak:
    """A candidate classifier for which every peak is a pulse."""

    def probabilities(self, searched: BoxcarSearch, grid: PageGrid, peaks: list[Peak], _: None) -> np.ndarray:
        return np.ones(len(peaks))


@pytest.mark.parametrize("row, width, found", [(0, 2, 0), (1, 2, 0), (2, 2, 1), (20, 2, 1), (10, 16, 0), (20, 16, 1)])
def test_an_event_has_a_sweep_of_at_least_half_its_width(row, width, found):
    """A trial DM sweeps over 0.61 samples."""
    values = plane(5, [(row, 2 * N_TIME + 5, width, 40.0)])
    starts = N_TIME * np.arange(5)
    finder = EventFinder(LAYER, Decision(threshold=0.5, event_threshold=0.5, min_snr=20.0), EveryPeak())
    events = finder.add(PageBatch(values, starts, starts, N_TIME, 0), classified(np.zeros(5, np.float32)))
    assert len(events + finder.finish()) == found
