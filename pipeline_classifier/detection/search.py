"""The job itself: every page of a source classified, events found and measured, and the account of it."""

import argparse
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from pipeline_classifier.config import DEFAULT_CONFIG, PipelineConfig
from pipeline_classifier.detection.candidate_classifier import SecondLook
from pipeline_classifier.detection.event_finder import EventFinder
from pipeline_classifier.detection.event_merging import merge_duplicates
from pipeline_classifier.detection.page_classifier import NOT_CLASSIFIED, Classifier
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PAGE_NORMALISERS, PageBatch, PageGrid
from pipeline_classifier.frontend.sources import Block, FilterbankPages, Layer, Source
from pipeline_classifier.live.ring_pages import RingPages
from single_pulse_classifier_training.calibration import threshold_for_rate
from single_pulse_classifier_training.checkpoint import load_checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.memory import keep_freed_memory
from single_pulse_classifier_training.runtime import DEVICES, choose_device

logger = logging.getLogger(__name__)

EVENT_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Probabilities of the second look at which recall and false events are counted."""
SWITCH_INTERVAL_S = 1e-3

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class LayerResult:
    """Class and probability of each page of a layer, -1 where not classified."""

    layer: Layer
    predictions: np.ndarray
    probabilities: np.ndarray


@dataclass
class SearchResult:
    """What a run found, the account of what it did, and the files it wrote."""

    layers: list[LayerResult]
    events: list[Event]
    account: dict[str, float]
    files: list[Path] = field(default_factory=list)

    @property
    def predictions(self) -> np.ndarray:
        """Of the first layer."""
        return self.layers[0].predictions

    @property
    def probabilities(self) -> np.ndarray:
        """Of the first layer."""
        return self.layers[0].probabilities


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every script with a search shares."""
    parser.add_argument("-c", "--config", default=DEFAULT_CONFIG, help="config of the pipeline (default: %(default)s)")
    parser.add_argument("--output-dir", help="where results go (default: output_dir of the config)")
    parser.add_argument("--device", choices=DEVICES, help="default: device of the config")
    decision = parser.add_mutually_exclusive_group()
    decision.add_argument(
        "--threshold",
        type=float,
        help="probability from which a page is a pulse (default: the config's, else the model's)",
    )
    decision.add_argument(
        "--max-false-per-hour",
        type=float,
        metavar="RATE",
        help="take the lowest threshold, of those stored in the model, with at most so many false events per hour "
        "(false pages, without a second look)",
    )
    parser.add_argument(
        "--event-threshold",
        type=float,
        help="probability, of the second look, from which a peak is an event (default: the config's, else the model's)",
    )
    parser.add_argument("--no-plots", action="store_true", help="draw no picture of the events")


