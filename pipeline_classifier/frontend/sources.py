"""Sources of pages: what every source has in common, and the pages of a .npy file."""

import logging
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.events import Event
from pipeline_classifier.formats.file_names import output_name
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.frontend.threads import begun
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.file_types import HEAD_BYTES, name_of_format
from single_pulse_classifier_training.input_files import NOT_NPY
from single_pulse_classifier_training.scaling import contradicts, scaling_of

logger = logging.getLogger(__name__)

PAGES_PER_BATCH = 128  # of a .npy file: 32 MiB of float32 pages of 256 x 256
SHORTEST_SIDE = 16  # as the smallest page_samples; fewer rows or columns are another axis


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


class Channels(NamedTuple):
    """Samples of the channels of an observation.

    Attributes
    ----------
    data : (nchans, n) ndarray of float32
        Samples of zero mean and unit noise, highest frequency first; zero where they are not usable.
    good : (nchans,) ndarray of bool
        Channels in use.
    """

    data: np.ndarray
    good: np.ndarray


class Source(ABC):
    """Pages that can be read again: what a search, and the pictures of its events, need.

    Attributes
    ----------
    name : str
        Part of the names of all output files.
    files : list of Path
        Files from which the pages come.
    layers : list of Layer
        Layers of its pages; `PageBatch.layer` is an index into this list.
    began : float
        When `begin` was called, on the monotonic clock; infinite before.
    """

    name: str
    files: list[Path]
    layers: list[Layer]
    began = math.inf
    _begun: Iterator[PageBatch] | None = None

    @abstractmethod
    def planes(self, threads: int | None = None) -> Iterator[PageBatch]:
        """Yield every page, those of a layer in order of time, in batches of the source's choice.

        Parameters
        ----------
        threads : int, optional
            Threads that compute the batches; one per core by default.
        """

    def begin(self, threads: int | None = None) -> None:
        """Start to make the first pages in the background, for `planes_once_begun`."""
        self.began = time.monotonic()
        self._begun = begun(self.planes(threads))

    def planes_once_begun(self, threads: int | None = None) -> Iterator[PageBatch]:
        """Return `planes`, which go on from the first pages if `begin` was called before."""
        planes, self._begun = self._begun or self.planes(threads), None
        return planes

    @abstractmethod
    def cutout(self, event: Event) -> Cutout:
        """Return the surroundings of an event."""

    def summary(self) -> RunSummary:
        """Return what was read since `planes` was called last."""
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
        for batch in self.planes():
            for first in range(0, len(batch), batch_size):
                yield batch[first : first + batch_size]


