"""What the process of a search imports, and when."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_large_packages_are_imported_by_a_thread():
    code = """
import gc, sys, threading
from pipeline_classifier.detection.workers import prepare_process
large = {"numba", "torch", "scipy"}
assert not large & set(sys.modules)
prepare_process()
[thread] = set(threading.enumerate()) - {threading.main_thread()}
assert not thread.daemon
thread.join()
assert large < set(sys.modules) and gc.isenabled() and gc.get_freeze_count() > 100_000
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
