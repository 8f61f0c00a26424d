"""The candidate classifier: a network that decides from the cutout of a peak whether it is a pulse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline_classifier.detection.candidate_cutouts import NORMALISER, SIDE, candidate_images, cutout
from pipeline_classifier.detection.network import Network
from pipeline_classifier.detection.peaks import Peak
from pipeline_classifier.frontend.boxcar import BoxcarSearch
from pipeline_classifier.frontend.pages import PageGrid
from single_pulse_classifier_training.channels import DM_TIME
from single_pulse_classifier_training.cli import InputError

if TYPE_CHECKING:
    from single_pulse_classifier_training.checkpoint import Checkpoint

BATCH_SIZE = 4
"""Cutouts that the network gets at once: most runs of pages have fewer than five peaks."""


class CandidateClassifier:
    """Probability that a peak is a pulse.

    Parameters
    ----------
    checkpoint : Checkpoint
        A network for cutouts, loaded on the CPU.

    Raises
    ------
    InputError
        If the network is not one for cutouts.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if (checkpoint.resolution, checkpoint.normaliser) != (SIDE, NORMALISER):
            raise InputError(
                f"candidate_classifier must be a model for candidates (resolution {SIDE}, normaliser {NORMALISER}, as "
                f"models/candidate_classifier.pth) or null, got a {checkpoint.model_name} "
                f"(resolution {checkpoint.resolution}, normaliser {checkpoint.normaliser})"
            )
        import torch

        self.checkpoint = checkpoint
        self._network = Network(checkpoint, torch.device("cpu"), BATCH_SIZE)

    @property
    def needs_channels(self) -> bool:
        """Whether the network gets the frequency-time cutouts of a candidate."""
        return self.checkpoint.channels != DM_TIME

    def probabilities(
        self,
        searched: BoxcarSearch,
        grid: PageGrid,
        peaks: Sequence[Peak],
        frequency_time: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return the candidate probability of each peak of a plane, (n,) float32.

        It does not depend, in any bit, on the other peaks, and is -1 where the network gives no finite number.

        Parameters
        ----------
        searched : BoxcarSearch
        grid : PageGrid
        peaks : sequence of Peak
        frequency_time : (n, 2, SIDE, SIDE) ndarray of float32, optional
            `FrequencyTime.cutouts` of the peaks, if the network needs them.
        """
        if not peaks:
            return np.empty(0, dtype=np.float32)
        return self.probabilities_of(np.stack([cutout(searched, grid, peak) for peak in peaks]), frequency_time)

    def probabilities_of(self, dm_time: np.ndarray, frequency_time: np.ndarray | None = None) -> np.ndarray:
        """Return the candidate probability of each cutout, (n,) float32, as `probabilities` does.

        Parameters
        ----------
        dm_time : (n, SIDE, SIDE) ndarray of float32
            As `candidate_cutouts.cutout` makes them; n is at least 1.
        frequency_time : (n, 2, SIDE, SIDE) ndarray of float32, optional
            As `FrequencyTime.cutouts` makes them, if the network needs them.
        """
        import torch

        images = torch.from_numpy(candidate_images(dm_time, frequency_time, self.checkpoint.channels))
        return torch.cat([self._network.probabilities(part) for part in images.split(BATCH_SIZE)]).numpy()
