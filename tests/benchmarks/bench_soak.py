"""Many pages through a small ring, with a reader that is ended again and again: none is lost, none comes twice.

    python tests/benchmarks/bench_soak.py
    python tests/benchmarks/bench_soak.py --pages 10000 --restarts 5

Pages carry their number. A reader notes the number of a page in a file before it gives the page back; one that is killed
at any moment (SIGKILL) may have noted the page in its hands already, which the next one then gets again: that is counted
apart, and is no more than one page for each kill. The search's own source, RingPages, is told to end (SIGTERM); after
that nothing comes again. Exit code 1 if a page is lost or comes twice.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import logging
import multiprocessing
import os
import signal
import tempfile
import time

import numpy as np

from pipeline_classifier.live.psrdada.client import Reader, Writer, create_rings, destroy_rings
from pipeline_classifier.live.ring_header import RingSettings
from pipeline_classifier.live.ring_pages import RingPages
from single_pulse_classifier_training.cli import run_script
from tests.benchmarks.measure import machine, print_table

N_DM, N_TIME, BLOCKS = 4, 16, 4
PAGE_BYTES = 4 * N_DM * N_TIME
TIMEOUT_S = 60.0
PROCESSES = multiprocessing.get_context("spawn")


def write_pages(key: int, count: int) -> None:
    """Write pages that carry their numbers."""
    with Writer(key, TIMEOUT_S) as writer:
        for number in range(count):
            writer.write(np.full((N_DM, N_TIME), number, np.float32))


def read_blocks(key: int, path: Path) -> None:
    """Note each page, then give it back."""
    logging.disable()  # that a page is read again is counted
    with open(path, "ab", buffering=0) as file, Reader(key, TIMEOUT_S) as reader:
        while not reader.isEndOfData:
            page = np.frombuffer(reader.getNextPage(), np.float32)
            if len(page):
                file.write(int(page[0]).to_bytes(8, "little"))
            reader.markCleared()


def read_pages(key: int, path: Path) -> None:
    """Note each page of the search's own source; end on SIGTERM."""
    logging.disable()  # that the ring is full is the point
    settings = RingSettings(np.arange(float(N_DM)), N_TIME, stop_at_end_of_data=True, max_latency_s=0.05)
    with open(path, "ab", buffering=0) as file, RingPages(key, settings) as source:
        signal.signal(signal.SIGTERM, lambda *_: source.stop("SIGTERM"))
        file.writelines(batch.pages[:, 0, 0].astype("<i8").tobytes() for batch in source.batches(64))


def soak(key: int, count: int, restarts: int, reader: object, signal_number: int) -> list[object]:
    """A row of the table: reader, pages, restarts, lost, twice, read again, seconds."""
    create_rings(key, PAGE_BYTES, BLOCKS)
    writer = PROCESSES.Process(target=write_pages, args=(key, count), daemon=True)
    began, ended = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "numbers"
        path.touch()
        process = PROCESSES.Process(target=reader, args=(key, path), daemon=True)
        try:
            writer.start()
            process.start()
            while process.exitcode is None:
                noted = path.stat().st_size // 8
                if ended < restarts and noted > (ended + 1) * count // (restarts + 2):
                    os.kill(process.pid, signal_number)
                    process.join()
                    process = PROCESSES.Process(target=reader, args=(key, path), daemon=True)
                    process.start()
                    ended += 1
                process.join(0.001)
            if process.exitcode:
                raise RuntimeError(f"the reader ended with exit code {process.exitcode}")
        finally:
            for child in (process, writer):
                child.kill()
                child.join()
            destroy_rings(key)
        numbers = np.fromfile(path, "<i8")
    steps = np.diff(numbers, prepend=-1)
    again = int((steps == 0).sum())
    lost, twice = count - len(np.unique(numbers)), len(numbers) - len(np.unique(numbers)) - again
    if signal_number == signal.SIGTERM:
        twice, again = twice + again, 0
    seconds = f"{time.monotonic() - began:.1f}"
    return [f"{reader.__name__}, {signal.Signals(signal_number).name}", count, ended, lost, twice, again, seconds]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--restarts", type=int, default=20, help="of the reader (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> list[list[object]]:
    """Measure and print the table; returns its rows."""
    key = 0x50000000 | (os.getpid() & 0x7FFF) << 1
    rows = [
        soak(key, args.pages, args.restarts, read_blocks, signal.SIGKILL),
        soak(key, args.pages, args.restarts, read_pages, signal.SIGTERM),
    ]
    print(f"A ring of {BLOCKS} blocks of a page; {machine()}\n")
    print_table(["reader", "pages", "restarts", "lost", "twice", "in hand at a kill, read again", "seconds"], rows)
    if any(lost or twice or ended < args.restarts or again > ended for _, _, ended, lost, twice, again, _ in rows):
        sys.exit(1)
    return rows


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
