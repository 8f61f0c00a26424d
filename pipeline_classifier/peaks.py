"""The pulses of a DM-time plane: a boxcar search over every row, and which of its maxima are peaks of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline_classifier.pages import PageGrid

NEXT_PEAK_SNR = 6.0  # a second peak in one plane counts from this S/N on


@dataclass(frozen=True)
class Peak:
    """The best boxcar of a DM-time plane: ``row``, first column, ``width`` in samples, S/N."""

    row: int
    column: int
    width: int
    snr: float


def boxcar_widths(longest: int) -> np.ndarray:
    """Trial widths in samples, 1 to ``longest``, at most a factor 1.6 apart (2 from 1 to 2)."""
    widths = np.unique(np.round(1.4 ** np.arange(0, 1 + np.log(max(longest, 1)) / np.log(1.4))).astype(int))
    return widths[widths <= longest]


@dataclass(frozen=True)
class BoxcarSearch:
    """What a boxcar search made of a plane.

    Attributes
    ----------
    total : (n_dm, n + 1) float32, cumulative sum of each row less its median, in units of the noise (1.4826 times the
        median absolute deviation)
    snr : (n_dm, n) float32 of the best boxcar by its centre, to a precision of 4e-6
    width : (n_dm, n) of that boxcar, samples
    """

    total: np.ndarray
    snr: np.ndarray
    width: np.ndarray


def boxcar_search(plane: np.ndarray, longest: int) -> BoxcarSearch:
    """Search every row of a DM-time plane (n_dm, n) float32 with boxcars up to ``longest`` samples."""
    n_dm, n = plane.shape
    median = np.partition(plane, n // 2, axis=1)[:, n // 2, None]
    values = np.nan_to_num(plane - median)
    sigma = 1.4826 * np.median(np.abs(values[::2, ::2])) or values.std() or 1.0
    total = np.zeros((n_dm, n + 1), dtype=np.float32)
    np.cumsum(values, axis=1, out=total[:, 1:])
    total /= sigma
    snr = np.full(plane.shape, -np.inf, dtype=np.float32)
    widths = boxcar_widths(min(longest, n))
    for number, width in enumerate(widths.tolist()):
        snrs = (total[:, width:] - total[:, :-width]) * np.float32(width**-0.5)
        # The last five bits of a float are the number of its width: one maximum, thrice as fast as compare and copy.
        bits = snrs.view(np.int32)
        bits &= -32
        bits |= number
        centres = snr[:, (width - 1) // 2 : (width - 1) // 2 + snrs.shape[1]]
        np.maximum(centres, snrs, out=centres)
    return BoxcarSearch(total, snr, widths[snr.view(np.int32) & 31])


def find_peaks(searched: BoxcarSearch, grid: PageGrid, first: int, last: int, most: int) -> list[Peak]:
    """Find the pulses in a DM-time plane that was searched with boxcars, brightest first.

    Parameters
    ----------
    searched : the plane (n_dm, n)
    grid : of the plane's rows and samples
    first, last : columns in which a pulse's centre must lie
    most : most pulses to return; the first is always returned, others from `NEXT_PEAK_SNR` on

    Notes
    -----
    Between the peak and where its bottom channel falls at a wrong trial DM lies the pulse's own bow tie, in which no
    second pulse is looked for. A peak in the bow tie of a much brighter pulse gives that pulse, wherever its centre is.
    """
    total, everywhere, best_width = searched.total, searched.snr, searched.width
    best = everywhere.copy()
    best[:, : max(0, first)] = best[:, last:] = -np.inf

    peaks: list[Peak] = []
    columns = np.arange(best.shape[1])
    while len(peaks) < most:
        row, centre = (int(index) for index in np.unravel_index(int(best.argmax()), best.shape))
        snr, width = float(best[row, centre]), int(best_width[row, centre])
        if not np.isfinite(snr) or (peaks and snr < NEXT_PEAK_SNR):
            break
        row, centre = brightest_of_bow_tie(everywhere, grid, row, centre, width)
        snr, width = float(everywhere[row, centre]), int(best_width[row, centre])
        peaks.append(Peak(row, centre - (width - 1) // 2, width, snr))
        reach = np.nan_to_num(grid.sweep(grid.dms[row] - grid.dms))[:, None]
        margin = 2 * width + best_width
        own = (columns >= centre + np.minimum(reach, 0) - margin) & (columns <= centre + np.maximum(reach, 0) + margin)
        best[own] = -np.inf
    for peak in tuple(peaks):
        peaks += sub_pulses(total[peak.row], peak, peaks, first, last)
    return peaks


def sub_pulses(total: np.ndarray, peak: Peak, found: Sequence[Peak], first: int, last: int) -> list[Peak]:
    """Other pulses at the DM of a peak that its profile shows apart from it and from those already found.

    Parameters
    ----------
    total : (n + 1,) cumulative sum of the profile at the peak's DM, in units of its noise
    first, last : columns in which the centre of a pulse must lie

    Notes
    -----
    A sub-pulse has `NEXT_PEAK_SNR` in a boxcar of the peak's width, and between it and its neighbours the profile,
    smoothed over that width, sinks to half of it.
    """
    width, half = peak.width, (peak.width - 1) // 2
    snr = (total[width:] - total[:-width]) / np.sqrt(width)  # by first column
    low, high = max(0, first - half), min(len(snr), last - half)
    taken = [other.column for other in found]
    peaks: list[Peak] = []
    for column in low + np.argsort(-snr[low:high], kind="stable"):
        if snr[column] < NEXT_PEAK_SNR:
            break
        near = min(taken, key=lambda other: abs(other - column))
        valley = snr[min(near, column) : max(near, column) + 1].min()
        if abs(near - column) > width and valley <= min(0.5 * snr[column], snr[column] - 4.0):
            taken.append(int(column))
            peaks.append(Peak(peak.row, int(column), width, float(snr[column])))
    return peaks


def brightest_of_bow_tie(snr: np.ndarray, grid: PageGrid, row: int, centre: int, width: int) -> tuple[int, int]:
    """Row and centre of the pulse that a peak belongs to: a much brighter one whose bow tie it lies in, or itself.

    The network may see a bright pulse's streak in a page beside the pulse itself. ``snr`` (n_dm, n) is by centre.
    """
    reach = np.nan_to_num(grid.sweep(grid.dms - grid.dms[row]))[:, None]
    columns = np.arange(snr.shape[1])
    holds_peak = (columns >= centre - np.maximum(reach, 0) - width) & (columns <= centre - np.minimum(reach, 0) + width)
    within = np.where(holds_peak, snr, -np.inf)
    brightest = np.unravel_index(int(within.argmax()), snr.shape)
    return (int(brightest[0]), int(brightest[1])) if within[brightest] > 1.5 * snr[row, centre] else (row, centre)
