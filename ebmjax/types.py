"""The types that all other modules use.

The functions that the library takes and returns are protocols. Their arguments are
passed by position, so a user's function may name them differently, and a
`functools.partial` may bind the first of them.
"""

from typing import Any, NamedTuple, Protocol

import jax

__all__ = [
    "Array",
    "Aux",
    "BATCH",
    "ConditionalEnergy",
    "ConditionalScore",
    "DEVICE",
    "DrawNoise",
    "Energy",
    "EnergyFn",
    "Key",
    "Metrics",
    "Network",
    "NetworkApply",
    "NetworkApplyStateful",
    "NetworkInit",
    "Objective",
    "ObjectiveInit",
    "ObjectiveLoss",
    "Params",
    "SamplerInit",
    "SamplerStep",
    "Score",
    "StartDraw",
    "StartInit",
    "StartWrite",
    "TimedScoreFn",
]

Array = jax.Array
Key = jax.Array
"""Typed PRNG key, as `jax.random.key` makes it."""

Params = Any
"""A pytree of arrays."""

Metrics = dict[str, Array]
"""Scalars to log, by name."""

DEVICE = "device"
"""Name of the axis that `pmap` maps: devices, not examples."""

BATCH = "batch"
"""Name of the axis of examples over which an objective maps a network with batch
statistics. Nothing else may combine values across it."""


class Energy(Protocol):
    """Energy `energy(params, x) -> []` of one example `x [*event]`, in nats.

    It means the density `p(x) ~ exp(-energy(params, x))`.
    """

    def __call__(self, params: Params, x: Array, /) -> Array: ...


class EnergyFn(Protocol):
    """Energy with its parameters bound, `energy_fn(x) -> []`."""

    def __call__(self, x: Array, /) -> Array: ...


class ConditionalEnergy(Protocol):
    """Energies `energy(params, x, condition) -> []`, one for every condition.

    The condition is the scale of the noise in the example, the time of a diffusion, or
    the number of a bridge.
    """

    def __call__(self, params: Params, x: Array, condition: Array, /) -> Array: ...


class Score(Protocol):
    """Score `score(params, x) -> [*event]`, the gradient of the log density in `x`."""

    def __call__(self, params: Params, x: Array, /) -> Array: ...


class ConditionalScore(Protocol):
    """Scores `score(params, x, condition) -> [*event]`, one for every condition.

    The condition is the scale of the noise in the example or the time of a diffusion.
    """

    def __call__(self, params: Params, x: Array, condition: Array, /) -> Array: ...


class TimedScoreFn(Protocol):
    """Score of a diffusion, parameters bound, `score_fn(x, time) -> [*event]`."""

    def __call__(self, x: Array, time: Array, /) -> Array: ...


class NetworkInit(Protocol):
    """Initialiser of a network, `init(key) -> (params, model_state)`."""

    def __call__(self, key: Key, /) -> tuple[Params, dict[str, Any]]: ...


class NetworkApply(Protocol):
    """Value of a network for one example, `apply(params, x, ...) -> y`."""

    def __call__(self, params: Params, /, *arguments: Any, **options: Any) -> Array: ...


class NetworkApplyStateful(Protocol):
    """Value of a network with mutable collections, which it renews in training.

    The call is `apply_stateful(params, model_state, x, ..., train=False)`, and the
    result `(y, model_state)`.
    """

    def __call__(
        self,
        params: Params,
        model_state: dict[str, Any],
        /,
        *arguments: Any,
        **options: Any,
    ) -> tuple[Array, dict[str, Any]]: ...


class Network(NamedTuple):
    """Functions of a Flax module, as the factories in `networks` return them.

    Attributes:
      init: `init(key) -> (params, model_state)`. `model_state` holds the mutable
        collections (batch statistics, power-iteration vectors), and is `{}` if there
        are none.
      apply: `apply(params, x, ...) -> y` for one example, with the mutable collections
        as they were initialised. An energy network's `apply` is an `Energy`.
      apply_stateful: `apply_stateful(params, model_state, x, ..., train=False) -> (y,
        model_state)`; None for networks without mutable collections.
    """

    init: NetworkInit
    apply: NetworkApply
    apply_stateful: NetworkApplyStateful | None = None


class SamplerInit(Protocol):
    """Start of a chain, `init(energy_fn, x) -> state` for a position `x [*event]`.

    The state is a NamedTuple with the field `position`.
    """

    def __call__(self, energy_fn: EnergyFn, x: Array, /) -> Any: ...


class SamplerStep(Protocol):
    """Move of a chain, `step(energy_fn, key, state) -> (state, info)`.

    The info is a NamedTuple of scalars.
    """

    def __call__(
        self, energy_fn: EnergyFn, key: Key, state: Any, /
    ) -> tuple[Any, Any]: ...


class DrawNoise(Protocol):
    """Noise `draw_noise(key, shape) -> x`, for instance `jax.random.normal`."""

    def __call__(self, key: Key, shape: tuple[int, ...], /) -> Array: ...


class StartInit(Protocol):
    """Initialiser of a start's memory, `init(key) -> memory`."""

    def __call__(self, key: Key, /) -> Any: ...


class StartDraw(Protocol):
    """Draw of initial positions, `draw(key, memory, batch) -> (x, slots)`."""

    def __call__(self, key: Key, memory: Any, batch: Array, /) -> tuple[Array, Any]: ...


class StartWrite(Protocol):
    """Storage of final positions, `write(memory, slots, x) -> memory`."""

    def __call__(self, memory: Any, slots: Any, x: Array, /) -> Any: ...


class Aux(NamedTuple):
    """Results of a loss in addition to its value.

    Attributes:
      carry: Memory of the objective after this call.
      metrics: Scalars to log, by name, each `[]`.
      model_state: Entries of the model state that this call renewed.
    """

    carry: Any
    metrics: Metrics = {}
    model_state: dict[str, Any] = {}


class ObjectiveInit(Protocol):
    """Initialiser of an objective's memory, `init(key) -> carry`."""

    def __call__(self, key: Key, /) -> Any: ...


class ObjectiveLoss(Protocol):
    """Loss of a batch, `loss(params, key, batch, carry) -> (scalar, Aux)`."""

    def __call__(
        self, params: dict[str, Params], key: Key, batch: Array, carry: Any, /
    ) -> tuple[Array, Aux]: ...


class Objective(NamedTuple):
    """Loss to minimise, and the memory it needs.

    Attributes:
      init: `init(key) -> carry`, where the carry is `()` if nothing is remembered.
      loss: `loss(params, key, batch, carry) -> (scalar, Aux)`. `params` is a dict keyed
        by network (`"energy"`, `"generator"`, ...), and the loss is differentiated in
        this argument.
    """

    init: ObjectiveInit
    loss: ObjectiveLoss
