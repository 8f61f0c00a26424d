"""From pages to events: the pulses in every page that passes the gate, measured on the DM-time plane."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline_classifier.detection.decision import Decision
from pipeline_classifier.detection.event_merging import GROUP, MEASURED_BESIDE
from pipeline_classifier.detection.frequency_time import FrequencyTime
from pipeline_classifier.detection.network import NOT_CLASSIFIED
from pipeline_classifier.detection.page_classifier import Classified
from pipeline_classifier.detection.peaks import Peak, find_peaks
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.boxcar import BoxcarSearch, boxcar_search, page_snrs
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.frontend.sources import Layer
from pipeline_classifier.times import SECONDS_PER_DAY

LONGEST_REACH = 8
"""Largest context on either side of a group, in pages: longer bow ties are measured in part, so that memory is bounded.
Chosen by hand."""
SHORTEST_REACH, BRIGHT_PAGE = 2, 20.0
"""Context in pages where no page within the long reach has this S/N: what bow ties there may be are short and faint."""
REJECTED = 0.05
"""Candidate probability below which a peak is interference, in whose bow tie other peaks are searched once more."""
LEAST_SWEEP = 0.5
"""Smallest sweep of an event over the band, in units of its width: below it, nothing distinguishes a pulse from
interference without dispersion. A third of the false events of 24 simulated observations had less, and none of the
pulses that were found."""
PEAKS_PER_PAGE = 3  # chosen by hand; not tuned on data


@dataclass
class _Pages:
    """Pages of a stretch without gaps whose groups are not all measured, in order of time, and those before them.

    Attributes
    ----------
    number, start : (n,) ndarray of int64
        Number in the layer, and first sample.
    probability : (n,) ndarray of float32
    snr : (n,) ndarray of float32
        `PageSnrs.beginning`.
    passed : (n,) ndarray of bool
        Pages in which peaks are searched.
    """

    number: np.ndarray
    start: np.ndarray
    probability: np.ndarray
    snr: np.ndarray
    passed: np.ndarray

    def __getitem__(self, part: slice) -> "_Pages":
        return _Pages(*(values[part] for values in vars(self).values()))

    def __len__(self) -> int:
        return len(self.number)

    def and_then(self, other: "_Pages") -> "_Pages":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Pages(*(np.concatenate(pair) for pair in pairs))


_NO_NUMBERS, _NO_VALUES = np.empty(0, np.int64), np.empty(0, np.float32)
NO_PAGES = _Pages(_NO_NUMBERS, _NO_NUMBERS, _NO_VALUES, _NO_VALUES, np.empty(0, bool))


class PeakClassifier(Protocol):
    """What gives the candidate probability of peaks: a `CandidateClassifier`."""

    def probabilities(
        self,
        searched: BoxcarSearch,
        grid: PageGrid,
        peaks: Sequence[Peak],
        frequency_time: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the candidate probability of each peak, as `CandidateClassifier.probabilities`."""


