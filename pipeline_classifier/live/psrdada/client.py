"""PSRDADA rings without PSRDADA: ``Reader``, ``Writer``, ``create_rings`` and ``destroy_rings``.

  with Reader("2222") as reader:                    # hexadecimal, as for dada_db -k
      header = reader.getHeader()
      while reader.wait(10.0):
          page = np.frombuffer(reader.getNextPage(), np.float32)
          reader.markCleared()                      # reader.isEndOfData says whether it was the last of its transfer

Method names are those of psrdada-python, whose Reader can stand in the place of this one. What is new: nothing waits
for ever, a writer that died or a ring that was destroyed is an error of its own (``WriterDied``, ``RingDestroyed``),
and the page that a killed reader held is read again. A stream is a pair of rings: data under the key, headers under
key + 1.

Connect in the process that reads or writes: a lock belongs to the process that took it.
"""

import ctypes
import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Generic, Self, TypeVar

from pipeline_classifier.config import parse_key
from pipeline_classifier.live.psrdada.protocol import RingReader, RingWriter
from pipeline_classifier.live.psrdada.ring import (
    MAX_READERS,
    RingDestroyed,
    RingError,
    RingTimeout,
    WriterDied,
    make_ring,
    remove_ring,
)
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

RAW_HEADER = "__RAW_HEADER__"
POLL_S = 0.25
"""How often a wait looks whether the writer is still there."""


