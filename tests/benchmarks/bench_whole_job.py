"""The whole job: a minute at Effelsberg from .fil to predictions and catalogue; a Markdown table on standard output.

python bench_whole_job.py
python bench_whole_job.py --duration-s 600
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
import tempfile
import time

import torch

from single_pulse_classifier_training.cli import run_script
from tests.benchmarks.measure import ROOT, machine, measure, print_table

PIPELINE = ROOT / "pipeline_classifier"
REPEATS = 3
CONFIGS: dict[str, dict] = {
    "as it comes": {},
    "`precision: bf16`": {"precision": "bf16"},
    "`snr_gate: 5.5`": {"snr_gate": 5.5},
    "`compile: true`": {"compile": True},
    "all three": {"precision": "bf16", "snr_gate": 5.5, "compile": True},
}


def job(path: Path, config: dict, folder: Path) -> tuple[dict[str, float], float, float]:
    """Run summary, peak memory (MB) and seconds beside the search of the fastest of some runs."""
    config_path = folder / "config.json"
    config_path.write_text(json.dumps(config))
    runs = []
    for _ in range(REPEATS):
        command = [sys.executable, PIPELINE / "run_inference.py", "-c", config_path, "--filterbank", path]
        began = time.monotonic()
        measured = measure([*map(str, command), "--output-dir", str(folder), "--no-plots"])
        duration_s = time.monotonic() - began
        summary = json.loads((folder / f"summary_{path.stem}.json").read_text())
        runs.append((summary, measured.peak_mb, duration_s - summary["wall_s"]))
    return min(runs, key=lambda run: run[0]["wall_s"])


def run(args: argparse.Namespace) -> list[list[object]]:
    """Measure and print the table; returns its rows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.fil"
        measure(
            [sys.executable, str(PIPELINE / "simulate_observation.py"), str(path), "--duration-s", str(args.duration_s)]
        )
        for name, config in CONFIGS.items():
            summary, peak_mb, start_s = job(path, config, Path(folder))
            rows.append([name, summary["times_real_time"], summary["events"], f"{peak_mb:.0f}", f"{start_s:.1f}"])
    print(f"{args.duration_s:g} s of 256 channels at 102.4 us, pictures off\n")
    print_table(["config", "times real time", "events", "peak MB", "s besides the search"], rows)
    print(f"\n{machine()}; PyTorch {torch.__version__}; best of {REPEATS}")
    return rows


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration-s", type=float, default=60.0, help="of the observation (default: %(default)s)")
    return parser


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
