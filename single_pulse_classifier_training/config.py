"""Config files: JSON checked against a schema before any work starts.

``ConfigFile`` and ``load_config`` serve both folders; ``TrainingConfig`` is the schema for training.py.
"""

import difflib
import json
import os
from inspect import isclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.input_files import check_is_file

# Far beyond any config; they bound memory and recursion where another file is given by mistake.
LARGEST_CONFIG_BYTES = 16 * 2**20
DEEPEST_NESTING = 20

MUST_BE = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "string_unicode": "a string of Unicode characters",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "literal_error": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "a string that is not empty",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
}
"""What a value must be, for each kind of error that pydantic reports."""


class ConfigFile(BaseModel):
    """A config whose relative paths are relative to the folder of its file. It is not changed once it is loaded."""

    # strict: "5" or true is not a number; protected_namespaces: the key model_name is ours, not pydantic's
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    _folder: Path = PrivateAttr(default_factory=Path)

    def resolve(self, path: str | Path) -> Path:
        """Return the absolute form of a path given in this config."""
        return (self._folder / Path(path).expanduser()).absolute()


def _usable(name: str) -> str:
    """Raise ValueError for a name that no file can have, or one below the home folder of an unknown user."""
    try:
        usable = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise ValueError(f"must be a name that a file can have, got {_shown(name)}")
    try:
        Path(name).expanduser()
    except RuntimeError:
        raise ValueError(f"must begin with the home folder of a user of this machine, got {_shown(name)}") from None
    return name


def _as_list(value: object) -> list:
    if not isinstance(value, (str, list)):
        raise ValueError(f"must be a file name or a list of file names, got {_shown(value)}")
    return [value] if isinstance(value, str) else value


Schema = TypeVar("Schema", bound=ConfigFile)
Text = Annotated[str, AfterValidator(_usable)]
Name = Annotated[str, Field(min_length=1), AfterValidator(_usable)]
Normaliser = Literal["minmax", "robust", "noise"]
Input = Literal["dmt", "ft", "dmft"]


def _lowest_first(dms: list[float]) -> list[float]:
    if not dms:
        raise ValueError("must be a list of trial DMs, got []")
    for lower, higher in pairwise(dms):
        if lower >= higher:
            raise ValueError(f"must be trial DMs, lowest first, got {lower:g} before {higher:g}")
    return dms


TrialDms = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], AfterValidator(_lowest_first)]


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
    input: Input | None = None
    learning_rate: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    num_epochs: int = Field(default=100, ge=1, le=10**6)
    patience: int = Field(default=5, ge=1)

    validation_files: ImageFiles | None = None
    test_files: ImageFiles | None = None
    batch_size: int = Field(default=32, ge=2, le=2**20)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    normaliser: Normaliser = "minmax"
    early_stopping_metric: Literal["val_loss", "val_accuracy", "train_accuracy"] = "val_loss"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    compile: bool = False
    num_workers: int = Field(default=0, ge=0, le=256)
    optimiser: Literal["adam", "adamw"] = "adam"
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    scheduler: Literal["cosine"] | None = None
    warmup_epochs: float = Field(default=0.0, ge=0, le=10**6)
    gradient_clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    class_weights: bool = False
    augment: bool = False
    initial_weights: Name | None = None
    checkpoint_interval_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    dms: TrialDms | None = None
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
        If the file is missing, not JSON, holds something else, or has a key twice in one object.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise InputError(
                    f"{path}: key {_shown(key)} must have one value, got {_shown(content[key])} and {_shown(value)}"
                )
            content[key] = value
        return content

    check_is_file(path, "config file")
    if path.stat().st_size > LARGEST_CONFIG_BYTES:
        raise InputError(f"{path} must be a JSON file of at most {LARGEST_CONFIG_BYTES:,} bytes")
    try:
        # Of bytes, the encoding is found, also with a byte-order mark.
        content = json.loads(path.read_bytes(), object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error.msg}, line {error.lineno} column {error.colno}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not valid JSON: it is not a text file") from None
    except RecursionError:
        raise InputError(f"{path}: values must be nested at most {DEEPEST_NESTING} deep") from None
    except ValueError:
        raise InputError(f"{path}: a number must have fewer digits, got thousands of them") from None
    if _nesting(content) > DEEPEST_NESTING:
        raise InputError(f"{path}: values must be nested at most {DEEPEST_NESTING} deep")
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object {{...}}, got a {type(content).__name__}")
    return content


def _nesting(content: object) -> int:
    """Return how many lists and objects are inside each other."""
    depth, inside = 0, [content]
    while inside := [value for value in inside if isinstance(value, (dict, list))]:
        depth += 1
        inside = [v for value in inside for v in (value.values() if isinstance(value, dict) else value)]
    return depth


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
        raise InputError(f"{path}: {first_error(error, content, schema)}") from None
    config._folder = path.absolute().parent
    return config


def first_error(error: ValidationError, content: dict[str, Any], schema: type[BaseModel]) -> str:
    """Describe the first error of a dictionary: its key, what the value must be, and what it is."""
    # An unknown key is often a misspelt required one: it is reported before the key that then seems to be missing.
    errors = sorted(error.errors(include_url=False), key=lambda entry: entry["type"] != "extra_forbidden")
    first = errors[0]
    if first["type"] == "extra_forbidden":
        valid = _keys_beside(schema, first["loc"])
        near = difflib.get_close_matches(str(first["loc"][-1]), valid, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"a key must be one of {', '.join(valid)}"
        return f"unknown key {'.'.join(map(str, first['loc']))!r}: {hint}"
    key = _key(first["loc"], content)
    if first["type"] == "missing":
        return f"the key {'.'.join((*key, str(first['loc'][-1])))!r} is missing"
    name = f"key {'.'.join(key)!r}"
    if first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
        return reason if not key else f"{name} {reason}" if reason.startswith("must ") else f"{name}: {reason}"
    # A value that may have one of several types has an error for each of them.
    wanted = [_must_be(entry) for entry in errors if _key(entry["loc"], content) == key]
    return f"{name} must be {' or '.join(dict.fromkeys(wanted))}, got {_shown(first['input'])}"


def _must_be(entry: Any) -> str:
    if entry["type"] in MUST_BE:
        limits = entry.get("ctx", {}).items()
        return MUST_BE[entry["type"]].format(**{k: f"{v:.12g}" if isinstance(v, float) else v for k, v in limits})
    return entry["msg"].removeprefix("Input should be ")


def _key(location: tuple[str | int, ...], content: Any) -> tuple[str, ...]:
    """Return the keys that lead to a value; the location of pydantic also names types and validators."""
    key: list[str] = []
    for part in location:
        inside = content if isinstance(content, dict) else dict(enumerate(content if isinstance(content, list) else ()))
        if part in inside:
            content = inside[part]
            key.append(str(part))
    return tuple(key)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _keys_beside(schema: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """Return the keys of the (nested) object that holds the last key of ``location``."""
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = schema.model_fields[part].annotation
            schema = next(t for t in (annotation, *get_args(annotation)) if isclass(t) and issubclass(t, BaseModel))
    return list(schema.model_fields)
