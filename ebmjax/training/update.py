"""The update that all methods share, for one device among several."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ebmjax.training.state import Player, TrainState
from ebmjax.types import DEVICE, Array, Aux, Key, Metrics, Params

__all__ = ["count_updates", "make_update"]

Update = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
"""Function `update(state, batch) -> (state, scalars)`; a batch may be a pytree."""

Turn = tuple[dict[str, Params], dict[str, Any], Any, Any]
"""Trained parameters, model state, optimizer state and carry of a player."""


def make_update(
    players: Mapping[str, Player], *, ema_decay: float | None = None
) -> Update:
    """Returns one training step of one device, to be mapped over the axis `DEVICE`.

    Players take turns in the order of the dict, and later ones use the parameters that
    earlier ones have changed. A turn is `num_updates` inner updates, each on its own
    microbatch: the gradient of the objective in the player's own parameters, the mean
    over devices, and an optimizer step. A player with `num_accumulated` above 1 takes
    its gradient over a microbatch in parts, one after another.

    Args:
      players: Players by name.
      ema_decay: Decay of the average, which is updated as
        `ema_params = decay * ema_params + (1 - decay) * params` after every step; None
        keeps no average.

    Returns:
      The function `update(state, batch) -> (state, scalars)`. The batch is
      `[microbatches, size, *event]`, or a pytree of such arrays, where `microbatches`
      is the sum of all `num_updates`. Scalars are `"<player>/<metric>"` and
      `"<player>/loss"`, means over devices and inner updates, which are the same on
      every device. `"<player>/params_gradient_norm"` is the norm of the mean gradient.

    Raises:
      ValueError: At trace, for a batch with another number of microbatches, a size that
        a player's `num_accumulated` does not divide, an objective that renews model
        state that the state lacks, a metric that is not a scalar, or a state with an
        average that this update would not update.
    """
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")
    num_microbatches = count_updates(players)

    def take_turn(
        name: str,
        player: Player,
        key: Key,
        batch: Any,
        params: dict[str, Params],
        model_state: dict[str, Any],
        opt_state: Any,
        carry: Any,
    ) -> tuple[Turn, Metrics]:
        def inner_update(turn: Turn, inputs: tuple[Array, Any]) -> tuple[Turn, Metrics]:
            trained, model_state, opt_state, carry = turn
            index, microbatch = inputs

            def differentiate(
                key: Key, batch: Any, carry: Any
            ) -> tuple[dict[str, Params], dict[str, Any], Metrics, Any]:
                def loss(trained: dict[str, Params]) -> tuple[Array, Aux]:
                    return player.objective.loss(
                        params | model_state | trained, key, batch, carry
                    )

                (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
                _check_aux(name, aux, model_state)
                metrics = jax.tree.map(jnp.float32, {"loss": value, **aux.metrics})
                return gradient, aux.model_state, metrics, aux.carry

            inner_key = jax.random.fold_in(key, index)
            if player.num_accumulated == 1:
                *found, carry = differentiate(inner_key, microbatch, carry)
            else:
                *found, carry = _accumulate(
                    differentiate, player.num_accumulated, inner_key, microbatch, carry
                )
            # Devices meet here, and in layers whose batch statistics are synchronised.
            gradient, renewed, metrics = jax.tree.map(
                lambda x: jax.lax.pmean(x, DEVICE).astype(x.dtype), tuple(found)
            )
            metrics["params_gradient_norm"] = optax.tree.norm(gradient)
            change, opt_state = player.optimizer.update(gradient, opt_state, trained)
            trained = optax.apply_updates(trained, change)
            return (trained, model_state | renewed, opt_state, carry), metrics

        trained = {k: params[k] for k in player.trains}
        turn = trained, model_state, opt_state, carry
        if player.num_updates == 1:
            # There is no loop, not even an unrolled one: XLA's CPU compiler still sees
            # it when it chooses how to convolve, and chooses the slow way.
            first = jax.tree.map(lambda x: x[0], batch)
            turn, metrics = inner_update(turn, (jnp.zeros((), jnp.int32), first))
        else:
            inputs = jnp.arange(player.num_updates), batch
            turn, metrics = jax.lax.scan(inner_update, turn, inputs)
        scalars = {f"{name}/{key}": jnp.mean(x) for key, x in metrics.items()}
        return turn, scalars

    def update(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        for leaf in jax.tree.leaves(batch):
            if leaf.ndim < 2 or leaf.shape[0] != num_microbatches:
                raise ValueError(
                    "batch must be [microbatches, size, *event] on each device, with"
                    f" {num_microbatches} microbatches for players {list(players)};"
                    f" got shape {leaf.shape}"
                )
            check_parts(players, leaf.shape[1])
        if ema_decay is None and state.ema_params is not None:
            raise ValueError("state has ema_params, but the update has no ema_decay")
        key = jax.random.fold_in(state.key, state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index(DEVICE))
        params, model_state = state.params, state.model_state
        opt_state, carry = dict(state.opt_state), dict(state.carry)
        scalars: Metrics = {}
        first = 0
        for index, (name, player) in enumerate(players.items()):
            last = first + player.num_updates
            turn, metrics = take_turn(
                name,
                player,
                jax.random.fold_in(key, index),
                jax.tree.map(lambda x, a=first, b=last: x[a:b], batch),
                params,
                model_state,
                opt_state[name],
                carry[name],
            )
            trained, model_state, opt_state[name], carry[name] = turn
            params, scalars, first = params | trained, scalars | metrics, last
        ema_params = None
        if ema_decay is not None:
            # A state without an average starts it from the incoming parameters.
            average = state.params if state.ema_params is None else state.ema_params
            ema_params = optax.incremental_update(params, average, 1 - ema_decay)
        state = TrainState(
            step=state.step + 1,
            key=state.key,
            params=params,
            model_state=model_state,
            ema_params=ema_params,
            opt_state=opt_state,
            carry=carry,
        )
        return state, scalars

    return update


def _accumulate(
    differentiate: Callable[[Key, Any, Any], tuple[Any, ...]],
    num_parts: int,
    key: Key,
    batch: Any,
    carry: Any,
) -> tuple[Any, ...]:
    """Returns the means over parts of a batch, and the carry after the last part.

    Every part has a key of its own. Only the sums are kept, in float32 or better.
    """
    parts = jax.tree.map(
        lambda x: x.reshape(num_parts, x.shape[0] // num_parts, *x.shape[1:]), batch
    )
    first = jax.tree.map(lambda x: x[0], parts)
    *shapes, _ = jax.eval_shape(differentiate, key, first, carry)

    def sum_type(x: Any) -> Any:
        is_whole = jnp.issubdtype(x.dtype, jnp.integer)  # such as a count of renewals
        return x.dtype if is_whole else jnp.promote_types(x.dtype, jnp.float32)

    def mean(total: Array, x: Any) -> Array:
        is_whole = jnp.issubdtype(total.dtype, jnp.integer)
        return total // num_parts if is_whole else (total / num_parts).astype(x.dtype)

    def add(before: tuple[Any, Any], inputs: tuple[Array, Any]) -> Any:
        (sums, carry), (index, part) = before, inputs
        *found, carry = differentiate(jax.random.fold_in(key, index), part, carry)
        sums = jax.tree.map(lambda total, x: total + x, sums, found)
        return (sums, carry), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, sum_type(x)), shapes)
    inputs = jnp.arange(num_parts), parts
    (sums, carry), _ = jax.lax.scan(add, (zeros, carry), inputs)
    return *jax.tree.map(mean, sums, shapes), carry


def _check_aux(name: str, aux: Aux, model_state: dict[str, Any]) -> None:
    """Raises unless metrics and renewed model state have the right form."""
    for key, value in aux.metrics.items():
        if key in ("loss", "params_gradient_norm"):
            raise ValueError(f"player {name!r}: metric {key!r} is the update's own")
        if jnp.shape(value) != ():
            raise ValueError(
                f"player {name!r}: metric {key!r} must be a scalar,"
                f" got shape {jnp.shape(value)}"
            )
    for key, value in aux.model_state.items():
        if key not in model_state:
            raise ValueError(
                f"player {name!r} renews model state {key!r},"
                f" but the state has {sorted(model_state)}"
            )
        got: object = jax.tree.structure(value)
        want: object = jax.tree.structure(model_state[key])
        if got != want:
            raise ValueError(
                f"player {name!r} renews model state {key!r} with another structure:"
                f" {got}, expected {want}"
            )


def count_updates(players: Mapping[str, Player]) -> int:
    """Returns the number of microbatches that one step of the players takes.

    Args:
      players: Players by name.
    """
    return sum(player.num_updates for player in players.values())


def check_parts(players: Mapping[str, Player], size: int) -> None:
    """Raises unless microbatches of this size divide into every player's parts."""
    for name, player in players.items():
        if size % player.num_accumulated:
            raise ValueError(
                f"player {name!r}: the size of a microbatch on each device must be a"
                f" multiple of num_accumulated = {player.num_accumulated}, got {size}"
            )
