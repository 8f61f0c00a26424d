"""Options: what the command line changes in a config, and where the results go."""

import json

import pytest

from pipeline_classifier import run_inference
from pipeline_classifier.options import OutputOptions, SearchOptions, check_distinct, set_name
from single_pulse_classifier_training.cli import InputError


def options_of(*words: object) -> SearchOptions:
    return SearchOptions.of(run_inference.get_parser().parse_args([*map(str, words)]))


def test_where_the_results_go(tmp_path, monkeypatch):
    """Options are relative to the working folder, the key of a config to its file; the included config writes nothing."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (tmp_path / "config.json").write_text(json.dumps({"output_dir": "results"}))
    assert options_of().load_config().output_path == work
    assert options_of("--output-dir", "out").load_config().output_path == work / "out"
    assert options_of("-c", "../config.json").load_config().output_path.resolve() == tmp_path / "results"
    assert options_of("-c", "../config.json", "--output-dir", "out").load_config().output_path == work / "out"


def test_a_threshold_replaces_the_rate_of_the_config_and_a_rate_its_thresholds(tmp_path):
    def loaded(content: dict, *words: object):
        (tmp_path / "config.json").write_text(json.dumps(content))
        config = options_of("-c", tmp_path / "config.json", *words).load_config()
        return config.threshold, config.event_threshold, config.max_false_per_hour

    assert loaded({"max_false_per_hour": 10}, "--event-threshold", 0.5) == (None, 0.5, None)
    assert loaded({"threshold": 0.9, "event_threshold": 0.4}, "--max-false-per-hour", 3) == (None, None, 3)
    assert loaded({"threshold": 0.9, "event_threshold": 0.4}, "--threshold", 0.8) == (0.8, 0.4, None)


def test_output_options():
    def output_of(*words: str, ring: bool = False) -> OutputOptions:
        return OutputOptions.of(run_inference.get_parser().parse_args(list(words)), ring)

    assert output_of("--no-plots", "--report") == OutputOptions(plots=False, report=True, saliency=False)
    with pytest.raises(InputError, match="--report must be used with a file"):
        output_of("--report", ring=True)
    with pytest.raises(InputError, match="only one of --saliency and --no-plots"):
        output_of("--saliency", "--no-plots")


def test_names_of_sets_and_files_given_twice(tmp_path):
    assert set_name(None, ["a/b.fil"]) == "b" and set_name("c", ["a/b.fil"]) == "c"
    with pytest.raises(InputError, match="--name must be a name without folders"):
        set_name("a/c", ["b.fil"])
    with pytest.raises(InputError, match="a.fil: the file name must have at most 188 bytes .* got 194"):
        set_name("x" * 194, ["a.fil"])
    with pytest.raises(InputError, match="must be UTF-8"):
        set_name(None, ["caf\udce9.fil"])
    check_distinct(["a.fil", "b.fil"])
    with pytest.raises(InputError, match="every file must be given once"):
        check_distinct([tmp_path / "a.fil", tmp_path / ".." / tmp_path.name / "a.fil"])
