"""Figures of an evaluation as lines of text, and recall and false events at several thresholds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_classifier.evaluation.recovery import Outcome, bin_label, pooled, quality
from single_pulse_classifier_training.calibration import hours_needed, rate_text
from single_pulse_classifier_training.metrics import recall_by

FIGURES_BY_THRESHOLD = (
    "found", "recall", "recall_by_snr", "hours", "false_events", "false_events_per_hour", "false_events_interval",
)  # fmt: skip
INTERVAL_HEADING = "false events/hour (95 %)"
COMMON_RATES = (10.0, 1.0, 0.1)
"""False events per hour for which a table names the hours that they need."""


@dataclass(frozen=True)
class PulseProperty:
    """A property of pulses by which recall is counted in bins.

    Attributes
    ----------
    key : str
        Name of the bins in evaluation.json.
    values : callable
        Returns the property of each pulse of an `Outcome`, (n,) ndarray.
    edges : tuple of float
        Edges of the bins, ascending.
    label, unit : str
        In front of and after the limits of a bin in a table.
    last : str, optional
        Name of the last bin in place of label, limits and unit.
    """

    key: str
    values: Callable[[Outcome], np.ndarray]
    edges: tuple[float, ...]
    label: str
    unit: str = ""
    last: str | None = None


DETAIL = (
    PulseProperty(
        "recall_by_sweep_over_width",
        lambda outcome: outcome.sweep_s / (np.maximum(outcome.width_samples, 1.0) * outcome.tsamp),
        (0.0, 1.0, 3.0, 10.0, np.inf),
        "sweep / width",
    ),
    PulseProperty(
        "recall_by_width_ms",
        lambda outcome: outcome.width_samples * outcome.tsamp * 1e3,
        (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, np.inf),
        "width",
        " ms",
    ),
    PulseProperty(
        "recall_by_dm_pc_cm3",
        lambda outcome: outcome.dm_pc_cm3,
        (0.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, np.inf),
        "DM",
        " pc cm^-3",
    ),
    PulseProperty(
        "recall_by_band_share",
        lambda outcome: outcome.band_share,
        (0.0, 0.15, 0.3, 0.6, 1.0, np.inf),
        "share of band",
        last="whole band",
    ),
)
"""Properties of pulses in the tables of ``--detail``. A pulse shorter than a sample has the width of a sample in the
ratio of sweep and width. The edges are chosen by hand."""


def recall_by_property(
    outcome: Outcome, properties: Sequence[PulseProperty] = DETAIL
) -> dict[str, list[dict[str, Any]]]:
    """Count the pulses found in bins of each of several properties, as `metrics.recall_by` does for one."""
    return {one.key: recall_by(one.values(outcome), outcome.found, one.edges) for one in properties}


def recall_lines(label: str, parts: Sequence[dict[str, Any]], unit: str = "", last: str | None = None) -> list[str]:
    """Return the bins of `metrics.recall_by` that have pulses as lines of text."""
    names = [f"{label} {bin_label(part)}{unit}" for part in parts]
    if last:
        names[-1] = last
    return [
        f"{name:>28} {part['found']:>4} of {part['of']:<4} {part['found'] / part['of']:.3f}"
        for name, part in zip(names, parts, strict=True)
        if part["of"]
    ]


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


def table(evaluation: dict, detail: bool = False) -> str:
    """The evaluation as lines of text, with ``detail`` also the bins of `recall_by_property`."""

    def line(label: str, text: str) -> str:
        return f"{label:>28} {text}"

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
    lines += recall_lines("S/N", evaluation["recall_by_snr"])
    lines += recall_lines("width", evaluation["recall_by_width_samples"], " samples")
    lines += recall_lines("DM", evaluation["recall_by_dm"])
    for one in DETAIL if detail else ():
        lines += recall_lines(one.label, evaluation[one.key], one.unit, one.last)
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
