"""From pages that hold a pulse to events: one row each, measured on the DM-time plane."""

import numpy as np

from pipeline_classifier.detection.candidate_classifier import SecondLook
from pipeline_classifier.detection.peaks import Peak, boxcar_search, find_peaks
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.times import SECONDS_PER_DAY

LONGEST_RUN = 32  # pages; a longer row of positive pages is measured piece by piece, so that memory stays bounded
CANDIDATE = 0.05  # probability of a page from which on its peaks get a second look
PEAKS_PER_PAGE = 3


class EventFinder:
    """Turns classified batches, in order, into events; holds no more pages than the run that is still open.

    Parameters
    ----------
    grid : of the pages
    time_downsample, dm_stack : what the events say of their pages
    second_look : tells the pulses among the peaks of all pages from a probability of `CANDIDATE` on. None, or a grid
        without sweep: the brightest peaks of the pages that hold a pulse, as many as pages, are the events.
    """

    def __init__(
        self, grid: PageGrid, time_downsample: int = 1, dm_stack: int = 0, second_look: SecondLook | None = None
    ) -> None:
        self.grid = grid
        self.second_look = second_look if grid.sweeps else None
        self.time_downsample, self.dm_stack = time_downsample, dm_stack
        self._held: PageBatch | None = None
        self._probabilities = np.empty(0, dtype=np.float32)
        self._positive = np.empty(0, dtype=bool)

    def add(self, batch: PageBatch, predictions: np.ndarray, probabilities: np.ndarray) -> list[Event]:
        """Take the next batch; return the events of the runs of positive pages that ended in it."""
        positive = probabilities >= CANDIDATE if self.second_look else predictions == 1
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
        """Events that are still to come are not earlier than this; seconds."""
        return -np.inf if self._held is None else float(self._held.starts[0] * self.grid.tsamp)

    def finish(self) -> list[Event]:
        """Return the events of the run that the end of the source cut."""
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
        """Keep some pages for the next call, and no memory of the others."""
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
        """Measure the pulses of one run, with a page before and after it as context where they adjoin.

        A pulse that an edge cuts may be recognised on one side of it only: its centre may lie a quarter page outside.
        """
        n_time, starts = self.grid.n_time, held.starts
        before = first_page > 0 and starts[first_page] - starts[first_page - 1] <= n_time
        after = last_page + 1 < len(held) and starts[last_page + 1] - starts[last_page] <= n_time
        chosen = slice(first_page - before, last_page + 1 + after)
        origin = int(starts[chosen][0])
        pages = held.pages[chosen]
        if pages.dtype == np.uint8:
            pages = pages[:, ::-1]
        plane = np.empty((pages.shape[1], int(starts[chosen][-1]) - origin + n_time), dtype=np.float32)
        for page, start in zip(pages, starts[chosen] - origin, strict=True):
            plane[:, start : start + n_time] = page
        n_pages = last_page - first_page + 1
        searched = boxcar_search(plane, n_time // 2)
        peaks = find_peaks(
            searched,
            self.grid,
            int(starts[first_page]) - origin - n_time // 4,
            int(starts[last_page]) - origin + n_time + n_time // 4,
            most=n_pages * (PEAKS_PER_PAGE if self.second_look else 1),
        )
        if not self.grid.sweeps:
            peaks = peaks[:n_pages]
        numbers = held.first + first_page, held.first + last_page
        if not self.second_look:
            probability = float(self._probabilities[first_page : last_page + 1].max())
            return [self._event(peak, origin, probability, *numbers) for peak in peaks]
        peaks = [peak for peak in peaks if peak.snr >= self.second_look.min_snr]
        probabilities = self.second_look.probabilities(searched, self.grid, peaks).tolist()
        return [
            self._event(peak, origin, probability, *numbers)
            for peak, probability in zip(peaks, probabilities, strict=True)
            if probability >= self.second_look.threshold
        ]

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
            time_downsample=self.time_downsample,
            dm_stack=self.dm_stack,
        )
