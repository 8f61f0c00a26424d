"""Match the events of a search with known pulses, and compute recall, false events and measurement errors."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.calibration import poisson_interval
from single_pulse_classifier_training.metrics import recall_by

# Minimum tolerances of a match; chosen by hand, not tuned on data. 2 pc cm^-3 are four steps of the default DM grid.
TIME_TOLERANCE_S = 0.003
DM_TOLERANCE = 2.0  # pc cm^-3
SNR_EDGES = (0.0, 6.0, 8.0, 10.0, 15.0, 50.0, 200.0, 1000.0, np.inf)
WIDTH_EDGES = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, np.inf)  # samples


@dataclass(frozen=True)
class Recovery:
    """Assignment of events to pulses.

    Attributes
    ----------
    event_of_pulse : (n_pulses,) ndarray of int64
        Number of the event that matches each pulse; -1 for a missed pulse.
    false_events : (n_events,) ndarray of bool
        Events without a pulse, including second events of the same pulse.
    """

    event_of_pulse: np.ndarray
    false_events: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Whether each pulse was found, (n_pulses,) bool."""
        return self.event_of_pulse >= 0


class Matcher:
    """Finds the pulses that match an event in time and DM.

    The tolerance in time is twice the width of the pulse or of the event, whichever is wider, and at least 3 ms and
    three samples. The tolerance in DM is 2 pc cm^-3 plus the error of DM that delays the bottom of the band by the
    tolerance in time.

    Parameters
    ----------
    pulses : sequence of Pulse
        The known pulses.
    grid : PageGrid
        Band and sampling of the search.
    """

    def __init__(self, pulses: Sequence[Pulse], grid: PageGrid) -> None:
        self.times = np.array([pulse.time_s for pulse in pulses], dtype=float)
        self.dms = np.array([pulse.dm_pc_cm3 for pulse in pulses], dtype=float)
        self.snrs = np.array([pulse.snr for pulse in pulses], dtype=float)
        self.widths = np.array([pulse.width_ms for pulse in pulses], dtype=float) / 1e3
        self.least_s = max(TIME_TOLERANCE_S, 3 * grid.tsamp)
        self.sweep_s = max(float(grid.sweep(1.0)) * grid.tsamp, 1e-9)
        self._by_time = np.argsort(self.times)
        self._sorted_times = self.times[self._by_time]
        self._longest_s = self.widths.max(initial=0.0)

    def matches(self, time_s: float, dm: float, width_s: float, slack: float = 1.0) -> np.ndarray:
        """Return the indices of the pulses that match an event, ascending, with tolerances multiplied by ``slack``."""
        window_s = slack * max(self.least_s, 2 * width_s, 2 * self._longest_s) + self.least_s
        low, high = self._sorted_times.searchsorted((time_s - window_s, time_s + window_s))
        within = np.sort(self._by_time[low:high])
        tolerance = np.maximum(max(self.least_s, 2 * width_s), 2 * self.widths[within])
        near = np.abs(self.times[within] - time_s) <= slack * tolerance
        near &= np.abs(self.dms[within] - dm) <= slack * (DM_TOLERANCE + tolerance / self.sweep_s)
        return within[near]


def compare(pulses: Sequence[Pulse], events: Sequence[Event], grid: PageGrid) -> Recovery:
    """Assign events to pulses: the brightest event first, each to the matching unassigned pulse nearest in time.

    Parameters
    ----------
    pulses : sequence of Pulse
        The known pulses.
    events : sequence of Event
        The events of the search.
    grid : PageGrid
        Band and sampling of the search.
    """
    event_of_pulse = np.full(len(pulses), -1)
    false_events = np.ones(len(events), dtype=bool)
    matcher = Matcher(pulses, grid)
    for number in sorted(range(len(events)), key=lambda number: -events[number].snr):
        event = events[number]
        near = matcher.matches(event.time_s, event.dm_pc_cm3, event.width_ms / 1e3)
        near = near[event_of_pulse[near] < 0]
        if len(near):
            event_of_pulse[near[np.argmin(np.abs(matcher.times[near] - event.time_s))]] = number
            false_events[number] = False
    return Recovery(event_of_pulse, false_events)


