"""Threads that share the work, and the settings of a process that runs them."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from single_pulse_classifier_training.memory import keep_freed_memory
from single_pulse_classifier_training.runtime import end_with_launcher

SWITCH_INTERVAL_S = 1e-3
"""Calls of the workers last some 100 us: at Python's own 5 ms a thread that waits for the interpreter leaves its core
idle."""


def prepare_process() -> None:
    """Configure the process of a search; scripts call it before they start.

    Freed memory is kept for the next block, and threads switch every `SWITCH_INTERVAL_S`. A process of torchrun ends
    when torchrun dies. The large packages are imported by a thread, while the config and the observation are read.
    """
    end_with_launcher()
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    threading.Thread(target=import_packages).start()  # not a daemon: torch must not be interrupted at the exit


def import_packages() -> None:
    """Import numba and torch; numba first, since the first pages are made without torch."""
    import numba  # noqa: F401
    import torch  # noqa: F401


def one_thread_each() -> None:
    """Let torch use no threads of its own in this one: two layers of threads hinder each other."""
    import torch

    torch.set_num_threads(1)


def worker_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that classify pages."""
    return ThreadPoolExecutor(threads, initializer=one_thread_each)
