"""Config of the pipeline: config.json, and the TransientX file (dbdedispdb_config.json) that it may name."""

import json
import logging
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline_classifier.frontend.settings import BIN, BLOCK_SAMPLES, Cleaning, FrontEndSettings
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import ConfigFile, Name, Text, check_config, load_config, read_json

logger = logging.getLogger(__name__)

RFI_FILTERS = {"zdot": 0, "zero": 0, "kadaneF": 2, "kadaneT": 2, "mask": 2}
"""Filters of TransientX, and how many numbers follow each name."""
LARGEST_THRESHOLD = 1e30  # switches a filter off; the products with it remain below the largest 32-bit float
Band = list[float]
DEFAULT_CONFIG = Path(__file__).with_name("config.json")


def checked_bands(zaplist: list[Band]) -> list[Band]:
    """Raise ValueError for what is not a lower and a higher frequency."""
    for band in zaplist:
        if len(band) != 2 or not band[0] <= band[1]:
            raise ValueError(f"a band must be [lowest, highest] in MHz, got {band}")
    return zaplist


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Preprocess(_Section):
    """Averaging and channel mask before anything else."""

    td: int = Field(default=1, ge=1, le=4096)
    fd: int = Field(default=1, ge=1, le=4096)
    zapthre: float = Field(default=Cleaning.zap_threshold, gt=0, le=LARGEST_THRESHOLD)
    filltype: Literal["mean", "rand"] = "mean"


class Downsample(_Section):
    """Averaging after the channel mask in TransientX; here done together with that of `Preprocess`."""

    td: int = Field(default=1, ge=1, le=4096)
    fd: int = Field(default=1, ge=1, le=4096)


class Baseline(_Section):
    """Running mean, seconds."""

    width: float = Field(default=Cleaning.baseline_window_s, ge=0, allow_inf_nan=False)


class Rfi(_Section):
    """Interference filters."""

    filltype: Literal["mean", "rand"] = "mean"
    thremask: float = Field(default=Cleaning.mask_threshold, gt=0, le=LARGEST_THRESHOLD)
    threKadaneF: float = Field(default=Cleaning.kadane_threshold, gt=0, le=LARGEST_THRESHOLD)
    threKadaneT: float = 7.0
    widthlimit: float = Field(default=Cleaning.kadane_width_s, gt=0, le=1e6, allow_inf_nan=False)
    bandlimitKT: float = 10.0
    zaplist: list[Band] = []
    rfilist: list[list[str]] = [["zdot"]]

    @field_validator("zaplist")
    @classmethod
    def _low_first(cls, zaplist: list[Band]) -> list[Band]:
        return checked_bands(zaplist)

    @field_validator("rfilist")
    @classmethod
    def _known_filters(cls, filters: list[list[str]]) -> list[list[str]]:
        for name, *numbers in filter(None, filters):
            if name not in RFI_FILTERS:
                raise ValueError(f"a filter must be one of {', '.join(RFI_FILTERS)}, got {name!r}")
            if len(numbers) != RFI_FILTERS[name] or not all(re.fullmatch(r"0*[1-9]\d{0,8}", n, re.A) for n in numbers):
                raise ValueError(
                    f"{name!r} must be followed by {RFI_FILTERS[name]} positive integers as strings, "
                    f"got {[name, *numbers]}"
                )
        return [entry for entry in filters if entry]


class Subdedispersion(_Section):
    """Trial DMs and pages."""

    rootname: str = ""
    dms: float = Field(default=0.0, ge=0, le=1e5)
    ddm: float = Field(default=0.5, ge=1e-6, le=1e4)
    ndm: int = Field(default=256, ge=2, le=4096)
    overlap: float = Field(default=0.0, ge=0, le=0.9)


def parse_key(key: str | int) -> int:
    """Return the key of a ring: an int unchanged, a string as hexadecimal digits ("2222", "0xdada")."""
    if isinstance(key, int):
        number = key
    else:
        try:
            number = int(key, 16)
        except ValueError:
            number = 0
    if not 0 < number < 1 << 31:
        raise InputError(f"the key of a ring must be hexadecimal digits, 1 to 7fffffff, got {key!r}")
    return number


