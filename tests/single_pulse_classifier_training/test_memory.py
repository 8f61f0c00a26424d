"""Freed memory is used again."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_a_second_large_array_needs_no_new_memory():
    code = """
import resource
import numpy as np
from single_pulse_classifier_training.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
first, second = faults(), faults()
assert second < first / 10, (first, second)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
