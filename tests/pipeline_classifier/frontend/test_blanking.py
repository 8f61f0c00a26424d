"""Samples without a signal are found where they are, and replaced by others of their channel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline_classifier.frontend.baseline import bin_sums
from pipeline_classifier.frontend.blanking import (
    constant_stretches,
    filled,
    in_float_range,
    out_of_range,
)


def stretches(block: np.ndarray) -> np.ndarray | None:
    return constant_stretches(block, bin_sums(block).variances)


def counts(n: int = 4096, nchans: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 10, (n, nchans)).astype(np.uint8)


@pytest.mark.parametrize("first, last", [(1000, 1100), (0, 64), (3000, 4096), (1007, 1095)])
def test_a_constant_stretch_is_found_to_the_sample(first, last):
    block = counts()
    block[first:last, 3] = 7
    expected = np.zeros(block.shape, dtype=bool)
    expected[first:last, 3] = True
    np.testing.assert_array_equal(stretches(block), expected)


@pytest.mark.parametrize("probability", [0.5, 0.1, 0.03])
def test_samples_of_one_bit_are_not_constant_by_chance(probability):
    block = (np.random.default_rng(0).random((16384, 64)) < probability).astype(np.uint8)
    found = stretches(block)
    assert found is None or found.mean() < 0.002


def test_a_dead_channel_and_the_saturated_samples_of_a_pulse_are_not_stretches():
    block = counts()
    block[:, 5] = 50
    for channel in set(range(16)) - {5}:
        block[1000 + 30 * channel : 1100 + 30 * channel, channel] = 255
    assert stretches(block) is None
    block[2000:2500] = 255
    assert stretches(block)[2000:2500, 6].all(), "the whole band at the highest value is a drop-out"


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1.0, 1e15, 1e36])
def test_scaling_is_exact_and_ends_near_one(scale):
    block = (np.random.default_rng(0).normal(100, 10, (300, 4)) * scale).astype(np.float32)
    scaled, factor = in_float_range(block)
    np.testing.assert_array_equal(scaled, (block.astype(np.float64) * factor).astype(np.float32))
    assert 1e-6 < np.median(scaled) < 1e6 and np.log2(factor).is_integer()
    assert in_float_range(counts())[1] == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1e30, 1e9])
def test_what_is_out_of_range_is_found(value):
    block = counts().astype(np.float32)
    assert out_of_range(block) is None
    block[[5, 700], [3, 0]] = value
    np.testing.assert_array_equal(np.argwhere(out_of_range(block)), [[5, 3], [700, 0]])
    block[5, 3] = block[700, 0] = 1e5  # a bright pulse
    assert out_of_range(block) is None


@given(hnp.arrays(bool, (40, 3), elements=st.booleans()))
def test_replaced_samples_come_from_their_channel_and_others_are_kept(unusable):
    block = np.arange(120).reshape(40, 3) + 1
    result, live = filled(block, unusable)
    np.testing.assert_array_equal(live, (~unusable).sum(axis=0) >= 20)
    for channel in range(3):
        if live[channel]:
            usable = ~unusable[:, channel]
            np.testing.assert_array_equal(result[usable, channel], block[usable, channel])
            assert np.isin(result[:, channel], block[usable, channel]).all()
        else:
            assert not result[:, channel].any()


def test_a_gap_is_filled_with_the_samples_before_it_in_reverse():
    block = np.arange(20)[:, None]
    unusable = np.zeros((20, 1), dtype=bool)
    unusable[10:13] = True
    assert filled(block, unusable)[0][10:13, 0].tolist() == [9, 8, 7]
