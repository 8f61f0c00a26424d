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
from pathlib import Path

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer

logger = logging.getLogger(__name__)

CATALOGUE = "catalogue.csv"


def expand(patterns: Sequence[str]) -> list[Path]:
    """Return the files that names and patterns such as 'data/*.fil' match, each once, sorted within a pattern.

    Raises
    ------
    InputError
        If nothing matches, or the results of two files would have the same names.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise InputError(f"--filterbank {pattern}: must be a file or a pattern that matches one, got neither")
        files |= dict.fromkeys(Path(name) for name in found)
    by_stem: dict[str, Path] = {}
    for path in files:
        if path.stem in by_stem:
            raise InputError(
                f"--filterbank {path}: must have another name than {by_stem[path.stem]}, or be searched in a run with "
                "another --output-dir, as their results would have the same names"
            )
        by_stem[path.stem] = path
    return list(files)


def fingerprint(path: Path, models: Sequence[Path], settings: object) -> dict[str, object]:
    """Identify a search: name, size and time of the file, and a hash of settings and models.

    Parameters
    ----------
    path : Path
        The observation.
    models : sequence of Path
        Checkpoints; their sizes and times are part of the hash.
    settings : object
        Settings of the search, as JSON can represent them.
    """
    file = path.stat()
    networks = [(str(model.resolve()), model.stat().st_size, model.stat().st_mtime_ns) for model in models]
    how = json.dumps([settings, networks], default=str)
    return {
        "name": path.name,
        "size": file.st_size,
        "mtime_ns": file.st_mtime_ns,
        "settings": hashlib.sha256(how.encode()).hexdigest(),
    }


def _record(folder: Path, name: str) -> Path:
    return folder / f"done_{name}.json"


def _candidates(folder: Path, name: str) -> Path:
    return folder / f"candidates_{name}.csv"


def is_done(folder: Path, path: Path, identity: dict[str, object]) -> bool:
    """Return whether the results in ``folder`` are those of the search that `fingerprint` identified."""
    try:
        found = json.loads(_record(folder, path.stem).read_text())
    except (OSError, ValueError):
        return False
    return found == identity and _candidates(folder, path.stem).is_file()


def begin(folder: Path, name: str) -> None:
    """Mark the results of a search as incomplete; every search that writes results under ``name`` calls this first."""
    _record(folder, name).unlink(missing_ok=True)


def finish(folder: Path, path: Path, identity: dict[str, object]) -> None:
    """Mark the results of a file as complete."""
    with atomic_writer(_record(folder, path.stem)) as file:
        file.write(json.dumps(identity).encode())


def write_catalogue(folder: Path) -> Path:
    """Join the candidates of all finished files of a folder into one table, with the observation in the first column.

    Every process calls this after its last file; the last one to do so sees the results of all. A lock keeps a slower
    process from replacing a newer table by an older one.
    """
    with open(folder / ".catalogue.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        heading: list[str] = []
        for record in sorted(folder.glob("done_*.json")):
            name = record.stem.removeprefix("done_")
            if not _candidates(folder, name).is_file():
                logger.warning("%s is missing: the observation is not in the catalogue", _candidates(folder, name))
                continue
            with open(_candidates(folder, name), newline="") as file:
                columns, *rows = csv.reader(file)
            if not heading:
                heading = ["observation", *columns]
                writer.writerow(heading)
            writer.writerows([name, *row] for row in rows)
        with atomic_writer(folder / CATALOGUE) as catalogue:
            catalogue.write(text.getvalue().encode())
    return folder / CATALOGUE
