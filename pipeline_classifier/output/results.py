"""Results of a search: predictions, lists, run summary, pictures and HTML report on disk, and the printed text."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.classifiers import Classifiers
from pipeline_classifier.detection.decision import Decision
from pipeline_classifier.detection.page_classifier import NOT_CLASSIFIED
from pipeline_classifier.detection.search import LayerResult, SearchResult, search
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.frontend.sources import Source
from pipeline_classifier.options import OutputOptions
from pipeline_classifier.output.candidate_lists import (
    as_written,
    candidate_lines,
    read_candidates,
    write_candidates,
    write_heimdall,
    write_transientx,
)
from pipeline_classifier.output.event_picture import EventPicture, Saliency
from pipeline_classifier.output.html_report import write_report
from pipeline_classifier.output.input_record import InputFiles, check_input, describe, has_changed, recorded
from pipeline_classifier.output.picture_workers import PictureTask, PictureWorkers
from pipeline_classifier.output.plots import event_picture, foremost
from pipeline_classifier.output.run_files import lock, publish, unfinished_folder
from pipeline_classifier.output.saliency import saliency_of_events
from pipeline_classifier.output.saved_candidates import save_candidates
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer, save_npy

logger = logging.getLogger(__name__)

MOST_LINES = 1000
"""Largest number of events in the text that is printed. Chosen by hand."""


def search_and_write(
    source: Source, classifiers: Classifiers, decision: Decision, config: PipelineConfig, options: OutputOptions
) -> SearchResult:
    """Search one source and write the results to the output folder of the config, which must exist.

    They are made in the folder ``unfinished_<name>``, from which they replace those of an earlier search at the end.

    Raises
    ------
    InputError
        If the results of this name in the output folder are those of other files, or another process is searching them.
    """
    with unfinished_folder(config.output_path, source.name) as folder:
        check_input(config.output_path, source.name, source.files)
        inputs = describe(source.files)
        keep = has_changed(recorded(config.output_path, source.name), inputs)
        with growing_results(folder, source) as add:
            result = search(source, classifiers, decision, config.threads, add)
        drawn = foremost(as_written(result.events), options.most_plots(config))
        write_lists(result, source, folder, config.n_spectra, drawn)
        result.files.append(write_summary(folder, source.name, result.summary, inputs))
        if options.save_candidates:
            assert isinstance(source, FilterbankPages)
            result.files += save_candidates(result.events, source, folder, config.threads)
        if options.plots:
            if len(drawn) < len(result.events):
                logger.warning(
                    "%d events: pictures are drawn of %d, the most probable and brightest (max_plots); the same "
                    "command with --plots-only --all-plots draws the others",
                    len(result.events),
                    len(drawn),
                )
            shown = saliency_of_events(source, result, classifiers.pages, drawn) if options.saliency else None
            result.files += write_pictures(result.events, drawn, source, folder, config.threads, shown)
        if options.report:
            result.files.append(write_report(folder, result, source, classifiers, config.model_path.name))
        if keep:
            logger.warning("%s has changed since its earlier results were made; they are kept", inputs[0]["path"])
        result.files = publish(folder, result.files, config.output_path, source.name, keep)
    return result


@contextmanager
def growing_results(folder: Path, source: Source) -> Iterator[Callable[[LayerResult, slice, list[Event]], None]]:
    """Keep predictions, probabilities and candidates on disk while a search runs, as far as they are known.

    Yields
    ------
    callable
        Writes the results of some pages of a layer and appends events, as `search` reports them.
    """
    files: dict[str, list[BinaryIO]] = {}
    with ExitStack() as stack:
        for layer in source.layers:
            for kind, dtype in (("predictions", np.int32), ("probabilities", np.float32)):
                path = folder / f"{kind}_{source.name}{layer.suffix}.npy"
                save_npy(path, np.full(len(layer.starts), NOT_CLASSIFIED, dtype))
                files.setdefault(layer.suffix, []).append(stack.enter_context(path.open("r+b", buffering=0)))
        path = folder / f"candidates_{source.name}.csv"
        write_candidates(path, [])
        candidates = stack.enter_context(path.open("ab", buffering=0))

        def add(result: LayerResult, pages: slice, events: list[Event]) -> None:
            results = (result.predictions, result.probabilities)
            for file, values in zip(files[result.layer.suffix], results, strict=True):
                file.seek((pages.start - len(values)) * values.itemsize, os.SEEK_END)
                _write(file, values[pages].tobytes())
            _write(candidates, candidate_lines(events).encode())

        yield add


def _write(file: BinaryIO, content: bytes) -> None:
    try:
        while content:  # a write may be partial
            content = content[file.write(content) :]
    except OSError as error:
        error.filename = file.name  # which the message of run_script needs
        raise


def write_lists(
    result: SearchResult, source: Source, folder: Path, n_spectra: int | None, drawn: Sequence[int]
) -> None:
    """Write predictions, probabilities and lists of events; each file is complete or absent.

    Parameters
    ----------
    result : SearchResult
        The paths are added to its files.
    source : Source
    folder : Path
    n_spectra : int or None
        Expected number of pages. Missing ones are -1; all pages of a source with more are written.
    drawn : sequence of int
        Numbers, from 1, of the events that get a picture; the TransientX list has their file names.
    """
    name = source.name
    missing = max(0, (n_spectra or 0) - source.n_pages)
    if n_spectra and n_spectra != source.n_pages:
        what = "the missing ones are -1" if missing else "all are classified"
        logger.warning("n_spectra is %d, the source has %d pages: %s", n_spectra, source.n_pages, what)
    for layer in result.layers:
        for kind, values in (("predictions", layer.predictions), ("probabilities", layer.probabilities)):
            path = folder / f"{kind}_{name}{layer.layer.suffix}.npy"
            expected = missing if layer is result.layers[0] else 0
            save_npy(path, np.pad(values, (0, expected), constant_values=NOT_CLASSIFIED))
            result.files.append(path)
    path = folder / f"candidates_{name}.csv"
    write_candidates(path, result.events)
    result.files.append(path)
    if np.isfinite(source.grid.tsamp):
        images = [""] * len(result.events)
        for number in drawn:
            images[number - 1] = event_picture(name, number)
        path = folder / f"candidates_{name}.cands"
        write_transientx(path, result.events, source.grid, name, images)
        result.files.append(path)
        path = folder / f"heimdall_{name}.csv"
        write_heimdall(path, result.events, source.grid)
        result.files.append(path)


def write_summary(folder: Path, name: str, summary: RunSummary, inputs: InputFiles | None = None) -> Path:
    """Write ``summary_<name>.json``, with the files that were searched, if there are any; return its path."""
    path = folder / f"summary_{name}.json"
    content = summary.known() | ({"inputs": inputs} if inputs else {})
    with atomic_writer(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")
    return path


def write_pictures(
    events: Sequence[Event],
    numbers: Sequence[int],
    source: Source,
    folder: Path,
    threads: int | None = None,
    saliency: Iterable[tuple[int, Saliency]] | None = None,
) -> list[Path]:
    """Draw events as they are in the list of candidates, and return the paths.

    Parameters
    ----------
    events : sequence of Event
    numbers : sequence of int
        Those to draw, counted from 1.
    source : Source
    folder : Path
    threads : int, optional
        Largest number of processes that draw; one per core by default.
    saliency : iterable of (int, Saliency), optional
        Number and saliency of each event to draw, in any order.
    """
    if not numbers:
        return []
    events = as_written(events)

    def task(number: int, of_page: Saliency | None = None) -> PictureTask:
        event = events[number - 1]

        def make() -> EventPicture:
            return EventPicture(source.name, event, source.cutout(event), source.grid.tsamp, of_page)

        return folder / event_picture(source.name, number), make

    tasks = map(task, numbers) if saliency is None else (task(*shown) for shown in saliency)
    with PictureWorkers(len(numbers), threads) as workers:
        drawn = workers.draw(tasks)
        return list(tqdm(drawn, total=len(numbers), unit="plot", desc="plots", disable=None))


def draw_later(source: Source, config: PipelineConfig, options: OutputOptions) -> list[Path]:
    """Draw the pictures that the search of a source did not, from its list of candidates; return their paths.

    Raises
    ------
    InputError
        If there are no results of this source in the output folder, or it has changed since.
    """
    folder, name = config.output_path, source.name
    path = folder / f"candidates_{name}.csv"
    with lock(folder, name):
        if not path.is_file():
            raise InputError(f"{path}: must be the list of an earlier search, got no such file")
        check_input(folder, name, source.files)
        if has_changed(recorded(folder, name), describe(source.files)):
            raise InputError(f"{source.files[0]}: must be the file that was searched, got one that has changed since")
        events = read_candidates(path)
        if beyond := {event.dm_stack for event in events} - {layer.dm_stack for layer in source.layers}:
            raise InputError(f"{path}: the trial DMs must be those of the config, got events of stack {max(beyond)}")
        wanted = foremost(events, options.most_plots(config))
        missing = [number for number in wanted if not (folder / event_picture(name, number)).exists()]
        drawn = write_pictures(events, missing, source, folder, config.threads)
    logger.info(
        "%s: %d pictures of %d events drawn, %d existed", path, len(drawn), len(events), len(wanted) - len(drawn)
    )
    return drawn


def report(result: SearchResult) -> str:
    """Run summary, files and the first `MOST_LINES` events as lines of text."""
    lines = [f"{label:>40}  {value} {unit}".rstrip() for label, value, unit in result.summary.rows()]
    lines += [f"{'written':>40}  {path}" for path in result.files if path.suffix not in (".png", ".h5")]
    if result.events:
        lines.append(f"{'time_s':>12} {'dm_pc_cm3':>10} {'snr':>8} {'width_ms':>9} {'probability':>12}  pages")
    for e in result.events[:MOST_LINES]:
        pages = f"{e.first_page}-{e.last_page}"
        lines.append(
            f"{e.time_s:12.4f} {e.dm_pc_cm3:10.2f} {e.snr:8.1f} {e.width_ms:9.3f} {e.probability:12.4f}  {pages}"
        )
    if len(result.events) > MOST_LINES:
        lines.append(f"and {len(result.events) - MOST_LINES:,} more events, all in the list of candidates")
    return "\n".join(lines)
