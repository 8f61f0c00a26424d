"""Incoherent dedispersion: for every trial DM the exact sum over channels, delayed by the cold-plasma law."""

from dataclasses import dataclass

import numpy as np

DISPERSION_CONSTANT = 4148.808
"""s MHz^2 / (pc cm^-3); Lorimer & Kramer, Handbook of Pulsar Astronomy (2005), eq. 4.7."""

LEVELS_PER_SIGMA = 8
"""Steps of a quantised sample in one standard deviation of a channel: rounding adds 0.13 % to the variance."""


def dispersion_delay(dm: np.ndarray | float, frequency_mhz: np.ndarray | float, reference_mhz: float) -> np.ndarray:
    """Arrival time in seconds at ``frequency_mhz`` after that at ``reference_mhz`` for a pulse of ``dm`` pc cm^-3."""
    return DISPERSION_CONSTANT * dm * (np.square(1.0 / np.asarray(frequency_mhz)) - 1.0 / reference_mhz**2)


def delays_in_samples(dms: np.ndarray, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """Delay of every channel at every trial DM, rounded to whole samples.

    Parameters
    ----------
    dms : (n_dm,) pc cm^-3
    frequencies : (nchans,) MHz, highest first
    tsamp : seconds

    Returns
    -------
    (n_dm, nchans) int64, zero in column 0
    """
    delays = dispersion_delay(np.asarray(dms)[:, None], frequencies[None, :], frequencies[0])
    return np.rint(delays / tsamp).astype(np.int64)


def accumulator_dtype(nchans: int) -> np.dtype:
    """Smallest integer type that holds the sum of ``nchans`` samples quantised by `quantise`."""
    return np.dtype(np.int16 if nchans <= 1024 else np.int32)


def quantise(data: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Round unit-noise samples to `LEVELS_PER_SIGMA` steps per sigma, clipped so that no sum over channels overflows.

    Parameters
    ----------
    data : (nchans, n) float32, changed in place
    out : (nchans, >= n) of `accumulator_dtype`; columns past n become zero
    """
    nchans, n = data.shape
    limit = min(127, np.iinfo(out.dtype).max // nchans)
    np.multiply(data, LEVELS_PER_SIGMA, out=data)
    np.clip(data, -limit, limit, out=data)
    np.rint(data, out=data)
    out[:, :n] = data
    out[:, n:] = 0
    return out


def brute_force(data: np.ndarray, delays: np.ndarray, n: int) -> np.ndarray:
    """The defining sum ``out[i, t] = sum_c data[c, t + delays[i, c]]``: the reference for every faster way.

    Parameters
    ----------
    data : (nchans, n + largest delay) integers
    delays : (n_dm, nchans) samples
    n : samples to return

    Returns
    -------
    (n_dm, n) of the dtype of ``data``
    """
    out = np.zeros((len(delays), n), dtype=data.dtype)
    for row, shifts in zip(out, delays, strict=True):
        for channel, shift in zip(data, shifts, strict=True):
            row += channel[shift : shift + n]
    return out


@dataclass(frozen=True)
class _Band:
    """Channels lo..hi of the tree: which partial sums of its two halves make each of its delay patterns."""

    lo: int
    halves: tuple["_Band", "_Band"] | None
    rows: list[tuple[int, int, int, int]]  # row of upper half, row of lower half, shift of lower half, samples past n
    span: int  # most samples past n that any row needs


class DedispersionTree:
    """Brute-force dedispersion with every partial sum that several trial DMs share computed once.

    Neighbouring channels are merged two by two. In a band, trial DMs whose rounded delays relative to the band's top
    channel are the same share one row, so that the result equals `brute_force` to the bit at a fraction of its
    additions (the tree of Taylor 1974, A&AS 15, 367, on exact delays).

    Parameters
    ----------
    delays : (n_dm, nchans) int64 from `delays_in_samples`
    """

    STRETCH = 16384
    """Samples summed at once: rows long enough to pay for a call, short enough to stay in the cache."""

    def __init__(self, delays: np.ndarray) -> None:
        self.delays = delays
        self.max_delay = int(delays.max())
        self._root, self._row_of_dm = self._plan(0, delays.shape[1])

    def _plan(self, lo: int, hi: int) -> tuple[_Band, np.ndarray]:
        """Plan channels lo..hi; also return the row (pattern) that each trial DM uses, (n_dm,)."""
        relative = self.delays[:, lo:hi] - self.delays[:, lo : lo + 1]
        _, first_dm, row_of_dm = np.unique(relative, axis=0, return_index=True, return_inverse=True)
        row_of_dm = row_of_dm.reshape(-1)
        past = np.zeros(len(first_dm), dtype=np.int64)
        np.maximum.at(past, row_of_dm, self.delays[:, lo])
        if hi - lo == 1:
            return _Band(lo, None, [], int(past.max())), row_of_dm
        middle = (lo + hi) // 2
        upper, upper_row = self._plan(lo, middle)
        lower, lower_row = self._plan(middle, hi)
        shifts = self.delays[first_dm, middle] - self.delays[first_dm, lo]
        rows = np.stack([upper_row[first_dm], lower_row[first_dm], shifts, past], axis=1)
        return _Band(lo, (upper, lower), [tuple(row) for row in rows.tolist()], int(past.max())), row_of_dm

    @property
    def additions(self) -> int:
        """Row additions in one call (brute force: n_dm * (nchans - 1))."""

        def count(band: _Band) -> int:
            return len(band.rows) + (count(band.halves[0]) + count(band.halves[1]) if band.halves else 0)

        return count(self._root)

    def _room(self, band: _Band, n: int) -> tuple[int, int]:
        """Elements that a band's rows take, and that its whole sub-tree takes while they are summed."""
        if band.halves is None:
            return 0, 0
        size = len(band.rows) * (n + band.span)
        (upper_size, upper_need), (_, lower_need) = (self._room(half, n) for half in band.halves)
        return size, size + max(upper_need, upper_size + lower_need)

    def _sum(self, band: _Band, data: np.ndarray, n: int, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum a band's rows into the start of ``room``; return them and the rest of the room."""
        if band.halves is None:
            return data[band.lo : band.lo + 1], room
        width = n + band.span
        out, rest = np.split(room, [len(band.rows) * width])
        out = out.reshape(-1, width)
        upper, below = self._sum(band.halves[0], data, n, rest)
        lower, _ = self._sum(band.halves[1], data, n, below)
        for row, (i, j, shift, past) in zip(out, band.rows, strict=True):
            length = n + past
            np.add(upper[i, :length], lower[j, shift : shift + length], row[:length])
        return out, rest

    def __call__(self, data: np.ndarray, n: int) -> np.ndarray:
        """Dedisperse ``data`` (nchans, >= n + max_delay) to (n_dm, n), of the same integer dtype."""
        out = np.empty((len(self.delays), n), dtype=data.dtype)
        room = np.empty(self._room(self._root, min(n, self.STRETCH))[1], dtype=data.dtype)
        for start in range(0, n, self.STRETCH):
            end = min(start + self.STRETCH, n)
            summed, _ = self._sum(self._root, data[:, start : end + self.max_delay], end - start, room)
            np.take(summed[:, : end - start], self._row_of_dm, axis=0, out=out[:, start:end], mode="clip")
        return out
