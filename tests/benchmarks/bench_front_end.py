"""Speed and memory of the front end: `python tests/benchmarks/bench_front_end.py`, or `make bench`.

60 s of noise, 256 channels from 1210 to 1510 MHz, 8 bit, 256 trial DMs from 0 to 127.5 pc cm^-3, all cores. Each row is
a process of its own. Prints a table.

  dedispersion     alone, in memory, in chunks, with the fast tree and with the exact sum
  .fil to pages    read, clean, dedisperse, cut, normalise
  memory           peak of ".fil to pages", also for a file ten times as long
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch

from pipeline_classifier.detection.workers import prepare_process
from pipeline_classifier.formats.sigproc import FilterbankWriter, Header
from pipeline_classifier.frontend import dedispersion
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import to_images
from pipeline_classifier.frontend.settings import FrontEndSettings
from pipeline_classifier.frontend.threads import map_in_order
from tests.benchmarks.measure import measure

DURATION_S = 60
REPETITIONS = 3
CHUNK = 16384
DMS = 0.5 * np.arange(256)
FREQUENCIES = 1510 - (np.arange(256) + 0.5) * 300 / 256


def write_observation(path: Path, tsamp: float, duration_s: float) -> None:
    """Noise; the same second again and again, to write it fast."""
    header = Header(nchans=256, nbits=8, tsamp=tsamp, fch1=FREQUENCIES[0], foff=-300 / 256, tstart=59000.0)
    second = np.random.default_rng(0).normal(100, 10, (round(1 / tsamp), 256)).astype(np.uint8)
    with FilterbankWriter(path, header) as file:
        for _ in range(round(duration_s)):
            file.write(second)


def dedisperse(tsamp: float, exact: bool) -> float:
    """Seconds for the whole observation, in chunks whose planes are not added to each other."""
    delays = dedispersion.channel_delays(DMS, FREQUENCIES, tsamp)
    tree = dedispersion.DedispersionTree(delays, None if exact else dedispersion.delay_quanta(DMS, FREQUENCIES, tsamp))
    chunks = round(DURATION_S / tsamp / CHUNK)
    data = np.random.default_rng(0).integers(-30, 30, (chunks, 256, CHUNK), np.int8)
    planes = np.zeros((chunks, 256, tree.max_delay + CHUNK), np.int16)
    seconds = best_of(lambda: list(map_in_order(lambda number: tree.add(data[number], planes[number]), range(chunks))))
    return seconds * DURATION_S / (chunks * CHUNK * tsamp)


def to_pages(path: Path, repetitions: int = REPETITIONS) -> float:
    """Seconds from the file to normalised images."""
    prepare_process()
    source = FilterbankPages(path, FrontEndSettings(DMS))

    def images(batch) -> None:
        for first in range(0, len(batch), 32):
            to_images(batch[first : first + 32].pages, "robust", 256)

    return best_of(lambda: list(map_in_order(images, source.planes())), repetitions)


def best_of(job, repetitions: int = REPETITIONS) -> float:
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        job()
        times.append(time.perf_counter() - began)
    return min(times)


def run_child(*options: object) -> tuple[float, float]:
    """Times real time, and peak memory in MB, of one measurement in a process of its own."""
    measured = measure([sys.executable, __file__, *map(str, options)])
    return float(measured.stdout), measured.peak_mb


def table() -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"front end, x real time, {cores} cores, torch {torch.__version__}, numpy {np.__version__}")
    print("| | 128 us | 54.6 us |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        rows: dict[str, list[float]] = {}
        for tsamp in (128e-6, 54.6e-6):
            path = Path(folder) / "a.fil"
            write_observation(path, tsamp, DURATION_S)
            for name, options in {"fast tree": [], "exact": ["--exact"]}.items():
                rows.setdefault(f"dedispersion, {name}", []).append(run_child("--tsamp", tsamp, *options)[0])
            speed, memory = run_child("--file", path)
            rows.setdefault(".fil to pages", []).append(speed)
            rows.setdefault("peak memory, MB", []).append(memory)
        for name, values in rows.items():
            print(f"| {name} | " + " | ".join(f"{value:.0f}" for value in values) + " |")
        write_observation(path, 128e-6, 10 * DURATION_S)
        print(f"peak memory for ten times the length: {run_child('--file', path, '--once')[1]:.0f} MB")
    print(f"of which import torch: {measure([sys.executable, '-c', 'import torch']).peak_mb:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tsamp", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tsamp:
        print(DURATION_S / dedisperse(args.tsamp, args.exact))
    elif args.file:
        print(DURATION_S / to_pages(args.file, 1 if args.once else REPETITIONS))
    else:
        table()


if __name__ == "__main__":
    main()
