"""Plan of a dedispersion tree: its partial sums, their place in memory, and the order of the additions."""

from dataclasses import dataclass

import numpy as np

ALIGNMENT = 32
"""Rows are padded to multiples of this many elements, so that each begins on a cache line."""

NARROW = 32
"""Bands of at most this many channels are summed one after the other, in memory that fits into the cache."""

DMS_AT_ONCE = 16
"""Trial DMs for which wide bands are summed at once, while the rows of their halves are still in the cache."""

LONGEST_STEP = 16
"""Largest step between rows that `progressions` tries."""


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
    wanted: np.ndarray, quanta: np.ndarray | None, lo: int = 0, is_root: bool = True
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
        Whether the band is the whole tree, in which every delay has a separate row if there are quanta.

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
    near = 0 if quanta is None else 1
    rows = _matched(parts, (upper.delays, lower.delays), (upper_row, lower_row), near)
    lead = rows[:, :, 1].min(axis=1)
    if is_root:
        # A row must not start before the data. Starting late does not change its relative delays.
        lead = np.minimum(lead, 0)
    rows[:, :, 1] -= lead[:, None]
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

    Returns
    -------
    (n, 2, 2) ndarray of int64
        Row and shift of each half.

    Notes
    -----
    The cost is the sum over channels of the squared error of the delays, up to a shift common to the whole band, which
    the band above corrects. The scatter of the errors within each half adds to it directly. The mean errors of the
    halves differ by r, after the best whole shift between them: with n_u and n_l channels, that costs
    r^2 n_u n_l / (n_u + n_l).
    """
    offsets = np.array(sorted(range(-near, near + 1), key=abs))
    rows = [np.clip(meant[:, None] + offsets, 0, len(d) - 1) for meant, d in zip(row, delays, strict=True)]
    rest = [part[:, None] - d[r] for part, d, r in zip(parts, delays, rows, strict=True)]
    means = [r.mean(axis=2) for r in rest]
    scatter = [r.var(axis=2) * r.shape[2] for r in rest]
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
    """Memory for the latest ``kept`` rows of a band: row r begins at element ``offset + r % kept * pitch``."""

    offset: int
    pitch: int
    kept: int


@dataclass
class _Stream:
    """The rows of a band, summed in order as they are needed; ``done`` counts them."""

    band: Band
    width: int
    place: Place
    halves: "list[_Stream]"
    done: int = 0


class Schedule:
    """Memory layout of all rows for one stretch of samples, and the additions in order.

    Narrow bands are summed completely, one after the other, in the same small part of the memory. The wide bands above
    them are summed for a few trial DMs at a time, and keep a row only as long as it is needed.

    Parameters
    ----------
    root : Band
        The whole tree.
    stretch : int
        Samples summed at once.

    Attributes
    ----------
    size : int
        Elements of the memory.
    data : Place
        Samples, (nchans, stretch + ``root.past``).
    rows : Place
        Rows of the root, (n_rows, stretch).
    additions : (n, 8) ndarray of int64
        Each adds several rows: their number, their width and, for the two summands and the sum, the element at which
        the first row begins and the step to the next.
    """

    def __init__(self, root: Band, stretch: int) -> None:
        self.size = 0
        self._additions: list[tuple[int, ...]] = []
        self.data = self._reserve(root.hi - root.lo, stretch + root.past)
        self._temporary = self.size
        self.size += self._temporary_size(root, stretch)
        edges = np.append(np.arange(DMS_AT_ONCE, len(root.rows), DMS_AT_ONCE), len(root.rows))
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
        """Elements for the rows below a narrow band while it is summed: the maximum over all narrow bands."""
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
        """Reserve memory for ``kept`` rows of a band; the rows up to each of the ``edges`` are needed in turn."""
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
        """Append the additions of a narrow band and all bands below it, depth first."""
        assert band.halves is not None
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
        """Append the additions for the rows of a wide band up to ``upto``, and for the rows that they need."""
        if upto <= stream.done:
            return
        band, first = stream.band, stream.done
        for k, half in enumerate(stream.halves):
            self._fill(half, int(band.rows[first:upto, k, 0].max()) + 1)
        self._add(band, stream.width, stream.place, [half.place for half in stream.halves], first, upto)
        stream.done = upto

    def _add(self, band: Band, width: int, place: Place, halves: list[Place], first: int, last: int) -> None:
        """Append the additions of rows first to last - 1; rows at constant steps in memory are one addition."""
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
    """Divide rows into runs at constant, non-negative steps in memory.

    Parameters
    ----------
    starts : (n, k) ndarray
        Elements at which the summands and the sum of each row begin.

    Returns
    -------
    list of (first, count, step)
        Each run consists of the rows first, first + step, first + 2 step, ...
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
