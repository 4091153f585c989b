"""Whether draws have the law they should, within derived errors."""

import numpy as np


def check_normal(positions, mean, variance):
    """Raises unless `positions [chains, d]` are independent normals.

    Five standard errors each (six for the largest of many coordinates): of the mean of
    |z|^2, chi-square with mean d and variance 2 d; of its variance, of relative error
    sqrt((2 + 12 / d) / N); of each coordinate's mean and variance.
    """
    z = (np.asarray(positions, float) - mean) / np.sqrt(variance)
    num_chains, dimension = z.shape
    squares = (z**2).sum(1)
    error = 5 * (2 * dimension / num_chains) ** 0.5
    np.testing.assert_allclose(squares.mean(), dimension, atol=error)
    error = 5 * ((2 + 12 / dimension) / num_chains) ** 0.5
    np.testing.assert_allclose(squares.var(), 2 * dimension, rtol=error)
    np.testing.assert_allclose(z.mean(0), 0.0, atol=6 / num_chains**0.5)
    np.testing.assert_allclose(z.var(0), 1.0, rtol=6 * (2 / num_chains) ** 0.5)
