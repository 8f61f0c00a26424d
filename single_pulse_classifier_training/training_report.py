"""Result of a training, and its report on standard output."""

from dataclasses import dataclass
from pathlib import Path

from single_pulse_classifier_training.metrics import ConfusionCounts


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
    checkpoint_path, plot_path : Path
        Checkpoint of the best epoch, plot of the history.
    wall_time_s : float
        Duration of the run in seconds.
    """

    history: list[dict[str, float]]
    best: dict[str, float]
    confusion: ConfusionCounts
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
