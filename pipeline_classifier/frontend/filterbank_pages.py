"""Pages of an observation: read in blocks, cleaned, dedispersed and cut, in bounded memory."""

import copy
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.events import Event
from pipeline_classifier.formats.file_names import output_name
from pipeline_classifier.formats.joined import JoinedFilterbank, open_observation
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend import dedispersion
from pipeline_classifier.frontend.baseline import bin_sums
from pipeline_classifier.frontend.blanking import in_float_range
from pipeline_classifier.frontend.cleaning import FEWEST_SAMPLES, Cleaned, clean, downsample, zapped
from pipeline_classifier.frontend.impulses import runs_of
from pipeline_classifier.frontend.pages import PageBatch, PageGrid, page_starts
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.frontend.settings import Cleaning, FrontEndSettings
from pipeline_classifier.frontend.sources import Cutout, Layer, Source
from pipeline_classifier.frontend.threads import map_in_order
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 64 << 20
"""Largest size of a cleaned block as float32, unless the dispersion sweep alone is longer."""
NOISE_SAMPLES = 4096
"""Samples read on either side of a cutout, or of a short part of a file, to measure the noise of its channels."""
BANDPASS_CHANGE, GAIN_CHANGE = 0.3, 1.0
"""Scatter over the channels, and median, of the step of their means where two files were joined, in sigma: above
either, each file has statistics of its own. The noise of `NOISE_SAMPLES` samples gives a scatter of 0.02. Chosen by
hand."""
STACK_DMS = 256
"""Largest number of trial DMs in a page; more are divided into stacks that differ by at most one DM, since the network
misses pulses in pages of few DMs."""
FEWEST_DMS = 32
"""Smallest number of trial DMs with which the included models find as many pulses as with 256. Of 100 simulated pulses
(S/N 7 to 30, DM 54 to 58, mild interference) they found 99 with 32 to 512 trial DMs in steps of 0.5, but 60 with 16 and
32 with 8; with other steps, from 1024 times 0.125 to 64 times 2, they found 99 or 100."""
LARGEST_SWEEP_BYTES = 8 << 30
STRETCHES, STRETCH_SAMPLES = 4, 512
"""Parts of a file in all of which a channel must be constant or not finite to count as dead. Chosen by hand."""


@dataclass(frozen=True)
class Block:
    """Samples ``start`` to ``end`` of an observation, and the pages that begin in them.

    Attributes
    ----------
    start, end : int
        First sample and the one after the last.
    pages : tuple of (first, last)
        For each layer the number of the first page and that after the last one.
    """

    start: int
    end: int
    pages: tuple[tuple[int, int], ...]


