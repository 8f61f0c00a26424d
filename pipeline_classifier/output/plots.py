"""Pictures of events. matplotlib is loaded when the first one is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from pipeline_classifier.events import Event
from single_pulse_classifier_training.runtime import atomic_writer

if TYPE_CHECKING:
    from pipeline_classifier.frontend.sources import Cutout, Source
    from pipeline_classifier.output.saliency import Saliency

MOST_PICTURES = 1000
"""Largest number of pictures of one search, those of the brightest events. A picture takes about half a second and has
100 kB; an hour of a pulsar with a period of 33 ms would otherwise be drawn for half a day. Chosen by hand."""
MOST_SUB_BANDS = 64
SALIENCY_HEIGHT = 3.2  # inches


def event_picture(name: str, number: int) -> str:
    """File name of the picture of an event, counted from 1."""
    return f"event_{name}_{number:04d}.png"


def brightest(events: Sequence[Event], most: int) -> list[int]:
    """Return the numbers, counted from 1, of the events with the highest S/N, ascending; at most ``most``."""
    return sorted(sorted(range(1, len(events) + 1), key=lambda number: -events[number - 1].snr)[:most])


def plot_event(path: Path, event: Event, source: "Source", saliency: "Saliency | None" = None) -> None:
    """Draw one event as PNG: profile, dedispersed dynamic spectrum (where there are channels), DM-time plane.

    Parameters
    ----------
    path : Path
    event : Event
    source : Source
        Gives the cutout around the event.
    saliency : Saliency, optional
        Adds the page that the network got, and the parts of it that are evidence for or against a pulse.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cutout = source.cutout(event)
    known_time = np.isfinite(source.grid.tsamp)
    unit = source.grid.tsamp * 1e3 if known_time else 1.0
    edges = ((cutout.start - 0.5) * unit, (cutout.start + cutout.plane.shape[1] - 0.5) * unit)
    heights = [1, 2, 2] if cutout.spectrum is not None else [1, 2]
    height = 2.2 + 1.6 * sum(heights) * 0.85
    figure = Figure(figsize=(6.4, height + (SALIENCY_HEIGHT if saliency else 0)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above = figure
    if saliency:
        above, below = figure.subfigures(2, 1, height_ratios=[height, SALIENCY_HEIGHT])  # type: ignore[misc]
        _draw_saliency(below.subplots(), saliency, event)
    panels = above.subplots(len(heights), 1, sharex=True, height_ratios=heights)

    row = int(np.argmin(np.abs(cutout.dms - event.dm_pc_cm3))) if np.isfinite(cutout.dms).all() else None
    profile = cutout.plane.max(axis=0) if row is None else cutout.plane[row]
    times = (cutout.start + np.arange(len(profile))) * unit
    panels[0].step(times, profile, where="mid", color="black", linewidth=0.9)
    if known_time:
        half_width = event.width_samples * event.time_downsample / 2 * unit
        panels[0].axvspan(-half_width, half_width, color="tab:orange", alpha=0.3, lw=0)
    panels[0].set_ylabel("S/N per sample" if known_time else "intensity")
    if cutout.spectrum is not None:
        _draw_spectrum(panels[1], cutout, event, edges)
    _draw_plane(panels[-1], cutout, event, edges)
    panels[-1].set_xlabel("time from the pulse (ms)" if known_time else "time from the page's centre (samples)")
    panels[-1].set_xlim(edges)
    figure.suptitle(_title(event, source.name), fontsize=9)
    with atomic_writer(path) as file:
        figure.savefig(file, format="png")


def _title(event: Event, name: str) -> str:
    name = name.replace("$", r"\$")  # matplotlib would read mathematics between two of them
    first = f"{name}   page {event.first_page}" + (f"-{event.last_page}" if event.last_page > event.first_page else "")
    if not np.isfinite(event.time_s):
        return f"{first}\nS/N {event.snr:.1f}   probability {event.probability:.3f}"
    return (
        f"{first}   MJD {event.mjd:.8f}   t = {event.time_s:.4f} s\n"
        f"DM {event.dm_pc_cm3:.2f} pc cm$^{{-3}}$   S/N {event.snr:.1f}   width {event.width_ms:.2f} ms   "
        f"probability {event.probability:.3f}"
    )


def _draw_spectrum(axis, cutout: "Cutout", event: Event, edges: tuple[float, float]) -> None:
    """Channels averaged into sub-bands, and samples into bins of a third of the pulse, so that a weak pulse shows."""
    assert cutout.spectrum is not None and cutout.frequencies is not None
    nchans, n = cutout.spectrum.shape
    together = -(-nchans // MOST_SUB_BANDS)
    bin_width = max(1, event.width_samples // 3)
    whole = np.full((-(-nchans // together) * together, n // bin_width * bin_width), np.nan, dtype=np.float32)
    whole[:nchans] = cutout.spectrum[:, : whole.shape[1]]
    blocks = whole.reshape(-1, together, whole.shape[1] // bin_width, bin_width)
    known = np.isfinite(blocks)
    image = np.where(known, blocks, 0).sum(axis=(1, 3)) / np.sqrt(np.maximum(known.sum(axis=(1, 3)), 1))
    image[~known.any(axis=(1, 3))] = np.nan
    channel = (cutout.frequencies[0] - cutout.frequencies[-1]) / max(1, nchans - 1)
    top = cutout.frequencies[0] + channel / 2
    right = edges[0] + (edges[1] - edges[0]) * whole.shape[1] / n
    extent = (edges[0], right, top - channel * whole.shape[0], top)
    axis.set_facecolor("0.85")
    axis.imshow(image, aspect="auto", extent=extent, cmap="viridis", vmin=-2, vmax=5, interpolation="nearest")
    axis.set_ylabel("frequency (MHz)")


def _draw_plane(axis, cutout: "Cutout", event: Event, edges: tuple[float, float]) -> None:
    dms = cutout.dms
    known_dm = np.isfinite(dms).all()
    half_step = (dms[-1] - dms[0]) / (len(dms) - 1) / 2 if known_dm else 0.5
    bottom, top = (dms[0] - half_step, dms[-1] + half_step) if known_dm else (-0.5, len(dms) - 0.5)
    low, high = np.percentile(cutout.plane, (1, 99.9))
    extent = (*edges, bottom, top)
    axis.imshow(
        cutout.plane,
        aspect="auto",
        origin="lower",
        extent=extent,
        cmap="viridis",
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    if known_dm:
        axis.axhline(event.dm_pc_cm3, xmax=0.04, color="tab:orange")
        axis.axhline(event.dm_pc_cm3, xmin=0.96, color="tab:orange")
    axis.set_ylabel("DM (pc cm$^{-3}$)" if known_dm else "DM row")


def _draw_saliency(axis, saliency: "Saliency", event: Event) -> None:
    """The page in grey; over it, in red and blue, where hiding a part lowers and raises the log-odds of a pulse."""
    from matplotlib.colors import ListedColormap

    grid = saliency.layer.grid
    known_time, known_dm = np.isfinite(grid.tsamp), np.isfinite(grid.dms).all()
    left, right = -grid.n_time / 2, grid.n_time / 2
    if known_time:
        start = saliency.layer.starts[saliency.page]
        left, right = ((edge * grid.tsamp - event.time_s) * 1e3 for edge in (start, start + grid.n_time))
    half_step = (grid.dms[-1] - grid.dms[0]) / (len(grid.dms) - 1) / 2 if known_dm else 0.5
    bottom, top = (grid.dms[0], grid.dms[-1]) if known_dm else (0, len(grid.dms) - 1)
    extent = (left, right, bottom - half_step, top + half_step)
    axis.imshow(saliency.image, aspect="auto", extent=extent, cmap="gray", interpolation="nearest")
    most = float(np.abs(saliency.drop).max()) or 1.0
    level = np.linspace(-1, 1, 255)[:, None]
    colour = np.where(level > 0, (0.9, 0.1, 0.0), (0.1, 0.45, 1.0))
    overlay = ListedColormap(np.hstack([colour, 0.7 * np.abs(level)]))
    drawn = axis.imshow(
        saliency.drop, aspect="auto", extent=extent, cmap=overlay, vmin=-most, vmax=most, interpolation="bilinear"
    )
    axis.figure.colorbar(drawn, ax=axis, label="decrease of log-odds", pad=0.02)
    axis.set_title(f"input of the network, page {saliency.page}: red is evidence for a pulse, blue against", fontsize=9)
    axis.set_xlabel("time from the pulse (ms)" if known_time else "time from the page's centre (samples)")
    axis.set_ylabel("DM (pc cm$^{-3}$)" if known_dm else "DM row")


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
