"""The decision: thresholds from config, options and checkpoints, or by the false positives per hour stored in these."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_classifier import run_inference
from pipeline_classifier.config import load_pipeline_config
from pipeline_classifier.detection.decision import page_interval_s
from pipeline_classifier.detection.search import SearchResult
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.settings import FrontEndSettings
from pipeline_classifier.frontend.sources import ArrayPages
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from single_pulse_classifier_training import evaluate
from single_pulse_classifier_training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.training_models import build_model
from tests.command_line import run_here

MODEL_NAME = "DM_time_binary_classificator_241002_3_GAP"
DMS = 0.5 * np.arange(256)
TSAMP = 1e-3
PAGE_S = 256 * TSAMP
STORED = [
    {"threshold": 0.3, "false_per_hour": 1000.0, "page_s": PAGE_S},
    {"threshold": 0.6, "false_per_hour": 100.0, "page_s": PAGE_S},
    {"threshold": 0.9, "false_per_hour": 10.0, "page_s": PAGE_S},
]


def grey_network() -> torch.nn.Module:
    """A network for images of one grey level v: the logit of Pulse over Artefact is (v - 128) / 16."""
    model = build_model(MODEL_NAME, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for convolution in (model.conv1, model.conv2, model.conv3):
            convolution.weight[0, 0, 2, 2] = 1.0
        model.fc2.weight[1, 0], model.fc2.bias[1] = 1 / 16, -8.0
    return model


@pytest.fixture
def config(tmp_path) -> Path:
    """A config whose model stores three thresholds."""
    save_checkpoint(tmp_path / "grey.pth", Checkpoint(grey_network(), MODEL_NAME, 32, thresholds=STORED, threshold=0.5))
    keys = {"path_to_models": "./", "name_of_the_model": "grey.pth", "candidate_classifier": None, "output_dir": "out"}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    return tmp_path / "config.json"


def change(config: Path, **keys: object) -> Path:
    config.write_text(json.dumps(json.loads(config.read_text()) | keys))
    return config


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    """Ten pages of noise, each of a quarter of a second."""
    path = tmp_path_factory.mktemp("observation") / "noise.fil"
    simulate(path, replace(EFFELSBERG, tsamp=TSAMP), 2560, [], Rfi(), seed=1)
    return path


def grey_pages(path: Path, levels: np.ndarray) -> Path:
    """Images of one grey level each, with a corner that the network does not see: no page is constant."""
    images = np.broadcast_to(levels[:, None, None].astype(np.uint8), (len(levels), 256, 256)).copy()
    images[:, :8, :8] = np.where(levels > 128, 0, 255)[:, None, None]
    np.save(path, images)
    return path


def search(*options: object) -> SearchResult:
    return run_inference.run(run_inference.get_parser().parse_args([*map(str, options), "--no-plots"]))


@pytest.mark.parametrize(
    ("rate", "overlap", "threshold", "expected"),
    [
        (1000, 0.0, 0.3, 1000),
        (999, 0.0, 0.6, 100),
        (10, 0.0, 0.9, 10),
        (100, 0.5, 0.9, 20),  # twice the pages an hour: 0.6 would let 200 through
        (200, 0.5, 0.6, 200),
    ],
)
def test_the_lowest_threshold_at_the_page_length_of_the_file(config, observation, rate, overlap, threshold, expected):
    change(config, page_overlap=overlap)
    result = search("-c", config, "--filterbank", observation, "--max-false-per-hour", rate)
    assert result.summary.threshold == threshold
    assert result.summary.false_per_hour == pytest.approx(expected)
    np.testing.assert_array_equal(result.predictions, result.probabilities >= threshold)


def test_the_interval_of_pages(observation, tmp_path):
    assert page_interval_s(FilterbankPages(observation, FrontEndSettings(DMS)).layers) == pytest.approx(PAGE_S)
    assert page_interval_s(FilterbankPages(observation, FrontEndSettings(DMS, n_time=128)).layers) == pytest.approx(
        PAGE_S / 2
    )
    assert page_interval_s(FilterbankPages(observation, FrontEndSettings(DMS, overlap=0.75)).layers) == pytest.approx(
        PAGE_S / 4
    )
    assert page_interval_s(FilterbankPages(observation, FrontEndSettings(DMS, n_time=2000)).layers) == pytest.approx(
        2.0
    ), "the last step is short"
    assert math.isnan(page_interval_s(ArrayPages(grey_pages(tmp_path / "pages.npy", np.array([9, 200])), DMS).layers))


def test_a_batch_of_pages_takes_the_rates_as_stored(config, tmp_path):
    pages = grey_pages(tmp_path / "pages.npy", np.array([100, 125, 140, 150, 200]))
    result = search("-c", config, "--pages", pages, "--max-false-per-hour", 100)
    assert result.summary.threshold == 0.6 and result.summary.false_per_hour == 100
    assert result.predictions.tolist() == [0, 0, 1, 1, 1]
    assert search("-c", config, "--pages", pages, "--max-false-per-hour", 5000).predictions.tolist() == [0, 1, 1, 1, 1]


def test_options_beat_the_config(config, tmp_path):
    pages = grey_pages(tmp_path / "pages.npy", np.array([100, 200]))

    def threshold(*options: object) -> float:
        return search("-c", config, "--pages", pages, *options).summary.threshold

    assert threshold() == 0.5, "the checkpoint's"
    change(config, max_false_per_hour=10)
    assert threshold() == 0.9
    assert threshold("--max-false-per-hour", 1000) == 0.3
    assert threshold("--threshold", 0.25) == 0.25
    change(config, max_false_per_hour=None, threshold=0.7)
    assert threshold() == 0.7
    assert threshold("--max-false-per-hour", 100) == 0.6


def test_the_chosen_threshold_is_printed_in_full(config, tmp_path):
    checkpoint = load_checkpoint(tmp_path / "grey.pth", "cpu")
    checkpoint.thresholds = [{"threshold": 0.99999976, "false_per_hour": 3.0}]
    save_checkpoint(tmp_path / "grey.pth", checkpoint)
    pages = grey_pages(tmp_path / "pages.npy", np.array([100, 200]))
    done = run_here(run_inference, "-c", config, "--pages", pages, "--max-false-per-hour", 3)
    assert done.returncode == 0, done.stderr
    summary = json.loads((config.parent / "out" / "summary_pages.json").read_text())
    assert summary["threshold"] == 0.99999976 and summary["false_per_hour"] == 3
    assert "0.99999976" in done.stdout


def test_a_rate_out_of_reach_names_the_stored_ones(config, observation):
    change(config, page_overlap=0.5)
    with pytest.raises(InputError, match="max_false_per_hour 19 .*20, 200, 2000"):
        search("-c", config, "--filterbank", observation, "--max-false-per-hour", 19)
    assert list((config.parent / "out").iterdir()) == []


def test_a_model_without_thresholds(config, observation):
    save_checkpoint(config.parent / "grey.pth", Checkpoint(grey_network(), MODEL_NAME, 32))
    with pytest.raises(InputError, match=r"max_false_per_hour 100 .*evaluate\.py"):
        search("-c", config, "--filterbank", observation, "--max-false-per-hour", 100)


@pytest.mark.parametrize("rate", [0, -1, "inf", "nan"])
def test_an_impossible_rate(config, observation, rate):
    with pytest.raises(InputError, match=f"--max-false-per-hour must be a positive number, got {rate}"):
        search("-c", config, "--filterbank", observation, "--max-false-per-hour", rate)


@pytest.mark.parametrize("keys", [{"max_false_per_hour": 0}, {"max_false_per_hour": "10"},
                                  {"max_false_per_hour": 10, "threshold": 0.5}], ids=str)  # fmt: skip
def test_a_mistake_in_the_config_is_named(config, keys):
    with pytest.raises(InputError, match="max_false_per_hour.*(above 0|number|may be set)") as error:
        load_pipeline_config(change(config, **keys))
    assert "\n" not in str(error.value) and "config.json" in str(error.value)


def test_threshold_and_rate_exclude_each_other(config, capsys):
    options = ["-c", str(config), "--threshold", "0.5", "--max-false-per-hour", "10"]
    with pytest.raises(SystemExit) as leaving:
        run_inference.get_parser().parse_args(options)
    assert leaving.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_what_evaluate_stores_is_what_the_search_uses(config, tmp_path, monkeypatch):
    """From images to thresholds to a search: as many artefacts pass as the rate allows, neither more nor fewer."""
    random = np.random.default_rng(3)
    levels = random.permutation(np.tile(np.arange(20, 236), 2))
    labels = (random.random(len(levels)) < 1 / (1 + np.exp(-(levels - 128) / 16 / 3))).astype(np.int64)
    np.save(tmp_path / "set.npy", np.broadcast_to(levels[:, None, None].astype(np.uint8), (len(levels), 32, 32)))
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "groups.npy", np.arange(len(levels)))
    keys = {"path_to_files": "./", "files_by_resolution": {"32": "set.npy"}, "labels": "labels.npy", "resolution": 32,
            "groups": "groups.npy", "model_name": MODEL_NAME, "path_to_images": "images", "batch_size": 64}  # fmt: skip
    (tmp_path / "training.json").write_text(json.dumps(keys))
    sky = np.arange(30, 230)
    np.save(tmp_path / "sky.npy", np.broadcast_to(sky[:, None, None].astype(np.uint8), (len(sky), 32, 32)))
    options = ["training.json", "grey.pth", "--pulse-free", "sky.npy", "--page-s", "18"]  # an hour
    monkeypatch.chdir(tmp_path)
    evaluate.run(evaluate.get_parser().parse_args(options))

    pages = grey_pages(tmp_path / "pages.npy", sky)
    for rate in (100, 30, 10, 1):
        result = search("-c", config, "--pages", pages, "--max-false-per-hour", rate)
        assert result.predictions.sum() == rate
    default = search("-c", config, "--pages", pages)
    assert default.predictions.tolist() == (sky >= 128).tolist(), "the decision at 0.5 is as before the calibration"
    assert load_checkpoint(tmp_path / "grey.pth", "cpu").temperature > 1.5


def test_pages_and_events_have_thresholds_of_their_own(observation, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"output_dir": "out"}))

    def decided(*options: object) -> tuple[float, float]:
        summary = search("-c", config, "--filterbank", observation, *options).summary
        return summary.threshold, summary.event_threshold

    page, event = decided()
    assert decided("--threshold", 0.5) == (0.5, event) and decided("--event-threshold", 0.75) == (page, 0.75)
    change(config, event_threshold=0.6)
    assert decided() == (page, 0.6) and decided("--event-threshold", 0.7) == (page, 0.7)
    rated = search("-c", config, "--filterbank", observation, "--max-false-per-hour", 10).summary
    assert rated.threshold == page and rated.event_threshold > 0.2 and rated.false_per_hour <= 10
    lowest = "the candidate classifier has thresholds for .*; 0.5 per hour needs at least 2 h .*, got 1 h"
    with pytest.raises(InputError, match=lowest):
        search("-c", config, "--filterbank", observation, "--max-false-per-hour", 0.5)
    with pytest.raises(InputError, match="only one of --max-false-per-hour and --event-threshold"):
        search("-c", config, "--max-false-per-hour", 10, "--event-threshold", 0.5)


def test_what_a_threshold_does_not_change_is_said(observation, tmp_path, caplog):
    """With a candidate classifier, a rate is one of events and the threshold of pages does not choose events."""
    caplog.set_level(logging.INFO)
    config = tmp_path / "config.json"

    def said(keys: dict, *options: object) -> list[str]:
        config.write_text(json.dumps({"output_dir": "out"} | keys))
        caplog.clear()
        search("-c", config, *(options or ("--filterbank", observation)))
        return [record.message for record in caplog.records if "threshold" in record.message]

    assert said({}) == [] and said({"event_threshold": 0.5}) == []
    assert "threshold 0.5 is that of pages" in said({"threshold": 0.5})[0]
    assert "max_false_per_hour 10 is of events and chooses event_threshold" in said({"max_false_per_hour": 10})[0]
    without = {"candidate_classifier": None, "threshold": 0.5}
    assert said(without) == [] and "no effect" in said(without | {"event_threshold": 0.5})[0]
    pages = grey_pages(tmp_path / "pages.npy", np.array([100, 200]))
    assert "no effect" in said({"event_threshold": 0.5}, "--pages", pages)[-1]


def test_a_pair_that_was_not_measured_says_so_once(observation, tmp_path, caplog):
    models = Path(run_inference.__file__).with_name("models")
    pages, candidates = (load_checkpoint(models / name, "cpu") for name in ("default.pth", "candidate_classifier.pth"))
    keys = {"path_to_models": "./", "name_of_the_model": "default.pth", "candidate_classifier": "candidates.pth"}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(keys | {"output_dir": "out"}))

    def said(*options: object) -> tuple[str, float | None]:
        save_checkpoint(tmp_path / "default.pth", pages)
        save_checkpoint(tmp_path / "candidates.pth", candidates)
        caplog.clear()
        result = search("-c", config, "--filterbank", observation, *options)
        said = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert len(said) <= 1 and all("evaluate_pipeline.py --pulse-free" in message for message in said)
        return "".join(said), result.summary.false_per_hour

    pages.metrics["note"] = "other metadata, the same weights"
    expected = max(entry["false_per_hour"] for entry in candidates.thresholds if entry["false_per_hour"] <= 10)
    assert said("--max-false-per-hour", 10) == ("", pytest.approx(expected))
    pages.temperature = 1.5
    assert "default.pth with candidates.pth: the false events per hour were measured with other networks" in said()[0]
    pages.temperature = 1.0
    with torch.no_grad():
        candidates.model.fc2.bias[0] += 1e-6
    message, rate = said("--max-false-per-hour", 10)
    assert "were measured with other networks" in message and rate is None
    candidates.measured_pair = None
    assert "it is not recorded with which page classifier" in said()[0]
    candidates.thresholds = []
    assert "the false events per hour were never measured" in said()[0]
    with pytest.raises(InputError, match="candidate classifier has no thresholds .*evaluate_pipeline.py --pulse-free"):
        said("--max-false-per-hour", 10)


def test_a_model_for_candidates_is_refused_for_pages(observation, tmp_path):
    config = tmp_path / "config.json"
    keys = {
        "path_to_models": str(Path(run_inference.__file__).with_name("models")),
        "name_of_the_model": "candidate_classifier.pth",
    }
    config.write_text(json.dumps(keys))
    with pytest.raises(
        InputError,
        match="candidate_classifier.pth: must be a model for pages .*, got a DM_time_freq_time_candidate_classifier for candidates",
    ):
        search("-c", config, "--filterbank", observation)
