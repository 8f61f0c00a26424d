"""Chunks in which an observation is read once: their length, from the memory allowed, and the pages they complete."""

import math
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.formats.joined import JoinedFilterbank
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend.dedispersion import accumulator_dtype
from pipeline_classifier.frontend.observation import after_downsampling
from pipeline_classifier.frontend.settings import Cleaning, FrontEndSettings
from pipeline_classifier.frontend.sources import Layer
from single_pulse_classifier_training.cli import InputError

PROGRAM_MB = 480
"""Resident memory of a search of very few samples, in MiB, with a CPU build of torch."""
DEFAULT_MAX_MEMORY_MB = 2048
"""Memory that a search uses if the config does not limit it, unless a quarter of the machine's is less."""
SHORTEST_CHUNK, SHORTEST_WINDOWS = 2048, 2
"""Samples, and lengths of the running mean of the baseline, in the shortest chunk. Chosen by hand."""
LONGEST_SWEEP = 1 << 31
"""Samples that delays may have; beyond, the header or the trial DMs are wrong."""
CLEANING_BYTES = 1
"""Bytes of statistics for each sample while a chunk is cleaned, besides the samples before and after."""


@dataclass(frozen=True)
class ChunkPlan:
    """Length of the chunks of an observation, and what a search needs for them.

    Attributes
    ----------
    length : int
        Samples in a chunk.
    workers : int
        Largest number of chunks that may be processed at the same time.
    bytes_each, bytes_shared : float
        Memory for each worker, and in addition.
    """

    length: int
    workers: int
    bytes_each: float
    bytes_shared: float

    def memory_bytes(self, workers: int) -> int:
        """Memory of the whole process with so many workers."""
        return int((PROGRAM_MB << 20) + self.bytes_shared + min(workers, self.workers) * self.bytes_each)

    def edges(self, nsamples: int) -> np.ndarray:
        """First sample of every chunk, and the end of the file; no chunk is shorter than half of the others."""
        last = max(1, nsamples - self.length // 2)
        return np.append(np.arange(0, last, self.length), nsamples)


def plan_chunks(
    file: Filterbank | JoinedFilterbank,
    stacks: Sequence[np.ndarray],
    settings: FrontEndSettings,
) -> ChunkPlan:
    """Choose the length of the chunks such that a search keeps within `FrontEndSettings.max_memory_mb`.

    The length does not depend on the number of threads, as the statistics of the cleaning, and thus the pages, would.
    It is the longest with which four chunks at a time fit into the memory, but with fewer at a time it is at least a
    quarter of the longest sweep, since every chunk adds to as many columns more than it has samples.

    Parameters
    ----------
    file : Filterbank or JoinedFilterbank
    stacks : sequence of (n_dm,) ndarray
        Trial DMs of each stack.
    settings : FrontEndSettings

    Raises
    ------
    InputError
        If the shortest chunk does not fit.
    """
    largest_mb = settings.max_memory_mb or default_max_memory_mb()
    frequencies, tsamp, nsamples = after_downsampling(file, settings.cleaning)
    longest = min(settings.block_samples, nsamples)
    sweep = float(dispersion_delay(np.max(settings.dms), frequencies[-1], frequencies[0]) / tsamp)
    if not sweep < LONGEST_SWEEP:
        raise InputError(
            f"{file.path}: the sweep of the highest trial DM must be below {LONGEST_SWEEP:.3g} samples, "
            f"got {sweep:.3g} for DM {np.max(settings.dms):g}"
        )
    window = SHORTEST_WINDOWS * settings.cleaning.baseline_window_s / tsamp
    shortest = min(longest, max(SHORTEST_CHUNK, math.ceil(window)))
    efficient = min(longest, max(shortest, min(sweep, nsamples) / 4))
    available = (largest_mb - PROGRAM_MB) * 2**20

    def bytes_needed(length: int, workers: int = 1) -> float:
        own, shared = _bytes_needed(file, stacks, frequencies, tsamp, settings, length)
        return shared + workers * own

    if bytes_needed(shortest) > available:
        raise InputError(
            f"{file.path}: max_memory_mb must be at least {PROGRAM_MB + math.ceil(bytes_needed(shortest) / 2**20)} for "
            f"{len(settings.dms)} trial DMs to {np.max(settings.dms):g}, got {largest_mb:g}"
        )
    for workers in (4, 2, 1):
        length = bisect_right(range(longest), available, key=lambda n: bytes_needed(n + 1, workers))
        if length >= efficient:
            break
    own, shared = _bytes_needed(file, stacks, frequencies, tsamp, settings, length)
    return ChunkPlan(length, int((available - shared) // own), own, shared)


def default_max_memory_mb() -> float:
    """A quarter of the machine's memory, at most `DEFAULT_MAX_MEMORY_MB`."""
    return min(DEFAULT_MAX_MEMORY_MB, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**22)


def context_samples(cleaning: Cleaning, tsamp: float) -> int:
    """Samples read on either side of a chunk: half of the window of the running baseline."""
    return math.ceil(cleaning.baseline_window_s / tsamp / 2)


def _bytes_needed(
    file: Filterbank | JoinedFilterbank,
    stacks: Sequence[np.ndarray],
    frequencies: np.ndarray,
    tsamp: float,
    settings: FrontEndSettings,
    length: int,
) -> tuple[float, float]:
    """Memory that each worker needs for chunks of ``length`` samples, and that of all planes and pages between them."""
    header, cleaning, nchans = file.header, settings.cleaning, len(frequencies)
    is_summed, is_averaged = header.nifs > 1 and file.ifs == "sum", cleaning.td * cleaning.fd > 1
    value = (2 if header.nbits <= 8 else 4) if is_summed else header.dtype.itemsize
    spectrum = cleaning.td * file.nchans * value
    reading = cleaning.td * file.nchans * header.nifs * header.dtype.itemsize
    reading += spectrum if header.nifs > 1 or header.ascending or is_averaged else 0
    in_cleaning = (4 * nchans if is_averaged else spectrum) + (1 + CLEANING_BYTES) * nchans

    longest_page = settings.n_time * max(settings.time_downsample)
    itemsize = accumulator_dtype(nchans).itemsize
    last_sample = file.nsamples // cleaning.td
    sweeps = [dispersion_delay(stack[-1], frequencies[-1], frequencies[0]) / tsamp for stack in stacks]
    tails = itemsize * sum(
        len(stack) * (min(float(sweep), last_sample) + longest_page)
        for stack, sweep in zip(stacks, sweeps, strict=True)
    )
    planes = tails + itemsize * len(settings.dms) * length
    pages = itemsize * max(map(len, stacks)) * (length + longest_page) * len(settings.time_downsample)
    cleaned = length + 2 * context_samples(cleaning, tsamp)
    own = max(reading * cleaned, in_cleaning * cleaned, nchans * length + planes) + pages
    # A chunk is added to the incomplete columns before it while another waits; detection keeps the pages of two chunks.
    return own, 2 * planes + tails + 2 * pages * len(stacks)


@dataclass(frozen=True)
class Chunk:
    """Samples ``start`` to ``end`` of an observation, and what they complete.

    Attributes
    ----------
    number, start, end : int
        Place among the chunks, first sample and the one after the last.
    columns : tuple of (first, last)
        For each stack of trial DMs the columns, in samples of the observation, to which the chunk adds and that are
        needed for pages. They begin with those of the first page that is not complete before this chunk.
    incomplete : tuple of int
        For each stack the first of its columns to which later chunks add, or any number past its columns.
    pages : tuple of (first, last)
        For each layer the number of the first page that is complete with this chunk, and that after the last one.
    """

    number: int
    start: int
    end: int
    columns: tuple[tuple[int, int], ...]
    incomplete: tuple[int, ...]
    pages: tuple[tuple[int, int], ...]


def schedule(edges: np.ndarray, layers: Sequence[Layer], max_delays: Sequence[int]) -> Iterator[Chunk]:
    """Yield the chunks that are needed for the pages of all layers, in order.

    A page is complete with the chunk that holds the last sample that may be delayed into it, or with the last chunk.
    Of a chunk with complete pages all chunks before it are needed that add to the columns that it completes, since
    the noise of the pages follows from their channels in use.

    Parameters
    ----------
    edges : (n + 1,) ndarray of int
        First sample of every chunk, and the end of the observation.
    layers : sequence of Layer
    max_delays : sequence of int
        Largest delay of each stack in samples.
    """
    starts, ends = edges[:-1], edges[1:]
    n = len(starts)
    last_columns = np.full((len(max_delays), n), ends)
    pending = np.full((len(max_delays), n + 1), np.iinfo(np.int64).max)
    done = np.zeros((len(layers), n + 1), np.int64)
    for layer, complete in zip(layers, done, strict=True):
        first_samples = layer.starts * layer.time_downsample
        page_ends = first_samples + layer.grid.n_time * layer.time_downsample
        complete[1:] = np.searchsorted(page_ends, ends - max_delays[layer.dm_stack], side="right")
        complete[-1] = len(page_ends)
        next_page = np.append(first_samples, np.iinfo(np.int64).max)[complete]
        pending[layer.dm_stack] = np.minimum(pending[layer.dm_stack], next_page)
        last_columns[layer.dm_stack, -1] = max([last_columns[layer.dm_stack, -1], *page_ends[-1:]])
    first_columns = np.minimum(pending[:, :-1], last_columns)

    needed = np.any(first_columns < last_columns, axis=0)
    for number in np.flatnonzero((np.diff(done) > 0).any(axis=0)).tolist():
        needed[np.searchsorted(ends, starts[number] - max(max_delays), side="right") : number] = True
    for number in np.flatnonzero(needed).tolist():
        columns = zip(first_columns[:, number].tolist(), last_columns[:, number].tolist(), strict=True)
        pages = zip(done[:, number].tolist(), done[:, number + 1].tolist(), strict=True)
        incomplete = tuple(pending[:, number + 1].tolist())
        yield Chunk(number, int(starts[number]), int(ends[number]), tuple(columns), incomplete, tuple(pages))
