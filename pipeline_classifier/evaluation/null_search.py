"""The false rate of an observation that may hold pulses: it is searched backwards in time, where no pulse can be found.

Backwards, the low frequencies of a pulse arrive first, so that it is smeared at every trial DM; interference and noise
are those of the observation. Every event is counted as false, except for smeared responses to bright pulses: an event
that crosses the track of a dispersed event of the forward search, and is as faint as its response, is not counted. A
pulse with a sweep as short as its width looks the same in both directions, as does interference at DM 0. Such events
are counted, since a forward search cannot tell them from interference either, and their number is reported.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.classifiers import Classifiers
from pipeline_classifier.detection.peaks import SMEARED
from pipeline_classifier.evaluation.false_rate import FalseEvents, false_events_table, search_at_thresholds
from pipeline_classifier.events import Event
from pipeline_classifier.formats.joined import BackwardFiles, open_observation
from pipeline_classifier.frontend.pages import PageGrid
from single_pulse_classifier_training.calibration import SECONDS_PER_HOUR, poisson_interval, threshold_for_rate
from single_pulse_classifier_training.cli import InputError

SHORT_SWEEP = 2.0
"""Widths below which a sweep is short: summed at the negative of its DM, a pulse is smeared over twice its sweep, and
keeps more than 0.4 of its S/N. Chosen by hand."""


@dataclass(frozen=True)
class NullEvents:
    """Events of observations searched backwards, and their numbers at each candidate probability.

    Attributes
    ----------
    false : FalseEvents
        Those that count as false.
    forward : dict of float to int
        Events of the same observations searched forwards.
    responses : dict of float to int
        Events that are not counted, as responses to bright events of the forward search.
    short_sweeps : dict of float to int
        False events with a sweep of less than `SHORT_SWEEP` widths.
    """

    false: FalseEvents
    forward: dict[float, int]
    responses: dict[float, int]
    short_sweeps: dict[float, int]

    def rows(self) -> list[dict[str, Any]]:
        """Return the numbers at each threshold, ready for JSON."""
        rows = []
        for entry in self.false.thresholds():
            threshold = entry["threshold"]
            rows.append(
                entry
                | {
                    "false_per_hour_interval": poisson_interval(self.false.counts[threshold], self.false.hours),
                    "short_sweeps": self.short_sweeps[threshold],
                    "responses": self.responses[threshold],
                    "events_forward": self.forward[threshold],
                }
            )
        return rows

    def table(self) -> list[str]:
        """Return the numbers at each threshold as lines of text."""
        columns = {
            "short sweep": self.short_sweeps,
            "responses": self.responses,
            "events forward": self.forward,
        }
        return false_events_table(self.false, "searched backwards", columns)

    def threshold_for(self, rate: float) -> tuple[float, int]:
        """Choose the lowest threshold with at most ``rate`` false events per hour.

        Returns
        -------
        threshold : float
        count : int
            Its false events.

        Raises
        ------
        InputError
            If every threshold has more.
        """
        thresholds = self.false.thresholds()
        lowest = min(entry["false_per_hour"] for entry in thresholds)
        if lowest > rate:
            raise InputError(f"--wanted-rate must be at least {lowest:.4g}, the lowest rate measured, got {rate:g}")
        threshold, _ = threshold_for_rate(thresholds, rate)
        return threshold, self.false.counts[threshold]


def null_hours(observations: Sequence[Sequence[str | Path]], ifs: int | str) -> float:
    """Return the hours of observations.

    Parameters
    ----------
    observations : sequence of sequence of paths
        The consecutive files of each.
    ifs : int or "sum"
        As in the config.

    Raises
    ------
    InputError
        If a file is given twice or an observation cannot be read.
    """
    seen: set[Path] = set()
    for path in (path for paths in observations for path in paths):
        if (real := Path(path).resolve()) in seen:
            raise InputError(f"--null {path}: every file must be given once, got it twice")
        seen.add(real)
    opened = [open_observation(BackwardFiles(paths), ifs) for paths in observations]
    return sum(file.nsamples * file.tsamp for file in opened) / SECONDS_PER_HOUR


def count_null_events(
    observations: Sequence[Sequence[str | Path]], config: PipelineConfig, classifiers: Classifiers
) -> NullEvents:
    """Search observations forwards and backwards, and count their events at several thresholds.

    Parameters
    ----------
    observations : sequence of sequence of paths
        The consecutive files of each.
    config : PipelineConfig
    classifiers : Classifiers
        With a candidate classifier.
    """
    counts, forward, responses, short = Counter[float](), Counter[float](), Counter[float](), Counter[float]()
    probabilities, duration_s = [], 0.0
    for paths in tqdm(observations, desc="observations searched backwards", unit="file", disable=None):
        _, _, known = search_at_thresholds(list(paths), config, classifiers)
        source, layers, events = search_at_thresholds(BackwardFiles(paths), config, classifiers)
        grid = source.grid
        for threshold, found in events.items():
            is_response = responses_to(known[min(known)], found, grid, source.duration_s)
            false = [event for event, response in zip(found, is_response.tolist(), strict=True) if not response]
            counts[threshold] += len(false)
            forward[threshold] += len(known[threshold])
            responses[threshold] += len(found) - len(false)
            short[threshold] += int(has_short_sweep(false, grid).sum())
        probabilities.append(layers[0].probabilities)
        duration_s += source.duration_s
    false_events = FalseEvents(len(observations), dict(counts), np.concatenate(probabilities), duration_s)
    return NullEvents(false_events, dict(forward), dict(responses), dict(short))


def has_short_sweep(events: Sequence[Event], grid: PageGrid) -> np.ndarray:
    """Decide which events (n,) have a sweep over the band of less than `SHORT_SWEEP` widths."""
    dms, widths_ms = _columns(events, "dm_pc_cm3", "width_ms")
    sweeps_s = (grid.sweep(dms) - grid.top_delay(dms)) * grid.tsamp
    return sweeps_s < SHORT_SWEEP * widths_ms / 1e3


def responses_to(forward: Sequence[Event], backward: Sequence[Event], grid: PageGrid, duration_s: float) -> np.ndarray:
    """Find the events of the backward search that bright events of the forward search explain.

    A pulse whose sweep is s_1, summed along a track of sweep s_2 in the other direction, is smeared over s_1 + s_2: its
    S/N falls at least by the square root of width / (width + s_1 + s_2), as in `event_merging`. An event is a response
    if its track crosses that of an event of the forward search and its S/N is at most `SMEARED` times this one. Events
    of the forward search with a short sweep explain nothing, since they may be interference, which is false in either
    direction.

    Parameters
    ----------
    forward, backward : sequence of Event
        Times of the latter count from the end of the observation.
    grid : PageGrid
        Band and sampling of the search.
    duration_s : float
        Length of the observation in seconds.

    Returns
    -------
    (n_backward,) ndarray of bool
    """
    bright = [event for event, short in zip(forward, has_short_sweep(forward, grid), strict=True) if not short]
    times, dms, snrs, widths_ms = _columns(bright, "time_s", "dm_pc_cm3", "snr", "width_ms")
    widths_s, sweeps_s = widths_ms / 1e3, grid.sweep(dms) * grid.tsamp
    explained = np.zeros(len(backward), dtype=bool)
    for number, event in enumerate(backward):
        time_s, sweep_s = duration_s - event.time_s, float(grid.sweep(event.dm_pc_cm3)) * grid.tsamp
        margin = 2 * widths_s + event.width_ms / 1e3
        # The bright event sweeps from `times` on to later times, the other one from time_s back to earlier times.
        crosses = (times - margin <= time_s) & (time_s - sweep_s <= times + sweeps_s + margin)
        smeared = SMEARED * snrs * np.sqrt(widths_s / (widths_s + sweeps_s + sweep_s))
        explained[number] = bool((crosses & (event.snr <= smeared)).any())
    return explained


def _columns(events: Sequence[Event], *names: str) -> np.ndarray:
    """Attributes of events as rows (len(names), n)."""
    return np.array([[getattr(event, name) for event in events] for name in names], dtype=float)
