"""The sides of a training: which images the network learns from, and which it is judged by.

No event may be on two sides: shifted copies of one pulse on both make any score meaningless.
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
from single_pulse_classifier_training.training_models import CLASS_NAMES

logger = logging.getLogger(__name__)

NATIVE_RESOLUTION = 256
PAIRS_PER_CHUNK = 64
ROWS_COMPARED = 64
IMAGES_PER_CHUNK = 128
MARKS_PER_IMAGE = 16
FEWEST_LEVELS = 8


@dataclass(frozen=True)
class Side:
    """The images of one side.

    Attributes
    ----------
    dataset : the set they belong to
    indices : sorted int64, their places in the set
    snr : float32, S/N of each one's pulse, NaN where unknown; None when the set has none
    """

    dataset: DMTimeImages
    indices: np.ndarray
    snr: np.ndarray | None

    @property
    def labels(self) -> np.ndarray:
        """int64, the class of each image."""
        return self.dataset.labels[self.indices]


def load_sides(config: TrainingConfig) -> dict[str, Side]:
    """The sides ``training`` and ``validation``, and ``test`` when the config has ``test_files``.

    Without ``validation_files`` the set is split by event: events are those of the groups file, or images that are
    shifted copies of each other, and in both cases images that share a column of pixels belong together.

    Raises
    ------
    InputError : unusable files, a class that is missing on a side, or an event on two sides.
    """
    dataset, snr, groups = _open_set(config, config)
    if groups is None:
        groups = find_events(dataset)
    marks = {"training": column_marks(dataset)}
    if config.validation_files is None:
        groups = join_by_marks(groups, *marks["training"])
        indices = split_by_event(dataset.labels, groups, config.validation_fraction, config.seed)
        in_training, in_validation = indices
        sides = {"training": _side(dataset, snr, in_training), "validation": _side(dataset, snr, in_validation)}
    else:
        sides = {"training": _side(dataset, snr, np.arange(len(dataset)))}
    for name, files in (("validation", config.validation_files), ("test", config.test_files)):
        if files is not None:
            other, other_snr, _ = _open_set(config, files)
            sides[name] = _side(other, other_snr, np.arange(len(other)))
            marks[name] = column_marks(other)
            check_classes(name, sides[name].labels)
    check_classes("training", sides["training"].labels)
    check_no_shared_data(marks)
    logger.info("%d events; images: %s", len(np.unique(groups)), {name: len(s.indices) for name, s in sides.items()})
    return sides


def _open_set(config: TrainingConfig, files: ImageFiles) -> tuple[DMTimeImages, np.ndarray | None, np.ndarray | None]:
    labels = load_labels(config.data_paths(files.labels))
    dataset = DMTimeImages(config.image_paths(files), labels, config.resolution)
    snr = load_snr(config.data_paths(files.snr), len(labels)) if files.snr else None
    groups = load_groups(config.data_paths(files.groups), len(labels)) if files.groups else None
    return dataset, snr, groups


def _side(dataset: DMTimeImages, snr: np.ndarray | None, indices: np.ndarray) -> Side:
    return Side(dataset, indices, None if snr is None else snr[indices])


def column_marks(dataset: DMTimeImages) -> tuple[np.ndarray, np.ndarray]:
    """Marks by which two images that show the same stretch of data are known, whatever their order in the files.

    Each column of pixels has a hash, a sum with random weights that is exact in float64. About ``MARKS_PER_IMAGE`` of
    the columns of an image are kept, those whose hash is a multiple of a number: the choice depends on nothing but the
    column, so that two images with a common stretch keep the same ones of it. Columns with fewer than
    ``FEWEST_LEVELS`` grey levels are left out: they show no noise by which to know them.

    Returns
    -------
    image, mark : int64 (K,), int64 (K,)
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
    """The groups, int64 (N,), after those that share a mark have become one."""
    marks, mark = np.unique(mark, return_inverse=True)
    groups = np.unique(groups, return_inverse=True)[1]
    n_groups = int(groups.max(initial=-1)) + 1
    n_nodes = n_groups + len(marks)
    links = coo_array((np.ones(len(image), np.int8), (groups[image], n_groups + mark)), shape=(n_nodes, n_nodes))
    return connected_components(links, directed=False)[1][groups].astype(np.int64)


