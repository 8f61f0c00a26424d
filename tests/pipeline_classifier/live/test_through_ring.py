"""The pages of a file sent through a real ring by another process: what the live search finds equals the direct way."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_classifier import run_pipeline_simulation as script
from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.live.replay import whole_pages
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.checkpoint import Checkpoint, save_checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.training_models import build_model
from tests.command_line import run_here

MODEL_NAME = "DM_time_binary_classificator_241002_3_GAP"
N_PAGES = 300


def dry_run(config: Path, observation: Path, out: Path, *options: object) -> subprocess.CompletedProcess:
    words = ["-c", config, "--filterbank", observation, "--output-dir", out, *options]
    if "--through-ring" not in options:
        return run_here(script, *words)
    command = [sys.executable, script.__file__, *words]
    return subprocess.run([*map(str, command)], cwd="/", check=False, capture_output=True, text=True)


def printed(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    """Whole pages, with pulses far apart, close together, and bright ones whose bow ties meet."""
    path = tmp_path_factory.mktemp("a name with 'quotes'") / "ob's.fil"
    times = [0.6, 1.4, 1.43, 2.5, 2.62, 4.0, 5.5, 5.52, 5.56, 7.0]
    pulses = [
        Pulse(time, 20.0 + 10 * number, 12.0 + 9 * (number % 4), 1.0 + number % 3) for number, time in enumerate(times)
    ]
    simulate(path, EFFELSBERG, 256 * N_PAGES, pulses, Rfi(), seed=2)
    return path


@pytest.fixture
def config(tmp_path, ring_key) -> Path:
    """A network with random weights."""
    torch.manual_seed(3)
    save_checkpoint(tmp_path / "model.pth", Checkpoint(build_model(MODEL_NAME, 32).eval(), MODEL_NAME, 32))
    keys = {
        "path_to_models": "./",
        "name_of_the_model": "model.pth",
        "key_output": f"{ring_key:x}",
        "candidate_classifier": None,
        "min_snr": 0.0,
    }
    (tmp_path / "config.json").write_text(json.dumps(keys))
    return tmp_path / "config.json"


def test_what_the_live_search_finds_equals_the_direct_way(config, observation, tmp_path, ring_key, parts_of):
    printed(dry_run(config, observation, tmp_path / "any", "--no-plots"))
    # Half of the pages are positive: runs of all lengths, and long chains of events within reach of each other.
    threshold = float(np.median(np.load(tmp_path / "any" / f"probabilities_{observation.stem}.npy")))
    direct, ring = tmp_path / "direct", tmp_path / "ring"
    options = ("--threshold", threshold)
    said = printed(dry_run(config, observation, direct, "--no-plots", *options))
    said_live = printed(dry_run(config, observation, ring, "--through-ring", *options))
    for kind in ("predictions", "probabilities"):
        values, expected = (np.load(folder / f"{kind}_{observation.stem}.npy") for folder in (ring, direct))
        assert values.dtype == expected.dtype and len(values) == N_PAGES
        assert values.tobytes() == expected.tobytes()
    rows, expected = ((folder / f"candidates_{observation.stem}.csv").read_text() for folder in (ring, direct))
    assert rows == expected and len(rows.splitlines()) > 20
    table = said.index(next(line for line in said if line.split()[0] == "time_s"))
    assert said[table:] == said_live[-len(said[table:]) :]
    status = json.loads((ring / f"status_{observation.stem}.json").read_text())
    assert status["state"] == "ended" and status["pages"] == N_PAGES and status["stopped"] == "end of data"
    assert not any(parts_of(ring_key).values()), "no ring is left"


def test_the_included_models_find_the_same_pulses_through_a_ring(observation, tmp_path, ring_key):
    """With the top of the band zapped, which the shape of a pulse depends on; a ring has no channels."""
    config = tmp_path / "config.json"
    keys = {"candidate_classifier": PipelineConfig().candidate_classifier_dmt, "zaplist": [[1480, 1600]]}
    config.write_text(json.dumps(keys | {"key_output": f"{ring_key:x}"}))
    tables = []
    for options in (["--no-plots"], ["--through-ring"]):
        printed(dry_run(config, observation, tmp_path / options[0], *options))
        tables.append((tmp_path / options[0] / f"candidates_{observation.stem}.csv").read_text())
    assert tables[0] == tables[1] and len(tables[0].splitlines()) > 8


def test_a_page_that_is_not_whole_is_left_out(config, tmp_path, ring_key):
    path = tmp_path / "short.fil"
    simulate(path, EFFELSBERG, 256 * 5 + 100, [], Rfi(), seed=2)
    printed(dry_run(config, path, tmp_path / "direct", "--no-plots"))
    printed(dry_run(config, path, tmp_path / "ring", "--through-ring"))
    probabilities = np.load(tmp_path / "direct" / "probabilities_short.npy")
    assert len(probabilities) == 6
    assert np.array_equal(np.load(tmp_path / "ring" / "probabilities_short.npy"), probabilities[:5])
    layered = load_pipeline_config(config).model_copy(update={"time_downsample": [1, 2]})
    with pytest.raises(InputError, match="2 layers"):
        whole_pages(path, layered)
