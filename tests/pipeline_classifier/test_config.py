"""Configs: what is honoured, where paths lead, and one sentence for every mistake."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier.config import DEFAULT_CONFIG, load_pipeline_config, parse_key
from single_pulse_classifier_training.cli import InputError


def load(folder: Path, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(keys))
    return load_pipeline_config(path)


def test_the_default_config_finds_its_own_files():
    config = load_pipeline_config(DEFAULT_CONFIG)
    assert config.model_path.is_file()
    settings = config.front_end()
    dms, cleaning = settings.dms, settings.cleaning
    np.testing.assert_array_equal(dms, 0.5 * np.arange(256))
    assert cleaning.zero_dm == "zdot" and cleaning.baseline_window_s == 0.2 and cleaning.zaplist == ()


def test_an_empty_config_is_the_default_job(tmp_path):
    np.testing.assert_array_equal(load(tmp_path).front_end().dms, 0.5 * np.arange(256))
    assert load(tmp_path).model_path == load_pipeline_config(DEFAULT_CONFIG).model_path


def test_paths_are_relative_to_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    config = load(
        tmp_path,
        path_to_filterbanks="data/",
        name_of_the_filterbank="a.fil",
        path_to_models="../models",
        name_of_the_model="m.pth",
    )
    assert config.filterbank_path == tmp_path / "data" / "a.fil"
    assert config.model_path.resolve() == (tmp_path.parent / "models" / "m.pth").resolve()
    assert load(tmp_path, path_to_filterbanks="/data").filterbank_path.parent == Path("/data")


def test_the_transientx_file_is_read_once(tmp_path, caplog):
    config = front_end(tmp_path, {"rfi": {"rfilist": [["kadaneT", "4", "8"]]}, "subdedispersion": {"ndm": 8}})
    (tmp_path / "tx.json").unlink()
    assert len(config.trial_dms()) == len(config.front_end().dms) == 8
    config.warn_of_unused_settings()
    assert len(caplog.records) == 1


def test_the_config_is_not_changed_after_it_is_loaded(tmp_path):
    config = load(tmp_path, threads=3)
    with pytest.raises(ValueError, match="frozen"):
        config.threads = 1
    assert config.threads == 3


def test_the_old_name_of_the_candidate_classifier_is_still_read(tmp_path, caplog):
    config = load(tmp_path, second_look="mine.pth")
    assert config.candidate_classifier_path == tmp_path / "mine.pth" and "candidate_classifier" in caplog.text
    assert load(tmp_path, second_look=None).candidate_classifier_path is None
    with pytest.raises(InputError, match="only one of candidate_classifier and second_look"):
        load(tmp_path, second_look=None, candidate_classifier=None)
    caplog.clear()
    assert load(tmp_path).candidate_classifier_path.is_file() and not caplog.records


def test_the_transientx_config_is_honoured_and_our_keys_win(tmp_path):
    front_end = {
        "preprocesslite": {"td": 1, "fd": 1, "zapthre": 3.0, "filltype": "mean"},
        "baseline": {"width": 0.1},
        "rfi": {"zaplist": [[1300, 1310.5]], "rfilist": [["kadaneF", "16", "4"]]},
        "subdedispersion": {"dms": 20, "ddm": 0.25, "ndm": 128, "overlap": 0.0},
    }
    (tmp_path / "tx.json").write_text(json.dumps(front_end))
    settings = load(tmp_path, path_to_a_transientx_config="tx.json").front_end()
    dms, cleaning = settings.dms, settings.cleaning
    np.testing.assert_allclose(dms, 20 + 0.25 * np.arange(128))
    assert (cleaning.baseline_window_s, cleaning.zero_dm, cleaning.zaplist) == (0.1, None, ((1300, 1310.5),))
    ours = {"dms": 5.0, "ddm": 2.0, "ndm": 16, "zaplist": [[1400.0, 1410.0]]}
    settings = load(tmp_path, path_to_a_transientx_config="tx.json", **ours).front_end()
    dms, cleaning = settings.dms, settings.cleaning
    np.testing.assert_allclose(dms, 5 + 2.0 * np.arange(16))
    assert cleaning.zaplist == ((1300, 1310.5), (1400, 1410))


def front_end(folder: Path, content: dict, **ours):
    (folder / "tx.json").write_text(json.dumps(content))
    return load(folder, path_to_a_transientx_config="tx.json", **ours)


def test_every_transientx_setting_reaches_the_cleaning(tmp_path):
    content = {
        "preprocesslite": {"td": 2, "fd": 1, "zapthre": 4.0},
        "downsample": {"td": 3, "fd": 4},
        "rfi": {"thremask": 9.0, "threKadaneF": 12.0, "widthlimit": 0.1, "rfilist": [["kadaneF", "16", "8"], ["zero"]]},
        "subdedispersion": {"overlap": 0.25},
    }
    config = front_end(tmp_path, content)
    cleaning = config.front_end().cleaning
    assert (cleaning.td, cleaning.fd, cleaning.zap_threshold, cleaning.mask_threshold) == (6, 4, 4.0, 9.0)
    assert (cleaning.zero_dm, cleaning.kadane_channels, cleaning.kadane_threshold) == ("zero", 8, 12.0)
    assert cleaning.kadane_width_s == 0.1 and config.overlap() == 0.25
    assert front_end(tmp_path, content, page_overlap=0.5).overlap() == 0.5
    assert load(tmp_path).overlap() == 0.0


@pytest.mark.parametrize(
    "rfi, said",
    [
        ({"rfilist": [["kadaneT", "4", "8"]]}, "kadaneT"),
        ({"rfilist": [["mask", "4", "8"]]}, "mask"),
        ({"rfilist": [["kadaneF", "4", "8"]]}, "averages 16 here"),
        ({"rfilist": [["zdot"], ["zero"]]}, "only the first is applied"),
        ({"filltype": "rand"}, "filltype 'rand'"),
        ({"rfilist": [["zdot"]]}, None),
        ({"rfilist": []}, None),
    ],
    ids=str,
)
def test_what_is_not_done_is_said_at_the_start(tmp_path, caplog, rfi, said):
    front_end(tmp_path, {"rfi": rfi}).warn_of_unused_settings()
    assert [said in record.getMessage() for record in caplog.records] == ([True] if said else [])


@pytest.mark.parametrize(
    "content, named",
    [
        ({"subdedispersion": {"ddm": 0}}, "ddm"),
        ({"subdedispersion": {"dm_step": 1}}, "dm_step"),
        ({"baseline": {"width": "long"}}, "width"),
        ({"rfi": {"zaplist": [[1, 2, 3]]}}, "zaplist"),
        ({"rfi": 3}, "rfi"),
        ({"rfi": {"rfilist": [["zdott"]]}}, "kadaneT.*zdott"),
        ({"rfi": {"rfilist": [["kadaneF", "4"]]}}, "positive integers"),
        ({"rfi": {"rfilist": [["kadaneF", "4", "\N{SUPERSCRIPT TWO}"]]}}, "positive integers"),
        ({"rfi": {"rfilist": [["kadaneF", "4", "9" * 5000]]}}, "positive integers"),
        ({"rfi": {"filltype": "median"}}, "filltype"),
        ({"preprocesslite": {"td": 0}}, "td"),
        ({"subdedispersion": {"overlap": 1.0}}, "overlap"),
        ({"preprocesslite": {"zapthre": -1}}, "zapthre"),
        ({"rfi": {"thremask": 1e300}}, "thremask"),
        ({"rfi": {"widthlimit": 1e300}}, "widthlimit"),
        ({"rfi": {"zaplist": [[1500, 1400]]}}, "zaplist.*lowest, highest.*1500.0, 1400.0"),
    ],
    ids=str,
)
def test_a_mistake_in_the_transientx_config_is_named(tmp_path, content, named):
    (tmp_path / "tx.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=named):
        load(tmp_path, path_to_a_transientx_config="tx.json")


@pytest.mark.parametrize(
    "keys, named",
    [
        ({"thresold": 0.5}, "thresold.*threshold"),
        ({"threshold": 1.5}, "key 'threshold' must be at most 1, got 1.5$"),
        ({"threshold": "0.5"}, "key 'threshold' must be a number, got '0.5'$"),
        ({"ifs": -1}, "key 'ifs' must be at least 0 or 'sum', got -1$"),
        ({"ifs": "all"}, "key 'ifs' must be an integer or 'sum', got 'all'$"),
        ({"key_input": 1.5}, "key 'key_input' must be a string or an integer, got 1.5$"),
        ({"time_downsample": [1, 3]}, "key 'time_downsample.1' must be 1, 2, 4, 8, 16, 32 or 64, got 3$"),
        ({"time_downsample": [4, 1]}, "key 'time_downsample' must be ascending and different factors, got .4, 1.$"),
        ({"path_to_models": "~nosuchuser"}, "'path_to_models' must begin with the home folder .*, got '~nosuchuser'$"),
        ({"path_to_pulsarx_singularity_image": "~nosuchuser"}, "_image' must begin with the home folder"),
        ({"output_dir": "a\0b"}, r"key 'output_dir' must be a name that a file can have, got 'a\\x00b'$"),
        ({"threshold": 0.5, "max_false_per_hour": 1.0}, "config.json: only one of threshold and max_false_per_hour"),
        ({"n_spectra": 0}, "n_spectra"),
        ({"n_spectra": 2.5}, "n_spectra"),
        ({"batch_size": True}, "batch_size"),
        ({"device": "gpu"}, "key 'device' must be 'auto', 'cpu' or 'cuda', got 'gpu'$"),
        ({"page_overlap": 1.0}, "page_overlap"),
        ({"ndm": 1}, "ndm"),
        ({"ddm": -0.5}, "ddm"),
        ({"name_of_the_model": ""}, "name_of_the_model"),
        ({"zaplist": [1400, 1500]}, "zaplist"),
        ({"zaplist": [[1400]]}, "lowest, highest"),
    ],
    ids=str,
)
def test_a_mistake_is_named_in_one_sentence(tmp_path, keys, named):
    with pytest.raises(InputError, match=named) as error:
        load(tmp_path, **keys)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


UNREADABLE = [
    None,
    "",
    "{",
    "[]",
    "null",
    '{"threshold": 0.5,}',
    "\xff",
    "[" * 50_000,
    '{"n_spectra": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("content", UNREADABLE, ids=lambda content: str(content)[:20])
def test_a_config_that_is_missing_or_no_json(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match="config.json"):
        load_pipeline_config(path)
    with pytest.raises(InputError, match="tx.json"):
        load(tmp_path, path_to_a_transientx_config="tx.json")


def test_configs_of_windows_editors_are_read(tmp_path):
    (tmp_path / "tx.json").write_text('{"subdedispersion": {"ndm": 8}}', encoding="utf-8-sig")
    path = tmp_path / "config.json"
    path.write_text('{"min_snr": 7.0, "path_to_a_transientx_config": "tx.json"}', encoding="utf-8-sig")
    config = load_pipeline_config(path)
    assert config.min_snr == 7.0 and len(config.trial_dms()) == 8


def test_a_config_of_the_tensorflow_pipeline_is_told_what_to_change(tmp_path):
    with pytest.raises(InputError) as error:
        load(tmp_path, name_of_the_model="a_256.h5", workers_for_tensorflow=4)
    message = str(error.value)
    for part in (
        '"a_256.pth"',
        "convert_to_pytorch.py a_256.h5",
        '"workers_for_pytorch": 4',
        "model_name",
        "resolution",
    ):
        assert part in message
    with pytest.raises(InputError, match='"workers_for_pytorch": 2'):
        load(tmp_path, workers_for_tensorflow=2)


@pytest.mark.parametrize("key, value", [("dms", 1e300), ("ddm", 1e-300), ("ddm", 1e9)])
def test_a_dm_grid_beyond_reason_is_refused(tmp_path, key, value):
    (tmp_path / "grid.json").write_text(json.dumps({key: value}))
    with pytest.raises(InputError, match=f"key '{key}'"):
        load_pipeline_config(tmp_path / "grid.json")


def test_keys_of_rings_are_hexadecimal_digits_however_they_are_written(tmp_path):
    config = load(tmp_path, key_input=1111, key_output="0xDADA")
    assert (config.key_input, config.key_output) == ("1111", "dada")


@pytest.mark.parametrize(
    "keys",
    [
        {"key_output": "xyz"},
        {"key_input": -1},
        {"max_latency_s": 0},
        {"idle_timeout_s": -1.0},
        {"make_rings_with": "x"},
    ],
)
def test_a_mistake_in_a_key_of_the_live_pipeline_is_named(tmp_path, keys):
    with pytest.raises(InputError, match=next(iter(keys))):
        load(tmp_path, **keys)


def test_the_key_of_a_ring():
    assert parse_key("dada") == parse_key("0xDADA") == parse_key(0xDADA) == 0xDADA
    assert parse_key("1111") == 0x1111
    for wrong in ("", "xyz", "0", 0, -1, "80000000", 1 << 31):
        with pytest.raises(InputError, match="hexadecimal"):
            parse_key(wrong)
