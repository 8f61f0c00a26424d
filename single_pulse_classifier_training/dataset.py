"""Labelled images on disk, read in batches with constant memory."""

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from single_pulse_classifier_training.channels import DM_TIME
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.input_files import open_npy
from single_pulse_classifier_training.set_description import stored_channels


class DMTimeImages(Dataset):
    """Memory-mapped images, which are read when their batch is requested.

    Parameters
    ----------
    paths : sequence of str or Path
        uint8 .npy files of shape (N, H, W), (N, 1, H, W) or (N, H, W, 1), taken one after the other; or (N, C, H, W) if
        the description of the set names C channels.
    labels : ndarray of int64
        Class of each image: 0 = Artefact, 1 = Pulse.
    resolution : int
        H = W of the network.
    channels : sequence of str
        Channels that are read.

    Attributes
    ----------
    files : list of ndarray
        The channels of each file that are read, (N, C, H, W).
    planes : list of ndarray
        The DM-time channel of each file, (N, H, W), by which images are compared whatever channels are read.

    Raises
    ------
    InputError
        If a file is missing, unreadable or has another type or shape, lacks a channel, or the numbers of labels and
        images differ.
    """

    def __init__(
        self, paths: Sequence[str | Path], labels: np.ndarray, resolution: int, channels: Sequence[str] = DM_TIME
    ):
        self.paths, self.labels, self.resolution = [Path(path) for path in paths], labels, resolution
        self.channels = tuple(channels)
        opened = [_open_images(path, resolution, self.channels) for path in self.paths]
        self.files, self.planes = [files for files, _ in opened], [plane for _, plane in opened]
        self.starts = np.cumsum([0, *(len(images) for images in self.files)])
        if self.starts[-1] != len(labels):
            names = ", ".join(str(path) for path in self.paths)
            raise InputError(
                f"labels: the number must be {self.starts[-1]}, as of the images in {names}, got {len(labels)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Read a batch; a DataLoader needs ``keep_batch`` as its collate function.

        Returns
        -------
        images : (B, C, H, W) tensor of uint8
        labels : (B,) tensor of int64
        """
        places = np.asarray(indices)
        file_of = np.searchsorted(self.starts, places, side="right") - 1
        used = np.unique(file_of)
        if len(used) == 1:
            [file] = used
            batch = np.ascontiguousarray(self.files[file][places - self.starts[file]])
            forget(self.files[file])
            return torch.from_numpy(batch), torch.from_numpy(self.labels[places])
        batch = np.empty((len(places), len(self.channels), self.resolution, self.resolution), np.uint8)
        for file in used:
            chosen = file_of == file
            batch[chosen] = self.files[file][places[chosen] - self.starts[file]]
            forget(self.files[file])
        return torch.from_numpy(batch), torch.from_numpy(self.labels[places])

    def chunks(self, n_images: int) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over the DM-time channel of all images in order, up to ``n_images`` of one file at a time.

        Yields
        ------
        first : int
            Index of the first image.
        images : (n, H, W) ndarray of uint8
        """
        for start, images in zip(self.starts[:-1], self.planes, strict=True):
            for first in range(0, len(images), n_images):
                chunk = images[first : first + n_images]
                yield int(start) + first, chunk
                forget(images)

    def each_file(self) -> list["DMTimeImages"]:
        """Return the images of each file as a set."""
        labels = np.split(self.labels, self.starts[1:-1])
        parts = zip(self.paths, labels, strict=True)
        return [DMTimeImages([path], part, self.resolution, self.channels) for path, part in parts]

    def name_of(self, index: int) -> str:
        """Return the name of an image in a message: its index in its file, and the file."""
        file = int(np.searchsorted(self.starts, index, side="right")) - 1
        return f"image {index - self.starts[file]} of {self.paths[file]}"

    def checksum(self) -> str:
        """Return a checksum of the number and size of the images, and of the middle row of every DM-time image."""
        total = hashlib.blake2b(repr((self.resolution, self.starts.tolist())).encode(), digest_size=16)
        for _, images in self.chunks(1024):
            total.update(images[:, self.resolution // 2].tobytes())
        return total.hexdigest()

    def middle_rows(self) -> Iterator[np.ndarray]:
        """Iterate over the middle row of each channel that is read, (n, C, W), of up to 1024 images at a time."""
        for images in self.files:
            for first in range(0, len(images), 1024):
                yield images[first : first + 1024, :, self.resolution // 2]
                forget(images)

    def __reduce__(self):
        # A worker process opens the files again: a pickled memory map would contain the whole set.
        return DMTimeImages, (self.paths, self.labels, self.resolution, self.channels)


def forget(images: np.ndarray) -> None:
    """Release the memory of a memory map, which the system would otherwise count as used by this process."""
    if hasattr(mmap, "MADV_DONTNEED"):
        images._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def keep_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the batch unchanged: the collate function for ``DMTimeImages``."""
    return batch


class TrainingBatches:
    """Batches of indices in a new random order in each epoch, determined by seed and epoch.

    A step of the optimiser has ``batch_size`` images, whatever the number of ranks; each rank gets a part of them. A
    last batch with fewer than two images per rank is left out, because batch normalisation needs a variance.

    Parameters
    ----------
    indices : ndarray of int
        Images of the training split.
    batch_size : int
        Images per step, of all ranks together.
    seed : int
    rank, n_ranks : int
        This process, and the number of processes.

    Attributes
    ----------
    epoch : int
        Epoch whose order is used.
    first : int
        Number of batches of the epoch to skip, because they are finished.
    """

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int, rank: int = 0, n_ranks: int = 1):
        self.indices, self.batch_size, self.seed, self.rank, self.n_ranks = indices, batch_size, seed, rank, n_ranks
        full, rest = divmod(len(indices), batch_size)
        self.n_batches = full + (rest >= 2 * n_ranks)
        self.epoch = 1
        self.first = 0

    def __len__(self) -> int:
        return self.n_batches - self.first

    @property
    def n_images(self) -> int:
        """Number of images of the remaining batches, of all ranks together."""
        return min(len(self.indices), self.n_batches * self.batch_size) - self.first * self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.indices)
        for number in range(self.first, self.n_batches):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield batch[self.rank :: self.n_ranks].tolist()


def ordered_batches(indices: np.ndarray, batch_size: int, rank: int = 0, n_ranks: int = 1) -> list[list[int]]:
    """Return the batches of one rank, in order; all ranks together have every index once."""
    mine = indices[rank::n_ranks]
    return [mine[first : first + batch_size].tolist() for first in range(0, len(mine), batch_size)]


def build_loader(
    dataset: DMTimeImages, batches: TrainingBatches | list[list[int]], num_workers: int, pin_memory: bool = False
) -> DataLoader:
    """Return a loader of the batches: images (B, C, H, W) uint8 and labels (B,) int64."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=keep_batch,  # type: ignore[arg-type] # __getitems__ returns a batch, not a list
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        # Without this, the loader would draw from the global generator, whose state a resumed training must restore.
        generator=torch.Generator().manual_seed(0),
    )


def _load_array(path: Path, key: str) -> np.ndarray:
    return np.atleast_1d(np.array(open_npy(path, key)).squeeze())


def _open_images(path: Path, resolution: int, channels: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the channels of a file that are read, (N, C, H, W), and its DM-time channel, (N, H, W), without a copy."""
    images, stored = open_npy(path, "files_by_resolution"), DM_TIME
    shape = images.shape
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(
            f"{path}: the images must be uint8 (N, H, W), (N, 1, H, W), (N, H, W, 1) or (N, C, H, W), "
            f"got {images.dtype} {shape}"
        )
    if images.ndim == 4 and 1 not in (shape[1], shape[3]):
        stored = stored_channels(path)
        if shape[1] != len(stored):
            raise InputError(
                f"{path}: images (N, C, H, W) must have C channels that the description of a set names (..._set.json), "
                f"got {shape} and no description"
            )
    if images.ndim == 3:
        images = images[:, None]
    elif shape[1] != len(stored):
        images = images[..., 0][:, None]
    if images.shape[2:] != (resolution, resolution):
        height, width = images.shape[2:]
        raise InputError(f"{path}: the images must have {resolution} x {resolution} pixels, got {height} x {width}")
    if missing := [name for name in channels if name not in stored]:
        raise InputError(
            f"{path}: the images must have the channels {', '.join(channels)}, got none of the name {missing[0]}"
        )
    places = [stored.index(name) for name in channels]
    # Both are in the order of CHANNELS, of which there are three: any choice has equal steps.
    step = places[1] - places[0] if len(places) > 1 else 1
    return images[:, places[0] : places[-1] + 1 : step], images[:, stored.index("dm_time")]


def load_labels(paths: Sequence[Path]) -> np.ndarray:
    """Read labels: strings ``Pulse`` / ``Artefact``, or integers 1 / 0.

    Returns
    -------
    labels : (N,) ndarray of int64
        1 = Pulse, 0 = Artefact, of all files one after the other.

    Raises
    ------
    InputError
        If a file is missing, has another type or shape, or has an unknown label.
    """
    return np.concatenate([_labels_of(Path(path)) for path in paths])


def _labels_of(path: Path) -> np.ndarray:
    labels = _load_array(path, "labels")
    if labels.ndim != 1 or labels.dtype.kind not in "USiub":
        raise InputError(f"labels: {path} must hold strings or integers (N,), got {labels.dtype} {labels.shape}")
    if labels.dtype.kind in "US":
        labels = labels.astype("U")
        artefact, pulse = labels == "Artefact", labels == "Pulse"
    else:
        artefact, pulse = labels == 0, labels == 1
    unknown = labels[~(artefact | pulse)]
    if unknown.size:
        raise InputError(f"labels: {path}: a label must be Pulse or Artefact (or 1, 0), got {unknown[0].item()!r}")
    return pulse.astype(np.int64)


def load_groups(paths: Sequence[Path], n_images: int) -> np.ndarray:
    """Read the event of each image: integers or strings. The same value in two files means two different events.

    Returns
    -------
    groups : (N,) ndarray of int64
        Counted from 0.
    """
    parts = _one_per_image(paths, "groups", n_images, "USiu", "integers or strings")
    events, n_events = [], 0
    for part in parts:
        events.append(n_events + np.unique(part, return_inverse=True)[1].astype(np.int64))
        n_events = int(events[-1].max(initial=n_events - 1)) + 1
    return np.concatenate(events)


def load_snr(paths: Sequence[Path], n_images: int) -> np.ndarray:
    """Read the S/N of the pulse in each image, (N,) float32; NaN where there is none."""
    return np.concatenate(_one_per_image(paths, "snr", n_images, "fiu", "numbers")).astype(np.float32)


def _one_per_image(paths: Sequence[Path], key: str, n_images: int, kinds: str, valid: str) -> list[np.ndarray]:
    parts = [_load_array(Path(path), key) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.ndim != 1 or part.dtype.kind not in kinds:
            raise InputError(f"{key}: {path} must hold {valid} (N,), got {part.dtype} {part.shape}")
    n_values = sum(map(len, parts))
    if n_values != n_images:
        names = ", ".join(str(path) for path in paths)
        raise InputError(f"{key}: the number of values in {names} must be {n_images}, one per image, got {n_values}")
    return parts