def without_known(recovery: Recovery, events: Sequence[Event], known: Sequence[Event], grid: PageGrid) -> Recovery:
    """Remove events that were found before the injection from the false events of a recovery.

    Parameters
    ----------
    recovery : Recovery
        Result of `compare` for ``events``.
    events : sequence of Event
        The events of the search after the injection.
    known : sequence of Event
        The events of the search before the injection; each of them accounts for at most one false event, matched as in
        `compare`.
    grid : PageGrid
        Band and sampling of the search.
    """
    unmatched = np.flatnonzero(recovery.false_events)
    pulses = [Pulse(event.time_s, event.dm_pc_cm3, event.snr, event.width_ms) for event in known]
    false_events = np.zeros(len(events), dtype=bool)
    false_events[unmatched] = compare(pulses, [events[number] for number in unmatched.tolist()], grid).false_events
    return Recovery(recovery.event_of_pulse, false_events)


@dataclass(frozen=True)
class Outcome:
    """True and measured parameters of the pulses of one or more observations, and their false events.

    Attributes
    ----------
    snr, dm_pc_cm3 : (n,) ndarray
        True S/N and DM of each pulse.
    width_samples : (n,) ndarray
        Intrinsic full width at half maximum of each pulse, in samples.
    sweep_s : (n,) ndarray
        Time by which each pulse sweeps over the band in use, in seconds.
    band_share : (n,) ndarray
        Fraction of the band in use within half of the maximum of the envelope of each pulse; 1 without an envelope.
    found_snr : (n,) ndarray
        Measured S/N; NaN for a missed pulse.
    dm_error, time_error_s : (n,) ndarray
        Measured minus true DM (pc cm^-3) and arrival time (seconds); NaN for a missed pulse.
    tsamp : (n,) ndarray
        Sampling time of the search in seconds.
    false_snr : (n_false,) ndarray
        S/N of the false events.
    duration_s : float
        Total time searched, in seconds.
    """

    snr: np.ndarray
    dm_pc_cm3: np.ndarray
    width_samples: np.ndarray
    sweep_s: np.ndarray
    band_share: np.ndarray
    found_snr: np.ndarray
    dm_error: np.ndarray
    time_error_s: np.ndarray
    tsamp: np.ndarray
    false_snr: np.ndarray
    duration_s: float

    @property
    def found(self) -> np.ndarray:
        """Whether each pulse was found, (n,) bool."""
        return np.isfinite(self.found_snr)


def outcome_of(
    pulses: Sequence[Pulse],
    events: Sequence[Event],
    recovery: Recovery,
    grid: PageGrid,
    tsamp: float,
    duration_s: float,
) -> Outcome:
    """Compare the events of one observation with its pulses, as assigned in ``recovery``."""
    true = np.array([(p.snr, p.dm_pc_cm3, p.time_s, p.width_ms / 1e3 / tsamp) for p in pulses]).reshape(-1, 4)
    measured = np.array([(e.snr, e.dm_pc_cm3, e.time_s) for e in events]).reshape(-1, 3)
    # A missed pulse has the number -1, which selects the row of NaN appended here.
    found = np.pad(measured, ((0, 1), (0, 0)), constant_values=np.nan)[recovery.event_of_pulse]
    return Outcome(
        snr=true[:, 0],
        dm_pc_cm3=true[:, 1],
        width_samples=true[:, 3],
        sweep_s=(grid.sweep(true[:, 1]) - grid.top_delay(true[:, 1])) * grid.tsamp,
        band_share=np.array([_share_of_band(pulse, *grid.band) for pulse in pulses], dtype=float),
        found_snr=found[:, 0],
        dm_error=found[:, 1] - true[:, 1],
        time_error_s=found[:, 2] - true[:, 2],
        tsamp=np.full(len(pulses), tsamp),
        false_snr=measured[recovery.false_events, 0],
        duration_s=duration_s,
    )


