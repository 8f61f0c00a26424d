"""Pages of a .npy file: taken as they are, or refused."""

import pickle

import numpy as np
import pytest

from pipeline_classifier.frontend.sources import ArrayPages
from single_pulse_classifier_training.cli import InputError


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


def npy(array: np.ndarray):
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    "write",
    [
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
    with pytest.raises(InputError, match="batch.npy"):
        ArrayPages(tmp_path / "batch.npy", np.arange(64.0))
