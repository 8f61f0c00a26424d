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
        # Without inlining, the machine code of a called loop exists twice, by itself and with its caller, and the two
        # differ in rounding: the process that compiles runs the former, those that load from the cache the latter.
        options: dict[str, Any] = {"nogil": True, "fastmath": ROUNDING, "error_model": "numpy", "forceinline": True}
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
def _order(bits: np.int32) -> np.int32:
    """Turn the bits of a float into an integer of the same order, or back."""
    return np.int32(bits ^ np.int32((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@kernel
def select(values: np.ndarray, rank: int, selected: np.ndarray) -> None:
    """Find the value of a given rank in each row, as `numpy.partition` does, but in five or six passes.

    Parameters
    ----------
    values : (m, n) ndarray of float32
        Values that are not numbers are the last ones.
    rank : int
        From 0 for the smallest value.
    selected : (m,) ndarray of float32
        Gets the values; 0 for a row without any finite number.

    Notes
    -----
    Each pass counts the values below a limit and finds those next to it, so that equal values need no further passes.
    The limit is interpolated between the counts; at a sixteenth of the interval or more, which bounds the number of
    passes. The values are compared as integers, whose minimum and maximum the compiler turns into vector instructions.
    """
    n = values.shape[1]
    infinity, largest = np.int32(0x7F800000), np.int32(0x7FFFFFFF)
    keys, limit = np.empty(n, np.int32), np.empty(1, np.float32)
    bits_of_limit = limit.view(np.int32)
    for number in range(len(values)):
        bits = values[number].view(np.int32)
        for j in range(n):
            keys[j] = _order(bits[j])
        for j in range(n):
            keys[j] = largest if np.int32(bits[j] & largest) > infinity else keys[j]
        low, high = largest, np.int32(-largest)
        for j in range(n):
            low = min(low, keys[j]) if keys[j] >= -infinity else low
            high = max(high, keys[j]) if keys[j] < infinity else high
        is_finite = low <= high
        before_low, before_high = np.float32(0), np.float32(n)  # integers would have 64 bits
        while low < high:
            bits_of_limit[0] = _order(low)
            lowest = limit[0]
            bits_of_limit[0] = _order(high)
            part = (rank + np.float32(0.5) - before_low) / (before_high - before_low)
            part = min(max(part, np.float32(1 / 16)), np.float32(15 / 16))
            limit[0] = lowest * (np.float32(1) - part) + limit[0] * part
            key = np.int32(min(max(_order(bits_of_limit[0]), low + 1), high))
            smaller, below, above = np.float32(0), low, high
            for j in range(n):
                is_smaller = keys[j] < key
                smaller += np.float32(1) if is_smaller else np.float32(0)
                below = max(below, keys[j]) if is_smaller else below
                above = above if is_smaller else min(above, keys[j])
            if smaller > rank:
                high, before_high = below, smaller
                low = below if smaller == rank + 1 else low
            else:
                low, before_low = above, smaller
                high = above if smaller == rank else high
        bits_of_limit[0] = _order(low)
        selected[number] = limit[0] if is_finite else np.float32(0)


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


@kernel
def add_dedispersed(
    data: np.ndarray,
    good: np.ndarray,
    starts: np.ndarray,
    column: int,
    dms: np.ndarray,
    delay_per_dm: np.ndarray,
    sums: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Add samples of channels, dedispersed at trial DMs, to a cutout of trial DMs by columns.

    Parameters
    ----------
    data : (nchans, n) ndarray of int8
        Samples.
    good : (nchans,) ndarray of bool
        Channels in use.
    starts : (rows,) ndarray of int64
        Sample at which the first column begins in a channel without delay; may lie before or after the data.
    column : int
        Samples in a column.
    dms : (rows,) ndarray of float64
        Trial DMs in pc cm^-3; rows of negative DM get nothing.
    delay_per_dm : (nchans,) ndarray of float64
        Delay of each channel in samples at a DM of 1 pc cm^-3.
    sums, counts : (rows, columns) ndarray of float32
        Get, in addition, the sum of the samples and their number.
    """
    n, (n_rows, n_columns) = data.shape[1], sums.shape
    total, begins = np.empty(n + 1, np.int32), np.empty(n_rows, np.int64)
    for channel in range(len(data)):
        if not good[channel]:
            continue
        first, last = n, 0
        for row in range(n_rows):
            if dms[row] >= 0:
                begins[row] = starts[row] + np.int64(np.rint(dms[row] * delay_per_dm[channel]))
                first = min(first, begins[row])
                last = max(last, begins[row] + n_columns * column)
        first, last = max(first, 0), min(last, n)
        if first >= last:
            continue
        samples, sum_before = data[channel, first:last], np.int32(0)
        total[0] = 0
        for sample in range(len(samples)):
            sum_before += samples[sample]
            total[sample + 1] = sum_before
        for row in range(n_rows):
            if dms[row] < 0:
                continue
            before = min(max(begins[row] - first, 0), last - first)
            for number in range(n_columns):
                end = min(max(begins[row] - first + (number + 1) * column, 0), last - first)
                sums[row, number] += np.float32(total[end] - total[before])
                counts[row, number] += np.float32(end - before)
                before = end
