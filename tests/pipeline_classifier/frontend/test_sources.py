"""Sources: a filterbank's pages do not depend on how it is read; batches are taken as they are, or refused."""

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_classifier.detection.peaks import find_peaks
from pipeline_classifier.events import Event
from pipeline_classifier.formats.sigproc import Filterbank, FilterbankWriter, Header
from pipeline_classifier.frontend import filterbank_pages
from pipeline_classifier.frontend.boxcar import boxcar_search
from pipeline_classifier.frontend.dedispersion import brute_force, delays_in_samples, quantise
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.settings import Cleaning, FrontEndSettings
from pipeline_classifier.frontend.sources import ArrayPages
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError

HEADER = Header(nchans=64, nbits=8, tsamp=4.096e-4, fch1=1530.0, foff=-5.0, tstart=59000.0)
DMS = 2.0 * np.arange(64)
PULSE = Pulse(3.3, 56.0, 40.0, 2.0)
NSAMPLES = round(8 / HEADER.tsamp)


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("observation") / "a.fil"
    simulate(path, HEADER, NSAMPLES, [PULSE], Rfi(), seed=1)
    return path


def stream(source: FilterbankPages, batch_size: int = 16) -> np.ndarray:
    """Pages that adjoin, put together again: (n_dm, n)."""
    pages = np.concatenate([batch.pages for batch in source.batches(batch_size)])
    plane = np.zeros((len(pages[0]), source.starts[-1] + source.grid.n_time), np.float32)
    for page, start in zip(pages, source.starts):
        plane[:, start : start + source.grid.n_time] = page
    return plane


def peak_of(source: FilterbankPages) -> tuple[float, float, float]:
    plane = stream(source)
    [peak] = find_peaks(boxcar_search(plane, 128), source.grid, 0, plane.shape[1], most=1)
    return source.grid.dms[peak.row], (peak.column + peak.width / 2) * source.grid.tsamp, peak.snr


