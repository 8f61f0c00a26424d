"""Pages of a live PSRDADA ring: a source like those of sources.py, whose number of pages is not known beforehand.

What is in the ring (TransientX's ``dada_dbdedispdb``): a byte stream of images, each (ndm, ndump) float32 in the byte
order of the machine, DM-major, row 0 = ``dms`` and row i = ``dms + i*ddm``; column j of image p is the sample
``p*ndump + j``, timed at the top channel. That is the page of pages.py as it stands; with a negative ``ddm`` the rows
are turned round, so that row 0 is the lowest DM. Blocks of the ring and images need not match: a block may hold
several images, and an image may go on in the next block of its transfer.

The header is one line of JSON. Of 2024: ``ddm, dms, ndm, ndump, fmax, fmin, tsamp``; today's: ``ddm, dms, ndm`` and
``obsinfo`` with ``fch1, foff, nchans, tsamp, tstart``. Lines of ``KEY value`` may have the same names, in either case,
or DADA's own: ``TSAMP`` (microseconds), ``MJD_START``, ``FREQ``, ``BW``, ``NCHAN``. What the header does not say comes
from the config.
"""

import logging
import math
import time
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from pipeline_classifier.config import parse_key
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.live.psrdada.client import RAW_HEADER, Reader, RingError, parse_header
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

MAX_SIDE = 1 << 20
TICK_S = 0.25
"""Longest time without a look at the latency of pages that wait."""
NEARLY_FULL = 0.75
"""Share of full blocks from which a warning is given, once in ``WARN_EVERY_S``."""
WARN_EVERY_S = 60.0


def grid_of(header: dict, dms: np.ndarray, n_time: int, downsample: int = 1) -> tuple[PageGrid, bool]:
    """What the images of a ring mean.

    Parameters
    ----------
    header : as ``parse_header`` gives it
    dms : (n_dm,) pc cm^-3, evenly spaced, for what the header does not say
    n_time : samples in a page, if the header does not say
    downsample : input samples in one column; today's header gives the sampling time of the input

    Returns
    -------
    grid : PageGrid, DMs ascending
    descending : whether row 0 of the images in the ring is the highest DM

    Raises
    ------
    InputError : a value is no number, or makes no grid.
    """
    obsinfo = header.get("obsinfo")
    obsinfo = obsinfo if isinstance(obsinfo, dict) else {}
    values = {**header, **obsinfo}

    def number(default: float, *names: str) -> float:
        for name in names:
            if name in values:
                try:
                    return float(values[name])
                except (TypeError, ValueError) as error:
                    raise InputError(f"header of the ring: {name} {values[name]!r} is not a number") from error
        return default

    low, step = number(dms[0], "dms", "DMS"), number(dms[1] - dms[0] if len(dms) > 1 else 1.0, "ddm", "DDM")
    n_dm, n_columns = number(len(dms), "ndm", "NDM"), number(n_time, "ndump", "NDUMP")
    if not (1 <= n_dm <= MAX_SIDE and 1 <= n_columns <= MAX_SIDE and step and math.isfinite(low + step)):
        raise InputError(
            f"header of the ring: dms {low:g}, ddm {step:g}, ndm {n_dm:g}, ndump {n_columns:g} make no page; valid are "
            f"a ddm other than 0, and 1 to {MAX_SIDE} for the other two"
        )
    tsamp = number(number(math.nan, "TSAMP") * 1e-6, "tsamp") * (downsample if "tsamp" in obsinfo else 1)
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
    return PageGrid(np.sort(trials), int(n_columns), tsamp, tstart, top, bottom), step < 0


