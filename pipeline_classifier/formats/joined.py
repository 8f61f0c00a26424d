"""Several filterbank files of one observation, read as if they were one."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.times import SECONDS_PER_DAY
from single_pulse_classifier_training.cli import InputError


class JoinedFilterbank:
    """Files that follow each other in time, read as one observation; stands in for a `Filterbank`.

    Parameters
    ----------
    paths
        The files, in any order: the MJDs of their first samples sort them.
    ifs
        As in `Filterbank`.

    Attributes
    ----------
    path, header, tstart
        Those of the first file in time.
    nsamples, bytes_left_over
        Of all files together.

    Raises
    ------
    InputError
        As `Filterbank`; also when a file has other channels, sampling or samples than the first, or does not begin,
        to within a sample, where the one before it ends: nothing is filled in and nothing is left out.
    """

    def __init__(self, paths: Sequence[str | Path], ifs: int | str = "sum"):
        if not paths:
            raise InputError("no filterbank file is given; valid: one or more")
        self.files = sorted((Filterbank(path, ifs) for path in paths), key=lambda file: file.tstart)
        first = self.files[0]
        for file in self.files[1:]:
            for keyword in ("nchans", "nbits", "nifs", "signed", "tsamp", "fch1", "foff"):
                value, valid = getattr(file.header, keyword), getattr(first.header, keyword)
                if not math.isclose(value, valid, rel_tol=1e-9):
                    raise InputError(f"{file.path}: {keyword} is {value!r}; valid: {valid!r}, as in {first.path}")
        for before, after in itertools.pairwise(self.files):
            gap_s = (after.tstart - before.tstart) * SECONDS_PER_DAY - before.nsamples * before.tsamp
            if abs(gap_s) > first.tsamp + math.ulp(after.tstart) * SECONDS_PER_DAY:
                raise InputError(
                    f"{after.path}: begins {abs(gap_s):.6g} s {'after' if gap_s > 0 else 'before'} the end of "
                    f"{before.path}; valid: files without gap or overlap, so run these two separately"
                )
        self.path, self.header, self.ifs = first.path, first.header, ifs
        self.nchans, self.tsamp, self.tstart = first.nchans, first.tsamp, first.tstart
        self.frequencies = first.frequencies
        self._ends = list(itertools.accumulate(file.nsamples for file in self.files))
        self.nsamples = self._ends[-1]
        self.bytes_left_over = sum(file.bytes_left_over for file in self.files)

    def read(self, start: int, n: int) -> np.ndarray:
        """As `Filterbank.read`, across the borders of files."""
        if start < 0 or n < 0:
            raise ValueError(f"start and n must not be negative, got {start} and {n}")
        stop, pieces = min(start + n, self.nsamples), []
        for file, end in zip(self.files, self._ends, strict=True):
            begin = max(start, end - file.nsamples)
            if begin < min(stop, end):
                pieces.append(file.read(begin - end + file.nsamples, min(stop, end) - begin))
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else self.files[-1].read(0, 0)


def open_observation(path: str | Path | Sequence[str | Path], ifs: int | str = "sum") -> Filterbank | JoinedFilterbank:
    """Open a filterbank file, or several that follow each other in time."""
    return Filterbank(path, ifs) if isinstance(path, (str, Path)) else JoinedFilterbank(path, ifs)
