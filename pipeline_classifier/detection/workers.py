"""Threads that share the work, and the settings of a process that runs them."""

import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from single_pulse_classifier_training.distributed import end_with_launcher
from single_pulse_classifier_training.memory import keep_freed_memory

SWITCH_INTERVAL_S = 1e-3
"""Calls of the workers last some 100 us: at Python's own 5 ms a thread that waits for the interpreter leaves its core
idle."""

def prepare_process() -> None:
    """Configure the process of a search; scripts call it before they start.

    Freed memory is kept for the next block, threads switch every `SWITCH_INTERVAL_S`, and torch uses no threads of its
    own in the main thread, since the cores are busy with the pages. A process of torchrun ends when torchrun dies.
    """
    end_with_launcher()
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    torch.set_num_threads(1)


def one_thread_each() -> None:
    """Let torch use no threads of its own in this one: two layers of threads hinder each other."""
    torch.set_num_threads(1)


def worker_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that classify pages."""
    return ThreadPoolExecutor(threads, initializer=one_thread_each)
