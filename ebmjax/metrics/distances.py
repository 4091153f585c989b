"""Distances between sets of features (FID, MMD), and the Inception score (IS)."""

import math

import numpy as np

from ebmjax.types import Array

__all__ = [
    "frechet_distance",
    "frechet_distance_from_moments",
    "inception_score",
    "maximum_mean_discrepancy",
]

MOST_PAIRS = 2**14
"""Number of pairs of rows whose differences are held at once."""

TILE = 256
"""Number of rows of each set whose pairs are computed together: a core's cache holds
them."""


def frechet_distance(
    features_a: Array | np.ndarray, features_b: Array | np.ndarray
) -> float:
    """Returns the Frechet distance of two sets of features, such as FID.

    See https://arxiv.org/abs/1706.08500.

    It is the squared 2-Wasserstein distance of the normal distributions fitted to the
    two sets (`frechet_distance_from_moments`), with each set's mean and unbiased
    covariance. It is called FID only if the features are those of one certain Inception
    network (`networks.inception`). With any other features the numbers cannot be
    compared to published ones, and they can be compared to each other only for the same
    features.

    The distance depends on means and covariances only, so 0 does not mean that the laws
    are equal. It is biased upwards: two finite sets of one law have a positive
    distance. For `n` normal features of `d` dimensions and variance 1 in each set, the
    expectation is near `d (d + 5) / (2 n)` instead of 0, if `n` is much larger than
    `d`: `2 d / n` from the means and `d (d + 1) / (2 n)` from the covariances. Compare
    sets of one size, state that size, and report the distance of two halves of the data
    as well.

    Args:
      features_a: Features of the first set, `[n, d]`, at least two rows.
      features_b: Features of the second set, `[m, d]`; the order of the two sets does
        not matter.

    Returns:
      The distance, in squared units of the features. It is computed in float64 on the
      host, so it cannot be called under `jit`.

    Raises:
      ValueError: If the arrays have other shapes, too few rows or values that are not
        finite.

    Source:
      Heusel, Ramsauer, Unterthiner, Nessler & Hochreiter (2017), "GANs trained by a two
      time-scale update rule converge to a local Nash equilibrium",
      https://arxiv.org/abs/1706.08500.
    """
    features_a, features_b = _two_sets(features_a, features_b)
    # In units in which no square overflows or vanishes.
    unit = _unit(features_a, features_b)
    moments = []
    for features in (features_a / unit, features_b / unit):
        mean = features.mean(0)
        centred = features - mean
        moments += [mean, centred.T @ centred / (len(features) - 1)]
    return frechet_distance_from_moments(*moments) * unit * unit


