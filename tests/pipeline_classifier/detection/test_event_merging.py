"""Merging: one event for each pulse, whether all events are known at once or arrive one after the other."""

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.detection.event_merging import GROUP, EventMerger, merge_duplicates
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageGrid
from tests.pipeline_classifier.detection.planes import FREQUENCIES, GRID, N_TIME, dispersed_pulse, event, find

WIDE_GRID = PageGrid(np.arange(0.0, 200.0), N_TIME, tsamp=1e-4, f_top=1500.0, f_bottom=1400.0)
LIVE_GRID = PageGrid(0.5 * np.arange(256), 256, 1e-3, 59000.0, 1530.0, 1210.0)


def test_a_pulse_in_the_bow_tie_of_another_one_is_kept_if_it_is_too_bright_for_a_response():
    reach = float(WIDE_GRID.sweep(100.0)) * 1e-4
    pulse, other = event(1.0, 50.0, 30.0, page=15), event(1.0 - 0.9 * reach, 150.0, 25.0, page=14)
    assert len(merge_duplicates([pulse, other], WIDE_GRID)) == 2


def test_residuals_of_the_cleaning_beside_a_bright_pulse_are_merged_with_it():
    residual = event(1.007, 50.0, 9.0, page=15)
    assert merge_duplicates([event(1.0, 56.0, 60.0, page=15), residual], GRID)[0].snr == 60.0
    assert len(merge_duplicates([event(1.0, 56.0, 60.0, page=15), residual], GRID)) == 1
    assert len(merge_duplicates([event(1.0, 56.0, 12.0, page=15), residual], GRID)) == 2


def test_a_response_in_the_bow_tie_is_merged_and_another_pulse_is_not():
    # At a trial DM 100 too high, the bottom channel of the pulse falls sweep(100) samples too early.
    reach = float(WIDE_GRID.sweep(100.0)) * 1e-4
    assert reach == pytest.approx(4148.808 * 100 * (1400.0**-2 - 1500.0**-2))
    pulse = event(1.0, 50.0, 80.0, page=4 * 15)
    response = event(1.0 - 0.9 * reach, 150.0, 12.0, page=4 * 13)
    other_side = event(1.0 + 0.9 * reach, 150.0, 12.0, page=4 * 17)
    later = event(1.5, 50.0, 20.0, page=4 * 23)
    merged = merge_duplicates([later, response, pulse, other_side], WIDE_GRID)
    assert [(e.time_s, e.dm_pc_cm3) for e in merged] == [(1.0, 50.0), (other_side.time_s, 150.0), (1.5, 50.0)]
    assert (merged[0].first_page, merged[0].last_page) == (4 * 13, 4 * 15)
    unknown = PageGrid(WIDE_GRID.dms, N_TIME)
    assert merge_duplicates([pulse, response], unknown) == [pulse, response], "without times nothing is merged"


@pytest.mark.parametrize(
    "nchans, snr, merged", [(4, 29.0, True), (4, 31.0, False), (256, 29.0, False), (0, 29.0, False)]
)
def test_one_channel_of_a_pulse_is_merged_with_it(nchans, snr, merged):
    """At a wrong trial DM, one of four channels has half of the S/N of 40, or a little more; 0 channels: not known."""
    grid = replace(WIDE_GRID, nchans=nchans)
    reach = float(grid.sweep(100.0)) * 1e-4
    pulse, channel = event(1.0, 50.0, 40.0, page=4 * 15), event(1.0 - 0.9 * reach, 150.0, snr, page=4 * 14)
    assert len(merge_duplicates([pulse, channel], grid)) == (1 if merged else 2)


BOW_TIE_GRID = PageGrid(0.5 * np.arange(256), N_TIME, 2e-4, 59000.0, FREQUENCIES[0], FREQUENCIES[-1])
SWEEP = float(BOW_TIE_GRID.sweep(90.0))
PULSE, ITS_RESPONSE = 1000, 1000 - round(0.9 * SWEEP)
"""Column of a pulse of DM 20, in page 15, and the one where its lowest channels fall at DM 110, in page 11."""


def pulse_of_two_samples(dm: float, column: int, snr: float, frequencies: np.ndarray = FREQUENCIES) -> np.ndarray:
    return dispersed_pulse(BOW_TIE_GRID, 20 * N_TIME, dm, column, 2, snr, frequencies)


