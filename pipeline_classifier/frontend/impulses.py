"""Undispersed impulses: samples in which most of the band is bright at once, and their distinction from pulses."""

from collections.abc import Callable

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


SIGNIFICANT_RUN = 4.5
"""S/N of a boxcar of the zero-DM series, less the mean on either side of it, from which its run is examined for a
dispersed pulse; noise has one such run in 100,000 samples."""
LONGEST_BOXCAR = 256
"""Longest such boxcar in samples, a page of the default config."""
MOST_EXAMINED = 0.3
"""Largest part of a block that is examined; where more of the series is significant, the faintest runs are left out, so
that the time is bounded. With 0.1, the pulses of S/N 40 in a test with two or three pulses a second take all of it."""
LONGEST_SPARED = 16
"""Longest sweep, in widths, of a pulse that is spared: those of a longer one lose less than a tenth of their S/N, and
what else is in the series while they sweep over the band must be subtracted."""
LARGEST_NOISE = 1.35
"""Noise of a run, in units of that of the block, above which it is bad data, whatever its sub-bands show: 1.25 with
a bright pulse as long as its sweep, and 1.42 where the baseline drifts beside a stretch of noise of 100,000 sigma."""
ALIGNED_SNR, ALIGNED_DIFFERENCE = 1.07, 16.0
"""A run is a dispersed pulse if, at its own sweep, its S/N is so many times that at no or a negative sweep, and the
squares of the two differ by so much. Chosen by hand: an undispersed impulse of any S/N reaches 1.03, noise a difference
of 12, and a pulse as long as its sweep 1.3."""


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


def dispersed_runs(
    series: np.ndarray, n_good: int, sub_bands_of: Callable[[np.ndarray], np.ndarray]
) -> list[tuple[int, int]]:
    """Find the dispersed pulses in the zero-DM series: pulses that are not much shorter than their sweep.

    Parameters
    ----------
    series : (n,) ndarray
        Zero-DM series in sigma.
    n_good : int
        Channels in the series.
    sub_bands_of : callable
        Returns, for samples (k,) of int64, the sums of the channels of each sub-band, (k, SUB_BANDS) float32.

    Returns
    -------
    list of (first, end)
        Samples of each pulse.
    """
    found = []
    for first, end in significant_runs(series * np.float32(n_good**0.5)):
        sub_bands = np.ascontiguousarray(sub_bands_of(np.arange(first, end)).T) / np.float32(n_good**0.5)
        noise = 1.4826 * float(np.median(np.abs(sub_bands - np.median(sub_bands)))) * SUB_BANDS**0.5
        if noise < LARGEST_NOISE and has_sweep(sub_bands):
            found.append((first, end))
    return found


def significant_runs(series: np.ndarray) -> list[tuple[int, int]]:
    """Find the runs of a series (n,) of unit noise in which boxcars are significant, with their surroundings."""
    n = len(series)
    total = np.concatenate([[0.0], np.cumsum(series, dtype=np.float64)])
    begins, ends, snrs = [], [], []
    for width in 2 ** np.arange(2, LONGEST_BOXCAR.bit_length()):
        if width >= n:
            break
        first = np.arange(0, n + 1 - width, width // 4)
        left, right = np.maximum(first - 2 * width, 0), np.minimum(first + 3 * width, n)
        inside = total[first + width] - total[first]
        beside = (total[right] - total[left] - inside) / (right - left - width)
        snr = (inside - width * beside) / np.sqrt(1.25 * width)
        high = np.flatnonzero(snr > SIGNIFICANT_RUN)
        begins.append(np.maximum(first[high] - width, 0))
        ends.append(np.minimum(first[high] + 2 * width, n))
        snrs.append(snr[high])
    if not begins:
        return []
    begin, end, snr = (np.concatenate(values) for values in (begins, ends, snrs))
    examined = np.zeros(n, bool)
    for number in np.argsort(-snr, kind="stable").tolist():
        if np.count_nonzero(examined) > MOST_EXAMINED * n:
            break
        examined[begin[number] : end[number]] = True
    return [(first, last) for first, last in runs_of(examined).tolist() if last - first <= 8 * LONGEST_BOXCAR]


def has_sweep(sub_bands: np.ndarray) -> bool:
    """Decide whether sub-bands (SUB_BANDS, n), whose sum has unit noise, show a pulse with a short, positive sweep."""
    k, n = sub_bands.shape
    widths = np.unique(np.rint(1.6 ** np.arange(0, np.log(n) / np.log(1.6)))).astype(int)
    place = (np.arange(k) + 0.5) / k
    sweeps = np.unique(np.rint(1.3 ** np.arange(np.log(n) / np.log(1.3))).astype(int))
    sweeps = np.concatenate([-sweeps[::-1], [0], sweeps])
    power, width_of = np.empty(len(sweeps)), np.empty(len(sweeps), int)
    for number, sweep in enumerate(sweeps.tolist()):
        aligned = np.zeros(3 * n + 1, np.float32)
        for delay, values in zip(np.rint(place * sweep).astype(int).tolist(), sub_bands, strict=True):
            aligned[1 + n - delay : 1 + 2 * n - delay] += values
        total = np.cumsum(aligned)
        power[number], width_of[number] = max(
            (float((total[width:] - total[:-width]).max()) ** 2 / width, width) for width in widths.tolist()
        )
    own, others = int(power.argmax()), power[sweeps <= 0].max()
    is_better = power[own] > max(ALIGNED_SNR**2 * others, others + ALIGNED_DIFFERENCE)
    return bool(is_better and sweeps[own] <= LONGEST_SPARED * width_of[own])
