"""The protocol between writer and readers, semaphore by semaphore; processes that are killed with SIGKILL."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_classifier.live.psrdada.client import Reader, RingError, RingTimeout, Writer, create_rings, destroy_rings
from tests.pipeline_classifier.live.psrdada.conftest import (
    BLOCK,
    IMPORTS,
    STEP,
    fields,
    in_thread,
    page,
    put,
    read_transfer,
    semaphores,
)


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
