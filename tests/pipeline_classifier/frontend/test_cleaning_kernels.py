"""Compiled loops of the cleaning against the same in numpy, with sizes that fill no vector, tile or bin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline_classifier.frontend import cleaning_kernels
from pipeline_classifier.frontend.settings import BIN

N, NCHANS, STEP = 3 * 1024 + 77, 21, 48
DTYPES = [np.uint8, np.uint16, np.float32]


def counts(dtype: type = np.uint8, n: int = N) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 10, (n, NCHANS)).astype(dtype)


def uniform(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


def interpolated(nodes: np.ndarray, n: int, step: int) -> np.ndarray:
    """The baseline (n, nchans): linear between the nodes, constant beyond."""
    position = (np.arange(len(nodes)) + 0.5) * step - 0.5
    return np.stack([np.interp(np.arange(n), position, column) for column in nodes.T], axis=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bins_have_mean_and_variance(dtype):
    raw, centre, std = counts(dtype), 100 + uniform(NCHANS), 10 * uniform(NCHANS, seed=2)
    means, variances = np.empty((2, N // BIN, NCHANS), np.float32)
    cleaning_kernels.bin_statistics(raw, centre, std, means, variances)
    bins = raw[: N // BIN * BIN].reshape(-1, BIN, NCHANS).astype(float)
    np.testing.assert_allclose(means, bins.mean(axis=1) - centre, atol=1e-4)
    np.testing.assert_allclose(variances, bins.var(axis=1, ddof=1), rtol=1e-4)


@pytest.mark.parametrize("value", [0.1, 77.0, 6369.6167, 1e6])
def test_the_variance_of_a_constant_is_zero(value):
    means, variances = np.empty((2, 1, NCHANS), np.float32)
    raw = np.full((BIN, NCHANS), value, np.float32)
    cleaning_kernels.bin_statistics(raw, uniform(NCHANS), uniform(NCHANS), means, variances)
    assert not variances.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_raw_moments_are_means_of_powers(dtype):
    raw, centre, std = counts(dtype, 512), 100 + uniform(NCHANS), 10 * uniform(NCHANS, seed=2)
    moments = np.empty((4, NCHANS), np.float32)
    cleaning_kernels.raw_moments(raw, centre, std, moments)
    x = (raw - centre.astype(float)) / std
    np.testing.assert_allclose(moments, [(x**power).mean(axis=0) for power in (1, 2, 3, 4)], rtol=1e-4, atol=1e-4)


def test_step_means_are_clipped_and_exclude_common_deviations():
    step, n_steps = 7, 5
    bins = np.random.default_rng(0).standard_normal((step * n_steps, NCHANS)).astype(np.float32)
    bins[9] += 5.0
    bins[20] -= 5.0
    median, limit = uniform(n_steps, NCHANS) - 1, uniform(NCHANS, seed=2)
    weight = np.float32(1) / limit / NCHANS
    nodes = np.empty_like(median)
    cleaning_kernels.step_means(bins, median, limit, weight, step, nodes)
    deviation = np.clip(bins - np.repeat(median, step, axis=0), -limit, limit)
    deviation[np.abs(deviation @ weight) > 0.5] = 0
    assert not deviation[[9, 20]].any() and deviation.any(axis=1).sum() > 20
    np.testing.assert_allclose(nodes, median + deviation.reshape(n_steps, step, -1).mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("loud", [False, True])
def test_quiet_powers_are_means_over_the_quiet_bins(loud):
    residuals = np.random.default_rng(0).standard_normal((200, NCHANS)).astype(np.float32)
    residuals[20:40] *= 5
    variances, weight = uniform(200, NCHANS), np.stack([uniform(NCHANS), uniform(NCHANS) / NCHANS])
    powers = np.empty((3, NCHANS), np.float32)
    limits = 4.0, 0.0 if loud else 0.9, 3.0
    cleaning_kernels.quiet_powers(residuals, variances, weight, tuple(map(np.float32, limits)), powers)
    power = residuals**2 * weight[0]
    quiet = power.clip(max=4) @ weight[1] < limits[1]
    if loud:
        assert not quiet.any() and not powers.any()
        return
    assert 20 < quiet.sum() < 180
    expected = (
        variances[quiet].mean(axis=0) * weight[0],
        power[quiet].mean(axis=0),
        power[quiet].clip(max=3).mean(axis=0),
    )
    np.testing.assert_allclose(powers, expected, rtol=1e-4)


@pytest.mark.parametrize("n_nodes", [1, 2, N // STEP])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_series_and_its_products(dtype, n_nodes):
    raw, weight, nodes = counts(dtype), uniform(NCHANS), 100 * uniform(n_nodes, NCHANS)
    baseline = interpolated(nodes, N, STEP)
    series = np.empty(N, np.float32)
    cleaning_kernels.band_series(raw, weight, nodes @ weight, STEP, series)
    np.testing.assert_allclose(series, (raw - baseline) @ weight, atol=2e-3)
    product, node_sums = np.empty(NCHANS), np.empty(n_nodes)
    cleaning_kernels.regression_products(raw, series, STEP, product, node_sums)
    np.testing.assert_allclose(product, series.astype(float) @ raw.astype(float), rtol=1e-5)
    np.testing.assert_allclose(node_sums @ nodes, series.astype(float) @ baseline, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipped_sums_of_groups_of_channels(dtype):
    raw, scale, nodes = counts(dtype), 0.1 * uniform(NCHANS), 100 * uniform(N // STEP, NCHANS)
    samples, group = np.array([0, 5, 1000, N - 1]), np.arange(NCHANS) // 6
    sums = np.full((4, 5), 99, np.float32)
    cleaning_kernels.clipped_sums(raw, samples, nodes, STEP, scale, np.float32(3), group, sums)
    x = ((raw - interpolated(nodes, N, STEP)) * scale).clip(-3, 3)[samples]
    expected = [x[:, group == number].sum(axis=1) for number in range(5)]
    np.testing.assert_allclose(sums.T, expected, atol=1e-4)


@pytest.mark.parametrize("n, nchans", [(1, 1), (63, 5), (64, 16), (65, 3), (N, NCHANS)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_are_written_in_the_order_of_channels(dtype, n, nchans):
    raw = np.ascontiguousarray(counts(dtype)[:n, :nchans])
    scale, coefficient, series = uniform(nchans), uniform(nchans, seed=2), 5 * uniform(n, seed=3)
    nodes = 100 * uniform(max(1, n // STEP), nchans)
    blanked = np.arange(n) % 7 == 3
    expected = raw * scale - interpolated(nodes, n, STEP) - series[:, None] * coefficient
    expected[blanked] = 0
    out = np.full((nchans, n + 3), 99, np.float32)
    arguments = raw, nodes, STEP, scale, coefficient, series, blanked
    cleaning_kernels.write_samples(*arguments, np.float32(0), out)
    np.testing.assert_allclose(out[:, :n].T, expected, atol=1e-3)
    integers = np.full((nchans, n + 3), 99, np.int8)
    cleaning_kernels.write_samples(*arguments, np.float32(31), integers)
    np.testing.assert_array_equal(integers[:, :n], np.rint(out[:, :n]).clip(-31, 31))
    assert (out[:, n:] == 99).all() and (integers[:, n:] == 99).all()


def test_halves_are_rounded_to_even():
    raw = np.arange(-4, 5, dtype=np.float32)[:, None]
    out = np.empty((1, 9), np.int8)
    one, zero = np.ones(1, np.float32), np.zeros(9, np.float32)
    arguments = raw, zero[:1, None], 16, one / 2, 0 * one, zero, zero > 0
    cleaning_kernels.write_samples(*arguments, np.float32(127), out)
    assert out[0].tolist() == [-2, -2, -1, 0, 0, 0, 1, 2, 2]


@given(hnp.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 3))), st.integers(1, 6))
def test_long_runs_are_those_of_a_loop(flags, fewest):
    expected = np.zeros_like(flags)
    for channel in range(flags.shape[1]):
        begin = 0
        for end in range(len(flags) + 1):
            if end == len(flags) or not flags[end, channel]:
                expected[begin:end, channel] = end - begin >= fewest
                begin = end + 1
    np.testing.assert_array_equal(cleaning_kernels.long_runs(flags, fewest), expected)
