"""What the images of a ring are: settings, and the header that the writer sends.

The header is one line of JSON. That of 2024 has ``ddm, dms, ndm, ndump, fmax, fmin, tsamp``; the present one has ``ddm,
dms, ndm`` and ``obsinfo`` with ``fch1, foff, nchans, tsamp, tstart``, but no page length. A header of lines ``KEY
value`` may have the same names, in upper or lower case, or DADA's own: ``TSAMP`` (microseconds), ``MJD_START``,
``FREQ``, ``BW``, ``NCHAN``. Values that are not in the header are taken from the config.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pipeline_classifier.frontend.pages import PageGrid
from single_pulse_classifier_training.cli import InputError

MAX_SIDE = 1 << 20


@dataclass(frozen=True, eq=False)
class RingSettings:
    """How a ring is read.

    Attributes
    ----------
    dms : (n_dm,) ndarray
        Trial DMs in pc cm^-3, evenly spaced, unless the header gives them.
    n_time : int
        Samples in a page, unless the header gives them.
    name : str or None
        Part of the names of the outputs; ``ring_<key>`` by default.
    max_pages : int or None
        Stop after this number of pages; the rest stays in the ring.
    connect_timeout_s : float
        Longest wait for the ring and its header, seconds.
    idle_timeout_s : float
        Stop when no page has come for this time, seconds.
    stop_at_end_of_data : bool
        Stop at the first end of data. The dada_dbdedispdb of 2024 sends one with every page.
    max_latency_s : float
        A page waits no longer than this (and ``TICK_S`` / 4 more) for its batch to fill, seconds.
    samples_per_column : int
        Input samples in one column (preprocesslite.td x downsample.td); 1 if the header counts columns.
    zaplist : tuple of (low, high)
        Frequency bands in MHz that the front end does not use.
    input_block_bytes : int or None
        Block of the ring from which dada_dbdedispdb reads: it makes one page of each.
    tstart : float
        MJD of the first sample, unless the header gives it.
    pages_expected : int or None
        Pages that the observation must give.
    from_file : bool
        Whether the data come from a file: the programs wait while a ring is full, and nothing is lost.
    writer_finished : callable or None
        Called when the writer has gone without end of data; waits until it can tell why, and returns the reason if the
        writer had finished its work, or an empty string.
    """

    dms: np.ndarray
    n_time: int = 256
    name: str | None = None
    max_pages: int | None = None
    connect_timeout_s: float = 60.0
    idle_timeout_s: float = 60.0
    stop_at_end_of_data: bool = False
    max_latency_s: float = 1.0
    samples_per_column: int = 1
    zaplist: tuple[tuple[float, float], ...] = ()
    input_block_bytes: int | None = None
    tstart: float = math.nan
    pages_expected: int | None = None
    from_file: bool = False
    writer_finished: Callable[[], str] | None = None


def grid_of(header: dict, settings: RingSettings) -> tuple[PageGrid, bool]:
    """Read the meaning of the images of a ring from its header.

    Parameters
    ----------
    header : dict
        As ``parse_header`` returns it.
    settings : RingSettings
        For values that are not in the header.

    Returns
    -------
    grid : PageGrid
        DMs ascending.
    descending : bool
        Whether row 0 of the images in the ring is the highest DM.

    Raises
    ------
    InputError
        If a value is not a number, or outside its range.
    """
    obsinfo = header.get("obsinfo")
    obsinfo = obsinfo if isinstance(obsinfo, dict) else {}
    values, dms = {**header, **obsinfo}, settings.dms

    def number(default: float, *names: str) -> float:
        for name in names:
            if name in values:
                try:
                    return float(values[name])
                except (TypeError, ValueError) as error:
                    raise InputError(f"header of the ring: {name} must be a number, got {values[name]!r}") from error
        return default

    low, step = number(dms[0], "dms", "DMS"), number(dms[1] - dms[0] if len(dms) > 1 else 1.0, "ddm", "DDM")
    n_dm, n_columns = number(len(dms), "ndm", "NDM"), number(settings.n_time, "ndump", "NDUMP")
    if not (1 <= n_dm <= MAX_SIDE and 1 <= n_columns <= MAX_SIDE and step and math.isfinite(low + step)):
        raise InputError(
            f"header of the ring: ndm and ndump must be 1 to {MAX_SIDE} and ddm must not be 0, got dms {low:g}, "
            f"ddm {step:g}, ndm {n_dm:g}, ndump {n_columns:g}"
        )
    factor = settings.samples_per_column if "tsamp" in obsinfo else 1
    tsamp = number(number(math.nan, "TSAMP") * 1e-6, "tsamp") * factor
    top, bottom = number(math.nan, "fmax", "FMAX"), number(math.nan, "fmin", "FMIN")
    if "fch1" in values or "FCH1" in values:
        fch1, nchans = number(math.nan, "fch1", "FCH1"), number(math.nan, "nchans", "NCHANS")
        ends = fch1, fch1 + (nchans - 1) * number(math.nan, "foff", "FOFF")
        top, bottom = max(ends), min(ends)
    elif "FREQ" in values:
        half = abs(number(math.nan, "BW")) / 2 * (1 - 1 / number(math.nan, "NCHAN", "NCHANS"))
        top, bottom = number(math.nan, "FREQ") + half, number(math.nan, "FREQ") - half
    trials = low + step * np.arange(int(n_dm))
    tstart = number(math.nan, "tstart", "TSTART", "MJD_START")
    tstart = settings.tstart if math.isnan(tstart) else tstart
    noise = number(0.0, "noise")
    nchans = number(0.0, "nchans", "NCHANS", "NCHAN")
    grid = PageGrid(np.sort(trials), int(n_columns), tsamp, tstart, top, bottom, settings.zaplist, noise)
    return replace(grid, nchans=int(nchans) if 0 < nchans < math.inf else 0), step < 0


def check_page_length(header: dict, block_bytes: int, grid: PageGrid, settings: RingSettings) -> None:
    """Check the page length of the config where the header does not give it.

    The present dada_dbdedispdb makes one page of each block of its input ring: its length is the size of that block
    over the number of channels and the averaged samples. In a ring that it makes itself, a block is one page.

    Parameters
    ----------
    header : dict
        As ``parse_header`` returns it.
    block_bytes : int
        Size of a block of the ring.
    grid : PageGrid
    settings : RingSettings

    Raises
    ------
    InputError
        If neither a block of the ring nor ``input_block_bytes`` has that length.
    """
    obsinfo = header.get("obsinfo")
    if not isinstance(obsinfo, dict) or "ndump" in (header | obsinfo) or settings.input_block_bytes is None:
        return
    try:
        spectrum_bytes = int(obsinfo["nchans"]) * settings.samples_per_column
    except (KeyError, TypeError, ValueError):
        return
    n_dm, n_time = grid.shape
    length = settings.input_block_bytes / max(spectrum_bytes, 1)
    if block_bytes != 4 * n_dm * n_time and length != n_time:
        raise InputError(
            f"page_samples must be the page length of dada_dbdedispdb, which is {length:g} if the blocks of its input "
            f"ring have {settings.input_block_bytes} bytes (input_buffer_size), or {block_bytes / (4 * n_dm):g} if a "
            f"block of its output ring is a page, got {n_time}, for which the input blocks must have "
            f"{n_time * spectrum_bytes} bytes"
        )
