"""Search for images that show the same stretch of data, at whatever shift and in whatever order.

Two pages of one event show the same noise, shifted in time. Scaling a page by its own extremes multiplies its noise by
another factor, and averaging pixels mixes neighbouring columns. The marks of an image survive both: they are the signs
of random projections of differences between pixels, so they depend neither on the offset nor on the scale. Images
smaller than the native resolution are smoothed and marked at every half pixel, because a shift need not be a whole
number of their pixels (locality-sensitive hashing; Charikar 2002, STOC, 380). Equal marks only suggest a pair of images
and a shift: the pixels decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from single_pulse_classifier_training.dataset import DMTimeImages, forget

NATIVE_RESOLUTION = 256  # pixels; in smaller images a shift of one sample is a fraction of a pixel

ROWS_MARKED, ROWS_COMPARED = 64, 32  # rows of different DM are nearly independent: more would only take longer
IMAGES_PER_CHUNK = 64
MOST_MARKS = 2**22  # per search, about 100 MB; of larger sets, a fixed part of the columns is marked
FALSE_PAIRS = 0.25  # per image, expected from equal marks of unrelated columns
ROUNDS, MOST_PAIRS = 8, 4  # rounds before the last; pairs per image that are compared in the last
FEWEST_COMMON = 4  # two images are compared if they share at least a quarter of their columns
PIXELS_AT_ONCE = 2**17  # of the images that are compared at once
SMALLEST = 16  # pixels of images that are compared; no network takes so few
LAG = 4
"""Columns between the pixels whose difference is taken: beyond the smoothing, which reaches three columns."""
TEXTURED = 0.75
"""Fraction of the rows of a column that must differ from those ``LAG`` columns later. Gaussian noise with a standard
deviation of 0.9 grey levels, and a variance of 1/12 from truncation, just reaches it."""
SAME_DATA = 0.8
"""Correlation that three quarters of the common columns must reach, for two images to show the same data.

