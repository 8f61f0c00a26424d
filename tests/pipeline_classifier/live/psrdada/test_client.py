"""PSRDADA rings: layout to the byte, protocol to the semaphore, and every fault with processes that are really killed."""

import ctypes
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_classifier.config import parse_key
from pipeline_classifier.live.psrdada import ring as psrdada_ring
from pipeline_classifier.live.psrdada.client import (
    RAW_HEADER,
    Reader,
    RingDestroyed,
    RingError,
    RingTimeout,
    Writer,
    WriterDied,
    create_rings,
    destroy_rings,
    parse_header,
)
from pipeline_classifier.live.psrdada.sysv import Segment, Semaphores
from single_pulse_classifier_training.cli import InputError

BLOCK = 1000
STEP = 0x10000
IMPORTS = "import sys, numpy as np; from pipeline_classifier.live.psrdada.client import *; key = int(sys.argv[1]);"


def page(number: int, nbytes: int = BLOCK) -> bytes:
    return np.random.default_rng(number).bytes(nbytes)


def fields(key: int) -> dict:
    """The sync segment as the facts about PSRDADA have it, by offset; not by the code under test."""
    segment = Segment(key)
    raw = ctypes.string_at(segment.address, segment.size)
    segment.detach()
    one = {"semkey_connect": ("i", 0), "nbufs": ("Q", 40), "bufsz": ("Q", 48), "w_buf_next": ("Q", 56)}
    one |= {"w_buf_curr": ("Q", 64), "w_state": ("i", 72), "w_xfer": ("Q", 80), "n_readers": ("I", 248)}
    one |= {"on_device_id": ("i", 520)}
    eight = {"semkey_data": ("i", 4), "r_bufs": ("Q", 88), "r_states": ("i", 152), "r_xfers": ("Q", 184)}
    eight |= {"s_buf": ("Q", 256), "s_byte": ("Q", 320), "eod": ("B", 384), "e_buf": ("Q", 392), "e_byte": ("Q", 456)}
    values = {name: struct.unpack_from(f"<{code}", raw, at)[0] for name, (code, at) in one.items()}
    values |= {name: list(struct.unpack_from(f"<8{code}", raw, at)) for name, (code, at) in eight.items()}
    nbufs = values["nbufs"]
    values["count"] = list(raw[528 : 528 + nbufs])
    values["shmkey"] = list(struct.unpack_from(f"<{nbufs}i", raw, 528 + nbufs))
    values["size"] = segment.size
    return values


def put(key: int, offset: int, code: str, value: int) -> None:
    segment = Segment(key)
    ctypes.memmove(segment.address + offset, struct.pack(f"<{code}", value), struct.calcsize(code))
    segment.detach()


def semaphores(key: int, n: int) -> list[int]:
    values = Semaphores(key, n)
    return [values[number] for number in range(n)]


def attached() -> int:
    """Shared memory segments that this process has attached."""
    return Path("/proc/self/maps").read_text().count("/SYSV")


def read_transfer(reader: Reader) -> bytes:
    return b"".join(bytes(part) for part in reader)


def in_thread(function, *args) -> tuple[threading.Thread, list]:
    """Run in a thread; what it returns or raises comes in the list."""
    results: list = []

    def work() -> None:
        try:
            results.append(function(*args))
        except RingError as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, results


# ---- layout and protocol


@pytest.mark.parametrize("n_readers", [1, 3])
def test_a_ring_is_made_to_the_byte(ring_key, parts_of, n_readers):
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
    destroy_rings(ring_key)
    assert not any(parts_of(ring_key).values())
    destroy_rings(ring_key)


