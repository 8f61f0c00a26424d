"""From classified pages to events: the pulses of each run of pages, measured on the DM-time plane."""

import numpy as np

from pipeline_classifier.detection.candidate_classifier import CandidateClassifier
from pipeline_classifier.detection.decision import Decision
from pipeline_classifier.detection.network import NOT_CLASSIFIED
from pipeline_classifier.detection.peaks import Peak, find_peaks
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.boxcar import boxcar_search
from pipeline_classifier.frontend.pages import PageBatch
from pipeline_classifier.frontend.sources import Layer
from pipeline_classifier.times import SECONDS_PER_DAY

LONGEST_RUN = 32
"""Largest number of pages measured at once: a longer run of pages is measured in pieces, so that memory is bounded."""
CANDIDATE_THRESHOLD = 0.05
"""Minimum page probability for the peaks of a page to be classified. Lower values down to 0.03 found no more pulses on
24 simulated observations in strong interference."""
BRIGHT_SAMPLE = 20.0
"""Value of a sample, in units of the noise, from which the peaks of a page are classified whatever its probability.

The page classifier does not recognise all parts of the long bow tie of a very bright pulse, and the part that it does
recognise may not hold the pulse. Chosen on 11 simulated observations with 520 pulses of S/N 20 to 10,000 (8 bit,
two fifths of them band-limited): 515 instead of 510 are found, with 3 instead of 10 false events; 30.0 finds 514. On 9
observations in strong interference without pulses above S/N 50 nothing changes.
"""
PEAKS_PER_PAGE = 3  # chosen by hand; not tuned on data


