"""Splits of the data: training, validation and test images.

No event may be in two splits: shifted copies of one pulse in both would make any score meaningless.
"""

import logging
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import ImageFiles, TrainingConfig
from single_pulse_classifier_training.dataset import DMTimeImages, forget, load_groups, load_labels, load_snr
from single_pulse_classifier_training.scaling import contradicts, scaling_of
from single_pulse_classifier_training.training_models import CLASS_NAMES

logger = logging.getLogger(__name__)

NATIVE_RESOLUTION = 256  # pixels, of the images from which smaller sets are downsampled

# The numbers below bound memory, or balance the time of the leakage check against its sensitivity.
# They were chosen by hand; not tuned on data.
PAIRS_PER_CHUNK = 64
ROWS_COMPARED = 64
IMAGES_PER_CHUNK = 128
MARKS_PER_IMAGE = 16
FEWEST_LEVELS = 8  # grey levels; a column with fewer is nearly blank, and unrelated images can share it


@dataclass(frozen=True)
class Split:
    """Images of one split.

    Parameters
    ----------
    dataset : DMTimeImages
        The set that holds them.
    indices : (n,) ndarray of int64
        Their indices in the set, sorted.
    snr : (n,) ndarray of float32, optional
        S/N of the pulse in each image, NaN where unknown; None if the set has no S/N file.
    """

    dataset: DMTimeImages
    indices: np.ndarray
    snr: np.ndarray | None

    @property
    def labels(self) -> np.ndarray:
        """Class of each image, (n,) int64."""
        return self.dataset.labels[self.indices]


def load_splits(config: TrainingConfig) -> dict[str, Split]:
    """Return the splits "training" and "validation", and "test" if the config has ``test_files``.

    Without ``validation_files`` the set is split by event. An event consists of the images with one value in the groups
    file or, without such a file, of images that are shifted copies of each other. In both cases, images that share a
    column of pixels are joined into one event.

    Raises
    ------
    InputError
        If a file cannot be used, a class is missing in a split, or an event is in two splits.
    """
    dataset, snr, groups = _open_set(config, config)
    if groups is None:
        groups = find_events(dataset)
    marks = {"training": column_marks(dataset)}
    if config.validation_files is None:
        groups = join_by_marks(groups, *marks["training"])
        training, validation = split_by_event(dataset.labels, groups, config.validation_fraction, config.seed)
        splits = {"training": _split(dataset, snr, training), "validation": _split(dataset, snr, validation)}
    else:
        splits = {"training": _split(dataset, snr, np.arange(len(dataset)))}
    for name, files in (("validation", config.validation_files), ("test", config.test_files)):
        if files is not None:
            other, other_snr, _ = _open_set(config, files)
            splits[name] = _split(other, other_snr, np.arange(len(other)))
            marks[name] = column_marks(other)
            check_classes(name, splits[name].labels)
    check_classes("training", splits["training"].labels)
    check_no_shared_data(marks)
    logger.info("%d events; images: %s", len(np.unique(groups)), {name: len(s.indices) for name, s in splits.items()})
    return splits


def _open_set(config: TrainingConfig, files: ImageFiles) -> tuple[DMTimeImages, np.ndarray | None, np.ndarray | None]:
    labels = load_labels(config.data_paths(files.labels))
    dataset = DMTimeImages(config.image_paths(files), labels, config.resolution)
    for path, images in zip(dataset.paths, dataset.files, strict=True):
        if contradicts(scaling := scaling_of(images), config.normaliser):
            logger.warning(
                "%s: the images seem to be scaled by %s, but the config has the normaliser %s, used in a search",
                path,
                scaling,
                config.normaliser,
            )
        forget(images)
    snr = load_snr(config.data_paths(files.snr), len(labels)) if files.snr else None
    groups = load_groups(config.data_paths(files.groups), len(labels)) if files.groups else None
    return dataset, snr, groups


def _split(dataset: DMTimeImages, snr: np.ndarray | None, indices: np.ndarray) -> Split:
    return Split(dataset, indices, None if snr is None else snr[indices])


