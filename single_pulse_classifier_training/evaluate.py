"""Measure a trained checkpoint, calibrate its probabilities, and store thresholds by false positives per hour in it.

    python evaluate.py config.json checkpoint.pth                  the test split if the config has one, else validation
    python evaluate.py config.json checkpoint.pth --split training --keep-checkpoint
    python evaluate.py config.json checkpoint.pth --pulse-free sky.npy --page-s 0.0262 --max-false-per-hour 30
    python evaluate.py --predictions predictions_x_best_test.npz   metrics and plots again, without network and data

Written atomically to the output folder:
    predictions_<checkpoint>_<split>.npz  labels, logits and S/N, from which the other two files are made
    metrics_<checkpoint>_<split>.json     metrics
    evaluation_<checkpoint>_<split>.png   plots: confusion matrix, ROC, precision-recall, calibration, recall by S/N,
                                          thresholds
where <checkpoint> is "model" for model.pth, and "resnet18_256_best" for ch_point_resnet18_256/best.pth.
Temperature (always fitted on the validation split), thresholds and metrics are stored in the checkpoint. Its default
threshold is changed together with the temperature, so that the decisions stay the same, or is set to the threshold for
--max-false-per-hour. With --keep-checkpoint the file is not changed.

False positives per hour are measured on pages without a pulse: those of --pulse-free (uint8 images like those of a
training set), or else the Artefact images of the split. The latter are selected artefacts, not random sky.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()
    from single_pulse_classifier_training.options import evaluation_parser

    evaluation_parser(__doc__).parse_args()  # --help and errors of the command line, before torch is imported

import argparse
import json
import logging
import math
import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from single_pulse_classifier_training.calibration import move_threshold
from single_pulse_classifier_training.checkpoint import Checkpoint, load_checkpoint, write_content
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.config import TrainingConfig, load_config
from single_pulse_classifier_training.dataset import DMTimeImages, build_loader, ordered_batches
from single_pulse_classifier_training.evaluation import (
    Predictions,
    check_not_of_another,
    measure,
    read_predictions,
    write_predictions,
)
from single_pulse_classifier_training.options import FALSE_PER_HOUR, evaluation_parser
from single_pulse_classifier_training.plots import plot_evaluation
from single_pulse_classifier_training.pulse_free import (
    RateOptions,
    check_pulse_free,
    check_rates,
    open_pulse_free,
    page_length_s,
    report_rates,
    why_not_measured,
)
from single_pulse_classifier_training.runtime import atomic_writer, choose_device, make_output_folder
from single_pulse_classifier_training.set_description import input_channels, with_descriptions
from single_pulse_classifier_training.split import load_splits
from single_pulse_classifier_training.trained_images import check_not_trained_on
from single_pulse_classifier_training.training_models import CLASS_NAMES

logger = logging.getLogger(__name__)


def warn_of_other_images(checkpoint: Checkpoint, config: TrainingConfig) -> None:
    """Warn if the checkpoint was trained with another normaliser, or on other channels, which are then read."""
    if checkpoint.normaliser != config.normaliser:
        message = "the checkpoint was trained on images of the normaliser %s, the config has %s"
        logger.warning(message, checkpoint.normaliser, config.normaliser)
    if checkpoint.channels != input_channels(config):
        message = "the channels %s are read, as the checkpoint needs, whatever the config says (input: %s)"
        logger.warning(message, ", ".join(checkpoint.channels), config.input)


@torch.inference_mode()
def predict(
    checkpoint: Checkpoint, dataset: DMTimeImages, indices: np.ndarray, config: TrainingConfig, device: torch.device
) -> np.ndarray:
    """Run the network on the chosen images.

    Returns
    -------
    logits : (N, 2) ndarray of float32
        Columns Artefact and Pulse.

    Raises
    ------
    InputError
        If a logit is not finite.
    """
    loader = build_loader(dataset, ordered_batches(indices, config.batch_size), config.num_workers)
    model = checkpoint.model.to(memory_format=torch.channels_last)
    batches = tqdm(loader, desc="predict", leave=False, disable=None)
    logits = torch.cat([model(images.to(device).float()) for images, _ in batches])
    if not torch.isfinite(logits).all():
        raise InputError("the logits of the network must be finite, got NaN or infinity: the checkpoint is damaged")
    return logits[:, [checkpoint.class_names.index(name) for name in CLASS_NAMES]].cpu().numpy()


def predict_split(
    checkpoint: Checkpoint,
    path: Path,
    config: TrainingConfig,
    name: str,
    rates: RateOptions,
    device: torch.device,
) -> Predictions:
    """Run the network on the split to evaluate, the validation split, and the pulse-free images.

    Parameters
    ----------
    checkpoint : Checkpoint
    path : Path
        File of the checkpoint, an absolute path.
    config : TrainingConfig
    name : str
        Split to evaluate.
    rates : RateOptions
    device : torch.device
    """
    pulse_free = open_pulse_free(rates.pulse_free, checkpoint) if rates.pulse_free else None
    warn_of_other_images(checkpoint, config)
    splits = load_splits(config, channels=checkpoint.channels)
    if name not in splits:
        raise InputError(f"--split must be {' or '.join(splits)} for a config without test_files, got {name}")
    split, validation = splits[name], splits["validation"]
    unseen = {key: splits[key] for key in (name, "validation") if key != "training"}
    check_not_trained_on(checkpoint.trained_images, unseen, str(path))
    artefacts = split.labels == 0
    page_s = page_length_s(rates, checkpoint, config, split.dataset)
    why_not = why_not_measured(checkpoint.normaliser, page_s, name, pulse_free is not None)
    check_rates(rates, why_not, page_s, int(artefacts.sum()) if pulse_free is None else len(pulse_free))
    if pulse_free is not None:
        check_pulse_free(pulse_free, splits, checkpoint, config)

    logits = validation_logits = predict(checkpoint, split.dataset, split.indices, config, device)
    if name != "validation":
        validation_logits = predict(checkpoint, validation.dataset, validation.indices, config, device)
    pulse_free_logits = logits[artefacts]
    if pulse_free is not None:
        pulse_free_logits = predict(checkpoint, pulse_free, np.arange(len(pulse_free)), config, device)
    return Predictions(
        labels=split.labels,
        logits=logits,
        snr=np.full(len(logits), np.nan, np.float32) if split.snr is None else split.snr,
        validation_labels=validation.labels,
        validation_logits=validation_logits,
        pulse_free_logits=pulse_free_logits,
        pulse_free_files=np.array([Path(path).name for path in rates.pulse_free or []], dtype=str),
        page_s=math.nan if why_not else page_s,
        rates=np.array(rates.false_per_hour or FALSE_PER_HOUR),
        max_false_per_hour=rates.max_false_per_hour or math.nan,
        checkpoint=str(path),
        split=name,
        model_name=checkpoint.model_name,
        resolution=checkpoint.resolution,
        temperature=checkpoint.temperature,
        threshold=checkpoint.threshold,
    )


def with_options(predictions: Predictions, rates: RateOptions) -> Predictions:
    """Return predictions of a file, with the page length and the rates of the command line where they are given."""
    changes: dict[str, Any] = {"page_s": rates.page_s, "max_false_per_hour": rates.max_false_per_hour}
    changes["rates"] = np.array(rates.false_per_hour) if rates.false_per_hour else None
    predictions = replace(predictions, **{key: value for key, value in changes.items() if value is not None})
    why_not = why_not_measured(None, predictions.page_s, predictions.split, len(predictions.pulse_free_files) > 0)
    check_rates(rates, why_not, predictions.page_s, len(predictions.pulse_free_logits))
    if why_not:
        predictions = replace(predictions, page_s=math.nan)
    return predictions


def store(path: Path, metrics: dict[str, Any]) -> None:
    """Write temperature, thresholds and metrics into a checkpoint; the rest of the file stays unchanged.

    If no new thresholds could be measured, the stored ones are moved so that they give the same decisions with the new
    temperature.
    """
    path = path.resolve()  # a link stays a link
    content = torch.load(path, map_location="cpu", weights_only=True)
    if "state_dict" not in content:
        logger.warning("%s holds bare weights: temperature and thresholds cannot be stored in it", path)
        return
    before, after = content.get("temperature", 1.0), metrics["temperature"]
    thresholds = [{key: value for key, value in entry.items() if key != "recall"} for entry in metrics["thresholds"]]
    content["thresholds"] = thresholds or [
        entry | {"threshold": move_threshold(entry["threshold"], before, after)}
        for entry in content.get("thresholds", [])
    ]
    content["temperature"], content["threshold"] = after, metrics["threshold"]
    content["metrics"] = content.get("metrics", {}) | {"evaluation": metrics}
    write_content(path, content)


def report(metrics: dict[str, Any], files: list[Path]) -> str:
    """Return the metrics and the names of the written files as text."""
    m, counts, error = metrics, metrics["confusion"], metrics["expected_calibration_error"]
    correct = f"{counts['true_positives']} Pulse and {counts['true_negatives']} Artefact correct"
    wrong = f"{counts['false_positives']} Artefact classified as Pulse, {counts['false_negatives']} Pulse as Artefact"
    rates = ", ".join(f"{key} {m[key.lower()]:.4f}" for key in ("precision", "recall", "F1", "accuracy"))
    lines = [
        f"checkpoint:   {m['checkpoint']}, {m['model_name']} at {m['resolution']}",
        f"images:       {m['images']} of the {m['side']} split, {m['pulses']} of them Pulse",
        f"threshold:    {m['threshold']:.7g}",
        f"confusion:    {correct}, {wrong}",
        f"              {rates}",
        f"ranking:      ROC AUC {m['roc_auc']:.5f}, average precision {m['average_precision']:.5f}",
    ]
    for entry in m["recall_by_snr"] or []:
        found = f"{entry['found']} of {entry['pulses']}"
        lines.append(f"S/N {entry['snr']:<6}    recall {entry['recall']:.4f}, {found} pulses")
    for entry in m["recall_at_false_positives"]:
        allowed = f"{entry['false_positives']} of {entry['artefacts']} Artefact images"
        lines.append(f"recall        {entry['recall']:.4f} where {allowed} pass")
    lines.append(f"temperature:  {m['temperature']:.4f}, fitted on the validation split")
    lines.append(f"calibration:  expected error {error['before']:.4f}, with the temperature {error['after']:.4f}")
    if m["pulse_free"] is not None:
        lines += report_rates(m["pulse_free"], m["thresholds"], m["side"])
    return "\n".join(lines + [f"written:      {path}" for path in files])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate as the command line says; return the metrics."""
    rates = RateOptions(args.pulse_free, args.page_s, args.false_per_hour, args.max_false_per_hour)
    files = []
    if args.predictions:
        given = {"config": args.config, "--split": args.split, "--pulse-free": args.pulse_free, "--device": args.device}
        for option, value in given.items():
            if value:
                raise InputError(f"{option} {value} cannot be combined with --predictions")
        predictions = with_options(read_predictions(Path(args.predictions)), rates)
        folder = make_output_folder(Path(args.output_dir or Path(args.predictions).parent), "--output-dir")
        check_not_of_another(folder, predictions.checkpoint, predictions.split)
    else:
        if not args.checkpoint:
            raise InputError("give config.json and checkpoint.pth, or --predictions with a predictions file")
        config, path = (
            with_descriptions(load_config(args.config, TrainingConfig)),
            Path(os.path.abspath(args.checkpoint)),
        )
        folder = Path(args.output_dir or config.resolve(config.path_to_images))
        make_output_folder(folder, "--output-dir" if args.output_dir else "path_to_images")
        device = choose_device(args.device or config.device)
        checkpoint = load_checkpoint(path, device, config.model_name, config.resolution)
        if not args.keep_checkpoint:
            make_output_folder(path.parent, "checkpoint")
        split = args.split or ("test" if config.test_files else "validation")
        check_not_of_another(folder, str(path), split)
        predictions = predict_split(checkpoint, path, config, split, rates, device)
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
    return evaluation_parser(__doc__)


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
