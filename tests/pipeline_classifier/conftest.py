"""Fixtures with real rings and real processes; both are removed when a test ends, even if it fails."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline_classifier.live.psrdada.sysv import Segment, Semaphores

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0


class Child:
    """A Python process that runs ``code`` and exchanges lines of text with the test."""

    def __init__(self, code: str, *args: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
        )

    def says(self) -> str:
        """Wait for the next line of its output."""
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        assert ready, f"no output within {PATIENCE_S:g} s"
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "go") -> None:
        """Send a line to its input."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def ends(self) -> int:
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    """Start a process: ``start(code, *args)``."""
    children = []

    def start_child(code: str, *args: object) -> Child:
        children.append(Child(code, *args))
        return children[-1]

    yield start_child
    for child in children:
        if child.process.poll() is None:
            child.kill()
        child.process.stdin.close()
        child.process.stdout.close()


def ring_parts(key: int) -> dict[str, list[dict[str, int]]]:
    """Segments (``shm``) and semaphore sets (``sem``) that exist under the keys of a stream, as in /proc/sysvipc."""
    found = {}
    for kind in ("shm", "sem"):
        names, *rows = (line.split() for line in Path(f"/proc/sysvipc/{kind}").read_text().splitlines())
        parts = [{name: int(value, 8 if name == "perms" else 10) for name, value in zip(names, row)} for row in rows]
        found[kind] = [part for part in parts if (part["key"] - key) % 0x10000 < 2 and 0 <= part["key"] - key < 1 << 23]
    return found


@contextmanager
def free_key() -> Iterator[int]:
    """A key derived from the process id (22 bits of it); whatever exists under it is removed before and after."""
    pid = os.getpid()
    key = 0x40000000 | (pid >> 15 & 0x7F) << 23 | (pid & 0x7FFF) << 1
    remove_parts(key)
    try:
        yield key
    finally:
        remove_parts(key)


def remove_parts(key: int) -> None:
    parts = ring_parts(key)
    for part in parts["shm"]:
        segment = Segment(part["key"])
        segment.remove()
        segment.detach()
    for part in parts["sem"]:
        Semaphores(part["key"], part["nsems"]).remove()
    assert not any(ring_parts(key).values())


@pytest.fixture
def ring_key(start) -> Iterator[int]:
    """A key for one stream; rings created under it are removed at the end."""
    with free_key() as key:
        yield key


@pytest.fixture
def parts_of() -> Callable[[int], dict]:
    return ring_parts
