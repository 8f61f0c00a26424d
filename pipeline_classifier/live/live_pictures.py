"""Pictures of a live search, drawn while it runs by a process of low priority.

The pictures are at any moment those of the most probable and brightest events so far. The search never waits for them:
they wait in a queue, and the data of a picture are copied from pages that are kept for a while.
"""

import bisect
import logging
import queue
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from tqdm import tqdm

from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageBatch, PageGrid, robust_noise
from pipeline_classifier.frontend.sources import Cutout
from pipeline_classifier.output.candidate_lists import as_written
from pipeline_classifier.output.event_picture import EventPicture
from pipeline_classifier.output.picture_workers import PictureWorkers
from pipeline_classifier.output.plots import event_picture, rank
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

PAGES_KEPT = 256
"""Pages of which an event may still be drawn: 64 MiB of pages of 256 x 256. Chosen by hand."""
MOST_WAITING = 200
"""Pictures that wait to be drawn: 50 MiB. Chosen by hand; a burst of more events loses the others' pictures."""
NICE = 10


class LivePictures:
    """Draws the foremost events of a live search.

    Parameters
    ----------
    folder : Path
    name : str
        Part of the file names.
    grid : PageGrid
    most : int or None
        Largest number of pictures; None for all events.

    Attributes
    ----------
    lost : int
        Events that were to be drawn, and came too fast or too late.
    """

    def __init__(self, folder: Path, name: str, grid: PageGrid, most: int | None) -> None:
        self.folder, self.name, self.grid, self.most = folder, name, grid, most
        self.lost = self._events = 0
        self._batches: deque[PageBatch] = deque()
        self._ranks: list[tuple[float, float, int]] = []  # of the events to draw, the foremost first
        self._lock = threading.Lock()
        self._waiting: queue.Queue[tuple[int, EventPicture] | None] = queue.Queue(MOST_WAITING)
        self._drawn: set[int] = set()
        self._thread: threading.Thread | None = None
        self._abandoned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the pictures, unless the search failed."""
        if not self._thread:
            return
        self._abandoned = kind is not None
        left = self._waiting.qsize()
        with tqdm(total=left, unit="plot", desc="plots", disable=None) as bar:
            while self._thread.is_alive():
                try:
                    self._waiting.put(None, timeout=0.1)
                    break
                except queue.Full:
                    bar.update(left - bar.n - self._waiting.qsize())
            while self._thread.is_alive():
                self._thread.join(0.1)
                bar.update(left - bar.n - min(left, self._waiting.qsize()))
        if self.lost:
            logger.warning("%s: %d events have no picture, as they came too fast or too late", self.name, self.lost)

    @property
    def files(self) -> list[Path]:
        """Pictures on disk."""
        return [self._path(number) for number in sorted(self._drawn)]

    def _path(self, number: int) -> Path:
        return self.folder / event_picture(self.name, number)

    def keep(self, batch: PageBatch) -> None:
        """Take the pages of which events will be drawn."""
        if self.most == 0:
            return
        self._batches.append(batch)
        while sum(map(len, self._batches)) - len(self._batches[0]) >= PAGES_KEPT:
            self._batches.popleft()

    def add(self, events: Sequence[Event]) -> None:
        """Take the next events of the list of candidates, and let those be drawn that are among the foremost."""
        for event in as_written(events):
            self._events += 1
            if self._is_foremost(event, self._events):
                cutout = self._cutout(event)
                try:
                    if cutout is None:
                        raise queue.Full
                    picture = EventPicture(self.name, event, cutout, self.grid.tsamp)
                    self._waiting.put_nowait((self._events, picture))
                except queue.Full:
                    self.lost += 1
                    continue
                if not self._thread:
                    self._thread = threading.Thread(target=self._draw, name="pictures", daemon=True)
                    self._thread.start()

    def _is_foremost(self, event: Event, number: int) -> bool:
        """Rank an event; one that is not among the foremost any more loses its picture."""
        with self._lock:
            bisect.insort(self._ranks, rank(event, number))
            if self.most is None or len(self._ranks) <= self.most:
                return True
            _, _, removed = self._ranks.pop()
            if removed in self._drawn:
                self._drawn.remove(removed)
                self._path(removed).unlink(missing_ok=True)
            return removed != number

    def _cutout(self, event: Event) -> Cutout | None:
        """Copy the surroundings of an event from the pages that are kept."""
        centre = int(event.time_s / self.grid.tsamp)
        half = max(self.grid.n_time // 2, 3 * event.width_samples)
        parts, start, end = [], centre - half, None
        for batch in self._batches:
            first, last = int(batch.starts[0]), int(batch.starts[-1]) + batch.n_time
            if end is not None and first != end:
                break
            begin, finish = max(first, centre - half), min(last, centre + half)
            if begin < finish:
                parts.append(batch.plane[:, begin - first : finish - first].astype(np.float32))
                start, end = begin if end is None else start, last
        if not parts or not start <= centre:
            return None
        plane = np.concatenate(parts, axis=1)
        median, sigma = robust_noise(plane[None])
        return Cutout(start - centre, self.grid.dms, (plane - median) / (sigma if sigma > 0 else 1.0))

    def _draw(self) -> None:
        """Draw what waits, until None comes."""
        try:
            with PictureWorkers(1, 1) as workers:
                workers.be_nice(NICE)
                while (item := self._waiting.get()) and not self._abandoned:
                    number, picture = item
                    with self._lock:
                        wanted = any(number == other for *_, other in self._ranks)
                    if not wanted:
                        continue
                    path = workers.draw_one(self._path(number), picture)
                    with self._lock:
                        if any(number == other for *_, other in self._ranks):
                            self._drawn.add(number)
                        else:
                            path.unlink()
        except (InputError, OSError) as error:
            logger.error("%s: no more pictures are drawn: %s", self.name, error)
