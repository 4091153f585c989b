"""Metrics of anomaly detection by a score, computed with scikit-learn."""

import numpy as np

from ebmjax.types import Array

__all__ = ["anomaly"]


def anomaly(
    scores: Array | np.ndarray, is_anomaly: Array | np.ndarray, quantile: float = 0.8
) -> dict[str, float]:
    """Returns AUROC, AUPRC, and precision, recall and F1 at a quantile of the scores.

    An example is classified as an anomaly if its score is at least the quantile of all
    scores. A fixed share of examples is thus called anomalous, and without ties recall
    over precision is a constant: that share divided by the share of anomalies. Only the
    two areas compare scores with each other independently of the share.

    Args:
      scores: Scores `[n]`, finite; larger is more anomalous. Examples are an energy, or
        the norm of a score.
      is_anomaly: Labels `[n]`, boolean or 0 and 1; both must occur.
      quantile: Quantile of the threshold, above 0 and below 1. The threshold may lie
        between two scores, as `numpy.quantile` interpolates it.

    Returns:
      A dict. `precision`, `recall` and `f1` are those of the anomalies, at `threshold`.
      `auprc` is the area under precision over recall by the trapezoidal rule, as
      published for these models; `average_precision` is the same area by steps, which
      is not too optimistic if there are few points. `auroc` is the probability that an
      anomaly scores higher. `prevalence` is the share of anomalies.

    Raises:
      ValueError: If shapes differ, a score is not finite, a label is neither 0 nor 1,
        one of the two does not occur, or the quantile is out of range.
    """
    try:
        from sklearn import metrics
    except ModuleNotFoundError as error:
        message = 'anomaly needs scikit-learn: pip install "ebmjax[full]"'
        raise ModuleNotFoundError(message) from error

    scores, is_anomaly = np.asarray(scores, np.float64), np.asarray(is_anomaly)
    if scores.ndim != 1 or scores.shape != is_anomaly.shape:
        raise ValueError(
            "scores and is_anomaly must both be [n], got"
            f" {scores.shape} and {is_anomaly.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"scores must be finite, {np.sum(~np.isfinite(scores))} of them are not"
        )
    found = np.unique(is_anomaly)
    if not np.array_equal(found, [0, 1]):
        raise ValueError(
            f"is_anomaly must have both 0 and 1 and nothing else, got {found[:5]}"
        )
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be above 0 and below 1, got {quantile}")
    is_anomaly = is_anomaly.astype(bool)
    threshold = float(np.quantile(scores, quantile))
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        is_anomaly, scores >= threshold, average="binary", zero_division=0.0
    )
    precisions, recalls, _ = metrics.precision_recall_curve(is_anomaly, scores)
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "threshold": threshold,
        "auprc": float(metrics.auc(recalls, precisions)),
        "average_precision": float(metrics.average_precision_score(is_anomaly, scores)),
        "auroc": float(metrics.roc_auc_score(is_anomaly, scores)),
        "prevalence": float(is_anomaly.mean()),
    }
