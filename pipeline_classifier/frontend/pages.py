"""The page, currency of the pipeline: what it is, how it is cut from a dedispersed stream, how it becomes an image.

A page is a (n_dm, n_time) float32 DM-time plane: row 0 is the lowest DM, column j the sample ``start + j``, timed at
the top channel of the band. An image is what a network sees: uint8 (resolution, resolution), row 0 the *highest* DM.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from pipeline_classifier.dispersion import dispersion_delay

PAGE_NORMALISERS = ("minmax", "robust")
NORMALISERS = (*PAGE_NORMALISERS, "noise")
ROBUST_RANGE = (-5.0, 20.0)
"""Sigmas that ``robust`` maps to 0 and 255: noise keeps ten levels per sigma, and one hot pixel blackens nothing."""

PAGES_IN_CACHE = 16


@dataclass(frozen=True)
class PageGrid:
    """What the rows and columns of pages mean.

    Attributes
    ----------
    dms : (n_dm,) float64, pc cm^-3, ascending
    n_time : samples in a page
    tsamp : seconds, NaN when unknown
    tstart : MJD of sample 0 at the top channel, NaN when unknown
    f_top, f_bottom : centres of the outermost channels in MHz, NaN when unknown; times hold at ``f_top``
    zaplist : bands (low, high) in MHz that are not in use
    """

    dms: np.ndarray
    n_time: int
    tsamp: float = np.nan
    tstart: float = np.nan
    f_top: float = np.nan
    f_bottom: float = np.nan
    zaplist: tuple[tuple[float, float], ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.dms), self.n_time

    @cached_property
    def band(self) -> tuple[float, float]:
        """Lowest and highest frequency in use, MHz: the band without what is zapped at its edges."""
        low, high = self.f_bottom, self.f_top
        for zapped_low, zapped_high in sorted(self.zaplist):
            low = zapped_high if zapped_low <= low < zapped_high else low
        for zapped_low, zapped_high in sorted(self.zaplist, key=lambda zapped: -zapped[1]):
            high = zapped_low if zapped_low < high <= zapped_high else high
        return low, high

    def _delay(self, dm: np.ndarray | float, frequency: float) -> np.ndarray:
        """Delay, in samples, of a frequency behind the top channel for ``dm`` (0 when the band is unknown)."""
        if not np.isfinite(self.f_top * self.f_bottom * self.tsamp):
            return np.zeros_like(np.asarray(dm, dtype=float))
        return dispersion_delay(dm, frequency, self.f_top) / self.tsamp

    def sweep(self, dm: np.ndarray | float) -> np.ndarray:
        """Delay, in samples, of the bottom of the band in use behind the top channel for ``dm``."""
        return self._delay(dm, self.band[0])

    def lean(self, dm: np.ndarray | float) -> np.ndarray:
        """Delay, in samples, of the top of the band in use behind the top channel: 0 if nothing is zapped there."""
        return self._delay(dm, self.band[1])

    @property
    def sweeps(self) -> bool:
        """Whether a pulse is dispersed on these pages, so that its shape tells it from interference."""
        return len(self.dms) > 1 and float(self.sweep(1.0)) > 0


@dataclass(frozen=True)
class PageBatch:
    """Consecutive pages of one source.

    Attributes
    ----------
    pages : (B, n_dm, n_time) float32 pages, or uint8 images that are normalised already
    starts : (B,) int64, first sample of each page
    first : number of the first page of the batch in its layer
    layer : number of the layer (DM stack and time resolution) in its source
    """

    pages: np.ndarray
    starts: np.ndarray
    first: int
    layer: int = 0

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, part: slice) -> "PageBatch":
        first = self.first + range(len(self))[part].start
        return PageBatch(self.pages[part], self.starts[part], first, self.layer)


def page_starts(n_samples: int, n_time: int, overlap: float = 0.0) -> np.ndarray:
    """First samples of the pages that cover ``n_samples``, so that no sample is left out.

    Page p starts at ``p * n_time * (1 - overlap)``; the last page ends at the last sample, and so may share samples
    with the one before it.
    """
    step = max(1, round(n_time * (1.0 - overlap)))
    last = max(0, n_samples - n_time)
    return np.append(np.arange(0, last, step), last)


def cut_pages(plane: np.ndarray, columns: np.ndarray, n_time: int, scale: float) -> np.ndarray:
    """Cut pages out of a dedispersed plane.

    Parameters
    ----------
    plane : (n_dm, n) integers
    columns : (B,) first columns of the pages, at most ``n - n_time``
    n_time : columns of a page
    scale : factor for the values

    Returns
    -------
    (B, n_dm, n_time) float32
    """
    windows = np.lib.stride_tricks.sliding_window_view(plane, n_time, axis=1).transpose(1, 0, 2)
    steps = np.unique(np.diff(columns))
    if len(steps) == 1 and steps[0] > 0:
        chosen = windows[columns[0] : columns[-1] + 1 : steps[0]]
    else:
        chosen = windows[columns]
    return np.multiply(chosen, np.float32(scale), dtype=np.float32, casting="unsafe")


def on_device(values: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """The values as a tensor on ``device``; the copy to a GPU does not wait for what the GPU is doing."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_images(
    pages: np.ndarray, normaliser: str, resolution: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn pages into images: the one normaliser, used to make training sets and to classify.

    Parameters
    ----------
    pages : (B, n_dm, n_time) float32
    normaliser : ``minmax``: each page's own minimum and maximum become 0 and 255 (the original's
        normalize_image_to_255); ``robust``: median and median absolute deviation, -5 to +20 sigma become 0 to 255;
        ``noise``: values are in units of the noise as they are, -5 to +20 become 0 to 255
    resolution : side of the images; a page of another size is averaged (or repeated) onto it afterwards
    device : where to work

    Returns
    -------
    images : (B, resolution, resolution) uint8 tensor on ``device``, row 0 = highest DM
    unusable : (B,) bool tensor, constant or non-finite pages; their images are all zero
    """
    values = on_device(pages, device)
    if normaliser == "minmax":
        black, white = values.amin(dim=(1, 2)), values.amax(dim=(1, 2))
        unusable = ~(torch.isfinite(black) & torch.isfinite(white) & (white > black))
    elif normaliser == "robust":
        median, sigma = robust_noise(values)
        unusable = ~(torch.isfinite(values.sum(dim=(1, 2))) & (sigma > 0))
        black, white = (median + sigmas * sigma for sigmas in ROBUST_RANGE)
    elif normaliser == "noise":
        unusable = ~torch.isfinite(values.sum(dim=(1, 2)))
        black, white = (torch.full((len(values),), sigmas, device=values.device) for sigmas in ROBUST_RANGE)
    else:
        raise ValueError(f"normaliser {normaliser!r} is not one of {', '.join(NORMALISERS)}")
    images = _grey_levels(values, black, white - black)
    if unusable.any():  # writing through a mask that is all False takes as long
        images[unusable] = 0
    return resize(images, resolution), unusable


def _grey_levels(values: torch.Tensor, black: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    """Map ``black`` to ``black + extent`` of each page to 0 to 255, (B, n_dm, n_time) uint8, turned upside down."""
    images = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    together = PAGES_IN_CACHE if values.device.type == "cpu" else len(values)
    for first in range(0, len(values), max(1, together)):
        part = slice(first, first + together)
        # Divided before it is multiplied, as in the original, so that the maximum is 255 and not 254.99998.
        scaled = (values[part] - black[part, None, None]).div_(extent[part, None, None]).mul_(255.0).clamp_(0.0, 255.0)
        if scaled.device.type == "cpu":  # numpy casts five times as fast
            with np.errstate(invalid="ignore"):
                np.copyto(images[part].numpy(), scaled.numpy()[:, ::-1], casting="unsafe")
        else:
            images[part] = scaled.to(torch.uint8).flip(1)
    return images


def robust_noise(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median and noise (1.4826 median absolute deviation, else standard deviation) of each (B, n_dm, n_time) page.

    Every eighth row and fourth column serve, if they are 2048 values: neighbouring DM rows share most of their noise.
    """
    small = values.shape[1] * values.shape[2] < 65536
    sample = (values if small else values[:, ::8, ::4]).flatten(1)
    median = _median(sample)
    sigma = 1.4826 * _median((sample - median[:, None]).abs_())
    even = sigma == 0
    if even.any():
        sigma[even] = sample[even].std(dim=1, correction=0)
    return median, sigma


