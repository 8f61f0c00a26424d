"""Images made in torch are those of numpy, to the bit on the CPU."""

import numpy as np
import pytest
import torch

from pipeline_classifier.frontend import pages
from pipeline_classifier.frontend.gpu import images
from tests.pipeline_classifier.frontend.gpu.devices import DEVICES

NOT_FINITE, CONSTANT, TOO_LARGE, MOSTLY_ZERO = 1, 2, 3, 4


def some_pages(shape: tuple[int, int]) -> np.ndarray:
    """Noise with a pulse, and pages of which a value is not finite, all are equal, their sum overflows, most are 0."""
    values = np.random.default_rng(0).standard_normal((6, *shape)).astype(np.float32)
    values[0, 3:9, 5] += 30
    values[NOT_FINITE, 3, 3] = np.nan
    values[CONSTANT] = 2.5
    values[TOO_LARGE, 0, :4] = 3e38, 3e38, 3e38, -3e38
    values[MOSTLY_ZERO, 2:] = 0
    return values


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(32, 64), (64, 33), (256, 256)])
@pytest.mark.parametrize("normaliser", pages.NORMALISERS)
def test_images_are_those_of_numpy(normaliser, shape, device):
    values = some_pages(shape)
    for resolution in (shape[1], 48, 100):
        expected, unusable = pages.to_images(values, normaliser, resolution)
        result, same = images.to_images(torch.from_numpy(values).to(device), normaliser, resolution)
        assert result.device.type == device and result.dtype == torch.uint8
        np.testing.assert_array_equal(same, unusable)
        difference = np.abs(result.cpu().numpy().astype(int) - expected)
        assert difference.max() == 0 if device == "cpu" else difference.max() <= 1
    assert unusable[NOT_FINITE] and unusable[TOO_LARGE]
    assert unusable[CONSTANT] == (normaliser != "noise")


@pytest.mark.parametrize("device", DEVICES)
def test_an_unknown_normaliser_is_an_error(device):
    with pytest.raises(ValueError, match="normaliser must be one of minmax, robust, noise, got 'log'"):
        images.to_images(torch.zeros((1, 4, 4), device=device), "log", 4)
