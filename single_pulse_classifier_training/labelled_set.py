"""Writing of a labelled set: its files, its description, and a training config that uses it as it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from single_pulse_classifier_training.config import TrainingConfig, check_config
from single_pulse_classifier_training.runtime import atomic_writer, save_npy
from single_pulse_classifier_training.set_description import SetDescription, project_version

NATIVE_RESOLUTION = 256


@dataclass(frozen=True)
class SetKind:
    """What the sets of one script have in common.

    Attributes
    ----------
    infix : str
        Part of the file names between the name of the set and "training".
    config_ending : str
        What the training config has after the name of the set.
    training : dict
        Settings of the training config.
    """

    infix: str
    config_ending: str
    training: dict[str, Any]


# The settings are those of the included models (pipeline_classifier/models/README.md).
_COMMON = {
    "learning_rate": 2e-3,
    "optimiser": "adamw",
    "weight_decay": 0.01,
    "scheduler": "cosine",
    "warmup_epochs": 0.5,
    "gradient_clip": 5.0,
}
PAGES = SetKind(
    "DM_time_dataset_realbased",
    "",
    {"model_name": "DM_time_small_residual", **_COMMON, "num_epochs": 8, "patience": 8, "batch_size": 64},
)
CANDIDATES = SetKind(
    "DM_time_dataset_peaks",
    "_candidates",
    {"model_name": "DM_time_candidate_classifier", **_COMMON, "num_epochs": 14, "patience": 14, "batch_size": 128}
    | {"augment": True},
)


@dataclass(frozen=True)
class SetPaths:
    """Paths of the files of a set.

    Parameters
    ----------
    folder : Path
    name : str
    kind : SetKind
    resolutions : tuple of int
        Heights and widths of the images in pixels.
    """

    folder: Path
    name: str
    kind: SetKind
    resolutions: tuple[int, ...]

    def _file(self, ending: str) -> Path:
        return self.folder / f"{self.name}_{self.kind.infix}_{ending}"

    @property
    def images(self) -> dict[int, Path]:
        """Image file of each resolution."""
        sizes = {r: "" if r == NATIVE_RESOLUTION else f"_{r}x{r}" for r in self.resolutions}
        return {resolution: self._file(f"training{size}.npy") for resolution, size in sizes.items()}

    def column(self, key: str) -> Path:
        """Return the file with one value per image that the config key names."""
        return self._file(f"{key}_training.npy")

    @property
    def description(self) -> Path:
        """Path of the description."""
        return self._file("set.json")

    @property
    def training_config(self) -> Path:
        """Path of the training config."""
        return self.folder / f"training_{self.name}{self.kind.config_ending}.json"


def begin_set(paths: SetPaths) -> None:
    """Remove the description of an earlier set of the same name: it does not hold once a file is replaced."""
    paths.description.unlink(missing_ok=True)


def finish_set(paths: SetPaths, columns: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Path]:
    """Write everything but the images, which must be complete, and print what was written; the description comes last.

    A training config is written if there are images of both classes.

    Parameters
    ----------
    paths : SetPaths
    columns : dict of str to (N,) ndarray
        "labels" ("Pulse" or "Artefact"), "groups" and "snr" of each image.
    facts : dict
        The keys ``normaliser``, ``dms``, ``tsamp_s``, ``page_s``, ``pulse_free_hours`` and ``origin`` of the
        description, and ``channels`` if the images are (N, C, H, W).

    Returns
    -------
    files : dict of str to Path
        By kind: "images_<resolution>", "labels", "groups", "snr", "training" (the config), "description".
    """
    files = {f"images_{resolution}": path for resolution, path in paths.images.items()}
    for key, values in columns.items():
        files[key] = paths.column(key)
        save_npy(files[key], values)
    names: dict[str, Any] = {"files_by_resolution": {str(r): path.name for r, path in paths.images.items()}}
    names |= {key: files[key].name for key in columns}
    labels = columns["labels"]
    classes = {name: int((labels == name).sum()) for name in ("Pulse", "Artefact")}
    n_events = len(np.unique(columns["groups"]))
    if all(classes.values()):
        files["training"] = paths.training_config
        write_json(files["training"], training_config(paths, names, facts))
    counts = {"n_images": len(labels), "classes": classes, "n_events": n_events}
    description = names | facts | counts | {"version": project_version()}
    check_config(paths.description, description, SetDescription)
    files["description"] = paths.description
    write_json(files["description"], description)

    print(f"{len(labels)} images: {classes['Pulse']} Pulse, {classes['Artefact']} Artefact, of {n_events} events")
    if facts["pulse_free_hours"] is not None:
        print(f"pulse-free: {facts['pulse_free_hours']:.4g} h in {len(labels)} pages of {facts['page_s']:.4g} s")
    print(f'"normaliser": "{facts["normaliser"]}"')
    if "training" not in files:
        print("no training config: a training needs images of both classes")
    for path in files.values():
        print(path)
    return files


def training_config(paths: SetPaths, names: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a training config beside the set, with the largest images unless there are those of 256."""
    resolution = NATIVE_RESOLUTION if NATIVE_RESOLUTION in paths.images else max(paths.images)
    folders = {
        "path_to_files": "./",
        "path_to_checkpoints": f"./checkpoints/{paths.name}/",
        "path_to_images": f"./images/{paths.name}/",
    }
    described = {key: facts[key] for key in ("normaliser", "dms", "tsamp_s")}
    config = folders | {"resolution": resolution} | paths.kind.training | names | described
    if "freq_time" in facts.get("channels", ()):
        config |= {"model_name": "DM_time_freq_time_candidate_classifier", "input": "dmft"}
    check_config(paths.training_config, config, TrainingConfig)
    return config


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with one key a line, so that long lists do not fill the page."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in content.items())
    with atomic_writer(path) as file:
        file.write(f"{{\n{lines}\n}}\n".encode())
