"""Events: measured on the plane, whole across page edges and batches, one per pulse."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.detection.decision import Decision
from pipeline_classifier.detection.event_finder import EventFinder
from pipeline_classifier.detection.event_merging import EventMerger, merge_duplicates
from pipeline_classifier.detection.peaks import Peak, find_peaks, maxima
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.evaluation.recovery import compare
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.boxcar import BoxcarSearch, boxcar_search, boxcar_widths
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.frontend.sources import Layer
from pipeline_classifier.output.candidate_lists import write_candidates, write_heimdall, write_transientx
from pipeline_classifier.simulation.pulses import Pulse

N_TIME = 64
GRID = PageGrid(np.arange(32.0), N_TIME, tsamp=1e-3, tstart=59000.25, f_top=1500.0, f_bottom=1400.0)
LAYER = Layer(GRID, np.empty(0, np.int64))


def plane(n_pages: int, pulses: list[tuple[int, int, int, float]], seed: int = 0) -> np.ndarray:
    """Unit noise (32, n) with boxcars (row, first column, width, S/N)."""
    values = np.random.default_rng(seed).standard_normal((32, n_pages * N_TIME)).astype(np.float32)
    for row, column, width, snr in pulses:
        values[row, column : column + width] += snr / np.sqrt(width)
    return values


def find(values: np.ndarray, positive: list[int], batch_size: int, starts: np.ndarray | None = None) -> list[Event]:
    """Events of the pages of a plane of which ``positive`` are pulses, classified in batches."""
    starts = np.arange(0, values.shape[1], N_TIME) if starts is None else starts
    pages = np.stack([values[:, start : start + N_TIME] for start in starts])
    probabilities = np.where(np.isin(np.arange(len(starts)), positive), 0.9, 0.1).astype(np.float32)
    finder, events = EventFinder(LAYER, Decision(threshold=0.5)), []
    for first in range(0, len(starts), batch_size):
        chosen = slice(first, first + batch_size)
        batch = PageBatch(pages[chosen], starts[chosen], first)
        events += finder.add(batch, probabilities[chosen])
    return events + finder.finish()


@pytest.mark.parametrize("width", [1, 3, 8, 20])
def test_a_pulse_on_the_edge_of_two_pages_is_one_event(width):
    column = 2 * N_TIME - width // 2
    [event] = find(plane(5, [(20, column, width, 40.0)]), [1, 2], 10)
    assert (event.first_page, event.last_page) == (1, 2) and event.probability == pytest.approx(0.9)
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
    assert {event.first_page for event in events} <= set(positive)
    assert len(events) >= (len(positive) > 0)


@given(batch_size=st.integers(1, 80))
@settings(max_examples=20, deadline=None)
def test_a_run_longer_than_memory_allows_is_measured_in_pieces(batch_size):
    values = plane(80, [(20, 32 * N_TIME - 1, 2, 40.0), (8, 75 * N_TIME, 2, 40.0)])
    events = find(values, list(range(80)), batch_size)
    assert {20.0, 8.0} <= {event.dm_pc_cm3 for event in events if event.snr > 20}
    assert events == find(values, list(range(80)), 100)


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


def test_a_peak_is_looked_for_only_where_it_is_asked_for():
    values = plane(3, [(20, 10, 2, 60.0), (12, 90, 2, 20.0)])
    [peak] = find_peaks(boxcar_search(values, 32), GRID, N_TIME, 2 * N_TIME, most=3)
    assert (peak.row, peak.column) == (12, 90)


def test_a_plane_of_zeros_and_nans_is_no_trouble():
    values = np.zeros((32, 200), np.float32)
    values[3, 5] = np.nan
    for peak in find_peaks(boxcar_search(values, 32), GRID, 0, 200, most=2):
        assert np.isfinite(peak.snr) and peak.snr <= 0


@pytest.mark.parametrize("apart", [8, 12, 20])
def test_sub_pulses_closer_than_a_page_are_rows_of_their_own(apart):
    events = find(plane(3, [(20, 100, 2, 30.0), (20, 100 + apart, 2, 18.0)]), [1], 10)
    assert [event.dm_pc_cm3 for event in events] == [20.0, 20.0]
    assert [event.time_s for event in events] == pytest.approx([0.101, 0.101 + 1e-3 * apart], abs=1.1e-3)
    assert [event.snr for event in events] == pytest.approx([30, 18], rel=0.25)
    merged = merge_duplicates(events, GRID)
    assert len(merged) == 2


@pytest.mark.parametrize("width, snr", [(2, 8.0), (2, 100.0), (16, 60.0)])
def test_one_pulse_has_no_sub_pulses(width, snr):
    for seed in range(20):
        assert len(find(plane(3, [(20, 100, width, snr)], seed), [1], 10)) == 1


def test_a_scattering_tail_has_no_sub_pulses():
    for seed in range(20):
        values = plane(3, [], seed)
        values[20, 80:] += 30 * np.exp(-np.arange(values.shape[1] - 80) / 12)
        assert len(find(values, [1], 10)) == 1


def test_trial_widths_are_dense():
    for longest in (1, 2, 7, 128):
        widths = boxcar_widths(longest)
        assert widths[0] == 1 and widths[-1] <= longest and (np.diff(widths) > 0).all()
        assert (widths[1:] <= np.maximum(1.6 * widths[:-1], widths[:-1] + 1)).all()
        assert widths[-1] * 1.6 >= longest


def event(time_s: float, dm: float, snr: float, page: int = 0, **changes) -> Event:
    return Event(
        **{
            "time_s": time_s,
            "mjd": 59000.0,
            "dm_pc_cm3": dm,
            "snr": snr,
            "width_ms": 1.0,
            "probability": 0.9,
            "first_page": page,
            "last_page": page,
            "width_samples": 1,
        }
        | changes
    )


def test_a_pulse_in_the_bow_tie_that_is_too_bright_for_a_trace_is_a_pulse():
    grid = PageGrid(np.arange(0.0, 200.0), N_TIME, tsamp=1e-3, f_top=1500.0, f_bottom=1400.0)
    reach = float(grid.sweep(100.0)) * 1e-3
    pulse, pulse_at_its_trace = event(1.0, 50.0, 30.0, page=15), event(1.0 - 0.9 * reach, 150.0, 25.0, page=14)
    assert len(merge_duplicates([pulse, pulse_at_its_trace], grid)) == 2


def test_what_the_cleaning_leaves_beside_a_bright_pulse_belongs_to_it():
    residual = event(1.007, 50.0, 9.0, page=15)
    assert merge_duplicates([event(1.0, 56.0, 60.0, page=15), residual], GRID)[0].snr == 60.0
    assert len(merge_duplicates([event(1.0, 56.0, 60.0, page=15), residual], GRID)) == 1
    assert len(merge_duplicates([event(1.0, 56.0, 12.0, page=15), residual], GRID)) == 2


class OnlyDm20:
    """A candidate classifier for which every peak of the trial DM 20 is a pulse, with a given probability."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def probabilities(self, searched: BoxcarSearch, grid: PageGrid, peaks: list[Peak]) -> np.ndarray:
        assert all(peak.snr >= 6.0 for peak in peaks)
        return np.array([self.probability if grid.dms[peak.row] == 20 else 0.01 for peak in peaks])


