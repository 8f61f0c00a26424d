"""Compiled loops of the front end: plain loops over samples, each with a reference in numpy in the tests.

They are compiled for the machine when they are first called, and kept in numba's cache: beside this file, or in the
cache folder of the user where the checkout is not writable. They release the interpreter lock and use no threads.
"""

import functools
import logging
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

ROUNDING = {"reassoc", "contract", "arcp", "nsz"}
"""What the compiler may assume: sums in any order, but values that are not finite stay so."""


GATE_TILE = 1024
"""Columns that `largest_boxcars` processes at once: their sums stay in the cache. Fastest of 256 to 2048."""


class Kernel:
    """A loop that is compiled when it is first called, which is also when numba is imported."""

    def __init__(self, function: Callable) -> None:
        functools.update_wrapper(self, function)
        self._function: Any = function
        self._compiled: Callable | None = None
        self._lock = threading.RLock()

    def __call__(self, *arguments: Any) -> Any:
        return self.compiled(*arguments)

    @property
    def compiled(self) -> Callable:
        """The function of numba, which is compiled for each combination of types."""
        with self._lock:
            if self._compiled is None:
                self._compiled = self._compile()
            return self._compiled

    def _compile(self) -> Callable:
        import numba

        _announce_compilation()
        function = self._function
        options: dict[str, Any] = {"nogil": True, "fastmath": ROUNDING, "error_model": "numpy"}
        # numba knows only functions of its own by their names.
        names = {name: function.__globals__.get(name) for name in function.__code__.co_names}
        called = {name: value.compiled for name, value in names.items() if isinstance(value, Kernel)}
        copy = FunctionType(function.__code__, function.__globals__ | called, function.__name__)
        functools.update_wrapper(copy, function)
        try:
            return numba.njit(cache=True, **options)(copy)
        except RuntimeError:  # numba found no folder for its cache
            _warn_without_cache()
            return numba.njit(**options)(copy)


def kernel(function: Callable) -> Kernel:
    """Compile a loop when it is first called; without a writable cache, in every process again."""
    return Kernel(function)


@functools.cache
def _announce_compilation() -> None:
    """Log when numba compiles for the first time in this process; from its cache it only loads."""
    from numba.core import event

    class Announcement(event.Listener):
        def on_start(self, _: object) -> None:
            _log_compilation()

        def on_end(self, _: object) -> None:
            pass

    event.register("numba:compile", Announcement())


@functools.cache
def _log_compilation() -> None:
    logger.info("the loops of the front end are compiled for this machine once, which takes some ten seconds")


@functools.cache
def _warn_without_cache() -> None:
    message = "no folder for compiled loops is writable: they are compiled in every process; NUMBA_CACHE_DIR sets one"
    logger.warning(message)


@kernel
def _scaled_row(
    line: np.ndarray, scale: np.float32, row: np.ndarray, best: np.ndarray, lowest: np.ndarray, total: np.ndarray
) -> None:
    """Multiply one row, and add its first samples to the extremes and the sum of their columns."""
    for j in range(len(line)):
        row[j] = np.float32(line[j]) * scale
    for j in range(len(best)):
        best[j] = row[j] if row[j] > best[j] else best[j]
        lowest[j] = row[j] if row[j] < lowest[j] else lowest[j]
        total[j] += row[j]


@kernel
def _sums_of_pairs(row: np.ndarray, late: np.ndarray, sums: np.ndarray, best: np.ndarray) -> None:
    """Add a row to another one, and keep the maximum of each of its first columns."""
    for j in range(len(late)):
        sums[j] = row[j] + late[j]
    for j in range(min(len(late), len(best))):
        best[j] = sums[j] if sums[j] > best[j] else best[j]


