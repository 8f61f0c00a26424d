"""Samples that are not finite, constant, or of an unusual scale cost no pulse elsewhere and change no S/N."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier import check_input, run_inference
from pipeline_classifier.config import DEFAULT_CONFIG
from pipeline_classifier.detection.search import LayerResult, samples_classified
from pipeline_classifier.formats.sigproc import FilterbankWriter
from pipeline_classifier.frontend.pages import PageGrid, page_starts
from pipeline_classifier.frontend.sources import Layer
from pipeline_classifier.simulation.observation import EFFELSBERG
from pipeline_classifier.simulation.pulses import Injector, Pulse
from tests.command_line import run_here

NSAMPLES, TSAMP = 16_000, EFFELSBERG.tsamp
PULSE = Pulse(0.6, 57.0, 17.0, 1.0)


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """Counts (n, 256) float32 with one pulse at 0.6 s, which sweeps until 0.66 s."""
    block = np.random.default_rng(3).standard_normal((NSAMPLES, 256), dtype=np.float32)
    Injector([PULSE], EFFELSBERG.frequencies, TSAMP, 0).add(block, 0)
    return 100 + 16 * block


def sample(time_s: float) -> int:
    return int(time_s / TSAMP)


def bad(kind: str, samples: np.ndarray) -> np.ndarray:
    """The samples with one fault."""
    block = samples.copy()
    if kind.startswith("value"):
        block[sample(0.95)] = float(kind.split()[1])
    elif kind == "most channels":
        block[sample(0.62), :200] = np.nan
    elif kind.startswith("scale"):
        block *= np.float32(kind.split()[1])
    elif kind.startswith("constant"):
        value, first, last = map(float, kind.split()[1:])
        block[sample(first) : sample(last)] = value
    elif kind.startswith("noise"):
        stretch = block[sample(0.8) : sample(1.1)]
        stretch[:] = float(kind.split()[1]) * np.random.default_rng(5).random(stretch.shape)
    elif kind == "half of the band":
        for time_s in np.arange(0.1, 1.6, 0.2):
            block[sample(time_s) : sample(time_s + 0.05), :128] = 0
    return block


def searched(
    path: Path, block: np.ndarray, zaplist: Sequence[Sequence[float]] = (), code: int = 0
) -> tuple[list[dict[str, str]], dict]:
    """Events, and run summary, of a search from the command line that ends with an exit code."""
    config = path.with_suffix(".json")
    config.write_text(json.dumps({"zaplist": zaplist, "path_to_models": str(DEFAULT_CONFIG.parent / "models")}))
    with FilterbankWriter(path, replace(EFFELSBERG, nbits=32)) as file:
        file.write(block[:, None])
    done = run_here(run_inference, "-c", config, "--filterbank", path, "--output-dir", path.parent, "--no-plots")
    assert done.returncode == code, done.stderr
    assert not code or f"{path}: to be classified, a page must be finite, not constant and" in done.stderr
    with open(path.parent / f"candidates_{path.stem}.csv", newline="") as file:
        events = list(csv.DictReader(file))
    return events, json.loads((path.parent / f"summary_{path.stem}.json").read_text())


@pytest.mark.parametrize(
    "kind, key",
    [
        ("value nan", "values_not_finite"),
        ("value -1e30", "values_not_finite"),
        ("value 3e38", "values_not_finite"),
        ("most channels", "values_not_finite"),
        ("scale 1e-30", None),
        ("scale 1e15", None),
        ("scale 1e34", None),
        ("constant 0 0.75 1.5", "values_constant"),
        ("constant 100 0.1 0.59", "values_constant"),
        ("constant 0 0.5 0.59", "values_constant"),
        ("half of the band", "values_constant"),
        ("noise 1e5", None),
        ("noise 1e7", None),
    ],
)
def test_the_pulse_keeps_its_snr(tmp_path, samples, kind, key):
    [expected], _ = searched(tmp_path / "whole.fil", samples)
    [event], summary = searched(tmp_path / "bad.fil", bad(kind, samples))
    assert abs(float(event["time_s"]) - float(expected["time_s"])) < 1e-3
    assert abs(float(event["dm_pc_cm3"]) - float(expected["dm_pc_cm3"])) <= 1.0
    assert float(event["snr"]) == pytest.approx(float(expected["snr"]), rel=0.07)
    for name in ("values_not_finite", "values_constant"):
        assert (summary.get(name, 0) > 0) == (name == key)


@pytest.mark.parametrize("value", [np.nan, 60.0])
def test_dead_channels_at_the_edges_of_the_band_are_those_of_a_zaplist(tmp_path, samples, value):
    """A pulse in 56 of 256 channels sweeps over less time, which the candidate classifier must know."""
    signal = np.zeros_like(samples)
    Injector([replace(PULSE, snr=30.0)], EFFELSBERG.frequencies, TSAMP, 0).add(signal, 0)
    whole = samples + 16 * signal
    dead = np.r_[0:100, 156:256]
    zaplist = [[frequency, frequency] for frequency in EFFELSBERG.frequencies[dead].tolist()]
    zapped, _ = searched(tmp_path / "zapped.fil", whole, zaplist)
    whole[:, dead] = value
    events, _ = searched(tmp_path / "dead.fil", whole)
    assert events == zapped and len(events) == 1 and float(events[0]["probability"]) > 0.9


@pytest.mark.parametrize("value", [np.nan, 7.0])
def test_an_observation_without_any_usable_page_is_an_error(tmp_path, value):
    events, summary = searched(tmp_path / "bad.fil", np.full((4000, 256), value, np.float32), code=2)
    assert not events and summary["pages_classified"] == summary["samples_searched"] == summary["duration_s"] == 0
    assert summary["samples_not_searched"] == summary["samples_read"] == summary["samples"] == 4000


def test_samples_that_are_in_no_classified_page_are_not_searched(tmp_path, samples):
    """From 0.4 s on everything is constant: the pages that begin later are not classified."""
    block = samples.copy()
    block[4000:] = 100
    _, summary = searched(tmp_path / "half.fil", block)
    predictions = np.load(tmp_path / "predictions_half.npy")
    assert 15 <= (predictions >= 0).sum() <= 17 and (predictions[17:] == -1).all()
    assert summary["samples_searched"] == 256 * (predictions >= 0).sum()
    assert summary["samples_searched"] + summary["samples_not_searched"] == summary["samples"] == NSAMPLES
    assert summary["duration_s"] == pytest.approx(summary["samples_searched"] * TSAMP, abs=1e-3)


def test_samples_of_overlapping_pages_and_several_layers_are_counted_once():
    """Compared with a mask of all samples; the last pages begin such that they end with the observation, or later."""
    draw = np.random.default_rng(0)
    for n in (100, 256, 3000, 5001):
        layers = []
        for factor, overlap in ((1, 0.5), (4, 0.0)):
            layer = Layer(PageGrid(np.arange(4.0), 256), page_starts(-(-n // factor), 256, overlap), factor)
            predictions = draw.choice([-1, 0, 1], len(layer.starts), p=[0.7, 0.2, 0.1]).astype(np.int32)
            layers.append(LayerResult(layer, predictions, predictions.astype(np.float32)))
        mask = np.zeros(n, bool)
        for result in layers:
            factor = result.layer.time_downsample
            for start in result.layer.starts[result.predictions >= 0]:
                mask[start * factor : (start + 256) * factor] = True
        assert samples_classified(layers, n) == mask.sum()


def test_check_input_warns_of_samples_that_are_not_finite(tmp_path, samples):
    with FilterbankWriter(tmp_path / "bad.fil", replace(EFFELSBERG, nbits=32)) as file:
        file.write(bad("value nan", samples)[:, None])
    done = run_here(check_input, tmp_path / "bad.fil")
    assert "not finite or out of range, and are not used" in done.stdout
