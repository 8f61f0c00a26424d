"""min_snr, the lowest S/N of an event: with and without a candidate classifier, on filterbanks and on single pages."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier import run_inference
from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.formats.sigproc import Header
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.settings import FrontEndSettings
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import simulate
from pipeline_classifier.simulation.pulses import Pulse

HEADER = Header(nchans=64, nbits=8, tsamp=4.096e-4, fch1=1530.0, foff=-5.0, tstart=59000.0)
DMS = 2.0 * np.arange(64)
PULSES = [Pulse(0.2, 56.0, 12.0, 2.0), Pulse(0.6, 30.0, 40.0, 2.0)]
DEFAULT = PipelineConfig.model_fields["min_snr"].default


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    """0.8 s with two pulses, of S/N 12 and 40."""
    path = tmp_path_factory.mktemp("observation") / "two.fil"
    simulate(path, HEADER, 8 * 256, PULSES, Rfi(), seed=4)
    return path


@pytest.fixture(scope="module")
def pages(observation) -> Path:
    """The eight pages of the observation."""
    path = observation.with_name("pages.npy")
    np.save(path, np.concatenate([b.pages for b in FilterbankPages(observation, FrontEndSettings(DMS)).batches(64)]))
    return path


def found(folder: Path, *what: object, **keys: object) -> list[tuple[float, float]]:
    """DM and S/N of the events of a search in which every page and every peak counts as a pulse."""
    keys = {"threshold": 0.0, "ndm": 64, "ddm": 2.0, "output_dir": "out"} | keys
    (folder / "config.json").write_text(json.dumps(keys))
    words = ["-c", folder / "config.json", *what, "--no-plots"]
    result = run_inference.run(run_inference.get_parser().parse_args(list(map(str, words))))
    assert result.summary.events == len(result.events)
    return [(event.dm_pc_cm3, event.snr) for event in result.events]


@pytest.mark.parametrize(
    "keys", [{"candidate_classifier": None}, {"event_threshold": 0.0}], ids=["pages decide", "candidates decide"]
)
def test_no_event_of_a_filterbank_is_below_min_snr(observation, tmp_path, keys):
    def search(**more: float) -> list[tuple[float, float]]:
        return found(tmp_path, "--filterbank", observation, **keys, **more)

    assert [dm for dm, _ in search()] == pytest.approx([56.0, 30.0], abs=4)
    [(dm, snr)] = search(min_snr=20.0)
    assert dm == pytest.approx(30, abs=4) and snr >= 20
    assert search(min_snr=snr) == [(dm, snr)], "the limit itself is an event"
    assert search(min_snr=snr + 1e-6) == []


def test_noise_gives_an_event_only_below_the_default(tmp_path):
    simulate(tmp_path / "noise.fil", HEADER, 2048, [], Rfi(), seed=4)
    what = ("--filterbank", tmp_path / "noise.fil")
    assert found(tmp_path, *what, candidate_classifier=None) == []
    [(_, snr)] = found(tmp_path, *what, candidate_classifier=None, min_snr=0.0)
    assert 3 < snr < DEFAULT


def test_without_a_min_snr_every_page_with_a_pulse_gives_an_event(pages, tmp_path):
    events = found(tmp_path, "--pages", pages)
    assert len(events) == 8 and sum(snr < DEFAULT for _, snr in events) > 3


@pytest.mark.parametrize("min_snr, dms", [(DEFAULT, [56.0, 30.0]), (20.0, [30.0])])
def test_a_min_snr_of_the_config_holds_for_pages_too(pages, tmp_path, min_snr, dms):
    """Also the default, if the config has it."""
    events = found(tmp_path, "--pages", pages, min_snr=min_snr)
    assert [dm for dm, _ in events] == pytest.approx(dms, abs=4) and all(snr >= min_snr for _, snr in events)