Measured on sets of simulate_observation.py --rfi strong, with 40 pulses of S/N 20 to 300 at the same DM, and
create_dataset.py --shifts 24. Of pairs of pages of one event that share 60 % of their samples, all 2800 reach 0.83
(minmax and robust; 32, 64 and 128 pixels; without the smooth images). Of pairs of different observations with equal
marks (minmax), the highest of 67 000 correlations is 0.77 at 32 pixels, and of 26 000 it is 0.49 at 64 pixels. With the
mean instead of the median in ``CLIP``, the former reached 0.88, as much as copies shifted by half a pixel.
"""
NEARLY_SAME = 0.5  # one place beside the right shift, most copies of 32 to 128 pixels have 0.5 to 0.8
CORRELATION_MISSED = {64: 0.001, 32: 0.0035}
"""Fraction of the pairs that share half of their columns but do not reach ``SAME_DATA``, by the smallest resolution for
which it holds; a mean over shifts by all fractions of a pixel. Of pages of white noise averaged to 32 pixels, 13 of
4000 did not reach it (1.4 % of those shifted by half a pixel); of pages of 64 and 128 pixels, none of 1800. In smaller
images, half of the columns are too few to be compared."""
CLIP = 2.0
"""Largest difference between pixels, in units of the median size: what is larger is a pulse, which looks alike in pages
of different data. In an image of a bright pulse, the median is set by the noise, but the mean by the pulse."""
COLUMNS_OF_MEDIAN = 16  # enough for a median to 5 %; all columns of a large image would take longer than the comparison

WORST_CORRELATION = {True: 0.99, False: 0.9}
"""Correlation of two images of the same data, at the native resolution and at the worst fraction of a pixel below it:
20 / sqrt(480) = 0.913 for the kernels of ``_smooth``, less the truncation to integers."""
MOST_SEARCHES = 16
SUFFICIENT_MARKS = 5.5
"""Expected number of equal marks of two images that share half of their columns: exp(-5.5) of such pairs have none."""


@dataclass(frozen=True)
class SharedData:
    """Images that show the same data.

    Parameters
    ----------
    component : (N,) ndarray of int64
        Images with the same number are connected by pairs that show the same data; counted from 0.
    links : (K, 2) ndarray of int64
        The pairs that connect them, compared on their pixels.
    smooth : (N,) ndarray of bool
        Images with too little noise to be compared.
    missed : float
        Expected fraction of the pairs that share half of their columns and are not found.
    """

    component: np.ndarray
    links: np.ndarray
    smooth: np.ndarray
    missed: float


def find_shared_data(sets: Sequence[DMTimeImages], only_between: bool = False) -> SharedData:
    """Find the images that show the same data.

    Parameters
    ----------
    sets : sequence of DMTimeImages
        The images are numbered through all of them.
    only_between : bool
        Compare only images of different sets.
    """
    images = _Images(sets)
    if not len(images) or images.resolution < SMALLEST:
        return SharedData(np.arange(len(images)), np.empty((0, 2), np.int64), np.zeros(len(images), bool), 1.0)
    n, generator = len(images), np.random.default_rng(0)
    part = images.set_of if only_between else np.arange(n)
    component, links, smooth = np.arange(n), [np.empty((0, 2), np.int64)], np.zeros(n, bool)
    equal_marks = 0.0
    with tqdm(desc="leakage check", total=n, unit="image", leave=False, disable=None, delay=2) as bar:
        for _ in range(MOST_SEARCHES):
            bar.reset(n)
            marks = _Marks.of(images, generator, bar, smooth)
            equal_marks += marks.expected_equals
            component, found = _join(images, marks.pairs(part), component)
            links.append(found)
            if equal_marks >= SUFFICIENT_MARKS:
                break
    return SharedData(component, np.concatenate(links), smooth, _missed(equal_marks, images.resolution))


def _missed(equal_marks: float, resolution: int) -> float:
    """Return the fraction of pairs with no mark in common, of the Poisson distribution, or too low a correlation."""
    below = next((part for fewest, part in CORRELATION_MISSED.items() if resolution >= fewest), 1.0)
    return 1 - (1 - float(np.exp(-equal_marks))) * (1 - below)


class _Images:
    """Images of several sets under one numbering."""

    def __init__(self, sets: Sequence[DMTimeImages]):
        self.resolution, self.sets = sets[0].resolution, sets
        self.files = [plane for images in sets for plane in images.planes]
        self.starts = np.cumsum([0, *(len(file) for file in self.files)])
        self.set_of = np.repeat(np.arange(len(sets)), [len(images) for images in sets])
        self.rows = np.arange(0, self.resolution, max(1, self.resolution // ROWS_MARKED))
        self.rows_compared = np.arange(0, self.resolution, max(1, self.resolution // ROWS_COMPARED))
        self.is_native = self.resolution >= NATIVE_RESOLUTION

    def __len__(self) -> int:
        return int(self.starts[-1])

    def differences(self, indices: np.ndarray) -> np.ndarray:
        """Return differences in DM and time, (n, C, rows - 1) float32: at every column, or half pixel if not native.

        A pulse is smooth in DM and noise is not, so the difference in DM leaves mostly noise.
        """
        values = np.empty((len(indices), len(self.rows_compared), self.resolution), np.float32)
        file_of = np.searchsorted(self.starts, indices, side="right") - 1
        for number in np.unique(file_of):
            file, chosen = self.files[number], np.flatnonzero(file_of == number)
            values[chosen] = file[(indices[chosen] - self.starts[number])[:, None], self.rows_compared]
            forget(file)
        values = np.ascontiguousarray(values.transpose(0, 2, 1))
        differences = _lagged(values[..., :-1] - values[..., 1:], self.is_native)
        some = differences[:, :: max(1, differences.shape[1] // COLUMNS_OF_MEDIAN)]
        limit = CLIP * np.median(np.abs(some), axis=(1, 2), keepdims=True)
        return np.clip(differences, -limit, limit, out=differences)


def _lagged(values: np.ndarray, is_native: bool) -> np.ndarray:
    """Return differences of columns ``LAG`` apart, (n, R, K) to (n, C, K); if not native, of smoothed half pixels."""
    if is_native:
        return values[:, :-LAG] - values[:, LAG:]
    values = _smooth(values)
    return values[:, : -2 * LAG] - values[:, 2 * LAG :]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Smooth along time by (1 2 1) at each pixel and by (1 3 3 1) / 2 at each half pixel, (n, R, K) to (n, 2 R - 5, K).

    Both kernels are about as wide, so a page is similar to another that is shifted by half a pixel.
    """
    n, resolution, width = values.shape
    smoothed = np.empty((n, 2 * resolution - 5, width), np.float32)
    pairs = values[:, :-1] + values[:, 1:]
    pixels, half_pixels = smoothed[:, ::2], smoothed[:, 1::2]
    np.add(pairs[:, :-1], pairs[:, 1:], out=pixels)
    np.add(pixels[:, :-1], pixels[:, 1:], out=half_pixels)
    half_pixels *= 0.5
    return smoothed


