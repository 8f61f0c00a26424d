"""Known events of an observation, from truth tables or candidate lists, and the samples in which they show."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_classifier.formats.candidate_lists import read_transientx
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.simulation.pulses import Pulse
from pipeline_classifier.times import SECONDS_PER_DAY
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

VISIBLE_SNR = 1.5
"""S/N below which a pulse smeared at a wrong trial DM is not visible in a page. Chosen by hand, on the safe side."""


@dataclass(frozen=True)
class KnownEvents:
    """Events of one observation, all attributes (K,).

    Attributes
    ----------
    sample : ndarray of int64
        Arrival at the top channel.
    dm : ndarray of float
        pc cm^-3.
    snr : ndarray of float
    width : ndarray of float
        Samples.
    is_pulse : ndarray of bool
    labelled : ndarray of bool
        Whether the event gives images; pages of pulse-free sky avoid the others too.
    """

    sample: np.ndarray
    dm: np.ndarray
    snr: np.ndarray
    width: np.ndarray
    is_pulse: np.ndarray
    labelled: np.ndarray


def events_from_truth(pulses: list[Pulse], grid: PageGrid) -> KnownEvents:
    """Return the pulses of a truth table as events, in samples of ``grid``."""
    time_s = np.array([pulse.time_s for pulse in pulses], dtype=float)
    width_ms = np.array([max(pulse.width_ms, 1e3 * grid.tsamp) for pulse in pulses], dtype=float)
    return KnownEvents(
        np.floor(time_s / grid.tsamp).astype(np.int64),
        np.array([pulse.dm_pc_cm3 for pulse in pulses], dtype=float),
        np.array([pulse.snr for pulse in pulses], dtype=float),
        width_ms / 1e3 / grid.tsamp,
        np.ones(len(pulses), dtype=bool),
        np.ones(len(pulses), dtype=bool),
    )


def events_from_cands(
    path: Path, grid: PageGrid, pulse_dm: tuple[float, float], artefact_dm: tuple[float, float]
) -> KnownEvents:
    """Candidates of a TransientX list; those in the two DM windows are labelled."""
    mjd, dm, width_ms, snr = read_transientx(path)
    is_pulse = (dm >= pulse_dm[0]) & (dm <= pulse_dm[1])
    labelled = is_pulse | ((dm >= artefact_dm[0]) & (dm <= artefact_dm[1]))
    if not labelled.any():
        raise InputError(
            f"{path}: a candidate must have a DM in --pulse-dm {list(pulse_dm)} or --artefact-dm {list(artefact_dm)}, "
            f"got none of {len(dm)}"
        )
    if not is_pulse.any():
        logger.warning(
            "%s: no candidate is a pulse, with a DM in --pulse-dm %s; the brightest of %d has a DM of %g",
            *(path, list(pulse_dm), len(dm), dm[np.argmax(snr)]),
        )
    sample = np.floor((mjd - grid.tstart) * SECONDS_PER_DAY / grid.tsamp).astype(np.int64)
    return KnownEvents(sample, dm, snr, np.maximum(1.0, width_ms / 1e3 / grid.tsamp), is_pulse, labelled)


def event_extent(events: KnownEvents, grid: PageGrid) -> tuple[np.ndarray, np.ndarray]:
    """First and last sample (K,) at which any row of a page shows an event.

    At a wrong trial DM a pulse is smeared over the difference in sweep, and its S/N falls with the square root of
    width / sweep: below `VISIBLE_SNR` once the sweep exceeds (snr / VISIBLE_SNR)^2 widths.
    """
    faintest = 2 * events.width * np.maximum(1.0, events.snr / VISIBLE_SNR) ** 2
    before = np.minimum(faintest, np.abs(grid.sweep(events.dm - grid.dms[-1]))) + 3 * events.width
    after = np.minimum(faintest, np.abs(grid.sweep(events.dm - grid.dms[0]))) + 3 * events.width
    return np.floor(events.sample - before), np.ceil(events.sample + after)


def pulse_free_starts(events: KnownEvents, grid: PageGrid, nsamples: int, rng: np.random.Generator) -> np.ndarray:
    """First samples (N,) of pages on a regular grid that show no event."""
    first, last = event_extent(events, grid)
    regular = np.arange(rng.integers(0, grid.n_time), nsamples - grid.n_time + 1, grid.n_time)
    # A page is pulse-free when as many extents began before its end as ended before its start.
    begun = np.searchsorted(np.sort(first), regular + grid.n_time, side="right")
    ended = np.searchsorted(np.sort(last), regular, side="left")
    return regular[begun == ended]


def origin_of(source: FilterbankPages, truth: str | Path) -> dict[str, Any]:
    """Describe an observation of a training set, with the name of the file that lists its events."""
    start_mjd = source.grid.tstart
    return {
        "file": source.files[0].name,
        "start_mjd": start_mjd if math.isfinite(start_mjd) else None,
        "duration_s": source.duration_s,
        "truth": Path(truth).name,
    }