class TransientXConfig(ConfigFile):
    """TransientX's dbdedispdb_config.json; README.md says what this project's own front end does with every key."""

    preprocesslite: Preprocess = Preprocess()
    downsample: Downsample = Downsample()
    baseline: Baseline = Baseline()
    rfi: Rfi = Rfi()
    subdedispersion: Subdedispersion = Subdedispersion()

    @property
    def td(self) -> int:
        """Samples averaged by both stages."""
        return self.preprocesslite.td * self.downsample.td

    @property
    def fd(self) -> int:
        """Channels averaged by both stages."""
        return self.preprocesslite.fd * self.downsample.fd

    def cleaning(self, zaplist: tuple[tuple[float, float], ...]) -> Cleaning:
        """Return the settings of the cleaning; of several entries of one kind in rfi.rfilist the first is used."""
        entries = self.rfi.rfilist
        kadane = next((entry for entry in entries if entry[0] == "kadaneF"), None)
        return Cleaning(
            baseline_window_s=self.baseline.width,
            zero_dm=next((entry[0] for entry in entries if entry[0] in ("zdot", "zero")), None),  # type: ignore[misc]
            zap_threshold=self.preprocesslite.zapthre,
            mask_threshold=self.rfi.thremask,
            zaplist=zaplist,
            kadane_channels=int(kadane[2]) if kadane else 0,
            kadane_threshold=self.rfi.threKadaneF,
            kadane_width_s=self.rfi.widthlimit,
            td=self.td,
            fd=self.fd,
        )

    def not_implemented(self) -> list[str]:
        """Return the settings that this project's front end does not implement, each with what it does instead."""
        asked = []
        for entry in self.rfi.rfilist:
            if entry[0] == "kadaneT":
                asked.append(
                    f"rfi.rfilist {entry} is ignored, as it removes bright pulses; zdot and zero remove impulses"
                )
            elif entry[0] == "mask":
                asked.append(f"rfi.rfilist {entry} is ignored, as it removes bright pulses; whole channels are masked")
            elif entry[0] == "kadaneF" and int(entry[1]) != BIN:
                asked.append(f"rfi.rfilist {entry}: {entry[1]} samples are ignored, kadaneF averages {BIN} here")
        if sum(entry[0] in ("zdot", "zero") for entry in self.rfi.rfilist) > 1:
            asked.append("rfi.rfilist: more than one of zdot and zero; only the first is applied")
        for section, values in (("preprocesslite", self.preprocesslite), ("rfi", self.rfi)):
            if values.filltype == "rand":
                asked.append(f"{section}.filltype 'rand' is ignored: masked samples add nothing, as with 'mean'")
        return asked


