"""Cleaning: from raw samples to channels of zero mean and unit noise, without the interference that can be told."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

CLIP = 3.0  # sigma; a pulse must not raise the baseline or the noise that is subtracted from under it
STATISTICS_BIN = 16  # samples averaged to see slow changes of one channel
FEWEST_SAMPLES = 256  # statistics of fewer samples than this mask no channel


@dataclass(frozen=True)
class Cleaning:
    """What to clean.

    Attributes
    ----------
    baseline_window_s : length of the running mean that is subtracted from every channel; 0 subtracts the mean alone.
        Pulses must be shorter: one of a tenth of the window loses about a tenth of its S/N.
    zero_dm : regress every channel against the mean of all channels (zdot), which takes out undispersed interference.
    channel_threshold : robust sigmas at which a channel's statistic is out of line with the other channels'.
    zaplist : [[f_low, f_high], ...] in MHz, bands that are never used.
    """

    baseline_window_s: float = 0.2
    zero_dm: bool = True
    channel_threshold: float = 5.0
    zaplist: tuple[tuple[float, float], ...] = ()


def clean(
    block: np.ndarray, frequencies: np.ndarray, tsamp: float, settings: Cleaning
) -> tuple[np.ndarray, np.ndarray]:
    """Clean one block of an observation.

    Parameters
    ----------
    block : (n, nchans) samples as read
    frequencies : (nchans,) MHz
    tsamp : seconds
    settings : what to do

    Returns
    -------
    data : (nchans, n) float32, zero mean and unit noise in every channel; masked channels are zero
    good : (nchans,) bool, channels in use

    Notes
    -----
    Channel masking compares, with the other channels', the noise level (against a running median over the band), the
    ratio of the standard deviation to that of the clipped samples (impulses), and the variance of means over
    `STATISTICS_BIN` samples (slow or periodic carriers), in the manner of IQRM (Morello et al. 2022, MNRAS 510, 1393);
    limits are set with the median absolute deviation. Zero-DM regression: Men et al. 2019, MNRAS 488,
    3957 (zero-DM matched filter); the plain subtraction is Eatough et al. 2009, MNRAS 395, 410.
    """
    data = torch.from_numpy(np.ascontiguousarray(block.T)).to(torch.float32)
    finite = torch.isfinite(data).all(dim=1)
    data[~finite] = 0.0
    data -= data.mean(dim=1, keepdim=True)
    level = clipped_std(data)
    good = finite & (level > 0) & ~torch.from_numpy(zapped(frequencies, settings.zaplist))
    data *= torch.where(good, 1.0 / level, 0.0)[:, None]

    subtract_baseline(data, max(1, round(settings.baseline_window_s / tsamp)))
    if data.shape[1] >= FEWEST_SAMPLES:
        good &= ~wild_channels(data, level, good, settings.channel_threshold)
        data[~good] = 0.0
    if settings.zero_dm:
        regress_zero_dm(data, good)
    noise = clipped_std(data)
    good &= noise > 0
    data *= torch.where(good, 1.0 / noise, 0.0)[:, None]
    return data.numpy(), good.numpy()


def zapped(frequencies: np.ndarray, zaplist: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Channels (nchans,) bool whose centre lies in a band [f_low, f_high] MHz of the zaplist."""
    mask = np.zeros(len(frequencies), dtype=bool)
    for low, high in zaplist:
        mask |= (frequencies >= low) & (frequencies <= high)
    return mask


def clipped_std(data: torch.Tensor) -> torch.Tensor:
    """Standard deviation about zero (nchans,) of every fourth sample, with outliers clipped at `CLIP` sigma."""
    sample = data[:, ::4] if data.shape[1] >= 4 * FEWEST_SAMPLES else data
    std = sample.square().mean(dim=1).sqrt()
    for _ in range(3):
        limit = (CLIP * std)[:, None]
        std = torch.minimum(sample.abs(), limit).square().mean(dim=1).sqrt()
    return std


def subtract_baseline(data: torch.Tensor, window: int) -> None:
    """Subtract from each channel of (nchans, n), in place, the running mean over ``window`` clipped samples."""
    n = data.shape[1]
    clipped = data.clamp(-CLIP, CLIP)
    if window <= 1 or window >= n:
        data -= clipped.mean(dim=1, keepdim=True)
        return
    step = max(1, window // 5)
    fine = F.avg_pool1d(clipped[None], step, step, ceil_mode=True)
    running = F.avg_pool1d(fine, 5, 1, padding=2, count_include_pad=False)
    stretched = F.interpolate(running, size=running.shape[2] * step, mode="linear", align_corners=False)
    data -= stretched[0, :, :n]


def wild_channels(data: torch.Tensor, level: torch.Tensor, good: torch.Tensor, threshold: float) -> torch.Tensor:
    """Channels (nchans,) bool whose statistics are out of line with the band's.

    Parameters
    ----------
    data : (nchans, n) of unit noise
    level : (nchans,) noise level of the raw samples, counts
    good : (nchans,) bool, the channels to compare
    threshold : robust sigmas
    """
    clipped = clipped_std(data).clamp_min(1e-6)
    impulses = data.square().mean(dim=1).sqrt() / clipped
    means = F.avg_pool1d(data[None], STATISTICS_BIN)[0]
    slow = means.square().mean(dim=1) * STATISTICS_BIN / clipped.square()
    loudness = torch.log(level.clamp_min(1e-6)) - running_median(torch.log(level.clamp_min(1e-6)), good, 31)
    wild = torch.zeros_like(good)
    # The floors keep a bright or band-limited pulse, which raises these figures a little, from being masked.
    for statistic, floor, two_sided in ((loudness, 0.3, True), (impulses, 0.15, False), (slow, 0.7, False)):
        centre = statistic[good].median() if good.any() else torch.tensor(0.0)
        spread = 1.4826 * (statistic[good] - centre).abs().median() if good.any() else torch.tensor(0.0)
        excess = statistic - centre
        wild |= (excess.abs() if two_sided else excess) > torch.clamp(threshold * spread, min=floor)
    return wild


def running_median(values: torch.Tensor, good: torch.Tensor, width: int) -> torch.Tensor:
    """Median of ``values`` (nchans,) over the ``width`` neighbouring channels, among the good ones alone."""
    known = torch.where(good, values, torch.nan)
    padded = F.pad(known, (width // 2, width // 2), value=torch.nan)
    median = padded.unfold(0, width, 1).nanmedian(dim=1).values
    return torch.nan_to_num(median)


def regress_zero_dm(data: torch.Tensor, good: torch.Tensor) -> None:
    """Subtract from each good channel, in place, its least-squares share of the mean over all good channels."""
    if good.sum() < 2:
        return
    zero_dm = data.sum(dim=0) / good.sum()
    power = zero_dm @ zero_dm
    if power > 0:
        share = (data @ zero_dm) / power
        data.addr_(share, zero_dm, alpha=-1.0)
