"""The files of a search: their names, the folder in which they are made, and the lock that keeps other searches out."""

import errno
import fcntl
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline_classifier.detection import many_files
from pipeline_classifier.output.input_record import check_input
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

LAYER = r"(?:_dms\d+)?(?:_x\d+)?"
ENDINGS = {
    "predictions": rf"({LAYER})\.npy",
    "probabilities": rf"({LAYER})\.npy",
    "candidates": r"()\.(?:csv|cands)",
    "heimdall": r"()\.csv",
    "summary": r"()\.json",
    "status": r"()\.json",
    "done": r"()\.json",
    "report": r"()\.html",
    "event": r"()_\d{4,}\.png",
    "unfinished": "()",
}
"""What follows the name of the observation in the names of its outputs, by their first word; the group is the layer."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of file systems that have no locks."""


class InUse(InputError):
    """Another process is searching the observation."""


def check_names(
    observations: Sequence[tuple[str, Sequence[Path]]],
    suffixes: Sequence[str],
    inputs: Sequence[Path],
    folder: Path,
) -> None:
    """Check that no output of a run would replace another one, one of another observation, or an input.

    Parameters
    ----------
    observations : sequence of (str, sequence of Path)
        Name of each observation, which is part of the names of its outputs, and its files.
    suffixes : sequence of str
        `Layer.suffix` of the layers of every observation.
    inputs : sequence of Path
        All files that the run reads.
    folder : Path
        Folder of the results, which need not exist.

    Raises
    ------
    InputError
        If names collide.
    """
    fold = str.casefold if _ignores_case(folder) else str
    elsewhere = "must be searched in a run with another --output-dir"
    made: dict[str, Path] = {}
    for name, (path, *_) in observations:
        for suffix in {"", *suffixes}:
            if (other := made.setdefault(fold(name + suffix), path)) != path:
                raise InputError(f"{path}: {elsewhere} than {other}, as their results would have the same names")
        taken = [name + suffix for suffix in suffixes if suffix and _has_results(folder, name + suffix)]
        base = re.fullmatch(rf"(.+?){LAYER}", name, re.DOTALL)
        if base and base[1] != name and _has_results(folder, base[1]) and not _has_results(folder, name):
            taken += [name] if (folder / f"predictions_{name}.npy").exists() else []
        if taken:
            raise InputError(
                f"{path}: {elsewhere}, as it would replace predictions_{taken[0]}.npy of another observation"
            )
    by_name = dict(observations)
    for file in inputs:
        if file.resolve().parent == folder.resolve() and (parts := _parts(file.name)):
            for name in {parts[0], "".join(parts)} & by_name.keys():
                raise InputError(f"{by_name[name][0]}: {elsewhere}, as its results would replace {file}")
    for name, files in observations:
        check_input(folder, name, files)


def _parts(file_name: str) -> tuple[str, str] | None:
    """Name of the observation and suffix of the layer, if a file has the name of an output."""
    kind, _, rest = file_name.partition("_")
    match = re.fullmatch(f"(.+?){ENDINGS[kind]}", rest, re.DOTALL) if kind in ENDINGS else None
    return (match[1], match[2]) if match else None


def _has_results(folder: Path, name: str) -> bool:
    """Whether a folder has the results of an observation of this name; a layer has no list of candidates of its own."""
    return (folder / f"candidates_{name}.csv").exists()


def _ignores_case(folder: Path) -> bool:
    """Whether names that differ in upper and lower case only are the same file in a folder, which need not exist."""
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    other = existing.with_name(existing.name.swapcase()) if existing.name else existing
    return other.name != existing.name and other.exists() and other.samefile(existing)


def outputs_in(folder: Path, name: str) -> list[Path]:
    """Return the outputs of an observation in a folder, its candidates first.

    ``predictions_a_x4.npy`` belongs to an observation ``a_x4`` if it has candidates, and otherwise to a layer of ``a``.
    """
    found = []
    for path in folder.iterdir():
        if name in path.name and (parts := _parts(path.name)) and path.is_file():
            base, layer = parts
            if name == (base + layer if layer and _has_results(folder, base + layer) else base):
                found.append(path)
    return sorted(found, key=_candidates_first)


