"""Counts, rates and ranking curves of a binary classifier; Pulse (1) is the positive class."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SNR_EDGES = (-np.inf, 6.0, 8.0, 10.0, 15.0, np.inf)


@dataclass(frozen=True)
class ConfusionCounts:
    """Pages by truth and prediction. A rate whose denominator is zero is 0.0: nothing found, nothing earned."""

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
    labels, predictions : integer arrays of shape (N,), 1 = Pulse, 0 = Artefact
    """
    counts = np.bincount(2 * np.asarray(labels, np.int64) + np.asarray(predictions, np.int64), minlength=4)
    true_negatives, false_positives, false_negatives, true_positives = (int(count) for count in counts)
    return ConfusionCounts(true_positives, false_positives, true_negatives, false_negatives)


def _counts_by_threshold(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives, int64 (K + 1,), at no page and then at each of the K distinct scores, highest first.

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
    """Receiver operating characteristic (Fawcett 2006, Pattern Recognition Letters 27, 861).

    Parameters
    ----------
    labels : (N,) integers, 1 = Pulse, 0 = Artefact
    scores : (N,) floats that grow with the probability of a pulse

    Returns
    -------
    false_positive_rate, true_positive_rate : float64 (K + 1,), from (0, 0) to (1, 1), one point a distinct score;
        NaN where the class is missing
    """
    true_positives, false_positives = _counts_by_threshold(labels, scores)
    return _share_of_last(false_positives), _share_of_last(true_positives)


def _share_of_last(counts: np.ndarray) -> np.ndarray:
    return counts / counts[-1] if counts[-1] else np.full(len(counts), np.nan)


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve by trapezoids, NaN when a class is missing.

    It equals the probability that a random pulse scores higher than a random artefact, a tie counting one half
    (Hanley & McNeil 1982, Radiology 143, 29).
    """
    false_positive_rate, true_positive_rate = roc_curve(labels, scores)
    return float(np.trapezoid(true_positive_rate, false_positive_rate))


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision against recall (Davis & Goadrich 2006, ICML, 233).

    Returns
    -------
    precision, recall : float64 (K,), one point a distinct score, highest first; recall is NaN when there is no pulse
    """
    true_positives, false_positives = _counts_by_threshold(labels, scores)
    precision = true_positives[1:] / (true_positives + false_positives)[1:]
    return precision, _share_of_last(true_positives)[1:]


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Sum of the precisions, each weighted with the step in recall that it brings; NaN when there is no pulse.

    AP = sum over k of (R_k - R_(k-1)) P_k: a step function, since straight lines between the points would be too
    favourable (Davis & Goadrich 2006).
    """
    precision, recall = precision_recall_curve(labels, scores)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision)) if len(recall) else float("nan")


def recall_by_snr(labels: np.ndarray, predictions: np.ndarray, snr: np.ndarray) -> list[dict[str, float | str]]:
    """Share of the pulses that were found, by their S/N; bins without a pulse are left out.

    Parameters
    ----------
    labels, predictions : (N,) integers, 1 = Pulse, 0 = Artefact
    snr : (N,) floats, NaN where unknown; those pulses are in no bin

    Returns
    -------
    one dictionary a bin, lowest S/N first: snr ("8-10": from 8 to below 10), pulses, found, recall
    """
    known = (labels == 1) & np.isfinite(snr)
    bins = np.searchsorted(SNR_EDGES, snr[known], side="right") - 1
    pulses = np.bincount(bins, minlength=len(SNR_EDGES) - 1).tolist()
    found = np.bincount(bins, weights=predictions[known], minlength=len(SNR_EDGES) - 1).astype(int).tolist()
    names = [f"{low:g}-{high:g}" for low, high in pairwise(SNR_EDGES)]
    names[0], names[-1] = f"<{SNR_EDGES[1]:g}", f">{SNR_EDGES[-2]:g}"
    return [
        {"snr": name, "pulses": n, "found": n_found, "recall": n_found / n}
        for name, n, n_found in zip(names, pulses, found, strict=True)
        if n
    ]
