"""Plan of the dedispersion: sub-bands, the tree of partial sums of each, their place in memory, and the additions."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

ALIGNMENT = 32
"""Rows are padded to multiples of this many elements, so that each begins on a cache line."""

WIDEST = 256
"""Largest number of channels in a sub-band: their int8 samples cannot overflow int16."""

LONGEST_SWEEP = 1500
"""Largest sweep over a sub-band in samples: its partial sums need as many samples more than a stretch of the data."""

MOST_ROWS = 230
"""Largest mean number of rows of the sub-bands. With this value and `LONGEST_SWEEP`, the number of sub-bands was the
fastest, or within 10 % of it, in these cases of 256 trial DMs: 256 channels from 1210 to 1510 MHz, 128 and 54.6 us, DM
to 127.5; 1024 channels, 64 us, the lowest and the highest quarter of DM 0 to 1000; 4096 channels from 1000 to 1500 MHz,
49.152 us, either half of DM 0 to 1000."""

EXACT_QUANTUM = 0.4
"""Delay quantum with which rows of exact sums are estimated: fewer trial DMs share them than with a quantum of 1."""


@dataclass(frozen=True)
class Band:
    """A band of the tree; each of its rows is the sum of one row of either half.

    Attributes
    ----------
    lo, hi : int
        First channel and end (exclusive).
    halves : tuple of Band, optional
        The upper and the lower half of the channels; None for a single channel.
    rows : (n_rows, 2, 2) ndarray of int64
        For each row and half, the row of the half and its shift in samples.
    delays : (n_rows, hi - lo) ndarray of int64
        Delay of each channel in each row, in samples.
    """

    lo: int
    hi: int
    halves: "tuple[Band, Band] | None"
    rows: np.ndarray
    delays: np.ndarray

    @property
    def past(self) -> int:
        """Input samples needed past the last output sample, because of the delays within the band."""
        if self.halves is None:
            return 0
        return max(int(self.rows[:, k, 1].max()) + half.past for k, half in enumerate(self.halves))

    @property
    def additions(self) -> int:
        """Additions of rows in the band and all bands below it."""
        return len(self.rows) + sum(half.additions for half in self.halves) if self.halves else 0

    def half_widths(self, width: int) -> list[int]:
        """Samples that the rows of either half need for rows of ``width`` samples."""
        return [width + int(self.rows[:, k, 1].max()) for k in range(2)]


def plan_tree(
    wanted: np.ndarray, quanta: np.ndarray | None, lo: int = 0, is_root: bool = True, in_time: bool = False
) -> tuple[Band, np.ndarray]:
    """Plan the sums of a band and all bands below it.

    Parameters
    ----------
    wanted : (n, channels) ndarray
        Required delays relative to the first channel of the band, in samples.
    quanta : (n,) ndarray or None
        Delay quanta in samples: delays whose sweeps over the band differ by less share a row, which has their mean.
        None: ``wanted`` are integers, the rows have exactly these delays, and equal ones share a row.
    lo : int
        First channel of the band.
    is_root : bool
        Whether the band is a whole tree, in which every delay has a separate row if there are quanta.
    in_time : bool
        Whether the delays of the band must be right as they are, rather than up to a shift common to all channels.

    Returns
    -------
    band : Band
    row : (n,) ndarray of int64
        Row of the band for each of the required delays.
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

    parts = patterns[:, : nchans // 2], patterns[:, nchans // 2 :]
    upper, upper_row = plan_tree(parts[0] - parts[0][:, :1], quanta, lo, is_root=False)
    lower, lower_row = plan_tree(parts[1] - parts[1][:, :1], quanta, lo + nchans // 2, is_root=False)
    near = 0 if quanta is None or nchans == 2 else 1
    rows = _matched(parts, (upper.delays, lower.delays), (upper_row, lower_row), near, in_time)
    rows[:, :, 1] -= rows[:, :, 1].min(axis=1, keepdims=True)
    delays = [half.delays[rows[:, k, 0]] + rows[:, k, 1:] for k, half in enumerate((upper, lower))]
    return Band(lo, lo + nchans, (upper, lower), rows, np.concatenate(delays, axis=1)), row_of


def _shared_patterns(wanted: np.ndarray, quanta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Group the required delays by their sweep: mean delays (m, channels), group of each (n,), mean quanta (m,)."""
    order = np.argsort(wanted[:, -1], kind="stable")
    key = np.empty(len(wanted), np.int64)
    key[order] = np.rint(np.cumsum(np.diff(wanted[order, -1], prepend=0.0) / quanta[order]))
    row_of = np.unique(key, return_inverse=True)[1].reshape(-1)
    members = np.bincount(row_of)
    patterns = np.zeros((len(members), wanted.shape[1]))
    np.add.at(patterns, row_of, wanted)
    return patterns / members[:, None], row_of, np.bincount(row_of, weights=quanta) / members


def _matched(
    parts: tuple[np.ndarray, np.ndarray],
    delays: tuple[np.ndarray, np.ndarray],
    row: tuple[np.ndarray, np.ndarray],
    near: int,
    in_time: bool,
) -> np.ndarray:
    """Find the row and the shift of either half that together best match each required sweep.

    Parameters
    ----------
    parts : tuple of (n, channels) ndarray
        Required delays in the upper and the lower half, in samples.
    delays : tuple of (n_rows, channels) ndarray
        Delays of the rows of either half.
    row : tuple of (n,) ndarray
        Row planned for each sweep; rows up to ``near`` away from it are tried too.
    in_time : bool
        Whether the delays must be right as they are, rather than up to a shift common to both halves.

    Returns
    -------
    (n, 2, 2) ndarray of int64
        Row and shift of each half.

    Notes
    -----
    The cost is the sum over channels of the squared error of the delays, up to a shift common to the whole band, which
    the band above corrects. The scatter of the errors within each half adds to it directly. The mean errors of the
    halves differ by r, after the best whole shift between them: with n_u and n_l channels, that costs
    r^2 n_u n_l / (n_u + n_l). If both halves must be in time, the squared mean error of each costs n_u or n_l times as
    much.
    """
    offsets = np.array(sorted(range(-near, near + 1), key=abs))
    rows = [np.clip(meant[:, None] + offsets, 0, len(d) - 1) for meant, d in zip(row, delays, strict=True)]
    rest = [part[:, None] - d[r] for part, d, r in zip(parts, delays, rows, strict=True)]
    means = [r.mean(axis=2) for r in rest]
    scatter = [np.square(r - mean[:, :, None]).sum(axis=2) for r, mean in zip(rest, means, strict=True)]
    apart = means[1][:, None, :] - means[0][:, :, None]
    if in_time:
        scatter = [s + part.shape[1] * (m - np.rint(m)) ** 2 for s, m, part in zip(scatter, means, parts, strict=True)]
        cost = scatter[0][:, :, None] + scatter[1][:, None, :]
        apart = np.rint(means[1])[:, None, :] - np.rint(means[0])[:, :, None]
    else:
        weight = 1.0 / sum(1.0 / part.shape[1] for part in parts)
        cost = scatter[0][:, :, None] + scatter[1][:, None, :] + weight * (apart - np.rint(apart)) ** 2
    every = np.arange(len(cost))
    upper, lower = np.unravel_index(cost.reshape(len(cost), -1).argmin(axis=1), cost.shape[1:])
    shift = np.rint(means[0][every, upper])
    shifts = shift, shift + np.rint(apart[every, upper, lower])
    halves = [np.stack([r[every, best], s], axis=1) for r, best, s in zip(rows, (upper, lower), shifts, strict=True)]
    return np.stack(halves, axis=1).astype(np.int64)


@dataclass(frozen=True)
class SubBand:
    """Adjacent channels that are summed by a tree, and then added to each trial DM at the delay of the sub-band.

    Attributes
    ----------
    band : Band
        The tree.
    row, shift : (n_dm,) ndarray of int64
        Row for each trial DM, and its delay in samples.
    """

    band: Band
    row: np.ndarray
    shift: np.ndarray

    @property
    def delays(self) -> np.ndarray:
        """Delay of each channel at each trial DM in samples, (n_dm, channels) int64."""
        return self.band.delays[self.row] + self.shift[:, None]


def plan_sub_bands(delays: np.ndarray, quanta: np.ndarray | None) -> list[SubBand]:
    """Divide the band into sub-bands with a short sweep, and plan the tree of each.

    Parameters
    ----------
    delays : (n_dm, nchans) ndarray
        Required delays in samples.
    quanta : (n_dm,) ndarray or None
        As for `plan_tree`.
    """
    edges = _edges(delays, quanta)
    several = len(edges) > 2
    parts = [(lo, *plan_tree(delays[:, lo:hi], quanta, lo, in_time=several)) for lo, hi in pairwise(edges)]
    error = [delays[:, lo : band.hi] - band.delays[row] for lo, band, row in parts]
    shifts = np.array([np.rint(e.mean(axis=1)) for e in error]).astype(np.int64)
    # Nothing may arrive before the top channel. Starting late does not change the relative delays.
    first = [shift + band.delays[row].min(axis=1) for shift, (_, band, row) in zip(shifts, parts, strict=True)]
    shifts -= np.minimum(np.min(first, axis=0), 0)
    return [SubBand(band, row, shift) for shift, (_, band, row) in zip(shifts, parts, strict=True)]


def _edges(delays: np.ndarray, quanta: np.ndarray | None) -> list[int]:
    """First channels of the sub-bands, and the number of channels; no sub-band is a part of two channels."""
    nchans, number = delays.shape[1], 1
    while True:
        edges = np.linspace(0, nchans, number + 1).astype(np.int64)
        sweeps = delays[:, edges[1:] - 1] - delays[:, edges[:-1]]
        steps = np.diff(sweeps, axis=0) / (EXACT_QUANTUM if quanta is None else quanta[1:, None])
        rows = np.minimum(np.abs(steps.sum(axis=0)) + 1, len(delays)).mean()
        short = sweeps.max() <= LONGEST_SWEEP and rows <= MOST_ROWS and nchans <= WIDEST * number
        if short or 4 * number > nchans:
            return edges.tolist()
        number *= 2


class Schedule:
    """Memory layout of the rows of a sub-band for one stretch of samples, and the additions in order, depth first.

    Parameters
    ----------
    band : Band
        The tree of the sub-band.
    stretch : int
        Samples summed at once.

    Attributes
    ----------
    size : int
        Elements of the memory.
    pitch : int
        Elements from the samples of one channel, which are at the beginning of the memory, to those of the next.
    additions : (n, 4) ndarray of int64
        For each addition of rows the elements at which the summands and the sum begin, and their width.
    starts : (n_rows, 2) ndarray of int64
        Elements at which the summands of the rows of the sub-band begin; these are not summed in the memory.
    """

    def __init__(self, band: Band, stretch: int) -> None:
        self.pitch = _padded(stretch + band.past)
        self.size = (band.hi - band.lo) * self.pitch
        self._channel, self._additions = band.lo, [np.empty((0, 4), np.int64)]
        if band.halves is None:  # the sum of the channel and of zeros, which nothing overwrites
            self.starts = np.array([[0, self.size]])
            self.size += self.pitch
        else:
            self.starts = self._sum_halves(band, stretch, self.size)
        self.additions = np.concatenate(self._additions)

    def _sum_halves(self, band: Band, width: int, free: int) -> np.ndarray:
        """Append the additions of both halves of a band, in memory from ``free`` on; return `starts` of the band."""
        assert band.halves is not None
        starts = np.empty((len(band.rows), 2), np.int64)
        for k, (half, half_width) in enumerate(zip(band.halves, band.half_widths(width), strict=True)):
            if half.halves is None:
                first = pitch = (half.lo - self._channel) * self.pitch
            else:
                first, pitch = free, _padded(half_width)
                free += len(half.rows) * pitch
                self.size = max(self.size, free)
                summands = self._sum_halves(half, half_width, free)
                sums = first + np.arange(len(summands)) * pitch
                self._additions.append(np.column_stack([summands, sums, np.full(len(sums), half_width)]))
            starts[:, k] = first + band.rows[:, k, 0] * pitch + band.rows[:, k, 1]
        return starts


def _padded(width: int) -> int:
    return -(-width // ALIGNMENT) * ALIGNMENT
