"""The cold-plasma law, and the dedispersion tree against the brute-force sum, bit for bit."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.frontend import compiled_additions, dedispersion
from pipeline_classifier.frontend.compiled_additions import COMPILER
from pipeline_classifier.frontend.dedispersion import (
    LEVELS_PER_SIGMA,
    DedispersionTree,
    accumulator_dtype,
    brute_force,
    channel_delays,
    delay_quanta,
    delays_in_samples,
    quantise,
)
from pipeline_classifier.simulation.observation import EFFELSBERG
from single_pulse_classifier_training.cli import InputError


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
    assert tree.additions <= n_dm * (nchans - 1)


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


@pytest.mark.skipif(not shutil.which(COMPILER), reason="needs a C compiler")
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("nchans", [256, 1100])
def test_compiled_additions_are_the_same(nchans, exact):
    frequencies = np.linspace(1500, 1300, nchans)
    delays, quanta = channel_delays(DMS[:40], frequencies, 1e-3), delay_quanta(DMS[:40], frequencies, 1e-3)
    plain, compiled = (DedispersionTree(delays, None if exact else quanta, compiled=c) for c in (False, True))
    n = 2 * compiled.stretch + 77
    data = np.random.default_rng(0).integers(-127, 128, (nchans, n + plain.max_delay), np.int8)
    np.testing.assert_array_equal(plain(data, n), compiled(data, n))


def test_a_missing_compiler_is_reported_with_the_key(monkeypatch):
    monkeypatch.setattr(compiled_additions, "COMPILER", "no-such-compiler")
    compiled_additions.additions.cache_clear()
    with pytest.raises(
        InputError, match=r"compile: must be false without a working C compiler, got true \(no-such-compiler: "
    ):
        DedispersionTree(np.zeros((1, 2)), compiled=True)


@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_concurrent_calls_do_not_disturb_each_other(at_once):
    delays, quanta = channel_delays(DMS, FREQUENCIES, 1e-3), delay_quanta(DMS, FREQUENCIES, 1e-3)
    tree = DedispersionTree(delays, quanta, stretch=1024, at_once=at_once)
    blocks = np.random.default_rng(0).integers(-100, 100, (8, 256, 3000 + tree.max_delay)).astype(np.int8)
    alone = [tree(block, 3000) for block in blocks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda block: tree(block, 3000), blocks))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_calls_reuse_a_workspace_until_it_is_released(monkeypatch):
    made = []

    class Counted(dedispersion._Workspace):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(dedispersion, "_Workspace", Counted)
    tree = DedispersionTree(channel_delays(DMS[:10], FREQUENCIES, 1e-3), stretch=100)
    data = np.zeros((256, 100 + tree.max_delay), np.int8)
    for _ in range(3):
        tree(data, 100)
    assert len(made) == 1 and made[0].data.untyped_storage().nbytes() == tree.memory_bytes
    tree.release()
    tree(data, 100)
    assert len(made) == 2


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_threads_than_allowed_sum_at_once(monkeypatch, at_once):
    running, most = [], []

    def slow_sum(self, workspace, data, n, out):
        running.append(out)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()

    monkeypatch.setattr(DedispersionTree, "_sum", slow_sum)
    tree = DedispersionTree(np.zeros((1, 2)), stretch=10, at_once=at_once)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: tree(np.zeros((2, 10), np.int8), 10), range(8)))
    assert max(most) == at_once


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("exact", [True, False])
def test_gpu_and_cpu_agree(exact):
    delays, quanta = channel_delays(DMS, FREQUENCIES, 1e-4), delay_quanta(DMS, FREQUENCIES, 1e-4)
    cpu, gpu = (DedispersionTree(delays, None if exact else quanta, device) for device in ("cpu", "cuda"))
    data = np.random.default_rng(0).integers(-100, 100, (256, 50_000 + cpu.max_delay)).astype(np.int8)
    np.testing.assert_array_equal(cpu(data, 50_000), gpu(data, 50_000))


@given(nchans=st.sampled_from([1, 2, 255, 258, 259, 1024, 1025, 5000]), sign=st.sampled_from([-1.0, 1.0]))
def test_no_sum_of_quantised_samples_overflows(nchans, sign):
    quantised = quantise(torch.full((nchans, 3), sign * 1e6), nchans, np.empty((nchans, 3), np.int8))
    exact = quantised.astype(np.int64).sum(axis=0)
    np.testing.assert_array_equal(quantised.sum(axis=0, dtype=accumulator_dtype(nchans)), exact)
    assert (sign * exact > 0).all()


@pytest.mark.parametrize("nchans", [1, 256, 1024, 1025, 2048, 100_000])
def test_samples_up_to_nearly_four_sigma_are_not_clipped(nchans):
    data = torch.linspace(-3.8, 3.8, 77)[None]
    quantised = quantise(data.clone(), nchans, np.empty(data.shape, np.int8))
    np.testing.assert_allclose(quantised / LEVELS_PER_SIGMA, data, atol=1 / 16 + 1e-6)


def test_quantisation_errors_are_at_most_a_sixteenth_of_the_noise():
    data = np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32)
    quantised = quantise(torch.from_numpy(data.copy()), 8, np.empty(data.shape, np.int8))
    assert np.abs(quantised / 8 - data).max() <= 1 / 16 + 1e-6
