"""From pages to probabilities: a checkpoint's network, fed with images made by the checkpoint's own normaliser."""

import numpy as np
import torch

from pipeline_classifier.pages import PageBatch, resize, to_images
from pipeline_classifier.saliency import occlusion
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
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        threshold: float | None = None,
        max_false_per_hour: float | None = None,
        batch_size: int = 32,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.threshold = checkpoint.threshold if threshold is None else threshold
        self.max_false_per_hour = max_false_per_hour
        self.batch_size = batch_size
        self._model = checkpoint.model.eval().to(device, memory_format=torch.channels_last)
        self._pulse = checkpoint.class_names.index("Pulse")

    @torch.inference_mode()
    def classify(self, batch: PageBatch) -> tuple[np.ndarray, np.ndarray]:
        """Classify a batch of any length; several threads may call it at once.

        The network sees ``batch_size`` images at a time, always: the probability of a page does not depend, in any
        bit, on the pages it came with.

        Returns
        -------
        predictions : (B,) int32, 1 pulse, 0 artefact, -1 for a page that is constant or not finite
        probabilities : (B,) float32 of being a pulse, -1 where not classified
        """
        probabilities = np.empty(len(batch), np.float32)
        for first in range(0, len(batch), self.batch_size):
            part = slice(first, first + self.batch_size)
            probabilities[part] = self._probabilities(batch.pages[part])
        predictions = (probabilities >= self.threshold).astype(np.int32)
        predictions[probabilities < 0] = NOT_CLASSIFIED
        return predictions, probabilities

    @torch.inference_mode()
    def image(self, page: np.ndarray) -> torch.Tensor:
        """What the network sees of one page (n_dm, n_time): (resolution, resolution) uint8, row 0 = highest DM."""
        if page.dtype == np.uint8:
            return resize(torch.from_numpy(page[None]).to(self.device), self.checkpoint.resolution)[0]
        return to_images(page[None], self.checkpoint.normaliser, self.checkpoint.resolution, self.device)[0][0]

    @torch.inference_mode()
    def log_odds(self, images: torch.Tensor) -> np.ndarray:
        """Log-odds of a pulse, (B,) float32, of at most ``batch_size`` images (B, resolution, resolution) uint8."""
        full = torch.zeros((self.batch_size, 1, *images.shape[1:]), device=self.device)
        full[: len(images), 0] = images
        logits = self._model(full)[: len(images)].float() / self.checkpoint.temperature
        return (logits[:, self._pulse] - logits[:, 1 - self._pulse]).cpu().numpy()

    def saliency(self, page: np.ndarray) -> np.ndarray:
        """Where one page (n_dm, n_time) looks like a pulse: see ``saliency.occlusion``; row 0 = highest DM."""
        return occlusion(self, self.image(page))

    def _probabilities(self, pages: np.ndarray) -> np.ndarray:
        """Of at most ``batch_size`` pages."""
        resolution = self.checkpoint.resolution
        if pages.dtype == np.uint8:
            images = resize(torch.from_numpy(pages).to(self.device), resolution)
            unusable = images.amax(dim=(1, 2)) == images.amin(dim=(1, 2))
        else:
            images, unusable = to_images(pages, self.checkpoint.normaliser, resolution, self.device)
        full = torch.zeros((self.batch_size, 1, resolution, resolution), device=self.device)
        full[: len(images), 0] = images
        logits = self._model(full)[: len(images)]
        probability = torch.softmax(logits.float() / self.checkpoint.temperature, dim=1)[:, self._pulse]
        probability[unusable] = NOT_CLASSIFIED
        return probability.cpu().numpy()
