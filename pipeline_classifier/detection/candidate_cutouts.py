"""Cutouts of candidates: the surroundings of a peak in the DM-time plane, scaled to its width.

On a page a pulse may be a dot or a broad streak, at any position. In a cutout its width is four columns, and the sweep
changes by one column from row to row: every dispersed pulse looks nearly the same, whatever the band and the sampling.
"""

from collections.abc import Sequence

import numpy as np

from pipeline_classifier.detection.peaks import Peak
from pipeline_classifier.frontend.boxcar import BoxcarSearch
from pipeline_classifier.frontend.pages import ROBUST_RANGE, PageGrid, to_images
from single_pulse_classifier_training.channels import CHANNELS

SIDE = 64
"""Columns and rows of a cutout."""
COLUMNS_PER_WIDTH = 4
NORMALISER = "noise"
BRIGHTEST_SNR = 20.0
"""S/N to which the cutouts of brighter peaks are scaled down.

The shape of a pulse does not depend on its S/N, but the network was trained on pulses of S/N 6 to 50, and values above
20 sigma are clipped. The bow tie of a band-limited pulse is bright over many rows; scaled to S/N 30, some such pulses
above S/N 3000 have a probability of 0.07. Chosen on 20 simulated observations (790 pulses of S/N 6 to 10,000, two
fifths of those above 50 band-limited): with 20, 15, 12 and 10, the events from a probability of 0.2 are 770, 772, 773
and 773 of the pulses, and 7, 8, 10 and 13 others. Below 20, broadband pulses of S/N 10,000 with a sweep of four widths
lose more than 0.05 of their probability (tests/pipeline_classifier/test_bright_pulses.py).
"""


def column_of(width: float) -> int:
    """Return the samples in a column of the cutouts of a peak of ``width`` samples."""
    return max(1, round(width / COLUMNS_PER_WIDTH))


def sub_bands_of(nchans: int) -> np.ndarray:
    """Return the first channel of each of `SIDE` sub-bands, and the one after its last, (SIDE, 2) int64."""
    edges = np.arange(SIDE + 1) * nchans // SIDE
    return np.column_stack([edges[:-1], np.maximum(edges[1:], edges[:-1] + 1)])


def cutout(searched: BoxcarSearch, grid: PageGrid, peak: Peak) -> np.ndarray:
    """Cut out the surroundings of a peak, in units of the noise.

    Parameters
    ----------
    searched : BoxcarSearch
        The plane (n_dm, n) in which the peak was found.
    grid : PageGrid
        Rows and columns of the plane; the band must be known.
    peak : Peak

    Returns
    -------
    (SIDE, SIDE) ndarray of float32
        Row 0 = lowest DM, the peak in row and column ``SIDE / 2``. A column is a quarter of the peak's width; a row is
        the DM that sweeps over that time, but at least half a trial DM. Above `BRIGHTEST_SNR` all values are scaled
        such that the peak has this S/N. Columns outside the plane are 0; rows outside the grid of DMs have the lowest
        value of `ROBUST_RANGE`.
    """
    column = column_of(peak.width)
    n = searched.total.shape[1] - 1
    offsets = np.arange(SIDE + 1) - SIDE // 2
    edges = round(peak.column + (peak.width - column) / 2) + offsets * column
    step = grid.dms[1] - grid.dms[0]
    samples_per_row = float(grid.sweep(step) - grid.top_delay(step))
    rows = peak.row + np.rint(offsets[:-1] * max(column / samples_per_row, 0.5)).astype(np.int64)
    # Each row is shifted by the delay of the highest frequency in use, so that this frequency stays in one column.
    edges = edges - np.rint(grid.top_delay((rows - peak.row) * step)).astype(np.int64)[:, None]
    total = searched.total[np.clip(rows, 0, len(grid.dms) - 1)[:, None], np.clip(edges, 0, n)]
    values = np.diff(total, axis=1) / np.float32(column**0.5 * max(1.0, peak.snr / BRIGHTEST_SNR))
    values[(edges[:, :-1] < 0) | (edges[:, 1:] > n)] = 0.0
    values[(rows < 0) | (rows >= len(grid.dms))] = ROBUST_RANGE[0]
    return values


def candidate_images(
    dm_time: np.ndarray, frequency_time: np.ndarray | None = None, channels: Sequence[str] = CHANNELS
) -> np.ndarray:
    """Turn cutouts into the input of a network.

    Parameters
    ----------
    dm_time : (n, SIDE, SIDE) ndarray of float32
        Cutouts in the DM-time plane; row 0 = lowest DM.
    frequency_time : (n, 2, SIDE, SIDE) ndarray of float32, optional
        `FrequencyTime.cutouts`; row 0 = lowest frequency.
    channels : sequence of str
        Which of `CHANNELS` the network gets, in this order.

    Returns
    -------
    (n, len(channels), SIDE, SIDE) ndarray of uint8
        Row 0 = highest DM or frequency.
    """
    views = {"dm_time": dm_time}
    if frequency_time is not None:
        views |= {"freq_time": frequency_time[:, 0], "undispersed": frequency_time[:, 1]}
    values = np.stack([views[name] for name in channels], axis=1)
    images, _ = to_images(values.reshape(-1, SIDE, SIDE), NORMALISER, SIDE)
    return images.reshape(values.shape)
