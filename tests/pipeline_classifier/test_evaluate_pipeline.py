"""The yardstick: what is counted is what is true, and injected pulses have the S/N that they are said to have."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_classifier import evaluate_pipeline
from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.classifiers import Classifiers, load_classifiers
from pipeline_classifier.detection.decision import EVENT_THRESHOLDS, decide
from pipeline_classifier.detection.search import search
from pipeline_classifier.evaluation.recovery import compare
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.simulation.interference import Rfi, random_rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, read_truth, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.checkpoint import load_checkpoint, save_checkpoint
from single_pulse_classifier_training.cli import InputError
from tests.command_line import run_here
from tests.pipeline_classifier.simulation.samples import noise

GEOMETRY = replace(EFFELSBERG, nchans=64, foff=-5.0, tsamp=0.5e-3)
DURATION_S = 20
NSAMPLES = round(DURATION_S / GEOMETRY.tsamp)
PULSES = [Pulse(2.0 + 3 * i, 20.0 + 15 * i, 30.0, width) for i, width in enumerate((0.5, 1.5, 3.0, 6.0, 12.0))]


def evaluate(*options: object) -> subprocess.CompletedProcess:
    return run_here(evaluate_pipeline, *options)


def evaluate_here(*options: object) -> dict:
    return evaluate_pipeline.run(evaluate_pipeline.get_parser().parse_args([*map(str, options)]))


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("observation") / "a.fil"
    simulate(path, GEOMETRY, NSAMPLES, PULSES, Rfi(), seed=3)
    return path


@pytest.fixture(scope="module")
def classifiers() -> Classifiers:
    return load_classifiers(PipelineConfig(device="cpu"))


def test_the_report_is_what_compare_says(observation, classifiers, tmp_path):
    done = evaluate(observation, "--detail", "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "evaluation.png"}
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())

    config = PipelineConfig()
    source = FilterbankPages(observation, config.front_end())
    result = search(source, classifiers, decide(config, classifiers, source.layers))
    pulses = read_truth(observation.with_name("a_truth.csv"))
    recovery = compare(pulses, result.events, source.grid)
    assert recovery.found.all() and evaluation["found"] == evaluation["pulses"] == len(PULSES)
    assert evaluation["recall"] == 1
    assert evaluation["recall_by_snr"][-4] == {"from": 15, "to": 50, "found": 5, "of": 5}
    # 0.5, 1.5, 3, 6 and 12 ms at 0.5 ms a sample.
    assert [part["of"] for part in evaluation["recall_by_width_samples"]] == [1, 1, 1, 1, 1, 0]
    assert [part["of"] for part in evaluation["recall_by_dm"]] == [1, 2, 2, 0]
    assert [part["of"] for part in evaluation["recall_by_width_ms"]] == [0, 0, 1, 1, 2, 1, 0, 0]
    assert [line.split()[-4:] for line in done.stdout.splitlines() if "whole band" in line] == [
        ["5", "of", "5", "1.000"]
    ]
    assert evaluation["hours"] == pytest.approx(DURATION_S / 3600)
    assert evaluation["false_events"] == recovery.false_events.sum()
    rate = evaluation["false_events"] / DURATION_S * 3600
    assert evaluation["false_events_per_hour"] == pytest.approx(rate)

    events = [result.events[number] for number in recovery.event_of_pulse]
    errors = [abs(event.dm_pc_cm3 - pulse.dm_pc_cm3) for event, pulse in zip(events, pulses)]
    assert evaluation["dm_error_pc_cm3"]["median"] == pytest.approx(np.median(errors))
    errors = [abs(event.time_s - pulse.time_s) for event, pulse in zip(events, pulses)]
    assert evaluation["time_error_ms"]["median"] == pytest.approx(1e3 * np.median(errors))
    assert evaluation["time_error_samples"]["percentile_90"] == pytest.approx(np.percentile(errors, 90) / 0.5e-3)
    ratio = np.median([event.snr / pulse.snr for event, pulse in zip(events, pulses)])
    assert evaluation["snr_ratio_median"] == pytest.approx(ratio) and 0.7 < ratio < 1.2


def test_injected_pulses_are_found_and_old_ones_are_not_false(observation, tmp_path):
    options = ("--inject", observation, "--pulses", 6, "--snr-min", 25, "--seed", 1, "--output-dir", tmp_path)
    evaluate_here(*options, "--no-plots")
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"], "the injected file goes"
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    (record,) = evaluation["observations"]
    assert record["events_before_injection"] >= len(PULSES)
    assert evaluation["pulses"] == 6 and evaluation["found"] >= 5
    assert evaluation["false_events"] <= 1 < record["events"] - record["found"]


def test_the_row_of_a_threshold_is_what_a_search_at_it_gives(tmp_path):
    pulses = [Pulse(time_s, 50.0, snr, 1.0) for time_s, snr in zip(np.arange(2.0, 14.0), np.linspace(5, 9, 12))]
    simulate(tmp_path / "a.fil", GEOMETRY, 30_000, pulses, random_rfi("extreme", GEOMETRY, 30_000, 5), seed=3)
    options = (tmp_path / "a.fil", "--output-dir", tmp_path, "--no-plots")
    rows = {row["threshold"]: row for row in evaluate_here(*options)["by_threshold"]}
    assert set(EVENT_THRESHOLDS) <= set(rows) and rows[0.05] != rows[0.95]
    for threshold in (0.05, 0.95):
        alone = evaluate_here(*options, "--event-threshold", threshold)
        assert {key: alone[key] for key in rows[threshold] if key != "threshold"} | {"threshold": threshold} == rows[
            threshold
        ]


def test_false_events_are_counted_and_stored_for_the_pair_that_was_measured(tmp_path, caplog):
    for name, seed in (("a", 5), ("b", 6)):
        simulate(tmp_path / f"{name}.fil", GEOMETRY, 30_000, [], random_rfi("extreme", GEOMETRY, 30_000, seed), seed)
    evaluation = evaluate_here(tmp_path / "a.fil", tmp_path / "b.fil", "--output-dir", tmp_path)
    assert evaluation["recall"] is None and evaluation["false_events"] == sum(
        record["events"] for record in evaluation["observations"]
    )
    assert (tmp_path / "evaluation.png").stat().st_size > 10_000

    # A candidate classifier that was trained again: other weights, no thresholds.
    models = Path(evaluate_pipeline.__file__).with_name("models")
    candidates = load_checkpoint(models / "candidate_classifier.pth", "cpu")
    candidates.threshold, candidates.thresholds, candidates.measured_pair = 0.5, [], None
    with torch.no_grad():
        candidates.model.fc2.bias *= 1 + 1e-6
    save_checkpoint(tmp_path / "new.pth", candidates)
    (tmp_path / "config.json").write_text(json.dumps({"candidate_classifier": "new.pth", "max_false_per_hour": 400}))
    options = ("-c", tmp_path / "config.json", "--output-dir", tmp_path)
    done = evaluate("--pulse-free", tmp_path / "a.fil", tmp_path / "b.fil", *options, "--store")
    assert done.returncode == 0 and not caplog.text, done.stderr
    measured = json.loads((tmp_path / "false_events.json").read_text())
    hours = 60_000 * GEOMETRY.tsamp / 3600
    counts = {entry["threshold"]: entry["false_positives"] for entry in measured["thresholds"]}
    rows = {row["threshold"]: row for row in evaluation["by_threshold"]}
    assert counts == {threshold: rows[threshold]["false_events"] for threshold in rows} and counts[0.05] > 2
    for entry in measured["thresholds"]:
        assert entry["hours"] == pytest.approx(hours)
        assert entry["false_per_hour"] == pytest.approx(max(1, entry["false_positives"]) / hours)
    assert "1 per hour needs at least 1 h of pulse-free data, got 0.008333 h" in done.stdout

    stored = load_checkpoint(tmp_path / "new.pth", "cpu")
    assert (stored.threshold, stored.thresholds) == (0.5, measured["thresholds"])
    assert all(
        torch.equal(one, other) for one, other in zip(*(c.model.state_dict().values() for c in (stored, candidates)))
    )
    config = load_pipeline_config(tmp_path / "config.json")
    source = FilterbankPages(tmp_path / "a.fil", config.front_end())
    decision = decide(config, load_classifiers(config), source.layers)
    assert not caplog.text, "the pair is measured now"
    assert 0 < decision.false_per_hour <= 400 and counts[decision.event_threshold] <= 400 * hours

    few = ("--pulse-free", tmp_path / "a.fil", *options, "--store", "--max-false-per-hour")
    evaluate_here(*few, 300)
    chosen = load_checkpoint(tmp_path / "new.pth", "cpu")
    assert [entry["threshold"] for entry in chosen.thresholds if entry["false_positives"] <= 1][0] == chosen.threshold


def test_the_false_events_of_simulated_hours(tmp_path):
    measured = evaluate_here("--pulse-free-hours", 0.001, "--output-dir", tmp_path)
    assert measured["hours"] == pytest.approx(0.001, rel=0.01) and measured["observations"] == "simulated"
    assert [path.name for path in tmp_path.iterdir()] == ["false_events.json"], "no observation remains"


def test_the_truth_of_another_file_is_refused(tmp_path):
    simulate(tmp_path / "a.fil", GEOMETRY, 8000, [Pulse(3.0, 50.0, 20.0, 1.0)], Rfi(), seed=3)
    simulate(tmp_path / "b.fil", GEOMETRY, 4000, [], Rfi(), seed=3)
    (tmp_path / "b_truth.csv").write_bytes((tmp_path / "a_truth.csv").read_bytes())
    with pytest.raises(InputError, match="b_truth.csv: time_s must be at most 2 s, .* got 3 s"):
        evaluate_here(tmp_path / "b.fil", "--output-dir", tmp_path / "out")


def test_a_kept_file_is_an_observation_with_truth(tmp_path):
    noise(tmp_path / "mine.fil", replace(GEOMETRY, nbits=4), 10_000)
    out = tmp_path / "out"
    options = ("--inject", tmp_path / "mine.fil", "--pulses", 2, "--output-dir", out, "--no-plots", "--keep")
    evaluate_here(*options, "--snr-min", 20)
    names = {"evaluation.json", "mine_injected.fil", "mine_injected_truth.csv"}
    assert {path.name for path in out.iterdir()} == names
    assert [20 <= pulse.snr <= 30 for pulse in read_truth(out / "mine_injected_truth.csv")] == [True, True]
    assert Filterbank(out / "mine_injected.fil").nsamples == 10_000


def test_a_file_that_was_not_made_here_is_not_overwritten(tmp_path):
    noise(tmp_path / "mine.fil", GEOMETRY, 4000)
    (tmp_path / "mine_injected.fil").write_bytes(b"precious")
    with pytest.raises(InputError, match="mine_injected.fil: must be a new file or have a truth table"):
        evaluate_here("--inject", tmp_path / "mine.fil", "--pulses", 1, "--output-dir", tmp_path, "--keep")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.fil", "mine_injected.fil"}
    assert (tmp_path / "mine_injected.fil").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "options, names",
    [
        ((), "--pulse-free-hours HOURS must be given, got none"),
        (("a.fil", "--inject", "a.fil"), "beside them and --inject FILE"),
        (("--pulse-free", "a.fil", "--inject", "a.fil"), "got --inject FILE and --pulse-free FILE"),
        (("--inject", "a.fil", "--store"), "--store must be used with --pulse-free FILE"),
        (("--pulse-free", "a.fil", "--seed", 1), "--seed must be used with --inject"),
        (("--pulse-free-hours", 0), "--pulse-free-hours must be above 0, at most 1000, got 0"),
        (("--pulse-free", "a.fil", "./a.fil"), "--pulse-free ./a.fil: every observation must be given once"),
        (("--pulse-free", "c.fil"), "--pulse-free c.fil: must be an observation without pulses, got 1"),
        (("--pulse-free", "absent.fil"), "absent.fil"),
        (("--pulse-free", "a.fil", "--max-false-per-hour", 100), "100 per hour needs at least 0.01 h of pulse-free"),
        (("--pulse-free", "a.fil", "-c", "pages.json"), "--pulse-free must be used with a candidate classifier"),
        (("--null", "a.fil", "--pulse-free", "a.fil"), "got --null FILE and --pulse-free FILE"),
        (("--null", "a.fil", "./a.fil"), "--null ./a.fil: every file must be given once, got it twice"),
        (("--null", "absent.fil"), "absent.fil"),
        (("--null", "a.fil", "b.fil", "--joined"), "must start at the end of"),
        (("--null", "a.fil", "-c", "pages.json"), "--null must be used with a candidate classifier"),
        (("--null", "a.fil", "--wanted-rate", 100), "100 per hour needs at least 0.01 h of pulse-free data"),
        (("--null", "a.fil", "--wanted-rate", 0), "--wanted-rate must be a positive number, got 0"),
        (("--null", "a.fil", "--max-false-per-hour", 1), "must be used with --wanted-rate, got --max-false-per-hour"),
        (("--null", "a.fil", "--store"), "--store must be used with --pulse-free FILE"),
        (("--pulse-free", "a.fil", "--wanted-rate", 1), "--wanted-rate must be used with --null FILE"),
        (("a.fil", "--joined"), "--joined must be used with --null FILE"),
        (("a.fil", "--pulses", 5), "--pulses"),
        (("a.fil", "--keep"), "--keep"),
        (("--inject", "a.fil", "--pulses", 0), "--pulses must be 1 to 100000, got 0"),
        (("--inject", "a.fil", "--seed", -1), "--seed must be 0 or more, got -1"),
        (("--inject", "absent.fil"), "absent.fil"),
        (("--inject", "a.fil", "--snr-min", 40), "got 40 to 30"),
        (("--inject", "a.fil", "--dm-max", "nan"), "dm_pc_cm3"),
        (("--inject", "a.fil", "--pulses", 5000), "5000 pulses"),
        (("a.fil",), "a_truth.csv"),
        (("absent.fil",), "absent.fil"),
    ],
    ids=str,
)
def test_errors_are_one_sentence_before_any_work(tmp_path, options, names, monkeypatch):
    noise(tmp_path / "a.fil", GEOMETRY, 4000)
    simulate(tmp_path / "b.fil", GEOMETRY, 300, [], Rfi(), seed=0)
    simulate(tmp_path / "c.fil", GEOMETRY, 4000, [Pulse(1.0, 20.0, 20.0, 1.0)], Rfi(), seed=0)
    (tmp_path / "pages.json").write_text('{"candidate_classifier": null}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        evaluate_here(*options, "--output-dir", "out")
    assert names in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_of_an_injection_that_fails(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise InputError("the search ends")

    noise(tmp_path / "a.fil", GEOMETRY, 8000)
    monkeypatch.setattr(evaluate_pipeline, "searched", fail)
    with pytest.raises(InputError, match="the search ends"):
        evaluate_here("--inject", tmp_path / "a.fil", "--pulses", 2, "--output-dir", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_mistake_ends_the_script_with_one_line(tmp_path):
    done = evaluate(tmp_path / "absent.fil", "--output-dir", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == ""
    assert "absent.fil" in done.stderr.splitlines()[-1]
