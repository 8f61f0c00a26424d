"""What a search leaves on disk: predictions, lists and pictures of its events; and what it says on the screen."""

import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline_classifier.detection.page_classifier import NOT_CLASSIFIED, Classifier
from pipeline_classifier.detection.search import SearchResult
from pipeline_classifier.frontend.sources import Source
from pipeline_classifier.output.candidate_lists import write_candidates, write_heimdall, write_transientx
from pipeline_classifier.output.plots import plot_event
from pipeline_classifier.output.saliency import looks
from single_pulse_classifier_training.runtime import save_npy

logger = logging.getLogger(__name__)


def write_results(
    result: SearchResult,
    source: Source,
    output_dir: Path,
    n_spectra: int | None = None,
    plots: bool = True,
    looker: Classifier | None = None,
) -> None:
    """Write predictions, probabilities, candidates and one PNG per event; each file is whole or absent.

    Parameters
    ----------
    n_spectra : pages that the user expects. More are never cut off; the ones that did not come stay -1.
    looker : add to the pictures what this classifier looked at
    """
    name = source.name
    missing = max(0, (n_spectra or 0) - source.n_pages)
    if n_spectra and n_spectra != source.n_pages:
        logger.warning("n_spectra is %d, the source has %d pages: every page counts", n_spectra, source.n_pages)
    for layer in result.layers:
        for kind, values in (("predictions", layer.predictions), ("probabilities", layer.probabilities)):
            path = output_dir / f"{kind}_{name}{layer.layer.suffix}.npy"
            expected = missing if layer is result.layers[0] else 0
            save_npy(path, np.pad(values, (0, expected), constant_values=NOT_CLASSIFIED))
            result.files.append(path)
    path = output_dir / f"candidates_{name}.csv"
    write_candidates(path, result.events)
    result.files.append(path)
    images = [f"event_{name}_{number:04d}.png" for number in range(1, len(result.events) + 1)]
    if np.isfinite(source.grid.tsamp):
        path = output_dir / f"candidates_{name}.cands"
        write_transientx(path, result.events, source.grid, name, images if plots else [""] * len(images))
        result.files.append(path)
        path = output_dir / f"heimdall_{name}.csv"
        write_heimdall(path, result.events, source.grid)
        result.files.append(path)
    if plots:
        numbered = ((number, event, None) for number, event in enumerate(result.events, start=1))
        shown = looks(source, result, looker) if looker else numbered
        for number, event, look in tqdm(shown, total=len(result.events), unit="plot", desc="plots", disable=None):
            path = output_dir / f"event_{name}_{number:04d}.png"
            plot_event(path, event, source, look)
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
