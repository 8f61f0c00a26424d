"""Find channels, and stretches of time in some channels, that contain interference."""

from dataclasses import dataclass

import numpy as np

from pipeline_classifier.frontend.settings import BIN

FLOORS = {
    "log_noise_excess": 0.3,
    "log_noise_deficit": 1.5,
    "impulsiveness": 0.15,
    "low_frequency_excess": 0.7,
    "skewness": 0.15,
    "kurtosis": 0.3,
}
"""Differences from the other channels below which no channel is masked, however similar those are.

Chosen by hand to exceed what a bright pulse causes. Pulses of S/N 100 in 256 channels from 1210 to 1530 MHz (102.4 us,
16384 samples; widths of 0.1 to 20 ms; DM 10 and 56.77 pc cm^-3, the latter also in 50 MHz of the band only) change the
log noise by at most 0.002, the impulsiveness by 0.05, the low-frequency excess by 0.3, the skewness by 0.07 and the
kurtosis by 0.16.
"""

RADIUS = 0.1
"""Fraction of the band within which IQRM compares channels, as recommended by its authors."""

SEGMENT_LENGTHS = 8
"""Length of the segments of `kadane_filter`, in units of the minimum length of a signal. Chosen by hand."""


@dataclass(frozen=True)
class ChannelFigures:
    """Figures of merit of each channel, all (nchans,) float32.

    Attributes
    ----------
    log_noise : ndarray
        Natural logarithm of the noise level in counts.
    impulsiveness : ndarray
        Root of the variance within and between bins, divided by the noise level, which outliers do not raise: 1.03 in
        white noise.
    low_frequency_excess : ndarray
        Low-frequency excess variance: variance of the bin means divided by that of white noise.
    skewness, kurtosis : ndarray
        Skewness and excess kurtosis.
    """

    log_noise: np.ndarray
    impulsiveness: np.ndarray
    low_frequency_excess: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray


def outlier_channels(
    figures: ChannelFigures, good: np.ndarray, zap_threshold: float, mask_threshold: float
) -> np.ndarray:
    """Find the channels with outlying figures of merit, by the tests `outside_quartiles` and `iqrm`.

    Parameters
    ----------
    figures : ChannelFigures
        Figures of all channels.
    good : (nchans,) ndarray of bool
        Channels to compare; with fewer than four, none is an outlier.
    zap_threshold : float
        Inter-quartile ranges beyond the quartiles of the band.
    mask_threshold : float
        Robust standard deviations of the differences between nearby channels.

    Returns
    -------
    (nchans,) ndarray of bool
    """
    outlier = np.zeros(len(good), dtype=bool)
    if good.sum() < 4:
        return outlier
    log_noise, impulsiveness, low_frequency, skewness, kurtosis = (
        getattr(figures, name)[good]
        for name in ("log_noise", "impulsiveness", "low_frequency_excess", "skewness", "kurtosis")
    )
    asymmetry = np.abs(skewness - np.median(skewness))
    whole_band = np.stack([impulsiveness, low_frequency, asymmetry, kurtosis, -kurtosis])
    floors = [FLOORS[name] for name in ("impulsiveness", "low_frequency_excess", "skewness", "kurtosis", "kurtosis")]
    found = outside_quartiles(whole_band, zap_threshold, np.array(floors))
    nearby = np.stack([log_noise, -log_noise, impulsiveness, low_frequency])
    names = ("log_noise_excess", "log_noise_deficit", "impulsiveness", "low_frequency_excess")
    found |= iqrm(nearby, mask_threshold, np.array([FLOORS[name] for name in names]))
    outlier[good] = found
    return outlier


def outside_quartiles(figures: np.ndarray, threshold: float, floors: np.ndarray) -> np.ndarray:
    """Find channels in which any figure lies too far above the upper quartile of the band.

    The test that TransientX applies to skewness and kurtosis (Men & Barr 2024, A&A 683, A183).

    Parameters
    ----------
    figures : (k, nchans) ndarray
        Large values indicate interference.
    threshold : float
        Inter-quartile ranges above the upper quartile.
    floors : (k,) ndarray
        Minimum excess over the median.

    Returns
    -------
    (nchans,) ndarray of bool
    """
    low, middle, high = np.quantile(figures, [0.25, 0.5, 0.75], axis=1)[..., None]
    limit = np.maximum(high + threshold * (high - low), middle + floors[:, None])
    return (figures > limit).any(axis=0)


