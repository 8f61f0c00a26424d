"""The job itself: every page of a source classified, events found and measured, results and account written."""

import argparse
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline_classifier.catalogue import Event, EventFinder, merge_duplicates, write_candidates
from pipeline_classifier.classifier import NOT_CLASSIFIED, Classifier
from pipeline_classifier.config import DEFAULT_CONFIG, PipelineConfig
from pipeline_classifier.plots import plot_event
from pipeline_classifier.sources import ArrayPages, FilterbankPages
from single_pulse_classifier_training.calibration import threshold_for_rate
from single_pulse_classifier_training.checkpoint import load_checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import DEVICES, atomic_writer, choose_device

logger = logging.getLogger(__name__)


@dataclass
class SearchResult:
    """What a run found, the account of what it did, and the files it wrote."""

    predictions: np.ndarray
    probabilities: np.ndarray
    events: list[Event]
    account: dict[str, float]
    files: list[Path] = field(default_factory=list)


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
        help="take the lowest threshold, of those stored in the model, with at most so many false pages per hour",
    )
    parser.add_argument("--no-plots", action="store_true", help="draw no picture of the events")


def load_classifier(
    config: PipelineConfig,
    device: str | None = None,
    threshold: float | None = None,
    max_false_per_hour: float | None = None,
) -> Classifier:
    """The classifier that the config names; the options of the command line win over the config's."""
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise InputError(f"--threshold {threshold} is no probability: valid is 0 to 1")
    if max_false_per_hour is not None and not 0.0 < max_false_per_hour < np.inf:
        raise InputError(f"--max-false-per-hour {max_false_per_hour:g} is no rate: valid are numbers above 0")
    if threshold is None and max_false_per_hour is None:
        threshold, max_false_per_hour = config.threshold, config.max_false_per_hour
    chosen = choose_device(device or config.device)
    checkpoint = load_checkpoint(config.model_path, chosen, config.model_name, config.resolution)
    logger.info("model %s: %s at %d", config.model_path.name, checkpoint.model_name, checkpoint.resolution)
    return Classifier(checkpoint, chosen, threshold, max_false_per_hour)


def page_interval_s(source: FilterbankPages | ArrayPages) -> float:
    """Seconds from one page to the next, NaN when unknown; pages that overlap come faster than one after the other."""
    steps = np.diff(source.starts)
    # The last page ends with the file, so that the step before it may be short.
    return float((steps[:-1].max() if len(steps) > 1 else source.grid.n_time) * source.grid.tsamp)


def search(source: FilterbankPages | ArrayPages, classifier: Classifier, batch_size: int) -> SearchResult:
    """Classify every page of a source and measure the events.

    Raises
    ------
    InputError : no threshold of the model lets through as few false positives per hour as are asked for.
    """
    decision = {}
    if classifier.max_false_per_hour is not None:
        classifier.threshold, decision["false_per_hour"] = threshold_for_rate(
            classifier.checkpoint.thresholds, classifier.max_false_per_hour, page_interval_s(source)
        )
    decision["threshold"] = float(classifier.threshold)
    predictions = np.full(source.n_pages, NOT_CLASSIFIED, dtype=np.int32)
    probabilities = np.full(source.n_pages, NOT_CLASSIFIED, dtype=np.float32)
    finder, events = EventFinder(source.grid), []
    began = time.monotonic()
    with tqdm(total=source.n_pages, unit="page", desc=source.name, disable=None) as bar:
        for batch in source.batches(batch_size):
            chosen = slice(batch.first, batch.first + len(batch))
            predictions[chosen], probabilities[chosen] = classifier.classify(batch)
            events += finder.add(batch, predictions[chosen], probabilities[chosen])
            bar.update(len(batch))
    events = merge_duplicates(events + finder.finish(), source.grid)
    account = dict(source.account)
    account["pages"] = source.n_pages
    account["pages_classified"] = int((predictions != NOT_CLASSIFIED).sum())
    account["pages_unusable"] = source.n_pages - account["pages_classified"]
    if account["pages_unusable"]:
        logger.warning(
            "%s: %d of %d pages are constant or not finite", source.name, account["pages_unusable"], source.n_pages
        )
    account |= decision
    account["pages_with_pulse"] = int((predictions == 1).sum())
    account["events"] = len(events)
    account["wall_s"] = round(time.monotonic() - began, 3)
    if "samples_read" in account:
        duration_s = account["samples_read"] * source.grid.tsamp
        account["duration_s"] = round(duration_s, 3)
        account["times_real_time"] = round(duration_s / max(account["wall_s"], 1e-9), 1)
    return SearchResult(predictions, probabilities, events, account)


def write_results(
    result: SearchResult,
    source: FilterbankPages | ArrayPages,
    output_dir: Path,
    n_spectra: int | None = None,
    plots: bool = True,
) -> None:
    """Write predictions, probabilities, candidates and one PNG per event; each file is whole or absent.

    Parameters
    ----------
    n_spectra : pages that the user expects. More are never cut off; the ones that did not come stay -1.
    """
    name = source.name
    missing = max(0, (n_spectra or 0) - source.n_pages)
    if n_spectra and n_spectra != source.n_pages:
        logger.warning("n_spectra is %d, the source has %d pages: every page counts", n_spectra, source.n_pages)
    for kind, values in (("predictions", result.predictions), ("probabilities", result.probabilities)):
        path = output_dir / f"{kind}_{name}.npy"
        with atomic_writer(path) as file:
            np.save(file, np.pad(values, (0, missing), constant_values=NOT_CLASSIFIED))
        result.files.append(path)
    path = output_dir / f"candidates_{name}.csv"
    write_candidates(path, result.events)
    result.files.append(path)
    if plots:
        for number, event in enumerate(tqdm(result.events, unit="plot", desc="plots", disable=None), start=1):
            path = output_dir / f"event_{name}_{number:04d}.png"
            plot_event(path, event, source)
            result.files.append(path)


def report(result: SearchResult) -> str:
    """The account and the events as lines of text."""
    lines = [
        f"{key:>24} {value:.9g}" if isinstance(value, float) else f"{key:>24} {value}"
        for key, value in result.account.items()
    ]
    lines += [f"{'written':>24} {path}" for path in result.files if path.suffix != ".png"]
    if result.events:
        lines.append(f"{'time_s':>12} {'dm_pc_cm3':>10} {'snr':>8} {'width_ms':>9} {'probability':>12}  pages")
    for e in result.events:
        pages = f"{e.first_page}-{e.last_page}"
        lines.append(
            f"{e.time_s:12.4f} {e.dm_pc_cm3:10.2f} {e.snr:8.1f} {e.width_ms:9.3f} {e.probability:12.4f}  {pages}"
        )
    return "\n".join(lines)
