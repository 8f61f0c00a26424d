"""What a search found of the pulses that are known to be there."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline_classifier.catalogue import Event
from pipeline_classifier.pages import PageGrid
from pipeline_classifier.pulse_signal import Pulse

TIME_TOLERANCE_S = 0.003
DM_TOLERANCE = 2.0  # pc cm^-3


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


def compare(pulses: Sequence[Pulse], events: Sequence[Event], grid: PageGrid) -> Recovery:
    """Match events to pulses, the brightest event first.

    They match within twice the wider width (at least 3 ms and three samples) in time, and in DM within 2 pc cm^-3 plus
    what shifts the bottom of the band by that time.
    """
    event_of_pulse = np.full(len(pulses), -1)
    false_events = np.ones(len(events), dtype=bool)
    times = np.array([pulse.time_s for pulse in pulses])
    dms = np.array([pulse.dm_pc_cm3 for pulse in pulses])
    widths = np.array([pulse.width_ms for pulse in pulses]) / 1e3
    sweep_s = max(float(grid.sweep(1.0)) * grid.tsamp, 1e-9)
    for number in sorted(range(len(events)), key=lambda number: -events[number].snr):
        event = events[number]
        tolerance = np.maximum(max(TIME_TOLERANCE_S, 3 * grid.tsamp, 2 * event.width_ms / 1e3), 2 * widths)
        near = np.abs(times - event.time_s) <= tolerance
        near &= np.abs(dms - event.dm_pc_cm3) <= DM_TOLERANCE + tolerance / sweep_s
        near &= event_of_pulse < 0
        if near.any():
            candidates = np.flatnonzero(near)
            event_of_pulse[candidates[np.argmin(np.abs(times[candidates] - event.time_s))]] = number
            false_events[number] = False
    return Recovery(event_of_pulse, false_events)


def summary(pulses: Sequence[Pulse], events: Sequence[Event], recovery: Recovery, duration_s: float) -> str:
    """Pulses found by S/N, and false events, as lines of text."""
    snr = np.array([pulse.snr for pulse in pulses])
    lines = [f"{'injected pulses found':>24} {int(recovery.found.sum())} of {len(pulses)}"]
    for low, high in ((6, 8), (8, 10), (10, 15), (15, np.inf)):
        chosen = (snr >= low) & (snr < high)
        if chosen.any():
            label = f"S/N {low} to {high:g}" if np.isfinite(high) else f"S/N above {low}"
            lines.append(f"{label:>24} {int(recovery.found[chosen].sum())} of {int(chosen.sum())}")
    bright = snr >= 10
    if bright.any():
        lines.append(f"{'recall at S/N >= 10':>24} {recovery.found[bright].mean():.3f}")
    false = int(recovery.false_events.sum())
    lines.append(f"{'false events':>24} {false} ({false / duration_s * 60:.2f} per minute)")
    return "\n".join(lines)