def iqrm(figures: np.ndarray, threshold: float, floors: np.ndarray) -> np.ndarray:
    """Find channels in which any figure is too high compared with nearby channels.

    Inter-Quartile Range Mitigation (Morello et al. 2022, MNRAS 510, 1393). Each channel is compared with the channels
    at several lags. A channel votes against every one that exceeds it by more than the threshold. A vote counts if the
    channel that casts it casts fewer votes than its target receives. A slope across the band shifts all differences at
    one lag equally, and their median is subtracted, so a slope causes no votes.

    Parameters
    ----------
    figures : (k, nchans) ndarray
        Large values indicate interference.
    threshold : float
        Robust standard deviations of the differences at one lag.
    floors : (k,) ndarray
        Minimum difference.

    Returns
    -------
    (nchans,) ndarray of bool
    """
    nchans = figures.shape[1]
    lags = [1]
    while (lag := max(lags[-1] + 1, int(1.5 * lags[-1]))) <= RADIUS * nchans:
        lags.append(lag)
    voter = np.arange(nchans) + np.array([*lags, *(-lag for lag in lags)])[:, None]
    inside = (voter >= 0) & (voter < nchans)
    voter = voter.clip(0, nchans - 1)
    difference = figures[:, None, :] - figures[:, voter]
    ordered = np.sort(difference, axis=-1)
    low, middle, high = (ordered[..., quarter * nchans // 4, None] for quarter in (1, 2, 3))
    votes = inside & (difference - middle > np.maximum(threshold * (high - low) / 1.349, floors[:, None, None]))
    received = votes.sum(axis=1)
    cast = np.stack([np.bincount(voter.ravel(), of_figure.ravel(), nchans) for of_figure in votes])
    return (votes & (cast[:, voter] < received[:, None, :])).any(axis=(0, 1))


def kadane_filter(data: np.ndarray, min_length: int, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find stretches of time in which a channel deviates from zero, as TransientX's kadaneF does.

    Kadane's algorithm gives the contiguous range of samples with the largest sum: the largest rise of the cumulative
    sum above its minimum so far. It is applied to segments of time, for positive and for negative deviations.

    Parameters
    ----------
    data : (n, nchans) ndarray of float32
        Samples of zero mean and unit noise.
    min_length : int
        Samples that a stretch must exceed; chosen longer than any pulse.
    threshold : float
        S/N that a stretch must exceed.

    Returns
    -------
    channels, starts, ends : ndarray of int64
        Channel, first sample and end (exclusive) of each stretch.
    """
    n, nchans = data.shape
    length = min(n, SEGMENT_LENGTHS * min_length)
    if length < 1:
        return (np.empty(0, np.int64),) * 3
    n_segments = n // length
    segments = data[: n_segments * length].reshape(n_segments, length, nchans)
    total = np.zeros((2, n_segments, length + 1, nchans))
    np.cumsum([segments, -segments], axis=2, out=total[:, :, 1:])
    # Half the mean of the faintest detectable stretch is subtracted, or noise would lengthen a short bright pulse.
    position = np.arange(length + 1)[:, None]
    rising = total - 0.5 * threshold / np.sqrt(min_length) * position
    lowest = np.minimum.accumulate(rising, axis=2)
    where = np.maximum.accumulate(np.where(rising == lowest, position, 0), axis=2)
    end = (rising - lowest).argmax(axis=2, keepdims=True)
    start = np.take_along_axis(where, end, axis=2)
    width = end - start
    rise = np.take_along_axis(total, end, axis=2) - np.take_along_axis(total, start, axis=2)
    found = (width > min_length) & (rise / np.sqrt(np.maximum(width, 1)) > threshold)
    _, segment, _, channels = np.nonzero(found)
    return channels, segment * length + start[found], segment * length + end[found]


def narrow_band_signals(
    residuals: np.ndarray, good: np.ndarray, group_size: int, min_bins: int, threshold: float
) -> list[tuple[slice, slice]]:
    """Find long signals in groups of neighbouring channels.

    Parameters
    ----------
    residuals : (n_bins, nchans) ndarray
        Means over `BIN` samples in units of the noise of one sample; 0 in masked channels.
    good : (nchans,) ndarray of bool
        Channels in use.
    group_size : int
        Channels added up.
    min_bins : int
        Bins that a signal must exceed.
    threshold : float
        S/N that a signal must exceed.

    Returns
    -------
    list of (slice, slice)
        Channels and samples of each signal.
    """
    n_bins, nchans = residuals.shape
    common = residuals.sum(axis=1, keepdims=True) / max(1, int(good.sum()))
    padding = -nchans % group_size
    residuals = np.pad((residuals - common) * good * np.float32(BIN**0.5), ((0, 0), (0, padding)))
    grouped = residuals.reshape(n_bins, -1, group_size).sum(axis=2)
    members = np.pad(good, (0, padding)).reshape(-1, group_size).sum(axis=1)
    groups, starts, ends = kadane_filter(grouped / np.sqrt(np.maximum(members, 1)), min_bins, threshold)
    return [
        (slice(group * group_size, (group + 1) * group_size), slice(start * BIN, end * BIN))
        for group, start, end in zip(groups, starts, ends, strict=True)
    ]
