"""Threads that share the work, and the settings of a process that runs them."""

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from pipeline_classifier.detection.peaks import find_peaks
from pipeline_classifier.frontend.boxcar import boxcar_search, page_snrs
from pipeline_classifier.frontend.cleaning import clean
from pipeline_classifier.frontend.dedispersion import DedispersionTree
from pipeline_classifier.frontend.pages import PageBatch, PageGrid
from pipeline_classifier.frontend.settings import Cleaning
from single_pulse_classifier_training.memory import keep_freed_memory
from single_pulse_classifier_training.runtime import end_with_launcher

SWITCH_INTERVAL_S = 1e-3
"""Calls of the workers last some 100 us: at Python's own 5 ms a thread that waits for the interpreter leaves its core
idle."""

IMPORTS = "imports"
"""Name of the thread that imports large packages."""


def prepare_process() -> None:
    """Configure the process of a search; scripts call it before they start.

    Freed memory is kept for the next block, and threads switch every `SWITCH_INTERVAL_S`. A process of torchrun ends
    when torchrun dies. The large packages are imported by a thread, while the config and the observation are read.
    """
    end_with_launcher()
    keep_freed_memory()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Not a daemon: an import that the end of the process interrupts may abort it.
    threading.Thread(target=import_packages, name=IMPORTS).start()


def import_packages() -> None:
    """Load the compiled loops, then import torch, without which the first pages are made.

    The garbage collector is off meanwhile, and ignores these packages later: it would take a fifth of a second while
    they are imported, and more than half a second at the end of the process, and find nothing.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    with suppress(Exception):  # whoever needs the package reports it
        load_loops_of_front_end()
        load_loops_of_search()
        import torch  # noqa: F401
    gc.freeze()
    gc.enable()


def wait_for_packages() -> None:
    """Wait for the thread of `prepare_process`; Ctrl-C must not interrupt an import of torch in the main thread."""
    for thread in threading.enumerate():
        if thread.name == IMPORTS:
            thread.join()


def load_loops_of_front_end() -> None:
    """Load the compiled loops that make pages of 8-bit samples, by a search of some noise."""
    samples = np.random.default_rng(0).integers(0, 256, (1024, 8), np.uint8)
    cleaned = clean(samples, 1500.0 - np.arange(8), 1e-3, Cleaning(), np.empty((8, 1024), np.int8))
    DedispersionTree(np.zeros((2, 8)))(cleaned.data, 1024)


def load_loops_of_search() -> None:
    """Load the compiled loops that search pages; the first time they are compiled, which takes some seconds."""
    pages = np.zeros((1, 4, 64), np.float32)
    pages[0, 2, 32] = 50.0
    page_snrs(PageBatch.of_pages(pages, np.zeros(1, np.int64), 0), 1.0)
    find_peaks(boxcar_search(pages[0], 8, 1.0), PageGrid(np.arange(4.0), 64), 0, 64, most=1)


def one_thread_each() -> None:
    """Let torch use no threads of its own in this one: two layers of threads hinder each other."""
    import torch

    torch.set_num_threads(1)


def worker_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that classify pages."""
    return ThreadPoolExecutor(threads, initializer=one_thread_each)
