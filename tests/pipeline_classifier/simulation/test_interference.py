"""Simulated interference stays within the bounds of its level; level "none" adds nothing."""

import numpy as np
import pytest

from pipeline_classifier.simulation.interference import random_rfi
from pipeline_classifier.simulation.observation import EFFELSBERG

ONE_SECOND = round(1 / EFFELSBERG.tsamp)


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
