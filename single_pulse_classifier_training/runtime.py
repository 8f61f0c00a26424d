"""Where a run happens: its device, its seed, its output folders, and files that appear whole or not at all.

torch is imported inside the functions that need it, so that scripts without a network start at once.
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
    """The torch device for ``"auto"`` (a GPU if there is one), ``"cpu"`` or ``"cuda"``; InputError if it is missing."""
    import torch

    if name not in DEVICES:
        raise InputError(f"device {name!r} is unknown: valid are {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but PyTorch finds no GPU here: use 'cpu' or 'auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def use_gpu(number: int) -> None:
    """Make ``cuda`` mean this GPU, counted round, if there is any."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def set_seed(seed: int) -> None:
    """Seed Python's, numpy's and torch's global random generators (all devices)."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make_output_folder(path: Path, key: str) -> Path:
    """Create a folder for results and try to write to it; InputError naming the config ``key`` if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"{key}: cannot write to the folder {path} ({error.strerror or error})") from None
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that an ``atomic_writer`` killed in the middle of its work has left."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def atomic_writer(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` for binary writing; it takes the name ``path`` when the block succeeds.

    Whatever happens, ``path`` holds its old content or all of the new one. The temporary file is removed on failure.
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
        # A failed write does not say to what file: the message of run_script needs it.
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def save_npy(path: str | Path, values: np.ndarray) -> None:
    """``numpy.save``, all of it or nothing."""
    with atomic_writer(path) as file:
        np.save(file, values)