def frechet_distance_from_moments(
    mean_a: Array | np.ndarray,
    cov_a: Array | np.ndarray,
    mean_b: Array | np.ndarray,
    cov_b: Array | np.ndarray,
) -> float:
    """Returns the squared 2-Wasserstein distance of two normal distributions (FID).

    See https://doi.org/10.1016/0047-259X(82)90077-X and
    https://arxiv.org/abs/1706.08500 (FID).

    The distance is `|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`. In one
    dimension this is `(m_a - m_b)^2 + (s_a - s_b)^2` with standard deviations `s`;
    between `N(0, I)` and `N(0, 4 I)` it is `d`. It is the square of a metric, not a
    metric.

    Args:
      mean_a: Mean of the first distribution, `[d]`.
      cov_a: Covariance of the first distribution, `[d, d]`, symmetric and positive
        semi-definite; may be singular.
      mean_b: Mean of the second distribution, `[d]`.
      cov_b: Covariance of the second distribution, `[d, d]`, like `cov_a`.

    Returns:
      The distance, never negative, computed in float64 on the host.

    Raises:
      ValueError: If shapes disagree, values are not finite, or covariances are not
        symmetric and positive semi-definite up to rounding.

    Source:
      Dowson & Landau (1982), "The Frechet distance between multivariate normal
      distributions", Journal of Multivariate Analysis 12,
      https://doi.org/10.1016/0047-259X(82)90077-X. FID: Heusel et al. (2017),
      https://arxiv.org/abs/1706.08500.
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
    # In units in which no square overflows or vanishes.
    unit = _unit(mean_a, mean_b, np.sqrt(np.abs(cov_a)), np.sqrt(np.abs(cov_b)))
    mean_a, mean_b = mean_a / unit, mean_b / unit
    root_a = _root("cov_a", cov_a := cov_a / unit / unit)
    root_b = _root("cov_b", cov_b := cov_b / unit / unit)
    # tr (S_a S_b)^(1/2) is the sum of the singular values of the product of the roots.
    # Eigenvalues of root_a S_b root_a would be their squares, with half the digits.
    cross = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    squares = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b)
    # Rounding can leave the distance of equal moments a little below zero.
    return float(max(squares - 2 * cross, 0.0) * unit * unit)


def _unit(*arrays: np.ndarray) -> float:
    """Returns the power of two next to the largest element, or 1 if all are 0."""
    largest = max(np.abs(array).max(initial=0.0) for array in arrays)
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest > 0 else 1.0


def _two_sets(
    features_a: Array | np.ndarray, features_b: Array | np.ndarray
) -> list[np.ndarray]:
    """Returns both sets in float64, or raises unless they have one dimension."""
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
    """Returns the symmetric square root of a covariance."""
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
    root: np.ndarray = (vectors * np.sqrt(eigenvalues.clip(0))) @ vectors.T
    return root


def inception_score(
    logits: Array | np.ndarray, *, num_splits: int = 10
) -> tuple[float, float]:
    """Returns the Inception score (IS), as mean and deviation over parts of the set.

    See https://arxiv.org/abs/1606.03498.

    The score is the exponential of the mutual information of example and class: the
    mean divergence of an example's class probabilities from their mean over the
    examples. It is high if a classifier is sure of each example and the classes vary,
    and lies between 1 and the number of classes. It is called by this name only with
    the logits of one certain Inception network. It does not depend on the data, and it
    does not detect repeated examples.

    Args:
      logits: Logits of the classifier, `[n, num_classes]`.
      num_splits: Number of parts into which the examples are cut, in their order. Each
        part has a score; parts with fewer examples score lower. The published setting
        is 10 parts of 50,000 examples.

    Returns:
      Mean and standard deviation (of the population) over the parts.

    Raises:
      ValueError: If the array has another shape, values that are not finite, or fewer
        examples than parts.

    Source:
      Salimans, Goodfellow, Zaremba, Cheung, Radford & Chen (2016), "Improved techniques
      for training GANs", https://arxiv.org/abs/1606.03498.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= num_splits <= len(logits):
        raise ValueError(
            "logits must be [n, num_classes] with at least as many rows as num_splits ="
            f" {num_splits}, got {logits.shape}"
        )
    _check_finite("logits", logits)
    with np.errstate(over="ignore"):  # the difference of two logits may be -inf
        logits = logits - logits.max(1, keepdims=True)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    scores = []
    for part in np.array_split(log_probs, num_splits):
        probs = np.exp(part)
        mean = probs.mean(0)
        log_mean = np.log(np.where(mean > 0, mean, 1))
        # A class without probability adds nothing, even if its logit is infinitely low.
        terms = probs * (np.where(probs > 0, part, 0) - log_mean)
        scores.append(np.exp(terms.sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def maximum_mean_discrepancy(
    features_a: Array | np.ndarray,
    features_b: Array | np.ndarray,
    *,
    kernel: str = "polynomial",
    bandwidth: float | None = None,
    max_examples: int = 5_000,
) -> float:
    """Returns the squared maximum mean discrepancy (MMD) of two sets, without bias.

    See https://www.jmlr.org/papers/v13/gretton12a.html and
    https://arxiv.org/abs/1801.01401 (KID).

    The estimate is the mean kernel of pairs of different examples within each set,
    summed over both sets, minus twice the mean kernel between the sets. It is 0 on
    average for two sets of one law, so it can be negative. Unlike `frechet_distance`,
    it can be compared between sets of different sizes. With the polynomial kernel, and
    the features of one certain Inception network, it is called the kernel Inception
    distance (KID).

    Args:
      features_a: Features of the first set, `[n, d]`, at least two rows.
      features_b: Features of the second set, `[m, d]`; the order of the two sets does
        not matter.
      kernel: "polynomial" is `(x . y / d + 1)^3`, which depends on moments up to the
        third; "gaussian" is `exp(-|x - y|^2 / (2 bandwidth^2))`, which depends on all.
      bandwidth: Bandwidth of "gaussian", in units of the features; None for the median
        distance between the two sets.
      max_examples: Number of first examples of each set that are used; `n^2` pairs are
        computed.

    Returns:
      The estimate, computed in float64 on the host, so it cannot be called under `jit`.

    Raises:
      ValueError: If the arrays have other shapes, too few rows or values that are not
        finite, the kernel is unknown, a bandwidth is not positive or is given to a
        kernel without one, or the polynomial kernel overflows.

    Source:
      Gretton, Borgwardt, Rasch, Scholkopf & Smola (2012), "A kernel two-sample test",
      Journal of Machine Learning Research 13,
      https://www.jmlr.org/papers/v13/gretton12a.html. KID: Binkowski, Sutherland, Arbel
      & Gretton (2018), "Demystifying MMD GANs", https://arxiv.org/abs/1801.01401.
    """
    if kernel not in ("polynomial", "gaussian"):
        raise ValueError(f"kernel must be 'polynomial' or 'gaussian', got {kernel!r}")
    if bandwidth is not None and (kernel != "gaussian" or not bandwidth > 0):
        raise ValueError(
            "bandwidth must be positive, and is of the gaussian kernel; got"
            f" {bandwidth} for {kernel!r}"
        )
    a, b = (x[:max_examples] for x in _two_sets(features_a, features_b))
    means = _gaussian(a, b, bandwidth) if kernel == "gaussian" else _polynomial(a, b)
    found = float(means[0] + means[1] - 2 * means[2])
    if not math.isfinite(found):
        largest = max(np.abs(a).max(), np.abs(b).max())
        raise ValueError(
            "the features are too large for the polynomial kernel in float64, got"
            f" {largest:g}"
        )
    return found


def _gaussian(a: np.ndarray, b: np.ndarray, bandwidth: float | None) -> list[float]:
    """Returns the mean Gaussian kernel of pairs in a, in b, and of a with b."""
    # No distance depends on the unit, or on the place of both sets together.
    unit = _unit(a, b)
    a, b = a / unit, b / unit
    center = np.concatenate([a, b]).mean(0)
    spread = _unit(a - center, b - center)
    a, b = (a - center) / spread, (b - center) / spread
    pairs = [_squared_distances(x, y) for x, y in ((a, a), (b, b), (a, b))]
    if bandwidth is None:
        width = float(np.sqrt(np.median(pairs[2])))
    else:
        width = bandwidth / unit / spread
    if width == 0:
        raise ValueError(
            "the median distance of the features is 0: bandwidth must be given"
        )
    for x in pairs:
        with np.errstate(over="ignore"):  # exp(-inf) is right
            x /= width
            x /= -2 * width
        np.exp(x, out=x)
    for within in pairs[:2]:
        np.fill_diagonal(within, 0.0)  # not minus the trace, which may be large
    means = [within.sum() / (len(within) * (len(within) - 1)) for within in pairs[:2]]
    return [*means, pairs[2].mean()]


def _polynomial(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Returns the mean polynomial kernel of pairs in a, in b, and of a with b.

    What depends on one example of a pair alone is left out. It cancels in the distance,
    and far from 0 it would take the digits of the rest. With `x = u + c`, `y = v + c`
    and `w = u . v / d` the rest is

        (k + p + q + w)^3 - (k + p)^3 - (k + q)^3 + k^3
            = w^3 + 3 w t (t + w) + 3 p q (k + t)

    for `p = c . u / d`, `q = c . v / d`, `k = c . c / d + 1` and `t = k + p + q`. The
    last term is a sum over the examples of each set alone.
    """
    dim = a.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses those
        center = np.concatenate([a, b]).mean(0)
        k = center @ center / dim + 1
        a, b = a - center, b - center
        p, q = a @ center / dim, b @ center / dim
        across = _sum_over_tiles(a, k + p, b, q)
        across += 3 * p.sum() * (k * q.sum() + (q**2).sum())
        across += 3 * q.sum() * (k * p.sum() + (p**2).sum())
        means = []
        for x, r in ((a, p), (b, q)):
            within = _sum_over_tiles(x, k + r, x, r)
            # Each pair once: sums over the examples before each one.
            before, squares = (np.cumsum(np.r_[0.0, v[:-1]]) for v in (r, r**2))
            within += 6 * np.sum(r * ((2 * k + r) * before + squares))
            means.append(within / (len(x) * (len(x) - 1)))
        return [*means, across / (len(a) * len(b))]


def _sum_over_tiles(
    u: np.ndarray, left: np.ndarray, v: np.ndarray, right: np.ndarray
) -> float:
    """Returns the sum of `w^3 + 3 w t (t + w)` of pairs, of different rows if u is v.

    For a pair `w` is the product of the rows over their dimension, and `t` the sum of
    its two numbers of `left` and `right`.
    """
    total = 0.0
    scaled = u / u.shape[1]
    for i in range(0, len(u), TILE):
        for j in range(i if u is v else 0, len(v), TILE):
            w = scaled[i : i + TILE] @ v[j : j + TILE].T
            if u is v and i == j:
                np.fill_diagonal(w, 0.0)  # not minus the trace, which may be large
            t = left[i : i + TILE, None] + right[None, j : j + TILE]
            rest = t + w
            rest *= t
            tile = 3 * np.vdot(w, rest) + np.vdot(w, np.multiply(w, w, out=rest))
            total += tile * (2 if u is v and i < j else 1)
    return total


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns squared distances `[n, m]` of rows in float64."""
    norms = (x**2).sum(1)[:, None] + (y**2).sum(1)[None]
    squares: np.ndarray = norms - 2 * x @ y.T
    # Where most digits have cancelled, differences are taken instead.
    rows, columns = np.nonzero(squares < 1e-6 * norms)
    for first in range(0, len(rows), MOST_PAIRS):
        i, j = (index[first : first + MOST_PAIRS] for index in (rows, columns))
        squares[i, j] = ((x[i] - y[j]) ** 2).sum(1)
    return squares
