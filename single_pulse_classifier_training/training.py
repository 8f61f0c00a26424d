"""Train a network to distinguish pulses from artefacts on labelled images of candidates or pages.

    python training.py config.json
    python training.py config.json --device cpu --epochs 3
    python training.py config.json --resume                     continue a training that was stopped or killed
    torchrun --nproc-per-node=4 training.py config.json         one training on several GPUs (or CPU processes)

The config names the images (uint8 .npy), their labels and the network; README.md explains every key. Training stops
when the validation loss (or the metric that the config names) has not improved for `patience` epochs. SIGINT (Ctrl-C)
and SIGTERM finish the current step, save last.pth and end the run with exit code 130 or 143.

Results:
    <path_to_checkpoints>/ch_point_<model_name>_<resolution>/prot-<epoch>-<train accuracy>-<validation accuracy>.pth
        written when the metric improves; best.pth beside it is a copy of the latest of these, and --resume continues
        from last.pth
    <path_to_images>/accuracy_across_epochs_for_<model_name>_<resolution>x<resolution>.jpg
        loss and accuracy across epochs
and a report on standard output.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()
    from single_pulse_classifier_training.options import training_parser

    training_parser(__doc__).parse_args()  # --help and errors of the command line, before torch is imported

import argparse
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from single_pulse_classifier_training.augment import augmentation
from single_pulse_classifier_training.checkpoint import Checkpoint, save_checkpoint
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.config import TrainingConfig, load_config
from single_pulse_classifier_training.dataset import DMTimeImages, TrainingBatches, build_loader, ordered_batches
from single_pulse_classifier_training.distributed import Ranks, process_group
from single_pulse_classifier_training.initial_weights import load_initial_weights
from single_pulse_classifier_training.memory import keep_freed_memory
from single_pulse_classifier_training.metrics import ConfusionCounts
from single_pulse_classifier_training.optimisation import Learner, build_learner
from single_pulse_classifier_training.options import training_parser
from single_pulse_classifier_training.plots import plot_training_history
from single_pulse_classifier_training.runtime import (
    atomic_writer,
    choose_device,
    end_with_launcher,
    make_output_folder,
    set_seed,
)
from single_pulse_classifier_training.set_description import input_channels, with_descriptions
from single_pulse_classifier_training.split import Split, checksum_of, load_splits
from single_pulse_classifier_training.trained_images import check_not_trained_on, record_of
from single_pulse_classifier_training.training_models import build_model
from single_pulse_classifier_training.training_report import TrainingResult, check_learned, constant_loss, report
from single_pulse_classifier_training.training_state import (
    Interrupted,
    Progress,
    Watch,
    resume,
    save_training_state,
)

logger = logging.getLogger(__name__)


def train_one_epoch(
    learner: Learner,
    loader: DataLoader,
    progress: Progress,
    change: nn.Module | None,
    after_step: Callable[[], None],
) -> tuple[float, float]:
    """Train on the remaining batches of an epoch.

    Parameters
    ----------
    loader : DataLoader
        The remaining batches.
    progress : Progress
        Updated after every batch.
    change : nn.Module or None
        Augmentation of a batch of images.
    after_step : callable
        Called without arguments after every step.

    Returns
    -------
    loss, accuracy : float
        Means over the whole epoch, measured on the augmented images while the weights change.
    """
    learner.network.train()
    for images, labels in tqdm(loader, desc="train", leave=False, disable=learner.ranks.hide_bar):
        images = images.to(learner.device, non_blocking=True).float()
        labels = labels.to(learner.device, non_blocking=True)
        if change is not None:
            images = change(images)
        with learner.autocast():
            logits = learner.network(images)
        loss, weight = learner.summed_loss(logits, labels)
        learner.step(loss, weight)
        right = (logits.argmax(1) == labels).sum()
        progress.n_batches += 1
        progress.sums += torch.stack((loss.detach(), weight, right, right.new_tensor(len(labels))))
        after_step()
    loss, weight, right, n_images = learner.ranks.sum(progress.sums.clone()).tolist()
    return loss / weight, right / n_images


@torch.inference_mode()
def evaluate(learner: Learner, loader: DataLoader, after_step: Callable[[], None]) -> tuple[float, ConfusionCounts]:
    """Return the mean loss and the confusion counts of the validation images.

    The precision is float32 whatever ``amp`` is, and an image counts as Pulse from probability 0.5, as in evaluate.py
    and, by default, in the pipeline. Compared with bf16, an epoch of 241002_3 or DM_time_small_residual at 256 with the
    default ``validation_fraction`` takes 7 to 9 % longer on a CPU with bf16 instructions.
    """
    learner.model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=learner.device)
    counts = torch.zeros(4, dtype=torch.int64, device=learner.device)
    for images, labels in tqdm(loader, desc="validate", leave=False, disable=learner.ranks.hide_bar):
        images, labels = images.to(learner.device).float(), labels.to(learner.device)
        logits = learner.model(images)
        sums += torch.stack(learner.summed_loss(logits, labels))
        counts += torch.bincount(2 * labels + (logits.softmax(1)[:, 1] >= 0.5), minlength=4)
        after_step()
    loss, weight = learner.ranks.sum(sums).tolist()
    true_negatives, false_positives, false_negatives, true_positives = learner.ranks.sum(counts).tolist()
    return loss / weight, ConfusionCounts(true_positives, false_positives, true_negatives, false_negatives)


def describe(
    config: TrainingConfig,
    model: nn.Module,
    channels: tuple[str, ...],
    metrics: dict,
    trained_images: list[dict] | None = None,
) -> Checkpoint:
    """Return a checkpoint with the metrics of an epoch, the settings of the config, and the images trained on."""
    return Checkpoint(
        model=model,
        model_name=config.model_name,
        resolution=config.resolution,
        normaliser=config.normaliser,
        channels=channels,
        dms=config.dms,
        tsamp_s=config.tsamp_s,
        trained_images=trained_images,
        metrics=metrics,
        config=config.model_dump(),
    )


def save_best(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write the checkpoint of an epoch under its own name and a copy as best.pth; return the former's path."""
    metrics = checkpoint.metrics
    path = folder / f"prot-{metrics['epoch']:03d}-{metrics['train_accuracy']:.3f}-{metrics['val_accuracy']:.3f}.pth"
    save_checkpoint(path, checkpoint)
    with open(path, "rb") as written, atomic_writer(folder / "best.pth") as copy:
        shutil.copyfileobj(written, copy)
    return path


