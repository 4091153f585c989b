"""Initial positions of the chains of training, whose choice makes the method.

`noise` gives short-run learning (https://arxiv.org/abs/1904.09770), `data` contrastive
divergence (CD-k, Hinton 2002), and `replay` persistent contrastive divergence (PCD,
Tieleman 2008) with a replay buffer (https://arxiv.org/abs/1903.08689).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ebmjax.checks import check_count
from ebmjax.types import Array, DrawNoise, Key, StartDraw, StartInit, StartWrite

__all__ = ["Start", "data", "noise", "replay"]

RARE = 64
"""Bits of the probability with which a draw of slots may repeat a slot, 2^-64."""


class Start(NamedTuple):
    """Three functions on a memory of past chains.

    Attributes:
      init: `init(key) -> memory`, where the memory is `()` if nothing is remembered.
      draw: `draw(key, memory, batch) -> (x, slots)`. `x` is as many initial positions
        as the batch has examples, `[n, *event]`, in units of x, and `slots` is the
        places in the memory from which they came.
      write: `write(memory, slots, x) -> memory`, which stores the chains' final
        positions.
    """

    init: StartInit
    draw: StartDraw
    write: StartWrite


def _forget(memory: Any, slots: Any, x: Array) -> Any:
    del slots, x
    return memory


def noise(draw_noise: DrawNoise) -> Start:
    """Returns a start at fresh noise for every chain, as in short-run learning.

    See https://arxiv.org/abs/1904.09770.

    Args:
      draw_noise: `draw_noise(key, shape) -> x`, for instance `jax.random.normal`; it is
        called with the batch's shape `[n, *event]`.

    Returns:
      A `Start` without a memory.

    Source:
      Nijkamp, Hill, Zhu & Wu (2019), "Learning non-convergent non-persistent short-run
      MCMC toward energy-based model", https://arxiv.org/abs/1904.09770.
    """
    return Start(
        init=lambda key: (),
        draw=lambda key, memory, batch: (draw_noise(key, batch.shape), ()),
        write=_forget,
    )


def data() -> Start:
    """Returns a start at the batch itself, data noise included, as in CD-k.

    See https://doi.org/10.1162/089976602760128018.

    Returns:
      A `Start` without a memory.

    Source:
      Hinton (2002), "Training products of experts by minimizing contrastive
      divergence", Neural Computation 14, https://doi.org/10.1162/089976602760128018.
    """
    return Start(
        init=lambda key: (),
        draw=lambda key, memory, batch: (batch, ()),
        write=_forget,
    )


def replay(
    draw_noise: DrawNoise,
    *,
    event_shape: tuple[int, ...],
    capacity: int,
    reinit_prob: float,
) -> Start:
    """Returns a start from a replay buffer, as in persistent CD (PCD).

    See https://doi.org/10.1145/1390156.1390290 (PCD) and
    https://arxiv.org/abs/1903.08689.

    The memory is an array `[capacity, *event]`, one on every device, which is filled
    with noise at first. Each draw takes distinct slots uniformly. With `reinit_prob`, a
    drawn chain begins at fresh noise instead. The chain's final position is written to
    the slot from which the chain came.

    Args:
      draw_noise: `draw_noise(key, shape) -> x`, as for `noise`.
      event_shape: Shape of one example.
      capacity: Number of chains remembered on each device.
      reinit_prob: Probability, per chain and draw, of starting anew. With 0 the chains
        are persistent and never start anew.

    Returns:
      A `Start` whose memory is the buffer.

    Raises:
      ValueError: If `capacity` is not positive or `reinit_prob` is not in [0, 1]. At
        trace, if a batch is larger than the capacity or its examples have another
        shape.

    Source:
      Tieleman (2008), "Training restricted Boltzmann machines using approximations to
      the likelihood gradient", ICML, https://doi.org/10.1145/1390156.1390290. The
      buffer: Du & Mordatch (2019), "Implicit generation and modeling with energy-based
      models", https://arxiv.org/abs/1903.08689.
    """
    check_count("capacity", capacity, 1)
    if not 0 <= reinit_prob <= 1:
        raise ValueError(f"reinit_prob must be in [0, 1], got {reinit_prob}")
    event_shape = tuple(event_shape)

    def init(key: Key) -> Array:
        return draw_noise(key, (capacity, *event_shape))

    def draw(key: Key, memory: Array, batch: Array) -> tuple[Array, Array]:
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
        slots = draw_slots(slots_key, num_chains, capacity)
        fresh = draw_noise(noise_key, batch.shape)
        is_fresh = jax.random.bernoulli(reinit_key, reinit_prob, (num_chains,))
        is_fresh = is_fresh.reshape(num_chains, *[1] * len(event_shape))
        return jnp.where(is_fresh, fresh, memory[slots]), slots

    def write(memory: Array, slots: Array, x: Array) -> Array:
        return memory.at[slots].set(x.astype(memory.dtype))

    return Start(init, draw, write)


def draw_slots(key: Key, num: int, capacity: int) -> Array:
    """Returns `num` distinct slots below `capacity`; all sequences are equally likely.

    They are the first distinct ones of a sequence of uniform slots, which is so long
    that it has too few with a probability of less than 2^-64. This costs two sorts of
    about as many numbers as there are chains. A permutation would sort as many as there
    are slots. It is used where it is the shorter one.
    """
    num_drawn = 1
    if num > 1:
        # With fewer distinct slots, all that are drawn are among `num - 1` ones, which
        # can be chosen in so many ways.
        log_ways = math.lgamma(capacity + 1) - math.lgamma(num)
        log_ways -= math.lgamma(capacity - num + 2)
        log_share = math.log(capacity / (num - 1))
        num_drawn = math.ceil((RARE * math.log(2) + log_ways) / log_share)
    if num_drawn >= capacity:
        return jax.random.permutation(key, capacity)[:num]
    drawn = jax.random.randint(key, (num_drawn,), 0, capacity)
    order = jnp.argsort(drawn, stable=True)  # equal slots in the order of their draws
    is_repeated = jnp.diff(drawn[order], prepend=-1) == 0
    places = jnp.sort(jnp.where(is_repeated, num_drawn, order))
    return drawn[places[:num]]
