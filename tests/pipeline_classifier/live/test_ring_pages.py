"""Pages of a live ring: what comes out is what a writer in its own process put in, however blocks and images fit."""

import json
import logging
import time

import numpy as np
import pytest

from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.live.psrdada.client import (
    RAW_HEADER,
    Reader,
    RingError,
    RingTimeout,
    Writer,
    create_rings,
    destroy_rings,
)
from pipeline_classifier.live.ring_header import RingSettings, grid_of
from pipeline_classifier.live.ring_pages import RingPages
from single_pulse_classifier_training.cli import InputError

N_DM, N_TIME = 8, 16
IMAGE = 4 * N_DM * N_TIME
DMS = 10.0 + 2.0 * np.arange(N_DM)
OBSINFO = {"beam": "1", "fch1": 1530.0, "foff": -1.25, "nchans": 256, "tsamp": 1.024e-4, "tstart": 59000.5}
TODAY = json.dumps({"ddm": 0.5, "dms": 0.0, "ndm": N_DM, "obsinfo": OBSINFO})
OF_2024 = json.dumps(
    {"ddm": 0.5, "dms": 0.0, "fmax": 1530, "fmin": 1211.25, "ndm": N_DM, "ndump": N_TIME, "tsamp": 1e-4}
)
# Writes images in portions of so many, each one transfer if asked; waits for a line before the portions that follow.
WRITER = f"""
import json, sys
import numpy as np
from pipeline_classifier.live.psrdada.client import (Writer)
key, header, counts, own_transfers, wait = json.loads(sys.argv[1])
images = np.random.default_rng(0).standard_normal((sum(counts), {N_DM}, {N_TIME})).astype(np.float32)
done = 0
with Writer(key) as writer:
    if header is not None:
        writer.setHeader(header)
    for count in counts:
        if done and wait:
            print("waits", flush=True)
            input()
        writer.write(images[done : done + count], end_of_data=own_transfers)
        done += count
    if wait:
        print("done", flush=True)
        input()
"""


def images_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, N_DM, N_TIME)).astype(np.float32)


@pytest.fixture
def stream(ring_key, start):
    """Make a ring and start a writer: ``stream(counts, ...)`` gives the writer."""

    def begin(counts, header=TODAY, block_bytes=IMAGE, own_transfers=False, wait=False, n_blocks=16):
        create_rings(ring_key, block_bytes, n_blocks)
        return start(WRITER, json.dumps([ring_key, header, counts, own_transfers, wait]))

    return begin


def source(key: int, **options) -> RingPages:
    limits = {"connect_timeout_s": 10.0, "idle_timeout_s": 10.0}
    return RingPages(key, RingSettings(DMS, N_TIME, **limits | options))


def put_together(batches) -> tuple[np.ndarray, np.ndarray]:
    batches = list(batches)
    numbers = np.cumsum([batches[0].first] + [len(batch) for batch in batches])
    assert [batch.first for batch in batches] == list(numbers[:-1])
    assert {batch.pages.dtype for batch in batches} == {np.dtype(np.float32)}
    return np.concatenate([batch.pages for batch in batches]), np.concatenate([batch.starts for batch in batches])


