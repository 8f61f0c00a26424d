"""The pulses of a DM-time plane: a boxcar search over every row, and which of its maxima are peaks of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage

from pipeline_classifier.frontend.pages import PageGrid

NEXT_PEAK_SNR = 6.0  # a second peak in one plane counts from this S/N on
HIDDEN_SNR = 7.5  # and from this one in the bow tie of a brighter one
VALLEY_DEPTH = 4.0  # least depth of the valley between two pulses, in units of the noise
APART_REACH = 16  # widths about a maximum in which its surroundings are looked at
FEWEST_ROWS = 4  # and trial DMs
COMPANION_REACH = 12  # widths
SHORTEST_JOINED, FAINTEST_JOINED = 4, 12.0  # samples and S/N of a peak that may be two pulses at a DM beside it
SHARES_OF_WIDTH = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
PARTS_POWER = 0.9  # of the squared S/N of a pulse: least sum of those of its parts


@dataclass(frozen=True)
class Peak:
    """The best boxcar of a DM-time plane: ``row``, first column, ``width`` in samples, S/N."""

    row: int
    column: int
    width: int
    snr: float


def boxcar_widths(longest: int) -> np.ndarray:
    """Trial widths in samples, 1 to ``longest``, at most a factor 1.6 apart (2 from 1 to 2)."""
    if longest < 1:
        return np.empty(0, dtype=int)
    widths = np.unique(np.round(1.4 ** np.arange(0, 1 + np.log(longest) / np.log(1.4))).astype(int))
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
    values = np.nan_to_num(plane - np.partition(plane, n // 2, axis=1)[:, n // 2, None])
    sizes = np.abs(values[::2, ::2]).ravel()
    sigma = 1.4826 * np.partition(sizes, len(sizes) // 2)[len(sizes) // 2] or values.std() or 1.0
    values /= np.float32(sigma)
    total = np.zeros((n_dm, n + 1), dtype=np.float32)
    np.cumsum(values, axis=1, out=total[:, 1:])
    snr = np.full(plane.shape, -np.inf, dtype=np.float32)
    widths = boxcar_widths(min(longest, n)).astype(np.int32)
    memory = np.empty(plane.size, dtype=np.float32)
    for number, width in enumerate(widths.tolist()):
        count = n + 1 - width
        snrs = memory[: n_dm * count].reshape(n_dm, count)
        np.subtract(total[:, width:], total[:, :-width], out=snrs)
        snrs *= np.float32(width**-0.5)
        # The last five bits of a float are the number of its width: one maximum, thrice as fast as compare and copy.
        bits = snrs.view(np.int32)
        bits &= -32
        bits |= number
        centres = snr[:, (width - 1) // 2 : (width - 1) // 2 + count]
        np.maximum(centres, snrs, out=centres)
    numbers = snr.view(np.int32)
    best = widths[numbers & 31]
    numbers &= -32
    return BoxcarSearch(total, snr, best)


def find_peaks(searched: BoxcarSearch, grid: PageGrid, first: int, last: int, most: int) -> list[Peak]:
    """Find the pulses in a DM-time plane that was searched with boxcars, brightest first.

    Parameters
    ----------
    searched : the plane (n_dm, n)
    grid : of the plane's rows and samples
    first, last : columns in which a pulse's centre must lie
    most : most pulses to tell apart on the plane; the brightest is always returned, others from `NEXT_PEAK_SNR` on.
        What their profiles show beside them (`companions`, `sub_pulses`) comes in addition.

    Notes
    -----
    Between the peak and where its bottom channel falls at a wrong trial DM lies the pulse's own bow tie: a second pulse
    in it must have `HIDDEN_SNR` and stand apart. A peak in the bow tie of a much brighter pulse gives that pulse,
    wherever its centre is.
    """
    snrs, widths = searched.snr, searched.width
    best = snrs.copy()
    best[:, : max(0, first)] = best[:, last:] = -np.inf
    claimed = np.zeros(best.shape, dtype=bool)
    columns = np.arange(best.shape[1])
    peaks: list[Peak] = []
    while len(peaks) < most:
        row, centre = (int(index) for index in np.unravel_index(int(best.argmax()), best.shape))
        if not np.isfinite(best[row, centre]) or (peaks and best[row, centre] < NEXT_PEAK_SNR):
            break
        hidden = claimed[row, centre]
        apart, window, ripples = stands_apart(searched, grid, row, centre)
        best[window][ripples] = -np.inf
        if hidden and not apart:
            continue
        if not apart:
            row, centre = brightest_of_bow_tie(snrs, grid, row, centre, int(widths[row, centre]))
        width = int(widths[row, centre])
        peaks.append(Peak(row, centre - (width - 1) // 2, width, float(snrs[row, centre])))
        reach = np.nan_to_num(grid.sweep(grid.dms[row] - grid.dms))[:, None]
        margin = 2 * width + widths
        own = columns >= centre + np.minimum(reach, 0) - margin
        own &= columns <= centre + np.maximum(reach, 0) + margin
        claimed |= own
        own &= best < HIDDEN_SNR
        np.copyto(best, -np.inf, where=own)
    return _with_their_parts(searched.total, grid, peaks, first, last)


def _with_their_parts(total: np.ndarray, grid: PageGrid, peaks: Sequence[Peak], first: int, last: int) -> list[Peak]:
    """The peaks and their companions, each as the sub-pulses that it is made of."""
    centres = [peak.column + peak.width // 2 for peak in peaks]
    parts: list[Peak] = []
    for number, peak in enumerate(peaks):
        others = centres[:number] + centres[number + 1 :]
        for pulse in (peak, *companions(total[peak.row], peak, others, first, last)):
            parts += parts_of(total, grid, pulse)
    return parts


def stands_apart(
    searched: BoxcarSearch, grid: PageGrid, row: int, centre: int
) -> tuple[bool, tuple[slice, slice], np.ndarray]:
    """Whether a maximum of a plane is a pulse of its own, and not a ripple on the bow tie of a brighter one.

    It is, if the S/N sinks to its `valley` on every way to anything brighter, within `APART_REACH` widths.

    Returns
    -------
    apart : bool
    window : rows and columns about the maximum
    own : (rows, columns) of the window, bool: above the valley, and connected with the maximum
    """
    snr, reach = float(searched.snr[row, centre]), APART_REACH * int(searched.width[row, centre])
    n_dm, n = searched.snr.shape
    rows = n_dm
    if grid.sweeps:
        rows = max(FEWEST_ROWS, int(np.ceil(reach / float(grid.sweep(grid.dms[1] - grid.dms[0])))))
    low, high = max(0, row - rows), min(n_dm, row + rows + 1)
    start, stop = max(0, centre - reach), min(n, centre + reach + 1)
    window = slice(low, high), slice(start, stop)
    values = searched.snr[window]
    numbers, _ = scipy.ndimage.label(values >= valley(snr))
    own = numbers == numbers[row - low, centre - start]
    sides = ((own[0], low > 0), (own[-1], high < n_dm), (own[:, 0], start > 0), (own[:, -1], stop < n))
    leaves = any(goes_on and side.any() for side, goes_on in sides)
    return not leaves and float(values[own].max()) <= snr, window, own


def valley(snr: float) -> float:
    """S/N to which it must sink between a pulse and a brighter one, so that they are two."""
    return min(0.5 * snr, snr - VALLEY_DEPTH)


def maxima(total: np.ndarray, width: int, first: int, last: int) -> np.ndarray:
    """First columns of the pulses that a profile, smoothed over ``width``, shows apart; each has `NEXT_PEAK_SNR`.

    Parameters
    ----------
    total : (n + 1,) cumulative sum of the profile, in units of its noise
    first, last : limits of those columns
    """
    first = max(0, first)
    last = max(first, min(len(total) - width, last))
    snr = (total[first + width : last + width] - total[first:last]) / np.float32(width**0.5)
    tops = 1 + np.flatnonzero((snr[1:-1] > snr[:-2]) & (snr[1:-1] >= snr[2:]) & (snr[1:-1] >= NEXT_PEAK_SNR))
    found: list[int] = []
    for top in tops[np.argsort(-snr[tops], kind="stable")].tolist():
        low = np.flatnonzero(snr <= valley(float(snr[top])))
        right = int(np.searchsorted(low, top))
        apart = 0 < right < len(low) and snr[low[right - 1] : low[right]].max() <= snr[top]
        if apart and all(abs(top - other) >= width for other in found):
            found.append(top)
    return first + np.sort(np.array(found, dtype=np.int64))


def companions(total: np.ndarray, peak: Peak, others: Sequence[int], first: int, last: int) -> list[Peak]:
    """Pulses of the DM and width of a peak that its profile shows near it, `COMPANION_REACH` widths at most.

    Parameters
    ----------
    total : (n + 1,) cumulative sum of the profile at the peak's DM, in units of its noise
    others : centres of the pulses that were found besides
    first, last : columns in which the centre of a pulse must lie
    """
    width, half, reach = peak.width, (peak.width - 1) // 2, COMPANION_REACH * peak.width
    columns = maxima(total, width, max(first - half, peak.column - reach), min(last - half, peak.column + reach))
    return [
        Peak(peak.row, column, width, float(total[column + width] - total[column]) / width**0.5)
        for column in columns.tolist()
        if all(abs(column + half - other) > width for other in (peak.column + half, *others))
    ]


def parts_of(total: np.ndarray, grid: PageGrid, peak: Peak) -> list[Peak]:
    """The pulses of which a peak is made, at the trial DM that shows them best; the peak itself if none shows more.

    Two pulses close to each other are brightest together where the sweep that is left joins them: their own DM lies
    beside, as far as a width of the peak sweeps.

    Parameters
    ----------
    total : (n_dm, n + 1) cumulative sums of the rows, in units of the noise
    """
    parts = sub_pulses(total[peak.row], peak)
    if len(parts) > 1 or peak.width < SHORTEST_JOINED or peak.snr < FAINTEST_JOINED or not grid.sweeps:
        return parts
    rows_per_width = peak.width / float(grid.sweep(grid.dms[1] - grid.dms[0]))
    rows = {peak.row + round(share * rows_per_width) for share in SHARES_OF_WIDTH} - {peak.row}
    for row in sorted(row for row in rows if 0 <= row < len(grid.dms)):
        joined = sub_pulses(total[row], replace(peak, row=row))
        if len(joined) > 1 and (len(parts) == 1 or power(joined) > power(parts)):
            parts = joined
    return parts


def power(peaks: Sequence[Peak]) -> float:
    """Sum of the squared S/N."""
    return sum(peak.snr**2 for peak in peaks)


def sub_pulses(total: np.ndarray, peak: Peak) -> list[Peak]:
    """The pulses of which a peak is made, as narrower boxcars show them; the peak itself if they show no more.

    The parts must hold the power of the whole: a long pulse has its noise, but no part of it has much of the S/N.

    Parameters
    ----------
    total : (n + 1,) cumulative sum of the profile at the peak's DM, in units of its noise
    """
    margin = peak.width // 2
    for width in boxcar_widths(peak.width - 1)[::-1].tolist():
        columns = maxima(total, width, peak.column - margin, peak.column + peak.width + margin)
        if len(columns) > 1:
            parts = [best_within(total, peak.row, column, width) for column in columns.tolist()]
            if power(parts) >= PARTS_POWER * peak.snr**2:
                return [part for whole in parts for part in sub_pulses(total, whole)]
    return [peak]


def best_within(total: np.ndarray, row: int, first: int, longest: int) -> Peak:
    """The best boxcar within columns ``first`` to ``first + longest``."""
    part = total[first : first + longest + 1]
    found = []
    for width in boxcar_widths(longest).tolist():
        snr = (part[width:] - part[:-width]) / np.float32(width**0.5)
        column = int(snr.argmax())
        found.append(Peak(row, first + column, width, float(snr[column])))
    return max(found, key=lambda peak: peak.snr)


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
