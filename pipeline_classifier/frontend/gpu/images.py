"""Images of pages on a GPU, as `frontend.pages.to_images` makes them."""

import numpy as np
import torch

from pipeline_classifier.frontend.pages import NORMALISERS, ROBUST_RANGE, sampling_steps


def to_images(pages: torch.Tensor, normaliser: str, resolution: int) -> tuple[torch.Tensor, np.ndarray]:
    """Turn pages into images; on the CPU they equal those of `frontend.pages.to_images` to the bit.

    Parameters
    ----------
    pages : (B, n_dm, n_time) tensor of float32
    normaliser, resolution
        As in `frontend.pages.to_images`.

    Returns
    -------
    images : (B, resolution, resolution) tensor of uint8
        Row 0 = highest DM.
    unusable : (B,) ndarray of bool
    """
    if normaliser == "minmax":
        black, white = pages.amin(dim=(1, 2)), pages.amax(dim=(1, 2))
        unusable = ~(torch.isfinite(black) & torch.isfinite(white) & (white > black))
    elif normaliser == "robust":
        median, sigma = robust_noise(pages)
        unusable = ~(torch.isfinite(pages.sum(dim=(1, 2))) & (sigma > 0))
        black, white = (median + sigmas * sigma for sigmas in ROBUST_RANGE)
    elif normaliser == "noise":
        unusable = ~torch.isfinite(pages.sum(dim=(1, 2)))
        black, white = (torch.full_like(pages[:, 0, 0], sigmas) for sigmas in ROBUST_RANGE)
    else:
        raise ValueError(f"normaliser must be one of {', '.join(NORMALISERS)}, got {normaliser!r}")
    extent = white - black
    unusable |= ~torch.isfinite(extent)
    # Divided before it is multiplied, as in the original, so that the maximum is 255 and not 254.99998.
    scaled = ((pages - black[:, None, None]) / extent[:, None, None]).mul_(255.0).clamp_(0.0, 255.0)
    scaled[unusable] = 0
    return resize(scaled.flip(1).to(torch.uint8), resolution), unusable.cpu().numpy()


def robust_noise(pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median and noise of each page (B, n_dm, n_time), both (B,) float32, as `frontend.pages.robust_noise`."""
    rows, columns = sampling_steps(*pages.shape[1:])
    sample = pages[:, ::rows, ::columns].reshape(len(pages), -1)
    median = sample.median(dim=1).values
    sigma = 1.4826 * (sample - median[:, None]).abs().median(dim=1).values
    degenerate = sigma == 0
    if degenerate.any():
        sigma[degenerate] = torch.from_numpy(sample[degenerate].cpu().numpy().std(axis=1)).to(sigma.device)
    return median, sigma


def resize(images: torch.Tensor, resolution: int) -> torch.Tensor:
    """Average (or repeat) pixels of (B, H, W) uint8 images, as `frontend.pages.resize`."""
    if images.shape[1:] == (resolution, resolution):
        return images
    values, size = images.to(torch.int64), torch.ones((), dtype=torch.int64, device=images.device)
    for axis in (1, 2):
        edges = torch.arange(resolution + 1, device=images.device) * values.shape[axis]
        first, end = edges[:-1] // resolution, -(-edges[1:] // resolution)
        total = torch.cat([torch.zeros_like(values.narrow(axis, 0, 1)), values.cumsum(dim=axis)], dim=axis)
        values = total.index_select(axis, end) - total.index_select(axis, first)
        size = size * (end - first).view(-1, *[1] * (2 - axis))
    return (values // size).to(torch.uint8)
