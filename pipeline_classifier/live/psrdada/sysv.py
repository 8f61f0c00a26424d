"""System V shared memory and semaphores of Linux, through ctypes and libc: the parts of a PSRDADA ring.

ctypes releases the GIL during a call, so that a thread that waits for a semaphore does not stop the others. Failures
are OSErrors: FileNotFoundError if a key does not exist, FileExistsError if it exists already, PermissionError. A key is
a 32-bit integer; of a larger one, ctypes passes the lower 32 bits.
"""

import ctypes
import errno
import functools
import os
import sys
import time

from single_pulse_classifier_training.cli import InputError

IPC_NOWAIT = 0o4000
SEM_UNDO = 0x1000  # the kernel reverses the operation when the process ends, even if it is killed
PERMISSIONS = 0o666

_IPC_CREAT, _IPC_EXCL = 0o1000, 0o2000
_IPC_RMID, _IPC_STAT, _GETVAL = 0, 2, 12
_SHM_RDONLY = 0o10000
_SHMAT_FAILED = ctypes.c_void_p(-1).value
_SHMID_DS_BYTES, _SHM_SEGSZ_OFFSET = 256, 48  # struct shmid_ds of 64-bit Linux has 112 bytes


class _SemBuf(ctypes.Structure):
    _fields_ = [("sem_num", ctypes.c_ushort), ("sem_op", ctypes.c_short), ("sem_flg", ctypes.c_short)]


class _TimeSpec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]


@functools.cache
def _libc() -> ctypes.CDLL:
    if not sys.platform.startswith("linux") or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise InputError(f"PSRDADA rings: the system must be 64-bit Linux, got {sys.platform}")
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


class Segment:
    """An attached shared memory segment.

    Parameters
    ----------
    key : int
        Key of the segment.
    size : int, optional
        Size in bytes. If given, the segment is created and must not exist yet.
    read_only : bool
        Attach for reading only.

    Attributes
    ----------
    address : int
        Address in this process; None after ``detach``.
    size : int
        Size in bytes.
    """

    def __init__(self, key: int, size: int | None = None, read_only: bool = False) -> None:
        libc = _libc()
        flags = PERMISSIONS | (0 if size is None else _IPC_CREAT | _IPC_EXCL)
        self.id = _checked(libc.shmget(key, size or 0, flags))
        status = ctypes.create_string_buffer(_SHMID_DS_BYTES)
        _checked(libc.shmctl(self.id, _IPC_STAT, status))
        self.size = ctypes.c_size_t.from_buffer(status, _SHM_SEGSZ_OFFSET).value
        self.address = _checked(libc.shmat(self.id, None, _SHM_RDONLY if read_only else 0), _SHMAT_FAILED)

    def detach(self) -> None:
        """Detach; views of the memory must not be used afterwards."""
        if self.address is not None:
            _libc().shmdt(self.address)
            self.address = None  # type: ignore[assignment]

    def remove(self) -> None:
        """Destroy the segment; the kernel frees it when the last process has detached."""
        _checked(_libc().shmctl(self.id, _IPC_RMID, None))


class Semaphores:
    """A set of semaphores; ``semaphores[i]`` is the value of number ``i``.

    Parameters
    ----------
    key : int
        Key of the set.
    n : int
        Least number of semaphores in the set.
    create : bool
        Create the set, which must not exist yet, with ``n`` semaphores of value 0.
    """

    def __init__(self, key: int, n: int, create: bool = False) -> None:
        flags = PERMISSIONS | (_IPC_CREAT | _IPC_EXCL if create else 0)
        self.id = _checked(_libc().semget(key, n, flags))

    def __getitem__(self, number: int) -> int:
        return _checked(_libc().semctl(self.id, number, _GETVAL, 0))

    def change(self, *operations: tuple[int, int, int], timeout_s: float = 0.0) -> bool:
        """Apply all operations in one step, as soon as no value would fall below 0.

        Parameters
        ----------
        *operations : (int, int, int)
            Number of the semaphore, change of its value, and flags (0, ``IPC_NOWAIT``, ``SEM_UNDO``).
        timeout_s : float
            Longest wait.

        Returns
        -------
        done : bool
            False if this was not possible within ``timeout_s``; then no value has changed.
        """
        array = (_SemBuf * len(operations))(*(_SemBuf(*operation) for operation in operations))
        deadline = time.monotonic() + timeout_s
        while True:
            seconds, fraction = divmod(max(0.0, deadline - time.monotonic()), 1.0)
            timeout = _TimeSpec(int(seconds), int(fraction * 1e9))
            try:
                _checked(_libc().semtimedop(self.id, array, len(operations), timeout))
                return True
            except InterruptedError:  # a signal; its Python handler runs before the next attempt
                continue
            except BlockingIOError:
                return False

    def remove(self) -> None:
        """Destroy the set; calls that wait for it fail with EIDRM."""
        _checked(_libc().semctl(self.id, 0, _IPC_RMID, 0))


def is_gone(error: OSError) -> bool:
    """Return whether an operation failed because the semaphores were destroyed."""
    return error.errno in (errno.EIDRM, errno.EINVAL)
