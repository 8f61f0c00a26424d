"""Events of a search as candidate files, which FETCH and ``your`` read."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_classifier.detection.frequency_time import parts_of
from pipeline_classifier.detection.listed_candidates import Frame, dedispersed
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.events import Event
from pipeline_classifier.formats.candidate_files import PLANE, samples_per_column, save_candidate
from pipeline_classifier.frontend import kernels
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Events whose planes are in memory at the same time; 512 KiB each."""


def save_candidates(
    events: Sequence[Event], source: FilterbankPages, folder: Path, threads: int | None = None
) -> list[Path]:
    """Write each event as a candidate file, and return the paths.

    The DM-time plane is made from samples after zero-DM regression, as in the search, the frequency-time plane from
    samples before it. Both are in units of the noise; masked channels are 0.

    Parameters
    ----------
    events : sequence of Event
        In order of time.
    source : FilterbankPages
    folder : Path
    threads : int, optional
        One per core by default.
    """
    header = header_of(source)
    paths = []
    for chosen in (events[first : first + AT_ONCE] for first in range(0, len(events), AT_ONCE)):
        frames = [frame_of(event, source) for event in chosen]
        for event, frame, plane in zip(chosen, frames, dedispersed(source, frames, PLANE, threads), strict=True):
            path = save_candidate(
                folder,
                plane,
                channels_of(event, frame, source),
                dm=event.dm_pc_cm3,
                time_s=event.time_s,
                snr=event.snr,
                width_samples=event.width_samples * event.time_downsample,
                header=header,
            )
            paths.append(path)
    logger.info("%s: %d events saved as candidate files", source.name, len(set(paths)))
    return list(dict.fromkeys(paths))


def header_of(source: FilterbankPages) -> dict[str, Any]:
    """Return the keywords of an observation, after the averaging of samples and channels, highest frequency first."""
    header, frequencies = source.observation.header, source.frequencies
    names = ("source_name", "nbits", "telescope_id", "machine_id", "nbeams", "ibeam", "src_raj", "src_dej")
    nchans = len(frequencies)
    foff = (frequencies[-1] - frequencies[0]) / (nchans - 1) if nchans > 1 else -abs(header.foff)
    return {name: getattr(header, name) for name in names} | {
        "tsamp": source.tsamp,
        "tstart": header.tstart,
        "fch1": float(frequencies[0]),
        "foff": float(foff),
        "nchans": nchans,
    }


def frame_of(event: Event, source: FilterbankPages) -> Frame:
    """Return rows and columns of the DM-time plane: the event is in the middle of column 128."""
    column = samples_per_column(event.width_samples * event.time_downsample)
    start = round(event.time_s / source.tsamp - column / 2) - PLANE // 2 * column
    return Frame.of(np.full(PLANE, start), column, np.linspace(0, 2 * event.dm_pc_cm3, PLANE), PLANE, source)


def channels_of(event: Event, frame: Frame, source: FilterbankPages) -> np.ndarray:
    """Return the channels about an event, dedispersed at its DM, (nchans, 256) float32, highest frequency first."""
    nchans = len(source.frequencies)
    delays = dispersion_delay(event.dm_pc_cm3, source.frequencies, source.frequencies[0]) / source.tsamp
    starts = frame.starts[0] + np.rint(delays).astype(np.int64)
    bands = np.column_stack([np.arange(nchans), np.arange(1, nchans + 1)])
    sums, counts = np.zeros((2, nchans, PLANE), np.float32)
    first, end = max(0, int(starts[0])), min(source.nsamples, int(starts[-1]) + PLANE * frame.column)
    for begin, (data, good) in parts_of(source, range(first, end)):
        kernels.add_to_cutout(data, good, starts - begin, frame.column, bands, sums, counts)
    return sums / np.sqrt(np.maximum(counts, 1))
