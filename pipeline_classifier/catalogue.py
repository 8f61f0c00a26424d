"""From pages that hold a pulse to events: one row each, measured on the DM-time plane."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from pipeline_classifier.dedispersion import dispersion_delay
from pipeline_classifier.pages import PageBatch, PageGrid

LONGEST_RUN = 32  # pages; a longer row of positive pages is measured piece by piece, so that memory stays bounded
NEXT_PEAK_SNR = 7.0  # a second peak in one run of pages is an event of its own from this S/N on
CANDIDATE = 0.3
PEAKS_PER_PAGE = 3
SECONDS_PER_DAY = 86400.0


def utc_of(mjd: float) -> str:
    """Date and time of an MJD to the millisecond, 2020-05-31 11:36:46.000."""
    # Half a millisecond, as isoformat cuts off and does not round.
    time = datetime(1858, 11, 17) + timedelta(days=mjd, microseconds=500)
    return time.isoformat(sep=" ", timespec="milliseconds")


@dataclass(frozen=True)
class Event:
    """One pulse.

    Attributes
    ----------
    time_s : from the first sample of the observation, at the top channel, centre of the best boxcar
    mjd : the same as MJD (topocentric); empty in the CSV when unknown, as every unknown number
    dm_pc_cm3 : trial DM of the highest S/N
    snr : of the best boxcar on the sum over channels
    width_ms : of that boxcar
    probability : the network's, of a page with the event in its middle; where pages are looked at once only, the
        highest of the pages of the event
    first_page, last_page : the adjacent positive pages it was found in
    width_samples : width in columns of the page
    time_downsample : samples of the observation in a column of those pages
    dm_stack : number of their stack of trial DMs
    mjd_infinite : topocentric MJD at which it would have come at infinite frequency
    """

    time_s: float
    mjd: float
    dm_pc_cm3: float
    snr: float
    width_ms: float
    probability: float
    first_page: int
    last_page: int
    width_samples: int
    time_downsample: int = 1
    dm_stack: int = 0
    mjd_infinite: float = np.nan


@dataclass(frozen=True)
class Peak:
    """The best boxcar of a DM-time plane: ``row``, first column, ``width`` in samples, S/N."""

    row: int
    column: int
    width: int
    snr: float


def boxcar_widths(longest: int) -> np.ndarray:
    """Trial widths in samples, 1 to ``longest``, at most a factor 1.6 apart (2 from 1 to 2)."""
    widths = np.unique(np.round(1.4 ** np.arange(0, 1 + np.log(max(longest, 1)) / np.log(1.4))).astype(int))
    return widths[widths <= longest]


def find_peaks(plane: np.ndarray, grid: PageGrid, first: int, last: int, most: int) -> list[Peak]:
    """Find the pulses in a DM-time plane by a boxcar search, brightest first.

    Parameters
    ----------
    plane : (n_dm, n) float32
    grid : of the plane's rows and samples
    first, last : columns in which a pulse's centre must lie
    most : most pulses to return; the first is always returned, others from `NEXT_PEAK_SNR` on

    Notes
    -----
    The noise is 1.4826 times the median absolute deviation. Between the peak and where its bottom channel falls at a
    wrong trial DM lies the pulse's own bow tie, in which no second pulse is looked for. A peak in the bow tie of
    a much brighter pulse gives that pulse, wherever its centre is.
    """
    values = np.nan_to_num(plane - np.median(plane, axis=1, keepdims=True))
    sigma = 1.4826 * np.median(np.abs(values[::2, ::2])) or values.std() or 1.0
    total = np.pad(np.cumsum(values / sigma, axis=1, dtype=np.float32), ((0, 0), (1, 0)))
    n = plane.shape[1]
    best = np.full(plane.shape, -np.inf, dtype=np.float32)  # by the centre of the boxcar
    best_width = np.ones(plane.shape, dtype=np.int32)
    for width in boxcar_widths(min(grid.n_time // 2, n)):
        snrs = (total[:, width:] - total[:, :-width]) * np.float32(width**-0.5)
        centres = slice((width - 1) // 2, (width - 1) // 2 + snrs.shape[1])
        better = snrs > best[:, centres]
        np.copyto(best[:, centres], snrs, where=better)
        np.copyto(best_width[:, centres], width, where=better)
    everywhere = best.copy()
    best[:, : max(0, first)] = best[:, last:] = -np.inf

    peaks: list[Peak] = []
    columns = np.arange(n)
    while len(peaks) < most:
        row, centre = (int(index) for index in np.unravel_index(int(best.argmax()), best.shape))
        snr, width = float(best[row, centre]), int(best_width[row, centre])
        if not np.isfinite(snr) or (peaks and snr < NEXT_PEAK_SNR):
            break
        row, centre = brightest_of_bow_tie(everywhere, grid, row, centre, width)
        snr, width = float(everywhere[row, centre]), int(best_width[row, centre])
        peaks.append(Peak(row, centre - (width - 1) // 2, width, snr))
        reach = np.nan_to_num(grid.sweep(grid.dms[row] - grid.dms))[:, None]
        margin = 2 * width + best_width
        own = (columns >= centre + np.minimum(reach, 0) - margin) & (columns <= centre + np.maximum(reach, 0) + margin)
        best[own] = -np.inf
    for peak in tuple(peaks):
        peaks += sub_pulses(total[peak.row], peak, peaks, first, last)
    return peaks


def sub_pulses(total: np.ndarray, peak: Peak, found: Sequence[Peak], first: int, last: int) -> list[Peak]:
    """Other pulses at the DM of a peak that its profile shows apart from it and from those already found.

    Parameters
    ----------
    total : (n + 1,) cumulative sum of the profile at the peak's DM, in units of its noise
    first, last : columns in which the centre of a pulse must lie

    Notes
    -----
    A sub-pulse has `NEXT_PEAK_SNR` in a boxcar of the peak's width, and between it and its neighbours the profile,
    smoothed over that width, sinks to half of it.
    """
    width, half = peak.width, (peak.width - 1) // 2
    snr = (total[width:] - total[:-width]) / np.sqrt(width)  # by first column
    low, high = max(0, first - half), min(len(snr), last - half)
    taken = [other.column for other in found]
    peaks: list[Peak] = []
    for column in low + np.argsort(-snr[low:high], kind="stable"):
        if snr[column] < NEXT_PEAK_SNR:
            break
        near = min(taken, key=lambda other: abs(other - column))
        valley = snr[min(near, column) : max(near, column) + 1].min()
        if abs(near - column) > width and valley <= min(0.5 * snr[column], snr[column] - 4.0):
            taken.append(int(column))
            peaks.append(Peak(peak.row, int(column), width, float(snr[column])))
    return peaks


def brightest_of_bow_tie(snr: np.ndarray, grid: PageGrid, row: int, centre: int, width: int) -> tuple[int, int]:
    """Row and centre of the pulse that a peak belongs to: a much brighter one whose bow tie it lies in, or itself.

    The network may see a bright pulse's streak in a page beside the pulse itself. ``snr`` (n_dm, n) is by centre.
    """
    reach = np.nan_to_num(grid.sweep(grid.dms - grid.dms[row]))[:, None]
    columns = np.arange(snr.shape[1])
    holds_peak = (columns >= centre - np.maximum(reach, 0) - width) & (columns <= centre - np.minimum(reach, 0) + width)
    within = np.where(holds_peak, snr, -np.inf)
    brightest = np.unravel_index(int(within.argmax()), snr.shape)
    return (int(brightest[0]), int(brightest[1])) if within[brightest] > 1.5 * snr[row, centre] else (row, centre)


class EventFinder:
    """Turns classified batches, in order, into events; holds no more pages than the run that is still open.

    Parameters
    ----------
    grid : of the pages
    time_downsample, dm_stack : what the events say of their pages
    classify : a second look at every peak, on a page with the peak in its middle: what it does not call a pulse is no
        event, and of several peaks in a page it tells the pulse from brighter interference. Then pages from a
        probability of `CANDIDATE` on are looked at. None: the brightest peaks of the pages that hold a pulse, as many
        as pages, are the events.
    min_snr : peaks of less S/N get no second look
    """

    def __init__(
        self,
        grid: PageGrid,
        time_downsample: int = 1,
        dm_stack: int = 0,
        classify: Callable[[PageBatch], tuple[np.ndarray, np.ndarray]] | None = None,
        min_snr: float = 0.0,
    ) -> None:
        self.grid = grid
        self.min_snr = min_snr
        self.classify = classify if np.isfinite(grid.tsamp) else None
        self.time_downsample, self.dm_stack = time_downsample, dm_stack
        self._held: PageBatch | None = None
        self._probabilities = np.empty(0, dtype=np.float32)
        self._positive = np.empty(0, dtype=bool)

    def add(self, batch: PageBatch, predictions: np.ndarray, probabilities: np.ndarray) -> list[Event]:
        """Take the next batch; return the events of the runs of positive pages that ended in it."""
        positive = predictions == 1
        if self.classify is not None:
            positive |= probabilities >= CANDIDATE
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
        peaks = find_peaks(
            plane,
            self.grid,
            int(starts[first_page]) - origin - n_time // 4,
            int(starts[last_page]) - origin + n_time + n_time // 4,
            most=n_pages if self.classify is None else PEAKS_PER_PAGE * n_pages,
        )
        probabilities = [float(self._probabilities[first_page : last_page + 1].max())] * len(peaks)
        if self.classify is not None:
            peaks = [peak for peak in peaks if peak.snr >= self.min_snr]
            if not peaks:
                return []
            predictions, second = self.classify(self._centred(plane, peaks, held.pages.dtype))
            peaks = [peak for peak, prediction in zip(peaks, predictions, strict=True) if prediction == 1]
            probabilities = second[predictions == 1].tolist()
        numbers = held.first + first_page, held.first + last_page
        return [self._event(peak, origin, p, *numbers) for peak, p in zip(peaks, probabilities, strict=True)]

    def _centred(self, plane: np.ndarray, peaks: Sequence[Peak], dtype: np.dtype) -> PageBatch:
        """A page about each peak, as far as the plane reaches."""
        n_time = self.grid.n_time
        starts = np.array([peak.column + peak.width // 2 - n_time // 2 for peak in peaks])
        starts = np.clip(starts, 0, plane.shape[1] - n_time)
        pages = np.stack([plane[:, start : start + n_time] for start in starts]).astype(dtype)
        return PageBatch(pages[:, ::-1] if dtype == np.uint8 else pages, starts, 0)

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
