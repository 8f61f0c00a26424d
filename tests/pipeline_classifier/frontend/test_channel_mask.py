"""The channel mask finds outlying channels and long narrow-band signals, and nothing in noise, slopes or pulses."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline_classifier.frontend.channel_mask import (
    FLOORS,
    ChannelFigures,
    iqrm,
    kadane_filter,
    narrow_band_signals,
    outlier_channels,
    outside_quartiles,
)
from pipeline_classifier.frontend.settings import BIN


def test_iqrm_masks_outlying_channels_but_not_their_neighbours_nor_a_slope():
    rng = np.random.default_rng(0)
    figures = np.stack([np.linspace(0, 5, 256), np.zeros(256)]) + 0.01 * rng.standard_normal((2, 256))
    assert not iqrm(figures, 7.0, np.zeros(2)).any()
    figures[0, 30], figures[1, [100, 101, 102, 200]] = figures[0, 30] + 1, 1
    figures[1, 150] = -5  # a low value votes against all its neighbours, but none of these votes counts
    np.testing.assert_array_equal(np.flatnonzero(iqrm(figures, 7.0, np.zeros(2))), [30, 100, 101, 102, 200])


@pytest.mark.parametrize("edge", [slice(0, 3), slice(-3, None)])
def test_iqrm_masks_no_channel_beside_a_roll_off_at_the_band_edge(edge):
    """Channels at the edge have fewer neighbours; none of these may vote more than once."""
    figures = 0.01 * np.random.default_rng(0).standard_normal((1, 64))
    figures[0, edge] -= 1.0
    assert not iqrm(figures, 7.0, np.array([0.3])).any()


@pytest.mark.parametrize("channel", [0, 1, 62, 63])
def test_iqrm_masks_an_outlier_at_the_band_edge(channel):
    figures = 0.01 * np.random.default_rng(0).standard_normal((1, 64))
    figures[0, channel] += 1.0
    assert np.flatnonzero(iqrm(figures, 7.0, np.array([0.3]))).tolist() == [channel]


@pytest.mark.parametrize("width, centre_found", [(20, True), (32, False)])
def test_iqrm_compares_channels_within_a_tenth_of_the_band(width, centre_found):
    """The centre of a wide block of outliers is compared with too few normal channels to be found."""
    figures = 0.01 * np.random.default_rng(0).standard_normal((1, 256))
    figures[0, 100 : 100 + width] += 1.0
    found = iqrm(figures, 7.0, np.array([0.3]))
    assert found[100 + width // 2] == centre_found
    assert found[[100, 100 + width - 1]].all() and not found[:100].any() and not found[100 + width :].any()


@pytest.mark.parametrize("sigma, found", [(6.0, False), (8.0, True)])
def test_the_iqrm_threshold_is_in_standard_deviations_of_the_differences(sigma, found):
    """The difference of two values of unit noise has a standard deviation of sqrt(2)."""
    figures = np.random.default_rng(1).standard_normal((1, 1024))
    lags = np.array([1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 63, 94])
    figures[0, 500 + np.concatenate([lags, -lags])] = 0.0
    figures[0, 500] = sigma * np.sqrt(2)
    assert iqrm(figures, 7.0, np.zeros(1))[500] == found


def test_outside_quartiles_is_one_sided_and_has_a_floor():
    figures = np.random.default_rng(0).standard_normal((2, 256)) * [[1], [0.01]]
    figures[:, 7], figures[:, 9] = 20, -20
    assert np.flatnonzero(outside_quartiles(figures, 3.0, np.array([0, 30]))).tolist() == [7]
    assert not outside_quartiles(figures, 3.0, np.array([30, 30])).any()


def test_outside_quartiles_counts_from_the_upper_quartile_and_floors_from_the_median():
    figures = np.linspace(0, 1, 101)[None]  # quartiles 0.25 and 0.75
    figures[0, [0, 100]] = 2.2, 2.3
    assert np.flatnonzero(outside_quartiles(figures, 3.0, np.zeros(1))).tolist() == [100]
    figures[0, [0, 100]] = 2.4, 2.6
    assert np.flatnonzero(outside_quartiles(figures, 1.0, np.array([2.0]))).tolist() == [100]


def noise_figures(nchans: int = 256) -> ChannelFigures:
    """Figures of merit of channels without interference, with a bandpass."""
    rng = np.random.default_rng(0)
    log_noise = np.linspace(1, 3, nchans) + 0.005 * rng.standard_normal(nchans)
    impulsiveness, excess = 1 + 0.002 * rng.standard_normal(nchans), 1 + 0.05 * rng.standard_normal(nchans)
    return ChannelFigures(log_noise, impulsiveness, excess, *0.05 * rng.standard_normal((2, nchans)))


@pytest.mark.parametrize(
    "name, sign, floor",
    [
        ("log_noise", 1, FLOORS["log_noise_excess"]),
        ("log_noise", -1, FLOORS["log_noise_deficit"]),
        ("impulsiveness", 1, FLOORS["impulsiveness"]),
        ("low_frequency_excess", 1, FLOORS["low_frequency_excess"]),
        ("skewness", 1, FLOORS["skewness"]),
        ("skewness", -1, FLOORS["skewness"]),
        ("kurtosis", 1, FLOORS["kurtosis"]),
        ("kurtosis", -1, FLOORS["kurtosis"]),
    ],
)
def test_each_figure_of_merit_masks_a_channel_beyond_its_floor(name, sign, floor):
    figures, good = noise_figures(), np.ones(256, bool)
    assert not outlier_channels(figures, good, 3.0, 7.0).any()
    for factor, expected in ((0.5, []), (2.5, [100])):
        values = getattr(figures, name).copy()
        values[100] += sign * factor * floor
        found = outlier_channels(replace(figures, **{name: values}), good, 3.0, 7.0)
        assert np.flatnonzero(found).tolist() == expected


def test_channels_that_are_not_in_use_neither_count_nor_are_found():
    figures, good = noise_figures(), np.ones(256, bool)
    good[:128] = False
    figures.kurtosis[:128] = 1e9
    figures.kurtosis[200] = 2.0
    assert np.flatnonzero(outlier_channels(figures, good, 3.0, 7.0)).tolist() == [200]


@pytest.mark.parametrize("in_use", [0, 1, 3])
def test_fewer_than_four_channels_are_not_compared(in_use):
    figures, good = noise_figures(), np.zeros(256, bool)
    good[:in_use] = True
    figures.low_frequency_excess[0] = figures.log_noise[0] = 100.0
    assert not outlier_channels(figures, good, 3.0, 7.0).any()


def test_the_kadane_filter_finds_long_signals_and_no_pulse():
    data = np.random.default_rng(0).standard_normal((1000, 32), dtype=np.float32)
    data[300:360, 5] += 2.0
    data[600:690, 9] -= 2.0
    data[100:120, 20] += 8.0  # bright, but shorter than the minimum length
    channels, starts, ends = kadane_filter(data, 24, 10.0)
    assert set(channels.tolist()) == {5, 9}
    for channel, first, last in ((5, 300, 360), (9, 600, 690)):
        covered = sum(min(e, last) - max(s, first) for c, s, e in zip(channels, starts, ends) if c == channel)
        assert covered >= 0.8 * (last - first)


def test_the_kadane_filter_gives_the_exact_edges_of_a_strong_signal():
    data = np.zeros((100, 2), np.float32)
    data[30:50, 1] = 100.0
    channels, starts, ends = kadane_filter(data, 15, 10.0)
    assert (channels.tolist(), starts.tolist(), ends.tolist()) == ([1], [30], [50])


@pytest.mark.parametrize("length, found", [(24, False), (25, True)])
def test_the_kadane_filter_needs_more_than_the_minimum_length(length, found):
    data = np.zeros((400, 1), np.float32)
    data[100 : 100 + length] = 10.0
    assert (len(kadane_filter(data, 24, 10.0)[0]) == 1) == found


@pytest.mark.parametrize("snr, found", [(9.9, False), (10.1, True)])
def test_the_kadane_filter_has_a_threshold_in_snr(snr, found):
    data = np.zeros((400, 1), np.float32)
    data[100:125] = snr / 5  # 25 samples of unit noise: S/N = 25 level / sqrt(25)
    assert (len(kadane_filter(data, 24, 10.0)[0]) == 1) == found


@pytest.mark.parametrize("min_length", [0, 1, 999, 1000, 5000])
def test_the_kadane_filter_takes_any_minimum_length(min_length):
    channels, _, _ = kadane_filter(np.full((1000, 3), 10.0, np.float32), min_length, 10.0)
    assert set(channels.tolist()) == ({0, 1, 2} if min_length in (1, 999) else set())


def test_narrow_band_signals_are_found_per_group_of_channels():
    """A signal of S/N 5 in each of three channels is found in their sum; the last group is incomplete."""
    residuals = np.zeros((400, 13), np.float32)
    good = np.ones(13, bool)
    good[5] = False
    residuals[100:136, 4:8] = 1.2 / BIN**0.5 * good[4:8]
    residuals[200:236, 12] = 2.0 / BIN**0.5
    found = narrow_band_signals(residuals, good, 4, 24, 8.0)
    assert found == [
        (slice(4, 8), slice(100 * BIN, 136 * BIN)),
        (slice(12, 16), slice(200 * BIN, 236 * BIN)),
    ]
    assert narrow_band_signals(residuals[:, :8], good[:8], 1, 24, 8.0) == []


def test_a_signal_in_the_whole_band_is_not_narrow_band():
    residuals = np.zeros((400, 16), np.float32)
    good = np.ones(16, bool)
    good[[4, 5, 6, 9]] = False
    residuals[100:200, good] = 5.0
    assert narrow_band_signals(residuals, good, 4, 24, 10.0) == []
