"""Protocol between the writer and the readers of one PSRDADA ring, as in PSRDADA's ``ipcbuf.c`` and ``ipcbuf.h``.

The writer fills blocks, which are counted from 0 over the lifetime of the ring; block ``b`` is stored in buffer
``b % nbufs``. A *transfer* consists of the blocks from its start of data (block ``s_buf``, from byte ``s_byte`` on) to
its end of data (block ``e_buf``, of which ``e_byte`` bytes are valid, possibly none). The start and end of transfer
``n`` are stored in transfer slot ``n % 8``, so that the writer can be at most eight transfers ahead of a reader.

Every reader has its own semaphores (``READER_CONN``: see ``RingReader.lock``):

========== =========== ====================================== ======================================
semaphore  at creation lowered by                             raised by
========== =========== ====================================== ======================================
``SODACK`` 8           the writer at start of data            the reader with its first page
``EODACK`` 8           the writer at end of data              the reader when it clears the last page
``FULL``   0           the reader when it takes a page        the writer when it has filled a block
``CLEAR``  0           the writer before it reuses a buffer   the reader when it clears a page
========== =========== ====================================== ======================================

The kernel releases the locks of a process that is killed (``WRITE``, ``READ`` and ``READER_CONN`` are changed with
SEM_UNDO), but not the page that a reader was holding: ``RingReader.lock`` detects that.
"""

import logging
import time

from pipeline_classifier.live.psrdada.ring import (
    CLEAR,
    EODACK,
    FULL,
    MAX_TRANSFERS,
    READ,
    READER_CONN,
    RETRY_S,
    SODACK,
    WRITE,
    Ring,
    RingError,
    RingTimeout,
)
from pipeline_classifier.live.psrdada.sysv import IPC_NOWAIT, SEM_UNDO

logger = logging.getLogger(__name__)

DISCON, WRITING, READING = 0, 3, 6
REPAIR_S = 0.2
"""Time in seconds for which FULL may stay below the writer's count of blocks before a page is considered lost.

Chosen by hand; not tuned on data. The writer raises FULL immediately after its count.
"""