def parse_header(raw: str | bytes) -> dict:
    """Parse a header: one JSON object, or lines of ``KEY value``; zeros and text after the object do not matter.

    Returns
    -------
    dict
        The object, or the values as strings; the text itself under ``__RAW_HEADER__``.
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


def create_rings(
    key: str | int,
    block_bytes: int,
    n_blocks: int = 16,
    n_readers: int = 1,
    header_blocks: int = 8,
    header_bytes: int = 4096,
) -> None:
    """Make the rings of a stream, as ``dada_db -k key -b block_bytes -n n_blocks -r n_readers`` does.

    Raises
    ------
    RingError : the key, or one that belongs to it, is taken.
    """
    key = parse_key(key)
    if not 1 <= n_readers <= MAX_READERS:
        raise InputError(f"n_readers {n_readers}: valid are 1 to {MAX_READERS}")
    if block_bytes < 1 or n_blocks < 1:
        raise InputError(f"{n_blocks} blocks of {block_bytes} bytes make no ring: valid are numbers above 0")
    try:
        make_ring(key, n_blocks, block_bytes, n_readers)
        try:
            make_ring(key + 1, header_blocks, header_bytes, n_readers)
        except BaseException:
            remove_ring(key)
            raise
    except FileExistsError as error:
        raise RingError(
            f"ring 0x{key:x} is there already, or shares a key; destroy it (dada_db -d -k {key:x})"
        ) from error


def destroy_rings(key: str | int) -> None:
    """Destroy the rings of a stream, as ``dada_db -d -k key``; rings that are not there are no error."""
    key = parse_key(key)
    remove_ring(key)
    remove_ring(key + 1)


_End = TypeVar("_End", RingReader, RingWriter)


class _Stream(Generic[_End]):
    """The pair of rings that both ends have: header and data, connected and disconnected together."""

    _end: type[_End]

    def __init__(self, key: str | int | None = None, timeout_s: float = 10.0) -> None:
        self.timeout_s = timeout_s
        self.isEndOfData = False
        self.isHoldingPage = False
        self._rings: list[_End] = []
        if key is not None:
            self.connect(key)

    def connect(self, key: str | int) -> None:
        """Attach and lock both rings; nothing stays attached if that fails.

        Raises
        ------
        RingError : see ``Ring`` and ``lock``; RingTimeout after ``timeout_s``.
        """
        if self._rings:
            raise RingError(f"{self._data} is connected already; disconnect first")
        key = parse_key(key)
        deadline = time.monotonic() + self.timeout_s
        self.isEndOfData = self.isHoldingPage = False
        try:
            for ring_key in (key + 1, key):
                self._rings.append(self._end(ring_key, key, max(0.0, deadline - time.monotonic())))
            for ring in self._rings:
                ring.lock(max(0.0, deadline - time.monotonic()))
        except BaseException:
            self._release()
            raise

    @property
    def isConnected(self) -> bool:
        return bool(self._rings)

    @property
    def _header(self) -> _End:
        return self._ring(0)

    @property
    def _data(self) -> _End:
        return self._ring(1)

    def _ring(self, number: int) -> _End:
        if not self._rings:
            raise RingError("not connected to a ring; connect first")
        return self._rings[number]

    def _release(self) -> None:
        """Unlock and detach, even if the rings are gone."""
        for ring in reversed(self._rings):
            try:
                ring.unlock()
            except RingDestroyed:
                pass  # there is nothing to give back
            finally:
                ring.detach()
        self._rings = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        self._release()


class Reader(_Stream[RingReader]):
    """Reads a stream of pages.

    Parameters
    ----------
    key : of the data ring; a string is hexadecimal. None: ``connect`` later
    timeout_s : longest wait of ``connect``, ``getHeader`` and ``getNextPage``
    copy : hand out copies of pages; else views, which must not be touched after ``markCleared`` or ``disconnect``

    Attributes
    ----------
    header : what ``getHeader`` gave last
    isEndOfData : whether the page cleared last ended its transfer. Another transfer may follow.
    """

    _end = RingReader

    def __init__(self, key: str | int | None = None, timeout_s: float = 10.0, copy: bool = True) -> None:
        self.copy = copy
        self.header: dict = {}
        super().__init__(key, timeout_s)

    def disconnect(self) -> None:
        """Clear a page that is held, and let go of the rings; works on destroyed ones, and twice."""
        try:
            self.markCleared()
        except RingDestroyed:
            pass  # there is nobody to clear it for
        finally:
            self._release()

    def getHeader(self) -> dict:
        """The next header, parsed (``parse_header``).

        If pages wait but no header does, the header of an earlier reader is read again, or the header is empty.

        Raises
        ------
        RingTimeout : neither header nor page came within ``timeout_s``.
        """
        deadline = time.monotonic() + self.timeout_s
        raw = self.peekHeader()
        while raw is None and not self._data.n_full and time.monotonic() < deadline:
            self._header.wait(min(POLL_S, max(0.0, deadline - time.monotonic())))
            raw = self.peekHeader()
        if raw is None:
            raw = self.peekHeader()  # a header is written before its pages
        if raw is not None:
            self._header.next()
            self._header.clear()
        elif (page := self._header.previous()) is not None:
            raw = ctypes.string_at(*page)
        elif self._data.n_full:
            raw = b""
        else:
            raise RingTimeout(f"{self._data}: no header and no page within {self.timeout_s:g} s")
        self.header = parse_header(raw)
        return self.header

    def peekHeader(self) -> bytes | None:
        """The header that waits, which is not taken; None if there is none. Empty ones are passed over."""
        while (page := self._header.peek()) is not None:
            if page[1]:
                return ctypes.string_at(*page)
            self._header.next()
            self._header.clear()
        return None

    def wait(self, timeout_s: float) -> bool:
        """Wait until ``getNextPage`` has a page at once; False when none came in time.

        Raises
        ------
        WriterDied : every page is read, and the writer went in mid-transfer; known within ``POLL_S``.
        RingDestroyed : the ring is gone.
        """
        data, deadline = self._data, time.monotonic() + timeout_s
        while True:
            left = max(0.0, deadline - time.monotonic())
            if data.wait(min(POLL_S, left)):
                return True
            if data.writer_died and not data.n_full:
                raise WriterDied(
                    f"{data}: the writer died in mid-transfer; destroy the ring and make it again before the next run"
                )
            if left <= POLL_S:
                return False

    def getNextPage(self) -> memoryview:
        """The next page, read-only bytes; empty ones come too. RingTimeout after ``timeout_s``; else as ``wait``."""
        if self.isHoldingPage:
            raise RingError(f"{self._data}: the page before is not cleared; call markCleared first")
        if not self.wait(self.timeout_s) or (page := self._data.next()) is None:
            raise RingTimeout(f"{self._data}: no page within {self.timeout_s:g} s")
        self.isHoldingPage, self.isEndOfData = True, False
        if self.copy:
            return memoryview(ctypes.string_at(*page))
        address, nbytes = page
        return memoryview((ctypes.c_ubyte * nbytes).from_address(address)).cast("B").toreadonly()

    def markCleared(self) -> None:
        """Give the page back to the writer."""
        if self.isHoldingPage:
            self.isHoldingPage = False
            self._data.clear()
            self.isEndOfData = not self._data.reading

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        """The pages of one transfer, each cleared when the next one is asked for."""
        self.markCleared()
        if self.isEndOfData:
            self.isEndOfData = False
            raise StopIteration
        return self.getNextPage()

    @property
    def fill(self) -> tuple[int, int]:
        """Full blocks, and all blocks of the ring. When all are full, the writer stands still."""
        return self._data.n_full, self._data.nbufs

    @property
    def bytes_read(self) -> int:
        """Bytes of the current transfer before the next page, those that earlier readers took included."""
        return self._data.bytes_read


class Writer(_Stream[RingWriter]):
    """Writes a stream of pages.

    Parameters
    ----------
    key : of the data ring; a string is hexadecimal. None: ``connect`` later
    timeout_s : longest wait for rings, for another writer to end, and for readers to clear a block
    """

    _end = RingWriter

    def disconnect(self) -> None:
        """End the transfer that is under way, and let go of the rings; works on destroyed ones, and twice."""
        try:
            if self._rings and self._data.locked and not self._data.starting:
                if not self.isHoldingPage:
                    self.getNextPage()
                self.markEndOfData(0)
        except RingError as error:  # destroyed, or no reader clears a block: readers see a writer that died
            logger.warning("%s; the transfer is not ended", error)
        finally:
            self.isHoldingPage = False
            self._release()

    def setHeader(self, header: bytes | str | Mapping[str, object]) -> None:
        """Send a header, padded with zeros to a whole block: text as it is, a mapping as lines of ``KEY value``."""
        if isinstance(header, Mapping):
            header = "".join(f"{key} {value}\n" for key, value in header.items())
        raw = header.encode() if isinstance(header, str) else header
        ring = self._header
        if len(raw) > ring.bufsz:
            raise RingError(f"{ring}: a header of {len(raw)} bytes; valid are at most {ring.bufsz}")
        address = ring.next(self.timeout_s)
        ctypes.memmove(address, raw.ljust(ring.bufsz, b"\0"), ring.bufsz)
        ring.filled(ring.bufsz, end_of_data=False, timeout_s=self.timeout_s)

    def getNextPage(self) -> memoryview:
        """The next block, to be filled. RingTimeout if the ring stays full for ``timeout_s``."""
        if self.isHoldingPage:
            raise RingError(f"{self._data}: the page before is not filled; call markFilled first")
        address = self._data.next(self.timeout_s)
        self.isHoldingPage, self.isEndOfData = True, False
        self._page = memoryview((ctypes.c_ubyte * self._data.bufsz).from_address(address)).cast("B")
        return self._page

    def markFilled(self, nbytes: int | None = None) -> None:
        """Hand the page to the readers; fewer bytes than a block end the transfer, as PSRDADA has it."""
        self._filled(nbytes, end_of_data=False)

    def markEndOfData(self, nbytes: int | None = None) -> None:
        """Hand the page to the readers as the last one of its transfer."""
        self._filled(nbytes, end_of_data=True)

    def _filled(self, nbytes: int | None, end_of_data: bool) -> None:
        if self.isHoldingPage:
            self._data.filled(self._data.bufsz if nbytes is None else nbytes, end_of_data, self.timeout_s)
            self.isHoldingPage = False
            self.isEndOfData = self._data.starting

    def write(self, data: bytes | memoryview, end_of_data: bool = False) -> None:
        """Send bytes in as many blocks as they need; a last block that is not full ends the transfer.

        The end of data needs a block, be it an empty one. A RingTimeout leaves the blocks before it sent.
        """
        data = memoryview(data).cast("B")
        size = self._data.bufsz
        for start in range(0, max(len(data), int(end_of_data)), size):
            chunk = data[start : start + size]
            block = self._page if self.isHoldingPage else self.getNextPage()  # held: what came before could not be sent
            block[: len(chunk)] = chunk
            self._filled(len(chunk), end_of_data and start + size >= len(data))
