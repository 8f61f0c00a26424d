"""Counts and rates of a binary classifier; Pulse (1) is the positive class."""

from dataclasses import dataclass

import numpy as np


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
