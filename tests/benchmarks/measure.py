"""What the benchmarks share: a command in a process of its own, and the machine that it ran on."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline_classifier.detection.page_classifier import PageClassifier
from pipeline_classifier.frontend.pages import PageBatch

ROOT = Path(__file__).resolve().parents[2]
N_REPEATS = 5
KERAS_SIDE = Path(__file__).with_name("keras_side.py")


@dataclass(frozen=True)
class Measurement:
    """What a finished command wrote, and the most memory that it held (resident, MB)."""

    stdout: str
    stderr: str
    peak_mb: float


def measure(command: list[str]) -> Measurement:
    """Run a command to its end; CalledProcessError, with its messages, if it fails."""
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, cwd=ROOT)
        # wait4 gives the peak of this child; getrusage only that of the largest child so far.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        result = Measurement(stdout.read(), stderr.read(), usage.ru_maxrss / 1024)
    if process.returncode != 0:
        print(result.stderr, file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)
    return result


def keras_python() -> Path | None:
    """Python of the environment KERAS_VENV, which holds TensorFlow; None when there is none."""
    python = Path(os.environ.get("KERAS_VENV", ROOT / ".venv-keras")).absolute() / "bin" / "python"
    if python.is_file():
        return python
    print(
        "No Keras to compare with: `make bench` installs it, or let KERAS_VENV name its environment.", file=sys.stderr
    )
    return None


def measure_keras(python: Path, *arguments: object) -> tuple[dict, float]:
    """Run keras_side.py; returns the values that it printed and its peak memory in MB."""
    measured = measure([str(python), str(KERAS_SIDE), *map(str, arguments)])
    return json.loads(measured.stdout.splitlines()[-1]), measured.peak_mb


def pages_per_s(classifier: PageClassifier, pages: np.ndarray) -> float:
    """The best of several passes over the pages, in the classifier's own batches; the first pass does not count."""
    size = classifier.network.batch_size
    starts = np.arange(len(pages))
    batches = [PageBatch.of_pages(pages[i : i + size], starts[i : i + size], i) for i in range(0, len(pages), size)]
    speeds = []
    for _ in range(N_REPEATS + 1):
        began = time.perf_counter()
        for batch in batches:
            classifier.classify(batch)
        speeds.append(len(pages) / (time.perf_counter() - began))
    return max(speeds[1:])


def machine() -> str:
    """Processor and number of cores."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"


def print_table(header: list[str], rows: list[list[object]]) -> None:
    """A Markdown table on standard output."""
    for cells in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in cells) + " |")