def with_search_options(config: PipelineConfig, args: argparse.Namespace) -> PipelineConfig:
    """The config, with what the options of `add_search_options` say in its place."""
    for option, value in (("--threshold", args.threshold), ("--event-threshold", args.event_threshold)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise InputError(f"{option} {value} is no probability: valid is 0 to 1")
    rate, changes = args.max_false_per_hour, {}
    if rate is not None:
        if not 0.0 < rate < np.inf:
            raise InputError(f"--max-false-per-hour {rate:g} is no rate: valid are numbers above 0")
        if args.event_threshold is not None:
            raise InputError(f"--max-false-per-hour {rate:g} and --event-threshold: valid is one of the two")
        changes = {"threshold": None, "event_threshold": None}
    names = ("device", "threshold", "event_threshold", "max_false_per_hour")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if given.keys() & {"threshold", "event_threshold"}:
        changes = {"max_false_per_hour": None}
    return config.model_copy(update=changes | given)


def load_classifier(config: PipelineConfig, device: str | None = None) -> Classifier:
    """The classifier that the config names.

    Raises
    ------
    InputError : a model is missing, damaged, or for something else.
    """
    second_look, path = None, config.second_look_path
    if path:
        second_look = SecondLook(load_checkpoint(path, "cpu"), config.event_threshold, config.min_snr)
    chosen = choose_device(device or config.device)
    checkpoint = load_checkpoint(config.model_path, chosen, config.model_name, config.resolution)
    if checkpoint.normaliser not in PAGE_NORMALISERS:
        raise InputError(
            f"{config.model_path} is a {checkpoint.model_name} for peaks; valid for pages: a model with the normaliser "
            f"{' or '.join(PAGE_NORMALISERS)}, as models/default.pth"
        )
    logger.info("model %s: %s at %d", config.model_path.name, checkpoint.model_name, checkpoint.resolution)
    return Classifier(
        checkpoint,
        chosen,
        config.threshold,
        config.max_false_per_hour,
        config.batch_size,
        config.snr_gate,
        config.precision,
        second_look,
    )


def open_filterbank(path: str | Path | Sequence[str | Path], config: PipelineConfig) -> FilterbankPages:
    """The pages of a filterbank file, or of several that follow each other, as the config wants them."""
    dms, cleaning = config.front_end()
    return FilterbankPages(
        path,
        dms,
        config.page_samples,
        cleaning,
        config.overlap(),
        time_downsample=config.time_downsample,
        exact=config.exact_dedispersion,
        compiled=config.compile,
        ifs=config.ifs,
        block_samples=config.block_samples,
    )


def page_interval_s(source: Source) -> float:
    """Seconds from one page to the next over all layers, NaN when unknown."""
    pages_per_s = 0.0
    for layer in source.layers:
        steps = np.diff(layer.starts)
        # The last page ends with the file, so that the step before it may be short.
        step = steps[:-1].max() if len(steps) > 1 else layer.grid.n_time
        pages_per_s += 1.0 / (step * layer.grid.tsamp)
    return 1.0 / pages_per_s


def thread_count(threads: int | None) -> int:
    """The number asked for, or one per core."""
    return threads or len(os.sched_getaffinity(0))


def worker_pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch uses no threads of its own: two layers of threads hinder each other."""
    # Their calls last some 100 us: at Python's own 5 ms a thread that waits for the interpreter leaves its core idle.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """``function`` of each item, in order, computed by several threads that are at most one item each ahead.

    Parameters
    ----------
    threads : None: one per core
    """
    threads = thread_count(threads)
    with worker_pool(threads) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def search(source: Source, classifier: Classifier, threads: int | None = None) -> SearchResult:
    """Classify every page of a source and measure the events, one for each pulse.

    Raises
    ------
    InputError : no threshold of the model lets through as few false positives per hour as are asked for.
    """
    began = time.monotonic()
    decision = set_threshold(classifier, source.grid, page_interval_s(source))
    layers, found = find_events(source, classifier, threads)
    events = merge_duplicates(found, source.grid)
    return SearchResult(layers, events, account_of(source, layers, len(events), began) | decision | gate_of(classifier))


def find_events(
    source: Source, classifier: Classifier, threads: int | None = None
) -> tuple[list[LayerResult], list[Event]]:
    """Classify every page and measure what it holds; a pulse that is in several pages or layers is several events."""
    keep_freed_memory()
    torch.set_num_threads(1)  # for the second looks: the cores are busy with the pages
    layers = [
        LayerResult(
            layer,
            np.full(len(layer.starts), NOT_CLASSIFIED, dtype=np.int32),
            np.full(len(layer.starts), NOT_CLASSIFIED, dtype=np.float32),
        )
        for layer in source.layers
    ]
    finders = [
        EventFinder(layer.grid, layer.time_downsample, layer.dm_stack, classifier.second_look)
        for layer in source.layers
    ]
    events: list[Event] = []

    def classified(block: Block) -> list[tuple[PageBatch, np.ndarray, np.ndarray]]:
        return [(batch, *classifier.classify(batch)) for batch in source.pages(block)]

    total = sum(len(layer.starts) for layer in source.layers)
    with tqdm(total=total, unit="page", desc=source.name, disable=None) as bar:
        for batches in map_in_order(classified, source.blocks(), threads):
            for batch, predictions, probabilities in batches:
                chosen = slice(batch.first, batch.first + len(batch))
                layers[batch.layer].predictions[chosen] = predictions
                layers[batch.layer].probabilities[chosen] = probabilities
                events += finders[batch.layer].add(batch, predictions, probabilities)
                bar.update(len(batch))
    for finder in finders:
        events += finder.finish()
    return layers, events


def events_by_threshold(
    source: Source, classifier: Classifier, thresholds: Sequence[float], threads: int | None = None
) -> tuple[list[LayerResult], dict[float, list[Event]]]:
    """The events that a search at each of the thresholds of the second look gives, found in one pass."""
    if second_look := classifier.second_look:
        chosen, second_look.threshold = second_look.threshold, min(thresholds)
    layers, found = find_events(source, classifier, threads)
    if second_look:
        second_look.threshold = chosen
    return layers, {
        threshold: merge_duplicates([event for event in found if event.probability >= threshold], source.grid)
        for threshold in thresholds
    }


def set_threshold(classifier: Classifier, grid: PageGrid, page_s: float) -> dict[str, float]:
    """Set the threshold of a classifier that was given a rate in its place; return what was decided, for the account.

    With a second look the rate is one of events, else of pages.

    Raises
    ------
    InputError : no threshold of the model lets through as few false positives per hour as are asked for.
    """
    decision: dict[str, float] = {}
    classifier.gated = 0
    rate, second_look = classifier.max_false_per_hour, classifier.second_look if grid.sweeps else None
    if rate is not None and second_look:
        second_look.threshold, decision["false_per_hour"] = threshold_for_rate(
            second_look.checkpoint.thresholds, rate, of="the second look"
        )
    elif rate is not None:
        classifier.threshold, decision["false_per_hour"] = threshold_for_rate(
            classifier.checkpoint.thresholds, rate, page_s
        )
    if second_look:
        decision["event_threshold"] = float(second_look.threshold)
    return decision | {"threshold": float(classifier.threshold)}


def gate_of(classifier: Classifier) -> dict[str, float]:
    """For the account: the pages that the network did not see, if there is a gate."""
    return {} if classifier.snr_gate is None else {"pages_gated": classifier.gated}


def account_of(source: Source | RingPages, layers: list[LayerResult], events: int, began: float) -> dict[str, float]:
    """The source's account, then pages and events of a search that ``began`` at that monotonic time."""
    pages = sum(len(result.predictions) for result in layers)
    classified = int(sum((result.predictions != NOT_CLASSIFIED).sum() for result in layers))
    if classified < pages:
        logger.warning("%s: %d of %d pages are constant or not finite", source.name, pages - classified, pages)
    account = dict(source.account)
    account |= {"pages": pages, "pages_classified": classified, "pages_unusable": pages - classified}
    account["pages_with_pulse"] = int(sum((result.predictions == 1).sum() for result in layers))
    account["events"] = events
    account["wall_s"] = round(time.monotonic() - began, 3)
    if "samples_read" in account:
        duration_s = account["samples_read"] * source.grid.tsamp
        account["duration_s"] = round(duration_s, 3)
        account["times_real_time"] = round(duration_s / max(account["wall_s"], 1e-9), 1)
    return account
