"""DM-time planes of pulses, the events found on their pages, and events of given numbers, for tests of the detection."""

from collections.abc import Sequence

import numpy as np

from pipeline_classifier.detection.decision import Decision
from pipeline_classifier.detection.event_finder import EventFinder
from pipeline_classifier.detection.page_classifier import Classified
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.frontend.sources import Layer

N_TIME = 64
GRID = PageGrid(np.arange(32.0), N_TIME, tsamp=1e-3, tstart=59000.25, f_top=1500.0, f_bottom=1300.0)
FREQUENCIES = np.linspace(1500.0, 1300.0, 1024)


def plane(n_pages: int, pulses: Sequence[tuple[int, int, int, float]], seed: int = 0) -> np.ndarray:
    """Unit noise (32, n) with boxcars (row, first column, width, S/N)."""
    values = np.random.default_rng(seed).standard_normal((32, n_pages * N_TIME)).astype(np.float32)
    for row, column, width, snr in pulses:
        values[row, column : column + width] += snr / np.sqrt(width)
    return values


def dispersed_pulse(
    grid: PageGrid, n: int, dm: float, column: int, width: int, snr: float, frequencies: np.ndarray = FREQUENCIES
) -> np.ndarray:
    """A boxcar in channels of `FREQUENCIES`, dedispersed at every trial DM: (n_dm, n), without noise."""
    values = np.zeros((len(grid.dms), n), np.float32)
    late = np.rint(dispersion_delay(dm - grid.dms[:, None], frequencies, FREQUENCIES[0]) / grid.tsamp).astype(int)
    for row, firsts in enumerate(column + late):
        counts = np.bincount(firsts[(firsts >= 0) & (firsts < n)], minlength=n)
        values[row] = np.convolve(counts, np.full(width, snr / width**0.5 / len(frequencies)))[:n]
    return values


def classified(probabilities: np.ndarray, snr: float = np.inf) -> Classified:
    """What is known of pages of these probabilities, all of which pass the gate."""
    return Classified(probabilities, np.full(len(probabilities), snr, np.float32), 0, 0)


def find(
    values: np.ndarray,
    positive: Sequence[int],
    batch_size: int,
    starts: np.ndarray | None = None,
    grid: PageGrid = GRID,
) -> list[Event]:
    """Find the events on the pages ``positive`` of a plane; the pages are classified in batches."""
    n_time = grid.n_time
    starts = np.arange(0, values.shape[1], n_time) if starts is None else starts
    probabilities = np.where(np.isin(np.arange(len(starts)), positive), 0.9, 0.1).astype(np.float32)
    finder, events = EventFinder(Layer(grid, np.empty(0, np.int64)), Decision(threshold=0.5)), []
    for first in range(0, len(starts), batch_size):
        chosen = slice(first, first + batch_size)
        batch = PageBatch(values, starts[chosen], starts[chosen], n_time, first)
        events += finder.add(batch, classified(probabilities[chosen]))
    return events + finder.finish()


def event(time_s: float, dm: float, snr: float, page: int = 0, **changes: float) -> Event:
    """An event of one page and, unless changed, a width of 1 ms."""
    return Event(
        **{
            "time_s": time_s,
            "mjd": 59000.0,
            "dm_pc_cm3": dm,
            "snr": snr,
            "width_ms": 1.0,
            "probability": 0.9,
            "first_page": page,
            "last_page": page,
            "width_samples": 1,
        }
        | changes
    )
