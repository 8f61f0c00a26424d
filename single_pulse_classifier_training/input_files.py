"""Checks of input files before they are read: whether there is a file, .npy arrays, zip archives."""

import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.file_types import format_of

ZIP_SIGNATURE = b"PK\x03\x04"
# Raised by numpy on a .npy file that is damaged, has another format or holds pickled objects.
NOT_NPY = (
    ValueError,
    EOFError,
    TypeError,
    SyntaxError,
    tokenize.TokenError,
    OverflowError,
    RecursionError,
    MemoryError,
)
# Raised by zipfile on a damaged or encrypted archive.
NOT_ZIP = (
    zipfile.BadZipFile,
    EOFError,
    LookupError,
    ValueError,
    OverflowError,
    RuntimeError,
    OSError,
    struct.error,
    zlib.error,
)


def check_is_file(path: Path, what: str) -> None:
    """Raise InputError unless ``path`` is a file.

    Parameters
    ----------
    path : Path
    what : str
        What the file is, for example "config file", for the message.
    """
    if path.is_file():
        return
    if path.is_dir():
        raise InputError(f"{what} {path} must be a file, got a folder")
    if path.exists():
        raise InputError(f"{what} {path} must be a file, got a device or pipe")
    raise InputError(f"{what} {path} does not exist")


def open_npy(path: str | Path, key: str, mode: Literal["r", "c"] = "r") -> np.ndarray:
    """Memory-map the array of a .npy file, so that no header can name more memory than the file has.

    Parameters
    ----------
    path : str or Path
    key : str
        Config key or option that names the file, for the message.
    mode : {"r", "c"}
        "c" makes the array writable in memory only.

    Raises
    ------
    InputError
        If the file is missing, or is no .npy file of numbers or strings.
    """
    check_is_file(Path(path), f"{key}: the file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except NOT_NPY:
        array = None
    if not isinstance(array, np.ndarray):
        got = format_of(path)
        damaged = " that is damaged, cut off or holds objects" if got == "a .npy file" else ""
        raise InputError(f"{key}: {path} must be a .npy file of numbers or strings, got {got}{damaged}")
    return array


def check_archive(path: Path) -> None:
    """Check the sizes and checksums of a zip archive that is read by torch or numpy, without extracting it.

    torch does not check the checksums. A compressed entry could fill the memory with the zeros of a small file: torch
    and numpy write none, so that an archive never holds more than the size of its file.

    Raises
    ------
    InputError
        If the archive is damaged, or its entries are larger than the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
            if total > path.stat().st_size:
                raise InputError(
                    f"{path}: the content must be stored uncompressed, got {total:,} bytes in a file of "
                    f"{path.stat().st_size:,}"
                )
            damaged = archive.testzip()
    except NOT_ZIP:
        raise InputError(f"{path} cannot be read: it is damaged or truncated") from None
    if damaged is not None:
        raise InputError(f"{path} is damaged: the checksum of its entry {damaged!r} differs")
