"""A search through the torch path gives the pages and the events of the compiled loops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_classifier import run_inference
from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.classifiers import Classifiers, load_classifiers
from pipeline_classifier.detection.decision import decide
from pipeline_classifier.detection.page_classifier import PageClassifier
from pipeline_classifier.detection.search import SearchResult, search
from pipeline_classifier.formats.sigproc import FilterbankWriter, Header
from pipeline_classifier.frontend import cleaning
from pipeline_classifier.frontend.boxcar import page_snrs
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages, pages_of
from pipeline_classifier.frontend.gpu import device_pages
from pipeline_classifier.frontend.gpu.cleaning import Cleaned
from pipeline_classifier.frontend.gpu.device_pages import DeviceBatch, DevicePages
from pipeline_classifier.frontend.pages import PageBatch
from pipeline_classifier.frontend.settings import Cleaning, FrontEndSettings
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.checkpoint import load_checkpoint
from single_pulse_classifier_training.cli import InputError
from tests.benchmarks import bench_gpu
from tests.command_line import run_here
from tests.pipeline_classifier.frontend.gpu.devices import DEVICES, needs_gpu

HEADER = Header(nchans=64, nbits=8, tsamp=4.096e-4, fch1=1530.0, foff=-5.0, tstart=59000.0)
NSAMPLES = 12_000
DMS = 2.0 * np.arange(64)
STACKS = 0.5 * np.arange(300)
PULSES = [Pulse(0.4, 30.0, 12.0, 2.0), Pulse(0.9, 57.0, 40.0, 1.0), Pulse(1.5, 100.0, 9.0, 4.0)]


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("observation") / "a.fil"
    simulate(path, HEADER, NSAMPLES, [Pulse(2.5, 56.0, 40.0, 2.0)], Rfi(), seed=1)
    return path


@pytest.fixture(scope="module")
def other_bandpass(tmp_path_factory) -> Path:
    """An observation that follows the first one, with another bandpass and a stretch that is not finite."""
    path = tmp_path_factory.mktemp("observation") / "b.fil"
    samples = np.random.default_rng(0).standard_normal((5000, 1, 64), dtype=np.float32)
    samples = (samples + 10) * np.linspace(1, 9, 64, dtype=np.float32)
    samples[100:120, 0, 3] = np.nan
    samples[:, 0, 20] = 5
    start = HEADER.tstart + NSAMPLES * HEADER.tsamp / 86400
    with FilterbankWriter(path, replace(HEADER, nbits=32, tstart=start)) as file:
        file.write(samples)
    return path


def cleaned_by_loops(raw: torch.Tensor, frequencies: np.ndarray, tsamp: float, settings: Cleaning) -> Cleaned:
    out = np.empty(tuple(raw.shape)[::-1], np.int8)
    _, *rest = cleaning.clean(raw.cpu().numpy(), frequencies, tsamp, settings, out)
    return Cleaned(torch.from_numpy(out).to(raw.device), *rest)


def compare(path: Path | list[Path], settings: FrontEndSettings, device: str, largest_difference: float) -> None:
    """Compare all pages, and what else a search learns of them."""
    loops, torch_path = FilterbankPages(path, settings), DevicePages(path, settings, device)
    values = differing = 0
    for expected, batch in zip(loops.planes(2), torch_path.planes(2), strict=True):
        assert isinstance(batch, DeviceBatch) and batch.plane.device.type == device
        for name in ("n_time", "first", "layer", "scale"):
            assert getattr(batch, name) == getattr(expected, name)
        np.testing.assert_array_equal(batch.columns, expected.columns)
        np.testing.assert_array_equal(batch.starts, expected.starts)
        plane = batch.plane.cpu().numpy()
        assert plane.dtype == expected.plane.dtype
        values, differing = values + plane.size, differing + int((plane != expected.plane).sum())
    assert differing <= largest_difference * values
    assert torch_path.summary() == loops.summary()


SETTINGS = {
    "long chunks": FrontEndSettings(DMS),
    "short chunks": FrontEndSettings(DMS, block_samples=2048, overlap=0.5),
    "stacks and averages": FrontEndSettings(STACKS, block_samples=4096, time_downsample=(1, 4), exact=True),
    "averaged first": FrontEndSettings(DMS, Cleaning(td=2, fd=2), n_time=128, block_samples=2048),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_pages_are_equal_for_the_same_samples(observation, settings, device, monkeypatch):
    monkeypatch.setattr(device_pages, "clean", cleaned_by_loops)
    compare(observation, settings, device, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_pages_of_files_with_two_bandpasses(observation, other_bandpass, device, monkeypatch):
    monkeypatch.setattr(device_pages, "clean", cleaned_by_loops)
    wide = observation.with_name("wide.fil")
    samples = np.fromfile(observation, np.uint8)[-NSAMPLES * 64 :].reshape(NSAMPLES, 1, 64).copy()
    samples[:, 0, 10] = 7  # a chunk with the end of one file and the start of the next one uses both channels
    with FilterbankWriter(wide, replace(HEADER, nbits=32)) as file:
        file.write(samples.astype(np.float32))
    source = DevicePages([wide, other_bandpass], FrontEndSettings(DMS, block_samples=4096), device)
    list(source.planes())
    assert source.summary().values_not_finite == 20
    compare([wide, other_bandpass], FrontEndSettings(DMS, block_samples=4096), device, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_pages_differ_in_few_values(observation, device):
    """A sum of 64 samples differs where one of them does, which is in at most one of 10,000."""
    compare(observation, FrontEndSettings(DMS), device, 64e-4)


def sums(n_dm: int, n_time: int, dtype: type, device: str) -> tuple[PageBatch, DeviceBatch]:
    """Pages of integer sums: noise with pulses, one page constant, the last ones overlap."""
    plane = np.rint(100 * np.random.default_rng(0).standard_normal((n_dm, 9 * n_time + 7))).astype(dtype)
    plane[5, n_time + 3 : n_time + 9] += 300
    plane[9, 2 * n_time - 5 : 2 * n_time + 30] += 200
    plane[:, 4 * n_time : 5 * n_time] = 7
    columns = np.append(n_time * np.arange(9), 8 * n_time + 7)
    batch = PageBatch(plane, columns, 1000 + columns, n_time, 40, 1, 0.01)
    return batch, DeviceBatch(torch.from_numpy(plane).to(device), *list(vars(batch).values())[1:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_dm, n_time, dtype", [(24, 50, np.int16), (256, 256, np.int16), (40, 64, np.int32)])
def test_a_batch_gives_the_same_on_the_device(n_dm, n_time, dtype, device):
    batch, on_device = sums(n_dm, n_time, dtype, device)
    assert len(on_device) == 10 and not on_device.are_images
    for noise in (0.0, 1.0):
        expected, result = page_snrs(batch, noise), page_snrs(on_device, noise)
        np.testing.assert_allclose(result.within, expected.within, atol=1e-4)
        np.testing.assert_allclose(result.beginning, expected.beginning, atol=1e-4)
        np.testing.assert_array_equal(result.constant, np.arange(10) == 4)
    for ours, theirs in ((on_device, batch), (on_device[3:], batch[3:])):
        assert ours.first == theirs.first
        np.testing.assert_array_equal(ours.pages, theirs.pages)
        np.testing.assert_array_equal(ours.sampled(), theirs.sampled())
        np.testing.assert_array_equal(ours.columns_on_host(3, 99), theirs.columns_on_host(3, 99))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gate", [0.0, 5.4])
def test_probabilities_are_the_same(gate, device):
    batch, on_device = sums(256, 256, np.int16, device)
    path = PipelineConfig().model_path
    cpu = PageClassifier(load_checkpoint(path, "cpu"), torch.device("cpu"))
    same = PageClassifier(load_checkpoint(path, device), torch.device(device))
    expected, result = cpu.classify(batch, gate, 1.0), same.classify(on_device, gate, 1.0)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-4)
    assert result.gated == expected.gated and (result.gated > 0) == (gate > 0)


@pytest.fixture(scope="module")
def pulses(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pulses") / "pulses.fil"
    simulate(path, EFFELSBERG, round(2 / EFFELSBERG.tsamp), PULSES, Rfi(), seed=2)
    return path


def found(source: FilterbankPages, classifiers: Classifiers) -> SearchResult:
    return search(source, classifiers, decide(PipelineConfig(), classifiers, source.layers), threads=2)


@pytest.mark.parametrize("device", DEVICES)
def test_a_search_finds_the_same_events(pulses, device):
    classifiers = load_classifiers(PipelineConfig(device=device))
    settings = replace(PipelineConfig().front_end(), block_samples=8192)
    expected = found(FilterbankPages(pulses, settings), load_classifiers(PipelineConfig(device="cpu")))
    result = found(DevicePages(pulses, settings, device), classifiers)
    assert len(result.events) == len(expected.events) >= len(PULSES)
    for event, other in zip(result.events, expected.events, strict=True):
        assert event.snr == pytest.approx(other.snr, rel=0.01)
        assert (event.time_s, event.dm_pc_cm3) == pytest.approx((other.time_s, other.dm_pc_cm3), abs=2e-4)
    np.testing.assert_array_equal(result.predictions, expected.predictions)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=0.01)


def test_the_config_chooses_the_device(observation):
    assert {device: PipelineConfig(device=device).front_end().device for device in ("auto", "cpu", "cuda")} == {
        "auto": "cpu", "cpu": "cpu", "cuda": "cuda",
    }  # fmt: skip
    assert type(pages_of(observation, FrontEndSettings(DMS))) is FilterbankPages
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="PyTorch finds no GPU, got 'cuda'"):
            pages_of(observation, FrontEndSettings(DMS, device="cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures for minutes")
def test_the_benchmark_says_that_there_is_no_gpu():
    done = run_here(bench_gpu)
    assert done.returncode == 2 and "must have a GPU that PyTorch can use, got none" in done.stderr


@pytest.mark.cuda
@needs_gpu
def test_the_command_line_searches_on_the_gpu(pulses, tmp_path):
    assert isinstance(pages_of(pulses, FrontEndSettings(DMS, device="cuda")), DevicePages)
    catalogues = []
    for device in ("cpu", "cuda"):
        options = "--device", device, "--output-dir", tmp_path / device, "--max-plots", 1
        done = run_here(run_inference, "--filterbank", pulses, *options)
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / device / "candidates_pulses.csv").read_text().splitlines()
        catalogues.append([[float(value) for value in line.split(",")[:1]] for line in lines[1:]])
    np.testing.assert_allclose(*catalogues, atol=2e-4)
