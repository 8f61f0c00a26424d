"""Pulse signals have the requested S/N, time, width, dispersion, scattering and scintillation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.simulation.observation import EFFELSBERG
from pipeline_classifier.simulation.pulses import (
    Injector,
    Pulse,
    add_signal,
    profile_snr,
    pulse_signal,
    scintillation,
    with_short_sweeps,
)
from tests.pipeline_classifier.simulation.samples import boxcar_search, dedisperse

FREQUENCIES, TSAMP = EFFELSBERG.frequencies, EFFELSBERG.tsamp
ONE_SECOND = round(1 / TSAMP)


def place(pulse: Pulse, frequencies: np.ndarray, tsamp: float, nsamples: int) -> np.ndarray:
    data = np.zeros((nsamples, len(frequencies)), np.float32)
    starts, signal, _ = pulse_signal(pulse, frequencies, tsamp, np.random.default_rng(0))
    add_signal(data, 0, starts, signal)
    return data


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width_ms": 0.001, "dm_pc_cm3": 0.0},
        {"width_ms": 0.02},
        {"width_ms": 8.0},
        {"scattering_ms": 5.0},
        {"spectral_index": -3.0},
        {"scintillation_bandwidth_mhz": 15.0},
        {"centre_mhz": 1400.0, "bandwidth_mhz": 60.0},
    ],
    ids=str,
)
def test_a_noise_free_pulse_has_its_snr_time_and_width(changes):
    pulse = Pulse(**{"time_s": 0.300021, "dm_pc_cm3": 56.77, "snr": 20.0, "width_ms": 1.0} | changes)
    profile = dedisperse(place(pulse, FREQUENCIES, TSAMP, ONE_SECOND), pulse.dm_pc_cm3, FREQUENCIES, TSAMP)
    snr, start, width = boxcar_search(profile / np.sqrt(256), 600)
    assert snr == pytest.approx(pulse.snr, rel=1e-3)
    boxcar_width_ms = pulse_signal(pulse, FREQUENCIES, TSAMP, np.random.default_rng(0)).boxcar_width_ms
    assert width == pytest.approx(boxcar_width_ms * 1e-3 / TSAMP, rel=0.03, abs=1)
    if not pulse.scattering_ms:
        assert abs(np.argmax(profile) - int(pulse.time_s / TSAMP)) <= 1
        # The best boxcar of a Gaussian is 1.19 times its full width at half maximum.
        smearing_ms = 8297.6e3 * pulse.dm_pc_cm3 * 1.25 / 1370**3
        assert width * TSAMP * 1e3 == pytest.approx(1.19 * max(pulse.width_ms, smearing_ms), rel=0.2, abs=0.21)
    else:
        assert np.argmax(profile) > int(pulse.time_s / TSAMP) + 1


@pytest.mark.parametrize("dm, sweep_s", [(30.0, 4148.808 * 30 * (1211.25**-2 - 1530**-2)), (0.0, 0.0)])
def test_each_channel_arrives_at_its_own_delay(dm, sweep_s):
    data = place(Pulse(0.1, dm, 20.0, 2.0), FREQUENCIES, TSAMP, ONE_SECOND).astype(np.float64)
    centroids = (np.arange(ONE_SECOND) + 0.5) @ data / data.sum(axis=0) * TSAMP
    np.testing.assert_allclose(centroids[[0, -1]], [0.1, 0.1 + sweep_s], atol=0.01 * TSAMP)


def test_scattering_has_its_time_scale_at_every_frequency():
    frequencies = np.arange(1600.0, 800.0, -100.0)
    starts, signal, _ = pulse_signal(
        Pulse(0.1, 0.0, 20.0, 0.5, scattering_ms=4.0), frequencies, TSAMP, np.random.default_rng(0)
    )
    t = (starts[:, None] + np.arange(signal.shape[1]) + 0.5) * TSAMP - 0.1
    # The mean of an exponential is its time scale.
    tau_ms = (signal * t).sum(axis=1) / signal.sum(axis=1) * 1e3
    np.testing.assert_allclose(tau_ms, 4.0 * (frequencies / 1000) ** -4, rtol=0.02)


def test_scintillation_decorrelates_over_its_bandwidth():
    rng = np.random.default_rng(0)
    gains = np.array([scintillation(FREQUENCIES, 20.0, rng) for _ in range(400)])
    assert gains.mean() == pytest.approx(1, abs=0.05) and gains.std() == pytest.approx(1, abs=0.1)
    apart = (gains[:, :-16] - 1) * (gains[:, 16:] - 1)
    assert apart.mean() / gains.var() == pytest.approx(0.5, abs=0.1)


@given(st.floats(0, 1), st.floats(0, 200), st.floats(1e-6, 20), st.floats(0, 20), st.sampled_from([1, 2, 64]))
@settings(max_examples=60, deadline=None)
def test_every_pulse_is_finite_and_keeps_its_snr(time_s, dm, width_ms, scattering_ms, nchans):
    pulse = Pulse(time_s, dm, 10.0, width_ms, scattering_ms)
    signal = pulse_signal(pulse, FREQUENCIES[:nchans], TSAMP, np.random.default_rng(0)).signal
    assert np.isfinite(signal).all() and signal.min() >= 0
    assert profile_snr(signal.sum(axis=0))[0] / np.sqrt(nchans) == pytest.approx(10, rel=1e-3)


def test_coherently_dedispersed_data_are_smeared_by_the_difference_in_dm_only():
    def boxcar_width(dm: float, coherent_dm: float) -> float:
        pulse = Pulse(0.1, dm, 20.0, 0.3, coherent_dm_pc_cm3=coherent_dm)
        return pulse_signal(pulse, FREQUENCIES, TSAMP, np.random.default_rng(0)).boxcar_width_ms

    assert boxcar_width(560, 560) == boxcar_width(0, 0) == pytest.approx(0.36, abs=0.11)
    assert boxcar_width(560, 0) > 5 * boxcar_width(560, 560)
    assert boxcar_width(500, 560) == boxcar_width(60, 0) == boxcar_width(620, 560)
    starts = [
        pulse_signal(
            Pulse(0.1, 560, 20, 40, coherent_dm_pc_cm3=dm), FREQUENCIES, TSAMP, np.random.default_rng(0)
        ).starts
        for dm in (0, 560)
    ]
    np.testing.assert_array_equal(np.diff(starts[0]), np.diff(starts[1]), "delays between channels are as before")


@given(st.floats(0, 300), st.floats(0.1, 20), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_short_sweeps_are_one_to_three_widths_within_the_limits(dm, width_ms, seed):
    pulse = Pulse(0.0, dm, 10.0, width_ms, 2 * width_ms)
    rng = np.random.default_rng(seed)
    (changed,) = with_short_sweeps([pulse], 1.0, FREQUENCIES, (5, 300), (0.1, 20), rng)
    if changed != pulse:
        sweep_ms = 4148.808e3 * changed.dm_pc_cm3 * (FREQUENCIES[-1] ** -2 - FREQUENCIES[0] ** -2)
        assert 0.999 < sweep_ms / changed.width_ms < 3.001
        assert 5 <= changed.dm_pc_cm3 <= 300 and 0.1 <= changed.width_ms <= 20
        assert changed.scattering_ms == pytest.approx(2 * changed.width_ms)
    else:
        assert dm < 10 or changed.width_ms == width_ms
    assert with_short_sweeps([pulse], 0.0, FREQUENCIES, (5, 300), (0.1, 20), rng) == [pulse]


def test_blocks_of_any_size_hold_the_same_pulses():
    pulses = [Pulse(0.02, 50, 20, 1), Pulse(0.0, 30, 20, 3), Pulse(0.25, 80, 20, 0.1, 3, -2, 10), Pulse(0.3, 10, 9, 2)]
    whole = np.zeros((4000, 256), np.float32)
    Injector(pulses, FREQUENCIES, TSAMP, seed=1).add(whole, 0)
    injector = Injector(pulses, FREQUENCIES, TSAMP, seed=1)
    blocks = [np.zeros((min(77, 4000 - first), 256), np.float32) for first in range(0, 4000, 77)]
    for i, block in enumerate(blocks):
        injector.add(block, 77 * i)
    assert whole.max() > 1
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)
    assert np.isfinite(injector.boxcar_widths_ms).all()
