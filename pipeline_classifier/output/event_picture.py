"""The picture of an event. matplotlib is loaded when the first one is drawn."""

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.frontend.sources import Cutout

MOST_SUB_BANDS = 64
DPI = 110
WIDTH = 6.4  # inches, as all lengths below
LEFT, RIGHT, BELOW, ABOVE, GAP = 0.76, 0.06, 0.48, 0.46, 0.13
PANEL_HEIGHT = 1.57  # of the profile; an image has twice this height
SALIENCY_HEIGHT, SALIENCY_TITLE, COLOUR_BAR = 3.2, 0.25, 0.17
PNG_LEVEL = 1
"""Compression level of zlib; a higher one takes longer than the drawing and saves a few per cent."""


@dataclass(frozen=True)
class Saliency:
    """Saliency of the page of an event.

    Attributes
    ----------
    grid : PageGrid
        Grid of the layer of the page.
    start : int
        First column of the page, in samples of ``grid.tsamp``.
    page : int
        Number of the page in the layer.
    image : (resolution, resolution) ndarray of uint8
        Input of the network; row 0 = highest DM.
    drop : (resolution, resolution) ndarray of float32
        Decrease of the log-odds of a pulse when that part is hidden.
    """

    grid: PageGrid
    start: int
    page: int
    image: np.ndarray
    drop: np.ndarray


@dataclass(frozen=True)
class EventPicture:
    """All that a picture shows.

    Attributes
    ----------
    name : str
        Name of the observation.
    event : Event
    cutout : Cutout
    tsamp : float
        Sampling time of the cutout in seconds; NaN if it is not known.
    saliency : Saliency, optional
        Adds the page that the network got, and the parts of it that are evidence for or against a pulse.
    """

    name: str
    event: Event
    cutout: Cutout
    tsamp: float
    saliency: Saliency | None = None


class EventFigures:
    """Draws pictures of events into figures that are made once and filled again.

    A picture does not depend on those that were drawn before it.
    """

    def __init__(self) -> None:
        self._figures: dict[tuple[bool, bool], _EventFigure] = {}

    def png(self, picture: EventPicture) -> bytes:
        """Draw profile, dedispersed dynamic spectrum (where there are channels), and DM-time plane."""
        kind = (picture.cutout.spectrum is not None, picture.saliency is not None)
        if kind not in self._figures:
            self._figures[kind] = _EventFigure(*kind)
        return _encoded(self._figures[kind].pixels(picture))