def _candidates_first(path: Path) -> tuple[bool, bool, str]:
    """Sort candidates first, then the summary, which has the names of the input files."""
    return not path.name.startswith("candidates_"), not path.name.startswith("summary_"), path.name


@contextmanager
def lock(folder: Path, name: str) -> Iterator[None]:
    """Keep every other search out of the results of an observation; the lock of a killed process does not remain.

    Raises
    ------
    InUse
        If another process has the lock.
    """
    path = folder / f".{name}.lock"
    while True:
        file = open(path, "w")  # noqa: SIM115 - closed below
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InUse(
                f"{folder}: {name} must be searched by one process at a time, got another one that is searching it"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s: no locks on this file system; a second search at the same time is not noticed", folder)
            break
        # Between opening and locking, the process that had the lock may have removed the file.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
        file.close()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


@contextmanager
def unfinished_folder(folder: Path, name: str) -> Iterator[Path]:
    """Lock the results of an observation, and yield ``unfinished_<name>``, new and empty, in which they are made.

    If the block fails, or the process is killed, the folder remains with what was found until then; the next search
    replaces it. Ctrl-C, SIGTERM and SIGHUP end the block with a message that says so.
    """
    with lock(folder, name), _exit_on_signals() as received:
        unfinished = _removed(folder, name)
        unfinished.mkdir()
        try:
            yield unfinished
        except (KeyboardInterrupt, SystemExit):
            logger.warning(
                "%s: the search was stopped by %s; its results so far are in %s; repeat the command to search it again "
                "(with --resume, files that are finished are skipped)",
                name,
                signal.Signals(received[0] if received else signal.SIGINT).name,
                unfinished,
            )
            raise


@contextmanager
def _exit_on_signals() -> Iterator[list[int]]:
    """Raise SystemExit at the first SIGTERM or SIGHUP, unless they are ignored or handled; yield those that came."""
    received: list[int] = []
    caught = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        caught = []

    def restore() -> None:
        for number in caught:
            signal.signal(number, signal.SIG_DFL)

    def leave(number: int, _: object) -> None:
        restore()
        received.append(number)
        raise SystemExit(128 + number)

    for number in caught:
        signal.signal(number, leave)
    try:
        yield received
    finally:
        restore()


def remove_unfinished(folder: Path, name: str) -> None:
    """Remove what a killed search of an observation has left; raise InUse if a search of it is running."""
    with lock(folder, name):
        _removed(folder, name)


def _removed(folder: Path, name: str) -> Path:
    """Remove the folder in which the results of an observation are made, and return its path."""
    unfinished = folder / f"unfinished_{name}"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    return unfinished


def publish(unfinished: Path, files: Sequence[Path], folder: Path, name: str, keep: bool = False) -> list[Path]:
    """Replace the results of an earlier search by the files that this one has made; return their new paths.

    With ``keep`` they are renamed instead. So are the results of a live search, as the data of a ring cannot be read
    again.
    """
    many_files.begin(folder, name)
    keep = keep or (folder / f"status_{name}.json").exists()
    for path in reversed(outputs_in(folder, name)):
        if keep:
            keep_earlier(path)
        else:
            path.unlink()
    # If this is interrupted, the candidates show whose the other files are.
    for path in sorted(files, key=_candidates_first):
        os.replace(path, folder / path.name)
    shutil.rmtree(unfinished)
    return [folder / path.name for path in files]


def keep_earlier(path: Path) -> None:
    """Rename the file of an earlier run, if there is one: x.npy becomes x.20260131T235959.npy, the next ..._2.npy."""
    if path.exists():
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y%m%dT%H%M%S")
        kept, number = path.with_name(f"{path.stem}.{changed}{path.suffix}"), 1
        while kept.exists():
            number += 1
            kept = path.with_name(f"{path.stem}.{changed}_{number}{path.suffix}")
        os.replace(path, kept)
        logger.info("%s of an earlier run is now %s", path.name, kept.name)