def test_the_protocol_step_by_step(ring_key):
    create_rings(ring_key, BLOCK, n_blocks=4)
    data = ring_key + 2 * STEP
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        assert semaphores(ring_key + STEP, 2) == [0, 0]
        writer.write(page(0))
        now = fields(ring_key)
        assert (now["w_buf_next"], now["w_buf_curr"], now["w_state"], now["w_xfer"]) == (1, 1, 3, 0)
        assert now["eod"][0] == 0 and now["count"] == [1, 0, 0, 0]
        assert semaphores(data, 5) == [7, 8, 1, 0, 0]
        writer.write(page(1, 300))
        now = fields(ring_key)
        assert (now["w_buf_next"], now["w_buf_curr"], now["w_state"], now["w_xfer"]) == (2, 2, 0, 1)
        assert (now["eod"][0], now["e_buf"][0], now["e_byte"][0]) == (1, 1, 300)
        assert semaphores(data, 5) == [7, 7, 2, 0, 0]

        assert reader.getNextPage() == page(0)
        now = fields(ring_key)
        assert now["r_states"][0] == 6 and now["r_bufs"][0] == 0
        assert semaphores(data, 5) == [8, 7, 1, 0, 0]
        reader.markCleared()
        assert not reader.isEndOfData and fields(ring_key)["r_bufs"][0] == 1
        assert reader.getNextPage() == page(1, 300)
        reader.markCleared()
        now = fields(ring_key)
        assert reader.isEndOfData
        assert (now["r_bufs"][0], now["r_xfers"][0], now["r_states"][0]) == (2, 1, 0)
        assert semaphores(data, 5) == [8, 8, 0, 2, 0]

        writer.write(page(2), end_of_data=True)
        now = fields(ring_key)
        assert (now["s_buf"][1], now["e_buf"][1], now["e_byte"][1], now["w_xfer"]) == (2, 2, BLOCK, 2)
        writer.write(page(3) + page(4))
        assert fields(ring_key)["count"] == [1, 1, 1, 1]  # place 1 is cleared, and not taken back yet
        assert semaphores(data, 5) == [6, 7, 3, 1, 0]
    # Our reader left first, in front of transfer 1; the writer ended its transfer with an empty block.
    now = fields(ring_key)
    assert (now["w_state"], now["w_xfer"], now["e_buf"][2], now["e_byte"][2]) == (0, 3, 5, 0)
    assert now["w_buf_next"] == now["w_buf_curr"] == 6 and now["r_states"][0] == 0
    assert semaphores(ring_key + STEP, 2) == [1, 1] and semaphores(data, 5)[4] == 1
    # Headers are blocks of one transfer that never ends.
    assert semaphores(ring_key + 1 + STEP, 2) == [1, 1]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 3500), min_size=1, max_size=20),
    n_blocks=st.integers(1, 5),
    n_readers=st.integers(1, 2),
)
def test_transfers_of_any_length_come_whole_and_in_order(ring_key, sizes, n_blocks, n_readers):
    create_rings(ring_key, BLOCK, n_blocks=n_blocks, n_readers=n_readers)
    transfers = [page(number, size) for number, size in enumerate(sizes)]

    def write() -> None:
        with Writer(ring_key) as writer:
            for data in transfers:
                writer.write(data)
                if len(data) % BLOCK == 0:
                    writer.write(b"", end_of_data=True)

    def read() -> list[bytes]:
        with Reader(ring_key) as reader:
            return [read_transfer(reader) for _ in transfers]

    try:
        threads = [in_thread(read) for _ in range(n_readers)] + [in_thread(write)]
        for thread, _ in threads:
            thread.join()
        for _, results in threads[:n_readers]:
            assert results == [transfers]
    finally:
        destroy_rings(ring_key)


def test_processes_pass_more_than_the_ring_holds(ring_key, start):
    create_rings(ring_key, BLOCK, n_blocks=3)
    code = """
with Writer(key) as writer:
    writer.setHeader('{"ndm": 4}')
    for number in range(30):
        writer.write(np.random.default_rng(number).bytes(2500))
"""
    writer = start(IMPORTS + code, ring_key)
    with Reader(ring_key) as reader:
        assert reader.getHeader()["ndm"] == 4
        assert [read_transfer(reader) for _ in range(30)] == [page(number, 2500) for number in range(30)]
        assert writer.ends() == 0


