"""Readers killed with SIGKILL at every step: the next reader loses no page and reads none twice."""

import signal

import pytest

from pipeline_classifier.live.psrdada.client import Reader, RingTimeout, Writer, create_rings
from tests.pipeline_classifier.live.psrdada.conftest import (
    BLOCK,
    IMPORTS,
    STEP,
    fields,
    page,
    read_transfer,
    semaphores,
)

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
        # The reader furthest behind is replaced first: with two, that is the one that never read.
        readers = sorted((Reader(ring_key) for _ in range(n_readers)), key=lambda reader: reader._data.index)
        for reader, first in zip(readers, (before, 0)):
            assert read_transfer(reader) == b"".join(page(number) for number in range(first, 3))
            assert reader.getNextPage() == page(3)
            reader.markCleared()
            assert reader.fill == (0, 6)
        # No block was lost: the writer can fill the whole ring, and no more.
        writer.timeout_s = 0.1
        writer.write(b"".join(page(number) for number in range(4, 10)))
        with pytest.raises(RingTimeout):
            writer.write(page(10))
        for reader in readers:
            assert [bytes(reader.__next__()) for _ in range(6)] == [page(number) for number in range(4, 10)]
            reader.disconnect()


KILLED = """
import os, signal
reader = Reader(key)
data, sync = reader._data, reader._data.sync
before, at, stores = int(sys.argv[2]), sys.argv[3], int(sys.argv[4])

class Position:
    def __init__(self, values):
        self.values = values
    def __getitem__(self, number):
        return self.values[number]
    def __setitem__(self, number, value):
        global stores
        if stores == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        stores -= 1
        self.values[number] = value

class Sync:
    def __getattr__(self, name):
        return Position(getattr(sync, name)) if name.startswith("r_") else getattr(sync, name)

for _ in range(before):
    reader.getNextPage(); reader.markCleared()
if at == "clear":
    reader.getNextPage()
data.sync = Sync()
reader.getNextPage() if at == "next" else reader.markCleared()
"""
"""A reader that is killed after it changed the semaphores, when it has stored ``stores`` of the numbers r_xfers, r_bufs
and r_states that are its position."""


@pytest.mark.parametrize(
    ("own_transfers", "before", "at", "stores"),
    [
        *[(False, 0, "next", stores) for stores in range(3)],
        (False, 0, "clear", 0),
        *[(False, 2, "clear", stores) for stores in range(3)],
        (True, 0, "next", 0),
        *[(True, 2, "next", stores) for stores in range(3)],
        *[(True, 0, "clear", stores) for stores in range(2)],
        *[(True, 2, "clear", stores) for stores in range(3)],
    ],
)
def test_a_reader_killed_between_semaphore_and_state(ring_key, start, own_transfers, before, at, stores):
    """No page is lost or read twice, and FULL is right afterwards, even if the writer filled the ring meanwhile."""
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
        assert start(IMPORTS + KILLED, ring_key, before, at, stores).ends() == -signal.SIGKILL
        written = write_all(4)
        assert written >= before + 8
        with Reader(ring_key) as reader:
            for number in range(before + (at == "clear"), written):
                assert reader.getNextPage() == page(number)
                reader.markCleared()
                assert reader.isEndOfData == own_transfers
            values = semaphores(ring_key + 2 * STEP, 5)
            # The writer may have begun a transfer without ending it.
            assert values[:3] == [8 - writer.isHoldingPage, 8, 0]
            assert values[3] == sum(fields(ring_key)["count"])
            again = write_all(written)
            assert again - written == (8 if own_transfers else 16)
            assert reader.getNextPage() == page(written)


@pytest.mark.parametrize("stores", [0, 1, 2])
@pytest.mark.parametrize("n_transfers", [0, 1, 7])
def test_a_reader_killed_while_it_ends_a_transfer(ring_key, start, stores, n_transfers):
    create_rings(ring_key, BLOCK, n_blocks=16)
    with Writer(ring_key) as writer:
        writer.write(page(0), end_of_data=True)
        assert start(IMPORTS + KILLED, ring_key, 0, "clear", stores).ends() == -signal.SIGKILL
        for number in range(1, 1 + n_transfers):
            writer.write(page(number), end_of_data=True)
        with Reader(ring_key) as reader:
            for number in range(1, 1 + n_transfers):
                assert read_transfer(reader) == page(number)
            assert not reader.wait(0.0) and reader.fill == (0, 16)
            writer.write(page(20), end_of_data=True)
            assert read_transfer(reader) == page(20)
            assert semaphores(ring_key + 2 * STEP, 5)[:3] == [8, 8, 0]


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_reader_killed_in_a_transfer_whose_slot_is_used_again(ring_key, start, before):
    """The eighth transfer after that of the reader has begun, and has not ended."""
    create_rings(ring_key, BLOCK, n_blocks=16)
    with Writer(ring_key) as writer:
        writer.write(page(0) + page(1) + page(2), end_of_data=True)
        assert start(IMPORTS + KILLED, ring_key, before, "clear", 0).ends() == -signal.SIGKILL
        for number in range(3, 10):
            writer.write(page(number), end_of_data=True)
        writer.write(page(10))
        assert fields(ring_key)["s_buf"][0] == 10 and fields(ring_key)["e_buf"][0] == 2
        with Reader(ring_key) as reader:
            assert reader.bytes_read == 0
            for number in range(before + 1, 11):
                assert reader.getNextPage() == page(number)
                reader.markCleared()
                assert reader.isEndOfData == (2 <= number < 10)
            assert not reader.wait(0.0)


def test_killed_readers_while_the_writer_continues(ring_key, start):
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
