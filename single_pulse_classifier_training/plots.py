"""Plots of a training and of an evaluation. matplotlib is imported when the first one is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from single_pulse_classifier_training.calibration import pulse_probability, reliability
from single_pulse_classifier_training.evaluation import Predictions
from single_pulse_classifier_training.metrics import precision_recall_curve, roc_curve
from single_pulse_classifier_training.runtime import atomic_writer
from single_pulse_classifier_training.training_models import CLASS_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    "Confusion matrix",
    "Receiver operating characteristic",
    "Precision and recall",
    "Calibration",
    "Recall by S/N",
    "Threshold by false positives",
)


def plot_training_history(history: list[dict[str, float]], best_epoch: int, title: str, path: str | Path) -> None:
    """Plot training and validation loss and accuracy across epochs in a .jpg file.

    Parameters
    ----------
    history : list of dict
        One per epoch: epoch, train_loss, val_loss, train_accuracy, val_accuracy.
    best_epoch : int
        The epoch whose weights were kept.
    title : str
    path : str or Path
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [record["epoch"] for record in history]
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [record[f"train_{quantity}"] for record in history], "o-", ms=3, label="train")
        axes.plot(epochs, [record[f"val_{quantity}"] for record in history], "s-", ms=3, label="validation")
        axes.axvline(best_epoch, color="grey", ls=":", label=f"best epoch, {best_epoch}")
        axes.set(xlabel="Epoch", ylabel="Cross-entropy loss" if quantity == "loss" else "Accuracy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
    figure.suptitle(title)
    with atomic_writer(path) as file:
        figure.savefig(file, format="jpg", dpi=150)


def plot_evaluation(path: str | Path, predictions: Predictions, metrics: dict[str, Any]) -> None:
    """Plot an evaluation as one PNG: confusion matrix, ROC, precision-recall, calibration, recall by S/N, thresholds.

    Parameters
    ----------
    path : str or Path
    predictions : Predictions
    metrics : dict
        Result of ``evaluation.measure`` for the predictions.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3).ravel()
    _draw_confusion(panels[0], metrics)
    _draw_roc(panels[1], predictions, metrics)
    _draw_precision_recall(panels[2], predictions, metrics)
    _draw_reliability(panels[3], predictions, metrics)
    _draw_recall_by_snr(panels[4], metrics)
    _draw_thresholds(panels[5], predictions, metrics)
    for panel, title in zip(panels, PANELS, strict=True):
        panel.set_title(title, fontsize=11)
    figure.suptitle(
        f"{metrics['checkpoint']}   {metrics['model_name']} at {metrics['resolution']}   "
        f"{metrics['images']} images of the {metrics['side']} split"
    )
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_confusion(axes: "Axes", metrics: dict[str, Any]) -> None:
    counts = metrics["confusion"]
    table = np.array(
        [
            [counts["true_negatives"], counts["false_positives"]],
            [counts["false_negatives"], counts["true_positives"]],
        ]
    )
    fractions = table / table.sum(axis=1, keepdims=True)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(table):
        fraction = fractions[row, column]
        text = f"{count}\n{100 * fraction:.1f} %"
        axes.text(
            column, row, text, ha="center", va="center", color="white" if fraction > 0.5 else "black", fontsize=13
        )
    axes.set_xticks([0, 1], CLASS_NAMES)
    axes.set_yticks([0, 1], CLASS_NAMES, rotation=90, va="center")
    axes.set(xlabel=f"Prediction at the threshold {metrics['threshold']:.6g}", ylabel="Truth")


def _draw_roc(axes: "Axes", predictions: Predictions, metrics: dict[str, Any]) -> None:
    false_rate, true_rate = roc_curve(predictions.labels, predictions.margin)
    counts = metrics["confusion"]
    artefacts = counts["false_positives"] + counts["true_negatives"]
    lowest = 0.5 / artefacts
    axes.step(np.maximum(false_rate, lowest), true_rate, where="post", label=f"AUC {metrics['roc_auc']:.4f}")
    at_threshold = max(counts["false_positives"] / artefacts, lowest), metrics["recall"]
    axes.plot(*at_threshold, "o", color="tab:red", label="threshold")
    chance = np.geomspace(lowest, 1, 100)
    axes.plot(chance, chance, ":", color="grey", label="chance")
    axes.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.02))
    axes.set(xlabel="False-positive rate (Artefact classified as Pulse)", ylabel="True-positive rate (recall)")
    axes.legend(loc="lower right")


def _draw_precision_recall(axes: "Axes", predictions: Predictions, metrics: dict[str, Any]) -> None:
    precision, recall = precision_recall_curve(predictions.labels, predictions.margin)
    recall, precision = np.append(0.0, recall), np.append(precision[0], precision)
    axes.step(recall, precision, where="pre", label=f"average precision {metrics['average_precision']:.4f}")
    axes.plot(metrics["recall"], metrics["precision"], "o", color="tab:red", label="threshold")
    axes.axhline(metrics["pulses"] / metrics["images"], ls=":", color="grey", label="chance")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="Recall", ylabel="Precision")
    axes.legend(loc="lower left")


def _draw_reliability(axes: "Axes", predictions: Predictions, metrics: dict[str, Any]) -> None:
    axes.plot([0.5, 1], [0.5, 1], ":", color="grey", label="perfect")
    error, temperature = metrics["expected_calibration_error"], metrics["temperature"]
    cases = (
        ("before", 1.0, "s--", "tab:orange", "T = 1"),
        ("after", temperature, "o-", "tab:blue", f"T = {temperature:.3f}"),
    )
    for key, t, style, color, name in cases:
        images, confidence, accuracy = reliability(predictions.labels, pulse_probability(predictions.logits, t))
        axes.plot(confidence, accuracy, style, color=color, label=f"{name}, expected error {error[key]:.4f}")
    for count, x, y in zip(images, confidence, accuracy, strict=True):
        if count:
            place: dict[str, Any] = {"xytext": (0, -13), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{count}", (x, y), **place, fontsize=8, color=color)
    axes.margins(y=0.12)
    axes.set(xlim=(0.48, 1.03), xlabel="Confidence (probability of the predicted class)")
    axes.set_ylabel("Accuracy (numbers: images in the bin)")
    axes.legend(loc="best")


def _draw_recall_by_snr(axes: "Axes", metrics: dict[str, Any]) -> None:
    bins = metrics["recall_by_snr"]
    if bins is None:
        _write(axes, "S/N of the pulses unknown")
        return
    recall = [entry["recall"] for entry in bins]
    bars = axes.bar([entry["snr"] for entry in bins], recall, color="tab:blue", width=0.7)
    axes.bar_label(bars, [f"{entry['found']} of\n{entry['pulses']}" for entry in bins], padding=2, fontsize=9)
    axes.set(ylim=(0, 1.15), xlabel="S/N", ylabel="Recall")


def _draw_thresholds(axes: "Axes", predictions: Predictions, metrics: dict[str, Any]) -> None:
    if metrics["pulse_free"] is None:
        _write(axes, "length of a page unknown")
        return
    probability = np.sort(pulse_probability(predictions.pulse_free_logits, metrics["temperature"]))[::-1]
    # A threshold just above the probability of a page lets the pages before it pass.
    rate = np.arange(len(probability)) / predictions.hours
    shown = (rate > 0) & (rate <= 10 * predictions.rates.max())
    label = f"{len(probability)} pages, {predictions.hours:.3g} h"
    axes.step(rate[shown], _clipped(probability[shown]), where="post", label=label)
    stored = metrics["thresholds"]
    thresholds = _clipped(np.array([entry["threshold"] for entry in stored]))
    axes.plot([entry["false_per_hour"] for entry in stored], thresholds, "o", color="tab:orange", label="stored")
    axes.axhline(float(_clipped(metrics["threshold"])), color="tab:red", ls="--", label="default threshold")
    axes.set_yscale("logit", one_half="0.5")
    axes.set(xscale="log", xlabel="False positives per hour", ylabel="Threshold")
    axes.legend(loc="lower left")


def _clipped(probability: np.ndarray | float) -> np.ndarray:
    """Limit probabilities to the range that a logit axis can show."""
    return np.clip(probability, 1e-8, 1 - 1e-8)


def _write(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color="grey", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])
