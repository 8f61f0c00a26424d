"""Config of the pipeline: config.json, and the TransientX file (dbdedispdb_config.json) of its search front end."""

import json
import logging
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline_classifier.frontend.settings import BIN, BLOCK_SAMPLES, Cleaning
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import ConfigFile, Name, load_config

logger = logging.getLogger(__name__)

RFI_FILTERS = {"zdot": 0, "zero": 0, "kadaneF": 2, "kadaneT": 2, "mask": 2}  # TransientX's; how many numbers follow
Band = Annotated[list[float], Field(min_length=2, max_length=2)]
DEFAULT_CONFIG = Path(__file__).with_name("config.json")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Preprocess(_Section):
    td: int = Field(default=1, ge=1, le=4096)
    fd: int = Field(default=1, ge=1, le=4096)
    zapthre: float = Field(default=Cleaning.zap_threshold, gt=0)
    filltype: Literal["mean", "rand"] = "mean"


class Downsample(_Section):
    td: int = Field(default=1, ge=1, le=4096)
    fd: int = Field(default=1, ge=1, le=4096)


class Baseline(_Section):
    width: float = Field(default=Cleaning.baseline_window_s, ge=0, allow_inf_nan=False)


class Rfi(_Section):
    filltype: Literal["mean", "rand"] = "mean"
    thremask: float = Field(default=Cleaning.mask_threshold, gt=0)
    threKadaneF: float = Field(default=Cleaning.kadane_threshold, gt=0)
    threKadaneT: float = 7.0
    widthlimit: float = Field(default=Cleaning.kadane_width_s, gt=0, allow_inf_nan=False)
    bandlimitKT: float = 10.0
    zaplist: list[Band] = []
    rfilist: list[list[str]] = [["zdot"]]

    @field_validator("rfilist")
    @classmethod
    def _known_filters(cls, filters: list[list[str]]) -> list[list[str]]:
        for name, *numbers in filter(None, filters):
            if name not in RFI_FILTERS:
                raise ValueError(f"{name!r} is no filter: valid are {', '.join(RFI_FILTERS)}")
            if len(numbers) != RFI_FILTERS[name] or not all(number.isdigit() and int(number) for number in numbers):
                raise ValueError(
                    f"{[name, *numbers]}: after {name!r} come {RFI_FILTERS[name]} whole numbers above 0, as text"
                )
        return [entry for entry in filters if entry]


class Subdedispersion(_Section):
    rootname: str = ""
    dms: float = Field(default=0.0, ge=0, le=1e5)
    ddm: float = Field(default=0.5, ge=1e-6, le=1e4)
    ndm: int = Field(default=256, ge=2, le=4096)
    overlap: float = Field(default=0.0, ge=0, le=0.9)


def parse_key(key: str | int) -> int:
    """The key of a ring: an int as it is, a string as hexadecimal digits ("2222", "0xdada")."""
    if isinstance(key, int):
        number = key
    else:
        try:
            number = int(key, 16)
        except ValueError:
            number = 0
    if not 0 < number < 1 << 31:
        raise InputError(f"{key!r} is no key of a ring: valid are hexadecimal digits, 1 to 7fffffff")
    return number


class FrontEndConfig(ConfigFile):
    """TransientX's dbdedispdb_config.json; README.md says what our own front end makes of every key."""

    preprocesslite: Preprocess = Preprocess()
    downsample: Downsample = Downsample()
    baseline: Baseline = Baseline()
    rfi: Rfi = Rfi()
    subdedispersion: Subdedispersion = Subdedispersion()

    def cleaning(self, zaplist: tuple[tuple[float, float], ...]) -> Cleaning:
        """The settings of rfi.py; of several entries of one kind in rfi.rfilist the first counts."""
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
            td=self.preprocesslite.td * self.downsample.td,
            fd=self.preprocesslite.fd * self.downsample.fd,
        )

    def not_implemented(self) -> list[str]:
        """What the file asks for and our own front end does not do, each with what it does instead."""
        asked = []
        for entry in self.rfi.rfilist:
            if entry[0] == "kadaneT":
                asked.append(
                    f"rfi.rfilist {entry}: it would drop bright pulses; zdot and zero drop undispersed impulses"
                )
            elif entry[0] == "mask":
                asked.append(f"rfi.rfilist {entry}: it would drop bright pulses; whole channels are masked")
            elif entry[0] == "kadaneF" and int(entry[1]) != BIN:
                asked.append(f"rfi.rfilist {entry}: kadaneF averages {BIN} samples here")
        if sum(entry[0] in ("zdot", "zero") for entry in self.rfi.rfilist) > 1:
            asked.append("rfi.rfilist: more than one of zdot and zero; the first is done, another would change nothing")
        for section, values in (("preprocesslite", self.preprocesslite), ("rfi", self.rfi)):
            if values.filltype == "rand":
                asked.append(f"{section}.filltype 'rand': what is masked adds nothing to any sum here, as with 'mean'")
        return asked


