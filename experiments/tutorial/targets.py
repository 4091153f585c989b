"""Targets: distributions with exact draws and a known density."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax import targets
from experiments.data.own_tables import own_section
from experiments.run.config import construct


def draw_unmixing(*, dim: int, matrix_seed: int) -> np.ndarray:
    """Returns a random matrix, drawn until its condition number is below `dim`."""
    rng = np.random.default_rng(matrix_seed)
    while True:
        unmixing = rng.normal(size=(dim, dim))
        if np.linalg.cond(unmixing) < dim:
            return unmixing


def make_mixing(*, dim: int, matrix_seed: int) -> np.ndarray:
    """Returns a random mixing matrix that gives logistic sources covariance 1."""
    mixing = np.linalg.inv(draw_unmixing(dim=dim, matrix_seed=matrix_seed))
    # The variance of a standard logistic is pi^2 / 3.
    covariance = math.pi**2 / 3 * mixing.T @ mixing
    return mixing @ np.linalg.inv(np.linalg.cholesky(covariance)).T


def _ica(**options) -> targets.Target:
    return targets.ica(make_mixing(**options))


def _gaussian_bernoulli_rbm(
    *, dim: int, num_hidden: int, weight_scale: float, matrix_seed: int
) -> targets.Target:
    """Makes a machine with weights of one size and random signs, and normal biases."""
    rng = np.random.default_rng(matrix_seed)
    weights = weight_scale * rng.choice([-1.0, 1.0], size=(dim, num_hidden))
    biases = rng.normal(size=dim), rng.normal(size=num_hidden)
    return targets.gaussian_bernoulli_rbm(weights, *biases)


CONSTRUCTORS = {
    "eight_gaussians": targets.eight_gaussians,
    "rings": targets.rings,
    "two_moons": targets.two_moons,
    "checkerboard": targets.checkerboard,
    "ica": _ica,
    "gaussian_bernoulli_rbm": _gaussian_bernoulli_rbm,
}

PLANE = ("eight_gaussians", "rings", "two_moons", "checkerboard")
SMOOTH = ("eight_gaussians", "rings", "two_moons")
HIGH = ("ica_10", "ica_50", "rbm_10")
"""Targets in many dimensions, which have an exact model of their own family."""


class Sections(NamedTuple):
    """Sections of a config that depend on the target."""

    data: dict[str, Any]
    network: dict[str, Any]
    evaluation: dict[str, Any]


def _mlp() -> dict[str, Any]:
    return {
        "name": "mlp",  # or the family of a target in many dimensions
        "widths": (64, 64, 64),  # units of the hidden layers
        "activation": "swish",  # or "softplus", "leaky_relu" and others
    }


def _in_plane(data: dict[str, Any], bound: float, is_smooth: bool = True) -> Sections:
    return Sections(
        data,
        network=_mlp(),
        evaluation={
            "name": "plane",  # on a grid; or "draws", by samples; "table" of your own
            "bound": bound,  # x; the grid is [-bound, bound]^2, twice the data's width
            "num_points": 800,  # points of the grid along a side
            "is_smooth": is_smooth,  # False if the target has no score
        },
    )


def _in_space(data: dict[str, Any], network: Mapping[str, Any] = {}) -> Sections:
    return Sections(
        data,
        network={"name": data["name"], **network},
        evaluation={
            "name": "draws",
            "num_examples": 20_000,  # draws of the target
            "num_samples": 1_000,  # draws of the model, which are saved
        },
    )


TARGETS = {
    "eight_gaussians": _in_plane(
        data={
            "name": "eight_gaussians",  # one of CONSTRUCTORS, with its own options
            "radius": 2.0,  # x; of the circle of the means
            # Neighbours are five standard deviations apart: the modes still overlap.
            "std": 0.3,  # x; standard deviation of a mode or of a ring
        },
        bound=6.0,
    ),
    "rings": _in_plane(
        data={
            "name": "rings",
            "radii": (1.0, 2.0, 3.0, 4.0),  # x; of the rings
            "std": 0.15,
        },
        bound=8.0,
    ),
    "two_moons": _in_plane(
        data={
            "name": "two_moons",
            "noise_scale": 0.1,  # x; standard deviation of the noise on the moons
        },
        bound=5.0,
    ),
    "checkerboard": _in_plane(
        data={
            "name": "checkerboard",
            "num_squares": 4,  # squares along an edge of the board
            "side": 2.0,  # x; edge of a square
        },
        bound=8.0,
        is_smooth=False,
    ),
    "ica_10": _in_space(data={"name": "ica", "dim": 10, "matrix_seed": 0}),
    "ica_50": _in_space(data={"name": "ica", "dim": 50, "matrix_seed": 0}),
    "rbm_10": _in_space(
        data={
            "name": "gaussian_bernoulli_rbm",
            "dim": 10,  # dimensions of an example
            "num_hidden": 5,  # binary units
            "weight_scale": 1.0,  # size of every weight, 1 / x
            "matrix_seed": 0,  # seed of the target's random matrices
        },
        network={"num_hidden": 5},  # binary units of the model
    ),
}


OWN = Sections(
    data=own_section(batch_size=256),
    network=_mlp(),
    evaluation={
        "name": "table",
        "num_chains": 1_000,  # chains of annealed importance sampling
        "num_fractions": 500,  # densities from the reference to the model
        "num_leapfrog": 5,  # leapfrog steps in a move
        "num_long": 500,  # moves of the chains before they go back
        "num_importance": 100_000,  # draws of the reference
        "chunk_size": 10_000,  # of these draws
    },
)
"""Sections of the target `own`, a table of the user."""


def resampled(rows: np.ndarray) -> targets.Target:
    """Returns the target whose draws are rows `[n, d]`, with replacement."""
    rows = jnp.asarray(rows)

    def sample(key, num):
        return rows[jax.random.randint(key, (num,), 0, len(rows))]

    return targets.Target(sample, energy_fn=None, log_partition=None)


def make_target(section: Mapping[str, Any]) -> targets.Target:
    """Returns the target of a config's section `data`."""
    options = {key: value for key, value in section.items() if key != "batch_size"}
    return construct("data", options, CONSTRUCTORS)
