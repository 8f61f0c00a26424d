"""Predictions of a network for labelled images, and the metrics computed from them."""

import math
import re
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
from single_pulse_classifier_training.input_files import NOT_NPY, check_archive, check_is_file
from single_pulse_classifier_training.metrics import (
    average_precision,
    confusion_counts,
    recall_at_false_positives,
    recall_by,
    roc_auc,
)
from single_pulse_classifier_training.runtime import atomic_writer

# Names, without .pth, that training.py gives to the checkpoints of all networks
TRAINING_NAME = re.compile(r"best|last|prot-[\d.]+-[\d.]+-[\d.]+")
# Fractions of the Artefact images at which the recall is measured, chosen by hand
FALSE_POSITIVE_FRACTIONS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0)
# Bins of the recall by S/N, chosen by hand
SNR_EDGES = (-np.inf, 6.0, 8.0, 10.0, 15.0, np.inf)


@dataclass(frozen=True)
class Predictions:
    """Content of a predictions file, from which metrics and plots are made.

    Parameters
    ----------
    labels : (N,) ndarray of int64
        1 = Pulse, 0 = Artefact.
    logits : (N, 2) ndarray of float32
        Columns Artefact and Pulse.
    snr : (N,) ndarray of float32
        S/N of the pulse in each image, NaN where unknown.
    validation_labels, validation_logits : ndarray
        The same for the images on which the temperature is fitted.
    pulse_free_logits : (M, 2) ndarray of float32
        Logits of pages without a pulse.
    pulse_free_files : ndarray of str
        Names of their files; empty if they are the Artefact images of the split.
    page_s : float
        Length of a page in seconds, NaN if unknown.
    rates : ndarray of float
        False positives per hour whose thresholds are measured.
    max_false_per_hour : float
        Rate that sets the default threshold, or NaN.
    checkpoint : str
        Absolute path of the checkpoint; only its name in files of earlier versions.
    split, model_name, resolution : str, str, int
        What was evaluated.
    temperature, threshold : float
        Values in the checkpoint.
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
    split: str
    model_name: str
    resolution: int
    temperature: float
    threshold: float

    @property
    def name(self) -> str:
        """End of the names of the files of this evaluation."""
        return evaluation_name(Path(self.checkpoint), self.split)

    @property
    def margin(self) -> np.ndarray:
        """Logit of Pulse minus logit of Artefact, (N,) float64; ranks like the probability, but does not saturate."""
        return self.logits[:, 1].astype(np.float64) - self.logits[:, 0]

    @property
    def hours(self) -> float:
        """Hours of pulse-free pages; NaN if the length of a page is unknown."""
        return measured_hours(len(self.pulse_free_logits), self.page_s)


def evaluation_name(checkpoint: Path, split: str) -> str:
    """Return the end of the names of the files of an evaluation.

    It has the name of the checkpoint, and that of its folder if training.py gives the same name to all networks.
    """
    folder = checkpoint.parent.name.removeprefix("ch_point_")
    prefix = f"{folder}_" if folder and TRAINING_NAME.fullmatch(checkpoint.stem) else ""
    return f"{prefix}{checkpoint.stem}_{split}"


def check_not_of_another(folder: Path, checkpoint: str, split: str) -> None:
    """Raise InputError if the folder has the evaluation of another checkpoint with the same name."""
    path = folder / f"predictions_{evaluation_name(Path(checkpoint), split)}.npz"
    try:
        other = read_predictions(path).checkpoint
    except InputError:  # missing, or damaged
        return
    if Path(other).is_absolute() and Path(checkpoint).is_absolute() and other != checkpoint:
        raise InputError(
            f"{path} has the evaluation of {other}, and would be replaced by that of {checkpoint}: give another "
            "--output-dir, or remove it"
        )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the predictions file (.npz, no pickled objects)."""
    with atomic_writer(path) as file:
        np.savez(file, **{entry.name: getattr(predictions, entry.name) for entry in fields(predictions)})


