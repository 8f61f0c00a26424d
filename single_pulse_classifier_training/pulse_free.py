"""Pages without a pulse, on which evaluate.py measures false positives per hour: options, checks and report."""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from single_pulse_classifier_training.calibration import allowed_pages, hours_needed, measured_hours, rate_text
from single_pulse_classifier_training.checkpoint import Checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import TrainingConfig, check_config
from single_pulse_classifier_training.dataset import DMTimeImages
from single_pulse_classifier_training.input_files import open_npy
from single_pulse_classifier_training.set_description import agree, description_of, shown
from single_pulse_classifier_training.shared_data import NATIVE_RESOLUTION
from single_pulse_classifier_training.split import Split
from single_pulse_classifier_training.trained_images import trained_on

logger = logging.getLogger(__name__)

IMAGES_READ_AT_ONCE = 256


@dataclass(frozen=True)
class RateOptions:
    """Options about false positives per hour; None where the command line does not give one.

    Parameters
    ----------
    pulse_free : list of str, optional
        Files of images without a pulse.
    page_s : float, optional
        Length of a page in seconds.
    false_per_hour : list of float, optional
        Rates whose thresholds are measured.
    max_false_per_hour : float, optional
        Rate whose threshold becomes the default threshold.

    Raises
    ------
    InputError
        If a number is not finite and above 0.
    """

    pulse_free: list[str] | None
    page_s: float | None
    false_per_hour: list[float] | None
    max_false_per_hour: float | None

    def __post_init__(self) -> None:
        numbers = [("--page-s", self.page_s), ("--max-false-per-hour", self.max_false_per_hour)]
        numbers += [("--false-per-hour", rate) for rate in self.false_per_hour or []]
        for option, value in numbers:
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{option} must be finite and above 0, got {value:g}")


def why_not_measured(normaliser: str | None, page_s: float, split: str, pulse_free: bool) -> str | None:
    """Return why false positives per hour cannot be measured, None if they can.

    Parameters
    ----------
    normaliser : str or None
        That of the checkpoint, None if it is not known.
    page_s : float
        Length of a page in seconds, or NaN.
    split : str
        The split that is evaluated.
    pulse_free : bool
        Whether the pulse-free pages are files of their own, and not the Artefact images of the split.
    """
    if normaliser == "noise":
        return "of a candidate classifier, they are measured by evaluate_pipeline.py --pulse-free"
    if split == "training" and not pulse_free:
        return "they are not measured on images of the training; give --pulse-free, or another --split"
    if math.isnan(page_s):
        return "the length of a page is not known; give --page-s, or tsamp_s in the config"
    return None


def check_rates(rates: RateOptions, why_not: str | None, page_s: float, n_pages: int) -> None:
    """Raise InputError if the rates of the options cannot be measured.

    Parameters
    ----------
    rates : RateOptions
    why_not : str or None
        Result of `why_not_measured`.
    page_s : float
        Length of a page in seconds.
    n_pages : int
        Number of pulse-free pages.
    """
    if why_not:
        asked = {
            "--pulse-free": rates.pulse_free,
            "--false-per-hour": rates.false_per_hour,
            "--max-false-per-hour": rates.max_false_per_hour,
        }
        for option, value in asked.items():
            if value:
                raise InputError(f"{option} cannot be used for false positives per hour: {why_not}")
        logger.warning("no thresholds by false positives per hour: %s", why_not)
        return
    hours, rate = measured_hours(n_pages, page_s), rates.max_false_per_hour
    if rate and not allowed_pages(rate, hours):
        raise InputError(f"--max-false-per-hour must be at least {1 / hours:.4g}: {hours_needed(rate, hours)}")


def page_length_s(rates: RateOptions, checkpoint: Checkpoint, config: TrainingConfig, evaluated: DMTimeImages) -> float:
    """Return the length of a page in seconds, NaN if it is not known or the images are cutouts of candidates.

    It comes from the options, else from the descriptions of the pulse-free files or of the evaluated images, else from
    the sampling time.
    """
    if checkpoint.normaliser == "noise":
        return math.nan
    images = rates.pulse_free or evaluated.paths
    return (
        rates.page_s
        or _described_page_s(images)
        or NATIVE_RESOLUTION * (checkpoint.tsamp_s or config.tsamp_s or math.nan)
    )


def _described_page_s(images: Sequence[str | Path]) -> float | None:
    """Return the mean length of the pages of image files, None if it is not known for all of them."""
    found = [description_of(path) for path in images]
    lengths = [(d.page_s, d.n_images) for d in found if d and d.page_s]
    if len(lengths) < len(found):
        return None
    return float(np.average([page_s for page_s, _ in lengths], weights=[n for _, n in lengths]))


def open_pulse_free(paths: Sequence[str], checkpoint: Checkpoint) -> DMTimeImages:
    """Open images without a pulse, memory-mapped.

    Raises
    ------
    InputError
        If there is none, if a file is named twice, or if their description names pulses, or another normaliser, other
        trial DMs or another sampling time than the checkpoint.
    """
    for number, path in enumerate(paths):
        if Path(path).resolve() in {Path(earlier).resolve() for earlier in paths[:number]}:
            raise InputError(f"--pulse-free: a file must be named once, got {path} twice")
    n_images = sum(len(np.atleast_1d(open_npy(path, "--pulse-free"))) for path in paths)
    if not n_images:
        raise InputError(f"--pulse-free {', '.join(paths)} must hold at least one image, got none")
    for path in paths:
        if (description := description_of(path)) is None:
            continue
        if pulses := description.classes.get("Pulse", 0):
            raise InputError(f"--pulse-free {path}: must have no pulses, got {pulses} in the description of the set")
        for key, name in (("normaliser", "normaliser"), ("dms", "trial DMs"), ("tsamp_s", "sampling time in seconds")):
            value, wanted = getattr(description, key), getattr(checkpoint, key)
            if value is not None and wanted is not None and not agree(key, value, wanted):
                raise InputError(
                    f"--pulse-free {path}: the {name} must be {shown(wanted)}, as in the checkpoint, got "
                    f"{shown(value)} in the description of the set"
                )
    return DMTimeImages(paths, np.zeros(n_images, np.int64), checkpoint.resolution, checkpoint.channels)


