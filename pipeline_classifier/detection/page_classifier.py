"""From pages to probabilities: the network of a checkpoint, on images made by the checkpoint's own normaliser."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline_classifier.detection.network import NOT_CLASSIFIED, Network
from pipeline_classifier.frontend.boxcar import page_snr
from pipeline_classifier.frontend.pages import PageBatch, on_device, resize, to_images
from single_pulse_classifier_training.checkpoint import Checkpoint


@dataclass(frozen=True)
class PageCounts:
    """Numbers of pages that were not classified as others are.

    Attributes
    ----------
    gated : int
        Pages below ``snr_gate``, which were not shown to the network.
    without_output : int
        Usable pages for which the network gives no finite number.
    """

    gated: int = 0
    without_output: int = 0

    def __add__(self, other: "PageCounts") -> "PageCounts":
        return PageCounts(self.gated + other.gated, self.without_output + other.without_output)


class PageClassifier:
    """Probability that a page shows a pulse.

    Parameters
    ----------
    checkpoint : Checkpoint
        A network for pages, loaded on ``device``.
    device : torch.device
        Device of the network.
    batch_size : int
        Images that the network gets at once.
    snr_gate : float, optional
        Minimum S/N of the best boxcar of a page; other pages get probability 0 without being shown to the network.
    precision : {"float32", "bf16"}
        Precision of the multiplications; bf16 is nearly twice as fast on CPUs with such instructions.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        batch_size: int = 32,
        snr_gate: float | None = None,
        precision: str = "float32",
    ) -> None:
        self.checkpoint = checkpoint
        self.network = Network(checkpoint, device, batch_size, precision)
        self.snr_gate = snr_gate

    @torch.inference_mode()
    def classify(self, batch: PageBatch) -> tuple[np.ndarray, PageCounts]:
        """Classify a batch of any length; several threads may call.

        The probability of a page does not depend, in any bit, on the other pages of the batch.

        Returns
        -------
        probabilities : (B,) ndarray of float32
            -1 for a page that is constant, not finite or out of range, and where the network gives no finite number.
        counts : PageCounts
        """
        shown = np.arange(len(batch))
        if self.snr_gate is not None and batch.pages.dtype != np.uint8:
            shown = shown[~(self._snr(batch.pages) < self.snr_gate)]
        probabilities, without_output = np.zeros(len(batch), np.float32), 0
        for first in range(0, len(shown), self.network.batch_size):
            part = shown[first : first + self.network.batch_size]
            pages = batch.pages[part[0] : part[-1] + 1] if len(shown) == len(batch) else batch.pages[part]
            images, unusable = self.images(pages)
            probability = self.network.probabilities(images)
            without_output += int((~unusable & (probability == NOT_CLASSIFIED)).sum())
            probability[unusable] = NOT_CLASSIFIED
            probabilities[part] = probability.cpu().numpy()
        return probabilities, PageCounts(len(batch) - len(shown), without_output)

    @torch.inference_mode()
    def images(self, pages: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images of pages (B, n_dm, n_time), and which of them are unusable: see `to_images`."""
        resolution = self.checkpoint.resolution
        if pages.dtype != np.uint8:
            return to_images(pages, self.checkpoint.normaliser, resolution, self.network.device)
        images = resize(on_device(pages, self.network.device), resolution)
        return images, images.amax(dim=(1, 2)) == images.amin(dim=(1, 2))

    def _snr(self, pages: np.ndarray) -> np.ndarray:
        size = self.network.batch_size
        return np.concatenate([page_snr(pages[first : first + size]) for first in range(0, len(pages), size)])
