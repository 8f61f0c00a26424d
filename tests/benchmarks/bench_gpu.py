"""Speed of the GPU path beside the CPU path; Markdown tables on standard output. Five minutes.

python tests/benchmarks/bench_gpu.py                 what it needs is simulated; exit code 2 without a GPU
python tests/benchmarks/bench_gpu.py --device cpu    the code of the GPU path on the CPU, to test this script

Stages are measured on one chunk in memory, by one thread; the search and the whole process with all cores. Events of
the two paths are counted, as they must be the same. Observations: 256 channels of 102.4 us with 256 trial DMs, and 4096
channels of 49.152 us with 512.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.classifiers import load_classifiers, load_page_model
from pipeline_classifier.detection.decision import decide
from pipeline_classifier.detection.page_classifier import PageClassifier, on_device
from pipeline_classifier.detection.search import search
from pipeline_classifier.frontend import cleaning
from pipeline_classifier.frontend.boxcar import page_snrs
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.gpu import cleaning as gpu_cleaning
from pipeline_classifier.frontend.gpu.device_pages import DevicePages
from pipeline_classifier.frontend.pages import PageBatch
from single_pulse_classifier_training.cli import InputError, run_script
from tests.benchmarks.bench_whole_job import JOBS, PIPELINE, Job, measured_duration
from tests.benchmarks.measure import ROOT, machine, measure, print_table

STAGES = ("copy", "cleaning", "dedispersion", "gate", "images of 32 pages", "network, 32 pages")


def median_s(job: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median wall time of a job, which has one run that does not count."""
    times = []
    for _ in range(repeats + 1):
        finish(device)
        began = time.perf_counter()
        job()
        finish(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def finish(device: torch.device) -> None:
    """Wait for all that the GPU was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def stages(source: FilterbankPages, classifier: PageClassifier, device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of `STAGES` for the first chunk."""
    raw = source._read(0, int(source.chunk_edges()[1]))
    settings = source.frequencies, source.tsamp, source.cleaning
    if isinstance(source, DevicePages):
        there, trees = torch.from_numpy(raw).to(device), source._device_trees
        data = gpu_cleaning.clean(there, *settings).data
        clean = lambda: gpu_cleaning.clean(there, *settings)  # noqa: E731
        planes = [torch.zeros((len(tree.delays), tree.max_delay + len(raw)), dtype=torch.int16) for tree in trees]
        planes = [plane.to(device) for plane in planes]
    else:
        trees, data = source._trees, np.empty(raw.shape[::-1], np.int8)
        clean = lambda: cleaning.clean(raw, *settings, data)  # noqa: E731
        clean()
        planes = [np.zeros((len(tree.delays), tree.max_delay + len(raw)), np.int16) for tree in trees]
    if len(source.frequencies) > 1024:
        planes = [
            plane.to(torch.int32) if isinstance(plane, torch.Tensor) else plane.astype(np.int32) for plane in planes
        ]

    def dedisperse() -> None:
        for tree, plane in zip(trees, planes, strict=True):
            tree.add(data, plane)

    starts = np.arange(0, len(raw) - 255, 256)
    noise = 8 * np.sqrt(len(source.frequencies))
    batches = [
        source._batch(plane[:, -len(raw) :], 1, starts, starts, 256, 0, number, 1 / noise)
        for number, plane in enumerate(planes)
    ]
    some: PageBatch = batches[0][:32]
    chosen, how = np.arange(len(some)), (classifier.checkpoint.normaliser, classifier.checkpoint.resolution)
    images = on_device(some.images(chosen, *how)[0], device)
    jobs: list[Callable[[], object]] = [
        lambda: torch.from_numpy(raw).to(device, copy=True),
        clean,
        dedisperse,
        lambda: [page_snrs(batch, 1.0) for batch in batches],
        lambda: some.images(chosen, *how),
        lambda: [classifier.network.probabilities(part) for part in images.split(classifier.network.batch_size)],
    ]
    return [median_s(job, device, repeats) for job in jobs]


def searched(source: FilterbankPages, config: PipelineConfig, device: torch.device, repeats: int) -> tuple[float, int]:
    """Wall time of the search without start-up, and the number of events."""
    classifiers = load_classifiers(config)
    decision, found = decide(config, classifiers, source.layers), []
    seconds = median_s(lambda: found.append(len(search(source, classifiers, decision).events)), device, repeats)
    return seconds, found[-1]


def bench(job: Job, folder: Path, device: torch.device, repeats: int) -> None:
    """Measure and print the tables of one observation."""
    path, config_path = folder / "observation.fil", folder / "config.json"
    simulate = [sys.executable, str(ROOT / PIPELINE / "simulate_observation.py"), str(path)]
    measure([*simulate, *job.observation.split()])
    config_path.write_text(json.dumps(job.config))
    configs = {name: load_pipeline_config(config_path, {"device": name}) for name in ("cpu", device.type)}
    duration_s, settings = float(measured_duration(job.observation)), replace(configs["cpu"].front_end())
    other = "GPU" if device.type == "cuda" else "torch on the CPU"
    sources = {"CPU": FilterbankPages(path, settings), other: DevicePages(path, settings, device)}
    devices = {"CPU": torch.device("cpu"), other: device}
    print(f"\n{job.title}\n")

    times = []
    for name, source in sources.items():
        checkpoint = load_page_model(configs[devices[name].type].model_path, devices[name])
        torch.set_num_threads(1)
        times.append(stages(source, PageClassifier(checkpoint, devices[name]), devices[name], repeats))
    chunk_s = int(sources["CPU"].chunk_edges()[1]) * sources["CPU"].tsamp
    rows: list[list[object]] = [
        [stage, *(f"{1e3 * seconds:.1f} ({chunk_s / seconds:.0f})" for seconds in pair)]
        for stage, pair in zip(STAGES, zip(*times, strict=True), strict=True)
    ]
    print_table([f"a chunk of {chunk_s:.2f} s, ms (x real time)", "one core", other], rows)
    print()

    rows = []
    for name, source in sources.items():
        config = configs[devices[name].type]
        seconds, events = searched(source, config, devices[name], max(1, repeats // 4))
        command = [sys.executable, str(ROOT / PIPELINE / "run_inference.py"), "-c", str(config_path), "--no-plots"]
        command += ["--device", config.device, "--filterbank", str(path), "--output-dir", str(folder / "out")]
        process_s = median_s(functools.partial(measure, command), devices[name], 2)
        rows.append([name, f"{seconds:.2f}", f"{duration_s / seconds:.1f}", f"{process_s:.2f}", events])
    print_table(["front end and page network", "search s", "x real time", "whole process s", "events"], rows)
    path.unlink()


def run(args: argparse.Namespace) -> None:
    """Measure and print the tables."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"the machine must have a GPU that PyTorch can use, got none (torch {torch.__version__}, CUDA "
            f"{torch.version.cuda})"
        )
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU: its code runs on the CPU"
    print(f"{name}; {machine()}; torch {torch.__version__}; medians of {args.repeats} runs")
    with tempfile.TemporaryDirectory() as folder:
        for key in args.only or ("effelsberg", "fast"):
            bench(JOBS[key], Path(folder), device, args.repeats)
    if device.type == "cuda":
        print(f"\nlargest memory in use on the GPU: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=list(JOBS), help="observations (default: effelsberg fast)")
    parser.add_argument("--repeats", type=int, default=8, help="runs of each stage (default: %(default)s)")
    return parser


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
