"""A bright dispersed pulse is not taken for an impulse, and an impulse not for a pulse."""

import numpy as np
import pytest

from pipeline_classifier.frontend.impulses import (
    SUB_BANDS,
    has_sweep,
    is_dispersed,
    runs_of,
    significant_runs,
    sub_band_of_channel,
)


def sub_bands(sweep: float, width: int, n: int = 400, period: int | None = None) -> np.ndarray:
    """Rectangular pulses of three sigma in 16 channels of each sub-band, with noise."""
    values = np.random.default_rng(0).standard_normal((SUB_BANDS, n)).astype(np.float32) * 4
    for first in range(0, n, period or n):
        for number in range(SUB_BANDS):
            begin = first + round(sweep * (number + 0.5) / SUB_BANDS)
            values[number, begin : begin + width] += 48
    return values


@pytest.mark.parametrize("width", [1, 4, 20, 100])
def test_a_sweep_longer_than_the_pulse_is_dispersed(width):
    assert is_dispersed(sub_bands(1.2 * width + 3, width, n=round(2.2 * width + 6)))
    assert is_dispersed(sub_bands(2.5 * width + 3, width, n=round(3.5 * width + 6)))


@pytest.mark.parametrize("width", [1, 2, 5, 20, 100, 400])
def test_an_undispersed_impulse_is_not_dispersed(width):
    assert not is_dispersed(sub_bands(0, width, n=max(3, width)))
    assert not is_dispersed(sub_bands(0, width, n=width + 20))
    assert not is_dispersed(np.flip(sub_bands(1.5 * width + 6, width, n=3 * width + 9), axis=0)), "sweeps upwards"


def test_a_series_of_pulses_in_one_run_is_dispersed():
    assert is_dispersed(sub_bands(80, 12, n=2000, period=40))
    assert not is_dispersed(sub_bands(0, 12, n=2000, period=40))


def test_sub_bands_have_equal_sweeps():
    frequencies = np.linspace(800, 400, 1024)
    number = sub_band_of_channel(frequencies)
    assert number[0] == 0 and number[-1] == SUB_BANDS - 1 and (np.diff(number) >= 0).all()
    edges = frequencies[np.flatnonzero(np.diff(number))] ** -2.0
    np.testing.assert_allclose(np.diff(edges), (frequencies[-1] ** -2 - frequencies[0] ** -2) / SUB_BANDS, rtol=0.05)


def test_runs_of_samples():
    assert runs_of(np.array([True, False, True, True])).tolist() == [[0, 1], [2, 4]]
    assert runs_of(np.zeros(3, bool)).tolist() == []


def run(sweep: float, width: int, snr: float, seed: int, n: int = 600) -> np.ndarray:
    """Sub-bands whose sum has unit noise, with a rectangular pulse of an S/N at its own sweep."""
    values = np.random.default_rng(seed).standard_normal((SUB_BANDS, n)).astype(np.float32) / SUB_BANDS**0.5
    for number in range(SUB_BANDS):
        begin = n // 3 + round(sweep * (number + 0.5) / SUB_BANDS)
        values[number, begin : begin + width] += snr / width**0.5 / SUB_BANDS
    return values


@pytest.mark.parametrize("width", [6, 20, 60])
def test_a_pulse_with_a_sweep_is_told_from_an_impulse_with_none(width):
    seeds = range(12)
    for snr, sweeps in ((12, (1.0, 2.0, 5.0)), (40, (0.7, 1.0, 2.0, 5.0))):
        for sweep in sweeps:
            assert sum(has_sweep(run(sweep * width, width, snr, seed)) for seed in seeds) >= 11, (snr, sweep)
    for snr in (0, 8, 40, 400):
        assert sum(has_sweep(run(0, width, snr, seed)) for seed in seeds) == 0, snr
        assert sum(has_sweep(run(-1.5 * width, width, snr, seed)) for seed in seeds) == 0, snr


def test_noise_has_few_runs_and_a_pulse_lies_in_one():
    series = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    assert len(significant_runs(series)) <= 5
    series[70_000:70_050] += 8 / 50**0.5
    assert any(first <= 70_000 and last >= 70_050 for first, last in significant_runs(series))
    assert significant_runs(np.zeros(3, np.float32)) == []
