"""Measures of samples by their pixels alone, for images that have no labels.

No network is trained for them. They see the layout of an image, its brightness and its
contrast, and not what it shows: a blurred image is near to a sharp one.
"""

from typing import NamedTuple

import numpy as np

from ebmjax import metrics
from ebmjax.types import Array

NUM_COMPONENTS = 64
"""Largest number of principal components among the features."""

NUM_FITTED = 2_000
"""Largest number of images that the components are those of."""

BANDWIDTH = 0.35
"""Bandwidth of the kernel in median distances. With 1, as usual, the distance of 800
digits from a normal distribution with their covariance is within its error; with this
it is ten times its error, and with 0.1 the kernel sees hardly any pair."""

NUM_PAIRED = 1_000
"""Largest number of images of a set whose pairs a kernel distance takes."""


class Pixels(NamedTuple):
    """Statistics by which pixels are compared.

    Attributes:
      mean: Mean of the data's pixels, `[d]`.
      vectors: Principal components of the data, `[d, k]`.
      bandwidth: Bandwidth of the kernel, `BANDWIDTH` times the median distance between
        images of the data.
      gaussian: Draws of a normal distribution fitted to the data, `[n, *image]`.
    """

    mean: np.ndarray
    vectors: np.ndarray
    bandwidth: float
    gaussian: np.ndarray

    def features(self, x: Array) -> np.ndarray:
        """Returns the components of images, and the length of their remainders.

        Args:
          x: `[n, *image]`.

        Returns:
          `[n, k + 1]`, float64. Noise of many pixels is in the last feature.
        """
        centred = _flat(x) - self.mean
        components = centred @ self.vectors
        squares = np.sum(centred**2, 1) - np.sum(components**2, 1)
        rest = np.sqrt(np.maximum(squares, 0.0))
        return np.column_stack([components, rest]).astype(np.float64)

    def kernel_distance(self, x: Array, y: Array) -> float:
        """Returns the squared maximum mean discrepancy of two sets of images."""
        return metrics.maximum_mean_discrepancy(
            _flat(x[:NUM_PAIRED]),
            _flat(y[:NUM_PAIRED]),
            kernel="gaussian",
            bandwidth=self.bandwidth,
        )


def _flat(x: Array) -> np.ndarray:
    return np.asarray(x, np.float32).reshape(len(x), -1)


def fit_pixels(data: np.ndarray, gaussian: np.ndarray) -> Pixels:
    """Returns the statistics of a data set's pixels.

    Args:
      data: Images `[n, *image]`, two at least.
      gaussian: Draws of a normal distribution with their mean and covariance.
    """
    flat = _flat(data[:NUM_FITTED])
    mean = flat.mean(0)
    centred = flat - mean
    num = min(NUM_COMPONENTS, len(flat) - 1, flat.shape[1])
    if flat.shape[1] <= len(flat):
        vectors = np.linalg.eigh(centred.T @ centred)[1][:, : -num - 1 : -1]
    else:  # fewer images than pixels: the small side of the same decomposition
        left = np.linalg.eigh(centred @ centred.T)[1][:, : -num - 1 : -1]
        vectors = np.linalg.qr(centred.T @ left)[0]
    bandwidth = BANDWIDTH * float(metrics.median_distance(flat[:NUM_PAIRED]))
    return Pixels(mean, vectors, bandwidth, gaussian)


def pixel_quality(pixels: Pixels, samples: Array, data: Array) -> dict[str, float]:
    """Compares samples with data, by their pixels.

    Args:
      pixels: Fitted to the same kind of data.
      samples: `[n, *image]`, scaled as the data are.
      data: `[m, *image]`.

    Returns:
      `pixel_frechet_distance`, between normal distributions fitted to `Pixels.features`
      of samples and data, biased upwards for few examples, see
      `metrics.frechet_distance`; `kernel_distance`, the squared maximum mean
      discrepancy of their pixels, which is 0 on average for two sets of one law; and
      `gaussian_distance`, that of the samples from a normal distribution fitted to the
      data, which is near 0 for a model that has learned no more than their covariance.
    """
    return {
        "pixel_frechet_distance": metrics.frechet_distance(
            pixels.features(samples), pixels.features(data)
        ),
        "kernel_distance": pixels.kernel_distance(samples, data),
        "gaussian_distance": pixels.kernel_distance(samples, pixels.gaussian),
    }
