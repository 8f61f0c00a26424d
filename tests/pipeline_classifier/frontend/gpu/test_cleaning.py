"""The torch cleaning gives the masks and the samples of the compiled loops."""

from dataclasses import astuple

import numpy as np
import pytest
import torch

from pipeline_classifier.frontend import baseline, cleaning
from pipeline_classifier.frontend.gpu import cleaning as gpu
from pipeline_classifier.frontend.gpu.cleaning import clean
from pipeline_classifier.frontend.settings import Cleaning
from tests.pipeline_classifier.frontend.gpu.devices import DEVICES

NCHANS, TSAMP = 96, 2e-4
FREQUENCIES = np.linspace(1500, 1200, NCHANS)


def observation(n: int, kind: str) -> np.ndarray:
    """Counts (n, NCHANS) float32 with interference of several kinds and pulses."""
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((n, NCHANS), dtype=np.float32)
    signal += 0.2 * np.sin(np.arange(n, dtype=np.float32) / 300)[:, None] + 1e-4 * np.arange(n)[:, None]
    signal[:, 20] += 2 * np.sin(np.arange(n) / 50)
    signal[:, 40] *= 4
    signal[n // 4 : n // 4 + 10] += 3.0
    signal[n // 2 : n // 2 + 300] += 4 * np.exp(-np.arange(min(300, n - n // 2)) / 60)[:, None]
    for channel, delay in enumerate(np.rint(40 * ((FREQUENCIES / 1200.0) ** -2 - 0.64)).astype(int)):
        signal[3 * n // 4 + delay : 3 * n // 4 + delay + 3, channel] += 8
    response = np.linspace(0.5, 1.5, NCHANS, dtype=np.float32)
    block = 100 * response + 10 * response * signal
    if kind == "not finite":
        block[100:130, :50], block[n // 3 :, 7] = np.nan, np.inf
    elif kind == "drop-out":
        block[n // 3 : n // 3 + 200] = 0
    elif kind == "dead":
        block[:, 30:33] = 50
    elif kind == "narrow":
        block[n // 3 : n // 3 + 3000, 60:68] += 10
    elif kind == "small":
        block *= np.float32(1e-30)
    return block.astype(np.float32)


def compare(block: np.ndarray, device: str, frequencies: np.ndarray = FREQUENCIES, **settings) -> cleaning.Cleaned:
    chosen = Cleaning(**settings)
    expected = cleaning.clean(block, frequencies, TSAMP, chosen, np.empty(block.shape[::-1], np.int8))
    result = clean(torch.from_numpy(block).to(device), frequencies, TSAMP, chosen)
    assert result.data.device.type == device and result.data.dtype == torch.int8 and result.data.is_contiguous()
    for ours, theirs in zip(result[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    difference = np.abs(result.data.cpu().numpy().astype(int) - expected.data)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-4
    return expected


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("zero_dm", ["zdot", "zero", None])
@pytest.mark.parametrize("dtype, factor", [(np.uint8, 1), (np.uint16, 20), (np.float32, 1)])
def test_every_type_of_samples_and_treatment_of_undispersed_signals(device, zero_dm, dtype, factor):
    block = np.rint(observation(20_011, "") * factor).clip(0, 255 * factor).astype(dtype)
    result = compare(block, device, zero_dm=zero_dm)
    blanked = (result.data == 0).all(axis=0)
    assert not result.good[[20, 40]].any() and result.good.mean() > 0.9
    assert blanked.any() == (zero_dm is not None)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["not finite", "drop-out", "dead", "narrow", "small"])
def test_unusable_samples_and_narrow_band_signals(device, kind):
    result = compare(observation(20_011, kind), device, kadane_channels=8, zaplist=((1300.0, 1320.0),))
    assert result.not_finite.any() == (kind == "not finite") and result.constant.any() == (kind == "drop-out")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [1, 100, 256, 300, 2047, 2049, 5000])
@pytest.mark.parametrize("window", [0.2, 0.02, 0.0])
def test_short_blocks_and_other_windows(device, n, window):
    compare(observation(n + 400, "")[:n].astype(np.uint8), device, baseline_window_s=window)


@pytest.mark.parametrize("device", DEVICES)
def test_few_channels_and_none(device):
    compare(observation(5000, "")[:, :3].copy(), device, FREQUENCIES[:3])
    assert not compare(np.full((1000, NCHANS), 7, np.uint8), device).good.any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [300, 20_011])
def test_the_statistics_of_the_channels(device, n):
    block, good = observation(n, "dead"), np.ones(NCHANS, bool)
    good[[7, 30, 31, 32]] = False
    expected = baseline.bin_sums(block)
    result = gpu.bin_statistics(torch.from_numpy(block).to(device))
    np.testing.assert_array_equal(result.level.cpu() == 0, expected.level == 0)
    for ours, theirs in zip(result, astuple(expected), strict=True):
        np.testing.assert_allclose(ours.cpu(), theirs, rtol=1e-4, atol=1e-3)
    step, nodes = baseline.running_baseline(expected, good, 1000.0)
    same, torch_nodes = gpu.running_baseline(result, good, 1000.0)
    assert same == step
    np.testing.assert_allclose(torch_nodes.cpu(), nodes, atol=1e-3)
    figures = cleaning.figures_of_merit(expected, baseline.residual(expected, step, nodes), good)
    torch_figures = gpu.figures_of_merit(result, gpu.residual(result, step, torch_nodes), good)
    for ours, theirs in zip(astuple(torch_figures), astuple(figures), strict=True):
        np.testing.assert_allclose(ours[good], theirs[good], rtol=1e-3, atol=1e-3)
