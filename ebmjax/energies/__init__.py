"""Energies in closed form, and operators that act on any energy.

An energy is `energy(params, x) -> []` for one example `x [*event]`; it means the
density `p(x) ~ exp(-energy(params, x))`. An `energy_fn` is an energy with its
parameters bound. Nothing here handles batches: use `jax.vmap`.
"""

from ebmjax.energies.bijections import (
    Bijection,
    constrained,
    interval,
    joint,
    positive,
    simplex,
)
from ebmjax.energies.closed_forms import (
    gaussian,
    gaussian_bernoulli_rbm,
    gaussian_mixture,
    ica,
)
from ebmjax.energies.operators import (
    divergence,
    from_logdensity,
    from_numpyro_potential,
    from_score,
    hvp,
    laplacian,
    latent_energy,
    score,
    tilt,
)

__all__ = [
    "Bijection",
    "constrained",
    "divergence",
    "from_logdensity",
    "from_numpyro_potential",
    "from_score",
    "gaussian",
    "gaussian_bernoulli_rbm",
    "gaussian_mixture",
    "hvp",
    "ica",
    "interval",
    "joint",
    "laplacian",
    "latent_energy",
    "positive",
    "score",
    "simplex",
    "tilt",
]
