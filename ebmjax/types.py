"""The words every other module is written in."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

__all__ = ["BATCH", "DEVICE", "Array", "Energy", "EnergyFn", "Key", "Network", "Params"]

Array = jax.Array
Key = jax.Array
"""A typed PRNG key, as made by `jax.random.key`."""

Params = Any
"""A pytree of arrays."""

Energy = Callable[[Params, Array], Array]
"""`energy(params, x) -> []` for one example `x: [*event]`; `p(x) ~ exp(-energy)`."""

EnergyFn = Callable[[Array], Array]
"""An energy with its parameters bound: `energy_fn(x) -> []`."""

DEVICE = "device"
"""Name of the axis that `pmap` maps: devices, not examples."""

BATCH = "batch"
"""Name of the axis of examples where an objective maps a network with batch statistics
over them: nobody else may look across it."""


class Network(NamedTuple):
    """A pair (or triple) of functions made from a Flax module: see `networks`.

    Attributes:
      init: `init(key) -> (params, model_state)`. `model_state` holds the mutable
        collections (batch statistics, power-iteration vectors); `{}` if none.
      apply: `apply(params, x, ...) -> y` for one example, with what is mutable
        left as it was initialised. An energy network's `apply` is an `Energy`.
      apply_stateful: `apply_stateful(params, model_state, x, ..., train=False)
        -> (y, model_state)`; None for networks without mutable collections.
    """

    init: Callable[[Key], tuple[Params, Any]]
    apply: Callable[..., Array]
    apply_stateful: Callable[..., tuple[Array, Any]] | None = None
