"""Pages of a .npy file: taken as they are, or refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier.frontend.pages import to_images
from pipeline_classifier.frontend.sources import ArrayPages
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.scaling import scaling_of
from tests.pipeline_classifier.detection.planes import event


@pytest.mark.parametrize("shape", [(5, 64, 32), (5, 1, 64, 32), (5, 64, 32, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, ">f4"])
def test_shapes_and_types_of_a_batch(tmp_path, shape, dtype):
    values = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    np.save(tmp_path / "batch.npy", values)
    source = ArrayPages(tmp_path / "batch.npy", np.arange(64.0))
    batches = list(source.batches(2))
    assert [len(batch) for batch in batches] == [2, 2, 1] and source.n_pages == 5 and source.name == "batch"
    assert batches[0].pages.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(np.concatenate([batch.pages for batch in batches]), values.reshape(5, 64, 32))
    assert (np.diff(source.starts) > source.grid.n_time).all(), "no two candidates are neighbours"


def test_rows_that_are_not_the_configured_grid_have_no_dm(tmp_path):
    np.save(tmp_path / "batch.npy", np.zeros((2, 32, 32), np.float32))
    assert np.isnan(ArrayPages(tmp_path / "batch.npy", np.arange(64.0)).grid.dms).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_fortran_order_is_read_as_it_was_written(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 255, (5, 64, 32)).astype(dtype)
    np.save(tmp_path / "batch.npy", np.asfortranarray(values))
    source = ArrayPages(tmp_path / "batch.npy", np.arange(64.0))
    np.testing.assert_array_equal(np.concatenate([batch.pages for batch in source.batches(2)]), values)


@pytest.mark.parametrize(
    "shape, order, axes",
    [
        ((64, 32, 6), "(n_dm, n_time, N)", (2, 0, 1)),
        ((64, 32, 1), "(n_dm, n_time, N)", (2, 0, 1)),
        ((64, 32, 100), "(n_dm, n_time, N)", (2, 0, 1)),
        ((64, 6, 32), "(n_dm, N, n_time)", (1, 0, 2)),
        ((64, 100, 32), "(n_dm, N, n_time)", (1, 0, 2)),
        ((6, 32, 64), "(N, n_time, n_dm)", (0, 2, 1)),
        ((256, 128, 6), "(n_dm, n_time, N)", (2, 0, 1)),
        ((2, 3, 4), None, None),
        ((20, 64, 8), "(n_dm, n_time, N)", (2, 0, 1)),
    ],
)
def test_axes_in_another_order_are_recognised(tmp_path, shape, order, axes):
    np.save(tmp_path / "batch.npy", np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=r"batch.npy: the axes must be \(N, n_dm, n_time\)") as error:
        ArrayPages(tmp_path / "batch.npy", np.arange(64.0), 32)
    if axes:
        assert f"{shape}, which seems to be {order}: save pages.transpose{axes}" in str(error.value)
        assert ("page_samples" in str(error.value)) == (min(shape[1:]) >= 16)
        fixed = ArrayPages(saved(tmp_path / "fixed.npy", np.zeros(shape).transpose(axes)), np.arange(64.0), 32)
        assert fixed.grid.n_time in (32, 64, 128)
    else:
        assert "seems" not in str(error.value)


@pytest.mark.parametrize("shape", [(5, 40, 50), (64, 64, 32), (32, 64, 100), (64, 300, 500)])
def test_other_sizes_of_pages_are_taken(tmp_path, shape):
    assert ArrayPages(saved(tmp_path / "batch.npy", np.zeros(shape)), np.arange(64.0), 32).n_pages == shape[0]


def test_few_trial_dms_are_taken_if_the_config_has_them(tmp_path):
    path = saved(tmp_path / "batch.npy", np.zeros((5, 4, 32)))
    assert ArrayPages(path, np.arange(4.0), 32).n_pages == 5
    with pytest.raises(InputError, match="must be"):
        ArrayPages(path, np.arange(64.0), 32)


def bow_ties(snrs: tuple[float, ...] = (10, 30, 300)) -> np.ndarray:
    """Pages of noise with a spot."""
    pages = np.random.default_rng(0).standard_normal((2 * len(snrs), 64, 64)).astype(np.float32)
    for number, snr in enumerate(snrs):
        pages[number, 30:33, 20:22] += snr
    return pages


@pytest.mark.parametrize("normaliser", ["minmax", "robust"])
def test_the_scaling_of_images_is_recognised(normaliser):
    pages = bow_ties()
    assert scaling_of(to_images(pages, normaliser, 64)[0]) == normaliser
    dead = np.concatenate([pages, np.zeros((3, 64, 64), np.float32)])
    assert scaling_of(to_images(dead, normaliser, 64)[0]) == normaliser
    images = to_images(pages, normaliser, 64)[0] // 2
    assert scaling_of(images) is None and scaling_of(images[:0]) is None
    assert scaling_of(to_images(pages, "robust", 16)[0]) == "robust", "averaged after scaling"


@pytest.mark.parametrize("made", ["minmax", "robust", "other"])
@pytest.mark.parametrize("wanted", ["minmax", "robust"])
def test_images_of_another_scaling_are_scaled_again(tmp_path, caplog, made, wanted):
    pages = bow_ties()
    images = to_images(pages, "minmax" if made == "other" else made, 64)[0]
    images = images // 2 + 30 if made == "other" else images
    source = ArrayPages(saved(tmp_path / "batch.npy", images), np.arange(64.0), 64)
    source.scale_for(wanted)
    [batch] = source.batches(64)
    if made == wanted or (made, wanted) == ("other", "minmax"):
        np.testing.assert_array_equal(batch.pages, images)
        assert batch.pages.dtype == np.uint8 and caplog.text == ""
        return
    assert "trained on images of the normaliser" in caplog.text and f"--normaliser {wanted}" in caplog.text
    again, whole = to_images(batch.pages, wanted, 64)[0], to_images(pages, wanted, 64)[0]
    # One level of these images is 1.2 sigma where the spot is 300 sigma, and robust cuts off at 20 sigma.
    difference = np.abs(again.astype(int) - whole)[[0, 1, 3, 4, 5]]
    assert difference.max() <= (30 if made == "robust" else 6)
    assert source.cutout(event(np.nan, np.nan, 9.0)).plane.argmax() // 64 in (30, 31, 32), "row 0 is the lowest DM"


def npy(array: np.ndarray):
    return lambda path: np.save(path, array)


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def with_shape(shape: str, dtype: str = "<f4"):
    """A .npy file of 32 KiB whose header names any shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header.encode() + bytes(2 * 64 * 64 * 4))


