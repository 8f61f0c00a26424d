"""Programs that the live pipeline starts: each in a process group of its own, with a log, stopped with its group."""

import logging
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""Time that a group has to end after SIGTERM, before SIGKILL."""
LAST_LINES = 5
LAST_BYTES = 4096
POLL_S = 0.02


@dataclass(frozen=True)
class Command:
    """What to start: name of the program, words of the command line, and the file that takes its output."""

    name: str
    words: tuple[str, ...]
    log: Path


class Child:
    """A program that runs.

    Leaving the ``with`` block stops it: SIGTERM to its process group, then SIGKILL, and nothing of the group is left.

    Parameters
    ----------
    command : its output of earlier runs is overwritten
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        with open(command.log, "wb") as log:
            self._process = subprocess.Popen(
                command.words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        logger.info("started %s (process %d, log %s)", command.name, self._process.pid, command.log)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the number of the signal that ended it."""
        # Not reaped: as long as it is a zombie, no other process gets its number, nor its group's.
        status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if status is None:
            return None
        return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    def wait(self, timeout_s: float) -> int | None:
        """Exit code, or None if it still runs after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while (code := self.exit_code) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return code

    @property
    def failure(self) -> str:
        """How it failed, with the last lines of its output; empty while it runs, and if it ended well."""
        code = self.exit_code
        if not code:
            return ""
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        return f"{self.command.name} ended with {how}; {last_lines(self.command.log)}"

    def stop(self) -> None:
        """End the whole group; one that has ended is no error."""
        group = self._process.pid
        if is_alive(group):
            os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while is_alive(group) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        os.killpg(group, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def is_alive(group: int) -> bool:
    """Whether a process of the group still runs; zombies do not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has just ended
        if int(its_group) == group and state not in "ZX":
            return True
    return False


def last_lines(log: Path) -> str:
    """The last lines that a program wrote, as a part of a sentence."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line][-LAST_LINES:]
    return f"the last of its log {log}: {' | '.join(lines)}" if lines else f"its log {log} is empty"
