"""Sets of images with several channels: the description, what training reads of them, checkpoints and evaluation."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from single_pulse_classifier_training import convert_to_pytorch, evaluate, training
from single_pulse_classifier_training.augment import Jitter, augmentation
from single_pulse_classifier_training.channels import CHANNELS, DM_TIME
from single_pulse_classifier_training.checkpoint import load_checkpoint, save_checkpoint, weights_checksum
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.dataset import DMTimeImages, build_loader
from single_pulse_classifier_training.labelled_set import CANDIDATES, SetPaths, finish_set
from single_pulse_classifier_training.set_description import description_of
from single_pulse_classifier_training.training_models import TWO_TOWERS
from tests.command_line import run_here

SIDE, N_IMAGES = 32, 160
ONE_NETWORK = "DM_time_candidate_classifier"
ORIGIN = [{"file": "a.fil", "start_mjd": None, "duration_s": 1.0, "truth": "a_truth.csv"}]


def candidates(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) and labels; a pulse is in all sub-bands, an artefact in half of them and twice as bright."""
    random = np.random.default_rng(seed)
    images = 51 + 10.2 * random.normal(size=(N_IMAGES, len(CHANNELS), SIDE, SIDE))
    labels = random.permutation(np.arange(N_IMAGES) % 2)
    images[labels == 1, 0, :, 15:18] += 30
    images[labels == 0, 0, ::2, 15:18] += 60
    images[:, 1, 12:20, 14:18] += 60
    images[:, 0, 3] = images[:, 2, 3] = 0  # a sub-band without a good channel
    return images.clip(0, 255).astype(np.uint8), np.array(["Artefact", "Pulse"])[labels]


def write_set(folder: Path, name: str, images: np.ndarray, labels: np.ndarray, **facts: object) -> Path:
    """Write a set as create_candidate_dataset.py does; return its training config."""
    paths = SetPaths(folder, name, CANDIDATES, (SIDE,))
    np.save(paths.images[SIDE], images)
    columns = {"labels": labels, "groups": np.arange(len(labels)), "snr": np.full(len(labels), 9.0, np.float32)}
    known = {"normaliser": "noise", "dms": None, "tsamp_s": None, "page_s": None, "pulse_free_hours": None}
    return finish_set(paths, columns, known | {"origin": ORIGIN} | facts)["training"]


def images_of(config: Path) -> Path:
    return config.parent / json.loads(config.read_text())["files_by_resolution"][str(SIDE)]


def train(config: Path, *options: object, name: str = "changed", **changes: object):
    """Train one epoch, if not otherwise said, with changed keys of a config; None removes a key."""
    content = json.loads(config.read_text()) | {"num_epochs": 1, "patience": 9, "batch_size": 16, "augment": False}
    content |= {"path_to_checkpoints": f"./{name}/"} | changes
    path = config.with_name(f"{name}.json")
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    torch.set_num_threads(1)
    return run_here(training, path, *options)


