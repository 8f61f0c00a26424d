"""Plots of a training."""

from pathlib import Path

from single_pulse_classifier_training.runtime import atomic_writer


def plot_training_history(history: list[dict[str, float]], best_epoch: int, title: str, path: str | Path) -> None:
    """Draw loss and accuracy across epochs, training and validation, into a .jpg file.

    Parameters
    ----------
    history : one dictionary an epoch: epoch, train_loss, val_loss, train_accuracy, val_accuracy
    best_epoch : the epoch whose weights were kept
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [record["epoch"] for record in history]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        axes.plot(epochs, [record[f"train_{quantity}"] for record in history], "o-", ms=3, label="train")
        axes.plot(epochs, [record[f"val_{quantity}"] for record in history], "s-", ms=3, label="validation")
        axes.axvline(best_epoch, color="grey", ls=":", label=f"best epoch, {best_epoch}")
        axes.set(xlabel="Epoch", ylabel="Cross-entropy loss" if quantity == "loss" else "Accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    figure.suptitle(title)
    with atomic_writer(path) as file:
        figure.savefig(file, format="jpg", dpi=150)
