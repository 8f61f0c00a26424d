"""The pages of a filterbank file, sent through a real ring by another process, as in the live pipeline."""

import json
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.live.live_search import ring_settings
from pipeline_classifier.live.psrdada.client import Writer, create_rings, destroy_rings
from pipeline_classifier.live.ring_header import RingSettings
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

PAGES_IN_RING = 64
"""Blocks of one page each: as many pages as in the original's ring of 16 blocks of 1 MiB."""
SENDER_ENDS_S = 1.0
"""Longest time for the sender to exit after its last page."""


def ring_header(grid: PageGrid) -> str:
    """Return the header of a ring with pages of this grid: one line of JSON."""
    dms = [float(dm) for dm in grid.dms]
    return json.dumps(
        {
            "dms": dms[0],
            "ddm": dms[1] - dms[0],
            "ndm": len(dms),
            "ndump": grid.n_time,
            "tsamp": float(grid.tsamp),
            "tstart": float(grid.tstart),
            "fmax": float(grid.f_top),
            "fmin": float(grid.f_bottom),
            "nchans": grid.nchans,
            "noise": float(grid.noise),
        }
    )


def whole_pages(path: Path, config: PipelineConfig) -> FilterbankPages:
    """Return the pages of a file that a ring can carry: adjoining and complete.

    Raises
    ------
    InputError
        If the config asks for overlapping pages or for several layers.
    """
    source = FilterbankPages(path, config.front_end())
    if len(source.layers) > 1 or config.overlap():
        raise InputError(
            f"--through-ring: the config must give pages of one time resolution and at most 256 DMs without overlap, "
            f"got {len(source.layers)} layers with an overlap of {config.overlap():g}"
        )
    n_time = source.grid.n_time
    whole = source.starts[source.starts % n_time == 0]
    if len(whole) < source.n_pages:
        logger.info("%s: the last page is not complete and is not sent", source.name)
    return source.with_starts(whole)


def send_pages(path: Path, config: PipelineConfig) -> None:
    """Write header and pages to the ring ``key_output`` as one transfer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group: the reader decides
    source = whole_pages(path, config)
    with Writer(config.key_output, config.idle_timeout_s) as writer:
        writer.setHeader(ring_header(source.grid))
        for batch in source.batches(PAGES_IN_RING):
            writer.write(np.ascontiguousarray(batch.pages).data)


@contextmanager
def sent_through_ring(path: Path, config: PipelineConfig) -> Iterator[tuple[Callable[[], str], RingSettings]]:
    """Make the ring ``key_output`` and start the process that sends; both are removed afterwards.

    Yields
    ------
    ended : callable
        Returns why no more pages will come, or an empty string: for ``live_search``.
    settings : RingSettings
        For ``open_ring``.

    Raises
    ------
    InputError
        If that process failed.
    """
    source = whole_pages(path, config)
    n_dm, n_time = source.grid.shape
    settings = replace(ring_settings(config), pages_expected=source.n_pages, from_file=True)
    create_rings(config.key_output, 4 * n_dm * n_time, PAGES_IN_RING)
    sender = multiprocessing.get_context("spawn").Process(target=send_pages, args=(path, config), daemon=True)
    try:
        sender.start()
        yield lambda: "" if sender.is_alive() else "the sender ended", settings
        sender.join(SENDER_ENDS_S)
        if sender.exitcode:
            raise InputError(f"--through-ring: the process that sends {path} failed (exit code {sender.exitcode})")
    finally:
        if sender.is_alive():
            sender.terminate()
            sender.join()
        destroy_rings(config.key_output)
