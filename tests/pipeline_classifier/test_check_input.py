"""check_input.py: its numbers agree with physics and with the pipeline, and no file makes it crash or hang."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline_classifier.check_input import check
from pipeline_classifier.config import DEFAULT_CONFIG, PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.classifiers import load_classifiers
from pipeline_classifier.evaluation.input_report import text
from pipeline_classifier.formats.sigproc import FilterbankWriter, Header, write_header
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages

SCRIPT = Path(DEFAULT_CONFIG).with_name("check_input.py")
HEADER = Header(nchans=64, nbits=8, tsamp=4.096e-4, fch1=1530.0, foff=-5.0, tstart=59000.48386574)
NSAMPLES = 6000


def noise(header: Header = HEADER, nsamples: int = NSAMPLES, seed: int = 1) -> np.ndarray:
    shape = (nsamples, header.nchans) if header.nifs == 1 else (nsamples, header.nifs, header.nchans)
    return (100 + 10 * np.random.default_rng(seed).standard_normal(shape)).clip(0, 255).astype(header.dtype)


def write(path: Path, header: Header, samples: np.ndarray) -> Path:
    with FilterbankWriter(path, header) as file:
        file.write(samples)
    return path


def config_with(folder: Path, **keys) -> PipelineConfig:
    path = folder / "config.json"
    path.write_text(json.dumps(keys))
    return load_pipeline_config(path)


@pytest.fixture(scope="module")
def classifiers():
    return load_classifiers(load_pipeline_config(DEFAULT_CONFIG, {"device": "cpu"}))


@pytest.fixture
def report_of(tmp_path, classifiers):
    """The report on files without timing, with a config of these keys."""

    def report(*files: Path, **keys):
        return check(files, config_with(tmp_path, **keys), classifiers, timing=False)

    return report


def run_script(*options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, *map(str, options)]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


def test_the_command_line_prints_text_or_json(tmp_path):
    path = write(tmp_path / "a.fil", replace(HEADER, source_name="B0531+21\x1b[31m\nOK"), noise())
    words = run_script(path, "--no-timing")
    assert words.returncode == 0 and words.stdout.splitlines()[-1].split() == ["verdict", "OK"]
    assert "\x1b" not in words.stdout and "B0531+21?[31m?OK" in words.stdout
    assert "2020-05-31 11:36:46.000 UTC" in words.stdout and "speed" not in words.stdout
    timed = run_script(path, "--json")
    report = json.loads(timed.stdout)
    assert timed.returncode == 0 and report["verdict"] == "OK" and report["reasons"] == []
    assert report["times_real_time"] > 0.1 and report["timed_s"] == pytest.approx(NSAMPLES * HEADER.tsamp)
    assert report["expected_run_s"] * report["times_real_time"] == pytest.approx(report["duration_s"])


@pytest.mark.parametrize("content", [b"", b"\x0c\0\0\0HEADER_START"])
def test_an_unusable_file_gives_exit_code_2(tmp_path, content):
    (tmp_path / "a.fil").write_bytes(content)
    done = run_script(tmp_path / "a.fil", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 2 and report["verdict"] == "NOT USABLE" and "a.fil" in report["reasons"][0]


def test_dispersion_by_the_textbook(report_of, tmp_path):
    """Lorimer & Kramer (2005): 4.15 ms DM (f1^-2 - f2^-2) in GHz between two frequencies, 8.3 us DM df f^-3 inside a
    channel of df MHz."""
    path = write(tmp_path / "a.fil", HEADER, noise())
    report = report_of(path, zaplist=[[1300, 1309], [1500, 1500]])
    last = report["sweeps"][-1]
    bottom_ghz, tsamp_ms = 1.215, HEADER.tsamp * 1e3
    delay_ms = 4.148808 * 127.5 * (bottom_ghz**-2 - 1.530**-2)
    smearing_ms = 8.3e-3 * 127.5 * 5.0 * bottom_ghz**-3
    assert last["dm"] == report["dm_highest"] == 127.5 and report["sweeps"][0]["sweep_s"] == 0
    assert last["sweep_s"] * 1e3 == pytest.approx(delay_ms, rel=1e-6)
    assert last["sweep_samples"] == pytest.approx(delay_ms / tsamp_ms, rel=1e-6)
    assert last["sweep_pages"] == pytest.approx(delay_ms / (256 * tsamp_ms), rel=1e-6)
    assert last["sweep_files"] == pytest.approx(delay_ms / (NSAMPLES * tsamp_ms), rel=1e-6)
    assert last["channel_smearing_ms"] == pytest.approx(smearing_ms, rel=1e-3)
    assert last["channel_smearing_samples"] == pytest.approx(smearing_ms / tsamp_ms, rel=1e-3)
    assert report["dm_step_smearing_ms"] == pytest.approx(delay_ms / 127.5 * 0.25, rel=1e-6)
    assert report["channels_zapped"] == 3  # 1300, 1305 and 1500 MHz


@pytest.mark.parametrize(
    "keys",
    [{}, {"page_samples": 64, "page_overlap": 0.3}, {"ndm": 300, "time_downsample": [1, 4]}, {"page_samples": 8192}],
)
def test_the_numbers_agree_with_the_pipeline(report_of, tmp_path, keys):
    path = write(tmp_path / "a.fil", replace(HEADER, nifs=2, foff=5.0), noise(replace(HEADER, nifs=2)))
    path.write_bytes(path.read_bytes()[:-50])
    report = report_of(path, **keys)
    source = FilterbankPages(path, config_with(tmp_path, **keys).front_end())
    assert report["pages"] == sum(len(layer.starts) for layer in source.layers)
    assert report["nsamples"] == source.observation.nsamples == NSAMPLES - 1
    assert report["bytes_left_over"] == source.summary().bytes_left_over == 2 * 64 - 50
    assert report["samples_swept_past_end"] == pytest.approx(source.summary().samples_swept_past_end, abs=4)
    assert report["block_samples"] == pytest.approx(np.diff(source.chunk_edges()).max(), rel=0.5)
    assert report["ascending"] and report["f_top_mhz"] == source.grid.f_top
    assert report["verdict"] == "OK with warnings"
    warnings = "; ".join(report["reasons"])
    assert "78 bytes" in warnings and "2 IFs are added" in warnings
    assert text(report).splitlines()[-1].endswith(warnings)


def test_averaging_of_samples_and_channels_is_included(report_of, tmp_path):
    path = write(tmp_path / "a.fil", HEADER, noise())
    (tmp_path / "transientx.json").write_text(json.dumps({"preprocesslite": {"td": 2}, "downsample": {"fd": 4}}))
    keys = {"path_to_a_transientx_config": "transientx.json", "page_samples": 64}
    plain, averaged = report_of(path, page_samples=64), report_of(path, **keys)
    source = FilterbankPages(path, config_with(tmp_path, **keys).front_end())
    assert averaged["pages"] == source.n_pages < plain["pages"]
    assert averaged["longest_page_s"] == pytest.approx(2 * plain["longest_page_s"])
    ratio = averaged["sweeps"][-1]["channel_smearing_ms"] / plain["sweeps"][-1]["channel_smearing_ms"]
    assert ratio == pytest.approx(4, rel=0.1)


def test_dead_and_saturated_samples_are_counted(report_of, tmp_path):
    samples = noise()
    samples[:, :16] = 7
    samples[::10, 16:40] = 255
    report = report_of(write(tmp_path / "a.fil", HEADER, samples))
    assert report["channels_dead"] == 16
    # Every tenth sample of half of the living channels.
    assert report["saturated_fraction"] == pytest.approx(0.05, rel=0.02)
    assert [reason.split("%")[0] for reason in report["reasons"]] == ["25.0", "5.0"]


@pytest.mark.parametrize(
    "nbits, nifs, lowest, highest",
    [(4, 1, 0, 15), (8, 2, 0, 255), (8, 1, -128, 127), (16, 1, -32768, 32767), (16, 2, 0, 65535)],
)
def test_the_range_of_samples_follows_their_bits(report_of, tmp_path, nbits, nifs, lowest, highest):
    header = replace(HEADER, nbits=nbits, nifs=nifs, signed=lowest < 0)
    samples = np.full((1000, nifs, 64), 5, header.dtype)
    samples[::4], samples[1::4] = lowest, highest
    report = report_of(write(tmp_path / "a.fil", header, samples))
    assert report["saturated_fraction"] == pytest.approx(0.5)
    assert report["sample_type"] == ("signed" if lowest < 0 else "unsigned")


def test_one_and_two_bits_and_floats_have_no_saturation(report_of, tmp_path):
    samples = np.random.default_rng(1).integers(0, 2, (1000, 64))
    for nbits in (1, 2, 32):
        header = replace(HEADER, nbits=nbits)
        assert report_of(write(tmp_path / "a.fil", header, samples.astype(header.dtype)))["saturated_fraction"] is None


def test_samples_that_are_not_finite(report_of, tmp_path):
    header = replace(HEADER, nbits=32)
    samples = noise(header)
    samples[:, 0], samples[3, 1] = np.nan, np.inf
    report = report_of(write(tmp_path / "a.fil", header, samples))
    assert report["channels_dead"] == 1 and report["not_finite_fraction"] > 1 / 64
    samples[:] = np.nan
    report = report_of(write(tmp_path / "a.fil", header, samples))
    assert report["verdict"] == "NOT USABLE" and "not finite" in report["reasons"][0]
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    "header, nsamples, keys, verdict, sentence",
    [
        ({}, NSAMPLES, {"zaplist": [[0, 1e5]]}, "NOT USABLE", "zaplist removes all 64"),
        ({}, 300, {"dms": 1000.0}, "NOT USABLE", "the lowest trial DM, 1000, has a sweep of 1.04 s"),
        (
            {"fch1": 10.0, "foff": -0.1, "tsamp": 1e-9},
            NSAMPLES,
            {},
            "NOT USABLE",
            "the sweep of the highest trial DM must be below",
        ),
        ({}, NSAMPLES, {"max_memory_mb": 300}, "NOT USABLE", "max_memory_mb must be at least 4"),
        ({}, 300, {"ddm": 1.0}, "OK with warnings", "from DM 119 on, the sweep is longer"),
        (
            {"foff": -20.0},
            NSAMPLES,
            {"ddm": 100.0, "page_samples": 32},
            "OK with warnings",
            "smearing within a channel",
        ),
        ({}, NSAMPLES, {"page_samples": 2048}, "OK with warnings", "removed with the baseline"),
        ({}, 200, {}, "OK with warnings", "shorter than a page"),
        ({}, 200, {}, "OK with warnings", "no channel is masked"),
        ({"fch1": 30000.0}, NSAMPLES, {}, "OK with warnings", "too little to distinguish pulses from interference"),
        ({"tstart": 0.0}, NSAMPLES, {}, "OK with warnings", "no start time"),
        ({}, NSAMPLES, {"ndm": 16}, "OK with warnings", "with fewer than 32 trial DMs pulses are missed"),
        ({"tstart": -2400000.5}, NSAMPLES, {}, "OK with warnings", "MJD -2.4e+06, is before 1858"),
        ({}, NSAMPLES, {"zaplist": [[1, 2]]}, "OK with warnings", "zaplist band 1 to 2 MHz contains the centre of no"),
    ],
)
def test_the_report_has_every_obstacle_and_warning(report_of, tmp_path, header, nsamples, keys, verdict, sentence):
    changed = replace(HEADER, **header)
    report = report_of(write(tmp_path / "a.fil", changed, noise(changed, nsamples)), **keys)
    assert report["verdict"] == verdict and sentence in "; ".join(report["reasons"])
    assert sentence in text(report).splitlines()[-1]


def test_the_first_dm_of_a_long_sweep_or_smearing(report_of, tmp_path):
    path = write(tmp_path / "a.fil", replace(HEADER, foff=-20.0, nchans=32), noise()[:2000, :32])
    report = report_of(path, ddm=100.0, page_samples=32)
    smearing_s = 8.3e-6 * 20.0 * 0.910**-3  # for a DM of 1
    assert report["first_dm_smeared_past_page"] == 100 * np.ceil(32 * HEADER.tsamp / smearing_s / 100)
    sweep_s = 4.148808e-3 * (0.910**-2 - 1.530**-2)
    assert report["first_dm_swept_past_file"] == 100 * np.ceil(2000 * HEADER.tsamp / sweep_s / 100)
    assert report["dms_swept_past_file"] == 256 - report["first_dm_swept_past_file"] / 100


def test_several_files_are_one_observation(report_of, tmp_path):
    samples = noise()
    later = replace(HEADER, tstart=HEADER.tstart + 4000 * HEADER.tsamp / 86400)
    a, b = write(tmp_path / "a.fil", HEADER, samples[:4000]), write(tmp_path / "b.fil", later, samples[4000:])
    whole = report_of(write(tmp_path / "whole.fil", HEADER, samples))
    assert report_of(b, a) | {"files": 0} == whole | {"files": 0}
    late = write(tmp_path / "late.fil", replace(later, tstart=later.tstart + 2 / 86400), samples[4000:])
    report = report_of(a, late)
    assert report["verdict"] == "NOT USABLE" and "a gap of 2 s" in report["reasons"][0]


VALUES = {
    "nchans": st.sampled_from([1, 8, 64, 1000, 65536]),
    "nbits": st.sampled_from([1, 2, 4, 8, 16, 32]),
    "nifs": st.integers(1, 4),
    "signed": st.booleans(),
    "tsamp": st.floats(1e-9, 9.9),
    "fch1": st.floats(1e-3, 1e7),
    "foff": st.one_of(st.floats(-100, 100), st.floats(-1e6, 1e6)),
    "tstart": st.floats(-1e7, 1e6),
    "source_name": st.text(st.characters(codec="utf-8"), max_size=9),
}
anything = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def header_bytes(path: Path, header: Header) -> bytes:
    """Bytes of any header, also of one that FilterbankWriter refuses."""
    with open(path, "wb") as file:
        write_header(file, header)
    return path.read_bytes()


def checked(path: Path, config: PipelineConfig, classifiers, timing: bool) -> None:
    report = check([path], config, classifiers, timing)
    assert report["verdict"] in ("OK", "OK with warnings", "NOT USABLE")
    assert bool(report["reasons"]) == (report["verdict"] != "OK")
    json.dumps(report, allow_nan=False)
    assert all(line.isprintable() for line in text(report).split("\n"))


@given(st.fixed_dictionaries({}, optional=VALUES), st.binary(max_size=30), st.integers(0, 20000))
@anything
def test_any_header_gives_a_report(tmp_path, classifiers, values, content, nbytes):
    path = tmp_path / "a.fil"
    path.write_bytes(header_bytes(path, replace(HEADER, **values)) + (content * nbytes)[:nbytes])
    checked(path, config_with(tmp_path), classifiers, timing=False)


@given(st.integers(0, 330), st.binary(min_size=1, max_size=8))
@anything
def test_any_damage_gives_a_report(tmp_path, classifiers, position, patch):
    path = tmp_path / "a.fil"
    whole = header_bytes(path, HEADER) + noise(nsamples=40).tobytes()
    path.write_bytes(whole[:position] + patch + whole[position + len(patch) :])
    checked(path, config_with(tmp_path), classifiers, timing=False)


@given(st.binary(max_size=300))
@anything
def test_any_bytes_give_a_report(tmp_path, classifiers, content):
    (tmp_path / "a.fil").write_bytes(content)
    checked(tmp_path / "a.fil", config_with(tmp_path), classifiers, timing=False)


@given(
    st.fixed_dictionaries({}, optional=VALUES | {"nchans": st.integers(1, 9).map(lambda n: 8 * n)}),
    st.binary(min_size=1, max_size=30),
    st.integers(1, 20000),
)
@example(values={"nchans": 8, "nbits": 1}, content=b"\0\0\0\1", nbytes=256)
@settings(anything, max_examples=15)
def test_the_speed_of_any_usable_file_is_measured(tmp_path, classifiers, values, content, nbytes):
    path = tmp_path / "a.fil"
    path.write_bytes(header_bytes(path, replace(HEADER, **values)) + (content * nbytes)[:nbytes])
    checked(path, config_with(tmp_path, ndm=16, page_samples=64, batch_size=2), classifiers, timing=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "header, nsamples, keys",
    [
        (replace(HEADER, nchans=1024, foff=-0.4), 60000, {}),
        (replace(HEADER, nchans=256, nbits=32, foff=-1.0), 100000, {"time_downsample": [1, 4]}),
        (replace(HEADER, nchans=512, fch1=450.0, foff=-0.2, tsamp=1e-4), 30000, {}),
    ],
)
def test_memory_and_speed_are_those_of_a_run(report_of, tmp_path, header, nsamples, keys):
    path = write(tmp_path / "a.fil", header, np.tile(noise(header, 10000), (nsamples // 10000, 1)))
    config_with(tmp_path, **keys)
    estimate = json.loads(run_script(path, "-c", tmp_path / "config.json", "--json").stdout)
    assert estimate["memory_bytes"] == report_of(path, **keys)["memory_bytes"]
    run = [
        sys.executable,
        SCRIPT.with_name("run_inference.py"),
        "--filterbank",
        path,
        "-c",
        tmp_path / "config.json",
        "--output-dir",
        tmp_path / "out",
        "--no-plots",
    ]
    # The resident memory of children is the maximum over all of them, hence a process with only this child.
    measure = f"import resource, subprocess; print(subprocess.run({list(map(str, run))}, stdout=-1, text=True).stdout, "
    measure += "'rss', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    done = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True).stdout
    rss_bytes = float(done.split("rss")[1])
    summary = json.loads((tmp_path / "out" / "summary_a.json").read_text())
    assert 1 / 1.5 < estimate["memory_bytes"] / rss_bytes < 1.5
    assert 1 / 1.5 < estimate["times_real_time"] / summary["times_real_time"] < 1.5