@pytest.mark.parametrize("probability, page_probability, found", [(0.97, 0.4, 1), (0.85, 0.4, 0), (0.97, 0.01, 0)])
def test_the_candidate_classifier_decides_on_every_peak_of_a_page_that_may_show_a_pulse(
    probability, page_probability, found
):
    """A brighter streak of interference is in the page too: only what is classified as a pulse is an event."""
    values = plane(5, [(20, 2 * N_TIME + 5, 2, 25.0), (3, 2 * N_TIME + 40, 4, 60.0)])
    decision = Decision(threshold=0.5, event_threshold=0.9, min_snr=6.0)
    finder = EventFinder(LAYER, decision, OnlyDm20(probability))
    pages = np.stack([values[:, first : first + N_TIME] for first in range(0, 5 * N_TIME, N_TIME)])
    batch = PageBatch(pages, N_TIME * np.arange(5), 0)
    probabilities = np.array([0, 0, page_probability, 0, 0], np.float32)
    events = finder.add(batch, probabilities) + finder.finish()
    assert [(e.dm_pc_cm3, e.probability) for e in events] == [(20.0, pytest.approx(0.97))] * found


def test_a_twin_in_the_bow_tie_is_merged_and_another_pulse_is_not():
    # At a trial DM 100 too high, the bottom channel of the pulse falls sweep(100) samples too early.
    grid = PageGrid(np.arange(0.0, 200.0), N_TIME, tsamp=1e-3, f_top=1500.0, f_bottom=1400.0)
    reach = float(grid.sweep(100.0)) * 1e-3
    assert reach == pytest.approx(4148.808 * 100 * (1400.0**-2 - 1500.0**-2))
    pulse = event(1.0, 50.0, 80.0, page=15)
    twin = event(1.0 - 0.9 * reach, 150.0, 12.0, page=13)
    other_side = event(1.0 + 0.9 * reach, 150.0, 12.0, page=17)
    later = event(1.5, 50.0, 20.0, page=23)
    merged = merge_duplicates([later, twin, pulse, other_side], grid)
    assert [(e.time_s, e.dm_pc_cm3) for e in merged] == [(1.0, 50.0), (other_side.time_s, 150.0), (1.5, 50.0)]
    assert (merged[0].first_page, merged[0].last_page) == (13, 15)
    unknown = PageGrid(grid.dms, N_TIME)
    assert merge_duplicates([pulse, twin], unknown) == [pulse, twin], "without times nothing is merged"


