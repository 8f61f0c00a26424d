"""What searches found of the pulses that are known to be there, and how well they measured them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.simulation.pulses import Pulse

TIME_TOLERANCE_S = 0.003
DM_TOLERANCE = 2.0  # pc cm^-3
SNR_EDGES = (0.0, 6.0, 8.0, 10.0, 15.0, np.inf)
WIDTH_EDGES = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, np.inf)  # samples


@dataclass(frozen=True)
class Recovery:
    """Which pulses were found, and which events are none.

    Attributes
    ----------
    event_of_pulse : (n_pulses,) int64, number of the event that is each pulse, -1 for a missed one
    false_events : (n_events,) bool, events that are no pulse, or a pulse that another event is already
    """

    event_of_pulse: np.ndarray
    false_events: np.ndarray

    @property
    def found(self) -> np.ndarray:
        return self.event_of_pulse >= 0


class Matcher:
    """Which of some pulses an event at some time and DM may be.

    They match within twice the wider width (at least 3 ms and three samples) in time, and in DM within 2 pc cm^-3 plus
    what shifts the bottom of the band by that time.
    """

    def __init__(self, pulses: Sequence[Pulse], grid: PageGrid) -> None:
        self.times = np.array([pulse.time_s for pulse in pulses], dtype=float)
        self.dms = np.array([pulse.dm_pc_cm3 for pulse in pulses], dtype=float)
        self.snrs = np.array([pulse.snr for pulse in pulses], dtype=float)
        self.widths = np.array([pulse.width_ms for pulse in pulses], dtype=float) / 1e3
        self.least_s = max(TIME_TOLERANCE_S, 3 * grid.tsamp)
        self.sweep_s = max(float(grid.sweep(1.0)) * grid.tsamp, 1e-9)

    def matches(self, time_s: float, dm: float, width_s: float, slack: float = 1.0) -> np.ndarray:
        """(n_pulses,) bool; the tolerances are multiplied by ``slack``."""
        tolerance = np.maximum(max(self.least_s, 2 * width_s), 2 * self.widths)
        near = np.abs(self.times - time_s) <= slack * tolerance
        return near & (np.abs(self.dms - dm) <= slack * (DM_TOLERANCE + tolerance / self.sweep_s))


def compare(pulses: Sequence[Pulse], events: Sequence[Event], grid: PageGrid) -> Recovery:
    """Match events to pulses as a `Matcher` does, the brightest event first."""
    event_of_pulse = np.full(len(pulses), -1)
    false_events = np.ones(len(events), dtype=bool)
    matcher = Matcher(pulses, grid)
    for number in sorted(range(len(events)), key=lambda number: -events[number].snr):
        event = events[number]
        near = matcher.matches(event.time_s, event.dm_pc_cm3, event.width_ms / 1e3) & (event_of_pulse < 0)
        if near.any():
            candidates = np.flatnonzero(near)
            event_of_pulse[candidates[np.argmin(np.abs(matcher.times[candidates] - event.time_s))]] = number
            false_events[number] = False
    return Recovery(event_of_pulse, false_events)


def without_known(recovery: Recovery, events: Sequence[Event], known: Sequence[Event], grid: PageGrid) -> Recovery:
    """The same recovery, in which events that were ``known`` before the pulses were injected are not false.

    They match as in `compare`, each known event one false event at most.
    """
    left = np.flatnonzero(recovery.false_events)
    pulses = [Pulse(event.time_s, event.dm_pc_cm3, event.snr, event.width_ms) for event in known]
    false_events = np.zeros(len(events), dtype=bool)
    false_events[left] = compare(pulses, [events[number] for number in left.tolist()], grid).false_events
    return Recovery(recovery.event_of_pulse, false_events)


@dataclass(frozen=True)
class Outcome:
    """What became of the pulses of one or more observations.

    Attributes
    ----------
    snr, dm_pc_cm3, width_samples : (n,) of each pulse, as it is known; the width is the intrinsic one, at half maximum
    found_snr : (n,) S/N of the event that is the pulse; NaN, as in the next two, for a missed pulse
    dm_error, time_error_s : (n,) event less pulse
    tsamp : (n,) seconds, sampling time of the search
    false_snr : (n_false,) S/N of the false events
    duration_s : seconds searched
    """

    snr: np.ndarray
    dm_pc_cm3: np.ndarray
    width_samples: np.ndarray
    found_snr: np.ndarray
    dm_error: np.ndarray
    time_error_s: np.ndarray
    tsamp: np.ndarray
    false_snr: np.ndarray
    duration_s: float

    @property
    def found(self) -> np.ndarray:
        return np.isfinite(self.found_snr)


def outcome_of(
    pulses: Sequence[Pulse], events: Sequence[Event], recovery: Recovery, tsamp: float, duration_s: float
) -> Outcome:
    """What became of the pulses of one observation."""
    true = np.array([(p.snr, p.dm_pc_cm3, p.time_s, p.width_ms / 1e3 / tsamp) for p in pulses]).reshape(-1, 4)
    measured = np.array([(e.snr, e.dm_pc_cm3, e.time_s) for e in events]).reshape(-1, 3)
    # A missed pulse has the number -1: a row of NaN at the end.
    found = np.pad(measured, ((0, 1), (0, 0)), constant_values=np.nan)[recovery.event_of_pulse]
    return Outcome(
        snr=true[:, 0],
        dm_pc_cm3=true[:, 1],
        width_samples=true[:, 3],
        found_snr=found[:, 0],
        dm_error=found[:, 1] - true[:, 1],
        time_error_s=found[:, 2] - true[:, 2],
        tsamp=np.full(len(pulses), tsamp),
        false_snr=measured[recovery.false_events, 0],
        duration_s=duration_s,
    )


def pooled(outcomes: Sequence[Outcome]) -> Outcome:
    """Several observations as one."""
    columns = {f.name: [getattr(outcome, f.name) for outcome in outcomes] for f in fields(Outcome)}
    duration_s = float(sum(columns.pop("duration_s")))
    return Outcome(**{name: np.concatenate(values) for name, values in columns.items()}, duration_s=duration_s)


def recall_by(values: np.ndarray, found: np.ndarray, edges: Sequence[float]) -> list[dict[str, float | None]]:
    """Pulses found in bins of a value: ``from``, ``to`` (None: no limit), ``found``, ``of`` in every bin.

    Parameters
    ----------
    values, found : (n,), one per pulse
    edges : ascending; a bin has its lower edge, and not its upper one
    """
    bins = []
    for low, high in pairwise(edges):
        chosen = (values >= low) & (values < high)
        limits = {"from": float(low) if low > -np.inf else None, "to": float(high) if high < np.inf else None}
        bins.append(limits | {"found": int(found[chosen].sum()), "of": int(chosen.sum())})
    return bins


def bin_label(part: dict[str, float | None]) -> str:
    """The limits of a bin of `recall_by` in words."""
    if part["to"] is None:
        return f"above {part['from']:.4g}"
    return f"{part['from']:.4g} to {part['to']:.4g}" if part["from"] else f"below {part['to']:.4g}"


def binomial_interval(found: int, of: int) -> tuple[float, float]:
    """Limits of a recall, one standard deviation to either side (Wilson 1927, JASA 22, 209)."""
    centre = (found + 0.5) / (of + 1)
    half = np.sqrt(found * (of - found) / of + 0.25) / (of + 1)
    return centre - half, centre + half


def quality(outcome: Outcome, dms: np.ndarray) -> dict[str, object]:
    """The figures of detection quality, as JSON has them; None for what no pulse tells.

    Parameters
    ----------
    dms : (n_dm,) trial DMs of the search, pc cm^-3, whose quarters are the bins in DM; the outer ones have no limit
    """
    quarters = np.linspace(dms[0], dms[-1], 5)[1:-1]
    n, n_found, hours = len(outcome.snr), int(outcome.found.sum()), outcome.duration_s / 3600
    time_errors = outcome.time_error_s
    return {
        "pulses": n,
        "found": n_found,
        "recall": n_found / n if n else None,
        "recall_by_snr": recall_by(outcome.snr, outcome.found, SNR_EDGES),
        "recall_by_width_samples": recall_by(outcome.width_samples, outcome.found, WIDTH_EDGES),
        "recall_by_dm": recall_by(outcome.dm_pc_cm3, outcome.found, (-np.inf, *quarters, np.inf)),
        "hours": hours,
        "false_events": len(outcome.false_snr),
        "false_events_per_hour": len(outcome.false_snr) / hours if hours else None,
        "dm_error_pc_cm3": _median_and_90(outcome.dm_error),
        "time_error_ms": _median_and_90(time_errors * 1e3),
        "time_error_samples": _median_and_90(time_errors / outcome.tsamp),
        "snr_ratio_median": float(np.nanmedian(outcome.found_snr / outcome.snr)) if n_found else None,
    }


def _median_and_90(errors: np.ndarray) -> dict[str, float | None]:
    """Of the absolute values of the errors that are known."""
    sizes = np.abs(errors[np.isfinite(errors)])
    median, most = np.percentile(sizes, (50, 90)).tolist() if len(sizes) else (None, None)
    return {"median": median, "percentile_90": most}


def summary(pulses: Sequence[Pulse], events: Sequence[Event], recovery: Recovery, duration_s: float) -> str:
    """Pulses found by S/N, and false events, as lines of text."""
    snr = np.array([pulse.snr for pulse in pulses])
    lines = [f"{'injected pulses found':>24} {int(recovery.found.sum())} of {len(pulses)}"]
    lines += [
        f"{'S/N ' + bin_label(part):>24} {part['found']} of {part['of']}"
        for part in recall_by(snr, recovery.found, SNR_EDGES)
        if part["of"]
    ]
    bright = snr >= 10
    if bright.any():
        lines.append(f"{'recall at S/N >= 10':>24} {recovery.found[bright].mean():.3f}")
    false = int(recovery.false_events.sum())
    lines.append(f"{'false events':>24} {false} ({false / duration_s * 60:.2f} per minute)")
    return "\n".join(lines)
