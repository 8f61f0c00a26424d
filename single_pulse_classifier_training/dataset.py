"""Labelled DM-time images on disk, and their split by event into training and validation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.training_models import CLASS_NAMES

NATIVE_RESOLUTION = 256
PAIRS_PER_CHUNK = 64
ROWS_COMPARED = 64


class DMTimeImages(Dataset):
    """Images that stay on disk (memory-mapped) until their batch is asked for.

    Parameters
    ----------
    paths : one or several uint8 .npy files of shape (N, H, W), (N, 1, H, W) or (N, H, W, 1), read one after the other
    labels : int64 array, one class an image: 0 = Artefact, 1 = Pulse
    resolution : H = W that the network wants

    Raises
    ------
    InputError : a file that is missing, unreadable or of another type or shape, or more or fewer labels than images.
    """

    def __init__(self, paths: Sequence[str | Path], labels: np.ndarray, resolution: int):
        self.paths, self.labels, self.resolution = [Path(path) for path in paths], labels, resolution
        self.files = [_open_images(path, resolution) for path in self.paths]
        self.starts = np.cumsum([0, *(len(images) for images in self.files)])
        if self.starts[-1] != len(labels):
            names = ", ".join(str(path) for path in self.paths)
            raise InputError(f"there are {len(labels)} labels, but {self.starts[-1]} images in {names}")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A whole batch: uint8 images (B, 1, H, W) and int64 labels (B,). The DataLoader needs ``keep_batch``."""
        indices = np.asarray(indices)
        file_of = np.searchsorted(self.starts, indices, side="right") - 1
        batch = np.empty((len(indices), 1, self.resolution, self.resolution), np.uint8)
        for file in np.unique(file_of):
            chosen = file_of == file
            batch[chosen, 0] = self.files[file][indices[chosen] - self.starts[file]]
        return torch.from_numpy(batch), torch.from_numpy(self.labels[indices])

    def __reduce__(self):
        # A worker process opens the files again: a pickled memory map would carry the whole set.
        return DMTimeImages, (self.paths, self.labels, self.resolution)


def keep_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The collate function for ``DMTimeImages``, whose batches need no collating."""
    return batch


def _load_array(path: Path, key: str, mmap_mode: str | None = None) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{key}: the file {path} does not exist")
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError):
        array = None
    if not isinstance(array, np.ndarray) or array.ndim == 0:
        raise InputError(f"{key}: {path} is not a .npy file of plain numbers or strings")
    return array


def _open_images(path: Path, resolution: int) -> np.ndarray:
    images = _load_array(path, "files_by_resolution", mmap_mode="r")
    shape = images.shape
    is_image_set = images.ndim == 3 or images.ndim == 4 and 1 in (shape[1], shape[3])
    if images.dtype != np.uint8 or not is_image_set:
        raise InputError(
            f"{path} holds {images.dtype} {shape}: valid are uint8 (N, H, W), (N, 1, H, W) or (N, H, W, 1)"
        )
    if images.ndim == 4:
        images = images[:, 0] if shape[1] == 1 else images[..., 0]
    if images.shape[1:] != (resolution, resolution):
        height, width = images.shape[1:]
        raise InputError(f"{path} holds images of {height} x {width} pixels, but resolution is {resolution}")
    return images


def load_labels(path: str | Path) -> np.ndarray:
    """Read labels: strings ``Pulse`` / ``Artefact``, or integers 1 / 0; returns int64 (N,).

    Raises
    ------
    InputError : no such file, an array of another kind, or a label that is neither class.
    """
    path = Path(path)
    labels = _load_array(path, "labels").squeeze()
    if labels.ndim != 1 or labels.dtype.kind not in "USiub":
        raise InputError(f"labels: {path} holds {labels.dtype} {labels.shape}: valid are strings or integers (N,)")
    if labels.dtype.kind in "US":
        labels = labels.astype("U")
        artefact, pulse = labels == "Artefact", labels == "Pulse"
    else:
        artefact, pulse = labels == 0, labels == 1
    unknown = labels[~(artefact | pulse)]
    if unknown.size:
        raise InputError(f"labels: {path} has the label {unknown[0].item()!r}: valid are Pulse, Artefact (or 1, 0)")
    return pulse.astype(np.int64)


def load_groups(path: str | Path, n_images: int) -> np.ndarray:
    """Read the event that each image shows: integers or strings, returned as int64 (N,) counted from 0."""
    path = Path(path)
    groups = _load_array(path, "groups").squeeze()
    if groups.shape != (n_images,) or groups.dtype.kind not in "USiu":
        raise InputError(
            f"groups: {path} holds {groups.dtype} {groups.shape}: valid are integers or strings ({n_images},), "
            "one an image"
        )
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def find_events(dataset: DMTimeImages) -> np.ndarray:
    """The event of each image, int64 (N,): neighbours in a file that are shifted copies of each other share one.

    A candidate gives a run of pages, each one sample later (or earlier) than the one before. In a set downsampled from
    256 pixels by a factor f, pages that lie f places apart are shifted by one column. Shuffled sets need a groups file.
    """
    lags = sorted({1, max(1, NATIVE_RESOLUTION // dataset.resolution)})
    first_of_event = np.ones(len(dataset), bool)
    for start, images in zip(dataset.starts, dataset.files):
        joined = np.zeros(len(images), bool)
        for lag in lags:
            chunks = range(0, len(images) - lag, PAIRS_PER_CHUNK)
            for first in tqdm(chunks, desc="find shifted copies", leave=False, disable=None, delay=2):
                last = min(first + PAIRS_PER_CHUNK, len(images) - lag)
                shifted = shifted_copies(images[first:last], images[first + lag : last + lag], resampled=lag > 1)
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
    x = left.reshape(-1, n_pixels).astype(np.float32)
    y = right.reshape(-1, n_pixels).astype(np.float32)
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
        for label, class_name in enumerate(CLASS_NAMES):
            if label not in labels[indices]:
                n_events = len(np.unique(groups[labels == label]))
                raise InputError(
                    f"labels: no {class_name} is left for the {side} side of the split, "
                    f"since the set has {n_events} {class_name} event(s)"
                )
