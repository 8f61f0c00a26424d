"""Compiled loops that separate the peaks of a plane, as those of `frontend.kernels`."""

import math

import numpy as np

from pipeline_classifier.frontend.kernels import kernel


@kernel
def mark_connected(values: np.ndarray, lowest: np.float32, row: int, column: int, connected: np.ndarray) -> None:
    """Mark the samples that steps from sample to neighbour, all of at least ``lowest``, connect with one of them.

    Parameters
    ----------
    values : (m, n) ndarray of float32
    lowest : float32
    row, column : int
        The sample, of at least ``lowest``.
    connected : (m, n) ndarray of bool
        False at first; gets True at the sample and those connected with it.
    """
    m, n = values.shape
    waiting = np.empty(m * n, np.int64)
    waiting[0], count = row * n + column, 1
    connected[row, column] = True
    while count:
        count -= 1
        row, column = divmod(waiting[count], n)
        for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            i, j = row + down, column + right
            if 0 <= i < m and 0 <= j < n and not connected[i, j] and values[i, j] >= lowest:
                connected[i, j] = True
                waiting[count] = i * n + j
                count += 1


@kernel
def claim_bow_tie(
    best: np.ndarray,
    claimed: np.ndarray,
    begin: int,
    widths: np.ndarray,
    reach: np.ndarray,
    least: np.ndarray,
    centre: int,
    width: int,
) -> None:
    """Mark the bow tie of a pulse, and remove what is too faint to be another pulse in it.

    Parameters
    ----------
    best : (n_dm, n) ndarray of float32
        S/N of columns of a plane; set to -inf in the bow tie where it is below ``least``.
    claimed : (n_dm, n) ndarray of bool
        Set to True in the bow tie.
    begin : int
        The first of these columns.
    widths : (n_dm, columns) ndarray of int32
        Widths of the best boxcars of the plane: one belongs to the bow tie if it is nearer than its width and twice
        that of the pulse.
    reach : (n_dm,) ndarray of float64
        Delay of the lowest channel in samples at each trial DM.
    least : (n_dm,) ndarray of float64
        Minimum S/N of another pulse.
    centre, width : int
        Column and width of the pulse.
    """
    n = best.shape[1]
    for row in range(len(best)):
        low = np.int32(math.ceil(centre + min(reach[row], 0.0) - 2 * width) - begin)
        high = np.int32(math.floor(centre + max(reach[row], 0.0) + 2 * width) - begin)
        snrs, marks, margins, faintest = best[row], claimed[row], widths[row, begin : begin + n], least[row]
        for j in range(n):
            is_inside = low <= np.int32(j + margins[j]) and np.int32(j - margins[j]) <= high
            marks[j] = True if is_inside else marks[j]
            snrs[j] = -np.inf if is_inside and snrs[j] < faintest else snrs[j]


@kernel
def stands_above(snr: np.ndarray, top: int, valley: np.float32) -> bool:
    """Whether a profile falls to a valley on either side of a maximum before anything brighter."""
    for step in (-1, 1):
        j = top
        while 0 <= j < len(snr) and valley < snr[j] <= snr[top]:
            j += step
        if j < 0 or j == len(snr) or snr[j] > snr[top]:
            return False
    return True
