"""PSRDADA streams in pure Python: ``Reader``, ``Writer``, ``create_rings`` and ``destroy_rings``.

PSRDADA passes data between processes of one machine through ring buffers in shared memory. A *stream* is a pair of
rings: the data ring under a key (a number, written in hexadecimal) and the header ring, with texts that describe the
data, under key + 1. A ring is divided into blocks of equal size, which one process writes and up to eight processes
read; the writer waits while all blocks are full. A *transfer* is a run of consecutive blocks, usually one observation;
it begins with start of data and ends with end of data, and another one may follow in the same ring.

  with Reader("2222") as reader:  # as for dada_db -k
      header = reader.getHeader()
      while reader.wait(10.0):
          page = np.frombuffer(reader.getNextPage(), np.float32)
          reader.markCleared()  # now reader.isEndOfData says whether the page was the last of its transfer

The methods have the names of psrdada-python, which calls the content of a block a page (one such page can hold several
DM-time images). In addition, every wait has a time limit, ``WriterDied`` and ``RingDestroyed`` report what happened at
the other end, and a page that a killed reader was holding is read again by the next one.

Connect in the process that reads or writes, not before a fork: a lock belongs to the process that took it.
"""

import ctypes
import json
import logging
import time
from collections.abc import Iterator, Mapping

from pipeline_classifier.live.psrdada.protocol import RingReader, RingWriter
from pipeline_classifier.live.psrdada.ring import RingDestroyed, RingError, RingTimeout, WriterDied
from pipeline_classifier.live.psrdada.stream import Stream, create_rings, destroy_rings

__all__ = [
    "RAW_HEADER",
    "Reader",
    "RingDestroyed",
    "RingError",
    "RingTimeout",
    "Writer",
    "WriterDied",
    "create_rings",
    "destroy_rings",
    "parse_header",
]

logger = logging.getLogger(__name__)

RAW_HEADER = "__RAW_HEADER__"
POLL_S = 0.25
"""Seconds between two checks of a waiting reader that the writer is alive; chosen by hand, for a report within 1 s."""


def parse_header(raw: str | bytes) -> dict:
    """Parse a header: one JSON object, or lines of ``KEY value`` with comments after ``#``.

    Parameters
    ----------
    raw : str or bytes
        The header. Everything after a zero byte, and text after the JSON object, is ignored.

    Returns
    -------
    header : dict
        The JSON object, or the values as strings; the text itself is under ``__RAW_HEADER__``.
    """
    text = raw if isinstance(raw, str) else raw.decode("utf-8", errors="replace")
    text = text.split("\0", 1)[0].strip()
    try:
        content, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        lines = [line.split("#", 1)[0].split(None, 1) for line in text.splitlines()]
        content = {words[0]: words[1].strip() for words in lines if len(words) == 2}
    return content | {RAW_HEADER: text}