class RingReader(Ring):
    """Reading end of a ring.

    Parameters
    ----------
    key, stream, timeout_s
        As for ``Ring``.

    Attributes
    ----------
    index : int or None
        Number of this reader, from 0 to ``n_readers - 1``; None while it is not locked.
    reading : bool
        Whether it is inside a transfer: it has taken the first page and has not yet cleared the last one.
    """

    def __init__(self, key: int, stream: int, timeout_s: float) -> None:
        super().__init__(key, stream, timeout_s, read_only=True)
        self.index: int | None = None
        self.reading = False

    def lock(self, timeout_s: float) -> None:
        """Become one of the ring's ``n_readers`` readers (``ipcbuf_lock_read``); call it in the process that reads.

        READ counts the readers that can still connect, READER_CONN is 1 for each reader number that is free. A reader
        continues where the previous one with its number stopped.

        Raises
        ------
        RingTimeout
            If no reader number became free within ``timeout_s``.
        RingError
            If the sync segment is corrupt.
        """
        deadline = time.monotonic() + timeout_s
        while self.change(self.connection, (READ, -1, SEM_UNDO), timeout_s=max(0.0, deadline - time.monotonic())):
            # As in PSRDADA, the reader that is furthest behind comes first.
            for index in sorted(range(self.n_readers), key=lambda reader: self.sync.r_bufs[reader]):
                if self.change(self.readers[index], (READER_CONN, -1, IPC_NOWAIT | SEM_UNDO)):
                    self.index, self.semaphores = index, self.readers[index]
                    self.reading = self.sync.r_states[index] == READING
                    self._repair()
                    return
            # Whoever creates a ring raises READ before READER_CONN.
            self.change(self.connection, (READ, 1, SEM_UNDO))
            if time.monotonic() >= deadline:
                break
            time.sleep(RETRY_S)
        others = "another reader is" if self.n_readers == 1 else f"{self.n_readers} other readers are"
        raise RingTimeout(f"{self}: {others} connected; stop one, or create the ring with more readers (dada_db -r)")

    def unlock(self) -> None:
        """Disconnect (``ipcbuf_unlock_read``); the next reader continues the transfer."""
        if self.index is not None:
            self.sync.r_states[self.index] = READING if self.reading else DISCON
            self.change(self.semaphores, (READER_CONN, 1, SEM_UNDO))
            self.change(self.connection, (READ, 1, SEM_UNDO))
            self.index = None

    def _position(self) -> tuple[int, int]:
        """Return the slot of the current transfer and the next block to read in it; the transfer must have begun."""
        slot = self.sync.r_xfers[self.index] % MAX_TRANSFERS
        return slot, self.sync.r_bufs[self.index] if self.reading else self.sync.s_buf[slot]

    def _repair(self) -> None:
        """Complete what a killed reader left unfinished, so that the page it was holding is read again.

        A reader lowers FULL and then stores its position; later it raises CLEAR and again stores its position. After a
        kill in between, FULL is one less than the number of unread blocks. If CLEAR has not been raised for the missing
        page, the reader was holding it, and FULL is raised again; otherwise only the stored position is out of date.
        """
        sync = self.sync
        begun = sync.w_xfer + (sync.w_state == WRITING) - sync.r_xfers[self.index]
        slot, block = self._position()
        if self.reading and (begun < 1 or block < sync.s_buf[slot] and begun <= MAX_TRANSFERS):
            self._state(sync.r_xfers[self.index], block + 1, False)  # the kill came while it was ending a transfer
            block = sync.s_buf[slot]
        if begun < 1:
            return
        if not self.reading:
            # A dead reader may have begun a transfer whose slot now holds a later one.
            block = sync.r_bufs[self.index] if begun > MAX_TRANSFERS else self._next_position()[1]
        expected = self._blocks_filled() - block
        # The writer raises its count of blocks just before FULL: only a lasting difference means a lost page.
        while self.n_full < expected and self.change(
            self.semaphores, (FULL, -expected), (FULL, expected), timeout_s=REPAIR_S
        ):
            expected = self._blocks_filled() - block
        full = self.n_full
        lost, held = expected - full, sum(self.count) - full - self.value(self.semaphores, CLEAR)
        if expected > self.nbufs + 1:
            raise RingError(
                f"{self}: the number of unread blocks must be at most {self.nbufs}, got {expected}: "
                "the sync segment is corrupt"
            )
        if lost > held and self.reading:
            # If the writer is eight transfers ahead, it has already reused the slot of the transfer that ended here.
            self._advance(block, self.is_last(slot, block) or block < sync.s_buf[slot] <= sync.e_buf[slot])
            lost -= 1
        if lost > 0:
            logger.warning("%s: a reader was killed while it held %d page(s), which will be read again", self, lost)
            if not self.reading:
                self._state(sync.r_xfers[self.index], block, True)
            self.change(self.semaphores, (FULL, lost))

    def _blocks_filled(self) -> int:
        """Return the number of blocks handed to the readers; between transfers, w_buf_curr may be larger."""
        sync = self.sync
        if sync.w_state == WRITING:
            return sync.w_buf_curr
        return sync.e_buf[(sync.w_xfer - 1) % MAX_TRANSFERS] + 1

    def _state(self, transfer: int, block: int, reading: bool) -> None:
        """Store the position of this reader, in the order that ``_repair`` relies on."""
        self.sync.r_xfers[self.index] = transfer
        if not reading:
            self.sync.r_states[self.index] = DISCON
        self.sync.r_bufs[self.index] = block
        if reading:
            self.sync.r_states[self.index] = READING
        self.reading = reading

    @property
    def n_full(self) -> int:
        """Number of unread blocks."""
        return self.value(self.semaphores, FULL)

    def wait(self, timeout_s: float) -> bool:
        """Wait until a page can be taken; return False if there was none within ``timeout_s``."""
        return self.change(self.semaphores, (FULL, -1), (FULL, 1), timeout_s=timeout_s)

    def peek(self) -> tuple[int, int] | None:
        """Return address and size in bytes of the next page without taking it; None if there is none."""
        return self._page(*self._next_position()) if self.n_full else None

    def _next_position(self) -> tuple[int, int]:
        """Return `_position`, or raise RingError if it is that of a page that was read before.

        A transfer that begins before the end of what was read is one whose start was never stored, because the writer
        was killed and another one went on in its place: its slot is that of an earlier transfer.
        """
        slot, block = self._position()
        if not self.reading and block < self.sync.r_bufs[self.index]:
            raise RingError(f"{self}: a transfer begins before the end of the previous one; {self.remedy}")
        return slot, block

    def previous(self) -> tuple[int, int] | None:
        """Return address and size of the last page read that was not empty; None if it may have been overwritten."""
        sync = self.sync
        for block in range(sync.r_bufs[self.index] - 1, max(-1, sync.w_buf_next - self.nbufs - 1), -1):
            ends = [sync.e_byte[slot] for slot in range(MAX_TRANSFERS) if self.is_last(slot, block)]
            size = ends[0] if ends and block else self.bufsz  # a slot that was never used holds block 0, byte 0
            if size:
                return self.addresses[block % self.nbufs], min(size, self.bufsz)
        return None

    def next(self) -> tuple[int, int] | None:
        """Take the next page (``ipcbuf_get_next_read``).

        Returns
        -------
        page : (int, int) or None
            Address and size in bytes, which may be 0; None if there is no page.
        """
        if not self.n_full:
            return None
        slot, block = self._next_position()
        page = self._page(slot, block)
        if self.reading:
            self.change(self.semaphores, (FULL, -1))
        else:
            self.change(self.semaphores, (FULL, -1), (SODACK, 1))
            self._state(self.sync.r_xfers[self.index], block, True)
        return page

    def _page(self, slot: int, block: int) -> tuple[int, int]:
        start = self.sync.s_byte[slot] if block == self.sync.s_buf[slot] else 0
        end = self.sync.e_byte[slot] if self.is_last(slot, block) else self.bufsz
        if not start <= end <= self.bufsz:
            raise RingError(
                f"{self}: a page must lie within the {self.bufsz} bytes of its block, got bytes {start} to {end}: "
                "the sync segment is corrupt"
            )
        return self.addresses[block % self.nbufs] + start, end - start

    def clear(self) -> None:
        """Return the page to the writer (``ipcbuf_mark_cleared``); after the last one, ``reading`` is False."""
        slot, block = self._position()
        last = self.is_last(slot, block)
        self.change(self.semaphores, (CLEAR, 1), *([(EODACK, 1)] if last else []))
        self._advance(block, last)

    def _advance(self, block: int, last: bool) -> None:
        self._state(self.sync.r_xfers[self.index] + last, block + 1, not last)

    @property
    def bytes_read(self) -> int:
        """Bytes of the current transfer before the next page (``ipcbuf_tell_read``)."""
        slot, block = self._position()
        blocks = block - self.sync.s_buf[slot]  # negative if the slot already holds a transfer eight later
        return blocks * self.bufsz - self.sync.s_byte[slot] if blocks > 0 else 0

    @property
    def writer_died(self) -> bool:
        """Whether the current transfer was left unfinished by a writer that is gone."""
        # A writer resets w_state before it disconnects. It may do both between the first two checks, hence the third.
        under_way = self.sync.w_state == WRITING and self.value(self.connection, WRITE) > 0
        return under_way and self.sync.w_state == WRITING

    @property
    def in_progress(self) -> bool:
        """Whether the writer has not yet ended the current transfer."""
        return self.sync.w_state == WRITING and self.sync.w_xfer == self.sync.r_xfers[self.index]

    @property
    def unfinished(self) -> int | None:
        """Address of the block that a dead writer had taken and did not hand over, once all others are read."""
        sync = self.sync
        if not self.writer_died or self.n_full or sync.w_buf_next == sync.w_buf_curr:
            return None
        return self.addresses[sync.w_buf_curr % self.nbufs]

    def absent_readers(self) -> list[int]:
        """Return the numbers of the readers that are not connected although the writer waits for them."""
        # A stock writer hands over a full block when it needs the next one, so that one may be missing.
        waiting = max(1, self.nbufs - 1)
        return [
            index
            for index, semaphores in enumerate(self.readers)
            if self.value(semaphores, READER_CONN) and self.value(semaphores, FULL) >= waiting
        ]


