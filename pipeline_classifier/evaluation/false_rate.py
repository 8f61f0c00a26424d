"""False events per hour of a page classifier and a candidate classifier, counted on observations without pulses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.classifiers import Classifiers
from pipeline_classifier.detection.decision import EVENT_THRESHOLDS, decide
from pipeline_classifier.detection.search import LayerResult, events_by_threshold
from pipeline_classifier.evaluation.evaluation_table import INTERVAL_HEADING, rates_not_measured
from pipeline_classifier.events import Event
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages, pages_of
from pipeline_classifier.simulation.observation import read_truth, truth_path
from single_pulse_classifier_training.calibration import SECONDS_PER_HOUR, rate_text
from single_pulse_classifier_training.cli import InputError


@dataclass(frozen=True)
class FalseEvents:
    """Events of observations without pulses.

    Attributes
    ----------
    n_observations : int
    counts : dict of float to int
        Number of events at each candidate probability.
    probabilities : (n_pages,) ndarray of float32
        Probabilities of the pages of the first layer.
    duration_s : float
        Seconds searched.
    """

    n_observations: int
    counts: dict[float, int]
    probabilities: np.ndarray
    duration_s: float

    @property
    def hours(self) -> float:
        """Hours searched."""
        return self.duration_s / SECONDS_PER_HOUR

    def thresholds(self) -> list[dict[str, float]]:
        """Return the thresholds as they are stored in the checkpoint of the candidate classifier.

        No rate is below one event in all hours, which is that of a threshold without an event.
        """
        return [
            {
                "threshold": threshold,
                "false_per_hour": max(count, 1) / self.hours,
                "false_positives": count,
                "hours": self.hours,
            }
            for threshold, count in self.counts.items()
        ]


def pulse_free_hours(paths: Sequence[str | Path], ifs: int | str) -> float:
    """Return the hours of observations without pulses.

    Parameters
    ----------
    paths : sequence of str or Path
    ifs : int or "sum"
        As in the config.

    Raises
    ------
    InputError
        If an observation is given twice, has pulses in its truth table or cannot be read.
    """
    seen: set[Path] = set()
    hours = 0.0
    for path in paths:
        if (real := Path(path).resolve()) in seen:
            raise InputError(f"--pulse-free {path}: every observation must be given once, got it twice")
        seen.add(real)
        hours += Filterbank(path, ifs).duration_s / SECONDS_PER_HOUR
        if truth_path(path).exists() and (n := len(read_truth(truth_path(path)))):
            raise InputError(f"--pulse-free {path}: must be an observation without pulses, got {n} in its truth table")
    return hours


def count_false_events(paths: Iterable[str | Path], config: PipelineConfig, classifiers: Classifiers) -> FalseEvents:
    """Search observations without pulses, and count their events at `EVENT_THRESHOLDS` and the event threshold.

    Parameters
    ----------
    paths : iterable of str or Path
    config : PipelineConfig
    classifiers : Classifiers
        With a candidate classifier.

    Raises
    ------
    InputError
        If the sweep of an observation is not known, so that its candidates cannot be classified.
    """
    counts: dict[float, int] = {}
    probabilities, duration_s = [], 0.0
    for path in tqdm(paths, desc="pulse-free observations", unit="file", disable=None):
        source, layers, events = search_at_thresholds(path, config, classifiers)
        for threshold, found in events.items():
            counts[threshold] = counts.get(threshold, 0) + len(found)
        probabilities.append(layers[0].probabilities)
        duration_s += source.duration_s
    return FalseEvents(len(probabilities), counts, np.concatenate(probabilities), duration_s)


def search_at_thresholds(
    path: str | Path | Sequence[str | Path], config: PipelineConfig, classifiers: Classifiers
) -> tuple[FilterbankPages, list[LayerResult], dict[float, list[Event]]]:
    """Search an observation at `EVENT_THRESHOLDS` and at the event threshold of the config or the model.

    Returns
    -------
    source : FilterbankPages
    layers : list of LayerResult
    events : dict of float to list of Event
        Events at each threshold, ascending.

    Raises
    ------
    InputError
        If the sweep of the observation is not known, so that its candidates cannot be classified.
    """
    config = config.model_copy(update={"max_false_per_hour": None})
    source = pages_of(path, config.front_end())
    decision = decide(config, classifiers, source.layers)
    if decision.event_threshold is None:
        raise InputError(f"{source.files[0]}: the channels must have a known sweep, or candidates cannot be classified")
    thresholds = sorted({*EVENT_THRESHOLDS, decision.event_threshold})
    layers, events = events_by_threshold(source, classifiers, decision, thresholds, config.threads)
    return source, layers, events


def false_events_table(
    false: FalseEvents,
    what: str = "pulse-free observations",
    columns: Mapping[str, Mapping[float, int]] = MappingProxyType({}),
) -> list[str]:
    """Return the false events at each threshold, and the numbers in further columns, as lines of text."""
    lines = [f"{what:>28} {false.n_observations}, {false.hours:.4g} hours"]
    headings = "".join(f"  {name:>14}" for name in columns)
    lines.append(f"{'events from probability':>28} {'false events':>12}  {INTERVAL_HEADING:>26}{headings}")
    for threshold, count in false.counts.items():
        numbers = "".join(f"  {column[threshold]:>14}" for column in columns.values())
        lines.append(f"{threshold:>28.4g} {count:>12}  {rate_text(count, false.hours):>26}{numbers}")
    return lines + rates_not_measured(false.hours)
