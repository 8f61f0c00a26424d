"""Labelled DM-time images on disk, read batch by batch in constant memory."""

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from single_pulse_classifier_training.cli import InputError


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
        places = np.asarray(indices)
        file_of = np.searchsorted(self.starts, places, side="right") - 1
        batch = np.empty((len(places), 1, self.resolution, self.resolution), np.uint8)
        for file in np.unique(file_of):
            chosen = file_of == file
            batch[chosen, 0] = self.files[file][places[chosen] - self.starts[file]]
            forget(self.files[file])
        return torch.from_numpy(batch), torch.from_numpy(self.labels[places])

    def chunks(self, n_images: int) -> Iterator[tuple[int, np.ndarray]]:
        """All images in order: index of the first, and up to ``n_images`` of one file, uint8 (n, H, W)."""
        for start, images in zip(self.starts[:-1], self.files, strict=True):
            for first in range(0, len(images), n_images):
                chunk = images[first : first + n_images]
                yield int(start) + first, chunk
                forget(images)

    def __reduce__(self):
        # A worker process opens the files again: a pickled memory map would carry the whole set.
        return DMTimeImages, (self.paths, self.labels, self.resolution)


def forget(images: np.ndarray) -> None:
    """Give the memory of a map back, which the system counts as this process's although it is the disk's cache."""
    if hasattr(mmap, "MADV_DONTNEED"):
        images._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def keep_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The collate function for ``DMTimeImages``, whose batches need no collating."""
    return batch


class TrainingBatches:
    """Batches of indices in a new random order each epoch, the same for the same seed and epoch.

    ``batch_size`` images are one step of the optimiser whatever the number of ranks; each rank gets its share of them.
    A last batch with fewer than two images a rank is left out: batch normalisation has no variance to measure there.

    Attributes
    ----------
    epoch : whose order is given
    first : batches of this epoch that are done already and not given again
    """

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int, rank: int = 0, n_ranks: int = 1):
        self.indices, self.batch_size, self.seed, self.rank, self.n_ranks = indices, batch_size, seed, rank, n_ranks
        full, rest = divmod(len(indices), batch_size)
        self.n_batches = full + (rest >= 2 * n_ranks)
        self.epoch = 1
        self.first = 0

    def __len__(self) -> int:
        return self.n_batches - self.first

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.indices)
        for number in range(self.first, self.n_batches):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield batch[self.rank :: self.n_ranks].tolist()


def ordered_batches(indices: np.ndarray, batch_size: int, rank: int = 0, n_ranks: int = 1) -> list[list[int]]:
    """Batches of a rank's share of the indices, in order; all ranks together give every index once."""
    mine = indices[rank::n_ranks]
    return [mine[first : first + batch_size].tolist() for first in range(0, len(mine), batch_size)]


def build_loader(
    dataset: DMTimeImages, batches: TrainingBatches | list[list[int]], num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """A loader of the batches: uint8 images (B, 1, H, W) and int64 labels (B,)."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=keep_batch,  # type: ignore[arg-type] # a batch of __getitems__ is no list
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        # The loader draws a seed for its workers: not from the global state, which a resumed training has to restore.
        generator=torch.Generator().manual_seed(0),
    )


def _load_array(path: Path, key: str, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
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


def load_labels(paths: Sequence[Path]) -> np.ndarray:
    """Read labels: strings ``Pulse`` / ``Artefact``, or integers 1 / 0; returns int64 (N,) of all files together.

    Raises
    ------
    InputError : no such file, an array of another kind, or a label that is neither class.
    """
    return np.concatenate([_labels_of(Path(path)) for path in paths])


def _labels_of(path: Path) -> np.ndarray:
    labels = np.atleast_1d(_load_array(path, "labels").squeeze())
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


def load_groups(paths: Sequence[Path], n_images: int) -> np.ndarray:
    """Read the event that each image shows: integers or strings, returned as int64 (N,) counted from 0.

    The same value in two files is the same event.
    """
    groups = _one_per_image(paths, "groups", n_images, "USiu", "integers or strings")
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def load_snr(paths: Sequence[Path], n_images: int) -> np.ndarray:
    """Read the S/N of the pulse that each image shows, float32 (N,), NaN where there is none."""
    return _one_per_image(paths, "snr", n_images, "fiu", "numbers").astype(np.float32)


def _one_per_image(paths: Sequence[Path], key: str, n_images: int, kinds: str, valid: str) -> np.ndarray:
    parts = [np.atleast_1d(_load_array(Path(path), key).squeeze()) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.ndim != 1 or part.dtype.kind not in kinds:
            raise InputError(f"{key}: {path} holds {part.dtype} {part.shape}: valid are {valid}, one an image")
    values = np.concatenate(parts)
    if len(values) != n_images:
        names = ", ".join(str(path) for path in paths)
        raise InputError(f"{key}: {names} has {len(values)} values for {n_images} images: valid is one an image")
    return values
