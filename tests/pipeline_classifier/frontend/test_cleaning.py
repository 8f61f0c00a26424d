"""Cleaning gives unit noise, removes bad channels and undispersed impulses, and preserves dispersed pulses."""

import tracemalloc

import numpy as np
import pytest

from pipeline_classifier.frontend.baseline import TILE, bin_sums, residual, running_baseline
from pipeline_classifier.frontend.channel_mask import ChannelFigures
from pipeline_classifier.frontend.cleaning import clean, downsample, figures_of_merit
from pipeline_classifier.frontend.dedispersion import LEVELS_PER_SIGMA, delays_in_samples
from pipeline_classifier.frontend.impulses import SMOOTHING, impulse_samples
from pipeline_classifier.frontend.settings import BIN, Cleaning
from pipeline_classifier.simulation.observation import EFFELSBERG
from pipeline_classifier.simulation.pulses import Injector, Pulse
from tests.pipeline_classifier.frontend.brute_force import brute_force

FREQUENCIES, TSAMP = EFFELSBERG.frequencies, EFFELSBERG.tsamp
N = 16384


def noise(n: int = N, seed: int = 0) -> np.ndarray:
    """Unit noise (n, 256) float32, which `observe` converts to counts with a bandpass."""
    return np.random.default_rng(seed).standard_normal((n, 256), dtype=np.float32)


def observe(signal: np.ndarray) -> np.ndarray:
    response = np.linspace(0.5, 1.5, 256, dtype=np.float32)
    return 100 * response + 10 * response * signal


def cleaned(block: np.ndarray, **settings) -> tuple[np.ndarray, np.ndarray]:
    return clean(block, FREQUENCIES, TSAMP, Cleaning(**settings))[:2]


def dedispersed(data: np.ndarray, dm: float) -> np.ndarray:
    """Time series at one DM, in units of its noise; channels that are zero throughout do not count."""
    delays = delays_in_samples(np.array([dm]), FREQUENCIES, TSAMP)
    n = data.shape[1] - delays.max()
    return brute_force(data, delays, n)[0] / np.sqrt((data != 0).any(axis=1).sum())


@pytest.mark.parametrize("n", [512, 5000])
@pytest.mark.parametrize("dtype, extreme", [(np.uint8, [1, 255]), (np.float32, [1, 1e20, 3e38, np.inf, np.nan])])
def test_empty_channels_with_a_few_extreme_samples_give_finite_samples(dtype, extreme, n):
    rng = np.random.default_rng(0)
    for zero_dm in ("zdot", "zero", None):
        for count in (1, 5, 20):
            block = np.zeros((n, 8), dtype)
            block[rng.integers(0, n, count), rng.integers(0, 8, count)] = rng.choice(extreme, count)
            data, _ = clean(block, FREQUENCIES[:8], TSAMP, Cleaning(zero_dm=zero_dm))[:2]
            assert np.isfinite(data).all()


