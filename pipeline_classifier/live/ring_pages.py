"""Pages of a live PSRDADA ring; their number is not known in advance.

TransientX's ``dada_dbdedispdb`` writes a byte stream of images, each (ndm, ndump) float32 in the byte order of the
machine, DM-major: row i is the trial DM ``dms + i*ddm``, column j of image p the sample ``p*ndump + j`` at the top
channel. This is a page as pages.py defines it; with a negative ``ddm`` the rows are reversed, so that row 0 is the
lowest DM. Ring blocks and images need not match: a block may hold several images, and an image may continue in the next
block of its transfer.

The header is one line of JSON. That of 2024 has ``ddm, dms, ndm, ndump, fmax, fmin, tsamp``; the present one has ``ddm,
dms, ndm`` and ``obsinfo`` with ``fch1, foff, nchans, tsamp, tstart``. A header of lines ``KEY value`` may have the same
names, in upper or lower case, or DADA's own: ``TSAMP`` (microseconds), ``MJD_START``, ``FREQ``, ``BW``, ``NCHAN``.
Values that are not in the header are taken from the config.
"""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline_classifier.config import parse_key
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.live.psrdada.client import RAW_HEADER, Reader, RingError, parse_header
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

MAX_SIDE = 1 << 20
TICK_S = 0.25
"""Longest time between two checks of the latency of waiting pages."""
NEARLY_FULL = 0.75
"""Fraction of full blocks at which a warning is logged, at most once in ``WARN_EVERY_S``."""
WARN_EVERY_S = 60.0


@dataclass(frozen=True, eq=False)
class RingSettings:
    """How a ring is read.

    Attributes
    ----------
    dms : (n_dm,) ndarray
        Trial DMs in pc cm^-3, evenly spaced, unless the header gives them.
    n_time : int
        Samples in a page, unless the header gives them.
    name : str or None
        Part of the names of the outputs; ``ring_<key>`` by default.
    max_pages : int or None
        Stop after this number of pages; the rest stays in the ring.
    connect_timeout_s : float
        Longest wait for the ring and its header, seconds.
    idle_timeout_s : float
        Stop when no page has come for this time, seconds.
    stop_at_end_of_data : bool
        Stop at the first end of data. The dada_dbdedispdb of 2024 sends one with every page.
    max_latency_s : float
        A page waits no longer than this (and ``TICK_S`` / 4 more) for its batch to fill, seconds.
    samples_per_column : int
        Input samples in one column (preprocesslite.td x downsample.td); 1 if the header counts columns.
    zaplist : tuple of (low, high)
        Frequency bands in MHz that the front end does not use.
    tstart : float
        MJD of the first sample, unless the header gives it.
    """

    dms: np.ndarray
    n_time: int = 256
    name: str | None = None
    max_pages: int | None = None
    connect_timeout_s: float = 60.0
    idle_timeout_s: float = 60.0
    stop_at_end_of_data: bool = False
    max_latency_s: float = 1.0
    samples_per_column: int = 1
    zaplist: tuple[tuple[float, float], ...] = ()
    tstart: float = math.nan


