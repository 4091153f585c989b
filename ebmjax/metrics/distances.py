"""Distances between sets of examples, by their features; and their variety."""

import numpy as np

from ebmjax.types import Array

__all__ = [
    "frechet_distance",
    "frechet_distance_from_moments",
    "inception_score",
    "maximum_mean_discrepancy",
]


def frechet_distance(
    features_a: Array | np.ndarray, features_b: Array | np.ndarray
) -> float:
    """Frechet distance of the normal distributions fitted to two sets of features.

    The squared 2-Wasserstein distance of `frechet_distance_from_moments`, with each
    set's mean and unbiased covariance. It is called FID only where the features are
    those of one certain Inception network: with any other features the numbers compare
    to nothing published, and to each other only for the same features.

    It sees means and covariances only, so 0 does not mean that the laws are equal. And
    it is biased upwards: two finite sets of one law are apart. For `n` normal features
    of `d` dimensions and variance 1 in each set the expectation is near
    `d (d + 5) / (2 n)` instead of 0, while `n` is much larger than `d`: `2 d / n` from
    the means, `d (d + 1) / (2 n)` from the covariances. So compare sets of one size,
    state it, and give the distance of two halves of the data beside it.

    Args:
      features_a: `[n, d]`, at least two rows.
      features_b: `[m, d]`; the order of the two sets does not matter.

    Returns:
      The distance, in squared units of the features; computed in float64 on the host,
      so not to be called under `jit`.

    Raises:
      ValueError: For other shapes, too few rows or values that are not finite.
    """
    moments = []
    for features in _two_sets(features_a, features_b):
        mean = features.mean(0)
        centred = features - mean
        moments += [mean, centred.T @ centred / (len(features) - 1)]
    return frechet_distance_from_moments(*moments)


def frechet_distance_from_moments(
    mean_a: Array | np.ndarray,
    cov_a: Array | np.ndarray,
    mean_b: Array | np.ndarray,
    cov_b: Array | np.ndarray,
) -> float:
    """Squared 2-Wasserstein distance of two normal distributions.

    `|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`. In one dimension this is
    `(m_a - m_b)^2 + (s_a - s_b)^2` with standard deviations `s`; between `N(0, I)` and
    `N(0, 4 I)` it is `d`. It is the square of a metric, not a metric.

    Args:
      mean_a: `[d]`.
      cov_a: `[d, d]`, symmetric, positive semi-definite; may be singular.
      mean_b: As `mean_a`.
      cov_b: As `cov_a`.

    Returns:
      The distance, never negative; computed in float64 on the host.

    Raises:
      ValueError: For shapes that disagree, values that are not finite, or covariances
        that are not symmetric and positive semi-definite up to rounding.

    Source:
      Dowson & Landau (1982), "The Frechet distance between multivariate normal
      distributions".
    """
    mean_a, cov_a, mean_b, cov_b = (
        np.asarray(x, np.float64) for x in (mean_a, cov_a, mean_b, cov_b)
    )
    dim = mean_a.size
    shapes = [x.shape for x in (mean_a, cov_a, mean_b, cov_b)]
    if shapes != [(dim,), (dim, dim)] * 2:
        raise ValueError(
            f"moments must have shapes [d], [d, d], [d], [d, d]; got {shapes}"
        )
    for name, x in (
        ("mean_a", mean_a),
        ("cov_a", cov_a),
        ("mean_b", mean_b),
        ("cov_b", cov_b),
    ):
        _check_finite(name, x)
    root_a = _root("cov_a", cov_a)
    root_b = _root("cov_b", cov_b)
    # tr (S_a S_b)^(1/2) is the sum of the singular values of the product of the roots.
    # Eigenvalues of root_a S_b root_a would be their squares, with half the digits.
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    squares = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b)
    # Rounding can leave the distance of equal moments a little below zero.
    return float(max(squares - 2 * cross, 0.0))


def _two_sets(features_a, features_b) -> list[np.ndarray]:
    """Both in float64, of one dimension."""
    sets = []
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
            raise ValueError(
                f"{name} must be [n, d] with at least 2 rows, got {features.shape}"
            )
        _check_finite(name, features)
        sets.append(features)
    dims = [features.shape[1] for features in sets]
    if dims[0] != dims[1]:
        raise ValueError(
            f"features_a and features_b must have the same dimension, got {dims[0]} and"
            f" {dims[1]}"
        )
    return sets


def _check_finite(name: str, x: np.ndarray) -> None:
    num_bad = np.count_nonzero(~np.isfinite(x))
    if num_bad:
        raise ValueError(
            f"{name} must be finite, got {num_bad} values of {x.size} that are not"
        )


