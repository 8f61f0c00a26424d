"""Ranking curves, calibration and thresholds against brute force and planted truth."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from single_pulse_classifier_training.calibration import (
    expected_calibration_error,
    false_rate_thresholds,
    fit_temperature,
    move_threshold,
    negative_log_likelihood,
    poisson_interval,
    pulse_probability,
    reliability,
    threshold_for_rate,
)
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.evaluation import recall_by_snr
from single_pulse_classifier_training.metrics import (
    average_precision,
    precision_recall_curve,
    recall_by,
    roc_auc,
    roc_curve,
)

# Few distinct scores, so that ties are common.
labelled_scores = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40).filter(
    lambda pairs: len({label for label, _ in pairs}) == 2
)


def arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.array(pairs).T
    return labels, scores.astype(float)


def logits_of(margin: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(margin), margin], axis=1).astype(np.float32)


@given(labelled_scores)
def test_auc_is_the_share_of_pairs_in_the_right_order(pairs):
    labels, scores = arrays(pairs)
    difference = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    assert roc_auc(labels, scores) == pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())


@given(labelled_scores)
def test_curves_are_the_counts_at_every_threshold(pairs):
    labels, scores = arrays(pairs)
    thresholds = np.unique(scores)[::-1]
    selected = scores >= thresholds[:, None]
    recall = (selected & (labels == 1)).sum(axis=1) / (labels == 1).sum()
    false_rate = (selected & (labels == 0)).sum(axis=1) / (labels == 0).sum()
    precision = (selected & (labels == 1)).sum(axis=1) / selected.sum(axis=1)

    np.testing.assert_allclose(roc_curve(labels, scores), [[0, *false_rate], [0, *recall]])
    np.testing.assert_allclose(precision_recall_curve(labels, scores), [precision, recall])
    steps = recall - np.array([0, *recall[:-1]])
    assert average_precision(labels, scores) == pytest.approx((steps * precision).sum())


def test_average_precision_of_known_rankings():
    assert average_precision(np.array([1, 0, 1, 0]), np.array([4.0, 3, 2, 1])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([0, 0, 1, 1]), np.array([1.0, 2, 3, 4])) == 1
    assert average_precision(np.array([1, 0, 0, 0]), np.zeros(4)) == 0.25


def test_a_missing_class_leaves_the_curves_undefined():
    assert math.isnan(roc_auc(np.array([1, 1]), np.array([0.1, 0.2])))
    assert math.isnan(average_precision(np.array([0, 0]), np.array([0.1, 0.2])))


SNR = np.array([5.9, 6, 7.9, 8, 9.9, 10, 14.9, 15, 80, np.nan], np.float32)
FOUND = np.array([0, 0, 1, 1, 1, 0, 0, 1, 1, 1], bool)


def test_recall_by_puts_every_known_value_into_one_bin():
    assert recall_by(SNR, FOUND, (-np.inf, 6.0, 8.0, 100.0, 200.0, np.inf)) == [
        {"from": None, "to": 6.0, "found": 0, "of": 1},
        {"from": 6.0, "to": 8.0, "found": 1, "of": 2},
        {"from": 8.0, "to": 100.0, "found": 4, "of": 6},
        {"from": 100.0, "to": 200.0, "found": 0, "of": 0},
        {"from": 200.0, "to": None, "found": 0, "of": 0},
    ]


def test_recall_by_snr_has_the_format_of_the_metrics_file():
    bins = recall_by_snr(SNR, FOUND)
    assert [(entry["snr"], entry["pulses"], entry["found"]) for entry in bins] == [
        ("<6", 1, 0), ("6-8", 2, 1), ("8-10", 2, 2), ("10-15", 2, 0), (">15", 2, 2)]  # fmt: skip
    assert [entry["recall"] for entry in bins] == [0, 0.5, 1, 0, 1]
    assert recall_by_snr(SNR[1:9], FOUND[1:9])[0]["snr"] == "6-8"
    assert recall_by_snr(np.full(10, np.nan), FOUND) == []


def test_expected_calibration_error_of_known_probabilities():
    # Ten images of confidence 0.9, seven right; ten of confidence 0.6 (Artefact), six right: mean of 0.2 and 0.
    labels = np.array([1] * 7 + [0] * 3 + [0] * 6 + [1] * 4)
    probabilities = np.array([0.9] * 10 + [0.4] * 10)
    assert expected_calibration_error(labels, probabilities) == pytest.approx(0.1)
    images, confidence, accuracy = reliability(labels, probabilities)
    filled = np.flatnonzero(images)
    assert filled.tolist() == [8, 13] and images[filled].tolist() == [10, 10]
    np.testing.assert_allclose(confidence[filled], [0.6, 0.9])
    np.testing.assert_allclose(accuracy[filled], [0.6, 0.7])
    assert np.isnan(confidence[0]) and np.isnan(accuracy[0])


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=50))
def test_expected_calibration_error_is_between_0_and_1_and_counts_every_image(pairs):
    labels, probabilities = np.array([label for label, _ in pairs]), np.array([p for _, p in pairs])
    assert 0 <= expected_calibration_error(labels, probabilities) <= 1
    assert reliability(labels, probabilities).images.sum() == len(labels)


@pytest.mark.parametrize("planted", [0.5, 1.0, 2.0, 5.0])
def test_a_planted_temperature_is_found_and_calibrates(planted):
    random = np.random.default_rng(0)
    margin = random.normal(scale=3, size=20_000)
    labels = (random.random(len(margin)) < 1 / (1 + np.exp(-margin))).astype(int)
    logits = logits_of(planted * margin)  # too sure of itself where T > 1
    temperature = fit_temperature(labels, logits)
    assert temperature == pytest.approx(planted, rel=0.05)
    assert expected_calibration_error(labels, pulse_probability(logits, temperature)) < 0.012
    for other in (0.9 * temperature, 1.1 * temperature):
        assert negative_log_likelihood(labels, logits, other) > negative_log_likelihood(labels, logits, temperature)


def test_negative_log_likelihood_is_that_of_the_probabilities():
    logits = np.array([[0.0, 1.0], [2.0, -1.0], [0.5, 0.5]], np.float32)
    labels = np.array([1, 1, 0])
    p = pulse_probability(logits, 3.0).astype(float)
    expected = -np.log(np.where(labels == 1, p, 1 - p)).mean()
    assert negative_log_likelihood(labels, logits, 3.0) == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(negative_log_likelihood(labels, 1e4 * logits))


def test_without_an_error_the_temperature_stays_1():
    assert fit_temperature(np.array([0, 1]), logits_of(np.array([-2.0, 0.1]))) == 1.0


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32), min_size=1, max_size=60),
    st.floats(0.5, 70),
)
def test_a_threshold_is_the_smallest_that_lets_the_allowed_pages_through(probabilities, rate):
    probabilities = np.array(probabilities, np.float32)
    thresholds = false_rate_thresholds(probabilities, [rate], page_s=3600 / len(probabilities))  # one hour
    allowed = math.floor(round(rate, 9))

    def let_through(threshold: np.float32) -> int:
        return int((probabilities >= threshold).sum())

    unreachable = let_through(np.float32(1)) > allowed
    assert bool(thresholds) == (allowed >= 1 and not unreachable)
    for entry in thresholds:
        threshold = np.float32(entry["threshold"])
        assert float(threshold) == entry["threshold"], "the pipeline compares in float32"
        assert 0 <= threshold <= 1 and let_through(threshold) <= allowed
        assert threshold == 0 or let_through(np.nextafter(threshold, np.float32(-1))) > allowed
        assert (entry["false_per_hour"], entry["page_s"]) == (rate, pytest.approx(3600 / len(probabilities)))


def test_thresholds_on_a_known_distribution():
    """Two hours of pages whose probabilities are k / 1000: the threshold of 50 an hour lets exactly 100 through."""
    probabilities = (np.arange(1000) / 1000).astype(np.float32)
    entries = false_rate_thresholds(np.random.default_rng(0).permutation(probabilities), [50, 5, 0.5, 0.4], page_s=7.2)
    assert [int((probabilities >= entry["threshold"]).sum()) for entry in entries] == [100, 10, 1]
    assert entries[0]["threshold"] == pytest.approx(0.9, abs=1e-3)
    assert [entry["false_per_hour"] for entry in entries] == [50, 5, 0.5], "0.4 an hour is less than one page"


@pytest.mark.parametrize(
    ("count", "limits"), [(0, (0, 3.6889)), (1, (0.02532, 5.5716)), (10, (4.7954, 18.3904)), (100, (81.364, 121.627))]
)
def test_limits_of_a_poisson_mean(count, limits):
    """The values of Garwood (1936) and of every later table, for two hours."""
    assert poisson_interval(count, 2.0) == pytest.approx([limit / 2 for limit in limits], rel=1e-4)


STORED = [
    {"threshold": 0.2, "false_per_hour": 1000.0, "page_s": 0.02},
    {"threshold": 0.7, "false_per_hour": 100.0, "page_s": 0.02},
    {"threshold": 0.9, "false_per_hour": 10.0},
]


@pytest.mark.parametrize(
    ("rate", "page_s", "expected"),
    [
        (1000, math.nan, (0.2, 1000)),
        (999, math.nan, (0.7, 100)),
        (99, math.nan, (0.9, 10)),
        (1000, 0.02, (0.2, 1000)),
        (1000, 0.01, (0.7, 200)),  # pages half as long: twice as many an hour
        (150, 0.01, (0.9, 10)),  # an entry without a page length is as stored
        (50, 0.04, (0.7, 50)),
    ],
)
def test_the_lowest_stored_threshold_within_the_rate(rate, page_s, expected):
    assert threshold_for_rate(STORED, rate, page_s) == pytest.approx(expected)
    assert threshold_for_rate(STORED[::-1], rate, page_s) == pytest.approx(expected)


@pytest.mark.parametrize(("stored", "named"), [(STORED, "10, 200, 2000"), ([], "evaluate.py")])
def test_a_rate_that_no_stored_threshold_reaches(stored, named):
    with pytest.raises(InputError, match=rf"max_false_per_hour 5 .*{named}"):
        threshold_for_rate(stored, 5, page_s=0.01)


@given(st.floats(1e-4, 0.9999), st.floats(0.2, 5), st.floats(0.2, 5))
def test_a_moved_threshold_decides_the_same(threshold, before, after):
    # Beyond this the new threshold is as near to 1 as float64 can tell.
    assume(abs(np.log(threshold / (1 - threshold))) * before / after < 20)
    margin = np.linspace(-9, 9, 2001)
    moved = move_threshold(threshold, before, after)
    clear = np.abs(margin / before - np.log(threshold / (1 - threshold))) > 1e-6
    decided = 1 / (1 + np.exp(-margin / before)) >= threshold
    np.testing.assert_array_equal((1 / (1 + np.exp(-margin / after)) >= moved)[clear], decided[clear])


def test_the_ends_of_the_range_stay_where_they_are():
    assert (move_threshold(0.0, 1, 3), move_threshold(0.5, 1, 3), move_threshold(1.0, 3, 1)) == (0.0, 0.5, 1.0)
