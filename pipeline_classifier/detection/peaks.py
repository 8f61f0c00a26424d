"""Peaks: the pulses of a DM-time plane that was searched with boxcars."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline_classifier.detection.peak_kernels import claim_bow_tie, mark_connected, stands_above
from pipeline_classifier.frontend.boxcar import BoxcarSearch, best_boxcar, boxcar_snr, boxcar_widths
from pipeline_classifier.frontend.pages import PageGrid

SMEARED = 1.5
"""Largest S/N of a response at a wrong trial DM, in units of that of the pulse smeared over the residual sweep, or of
one channel; above 1 because a band-limited pulse is smeared less. Chosen by hand."""

# The constants below were tuned together on 24 simulated observations in strong interference (230 MHz to 3.5 GHz, a
# tenth of the pulses double): at the same number of false events, recall rose by 0.07 at S/N 8 to 10 and by 0.03 above
# 15 compared to one peak for each bow tie.
NEXT_PEAK_SNR = 6.0
"""Minimum S/N of all peaks of a plane but the brightest."""
HIDDEN_SNR = 7.5
"""Minimum S/N of a peak in the bow tie of a brighter one."""
VALLEY_DEPTH = 4.0
"""Smallest depth of the valley between two pulses, in units of the noise."""
APART_REACH = 16
"""Widths around a maximum within which its surroundings are examined."""
FEWEST_ROWS = 4
"""Minimum number of trial DMs examined on either side of a maximum."""
COMPANION_REACH = 12
"""Widths around a peak within which its profile is searched for companions."""
SHORTEST_JOINED, FAINTEST_JOINED = 4, 12.0
"""Minimum width in samples and minimum S/N of a peak for which separation into two pulses at other DMs is tried."""
DM_OFFSETS_IN_WIDTHS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
"""Offsets of these DMs, in units of the DM that sweeps over the width of the peak."""
PARTS_POWER = 0.9
"""Minimum sum of the squared S/N of the parts of a pulse, as a fraction of its own squared S/N."""


@dataclass(frozen=True)
class Peak:
    """The best boxcar of a pulse.

    Attributes
    ----------
    row : int
        Index of the trial DM.
    column : int
        First sample of the boxcar.
    width : int
        Samples.
    snr : float
    """

    row: int
    column: int
    width: int
    snr: float


def find_peaks(
    searched: BoxcarSearch,
    grid: PageGrid,
    first: int,
    last: int,
    most: int,
    judged: Sequence[tuple[Peak, bool]] = (),
) -> list[Peak]:
    """Find the pulses in a DM-time plane, brightest first.

    Parameters
    ----------
    searched : BoxcarSearch
        The plane (n_dm, n).
    grid : PageGrid
        Rows and columns of the plane.
    first, last : int
        Columns in which the centre of a pulse must lie; ``last`` is excluded.
    most : int
        Largest number of pulses that are separated on the plane. The brightest is always returned, others from
        `NEXT_PEAK_SNR`. Pulses that only the profile of a peak separates (`companions`, `sub_pulses`) come in addition.
    judged : sequence of (Peak, bool)
        Peaks that were found before, and whether each is interference: others are searched beside them, in the bow ties
        of interference too.

    Notes
    -----
    The response to a pulse at wrong trial DMs, its bow tie, reaches from the pulse to where its lowest channel falls.
    A second peak inside it must have `HIDDEN_SNR`, be brighter than one channel of the pulse where these are separated
    (`fraction_in_a_channel`), and stand apart. A peak in the bow tie of a much brighter pulse yields that pulse,
    wherever its centre is.
    """
    snrs, widths = searched.snr, searched.width
    begin, end = max(0, first), max(0, first, min(snrs.shape[1], last))
    best = snrs[:, begin:end].copy()
    claimed = np.zeros(best.shape, dtype=bool)

    def claim(peak: Peak, is_interference: bool = False) -> None:
        centre = peak.column + (peak.width - 1) // 2
        reach = np.nan_to_num(grid.sweep(grid.dms[peak.row] - grid.dms))
        if is_interference:
            bow_tie, least = np.zeros_like(claimed), smeared_response(peak, reach)
        else:
            in_channel = np.where(np.abs(reach) > peak.width, fraction_in_a_channel(grid) * peak.snr, 0)
            bow_tie, least = claimed, np.maximum(HIDDEN_SNR, in_channel)
        claim_bow_tie(best, bow_tie, begin, widths, reach, least, centre, peak.width)

    def remove_ripples(row: int, centre: int) -> bool:
        """Remove what is connected with a maximum; return whether it stands apart."""
        apart, (rows, columns), ripples = stands_apart(searched, grid, row, centre)
        low, high = max(begin, columns.start), min(end, columns.stop)
        if low < high:  # a pulse that was judged may be beside what is searched
            ripples = ripples[:, low - columns.start : high - columns.start]
            best[rows, low - begin : high - begin][ripples] = -np.inf
        return apart

    for peak, is_interference in judged:
        remove_ripples(peak.row, peak.column + (peak.width - 1) // 2)
        claim(peak, is_interference)
    peaks: list[Peak] = []
    while len(peaks) < most and best.size:
        row, column = divmod(int(best.argmax()), end - begin)
        if not np.isfinite(best[row, column]) or ((peaks or judged) and best[row, column] < NEXT_PEAK_SNR):
            break
        centre, hidden = begin + column, claimed[row, column]
        apart = remove_ripples(row, centre)
        if hidden and not apart:
            continue
        if not apart and not judged:
            row, centre = brightest_of_bow_tie(snrs, grid, row, centre, int(widths[row, centre]))
        width = int(widths[row, centre])
        peaks.append(Peak(row, centre - (width - 1) // 2, width, float(snrs[row, centre])))
        claim(peaks[-1])
    return _with_their_parts(searched.total, grid, peaks, [peak for peak, _ in judged], first, last)


def _with_their_parts(
    total: np.ndarray, grid: PageGrid, peaks: Sequence[Peak], known: Sequence[Peak], first: int, last: int
) -> list[Peak]:
    """Return the peaks and their companions that are not known, each replaced by the sub-pulses that it consists of."""
    centres = [peak.column + peak.width // 2 for peak in (*peaks, *known)]
    parts: list[Peak] = []
    for number, peak in enumerate(peaks):
        others = centres[:number] + centres[number + 1 :]
        for pulse in (peak, *companions(total[peak.row], peak, others, first, last)):
            parts += parts_of(total, grid, pulse)
    return parts


def smeared_response(peak: Peak, reach: np.ndarray) -> np.ndarray:
    """Largest S/N of the response to a peak at each trial DM, which smears it over the residual sweep.

    Parameters
    ----------
    peak : Peak
    reach : (n_dm,) ndarray
        Residual sweep in samples.

    Returns
    -------
    (n_dm,) ndarray of float64
        Infinite where the sweep is shorter than the width.
    """
    response = SMEARED * peak.snr * np.sqrt(peak.width / (peak.width + np.abs(reach)))
    return np.where(np.abs(reach) > peak.width, response, np.inf)


def fraction_in_a_channel(grid: PageGrid) -> float:
    """Largest S/N of one channel of a pulse as a fraction of that of the pulse; 0 if the channels are not known.

    Wrong trial DMs separate the channels of a pulse, each with 1 / sqrt(nchans) of its S/N if all are equally bright.
    """
    return float(SMEARED / np.sqrt(grid.nchans or np.inf))


def stands_apart(
    searched: BoxcarSearch, grid: PageGrid, row: int, centre: int
) -> tuple[bool, tuple[slice, slice], np.ndarray]:
    """Decide whether a maximum of a plane is a pulse, and not a ripple on the bow tie of a brighter one.

    It is a pulse if, within `APART_REACH` widths, the S/N falls to its `valley` on every path to anything brighter.

    Parameters
    ----------
    searched : BoxcarSearch
    grid : PageGrid
    row, centre : int
        Place of the maximum.

    Returns
    -------
    apart : bool
    window : (slice, slice)
        Rows and columns around the maximum.
    connected : (rows, columns) ndarray of bool
        Samples of the window above the valley that are connected with the maximum.
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
    connected = np.zeros(values.shape, dtype=bool)
    mark_connected(values, np.float32(valley(snr)), row - low, centre - start, connected)
    borders = [(connected[0], low > 0), (connected[-1], high < n_dm)]
    borders += [(connected[:, 0], start > 0), (connected[:, -1], stop < n)]
    leaves_window = any(goes_on and border.any() for border, goes_on in borders)
    return not leaves_window and float(values[connected].max()) <= snr, window, connected


