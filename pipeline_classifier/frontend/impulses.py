"""Undispersed impulses: samples in which most of the band is bright at once, and their distinction from pulses."""

import numpy as np

IMPULSE_THRESHOLD = 0.75
"""Mean over the channels, in sigma, above which a sample belongs to an undispersed impulse.

Every channel is clipped at `CLIP` = 3 sigma, so the mean exceeds 0.75 only if at least a quarter of the band is bright
at once. Chosen by hand; not tuned on data.
"""

EDGE_THRESHOLD = 4.0
"""Significance, in sigma, of the smoothed zero-DM series down to which an impulse extends. Chosen by hand."""

SMOOTHING = 9
"""Samples in the running mean that `EDGE_THRESHOLD` applies to. Chosen by hand."""

SUB_BANDS = 16
"""Parts of the band, of equal sweep, that are aligned to find out whether an impulse is dispersed."""

SHORTEST_SWEEP = 3
"""Shortest run of samples that may be a dispersed pulse."""

DISPERSED_POWER = 1.3
"""Power of the sum of the aligned sub-bands, in units of that at DM 0, above which a run is a dispersed pulse.

For a rectangular pulse as long as its sweep the ratio is 1.5, for an undispersed impulse at most 1 plus its noise.
"""


def impulse_threshold(n_good: int) -> float:
    """`IMPULSE_THRESHOLD`, or six times the noise of the mean over few channels."""
    return max(IMPULSE_THRESHOLD, 6.0 / n_good**0.5)


def impulse_samples(series: np.ndarray, impulses: np.ndarray, n_good: int) -> np.ndarray:
    """Extend undispersed impulses to their edges.

    Parameters
    ----------
    series : (n,) ndarray
        Zero-DM series in sigma.
    impulses : (n,) ndarray of bool
        Samples whose mean over all channels, each clipped at `CLIP` sigma, exceeds the impulse threshold: most of the
        band is bright at once. A dispersed pulse is in a part of the channels at a time.
    n_good : int
        Channels in the series.

    Returns
    -------
    (n,) ndarray of bool
        The impulses and the adjacent samples in which the smoothed series exceeds `EDGE_THRESHOLD`.
    """
    if not impulses.any():
        return impulses
    smooth = np.convolve(series, np.full(SMOOTHING, 1 / SMOOTHING, np.float32), "same")
    high = impulses | (np.abs(smooth) > EDGE_THRESHOLD / (n_good * SMOOTHING) ** 0.5)
    found = np.zeros_like(impulses)
    for first, end in runs_of(high).tolist():
        found[first:end] = impulses[first:end].any()
    return found


def runs_of(samples: np.ndarray) -> np.ndarray:
    """First sample and end (exclusive) of each run in (n,) bool: (n_runs, 2)."""
    edges = np.flatnonzero(np.diff(samples, prepend=False, append=False))
    return edges.reshape(-1, 2)


def sub_band_of_channel(frequencies: np.ndarray) -> np.ndarray:
    """Number of the sub-band of each channel, (nchans,); all have the same sweep."""
    delay = frequencies**-2.0
    delay = (delay - delay[0]) / max(delay[-1] - delay[0], 1e-30)
    return np.minimum((delay * SUB_BANDS).astype(int), SUB_BANDS - 1)


def is_dispersed(sub_bands: np.ndarray) -> bool:
    """Decide whether a run of bright samples is a dispersed pulse, so bright that most of the band shows it at once.

    The sub-bands are added with the delays of trial sweeps from one sample to the length of the run. A dispersed pulse
    has more power (sum of the squares) at its own sweep than at none; an undispersed impulse has less. This also holds
    for a series of pulses within one run.

    Parameters
    ----------
    sub_bands : (SUB_BANDS, n) ndarray of float32
        Sum of the channels of each sub-band, clipped, highest frequencies first.
    """
    k, n = sub_bands.shape
    undispersed = float(np.square(sub_bands.sum(axis=0)).sum())
    place = (np.arange(k) + 0.5) / k
    sweeps = np.unique(np.rint(1.25 ** np.arange(np.log(n) / np.log(1.25) + 1)).astype(int))
    total = np.empty(2 * n, dtype=np.float32)
    for sweep in sweeps[sweeps <= n].tolist():
        total[:] = 0
        for delay, values in zip(np.rint(place * sweep).astype(int).tolist(), sub_bands, strict=True):
            total[n - delay : 2 * n - delay] += values
        if float(total @ total) > DISPERSED_POWER * undispersed:
            return True
    return False