@pytest.mark.parametrize("zero_dm", ["zdot", "zero", None])
def test_noise_becomes_zero_mean_and_unit_noise(zero_dm):
    slope = np.linspace(-2, 2, N, dtype=np.float32)[:, None]
    data, good = cleaned(observe(noise() + slope), zero_dm=zero_dm)
    assert data.shape == (256, N) and data.dtype == np.float32 and good.shape == (256,)
    assert good.mean() > 0.95, "most channels of pure noise are masked"
    assert np.abs(data[good].mean(axis=1)).max() < 0.05
    np.testing.assert_allclose(data[good].std(axis=1), 1, atol=0.08)
    assert (data[~good] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_few_channels_of_pure_noise_are_masked(seed):
    assert cleaned(observe(noise(4096, seed)))[1].mean() > 0.95


@pytest.mark.parametrize("kind", ["dead", "zero", "nan", "noisy", "carrier", "impulses"])
def test_a_bad_channel_is_masked_and_its_neighbours_are_not(kind):
    signal = noise()
    on = (np.arange(N) // 500 % 2 == 0).astype(np.float32)
    signal[:, 100] = {
        "noisy": 5 * signal[:, 100],
        "carrier": signal[:, 100] + 2 * on,
        "impulses": signal[:, 100] + 30 * (np.arange(N) % 400 == 0),
    }.get(kind, signal[:, 100])
    block = observe(signal)
    if kind in ("dead", "zero"):
        block[:, 100] = 60 if kind == "dead" else 0
    elif kind == "nan":
        block[100:, 100] = np.nan
    data, good = cleaned(block)
    assert not good[100] and (data[100] == 0).all() and np.isfinite(data).all()
    assert good[[98, 99, 101, 102]].all() and good.mean() > 0.95


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e30, 3e38])
@pytest.mark.parametrize("samples", [np.s_[777], np.s_[777, :200], np.s_[3000:3500, 50], np.s_[:100]])
def test_samples_that_are_not_finite_are_zero_and_change_no_others(value, samples):
    block = observe(noise())
    expected = cleaned(block)[0]
    block[samples] = value
    bad = np.zeros(block.shape, dtype=bool)
    bad[samples] = True
    result = clean(block, FREQUENCIES, TSAMP, Cleaning())
    assert (result.data[bad.T] == 0).all()
    assert np.abs(result.data - expected)[~bad.T].max() < 0.1
    np.testing.assert_array_equal(result.not_finite, bad.sum(axis=1))
    assert not result.constant.any()


@pytest.mark.parametrize("value, channels", [(0, np.s_[:]), (100, np.s_[:]), (255, np.s_[:]), (0, np.s_[::2])])
@pytest.mark.parametrize("first, last", [(3000, 3700), (5, 6000), (9000, N)])
def test_constant_stretches_are_zero_and_change_no_others(value, first, last, channels):
    block = observe(noise()).clip(0, 255).astype(np.uint8)
    expected = cleaned(block)[0]
    block[first:last, channels] = value
    constant = np.zeros(block.shape, dtype=bool)
    constant[first:last, channels] = True
    result = clean(block, FREQUENCIES, TSAMP, Cleaning())
    np.testing.assert_allclose(result.constant, constant.sum(axis=1), atol=8)  # neighbours may have the same value
    assert (result.data[constant.T] == 0).all()
    kept = result.good & (expected != 0).any(axis=1)
    assert kept.mean() > 0.95
    assert np.abs(result.data - expected)[kept][~constant.T[kept]].std() < 0.05


def test_a_bad_channel_is_masked_beside_one_without_noise():
    signal = noise()
    signal[:, 100] += 0.5 * np.sin(2 * np.pi * np.arange(N) / 512)
    signal[:, 200] += 30 * (np.arange(N) % 400 == 0)
    block = observe(signal)
    block[:, 50] = 60
    _, good = cleaned(block)
    assert not good[[50, 100, 200]].any() and good.mean() > 0.95


def test_the_zaplist_is_never_used():
    data, good = cleaned(observe(noise(2048)), zaplist=((1300.0, 1325.0), (1500.0, 1500.0)))
    inside = ((FREQUENCIES >= 1300) & (FREQUENCIES <= 1325)) | (FREQUENCIES == 1500)
    assert inside.sum() == 22
    assert not good[inside].any() and (data[inside] == 0).all() and good[~inside].mean() > 0.95


def test_zero_dm_removes_an_undispersed_impulse():
    signal = noise()
    signal[8000:8010] += 1.0
    kept, removed = (cleaned(observe(signal), zero_dm=zero_dm)[0] for zero_dm in (None, "zdot"))
    assert dedispersed(kept, 0.0)[8000:8010].sum() / np.sqrt(10) > 40
    assert np.abs(dedispersed(removed, 0.0)).max() < 1
    for dm in (2.0, 5.0, 20.0):
        assert dedispersed(removed, dm)[7000:9000].max() < max(5.5, 0.6 * dedispersed(kept, dm)[7000:9000].max())