def valley(snr: float) -> float:
    """S/N to which the plane must fall between a pulse of S/N ``snr`` and a brighter one for both to count."""
    return min(0.5 * snr, snr - VALLEY_DEPTH)


def maxima(total: np.ndarray, width: int, first: int, last: int) -> list[tuple[int, float]]:
    """Find the pulses that a profile, smoothed with a boxcar, shows separately; each has at least `NEXT_PEAK_SNR`.

    Parameters
    ----------
    total : (n + 1,) ndarray of float
        Cumulative sum of the profile, in units of its noise.
    width : int
        Width of the boxcar in samples.
    first, last : int
        Limits of the first samples of the boxcars.

    Returns
    -------
    list of (int, float)
        First sample and S/N of each, in order of time.
    """
    first = max(0, first)
    last = max(first, min(len(total) - width, last))
    snr = boxcar_snr(total[first : last + width], width)
    tops = 1 + np.flatnonzero((snr[1:-1] > snr[:-2]) & (snr[1:-1] >= snr[2:]) & (snr[1:-1] >= NEXT_PEAK_SNR))
    found: list[int] = []
    for top in tops[np.argsort(-snr[tops], kind="stable")].tolist():
        apart = all(abs(top - other) >= width for other in found)
        if apart and stands_above(snr, top, np.float32(valley(float(snr[top])))):
            found.append(top)
    return [(first + top, float(snr[top])) for top in sorted(found)]


