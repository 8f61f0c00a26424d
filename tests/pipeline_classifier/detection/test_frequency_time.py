"""Frequency-time cutouts: the samples of a peak in every part of the band, before zero-DM regression."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection import frequency_time
from pipeline_classifier.detection.candidate_cutouts import SIDE
from pipeline_classifier.detection.frequency_time import FrequencyTime, brightest_rows
from pipeline_classifier.detection.peaks import Peak
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.formats.sigproc import Header
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.frontend.sources import Channels, ChannelSource, Layer
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.interferers import Impulse
from pipeline_classifier.simulation.observation import simulate
from pipeline_classifier.simulation.pulses import Pulse

MIDDLE = SIDE // 2


class Samples(ChannelSource):
    """A source whose channels are an array."""

    def __init__(self, data: np.ndarray, good: np.ndarray, tsamp: float = 1e-3) -> None:
        self.name, self.data, self.good, self.tsamp = "samples", data, good, tsamp
        self.frequencies, self.nsamples = np.linspace(1500.0, 1200.0, len(data)), data.shape[1]

    def channels(self, start: int, n: int) -> Channels:
        assert start >= 0 and start + n <= self.nsamples
        return Channels(self.data[:, start : start + n], self.good)

    def planes(self, threads=None):
        raise NotImplementedError

    def cutout(self, event):
        raise NotImplementedError


def layer_of(source: ChannelSource, time_downsample: int = 1) -> Layer:
    f_top, f_bottom = source.frequencies[[0, -1]]
    grid = PageGrid(0.5 * np.arange(256), 256, source.tsamp * time_downsample, 59000.0, f_top, f_bottom)
    return Layer(grid, np.empty(0, np.int64), time_downsample)


def by_brute_force(source: Samples, layer: Layer, peak: Peak, origin: int, delay_of: np.ndarray) -> np.ndarray:
    """Mean of every pixel times the root of its number of samples; NaN in rows without a good channel."""
    nchans, factor = len(source.data), layer.time_downsample
    column = max(1, round(peak.width / 4))
    first = (origin + round(peak.column + (peak.width - column) / 2)) * factor - MIDDLE * column * factor
    image = np.full((SIDE, SIDE), np.nan)
    for row in range(SIDE):
        low = row * nchans // SIDE
        chosen = [c for c in range(low, max(low + 1, (row + 1) * nchans // SIDE)) if source.good[c]]
        for number in range(SIDE if chosen else 0):
            begin = first + number * column * factor
            places = [(c, s + delay_of[c]) for c in chosen for s in range(begin, begin + column * factor)]
            values = [source.data[c, s] for c, s in places if 0 <= s < source.nsamples]
            image[row, number] = np.sum(values) / np.sqrt(max(1, len(values)))
    return image


@settings(max_examples=12, deadline=None)
@given(
    nchans=st.sampled_from([5, 64, 100, 130]),
    width=st.integers(1, 14),
    column=st.integers(-5, 340),
    row=st.integers(0, 255),
    time_downsample=st.sampled_from([1, 4]),
    seed=st.integers(0, 99),
)
def test_every_pixel_is_the_sum_of_its_samples(nchans, width, column, row, time_downsample, seed):
    rng = np.random.default_rng(seed)
    source = Samples(rng.standard_normal((nchans, 700)).astype(np.float32), rng.random(nchans) < 0.8)
    layer, peak, origin = layer_of(source, time_downsample), Peak(row, column // time_downsample, width, 8.0), 3
    delays = dispersion_delay(layer.grid.dms[row], source.frequencies, source.frequencies[0]) / source.tsamp
    delays = np.rint(delays).astype(int)
    dedispersed, undispersed = FrequencyTime(source, layer).cutouts([peak], origin)[0, :, ::-1]
    expected = by_brute_force(source, layer, peak, origin, delays)
    assert np.allclose(dedispersed, np.nan_to_num(expected, nan=-5.0), atol=1e-5)
    low = brightest_rows(expected[None])[0] * nchans / SIDE
    reference = delays[[int(low), min(nchans - 1, int(low + 1))]]
    candidates = [
        by_brute_force(source, layer, peak, origin, np.full(nchans, d))
        for d in range(min(reference), max(reference) + 1)
    ]
    assert any(np.allclose(undispersed, np.nan_to_num(image, nan=-5.0), atol=1e-5) for image in candidates)


def test_a_long_sweep_is_read_in_parts_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(5)
    source = Samples(rng.standard_normal((96, 3000)).astype(np.float32), rng.random(96) < 0.9)
    peaks = [Peak(200, 900, 9, 30.0), Peak(10, 1200, 2, 7.0)]
    whole = FrequencyTime(source, layer_of(source)).cutouts(peaks, 0)
    monkeypatch.setattr(frequency_time, "VALUES_AT_ONCE", 96 * 101)
    assert np.allclose(FrequencyTime(source, layer_of(source)).cutouts(peaks, 0), whole, atol=1e-5)
    alone = [FrequencyTime(source, layer_of(source)).cutouts([peak], 0)[0] for peak in peaks]
    assert np.allclose(alone, whole, atol=1e-5)


HEADER = Header(nchans=128, nbits=8, tsamp=256e-6, fch1=1500.0, foff=-2.0, tstart=59000.0)
PULSE = Pulse(1.5, 40.0, 18.0, 2.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> FilterbankPages:
    """A pulse, and an undispersed impulse in a third of the band."""
    path = tmp_path_factory.mktemp("channels") / "a.fil"
    spectrum = np.zeros(HEADER.nchans, np.float32)
    spectrum[40:83] = 3.0
    rfi = Rfi([Impulse(9765, np.ones(8, np.float32), spectrum)])
    simulate(path, HEADER, 16384, [PULSE], rfi, seed=1)
    return FilterbankPages(path, PipelineConfig().front_end())


def share_in_the_middle(image: np.ndarray, rows: slice) -> float:
    """Rows whose pixels are brighter in the three columns of the pulse than elsewhere."""
    beside = np.delete(image, np.arange(MIDDLE - 4, MIDDLE + 5), axis=1)
    return float((image[rows, MIDDLE - 1 : MIDDLE + 2].mean(axis=1) > beside[rows].mean(axis=1) + 0.5).mean())


def test_a_pulse_is_a_vertical_line_in_the_first_image(source):
    peak = Peak(80, round(PULSE.time_s / HEADER.tsamp) - 4, 8, PULSE.snr)
    dedispersed, undispersed = FrequencyTime(source, source.layers[0]).cutouts([peak], 0)[0]
    assert share_in_the_middle(dedispersed, slice(None)) > 0.75
    assert share_in_the_middle(undispersed, slice(None)) < 0.3
    noise = dedispersed[:, : MIDDLE - 8]
    assert noise.mean() == pytest.approx(0, abs=0.05) and noise.std() == pytest.approx(1, abs=0.05)
    assert dedispersed[:, MIDDLE - 2 : MIDDLE + 3].sum() / (16 * (5 / 4) ** 0.5) == pytest.approx(PULSE.snr, rel=0.2)


def test_an_impulse_is_a_vertical_line_in_the_second_image_alone(source):
    """Zero-DM regression would have taken it from its channels and put it, negative, into all others."""
    sweep = dispersion_delay(50.0, source.frequencies[61], source.frequencies[0]) / HEADER.tsamp
    peak = Peak(100, 9765 - round(sweep), 8, 15.0)
    dedispersed, undispersed = FrequencyTime(source, source.layers[0]).cutouts([peak], 0)[0]
    inside, outside = slice(SIDE - 41, SIDE - 20), slice(0, SIDE - 42)  # row 0 is the lowest frequency
    assert share_in_the_middle(undispersed, inside) > 0.9 and share_in_the_middle(undispersed, outside) < 0.3
    assert share_in_the_middle(dedispersed, inside) < 0.4


def test_bright_peaks_are_scaled_and_rows_without_channels_are_marked(source):
    peak = Peak(80, round(PULSE.time_s / HEADER.tsamp) - 4, 8, 18.0)
    cutouts = FrequencyTime(source, source.layers[0]).cutouts([peak, replace(peak, snr=200.0)], 0)
    assert np.allclose(cutouts[1], cutouts[0] / 10, atol=1e-6)
    zapped = PipelineConfig(zaplist=[[1300.0, 1350.0]]).front_end()
    without = FilterbankPages(source.files[0], zapped)
    images = FrequencyTime(without, without.layers[0]).cutouts([peak], 0)[0]
    assert (images[:, 15:25] == -5).all() and (images[:, 30:] > -5).all()