class Reader(Stream[RingReader]):
    """Reads a stream of pages; iterating over it gives the pages of one transfer.

    Parameters
    ----------
    key : str or int, optional
        Key of the data ring; a string is hexadecimal. Without it, call ``connect``.
    timeout_s : float
        Longest wait of ``connect``, ``getHeader`` and ``getNextPage``.
    copy : bool
        Return copies of pages; otherwise views, which must not be used after ``markCleared`` or ``disconnect``.

    Attributes
    ----------
    header : dict
        Last result of ``getHeader``.
    isEndOfData : bool
        Whether the page cleared last ended its transfer; another transfer may follow.
    """

    _end = RingReader

    def __init__(self, key: str | int | None = None, timeout_s: float = 10.0, copy: bool = True) -> None:
        self.copy = copy
        self.header: dict = {}
        super().__init__(key, timeout_s)

    def disconnect(self) -> None:
        """Clear a page that is held, and disconnect; also after the rings were destroyed, and more than once."""
        try:
            self.markCleared()
        except RingDestroyed:
            pass  # no writer waits for the page
        finally:
            self._release()

    def getHeader(self) -> dict:
        """Read the next header.

        If there are unread pages but no unread header, the last header is read again; if none is stored in the ring,
        the result is that of an empty header.

        Returns
        -------
        header : dict
            See ``parse_header``.

        Raises
        ------
        RingTimeout
            If neither a header nor a page came within ``timeout_s``.
        """
        deadline = time.monotonic() + self.timeout_s
        raw = self.peekHeader()
        while raw is None and not self._data.n_full and time.monotonic() < deadline:
            self._header.wait(min(POLL_S, max(0.0, deadline - time.monotonic())))
            raw = self.peekHeader()
        if raw is None:
            raw = self.peekHeader()  # it may have come with its first page: a header is written before its pages
        if raw is not None:
            self._header.next()
            self._header.clear()
        elif (page := self._header.previous()) is not None:
            raw = ctypes.string_at(*page)
        elif self._data.n_full:
            raw = b""
        else:
            raise RingTimeout(f"{self._data}: no header and no page came")
        self.header = parse_header(raw)
        return self.header

    def getTransferHeader(self) -> dict:
        """Read the header of the current transfer: inside of it, the last header, although that of the next may wait.

        For the result and the errors see ``getHeader``.
        """
        page = self._header.previous() if self._data.reading else None
        if page is None:
            return self.getHeader()
        self.header = parse_header(ctypes.string_at(*page))
        return self.header

    def peekHeader(self) -> bytes | None:
        """Return the next header without taking it, or None if there is none; empty headers are skipped."""
        while (page := self._header.peek()) is not None:
            if page[1]:
                return ctypes.string_at(*page)
            self._header.next()
            self._header.clear()
        return None

    def wait(self, timeout_s: float) -> bool:
        """Wait for a page; return whether ``getNextPage`` has one.

        Raises
        ------
        WriterDied
            If all pages are read and the writer died in the middle of a transfer; raised within ``POLL_S``.
        RingDestroyed
            If the ring no longer exists.
        """
        data, deadline = self._data, time.monotonic() + timeout_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            if data.wait(min(POLL_S, left)):
                return True
            if data.writer_died and not data.n_full:
                raise WriterDied(f"{data}: the writer died in the middle of a transfer; {data.remedy}")
            if left <= POLL_S:
                return False

    def getNextPage(self) -> memoryview:
        """Take the next page.

        Returns
        -------
        page : memoryview
            Read-only bytes, at most one block; an empty page is returned too.

        Raises
        ------
        RingTimeout
            If no page came within ``timeout_s``; other errors as for ``wait``.
        """
        if self.isHoldingPage:
            raise RingError(f"{self._data}: the previous page must be cleared first; call markCleared")
        if not self.wait(self.timeout_s) or (page := self._data.next()) is None:
            raise RingTimeout(f"{self._data}: no page within {self.timeout_s:g} s")
        self.isHoldingPage, self.isEndOfData = True, False
        if self.copy:
            return memoryview(ctypes.string_at(*page))
        address, nbytes = page
        return memoryview((ctypes.c_ubyte * nbytes).from_address(address)).cast("B").toreadonly()

    def markCleared(self) -> None:
        """Return the page to the writer, which can then reuse the block."""
        if self.isHoldingPage:
            self.isHoldingPage = False
            self._data.clear()
            self.isEndOfData = not self._data.reading

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        """Return the next page of the transfer, and clear the one before."""
        self.markCleared()
        if self.isEndOfData:
            self.isEndOfData = False
            raise StopIteration
        return self.getNextPage()

    @property
    def fill(self) -> tuple[int, int]:
        """Number of unread blocks and of all blocks of the ring; when they are equal, the writer has to wait."""
        return self._data.n_full, self._data.nbufs

    @property
    def block_bytes(self) -> int:
        """Size of a block of the ring."""
        return self._data.bufsz

    @property
    def bytes_read(self) -> int:
        """Bytes of the current transfer before the next page, including those that earlier readers took."""
        return self._data.bytes_read

    def checkHeaders(self) -> None:
        """Check that no second header waits while a transfer is in progress.

        A stock writer sends one header before each transfer. If another waits in the middle of it, a writer was killed,
        and the next one continued its transfer: where the second observation begins is not known.

        Raises
        ------
        RingError
            If a second header waits.
        """
        expected = 0 if self._data.reading else 1
        waiting = self._header.n_full  # first, since the next header may come right after the end of the transfer
        if waiting > expected and self._data.in_progress:
            raise RingError(
                f"{self._data}: a header waits in the middle of a transfer, which a killed writer left and another one "
                f"continues, so that the times of the pages are not known; {self._data.remedy}"
            )

    def unfinished(self, nbytes: int) -> bytes:
        """Return the first bytes of the block that a dead writer was filling; none if there is no such block.

        The ring does not tell how many of them are valid, so the caller has to know.
        """
        address = self._data.unfinished
        return b"" if address is None else ctypes.string_at(address, min(nbytes, self._data.bufsz))

    def absentReaders(self) -> list[int]:
        """Return the numbers of the readers that are not connected although the writer waits for them."""
        return self._data.absent_readers()