def test_a_page_is_a_copy_unless_asked_otherwise(ring_key):
    create_rings(ring_key, BLOCK, n_blocks=1)
    with Writer(ring_key, timeout_s=0.1) as writer:
        with Reader(ring_key) as reader:
            writer.write(page(0))
            copy = reader.getNextPage()
            with pytest.raises(RingError, match="markCleared"):
                reader.getNextPage()
            reader.markCleared()
            writer.write(page(1))
            assert copy == page(0) and copy.readonly
            assert reader.fill == (1, 1)
        with Reader(ring_key, copy=False) as reader:
            view = reader.getNextPage()
            assert view == page(1) and view.readonly
            reader.markCleared()
            writer.write(page(2))
            assert view == page(2)


def test_a_reader_that_leaves_is_followed_by_the_next(ring_key):
    create_rings(ring_key, BLOCK, n_blocks=8)
    with Writer(ring_key) as writer:
        writer.write(b"".join(page(number) for number in range(4)))
        with Reader(ring_key) as first:
            assert first.getNextPage() == page(0)
        assert fields(ring_key)["r_states"][0] == 6
        with Reader(ring_key) as second:
            assert second.bytes_read == BLOCK
            assert second.getNextPage() == page(1)
    with Reader(ring_key) as third:
        assert read_transfer(third) == page(2) + page(3)


# ---- headers


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"ndm": 256, "obsinfo": {"tsamp": 1e-4}}\0\0\0', {"ndm": 256, "obsinfo": {"tsamp": 1e-4}}),
        (b'{"ndm": 256}\nOBS_OFFSET 0\nTRANSFER_SIZE 99\n\0', {"ndm": 256}),
        (b"HDR_SIZE 4096\nNDM\t256   # trials\nSOURCE B0531+21 x\nFLAG\n\0", None),
        (b"\0\0\0", {}),
        (b"", {}),
        (b"[1, 2]\0", {}),
        (b'"just text"\0', {'"just': 'text"'}),
        (b"\xff\xfe A\0", {"\ufffd\ufffd": "A"}),
    ],
)
def test_headers(raw, expected):
    expected = {"HDR_SIZE": "4096", "NDM": "256", "SOURCE": "B0531+21 x"} if expected is None else expected
    header = parse_header(raw)
    text = header.pop(RAW_HEADER)
    assert header == (expected if raw[:1] != b"[" else {"[1,": "2]"})
    assert text == raw.split(b"\0")[0].decode(errors="replace").strip()


def test_headers_through_the_ring(ring_key):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        writer.setHeader({"NDM": 256, "SOURCE": "B0531+21"})
        writer.setHeader('{"ndm": 8}')
        assert reader.peekHeader().startswith(b"NDM 256\nSOURCE B0531+21\n\0")
        assert reader.getHeader()["SOURCE"] == "B0531+21"
        assert reader.getHeader() == {"ndm": 8, RAW_HEADER: '{"ndm": 8}'}
        with pytest.raises(RingError, match="4096"):
            writer.setHeader(b"x" * 4097)
    # The next reader of the same stream gets the header again, at once or after the time-out.
    with Reader(ring_key, timeout_s=0.1) as reader:
        assert reader.getHeader()["ndm"] == 8


def test_short_and_empty_headers_as_psrdada_python_writes_them(ring_key):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key, timeout_s=0.1) as reader:
        for text in (b"", b"NDM 4\n", b"", b"NDM 5\n", b""):
            address = writer._header.next(1.0)
            ctypes.memmove(address, text.ljust(4096, b"x"), 4096)
            writer._header.filled(len(text), end_of_data=False, timeout_s=1.0)
        assert reader.getHeader() == {"NDM": "4", RAW_HEADER: "NDM 4"}
        assert reader.getHeader() == {"NDM": "5", RAW_HEADER: "NDM 5"}
        assert reader.getHeader() == {"NDM": "5", RAW_HEADER: "NDM 5"}


