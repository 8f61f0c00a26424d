"""The network of a checkpoint, prepared for inference: the same bits for an image, whatever else is in its batch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from single_pulse_classifier_training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

NOT_CLASSIFIED = -1
"""Probability and class of what the network was not shown, or has no finite probability for."""


class Network:
    """A network that always gets ``batch_size`` images, so that no bit of a result depends on the other images.

    Parameters
    ----------
    checkpoint : Checkpoint
        Loaded on ``device``.
    device : torch.device
    batch_size : int
        Images that the network gets at once; missing ones are zeros.
    precision : {"float32", "bf16"}
        Precision of the multiplications; bf16 is nearly twice as fast on CPUs with such instructions.
    """

    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, batch_size: int, precision: str = "float32"
    ) -> None:
        import torch

        from single_pulse_classifier_training.training_models import fuse_for_inference

        self.batch_size = batch_size
        self._temperature = checkpoint.temperature
        self._pulse = checkpoint.class_names.index("Pulse")
        self._model = fuse_for_inference(checkpoint.model).to(device).to(memory_format=torch.channels_last)
        # With its number: threads begin with the first GPU as their current one.
        self.device = next(self._model.parameters()).device
        self._bf16 = precision == "bf16"
        self._name, self._has_warned = checkpoint.model_name, False

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2) float32, divided by the temperature, of at most ``batch_size`` images.

        Parameters
        ----------
        images : (B, side, side) or (B, C, side, side) tensor of uint8
        """
        import torch

        with torch.inference_mode():
            images = images.unsqueeze(1) if images.ndim == 3 else images
            full = torch.zeros((self.batch_size, *images.shape[1:]), device=self.device)
            full[: len(images)] = images
            with torch.autocast(self.device.type, torch.bfloat16, self._bf16):
                logits = self._model(full)
            return logits[: len(images)].float() / self._temperature

    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Probability (B,) of a pulse, of at most ``batch_size`` images; -1 where it is not finite."""
        import torch

        probabilities = torch.softmax(self.logits(images), dim=1)[:, self._pulse]
        finite = torch.isfinite(probabilities)
        if finite.all():
            return probabilities
        if not self._has_warned:
            self._has_warned = True
            message = "%s: the weights overflow; images without a finite probability are not classified"
            logger.warning(message, self._name)
        return torch.where(finite, probabilities, NOT_CLASSIFIED)

    def log_odds(self, images: torch.Tensor) -> torch.Tensor:
        """Log-odds (B,) of a pulse, of at most ``batch_size`` images."""
        logits = self.logits(images)
        return logits[:, self._pulse] - logits[:, 1 - self._pulse]
