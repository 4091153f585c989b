"""Toy densities with exact draws and the exact energy.

The draws and the energy of a `Target` belong to the same law. Energies are minus log
densities, in nats, with log partition function 0. The exceptions are the models
`gaussian_bernoulli_rbm` and `ica`, which have log partition functions of their own. All
targets are two-dimensional except these two and `gaussian_mixture`, which takes any
event.

The defaults are the usual ones, in the units of the papers that introduced them. The
targets have different widths, so state the numbers when you compare methods on several
of them.
"""

from ebmjax.targets.mixtures import (
    eight_gaussians,
    gaussian_mixture,
    twenty_five_gaussians,
)
from ebmjax.targets.models import gaussian_bernoulli_rbm, ica
from ebmjax.targets.plane import checkerboard, rings, swiss_roll, two_moons
from ebmjax.targets.target import Target

__all__ = [
    "Target",
    "checkerboard",
    "eight_gaussians",
    "gaussian_bernoulli_rbm",
    "gaussian_mixture",
    "ica",
    "rings",
    "swiss_roll",
    "twenty_five_gaussians",
    "two_moons",
]
