"""The description of a labelled set: `<prefix>_set.json` beside `<prefix>_training.npy`, with what the images are.

create_dataset.py and create_candidate_dataset.py write it after all other files of a set, so that a set that is not
complete has no description. A set without one is used as its config says.
"""

import logging
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from single_pulse_classifier_training.channels import DM_TIME, channels_of_input, check_channels
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import (
    ConfigFile,
    ImageFiles,
    Name,
    Normaliser,
    TrainingConfig,
    TrialDms,
    check_config,
    read_json,
)
from single_pulse_classifier_training.input_files import open_npy

logger = logging.getLogger(__name__)

SET_FILE = re.compile(r"(?P<prefix>.+?)_(?:(?:labels|groups|snr)_)?training(?:_\d+x\d+)?\.npy")
COLUMNS = ("labels", "groups", "snr")
"""Files with one value per image, and the config keys that name them."""
DM_TOLERANCE = 1e-6  # pc cm^-3; for values that were typed in, far below any step between trial DMs
TSAMP_TOLERANCE = 1e-6  # relative


def _without_folder(name: str) -> str:
    if Path(name).name != name:
        raise ValueError(f"must be a file name without a folder, got {name!r}")
    return name


FileName = Annotated[Name, AfterValidator(_without_folder)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _known_channels(names: list[str]) -> list[str]:
    check_channels(names)
    if "dm_time" not in names:
        raise ValueError(f"must hold dm_time, got {', '.join(names)}")
    return names


class Origin(BaseModel):
    """An observation from which images were made.

    Attributes
    ----------
    file : str
        Its file name, without folder.
    start_mjd : float or None
    duration_s : float
    truth : str
        Name of the truth table or candidate list that the labels were taken from.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    file: Name
    start_mjd: Annotated[float, Field(allow_inf_nan=False)] | None
    duration_s: Positive
    truth: Name


class SetDescription(ConfigFile):
    """What the images of a set are.

    Attributes
    ----------
    files_by_resolution : dict of str to str
        Image files, by height and width in pixels.
    labels, groups, snr : str
        Files with one value per image; the last two may be missing.
    normaliser : {"minmax", "robust", "noise"}
    channels : list of str
        Channels of an image, some of ``CHANNELS``.
    dms : list of float or None
        DM of each row before resizing, lowest first, pc cm^-3; None for cutouts of candidates.
    tsamp_s : float or None
        Sampling time of a column before resizing, seconds; None for cutouts of candidates, and if it differs between
        observations.
    page_s : float or None
        Length of an image, seconds, the mean over all if it differs; None for cutouts of candidates.
    n_images : int
    classes : dict of str to int
        Images of each class, "Artefact" and "Pulse".
    n_events : int
        Events, each with a group of images.
    pulse_free_hours : float or None
        Length of all pages together if no observation of the set has a pulse and no page was left out; otherwise None.
    origin : list of Origin
    version : str
        Version of this project that made the set.
    """

    model_config = ConfigDict(extra="ignore")  # of a later version of this project

    files_by_resolution: dict[str, FileName] = Field(min_length=1)
    labels: FileName
    groups: FileName | None = None
    snr: FileName | None = None
    normaliser: Normaliser
    channels: Annotated[list[str], AfterValidator(_known_channels)] = list(DM_TIME)
    dms: TrialDms | None
    tsamp_s: Positive | None
    page_s: Positive | None
    n_images: int = Field(ge=1)
    classes: dict[Literal["Artefact", "Pulse"], Count]
    n_events: Count
    pulse_free_hours: Positive | None
    origin: list[Origin]
    version: str

    @model_validator(mode="after")
    def _classes_sum_up(self) -> Self:
        if sum(self.classes.values()) != self.n_images:
            raise ValueError(f"classes must have {self.n_images} images together, as n_images, got {self.classes}")
        return self


def project_version() -> str:
    """Return the version of this project: of the source tree, or of the installed package."""
    import tomllib

    source_tree = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if source_tree.is_file():
        return tomllib.loads(source_tree.read_text())["project"]["version"]
    try:
        return version("single-pulse-classifier")
    except PackageNotFoundError:
        return "unknown"


def description_path(file: Path) -> Path | None:
    """Return the path that the description of the set of a file has; None if the name is not one of a set's files."""
    match = SET_FILE.fullmatch(file.name)
    return match and file.with_name(f"{match['prefix']}_set.json")


def description_of(images: str | Path) -> SetDescription | None:
    """Read the description of the set to which an image file belongs, and compare it with the files of the set.

    Parameters
    ----------
    images : str or Path

    Returns
    -------
    description : SetDescription or None
        None if there is none beside the images.

    Raises
    ------
    InputError
        If the description has an error, does not list the image file, or one of the files has another number of images,
        or of pulses.
    """
    images = Path(images)
    path = description_path(images)
    if path is None or not path.exists():
        return None
    content = read_json(path)
    description = check_config(path, content, SetDescription)
    if unknown := content.keys() - SetDescription.model_fields.keys():
        logger.warning("%s: unknown keys are ignored: %s", path, ", ".join(sorted(unknown)))
    if images.name not in description.files_by_resolution.values():
        listed = ", ".join(description.files_by_resolution.values())
        raise InputError(f"{path}: files_by_resolution must name {images.name}, got {listed}")
    for key in ("files_by_resolution", *COLUMNS):
        name = images.name if key == "files_by_resolution" else getattr(description, key)
        if name is None or not (file := images.with_name(name)).is_file():
            continue  # a config that uses the file says so
        n_images = len(np.atleast_1d(open_npy(file, key)))
        if n_images != description.n_images:
            raise InputError(f"{file}: the number must be {description.n_images}, as in {path}, got {n_images}")
        if key == "files_by_resolution":
            _check_channels(file, description.channels, path)
        if key == "labels":
            from single_pulse_classifier_training.dataset import load_labels  # with torch, which scripts import late

            pulses, wanted = int(load_labels([file]).sum()), description.classes.get("Pulse", 0)
            if pulses != wanted:
                raise InputError(f"{file}: the number of pulses must be {wanted}, as in {path}, got {pulses}")
    return description


def _check_channels(images: Path, channels: list[str], path: Path) -> None:
    """Raise InputError if an image file has another number of channels than its description names."""
    shape = open_npy(images, "files_by_resolution").shape
    n_channels = shape[1] if len(shape) == 4 and shape[3] > 1 else 1
    if len(shape) in (3, 4) and n_channels != len(channels):
        names = ", ".join(channels)
        raise InputError(f"{images}: the images must have the channels {names}, as in {path}, got the shape {shape}")


def with_descriptions(config: TrainingConfig) -> TrainingConfig:
    """Compare a config with the descriptions of its sets, and take from them what the config does not say.

    These are ``normaliser``, ``dms``, ``tsamp_s`` and ``input``. Sampling times may differ between the sets;
    ``tsamp_s`` is then None.

    Raises
    ------
    InputError
        If the config, or two of its sets, contradict each other.
    """
    training = _descriptions(config, config)
    others = [files for files in (config.validation_files, config.test_files) if files is not None]
    found = training | {key: value for files in others for key, value in _descriptions(config, files).items()}
    known: dict[str, Any] = {}
    for key in ("normaliser", "dms"):
        given = {path: value for path, d in found.items() if (value := getattr(d, key)) is not None}
        for path, value in given.items():
            first = next(iter(given))
            if not agree(key, value, given[first]):
                raise InputError(
                    f"{path}: {key} must be {shown(given[first])}, as in {first}, which is used in the same training, "
                    f"got {shown(value)}"
                )
            _check(config, key, value, path)
            known[key] = given[first]
    times = {path: d.tsamp_s for path, d in training.items() if d.tsamp_s is not None}
    for path, value in times.items():
        _check(config, "tsamp_s", value, path)
    if times and len(times) == len(training):
        first_time = next(iter(times.values()))
        if all(agree("tsamp_s", value, first_time) for value in times.values()):
            known["tsamp_s"] = first_time
    silent = {key: value for key, value in known.items() if not _says(config, key)}
    undescribed = [path for path in config.image_paths(config) if description_path(path) not in found]
    if silent and undescribed:
        logger.warning(
            "%s: taken from %s, also for %s, which has no description",
            ", ".join(silent),
            next(iter(found)).name,
            undescribed[0],
        )
    if config.input is None:
        silent["input"] = "dmft" if "freq_time" in _channels_of(config, config) else "dmt"
    return config.model_copy(update=silent)


def input_channels(config: TrainingConfig) -> tuple[str, ...]:
    """Return the channels that ``input`` takes of the training images.

    Raises
    ------
    InputError
        If the images do not have them.
    """
    stored = _channels_of(config, config)
    kind = config.input or "dmt"
    if kind != "dmt" and "freq_time" not in stored:
        path = next(path for path in config.image_paths(config) if "freq_time" not in stored_channels(path))
        raise InputError(f"key 'input' must be 'dmt' for {path}, which has no freq_time channel, got {kind!r}")
    return channels_of_input(kind, stored)


def _channels_of(config: TrainingConfig, files: ImageFiles) -> tuple[str, ...]:
    """Return the channels that all images of a set have."""
    stored = [stored_channels(path) for path in config.image_paths(files)]
    return tuple(name for name in stored[0] if all(name in channels for channels in stored))


def stored_channels(images: str | Path) -> tuple[str, ...]:
    """Return the channels of an image file as its description names them; DM-time if it has no description."""
    description = description_of(images)
    return DM_TIME if description is None else tuple(description.channels)


def _descriptions(config: TrainingConfig, files: ImageFiles) -> dict[Path, SetDescription]:
    """Return the descriptions of image files by their path; raise InputError if the config joins files of two sets."""
    images = config.image_paths(files)
    found = {}
    for number, path in enumerate(images):
        own, description = description_path(path), description_of(path)
        if own is None:
            continue
        if description and description.files_by_resolution.get(str(config.resolution)) != path.name:
            raise InputError(f"key 'resolution' must be one for which {own} names {path.name}, got {config.resolution}")
        for key in COLUMNS:
            names = getattr(files, key)
            if names is None or len(names) != len(images):
                continue
            other = config.data_paths(names)[number]
            of_other = description_path(other)
            if of_other is None or of_other == own:
                continue
            # Files of sets without a description may have any names, and be in several folders.
            if of_other.exists() or description and of_other.name != own.name:
                raise InputError(f"key {key!r} must name files of the same sets as the images {path}, got {other}")
        if description:
            found[own] = description
    return found


def _says(config: TrainingConfig, key: str) -> bool:
    return key in config.model_fields_set and getattr(config, key) is not None


def _check(config: TrainingConfig, key: str, value: Any, path: Path) -> None:
    if _says(config, key) and not agree(key, getattr(config, key), value):
        got = shown(getattr(config, key))
        raise InputError(f"key {key!r} must be {shown(value)}, as {path} says of the images, got {got}")


def agree(key: str, a: Any, b: Any) -> bool:
    """Return whether two values of a key of a description are the same within the tolerances."""
    if key == "dms":
        return len(a) == len(b) and np.allclose(a, b, rtol=0, atol=DM_TOLERANCE)
    return bool(np.isclose(a, b, rtol=TSAMP_TOLERANCE, atol=0)) if key == "tsamp_s" else a == b


def shown(value: Any) -> str:
    """Return a value as text for a message."""
    if isinstance(value, list):
        return f"{len(value)} from {value[0]:g} to {value[-1]:g}" if value else "[]"
    return f"{value:.9g}" if isinstance(value, float) else repr(value)
