"""Injected pulses have the requested S/N, and all other samples remain unchanged."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline_classifier.formats.sigproc import Filterbank, FilterbankWriter, Header
from pipeline_classifier.simulation.injection import inject
from pipeline_classifier.simulation.observation import EFFELSBERG
from pipeline_classifier.simulation.pulses import Pulse, profile_snr, pulse_extent
from tests.pipeline_classifier.simulation.samples import dedisperse, noise

GEOMETRY = replace(EFFELSBERG, nchans=64, foff=-5.0, tsamp=0.5e-3)
LONG = 30_000


HEADERS = {
    "8 bit": GEOMETRY,
    "8 bit, ascending": replace(GEOMETRY, fch1=1215.0, foff=5.0),
    "8 bit, 2 IFs, signed": replace(GEOMETRY, nifs=2, signed=True),
    "4 bit": replace(GEOMETRY, nbits=4),
    "4 bit, ascending": replace(GEOMETRY, nbits=4, fch1=1215.0, foff=5.0),
    "4 bit, 2 IFs": replace(GEOMETRY, nbits=4, nifs=2),
    "2 bit": replace(GEOMETRY, nbits=2),
    "1 bit": replace(GEOMETRY, nbits=1),
    "16 bit": replace(GEOMETRY, nbits=16),
    "32 bit": replace(GEOMETRY, nbits=32),
}


def snr_of(data: np.ndarray, sigma: np.ndarray, pulse: Pulse, header: Header) -> float:
    """Best boxcar S/N around the pulse, with every channel in units of its noise ``sigma``; 0 marks a dead channel."""
    living = sigma > 0
    channels = data[:, living] / sigma[living]
    profile = dedisperse(channels, pulse.dm_pc_cm3, header.frequencies[living], header.tsamp)
    begin = round(pulse.time_s / header.tsamp)
    return profile_snr(profile[begin - 100 : begin + 100])[0] / np.sqrt(len(sigma))


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_an_injected_pulse_has_its_snr_and_other_samples_are_unchanged(tmp_path, header):
    noise(tmp_path / "a.fil", header, LONG, dead=7)
    faint, tolerance = (0.4, 0.12) if header.nbits < 4 else (1, 0.07)  # few bits saturate, and rounding is noise
    pulses = [Pulse(3.0, 50.0, 30.0 * faint, 4.0), Pulse(7.0, 100.0, 25.0 * faint, 8.0, spectral_index=-2.0)]
    inject(tmp_path / "a.fil", tmp_path / "b.fil", pulses, seed=0)
    before, after = Filterbank(tmp_path / "a.fil"), Filterbank(tmp_path / "b.fil")
    assert before.header == after.header and after.nsamples == LONG
    old, new = before.read(0, LONG).astype(float), after.read(0, LONG).astype(float)
    sigma = old.std(axis=0)
    living = sigma > 0
    assert living.sum() == 63 and np.array_equal(old[:, ~living], new[:, ~living])

    touched = np.zeros(LONG, bool)
    for pulse in pulses:
        touched[slice(*pulse_extent(pulse, header.frequencies, header.tsamp))] = True
        true_snr = pulse.snr * 63 / 64  # one channel is dead
        assert snr_of(new - old, sigma, pulse, header) == pytest.approx(true_snr, rel=tolerance)
        assert snr_of(new - old.mean(axis=0), sigma, pulse, header) == pytest.approx(true_snr, abs=3)
    assert touched.sum() < 2000 and np.array_equal(old[~touched], new[~touched])


def test_a_chosen_if_gets_the_whole_signal(tmp_path):
    header = replace(GEOMETRY, nifs=4, nbits=16)
    noise(tmp_path / "a.fil", header, LONG)
    pulse = Pulse(3.0, 50.0, 30.0, 4.0)
    inject(tmp_path / "a.fil", tmp_path / "b.fil", [pulse], seed=0, ifs=2)
    for number in range(4):
        old, new = (Filterbank(tmp_path / name, number).read(0, LONG).astype(float) for name in ("a.fil", "b.fil"))
        if number == 2:
            assert snr_of(new - old, old.std(axis=0), pulse, header) == pytest.approx(30, rel=0.05)
        else:
            assert np.array_equal(old, new)


def test_the_signal_follows_the_local_noise_across_blocks(tmp_path, monkeypatch):
    """The noise doubles along the file; the pulses lie across block edges, the last one in a short block."""
    header = replace(GEOMETRY, nbits=32)
    rng = np.random.default_rng(0)
    sigma = np.linspace(2, 4, LONG)[:, None]
    with FilterbankWriter(tmp_path / "a.fil", header) as file:
        file.write((rng.standard_normal((LONG, 64)) * sigma).astype(np.float32))
    monkeypatch.setattr("pipeline_classifier.simulation.injection.BLOCK_VALUES", 64 * 2048)
    pulses = [Pulse(2048 * 0.5e-3 * n, 50.0, 30.0, 4.0) for n in (1, 5, 9, 14)]
    inject(tmp_path / "a.fil", tmp_path / "b.fil", pulses, seed=0)
    added = Filterbank(tmp_path / "b.fil").read(0, LONG) - Filterbank(tmp_path / "a.fil").read(0, LONG)
    for pulse in pulses:
        local = np.interp(pulse.time_s / header.tsamp, np.arange(LONG), sigma[:, 0])
        assert snr_of(added.astype(float), np.full(64, local), pulse, header) == pytest.approx(30, rel=0.06)


def test_a_file_without_noise_remains_unchanged(tmp_path):
    header = replace(GEOMETRY, nbits=32)
    data = np.zeros((4096, 64), np.float32)
    data[:, 1] = np.nan
    data[:, 2] = np.inf
    with FilterbankWriter(tmp_path / "a.fil", header) as file:
        file.write(data)
    inject(tmp_path / "a.fil", tmp_path / "b.fil", [Pulse(1.0, 50.0, 30.0, 4.0)], seed=0)
    assert (tmp_path / "b.fil").read_bytes() == (tmp_path / "a.fil").read_bytes()
