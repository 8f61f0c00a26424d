"""Observations of few channels: one pulse is one event, although each channel of it is bright at wrong trial DMs too."""

from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.classifiers import Classifiers, load_classifiers
from pipeline_classifier.detection.decision import decide
from pipeline_classifier.detection.search import search
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.events import Event
from pipeline_classifier.formats.sigproc import FilterbankWriter, Header
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.simulation.pulses import Pulse

TSAMP, DURATION_S, BAND = 256e-6, 9.5, (1530.0, 1210.0)
DMS, WIDTHS_MS = (20.0, 60.0, 110.0), (0.5, 2.0, 8.0)
PULSES = [
    Pulse(0.6 + 0.8 * number, DMS[number % 3], (40.0, 16.0)[number % 2], WIDTHS_MS[number // 3]) for number in range(9)
]
# In the time between them, 0.1 s, a pulse sweeps over 127 pc cm^-3: each lies near the bow tie of the other one.
PAIRS = [
    Pulse(time_s, dm, snr, 2.0)
    for start, dm in ((7.8, 20.0), (8.7, 60.0))
    for time_s, snr in ((start, 40.0), (start + 0.1, 18.0))
]


def write_observation(path: Path, nchans: int) -> None:
    """Write noise with Gaussian pulses; those of S/N 16 are smeared inside each channel, others dedispersed there."""
    foff = (BAND[1] - BAND[0]) / nchans
    frequencies = BAND[0] + foff * (np.arange(nchans) + 0.5)
    header = Header(nchans=nchans, nbits=8, tsamp=TSAMP, fch1=float(frequencies[0]), foff=foff, tstart=59000.5)
    n = round(DURATION_S / TSAMP)
    values, times = np.random.default_rng(3).standard_normal((n, nchans)), (np.arange(n) + 0.5) * TSAMP
    for pulse in PULSES + PAIRS:
        for channel, frequency in enumerate(frequencies):
            smearing_s = dispersion_delay(pulse.dm_pc_cm3, frequency + foff / 2, frequency - foff / 2)
            width_s = np.hypot(pulse.width_ms / 1e3, smearing_s if pulse.snr == 16 else 0.0)
            centre_s = pulse.time_s + dispersion_delay(pulse.dm_pc_cm3, frequency, frequencies[0])
            near = slice(*np.searchsorted(times, centre_s + 2 * width_s * np.array([-1, 1])))
            profile = np.exp(-4 * np.log(2) * ((times[near] - centre_s) / width_s) ** 2)
            values[near, channel] += pulse.snr / np.sqrt(nchans * (profile**2).sum()) * profile
    with FilterbankWriter(path, header) as file:
        file.write(np.clip(np.rint(100 + 10 * values), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def classifiers() -> Classifiers:
    return load_classifiers(PipelineConfig(device="cpu"))


def events_of(path: Path, classifiers: Classifiers) -> list[Event]:
    config = PipelineConfig(device="cpu")
    source = FilterbankPages(path, config.front_end())
    return search(source, classifiers, decide(config, classifiers, source.layers)).events


@pytest.mark.parametrize("nchans", [4, 8, 16])
def test_one_pulse_is_one_event_and_two_are_two(nchans, classifiers, tmp_path):
    write_observation(tmp_path / "a.fil", nchans)
    events, pulses = events_of(tmp_path / "a.fil", classifiers), PULSES + PAIRS
    assert [event.time_s for event in events] == pytest.approx([pulse.time_s for pulse in pulses], abs=8e-3)
    uncertainty = 15 if nchans == 4 else 10  # four channels hardly constrain the DM of a pulse of S/N 16
    assert [event.dm_pc_cm3 for event in events] == pytest.approx([p.dm_pc_cm3 for p in pulses], abs=uncertainty)


def test_one_pulse_in_two_channels_is_at_most_one_event(classifiers, tmp_path):
    """After the zero-DM regression, which removes their mean, two channels hardly constrain a DM."""
    write_observation(tmp_path / "a.fil", 2)
    events = events_of(tmp_path / "a.fil", classifiers)
    assert events and all(sum(abs(event.time_s - pulse.time_s) < 0.4 for event in events) <= 1 for pulse in PULSES)
