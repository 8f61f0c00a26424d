"""Images, labels, events and the split between training and validation."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.dataset import (
    DMTimeImages,
    check_split,
    find_events,
    load_groups,
    load_labels,
    split_by_event,
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
        (np.zeros((4, 32, 32), np.float32), "holds float32"),
        (np.zeros((4, 32), np.uint8), r"valid are uint8 \(N, H, W\)"),
        (np.zeros((4, 3, 32, 32), np.uint8), r"valid are uint8 \(N, H, W\)"),
        (np.zeros((4, 64, 64), np.uint8), "64 x 64 pixels, but resolution is 32"),
        (np.zeros((5, 32, 32), np.uint8), "4 labels, but 5 images"),
        (np.array([{}, {}]), "not a .npy file of plain numbers"),
    ],
)
def test_wrong_image_files(tmp_path, array, message):
    with pytest.raises(InputError, match=message):
        DMTimeImages([save(tmp_path / "i.npy", array)], np.zeros(4, np.int64), 32)


def test_files_that_are_no_arrays(tmp_path):
    (tmp_path / "i.npy").write_text("hello")
    (tmp_path / "empty.npy").write_text("")
    np.savez(tmp_path / "z.npz", a=np.zeros(3))
    for name in ("i.npy", "empty.npy", "z.npz"):
        with pytest.raises(InputError, match="not a .npy file"):
            load_labels(tmp_path / name)
    with pytest.raises(InputError, match="files_by_resolution: the file .*none.npy does not exist"):
        DMTimeImages([tmp_path / "none.npy"], np.zeros(4, np.int64), 32)


@pytest.mark.parametrize(
    "labels", [["Pulse", "Artefact"], np.array(["Pulse", "Artefact"], "S"), [1, 0], [[1], [0]], [True, False]]
)
def test_labels_as_strings_or_integers(tmp_path, labels):
    loaded = load_labels(save(tmp_path / "l.npy", np.array(labels)))
    assert loaded.tolist() == [1, 0] and loaded.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["Pulse", "RFI"], "the label 'RFI': valid are Pulse, Artefact"),
        ([0, 1, 2], "the label 2: valid are"),
        ([0.0, 1.0], "holds float64"),
        ([[0, 1], [1, 0]], r"holds int64 \(2, 2\)"),
    ],
)
def test_unknown_labels_are_named(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        load_labels(save(tmp_path / "l.npy", np.array(labels)))


def test_groups_file(tmp_path):
    assert load_groups(save(tmp_path / "g.npy", np.array(["b", "a", "b"])), 3).tolist() == [1, 0, 1]
    with pytest.raises(InputError, match=r"groups: .* one an image"):
        load_groups(tmp_path / "g.npy", 4)


# Events: some of Pulse, some of Artefact, each with its number of pages
event_sizes = st.lists(st.integers(1, 40), min_size=2, max_size=25)


@settings(max_examples=60, deadline=None)
@given(pulses=event_sizes, artefacts=event_sizes, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 2**32 - 1))
def test_split_has_no_event_on_both_sides_and_both_classes_on_each(pulses, artefacts, fraction, seed):
    sizes = np.array(pulses + artefacts)
    shuffled = np.random.default_rng(seed).permutation(sizes.sum())
    groups = np.repeat(np.arange(len(sizes)), sizes)[shuffled]
    labels = np.repeat(np.arange(len(sizes)) < len(pulses), sizes).astype(np.int64)[shuffled]
    training, validation = split_by_event(labels, groups, fraction, seed)

    assert np.array_equal(np.sort(np.concatenate((training, validation))), np.arange(len(labels)))
    assert not set(groups[training]) & set(groups[validation])
    for label, members in ((1, pulses), (0, artefacts)):
        held = (labels[validation] == label).sum()
        assert 0 < held < sum(members)
        # Whole events only: the part can be off by an event, and each side keeps at least one.
        assert abs(held - fraction * sum(members)) <= max(members)

    again = split_by_event(labels, groups, fraction, seed)
    assert np.array_equal(training, again[0]) and np.array_equal(validation, again[1])


def test_another_seed_gives_another_split():
    labels, groups = np.repeat([0, 1], 200), np.arange(400)
    first, second = (split_by_event(labels, groups, 0.2, seed)[1] for seed in (0, 1))
    assert len(first) == len(second) == 80
    assert not np.array_equal(first, second)


def test_one_event_of_a_class_cannot_be_split():
    labels = np.repeat([0, 1], 10)
    with pytest.raises(InputError, match=r"no Pulse is left for the validation side .* has 1 Pulse event\(s\)"):
        split_by_event(labels, np.repeat([0, 1, 2], [5, 5, 10]), 0.2, 0)
    with pytest.raises(InputError, match=r"has 0 Pulse event\(s\)"):
        split_by_event(np.zeros(20, np.int64), np.arange(20), 0.2, 0)


def test_events_that_hold_both_classes_stay_whole():
    labels, groups = np.arange(40) % 2, np.arange(40) // 4
    training, validation = split_by_event(labels, groups, 0.2, 0)
    assert len(validation) == 8 and not set(groups[training]) & set(groups[validation])


def test_a_leaking_split_and_a_missing_class_are_refused():
    labels, groups = np.array([0, 1, 0, 1]), np.array([5, 6, 7, 6])
    with pytest.raises(InputError, match=r"the split leaks: 1 event\(s\), 6 among them"):
        check_split(labels, groups, np.array([0, 1]), np.array([2, 3]))
    with pytest.raises(InputError, match="no Pulse is left for the validation side"):
        check_split(labels, groups, np.array([0, 1, 3]), np.array([2]))


def candidate_pages(n_events: int, n_shifts: int, peak: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pages of 256 x 256 cut one sample apart and scaled by their own extremes, as the original makes them."""
    random = np.random.default_rng(seed)
    pages = []
    for _ in range(n_events):
        series = random.normal(size=(256, 256 + n_shifts)).astype(np.float32)
        # A pulse that leaves the pages half-way, and the scale with it
        series[100:140, n_shifts // 2 : n_shifts // 2 + 3] += peak
        for start in range(n_shifts):
            page = series[:, start : start + 256]
            pages.append(((page - page.min()) / np.ptp(page) * 255).astype(np.uint8))
    return np.stack(pages), np.repeat(np.arange(n_events), n_shifts)


@pytest.mark.parametrize("peak", [0.0, 5.0, 50.0])
@pytest.mark.parametrize("order", [1, -1])
def test_shifted_copies_are_found_although_each_is_scaled_by_itself(tmp_path, peak, order):
    pages, events = candidate_pages(4, 24, peak)
    dataset = DMTimeImages([save(tmp_path / "i.npy", pages[::order])], np.zeros(len(pages), np.int64), 256)
    assert np.array_equal(find_events(dataset), events)


@pytest.mark.parametrize("resolution", [128, 32])
def test_shifted_copies_are_found_in_downsampled_sets(tmp_path, resolution):
    pages, events = candidate_pages(4, 40, 5.0)
    factor = 256 // resolution
    small = pages.reshape(-1, resolution, factor, resolution, factor).mean(axis=(2, 4)).astype(np.uint8)
    dataset = DMTimeImages([save(tmp_path / "i.npy", small)], np.zeros(len(small), np.int64), resolution)
    assert np.array_equal(find_events(dataset), events)


def test_independent_pages_with_the_same_pulse_are_events_of_their_own(tmp_path):
    """The pulses look alike, but the noise around them differs."""
    pages = np.concatenate([candidate_pages(1, 1, peak, seed)[0] for seed in range(20) for peak in (0.0, 20.0)])
    dataset = DMTimeImages([save(tmp_path / "i.npy", pages)], np.zeros(len(pages), np.int64), 256)
    assert np.array_equal(find_events(dataset), np.arange(len(pages)))
    pulses = DMTimeImages([save(tmp_path / "p.npy", pages[1::2])], np.zeros(20, np.int64), 256)
    assert np.array_equal(find_events(pulses), np.arange(20))


def test_events_do_not_cross_files(tmp_path):
    pages, _ = candidate_pages(1, 8, 0.0)
    paths = [save(tmp_path / "a.npy", pages[:5]), save(tmp_path / "b.npy", pages[5:6])]
    assert find_events(DMTimeImages(paths, np.zeros(6, np.int64), 256)).tolist() == [0, 0, 0, 0, 0, 1]