@pytest.mark.parametrize("zero_dm", ["zdot", "zero"])
def test_channels_have_unit_noise_after_undispersed_noise_is_subtracted(zero_dm):
    """Subtracting the mean of eight channels removes an eighth of the variance of each, and that of the common noise."""
    rng = np.random.default_rng(0)
    response = np.linspace(0.2, 1.0, 8)
    signal = rng.standard_normal((60_000, 8)) + 0.5 * rng.standard_normal((60_000, 1)) * response
    block = (100 + 10 * signal).astype(np.float32)
    data, good = clean(block, FREQUENCIES[:8], TSAMP, Cleaning(zero_dm=zero_dm))[:2]
    assert good.all()
    np.testing.assert_allclose(data.std(axis=1), 1, atol=0.012)


def test_the_regression_coefficients_are_those_of_least_squares():
    """A channel with response r to common noise of standard deviation s, among n channels with a mean response of 1.

    Its covariance with the mean z is r s^2 + 1/n, the variance of z is s^2 + 1/n. "zero" takes 1 for the ratio.
    """
    rng = np.random.default_rng(0)
    n, s, response = 64, 0.15, np.linspace(0.5, 1.5, 64)
    common = s * rng.standard_normal(60_000)
    signal = rng.standard_normal((60_000, n)) + common[:, None] * response
    signal[20_000:20_200] += 10 * response[::-1]  # one impulse must not dominate the coefficients
    block = (100 + 10 * signal).astype(np.float32)
    for zero_dm, coefficient in (("zdot", (response * s**2 + 1 / n) / (s**2 + 1 / n)), ("zero", 1)):
        data, good = clean(block, FREQUENCIES[:n], TSAMP, Cleaning(zero_dm=zero_dm))[:2]
        assert good.all() and (data[:, 20_000:20_200] == 0).all()
        remaining = data @ common / (common @ common)
        np.testing.assert_allclose(remaining, response - coefficient, atol=0.1)
        assert np.abs(remaining - (response - coefficient)).mean() < 0.03


def test_an_impulse_below_the_threshold_has_little_influence_on_the_regression():
    """Among 256 channels of noise every coefficient is 1, as each channel is a part of the mean.

    An impulse with a steep spectrum, 0.6 sigma on average, would change that by 36 % from the top to the middle of the
    band. With the instrument clipped at 3 / sqrt(256) sigma it changes it by 15 %.
    """
    spectrum = np.linspace(0, 2, 256, dtype=np.float32)
    signal = noise()
    mean = signal.mean(axis=1)
    signal[8000:8100] += 0.6 * spectrum
    data, good = cleaned(observe(signal), baseline_window_s=0.0)
    away = np.r_[0:7900, 8200:N]
    coefficients = 1 - data[:, away] @ mean[away] / (mean[away] @ mean[away])
    assert good.all()
    slope, middle = np.polyfit(spectrum - 1, coefficients, 1)
    assert slope < 0.2 and middle == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("n", [300, 4 * TILE, 4 * TILE + 5, 4 * TILE + BIN + 3, 5 * TILE - 1])
@pytest.mark.parametrize("zero_dm", ["zdot", "zero", None])
def test_the_ends_of_a_block_are_cleaned_like_the_rest(n, zero_dm):
    """Samples after the last whole tile, bin and step of the baseline included."""
    signal = noise(n) + 5e-4 * np.arange(n, dtype=np.float32)[:, None]
    if zero_dm:
        signal += 0.15 * np.random.default_rng(9).standard_normal((n, 1), dtype=np.float32)
    data, good = cleaned(observe(signal), zero_dm=zero_dm, baseline_window_s=100 * TSAMP)
    assert good.mean() > 0.95
    for part in (data[good][:, :100], data[good][:, -100:], data[good][:, -5:]):
        assert part.std() == pytest.approx(1, abs=0.06)
        assert abs(part.mean()) < 0.1
        assert not zero_dm or np.abs(part.mean(axis=0)).max() < 0.01, "undispersed noise remains"