@pytest.mark.parametrize("block_bytes", [IMAGE, 4 * IMAGE, 5 * IMAGE // 2, IMAGE // 4, 100, 3 * IMAGE + 1])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_one_transfer_in_blocks_of_any_size(ring_key, stream, block_bytes, batch_size):
    writer = stream([23], block_bytes=block_bytes)
    with source(ring_key, stop_at_end_of_data=True) as pages:
        got, starts = put_together(pages.batches(batch_size))
        assert np.array_equal(got, images_of(23)) and got.flags.writeable
        assert np.array_equal(starts, N_TIME * np.arange(23)) and starts.dtype == np.int64
        assert pages.n_pages == 23 and pages.name == f"ring_{ring_key:x}"
        assert pages.summary().samples_read == 23 * N_TIME and pages.summary().bytes_left_over == 0
        assert pages.stopped == "end of data" and pages.summary().transfers == 1
    assert writer.ends() == 0


@pytest.mark.parametrize("block_bytes", [IMAGE, 4 * IMAGE])
def test_every_page_its_own_transfer(ring_key, stream, block_bytes):
    """The dada_dbdedispdb of 2024: end of data with every page, more of them than the eight transfers of a ring."""
    writer = stream([1] * 21, header=OF_2024, block_bytes=block_bytes, own_transfers=True)
    with source(ring_key, max_pages=21) as pages:
        got, starts = put_together(pages.batches(5))
        assert np.array_equal(got, images_of(21)) and np.array_equal(starts, N_TIME * np.arange(21))
        assert pages.summary().transfers == 21 and pages.summary().blocks_read == 21
        assert pages.stopped == "n_spectra of 21 pages reached"
    assert writer.ends() == 0


def test_part_of_an_image_is_not_carried_over_the_end_of_a_transfer(ring_key):
    create_rings(ring_key, IMAGE)
    images = images_of(4)
    with Writer(ring_key) as writer:
        writer.setHeader(TODAY)
        writer.write(images[:2].tobytes() + images[2].tobytes()[:100])
        writer.write(images[2:], end_of_data=True)
    with source(ring_key, idle_timeout_s=0.2) as pages:
        got, _ = put_together(pages.batches(64))
        assert np.array_equal(got, images)
        assert pages.summary().bytes_left_over == 100
        assert pages.stopped.startswith("no page for 0.2 s")


def test_a_page_waits_no_longer_than_the_latency_limit(ring_key, stream):
    writer = stream([3, 5, 70], wait=True)
    with source(ring_key, max_latency_s=0.3) as pages:
        batches = pages.batches(64)
        for count, said in ((3, "waits"), (5, "waits")):
            assert writer.says() == said
            began = time.monotonic()
            assert len(next(batches)) == count
            assert 0.25 < time.monotonic() - began < 1.3
            writer.tell()
        assert len(next(batches)) == 64
        assert writer.says() == "done"
        assert len(next(batches)) == 6
        writer.tell()


def test_a_slow_consumer_gets_full_batches(ring_key):
    create_rings(ring_key, IMAGE)
    with Writer(ring_key) as writer:
        writer.setHeader(TODAY)
        writer.write(images_of(14))
        with source(ring_key, max_latency_s=0.0, max_pages=14) as pages:
            assert [len(batch) for batch in pages.batches(6)] == [6, 6, 2]


def test_what_is_not_asked_for_stays_in_the_ring_and_the_next_run_goes_on(ring_key):
    create_rings(ring_key, IMAGE)
    images = images_of(8)
    with Writer(ring_key) as writer:
        writer.setHeader(TODAY)
        writer.write(images)
    with source(ring_key, max_pages=3) as first:
        got, starts = put_together(first.batches(2))
        assert np.array_equal(got, images[:3]) and np.array_equal(starts, [0, N_TIME, 2 * N_TIME])
        assert first.fill == (6, 16)  # five pages, and the empty one that ends the transfer
    with source(ring_key, stop_at_end_of_data=True) as rest:
        assert rest.header == first.header and rest.grid.tstart == 59000.5
        got, starts = put_together(rest.batches(64))
        assert np.array_equal(got, images[3:]) and np.array_equal(starts, N_TIME * np.arange(3, 8))
        # Numbers of pages continue, and the summary has the first.
        assert rest.summary().first_page == 3 and rest.n_pages == 5 and first.summary().first_page == 0


@pytest.mark.parametrize("block_bytes", [100, IMAGE // 4, 3 * IMAGE // 2])
def test_a_run_that_begins_inside_an_image_begins_with_the_next(ring_key, block_bytes):
    create_rings(ring_key, block_bytes, n_blocks=64)
    images = images_of(6)
    with Writer(ring_key) as writer:
        writer.setHeader(TODAY)
        writer.write(images, end_of_data=True)
    with Reader(ring_key) as reader:
        reader.getNextPage()
    whole = -(-block_bytes // IMAGE)
    with source(ring_key, stop_at_end_of_data=True) as pages:
        got, starts = put_together(pages.batches(64))
        assert np.array_equal(got, images[whole:]) and np.array_equal(starts, N_TIME * np.arange(whole, 6))
        assert pages.summary().bytes_left_over == whole * IMAGE - block_bytes


def test_pages_of_a_killed_writer_are_kept(ring_key, stream):
    writer = stream([5, 1], wait=True)
    assert writer.says() == "waits"
    with source(ring_key, max_latency_s=60.0) as pages:
        writer.kill()
        began = time.monotonic()
        got, _ = put_together(pages.batches(64))
        assert time.monotonic() - began < 1.0
        assert np.array_equal(got, images_of(5))
        assert "the writer died" in pages.stopped


def test_pages_of_a_destroyed_ring_are_kept(ring_key, stream):
    writer = stream([5, 1], wait=True)
    assert writer.says() == "waits"
    with source(ring_key, max_latency_s=0.2) as pages:
        batches = pages.batches(2)
        assert [len(next(batches)) for _ in range(3)] == [2, 2, 1]
        destroy_rings(ring_key)
        assert list(batches) == []
        assert "destroyed" in pages.stopped


def test_another_observation_is_left_for_the_next_run(ring_key):
    create_rings(ring_key, IMAGE)
    images = images_of(6)
    other = TODAY.replace("59000.5", "59001.25")
    with Writer(ring_key) as writer:
        for header, part in ((TODAY, images[:2]), (TODAY, images[2:3]), (other, images[3:])):
            writer.setHeader(header)
            writer.write(part, end_of_data=True)
    with source(ring_key) as pages:
        got, starts = put_together(pages.batches(64))
        assert np.array_equal(got, images[:3]) and np.array_equal(starts, N_TIME * np.arange(3))
        assert pages.stopped == "another observation begins"
    with source(ring_key, idle_timeout_s=0.1) as pages:
        assert pages.grid.tstart == 59001.25
        got, starts = put_together(pages.batches(64))
        assert np.array_equal(got, images[3:]) and np.array_equal(starts, N_TIME * np.arange(3))


OTHER = TODAY.replace("59000.5", "59001.25")


@pytest.mark.parametrize("read_before", [0, 2])
def test_an_observation_in_the_transfer_of_a_killed_writer_is_refused(ring_key, stream, read_before):
    """Without a reader meanwhile, and with one that left: no page may get the header of the other observation."""
    writer = stream([3, 1], wait=True)
    assert writer.says() == "waits"
    if read_before:
        with source(ring_key, max_pages=read_before) as pages:
            put_together(pages.batches(1))
    writer.kill()
    with Writer(ring_key) as writer:
        writer.setHeader(OTHER)
        writer.write(images_of(2))
        for _ in range(2):  # a refusal takes no header
            with pytest.raises(RingError, match=f"header waits in the middle.*dada_db -d -k {ring_key:x}"):
                source(ring_key)


def test_a_killed_writer_is_replaced_while_the_search_runs(ring_key, stream):
    writer = stream([3, 1], wait=True)
    assert writer.says() == "waits"
    with source(ring_key) as pages:
        batches = pages.batches(1)
        next(batches)
        writer.kill()
        with Writer(ring_key) as writer:
            writer.setHeader(OTHER)
            writer.write(images_of(2))
            assert len(list(batches)) <= 2, "none of the other observation"
            assert "header waits in the middle" in pages.stopped and pages.grid.tstart == 59000.5


def test_the_start_of_a_transfer_that_was_never_stored(ring_key):
    """A stock writer that goes on after a kill can leave the slot of its transfer as it was."""
    create_rings(ring_key, IMAGE)
    with Writer(ring_key) as writer:
        writer.setHeader(TODAY)
        writer.write(images_of(3), end_of_data=True)
        with source(ring_key, stop_at_end_of_data=True) as pages:
            put_together(pages.batches(4))
        writer.setHeader(OTHER)
        writer.write(images_of(2), end_of_data=True)
        writer._data.sync.s_buf[1] = 1
        with pytest.raises(RingError, match=f"begins before the end of the previous one.*dada_db -d -k {ring_key:x}"):
            source(ring_key)


def test_the_rest_of_a_transfer_keeps_its_header_when_the_next_one_waits(ring_key):
    create_rings(ring_key, IMAGE)
    with Writer(ring_key) as writer:
        for header in (TODAY, OTHER):
            writer.setHeader(header)
            writer.write(images_of(3), end_of_data=True)
    for tstart, first, count in ((59000.5, 0, 1), (59000.5, 1, 2), (59001.25, 0, 3)):
        with source(ring_key, max_pages=count) as pages:
            got, starts = put_together(pages.batches(1))
            assert pages.grid.tstart == tstart and np.array_equal(starts, N_TIME * (first + np.arange(count)))
            assert np.array_equal(got, images_of(3)[first : first + count])


@pytest.mark.parametrize(
    ("block_bytes", "input_block_bytes", "header", "refused"),
    [
        (IMAGE, 512 * 256, TODAY, False),  # a block is a page, as in the ring that dada_dbdedispdb makes
        (4 * IMAGE, N_TIME * 256, TODAY, False),
        (3 * IMAGE // 2, N_TIME * 256, TODAY, False),
        (2 * IMAGE, 2 * N_TIME * 256, TODAY, True),
        (IMAGE // 2, N_TIME * 128, TODAY, True),
        (2 * IMAGE, 2 * N_TIME * 256, OF_2024, False),  # it gives the page length
        (2 * IMAGE, 2 * N_TIME * 256, json.dumps({"ddm": 0.5, "dms": 0.0, "ndm": N_DM}), False),  # not TransientX
    ],
)
def test_a_page_length_that_cannot_be(ring_key, block_bytes, input_block_bytes, header, refused):
    create_rings(ring_key, block_bytes)
    with Writer(ring_key) as writer:
        writer.setHeader(header)
        writer.write(images_of(6))
        if refused:
            with pytest.raises(InputError, match=f"page_samples must be .*got {N_TIME}, .* {N_TIME * 256} bytes"):
                source(ring_key, input_block_bytes=input_block_bytes)
        else:
            with source(ring_key, input_block_bytes=input_block_bytes, max_pages=3) as pages:
                assert np.array_equal(put_together(pages.batches(3))[0], images_of(3))


def test_a_reader_that_is_not_there_is_named_at_the_end(ring_key):
    create_rings(ring_key, IMAGE, n_blocks=4, n_readers=2)
    with Writer(ring_key, timeout_s=0.1) as writer:
        writer.setHeader(TODAY)
        with pytest.raises(RingTimeout):
            writer.write(images_of(6))
        with source(ring_key, idle_timeout_s=0.2) as pages:
            assert len(put_together(pages.batches(1))[0]) == 4
            assert (
                pages.stopped == "no page for 0.2 s: the writer waits for reader 2 of the ring, which is not connected"
            )


def test_how_full_the_ring_is(ring_key, caplog):
    create_rings(ring_key, IMAGE, n_blocks=8)
    with Writer(ring_key) as writer:
        writer.setHeader(TODAY)
        writer.write(images_of(5))
        with source(ring_key, max_pages=20) as pages, caplog.at_level(logging.WARNING):
            assert pages.fill == (5, 8)
            batches = pages.batches(1)
            next(batches)
            assert pages.fill == (4, 8) and not caplog.records
            writer.write(images_of(4))
            next(batches)
            assert len(caplog.records) == 1 and pages.summary().most_ring_blocks_full == 8
            for _ in range(5):
                next(batches)
            assert len(caplog.records) == 1 and pages.fill == (2, 8)
            assert pages.summary().ring_blocks == 8


def test_a_full_ring_loses_nothing_of_a_file(ring_key, caplog):
    create_rings(ring_key, IMAGE, n_blocks=4)
    with Writer(ring_key) as writer:
        writer.setHeader(TODAY)
        writer.write(images_of(4))
        with source(ring_key, from_file=True, max_pages=4) as pages, caplog.at_level(logging.WARNING):
            put_together(pages.batches(1))
            assert not caplog.records and pages.summary().most_ring_blocks_full == 4


def test_rows_come_with_the_lowest_dm_first(ring_key):
    create_rings(ring_key, IMAGE)
    with Writer(ring_key) as writer:
        writer.setHeader(json.dumps({"dms": 60.0, "ddm": -2.0, "ndm": N_DM}))
        writer.write(images_of(2), end_of_data=True)
    with source(ring_key, stop_at_end_of_data=True) as pages:
        got, _ = put_together(pages.batches(64))
        assert np.array_equal(pages.grid.dms, 46.0 + 2.0 * np.arange(N_DM))
        assert np.array_equal(got, images_of(2)[:, ::-1]) and got.flags.c_contiguous


class Foreign:
    """A reader with the methods of psrdada-python's, and no other."""

    def __init__(self, header: dict) -> None:
        self.header, self.isEndOfData, self.connected = header, False, True
        self.blocks = [images_of(6)[:4].tobytes(), images_of(6)[4:].tobytes()]

    def getHeader(self) -> dict:
        return self.header

    def getNextPage(self) -> memoryview:
        return memoryview(self.blocks.pop(0))

    def markCleared(self) -> None:
        self.isEndOfData = not self.blocks

    def disconnect(self) -> None:
        self.connected = False


@pytest.mark.parametrize("header", [{RAW_HEADER: TODAY + "\0\0", '{"ddm":': "0.5"}, {"NDM": str(N_DM), "DDM": "0.5"}])
def test_a_reader_of_psrdada_python_serves_too(header):
    reader = Foreign(header)
    with RingPages(reader, RingSettings(0.0 * DMS, N_TIME, name="b", stop_at_end_of_data=True)) as pages:
        got, _ = put_together(pages.batches(4))
        assert np.array_equal(got, images_of(6)) and pages.name == "b"
        assert np.array_equal(pages.grid.dms, 0.5 * np.arange(N_DM))
    assert not reader.connected


# ---- headers


def check_grid(grid: PageGrid, dms, n_time, tsamp, tstart, top, bottom) -> None:
    assert grid.dms == pytest.approx(dms) and grid.n_time == n_time
    values = (grid.tsamp, grid.tstart, grid.f_top, grid.f_bottom)
    assert values == pytest.approx((tsamp, tstart, top, bottom), rel=1e-12, nan_ok=True)


def test_headers_of_both_versions():
    trials = 0.5 * np.arange(N_DM)
    grid, descending = grid_of(json.loads(TODAY), RingSettings(DMS, N_TIME))
    check_grid(grid, trials, N_TIME, 1.024e-4, 59000.5, 1530.0, 1530.0 - 255 * 1.25)
    assert not descending
    check_grid(
        grid_of(json.loads(TODAY), RingSettings(DMS, 64, samples_per_column=4))[0],
        trials,
        64,
        4.096e-4,
        59000.5,
        1530.0,
        1211.25,
    )
    check_grid(
        grid_of(json.loads(OF_2024), RingSettings(DMS, 64, samples_per_column=4))[0],
        trials,
        N_TIME,
        1e-4,
        np.nan,
        1530.0,
        1211.25,
    )
    ascending = {"obsinfo": {"fch1": "1211.25", "foff": "1.25", "nchans": "256", "tstart": "59000.5"}}
    check_grid(grid_of(ascending, RingSettings(DMS, 64))[0], DMS, 64, np.nan, 59000.5, 1530.0, 1211.25)


def test_lines_of_key_and_value_and_no_header():
    check_grid(grid_of({RAW_HEADER: ""}, RingSettings(DMS, 64))[0], DMS, 64, np.nan, np.nan, np.nan, np.nan)
    dada = {"NDM": "4", "DMS": "1", "DDM": "2", "NDUMP": "32", "TSAMP": "102.4", "MJD_START": "59000.5"}
    dada |= {"FREQ": "1370.625", "BW": "-320", "NCHAN": "256"}
    check_grid(grid_of(dada, RingSettings(DMS, 64))[0], [1, 3, 5, 7], 32, 1.024e-4, 59000.5, 1530.0, 1211.25)
    names = {"ndm": "4", "tsamp": "1e-3", "FCH1": "1500", "FOFF": "-1", "NCHANS": "101"}
    check_grid(grid_of(names, RingSettings(DMS, 64))[0], DMS[:4], 64, 1e-3, np.nan, 1500.0, 1400.0)


@pytest.mark.parametrize(
    "wrong",
    [{"ndm": 0}, {"ndm": "many"}, {"ndump": -1}, {"ddm": 0.0}, {"dms": float("nan")}, {"ndm": 1e12}, {"tsamp": [1]}],
)
def test_a_header_that_makes_no_page(ring_key, wrong):
    create_rings(ring_key, IMAGE)
    with Writer(ring_key) as writer:
        writer.setHeader(json.dumps(wrong))
        with pytest.raises(InputError, match=f"header.*{next(iter(wrong))}"):
            source(ring_key)
    with Reader(ring_key, timeout_s=0.1):
        pass  # the place is free again


def test_no_header_in_the_ring(ring_key, stream):
    stream([4], header=None)
    with source(ring_key, stop_at_end_of_data=True) as pages:
        got, _ = put_together(pages.batches(64))
        assert np.array_equal(got, images_of(4)) and np.array_equal(pages.grid.dms, DMS)


def test_no_ring_and_nothing_in_it(ring_key):
    for _ in range(2):
        with pytest.raises(RingTimeout, match=f"{ring_key:x}"):
            source(ring_key, connect_timeout_s=0.1)
        destroy_rings(ring_key)
        create_rings(ring_key, IMAGE)
