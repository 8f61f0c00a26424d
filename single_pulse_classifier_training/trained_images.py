"""The record, in a checkpoint, of the images that its network was trained on."""

import logging
from typing import Any

import numpy as np

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.dataset import DMTimeImages
from single_pulse_classifier_training.split import Split

logger = logging.getLogger(__name__)


def record_of(splits: dict[str, Split]) -> list[dict[str, Any]]:
    """Describe the files of the training and validation splits, and which of their images are for training.

    Returns
    -------
    record : list of dict
        One per file: ``file`` (name without folder), ``checksum`` (``DMTimeImages.checksum`` of this file alone),
        ``n_images``, and ``trained_on``: one bit per image in hexadecimal digits, 1 if it is in the training split.
    """
    training, validation = splits["training"], splits["validation"]
    chosen = np.zeros(len(training.dataset), bool)
    chosen[training.indices] = True
    parts = [(training.dataset, chosen)]
    if validation.dataset is not training.dataset:
        parts.append((validation.dataset, np.zeros(len(validation.dataset), bool)))
    return [
        {
            "file": part.paths[0].name,
            "checksum": part.checksum(),
            "n_images": len(part),
            "trained_on": np.packbits(chosen[first : first + len(part)]).tobytes().hex(),
        }
        for dataset, chosen in parts
        for first, part in zip(dataset.starts, dataset.each_file(), strict=False)
    ]


def trained_on(record: list[dict[str, Any]], dataset: DMTimeImages) -> np.ndarray:
    """Return which images of a set were trained on, (N,) bool; files are recognised by their checksum."""
    found = np.zeros(len(dataset), bool)
    for first, part in zip(dataset.starts, dataset.each_file(), strict=False):
        checksum = part.checksum()
        for entry in record:
            if entry["checksum"] == checksum and entry["n_images"] == len(part):
                bits = np.frombuffer(bytes.fromhex(entry["trained_on"]), np.uint8)
                found[first : first + len(part)] |= np.unpackbits(bits, count=len(part)).astype(bool)
    return found


def check_not_trained_on(record: list[dict[str, Any]] | None, splits: dict[str, Split], what: str) -> None:
    """Raise InputError if images of a split were trained on; warn if there is no record.

    Parameters
    ----------
    record : list of dict or None
        Result of ``record_of``, None if the checkpoint has none.
    splits : dict of str to Split
    what : str
        Name of the checkpoint, for the message.
    """
    if record is None:
        message = "%s does not say on which images it was trained: whether the %s images are among them is not known"
        logger.warning(message, what, " and ".join(splits))
        return
    for name, split in splits.items():
        seen = split.indices[trained_on(record, split.dataset)[split.indices]]
        if len(seen):
            raise InputError(
                f"{what}: the {name} images must not be images that it was trained on, got {len(seen)} of "
                f"{len(split.indices)}, such as {split.dataset.name_of(seen[0])}; the split must be as in its training"
            )
