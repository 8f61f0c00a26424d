"""The protocol between writer and readers, semaphore by semaphore; processes that are killed with SIGKILL."""

import threading

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
        assert fields(ring_key)["count"] == [1, 1, 1, 1]  # buffer 1 is cleared, but not yet reclaimed
        assert semaphores(data, 5) == [6, 7, 3, 1, 0]
    # The reader disconnected first, before transfer 1; the writer then ended its transfer with an empty block.
    now = fields(ring_key)
    assert (now["w_state"], now["w_xfer"], now["e_buf"][2], now["e_byte"][2]) == (0, 3, 5, 0)
    assert now["w_buf_next"] == now["w_buf_curr"] == 6 and now["r_states"][0] == 0
    assert semaphores(ring_key + STEP, 2) == [1, 1] and semaphores(data, 5)[4] == 1
    # The locks of the header ring are released too.
    assert semaphores(ring_key + 1 + STEP, 2) == [1, 1]


EDGES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 3500) | st.sampled_from(EDGES), min_size=1, max_size=20),
    empty_last_block=st.booleans(),
    n_blocks=st.integers(1, 5),
    n_readers=st.integers(1, 2),
)
def test_transfers_of_any_length_arrive_complete_and_in_order(ring_key, sizes, empty_last_block, n_blocks, n_readers):
    """A transfer that ends at the edge of a block ends with the full block, or with an empty one after it."""
    create_rings(ring_key, BLOCK, n_blocks=n_blocks, n_readers=n_readers)
    transfers = [page(number, size) for number, size in enumerate(sizes)]
    connected = threading.Barrier(n_readers)

    def write() -> None:
        with Writer(ring_key) as writer:
            for data in transfers:
                if empty_last_block and len(data) % BLOCK == 0:
                    writer.write(data)
                    writer.write(b"", end_of_data=True)
                else:
                    writer.write(data, end_of_data=len(data) % BLOCK == 0)

    def read() -> list[bytes]:
        with Reader(ring_key) as reader:
            connected.wait(10.0)  # otherwise a reader that connects late may get the slot of one that has finished
            return [read_transfer(reader) for _ in transfers]

    try:
        threads = [in_thread(read) for _ in range(n_readers)] + [in_thread(write)]
        for thread, _ in threads:
            thread.join()
        for _, results in threads[:n_readers]:
            assert results == [transfers]
        n_pages = sum(max(1, -(-size // BLOCK), (size // BLOCK + 1) * empty_last_block) for size in sizes)
        assert fields(ring_key)["r_bufs"][:n_readers] == [n_pages] * n_readers
    finally:
        destroy_rings(ring_key)


def test_a_transfer_that_starts_inside_a_block(ring_key):
    """PSRDADA's own writers can start a transfer at any byte of a block (``ipcbuf_enable_sod``)."""
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        writer.write(page(0) + page(1, 600))
        writer.write(page(2, 600))
        put(ring_key, 320, "Q", 300)
        put(ring_key, 328, "Q", 600)
        assert reader.bytes_read == 0
        assert reader.getNextPage() == page(0)[300:]
        assert reader.bytes_read == 0
        reader.markCleared()
        assert reader.bytes_read == 700
        assert read_transfer(reader) == page(1, 600)
        assert reader.bytes_read == 0
        assert read_transfer(reader) == b""
        assert reader.bytes_read == 0
        for number in range(8):  # the next transfers in both slots start at byte 0 again
            writer.write(page(number, 600))
            assert read_transfer(reader) == page(number, 600)


def test_a_buffer_that_was_filled_twice_is_reclaimed_twice(ring_key):
    """The writer of PSRDADA takes CLEAR as often as ``count`` says (``ipcbuf_get_next_write``)."""
    create_rings(ring_key, BLOCK, n_blocks=1)
    with Writer(ring_key, timeout_s=0.1) as writer, Reader(ring_key) as reader:
        writer.write(page(0))
        reader.getNextPage()
        reader.markCleared()
        put(ring_key, 528, "B", 2)
        with pytest.raises(RingTimeout, match="reader 0 did not clear a block"):
            writer.write(page(1))
        assert fields(ring_key)["count"] == [1]


@pytest.mark.parametrize("n_transfers", [1, 8])
def test_a_reader_after_one_of_psrdada(ring_key, n_transfers):
    """``ipcbuf_mark_cleared`` does not count the last block of a transfer; the next start of data does."""
    create_rings(ring_key, BLOCK, n_blocks=12)
    with Writer(ring_key) as writer:
        writer.write(page(0) + page(1), end_of_data=True)
        with Reader(ring_key) as reader:
            assert read_transfer(reader) == page(0) + page(1)
        put(ring_key, 88, "Q", 1)
        for number in range(n_transfers):
            writer.write(page(number), end_of_data=True)
        with Reader(ring_key) as reader:
            assert [read_transfer(reader) for _ in range(n_transfers)] == [
                page(number) for number in range(n_transfers)
            ]
            assert not reader.wait(0.0) and reader.fill == (0, 12)


@pytest.mark.parametrize("state", [0, 5, 7])
def test_a_reader_that_died_before_its_first_page(ring_key, state):
    """PSRDADA's states READER and RSTOP are between transfers, like 0."""
    create_rings(ring_key, BLOCK)
    put(ring_key, 152, "i", state)
    with Writer(ring_key) as writer:
        writer.write(page(0), end_of_data=True)
        with Reader(ring_key) as reader:
            assert read_transfer(reader) == page(0)
            assert semaphores(ring_key + 2 * STEP, 5) == [8, 8, 0, 1, 0]


@pytest.mark.parametrize("n_transfers", [1, 7, 8, 9, 17])
def test_a_reader_that_connects_when_everything_is_read(ring_key, n_transfers):
    create_rings(ring_key, BLOCK, n_blocks=4)
    with Writer(ring_key) as writer:
        for number in range(n_transfers):
            writer.write(page(number), end_of_data=True)
            with Reader(ring_key) as reader:
                assert read_transfer(reader) == page(number)
        with Reader(ring_key) as reader:
            assert not reader.wait(0.0) and reader.fill == (0, 4)
            assert reader.bytes_read == 0


@pytest.mark.parametrize("n_transfers", [1, 8, 9])
def test_blocks_that_are_not_handed_over(ring_key, n_transfers):
    """Between transfers, a writer of PSRDADA can fill blocks that no reader gets; it counts them in w_buf_curr."""
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer:
        for number in range(n_transfers - 1):
            writer.write(page(number), end_of_data=True)
            with Reader(ring_key) as reader:
                assert read_transfer(reader) == page(number)
        writer.write(page(n_transfers), end_of_data=True)
        put(ring_key, 64, "Q", n_transfers + 1)
        with Reader(ring_key) as reader:
            assert read_transfer(reader) == page(n_transfers)
            assert not reader.wait(0.0) and reader.fill == (0, 16)


def test_the_reader_furthest_behind_is_replaced_first(ring_key):
    create_rings(ring_key, BLOCK, n_readers=2)
    with Writer(ring_key) as writer:
        writer.write(page(0) + page(1))
        with Reader(ring_key) as first, Reader(ring_key) as second:
            first.getNextPage()
            assert second.fill[0] == 2
        with Reader(ring_key) as second, Reader(ring_key) as first:
            assert second.getNextPage() == page(0)
            assert first.getNextPage() == page(1)


def test_a_reader_continues_where_the_previous_one_disconnected(ring_key):
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
    with pytest.raises(RingTimeout, match="2 other readers are connected"):
        Reader(ring_key, timeout_s=0.1)
    with Writer(ring_key) as writer:
        writer.write(b"".join(page(number) for number in range(5)))
    for child in children:
        assert bytes.fromhex(child.says()) == b"".join(page(number) for number in range(5))
        assert child.ends() == 0
    assert semaphores(ring_key + STEP, 2) == [1, 2]


def test_a_write_that_times_out_takes_nothing_from_the_faster_reader(ring_key):
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


def test_a_reader_slot_is_free_again_after_a_kill(ring_key, start):
    create_rings(ring_key, BLOCK)
    child = start(IMPORTS + "reader = Reader(key); print('in', flush=True); input()", ring_key)
    assert child.says() == "in"
    with pytest.raises(RingTimeout, match="another reader is connected; stop one"):
        Reader(ring_key, timeout_s=0.1)
    thread, results = in_thread(Reader, ring_key, 10.0)
    child.kill()
    thread.join()
    results[0].disconnect()


def test_a_writer_that_disconnects_during_the_check_did_not_die(ring_key, monkeypatch):
    create_rings(ring_key, BLOCK)
    writer, reader = Writer(ring_key), Reader(ring_key)
    value = reader._data.value
    writer.write(page(0))
    monkeypatch.setattr(reader._data, "value", lambda *arguments: writer.disconnect() or value(*arguments))
    assert not reader._data.writer_died
    reader.disconnect()


def test_a_writer_that_connects_during_the_check_did_not_die(ring_key, monkeypatch):
    create_rings(ring_key, BLOCK)
    writer, reader = Writer(), Reader(ring_key)
    value = reader._data.value

    def value_then_write(*arguments):
        before = value(*arguments)
        writer.connect(ring_key)
        writer.write(page(0))
        return before

    monkeypatch.setattr(reader._data, "value", value_then_write)
    assert not reader._data.writer_died
    writer.disconnect()
    reader.disconnect()


@pytest.mark.parametrize(("offset", "value"), [(456, BLOCK + 1), (320, 400)])
def test_a_sync_segment_that_becomes_corrupt_is_not_used(ring_key, offset, value):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        writer.write(page(0, 300))
        put(ring_key, offset, "Q", value)  # e_byte beyond the block, s_byte beyond e_byte
        with pytest.raises(RingError, match="corrupt"):
            reader.getNextPage()


def test_more_unread_blocks_than_the_ring_has(ring_key):
    create_rings(ring_key, BLOCK, n_blocks=4)
    with Writer(ring_key) as writer:
        writer.write(page(0))
        put(ring_key, 64, "Q", 6)  # a reader killed after CLEAR may have left 5
        with pytest.raises(RingError, match="at most 4, got 6"):
            Reader(ring_key)
    assert semaphores(ring_key + STEP, 2)[1] == 1
