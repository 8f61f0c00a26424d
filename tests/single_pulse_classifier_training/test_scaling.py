"""The scaling of a set: a config that names another normaliser than its images have is noticed."""

import json

import numpy as np
import pytest

from pipeline_classifier.frontend.pages import to_images
from single_pulse_classifier_training.config import TrainingConfig, load_config
from single_pulse_classifier_training.split import load_splits


@pytest.mark.parametrize("made", ["minmax", "robust"])
@pytest.mark.parametrize("normaliser", ["minmax", "robust", "noise"])
def test_a_config_with_another_normaliser_gives_a_warning(tmp_path, caplog, made, normaliser):
    pages = np.random.default_rng(0).standard_normal((20, 32, 32)).astype(np.float32)
    pages[:10, 15:18, 15:18] += 12
    np.save(tmp_path / "images.npy", to_images(pages, made, 32)[0])
    np.save(tmp_path / "labels.npy", np.repeat(["Pulse", "Artefact"], 10))
    keys = {"files_by_resolution": {"32": "images.npy"}, "labels": "labels.npy", "normaliser": normaliser}
    keys |= {"path_to_files": ".", "resolution": 32, "model_name": "resnet18"}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    load_splits(load_config(tmp_path / "config.json", TrainingConfig))
    warned = f"images.npy: the images seem to be scaled by {made}, but the config has the normaliser {normaliser}"
    assert (warned in caplog.text) == ((made == "minmax") != (normaliser == "minmax"))
    assert ("seem to be scaled" in caplog.text) == (warned in caplog.text)
