"""The undispersed signal of a block: its series, its share in each channel, and the samples of strong impulses."""

from dataclasses import dataclass

import numpy as np

from pipeline_classifier.frontend.baseline import CLIP
from pipeline_classifier.frontend.cleaning_kernels import band_series, clipped_sums, regression_products
from pipeline_classifier.frontend.impulses import (
    SHORTEST_SWEEP,
    SUB_BANDS,
    dispersed_runs,
    impulse_samples,
    impulse_threshold,
    is_dispersed,
    runs_of,
    sub_band_of_channel,
)

SIGNIFICANT = 5.0
"""Mean over the channels, in units of its noise, above which every channel of the sample is clipped at `CLIP` sigma."""

BESIDE_IMPULSES = 2
"""Samples on either side of one above the impulse threshold that do not contribute to the regression: in a stretch of
bad data the mean over the channels crosses zero while the channels are thousands of sigma from it."""


@dataclass(frozen=True)
class ZeroDm:
    """Undispersed signal to subtract from every channel.

    Attributes
    ----------
    series : (n,) ndarray
        Mean over the good channels, each in units of its noise and, where the mean is significant, clipped.
    coefficient : (nchans,) ndarray
        Factor with which the series is subtracted from each channel.
    noise : (nchans,) ndarray
        Noise of each channel after the subtraction, in units of the noise before.
    blanked : (n,) ndarray of bool
        Samples to set to zero in all channels.
    """

    series: np.ndarray
    coefficient: np.ndarray
    noise: np.ndarray
    blanked: np.ndarray


def zero_dm_series(
    raw: np.ndarray,
    nodes: np.ndarray,
    step: int,
    scale: np.ndarray,
    kind: str,
    low_frequency_noise: float,
    frequencies: np.ndarray,
) -> ZeroDm:
    """Compute the zero-DM series and its regression coefficients: the second pass over a block.

    Parameters
    ----------
    raw : (n, nchans) ndarray
        Samples as read.
    nodes : (n_nodes, nchans) ndarray
        Baseline in counts.
    step : int
        Samples between two nodes.
    scale : (nchans,) ndarray
        Reciprocal of the noise level in counts; 0 for masked channels.
    kind : {"zdot", "zero"}
        Regression or plain subtraction.
    low_frequency_noise : float
        Robust standard deviation of the mean over `BIN` samples and the good channels, in sigma.
    frequencies : (nchans,) ndarray
        Channel centres in MHz.

    Notes
    -----
    With x_c(t) the normalised samples of channel c and z(t) their mean over the good channels, least squares for
    x_c = b_c z + w_c gives b_c = sum(x_c z) / sum(z^2). One bright pulse or impulse would dominate both sums, so one
    factor z is replaced by an instrumental variable u, which is z clipped at `CLIP` sigma, and 0 above the impulse
    threshold and beside it: b_c = sum(x_c u) / sum(z u).

    Subtracting a_c z (a_c = b_c for "zdot", a_c = 1 for "zero") leaves the variance

        var(x_c - a_c z) = var(x_c) - 2 a_c cov(x_c, z) + a_c^2 var(z) = 1 + var(z) a_c (a_c - 2 b_c),

    because var(x_c) = 1 and cov(x_c, z) = b_c var(z). The mean of z u stands for var(z). Interference on time scales
    longer than `BIN` samples is not part of the noise level, so that var(x_c) > 1. This is neglected: for such
    interference of 0.2 sigma the result has a noise of 1.02.
    """
    n, nchans = raw.shape
    n_good = int(np.count_nonzero(scale))
    clip = CLIP * max(low_frequency_noise, n_good**-0.5)
    weight = scale / n_good
    series = np.empty(n, np.float32)
    band_series(raw, weight, (nodes * weight).sum(axis=1), step, series)
    large = np.abs(series) > impulse_threshold(n_good)
    instrument = series.clip(-clip, clip)
    instrument[np.convolve(large, np.ones(2 * BESIDE_IMPULSES + 1), "same") > 0] = 0
    product, node_sums = np.empty(nchans), np.empty(len(nodes))
    regression_products(raw, instrument, step, product, node_sums)
    power = max(float((instrument * series).sum()), 1e-30)
    # The sum above is over raw samples; here that over the baseline is subtracted.
    product -= (node_sums[:, None] * nodes).sum(axis=0)
    least_squares = scale * product / power
    coefficient = least_squares if kind == "zdot" else (scale > 0).astype(float)
    noise = np.sqrt(np.maximum(1.0 + power / n * coefficient * (coefficient - 2 * least_squares), 0.25))
    blanked = _clip_and_find_impulses(raw, series, nodes, step, scale, frequencies)
    return ZeroDm(series, coefficient.astype(np.float32), noise.astype(np.float32), blanked)


def _clip_and_find_impulses(
    raw: np.ndarray,
    series: np.ndarray,
    nodes: np.ndarray,
    step: int,
    scale: np.ndarray,
    frequencies: np.ndarray,
) -> np.ndarray:
    """Clip every channel in the significant samples of the series, in place; return the samples to set to zero, (n,).

    Without the clipping, a bright pulse would be subtracted from all other channels while it sweeps over the band. The
    impulses are undispersed; dispersed pulses are not among them, and the series is zero where there is one, so that
    those of a short sweep are not subtracted from themselves.
    """
    n_good = int(np.count_nonzero(scale))
    sub_band = sub_band_of_channel(frequencies)

    def clipped(samples: np.ndarray) -> np.ndarray:
        sums = np.empty((len(samples), SUB_BANDS), np.float32)
        clipped_sums(raw, samples, nodes, step, scale, np.float32(CLIP), sub_band, sums)
        return sums

    significant = np.flatnonzero(np.abs(series) > SIGNIFICANT / n_good**0.5)
    series[significant] = clipped(significant).sum(axis=1) / n_good
    blanked = impulse_samples(series, np.abs(series) > impulse_threshold(n_good), n_good)
    for first, end in runs_of(blanked).tolist():
        bright = end - first >= SHORTEST_SWEEP and series[first:end].sum() > 0
        if bright and is_dispersed(clipped(np.arange(first, end)).T):
            blanked[first:end] = False
    for first, end in dispersed_runs(series, n_good, clipped):
        series[first:end], blanked[first:end] = 0, False
    return blanked
