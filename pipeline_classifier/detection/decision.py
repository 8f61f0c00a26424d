"""The decision: which pages and which peaks are reported, settled before the first page is read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.classifiers import MEASURED_BY, Classifiers
from pipeline_classifier.detection.page_classifier import NOT_CLASSIFIED
from pipeline_classifier.frontend.sources import Layer
from single_pulse_classifier_training.calibration import threshold_for_rate

if TYPE_CHECKING:
    from single_pulse_classifier_training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

EVENT_THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Candidate probabilities at which recall and false events are measured."""

GATE_PART = 0.9
"""Gate in units of the lowest S/N of an event. The coarse search of `page_snrs` gives at least 0.9 of the S/N."""


@dataclass(frozen=True)
class Decision:
    """Thresholds of a search.

    Attributes
    ----------
    threshold : float
        Minimum probability for a page to be classified as a pulse.
    event_threshold : float or None
        Minimum candidate probability for a peak to be an event. None if pages decide: every pulse found on pages
        classified as a pulse is an event.
    min_snr : float
        Lowest S/N of an event.
    snr_gate : float
        Lowest S/N of the best boxcar of a page that is shown to the network, and in which peaks are searched.
    false_per_hour : float or None
        Expected false positives per hour, if the thresholds were chosen by such a rate: of events where there is an
        ``event_threshold``, otherwise of pages. None also if the stored rates were measured with other networks.
    """

    threshold: float
    event_threshold: float | None = None
    min_snr: float = 0.0
    snr_gate: float = 0.0
    false_per_hour: float | None = None

    def classes(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the class of each page, int32: 1 pulse, 0 artefact, -1 not classified."""
        classes = (probabilities >= self.threshold).astype(np.int32)
        classes[probabilities < 0] = NOT_CLASSIFIED
        return classes

    def is_event(self, snr: float, probability: float | None = None) -> bool:
        """Decide whether a peak is an event or, before its candidate probability is known, whether it can be one."""
        if snr < self.min_snr:
            return False
        return self.event_threshold is None or probability is None or probability >= self.event_threshold


def page_interval_s(layers: Sequence[Layer]) -> float:
    """Mean time between pages over all layers in seconds, NaN when unknown."""
    pages_per_s = 0.0
    for layer in layers:
        steps = np.diff(layer.starts)
        # The last page ends with the file, so the step before it may be short.
        step = steps[:-1].max() if len(steps) > 1 else layer.grid.n_time
        pages_per_s += 1.0 / (step * layer.grid.tsamp)
    return 1.0 / pages_per_s


def event_threshold_of(config: PipelineConfig, candidates: Checkpoint) -> tuple[float, float | None]:
    """Minimum candidate probability of an event, as `decide` chooses it, and its stored false events per hour.

    Parameters
    ----------
    config : PipelineConfig
    candidates : Checkpoint
        The candidate classifier.
    """
    if config.max_false_per_hour is None:
        return (candidates.threshold if config.event_threshold is None else config.event_threshold), None
    stored, rate = candidates.thresholds, config.max_false_per_hour
    return threshold_for_rate(stored, rate, of="the candidate classifier", measured_by=MEASURED_BY)


def decide(config: PipelineConfig, classifiers: Classifiers, layers: Sequence[Layer]) -> Decision:
    """Choose the thresholds of a search.

    A threshold comes from the config, else from the checkpoint. With ``max_false_per_hour`` it is the lowest one stored
    in the checkpoint of the candidate classifier (without one, in that of the page classifier) with at most that rate.
    Candidates are classified only where a pulse sweeps over the pages; on other pages, such as those of a .npy file
    whose times are not known, pages decide, and ``min_snr`` holds only if the config sets it.

    Parameters
    ----------
    config : PipelineConfig
    classifiers : Classifiers
    layers : sequence of Layer
        Pages to be searched; their interval scales the rates of page thresholds.

    Raises
    ------
    InputError
        If no stored threshold has so low a rate.
    """
    pages, grid = classifiers.pages.checkpoint, layers[0].grid
    candidates = classifiers.candidates.checkpoint if classifiers.candidates and grid.sweeps else None
    threshold = pages.threshold if config.threshold is None else config.threshold
    event_threshold, rate = None, None
    if candidates:
        event_threshold, rate = event_threshold_of(config, candidates)
        rate = rate if classifiers.is_measured else None
    elif config.max_false_per_hour is not None:
        threshold, rate = threshold_for_rate(pages.thresholds, config.max_false_per_hour, page_interval_s(layers))
    if classifiers.candidates and not grid.sweeps and config.event_threshold is not None:
        message = "event_threshold %g has no effect: candidates are not classified where the sweep is not known"
        logger.warning(message, config.event_threshold)
    min_snr = config.min_snr if grid.sweeps or "min_snr" in config.model_fields_set else 0.0
    snr_gate = GATE_PART * min_snr if config.snr_gate is None else config.snr_gate
    event_threshold = None if event_threshold is None else float(event_threshold)
    return Decision(float(threshold), event_threshold, min_snr, snr_gate, rate)
