"""Pages: their definition, how they are cut from dedispersed time series, and how they become images.

A page is a (n_dm, n_time) float32 DM-time plane: row 0 is the lowest DM, column j the sample ``start + j``, timed at
the top channel of the band. An image is what a network gets: uint8 (resolution, resolution), row 0 the *highest* DM.
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
"""Standard deviations that ``robust`` and ``noise`` map to 0 and 255: ten grey levels per sigma of noise, and one hot
pixel does not darken the rest of the page."""

PAGES_IN_CACHE = 16
"""Pages scaled at once on a CPU, few enough for the intermediate values to stay in its cache."""


@dataclass(frozen=True)
class PageGrid:
    """Meaning of the rows and columns of pages.

    Attributes
    ----------
    dms : (n_dm,) ndarray of float64
        Trial DMs in pc cm^-3, ascending.
    n_time : int
        Columns of a page.
    tsamp : float
        Sampling time of a column in seconds, NaN when unknown.
    tstart : float
        MJD of sample 0 at the top channel, NaN when unknown.
    f_top, f_bottom : float
        Centres of the highest and the lowest channel in MHz, NaN when unknown. Times refer to ``f_top``.
    zaplist : tuple of (low, high)
        Frequency bands in MHz that are not used, with those of dead channels where they are known.
    noise : float
        Noise of the values of pages, 0 when unknown. Where samples were set to zero the noise of a page is lower.
    nchans : int
        Channels of the observation, 0 when unknown.
    """

    dms: np.ndarray
    n_time: int
    tsamp: float = np.nan
    tstart: float = np.nan
    f_top: float = np.nan
    f_bottom: float = np.nan
    zaplist: tuple[tuple[float, float], ...] = ()
    noise: float = 0.0
    nchans: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a page."""
        return len(self.dms), self.n_time

    @cached_property
    def band(self) -> tuple[float, float]:
        """Lowest and highest frequency in use in MHz: the band without what the zaplist removes at its edges."""
        low, high = self.f_bottom, self.f_top
        for zapped_low, zapped_high in sorted(self.zaplist):
            low = zapped_high if zapped_low <= low < zapped_high else low
        for zapped_low, zapped_high in sorted(self.zaplist, key=lambda zapped: -zapped[1]):
            high = zapped_low if zapped_low < high <= zapped_high else high
        return low, high

    def _delay(self, dm: np.ndarray | float, frequency: float) -> np.ndarray:
        """Delay of a frequency after ``f_top`` in samples, 0 when the band is unknown."""
        if not np.isfinite(self.f_top * self.f_bottom * self.tsamp):
            return np.zeros_like(np.asarray(dm, dtype=float))
        return dispersion_delay(dm, frequency, self.f_top) / self.tsamp

    def sweep(self, dm: np.ndarray | float) -> np.ndarray:
        """Delay of the lowest frequency in use after ``f_top`` in samples, for each ``dm`` in pc cm^-3."""
        return self._delay(dm, self.band[0])

    def top_delay(self, dm: np.ndarray | float) -> np.ndarray:
        """Delay of the highest frequency in use after ``f_top`` in samples: 0 unless the zaplist cuts the top."""
        return self._delay(dm, self.band[1])

    @property
    def sweeps(self) -> bool:
        """Whether the sweep of a pulse over the band is known and not zero, so that its shape depends on its DM."""
        return len(self.dms) > 1 and float(self.sweep(1.0) - self.top_delay(1.0)) > 0


