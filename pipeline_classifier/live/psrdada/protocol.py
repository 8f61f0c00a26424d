"""The two ends of a PSRDADA ring: how ``ipcbuf`` hands blocks from one writer to up to eight readers.

Blocks are numbered from 0 for ever; block b lies in place b % nbufs. A *transfer* is a run of blocks from s_buf to
e_buf, of which the last may be filled in part; it ends with "end of data", and another one may follow. The writer
counts FULL up, a reader counts it down and CLEAR up, the writer counts CLEAR down before it fills a place again. Start
and end of the last eight transfers are kept, guarded by SODACK and EODACK.

What a process holds when it is killed comes back by SEM_UNDO (WRITE, READ, READER_CONN), all but the page in its hands:
``RingReader.lock`` finds that one.
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
"""How long FULL may lag behind the writer's count of blocks before a page is taken for lost."""


class RingReader(Ring):
    """The reading end of a ring."""

    def __init__(self, key: int, stream: int, timeout_s: float) -> None:
        super().__init__(key, stream, timeout_s, read_only=True)
        self.index: int | None = None
        self.reading = False

    def lock(self, timeout_s: float) -> None:
        """Take one of the ring's places for readers, in the process that will read.

        Raises
        ------
        RingTimeout : all places were taken.
        """
        deadline = time.monotonic() + timeout_s
        while self.change(self.connection, (READ, -1, SEM_UNDO), timeout_s=max(0.0, deadline - time.monotonic())):
            # The one that lags most comes first, as in PSRDADA.
            for index in sorted(range(self.n_readers), key=lambda reader: self.sync.r_bufs[reader]):
                if self.change(self.readers[index], (READER_CONN, -1, IPC_NOWAIT | SEM_UNDO)):
                    self.index, self.semaphores = index, self.readers[index]
                    self.reading = self.sync.r_states[index] == READING
                    self._repair()
                    return
            # The maker of a ring raises READ before READER_CONN.
            self.change(self.connection, (READ, 1, SEM_UNDO))
            if time.monotonic() >= deadline:
                break
            time.sleep(RETRY_S)
        raise RingTimeout(
            f"{self}: all {self.n_readers} places for readers are taken after {timeout_s:g} s; end the other reader, "
            "or make the ring with more (dada_db -r)"
        )

    def unlock(self) -> None:
        """Give the place back; the transfer may be taken up by the next reader."""
        if self.index is not None:
            self.sync.r_states[self.index] = READING if self.reading else DISCON
            self.change(self.semaphores, (READER_CONN, 1, SEM_UNDO))
            self.change(self.connection, (READ, 1, SEM_UNDO))
            self.index = None

    def _position(self) -> tuple[int, int]:
        """Slot of the current transfer, and number of the next block in it; it must have begun."""
        slot = self.sync.r_xfers[self.index] % MAX_TRANSFERS
        return slot, self.sync.r_bufs[self.index] if self.reading else self.sync.s_buf[slot]

    def _repair(self) -> None:
        """Put right what a killed reader left half done, and give back the page that it held.

        FULL is then one short of the blocks that are not read. If CLEAR has not been raised, the page was held, and is
        read again; else only the state was not brought up to date.
        """
        sync = self.sync
        begun = sync.w_xfer + (sync.w_state == WRITING) - sync.r_xfers[self.index]
        slot, block = self._position()
        if self.reading and (begun < 1 or block < sync.s_buf[slot] and begun <= MAX_TRANSFERS):
            self._state(sync.r_xfers[self.index], block + 1, False)  # the transfer before this one was ended
            block = sync.s_buf[slot]
        if begun < 1:
            return
        if not self.reading and begun > MAX_TRANSFERS:
            block = sync.r_bufs[self.index]  # begun by the dead reader: its slot says the start of a later one
        expected = self._blocks_filled() - block
        # The writer raises its count of blocks just before FULL: only a difference that stays is a lost page.
        while self.n_full < expected and self.change(
            self.semaphores, (FULL, -expected), (FULL, expected), timeout_s=REPAIR_S
        ):
            expected = self._blocks_filled() - block
        full = self.n_full
        lost, held = expected - full, sum(self.count) - full - self.value(self.semaphores, CLEAR)
        if expected > self.nbufs + 1:
            raise RingError(f"{self}: {expected} blocks wait in a ring of {self.nbufs}: garbage in its sync segment")
        if lost > held and self.reading:
            # Eight transfers later, slot and EODACK of the one that it ended are used again.
            self._advance(block, self.is_last(slot, block) or block < sync.s_buf[slot] <= sync.e_buf[slot])
            lost -= 1
        if lost > 0:
            logger.warning("%s: a reader died with %d page(s) in its hands; they are read again", self, lost)
            if not self.reading:
                self._state(sync.r_xfers[self.index], block, True)
            self.change(self.semaphores, (FULL, lost))

    def _blocks_filled(self) -> int:
        """Blocks given to the readers so far. Between transfers, w_buf_curr may count some that were not."""
        sync = self.sync
        if sync.w_state == WRITING or sync.w_xfer == 0:
            return sync.w_buf_curr
        return sync.e_buf[(sync.w_xfer - 1) % MAX_TRANSFERS] + 1

    def _state(self, transfer: int, block: int, reading: bool) -> None:
        """Say where this reader is, in the order that ``_repair`` relies on."""
        self.sync.r_xfers[self.index] = transfer
        if not reading:
            self.sync.r_states[self.index] = DISCON
        self.sync.r_bufs[self.index] = block
        if reading:
            self.sync.r_states[self.index] = READING
        self.reading = reading

    @property
    def n_full(self) -> int:
        """Blocks that wait to be read."""
        return self.value(self.semaphores, FULL)

    def wait(self, timeout_s: float) -> bool:
        """Wait until a page can be taken; False when there was none in time."""
        return self.change(self.semaphores, (FULL, -1), (FULL, 1), timeout_s=timeout_s)

    def peek(self) -> tuple[int, int] | None:
        """Address and bytes of the next page, which is not taken; None if there is none."""
        return self._page(*self._position()) if self.n_full else None

    def previous(self) -> tuple[int, int] | None:
        """Address and bytes of the page read last that was not empty; None if it is overwritten."""
        sync = self.sync
        for block in range(sync.r_bufs[self.index] - 1, max(-1, sync.w_buf_next - self.nbufs - 1), -1):
            ends = [sync.e_byte[slot] for slot in range(MAX_TRANSFERS) if self.is_last(slot, block)]
            size = ends[0] if ends and block else self.bufsz  # slots that were never used say block 0, byte 0
            if size:
                return self.addresses[block % self.nbufs], min(size, self.bufsz)
        return None

    def next(self) -> tuple[int, int] | None:
        """Take the next page: its address and bytes; None if there is none. It may be empty."""
        if not self.n_full:
            return None
        slot, block = self._position()
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
            raise RingError(f"{self}: a page from byte {start} to {end} of {self.bufsz}: garbage in its sync segment")
        return self.addresses[block % self.nbufs] + start, end - start

    def clear(self) -> None:
        """Give the page back to the writer; ``reading`` is False afterwards if it was the last of its transfer."""
        slot, block = self._position()
        last = self.is_last(slot, block)
        self.change(self.semaphores, (CLEAR, 1), *([(EODACK, 1)] if last else []))
        self._advance(block, last)

    def _advance(self, block: int, last: bool) -> None:
        self._state(self.sync.r_xfers[self.index] + last, block + 1, not last)

    @property
    def bytes_read(self) -> int:
        """Bytes of the current transfer before the next page."""
        slot, block = self._position()
        blocks = block - self.sync.s_buf[slot] if self.reading else 0
        # Eight transfers ahead, the writer puts the start of another one into the slot: this one is short, then.
        return blocks * self.bufsz - self.sync.s_byte[slot] if blocks > 0 else 0

    @property
    def writer_died(self) -> bool:
        """Whether a transfer is under way which no process writes."""
        # A writer that ends says so before it lets go; the second look is for one that ended between the first two.
        under_way = self.sync.w_state == WRITING and self.value(self.connection, WRITE) > 0
        return under_way and self.sync.w_state == WRITING


