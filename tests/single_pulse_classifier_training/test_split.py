"""Events, the split by event, and the check that no data are in two splits."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier import create_dataset, simulate_observation
from single_pulse_classifier_training import shared_data_cache, training
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import TrainingConfig, load_config
from single_pulse_classifier_training.dataset import DMTimeImages
from single_pulse_classifier_training.shared_data import find_shared_data
from single_pulse_classifier_training.shared_data_cache import cache_path
from single_pulse_classifier_training.split import check_split, join_groups, load_splits, split_by_event
from tests.command_line import run_here


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


def candidate_pages(n_events: int, shifts: np.ndarray, peak: float, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Pages of 256 x 256, cut around pulses at the given samples, scaled by their own extremes, then averaged."""
    random = np.random.default_rng(0)
    pages, factor = [], 256 // resolution
    for _ in range(n_events):
        series = random.normal(size=(256, 512)).astype(np.float32)
        series[100:140, 256:259] += peak
        for start in shifts:
            page = series[:, start : start + 256]
            page = ((page - page.min()) / np.ptp(page) * 255).astype(np.uint8)
            pages.append(page.reshape(resolution, factor, resolution, factor).mean(axis=(1, 3)).astype(np.uint8))
    return np.stack(pages), np.repeat(np.arange(n_events), len(shifts))


def datasets(tmp_path, *sets: np.ndarray) -> list[DMTimeImages]:
    return [
        DMTimeImages([save(tmp_path / f"{number}.npy", images)], np.zeros(len(images), np.int64), images.shape[1])
        for number, images in enumerate(sets)
    ]


def components(tmp_path, *sets: np.ndarray, **options) -> np.ndarray:
    """Which images show the same data, as numbers in the order of their first images."""
    component = find_shared_data(datasets(tmp_path, *sets), **options).component
    return join_groups(np.arange(len(component)), component)


@pytest.mark.parametrize(
    ("peak", "resolution"), [(0.0, 256), (50.0, 256), (5.0, 128), (50.0, 128), (0.0, 32), (20.0, 32)]
)
def test_pages_of_one_event_are_found_at_any_shift_scale_size_and_order(tmp_path, peak, resolution):
    """Shifts that are no multiple of a pixel, as of create_dataset.py --shifts 24."""
    shifts = np.unique(np.round(np.linspace(0, 255, 24)).astype(int))
    pages, events = candidate_pages(4, shifts, peak, resolution)
    order = np.random.default_rng(1).permutation(len(pages))
    found = components(tmp_path, pages[order])
    assert np.array_equal(found, join_groups(events[order], np.arange(len(pages))))


@pytest.mark.parametrize("resolution", [128, 64, 32])
def test_copies_shifted_by_half_a_pixel_are_found_between_sets(tmp_path, resolution):
    """The pages of two files start half a pixel apart, or half a page and half a pixel."""
    half_pixel, n_found, shared = 128 // resolution, 0, None
    for shift in (half_pixel, 128 - half_pixel):
        pages, _ = candidate_pages(30, np.array([20, 20 + shift]), 10.0, resolution)
        shared = find_shared_data(datasets(tmp_path, pages[::2], pages[1::2]), only_between=True)
        assert (np.abs(np.diff(shared.links)) == 30).all()
        n_found += len(shared.links)
    assert n_found >= (57 if resolution == 32 else 60)
    assert shared.missed < 0.01


def bright_pages(resolution: int, seed: int) -> np.ndarray:
    """Pages of one bright, short pulse in every position, and noise that is faint beside it but not lost in truncation."""
    random, row = np.random.default_rng(seed), np.arange(resolution) - resolution / 2
    pages = []
    for start in np.linspace(-1, 1, 20) * resolution / 8:
        time = np.arange(resolution) - resolution / 2 - start
        width = 1 + 0.3 * np.abs(row[:, None])
        pulse = 60 * np.clip(width / 2 + 0.5 - np.abs(time - row[:, None]), 0, 1) / np.sqrt(width)
        pages.append(60 + 5 * (random.normal(size=(resolution, resolution)) + pulse))
    return np.clip(pages, 0, 255).astype(np.uint8)


