"""Figure of an evaluation: recall, errors and false events; matplotlib is imported only when a figure is drawn."""

from pathlib import Path

import numpy as np

from pipeline_classifier.evaluation.recovery import Outcome, bin_label, binomial_interval
from single_pulse_classifier_training.runtime import atomic_writer

SNR_TICKS = (1, 2, 4, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500, 1000, 10000)


def plot_evaluation(path: Path, evaluation: dict, outcome: Outcome) -> None:
    """Plot recall by S/N, width and DM, errors of DM and time against S/N, and the S/N of false events, as a PNG file.

    Parameters
    ----------
    path : Path
        The file to write.
    evaluation : dict
        The figures of `recovery.quality`, and the ``model`` named in the title.
    outcome : Outcome
        The pulses and false events behind these figures.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3)
    _draw_recall(panels[0, 0], evaluation["recall_by_snr"], "S/N")
    _draw_recall(panels[0, 1], evaluation["recall_by_width_samples"], "width (samples)")
    _draw_recall(panels[0, 2], evaluation["recall_by_dm"], "DM (pc cm$^{-3}$)")
    for axis, errors, label in (
        (panels[1, 0], outcome.dm_error, "DM error (pc cm$^{-3}$)"),
        (panels[1, 1], outcome.time_error_s * 1e3, "time error (ms)"),
    ):
        axis.axhline(0, color="0.7", lw=0.8)
        axis.plot(outcome.snr[outcome.found], errors[outcome.found], ".", color="tab:blue", alpha=0.6)
        axis.set_xscale("log")
        axis.minorticks_off()
        lowest, highest = axis.get_xlim()
        axis.set_xticks([tick for tick in SNR_TICKS if lowest <= tick <= highest])
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("S/N")
        axis.set_ylabel(label)
    if len(outcome.false_snr):
        panels[1, 2].hist(outcome.false_snr, bins=20, color="tab:red")
    else:
        panels[1, 2].set(xticks=[], yticks=[])
        panels[1, 2].annotate("none", (0.5, 0.5), xycoords="axes fraction", ha="center")
    panels[1, 2].set_xlabel("S/N")
    panels[1, 2].set_ylabel(f"false events in {evaluation['hours']:.3g} h")
    figure.suptitle(
        f"{evaluation['model']}: {evaluation['found']} of {evaluation['pulses']} pulses, "
        f"{evaluation['false_events']} false events",
        fontsize=10,
    )
    with atomic_writer(path) as file:
        figure.savefig(file, format="png")


def _draw_recall(axis, parts: list[dict], label: str) -> None:
    """Plot the recall of each bin with its standard deviation and, at the bottom, the number of pulses in the bin."""
    parts = [part for part in parts if part["of"]]
    recalls = np.array([part["found"] / part["of"] for part in parts])
    limits = np.array([binomial_interval(part["found"], part["of"]) for part in parts]).reshape(-1, 2)
    bars = np.maximum(0, np.abs(limits.T - recalls))
    axis.errorbar(range(len(parts)), recalls, bars, fmt="o", color="tab:blue", capsize=3)
    for x, part in enumerate(parts):
        axis.annotate(str(part["of"]), (x, -0.02), ha="center", va="top", fontsize=7, color="0.4")
    axis.set_xticks(range(len(parts)), [bin_label(part).replace(" ", "\n", 1) for part in parts], fontsize=8)
    axis.set_xlim(-0.5, max(1, len(parts)) - 0.5)
    axis.set_ylim(-0.1, 1.05)
    axis.set_xlabel(label)
    axis.set_ylabel("recall")