class RingWriter(Ring):
    """The writing end of a ring."""

    def __init__(self, key: int, stream: int, timeout_s: float) -> None:
        super().__init__(key, stream, timeout_s, read_only=False)
        self.locked = False

    def lock(self, timeout_s: float) -> None:
        """Become the writer. RingTimeout if there is another one."""
        if not self.change(self.connection, (WRITE, -1, SEM_UNDO), timeout_s=timeout_s):
            raise RingTimeout(f"{self}: still has another writer after {timeout_s:g} s; valid is one")
        self.locked = True
        self.starting = self.sync.w_state == DISCON
        self.sync.w_buf_next = self.sync.w_buf_curr  # a writer that died may have held a block

    def unlock(self) -> None:
        """Let another process write."""
        if self.locked:
            self.change(self.connection, (WRITE, 1, SEM_UNDO))
            self.locked = False

    def next(self, timeout_s: float) -> int:
        """Address of the next block to fill. RingTimeout if the readers clear none."""
        sync = self.sync
        if self.starting:
            self._take(SODACK, timeout_s, "does not begin to read")
            slot = sync.w_xfer % MAX_TRANSFERS
            sync.s_buf[slot], sync.s_byte[slot] = sync.w_buf_curr, 0
            if sync.w_buf_curr == 0:
                sync.eod[slot] = 0
            sync.w_state = WRITING
            self.starting = False
        place = sync.w_buf_next % self.nbufs
        while self.count[place]:
            self._take(CLEAR, timeout_s, "clears no block")
            self.count[place] -= 1
        sync.w_buf_next += 1
        return self.addresses[place]

    def filled(self, nbytes: int, end_of_data: bool, timeout_s: float) -> None:
        """Hand the block to the readers; fewer bytes than it holds end the transfer, as ``end_of_data`` does."""
        sync = self.sync
        end_of_data = end_of_data or nbytes < self.bufsz
        if end_of_data:
            self._take(EODACK, timeout_s, "does not end its transfers")
            slot = sync.w_xfer % MAX_TRANSFERS
            sync.e_buf[slot], sync.e_byte[slot], sync.eod[slot] = sync.w_buf_curr, nbytes, 1
            sync.w_xfer += 1
            sync.w_state = DISCON
        self.count[sync.w_buf_curr % self.nbufs] += 1
        sync.w_buf_curr += 1
        for semaphores in self.readers:
            self.change(semaphores, (FULL, 1))
        self.starting = end_of_data

    def _take(self, number: int, timeout_s: float, complaint: str) -> None:
        """Take one from a semaphore of every reader, or from none."""
        for index, semaphores in enumerate(self.readers):
            if not self.change(semaphores, (number, -1), timeout_s=timeout_s):
                for taken in self.readers[:index]:
                    self.change(taken, (number, 1))
                raise RingTimeout(f"{self}: reader {index} {complaint} for {timeout_s:g} s")
