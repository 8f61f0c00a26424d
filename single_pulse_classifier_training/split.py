"""Splits of the data: training, validation and test images.

No event may be in two splits: shifted copies of one pulse in both would make any score meaningless.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from single_pulse_classifier_training.channels import DM_TIME
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import ImageFiles, TrainingConfig
from single_pulse_classifier_training.dataset import DMTimeImages, forget, load_groups, load_labels, load_snr
from single_pulse_classifier_training.distributed import Ranks
from single_pulse_classifier_training.scaling import contradicts, scaling_of
from single_pulse_classifier_training.set_description import description_of, input_channels
from single_pulse_classifier_training.shared_data import SharedData
from single_pulse_classifier_training.shared_data_cache import load_shared_data
from single_pulse_classifier_training.training_models import CLASS_NAMES

logger = logging.getLogger(__name__)

MOST_UNDECIDED = 0.01
"""Fraction of images, or of pairs of images, that the comparison of pixels may leave undecided without a warning. One
image in a hundred in the wrong split can change an accuracy by 0.01 at most."""


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
    events : (n,) ndarray of int64, optional
        Event of each image; None if it is not known.
    """

    dataset: DMTimeImages
    indices: np.ndarray
    snr: np.ndarray | None
    events: np.ndarray | None = None

    @property
    def labels(self) -> np.ndarray:
        """Class of each image, (n,) int64."""
        return self.dataset.labels[self.indices]

    @classmethod
    def of(cls, images: "Split", indices: np.ndarray, events: np.ndarray | None) -> "Split":
        """Choose some images of a whole set."""
        return cls(
            images.dataset,
            indices,
            None if images.snr is None else images.snr[indices],
            None if events is None else events[indices],
        )


def load_splits(
    config: TrainingConfig, ranks: Ranks | None = None, channels: Sequence[str] | None = None
) -> dict[str, Split]:
    """Return the splits "training" and "validation", and "test" if the config has ``test_files``.

    Without ``validation_files`` the set is split by event. An event consists of the images with one value in the groups
    file, which the config or the description of the set names, and of images that show the same data; without a groups
    file, of the latter alone.

    Parameters
    ----------
    config : TrainingConfig
    ranks : Ranks, optional
        Processes of the training; one of them compares the images.
    channels : sequence of str, optional
        Channels that are read; the default is ``input_channels``. The splits do not depend on them.

    Raises
    ------
    InputError
        If a file cannot be used, a class is missing in a split, or an event is in two splits.
    """
    channels = input_channels(config) if channels is None else channels
    sets = {"training": _open_set(config, config, channels)}
    for name, files in (("validation", config.validation_files), ("test", config.test_files)):
        if files is not None:
            sets[name] = _open_set(config, files, channels)
            check_classes(name, sets[name].labels)
    datasets = [images.dataset for images in sets.values()]
    is_given = config.validation_files is not None
    shared = (ranks or Ranks()).from_writer(lambda: load_shared_data(datasets, only_between=is_given))
    check_no_shared_data(sets, shared.links)
    splits, whole = dict(sets), sets["training"]
    if is_given:
        check_classes("training", whole.labels)
    else:
        groups = np.arange(len(whole.labels)) if whole.events is None else whole.events
        events = join_groups(groups, shared.component[: len(groups)])
        if whole.events is not None:
            _warn_of_groups(whole, shared.component[: len(groups)])
        training, validation = split_by_event(whole.labels, events, config.validation_fraction, config.seed)
        splits = {"training": Split.of(whole, training, events), "validation": Split.of(whole, validation, events)}
        splits |= {name: images for name, images in sets.items() if name == "test"}
    logger.info("%s", report(splits, shared, whole.events is not None, is_given))
    if is_given or whole.events is None or len(np.unique(whole.events)) == len(whole.events):
        _warn_if_undecided(shared, is_given, config.normaliser == "noise")
    return splits


def _open_set(config: TrainingConfig, files: ImageFiles, channels: Sequence[str]) -> Split:
    """Return all images of a set, with their groups as events."""
    labels = load_labels(config.data_paths(files.labels))
    dataset = DMTimeImages(config.image_paths(files), labels, config.resolution, channels)
    for path, images in zip(dataset.paths, dataset.planes, strict=True):
        if contradicts(scaling := scaling_of(images), config.normaliser):
            logger.warning(
                "%s: the images seem to be scaled by %s, but the config has the normaliser %s, used in a search",
                path,
                scaling,
                config.normaliser,
            )
        forget(images)
    snr = load_snr(config.data_paths(files.snr), len(labels)) if files.snr else None
    return Split(dataset, np.arange(len(labels)), snr, _groups_of(config, files, dataset))


def _groups_of(config: TrainingConfig, files: ImageFiles, dataset: DMTimeImages) -> np.ndarray | None:
    """Read the groups files that the config names, or else the descriptions of all image files."""
    if files.groups:
        return load_groups(config.data_paths(files.groups), len(dataset))
    paths, without = [], []
    for images in dataset.paths:
        description = description_of(images)
        if description is None or description.groups is None or not images.with_name(description.groups).is_file():
            without.append(images)
        else:
            paths.append(images.with_name(description.groups))
    if without:
        if paths:
            logger.warning("groups: %s is not used, because %s has no groups file", paths[0].name, without[0])
        return None
    logger.info("groups: taken from %s, as the description of the set says", ", ".join(map(str, paths)))
    return load_groups(paths, len(dataset))


