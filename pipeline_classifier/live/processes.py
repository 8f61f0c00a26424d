"""Programs that the live pipeline starts: each has a log and its own process group, and the whole group is stopped."""

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
"""Seconds between SIGTERM and SIGKILL; chosen by hand."""
LAST_LINES = 5
"""Largest number of lines of a log in an error message."""
LAST_BYTES = 4096
"""Bytes at the end of a log in which these lines are looked for."""
POLL_S = 0.02


@dataclass(frozen=True)
class Command:
    """A program to start.

    Parameters
    ----------
    name : str
        Name of the program in messages.
    words : tuple of str
        Command line.
    log : Path
        File for its standard output and standard error.
    """

    name: str
    words: tuple[str, ...]
    log: Path


def environment() -> dict[str, str]:
    """Return the environment of the programs: their OpenMP threads wait without using a core, unless it says how."""
    return {"OMP_WAIT_POLICY": "passive", **os.environ}


class Child:
    """A running program; leaving the ``with`` block stops it together with its process group.

    Parameters
    ----------
    command : Command
        Program to start; an earlier log is overwritten.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        with open(command.log, "wb") as log:
            self._process = subprocess.Popen(
                command.words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(),
            )
        logger.info("started %s (process %d, log %s)", command.name, self._process.pid, command.log)

    @property
    def exit_code(self) -> int | None:
        """Exit code; None while the program runs, minus the signal number if a signal ended it."""
        # WNOWAIT leaves it a zombie: until it is reaped, no other process or group can get its number.
        status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if status is None:
            return None
        return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code, or None if the program still runs after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while (code := self.exit_code) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return code

    @property
    def failure(self) -> str:
        """Sentence on how the program failed, with the last lines of its log; empty if it runs or succeeded."""
        code = self.exit_code
        if not code:
            return ""
        how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
        return f"{self.command.name} ended with {how}; {last_lines(self.command.log)}"

    def stop(self) -> None:
        """Stop the process group: SIGTERM, and SIGKILL after ``GRACE_S``."""
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
    """Return whether a process of the group still runs; zombies do not count."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has just ended
        if int(process_group) == group and state not in "ZX":
            return True
    return False


def last_lines(log: Path) -> str:
    """Return the last lines of a log, as part of a sentence."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - LAST_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line][-LAST_LINES:]
    return f"the last lines of {log}: {' | '.join(lines)}" if lines else f"{log} is empty"