class PipelineConfig(ConfigFile):
    """Config of the pipeline; README.md describes the keys. Those up to ``workers_for_pytorch`` are the original's."""

    path_to_filterbanks: Name = "./"
    name_of_the_filterbank: Name = "B0531+21_59000_48386.fil"
    n_spectra: int | None = Field(default=None, ge=1, le=100_000_000)
    key_input: str | int = "1111"
    key_output: str | int = "2222"
    path_to_a_transientx_config: Name | None = None
    path_to_pulsarx_singularity_image: Text | None = None
    path_to_tensorflow_psrdada_singularity_image: Text | None = None
    path_to_models: Name = str(DEFAULT_CONFIG.with_name("models"))
    name_of_the_model: Name = "default.pth"
    threads_for_transientx: int = Field(default=48, ge=1)
    input_buffer_size: int = Field(default=65536, ge=1)
    use_multiprocessing: bool = False
    workers_for_pytorch: int = Field(default=1, ge=0)
    model_name: Name | None = None
    resolution: int | None = Field(default=None, ge=1)

    output_dir: Name = "./"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: int = Field(default=32, ge=1, le=4096)
    threads: int | None = Field(default=None, ge=1, le=1024)
    threshold: float | None = Field(default=None, ge=0, le=1)
    event_threshold: float | None = Field(default=None, ge=0, le=1)
    max_false_per_hour: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    candidate_classifier: Name | None = str(DEFAULT_CONFIG.with_name("models") / "candidate_classifier.pth")
    candidate_classifier_dmt: Name | None = str(DEFAULT_CONFIG.with_name("models") / "candidate_classifier_dmt.pth")
    min_snr: float = Field(default=6.25, ge=0, allow_inf_nan=False)
    precision: Literal["float32", "bf16"] = "float32"
    snr_gate: float | None = Field(default=None, ge=0, le=LARGEST_THRESHOLD)
    page_samples: int = Field(default=256, ge=16, le=65536)
    page_overlap: float = Field(default=0.0, ge=0, le=0.9)
    time_downsample: list[Literal[1, 2, 4, 8, 16, 32, 64]] = Field(default=[1], min_length=1)
    exact_dedispersion: bool = False
    compile: bool = False
    block_samples: int = Field(default=BLOCK_SAMPLES, ge=2048, le=1 << 24)
    max_memory_mb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_plots: int | None = Field(default=100, ge=0)
    ifs: Annotated[int, Field(ge=0)] | Literal["sum"] = "sum"
    dms: float | None = Field(default=None, ge=0, le=1e5)
    ddm: float | None = Field(default=None, ge=1e-6, le=1e4)
    ndm: int | None = Field(default=None, ge=2, le=4096)
    zaplist: list[Band] = []
    max_latency_s: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    idle_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    stop_at_end_of_data: bool = False
    make_rings_with: Literal["own", "dada_db"] = "own"

    @field_validator("key_input", "key_output")
    @classmethod
    def _key_of_a_ring(cls, key: str | int) -> str:
        # A JSON number stands for its digits: 1111 is dada_db -k 1111, which is hexadecimal.
        try:
            return f"{parse_key(str(key)):x}"
        except InputError as error:
            raise ValueError(str(error)) from error

    @field_validator("time_downsample")
    @classmethod
    def _in_order(cls, factors: list[int]) -> list[int]:
        if factors != sorted(set(factors)):
            raise ValueError(f"must be ascending and different factors, got {factors}")
        return factors

    @field_validator("zaplist")
    @classmethod
    def _low_first(cls, zaplist: list[Band]) -> list[Band]:
        return checked_bands(zaplist)

    @model_validator(mode="after")
    def _one_decision(self) -> Self:
        for key, threshold in (("threshold", self.threshold), ("event_threshold", self.event_threshold)):
            if threshold is not None and self.max_false_per_hour is not None:
                raise ValueError(
                    f"only one of {key} and max_false_per_hour may be set, got {threshold:g} and "
                    f"{self.max_false_per_hour:g}"
                )
        return self

    @property
    def filterbank_path(self) -> Path:
        """The observation that the config names."""
        return self.resolve(self.path_to_filterbanks) / self.name_of_the_filterbank

    @property
    def model_path(self) -> Path:
        """Checkpoint of the page classifier."""
        return self.resolve(self.path_to_models) / self.name_of_the_model

    @property
    def candidate_classifier_path(self) -> Path | None:
        """Checkpoint of the candidate classifier, if there is one."""
        return self.resolve(self.candidate_classifier) if self.candidate_classifier else None

    @property
    def candidate_classifier_dmt_path(self) -> Path | None:
        """Checkpoint of the candidate classifier for sources without channels, if there is one."""
        return self.resolve(self.candidate_classifier_dmt) if self.candidate_classifier_dmt else None

    @property
    def output_path(self) -> Path:
        """Folder of the results."""
        return self.resolve(self.output_dir)

    @cached_property
    def transientx(self) -> TransientXConfig:
        """The TransientX file, read once; its defaults if the config names none."""
        path = self.path_to_a_transientx_config
        return load_config(self.resolve(path), TransientXConfig) if path else TransientXConfig()

    def front_end(self) -> FrontEndSettings:
        """Return the settings of the front end: those of the TransientX file, overridden by keys of this config."""
        return FrontEndSettings(
            self.trial_dms(),
            self.transientx.cleaning(self.zapped_bands()),
            self.page_samples,
            self.overlap(),
            tuple(self.time_downsample),
            self.exact_dedispersion,
            self.ifs,
            self.block_samples,
            self.max_memory_mb,
            "cuda" if self.device == "cuda" else "cpu",
        )

    def warn_of_unused_settings(self) -> None:
        """Log a warning for each setting of the TransientX file that the front end does not implement."""
        for setting in self.transientx.not_implemented():
            logger.warning("%s: %s", self.path_to_a_transientx_config, setting)

    def zapped_bands(self) -> tuple[tuple[float, float], ...]:
        """Return the bands (low, high) in MHz that are not used: those of the TransientX file and of this config."""
        return tuple((low, high) for low, high in [*self.transientx.rfi.zaplist, *self.zaplist])

    def trial_dms(self) -> np.ndarray:
        """Return the trial DMs (n_dm,) in pc cm^-3."""
        grid = self.transientx.subdedispersion
        dms = grid.dms if self.dms is None else self.dms
        ddm = grid.ddm if self.ddm is None else self.ddm
        ndm = grid.ndm if self.ndm is None else self.ndm
        return dms + ddm * np.arange(ndm)

    def samples_per_column(self) -> int:
        """Return the samples of the observation in one column of the pages that TransientX makes."""
        return self.transientx.td

    def overlap(self) -> float:
        """Return the fraction of a page that the next one repeats."""
        if "page_overlap" in self.model_fields_set:
            return self.page_overlap
        return self.transientx.subdedispersion.overlap


