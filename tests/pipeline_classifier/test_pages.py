"""Pages cover the stream, whatever the blocks; images are what the normaliser says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.pages import PageGrid, cut_pages, page_starts, resize, to_images

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


@given(data=st.data(), n_time=st.integers(1, 20), batch_size=st.integers(1, 7))
@quick
def test_pages_are_slices_of_the_stream(data, n_time, batch_size):
    blocks = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    n = sum(blocks)
    starts = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=30).map(sorted)))
    stream = np.random.default_rng(0).standard_normal((3, n)).astype(np.float32)
    padded = np.pad(stream, ((0, 0), (0, n_time)))
    planes = np.split(stream, np.cumsum(blocks)[:-1], axis=1)
    seen = 0
    for batch in cut_pages(iter(planes), starts, n_time, batch_size):
        assert batch.first == seen and 1 <= len(batch) <= batch_size and batch.pages.dtype == np.float32
        np.testing.assert_array_equal(batch.starts, starts[seen : seen + len(batch)])
        for page, start in zip(batch.pages, batch.starts):
            np.testing.assert_array_equal(page, padded[:, start : start + n_time])
        seen += len(batch)
    assert seen == len(starts)


@given(n=st.integers(1, 300), n_time=st.integers(16, 64), overlap=st.sampled_from([0, 0.25, 0.5, 0.9]))
@quick
def test_the_regular_grid_over_blocks(n, n_time, overlap):
    stream = np.arange(1, n + 1, dtype=np.float32)[None]
    starts = page_starts(n, n_time, overlap)
    pages = np.concatenate([batch.pages for batch in cut_pages(np.array_split(stream, 7, axis=1), starts, n_time, 4)])
    columns = starts[:, None] + np.arange(n_time)
    np.testing.assert_array_equal(pages[:, 0], np.where(columns < n, columns + 1, 0))


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
    assert images.dtype == torch.uint8 and not unusable.any()
    for image, page in zip(images.numpy().astype(int), pages.astype(np.float64)):
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
    plain, changed = (to_images(p, "robust", 64)[0].numpy()[0].astype(int) for p in (pages, hot))
    assert changed[33, 31] == 255
    others = np.ones((64, 64), dtype=bool)
    others[33, 31] = False
    assert np.abs(plain - changed)[others].max() <= 1
    assert to_images(hot, "minmax", 64)[0].numpy()[0][others].max() <= 1


def test_robust_maps_sigmas_to_levels():
    pages = np.random.default_rng(0).normal(7.0, 3.0, (1, 256, 256)).astype(np.float32)
    pages[0, 10, 10] = 7 + 3 * 10
    image = to_images(pages, "robust", 256)[0].numpy()[0]
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


def test_an_unknown_normaliser():
    with pytest.raises(ValueError, match="minmax, robust"):
        to_images(random_pages(), "zscore", 64)


def test_resize_averages_and_repeats():
    image = torch.tensor([[[0, 10, 200, 200], [20, 30, 200, 200], [0, 0, 1, 2], [0, 0, 3, 5]]], dtype=torch.uint8)
    assert resize(image, 2).tolist() == [[[15, 200], [0, 2]]]
    assert resize(image, 8)[0, ::2, ::2].tolist() == image[0].tolist()
    assert resize(image, 4) is image
    pages = random_pages(1, (128, 256))
    assert to_images(pages, "minmax", 32)[0].shape == (1, 32, 32)
