"""Compiled additions of a dedispersion schedule, for machines with a C compiler.

The sums equal those of numpy to the bit. All additions are one call, which does not hold the interpreter lock, so that
threads do not slow each other down.
"""

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from single_pulse_classifier_training.cli import InputError

COMPILER = "cc"
SOURCE = r"""
#include <stdint.h>

#define ADDITIONS(name, type) \
void name(type *memory, const int64_t *a, int64_t n) \
{ \
    for (; n > 0; n--, a += 8) \
        for (int64_t row = 0; row < a[0]; row++) { \
            const type *upper = memory + a[2] + row * a[3], *lower = memory + a[4] + row * a[5]; \
            type *restrict sum = memory + a[6] + row * a[7]; \
            for (int64_t t = 0; t < a[1]; t++) \
                sum[t] = upper[t] + lower[t]; \
        } \
}

ADDITIONS(int16, int16_t)
ADDITIONS(int32, int32_t)
"""


@functools.cache
def additions(dtype: np.dtype) -> Callable[[int, int, int], None]:
    """Compile the additions for one integer type.

    Parameters
    ----------
    dtype : np.dtype
        int16 or int32.

    Returns
    -------
    callable
        Takes the address of the memory, the address of `Schedule.additions` and the number of additions.

    Raises
    ------
    InputError
        If there is no compiler, or it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "additions.so"
        command = [COMPILER, "-O3", "-march=native", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
        try:
            subprocess.run(command, input=SOURCE, text=True, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
            raise InputError(
                f"compile: must be false without a working C compiler, got true ({COMPILER}: {reason})"
            ) from error
        function = getattr(ctypes.CDLL(str(library)), dtype.name)
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function.restype = None
    return function
