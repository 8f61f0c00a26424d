"""Pages: their definition, how they are cut from dedispersed time series, and how they become images.

A page is a (n_dm, n_time) float32 DM-time plane: row 0 is the lowest DM, column j the sample ``start + j``, timed at
the top channel of the band. An image is what a network gets: uint8 (resolution, resolution), row 0 the *highest* DM.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pipeline_classifier.dispersion import dispersion_delay

PAGE_NORMALISERS = ("minmax", "robust")
NORMALISERS = (*PAGE_NORMALISERS, "noise")
ROBUST_RANGE = (-5.0, 20.0)
"""Standard deviations that ``robust`` and ``noise`` map to 0 and 255: ten grey levels per sigma of noise, and one hot
pixel does not darken the rest of the page."""


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
    """Consecutive pages of one layer of a source, as columns of a plane.

    Attributes
    ----------
    plane : (n_dm, n) ndarray
        Row 0 = lowest DM: integer sums or float32 values, or uint8 for images that are normalised already.
    columns : (B,) ndarray of int64
        First column of each page in the plane; those of adjoining pages are as far apart as their starts.
    starts : (B,) ndarray of int64
        First sample of each page.
    n_time : int
        Columns of a page.
    first : int
        Index of the first page of the batch in its layer.
    layer : int
        Index of the layer (DM stack and time resolution) in `Source.layers`.
    scale : float
        Factor of the values; rounded to float32.
    """

    plane: np.ndarray
    columns: np.ndarray
    starts: np.ndarray
    n_time: int
    first: int
    layer: int = 0
    scale: float = 1.0

    @classmethod
    def of_pages(cls, pages: np.ndarray, starts: np.ndarray, first: int, layer: int = 0) -> "PageBatch":
        """Put pages (B, n_dm, n_time), or images (B, n_dm, n_time) of uint8, side by side."""
        count, n_dm, n_time = pages.shape
        rows = pages[:, ::-1] if pages.dtype == np.uint8 else pages
        plane = np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(n_dm, count * n_time)
        return cls(plane, n_time * np.arange(count), starts, n_time, first, layer)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, part: slice) -> "PageBatch":
        first = self.first + range(len(self))[part].start
        return replace(self, columns=self.columns[part], starts=self.starts[part], first=first)

    @property
    def are_images(self) -> bool:
        """Whether the pages are images already."""
        return self.plane.dtype == np.uint8

    @property
    def pages(self) -> np.ndarray:
        """All pages, as `cut` returns them."""
        return self.cut(slice(None))

    def noise(self) -> tuple[np.ndarray, np.ndarray]:
        """Median and noise of each page, both (B,) float32; see `robust_noise`."""
        return robust_noise(self.sampled())

    def largest_boxcars(self, n_widths: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Search the whole plane with boxcars.

        Returns
        -------
        highest : (n_widths, n) ndarray of float32
        lowest, total : (n,) ndarray of float32
            As in `boxcar_kernels.largest_boxcars`.
        """
        from pipeline_classifier.frontend import boxcar_kernels

        n = self.plane.shape[1]
        highest, lowest, total = np.empty((n_widths, n), np.float32), *np.empty((2, n), np.float32)
        boxcar_kernels.largest_boxcars(np.ascontiguousarray(self.plane), np.float32(self.scale), highest, lowest, total)
        return highest, lowest, total

    def columns_on_host(self, first: int, end: int) -> np.ndarray:
        """Return columns of the plane, not scaled."""
        return self.plane[:, first:end]

    def images(self, chosen: np.ndarray, normaliser: str, resolution: int) -> tuple[np.ndarray, np.ndarray]:
        """Turn some of the pages into images.

        Returns
        -------
        images : (B, resolution, resolution) ndarray of uint8
            On a GPU a tensor.
        unusable : (B,) ndarray of bool
            As `to_images`; of pages that are images already, those that are constant.
        """
        pages = self.cut(chosen)
        if not self.are_images:
            return to_images(pages, normaliser, resolution)
        images = resize(pages, resolution)
        return images, images.max(axis=(1, 2)) == images.min(axis=(1, 2))

    def sampled(self) -> np.ndarray:
        """Cut out the values of the pages from which their noise is measured, float32; see `sampling_steps`."""
        rows, columns = sampling_steps(len(self.plane), self.n_time)
        windows = np.lib.stride_tricks.sliding_window_view(self.plane[::rows], self.n_time, axis=1)
        values = windows.transpose(1, 0, 2)[:, :, ::columns][self.columns]
        return np.multiply(values, np.float32(self.scale), dtype=np.float32, casting="unsafe")

    def cut(self, chosen: slice | np.ndarray) -> np.ndarray:
        """Cut out some of the pages.

        Parameters
        ----------
        chosen : slice or ndarray of int
            Which pages of the batch.

        Returns
        -------
        (B, n_dm, n_time) ndarray
            float32; images as uint8, row 0 = highest DM.
        """
        windows = np.lib.stride_tricks.sliding_window_view(self.plane, self.n_time, axis=1).transpose(1, 0, 2)
        pages = windows[self.columns[chosen]]
        if self.are_images:
            return np.ascontiguousarray(pages[:, ::-1])
        return np.multiply(pages, np.float32(self.scale), dtype=np.float32, casting="unsafe")