def fit(
    config: TrainingConfig,
    learner: Learner,
    loaders: tuple[DataLoader, DataLoader],
    progress: Progress,
    folder: Path,
    trained_images: list[dict] | None = None,
) -> None:
    """Train until the metric stops improving, continuing from ``progress``, and write checkpoints into ``folder``.

    ``trained_images``, the result of ``record_of``, is written into them.

    Raises
    ------
    InputError
        If the loss is not finite.
    Interrupted
        After a signal, when the training state has been saved.
    """
    training_loader, validation_loader = loaders
    shuffled = training_loader.batch_sampler
    assert isinstance(shuffled, TrainingBatches)
    assert isinstance(training_loader.dataset, DMTimeImages)
    channels = training_loader.dataset.channels
    ranks, watch = learner.ranks, Watch(config.checkpoint_interval_s)
    change = augmentation(config.normaliser == "noise", channels) if config.augment else None

    def save() -> None:
        current = describe(config, learner.model, channels, {}, trained_images)
        save_training_state(folder / "last.pth", current, learner, progress)
        watch.saved()

    def after_step() -> None:
        signalled, due = watch.after_step(ranks)
        if signalled or due:
            save()
        if signalled:
            raise Interrupted(signalled)

    while not is_over(config, progress):
        shuffled.epoch, shuffled.first = progress.epoch, progress.n_batches
        start, n_images = time.perf_counter(), shuffled.n_images
        loss, accuracy = train_one_epoch(learner, training_loader, progress, change, after_step)
        speed = n_images / (time.perf_counter() - start)
        # The validation batches of the processes differ in number, so they can only agree on a signal after the last.
        val_loss, counts = evaluate(learner, validation_loader, after_step if ranks.n == 1 else lambda: None)
        if not (math.isfinite(loss) and math.isfinite(val_loss)):
            raise InputError(
                f"learning_rate {config.learning_rate} is too high: the loss of epoch {progress.epoch} is not finite"
            )
        record = {"epoch": progress.epoch, "train_loss": loss, "train_accuracy": accuracy}
        record |= {"val_loss": val_loss, "val_accuracy": counts.accuracy}
        message = "epoch %d: train loss %.4f accuracy %.4f, validation loss %.4f accuracy %.4f, %.0f images/s"
        logger.info(message, *record.values(), speed)
        if progress.best is None or is_better(record, progress.best, config.early_stopping_metric):
            metrics = record | {"validation_confusion": asdict(counts)}
            metrics |= {"val_precision": counts.precision, "val_recall": counts.recall, "val_f1": counts.f1}
            progress.best, progress.best_counts = record, counts
            if ranks.is_writer:
                best = describe(config, learner.model, channels, metrics, trained_images)
                progress.best_path = save_best(folder, best)
        progress.finish_epoch(record)
        save()


def is_over(config: TrainingConfig, progress: Progress) -> bool:
    """Return whether all epochs are finished, or the metric has not improved for ``patience`` epochs."""
    if progress.epoch > config.num_epochs:
        return True
    return progress.best is not None and progress.epoch - 1 - progress.best["epoch"] >= config.patience


def is_better(record: dict[str, float], best: dict[str, float], metric: str) -> bool:
    """Return whether an epoch improves on the best one: a lower loss or a higher accuracy."""
    return record[metric] < best[metric] if metric.endswith("loss") else record[metric] > best[metric]