class RingPages:
    """Pages of a live ring.

    Parameters
    ----------
    source : key of the data ring (a string is hexadecimal), or a connected reader with the methods of psrdada-python's:
        getHeader, getNextPage, markCleared, isEndOfData, disconnect. One that is not ours waits as long as it likes, so
        that neither time limit holds.
    dms, n_time : page, as far as the header does not say it
    name : of the outputs; None: ``ring_<key>``
    max_pages : stop after so many; the rest stays in the ring
    idle_timeout_s : stop when no page came for so long; also the longest wait for ring and header
    stop_at_end_of_data : stop at the first end of data. The dada_dbdedispdb of 2024 sends one with every page
    max_latency_s : a page waits no longer than this (and ``TICK_S`` / 4 more) for its batch to fill
    downsample : input samples in one column (preprocesslite.td x downsample.td), 1 if the header counts columns

    Attributes
    ----------
    grid : PageGrid
    header : dict, empty but for the text if the ring gave none
    n_pages : pages yielded so far
    oldest_read : when the oldest page of the last batch was read, on the monotonic clock
    account : blocks_read, transfers, samples_read, bytes_left_over, ring_blocks, ring_fullest; ``stopped`` says why. A
        reason that somebody else puts there, from a signal handler or another thread, ends the stream within ``TICK_S``

    Raises
    ------
    RingError : no ring, no header and no page within ``idle_timeout_s``.
    InputError : a header that makes no page.
    """

    def __init__(
        self,
        source: str | int | Reader,
        dms: np.ndarray,
        n_time: int = 256,
        name: str | None = None,
        max_pages: int | None = None,
        idle_timeout_s: float = 60.0,
        stop_at_end_of_data: bool = False,
        max_latency_s: float = 1.0,
        downsample: int = 1,
    ) -> None:
        if isinstance(source, str | int):
            self.name = name or f"ring_{parse_key(source):x}"
            self._reader = Reader(source, idle_timeout_s, copy=False)
        else:
            self.name, self._reader = name or "ring", source
        self.max_pages, self.idle_timeout_s = max_pages, idle_timeout_s
        self.stop_at_end_of_data, self.max_latency_s = stop_at_end_of_data, max_latency_s
        self._ours = isinstance(self._reader, Reader)
        try:
            header = self._reader.getHeader()
            # psrdada-python takes every header for lines of KEY value.
            self.header = parse_header(header[RAW_HEADER]) if RAW_HEADER in header else header
            if not self.header.get(RAW_HEADER, self.header):
                logger.warning("%s: no header in the ring; the config's DM grid and page length hold", self.name)
            self.grid, self._descending = grid_of(self.header, dms, n_time, downsample)
            self._image_bytes = 4 * math.prod(self.grid.shape)
            bytes_before = self._reader.bytes_read if self._ours else 0
            self.account: dict[str, Any] = {"blocks_read": 0, "transfers": 0, "samples_read": 0, "bytes_left_over": 0}
            self.account |= {"ring_blocks": self.fill[1], "ring_fullest": 0, "stopped": ""}
        except BaseException:
            self.close()
            raise
        # A reader before this one may have stopped inside an image, whose rest is of no use.
        self._first_page = -(-bytes_before // self._image_bytes)
        self._skip = self._first_page * self._image_bytes - bytes_before
        self.n_pages = 0
        self.oldest_read = self._warned = -math.inf

    def close(self) -> None:
        """Let go of the ring."""
        self._reader.disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fill(self) -> tuple[int, int]:
        """Full blocks, and all blocks of the ring; (0, 0) if the reader cannot tell."""
        return self._reader.fill if self._ours else (0, 0)

    def batches(self, batch_size: int) -> Iterator[PageBatch]:
        """Yield pages as they come: ``batch_size`` of them, or fewer after ``max_latency_s`` and at the end.

        A writer that died, or a ring that was destroyed, ends the stream as the other reasons to stop do: every page
        that came is yielded, and ``account["stopped"]`` says what happened.
        """
        size = self._image_bytes
        most = math.inf if self.max_pages is None else self.max_pages
        held, oldest = bytearray(), None
        for block, ends, more in self._blocks():
            skipped = min(self._skip, len(block))
            self._skip = 0 if ends else self._skip - skipped
            held += memoryview(block)[skipped:]
            left_over = len(held) % size if ends else 0
            del held[len(held) - left_over :]
            self.account["bytes_left_over"] += left_over + skipped

            waiting = int(min(len(held) // size, most - self.n_pages))
            if waiting == most - self.n_pages:
                self.account["stopped"] = f"{most} pages, as asked for"
            now = time.monotonic()
            oldest = now if oldest is None else oldest
            # A batch that is late takes along what is in the ring already: slow consumers get full batches.
            late = now - oldest >= self.max_latency_s and not more
            while waiting >= batch_size or (waiting and (late or self.account["stopped"])):
                count, self.oldest_read = min(batch_size, waiting), oldest
                yield self._batch(held[: count * size])
                del held[: count * size]
                waiting, oldest = waiting - count, now
            if not waiting:
                oldest = None
            if self.account["stopped"]:
                return

    def _batch(self, images: bytearray) -> PageBatch:
        pages = np.frombuffer(images, np.float32).reshape(-1, *self.grid.shape)
        if self._descending:
            pages = np.ascontiguousarray(pages[:, ::-1])
        first, self.n_pages = self.n_pages, self.n_pages + len(pages)
        self.account["samples_read"] = self.n_pages * self.grid.n_time
        starts = (self._first_page + first + np.arange(len(pages))) * self.grid.n_time
        return PageBatch(pages, starts, first)

    def _blocks(self) -> Iterator[tuple[bytes, bool, bool]]:
        """Yield the bytes of each block, whether its transfer ends with them, and whether another block waits.

        While none comes, (b"", False, False) at every tick; at last (b"", True, False), ``account["stopped"]`` set.
        """
        account, reader = self.account, self._reader
        tick = min(TICK_S, self.max_latency_s / 4, self.idle_timeout_s)
        last, ends = time.monotonic(), False
        try:
            while not account["stopped"]:
                if self._ours and not reader.wait(tick):
                    if time.monotonic() - last >= self.idle_timeout_s:
                        account["stopped"] = f"no page for {self.idle_timeout_s:g} s"
                    else:
                        yield b"", False, False
                elif self._ours and ends and not self._same_observation():
                    account["stopped"] = "another observation begins"
                else:
                    self._watch_fill()
                    block = bytes(reader.getNextPage())
                    reader.markCleared()
                    ends = bool(reader.isEndOfData)
                    account["blocks_read"] += 1
                    account["transfers"] += ends
                    yield block, ends, self.fill[0] > 0
                    last = time.monotonic()  # the time that pages were worked on is not idle
                    if ends and self.stop_at_end_of_data:
                        account["stopped"] = "end of data"
        except RingError as error:
            account["stopped"] = str(error)
            logger.warning("%s; the pages that came are kept", error)
        yield b"", True, False

    def _same_observation(self) -> bool:
        """Whether the transfer that begins goes on with this one: it has no header, or one that says the same.

        A header that says something else stays in its ring, for the next run.
        """
        raw = self._reader.peekHeader()
        if raw is None:
            return True
        same = parse_header(raw)[RAW_HEADER] == self.header[RAW_HEADER]
        if same:
            self._reader.getHeader()
        return same

    def _watch_fill(self) -> None:
        """Note how full the ring was, and warn before it is so full that the writer must wait and data are lost."""
        full, blocks = self.fill
        self.account["ring_fullest"] = max(self.account["ring_fullest"], full)
        now = time.monotonic()
        if blocks and full >= NEARLY_FULL * blocks and now - self._warned >= WARN_EVERY_S:
            self._warned = now
            logger.warning(
                "%s: %d of %d blocks are full; when all are, data are lost upstream", self.name, full, blocks
            )