def test_pages_are_in_units_of_noise_and_show_the_pulse(observation):
    source = FilterbankPages(observation, FrontEndSettings(DMS))
    dm, time_s, snr = peak_of(source)
    assert (dm, time_s) == (pytest.approx(56, abs=2), pytest.approx(3.3, abs=1.5e-3))
    assert snr == pytest.approx(40, rel=0.15)
    assert stream(source)[:, : NSAMPLES // 3].std() == pytest.approx(1, abs=0.05)
    assert source.n_pages == -(-NSAMPLES // 256) and source.name == "a"
    assert source.summary().samples_read == NSAMPLES and source.summary().channels == 64
    # The outermost channels of the band, where the response rolls off, may be masked.
    assert 60 <= source.summary().channels_used <= 64
    assert source.grid.tstart == 59000.0 and source.grid.f_top == 1530.0 and source.grid.f_bottom == 1215.0


@pytest.mark.parametrize("block_samples", [2048, 5000, 1 << 20])
def test_the_block_length_does_not_matter(observation, block_samples):
    expected = peak_of(FilterbankPages(observation, FrontEndSettings(DMS)))
    dm, time_s, snr = peak_of(FilterbankPages(observation, FrontEndSettings(DMS, block_samples=block_samples)))
    assert (
        abs(dm - expected[0]) <= 2 and abs(time_s - expected[1]) <= 1e-3 and snr == pytest.approx(expected[2], rel=0.05)
    )


@pytest.fixture
def scaled_only(monkeypatch):
    """Cleaning that has no statistics: what is left does not depend on the blocks at all."""

    def scale(block, frequencies, tsamp, settings, out=None):
        data = np.zeros((block.shape[1], len(block) if out is None else out.shape[1]), np.float32)
        data[:, : len(block)] = (block.T - 100.0) / 10
        good = np.ones(len(data), bool)
        return data if out is None else quantise(torch.from_numpy(data), len(data), out), good

    monkeypatch.setattr(filterbank_pages, "clean", scale)


@pytest.mark.parametrize("block_samples", [2048, 3001, 8192])
def test_dedispersion_goes_on_across_block_edges(observation, scaled_only, block_samples):
    whole = stream(FilterbankPages(observation, FrontEndSettings(DMS, block_samples=NSAMPLES)))
    source = FilterbankPages(observation, FrontEndSettings(DMS, block_samples=block_samples))
    assert len(list(source.blocks())) > 1
    np.testing.assert_array_equal(stream(source), whole)


def test_exact_dedispersion_is_the_brute_force_sum(observation, scaled_only):
    source = FilterbankPages(observation, FrontEndSettings(DMS, exact=True))
    data = source.cleaned(0, NSAMPLES)[0]
    delays = delays_in_samples(DMS, HEADER.frequencies, HEADER.tsamp)
    data = np.pad(data, ((0, 0), (0, delays.max())))
    summed = brute_force(quantise(torch.from_numpy(data), 64, np.empty(data.shape, np.int8)), delays, NSAMPLES)
    np.testing.assert_array_equal(stream(source), np.float32(1 / 64) * summed.astype(np.float32))


def test_layers_of_time_resolution_are_sums_of_columns(observation, scaled_only):
    source = FilterbankPages(
        observation, FrontEndSettings(DMS, n_time=128, time_downsample=(1, 4, 16), overlap=0.5, block_samples=4096)
    )
    assert [layer.suffix for layer in source.layers] == ["", "_x4", "_x16"]
    pages = [[], [], []]
    for block in source.blocks():
        for batch in source.pages(block):
            pages[batch.layer].append(batch)
    fine = stream(FilterbankPages(observation, FrontEndSettings(DMS, n_time=128)))
    for layer, batches, factor in zip(source.layers, pages, (1, 4, 16)):
        assert layer.grid.tsamp == pytest.approx(factor * HEADER.tsamp)
        starts = np.concatenate([batch.starts for batch in batches])
        np.testing.assert_array_equal(starts, layer.starts)
        assert [batch.first for batch in batches] == list(np.cumsum([0, *map(len, batches)])[:-1])
        columns = -(-NSAMPLES // factor)
        assert starts[0] == 0 and starts[-1] + 128 == columns
        coarse = np.pad(fine[:, :NSAMPLES], ((0, 0), (0, columns * factor - NSAMPLES)))
        coarse = coarse.reshape(64, columns, factor).sum(axis=2) / np.sqrt(factor)
        whole = np.concatenate([batch.pages for batch in batches])
        # Past the end of the file the sweep still brings samples in; the last column of a layer sums over it.
        np.testing.assert_allclose(whole[:-3], np.stack([coarse[:, s : s + 128] for s in starts[:-3]]), atol=1e-4)


def test_stacks_of_trial_dms_are_the_rows_of_one_grid(observation, scaled_only, monkeypatch):
    monkeypatch.setattr(filterbank_pages, "STACK_DMS", 24)
    source = FilterbankPages(observation, FrontEndSettings(DMS, exact=True))
    assert [len(layer.grid.dms) for layer in source.layers] == [24, 24, 16]
    assert [layer.suffix for layer in source.layers] == ["", "_dms1", "_dms2"]
    [block, *_] = source.blocks()
    stacked = np.concatenate([batch.pages for batch in source.pages(block)], axis=1)
    monkeypatch.setattr(filterbank_pages, "STACK_DMS", 64)
    whole = FilterbankPages(observation, FrontEndSettings(DMS, exact=True))
    np.testing.assert_array_equal(stacked, whole.pages(next(whole.blocks()))[0].pages)


def test_downsampling_keeps_the_pulse_and_changes_the_grid(observation):
    source = FilterbankPages(observation, FrontEndSettings(DMS, cleaning=Cleaning(td=4, fd=2)))
    assert source.grid.tsamp == pytest.approx(4 * HEADER.tsamp)
    assert source.grid.f_top == pytest.approx(1527.5) and source.summary().channels == 32
    dm, time_s, snr = peak_of(source)
    assert (dm, time_s) == (pytest.approx(56, abs=2), pytest.approx(3.3, abs=3e-3))
    assert snr == pytest.approx(peak_of(FilterbankPages(observation, FrontEndSettings(DMS)))[2], rel=0.15)
    assert source.summary().samples == source.summary().samples_read == NSAMPLES // 4


def test_a_sweep_beyond_all_bounds_is_refused(tmp_path):
    header = Header(nchans=64, nbits=8, tsamp=1e-9, fch1=1.0, foff=-0.01)
    with FilterbankWriter(tmp_path / "a.fil", header) as file:
        file.write(np.zeros((100, 64), dtype=np.uint8))
    with pytest.raises(InputError, match="a.fil: the sweep of the highest trial DM must be below .* for DM 126"):
        FilterbankPages(tmp_path / "a.fil", FrontEndSettings(DMS))


def test_files_that_follow_each_other_are_one_observation(tmp_path, observation):
    whole = Filterbank(observation)
    parts = []
    for number, (first, last) in enumerate(((0, 7001), (7001, 9000), (9000, NSAMPLES))):
        header = replace(whole.header, tstart=whole.tstart + first * whole.tsamp / 86400)
        with FilterbankWriter(tmp_path / f"part{number}.fil", header) as file:
            file.write(whole.read(first, last - first))
        parts.append(tmp_path / f"part{number}.fil")
    joined = FilterbankPages(parts[::-1], FrontEndSettings(DMS))
    assert joined.name == "part0" and joined.grid.tstart == 59000.0
    np.testing.assert_array_equal(stream(joined), stream(FilterbankPages(observation, FrontEndSettings(DMS))))


def test_one_of_two_ifs_is_searched_or_their_sum(tmp_path):
    header = replace(HEADER, nifs=2)
    samples = np.random.default_rng(0).normal(100, 10, (4000, 2, 64)).astype(np.uint8)
    with FilterbankWriter(tmp_path / "two.fil", header) as file:
        file.write(samples)
    for ifs in (0, 1):
        with FilterbankWriter(tmp_path / "one.fil", HEADER) as file:
            file.write(np.ascontiguousarray(samples[:, ifs]))
        one = stream(FilterbankPages(tmp_path / "one.fil", FrontEndSettings(DMS)))
        np.testing.assert_array_equal(
            stream(FilterbankPages(tmp_path / "two.fil", FrontEndSettings(DMS, ifs=ifs))), one
        )
    assert (stream(FilterbankPages(tmp_path / "two.fil", FrontEndSettings(DMS))) != one).any()


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_compiled_dedispersion_gives_the_same_pages(observation):
    plain, compiled = (
        FilterbankPages(observation, FrontEndSettings(DMS, block_samples=4096, compiled=c)) for c in (False, True)
    )
    np.testing.assert_array_equal(stream(plain), stream(compiled))


def test_the_memory_of_a_block_is_bounded(observation, monkeypatch):
    monkeypatch.setattr(filterbank_pages, "BLOCK_BYTES", 4 * 64 * 4000)
    source = FilterbankPages(observation, FrontEndSettings(DMS))
    edges = source.block_edges()
    assert edges[0] == 0 and edges[-1] == NSAMPLES and (np.diff(edges) > 0).all()
    assert np.diff(edges)[:-1].max() + source.max_delay <= 4000


def test_batches_are_the_same_pages(observation):
    few, many = (list(FilterbankPages(observation, FrontEndSettings(DMS)).batches(size)) for size in (3, 100))
    assert max(len(batch) for batch in few) == 3 and len(many) >= 1
    np.testing.assert_array_equal(*(np.concatenate([b.pages for b in batches]) for batches in (few, many)))
    assert [batch.first for batch in few][:1] == [0]


def test_an_ascending_file_gives_the_same_pages(tmp_path, observation):
    ascending = replace(HEADER, fch1=1215.0, foff=5.0)
    simulate(tmp_path / "up.fil", ascending, NSAMPLES, [PULSE], Rfi(), seed=1)
    up, down = (
        FilterbankPages(tmp_path / "up.fil", FrontEndSettings(DMS)),
        FilterbankPages(observation, FrontEndSettings(DMS)),
    )
    assert up.observation.header.foff > 0 > down.observation.header.foff
    np.testing.assert_array_equal(stream(up), stream(down))


@pytest.mark.parametrize("nsamples", [1, 40, 300])
def test_a_file_shorter_than_the_largest_delay(tmp_path, nsamples):
    simulate(tmp_path / "short.fil", HEADER, nsamples, [], Rfi(), seed=1)
    source = FilterbankPages(tmp_path / "short.fil", FrontEndSettings(20.0 * np.arange(64)))
    pages = np.concatenate([batch.pages for batch in source.batches(4)])
    assert source.summary().samples_swept_past_end == nsamples
    assert pages.shape == (source.n_pages, 64, 256) and source.n_pages == max(1, -(-nsamples // 256))
    assert np.isfinite(pages).all() and (pages[-1][:, nsamples:] == 0).all()
    assert nsamples < 256 or (pages[0] != 0).mean() > 0.3


def test_a_file_of_one_constant_gives_empty_pages(tmp_path):
    with FilterbankWriter(tmp_path / "dead.fil", HEADER) as file:
        file.write(np.full((3000, 64), 9, np.uint8))
    source = FilterbankPages(tmp_path / "dead.fil", FrontEndSettings(DMS))
    assert (stream(source) == 0).all() and source.summary().channels_used == 0


def test_chosen_starts_and_overlap(observation):
    plane = stream(FilterbankPages(observation, FrontEndSettings(DMS)))
    starts = np.array([0, 7, 7, 3000, 10000, NSAMPLES - 256])
    chosen = FilterbankPages(observation, FrontEndSettings(DMS)).with_starts(starts)
    pages = np.concatenate([batch.pages for batch in chosen.batches(2)])
    np.testing.assert_array_equal(pages, np.stack([plane[:, start : start + 256] for start in starts]))
    half = FilterbankPages(observation, FrontEndSettings(DMS, overlap=0.5))
    assert (np.diff(half.starts)[:-1] == 128).all() and half.starts[-1] == NSAMPLES - 256
    np.testing.assert_array_equal(stream(half), plane)


def test_the_zaplist_reaches_the_account(observation):
    source = FilterbankPages(observation, FrontEndSettings(DMS, cleaning=Cleaning(zaplist=((1400.0, 1480.0),))))
    list(source.batches(64))
    assert 60 - 17 <= source.summary().channels_used <= 64 - 17


def test_a_cutout_shows_the_event_at_its_centre(observation):
    source = FilterbankPages(observation, FrontEndSettings(DMS))
    width = round(PULSE.width_ms / 1e3 / HEADER.tsamp)
    event = Event(PULSE.time_s, 59000.0, 56.0, 40.0, 2.0, 0.9, 31, 31, width)
    cutout = source.cutout(event)
    assert cutout.plane.shape[0] == 64 and cutout.spectrum.shape == (64, cutout.plane.shape[1])
    np.testing.assert_array_equal(cutout.frequencies, HEADER.frequencies)
    row, column = np.unravel_index(cutout.plane.argmax(), cutout.plane.shape)
    assert abs(DMS[row] - 56) <= 4 and abs(column + cutout.start) <= 5
    assert abs(np.nansum(cutout.spectrum, axis=0).argmax() + cutout.start) <= 5


@pytest.mark.parametrize("shape", [(5, 64, 32), (5, 1, 64, 32), (5, 64, 32, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, ">f4"])
def test_shapes_and_types_of_a_batch(tmp_path, shape, dtype):
    values = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    np.save(tmp_path / "batch.npy", values)
    source = ArrayPages(tmp_path / "batch.npy", np.arange(64.0))
    batches = list(source.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1] and source.n_pages == 5 and source.name == "batch"
    assert batches[0].pages.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(np.concatenate([batch.pages for batch in batches]), values.reshape(5, 64, 32))
    assert (np.diff(source.starts) > source.grid.n_time).all(), "no two candidates are neighbours"


def test_rows_that_are_not_the_configured_grid_have_no_dm(tmp_path):
    np.save(tmp_path / "batch.npy", np.zeros((2, 32, 32), np.float32))
    assert np.isnan(ArrayPages(tmp_path / "batch.npy", np.arange(64.0)).grid.dms).all()


def npy(array: np.ndarray):
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    "write",
    [
        npy(np.zeros((64, 64))),
        npy(np.zeros((2, 3, 64, 64))),
        npy(np.zeros(0)),
        npy(np.zeros((0, 64, 64), np.float32)),
        npy(np.zeros((2, 0, 64), np.uint8)),
        npy(np.float32(3)),
        npy(np.zeros((2, 64, 64), np.int32)),
        npy(np.zeros((2, 64, 64), complex)),
        npy(np.full((2, 64, 64), "Pulse")),
        lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True),
        lambda path: path.write_bytes(pickle.dumps(np.zeros((2, 64, 64)))),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"),
        lambda path: path.write_bytes(b"text, not an array"),
        lambda path: (np.save(path, np.zeros((2, 64, 64))), path.write_bytes(path.read_bytes()[:5000])),
        lambda path: (
            np.savez(path.with_suffix(".npz"), pages=np.zeros((2, 64, 64))),
            path.with_suffix(".npz").rename(path),
        ),
    ],
    ids=[
        "2-d",
        "3 channels",
        "empty",
        "no pages",
        "no rows",
        "scalar",
        "int32",
        "complex",
        "strings",
        "objects",
        "pickle",
        "no bytes",
        "header cut",
        "text",
        "data cut",
        "npz",
    ],
)
def test_what_is_no_batch_is_refused(tmp_path, write):
    write(tmp_path / "batch.npy")
    with pytest.raises(InputError, match="batch.npy"):
        ArrayPages(tmp_path / "batch.npy", np.arange(64.0))


def test_a_zaplist_that_leaves_no_channel_is_refused(tmp_path):
    header = Header(nchans=8, nbits=8, tsamp=1e-3, fch1=1500.0, foff=-1.0)
    with FilterbankWriter(tmp_path / "a.fil", header) as file:
        file.write(np.zeros((100, 8), dtype=np.uint8))
    with pytest.raises(InputError, match="must leave at least one of its 8 channels"):
        FilterbankPages(
            tmp_path / "a.fil", FrontEndSettings(np.arange(4.0), cleaning=Cleaning(zaplist=((0.0, 9000.0),)))
        )
