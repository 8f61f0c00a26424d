"""Cleaning: raw samples to channels of zero mean and unit noise, with interference masked or subtracted."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipeline_classifier.frontend import dedispersion
from pipeline_classifier.frontend.baseline import CLIP, TILE, Interpolation, Sums, bin_sums, residual, running_baseline
from pipeline_classifier.frontend.channel_mask import ChannelFigures, narrow_band_signals, outlier_channels
from pipeline_classifier.frontend.settings import BIN, Cleaning

FEWEST_SAMPLES = 256
"""Minimum length of a block whose statistics are used to mask channels."""

IMPULSE_THRESHOLD = 0.75
"""Mean over the channels, in sigma, above which a sample belongs to an undispersed impulse.

Every channel is clipped at `CLIP` = 3 sigma, so the mean exceeds 0.75 only if at least a quarter of the band is bright
at once. Chosen by hand; not tuned on data.
"""

EDGE_THRESHOLD = 4.0
"""Significance, in sigma, of the smoothed zero-DM series down to which an impulse extends. Chosen by hand."""

SMOOTHING = 9
"""Samples in the running mean that `EDGE_THRESHOLD` applies to. Chosen by hand."""

MAX_BIN_POWER = 25.0
"""Upper limit of one bin in the low-frequency excess variance, in units of its variance: 5 sigma. Chosen by hand."""

LARGEST = 1e15
"""Largest usable sample in counts; the powers of larger ones overflow float32."""


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


def clean(
    block: np.ndarray, frequencies: np.ndarray, tsamp: float, settings: Cleaning, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
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

    Returns
    -------
    data : (nchans, n) ndarray of float32
        Samples of zero mean and unit noise; masked channels are zero. This is ``out`` if that was given.
    good : (nchans,) ndarray of bool
        Channels in use.

    Notes
    -----
    Three passes over the block. The first (`bin_sums`) gives noise levels, baseline and channel mask; the second
    (`zero_dm_series`) the undispersed signal; the third writes the result. For ``zero_dm`` "zdot" each channel is
    regressed on the zero-DM series (Men et al. 2019, MNRAS 488, 3957), for "zero" the series is subtracted (Eatough et
    al. 2009, MNRAS 395, 410). Both set the samples of strong impulses to zero (`impulse_samples`).
    """
    n, nchans = block.shape
    raw = torch.from_numpy(np.ascontiguousarray(block))
    good = torch.from_numpy(~zapped(frequencies, settings.zaplist))
    if raw.is_floating_point():
        finite = (raw.abs() < LARGEST).all(dim=0)
        # A channel of zeros has no noise, and is masked as such.
        raw = raw if finite.all() else torch.where(finite, raw, 0.0)
    out = np.empty((nchans, n), dtype=np.float32) if out is None else out
    out[:, n:] = 0
    if n < FEWEST_SAMPLES:
        _store(_clean_short(raw, good, settings.zero_dm).t(), out[:, :n])
        return out, good.numpy()

    sums = bin_sums(raw)
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
        zero_dm = zero_dm_series(raw, nodes, interpolation, scale, settings.zero_dm, noise)
    else:
        zero_dm = ZeroDm(torch.zeros(n), torch.zeros(nchans), torch.ones(nchans), torch.zeros(n, dtype=torch.bool))
    _write(raw, nodes, interpolation, scale, zero_dm, out)
    if settings.kadane_channels:
        min_bins = int(settings.kadane_width_s / tsamp / BIN)
        for channels, samples in narrow_band_signals(
            residuals * scale, good, settings.kadane_channels, min_bins, settings.kadane_threshold
        ):
            out[channels, samples] = 0
    return out, good.numpy()


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


@dataclass(frozen=True)
class ZeroDm:
    """Undispersed signal to subtract from every channel.

    Attributes
    ----------
    series : (n,) tensor
        Mean over the good channels, each in units of its noise.
    coefficient : (nchans,) tensor
        Factor with which the series is subtracted from each channel.
    noise : (nchans,) tensor
        Noise of each channel after the subtraction, in units of the noise before.
    blanked : (n,) tensor of bool
        Samples to set to zero in all channels.
    """

    series: torch.Tensor
    coefficient: torch.Tensor
    noise: torch.Tensor
    blanked: torch.Tensor