def load_pipeline_config(path: str | Path, changes: Mapping[str, object] | None = None) -> PipelineConfig:
    """Read and check the pipeline's config, and the TransientX file that it names.

    Parameters
    ----------
    path : str or Path
        A JSON file. The key ``second_look`` of version 0.1 is read as ``candidate_classifier``, with a notice.
    changes : mapping, optional
        Values that replace keys of the file, as options of the command line do.

    Raises
    ------
    InputError
        If the config is not valid. For a config of the TensorFlow pipeline the message lists the lines to change.
    """
    path = Path(path)
    content = read_json(path)
    if edits := _tensorflow_changes(content):
        raise InputError(
            f"{path} is a config of the TensorFlow pipeline; change these lines, or let `python convert_to_pytorch.py "
            f"--config {path}` do it: {'; '.join(edits)}"
        )
    if "second_look" in content:
        if "candidate_classifier" in content:
            raise InputError(f"{path}: only one of candidate_classifier and second_look, its old name, may be given")
        logger.warning("%s: the key second_look is now candidate_classifier; the old name is still read", path)
        content["candidate_classifier"] = content.pop("second_look")
    config = check_config(path, content, PipelineConfig)
    config = config.model_copy(update=dict(changes or {}))
    config.transientx  # noqa: B018 - an error in that file is reported before any processing
    return config


def _tensorflow_changes(content: dict) -> list[str]:
    changes = []
    model = content.get("name_of_the_model")
    if isinstance(model, str) and model.endswith((".h5", ".hdf5", ".keras")):
        new = Path(model).with_suffix(".pth").name
        changes.append(f'"name_of_the_model": "{model}" -> "{new}", made by `python convert_to_pytorch.py {model}`')
        changes += [f'add "{key}" of the model' for key in ("model_name", "resolution") if key not in content]
    if "workers_for_tensorflow" in content:
        workers = json.dumps(content["workers_for_tensorflow"])
        changes.append(f'"workers_for_tensorflow": {workers} -> "workers_for_pytorch": {workers}')
    return changes