@dataclass(frozen=True)
class PageBatch:
    """Consecutive pages of one layer of a source.

    Attributes
    ----------
    pages : (B, n_dm, n_time) ndarray
        float32 pages, or uint8 images that are normalised already.
    starts : (B,) ndarray of int64
        First sample of each page.
    first : int
        Index of the first page of the batch in its layer.
    layer : int
        Index of the layer (DM stack and time resolution) in `Source.layers`.
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
    """First samples of the pages that cover ``n_samples`` samples without a gap.

    Page p starts at ``p * n_time * (1 - overlap)``. The last page ends at the last sample, and may therefore overlap
    with the one before it.
    """
    step = max(1, round(n_time * (1.0 - overlap)))
    last = max(0, n_samples - n_time)
    return np.append(np.arange(0, last, step), last)


def cut_pages(plane: np.ndarray, columns: np.ndarray, n_time: int, scale: float) -> np.ndarray:
    """Cut pages out of a dedispersed plane.

    Parameters
    ----------
    plane : (n_dm, n) ndarray of int
    columns : (B,) ndarray of int
        First columns of the pages, at most ``n - n_time``.
    n_time : int
        Columns of a page.
    scale : float
        Factor for the values.

    Returns
    -------
    (B, n_dm, n_time) ndarray of float32
    """
    windows = np.lib.stride_tricks.sliding_window_view(plane, n_time, axis=1).transpose(1, 0, 2)
    steps = np.unique(np.diff(columns))
    if len(steps) == 1 and steps[0] > 0:
        chosen = windows[columns[0] : columns[-1] + 1 : steps[0]]
    else:
        chosen = windows[columns]
    return np.multiply(chosen, np.float32(scale), dtype=np.float32, casting="unsafe")


def on_device(values: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """Copy values to ``device``; a copy to a GPU is asynchronous."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_images(
    pages: np.ndarray, normaliser: str, resolution: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn pages into images, in the same way for training sets and for classification.

    Parameters
    ----------
    pages : (B, n_dm, n_time) ndarray of float32
    normaliser : {"minmax", "robust", "noise"}
        ``minmax`` maps the minimum and maximum of each page to 0 and 255 (the original's normalize_image_to_255);
        ``robust`` maps -5 to +20 sigma to 0 to 255, with the median and the median absolute deviation of each page;
        ``noise`` does the same for values that are in units of the noise already.
    resolution : int
        Side of the images. Pages of another size are averaged (or repeated) onto it after scaling.
    device : torch.device or str
        Device on which the images are computed.

    Returns
    -------
    images : (B, resolution, resolution) Tensor of uint8
        On ``device``, row 0 = highest DM.
    unusable : (B,) Tensor of bool
        Pages that are constant, not finite, or too large to be scaled in float32; their images are zero.
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
        raise ValueError(f"normaliser must be one of {', '.join(NORMALISERS)}, got {normaliser!r}")
    extent = white - black
    unusable |= ~torch.isfinite(extent)
    images = _grey_levels(values, black, extent)
    if unusable.any():  # writing through a mask takes as long if it is all False
        images[unusable] = 0
    return resize(images, resolution), unusable


def _grey_levels(values: torch.Tensor, black: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    """Map ``black`` to ``black + extent`` of each page to 0 to 255, (B, n_dm, n_time) uint8, rows reversed."""
    images = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    at_once = PAGES_IN_CACHE if values.device.type == "cpu" else len(values)
    for first in range(0, len(values), max(1, at_once)):
        part = slice(first, first + at_once)
        # Divided before it is multiplied, as in the original, so that the maximum is 255 and not 254.99998.
        scaled = (values[part] - black[part, None, None]).div_(extent[part, None, None]).mul_(255.0).clamp_(0.0, 255.0)
        if scaled.device.type == "cpu":  # numpy casts five times as fast
            with np.errstate(invalid="ignore"):
                np.copyto(images[part].numpy(), scaled.numpy()[:, ::-1], casting="unsafe")
        else:
            images[part] = scaled.to(torch.uint8).flip(1)
    return images


def robust_noise(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median and noise of each page (B, n_dm, n_time), both (B,).

    The noise is 1.4826 times the median absolute deviation, or the standard deviation where that is 0. Pages of at
    least 65,536 values are sampled in every eighth row and fourth column: neighbouring trial DMs share most of their
    noise.
    """
    small = values.shape[1] * values.shape[2] < 65536
    sample = (values if small else values[:, ::8, ::4]).flatten(1)
    median = _median(sample)
    sigma = 1.4826 * _median((sample - median[:, None]).abs_())
    degenerate = sigma == 0
    if degenerate.any():
        sigma[degenerate] = sample[degenerate].std(dim=1, correction=0)
    return median, sigma


def _median(values: torch.Tensor) -> torch.Tensor:
    """Lower median of each row of (B, n)."""
    if values.device.type == "cuda":
        return values.median(dim=1).values
    middle = (values.shape[1] - 1) // 2
    # Three times as fast as torch's median.
    return torch.from_numpy(np.partition(values.numpy(), middle, axis=1)[:, middle].copy())


def resize(images: torch.Tensor, resolution: int) -> torch.Tensor:
    """Average (or repeat) pixels of (B, H, W) uint8 images so that they become (B, resolution, resolution)."""
    if images.shape[1:] == (resolution, resolution):
        return images
    return F.adaptive_avg_pool2d(images.to(torch.float32), resolution).to(torch.uint8)