def build_loaders(
    config: TrainingConfig, splits: dict[str, Split], device: torch.device, ranks: Ranks
) -> tuple[DataLoader, DataLoader]:
    """Return loaders of the training images, in a new order each epoch, and of the validation images, in order."""
    training, validation = splits["training"], splits["validation"]
    shuffled = TrainingBatches(training.indices, config.batch_size, config.seed, ranks.rank, ranks.n)
    if not len(shuffled):
        raise InputError(
            f"the number of training images must be at least {2 * ranks.n} for {ranks.n} process(es), "
            f"got {len(training.indices)}"
        )
    ordered = ordered_batches(validation.indices, max(1, config.batch_size // ranks.n), ranks.rank, ranks.n)
    pin = device.type == "cuda"
    return (
        build_loader(training.dataset, shuffled, config.num_workers, pin),
        build_loader(validation.dataset, ordered, config.num_workers, pin),
    )


def train(config: TrainingConfig, device: torch.device, ranks: Ranks, resuming: bool) -> TrainingResult | None:
    """Run the part of a training that belongs to this process.

    Parameters
    ----------
    config : TrainingConfig
    device : torch.device
    ranks : Ranks
        This process among all.
    resuming : bool
        Continue from last.pth if there is one.

    Returns
    -------
    result : TrainingResult or None
        None in the processes that write nothing.
    """
    start = time.perf_counter()
    if config.batch_size < 2 * ranks.n:  # batch normalisation needs a variance in each process
        raise InputError(f"batch_size must be at least {2 * ranks.n} for {ranks.n} processes, got {config.batch_size}")
    set_seed(config.seed)
    channels = input_channels(config)
    initial = load_initial_weights(config, device, channels) if config.initial_weights else None
    model = initial.model if initial else build_model(config.model_name, config.resolution, channels)
    model = model.to(device).to(memory_format=torch.channels_last)
    set_seed(config.seed + ranks.rank)
    splits = load_splits(config, ranks)
    data_checksum = ranks.from_writer(lambda: checksum_of(splits))
    record = ranks.from_writer(lambda: record_of(splits))
    if initial:
        validation = {"validation": splits["validation"]}
        check_not_trained_on(initial.trained_images, validation, f"initial_weights {config.initial_weights}")
        record += initial.trained_images or []
    name = f"{config.model_name}_{config.resolution}"
    folder = config.resolve(config.path_to_checkpoints) / f"ch_point_{name}"
    images = config.resolve(config.path_to_images)
    if ranks.is_writer:
        make_output_folder(folder, "path_to_checkpoints")
        make_output_folder(images, "path_to_images")

    loaders = build_loaders(config, splits, device, ranks)
    learner = build_learner(config, model, splits["training"].labels, len(loaders[0]), device, ranks)
    sums, last = torch.zeros(4, dtype=torch.float64, device=device), folder / "last.pth"
    progress = Progress(sums, data_checksum=data_checksum)
    if resuming and last.exists():
        progress = resume(last, config, learner, data_checksum)
        logger.info("resuming epoch %d after %d batches", progress.epoch, progress.n_batches)
    elif last.exists():
        logger.warning("%s of an earlier training will be replaced; --resume would continue it", last)
    fit(config, learner, loaders, progress, folder, record)
    if not ranks.is_writer:
        return None

    assert progress.best is not None and progress.best_counts is not None and progress.best_path is not None
    plot_path = images / f"accuracy_across_epochs_for_{name}x{config.resolution}.jpg"
    plot_training_history(progress.history, int(progress.best["epoch"]), name, plot_path)
    return TrainingResult(
        history=progress.history,
        best=progress.best,
        confusion=progress.best_counts,
        constant_loss=constant_loss(splits["validation"].labels, learner.class_weights.cpu().numpy()),
        checkpoint_path=progress.best_path,
        plot_path=plot_path,
        wall_time_s=time.perf_counter() - start,
    )


def load_training_config(path: str | Path, epochs: int | None, device: str | None) -> TrainingConfig:
    """Read a training config, with the number of epochs and the device of the command line where they are given.

    Raises
    ------
    InputError
        If the config is not valid or contradicts the description of its set, or ``epochs`` is less than 1.
    """
    if epochs is not None and epochs < 1:
        raise InputError(f"--epochs must be at least 1, got {epochs}")
    options = {"num_epochs": epochs, "device": device}
    config = with_descriptions(load_config(path, TrainingConfig))
    return config.model_copy(update={key: value for key, value in options.items() if value is not None})


def run(args: argparse.Namespace) -> TrainingResult | None:
    """Train as the config file and the command line say."""
    config = load_training_config(args.config, args.epochs, args.device)
    device = choose_device(config.device)
    with process_group(device) as ranks:
        if not ranks.is_writer:
            logging.disable(logging.WARNING)
        try:
            result = train(config, device, ranks, args.resume)
        except Interrupted as interrupted:
            number = interrupted.args[0]
            logger.warning("stopped by %s; the same command with --resume continues", signal.Signals(number).name)
            sys.exit(128 + number)
    if result is not None:
        print(report(result))
        check_learned(config, result.history, result.constant_loss)
    return result


def get_parser() -> argparse.ArgumentParser:
    return training_parser(__doc__)


def main() -> None:
    end_with_launcher()
    keep_freed_memory()
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
