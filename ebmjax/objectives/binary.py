"""Objectives for data of two values: an example beside those with one element flipped.

Both are blind to the log partition function, cost an energy for every element, and have
the data's own distribution as their minimum, if the energy can be it.
"""

import jax
import jax.numpy as jnp

from ebmjax.checks import check_values
from ebmjax.objectives.base import Objective, as_function, averaged
from ebmjax.types import Array, Energy, Network

__all__ = ["minimum_probability_flow", "ratio_matching"]


def ratio_matching(
    energy: Energy | Network, *, values: tuple[float, float] = (0.0, 1.0)
) -> Objective:
    """Squared distance of every element's conditional probability from 1.

    `sum_i (1 - p(x_i | the others))^2`, with `p(x_i | the others) = 1 / (1 + exp(E(x) -
    E(x with i flipped)))`: a proper score of every conditional.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      values: The two values of an element.

    Returns:
      A stateless `Objective`. Metrics: `conditional_prob`, the mean of `p(x_i | the
      others)`.

    Raises:
      ValueError: If the two values are equal; at trace, if data cannot have them.

    Source:
      Hyvarinen (2007), "Some extensions of score matching".
    """
    flips = energies_of_flips(energy, values)

    def example_loss(params, key, x):
        here, flipped = flips(params, x)
        misses = jax.nn.sigmoid(here - flipped)
        return jnp.sum(misses**2), {"conditional_prob": jnp.mean(1 - misses)}

    return averaged(example_loss)


def minimum_probability_flow(
    energy: Energy | Network, *, values: tuple[float, float] = (0.0, 1.0)
) -> Objective:
    """Probability that flows from data to their neighbours as dynamics set in.

    `sum_i exp((E(x) - E(x with i flipped)) / 2)`: the rate at which dynamics with the
    model as their equilibrium would leave an example, by single flips. Flows between
    examples are counted too, which leaves the minimum where it is for data drawn from
    the model; the paper leaves them out, to fit a few states exactly.

    Args:
      energy: As in `ratio_matching`.
      values: The two values of an element.

    Returns:
      A stateless `Objective` without metrics.

    Raises:
      ValueError: If the two values are equal; at trace, if data cannot have them.

    Source:
      Sohl-Dickstein, Battaglino & DeWeese (2011), "Minimum probability flow learning".
    """
    flips = energies_of_flips(energy, values)

    def example_loss(params, key, x):
        here, flipped = flips(params, x)
        return jnp.sum(jnp.exp(0.5 * (here - flipped))), {}

    return averaged(example_loss)


def energies_of_flips(energy: Energy | Network, values: tuple[float, float]):
    """`(params, x) -> (energy [], energies with element i flipped [d])`."""
    energy = as_function(energy)
    check_values(values, float)
    low, high = values

    def flips(params, x: Array):
        check_values(values, x.dtype)
        flat = x.reshape(-1)

        def flipped(index):
            other = jnp.where(flat[index] == high, low, high).astype(x.dtype)
            return energy(params["energy"], flat.at[index].set(other).reshape(x.shape))

        here = energy(params["energy"], x)
        return here, jax.lax.map(flipped, jnp.arange(x.size), batch_size=128)

    return flips
