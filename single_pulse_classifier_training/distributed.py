"""Training of one network by several processes: `torchrun --nproc-per-node=N training.py config.json`."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed as dist
from torch import nn


@dataclass(frozen=True)
class Ranks:
    """Rank of this process among ``n``; ``n == 1`` is a training in one process."""

    rank: int = 0
    n: int = 1

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files and the report."""
        return self.rank == 0

    @property
    def hide_bar(self) -> bool | None:
        """Argument ``disable`` of tqdm: only the writer shows a bar, and only on a terminal."""
        return None if self.is_writer else True

    def largest(self, *values_here: float) -> list[float]:
        """Return the largest of each value over all processes; on GPUs, this waits for all steps to finish."""
        if self.n == 1:
            return list(values_here)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        values = torch.tensor(values_here, dtype=torch.float64, device=device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum the values over all processes, in place."""
        if self.n > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes in the writer, and placeholders in the others."""
        if self.n == 1:
            return [value]
        values = [None] * self.n
        dist.gather_object(value, values if self.is_writer else None)
        return values

    def from_writer(self, compute: Callable[[], Any]) -> Any:
        """Call a function in the writer only, and return its result in all processes."""
        values = [compute() if self.is_writer else None]
        if self.n > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the module to call so that gradients are averaged over all processes."""
        if self.n == 1:
            return model
        device_ids = [torch.cuda.current_device()] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=device_ids)


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the processes started by torchrun, with nccl on GPUs and gloo on CPUs; a single process without torchrun."""
    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), n)
        dist.barrier()  # gloo may abort a process that leaves while the others still work
    finally:
        gc.collect()  # a wrapped network holds reference cycles, and aborts the process if it outlives the group
        dist.destroy_process_group()
