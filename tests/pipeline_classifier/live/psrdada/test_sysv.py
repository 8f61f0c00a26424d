"""System V shared memory and semaphores."""

import signal
import time

import pytest

from pipeline_classifier.live.psrdada.client import Reader, Writer, create_rings
from pipeline_classifier.live.psrdada.sysv import Segment, Semaphores
from tests.pipeline_classifier.live.psrdada.conftest import BLOCK, IMPORTS, attached, in_thread, page


def test_a_waiting_thread_does_not_hold_the_gil(ring_key):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        began = time.monotonic()
        thread, results = in_thread(reader._data.wait, 10.0)  # one call of libc
        writer.write(page(0))
        thread.join()
        assert results == [True] and time.monotonic() - began < 5.0


def test_operations_apply_all_or_none(ring_key):
    values = Semaphores(ring_key, 2, create=True)
    assert values.change((0, 3, 0))
    began = time.monotonic()
    assert not values.change((0, -1, 0), (1, -1, 0), timeout_s=0.1)
    assert 0.09 <= time.monotonic() - began < 2.0 and [values[0], values[1]] == [3, 0]
    assert values.change((0, -1, 0), (1, 2, 0)) and [values[0], values[1]] == [2, 2]


def test_a_wait_goes_on_after_a_signal(ring_key):
    values, signals = Semaphores(ring_key, 1, create=True), []
    before = signal.signal(signal.SIGALRM, lambda *_: signals.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        began = time.monotonic()
        assert not values.change((0, -1, 0), timeout_s=0.3)
        assert time.monotonic() - began >= 0.29 and len(signals) == 1
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_read_only_segment_cannot_be_written(ring_key, start):
    Segment(ring_key, 100).detach()
    code = """
import ctypes, resource
from pipeline_classifier.live.psrdada.sysv import Segment
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
ctypes.memset(Segment(key, read_only=bool(int(sys.argv[2]))).address, 1, 100)
"""
    assert start(IMPORTS + code, ring_key, 0).ends() == 0
    assert start(IMPORTS + code, ring_key, 1).ends() == -signal.SIGSEGV


def test_keys_in_use_and_unknown_keys(ring_key):
    Segment(ring_key, 100).detach()
    Semaphores(ring_key, 2, create=True)
    for create in (lambda: Segment(ring_key, 100), lambda: Semaphores(ring_key, 2, create=True)):
        with pytest.raises(FileExistsError):
            create()
    for connect in (lambda: Segment(ring_key + 1), lambda: Semaphores(ring_key + 1, 2)):
        with pytest.raises(FileNotFoundError):
            connect()
    assert attached() == 0


def test_only_32_bits_of_a_key_count(ring_key, parts_of):
    """The keys that a ring derives from its own can exceed the range of key_t."""
    Segment(ring_key + (1 << 32), 100).detach()
    assert [part["key"] for part in parts_of(ring_key)["shm"]] == [ring_key]