class ChannelSource(Source):
    """Pages that were made from channels.

    Attributes
    ----------
    frequencies : (nchans,) ndarray of float64
        Channel centres in MHz, highest first.
    tsamp : float
        Sampling time in seconds.
    nsamples : int
        Number of samples.
    """

    frequencies: np.ndarray
    tsamp: float
    nsamples: int

    @property
    def delay_per_dm(self) -> np.ndarray:
        """Delay of each channel after the highest one in samples at a DM of 1 pc cm^-3, (nchans,) float64."""
        return dispersion_delay(1.0, self.frequencies, self.frequencies[0]) / self.tsamp

    @abstractmethod
    def channels(self, start: int, n: int) -> Channels:
        """Return samples ``start`` to ``start + n``, all of them inside the observation, not dedispersed.

        They are cleaned without zero-DM regression.
        """


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
    n_time : int
        Expected columns of a page; other numbers are accepted, but help to recognise axes in another order.

    Raises
    ------
    InputError
        If the file holds no such array.
    """

    def __init__(self, path: str | Path, dms: np.ndarray, n_time: int = 256) -> None:
        pages = _mapped(path)
        if pages.ndim == 4 and 1 in (pages.shape[1], pages.shape[3]):
            pages = pages[:, 0] if pages.shape[1] == 1 else pages[..., 0]
        if pages.ndim != 3:
            advice = "; save page[None] for a batch of one page" if pages.ndim == 2 else ""
            raise InputError(
                f"{path}: the shape must be (N, n_dm, n_time) or (N, 1, n_dm, n_time) with N > 0, "
                f"got {pages.shape}{advice}"
            )
        check_axes(path, pages.shape, (len(dms), n_time))
        if pages.shape[1] != len(dms):
            logger.warning(
                "%s has %d DM rows, the config %d trial DMs: the DMs of events are unknown",
                path,
                pages.shape[1],
                len(dms),
            )
            dms = np.full(pages.shape[1], np.nan)
        self.pages_on_disk, self.name, self.path = pages, output_name(path), Path(path)
        self.files = [self.path]
        self.scaled_again = False
        self.layers = [Layer(PageGrid(dms, pages.shape[2]), np.arange(len(pages)) * (pages.shape[2] + 1))]

    def planes(self, threads: int | None = None) -> Iterator[PageBatch]:
        """Yield every page, `PAGES_PER_BATCH` at a time."""
        for first in range(0, len(self.pages_on_disk), PAGES_PER_BATCH):
            chosen = slice(first, first + PAGES_PER_BATCH)
            pages = self.pages_on_disk[chosen]
            if self.scaled_again:
                pages = pages[:, ::-1].astype(np.float32)
            elif pages.dtype != np.uint8:
                pages = pages.astype(np.float32, copy=False)
            yield PageBatch.of_pages(pages, self.starts[chosen], first)

    def scale_for(self, normaliser: str) -> None:
        """Let the classifier scale images again, as it scales pages, unless they look like those of its normaliser.

        Both normalisers of pages give the same image for any linear scale of a page. Images scaled by minimum and
        maximum (pulses of S/N 8 to 1000) get the probabilities of their pages to 0.002 if they are scaled again, and
        0.0 to 1.0 if they are not.
        """
        if self.pages_on_disk.dtype != np.uint8:
            return
        scaling = scaling_of(self.pages_on_disk)
        # Images that were averaged to a lower resolution after minmax no longer reach 0 and 255.
        if contradicts(scaling, normaliser) or (scaling is None and normaliser != "minmax"):
            self.scaled_again = True
            logger.warning(
                "%s: the images %s, but the model was trained on images of the normaliser %s; they are scaled again "
                "(create_dataset.py --normaliser %s makes images for this model)",
                self.path,
                f"seem to be scaled by {scaling}" if scaling else "are scaled in an unknown way",
                normaliser,
                normaliser,
            )

    def cutout(self, event: Event) -> Cutout:
        """Return the page of an event; there are no channels to show."""
        page = np.asarray(self.pages_on_disk[event.first_page], dtype=np.float32)
        plane = page[::-1] if self.pages_on_disk.dtype == np.uint8 else page
        return Cutout(-(self.grid.n_time // 2), self.grid.dms, plane)


def check_axes(path: str | Path, shape: tuple[int, ...], page: tuple[int, int]) -> None:
    """Raise InputError if the axes of pages (N, n_dm, n_time) seem to have another order, or a page is too small.

    Parameters
    ----------
    path : str or Path
        For the message.
    shape : (int, int, int)
        Shape of the pages.
    page : (int, int)
        Expected trial DMs and columns of a page.
    """
    too_small = shape[2] < SHORTEST_SIDE or shape[1] < min(SHORTEST_SIDE, page[0])
    orders = {"(n_dm, n_time, N)": (2, 0, 1), "(n_dm, N, n_time)": (1, 0, 2), "(N, n_time, n_dm)": (0, 2, 1)}
    found = {order: (shape[axes[1]], shape[axes[2]]) for order, axes in orders.items()}
    if shape[1:] == page or not (too_small or page in found.values()):
        return
    likely = max(found, key=lambda order: (found[order] == page, min(found[order])))
    message = f"{path}: the axes must be (N, n_dm, n_time), with n_dm and n_time at least {SHORTEST_SIDE}, got {shape}"
    if min(found[likely]) >= SHORTEST_SIDE:
        message += f", which seems to be {likely}: save pages.transpose{orders[likely]}"
        message += "" if too_small else f", or set ndm to {shape[1]} and page_samples to {shape[2]} in the config"
    raise InputError(message)


def _mapped(path: str | Path) -> np.ndarray:
    """Memory-map the array of a .npy file, after its header was compared with its size."""
    if not Path(path).is_file():
        got = "a folder" if Path(path).is_dir() else "a device or pipe" if Path(path).exists() else "no such file"
        if got == "no such file" and any(character in str(path) for character in "*?["):
            got = "a pattern: search the files that it matches one by one"
        raise InputError(f"{path}: must be one .npy file of pages, got {got}")
    with open(path, "rb") as file:
        kind = name_of_format(file.read(HEAD_BYTES))
        if "npy" not in kind:
            advice = "search it with --filterbank" if "SIGPROC" in kind else "save the array of pages with numpy.save"
            raise InputError(f"{path}: must be a .npy file of pages, got {kind} ({advice})")
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except NOT_NPY:
            raise InputError(f"{path}: must be a .npy file of pages, got one with a damaged header") from None
        data_bytes = -file.tell() + file.seek(0, os.SEEK_END)
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise InputError(f"{path}: the dtype must be float32 (pages) or uint8 (images), got {dtype}")
    if not shape or any(type(length) is not int or length <= 0 for length in shape):
        raise InputError(f"{path}: the shape must be (N, n_dm, n_time) with N > 0, got {shape}")
    if (expected := math.prod(shape) * dtype.itemsize) > data_bytes:
        raise InputError(
            f"{path}: must have {expected} bytes after the header for its shape {shape}, got {data_bytes}: the file is "
            "cut off or its header is damaged"
        )
    return np.load(path, mmap_mode="c", allow_pickle=False)  # torch needs writable arrays
