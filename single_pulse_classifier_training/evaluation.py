"""What a network said about labelled images, and the numbers of an evaluation that follow from it."""

import math
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from single_pulse_classifier_training.calibration import (
    expected_calibration_error,
    false_rate_thresholds,
    fit_temperature,
    measured_hours,
    move_threshold,
    negative_log_likelihood,
    pulse_probability,
)
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.metrics import average_precision, confusion_counts, recall_by_snr, roc_auc
from single_pulse_classifier_training.runtime import atomic_writer


@dataclass(frozen=True)
class Predictions:
    """The content of a predictions file: all that metrics and plots are made from.

    Attributes
    ----------
    labels, logits, snr : int64 (N,), float32 (N, 2) columns Artefact and Pulse, float32 (N,) NaN where unknown
    validation_labels, validation_logits : of the images that the temperature is fitted on
    pulse_free_logits : float32 (M, 2), of pages without a pulse
    pulse_free_files : names of their files; empty when they are the Artefact images of the side
    page_s : length of a page, seconds; NaN when unknown
    rates : false positives per hour whose thresholds are wanted
    max_false_per_hour : the rate that sets the default threshold; NaN for none
    checkpoint, side, model_name, resolution : what was evaluated
    temperature, threshold : those that the checkpoint had
    """

    labels: np.ndarray
    logits: np.ndarray
    snr: np.ndarray
    validation_labels: np.ndarray
    validation_logits: np.ndarray
    pulse_free_logits: np.ndarray
    pulse_free_files: np.ndarray
    page_s: float
    rates: np.ndarray
    max_false_per_hour: float
    checkpoint: str
    side: str
    model_name: str
    resolution: int
    temperature: float
    threshold: float

    @property
    def name(self) -> str:
        """What the names of the evaluation's files end in."""
        return f"{Path(self.checkpoint).stem}_{self.side}"

    @property
    def margin(self) -> np.ndarray:
        """Logit of Pulse over that of Artefact, float64 (N,): in the order of the probability, never saturated."""
        return self.logits[:, 1].astype(np.float64) - self.logits[:, 0]

    @property
    def hours(self) -> float:
        """Hours of pulse-free pages; NaN when the length of a page is unknown."""
        return measured_hours(len(self.pulse_free_logits), self.page_s)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the predictions file (.npz, no pickled objects)."""
    with atomic_writer(path) as file:
        np.savez(file, **{entry.name: getattr(predictions, entry.name) for entry in fields(predictions)})


def read_predictions(path: Path) -> Predictions:
    """Read a predictions file; InputError when it is none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {entry.name: archive[entry.name] for entry in fields(Predictions)}
    except (ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        raise InputError(f"--predictions {path} is no predictions file of evaluate.py, or damaged") from None
    return Predictions(**{key: value if value.ndim else value.item() for key, value in content.items()})


def measure(predictions: Predictions) -> dict[str, Any]:
    """The numbers of an evaluation, in plain values that JSON and a checkpoint hold; None for what is not known.

    Everything that depends on a threshold is at ``threshold``: the checkpoint's, moved so that it decides the same with
    the new temperature, or the one of ``max_false_per_hour``.
    """
    p = predictions
    temperature = fit_temperature(p.validation_labels, p.validation_logits)
    before, after = pulse_probability(p.logits), pulse_probability(p.logits, temperature)
    thresholds = measure_thresholds(p, temperature)
    threshold = default_threshold(p, temperature, thresholds)
    predicted = after >= np.float32(threshold)
    counts = confusion_counts(p.labels, predicted)
    is_pulse = p.labels == 1
    return {
        "checkpoint": p.checkpoint,
        "model_name": p.model_name,
        "resolution": p.resolution,
        "side": p.side,
        "images": len(p.labels),
        "pulses": int(is_pulse.sum()),
        "threshold": threshold,
        "confusion": asdict(counts),
        "accuracy": counts.accuracy,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
        "recall_by_snr": recall_by_snr(p.labels, predicted, p.snr) or None,
        "roc_auc": roc_auc(p.labels, p.margin),
        "average_precision": average_precision(p.labels, p.margin),
        "temperature": temperature,
        "temperature_fitted_on": "validation",
        "expected_calibration_error": {
            "before": expected_calibration_error(p.labels, before),
            "after": expected_calibration_error(p.labels, after),
        },
        "negative_log_likelihood": {
            "before": negative_log_likelihood(p.labels, p.logits),
            "after": negative_log_likelihood(p.labels, p.logits, temperature),
        },
        "thresholds": [
            entry | {"recall": float((after[is_pulse] >= np.float32(entry["threshold"])).mean())}
            for entry in thresholds
        ],
        "pulse_free": None
        if math.isnan(p.page_s)
        else {
            "files": p.pulse_free_files.tolist(),
            "pages": len(p.pulse_free_logits),
            "page_s": p.page_s,
            "hours": p.hours,
            "rates_left_out": [r for r in p.rates.tolist() if r not in [t["false_per_hour"] for t in thresholds]],
        },
    }


def measure_thresholds(p: Predictions, temperature: float) -> list[dict[str, float]]:
    """Thresholds of the rates that the pulse-free pages can resolve; none when the length of a page is unknown."""
    if math.isnan(p.page_s):
        return []
    rates = p.rates.tolist()
    if not math.isnan(p.max_false_per_hour) and p.max_false_per_hour not in rates:
        rates.append(p.max_false_per_hour)
    return false_rate_thresholds(pulse_probability(p.pulse_free_logits, temperature), rates, p.page_s)


def default_threshold(p: Predictions, temperature: float, thresholds: list[dict[str, float]]) -> float:
    """The threshold of ``max_false_per_hour``, or else the old one moved to the new temperature."""
    if math.isnan(p.max_false_per_hour):
        return move_threshold(p.threshold, p.temperature, temperature)
    for entry in thresholds:
        if entry["false_per_hour"] == p.max_false_per_hour:
            return entry["threshold"]
    raise InputError(
        f"--max-false-per-hour {p.max_false_per_hour:g} is reached by no threshold: "
        "more pulse-free pages than it allows have the probability 1"
    )
