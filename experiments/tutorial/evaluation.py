"""evaluation"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import metrics
from experiments.judge import plots
from experiments.judge.plane import at_points, make_plane
from experiments.run.experiment import evaluated_params
from experiments.tutorial.targets import BOUNDS, SMOOTH, modes_of


def _fisher(energy_fn, true_fn):
    """Half the squared distance of two scores at one example."""

    def at(x):
        difference = jax.grad(energy_fn)(x) - jax.grad(true_fn)(x)
        return 0.5 * jnp.sum(difference**2)

    return at


def _learned(params) -> dict[str, float]:
    known = "log_partition" in params
    return {"learned_log_partition": params["log_partition"]} if known else {}


def _bound_energy(problem, energy, params):
    if energy is not None:
        return functools.partial(energy, params)
    return functools.partial(problem.model.energy, params["energy"])


def in_plane(config, problem, target, energy=None):
    """Divergences from the target on a grid; all to the rounding of float32.

    The model's log partition function is of a square three times as wide as the grid's:
    what of the model is off the grid, `mass_off_grid`, counts in its divergence.
    """
    section, bound = config.evaluation, BOUNDS[config.data.name]
    plots.check()
    if section.num_points % 4 or section.num_points < 4:
        raise ValueError(
            "evaluation.num_points must be a positive multiple of 4,"
            f" got {section.num_points}"
        )
    cell = 2 * math.log(2 * bound / section.num_points)  # log of the area
    grid = make_plane(bound, section.num_points // 4)
    log_true = grid.log_probabilities(target.energy_fn)
    true = np.exp(log_true)
    used = true > 0
    modes = modes_of(config.data, np.asarray(grid.points))
    mode_probs = np.bincount(modes, true)

    def evaluate(state, key, directory):
        params = evaluated_params(state)
        energy_fn = _bound_energy(problem, energy, params)
        wide = [(-3 * bound, 3 * bound)] * 2
        log_partition = float(
            metrics.quadrature(energy_fn, wide, section.num_points * 3 // 2)
        )
        at_points = np.asarray(at_points(energy_fn, grid.points), np.float64)
        log_model = cell - at_points - log_partition
        model = np.exp(log_model)
        kl = true[used] @ (log_true[used] - log_model[used])
        model_probs = np.bincount(modes, model, len(mode_probs))
        present = mode_probs > 0
        between = mode_probs[present] @ np.log(
            mode_probs[present] / np.maximum(model_probs[present], 1e-300)
        )
        scalars = {
            "kl": kl,  # nats, of the target from the model
            "kl_within_modes": kl - between,
            "mass_off_grid": max(1 - model.sum(), 0.0),
            "entropy": -(true[used] * log_true[used]).sum() + cell,
            "log_partition": log_partition,
        }
        if config.data.name in SMOOTH:
            at = at_points(_fisher(energy_fn, target.energy_fn), grid.points)
            scalars["fisher_divergence"] = true[used] @ np.asarray(at)[used]
        panels = {"data": grid.binned(true), config.objective.name: grid.binned(model)}
        plots.densities(directory / "densities.png", panels, bounds=(-bound, bound))
        # A telescope's constants are part of its energy, whose own constant is 0.
        learned = _learned(params) if energy is None else {}
        return scalars | learned

    return evaluate


def by_draws(config, problem, target, energy=None):
    """Divergences from the target by means over draws; log partitions are exact."""
    num = config.evaluation.num_examples

    def evaluate(state, key, directory):
        params = evaluated_params(state)
        energy_fn = _bound_energy(problem, energy, params)
        log_partition = problem.model.log_partition(params["energy"])
        x = target.sample(key, num)

        def excess(x):  # of the model's minus log density over the target's
            model = energy_fn(x) + log_partition
            return model - target.energy_fn(x) - target.log_partition

        at_x = np.asarray(at_points(excess, x), np.float64)
        likelihood = np.asarray(at_points(energy_fn, x), np.float64).mean()
        return {
            "kl": at_x.mean(),
            "kl_standard_error": at_x.std() / math.sqrt(num),
            "fisher_divergence": at_points(
                _fisher(energy_fn, target.energy_fn), x
            ).mean(),
            "test_log_likelihood": -likelihood - log_partition,
            "log_partition": log_partition,
        } | _learned(params)

    return evaluate
