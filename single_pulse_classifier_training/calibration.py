"""From logits to probabilities that mean something, and to thresholds with a known number of false positives."""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

TEMPERATURES = (0.05, 20.0)
CONFIDENCE_BINS = 15
SECONDS_PER_HOUR = 3600.0


def pulse_probability(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probability of a pulse, float32 (N,), in the arithmetic of the pipeline's classifier.

    Parameters
    ----------
    logits : float32 (N, 2), columns Artefact and Pulse
    temperature : divides the logits before softmax (Guo et al. 2017, arXiv:1706.04599)
    """
    return torch.softmax(torch.from_numpy(logits) / temperature, dim=1)[:, 1].numpy()


def negative_log_likelihood(labels: np.ndarray, logits: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log(probability of the true class), in nats: the cross-entropy that the network was trained with."""
    margin = logits[:, 1].astype(np.float64) - logits[:, 0]
    return float(np.logaddexp(0.0, np.where(labels == 1, -margin, margin) / temperature).mean())


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    One number is well determined by a few hundred images, and leaves the order of the pages as it is. When every image
    is classified right, the likelihood grows without end as T falls: then there is nothing to fit, and T is 1.

    Parameters
    ----------
    labels : (N,) integers, 1 = Pulse, 0 = Artefact, that the network was not trained on
    logits : float32 (N, 2), columns Artefact and Pulse
    """
    from scipy.optimize import minimize_scalar

    if not np.any((logits[:, 1] > logits[:, 0]) != (labels == 1)):
        logger.warning("no image is misclassified, so that the temperature cannot be fitted: it stays 1")
        return 1.0
    bounds = tuple(math.log(temperature) for temperature in TEMPERATURES)
    best = minimize_scalar(
        lambda log_t: negative_log_likelihood(labels, logits, math.exp(log_t)),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-6},
    )
    if min(abs(best.x - bound) for bound in bounds) < 1e-3:
        logger.warning(
            "the fitted temperature %.3g is at the end of its range: the network is hardly calibrated", math.exp(best.x)
        )
    return math.exp(best.x)


class Reliability(NamedTuple):
    """Bins of the confidence, the probability of the predicted class; bins without an image have NaN.

    Attributes
    ----------
    images : int64 (15,), images in each bin of equal width between 0 and 1
    confidence, accuracy : float64 (15,), their mean confidence, and the share of them that is predicted right
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> Reliability:
    """Confidence and accuracy in equal-width bins: the reliability diagram (Guo et al. 2017, equations 1 and 2).

    Parameters
    ----------
    labels : (N,) integers, 1 = Pulse, 0 = Artefact
    probabilities : (N,) floats, of a pulse
    """
    probabilities = probabilities.astype(np.float64)
    confidence = np.maximum(probabilities, 1.0 - probabilities)
    right = (probabilities >= 0.5) == (labels == 1)
    # A bin holds its upper edge, as in the paper.
    bins = np.ceil(confidence * CONFIDENCE_BINS).astype(np.int64) - 1
    images = np.bincount(bins, minlength=CONFIDENCE_BINS)
    filled = np.where(images > 0, images, np.nan)
    sums = (np.bincount(bins, weights=values, minlength=CONFIDENCE_BINS) for values in (confidence, right))
    return Reliability(images, *(total / filled for total in sums))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean distance between accuracy and confidence, each bin weighted with its images.

    ECE = sum over b of n_b / N |accuracy_b - confidence_b| in 15 bins of equal width (Naeini et al. 2015, AAAI, 2901;
    Guo et al. 2017, equation 3).
    """
    images, confidence, accuracy = reliability(labels, probabilities)
    return float(np.nansum(images * np.abs(accuracy - confidence)) / len(labels))


def measured_hours(n_pages: int, page_s: float) -> float:
    """Hours of observation that ``n_pages`` pages of ``page_s`` seconds show."""
    return n_pages * page_s / SECONDS_PER_HOUR


def allowed_pages(rate: float, hours: float) -> int:
    """Whole false pages that ``rate`` per hour allows in ``hours``; rounding errors of the product do not cost one."""
    return math.floor(round(rate * hours, 9))


def false_rate_thresholds(probabilities: np.ndarray, rates: Sequence[float], page_s: float) -> list[dict[str, float]]:
    """Thresholds that let through given numbers of false positives per hour, measured on pages without a pulse.

    The threshold of a rate is the smallest probability t so that at most floor(rate * hours) pages have p >= t. Pages
    of the same probability stay together: t lies just above the first that must not pass.

    Parameters
    ----------
    probabilities : (M,) of pages without a pulse; float32, as the pipeline compares them
    rates : false pages per hour
    page_s : length of a page, seconds; the mean where pages have different lengths

    Returns
    -------
    [{"threshold", "false_per_hour", "page_s"}, ...] in the order of ``rates``. A rate is left out when the pages allow
    less than one false one, and when more pages than allowed have the probability 1.
    """
    ranked = np.sort(np.asarray(probabilities, np.float32))[::-1]
    hours = measured_hours(len(ranked), page_s)
    thresholds = []
    for rate in rates:
        allowed = allowed_pages(rate, hours)
        first_refused = ranked[allowed] if allowed < len(ranked) else np.float32(-1.0)
        threshold = max(0.0, float(np.nextafter(first_refused, np.float32(2.0))))
        if allowed >= 1 and threshold <= 1.0:
            thresholds.append({"threshold": threshold, "false_per_hour": float(rate), "page_s": float(page_s)})
    return thresholds


def rate_for_page_length(entry: dict[str, float], page_s: float = math.nan) -> float:
    """False positives per hour of a stored threshold where a page comes every ``page_s`` seconds.

    A page has a chance to be a false positive, whatever its length: twice the pages an hour give twice of them. The
    rate is as stored when either length is unknown.
    """
    scale = entry.get("page_s", math.nan) / page_s
    return entry["false_per_hour"] * (scale if math.isfinite(scale) else 1.0)


def threshold_for_rate(
    thresholds: list[dict[str, float]], max_false_per_hour: float, page_s: float = math.nan, of: str = "the model"
) -> tuple[float, float]:
    """The lowest stored threshold that lets through at most ``max_false_per_hour`` false positives.

    Parameters
    ----------
    thresholds : those of a checkpoint, [{"threshold", "false_per_hour", "page_s" (may be missing)}, ...]
    max_false_per_hour : most false pages per hour
    page_s : seconds from one page to the next where the threshold is used; NaN when unknown
    of : whose thresholds they are, for the message

    Returns
    -------
    threshold, and its false pages per hour at that page length

    Raises
    ------
    InputError : no stored threshold has so low a rate.
    """
    known = [(entry["threshold"], rate_for_page_length(entry, page_s)) for entry in thresholds]
    valid = [choice for choice in known if choice[1] <= max_false_per_hour]
    if not valid:
        rates = ", ".join(dict.fromkeys(f"{rate:.4g}" for rate in sorted(rate for _, rate in known)))
        stored = f"thresholds for {rates}" if rates else "no thresholds (evaluate.py measures those of pages)"
        length = f" with a page every {page_s:.4g} s" if rates and math.isfinite(page_s) else ""
        raise InputError(f"max_false_per_hour {max_false_per_hour:g} is not reached: {of} has stored {stored}{length}")
    return min(valid)


def move_threshold(threshold: float, temperature_before: float, temperature_after: float) -> float:
    """The threshold that decides the same once the temperature is another: sigmoid(logit(p) T_before / T_after)."""
    from scipy.special import expit, logit

    return float(expit(logit(threshold) * temperature_before / temperature_after))
