"""The live search: pages of a ring are classified as they arrive.

Its results are bit-identical to those of `search` on the same pages. Its files are those of live_results.py.
"""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection import many_files
from pipeline_classifier.detection.classifiers import Classifiers
from pipeline_classifier.detection.decision import decide
from pipeline_classifier.detection.event_finder import EventFinder
from pipeline_classifier.detection.event_merging import EventMerger
from pipeline_classifier.detection.page_classifier import Classified
from pipeline_classifier.detection.search import LayerResult, SearchResult, complete_summary, counted
from pipeline_classifier.detection.workers import load_loops_of_search, worker_pool
from pipeline_classifier.events import Event
from pipeline_classifier.formats.file_names import output_name
from pipeline_classifier.frontend.pages import PageBatch
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.frontend.sources import Layer
from pipeline_classifier.frontend.threads import thread_count
from pipeline_classifier.live.live_pictures import LivePictures
from pipeline_classifier.live.live_results import LiveResults, Monitor
from pipeline_classifier.live.psrdada.ring import RingTimeout
from pipeline_classifier.live.ring_header import RingSettings
from pipeline_classifier.live.ring_pages import RingPages
from pipeline_classifier.output.results import write_summary
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

ATTEMPT_S = 0.5
"""Time between two checks whether a page can still come, while waiting for the ring."""


def ring_settings(config: PipelineConfig) -> RingSettings:
    """Return the settings for reading the ring ``key_output``; what is known of its writer is not among them."""
    return RingSettings(
        dms=config.trial_dms(),
        n_time=config.page_samples,
        name=output_name(config.filterbank_path),
        max_pages=config.n_spectra,
        connect_timeout_s=min(ATTEMPT_S, config.idle_timeout_s),
        idle_timeout_s=config.idle_timeout_s,
        stop_at_end_of_data=config.stop_at_end_of_data,
        max_latency_s=config.max_latency_s,
        samples_per_column=config.samples_per_column(),
        zaplist=config.zapped_bands(),
        input_block_bytes=config.input_buffer_size,
        pages_expected=config.n_spectra,
    )


def open_ring(
    config: PipelineConfig, source_ended: Callable[[], str] | None = None, settings: RingSettings | None = None
) -> RingPages:
    """Wait for the ring ``key_output`` and its first page, and open it.

    Parameters
    ----------
    config : PipelineConfig
    source_ended : callable, optional
        Called while waiting; returns why no page will come, or an empty string.
    settings : RingSettings, optional
        Those of `ring_settings` by default.

    Raises
    ------
    RingTimeout
        If nothing came within ``idle_timeout_s``.
    InputError
        If ``source_ended`` gave a reason, or the header is not that of pages.
    """
    load_loops_of_search()  # the writer must not wait while they are compiled
    settings = settings or ring_settings(config)
    logger.info("waiting for the ring 0x%s", config.key_output)
    deadline = time.monotonic() + config.idle_timeout_s
    while True:
        try:
            return RingPages(config.key_output, settings)
        except RingTimeout as error:
            if reason := source_ended() if source_ended else "":
                raise InputError(f"no page came: {reason}") from error
            if time.monotonic() >= deadline:
                raise RingTimeout(f"{error} (waited for {config.idle_timeout_s:g} s, idle_timeout_s)") from error


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM, and SIGHUP unless nohup ignores it."""
    hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    return (signal.SIGINT, signal.SIGTERM, *hang_up)


@contextmanager
def stop_on_signal(source: RingPages) -> Iterator[None]:
    """Stop the source at the first of ``ending_signals``; a second signal has its usual effect."""
    before = {number: signal.getsignal(number) for number in ending_signals()}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, _: object) -> None:
        restore()
        source.stop(signal.Signals(number).name)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


def missing_pages(summary: RunSummary) -> str:
    """Return a sentence if fewer pages came than expected, unless a signal ended the search; otherwise nothing."""
    pages, expected = summary.pages or 0, summary.pages_expected
    if expected is None or summary.stopped in signal.Signals.__members__:
        return ""
    if pages > expected:
        logger.warning("%d pages came, more than the %d expected", pages, expected)
    return f"{pages} of {expected} pages came ({summary.stopped})" if pages < expected else ""


def live_search(
    source: RingPages,
    classifiers: Classifiers,
    config: PipelineConfig,
    source_ended: Callable[[], str] | None = None,
) -> SearchResult:
    """Classify every page of a ring until its stream ends or a signal arrives, and write all results.

    Parameters
    ----------
    source : RingPages
    classifiers : Classifiers
    config : PipelineConfig
        Gives thresholds, threads, ``n_spectra`` (pages that do not come are -1), ``max_plots`` and the output folder,
        which must exist.
    source_ended : callable, optional
        See `Monitor`.

    Raises
    ------
    InputError
        If no stored threshold has a rate as low as ``max_false_per_hour``.
    """
    layer = Layer(source.grid, np.empty(0, np.int64))
    decision = decide(config, classifiers, [layer])
    finder, merger = EventFinder(layer, decision, classifiers.candidates), EventMerger(source.grid)
    threads, size = thread_count(config.threads), classifiers.pages.network.batch_size
    began, gated, without_output = time.monotonic(), 0, 0

    def classified(batch: PageBatch) -> Classified:
        return classifiers.pages.classify(batch, decision.snr_gate, source.grid.noise)

    many_files.begin(config.output_path, source.name)
    results = LiveResults(config.output_path, source.name, config.n_spectra)
    status_path = config.output_path / f"status_{source.name}.json"
    pictures = LivePictures(config.output_path, source.name, source.grid, config.max_plots)

    def add_events(events: Sequence[Event]) -> None:
        results.add_events(events)
        pictures.add(events)

    with (
        stop_on_signal(source),
        Monitor(status_path, source, results, source_ended) as monitor,
        pictures,
        results,  # closed before the monitor reports the end
        worker_pool(threads) as pool,
        tqdm(total=config.n_spectra, unit="page", desc=source.name, disable=None) as bar,
    ):
        for batch in source.batches(threads * size):
            pictures.keep(batch)
            pieces = [batch[start : start + size] for start in range(0, len(batch), size)]
            for piece, pages in zip(pieces, pool.map(classified, pieces), strict=True):
                first = piece.first - source.first_page
                results.add_pages(first, decision.classes(pages.probabilities), pages.probabilities)
                add_events(merger.add(finder.add(piece, pages), finder.until_s))
                gated, without_output = gated + pages.gated, without_output + pages.without_output
            monitor.latency_s = time.monotonic() - source.oldest_read
            bar.update(len(batch))
            bar.set_postfix_str(f"{results.events} events, {monitor.fill[0]} of {monitor.fill[1]} blocks full")
        add_events(merger.add(finder.finish(), math.inf))
    if config.n_spectra and source.n_pages < config.n_spectra:
        logger.warning("n_spectra is %d, %d pages came (%s)", config.n_spectra, source.n_pages, source.stopped)
    starts = (source.first_page + np.arange(source.n_pages)) * source.grid.n_time
    values = (file.values()[: source.n_pages] for file in (results.predictions, results.probabilities))
    layers = [LayerResult(Layer(source.grid, starts), *values)]
    numbers = counted(decision, gated, without_output, [finder]).known()
    summary = replace(source.summary(), events=results.events, **numbers)
    summary = complete_summary(source.name, summary, layers, decision, began)
    summary_path = write_summary(config.output_path, source.name, summary)
    files = [*results.files, status_path, summary_path, *pictures.files]
    return SearchResult(layers, list(results.last_events), summary, files)
