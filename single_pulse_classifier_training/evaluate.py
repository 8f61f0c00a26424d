"""Measure a trained checkpoint, calibrate its probabilities, and store thresholds by false positives per hour in it.

    python evaluate.py config.json checkpoint.pth                  the test side of the config, else the validation side
    python evaluate.py config.json checkpoint.pth --side training --keep-checkpoint
    python evaluate.py config.json checkpoint.pth --pulse-free sky.npy --page-s 0.0262 --max-false-per-hour 30
    python evaluate.py --predictions predictions_best_test.npz     metrics and plots again: no network, no data

Written to the output folder, each file whole or not at all:
    predictions_<checkpoint>_<side>.npz  labels, logits and S/N: all that the other two are made from
    metrics_<checkpoint>_<side>.json     the numbers
    evaluation_<checkpoint>_<side>.png   confusion matrix, ROC, precision-recall, calibration, recall by S/N, thresholds
The checkpoint gets the temperature (always fitted on the validation side), the thresholds, and the numbers
(metrics["evaluation"]). Its default threshold moves with the temperature, so that the decision stays the same, or
becomes that of --max-false-per-hour. --keep-checkpoint leaves the file alone.

False positives per hour are measured on pages without a pulse: those of --pulse-free, uint8 images like a training
set's, or else the Artefact images of the side. The latter are selected artefacts, not random sky.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from single_pulse_classifier_training.calibration import allowed_pages, measured_hours, move_threshold
from single_pulse_classifier_training.checkpoint import Checkpoint, load_checkpoint
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.config import TrainingConfig, load_config
from single_pulse_classifier_training.dataset import DMTimeImages, build_loader, ordered_batches
from single_pulse_classifier_training.evaluation import Predictions, measure, read_predictions, write_predictions
from single_pulse_classifier_training.plots import plot_evaluation
from single_pulse_classifier_training.runtime import DEVICES, atomic_writer, choose_device, make_output_folder
from single_pulse_classifier_training.split import NATIVE_RESOLUTION, load_sides
from single_pulse_classifier_training.training_models import CLASS_NAMES

logger = logging.getLogger(__name__)

FALSE_PER_HOUR = (1000.0, 200.0, 100.0, 30.0, 10.0, 1.0)
SIDES = ("training", "validation", "test")


def check_options(args: argparse.Namespace) -> None:
    """Raise InputError on options that contradict each other or have impossible values."""
    if args.predictions:
        given = {"config": args.config, "--side": args.side, "--pulse-free": args.pulse_free, "--device": args.device}
        for option, value in given.items():
            if value:
                raise InputError(f"{option} {value} is of no use with --predictions: valid is one of the two")
    elif not args.checkpoint:
        raise InputError("give config.json and checkpoint.pth, or --predictions and a predictions file")
    numbers = {"--page-s": [args.page_s], "--false-per-hour": args.false_per_hour or []}
    numbers["--max-false-per-hour"] = [args.max_false_per_hour]
    for option, values in numbers.items():
        for value in values:
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{option} {value:g}: valid are numbers above 0")


def check_rates(args: argparse.Namespace, page_s: float, n_pages: int) -> None:
    """Raise InputError when what the command line asks of false positives per hour cannot be measured."""
    asked = {
        "--pulse-free": args.pulse_free,
        "--false-per-hour": args.false_per_hour,
        "--max-false-per-hour": args.max_false_per_hour,
    }
    if math.isnan(page_s):
        for option, value in asked.items():
            if value:
                raise InputError(f"{option} needs the length of a page: give --page-s, or tsamp_s in the config")
        logger.warning("no thresholds: the length of a page is unknown, give --page-s, or tsamp_s in the config")
        return
    hours, rate = measured_hours(n_pages, page_s), args.max_false_per_hour
    if rate and not allowed_pages(rate, hours):
        raise InputError(
            f"--max-false-per-hour {rate:g} cannot be measured in {hours:.4g} hours of pulse-free pages: "
            f"valid are rates from {1 / hours:.4g}"
        )


def page_length_s(args: argparse.Namespace, checkpoint: Checkpoint, config: TrainingConfig) -> float:
    """Length of a page in seconds: the command line's, or that of the sampling time; NaN when neither is known."""
    return args.page_s or NATIVE_RESOLUTION * (checkpoint.tsamp_s or config.tsamp_s or math.nan)


def warn_of_differences(checkpoint: Checkpoint, config: TrainingConfig) -> None:
    """Warn when the checkpoint was trained on other grey levels, or on another split of the same images."""
    if checkpoint.normaliser != config.normaliser:
        message = "the checkpoint was trained on %s images, those of the config are %s"
        logger.warning(message, checkpoint.normaliser, config.normaliser)
    before, now = checkpoint.config, config.model_dump()
    labels = before.get("labels")
    if now["validation_files"] or now["labels"] != ([labels] if isinstance(labels, str) else labels):
        return
    for key in ("validation_fraction", "seed"):
        if before.get(key, now[key]) != now[key]:
            message = "the checkpoint was trained with %s %s, the config has %s: it may know the validation images"
            logger.warning(message, key, before[key], now[key])


