"""Device, random seed, output folders and atomic writes.

torch is imported inside the functions that need it, so that scripts without a network start quickly.
"""

import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from single_pulse_classifier_training.cli import InputError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda")


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


def make_output_folder(path: Path, key: str) -> Path:
    """Create a folder for results and check that it can be written to.

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
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed inside ``atomic_writer``."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` for binary writing, and rename it to ``path`` if the block succeeds.

    At any moment ``path`` holds either its old content or the complete new content. If the block fails, the temporary
    file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # The error of a failed write lacks the file name, which the message of run_script needs.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save_npy(path: str | Path, values: np.ndarray) -> None:
    """Save an array like ``numpy.save``, but atomically."""
    with atomic_writer(path) as file:
        np.save(file, values)
