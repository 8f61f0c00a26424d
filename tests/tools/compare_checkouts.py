"""Are the results of two checkouts of this project the same to the bit?

  python tests/tools/compare_checkouts.py BEFORE AFTER
  python tests/tools/compare_checkouts.py BEFORE AFTER --data ../shared/data --work-dir /tmp/compare --duration-s 60

Runs the same commands with the code of each: a simulated observation (written once, by BEFORE), the real Crab file
where --data has it, the same observation through a PSRDADA ring, a training set of it, and a training of two epochs.
Every output file is compared byte by byte, checkpoints value by value, without the versions and paths that they note.
Exit code 1, with the names of the files that differ, if any does.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

CRAB = "crab_parkes_706-1402MHz_512us_4.2s.fil"
OBSERVATION = "simulated.fil"
RING_KEYS = {"key_input": "5c1a", "key_output": "5c2a"}
SET = "simulated_DM_time_dataset_realbased"
TRAINING = {
    "path_to_files": "../set",
    "files_by_resolution": {"64": f"{SET}_training_64x64.npy"},
    "labels": f"{SET}_labels_training.npy",
    "groups": f"{SET}_groups_training.npy",
    "resolution": 64,
    "num_epochs": 2,
    "device": "cpu",
}
MODELS = ("DM_time_binary_classificator_241002_2", "DM_time_small_residual")
NOTES = ("config", "versions")  # of a checkpoint: paths and versions, no results


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--data", type=Path, help="folder with real observations (default: none is searched)")
    parser.add_argument("--work-dir", type=Path, default=Path("/tmp/compare_checkouts"), help="default: %(default)s")
    parser.add_argument("--duration-s", type=float, default=60.0, help="of the observation (default: %(default)s)")
    return parser


def command(checkout: Path, script: str, *words: object) -> None:
    """Run a script of a checkout; leave with its own message if it fails."""
    done = subprocess.run([sys.executable, checkout / script, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{checkout / script}: exit code {done.returncode}\n{done.stderr}")


def write_config(path: Path, **settings: object) -> Path:
    path.write_text(json.dumps(settings))
    return path


def results_of(checkout: Path, folder: Path, observation: Path, data: Path | None) -> None:
    """All results of a checkout, below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    config = write_config(folder / "config.json", threads=2, **RING_KEYS)
    search = "pipeline_classifier/run_inference.py"
    for path, name in ((observation, "file"), (data and data / CRAB, "crab")):
        if path:
            words = ("-c", config, "--no-plots", "--output-dir", folder / name)
            command(checkout, search, "--filterbank", path, *words)
    dry_run = "pipeline_classifier/run_pipeline_simulation.py"
    words = ("-c", config, "--filterbank", observation, "--through-ring", "--output-dir", folder / "ring")
    command(checkout, dry_run, *words)
    make_set = "pipeline_classifier/create_dataset.py"
    words = ("--shifts", 4, "--resolutions", 64, "--output-dir", folder / "set", "--name", "simulated")
    command(checkout, make_set, observation, *words)
    for model in MODELS:
        run = folder / model
        run.mkdir(exist_ok=True)
        command(
            checkout,
            "single_pulse_classifier_training/training.py",
            write_config(run / "config.json", model_name=model, **TRAINING),
        )


def same_value(one: object, other: object) -> bool:
    """Whether two contents of checkpoints are equal to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_value(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def checkpoint_of(path: Path) -> dict[str, object]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value for key, value in content.items() if key not in (*NOTES, "training")}


def is_same(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return False
    if one.suffix == ".pth":
        return same_value(checkpoint_of(one), checkpoint_of(other))
    return one.read_bytes() == other.read_bytes()


def files_of(folder: Path) -> set[Path]:
    """Results, relative to the folder; not what tells of times of the day, nor pictures."""
    return {
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix in (".npy", ".csv", ".cands", ".pth") and not path.name.startswith(".")
    }


def main() -> None:
    args = get_parser().parse_args()
    before, after = (checkout.resolve() for checkout in args.checkouts)
    work = args.work_dir
    work.mkdir(parents=True, exist_ok=True)
    observation = work / OBSERVATION
    if not observation.exists():
        command(before, "pipeline_classifier/simulate_observation.py", observation, "--duration-s", args.duration_s)
    for name, checkout in (("before", before), ("after", after)):
        results_of(checkout, work / name, observation, args.data)
    files = sorted(files_of(work / "before") | files_of(work / "after"))
    different = [path for path in files if not is_same(work / "before" / path, work / "after" / path)]
    for path in different:
        print(f"differs: {path}")
    print(f"{len(files) - len(different)} of {len(files)} files are the same to the bit")
    sys.exit(1 if different or not files else 0)


if __name__ == "__main__":
    main()
