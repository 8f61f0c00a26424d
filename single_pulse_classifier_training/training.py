"""Train a network to tell pulses from artefacts on labelled DM-time images.

    python training.py config.json
    python training.py config.json --device cpu --epochs 3

The config names the images (uint8 .npy), their labels and the network; README.md explains every key. Training stops
when the validation loss (or the metric that the config names) has not improved for `patience` epochs.

Results:
    <path_to_checkpoints>/ch_point_<model_name>_<resolution>/prot-<epoch>-<train accuracy>-<validation accuracy>.pth
        written when the metric improves; best.pth beside it is a copy of the last of them
    <path_to_images>/accuracy_across_epochs_for_<model_name>_<resolution>x<resolution>.jpg
        loss and accuracy across epochs
and a report on standard output.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import logging
import math
import shutil
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler
from tqdm import tqdm

from single_pulse_classifier_training.augment import augment
from single_pulse_classifier_training.checkpoint import Checkpoint, save_checkpoint
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.config import TrainingConfig, load_config
from single_pulse_classifier_training.dataset import (
    DMTimeImages,
    find_events,
    keep_batch,
    load_groups,
    load_labels,
    split_by_event,
)
from single_pulse_classifier_training.metrics import ConfusionCounts, confusion_counts
from single_pulse_classifier_training.plots import plot_training_history
from single_pulse_classifier_training.runtime import DEVICES, atomic_writer, choose_device, make_output_folder, set_seed
from single_pulse_classifier_training.training_models import build_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave; the values are those of the best epoch.

    ``history`` holds one dictionary an epoch: epoch, train_loss, train_accuracy, val_loss, val_accuracy.
    """

    history: list[dict[str, float]]
    best: dict[str, float]
    confusion: ConfusionCounts
    checkpoint_path: Path
    plot_path: Path
    wall_time_s: float


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    loss_function: nn.Module,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    augmentation: torch.Generator | None = None,
) -> tuple[float, float]:
    """One pass over the training images; returns the mean loss and the accuracy while training."""
    model.train()
    total_loss = torch.zeros((), device=device)
    n_right = torch.zeros((), device=device, dtype=torch.int64)
    n_images = 0
    for images, labels in tqdm(loader, desc="train", leave=False, disable=None):
        images, labels = images.to(device).float(), labels.to(device)
        if augmentation is not None:
            images = augment(images, augmentation)
        logits = model(images)
        loss = loss_function(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total_loss += loss.detach() * len(labels)
        n_right += (logits.argmax(1) == labels).sum()
        n_images += len(labels)
    return total_loss.item() / n_images, n_right.item() / n_images


@torch.inference_mode()
def evaluate(
    model: nn.Module, loader: DataLoader, loss_function: nn.Module, device: torch.device
) -> tuple[float, ConfusionCounts]:
    """The mean loss and the confusion counts of the validation images."""
    model.eval()
    all_logits, all_labels = [], []
    for images, labels in tqdm(loader, desc="validate", leave=False, disable=None):
        all_logits.append(model(images.to(device).float()))
        all_labels.append(labels.to(device))
    logits, labels = torch.cat(all_logits), torch.cat(all_labels)
    return loss_function(logits, labels).item(), confusion_counts(labels.cpu().numpy(), logits.argmax(1).cpu().numpy())


def load_data(config: TrainingConfig) -> tuple[DMTimeImages, np.ndarray, np.ndarray]:
    """The images and the indices of their training and validation sides."""
    dataset = DMTimeImages([config.images_path], load_labels(config.labels_path), config.resolution)
    groups = load_groups(config.groups_path, len(dataset)) if config.groups_path else find_events(dataset)
    training, validation = split_by_event(dataset.labels, groups, config.validation_fraction, config.seed)
    logger.info(
        "%d images of %d events: %d for training, %d for validation",
        len(dataset),
        len(np.unique(groups)),
        len(training),
        len(validation),
    )
    return dataset, training, validation


def build_loaders(
    config: TrainingConfig, dataset: DMTimeImages, training: np.ndarray, validation: np.ndarray
) -> tuple[DataLoader, DataLoader]:
    """Batches of the training images in a new order each epoch, and of the validation images in order."""
    # Batch normalisation has no variance to measure in a last batch of a single image.
    drop_last = len(training) % config.batch_size == 1
    shuffle = SubsetRandomSampler(training.tolist(), generator=torch.Generator().manual_seed(config.seed))
    return tuple(
        DataLoader(
            dataset,
            batch_size=config.batch_size,
            sampler=sampler,
            drop_last=drop_last and sampler is shuffle,
            collate_fn=keep_batch,
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
        )
        for sampler in (shuffle, validation.tolist())
    )


def build_optimiser(config: TrainingConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW, as the config says."""
    optimiser = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser]
    # One pass over the weights instead of one an operation: 1.4 times the images/s for 241002_3 at 256 on a CPU.
    return optimiser(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def build_loss(config: TrainingConfig, labels: np.ndarray, device: torch.device) -> nn.Module:
    """Cross-entropy on logits; with ``class_weights`` both classes count the same whatever their numbers."""
    if not config.class_weights:
        return nn.CrossEntropyLoss()
    weights = len(labels) / (2 * np.bincount(labels, minlength=2))
    return nn.CrossEntropyLoss(weight=torch.tensor(weights, dtype=torch.float32, device=device))


def save_best(folder: Path, model: nn.Module, config: TrainingConfig, record: dict, counts: ConfusionCounts) -> Path:
    """Write the checkpoint of an epoch under its own name, and a copy of it as best.pth."""
    metrics = record | {"validation_confusion": asdict(counts)}
    metrics |= {"val_precision": counts.precision, "val_recall": counts.recall, "val_f1": counts.f1}
    checkpoint = Checkpoint(
        model=model,
        model_name=config.model_name,
        resolution=config.resolution,
        normaliser=config.normaliser,
        dms=config.dms,
        tsamp_s=config.tsamp_s,
        metrics=metrics,
        config=config.model_dump(),
    )
    path = folder / f"prot-{record['epoch']:03d}-{record['train_accuracy']:.3f}-{record['val_accuracy']:.3f}.pth"
    save_checkpoint(path, checkpoint)
    with open(path, "rb") as written, atomic_writer(folder / "best.pth") as copy:
        shutil.copyfileobj(written, copy)
    return path


def fit(
    config: TrainingConfig,
    model: nn.Module,
    loaders: tuple[DataLoader, DataLoader],
    loss_function: nn.Module,
    device: torch.device,
    folder: Path,
) -> tuple[list[dict[str, float]], dict[str, float], ConfusionCounts, Path]:
    """Train until the metric stops improving; returns the history and the best epoch's record, counts, checkpoint."""
    training_loader, validation_loader = loaders
    optimiser = build_optimiser(config, model)
    scheduler = None
    if config.scheduler == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=config.num_epochs)
    augmentation = torch.Generator(device).manual_seed(config.seed) if config.augment else None

    history, best, best_counts, best_path = [], None, None, None
    for epoch in range(1, config.num_epochs + 1):
        loss, accuracy = train_one_epoch(model, training_loader, loss_function, optimiser, device, augmentation)
        val_loss, counts = evaluate(model, validation_loader, loss_function, device)
        if not (math.isfinite(loss) and math.isfinite(val_loss)):
            raise InputError(f"learning_rate {config.learning_rate} is too high: no finite loss in epoch {epoch}")
        if scheduler is not None:
            scheduler.step()
        record = {"epoch": epoch, "train_loss": loss, "train_accuracy": accuracy}
        record |= {"val_loss": val_loss, "val_accuracy": counts.accuracy}
        history.append(record)
        logger.info(
            "epoch %d: train loss %.4f accuracy %.4f, validation loss %.4f accuracy %.4f",
            *record.values(),
        )
        if best is None or is_better(record, best, config.early_stopping_metric):
            best, best_counts = record, counts
            best_path = save_best(folder, model, config, record, counts)
        elif epoch - best["epoch"] >= config.patience:
            logger.info("%s has not improved for %d epochs", config.early_stopping_metric, config.patience)
            break
    return history, best, best_counts, best_path


def is_better(record: dict[str, float], best: dict[str, float], metric: str) -> bool:
    """Whether an epoch improves on the best one: a lower loss or a higher accuracy."""
    return record[metric] < best[metric] if metric.endswith("loss") else record[metric] > best[metric]


def report(result: TrainingResult) -> str:
    """The result of a training in words."""
    best, counts = result.best, result.confusion
    return "\n".join(
        (
            f"epochs:      {len(result.history)}, best {best['epoch']}",
            f"training:    loss {best['train_loss']:.4f}, accuracy {best['train_accuracy']:.4f}",
            f"validation:  loss {best['val_loss']:.4f}, accuracy {best['val_accuracy']:.4f}",
            f"             precision {counts.precision:.4f}, recall {counts.recall:.4f}, F1 {counts.f1:.4f}",
            f"confusion:   {counts.true_positives} Pulse and {counts.true_negatives} Artefact right, "
            f"{counts.false_positives} Artefact called Pulse, {counts.false_negatives} Pulse called Artefact",
            f"checkpoint:  {result.checkpoint_path}",
            f"plot:        {result.plot_path}",
            f"wall time:   {result.wall_time_s:.1f} s",
        )
    )


def run(args: argparse.Namespace) -> TrainingResult:
    """Train as the config file says."""
    started = time.perf_counter()
    config = load_config(args.config, TrainingConfig)
    if args.epochs is not None and args.epochs < 1:
        raise InputError(f"--epochs {args.epochs}: valid are whole numbers from 1")
    config.num_epochs = args.epochs or config.num_epochs
    device = choose_device(args.device or config.device)
    set_seed(config.seed)
    model = build_model(config.model_name, config.resolution).to(device, memory_format=torch.channels_last)
    dataset, training, validation = load_data(config)
    name = f"{config.model_name}_{config.resolution}"
    folder = config.resolve(config.path_to_checkpoints) / f"ch_point_{name}"
    make_output_folder(folder, "path_to_checkpoints")
    images = make_output_folder(config.resolve(config.path_to_images), "path_to_images")

    loaders = build_loaders(config, dataset, training, validation)
    loss_function = build_loss(config, dataset.labels[training], device)
    history, best, counts, path = fit(config, model, loaders, loss_function, device, folder)

    plot_path = images / f"accuracy_across_epochs_for_{name}x{config.resolution}.jpg"
    plot_training_history(history, best["epoch"], name, plot_path)
    result = TrainingResult(history, best, counts, path, plot_path, time.perf_counter() - started)
    print(report(result))
    return result


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="training config, a JSON file")
    parser.add_argument("--device", choices=DEVICES, help="where to train (default: the config's device, auto)")
    parser.add_argument("--epochs", type=int, help="most epochs to train (default: the config's num_epochs, 100)")
    return parser


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
