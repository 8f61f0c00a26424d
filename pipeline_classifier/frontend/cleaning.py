"""Cleaning: raw samples to channels of zero mean and unit noise, with interference masked or subtracted."""

from typing import Any, NamedTuple

import numpy as np

from pipeline_classifier.frontend.baseline import CLIP, Sums, bin_sums, residual, running_baseline
from pipeline_classifier.frontend.blanking import constant_stretches, filled, in_float_range, out_of_range
from pipeline_classifier.frontend.channel_mask import ChannelFigures, narrow_band_signals, outlier_channels
from pipeline_classifier.frontend.cleaning_kernels import quiet_powers, write_samples
from pipeline_classifier.frontend.dedispersion import LEVELS_PER_SIGMA, largest_level, quantise
from pipeline_classifier.frontend.impulses import IMPULSE_THRESHOLD
from pipeline_classifier.frontend.settings import BIN, Cleaning
from pipeline_classifier.frontend.zero_dm import ZeroDm, zero_dm_series

FEWEST_SAMPLES = 256
"""Minimum length of a block whose statistics are used to mask channels."""

MAX_BIN_POWER = 25.0
"""Upper limit of one bin in the low-frequency excess variance, in units of its variance: 5 sigma. Chosen by hand."""


def downsample(
    block: np.ndarray, frequencies: np.ndarray, tsamp: float, td: int, fd: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Average ``td`` samples and ``fd`` channels; incomplete groups at the ends are dropped.

    Parameters
    ----------
    block : (n, nchans) ndarray
        Samples as read.
    frequencies : (nchans,) ndarray
        Channel centres in MHz.
    tsamp : float
        Sampling time in seconds.
    td, fd : int
        Samples and channels to average.

    Returns
    -------
    block : (n // td, nchans // fd) ndarray
        float32, or the input itself if both factors are 1.
    frequencies : (nchans // fd,) ndarray
        Centres of the new channels in MHz.
    tsamp : float
        New sampling time in seconds.
    """
    if td == fd == 1:
        return block, frequencies, tsamp
    n, nchans = len(block) // td, block.shape[1] // fd
    block = block[: n * td, : nchans * fd]
    channels = block.reshape(n * td, nchans, fd).mean(axis=2, dtype=np.float32) if fd > 1 else block
    averaged = channels.reshape(n, td, nchans).mean(axis=1, dtype=np.float32) if td > 1 else channels
    return averaged, frequencies[: nchans * fd].reshape(nchans, fd).mean(axis=1), tsamp * td


def zapped(frequencies: np.ndarray, zaplist: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Find the channels (nchans,) whose centre lies in a band [f_low, f_high] of the zaplist, in MHz."""
    mask = np.zeros(len(frequencies), dtype=bool)
    for low, high in zaplist:
        mask |= (frequencies >= low) & (frequencies <= high)
    return mask


class Cleaned(NamedTuple):
    """A cleaned block.

    Attributes
    ----------
    data : (nchans, >= n) ndarray of float32 or int8
        Samples of zero mean and unit noise; zero in masked channels, strong impulses and unusable samples. On a GPU a
        tensor.
    good : (nchans,) ndarray of bool
        Channels in use.
    not_finite, constant : (n,) ndarray of int32
        Number of channels whose sample is not finite or out of range, or in a constant stretch.
    """

    data: Any
    good: np.ndarray
    not_finite: np.ndarray
    constant: np.ndarray


def clean(
    block: np.ndarray, frequencies: np.ndarray, tsamp: float, settings: Cleaning, out: np.ndarray | None = None
) -> Cleaned:
    """Clean one block of an observation.

    Parameters
    ----------
    block : (n, nchans) ndarray
        Samples as read.
    frequencies : (nchans,) ndarray
        Channel centres in MHz.
    tsamp : float
        Sampling time in seconds.
    settings : Cleaning
        Methods and thresholds.
    out : (nchans, >= n) ndarray, optional
        Memory for the result: float32, or int8 to receive samples rounded by `dedispersion.quantise`. Columns after the
        first n become zero.

    Notes
    -----
    Three passes over the block. The first (`bin_sums`) gives noise levels, baseline and channel mask; the second
    (`zero_dm_series`) the undispersed signal; the third writes the result. For ``zero_dm`` "zdot" each channel is
    regressed on the zero-DM series (Men et al. 2019, MNRAS 488, 3957), for "zero" the series is subtracted (Eatough et
    al. 2009, MNRAS 395, 410). Both set the samples of strong impulses to zero (`impulse_samples`), unless these are
    dispersed. Samples that are not finite, out of range or constant for long have no influence on other samples: they
    are replaced by earlier ones of their channel, and set to zero in the result.
    """
    n, nchans = block.shape
    out = np.empty((nchans, n), dtype=np.float32) if out is None else out
    out[:, n:] = 0
    block, _ = in_float_range(block)
    good = ~zapped(frequencies, settings.zaplist)
    bad, constant = out_of_range(block), None
    usable = block
    if bad is not None:
        usable, live = filled(block, bad)
        good &= live
    usable = np.ascontiguousarray(usable)
    if n < FEWEST_SAMPLES:
        _clean_short(usable, good, settings.zero_dm, out)
    else:
        sums = bin_sums(usable)
        constant = constant_stretches(usable, sums.variances)
        if constant is not None:
            usable, live = filled(block, constant if bad is None else constant | bad)
            good &= live
            usable = np.ascontiguousarray(usable)
            sums = bin_sums(usable)
        _clean_long(usable, sums, good, frequencies, tsamp, settings, out)
    for unusable in (bad, constant):
        if unusable is not None:
            out[:, :n][unusable.T] = 0
    count = (np.zeros(n, np.int32) if each is None else each.sum(axis=1, dtype=np.int32) for each in (bad, constant))
    return Cleaned(out, good, *count)


def _clean_long(
    raw: np.ndarray,
    sums: Sums,
    good: np.ndarray,
    frequencies: np.ndarray,
    tsamp: float,
    settings: Cleaning,
    out: np.ndarray,
) -> None:
    """Clean a block (n, nchans) long enough for statistics of its channels; ``good`` and ``out`` are written."""
    n, nchans = raw.shape
    good &= sums.level > 0
    step, nodes = running_baseline(sums, good, settings.baseline_window_s / tsamp)
    residuals = residual(sums, step, nodes)
    figures = figures_of_merit(sums, residuals, good)
    good &= ~outlier_channels(figures, good, settings.zap_threshold, settings.mask_threshold)
    scale = np.divide(1, sums.level, out=np.zeros(nchans, np.float32), where=good)
    if settings.zero_dm and good.any():
        noise = 1.4826 * float(np.median(np.abs(np.einsum("bc,c", residuals, scale)))) / int(good.sum())
        zero_dm = zero_dm_series(raw, nodes, step, scale, settings.zero_dm, noise, frequencies)
    else:
        zero_dm = ZeroDm(np.zeros(n, np.float32), np.zeros_like(scale), np.ones_like(scale), np.zeros(n, bool))
    factor = scale / zero_dm.noise * (LEVELS_PER_SIGMA if out.dtype == np.int8 else 1)
    coefficient = zero_dm.coefficient * factor * sums.level
    limit = np.float32(largest_level(nchans) if out.dtype == np.int8 else 0)
    write_samples(raw, nodes * factor, step, factor, coefficient, zero_dm.series, zero_dm.blanked, limit, out)
    if settings.kadane_channels:
        min_bins = int(settings.kadane_width_s / tsamp / BIN)
        for channels, samples in narrow_band_signals(
            residuals * scale, good, settings.kadane_channels, min_bins, settings.kadane_threshold
        ):
            out[channels, samples] = 0


def _clean_short(raw: np.ndarray, good: np.ndarray, zero_dm: str | None, out: np.ndarray) -> None:
    """Normalise and regress a block (n, nchans) too short for a mask; ``good`` and ``out`` are written."""
    # The mean of a constant channel may be rounded, which would leave it with noise.
    good &= (raw != raw[:1]).any(axis=0)
    data = raw.astype(np.float32)
    data -= data.mean(axis=0)
    for last in (False, True):
        noise = np.sqrt(np.square(data).mean(axis=0))
        good &= noise > 0
        data *= np.divide(1, noise, out=np.zeros_like(noise), where=good)
        if zero_dm and good.sum() > 1 and not last:
            series = data.sum(axis=1) / int(good.sum())
            coefficient = series @ data / max(series @ series, 1e-30) if zero_dm == "zdot" else good.astype(np.float32)
            data -= series[:, None] * coefficient
    if out.dtype == np.int8:
        quantise(data.T, len(out), out[:, : len(raw)])
    else:
        out[:, : len(raw)] = data.T


def figures_of_merit(sums: Sums, residuals: np.ndarray, good: np.ndarray) -> ChannelFigures:
    """Compute the figures of merit of all channels.

    Bins in which the whole band deviates at once (impulses, drop-outs) are excluded.

    Parameters
    ----------
    sums : Sums
        Statistics of the block.
    residuals : (n_bins, nchans) ndarray
        Means of the bins minus the baseline, in counts.
    good : (nchans,) ndarray of bool
        Channels in use.
    """
    level = np.where(good, sums.level, np.float32(1))
    weight = np.stack([1 / level**2, good.astype(np.float32) / max(1, int(good.sum()))])
    # White noise has a mean power of 1 / BIN. The last limit discounts a pulse, which fills a few bins however bright
    # it is; a carrier fills many.
    limits = (np.float32(CLIP**2), np.float32(4 / BIN + IMPULSE_THRESHOLD**2), np.float32(MAX_BIN_POWER / BIN))
    powers = np.empty((3, len(good)), np.float32)
    quiet_powers(residuals, sums.variances, weight, limits, powers)
    within, between, limited = powers
    return ChannelFigures(np.log(level), np.sqrt(within + between), BIN * limited, sums.skewness, sums.kurtosis)
