"""Candidate lists of other search programs, read as plain numbers."""

from pathlib import Path

import numpy as np

from single_pulse_classifier_training.cli import InputError


def read_transientx(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read a TransientX candidate list (``.cands``).

    The columns, separated by tabs and without a header line, are: beam, number, MJD, DM, width (ms), S/N, highest and
    lowest frequency, image, group, observation. Only columns 3 to 6 are read, and others may be missing in the whole
    list; empty lines and, as in TransientX's ``replot_fil``, lines that begin with ``#`` are skipped.

    Parameters
    ----------
    path : str or Path
        The list; it may be empty.

    Returns
    -------
    mjd : (K,) ndarray of float64
        Arrival at the top of the band.
    dm : (K,) ndarray of float64
        Dispersion measure in pc cm^-3.
    width_ms : (K,) ndarray of float64
        Width in milliseconds.
    snr : (K,) ndarray of float64
        Signal-to-noise ratio.

    Raises
    ------
    InputError
        If a line has fewer or more columns than the first one, or one of the four is not a number in the range of truth
        tables (0 to 1e7); the message has the line number.
    """
    rows: list[list[float]] = []
    columns = 0
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            fields = line.rstrip("\n").split("\t")
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            where = f"{path}, line {number}"
            columns = columns or len(fields)
            if columns < 6 or len(fields) != columns:
                raise InputError(
                    f"{where}: must have at least 6 columns separated by tabs, as many as the first line, "
                    f"got {len(fields)}"
                )
            try:
                values = [float(value) for value in fields[2:6]]
            except ValueError:
                values = [np.nan]
            if not all(0 <= value < 1e7 for value in values):
                raise InputError(
                    f"{where}: columns 3 to 6 must be MJD, DM, width (ms) and S/N, numbers from 0 to 1e7, "
                    f"got {fields[2:6]}"
                )
            rows.append(values)
    mjd, dm, width_ms, snr = np.array(rows, dtype=np.float64).reshape(-1, 4).T.copy()
    return mjd, dm, width_ms, snr