def test_bright_pulses_of_different_observations_are_not_the_same_data(tmp_path):
    """Pulses at the same DM and in the same place: only the noise beside them differs."""
    for resolution in (64, 32):
        sets = [bright_pages(resolution, seed) for seed in (0, 1)]
        assert np.array_equal(components(tmp_path, *sets, only_between=True), np.arange(40))


def test_independent_pages_with_the_same_pulse_are_separate_events(tmp_path):
    """The pulses look alike, and a column is even the same, but the noise around them differs."""
    for resolution in (256, 32):
        pages = candidate_pages(20, np.array([120, 0]), 20.0, resolution)[0]
        pages[::2, :, resolution // 2] = pages[0, :, resolution // 2]
        assert np.array_equal(components(tmp_path, pages[::2]), np.arange(20))


def sky(n_pages: int, n_samples: int, resolution: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pages (uint8) cut at random from noise that is scaled once, and the start sample of each."""
    random = np.random.default_rng(seed)
    series = (60 + 10 * random.normal(size=(resolution, n_samples))).astype(np.uint8)
    starts = random.integers(0, n_samples - resolution, n_pages)
    return np.stack([series[:, start : start + resolution] for start in starts]), starts


@pytest.mark.parametrize("resolution", [32, 256])
def test_images_that_share_columns_are_joined_in_any_order(tmp_path, resolution):
    """Two pages that share half of their columns or more are one event; disjoint ones, without a chain, are two."""
    pages, starts = sky(40, 60 * resolution, resolution)
    found = components(tmp_path, pages)
    order = np.argsort(starts)
    for before, after in zip(order, order[1:]):
        apart = starts[after] - starts[before]
        if apart <= resolution // 2:
            assert found[before] == found[after]
        if apart >= resolution:
            assert found[before] != found[after]
    assert len(np.unique(found)) < 40
    both = components(tmp_path, pages[:20], pages[20:], only_between=True)
    assert len(np.unique(found)) < len(np.unique(both)) < 40


def test_images_without_noise_are_counted_and_join_nothing(tmp_path):
    """Blank images, and those with bright pixels on a blank page, say nothing about where they come from."""
    pages = np.zeros((12, 64, 64), np.uint8)
    pages[np.arange(12), np.arange(12), :] = 200
    pages[6:] = sky(6, 4000, 64)[0]
    shared = find_shared_data([DMTimeImages([save(tmp_path / "i.npy", pages)], np.zeros(12, np.int64), 64)])
    assert np.array_equal(shared.smooth, np.arange(12) < 6)
    assert len(np.unique(shared.component[:6])) == 6


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


def test_groups_that_divide_one_stretch_of_data_are_joined(tmp_path, config, caplog):
    """Every page has a group of its own, but pages 0 to 29 are shifted copies: they end in one split."""
    noise = (60 + 10 * np.random.default_rng(9).normal(size=(32, 90))).astype(np.uint8)
    pages = np.load(tmp_path / "set_32x32.npy")
    pages[:30] = [noise[:, 2 * shift : 2 * shift + 32] for shift in range(30)]
    save(tmp_path / "set_32x32.npy", pages)
    save(tmp_path / "groups.npy", np.arange(60))
    splits = load_splits(config(groups="groups.npy"))
    assert (splits["validation"].indices < 30).all() or (splits["validation"].indices >= 30).all()
    assert "15 of the 30 groups with a Pulse show the same data as another one, such as images 1 and 3" in caplog.text
    assert np.array_equal(splits["validation"].indices, load_splits(config())["validation"].indices)


def test_groups_of_another_order_are_named_before_the_split_fails(tmp_path, config, caplog):
    """Each event has three copies; the shuffled groups connect all of them into one event, which cannot be split."""
    pages = sky(20, 40_000, 32)[0]
    save(tmp_path / "set_32x32.npy", np.repeat(pages, 3, axis=0))
    save(tmp_path / "labels.npy", np.arange(60) // 30)
    save(tmp_path / "groups.npy", np.random.default_rng(0).permutation(np.arange(60) // 3))
    with pytest.raises(InputError, match="the validation split would have no"):
        load_splits(config(groups="groups.npy"))
    assert "groups with a Pulse show the same data as another one" in caplog.text


def test_groups_are_those_of_their_file(tmp_path, config):
    """Two sets that both count from 0: event 0 of one is not event 0 of the other."""
    for name in ("a", "b"):
        save(tmp_path / f"{name}.npy", sky(20, 40_000, 32, seed=ord(name))[0])
        save(tmp_path / f"{name}_labels.npy", np.arange(20) // 10)
        save(tmp_path / f"{name}_groups.npy", np.arange(20) // 5)
    files = {key: [f"a{key}.npy", f"b{key}.npy"] for key in ("", "_labels", "_groups")}
    splits = load_splits(
        config(files_by_resolution={"32": files[""]}, labels=files["_labels"], groups=files["_groups"])
    )
    assert sum(len(np.unique(split.events)) for split in splits.values()) == 8


def test_groups_of_the_description_are_used_where_the_config_names_none(tmp_path, config, caplog):
    caplog.set_level(logging.INFO)
    pages = sky(40, 40_000, 32)[0]
    save(tmp_path / "my_training_32x32.npy", pages), save(tmp_path / "my_labels_training.npy", np.arange(40) // 20)
    save(tmp_path / "my_groups_training.npy", np.arange(40) // 10)
    description = {
        "files_by_resolution": {"32": "my_training_32x32.npy"}, "labels": "my_labels_training.npy",
        "groups": "my_groups_training.npy", "normaliser": "minmax", "dms": None, "tsamp_s": None, "page_s": None,
        "n_images": 40, "classes": {"Pulse": 20, "Artefact": 20}, "n_events": 4, "pulse_free_hours": None,
        "origin": [], "version": "0",
    }  # fmt: skip
    (tmp_path / "my_set.json").write_text(json.dumps(description))
    splits = load_splits(config(files_by_resolution={"32": "my_training_32x32.npy"}, labels="my_labels_training.npy"))
    assert len(splits["validation"].indices) == 20 and "my_groups_training.npy, as the description" in caplog.text


def test_what_was_read_is_reported_and_a_split_that_is_not_proven_is_named(tmp_path, config, caplog):
    caplog.set_level(logging.INFO)
    save(tmp_path / "snr.npy", np.where(np.arange(60) % 2, np.arange(60.0), np.nan))
    load_splits(config(snr="snr.npy"))
    lines = caplog.text.splitlines()
    table = {" ".join(line.split()[:-2]): line.split()[-2:] for line in lines if len(line.split()) > 2}
    assert table["images"] == ["48", "12"] and table["Pulse"] == ["24", "6"]
    assert "NOT PROVEN" not in caplog.text and "0 of 60 images have too little noise" in caplog.text

    pages = np.load(tmp_path / "set_32x32.npy")
    pages[:30] //= 40
    save(tmp_path / "set_32x32.npy", pages)
    load_splits(config())
    assert "the split is NOT PROVEN by the pixels" in caplog.text and "30 of 60 images have too" in caplog.text
    caplog.clear()
    save(tmp_path / "groups.npy", np.arange(60) // 2)
    load_splits(config(groups="groups.npy"))
    assert "NOT PROVEN" not in caplog.text


def test_images_are_compared_once_and_again_when_one_has_changed(tmp_path, config, monkeypatch):
    searches = []
    search = shared_data_cache.find_shared_data
    monkeypatch.setattr(shared_data_cache, "find_shared_data", lambda *a, **k: searches.append(1) or search(*a, **k))
    first = load_splits(config())
    cache = cache_path(first["training"].dataset)
    again = load_splits(config())
    assert len(searches) == 1 and cache.parent == tmp_path
    assert np.array_equal(first["validation"].indices, again["validation"].indices)

    pages = np.load(tmp_path / "set_32x32.npy")
    pages[[7, 8]] = pages[[8, 7]]
    save(tmp_path / "set_32x32.npy", pages)
    load_splits(config())
    assert len(searches) == 2
    for damaged in (cache.read_bytes()[:-40], b"", pages.tobytes()):
        cache.write_bytes(damaged)
        load_splits(config())
    assert len(searches) == 5
    load_splits(config())
    assert len(searches) == 5

    content = dict(np.load(cache))
    wrong = [{"links": np.array([[0, 60]])}, {"links": np.array([[-1, 0]])}, {"links": np.array([[0, 30]])}]
    for part in [*wrong, {"component": content["component"] - 1}, {"missed": np.array(np.nan)}]:
        np.savez(cache, **content | part)
        load_splits(config())
    assert len(searches) == 10

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    cache.unlink()
    monkeypatch.setattr(shared_data_cache, "atomic_writer", refuse)
    load_splits(config())
    assert len(searches) == 11 and not cache.exists()


@pytest.fixture(scope="module")
def made_sets(tmp_path_factory):
    """Sets of the project's own scripts: few shifts of many pulses, all shifts of few; two normalisers, four sizes."""
    folder = tmp_path_factory.mktemp("sets")
    for name, seconds, pulses, options in (("few", 12, 24, ["--shifts", 24]), ("all", 5, 8, [])):
        observation = folder / f"{name}.fil"
        run_here(simulate_observation, observation, "--duration-s", seconds, "--pulses", pulses)
        for normaliser in ("minmax", "robust"):
            done = run_here(
                create_dataset, observation, "--normaliser", normaliser, "--output-dir", folder, *options,
                "--name", f"{name}_{normaliser}", "--resolutions", 256, 128, 64, 32,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    return folder


def shuffled_copy(made_sets: Path, name: str, resolution: int, folder: Path, shuffled: bool) -> dict:
    """Copy a set without its description, in order or shuffled, and with a wrong groups file; its training config."""
    prefix = made_sets / f"{name}_DM_time_dataset_realbased"
    size = "" if resolution == 256 else f"_{resolution}x{resolution}"
    images = np.load(f"{prefix}_training{size}.npy")
    order = np.random.default_rng(5).permutation(len(images)) if shuffled else np.arange(len(images))
    save(folder / "images.npy", images[order]), save(folder / "wrong.npy", order)
    for kind in ("labels", "groups"):
        save(folder / f"{kind}.npy", np.load(f"{prefix}_{kind}_training.npy")[order])
    return {
        "path_to_files": "./", "resolution": resolution, "model_name": "DM_time_binary_classificator_241002_3",
        "files_by_resolution": {str(resolution): "images.npy"}, "labels": "labels.npy", "device": "cpu",
        "normaliser": name.split("_")[1], "num_epochs": 3, "learning_rate": 1e-3,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("resolution", [256, 128, 64, 32])
@pytest.mark.parametrize("name", ["few_minmax", "few_robust", "all_minmax", "all_robust"])
def test_sets_of_the_scripts_are_split_without_groups_as_with_them(
    made_sets, tmp_path, caplog, name, resolution, shuffled
):
    """The same split, and hence the same accuracy, or a warning; also with a group for every image."""
    content = shuffled_copy(made_sets, name, resolution, tmp_path, shuffled)
    splits = {}
    for groups in ("groups.npy", "wrong.npy", None):
        (tmp_path / "config.json").write_text(json.dumps(content | {"groups": groups}))
        splits[groups] = load_splits(load_config(tmp_path / "config.json", TrainingConfig))
    assert "NOT PROVEN" not in caplog.text
    true = np.load(tmp_path / "groups.npy")
    for groups, split in splits.items():
        parts = [set(true[split[part].indices]) for part in ("training", "validation")]
        assert not parts[0] & parts[1], groups
        assert np.array_equal(split["validation"].indices, splits["groups.npy"]["validation"].indices)


@pytest.mark.slow
def test_the_validation_accuracy_without_groups_is_that_with_them(made_sets, tmp_path):
    content = shuffled_copy(made_sets, "few_robust", 32, tmp_path, shuffled=True)
    accuracies = []
    for groups in ("groups.npy", None):
        (tmp_path / "config.json").write_text(json.dumps(content | {"groups": groups}))
        done = run_here(training, tmp_path / "config.json")
        line = next(line for line in done.stdout.splitlines() if line.startswith("validation:"))
        accuracies.append(float(line.split()[-1]))
    assert abs(accuracies[0] - accuracies[1]) <= 0.02
