"""The dry run: simulates what is not there, finds its pulses, says so, and overwrites nothing that is not its own."""

import csv
import io
import json
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier import run_pipeline_simulation as script
from pipeline_classifier.detection.search import LayerResult, SearchResult
from pipeline_classifier.evaluation.recovery import compare
from pipeline_classifier.events import Event
from pipeline_classifier.formats.sigproc import Filterbank, write_header
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.frontend.settings import FrontEndSettings
from pipeline_classifier.frontend.sources import Layer
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, read_truth, simulate
from pipeline_classifier.simulation.pulses import Pulse
from tests.command_line import run_here

SHORT = ("--duration-s", 10, "--pulses", 12, "--seed", 3)


def dry_run(*options: object) -> subprocess.CompletedProcess:
    return run_here(script, *options)


def header_of(source: str) -> bytes:
    file = io.BytesIO()
    write_header(file, replace(script.EFFELSBERG, source_name=source))
    return file.getvalue()


def read_events(path: Path) -> list[Event]:
    integers = ("first_page", "last_page", "width_samples")
    with open(path, newline="") as file:
        return [
            Event(**{k: int(v) if k in integers else float(v) for k, v in row.items()}) for row in csv.DictReader(file)
        ]


def picture_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n") and content.rstrip().endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])


def test_what_is_simulated_is_found(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"name_of_the_filterbank": "absent.fil"}))
    out = tmp_path / "out"
    done = dry_run("-c", tmp_path / "config.json", "--output-dir", out, *SHORT)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*.fil")) == [], "simulated in the output folder, not where the config points"

    pulses = read_truth(out / "absent_truth.csv")
    source = FilterbankPages(out / "absent.fil", FrontEndSettings(0.5 * np.arange(256)))
    events = read_events(out / "candidates_absent.csv")
    recovery = compare(pulses, events, source.grid)
    bright = np.array([pulse.snr >= 10 for pulse in pulses])
    assert len(pulses) == 12 and bright.sum() >= 6
    assert recovery.found[bright].mean() >= 0.95 and recovery.false_events.sum() <= 1
    for number, pulse in zip(recovery.event_of_pulse, pulses):
        if number >= 0 and pulse.snr >= 12:
            assert abs(events[number].time_s - pulse.time_s) < 5e-3 + 2 * pulse.scattering_ms / 1e3

    assert Filterbank(out / "absent.fil").nsamples == round(10 / 102.4e-6)
    pictures = sorted(out.glob("event_absent_*.png"))
    assert len(pictures) == len(events) and all(min(picture_size(picture)) > 200 for picture in pictures)
    names = {
        "absent.fil",
        "absent_truth.csv",
        "candidates_absent.csv",
        "candidates_absent.cands",
        "heimdall_absent.csv",
        "predictions_absent.npy",
        "probabilities_absent.npy",
        "summary_absent.json",
        *(picture.name for picture in pictures),
    }
    assert {path.name for path in out.iterdir()} == names
    assert re.search(rf"injected pulses found {recovery.found.sum()} of 12\n", done.stdout)
    assert re.search(rf"false events {recovery.false_events.sum()} ", done.stdout)

    # Once more over its own files: with the same options, results are replaced; with another seed, they are kept.
    again = dry_run("-c", tmp_path / "config.json", "--output-dir", out, *SHORT)
    assert again.returncode == 0 and {path.name for path in out.iterdir()} == names
    again = dry_run("-c", tmp_path / "config.json", "--output-dir", out, "--duration-s", 3, "--pulses", 2, "--no-plots")
    assert again.returncode == 0, again.stderr
    assert len(read_truth(out / "absent_truth.csv")) == 2
    assert len(list(out.glob("candidates_absent.2*.csv"))) == 1
    assert len(np.load(out / "predictions_absent.npy")) == -(-round(3 / 102.4e-6) // 256)


@pytest.mark.parametrize("foreign_table", [False, True])
@pytest.mark.parametrize("content", [b"precious", header_of("B0531+21") + bytes(2560)], ids=["no header", "telescope"])
def test_a_file_that_was_not_simulated_is_not_overwritten(tmp_path, content, foreign_table):
    (tmp_path / "config.json").write_text(
        json.dumps({"path_to_filterbanks": "absent", "name_of_the_filterbank": "a.fil"})
    )
    (tmp_path / "a.fil").write_bytes(content)
    if foreign_table:
        (tmp_path / "a_truth.csv").write_text("mjd,dm\n59000.5,56.7\n")
    names = {path.name for path in tmp_path.iterdir()}
    done = dry_run("-c", tmp_path / "config.json", "--output-dir", tmp_path, *SHORT)
    assert (
        done.returncode == 2
        and "a.fil: must be a new or simulated file" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert (tmp_path / "a.fil").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_filterbank_that_is_asked_for_must_be_there(tmp_path):
    done = dry_run("--filterbank", tmp_path / "absent.fil", "--output-dir", tmp_path / "out")
    assert done.returncode == 2 and "absent.fil" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "option, value", [("--duration-s", "nan"), ("--duration-s", 0), ("--seed", -1), ("--threshold", 2)]
)
def test_impossible_options_end_in_one_sentence(tmp_path, option, value):
    (tmp_path / "config.json").write_text(json.dumps({"name_of_the_filterbank": "absent.fil"}))
    out = tmp_path / "out"
    done = dry_run("-c", tmp_path / "config.json", "--output-dir", out, option, value)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert option in done.stderr.splitlines()[-1]
    assert not out.exists() or list(out.iterdir()) == []


def test_pulses_after_the_end_of_an_interrupted_search_are_not_missed():
    """Of four pulses, the search came to the third; an event next to its end may be the pulse just behind it."""
    grid = PageGrid(0.5 * np.arange(256), 256, 1e-4, 59000.0, 1530.0, 1210.0)
    pulses = [Pulse(time_s, 50.0, 20.0, 1.0) for time_s in (1.0, 2.0, 3.0005, 4.0)]
    events = [Event(time_s, 59000.0, 50.0, 20.0, 1.0, 1.0, 0, 0, 10) for time_s in (1.0, 2.999)]
    layer = LayerResult(Layer(grid, np.arange(1)), np.zeros(1, np.int32), np.zeros(1, np.float32))
    for searched_s, expected in ((3.0, ["2 of 3", "0 (0.00 per minute)", "1 (not counted)"]), (5.0, ["2 of 4"])):
        result = SearchResult([layer], events, RunSummary(duration_s=searched_s, samples_read=round(searched_s * 1e4)))
        text = script.comparison(pulses, result, grid)
        assert all(part in text for part in expected), text
        assert ("not counted" in text) == (searched_s == 3.0)
    nothing = script.comparison(pulses, SearchResult([layer], [], RunSummary(duration_s=0.0, samples_read=0)), grid)
    assert "0 of 0" in nothing and "4 (not counted)" in nothing


def test_a_truth_table_that_does_not_fit_costs_only_the_comparison(tmp_path):
    simulate(tmp_path / "a.fil", replace(EFFELSBERG, nchans=64, foff=-5.0, tsamp=4.096e-4), 2048, [], Rfi(), seed=1)
    (tmp_path / "a_truth.csv").write_text("arrival,flux\n0.1,3\n")
    done = dry_run("--filterbank", tmp_path / "a.fil", "--output-dir", tmp_path / "out")
    assert done.returncode == 0 and "pulses found" not in done.stdout
    assert (tmp_path / "out" / "summary_a.json").exists()
