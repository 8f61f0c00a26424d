"""The whole job, from .fil to predictions and catalogue, whole processes; Markdown tables on standard output.

python bench_whole_job.py                         this checkout, and TransientX and PulsarX where they are on PATH
python bench_whole_job.py --against CHECKOUT      in turn with another checkout, and the ratio of the medians
python bench_whole_job.py --only effelsberg fast  some of the observations
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field

from single_pulse_classifier_training.cli import run_script
from tests.benchmarks.measure import ROOT, machine, measure, print_table

PIPELINE = Path("pipeline_classifier")


@dataclass(frozen=True)
class Job:
    """An observation, as options of simulate_observation.py, and how it is searched."""

    title: str
    observation: str
    config: dict = field(default_factory=dict)
    options: tuple[str, ...] = ("--no-plots",)


JOBS = {
    "effelsberg": Job("256 channels, 102.4 us, 60 s, 40 pulses, 256 DMs", "--duration-s 60"),
    "pictures": Job("the same with pictures of 80 pulses", "--pulses 80 --snr-min 12", options=()),
    "fine": Job("256 channels, 54.6 us, 60 s, 80 pulses, 256 DMs", "--tsamp-us 54.6133 --pulses 80"),
    "wide": Job(
        "1024 channels, 64 us, 20 s, 12 pulses, 1024 DMs to 1000",
        "--nchans 1024 --fch1 1510 --foff -0.29296875 --tsamp-us 64 --duration-s 20 --pulses 12 --dm-max 900",
        {"ddm": 1000 / 1023, "ndm": 1024},
    ),
    "fast": Job(
        "4096 channels, 49.152 us, 6 s, 5 pulses, 1000 to 1500 MHz, 512 DMs to 1000",
        "--nchans 4096 --fch1 1500 --foff -0.1220703125 --tsamp-us 49.152 --duration-s 6 --pulses 5 --dm-max 900",
        {"ddm": 1000 / 511, "ndm": 512},
    ),
}
PEERS = {
    "TransientX, search alone": "transientx_fil -t {cores} --dms 0 --ddm 0.5 --ndm 256 --thre 7 --maxw 0.0131 -l 2.0 "
    "-z zdot -o {out} -f {path}",
    "PulsarX, cleaning and dedispersion alone": "dedisperse_all_fil -t {cores} --dms 0 --ddm 0.5 --ndm 256 -z zdot "
    "-o {out} -f {path}",
}


@dataclass(frozen=True)
class Run:
    """Wall time of a whole process, that of its search, in seconds, peak memory in MB, and events."""

    process_s: float
    search_s: float
    peak_mb: float
    events: int


def search(checkout: Path, path: Path, job: Job, folder: Path) -> Run:
    """Search an observation with the script of a checkout."""
    (folder / "config.json").write_text(json.dumps(job.config))
    out = folder / f"out_{checkout.name}"
    script = checkout / PIPELINE / "run_inference.py"
    command = [sys.executable, str(script), "-c", str(folder / "config.json"), "--filterbank", str(path)]
    began = time.monotonic()
    measured = measure([*command, "--output-dir", str(out), *job.options])
    process_s = time.monotonic() - began
    catalogue = (out / f"candidates_{path.stem}.csv").read_text().splitlines()
    try:
        search_s = json.loads((out / f"summary_{path.stem}.json").read_text())["wall_s"]
    except FileNotFoundError:  # before version 0.2
        [line] = [line for line in measured.stdout.splitlines() if line.split()[:1] == ["wall_s"]]
        search_s = float(line.split()[1])
    return Run(process_s, search_s, measured.peak_mb, len(catalogue) - 1)


def in_turn(checkouts: list[Path], path: Path, job: Job, folder: Path, repeats: int) -> list[list[Run]]:
    """Runs of each checkout; each has one run that does not count."""
    for checkout in checkouts:
        search(checkout, path, job, folder)
    rounds = [[search(checkout, path, job, folder) for checkout in checkouts] for _ in range(repeats)]
    return [list(runs) for runs in zip(*rounds, strict=True)]


def median(runs: list[Run], name: str) -> float:
    return statistics.median(getattr(run, name) for run in runs)


def peers(path: Path, folder: Path, repeats: int) -> list[list[object]]:
    """Wall times of other searches that are on PATH, with the exact command."""
    rows: list[list[object]] = []
    for name, template in PEERS.items():
        command = template.format(cores=len(os.sched_getaffinity(0)), out=folder / "peer", path=path).split()
        if shutil.which(command[0]) is None:
            print(f"{command[0]} is not on PATH", file=sys.stderr)
            continue
        times = []
        for _ in range(repeats):
            began = time.monotonic()
            subprocess.run(command, check=True, capture_output=True, cwd=folder)
            times.append(time.monotonic() - began)
        rows.append([name, f"{statistics.median(times):.2f}", " ".join(command[1:-4])])
    return rows


def run(args: argparse.Namespace) -> list[list[object]]:
    """Measure and print the tables; return the rows of the first."""
    checkouts = [ROOT, *([args.against.resolve()] if args.against else [])]
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for key in args.only or JOBS:
            job, path = JOBS[key], folder / f"{key}.fil"
            simulate = [sys.executable, str(ROOT / PIPELINE / "simulate_observation.py"), str(path)]
            measure([*simulate, *job.observation.split()])
            duration_s = float(measured_duration(job.observation))
            all_runs = in_turn(checkouts, path, job, folder, args.repeats)
            for checkout, runs in zip(checkouts, all_runs, strict=True):
                process_s, search_s = median(runs, "process_s"), median(runs, "search_s")
                row: list[object] = [job.title, checkout.name, f"{search_s:.2f}", f"{duration_s / search_s:.1f}"]
                row += [f"{process_s:.2f}", f"{median(runs, 'peak_mb'):.0f}", runs[0].events]
                ratios = [f"{median(runs, what) / median(all_runs[0], what):.2f}" for what in ("search_s", "process_s")]
                rows.append([*row, *ratios])
            if key == "effelsberg" and (others := peers(path, folder, args.repeats)):
                print_table(["other program", "wall s", "options"], others)
                print()
            path.unlink()
    heads = ["observation", "checkout", "search s", "x real time", "process s", "peak MB", "events"]
    print_table([*heads, "search / this", "process / this"], rows)
    print(f"\n{machine()}, load {os.getloadavg()[0]:.1f}; medians of {args.repeats} runs in turn")
    return rows


def measured_duration(options: str) -> str:
    """The length in seconds that options of simulate_observation.py ask for."""
    words = options.split()
    return words[words.index("--duration-s") + 1] if "--duration-s" in words else "60"


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, measured in turn")
    parser.add_argument("--only", nargs="+", choices=list(JOBS), help="observations to measure (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: %(default)s)")
    return parser


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