def _share_of_band(pulse: Pulse, low: float, high: float) -> float:
    """Fraction of a band in MHz that the full width at half maximum of a pulse's envelope covers."""
    if pulse.centre_mhz is None or pulse.bandwidth_mhz is None or low == high:
        return 1.0
    half = pulse.bandwidth_mhz / 2
    covered = min(high, pulse.centre_mhz + half) - max(low, pulse.centre_mhz - half)
    return min(1.0, max(0.0, covered / (high - low)))


def pooled(outcomes: Sequence[Outcome]) -> Outcome:
    """Combine the outcomes of several observations."""
    columns = {f.name: [getattr(outcome, f.name) for outcome in outcomes] for f in fields(Outcome)}
    duration_s = float(sum(columns.pop("duration_s")))
    return Outcome(**{name: np.concatenate(values) for name, values in columns.items()}, duration_s=duration_s)


def bin_label(part: dict[str, float | None]) -> str:
    """Describe the limits of a bin of `recall_by`."""
    if part["to"] is None:
        return f"above {part['from']:.4g}"
    return f"{part['from']:.4g} to {part['to']:.4g}" if part["from"] else f"below {part['to']:.4g}"


def binomial_interval(found: int, of: int) -> tuple[float, float]:
    """Return the limits of a recall one standard deviation to either side (Wilson 1927, JASA 22, 209, for z = 1)."""
    centre = (found + 0.5) / (of + 1)
    half = np.sqrt(found * (of - found) / of + 0.25) / (of + 1)
    return centre - half, centre + half


def quality(outcome: Outcome, dms: np.ndarray) -> dict[str, object]:
    """Compute the figures of an evaluation.

    Parameters
    ----------
    outcome : Outcome
        Pulses and false events of all observations.
    dms : (n_dm,) ndarray
        Trial DMs of the search in pc cm^-3. The recall by DM has one bin for each quarter of their range; the outer two
        bins also hold pulses beyond the range.

    Returns
    -------
    figures : dict
        Figures by name, ready for JSON; None where no pulse or no time was searched.
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
        "false_events_interval": poisson_interval(len(outcome.false_snr), hours) if hours else None,
        "dm_error_pc_cm3": _median_and_90(outcome.dm_error),
        "time_error_ms": _median_and_90(time_errors * 1e3),
        "time_error_samples": _median_and_90(time_errors / outcome.tsamp),
        "snr_ratio_median": float(np.nanmedian(outcome.found_snr / outcome.snr)) if n_found else None,
    }


def _median_and_90(errors: np.ndarray) -> dict[str, float | None]:
    """Median and 90th percentile of the absolute values of the finite errors."""
    sizes = np.abs(errors[np.isfinite(errors)])
    median, most = np.percentile(sizes, (50, 90)).tolist() if len(sizes) else (None, None)
    return {"median": median, "percentile_90": most}


def summary(pulses: Sequence[Pulse], events: Sequence[Event], recovery: Recovery, duration_s: float) -> str:
    """Describe the pulses found by S/N, and the false events, in a few lines of text."""
    snr = np.array([pulse.snr for pulse in pulses])
    lines = [f"{'injected pulses found':>40} {int(recovery.found.sum())} of {len(pulses)}"]
    lines += [
        f"{'S/N ' + bin_label(part):>40} {part['found']} of {part['of']}"
        for part in recall_by(snr, recovery.found, SNR_EDGES)
        if part["of"]
    ]
    bright = snr >= 10
    if bright.any():
        lines.append(f"{'recall at S/N >= 10':>40} {recovery.found[bright].mean():.3f}")
    false = int(recovery.false_events.sum())
    lines.append(f"{'false events':>40} {false} ({false / duration_s * 60:.2f} per minute)")
    return "\n".join(lines)
