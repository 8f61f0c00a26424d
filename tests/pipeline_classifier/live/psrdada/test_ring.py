"""Making, attaching and destroying a ring: layout byte by byte, incomplete rings, other segments under the key."""

import ctypes
import threading
import time

import pytest

from pipeline_classifier.live.psrdada import ring as psrdada_ring
from pipeline_classifier.live.psrdada.client import Reader, RingError, RingTimeout, Writer, create_rings, destroy_rings
from pipeline_classifier.live.psrdada.sysv import Segment, Semaphores
from tests.pipeline_classifier.live.psrdada.conftest import BLOCK, STEP, attached, fields, in_thread, put, semaphores


@pytest.mark.parametrize("n_readers", [1, 3, 8])
def test_a_ring_has_the_layout_of_psrdada(ring_key, parts_of, n_readers):
    create_rings(ring_key, BLOCK, n_blocks=5, n_readers=n_readers)
    for key, nbufs, bufsz in ((ring_key, 5, BLOCK), (ring_key + 1, 8, 4096)):
        made = fields(key)
        assert made["size"] == 528 + 5 * nbufs
        assert (made["nbufs"], made["bufsz"], made["n_readers"], made["on_device_id"]) == (nbufs, bufsz, n_readers, -1)
        assert made["semkey_connect"] == key + STEP
        assert made["semkey_data"] == [key + STEP * (2 + reader) for reader in range(8)]
        assert made["shmkey"] == [key + STEP * (10 + block) for block in range(nbufs)]
        assert made["eod"] == [1] * 8 and made["count"] == [0] * nbufs
        assert {made[name] for name in ("w_buf_next", "w_buf_curr", "w_state", "w_xfer")} == {0}
        for name in ("r_bufs", "r_states", "r_xfers", "s_buf", "s_byte", "e_buf", "e_byte"):
            assert made[name] == [0] * 8
        assert semaphores(key + STEP, 2) == [1, n_readers]
        for reader in range(n_readers):
            assert semaphores(key + STEP * (2 + reader), 5) == [8, 8, 0, 0, 1]
    parts = parts_of(ring_key)
    assert len(parts["shm"]) == 2 + 5 + 8 and len(parts["sem"]) == 2 * (1 + n_readers)
    assert {part["perms"] & 0o777 for part in parts["shm"] + parts["sem"]} == {0o666}
    with Reader(ring_key) as reader:
        assert reader.fill == (0, 5)
    destroy_rings(ring_key)
    assert not any(parts_of(ring_key).values())
    destroy_rings(ring_key)


def test_a_ring_is_created_completely_or_not_at_all(ring_key, parts_of):
    create_rings(ring_key, BLOCK, n_blocks=4)
    before = parts_of(ring_key)
    with pytest.raises(RingError, match=f"{ring_key:x}"):
        create_rings(ring_key, BLOCK, n_blocks=4)
    assert parts_of(ring_key) == before
    destroy_rings(ring_key)
    for taken in (ring_key + 12 * STEP, ring_key + 1 + 12 * STEP):
        other = Segment(taken, 100)
        other.detach()
        with pytest.raises(RingError, match=f"{ring_key:x}"):
            create_rings(ring_key, BLOCK, n_blocks=4)
        assert [part["key"] for part in parts_of(ring_key)["shm"]] == [taken]
        assert not parts_of(ring_key)["sem"]
        other.remove()


def test_attaching_waits_for_a_ring_that_is_created_later(ring_key, monkeypatch):
    tried = threading.Event()
    attach = psrdada_ring.Ring._attach

    def note(self, read_only):
        try:
            attach(self, read_only)
        finally:
            tried.set()

    monkeypatch.setattr(psrdada_ring.Ring, "_attach", note)
    thread, results = in_thread(Reader, ring_key, 10.0)
    assert tried.wait(10.0)
    create_rings(ring_key, BLOCK)
    thread.join()
    with results[0] as reader:
        assert reader.fill == (0, 16)


NOT_SET_YET = {
    "semkey_connect": (0, "i", 0),
    "bufsz": (48, "Q", 0),
    "n_readers": (248, "I", 0),
    "key of the first block": (528 + 4, "i", 0),
    "key of the last block": (528 + 4 + 3 * 4, "i", 0),
}


@pytest.mark.parametrize(
    "made",
    ["nothing", "empty sync", "no semaphores", "no blocks", "no header ring", "no reader slots", *NOT_SET_YET],
)
def test_a_missing_or_incomplete_ring_is_a_timeout(ring_key, made):
    if made != "nothing":
        create_rings(ring_key, BLOCK, n_blocks=4)
    if made == "empty sync":
        for key in (ring_key, ring_key + 1):
            segment = Segment(key)
            ctypes.memset(segment.address, 0, segment.size)
            segment.detach()
    elif made == "no semaphores":
        Semaphores(ring_key + 2 * STEP, 5).remove()
    elif made == "no blocks":
        segment = Segment(ring_key + 12 * STEP)
        segment.remove()
        segment.detach()
    elif made == "no header ring":
        psrdada_ring.remove_ring(ring_key + 1)
    elif made == "no reader slots":  # whoever creates a ring raises READ before READER_CONN
        Semaphores(ring_key + 2 * STEP, 5).change((4, -1, 0))
    elif made in NOT_SET_YET:
        put(ring_key, *NOT_SET_YET[made])
    began = time.monotonic()
    reason = "still being created" if made in NOT_SET_YET else ""
    with pytest.raises(RingTimeout, match=f"ring 0x{ring_key:x}.*{reason}"):
        Reader(f"{ring_key:x}", timeout_s=0.2)
    assert 0.15 < time.monotonic() - began < 2.0
    assert attached() == 0
    if made == "no reader slots":
        assert semaphores(ring_key + STEP, 2) == [1, 1]


@pytest.mark.parametrize(
    ("offset", "code", "value", "says"),
    [
        (520, "i", 0, "GPU 0"),
        (40, "Q", 77, "not a PSRDADA ring"),
        (40, "Q", 1 << 63, "not a PSRDADA ring"),
        (248, "I", 77, "readers must be between 1 and 8, got 77"),
        (48, "Q", 1 << 40, f"blocks must have {1 << 40} bytes, got {BLOCK}"),
    ],
)
@pytest.mark.parametrize("end", [Reader, Writer])
def test_a_corrupt_sync_segment_is_refused(ring_key, end, offset, code, value, says):
    create_rings(ring_key, BLOCK, n_blocks=4)
    put(ring_key, offset, code, value)
    began = time.monotonic()
    with pytest.raises(RingError, match=says) as caught:
        end(ring_key, timeout_s=5.0)
    assert f"0x{ring_key:x}" in str(caught.value) and time.monotonic() - began < 2.0
    assert attached() == 0
    assert semaphores(ring_key + 1 + STEP, 2) == [1, 1]


@pytest.mark.parametrize(
    ("size", "says"),
    [(512 + 20, "before 2018"), (520 + 20, "before 2018"), (8, "not a PSRDADA ring"), (4096, "not a PSRDADA ring")],
)
def test_another_layout_is_refused(ring_key, size, says):
    create_rings(ring_key, BLOCK, n_blocks=4)
    old = Segment(ring_key)
    old.remove()
    old.detach()
    segment = Segment(ring_key, size)
    ctypes.memset(segment.address, 0xA5, size)
    segment.detach()
    if size > 48:
        put(ring_key, 40, "Q", 4)
    for use in (lambda: Reader(ring_key), lambda: destroy_rings(ring_key)):
        with pytest.raises(RingError, match=says):
            use()
    assert attached() == 0
