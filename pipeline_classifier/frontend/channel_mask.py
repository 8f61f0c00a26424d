"""Which channels, and which stretches of some channels, are interference: by comparison with the rest of the band."""

from dataclasses import dataclass

import numpy as np
import torch

# Differences from the other channels below these are never masked, however alike those are: a bright or band-limited
# pulse raises a channel's figures by less.
FLOORS = {"loudness": 0.3, "quietness": 1.5, "impulses": 0.15, "slowness": 0.7, "skewness": 0.15, "kurtosis": 0.3}
RADIUS = 0.1  # share of the band within which IQRM compares channels, as in its paper
PIECES = 8  # a stretch in a channel is sought in pieces of time of this many times its least length


@dataclass(frozen=True)
class ChannelFigures:
    """What `figures_of_merit` says about each channel, all (nchans,) float64.

    Attributes
    ----------
    loudness : logarithm of the noise level in counts
    impulses : standard deviation over that which outliers do not raise
    slowness : variance of the means of bins over that of white noise
    skewness, kurtosis : third and fourth standardised moment, the latter less 3
    """

    loudness: np.ndarray
    impulses: np.ndarray
    slowness: np.ndarray
    skewness: np.ndarray
    kurtosis: np.ndarray


def wild_channels(figures: ChannelFigures, good: np.ndarray, zap_threshold: float, mask_threshold: float) -> np.ndarray:
    """Channels (nchans,) bool whose figures are out of line, by both tests.

    Parameters
    ----------
    figures : of all channels
    good : (nchans,) bool, those to compare
    zap_threshold : inter-quartile ranges past the quartiles of the band (`outside_quartiles`)
    mask_threshold : robust sigmas of differences between near channels (`iqrm`)
    """
    wild = np.zeros(len(good), dtype=bool)
    if good.sum() < 4:
        return wild
    rows = {name: getattr(figures, name)[good] for name in ("loudness", "impulses", "slowness", "skewness", "kurtosis")}
    over_band = [rows["impulses"], rows["slowness"], np.abs(rows["skewness"] - np.median(rows["skewness"]))]
    over_band += [rows["kurtosis"], -rows["kurtosis"]]
    floors = [FLOORS[name] for name in ("impulses", "slowness", "skewness", "kurtosis", "kurtosis")]
    found = outside_quartiles(np.stack(over_band), zap_threshold, np.array(floors))
    near = np.stack([rows["loudness"], -rows["loudness"], rows["impulses"], rows["slowness"]])
    floors = [FLOORS[name] for name in ("loudness", "quietness", "impulses", "slowness")]
    found |= iqrm(near, mask_threshold, np.array(floors))
    wild[good] = found
    return wild


def outside_quartiles(figures: np.ndarray, threshold: float, floors: np.ndarray) -> np.ndarray:
    """Channels (nchans,) in which any of ``figures`` (k, nchans) lies too far above the band's upper quartile.

    The test of TransientX's zap for skewness and kurtosis (Men & Barr 2024, A&A 683, A183).

    Parameters
    ----------
    threshold : inter-quartile ranges past the quartile
    floors : (k,) least excess over the median
    """
    low, middle, high = np.quantile(figures, [0.25, 0.5, 0.75], axis=1)[..., None]
    limit = np.maximum(high + threshold * (high - low), middle + floors[:, None])
    return (figures > limit).any(axis=0)


def iqrm(figures: np.ndarray, threshold: float, floors: np.ndarray) -> np.ndarray:
    """Channels (nchans,) in which any of ``figures`` (k, nchans) is too high beside that of near channels.

    Inter-Quartile Range Mitigation (Morello et al. 2022, MNRAS 510, 1393): each channel is compared with those at
    several lags; one that exceeds another receives its vote, which counts if the other casts fewer votes than this one
    receives. A slope over the band shifts all differences at a lag alike, and so wins no votes.

    Parameters
    ----------
    threshold : robust standard deviations of the differences at one lag
    floors : (k,) least difference that counts
    """
    nchans = figures.shape[1]
    lags = [1]
    while (lag := max(lags[-1] + 1, int(1.5 * lags[-1]))) <= RADIUS * nchans:
        lags.append(lag)
    other = np.arange(nchans) + np.array([*lags, *(-lag for lag in lags)])[:, None]
    inside = (other >= 0) & (other < nchans)
    other = other.clip(0, nchans - 1)
    difference = figures[:, None, :] - figures[:, other]
    ordered = np.sort(difference, axis=-1)
    low, middle, high = (ordered[..., part * nchans // 4, None] for part in (1, 2, 3))
    accused = inside & (difference - middle > np.maximum(threshold * (high - low) / 1.349, floors[:, None, None]))
    received = accused.sum(axis=1)
    cast = np.stack([np.bincount(other.ravel(), votes.ravel(), nchans) for votes in accused])
    return (accused & (cast[:, other] < received[:, None, :])).any(axis=(0, 1))


def long_stretches(data: torch.Tensor, least: int, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stretches of time in which a channel is off: the Kadane filter along time of TransientX (kadaneF).

    In each piece of time the contiguous sum of samples that is largest (Kadane's algorithm: the largest rise of the
    running sum above its least value before) is found, for excess and for lack.

    Parameters
    ----------
    data : (n, nchans) float32 of zero mean and unit noise
    least : samples that a stretch must exceed, so that no pulse is one
    threshold : S/N of a stretch

    Returns
    -------
    channels, starts, ends : of each stretch
    """
    n, nchans = data.shape
    length = min(n, PIECES * least)
    n_pieces = n // length
    if n_pieces == 0 or least < 1:
        return (np.empty(0, np.int64),) * 3
    pieces = data[: n_pieces * length].view(n_pieces, length, nchans)
    pieces = torch.stack([pieces, -pieces])
    total = torch.nn.functional.pad(pieces.cumsum(dim=2), (0, 0, 1, 0))
    # Half the mean level of the faintest stretch is taken off, or else noise around a short bright pulse lengthens it.
    drift = 0.5 * threshold / np.sqrt(least)
    rising = total - drift * torch.arange(length + 1)[:, None]
    lowest, where = rising.cummin(dim=2)
    end = (rising - lowest).argmax(dim=2, keepdim=True)
    start = where.gather(2, end)
    width = end - start
    snr = (total.gather(2, end) - total.gather(2, start)) / width.clamp_min(1).sqrt()
    found = ((width > least) & (snr > threshold)).numpy()
    _, piece, _, channels = np.nonzero(found)
    starts, ends = (piece * length + edge.numpy()[found] for edge in (start, end))
    return channels, starts, ends
