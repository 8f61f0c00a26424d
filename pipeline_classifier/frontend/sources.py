"""Where pages come from: a source has ``name``, ``layers``, ``account``, ``blocks()``, ``pages()``, ``cutout()``."""

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.events import Event
from pipeline_classifier.formats.joined import JoinedFilterbank
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend import dedispersion
from pipeline_classifier.frontend.cleaning import clean, downsample, zapped
from pipeline_classifier.frontend.pages import PageBatch, PageGrid, cut_pages, page_starts
from pipeline_classifier.frontend.settings import BLOCK_SAMPLES, Cleaning
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 64 << 20  # most float32 bytes of one cleaned block, unless the dispersion sweep alone is longer
NOISE_SAMPLES = 4096  # about a cutout, for the noise of its channels
STACK_DMS = 256
PAGES_PER_BLOCK = 128
LARGEST_SWEEP_BYTES = 8 << 30


@dataclass(frozen=True)
class Layer:
    """The pages of one stack of trial DMs at one time resolution.

    Attributes
    ----------
    grid : what their rows and columns mean
    starts : (N,) first column of each page, in samples of ``grid.tsamp``, ascending
    time_downsample : samples of the observation in one column
    dm_stack : number of the stack, 0 for the lowest DMs
    """

    grid: PageGrid
    starts: np.ndarray
    time_downsample: int = 1
    dm_stack: int = 0

    @property
    def suffix(self) -> str:
        """What tells the files of this layer from those of the first one."""
        stack = f"_dms{self.dm_stack}" if self.dm_stack else ""
        return stack + (f"_x{self.time_downsample}" if self.time_downsample > 1 else "")


@dataclass(frozen=True)
class Block:
    """Samples ``start`` to ``end`` of an observation, and the pages that begin in them.

    ``pages`` holds the first page and the last + 1, for each layer.
    """

    start: int
    end: int
    pages: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Cutout:
    """The surroundings of an event.

    Attributes
    ----------
    start : sample of column 0, relative to the centre of the event
    dms : (n_dm,) pc cm^-3, trial DMs of the plane
    plane : (n_dm, n) float32 DM-time plane
    spectrum : (nchans, n) float32 channels dedispersed at the event's DM, masked ones NaN; None if not at hand
    frequencies : (nchans,) MHz, highest first; None if there is no spectrum
    """

    start: int
    dms: np.ndarray
    plane: np.ndarray
    spectrum: np.ndarray | None = None
    frequencies: np.ndarray | None = None