def _median(values: torch.Tensor) -> torch.Tensor:
    """Lower median of each row of (B, n)."""
    if values.device.type == "cuda":
        return values.median(dim=1).values
    middle = (values.shape[1] - 1) // 2
    return torch.from_numpy(np.partition(values.numpy(), middle, axis=1)[:, middle].copy())  # thrice as fast as torch's


def matched_snr(pages: np.ndarray) -> np.ndarray:
    """Highest S/N of boxcars of 1, 2, 4, ... samples, up to a quarter of a page, in each (B, n_dm, n_time) page.

    Every second row serves: neighbouring trial DMs show the same pulse. NaN for a page that is not finite.
    """
    values = torch.from_numpy(pages)
    median, sigma = robust_noise(values)
    sums = values[:, ::2] - median[:, None, None]
    best, width = sums.amax(dim=(1, 2)), 1
    while 2 * width <= pages.shape[2] // 4:
        sums = sums[..., :-width] + sums[..., width:]
        width *= 2
        best = torch.maximum(best, sums.amax(dim=(1, 2)) / width**0.5)
    return (best / sigma).numpy()


def resize(images: torch.Tensor, resolution: int) -> torch.Tensor:
    """Average (or repeat) pixels of (B, H, W) uint8 images so that they become (B, resolution, resolution)."""
    if images.shape[1:] == (resolution, resolution):
        return images
    return F.adaptive_avg_pool2d(images.to(torch.float32), resolution).to(torch.uint8)