def check_no_shared_data(marks: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Raise InputError when images of two different sets show the same stretch of data."""
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
    """The event of each image, int64 (N,): neighbours in a file that are shifted copies of each other share one.

    A candidate gives a run of pages, each one sample later (or earlier) than the one before. In a set downsampled from
    256 pixels by a factor f, pages that lie f places apart are shifted by one column. Shuffled sets need a groups file.
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
                # A page and its shifted copy are of one event, and so is all that lies between them.
                for place in range(1, lag + 1):
                    joined[first + place : last + place] |= shifted
        first_of_event[start : start + len(images)] = ~joined
    return np.cumsum(first_of_event) - 1


def shifted_copies(before: np.ndarray, after: np.ndarray, resampled: bool = False) -> np.ndarray:
    """Which pairs of images show the same data, one column apart.

    Parameters
    ----------
    before, after : uint8 (N, H, W), compared pair by pair
    resampled : leave the outer columns out, which resampling fills with other neighbours

    Returns
    -------
    bool (N,)
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
    """Which pairs agree, within truncation to integers, after a linear rescaling of the grey levels; bool (N,).

    Each page is scaled by its own extremes: when a bright column enters or leaves, the copies differ by such a scale.
    The scale is the ratio of the standard deviations, free of the variance 1/12 of truncation (Sheppard's correction).
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
    correlated = covariance**2 > 0.25 * variance_x * variance_y

    scale = np.sqrt(np.maximum(variance_y - 1 / 12, 1e-6) / np.maximum(variance_x - 1 / 12, 1e-6))
    # Truncation moves a value by half a level to either side, in both images: twice that leaves room for the fit.
    agree = (np.abs(y - scale * x) <= 1.0 + scale).all(axis=1, keepdims=True)
    enough = inside.mean(axis=1, keepdims=True) > 0.25
    return (correlated & (covariance > 0) & agree & enough)[:, 0]


def split_by_event(
    labels: np.ndarray, groups: np.ndarray, validation_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split images into training and validation so that no event is on both sides.

    Of the events that show a Pulse, and of those that do not, whole events are drawn at random until the validation
    side holds the part of their images that comes nearest to ``validation_fraction``; both sides get at least one.

    Parameters
    ----------
    labels : int (N,), 0 = Artefact, 1 = Pulse
    groups : int (N,), the event that each image shows
    validation_fraction : wanted part of the images, between 0 and 1
    seed : the same seed gives the same split

    Returns
    -------
    training, validation : sorted int64 indices, together all N images

    Raises
    ------
    InputError : a class that cannot be on both sides, having fewer than two events.
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
    on_validation_side = in_validation[event_of]
    training, validation = np.flatnonzero(~on_validation_side), np.flatnonzero(on_validation_side)
    check_split(labels, groups, training, validation)
    return training, validation


def check_split(labels: np.ndarray, groups: np.ndarray, training: np.ndarray, validation: np.ndarray) -> None:
    """Raise InputError when an event is on both sides of a split, or a class is missing on one."""
    shared = np.intersect1d(groups[training], groups[validation])
    if shared.size:
        raise InputError(f"the split leaks: {shared.size} event(s), {shared[0]} among them, are on both sides")
    for side, indices in (("training", training), ("validation", validation)):
        missing = _missing_class(labels[indices])
        if missing is not None:
            n_events = len(np.unique(groups[labels == missing]))
            name = CLASS_NAMES[missing]
            raise InputError(
                f"labels: no {name} is left for the {side} side of the split, "
                f"since the set has {n_events} {name} event(s)"
            )


def check_classes(side: str, labels: np.ndarray) -> None:
    """Raise InputError when a class is missing among the labels of a side."""
    missing = _missing_class(labels)
    if missing is not None:
        raise InputError(f"labels: the {side} files hold no {CLASS_NAMES[missing]}")


def _missing_class(labels: np.ndarray) -> int | None:
    return next((label for label in range(len(CLASS_NAMES)) if label not in labels), None)