def test_the_lists_of_other_programs(tmp_path):
    pulse = event(2.0, 20.0, 12.3, width_samples=5, time_downsample=2)
    write_transientx(tmp_path / "a.cands", [pulse], GRID, "a", ["event_a_0001.png"])
    [row] = csv.reader(open(tmp_path / "a.cands"), delimiter="\t")
    assert row[0:2] == ["1", "1"] and [float(x) for x in row[2:8]] == [59000.0, 20.0, 1.0, 12.3, 1500.0, 1400.0]
    assert row[8:] == ["event_a_0001.png", "0", "a"]
    write_heimdall(tmp_path / "a.csv", [pulse], GRID)
    [row] = csv.DictReader(open(tmp_path / "a.csv"))
    assert (row["sample"], row["filter"], row["dm_trial"], row["begin"], row["end"]) == (
        "2000",
        "3",
        "20",
        "1995",
        "2005",
    )


def test_the_time_at_infinite_frequency():
    [pulse] = find(plane(3, [(20, 100, 2, 30.0)]), [1], 10)
    assert (pulse.mjd - pulse.mjd_infinite) * 86400 == pytest.approx(4148.808 * 20 / 1500**2, abs=1e-5)


def test_the_table(tmp_path):
    unknown = event(np.nan, np.nan, 9.0, page=4, mjd=np.nan, width_ms=np.nan)
    write_candidates(tmp_path / "candidates.csv", [event(1.25, 56.5, 12.345), unknown])
    with open(tmp_path / "candidates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:8] == [
        "time_s",
        "mjd",
        "dm_pc_cm3",
        "snr",
        "width_ms",
        "probability",
        "first_page",
        "last_page",
    ]
    assert float(rows[0]["time_s"]) == 1.25 and float(rows[0]["dm_pc_cm3"]) == 56.5
    assert float(rows[0]["snr"]) == pytest.approx(12.345, abs=0.01)
    assert [rows[1][key] for key in ("time_s", "mjd", "dm_pc_cm3", "width_ms")] == [""] * 4
    assert (rows[1]["snr"], rows[1]["first_page"]) == ("9.00", "4")
    write_candidates(tmp_path / "candidates.csv", [])
    assert (tmp_path / "candidates.csv").read_text().count("\n") == 1, "a header alone"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_was_found_of_known_pulses():
    pulses = [Pulse(1.0, 50.0, 20.0, 1.0), Pulse(2.0, 60.0, 9.0, 1.0), Pulse(3.0, 70.0, 15.0, 1.0)]
    events = [event(1.001, 50.5, 19.0), event(1.002, 49.5, 8.0), event(3.0, 20.0, 14.0), event(2.5, 60.0, 7.0)]
    recovery = compare(pulses, events, PageGrid(GRID.dms, N_TIME, 1e-4, 59000.0, 1530.0, 1211.25))
    assert recovery.event_of_pulse.tolist() == [0, -1, -1]
    assert recovery.false_events.tolist() == [False, True, True, True]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_events_that_come_one_after_the_other_are_merged_as_all_at_once(data):
    """Each is written once, in order of time, when nothing that is still to come can change it."""
    grid = PageGrid(0.5 * np.arange(256), 256, 1e-3, 59000.0, 1530.0, 1210.0)
    count = data.draw(st.integers(0, 40))
    crowd = data.draw(
        st.sampled_from([0.05, 0.3, 3.0])
    )  # seconds from one to the next, at most; reach is half a second
    gaps = data.draw(st.lists(st.floats(0, crowd), min_size=count, max_size=count))
    events = []
    for number, time_s in enumerate(np.cumsum(gaps)):
        snr = data.draw(st.sampled_from([6.0, 8.0, 10.0, 20.0, 50.0]))
        dm, width = data.draw(st.sampled_from([0.0, 50.0, 60.0, 127.5])), data.draw(st.sampled_from([1.0, 8.0, 128.0]))
        events.append(Event(float(time_s), 59000.0, dm, snr, width, 0.9, number, number, int(width)))
    merger, got, came = EventMerger(grid), [], []
    while len(came) < count:
        # Events of one call come in any order; those of later calls are not earlier than ``until_s``.
        portion = data.draw(st.permutations(events[len(came) : len(came) + data.draw(st.integers(1, 5))]))
        came += portion
        got += merger.add(portion, events[len(came)].time_s if len(came) < count else events[-1].time_s)
    got += merger.add([], np.inf)
    assert got == merge_duplicates(came, grid)


