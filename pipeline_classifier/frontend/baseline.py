"""Noise level and running baseline of every channel, from statistics of short bins."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pipeline_classifier.frontend.settings import BIN

TILE = 2048
"""Samples processed at once. Long tiles mean few calls: concurrent threads slow each other down at every call."""

CLIP = 3.0
"""Deviation, in sigma, at which one sample or bin is clipped in a mean. Chosen by hand; not tuned on data."""

OUTLIERS = 30.0
"""Standard deviation of a channel, in units of its robust one, from which outliers dominate it. Chosen by hand."""


@dataclass(frozen=True)
class Sums:
    """Statistics of a block of n samples, all float32.

    Attributes
    ----------
    centre : (nchans,) tensor
        A value near the mean or median of each channel, in counts.
    means : (n // BIN, nchans) tensor
        Means over `BIN` samples, minus ``centre``, in counts.
    variances : (n // BIN, nchans) tensor
        Variance within each bin, in counts squared.
    level : (nchans,) tensor
        Noise level in counts: root of the mean variance within a bin, each clipped at 2.5 times their median. Zero if
        the channel has no noise.
    skewness, kurtosis : (nchans,) tensor
        Skewness and excess kurtosis, as medians over tiles: a single pulse, however bright, does not change them.
    """

    centre: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor
    level: torch.Tensor
    skewness: torch.Tensor
    kurtosis: torch.Tensor


def bin_sums(raw: torch.Tensor) -> Sums:
    """Compute the statistics of a block: the first of three passes.

    Parameters
    ----------
    raw : (n, nchans) tensor
        Samples as read, of any real dtype; n must be at least `BIN`.

    Returns
    -------
    Sums
        Samples after the last whole bin do not contribute.
    """
    n, nchans = len(raw) // BIN * BIN, raw.shape[1]
    subset = raw[:: max(1, len(raw) // 64)].to(torch.float32)
    centre = subset.mean(dim=0)
    std = (subset - centre).square_().mean(dim=0).sqrt_()
    # Numbers around another mean, much larger than the noise, would leave no digit of float32 for its variance.
    middle = subset.median(dim=0).values
    spread = 1.4826 * (subset - middle).abs_().median(dim=0).values
    has_outliers = (spread > 0) & (std > OUTLIERS * spread)
    centre, std = torch.where(has_outliers, middle, centre), torch.where(has_outliers, spread, std)
    std = torch.where(std > 0, std, 1.0)
    scale, shift = 1.0 / std, -centre / std
    n_tiles, bins_per_tile = max(1, n // TILE), min(TILE, n) // BIN
    # Half of the samples of every second tile are enough for the higher moments.
    tile_step, half = (2 if n_tiles > 8 else 1), bins_per_tile // 2 * BIN
    means, squares = torch.empty((2, n // BIN, nchans))
    cubes, fourth_powers = torch.empty((2, -(-n_tiles // tile_step), nchans))
    x, y = torch.empty((2, TILE, nchans))
    for number, first in enumerate(range(0, n, TILE)):
        rows = raw[first : min(first + TILE, n)]
        bins = slice(first // BIN, (first + len(rows)) // BIN)
        tile = x[: len(rows)].copy_(rows)
        tile.mul_(scale).add_(shift)  # five times as fast as addcmul
        square = torch.mul(tile, tile, out=y[: len(rows)])
        torch.sum(tile.view(-1, BIN, nchans), dim=1, out=means[bins])
        torch.sum(square.view(-1, BIN, nchans), dim=1, out=squares[bins])
        if number < n_tiles and number % tile_step == 0:
            square = square[:half]
            torch.mean(tile[:half].mul_(square), dim=0, out=cubes[number // tile_step])
            torch.mean(square.mul_(square), dim=0, out=fourth_powers[number // tile_step])
    means, squares = means.div_(BIN), squares.div_(BIN)
    tile_means, tile_squares = (
        sums[: n_tiles * bins_per_tile].view(n_tiles, bins_per_tile, nchans)[::tile_step, : half // BIN].mean(dim=1)
        for sums in (means, squares)
    )
    skewness, kurtosis = _skewness_and_kurtosis(tile_means, tile_squares, cubes, fourth_powers)
    variances = squares.addcmul_(means, means, value=-1).mul_(BIN / (BIN - 1)).clamp_min_(0)
    typical = variances[:: max(1, len(variances) // 64)].median(dim=0).values
    typical = torch.where(typical > 0, typical, variances.mean(dim=0))
    level = torch.minimum(variances, 2.5 * typical).mean(dim=0).sqrt()
    # Channels that are constant except for a few extreme samples overflow; they have no noise level.
    usable = (level > 1e-6) & torch.isfinite(level)
    level = torch.where(usable, level, 0.0)
    if not usable.all():
        means, variances = (torch.where(usable, values, 0.0) for values in (means, variances))
    return Sums(centre, means.mul_(std), variances.mul_(std**2), level * std, skewness, kurtosis)


def _skewness_and_kurtosis(
    mean: torch.Tensor, second: torch.Tensor, third: torch.Tensor, fourth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Medians over tiles of skewness and excess kurtosis, from the first four raw moments (n_tiles, nchans)."""
    variance = (second - mean**2).clamp_min(1e-12)
    skewness = (third - 3 * mean * second + 2 * mean**3) / variance**1.5
    kurtosis = (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2 - 3
    return skewness.median(dim=0).values.nan_to_num_(), kurtosis.median(dim=0).values.nan_to_num_()


def running_baseline(sums: Sums, good: torch.Tensor, window: float) -> tuple[int, torch.Tensor]:
    """Compute a running mean of each channel that is robust against interference.

    Means over a fifth of the window pass through a running median. Bins are clipped at `CLIP` sigma from that median,
    and bins in which the average channel deviates by more than half of this limit (impulses, drop-outs) are excluded.
    The baseline is the mean over five consecutive steps.

    Parameters
    ----------
    sums : Sums
        Statistics of the block.
    good : (nchans,) tensor of bool
        Channels in use.
    window : float
        Length of the running mean in samples; the whole block if below 1 or longer than the block.

    Returns
    -------
    step : int
        Samples between two nodes; node k is at sample (k + 1/2) * step.
    nodes : (n_nodes, nchans) tensor
        Baseline at the nodes, in counts. A single node applies to the whole block.
    """
    n_bins, nchans = sums.means.shape
    whole_block = not 1 <= window < n_bins * BIN
    step = max(1, n_bins // 5 if whole_block else round(window / 5 / BIN))
    n_steps = n_bins // step
    bins = sums.means[: n_steps * step].view(n_steps, step, nchans)
    median = running_median(bins.mean(dim=1))
    limit = CLIP / BIN**0.5 * sums.level
    deviation = (bins - median[:, None]).clamp_(-limit, limit)
    band_deviation = deviation @ (torch.where(good, 1.0 / limit, 0.0) / good.sum().clamp_min(1))
    deviation *= (band_deviation.abs() <= 0.5)[..., None]
    nodes = median + deviation.mean(dim=1)
    if whole_block:
        nodes = nodes.mean(dim=0, keepdim=True)
    else:
        nodes = F.avg_pool1d(nodes.t()[None], 5, 1, padding=2, count_include_pad=False)[0].t()
    return step * BIN, nodes + sums.centre


def running_median(values: torch.Tensor) -> torch.Tensor:
    """Median of five consecutive rows, with the first and last row repeated at the ends."""
    padded = torch.cat([values[:1], values[:1], values, values[-1:], values[-1:]])
    a, b, c, d, e = (padded[shift : shift + len(values)] for shift in range(5))
    low = torch.maximum(torch.minimum(a, b), torch.minimum(c, d))
    high = torch.minimum(torch.maximum(a, b), torch.maximum(c, d))
    return torch.maximum(torch.minimum(low, high), torch.minimum(torch.maximum(low, high), e))


def residual(sums: Sums, step: int, nodes: torch.Tensor) -> torch.Tensor:
    """Subtract the baseline from the means of the bins.

    Returns
    -------
    (n_bins, nchans) tensor
        In counts. Bins after the last whole step are missing, unless a single node applies to the whole block.
    """
    nodes = nodes - sums.centre
    if len(nodes) == 1:
        return sums.means - nodes
    bins = sums.means[: len(nodes) * (step // BIN)].view(len(nodes), step // BIN, -1)
    return (bins - nodes[:, None]).flatten(0, 1)


class Interpolation:
    """Linear interpolation of the baseline between nodes, constant before the first and after the last one.

    Parameters
    ----------
    n : int
        Samples in the block.
    step : int
        Samples between two nodes.
    n_nodes : int
        Number of nodes.

    Attributes
    ----------
    first_node : list of int
        Index of the first node used in each of the n_tiles tiles of `TILE` samples.
    weights : (n_tiles, TILE, k) tensor
        Weights, at every sample, of that node and the next k - 1.
    """

    def __init__(self, n: int, step: int, n_nodes: int) -> None:
        n_tiles = -(-n // TILE)
        position = ((torch.arange(n_tiles * TILE) + 0.5) / step - 0.5).clamp_(0, n_nodes - 1).view(n_tiles, TILE)
        first, last = position[:, 0].floor(), position[:, -1].ceil()
        k = int((last - first).max()) + 1
        first = first.clamp_max(n_nodes - k)
        self.first_node = first.to(torch.int64).tolist()
        self.weights = (1 - ((position - first[:, None])[..., None] - torch.arange(k)).abs_()).clamp_min_(0)

    def per_tile(self, nodes: torch.Tensor) -> torch.Tensor:
        """Gather the nodes (n_nodes, m) that each tile uses: (n_tiles, k, m)."""
        k = self.weights.shape[2]
        return torch.stack([nodes[first : first + k] for first in self.first_node])
