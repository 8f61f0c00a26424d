"""The two classifiers of a search, loaded from the checkpoints that the config names."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.candidate_classifier import CandidateClassifier
from pipeline_classifier.detection.page_classifier import PageClassifier
from pipeline_classifier.detection.workers import one_thread_each, wait_for_packages
from pipeline_classifier.frontend.pages import PAGE_NORMALISERS
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import choose_device

if TYPE_CHECKING:
    import torch

    from single_pulse_classifier_training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

MEASURED_BY = "`python evaluate_pipeline.py --pulse-free NOISE.fil --store`"
"""The command that measures the false events per hour of a pair of networks."""


@dataclass(frozen=True)
class Classifiers:
    """The networks of a search.

    Attributes
    ----------
    pages : PageClassifier
    candidates : CandidateClassifier or None
        None if the config has ``"candidate_classifier": null``.
    candidates_path : Path or None
        Checkpoint of the candidate classifier.
    """

    pages: PageClassifier
    candidates: CandidateClassifier | None = None
    candidates_path: Path | None = None

    @cached_property
    def pair(self) -> dict[str, str | float] | None:
        """Checksums of both networks, and the temperature of the page classifier, which decides what is a candidate.

        The temperature of the candidate classifier is not part of it, because thresholds are moved together with it.
        """
        from single_pulse_classifier_training.checkpoint import weights_checksum

        if self.candidates is None:
            return None
        pages = self.pages.checkpoint
        return {
            "page_classifier": weights_checksum(pages.model),
            "page_temperature": pages.temperature,
            "candidate_classifier": weights_checksum(self.candidates.checkpoint.model),
        }

    @property
    def is_measured(self) -> bool:
        """Whether the stored false events per hour were measured with this page classifier and these weights."""
        return self.candidates is not None and self.candidates.checkpoint.measured_pair == self.pair


def load_page_model(
    path: str | Path, device: torch.device | str, model_name: str | None = None, resolution: int | None = None
) -> Checkpoint:
    """Load a checkpoint as `load_checkpoint` does; raise InputError if it is not a network for pages.

    From now on torch uses no threads of its own in the calling thread: the cores are busy with the pages.
    """
    wait_for_packages()
    from single_pulse_classifier_training.checkpoint import load_checkpoint

    one_thread_each()
    checkpoint = load_checkpoint(path, device, model_name, resolution)
    if checkpoint.normaliser not in PAGE_NORMALISERS:
        raise InputError(
            f"{path}: must be a model for pages (normaliser {' or '.join(PAGE_NORMALISERS)}, as models/default.pth), "
            f"got a {checkpoint.model_name} for candidates"
        )
    return checkpoint


def load_candidate_classifier(
    config: PipelineConfig, with_channels: bool
) -> tuple[CandidateClassifier | None, Path | None]:
    """Load the candidate classifier for a source with or without channels; return it and its path."""
    from single_pulse_classifier_training.checkpoint import load_checkpoint

    path = config.candidate_classifier_path
    if path is None:
        return None, None
    candidates = CandidateClassifier(load_checkpoint(path, "cpu"))
    if with_channels or not candidates.needs_channels:
        return candidates, path
    path = config.candidate_classifier_dmt_path
    if path is None:
        return None, None
    candidates = CandidateClassifier(load_checkpoint(path, "cpu"))
    if candidates.needs_channels:
        raise InputError(f"candidate_classifier_dmt must be a model for the DM-time plane alone, got {path}")
    return candidates, path


def load_classifiers(
    config: PipelineConfig, warn_if_not_measured: bool = True, with_channels: bool = True
) -> Classifiers:
    """Load the classifiers that the config names.

    Parameters
    ----------
    config : PipelineConfig
    warn_if_not_measured : bool
        Log a warning if the false events per hour of this pair were not measured.
    with_channels : bool
        Whether the source has channels. Without them ``candidate_classifier_dmt`` takes the place of a candidate
        classifier that needs them.

    Raises
    ------
    InputError
        If a model is missing or damaged, or one for candidates is given for pages or vice versa.
    """
    wait_for_packages()
    candidates, path = load_candidate_classifier(config, with_channels)
    device = choose_device(config.device)
    checkpoint = load_page_model(config.model_path, device, config.model_name, config.resolution)
    # With more threads, their number depends on the load of the machine, and with it the last bits of a probability.
    one_thread_each()
    logger.info("page classifier %s: %s at %d", config.model_path.name, checkpoint.model_name, checkpoint.resolution)
    pages = PageClassifier(checkpoint, device, config.batch_size, config.precision)
    classifiers = Classifiers(pages, candidates, path)
    log_thresholds(config, classifiers, warn_if_not_measured)
    return classifiers


def log_thresholds(config: PipelineConfig, classifiers: Classifiers, warn_if_not_measured: bool) -> None:
    """Log which thresholds of the config do not have the effect that their names suggest, and rates that may not hold.

    Parameters
    ----------
    config, classifiers
    warn_if_not_measured : bool
        As in `load_classifiers`.
    """
    path = classifiers.candidates_path
    if path is None or classifiers.candidates is None:
        if config.event_threshold is not None:
            logger.warning("event_threshold %g has no effect without a candidate classifier", config.event_threshold)
        return
    logger.info("candidate classifier %s", path.name)
    if config.threshold is not None:
        message = "threshold %g is that of pages; the candidate classifier decides what is an event (event_threshold)"
        logger.info(message, config.threshold)
    if config.max_false_per_hour is not None:
        message = "max_false_per_hour %g is of events and chooses event_threshold; the threshold of pages stays %.4g"
        logger.info(message, config.max_false_per_hour, classifiers.pages.checkpoint.threshold)
    if warn_if_not_measured and not classifiers.is_measured:
        stored = classifiers.candidates.checkpoint
        state = "the false events per hour were never measured"
        if stored.measured_pair is not None:
            state = "the false events per hour were measured with other networks"
        elif stored.thresholds:
            state = "it is not recorded with which page classifier the false events per hour were measured"
        message = "%s with %s: %s; %s measures them for this pair"
        logger.warning(message, config.model_path.name, path.name, state, MEASURED_BY)
