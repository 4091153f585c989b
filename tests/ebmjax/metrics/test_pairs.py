"""Squares and medians of all pairs: by SciPy, by another way, and at the extremes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial

from ebmjax import metrics
from ebmjax.metrics import pairs


@pytest.mark.parametrize("num", [2, 3, 4, 7, 40, 401, 402])
def test_the_median_is_that_of_the_distances_above_the_diagonal(num):
    """402 and 401 have more than 2^16 pairs in half of their squares, and are counted
    in two digits; the others in four. Odd and even numbers of pairs are among them."""
    x = np.random.default_rng(num).standard_cauchy((num, 3)).astype(np.float32)
    distances = scipy.spatial.distance.pdist(np.float64(x))
    found = metrics.median_distance(x)
    np.testing.assert_allclose(found, np.median(distances), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_rank_is_that_of_the_sorted_values_with_ties(dtype):
    """Values of all sizes, 0 and infinity, each of them twice or more often."""
    with jax.enable_x64(True):
        some = np.random.default_rng(0).standard_cauchy(40).astype(dtype)
        info = jnp.finfo(dtype)
        special = np.array([0, 0, info.tiny, info.max, np.inf, np.inf], dtype)
        values = np.concatenate([np.abs(some), np.abs(some), some[:7] ** 2, special])
        at_rank = jax.jit(pairs._at_rank, static_argnums=1)
        for rank in range(0, len(values) - 1, 5):
            found = at_rank(jnp.asarray(values), rank)
            np.testing.assert_array_equal(found, np.sort(values)[rank : rank + 2])


@pytest.mark.parametrize("num", [5, 400])
def test_a_median_knows_infinite_distances_and_no_numbers(num):
    x = np.arange(num, dtype=np.float32)[:, None] ** 2
    squares = (x - x.T) ** 2
    squares[0, 1:] = squares[1:, 0] = np.inf
    expected = np.median(np.sqrt(squares[np.triu_indices(num, 1)]))
    np.testing.assert_allclose(pairs.median(jnp.asarray(squares), 1.0), expected)
    squares[2, 3] = np.nan
    assert np.isnan(pairs.median(jnp.asarray(squares), 1.0))


def test_a_median_sorts_nothing():
    """XLA's CPU takes three seconds to sort the distances of 5,000 examples."""
    shape = jax.ShapeDtypeStruct((5_000, 2), jnp.float32)
    assert " sort[" not in str(jax.make_jaxpr(metrics.median_distance)(shape))
    assert " sort[" in str(jax.make_jaxpr(jnp.median)(shape))


@pytest.mark.parametrize("dim", [2, 9])
def test_squares_and_pulls_are_by_their_definition(dim):
    """Differences of up to 8 dimensions, and products of more; no pair with itself."""
    rng = np.random.default_rng(0)
    rows, scores = rng.normal(size=(2, 20, dim)).astype(np.float32)
    squares, pulls = pairs.over_pairs(lambda *found: found, rows, scores)
    apart, change = (
        np.float64(a)[:, None] - np.float64(a)[None] for a in (rows, scores)
    )
    np.testing.assert_allclose(squares, (apart**2).sum(2), rtol=1e-5)
    np.testing.assert_allclose(pulls, (apart * change).sum(2), atol=2e-5)
    assert (np.diagonal(squares) == 0).all() and (np.diagonal(pulls) == 0).all()


def test_a_gradient_keeps_no_differences():
    """It keeps rows and scores alone of a forward pass, and nothing of their pairs."""
    rows = jnp.ones((50, 8))
    over_pairs = functools.partial(pairs.over_pairs, lambda *found: found)
    _, pull_back = jax.vjp(over_pairs, rows, rows)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull_back)) < 50**2
