"""Names of observations, after which the outputs of a search are named."""

import os
from pathlib import Path

from single_pulse_classifier_training.cli import InputError

LONGEST_FILE_NAME = 255  # bytes, on the file systems of Linux
LONGEST_OUTPUT = ".probabilities__dms15_x64.npy.0123-4194304.tmp"
"""What outputs add to the name of an observation, with the ending of `atomic_writer` for the largest process number."""
FORMULA = ("=", "+", "-", "@")
"""First characters of a field that spreadsheets take for a formula."""


def output_name(path: str | Path, name: str | None = None, added: str = LONGEST_OUTPUT) -> str:
    """Return the name of the outputs of a file, by default its own without the suffix.

    Parameters
    ----------
    path : str or Path
        For the message.
    name : str, optional
    added : str
        The longest text that file names of outputs have in addition.

    Raises
    ------
    InputError
        If files cannot have such names, or text files cannot hold them.
    """
    name = Path(path).stem if name is None else name
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InputError(
            f"{path}: the file name must be UTF-8, as outputs are named after it, got {os.fsencode(name)!r}"
        ) from None
    most = LONGEST_FILE_NAME - len(added)
    if size > most:
        raise InputError(
            f"{path}: the file name must have at most {most} bytes without its suffix, as outputs are named after it, "
            f"got {size}"
        )
    return name


def safe_field(name: str) -> str:
    """Return a name as a field of CSV or tab-separated text: on one line, without tabs, and not a formula."""
    field = "".join("_" if ord(character) < 32 or ord(character) == 127 else character for character in name)
    return f"'{field}" if field.startswith(FORMULA) else field