def _root(name: str, cov: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    # Covariances may come from float32: the tolerance is for that rounding.
    tolerance = 1e-5 * np.abs(cov).max(initial=0.0)
    if np.abs(cov - cov.T).max(initial=0.0) > tolerance:
        raise ValueError(f"{name} must be symmetric, got an asymmetric matrix")
    eigenvalues, vectors = np.linalg.eigh(cov)
    if eigenvalues.min(initial=0.0) < -len(cov) * tolerance:
        raise ValueError(
            f"{name} must be positive semi-definite, got the eigenvalue"
            f" {eigenvalues.min()}"
        )
    return (vectors * np.sqrt(eigenvalues.clip(0))) @ vectors.T


def inception_score(
    logits: Array | np.ndarray, *, num_splits: int = 10
) -> tuple[float, float]:
    """How sure a classifier is of each example, and how unsure of what comes next.

    The exponential of the mutual information of example and class: the mean divergence
    of an example's class probabilities from their mean over the examples. Between 1 and
    the number of classes. It is called so only with the logits of one certain Inception
    network; it knows nothing of the data, and does not see an example repeated.

    Args:
      logits: `[n, num_classes]`.
      num_splits: The examples are cut into so many parts, in their order, and each has
        a score; fewer examples a part score lower. Published: 10, of 50,000.

    Returns:
      Mean and standard deviation (of the population) over the parts.

    Raises:
      ValueError: For another shape, values that are not finite, or fewer examples than
        parts.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= num_splits <= len(logits):
        raise ValueError(
            "logits must be [n, num_classes] with at least as many rows as num_splits ="
            f" {num_splits}, got {logits.shape}"
        )
    _check_finite("logits", logits)
    logits = logits - logits.max(1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    scores = []
    for part in np.array_split(log_probs, num_splits):
        probs = np.exp(part)
        mean = probs.mean(0)
        log_mean = np.log(np.where(mean > 0, mean, 1))
        scores.append(np.exp((probs * (part - log_mean)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def maximum_mean_discrepancy(
    features_a: Array | np.ndarray,
    features_b: Array | np.ndarray,
    *,
    kernel: str = "polynomial",
    bandwidth: float | None = None,
    max_examples: int = 5_000,
) -> float:
    """The squared maximum mean discrepancy of two sets of features, without bias.

    Mean kernel of pairs within each set, of different examples, less twice the mean
    between them. 0 on average for two sets of one law, so also below 0; unlike
    `frechet_distance` it can be compared between sets of different sizes. With the
    polynomial kernel, and the features of one certain Inception network, it is called
    the kernel inception distance.

    Args:
      features_a: `[n, d]`, at least two rows.
      features_b: `[m, d]`; the order of the two sets does not matter.
      kernel: "polynomial", `(x . y / d + 1)^3`, which sees moments up to the third; or
        "gaussian", `exp(-|x - y|^2 / (2 bandwidth^2))`, which sees all.
      bandwidth: Of "gaussian", in units of the features; None for the median distance
        between the two sets.
      max_examples: The first so many of each set are looked at: `n^2` pairs are.

    Returns:
      The estimate; computed in float64 on the host, so not to be called under `jit`.

    Raises:
      ValueError: For other shapes, too few rows, values that are not finite, an unknown
        kernel, or a bandwidth that is not positive, or given to a kernel without one.
    """
    if kernel not in ("polynomial", "gaussian"):
        raise ValueError(f"kernel must be 'polynomial' or 'gaussian', got {kernel!r}")
    if bandwidth is not None and (kernel != "gaussian" or not bandwidth > 0):
        raise ValueError(
            "bandwidth must be positive, and is of the gaussian kernel; got"
            f" {bandwidth} for {kernel!r}"
        )
    a, b = (x[:max_examples] for x in _two_sets(features_a, features_b))

    def squares(x, y):
        products = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
        return products.clip(0)

    if kernel == "gaussian" and bandwidth is None:
        bandwidth = float(np.sqrt(np.median(squares(a, b))))
        if bandwidth == 0:
            raise ValueError(
                "the median distance of the features is 0: bandwidth must be given"
            )

    def values(x, y):
        if kernel == "polynomial":
            return (x @ y.T / x.shape[1] + 1) ** 3
        return np.exp(-squares(x, y) / (2 * bandwidth**2))

    def within(x):
        found = values(x, x)
        return (found.sum() - np.trace(found)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * values(a, b).mean())
