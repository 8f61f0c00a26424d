"""Sources of pages: what every source has in common, and the pages of a .npy file."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.frontend.run_summary import RunSummary
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

PAGES_PER_BLOCK = 128  # of a .npy file: 32 MiB of float32 pages of 256 x 256


@dataclass(frozen=True)
class Layer:
    """The pages of one stack of trial DMs at one time resolution.

    Attributes
    ----------
    grid : PageGrid
        Meaning of their rows and columns.
    starts : (N,) ndarray of int64
        First column of each page, in samples of ``grid.tsamp``, ascending.
    time_downsample : int
        Samples of the observation in one column.
    dm_stack : int
        Index of the stack; 0 has the lowest DMs.
    """

    grid: PageGrid
    starts: np.ndarray
    time_downsample: int = 1
    dm_stack: int = 0

    @property
    def suffix(self) -> str:
        """What distinguishes the file names of this layer from those of the first one."""
        stack = f"_dms{self.dm_stack}" if self.dm_stack else ""
        return stack + (f"_x{self.time_downsample}" if self.time_downsample > 1 else "")


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


@dataclass(frozen=True)
class Cutout:
    """The surroundings of an event.

    Attributes
    ----------
    start : int
        Sample of column 0, relative to the centre of the event.
    dms : (n_dm,) ndarray
        Trial DMs of the plane, pc cm^-3.
    plane : (n_dm, n) ndarray of float32
        DM-time plane.
    spectrum : (nchans, n) ndarray of float32 or None
        Channels dedispersed at the event's DM, NaN where masked; None if the source has no channels.
    frequencies : (nchans,) ndarray or None
        MHz, highest first; None without a spectrum.
    """

    start: int
    dms: np.ndarray
    plane: np.ndarray
    spectrum: np.ndarray | None = None
    frequencies: np.ndarray | None = None


class Source(ABC):
    """Pages that can be read again: what a search, and the pictures of its events, need.

    Attributes
    ----------
    name : str
        Part of the names of all output files.
    layers : list of Layer
        Layers of its pages; `PageBatch.layer` is an index into this list.
    """

    name: str
    layers: list[Layer]

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """Yield the blocks in which pages begin, in order."""

    @abstractmethod
    def pages(self, block: Block) -> list[PageBatch]:
        """Return the pages that begin in a block, those of a layer in one batch; several threads may call."""

    @abstractmethod
    def cutout(self, event: Event) -> Cutout:
        """Return the surroundings of an event."""

    def summary(self) -> RunSummary:
        """Return what was read since `blocks` was called last."""
        return RunSummary()

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
        """Number of pages of the first layer."""
        return len(self.starts)

    def batches(self, batch_size: int) -> Iterator[PageBatch]:
        """Yield every page, in batches of at most ``batch_size``."""
        for block in self.blocks():
            for batch in self.pages(block):
                for first in range(0, len(batch), batch_size):
                    yield batch[first : first + batch_size]


class ArrayPages(Source):
    """Pages of a .npy file: (N, H, W), (N, 1, H, W) or (N, H, W, 1), float32 pages or uint8 images.

    Times are not known. The pages are separate candidates: their starts are a page plus one sample apart, so that no
    two are treated as neighbours.

    Parameters
    ----------
    path : str or Path
        .npy file; it is memory-mapped.
    dms : (n_dm,) ndarray
        Trial DMs of the rows in pc cm^-3.

    Raises
    ------
    InputError
        If the file holds no such array.
    """

    def __init__(self, path: str | Path, dms: np.ndarray) -> None:
        pages = _mapped(path)
        if pages.ndim == 4 and 1 in (pages.shape[1], pages.shape[3]):
            pages = pages[:, 0] if pages.shape[1] == 1 else pages[..., 0]
        if pages.ndim != 3 or 0 in pages.shape:
            raise InputError(
                f"{path}: the shape must be (N, n_dm, n_time) or (N, 1, n_dm, n_time) with N > 0, got {pages.shape}"
            )
        if pages.dtype != np.uint8 and not np.issubdtype(pages.dtype, np.floating):
            raise InputError(f"{path}: the dtype must be float32 (pages) or uint8 (images), got {pages.dtype}")
        if pages.shape[1] != len(dms):
            logger.warning(
                "%s has %d DM rows, the config %d trial DMs: the DMs of events are unknown",
                path,
                pages.shape[1],
                len(dms),
            )
            dms = np.full(pages.shape[1], np.nan)
        self.pages_on_disk, self.name = pages, Path(path).stem
        self.layers = [Layer(PageGrid(dms, pages.shape[2]), np.arange(len(pages)) * (pages.shape[2] + 1))]

    def blocks(self) -> Iterator[Block]:
        """Yield stretches of `PAGES_PER_BLOCK` pages."""
        for first in range(0, len(self.pages_on_disk), PAGES_PER_BLOCK):
            last = min(first + PAGES_PER_BLOCK, len(self.pages_on_disk))
            yield Block(first, last, ((first, last),))

    def pages(self, block: Block) -> list[PageBatch]:
        """Return the pages of a block."""
        dtype = np.uint8 if self.pages_on_disk.dtype == np.uint8 else np.float32
        pages = np.ascontiguousarray(self.pages_on_disk[block.start : block.end], dtype=dtype)
        return [PageBatch(pages, self.starts[block.start : block.end], block.start)]

    def cutout(self, event: Event) -> Cutout:
        """Return the page of an event; there are no channels to show."""
        page = np.asarray(self.pages_on_disk[event.first_page], dtype=np.float32)
        plane = page[::-1] if self.pages_on_disk.dtype == np.uint8 else page
        return Cutout(-(self.grid.n_time // 2), self.grid.dms, plane)


def _mapped(path: str | Path) -> np.ndarray:
    try:
        pages = np.load(path, mmap_mode="c", allow_pickle=False)  # torch needs writable arrays
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: must be a .npy array of numbers, got another kind of file") from error
    if not isinstance(pages, np.ndarray):
        raise InputError(f"{path}: must be a .npy array, got a .npz archive; save the pages alone with numpy.save")
    return pages
