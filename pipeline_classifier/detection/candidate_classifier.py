"""A second look at every peak: its surroundings in the DM-time plane, scaled to its width, before a network of its own.

On a page a pulse may be a dot or a broad streak, wherever it came. Scaled so that its width is four columns, and a row
as much sweep as a column is time, every dispersed pulse looks nearly the same, whatever the band and the sampling.
"""

from collections.abc import Sequence

import numpy as np
import torch

from pipeline_classifier.detection.network import Network
from pipeline_classifier.detection.peaks import BoxcarSearch, Peak
from pipeline_classifier.frontend.pages import ROBUST_RANGE, PageGrid, to_images
from single_pulse_classifier_training.checkpoint import Checkpoint
from single_pulse_classifier_training.cli import InputError

SIDE = 64  # columns and rows of a portrait
COLUMNS_PER_WIDTH = 4
NORMALISER = "noise"
TOGETHER = 4  # portraits that the network sees at once


def portrait(searched: BoxcarSearch, grid: PageGrid, peak: Peak) -> np.ndarray:
    """The surroundings of a peak, in units of the noise.

    Parameters
    ----------
    searched : the plane (n_dm, n) that the peak was found in
    grid : of its rows and samples; its sweep must be known

    Returns
    -------
    (SIDE, SIDE) float32, row 0 = lowest DM, the peak in row and column SIDE / 2. A column is a quarter of the peak's
    width; a row as much DM as sweeps over that time, but at least half a trial DM. Columns past the plane are 0, rows
    past the grid of DMs are as black as an image can be.
    """
    column = max(1, round(peak.width / COLUMNS_PER_WIDTH))
    n = searched.total.shape[1] - 1
    offsets = np.arange(SIDE + 1) - SIDE // 2
    edges = round(peak.column + (peak.width - column) / 2) + offsets * column
    step = grid.dms[1] - grid.dms[0]
    samples_per_row = float(grid.sweep(step) - grid.lean(step))
    rows = peak.row + np.rint(offsets[:-1] * max(column / samples_per_row, 0.5)).astype(np.int64)
    # So that the top of the band in use stands upright, as the top channel does.
    edges = edges - np.rint(grid.lean((rows - peak.row) * step)).astype(np.int64)[:, None]
    total = searched.total[np.clip(rows, 0, len(grid.dms) - 1)[:, None], np.clip(edges, 0, n)]
    values = np.diff(total, axis=1) / np.float32(column**0.5)
    values[(edges[:, :-1] < 0) | (edges[:, 1:] > n)] = 0.0
    values[(rows < 0) | (rows >= len(grid.dms))] = ROBUST_RANGE[0]
    return values


def portrait_images(portraits: np.ndarray) -> torch.Tensor:
    """What the network sees of portraits (B, SIDE, SIDE): uint8, row 0 = highest DM."""
    return to_images(portraits, NORMALISER, SIDE)[0]


class SecondLook:
    """Tells the pulses among the peaks.

    Parameters
    ----------
    checkpoint : a network for portraits
    threshold : probability from which a peak is a pulse; None takes the checkpoint's
    min_snr : least S/N of an event

    Raises
    ------
    InputError : the network is for something else.
    """

    def __init__(self, checkpoint: Checkpoint, threshold: float | None = None, min_snr: float = 0.0) -> None:
        if (checkpoint.resolution, checkpoint.normaliser) != (SIDE, NORMALISER):
            raise InputError(
                f"second_look is a {checkpoint.model_name} at {checkpoint.resolution}, normaliser "
                f"{checkpoint.normaliser}; valid: a model for peaks, at {SIDE}, normaliser {NORMALISER}, "
                "as models/second_look.pth, or null"
            )
        self.checkpoint = checkpoint
        self.threshold = checkpoint.threshold if threshold is None else threshold
        self.min_snr = min_snr
        self._network = Network(checkpoint, torch.device("cpu"), TOGETHER)

    @torch.inference_mode()
    def probabilities(self, searched: BoxcarSearch, grid: PageGrid, peaks: Sequence[Peak]) -> np.ndarray:
        """Probability (n,) float32 that each peak of a plane is a pulse.

        No bit of a probability depends on the other peaks.
        """
        if not peaks:
            return np.empty(0, dtype=np.float32)
        images = portrait_images(np.stack([portrait(searched, grid, peak) for peak in peaks]))
        return torch.cat([self._network.probabilities(part) for part in images.split(TOGETHER)]).numpy()