class _EventFigure:
    """The artists of a picture with or without a spectrum and a saliency map, at fixed places."""

    def __init__(self, has_spectrum: bool, has_saliency: bool) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        heights = [1, 2, 2] if has_spectrum else [1, 2]
        below = BELOW + (SALIENCY_HEIGHT if has_saliency else 0)
        height = below + ABOVE + PANEL_HEIGHT * sum(heights) + GAP * (len(heights) - 1)
        self.figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.title = self.figure.text(0.5, 1 - 0.05 / height, "", ha="center", va="top", fontsize=9)
        top = height - ABOVE
        panels: list[Any] = []
        for factor in heights:
            bottom = top - factor * PANEL_HEIGHT
            panels.append(self._axes(bottom, top, WIDTH - RIGHT, panels[0] if panels else None))
            panels[-1].tick_params(labelbottom=False)
            top = bottom - GAP
        panels[-1].tick_params(labelbottom=True)
        self.profile_axes, self.plane_axes = panels[0], panels[-1]
        (self.profile,) = panels[0].plot([], [], drawstyle="steps-mid", color="black", linewidth=0.9)
        self.width = panels[0].axvspan(0, 1, color="tab:orange", alpha=0.3, lw=0)
        if has_spectrum:
            self.spectrum_axes = panels[1]
            panels[1].set_facecolor("0.85")
            panels[1].set_ylabel("frequency (MHz)")
            self.spectrum = _image(panels[1], cmap="viridis", vmin=-2, vmax=5)
        self.plane = _image(panels[-1], cmap="viridis", origin="lower")
        self.dm_marks = [panels[-1].axhline(0, xmin=left, xmax=left + 0.04, color="tab:orange") for left in (0.0, 0.96)]
        if has_saliency:
            self._make_saliency()

    def _axes(self, bottom: float, top: float, right: float, shared: Any = None) -> Any:
        width, height = self.figure.get_size_inches()
        place = (LEFT / width, bottom / height, (right - LEFT) / width, (top - bottom) / height)
        axes = self.figure.add_axes(place, sharex=shared)
        axes.yaxis.set_label_coords(-0.55 / (right - LEFT), 0.5)
        axes.xaxis.set_label_coords(0.5, -0.28 / (top - bottom))
        return axes

    def _make_saliency(self) -> None:
        from matplotlib.colors import ListedColormap

        right = WIDTH - 1.1
        top = SALIENCY_HEIGHT - SALIENCY_TITLE
        self.saliency_axes = self._axes(BELOW, top, right)
        self.saliency_title = self.saliency_axes.set_title("", fontsize=9)
        self.page = _image(self.saliency_axes, cmap="gray")
        level = np.linspace(-1, 1, 255)[:, None]
        colour = np.where(level > 0, (0.9, 0.1, 0.0), (0.1, 0.45, 1.0))
        overlay = ListedColormap(np.hstack([colour, 0.7 * np.abs(level)]))
        self.drop = _image(self.saliency_axes, cmap=overlay, interpolation="bilinear")
        width, height = self.figure.get_size_inches()
        bar = self.figure.add_axes(((right + 0.1) / width, BELOW / height, COLOUR_BAR / width, (top - BELOW) / height))
        self.figure.colorbar(self.drop, cax=bar, label="decrease of log-odds")

    def pixels(self, picture: EventPicture) -> np.ndarray:
        """Fill the artists, draw, and return the RGBA image; it is valid until the next call."""
        event, cutout = picture.event, picture.cutout
        known_time, known_dm = bool(np.isfinite(picture.tsamp)), bool(np.isfinite(cutout.dms).all())
        unit = picture.tsamp * 1e3 if known_time else 1.0
        edges = ((cutout.start - 0.5) * unit, (cutout.start + cutout.plane.shape[1] - 0.5) * unit)
        self.title.set_text(_title(event, picture.name))
        self._fill_profile(picture, unit, known_time, known_dm)
        if cutout.spectrum is not None:
            image, extent = _sub_bands(cutout, event, edges)
            _fill(self.spectrum, image, extent)
            self.spectrum_axes.set_ylim(extent[2:])
        bottom, top = -0.5, len(cutout.dms) - 0.5
        if known_dm:
            half_step = (cutout.dms[-1] - cutout.dms[0]) / (len(cutout.dms) - 1) / 2
            bottom, top = cutout.dms[0] - half_step, cutout.dms[-1] + half_step
        _fill(self.plane, cutout.plane, (*edges, bottom, top), np.percentile(cutout.plane, (1, 99.9)))
        for mark in self.dm_marks:
            mark.set_ydata([event.dm_pc_cm3] * 2)
            mark.set_visible(known_dm)
        time_label = "time from the pulse (ms)" if known_time else "time from the page's centre (samples)"
        dm_label = "DM (pc cm⁻³)" if known_dm else "DM row"
        self.plane_axes.set(xlabel=time_label, ylabel=dm_label, xlim=edges, ylim=(bottom, top))
        if picture.saliency:
            self._fill_saliency(picture.saliency, event, time_label, dm_label)
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())

    def _fill_profile(self, picture: EventPicture, unit: float, known_time: bool, known_dm: bool) -> None:
        event, cutout = picture.event, picture.cutout
        row = int(np.argmin(np.abs(cutout.dms - event.dm_pc_cm3))) if known_dm else None
        profile = cutout.plane.max(axis=0) if row is None else cutout.plane[row]
        self.profile.set_data((cutout.start + np.arange(len(profile))) * unit, profile)
        low, high = float(profile.min()), float(profile.max())
        margin = 0.05 * (high - low) or 0.05 * (abs(high) or 1.0)
        self.profile_axes.set(
            ylabel="S/N per sample" if known_time else "intensity", ylim=(low - margin, high + margin)
        )
        self.width.set_visible(known_time)
        if known_time:
            half_width = event.width_samples * event.time_downsample / 2 * unit
            self.width.set(x=-half_width, width=2 * half_width)

    def _fill_saliency(self, saliency: Saliency, event: Event, time_label: str, dm_label: str) -> None:
        """The page in grey; over it, in red and blue, where hiding a part lowers and raises the log-odds of a pulse."""
        grid = saliency.grid
        left, right = -grid.n_time / 2, grid.n_time / 2
        if np.isfinite(grid.tsamp):
            start = saliency.start
            left, right = ((edge * grid.tsamp - event.time_s) * 1e3 for edge in (start, start + grid.n_time))
        known_dm = np.isfinite(grid.dms).all()
        half_step = (grid.dms[-1] - grid.dms[0]) / (len(grid.dms) - 1) / 2 if known_dm else 0.5
        bottom, top = (grid.dms[0], grid.dms[-1]) if known_dm else (0, len(grid.dms) - 1)
        extent = (left, right, bottom - half_step, top + half_step)
        most = float(np.abs(saliency.drop).max()) or 1.0
        _fill(self.page, saliency.image, extent, (saliency.image.min(), saliency.image.max()))
        _fill(self.drop, saliency.drop, extent, (-most, most))
        self.saliency_title.set_text(
            f"input of the network, page {saliency.page}: red is evidence for a pulse, blue against"
        )
        self.saliency_axes.set(xlabel=time_label, ylabel=dm_label, xlim=extent[:2], ylim=extent[2:])


