"""The part of each process: together the parts hold every file, no file twice, whatever starts the processes."""

from pathlib import Path

import pytest

from pipeline_classifier.detection.parts import Part, part_of_this_process
from single_pulse_classifier_training.cli import InputError

FILES = [Path(str(number)) for number in range(24)]
BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
"""What the shell of ``sbatch --ntasks=4`` has."""


def step(task: int, n: int, job: dict[str, str] = BATCH_SCRIPT) -> dict[str, str]:
    """Variables of a task that ``srun --ntasks=n`` starts."""
    return job | {"SLURM_STEP_ID": "0", "SLURM_PROCID": str(task), "SLURM_STEP_NUM_TASKS": str(n)}


def array(task: int, n: int, first: int = 0, by: int = 1) -> dict[str, str]:
    """Variables of a task of ``sbatch --array=first-last:by``."""
    numbers = {"ID": first + task * by, "COUNT": n, "MIN": first, "MAX": first + (n - 1) * by, "STEP": by}
    return BATCH_SCRIPT | {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in numbers.items()}


def torchrun(local_rank: int, n_local: int, machine: int = 0, machines: int = 1) -> dict[str, str]:
    """Variables of a process of ``torchrun --nnodes=machines --nproc-per-node=n_local``."""
    return {
        "RANK": str(machine * n_local + local_rank),
        "WORLD_SIZE": str(machines * n_local),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(n_local),
        "GROUP_WORLD_SIZE": str(machines),
    }


@pytest.mark.parametrize(
    "environment",
    [{}, BATCH_SCRIPT, *(BATCH_SCRIPT | {"SLURM_STEP_ID": step} for step in ("4294967291", "4294967290", "batch"))],
)
def test_what_runs_once_searches_all_files(environment):
    """Batch scripts and shells of an allocation: 4294967291 and 4294967290 are their step ids."""
    assert part_of_this_process(environment) == Part()


@pytest.mark.parametrize(
    "processes",
    [
        [step(task, 4) for task in range(4)],
        [step(task, 2) for task in range(2)],  # srun --ntasks=2 in an allocation of four tasks
        [array(task, 5) for task in range(5)],
        [array(task, 3, first=10, by=2) for task in range(3)],
        [torchrun(rank, 3) for rank in range(3)],
        [torchrun(rank, 2, machine, 3) for machine in range(3) for rank in range(2)],
        [array(task, 3) | torchrun(rank, 2) for task in range(3) for rank in range(2)],
        [step(task, 2, array(number, 3)) for number in range(3) for task in range(2)],
        [step(task, 3) | torchrun(rank, 2) for task in range(3) for rank in range(2)],  # a torchrun in each task
        [step(machine, 3) | torchrun(rank, 2, machine, 3) for machine in range(3) for rank in range(2)],
        [BATCH_SCRIPT | torchrun(rank, 2) for rank in range(2)],
        # RANK exported from Slurm's own numbers
        [step(task, 4) | {"RANK": str(task), "WORLD_SIZE": "4"} for task in range(4)],
    ],
)
def test_every_file_is_in_one_part(processes):
    parts = [part_of_this_process(environment) for environment in processes]
    assert sorted(file for part in parts for file in part.of(FILES)) == sorted(FILES)
    assert {len(part.of(FILES)) for part in parts} <= {len(FILES) // len(parts), -(-len(FILES) // len(parts))}


def test_rank_on_this_machine():
    assert part_of_this_process(torchrun(1, 2, 1, 2)) == Part(3, 4, 1, 2)
    assert part_of_this_process(step(6, 8) | {"SLURM_LOCALID": "2", "SLURM_NTASKS_PER_NODE": "4"}) == Part(6, 8, 2, 4)
    assert part_of_this_process(array(2, 3) | torchrun(1, 2)) == Part(5, 6, 1, 2)


@pytest.mark.parametrize(
    "environment, message",
    [
        (step(0, 4) | {"SLURM_PROCID": "x"}, "SLURM_PROCID: must be a whole number, got 'x'"),
        (step(4, 4), "SLURM_PROCID: must be below SLURM_STEP_NUM_TASKS, got 4 and 4"),
        (array(0, 4) | {"SLURM_ARRAY_TASK_COUNT": ""}, "SLURM_ARRAY_TASK_COUNT: must be a whole number, got ''"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT: must be a whole number, got nothing"),
        (array(0, 3) | {"SLURM_ARRAY_TASK_MAX": "7"}, "the array must have equal steps, such as --array=0-9"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK: must be a whole number, got '-1'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK: must be below WORLD_SIZE, got 2 and 2"),
        (torchrun(0, 2) | {"LOCAL_WORLD_SIZE": "two"}, "LOCAL_WORLD_SIZE: must be a whole number, got 'two'"),
    ],
)
def test_an_impossible_value_is_one_sentence(environment, message):
    with pytest.raises(InputError, match=message):
        part_of_this_process(environment)
