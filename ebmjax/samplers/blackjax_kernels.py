"""Samplers that are kernels of BlackJAX."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ebmjax.checks import at_precision
from ebmjax.samplers.sampler import Sampler, named, value
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["from_blackjax"]

NAMES = {"energy": "total_energy", "num_integration_steps": "num_leapfrog"}
"""Fields of BlackJAX's infos that have another name here."""


@named
def from_blackjax(
    algorithm: Callable[..., Any], *, precision: str | None = "highest", **options: Any
) -> Sampler:
    """Returns a sampler that moves by a kernel of BlackJAX.

    See https://arxiv.org/abs/2402.10797.

    The kernel is any MCMC algorithm of BlackJAX, such as NUTS, Barker's proposal or
    MCLMC:

        sampler = samplers.from_blackjax(
            blackjax.nuts, step_size=0.1, inverse_mass_matrix=jnp.ones(3)
        )

    The state of a chain is the kernel's own, which has the position, `logdensity` and
    mostly `logdensity_grad`. The info has `energy` after the move, `[]`, in nats, and
    all scalars of the kernel's info: `acceptance_rate`, `is_divergent`, and what else
    there is. The number of integration steps is called `num_leapfrog`, and the energy
    of position and momentum together `total_energy`. All else, such as the ends of a
    trajectory, is left out, because the infos of all moves are kept.

    The start of a sampler has no key. A kernel that begins with a random momentum, as
    MCLMC does, takes it as a fixed pseudo-random function of the position: chains that
    begin at one place begin with one momentum.

    Args:
      algorithm: Function of BlackJAX, called as `algorithm(logdensity_fn, **options)`.
      precision: Precision of the products in the energy and its gradient, as in `mala`.
      **options: Options of the algorithm.

    Returns:
      A `Sampler` whose state and info are described above.

    Source:
      Cabezas, Corenflos, Lao & Louf (2024), "BlackJAX: Composable Bayesian inference in
      JAX", https://arxiv.org/abs/2402.10797.
    """

    def kernel(energy_fn: EnergyFn) -> Any:
        def logdensity_fn(x: Array) -> Array:
            return -value(energy_fn, x)

        return algorithm(logdensity_fn, **options)

    @at_precision(precision)
    def init(energy_fn: EnergyFn, x: Array) -> Any:
        return kernel(energy_fn).init(x, _key_of(x))

    @at_precision(precision)
    def step(energy_fn: EnergyFn, key: Key, state: Any) -> tuple[Any, Any]:
        state, info = kernel(energy_fn).step(key, state)
        return state, _scalars(state, info)

    return Sampler(init, step)


def _key_of(x: Array) -> Key:
    """Returns a key that depends on all bits of a position."""
    bits = jax.lax.bitcast_convert_type(x.reshape(-1).astype(jnp.float32), jnp.uint32)
    odd = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
    return jax.random.fold_in(
        jax.random.key(0, impl="threefry2x32"), jnp.sum(bits * odd)
    )


def _scalars(state: Any, info: Any) -> Any:
    """Returns the energy of a state, and the scalars of an info of BlackJAX."""
    found = {"energy": -state.logdensity}
    for name, field in info._asdict().items():
        if jax.tree_util.all_leaves([field]) and jnp.shape(field) == ():
            found[NAMES.get(name, name)] = jnp.asarray(field)
    return _info_type(type(info).__name__, tuple(found))(**found)


@functools.lru_cache
def _info_type(name: str, fields: tuple[str, ...]) -> Any:
    """Returns one NamedTuple for each set of fields, so that infos are comparable."""
    return collections.namedtuple(name, fields)
