"""Device, random seed, life of a process, output folders and atomic writes.

torch is imported inside the functions that need it, so that scripts without a network start quickly.
"""

import contextlib
import ctypes
import fcntl
import os
import platform
import random
import re
import signal
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from single_pulse_classifier_training.cli import InputError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
# .<name>.<machine>-<process>.tmp; the machine is missing in names of version 0.1
TEMPORARY = re.compile(r"\..+\.(?:(?P<machine>[0-9a-f]{4})-)?\d+\.tmp")
ABANDONED_S = 3600.0
"""Age in seconds at which a temporary file of another machine, whose locks may be unknown here, counts as left over."""


def choose_device(name: str) -> "torch.device":
    """Return the torch device for a name.

    Parameters
    ----------
    name : {"auto", "cpu", "cuda"}
        "auto" is a GPU if there is one, else the CPU.

    Raises
    ------
    InputError
        If the name is unknown, or there is no GPU for "cuda".
    """
    import torch

    if name not in DEVICES:
        raise InputError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device must be 'cpu' or 'auto' on a machine where PyTorch finds no GPU, got 'cuda'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def use_gpu(number: int) -> None:
    """Make ``number`` modulo the number of GPUs the current CUDA device; no effect without a GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def set_seed(seed: int) -> None:
    """Seed the global random generators of Python, numpy and torch (all devices)."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def end_with_launcher() -> None:
    """Let this process end when the torchrun that started it dies, even by SIGKILL (Linux; no effect elsewhere)."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # torchrun may have died before that; the store that it keeps for its processes is then gone.
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        try:
            socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 10).close()
        except ConnectionRefusedError:
            sys.exit("torchrun, which started this process, has ended")
        except OSError:
            pass  # a network that does not answer proves nothing


def make_output_folder(path: Path, key: str) -> Path:
    """Create a folder for results, check that it can be written to, and remove what killed writers left in it.

    Parameters
    ----------
    path : Path
    key : str
        Config key or option that names the folder, for the message.

    Raises
    ------
    InputError
        If the folder cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{key}: cannot write to the folder {path} ({error.strerror or error})") from None
    remove_leftovers(path)
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed inside ``atomic_writer``, but not those in use."""
    for path in folder.glob(".*.tmp"):
        name = TEMPORARY.fullmatch(path.name)
        with contextlib.suppress(OSError):  # it is gone, or belongs to another user, or the file system has no locks
            if name and (name["machine"] == _machine() or time.time() - path.stat().st_mtime > ABANDONED_S):
                with open(path, "ab") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _has_name(file, path):
                        path.unlink()


def _machine() -> str:
    """Return four digits that differ between machines: some cluster file systems keep locks on one machine only."""
    return f"{zlib.crc32(platform.node().encode()) & 0xFFFF:04x}"


def _has_name(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _open_locked(path: Path) -> BinaryIO:
    """Open a new file that `remove_leftovers` leaves alone until it is closed."""
    while True:
        file = open(path, "wb", opener=_open_untouched)  # noqa: SIM115 - closed by the caller
        with contextlib.suppress(OSError):  # a file system without locks, where nothing is removed
            fcntl.flock(file, fcntl.LOCK_EX)
        # Another process may have removed it before it was locked.
        if _has_name(file, path):
            file.truncate()
            return file
        file.close()


def _open_untouched(path: str, flags: int) -> int:
    # The file may be one that another thread still writes: it is emptied once the lock is held.
    return os.open(path, flags & ~os.O_TRUNC, 0o666)


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` for binary writing, and rename it to ``path`` if the block succeeds.

    At any moment ``path`` holds either its old content or the complete new content. If the block fails, the temporary
    file is removed; if the process is killed, `remove_leftovers` removes it in the next run.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.tmp")
    try:
        with _open_locked(temporary) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)  # while the lock is held
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        # The error of a failed write lacks the file name, which the message of run_script needs.
        error.filename = error.filename or str(path)
        error.strerror = error.strerror or f"{error} (is the disk full?)"
        raise


def save_npy(path: str | Path, values: np.ndarray) -> None:
    """Save an array like ``numpy.save``, but atomically."""
    with atomic_writer(path) as file:
        np.save(file, values)
