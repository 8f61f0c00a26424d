"""Pages of an observation: they show its pulses, and do not depend on the chunks in which it is read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier.detection.peaks import find_peaks
from pipeline_classifier.events import Event
from pipeline_classifier.formats.sigproc import Filterbank, FilterbankWriter, Header
from pipeline_classifier.frontend import filterbank_pages
from pipeline_classifier.frontend.boxcar import boxcar_search
from pipeline_classifier.frontend.chunks import PROGRAM_MB
from pipeline_classifier.frontend.cleaning import Cleaned
from pipeline_classifier.frontend.dedispersion import delays_in_samples, quantise
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.settings import Cleaning, FrontEndSettings
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError
from tests.pipeline_classifier.frontend.brute_force import brute_force

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


@pytest.mark.parametrize("lowest, first", [(0.0, None), (7000.0, 7800.0), (9000.0, 9000.0)])
def test_a_sweep_longer_than_the_observation_gives_a_warning(observation, caplog, lowest, first):
    """At DM 7706.4 the sweep over the band is 8 s."""
    FilterbankPages(observation, FrontEndSettings(lowest + 100.0 * np.arange(32)))
    found = [message for message in caplog.messages if "sweep" in message]
    assert found == (
        [f"{observation}: from DM {first:g} on, the sweep is longer than the observation"] if first else []
    )


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
def test_the_chunk_length_does_not_matter(observation, block_samples):
    expected = peak_of(FilterbankPages(observation, FrontEndSettings(DMS)))
    dm, time_s, snr = peak_of(FilterbankPages(observation, FrontEndSettings(DMS, block_samples=block_samples)))
    assert (
        abs(dm - expected[0]) <= 2 and abs(time_s - expected[1]) <= 1e-3 and snr == pytest.approx(expected[2], rel=0.05)
    )


@pytest.mark.parametrize("from_edge", [-20, 0, 30])
def test_a_wide_pulse_at_the_edge_of_a_chunk_keeps_its_snr(tmp_path, from_edge):
    """Its width is a tenth of the baseline window, half of which is read beyond the chunk."""
    edge = 3 * 2048
    pulses = [Pulse((edge + from_edge + 0.5) * HEADER.tsamp, 56.0, 25.0, 20.0), Pulse(5.5, 56.0, 25.0, 20.0)]
    simulate(tmp_path / "a.fil", HEADER, NSAMPLES, pulses, Rfi(), seed=2)
    source = FilterbankPages(tmp_path / "a.fil", FrontEndSettings(DMS, block_samples=2048))
    assert edge in source.chunk_edges()
    searched = boxcar_search(stream(source), 128)
    at_edge, elsewhere = (
        searched.snr[:, column - 100 : column + 100].max()
        for column in (round(pulse.time_s / HEADER.tsamp) for pulse in pulses)
    )
    assert at_edge > 0.85 * elsewhere > 12


@pytest.fixture
def scaled_only(monkeypatch):
    """Cleaning without statistics: the result does not depend on the chunks."""

    def scale(block, frequencies, tsamp, settings, out=None):
        data = np.zeros((block.shape[1], len(block) if out is None else out.shape[1]), np.float32)
        data[:, : len(block)] = (block.T - 100.0) / 10
        good = np.ones(len(data), bool)
        if out is not None:
            data = quantise(data, len(data), out) if out.dtype == np.int8 else data
            out[:] = data
        return Cleaned(data, good, np.zeros(len(block), np.int32), np.zeros(len(block), np.int32))

    monkeypatch.setattr(filterbank_pages, "clean", scale)


@pytest.mark.parametrize("block_samples", [2048, 3001, 8192])
def test_dedispersion_continues_across_chunk_edges(observation, scaled_only, block_samples):
    whole = stream(FilterbankPages(observation, FrontEndSettings(DMS, block_samples=NSAMPLES)))
    source = FilterbankPages(observation, FrontEndSettings(DMS, block_samples=block_samples))
    assert len(source.chunk_edges()) > 2
    np.testing.assert_array_equal(stream(source), whole)


LONG_SWEEPS = 40.0 * np.arange(64)
"""The largest sweep is longer than three of the shortest chunks."""


@pytest.mark.parametrize("threads", [1, 3])
def test_sums_over_several_chunks_are_the_brute_force_sums(observation, scaled_only, threads):
    source = FilterbankPages(observation, FrontEndSettings(LONG_SWEEPS, exact=True, block_samples=2048))
    assert source.max_delay > 3 * 2048 and len(source.chunk_edges()) == 1 + 10
    pages = np.concatenate([batch.pages for batch in source.planes(threads)])
    np.testing.assert_array_equal(
        pages[:-1], whole_sums(source)[:, : -(NSAMPLES % 256)].reshape(64, -1, 256).swapaxes(0, 1)
    )


def whole_sums(source: FilterbankPages) -> np.ndarray:
    """Brute-force sums of all samples, in units of the noise of 64 channels: (n_dm, nsamples)."""
    data = source.cleaned(0, NSAMPLES)[0]
    delays = delays_in_samples(source.grid.dms, HEADER.frequencies, HEADER.tsamp)
    data = np.pad(data, ((0, 0), (0, delays.max())))
    summed = brute_force(quantise(data, 64, np.empty(data.shape, np.int8)), delays, NSAMPLES)
    return np.float32(1 / 64) * summed.astype(np.float32)


def test_pages_do_not_depend_on_the_number_of_threads(observation):
    """Bit for bit, with stacks, time resolutions and masks that differ from chunk to chunk."""
    settings = FrontEndSettings(2.0 * np.arange(300), time_downsample=(1, 4), overlap=0.3, block_samples=2048)
    source = FilterbankPages(observation, settings)
    one, three = (list(source.planes(threads)) for threads in (1, 3))
    assert len({batch.scale for batch in one if batch.layer == 0}) > 1
    for a, b in zip(one, three, strict=True):
        assert (a.layer, a.first, a.scale) == (b.layer, b.first, b.scale)
        np.testing.assert_array_equal(a.plane, b.plane)


def test_less_memory_gives_shorter_chunks_and_the_same_sums(observation, scaled_only):
    settings = FrontEndSettings(LONG_SWEEPS, block_samples=NSAMPLES)
    ample, scarce = (FilterbankPages(observation, replace(settings, max_memory_mb=mb)) for mb in (2000, PROGRAM_MB + 6))
    assert scarce.plan.length < ample.plan.length // 4 and scarce.plan.workers < ample.plan.workers
    assert scarce.plan.memory_bytes(64) <= PROGRAM_MB + 6 << 20
    assert scarce.plan.workers == 1
    assert FilterbankPages(observation, replace(settings, max_memory_mb=PROGRAM_MB + 20)).plan.workers == 4
    np.testing.assert_array_equal(stream(scarce), stream(ample))


def test_too_little_memory_is_refused_with_what_is_needed(observation):
    settings = FrontEndSettings(LONG_SWEEPS, max_memory_mb=100.0)
    with pytest.raises(
        InputError, match="a.fil: max_memory_mb must be at least .* for 64 .* to 2520, got 100"
    ) as error:
        FilterbankPages(observation, settings)
    needed = float(str(error.value).split("at least ")[1].split()[0])
    assert PROGRAM_MB < needed <= PROGRAM_MB + 6
    FilterbankPages(observation, replace(settings, max_memory_mb=needed))


def test_every_sample_is_read_and_counted_once(observation, monkeypatch):
    source = FilterbankPages(observation, FrontEndSettings(LONG_SWEEPS, block_samples=2048, overlap=0.5))
    read, cleaned = [], source.cleaned
    monkeypatch.setattr(source, "cleaned", lambda start, n, out: (read.append((start, n)), cleaned(start, n, out))[1])
    list(source.planes(1))
    edges = source.chunk_edges()
    assert read == list(zip(edges[:-1].tolist(), np.diff(edges).tolist()))
    assert source.summary().samples_read == NSAMPLES


def test_the_scale_is_that_of_the_channels_that_are_summed(observation, monkeypatch):
    """Half of the channels are masked in the third of several chunks; its samples reach the columns before it."""

    def half_masked(block, frequencies, tsamp, settings, out=None):
        good = np.arange(64) < (32 if block[0, 0] else 64)
        out[:] = 0
        return Cleaned(out, good, np.zeros(len(block), np.int32), np.zeros(len(block), np.int32))

    monkeypatch.setattr(filterbank_pages, "clean", half_masked)
    source = FilterbankPages(observation, FrontEndSettings(DMS, block_samples=2048))
    read = source.observation.read
    monkeypatch.setattr(
        source.observation, "read", lambda start, n: 0 * read(start, n) + (start < 4096 <= start + 1024)
    )
    channels = [1 / (8 * batch.scale) ** 2 for batch in source.planes(2)]
    delays = delays_in_samples(DMS, HEADER.frequencies, HEADER.tsamp)[32]
    late = source.max_delay - delays[32:]  # samples of the lower half in the columns that a chunk completes
    assert channels[:2] == pytest.approx([64, 64]) and channels[4:] == pytest.approx([64] * len(channels[4:]))
    assert channels[2] == pytest.approx(64 - (2048 - late).sum() / 2048, abs=0.2)
    assert channels[3] == pytest.approx(64 - late.sum() / 2048, abs=0.2)


BLOCK = 2305  # the page that begins at sample 2304 begins in the last column of the first chunk


@pytest.fixture(scope="module", params=[0, 240], ids="{} samples after the edges".format)
def pulses_at_edges(request, tmp_path_factory) -> tuple[Path, list[int]]:
    """An observation of four chunks, the last one short, with a pulse at each edge or in a page that reaches past it."""
    path = tmp_path_factory.mktemp("edges") / "edges.fil"
    columns = [number * BLOCK + request.param for number in (1, 2, 3)]
    pulses = [Pulse((column + 0.5) * HEADER.tsamp, 110.0, 40.0, 2.0) for column in columns]
    simulate(path, HEADER, 3 * BLOCK + 1200, pulses, Rfi(), seed=2)
    return path, columns


def test_a_pulse_at_a_chunk_edge_has_its_dm_time_snr_and_width(pulses_at_edges):
    path, columns = pulses_at_edges
    source = FilterbankPages(path, FrontEndSettings(DMS, block_samples=BLOCK))
    assert np.diff(source.chunk_edges()).tolist() == [BLOCK, BLOCK, BLOCK, 1200] and source.max_delay > 256
    plane = stream(source)
    peaks = find_peaks(boxcar_search(plane, 128), source.grid, 0, plane.shape[1], most=3)
    assert [DMS[peak.row] for peak in peaks] == pytest.approx([110.0] * 3, abs=4)
    centres = sorted(peak.column + peak.width / 2 for peak in peaks)
    assert centres == pytest.approx([column + 0.5 for column in columns], abs=2.5)
    assert [peak.snr for peak in peaks] == pytest.approx([40.0] * 3, rel=0.15)
    # The best boxcar of a Gaussian is 1.19 times its full width at half maximum.
    assert [peak.width for peak in peaks] == pytest.approx([1.19 * 2e-3 / HEADER.tsamp] * 3, abs=2.5)


def empty_file(path: Path, nsamples: int) -> Path:
    with FilterbankWriter(path, replace(HEADER, nchans=4, foff=-80.0)) as file:
        file.write(np.zeros((nsamples, 4), np.uint8))
    return path


@pytest.mark.parametrize(
    "nsamples, lengths",
    [
        (1, [1]),
        (2048, [2048]),
        (3 * 2048 + 1, [2048, 2048, 2049]),
        (3 * 2048 + 1024, [2048, 2048, 3072]),
        (3 * 2048 + 1025, [2048, 2048, 2048, 1025]),
        (4 * 2048 - 1, [2048, 2048, 2048, 2047]),
        (4 * 2048, [2048, 2048, 2048, 2048]),
    ],
)
def test_chunks_have_one_length_and_the_last_one_is_at_least_half_as_long(tmp_path, nsamples, lengths):
    source = FilterbankPages(empty_file(tmp_path / "a.fil", nsamples), FrontEndSettings(DMS, block_samples=2048))
    assert source.chunk_edges()[0] == 0 and np.diff(source.chunk_edges()).tolist() == lengths


@pytest.mark.parametrize("block_samples", [2048, BLOCK, None])
@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_every_page_comes_once_with_the_chunk_that_completes_it(tmp_path, block_samples, overlap):
    """Also if the last sample that may be delayed into it is the first or the last one of a chunk."""
    path = empty_file(tmp_path / "a.fil", 12000)
    settings = FrontEndSettings(DMS, overlap=overlap, time_downsample=(1, 2))
    if not block_samples:  # the first ten pages need just the first chunk
        block_samples = 2560 + FilterbankPages(path, settings).max_delay
    source = FilterbankPages(path, replace(settings, block_samples=block_samples))
    batches = list(source.planes(1))
    for number, layer in enumerate(source.layers):
        starts = np.concatenate([batch.starts for batch in batches if batch.layer == number])
        np.testing.assert_array_equal(starts, layer.starts)
        edges = source.chunk_edges()
        last = np.minimum((starts + 256) * layer.time_downsample + source.max_delay, 12000) - 1
        chunk = np.searchsorted(edges, last, side="right")
        sizes = [len(batch) for batch in batches if batch.layer == number]
        assert sizes == np.unique(chunk, return_counts=True)[1].tolist()


def test_exact_dedispersion_is_the_brute_force_sum(observation, scaled_only):
    source = FilterbankPages(observation, FrontEndSettings(DMS, exact=True))
    np.testing.assert_array_equal(stream(source), whole_sums(source))


def test_layers_of_time_resolution_are_sums_of_columns(observation, scaled_only):
    source = FilterbankPages(
        observation, FrontEndSettings(DMS, n_time=128, time_downsample=(1, 4, 16), overlap=0.5, block_samples=4096)
    )
    assert [layer.suffix for layer in source.layers] == ["", "_x4", "_x16"]
    pages = [[], [], []]
    for batch in source.planes():
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
    assert [len(layer.grid.dms) for layer in source.layers] == [22, 21, 21]
    assert [layer.suffix for layer in source.layers] == ["", "_dms1", "_dms2"]
    stacked = [np.concatenate([b.pages for b in source.planes() if b.layer == layer]) for layer in range(3)]
    monkeypatch.setattr(filterbank_pages, "STACK_DMS", 64)
    whole = FilterbankPages(observation, FrontEndSettings(DMS, exact=True))
    pages = np.concatenate([batch.pages for batch in whole.planes()])
    np.testing.assert_array_equal(np.concatenate(stacked, axis=1), pages)


def test_no_stack_has_a_single_trial_dm(observation, monkeypatch):
    """A remainder of one or a few trial DMs would be a page of so few rows."""
    for n_dm in range(2, 20):
        monkeypatch.setattr(filterbank_pages, "STACK_DMS", 8)
        sizes = [len(layer.grid.dms) for layer in FilterbankPages(observation, FrontEndSettings(DMS[:n_dm])).layers]
        assert sum(sizes) == n_dm and max(sizes) <= 8 and max(sizes) - min(sizes) <= 1


def test_downsampling_keeps_the_pulse_and_changes_the_grid(observation):
    source = FilterbankPages(observation, FrontEndSettings(DMS, cleaning=Cleaning(td=4, fd=2)))
    assert source.grid.tsamp == pytest.approx(4 * HEADER.tsamp)
    assert source.grid.f_top == pytest.approx(1527.5) and source.summary().channels == 32
    dm, time_s, snr = peak_of(source)
    assert (dm, time_s) == (pytest.approx(56, abs=2), pytest.approx(3.3, abs=3e-3))
    assert snr == pytest.approx(peak_of(FilterbankPages(observation, FrontEndSettings(DMS)))[2], rel=0.15)
    assert source.summary().samples == source.summary().samples_read == NSAMPLES // 4


def test_a_sweep_that_needs_too_much_memory_is_refused(tmp_path):
    header = Header(nchans=64, nbits=8, tsamp=1e-9, fch1=10.0, foff=-0.1)
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


def test_single_pages_of_any_layer_are_those_of_the_whole_observation(observation):
    """To the bit, with masks that differ from chunk to chunk; only the chunks that they need are read."""
    settings = FrontEndSettings(2.0 * np.arange(300), time_downsample=(1, 4), block_samples=2048)
    source = FilterbankPages(observation, settings)
    pages = [np.concatenate([b.pages for b in source.planes() if b.layer == layer]) for layer in range(4)]
    for layer, page in [(0, 0), (0, 8), (0, 40), (1, 9), (2, 76), (3, 19), (3, 5), (2, 30)]:
        starts = [each.starts[[page] if number == layer else []] for number, each in enumerate(source.layers)]
        chosen = source.with_starts(*starts)
        [batch] = chosen.planes()
        assert batch.layer == layer and chosen.summary().samples_read < NSAMPLES // 2
        np.testing.assert_array_equal(batch.pages[0], pages[layer][page])


def test_the_zaplist_reduces_the_channels_of_the_run_summary(observation):
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


def test_a_zaplist_that_leaves_no_channel_is_refused(tmp_path):
    header = Header(nchans=8, nbits=8, tsamp=1e-3, fch1=1500.0, foff=-1.0)
    with FilterbankWriter(tmp_path / "a.fil", header) as file:
        file.write(np.zeros((100, 8), dtype=np.uint8))
    with pytest.raises(InputError, match="must leave at least one of its 8 channels"):
        FilterbankPages(
            tmp_path / "a.fil", FrontEndSettings(np.arange(4.0), cleaning=Cleaning(zaplist=((0.0, 9000.0),)))
        )
