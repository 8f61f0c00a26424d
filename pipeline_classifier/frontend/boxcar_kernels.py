"""Compiled loops of the boxcar search, as those of `kernels`."""

import numpy as np

from pipeline_classifier.frontend.kernels import kernel

GATE_TILE = 1024
"""Columns that `largest_boxcars` processes at once: their sums stay in the cache. Fastest of 256 to 2048."""


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
def _sums_of_rows(values: np.ndarray, sums: np.ndarray) -> None:
    """Find the cumulative sums of four rows at once, because each addition waits for the one before."""
    first, second, third, fourth = sums
    a = b = c = d = np.float32(0)
    first[0] = second[0] = third[0] = fourth[0] = a
    for j in range(values.shape[1]):
        a += values[0, j]
        b += values[1, j]
        c += values[2, j]
        d += values[3, j]
        first[j + 1], second[j + 1], third[j + 1], fourth[j + 1] = a, b, c, d


@kernel
def _better(snr: np.float32, width: np.int32, best: np.float32, best_width: np.int32) -> tuple[np.float32, np.int32]:
    return (snr, width) if snr > best else (best, best_width)


@kernel
def _best_of_four(
    sums: np.ndarray, left: int, widths: np.ndarray, factors: np.ndarray, best: np.ndarray, best_width: np.ndarray
) -> None:
    """Compare boxcars of four widths with the best ones so far: at once, to load and store these less often."""
    a, b, c, d = widths
    of_a, of_b, of_c, of_d = factors
    # Slices, because an index that might be negative keeps the compiler from using vector instructions.
    early_a, early_b = sums[left - (a - 1) // 2 :], sums[left - (b - 1) // 2 :]
    early_c, early_d = sums[left - (c - 1) // 2 :], sums[left - (d - 1) // 2 :]
    late_a, late_b, late_c, late_d = early_a[a:], early_b[b:], early_c[c:], early_d[d:]
    for j in range(len(best)):
        snr, width = _better((late_a[j] - early_a[j]) * of_a, a, best[j], best_width[j])
        snr, width = _better((late_b[j] - early_b[j]) * of_b, b, snr, width)
        snr, width = _better((late_c[j] - early_c[j]) * of_c, c, snr, width)
        best[j], best_width[j] = _better((late_d[j] - early_d[j]) * of_d, d, snr, width)


@kernel
def best_boxcars(
    plane: np.ndarray,
    medians: np.ndarray,
    noise: np.ndarray,
    widths: np.ndarray,
    factors: np.ndarray,
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
        Trial widths in samples, ascending, at most n; a multiple of four, of which the last ones may be equal.
    factors : (k,) ndarray of float32
        Reciprocal roots of the widths.
    total : (n_dm, n + 1) ndarray of float32
        Gets the cumulative sums in units of the noise, beginning with 0.
    snr : (n_dm, n) ndarray of float32
        Gets the highest S/N of the boxcars centred on each sample.
    width : (n_dm, n) ndarray of int32
        Gets the width of that boxcar, the narrowest of equal ones.
    """
    # Loops over samples in place of assignments to slices, which take seconds to compile.
    n_dm, n = plane.shape
    longest = widths[-1]
    values = np.empty((4, n), np.float32)
    # Infinite beside the row, so that the boxcars that pass its ends have the lowest S/N.
    left = (longest - 1) // 2
    sums = np.empty((4, n + 1 + longest), np.float32)
    for line in sums:
        for j in range(left):
            line[j] = np.inf
        for j in range(left + n + 1, len(line)):
            line[j] = -np.inf
    for first in range(0, n_dm, 4):
        rows = range(first, min(first + 4, n_dm))
        for row in rows:
            line, value, median = plane[row], values[row - first], medians[row]
            for j in range(n):
                deviation = (line[j] - median) / noise[j]
                value[j] = deviation if abs(deviation) < np.inf else np.float32(0)
        _sums_of_rows(values, sums[:, left : left + n + 1])
        for row in rows:
            line = sums[row - first]
            best, best_width = snr[row], width[row]
            for j in range(n + 1):
                total[row, j] = line[left + j]
            for j in range(n):
                best[j], best_width[j] = -np.inf, 1
            for k in range(0, len(widths), 4):
                _best_of_four(line, left, widths[k : k + 4], factors[k : k + 4], best, best_width)
