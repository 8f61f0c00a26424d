"""Noise level and running baseline of every channel, from sums over a few samples each."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pipeline_classifier.frontend.settings import BIN

TILE = 2048  # samples worked on at once: few calls, for threads hinder each other at every one
CLIP = 3.0  # sigma; how much one bin may weigh


@dataclass(frozen=True)
class Sums:
    """What is kept of a block of n samples, float32.

    Attributes
    ----------
    centre : (nchans,) a value near the mean of each channel, counts
    means : (n // BIN, nchans) means of `BIN` samples less the centre, counts
    variances : (n // BIN, nchans) variance within each bin, counts squared
    level : (nchans,) noise, counts: of the variances, clipped at 2.5 times their median
    skewness, kurtosis : (nchans,) medians over the tiles, so that one pulse, however bright, leaves them as they are
    """

    centre: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor
    level: torch.Tensor
    skewness: torch.Tensor
    kurtosis: torch.Tensor


def bin_sums(raw: torch.Tensor) -> Sums:
    """The first pass over a block (n, nchans) of at least `TILE` / 2 samples."""
    n, nchans = len(raw) // BIN * BIN, raw.shape[1]
    sample = raw[:: max(1, len(raw) // 64)].to(torch.float32)
    centre = sample.mean(dim=0)
    spread = (sample - centre).square_().mean(dim=0).sqrt_()
    spread = torch.where(spread > 0, spread, 1.0)
    scale, shift = 1.0 / spread, -centre / spread
    n_tiles, per_tile = max(1, n // TILE), min(TILE, n) // BIN
    # Half of the samples of half of the tiles are enough for the higher moments.
    every, half = (2 if n_tiles > 8 else 1), per_tile // 2 * BIN
    means, squares = torch.empty((2, n // BIN, nchans))
    thirds, fourths = torch.empty((2, -(-n_tiles // every), nchans))
    x, y = torch.empty((2, TILE, nchans))
    for number, first in enumerate(range(0, n, TILE)):
        rows = raw[first : min(first + TILE, n)]
        bins = slice(first // BIN, (first + len(rows)) // BIN)
        tile = x[: len(rows)].copy_(rows)
        tile.mul_(scale).add_(shift)  # five times as fast as addcmul
        square = torch.mul(tile, tile, out=y[: len(rows)])
        torch.sum(tile.view(-1, BIN, nchans), dim=1, out=means[bins])
        torch.sum(square.view(-1, BIN, nchans), dim=1, out=squares[bins])
        if number < n_tiles and number % every == 0:
            square = square[:half]
            torch.mean(tile[:half].mul_(square), dim=0, out=thirds[number // every])
            torch.mean(square.mul_(square), dim=0, out=fourths[number // every])
    means, squares = means.div_(BIN), squares.div_(BIN)
    firsts, seconds = (
        sums[: n_tiles * per_tile].view(n_tiles, per_tile, nchans)[::every, : half // BIN].mean(dim=1)
        for sums in (means, squares)
    )
    skewness, kurtosis = _shape(firsts, seconds, thirds, fourths)
    variances = squares.addcmul_(means, means, value=-1).mul_(BIN / (BIN - 1)).clamp_min_(0)
    typical = variances[:: max(1, len(variances) // 64)].median(dim=0).values
    typical = torch.where(typical > 0, typical, variances.mean(dim=0))
    level = torch.minimum(variances, 2.5 * typical).mean(dim=0).sqrt()
    # Samples that are constant but for a few wild ones overflow: such a channel has no noise level.
    usable = (level > 1e-6) & torch.isfinite(level)
    level = torch.where(usable, level, 0.0)
    if not usable.all():
        means, variances = (torch.where(usable, values, 0.0) for values in (means, variances))
    return Sums(centre, means.mul_(spread), variances.mul_(spread**2), level * spread, skewness, kurtosis)


def _shape(
    mean: torch.Tensor, second: torch.Tensor, third: torch.Tensor, fourth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Skewness and excess kurtosis from the means of the first four powers, (n_tiles, nchans): medians over tiles."""
    variance = (second - mean**2).clamp_min(1e-12)
    skewness = (third - 3 * mean * second + 2 * mean**3) / variance**1.5
    kurtosis = (fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / variance**2 - 3
    return skewness.median(dim=0).values.nan_to_num_(), kurtosis.median(dim=0).values.nan_to_num_()


def running_baseline(sums: Sums, good: torch.Tensor, window: float) -> tuple[int, torch.Tensor]:
    """Running mean of each channel over ``window`` samples, that interference does not pull along.

    Means over a fifth of the window have a running median taken; bins are clipped at `CLIP` sigma about that, and left
    out where the whole band is off at once; the mean over five steps is the baseline.

    Returns
    -------
    step, nodes : samples between two nodes, and the baseline there, (n_steps, nchans) counts. Node k is at sample
        (k + 1/2) * step; a single node holds for the whole block.
    """
    n_bins, nchans = sums.means.shape
    whole_block = not 1 <= window < n_bins * BIN
    step = max(1, n_bins // 5 if whole_block else round(window / 5 / BIN))
    n_steps = n_bins // step
    parts = sums.means[: n_steps * step].view(n_steps, step, nchans)
    rough = _running_median(parts.mean(dim=1))
    limit = CLIP / BIN**0.5 * sums.level
    off = (parts - rough[:, None]).clamp_(-limit, limit)
    together = off @ (torch.where(good, 1.0 / limit, 0.0) / good.sum().clamp_min(1))
    off *= (together.abs() <= 0.5)[..., None]
    nodes = rough + off.mean(dim=1)
    if whole_block:
        nodes = nodes.mean(dim=0, keepdim=True)
    else:
        nodes = F.avg_pool1d(nodes.t()[None], 5, 1, padding=2, count_include_pad=False)[0].t()
    return step * BIN, nodes + sums.centre


def _running_median(values: torch.Tensor) -> torch.Tensor:
    """Median over five neighbours in the first dimension, the ends repeated."""
    padded = torch.cat([values[:1], values[:1], values, values[-1:], values[-1:]])
    a, b, c, d, e = (padded[shift : shift + len(values)] for shift in range(5))
    low = torch.maximum(torch.minimum(a, b), torch.minimum(c, d))
    high = torch.minimum(torch.maximum(a, b), torch.maximum(c, d))
    return torch.maximum(torch.minimum(low, high), torch.minimum(torch.maximum(low, high), e))


def residual(sums: Sums, step: int, nodes: torch.Tensor) -> torch.Tensor:
    """Means of bins (n_bins, nchans) less the baseline, counts; without what is left past the last step."""
    nodes = nodes - sums.centre
    if len(nodes) == 1:
        return sums.means - nodes
    parts = sums.means[: len(nodes) * (step // BIN)].view(len(nodes), step // BIN, -1)
    return (parts - nodes[:, None]).flatten(0, 1)


class Interpolation:
    """Which nodes, with what weight, make the baseline at every sample: linear from node to node.

    Attributes
    ----------
    first_node : (n_tiles,) list of the first node that matters in each tile of `TILE` samples
    weights : (n_tiles, TILE, k) of that node and the next ones
    """

    def __init__(self, n: int, step: int, n_nodes: int) -> None:
        n_tiles = -(-n // TILE)
        place = ((torch.arange(n_tiles * TILE) + 0.5) / step - 0.5).clamp_(0, n_nodes - 1).view(n_tiles, TILE)
        first, last = place[:, 0].floor(), place[:, -1].ceil()
        k = int((last - first).max()) + 1
        first = first.clamp_max(n_nodes - k)
        self.first_node = first.to(torch.int64).tolist()
        self.weights = (1 - ((place - first[:, None])[..., None] - torch.arange(k)).abs_()).clamp_min_(0)

    def per_tile(self, nodes: torch.Tensor) -> torch.Tensor:
        """The nodes (n_nodes, m) that matter in each tile, (n_tiles, k, m)."""
        k = self.weights.shape[2]
        return torch.stack([nodes[first : first + k] for first in self.first_node])
