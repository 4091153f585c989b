"""Divergences of a trained energy from the target, whose density is known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import metrics
from ebmjax.checks import check_count
from ebmjax.targets import Target
from ebmjax.types import Array, Energy, Key, Params
from experiments.data import own_tables
from experiments.data.tabular import Table
from experiments.judge import plots
from experiments.judge.plane import at_points, make_plane
from experiments.run.experiment import evaluated_params
from experiments.run.workdir import save_arrays, save_columns
from experiments.tutorial.deep_kernel.evaluate import estimate_log_partition
from experiments.tutorial.models import Model


def _fisher(energy_fn, true_fn):
    """Returns half the squared distance of two scores as a function of an example."""

    def at(x):
        difference = jax.grad(energy_fn)(x) - jax.grad(true_fn)(x)
        return 0.5 * jnp.sum(difference**2)

    return at


def _compare_constants(params, log_partition) -> dict[str, float]:
    """Returns the learned log partition function and its error, if it is learned.

    The constants of a telescope are a vector. They are part of its energy.
    """
    learned = params.get("log_partition")
    if learned is None or np.ndim(learned):
        return {}
    return {
        "learned_log_partition": learned,
        "log_partition_error": float(learned) - float(log_partition),
    }


def plane_evaluation(
    model: Model,
    target: Target,
    energy: Energy,
    *,
    bound: float,
    num_points: int,
    is_smooth: bool,
):
    """Returns `evaluate`, which integrates divergences from the target on a grid.

    All are exact to the rounding of float32. The model's log partition function is that
    of a square three times as wide as the grid. The model's mass off the grid,
    `mass_off_grid`, therefore counts in its divergence.

    Args:
      model: Not used: no model in the plane has a formula for its constant.
      target: A target in the plane.
      energy: `energy(params, x)` of all trained parameters.
      bound: The grid is `[-bound, bound]^2`.
      num_points: Number of points of the grid along a side.
      is_smooth: Whether the target has a score, so that a Fisher divergence exists.
    """
    del model
    plots.check()
    if num_points % 4 or num_points < 4:
        raise ValueError(
            f"evaluation.num_points must be a positive multiple of 4, got {num_points}"
        )
    cell = 2 * math.log(2 * bound / num_points)  # log of the area
    grid = make_plane(bound, num_points // 4)
    log_true = grid.log_probabilities(target.energy_fn)
    true = np.exp(log_true)
    used = true > 0
    modes = np.asarray(at_points(target.mode_of, grid.points))
    mode_probs = np.bincount(modes, true)

    def evaluate(state, key, directory):
        del key
        params = evaluated_params(state)
        energy_fn = functools.partial(energy, params)
        wide = [(-3 * bound, 3 * bound)] * 2
        log_partition = float(metrics.quadrature(energy_fn, wide, num_points * 3 // 2))
        energies = np.asarray(at_points(energy_fn, grid.points), np.float64)
        log_model = cell - energies - log_partition
        probs = np.exp(log_model)
        kl = true[used] @ (log_true[used] - log_model[used])
        model_probs = np.bincount(modes, probs, len(mode_probs))
        present = mode_probs > 0
        between = mode_probs[present] @ np.log(
            mode_probs[present] / np.maximum(model_probs[present], 1e-300)
        )
        scalars = {
            "kl": kl,  # nats, of the target from the model
            "kl_within_modes": kl - between,
            "mass_off_grid": max(1 - probs.sum(), 0.0),
            "entropy": -(true[used] * log_true[used]).sum() + cell,
            "log_partition": log_partition,
        }
        if is_smooth:
            at = at_points(_fisher(energy_fn, target.energy_fn), grid.points)
            scalars["fisher_divergence"] = true[used] @ np.asarray(at)[used]
        panels = {"data": grid.binned(true), "model": grid.binned(probs)}
        plots.densities(directory / "densities.png", panels, bounds=(-bound, bound))
        return scalars | _compare_constants(params, log_partition)

    return evaluate


def draw_model(model: Model, params: Params, key: Key, num: int) -> Array:
    """Returns exact draws of a model, `[num, d]`."""
    return jax.vmap(model.sample, (None, 0))(params, jax.random.split(key, num))


def draws_evaluation(
    model: Model, target: Target, energy: Energy, *, num_examples: int, num_samples: int
):
    """Returns `evaluate`, which averages divergences from the target over its draws.

    Log partition functions are exact.

    Args:
      model: A model with an exact log partition function and exact draws.
      target: The target.
      energy: `energy(params, x)` of all trained parameters.
      num_examples: Number of draws of the target.
      num_samples: Number of draws of the model, which are saved in `samples.npz`.
    """
    check_count("evaluation.num_examples", num_examples, 1)
    check_count("evaluation.num_samples", num_samples, 1)

    def evaluate(state, key, directory):
        params = evaluated_params(state)
        energy_fn = functools.partial(energy, params)
        log_partition = model.log_partition(params["energy"])
        x = target.sample(key, num_examples)

        def excess(x):  # of the model's minus log density over the target's
            normalized = energy_fn(x) + log_partition
            return normalized - target.energy_fn(x) - target.log_partition

        at_x = np.asarray(at_points(excess, x), np.float64)
        mean_energy = np.asarray(at_points(energy_fn, x), np.float64).mean()
        sample_key = jax.random.fold_in(key, 1)
        save_arrays(
            directory / "samples.npz",
            samples=draw_model(model, params["energy"], sample_key, num_samples),
            key=jax.random.key_data(sample_key),
        )
        return {
            "kl": at_x.mean(),
            "kl_standard_error": at_x.std() / math.sqrt(num_examples),
            "fisher_divergence": at_points(
                _fisher(energy_fn, target.energy_fn), x
            ).mean(),
            "test_log_likelihood": -mean_energy - log_partition,
            "log_partition": log_partition,
        } | _compare_constants(params, log_partition)

    return evaluate


def table_evaluation(model: Model, table: Table, energy: Energy, **section):
    """Returns `evaluate`, the log-likelihood of a table of the user.

    It is in nats and in the units of the file, with annealed importance sampling for
    the log partition function. The log-likelihood of each row to score is written to
    `log_likelihoods.csv`.

    Args:
      model: Not used: the model has no formula for its constant.
      table: The table.
      energy: `energy(params, x)` of all trained parameters.
      **section: Options of `estimate_log_partition`.
    """
    del model
    for name, value in section.items():
        check_count(f"evaluation.{name}", value, 1)

    def evaluate(state, key, directory):
        params = evaluated_params(state)
        energy_fn = functools.partial(energy, params)
        found = estimate_log_partition(energy_fn, key, table.train, ConfigDict(section))

        def log_prob(rows):
            energies = np.asarray(at_points(energy_fn, rows), np.float64)
            return -energies - found["log_partition"]

        scalars, scored = own_tables.log_likelihoods(table, log_prob)
        if scored is not None:
            columns = {"log_likelihood": scored}
            save_columns(directory / "log_likelihoods.csv", columns)
        compared = _compare_constants(params, found["log_partition"])
        return scalars | found | compared

    return evaluate


EVALUATIONS = {
    "plane": plane_evaluation,
    "draws": draws_evaluation,
    "table": table_evaluation,
}
