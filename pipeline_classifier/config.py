"""Config of the pipeline: config.json, and the TransientX file (dbdedispdb_config.json) of its search front end."""

import json
import logging
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline_classifier.rfi import Cleaning
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import ConfigFile, Name, load_config

logger = logging.getLogger(__name__)

Band = Annotated[list[float], Field(min_length=2, max_length=2)]
DEFAULT_CONFIG = Path(__file__).with_name("config.json")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Preprocess(_Section):
    td: int = Field(default=1, ge=1)
    fd: int = Field(default=1, ge=1)
    zapthre: float = 3.0
    filltype: str = "mean"


class Downsample(_Section):
    td: int = Field(default=1, ge=1)
    fd: int = Field(default=1, ge=1)


class Baseline(_Section):
    width: float = Field(default=Cleaning.baseline_window_s, ge=0, allow_inf_nan=False)


class Rfi(_Section):
    filltype: str = "mean"
    thremask: float = 7.0
    threKadaneF: float = 10.0  # noqa: N815 (TransientX's own key)
    threKadaneT: float = 7.0  # noqa: N815
    widthlimit: float = 0.05
    bandlimitKT: float = 10.0  # noqa: N815
    zaplist: list[Band] = []
    rfilist: list[list[str]] = [["zdot"]]


class Subdedispersion(_Section):
    rootname: str = ""
    dms: float = Field(default=0.0, ge=0, le=1e5)
    ddm: float = Field(default=0.5, ge=1e-6, le=1e4)
    ndm: int = Field(default=256, ge=2, le=4096)
    overlap: float = 0.0


class FrontEndConfig(ConfigFile):
    """TransientX's dbdedispdb_config.json. What the dry run and ``--filterbank`` take from it: baseline.width (s),
    rfi.zaplist (MHz), zdot in rfi.rfilist, and the DM grid dms, ddm, ndm."""

    preprocesslite: Preprocess = Preprocess()
    downsample: Downsample = Downsample()
    baseline: Baseline = Baseline()
    rfi: Rfi = Rfi()
    subdedispersion: Subdedispersion = Subdedispersion()

    def not_implemented(self) -> list[str]:
        """Settings that ask for something which our own front end does not do."""
        asked = [f"rfi.rfilist {' '.join(entry)}" for entry in self.rfi.rfilist if entry[:1] != ["zdot"]]
        for section, values in (("preprocesslite", self.preprocesslite), ("downsample", self.downsample)):
            asked += [f"{section}.{key} {getattr(values, key)}" for key in ("td", "fd") if getattr(values, key) != 1]
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
    max_false_per_hour: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    page_samples: int = Field(default=256, ge=16, le=65536)
    page_overlap: float = Field(default=0.0, ge=0, le=0.9)
    time_downsample: list[Literal[1, 2, 4, 8, 16, 32, 64]] = Field(default=[1], min_length=1)
    exact_dedispersion: bool = False
    dms: float | None = Field(default=None, ge=0, le=1e5)
    ddm: float | None = Field(default=None, ge=1e-6, le=1e4)
    ndm: int | None = Field(default=None, ge=2, le=4096)
    zaplist: list[Band] = []

    @field_validator("time_downsample")
    @classmethod
    def _in_order(cls, factors: list[int]) -> list[int]:
        if factors != sorted(set(factors)):
            raise ValueError("the factors must ascend, each named once")
        return factors

    @model_validator(mode="after")
    def _one_decision(self) -> Self:
        if self.threshold is not None and self.max_false_per_hour is not None:
            raise ValueError(
                f"threshold {self.threshold:g} and max_false_per_hour {self.max_false_per_hour:g}: "
                "valid is one of the two keys"
            )
        return self

    @property
    def filterbank_path(self) -> Path:
        return self.resolve(self.path_to_filterbanks) / self.name_of_the_filterbank

    @property
    def model_path(self) -> Path:
        return self.resolve(self.path_to_models) / self.name_of_the_model

    def front_end(self) -> tuple[np.ndarray, Cleaning]:
        """Trial DMs (n_dm,) in pc cm^-3 and cleaning: the TransientX file's, over which keys of this config win."""
        path = self.path_to_a_transientx_config
        transientx = load_config(self.resolve(path), FrontEndConfig) if path else FrontEndConfig()
        for setting in transientx.not_implemented():
            logger.warning("%s asks for %s, which our own front end does not do", path, setting)
        grid = transientx.subdedispersion
        dms = grid.dms if self.dms is None else self.dms
        ddm = grid.ddm if self.ddm is None else self.ddm
        ndm = grid.ndm if self.ndm is None else self.ndm
        zaplist = tuple((low, high) for low, high in [*transientx.rfi.zaplist, *self.zaplist])
        for low, high in zaplist:
            if not low <= high:
                raise InputError(f"zaplist entry [{low}, {high}]: the lower frequency in MHz must come first")
        zero_dm = ["zdot"] in transientx.rfi.rfilist
        return dms + ddm * np.arange(ndm), Cleaning(transientx.baseline.width, zero_dm, zaplist=zaplist)


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
