"""Cleaning: unit noise out, bad channels and undispersed impulses gone, dispersed pulses kept."""

import numpy as np
import pytest

from pipeline_classifier.dedispersion import brute_force, delays_in_samples
from pipeline_classifier.pulse_signal import Injector, Pulse
from pipeline_classifier.rfi import Cleaning, clean
from pipeline_classifier.simulation import EFFELSBERG

FREQUENCIES, TSAMP = EFFELSBERG.frequencies, EFFELSBERG.tsamp
N = 16384


def noise(n: int = N, seed: int = 0) -> np.ndarray:
    """Unit noise (n, 256) float32; `observe` turns it into counts with a bandpass."""
    return np.random.default_rng(seed).standard_normal((n, 256), dtype=np.float32)


def observe(signal: np.ndarray) -> np.ndarray:
    response = np.linspace(0.5, 1.5, 256, dtype=np.float32)
    return 100 * response + 10 * response * signal


def cleaned(block: np.ndarray, **settings) -> tuple[np.ndarray, np.ndarray]:
    return clean(block, FREQUENCIES, TSAMP, Cleaning(**settings))


def dedispersed(data: np.ndarray, dm: float) -> np.ndarray:
    """Profile at one DM, in units of the noise of the sum over the channels that are not all zero."""
    delays = delays_in_samples(np.array([dm]), FREQUENCIES, TSAMP)
    n = data.shape[1] - delays.max()
    return brute_force(data, delays, n)[0] / np.sqrt((data != 0).any(axis=1).sum())


@pytest.mark.parametrize("zero_dm", [True, False])
def test_noise_becomes_zero_mean_and_unit_noise(zero_dm):
    slope = np.linspace(-2, 2, N, dtype=np.float32)[:, None]
    data, good = cleaned(observe(noise() + slope), zero_dm=zero_dm)
    assert data.shape == (256, N) and data.dtype == np.float32 and good.shape == (256,)
    assert good.mean() > 0.95, "few channels of noise are masked"
    assert np.abs(data[good].mean(axis=1)).max() < 0.05
    np.testing.assert_allclose(data[good].std(axis=1), 1, atol=0.08)
    assert (data[~good] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_few_channels_of_pure_noise_are_masked(seed):
    assert cleaned(observe(noise(4096, seed)))[1].mean() > 0.95


@pytest.mark.parametrize("kind", ["dead", "zero", "nan", "infinite", "noisy", "carrier", "impulses"])
def test_a_bad_channel_is_masked_and_its_neighbours_are_not(kind):
    signal = noise()
    on = (np.arange(N) // 500 % 2 == 0).astype(np.float32)
    signal[:, 100] = {"noisy": 5 * signal[:, 100], "carrier": signal[:, 100] + 2 * on,
                      "impulses": signal[:, 100] + 30 * (np.arange(N) % 400 == 0)}.get(kind, signal[:, 100])
    block = observe(signal)
    if kind in ("dead", "zero"):
        block[:, 100] = 60 if kind == "dead" else 0
    elif kind in ("nan", "infinite"):
        block[777, 100] = np.nan if kind == "nan" else np.inf
    data, good = cleaned(block)
    assert not good[100] and (data[100] == 0).all() and np.isfinite(data).all()
    assert good[[98, 99, 101, 102]].all() and good.mean() > 0.95


def test_the_zaplist_is_never_used():
    data, good = cleaned(observe(noise(2048)), zaplist=((1300.0, 1325.0), (1500.0, 1500.0)))
    inside = ((FREQUENCIES >= 1300) & (FREQUENCIES <= 1325)) | (FREQUENCIES == 1500)
    assert inside.sum() == 22
    assert not good[inside].any() and (data[inside] == 0).all() and good[~inside].mean() > 0.95


def test_zero_dm_removes_an_undispersed_impulse():
    signal = noise()
    signal[8000:8010] += 1.0
    kept, removed = (cleaned(observe(signal), zero_dm=zero_dm)[0] for zero_dm in (False, True))
    assert dedispersed(kept, 0.0)[8000:8010].sum() / np.sqrt(10) > 40
    assert np.abs(dedispersed(removed, 0.0)).max() < 1
    for dm in (2.0, 5.0, 20.0):
        assert dedispersed(removed, dm)[7000:9000].max() < max(5.5, 0.6 * dedispersed(kept, dm)[7000:9000].max())


@pytest.mark.parametrize("snr", [6.0, 15.0, 40.0, 100.0])
@pytest.mark.parametrize("width_ms", [0.5, 5.0])
def test_a_dispersed_pulse_keeps_its_snr(snr, width_ms):
    pulse = Pulse(0.8, 56.77, snr, width_ms)
    with_pulse = noise(seed=3)
    injector = Injector([pulse], FREQUENCIES, TSAMP, seed=3)
    injector.add(with_pulse, 0)
    # The same noise with and without the pulse: the difference is the pulse, as it comes out of the cleaning.
    profiles = [dedispersed(cleaned(observe(block))[0], 56.77) for block in (with_pulse, noise(seed=3))]
    total = np.pad(np.cumsum(profiles[0] - profiles[1]), (1, 0))
    width = round(injector.boxcar_widths_ms[0] / 1e3 / TSAMP)
    near = slice(round(0.79 / TSAMP), round(0.81 / TSAMP))
    found = ((total[width:] - total[:-width]) / np.sqrt(width))[near].max()
    assert 0.85 * snr <= found <= 1.1 * snr


@pytest.mark.parametrize("n", [1, 2, 5, 100, 255, 256, 257])
@pytest.mark.parametrize("zero_dm", [True, False])
def test_a_short_block_is_cleaned_too(n, zero_dm):
    data, good = cleaned(observe(noise(n)), zero_dm=zero_dm)
    assert data.shape == (256, n) and np.isfinite(data).all() and good.dtype == bool
    assert n < 100 or good.mean() > 0.9


def test_a_block_without_a_single_good_channel_is_all_zero():
    data, good = cleaned(np.full((1000, 256), 7, np.uint8))
    assert not good.any() and (data == 0).all()
