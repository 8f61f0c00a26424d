"""Make the default models again: simulate observations, make training sets of them, train, install the checkpoints.

  python make_default_model.py --work-dir /tmp/default_model

Runs simulate_observation.py, create_dataset.py, create_peak_dataset.py and training.py one after the other, each as a
command of its own; their files stay in the work folder (about 30 GB). The thresholds are then set by the false pages
and events per hour on pulse-free observations of their own. The checkpoints become models/default.pth and
models/second_look.pth, the training configs models/<model>_training_config.json.
"""

import argparse
import csv
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

from pipeline_classifier.catalogue import CANDIDATE
from pipeline_classifier.dedispersion import dispersion_delay
from pipeline_classifier.second_look import SIDE
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
PULSE_FREE = 100  # observations in extreme interference, for the second look
CALIBRATION_OBSERVATIONS = 24
RATES = (1000, 300, 200, 100, 60, 30, 10)  # false positives per hour to find thresholds for
FALSE_PAGES_PER_HOUR = 100  # what the default thresholds let through on such observations, full of interference
FALSE_EVENTS_PER_HOUR = 30
TRAINING_SETTINGS = {
    "path_to_files": "./",
    "path_to_checkpoints": "./checkpoints/",
    "path_to_images": "./images/",
    "learning_rate": 2e-3,
    "optimiser": "adamw",
    "weight_decay": 0.01,
    "scheduler": "cosine",
    "warmup_epochs": 0.5,
    "gradient_clip": 5.0,
}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", required=True, help="folder for observations, training set and checkpoints")
    parser.add_argument(
        "--models-dir", default=HERE / "models", help="where the model is installed (default: %(default)s)"
    )
    parser.add_argument("--observations", type=int, default=150, help="observations to simulate (default: %(default)s)")
    parser.add_argument(
        "--pulse-free",
        type=int,
        default=PULSE_FREE,
        help="observations of extreme interference alone, for the second look (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        default=8,
        help="epochs to train, twice as many for the second look (default: %(default)s)",
    )
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


def without_pulses(options: list[str], rfi: str) -> list[str]:
    """The same observation with interference alone."""
    changed = dict(zip(options[::2], options[1::2], strict=True)) | {"--pulses": "0", "--rfi": rfi}
    return [word for pair in changed.items() for word in pair]