def test_an_event_is_given_out_as_soon_as_no_later_one_can_reach_it():
    grid = PageGrid(0.5 * np.arange(256), 256, 1e-3, 59000.0, 1530.0, 1210.0)
    merger = EventMerger(grid)
    assert 1.024 < merger.reach_s < 1.03, "eight boxcars of half a page: more than the sweep of DM 127.5 and three"
    bright, streak, other = (
        Event(time_s, 59000.0, dm, snr, 1.0, 0.9, page, page, 1)
        for time_s, dm, snr, page in [(10.0, 60.0, 50.0, 39), (10.02, 40.0, 9.0, 40), (12.0, 60.0, 9.0, 46)]
    )
    assert merger.add([bright], 10.1) == [], "a streak of it may come"
    assert merger.add([streak], 10.5) == []
    [merged] = merger.add([other], 12.0)
    assert (merged.time_s, merged.first_page, merged.last_page) == (10.0, 39, 40)
    assert merger.add([], 13.0) == [] and merger.add([], 13.1) == [other] and merger.add([], np.inf) == []


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_maxima_of_a_profile_are_those_of_scipy(data):
    """The rule is scipy's prominence, which costs half a second and 48 MB to import."""
    from scipy.signal import find_peaks as peaks_of

    width = data.draw(st.integers(1, 6))
    profile = np.random.default_rng(data.draw(st.integers(0, 1000))).standard_normal(120)
    for _ in range(data.draw(st.integers(0, 5))):
        start, length = data.draw(st.integers(0, 100)), data.draw(st.integers(1, 12))
        profile[start : start + length] += data.draw(st.floats(0, 15))
    total = np.concatenate([[0], np.cumsum(profile)]).astype(np.float32)
    snr = (total[width:] - total[:-width]) / np.float32(width**0.5)
    columns, shapes = peaks_of(snr, height=6.0, prominence=4.0)
    expected = columns[shapes["prominences"] >= np.float32(0.5) * snr[columns]]
    if np.diff(expected).min(initial=width) >= width:
        assert [column for column, _ in maxima(total, width, 0, len(total))] == expected.tolist()


@pytest.mark.parametrize("apart", [14, 18, 24])
def test_two_pulses_that_sweep_into_each_other_are_two_at_their_dm(apart):
    """They are brightest together at a trial DM beside theirs, where what is left of the sweep joins them."""
    frequencies, dms, tsamp, width = np.linspace(1500.0, 1300.0, 64), 0.5 * np.arange(256), 2e-3, 8
    grid = PageGrid(dms, 256, tsamp, 59000.0, frequencies[0], frequencies[-1])
    plane = np.random.default_rng(1).standard_normal((256, 600)).astype(np.float32)
    late = np.rint(dispersion_delay(60.0 - dms[:, None], frequencies, frequencies[0]) / tsamp).astype(int)
    for start, snr in ((250, 30.0), (250 + apart, 24.0)):
        for row, delays in enumerate(late):
            np.add.at(plane[row], start + delays[:, None] + np.arange(width), snr / width**0.5 / len(frequencies))
    peaks = sorted(find_peaks(boxcar_search(plane, 128), grid, 100, 500, most=1), key=lambda peak: peak.column)
    assert len(peaks) == 2
    for peak, start, snr in zip(peaks, (250, 250 + apart), (30.0, 24.0)):
        assert (
            grid.sweep(abs(dms[peak.row] - 60.0)) <= 2
            and abs(peak.column - start) <= 3
            and abs(peak.width - width) <= 3
        )
        assert peak.snr == pytest.approx(snr, rel=0.2)