def open_pulse_free(paths: list[str], resolution: int) -> DMTimeImages:
    """Images without a pulse, memory-mapped."""
    n_images = 0
    for path in paths:
        try:
            n_images += len(np.load(path, mmap_mode="r", allow_pickle=False))
        except (ValueError, EOFError, TypeError):
            raise InputError(f"--pulse-free {path} is not a .npy file of images") from None
    if not n_images:
        raise InputError(f"--pulse-free {', '.join(paths)}: there is no image")
    return DMTimeImages(paths, np.zeros(n_images, np.int64), resolution)


@torch.inference_mode()
def predict(
    checkpoint: Checkpoint, dataset: DMTimeImages, indices: np.ndarray, config: TrainingConfig, device: torch.device
) -> np.ndarray:
    """Logits of the chosen images, float32 (N, 2), columns Artefact and Pulse."""
    loader = build_loader(dataset, ordered_batches(indices, config.batch_size), config.num_workers)
    model = checkpoint.model.to(memory_format=torch.channels_last)
    batches = tqdm(loader, desc="predict", leave=False, disable=None)
    logits = torch.cat([model(images.to(device).float()) for images, _ in batches])
    if not torch.isfinite(logits).all():
        raise InputError("the network gives logits that are not finite: the weights of the checkpoint are damaged")
    return logits[:, [checkpoint.class_names.index(name) for name in CLASS_NAMES]].cpu().numpy()


def predict_side(args: argparse.Namespace, config: TrainingConfig) -> Predictions:
    """Run the network over the side to evaluate, the validation side, and the pulse-free images."""
    device = choose_device(args.device or config.device)
    checkpoint = load_checkpoint(args.checkpoint, device, config.model_name, config.resolution)
    if not args.keep_checkpoint:
        make_output_folder(Path(args.checkpoint).parent, "checkpoint")
    page_s = page_length_s(args, checkpoint, config)
    pulse_free = open_pulse_free(args.pulse_free, config.resolution) if args.pulse_free else None
    warn_of_differences(checkpoint, config)
    sides = load_sides(config)
    name = args.side or ("test" if "test" in sides else "validation")
    if name not in sides:
        raise InputError(f"--side {name}: the config has no test_files, valid are {', '.join(sides)}")
    side, validation = sides[name], sides["validation"]
    artefacts = side.labels == 0
    check_rates(args, page_s, int(artefacts.sum()) if pulse_free is None else len(pulse_free))

    logits = validation_logits = predict(checkpoint, side.dataset, side.indices, config, device)
    if name != "validation":
        validation_logits = predict(checkpoint, validation.dataset, validation.indices, config, device)
    pulse_free_logits = logits[artefacts]
    if pulse_free is not None:
        pulse_free_logits = predict(checkpoint, pulse_free, np.arange(len(pulse_free)), config, device)
    return Predictions(
        labels=side.labels,
        logits=logits,
        snr=np.full(len(logits), np.nan, np.float32) if side.snr is None else side.snr,
        validation_labels=validation.labels,
        validation_logits=validation_logits,
        pulse_free_logits=pulse_free_logits,
        pulse_free_files=np.array([Path(path).name for path in args.pulse_free or []], dtype=str),
        page_s=page_s,
        rates=np.array(args.false_per_hour or FALSE_PER_HOUR),
        max_false_per_hour=args.max_false_per_hour or math.nan,
        checkpoint=Path(args.checkpoint).name,
        side=name,
        model_name=checkpoint.model_name,
        resolution=checkpoint.resolution,
        temperature=checkpoint.temperature,
        threshold=checkpoint.threshold,
    )


def with_options(predictions: Predictions, args: argparse.Namespace) -> Predictions:
    """Predictions of a file, with the page length and the rates of the command line where it has them."""
    changes = {"page_s": args.page_s, "max_false_per_hour": args.max_false_per_hour}
    changes["rates"] = np.array(args.false_per_hour) if args.false_per_hour else None
    predictions = replace(predictions, **{key: value for key, value in changes.items() if value is not None})
    check_rates(args, predictions.page_s, len(predictions.pulse_free_logits))
    return predictions


