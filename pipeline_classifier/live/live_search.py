"""The live search: pages of a ring classified as they come, by the pieces of search.py.

What it finds equals, bit for bit, what ``search`` finds in the same pages. Its files are those of live_results.py.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.event_finder import EventFinder
from pipeline_classifier.detection.event_merging import EventMerger
from pipeline_classifier.detection.page_classifier import Classifier
from pipeline_classifier.detection.search import (
    LayerResult,
    SearchResult,
    account_of,
    gate_of,
    set_threshold,
    thread_count,
    worker_pool,
)
from pipeline_classifier.frontend.sources import Layer
from pipeline_classifier.live.live_results import LiveResults, Monitor
from pipeline_classifier.live.psrdada.client import RingTimeout
from pipeline_classifier.live.ring_pages import RingPages
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.memory import keep_freed_memory

logger = logging.getLogger(__name__)

ATTEMPT_S = 0.5


def open_ring(
    config: PipelineConfig, source_ended: Callable[[], str] | None = None, tstart: float = math.nan
) -> RingPages:
    """The pages of the ring ``key_output``; waits for ring and first page.

    Parameters
    ----------
    source_ended : asked while it waits: why no page will come, or nothing
    tstart : MJD of the first sample, if the header of the ring does not say

    Raises
    ------
    RingTimeout : nothing came within ``idle_timeout_s``.
    InputError : ``source_ended``, or the header makes no page.
    """
    dms, samples_per_column, zaplist = config.trial_dms(), config.samples_per_column(), config.zapped_bands()
    logger.info("waiting for the ring 0x%s", config.key_output)
    deadline = time.monotonic() + config.idle_timeout_s
    while True:
        try:
            source = RingPages(
                config.key_output,
                dms,
                config.page_samples,
                config.filterbank_path.stem,
                config.n_spectra,
                min(ATTEMPT_S, config.idle_timeout_s),
                config.stop_at_end_of_data,
                config.max_latency_s,
                samples_per_column,
            )
            break
        except RingTimeout as error:
            if reason := source_ended() if source_ended else "":
                raise InputError(f"no page came: {reason}") from error
            if time.monotonic() >= deadline:
                raise RingTimeout(f"{error} (tried again for idle_timeout_s, {config.idle_timeout_s:g} s)") from error
    source.idle_timeout_s = config.idle_timeout_s
    source.grid = replace(source.grid, zaplist=zaplist)
    if math.isnan(source.grid.tstart):
        source.grid = replace(source.grid, tstart=tstart)
    return source


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM, and SIGHUP unless nohup has switched it off."""
    hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hang_up)


@contextmanager
def stop_on_signal(source: RingPages) -> Iterator[None]:
    """Let the first of ``ending_signals`` end the stream after the pages that were read; a second one is as ever."""
    before = {number: signal.getsignal(number) for number in ending_signals()}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, _: object) -> None:
        restore()
        source.account["stopped"] = signal.Signals(number).name

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


def live_search(
    source: RingPages,
    classifier: Classifier,
    output_dir: Path,
    n_spectra: int | None = None,
    threads: int | None = None,
    source_ended: Callable[[], str] | None = None,
) -> SearchResult:
    """Classify every page of a ring until its stream ends, or a signal ends it; everything is written by then.

    Parameters
    ----------
    n_spectra : pages expected; those that do not come stay -1
    threads : None: one per core
    source_ended : see ``Monitor``

    Raises
    ------
    InputError : no threshold of the model lets through as few false positives per hour as are asked for.
    """
    keep_freed_memory()
    decision = set_threshold(classifier, source.grid, source.grid.n_time * source.grid.tsamp)
    finder = EventFinder(source.grid, second_look=classifier.second_look)
    merger = EventMerger(source.grid)
    threads, size = thread_count(threads), classifier.network.batch_size
    began = time.monotonic()
    results = LiveResults(output_dir, source.name, n_spectra)
    status_path = output_dir / f"status_{source.name}.json"
    with (
        stop_on_signal(source),
        Monitor(status_path, source, results, source_ended) as monitor,
        results,  # closed before the monitor says that it ended
        worker_pool(threads) as pool,
        tqdm(total=source.max_pages, unit="page", desc=source.name, disable=None) as bar,
    ):
        for batch in source.batches(threads * size):
            parts = pool.map(classifier.classify, [batch[start : start + size] for start in range(0, len(batch), size)])
            predictions, probabilities = (np.concatenate(part) for part in zip(*parts, strict=True))
            results.add_pages(batch.first, predictions, probabilities)
            monitor.latency_s = time.monotonic() - source.oldest_read
            results.add_events(merger.add(finder.add(batch, predictions, probabilities), finder.until_s))
            bar.update(len(batch))
            bar.set_postfix_str(f"{results.events} events, {monitor.fill[0]} of {monitor.fill[1]} blocks full")
        results.add_events(merger.add(finder.finish(), math.inf))
    if n_spectra and source.n_pages < n_spectra:
        logger.warning("n_spectra is %d, %d pages came (%s)", n_spectra, source.n_pages, source.account["stopped"])
    starts = np.arange(source.n_pages) * source.grid.n_time
    values = (file.values()[: source.n_pages] for file in (results.predictions, results.probabilities))
    layers = [LayerResult(Layer(source.grid, starts), *values)]
    account = account_of(source, layers, results.events, began) | decision | gate_of(classifier)
    return SearchResult(layers, list(results.last_events), account, [*results.files, status_path])