def events_of_both_pages(values: np.ndarray) -> list[Event]:
    """Find and merge the events of a plane, in noise, of which pages 11 and 15 are classified as a pulse."""
    noise = np.random.default_rng(3).standard_normal(values.shape).astype(np.float32)
    assert (ITS_RESPONSE // N_TIME, PULSE // N_TIME) == (11, 15), "in two groups"
    events = find(noise + values, [11, 15], 4, grid=BOW_TIE_GRID)
    return merge_duplicates(events, BOW_TIE_GRID)


@pytest.mark.parametrize("frequencies", [FREQUENCIES, FREQUENCIES[600:]], ids=["broadband", "band-limited"])
def test_the_response_to_a_bright_pulse_four_pages_earlier_is_merged_with_it(frequencies):
    [event] = events_of_both_pages(pulse_of_two_samples(20.0, PULSE, 400.0, frequencies))
    assert event.dm_pc_cm3 == pytest.approx(20, abs=1) and event.time_s == pytest.approx(0.2002, abs=4e-4)
    assert event.last_page == 15


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


STACKS = PageGrid(0.5 * np.arange(256, 512), 256, 1e-3, 59000.0, 1530.0, 1210.0)
LAYERS = (LIVE_GRID, replace(LIVE_GRID, tsamp=4e-3), STACKS, replace(STACKS, tsamp=4e-3))
LOW_LAYERS = tuple(replace(grid, f_top=190.0, f_bottom=150.0) for grid in LAYERS)
"""Layers of two stacks of trial DMs and two time resolutions; a sweep of up to 0.6 s, and one of up to 18 s."""


def merged_by_all_pairs(events: Sequence[Event], grid: PageGrid) -> list[Event]:
    """Merge as `merge_duplicates`: every event is compared with every brighter one, number by number."""
    groups: list[list[Event]] = []
    for one in sorted(events, key=lambda event: -event.snr):
        for group in groups:
            if belongs_to(one, group[0], grid):
                group.append(one)
                break
        else:
            groups.append([one])
    merged = []
    for first, *rest in groups:
        layer = first.time_downsample, first.dm_stack
        pages = [(e.first_page, e.last_page) for e in (first, *rest) if (e.time_downsample, e.dm_stack) == layer]
        merged.append(replace(first, first_page=min(pages)[0], last_page=max(last for _, last in pages)))
    return sorted(merged, key=lambda event: (event.time_s, event.first_page))


def belongs_to(event: Event, brighter: Event, grid: PageGrid) -> bool:
    reach = float(grid.sweep(brighter.dm_pc_cm3 - event.dm_pc_cm3)) * grid.tsamp
    apart = event.time_s - brighter.time_s
    width_s, brighter_s = event.width_ms / 1e3, brighter.width_ms / 1e3
    for fraction, own_widths in ((0.4, 2), (0.1, 4)):
        if event.snr < fraction * brighter.snr and abs(apart) - 6 * brighter_s <= own_widths * width_s:
            return True
    margin = 2 * brighter_s + width_s
    group, brighter_group = ((e.first_page // GROUP, e.time_downsample, e.dm_stack) for e in (event, brighter))
    together = group == brighter_group or (group[1:] == brighter_group[1:] and abs(apart) <= 1.5 * N_TIME * grid.tsamp)
    if together or not min(reach, 0) - margin <= apart <= max(reach, 0) + margin:
        return False
    smeared = brighter.snr * np.sqrt(brighter_s / (brighter_s + abs(reach)))
    return abs(apart) <= margin or event.snr <= 1.5 * smeared


scattered_events = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.01, 0.2, 0.5, 0.9, 1.1, 6.0]),  # seconds after the event before
        st.sampled_from([6.0, 8.0, 20.0, 50.0, 600.0]),
        st.sampled_from([0.0, 50.0, 60.0, 127.5, 255.0]),
        st.sampled_from([1.0, 8.0, 128.0, 512.0]),  # ms
        st.sampled_from([(1, 0), (4, 0), (1, 1), (4, 1)]),  # time_downsample, dm_stack
    ),
    max_size=20,
)
# Events of 128 ms within 1.024 s of each other, and a factor of 2.6 or more in S/N: the fainter one is a residual.
chained_events = st.permutations([6.0 * 2.6**number for number in range(10)]).map(
    lambda snrs: [(0.9, snr, 50.0, 128.0, (1, 0)) for snr in snrs]
)


