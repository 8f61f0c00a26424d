"""Pages of a live PSRDADA ring; their number is not known in advance.

TransientX's ``dada_dbdedispdb`` writes a byte stream of images, each (ndm, ndump) float32 in the byte order of the
machine, DM-major: row i is the trial DM ``dms + i*ddm``, column j of image p the sample ``p*ndump + j`` at the top
channel. This is a page as pages.py defines it; with a negative ``ddm`` the rows are reversed, so that row 0 is the
lowest DM. Ring blocks and images need not match: a block may hold several images, and an image may continue in the next
block of its transfer.
"""

import logging
import math
import time
from collections.abc import Iterator
from typing import Self

import numpy as np

from pipeline_classifier.config import parse_key
from pipeline_classifier.frontend.pages import PageBatch
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.live.psrdada.client import RAW_HEADER, Reader, RingError, WriterDied, parse_header
from pipeline_classifier.live.ring_header import RingSettings, check_page_length, grid_of

logger = logging.getLogger(__name__)

TICK_S = 0.25
"""Longest time between two checks of the latency of waiting pages."""
NEARLY_FULL = 0.75
"""Fraction of full blocks at which a warning is logged, at most once in ``WARN_EVERY_S``."""
WARN_EVERY_S = 60.0


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
    first_page : int
        Number of the first page: how many pages of the transfer earlier readers took.
    n_pages : int
        Pages yielded so far.
    oldest_read : float
        When the oldest page of the last batch was read, on the monotonic clock.

    Raises
    ------
    RingError
        If there is no ring, no header and no page within ``connect_timeout_s``, or the times of the pages are not known
        because a writer was killed and another one continued its transfer.
    InputError
        If the header is not that of pages, or the page length cannot be that of the config.
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
            if self._own_reader:
                self._reader.checkHeaders()
            header = self._reader.getTransferHeader() if self._own_reader else self._reader.getHeader()
            # psrdada-python parses every header as lines of KEY value.
            self.header = parse_header(header[RAW_HEADER]) if RAW_HEADER in header else header
            if not self.header.get(RAW_HEADER, self.header):
                logger.warning("%s: no header in the ring; DM grid and page length are those of the config", self.name)
            self.grid, self._descending = grid_of(self.header, settings)
            self._image_bytes = 4 * math.prod(self.grid.shape)
            if self._own_reader:
                check_page_length(self.header, self._reader.block_bytes, self.grid, settings)
            bytes_before = self._reader.bytes_read if self._own_reader else 0
            self._ring_blocks = self.fill[1]
        except BaseException:
            self.close()
            raise
        # An earlier reader may have stopped inside an image; the rest of that image is skipped.
        self.first_page = -(-bytes_before // self._image_bytes)
        self._skip = self.first_page * self._image_bytes - bytes_before
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
            first_page=self.first_page,
            pages_expected=self.settings.pages_expected,
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
        yielded, and `stopped` has the reason. If the writer had finished its work, the pages that it left in a block
        without handing it over are yielded too.
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
            pages = pages[:, ::-1]
        first = self.first_page + self.n_pages
        self.n_pages += len(pages)
        return PageBatch.of_pages(pages, (first + np.arange(len(pages))) * self.grid.n_time, first)

    def _blocks(self) -> Iterator[tuple[bytes, bool, bool]]:
        """Yield the bytes of each block, whether its transfer ends with them, and whether another block waits.

        While no block comes, yield (b"", False, False) at every tick. After the last one, yield the bytes that a
        finished writer did not hand over, or none.
        """
        reader, settings = self._reader, self.settings
        tick = min(TICK_S, settings.max_latency_s / 4, settings.idle_timeout_s)
        last, ends = time.monotonic(), False
        try:
            while not self.stopped:
                if self._own_reader and not reader.wait(tick):
                    if time.monotonic() - last >= settings.idle_timeout_s:
                        self.stop(f"no page for {settings.idle_timeout_s:g} s{self._absent_readers()}")
                    else:
                        yield b"", False, False
                elif self._own_reader and ends and not self._same_observation():
                    self.stop("another observation begins")
                else:
                    if self._own_reader and not ends:
                        reader.checkHeaders()
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
            finished = settings.writer_finished if isinstance(error, WriterDied) else None
            reason = finished() if finished else ""
            self.stop(reason or str(error))
            if not reason:
                logger.warning("%s; the pages that came are kept", error)
        yield self._unfinished(), True, False

    def _unfinished(self) -> bytes:
        """Return what is missing to the expected pages, if a writer that had finished did not hand it over.

        PSRDADA hands over a full block when the next one is needed or the transfer ends, and the dada_dbdedispdb of
        2025 dies before it has ended the transfer.
        """
        settings = self.settings
        if not (self._own_reader and settings.writer_finished and settings.pages_expected):
            return b""
        try:
            missing = settings.pages_expected * self._image_bytes - self._reader.bytes_read
            left = self._reader.unfinished(missing) if 0 < missing <= self._reader.block_bytes else b""
        except RingError:
            return b""  # the ring was destroyed
        return left if left and settings.writer_finished() else b""

    def _absent_readers(self) -> str:
        """Name the readers of the ring that are not connected, if the writer waits for them."""
        absent = self._reader.absentReaders()
        places = ", ".join(str(1 + number) for number in absent)
        return f": the writer waits for reader {places} of the ring, which is not connected" if absent else ""

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
        """Record how full the ring is, and warn before the writer has to wait, unless it can."""
        full, blocks = self.fill
        self._most_blocks_full = max(self._most_blocks_full, full)
        now = time.monotonic()
        if self.settings.from_file:
            return
        if blocks and full >= NEARLY_FULL * blocks and now - self._warned >= WARN_EVERY_S:
            self._warned = now
            logger.warning(
                "%s: %d of %d blocks are full; when all are, the writer waits, and one that cannot wait loses data",
                self.name,
                full,
                blocks,
            )
