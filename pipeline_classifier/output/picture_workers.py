"""Processes that draw pictures of events.

A worker is a new interpreter that imports neither torch nor the script, reads pictures from its standard input and
writes PNG files to its standard output. It ends when its input is closed, also because the search was killed.
"""

import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

from pipeline_classifier.frontend.threads import map_in_order, thread_count
from pipeline_classifier.output.event_picture import EventFigures, EventPicture
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer

ROOT = Path(__file__).resolve().parents[2]
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from pipeline_classifier.output import picture_workers as p; p.main()"
)
LENGTH = struct.Struct(">Q")
PICTURES_PER_WORKER = 8
"""Fewer do not repay the start of another worker, which takes as long as some eight pictures."""
PictureTask = tuple[Path, Callable[[], EventPicture]]


class PictureWorkers:
    """Processes that draw; leaving the context ends them.

    Parameters
    ----------
    pictures : int
        Number of pictures to come.
    threads : int, optional
        Largest number of workers; one per core by default.
    """

    def __init__(self, pictures: int, threads: int | None = None) -> None:
        self.count = max(1, min(thread_count(threads), -(-pictures // PICTURES_PER_WORKER)))

    def __enter__(self) -> Self:
        self._workers: list[subprocess.Popen] = []
        self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        command = [sys.executable, "-c", START, str(ROOT)]
        # One thread each, whatever numpy is built with.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        for _ in range(self.count):
            # Ctrl-C is for the search, which ends its workers.
            worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
            self._workers.append(worker)
            self._idle.put(worker)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
            for stream in (worker.stdin, worker.stdout):
                with suppress(OSError):  # what a dead worker did not read
                    stream.close()  # type: ignore[union-attr]

    def draw(self, tasks: Iterable[PictureTask]) -> Iterator[Path]:
        """Draw pictures and yield their paths, in order; each file is complete or absent.

        Parameters
        ----------
        tasks : iterable of (Path, callable)
            The callable returns the `EventPicture`; threads call it, one for each worker.

        Raises
        ------
        InputError
            If a worker ended.
        """
        return map_in_order(self._draw, tasks, self.count)

    def be_nice(self, increment: int) -> None:
        """Lower the priority of the workers."""
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, worker.pid, increment)

    def _draw(self, task: PictureTask) -> Path:
        path, make = task
        return self.draw_one(path, make())

    def draw_one(self, path: Path, picture: EventPicture) -> Path:
        """Draw a picture as `draw` does, and return its path."""
        worker = self._idle.get()
        try:
            assert worker.stdin and worker.stdout
            _send(worker.stdin, pickle.dumps(picture, pickle.HIGHEST_PROTOCOL))
            png = _received(worker.stdout)
        except (EOFError, OSError):
            code = worker.wait()
            ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise InputError(f"{path}: the process that draws must run until the end, got {ended}") from None
        finally:
            self._idle.put(worker)
        with atomic_writer(path) as file:
            file.write(png)
        return path


def _send(file: IO[bytes], content: bytes) -> None:
    file.write(LENGTH.pack(len(content)))
    file.write(content)
    file.flush()


def _received(file: IO[bytes]) -> bytes:
    """Return the next message; raise EOFError if the other side has closed the pipe."""
    length = file.read(LENGTH.size)
    content = file.read(LENGTH.unpack(length)[0]) if len(length) == LENGTH.size else b""
    if not content:
        raise EOFError
    return content


def main() -> None:
    """Draw what comes on standard input until it is closed."""
    pictures, drawn = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    figures = EventFigures()
    with suppress(EOFError, BrokenPipeError):
        while True:
            _send(drawn, figures.png(pickle.loads(_received(pictures))))  # noqa: S301 - from the parent process