def test_no_header(ring_key):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key, timeout_s=0.1) as reader:
        with pytest.raises(RingTimeout, match=f"{ring_key:x}"):
            reader.getHeader()
        writer.write(page(0))
        assert reader.getHeader() == {RAW_HEADER: ""}
        assert reader.getNextPage() == page(0)


# ---- waiting


def test_waits_end_in_time(ring_key):
    create_rings(ring_key, BLOCK, n_blocks=2)
    with Writer(ring_key, timeout_s=0.3) as writer, Reader(ring_key, timeout_s=0.3) as reader:
        for wait in (
            reader.getNextPage,
            reader.getHeader,
            lambda: Reader(ring_key, timeout_s=0.3),
            lambda: Writer(ring_key, timeout_s=0.3),
            lambda: writer.write(bytes(3 * BLOCK)),
        ):
            began = time.monotonic()
            with pytest.raises(RingTimeout, match=f"ring 0x{ring_key:x}"):
                wait()
            assert 0.29 <= time.monotonic() - began < 2.0
        assert reader.wait(0.0)
        # The page that did not fit can be written once there is room.
        reader.getNextPage()
        reader.markCleared()
        writer.write(page(0))
        assert reader.fill == (2, 2)


def test_a_full_ring_takes_nothing_from_the_faster_reader(ring_key):
    create_rings(ring_key, BLOCK, n_blocks=1, n_readers=2)
    with Writer(ring_key, timeout_s=0.1) as writer, Reader(ring_key) as fast, Reader(ring_key) as slow:
        writer.write(page(0))
        fast.getNextPage()
        fast.markCleared()
        for _ in range(2):
            with pytest.raises(RingTimeout):
                writer.write(page(1))
        assert sorted(semaphores(ring_key + STEP * (2 + reader), 5)[3] for reader in (0, 1)) == [0, 1]
        slow.getNextPage()
        slow.markCleared()
        writer.write(page(1))
        assert fast.getNextPage() == slow.getNextPage() == page(1)


def test_who_waits_does_not_hold_the_gil(ring_key):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        began = time.monotonic()
        thread, results = in_thread(reader._data.wait, 10.0)  # one call of libc
        writer.write(page(0))
        thread.join()
        assert results == [True] and time.monotonic() - began < 5.0


def test_a_ring_that_comes_later_is_waited_for(ring_key, monkeypatch):
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


@pytest.mark.parametrize("made", ["nothing", "empty sync", "no semaphores", "no blocks", "no header ring", "no places"])
def test_a_ring_that_is_not_there_or_not_whole(ring_key, made):
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
    elif made == "no places":  # the maker raises READ before READER_CONN
        Semaphores(ring_key + 2 * STEP, 5).change((4, -1, 0))
    began = time.monotonic()
    with pytest.raises(RingTimeout, match=f"ring 0x{ring_key:x}"):
        Reader(f"{ring_key:x}", timeout_s=0.2)
    assert 0.15 < time.monotonic() - began < 2.0
    assert attached() == 0
    if made == "no places":
        assert semaphores(ring_key + STEP, 2) == [1, 1]


# ---- processes that are killed

READ_AND_HOLD = """
reader = Reader(key)
for _ in range(int(sys.argv[2])):
    reader.getNextPage(); reader.markCleared()
reader.getNextPage()
print("holding", flush=True)
input()
"""


