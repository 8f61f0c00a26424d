"""The input of each result: `summary_<name>.json` names the files that were searched; a search of others is refused.

Outputs are named after the file that was searched, without its folder, so that two observations may have outputs of the
same names. Three cases are distinguished:

- The same input again, also with other settings: the results are replaced. The input is the same if content, size and
  modification time are, also if the file was moved.
- Another input: the search is refused before it starts. The outputs of two observations under one name could only be
  distinguished by reading the summary, `catalogue.csv` would list one of them, and two commands with --resume would
  replace the results of each other without end. A search that was refused can be repeated at any time.
- The file at the same path has another content, or another modification time, as only parts of the content are
  compared: its earlier results are kept under other names, as those of a ring are, since what they were made from may
  no longer exist. `run_pipeline_simulation.py` keeps the modification time of what it has simulated again unchanged.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_classifier.detection.many_files import content_of
from single_pulse_classifier_training.cli import InputError

UNMOVED = ("size", "mtime_ns", "content")
"""What of a file remains the same when it is moved."""
InputFiles = list[dict[str, Any]]
"""Path, size, time of the last change, and hash of parts of the content, of each file of an observation."""


def describe(files: Sequence[Path]) -> InputFiles:
    """Identify the files of an observation."""
    return [
        {
            "path": str(path.resolve()),
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
            "content": content_of(path),
        }
        for path in files
    ]


def recorded(folder: Path, name: str) -> InputFiles:
    """Return the files from which the results of a name were made; empty if it is not known, as for those of a ring."""
    try:
        inputs = json.loads((folder / f"summary_{name}.json").read_text())["inputs"]
        return [{key: file[key] for key in ("path", *UNMOVED)} for file in inputs]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def has_changed(earlier: InputFiles, now: InputFiles) -> bool:
    """Whether the input, as `check_input` has found it, has been written since the earlier results were made."""
    return bool(earlier) and _values(earlier, *UNMOVED) != _values(now, *UNMOVED)


def check_input(folder: Path, name: str, files: Sequence[Path]) -> None:
    """Check that the results of a name in a folder, if there are any, were made from the same input.

    Parameters
    ----------
    folder : Path
        Folder of the results, which need not exist.
    name : str
        Name of the observation.
    files : sequence of Path
        Its files.

    Raises
    ------
    InputError
        If they were made from other files.
    """
    earlier = recorded(folder, name)
    paths = [file["path"] for file in earlier]
    if not earlier or paths == [str(path.resolve()) for path in files]:
        return
    if _values(earlier, *UNMOVED) != _values(describe(files), *UNMOVED):
        raise InputError(
            f"{', '.join(map(str, files))}: must be searched in a run with another --output-dir, as the results would "
            f"replace those of {', '.join(paths)} in {folder}"
        )


def _values(files: InputFiles, *keys: str) -> list[list[object]]:
    return [[file[key] for key in keys] for file in files]