@kernel
def largest_boxcars(
    plane: np.ndarray, scale: np.float32, highest: np.ndarray, lowest: np.ndarray, total: np.ndarray
) -> None:
    """Find the largest sum, over all rows, of the 1, 2, 3, 4, 6, 8, 12, ... samples that begin in each column.

    Parameters
    ----------
    plane : (n_dm, n) ndarray
        int16, int32 or float32.
    scale : float32
        Factor of the values.
    highest : (n_widths, n) ndarray of float32
        Gets the largest sums of each width, -inf where they pass the end of the plane.
    lowest, total : (n,) ndarray of float32
        Get the smallest value and the sum of each column; the sum is not finite if a value is not.
    """
    n_widths, n = highest.shape
    longest = 2 ** (n_widths // 2 + 1)
    rows = np.empty((2, GATE_TILE + longest), np.float32)
    sums_of_three = np.empty(GATE_TILE + longest, np.float32)
    highest[:] = -np.inf
    lowest[:] = np.inf
    total[:] = 0
    for first in range(0, n, GATE_TILE):
        last = min(first + GATE_TILE, n)
        end = min(last + longest - 1, n)
        for line in range(len(plane)):
            _scaled_row(
                plane[line, first:end], scale, rows[0], highest[0, first:last], lowest[first:last], total[first:last]
            )
            length, width = end - first, 1
            for number in range(1, n_widths, 2):
                if length <= width:
                    break
                row, pairs = rows[number // 2 % 2], rows[(number // 2 + 1) % 2]
                _sums_of_pairs(row, row[width:length], pairs, highest[number, first:last])
                length -= width
                if number + 1 < n_widths and length > width:
                    _sums_of_pairs(row, pairs[width:length], sums_of_three, highest[number + 1, first:last])
                width *= 2


@kernel
def select(values: np.ndarray, rank: int, selected: np.ndarray) -> None:
    """Find the value of a given rank in each row, as `numpy.partition` does, by bisection: four times as fast.

    Parameters
    ----------
    values : (m, n) ndarray of float32
        Values that are not numbers are the last ones.
    rank : int
        From 0 for the smallest value.
    selected : (m,) ndarray of float32
        Gets the values; 0 for a row without any finite number.
    """
    for number in range(len(values)):
        row = values[number]
        low, high = np.float32(np.inf), np.float32(-np.inf)
        for j in range(len(row)):
            finite = abs(row[j]) < np.inf
            low = row[j] if finite and row[j] < low else low
            high = row[j] if finite and row[j] > high else high
        selected[number] = 0
        found = not low < high
        while not found:
            guess = low + (high - low) * np.float32(0.5)
            smaller = np.float32(0)  # an integer would have 64 bits
            for j in range(len(row)):
                smaller += np.float32(1) if row[j] < guess else np.float32(0)
            if smaller > rank:
                high = guess
            else:
                low = guess
            found = smaller == rank or not low < low + (high - low) * np.float32(0.5) < high
        if low <= high:
            at_least = np.float32(np.inf)
            for j in range(len(row)):
                at_least = row[j] if low <= row[j] < at_least else at_least
            selected[number] = at_least


@kernel
def best_boxcars(
    plane: np.ndarray,
    medians: np.ndarray,
    noise: np.ndarray,
    widths: np.ndarray,
    total: np.ndarray,
    snr: np.ndarray,
    width: np.ndarray,
) -> None:
    """Find the best boxcar around each sample of every row.

    Parameters
    ----------
    plane : (n_dm, n) ndarray of float32
        Values that are not finite count as the median of their row.
    medians : (n_dm,) ndarray of float32
        Subtracted from the rows.
    noise : (n,) ndarray of float32
        Noise of each column.
    widths : (k,) ndarray of int32
        Trial widths in samples, ascending, at most n.
    total : (n_dm, n + 1) ndarray of float32
        Gets the cumulative sums in units of the noise, beginning with 0.
    snr : (n_dm, n) ndarray of float32
        Gets the highest S/N of the boxcars centred on each sample.
    width : (n_dm, n) ndarray of int32
        Gets the width of that boxcar, the narrowest of equal ones.
    """
    n_dm, n = plane.shape
    for row in range(n_dm):
        sums, best, best_width = total[row], snr[row], width[row]
        sum_so_far = sums[0] = np.float32(0)
        for j in range(n):
            value = (plane[row, j] - medians[row]) / noise[j]
            sum_so_far += value if abs(value) < np.inf else np.float32(0)
            sums[j + 1] = sum_so_far
        best[:] = -np.inf
        best_width[:] = 1
        for trial in widths:
            factor = np.float32(1.0 / np.sqrt(np.float64(trial)))
            # Slices, because an index that might be negative keeps the compiler from using vector instructions.
            late, centre = sums[trial:], (trial - 1) // 2
            at, width_at = best[centre:], best_width[centre:]
            for j in range(n + 1 - trial):
                value = (late[j] - sums[j]) * factor
                better = value > at[j]
                at[j] = value if better else at[j]
                width_at[j] = trial if better else width_at[j]


@kernel
def _copy_samples(data: np.ndarray, first: int, width: int, pitch: int, memory: np.ndarray) -> None:
    """Copy ``width`` samples of each channel from ``first`` on to rows of the memory, with zeros outside the data."""
    before = min(max(0, -first), width)
    stop = max(before, min(width, data.shape[1] - first))
    for channel in range(len(data)):
        row = memory[channel * pitch : channel * pitch + width]
        samples = data[channel, first + before : first + stop]
        row[:before] = 0
        row[stop:] = 0
        row = row[before:stop]
        for j in range(len(samples)):
            row[j] = samples[j]


@kernel
def _add_rows(memory: np.ndarray, additions: np.ndarray, shorter: int) -> None:
    """Do the additions of `dedispersion_plan.Schedule`, each of ``shorter`` samples less."""
    for upper, lower, total, width in additions:
        width -= shorter
        a, b, row = memory[upper : upper + width], memory[lower : lower + width], memory[total : total + width]
        for j in range(width):
            row[j] = a[j] + b[j]


@kernel
def _add_to_plane(memory: np.ndarray, summands: np.ndarray, column: int, width: int, plane: np.ndarray) -> None:
    """Add the sum of two rows to each row of a plane, from ``column`` less its shift on."""
    n = plane.shape[1]
    for line in range(len(plane)):
        upper, lower, shift = summands[line]
        first, stop = max(0, column - shift), min(n, column - shift + width)
        skipped = first - (column - shift)
        if stop <= first:
            continue
        row = plane[line, first:stop]
        a, b = memory[upper + skipped : upper + width], memory[lower + skipped : lower + width]
        for j in range(len(row)):
            row[j] += a[j] + b[j]


@kernel
def dedisperse(
    data: np.ndarray,
    plane: np.ndarray,
    origin: int,
    sub_bands: np.ndarray,
    additions: np.ndarray,
    summands: np.ndarray,
    memory: np.ndarray,
    stretch: int,
) -> None:
    """Add samples to a plane of trial DMs: sample t of a channel to column ``origin + t - delay``, where there is one.

    Parameters
    ----------
    data : (nchans, n) ndarray of int8
        Samples.
    plane : (n_dm, columns) ndarray of int16 or int32
        Sums.
    origin : int
        Column of sample 0 of a channel without delay.
    sub_bands : (n, 7) ndarray of int64
        First channel, end, delay inside the sub-band, least and largest shift of the sub-band, pitch of its samples in
        the memory, and end of its additions.
    additions : (k, 4) ndarray of int64
        `dedispersion_plan.Schedule.additions` of all sub-bands.
    summands : (n, n_dm, 3) ndarray of int64
        Places in the memory of the two rows that are added to each trial DM, and their shift.
    memory : ndarray of int16
        Workspace.
    stretch : int
        Samples summed at once.
    """
    # The rows of a sub-band begin before the samples by the delay inside it.
    start = max(-sub_bands[:, 2].max(), -origin)
    stop = min(data.shape[1], plane.shape[1] - origin + sub_bands[:, 4].max())
    parts = -(-(stop - start) // stretch)
    length = -(-(stop - start) // max(1, parts))
    for part in range(parts):
        first = start + part * length
        begin = 0
        for number in range(len(sub_bands)):
            lo, hi, past, least, largest, pitch, end = sub_bands[number]
            if origin + first + length > least and origin + first - largest < plane.shape[1]:
                _copy_samples(data[lo:hi], first, length + past, pitch, memory)
                _add_rows(memory, additions[begin:end], stretch - length)
                _add_to_plane(memory, summands[number], origin + first, length, plane)
            begin = end


@kernel
def add_to_cutout(
    data: np.ndarray,
    good: np.ndarray,
    starts: np.ndarray,
    column: int,
    bands: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Add samples of channels to a cutout of sub-bands by columns.

    Parameters
    ----------
    data : (nchans, n) ndarray of float32
        Samples.
    good : (nchans,) ndarray of bool
        Channels in use.
    starts : (nchans,) ndarray of int64
        Sample of each channel at which the first column begins; may lie before or after the data.
    column : int
        Samples in a column.
    bands : (rows, 2) ndarray of int64
        First channel of each sub-band and the one after its last.
    sums, counts : (rows, columns) ndarray of float32
        Get, in addition, the sum of the samples and their number.
    """
    n, n_columns = data.shape[1], sums.shape[1]
    for row in range(len(bands)):
        for channel in range(bands[row, 0], bands[row, 1]):
            if not good[channel]:
                continue
            line = data[channel]
            for number in range(n_columns):
                first = starts[channel] + number * column
                begin, end = max(first, 0), min(first + column, n)
                total = np.float32(0)
                for sample in range(begin, end):
                    total += line[sample]
                sums[row, number] += total
                counts[row, number] += max(end - begin, 0)