@pytest.mark.parametrize("n_readers", [1, 2])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_the_page_of_a_killed_reader_is_read_again(ring_key, start, before, n_readers):
    create_rings(ring_key, BLOCK, n_blocks=6, n_readers=n_readers)
    with Writer(ring_key) as writer:
        writer.write(page(0) + page(1) + page(2), end_of_data=True)
        writer.write(page(3))
        child = start(IMPORTS + READ_AND_HOLD, ring_key, before)
        assert child.says() == "holding"
        child.kill()
        assert semaphores(ring_key + STEP, 2)[1] == n_readers
        # The place that lags most is given first: with two, the new reader may get the one that was never used.
        readers = sorted((Reader(ring_key) for _ in range(n_readers)), key=lambda reader: reader._data.index)
        for reader, first in zip(readers, (before, 0)):
            assert read_transfer(reader) == b"".join(page(number) for number in range(first, 3))
            assert reader.getNextPage() == page(3)
            reader.markCleared()
            assert reader.fill == (0, 6)
        # Nothing has leaked: the whole ring can be filled, and no more than it.
        writer.timeout_s = 0.1
        writer.write(b"".join(page(number) for number in range(4, 10)))
        with pytest.raises(RingTimeout):
            writer.write(page(10))
        for reader in readers:
            assert [bytes(reader.__next__()) for _ in range(6)] == [page(number) for number in range(4, 10)]
            reader.disconnect()


HALF_DONE = """
reader = Reader(key)
data, state = reader._data, reader._data._state
def halt(*arguments):
    {also}
    print("half done", flush=True)
    input()
for _ in range(int(sys.argv[2])):
    reader.getNextPage(); reader.markCleared()
if "{at}" == "clear":
    reader.getNextPage()
data._state = halt
reader.getNextPage() if "{at}" == "next" else reader.markCleared()
"""
ONE_TRANSFER_UP = "data.sync.r_xfers[data.index] += 1"


@pytest.mark.parametrize(
    ("own_transfers", "before", "at", "also"),
    [
        (False, 0, "next", ""),
        (False, 0, "clear", ""),
        (False, 2, "clear", ""),
        (True, 0, "next", ""),
        (True, 2, "next", ""),
        (True, 0, "clear", ""),
        (True, 2, "clear", ""),
        (True, 0, "clear", ONE_TRANSFER_UP),
        (True, 2, "clear", ONE_TRANSFER_UP),
    ],
)
def test_a_reader_killed_between_semaphore_and_state(ring_key, start, own_transfers, before, at, also):
    """Nothing is lost, read twice, or short for ever; with a writer that has gone on as far as it can."""
    create_rings(ring_key, BLOCK, n_blocks=16)
    with Writer(ring_key, timeout_s=0.05) as writer:

        def write_all(number: int) -> int:
            try:
                while True:
                    writer.write(page(number), end_of_data=own_transfers)
                    number += 1
            except RingTimeout:
                return number

        for number in range(4):
            writer.write(page(number), end_of_data=own_transfers)
        child = start(IMPORTS + HALF_DONE.format(at=at, also=also), ring_key, before)
        assert child.says() == "half done"
        written = write_all(4)
        assert written >= before + 8
        child.kill()
        with Reader(ring_key) as reader:
            for number in range(before + (at == "clear"), written):
                assert reader.getNextPage() == page(number)
                reader.markCleared()
                assert reader.isEndOfData == own_transfers
            values = semaphores(ring_key + 2 * STEP, 5)
            assert values[:3] == [8 - writer.isHoldingPage, 8, 0]  # it may have begun a transfer, and not ended it
            assert values[3] == sum(fields(ring_key)["count"])
            again = write_all(written)
            assert again - written == (8 if own_transfers else 16)
            assert reader.getNextPage() == page(written)


def test_a_killed_reader_is_no_false_alarm_while_the_writer_goes_on(ring_key, start):
    create_rings(ring_key, BLOCK, n_blocks=4)
    code = """
with Writer(key) as writer:
    for number in range(60):
        writer.write(np.random.default_rng(number).bytes(1000))
"""
    writer = start(IMPORTS + code, ring_key)
    got: list[bytes] = []
    for _ in range(4):
        with Reader(ring_key) as reader:
            got += [bytes(reader.__next__()) for _ in range(10)]
        child = start(IMPORTS + READ_AND_HOLD, ring_key, 0)
        assert child.says() == "holding"
        child.kill()
    with Reader(ring_key) as reader:
        got += list(map(bytes, reader))
    assert got == [page(number) for number in range(60)] + [b""]
    assert writer.ends() == 0


