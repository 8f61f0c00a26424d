"""Merging: one event for each pulse, whether all events are known at once or arrive one after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.detection.event_merging import EventMerger, merge_duplicates
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageGrid
from tests.pipeline_classifier.detection.planes import FREQUENCIES, GRID, N_TIME, dispersed_pulse, event, find

WIDE_GRID = PageGrid(np.arange(0.0, 200.0), N_TIME, tsamp=1e-3, f_top=1500.0, f_bottom=1400.0)
LIVE_GRID = PageGrid(0.5 * np.arange(256), 256, 1e-3, 59000.0, 1530.0, 1210.0)


def test_a_pulse_in_the_bow_tie_of_another_one_is_kept_if_it_is_too_bright_for_a_response():
    reach = float(WIDE_GRID.sweep(100.0)) * 1e-3
    pulse, other = event(1.0, 50.0, 30.0, page=15), event(1.0 - 0.9 * reach, 150.0, 25.0, page=14)
    assert len(merge_duplicates([pulse, other], WIDE_GRID)) == 2


def test_residuals_of_the_cleaning_beside_a_bright_pulse_are_merged_with_it():
    residual = event(1.007, 50.0, 9.0, page=15)
    assert merge_duplicates([event(1.0, 56.0, 60.0, page=15), residual], GRID)[0].snr == 60.0
    assert len(merge_duplicates([event(1.0, 56.0, 60.0, page=15), residual], GRID)) == 1
    assert len(merge_duplicates([event(1.0, 56.0, 12.0, page=15), residual], GRID)) == 2


def test_a_response_in_the_bow_tie_is_merged_and_another_pulse_is_not():
    # At a trial DM 100 too high, the bottom channel of the pulse falls sweep(100) samples too early.
    reach = float(WIDE_GRID.sweep(100.0)) * 1e-3
    assert reach == pytest.approx(4148.808 * 100 * (1400.0**-2 - 1500.0**-2))
    pulse = event(1.0, 50.0, 80.0, page=15)
    response = event(1.0 - 0.9 * reach, 150.0, 12.0, page=13)
    other_side = event(1.0 + 0.9 * reach, 150.0, 12.0, page=17)
    later = event(1.5, 50.0, 20.0, page=23)
    merged = merge_duplicates([later, response, pulse, other_side], WIDE_GRID)
    assert [(e.time_s, e.dm_pc_cm3) for e in merged] == [(1.0, 50.0), (other_side.time_s, 150.0), (1.5, 50.0)]
    assert (merged[0].first_page, merged[0].last_page) == (13, 15)
    unknown = PageGrid(WIDE_GRID.dms, N_TIME)
    assert merge_duplicates([pulse, response], unknown) == [pulse, response], "without times nothing is merged"


BOW_TIE_GRID = PageGrid(0.5 * np.arange(256), N_TIME, 2e-4, 59000.0, FREQUENCIES[0], FREQUENCIES[-1])
SWEEP = float(BOW_TIE_GRID.sweep(90.0))
PULSE, ITS_RESPONSE = 1000, 1000 - round(0.9 * SWEEP)
"""Column of a pulse of DM 20, in page 15, and the one where its lowest channels fall at DM 110, in page 11."""


def pulse_of_two_samples(dm: float, column: int, snr: float, frequencies: np.ndarray = FREQUENCIES) -> np.ndarray:
    return dispersed_pulse(BOW_TIE_GRID, 20 * N_TIME, dm, column, 2, snr, frequencies)


def events_of_both_pages(values: np.ndarray) -> list[Event]:
    """Find and merge the events of a plane, in noise, of which pages 11 and 15 are classified as a pulse."""
    noise = np.random.default_rng(3).standard_normal(values.shape).astype(np.float32)
    events = find(noise + values, [11, 15], 4, grid=BOW_TIE_GRID)
    assert {event.first_page for event in events} == {PULSE // N_TIME, ITS_RESPONSE // N_TIME} == {11, 15}
    return merge_duplicates(events, BOW_TIE_GRID)


@pytest.mark.parametrize("frequencies", [FREQUENCIES, FREQUENCIES[600:]], ids=["broadband", "band-limited"])
def test_the_response_to_a_bright_pulse_four_pages_earlier_is_merged_with_it(frequencies):
    [event] = events_of_both_pages(pulse_of_two_samples(20.0, PULSE, 400.0, frequencies))
    assert event.dm_pc_cm3 == pytest.approx(20, abs=1) and event.time_s == pytest.approx(0.2002, abs=4e-4)
    assert (event.first_page, event.last_page) == (11, 15)


def test_a_pulse_four_pages_earlier_that_is_brighter_than_a_response_is_an_event():
    bright, faint = 60.0, 14.0
    smeared = bright * (2 / (2 + SWEEP)) ** 0.5
    assert 2.5 * smeared < faint < 3 * smeared
    other, event = events_of_both_pages(
        pulse_of_two_samples(20.0, PULSE, bright) + pulse_of_two_samples(110.0, ITS_RESPONSE, faint)
    )
    assert (other.dm_pc_cm3, event.dm_pc_cm3) == (pytest.approx(110, abs=2), pytest.approx(20, abs=1))
    assert (other.snr, event.snr) == (pytest.approx(faint, rel=0.2), pytest.approx(bright, rel=0.15))
    assert (other.time_s, event.time_s) == (
        pytest.approx(2e-4 * (ITS_RESPONSE + 1), abs=4e-4),
        pytest.approx(0.2002, abs=4e-4),
    )


scattered_events = st.lists(
    st.tuples(
        st.sampled_from([0.01, 0.2, 0.5, 0.9, 1.1]),  # seconds after the event before
        st.sampled_from([6.0, 8.0, 20.0, 50.0]),
        st.sampled_from([0.0, 50.0, 60.0, 127.5]),
        st.sampled_from([1.0, 8.0, 128.0]),  # ms
    ),
    max_size=20,
)
# Events of 128 ms within 1.024 s of each other, and a factor of 2.6 or more in S/N: the fainter one is a residual.
chained_events = st.permutations([6.0 * 2.6**number for number in range(10)]).map(
    lambda snrs: [(0.9, snr, 50.0, 128.0) for snr in snrs]
)


@settings(max_examples=300, deadline=None)
@given(
    drawn=scattered_events | chained_events,
    sizes=st.lists(st.integers(1, 3), min_size=20, max_size=20),
    order=st.randoms(use_true_random=False),
)
def test_events_that_arrive_one_after_the_other_are_merged_as_all_at_once(drawn, sizes, order):
    """Each is returned once, in order of time, when no later event can change it."""
    times = np.cumsum([gap for gap, *_ in drawn])
    events = [
        Event(float(time_s), 59000.0, dm, snr, width, 0.9, number, number, int(width))
        for number, (time_s, (_, snr, dm, width)) in enumerate(zip(times, drawn))
    ]
    merger, got, came = EventMerger(LIVE_GRID), [], []
    for size in sizes:
        # Events of one call are in any order; those of later calls are not earlier than ``until_s``.
        portion = events[len(came) : len(came) + size]
        came += order.sample(portion, len(portion))
        if portion:
            until_s = events[len(came)].time_s if len(came) < len(events) else events[-1].time_s
            got += merger.add(came[-len(portion) :], until_s)
    got += merger.add([], np.inf)
    assert got == merge_duplicates(came, LIVE_GRID)


def residuals(*numbers: tuple[float, float]) -> list[Event]:
    """Events (time in s, S/N) of 128 ms: within 1.024 s of one more than 2.5 times as bright, it is a residual."""
    return [event(time_s, 50.0, snr, page, width_ms=128.0) for page, (time_s, snr) in enumerate(numbers)]


def test_an_event_waits_for_a_later_one_that_decides_on_its_neighbour():
    """The last event takes the third one; the second one is then a pulse, to which the first one belongs."""
    first, second, third, last = residuals((0.0, 15.0), (0.9, 50.0), (1.8, 150.0), (2.7, 400.0))
    merger = EventMerger(LIVE_GRID)
    assert merger.add([first, second, third], 2.0) == [], "the third event may still belong to a later one"
    got = merger.add([last], np.inf)
    assert [(e.time_s, e.first_page, e.last_page) for e in got] == [(0.9, 0, 1), (2.7, 2, 3)]
    assert got == merge_duplicates([first, second, third, last], LIVE_GRID)


def test_the_pages_of_an_event_wait_for_a_later_one_that_takes_a_residual():
    pulse, residual, brighter = residuals((0.0, 50.0), (0.9, 15.0), (1.8, 60.0))
    assert merge_duplicates([pulse, residual], LIVE_GRID)[0].last_page == 1
    merger = EventMerger(LIVE_GRID)
    assert merger.add([pulse, residual], 1.1) == [], "the residual may still belong to a later, brighter pulse"
    got = merger.add([brighter], np.inf)
    assert [(e.time_s, e.first_page, e.last_page) for e in got] == [(0.0, 0, 0), (1.8, 1, 2)]
    assert got == merge_duplicates([pulse, residual, brighter], LIVE_GRID)


def test_an_event_is_returned_as_soon_as_no_later_one_can_reach_it():
    merger = EventMerger(LIVE_GRID)
    assert 1.024 < merger.reach_s < 1.03, "eight boxcars of half a page: more than the sweep of DM 127.5 and three"
    bright, response, other = (
        event(time_s, dm, snr, page)
        for time_s, dm, snr, page in [(10, 60, 50, 39), (10.02, 40, 9, 40), (12, 60, 9, 46)]
    )
    assert merger.add([bright], 10.1) == [], "a response to it may come"
    assert merger.add([response], 10.5) == []
    [merged] = merger.add([other], 12.0)
    assert (merged.time_s, merged.first_page, merged.last_page) == (10.0, 39, 40)
    assert merger.add([], 13.0) == [] and merger.add([], 13.1) == [other] and merger.add([], np.inf) == []
