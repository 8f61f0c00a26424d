"""System V shared memory and semaphores."""

import time

from pipeline_classifier.live.psrdada.client import Reader, Writer, create_rings
from tests.pipeline_classifier.live.psrdada.conftest import BLOCK, in_thread, page


def test_who_waits_does_not_hold_the_gil(ring_key):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        began = time.monotonic()
        thread, results = in_thread(reader._data.wait, 10.0)  # one call of libc
        writer.write(page(0))
        thread.join()
        assert results == [True] and time.monotonic() - began < 5.0
