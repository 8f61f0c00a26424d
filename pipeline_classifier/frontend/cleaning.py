"""Cleaning: from raw samples to channels of zero mean and unit noise, without the interference that can be told."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipeline_classifier.frontend import dedispersion
from pipeline_classifier.frontend.baseline import CLIP, TILE, Interpolation, Sums, bin_sums, residual, running_baseline
from pipeline_classifier.frontend.channel_mask import ChannelFigures, long_stretches, wild_channels
from pipeline_classifier.frontend.settings import BIN, Cleaning

FEWEST_SAMPLES = 256  # statistics of fewer samples than this mask no channel
SPIKE = 0.75  # sigma; a sample whose mean over the channels, each clipped, is beyond is interference
FOOT = 4.0  # sigma of the smoothed zero-DM series down to which a spike's surroundings belong to it
SMOOTHING = 9  # samples
BIN_POWER = 25.0  # most that one bin's mean, squared, may count in units of its variance
LARGEST = 1e15  # counts; powers of anything beyond leave float32


def downsample(
    block: np.ndarray, frequencies: np.ndarray, tsamp: float, td: int, fd: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Average ``td`` samples and ``fd`` channels; what is left over at the ends is dropped.

    Parameters
    ----------
    block : (n, nchans) samples as read
    frequencies : (nchans,) MHz
    tsamp : seconds

    Returns
    -------
    block : (n // td, nchans // fd) float32, or as it was if both factors are 1
    frequencies : (nchans // fd,) MHz, centres of the new channels
    tsamp : seconds
    """
    if td == fd == 1:
        return block, frequencies, tsamp
    n, nchans = len(block) // td, block.shape[1] // fd
    block = block[: n * td, : nchans * fd]
    channels = block.reshape(n * td, nchans, fd).mean(axis=2, dtype=np.float32) if fd > 1 else block
    averaged = channels.reshape(n, td, nchans).mean(axis=1, dtype=np.float32) if td > 1 else channels
    return averaged, frequencies[: nchans * fd].reshape(nchans, fd).mean(axis=1), tsamp * td


