"""The search: every page of a source is classified, events are found, measured and merged."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.classifiers import Classifiers
from pipeline_classifier.detection.decision import Decision
from pipeline_classifier.detection.event_finder import EventFinder
from pipeline_classifier.detection.event_merging import EventMerger, merge_duplicates
from pipeline_classifier.detection.frequency_time import FrequencyTime
from pipeline_classifier.detection.page_classifier import NOT_CLASSIFIED, Classified
from pipeline_classifier.detection.workers import one_thread_each
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageBatch
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.frontend.sources import ChannelSource, Layer, Source
from pipeline_classifier.frontend.threads import map_in_order
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)


@dataclass
class LayerResult:
    """Class and probability of each page of a layer, -1 where not classified.

    Attributes
    ----------
    layer : Layer
    predictions : (N,) ndarray of int32
        1 pulse, 0 artefact.
    probabilities : (N,) ndarray of float32
    """

    layer: Layer
    predictions: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Detections:
    """What a pass over a source found.

    Attributes
    ----------
    layers : list of LayerResult
    last_events : list of Event
        Events of the last pages of every layer, before those that are one pulse are merged.
    counts : RunSummary
        Numbers of pages and candidates.
    """

    layers: list[LayerResult]
    last_events: list[Event]
    counts: RunSummary


@dataclass
class SearchResult:
    """Result of a search, its run summary, and the files that were written."""

    layers: list[LayerResult]
    events: list[Event]
    summary: RunSummary
    files: list[Path] = field(default_factory=list)

    @property
    def predictions(self) -> np.ndarray:
        """Predictions of the first layer."""
        return self.layers[0].predictions

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities of the first layer."""
        return self.layers[0].probabilities


def search(
    source: Source,
    classifiers: Classifiers,
    decision: Decision,
    threads: int | None = None,
    progress: Callable[[LayerResult, slice, list[Event]], None] | None = None,
) -> SearchResult:
    """Classify every page of a source and measure the events, one for each pulse.

    Parameters
    ----------
    source : Source
    classifiers : Classifiers
    decision : Decision
        As `decide` makes it for this source.
    threads : int, optional
        One per core by default.
    progress : callable, optional
        Called after each batch with the result of its layer, the pages of the batch, and the events that no later page
        can change any more, in order of time.
    """
    began = min(time.monotonic(), source.began)
    merger = EventMerger(*(layer.grid for layer in source.layers))
    events: list[Event] = []

    def merge(result: LayerResult, pages: slice, found: list[Event], until_s: float) -> None:
        settled = merger.add(found, until_s)
        events.extend(settled)
        if progress:
            progress(result, pages, settled)

    found = find_events(source, classifiers, decision, threads, merge)
    events += merger.add(found.last_events, np.inf)
    summary = replace(source.summary(), events=len(events), **found.counts.known())
    summary = complete_summary(source.name, summary, found.layers, decision, began)
    return SearchResult(found.layers, events, summary)


def find_events(
    source: Source,
    classifiers: Classifiers,
    decision: Decision,
    threads: int | None,
    progress: Callable[[LayerResult, slice, list[Event], float], None],
) -> Detections:
    """Classify every page and measure its events.

    Parameters
    ----------
    source, classifiers, decision, threads
        As in `search`.
    progress : callable
        Called after each batch with the result of its layer, the pages of the batch, the events found in it, and the
        time in seconds before which no more events will come from any layer.
    """
    layers = [
        LayerResult(
            layer,
            np.full(len(layer.starts), NOT_CLASSIFIED, dtype=np.int32),
            np.full(len(layer.starts), NOT_CLASSIFIED, dtype=np.float32),
        )
        for layer in source.layers
    ]
    finders = [event_finder(source, layer, decision, classifiers) for layer in source.layers]
    # An event may lie before the pages in which it is found, by less than a page.
    margins_s = [layer.grid.n_time * layer.grid.tsamp for layer in source.layers]
    gated = without_output = 0

    def classified(batch: PageBatch) -> tuple[PageBatch, Classified]:
        return batch, classifiers.pages.classify(batch, decision.snr_gate, source.layers[batch.layer].grid.noise)

    total = sum(len(layer.starts) for layer in source.layers)
    with tqdm(total=total, unit="page", desc=source.name, disable=None) as bar:
        for batch, pages in map_in_order(classified, source.planes_once_begun(threads), threads, one_thread_each):
            chosen = slice(batch.first, batch.first + len(batch))
            result = layers[batch.layer]
            result.predictions[chosen] = decision.classes(pages.probabilities)
            result.probabilities[chosen] = pages.probabilities
            found = finders[batch.layer].add(batch, pages)
            until_s = min(finder.until_s - margin for finder, margin in zip(finders, margins_s, strict=True))
            progress(result, chosen, found, until_s)
            gated, without_output = gated + pages.gated, without_output + pages.without_output
            bar.update(len(batch))
    last_events = [event for finder in finders for event in finder.finish()]
    return Detections(layers, last_events, counted(decision, gated, without_output, finders))


def event_finder(source: Source, layer: Layer, decision: Decision, classifiers: Classifiers) -> EventFinder:
    """Return a finder for the events of a layer; it gets the channels if the candidate classifier needs them."""
    frequency_time = None
    if classifiers.candidates and classifiers.candidates.needs_channels:
        if not isinstance(source, ChannelSource):
            raise InputError(f"{source.name}: must have channels for a candidate classifier that needs them, got pages")
        frequency_time = FrequencyTime(source, layer)
    return EventFinder(layer, decision, classifiers.candidates, frequency_time)


