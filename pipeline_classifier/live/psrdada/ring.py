"""One PSRDADA ring, ``ipcbuf``: its layout (PSRDADA 2018-11-15 to 1.1.0); made, attached, destroyed.

The sync segment has the ring's key and holds ``ipcsync_t`` (528 bytes), then ``count`` (uint8 per block: times
it was filled and not taken back), then the key of each block (int32, maybe unaligned). Its other keys follow in steps
of 0x10000: the connection semaphores, eight places for the semaphores of a reader, the data blocks.
"""

import ctypes
import time
from collections.abc import Callable

from pipeline_classifier.live.psrdada.sysv import Segment, Semaphores, is_gone
from single_pulse_classifier_training.cli import InputError

MAX_READERS = 8
MAX_TRANSFERS = 8
KEY_STEP = 0x10000
WRITE, READ = 0, 1
SODACK, EODACK, FULL, CLEAR, READER_CONN = range(5)
RETRY_S = 0.02


class IpcSync(ctypes.Structure):
    """``ipcsync_t``, 528 bytes; PSRDADA's own names."""

    _fields_ = [
        ("semkey_connect", ctypes.c_int32),
        ("semkey_data", ctypes.c_int32 * MAX_READERS),
        ("nbufs", ctypes.c_uint64),
        ("bufsz", ctypes.c_uint64),
        ("w_buf_next", ctypes.c_uint64),
        ("w_buf_curr", ctypes.c_uint64),
        ("w_state", ctypes.c_int32),
        ("w_xfer", ctypes.c_uint64),
        ("r_bufs", ctypes.c_uint64 * MAX_READERS),
        ("r_states", ctypes.c_int32 * MAX_READERS),
        ("r_xfers", ctypes.c_uint64 * MAX_READERS),
        ("n_readers", ctypes.c_uint32),
        ("s_buf", ctypes.c_uint64 * MAX_TRANSFERS),
        ("s_byte", ctypes.c_uint64 * MAX_TRANSFERS),
        ("eod", ctypes.c_uint8 * MAX_TRANSFERS),
        ("e_buf", ctypes.c_uint64 * MAX_TRANSFERS),
        ("e_byte", ctypes.c_uint64 * MAX_TRANSFERS),
        ("on_device_id", ctypes.c_int32),
    ]


SYNC_BYTES = ctypes.sizeof(IpcSync)
OLDER_SYNC_BYTES = (512, 520)
NBUFS_OFFSET = IpcSync.nbufs.offset


class RingError(InputError):
    """A ring that is not as it should be."""


class RingTimeout(RingError):
    """A ring, a place in it or a page that did not come in time."""


class WriterDied(RingError):
    """The writer went in the middle of a transfer."""


class RingDestroyed(RingError):
    """The ring was destroyed while it was in use."""


class _NotReady(Exception):
    """The ring is being made; the text says what is missing."""


def blocks_of(segment: Segment, name: str) -> int:
    """Blocks of the ring whose sync segment this is, if its size fits to them."""
    nbufs = 0
    if segment.size >= NBUFS_OFFSET + 8:
        nbufs = ctypes.c_uint64.from_address(segment.address + NBUFS_OFFSET).value
        if nbufs == 0:
            raise _NotReady("it is still being made")
    if segment.size != SYNC_BYTES + 5 * nbufs:
        what = "not of a PSRDADA ring"
        if segment.size - 5 * nbufs in OLDER_SYNC_BYTES:
            what = "the layout of a PSRDADA before 2018-11-15"
        raise RingError(
            f"{name}: a sync segment of {segment.size} bytes is {what}; valid are {SYNC_BYTES} "
            "and 5 more for each block"
        )
    return nbufs


