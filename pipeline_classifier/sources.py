"""Where pages come from: every source has ``name``, ``grid``, ``starts``, ``account``, ``batches()``, ``cutout()``."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline_classifier import dedispersion
from pipeline_classifier.catalogue import Event
from pipeline_classifier.filterbank import Filterbank
from pipeline_classifier.pages import PageBatch, PageGrid, cut_pages, page_starts
from pipeline_classifier.rfi import Cleaning, clean, zapped
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cutout:
    """The surroundings of an event.

    Attributes
    ----------
    start : sample of column 0, relative to the centre of the event
    plane : (n_dm, n) float32 DM-time plane
    spectrum : (nchans, n) float32 channels dedispersed at the event's DM, masked ones NaN; None if not at hand
    frequencies : (nchans,) MHz, highest first; None if there is no spectrum
    """

    start: int
    plane: np.ndarray
    spectrum: np.ndarray | None = None
    frequencies: np.ndarray | None = None


BLOCK_SAMPLES = 16384
BLOCK_BYTES = 64 << 20  # most float32 bytes of one cleaned block, unless the dispersion sweep alone is longer


class FilterbankPages:
    """Pages of a filterbank file: read in blocks, cleaned, dedispersed and cut, in bounded memory.

    Each block carries the samples past its end that the largest delay needs; past the end of the file channels add
    nothing. Page values are in units of the noise of the sum over the channels in use.

    Parameters
    ----------
    path : SIGPROC filterbank file
    dms : (n_dm,) trial DMs in pc cm^-3
    n_time : samples in a page
    cleaning : settings of rfi.py
    overlap : share of a page that the next one repeats, 0 to below 1
    starts : first sample of each page wanted, ascending, in place of the regular grid
    """

    def __init__(
        self,
        path: str | Path,
        dms: np.ndarray,
        n_time: int = 256,
        cleaning: Cleaning = Cleaning(),
        overlap: float = 0.0,
        starts: np.ndarray | None = None,
    ) -> None:
        self.filterbank = Filterbank(path)
        self.cleaning = cleaning
        self.name = Path(path).stem
        frequencies, tsamp = self.filterbank.frequencies, self.filterbank.tsamp
        if zapped(frequencies, cleaning.zaplist).all():
            raise InputError(f"{path}: zaplist {list(cleaning.zaplist)} leaves none of its {len(frequencies)} channels")
        self.grid = PageGrid(dms, n_time, tsamp, self.filterbank.tstart, frequencies[0], frequencies[-1])
        self.starts = page_starts(self.filterbank.nsamples, n_time, overlap) if starts is None else starts
        self._tree = dedispersion.DedispersionTree(dedispersion.delays_in_samples(dms, frequencies, tsamp))
        self.account = {"samples_read": 0, "channels": len(frequencies), "channels_used": 0.0, "bytes_left_over": 0}
        self.account["bytes_left_over"] = self.filterbank.bytes_left_over
        self.account["samples_swept_past_end"] = min(self._tree.max_delay, self.filterbank.nsamples)

    @property
    def n_pages(self) -> int:
        return len(self.starts)

    def batches(self, batch_size: int) -> Iterator[PageBatch]:
        """Yield every page, in batches of at most ``batch_size``."""
        return cut_pages(self.planes(), self.starts, self.grid.n_time, batch_size)

    def block_edges(self) -> np.ndarray:
        """First sample of every block, and the end of the file; no block is shorter than half of the others."""
        nsamples, delay = self.filterbank.nsamples, self._tree.max_delay
        room = BLOCK_BYTES // (4 * self.filterbank.nchans) - delay
        length = max(min(BLOCK_SAMPLES, room), delay, 2048)
        return np.append(np.arange(0, max(1, nsamples - length // 2), length), nsamples)

    def planes(self) -> Iterator[np.ndarray]:
        """Yield the dedispersed stream as (n_dm, m) float32 planes in units of its noise."""
        edges = self.block_edges()
        used = 0.0
        for start, end in zip(edges[:-1], edges[1:], strict=True):
            data, good = self.cleaned(start, end - start + self._tree.max_delay)
            integers = np.empty(
                (len(data), end - start + self._tree.max_delay), dedispersion.accumulator_dtype(len(data))
            )
            summed = self._tree(dedispersion.quantise(data, integers), end - start)
            noise = dedispersion.LEVELS_PER_SIGMA * np.sqrt(max(1, good.sum()))
            self.account["samples_read"] = int(end)
            used += good.sum() * (end - start)
            self.account["channels_used"] = used / end
            yield np.multiply(summed, np.float32(1.0 / noise), dtype=np.float32)

    def cleaned(self, start: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Cleaned samples (nchans, m <= n) float32 from ``start``, and the channels in use (nchans,) bool."""
        block = self.filterbank.read(start, n)
        return clean(block, self.filterbank.frequencies, self.filterbank.tsamp, self.cleaning)

    def cutout(self, event: Event) -> Cutout:
        """Read, clean and dedisperse the surroundings of an event again: a page's length about its centre."""
        frequencies, tsamp = self.filterbank.frequencies, self.filterbank.tsamp
        centre = int(event.time_s / tsamp)
        half = max(self.grid.n_time // 2, 3 * event.width_samples)
        start, end = max(0, centre - half), min(self.filterbank.nsamples, centre + half)
        read_from = max(0, start - BLOCK_SAMPLES // 4)  # the noise of a channel needs more than the cutout itself
        data, good = self.cleaned(read_from, end + self._tree.max_delay - read_from + BLOCK_SAMPLES // 4)
        data = np.pad(data, ((0, 0), (0, max(0, end + self._tree.max_delay - read_from - data.shape[1]))))
        data = data[:, start - read_from :]
        delays = dedispersion.delays_in_samples(np.array([event.dm_pc_cm3]), frequencies, tsamp)[0]
        spectrum = np.stack([row[delay : delay + end - start] for row, delay in zip(data, delays, strict=True)])
        spectrum[~good] = np.nan
        integers = np.empty(data.shape, dedispersion.accumulator_dtype(len(data)))
        plane = self._tree(dedispersion.quantise(data.copy(), integers), end - start)
        noise = dedispersion.LEVELS_PER_SIGMA * np.sqrt(max(1, good.sum()))
        return Cutout(start - centre, (plane / noise).astype(np.float32), spectrum, frequencies)


class ArrayPages:
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
        self.pages, self.name = pages, Path(path).stem
        self.grid = PageGrid(dms, pages.shape[2])
        self.starts = np.arange(len(pages)) * (pages.shape[2] + 1)
        self.account: dict = {}

    @property
    def n_pages(self) -> int:
        return len(self.pages)

    def batches(self, batch_size: int) -> Iterator[PageBatch]:
        """Yield every page, in batches of at most ``batch_size``."""
        dtype = np.uint8 if self.pages.dtype == np.uint8 else np.float32
        for first in range(0, len(self.pages), batch_size):
            pages = np.ascontiguousarray(self.pages[first : first + batch_size], dtype=dtype)
            yield PageBatch(pages, self.starts[first : first + batch_size], first)

    def cutout(self, event: Event) -> Cutout:
        """The page of an event itself; there are no channels to show."""
        page = np.asarray(self.pages[event.first_page], dtype=np.float32)
        plane = page[::-1] if self.pages.dtype == np.uint8 else page
        return Cutout(-(self.grid.n_time // 2), plane)
