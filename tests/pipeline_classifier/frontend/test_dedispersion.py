"""The cold-plasma law, and the dedispersion tree against the brute-force sum, bit for bit."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.frontend import dedispersion_plan
from pipeline_classifier.frontend.dedispersion import (
    LEVELS_PER_SIGMA,
    DedispersionTree,
    accumulator_dtype,
    channel_delays,
    delay_quanta,
    delays_in_samples,
    quantise,
)
from pipeline_classifier.simulation.observation import EFFELSBERG
from tests.pipeline_classifier.frontend.brute_force import brute_force


def test_known_delays():
    # 4148.808 s MHz^2 * 100 * (1 / 1000^2 - 1 / 2000^2) = 414.8808 ms * 3 / 4
    assert dispersion_delay(100.0, 1000.0, 2000.0) == pytest.approx(0.3111606)
    assert dispersion_delay(57.0, 1400.0, 1400.0) == 0.0
    delays = delays_in_samples(np.array([0.0, 100.0]), np.array([2000.0, 1000.0]), 1e-3)
    assert delays.dtype == np.int64
    np.testing.assert_array_equal(delays, [[0, 0], [0, 311]])


@given(
    nchans=st.integers(1, 33),
    top=st.floats(300, 3000),
    bandwidth=st.floats(0.05, 0.6),
    lowest=st.floats(0, 100),
    step=st.floats(0.01, 20),
    n_dm=st.integers(1, 40),
    tsamp=st.floats(5e-4, 1e-2),
    n=st.integers(1, 60),
    stretch=st.integers(1, 60),
    seed=st.integers(0, 99),
    exact=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_tree_equals_the_brute_force_sum(
    nchans, top, bandwidth, lowest, step, n_dm, tsamp, n, stretch, seed, exact
):
    frequencies = np.linspace(top, top * (1 - bandwidth), nchans)
    dms = lowest + step * np.arange(n_dm)
    delays = np.minimum(channel_delays(dms, frequencies, tsamp), 5000)
    tree = DedispersionTree(delays, None if exact else delay_quanta(dms, frequencies, tsamp), stretch=stretch)
    if exact:
        np.testing.assert_array_equal(tree.delays, np.rint(delays))
    data = np.random.default_rng(seed).integers(-127, 128, (nchans, n + tree.max_delay)).astype(np.int8)
    summed = tree(data, n)
    assert summed.dtype == np.int16
    np.testing.assert_array_equal(summed, brute_force(data, tree.delays, n))
    assert tree.additions <= n_dm * max(2, nchans)


def test_the_tree_on_the_default_grid_is_exact_and_cheaper():
    delays = delays_in_samples(0.5 * np.arange(256), EFFELSBERG.frequencies, EFFELSBERG.tsamp)
    tree = DedispersionTree(channel_delays(0.5 * np.arange(256), EFFELSBERG.frequencies, EFFELSBERG.tsamp))
    data = np.random.default_rng(0).integers(-100, 100, (256, 500 + tree.max_delay)).astype(np.int8)
    np.testing.assert_array_equal(tree(data, 500), brute_force(data, delays, 500))
    assert tree.additions < 256 * 255 / 3


DMS = 0.5 * np.arange(256)
FREQUENCIES = 1510 - (np.arange(256) + 0.5) * 300 / 256


def smeared_pulse(dm: float, tsamp: float, width: float, phase: float) -> np.ndarray:
    """A noiseless boxcar pulse (256, n) of ``width`` samples at sample 200, smeared inside each channel."""
    n = 400 + int(channel_delays(DMS, FREQUENCIES, tsamp).max()) + 50
    edges = np.arange(n + 1) - 0.5
    pulse = np.zeros((256, n))
    for part in (np.arange(16) + 0.5) / 16 - 0.5:
        frequencies = FREQUENCIES + part * 300 / 256
        arrival = 200 + phase + dispersion_delay(dm, frequencies, FREQUENCIES[0]) / tsamp
        fluence = np.clip((edges - arrival[:, None]) / width + 0.5, 0, 1)
        pulse += np.diff(fluence, axis=1)
    return pulse


def best_snr(pulse: np.ndarray, delays: np.ndarray) -> float:
    """Highest S/N over boxcar widths and the given trial DMs, for unit noise in each channel."""
    series = np.stack([sum(row[d : d + 400] for row, d in zip(pulse, shifts)) for shifts in delays])
    summed = np.pad(np.cumsum(series, axis=1), ((0, 0), (1, 0)))
    return max((summed[:, w:] - summed[:, :-w]).max() / np.sqrt(w) for w in range(1, 80))


@pytest.mark.parametrize("nchans", [4, 8, 16])
def test_no_delay_of_few_channels_is_neglected(nchans):
    """A pulse that was dedispersed inside the channels is narrower than the smearing inside a channel, up to 30 ms."""
    frequencies = FREQUENCIES.reshape(nchans, -1).mean(axis=1)
    delays = channel_delays(DMS, frequencies, 128e-6)
    tree = DedispersionTree(delays, delay_quanta(DMS, frequencies, 128e-6))
    error = tree.delays - delays
    assert np.abs(error - error.mean(axis=1, keepdims=True)).max() <= 2


@pytest.mark.parametrize("tsamp", [128e-6, 54.6e-6])
@pytest.mark.parametrize("dm", [30.2, 56.77, 120.0])
@pytest.mark.parametrize(("width_s", "least"), [(1e-3, 0.98), (None, 0.95)])
def test_the_fast_tree_preserves_the_snr(tsamp, dm, width_s, least):
    """S/N relative to exact dedispersion, the worst of several phases: 0.98 for 1 ms, 0.95 for two samples."""
    exact = delays_in_samples(DMS, FREQUENCIES, tsamp)
    delays = channel_delays(DMS, FREQUENCIES, tsamp)
    tree = DedispersionTree(delays, delay_quanta(DMS, FREQUENCIES, tsamp))
    assert tree.additions < DedispersionTree(delays).additions / 1.8
    nearest = slice(max(0, round(2 * dm) - 2), round(2 * dm) + 3)
    width = width_s / tsamp if width_s else 2.0
    kept = []
    for phase in (0.0, 0.2, 0.4, 0.6, 0.8):
        pulse = smeared_pulse(dm, tsamp, width, phase)
        kept.append(best_snr(pulse, tree.delays[nearest]) / best_snr(pulse, exact[nearest]))
    assert min(kept) >= least


@given(
    nchans=st.integers(1, 33),
    bandwidth=st.floats(0.05, 0.6),
    step=st.floats(0.01, 20),
    n_dm=st.integers(1, 30),
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    stretch=st.integers(1, 60),
    longest_sweep=st.sampled_from([5, 50, 1500]),
    seed=st.integers(0, 99),
    exact=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_planes_of_successive_chunks_add_up_to_that_of_the_whole(
    nchans, bandwidth, step, n_dm, lengths, stretch, longest_sweep, seed, exact
):
    """Chunks may be shorter than the largest delay, and the band is divided into one to many sub-bands."""
    frequencies, dms = np.linspace(1400, 1400 * (1 - bandwidth), nchans), step * np.arange(n_dm)
    delays = np.minimum(channel_delays(dms, frequencies, 2e-3), 500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedispersion_plan, "LONGEST_SWEEP", longest_sweep)
        tree = DedispersionTree(delays, None if exact else delay_quanta(dms, frequencies, 2e-3), stretch)
    n, past = sum(lengths), tree.max_delay
    data = np.random.default_rng(seed).integers(-127, 128, (nchans, n)).astype(np.int8)
    total, in_place = np.zeros((2, n_dm, past + n), np.int16)
    start = 0
    for length in lengths:
        plane = np.zeros((n_dm, past + length), np.int16)
        chunk = np.ascontiguousarray(data[:, start : start + length])
        tree.add(chunk, plane)
        tree.add(chunk, in_place, past + start)
        total[:, start : start + past + length] += plane
        start += length
    padded = np.pad(data, ((0, 0), (past, past)))
    np.testing.assert_array_equal(total, brute_force(padded, tree.delays, past + n))
    np.testing.assert_array_equal(total, in_place)
    np.testing.assert_array_equal(total[:, past:], tree(padded[:, past:], n))


@pytest.mark.parametrize("exact", [True, False])
def test_many_channels_and_a_long_sweep(exact):
    """Sums of more than 1024 channels need int32; sums inside a sub-band stay within int16."""
    frequencies, dms = np.linspace(1500, 1000, 1200), 20.0 * np.arange(9)
    delays = channel_delays(dms, frequencies, 2e-4)
    tree = DedispersionTree(delays, None if exact else delay_quanta(dms, frequencies, 2e-4))
    data = np.full((1200, 700 + tree.max_delay), 127, np.int8)
    data[:, ::3] = -127
    assert (tree(data, 700) == brute_force(data, tree.delays, 700)).all()
    plane = np.ones((9, tree.max_delay + 300), np.int32)
    tree.add(data[:, :300], plane)
    padded = np.pad(data[:, :300], ((0, 0), (tree.max_delay, tree.max_delay)))
    assert (plane == 1 + brute_force(padded, tree.delays, plane.shape[1])).all()


def test_concurrent_calls_do_not_disturb_each_other():
    delays, quanta = channel_delays(DMS, FREQUENCIES, 1e-3), delay_quanta(DMS, FREQUENCIES, 1e-3)
    tree = DedispersionTree(delays, quanta, stretch=1024)
    blocks = np.random.default_rng(0).integers(-100, 100, (8, 256, 3000 + tree.max_delay)).astype(np.int8)
    alone = [tree(block, 3000) for block in blocks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda block: tree(block, 3000), blocks))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def traced_peak(function, *arguments) -> int:
    """Largest memory in bytes that numpy allocates in a call."""
    tracemalloc.start()
    function(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_calls_reuse_a_workspace_of_the_stated_size_until_it_is_released():
    tree = DedispersionTree(channel_delays(DMS, FREQUENCIES, 1e-4), delay_quanta(DMS, FREQUENCIES, 1e-4))
    data = np.zeros((256, 5000), np.int8)
    plane = np.zeros((256, tree.max_delay + 5000), np.int16)
    tree.add(data, plane)  # compiles
    tree.release()
    assert tree.memory_bytes <= traced_peak(tree.add, data, plane) < 1.1 * tree.memory_bytes
    assert traced_peak(tree.add, data, plane) < 0.1 * tree.memory_bytes
    tree.release()
    assert traced_peak(tree.add, data, plane) >= tree.memory_bytes


@pytest.mark.parametrize(
    ("nchans", "band", "tsamp", "dms", "most_mb"),
    [
        (256, (1510, 1210), 54.6e-6, DMS, 5),
        (1024, (1510, 1210), 64e-6, np.linspace(0, 1000, 1024)[-256:], 5),
        pytest.param(4096, (1500, 1000), 49.152e-6, np.linspace(0, 1000, 512)[:256], 5, marks=pytest.mark.slow),
    ],
)
def test_the_workspace_is_small_for_every_geometry(nchans, band, tsamp, dms, most_mb):
    frequencies = np.linspace(*band, nchans)
    tree = DedispersionTree(channel_delays(dms, frequencies, tsamp), delay_quanta(dms, frequencies, tsamp))
    assert tree.memory_bytes < most_mb * 1e6


@given(nchans=st.sampled_from([1, 2, 255, 258, 259, 1024, 1025, 5000]), sign=st.sampled_from([-1.0, 1.0]))
def test_no_sum_of_quantised_samples_overflows(nchans, sign):
    quantised = quantise(np.full((nchans, 3), sign * 1e6, np.float32), nchans, np.empty((nchans, 3), np.int8))
    exact = quantised.astype(np.int64).sum(axis=0)
    np.testing.assert_array_equal(quantised.sum(axis=0, dtype=accumulator_dtype(nchans)), exact)
    assert (sign * exact > 0).all()


@pytest.mark.parametrize("nchans", [1, 256, 1024, 1025, 2048, 100_000])
def test_samples_up_to_nearly_four_sigma_are_not_clipped(nchans):
    data = np.linspace(-3.8, 3.8, 77, dtype=np.float32)[None]
    quantised = quantise(data, nchans, np.empty(data.shape, np.int8))
    np.testing.assert_allclose(quantised / LEVELS_PER_SIGMA, data, atol=1 / 16 + 1e-6)


def test_quantisation_errors_are_at_most_a_sixteenth_of_the_noise():
    data = np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32)
    quantised = quantise(data, 8, np.empty(data.shape, np.int8))
    assert np.abs(quantised / 8 - data).max() <= 1 / 16 + 1e-6


def test_halves_are_rounded_to_even_and_the_samples_stay():
    data = np.array([0.5, 1.5, -2.5, 130, -130], np.float32) / LEVELS_PER_SIGMA
    before = data.copy()
    assert quantise(data, 5, np.empty(5, np.int8)).tolist() == [0, 2, -2, 127, -127]
    np.testing.assert_array_equal(data, before)