def check_pulse_free(
    pulse_free: DMTimeImages, splits: dict[str, Split], checkpoint: Checkpoint, config: TrainingConfig
) -> None:
    """Raise InputError if a pulse-free image is one that the network was trained on, or is labelled as a pulse.

    The former are the images of the training split, those of the record in the checkpoint, and all images of the files
    that the config in the checkpoint names, if they are others and can be read. The latter are the pulses of the other
    splits. Images are compared by a hash, and equal hashes by the pixels. Images of one grey level are ignored: any two
    of them may be equal.

    Parameters
    ----------
    pulse_free : DMTimeImages
    splits : dict of str to Split
        Splits of ``config``.
    checkpoint : Checkpoint
    config : TrainingConfig
    """
    if (seen := np.flatnonzero(trained_on(checkpoint.trained_images or [], pulse_free))).size:
        raise InputError(f"--pulse-free: images must not be those of the training, got {pulse_free.name_of(seen[0])}")
    by_hash: dict[bytes, list[int]] = {}
    for index, image in _images_with_contrast(pulse_free, np.arange(len(pulse_free))):
        by_hash.setdefault(_hash(image), []).append(index)
    sets = [(splits["training"].dataset, splits["training"].indices, "those of the training")]
    if (other := _set_of_checkpoint(checkpoint, config)) is not None:
        sets.append((other, np.arange(len(other)), "those of the training"))
    for name, split in splits.items():
        if name != "training":
            sets.append((split.dataset, split.indices[split.labels == 1], f"pulses of the {name} split"))
    for dataset, indices, unwanted in sets:
        for index, image in _images_with_contrast(dataset, indices):
            for candidate in by_hash.get(_hash(image), ()):
                if np.array_equal(image, _image(pulse_free, candidate)):
                    raise InputError(
                        f"--pulse-free: images must not be {unwanted}, got {pulse_free.name_of(candidate)}, "
                        f"which is {dataset.name_of(index)}"
                    )


def _set_of_checkpoint(checkpoint: Checkpoint, config: TrainingConfig) -> DMTimeImages | None:
    """Open the images that the config in a checkpoint names; None if they are those of ``config`` or cannot be read."""
    try:
        # Relative paths are taken as relative to the folder of ``config``: the checkpoint does not name another.
        before = check_config(config.resolve("config of the checkpoint"), checkpoint.config, TrainingConfig)
        paths = before.image_paths(before)
        if [path.resolve() for path in paths] == [path.resolve() for path in config.image_paths(config)]:
            return None
        n_images = sum(len(np.atleast_1d(open_npy(path, "files_by_resolution"))) for path in paths)
        return DMTimeImages(paths, np.zeros(n_images, np.int64), checkpoint.resolution)
    except InputError as error:
        message = "--pulse-free is compared with the training images of the config only, not of the checkpoint: %s"
        logger.warning(message, error if checkpoint.config else "it does not name them")
        return None


def _images_with_contrast(dataset: DMTimeImages, indices: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Iterate over the chosen images (H, W) of more than one grey level, with their index."""
    chosen = np.zeros(len(dataset), bool)
    chosen[indices] = True
    with tqdm(total=len(dataset), desc="compare images", unit=" images", leave=False, disable=None) as bar:
        for first, images in dataset.chunks(IMAGES_READ_AT_ONCE):
            for number in np.flatnonzero(chosen[first : first + len(images)]):
                image = images[number]
                if image.min() != image.max():
                    yield first + int(number), image
            bar.update(len(images))


def _hash(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


def _image(dataset: DMTimeImages, index: int) -> np.ndarray:
    file = int(np.searchsorted(dataset.starts, index, side="right")) - 1
    return dataset.planes[file][index - dataset.starts[file]]


def report_rates(pulse_free: dict[str, Any], thresholds: list[dict[str, float]], split: str) -> list[str]:
    """Return the thresholds by false positives per hour as lines of text."""
    source, hours = ", ".join(pulse_free["files"]) or f"the Artefact images of the {split} split", pulse_free["hours"]
    lines = [f"pulse-free:   {pulse_free['pages']} pages, {hours:.4g} h: {source}"]
    if not pulse_free["files"]:
        lines.append("              selected artefacts, not random sky: the rates hold for this set only")
    for entry in thresholds:
        count = int(entry["false_positives"])
        values = f"threshold {entry['threshold']:.7g}, recall {entry['recall']:.4f}, {count} of the pages"
        lines.append(f"{entry['false_per_hour']:>8g}/h     {values}: {rate_text(count, hours)} per hour (95 %)")
    for rate in pulse_free["rates_left_out"]:
        allowed = allowed_pages(rate, hours)
        reason = f"more than {allowed} of the pages have probability 1" if allowed else hours_needed(rate, hours)
        lines.append(f"{rate:>8g}/h     not measured: {reason}")
    return lines
