"""Counts, rates and ranking curves of a binary classifier; Pulse (1) is the positive class."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ConfusionCounts:
    """Numbers of pages by true and predicted class. A rate whose denominator is zero is 0.0."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def accuracy(self) -> float:
        right = self.true_positives + self.true_negatives
        return _rate(right, right + self.false_positives + self.false_negatives)

    @property
    def precision(self) -> float:
        return _rate(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        return _rate(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall: 2 TP / (2 TP + FP + FN)."""
        return _rate(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def confusion_counts(labels: np.ndarray, predictions: np.ndarray) -> ConfusionCounts:
    """Count the four outcomes.

    Parameters
    ----------
    labels, predictions : (N,) ndarray of int
        1 = Pulse, 0 = Artefact.
    """
    counts = np.bincount(2 * np.asarray(labels, np.int64) + np.asarray(predictions, np.int64), minlength=4)
    true_negatives, false_positives, false_negatives, true_positives = (int(count) for count in counts)
    return ConfusionCounts(true_positives, false_positives, true_negatives, false_negatives)


def _counts_by_threshold(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives, (K + 1,) int64, at no page and then at each of the K distinct scores, highest first.

    Pages with the same score pass a threshold together, so there is no point between them.
    """
    order = np.argsort(-scores, kind="stable")
    ranked_labels, ranked_scores = labels[order], scores[order]
    last_of_score = np.append(np.flatnonzero(np.diff(ranked_scores)), len(scores) - 1)
    if not len(scores):
        last_of_score = np.empty(0, np.int64)
    true_positives = np.cumsum(ranked_labels)[last_of_score]
    selected = last_of_score.astype(np.int64) + 1
    return np.append(0, true_positives).astype(np.int64), np.append(0, selected - true_positives).astype(np.int64)


def roc_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the receiver operating characteristic (Fawcett 2006, Pattern Recognition Letters 27, 861).

    Parameters
    ----------
    labels : (N,) ndarray of int
        1 = Pulse, 0 = Artefact.
    scores : (N,) ndarray of float
        Increase with the probability of a pulse.

    Returns
    -------
    false_positive_rate, true_positive_rate : (K + 1,) ndarray of float64
        From (0, 0) to (1, 1), one point per distinct score; NaN if the class is missing.
    """
    true_positives, false_positives = _counts_by_threshold(labels, scores)
    return _fraction_of_last(false_positives), _fraction_of_last(true_positives)


def _fraction_of_last(counts: np.ndarray) -> np.ndarray:
    return counts / counts[-1] if counts[-1] else np.full(len(counts), np.nan)


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Compute the area under the ROC curve with the trapezoidal rule; NaN if a class is missing.

    It equals the probability that a random pulse scores higher than a random artefact, where a tie counts one half
    (Hanley & McNeil 1982, Radiology 143, 29).
    """
    false_positive_rate, true_positive_rate = roc_curve(labels, scores)
    return float(np.trapezoid(true_positive_rate, false_positive_rate))


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute precision against recall (Davis & Goadrich 2006, ICML, 233).

    Returns
    -------
    precision, recall : (K,) ndarray of float64
        One point per distinct score, highest first; recall is NaN if there is no pulse.
    """
    true_positives, false_positives = _counts_by_threshold(labels, scores)
    precision = true_positives[1:] / (true_positives + false_positives)[1:]
    return precision, _fraction_of_last(true_positives)[1:]


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Compute the average precision; NaN if there is no pulse.

    AP = sum over k of (R_k - R_(k-1)) P_k, the area under a step function: straight lines between the points would
    overestimate it (Davis & Goadrich 2006).
    """
    precision, recall = precision_recall_curve(labels, scores)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision)) if len(recall) else float("nan")


def recall_at_false_positives(
    labels: np.ndarray, scores: np.ndarray, fractions: Sequence[float]
) -> list[dict[str, Any]]:
    """Measure the recall at the lowest threshold that at most a fraction of the artefacts passes.

    Networks with different outputs are compared in this way: at equal false positives.

    Parameters
    ----------
    labels : (N,) ndarray of int
        1 = Pulse, 0 = Artefact.
    scores : (N,) ndarray of float
        Increase with the probability of a pulse.
    fractions : sequence of float
        A fraction of less than one artefact is left out, unless it is 0.

    Returns
    -------
    points : list of dict
        ``{"false_positives", "artefacts", "recall"}`` for each fraction: how many artefacts may pass, of how many.
    """
    true_positives, false_positives = _counts_by_threshold(labels, scores)
    artefacts, pulses = int(false_positives[-1]), int(true_positives[-1])
    points = []
    for fraction in fractions:
        allowed = int(fraction * artefacts)
        if pulses and (allowed or not fraction):
            found = int(true_positives[np.searchsorted(false_positives, allowed, side="right") - 1])
            points.append({"false_positives": allowed, "artefacts": artefacts, "recall": found / pulses})
    return points


def recall_by(values: np.ndarray, found: np.ndarray, edges: Sequence[float]) -> list[dict[str, Any]]:
    """Count the pulses that were found, in bins of a value such as S/N, width or DM.

    Parameters
    ----------
    values : (n,) ndarray of float
        Value of each pulse; NaN belongs to no bin.
    found : (n,) ndarray of bool
        Whether the pulse was found.
    edges : sequence of float
        Ascending. A bin contains its lower edge but not its upper edge.

    Returns
    -------
    bins : list of dict
        ``{"from", "to", "found", "of"}`` for each bin, also without pulses; an infinite edge is None.
    """
    bins = []
    for low, high in pairwise(edges):
        chosen = (values >= low) & (values < high)
        limits = {"from": float(low) if low > -np.inf else None, "to": float(high) if high < np.inf else None}
        bins.append(limits | {"found": int(found[chosen].sum()), "of": int(chosen.sum())})
    return bins
