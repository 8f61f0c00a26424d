"""How many pages of a ring the live search classifies in a second, with the default model: `make bench`.

    python tests/benchmarks/bench_ring.py

Another process writes 256 x 256 float32 pages of noise into a ring of 16 blocks of 1 MiB, as the live pipeline has it:
as fast as it can, and then at the rate of a page in 26.2 ms (256 samples of 102.4 us). Prints a table; latency is the
time from the ring to the classification, the longest of a batch.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
import multiprocessing
import os
import tempfile
import time

import numpy as np

from pipeline_classifier.config import DEFAULT_CONFIG, PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.classifiers import load_classifiers
from pipeline_classifier.detection.workers import prepare_process
from pipeline_classifier.live import live_search
from pipeline_classifier.live.live_results import Monitor
from pipeline_classifier.live.psrdada.client import Writer, create_rings, destroy_rings
from single_pulse_classifier_training.cli import run_script
from tests.benchmarks.measure import machine, print_table

BLOCKS, PAGES_PER_BLOCK, SIDE = 16, 4, 256
PAGE_S = SIDE * 102.4e-6
HEADER = {"dms": 0.0, "ddm": 0.5, "ndm": SIDE, "ndump": SIDE, "tsamp": 102.4e-6, "fmax": 1530, "fmin": 1211.25}


class RecordedLatency(Monitor):
    """Keeps every latency."""

    def __init__(self, *args: object) -> None:
        self.latencies: list[float] = []
        super().__init__(*args)
        RecordedLatency.last = self

    @property
    def latency_s(self) -> float:
        return self.latencies[-1] if self.latencies else 0.0

    @latency_s.setter
    def latency_s(self, value: float) -> None:
        self.latencies.append(value)


def send(key: int, n_pages: int, page_s: float) -> None:
    """Write the pages, one in ``page_s`` (0: as fast as they are taken)."""
    noise = np.random.default_rng(0).standard_normal((PAGES_PER_BLOCK, SIDE, SIDE)).astype(np.float32)
    with Writer(key, 60.0) as writer:
        writer.setHeader(json.dumps(HEADER))
        began = time.monotonic()
        for done in range(0, n_pages, PAGES_PER_BLOCK):
            time.sleep(max(0.0, began + done * page_s - time.monotonic()))
            writer.write(noise)


def measure(config: PipelineConfig, key: int, n_pages: int, page_s: float) -> list[object]:
    """A row of the table."""
    classifiers = load_classifiers(config)
    create_rings(key, PAGES_PER_BLOCK * 4 * SIDE * SIDE, BLOCKS)
    sender = multiprocessing.get_context("spawn").Process(target=send, args=(key, n_pages, page_s), daemon=True)
    try:
        sender.start()
        with tempfile.TemporaryDirectory() as folder:
            changes = {"key_output": f"{key:x}", "n_spectra": n_pages, "output_dir": folder}
            config = config.model_copy(update=changes)
            with live_search.open_ring(config) as source:
                began = time.monotonic()
                result = live_search.live_search(source, classifiers, config)
                rate = n_pages / (time.monotonic() - began)
    finally:
        sender.terminate()
        sender.join()
        destroy_rings(key)
    latencies = RecordedLatency.last.latencies[1:]
    name = "as fast as it goes" if page_s == 0 else f"one in {page_s * 1e3:.1f} ms"
    fullest = f"{result.summary.most_ring_blocks_full} of {BLOCKS}"
    times = f"{np.median(latencies):.2f}", f"{max(latencies):.2f}"
    return [name, n_pages, f"{rate:.1f}", f"{rate * PAGE_S:.1f}", *times, fullest]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", default=DEFAULT_CONFIG, help="names the model (default: %(default)s)")
    parser.add_argument(
        "--pages", type=int, default=4000, help="written as fast as they are taken (default: %(default)s)"
    )
    parser.add_argument("--live-s", type=float, default=20.0, help="at the real rate, seconds (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> list[list[object]]:
    """Measure and print the table; returns its rows."""
    live_search.Monitor = RecordedLatency
    key = 0x50000000 | (os.getpid() & 0x7FFF) << 1
    paced = max(1, round(args.live_s / PAGE_S / PAGES_PER_BLOCK)) * PAGES_PER_BLOCK
    config = load_pipeline_config(args.config)
    rows = [measure(config, key, args.pages, 0.0), measure(config, key, paced, PAGE_S)]
    print(f"Pages of a ring, live search, {config.name_of_the_model}; {machine()}\n")
    print_table(
        ["pages come", "pages", "pages/s", "times real time", "latency, median (s)", "longest (s)", "fullest ring"],
        rows,
    )
    return rows


def main() -> None:
    prepare_process()
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