@pytest.mark.parametrize("n", [4 * TILE, 4 * TILE + 5, 4 * TILE + 105])
@pytest.mark.parametrize("first", [0, 1, 2 * TILE - 5, -11, -10])
def test_an_impulse_is_blanked_wherever_it_is_in_the_block(n, first):
    first %= n
    signal = noise(n)
    signal[first : first + 10] += 3.0
    blanked = (cleaned(observe(signal))[0] == 0).all(axis=0)
    near = np.zeros(n, bool)
    near[max(0, first - SMOOTHING // 2) : first + 10 + SMOOTHING // 2] = True
    assert blanked[first : first + 10].all() and not blanked[~near].any()


@pytest.mark.parametrize("level, blanked", [(1.0, True), (0.5, False)])
def test_samples_are_blanked_from_a_mean_of_three_quarters_of_the_noise(level, blanked):
    signal = noise()
    signal[8000:8020] += level
    data, _ = cleaned(observe(signal))
    assert (data[:, 8000:8020] == 0).all() == blanked and (data[:, 8000:8020] != 0).any() != blanked


def test_an_impulse_that_cancels_a_drift_is_blanked():
    """At sample 2 TILE + 100 the baseline has fallen by as much as the impulse is high."""
    n = 4 * TILE
    signal = noise(n) - 3 * np.arange(n, dtype=np.float32)[:, None] / (2 * TILE + 100)
    signal[2 * TILE + 100 : 2 * TILE + 110] += 3.0
    data, good = cleaned(observe(signal))
    assert good.mean() > 0.95 and (data[:, 2 * TILE + 100 : 2 * TILE + 110] == 0).all()


def test_samples_of_a_few_channels_of_pure_noise_are_not_blanked():
    """The mean of eight channels exceeds the impulse threshold in one sample of thirty."""
    block = (100 + 10 * np.random.default_rng(0).standard_normal((50_000, 8))).astype(np.float32)
    data, good = clean(block, FREQUENCIES[:8], TSAMP, Cleaning())[:2]
    assert good.all() and (data != 0).any(axis=0).all()


def test_a_burst_in_a_few_channels_is_not_blanked():
    """Its mean over the band is far above the threshold, but not if each channel is clipped."""
    signal = noise()
    signal[8000:8004, :32] += 30.0
    data, _ = cleaned(observe(signal))
    assert (data[32:, 8000:8004] != 0).any(axis=0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("first, last", [(0, 30), (50, 80), (170, 200)])
def test_impulses_extend_to_the_edges_of_the_smoothed_series(first, last, sign):
    series = np.zeros(200, np.float32)
    series[first:last] = sign
    series[110:140] = sign  # as bright, but no sample of it is an impulse
    impulses = np.zeros(200, bool)
    impulses[first + 12] = True
    n_good = 400  # the edge is where the mean of nine samples is 4 / sqrt(3600) = 0.067: one of nine samples
    found = impulse_samples(series, impulses, n_good).nonzero()[0].tolist()
    assert found == list(range(max(0, first - SMOOTHING // 2), min(200, last + SMOOTHING // 2)))
    assert not impulse_samples(series, np.zeros_like(impulses), n_good).any()


def figures_of(signal: np.ndarray) -> ChannelFigures:
    sums = bin_sums(observe(signal))
    good = np.ones(256, bool)
    step, nodes = running_baseline(sums, good, 2000.0)
    return figures_of_merit(sums, residual(sums, step, nodes), good)


def test_figures_of_merit_of_white_noise():
    figures = figures_of(noise())
    np.testing.assert_allclose(np.exp(figures.log_noise), 10 * np.linspace(0.5, 1.5, 256), rtol=0.03)
    np.testing.assert_allclose(figures.impulsiveness, np.sqrt(1 + 1 / BIN), atol=0.02)
    np.testing.assert_allclose(figures.low_frequency_excess, 1, atol=0.2)
    np.testing.assert_allclose(figures.skewness, 0, atol=0.2)
    np.testing.assert_allclose(figures.kurtosis, 0, atol=0.4)


def test_figures_of_merit_of_interference_in_one_channel():
    signal = noise()
    signal[:, 100] += 0.5 * np.sin(2 * np.pi * np.arange(N) / 512)  # an excess power of 1/8 in every sample
    signal[::400, 150] += 20.0
    figures = figures_of(signal)
    assert figures.low_frequency_excess[100] == pytest.approx(1 + BIN / 8, rel=0.1)
    assert figures.impulsiveness[100] == pytest.approx(np.sqrt(1 + 1 / BIN + 1 / 8), rel=0.01)
    assert figures.impulsiveness[150] == pytest.approx(np.sqrt(1 + 20**2 / 400), rel=0.1)


def test_figures_of_merit_exclude_impulses_in_the_whole_band():
    """One bin in seventeen has an impulse; the standard deviations in counts are those of the other bins."""
    signal = noise()
    quiet = figures_of(signal)
    for first in range(4, N, 17 * BIN):
        signal[first : first + 8] += 10.0
    loud = figures_of(signal)
    level = np.exp(loud.log_noise - quiet.log_noise)
    np.testing.assert_allclose(loud.impulsiveness * level, quiet.impulsiveness, rtol=0.01)
    ratio = loud.low_frequency_excess * level**2 / quiet.low_frequency_excess
    assert ratio.mean() == pytest.approx(1, abs=0.02)


def test_figures_of_merit_include_undispersed_noise_below_the_impulse_threshold():
    """A sinusoid of 0.6 sigma in all channels adds a power of 0.18 to every sample, and 0.36 at its peaks."""
    signal = noise() + 0.6 * np.sin(2 * np.pi * np.arange(N, dtype=np.float32) / 512)[:, None]
    figures = figures_of(signal)
    assert figures.low_frequency_excess.mean() == pytest.approx(1 + BIN * 0.18, rel=0.03)


def test_one_bright_bin_counts_no_more_than_five_sigma_in_the_low_frequency_excess():
    signal = noise()
    quiet = figures_of(signal)
    signal[8000:8016, 100] += 100.0
    loud = figures_of(signal)
    change = loud.low_frequency_excess[100] - quiet.low_frequency_excess[100]
    assert change == pytest.approx(25 * BIN / N, abs=0.01)


NO_RFI_CLEANING = {"zero_dm": None, "zap_threshold": 1e9, "mask_threshold": 1e9}


def recovered(pulse: Pulse, **settings) -> float:
    """S/N in the true boxcar at the true DM, from the difference between the same noise with and without the pulse."""
    without = noise(seed=3)
    signal = without.copy()
    injector = Injector([pulse], FREQUENCIES, TSAMP, seed=3)
    injector.add(signal, 0)
    counts = (np.clip(np.rint(observe(block)), 0, 255).astype(np.uint8) for block in (signal, without))
    profiles = [dedispersed(cleaned(block, **settings)[0], pulse.dm_pc_cm3) for block in counts]
    total = np.pad(np.cumsum(profiles[0] - profiles[1], dtype=float), (1, 0))
    width = max(1, round(injector.boxcar_widths_ms[0] / 1e3 / TSAMP))
    return ((total[width:] - total[:-width]) / np.sqrt(width)).max()


@pytest.mark.parametrize("snr", [6.0, 20.0, 100.0])
@pytest.mark.parametrize(
    "dm, width_ms, fraction",
    [
        (56.77, 0.1, 0.99),
        (56.77, 1.0, 0.97),
        (56.77, 5.0, 0.9),
        (10.0, 0.1, 0.97),
        # A pulse that is long compared with its sweep appears in the zero-DM series, and zdot removes it by design.
        (56.77, 20.0, 0.65),
        (10.0, 1.0, 0.85),
    ],
)
def test_a_dispersed_pulse_keeps_its_snr(dm, width_ms, fraction, snr):
    pulse = Pulse(0.8, dm, snr, width_ms)
    found = recovered(pulse)
    assert fraction * recovered(pulse, **NO_RFI_CLEANING) <= found <= 1.1 * snr


@pytest.mark.parametrize("dm", [10.0, 56.77])
@pytest.mark.parametrize("width_ms", [0.1, 2.0, 20.0])
def test_the_channel_mask_preserves_even_a_wide_bright_pulse(dm, width_ms):
    pulse = Pulse(0.8, dm, 100.0, width_ms)
    assert recovered(pulse, zero_dm=None) >= 0.98 * recovered(pulse, **NO_RFI_CLEANING)


def test_a_pulse_in_a_part_of_the_band_is_not_masked():
    pulse = Pulse(0.8, 56.77, 100.0, 1.0, centre_mhz=1400.0, bandwidth_mhz=50.0)
    assert recovered(pulse) >= 0.93 * recovered(pulse, **NO_RFI_CLEANING)


@pytest.mark.parametrize("kind", ["slopes", "tail", "drop-out", "saturated"])
def test_strong_undispersed_events_leave_no_false_pulse(kind):
    signal = noise(seed=4)
    slope = np.linspace(-1, 1, 256, dtype=np.float32)
    if kind == "slopes":  # their spectra differ, so that no single regression coefficient fits
        for start, sign in ((4000, 1), (8000, -1), (12000, 1)):
            signal[start : start + 60] += 2 * (1 + 0.9 * sign * slope)
    elif kind == "tail":
        signal[6000:6600] += 4 * np.exp(-np.arange(600, dtype=np.float32) / 100)[:, None] * (1 + 0.5 * slope)
    elif kind == "saturated":
        signal[8000:8100] = 100
    block = np.clip(observe(signal), 0, 255)
    if kind == "drop-out":
        block[8000:8400] = 0
    data, good = cleaned(block.astype(np.uint8))
    assert good.mean() > 0.95
    for dm in (1.0, 2.0, 5.0, 10.0, 56.77):
        total = np.pad(np.cumsum(dedispersed(data, dm), dtype=float), (1, 0))
        for width in (1, 8, 64):
            assert np.abs(total[width:] - total[:-width]).max() / np.sqrt(width) < 6.5, (dm, width)
    # Far from the event the samples are the same as without it.
    clean_data = cleaned(observe(noise(seed=4)).astype(np.uint8))[0]
    assert np.corrcoef(data[100, :3000], clean_data[100, :3000])[0, 1] > 0.98


def test_a_step_of_the_gain_leaves_no_false_pulse():
    signal = noise(seed=5)
    block = observe(signal)
    block[9000:] *= 1.04
    data, _ = cleaned(block.astype(np.uint8))
    for dm in (2.0, 10.0, 56.77):
        total = np.pad(np.cumsum(dedispersed(data, dm), dtype=float), (1, 0))
        assert np.abs(total[64:] - total[:-64]).max() / 8 < 6.5


def test_a_narrow_band_signal_is_set_to_zero():
    signal = noise(seed=6)
    signal[8000:10000, 96:104] += 1.0
    kept, filtered = (
        cleaned(observe(signal), kadane_channels=n, zap_threshold=1e9, mask_threshold=1e9)[0] for n in (0, 8)
    )
    removed = (filtered == 0) & (kept != 0)
    assert removed[96:104, 8100:8500].mean() > 0.9 and removed[:, :7500].sum() == removed[120:].sum() == 0


@pytest.mark.parametrize("n", [100, 4096, 5000])
def test_integer_output_is_the_float_output_rounded(n):
    block = observe(noise(n)).astype(np.uint8)
    expected, good = cleaned(block)
    out = np.full((256, n + 10), 99, dtype=np.int8)
    data, same = clean(block, FREQUENCIES, TSAMP, Cleaning(), out)[:2]
    assert data is out and (out[:, n:] == 0).all() and (good == same).all()
    assert np.abs(out[:, :n] / LEVELS_PER_SIGMA - expected).max() <= 0.51 / LEVELS_PER_SIGMA


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int16, np.int32, np.float32])
def test_every_dtype_of_samples_gives_the_same(dtype):
    counts = np.rint(observe(noise(4096)) / 2).clip(0, 127)
    expected = cleaned(counts.astype(np.float32))[0]
    np.testing.assert_allclose(cleaned(counts.astype(dtype))[0], expected, atol=1e-4)


@pytest.mark.parametrize("scale, offset", [(1.0, 0.0), (1e9, 1e11), (1e-6, 0.0), (3.0, 1e4)])
def test_units_and_offset_do_not_matter(scale, offset):
    block = observe(noise(4096)).astype(np.float32)
    expected = cleaned(block)[0]
    assert np.abs(cleaned((block * scale + offset).astype(np.float32))[0] - expected).max() < 0.05


def test_downsample_averages_samples_and_channels():
    block = np.random.default_rng(0).integers(0, 255, (103, 10), dtype=np.uint8)
    averaged, frequencies, tsamp = downsample(block, 1500.0 - np.arange(10.0), 1e-4, 4, 3)
    assert averaged.shape == (25, 3) and averaged.dtype == np.float32 and tsamp == 4e-4
    np.testing.assert_allclose(frequencies, [1499.0, 1496.0, 1493.0])
    np.testing.assert_allclose(averaged[2, 1], block[8:12, 3:6].mean(), rtol=1e-6)
    assert downsample(block, frequencies, 1e-4, 1, 1)[0] is block
    cleaned_data, good = clean(np.repeat(observe(noise(2048)), 2, axis=0), FREQUENCIES, TSAMP, Cleaning())[:2]
    assert cleaned_data.shape == (256, 4096) and good.any()


@pytest.mark.parametrize("n", [1, 2, 5, 100, 255, 256, 257])
@pytest.mark.parametrize("zero_dm", ["zdot", "zero", None])
def test_a_short_block_is_cleaned_too(n, zero_dm):
    data, good = cleaned(observe(noise(n)), zero_dm=zero_dm)
    assert data.shape == (256, n) and np.isfinite(data).all() and good.dtype == bool
    assert n < 100 or good.mean() > 0.9


@pytest.mark.parametrize("zero_dm", ["zdot", "zero", None])
def test_channels_of_a_short_block_have_zero_mean_and_unit_noise(zero_dm):
    signal = noise(200)
    signal[100:110] += 1.0
    signal[:, 7] = 3.0
    data, good = cleaned(observe(signal), zero_dm=zero_dm, zaplist=((FREQUENCIES[9], FREQUENCIES[9]),))
    assert np.flatnonzero(~good).tolist() == [7, 9] and (data[~good] == 0).all()
    np.testing.assert_allclose(data[good].mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(data[good].std(axis=1), 1, atol=1e-4)
    impulse = data[good, 100:110].mean()
    assert abs(impulse) < 0.02 if zero_dm else impulse > 0.8


@pytest.mark.parametrize("n", [100, 200, 255, 256, 5003])
@pytest.mark.parametrize("value", [0.1, 6369.6167, 8132.702])
def test_a_constant_channel_is_masked_whatever_the_rounding_of_its_mean(n, value):
    block = observe(noise(n))
    block[:, 3] = value
    data, good = cleaned(block)
    assert not good[3] and (data[3] == 0).all()


@pytest.mark.parametrize("zero_dm", ["zdot", "zero"])
def test_strong_slow_undispersed_noise_gives_finite_samples(zero_dm):
    """It is not part of the noise level, so the expected noise after the regression would be imaginary."""
    slow = np.sin(2 * np.pi * np.arange(20_000) / 400)[:, None] * np.linspace(0.2, 2, 8)
    signal = slow + np.random.default_rng(0).standard_normal((20_000, 8))
    data, good = clean((100 + 10 * signal).astype(np.float32), FREQUENCIES[:8], TSAMP, Cleaning(zero_dm=zero_dm))[:2]
    assert good.any() and np.isfinite(data).all() and data[good].std(axis=1).max() < 2.5


def test_a_block_without_a_single_good_channel_is_all_zero():
    data, good = cleaned(np.full((1000, 256), 7, np.uint8))
    assert not good.any() and (data == 0).all()


def test_no_copy_of_the_block_in_a_wider_type_is_made():
    block, out = np.repeat(observe(noise(4096)).astype(np.uint8), 4, axis=0), np.empty((256, N), np.int8)
    clean(block, FREQUENCIES, TSAMP, Cleaning(), out)
    tracemalloc.start()
    clean(block, FREQUENCIES, TSAMP, Cleaning(), out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * block.nbytes
