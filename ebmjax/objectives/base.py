"""What an objective is: a loss with a memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ebmjax.types import Array, Energy, Key, Network, Params

__all__ = ["Aux", "Objective", "stateless"]


class Aux(NamedTuple):
    """What a loss returns beside its value.

    Attributes:
      carry: The objective's memory after this call.
      metrics: Scalars to log, by name.
      model_state: The entries of the model state that this call renewed.
    """

    carry: Any
    metrics: dict[str, Array] = {}
    model_state: dict[str, Any] = {}


class Objective(NamedTuple):
    """A loss to minimise, and the memory it needs.

    Attributes:
      init: `init(key) -> carry`; `()` where nothing is remembered.
      loss: `loss(params, key, batch, carry) -> (scalar, Aux)`. `params` is a dict keyed
        by network (`"energy"`, `"generator"`, ...), differentiated in argument 0.
    """

    init: Callable[[Key], Any]
    loss: Callable[[Params, Key, Array, Any], tuple[Array, Aux]]


def stateless(
    loss: Callable[[Params, Key, Array], tuple[Array, dict[str, Array]]],
) -> Objective:
    """An objective without a memory.

    Args:
      loss: `loss(params, key, batch) -> (scalar, metrics)`.
    """

    def with_carry(params, key, batch, carry):
        value, metrics = loss(params, key, batch)
        return value, Aux(carry, metrics)

    return Objective(init=lambda key: (), loss=with_carry)


def as_function(network: Energy | Network) -> Energy:
    """A plain function, from one or from a `Network`."""
    return network.apply if isinstance(network, Network) else network
