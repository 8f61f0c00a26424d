"""The boxcar search: trial widths, the search of a plane, and the S/N of pages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.frontend.boxcar import QUIETEST, boxcar_search, boxcar_widths, page_snrs
from pipeline_classifier.frontend.pages import PageBatch


def test_trial_widths_are_dense():
    for longest in (1, 2, 7, 128):
        widths = boxcar_widths(longest)
        assert widths[0] == 1 and widths[-1] <= longest and (np.diff(widths) > 0).all()
        assert (widths[1:] <= np.maximum(1.6 * widths[:-1], widths[:-1] + 1)).all()
        assert widths[-1] * 1.6 >= longest


@pytest.mark.parametrize("n, longest", [(1, 1), (37, 8), (64, 200)])
def test_the_search_of_a_plane_equals_every_boxcar_tried(n, longest):
    plane = np.random.default_rng(n).standard_normal((5, n)).astype(np.float32)
    searched = boxcar_search(plane, longest)
    total = np.diff(searched.total.astype(float), axis=1)
    best = np.full(plane.shape, -np.inf)
    for width in boxcar_widths(min(longest, n)).tolist():
        for first in range(n + 1 - width):
            centre = first + (width - 1) // 2
            best[:, centre] = np.maximum(best[:, centre], total[:, first : first + width].sum(axis=1) / width**0.5)
    np.testing.assert_allclose(searched.snr, best, atol=1e-4)
    for row, centre in np.ndindex(plane.shape):
        width = int(searched.width[row, centre])
        first = centre - (width - 1) // 2
        snr = total[row, first : first + width].sum() / width**0.5
        assert searched.snr[row, centre] == pytest.approx(snr, abs=1e-4)


@given(n_time=st.sampled_from([16, 24, 64]), count=st.integers(1, 5), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_the_snr_of_pages_is_that_of_every_boxcar_in_them(n_time, count, seed):
    plane = np.random.default_rng(seed).standard_normal((7, count * n_time)).astype(np.float32)
    batch = PageBatch(plane, n_time * np.arange(count), n_time * np.arange(count), n_time, 0)
    within, beginning, constant = page_snrs(batch, noise=1.0)
    for page in range(count):
        values = plane[:, page * n_time : (page + 1) * n_time].astype(float)
        middle = (values.size - 1) // 2
        median = np.sort(values, axis=None)[middle]
        sigma = 1.4826 * np.sort(np.abs(values - median), axis=None)[middle]
        sigma = max(sigma, QUIETEST) if sigma < 0.9 else 1.0
        best = {True: -np.inf, False: -np.inf}
        for width in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
            if width > n_time // 2:
                break
            for first in range(page * n_time, min((page + 1) * n_time, plane.shape[1] + 1 - width)):
                sums = plane[:, first : first + width].astype(float).sum(axis=1)
                snr = ((sums - width * min(median, 0.0)) / (sigma * width**0.5)).max()
                inside = first + width <= (page + 1) * n_time
                best[inside] = max(best[inside], snr)
        assert within[page] == pytest.approx(best[True], rel=0.02)
        assert beginning[page] == pytest.approx(max(best.values()), rel=0.02) and not constant[page]


@pytest.mark.parametrize("width", [1, 4, 32])
@pytest.mark.parametrize("snr", [8.0, 30.0])
def test_the_snr_of_a_page_of_any_scale_is_that_of_its_pulse(width, snr):
    pages = np.random.default_rng(0).standard_normal((3, 256, 256)).astype(np.float32)
    pages[1, 100:104, 90 : 90 + width] += snr / np.sqrt(width)
    batch = PageBatch.of_pages(3.0 + 0.5 * pages, 1000 * np.arange(3), 0)
    faint, pulse, other = page_snrs(batch).within
    assert pulse == pytest.approx(snr, abs=3) and pulse > max(faint, other) and max(faint, other) < 6


def test_integer_sums_and_their_values_give_the_same_bits():
    plane = np.random.default_rng(0).integers(-300, 300, (32, 5 * 64), dtype=np.int16)
    columns = 64 * np.arange(5)
    whole = page_snrs(PageBatch(plane, columns, columns, 64, 0, scale=0.013), noise=1.0)
    for number in range(5):
        values = plane[:, 64 * number : 64 * number + 64] * np.float32(0.013)
        alone = page_snrs(PageBatch.of_pages(values[None].astype(np.float32), columns[:1], 0), noise=1.0)
        assert alone.within[0] == whole.within[number]


def test_pages_that_are_constant_or_not_finite():
    pages = np.random.default_rng(0).standard_normal((4, 32, 64)).astype(np.float32)
    pages[0], pages[1, 3, 4], pages[2, 0, 0] = 2.5, np.nan, np.inf
    within, beginning, constant = page_snrs(PageBatch.of_pages(pages, 64 * np.arange(4), 0), noise=1.0)
    assert constant.tolist() == [True, False, False, False]
    assert np.isnan(within[[1, 2]]).all() and np.isfinite(within[3])
