"""The result of the search for images of the same data, kept in a small file beside the images."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.dataset import DMTimeImages
from single_pulse_classifier_training.input_files import NOT_NPY, NOT_ZIP, check_archive
from single_pulse_classifier_training.runtime import atomic_writer
from single_pulse_classifier_training.shared_data import SharedData, find_shared_data

logger = logging.getLogger(__name__)

SEARCH_VERSION = 2  # to be increased when find_shared_data gives another result


def load_shared_data(sets: Sequence[DMTimeImages], only_between: bool = False) -> SharedData:
    """Return ``find_shared_data`` of the sets, from the file beside the first images if it was written for them.

    The file is valid as long as the number and size of the images and the middle row of every image are unchanged. It
    is written anew otherwise, unless the folder cannot be written to.
    """
    path = cache_path(sets[0])
    key = hashlib.blake2b(repr((SEARCH_VERSION, only_between)).encode(), digest_size=16)
    for images in sets:
        key.update(images.checksum().encode())
    n_images = sum(map(len, sets))
    shared = _read(path, key.hexdigest(), n_images)
    if shared is None:
        shared = find_shared_data(sets, only_between)
        _write(path, key.hexdigest(), shared)
    return shared


def cache_path(images: DMTimeImages) -> Path:
    """Return the path of the file beside the images of a set."""
    return images.paths[0].with_name(f"{images.paths[0].stem}_shared_data.npz")


def _read(path: Path, key: str, n_images: int) -> SharedData | None:
    """Read the file; None if it is missing, damaged or of other images."""
    if not path.is_file():
        return None
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as content:
            if str(content["key"]) != key:
                return None
            component, links = content["component"].astype(np.int64), content["links"].astype(np.int64)
            shared = SharedData(component, links, content["smooth"].astype(bool), float(content["missed"]))
    except (*NOT_NPY, *NOT_ZIP, InputError):
        return None
    links = shared.links
    has_form = shared.component.shape == shared.smooth.shape == (n_images,) and links.shape[1:] == (2,)
    if not has_form or not 0 <= links.min(initial=0) <= links.max(initial=0) < max(n_images, 1):
        return None
    agrees = (shared.component[links[:, 0]] == shared.component[links[:, 1]]).all()
    return shared if agrees and shared.component.min(initial=0) >= 0 and 0 <= shared.missed <= 1 else None


def _write(path: Path, key: str, shared: SharedData) -> None:
    try:
        with atomic_writer(path) as file:
            np.savez(
                file,
                key=np.array(key),
                component=shared.component.astype(np.int32),
                links=shared.links.astype(np.int32),
                smooth=shared.smooth,
                missed=np.array(shared.missed),
            )
    except OSError as error:
        logger.info("%s: the result of the leakage check cannot be stored (%s)", path, error.strerror)
