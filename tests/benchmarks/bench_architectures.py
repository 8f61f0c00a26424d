"""The registered networks, trained on the same pages and measured alike; a Markdown table on standard output.

    python bench_architectures.py --train A.fil B.fil --test C.fil --pulse-free D.fil --work-dir /tmp/architectures

Observations with truth tables beside them, as simulate_observation.py writes them; those of --pulse-free have no pulse.
Recall is that of pages with a pulse at the threshold that lets through --false-per-hour of the pulse-free pages.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
import time

import numpy as np
import torch
from tqdm import tqdm

from pipeline_classifier.detection.page_classifier import PageClassifier
from pipeline_classifier.formats.sigproc import read_header
from single_pulse_classifier_training.checkpoint import load_checkpoint
from single_pulse_classifier_training.cli import run_script
from single_pulse_classifier_training.memory import keep_freed_memory
from tests.benchmarks.measure import ROOT, machine, measure, pages_per_s, print_table

NETWORKS = [
    "DM_time_small_residual/256",
    "DM_time_small_residual/128",
    "DM_time_binary_classificator_241002_1/128",
    "DM_time_binary_classificator_241002_2/128",
    "DM_time_binary_classificator_241002_3/128",
    "DM_time_binary_classificator_241002_3_dropout/128",
    "DM_time_binary_classificator_241002_3_GAP/128",
    "mobilenet_v3_small/128",
    "resnet18/64",
]
PIPELINE, TRAINING = ROOT / "pipeline_classifier", ROOT / "single_pulse_classifier_training"
PREFIX = "DM_time_dataset_realbased"


def script(path: Path, *words: object) -> str:
    """Run one of the project's scripts; what it printed."""
    return measure([sys.executable, str(path), *map(str, words)]).stdout


def make_sets(args: argparse.Namespace) -> float:
    """Training, test and pulse-free pages at every resolution that is needed; the mean length of the last, seconds."""
    sides = sorted({network.split("/")[1] for network in args.networks})
    for name, files in (("train", args.train), ("test", args.test), ("sky", args.pulse_free)):
        options = ["--output-dir", args.work_dir, "--name", name, "--shifts", args.shifts, "--sky-pages", 1.5]
        options += ["--normaliser", "robust", "--resolutions", *sides]
        script(PIPELINE / "create_dataset.py", *files, *options)
    return float(np.mean([256 * read_header(path).tsamp for path in args.pulse_free]))


def of_side(name: str) -> dict[str, object]:
    """Keys of a training config for one of the sets."""
    columns = {kind: f"{name}_{PREFIX}_{kind}_training.npy" for kind in ("labels", "groups", "snr")}
    images = {"256": f"{name}_{PREFIX}_training.npy", "default": f"{name}_{PREFIX}_training_{{res}}x{{res}}.npy"}
    return columns | {"files_by_resolution": images}


def train_and_measure(args: argparse.Namespace, network: str, page_s: float) -> list[object]:
    """One row of the table."""
    model_name, side = network.split("/")
    work = Path(args.work_dir)
    config = of_side("train") | {
        "test_files": of_side("test"),
        "path_to_files": "./",
        "path_to_checkpoints": "./checkpoints/",
        "path_to_images": f"./{model_name}_{side}/",
        "model_name": model_name,
        "resolution": int(side),
        "normaliser": "robust",
        "learning_rate": 1e-4 if "241002" in model_name else 1e-3,
        "optimiser": "adamw",
        "weight_decay": 0.01,
        "scheduler": "cosine",
        "warmup_epochs": 0.5,
        "gradient_clip": 5.0,
        "num_epochs": args.epochs,
        "patience": args.epochs,
        "batch_size": 64,
    }
    path = work / f"{model_name}_{side}.json"
    path.write_text(json.dumps(config))
    began = time.monotonic()
    script(TRAINING / "training.py", path)
    minutes = (time.monotonic() - began) / 60
    checkpoint = work / "checkpoints" / f"ch_point_{model_name}_{side}" / "best.pth"
    sky = work / f"sky_{PREFIX}_training{'' if side == '256' else f'_{side}x{side}'}.npy"
    rate = ["--pulse-free", sky, "--page-s", page_s, "--max-false-per-hour", args.false_per_hour]
    script(TRAINING / "evaluate.py", path, checkpoint, *rate)
    script(TRAINING / "evaluate.py", path, checkpoint, "--keep-checkpoint")  # at the threshold that it has now
    name = f"{model_name}_{side}"
    metrics = json.loads((work / name / f"metrics_{name}_best_test.json").read_text())
    recalls = {entry["snr"]: entry["recall"] for entry in metrics["recall_by_snr"]}
    loaded = load_checkpoint(checkpoint, "cpu")
    parameters = sum(tensor.numel() for tensor in loaded.model.parameters())
    images = np.random.default_rng(0).integers(0, 256, (256, 256, 256), dtype=np.uint8)
    speed = pages_per_s(PageClassifier(loaded, torch.device("cpu"), batch_size=32), images)
    return [model_name, side, f"{parameters:,}", f"{speed:.0f}", f"{minutes:.0f}", recalls, metrics["roc_auc"]]


def run(args: argparse.Namespace) -> list[list[object]]:
    """Train and measure every network, and print the table; returns its rows."""
    keep_freed_memory()
    Path(args.work_dir).mkdir(parents=True, exist_ok=True)
    page_s = make_sets(args)
    rows = [train_and_measure(args, network, page_s) for network in tqdm(args.networks, unit="network", disable=None)]
    bins = list(dict.fromkeys(key for *_, recalls, _ in rows for key in recalls))
    print(f"Recall of pages with a pulse, by S/N, at {args.false_per_hour:g} false pages per hour\n")
    heading = ["network", "side", "parameters", "pages/s", "minutes of training", *bins, "area under ROC"]
    print_table(
        heading,
        [[*row, *(f"{recalls.get(key, np.nan):.3f}" for key in bins), f"{auc:.4f}"] for *row, recalls, auc in rows],
    )
    print(f"\n{machine()}; {torch.get_num_threads()} threads; PyTorch {torch.__version__}; {args.epochs} epochs")
    return rows


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "test", "pulse-free"):
        parser.add_argument(f"--{name}", nargs="+", required=True, metavar="FILE", help="SIGPROC filterbank files")
    parser.add_argument("--work-dir", required=True, help="for the sets and checkpoints")
    parser.add_argument(
        "--networks", nargs="+", default=NETWORKS, metavar="NAME/SIDE", help="default: all, %(default)s"
    )
    parser.add_argument("--epochs", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--shifts", type=int, default=3, help="pages of each pulse (default: %(default)s)")
    parser.add_argument("--false-per-hour", type=float, default=100.0, help="default: %(default)s")
    return parser


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