def grid_of(header: dict, settings: RingSettings) -> tuple[PageGrid, bool]:
    """Read the meaning of the images of a ring from its header.

    Parameters
    ----------
    header : dict
        As ``parse_header`` returns it.
    settings : RingSettings
        For values that are not in the header.

    Returns
    -------
    grid : PageGrid
        DMs ascending.
    descending : bool
        Whether row 0 of the images in the ring is the highest DM.

    Raises
    ------
    InputError
        If a value is not a number, or outside its range.
    """
    obsinfo = header.get("obsinfo")
    obsinfo = obsinfo if isinstance(obsinfo, dict) else {}
    values, dms = {**header, **obsinfo}, settings.dms

    def number(default: float, *names: str) -> float:
        for name in names:
            if name in values:
                try:
                    return float(values[name])
                except (TypeError, ValueError) as error:
                    raise InputError(f"header of the ring: {name} must be a number, got {values[name]!r}") from error
        return default

    low, step = number(dms[0], "dms", "DMS"), number(dms[1] - dms[0] if len(dms) > 1 else 1.0, "ddm", "DDM")
    n_dm, n_columns = number(len(dms), "ndm", "NDM"), number(settings.n_time, "ndump", "NDUMP")
    if not (1 <= n_dm <= MAX_SIDE and 1 <= n_columns <= MAX_SIDE and step and math.isfinite(low + step)):
        raise InputError(
            f"header of the ring: ndm and ndump must be 1 to {MAX_SIDE} and ddm must not be 0, got dms {low:g}, "
            f"ddm {step:g}, ndm {n_dm:g}, ndump {n_columns:g}"
        )
    factor = settings.samples_per_column if "tsamp" in obsinfo else 1
    tsamp = number(number(math.nan, "TSAMP") * 1e-6, "tsamp") * factor
    top, bottom = number(math.nan, "fmax", "FMAX"), number(math.nan, "fmin", "FMIN")
    if "fch1" in values or "FCH1" in values:
        fch1, nchans = number(math.nan, "fch1", "FCH1"), number(math.nan, "nchans", "NCHANS")
        ends = fch1, fch1 + (nchans - 1) * number(math.nan, "foff", "FOFF")
        top, bottom = max(ends), min(ends)
    elif "FREQ" in values:
        half = abs(number(math.nan, "BW")) / 2 * (1 - 1 / number(math.nan, "NCHAN", "NCHANS"))
        top, bottom = number(math.nan, "FREQ") + half, number(math.nan, "FREQ") - half
    trials = low + step * np.arange(int(n_dm))
    tstart = number(math.nan, "tstart", "TSTART", "MJD_START")
    tstart = settings.tstart if math.isnan(tstart) else tstart
    return PageGrid(np.sort(trials), int(n_columns), tsamp, tstart, top, bottom, settings.zaplist), step < 0


