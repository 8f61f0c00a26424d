"""Reader and Writer: pages, headers, time-outs, writers that die, rings that are destroyed."""

import ctypes
import time

import pytest

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
from tests.pipeline_classifier.live.psrdada.conftest import (
    BLOCK,
    IMPORTS,
    attached,
    in_thread,
    page,
    put,
    read_transfer,
)


def test_two_processes_transfer_more_than_the_ring_holds(ring_key, start):
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


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"ndm": 256, "obsinfo": {"tsamp": 1e-4}}\0\0\0', {"ndm": 256, "obsinfo": {"tsamp": 1e-4}}),
        (b'{"ndm": 256}\nOBS_OFFSET 0\nTRANSFER_SIZE 99\n\0', {"ndm": 256}),
        (
            b"HDR_SIZE 4096\nNDM\t256   # trials\nSOURCE B0531+21 x\nFLAG\n\0",
            {"HDR_SIZE": "4096", "NDM": "256", "SOURCE": "B0531+21 x"},
        ),
        (b"\0\0\0", {}),
        (b"", {}),
        (b"[1, 2]\0", {"[1,": "2]"}),
        (b'"just text"\0', {'"just': 'text"'}),
        (b"\xff\xfe A\0", {"\ufffd\ufffd": "A"}),
    ],
)
def test_parse_header(raw, expected):
    header = parse_header(raw)
    assert header.pop(RAW_HEADER) == raw.split(b"\0")[0].decode(errors="replace").strip()
    assert header == expected


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
        writer.setHeader(b"x " * 2047 + b"yz")
        assert reader.getHeader()[RAW_HEADER].endswith("x yz")
        writer.setHeader('{"ndm": 8}')
        assert reader.getHeader()["ndm"] == 8
    # The next reader of the same stream gets the last header again; without pages, after the time-out.
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


def test_a_header_is_at_most_a_block(ring_key):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        writer.setHeader({"NDM": 4})
        writer.setHeader({"NDM": 5})
        assert [reader.getHeader()["NDM"] for _ in range(2)] == ["4", "5"]
        writer.write(page(0))
        for offset, code, value in ((392, "Q", 1), (456, "Q", 1 << 40), (384, "B", 1)):
            put(ring_key + 1, offset, code, value)  # block 1 ends transfer 0 after more bytes than it has
        assert reader.getHeader()["NDM"] == "5"


def test_the_last_header_is_read_again(ring_key):
    create_rings(ring_key, BLOCK, header_blocks=2)
    with Writer(ring_key) as writer:
        for number in range(5):
            writer.setHeader({"N": number})
            writer.write(page(number))
            with Reader(ring_key) as reader:
                assert reader.getHeader()["N"] == str(number)
            with Reader(ring_key) as reader:
                assert reader.getHeader()["N"] == str(number)
                assert reader.getNextPage() == page(number)


@pytest.mark.parametrize(("n_later", "expected"), [(0, "4"), (1, "4"), (2, None)])
def test_a_header_that_was_overwritten_is_not_read_again(ring_key, n_later, expected):
    """The header ring has two blocks: the second header after ``NDM 4`` overwrites it."""
    create_rings(ring_key, BLOCK, header_blocks=2)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        writer.setHeader({"NDM": 4})
        assert reader.getHeader()["NDM"] == "4"
        writer.write(page(0))
        for _ in range(n_later):
            writer._header.next(1.0)
            writer._header.filled(0, end_of_data=True, timeout_s=1.0)
        assert reader.getHeader().get("NDM") == expected


def test_no_header(ring_key):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key, timeout_s=0.1) as reader:
        with pytest.raises(RingTimeout, match=f"{ring_key:x}"):
            reader.getHeader()
        writer.write(page(0))
        reader.timeout_s, began = 20.0, time.monotonic()
        assert reader.getHeader() == {RAW_HEADER: ""}
        assert time.monotonic() - began < 10.0, "it waits no longer when there is a page"
        assert reader.getNextPage() == page(0)


def test_a_header_that_comes_together_with_its_first_page(ring_key, monkeypatch):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        peek = reader.peekHeader

        def peek_then_write() -> bytes | None:
            monkeypatch.undo()
            header = peek()
            writer.setHeader({"NDM": 4})
            writer.write(page(0))
            return header

        monkeypatch.setattr(reader, "peekHeader", peek_then_write)
        assert reader.getHeader()["NDM"] == "4"


def test_end_of_data_is_that_of_the_last_page(ring_key):
    create_rings(ring_key, BLOCK)
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        ends = [False, True, True, False, True]
        writer.markEndOfData()  # without a page, nothing is sent
        for end in ends:
            writer.getNextPage()
            assert not writer.isEndOfData
            (writer.markEndOfData if end else writer.markFilled)()
            assert writer.isEndOfData == end
        assert reader.fill == (5, 16)
        for end in ends:
            reader.getNextPage()
            assert not reader.isEndOfData
            reader.markCleared()
            assert reader.isEndOfData == end


def test_every_wait_ends_after_its_timeout(ring_key):
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
        # A page that did not fit can be written when a block is free.
        reader.getNextPage()
        reader.markCleared()
        writer.write(page(0))
        assert reader.fill == (2, 2)


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
        assert not reader.wait(0.3)  # the writer is alive, only slow
        thread, results = in_thread(reader.wait, 10.0)
        child.kill()
        began = time.monotonic()
        thread.join()
        assert isinstance(results[0], WriterDied) and time.monotonic() - began < 1.0
    # Another writer continues the transfer, from the block that the dead one was holding.
    with Writer(ring_key) as writer, Reader(ring_key) as reader:
        writer.write(page(2, 500))
        assert reader.bytes_read == 2 * BLOCK
        assert reader.getNextPage() == page(2, 500)


def test_pages_of_a_killed_writer_are_all_read_first(ring_key, start, monkeypatch):
    create_rings(ring_key, BLOCK)
    code = "writer = Writer(key); writer.write(bytes(5000)); print('written', flush=True); input()"
    child = start(IMPORTS + code, ring_key)
    assert child.says() == "written"
    child.kill()
    with Reader(ring_key) as reader:
        with monkeypatch.context() as patch:  # the pages came, and the writer died, just after a wait
            patch.setattr(reader._data, "wait", lambda timeout_s: False)
            assert not reader.wait(0.0)
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