def zero_dm_series(
    raw: torch.Tensor,
    nodes: torch.Tensor,
    interpolation: Interpolation,
    scale: torch.Tensor,
    kind: str,
    low_frequency_noise: float,
) -> ZeroDm:
    """Compute the zero-DM series and its regression coefficients: the second pass over a block.

    Parameters
    ----------
    raw : (n, nchans) tensor
        Samples as read.
    nodes : (n_nodes, nchans) tensor
        Baseline in counts.
    interpolation : Interpolation
        From the nodes to the samples.
    scale : (nchans,) tensor
        Reciprocal of the noise level in counts; 0 for masked channels.
    kind : {"zdot", "zero"}
        Regression or plain subtraction.
    low_frequency_noise : float
        Robust standard deviation of the mean over `BIN` samples and the good channels, in sigma.

    Notes
    -----
    With x_c(t) the normalised samples of channel c and z(t) their mean over the good channels, least squares for
    x_c = b_c z + w_c gives b_c = sum(x_c z) / sum(z^2). One bright pulse or impulse would dominate both sums, so one
    factor z is replaced by an instrumental variable u, which is z clipped at `CLIP` sigma, and 0 above the impulse
    threshold: b_c = sum(x_c u) / sum(z u).

    Subtracting a_c z (a_c = b_c for "zdot", a_c = 1 for "zero") leaves the variance

        var(x_c - a_c z) = var(x_c) - 2 a_c cov(x_c, z) + a_c^2 var(z) = 1 + var(z) a_c (a_c - 2 b_c),

    because var(x_c) = 1 and cov(x_c, z) = b_c var(z). The mean of z u stands for var(z). Interference on time scales
    longer than `BIN` samples is not part of the noise level, so that var(x_c) > 1. This is neglected: for such
    interference of 0.2 sigma the result has a noise of 1.02.
    """
    n, nchans = raw.shape
    n_good = int((scale > 0).sum())
    # With few channels, the mean of white noise must not exceed the threshold: its sigma is n_good**-0.5.
    threshold = max(IMPULSE_THRESHOLD, 6.0 / n_good**0.5)
    clip = CLIP * max(low_frequency_noise, n_good**-0.5)
    weight = scale / n_good
    tile_nodes = interpolation.per_tile((nodes @ weight)[:, None])
    baseline = torch.bmm(interpolation.weights, tile_nodes)[..., 0]
    series = torch.zeros_like(baseline)
    instrument = torch.zeros_like(baseline)
    product = torch.zeros(nchans)
    x = torch.empty((TILE, nchans))
    for first, z, base, u in zip(range(0, n, TILE), series, baseline, instrument, strict=True):
        rows = raw[first : first + TILE]
        m = len(rows)
        tile = x[:m].copy_(rows)
        torch.mv(tile, weight, out=z[:m]).sub_(base[:m])
        torch.mul(z[:m].clamp(-clip, clip), z[:m].abs() <= threshold, out=u[:m])
        product.addmv_(tile.t(), u[:m])
    power = (instrument * series).sum().clamp_min(1e-30)
    # The sum above is over raw samples; here that over the baseline is subtracted.
    node_weights = torch.bmm(instrument[:, None], interpolation.weights)[:, 0]
    index = torch.tensor(interpolation.first_node)[:, None] + torch.arange(node_weights.shape[1])
    product -= torch.zeros(len(nodes)).index_add_(0, index.flatten(), node_weights.flatten()) @ nodes
    least_squares = scale * product / power
    coefficient = least_squares if kind == "zdot" else (scale > 0).to(torch.float32)
    noise = (1.0 + power / n * coefficient * (coefficient - 2 * least_squares)).clamp_min(0.25).sqrt()

    series = series.flatten()[:n]
    impulses = torch.zeros(n, dtype=torch.bool)
    beyond = (series.abs() > threshold).nonzero()[:, 0]
    if len(beyond):
        weights = interpolation.weights.flatten(0, 1)[beyond, None]
        base = torch.bmm(weights, interpolation.per_tile(nodes)[beyond // TILE])[:, 0]
        clipped = ((raw[beyond].to(torch.float32) - base) * scale).clamp_(-CLIP, CLIP).sum(dim=1) / n_good
        impulses[beyond] = clipped.abs() > threshold
    return ZeroDm(series, coefficient, noise, impulse_samples(series, impulses, n_good))


def impulse_samples(series: torch.Tensor, impulses: torch.Tensor, n_good: int) -> torch.Tensor:
    """Extend undispersed impulses to their edges.

    Parameters
    ----------
    series : (n,) tensor
        Zero-DM series in sigma.
    impulses : (n,) tensor of bool
        Samples whose mean over all channels, each clipped at `CLIP` sigma, exceeds the impulse threshold: most of the
        band is bright at once. A dispersed pulse is in a part of the channels at a time.
    n_good : int
        Channels in the series.

    Returns
    -------
    (n,) tensor of bool
        The impulses and the adjacent samples in which the smoothed series exceeds `EDGE_THRESHOLD`.
    """
    if not impulses.any():
        return impulses
    smooth = F.avg_pool1d(series[None], SMOOTHING, 1, padding=SMOOTHING // 2)[0]
    high = impulses | (smooth.abs() > EDGE_THRESHOLD / (n_good * SMOOTHING) ** 0.5)
    run = torch.cumsum(high & ~F.pad(high, (1, 0))[:-1], dim=0)
    has_impulse = torch.zeros(int(run[-1]) + 1, dtype=torch.bool)
    has_impulse[run[impulses]] = True
    return high & has_impulse[run]


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