@pytest.mark.parametrize("holding", [False, True])
def test_a_killed_writer_is_reported_within_a_second(ring_key, start, holding):
    create_rings(ring_key, BLOCK)
    code = f"""
writer = Writer(key)
writer.write(np.random.default_rng(0).bytes(1000)); writer.write(np.random.default_rng(1).bytes(1000))
{"writer.getNextPage()" if holding else ""}
print("written", flush=True)
input()
"""
    child = start(IMPORTS + code, ring_key)
    assert child.says() == "written"
    with Reader(ring_key) as reader:
        assert [bytes(reader.__next__()) for _ in range(2)] == [page(0), page(1)]
        reader.markCleared()
        assert not reader.wait(0.3)  # the writer is there, and slow
        thread, results = in_thread(reader.wait, 10.0)
        child.kill()
        began = time.monotonic()
        thread.join()
        assert isinstance(results[0], WriterDied) and time.monotonic() - began < 1.0
    # Another writer goes on in the same transfer, from the block that the dead one held.
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        writer.write(page(2, 500))
        assert reader.getNextPage() == page(2, 500)


def test_pages_of_a_killed_writer_are_all_read_first(ring_key, start):
    create_rings(ring_key, BLOCK)
    code = "writer = Writer(key); writer.write(bytes(5000)); print('written', flush=True); input()"
    child = start(IMPORTS + code, ring_key)
    assert child.says() == "written"
    child.kill()
    with Reader(ring_key) as reader:
        pages = [bytes(reader.__next__()) for _ in range(5)]
        assert pages == [bytes(BLOCK)] * 5
        reader.markCleared()
        with pytest.raises(WriterDied):
            reader.getNextPage()


def test_a_writer_that_ends_between_transfers_did_not_die(ring_key):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer:
        writer.setHeader("{}")
        writer.write(page(0), end_of_data=True)
    with Reader(ring_key) as reader:
        assert read_transfer(reader) == page(0)
        assert not reader.wait(0.6)


@pytest.mark.parametrize("holding", [False, True])
def test_a_ring_destroyed_under_both_ends(ring_key, parts_of, holding):
    create_rings(ring_key, BLOCK, n_blocks=1)
    reader, writer = Reader(ring_key), Writer(ring_key)
    if holding:
        writer.write(page(0))
        reader.getNextPage()
        destroy_rings(ring_key)
        for step in (reader.markCleared, reader.getNextPage, writer.getNextPage):
            with pytest.raises(RingDestroyed, match=f"{ring_key:x}"):
                step()
    else:
        thread, results = in_thread(reader.wait, 10.0)
        destroy_rings(ring_key)
        thread.join()
        assert isinstance(results[0], RingDestroyed)
    for _ in range(2):
        reader.disconnect()
        writer.disconnect()
    assert attached() == 0 and not any(parts_of(ring_key).values())
    with pytest.raises(RingError, match="connect"):
        reader.getNextPage()


def test_two_readers(ring_key, start):
    create_rings(ring_key, BLOCK, n_blocks=2, n_readers=2)
    code = """
reader = Reader(key)
print("ready", flush=True)
print(b"".join(bytes(page) for page in reader).hex(), flush=True)
reader.disconnect()
"""
    children = [start(IMPORTS + code, ring_key) for _ in range(2)]
    assert [child.says() for child in children] == ["ready", "ready"]
    with pytest.raises(RingTimeout, match="2 places"):
        Reader(ring_key, timeout_s=0.1)
    with Writer(ring_key) as writer:
        writer.write(b"".join(page(number) for number in range(5)))
    for child in children:
        assert bytes.fromhex(child.says()) == b"".join(page(number) for number in range(5))
        assert child.ends() == 0
    assert semaphores(ring_key + STEP, 2) == [1, 2]