def store(path: Path, metrics: dict[str, Any]) -> None:
    """Write temperature, thresholds and metrics into a checkpoint; all else in the file stays as it is.

    Without new thresholds the stored ones stay, moved so that they decide the same with the new temperature.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    if "state_dict" not in content:
        logger.warning("%s holds bare weights: there is no place for temperature and thresholds in it", path)
        return
    before, after = content.get("temperature", 1.0), metrics["temperature"]
    thresholds = [{key: value for key, value in entry.items() if key != "recall"} for entry in metrics["thresholds"]]
    content["thresholds"] = thresholds or [
        entry | {"threshold": move_threshold(entry["threshold"], before, after)}
        for entry in content.get("thresholds", [])
    ]
    content["temperature"], content["threshold"] = after, metrics["threshold"]
    content["metrics"] = content.get("metrics", {}) | {"evaluation": metrics}
    with atomic_writer(path) as file:
        torch.save(content, file)


def report(metrics: dict[str, Any], files: list[Path]) -> str:
    """The numbers and the files in words."""
    m, counts, error = metrics, metrics["confusion"], metrics["expected_calibration_error"]
    right = f"{counts['true_positives']} Pulse and {counts['true_negatives']} Artefact right"
    wrong = f"{counts['false_positives']} Artefact called Pulse, {counts['false_negatives']} Pulse called Artefact"
    rates = ", ".join(f"{key} {m[key.lower()]:.4f}" for key in ("precision", "recall", "F1", "accuracy"))
    lines = [
        f"checkpoint:   {m['checkpoint']}, {m['model_name']} at {m['resolution']}",
        f"images:       {m['images']} of the {m['side']} side, {m['pulses']} of them Pulse",
        f"threshold:    {m['threshold']:.7g}",
        f"confusion:    {right}, {wrong}",
        f"              {rates}",
        f"ranking:      ROC AUC {m['roc_auc']:.5f}, average precision {m['average_precision']:.5f}",
    ]
    for entry in m["recall_by_snr"] or []:
        found = f"{entry['found']} of {entry['pulses']}"
        lines.append(f"S/N {entry['snr']:<6}    recall {entry['recall']:.4f}, {found} pulses")
    lines.append(f"temperature:  {m['temperature']:.4f}, fitted on the validation side")
    lines.append(f"calibration:  expected error {error['before']:.4f}, with the temperature {error['after']:.4f}")
    if m["pulse_free"] is not None:
        lines += report_rates(m["pulse_free"], m["thresholds"], m["side"])
    return "\n".join(lines + [f"written:      {path}" for path in files])


def report_rates(pulse_free: dict[str, Any], thresholds: list[dict[str, float]], side: str) -> list[str]:
    """The thresholds by false positives per hour in words."""
    source, hours = ", ".join(pulse_free["files"]) or f"the Artefact images of the {side} side", pulse_free["hours"]
    lines = [f"pulse-free:   {pulse_free['pages']} pages, {hours:.4g} h: {source}"]
    if not pulse_free["files"]:
        lines.append("              selected artefacts, not random sky: the rates are as representative as the set")
    for entry in thresholds:
        allowed = allowed_pages(entry["false_per_hour"], hours)
        values = f"threshold {entry['threshold']:.7g}, recall {entry['recall']:.4f}, at most {allowed} of the pages"
        lines.append(f"{entry['false_per_hour']:>8g}/h     {values}")
    for rate in pulse_free["rates_left_out"]:
        allowed = allowed_pages(rate, hours)
        reason = f"more than {allowed} of the pages have probability 1" if allowed else "less than one of the pages"
        lines.append(f"{rate:>8g}/h     left out: {reason}")
    return lines


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line asks for; return the metrics."""
    check_options(args)
    files = []
    if args.predictions:
        predictions = with_options(read_predictions(Path(args.predictions)), args)
        folder = make_output_folder(Path(args.output_dir or Path(args.predictions).parent), "--output-dir")
    else:
        config = load_config(args.config, TrainingConfig)
        folder = Path(args.output_dir or config.resolve(config.path_to_images))
        make_output_folder(folder, "--output-dir" if args.output_dir else "path_to_images")
        predictions = predict_side(args, config)
        files.append(folder / f"predictions_{predictions.name}.npz")
        write_predictions(files[0], predictions)

    metrics = measure(predictions)
    files += [folder / f"metrics_{predictions.name}.json", folder / f"evaluation_{predictions.name}.png"]
    with atomic_writer(files[-2]) as file:
        file.write((json.dumps(metrics, indent=1, allow_nan=False) + "\n").encode())
    plot_evaluation(files[-1], predictions, metrics)
    if not args.predictions and not args.keep_checkpoint:
        store(Path(args.checkpoint), metrics)
        files.append(Path(args.checkpoint))
    print(report(metrics, files))
    return metrics


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("config", nargs="?", help="training config, a JSON file")
    add("checkpoint", nargs="?", help="checkpoint, a .pth file")
    add("--predictions", metavar="FILE", help="predictions file, in place of config and checkpoint")
    add("--side", choices=SIDES, help="which images (default: test where there are some, else validation)")
    add("--pulse-free", nargs="+", metavar="FILE", help="images without a pulse (default: the Artefacts of the side)")
    add("--page-s", type=float, help=f"length of a page, seconds (default: {NATIVE_RESOLUTION} times tsamp_s)")
    rates = " ".join(f"{rate:g}" for rate in FALSE_PER_HOUR)
    add("--false-per-hour", nargs="+", type=float, metavar="RATE", help=f"rates of the thresholds (default: {rates})")
    limit = "rate whose threshold becomes the default one (default: the decision stays the same)"
    add("--max-false-per-hour", type=float, metavar="RATE", help=limit)
    add("--keep-checkpoint", action="store_true", help="write nothing into the checkpoint")
    add("--output-dir", help="where results go (default: path_to_images, or the folder of the predictions)")
    add("--device", choices=DEVICES, help="where to predict (default: the config's device, auto)")
    return parser


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