class RingPages:
    """Pages of a live ring.

    Parameters
    ----------
    ring : str, int or reader
        Key of the data ring (a string is hexadecimal), or a connected reader with the methods of psrdada-python's:
        getHeader, getNextPage, markCleared, isEndOfData, disconnect. The time limits hold only for this project's own
        reader, as the other one blocks.
    settings : RingSettings

    Attributes
    ----------
    grid : PageGrid
    header : dict
        Empty except for the raw text if the ring had none.
    n_pages : int
        Pages yielded so far.
    oldest_read : float
        When the oldest page of the last batch was read, on the monotonic clock.

    Raises
    ------
    RingError
        If there is no ring, no header and no page within ``connect_timeout_s``.
    InputError
        If the header is not that of pages.
    """

    def __init__(self, ring: str | int | Reader, settings: RingSettings) -> None:
        if isinstance(ring, str | int):
            self.name = settings.name or f"ring_{parse_key(ring):x}"
            self._reader = Reader(ring, settings.connect_timeout_s, copy=False)
        else:
            self.name, self._reader = settings.name or "ring", ring
        self.settings = settings
        self._own_reader = isinstance(self._reader, Reader)
        try:
            header = self._reader.getHeader()
            # psrdada-python parses every header as lines of KEY value.
            self.header = parse_header(header[RAW_HEADER]) if RAW_HEADER in header else header
            if not self.header.get(RAW_HEADER, self.header):
                logger.warning("%s: no header in the ring; DM grid and page length are those of the config", self.name)
            self.grid, self._descending = grid_of(self.header, settings)
            self._image_bytes = 4 * math.prod(self.grid.shape)
            bytes_before = self._reader.bytes_read if self._own_reader else 0
            self._ring_blocks = self.fill[1]
        except BaseException:
            self.close()
            raise
        # An earlier reader may have stopped inside an image; the rest of that image is skipped.
        self._first_page = -(-bytes_before // self._image_bytes)
        self._skip = self._first_page * self._image_bytes - bytes_before
        self.n_pages = 0
        self._blocks_read = self._transfers = self._bytes_left_over = self._most_blocks_full = 0
        self._stop_reasons: list[str] = []
        self.oldest_read = self._warned = -math.inf

    def stop(self, reason: str) -> None:
        """End the stream within ``TICK_S``; the first reason is kept.

        Signal handlers and other threads may call: an append is atomic, and waits for no lock.
        """
        self._stop_reasons.append(reason)

    @property
    def stopped(self) -> str:
        """Reason why the stream ended or will end; empty while it continues."""
        return self._stop_reasons[0] if self._stop_reasons else ""

    def summary(self) -> RunSummary:
        """Return what was read so far."""
        return RunSummary(
            samples_read=self.n_pages * self.grid.n_time,
            bytes_left_over=self._bytes_left_over,
            blocks_read=self._blocks_read,
            transfers=self._transfers,
            ring_blocks=self._ring_blocks,
            most_ring_blocks_full=self._most_blocks_full,
            stopped=self.stopped,
        )

    def close(self) -> None:
        """Disconnect from the ring."""
        self._reader.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fill(self) -> tuple[int, int]:
        """Full blocks, and all blocks of the ring; (0, 0) if the reader does not know."""
        return self._reader.fill if self._own_reader else (0, 0)

    def batches(self, batch_size: int) -> Iterator[PageBatch]:
        """Yield pages as they arrive: ``batch_size`` of them, or fewer after ``max_latency_s`` and at the end.

        If the writer dies or the ring is destroyed, the stream ends as for any other reason: every page that came is
        yielded, and `stopped` has the reason.
        """
        size = self._image_bytes
        most = math.inf if self.settings.max_pages is None else self.settings.max_pages
        held, oldest = bytearray(), None
        for block, ends, more in self._blocks():
            skipped = min(self._skip, len(block))
            self._skip = 0 if ends else self._skip - skipped
            held += memoryview(block)[skipped:]
            left_over = len(held) % size if ends else 0
            del held[len(held) - left_over :]
            self._bytes_left_over += left_over + skipped

            waiting = int(min(len(held) // size, most - self.n_pages))
            if waiting == most - self.n_pages:
                self.stop(f"n_spectra of {most} pages reached")
            now = time.monotonic()
            oldest = now if oldest is None else oldest
            # A late batch also takes what is in the ring already: slow consumers get full batches.
            late = now - oldest >= self.settings.max_latency_s and not more
            while waiting >= batch_size or (waiting and (late or self.stopped)):
                count, self.oldest_read = min(batch_size, waiting), oldest
                yield self._batch(held[: count * size])
                del held[: count * size]
                waiting, oldest = waiting - count, now
            if not waiting:
                oldest = None
            if self.stopped:
                return

    def _batch(self, images: bytearray) -> PageBatch:
        pages = np.frombuffer(images, np.float32).reshape(-1, *self.grid.shape)
        if self._descending:
            pages = np.ascontiguousarray(pages[:, ::-1])
        first, self.n_pages = self.n_pages, self.n_pages + len(pages)
        starts = (self._first_page + first + np.arange(len(pages))) * self.grid.n_time
        return PageBatch(pages, starts, first)

    def _blocks(self) -> Iterator[tuple[bytes, bool, bool]]:
        """Yield the bytes of each block, whether its transfer ends with them, and whether another block waits.

        While no block comes, yield (b"", False, False) at every tick; after the last one (b"", True, False).
        """
        reader, settings = self._reader, self.settings
        tick = min(TICK_S, settings.max_latency_s / 4, settings.idle_timeout_s)
        last, ends = time.monotonic(), False
        try:
            while not self.stopped:
                if self._own_reader and not reader.wait(tick):
                    if time.monotonic() - last >= settings.idle_timeout_s:
                        self.stop(f"no page for {settings.idle_timeout_s:g} s")
                    else:
                        yield b"", False, False
                elif self._own_reader and ends and not self._same_observation():
                    self.stop("another observation begins")
                else:
                    self._watch_fill()
                    block = bytes(reader.getNextPage())
                    reader.markCleared()
                    ends = bool(reader.isEndOfData)
                    self._blocks_read += 1
                    self._transfers += ends
                    yield block, ends, self.fill[0] > 0
                    last = time.monotonic()  # time spent on processing pages is not idle time
                    if ends and settings.stop_at_end_of_data:
                        self.stop("end of data")
        except RingError as error:
            self.stop(str(error))
            logger.warning("%s; the pages that came are kept", error)
        yield b"", True, False

    def _same_observation(self) -> bool:
        """Whether the next transfer continues this one: it has no header, or the same one.

        Any other header stays in its ring, for the next run.
        """
        raw = self._reader.peekHeader()
        if raw is None:
            return True
        same = parse_header(raw)[RAW_HEADER] == self.header[RAW_HEADER]
        if same:
            self._reader.getHeader()
        return same

    def _watch_fill(self) -> None:
        """Record how full the ring is, and warn before it is full: the writer would wait, and data would be lost."""
        full, blocks = self.fill
        self._most_blocks_full = max(self._most_blocks_full, full)
        now = time.monotonic()
        if blocks and full >= NEARLY_FULL * blocks and now - self._warned >= WARN_EVERY_S:
            self._warned = now
            logger.warning(
                "%s: %d of %d blocks are full; when all are, data are lost upstream", self.name, full, blocks
            )