def join_groups(groups: np.ndarray, component: np.ndarray) -> np.ndarray:
    """Join the groups of images that show the same data.

    Parameters
    ----------
    groups, component : (N,) ndarray of int
        Two divisions of the images: by event, and by data.

    Returns
    -------
    joined : (N,) ndarray of int64
        The new groups, counted from 0 in the order of their first images, whatever the numbers of the old ones.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    component = int(groups.max(initial=-1)) + 1 + np.unique(component, return_inverse=True)[1]
    n_nodes = int(component.max(initial=-1)) + 1
    links = coo_array((np.ones(len(groups), np.int8), (groups, component)), shape=(n_nodes, n_nodes))
    joined = connected_components(links, directed=False)[1][groups]
    _, first, number = np.unique(joined, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number].astype(np.int64)


def check_no_shared_data(sets: dict[str, Split], links: np.ndarray) -> None:
    """Raise InputError if one of the pairs of images (K, 2) that show the same data is of two sets."""
    names, starts = list(sets), np.cumsum([0, *(len(images.indices) for images in sets.values())])
    set_of = np.searchsorted(starts, links, side="right") - 1
    for pair, (one, other) in zip(links, set_of, strict=True):
        if one != other:
            (one, here), (other, there) = sorted(((one, pair[0]), (other, pair[1])))
            raise InputError(
                f"the split leaks: image {there - starts[other]} of the {names[other]} files shows the same data as "
                f"image {here - starts[one]} of the {names[one]} files"
            )


def _warn_of_groups(images: Split, component: np.ndarray) -> None:
    """Warn if pulses of different groups show the same data."""
    pulse = np.flatnonzero(images.labels == 1)
    assert images.events is not None
    pairs, first = np.unique(np.stack((component[pulse], images.events[pulse])), axis=1, return_index=True)
    n_groups, repeated = pairs.shape[1], np.flatnonzero(pairs[0, 1:] == pairs[0, :-1])
    if repeated.size:
        here, there = sorted((pulse[first[repeated[0]]], pulse[first[repeated[0] + 1]]))
        logger.warning(
            "groups: %d of the %d groups with a Pulse show the same data as another one, such as images %d and %d; "
            "they are kept in one split",
            np.isin(pairs[0], pairs[0, repeated]).sum(),
            n_groups,
            here,
            there,
        )


def _undecided(shared: SharedData) -> str:
    """Describe what the comparison of pixels could not decide."""
    n_smooth, n = int(shared.smooth.sum()), len(shared.smooth)
    return (
        f"{n_smooth} of {n} images have too little noise to be compared, and {100 * shared.missed:.2g} % of the pairs "
        "that share half of their columns may have been missed"
    )


def _warn_if_undecided(shared: SharedData, is_given: bool, are_cutouts: bool) -> None:
    reason = _undecided(shared) if max(shared.missed, shared.smooth.mean()) > MOST_UNDECIDED else None
    if are_cutouts and not is_given:
        reason = "cutouts of one candidate at different widths are no shifted copies"
    if reason is not None:
        remedy = (
            "check that no observation is in two sets" if is_given else "name a groups file, of the event of each image"
        )
        logger.warning("the split is NOT PROVEN by the pixels, and scores may be too high: %s; %s", reason, remedy)


def report(splits: dict[str, Split], shared: SharedData, has_groups: bool, is_given: bool) -> str:
    """Return a table of what was read, and how images of the same event were found."""
    rows: dict[str, list[str]] = {"split": list(splits)}
    for split in splits.values():
        pulse, events = split.labels == 1, split.events
        snr = np.empty(0) if split.snr is None else split.snr[np.isfinite(split.snr)]
        column = {
            "images": str(len(pulse)),
            "  Pulse": str(pulse.sum()),
            "  Artefact": str((~pulse).sum()),
            "events": "unknown" if events is None else str(len(np.unique(events))),
            "  with a Pulse": "unknown" if events is None else str(len(np.unique(events[pulse]))),
            "S/N": f"{snr.min():.3g} to {snr.max():.3g}" if snr.size else "unknown",
            "  median": f"{np.median(snr):.3g}" if snr.size else "unknown",
        }
        for name, value in column.items():
            rows.setdefault(name, []).append(value)
    lines = [f"{name:<15}" + "".join(f"{value:>16}" for value in values) for name, values in rows.items()]
    if is_given:
        lines.append("the splits are separate files, whose images were compared with each other on their pixels")
    else:
        source = "the groups file and of " if has_groups else ""
        lines.append(f"events are those of {source}images that show the same data, compared on their pixels")
    return "\n".join(["what was read:", *lines, f"{len(shared.links)} pairs show the same data; {_undecided(shared)}"])


def checksum_of(splits: dict[str, Split]) -> str:
    """Return a checksum of the training and validation splits: indices, labels, events and images.

    The images are represented by ``DMTimeImages.checksum`` and, where other channels than DM-time are read, by the
    middle row of each channel.
    """
    total = hashlib.blake2b(digest_size=16)
    for name in ("training", "validation"):
        split = splits[name]
        for values in (split.indices, split.labels, split.events):
            total.update(b"" if values is None else values.astype(np.int64).tobytes())
        total.update(split.dataset.checksum().encode())
        if split.dataset.channels != DM_TIME:
            total.update(repr(split.dataset.channels).encode())
            for rows in split.dataset.middle_rows():
                total.update(rows.tobytes())
    return total.hexdigest()


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