class PipelineConfig(ConfigFile):
    """Config of the pipeline. The keys up to ``workers_for_pytorch`` are the original's; README.md has them all."""

    path_to_filterbanks: Name = "./"
    name_of_the_filterbank: Name = "B0531+21_59000_48386.fil"
    n_spectra: int | None = Field(default=None, ge=1)
    key_input: str | int = "1111"
    key_output: str | int = "2222"
    path_to_a_transientx_config: Name | None = None
    path_to_pulsarx_singularity_image: str | None = None
    path_to_tensorflow_psrdada_singularity_image: str | None = None
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
    second_look: Name | None = str(DEFAULT_CONFIG.with_name("models") / "second_look.pth")
    min_snr: float = Field(default=6.25, ge=0, allow_inf_nan=False)
    precision: Literal["float32", "bf16"] = "float32"
    snr_gate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    page_samples: int = Field(default=256, ge=16, le=65536)
    page_overlap: float = Field(default=0.0, ge=0, le=0.9)
    time_downsample: list[Literal[1, 2, 4, 8, 16, 32, 64]] = Field(default=[1], min_length=1)
    exact_dedispersion: bool = False
    compile: bool = False
    block_samples: int = Field(default=BLOCK_SAMPLES, ge=2048, le=1 << 24)
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
            raise ValueError("the factors must ascend, each named once")
        return factors

    @model_validator(mode="after")
    def _one_decision(self) -> Self:
        for key, threshold in (("threshold", self.threshold), ("event_threshold", self.event_threshold)):
            if threshold is not None and self.max_false_per_hour is not None:
                raise ValueError(
                    f"{key} {threshold:g} and max_false_per_hour {self.max_false_per_hour:g}: "
                    "valid is one of the two keys"
                )
        return self

    @property
    def filterbank_path(self) -> Path:
        return self.resolve(self.path_to_filterbanks) / self.name_of_the_filterbank

    @property
    def model_path(self) -> Path:
        return self.resolve(self.path_to_models) / self.name_of_the_model

    @property
    def second_look_path(self) -> Path | None:
        return self.resolve(self.second_look) if self.second_look else None

    def front_end(self) -> tuple[np.ndarray, Cleaning]:
        """Trial DMs (n_dm,) in pc cm^-3 and cleaning: the TransientX file's, over which keys of this config win."""
        transientx = self._transientx()
        for setting in transientx.not_implemented():
            logger.warning("%s, %s", self.path_to_a_transientx_config, setting)
        return self.trial_dms(), transientx.cleaning(self.zapped_bands())

    def zapped_bands(self) -> tuple[tuple[float, float], ...]:
        """Bands (low, high) in MHz that are not used: the TransientX file's and those of this config."""
        zaplist = tuple((low, high) for low, high in [*self._transientx().rfi.zaplist, *self.zaplist])
        for low, high in zaplist:
            if not low <= high:
                raise InputError(f"zaplist entry [{low}, {high}]: the lower frequency in MHz must come first")
        return zaplist

    def trial_dms(self) -> np.ndarray:
        """(n_dm,) in pc cm^-3."""
        grid = self._transientx().subdedispersion
        dms = grid.dms if self.dms is None else self.dms
        ddm = grid.ddm if self.ddm is None else self.ddm
        ndm = grid.ndm if self.ndm is None else self.ndm
        return dms + ddm * np.arange(ndm)

    def samples_per_column(self) -> int:
        """Samples of the observation in one column of the pages that TransientX makes."""
        transientx = self._transientx()
        return transientx.preprocesslite.td * transientx.downsample.td

    def overlap(self) -> float:
        """Share of a page that the next one repeats: page_overlap, or else the TransientX file's overlap."""
        if "page_overlap" in self.model_fields_set:
            return self.page_overlap
        return self._transientx().subdedispersion.overlap

    def _transientx(self) -> FrontEndConfig:
        path = self.path_to_a_transientx_config
        return load_config(self.resolve(path), FrontEndConfig) if path else FrontEndConfig()


def load_pipeline_config(path: str | Path) -> PipelineConfig:
    """Read and check the pipeline's config; a config of the TensorFlow pipeline is told line by line what to change."""
    path = Path(path)
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            content = None  # load_config says what is wrong with it
        if isinstance(content, dict):
            changes = _tensorflow_changes(content)
            if changes:
                raise InputError(
                    f"{path} is of the TensorFlow pipeline; change these lines, or let `python convert_to_pytorch.py "
                    f"--config {path}` do it: {'; '.join(changes)}"
                )
    return load_config(path, PipelineConfig)


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