def counted(decision: Decision, gated: int, without_output: int, finders: Sequence[EventFinder]) -> RunSummary:
    """Return what a search has counted, as the fields of a run summary that apply."""
    classify_candidates = any(finder.candidates for finder in finders)
    return RunSummary(
        pages_gated=gated if decision.snr_gate else None,
        pages_without_output=without_output or None,
        candidates=sum(finder.n_candidates for finder in finders) if classify_candidates else None,
        candidates_without_output=sum(finder.n_without_output for finder in finders) or None,
    )


def events_by_threshold(
    source: Source,
    classifiers: Classifiers,
    decision: Decision,
    thresholds: Sequence[float],
    threads: int | None = None,
) -> tuple[list[LayerResult], dict[float, list[Event]]]:
    """Find the events that searches at each of several candidate probabilities give, in one pass.

    Parameters
    ----------
    source, classifiers, decision, threads
        As in `search`; the ``event_threshold`` of the decision is replaced.
    thresholds : sequence of float

    Returns
    -------
    layers : list of LayerResult
    events : dict of float to list of Event
    """
    if decision.event_threshold is not None:
        decision = replace(decision, event_threshold=min(thresholds))
    events: list[Event] = []

    def collect(result: LayerResult, pages: slice, found: list[Event], until_s: float) -> None:
        events.extend(found)

    found = find_events(source, classifiers, decision, threads, collect)
    events += found.last_events
    return found.layers, {
        threshold: merge_duplicates([event for event in events if event.probability >= threshold], source.grid)
        for threshold in thresholds
    }


def complete_summary(
    name: str, summary: RunSummary, layers: Sequence[LayerResult], decision: Decision, began: float
) -> RunSummary:
    """Add pages, times and decision to the summary of a search.

    Parameters
    ----------
    name : str
        Name of the source, for the warning about pages that cannot be classified.
    summary : RunSummary
        With the numbers that the source and the search have counted.
    layers : sequence of LayerResult
    decision : Decision
    began : float
        Start of the search on the monotonic clock.
    """
    pages = sum(len(result.predictions) for result in layers)
    classified = int(sum((result.predictions != NOT_CLASSIFIED).sum() for result in layers))
    unusable = pages - classified - (summary.pages_without_output or 0)
    if unusable:
        logger.warning("%s: %d of %d pages are constant, not finite or out of range", name, unusable, pages)
    for what, n, of in (
        ("pages", summary.pages_without_output, pages),
        ("candidates", summary.candidates_without_output, summary.candidates),
    ):
        if n:
            logger.warning("%s: the model has no finite output for %d of %d %s", name, n, of, what)
    if summary.values_not_finite:
        logger.warning("%s: %d values not finite or out of range were not used", name, summary.values_not_finite)
    wall_s, duration_s, times_real_time = round(time.monotonic() - began, 3), None, None
    if summary.samples_read is not None:
        searched = samples_classified(layers, summary.samples_read)
        summary = replace(
            summary, samples_searched=searched, samples_not_searched=summary.samples_read - searched or None
        )
        searched_s = searched * layers[0].layer.grid.tsamp
        duration_s, times_real_time = round(searched_s, 3), round(searched_s / max(wall_s, 1e-9), 1)
    return replace(
        summary,
        pages=pages,
        pages_classified=classified,
        pages_unusable=unusable,
        pages_with_pulse=int(sum((result.predictions == 1).sum() for result in layers)),
        wall_s=wall_s,
        duration_s=duration_s,
        times_real_time=times_real_time,
        threshold=decision.threshold,
        event_threshold=decision.event_threshold,
        min_snr=decision.min_snr,
        false_per_hour=decision.false_per_hour,
    )


def samples_classified(layers: Sequence[LayerResult], n: int) -> int:
    """Count the samples, of ``n`` from the start of the first page, in a page that was classified, of any layer."""
    first = int(layers[0].layer.starts[0]) * layers[0].layer.time_downsample if n else 0
    found = []
    for result in layers:
        factor = result.layer.time_downsample
        starts = result.layer.starts[result.predictions != NOT_CLASSIFIED] * factor - first
        found.append(np.stack([starts, np.minimum(starts + result.layer.grid.n_time * factor, n)]))
    starts, ends = np.concatenate(found, axis=1)
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    begins = np.maximum(starts, np.append(0, ends[:-1]))  # pages may overlap
    return int(np.maximum(ends - begins, 0).sum())


def check_classified(name: object, summary: RunSummary, config: PipelineConfig, with_channels: bool = True) -> None:
    """Check that a search could classify something; otherwise that it found no event says nothing about the data.

    Parameters
    ----------
    name : object
        Name of the input, for the message.
    summary : RunSummary
        Summary of the search.
    config : PipelineConfig
        For the names of the models.
    with_channels : bool
        As in `load_classifiers`.

    Raises
    ------
    InputError
        If there were pages and none of them could be classified, or likewise with candidates.
    """
    pages, candidates = summary.pages_without_output, summary.candidates_without_output
    classifier = config.candidate_classifier_path if with_channels else "candidate_classifier(_dmt)"
    for path, n, what in (
        (config.model_path, 0 if summary.pages_classified else pages, "pages"),
        (classifier, candidates if candidates == summary.candidates else 0, "candidates"),
    ):
        if n:
            raise InputError(
                f"{path}: the output of the model must be finite, got none that is for the {n} {what} of {name}: its "
                "weights overflow"
            )
    if summary.pages and not summary.pages_classified:
        raise InputError(
            f"{name}: to be classified, a page must be finite, not constant and small enough to be scaled in float32, "
            f"got none among {summary.pages}"
        )
