"""Cleaning on a GPU: the passes of `frontend.cleaning` in torch, on whole blocks."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pipeline_classifier.frontend import cleaning
from pipeline_classifier.frontend.baseline import CLIP, OUTLIERS, TILE
from pipeline_classifier.frontend.blanking import OUT_OF_RANGE, SHORTEST_BINS, in_float_range, typical_size
from pipeline_classifier.frontend.channel_mask import ChannelFigures, narrow_band_signals, outlier_channels
from pipeline_classifier.frontend.cleaning import Cleaned
from pipeline_classifier.frontend.dedispersion import LEVELS_PER_SIGMA, largest_level
from pipeline_classifier.frontend.impulses import (
    IMPULSE_THRESHOLD,
    SHORTEST_SWEEP,
    SUB_BANDS,
    dispersed_runs,
    impulse_samples,
    impulse_threshold,
    is_dispersed,
    runs_of,
    sub_band_of_channel,
)
from pipeline_classifier.frontend.settings import BIN, Cleaning
from pipeline_classifier.frontend.zero_dm import BESIDE_IMPULSES, SIGNIFICANT


class Statistics(NamedTuple):
    """Statistics of the bins of a block, as `frontend.baseline.Sums`, on the device."""

    centre: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor
    level: torch.Tensor
    skewness: torch.Tensor
    kurtosis: torch.Tensor


def clean(raw: torch.Tensor, frequencies: np.ndarray, tsamp: float, settings: Cleaning) -> Cleaned:
    """Clean one block of an observation on the device of ``raw``.

    Parameters
    ----------
    raw : (n, nchans) tensor
        Samples as read.
    frequencies : (nchans,) ndarray
        Channel centres in MHz.
    tsamp : float
        Sampling time in seconds.
    settings : Cleaning
        Methods and thresholds.

    Returns
    -------
    Cleaned
        With the samples as a tensor of int8 on the device, in `LEVELS_PER_SIGMA` steps per sigma.

    Notes
    -----
    The method and its results are those of `frontend.cleaning.clean`, which also cleans the rare blocks that are very
    short or have unusable samples. Samples differ in at most one of 10,000, by one step, where sums are rounded
    otherwise.
    """
    n, nchans = raw.shape
    samples = None if n < cleaning.FEWEST_SAMPLES else _in_range(raw)
    statistics = None if samples is None else bin_statistics(samples)
    if samples is None or statistics is None or _has_constant_stretches(statistics.variances):
        out = np.empty((nchans, n), np.int8)
        _, *rest = cleaning.clean(raw.cpu().numpy(), frequencies, tsamp, settings, out)
        return Cleaned(torch.from_numpy(out).to(raw.device), *rest)
    good = ~cleaning.zapped(frequencies, settings.zaplist) & (statistics.level > 0).cpu().numpy()
    step, nodes = running_baseline(statistics, good, settings.baseline_window_s / tsamp)
    residuals = residual(statistics, step, nodes)
    figures = figures_of_merit(statistics, residuals, good)
    good &= ~outlier_channels(figures, good, settings.zap_threshold, settings.mask_threshold)
    scale = torch.where(torch.from_numpy(good).to(raw.device), 1 / statistics.level, 0.0)
    normalised = (samples - interpolated(nodes, step, n)) * scale
    scaled = (residuals * scale).cpu().numpy()
    if settings.zero_dm and good.any():
        noise = 1.4826 * float(np.median(np.abs(scaled.sum(axis=1)))) / int(good.sum())
        subtract_zero_dm(normalised, good, settings.zero_dm, noise, frequencies)
    limit = largest_level(nchans)
    data = (normalised * LEVELS_PER_SIGMA).round_().clamp_(-limit, limit).to(torch.int8).t().contiguous()
    if settings.kadane_channels:
        min_bins = int(settings.kadane_width_s / tsamp / BIN)
        for channels, times in narrow_band_signals(
            scaled, good, settings.kadane_channels, min_bins, settings.kadane_threshold
        ):
            data[channels, times] = 0
    return Cleaned(data, good, *np.zeros((2, n), np.int32))


def _in_range(raw: torch.Tensor) -> torch.Tensor | None:
    """Samples as float32, scaled as by `in_float_range`; None if one is not finite or out of range."""
    if not raw.is_floating_point():
        return raw.to(torch.float32)
    subset = raw[:: max(1, len(raw) // 64)].cpu().numpy()
    scaled, factor = in_float_range(subset)
    samples = raw.to(torch.float32) * factor
    return samples if float(samples.abs().max()) <= OUT_OF_RANGE * typical_size(scaled) else None


def _has_constant_stretches(variances: torch.Tensor) -> bool:
    """Find out whether there may be stretches for `constant_stretches`."""
    mean = variances.mean(dim=0)
    constant = (variances <= 0.01 * mean) & (mean > 0)
    return bool(constant.unfold(0, SHORTEST_BINS, 1).all(dim=2).any())


def bin_statistics(samples: torch.Tensor) -> Statistics:
    """Compute the statistics of a block (n, nchans) of float32, as `frontend.baseline.bin_sums`."""
    n, nchans = len(samples) // BIN * BIN, samples.shape[1]
    subset = samples[:: max(1, len(samples) // 64)]
    centre, std = subset.mean(dim=0), subset.std(dim=0, correction=0)
    middle = subset.median(dim=0).values
    spread = 1.4826 * (subset - middle).abs().median(dim=0).values
    has_outliers = (spread > 0) & (std > OUTLIERS * spread)
    centre, std = torch.where(has_outliers, middle, centre), torch.where(has_outliers, spread, std)
    std = torch.where(std > 0, std, 1.0)
    bins = samples[:n].view(-1, BIN, nchans)
    # Of differences from the first sample, the variance of a constant is exactly zero.
    variances, means = torch.var_mean(bins - bins[:, :1], dim=1)
    means += bins[:, 0] - centre
    n_tiles, length = max(1, n // TILE), min(TILE, n)
    tiles = samples[: n_tiles * length].view(n_tiles, length, nchans)[:: 2 if n_tiles > 8 else 1]
    tiles = (tiles[:, : length // BIN // 2 * BIN] - centre) / std
    mean, second, third, fourth = (tiles.pow(power).mean(dim=1) for power in (1, 2, 3, 4))
    variance = (second - mean**2).clamp_min(1e-12)
    skewness = (third - 3 * mean * second + 2 * mean**3) / variance**1.5
    kurtosis = (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2 - 3
    typical = variances[:: max(1, len(variances) // 64)].median(dim=0).values
    typical = torch.where(typical > 0, typical, variances.mean(dim=0))
    level = torch.minimum(variances, 2.5 * typical).mean(dim=0).sqrt()
    usable = (level > 1e-6 * std) & torch.isfinite(level)
    means, variances, level = (torch.where(usable, values, 0.0) for values in (means, variances, level))
    higher = (moment.median(dim=0).values.nan_to_num() for moment in (skewness, kurtosis))
    return Statistics(centre, means, variances, level, *higher)


def running_baseline(statistics: Statistics, good: np.ndarray, window: float) -> tuple[int, torch.Tensor]:
    """Compute the nodes of the baseline and the samples between two, as `frontend.baseline.running_baseline`."""
    n_bins, nchans = statistics.means.shape
    whole_block = not 1 <= window < n_bins * BIN
    step = max(1, n_bins // 5 if whole_block else round(window / 5 / BIN))
    n_steps = n_bins // step
    bins = statistics.means[: n_steps * step].view(n_steps, step, nchans)
    median = F.pad(bins.mean(dim=1).t()[None], (2, 2), mode="replicate")[0].t().unfold(0, 5, 1).median(dim=2).values
    limit = CLIP / BIN**0.5 * statistics.level
    deviation = (bins - median[:, None]).clamp(-limit, limit)
    weight = torch.where(torch.from_numpy(good).to(limit.device), 1 / limit, 0.0) / max(1, int(good.sum()))
    deviation *= (deviation * weight).sum(dim=2, keepdim=True).abs() <= 0.5
    nodes = median + deviation.mean(dim=1)
    if whole_block:
        nodes = nodes.mean(dim=0, keepdim=True)
    else:
        nodes = F.avg_pool1d(nodes.t()[None], 5, 1, padding=2, count_include_pad=False)[0].t()
    return step * BIN, nodes + statistics.centre


def residual(statistics: Statistics, step: int, nodes: torch.Tensor) -> torch.Tensor:
    """Subtract the baseline from the means of the bins, as `frontend.baseline.residual`."""
    nodes = nodes - statistics.centre
    if len(nodes) == 1:
        return statistics.means - nodes
    per_bin = nodes.repeat_interleave(step // BIN, dim=0)
    return statistics.means[: len(per_bin)] - per_bin


def figures_of_merit(statistics: Statistics, residuals: torch.Tensor, good: np.ndarray) -> ChannelFigures:
    """Compute the figures of merit of all channels, as `frontend.cleaning.figures_of_merit`."""
    mask = torch.from_numpy(good).to(residuals.device)
    level = torch.where(mask, statistics.level, 1.0)
    power = (residuals / level).square()
    share = power.clamp(max=CLIP**2)[:, mask].sum(dim=1) / max(1, int(good.sum()))
    quiet = share < 4.0 / BIN + IMPULSE_THRESHOLD**2
    count = quiet.sum().clamp_min(1)
    variances, power = statistics.variances[: len(power)][quiet], power[quiet]
    within, between = variances.sum(dim=0) / count / level.square(), power.sum(dim=0) / count
    excess = (BIN * power).clamp(max=cleaning.MAX_BIN_POWER).sum(dim=0) / count
    figures = level.log(), (within + between).sqrt(), excess, statistics.skewness, statistics.kurtosis
    return ChannelFigures(*torch.stack(figures).cpu().numpy())


def interpolated(nodes: torch.Tensor, step: int, n: int) -> torch.Tensor:
    """Baseline (n, nchans): linear between the nodes, constant before the first and after the last one."""
    position = ((torch.arange(n, device=nodes.device, dtype=torch.float64) + 0.5) / step - 0.5).clamp(0, len(nodes) - 1)
    before = position.to(torch.int64)
    late = (position - before).to(torch.float32)[:, None]
    return (1 - late) * nodes[before] + late * nodes[(before + 1).clamp_max(len(nodes) - 1)]


def subtract_zero_dm(
    normalised: torch.Tensor, good: np.ndarray, kind: str, low_frequency_noise: float, frequencies: np.ndarray
) -> None:
    """Subtract the undispersed signal and blank strong impulses, in place, as `frontend.zero_dm` and its notes.

    Parameters
    ----------
    normalised : (n, nchans) tensor
        Samples minus the baseline, in units of the noise; zero in masked channels. Overwritten with the result, in
        units of its noise.
    good : (nchans,) ndarray of bool
        Channels in use.
    kind : {"zdot", "zero"}
        Regression or plain subtraction.
    low_frequency_noise : float
        Robust standard deviation of the mean over `BIN` samples and the good channels, in sigma.
    frequencies : (nchans,) ndarray
        Channel centres in MHz.
    """
    n, n_good, mask = len(normalised), int(good.sum()), torch.from_numpy(good).to(normalised.device)
    series = normalised.sum(dim=1) / n_good
    clip = CLIP * max(low_frequency_noise, n_good**-0.5)
    size = F.max_pool1d(series.abs()[None], 2 * BESIDE_IMPULSES + 1, 1, padding=BESIDE_IMPULSES)[0]
    instrument = series.clamp(-clip, clip) * (size <= impulse_threshold(n_good))
    power = (instrument * series).sum().clamp_min(1e-30)
    least_squares = instrument @ normalised / power
    coefficient = least_squares if kind == "zdot" else mask.to(torch.float32)
    noise = (1.0 + power / n * coefficient * (coefficient - 2 * least_squares)).clamp_min(0.25).sqrt()
    blanked = _clip_and_find_impulses(normalised, series, n_good, frequencies)
    normalised.sub_(series[:, None] * coefficient).div_(noise)
    normalised[torch.from_numpy(blanked).to(normalised.device)] = 0


def _clip_and_find_impulses(
    normalised: torch.Tensor, series: torch.Tensor, n_good: int, frequencies: np.ndarray
) -> np.ndarray:
    """Clip every channel in the significant samples of the series, in place; return the samples to set to zero."""
    significant = (series.abs() > SIGNIFICANT / n_good**0.5).nonzero()[:, 0]
    series[significant] = normalised[significant].clamp_(-CLIP, CLIP).sum(dim=1) / n_good
    values = series.cpu().numpy()
    blanked = impulse_samples(values, np.abs(values) > impulse_threshold(n_good), n_good)
    members = F.one_hot(torch.from_numpy(sub_band_of_channel(frequencies)), SUB_BANDS).to(series)

    def sub_bands(samples: np.ndarray) -> np.ndarray:
        return (normalised[torch.from_numpy(samples).to(series.device)].clamp(-CLIP, CLIP) @ members).cpu().numpy()

    for first, end in runs_of(blanked).tolist():
        if end - first >= SHORTEST_SWEEP and values[first:end].sum() > 0:
            blanked[first:end] &= not is_dispersed(sub_bands(np.arange(first, end)).T)
    for first, end in dispersed_runs(values, n_good, sub_bands):
        series[first:end], blanked[first:end] = 0, False
    return blanked
