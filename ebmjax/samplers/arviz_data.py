"""Conversion of draws to the data of ArviZ."""

import inspect
from typing import Any

import jax
import numpy as np

from ebmjax.checks import check_installed

__all__ = ["to_arviz"]

NAMES = {"is_divergent": "diverging", "num_leapfrog": "n_steps"}
"""Fields of infos that ArviZ calls differently."""


def to_arviz(positions: Any, infos: Any = None, *, name: str = "x") -> Any:
    """Returns draws, and what samplers report of them, as data of ArviZ.

    They are those that `sample_chains` collects, with the axes of ArviZ,
    `[chains, draws, ...]`:

        state, (positions, infos) = sample_chains(
            sampler, energy_fn, key, x, 1000,
            collect=lambda state, info: (state.position, info),
        )
        data = to_arviz(positions, infos)
        arviz.summary(data)

    In the group `sample_stats`, the infos' `is_divergent` is called `diverging` and
    `num_leapfrog` is called `n_steps`, as in ArviZ. `lp` is minus the energy. `energy`
    is `total_energy` if the info has it, as that of `from_blackjax` may. Otherwise it
    is the energy of the position without a momentum, for which ArviZ's `bfmi` and
    `plot_energy` are not meant. All other fields keep their names.

    Args:
      positions: Draws, an array or a tree of arrays `[draws, chains, *event]`.
      infos: Infos of the same moves, with leaves `[draws, chains]`; None if unknown.
      name: Name of the variable if the positions are one array. The arrays of a tree
        have the names of their places, joined by underscores.

    Returns:
      An `InferenceData` of ArviZ before 1.0, and a `DataTree` since.

    Raises:
      ValueError: If an array has not the draws and chains of the first one.
      ModuleNotFoundError: If ArviZ is not installed.
    """
    arviz = check_installed("to_arviz", "arviz")
    posterior, stats = _named(positions, name), _named(infos, "info")
    shapes = {k: np.shape(leaf)[:2] for k, leaf in [*posterior.items(), *stats.items()]}
    first = next(iter(shapes), name)
    for other, shape in shapes.items():
        if len(shape) < 2 or shape != shapes[first]:
            raise ValueError(
                f"{other} must be [draws, chains, ...] as {first} is,"
                f" {shapes[first]}, got {shape}"
            )
    if "energy" in stats:
        stats["lp"] = -stats["energy"]
        stats["energy"] = stats.pop("total_energy", stats["energy"])
    stats = {NAMES.get(field, field): leaf for field, leaf in stats.items()}
    groups = {"posterior": posterior, "sample_stats": stats}
    groups = {
        group: {field: leaf.swapaxes(0, 1) for field, leaf in arrays.items()}
        for group, arrays in groups.items()
        if arrays
    }
    # The groups are arguments before ArviZ 1.0, and one dict since.
    is_old = "posterior" in inspect.signature(arviz.from_dict).parameters
    return arviz.from_dict(**groups) if is_old else arviz.from_dict(groups)


def _named(tree: Any, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a tree by their places; one array is called `name`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="_") or name: np.asarray(leaf)
        for path, leaf in leaves
    }