def simulate(jobs: list[tuple[Path, list[str]]]) -> None:
    """Simulate observations, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda job: command(HERE / "simulate_observation.py", job[0], *job[1]), jobs)
        list(tqdm(done, total=len(jobs), desc="observations", unit="file", disable=None))


def train(work: Path, name: str, config: dict[str, object]) -> Path:
    """Train with a config of its own, ``<name>_training_config.json``; return the best checkpoint."""
    config_path = work / f"{name}_training_config.json"
    with atomic_writer(config_path) as file:
        file.write((json.dumps(TRAINING_SETTINGS | config, indent=1) + "\n").encode())
    logger.info("training; %s", config_path)
    command(TRAINING, config_path)
    return work / "checkpoints" / f"ch_point_{config['model_name']}_{config['resolution']}" / "best.pth"


def train_pages(work: Path, observations: list[Path], args: argparse.Namespace) -> Path:
    """The network that sees every page."""
    settings = ["--shifts", "6", "--sky-pages", "1.5", "--normaliser", "robust", "--seed", str(args.seed)]
    command(HERE / "create_dataset.py", *observations, "--output-dir", work, "--name", "default", *settings)
    prefix = "default_DM_time_dataset_realbased"
    config = {
        "resolution": 256,
        "model_name": MODEL_NAME,
        "files_by_resolution": {"256": f"{prefix}_training.npy", "default": f"{prefix}_training_{{res}}x{{res}}.npy"},
        "labels": f"{prefix}_labels_training.npy",
        "groups": f"{prefix}_groups_training.npy",
        "snr": f"{prefix}_snr_training.npy",
        "normaliser": "robust",
        "num_epochs": args.epochs,
        "patience": args.epochs,
        "batch_size": 64,
        "seed": args.seed,
        "dms": (0.5 * np.arange(256)).tolist(),
    }
    return train(work, "default", config)


def train_second_look(work: Path, observations: list[Path], args: argparse.Namespace) -> Path:
    """The network that sees every peak."""
    command(HERE / "create_peak_dataset.py", *observations, "--output-dir", work, "--name", "second_look")
    prefix = "second_look_DM_time_dataset_peaks"
    config = {
        "resolution": SIDE,
        "model_name": "DM_time_second_look",
        "files_by_resolution": {str(SIDE): f"{prefix}_training_64x64.npy"},
        "labels": f"{prefix}_labels_training.npy",
        "groups": f"{prefix}_groups_training.npy",
        "snr": f"{prefix}_snr_training.npy",
        "normaliser": "noise",
        "augment": True,
        "num_epochs": 2 * args.epochs,
        "patience": 2 * args.epochs,
        "batch_size": 128,
        "seed": args.seed,
    }
    return train(work, "second_look", config)


def measure_thresholds(
    pages: Path, second_look: Path, work: Path, rng: np.random.Generator
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Thresholds of both networks for given numbers of false pages, and false events, per hour.

    They are measured on pulse-free observations that neither was trained on.
    """
    config_path = work / "calibration_config.json"
    models = {"path_to_models": str(pages.parent), "name_of_the_model": pages.name, "second_look": str(second_look)}
    with atomic_writer(config_path) as file:
        file.write(json.dumps(models).encode())
    paths = [work / f"calibration_{number:03d}.fil" for number in range(CALIBRATION_OBSERVATIONS)]
    options = [without_pulses(random_observation(number, rng), "strong") for number in range(CALIBRATION_OBSERVATIONS)]
    simulate(list(zip(paths, options, strict=True)))
    of_pages, of_events = [], []
    for path in tqdm(paths, desc="pulse-free observations", unit="file", disable=None):
        where = ["--filterbank", path, "--output-dir", work, "--no-plots", "--threshold", str(CANDIDATE)]
        command(HERE / "run_inference.py", "-c", config_path, *where)
        of_pages.append(np.load(work / f"probabilities_{path.stem}.npy", allow_pickle=False))
        with open(work / f"candidates_{path.stem}.csv", newline="", encoding="utf-8") as file:
            of_events += [float(row["probability"]) for row in csv.DictReader(file)]
    probabilities = np.concatenate(of_pages)
    duration_s = sum(float(words[words.index("--duration-s") + 1]) for words in options)
    # Every page has an event; that of most is no pulse for certain.
    events = np.full(len(probabilities), -1.0)
    events[: len(of_events)] = of_events
    page_s = duration_s / len(probabilities)
    thresholds = false_rate_thresholds(probabilities, RATES, page_s), false_rate_thresholds(events, RATES, page_s)
    for entry in thresholds[1]:
        del entry["page_s"]  # the rate of events is the same at any length of a page
    return thresholds


def install(
    trained: Path, thresholds: list[dict[str, float]], rate: float, config: Path, path: Path
) -> Path:
    """Put a checkpoint with its thresholds, and its training config beside it, to their places."""
    checkpoint = load_checkpoint(trained, "cpu")
    checkpoint.thresholds = thresholds
    checkpoint.threshold, _ = threshold_for_rate(thresholds, rate)
    save_checkpoint(path, checkpoint)
    with open(config, "rb") as content, atomic_writer(path.parent / config.name) as copy:
        shutil.copyfileobj(content, copy)
    for entry in thresholds:
        print(f"{entry['false_per_hour']:>8g} false positives per hour at threshold {entry['threshold']:.4f}")
    print(path)
    return path


def run(args: argparse.Namespace) -> list[Path]:
    """Make the models; return their paths."""
    work = make_output_folder(Path(args.work_dir), "--work-dir")
    models = make_output_folder(Path(args.models_dir), "--models-dir")
    rng = np.random.default_rng(args.seed)
    observations = [work / f"observation_{number:03d}.fil" for number in range(args.observations)]
    jobs = [(path, random_observation(number, rng)) for number, path in enumerate(observations)]
    pulse_free = [work / f"pulse_free_{number:03d}.fil" for number in range(args.pulse_free)]
    jobs += [(path, without_pulses(random_observation(n, rng), "extreme")) for n, path in enumerate(pulse_free)]
    simulate(jobs)
    pages = train_pages(work, observations, args)
    second_look = train_second_look(work, observations + pulse_free, args)
    of_pages, of_events = measure_thresholds(pages, second_look, work, rng)
    return [
        install(pages, of_pages, FALSE_PAGES_PER_HOUR, work / "default_training_config.json", models / "default.pth"),
        install(
            second_look,
            of_events,
            FALSE_EVENTS_PER_HOUR,
            work / "second_look_training_config.json",
            models / "second_look.pth",
        ),
    ]


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
