"""Several filterbank files of one observation, read as one."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.times import SECONDS_PER_DAY
from single_pulse_classifier_training.cli import InputError

ROWS_AT_ONCE = 1024
"""Samples whose order is turned round at once."""


class JoinedFilterbank:
    """Consecutive files of one observation, with the interface of a `Filterbank`.

    Parameters
    ----------
    paths : sequence of str or Path
        The files in any order; they are sorted by the MJD of their first sample.
    ifs : int or "sum"
        As in `Filterbank`.

    Attributes
    ----------
    path, header, tstart
        Those of the earliest file.
    nsamples, bytes_left_over : int
        Sums over all files.
    ends : list of int
        Number of the sample after the last one of each file.

    Raises
    ------
    InputError
        As in `Filterbank`; also if a file differs from the earliest one in channels, sampling or type of samples, or
        does not start, to within one sample, where the previous file ends. Gaps are not filled.
    """

    def __init__(self, paths: Sequence[str | Path], ifs: int | str = "sum"):
        if not paths:
            raise InputError("filterbank: at least one file must be given, got none")
        self.files = sorted((Filterbank(path, ifs) for path in paths), key=lambda file: file.tstart)
        first = self.files[0]
        for file in self.files[1:]:
            for keyword in ("nchans", "nbits", "nifs", "signed", "tsamp", "fch1", "foff"):
                value, expected = getattr(file.header, keyword), getattr(first.header, keyword)
                if not math.isclose(value, expected, rel_tol=1e-9):
                    raise InputError(f"{file.path}: {keyword} must be {expected!r} as in {first.path}, got {value!r}")
        for before, after in itertools.pairwise(self.files):
            gap_s = (after.tstart - before.tstart) * SECONDS_PER_DAY - before.nsamples * before.tsamp
            # The MJD of a present-day observation is rounded to 0.6 us, which may exceed a sample.
            if abs(gap_s) > first.tsamp + math.ulp(after.tstart) * SECONDS_PER_DAY:
                kind = "a gap" if gap_s > 0 else "an overlap"
                raise InputError(
                    f"{after.path}: must start at the end of {before.path}, got {kind} of {abs(gap_s):.6g} s "
                    "(search these files separately)"
                )
        unknown = dict.fromkeys(keyword for file in self.files for keyword in file.header.unknown_keywords)
        self.path, self.header, self.ifs = first.path, replace(first.header, unknown_keywords=tuple(unknown)), ifs
        self.nchans, self.tsamp, self.tstart = first.nchans, first.tsamp, first.tstart
        self.frequencies = first.frequencies
        self.ends = list(itertools.accumulate(file.nsamples for file in self.files))
        self.nsamples = self.ends[-1]
        self.bytes_left_over = sum(file.bytes_left_over for file in self.files)

    def read(self, start: int, n: int) -> np.ndarray:
        """Read samples as `Filterbank.read` does, across file boundaries."""
        if start < 0 or n < 0:
            raise ValueError(f"start and n must not be negative, got {start} and {n}")
        stop, pieces = min(start + n, self.nsamples), []
        for file, end in zip(self.files, self.ends, strict=True):
            begin = max(start, end - file.nsamples)
            if begin < min(stop, end):
                pieces.append(file.read(begin - end + file.nsamples, min(stop, end) - begin))
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else self.files[-1].read(0, 0)


class BackwardFiles(tuple[str | Path, ...]):
    """Paths of one or more consecutive files that `open_observation` opens as a `BackwardObservation`."""


class BackwardObservation(JoinedFilterbank):
    """An observation that is read backwards in time, from its last sample to its first.

    Low frequencies arrive first: the dispersion of a pulse is that of a negative DM, exactly, while the band, the noise
    and the interference of every channel stay as they are.

    Parameters
    ----------
    paths, ifs
        As in `JoinedFilterbank`; a single file is possible.

    Attributes
    ----------
    tstart
        MJD of the earliest sample, which is the last one here: times of events count from the end.
    """

    def __init__(self, paths: Sequence[str | Path], ifs: int | str = "sum"):
        super().__init__(paths, ifs)
        self.files = [_BackwardFile(file.path, ifs) for file in reversed(self.files)]
        self.ends = list(itertools.accumulate(file.nsamples for file in self.files))


class _BackwardFile(Filterbank):
    """A file whose last sample is read first."""

    def read(self, start: int, n: int) -> np.ndarray:
        """Read samples as `Filterbank.read` does, from the end of the file on."""
        if start < 0 or n < 0:
            raise ValueError(f"start and n must not be negative, got {start} and {n}")
        end = max(0, self.nsamples - start)
        samples = super().read(max(0, end - n), min(n, end))
        half = len(samples) // 2
        for first in range(0, half, ROWS_AT_ONCE):  # in place, as the memory of a search has no room for a copy
            early = slice(first, min(half, first + ROWS_AT_ONCE))
            late = slice(len(samples) - early.stop, len(samples) - early.start)
            samples[early], samples[late] = samples[late][::-1].copy(), samples[early][::-1].copy()
        return samples


def open_observation(path: str | Path | Sequence[str | Path], ifs: int | str = "sum") -> Filterbank | JoinedFilterbank:
    """Open a filterbank file, or a sequence of consecutive files as one observation, forwards or backwards."""
    if isinstance(path, BackwardFiles):
        return BackwardObservation(path, ifs)
    return Filterbank(path, ifs) if isinstance(path, (str, Path)) else JoinedFilterbank(path, ifs)
