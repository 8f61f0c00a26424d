"""Candidate lists of other search programs, read as plain numbers."""

from pathlib import Path

import numpy as np

from single_pulse_classifier_training.cli import InputError


def read_transientx(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read a TransientX candidate list (``.cands``).

    The columns, separated by tabs and without a header line, are: beam, number, MJD, DM, width (ms), S/N, highest and
    lowest frequency, image, group, observation. Only columns 3 to 6 are read; empty lines and, as in TransientX's
    ``replot_fil``, lines that begin with ``#`` are skipped.

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
        If one of these columns is missing or not a finite number; the message has the line number.
    """
    rows = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            fields = line.rstrip("\n").split("\t")
            if fields == [""] or line.lstrip().startswith("#"):
                continue
            try:
                values = [float(value) for value in fields[2:6]]
            except ValueError:
                values = []
            if len(values) < 4 or not np.isfinite(values).all():
                raise InputError(
                    f"{path}, line {number}: columns 3 to 6 must be MJD, DM, width (ms) and S/N, got {fields[2:6]}"
                )
            rows.append(values)
    mjd, dm, width_ms, snr = np.array(rows, dtype=np.float64).reshape(-1, 4).T.copy()
    return mjd, dm, width_ms, snr
