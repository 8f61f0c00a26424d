"""From pages to probabilities: the network of a checkpoint, on images made by the checkpoint's own normaliser."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline_classifier.detection.network import NOT_CLASSIFIED, Network
from pipeline_classifier.frontend.boxcar import page_snrs
from pipeline_classifier.frontend.pages import PageBatch

if TYPE_CHECKING:
    import torch

    from single_pulse_classifier_training.checkpoint import Checkpoint


BATCH_ON_CPU = 4
"""Largest number of images that the network gets at once on a CPU: few pages of a batch pass the gate, and zeros
instead of missing images take as long as those. Larger batches are no faster."""


class Classified(NamedTuple):
    """What is known of the pages of a batch.

    Attributes
    ----------
    probabilities : (B,) ndarray of float32
        Probability of a pulse; 0 for a page below the gate, -1 for a page that is constant, not finite or out of range,
        and where the network gives no finite number.
    snrs : (B,) ndarray of float32
        `PageSnrs.beginning`; infinite without a gate and for images.
    gated : int
        Pages below the gate, which were not shown to the network.
    without_output : int
        Usable pages for which the network gives no finite number.
    """

    probabilities: np.ndarray
    snrs: np.ndarray
    gated: int
    without_output: int

    def part(self, pages: slice) -> Classified:
        """Return what is known of some of the pages, with the same counts."""
        return self._replace(probabilities=self.probabilities[pages], snrs=self.snrs[pages])


class PageClassifier:
    """Probability that a page shows a pulse.

    Parameters
    ----------
    checkpoint : Checkpoint
        A network for pages, loaded on ``device``.
    device : torch.device
        Device of the network.
    batch_size : int
        Images that the network gets at once; at most `BATCH_ON_CPU` on a CPU.
    precision : {"float32", "bf16"}
        Precision of the multiplications; bf16 is nearly twice as fast on CPUs with such instructions.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        batch_size: int = 32,
        precision: str = "float32",
    ) -> None:
        self.checkpoint = checkpoint
        if device.type == "cpu":
            batch_size = min(batch_size, BATCH_ON_CPU)
        self.network = Network(checkpoint, device, batch_size, precision)

    def classify(self, batch: PageBatch, gate: float = 0.0, noise: float = 0.0) -> Classified:
        """Classify a batch of any length; several threads may call.

        The probability of a page does not depend, in any bit, on the other pages of the batch.

        Parameters
        ----------
        batch : PageBatch
        gate : float
            Minimum S/N of the best boxcar of a page; other pages have a probability of 0. 0: no gate.
        noise : float
            As in `page_snrs`.
        """
        probabilities, without_output = np.zeros(len(batch), np.float32), 0
        snrs, shown = np.full(len(batch), np.inf, np.float32), np.arange(len(batch))
        if gate and not batch.are_images:
            within, snrs, constant = page_snrs(batch, noise)
            probabilities[constant] = NOT_CLASSIFIED
            shown = np.flatnonzero(~(within < gate) & ~constant)
        gated = int((probabilities == 0).sum()) - len(shown)
        for first in range(0, len(shown), self.network.batch_size):
            part = shown[first : first + self.network.batch_size]
            images, unusable = self.images(batch, part)
            probability = self.network.probabilities(images).cpu().numpy()
            without_output += int((~unusable & (probability == NOT_CLASSIFIED)).sum())
            probabilities[part] = np.where(unusable, NOT_CLASSIFIED, probability)
        return Classified(probabilities, snrs, gated, without_output)

    def images(self, batch: PageBatch, chosen: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Return the images of some pages on the device of the network, and which of them are unusable.

        See `PageBatch.images`.
        """
        images, unusable = batch.images(chosen, self.checkpoint.normaliser, self.checkpoint.resolution)
        return on_device(images, self.network.device), unusable


def on_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy values to ``device``, unless they are there already; a copy to a GPU is asynchronous."""
    import torch

    tensor = torch.as_tensor(values)
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
