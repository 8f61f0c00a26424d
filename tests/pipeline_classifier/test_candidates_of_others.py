"""Candidates that another program has found: in the list of an observation, and in files."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_classifier import run_inference
from pipeline_classifier.config import DEFAULT_CONFIG, load_pipeline_config
from pipeline_classifier.detection import frequency_time
from pipeline_classifier.detection.candidate_cutouts import SIDE, cutout
from pipeline_classifier.detection.candidate_frames import cutouts_of
from pipeline_classifier.detection.frequency_time import FrequencyTime
from pipeline_classifier.detection.listed_candidates import Place, PlaceCutouts, measured_snr
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.formats.candidate_files import CandidateFile, read_candidate_file, write_candidate_file
from pipeline_classifier.frontend import kernels
from pipeline_classifier.frontend.boxcar import boxcar_search
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import ROBUST_RANGE
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.channels import CHANNELS
from single_pulse_classifier_training.checkpoint import Checkpoint, save_checkpoint
from single_pulse_classifier_training.training_models import build_model
from tests.command_line import run_here

HEADER = replace(EFFELSBERG, nchans=64, foff=-5.0, fch1=1527.5)
NSAMPLES = 40000
DURATION_S = NSAMPLES * HEADER.tsamp
PULSES = [
    Pulse(0.6, 57.0, 40, 0.82),
    Pulse(1.4, 30.0, 25, 1.64),
    Pulse(2.2, 100.0, 30, 3.28),
    Pulse(3.0, 57.0, 90, 0.41),
]
NOT_PULSES = [(0.95, 33.0), (1.85, 70.0)]


def samples_of(pulse: Pulse) -> int:
    return max(1, round(pulse.width_ms / 1e3 / HEADER.tsamp))


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("obs") / "obs.fil"
    simulate(path, HEADER, NSAMPLES, PULSES, Rfi(), seed=4)
    return path


@pytest.fixture(scope="module")
def source(observation) -> FilterbankPages:
    return FilterbankPages(observation, load_pipeline_config(DEFAULT_CONFIG).front_end())


def heimdall(path: Path, rows: list[tuple[float, float, float, int]]) -> Path:
    """Write a list of heimdall: time, DM, S/N and log2 of the width."""
    lines = [
        f"{snr}\t{round(time / HEADER.tsamp)}\t{time:.6f}\t{width}\t1\t{dm}\t5\t0\t9\n" for time, dm, snr, width in rows
    ]
    path.write_text("".join(lines))
    return path


def classify(observation: Path, path: Path, *options: object):
    return run_here(
        run_inference, "--filterbank", observation, "--candidate-list", path, "--output-dir", path.parent, *options
    )


def agreement(image: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the sub-bands that neither has masked: masks depend on the stretch of time that is cleaned."""
    used = (image.max(axis=1) > ROBUST_RANGE[0]) & (other.max(axis=1) > ROBUST_RANGE[0])
    assert used.sum() >= SIDE - 3
    return np.corrcoef(image[used].ravel(), other[used].ravel())[0, 1]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("column", [1, 3, 40])
def test_cutouts_are_sums_of_dedispersed_samples(column):
    rng = np.random.default_rng(column)
    data, good = rng.integers(-20, 20, (12, 500)).astype(np.int8), rng.random(12) < 0.8
    dms, starts, delay_per_dm = np.array([-1.0, 3.3, 20.0]), np.array([2, -7, 90]), np.linspace(0, 11.3, 12)
    sums, counts = np.zeros((2, 3, 9), np.float32)
    for first, end in [(0, 130), (130, 500)]:  # in two parts
        part = np.ascontiguousarray(data[:, first:end])
        kernels.add_dedispersed(part, good, starts - first, column, dms, delay_per_dm, sums, counts)
    for row, dm in enumerate(dms):
        for number in range(9):
            begins = starts[row] + np.rint(dm * delay_per_dm).astype(int) + number * column
            spans = [slice(max(0, begin), max(0, begin + column)) for begin in begins[good]]
            values = [samples[span] for samples, span in zip(data[good], spans, strict=True)] if dm >= 0 else []
            assert sums[row, number] == sum(int(v.sum()) for v in values)
            assert counts[row, number] == sum(v.size for v in values)


