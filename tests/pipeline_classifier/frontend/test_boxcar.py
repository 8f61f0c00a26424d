"""The boxcar search: trial widths, and the S/N of a page."""

import numpy as np
import pytest

from pipeline_classifier.frontend.boxcar import boxcar_widths, page_snr


def test_trial_widths_are_dense():
    for longest in (1, 2, 7, 128):
        widths = boxcar_widths(longest)
        assert widths[0] == 1 and widths[-1] <= longest and (np.diff(widths) > 0).all()
        assert (widths[1:] <= np.maximum(1.6 * widths[:-1], widths[:-1] + 1)).all()
        assert widths[-1] * 1.6 >= longest


@pytest.mark.parametrize("width", [1, 4, 32])
@pytest.mark.parametrize("snr", [8.0, 30.0])
def test_the_page_snr_of_a_page_is_that_of_its_pulse(width, snr):
    pages = np.random.default_rng(0).standard_normal((3, 256, 256)).astype(np.float32)
    pages[1, 100:104, 90 : 90 + width] += snr / np.sqrt(width)
    faint, pulse, other = page_snr(3.0 + 0.5 * pages)
    assert pulse == pytest.approx(snr, abs=3) and pulse > max(faint, other) and max(faint, other) < 6
