"""Pictures of events. matplotlib is loaded when the first one is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline_classifier.catalogue import Event
from single_pulse_classifier_training.runtime import atomic_writer

if TYPE_CHECKING:
    from pipeline_classifier.sources import ArrayPages, Cutout, FilterbankPages

MOST_SUBBANDS = 64


def plot_event(path: Path, event: Event, source: "FilterbankPages | ArrayPages") -> None:
    """Draw one event as PNG: profile, dedispersed dynamic spectrum (where there are channels), DM-time plane."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cutout = source.cutout(event)
    known_time = np.isfinite(source.grid.tsamp)
    unit = source.grid.tsamp * 1e3 if known_time else 1.0
    edges = ((cutout.start - 0.5) * unit, (cutout.start + cutout.plane.shape[1] - 0.5) * unit)
    heights = [1, 2, 2] if cutout.spectrum is not None else [1, 2]
    figure = Figure(figsize=(6.4, 2.2 + 1.6 * sum(heights) * 0.85), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)

    row = int(np.argmin(np.abs(cutout.dms - event.dm_pc_cm3))) if np.isfinite(cutout.dms).all() else None
    profile = cutout.plane.max(axis=0) if row is None else cutout.plane[row]
    times = (cutout.start + np.arange(len(profile))) * unit
    panels[0].step(times, profile, where="mid", color="black", linewidth=0.9)
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
    first = f"{name}   page {event.first_page}" + (f"-{event.last_page}" if event.last_page > event.first_page else "")
    if not np.isfinite(event.time_s):
        return f"{first}\nS/N {event.snr:.1f}   probability {event.probability:.3f}"
    return (
        f"{first}   MJD {event.mjd:.8f}   t = {event.time_s:.4f} s\n"
        f"DM {event.dm_pc_cm3:.2f} pc cm$^{{-3}}$   S/N {event.snr:.1f}   width {event.width_ms:.2f} ms   "
        f"probability {event.probability:.3f}"
    )


def _draw_spectrum(axis, cutout: "Cutout", event: Event, edges: tuple[float, float]) -> None:
    """Channels averaged into subbands, and samples into bins of a third of the pulse, so that a weak pulse shows."""
    nchans, n = cutout.spectrum.shape
    together = -(-nchans // MOST_SUBBANDS)
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