class FilterbankPages(Source):
    """Pages of an observation.

    Each block is read with the samples past its end that its pages and the largest delay need; past the end of a file
    channels add nothing. Blocks do not depend on each other, so threads can share them. Page values are in units of the
    noise of the sum over the channels in use.

    Parameters
    ----------
    path : path or sequence of paths
        SIGPROC filterbank file, or several that follow each other in time.
    settings : FrontEndSettings
        Trial DMs, cleaning and pages.
    """

    def __init__(self, path: str | Path | Sequence[str | Path], settings: FrontEndSettings) -> None:
        self.observation = file = open_observation(path, settings.ifs)
        self.cleaning = settings.cleaning
        self.name = output_name(file.path)
        self.files = [part.path for part in file.files] if isinstance(file, JoinedFilterbank) else [file.path]
        self.frequencies, self.tsamp, self.nsamples = after_downsampling(file, self.cleaning)
        for warning in input_warnings(file, self.frequencies, settings):
            logger.warning("%s: %s", file.path, warning)
        sweep = float(dispersion_delay(np.max(settings.dms), self.frequencies[-1], self.frequencies[0]) / self.tsamp)
        check_band(file, self.frequencies, sweep, settings)
        self._unused_bands = unused_bands(self.frequencies, dead_channels(file, self.cleaning), self.cleaning.zaplist)
        coarsest = max(settings.time_downsample)
        longest_page = settings.n_time * coarsest
        length = block_length(settings.block_samples, len(self.frequencies), math.ceil(sweep), longest_page)
        self._block_length = length - length % coarsest
        stacks = np.array_split(np.asarray(settings.dms), -(-len(settings.dms) // STACK_DMS))
        self._trees = [self._tree(stack, settings) for stack in stacks]
        self.max_delay = max(tree.max_delay for tree in self._trees)
        self.layers = [
            self._layer(number, stack, factor, settings)
            for number, stack in enumerate(stacks)
            for factor in sorted(settings.time_downsample)
        ]
        self._seams = [math.ceil(end / self.cleaning.td) for end in file.ends[:-1] if bandpass_changes(file, end)]
        self._lock = threading.Lock()
        self._start_counting()

    def _start_counting(self) -> None:
        self._samples_read = self._channel_samples = self._not_finite = self._constant = 0

    def _tree(self, stack: np.ndarray, settings: FrontEndSettings) -> dedispersion.DedispersionTree:
        return dedispersion.DedispersionTree(
            dedispersion.channel_delays(stack, self.frequencies, self.tsamp),
            None if settings.exact else dedispersion.delay_quanta(stack, self.frequencies, self.tsamp),
        )

    def _layer(self, number: int, stack: np.ndarray, factor: int, settings: FrontEndSettings) -> Layer:
        grid = PageGrid(
            stack,
            settings.n_time,
            self.tsamp * factor,
            self.observation.tstart,
            self.frequencies[0],
            self.frequencies[-1],
            self._unused_bands,
            nchans=len(self.frequencies),
            noise=1.0,
        )
        return Layer(grid, page_starts(-(-self.nsamples // factor), settings.n_time, settings.overlap), factor, number)

    def with_starts(self, starts: np.ndarray) -> Self:
        """Return a source of other pages of the same observation.

        Parameters
        ----------
        starts : (N,) ndarray of int64
            First samples, ascending, in place of the regular grid of the first layer.
        """
        source = copy.copy(self)
        source.layers = [replace(self.layers[0], starts=starts), *self.layers[1:]]
        return source

    @property
    def duration_s(self) -> float:
        """Length of the observation in seconds."""
        return self.nsamples * self.tsamp

    def summary(self) -> RunSummary:
        """Return what was read since `blocks` was called last."""
        return RunSummary(
            samples=self.nsamples,
            samples_read=self._samples_read,
            channels=len(self.frequencies),
            channels_used=self._channel_samples / max(1, self._samples_read),
            values_not_finite=self._not_finite or None,
            values_constant=self._constant or None,
            bytes_left_over=self.observation.bytes_left_over,
            samples_swept_past_end=min(self.max_delay, self.nsamples),
        )

    def block_edges(self) -> np.ndarray:
        """First sample of every block, and the end of the file; no block is shorter than half of the others."""
        last = max(1, self.nsamples - self._block_length // 2)
        return np.append(np.arange(0, last, self._block_length), self.nsamples)

    def planes(self, threads: int | None = None) -> Iterator[PageBatch]:
        """Yield every page."""
        for batches in map_in_order(self._planes_of, self._blocks(), threads):
            yield from batches

    def _blocks(self) -> Iterator[Block]:
        """Yield the blocks in which pages begin, in order; the summary starts anew."""
        self._start_counting()
        edges = self.block_edges()
        # A page begins in the block that holds its first column; the last one may be shorter than its columns.
        places = [np.searchsorted(layer.starts * layer.time_downsample, edges[:-1]) for layer in self.layers]
        places = [np.append(place, len(layer.starts)) for place, layer in zip(places, self.layers, strict=True)]
        for number, (start, end) in enumerate(pairwise(edges)):
            pages = tuple((int(place[number]), int(place[number + 1])) for place in places)
            if any(last > first for first, last in pages):
                yield Block(int(start), int(end), pages)

    def _planes_of(self, block: Block) -> list[PageBatch]:
        """Return the pages of a block, all of a layer in one batch."""
        samples = block.end - block.start + max(layer.grid.n_time * layer.time_downsample for layer in self.layers)
        integers = np.empty((len(self.frequencies), samples + self.max_delay), np.int8)
        _, good, not_finite, constant = self.cleaned(block.start, samples + self.max_delay, integers)
        noise = dedispersion.LEVELS_PER_SIGMA * np.sqrt(max(1, good.sum()))
        batches = []
        for number, layer in enumerate(self.layers):
            if layer.time_downsample == self.layers[0].time_downsample:
                columns, factor = self._trees[layer.dm_stack](integers, samples), 1
            while factor < layer.time_downsample:
                columns, factor = add_neighbours(columns), 2 * factor
            first, last = block.pages[number]
            if first < last:
                where = layer.starts[first:last] - block.start // factor
                scale = 1.0 / (noise * np.sqrt(factor))
                batches.append(PageBatch(columns, where, layer.starts[first:last], layer.grid.n_time, first, number, scale))
        n = block.end - block.start
        with self._lock:
            self._samples_read += n
            self._channel_samples += int(good.sum()) * n
            self._not_finite += int(not_finite[:n].sum())
            self._constant += int(constant[:n].sum())
        return batches

    def release(self) -> None:
        """Free the memory of the dedispersion; the next pages allocate it again."""
        for tree in self._trees:
            tree.release()

    def cleaned(self, start: int, n: int, out: np.ndarray | None = None) -> Cleaned:
        """Read and clean samples; where files with different bandpasses were joined, each with its own statistics.

        Parameters
        ----------
        start, n : int
            First sample and number of samples, after `Cleaning.td`.
        out : (nchans, >= n) ndarray of int8, optional
            Gets the samples as `dedispersion.quantise` rounds them.
        """
        stop = min(start + n, self.nsamples)
        pieces = [
            (max(start, first), min(stop, end), first, end)
            for first, end in pairwise([0, *self._seams, self.nsamples])
            if max(start, first) < min(stop, end)
        ]
        if len(pieces) <= 1:
            return self._clean(start, n, out)
        if out is None:
            out = np.empty((len(self.frequencies), stop - start), dtype=np.float32)
        out[:, stop - start :] = 0
        good = np.zeros(len(self.frequencies), dtype=bool)
        counts = []
        for begin, finish, first, end in pieces:
            read_from = max(first, begin - max(0, 2 * NOISE_SAMPLES - (finish - begin)))
            read_to = min(end, max(finish, read_from + 2 * NOISE_SAMPLES))
            whole = np.empty((len(out), read_to - read_from), dtype=out.dtype)
            part = self._clean(read_from, read_to - read_from, whole)
            chosen = slice(begin - read_from, finish - read_from)
            out[:, begin - start : finish - start] = whole[:, chosen]
            good |= part.good
            counts.append((part.not_finite[chosen], part.constant[chosen]))
        return Cleaned(out, good, *(np.concatenate(column) for column in zip(*counts, strict=True)))

    def _clean(self, start: int, n: int, out: np.ndarray | None) -> Cleaned:
        """Read and clean samples with common statistics."""
        file, settings = self.observation, self.cleaning
        block = file.read(start * settings.td, n * settings.td)
        if settings.td * settings.fd > 1:  # their sums must not overflow; `clean` scales single samples itself
            block, _ = in_float_range(block)
        block, frequencies, tsamp = downsample(block, file.frequencies, file.tsamp, settings.td, settings.fd)
        return clean(block, frequencies, tsamp, settings, out)

    def cutout(self, event: Event) -> Cutout:
        """Read, clean and dedisperse the surroundings of an event again: at least a page's length about its centre."""
        centre = int(event.time_s / self.tsamp)
        half = max(self.grid.n_time // 2, 3 * round(event.width_ms / 1e3 / self.tsamp))
        start, end = max(0, centre - half), min(self.nsamples, centre + half)
        read_from = max(0, start - NOISE_SAMPLES)
        data, good, _, _ = self.cleaned(read_from, end + self.max_delay - read_from + NOISE_SAMPLES)
        data = np.pad(data, ((0, 0), (0, max(0, end + self.max_delay - read_from - data.shape[1]))))
        data = data[:, start - read_from :]
        delays = dedispersion.delays_in_samples(np.array([event.dm_pc_cm3]), self.frequencies, self.tsamp)[0]
        spectrum = np.stack([row[delay : delay + end - start] for row, delay in zip(data, delays, strict=True)])
        spectrum[~good] = np.nan
        integers = dedispersion.quantise(data, len(data), np.empty(data.shape, np.int8))
        plane = self._trees[event.dm_stack](integers, end - start)
        noise = dedispersion.LEVELS_PER_SIGMA * np.sqrt(max(1, good.sum()))
        dms = next(layer.grid.dms for layer in self.layers if layer.dm_stack == event.dm_stack)
        return Cutout(start - centre, dms, (plane / noise).astype(np.float32), spectrum, self.frequencies)


def input_warnings(
    file: Filterbank | JoinedFilterbank, frequencies: np.ndarray, settings: FrontEndSettings
) -> list[str]:
    """Return what may be wrong with a header or with settings for it; ``frequencies`` as for `check_band`."""
    warnings = file.header.warnings() + [
        f"the zaplist band {low:g} to {high:g} MHz contains the centre of no channel"
        for low, high in settings.cleaning.zaplist
        if not zapped(frequencies, ((low, high),)).any()
    ]
    if len(settings.dms) < FEWEST_DMS:
        warnings.append(f"with fewer than {FEWEST_DMS} trial DMs pulses are missed, and there are {len(settings.dms)}")
    duration_s = file.nsamples // settings.cleaning.td * settings.cleaning.td * file.tsamp
    sweeps_s = dispersion_delay(np.asarray(settings.dms), frequencies[-1], frequencies[0])
    if (beyond := sweeps_s > duration_s).any():
        dm = np.asarray(settings.dms)[beyond][0]
        warnings.append(f"from DM {dm:g} on, the sweep is longer than the observation")
    return warnings


def bandpass_changes(file: Filterbank | JoinedFilterbank, sample: int) -> bool:
    """Decide whether the levels of the channels differ before and after a sample, the first one of another file."""
    start = max(0, sample - NOISE_SAMPLES)
    sides = [file.read(start, sample - start), file.read(sample, NOISE_SAMPLES)]
    if min(len(side) for side in sides) < FEWEST_SAMPLES:
        return False
    factor = in_float_range(sides[0])[1]
    before, after = (bin_sums(side * side.dtype.type(factor)) for side in sides)
    used = before.level > 0
    step = after.centre + after.means.mean(axis=0) - before.centre - before.means.mean(axis=0)
    steps = step[used] / before.level[used]
    if not len(steps):
        return False
    common = float(np.median(steps))
    return abs(common) > GAIN_CHANGE or 1.4826 * float(np.median(np.abs(steps - common))) > BANDPASS_CHANGE


def dead_channels(file: Filterbank | JoinedFilterbank, cleaning: Cleaning) -> np.ndarray:
    """Find the channels (nchans // fd,) that are constant or not finite in `STRETCHES` parts of an observation."""
    dead = np.full(file.nchans // cleaning.fd, file.nsamples >= STRETCH_SAMPLES)
    for start in np.linspace(0, max(0, file.nsamples - STRETCH_SAMPLES), STRETCHES).astype(int).tolist():
        block, _ = in_float_range(file.read(start, STRETCH_SAMPLES))
        block, _, _ = downsample(block, file.frequencies, file.tsamp, 1, cleaning.fd)
        dead &= ~(np.fmax.reduce(block) > np.fmin.reduce(block))
    return dead


def unused_bands(
    frequencies: np.ndarray, dead: np.ndarray, zaplist: tuple[tuple[float, float], ...]
) -> tuple[tuple[float, float], ...]:
    """Return the zaplist, and bands [low, high] in MHz of adjacent unused channels that no band of it contains.

    These bands of dead channels, or of channels that the zaplist names one by one, reach to the centres of the next
    channels in use.

    Parameters
    ----------
    frequencies : (nchans,) ndarray
        Channel centres in MHz, highest first.
    dead : (nchans,) ndarray of bool
    zaplist : tuple of (low, high)
    """
    unused = dead | zapped(frequencies, zaplist)
    if unused.all():
        return zaplist
    bands = []
    for first, end in runs_of(unused).tolist():
        width = float(frequencies[0] - frequencies[1])
        low, high = float(frequencies[end - 1]), float(frequencies[first])
        if not any(zapped_low <= low and high <= zapped_high for zapped_low, zapped_high in zaplist):
            bands.append((low - width, high + width))
    return (*zaplist, *bands)


def check_band(
    file: Filterbank | JoinedFilterbank, frequencies: np.ndarray, sweep: float, settings: FrontEndSettings
) -> None:
    """Raise InputError if the zaplist removes every channel, or the highest trial DM has too long a sweep (samples)."""
    if zapped(frequencies, settings.cleaning.zaplist).all():
        raise InputError(
            f"{file.path}: the zaplist must leave at least one of its {len(frequencies)} channels, "
            f"got {list(settings.cleaning.zaplist)}"
        )
    if not sweep * len(frequencies) * 4 < LARGEST_SWEEP_BYTES:
        raise InputError(
            f"{file.path}: the sweep of the highest trial DM must be below "
            f"{LARGEST_SWEEP_BYTES / 4 / len(frequencies):.3g} samples, got {sweep:.3g} for DM {np.max(settings.dms):g}"
        )


def after_downsampling(file: Filterbank | JoinedFilterbank, cleaning: Cleaning) -> tuple[np.ndarray, float, int]:
    """Return frequencies, sampling time and length of an observation averaged by `Cleaning.td` and `Cleaning.fd`.

    Returns
    -------
    frequencies : (nchans // fd,) ndarray
        MHz.
    tsamp : float
        Seconds.
    nsamples : int

    Raises
    ------
    InputError
        If the observation is shorter than one sample of the search, or has fewer channels than one of the search.
    """
    nsamples = file.nsamples // cleaning.td
    if not nsamples:
        raise InputError(f"{file.path}: must have at least {cleaning.td} samples (td), got {file.nsamples}")
    if cleaning.fd > file.nchans:
        raise InputError(f"{file.path}: must have at least {cleaning.fd} channels (fd), got {file.nchans}")
    nothing = np.empty((0, file.nchans), file.header.dtype)
    _, frequencies, tsamp = downsample(nothing, file.frequencies, file.tsamp, cleaning.td, cleaning.fd)
    return frequencies, tsamp, nsamples


def block_length(block_samples: int, nchans: int, max_delay: int, longest_page: int) -> int:
    """Samples in a block; with the largest delay a block has at most `BLOCK_BYTES`, or is as long as that delay."""
    space = BLOCK_BYTES // (4 * nchans) - max_delay
    return max(min(block_samples, space), max_delay, 2048, longest_page)


def add_neighbours(columns: np.ndarray) -> np.ndarray:
    """Sum neighbouring columns of an integer (n_dm, n) in pairs, int32; a last odd column is dropped."""
    n = columns.shape[1] // 2 * 2
    return np.add(columns[:, :n:2], columns[:, 1:n:2], dtype=np.int32)
