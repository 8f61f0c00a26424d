"""Make the default model again: simulate observations, make a training set of them, train, install the checkpoint.

  python make_default_model.py --work-dir /tmp/default_model

Runs simulate_observation.py, create_dataset.py and training.py one after the other, each as a command of its own; their
files stay in the work folder (about 20 GB). The threshold is then set by the false pages per hour on pulse-free
observations of their own. The checkpoint becomes models/default.pth, the training config
models/default_training_config.json.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder

import numpy as np
from tqdm import tqdm

from pipeline_classifier.dedispersion import dispersion_delay
from single_pulse_classifier_training.calibration import false_rate_thresholds, threshold_for_rate
from single_pulse_classifier_training.checkpoint import load_checkpoint, save_checkpoint
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import atomic_writer, make_output_folder

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
TRAINING = HERE.parent / "single_pulse_classifier_training" / "training.py"
NSAMPLES = 160_000
DM_MAX = 125.0
LONGEST_SWEEP = 8000  # samples
LONGEST_TSAMP_S = 1.3e-3
PULSES = 40
MODEL_NAME = "DM_time_small_residual"
CALIBRATION_OBSERVATIONS = 24
FALSE_PER_HOUR = 100  # pages; what the default threshold lets through on such observations, full of interference


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", required=True, help="folder for observations, training set and checkpoints")
    parser.add_argument(
        "--models-dir", default=HERE / "models", help="where the model is installed (default: %(default)s)"
    )
    parser.add_argument("--observations", type=int, default=150, help="observations to simulate (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs to train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2026, help="of everything (default: %(default)s)")
    return parser


def random_observation(number: int, rng: np.random.Generator) -> list[str]:
    """Options of simulate_observation.py for one observation: every fourth at Effelsberg, the others anywhere.

    Bands from 300 to 4200 MHz, 64 to 1024 channels, 50 us to 1.3 ms; pulses of half a sample to a third of a page, but
    never longer than a quarter of the baseline window; every sixth observation has interference alone.
    """
    if number % 4 == 0:
        top, bandwidth, nchans, tsamp_s = 1530.0, 320.0, 256, 102.4e-6
    else:
        top, nchans = np.exp(rng.uniform(np.log(320), np.log(4200))), int(rng.choice([64, 128, 256, 336, 512, 1024]))
        bandwidth = top * rng.uniform(0.1, 0.5)
        while (sweep_s := float(dispersion_delay(DM_MAX, top - bandwidth, top))) > LONGEST_SWEEP * LONGEST_TSAMP_S:
            bandwidth *= 0.8
        tsamp_s = np.exp(rng.uniform(np.log(max(50e-6, sweep_s / LONGEST_SWEEP)), np.log(LONGEST_TSAMP_S)))
    longest_ms = min(256 / 3 * tsamp_s, 0.05) * 1e3
    options = {
        "--fch1": top,
        "--foff": -bandwidth / nchans,
        "--nchans": nchans,
        "--tsamp-us": tsamp_s * 1e6,
        "--duration-s": NSAMPLES * tsamp_s,
        "--pulses": 0 if number % 6 == 5 else PULSES,
        "--dm-min": 8,
        "--dm-max": DM_MAX,
        "--snr-min": 6,
        "--snr-max": 50,
        "--width-ms-min": 0.5 * tsamp_s * 1e3,
        "--width-ms-max": longest_ms,
        "--band-limited": 0.2,
        "--double": 0.1,
        "--min-separation-s": 300 * tsamp_s,
        "--rfi": ("mild", "strong", "strong")[number % 3],
        "--seed": int(rng.integers(1 << 31)),
    }
    return [str(word) for pair in options.items() for word in pair]


def command(script: Path, *words: str | Path) -> None:
    """Run one of the project's scripts; its own message is the error."""
    done = subprocess.run(
        [sys.executable, script, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise InputError(
            f"{script.name} failed: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}"
        )


def measure_thresholds(model: Path, work: Path, rng: np.random.Generator) -> list[dict[str, float]]:
    """Thresholds that let through a given number of false pages per hour, on pulse-free observations not trained on."""
    config_path = work / "calibration_config.json"
    with atomic_writer(config_path) as file:
        file.write(json.dumps({"path_to_models": str(model.parent), "name_of_the_model": model.name}).encode())
    probabilities, duration_s = [], 0.0
    for number in tqdm(range(CALIBRATION_OBSERVATIONS), desc="pulse-free observations", unit="file", disable=None):
        path = work / f"calibration_{number:03d}.fil"
        options = random_observation(number, rng)
        options[options.index("--pulses") + 1] = "0"
        options[options.index("--rfi") + 1] = "strong"
        command(HERE / "simulate_observation.py", path, *options)
        command(HERE / "run_inference.py", "-c", config_path, "--filterbank", path, "--output-dir", work, "--no-plots")
        probabilities.append(np.load(work / f"probabilities_{path.stem}.npy", allow_pickle=False))
        duration_s += float(options[options.index("--duration-s") + 1])
    pages = np.concatenate(probabilities)
    return false_rate_thresholds(pages, (1000, 200, FALSE_PER_HOUR, 30), page_s=duration_s / len(pages))


def run(args: argparse.Namespace) -> Path:
    """Make the model; return its path."""
    work = make_output_folder(Path(args.work_dir), "--work-dir")
    models = make_output_folder(Path(args.models_dir), "--models-dir")
    rng = np.random.default_rng(args.seed)
    observations = [work / f"observation_{number:03d}.fil" for number in range(args.observations)]
    options = [random_observation(number, rng) for number in range(args.observations)]
    with ThreadPoolExecutor(2) as pool:
        jobs = pool.map(
            lambda job: command(HERE / "simulate_observation.py", job[0], *job[1]),
            zip(observations, options, strict=True),
        )
        list(tqdm(jobs, total=args.observations, desc="observations", unit="file", disable=None))
    logger.info("making the training set")
    settings = ["--shifts", "6", "--sky-pages", "1.5", "--normaliser", "robust", "--seed", str(args.seed)]
    command(HERE / "create_dataset.py", *observations, "--output-dir", work, "--name", "default", *settings)

    prefix = "default_DM_time_dataset_realbased"
    config = {
        "path_to_files": "./",
        "path_to_checkpoints": "./checkpoints/",
        "path_to_images": "./images/",
        "resolution": 256,
        "model_name": MODEL_NAME,
        "files_by_resolution": {"256": f"{prefix}_training.npy", "default": f"{prefix}_training_{{res}}x{{res}}.npy"},
        "labels": f"{prefix}_labels_training.npy",
        "groups": f"{prefix}_groups_training.npy",
        "snr": f"{prefix}_snr_training.npy",
        "normaliser": "robust",
        "learning_rate": 2e-3,
        "num_epochs": args.epochs,
        "patience": args.epochs,
        "batch_size": 64,
        "optimiser": "adamw",
        "weight_decay": 0.01,
        "scheduler": "cosine",
        "warmup_epochs": 0.5,
        "gradient_clip": 5.0,
        "seed": args.seed,
        "dms": (0.5 * np.arange(256)).tolist(),
    }
    config_path = work / "default_training_config.json"
    with atomic_writer(config_path) as file:
        file.write((json.dumps(config, indent=1) + "\n").encode())
    logger.info("training; %s", config_path)
    command(TRAINING, config_path)
    trained = work / "checkpoints" / f"ch_point_{MODEL_NAME}_256" / "best.pth"
    checkpoint = load_checkpoint(trained, "cpu")
    checkpoint.thresholds = measure_thresholds(trained, work, rng)
    checkpoint.threshold, _ = threshold_for_rate(checkpoint.thresholds, FALSE_PER_HOUR)
    save_checkpoint(models / "default.pth", checkpoint)
    with open(config_path, "rb") as content, atomic_writer(models / config_path.name) as copy:
        shutil.copyfileobj(content, copy)
    for threshold in checkpoint.thresholds:
        print(f"{threshold['false_per_hour']:>8g} false pages per hour at threshold {threshold['threshold']:.4f}")
    print(models / "default.pth")
    return models / "default.pth"


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
