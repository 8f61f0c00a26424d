"""Pages/s of 241002_3 at 256, our classifier against Keras, and of the default model; a Markdown table on stdout.

    make bench
    python bench_inference.py --batch-sizes 1 32 64
    KERAS_VENV=/path/to/environment python bench_inference.py

Random uint8 pages. Keras is measured page by page, as the original used it, and with batches of 256.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json

import numpy as np
import torch

from pipeline_classifier.detection.page_classifier import PageClassifier
from single_pulse_classifier_training.checkpoint import Checkpoint
from single_pulse_classifier_training.cli import run_script
from single_pulse_classifier_training.memory import keep_freed_memory
from single_pulse_classifier_training.training_models import build_model
from tests.benchmarks.measure import keras_python, machine, measure, measure_keras, pages_per_s, print_table

MODEL_NAME = "DM_time_binary_classificator_241002_3"
RESOLUTION = 256
N_PAGES = 1024
DEFAULT_MODEL = "DM_time_small_residual"


def speed(model_name: str, precision: str, batch_size: int) -> float:
    """Pages/s of a network with random weights."""
    shape = (N_PAGES if batch_size > 1 else N_PAGES // 8, RESOLUTION, RESOLUTION)
    pages = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    checkpoint = Checkpoint(build_model(model_name, RESOLUTION), model_name, RESOLUTION)
    keep_freed_memory()
    return pages_per_s(
        PageClassifier(checkpoint, torch.device("cpu"), batch_size=batch_size, precision=precision), pages
    )


def run(args: argparse.Namespace) -> list[list[object]]:
    """Measure and print the table; returns its rows."""
    if args.measure is not None:
        model_name, precision, batch_size = args.measure
        print(json.dumps(speed(model_name, precision, int(batch_size))))
        return []
    cases = [(MODEL_NAME, "float32", size) for size in args.batch_sizes] + [(MODEL_NAME, "bf16", 64)]
    cases += [(DEFAULT_MODEL, precision, 32) for precision in ("float32", "bf16")]
    rows = []
    for case in cases:
        measured = measure([sys.executable, __file__, "--measure", *map(str, case)])
        what = "PageClassifier" if case[0] == MODEL_NAME else "default model"
        rows.append([f"{what}, {case[1]}, batches of {case[2]}", float(measured.stdout), measured.peak_mb])
    python, versions = keras_python(), f"PyTorch {torch.__version__}"
    if python is not None:
        keras, peak_mb = measure_keras(python, "infer", RESOLUTION, N_PAGES)
        rows += [["Keras, page by page", keras["loop"], peak_mb], ["Keras, batches of 256", keras["predict"], peak_mb]]
        versions += f"; {keras['version']}"
        for row in rows:
            row.append(f"{row[1] / keras['predict']:.2f}")

    header = ["program", "pages/s", "peak MB"] + (["of Keras in batches"] if python is not None else [])
    print(f"Inference of 241002_3 at {RESOLUTION}\n")
    print_table(header, [[name, f"{speed:.0f}", f"{peak:.0f}", *ratio] for name, speed, peak, *ratio in rows])
    print(f"\n{machine()}; {torch.get_num_threads()} threads; {versions}")
    return rows


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 32, 64, 256], help="of our side (default: 1 32 64 256)"
    )
    parser.add_argument(
        "--measure",
        nargs=3,
        metavar=("MODEL", "PRECISION", "BATCH_SIZE"),
        help="print our pages/s for one case, and end",
    )
    return parser


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