class EventFinder:
    """Turns the pages of a layer, batch after batch, into events; keeps only the pages of which events may still come.

    Peaks are searched in the pages that pass the gate (`Decision.snr_gate`), and up to a quarter of a page beside them.
    They are measured in fixed groups of pages, with as much context as the longest bow tie: what is found in a page
    depends on the samples alone, and not on batches or on what the network says of any page.

    Parameters
    ----------
    layer : Layer
        Layer of the pages; its starts are not used.
    decision : Decision
        Without an ``event_threshold`` the brightest peaks of pages with a pulse are events, at most one for each page.
    candidates : PeakClassifier, optional
        Classifies the peaks; needed with an ``event_threshold``.
    frequency_time : FrequencyTime, optional
        Makes the frequency-time cutouts of the peaks; needed if ``candidates`` gets them.

    Attributes
    ----------
    n_candidates, n_without_output : int
        Peaks shown to the candidate classifier so far, and those for which it gave no finite number.
    """

    def __init__(
        self,
        layer: Layer,
        decision: Decision,
        candidates: PeakClassifier | None = None,
        frequency_time: FrequencyTime | None = None,
    ) -> None:
        self.grid, self.layer, self.decision = layer.grid, layer, decision
        self.candidates = candidates if decision.event_threshold is not None else None
        self._frequency_time = frequency_time
        self.n_candidates = self.n_without_output = 0
        n_time = self.grid.n_time
        sweep = float(np.nan_to_num(self.grid.sweep(self.grid.dms[-1] - self.grid.dms[0])))
        self._reach = min(max(math.ceil(sweep) + n_time // 2, n_time), LONGEST_REACH * n_time)
        self._batches: deque[PageBatch] = deque()
        self._pages = NO_PAGES
        self._at_edge: list[tuple[int, int]] = []  # centre and width of the last group's peaks
        self._done = 0  # pages of `_pages` whose groups are measured

    def add(self, batch: PageBatch, classified: Classified) -> list[Event]:
        """Take the next batch; return the events of the groups that it completes."""
        events: list[Event] = []
        gaps = 1 + np.flatnonzero(np.diff(batch.starts) > self.grid.n_time)
        for first, last in zip([0, *gaps], [*gaps, len(batch)], strict=True):
            part = slice(int(first), int(last))
            if len(self._pages) and batch.starts[first] - self._pages.start[-1] > self.grid.n_time:
                events += self.finish()
            events += self._continue(batch[part], classified.part(part))
        return events

    @property
    def until_s(self) -> float:
        """Time in seconds before which no more events will come, except for those within their width of it."""
        if self._done < len(self._pages):
            return float(self._pages.start[self._done] * self.grid.tsamp)
        return float(self._end * self.grid.tsamp) if len(self._pages) else -np.inf

    def finish(self) -> list[Event]:
        """Return the events of the pages up to a gap, or to the end of the source."""
        events = self._measure_groups(final=True)
        self._batches.clear()
        self._pages, self._done = NO_PAGES, 0
        return events

    @property
    def _end(self) -> int:
        """First sample after the pages so far."""
        return int(self._pages.start[-1]) + self.grid.n_time

    def _continue(self, batch: PageBatch, classified: Classified) -> list[Event]:
        """Take pages that continue those before them without a gap."""
        passed = classified.snrs >= self.decision.snr_gate
        if not self.candidates:
            passed &= classified.probabilities >= self.decision.threshold
        elif self._batches and self._is_bright_across(self._batches[-1], batch):
            self._pages.passed[-1] = True
        numbers = batch.first + np.arange(len(batch))
        pages = _Pages(numbers, batch.starts, classified.probabilities, classified.snrs, passed)
        self._pages = self._pages.and_then(pages)
        self._batches.append(batch)
        return self._measure_groups(final=False)

    def _is_bright_across(self, before: PageBatch, after: PageBatch) -> bool:
        """Whether a boxcar that begins in the last page of a batch and ends in the next batch passes the gate."""
        if not self.decision.snr_gate or before.are_images:
            return False
        starts = np.array([before.starts[-1], after.starts[0]])
        plane = joined([before[-1:], after[:1]], int(starts[0]), int(starts[1]) + self.grid.n_time)
        both = PageBatch(plane, starts - starts[0], starts, self.grid.n_time, 0)
        return bool(page_snrs(both, self.grid.noise).beginning[0] >= self.decision.snr_gate)

    def _measure_groups(self, final: bool) -> list[Event]:
        """Measure the groups whose pages and context are complete, in the end all of them."""
        pages, events = self._pages, []
        while self._done < len(pages):
            group = pages.number[self._done :] // GROUP == pages.number[self._done] // GROUP
            end = self._done + int(group.sum())
            first = int(pages.start[self._done])
            last = int(pages.start[end]) if end < len(pages) else self._end
            if not final and (end == len(pages) or self._end < last + self._reach):
                break
            events += self._measure(end - self._done, first, last)
            self._done = end
            while self._batches and self._batches[0].starts[-1] + self.grid.n_time <= last - self._reach:
                self._batches.popleft()
        if 0 < self._done < len(pages):
            ends = pages.start[: self._done] + self.grid.n_time
            dropped = int((ends <= pages.start[self._done] - self._reach).sum())
            self._pages, self._done = pages[dropped:], self._done - dropped
        return events

    @property
    def _margin(self) -> int:
        """Samples beside a page in which its peaks may have their centre: a pulse on an edge passes on either page."""
        return self.grid.n_time // 4

    def _measure(self, n_pages: int, first: int, last: int) -> list[Event]:
        """Measure the peaks from sample ``first`` to ``last``, where a group of pages begins and the next one."""
        pages, n_time = self._pages, self.grid.n_time
        begins, ends = pages.start - self._margin, pages.start + n_time + self._margin
        passed = pages.passed & (begins < last) & (ends > first)
        if not passed.any():
            return []
        reach = self._reach
        near = (begins < last + reach) & (ends > first - reach)
        if (pages.snr[near] < BRIGHT_PAGE).all():
            reach = min(reach, SHORTEST_REACH * n_time)
        origin = max(int(self._batches[0].starts[0]), first - reach)
        plane = joined(self._batches, origin, min(self._end, last + reach))
        searched = boxcar_search(plane, n_time // 2, self.grid.noise)
        first, last = max(first, int(begins[passed].min())), min(last, int(ends[passed].max()))
        if not self.decision.is_event(float(searched.snr[:, first - origin : last - origin].max())):
            return []
        # Further than the group, so that a pulse beside it is told apart from those in it, and the maxima at the limits
        # of the search are not among those that are kept.
        beside = math.ceil(MEASURED_BESIDE * n_time)
        limits = first - beside - origin, last + beside - origin
        most = PEAKS_PER_PAGE * (n_pages + 2) if self.candidates else int(passed.sum())

        def is_here(peak: Peak) -> bool:
            """Whether a peak belongs to this group, in a page that passed."""
            centre = origin + peak.column + (peak.width - 1) // 2
            # The planes of two groups differ in their noise, so that a pulse on the edge may belong to both or neither.
            tolerance = 1 + peak.width // 8
            here = first - tolerance <= centre < last + tolerance
            here &= all(abs(centre - other) > (peak.width + width) / 2 for other, width in self._at_edge)
            here &= bool((passed & (begins <= centre) & (centre < ends)).any())
            return here and self._has_sweep(peak) and self.decision.is_event(peak.snr)

        found = find_peaks(searched, self.grid, *limits, most)
        peaks = [peak for peak in found if is_here(peak)][: None if self.grid.sweeps else most]
        probabilities = self._probabilities(searched, peaks, origin, float(pages.probability[passed].max()))
        if self._frequency_time and min(probabilities, default=1.0) < REJECTED:
            rejected = {peak for peak, p in zip(peaks, probabilities, strict=True) if p < REJECTED}
            judged = [(peak, peak in rejected) for peak in found]
            more = [peak for peak in find_peaks(searched, self.grid, *limits, most, judged) if is_here(peak)]
            peaks, probabilities = peaks + more, probabilities + self._probabilities(searched, more, origin, 0.0)
        centres = [(origin + peak.column + (peak.width - 1) // 2, peak.width) for peak in peaks]
        self._at_edge = [(centre, width) for centre, width in centres if centre >= last - 1 - width // 8]
        return [
            self._event(peak, origin, probability)
            for peak, probability in zip(peaks, probabilities, strict=True)
            if self.decision.is_event(peak.snr, probability)
        ]

    def _has_sweep(self, peak: Peak) -> bool:
        """Whether the DM of a peak can be told from 0; always where the sweep is not known or pages decide."""
        if not (self.candidates and self.grid.sweeps):
            return True
        dm = self.grid.dms[peak.row]
        return float(self.grid.sweep(dm) - self.grid.top_delay(dm)) >= LEAST_SWEEP * peak.width

    def _probabilities(self, searched: BoxcarSearch, peaks: list[Peak], origin: int, of_pages: float) -> list[float]:
        """Candidate probability of each peak; that of the pages if there is no candidate classifier."""
        if not self.candidates or not peaks:
            return [of_pages] * len(peaks)
        frequency_time = self._frequency_time.cutouts(peaks, origin) if self._frequency_time else None
        probabilities = self.candidates.probabilities(searched, self.grid, peaks, frequency_time).tolist()
        self.n_candidates += len(peaks)
        self.n_without_output += probabilities.count(NOT_CLASSIFIED)
        return probabilities

    def _event(self, peak: Peak, origin: int, probability: float) -> Event:
        begins, pages = origin + peak.column, self._pages
        shown = pages.number[(pages.start < begins + peak.width) & (pages.start + self.grid.n_time > begins)]
        time_s = (begins + peak.width / 2) * self.grid.tsamp
        dm = float(self.grid.dms[peak.row])
        delay_s = float(dispersion_delay(dm, self.grid.f_top, np.inf))
        return Event(
            time_s=time_s,
            mjd=self.grid.tstart + time_s / SECONDS_PER_DAY,
            mjd_infinite=self.grid.tstart + (time_s - delay_s) / SECONDS_PER_DAY,
            dm_pc_cm3=dm,
            snr=peak.snr,
            width_ms=peak.width * self.grid.tsamp * 1e3,
            probability=probability,
            first_page=int(shown[0]),
            last_page=int(shown[-1]),
            width_samples=peak.width,
            time_downsample=self.layer.time_downsample,
            dm_stack=self.layer.dm_stack,
        )


def joined(batches: Iterable[PageBatch], start: int, end: int) -> np.ndarray:
    """Join the pages of several batches to the plane of samples ``start`` to ``end``.

    Where pages overlap, the values are those of the later batch.

    Returns
    -------
    (n_dm, end - start) ndarray of float32
    """
    plane = np.empty((0, 0), np.float32)
    for batch in batches:
        if not plane.size:
            plane = np.empty((len(batch.plane), end - start), np.float32)
        first, last = max(start, int(batch.starts[0])), min(end, int(batch.starts[-1]) + batch.n_time)
        if first < last:
            shift = int(batch.columns[0] - batch.starts[0])
            values = batch.columns_on_host(first + shift, last + shift)
            np.multiply(values, np.float32(batch.scale), out=plane[:, first - start : last - start], casting="unsafe")
    return plane
