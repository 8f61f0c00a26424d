"""Make the default models: simulate observations, make training sets from them, train, install the checkpoints.

  python make_default_model.py --work-dir /tmp/default_model

Runs simulate_observation.py, create_dataset.py, create_candidate_dataset.py and training.py one after the other, each
in its own process; their files stay in the work folder (about 15 GB), but for the observations of the candidates. What
an interrupted run has finished is not done again. The thresholds are then set by the false pages and events per hour on
other, pulse-free observations. The checkpoints become models/default.pth, models/candidate_classifier.pth and
models/candidate_classifier_dmt.pth, the training configs models/<model>_training_config.json.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.candidate_cutouts import SIDE
from pipeline_classifier.detection.classifiers import load_classifiers
from pipeline_classifier.detection.workers import prepare_process
from pipeline_classifier.evaluation.false_rate import count_false_events
from pipeline_classifier.simulation.random_observation import candidate_observation, random_observation
from single_pulse_classifier_training.calibration import false_rate_thresholds, rate_text, threshold_for_rate
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.labelled_set import CANDIDATES as CANDIDATE_SET
from single_pulse_classifier_training.labelled_set import SetPaths, write_json
from single_pulse_classifier_training.runtime import atomic_writer, make_output_folder

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
TRAINING = HERE.parent / "single_pulse_classifier_training" / "training.py"
CANDIDATES = "candidate_classifier"
PAGE_RATES = (1000, 300, 200, 100, 60, 30, 10)  # false pages per hour to find thresholds for
FALSE_PAGES_PER_HOUR = 100  # at the default threshold, on pulse-free observations in strong interference
FALSE_EVENTS_PER_HOUR = 20  # the same for events; observations with pulses have about twice as many


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", required=True, help="folder for observations, training set and checkpoints")
    parser.add_argument(
        "--models-dir", default=HERE / "models", help="folder in which the models are installed (default: %(default)s)"
    )
    for name, count, what in (
        ("observations", 150, "with pulses in mild and strong interference"),
        ("candidates", 480, "with and without pulses, for the candidate classifiers only"),
        ("calibration", 24, "of strong interference alone, for the thresholds"),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, help=f"observations {what} (default: %(default)s)")
    parser.add_argument(
        "--epochs",
        type=int,
        default=8,
        help="training epochs; three times as many for the candidate classifier (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=2026, help="random seed (default: %(default)s)")
    return parser


def command(script: Path, *words: str | Path) -> None:
    """Run one of the project's scripts; if it fails, its message becomes the error."""
    done = subprocess.run(
        [sys.executable, script, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise InputError(
            f"{script.name} failed: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}"
        )


def options_of(settings: dict[str, object]) -> list[str]:
    """Return settings as the words of a command line."""
    return [str(word) for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", value)]


def simulate(jobs: list[tuple[Path, list[str]]]) -> None:
    """Simulate observations, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda job: command(HERE / "simulate_observation.py", job[0], *job[1]), jobs)
        list(tqdm(done, total=len(jobs), desc="observations", unit="file", disable=None))


def train(work: Path, name: str, ready_config: str, **changes: object) -> Path:
    """Train a model with the config that its set has; return its best checkpoint.

    Parameters
    ----------
    work : Path
        Folder of the set and of the checkpoints.
    name : str
        Prefix of the config file, ``<name>_training_config.json``.
    ready_config : str
        Config beside the set.
    **changes
        Keys that replace those of this config.
    """
    settings = json.loads((work / ready_config).read_text()) | changes
    settings["patience"] = settings["num_epochs"]
    config_path = work / f"{name}_training_config.json"
    write_json(config_path, settings)
    logger.info("training; %s", config_path)
    command(TRAINING, config_path)
    folder = f"ch_point_{settings['model_name']}_{settings['resolution']}"
    return work / settings["path_to_checkpoints"] / folder / "best.pth"


def train_page_classifier(work: Path, observations: list[Path], epochs: int, seed: int) -> Path:
    """Train the page classifier; return its checkpoint."""
    settings = ["--shifts", "6", "--sky-pages", "1.5", "--normaliser", "robust", "--seed", str(seed)]
    command(HERE / "create_dataset.py", *observations, "--output-dir", work, "--name", "default", *settings)
    return train(work, "default", "training_default.json", seed=seed, num_epochs=epochs)


def candidates_of(folder: Path, number: int, seed: int) -> Path:
    """Simulate an observation, make the set of its candidates, and remove it; return the description of the set."""
    name = f"candidates_{number:04d}"
    paths = SetPaths(folder, name, CANDIDATE_SET, (SIDE,))
    if not paths.description.exists():
        settings, grid = candidate_observation(number, np.random.default_rng([seed, number]))
        observation, config = folder / f"{name}.fil", folder / f"{name}.json"
        config.write_text(json.dumps(grid))
        command(HERE / "simulate_observation.py", observation, *options_of(settings))
        where: list[str | Path] = ["-c", config, "--output-dir", folder, "--name", name]
        command(HERE / "create_candidate_dataset.py", observation, *where)
        observation.unlink()
    return paths.description


def candidate_set(work: Path, count: int, seed: int) -> str:
    """Make the sets of candidates of ``count`` observations; return a training config that joins them."""
    folder = make_output_folder(work / "candidates", "--work-dir")
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(partial(candidates_of, folder, seed=seed), range(count))
        paths = list(tqdm(made, total=count, desc="observations of candidates", unit="file", disable=None))
    sets = [json.loads(path.read_text()) for path in paths]

    def names(key: str) -> list[str]:
        return [f"candidates/{of_one[key]}" for of_one in sets]

    settings = json.loads((folder / "training_candidates_0000_candidates.json").read_text())
    images = [f"candidates/{of_one['files_by_resolution'][str(SIDE)]}" for of_one in sets]
    files = {"files_by_resolution": {str(SIDE): images}, **{key: names(key) for key in ("labels", "groups", "snr")}}
    ready = f"training_{CANDIDATES}.json"
    write_json(work / ready, settings | files)
    return ready


def measure_thresholds(
    pages: Path, candidates: Path, paths: list[Path]
) -> tuple[list[dict[str, float]], list[dict[str, float]], dict[str, str | float]]:
    """Measure thresholds of both networks, with their false pages and false events per hour.

    For pages, the thresholds of `PAGE_RATES` are found; for events, whose number depends on merging, the rates of
    `EVENT_THRESHOLDS` are counted.

    Parameters
    ----------
    pages, candidates : Path
        Checkpoints.
    paths : list of Path
        Pulse-free observations on which neither was trained.

    Returns
    -------
    of_pages, of_events : list of dict
        Thresholds of the page classifier and of the candidate classifier.
    pair : dict
        Checksums of the two networks.
    """
    config = PipelineConfig(
        path_to_models=str(pages.parent), name_of_the_model=pages.name, candidate_classifier=str(candidates)
    )
    classifiers = load_classifiers(config, warn_if_not_measured=False)
    false = count_false_events(paths, config, classifiers)
    page_s = false.duration_s / len(false.probabilities)
    assert classifiers.pair is not None
    return false_rate_thresholds(false.probabilities, PAGE_RATES, page_s), false.thresholds(), classifiers.pair


def install(
    trained: Path,
    thresholds: list[dict[str, float]],
    rate: float,
    config: Path,
    path: Path,
    pair: dict[str, str | float] | None = None,
) -> Path:
    """Install a checkpoint with its thresholds and the pair of their measurement, and its training config beside it."""
    from single_pulse_classifier_training.checkpoint import load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(trained, "cpu")
    checkpoint.thresholds, checkpoint.measured_pair = thresholds, pair
    checkpoint.threshold, _ = threshold_for_rate(thresholds, rate)
    save_checkpoint(path, checkpoint)
    with open(config, "rb") as content, atomic_writer(path.parent / config.name) as copy:
        shutil.copyfileobj(content, copy)
    for entry in thresholds:
        rate_and_limits = f"{entry['false_per_hour']:.3g}"
        if "hours" in entry:
            rate_and_limits = rate_text(int(entry["false_positives"]), entry["hours"])
        print(f"{rate_and_limits:>26} false positives per hour at threshold {entry['threshold']:.4f}")
    print(path)
    return path


def run(args: argparse.Namespace) -> list[Path]:
    """Make the models; return their paths."""
    work = make_output_folder(Path(args.work_dir), "--work-dir")
    models = make_output_folder(Path(args.models_dir), "--models-dir")
    rng = np.random.default_rng(args.seed)

    def jobs(name: str, count: int, **changes: str) -> list[tuple[Path, list[str]]]:
        return [(work / f"{name}_{n:03d}.fil", options_of(random_observation(n, rng) | changes)) for n in range(count)]

    observations = jobs("observation", args.observations)
    calibration = jobs("calibration", args.calibration, rfi="strong", pulses="0")
    simulate(observations + calibration)

    paths = [path for path, _ in calibration]
    pages = train_page_classifier(work, [path for path, _ in observations], args.epochs, args.seed)
    ready, training = (
        candidate_set(work, args.candidates, args.seed),
        {"seed": args.seed, "num_epochs": args.epochs + 4},
    )
    installed = []
    for name, changes in (
        (CANDIDATES, {"input": "dmft"}),
        (f"{CANDIDATES}_dmt", {"input": "dmt", "model_name": "DM_time_candidate_classifier"}),
    ):
        candidates = train(work, name, ready, path_to_checkpoints=f"./checkpoints/{name}/", **training, **changes)
        of_pages, of_events, pair = measure_thresholds(pages, candidates, paths)
        config = work / f"{name}_training_config.json"
        installed.append(install(candidates, of_events, FALSE_EVENTS_PER_HOUR, config, models / f"{name}.pth", pair))
    config = work / "default_training_config.json"
    return [install(pages, of_pages, FALSE_PAGES_PER_HOUR, config, models / "default.pth"), *installed]


def main() -> None:
    run_script(get_parser(), run, prepare_process)


if __name__ == "__main__":
    main()
