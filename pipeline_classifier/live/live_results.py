"""Files that a live search writes while it runs; each is always valid, even if the process is killed.

predictions_<name>.npy, probabilities_<name>.npy   one value per page, at least n_spectra; -1: not classified
candidates_<name>.csv                              whole rows, each written once
status_<name>.json                                 progress, rewritten every second
"""

import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np

from pipeline_classifier.detection.page_classifier import NOT_CLASSIFIED
from pipeline_classifier.events import Event
from pipeline_classifier.live.psrdada.client import RingError
from pipeline_classifier.live.ring_pages import TICK_S, RingPages
from pipeline_classifier.output.candidate_lists import candidate_lines
from pipeline_classifier.output.run_files import keep_earlier, outputs_in
from single_pulse_classifier_training.runtime import atomic_writer

logger = logging.getLogger(__name__)

HEADER_BYTES = 128
GROWTH = 16384
"""Number of values by which a file grows: 64 KiB, seven minutes of pages of 26 ms."""
STATUS_EVERY_S, LOG_EVERY_S, RATE_OVER_S = 1.0, 10.0, 10.0
EVENTS_KEPT = 10_000
"""Largest number of events that are kept in memory; the file has all of them."""


class GrowingNpy:
    """A one-dimensional .npy file that grows: -1 where nothing was written yet, and a valid file at any moment.

    Parameters
    ----------
    path : Path
        Replaced by the new file.
    dtype : dtype
    length : int, optional
        Expected number of values.
    """

    def __init__(self, path: Path, dtype: np.dtype | type, length: int | None = None) -> None:
        self.path, self.dtype, self.length = path, np.dtype(dtype), length or GROWTH
        with atomic_writer(path) as file:
            file.write(self._header(self.length))
            file.write(self._blank(self.length))
        self._fd = os.open(path, os.O_RDWR)

    def _header(self, length: int) -> bytes:
        """Header of a fixed size, so that it can be overwritten."""
        text = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': ({length},), }}"
        space = HEADER_BYTES - 10
        return b"\x93NUMPY\x01\x00" + space.to_bytes(2, "little") + text.ljust(space - 1).encode() + b"\n"

    def _blank(self, count: int) -> bytes:
        return np.full(count, NOT_CLASSIFIED, self.dtype).tobytes()

    def _put(self, number: int, content: bytes) -> None:
        offset = HEADER_BYTES + number * self.dtype.itemsize
        while content:  # a write may be partial
            written = os.pwrite(self._fd, content, offset)
            content, offset = content[written:], offset + written

    def write(self, first: int, values: np.ndarray) -> None:
        """Write values, starting at number ``first``."""
        end = first + len(values)
        if end > self.length:
            longer = max(end, self.length + GROWTH)
            # The header is written last: values beyond its length are not part of the file.
            self._put(self.length, self._blank(longer - self.length))
            os.pwrite(self._fd, self._header(longer), 0)
            self.length = longer
        self._put(first, values.astype(self.dtype, copy=False).tobytes())

    def close(self, length: int) -> None:
        """Truncate the file to ``length`` values and close it."""
        os.pwrite(self._fd, self._header(length), 0)
        os.ftruncate(self._fd, HEADER_BYTES + length * self.dtype.itemsize)
        os.close(self._fd)

    def values(self) -> np.ndarray:
        """Return the content, memory-mapped."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


class LiveResults:
    """Predictions, probabilities and events, written as they arrive.

    All outputs of an earlier run are renamed to contain the time of their last change, as the data of a ring cannot be
    read again.

    Parameters
    ----------
    output_dir : Path
    name : str
        Part of the file names.
    n_spectra : int, optional
        Expected number of pages.

    Attributes
    ----------
    pages, events : int
        Number of pages and events written so far.
    last_events : deque of Event
        The last ``EVENTS_KEPT`` events.
    """

    def __init__(self, output_dir: Path, name: str, n_spectra: int | None = None) -> None:
        kinds = (("predictions", "npy"), ("probabilities", "npy"), ("candidates", "csv"))
        self.files = [output_dir / f"{kind}_{name}.{suffix}" for kind, suffix in kinds]
        for path in reversed(outputs_in(output_dir, name)):
            keep_earlier(path)
        self.n_spectra = n_spectra or 0
        self.predictions = GrowingNpy(self.files[0], np.int32, n_spectra)
        self.probabilities = GrowingNpy(self.files[1], np.float32, n_spectra)
        self._candidates = os.open(self.files[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
        self._append(candidate_lines([], heading=True))
        self.pages = self.events = 0
        self.last_events: deque[Event] = deque(maxlen=EVENTS_KEPT)

    def add_pages(self, first: int, predictions: np.ndarray, probabilities: np.ndarray) -> None:
        """Write the classes and probabilities of consecutive pages, starting with page number ``first``."""
        self.predictions.write(first, predictions)
        self.probabilities.write(first, probabilities)
        self.pages = first + len(predictions)

    def add_events(self, events: Sequence[Event]) -> None:
        """Append rows to the candidates."""
        if events:
            self._append(candidate_lines(events))
            self.events += len(events)
            self.last_events.extend(events)

    def _append(self, lines: str) -> None:
        content = lines.encode()
        while content:  # a write may be partial
            content = content[os.write(self._candidates, content) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        length = max(self.pages, self.n_spectra)
        self.predictions.close(length)
        self.probabilities.close(length)
        os.close(self._candidates)


class Monitor:
    """Reports the progress of a live search from its own thread, also while no page arrives or all threads are busy.

    Parameters
    ----------
    path : Path
        Path of the status file.
    source : RingPages
    results : LiveResults
    source_ended : callable, optional
        Called every ``TICK_S``; returns why no more pages will come, or an empty string. Once the ring is empty, the
        source is stopped for that reason.

    Attributes
    ----------
    latency_s : float
        Longest time from the ring to the classification of a page of the last batch, seconds.
    fill : (int, int)
        Full blocks, and all blocks of the ring.
    """

    def __init__(
        self, path: Path, source: RingPages, results: LiveResults, source_ended: Callable[[], str] | None = None
    ) -> None:
        self.path, self.source, self.results, self.source_ended = path, source, results, source_ended
        self.latency_s = 0.0
        self.fill = source.fill
        self._recent: deque[tuple[float, int]] = deque(maxlen=1 + round(RATE_OVER_S / STATUS_EVERY_S))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)

    def __enter__(self) -> Self:
        self.write("running")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.write("failed" if kind else "ended")

    def _watch(self) -> None:
        logs = not sys.stderr.isatty()  # a terminal has a bar
        next_status = next_log = time.monotonic()
        while not self._done.wait(TICK_S):
            ended = self.source_ended() if self.source_ended else ""
            with suppress(RingError):  # a destroyed ring is reported by batches()
                self.fill = self.source.fill
            if ended and not self.fill[0]:
                self.source.stop(ended)
            now = time.monotonic()
            if now >= next_status:
                next_status = now + STATUS_EVERY_S
                self.write("running")
            if logs and now >= next_log:
                next_log = now + LOG_EVERY_S
                logger.info("%s: %s", self.source.name, self)

    def __str__(self) -> str:
        return (
            f"{self.results.pages} pages, {self.results.events} events, {self.pages_per_s:.1f} pages/s, "
            f"latency {self.latency_s:.2f} s, {self.fill[0]} of {self.fill[1]} blocks full"
        )

    @property
    def pages_per_s(self) -> float:
        """Pages classified per second over the last ``RATE_OVER_S`` seconds."""
        if len(self._recent) < 2:
            return 0.0
        (began, before), (now, pages) = self._recent[0], self._recent[-1]
        return (pages - before) / max(now - began, 1e-9)

    def write(self, state: str) -> None:
        """Write the status file; a failure to write it does not stop the search."""
        self._recent.append((time.monotonic(), self.results.pages))
        summary = replace(self.source.summary(), pages=self.results.pages, events=self.results.events)
        status = {
            "name": self.source.name,
            "state": state,
            **summary.known(),
            "pages_per_s": round(self.pages_per_s, 2),
            "latency_s": round(self.latency_s, 3),
            "ring_blocks_full": self.fill[0],
            "ring_full": self.fill[0],  # the name of version 0.1
            "updated": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "pid": os.getpid(),
        }
        try:
            with atomic_writer(self.path) as file:
                file.write(json.dumps(status, indent=2).encode() + b"\n")
        except OSError as error:
            logger.warning("%s: %s", self.path, error.strerror or error)
