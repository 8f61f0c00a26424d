"""Simulated observations: an injected pulse comes back at its time, width and S/N; the noise is what was asked for."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier import simulate_observation as script
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.simulation.interference import Impulse, Rfi, random_rfi
from pipeline_classifier.simulation.observation import (
    EFFELSBERG,
    PulseRanges,
    random_pulses,
    read_truth,
    simulate,
    write_truth,
)
from pipeline_classifier.simulation.pulses import Injector, Pulse, add_signal, best_boxcar, pulse_signal, scintillation
from single_pulse_classifier_training.cli import InputError
from tests.command_line import run_here

FREQUENCIES, TSAMP = EFFELSBERG.frequencies, EFFELSBERG.tsamp
ONE_SECOND = round(1 / TSAMP)


def run_script(*options: object, folder: Path) -> subprocess.CompletedProcess:
    return run_here(script, *options, folder=folder)


def dedisperse(data: np.ndarray, dm: float, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """Brute force: roll every channel back by its delay, rounded to a sample, and sum."""
    delays = np.rint(4148.808 * dm * (frequencies**-2 - frequencies[0] ** -2) / tsamp).astype(int)
    return np.sum([np.roll(channel, -delay) for channel, delay in zip(data.T, delays)], axis=0)


def boxcar_search(profile: np.ndarray, widest: int) -> tuple[float, int, int]:
    """S/N for a profile of unit noise, first sample and width of the best boxcar."""
    total = np.concatenate([[0], np.cumsum(profile)])
    snr, width = max((np.max(total[w:] - total[:-w]) / np.sqrt(w), w) for w in range(1, widest))
    return snr, int(np.argmax(total[width:] - total[:-width])), width


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
        # The best boxcar of a Gaussian of this full width at half maximum is 1.19 of it wide.
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
    assert best_boxcar(signal.sum(axis=0))[0] / np.sqrt(nchans) == pytest.approx(10, rel=1e-3)


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


@pytest.mark.parametrize("foff", [-1.25, 1.25])
def test_a_pulse_in_noise_is_found_where_the_truth_says(tmp_path, foff):
    header = replace(EFFELSBERG, foff=foff, fch1=1530.0 if foff < 0 else 1211.25)
    pulses = [Pulse(0.5, 56.77, 40.0, 0.05), Pulse(1.20003, 20.0, 40.0, 2.0), Pulse(2.0, 110.0, 40.0, 1.0, 1.0)]
    truth = simulate(tmp_path / "a.fil", header, 3 * ONE_SECOND, pulses, Rfi(), seed=5)
    filterbank = Filterbank(tmp_path / "a.fil")
    data = filterbank.read(0, filterbank.nsamples).astype(np.float32)
    data = (data - data.mean(axis=0)) / data.std(axis=0) / np.sqrt(256)
    assert read_truth(truth) == pulses
    for pulse in pulses:
        profile = dedisperse(data, pulse.dm_pc_cm3, filterbank.frequencies, TSAMP)
        snr, start, width = boxcar_search(profile, 100)
        assert snr == pytest.approx(pulse.snr, abs=4)
        assert start - 1 <= pulse.time_s / TSAMP <= start + width + 1


def test_noise_alone_has_its_mean_sigma_and_whiteness(tmp_path):
    simulate(tmp_path / "a.fil", EFFELSBERG, ONE_SECOND, [], Rfi(), seed=2)
    data = Filterbank(tmp_path / "a.fil").read(0, ONE_SECOND).astype(np.float64)
    mean, sigma = data.mean(axis=0), data.std(axis=0)
    assert np.median(mean) == pytest.approx(100, rel=0.1) and np.median(sigma) == pytest.approx(10, rel=0.1)
    assert mean[0] < 70 and mean[-1] < 70, "the band edges roll off"
    np.testing.assert_allclose(sigma / mean, 0.1, rtol=0.06)
    z = (data - mean) / sigma
    assert z.sum(axis=1).std() / 16 == pytest.approx(1, abs=0.04)
    assert abs((z[1:] * z[:-1]).mean()) < 0.003 and abs((z**3).mean()) < 0.01


def test_pulses_change_the_file_by_their_signal_only(tmp_path):
    pulses = [Pulse(0.2, 56.77, 60.0, 1.0, 1.0, -2.0, 10.0)]
    simulate(tmp_path / "with.fil", EFFELSBERG, ONE_SECOND, pulses, Rfi(), seed=3)
    simulate(tmp_path / "without.fil", EFFELSBERG, ONE_SECOND, [], Rfi(), seed=3)
    without = Filterbank(tmp_path / "without.fil").read(0, ONE_SECOND).astype(np.float64)
    change = Filterbank(tmp_path / "with.fil").read(0, ONE_SECOND) - without
    signal = np.zeros((ONE_SECOND, 256), np.float32)
    Injector(pulses, FREQUENCIES, TSAMP, seed=3).add(signal, 0)
    sigma = without.mean(axis=0) / 10
    assert np.abs(change - signal * sigma).max() < 1.1, "rounding moves a count by up to one"
    assert change.sum() == pytest.approx((signal * sigma).sum(), rel=0.02)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    small = ("--nchans", 32, "--foff", -10, "--duration-s", 3, "--pulses", 4, "--rfi", "strong", "--dm-max", 60)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = run_script(f"{name}.fil", *small, "--seed", seed, folder=tmp_path)
        assert done.returncode == 0 and done.stdout == "", done.stderr
    contents = {name: (tmp_path / f"{name}.fil").read_bytes() for name in "abc"}
    truths = {name: (tmp_path / f"{name}_truth.csv").read_text() for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"] and truths["a"] == truths["b"] != truths["c"]
    assert len(list(tmp_path.iterdir())) == 6, "no temporary file is left"
    columns = np.genfromtxt(tmp_path / "a_truth.csv", delimiter=",", names=True)
    np.testing.assert_allclose(columns["mjd"], EFFELSBERG.tstart + columns["time_s"] / 86400, atol=1e-10)
    assert (np.diff(columns["time_s"]) >= 0.25 - 1e-6).all()


@pytest.mark.parametrize("level", ["mild", "strong"])
def test_random_interference_is_there_and_within_its_bounds(level):
    for seed in range(20):
        rfi = random_rfi(level, EFFELSBERG, 20 * ONE_SECOND, seed)
        assert len(rfi.dead_channels) <= (0.04 if level == "mild" else 0.1) * 256
        gain = rfi.gain(0, 20 * ONE_SECOND)
        assert gain.min() >= 0 and gain.max() < 1.1 and gain.std() > 0
        for i in rfi.interferers:
            first = max(0, (i.start + i.stop) // 2 - 5)
            block = np.zeros((10, 256), np.float32)
            i.add(block, first)
            assert np.isfinite(block).all()
        if level == "strong":
            assert len(rfi.interferers) > 20


def test_interference_none_is_none():
    rfi = random_rfi("none", EFFELSBERG, 1000, 1)
    block = np.zeros((100, 256), np.float32)
    rfi.add(block, 0)
    assert (block == 0).all() and (rfi.gain(0, 1000) == 1).all()
    assert len(rfi.dead_channels) == len(rfi.noisy_channels) == 0


def test_gain_dead_channels_dropouts_and_saturation_reach_the_file(tmp_path):
    rfi = Rfi(
        [Impulse(2000, np.ones(50, np.float32), np.full(256, 1e3, np.float32))],
        steps=np.array([[5000, 0.5]]),
        dropouts=np.array([[1000, 1040]]),
        dead_channels=np.array([7]),
        dead_counts=np.array([60], np.uint8),
        noisy_channels=np.array([9]),
        noisy_factors=np.array([2.0]),
    )
    simulate(tmp_path / "a.fil", EFFELSBERG, 8000, [], rfi, seed=1)
    data = Filterbank(tmp_path / "a.fil").read(0, 8000)
    assert (data[:, 7] == 60).all()
    others = np.delete(data, 7, axis=1)
    assert (others[1000:1040] == 0).all() and others[999].min() > 0 and others[1040].min() > 0
    assert (others[2000:2050] == 255).all() and others[1999].max() < 255 and others[2050].max() < 255
    assert data[5000:].mean() / data[3000:5000].mean() == pytest.approx(0.5, rel=0.01)
    assert data[3000:5000, 9].std() / data[3000:5000, 11].std() == pytest.approx(2, rel=0.15)


def test_random_pulses_lie_inside_the_observation():
    ranges = PulseRanges(snr=(6, 30), width_ms=(0.1, 8), band_limited=0.5)
    nsamples = 20 * ONE_SECOND
    pulses = random_pulses(30, ranges, EFFELSBERG, nsamples, seed=4)
    times = np.array([pulse.time_s for pulse in pulses])
    assert len(pulses) == 30 and (np.diff(times) >= 0.25).all()
    assert 5 < sum(pulse.bandwidth_mhz is not None for pulse in pulses) < 25
    for pulse in pulses:
        starts, signal, _ = pulse_signal(pulse, FREQUENCIES, TSAMP, np.random.default_rng(0))
        assert starts[0] >= 0 and starts[-1] + signal.shape[1] <= nsamples
    with pytest.raises(InputError, match="do not fit into"):
        random_pulses(100, ranges, EFFELSBERG, nsamples, seed=4)


def test_truth_survives_the_round_trip(tmp_path):
    pulses = [Pulse(1.5, 56.77, 20.0, 1.0), Pulse(2.25, 10.0, 8.0, 0.5, 0.25, -2.5, 12.0, 1400.0, 80.0)]
    write_truth(tmp_path / "truth.csv", pulses, [1.0, 2.0], 59000.0)
    assert read_truth(tmp_path / "truth.csv") == pulses
    text = (tmp_path / "truth.csv").read_text()
    for wrong, message in (
        (text.replace("snr", "sn"), "column snr"),
        (text.replace("56.77", "x"), "dm_pc_cm3 is 'x'"),
        (text.replace("56.77", "nan"), "dm_pc_cm3 is 'nan'"),
        ("", "column time_s"),
        (text.replace(",1400,80", ",1400,"), "line 3: centre_mhz and bandwidth_mhz"),
    ):
        (tmp_path / "wrong.csv").write_text(wrong)
        with pytest.raises(InputError, match=message):
            read_truth(tmp_path / "wrong.csv")
    with pytest.raises(InputError, match="no such file"):
        read_truth(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    "options, named",
    [
        (("--nchans", 0), "nchans"),
        (("--tsamp-us", 0), "tsamp"),
        (("--foff", 0), "foff"),
        (("--fch1", "nan"), "fch1"),
        (("--duration-s", -1), "--duration-s"),
        (("--duration-s", 0.2), "do not fit"),
        (("--pulses", -1), "pulses"),
        (("--snr-min", 60), "snr"),
        (("--dm-min", "nan"), "dm_pc_cm3"),
        (("--width-ms-min", 0), "width_ms"),
        (("--rfi", "heavy"), "none, mild, strong"),
        (("--seed", -1), "--seed"),
        (("--band-limited", 2), "band_limited"),
    ],
)
def test_a_wrong_option_ends_in_one_sentence(tmp_path, options, named):
    done = run_script("a.fil", *options, folder=tmp_path)
    assert done.returncode == 2 and named in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    done = run_script("absent/a.fil", folder=tmp_path)
    assert done.returncode == 2 and "absent is not a folder" in done.stderr and "Traceback" not in done.stderr
