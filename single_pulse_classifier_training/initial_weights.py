"""The checkpoint whose weights a training starts from."""

import logging

import torch

from single_pulse_classifier_training.checkpoint import Checkpoint, load_checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.config import TrainingConfig

logger = logging.getLogger(__name__)


def load_initial_weights(config: TrainingConfig, device: torch.device | str, channels: tuple[str, ...]) -> Checkpoint:
    """Load the checkpoint of ``initial_weights``, and log which values of its checkpoint do not hold for new weights.

    Raises
    ------
    InputError
        As ``load_checkpoint``, or if the network takes other channels.
    """
    assert config.initial_weights is not None
    path = config.resolve(config.initial_weights)
    initial = load_checkpoint(path, device, config.model_name, config.resolution)
    if initial.channels != channels:
        wanted, got = ", ".join(channels), ", ".join(initial.channels)
        raise InputError(f"initial_weights {path} must be a network for the channels {wanted}, got {got}")
    candidates = initial.normaliser == "noise"
    logger.info(
        "initial_weights %s: threshold %.4g, temperature %.4g and %d thresholds by false positives per hour are not "
        "kept, as they do not hold for new weights; until %s measures new ones, the threshold is 0.5 and the "
        "temperature 1",
        path,
        initial.threshold,
        initial.temperature,
        len(initial.thresholds),
        "evaluate_pipeline.py --pulse-free" if candidates else "evaluate.py",
    )
    if initial.normaliser != config.normaliser:
        message = "initial_weights %s were trained on images of the normaliser %s, the config has %s"
        logger.warning(message, path, initial.normaliser, config.normaliser)
    return initial