@settings(max_examples=500, deadline=None)
@given(
    drawn=scattered_events | chained_events,
    sizes=st.lists(st.integers(1, 3), min_size=20, max_size=20),
    layers=st.sampled_from([LAYERS, LOW_LAYERS]),
    page_s=st.sampled_from([0.05, 1.0]),
    order=st.randoms(use_true_random=False),
)
def test_events_are_merged_as_by_comparison_of_all_pairs_at_once_or_one_after_the_other(
    drawn, sizes, layers, page_s, order
):
    """Each is returned once, in order of time, when no later event can change it."""
    times = np.cumsum([gap for gap, *_ in drawn])
    events = [
        Event(float(time_s), 59000.0, dm, snr, width, number, page, page, int(width), *layer)
        for number, (time_s, (_, snr, dm, width, layer)) in enumerate(zip(times, drawn))
        for page in [int(time_s / page_s)]
    ]
    merger, got, came = EventMerger(*layers), [], []
    for size in sizes:
        # Events of one call are in any order; those of later calls are not earlier than ``until_s``.
        portion = events[len(came) : len(came) + size]
        came += order.sample(portion, len(portion))
        if portion:
            until_s = events[len(came)].time_s if len(came) < len(events) else events[-1].time_s
            got += merger.add(came[-len(portion) :], until_s)
    got += merger.add([], np.inf)
    assert got == merged_by_all_pairs(came, layers[0])
    order.shuffle(events)
    assert merge_duplicates(events, layers[0]) == merged_by_all_pairs(events, layers[0])


def test_a_response_at_the_very_edge_of_the_bow_tie_is_merged():
    grid = LOW_LAYERS[0]
    reach = float(grid.sweep(127.5)) * grid.tsamp
    pulse, response = event(100.0, 0.0, 500.0, width_ms=100.0), event(100 - reach - 0.29, 127.5, 8.0, 4, width_ms=100.0)
    assert merge_duplicates([pulse, response], grid) == [replace(pulse, last_page=4)]
    assert len(merge_duplicates([pulse, replace(response, time_s=100 - reach - 0.31)], grid)) == 2


def test_an_event_waits_for_the_longest_boxcars_of_all_layers():
    """Those of the second layer are 512 ms long, and a faint residual lies up to ten of them away."""
    pulse, residual = event(10.0, 50.0, 50.0, width_ms=512.0), event(13.9, 50.0, 8.0, 4, width_ms=512.0)
    merger = EventMerger(*LAYERS)
    assert merger.reach_s == pytest.approx(10 * 0.512 + 4e-3)
    assert merger.add([pulse], 13.9) == []
    assert merger.add([residual], np.inf) == [replace(pulse, last_page=4)]


def pulse_train(n: int) -> list[Event]:
    """Pulses every 33 ms that become brighter, each of another DM than the one before."""
    return [event(0.033 * number, 56.0 + number % 2, 6.0 + 1e-3 * number, number) for number in range(n)]


def test_the_time_to_merge_is_proportional_to_the_number_of_events():
    """6,000 events take about 0.1 s; comparing all pairs takes a minute."""
    events = pulse_train(6000)
    began = time.monotonic()
    assert merge_duplicates(events, LIVE_GRID) == events
    assert time.monotonic() - began < 10


def test_pulses_of_a_crowd_do_not_wait_for_each_other():
    """Each is fainter than the next one within reach, but is not a response to it or a residual."""
    events, merger = pulse_train(300), EventMerger(LIVE_GRID)
    got = []
    for number, one in enumerate(events):
        got += merger.add([one], one.time_s)
        assert number - len(got) <= merger.reach_s / 0.033 + 1
    assert got + merger.add([], np.inf) == events


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
    merger = EventMerger(replace(LIVE_GRID, tsamp=5e-5))
    assert 0.15 < merger.reach_s < 0.16, "the sweep of DM 127.5 and three boxcars of half a page"
    bright, response, other = (
        event(time_s, dm, snr, page)
        for time_s, dm, snr, page in [(10.0, 60, 50, 39), (10.045, 10, 9, 43), (12.0, 60, 9, 186)]
    )
    assert merger.add([bright], 10.1) == [], "a response to it may come"
    assert merger.add([response], 10.15) == []
    [merged] = merger.add([other], 12.0)
    assert (merged.time_s, merged.first_page, merged.last_page) == (10.0, 39, 43)
    assert merger.add([], 12.1) == [] and merger.add([], 12.2) == [other] and merger.add([], np.inf) == []