def page_starts(n_samples: int, n_time: int, overlap: float = 0.0) -> np.ndarray:
    """First samples of the pages that cover ``n_samples`` samples without a gap.

    Page p starts at ``p * n_time * (1 - overlap)``. The last page ends at the last sample, and may therefore overlap
    with the one before it.
    """
    step = max(1, round(n_time * (1.0 - overlap)))
    last = max(0, n_samples - n_time)
    return np.append(np.arange(0, last, step), last)


def to_images(pages: np.ndarray, normaliser: str, resolution: int) -> tuple[np.ndarray, np.ndarray]:
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

    Returns
    -------
    images : (B, resolution, resolution) ndarray of uint8
        Row 0 = highest DM.
    unusable : (B,) ndarray of bool
        Pages that are constant, not finite, or too large to be scaled in float32; their images are zero.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if normaliser == "minmax":
            black, white = pages.min(axis=(1, 2)), pages.max(axis=(1, 2))
            unusable = ~(np.isfinite(black) & np.isfinite(white) & (white > black))
        elif normaliser == "robust":
            median, sigma = robust_noise(pages)
            unusable = ~(np.isfinite(pages.sum(axis=(1, 2))) & (sigma > 0))
            black, white = (median + np.float32(sigmas) * sigma for sigmas in ROBUST_RANGE)
        elif normaliser == "noise":
            unusable = ~np.isfinite(pages.sum(axis=(1, 2)))
            black, white = (np.full(len(pages), sigmas, np.float32) for sigmas in ROBUST_RANGE)
        else:
            raise ValueError(f"normaliser must be one of {', '.join(NORMALISERS)}, got {normaliser!r}")
        extent = white - black
    unusable |= ~np.isfinite(extent)
    images = _grey_levels(pages, black, extent)
    images[unusable] = 0
    return resize(images, resolution), unusable


def _grey_levels(pages: np.ndarray, black: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Map ``black`` to ``black + extent`` of each page to 0 to 255, (B, n_dm, n_time) uint8, rows reversed."""
    images = np.empty(pages.shape, np.uint8)
    with np.errstate(all="ignore"):
        for image, page, lowest, range_ in zip(images, pages, black, extent, strict=True):
            # Divided before it is multiplied, as in the original, so that the maximum is 255 and not 254.99998.
            scaled = page - lowest
            scaled /= range_
            scaled *= np.float32(255.0)
            np.copyto(image, np.clip(scaled, 0.0, 255.0, out=scaled)[::-1], casting="unsafe")
    return images


def sampling_steps(n_dm: int, n_time: int) -> tuple[int, int]:
    """Steps between the rows and columns of a page from which its noise is measured: 8 and 4 from 65,536 values on.

    Neighbouring trial DMs share most of their noise.
    """
    return (8, 4) if n_dm * n_time >= 65536 else (1, 1)


def robust_noise(pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and noise of each page (B, n_dm, n_time), both (B,) float32.

    The noise is 1.4826 times the median absolute deviation, or the standard deviation where that is 0. Large pages are
    sampled (`sampling_steps`).
    """
    rows, columns = sampling_steps(*pages.shape[1:])
    sample = pages[:, ::rows, ::columns].reshape(len(pages), -1)
    median = median_of_rows(sample, lower=True)
    sigma = np.float32(1.4826) * median_of_rows(np.abs(sample - median[:, None]), lower=True)
    degenerate = sigma == 0
    if degenerate.any():
        sigma[degenerate] = sample[degenerate].std(axis=1)
    return median, sigma


def median_of_rows(values: np.ndarray, lower: bool = False) -> np.ndarray:
    """Upper or lower median of each row of (m, n) float32, (m,); values that are not numbers are the last ones."""
    from pipeline_classifier.frontend import kernels

    medians = np.empty(len(values), np.float32)
    kernels.select(np.ascontiguousarray(values), (values.shape[1] - lower) // 2, medians)
    return medians


def resize(images: np.ndarray, resolution: int) -> np.ndarray:
    """Average (or repeat) pixels of (B, H, W) uint8 images so that they become (B, resolution, resolution).

    Each pixel is the mean of those that it overlaps, rounded down.
    """
    if images.shape[1:] == (resolution, resolution):
        return images
    values, size = images.astype(np.int64), np.ones((1, 1, 1), np.int64)
    for axis in (1, 2):
        n = values.shape[axis]
        edges = np.arange(resolution + 1) * n
        first, end = edges[:-1] // resolution, -(-edges[1:] // resolution)
        total = np.insert(values.cumsum(axis=axis), 0, 0, axis=axis)
        values = total.take(end, axis=axis) - total.take(first, axis=axis)
        size = size * np.expand_dims(end - first, tuple(other for other in (0, 1, 2) if other != axis))
    return (values // size).astype(np.uint8)
