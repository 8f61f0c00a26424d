"""Simulated observations: pulses are where the truth table says, and the noise has the requested statistics."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.simulation.interference import Impulse, Rfi
from pipeline_classifier.simulation.observation import (
    EFFELSBERG,
    PulseRanges,
    random_pulses,
    read_truth,
    simulate,
    write_truth,
)
from pipeline_classifier.simulation.pulses import Injector, Pulse, pulse_signal
from single_pulse_classifier_training.cli import InputError
from tests.pipeline_classifier.simulation.samples import boxcar_search, dedisperse

FREQUENCIES, TSAMP = EFFELSBERG.frequencies, EFFELSBERG.tsamp
ONE_SECOND = round(1 / TSAMP)


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
    with pytest.raises(InputError, match="must fit into"):
        random_pulses(100, ranges, EFFELSBERG, nsamples, seed=4)


def test_new_ranges_leave_the_other_draws_as_they_are():
    nsamples = 20 * ONE_SECOND
    plain = random_pulses(20, PulseRanges(), EFFELSBERG, nsamples, seed=4)
    short = random_pulses(20, PulseRanges(short_sweep=0.5), EFFELSBERG, nsamples, seed=4)
    same = [(a.snr, a.spectral_index, a.scintillation_bandwidth_mhz) for a in plain]
    assert same == [(a.snr, a.spectral_index, a.scintillation_bandwidth_mhz) for a in short]
    changed = sum(a.width_ms != b.width_ms for a, b in zip(plain, short, strict=True))
    assert 4 < changed < 16
    first = plain[0]
    assert (first.snr, first.dm_pc_cm3) == pytest.approx((8.51106389004803, 77.29851362565893)), (
        "as stored sets have them"
    )
    coherent = random_pulses(3, PulseRanges(coherent_dm_pc_cm3=60.0), EFFELSBERG, nsamples, seed=4)
    assert {pulse.coherent_dm_pc_cm3 for pulse in coherent} == {60.0}
    for wrong in (
        PulseRanges(coherent_dm_pc_cm3=-1),
        PulseRanges(coherent_dm_pc_cm3=np.nan),
        PulseRanges(short_sweep=2),
    ):
        with pytest.raises(InputError, match=r"(coherent_dm|short_sweep) must be from"):
            random_pulses(3, wrong, EFFELSBERG, nsamples, seed=4)


def test_the_truth_of_coherently_dedispersed_data_names_that_dm(tmp_path):
    pulses = [Pulse(1.5, 56.77, 20.0, 1.0, coherent_dm_pc_cm3=50.0)]
    write_truth(tmp_path / "truth.csv", pulses, [1.0], 59000.0)
    assert read_truth(tmp_path / "truth.csv") == pulses
    assert (tmp_path / "truth.csv").read_text().splitlines()[0].endswith(",bandwidth_mhz,coherent_dm_pc_cm3")


def test_truth_survives_the_round_trip(tmp_path):
    pulses = [Pulse(1.5, 56.77, 20.0, 1.0), Pulse(2.25, 10.0, 8.0, 0.5, 0.25, -2.5, 12.0, 1400.0, 80.0)]
    write_truth(tmp_path / "truth.csv", pulses, [1.0, 2.0], 59000.0)
    assert read_truth(tmp_path / "truth.csv") == pulses
    text = (tmp_path / "truth.csv").read_text()
    heading, first, second = text.splitlines()
    names = "the heading must name time_s, dm_pc_cm3, snr, width_ms, separated by commas, got "
    for wrong, message in (
        (text.replace("snr", "sn"), f"line 1: {names}'time_s,mjd,dm_pc_cm3,sn,width_ms"),
        (text.replace(",", ";"), f"line 1: {names}'time_s;mjd;"),
        ("", f"line 1: {names}''"),
        (text.replace("mjd", "snr"), "line 1: every column must be named once, got snr twice"),
        (text.replace("mjd", " snr"), "line 1: every column must be named once, got snr twice"),
        (f"{text}1.5,2\n", "line 4: must have 11 fields, as the heading, got 2"),
        (f"{heading}\n{first},7\n{second}\n", "line 2: must have 11 fields, as the heading, got 12"),
        *(
            (text.replace("56.77", value), f"line 2: dm_pc_cm3 must be a number from 0 to 1e7, got '{value}'$")
            for value in ("x", "", "nan", "inf", "-1")
        ),
        (text.replace("8,0.5,", "8,-0.5,"), "line 3: width_ms must be a number from 1e-06 to 1e7, got '-0.5'"),
        (text.replace(",1400,80", ",1400,"), "line 3: centre_mhz and bandwidth_mhz"),
        (text.replace("56.77", "9" * 200_000), "line 2: must be CSV, got an error: field larger than field limit"),
        ("\0\n" + text, f"{names}|must be CSV"),
    ):
        (tmp_path / "wrong.csv").write_text(wrong)
        with pytest.raises(InputError, match=message):
            read_truth(tmp_path / "wrong.csv")
    with pytest.raises(InputError, match="no such file"):
        read_truth(tmp_path / "absent.csv")
    spaced = text.replace(",", " , \t").replace("\n", " \n\n  \n")
    for same in ("\ufeff" + text.replace("\n", "\r\n"), spaced):
        (tmp_path / "same.csv").write_text(same, newline="")
        assert read_truth(tmp_path / "same.csv") == pulses
