"""Recovery: which pulses were found, which events are false, and figures over several observations."""

import json
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.evaluation.recovery import (
    Matcher,
    binomial_interval,
    compare,
    outcome_of,
    pooled,
    quality,
    without_known,
)
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.simulation.pulses import Pulse


def event(time_s: float, dm: float, snr: float) -> Event:
    return Event(time_s, 59000.0, dm, snr, 1.0, 1.0, 0, 0, 2)


GRID = PageGrid(0.5 * np.arange(256), 256, 0.5e-3, 59000.0, 1530.0, 1215.0)


def test_known_events_are_not_false_but_new_ones_are():
    pulses = [Pulse(1.0, 50.0, 20.0, 1.0)]
    known = [event(5.0, 30.0, 10.0), event(1.0, 50.0, 8.0)]
    found = [event(1.001, 50.0, 20.0), event(5.001, 30.5, 9.0), event(5.002, 30.0, 8.0), event(8.0, 10.0, 7.0)]
    recovery = without_known(compare(pulses, found, GRID), found, known, GRID)
    assert recovery.event_of_pulse.tolist() == [0]
    # The third is the same old event once more, the fourth is new.
    assert recovery.false_events.tolist() == [False, False, True, True]


def test_observations_are_pooled():
    pulses = [Pulse(1.0, 50.0, 20.0, 1.0), Pulse(3.0, 20.0, 7.0, 0.5)]
    first = [event(1.001, 51.0, 22.0), event(9.0, 10.0, 6.5)]
    second = [event(1.0, 50.0, 18.0), event(2.998, 20.5, 7.7)]
    parts = [
        outcome_of(pulses, events, compare(pulses, events, GRID), GRID, 0.5e-3, seconds)
        for events, seconds in ((first, 600.0), (second, 1200.0), ([], 0.0))
    ]
    figures = quality(pooled(parts), GRID.dms)
    assert figures["pulses"] == 6 and figures["found"] == 3 and figures["hours"] == 0.5
    shares = [(part["found"], part["of"]) for part in figures["recall_by_snr"]]
    assert shares == [(0, 0), (1, 3), (0, 0), (0, 0), (2, 3), (0, 0), (0, 0), (0, 0)]
    assert figures["false_events"] == 1 and figures["false_events_per_hour"] == 2
    assert figures["dm_error_pc_cm3"]["median"] == pytest.approx(0.5)
    assert figures["time_error_ms"]["median"] == pytest.approx(1.0)
    assert figures["time_error_samples"]["percentile_90"] == pytest.approx(2 + 2 * 0.8)
    assert figures["snr_ratio_median"] == pytest.approx(1.1)
    nothing = quality(parts[2], GRID.dms)
    assert nothing["false_events_per_hour"] is None and nothing["snr_ratio_median"] is None
    json.dumps(nothing, allow_nan=False)


@pytest.mark.parametrize("found, of", [(0, 5), (5, 5), (1, 1), (50, 100)])
def test_a_binomial_interval_holds_the_recall_and_is_a_fraction(found, of):
    low, high = binomial_interval(found, of)
    assert -1e-12 <= low <= found / of <= high <= 1 + 1e-12 and high > low
    if of == 100:
        assert high - low == pytest.approx(2 * np.sqrt(0.25 / 100), rel=0.01)


def test_what_was_found_of_known_pulses():
    pulses = [Pulse(1.0, 50.0, 20.0, 1.0), Pulse(2.0, 60.0, 9.0, 1.0), Pulse(3.0, 70.0, 15.0, 1.0)]
    events = [event(1.001, 50.5, 19.0), event(1.002, 49.5, 8.0), event(3.0, 20.0, 14.0), event(2.5, 60.0, 7.0)]
    recovery = compare(pulses, events, PageGrid(np.arange(32.0), 64, 1e-4, 59000.0, 1530.0, 1211.25))
    assert recovery.event_of_pulse.tolist() == [0, -1, -1]
    assert recovery.false_events.tolist() == [False, True, True, True]


def compared_in_pairs(pulses: Sequence[Pulse], events: Sequence[Event], grid: PageGrid) -> tuple[list[int], list[bool]]:
    """Assign as `compare`, every event being compared with every pulse."""
    assigned, false = [-1] * len(pulses), [True] * len(events)
    for number in sorted(range(len(events)), key=lambda number: -events[number].snr):
        one = events[number]
        near = [index for index in range(len(pulses)) if assigned[index] < 0 and agree(pulses[index], one, grid)]
        if near:
            assigned[min(near, key=lambda index: abs(pulses[index].time_s - one.time_s))] = number
            false[number] = False
    return assigned, false


def agree(pulse: Pulse, event: Event, grid: PageGrid, slack: float = 1.0) -> bool:
    tolerance = max(0.003, 3 * grid.tsamp, 2 * event.width_ms / 1e3, 2 * pulse.width_ms / 1e3)
    sweep_s = float(grid.sweep(1.0)) * grid.tsamp
    near = abs(pulse.time_s - event.time_s) <= slack * tolerance
    return near and abs(pulse.dm_pc_cm3 - event.dm_pc_cm3) <= slack * (2.0 + tolerance / sweep_s)


numbers = st.tuples(
    st.integers(0, 40),  # 2 ms
    st.sampled_from([50.0, 51.9, 52.1, 60.0]),
    st.sampled_from([7.0, 9.0, 20.0]),
    st.sampled_from([0.5, 2.0, 5.0, 30.0]),  # ms
)


@settings(max_examples=300, deadline=None)
@given(
    pulses=st.lists(numbers, max_size=8), events=st.lists(numbers, max_size=12), slack=st.sampled_from([0.5, 1.0, 3.0])
)
def test_pulses_and_events_are_assigned_as_by_comparison_of_all_pairs(pulses, events, slack):
    pulses = [Pulse(2e-3 * step, dm, snr, width) for step, dm, snr, width in pulses]
    events = [Event(2e-3 * step, 59000.0, dm, snr, width, 1.0, 0, 0, 2) for step, dm, snr, width in events]
    recovery = compare(pulses, events, GRID)
    assert (recovery.event_of_pulse.tolist(), recovery.false_events.tolist()) == compared_in_pairs(pulses, events, GRID)
    matcher = Matcher(pulses, GRID)
    for one in events:
        found = matcher.matches(one.time_s, one.dm_pc_cm3, one.width_ms / 1e3, slack)
        assert found.tolist() == [index for index, pulse in enumerate(pulses) if agree(pulse, one, GRID, slack)]


def test_the_time_to_compare_is_proportional_to_the_number_of_events():
    """32,000 events take 16 times as long as 2,000; if every pulse is compared with each, 90 times as long."""
    pulses = [Pulse(0.033 * number, 56.0, 10.0, 1.0) for number in range(32_000)]
    events = [event(pulse.time_s, 56.0, 10.0) for pulse in pulses]
    took = []
    for n in (2_000, 32_000):
        began = time.process_time()
        assert compare(pulses[:n], events[:n], GRID).found.all()
        took.append(time.process_time() - began)
    assert took[1] < 40 * took[0]
