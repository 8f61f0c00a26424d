"""Noise level and running baseline of every channel, from statistics of short bins."""

from dataclasses import dataclass

import numpy as np

from pipeline_classifier.frontend.cleaning_kernels import bin_statistics, raw_moments, step_means
from pipeline_classifier.frontend.settings import BIN

TILE = 2048
"""Samples whose higher moments are computed together."""

CLIP = 3.0
"""Deviation, in sigma, at which one sample or bin is clipped in a mean. Chosen by hand; not tuned on data."""

OUTLIERS = 30.0
"""Standard deviation of a channel, in units of its robust one, from which outliers dominate it. Chosen by hand."""


@dataclass(frozen=True)
class Sums:
    """Statistics of a block of n samples, all float32.

    Attributes
    ----------
    centre : (nchans,) ndarray
        A value near the mean or median of each channel, in counts.
    means : (n // BIN, nchans) ndarray
        Means over `BIN` samples, minus ``centre``, in counts.
    variances : (n // BIN, nchans) ndarray
        Variance within each bin, in counts squared.
    level : (nchans,) ndarray
        Noise level in counts: root of the mean variance within a bin, each clipped at 2.5 times their median. Zero if
        the channel has no noise.
    skewness, kurtosis : (nchans,) ndarray
        Skewness and excess kurtosis, as medians over tiles: a single pulse, however bright, does not change them.
    """

    centre: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    level: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray


@np.errstate(over="ignore", invalid="ignore")
def bin_sums(raw: np.ndarray) -> Sums:
    """Compute the statistics of a block: the first of three passes.

    Parameters
    ----------
    raw : (n, nchans) ndarray
        Samples as read, of any real dtype; n must be at least `BIN`.

    Returns
    -------
    Sums
        Samples after the last whole bin do not contribute.
    """
    raw = np.ascontiguousarray(raw)
    n, nchans = len(raw) // BIN * BIN, raw.shape[1]
    subset = raw[:: max(1, len(raw) // 64)].astype(np.float32)
    centre, std = subset.mean(axis=0), subset.std(axis=0)
    # Numbers around another mean, much larger than the noise, would leave no digit of float32 for its variance.
    middle = _lower_median(subset)
    spread = np.float32(1.4826) * _lower_median(np.abs(subset - middle))
    has_outliers = (spread > 0) & (std > OUTLIERS * spread)
    centre, std = np.where(has_outliers, middle, centre), np.where(has_outliers, spread, std)
    std = np.where(std > 0, std, np.float32(1))
    means, variances = np.empty((2, n // BIN, nchans), np.float32)
    bin_statistics(raw, centre, std, means, variances)
    # Half of the samples of every second tile are enough for the higher moments.
    n_tiles, half = max(1, n // TILE), min(TILE, n) // BIN // 2 * BIN
    firsts = range(0, n_tiles * TILE, 2 * TILE if n_tiles > 8 else TILE)
    moments = np.empty((len(firsts), 4, nchans), np.float32)
    for first, of_tile in zip(firsts, moments, strict=True):
        raw_moments(raw[first : first + half], centre, std, of_tile)
    typical = _lower_median(variances[:: max(1, len(variances) // 64)])
    typical = np.where(typical > 0, typical, variances.mean(axis=0))
    level = np.sqrt(np.minimum(variances, np.float32(2.5) * typical).mean(axis=0))
    # Channels that are constant except for a few extreme samples overflow; they have no noise level.
    usable = (level > 1e-6 * std) & np.isfinite(level)
    if not usable.all():
        means[:, ~usable] = variances[:, ~usable] = 0
    return Sums(centre, means, variances, np.where(usable, level, 0), *_skewness_and_kurtosis(moments))


def _lower_median(values: np.ndarray) -> np.ndarray:
    """Median of each column, the lower of two."""
    return np.sort(values, axis=0)[(len(values) - 1) // 2]


def _skewness_and_kurtosis(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Medians over tiles of skewness and excess kurtosis, from the first four raw moments (n_tiles, 4, nchans)."""
    mean, second, third, fourth = moments.swapaxes(0, 1)
    variance = np.maximum(second - mean**2, np.float32(1e-12))
    skewness = (third - mean * (3 * second - 2 * mean**2)) / (variance * np.sqrt(variance))
    kurtosis = (fourth - mean * (4 * third - mean * (6 * second - 3 * mean**2))) / variance**2 - 3
    return np.nan_to_num(_lower_median(skewness)), np.nan_to_num(_lower_median(kurtosis))


def running_baseline(sums: Sums, good: np.ndarray, window: float) -> tuple[int, np.ndarray]:
    """Compute a running mean of each channel that is robust against interference.

    Means over a fifth of the window pass through a running median. Bins are clipped at `CLIP` sigma from that median,
    and bins in which the average channel deviates by more than half of this limit (impulses, drop-outs) are excluded.
    The baseline is the mean over five consecutive steps.

    Parameters
    ----------
    sums : Sums
        Statistics of the block.
    good : (nchans,) ndarray of bool
        Channels in use.
    window : float
        Length of the running mean in samples; the whole block if below 1 or longer than the block.

    Returns
    -------
    step : int
        Samples between two nodes; node k is at sample (k + 1/2) * step.
    nodes : (n_nodes, nchans) ndarray
        Baseline at the nodes, in counts. A single node applies to the whole block.
    """
    n_bins, nchans = sums.means.shape
    whole_block = not 1 <= window < n_bins * BIN
    step = max(1, n_bins // 5 if whole_block else round(window / 5 / BIN))
    n_steps = n_bins // step
    bins = sums.means[: n_steps * step]
    median = running_median(bins.reshape(n_steps, step, nchans).mean(axis=1))
    limit = np.float32(CLIP / BIN**0.5) * sums.level
    weight = np.divide(1, limit * max(1, int(good.sum())), out=np.zeros_like(limit), where=good)
    steps = np.empty_like(median)
    step_means(bins, median, limit, weight, step, steps)
    if whole_block:
        nodes = steps.mean(axis=0, keepdims=True)
    else:
        padded = np.pad(steps, ((2, 2), (0, 0)))
        counts = np.convolve(np.ones(n_steps, np.float32), np.ones(5, np.float32))[2:-2]
        nodes = sum(padded[shift : shift + n_steps] for shift in range(5)) / counts[:, None]
    return step * BIN, nodes + sums.centre


def running_median(values: np.ndarray) -> np.ndarray:
    """Median of five consecutive rows, with the first and last row repeated at the ends."""
    padded = np.pad(values, ((2, 2), (0, 0)), mode="edge")
    a, b, c, d, e = (padded[shift : shift + len(values)] for shift in range(5))
    low = np.maximum(np.minimum(a, b), np.minimum(c, d))
    high = np.minimum(np.maximum(a, b), np.maximum(c, d))
    return np.maximum(np.minimum(low, high), np.minimum(np.maximum(low, high), e))


def residual(sums: Sums, step: int, nodes: np.ndarray) -> np.ndarray:
    """Subtract the baseline from the means of the bins.

    Returns
    -------
    (n_bins, nchans) ndarray
        In counts. Bins after the last whole step are missing, unless a single node applies to the whole block.
    """
    nodes = nodes - sums.centre
    if len(nodes) == 1:
        return sums.means - nodes
    bins = sums.means[: len(nodes) * (step // BIN)].reshape(len(nodes), step // BIN, -1)
    return (bins - nodes[:, None]).reshape(-1, bins.shape[2])
