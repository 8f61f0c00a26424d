"""Merging of events that are one pulse: responses of a bright pulse at wrong trial DMs, and residuals beside it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline_classifier.detection.peaks import SMEARED, fraction_in_a_channel
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageGrid

GROUP = 4
"""Pages that are measured together: those with the numbers 0 to 3, 4 to 7, and so on. Chosen for speed."""
MEASURED_BESIDE = 1.5
"""Pages on either side of a group whose pulses are measured with those of the group. A pulse as wide as the longest
boxcar, half a page, reaches so far."""
RESIDUAL_SNR = 0.4
"""Fraction of the S/N of a pulse below which anything close to it is a residual of the cleaning. Chosen by hand."""
RESIDUAL_REACH = 6
"""Widths of the pulse within which such residuals lie."""
OWN_REACH = 2
"""Widths of the residual itself, in addition."""
FAINT_SNR, FAINT_OWN_REACH = 0.1, 4
"""The same for residuals as faint as this: steps of the baseline at the end of a train of pulses. Chosen by hand."""
PAIRS_AT_ONCE = 1 << 18
"""Pairs of events that are compared at once, few enough for the intermediate values to stay in the cache."""


def merge_duplicates(events: Sequence[Event], grid: PageGrid) -> list[Event]:
    """Return one event for each pulse, sorted by time; unchanged events if times are not known.

    From the brightest event to the faintest, each belongs to the brightest event that it may belong to (`links`) and
    that does not belong to another one itself. A bright pulse is found at wrong trial DMs in several pages, between
    which there may be pages that were not recognised.
    """
    return EventMerger(grid).add(events, np.inf)


class EventMerger:
    """`merge_duplicates` for events that arrive one after the other: the same result, each event once it is final.

    Whether an event is kept depends on the brighter events to which it may belong, and on those to which these may
    belong in turn. This is settled when none of them is within ``reach_s`` of an event that may still arrive; its pages
    are settled when the same holds for the fainter events that may belong to it.

    Parameters
    ----------
    *grids : PageGrid
        Grids of the pages of all layers; the sweep over their DMs and their longest boxcar give ``reach_s``.

    Attributes
    ----------
    reach_s : float
        Largest time between two events of one pulse, seconds.
    """

    def __init__(self, *grids: PageGrid) -> None:
        self.grid = grids[0]
        longest_s = max(grid.n_time // 2 * grid.tsamp for grid in grids)
        dms = np.concatenate([grid.dms for grid in grids])
        self.reach_s = largest_reach_s(self.grid, dms, longest_s) + max(grid.tsamp for grid in grids)
        self._pending: list[Event] = []
        self._links = np.empty((0, 2), np.int64)

    def add(self, events: Sequence[Event], until_s: float) -> list[Event]:
        """Take events, and return those that are settled, in order of time.

        Parameters
        ----------
        events : sequence of Event
        until_s : float
            Time in seconds before which no more events will come; infinity returns all events.
        """
        known = len(self._pending)
        self._pending += events
        if not self._pending or not np.isfinite(self.grid.tsamp):
            ready, self._pending = self._pending, []
            return ready
        self._links = np.concatenate([self._links, links(self._pending, known, self.grid)])
        times, snrs = np.array([(event.time_s, event.snr) for event in self._pending]).T
        brightest_first = np.argsort(-snrs, kind="stable")
        rank = np.empty_like(brightest_first)
        rank[brightest_first] = np.arange(len(rank))
        self._links = self._links[np.lexsort((rank[self._links[:, 1]], rank[self._links[:, 0]]))]
        belongs_to, unsettled = list(range(len(rank))), (times + self.reach_s >= until_s).tolist()
        for fainter, brighter in self._links.tolist():
            unsettled[fainter] |= unsettled[brighter]
            if belongs_to[fainter] == fainter and belongs_to[brighter] == brighter:
                belongs_to[fainter] = brighter
        fainter_may_go = np.array(unsettled)[self._links[:, 0]]
        waits = np.array(unsettled)
        waits[self._links[fainter_may_go, 1]] = True
        # In order of time: what comes after an unsettled event waits for it.
        return self._take(times < times[waits].min(initial=until_s), np.array(belongs_to), brightest_first)

    def _take(self, ready: np.ndarray, belongs_to: np.ndarray, brightest_first: np.ndarray) -> list[Event]:
        """Remove the events that belong to those of ``ready``, and return one for each pulse, in order of time."""
        gone = ready[belongs_to]
        groups: dict[int, list[Event]] = {}
        for number in brightest_first[gone[brightest_first]].tolist():
            groups.setdefault(int(belongs_to[number]), []).append(self._pending[number])
        self._pending = [event for event, is_gone in zip(self._pending, gone.tolist(), strict=True) if not is_gone]
        self._links = (np.cumsum(~gone) - 1)[self._links[~gone[self._links].any(axis=1)]]
        return sorted(map(_merged, groups.values()), key=lambda event: (event.time_s, event.first_page))


def links(events: Sequence[Event], first: int, grid: PageGrid) -> np.ndarray:
    """Find the pairs of events in which the fainter one may belong to the brighter one.

    Only events within a window of time are compared, so that the effort grows in proportion to their number.

    Parameters
    ----------
    events : sequence of Event
        The earlier one of two events of the same S/N counts as brighter.
    first : int
        Only pairs are returned in which one event has this or a higher index.
    grid : PageGrid
        Gives band and sampling time.

    Returns
    -------
    (n, 2) ndarray of int64
        Indices of the fainter and the brighter event.
    """
    if first == len(events):
        return np.empty((0, 2), np.int64)
    times, dms, snrs, widths_ms = np.array([(e.time_s, e.dm_pc_cm3, e.snr, e.width_ms) for e in events]).T
    widths_s = widths_ms / 1e3
    group, *layer = np.array([(e.first_page // GROUP, e.time_downsample, e.dm_stack) for e in events]).T
    beside_s = MEASURED_BESIDE * grid.n_time * grid.tsamp
    window_s = largest_reach_s(grid, dms, widths_s.max()) + grid.tsamp
    by_time = np.argsort(times, kind="stable")
    low = np.searchsorted(times[by_time], times[first:] - window_s)
    counts = np.searchsorted(times[by_time], times[first:] + window_s, side="right") - low
    ends = np.cumsum(counts)
    found = []
    for part in np.split(
        np.arange(len(counts)), np.searchsorted(ends, np.arange(PAIRS_AT_ONCE, ends[-1], PAIRS_AT_ONCE))
    ):
        later = np.repeat(first + part, counts[part])
        in_window = np.arange(counts[part].sum()) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
        earlier = by_time[np.repeat(low[part], counts[part]) + in_window]
        once = earlier < later
        earlier, later = earlier[once], later[once]
        fainter = np.where(snrs[later] > snrs[earlier], earlier, later)
        pair = np.stack([fainter, earlier + later - fainter])
        apart_s = times[pair[0]] - times[pair[1]]
        reach_s = grid.sweep(dms[pair[1]] - dms[pair[0]]) * grid.tsamp
        in_channel = fraction_in_a_channel(grid) * snrs[pair[1]]
        together = (group[pair[0]] == group[pair[1]]) | (np.abs(apart_s) <= beside_s)
        for number in layer:
            together &= number[pair[0]] == number[pair[1]]
        linked = _may_belong(apart_s, reach_s, snrs[pair], in_channel, widths_s[pair], together)
        found.append(pair[:, linked].T)
    return np.concatenate(found)


def largest_reach_s(grid: PageGrid, dms: np.ndarray, longest_s: float) -> float:
    """Largest time in seconds between two events of one pulse, at these DMs and with widths up to ``longest_s``."""
    bow_tie_s = float(grid.sweep(dms.max() - dms.min())) * grid.tsamp + 3 * longest_s
    return max(bow_tie_s, (RESIDUAL_REACH + FAINT_OWN_REACH) * longest_s)


def _may_belong(
    apart_s: np.ndarray,
    reach_s: np.ndarray,
    snrs: np.ndarray,
    in_channel: np.ndarray,
    widths_s: np.ndarray,
    together: np.ndarray,
) -> np.ndarray:
    """Decide whether events may belong to brighter ones.

    An event does if it lies in the bow tie of the brighter one and its S/N is at most that of a pulse smeared over the
    difference in sweep, which falls with the square root of width / (width + sweep) (Cordes & McLaughlin 2003, ApJ 596,
    1142), or that of one channel of the pulse; or if it is close and much fainter, as the residuals of the cleaning
    beside a bright pulse. Events that were measured together were separated then.

    Parameters
    ----------
    apart_s : (n,) ndarray
        Time of the fainter event after the brighter one.
    reach_s : (n,) ndarray
        Sweep of the DM of the brighter event minus that of the fainter one.
    snrs, widths_s : (2, n) ndarray
        Of the fainter and of the brighter event.
    in_channel : (n,) ndarray
        Largest S/N of one channel of the brighter event.
    together : (n,) ndarray of bool
        Whether both were measured together: in the same group of pages, or close to each other.
    """
    (snr, brighter_snr), (width_s, brighter_s) = snrs, widths_s
    beside_s = np.abs(apart_s) - RESIDUAL_REACH * brighter_s
    residual = (beside_s <= OWN_REACH * width_s) & (snr < RESIDUAL_SNR * brighter_snr)
    residual |= (beside_s <= FAINT_OWN_REACH * width_s) & (snr < FAINT_SNR * brighter_snr)
    margin = 2 * brighter_s + width_s
    in_bow_tie = (np.minimum(reach_s, 0) - margin <= apart_s) & (apart_s <= np.maximum(reach_s, 0) + margin)
    smeared = SMEARED * (brighter_snr * np.sqrt(brighter_s / (brighter_s + np.abs(reach_s))))
    response = (np.abs(apart_s) <= margin) | (snr <= np.maximum(smeared, in_channel))
    return residual | (~together & in_bow_tie & response)


def _merged(events: Sequence[Event]) -> Event:
    """The first of the events, with the pages of all events of its layer."""
    layer = (events[0].time_downsample, events[0].dm_stack)
    pages = [(e.first_page, e.last_page) for e in events if (e.time_downsample, e.dm_stack) == layer]
    return replace(events[0], first_page=min(pages)[0], last_page=max(last for _, last in pages))