class Source(ABC):
    """What all sources share."""

    name: str
    layers: list[Layer]
    account: dict[str, Any]

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The blocks in which pages begin, in order."""

    @abstractmethod
    def pages(self, block: Block) -> list[PageBatch]:
        """The pages that begin in a block, those of a layer in one batch."""

    @abstractmethod
    def cutout(self, event: Event) -> Cutout:
        """The surroundings of an event."""

    @property
    def grid(self) -> PageGrid:
        """Grid of the first layer."""
        return self.layers[0].grid

    @property
    def starts(self) -> np.ndarray:
        """First sample of each page of the first layer."""
        return self.layers[0].starts

    @property
    def n_pages(self) -> int:
        """Pages of the first layer."""
        return len(self.starts)

    def batches(self, batch_size: int) -> Iterator[PageBatch]:
        """Yield every page, in batches of at most ``batch_size``."""
        for block in self.blocks():
            for batch in self.pages(block):
                for first in range(0, len(batch), batch_size):
                    yield batch[first : first + batch_size]


class FilterbankPages(Source):
    """Pages of a filterbank file: read in blocks, cleaned, dedispersed and cut, in bounded memory.

    Each block carries the samples past its end that its pages and the largest delay need; past the end of the file
    channels add nothing. Blocks do not depend on each other, so that threads can share them. Page values are in units
    of the noise of the sum over the channels in use.

    Parameters
    ----------
    path : SIGPROC filterbank file, or several that follow each other in time
    dms : (n_dm,) trial DMs in pc cm^-3; stacks of 256 of them have pages of their own
    n_time : columns of a page
    cleaning : settings of rfi.py
    overlap : share of a page that the next one repeats, 0 to below 1
    starts : first sample of each page wanted, ascending, in place of the regular grid
    time_downsample : samples that are averaged to one column, powers of two; each gives pages of its own
    exact : dedisperse with the exact sum over rounded delays instead of the fast tree
    compiled : let a C compiler make the dedispersion faster
    ifs : number of the IF to take, or "sum"
    block_samples : samples worked on at once, which memory grows with; more, if the largest delay or a page is longer
    """

    def __init__(
        self,
        path: str | Path | Sequence[str | Path],
        dms: np.ndarray,
        n_time: int = 256,
        cleaning: Cleaning = Cleaning(),
        overlap: float = 0.0,
        starts: np.ndarray | None = None,
        time_downsample: Sequence[int] = (1,),
        exact: bool = False,
        compiled: bool = False,
        ifs: int | str = "sum",
        block_samples: int = BLOCK_SAMPLES,
    ) -> None:
        self.filterbank = open_observation(path, ifs)
        self.cleaning = cleaning
        self.name = self.filterbank.path.stem
        file = self.filterbank
        self.frequencies, self.tsamp, self.nsamples = after_downsampling(file, cleaning)
        frequencies, tsamp, nsamples = self.frequencies, self.tsamp, self.nsamples
        if zapped(frequencies, cleaning.zaplist).all():
            raise InputError(
                f"{file.path}: zaplist {list(cleaning.zaplist)} leaves none of its {len(frequencies)} channels"
            )
        sweep = float(dispersion_delay(np.max(dms), frequencies[-1], frequencies[0]) / tsamp)
        if not sweep * len(frequencies) * 4 < LARGEST_SWEEP_BYTES:
            raise InputError(
                f"{self.filterbank.path}: DM {np.max(dms):g} sweeps over {sweep:.3g} samples of {len(frequencies)} "
                f"channels; valid: a sweep of less than {LARGEST_SWEEP_BYTES / 4 / len(frequencies):.3g} samples"
            )
        stacks = np.split(np.asarray(dms), range(STACK_DMS, len(dms), STACK_DMS))
        longest_page = n_time * max(time_downsample)
        self._block_length = block_length(block_samples, len(frequencies), math.ceil(sweep), longest_page)
        self._block_length -= self._block_length % max(time_downsample)
        self._trees = [
            dedispersion.DedispersionTree(
                dedispersion.channel_delays(stack, frequencies, tsamp),
                None if exact else dedispersion.delay_quanta(stack, frequencies, tsamp),
                stretch=min(self._block_length, nsamples) + longest_page,
                compiled=compiled,
                # Many short calls: two threads at it would wait for the interpreter in turns.
                at_once=None if compiled else 1,
            )
            for stack in stacks
        ]
        self.max_delay = max(tree.max_delay for tree in self._trees)
        self.layers = [
            Layer(
                PageGrid(
                    stack,
                    n_time,
                    tsamp * factor,
                    self.filterbank.tstart,
                    frequencies[0],
                    frequencies[-1],
                    cleaning.zaplist,
                ),
                page_starts(-(-nsamples // factor), n_time, overlap),
                factor,
                number,
            )
            for number, stack in enumerate(stacks)
            for factor in sorted(time_downsample)
        ]
        if starts is not None:
            self.choose(starts)
        self._lock = threading.Lock()
        self._channel_samples = 0
        self.account: dict[str, Any] = {
            "samples": nsamples,
            "samples_read": 0,
            "channels": len(frequencies),
            "channels_used": 0.0,
            "bytes_left_over": self.filterbank.bytes_left_over,
            "samples_swept_past_end": min(self.max_delay, nsamples),
        }

    def choose(self, starts: np.ndarray) -> None:
        """Take these pages of the first layer, ascending first samples, in place of its regular grid."""
        self.layers[0] = replace(self.layers[0], starts=starts)

    def block_edges(self) -> np.ndarray:
        """First sample of every block, and the end of the file; no block is shorter than half of the others."""
        last = max(1, self.nsamples - self._block_length // 2)
        return np.append(np.arange(0, last, self._block_length), self.nsamples)

    def _longest_page(self) -> int:
        return max(layer.grid.n_time * layer.time_downsample for layer in self.layers)

    def blocks(self) -> Iterator[Block]:
        """The blocks in which pages begin, in order; the account starts anew."""
        self._channel_samples = self.account["samples_read"] = 0
        edges = self.block_edges()
        # A page begins in the block that holds its first column; the last one may be shorter than its columns.
        places = [np.searchsorted(layer.starts * layer.time_downsample, edges[:-1]) for layer in self.layers]
        places = [np.append(place, len(layer.starts)) for place, layer in zip(places, self.layers, strict=True)]
        for number, (start, end) in enumerate(pairwise(edges)):
            pages = tuple((int(place[number]), int(place[number + 1])) for place in places)
            if any(last > first for first, last in pages):
                yield Block(int(start), int(end), pages)

    def pages(self, block: Block) -> list[PageBatch]:
        """The pages of a block, all of a layer in one batch."""
        samples = block.end - block.start + self._longest_page()
        integers = np.empty((len(self.frequencies), samples + self.max_delay), np.int8)
        _, good = self.cleaned(block.start, samples + self.max_delay, integers)
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
                pages = cut_pages(columns, where, layer.grid.n_time, scale)
                batches.append(PageBatch(pages, layer.starts[first:last], first, number))
        self._count(block, int(good.sum()))
        return batches

    @property
    def duration_s(self) -> float:
        return self.nsamples * self.tsamp

    def release(self) -> None:
        """Give back the memory of the dedispersion; the next pages take it again."""
        for tree in self._trees:
            tree.release()

    def _count(self, block: Block, channels: int) -> None:
        with self._lock:
            self.account["samples_read"] += block.end - block.start
            self._channel_samples += channels * (block.end - block.start)
            self.account["channels_used"] = self._channel_samples / max(1, self.account["samples_read"])

    def cleaned(self, start: int, n: int, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Cleaned samples (nchans, m <= n) float32 from ``start``, and the channels in use (nchans,) bool.

        ``out`` (nchans, >= n) int8 gets the samples as `dedispersion.quantise` gives them.
        """
        file, settings = self.filterbank, self.cleaning
        block = file.read(start * settings.td, n * settings.td)
        block, frequencies, tsamp = downsample(block, file.frequencies, file.tsamp, settings.td, settings.fd)
        return clean(block, frequencies, tsamp, settings, out)

    def cutout(self, event: Event) -> Cutout:
        """Read, clean and dedisperse the surroundings of an event again: a page's length about its centre."""
        frequencies, tsamp = self.frequencies, self.tsamp
        centre = int(event.time_s / tsamp)
        half = max(self.grid.n_time // 2, 3 * round(event.width_ms / 1e3 / tsamp))
        start, end = max(0, centre - half), min(self.nsamples, centre + half)
        read_from = max(0, start - NOISE_SAMPLES)
        data, good = self.cleaned(read_from, end + self.max_delay - read_from + NOISE_SAMPLES)
        data = np.pad(data, ((0, 0), (0, max(0, end + self.max_delay - read_from - data.shape[1]))))
        data = data[:, start - read_from :]
        delays = dedispersion.delays_in_samples(np.array([event.dm_pc_cm3]), frequencies, tsamp)[0]
        spectrum = np.stack([row[delay : delay + end - start] for row, delay in zip(data, delays, strict=True)])
        spectrum[~good] = np.nan
        integers = dedispersion.quantise(torch.from_numpy(data.copy()), len(data), np.empty(data.shape, np.int8))
        plane = self._trees[event.dm_stack](integers, end - start)
        noise = dedispersion.LEVELS_PER_SIGMA * np.sqrt(max(1, good.sum()))
        dms = next(layer.grid.dms for layer in self.layers if layer.dm_stack == event.dm_stack)
        return Cutout(start - centre, dms, (plane / noise).astype(np.float32), spectrum, frequencies)


def open_observation(path: str | Path | Sequence[str | Path], ifs: int | str = "sum") -> Filterbank | JoinedFilterbank:
    """A filterbank file, or several that follow each other in time."""
    return Filterbank(path, ifs) if isinstance(path, (str, Path)) else JoinedFilterbank(path, ifs)


def after_downsampling(filterbank: Filterbank | JoinedFilterbank, cleaning: Cleaning) -> tuple[np.ndarray, float, int]:
    """Frequencies (nchans // fd,) in MHz, sampling time in seconds and samples that the search works with.

    Raises
    ------
    InputError : the observation is shorter than one sample of the search
    """
    nsamples = filterbank.nsamples // cleaning.td
    if not nsamples:
        raise InputError(f"{filterbank.path}: {filterbank.nsamples} samples are less than one of td {cleaning.td}")
    nothing = np.empty((0, filterbank.nchans), filterbank.header.dtype)
    _, frequencies, tsamp = downsample(nothing, filterbank.frequencies, filterbank.tsamp, cleaning.td, cleaning.fd)
    return frequencies, tsamp, nsamples


def block_length(block_samples: int, nchans: int, max_delay: int, longest_page: int) -> int:
    """Samples in a block; with the largest delay a block has at most `BLOCK_BYTES`, or is as long as that delay."""
    room = BLOCK_BYTES // (4 * nchans) - max_delay
    return max(min(block_samples, room), max_delay, 2048, longest_page)


def add_neighbours(columns: np.ndarray) -> np.ndarray:
    """Sums of two neighbouring columns each of an integer (n_dm, n), int32; a last odd column is left out."""
    n = columns.shape[1] // 2 * 2
    return np.add(columns[:, :n:2], columns[:, 1:n:2], dtype=np.int32)


class ArrayPages(Source):
    """Pages of a .npy batch: (N, H, W), (N, 1, H, W) or (N, H, W, 1), float32 pages or uint8 images.

    Times are not known. Consecutive pages are separate candidates: their starts lie a page and a sample apart, so that
    no two are ever taken for neighbours.

    Parameters
    ----------
    path : .npy file, memory-mapped
    dms : (n_dm,) trial DMs of the rows in pc cm^-3
    """

    def __init__(self, path: str | Path, dms: np.ndarray) -> None:
        try:
            pages = np.load(path, mmap_mode="c", allow_pickle=False)  # torch wants arrays that it may write to
        except (ValueError, EOFError) as error:
            raise InputError(f"{path}: not a .npy array of numbers ({error})") from error
        if not isinstance(pages, np.ndarray):
            raise InputError(f"{path}: a .npz archive is not a .npy array; save the pages alone with numpy.save")
        if pages.ndim == 4 and 1 in (pages.shape[1], pages.shape[3]):
            pages = pages[:, 0] if pages.shape[1] == 1 else pages[..., 0]
        if pages.ndim != 3 or 0 in pages.shape:
            raise InputError(f"{path}: shape {pages.shape} is not (N, n_dm, n_time) or (N, 1, n_dm, n_time) with N > 0")
        if pages.dtype != np.uint8 and not np.issubdtype(pages.dtype, np.floating):
            raise InputError(f"{path}: dtype {pages.dtype} is not float32 (pages) or uint8 (images)")
        if pages.shape[1] != len(dms):
            logger.warning(
                "%s has %d DM rows, the configured DM grid %d: DMs are not given", path, pages.shape[1], len(dms)
            )
            dms = np.full(pages.shape[1], np.nan)
        self.pages_on_disk, self.name = pages, Path(path).stem
        self.layers = [Layer(PageGrid(dms, pages.shape[2]), np.arange(len(pages)) * (pages.shape[2] + 1))]
        self.account: dict[str, Any] = {}

    def blocks(self) -> Iterator[Block]:
        """Stretches of `PAGES_PER_BLOCK` pages."""
        for first in range(0, len(self.pages_on_disk), PAGES_PER_BLOCK):
            last = min(first + PAGES_PER_BLOCK, len(self.pages_on_disk))
            yield Block(first, last, ((first, last),))

    def pages(self, block: Block) -> list[PageBatch]:
        """The pages of a block."""
        dtype = np.uint8 if self.pages_on_disk.dtype == np.uint8 else np.float32
        pages = np.ascontiguousarray(self.pages_on_disk[block.start : block.end], dtype=dtype)
        return [PageBatch(pages, self.starts[block.start : block.end], block.start)]

    def cutout(self, event: Event) -> Cutout:
        """The page of an event itself; there are no channels to show."""
        page = np.asarray(self.pages_on_disk[event.first_page], dtype=np.float32)
        plane = page[::-1] if self.pages_on_disk.dtype == np.uint8 else page
        return Cutout(-(self.grid.n_time // 2), self.grid.dms, plane)