def read_predictions(path: Path) -> Predictions:
    """Read a predictions file.

    Raises
    ------
    InputError
        If the file is damaged or has other content.
    """
    check_is_file(path, "--predictions")
    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            content = {entry.name: archive[entry.name] for entry in fields(Predictions) if entry.name != "split"}
            content["split"] = archive["split" if "split" in archive else "side"]  # "side" in files of earlier versions
        predictions = Predictions(**{key: value if value.ndim else value.item() for key, value in content.items()})
        _check_shapes(predictions)
    except (*NOT_NPY, LookupError, AttributeError, zipfile.BadZipFile):
        raise InputError(f"--predictions {path} must be a predictions file written by evaluate.py") from None
    return predictions


def _check_shapes(p: Predictions) -> None:
    """Raise ValueError, or another error of ``NOT_NPY``, unless the values can be those of a predictions file."""
    for labels, logits in ((p.labels, p.logits), (p.validation_labels, p.validation_logits)):
        if logits.shape != (len(labels), 2) or not np.isin(labels, (0, 1)).all() or not np.isfinite(logits).all():
            raise ValueError
    pulse_free = p.pulse_free_logits
    numbers = (p.page_s, p.max_false_per_hour, p.temperature, p.threshold)
    if p.snr.shape != p.labels.shape or pulse_free.shape != (len(pulse_free), 2) or not np.isfinite(pulse_free).all():
        raise ValueError
    if not all(isinstance(number, float) for number in numbers) or not 0 <= p.threshold <= 1 or not p.temperature > 0:
        raise ValueError


def measure(predictions: Predictions) -> dict[str, Any]:
    """Compute the metrics of an evaluation as plain values for JSON and a checkpoint; None where unknown.

    Metrics that depend on a threshold are measured at ``threshold``: that of the checkpoint, moved so that it gives the
    same decisions with the new temperature, or the threshold for ``max_false_per_hour``.
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
        "checkpoint": Path(p.checkpoint).name,
        "model_name": p.model_name,
        "resolution": p.resolution,
        "side": p.split,  # readers of the file expect this key
        "images": len(p.labels),
        "pulses": int(is_pulse.sum()),
        "threshold": threshold,
        "confusion": asdict(counts),
        "accuracy": counts.accuracy,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
        "recall_by_snr": recall_by_snr(p.snr[is_pulse], predicted[is_pulse]) or None,
        "recall_at_false_positives": recall_at_false_positives(p.labels, p.margin, FALSE_POSITIVE_FRACTIONS),
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


def recall_by_snr(snr: np.ndarray, found: np.ndarray) -> list[dict[str, Any]]:
    """Return the recall of pulses in bins of S/N in the format of the metrics file; empty bins are left out.

    Parameters
    ----------
    snr : (n,) ndarray of float
        S/N of each pulse; NaN where unknown.
    found : (n,) ndarray of bool

    Returns
    -------
    bins : list of dict
        ``{"snr", "pulses", "found", "recall"}``, lowest S/N first. "8-10" means from 8 to below 10.
    """
    bins = []
    for part in recall_by(snr, found, SNR_EDGES):
        low, high, n_found, n = part["from"], part["to"], part["found"], part["of"]
        name = f"<{high:g}" if low is None else f">{low:g}" if high is None else f"{low:g}-{high:g}"
        if n:
            bins.append({"snr": name, "pulses": n, "found": n_found, "recall": n_found / n})
    return bins


def measure_thresholds(p: Predictions, temperature: float) -> list[dict[str, float]]:
    """Return the thresholds of the rates that the pulse-free pages can resolve; none if the page length is unknown."""
    if math.isnan(p.page_s):
        return []
    rates = p.rates.tolist()
    if not math.isnan(p.max_false_per_hour) and p.max_false_per_hour not in rates:
        rates.append(p.max_false_per_hour)
    return false_rate_thresholds(pulse_probability(p.pulse_free_logits, temperature), rates, p.page_s)


def default_threshold(p: Predictions, temperature: float, thresholds: list[dict[str, float]]) -> float:
    """Return the threshold for ``max_false_per_hour``, or else the old one moved to the new temperature."""
    if math.isnan(p.max_false_per_hour):
        return move_threshold(p.threshold, p.temperature, temperature)
    for entry in thresholds:
        if entry["false_per_hour"] == p.max_false_per_hour:
            return entry["threshold"]
    raise InputError(
        f"--max-false-per-hour {p.max_false_per_hour:g} cannot be reached: more pulse-free pages than it allows have "
        "probability 1"
    )
