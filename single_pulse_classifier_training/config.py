"""Config files: JSON checked against a schema before any work starts.

``ConfigFile`` and ``load_config`` serve both folders; ``TrainingConfig`` is the schema for training.py.
"""

import difflib
import json
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from single_pulse_classifier_training.cli import InputError


class ConfigFile(BaseModel):
    """A config whose relative paths are relative to the folder of its file. It is not changed once it is loaded."""

    # strict: "5" or true is not a number; protected_namespaces: the key model_name is ours, not pydantic's
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    _folder: Path = PrivateAttr(default_factory=Path)

    def resolve(self, path: str | Path) -> Path:
        """Return the absolute form of a path given in this config."""
        return (self._folder / Path(path).expanduser()).absolute()


Schema = TypeVar("Schema", bound=ConfigFile)
Name = Annotated[str, Field(min_length=1)]


def _as_list(value: object) -> list:
    if not isinstance(value, (str, list)):
        raise ValueError("input should be a file name or a list of file names")
    return [value] if isinstance(value, str) else value


Names = Annotated[list[Name], BeforeValidator(_as_list), Field(min_length=1)]


class ImageFiles(BaseModel):
    """Files of one labelled set; each entry is one name, or a list of files that are read one after the other."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    files_by_resolution: dict[str, Names]
    labels: Names
    groups: Names | None = None
    snr: Names | None = None


class TrainingConfig(ConfigFile, ImageFiles):
    """Config of training.py. The keys of the TensorFlow version keep their meaning; README.md explains every key."""

    path_to_files: Name
    path_to_checkpoints: Name = "./checkpoints/"
    path_to_images: Name = "./images/"
    resolution: int = Field(gt=0)
    model_name: Name
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    num_epochs: int = Field(default=100, ge=1)
    patience: int = Field(default=5, ge=1)

    validation_files: ImageFiles | None = None
    test_files: ImageFiles | None = None
    batch_size: int = Field(default=32, ge=2)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    normaliser: Literal["minmax", "robust", "noise"] = "minmax"
    early_stopping_metric: Literal["val_loss", "val_accuracy", "train_accuracy"] = "val_loss"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    compile: bool = False
    num_workers: int = Field(default=0, ge=0)
    optimiser: Literal["adam", "adamw"] = "adam"
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    scheduler: Literal["cosine"] | None = None
    warmup_epochs: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    gradient_clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    class_weights: bool = False
    augment: bool = False
    initial_weights: Name | None = None
    checkpoint_interval_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    dms: list[float] | None = None
    tsamp_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    def image_paths(self, files: ImageFiles) -> list[Path]:
        """Return the image files of a set: the entry for this resolution, or "default" with {res} filled in."""
        table = files.files_by_resolution
        names = table.get(str(self.resolution)) or table.get("default")
        if names is None:
            raise InputError(
                f"files_by_resolution must have the key '{self.resolution}' or 'default', "
                f"got {', '.join(table) or 'no key'}"
            )
        return self.data_paths([name.replace("{res}", str(self.resolution)) for name in names])

    def data_paths(self, names: list[str]) -> list[Path]:
        """Return the paths of files in the data folder."""
        return [self.resolve(self.path_to_files) / name for name in names]


def load_config(path: str | Path, schema: type[Schema]) -> Schema:
    """Read a JSON config and check it.

    Parameters
    ----------
    path : str or Path
    schema : type
        Subclass of ``ConfigFile``.

    Raises
    ------
    InputError
        If the file is missing or not JSON, a key is unknown or missing, or a value has the wrong type or range.
    """
    return check_config(Path(path), read_json(Path(path)), schema)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises
    ------
    InputError
        If the file is missing, not JSON, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"config file {path} does not exist")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error.msg}, line {error.lineno} column {error.colno}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not valid JSON: it is not a text file") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object {{...}}, got a {type(content).__name__}")
    return content


def check_config(path: Path, content: dict[str, Any], schema: type[Schema]) -> Schema:
    """Check the content of a config.

    Parameters
    ----------
    path : Path
        The file of the config. Relative paths in the config start from its folder.
    content : dict
    schema : type
        Subclass of ``ConfigFile``.

    Raises
    ------
    InputError
        If a key is unknown or missing, or a value has the wrong type or range.
    """
    try:
        config = schema.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_one_sentence(error, schema)}") from None
    config._folder = path.absolute().parent
    return config


def _one_sentence(error: ValidationError, schema: type[ConfigFile]) -> str:
    """Describe the first error of a config: its key, its value, and what the value must be."""
    # An unknown key is often a misspelt required one: it is reported before the key that then seems to be missing.
    first = min(error.errors(include_url=False), key=lambda entry: entry["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        valid = _keys_beside(schema, first["loc"])
        near = difflib.get_close_matches(str(first["loc"][-1]), valid, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"a key must be one of {', '.join(valid)}"
        return f"unknown key {key!r}: {hint}"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    reason = first["msg"].removeprefix("Value error, ")
    prefix = f"key {key!r} = {first['input']!r}: " if key else ""
    return f"{prefix}{reason[0].lower()}{reason[1:]}"


def _keys_beside(schema: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """Return the keys of the (nested) object that holds the last key of ``location``."""
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = schema.model_fields[part].annotation
            schema = next(t for t in (annotation, *get_args(annotation)) if isclass(t) and issubclass(t, BaseModel))
    return list(schema.model_fields)
