"""Pages of an observation: read and cleaned once, in chunks, dedispersed and cut, in bounded memory."""

import copy
import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from pipeline_classifier.events import Event
from pipeline_classifier.formats.file_names import output_name
from pipeline_classifier.formats.joined import JoinedFilterbank, open_observation
from pipeline_classifier.frontend import dedispersion
from pipeline_classifier.frontend.blanking import in_float_range
from pipeline_classifier.frontend.chunks import Chunk, context_samples, plan_chunks, schedule
from pipeline_classifier.frontend.cleaning import Cleaned, clean, downsample
from pipeline_classifier.frontend.observation import (
    NOISE_SAMPLES,
    after_downsampling,
    bandpass_changes,
    check_zaplist,
    dead_channels,
    input_warnings,
    unused_bands,
)
from pipeline_classifier.frontend.pages import PageBatch, PageGrid, page_starts
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.frontend.settings import Cleaning, FrontEndSettings
from pipeline_classifier.frontend.sources import Channels, ChannelSource, Cutout, Layer
from pipeline_classifier.frontend.threads import map_in_order, thread_count

logger = logging.getLogger(__name__)

CHANNEL_CONTEXT = 1024
"""Samples on either side of those of `FilterbankPages.channels`, to measure the noise of the channels: that of 2048 is
known to 2 per cent."""
STACK_DMS = 256
"""Largest number of trial DMs in a page; more are divided into stacks that differ by at most one DM, since the network
misses pulses in pages of few DMs."""


class Planes(NamedTuple):
    """A chunk, cleaned and dedispersed.

    Attributes
    ----------
    chunk : Chunk
    good : (nchans,) ndarray of bool
        Channels in use.
    not_finite, constant : int
        Number of values that are not finite or out of range, and in constant stretches.
    sums : list of (n_dm, columns) ndarray
        For each stack the sums over the channels, in the columns of `Chunk.columns`.
    """

    chunk: Chunk
    good: np.ndarray
    not_finite: int
    constant: int
    sums: list[np.ndarray]


