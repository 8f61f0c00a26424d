"""The two classifiers of a search, loaded from the checkpoints that the config names."""

import logging
from dataclasses import dataclass

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.candidate_classifier import CandidateClassifier
from pipeline_classifier.detection.page_classifier import PageClassifier
from pipeline_classifier.frontend.pages import PAGE_NORMALISERS
from single_pulse_classifier_training.checkpoint import load_checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import choose_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classifiers:
    """The networks of a search.

    Attributes
    ----------
    pages : PageClassifier
    candidates : CandidateClassifier or None
        None if the config has ``"candidate_classifier": null``.
    """

    pages: PageClassifier
    candidates: CandidateClassifier | None = None


def load_classifiers(config: PipelineConfig) -> Classifiers:
    """Load the classifiers that the config names.

    Raises
    ------
    InputError
        If a model is missing or damaged, or one for candidates is given for pages or vice versa.
    """
    candidates = None
    if path := config.candidate_classifier_path:
        candidates = CandidateClassifier(load_checkpoint(path, "cpu"))
    device = choose_device(config.device)
    checkpoint = load_checkpoint(config.model_path, device, config.model_name, config.resolution)
    if checkpoint.normaliser not in PAGE_NORMALISERS:
        raise InputError(
            f"name_of_the_model must be a model for pages (normaliser {' or '.join(PAGE_NORMALISERS)}, as "
            f"models/default.pth), got {config.model_path}, a {checkpoint.model_name} for candidates"
        )
    logger.info("page classifier %s: %s at %d", config.model_path.name, checkpoint.model_name, checkpoint.resolution)
    if path:
        logger.info("candidate classifier %s", path.name)
    elif config.event_threshold is not None:
        logger.warning("event_threshold %g has no effect without a candidate classifier", config.event_threshold)
    pages = PageClassifier(checkpoint, device, config.batch_size, config.snr_gate, config.precision)
    return Classifiers(pages, candidates)
