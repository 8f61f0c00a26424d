"""Calibrated probabilities from logits, and thresholds with a known rate of false positives."""

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

TEMPERATURES = (0.05, 20.0)  # range of the fit, chosen by hand and wide enough for any useful network
CONFIDENCE_BINS = 15  # as in Guo et al. 2017
SECONDS_PER_HOUR = 3600.0
INTERVAL = 0.95
"""Confidence level of the intervals of a rate."""


def pulse_probability(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Compute the probability of a pulse with the same arithmetic as the classifier of the pipeline.

    Parameters
    ----------
    logits : (N, 2) ndarray of float32
        Columns Artefact and Pulse.
    temperature : float
        Divides the logits before softmax (Guo et al. 2017, arXiv:1706.04599).

    Returns
    -------
    probability : (N,) ndarray of float32
    """
    import torch

    return torch.softmax(torch.from_numpy(logits) / temperature, dim=1)[:, 1].numpy()


def negative_log_likelihood(labels: np.ndarray, logits: np.ndarray, temperature: float = 1.0) -> float:
    """Compute the mean of -log(probability of the true class) in nats: the cross-entropy loss of the training."""
    margin = logits[:, 1].astype(np.float64) - logits[:, 0]
    return float(np.logaddexp(0.0, np.where(labels == 1, -margin, margin) / temperature).mean())


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """Fit the temperature that minimises the negative log-likelihood (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    A few hundred images determine this single number well, and it does not change the ranking of the pages. If every
    image is classified correctly, the likelihood has no maximum (it grows as T falls), and T is 1.

    Parameters
    ----------
    labels : (N,) ndarray of int
        1 = Pulse, 0 = Artefact; images that the network was not trained on.
    logits : (N, 2) ndarray of float32
        Columns Artefact and Pulse.
    """
    from scipy.optimize import minimize_scalar

    if not np.any((logits[:, 1] > logits[:, 0]) != (labels == 1)):
        logger.warning("no image is misclassified: the temperature cannot be fitted and is set to 1")
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
            "the fitted temperature %.3g is at the limit of its range: the probabilities are poorly calibrated",
            math.exp(best.x),
        )
    return math.exp(best.x)


class Reliability(NamedTuple):
    """Bins of the confidence, which is the probability of the predicted class.

    Attributes
    ----------
    images : (15,) ndarray of int64
        Images in each bin of equal width between 0 and 1.
    confidence, accuracy : (15,) ndarray of float64
        Mean confidence and fraction of correct predictions in each bin; NaN without images.
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> Reliability:
    """Compute the reliability diagram: confidence and accuracy in equal-width bins (Guo et al. 2017, eqs. 1 and 2).

    Parameters
    ----------
    labels : (N,) ndarray of int
        1 = Pulse, 0 = Artefact.
    probabilities : (N,) ndarray of float
        Probability of a pulse.
    """
    probabilities = probabilities.astype(np.float64)
    confidence = np.maximum(probabilities, 1.0 - probabilities)
    correct = (probabilities >= 0.5) == (labels == 1)
    # A bin contains its upper edge, as in the paper.
    bins = np.ceil(confidence * CONFIDENCE_BINS).astype(np.int64) - 1
    images = np.bincount(bins, minlength=CONFIDENCE_BINS)
    filled = np.where(images > 0, images, np.nan)
    sums = (np.bincount(bins, weights=values, minlength=CONFIDENCE_BINS) for values in (confidence, correct))
    return Reliability(images, *(total / filled for total in sums))


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Compute the expected calibration error, the mean difference between accuracy and confidence.

    ECE = sum over b of n_b / N |accuracy_b - confidence_b| in 15 bins of equal width (Naeini et al. 2015, AAAI, 2901;
    Guo et al. 2017, equation 3).
    """
    images, confidence, accuracy = reliability(labels, probabilities)
    return float(np.nansum(images * np.abs(accuracy - confidence)) / len(labels))


def measured_hours(n_pages: int, page_s: float) -> float:
    """Return the hours of observation in ``n_pages`` pages of ``page_s`` seconds."""
    return n_pages * page_s / SECONDS_PER_HOUR


def poisson_interval(count: int, hours: float) -> tuple[float, float]:
    """Return the limits of a rate per hour of which ``count`` were found in ``hours``, at the level `INTERVAL`.

    The exact central interval of a Poisson mean (Garwood 1936, Biometrika 28, 437), from the quantiles of chi-squared.
    """
    from scipy.stats import chi2

    outside = (1 - INTERVAL) / 2
    low = chi2.ppf(outside, 2 * count) / 2 if count else 0.0
    return float(low / hours), float(chi2.isf(outside, 2 * count + 2) / 2 / hours)


def rate_text(count: int, hours: float) -> str:
    """Return a rate per hour and the limits of `poisson_interval` as text, such as "56.7 (38.2 to 80.9)"."""
    rate, low, high = (f"{float(f'{value:.3g}'):g}" for value in (count / hours, *poisson_interval(count, hours)))
    return f"{rate} ({low} to {high})"


def hours_needed(rate: float, hours: float) -> str:
    """Describe why a rate per hour cannot be measured in ``hours``: fewer than one false positive is expected."""
    return f"{rate:g} per hour needs at least {1 / rate:.4g} h of pulse-free data, got {hours:.4g} h"


def allowed_pages(rate: float, hours: float) -> int:
    """Return the whole number of false pages that ``rate`` per hour allows in ``hours``."""
    # Rounding first: the floating-point error of the product must not lower the number by one.
    return math.floor(round(rate * hours, 9))


def false_rate_thresholds(probabilities: np.ndarray, rates: Sequence[float], page_s: float) -> list[dict[str, float]]:
    """Measure the thresholds for given rates of false positives on pages without a pulse.

    The threshold for a rate is the smallest probability t for which at most floor(rate * hours) pages have p >= t.
    Pages with the same probability pass together: t lies just above the first probability that must not pass.

    Parameters
    ----------
    probabilities : (M,) ndarray
        Probabilities of pages without a pulse; compared in float32, like in the pipeline.
    rates : sequence of float
        False pages per hour.
    page_s : float
        Length of a page in seconds; the mean if the lengths differ.

    Returns
    -------
    thresholds : list of dict
        ``{"threshold", "false_per_hour", "page_s", "false_positives", "hours"}`` in the order of ``rates``, with the
        number of pages that pass, and the hours of all pages. A rate is left out if it allows less than one false page,
        or if more pages than it allows have probability 1.
    """
    ranked = np.sort(np.asarray(probabilities, np.float32))[::-1]
    hours = measured_hours(len(ranked), page_s)
    thresholds = []
    for rate in rates:
        allowed = allowed_pages(rate, hours)
        first_refused = ranked[allowed] if allowed < len(ranked) else np.float32(-1.0)
        threshold = max(0.0, float(np.nextafter(first_refused, np.float32(2.0))))
        if allowed >= 1 and threshold <= 1.0:
            entry = {"threshold": threshold, "false_per_hour": float(rate), "page_s": float(page_s)}
            thresholds.append(entry | {"false_positives": int((ranked >= threshold).sum()), "hours": hours})
    return thresholds


def rate_for_page_length(entry: dict[str, float], page_s: float = math.nan) -> float:
    """Return the false positives per hour of a stored threshold if there is a page every ``page_s`` seconds.

    The probability that a page is a false positive is taken not to depend on its length: twice the pages per hour give
    twice the false positives. If either length is unknown, the stored rate is returned.
    """
    scale = entry.get("page_s", math.nan) / page_s
    return entry["false_per_hour"] * (scale if math.isfinite(scale) else 1.0)


def threshold_for_rate(
    thresholds: list[dict[str, float]],
    max_false_per_hour: float,
    page_s: float = math.nan,
    of: str = "the model",
    measured_by: str = "evaluate.py",
) -> tuple[float, float]:
    """Choose the lowest stored threshold with at most ``max_false_per_hour`` false positives.

    Parameters
    ----------
    thresholds : list of dict
        Those of a checkpoint: ``{"threshold", "false_per_hour", "page_s", "hours"}``, where the last two may be
        missing.
    max_false_per_hour : float
        Maximum number of false positives per hour.
    page_s : float
        Interval between pages in seconds where the threshold is used; NaN if unknown.
    of, measured_by : str
        What the thresholds belong to and the script that measures them, for the message.

    Returns
    -------
    threshold : float
    false_per_hour : float
        Its false positives per hour at this interval.

    Raises
    ------
    InputError
        If every stored threshold has a higher rate.
    """
    known = [(entry["threshold"], rate_for_page_length(entry, page_s)) for entry in thresholds]
    valid = [choice for choice in known if choice[1] <= max_false_per_hour]
    if valid:
        return min(valid)
    rates = ", ".join(dict.fromkeys(f"{rate:.4g}" for rate in sorted(rate for _, rate in known)))
    stored = f"thresholds for {rates}" if rates else f"no thresholds ({measured_by} measures them)"
    length = f" with a page every {page_s:.4g} s" if rates and math.isfinite(page_s) else ""
    # Rates of pages depend on their interval, so that the hours of the measurement do not limit them.
    hours = max(
        (entry["hours"] for entry in thresholds if "hours" in entry and "page_s" not in entry), default=math.inf
    )
    few = max_false_per_hour * hours < 1
    why = f"; {hours_needed(max_false_per_hour, hours)}" if few else ""
    raise InputError(f"max_false_per_hour {max_false_per_hour:g} is too low: {of} has {stored}{length}{why}")


def move_threshold(threshold: float, temperature_before: float, temperature_after: float) -> float:
    """Return the threshold that gives the same decisions at a new temperature: sigmoid(logit(p) T_before / T_after)."""
    from scipy.special import expit, logit

    return float(expit(logit(threshold) * temperature_before / temperature_after))