def column_marks(dataset: DMTimeImages) -> tuple[np.ndarray, np.ndarray]:
    """Compute marks that identify images of the same stretch of data, whatever their order in the files.

    Each column of pixels has a hash, a sum with random weights that is exact in float64. About ``MARKS_PER_IMAGE``
    columns of an image are kept, those whose hash is a multiple of a fixed number. This choice depends only on the
    column, so two images with a common stretch keep the same columns of it. Columns with fewer than ``FEWEST_LEVELS``
    grey levels are left out, because they hold no noise that would identify them.

    Returns
    -------
    image : (K,) ndarray of int64
        Index of the image of each mark.
    mark : (K,) ndarray of int64
        Hash of the column.
    """
    resolution = dataset.resolution
    bits = 52 - 8 - int(np.ceil(np.log2(resolution)))
    weights = np.random.default_rng(0).integers(1, 2**bits, resolution).astype(np.float64)
    every = max(1, resolution // MARKS_PER_IMAGE)
    images, marks = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    chunks = dataset.chunks(IMAGES_PER_CHUNK)
    n_chunks = sum(-(-len(file) // IMAGES_PER_CHUNK) for file in dataset.files)
    for first, chunk in tqdm(chunks, desc="leakage check", total=n_chunks, leave=False, disable=None, delay=2):
        hashes = (weights @ chunk.astype(np.float64)).astype(np.int64)
        image, column = np.nonzero(hashes % every == 0)
        levels = np.sort(chunk[image, :, column], axis=1)
        textured = (np.diff(levels, axis=1) != 0).sum(axis=1) + 1 >= FEWEST_LEVELS
        images.append(first + image[textured])
        marks.append(hashes[image, column][textured])
    return np.concatenate(images), np.concatenate(marks)


def join_by_marks(groups: np.ndarray, image: np.ndarray, mark: np.ndarray) -> np.ndarray:
    """Join the groups of images that have a mark in common, and hence show the same data.

    Parameters
    ----------
    groups : (N,) ndarray of int
        Group of each image.
    image, mark : (K,) ndarray of int64
        As ``column_marks`` returns them.

    Returns
    -------
    joined : (N,) ndarray of int64
        The new groups, counted from 0.
    """
    marks, mark = np.unique(mark, return_inverse=True)
    groups = np.unique(groups, return_inverse=True)[1]
    n_groups = int(groups.max(initial=-1)) + 1
    n_nodes = n_groups + len(marks)
    links = coo_array((np.ones(len(image), np.int8), (groups[image], n_groups + mark)), shape=(n_nodes, n_nodes))
    return connected_components(links, directed=False)[1][groups].astype(np.int64)


def check_no_shared_data(marks: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Raise InputError if images of two sets show the same stretch of data.

    Parameters
    ----------
    marks : dict
        Image and mark arrays of each split, as ``column_marks`` returns them.
    """
    names = list(marks)
    for number, name in enumerate(names):
        for other in names[number + 1 :]:
            shared, here, there = np.intersect1d(marks[name][1], marks[other][1], return_indices=True)
            if shared.size:
                raise InputError(
                    f"the split leaks: image {marks[other][0][there[0]]} of the {other} files shows the same data as "
                    f"image {marks[name][0][here[0]]} of the {name} files"
                )


def find_events(dataset: DMTimeImages) -> np.ndarray:
    """Find the event of each image: neighbours in a file that are shifted copies of each other belong to one.

    A candidate gives a run of pages, each one sample later (or earlier) than the page before. In a set downsampled from
    256 pixels by a factor f, pages f places apart are shifted by one column. Shuffled sets need a groups file.

    Returns
    -------
    events : (N,) ndarray of int64
        Counted from 0.
    """
    lags = sorted({1, max(1, NATIVE_RESOLUTION // dataset.resolution)})
    first_of_event = np.ones(len(dataset), bool)
    for start, images in zip(dataset.starts[:-1], dataset.files, strict=True):
        joined = np.zeros(len(images), bool)
        for lag in lags:
            chunks = range(0, len(images) - lag, PAIRS_PER_CHUNK)
            for first in tqdm(chunks, desc="find shifted copies", leave=False, disable=None, delay=2):
                last = min(first + PAIRS_PER_CHUNK, len(images) - lag)
                before, after = images[first:last], images[first + lag : last + lag]
                shifted = shifted_copies(before, after, resampled=lag > 1)
                forget(images)
                # The pages between a page and its shifted copy belong to the same event.
                for place in range(1, lag + 1):
                    joined[first + place : last + place] |= shifted
        first_of_event[start : start + len(images)] = ~joined
    return np.cumsum(first_of_event) - 1


def shifted_copies(before: np.ndarray, after: np.ndarray, resampled: bool = False) -> np.ndarray:
    """Find the pairs of images that show the same data, shifted by one column.

    Parameters
    ----------
    before, after : (N, H, W) ndarray of uint8
        Compared pair by pair.
    resampled : bool
        Leave out the outer columns, whose values depend on neighbours outside the image.

    Returns
    -------
    shifted : (N,) ndarray of bool
    """
    result = np.zeros(len(before), bool)
    for left, right in ((before[:, :, 1:], after[:, :, :-1]), (before[:, :, :-1], after[:, :, 1:])):
        if resampled:
            left, right = left[:, :, 2:-2], right[:, :, 2:-2]
        result |= (left == right).all(axis=(1, 2))
        rest = np.flatnonzero(~result)
        step = max(1, left.shape[1] // ROWS_COMPARED)
        result[rest] |= _same_up_to_scale(left[rest, ::step], right[rest, ::step])
    return result


def _same_up_to_scale(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Find the pairs that agree after a linear rescaling of the grey levels, within the truncation to integers.

    Each page is scaled by its own extremes: the scale changes when a bright column enters or leaves. It is the ratio of
    the standard deviations, each corrected for the variance 1/12 of the truncation (Sheppard's correction).
    """
    n_pixels = left.shape[1] * left.shape[2]
    x: np.ndarray = left.reshape(-1, n_pixels).astype(np.float32)
    y: np.ndarray = right.reshape(-1, n_pixels).astype(np.float32)
    inside = (x > 0) & (x < 255) & (y > 0) & (y < 255)
    n = np.maximum(inside.sum(axis=1, keepdims=True), 1)

    x = x - (x * inside).sum(axis=1, keepdims=True) / n
    y = y - (y * inside).sum(axis=1, keepdims=True) / n
    x *= inside
    y *= inside
    variance_x = (x * x).sum(axis=1, keepdims=True) / n
    variance_y = (y * y).sum(axis=1, keepdims=True) / n
    covariance = (x * y).sum(axis=1, keepdims=True) / n
    # A correlation above 0.5 excludes unrelated noise before the exact comparison. Chosen by hand; not tuned on data.
    correlated = covariance**2 > 0.25 * variance_x * variance_y

    scale = np.sqrt(np.maximum(variance_y - 1 / 12, 1e-6) / np.maximum(variance_x - 1 / 12, 1e-6))
    # Truncation changes a value by up to half a level in each image; twice that leaves room for the error of the fit.
    agree = (np.abs(y - scale * x) <= 1.0 + scale).all(axis=1, keepdims=True)
    # At least a quarter of the pixels must be neither 0 nor 255. Chosen by hand; not tuned on data.
    enough = inside.mean(axis=1, keepdims=True) > 0.25
    return (correlated & (covariance > 0) & agree & enough)[:, 0]


def split_by_event(
    labels: np.ndarray, groups: np.ndarray, validation_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split images into training and validation without dividing an event.

    Among the events that show a pulse, and among the others, whole events are drawn at random until their number of
    images is as near as possible to ``validation_fraction``. At least one event is drawn and at least one is left.

    Parameters
    ----------
    labels : (N,) ndarray of int
        1 = Pulse, 0 = Artefact.
    groups : (N,) ndarray of int
        Event of each image.
    validation_fraction : float
        Fraction of the images for validation, between 0 and 1.
    seed : int
        The same seed gives the same split.

    Returns
    -------
    training, validation : ndarray of int64
        Sorted indices; together all N images.

    Raises
    ------
    InputError
        If a class would be missing in one of the splits, for example because it has only one event.
    """
    random = np.random.default_rng(seed)
    events, event_of = np.unique(groups, return_inverse=True)
    n_images = np.bincount(event_of)
    shows_pulse = np.bincount(event_of, weights=labels) > 0
    in_validation = np.zeros(len(events), bool)
    for stratum in (shows_pulse, ~shows_pulse):
        drawn = random.permutation(np.flatnonzero(stratum))
        if len(drawn) > 1:
            held = np.cumsum(n_images[drawn])
            n_events = np.abs(held - validation_fraction * held[-1]).argmin() + 1
            in_validation[drawn[: min(n_events, len(drawn) - 1)]] = True
    image_in_validation = in_validation[event_of]
    training, validation = np.flatnonzero(~image_in_validation), np.flatnonzero(image_in_validation)
    check_split(labels, groups, training, validation)
    return training, validation


def check_split(labels: np.ndarray, groups: np.ndarray, training: np.ndarray, validation: np.ndarray) -> None:
    """Raise InputError if an event is in both splits, or a class is missing in one."""
    shared = np.intersect1d(groups[training], groups[validation])
    if shared.size:
        raise InputError(
            f"the split leaks: {shared.size} event(s), such as {shared[0]}, are in both training and validation"
        )
    for split, indices in (("training", training), ("validation", validation)):
        missing = _missing_class(labels[indices])
        if missing is not None:
            n_events = len(np.unique(groups[labels == missing]))
            name = CLASS_NAMES[missing]
            raise InputError(f"labels: the {split} split would have no {name}; the set has {n_events} {name} event(s)")


def check_classes(split: str, labels: np.ndarray) -> None:
    """Raise InputError if a class is missing among the labels of a split."""
    missing = _missing_class(labels)
    if missing is not None:
        raise InputError(f"labels: the {split} files must have images of both classes, got no {CLASS_NAMES[missing]}")


def _missing_class(labels: np.ndarray) -> int | None:
    return next((label for label in range(len(CLASS_NAMES)) if label not in labels), None)
