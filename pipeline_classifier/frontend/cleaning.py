"""Cleaning: raw samples to channels of zero mean and unit noise, with interference masked or subtracted."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from pipeline_classifier.frontend import dedispersion
from pipeline_classifier.frontend.baseline import CLIP, TILE, Interpolation, Sums, bin_sums, residual, running_baseline
from pipeline_classifier.frontend.blanking import constant_stretches, filled, in_float_range, out_of_range
from pipeline_classifier.frontend.channel_mask import ChannelFigures, narrow_band_signals, outlier_channels
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
        Samples of zero mean and unit noise; zero in masked channels, strong impulses and unusable samples.
    good : (nchans,) ndarray of bool
        Channels in use.
    not_finite, constant : (n,) ndarray of int32
        Number of channels whose sample is not finite or out of range, or in a constant stretch.
    """

    data: np.ndarray
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
    good = torch.from_numpy(~zapped(frequencies, settings.zaplist))
    bad, constant = out_of_range(block), None
    usable = block
    if bad is not None:
        usable, live = filled(block, bad)
        good &= torch.from_numpy(live)
    raw = torch.from_numpy(np.ascontiguousarray(usable))
    if n < FEWEST_SAMPLES:
        _store(_clean_short(raw, good, settings.zero_dm).t(), out[:, :n])
    else:
        sums = bin_sums(raw)
        constant = constant_stretches(usable, sums.variances.numpy())
        if constant is not None:
            usable, live = filled(block, constant if bad is None else constant | bad)
            good &= torch.from_numpy(live)
            raw = torch.from_numpy(usable)
            sums = bin_sums(raw)
        _clean_long(raw, sums, good, frequencies, tsamp, settings, out)
    for unusable in (bad, constant):
        if unusable is not None:
            out[:, :n][unusable.T] = 0
    count = (np.zeros(n, np.int32) if each is None else each.sum(axis=1, dtype=np.int32) for each in (bad, constant))
    return Cleaned(out, good.numpy(), *count)


def _clean_long(
    raw: torch.Tensor,
    sums: Sums,
    good: torch.Tensor,
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
    outlier = outlier_channels(figures, good.numpy(), settings.zap_threshold, settings.mask_threshold)
    good &= torch.from_numpy(~outlier)
    scale = torch.where(good, 1.0 / sums.level, 0.0)
    interpolation = Interpolation(n, step, len(nodes))
    if settings.zero_dm and good.any():
        noise = 1.4826 * float((residuals @ scale).abs().median()) / int(good.sum())
        zero_dm = zero_dm_series(raw, nodes, interpolation, scale, settings.zero_dm, noise, frequencies)
    else:
        zero_dm = ZeroDm(torch.zeros(n), torch.zeros(nchans), torch.ones(nchans), torch.zeros(n, dtype=torch.bool))
    _write(raw, nodes, interpolation, scale, zero_dm, out)
    if settings.kadane_channels:
        min_bins = int(settings.kadane_width_s / tsamp / BIN)
        for channels, samples in narrow_band_signals(
            residuals * scale, good, settings.kadane_channels, min_bins, settings.kadane_threshold
        ):
            out[channels, samples] = 0


def _clean_short(raw: torch.Tensor, good: torch.Tensor, zero_dm: str | None) -> torch.Tensor:
    """Normalise and regress a block (n, nchans) too short for a mask: (nchans, n); ``good`` is updated in place."""
    data = raw.to(torch.float32).t().contiguous()
    # The mean of a constant channel may be rounded, which would leave it with noise.
    good &= (data != data[:, :1]).any(dim=1)
    data -= data.mean(dim=1, keepdim=True)
    for last in (False, True):
        noise = data.square().mean(dim=1).sqrt()
        good &= noise > 0
        data *= torch.where(good, 1.0 / noise, 0.0)[:, None]
        if zero_dm and good.sum() > 1 and not last:
            series = data.sum(dim=0) / good.sum()
            if zero_dm == "zdot":
                coefficient = data @ series / (series @ series).clamp_min(1e-30)
            else:
                coefficient = good.to(torch.float32)
            data.addr_(coefficient, series, alpha=-1.0)
    return data


def figures_of_merit(sums: Sums, residuals: torch.Tensor, good: torch.Tensor) -> ChannelFigures:
    """Compute the figures of merit of all channels.

    Bins in which the whole band deviates at once (impulses, drop-outs) are excluded.

    Parameters
    ----------
    sums : Sums
        Statistics of the block.
    residuals : (n_bins, nchans) tensor
        Means of the bins minus the baseline, in counts.
    good : (nchans,) tensor of bool
        Channels in use.
    """
    level = torch.where(good, sums.level, 1.0)
    power = (residuals / level).square_()
    weight = good.to(torch.float32) / good.sum().clamp_min(1)
    # White noise has a mean power of 1 / BIN.
    quiet = power.clamp(max=CLIP**2) @ weight < 4.0 / BIN + IMPULSE_THRESHOLD**2
    weight = quiet.to(torch.float32) / quiet.sum().clamp_min(1)
    within = weight @ sums.variances[: len(residuals)] / level.square()
    between = weight @ power
    # The limit discounts a pulse, which fills a few bins however bright it is; a carrier fills many.
    low_frequency_excess = weight @ power.mul_(BIN).clamp_(max=MAX_BIN_POWER)
    return ChannelFigures(
        torch.log(level).numpy(),
        (within + between).sqrt().numpy(),
        low_frequency_excess.numpy(),
        sums.skewness.numpy(),
        sums.kurtosis.numpy(),
    )


def _write(
    raw: torch.Tensor,
    nodes: torch.Tensor,
    interpolation: Interpolation,
    scale: torch.Tensor,
    zero_dm: ZeroDm,
    out: np.ndarray,
) -> None:
    """Subtract baseline and zero-DM signal, normalise, blank and transpose: the third pass over a block."""
    n, nchans = raw.shape
    scale = scale / zero_dm.noise
    coefficient = torch.where(scale > 0, zero_dm.coefficient / zero_dm.noise, 0.0)
    series = F.pad(zero_dm.series, (0, -n % TILE)).view(-1, TILE, 1)
    # One matrix product per tile gives the sum of baseline and zero-DM signal.
    profiles = torch.cat([interpolation.weights, series], dim=2)
    spectra = interpolation.per_tile(nodes * scale)
    spectra = torch.cat([spectra, coefficient.expand(len(spectra), 1, nchans)], dim=1)
    blanked = F.pad(zero_dm.blanked, (0, -n % TILE)).view(-1, TILE)
    has_blanked = blanked.any(dim=1).tolist()
    x = torch.empty((TILE, nchans))
    for number, first in enumerate(range(0, n, TILE)):
        rows = raw[first : first + TILE]
        m = len(rows)
        tile = x[:m].copy_(rows).mul_(scale).addmm_(profiles[number, :m], spectra[number], alpha=-1.0)
        if has_blanked[number]:
            tile[blanked[number, :m]] = 0.0
        _store(tile, out[:, first : first + m])


def _store(samples: torch.Tensor, out: np.ndarray) -> None:
    """Transpose (n, nchans) float32 samples into ``out`` (nchans, n), quantised if that has an integer dtype."""
    if out.dtype.kind == "i":
        n, nchans = samples.shape
        # Rows a power of two apart compete for cache lines; 16 more bytes make the transposition twice as fast.
        integers = np.empty((n, nchans + 16), out.dtype)[:, :nchans]
        out[:] = dedispersion.quantise(samples, nchans, integers).T
    else:
        out[:] = samples.numpy().T
