"""Cutouts and probabilities of candidates whose time, DM and width are known, such as those of another search.

The samples are those of a search: each chunk of the observation that a candidate needs is read and cleaned once, in
order. The trial DMs are not those of the config: every row of a DM-time cutout is dedispersed by itself.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from pipeline_classifier.detection.candidate_classifier import CandidateClassifier
from pipeline_classifier.detection.candidate_cutouts import BRIGHTEST_SNR, SIDE, column_of
from pipeline_classifier.detection.frequency_time import FrequencyTime, samples_at_once
from pipeline_classifier.detection.network import NOT_CLASSIFIED
from pipeline_classifier.detection.peaks import Peak
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.frontend import dedispersion, kernels
from pipeline_classifier.frontend.filterbank_pages import CHANNEL_CONTEXT, FilterbankPages
from pipeline_classifier.frontend.pages import ROBUST_RANGE
from pipeline_classifier.frontend.sources import ChannelSource, Layer
from pipeline_classifier.frontend.threads import map_in_order
from single_pulse_classifier_training.cli import InputError

AT_ONCE = 1024
"""Candidates whose cutouts are in memory at the same time; 130 KB each."""
LEAST_PART = 0.1
"""Smallest fraction of the channels that a candidate must reach before the end of the observation. Chosen by hand."""


@dataclass(frozen=True)
class Place:
    """Where a candidate is in an observation.

    Attributes
    ----------
    time_s : float
        Centre at the top channel, in seconds after the first sample.
    dm : float
        pc cm^-3.
    width : int
        Samples, at least 1.
    """

    time_s: float
    dm: float
    width: int


@dataclass(frozen=True)
class Judged:
    """What the classifier makes of candidates.

    Attributes
    ----------
    probabilities : (n,) ndarray of float32
        -1 where not classified.
    snrs : (n,) ndarray of float32
        S/N at the given time, DM and width; NaN where not measured.
    """

    probabilities: np.ndarray
    snrs: np.ndarray


@dataclass(frozen=True)
class Frame:
    """Rows and columns of a DM-time cutout.

    Attributes
    ----------
    starts : (rows,) ndarray of int64
        Sample at which the first column of each row begins at the top channel.
    column : int
        Samples in a column.
    dms : (rows,) ndarray of float64
        Trial DMs in pc cm^-3.
    first, end : int
        First sample that is needed in any channel, and the one after the last.
    """

    starts: np.ndarray
    column: int
    dms: np.ndarray
    first: int
    end: int

    @classmethod
    def of(cls, starts: np.ndarray, column: int, dms: np.ndarray, n_columns: int, source: ChannelSource) -> Self:
        """Return a frame of ``n_columns`` columns with the samples that it needs."""
        longest = dispersion_delay(float(dms[-1]), source.frequencies[-1], source.frequencies[0]) / source.tsamp
        end = min(int(starts.max()) + float(longest) + n_columns * column + 1, source.nsamples)
        return cls(starts, column, dms, int(starts.min()), int(end))


def dedispersed(
    source: FilterbankPages, frames: Sequence[Frame], n_columns: int, threads: int | None = None
) -> np.ndarray:
    """Cut out DM-time planes of equal size, (n, rows, n_columns) float32 in units of the noise.

    Parameters
    ----------
    source : FilterbankPages
    frames : sequence of Frame
        Rows of negative DM and columns outside the observation are 0.
    n_columns : int
    threads : int, optional
        One per core by default.
    """
    needed = []
    firsts, ends = np.array([(frame.first, frame.end) for frame in frames]).T
    for start, end in itertools.pairwise(source.chunk_edges().tolist()):
        if len(numbers := np.flatnonzero((firsts < end) & (ends > start))):
            needed.append((start, end, numbers.tolist()))
    delay_per_dm = source.delay_per_dm

    def add(chunk: tuple[int, int, list[int]]) -> list[tuple[int, np.ndarray]]:
        start, end, numbers = chunk
        data = np.empty((len(source.frequencies), end - start), np.int8)
        good = source.cleaned(start, end - start, data).good
        parts = []
        for number in numbers:
            frame, part = frames[number], np.zeros((2, len(frames[number].dms), n_columns), np.float32)
            kernels.add_dedispersed(data, good, frame.starts - start, frame.column, frame.dms, delay_per_dm, *part)
            parts.append((number, part))
        return parts

    sums, counts = np.zeros((2, len(frames), len(frames[0].dms), n_columns), np.float32)
    for parts in map_in_order(add, needed, threads):
        for number, (part, n) in parts:
            sums[number] += part
            counts[number] += n
    return sums / np.sqrt(np.maximum(counts, 1)) / np.float32(dedispersion.LEVELS_PER_SIGMA)


class PlaceCutouts:
    """Makes the cutouts of candidates at given places.

    Parameters
    ----------
    source : FilterbankPages
    threads : int, optional
        One per core by default.

    Raises
    ------
    InputError
        If a pulse does not sweep over the band.
    """

    def __init__(self, source: FilterbankPages, threads: int | None = None) -> None:
        if not source.grid.sweeps:
            low, high = source.grid.band
            raise InputError(
                f"{source.files[0]}: must have a band over which pulses sweep, got {low:g} to {high:g} MHz"
            )
        self._source, self._threads, self._grid = source, threads, source.grid
        self._delay_per_dm = source.delay_per_dm
        self._samples_per_dm = float(self._grid.sweep(1.0) - self._grid.top_delay(1.0))
        # As in a search: narrow pulses have steps of half a trial DM.
        self._least_step = float(self._grid.dms[1] - self._grid.dms[0]) / 2

    def is_inside(self, place: Place) -> bool:
        """Whether the pulse begins in the observation and at least `LEAST_PART` of its channels arrive in it."""
        sample = place.time_s / self._source.tsamp
        if not 0 <= sample < self._source.nsamples:
            return False
        inside = sample + place.dm * self._delay_per_dm < self._source.nsamples
        return bool(inside.mean() >= LEAST_PART)

    def peak(self, place: Place, row: int) -> Peak:
        """Return the peak that a search with a trial DM ``row`` would have found at a place; its S/N is unknown."""
        first = round(place.time_s / self._source.tsamp - place.width / 2)
        return Peak(row, first, place.width, np.nan)

    def dm_time(self, places: Sequence[Place]) -> tuple[np.ndarray, np.ndarray]:
        """Cut out the surroundings of candidates in the DM-time plane.

        Returns
        -------
        cutouts : (n, SIDE, SIDE) ndarray of float32
            As `candidate_cutouts.cutout` makes them.
        snrs : (n,) ndarray of float32
        """
        frames = [self._frame(place) for place in places]
        cutouts = dedispersed(self._source, frames, SIDE, self._threads)
        widths = [place.width for place in places]
        snrs = np.array([measured_snr(*row) for row in zip(cutouts[:, SIDE // 2], widths, strict=True)])
        cutouts /= np.maximum(1, snrs / BRIGHTEST_SNR).astype(np.float32)[:, None, None]
        for cutout, frame in zip(cutouts, frames, strict=True):
            cutout[frame.dms < 0] = ROBUST_RANGE[0]
        return cutouts, snrs.astype(np.float32)

    def _frame(self, place: Place) -> Frame:
        column = column_of(place.width)
        peak = self.peak(place, 0)
        start = round(peak.column + (peak.width - column) / 2) - SIDE // 2 * column
        step = max(column / self._samples_per_dm, self._least_step)
        offsets = (np.arange(SIDE) - SIDE // 2) * step
        starts = start - np.rint(self._grid.top_delay(offsets)).astype(np.int64)
        return Frame.of(starts, column, place.dm + offsets, SIDE, self._source)

    def frequency_time(self, places: Sequence[Place], snrs: np.ndarray) -> np.ndarray:
        """Cut out the channels about candidates, (n, 2, SIDE, SIDE) float32, as `FrequencyTime.cutouts` does.

        Parameters
        ----------
        places : sequence of Place
            In order of time, so that near ones share the samples.
        snrs : (n,) ndarray
            As `dm_time` measures them.
        """
        layer = Layer(replace(self._grid, dms=np.array([place.dm for place in places])), np.empty(0, np.int64))
        peaks = [
            replace(self.peak(place, number), snr=max(float(snr), 1.0))
            for number, (place, snr) in enumerate(zip(places, snrs, strict=True))
        ]

        views = FrequencyTime(self._source, layer)

        def cut(numbers: list[int]) -> np.ndarray:
            return views.cutouts([peaks[number] for number in numbers], 0)

        return np.concatenate(list(map_in_order(cut, self._groups(places), self._threads)))

    def _groups(self, places: Sequence[Place]) -> Iterator[list[int]]:
        """Divide candidates, by their numbers, into groups that share samples."""
        at_once = samples_at_once(self._source)
        group: list[int] = []
        first = end = longest = 0
        for number, place in enumerate(places):
            column = column_of(place.width)
            centre = place.time_s / self._source.tsamp
            begin = max(0, int(centre) - (SIDE // 2 + 2) * column - 2)
            stop = centre + place.dm * float(self._delay_per_dm[-1]) + (SIDE // 2 + 2) * column + 2
            stop = int(min(stop, self._source.nsamples))
            longest = max(longest, stop - begin) if group else stop - begin
            apart = begin > end + 2 * CHANNEL_CONTEXT
            if group and (apart or max(stop, end) - min(begin, first) > max(at_once, 4 * longest)):
                yield group
                group, longest = [], stop - begin
            first, end = (min(first, begin), max(end, stop)) if group else (begin, stop)
            group.append(number)
        if group:
            yield group


def measured_snr(row: np.ndarray, width: int) -> float:
    """S/N of a pulse of ``width`` samples in the middle of a row of a cutout, which is in units of the noise."""
    column = column_of(width)
    weights = np.clip(width / column / 2 + 0.5 - np.abs(np.arange(len(row)) - len(row) // 2), 0, 1)
    return float(row @ weights / np.sqrt(weights @ weights))


def classify_places(
    source: FilterbankPages, classifier: CandidateClassifier, places: Sequence[Place], threads: int | None = None
) -> Judged:
    """Classify candidates at given places; those that are not in the observation are not classified.

    Parameters
    ----------
    source : FilterbankPages
    classifier : CandidateClassifier
    places : sequence of Place
        In any order.
    threads : int, optional
        One per core by default.
    """
    cutter = PlaceCutouts(source, threads)
    probabilities = np.full(len(places), NOT_CLASSIFIED, np.float32)
    snrs = np.full(len(places), np.nan, np.float32)
    inside = [number for number, place in enumerate(places) if cutter.is_inside(place)]
    inside.sort(key=lambda number: places[number].time_s)
    for numbers in (inside[first : first + AT_ONCE] for first in range(0, len(inside), AT_ONCE)):
        chosen = [places[number] for number in numbers]
        dm_time, snrs[numbers] = cutter.dm_time(chosen)
        views = cutter.frequency_time(chosen, snrs[numbers]) if classifier.needs_channels else None
        probabilities[numbers] = classifier.probabilities_of(dm_time, views)
    return Judged(probabilities, snrs)
