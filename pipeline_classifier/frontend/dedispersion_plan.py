"""The plan of a dedispersion tree: which partial sums there are, where they lie, and in what order they are added."""

from dataclasses import dataclass

import numpy as np

ALIGNMENT = 32
"""Elements to which rows are padded, so that each begins on a cache line."""

NARROW = 32
"""Channels of the bands that are summed one after the other, each in memory small enough for the cache."""

TOGETHER = 16
"""Trial DMs that the wide bands are summed for at a time, so that their halves' rows are still in the cache."""

LONGEST_STEP = 16


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

    @property
    def past(self) -> int:
        """Samples past the end of a stretch that the band's channels must have."""
        if self.halves is None:
            return 0
        return max(int(self.rows[:, k, 1].max()) + half.past for k, half in enumerate(self.halves))

    @property
    def additions(self) -> int:
        """Row additions of the band and all below it."""
        return len(self.rows) + sum(half.additions for half in self.halves) if self.halves else 0

    def half_widths(self, width: int) -> list[int]:
        """Samples that the rows of either half must have for rows of ``width``."""
        return [width + int(self.rows[:, k, 1].max()) for k in range(2)]


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

    parts = patterns[:, : nchans // 2], patterns[:, nchans // 2 :]
    upper, upper_row = plan_tree(parts[0] - parts[0][:, :1], quanta, lo, is_root=False)
    lower, lower_row = plan_tree(parts[1] - parts[1][:, :1], quanta, lo + nchans // 2, is_root=False)
    near = 0 if quanta is None else 1
    rows = _matched(parts, (upper.delays, lower.delays), (upper_row, lower_row), near)
    lead = rows[:, :, 1].min(axis=1)
    if is_root:
        # A row may not begin before the data do; later by a sample is not seen, the halves stay together.
        lead = np.minimum(lead, 0)
    rows[:, :, 1] -= lead[:, None]
    delays = [half.delays[rows[:, k, 0]] + rows[:, k, 1:] for k, half in enumerate((upper, lower))]
    return Band(lo, lo + nchans, (upper, lower), rows, np.concatenate(delays, axis=1)), row_of


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


def _matched(
    parts: tuple[np.ndarray, np.ndarray],
    delays: tuple[np.ndarray, np.ndarray],
    row: tuple[np.ndarray, np.ndarray],
    near: int,
) -> np.ndarray:
    """The row and the shift of either half that together come nearest to each wanted sweep, but for its start.

    Parameters
    ----------
    parts : delays wanted in the upper and the lower half, (n, channels) samples
    delays : those of the rows of either half, (n_rows, channels)
    row : the rows meant for each sweep, (n,); the best of those up to ``near`` away are taken

    Returns
    -------
    (n, 2, 2) int64, row and shift of each half
    """
    offsets = np.array(sorted(range(-near, near + 1), key=abs))
    rows = [np.clip(meant[:, None] + offsets, 0, len(d) - 1) for meant, d in zip(row, delays, strict=True)]
    rest = [part[:, None] - d[r] for part, d, r in zip(parts, delays, rows, strict=True)]
    means = [r.mean(axis=2) for r in rest]
    scatter = [r.var(axis=2) * r.shape[2] for r in rest]
    # What is wrong with the sweep as a whole is made good by the shift of the band it belongs to.
    apart = means[1][:, None, :] - means[0][:, :, None]
    weight = 1.0 / sum(1.0 / part.shape[1] for part in parts)
    cost = scatter[0][:, :, None] + scatter[1][:, None, :] + weight * (apart - np.rint(apart)) ** 2
    every = np.arange(len(cost))
    upper, lower = np.unravel_index(cost.reshape(len(cost), -1).argmin(axis=1), cost.shape[1:])
    shift = np.rint(means[0][every, upper])
    shifts = shift, shift + np.rint(apart[every, upper, lower])
    halves = [np.stack([r[every, best], s], axis=1) for r, best, s in zip(rows, (upper, lower), shifts, strict=True)]
    return np.stack(halves, axis=1).astype(np.int64)


@dataclass(frozen=True)
class Place:
    """Memory for rows: row r begins at element ``offset + r % kept * pitch``."""

    offset: int
    pitch: int
    kept: int


@dataclass
class _Stream:
    """The rows of a band, summed in order as they are needed."""

    band: Band
    width: int
    place: Place
    halves: "list[_Stream]"
    done: int = 0


class Schedule:
    """Where all rows of one stretch of samples lie in one piece of memory, and the additions in order.

    Narrow bands are summed whole, one after the other, in the same small memory. The wide ones above are summed for a
    few trial DMs at a time, and keep a row only as long as it is needed.

    Attributes
    ----------
    size : elements of the memory
    data, rows : places of the samples (nchans, stretch + ``root.past``) and of the root's rows (n_rows, stretch)
    additions : (n, 8) int64; each adds several rows at once: how many, their width, and for the two summands and the
        sum the element at which the first row begins and the step to the next one
    """

    def __init__(self, root: Band, stretch: int) -> None:
        self.size = 0
        self._additions: list[tuple[int, ...]] = []
        self.data = self._reserve(root.hi - root.lo, stretch + root.past)
        self._temporary = self.size
        self.size += self._temporary_size(root, stretch)
        edges = np.append(np.arange(TOGETHER, len(root.rows), TOGETHER), len(root.rows))
        top = self._stream(root, stretch, len(root.rows), edges)
        for upto in edges:
            self._fill(top, upto)
        self.rows = top.place
        self.additions = np.array(self._additions, dtype=np.int64).reshape(-1, 8)

    def _reserve(self, kept: int, width: int) -> Place:
        place = Place(self.size, _padded(width), kept)
        self.size += place.pitch * kept
        return place

    def _temporary_size(self, band: Band, width: int, inside: bool = False) -> int:
        """Elements that the rows below a narrow band take while it is summed; the most of all narrow bands."""
        if band.halves is None:
            return 0
        widths = band.half_widths(width)
        narrow = band.hi - band.lo <= NARROW
        below = [self._temporary_size(half, w, narrow) for half, w in zip(band.halves, widths, strict=True)]
        if not narrow:
            return max(below)
        first, second = (_rows_size(half, w) for half, w in zip(band.halves, widths, strict=True))
        return max(first + below[0], first + second + below[1])

    def _stream(self, band: Band, width: int, kept: int, edges: np.ndarray) -> _Stream:
        """Give a band memory for ``kept`` rows; they will be asked for up to each of the ``edges`` in turn."""
        if band.halves is None:
            return _Stream(band, width, self._channel(band), [], 1)
        if band.hi - band.lo <= NARROW:
            place = self._reserve(len(band.rows), width)
            self._sum(band, width, place, self._temporary)
            return _Stream(band, width, place, [], len(band.rows))
        halves = []
        for k, (half, half_width) in enumerate(zip(band.halves, band.half_widths(width), strict=True)):
            needed = band.rows[:, k, 0]
            upto = np.maximum.accumulate(needed)[edges - 1] + 1
            still = np.minimum.accumulate(needed[::-1])[::-1][np.append(0, edges[:-1])]
            halves.append(self._stream(half, half_width, int((upto - still).max()), np.unique(upto)))
        return _Stream(band, width, self._reserve(kept, width), halves)

    def _channel(self, band: Band) -> Place:
        return Place(self.data.offset + band.lo * self.data.pitch, self.data.pitch, 1)

    def _sum(self, band: Band, width: int, place: Place, temporary: int) -> None:
        """Enter the additions of a narrow band and all below it, depth first."""
        assert band.halves is not None  # a single channel is no sum
        halves = []
        for half, half_width in zip(band.halves, band.half_widths(width), strict=True):
            if half.halves is None:
                halves.append(self._channel(half))
                continue
            halves.append(Place(temporary, _padded(half_width), len(half.rows)))
            temporary += _rows_size(half, half_width)
            self._sum(half, half_width, halves[-1], temporary)
        self._add(band, width, place, halves, 0, len(band.rows))

    def _fill(self, stream: _Stream, upto: int) -> None:
        """Enter the additions for the rows of a wide band up to ``upto``, and what they need."""
        if upto <= stream.done:
            return
        band, first = stream.band, stream.done
        for k, half in enumerate(stream.halves):
            self._fill(half, int(band.rows[first:upto, k, 0].max()) + 1)
        self._add(band, stream.width, stream.place, [half.place for half in stream.halves], first, upto)
        stream.done = upto

    def _add(self, band: Band, width: int, place: Place, halves: list[Place], first: int, last: int) -> None:
        """Enter the additions of rows first..last-1, those that lie at constant steps as one."""
        starts = np.empty((last - first, 3), np.int64)
        for k, half in enumerate(halves):
            rows, shifts = band.rows[first:last, k, 0], band.rows[first:last, k, 1]
            starts[:, k] = half.offset + rows % half.kept * half.pitch + shifts
        starts[:, 2] = place.offset + np.arange(first, last) % place.kept * place.pitch
        for row, count, step in progressions(starts):
            steps = starts[row + step] - starts[row] if count > 1 else (0, 0, 0)
            pairs = zip(starts[row], steps, strict=True)
            self._additions.append((count, width, *(int(value) for pair in pairs for value in pair)))


def _padded(width: int) -> int:
    return -(-width // ALIGNMENT) * ALIGNMENT


def _rows_size(band: Band, width: int) -> int:
    return 0 if band.halves is None else len(band.rows) * _padded(width)


def progressions(starts: np.ndarray) -> list[tuple[int, int, int]]:
    """Cut rows into runs of rows at constant steps, forward in memory.

    Parameters
    ----------
    starts : (n, k) where each row's summands and sum begin

    Returns
    -------
    (first, count, step) of each run: rows first, first + step, ...
    """
    values = starts.tolist()
    n, free, runs = len(values), [True] * len(values), []
    for first in range(n):
        if not free[first]:
            continue
        best = 1, 1
        for step in range(1, min(LONGEST_STEP, n - 1 - first) + 1):
            ahead = [b - a for a, b in zip(values[first], values[first + step], strict=True)]
            if not free[first + step] or min(ahead) < 0:
                continue
            row, count = first + step, 2
            while row + step < n and free[row + step]:
                if ahead != [b - a for a, b in zip(values[row], values[row + step], strict=True)]:
                    break
                row, count = row + step, count + 1
            best = max(best, (count, step), key=lambda run: run[0])
        count, step = best
        free[first : first + count * step : step] = [False] * count
        runs.append((first, count, step))
    return runs
