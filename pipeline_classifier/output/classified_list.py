"""The candidate list of another search, classified: the same list with our columns, and our catalogue."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.candidate_classifier import CandidateClassifier
from pipeline_classifier.detection.event_merging import merge_duplicates
from pipeline_classifier.detection.listed_candidates import Judged, Place, classify_places
from pipeline_classifier.detection.search import SearchResult
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.events import Event
from pipeline_classifier.formats.candidate_lists import CandidateList, write_with_columns
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.output.candidate_lists import write_candidates
from pipeline_classifier.output.input_record import check_input, describe, has_changed, recorded
from pipeline_classifier.output.results import write_summary
from pipeline_classifier.output.run_files import publish, unfinished_folder
from pipeline_classifier.times import SECONDS_PER_DAY

logger = logging.getLogger(__name__)

MOST_NAMED = 10
"""Rows outside the observation that are named one by one."""


def classify_list(
    source: FilterbankPages,
    candidates: CandidateList,
    classifier: CandidateClassifier,
    event_threshold: float,
    config: PipelineConfig,
    keep_all: bool = False,
) -> SearchResult:
    """Classify the rows of a list, and write ``<list>_classified.<ext>`` and the results of the observation.

    The list gets the columns ``probability`` (-1 for rows that are not in the observation) and ``label`` (1 pulse, 0
    artefact, -1 not classified). ``candidates_<name>.csv`` has the rows with at least ``event_threshold``, of the
    duplicates only one.

    Parameters
    ----------
    source : FilterbankPages
    candidates : CandidateList
    classifier : CandidateClassifier
    event_threshold : float
    config : PipelineConfig
    keep_all : bool
        Keep duplicates in the catalogue.

    Raises
    ------
    InputError
        As `results.search_and_write`.
    """
    began, name = time.monotonic(), source.name
    with unfinished_folder(config.output_path, name) as folder:
        check_input(config.output_path, name, source.files)
        inputs = describe(source.files)
        was_searched = (config.output_path / f"predictions_{name}.npy").exists()
        keep = was_searched or has_changed(recorded(config.output_path, name), inputs)
        places = places_of(candidates, source)
        judged = classify_places(source, classifier, places, config.threads)
        warn_of_rows_outside(candidates, places, judged, source)
        events = events_of(candidates, places, judged, source, event_threshold, keep_all)
        labels = np.where(judged.probabilities < 0, -1, judged.probabilities >= event_threshold).astype(int)
        lists = [classified_path(folder, candidates.path), folder / f"candidates_{name}.csv"]
        write_with_columns(candidates, lists[0], {"probability": judged.probabilities, "label": labels})
        write_candidates(lists[1], events)
        summary = RunSummary(
            samples=source.nsamples,
            channels=len(source.frequencies),
            candidates=len(places),
            candidates_without_output=int((np.isfinite(judged.snrs) & (judged.probabilities < 0)).sum()) or None,
            events=len(events),
            wall_s=round(time.monotonic() - began, 3),
            event_threshold=event_threshold,
        )
        files = [*lists, write_summary(folder, name, summary, inputs)]
        files = publish(folder, files, config.output_path, name, keep)
    return SearchResult([], events, summary, files)


def classified_path(folder: Path, path: Path) -> Path:
    """Return the path of the list ``path`` with our columns in a folder."""
    return folder / f"{path.stem}_classified{path.suffix}"


def places_of(candidates: CandidateList, source: FilterbankPages) -> list[Place]:
    """Return where the rows of a list are in an observation; a width that is 0 or unknown counts as one sample."""
    places = []
    for row in candidates.rows:
        width = np.nan_to_num(row.width_s(source.observation.header.tsamp)) / source.tsamp
        places.append(Place(row.seconds_after(source.grid.tstart), row.dm, max(1, round(width))))
    return places


def warn_of_rows_outside(
    candidates: CandidateList, places: Sequence[Place], judged: Judged, source: FilterbankPages
) -> None:
    """Log a warning for each of the first `MOST_NAMED` rows outside the observation, and the number of others."""
    outside = [number for number, snr in enumerate(judged.snrs) if np.isnan(snr)]
    for number in outside[:MOST_NAMED]:
        logger.warning(
            "%s, line %d: must lie in the observation (0 to %.6g s) with a tenth of its channels, got %.6g s at DM %g; "
            "it is not classified",
            candidates.path,
            candidates.rows[number].line,
            source.duration_s,
            places[number].time_s,
            places[number].dm,
        )
    if len(outside) > MOST_NAMED:
        logger.warning("%s: %d more rows do not lie in the observation", candidates.path, len(outside) - MOST_NAMED)


def events_of(
    candidates: CandidateList,
    places: Sequence[Place],
    judged: Judged,
    source: FilterbankPages,
    event_threshold: float,
    keep_all: bool,
) -> list[Event]:
    """Return the rows from ``event_threshold`` on in order of time, without duplicates unless ``keep_all``.

    The S/N is that of the list, or the measured one if the list has none.
    """
    grid, starts = source.grid, source.layers[0].starts
    events = []
    for number, (row, place, probability) in enumerate(
        zip(candidates.rows, places, judged.probabilities.tolist(), strict=True)
    ):
        if probability < 0 or probability < event_threshold:
            continue
        page = max(0, int(np.searchsorted(starts * source.layers[0].time_downsample, place.time_s / source.tsamp)) - 1)
        delay_s = float(dispersion_delay(place.dm, grid.f_top, np.inf))
        events.append(
            Event(
                time_s=place.time_s,
                mjd=grid.tstart + place.time_s / SECONDS_PER_DAY,
                dm_pc_cm3=place.dm,
                snr=float(judged.snrs[number]) if np.isnan(row.snr) else row.snr,
                width_ms=place.width * source.tsamp * 1e3,
                probability=probability,
                first_page=page,
                last_page=page,
                width_samples=place.width,
                dm_stack=number,  # rows are not measured together, so that none excludes another as a duplicate
                mjd_infinite=grid.tstart + (place.time_s - delay_s) / SECONDS_PER_DAY,
            )
        )
    kept = sorted(events, key=lambda event: event.time_s) if keep_all else merge_duplicates(events, grid)
    return [replace(event, dm_stack=0) for event in kept]