class Ring:
    """A ring, attached: memory and semaphores, and what reader and writer have in common.

    Parameters
    ----------
    key : of the sync segment
    stream : key of the stream that the ring belongs to, which messages name
    timeout_s : how long to wait for a ring that is not there, or not ready
    read_only : attach the blocks for reading only

    Raises
    ------
    RingTimeout : it was not there, or not ready, in time.
    RingError : it is no ring of this layout, or lies on a GPU.
    """

    def __init__(self, key: int, stream: int, timeout_s: float, read_only: bool) -> None:
        self.key, self.stream = key, stream
        deadline = time.monotonic() + timeout_s
        while True:
            self._segments: list[Segment] = []
            try:
                self._attach(read_only)
                return
            except (_NotReady, FileNotFoundError) as error:
                self.detach()
                if time.monotonic() >= deadline:
                    reason = error if isinstance(error, _NotReady) else "it is not there, or not whole"
                    raise RingTimeout(
                        f"{self}: no ring after {timeout_s:g} s ({reason}); make it with dada_db -k {stream:x}, or "
                        "give the key of one that is there (hexadecimal)"
                    ) from None
            except PermissionError as error:
                self.detach()
                raise RingError(
                    f"{self}: not allowed to attach; valid is a ring of one's own, or of mode 0666"
                ) from error
            except BaseException:
                self.detach()
                raise
            time.sleep(RETRY_S)

    def __str__(self) -> str:
        return f"ring 0x{self.stream:x}" + (" (headers)" if self.key != self.stream else "")

    def _attach(self, read_only: bool) -> None:
        segment = self._segment(self.key)
        self.nbufs = blocks_of(segment, str(self))
        self.sync = sync = IpcSync.from_address(segment.address)
        if not (sync.n_readers and sync.bufsz and sync.semkey_connect):
            raise _NotReady("it is still being made")
        if sync.on_device_id >= 0:
            raise RingError(f"{self}: its blocks lie on GPU {sync.on_device_id}; valid is a ring in host memory")
        if sync.n_readers > MAX_READERS:
            raise RingError(f"{self}: says {sync.n_readers} readers, valid are 1 to {MAX_READERS}: not a PSRDADA ring")
        self.bufsz, self.n_readers = sync.bufsz, sync.n_readers
        self.count = (ctypes.c_uint8 * self.nbufs).from_address(segment.address + SYNC_BYTES)
        keys = (ctypes.c_int32 * self.nbufs).from_address(segment.address + SYNC_BYTES + self.nbufs)
        try:
            self.connection = Semaphores(sync.semkey_connect, 2)
            self.readers = [Semaphores(key, 5) for key in sync.semkey_data[: self.n_readers]]
        except OSError as error:
            if is_gone(error):
                raise RingError(f"{self}: its semaphores are too few: not a PSRDADA ring") from error
            raise
        if 0 in keys[:]:
            raise _NotReady("its blocks are still being made")
        blocks = [self._segment(key, read_only) for key in keys]
        if any(block.size < self.bufsz for block in blocks):
            raise RingError(f"{self}: blocks smaller than the {self.bufsz} bytes it says: not a PSRDADA ring")
        self.addresses = [block.address for block in blocks]

    def _segment(self, key: int, read_only: bool = False) -> Segment:
        segment = Segment(key, read_only=read_only)
        self._segments.append(segment)
        return segment

    def detach(self) -> None:
        """Let go of all memory; the ring itself stays."""
        self.sync = self.count = None  # type: ignore[assignment] # they would dangle
        for segment in self._segments:
            segment.detach()
        self._segments = []

    def change(
        self, semaphores: Semaphores, *operations: tuple[int, int] | tuple[int, int, int], timeout_s: float = 0.0
    ) -> bool:
        """``Semaphores.change`` with operations (number, change[, flags]); RingDestroyed if the ring is gone."""
        try:
            return semaphores.change(*[(*operation, 0)[:3] for operation in operations], timeout_s=timeout_s)
        except OSError as error:
            raise self._gone(error) from error

    def value(self, semaphores: Semaphores, number: int) -> int:
        """Value of a semaphore; RingDestroyed if the ring is gone."""
        try:
            return semaphores[number]
        except OSError as error:
            raise self._gone(error) from error

    def _gone(self, error: OSError) -> Exception:
        return RingDestroyed(f"{self}: destroyed while it was in use") if is_gone(error) else error

    def is_last(self, slot: int, block: int) -> bool:
        """Whether ``block`` ends the transfer in ``slot``; eod alone is stale in a slot that is used again."""
        return bool(self.sync.eod[slot]) and self.sync.e_buf[slot] == block


def make_ring(key: int, nbufs: int, bufsz: int, n_readers: int) -> None:
    """Make a ring of ``nbufs`` blocks of ``bufsz`` bytes, all of it or nothing. FileExistsError if the key is taken."""
    made: list[Segment | Semaphores] = []
    try:
        segment = Segment(key, SYNC_BYTES + 5 * nbufs)
        made.append(segment)
        sync = IpcSync.from_address(segment.address)
        sync.nbufs, sync.bufsz, sync.n_readers, sync.on_device_id = nbufs, bufsz, n_readers, -1
        sync.eod[:] = [1] * MAX_TRANSFERS
        sync.semkey_connect = key + KEY_STEP
        sync.semkey_data[:] = [key + KEY_STEP * (2 + reader) for reader in range(MAX_READERS)]
        keys = (ctypes.c_int32 * nbufs).from_address(segment.address + SYNC_BYTES + nbufs)
        keys[:] = [key + KEY_STEP * (2 + MAX_READERS + block) for block in range(nbufs)]
        connection = Semaphores(sync.semkey_connect, 2, create=True)
        made.append(connection)
        readers = [Semaphores(semkey, 5, create=True) for semkey in sync.semkey_data[:n_readers]]
        made += readers
        for block_key in keys:
            made.append(Segment(block_key, bufsz))
        connection.change((WRITE, 1, 0), (READ, n_readers, 0))
        for semaphores in readers:
            semaphores.change((SODACK, MAX_TRANSFERS, 0), (EODACK, MAX_TRANSFERS, 0), (READER_CONN, 1, 0))
    except BaseException:
        for part in made:
            part.remove()
        raise
    finally:
        for part in made:
            if isinstance(part, Segment):
                part.detach()


def remove_ring(key: int) -> None:
    """Destroy the ring; what is missing of it is no error. RingError if there is something else under the key."""
    try:
        segment = Segment(key)
    except FileNotFoundError:
        return
    try:
        nbufs = blocks_of(segment, f"ring 0x{key:x}")
        sync = IpcSync.from_address(segment.address)
        blocks = (ctypes.c_int32 * nbufs).from_address(segment.address + SYNC_BYTES + nbufs)
        sets = [(sync.semkey_connect, 2), *[(semkey, 5) for semkey in sync.semkey_data[: sync.n_readers]]]
        parts = [(Semaphores, *semaphores) for semaphores in sets] + [(Segment, block) for block in blocks]
        for kind, *arguments in parts:
            _remove_if_there(kind, *arguments)
        segment.remove()
    finally:
        segment.detach()


def _remove_if_there(kind: Callable[..., Segment | Semaphores], *arguments: int) -> None:
    try:
        part = kind(*arguments)
    except FileNotFoundError:
        return
    part.remove()
    if isinstance(part, Segment):
        part.detach()
