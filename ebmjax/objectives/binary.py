"""Objectives for data of two values, which flip one element of an example at a time.

Neither depends on the log partition function. Both cost one energy for every element,
and their minimum is the data's own distribution if the energy can represent it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebmjax.checks import check_values
from ebmjax.objectives.base import Objective, averaged, scalar_function
from ebmjax.types import Array, Energy, Key, Metrics, Network, Params

__all__ = ["minimum_probability_flow", "ratio_matching"]


def ratio_matching(
    energy: Energy | Network, *, values: tuple[float, float] = (0.0, 1.0)
) -> Objective:
    """Returns the ratio matching (RM) objective of Hyvarinen (2007) for binary data.

    See https://doi.org/10.1016/j.csda.2006.09.003.

    The loss is `sum_i (1 - p(x_i | the others))^2`, the squared distance of every
    element's conditional probability from 1, where `p(x_i | the others) = 1 / (1 +
    exp(E(x) - E(x with i flipped)))`. It is a proper score of every conditional.

    Args:
      energy: `energy(params, x)` of one example, or a `Network`; its parameters are
        `params["energy"]`.
      values: The two values of an element.

    Returns:
      A stateless `Objective`. Its metric `conditional_prob` is the mean of
      `p(x_i | the others)`.

    Raises:
      ValueError: If the two values are equal; at trace, if the data's type cannot
        represent them.

    Source:
      Hyvarinen (2007), "Some extensions of score matching", Computational Statistics &
      Data Analysis 51, https://doi.org/10.1016/j.csda.2006.09.003.
    """
    flips = energies_of_flips(energy, values)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        here, flipped = flips(params, x)
        misses = jax.nn.sigmoid(here - flipped)
        return jnp.sum(misses**2), {"conditional_prob": jnp.mean(1 - misses)}

    return averaged(example_loss, allows_integers=True)


def minimum_probability_flow(
    energy: Energy | Network, *, values: tuple[float, float] = (0.0, 1.0)
) -> Objective:
    """Returns the minimum probability flow (MPF) objective for binary data.

    See https://arxiv.org/abs/0906.4779.

    The loss is `sum_i exp((E(x) - E(x with i flipped)) / 2)`. This is the rate at which
    dynamics of single flips, with the model as their equilibrium, would leave an
    example. Flows between examples are counted too, which does not move the minimum for
    data drawn from the model. The paper leaves them out, in order to fit a few states
    exactly.

    Args:
      energy: Energy or `Network`, as in `ratio_matching`.
      values: The two values of an element.

    Returns:
      A stateless `Objective` without metrics.

    Raises:
      ValueError: If the two values are equal; at trace, if the data's type cannot
        represent them.

    Source:
      Sohl-Dickstein, Battaglino & DeWeese (2011), "Minimum probability flow learning",
      https://arxiv.org/abs/0906.4779.
    """
    flips = energies_of_flips(energy, values)

    def example_loss(params: Params, key: Key, x: Array) -> tuple[Array, Metrics]:
        here, flipped = flips(params, x)
        return jnp.sum(jnp.exp(0.5 * (here - flipped))), {}

    return averaged(example_loss, allows_integers=True)


def energies_of_flips(
    energy: Energy | Network, values: tuple[float, float]
) -> Callable[[Params, Array], tuple[Array, Array]]:
    """Returns `(params, x) -> (energy [], energies with element i flipped [d])`."""
    energy = scalar_function("energy", energy)
    check_values(values, float)
    low, high = values

    def flips(params: Params, x: Array) -> tuple[Array, Array]:
        check_values(values, x.dtype)
        flat = x.reshape(-1)

        def flipped(index: Array) -> Array:
            other = jnp.where(flat[index] == high, low, high).astype(x.dtype)
            return energy(params["energy"], flat.at[index].set(other).reshape(x.shape))

        here = energy(params["energy"], x)
        return here, jax.lax.map(flipped, jnp.arange(x.size), batch_size=128)

    return flips
