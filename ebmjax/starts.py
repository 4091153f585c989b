"""Where training's chains begin. Choosing a start chooses the method.

`noise` gives short-run learning, `data` contrastive divergence (CD-k), `replay`
persistent contrastive divergence with a replay buffer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.types import Array, Key

__all__ = ["Start", "data", "noise", "replay"]


class Start(NamedTuple):
    """Three functions on a memory of past chains.

    Attributes:
      init: `init(key) -> memory`; `()` where nothing is remembered.
      draw: `draw(key, memory, batch) -> (x, slots)`: as many beginnings as the batch
        has examples, and where in the memory they came from.
      write: `write(memory, slots, x) -> memory`: stores the chains' ends.
    """

    init: Callable[[Key], Any]
    draw: Callable[[Key, Any, Array], tuple[Array, Any]]
    write: Callable[[Any, Any, Array], Any]


def _forget(memory, slots, x):
    del slots, x
    return memory


def noise(draw_noise: Callable[[Key, tuple[int, ...]], Array]) -> Start:
    """Every chain begins at fresh noise: short-run learning.

    Args:
      draw_noise: `draw_noise(key, shape) -> x`, for instance `jax.random.normal`;
        called with the batch's shape `[n, *event]`.
    """
    return Start(
        init=lambda key: (),
        draw=lambda key, memory, batch: (draw_noise(key, batch.shape), ()),
        write=_forget,
    )


def data() -> Start:
    """Chains begin at the batch itself, data noise included: contrastive divergence."""
    return Start(
        init=lambda key: (),
        draw=lambda key, memory, batch: (batch, ()),
        write=_forget,
    )


def replay(
    draw_noise: Callable[[Key, tuple[int, ...]], Array],
    *,
    event_shape: tuple[int, ...],
    capacity: int,
    reinit_prob: float,
) -> Start:
    """Chains go on from a replay buffer: persistent contrastive divergence.

    The memory is an array `[capacity, *event]`, one on every device, filled with noise
    at first. Each draw takes distinct slots uniformly; each drawn chain begins at fresh
    noise instead with `reinit_prob`. A chain's end goes back to the slot it came from.

    Args:
      draw_noise: As for `noise`.
      event_shape: Shape of one example.
      capacity: Chains remembered on each device.
      reinit_prob: Probability, per chain and draw, of beginning anew. 0 never does: a
        persistent chain.

    Raises:
      ValueError: If `capacity` is not positive or `reinit_prob` is not in [0, 1]; when
        a batch is larger than the capacity or its examples have another shape.
    """
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, got {capacity}")
    if not 0 <= reinit_prob <= 1:
        raise ValueError(f"reinit_prob must be in [0, 1], got {reinit_prob}")
    event_shape = tuple(event_shape)

    def init(key):
        return draw_noise(key, (capacity, *event_shape))

    def draw(key, memory, batch):
        num_chains = batch.shape[0]
        if num_chains > capacity:
            raise ValueError(
                f"batch of {num_chains} chains exceeds replay capacity {capacity}"
            )
        if batch.shape[1:] != event_shape:
            raise ValueError(
                f"replay holds examples of shape {event_shape}, the batch has"
                f" {batch.shape[1:]}"
            )
        slots_key, noise_key, reinit_key = jax.random.split(key, 3)
        slots = jax.random.permutation(slots_key, capacity)[:num_chains]
        fresh = draw_noise(noise_key, batch.shape)
        is_fresh = jax.random.bernoulli(reinit_key, reinit_prob, (num_chains,))
        is_fresh = is_fresh.reshape(num_chains, *[1] * len(event_shape))
        return jnp.where(is_fresh, fresh, memory[slots]), slots

    def write(memory, slots, x):
        return memory.at[slots].set(x.astype(memory.dtype))

    return Start(init, draw, write)