@dataclass(frozen=True)
class _Marks:
    """Marks of a search, all (K,): image, place in it and hash; and the expected number of equals of related images."""

    image: np.ndarray
    place: np.ndarray
    mark: np.ndarray
    expected_equals: float

    @classmethod
    def of(cls, images: _Images, generator: np.random.Generator, bar: tqdm, smooth: np.ndarray) -> "_Marks":
        """Mark all images with new random projections, and note the smooth ones."""
        weights = generator.normal(size=(len(images.rows) - 1, 32)).astype(np.float32)
        weights = np.pad(weights, ((0, 1), (0, 0))) - np.pad(weights, ((1, 0), (0, 0)))  # of differences in DM
        per_pixel = 1 if images.is_native else 2
        n_places = _lagged(np.zeros((1, images.resolution, 1), np.float32), images.is_native).shape[1]
        selection = max(0, int(np.ceil(np.log2(max(1, len(images) * n_places) / MOST_MARKS))))
        found: list[tuple[np.ndarray, ...]] = [(np.empty(0, np.int32), np.empty(0, np.int16), np.empty(0, np.uint32))]
        first = 0
        for images_of_set in images.sets:
            for start, chunk in images_of_set.chunks(IMAGES_PER_CHUNK):
                rows = np.ascontiguousarray(chunk[:, images.rows])
                projections = rows.astype(np.float32).transpose(0, 2, 1) @ weights
                marks = np.packbits(_lagged(projections, images.is_native) > 0, axis=2).view(">u4")[..., 0]
                textured = (rows[..., :-LAG] != rows[..., LAG:]).mean(axis=1) >= TEXTURED
                smooth[first + start : first + start + len(chunk)] = textured.mean(axis=1) < 0.5
                chosen = textured[:, np.arange(n_places) // per_pixel] & (marks < 2 ** (32 - selection))
                image, place = np.nonzero(chosen)
                kept = marks[image, place].astype(np.uint32)
                found.append(((first + start + image).astype(np.int32), place.astype(np.int16), kept))
                bar.update(len(chunk))
            first += len(images_of_set)
        image, place, mark = (np.concatenate(part) for part in zip(*found, strict=True))
        bits = min(32, selection + int(np.ceil(np.log2(max(1, len(mark) ** 2 / (FALSE_PAIRS * len(images)))))))
        agreement = 1 - np.arccos(WORST_CORRELATION[images.is_native]) / np.pi  # of a sign; Goemans & Williamson 1995
        common = n_places - per_pixel * images.resolution // 2
        return cls(image, place, mark >> np.uint32(32 - bits), max(0, common) * agreement**bits)

    def pairs(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return pairs of images of different parts with equal marks, the shift of each and the number of its marks.

        Of several images with one mark, each is paired with the next only.
        """
        order = np.argsort(self.mark, kind="stable")
        mark, image, place = self.mark[order], self.image[order].astype(np.int64), self.place[order].astype(np.int64)
        equal = np.flatnonzero((mark[1:] == mark[:-1]) & (part[image[1:]] != part[image[:-1]]))
        shift = place[equal] - place[equal + 1]
        n, n_shifts = len(part), 4 * NATIVE_RESOLUTION * 16
        key = (image[equal] * n + image[equal + 1]) * n_shifts + shift + n_shifts // 2
        key, votes = np.unique(key, return_counts=True)
        pair = key // n_shifts
        best = np.lexsort((-votes, pair))
        best = best[np.diff(pair[best], prepend=-1) != 0]
        return pair[best] // n, pair[best] % n, key[best] % n_shifts - n_shifts // 2, votes[best]


def _join(
    images: _Images, pairs: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], component: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compare suggested pairs of different components on their pixels.

    In the first rounds, every component is compared with the one that has most marks in common with it (Boruvka's
    algorithm), so that most pairs are connected before they are compared. All other pairs follow in the last round.

    Returns
    -------
    component : (N,) ndarray of int64
    links : (K, 2) ndarray of int64
        Pairs that show the same data.
    """
    n, links = len(component), [np.empty((0, 2), np.int64)]
    before, after, shift, votes = pairs
    for last_round in (False,) * ROUNDS + (True,):
        is_open = component[before] != component[after]
        before, after, shift, votes = before[is_open], after[is_open], shift[is_open], votes[is_open]
        if last_round:
            chosen = np.argsort(-votes, kind="stable")[: MOST_PAIRS * n]
        else:
            node = np.concatenate((component[before], component[after]))
            order = np.lexsort((-np.tile(votes, 2), node))
            chosen = np.unique(order[np.diff(node[order], prepend=-1) != 0] % max(1, len(before)))
        same = chosen[_show_same_data(images, before[chosen], after[chosen], shift[chosen])]
        links.append(np.stack((before[same], after[same]), axis=1))
        ends = component[before[same]], component[after[same]]
        graph = coo_array((np.ones(len(same), np.int8), ends), shape=(n, n))
        component = connected_components(graph, directed=False)[1][component].astype(np.int64)
        rest = np.ones(len(before), bool)
        rest[chosen] = False
        before, after, shift, votes = before[rest], after[rest], shift[rest], votes[rest]
    return component, np.concatenate(links)


def _show_same_data(images: _Images, before: np.ndarray, after: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Compare pairs of images on their pixels: column c of the second image is column c + shift of the first."""
    correlation = np.zeros(len(before), np.float32)
    at_once = max(1, PIXELS_AT_ONCE // (len(images.rows_compared) * images.resolution))
    for first in range(0, len(before), at_once):
        chosen = slice(first, first + at_once)
        differences = images.differences(np.concatenate((before[chosen], after[chosen])))
        middle = len(differences) // 2
        correlation[chosen] = _best_correlation(differences[:middle], differences[middle:], shift[chosen])
    return correlation >= SAME_DATA


def _best_correlation(first: np.ndarray, second: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the highest correlation at the shift and one place beside it: equal marks may be one place apart."""
    correlation = _correlation(first, second, shift)
    near = np.flatnonzero((correlation >= NEARLY_SAME) & (correlation < SAME_DATA))
    for step in (-1, 1) if near.size else ():
        beside = _correlation(first[near], second[near], shift[near] + step)
        correlation[near] = np.maximum(correlation[near], beside)
    return correlation


def _correlation(first: np.ndarray, second: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the correlation that three of four common columns of (n, C, rows) reach; -1 if few are common."""
    n_places = first.shape[1]
    n_common = n_places - np.abs(shift)
    place = np.arange(n_places)
    pair = np.arange(len(shift))[:, None]
    x = first[pair, np.minimum(place + np.maximum(shift, 0)[:, None], n_places - 1)]
    y = second[pair, np.minimum(place + np.maximum(-shift, 0)[:, None], n_places - 1)]
    covariance = np.einsum("nij,nij->ni", x, y)
    scale = np.sqrt(np.einsum("nij,nij->ni", x, x) * np.einsum("nij,nij->ni", y, y))
    correlation = np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)
    correlation[place >= n_common[:, None]] = -1
    ranked = np.sort(correlation, axis=1)[:, ::-1]
    lower_quartile = ranked[np.arange(len(shift)), 3 * n_common // 4]
    return np.where(n_common >= n_places // FEWEST_COMMON, lower_quartile, -1)