class Buffers:
    """Memory for large arrays, which is used again instead of being returned to the system and cleared by it."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
        """Return an array of any content; several threads may call."""
        size = shape[0] * shape[1] * dtype.itemsize
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
        return memory[:size].view(dtype).reshape(shape)

    def give_back(self, array: np.ndarray) -> None:
        """Take back an array that `take` returned."""
        assert array.base is not None
        self._free.append(array.base)

    def clear(self) -> None:
        """Free the memory that is not in use."""
        self._free.clear()


class FilterbankPages(ChannelSource):
    """Pages of an observation.

    The observation is read once, in chunks: every sample is cleaned with the statistics of its chunk. A chunk adds to
    the columns before it too, by as much as its samples are delayed; a page is complete when all chunks that add to it
    are summed. Past the end of a file channels add nothing. Page values are in units of the noise of the sum over the
    channels in use; see `_channels_summed`.

    Parameters
    ----------
    path : path or sequence of paths
        SIGPROC filterbank file, or several that follow each other in time.
    settings : FrontEndSettings
        Trial DMs, cleaning and pages.

    Raises
    ------
    InputError
        If the files cannot be searched with these settings, or not in `FrontEndSettings.max_memory_mb`.
    """

    def __init__(self, path: str | Path | Sequence[str | Path], settings: FrontEndSettings) -> None:
        self.observation = file = open_observation(path, settings.ifs)
        self.cleaning = settings.cleaning
        self.name = output_name(file.path)
        self.files = [part.path for part in file.files] if isinstance(file, JoinedFilterbank) else [file.path]
        self.frequencies, self.tsamp, self.nsamples = after_downsampling(file, self.cleaning)
        for warning in input_warnings(file, self.frequencies, settings):
            logger.warning("%s: %s", file.path, warning)
        check_zaplist(file, self.frequencies, self.cleaning)
        stacks = stacks_of(settings.dms)
        self.plan = plan_chunks(file, stacks, settings)
        self._unused_bands = unused_bands(self.frequencies, dead_channels(file, self.cleaning), self.cleaning.zaplist)
        self._trees = [dedispersion.DedispersionTree(*self._delays(stack, settings)) for stack in stacks]
        self.max_delay = max(tree.max_delay for tree in self._trees)
        self.layers = [
            self._layer(number, stack, factor, settings)
            for number, stack in enumerate(stacks)
            for factor in sorted(settings.time_downsample)
        ]
        self._samples = Buffers()
        self._sums = [Buffers() for _ in stacks]
        self._seams = [math.ceil(end / self.cleaning.td) for end in file.ends[:-1] if bandpass_changes(file, end)]
        self._start_counting()

    def _start_counting(self) -> None:
        self._samples_read = self._channel_samples = self._not_finite = self._constant = 0

    def _delays(self, stack: np.ndarray, settings: FrontEndSettings) -> tuple[np.ndarray, np.ndarray | None]:
        """Delays and quanta of a tree."""
        delays = dedispersion.channel_delays(stack, self.frequencies, self.tsamp)
        return delays, None if settings.exact else dedispersion.delay_quanta(stack, self.frequencies, self.tsamp)

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

    def with_starts(self, *starts: np.ndarray) -> Self:
        """Return a source of other pages of the same observation, made from the same chunks.

        Parameters
        ----------
        *starts : (N,) ndarray of int64
            First columns, ascending, in place of the regular grid of the first layer, of the second one, ...
        """
        source = copy.copy(self)
        source.layers = [replace(layer, starts=other) for layer, other in zip(self.layers, starts, strict=False)]
        source.layers += self.layers[len(starts) :]
        return source

    @property
    def duration_s(self) -> float:
        """Length of the observation in seconds."""
        return self.nsamples * self.tsamp

    def summary(self) -> RunSummary:
        """Return what was read since `planes` was called last."""
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

    def chunk_edges(self) -> np.ndarray:
        """First sample of every chunk, and the end of the file."""
        return self.plan.edges(self.nsamples)

    def planes(self, threads: int | None = None) -> Iterator[PageBatch]:
        """Yield every page; the pages of a layer that a chunk completes are one batch."""
        self._start_counting()
        chunks = schedule(self.chunk_edges(), self.layers, [tree.max_delay for tree in self._trees])
        recent: deque[Planes] = deque()
        for planes in map_in_order(self._dedispersed, chunks, min(thread_count(threads), self.plan.workers)):
            chunk = planes.chunk
            self._samples_read += chunk.end - chunk.start
            self._channel_samples += int(planes.good.sum()) * (chunk.end - chunk.start)
            self._not_finite += planes.not_finite
            self._constant += planes.constant
            for stack, (first, _) in enumerate(chunk.columns):
                if first < chunk.start:
                    planes.sums[stack][:, : chunk.start - first] += recent[-1].sums[stack]
            if recent:
                recent[-1].sums.clear()
            recent.append(planes)
            while recent[0].chunk.end <= chunk.start - self.max_delay:
                recent.popleft()
            yield from self._completed(recent)
            for stack, (first, last) in enumerate(chunk.columns):
                complete = min(chunk.incomplete[stack], last) - first
                planes.sums[stack] = self._without(complete, planes.sums[stack], stack)
        self.release()

    def _without(self, complete: int, sums: np.ndarray, stack: int) -> np.ndarray:
        """Copy the columns from ``complete`` on; the memory of all columns is used again."""
        incomplete = sums[:, complete:].copy()
        self._sums[stack].give_back(sums)
        return incomplete

    def _dedispersed(self, chunk: Chunk) -> Planes:
        """Read, clean and dedisperse the samples of one chunk."""
        n = chunk.end - chunk.start
        data = self._samples.take((len(self.frequencies), n), np.dtype(np.int8))
        cleaned = self.cleaned(chunk.start, n, data)
        sums = []
        for tree, buffers, (first, last) in zip(self._trees, self._sums, chunk.columns, strict=True):
            plane = buffers.take((len(tree.delays), last - first), dedispersion.accumulator_dtype(len(data)))
            plane[:] = 0
            if plane.size:
                tree.add(data, plane, chunk.start - first)
            sums.append(plane)
        self._samples.give_back(data)
        return Planes(chunk, cleaned.good, int(cleaned.not_finite.sum()), int(cleaned.constant.sum()), sums)

    def _completed(self, recent: Sequence[Planes]) -> Iterator[PageBatch]:
        """Yield the pages that the last of the recent chunks completes."""
        chunk, sums = recent[-1].chunk, recent[-1].sums
        for number, (layer, (first, last)) in enumerate(zip(self.layers, chunk.pages, strict=True)):
            if first == last:
                continue
            stack, factor, starts = layer.dm_stack, layer.time_downsample, layer.starts[first:last]
            begin, end = (int(place) * factor - chunk.columns[stack][0] for place in starts[[0, -1]])
            columns = sums[stack][:, begin : end + layer.grid.n_time * factor]
            noise = dedispersion.LEVELS_PER_SIGMA * math.sqrt(factor * max(1.0, self._channels_summed(recent, stack)))
            yield self._batch(columns, factor, starts - starts[0], starts, layer.grid.n_time, first, number, 1 / noise)

    def _batch(self, columns: np.ndarray, factor: int, *meaning: Any) -> PageBatch:
        """Put a copy of the columns, of which ``factor`` are summed to one, into a batch of pages."""
        plane = columns.copy() if factor == 1 else columns
        for _ in range(factor.bit_length() - 1):
            plane = add_neighbours(plane)
        return PageBatch(plane, *meaning)

    def _channels_summed(self, recent: Sequence[Planes], stack: int) -> float:
        """Mean number of channels in use in the columns that the last of the recent chunks completes.

        Columns sum samples of several chunks, whose channels in use differ. Those that the middle trial DM of the stack
        sums are counted, at each column and channel in the chunk that holds the delayed sample. Past the end of the
        observation the channels of the last chunk count, so that the scale of pages does not follow the fading noise.
        """
        tree, chunk = self._trees[stack], recent[-1].chunk
        delays = tree.delays[len(tree.delays) // 2]
        is_last = chunk.end == self.nsamples
        start, stop = chunk.start - tree.max_delay, chunk.end - (0 if is_last else tree.max_delay)
        used = 0
        for planes in recent:
            first = planes.chunk.start if planes.chunk.number else start
            last = stop + tree.max_delay if planes.chunk.end == self.nsamples else planes.chunk.end
            inside = np.minimum(stop + delays, last) - np.maximum(start + delays, first)
            used += int(np.maximum(inside, 0) @ planes.good)
        return used / (stop - start)

    def release(self) -> None:
        """Free the memory of the dedispersion; the next pages allocate it again."""
        for memory in (self._samples, *self._sums):
            memory.clear()
        for tree in self._trees:
            tree.release()

    def cleaned(self, start: int, n: int, out: np.ndarray | None = None, cleaning: Cleaning | None = None) -> Cleaned:
        """Read and clean samples; where files with different bandpasses were joined, each with its own statistics.

        The baseline is a running mean, so half of its window is read on either side, and more of a short piece. Without
        it, pulses of a twentieth of the window lose a third of their S/N at the edge of a chunk.

        Parameters
        ----------
        start, n : int
            First sample and number of samples, after `Cleaning.td`.
        out : (nchans, >= n) ndarray of int8, optional
            Gets the samples as `dedispersion.quantise` rounds them.
        cleaning : Cleaning, optional
            In place of the settings of the source.
        """
        cleaning = cleaning or self.cleaning
        stop = min(start + n, self.nsamples)
        if out is None:
            out = np.empty((len(self.frequencies), stop - start), dtype=np.float32)
        out[:, stop - start :] = 0
        good = np.zeros(len(self.frequencies), dtype=bool)
        counts = []
        for begin, finish, read_from, read_to in self._pieces(start, stop, cleaning):
            is_whole = (read_from, read_to) == (start, stop)
            memory = out if is_whole else np.empty((len(out), read_to - read_from), dtype=out.dtype)
            part = clean(self._read(read_from, read_to), self.frequencies, self.tsamp, cleaning, memory)
            chosen = slice(begin - read_from, finish - read_from)
            if not is_whole:
                out[:, begin - start : finish - start] = memory[:, chosen]
            good |= part.good
            counts.append((part.not_finite[chosen], part.constant[chosen]))
        return Cleaned(out, good, *(np.concatenate(column) for column in zip(*counts, strict=True)))

    def _pieces(self, start: int, stop: int, cleaning: Cleaning) -> list[tuple[int, int, int, int]]:
        """Pieces of one bandpass: first sample and end, and those of the samples that are read for them."""
        pieces = [
            (max(start, first), min(stop, end), first, end)
            for first, end in pairwise([0, *self._seams, self.nsamples])
            if max(start, first) < min(stop, end)
        ]
        read = []
        for begin, finish, first, end in pieces:
            context = context_samples(cleaning, self.tsamp)
            context = max(context, 2 * NOISE_SAMPLES - (finish - begin)) if len(pieces) > 1 else context
            read.append((begin, finish, max(first, begin - context), min(end, finish + context)))
        return read

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Read samples (n, nchans), averaged as `Cleaning.td` and `Cleaning.fd` ask for."""
        file, settings = self.observation, self.cleaning
        block = file.read(start * settings.td, (stop - start) * settings.td)
        if settings.td * settings.fd > 1:  # their sums must not overflow; `clean` scales single samples itself
            block, _ = in_float_range(block)
        return downsample(block, file.frequencies, file.tsamp, settings.td, settings.fd)[0]

    def channels(self, start: int, n: int) -> Channels:
        """Read and clean samples, without zero-DM regression and with the statistics of a second about them."""
        first, stop = max(0, start - CHANNEL_CONTEXT), min(self.nsamples, start + n + CHANNEL_CONTEXT)
        settings = replace(self.cleaning, zero_dm=None, baseline_window_s=0.0)
        data, good, _, _ = self.cleaned(first, stop - first, cleaning=settings)
        return Channels(data[:, start - first : start - first + n], good)

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


def pages_of(path: str | Path | Sequence[str | Path], settings: FrontEndSettings) -> FilterbankPages:
    """Return the pages of an observation, which are made and searched on the device that the settings name."""
    if settings.device == "cpu":
        return FilterbankPages(path, settings)
    from pipeline_classifier.frontend.gpu.device_pages import DevicePages
    from single_pulse_classifier_training.runtime import choose_device

    return DevicePages(path, settings, choose_device(settings.device))


def stacks_of(dms: np.ndarray) -> list[np.ndarray]:
    """Divide trial DMs into the fewest stacks of at most `STACK_DMS`."""
    return np.array_split(np.asarray(dms), -(-len(dms) // STACK_DMS))


def add_neighbours(columns: np.ndarray) -> np.ndarray:
    """Sum neighbouring columns of an integer (n_dm, n) in pairs, int32; a last odd column is dropped."""
    n = columns.shape[1] // 2 * 2
    return np.add(columns[:, :n:2], columns[:, 1:n:2], dtype=np.int32)
