"""Names and choice of the pictures of events, and the overview of a search."""

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from pipeline_classifier.events import Event


def event_picture(name: str, number: int) -> str:
    """File name of the picture of an event, counted from 1."""
    return f"event_{name}_{number:04d}.png"


def brightest(events: Sequence[Event], most: int) -> list[int]:
    """Return the numbers, counted from 1, of the events with the highest S/N, ascending; at most ``most``."""
    return sorted(sorted(range(1, len(events) + 1), key=lambda number: -events[number - 1].snr)[:most])


def foremost(events: Sequence[Event], most: int | None) -> list[int]:
    """Return the numbers, counted from 1, of the events of which pictures are drawn, the first one first.

    The most probable events come first, and of those of equal probability, to two decimals, the brightest.

    Parameters
    ----------
    events : sequence of Event
    most : int or None
        Largest number of pictures; None for all.
    """
    ranks = [rank(event, number) for number, event in enumerate(events, start=1)]
    return [number for *_, number in sorted(ranks)][:most]


def rank(event: Event, number: int) -> tuple[float, float, int]:
    """Return the key by which `foremost` sorts events."""
    return -round(event.probability, 2), -event.snr, number


def plot_overview(
    file: BinaryIO,
    events: Sequence[Event],
    probabilities: np.ndarray,
    threshold: float,
    channels: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Draw a search as PNG: events, histogram of page probabilities, and channels in use where known.

    Parameters
    ----------
    file : binary file
    events : sequence of Event
    probabilities : (N,) ndarray
        Probability of every page; -1 where not classified.
    threshold : float
        Minimum probability for a page to be classified as a pulse.
    channels : ((nchans,) ndarray, (nchans,) ndarray), optional
        Frequencies in MHz, and the fraction of the observation in which each was in use.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic("aa;bc" if channels else "aa;bb", height_ratios=[3, 2])
    _draw_events(panels["a"], events)
    known = probabilities[probabilities >= 0]
    panels["b"].hist(known, bins=50, range=(0, 1), color="tab:blue")
    panels["b"].set(xlabel="page probability", ylabel="pages", xlim=(0, 1))
    panels["b"].set_yscale("log" if len(known) else "linear")
    panels["b"].axvline(threshold, color="tab:orange", label=f"page threshold {threshold:.4g}")
    panels["b"].legend(fontsize=8, loc="upper center")
    if channels:
        frequencies, in_use = channels
        panels["c"].fill_between(frequencies, 100 * in_use, step="mid", color="tab:blue", lw=0)
        low, high = sorted((frequencies[0], frequencies[-1]))
        panels["c"].set(xlabel="frequency (MHz)", ylabel="channel in use (%)", ylim=(0, 105))
        panels["c"].set_xlim((low, high) if low < high else None)
    figure.savefig(file, format="png")


def _draw_events(axis, events: Sequence[Event]) -> None:
    """DM against time; where these are not known, S/N against the number of the page."""
    from matplotlib.colors import LogNorm

    events = sorted(events, key=lambda event: -event.snr)  # small circles over large ones
    snr, width = np.array([event.snr for event in events]), np.array([event.width_ms for event in events])
    known_time = bool(events) and np.isfinite(events[0].time_s)
    known_dm = bool(events) and np.isfinite(events[0].dm_pc_cm3)
    x = [event.time_s if known_time else event.first_page for event in events]
    y = [event.dm_pc_cm3 for event in events] if known_dm else snr
    colour = {"c": width, "norm": LogNorm(width.min(), 1.001 * width.max()), "cmap": "viridis"} if known_time else {}
    drawn = axis.scatter(x, y, s=_area(snr), alpha=0.8, edgecolors="black", linewidths=0.5, **colour)
    if known_time:
        ticks = np.geomspace(width.min(), width.max(), 6)
        axis.figure.colorbar(drawn, ax=axis, label="width (ms)", pad=0.01, ticks=ticks, format="%.3g").minorticks_off()
    for size in (10, 30, 100):
        axis.scatter([], [], s=_area(size), color="none", edgecolors="black", label=f"S/N {size}")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 1.14), ncols=3, frameon=False)
    axis.set_xlabel("time (s)" if known_time or not events else "page")
    axis.set_ylabel("DM (pc cm$^{-3}$)" if known_dm or not events else "S/N")
    axis.grid(alpha=0.3)


def _area(snr: np.ndarray | float) -> np.ndarray:
    """Area of a circle in points squared: proportional to S/N within readable limits."""
    return np.clip(3.0 * np.asarray(snr), 10, 600)
