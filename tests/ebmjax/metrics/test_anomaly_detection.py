"""Scores of anomalies against counts made by hand."""

import numpy as np
import pytest
import scipy.stats

from ebmjax import metrics


@pytest.mark.quick
def test_ten_scores_by_hand():
    """Anomalies at .9, .7 and .1 among ten; the quantile .8 calls two of them so."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1])
    is_anomaly = np.array([1, 0, 1, 0, 0, 0, 0, 0, 0, 1])
    found = metrics.anomaly(scores, is_anomaly, 0.8)
    assert 0.7 < found["threshold"] < 0.8
    np.testing.assert_allclose(
        [found["precision"], found["recall"], found["f1"], found["prevalence"]],
        [1 / 2, 1 / 3, 2 / 5, 0.3],
    )
    # Of 21 pairs the anomaly is above in 7 + 6 + 0.
    np.testing.assert_allclose(found["auroc"], 13 / 21)
    # Steps: 1/3 at precision 1, 1/3 at 2/3, 1/3 at 3/10.
    np.testing.assert_allclose(found["average_precision"], (1 + 2 / 3 + 3 / 10) / 3)
    # Trapezia between the points (0, 1), (1/3, 1), (1/3, 1/2), (2/3, 2/3), then
    # 2/4, ..., 2/9 at the same recall, and (1, 3/10).
    area = 1 / 3 + (1 / 2 + 2 / 3) / 6 + (2 / 9 + 3 / 10) / 6
    np.testing.assert_allclose(found["auprc"], area)


def test_two_normals_have_the_area_on_paper():
    """Scores N(0, 1) and N(1, 1): the chance of being above is Phi(1 / sqrt 2)."""
    rng = np.random.default_rng(0)
    is_anomaly = np.repeat([False, True], 20_000)
    found = metrics.anomaly(rng.normal(size=40_000) + is_anomaly, is_anomaly, 0.5)
    # At most sqrt(1 / 4 / 20,000) off, one deviation.
    exact = scipy.stats.norm.cdf(0.5**0.5)
    np.testing.assert_allclose(found["auroc"], exact, atol=4 * 0.0036)
    at_half = scipy.stats.norm.cdf(0.5)  # the threshold is in the middle
    np.testing.assert_allclose(
        [found["precision"], found["recall"]], at_half, atol=4 * 0.0034
    )


def test_the_published_protocol_has_a_constant_ratio_of_recall_to_precision():
    """A fifth of the scores called anomalies of 19.69 %: 1.0157, whatever the scores;
    the best are right on .9846 of what they call, and random ones on the prevalence."""
    num, num_anomalies = 247_011, 48_629
    is_anomaly = np.arange(num) < num_anomalies
    rng = np.random.default_rng(0)
    for scores, precision in (
        (rng.random(num) + is_anomaly, 0.9843),
        (rng.random(num), num_anomalies / num),
    ):
        found = metrics.anomaly(scores, is_anomaly, 0.8)
        np.testing.assert_allclose(
            found["recall"] / found["precision"], 0.2 * num / num_anomalies, rtol=1e-4
        )
        np.testing.assert_allclose(found["precision"], precision, atol=0.008)


def test_ties_at_the_threshold_are_all_called_anomalies():
    scores = np.array([1.0] * 5 + [0.0] * 5)
    is_anomaly = np.array([1, 0, 0, 0, 0, 1, 0, 0, 0, 0])
    found = metrics.anomaly(scores, is_anomaly, 0.8)
    np.testing.assert_allclose([found["precision"], found["recall"]], [0.2, 0.5])


@pytest.mark.parametrize(
    "scores, labels, quantile, message",
    [
        ([0.1, 0.2], [0, 1, 1], 0.8, r"both be \[n\], got \(2,\) and \(3,\)"),
        ([0.1, np.nan], [0, 1], 0.8, "must be finite, 1 of them"),
        ([0.1, 0.2], [0, 0], 0.8, "must have both 0 and 1"),
        ([0.1, 0.2], [0, 2], 0.8, "must have both 0 and 1"),
        ([0.1, 0.2], [0, 1], 1.0, "quantile must be above 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(scores, labels, quantile, message):
    with pytest.raises(ValueError, match=message):
        metrics.anomaly(np.array(scores), np.array(labels), quantile)