def _encoded(pixels: np.ndarray) -> bytes:
    """Encode an RGBA image as an RGB PNG without filters, which takes half as long as to choose a filter for each row.

    Pixels are repeated along rows, so that the file is smaller as well.
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = pixels[:, :, :3].reshape(height, -1)
    per_metre = round(DPI / 0.0254)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0),
        b"pHYs": struct.pack(">IIB", per_metre, per_metre, 1),
        b"IDAT": zlib.compress(rows.tobytes(), PNG_LEVEL),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _image(axes: Any, **options: Any) -> Any:
    return axes.imshow(np.zeros((2, 2)), aspect="auto", **({"interpolation": "nearest"} | options))


def _fill(image: Any, values: np.ndarray, extent: tuple[float, ...], limits: Any = None) -> None:
    image.set_data(values)
    image.set_extent(extent)
    if limits is not None:
        image.set_clim(*limits)


def _title(event: Event, name: str) -> str:
    name = name.replace("$", r"\$")  # matplotlib would read mathematics between two of them
    first = f"{name}   page {event.first_page}" + (f"-{event.last_page}" if event.last_page > event.first_page else "")
    if not np.isfinite(event.time_s):
        return f"{first}\nS/N {event.snr:.1f}   probability {event.probability:.3f}"
    return (
        f"{first}   MJD {event.mjd:.8f}   t = {event.time_s:.4f} s\n"
        f"DM {event.dm_pc_cm3:.2f} pc cm⁻³   S/N {event.snr:.1f}   width {event.width_ms:.2f} ms   "
        f"probability {event.probability:.3f}"
    )


def _sub_bands(
    cutout: Cutout, event: Event, edges: tuple[float, float]
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Average channels into sub-bands, and samples into bins of a third of the pulse, so that a weak pulse shows.

    Returns
    -------
    image : (n_sub_bands, n_bins) ndarray
        Highest frequency first.
    extent : (left, right, bottom, top)
    """
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
    return image, (edges[0], right, top - channel * whole.shape[0], top)
