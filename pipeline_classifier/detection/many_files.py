"""Many observations: each marked when finished, and one catalogue of the events of all."""

import csv
import fcntl
import glob
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.events import Event
from pipeline_classifier.formats.csv_table import read_csv
from pipeline_classifier.formats.file_names import safe_field
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer

logger = logging.getLogger(__name__)

CATALOGUE = "catalogue.csv"
WITHOUT_EFFECT = {
    "path_to_filterbanks", "name_of_the_filterbank", "path_to_a_transientx_config", "path_to_models",
    "candidate_classifier", "candidate_classifier_dmt", "output_dir", "threads", "key_input", "key_output",
    "input_buffer_size",
    "path_to_pulsarx_singularity_image", "path_to_tensorflow_psrdada_singularity_image", "threads_for_transientx",
    "use_multiprocessing", "workers_for_pytorch", "max_latency_s", "idle_timeout_s", "stop_at_end_of_data",
    "make_rings_with", "max_plots",
}  # fmt: skip
"""Keys of the config that do not change the results of a file; the contents of models and TransientX file count."""
HEADER_BYTES, BLOCK_BYTES, BLOCKS = 1 << 16, 1 << 12, 32
"""What of an observation is compared: 192 KiB of any file, so that thousands of files take seconds."""


def expand(patterns: Sequence[str], option: str = "--filterbank") -> list[Path]:
    """Return the files that names and patterns such as 'data/*.fil' match, each once, sorted within a pattern.

    Raises
    ------
    InputError
        If nothing matches.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise InputError(f"{option} {pattern}: must be a file or a pattern that matches one, got neither")
        files |= dict.fromkeys(Path(name) for name in found)
    return list(files)


def settings_fingerprint(config: PipelineConfig) -> str:
    """Hash all that the results depend on, except the observation.

    These are the values of the config, the content of the TransientX file and of the checkpoints; not where these files
    are, the number of threads, or what concerns a ring.
    """
    keys = config.model_dump(exclude=WITHOUT_EFFECT)
    # Both have an effect already by being set (`PipelineConfig.overlap`, `decide`).
    keys |= {"page_overlap": config.overlap(), "min_snr is set": "min_snr" in config.model_fields_set}
    models = [hashlib.sha256(model.read_bytes()).hexdigest() for model in _models(config)]
    content = json.dumps([keys, config.transientx.model_dump(), models], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _models(config: PipelineConfig) -> list[Path]:
    models = config.model_path, config.candidate_classifier_path, config.candidate_classifier_dmt_path
    return [model for model in models if model]


def fingerprint(path: Path, settings: str) -> dict[str, object]:
    """Identify a search: name, size, time and parts of the content of the observation, and `settings_fingerprint`."""
    return _identity(path, settings) | {"content": content_of(path)}


def _identity(path: Path, settings: str) -> dict[str, object]:
    file = path.stat()
    return {"name": path.name, "size": file.st_size, "mtime_ns": file.st_mtime_ns, "settings": settings}


def content_of(path: Path) -> str:
    """Hash the header and `BLOCKS` blocks spread over a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(HEADER_BYTES))
        last = max(0, os.fstat(file.fileno()).st_size - BLOCK_BYTES)
        for number in range(BLOCKS):
            file.seek(last * number // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _record(folder: Path, name: str) -> Path:
    return folder / f"done_{name}.json"


def _candidates(folder: Path, name: str) -> Path:
    return folder / f"candidates_{name}.csv"


def _found(folder: Path, name: str) -> dict:
    """Record of a finished search; empty without one, or if one of its outputs is no longer as it was."""
    try:
        record = json.loads(_record(folder, name).read_text())
        sizes = {output: (folder / output).stat().st_size for output in record["outputs"]}
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return record if sizes == record["outputs"] else {}


def is_done(folder: Path, path: Path, identity: dict[str, object], asked: Sequence[str] = ()) -> bool:
    """Return whether the results in ``folder`` are those of a search.

    Parameters
    ----------
    folder : Path
    path : Path
        The observation.
    identity : dict
        As `fingerprint` returns it.
    asked : sequence of str
        Outputs that a search can be asked for; those of the earlier one must be among them.
    """
    found = _found(folder, path.stem)
    return identity.items() <= found.items() and set(asked) <= set(found.get("asked", ()))


def not_done(folder: Path, files: Sequence[Path], settings: str) -> list[Path]:
    """Return the files without results of a search with these settings, whatever other process was to search them."""
    return [path for path in files if not _identity(path, settings).items() <= _found(folder, path.stem).items()]


def is_in_catalogue(folder: Path, name: str) -> bool:
    """Return whether the catalogue of a folder, if there is one, has the events of an observation."""
    return _record(folder, name).exists() and (folder / CATALOGUE).exists()


def begin(folder: Path, name: str) -> None:
    """Mark the results of an observation as incomplete, and remove its events from the catalogue.

    Whatever replaces some of the results calls this first, so that the catalogue never lists others than the files of
    its observations.
    """
    if is_in_catalogue(folder, name):
        write_catalogue(folder, [Path(f"{name}.fil")])
    _record(folder, name).unlink(missing_ok=True)


def finish(
    folder: Path, path: Path, identity: dict[str, object], outputs: Sequence[Path], asked: Sequence[str] = ()
) -> None:
    """Mark the results of a file as complete; ``outputs`` are its files in the folder, the others as in `is_done`."""
    sizes = {output.name: output.stat().st_size for output in outputs}
    with atomic_writer(_record(folder, path.stem)) as file:
        file.write(json.dumps(identity | {"asked": list(asked), "outputs": sizes}).encode())


def write_catalogue(folder: Path, leave_out: Sequence[Path] = ()) -> Path:
    """Join the candidates of all finished files of a folder into one table, with the observation in the first column.

    A column that the candidates of another version lack is empty.

    Every process calls this after its last file; the last one to do so sees the results of all. A lock keeps a slower
    process from replacing a newer table by an older one.

    Parameters
    ----------
    folder : Path
    leave_out : sequence of Path
        Observations whose results in the folder are those of an earlier search.
    """
    stale = {path.stem for path in leave_out}
    with open(folder / ".catalogue.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = io.StringIO()
        columns = ["observation", *(field.name for field in fields(Event))]
        writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
        for record in sorted(folder.glob("done_*.json")):
            name = record.stem.removeprefix("done_")
            if name in stale:
                continue
            if not _candidates(folder, name).is_file():
                logger.warning("%s is missing: the observation is not in the catalogue", _candidates(folder, name))
                continue
            try:
                names, rows = read_csv(_candidates(folder, name), ["time_s"])
            except InputError as error:
                logger.warning("%s; the observation is not in the catalogue", error)
                continue
            if not text.getvalue():
                writer.writeheader()
            for _, row in rows:
                writer.writerow(dict(zip(names, row, strict=True)) | {"observation": safe_field(name)})
        with atomic_writer(folder / CATALOGUE) as catalogue:
            catalogue.write(text.getvalue().encode())
    return folder / CATALOGUE