class Writer(Stream[RingWriter]):
    """Writes a stream of pages.

    Parameters
    ----------
    key : str or int, optional
        Key of the data ring; a string is hexadecimal. Without it, call ``connect``.
    timeout_s : float
        Longest wait for the rings, for another writer to disconnect, and for readers to clear a block.

    Attributes
    ----------
    isEndOfData : bool
        Whether the page handed over last ended its transfer.
    """

    _end = RingWriter

    def disconnect(self) -> None:
        """End the current transfer, and disconnect; also after the rings were destroyed, and more than once."""
        try:
            if self._rings and self._data.locked and not self._data.starting:
                if not self.isHoldingPage:
                    self.getNextPage()
                self.markEndOfData(0)
        except RingError as error:  # destroyed, or no reader clears a block; readers then raise WriterDied
            logger.warning("%s; the transfer has no end of data", error)
        finally:
            self.isHoldingPage = False
            self._release()

    def setHeader(self, header: bytes | str | Mapping[str, object]) -> None:
        """Send a header, padded with zeros to a whole block.

        Parameters
        ----------
        header : bytes, str or mapping
            A mapping is sent as lines of ``KEY value``.
        """
        if isinstance(header, Mapping):
            header = "".join(f"{key} {value}\n" for key, value in header.items())
        raw = header.encode() if isinstance(header, str) else header
        ring = self._header
        if len(raw) > ring.bufsz:
            raise RingError(f"{ring}: a header must have at most {ring.bufsz} bytes, got {len(raw)}")
        address = ring.next(self.timeout_s)
        ctypes.memmove(address, raw.ljust(ring.bufsz, b"\0"), ring.bufsz)
        ring.filled(ring.bufsz, end_of_data=False, timeout_s=self.timeout_s)

    def getNextPage(self) -> memoryview:
        """Return the next block, a writable view of its bytes.

        Raises
        ------
        RingTimeout
            If the ring stays full for ``timeout_s``.
        """
        if self.isHoldingPage:
            raise RingError(f"{self._data}: the previous page must be filled first; call markFilled")
        address = self._data.next(self.timeout_s)
        self.isHoldingPage, self.isEndOfData = True, False
        self._page = memoryview((ctypes.c_ubyte * self._data.bufsz).from_address(address)).cast("B")
        return self._page

    def markFilled(self, nbytes: int | None = None) -> None:
        """Hand ``nbytes`` of the page, by default all, to the readers; as in PSRDADA, fewer end the transfer."""
        self._filled(nbytes, end_of_data=False)

    def markEndOfData(self, nbytes: int | None = None) -> None:
        """Hand the page to the readers as the last one of the transfer."""
        self._filled(nbytes, end_of_data=True)

    def _filled(self, nbytes: int | None, end_of_data: bool) -> None:
        if self.isHoldingPage:
            self._data.filled(self._data.bufsz if nbytes is None else nbytes, end_of_data, self.timeout_s)
            self.isHoldingPage = False
            self.isEndOfData = self._data.starting

    def write(self, data: bytes | memoryview, end_of_data: bool = False) -> None:
        """Send bytes in as many blocks as necessary; a last block that is not full ends the transfer.

        With ``end_of_data`` and no bytes, the end of data is sent with an empty block. Blocks sent before a RingTimeout
        remain sent.
        """
        data = memoryview(data).cast("B")
        size = self._data.bufsz
        for start in range(0, max(len(data), int(end_of_data)), size):
            chunk = data[start : start + size]
            # A page is still held if it could not be handed over before.
            block = self._page if self.isHoldingPage else self.getNextPage()
            block[: len(chunk)] = chunk
            self._filled(len(chunk), end_of_data and start + size >= len(data))
