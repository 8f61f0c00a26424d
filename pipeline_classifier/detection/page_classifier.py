"""From pages to probabilities: a checkpoint's network, fed with images made by the checkpoint's own normaliser."""

import threading

import numpy as np
import torch

from pipeline_classifier.detection.candidate_classifier import SecondLook
from pipeline_classifier.detection.network import Network
from pipeline_classifier.frontend.pages import PageBatch, matched_snr, on_device, resize, to_images
from single_pulse_classifier_training.checkpoint import Checkpoint

NOT_CLASSIFIED = -1


class Classifier:
    """The network of a checkpoint, ready to classify.

    Parameters
    ----------
    checkpoint : loaded on ``device``
    device : where to work
    threshold : probability from which a page is a pulse; None takes the checkpoint's
    max_false_per_hour : most false positives per hour, in place of a threshold: ``search`` picks one by it
    batch_size : images that the network sees at once
    snr_gate : pages without a boxcar of this S/N are class 0 with probability 0, unseen by the network; None: no gate
    precision : of the multiplications, "float32" or "bf16": on CPUs with such instructions nearly twice as fast
    second_look : for the peaks of pages that may hold a pulse; None: there is none

    Attributes
    ----------
    gated : pages that the gate kept from the network so far
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        threshold: float | None = None,
        max_false_per_hour: float | None = None,
        batch_size: int = 32,
        snr_gate: float | None = None,
        precision: str = "float32",
        second_look: SecondLook | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.network = Network(checkpoint, device, batch_size, precision)
        self.threshold = checkpoint.threshold if threshold is None else threshold
        self.max_false_per_hour = max_false_per_hour
        self.snr_gate = snr_gate
        self.second_look = second_look
        self.gated = 0
        self._counting = threading.Lock()

    @torch.inference_mode()
    def classify(self, batch: PageBatch) -> tuple[np.ndarray, np.ndarray]:
        """Classify a batch of any length; several threads may call it at once.

        The probability of a page does not depend, in any bit, on the pages it came with.

        Returns
        -------
        predictions : (B,) int32, 1 pulse, 0 artefact, -1 for a page that is constant or not finite
        probabilities : (B,) float32 of being a pulse, -1 where not classified
        """
        seen = np.arange(len(batch))
        if self.snr_gate is not None and batch.pages.dtype != np.uint8:
            seen = seen[~(self._matched_snr(batch.pages) < self.snr_gate)]
            with self._counting:
                self.gated += len(batch) - len(seen)
        probabilities = np.zeros(len(batch), np.float32)
        for first in range(0, len(seen), self.network.batch_size):
            part = seen[first : first + self.network.batch_size]
            pages = batch.pages[part[0] : part[-1] + 1] if len(seen) == len(batch) else batch.pages[part]
            images, unusable = self.images(pages)
            probability = self.network.probabilities(images)
            probability[unusable] = NOT_CLASSIFIED
            probabilities[part] = probability.cpu().numpy()
        predictions = (probabilities >= self.threshold).astype(np.int32)
        predictions[probabilities < 0] = NOT_CLASSIFIED
        return predictions, probabilities

    @torch.inference_mode()
    def images(self, pages: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network sees of pages (B, n_dm, n_time), and which of them are unusable: see `to_images`."""
        resolution = self.checkpoint.resolution
        if pages.dtype != np.uint8:
            return to_images(pages, self.checkpoint.normaliser, resolution, self.network.device)
        images = resize(on_device(pages, self.network.device), resolution)
        return images, images.amax(dim=(1, 2)) == images.amin(dim=(1, 2))

    def _matched_snr(self, pages: np.ndarray) -> np.ndarray:
        size = self.network.batch_size
        parts = [pages[first : first + size] for first in range(0, len(pages), size)]
        return np.concatenate([matched_snr(part) for part in parts])
