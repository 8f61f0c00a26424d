"""Samples that carry no signal: not finite, far out of range, or constant, as lost packets leave them.

They are replaced by other samples of their channel while statistics are computed, and set to zero in the result.
"""

import math

import numpy as np

from pipeline_classifier.frontend.cleaning_kernels import long_runs
from pipeline_classifier.frontend.settings import BIN

ORDINARY_SIZES = 2.0**-20, 2.0**20
"""Sizes of float samples that need no scaling: their fourth powers are far from the limits of float32."""
OUT_OF_RANGE = 1e6
"""Largest usable sample, in units of the typical size. A pulse of S/N 10,000 in 256 channels has 625 sigma."""
SHORTEST_BINS = 4
"""Shortest constant stretch, in bins; longer in samples so coarse that noise alone may be constant for as long."""
WHOLE_BAND = 0.9
"""Fraction of the band that must be constant at the same time where the value is the highest of the block: the samples
of a bright pulse saturate for as long, but in a part of the band at a time. Chosen by hand."""
CHANCE = 1e-6
"""Largest probability that noise is constant for so many bins."""
FEWEST_LIVE = 256
"""Usable samples of a channel in a block below which the channel is not used."""


def typical_size(block: np.ndarray) -> float:
    """Median size of the samples (n, nchans) that are finite and not zero, over about 64 spectra; NaN without any."""
    sizes = np.abs(block[:: max(1, len(block) // 64)])
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(np.median(sizes)) if len(sizes) else math.nan


def in_float_range(block: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale float samples of very large or small size such that their powers are within the range of float32.

    Parameters
    ----------
    block : (n, nchans) ndarray
        Samples of any type; integers are returned as they are.

    Returns
    -------
    block : (n, nchans) ndarray
    factor : float
        What the samples were multiplied with: a power of two, so that no sample is rounded; 1 if none was needed.
    """
    if block.dtype.kind != "f":
        return block, 1.0
    size = typical_size(block)
    if not math.isfinite(size) or ORDINARY_SIZES[0] <= size <= ORDINARY_SIZES[1]:
        return block, 1.0
    exponent = -math.frexp(size)[1]
    with np.errstate(over="ignore"):  # a sample that becomes infinite was out of range
        return np.ldexp(block, exponent), 2.0**exponent


def out_of_range(block: np.ndarray) -> np.ndarray | None:
    """Find the samples (n, nchans) bool that are not finite or above `OUT_OF_RANGE`; None if there are none."""
    if block.dtype.kind != "f":
        return None
    size = typical_size(block)
    largest = OUT_OF_RANGE * size if math.isfinite(size) else np.finfo(np.float32).max
    if float(block.max(initial=0)) <= largest and float(block.min(initial=0)) >= -largest:  # False for NaN
        return None
    return ~(np.abs(block) <= largest)


def constant_stretches(block: np.ndarray, variances: np.ndarray) -> np.ndarray | None:
    """Find stretches of time in which a channel is constant for longer than its noise ever is.

    Parameters
    ----------
    block : (n, nchans) ndarray
        Samples as read.
    variances : (n // BIN, nchans) ndarray of float32
        Variance within each bin, as in `baseline.Sums`.

    Returns
    -------
    (n, nchans) ndarray of bool, or None
        None if there are none, or in no channel but those that are constant throughout.
    """
    mean = variances.mean(axis=0)
    noisy = mean > 0
    candidates = (variances <= 0.01 * mean) & noisy  # the variance of a constant is rounded
    if not (candidates.any() and long_runs(candidates, SHORTEST_BINS).any()):
        return None
    n_bins, nchans = variances.shape
    bins = block[: n_bins * BIN].reshape(n_bins, BIN, nchans)
    constant = (bins == bins[:, :1]).all(axis=1) & candidates
    saturated = bins[:, 0] >= block.max(axis=0)
    constant &= ~saturated | (constant[:, noisy].mean(axis=1) >= WHOLE_BAND)[:, None]
    share = float(constant[:, noisy].mean())
    fewest = max(SHORTEST_BINS, math.ceil(math.log(CHANCE) / math.log(share))) if share else SHORTEST_BINS
    channels = np.flatnonzero(long_runs(constant, fewest).any(axis=0))
    if not len(channels):
        return None
    values = block[:, channels]
    stretches = np.zeros(values.shape, dtype=bool)
    stretches[: n_bins * BIN] = np.repeat(long_runs(constant[:, channels], fewest), BIN, axis=0)
    same = values[1:] == values[:-1]
    for _ in range(BIN):  # a stretch begins and ends within a bin
        stretches[1:] |= stretches[:-1] & same
        stretches[:-1] |= stretches[1:] & same
    result = np.zeros(block.shape, dtype=bool)
    result[:, channels] = stretches
    return result


def filled(block: np.ndarray, unusable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace samples by those of the same channel before them, in reverse order, for statistics alone.

    Parameters
    ----------
    block : (n, nchans) ndarray
        Samples as read.
    unusable : (n, nchans) ndarray of bool
        Samples to replace.

    Returns
    -------
    block : (n, nchans) ndarray
        A copy. Near the start of the block, samples are those of its end.
    live : (nchans,) ndarray of bool
        Channels with at least `FEWEST_LIVE` usable samples, or half of the block; the others are zero.
    """
    block = block.copy()
    live = (~unusable).sum(axis=0) >= min(FEWEST_LIVE, len(block) / 2)
    block[:, ~live] = 0
    channels = np.flatnonzero(unusable.any(axis=0) & live)
    if not len(channels):
        return block, live
    patterns = np.packbits(unusable[:, channels], axis=0).T
    _, first, pattern = np.unique(patterns, axis=0, return_index=True, return_inverse=True)
    for number, example in enumerate(channels[first].tolist()):
        of_pattern = channels[pattern.ravel() == number]
        usable, missing = np.flatnonzero(~unusable[:, example]), np.flatnonzero(unusable[:, example])
        order = np.arange(len(missing))
        begins = np.append(True, np.diff(missing) > 1)
        place = order - np.maximum.accumulate(np.where(begins, order, 0))
        source = usable[(np.searchsorted(usable, missing) - 1 - place) % len(usable)]
        block[missing[:, None], of_pattern] = block[source[:, None], of_pattern]
    return block, live
