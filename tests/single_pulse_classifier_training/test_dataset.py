"""Images and labels on disk, and the batches made of them."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.dataset import (
    DMTimeImages,
    TrainingBatches,
    build_loader,
    load_groups,
    load_labels,
    load_snr,
    ordered_batches,
)


def save(path, array):
    np.save(path, array)
    return path


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(10, 32, 32), (10, 1, 32, 32), (10, 32, 32, 1)])
def test_every_layout_gives_the_same_batch(tmp_path, images, shape):
    labels = np.arange(10) % 2
    dataset = DMTimeImages([save(tmp_path / "i.npy", images.reshape(shape))], labels, 32)
    batch, batch_labels = dataset.__getitems__([7, 0, 3])
    assert batch.shape == (3, 1, 32, 32)
    assert np.array_equal(batch.numpy()[:, 0], images[[7, 0, 3]])
    assert batch_labels.tolist() == [1, 0, 1]
    assert np.array_equal(dataset[4][0].numpy()[0], images[4])


def test_several_files_read_as_one(tmp_path, images):
    paths = [save(tmp_path / "a.npy", images[:4]), save(tmp_path / "b.npy", images[4:])]
    dataset = DMTimeImages(paths, np.zeros(10, np.int64), 32)
    order = [9, 3, 4, 0, 5]
    assert np.array_equal(dataset.__getitems__(order)[0].numpy()[:, 0], images[order])


def test_a_worker_gets_the_path_and_not_the_pixels(tmp_path):
    dataset = DMTimeImages([save(tmp_path / "i.npy", np.ones((50, 64, 64), np.uint8))], np.zeros(50, np.int64), 64)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 50 * 64
    assert np.array_equal(pickle.loads(pickled)[49][0], dataset[49][0])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 32, 32), np.float32), r"must be uint8 \(N, H, W\).*, got float32"),
        (np.zeros((4, 32), np.uint8), r"must be uint8 \(N, H, W\)"),
        (
            np.zeros((4, 3, 32, 32), np.uint8),
            r"must have C channels that the description of a set names .*, got \(4, 3,",
        ),
        (np.zeros((4, 64, 64), np.uint8), "must have 32 x 32 pixels, got 64 x 64"),
        (np.zeros((5, 32, 32), np.uint8), "the number must be 5, as of the images in .*, got 4"),
        (np.array([{}, {}]), "must be a .npy file of numbers .*, got a .npy file that is damaged, .* or holds objects"),
    ],
)
def test_wrong_image_files(tmp_path, array, message):
    with pytest.raises(InputError, match=message):
        DMTimeImages([save(tmp_path / "i.npy", array)], np.zeros(4, np.int64), 32)


def test_files_that_are_no_arrays(tmp_path):
    (tmp_path / "i.npy").write_text("hello")
    (tmp_path / "empty.npy").write_text("")
    np.savez(tmp_path / "z.npz", a=np.zeros(3))
    for name, kind in (("i.npy", "a text file"), ("empty.npy", "an empty file"), ("z.npz", "a zip archive, .*")):
        with pytest.raises(InputError, match=f"labels: .*{name} must be a .npy file of .*, got {kind}$"):
            load_labels([tmp_path / name])
    with pytest.raises(InputError, match="labels: the file .* must be a file, got a folder"):
        load_labels([tmp_path])
    with pytest.raises(InputError, match="files_by_resolution: the file .*none.npy does not exist"):
        DMTimeImages([tmp_path / "none.npy"], np.zeros(4, np.int64), 32)


@pytest.mark.parametrize(
    "header",
    [
        "'shape': (-4, 32, 32)",
        "'shape': (-100000, 32, 32)",
        "'shape': (100000000000000000000000, 4)",
        "'shape': (10000000000, 4)",
        "'shape': (True, 32)",
        "((('shape'",
        "'shape': " + "(" * 3000,
    ],
    ids=lambda header: header[:30],
)
def test_headers_that_name_impossible_shapes(tmp_path, header):
    """Neither a traceback, nor memory that the file does not have."""
    text = f"{{'descr': '|u1', 'fortran_order': False, {header}, }}\n".encode()
    content = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + bytes(4096)
    (tmp_path / "a.npy").write_bytes(content)
    for read in (load_labels, lambda paths: DMTimeImages(paths, np.zeros(4, np.int64), 32)):
        with pytest.raises(InputError, match="a.npy must be a .npy file of .*, got a .npy file that is damaged"):
            read([tmp_path / "a.npy"])


@pytest.mark.parametrize(
    "labels", [["Pulse", "Artefact"], np.array(["Pulse", "Artefact"], "S"), [1, 0], [[1], [0]], [True, False]]
)
def test_labels_as_strings_or_integers(tmp_path, labels):
    loaded = load_labels([save(tmp_path / "l.npy", np.array(labels))])
    assert loaded.tolist() == [1, 0] and loaded.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["Pulse", "RFI"], "must be Pulse or Artefact .*, got 'RFI'"),
        ([0, 1, 2], "must be .*, got 2"),
        ([0.0, 1.0], "must hold strings or integers .*, got float64"),
        ([[0, 1], [1, 0]], r"got int64 \(2, 2\)"),
    ],
)
def test_unknown_labels_are_named(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        load_labels([save(tmp_path / "l.npy", np.array(labels))])


def test_labels_of_several_files_follow_each_other(tmp_path):
    paths = [save(tmp_path / "a.npy", np.array(["Pulse"])), save(tmp_path / "b.npy", np.array([0, 1]))]
    assert load_labels(paths).tolist() == [1, 0, 1]


def test_groups_of_several_files(tmp_path):
    first, second = save(tmp_path / "g.npy", np.array(["b", "a", "b"])), save(tmp_path / "h.npy", np.array(["b", "c"]))
    assert load_groups([first], 3).tolist() == [1, 0, 1]
    assert load_groups([first, second], 5).tolist() == [1, 0, 1, 2, 3]
    with pytest.raises(InputError, match=r"groups: the number of values in .*g.npy must be 4, one per image, got 3"):
        load_groups([first], 4)
    with pytest.raises(InputError, match=r"groups: .*f.npy must hold integers or strings \(N,\), got float64 \(3,\)"):
        load_groups([save(tmp_path / "f.npy", np.zeros(3))], 3)


def test_snr_file(tmp_path):
    path = save(tmp_path / "s.npy", np.array([8.0, np.nan]))
    assert load_snr([path], 2).dtype == np.float32
    with pytest.raises(InputError, match="snr: the number of values in .* must be 3, one per image, got 2"):
        load_snr([path], 3)


@settings(deadline=None)
@given(
    n_images=st.integers(4, 200),
    batch_size=st.integers(4, 40),
    n_ranks=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
    first=st.integers(0, 3),
)
def test_batches_of_an_epoch(n_images, batch_size, n_ranks, seed, first):
    """All ranks together take every image once, but for a remainder that is too small; a restart gives the rest."""
    indices = np.arange(0, 3 * n_images, 3)
    sampler = TrainingBatches(indices, batch_size, seed)
    whole = list(sampler)
    assert len(whole) == len(sampler) and all(len(batch) >= 2 for batch in whole)
    given_images = [index for batch in whole for index in batch]
    assert len(set(given_images)) == len(given_images) >= n_images - 1
    assert set(given_images) <= set(indices.tolist())

    ranks = [list(TrainingBatches(indices, batch_size, seed, rank, n_ranks)) for rank in range(n_ranks)]
    assert len({len(batches) for batches in ranks}) == 1
    for shares, batch in zip(zip(*ranks), whole):
        assert sorted(index for share in shares for index in share) == sorted(batch)
        assert all(len(share) >= 2 for share in shares)

    sampler.first = min(first, len(whole))
    assert list(sampler) == whole[sampler.first :]
    sampler.first, sampler.epoch = 0, 2
    assert sorted(list(sampler)) != sorted(whole) or n_images < 8


@given(n_images=st.integers(0, 50), batch_size=st.integers(1, 9), n_ranks=st.integers(1, 3))
def test_ordered_batches_give_every_index_once(n_images, batch_size, n_ranks):
    indices = np.arange(n_images) * 2
    shares = [ordered_batches(indices, batch_size, rank, n_ranks) for rank in range(n_ranks)]
    assert sorted(index for batches in shares for batch in batches for index in batch) == indices.tolist()
    assert all(1 <= len(batch) <= batch_size for batches in shares for batch in batches)


def test_loader_with_workers_gives_the_same_as_without(tmp_path, images):
    dataset = DMTimeImages([save(tmp_path / "i.npy", images)], np.arange(10) % 2, 32)
    batches = TrainingBatches(np.arange(10), 4, seed=1)
    alone, helped = (list(build_loader(dataset, batches, workers)) for workers in (0, 2))
    for (images_alone, labels_alone), (images_helped, labels_helped) in zip(alone, helped, strict=True):
        assert np.array_equal(images_alone, images_helped) and np.array_equal(labels_alone, labels_helped)


def test_memory_of_the_maps_is_given_back(tmp_path):
    """Reading 160 MB of images one after the other leaves no more than a few of them in memory."""
    path = save(tmp_path / "i.npy", np.random.default_rng(0).integers(0, 255, (2500, 256, 256), dtype=np.uint8))
    dataset = DMTimeImages([path], np.zeros(2500, np.int64), 256)

    def mapped_mb() -> float:
        """Memory of this process that belongs to files, by the kernel's account."""
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssFile")) / 1024

    before = mapped_mb()
    most = 0.0
    for first in range(0, 2500, 50):
        dataset.__getitems__(range(first, first + 50))
        most = max(most, mapped_mb() - before)
    assert most < 40
    for _, chunk in dataset.chunks(50):
        chunk.max()
        assert mapped_mb() - before < 40