def companions(total: np.ndarray, peak: Peak, others: Sequence[int], first: int, last: int) -> list[Peak]:
    """Find pulses of the DM and width of a peak that its profile shows within `COMPANION_REACH` widths.

    Parameters
    ----------
    total : (n + 1,) ndarray of float
        Cumulative sum of the profile at the peak's DM, in units of its noise.
    peak : Peak
    others : sequence of int
        Centres of the pulses that were found already.
    first, last : int
        Columns in which the centre of a pulse must lie.
    """
    width, half, reach = peak.width, (peak.width - 1) // 2, COMPANION_REACH * peak.width
    found = maxima(total, width, max(first - half, peak.column - reach), min(last - half, peak.column + reach))
    return [
        Peak(peak.row, column, width, snr)
        for column, snr in found
        if all(abs(column + half - other) > width for other in (peak.column + half, *others))
    ]


def parts_of(total: np.ndarray, grid: PageGrid, peak: Peak) -> list[Peak]:
    """Return the pulses that a peak consists of, at the trial DM that separates them best, or the peak itself.

    Two pulses close to each other are brightest together at a trial DM at which the residual sweep merges them. Their
    own DM differs from it by at most the DM that sweeps over the width of the peak.

    Parameters
    ----------
    total : (n_dm, n + 1) ndarray of float
        Cumulative sums of the rows, in units of the noise.
    grid : PageGrid
    peak : Peak
    """
    parts = sub_pulses(total[peak.row], peak)
    if len(parts) > 1 or peak.width < SHORTEST_JOINED or peak.snr < FAINTEST_JOINED or not grid.sweeps:
        return parts
    rows_per_width = peak.width / float(grid.sweep(grid.dms[1] - grid.dms[0]))
    rows = {peak.row + round(offset * rows_per_width) for offset in DM_OFFSETS_IN_WIDTHS} - {peak.row}
    for row in sorted(row for row in rows if 0 <= row < len(grid.dms)):
        separated = sub_pulses(total[row], replace(peak, row=row))
        if len(separated) > 1 and (len(parts) == 1 or power(separated) > power(parts)):
            parts = separated
    return parts


def power(peaks: Sequence[Peak]) -> float:
    """Sum of the squared S/N."""
    return sum(peak.snr**2 for peak in peaks)


def sub_pulses(total: np.ndarray, peak: Peak) -> list[Peak]:
    """Return the pulses that narrower boxcars show within a peak, or the peak itself if they show no more than one.

    The parts must together have nearly the squared S/N of the whole (`PARTS_POWER`): noise gives a long pulse several
    maxima, but each of them has only a small part of its S/N.

    Parameters
    ----------
    total : (n + 1,) ndarray of float
        Cumulative sum of the profile at the peak's DM, in units of its noise.
    peak : Peak
    """
    margin = peak.width // 2
    for width in boxcar_widths(peak.width - 1)[::-1].tolist():
        found = maxima(total, width, peak.column - margin, peak.column + peak.width + margin)
        if len(found) > 1:
            parts = [_best_within(total, peak.row, column, width) for column, _ in found]
            if power(parts) >= PARTS_POWER * peak.snr**2:
                return [part for whole in parts for part in sub_pulses(total, whole)]
    return [peak]


def _best_within(total: np.ndarray, row: int, first: int, longest: int) -> Peak:
    """The best boxcar within columns ``first`` to ``first + longest``."""
    snr, column, width = best_boxcar(total[first : first + longest + 1], boxcar_widths(longest).tolist())
    return Peak(row, first + column, width, snr)


def brightest_of_bow_tie(snr: np.ndarray, grid: PageGrid, row: int, centre: int, width: int) -> tuple[int, int]:
    """Return row and centre of a much brighter pulse with a bow tie that contains a peak, or else of the peak itself.

    The network may recognise the bow tie of a bright pulse on a page beside that of the pulse.

    Parameters
    ----------
    snr : (n_dm, n) ndarray
        S/N of the best boxcar centred on each sample.
    grid : PageGrid
    row, centre, width : int
        Position and width of the peak.
    """
    reach = np.nan_to_num(grid.sweep(grid.dms - grid.dms[row]))[:, None]
    columns = np.arange(snr.shape[1])
    holds_peak = (columns >= centre - np.maximum(reach, 0) - width) & (columns <= centre - np.minimum(reach, 0) + width)
    within = np.where(holds_peak, snr, -np.inf)
    brightest = np.unravel_index(int(within.argmax()), snr.shape)
    return (int(brightest[0]), int(brightest[1])) if within[brightest] > 1.5 * snr[row, centre] else (row, centre)
