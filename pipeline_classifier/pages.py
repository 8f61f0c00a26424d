"""The page, currency of the pipeline: what it is, how it is cut from a dedispersed stream, how it becomes an image.

A page is a (n_dm, n_time) float32 DM-time plane: row 0 is the lowest DM, column j the sample ``start + j``, timed at
the top channel of the band. An image is what a network sees: uint8 (resolution, resolution), row 0 the *highest* DM.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipeline_classifier.dedispersion import dispersion_delay

NORMALISERS = ("minmax", "robust")
ROBUST_RANGE = (-5.0, 20.0)
"""Sigmas that ``robust`` maps to 0 and 255: noise keeps ten levels per sigma, and one hot pixel blackens nothing."""


@dataclass(frozen=True)
class PageGrid:
    """What the rows and columns of pages mean.

    Attributes
    ----------
    dms : (n_dm,) float64, pc cm^-3, ascending
    n_time : samples in a page
    tsamp : seconds, NaN when unknown
    tstart : MJD of sample 0 at the top channel, NaN when unknown
    f_top, f_bottom : centres of the outermost channels in MHz, NaN when unknown
    """

    dms: np.ndarray
    n_time: int
    tsamp: float = np.nan
    tstart: float = np.nan
    f_top: float = np.nan
    f_bottom: float = np.nan

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.dms), self.n_time

    def sweep(self, dm: np.ndarray | float) -> np.ndarray:
        """Delay, in samples, of the bottom channel behind the top one for ``dm`` (0 when the band is unknown)."""
        if not np.isfinite(self.f_top * self.f_bottom * self.tsamp):
            return np.zeros_like(np.asarray(dm, dtype=float))
        return dispersion_delay(dm, self.f_bottom, self.f_top) / self.tsamp


@dataclass(frozen=True)
class PageBatch:
    """Consecutive pages of one source.

    Attributes
    ----------
    pages : (B, n_dm, n_time) float32 pages, or uint8 images that are normalised already
    starts : (B,) int64, first sample of each page
    first : number of the first page of the batch in its source
    """

    pages: np.ndarray
    starts: np.ndarray
    first: int

    def __len__(self) -> int:
        return len(self.pages)


def page_starts(n_samples: int, n_time: int, overlap: float = 0.0) -> np.ndarray:
    """First samples of the pages that cover ``n_samples``, so that no sample is left out.

    Page p starts at ``p * n_time * (1 - overlap)``; the last page ends at the last sample, and so may share samples
    with the one before it.
    """
    step = max(1, round(n_time * (1.0 - overlap)))
    last = max(0, n_samples - n_time)
    return np.append(np.arange(0, last, step), last)


def cut_pages(planes: Iterable[np.ndarray], starts: np.ndarray, n_time: int, batch_size: int) -> Iterator[PageBatch]:
    """Cut pages out of a stream of dedispersed planes.

    Parameters
    ----------
    planes : (n_dm, m) float32 planes that follow each other without a gap, from sample 0
    starts : (N,) first samples of the pages, ascending; they may overlap or leave gaps
    n_time : samples in a page
    batch_size : most pages in a batch

    Yields
    ------
    PageBatch
        in order; a page that reaches past the end of the stream is filled with zeros.
    """
    done, held, held_start = 0, None, 0

    def batches(count: int) -> Iterator[PageBatch]:
        windows = np.lib.stride_tricks.sliding_window_view(held, n_time, axis=1)
        for first in range(done, done + count, batch_size):
            chosen = starts[first : min(first + batch_size, done + count)]
            pages = np.ascontiguousarray(windows[:, chosen - held_start].transpose(1, 0, 2))
            yield PageBatch(pages, chosen, first)

    for plane in planes:
        held = plane if held is None or held.shape[1] == 0 else np.concatenate([held, plane], axis=1)
        count = int(np.searchsorted(starts, held_start + held.shape[1] - n_time, side="right")) - done
        if count > 0:
            yield from batches(count)
            done += count
        keep_from = starts[done] if done < len(starts) else held_start + held.shape[1]
        drop = min(max(0, keep_from - held_start), held.shape[1])
        held, held_start = held[:, drop:].copy(), held_start + drop
    if held is not None and done < len(starts):
        room = starts[-1] + n_time - held_start - held.shape[1]
        held = np.pad(held, ((0, 0), (0, max(0, room))))
        yield from batches(len(starts) - done)


def to_images(
    pages: np.ndarray, normaliser: str, resolution: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn pages into images: the one normaliser, used to make training sets and to classify.

    Parameters
    ----------
    pages : (B, n_dm, n_time) float32
    normaliser : ``minmax``: each page's own minimum and maximum become 0 and 255 (the original's
        normalize_image_to_255); ``robust``: median and median absolute deviation, -5 to +20 sigma become 0 to 255
    resolution : side of the images; a page of another size is averaged (or repeated) onto it afterwards
    device : where to work

    Returns
    -------
    images : (B, resolution, resolution) uint8 tensor on ``device``, row 0 = highest DM
    unusable : (B,) bool tensor, constant or non-finite pages; their images are all zero
    """
    values = torch.from_numpy(pages).to(device)
    if normaliser == "minmax":
        low, high = values.amin(dim=(1, 2)), values.amax(dim=(1, 2))
        offset, extent = low, high - low
        unusable = ~(torch.isfinite(low) & torch.isfinite(high) & (high > low))
    elif normaliser == "robust":
        low, high = ROBUST_RANGE
        median, sigma = robust_noise(values)
        offset, extent = median + low * sigma, (high - low) * sigma
        unusable = ~(torch.isfinite(values.sum(dim=(1, 2))) & (sigma > 0))
    else:
        raise ValueError(f"normaliser {normaliser!r} is not one of {', '.join(NORMALISERS)}")
    # Divided before it is multiplied, as in the original, so that the maximum is 255 and not 254.99998.
    scaled = (values - offset[:, None, None]).div_(extent[:, None, None]).mul_(255.0).clamp_(0.0, 255.0)
    scaled[unusable] = 0.0
    return resize(scaled.flip(1).to(torch.uint8), resolution), unusable


def robust_noise(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Median and noise (1.4826 median absolute deviation, else standard deviation) of each (B, n_dm, n_time) page.

    Every fourth row and second column serve: neighbouring DM rows share most of their noise.
    """
    sample = values[:, ::4, ::2].flatten(1)
    median = sample.median(dim=1).values
    sigma = 1.4826 * (sample - median[:, None]).abs().median(dim=1).values
    spread = sample.std(dim=1, correction=0)
    return median, torch.where(sigma > 0, sigma, spread)


def resize(images: torch.Tensor, resolution: int) -> torch.Tensor:
    """Average (or repeat) pixels of (B, H, W) uint8 images so that they become (B, resolution, resolution)."""
    if images.shape[1:] == (resolution, resolution):
        return images
    return F.adaptive_avg_pool2d(images.to(torch.float32), resolution).to(torch.uint8)
