"""State from which a training continues as if it had not been interrupted: last.pth."""

import logging
import random
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from single_pulse_classifier_training.checkpoint import Checkpoint, load_training_state, save_checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import TrainingConfig
from single_pulse_classifier_training.distributed import Ranks
from single_pulse_classifier_training.metrics import ConfusionCounts
from single_pulse_classifier_training.optimisation import Learner
from single_pulse_classifier_training.set_description import shown

logger = logging.getLogger(__name__)

# Keys that may differ when a training is resumed: none changes what a step does to the weights, nor what a search
# takes from best.pth. An exception is num_epochs with a scheduler, see ``resume``.
FREE_KEYS = {
    "num_epochs", "patience", "early_stopping_metric", "num_workers", "device", "compile", "checkpoint_interval_s",
    "path_to_files", "path_to_checkpoints", "path_to_images", "test_files", "snr",
}  # fmt: skip


@dataclass
class Progress:
    """Progress of a training.

    Parameters
    ----------
    sums : (4,) tensor of float64
        Sums over the finished batches of the epoch: loss, weight of the images in the loss, correctly classified
        images, images.
    epoch : int
        Current epoch, counted from 1.
    n_batches : int
        Finished batches of the epoch.
    history : list of dict
        One per finished epoch: epoch, train_loss, train_accuracy, val_loss, val_accuracy.
    best : dict, optional
        Entry of the best epoch.
    best_counts : ConfusionCounts, optional
        Its validation counts.
    best_path : Path, optional
        Its checkpoint.
    data_checksum : str
        Checksum of the training and validation splits.
    """

    sums: torch.Tensor
    epoch: int = 1
    n_batches: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    best_counts: ConfusionCounts | None = None
    best_path: Path | None = None
    data_checksum: str = ""

    def finish_epoch(self, record: dict[str, float]) -> None:
        """Record a finished epoch and start the next one."""
        self.history.append(record)
        self.epoch, self.n_batches = self.epoch + 1, 0
        self.sums = torch.zeros_like(self.sums)


def save_training_state(path: Path, checkpoint: Checkpoint, learner: Learner, progress: Progress) -> None:
    """Write last.pth: the current network and everything that the next step depends on. All ranks must call it."""
    rng_states = learner.ranks.gather(_rng_state())
    sums = learner.ranks.sum(progress.sums.clone())
    if not learner.ranks.is_writer:
        return
    save_checkpoint(
        path,
        checkpoint,
        optimiser=learner.optimiser.state_dict(),
        schedule=learner.schedule.state_dict(),
        scaler=learner.scaler.state_dict(),
        rng_states=rng_states,
        progress={
            "epoch": progress.epoch,
            "n_batches": progress.n_batches,
            "sums": sums,
            "history": progress.history,
            "best": progress.best,
            "best_counts": asdict(progress.best_counts) if progress.best_counts else None,
            "best_path": progress.best_path.name if progress.best_path else None,
            "data_checksum": progress.data_checksum,
        },
    )


def resume(path: Path, config: TrainingConfig, learner: Learner, data_checksum: str) -> Progress:
    """Set the learner and the random generators to the state in last.pth.

    Parameters
    ----------
    path : Path
    config : TrainingConfig
        Must agree with that of the interrupted training except for ``FREE_KEYS``.
    learner : Learner
        Changed in place.
    data_checksum : str
        Checksum of the training and validation splits.

    Returns
    -------
    progress : Progress

    Raises
    ------
    InputError
        If the file cannot be read, or belongs to a training with another config or other data.
    """
    checkpoint, state = load_training_state(path)
    before, now = {"input": "dmt"} | checkpoint.config, config.model_dump()
    for key in now:
        if key not in FREE_KEYS and before.get(key) != now[key]:
            text = shown if key == "dms" else repr
            raise InputError(f"{key} must be {text(before.get(key))} to resume {path}, got {text(now[key])}")
    if config.scheduler and before.get("num_epochs") != config.num_epochs:
        raise InputError(
            f"num_epochs must be {before.get('num_epochs')} to resume {path}, because with the scheduler "
            f"{config.scheduler} the learning rate depends on it, got {config.num_epochs}"
        )
    try:
        if state["progress"]["data_checksum"] != data_checksum:
            raise InputError(
                f"{path}: the images, labels and groups must be those of the interrupted training, got others; start a "
                "new training without --resume, or in another folder"
            )
        return _restore(path, checkpoint, state, learner)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{path}: the training state must be one that training.py wrote for this network, got one that gives a "
            f"{type(error).__name__}"
        ) from None


def _restore(path: Path, checkpoint: Checkpoint, state: dict[str, Any], learner: Learner) -> Progress:
    learner.model.load_state_dict(checkpoint.model.state_dict())
    learner.optimiser.load_state_dict(state["optimiser"])
    learner.schedule.load_state_dict(state["schedule"])
    learner.scaler.load_state_dict(state["scaler"])
    rank, rng_states = learner.ranks.rank, state["rng_states"]
    if len(rng_states) == learner.ranks.n:
        _set_rng_state(rng_states[rank])
    else:
        logger.warning(
            "%s was written by %d processes, not %d: the order of the images stays the same, but augmentation and "
            "dropout are drawn anew",
            path,
            len(rng_states),
            learner.ranks.n,
        )
    progress = state["progress"]
    counts, best_path = progress["best_counts"], progress["best_path"]
    return Progress(
        epoch=progress["epoch"],
        n_batches=progress["n_batches"],
        # The file has the sums over all ranks: only one rank may continue from them.
        sums=progress["sums"].to(learner.device) * (rank == 0),
        history=progress["history"],
        best=progress["best"],
        best_counts=ConfusionCounts(**counts) if counts else None,
        best_path=path.with_name(best_path) if best_path else None,
        data_checksum=progress["data_checksum"],
    )


def _rng_state() -> dict[str, Any]:
    state = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


# Time between two agreements of all processes, in seconds: long compared with a step, short for who stops a training.
AGREEMENT_S = 1.0


class Interrupted(Exception):
    """A signal ended the training after its state was saved."""


class Watch:
    """Decides when the training state must be saved: after a signal, and every ``interval_s`` seconds.

    SIGINT and SIGTERM are only recorded. A second SIGINT has its default effect, a second SIGTERM none: a batch system
    and torchrun each send one to every process, and SIGKILL to those that do not end.

    Several processes must save, or stop, after the same step. They agree on it about once per second (``AGREEMENT_S``),
    not after every step: a GPU is idle while its process waits for the others.

    Parameters
    ----------
    interval_s : float
        Time between two saves, in seconds.
    """

    def __init__(self, interval_s: float) -> None:
        self.interval_s = interval_s
        self.signal = 0
        self._last = self._agreed = time.monotonic()
        self._steps = self._steps_left = 1  # between two agreements; until the next one
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    def after_step(self, ranks: Ranks) -> tuple[int, bool]:
        """Return the signal that stops the training, or 0, and whether to save; all processes return the same."""
        due = time.monotonic() - self._last >= self.interval_s
        if ranks.n == 1:
            return self.signal, due
        self._steps_left -= 1
        if self._steps_left:
            return 0, False
        step_s = (time.monotonic() - self._agreed) / self._steps
        number, any_due, step_s = ranks.largest(self.signal, due, step_s)
        self._steps = self._steps_left = max(1, int(min(AGREEMENT_S, self.interval_s) / step_s))
        self._agreed = time.monotonic()
        return int(number), bool(any_due)

    def saved(self) -> None:
        """Start a new interval."""
        self._last = time.monotonic()
