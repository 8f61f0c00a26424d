"""Events, the split by event, and the check that no data are in two splits."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import TrainingConfig, load_config
from single_pulse_classifier_training.dataset import DMTimeImages
from single_pulse_classifier_training.split import (
    check_split,
    column_marks,
    find_events,
    join_by_marks,
    load_splits,
    split_by_event,
)


def save(path, array):
    np.save(path, array)
    return path


# Events: some of Pulse, some of Artefact, each with its number of pages
event_sizes = st.lists(st.integers(1, 40), min_size=2, max_size=25)


@settings(max_examples=60, deadline=None)
@given(pulses=event_sizes, artefacts=event_sizes, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 2**32 - 1))
def test_split_divides_no_event_and_has_both_classes_in_each_part(pulses, artefacts, fraction, seed):
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
        # Whole events only: the fraction can differ by one event, and each split keeps at least one.
        assert abs(held - fraction * sum(members)) <= max(members)

    again = split_by_event(labels, groups, fraction, seed)
    assert np.array_equal(training, again[0]) and np.array_equal(validation, again[1])


def test_an_event_is_left_for_training_whatever_the_validation_fraction():
    """Two pure Artefact events beside two that show both classes: each kind is in both splits."""
    groups = np.repeat(np.arange(4), 10)
    labels = np.where(groups < 2, np.arange(40) % 2, 0)
    for seed in range(5):
        training, validation = split_by_event(labels, groups, 0.99, seed)
        assert sorted(np.unique(groups[training]) < 2) == sorted(np.unique(groups[validation]) < 2) == [False, True]


def test_another_seed_gives_another_split():
    labels, groups = np.repeat([0, 1], 200), np.arange(400)
    first, second = (split_by_event(labels, groups, 0.2, seed)[1] for seed in (0, 1))
    assert len(first) == len(second) == 80
    assert not np.array_equal(first, second)


def test_one_event_of_a_class_cannot_be_split():
    labels = np.repeat([0, 1], 10)
    with pytest.raises(InputError, match=r"the validation split would have no Pulse; the set has 1 Pulse event\(s\)"):
        split_by_event(labels, np.repeat([0, 1, 2], [5, 5, 10]), 0.2, 0)
    with pytest.raises(InputError, match=r"has 0 Pulse event\(s\)"):
        split_by_event(np.zeros(20, np.int64), np.arange(20), 0.2, 0)


def test_events_that_hold_both_classes_stay_whole():
    labels, groups = np.arange(40) % 2, np.arange(40) // 4
    training, validation = split_by_event(labels, groups, 0.2, 0)
    assert len(validation) == 8 and not set(groups[training]) & set(groups[validation])


def test_a_leaking_split_and_a_missing_class_are_refused():
    labels, groups = np.array([0, 1, 0, 1]), np.array([5, 6, 7, 6])
    with pytest.raises(InputError, match=r"the split leaks: 1 event\(s\), such as 6, are in both"):
        check_split(labels, groups, np.array([0, 1]), np.array([2, 3]))
    with pytest.raises(InputError, match="the validation split would have no Pulse"):
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


def test_independent_pages_with_the_same_pulse_are_separate_events(tmp_path):
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


def sky(n_pages: int, n_samples: int, resolution: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pages (uint8) cut at random from noise that is scaled once, and the start sample of each."""
    random = np.random.default_rng(seed)
    series = (60 + 10 * random.normal(size=(resolution, n_samples))).astype(np.uint8)
    starts = random.integers(0, n_samples - resolution, n_pages)
    return np.stack([series[:, start : start + resolution] for start in starts]), starts


@pytest.mark.parametrize("resolution", [32, 128, 256])
def test_images_that_share_columns_are_joined_in_any_order(tmp_path, resolution):
    """Two pages that share half of their columns or more are one event; disjoint ones, without a chain, are two."""
    pages, starts = sky(40, 60 * resolution, resolution)
    dataset = DMTimeImages([save(tmp_path / "i.npy", pages)], np.zeros(40, np.int64), resolution)
    groups = join_by_marks(np.arange(40), *column_marks(dataset))
    order = np.argsort(starts)
    for before, after in zip(order, order[1:]):
        apart = starts[after] - starts[before]
        if apart <= resolution // 2:
            assert groups[before] == groups[after]
        if apart >= resolution:
            assert groups[before] != groups[after]
    assert len(np.unique(groups)) < 40


