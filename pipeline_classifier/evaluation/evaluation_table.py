"""Figures of an evaluation as lines of text, and recall and false events at several thresholds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline_classifier.evaluation.recovery import Outcome, bin_label, pooled, quality
from single_pulse_classifier_training.calibration import hours_needed, rate_text

FIGURES_BY_THRESHOLD = (
    "found", "recall", "recall_by_snr", "hours", "false_events", "false_events_per_hour", "false_events_interval",
)  # fmt: skip
INTERVAL_HEADING = "false events/hour (95 %)"
COMMON_RATES = (10.0, 1.0, 0.1)
"""False events per hour for which a table names the hours that they need."""


def rates_not_measured(hours: float) -> list[str]:
    """Lines that name the `COMMON_RATES` for which an evaluation of ``hours`` is too short, and the hours they need."""
    return [f"{'not measured':>28} {hours_needed(rate, hours)}" for rate in COMMON_RATES if rate * hours < 1]


def by_threshold(outcomes: Sequence[dict[float, Outcome]], dms: np.ndarray) -> list[dict[str, Any]]:
    """Recall and false events per hour over all observations, at each threshold used for all of them."""
    rows = []
    for threshold in sorted(set.intersection(*(set(parts) for parts in outcomes))):
        figures = quality(pooled([parts[threshold] for parts in outcomes]), dms)
        rows.append({"threshold": threshold} | {key: figures[key] for key in FIGURES_BY_THRESHOLD})
    return rows


def table_by_threshold(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of `by_threshold` as lines of text."""
    bins = [number for number, part in enumerate(rows[0]["recall_by_snr"]) if part["of"]]
    heading = [f"S/N {bin_label(rows[0]['recall_by_snr'][number])}" for number in bins]
    columns = [f"{text:>12}" for text in heading]
    lines = ["", f"{'events from probability':>28} {'  '.join([*columns, f'{INTERVAL_HEADING:>26}'])}"]
    for row in rows:
        parts = [row["recall_by_snr"][number] for number in bins]
        cells = [f"{part['found'] / part['of']:>12.3f}" for part in parts]
        rate = rate_text(row["false_events"], row["hours"])
        lines.append(f"{row['threshold']:>28.4g} {'  '.join([*cells, f'{rate:>26}'])}")
    return lines + rates_not_measured(rows[0]["hours"])


def table(evaluation: dict) -> str:
    """The evaluation as lines of text."""

    def line(label: str, text: str) -> str:
        return f"{label:>28} {text}"

    def recalls(label: str, parts: list[dict], unit: str = "") -> list[str]:
        return [
            line(f"{label} {bin_label(p)}{unit}", f"{p['found']:>4} of {p['of']:<4} {p['found'] / p['of']:.3f}")
            for p in parts
            if p["of"]
        ]

    def error(label: str, sizes: dict, unit: str) -> list[str]:
        if sizes["median"] is None:
            return []
        return [line(label, f"median {sizes['median']:.3g}, 90 % below {sizes['percentile_90']:.3g} {unit}")]

    observations = evaluation["observations"]
    lines = [line("observations", f"{len(observations)}, {evaluation['hours']:.4g} hours")]
    before = [entry["events_before_injection"] for entry in observations if "events_before_injection" in entry]
    if before:
        lines.append(line("events before injection", f"{sum(before)} (not counted as false)"))
    if evaluation["pulses"]:
        found, of = evaluation["found"], evaluation["pulses"]
        lines.append(line("pulses found", f"{found} of {of}, {evaluation['recall']:.3f}"))
    lines += recalls("S/N", evaluation["recall_by_snr"])
    lines += recalls("width", evaluation["recall_by_width_samples"], " samples")
    lines += recalls("DM", evaluation["recall_by_dm"])
    false, hours = evaluation["false_events"], evaluation["hours"]
    lines.append(line("false events", f"{false}, {rate_text(false, hours)} per hour (95 %)" if hours else f"{false}"))
    lines += error("DM error", evaluation["dm_error_pc_cm3"], "pc cm^-3")
    lines += error("time error", evaluation["time_error_ms"], "ms")
    lines += error("", evaluation["time_error_samples"], "samples")
    if evaluation["snr_ratio_median"] is not None:
        lines.append(line("S/N, measured / true", f"median {evaluation['snr_ratio_median']:.3f}"))
    if len(evaluation["by_threshold"]) > 1:
        lines += table_by_threshold(evaluation["by_threshold"])
    return "\n".join(lines)