@pytest.mark.parametrize(
    "content, named",
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(2048), "an HDF5 file"),
        (b"\x0c\0\0\0HEADER_START" + bytes(90), "a SIGPROC file (search it with --filterbank)"),
        (b"SIMPLE  =                    T", "a FITS file"),
        (pickle.dumps([1.0, 2.0]), "a pickle"),
        (b"1.0 2.0\n3.0 4.0\n", "a text file"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b"PK\x03\x04", "a zip archive, such as .npz"),
        (b"", "an empty file"),
        (b"\0\1\2\3", "a file of unknown format, which begins with b'"),
    ],
)
def test_another_format_is_named(tmp_path, content, named):
    (tmp_path / "batch.h5").write_bytes(content)
    with pytest.raises(InputError) as error:
        ArrayPages(tmp_path / "batch.h5", np.arange(64.0))
    assert f"batch.h5: must be a .npy file of pages, got {named}" in str(error.value)
    assert "numpy.save" in str(error.value) or "--filterbank" in str(error.value)


@pytest.mark.parametrize(
    "write",
    [
        with_shape("(-2, 64, 64)"),
        with_shape("(-2, -64, 64)"),
        with_shape("(2, 64, 64)", "|O"),
        with_shape("(2, 64, 64)", "<f9"),
        with_shape("(2, 64, 65)"),
        with_shape("(10000000000000000000000000, 64, 64)"),
        with_shape("(2.5, 64, 64)"),
        with_shape("(True, 64, 64)"),
        with_shape("(" * 90),
        with_shape("2"),
        npy(np.zeros((64, 64))),
        npy(np.zeros((2, 3, 64, 64))),
        npy(np.zeros(0)),
        npy(np.zeros((0, 64, 64), np.float32)),
        npy(np.zeros((2, 0, 64), np.uint8)),
        npy(np.float32(3)),
        npy(np.zeros((2, 64, 64), np.int32)),
        npy(np.zeros((2, 64, 64), complex)),
        npy(np.full((2, 64, 64), "Pulse")),
        lambda path: np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True),
        lambda path: path.write_bytes(pickle.dumps(np.zeros((2, 64, 64)))),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"),
        lambda path: path.write_bytes(b"text, not an array"),
        lambda path: (np.save(path, np.zeros((2, 64, 64))), path.write_bytes(path.read_bytes()[:5000])),
        lambda path: (
            np.savez(path.with_suffix(".npz"), pages=np.zeros((2, 64, 64))),
            path.with_suffix(".npz").rename(path),
        ),
    ],
    ids=[
        "negative",
        "two negative",
        "objects unpickled",
        "no type",
        "too long",
        "far too long",
        "fraction",
        "boolean",
        "nested",
        "no tuple",
        "2-d",
        "3 channels",
        "empty",
        "no pages",
        "no rows",
        "scalar",
        "int32",
        "complex",
        "strings",
        "objects",
        "pickle",
        "no bytes",
        "header cut",
        "text",
        "data cut",
        "npz",
    ],
)
def test_a_file_that_is_not_a_batch_is_refused(tmp_path, write):
    write(tmp_path / "batch.npy")
    with pytest.raises(InputError, match="batch.npy: .*must .*, got"):
        ArrayPages(tmp_path / "batch.npy", np.arange(64.0))
