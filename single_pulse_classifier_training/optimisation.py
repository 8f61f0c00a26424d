"""Loss, optimiser, learning rate and numeric precision of a training step."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import TrainingConfig
from single_pulse_classifier_training.distributed import Ranks

# Smallest images for which "auto" chooses bf16 on a CPU: below, 241002_3 did not train faster with it.
SMALLEST_BF16_RESOLUTION = 64


@dataclass
class Learner:
    """A network with everything that a training step needs.

    Parameters
    ----------
    model : nn.Module
        The network whose weights are saved.
    network : nn.Module
        The module that is called: the model itself, or its wrapper in a training with several processes.
    optimiser, schedule, scaler
        Optimiser, learning-rate schedule and gradient scaler.
    class_weights : (2,) tensor of float32
        Weight of an image of each class in the loss.
    amp_dtype : torch.dtype or None
        Type of the multiplications; None is float32.
    gradient_clip : float or None
        Maximum norm of the gradient.
    device : torch.device
    ranks : Ranks
        This process among all.
    """

    model: nn.Module
    network: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    class_weights: torch.Tensor
    amp_dtype: torch.dtype | None
    gradient_clip: float | None
    device: torch.device
    ranks: Ranks

    def autocast(self) -> AbstractContextManager:
        """Return the context that sets the precision of a forward pass."""
        return torch.autocast(self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    def summed_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-entropy, weighted by class and summed over the images, and the sum of the weights."""
        loss = F.cross_entropy(logits.float(), labels, self.class_weights, reduction="sum")
        return loss, self.class_weights[labels].sum()

    def step(self, loss: torch.Tensor, weight: torch.Tensor) -> None:
        """Update the network with the gradient of the mean loss over the batch of all processes.

        Parameters
        ----------
        loss, weight : scalar tensor
            Results of ``summed_loss`` in this process.
        """
        # The wrapper averages the gradients of the processes; multiplying by their number gives the sum.
        mean = loss * self.ranks.n / self.ranks.sum(weight.clone())
        self.scaler.scale(mean).backward()
        if self.gradient_clip is not None:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        self.schedule.step()


def build_learner(
    config: TrainingConfig, model: nn.Module, labels: np.ndarray, n_batches: int, device: torch.device, ranks: Ranks
) -> Learner:
    """Build the learner that the config describes.

    Parameters
    ----------
    config : TrainingConfig
    model : nn.Module
        On ``device``.
    labels : (N,) ndarray of int64
        Classes of all training images.
    n_batches : int
        Steps per epoch.
    device : torch.device
    ranks : Ranks
    """
    if ranks.n > 1 and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.compile:
        model.compile()
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimiser]
    # The fused optimiser passes over the weights once: 1.4 times the images/s for 241002_3 at 256 on a CPU.
    optimiser = kind(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    amp_dtype = choose_precision(config.amp, config.resolution, device)
    weights = torch.ones(2)
    if config.class_weights:
        weights = torch.tensor(len(labels) / (2 * np.bincount(labels, minlength=2)), dtype=torch.float32)
    return Learner(
        model=model,
        network=ranks.wrap(model, device),
        optimiser=optimiser,
        schedule=build_schedule(config, optimiser, n_batches),
        scaler=torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16),
        class_weights=weights.to(device),
        amp_dtype=amp_dtype,
        gradient_clip=config.gradient_clip,
        device=device,
        ranks=ranks,
    )


def build_schedule(
    config: TrainingConfig, optimiser: torch.optim.Optimizer, n_batches: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build the learning-rate schedule: a linear rise over ``warmup_epochs``, then constant or half a cosine to zero.

    The cosine is that of Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts.
    """
    warm_up = config.warmup_epochs * n_batches
    total = config.num_epochs * n_batches

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        if config.scheduler is None:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1.0, total - warm_up))))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def choose_precision(amp: str, resolution: int, device: torch.device) -> torch.dtype | None:
    """Return the type of the multiplications for the config key ``amp``; None is float32."""
    if amp == "fp16":
        if device.type != "cuda":
            raise InputError("amp must be auto, off or bf16 on a CPU, got 'fp16'")
        return torch.float16
    if amp == "bf16":
        return torch.bfloat16
    # GPUs without bf16 instructions (before Ampere) emulate it in float32: less precision, and no gain in speed.
    if amp == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    # With such instructions, 241002_3 trains 1.4 to 1.6 times as fast on a CPU, except on the smallest images.
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if amp == "auto" and device.type == "cpu" and has_bf16 and resolution >= SMALLEST_BF16_RESOLUTION:
        return torch.bfloat16
    return None
