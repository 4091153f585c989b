"""targets"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ebmjax import targets
from experiments.data import tabular


def unmixing_of(*, dim: int, matrix_seed: int) -> np.ndarray:
    """A random matrix, drawn until its condition is below `dim`."""
    rng = np.random.default_rng(matrix_seed)
    while True:
        unmixing = rng.normal(size=(dim, dim))
        if np.linalg.cond(unmixing) < dim:
            return unmixing


def ica_mixing(*, dim: int, matrix_seed: int) -> np.ndarray:
    """Of sources mixed by a random matrix, and whitened by their exact covariance."""
    mixing = np.linalg.inv(unmixing_of(dim=dim, matrix_seed=matrix_seed))
    # The variance of a standard logistic is pi^2 / 3.
    covariance = math.pi**2 / 3 * mixing.T @ mixing
    return mixing @ np.linalg.inv(np.linalg.cholesky(covariance)).T


def _ica(**options) -> targets.Target:
    return targets.ica(ica_mixing(**options))


def _gaussian_bernoulli_rbm(
    *, dim: int, num_hidden: int, weight_scale: float, matrix_seed: int
) -> targets.Target:
    """Weights of one size and random signs, standard normal biases."""
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


SMOOTH = ("eight_gaussians", "rings", "two_moons")


PLANE = (*SMOOTH, "checkerboard")


ICA = ("ica_10", "ica_50")


RBM = ("rbm_10",)


HIGH = (*ICA, *RBM)


UCI = tabular.SMALL


TARGETS = {
    # Neighbours five standard deviations apart: two modes, but not two worlds.
    "eight_gaussians": {"name": "eight_gaussians", "radius": 2.0, "std": 0.3},
    "rings": {"name": "rings", "radii": (1.0, 2.0, 3.0, 4.0), "std": 0.15},
    "two_moons": {"name": "two_moons", "noise_scale": 0.1},
    "checkerboard": {"name": "checkerboard", "num_squares": 4, "side": 2.0},
    "ica_10": {"name": "ica", "dim": 10, "matrix_seed": 0},
    "ica_50": {"name": "ica", "dim": 50, "matrix_seed": 0},
    "rbm_10": {
        "name": "gaussian_bernoulli_rbm",
        "dim": 10,
        "num_hidden": 5,
        "weight_scale": 1.0,
        "matrix_seed": 0,
    },
}


BOUNDS = {"eight_gaussians": 6.0, "rings": 8.0, "two_moons": 5.0, "checkerboard": 8.0}
"""Densities are integrated over `[-bound, bound]^2`, twice as wide as the data."""


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    distances = ((points[:, None] - centres[None]) ** 2).sum(-1)
    return distances.argmin(1)


def modes_of(section: Mapping[str, Any], points: np.ndarray) -> np.ndarray:
    """Which part of a target in the plane each point `[n, 2]` belongs to, `[n]`."""
    name = section["name"]
    if name == "eight_gaussians":
        angles = np.arange(8) * (math.pi / 4)
        return _nearest(points, np.stack([np.cos(angles), np.sin(angles)], 1))
    if name == "rings":
        radii = np.asarray(section["radii"])
        distance = np.linalg.norm(points, axis=1)
        return np.abs(distance[:, None] - radii[None]).argmin(1)
    if name == "two_moons":
        angles = np.linspace(0, math.pi, 64)
        upper = np.stack([np.cos(angles), np.sin(angles)], 1)
        arcs = np.concatenate([upper, np.array([1.0, 0.5]) - upper])
        return np.concatenate(
            [_nearest(part, arcs) // 64 for part in np.array_split(points, 100)]
        )
    num = section["num_squares"]
    index = np.floor(points / section["side"] + num / 2).clip(-1, num).astype(int) + 1
    return index[:, 0] * (num + 2) + index[:, 1]
