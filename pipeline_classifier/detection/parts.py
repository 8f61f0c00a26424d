"""The part of the files that each process searches: Slurm arrays, Slurm steps and torchrun, one inside another."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from single_pulse_classifier_training.cli import InputError

LAST_STEP = 0xFFFFFFF0
"""Highest id of a step that srun starts (SLURM_MAX_NORMAL_STEP_ID in slurm.h); those of batch scripts and of shells
that salloc starts are higher, where Slurm sets them at all."""


@dataclass(frozen=True)
class Part:
    """The part of the files that this process searches.

    Attributes
    ----------
    rank, n : int
        Rank of this process, and number of processes.
    local_rank, n_local : int
        The same for this machine.
    """

    rank: int = 0
    n: int = 1
    local_rank: int = 0
    n_local: int = 1

    def of(self, files: Sequence[Path]) -> list[Path]:
        """Return the files of this process."""
        return list(files[self.rank :: self.n])

    def divided(self, inner: "Part") -> "Part":
        """Return this part divided once more: the part of one of the processes that share it."""
        return Part(
            self.rank * inner.n + inner.rank,
            self.n * inner.n,
            self.local_rank * inner.n_local + inner.local_rank,
            self.n_local * inner.n_local,
        )


def part_of_this_process(environment: Mapping[str, str] = os.environ) -> Part:
    """Read the part from the variables of Slurm and torchrun.

    The tasks of an array divide the files; the tasks of a step (``srun``) or the processes of torchrun divide them
    further. A batch script, or the shell of an allocation, has SLURM_PROCID and SLURM_NTASKS as well, but runs once and
    therefore searches all files. If each task of a step starts a torchrun of its own, both divide the files; the
    processes of one torchrun on several machines are counted by torchrun.

    Raises
    ------
    InputError
        If a variable has an impossible value.
    """
    part = _array_part(environment)
    launched = "RANK" in environment and "WORLD_SIZE" in environment
    if not launched or environment.get("GROUP_WORLD_SIZE") == "1":
        part = part.divided(_step_part(environment))
    if launched:
        rank, n = _rank_of(environment, "RANK", "WORLD_SIZE")
        part = part.divided(
            Part(rank, n, _number(environment, "LOCAL_RANK", 0), _number(environment, "LOCAL_WORLD_SIZE", 1))
        )
    return part


def _array_part(environment: Mapping[str, str]) -> Part:
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return Part()
    task, count = _number(environment, "SLURM_ARRAY_TASK_ID"), _number(environment, "SLURM_ARRAY_TASK_COUNT")
    first, step = _number(environment, "SLURM_ARRAY_TASK_MIN", 0), _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
    step = max(1, step)
    last = _number(environment, "SLURM_ARRAY_TASK_MAX", first + (count - 1) * step)
    rank, rest = divmod(task - first, step)
    # In an irregular array such as 0,3,7 a task cannot know how many come before it.
    if rest or last != first + (count - 1) * step or not 0 <= rank < count:
        raise InputError(
            f"SLURM_ARRAY_TASK_ID: the array must have equal steps, such as --array=0-9, got task {task} of "
            f"{count} from {first} to {last}"
        )
    return Part(rank, count)


def _step_part(environment: Mapping[str, str]) -> Part:
    step = environment.get("SLURM_STEP_ID", "")
    if not step.isdecimal() or int(step) > LAST_STEP or "SLURM_PROCID" not in environment:
        return Part()
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    rank, n = _rank_of(environment, "SLURM_PROCID", tasks)
    local = _number(environment, "SLURM_LOCALID", 0), _number(environment, "SLURM_NTASKS_PER_NODE", 1)
    return Part(rank, n, *local)


def _rank_of(environment: Mapping[str, str], rank_name: str, n_name: str) -> tuple[int, int]:
    """Rank and number of processes, as two variables give them."""
    rank, n = _number(environment, rank_name), _number(environment, n_name, 1)
    if rank >= n:
        raise InputError(f"{rank_name}: must be below {n_name}, got {rank} and {n}")
    return rank, n


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Value of a variable; ``default`` where it is not set, if there is one."""
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdecimal()):
        raise InputError(f"{name}: must be a whole number, got {'nothing' if text is None else repr(text)}")
    return int(text)