def zapped(frequencies: np.ndarray, zaplist: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Channels (nchans,) bool whose centre lies in a band [f_low, f_high] MHz of the zaplist."""
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
    block : (n, nchans) samples as read
    frequencies : (nchans,) MHz
    tsamp : seconds
    settings : what to do
    out : (nchans, >= n) memory for the result: float32, or int8, which gets what `dedispersion.quantise` makes of it.
        Columns past n become zero.

    Returns
    -------
    data : (nchans, n) float32, zero mean and unit noise in every channel; masked channels are zero. ``out`` if given.
    good : (nchans,) bool, channels in use

    Notes
    -----
    Sums over `BIN` samples give noise levels, baseline (`running_baseline`) and channel mask
    (`channel_mask.wild_channels`); a second pass gives the zero-DM series, a third one the result. Zero-DM regression:
    Men et al. 2019, MNRAS 488, 3957 (zdot); plain subtraction: Eatough et al. 2009, MNRAS 395, 410; samples of strong
    undispersed impulses become zero (`spikes`).
    """
    n, nchans = block.shape
    raw = torch.from_numpy(np.ascontiguousarray(block))
    good = torch.from_numpy(~zapped(frequencies, settings.zaplist))
    if raw.is_floating_point():
        finite = (raw.abs() < LARGEST).all(dim=0)
        raw = raw if finite.all() else torch.where(finite, raw, 0.0)
        good &= finite
    out = np.empty((nchans, n), dtype=np.float32) if out is None else out
    out[:, n:] = 0
    if n < FEWEST_SAMPLES:
        _store(_clean_short(raw, good, settings.zero_dm).t(), out[:, :n])
        return out, good.numpy()

    sums = bin_sums(raw)
    good &= sums.level > 0
    step, nodes = running_baseline(sums, good, settings.baseline_window_s / tsamp)
    rest = residual(sums, step, nodes)
    wild = wild_channels(figures(sums, rest, good), good.numpy(), settings.zap_threshold, settings.mask_threshold)
    good &= torch.from_numpy(~wild)
    scale = torch.where(good, 1.0 / sums.level, 0.0)
    between = Interpolation(n, step, len(nodes))
    if settings.zero_dm and good.any():
        noise = 1.4826 * float((rest @ scale).abs().median()) / int(good.sum())
        zero_dm = zero_dm_series(raw, nodes, between, scale, settings.zero_dm, noise)
    else:
        zero_dm = ZeroDm(torch.zeros(n), torch.zeros(nchans), torch.ones(nchans), torch.zeros(n, dtype=torch.bool))
    _write(raw, nodes, between, scale, zero_dm, out)
    if settings.kadane_channels:
        least = int(settings.kadane_width_s / tsamp / BIN)
        for channels, samples in narrow_band_signals(
            rest * scale, good, settings.kadane_channels, least, settings.kadane_threshold
        ):
            out[channels, samples] = 0
    return out, good.numpy()


def _clean_short(raw: torch.Tensor, good: torch.Tensor, zero_dm: str | None) -> torch.Tensor:
    """Too few samples for statistics: (nchans, n) of zero mean and unit variance; ``good`` changes in place."""
    data = raw.to(torch.float32).t().contiguous()
    data -= data.mean(dim=1, keepdim=True)
    for last in (False, True):
        noise = data.square().mean(dim=1).sqrt()
        good &= noise > 0
        data *= torch.where(good, 1.0 / noise, 0.0)[:, None]
        if zero_dm and good.sum() > 1 and not last:
            series = data.sum(dim=0) / good.sum()
            share = data @ series / (series @ series).clamp_min(1e-30) if zero_dm == "zdot" else good.to(torch.float32)
            data.addr_(share, series, alpha=-1.0)
    return data


def figures(sums: Sums, rest: torch.Tensor, good: torch.Tensor) -> ChannelFigures:
    """What tells bad channels; bins in which the whole band is off at once (impulses, drop-outs) do not count."""
    level = torch.where(good, sums.level, 1.0)
    power = (rest / level).square_()
    weight = good.to(torch.float32) / good.sum().clamp_min(1)
    usual = power.clamp(max=CLIP**2) @ weight < 4.0 / BIN + SPIKE**2
    weight = usual.to(torch.float32) / usual.sum().clamp_min(1)
    within = weight @ sums.variances[: len(rest)] / level.square()
    between = weight @ power
    # A pulse fills a few bins, however bright it is; a carrier many.
    slowness = weight @ power.mul_(BIN).clamp_(max=BIN_POWER)
    return ChannelFigures(
        torch.log(level).numpy(),
        (within + between).sqrt().numpy(),
        slowness.numpy(),
        sums.skewness.numpy(),
        sums.kurtosis.numpy(),
    )


@dataclass(frozen=True)
class ZeroDm:
    """What to subtract from every channel, and where.

    Attributes
    ----------
    series : (n,) mean over the good channels, sigma
    share : (nchans,) by which it is subtracted
    noise : (nchans,) noise of a channel after that, sigma
    blank : (n,) bool, samples to drop
    """

    series: torch.Tensor
    share: torch.Tensor
    noise: torch.Tensor
    blank: torch.Tensor


def zero_dm_series(
    raw: torch.Tensor, nodes: torch.Tensor, between: Interpolation, scale: torch.Tensor, kind: str, slow_noise: float
) -> ZeroDm:
    """The second pass over a block: its mean over the good channels, and each channel's least-squares share of it.

    In the regression the mean is clipped at `CLIP` sigma as an instrument variable, and samples beyond `SPIKE` take no
    part, so that the share is that of lasting interference and not of one impulse or one bright pulse.

    Parameters
    ----------
    raw : (n, nchans)
    nodes : (n_nodes, nchans) baseline, counts
    scale : (nchans,) by which samples less the baseline are to be multiplied; 0 for bad channels
    kind : "zdot" or "zero"
    slow_noise : robust sigma of the mean over `BIN` samples and the good channels
    """
    n, nchans = raw.shape
    n_good = int((scale > 0).sum())
    limit = max(SPIKE, 6.0 / n_good**0.5)
    clip = CLIP * max(slow_noise, n_good**-0.5)
    weight = scale / n_good
    tile_nodes = between.per_tile((nodes @ weight)[:, None])
    off = torch.bmm(between.weights, tile_nodes)[..., 0]
    series = torch.zeros_like(off)
    usual = torch.zeros_like(off)
    product = torch.zeros(nchans)
    x = torch.empty((TILE, nchans))
    for first, z, base, z_usual in zip(range(0, n, TILE), series, off, usual, strict=True):
        rows = raw[first : first + TILE]
        m = len(rows)
        tile = x[:m].copy_(rows)
        torch.mv(tile, weight, out=z[:m]).sub_(base[:m])
        torch.mul(z[:m].clamp(-clip, clip), z[:m].abs() <= limit, out=z_usual[:m])
        product.addmv_(tile.t(), z_usual[:m])
    power = (usual * series).sum().clamp_min(1e-30)
    of_nodes = torch.bmm(usual[:, None], between.weights)[:, 0]
    index = torch.tensor(between.first_node)[:, None] + torch.arange(of_nodes.shape[1])
    product -= torch.zeros(len(nodes)).index_add_(0, index.flatten(), of_nodes.flatten()) @ nodes
    share = scale * product / power
    subtracted = share if kind == "zdot" else (scale > 0).to(torch.float32)
    noise = (1.0 + power / n * subtracted * (subtracted - 2 * share)).clamp_min(0.25).sqrt()

    series = series.flatten()[:n]
    hits = torch.zeros(n, dtype=torch.bool)
    beyond = (series.abs() > limit).nonzero()[:, 0]
    if len(beyond):
        base = torch.bmm(between.weights.flatten(0, 1)[beyond, None], between.per_tile(nodes)[beyond // TILE])[:, 0]
        clipped = ((raw[beyond].to(torch.float32) - base) * scale).clamp_(-CLIP, CLIP).sum(dim=1) / n_good
        hits[beyond] = clipped.abs() > limit
    return ZeroDm(series, subtracted, noise, spikes(series, hits, n_good))


def spikes(series: torch.Tensor, hits: torch.Tensor, n_good: int) -> torch.Tensor:
    """Samples (n,) bool of undispersed impulses: the hits, and what is about them up to the foot of the impulse.

    A hit is a sample whose mean over all channels, each clipped at `CLIP` sigma, is beyond `SPIKE`: it is in most of
    the band at once. A dispersed pulse is in a part of the channels at a time, none of which counts more than `CLIP`.
    """
    if not hits.any():
        return hits
    smooth = F.avg_pool1d(series[None], SMOOTHING, 1, padding=SMOOTHING // 2)[0]
    high = hits | (smooth.abs() > FOOT / (n_good * SMOOTHING) ** 0.5)
    run = torch.cumsum(high & ~F.pad(high, (1, 0))[:-1], dim=0)
    with_hit = torch.zeros(int(run[-1]) + 1, dtype=torch.bool)
    with_hit[run[hits]] = True
    return high & with_hit[run]


def _write(
    raw: torch.Tensor,
    nodes: torch.Tensor,
    between: Interpolation,
    scale: torch.Tensor,
    zero_dm: ZeroDm,
    out: np.ndarray,
) -> None:
    """The third pass: baseline and zero-DM share off, scaled, dropped samples zero, channels in rows."""
    n, nchans = raw.shape
    scale = scale / zero_dm.noise
    share = torch.where(scale > 0, zero_dm.share / zero_dm.noise, 0.0)
    series = F.pad(zero_dm.series, (0, -n % TILE)).view(-1, TILE, 1)
    # Baseline and zero-DM share of a tile are one product of matrices.
    profiles = torch.cat([between.weights, series], dim=2)
    spectra = between.per_tile(nodes * scale)
    spectra = torch.cat([spectra, share.expand(len(spectra), 1, nchans)], dim=1)
    blank = F.pad(zero_dm.blank, (0, -n % TILE)).view(-1, TILE)
    has_blank = blank.any(dim=1).tolist()
    x = torch.empty((TILE, nchans))
    for number, first in enumerate(range(0, n, TILE)):
        rows = raw[first : first + TILE]
        m = len(rows)
        tile = x[:m].copy_(rows).mul_(scale).addmm_(profiles[number, :m], spectra[number], alpha=-1.0)
        if has_blank[number]:
            tile[blank[number, :m]] = 0.0
        _store(tile, out[:, first : first + m])


def _store(samples: torch.Tensor, out: np.ndarray) -> None:
    """Put (n, nchans) float32 to its place (nchans, n), quantised if that is of integers."""
    if out.dtype.kind == "i":
        n, nchans = samples.shape
        # Rows a power of two apart fall on the same few lines of the cache: 16 bytes more make turning twice as fast.
        integers = np.empty((n, nchans + 16), out.dtype)[:, :nchans]
        out[:] = dedispersion.quantise(samples, nchans, integers).T
    else:
        out[:] = samples.numpy().T


def narrow_band_signals(
    rest: torch.Tensor, good: torch.Tensor, together: int, least: int, threshold: float
) -> list[tuple[slice, slice]]:
    """Channels and samples of long signals in ``together`` neighbouring channels.

    Parameters
    ----------
    rest : (n_bins, nchans) means of `BIN` samples, sigma of one sample; 0 in bad channels
    least : bins that a signal must exceed
    """
    n_bins, nchans = rest.shape
    rest = (rest - (rest.sum(dim=1) / good.sum().clamp_min(1))[:, None]) * good * BIN**0.5
    rest = F.pad(rest, (0, -nchans % together)).view(n_bins, -1, together).sum(dim=2)
    members = F.pad(good.to(torch.float32), (0, -nchans % together)).view(-1, together).sum(dim=1)
    groups, starts, ends = long_stretches(rest / members.clamp_min(1).sqrt(), least, threshold)
    return [
        (slice(group * together, (group + 1) * together), slice(start * BIN, end * BIN))
        for group, start, end in zip(groups, starts, ends, strict=True)
    ]
