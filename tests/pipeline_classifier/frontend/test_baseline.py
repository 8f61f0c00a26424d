"""Noise level, higher moments and running baseline against known distributions, numpy and scipy."""

import numpy as np
import pytest
from scipy.ndimage import median_filter

from pipeline_classifier.frontend.baseline import (
    TILE,
    Sums,
    bin_sums,
    residual,
    running_baseline,
    running_median,
)
from pipeline_classifier.frontend.settings import BIN

N = 20 * TILE + 777  # neither whole tiles nor whole bins
MEAN = np.array([0.0, 50.0, 200.0, 1000.0])
NOISE = np.array([1.0, 5.0, 20.0, 3.0])


def noise(n: int = N, seed: int = 0) -> np.ndarray:
    """Four channels of normal noise in counts, (n, 4) float32."""
    return (MEAN + NOISE * np.random.default_rng(seed).standard_normal((n, 4))).astype(np.float32)


ALL_GOOD = np.ones(4, bool)


def statistics(raw: np.ndarray) -> Sums:
    return bin_sums(raw.astype(np.float32))


def baseline(raw: np.ndarray, window: float, good: np.ndarray = ALL_GOOD) -> tuple[int, np.ndarray]:
    return running_baseline(statistics(raw), good, window)


@pytest.mark.parametrize("n", [256, TILE - 1, TILE, TILE + 1, TILE + BIN, N])
def test_bins_have_the_means_and_variances_of_their_samples(n):
    raw = noise(n)
    sums = statistics(raw)
    bins = raw[: n // BIN * BIN].reshape(-1, BIN, 4).astype(float)
    np.testing.assert_allclose(sums.means + sums.centre, bins.mean(axis=1), atol=1e-3)
    np.testing.assert_allclose(sums.variances / NOISE**2, bins.var(axis=1, ddof=1) / NOISE**2, atol=1e-3)


def test_the_noise_level_is_that_of_the_noise():
    np.testing.assert_allclose(statistics(noise()).level, NOISE, rtol=0.01)


def test_the_noise_level_excludes_slow_changes_and_is_robust_against_impulses():
    raw = noise() + 30 * NOISE * np.sin(np.arange(N) / 5000)[:, None]
    raw[::1000] += 50 * NOISE
    np.testing.assert_allclose(statistics(raw).level, NOISE, rtol=0.02)


@pytest.mark.parametrize("n, drift", [(1024, 0.0), (TILE + 100, 0.0), (N, 0.0), (N, 10.0)])
def test_skewness_and_kurtosis_are_those_of_the_distribution(n, drift):
    """They are central moments of short tiles, so a slow drift of many sigma does not change them."""
    rng = np.random.default_rng(0)
    distributions = [
        rng.standard_normal(n),  # skewness 0, excess kurtosis 0
        rng.uniform(size=n) * 12**0.5,  # 0, -1.2
        rng.exponential(size=n),  # 2, 6
        -rng.gamma(4.0, size=n) / 2,  # -1, 1.5
    ]
    sums = statistics(np.stack(distributions, axis=1) + drift * np.linspace(0, 1, n)[:, None] ** 2)
    tolerance = 1.0 if n < N else 0.4
    np.testing.assert_allclose(sums.skewness, [0, 0, 2, -1], atol=tolerance)
    np.testing.assert_allclose(sums.kurtosis / [1, 1, 4, 1], [0, -1.2, 1.5, 1.5], atol=tolerance)


def test_one_bright_pulse_does_not_change_skewness_and_kurtosis():
    raw = noise()
    before = statistics(raw)
    raw[4100:4200] += 20 * NOISE.astype(np.float32)
    after = statistics(raw)
    np.testing.assert_allclose(after.skewness, before.skewness, atol=0.1)
    np.testing.assert_allclose(after.kurtosis, before.kurtosis, atol=0.2)


def test_a_channel_that_is_constant_most_of_the_time_has_noise():
    """One sample in a hundred of a coarsely quantised channel is 1, the others are 0: variance 0.01."""
    raw = noise()
    raw[:, 1] = np.random.default_rng(1).uniform(size=N) < 0.01
    assert 0.05 < statistics(raw).level[1] < 0.1


def test_a_channel_without_noise_has_level_zero():
    raw = noise()
    raw[:, 1] = 60
    raw[:, 2] = 0
    raw[12345, 2] = 1e20  # its square overflows float32
    sums = statistics(raw)
    np.testing.assert_array_equal(sums.level > 0, [True, False, False, True])
    assert np.isfinite(sums.means).all() and np.isfinite(sums.variances).all()


@pytest.mark.parametrize("n", [256, 5000, N])
def test_a_linear_drift_is_followed_at_every_node(n):
    slope = np.array([0.0, 1.0, -2.0, 0.5]) / n
    raw = MEAN + np.arange(n)[:, None] * slope * NOISE
    raw[1::2] += 0.01 * NOISE  # a channel must have some noise
    raw[::2] -= 0.01 * NOISE
    step, nodes = baseline(raw, 80.0 if n == 256 else 800.0)
    assert step == (16 if n == 256 else 160)
    position = (np.arange(len(nodes)) + 0.5) * step - 0.5
    inner = slice(4, -4)  # the mean over five steps and the median are biased by a slope at the ends
    expected = MEAN + position[:, None] * slope * NOISE
    np.testing.assert_allclose((nodes - expected)[inner] / NOISE, 0, atol=1e-4)
    assert np.abs((nodes - expected) / NOISE).max() < 3 * step / n + 1e-4


@pytest.mark.parametrize("window", [0.0, 1e9])
def test_the_whole_block_has_one_mean(window):
    raw = noise()
    sums = statistics(raw)
    step, nodes = running_baseline(sums, ALL_GOOD, window)
    assert nodes.shape == (1, 4)
    np.testing.assert_allclose((nodes[0] - raw.mean(axis=0)) / NOISE, 0, atol=0.01)
    np.testing.assert_allclose(residual(sums, step, nodes), sums.means - (nodes - sums.centre))


def test_the_window_is_the_length_of_the_running_mean():
    """The baseline of white noise has the standard deviation of the mean over the window."""
    for window in (800.0, 3200.0):
        step, nodes = baseline(noise(200_000), window)
        assert step == window / 5
        np.testing.assert_allclose(nodes.std(axis=0) / NOISE * window**0.5, 1, atol=0.25)


@pytest.mark.parametrize("sign", [1, -1])
def test_an_impulse_over_the_whole_band_does_not_move_the_baseline(sign):
    quiet = noise()
    raw = quiet.copy()
    raw[10_000:10_064] += sign * 5 * NOISE.astype(np.float32)
    before, after = (baseline(block, 2000.0)[1] for block in (quiet, raw))
    assert np.abs((after - before) / NOISE).max() < 0.015


@pytest.mark.parametrize("height", [20.0, -20.0, 1e4])
def test_a_bright_bin_in_one_channel_moves_the_baseline_by_no_more_than_the_clip(height):
    """One bin out of 125 in the window, clipped at 3 / sqrt(16) sigma, moves it by 0.006 sigma."""
    quiet = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    raw = quiet.copy()
    raw[10_000:10_016, 0] += height
    good = np.ones(64, bool)
    before, after = (baseline(block, 2000.0, good)[1] for block in (quiet, raw))
    assert 0.003 < np.abs(after - before)[:, 0].max() < 0.01
    np.testing.assert_array_equal(after[:, 1:], before[:, 1:])


def test_masked_channels_do_not_exclude_bins():
    quiet = noise()
    raw = quiet.copy()
    raw[8000:12_000, 1:] += 3 * NOISE[1:].astype(np.float32)
    good = np.array([True, False, False, False])
    before, after = (baseline(block, 2000.0, good)[1] for block in (quiet, raw))
    np.testing.assert_allclose(after[:, 0], before[:, 0], atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 50])
def test_the_running_median_is_that_of_scipy(n):
    values = np.random.default_rng(n).standard_normal((n, 7)).astype(np.float32)
    expected = median_filter(values, size=(5, 1), mode="nearest")
    np.testing.assert_array_equal(running_median(values), expected)


def test_residuals_are_the_bins_minus_their_node():
    sums = statistics(noise())
    step, nodes = running_baseline(sums, ALL_GOOD, 800.0)
    residuals = residual(sums, step, nodes)
    assert len(residuals) == N // step * (step // BIN)
    per_bin = np.repeat(nodes, step // BIN, axis=0)
    expected = (sums.means + sums.centre)[: len(residuals)] - per_bin
    np.testing.assert_allclose(residuals, expected, atol=2e-4 * MEAN.max())
