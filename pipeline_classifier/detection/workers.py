"""Threads that share the work, and the settings of a process that runs them."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from single_pulse_classifier_training.distributed import end_with_launcher
from single_pulse_classifier_training.memory import keep_freed_memory

SWITCH_INTERVAL_S = 1e-3
"""Calls of the workers last some 100 us: at Python's own 5 ms a thread that waits for the interpreter leaves its core
idle."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def prepare_process() -> None:
    """Configure the process of a search; scripts call it before they start.

    Freed memory is kept for the next block, threads switch every `SWITCH_INTERVAL_S`, and torch uses no threads of its
    own in the main thread, since the cores are busy with the pages. A process of torchrun ends when torchrun dies.
    """
    end_with_launcher()
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    torch.set_num_threads(1)


def thread_count(threads: int | None) -> int:
    """Return the number of threads asked for, or the number of cores."""
    return threads or len(os.sched_getaffinity(0))


def worker_pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch uses no threads of its own: two layers of threads hinder each other."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """Yield ``function`` of each item, in order, computed by threads that are at most one item each ahead.

    Parameters
    ----------
    function : callable
    items : iterable
    threads : int, optional
        One per core by default.
    """
    threads = thread_count(threads)
    with worker_pool(threads) as pool:
        pending: deque = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
