"""Pages cover the stream, whatever the blocks; images are what the normaliser says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.frontend.pages import PageBatch, PageGrid, page_starts, resize, to_images

quick = settings(max_examples=200, deadline=None)


@given(n_samples=st.integers(1, 5000), n_time=st.integers(16, 512), overlap=st.floats(0, 0.9))
@quick
def test_every_sample_is_in_a_page(n_samples, n_time, overlap):
    starts = page_starts(n_samples, n_time, overlap)
    covered = np.zeros(max(n_samples, n_time), dtype=bool)
    for start in starts:
        covered[start : start + n_time] = True
    assert covered.all() and starts[0] == 0 and starts[-1] + n_time == max(n_samples, n_time)
    assert (np.diff(starts) > 0).all()
    assert (np.diff(starts)[:-1] == max(1, round(n_time * (1 - overlap)))).all()


@given(data=st.data(), n=st.integers(20, 200), n_time=st.integers(1, 20), step=st.integers(1, 9))
@quick
def test_pages_are_scaled_slices_of_the_plane(data, n, n_time, step):
    plane = np.random.default_rng(0).integers(-3000, 3000, (3, n)).astype(np.int16)
    irregular = np.array(data.draw(st.lists(st.integers(0, n - n_time), min_size=1, max_size=30).map(sorted)))
    for columns in (irregular, np.arange(0, n - n_time + 1, step)):
        batch = PageBatch(plane, columns, columns, n_time, 0, scale=0.25)
        pages = batch.pages
        np.testing.assert_array_equal(batch.cut(np.array([len(columns) - 1])), pages[-1:])
        assert pages.dtype == np.float32 and pages.shape == (len(columns), 3, n_time)
        for page, column in zip(pages, columns):
            np.testing.assert_array_equal(page, 0.25 * plane[:, column : column + n_time])


@given(count=st.integers(1, 9), first=st.integers(0, 100), a=st.integers(0, 8), b=st.integers(0, 12))
def test_a_part_of_a_batch_knows_its_place(count, first, a, b):
    batch = PageBatch.of_pages(np.ones((1, 4)) * np.arange(count)[:, None, None], 10 * np.arange(count), first, layer=2)
    part = batch[a:b]
    assert part.layer == 2 and len(part) == max(0, min(b, count) - min(a, count))
    for number, page, start in zip(range(part.first, part.first + len(part)), part.pages, part.starts):
        assert (number == first + page).all() and (start == 10 * page).all() and page.shape == (1, 4)


def test_images_side_by_side_are_cut_out_again_as_they_were():
    images = np.random.default_rng(0).integers(0, 255, (3, 5, 8), dtype=np.uint8)
    batch = PageBatch.of_pages(images, np.array([0, 9, 18]), 0)
    assert batch.are_images and batch.plane[0, :8].tolist() == images[0, -1].tolist(), "row 0 = lowest DM"
    np.testing.assert_array_equal(batch.pages, images)


def test_the_sweep_of_a_grid():
    dms = np.arange(4.0)
    grid = PageGrid(dms, 256, tsamp=1e-3, f_top=2000.0, f_bottom=1000.0)
    assert grid.sweep(100.0) == pytest.approx(311.1606)
    assert (PageGrid(dms, 256).sweep(dms) == 0).all() and PageGrid(dms, 256).shape == (4, 256)


def random_pages(count: int = 3, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, *shape), dtype=np.float32)


def test_minmax_is_the_originals_definition():
    pages = random_pages()
    images, unusable = to_images(pages, "minmax", 64)
    assert images.dtype == np.uint8 and not unusable.any()
    for image, page in zip(images.astype(int), pages.astype(np.float64)):
        exact = ((page - page.min()) / (page.max() - page.min()) * 255)[::-1]
        assert image.min() == 0 and image.max() == 255
        # float32 may fall on the other side of a whole number.
        assert np.abs(image - exact.astype(int)).max() <= 1 and (image == exact.astype(int)).mean() > 0.999


def test_row_0_of_an_image_is_the_highest_dm():
    pages = np.zeros((1, 64, 64), np.float32)
    pages[0, 60, 5] = 1
    assert to_images(pages, "minmax", 64)[0][0, 3, 5] == 255


def test_one_hot_pixel_changes_no_other_under_robust():
    pages = random_pages(1)
    hot = pages.copy()
    hot[0, 30, 31] = 1e5
    plain, changed = (to_images(p, "robust", 64)[0][0].astype(int) for p in (pages, hot))
    assert changed[33, 31] == 255
    others = np.ones((64, 64), dtype=bool)
    others[33, 31] = False
    assert np.abs(plain - changed)[others].max() <= 1
    assert to_images(hot, "minmax", 64)[0][0][others].max() <= 1


def test_robust_maps_sigmas_to_levels():
    pages = np.random.default_rng(0).normal(7.0, 3.0, (1, 256, 256)).astype(np.float32)
    pages[0, 10, 10] = 7 + 3 * 10
    image = to_images(pages, "robust", 256)[0][0]
    assert np.median(image) == pytest.approx(51, abs=1)  # 5 of 25 sigmas
    assert image[245, 10] == pytest.approx(255 * 15 / 25, abs=3)


@pytest.mark.parametrize("normaliser", ["minmax", "robust"])
@pytest.mark.parametrize("value", [0.0, 5.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whole", [True, False], ids=["whole page", "one pixel"])
def test_constant_and_non_finite_pages_are_zero_and_flagged(normaliser, value, whole):
    pages = random_pages()
    pages[1, slice(None) if whole else 30, slice(None) if whole else 31] = value
    images, unusable = to_images(pages, normaliser, 64)
    expected = whole or not np.isfinite(value)
    assert unusable.tolist() == [False, expected, False]
    assert (images[1] == 0).all() == expected
    np.testing.assert_array_equal(images[[0, 2]], to_images(random_pages(), normaliser, 64)[0][[0, 2]])


@pytest.mark.parametrize("normaliser", ["minmax", "robust"])
def test_a_page_too_large_to_be_scaled_is_zero_and_flagged(normaliser):
    """All its values are finite, but not the range that is scaled."""
    pages = random_pages()
    pages[1] = 3e38 * (-1.0) ** np.arange(64)
    images, unusable = to_images(pages, normaliser, 64)
    assert unusable.tolist() == [False, True, False] and (images[1] == 0).all()


def test_an_unknown_normaliser():
    with pytest.raises(ValueError, match="minmax, robust"):
        to_images(random_pages(), "zscore", 64)


def test_resize_averages_and_repeats():
    image = np.array([[[0, 10, 200, 200], [20, 30, 200, 200], [0, 0, 1, 2], [0, 0, 3, 5]]], dtype=np.uint8)
    assert resize(image, 2).tolist() == [[[15, 200], [0, 2]]]
    assert resize(image, 8)[0, ::2, ::2].tolist() == image[0].tolist()
    assert resize(image, 4) is image
    pages = random_pages(1, (128, 256))
    assert to_images(pages, "minmax", 32)[0].shape == (1, 32, 32)