class EventFinder:
    """Turns classified pages of a layer, batch after batch, into events; keeps only the pages of the run still open.

    Parameters
    ----------
    layer : Layer
        Layer of the pages; its starts are not used.
    decision : Decision
        Without an ``event_threshold`` the brightest peaks of pages with a pulse are events, at most one for each page.
    candidates : CandidateClassifier, optional
        Classifies the peaks of all pages from `CANDIDATE_THRESHOLD` or `BRIGHT_SAMPLE`; needed with an
        ``event_threshold``.

    Attributes
    ----------
    n_candidates, n_without_output : int
        Peaks shown to the candidate classifier so far, and those for which it gave no finite number.
    """

    def __init__(self, layer: Layer, decision: Decision, candidates: CandidateClassifier | None = None) -> None:
        self.grid, self.layer, self.decision = layer.grid, layer, decision
        self.candidates = candidates if decision.event_threshold is not None else None
        self.n_candidates = self.n_without_output = 0
        self._held: PageBatch | None = None
        self._probabilities = np.empty(0, dtype=np.float32)
        self._positive = np.empty(0, dtype=bool)

    def add(self, batch: PageBatch, probabilities: np.ndarray) -> list[Event]:
        """Take the next batch and its page probabilities; return the events of the runs of pages that ended in it."""
        positive = probabilities >= (CANDIDATE_THRESHOLD if self.candidates else self.decision.threshold)
        if self.candidates and self.grid.noise:
            positive |= batch.pages.max(axis=(1, 2)) >= BRIGHT_SAMPLE * self.grid.noise
        if not self._positive.any() and not positive.any():
            self._hold(batch, slice(len(batch) - 1, None))
            self._probabilities, self._positive = probabilities[-1:], positive[-1:]
            return []
        if self._held is None:
            held = batch
        else:
            pages = np.concatenate([self._held.pages, batch.pages])
            held = PageBatch(pages, np.concatenate([self._held.starts, batch.starts]), self._held.first)
        self._probabilities = np.concatenate([self._probabilities, probabilities])
        self._positive = np.concatenate([self._positive, positive])
        return self._close(held, final=False)

    @property
    def until_s(self) -> float:
        """Time in seconds before which no more events will come."""
        return -np.inf if self._held is None else float(self._held.starts[0] * self.grid.tsamp)

    def finish(self) -> list[Event]:
        """Return the events of the run that is open at the end of the source."""
        return [] if self._held is None else self._close(self._held, final=True)

    def _close(self, held: PageBatch, final: bool) -> list[Event]:
        last = len(held) - 1
        events, keep_from = [], last
        for first_page, last_page in self._runs(held.starts):
            if last_page == last and not final:
                keep_from = max(0, first_page - 1)
            else:
                events += self._measure(held, first_page, last_page)
                self._positive[first_page : last_page + 1] = False  # only context from here on
        rest = slice(keep_from, None)
        self._hold(held, rest)
        self._probabilities, self._positive = self._probabilities[rest], self._positive[rest]
        return events

    def _hold(self, batch: PageBatch, part: slice) -> None:
        """Keep a copy of some pages for the next call, so that the memory of the others is freed."""
        kept = batch[part]
        self._held = PageBatch(kept.pages.copy(), kept.starts, kept.first)

    def _runs(self, starts: np.ndarray) -> list[tuple[int, int]]:
        """First and last index of every run of adjacent positive pages, none longer than `LONGEST_RUN`."""
        positive = np.flatnonzero(self._positive)
        if not len(positive):
            return []
        apart = (np.diff(positive) > 1) | (np.diff(starts[positive]) > self.grid.n_time)
        runs = np.split(positive, np.flatnonzero(apart) + 1)
        return [
            (int(run[i]), int(run[min(i + LONGEST_RUN, len(run)) - 1]))
            for run in runs
            for i in range(0, len(run), LONGEST_RUN)
        ]

    def _measure(self, held: PageBatch, first_page: int, last_page: int) -> list[Event]:
        """Measure the pulses of one run, with the adjoining page before and after it as context.

        A pulse on the edge between two pages may be recognised on one of them only, so its centre may lie up to a
        quarter of a page outside the run.
        """
        n_time, starts = self.grid.n_time, held.starts
        before = first_page > 0 and starts[first_page] - starts[first_page - 1] <= n_time
        after = last_page + 1 < len(held) and starts[last_page + 1] - starts[last_page] <= n_time
        chosen = slice(first_page - before, last_page + 1 + after)
        origin = int(starts[chosen][0])
        searched = boxcar_search(self._joined(held[chosen]), n_time // 2, self.grid.noise)
        n_pages = last_page - first_page + 1
        peaks = find_peaks(
            searched,
            self.grid,
            int(starts[first_page]) - origin - n_time // 4,
            int(starts[last_page]) - origin + n_time + n_time // 4,
            most=n_pages * (PEAKS_PER_PAGE if self.candidates else 1),
        )
        if not self.grid.sweeps:
            peaks = peaks[:n_pages]
        peaks = [peak for peak in peaks if self.decision.is_event(peak.snr)]
        if self.candidates:
            probabilities = self.candidates.probabilities(searched, self.grid, peaks).tolist()
            self.n_candidates += len(peaks)
            self.n_without_output += probabilities.count(NOT_CLASSIFIED)
        else:
            probabilities = [float(self._probabilities[first_page : last_page + 1].max())] * len(peaks)
        numbers = held.first + first_page, held.first + last_page
        return [
            self._event(peak, origin, probability, *numbers)
            for peak, probability in zip(peaks, probabilities, strict=True)
            if self.decision.is_event(peak.snr, probability)
        ]

    def _joined(self, run: PageBatch) -> np.ndarray:
        """The plane (n_dm, n) float32 of a run of adjoining pages, row 0 = lowest DM."""
        pages = run.pages[:, ::-1] if run.pages.dtype == np.uint8 else run.pages
        offsets = run.starts - run.starts[0]
        plane = np.empty((pages.shape[1], int(offsets[-1]) + self.grid.n_time), dtype=np.float32)
        for page, start in zip(pages, offsets, strict=True):
            plane[:, start : start + self.grid.n_time] = page
        return plane

    def _event(self, peak: Peak, origin: int, probability: float, first_page: int, last_page: int) -> Event:
        time_s = (origin + peak.column + peak.width / 2) * self.grid.tsamp
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
            first_page=first_page,
            last_page=last_page,
            width_samples=peak.width,
            time_downsample=self.layer.time_downsample,
            dm_stack=self.layer.dm_stack,
        )