class RingWriter(Ring):
    """Writing end of a ring.

    Parameters
    ----------
    key, stream, timeout_s
        As for ``Ring``.

    Attributes
    ----------
    locked : bool
        Whether this is the writer of the ring.
    starting : bool
        Whether the next block will begin a transfer.
    """

    def __init__(self, key: int, stream: int, timeout_s: float) -> None:
        super().__init__(key, stream, timeout_s, read_only=False)
        self.locked = False

    def lock(self, timeout_s: float) -> None:
        """Become the writer (``ipcbuf_lock_write``); a transfer that a killed writer left unfinished is continued.

        Raises
        ------
        RingTimeout
            If another writer was still connected after ``timeout_s``.
        """
        if not self.change(self.connection, (WRITE, -1, SEM_UNDO), timeout_s=timeout_s):
            raise RingTimeout(f"{self}: another writer is still connected after {timeout_s:g} s; a ring has only one")
        self.locked = True
        self.starting = self.sync.w_state == DISCON
        self.sync.w_buf_next = self.sync.w_buf_curr  # a killed writer may have taken a block

    def unlock(self) -> None:
        """Disconnect (``ipcbuf_unlock_write``); another process can become the writer."""
        if self.locked:
            self.change(self.connection, (WRITE, 1, SEM_UNDO))
            self.locked = False

    def next(self, timeout_s: float) -> int:
        """Take the next block to fill (``ipcbuf_get_next_write``).

        Returns
        -------
        address : int
            Address of the block, which has ``bufsz`` bytes.

        Raises
        ------
        RingTimeout
            If a reader is eight transfers behind, or does not clear the buffer, for ``timeout_s``.
        """
        sync = self.sync
        if self.starting:
            self._take(SODACK, timeout_s, "did not begin a transfer")
            slot = sync.w_xfer % MAX_TRANSFERS
            sync.s_buf[slot], sync.s_byte[slot] = sync.w_buf_curr, 0
            if sync.w_buf_curr == 0:
                sync.eod[slot] = 0
            sync.w_state = WRITING
            self.starting = False
        buffer = sync.w_buf_next % self.nbufs
        while self.count[buffer]:
            self._take(CLEAR, timeout_s, "did not clear a block")
            self.count[buffer] -= 1
        sync.w_buf_next += 1
        return self.addresses[buffer]

    def filled(self, nbytes: int, end_of_data: bool, timeout_s: float) -> None:
        """Hand the block to the readers (``ipcbuf_mark_filled``).

        Parameters
        ----------
        nbytes : int
            Valid bytes in the block. Fewer than ``bufsz`` end the transfer.
        end_of_data : bool
            End the transfer even if the block is full.
        timeout_s : float
            Longest wait for a reader that is eight transfers behind.

        Raises
        ------
        RingTimeout
            If a reader did not finish a transfer within ``timeout_s``.
        """
        sync = self.sync
        end_of_data = end_of_data or nbytes < self.bufsz
        if end_of_data:
            self._take(EODACK, timeout_s, "did not finish a transfer")
            slot = sync.w_xfer % MAX_TRANSFERS
            sync.e_buf[slot], sync.e_byte[slot], sync.eod[slot] = sync.w_buf_curr, nbytes, 1
            sync.w_xfer += 1
            sync.w_state = DISCON
        self.count[sync.w_buf_curr % self.nbufs] += 1
        sync.w_buf_curr += 1
        for semaphores in self.readers:
            self.change(semaphores, (FULL, 1))
        self.starting = end_of_data

    def _take(self, number: int, timeout_s: float, failure: str) -> None:
        """Lower a semaphore of every reader by one, or of none if a reader does not allow it within ``timeout_s``."""
        for index, semaphores in enumerate(self.readers):
            if not self.change(semaphores, (number, -1), timeout_s=timeout_s):
                for taken in self.readers[:index]:
                    self.change(taken, (number, 1))
                raise RingTimeout(f"{self}: reader {index} {failure} within {timeout_s:g} s")
