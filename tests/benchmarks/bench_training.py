"""Training speed and peak memory of 241002_3, our training.py against Keras; a Markdown table on standard output.

    make bench
    python bench_training.py --resolutions 256 128 64 32
    KERAS_VENV=/path/to/environment python bench_training.py

Random images, batches of 32. Each measurement is a process of its own: its best epoch counts, without the first one.
Without an environment that holds TensorFlow only our side is measured.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
import re
import statistics
import tempfile

import numpy as np
import torch

from single_pulse_classifier_training.cli import run_script
from tests.benchmarks.measure import ROOT, keras_python, machine, measure, measure_keras, print_table

MODEL_NAME = "DM_time_binary_classificator_241002_3"
N_TRAINING, N_VALIDATION = 1200, 300


def measure_ours(resolution: int, n_epochs: int, amp: str) -> tuple[list[float], float]:
    """Images/s of the epochs of training.py, without the first, and the peak memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        random, n_images = np.random.default_rng(0), N_TRAINING + N_VALIDATION
        shape = (n_images, resolution, resolution)
        np.save(Path(folder) / "images.npy", random.integers(0, 256, shape, dtype=np.uint8))
        np.save(Path(folder) / "labels.npy", np.where(np.arange(n_images) % 2, "Pulse", "Artefact"))
        config = {
            "path_to_files": ".",
            "files_by_resolution": {"default": "images.npy"},
            "labels": "labels.npy",
            "resolution": resolution,
            "model_name": MODEL_NAME,
            "validation_fraction": N_VALIDATION / n_images,
            "num_epochs": n_epochs,
            "patience": n_epochs,
            "device": "cpu",
            "amp": amp,
        }
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config))
        script = ROOT / "single_pulse_classifier_training" / "training.py"
        measured = measure([sys.executable, str(script), str(path)])
    speeds = [float(speed) for speed in re.findall(r"epoch \d+: .*, (\d+) images/s", measured.stderr)]
    return speeds[1:], measured.peak_mb


def run(args: argparse.Namespace) -> list[list[object]]:
    """Measure and print the table; returns its rows."""
    python = keras_python()
    rows = []
    for resolution in args.resolutions:
        speeds, peak_mb = measure_ours(resolution, args.epochs, args.amp)
        ours = max(speeds)
        row = [resolution, f"{ours:.0f} ({statistics.median(speeds):.0f})", f"{peak_mb:.0f}"]
        if python is not None:
            keras, keras_mb = measure_keras(python, "train", resolution, N_TRAINING, N_VALIDATION, args.epochs)
            version, speeds = keras["version"], keras["images_per_s"]
            row += [f"{max(speeds):.0f} ({statistics.median(speeds):.0f})", f"{keras_mb:.0f}"]
            row += [f"{ours / max(speeds):.2f}", f"{peak_mb / keras_mb:.2f}"]
        rows.append(row)

    header = ["resolution", "images/s, best epoch (median)", "peak MB"]
    if python is not None:
        header += ["Keras images/s, best (median)", "Keras peak MB", "images/s ratio", "memory ratio"]
    print("Training of 241002_3, batches of 32\n")
    print_table(header, rows)
    versions = f"PyTorch {torch.__version__}" + (f"; {version}" if python is not None else "")
    print(f"\n{machine()}; {torch.get_num_threads()} threads; amp {args.amp}; {versions}")
    return rows


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--resolutions", type=int, nargs="+", choices=(256, 128, 64, 32), default=[256, 32], help="default: 256 32"
    )
    parser.add_argument("--epochs", type=int, default=12, help="epochs of a measurement, at least 2 (default: 12)")
    parser.add_argument("--amp", choices=("auto", "off", "bf16"), default="auto", help="our precision (default: auto)")
    return parser


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
