"""After training: the last ridge and weights, and the log partition function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import energies, metrics, objectives, samplers
from ebmjax.types import EnergyFn, Key, Params
from experiments.tutorial.deep_kernel.model import REFERENCE_SCALE, reference_energy
from experiments.tutorial.deep_kernel.objective import Loss, Quadratic

CHUNK = 500
"""Number of examples at a time, where a batch is a whole data set."""

LOG_RIDGE_STEPS = np.linspace(-1.0, 1.0, 201)
"""Steps from the trained ridge to those that are tried. They reach as far as the
thousand steps of Adam at 1e-3 that were published."""


def _expand_rows(loss: Loss, params: Params, key: Key, rows: np.ndarray) -> Quadratic:
    """Returns the `Quadratic` of a whole data set, in float64."""
    total = Quadratic(0.0, 0.0)
    for index, first in enumerate(range(0, len(rows), CHUNK)):
        chunk = rows[first : first + CHUNK]
        found = loss.expand(params, jax.random.fold_in(key, index), chunk)
        share = len(chunk) / len(rows)
        total = Quadratic(
            *(a + share * np.asarray(b, np.float64) for a, b in zip(total, found))
        )
    return total


def finalize(
    loss: Loss, params: Params, key: Key, train: np.ndarray, validation: np.ndarray
) -> Params:
    """Fits the ridge to the validation set and the weights to the training set.

    The features stay. Both losses are quadratic in the weights, which one decomposition
    gives for all ridges. The best ridge is found in float64 by trying all of
    `LOG_RIDGE_STEPS`.

    Returns:
      `params` with `alpha` and another `log_ridge`.
    """
    train_key, validation_key = jax.random.split(key)
    fit = _expand_rows(loss, params, train_key, train)
    judge = _expand_rows(loss, params, validation_key, validation)
    values, vectors = np.linalg.eigh(fit.matrix)
    log_ridges = float(params["log_ridge"]) + LOG_RIDGE_STEPS
    shrunk = np.maximum(values, 0)[:, None] + 10.0 ** log_ridges[None]
    alphas = -vectors @ ((vectors.T @ fit.slope)[:, None] / shrunk)
    losses = 0.5 * np.sum(alphas * (judge.matrix @ alphas), 0) + judge.slope @ alphas
    best = int(np.argmin(losses))
    return params | {
        "alpha": jnp.asarray(alphas[:, best], jnp.float32),
        "log_ridge": jnp.asarray(log_ridges[best], jnp.float32),
    }


def _make_reference(dim: int):
    """Returns `q0` as the distribution that annealing begins with."""

    def sample(key):
        return REFERENCE_SCALE * jax.random.normal(key, (dim,))

    return sample, lambda x: -reference_energy(x)


def estimate_log_partition(
    energy_fn: EnergyFn, key: Key, x: np.ndarray, section: ConfigDict
) -> dict[str, float]:
    """Estimates the log partition function from below, from above and from `q0`.

    Forwards, annealed importance sampling with Hamiltonian moves starts from exact
    draws of `q0`: its estimate is too small on average. Backwards, it would be too
    large on average if it started from exact draws of the model, which do not exist.
    The backward chains start from the forward ones, resampled by their weights and
    moved on for long. The upper bound is as good as these chains are: if no forward
    chain finds a mode, the mode is missing from both estimates.

    Args:
      energy_fn: Energy of one example `[d]`.
      key: A typed key.
      x: Examples `[n, d]`, at which the chains start that find a step size.
      section: `num_chains`, `num_fractions`, `num_leapfrog`, `num_long` (moves of the
        chains before they go back), `num_importance` (draws), `chunk_size` (of them).

    Returns:
      Scalars in nats, `log_partition` (forwards) and `log_partition_reverse`;
      `ais_bracket`, the second minus the first; `ais_bound_gap`, the same for the mean
      log weights, whose expectations bracket the truth; `ais_effective_sample_size`;
      `ais_acceptance_rate`, the least of all fractions; `importance_log_partition` and
      `importance_effective_sample_size`, of draws of `q0`.
    """
    keys = jax.random.split(key, 6)
    dim, num_chains = x.shape[1], section.num_chains
    adapted = samplers.adapt(
        functools.partial(samplers.hmc, num_leapfrog=section.num_leapfrog),
        energy_fn,
        keys[0],
        jnp.asarray(x[np.arange(min(num_chains, 512)) % len(x)]),
        200,
        target_acceptance_rate=0.8,
        initial_step_size=0.1,
    )
    options = {"reference": _make_reference(dim), "fractions": section.num_fractions}
    forward = metrics.annealed_importance_sampling(
        adapted.sampler, energy_fn, keys[1], num_chains=num_chains, **options
    )
    rows = jax.random.categorical(keys[2], forward.log_weights, shape=(num_chains,))
    moved, _ = samplers.sample_chains(
        adapted.sampler,
        energy_fn,
        keys[3],
        forward.position[rows],
        section.num_long,
        collect=None,
    )
    reverse = metrics.reverse_annealed_importance_sampling(
        adapted.sampler, energy_fn, keys[4], moved.position, **options
    )
    simple, size = _sample_importance(energy_fn, keys[5], dim, section)
    rates = jnp.concatenate([forward.acceptance_rate, reverse.acceptance_rate])
    found = {
        "log_partition": forward.log_partition,
        "log_partition_reverse": reverse.log_partition,
        "ais_bracket": reverse.log_partition - forward.log_partition,
        "ais_bound_gap": reverse.bound - forward.bound,
        "ais_effective_sample_size": forward.effective_sample_size,
        "ais_acceptance_rate": jnp.min(rates),
        "importance_log_partition": simple,
        "importance_effective_sample_size": size,
    }
    return {name: float(value) for name, value in found.items()}


def _sample_importance(energy_fn, key, dim, section) -> tuple[float, float]:
    """Returns the estimate and the sample size of importance sampling from `q0`."""

    @jax.jit
    def chunks(energy_fn, keys):
        def chunk(key):
            return metrics.importance_sampling(
                energy_fn,
                key,
                proposal=_make_reference(dim),
                num_samples=section.chunk_size,
            )

        return jax.lax.map(chunk, keys)

    num = -(-section.num_importance // section.chunk_size)
    found = chunks(jax.tree_util.Partial(energy_fn), jax.random.split(key, num))
    means, sizes = (np.asarray(value, np.float64) for value in found)
    # Sums of weights and of their squares, of every chunk, relative to the largest.
    largest = means.max()
    sums = np.exp(means - largest)
    return largest + np.log(sums.mean()), sums.sum() ** 2 / (sums**2 / sizes).sum()


def score_normal(train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Returns the scores of a normal distribution fitted to the training rows."""
    mean, covariance = train.mean(0), np.cov(train.T, bias=True)
    precision = np.linalg.inv(covariance)
    params = {"mean": jnp.asarray(mean), "precision": jnp.asarray(precision)}
    log_partition = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    energy_test = jax.vmap(functools.partial(energies.gaussian, params))(test)
    exact = objectives.score_matching(energies.gaussian)
    value, _ = exact.loss({"energy": params}, jax.random.key(0), test, ())
    return {
        "normal_score_matching": float(value),
        "normal_test_log_likelihood": -float(jnp.mean(energy_test)) - log_partition,
    }
