"""Merging of events that are one pulse: responses of a bright pulse at wrong trial DMs, and residuals beside it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageGrid

RESIDUAL_SNR = 0.4
"""Fraction of the S/N of a pulse below which anything close to it is a residual of the cleaning. Chosen by hand."""
RESIDUAL_REACH = 6
"""Widths of the pulse within which such residuals lie."""
OWN_REACH = 2
"""Widths of the residual itself, in addition."""
SMEARED = 1.5
"""Largest S/N of a response at a wrong trial DM, in units of that of the pulse smeared over the residual sweep; above 1
because a band-limited pulse is smeared less. Chosen by hand."""


def duplicates(events: Sequence[Event], grid: PageGrid) -> list[list[int]]:
    """Group the indices of events that are one pulse; the groups and the events in them are sorted by S/N.

    A bright pulse is found at wrong trial DMs in several pages, between which there may be pages that were not
    recognised.
    """
    groups: list[list[int]] = []
    for number in sorted(range(len(events)), key=lambda number: -events[number].snr):
        event = events[number]
        for group in groups:
            if _is_part_of(event, events[group[0]], grid):
                group.append(number)
                break
        else:
            groups.append([number])
    return groups


def _is_part_of(event: Event, brighter: Event, grid: PageGrid) -> bool:
    """Decide whether an event belongs to a brighter one.

    It does if it lies in the bow tie of the brighter one and its S/N is at most that of a pulse smeared over the
    difference in sweep, which falls with the square root of width / (width + sweep) (Cordes & McLaughlin 2003, ApJ 596,
    1142); or if it is close and much fainter, as the residuals of the cleaning beside a bright pulse. Events of one run
    of pages were separated when they were measured.
    """
    reach = float(grid.sweep(brighter.dm_pc_cm3 - event.dm_pc_cm3)) * grid.tsamp
    apart = event.time_s - brighter.time_s
    width_s, brighter_s = event.width_ms / 1e3, brighter.width_ms / 1e3
    if event.snr < RESIDUAL_SNR * brighter.snr and abs(apart) <= RESIDUAL_REACH * brighter_s + OWN_REACH * width_s:
        return True
    margin = 2 * brighter_s + width_s
    if _run(event) == _run(brighter) or not min(reach, 0) - margin <= apart <= max(reach, 0) + margin:
        return False
    smeared = brighter.snr * np.sqrt(brighter_s / (brighter_s + abs(reach)))
    return abs(apart) <= margin or event.snr <= SMEARED * smeared


def _run(event: Event) -> tuple[int, int, int, int]:
    """Key that is equal for events measured together."""
    return event.first_page, event.last_page, event.time_downsample, event.dm_stack


def _merged(events: Sequence[Event]) -> Event:
    """The first of the events, with the pages of all events of its layer."""
    layer = (events[0].time_downsample, events[0].dm_stack)
    pages = [(e.first_page, e.last_page) for e in events if (e.time_downsample, e.dm_stack) == layer]
    return replace(events[0], first_page=min(pages)[0], last_page=max(last for _, last in pages))


def merge_duplicates(events: Sequence[Event], grid: PageGrid) -> list[Event]:
    """Return one event for each group of `duplicates`, sorted by time; unchanged events if times are not known."""
    if not np.isfinite(grid.tsamp):
        return list(events)
    merged = [_merged([events[number] for number in group]) for group in duplicates(events, grid)]
    return sorted(merged, key=lambda event: (event.time_s, event.first_page))


class EventMerger:
    """`merge_duplicates` for events that arrive one after the other: the same result, each event once it is final.

    Whether an event is kept depends on the brighter ones within ``reach_s`` of it, and on those brighter than these in
    turn. This is settled when all of them have arrived; its pages are settled when the fainter ones within reach are.

    Parameters
    ----------
    grid : PageGrid
        Grid of the pages; the sweep over its DMs and its longest boxcar give ``reach_s``.

    Attributes
    ----------
    reach_s : float
        Largest time between two events of one pulse, seconds.
    """

    def __init__(self, grid: PageGrid) -> None:
        self.grid = grid
        longest = grid.n_time // 2
        bow_tie = float(grid.sweep(grid.dms[-1] - grid.dms[0])) + 3 * longest
        self.reach_s = (max(bow_tie, (RESIDUAL_REACH + OWN_REACH) * longest) + 1) * grid.tsamp
        self._pending: list[Event] = []

    def add(self, events: Sequence[Event], until_s: float) -> list[Event]:
        """Take events, and return those that are settled, in order of time.

        Parameters
        ----------
        events : sequence of Event
        until_s : float
            Time in seconds before which no more events will come; infinity returns all events.
        """
        self._pending += events
        if not self._pending or not np.isfinite(self.grid.tsamp):
            ready, self._pending = self._pending, []
            return ready
        order = sorted(range(len(self._pending)), key=lambda number: -self._pending[number].snr)
        times = np.array([self._pending[number].time_s for number in order])
        near = np.abs(times[:, None] - times) <= self.reach_s
        unsettled = times + self.reach_s >= until_s
        for rank in range(len(order)):  # brightest first
            unsettled[rank] |= (near[rank, :rank] & unsettled[:rank]).any()
        unsettled = (near & unsettled).any(axis=1)
        # In order of time: what comes after an unsettled event waits for it.
        waits_from = times[unsettled].min(initial=until_s)
        waits = {order[rank] for rank in np.flatnonzero(unsettled | (times >= waits_from))}
        groups = [group for group in duplicates(self._pending, self.grid) if group[0] not in waits]
        ready = [_merged([self._pending[number] for number in group]) for group in groups]
        gone = {number for group in groups for number in group}
        self._pending = [event for number, event in enumerate(self._pending) if number not in gone]
        return sorted(ready, key=lambda event: (event.time_s, event.first_page))