def test_columns_without_noise_join_nothing(tmp_path):
    """Blank columns, and bright pixels on a blank page, say nothing about where a page comes from."""
    pages = np.zeros((12, 64, 64), np.uint8)
    pages[np.arange(12), np.arange(12), :] = 200
    dataset = DMTimeImages([save(tmp_path / "i.npy", pages)], np.zeros(12, np.int64), 64)
    assert len(column_marks(dataset)[0]) == 0


@pytest.fixture
def config(tmp_path):
    """Return a function that loads a config of noise pages, every second one labelled Pulse, with changes."""
    save(tmp_path / "set_32x32.npy", sky(60, 40_000, 32)[0])
    save(tmp_path / "labels.npy", np.arange(60) % 2)

    def load(**changes) -> TrainingConfig:
        content = {
            "path_to_files": "./", "resolution": 32, "model_name": "DM_time_binary_classificator_241002_3",
            "files_by_resolution": {"default": "set_{res}x{res}.npy"}, "labels": "labels.npy",
        }  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(content | changes))
        return load_config(tmp_path / "config.json", TrainingConfig)

    return load


def test_splits_of_a_set_in_shards_with_groups_and_snr(tmp_path, config):
    pages = np.load(tmp_path / "set_32x32.npy")
    save(tmp_path / "a.npy", pages[:20]), save(tmp_path / "b.npy", pages[20:])
    save(tmp_path / "groups.npy", np.arange(60) // 6)
    save(tmp_path / "snr.npy", np.arange(60.0))
    splits = load_splits(config(files_by_resolution={"32": ["a.npy", "b.npy"]}, groups="groups.npy", snr="snr.npy"))
    assert list(splits) == ["training", "validation"]
    both = np.concatenate([split.indices for split in splits.values()])
    assert np.array_equal(np.sort(both), np.arange(60))
    training, validation = splits["training"], splits["validation"]
    assert not set(training.indices // 6) & set(validation.indices // 6)
    assert np.array_equal(validation.snr, validation.indices.astype(np.float32))
    assert np.array_equal(validation.labels, validation.indices % 2)
    assert np.array_equal(validation.dataset.__getitems__([19, 20])[0][:, 0], pages[19:21])


def test_separate_validation_and_test_files(tmp_path, config):
    sets = {}
    for number, name in enumerate(("validation", "test"), start=1):
        save(tmp_path / f"{name}.npy", sky(10, 4000, 32, seed=number)[0])
        save(tmp_path / f"{name}_labels.npy", np.arange(10) % 2)
        sets[f"{name}_files"] = {"files_by_resolution": {"32": f"{name}.npy"}, "labels": f"{name}_labels.npy"}
    splits = load_splits(config(**sets))
    assert {name: len(split.indices) for name, split in splits.items()} == {
        "training": 60,
        "validation": 10,
        "test": 10,
    }
    assert splits["test"].snr is None

    save(tmp_path / "validation_labels.npy", np.zeros(10, int))
    with pytest.raises(InputError, match="labels: the validation files must have images of both classes, got no Pulse"):
        load_splits(config(**sets))


@pytest.mark.parametrize("leaking", ["validation", "test"])
def test_a_shifted_copy_of_a_training_image_in_other_files_fails_the_run(tmp_path, config, leaking):
    noise = (60 + 10 * np.random.default_rng(9).normal(size=(32, 50))).astype(np.uint8)
    pages = np.load(tmp_path / "set_32x32.npy")
    pages[17] = noise[:, :32]
    save(tmp_path / "set_32x32.npy", pages)
    others = sky(10, 4000, 32, seed=1)[0]
    others[4] = noise[:, 14:46]
    save(tmp_path / "other.npy", others)
    save(tmp_path / "other_labels.npy", np.arange(10) % 2)
    files = {"files_by_resolution": {"32": "other.npy"}, "labels": "other_labels.npy"}
    message = f"the split leaks: image 4 of the {leaking} files shows the same data as image 17 of the training files"
    with pytest.raises(InputError, match=message):
        load_splits(config(**{f"{leaking}_files": files}))


def test_groups_that_divide_one_stretch_of_data_are_joined(tmp_path, config):
    """Every page has a group of its own, but pages 0 to 29 are shifted copies: they end in one split."""
    noise = (60 + 10 * np.random.default_rng(9).normal(size=(32, 90))).astype(np.uint8)
    pages = np.load(tmp_path / "set_32x32.npy")
    pages[:30] = [noise[:, 2 * shift : 2 * shift + 32] for shift in range(30)]
    save(tmp_path / "set_32x32.npy", pages)
    save(tmp_path / "groups.npy", np.arange(60))
    splits = load_splits(config(groups="groups.npy"))
    assert (splits["validation"].indices < 30).all() or (splits["validation"].indices >= 30).all()
