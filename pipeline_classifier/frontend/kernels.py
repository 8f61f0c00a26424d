"""Compiled loops of the front end: plain loops over samples, each with a reference in numpy in the tests.

They are compiled for the machine when they are first called, and kept in numba's cache: beside this file, or in the
cache folder of the user where the checkout is not writable. They release the interpreter lock and use no threads.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

logger = logging.getLogger(__name__)

ROUNDING = {"reassoc", "contract", "arcp", "nsz"}
"""What the compiler may assume: sums in any order, but values that are not finite stay so."""


def kernel(function: Callable) -> Callable:
    """Compile a loop when it is first called; without a writable cache, in every process again."""
    options = {"nogil": True, "fastmath": ROUNDING, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder for its cache
        return numba.njit(**options)(function)