def test_cutouts_are_those_of_the_search(source):
    places = [Place(pulse.time_s, pulse.dm_pc_cm3, samples_of(pulse)) for pulse in PULSES]
    cutter = PlaceCutouts(source)
    dm_time, snrs = cutter.dm_time(places)
    views = cutter.frequency_time(places, snrs)
    assert snrs == pytest.approx([pulse.snr for pulse in PULSES], rel=0.15, abs=3)
    pages = np.concatenate([batch.pages for batch in source.planes()])
    plane = np.concatenate([*pages[:-1], pages[-1][:, -(NSAMPLES % 256) :]], axis=1)
    assert plane.shape[1] == NSAMPLES
    searched = boxcar_search(plane, 128, 1.0)
    for place, image, pair, snr in zip(places, dm_time, views, snrs, strict=True):
        row = int(np.argmin(np.abs(source.grid.dms - place.dm)))
        peak = replace(cutter.peak(place, row), snr=float(snr))
        expected = cutout(searched, source.grid, peak)
        inside = expected.min(axis=1) > ROBUST_RANGE[0]
        inside &= image.min(axis=1) > ROBUST_RANGE[0]
        middle = slice(SIDE // 2 - 8, SIDE // 2 + 8)
        assert np.corrcoef(image[middle].ravel(), expected[middle].ravel())[0, 1] > 0.9
        assert image[inside].std() == pytest.approx(expected[inside].std(), rel=0.1)
        assert image[SIDE // 2].argmax() == pytest.approx(SIDE // 2, abs=1)
        same = FrequencyTime(source, source.layers[0]).cutouts([peak], 0)[0]
        assert min(map(agreement, pair, same)) > 0.99


def test_cutouts_do_not_depend_on_the_parts(source, monkeypatch):
    places = [Place(1.0, 300.0, 2), Place(1.1, 20.0, 9), Place(2.2, 100.0, 32), Place(3.0, 57.0, 4), Place(4.0, 5.0, 1)]
    cutter = PlaceCutouts(source, 2)
    dm_time, snrs = cutter.dm_time(places)
    views = cutter.frequency_time(places, snrs)
    for place, image, snr, pair in zip(places, dm_time, snrs, views, strict=True):
        one, alone = cutter.dm_time([place])
        assert np.array_equal(one[0], image) and alone[0] == snr
        assert agreement(cutter.frequency_time([place], alone)[0, 0], pair[0]) > 0.97
    monkeypatch.setattr(frequency_time, "VALUES_AT_ONCE", 64 * 3000)
    for pair, other in zip(views, cutter.frequency_time(places, snrs), strict=True):
        assert agreement(pair[0], other[0]) > 0.97


def test_negative_dms_and_the_end_of_the_observation(source):
    cutter = PlaceCutouts(source)
    dm_time, _ = cutter.dm_time([Place(1.0, 3.0, 16), Place(DURATION_S - 1e-3, 3.0, 16)])
    step = 4 / float(source.grid.sweep(1.0))
    dms = 3.0 + (np.arange(SIDE) - SIDE // 2) * step
    assert (dms < 0).any()
    assert np.all(dm_time[0][dms < 0] == ROBUST_RANGE[0]) and np.all(dm_time[0][dms >= 0] > ROBUST_RANGE[0])
    assert np.all(dm_time[1][dms >= 0][:, 40:] == 0)  # after the end, for the steepest row too
    bottom = float(dispersion_delay(1.0, HEADER.frequencies[-1], HEADER.frequencies[0]))
    assert cutter.is_inside(Place(1.0, 1.5 / bottom, 1)) and cutter.is_inside(Place(1.0, 6 / bottom, 1))
    assert not any(map(cutter.is_inside, [Place(1.0, 100 / bottom, 1), Place(-0.1, 9, 1), Place(DURATION_S, 9, 1)]))
    assert not cutter.is_inside(Place(np.nan, 9, 1))


@pytest.mark.parametrize("width", [1, 2, 3, 4, 10, 37])
def test_the_snr_is_that_of_the_boxcar(width):
    column = max(1, round(width / 4))
    profile = np.zeros(SIDE * column)
    middle = SIDE // 2 * column + column / 2
    profile[round(middle - width / 2) : round(middle - width / 2) + width] = 10 / np.sqrt(width)
    row = profile.reshape(SIDE, column).sum(axis=1) / np.sqrt(column)
    assert measured_snr(row, width) == pytest.approx(10, rel=0.15 if width > 2 else 0.31)


def test_a_list_is_classified(observation, tmp_path, caplog):
    rows = [(pulse.time_s, pulse.dm_pc_cm3, pulse.snr, int(np.log2(samples_of(pulse)))) for pulse in PULSES]
    duplicate = (PULSES[3].time_s + 3e-4, PULSES[3].dm_pc_cm3 + 0.5, 40.0, 2)
    wrong = [(time, dm, 6.5, 2) for time, dm in NOT_PULSES]
    outside = [(DURATION_S + 1 + n, 50.0, 7.0, 1) for n in range(11)] + [(1.0, 1e5, 7.0, 1)]
    rows = [*outside[:1], rows[3], duplicate, *wrong, *rows[:3], *outside[1:]]
    path = heimdall(tmp_path / "beam.cand", rows)
    done = classify(observation, path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "beam_classified.cand").read_text().splitlines()
    assert [line.rsplit("\t", 2)[0] for line in lines] == path.read_text().splitlines()
    probabilities, labels = np.array([line.split("\t")[-2:] for line in lines], dtype=float).T
    assert labels.tolist() == [-1, 1, 1, 0, 0, 1, 1, 1] + [-1] * 11
    assert np.all(probabilities[labels < 0] == -1) and np.all(probabilities[labels > 0] >= 0.2)
    events = rows_of(tmp_path / "candidates_obs.csv")
    assert [float(event["time_s"]) for event in events] == [pulse.time_s for pulse in PULSES]
    assert [float(event["dm_pc_cm3"]) for event in events] == [pulse.dm_pc_cm3 for pulse in PULSES]
    assert float(events[3]["width_ms"]) == pytest.approx(4 * HEADER.tsamp * 1e3, abs=1e-3)
    assert "events  4" in done.stdout and str(tmp_path / "beam_classified.cand") in done.stdout
    assert caplog.text.count("beam.cand, line ") == 10 and "2 more rows" in caplog.text
    assert not (tmp_path / "unfinished_obs").exists()

    assert classify(observation, path, "--keep-all", "--list-format", "heimdall").returncode == 0
    assert len(rows_of(tmp_path / "candidates_obs.csv")) == 5


def test_a_list_without_widths_and_signal_to_noise_ratios(observation, tmp_path):
    path = tmp_path / "others.csv"
    path.write_text(f"file,snr,stime,width,dm,label\nobs.fil,,{PULSES[3].time_s},,57.0,0\n")
    done = classify(observation, path)
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(tmp_path / "others_classified.csv")
    assert row["label"] == "0" and row["predicted_label"] == "1"
    (event,) = rows_of(tmp_path / "candidates_obs.csv")
    assert event["width_samples"] == "1" and float(event["snr"]) == pytest.approx(45, rel=0.3)


@pytest.mark.parametrize("name", ["candidates_obs.csv", "candidates_obs.cands", "heimdall_obs.csv"])
def test_the_lists_of_a_search_get_its_events(observation, saved, tmp_path, name):
    """Times in seconds and as MJD, widths in samples, in ms and as a power of two."""
    path = tmp_path / f"list{Path(name).suffix}"
    path.write_bytes((saved / name).read_bytes())
    assert classify(observation, path).returncode == 0
    for event, found in zip(
        rows_of(tmp_path / "candidates_obs.csv"), rows_of(saved / "candidates_obs.csv"), strict=True
    ):
        assert float(event["time_s"]) == pytest.approx(float(found["time_s"]), abs=2e-6)
        for column in ("dm_pc_cm3", "snr"):
            assert event[column] == found[column]
        assert event["width_samples"] == found["width_samples"] or name.startswith("heimdall")
        assert float(event["probability"]) == pytest.approx(float(found["probability"]), abs=0.05)


def test_an_empty_list_has_no_events(observation, tmp_path):
    path = heimdall(tmp_path / "none.cand", [])
    assert classify(observation, path).returncode == 0
    assert (tmp_path / "none_classified.cand").read_text() == ""
    assert rows_of(tmp_path / "candidates_obs.csv") == []


def test_results_of_a_search_are_kept(observation, tmp_path):
    for kind in ("candidates_obs.csv", "predictions_obs.npy"):
        (tmp_path / kind).write_text("earlier")
    assert classify(observation, heimdall(tmp_path / "a.cand", [(0.6, 57.0, 40.0, 3)])).returncode == 0
    kept = [path.read_text() for path in tmp_path.glob("*_obs.2*")]
    assert kept == ["earlier", "earlier"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--candidate-list", "a.cand"], "--candidate-list must be used with --filterbank"),
        (["--pages", "a.npy", "--candidate-list", "a.cand"], "--candidate-list must be used with --filterbank"),
        (["--filterbank", "OBS", "--joined", "--candidate-list", "a.cand"], "--candidate-list and --joined"),
        (["--filterbank", "OBS", "OTHER", "--candidate-list", "a.cand"], "one filterbank file, got 2"),
        (["--filterbank", "OBS", "--candidate-list", "none.cand"], "none.cand: No such file"),
        (["--filterbank", "OBS", "--keep-all"], "--keep-all must be used with --candidate-list"),
        (["--filterbank", "OBS", "--list-format", "presto"], "--list-format must be used with --candidate-list"),
    ],
)
def test_errors_before_the_work(observation, tmp_path, options, message):
    heimdall(tmp_path / "a.cand", [(0.6, 57.0, 40.0, 3)])
    (tmp_path / "other.fil").symlink_to(observation)
    names = {"OBS": observation, "OTHER": tmp_path / "other.fil"}
    words = [names.get(word, word) for word in options]
    done = run_here(run_inference, *words, "--output-dir", tmp_path / "out", folder=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert not (tmp_path / "out").exists() and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def saved(observation, tmp_path_factory) -> Path:
    """Folder with the results of a search and its events as candidate files."""
    folder = tmp_path_factory.mktemp("saved")
    done = run_here(
        run_inference, "--filterbank", observation, "--output-dir", folder, "--no-plots", "--save-candidates"
    )
    assert done.returncode == 0, done.stderr
    assert "events  4" in done.stdout and ".h5" not in done.stdout
    return folder


def test_saved_candidates_have_the_pulse_in_the_middle(saved):
    events = rows_of(saved / "candidates_obs.csv")
    files = sorted(map(read_candidate_file, saved.glob("*.h5")), key=lambda file: file.time_s)
    assert len(files) == len(events) == len(PULSES)
    for file, event, pulse in zip(files, events, PULSES, strict=True):
        assert file.dm == float(event["dm_pc_cm3"]) and file.width_samples == int(event["width_samples"])
        assert file.time_s == pytest.approx(float(event["time_s"]), abs=1e-6)
        assert file.snr == pytest.approx(float(event["snr"]), abs=0.01)
        assert file.attributes["nchans"] == HEADER.nchans and file.attributes["tstart"] == HEADER.tstart
        assert file.freq_time.shape == (64, 256) and file.dm_time.dtype == np.float32
        row, column = np.unravel_index(file.dm_time.argmax(), file.dm_time.shape)
        assert abs(int(column) - 128) <= 1
        assert file.dms[row] == pytest.approx(pulse.dm_pc_cm3, abs=1.5)
        assert file.dm_time[0].max() < 0.6 * file.dm_time.max() and file.dm_time[:, 0].max() < 6
        in_channels = file.freq_time[:, 127:130].sum(axis=1)
        assert (in_channels > 0).mean() > 0.9
        assert abs(int(file.freq_time.sum(axis=0).argmax()) - 128) <= 1
        assert file.dm_time[:, :100].std() == pytest.approx(1, abs=0.3)


def test_candidate_files_are_classified(saved, tmp_path):
    noise = read_candidate_file(min(saved.glob("*.h5")))
    rng = np.random.default_rng(5)
    planes = rng.standard_normal((256, 256)), rng.standard_normal((64, 256))
    write_candidate_file(tmp_path / "noise.h5", CandidateFile(*planes, noise.attributes))
    (tmp_path / "damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    command = ["--candidates", saved / "*.h5", tmp_path / "*.h5", "--output-dir", tmp_path]
    done = run_here(run_inference, *command)
    assert done.returncode == 2 and "all 6 files must be readable, got 1" in done.stderr
    assert "damaged.h5" in done.stderr and "5 candidates, 4 with" in done.stdout
    (tmp_path / "damaged.h5").unlink()
    assert run_here(run_inference, *command).returncode == 0
    rows = rows_of(tmp_path / "results_candidate_classifier.csv")
    assert list(rows[0]) == ["candidate", "probability", "label"]
    assert [Path(row["candidate"]) for row in rows] == [*sorted(saved.glob("*.h5")), tmp_path / "noise.h5"]
    assert [row["label"] for row in rows] == ["1"] * 4 + ["0"]
    assert [float(row["probability"]) > 0.5 for row in rows] == [True] * 4 + [False]


def test_the_frame_of_a_file_is_that_of_the_cutouts(saved, source):
    cutter = PlaceCutouts(source)
    for path in saved.glob("*.h5"):
        file = read_candidate_file(path)
        place = Place(file.time_s, file.dm, int(file.width_samples))
        dm_time, snrs = cutter.dm_time([place])
        views = cutter.frequency_time([place], snrs)[0]
        image, pair = cutouts_of(file)
        middle = (slice(SIDE // 2 - 6, SIDE // 2 + 7),) * 2
        assert np.corrcoef(image[middle].ravel(), dm_time[0][middle].ravel())[0, 1] > 0.85
        near = slice(SIDE // 2 - 8, SIDE // 2 + 8)
        profile, expected = (
            np.where(view > ROBUST_RANGE[0], view, 0)[:, near].mean(axis=0) for view in (pair[0], views[0])
        )
        assert np.corrcoef(profile, expected)[0, 1] > 0.8


@pytest.mark.parametrize("nchans", [40, 64, 256])
def test_the_channels_of_a_file_are_delayed_as_they_were(saved, nchans):
    file = read_candidate_file(min(saved.glob("*.h5")))
    attributes = file.attributes | {"dm": 20.0, "width": 16}
    channels = np.random.default_rng(1).standard_normal((nchans, 256))
    channels[:, 128] = 500
    dedispersed, undispersed = cutouts_of(replace(file, freq_time=channels, attributes=attributes))[1][:, ::-1]
    assert set(dedispersed.argmax(axis=1)) <= {31, 32}  # one time is two columns
    # Seen about the time at which it passes the middle of the band.
    frequencies = 1530 - 320 * (np.arange(SIDE) + 0.5) / SIDE
    delays = dispersion_delay(20.0, frequencies, frequencies[SIDE // 2]) / HEADER.tsamp / 4
    inside = np.abs(delays) < 29
    assert inside.sum() > 30 and not inside.all()
    assert undispersed.argmax(axis=1)[inside] == pytest.approx(32 + delays[inside], abs=3)


def test_files_with_other_numbers_of_channels(saved):
    file = read_candidate_file(min(saved.glob("*.h5")))
    _, whole = cutouts_of(file)
    averaged = file.freq_time.reshape(32, 2, 256).mean(axis=1)
    averaged[20] = np.nan
    ascending = file.attributes | {"fch1": HEADER.frequencies[-1], "foff": 5.0}
    _, pair = cutouts_of(replace(file, freq_time=averaged, attributes=ascending))
    assert pair.shape == whole.shape
    assert np.all(pair[:, [-1 - 40, -1 - 41]] == ROBUST_RANGE[0])
    used = np.delete(np.arange(SIDE), [-1 - 40, -1 - 41])
    assert np.all(pair[:, used].max(axis=(0, 2)) > ROBUST_RANGE[0])
    assert np.isfinite(cutouts_of(replace(file, attributes=file.attributes | {"dm": 0.0, "width": 0}))[0]).all()


def test_a_network_that_needs_the_channels_gets_them(observation, saved, tmp_path):
    """An untrained one: its probabilities differ from candidate to candidate only if it gets their cutouts."""
    torch.manual_seed(2)
    name, model = "DM_time_freq_time_candidate_classifier", tmp_path / "views.pth"
    network = build_model(name, SIDE, CHANNELS)
    save_checkpoint(model, Checkpoint(network, name, SIDE, normaliser="noise", channels=CHANNELS))
    config = json.loads(DEFAULT_CONFIG.read_text()) | {
        "candidate_classifier": str(model),
        "path_to_models": str(DEFAULT_CONFIG.with_name("models")),
        "path_to_a_transientx_config": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = heimdall(tmp_path / "a.cand", [(pulse.time_s, pulse.dm_pc_cm3, pulse.snr, 3) for pulse in PULSES])
    done = classify(observation, path, "-c", tmp_path / "config.json", "--event-threshold", 0, "--keep-all")
    assert done.returncode == 0, done.stderr
    in_list = [line.split("\t")[-2] for line in (tmp_path / "a_classified.cand").read_text().splitlines()]
    assert [f"{float(row['probability']):.6f}" for row in rows_of(tmp_path / "candidates_obs.csv")] == in_list
    command = ["--candidates", saved / "*.h5", "-c", tmp_path / "config.json", "--output-dir", tmp_path]
    assert run_here(run_inference, *command).returncode == 0
    in_files = [row["probability"] for row in rows_of(tmp_path / "results_views.csv")]
    assert len(set(in_list)) == len(set(in_files)) == len(PULSES)


@pytest.mark.parametrize("options", [["--joined"], ["--report"], ["--keep-all"], ["--filterbank", "a.fil"]])
def test_options_that_candidate_files_do_not_have(tmp_path, options):
    done = run_here(run_inference, "--candidates", "a.h5", *options, folder=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr and options[0] in done.stderr
    done = run_here(run_inference, "--candidates", "none*.h5", folder=tmp_path)
    assert done.returncode == 2 and "--candidates none*.h5: must be a file" in done.stderr


def test_only_searches_with_channels_save_candidates(tmp_path):
    for words, message in [([], "got a ring"), (["--pages", "a.npy"], "got pages")]:
        done = run_here(run_inference, *words, "--save-candidates", "--output-dir", tmp_path / "out", folder=tmp_path)
        assert done.returncode == 2 and "--save-candidates must be used with a f" in done.stderr
        assert message in done.stderr
