"""System V shared memory and semaphores of Linux, by ctypes on libc: what a PSRDADA ring is made of.

ctypes lets go of the GIL during a call, so that a thread which waits for a semaphore stops no other one. Failures are
OSErrors: FileNotFoundError for a key that is not there, FileExistsError for one that is, PermissionError.
"""

import ctypes
import errno
import functools
import os
import sys
import time

from single_pulse_classifier_training.cli import InputError

IPC_NOWAIT = 0o4000
SEM_UNDO = 0x1000  # the kernel takes the operation back when the process ends, however it ends
PERMISSIONS = 0o666

_IPC_CREAT, _IPC_EXCL = 0o1000, 0o2000
_IPC_RMID, _IPC_STAT, _GETVAL = 0, 2, 12
_SHM_RDONLY = 0o10000
_SHMAT_FAILED = ctypes.c_void_p(-1).value
_SHMID_DS_BYTES, _SHM_SEGSZ_OFFSET = 256, 48  # struct shmid_ds of 64-bit Linux; room to spare


class _SemBuf(ctypes.Structure):
    _fields_ = [("sem_num", ctypes.c_ushort), ("sem_op", ctypes.c_short), ("sem_flg", ctypes.c_short)]


class _TimeSpec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]


@functools.cache
def _libc() -> ctypes.CDLL:
    if not sys.platform.startswith("linux") or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise InputError(f"PSRDADA rings need 64-bit Linux: this is {sys.platform}")
    libc = ctypes.CDLL(None, use_errno=True)
    c_int, c_long, size_t, pointer = ctypes.c_int, ctypes.c_long, ctypes.c_size_t, ctypes.c_void_p
    libc.shmget.argtypes = [c_int, size_t, c_int]
    libc.shmat.argtypes, libc.shmat.restype = [c_int, pointer, c_int], pointer
    libc.shmdt.argtypes = [pointer]
    libc.shmctl.argtypes = [c_int, c_int, pointer]
    libc.semget.argtypes = [c_int, c_int, c_int]
    libc.semctl.argtypes = [c_int, c_int, c_int, c_long]
    libc.semtimedop.argtypes = [c_int, ctypes.POINTER(_SemBuf), size_t, ctypes.POINTER(_TimeSpec)]
    return libc


def _checked(result: int, failed: int | None = -1) -> int:
    if result == failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _key(key: int) -> int:
    """``key`` as a key_t, a 32-bit signed integer."""
    return ctypes.c_int32(key).value


class Segment:
    """A shared memory segment, attached.

    Parameters
    ----------
    key : key_t
    size : bytes; given, the segment is made and must not be there yet
    read_only : attach for reading only

    Attributes
    ----------
    address, size : where it lies in this process (None once detached), and its bytes
    """

    def __init__(self, key: int, size: int | None = None, read_only: bool = False) -> None:
        libc = _libc()
        flags = PERMISSIONS | (0 if size is None else _IPC_CREAT | _IPC_EXCL)
        self.id = _checked(libc.shmget(_key(key), size or 0, flags))
        status = ctypes.create_string_buffer(_SHMID_DS_BYTES)
        _checked(libc.shmctl(self.id, _IPC_STAT, status))
        self.size = ctypes.c_size_t.from_buffer(status, _SHM_SEGSZ_OFFSET).value
        self.address = _checked(libc.shmat(self.id, None, _SHM_RDONLY if read_only else 0), _SHMAT_FAILED)

    def detach(self) -> None:
        """Let go of the memory; every view of it dangles from now on."""
        if self.address is not None:
            _libc().shmdt(self.address)
            self.address = None  # type: ignore[assignment]

    def remove(self) -> None:
        """Destroy the segment; it goes when the last process has detached."""
        _checked(_libc().shmctl(self.id, _IPC_RMID, None))


class Semaphores:
    """A set of ``n`` semaphores. ``semaphores[i]`` is a value.

    Parameters
    ----------
    key : key_t
    n : semaphores in the set
    create : make the set, which must not be there yet; all values are 0
    """

    def __init__(self, key: int, n: int, create: bool = False) -> None:
        flags = PERMISSIONS | (_IPC_CREAT | _IPC_EXCL if create else 0)
        self.id = _checked(_libc().semget(_key(key), n, flags))

    def __getitem__(self, number: int) -> int:
        return _checked(_libc().semctl(self.id, number, _GETVAL, 0))

    def change(self, *operations: tuple[int, int, int], timeout_s: float = 0.0) -> bool:
        """Do operations (number, change, flags), all at once, as soon as no value would fall below 0.

        Returns
        -------
        bool
            False, and nothing done, when that was not possible within ``timeout_s``.
        """
        array = (_SemBuf * len(operations))(*(_SemBuf(*operation) for operation in operations))
        deadline = time.monotonic() + timeout_s
        while True:
            seconds, fraction = divmod(max(0.0, deadline - time.monotonic()), 1.0)
            timeout = _TimeSpec(int(seconds), int(fraction * 1e9))
            try:
                _checked(_libc().semtimedop(self.id, array, len(operations), timeout))
                return True
            except InterruptedError:  # a signal: Python runs its handler before the next turn
                continue
            except BlockingIOError:
                return False

    def remove(self) -> None:
        """Destroy the set; whoever waits for it is woken with an error."""
        _checked(_libc().semctl(self.id, 0, _IPC_RMID, 0))


def is_gone(error: OSError) -> bool:
    """Whether an operation failed because its semaphores were destroyed."""
    return error.errno in (errno.EIDRM, errno.EINVAL)
