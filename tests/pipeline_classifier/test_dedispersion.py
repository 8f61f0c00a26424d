"""Dedispersion: the cold-plasma law, and the tree against the brute-force sum, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.dedispersion import (
    DedispersionTree,
    accumulator_dtype,
    brute_force,
    delays_in_samples,
    dispersion_delay,
    quantise,
)
from pipeline_classifier.simulation import EFFELSBERG


def test_known_delays():
    # 4148.808 s MHz^2 * 100 * (1/1000^2 - 1/2000^2) = 414.8808 ms * 3/4
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
)
@settings(max_examples=150, deadline=None)
def test_the_tree_is_the_brute_force_sum(nchans, top, bandwidth, lowest, step, n_dm, tsamp, n, stretch, seed):
    frequencies = np.linspace(top, top * (1 - bandwidth), nchans)
    delays = delays_in_samples(lowest + step * np.arange(n_dm), frequencies, tsamp)
    delays = np.minimum(delays, 5000)
    tree = DedispersionTree(delays)
    tree.STRETCH = stretch
    data = np.random.default_rng(seed).integers(-127, 128, (nchans, n + tree.max_delay)).astype(np.int16)
    summed = tree(data, n)
    assert summed.dtype == data.dtype
    np.testing.assert_array_equal(summed, brute_force(data, delays, n))
    assert tree.additions <= n_dm * (nchans - 1)


def test_the_tree_on_the_default_grid_is_exact_and_cheaper():
    delays = delays_in_samples(0.5 * np.arange(256), EFFELSBERG.frequencies, EFFELSBERG.tsamp)
    tree = DedispersionTree(delays)
    data = np.random.default_rng(0).integers(-100, 100, (256, 500 + tree.max_delay)).astype(np.int16)
    np.testing.assert_array_equal(tree(data, 500), brute_force(data, delays, 500))
    assert tree.additions < 256 * 255 / 3


@given(nchans=st.sampled_from([1, 2, 255, 258, 259, 1024, 1025, 5000]), sign=st.sampled_from([-1.0, 1.0]))
def test_no_sum_of_quantised_samples_overflows(nchans, sign):
    data = np.full((nchans, 3), sign * 1e6, np.float32)
    quantised = quantise(data, np.empty((nchans, 4), accumulator_dtype(nchans)))
    exact = quantised.astype(np.int64).sum(axis=0)
    np.testing.assert_array_equal(quantised.sum(axis=0, dtype=quantised.dtype), exact)
    assert (sign * exact[:3] > 0).all() and exact[3] == 0


def test_quantising_keeps_a_sample_to_a_sixteenth_of_its_noise():
    data = np.random.default_rng(0).standard_normal((8, 1000)).astype(np.float32)
    quantised = quantise(data.copy(), np.empty(data.shape, np.int16))
    assert np.abs(quantised / 8 - data).max() <= 1 / 16 + 1e-6