def trained(folder: Path, model_name: str, name: str = "changed"):
    return load_checkpoint(folder / name / f"ch_point_{model_name}_{SIDE}" / "best.pth", "cpu")


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """The plots, which take longer than a small training, have tests of their own."""
    monkeypatch.setattr(training, "plot_training_history", lambda *_: None)
    monkeypatch.setattr(evaluate, "plot_evaluation", lambda *_: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Training config of a set of three channels; beside it "plain", the DM-time channel of the same images alone."""
    folder = tmp_path_factory.mktemp("channels")
    images, labels = candidates()
    write_set(folder, "plain", images[:, 1], labels)
    return write_set(folder, "three", images, labels, channels=list(CHANNELS))


def test_a_set_is_described_and_its_config_trains_the_two_towers(made):
    description = description_of(images_of(made))
    assert description.channels == list(CHANNELS)
    config = json.loads(made.read_text())
    assert (config["model_name"], config["input"]) == (TWO_TOWERS, "dmft")
    plain = json.loads((made.parent / "training_plain_candidates.json").read_text())
    assert plain["model_name"] == ONE_NETWORK and "input" not in plain
    assert "channels" not in json.loads((made.parent / "plain_DM_time_dataset_peaks_set.json").read_text())


@pytest.mark.parametrize(
    ("kind", "model_name", "channels", "separates"),
    [
        ("dmft", TWO_TOWERS, CHANNELS, True),
        ("ft", ONE_NETWORK, ("freq_time", "undispersed"), True),
        ("dmt", ONE_NETWORK, DM_TIME, False),
    ],
)
def test_an_input_separates_what_differs_in_its_channels(made, tmp_path, kind, model_name, channels, separates):
    done = train(made, name=kind, input=kind, model_name=model_name, num_epochs=5)
    assert done.returncode == 0, done.stderr
    checkpoint = trained(made.parent, model_name, kind)
    assert checkpoint.channels == channels and checkpoint.config["input"] == kind
    done = run_here(
        evaluate, made.with_name(f"{kind}.json"), checkpoint_path(made, kind, model_name), "--output-dir", tmp_path
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / f"metrics_{model_name}_{SIDE}_best_validation.json").read_text())
    assert content["roc_auc"] > 0.99 if separates else content["roc_auc"] < 0.8
    [none_passes] = [e["recall"] for e in content["recall_at_false_positives"] if e["false_positives"] == 0]
    assert none_passes > 0.9 if separates else none_passes < 0.5
    assert trained(made.parent, model_name, kind).channels == channels, "evaluate.py keeps them"


def checkpoint_path(made: Path, name: str, model_name: str) -> Path:
    return made.parent / name / f"ch_point_{model_name}_{SIDE}" / "best.pth"


def test_the_default_input_is_all_channels_where_there_is_a_frequency_time_channel(made):
    assert train(made, input=None).returncode == 0
    assert trained(made.parent, TWO_TOWERS).channels == CHANNELS
    plain = made.with_name("training_plain_candidates.json")
    assert train(plain).returncode == 0
    assert trained(made.parent, ONE_NETWORK).channels == DM_TIME


def test_the_dm_time_channel_alone_gives_the_same_weights_as_a_set_of_it(made):
    changes = {"input": "dmt", "model_name": ONE_NETWORK, "augment": True}
    assert train(made, name="one", **changes).returncode == 0
    plain = made.with_name("training_plain_candidates.json")
    assert train(plain, name="other", augment=True).returncode == 0
    one, other = (trained(made.parent, ONE_NETWORK, name) for name in ("one", "other"))
    assert weights_checksum(one.model) == weights_checksum(other.model)
    assert [e["checksum"] for e in one.trained_images] == [e["checksum"] for e in other.trained_images]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": "dmt"}, "must hold freq_time and dm_time, got dm_time"),
        ({"input": "both"}, "key 'input' must be 'dmt', 'ft' or 'dmft', got 'both'"),
        (
            {"input": "ft", "like": "plain"},
            "key 'input' must be 'dmt' for .*plain.* has no freq_time channel, got 'ft'",
        ),
        ({"test": "plain"}, "plain.*: the images must have the channels freq_time, .*, got none of the name freq_time"),
    ],
    ids=["network", "name", "plain", "test files"],
)
def test_what_does_not_fit_is_refused_in_a_sentence(made, changes, message):
    changes = dict(changes)
    like = made.with_name(f"training_{changes.pop('like', 'three')}_candidates.json")
    if "test" in changes:
        plain = json.loads(made.with_name("training_plain_candidates.json").read_text())
        changes = {"test_files": {key: plain[key] for key in ("files_by_resolution", "labels", "groups")}}
    done = train(like, **changes)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(message, done.stderr.splitlines()[-1]), done.stderr


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (["dm_time", "freq_time", "undispersed"], "key 'channels' must be some of freq_time, dm_time, undispersed, in"),
        (["freq_time", "undispersed"], "key 'channels' must hold dm_time"),
        (["freq_time", "dm_time"], r"must have the channels freq_time, dm_time, as in .*, got the shape \(160, 3,"),
        (None, r"must have the channels dm_time, as in .*, got the shape \(160, 3,"),
    ],
)
def test_a_description_that_does_not_fit_the_images_is_refused(made, tmp_path, channels, message):
    images, labels = candidates()
    config = write_set(tmp_path, "wrong", images, labels, channels=list(CHANNELS))
    path = tmp_path / "wrong_DM_time_dataset_peaks_set.json"
    content = json.loads(path.read_text()) | {"channels": channels}
    path.write_text(json.dumps({key: value for key, value in content.items() if value or key != "channels"}))
    with pytest.raises(InputError, match=message):
        description_of(images_of(config))
    assert train(config).returncode == 2


@pytest.mark.parametrize("channels", [CHANNELS, CHANNELS[:2], ("freq_time", "undispersed"), ("undispersed",), DM_TIME])
def test_a_batch_has_the_channels_that_are_asked_for(made, channels):
    images, _ = candidates()
    expected = images[:, [CHANNELS.index(name) for name in channels]]
    path = images_of(made)
    one = DMTimeImages([path], np.zeros(N_IMAGES, np.int64), SIDE, channels)
    two = DMTimeImages([path, path], np.zeros(2 * N_IMAGES, np.int64), SIDE, channels)
    chosen = [5, 2, 150]
    for dataset, indices in ((one, chosen), (two, [5, 2 + N_IMAGES, 150])):
        for workers in (0, 1) if channels == CHANNELS and dataset is one else (0,):
            [(batch, _)] = build_loader(dataset, [indices], workers)
            assert batch.is_contiguous() and np.array_equal(batch.numpy(), expected[chosen])
    assert np.array_equal(one[7][0].numpy(), expected[7])
    assert np.array_equal(np.concatenate([chunk for _, chunk in one.chunks(100)]), images[:, 1])
    assert one.checksum() == DMTimeImages([path], np.zeros(N_IMAGES, np.int64), SIDE).checksum()


def test_a_checkpoint_keeps_its_channels_and_is_checked(made, tmp_path):
    assert train(made, name="kept").returncode == 0
    path = checkpoint_path(made, "kept", TWO_TOWERS)
    checkpoint = load_checkpoint(path, "cpu")
    save_checkpoint(tmp_path / "copy.pth", checkpoint)
    again = load_checkpoint(tmp_path / "copy.pth", "cpu")
    images = 255 * torch.rand(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        assert again.channels == CHANNELS and torch.equal(again.model(images), checkpoint.model(images))
    content = torch.load(path, weights_only=True)
    for channels, message in (
        (
            CHANNELS[:2],
            r"tensor 'freq_time.stem.0.weight' must be .* with the channels freq_time, dm_time, got \(16, 2,",
        ),
        (DM_TIME, "must hold freq_time and dm_time, got dm_time"),
        (("dm_time", "freq_time"), "key 'channels' must be some of freq_time, dm_time, undispersed, in this order"),
        (("dm_time", "colour"), "key 'channels' must be some of"),
        ("dm_time", "key 'channels' must be"),
    ):
        torch.save(content | {"channels": channels}, tmp_path / "wrong.pth")
        with pytest.raises(InputError, match=message):
            load_checkpoint(tmp_path / "wrong.pth", "cpu")


def test_a_checkpoint_without_channels_is_of_the_dm_time_view(made, tmp_path):
    assert train(made.with_name("training_plain_candidates.json"), name="old").returncode == 0
    content = torch.load(checkpoint_path(made, "old", ONE_NETWORK), weights_only=True)
    assert content.pop("channels") == DM_TIME
    torch.save(content, tmp_path / "old.pth")
    assert load_checkpoint(tmp_path / "old.pth", "cpu").channels == DM_TIME
    done = run_here(evaluate, made.with_name("old.json"), tmp_path / "old.pth", "--keep-checkpoint")
    assert done.returncode == 0, done.stderr
    done = train(made, input="dmft", model_name=ONE_NETWORK, initial_weights=str(tmp_path / "old.pth"))
    assert done.returncode == 2 and "must be a network for the channels freq_time, dm_time, und" in done.stderr


def test_a_training_resumes_with_the_same_input_only(made):
    changes = {"input": "ft", "model_name": ONE_NETWORK, "augment": True}
    assert train(made, name="resumed", **changes).returncode == 0
    done = train(made, "--resume", name="resumed", **changes | {"input": "dmft"})
    assert done.returncode == 2 and "input must be 'ft' to resume" in done.stderr, done.stderr
    assert train(made, "--resume", name="resumed", **changes | {"num_epochs": 2}).returncode == 2  # the scheduler
    done = train(made, "--resume", name="resumed", **changes)
    assert done.returncode == 0, done.stderr

    # A training of an earlier version has no such key.
    plain = made.with_name("training_plain_candidates.json")
    assert train(plain, name="earlier").returncode == 0
    last = made.parent / "earlier" / f"ch_point_{ONE_NETWORK}_{SIDE}" / "last.pth"
    content = torch.load(last, weights_only=True)
    content["config"].pop("input"), content.pop("channels")
    torch.save(content, last)
    done = train(plain, "--resume", name="earlier")
    assert done.returncode == 0, done.stderr


def test_images_of_two_splits_that_show_the_same_data_are_found(made, tmp_path):
    images, labels = candidates(2)
    config = write_set(tmp_path, "own", images, labels, channels=list(CHANNELS))
    first, _ = candidates()
    images[3] = np.roll(first[9], 5, axis=2)
    write_set(tmp_path, "other", images, labels, channels=list(CHANNELS))
    names = json.loads(config.read_text())
    keys = ("files_by_resolution", "labels", "groups")
    other = json.loads((tmp_path / "training_other_candidates.json").read_text())
    done = train(config, **{key: names[key] for key in keys}, validation_files={key: other[key] for key in keys})
    assert done.returncode == 2 and "the split leaks" in done.stderr


def test_augmentation_moves_all_channels_alike_in_time_and_leaves_sub_bands_in_place():
    torch.manual_seed(0)
    rows = torch.arange(SIDE).float()
    images = torch.stack(
        [rows[:, None].expand(SIDE, SIDE), rows[None].expand(SIDE, SIDE), rows[None].expand(SIDE, SIDE)]
    )
    images[0, 5] = 0
    images = images.expand(6, 3, SIDE, SIDE) + 1.0
    images[:, 0, 5] = 0
    changed = Jitter(CHANNELS)(images)
    assert torch.equal(changed[:, 0], images[:, 0]), "each sub-band stays in its row"
    assert torch.equal(changed[:, 1], changed[:, 2]) and not torch.equal(changed[:, 1], images[:, 1])
    moved = Jitter(CHANNELS)(images.transpose(2, 3))
    assert not torch.equal(moved[:, 1], images.transpose(2, 3)[:, 1]), "the rows of the DM-time channel move"

    torch.manual_seed(1)
    alone = Jitter()(images[:, 1:2])
    torch.manual_seed(1)
    assert torch.equal(Jitter(CHANNELS)(images)[:, 1:2], alone)

    with pytest.raises(InputError, match="key 'augment' must be false"):
        augmentation(False, CHANNELS)
    noisy = augmentation(True, CHANNELS)(images)
    assert (noisy[:, 0, 5] == 0).all(), "a sub-band without a good channel stays unused"
    assert (noisy[:, 0, 6] != images[:, 0, 6]).any() and noisy.min() >= 0


def test_a_template_has_the_channels_of_its_network(tmp_path):
    done = run_here(convert_to_pytorch, "--template", TWO_TOWERS, "--resolution", SIDE, "-o", tmp_path / "t.pth")
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "t.pth", "cpu").channels == CHANNELS