def test_a_place_is_free_again_after_a_kill(ring_key, start):
    create_rings(ring_key, BLOCK)
    child = start(IMPORTS + "reader = Reader(key); print('in', flush=True); input()", ring_key)
    assert child.says() == "in"
    with pytest.raises(RingTimeout, match="places"):
        Reader(ring_key, timeout_s=0.1)
    thread, results = in_thread(Reader, ring_key, 10.0)
    child.kill()
    thread.join()
    results[0].disconnect()


# ---- things that are no ring


@pytest.mark.parametrize(
    ("offset", "code", "value", "says"),
    [
        (520, "i", 0, "GPU 0"),
        (40, "Q", 77, "not of a PSRDADA ring"),
        (40, "Q", 1 << 63, "not of a PSRDADA ring"),
        (248, "I", 77, "77 readers"),
        (48, "Q", 1 << 40, "blocks smaller"),
    ],
)
@pytest.mark.parametrize("end", [Reader, Writer])
def test_garbage_in_the_sync_segment(ring_key, end, offset, code, value, says):
    create_rings(ring_key, BLOCK, n_blocks=4)
    put(ring_key, offset, code, value)
    began = time.monotonic()
    with pytest.raises(RingError, match=says) as caught:
        end(ring_key, timeout_s=5.0)
    assert f"0x{ring_key:x}" in str(caught.value) and time.monotonic() - began < 2.0
    assert attached() == 0
    assert semaphores(ring_key + 1 + STEP, 2) == [1, 1]


@pytest.mark.parametrize(
    ("size", "says"), [(512 + 20, "before 2018"), (520 + 20, "before 2018"), (8, "not of a"), (4096, "not of a")]
)
def test_another_layout(ring_key, size, says):
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


@pytest.mark.parametrize(("offset", "value"), [(456, BLOCK + 1), (320, 400)])
def test_garbage_that_comes_later_is_not_read(ring_key, offset, value):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        writer.write(page(0, 300))
        put(ring_key, offset, "Q", value)  # e_byte beyond the block, s_byte beyond e_byte
        with pytest.raises(RingError, match="garbage"):
            reader.getNextPage()


def test_more_waiting_blocks_than_the_ring_has(ring_key):
    create_rings(ring_key, BLOCK, n_blocks=4)
    with Writer(ring_key) as writer:
        writer.write(page(0))
        put(ring_key, 64, "Q", 1000)
        with pytest.raises(RingError, match="garbage"):
            Reader(ring_key)
    assert semaphores(ring_key + STEP, 2)[1] == 1


def test_a_ring_is_made_whole_or_not_at_all(ring_key, parts_of):
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


@pytest.mark.parametrize("arguments", [{"n_readers": 9}, {"n_readers": 0}, {"n_blocks": 0}, {"block_bytes": 0}])
def test_rings_that_cannot_be(ring_key, parts_of, arguments):
    with pytest.raises(InputError):
        create_rings(ring_key, **{"block_bytes": BLOCK} | arguments)
    assert not any(parts_of(ring_key).values())


def test_keys():
    assert parse_key("dada") == parse_key("0xDADA") == parse_key(0xDADA) == 0xDADA
    assert parse_key("1111") == 0x1111
    for wrong in ("", "xyz", "0", 0, -1, "80000000", 1 << 31):
        with pytest.raises(InputError, match="hexadecimal"):
            parse_key(wrong)


def test_every_segment_is_let_go(ring_key):
    create_rings(ring_key, BLOCK)
    with Reader(ring_key), Writer(ring_key):
        assert attached() == 2 * (2 + 16 + 8)
    assert attached() == 0
