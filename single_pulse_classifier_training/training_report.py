"""Result of a training, and its report on standard output."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import TrainingConfig
from single_pulse_classifier_training.metrics import ConfusionCounts

logger = logging.getLogger(__name__)

# Validation loss, in nats, above which a training has diverged whatever its length. Chosen by hand: with 8 steps of the
# networks of this project on images of 32 x 32, the loss was up to 29 at learning rates up to 1e-3 and up to 404 at
# 1e-2, where batch normalisation had not settled; at 1e6 it was 2e3 to 4e30.
DIVERGED_LOSS = 1000.0


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Parameters
    ----------
    history : list of dict
        One per epoch: epoch, train_loss, train_accuracy, val_loss, val_accuracy.
    best : dict
        Entry of the best epoch.
    confusion : ConfusionCounts
        Validation counts of the best epoch.
    constant_loss : float
        Validation loss of the best classifier that gives all images the same probability.
    checkpoint_path, plot_path : Path
        Checkpoint of the best epoch, plot of the history.
    wall_time_s : float
        Duration of the run in seconds.
    """

    history: list[dict[str, float]]
    best: dict[str, float]
    confusion: ConfusionCounts
    constant_loss: float
    checkpoint_path: Path
    plot_path: Path
    wall_time_s: float


def report(result: TrainingResult) -> str:
    """Return the result of a training as text."""
    best, counts = result.best, result.confusion
    return "\n".join(
        (
            f"epochs:      {len(result.history)}, best {best['epoch']}",
            f"training:    loss {best['train_loss']:.4f}, accuracy {best['train_accuracy']:.4f}",
            f"validation:  loss {best['val_loss']:.4f}, accuracy {best['val_accuracy']:.4f}",
            f"             precision {counts.precision:.4f}, recall {counts.recall:.4f}, F1 {counts.f1:.4f}",
            f"confusion:   {counts.true_positives} Pulse and {counts.true_negatives} Artefact correct, "
            f"{counts.false_positives} Artefact classified as Pulse, {counts.false_negatives} Pulse as Artefact",
            f"checkpoint:  {result.checkpoint_path}",
            f"plot:        {result.plot_path}",
            f"wall time:   {result.wall_time_s:.1f} s",
        )
    )


def constant_loss(labels: np.ndarray, class_weights: np.ndarray) -> float:
    """Return the lowest loss that a classifier can have that gives all images the same probability, in nats.

    It is the entropy of the class shares.

    Parameters
    ----------
    labels : (N,) ndarray of int64
    class_weights : (2,) ndarray
        Weight of an image of each class in the loss.
    """
    shares = np.bincount(labels, minlength=2) * class_weights.astype(np.float64)
    shares = shares[shares > 0] / shares.sum()
    return float(-(shares * np.log(shares)).sum())


def check_learned(config: TrainingConfig, history: list[dict[str, float]], constant: float) -> None:
    """Judge a finished training: warn of a network that has learned nothing yet, and refuse one that will not learn.

    The loss of the first epochs can be high in a good training too. So a training of at most ``patience`` epochs only
    gives a warning, unless its loss is above ``DIVERGED_LOSS``.

    Parameters
    ----------
    config : TrainingConfig
    history : list of dict
        Entries of all epochs.
    constant : float
        Result of ``constant_loss`` for the validation split.

    Raises
    ------
    InputError
        If the network is no better than a classifier that gives all images the same probability.
    """
    lowest = min(record["val_loss"] for record in history)
    if lowest < 0.9999 * constant:  # with a margin for rounding, because a network can become such a classifier
        return
    must = (
        f"the lowest validation loss must be below {constant:.4g}, that of a classifier that gives all images the same "
        f"probability, got {lowest:.4g}"
    )
    if len(history) > config.patience or lowest > DIVERGED_LOSS:
        raise InputError(
            f"learning_rate {config.learning_rate:g} is too high, or the images do not distinguish the classes: {must}"
        )
    logger.warning("the network has not learned to distinguish the classes in %d epochs: %s", len(history), must)
