"""The boxcar search: the S/N of every run of samples of a profile, of a DM-time plane, and of whole pages."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

LEAST_NOISE = 0.95
"""Lowest noise of a plane, in units of the noise of its source: lower values come from samples that were set to zero.
Of the runs of pages of a simulated observation in strong interference 95 per cent have at least 0.98."""


def boxcar_widths(longest: int) -> np.ndarray:
    """Trial widths in samples, from 1 to ``longest``, each at most 1.6 times the one before (2 from 1 to 2)."""
    if longest < 1:
        return np.empty(0, dtype=int)
    widths = np.unique(np.round(1.4 ** np.arange(0, 1 + np.log(longest) / np.log(1.4))).astype(int))
    return widths[widths <= longest]


def boxcar_snr(total: np.ndarray, width: int) -> np.ndarray:
    """S/N of every boxcar of one width, by its first sample.

    Parameters
    ----------
    total : (n + 1,) ndarray of float
        Cumulative sum of a profile, in units of its noise; its first value is that before the first sample.
    width : int
        Samples, at most n.

    Returns
    -------
    (n + 1 - width,) ndarray
    """
    return (total[width:] - total[:-width]) / total.dtype.type(math.sqrt(width))


def best_boxcar(total: np.ndarray, widths: Iterable[int]) -> tuple[float, int, int]:
    """S/N, first sample and width of the boxcar of the highest S/N, the narrowest and earliest of equal ones.

    Parameters
    ----------
    total : (n + 1,) ndarray of float
        As in `boxcar_snr`.
    widths : iterable of int
        Trial widths in samples, ascending, from 1 to at most n.
    """
    best = (-np.inf, 0, 1)
    for width in widths:
        snr = boxcar_snr(total, width)
        first = int(snr.argmax())
        if snr[first] > best[0]:
            best = (float(snr[first]), first, width)
    return best


@dataclass(frozen=True)
class BoxcarSearch:
    """Result of a boxcar search of a DM-time plane.

    Attributes
    ----------
    total : (n_dm, n + 1) ndarray of float32
        Cumulative sum of each row after its median is subtracted, in units of the noise of the plane.
    snr : (n_dm, n) ndarray of float32
        Highest S/N of the boxcars centred on each sample, to a precision of 4e-6.
    width : (n_dm, n) ndarray of int32
        Width of that boxcar in samples.
    """

    total: np.ndarray
    snr: np.ndarray
    width: np.ndarray


def boxcar_search(plane: np.ndarray, longest: int, noise: float = 0.0) -> BoxcarSearch:
    """Search every row of a DM-time plane with boxcars.

    Parameters
    ----------
    plane : (n_dm, n) ndarray of float32
        The noise is 1.4826 times the median absolute deviation of every second value of every second row.
    longest : int
        Longest boxcar in samples.
    noise : float
        Noise of the values where no sample was set to zero (`PageGrid.noise`); what is measured must be at least
        `LEAST_NOISE` of it.
    """
    n_dm, n = plane.shape
    values = np.nan_to_num(plane - np.partition(plane, n // 2, axis=1)[:, n // 2, None])
    sizes = np.abs(values[::2, ::2]).ravel()
    sigma = 1.4826 * np.partition(sizes, len(sizes) // 2)[len(sizes) // 2] or values.std() or 1.0
    sigma = max(sigma, LEAST_NOISE * noise)
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
        # The number of the width replaces the last five bits of the S/N, so that one maximum keeps both: three times
        # as fast as comparing and copying.
        bits = snrs.view(np.int32)
        bits &= -32
        bits |= number
        centres = snr[:, (width - 1) // 2 : (width - 1) // 2 + count]
        np.maximum(centres, snrs, out=centres)
    numbers = snr.view(np.int32)
    best = widths[numbers & 31]
    numbers &= -32
    return BoxcarSearch(total, snr, best)


def page_snr(pages: np.ndarray) -> np.ndarray:
    """Highest S/N in each page of boxcars of 1, 2, 4, ... samples, up to a quarter of the page.

    A coarse and fast form of the search, for the gate before the network: every second row is searched, as
    neighbouring trial DMs show the same pulse.

    Parameters
    ----------
    pages : (B, n_dm, n_time) ndarray of float32

    Returns
    -------
    (B,) ndarray of float32
        NaN for a page that is not finite.
    """
    import torch  # the simulation uses this module, and starts without it

    from pipeline_classifier.frontend.pages import robust_noise

    values = torch.from_numpy(pages)
    median, sigma = robust_noise(values)
    sums = values[:, ::2] - median[:, None, None]
    best, width = sums.amax(dim=(1, 2)), 1
    while 2 * width <= pages.shape[2] // 4:
        sums = sums[..., :-width] + sums[..., width:]
        width *= 2
        best = torch.maximum(best, sums.amax(dim=(1, 2)) / width**0.5)
    return (best / sigma).numpy()
