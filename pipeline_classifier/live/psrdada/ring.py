"""Memory of one PSRDADA ring (``ipcbuf.c``, ``ipcbuf.h``): create, attach and destroy it.

The layout is that of PSRDADA from 2018-11-15 to 1.1.0 on 64-bit Linux. A ring consists of

- the sync segment, under the key of the ring: ``ipcsync_t`` (528 bytes), then ``count`` (uint8 per buffer: how often it
  was filled and not yet reclaimed by the writer), then the keys of the buffers (int32 each, possibly unaligned);
- the connection semaphores, ``WRITE`` and ``READ``;
- for each reader, the semaphores ``SODACK``, ``EODACK``, ``FULL``, ``CLEAR`` and ``READER_CONN``;
- the buffers, one shared memory segment each.

Their keys are those of the ring plus 0x10000 (connection), plus 0x10000 * (2 + reader), for eight readers at most, and
plus 0x10000 * (10 + buffer). They are also stored in the sync segment, and are read from there.
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
"""Seconds between two attempts to attach or lock a ring; chosen by hand."""


class IpcSync(ctypes.Structure):
    """``ipcsync_t`` of ``ipcbuf.h``, 528 bytes, with its field names.

    Arrays have one element per reader (``semkey_data``, ``r_``) or per transfer slot (``s_``, ``e_``, ``eod``). ``w_``
    and ``r_`` fields are positions and states of the writer and of the readers; ``s_`` and ``e_`` fields are the first
    and the last block and byte of a transfer; ``on_device_id`` is a GPU, or -1 for host memory.
    """

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
"""Sizes of ``ipcsync_t`` in PSRDADA before 2018-11-15."""
NBUFS_OFFSET = IpcSync.nbufs.offset


class RingError(InputError):
    """A ring cannot be used."""


class RingTimeout(RingError):
    """A ring, a connection to it or a page was not available in time."""


class WriterDied(RingError):
    """The writer died in the middle of a transfer."""


class RingDestroyed(RingError):
    """The ring was destroyed while it was in use."""


class _NotReady(Exception):
    """The ring is still being created; the text says what is missing."""


def blocks_of(segment: Segment, name: str) -> int:
    """Return the number of blocks of a ring.

    Parameters
    ----------
    segment : Segment
        The sync segment.
    name : str
        What error messages call the ring.

    Raises
    ------
    RingError
        If the size of the segment is not that of a sync segment with so many blocks.
    """
    nbufs = 0
    if segment.size >= NBUFS_OFFSET + 8:
        nbufs = ctypes.c_uint64.from_address(segment.address + NBUFS_OFFSET).value
        if nbufs == 0:
            raise _NotReady("it is still being created")
    if segment.size != SYNC_BYTES + 5 * nbufs:
        what = "not a PSRDADA ring"
        if segment.size - 5 * nbufs in OLDER_SYNC_BYTES:
            what = "a ring of PSRDADA before 2018-11-15"
        raise RingError(
            f"{name}: the sync segment must have {SYNC_BYTES} bytes and 5 more per block, got {segment.size}: {what}"
        )
    return nbufs


class Ring:
    """An attached ring: memory and semaphores, and what reader and writer have in common.

    Parameters
    ----------
    key : int
        Key of the ring, that is, of its sync segment.
    stream : int
        Key of the stream to which the ring belongs; error messages name this one.
    timeout_s : float
        Longest wait for a ring that does not exist or is still being created.
    read_only : bool
        Attach the blocks for reading only.

    Attributes
    ----------
    nbufs, bufsz, n_readers : int
        Number of blocks, size of a block in bytes, number of readers.
    sync : IpcSync
        The sync segment in shared memory.
    count : (nbufs,) array of uint8
        How often each buffer was filled and not yet reclaimed.
    addresses : list of int
        Address of each buffer in this process.

    Raises
    ------
    RingTimeout
        If the ring did not exist, or was incomplete, after ``timeout_s``.
    RingError
        If the ring has another layout, is in the memory of a GPU, or may not be attached.
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
                    reason = error if isinstance(error, _NotReady) else "it does not exist, or is incomplete"
                    raise RingTimeout(
                        f"{self}: no ring to attach to ({reason}); create it with dada_db -k {stream:x}, or give the "
                        "key of an existing ring in hexadecimal"
                    ) from None
            except PermissionError as error:
                self.detach()
                raise RingError(
                    f"{self}: permission denied; the ring must belong to this user or have mode 0666"
                ) from error
            except BaseException:
                self.detach()
                raise
            time.sleep(RETRY_S)

    def __str__(self) -> str:
        return f"ring 0x{self.stream:x}" + (" (headers)" if self.key != self.stream else "")

    @property
    def remedy(self) -> str:
        """What to do with a ring in which a writer was killed."""
        return f"destroy the ring (dada_db -d -k {self.stream:x}) and create it again before the next run"

    def _attach(self, read_only: bool) -> None:
        segment = self._segment(self.key)
        self.nbufs = blocks_of(segment, str(self))
        self.sync = sync = IpcSync.from_address(segment.address)
        if not (sync.n_readers and sync.bufsz and sync.semkey_connect):
            raise _NotReady("it is still being created")
        if sync.on_device_id >= 0:
            raise RingError(f"{self}: its blocks must be in host memory, got GPU {sync.on_device_id}")
        if sync.n_readers > MAX_READERS:
            raise RingError(
                f"{self}: the number of readers must be between 1 and {MAX_READERS}, got {sync.n_readers}: "
                "not a PSRDADA ring"
            )
        self.bufsz, self.n_readers = sync.bufsz, sync.n_readers
        self.count = (ctypes.c_uint8 * self.nbufs).from_address(segment.address + SYNC_BYTES)
        keys = (ctypes.c_int32 * self.nbufs).from_address(segment.address + SYNC_BYTES + self.nbufs)
        try:
            self.connection = Semaphores(sync.semkey_connect, 2)
            self.readers = [Semaphores(key, 5) for key in sync.semkey_data[: self.n_readers]]
        except OSError as error:
            if is_gone(error):
                raise RingError(f"{self}: a set has too few semaphores: not a PSRDADA ring") from error
            raise
        if 0 in keys[:]:
            raise _NotReady("its blocks are still being created")
        blocks = [self._segment(key, read_only) for key in keys]
        if (smallest := min(block.size for block in blocks)) < self.bufsz:
            raise RingError(f"{self}: blocks must have {self.bufsz} bytes, got {smallest}: not a PSRDADA ring")
        self.addresses = [block.address for block in blocks]

    def _segment(self, key: int, read_only: bool = False) -> Segment:
        segment = Segment(key, read_only=read_only)
        self._segments.append(segment)
        return segment

    def detach(self) -> None:
        """Detach all memory; the ring itself remains."""
        self.sync = self.count = None  # type: ignore[assignment] # they point to detached memory
        for segment in self._segments:
            segment.detach()
        self._segments = []

    def change(
        self, semaphores: Semaphores, *operations: tuple[int, int] | tuple[int, int, int], timeout_s: float = 0.0
    ) -> bool:
        """Apply operations (number, change[, flags]) to a set, all or none; see ``Semaphores.change``.

        Raises
        ------
        RingDestroyed
            If the ring no longer exists.
        """
        try:
            return semaphores.change(*[(*operation, 0)[:3] for operation in operations], timeout_s=timeout_s)
        except OSError as error:
            raise self._gone(error) from error

    def value(self, semaphores: Semaphores, number: int) -> int:
        """Return the value of a semaphore, or raise RingDestroyed if the ring no longer exists."""
        try:
            return semaphores[number]
        except OSError as error:
            raise self._gone(error) from error

    def _gone(self, error: OSError) -> Exception:
        return RingDestroyed(f"{self}: destroyed while in use") if is_gone(error) else error

    def is_last(self, slot: int, block: int) -> bool:
        """Return whether ``block`` ends the transfer in ``slot``; eod alone may be of an earlier transfer there."""
        return bool(self.sync.eod[slot]) and self.sync.e_buf[slot] == block


def make_ring(key: int, nbufs: int, bufsz: int, n_readers: int) -> None:
    """Create a ring completely or not at all (``ipcbuf_create``).

    Parameters
    ----------
    key : int
        Key of the ring.
    nbufs, bufsz : int
        Number of blocks, and their size in bytes.
    n_readers : int
        Number of readers, 1 to 8.

    Raises
    ------
    FileExistsError
        If the key, or one derived from it, is in use.
    """
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
    """Destroy a ring (``ipcbuf_destroy``), or the parts of it that exist.

    Raises
    ------
    RingError
        If the segment under the key is not that of a ring.
    """
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
