"""Incoherent dedispersion: for every trial DM the sum over channels, delayed by the cold-plasma law."""

import threading
from dataclasses import dataclass

import numpy as np
import torch

DISPERSION_CONSTANT = 4148.808
"""s MHz^2 / (pc cm^-3); Lorimer & Kramer, Handbook of Pulsar Astronomy (2005), eq. 4.7."""

LEVELS_PER_SIGMA = 8
"""Steps of a quantised sample in one standard deviation of a channel: rounding adds 0.13 % to the variance."""

FEWEST_SAMPLES = 8192
"""Samples summed at once: rows long enough to pay for a call, short enough to stay in the cache."""

ALIGNMENT = 32
"""Elements to which rows are padded, so that each begins on a cache line."""

FINEST_QUANTUM = 1.0
PART_OF_SMEARING = 0.35


def dispersion_delay(dm: np.ndarray | float, frequency_mhz: np.ndarray | float, reference_mhz: float) -> np.ndarray:
    """Arrival time in seconds at ``frequency_mhz`` after that at ``reference_mhz`` for a pulse of ``dm`` pc cm^-3."""
    return DISPERSION_CONSTANT * dm * (np.square(1.0 / np.asarray(frequency_mhz)) - 1.0 / reference_mhz**2)


def channel_delays(dms: np.ndarray, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """Delay of every channel at every trial DM behind the top channel, in samples, (n_dm, nchans) float64.

    Parameters
    ----------
    dms : (n_dm,) pc cm^-3
    frequencies : (nchans,) MHz, highest first
    tsamp : seconds
    """
    return dispersion_delay(np.asarray(dms)[:, None], frequencies[None, :], frequencies[0]) / tsamp


def delays_in_samples(dms: np.ndarray, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """`channel_delays` rounded to whole samples, int64."""
    return np.rint(channel_delays(dms, frequencies, tsamp)).astype(np.int64)


def delay_quanta(dms: np.ndarray, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """How far delays may be off without a loss that counts, for each trial DM, (n_dm,) samples.

    A pulse is smeared over the delay inside a channel whatever is done: a third of that may be added in each band, but
    no pulse is taken for shorter than two samples.
    """
    smearing = channel_delays(dms, frequencies, tsamp)[:, -1] / max(1, len(frequencies) - 1)
    return np.maximum(FINEST_QUANTUM, PART_OF_SMEARING * smearing)


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
class Band:
    """Channels lo..hi-1 of the tree: which partial sums of its two halves make each of its rows.

    Attributes
    ----------
    halves : the upper and the lower half of the channels; None for a single channel
    rows : (n_rows, 2, 2) int64: for each row and half, the row of the half and the samples by which it is shifted
    delays : (n_rows, hi - lo) int64, the delay of each channel in each row
    """

    lo: int
    hi: int
    halves: "tuple[Band, Band] | None"
    rows: np.ndarray
    delays: np.ndarray


def plan_tree(
    wanted: np.ndarray, quanta: np.ndarray | None, lo: int = 0, is_root: bool = True
) -> tuple[Band, np.ndarray]:
    """Plan the sums of a band whose channels begin at ``lo``.

    Parameters
    ----------
    wanted : (n, channels) delays behind the band's first channel that are asked for, samples
    quanta : (n,) samples; delays whose sweeps over the band differ by less share a row, which has their mean. None: the
        rows have just these delays, which must be whole, and equal ones share a row.

    Returns
    -------
    band, row : the plan, and the row of it (n,) that serves each of the wanted delays
    """
    nchans = wanted.shape[1]
    if nchans == 1:
        leaf = Band(lo, lo + 1, None, np.empty((1, 0, 2), np.int64), np.zeros((1, 1), np.int64))
        return leaf, np.zeros(len(wanted), np.int64)
    if quanta is None:
        patterns, row_of = np.unique(wanted, axis=0, return_inverse=True)
        row_of = row_of.reshape(-1)
    elif is_root:
        patterns, row_of = wanted, np.arange(len(wanted))
    else:
        patterns, row_of, quanta = _shared_patterns(wanted, quanta)

    halves, rows, delays = [], [], []
    for first, last in ((0, nchans // 2), (nchans // 2, nchans)):
        part = patterns[:, first:last]
        half, row = plan_tree(part - part[:, :1], quanta, lo + first, is_root=False)
        # The half as a whole is shifted by what is nearest to the wanted delays of its channels on average.
        shift = np.rint((part - half.delays[row]).mean(axis=1)).astype(np.int64)
        halves.append(half)
        rows.append(np.stack([row, shift], axis=1))
        delays.append(half.delays[row] + shift[:, None])
    rows, delays = np.stack(rows, axis=1), np.concatenate(delays, axis=1)
    lead = rows[:, :, 1].min(axis=1)
    if is_root:
        # A row may not begin before the data do; later by a sample is not seen, the halves stay together.
        lead = np.minimum(lead, 0)
    rows[:, :, 1] -= lead[:, None]
    return Band(lo, lo + nchans, tuple(halves), rows, delays - lead[:, None]), row_of


def _shared_patterns(wanted: np.ndarray, quanta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Delays (m, channels) that stand for all that are wanted, the one for each (n,), and their quanta (m,)."""
    order = np.argsort(wanted[:, -1], kind="stable")
    key = np.empty(len(wanted), np.int64)
    key[order] = np.rint(np.cumsum(np.diff(wanted[order, -1], prepend=0.0) / quanta[order]))
    row_of = np.unique(key, return_inverse=True)[1].reshape(-1)
    members = np.bincount(row_of)
    patterns = np.zeros((len(members), wanted.shape[1]))
    np.add.at(patterns, row_of, wanted)
    return patterns / members[:, None], row_of, np.bincount(row_of, weights=quanta) / members


class DedispersionTree:
    """Dedispersion with every partial sum that several trial DMs share computed once.

    Neighbouring channels are merged two by two, and a band keeps only the rows that the DM grid needs (the tree of
    Taylor 1974, A&AS 15, 367, for the delays of any grid).

    Parameters
    ----------
    delays : (n_dm, nchans) from `channel_delays`, samples
    quanta : (n_dm,) from `delay_quanta`: trial DMs whose sweeps over a band differ by less share its partial sum, which
        costs a little S/N of the shortest pulses and saves most additions. None: the sum over the rounded delays,
        equal to `brute_force` to the bit.
    device : where the sums are done
    """

    def __init__(
        self, delays: np.ndarray, quanta: np.ndarray | None = None, device: torch.device | str = "cpu"
    ) -> None:
        wanted = np.rint(delays).astype(np.int64) if quanta is None else delays
        self.root, self._row_of_dm = plan_tree(wanted, quanta)
        self.delays = self.root.delays[self._row_of_dm]
        self.device = torch.device(device)
        self.max_delay = self._past(self.root)
        self.stretch = max(FEWEST_SAMPLES, 1 << int(np.ceil(np.log2(2 * self.max_delay + 1))))
        if self.device.type == "cuda":
            self.stretch *= 16
        self._local = threading.local()

    def _past(self, band: Band) -> int:
        """Samples past the end of a stretch that a band's channels must have."""
        if band.halves is None:
            return 0
        return max(int(band.rows[:, k, 1].max()) + self._past(half) for k, half in enumerate(band.halves))

    @property
    def additions(self) -> int:
        """Row additions in one call (brute force: n_dm * (nchans - 1))."""

        def count(band: Band) -> int:
            return len(band.rows) + sum(count(half) for half in band.halves) if band.halves else 0

        return count(self.root)

    def __call__(self, data: np.ndarray, n: int, out: np.ndarray | None = None) -> np.ndarray:
        """Dedisperse ``data`` (nchans, >= n + max_delay) to (n_dm, n), of the same integer dtype."""
        if out is None:
            out = np.empty((len(self._row_of_dm), n), dtype=data.dtype)
        stretch = min(self.stretch, n)
        for start in range(0, n, stretch):
            length = min(stretch, n - start)
            room = self._room(stretch, data.dtype)
            piece = data[:, start : start + length + self.max_delay]
            room.data[:, : piece.shape[1]] = torch.from_numpy(piece)
            for upper, lower, total in room.additions:
                room.add(upper, lower, total)
            rows = room.rows[:, :length]
            # Grids so fine that two trial DMs have the same delays share a row.
            rows = rows if len(rows) == len(out) else rows[self._row_of_dm]
            out[:, start : start + length] = rows.cpu().numpy()
        return out

    def _room(self, stretch: int, dtype: np.dtype) -> "_Room":
        """The memory and the list of additions of this thread."""
        room = getattr(self._local, "room", None)
        if room is None or (room.stretch, room.dtype) != (stretch, dtype):
            room = self._local.room = _Room(self.root, stretch, self.max_delay, dtype, self.device)
        return room


class _Room:
    """Memory for one stretch of samples, and the additions to do in it, each of several rows at once.

    Rows that follow each other at a constant step, in both halves, are one addition of strided views. A band's rows lie
    in front of its halves', whose place is free again once they are added.
    """

    def __init__(self, root: Band, stretch: int, max_delay: int, dtype: np.dtype, device: torch.device) -> None:
        self.stretch, self.dtype = stretch, dtype
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        self.data = torch.zeros((root.hi - root.lo, stretch + max_delay), dtype=kind, device=device)
        self._buffer = torch.zeros(self._need(root, stretch), dtype=kind, device=device)
        # On a CPU numpy adds short rows faster than torch, in the same memory.
        self.add = np.add if device.type == "cpu" else lambda upper, lower, out: torch.add(upper, lower, out=out)
        self.additions: list[tuple] = []
        self.rows = self._plan(root, stretch, 0)[:, :stretch]

    @staticmethod
    def _size(band: Band, width: int) -> int:
        return 0 if band.halves is None else len(band.rows) * _padded(width)

    def _need(self, band: Band, width: int) -> int:
        """Elements that a band's rows, and all that is below, take while they are summed."""
        if band.halves is None:
            return 0
        most, held = 0, 0
        for half, half_width in zip(band.halves, _half_widths(band, width)):
            most = max(most, held + self._need(half, half_width))
            held += self._size(half, half_width)
        return self._size(band, width) + most

    def _plan(self, band: Band, width: int, offset: int) -> torch.Tensor:
        """Enter a band's additions; return its rows (n_rows, >= width)."""
        if band.halves is None:
            return self.data[band.lo : band.lo + 1]
        pitch = _padded(width)
        rows = self._buffer[offset : offset + self._size(band, width)].view(len(band.rows), pitch)
        offset += self._size(band, width)
        parts = []
        for half, half_width in zip(band.halves, _half_widths(band, width)):
            parts.append(self._plan(half, half_width, offset))
            offset += self._size(half, half_width)
        for first, last in _runs(band.rows):
            views = [_strided(part, band.rows[first:last, k], width) for k, part in enumerate(parts)]
            views.append(rows[first:last, :width])
            self.additions.append(tuple(view.numpy() if rows.device.type == "cpu" else view for view in views))
        return rows


def _padded(width: int) -> int:
    return -(-width // ALIGNMENT) * ALIGNMENT


def _half_widths(band: Band, width: int) -> list[int]:
    return [width + int(band.rows[:, k, 1].max()) for k in range(2)]


def _runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """First and last + 1 of the rows that follow each other at a constant step, ahead in memory."""
    runs, first = [], 0
    steps = np.diff(rows, axis=0)
    ahead = ((steps[:, :, 0] > 0) | (steps[:, :, 0] == 0) & (steps[:, :, 1] >= 0)).all(axis=1)
    while first < len(rows):
        last = first + 1
        while last < len(rows) and ahead[last - 1] and (steps[last - 1] == steps[first]).all():
            last += 1
        runs.append((first, last))
        first = last
    return runs


def _strided(part: torch.Tensor, rows: np.ndarray, width: int) -> torch.Tensor:
    """The rows (n, width) of a half, each with its shift, as one view."""
    (row, shift), n = rows[0], len(rows)
    step = 0
    if n > 1:
        step = int((rows[1, 0] - row) * part.stride(0) + rows[1, 1] - shift)
    first = part.storage_offset() + int(row) * part.stride(0) + int(shift)
    return part.as_strided((n, width), (step, 1), first)
