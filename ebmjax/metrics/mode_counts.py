"""The number of modes that draws have found, and how evenly they cover them."""

import numpy as np

from ebmjax.types import Array

__all__ = ["modes"]


def modes(
    labels: Array | np.ndarray, num_tuples: int, *, robust_count: int = 5
) -> dict[str, float | int]:
    """Returns the number of modes found, and how far their shares are from uniform.

    See https://arxiv.org/abs/1611.02163 and https://arxiv.org/abs/1901.08508.

    The labels come from a classifier, for example of the digits that are stacked in an
    image, read as one number. Its errors create modes: a generator of 500 of 1,000
    triples shows 653 with a classifier that is wrong on one digit in 200. The robust
    count corrects for this. Run the classifier as in evaluation, with dropout off.

    Args:
      labels: Labels of the draws, `[n]`, integers from 0 to `num_tuples - 1`.
      num_tuples: Number of modes that exist; 1,000 for three digits.
      robust_count: Number of draws that a mode must have for the robust count. The
        published protocol has 26 draws per mode.

    Returns:
      A dict. `num_modes` counts modes with at least one draw, and `num_robust_modes`
      modes with at least `robust_count`. `kl` is the divergence of the shares from
      uniform ones in nats, KL(draws || uniform), as published. (The divergence of the
      data from the draws is infinite if a mode is missed.) `kl_floor` is its
      expectation for as many uniform draws, about `(num_tuples - 1) / (2 n)`, and
      `kl_excess` is the difference of the two, which is 0 on average for uniform draws.
      The data's own tuples are not quite uniform: real MNIST digits have an excess of
      0.005 nats at three digits.

    Raises:
      ValueError: If labels are not such integers, or a count is below 1.

    Source:
      The protocol of stacked digits: Metz, Poole, Pfau & Sohl-Dickstein (2017),
      "Unrolled generative adversarial networks", https://arxiv.org/abs/1611.02163; with
      1,000 modes and KL: Kumar et al. (2019), "Maximum entropy generators for
      energy-based models", https://arxiv.org/abs/1901.08508.
    """
    labels = np.asarray(labels)
    for name, value in (("num_tuples", num_tuples), ("robust_count", robust_count)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(
                f"{name} must be a whole number of at least 1, got {value!r}"
            )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be integers [n], got {labels.dtype} of shape {labels.shape}"
        )
    if not len(labels):
        raise ValueError("labels must not be empty")
    if labels.min() < 0 or labels.max() >= num_tuples:
        raise ValueError(
            f"labels must be from 0 to {num_tuples - 1}, got {labels.min()} to"
            f" {labels.max()}"
        )
    counts = np.bincount(labels, minlength=num_tuples)
    shares = counts[counts > 0] / len(labels)
    kl = float((shares * np.log(shares * num_tuples)).sum())
    floor = _kl_floor(len(labels), num_tuples)
    return {
        "num_modes": int((counts > 0).sum()),
        "num_robust_modes": int((counts >= robust_count).sum()),
        "kl": kl,
        "kl_floor": floor,
        "kl_excess": kl - floor,
    }


def _kl_floor(num: int, num_tuples: int) -> float:
    """Returns the expected KL of the shares of `num` uniform draws."""
    from scipy.stats import binom

    counts = np.arange(1, num + 1)
    shares = counts / num
    chances = binom.pmf(counts, num, 1 / num_tuples)
    return float(num_tuples * (chances * shares * np.log(shares * num_tuples)).sum())
