"""Chains that pass through a sequence of energies."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ebmjax.checks import check_chains, check_count, scalar_energy
from ebmjax.samplers.chains import Segment, Walk, as_pytree, no_means
from ebmjax.samplers.layout import (
    chain_keys,
    lay_out,
    over_blocks,
    over_devices,
    pad_chains,
)
from ebmjax.samplers.sampler import Sampler
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["sample_annealed"]


def sample_annealed(
    make_sampler: Callable[[Any], Sampler],
    energy_fns: Callable[[Any], EnergyFn],
    levels: Any,
    key: Key,
    x: Array,
    num_steps_per_level: int,
) -> tuple[Any, Any]:
    """Runs many chains through a sequence of energies, some moves at each.

    At every level in turn the chains go on from where they are, with that level's
    sampler and energy, `num_steps_per_level` moves. What a sampler keeps besides the
    position (cached energies, a momentum) begins anew at every level. The last level's
    law is reached only as far as its own moves bring it there: this anneals, and weighs
    nothing (annealed importance sampling is another thing).

    Annealed Langevin dynamics over noise scales, with `step_size` in our convention and
    functions that are made once, so that new parameters compile nothing:

        def sampler_of(noise_scale):
            return langevin(step_size=c * noise_scale**2)

        def energy_of(params, noise_scale):
            return functools.partial(energy, params, noise_scale)

        sample_annealed(sampler_of, functools.partial(energy_of, params),
                        noise_scales, key, x, num_steps_per_level=100)

    Args:
      make_sampler: `make_sampler(level)` is a level's sampler, all of one kind.
        It is called with a traced level.
      energy_fns: `energy_fns(level)` is a level's `energy_fn`, likewise. Arrays bound
        with `functools.partial` are arguments of the compiled program.
      levels: `[levels, ...]`, or a tree of such arrays, scanned in order.
      key: A typed key.
      x: Where the chains begin, `[chains, *event]`.
      num_steps_per_level: Moves at every level.

    Returns:
      `(state, infos)`: the states at the end of the last level, `[chains, ...]`, and
      each level's means of the infos, `[levels, chains, ...]`.

    Raises:
      ValueError: If there is no level, the levels' arrays differ in length,
        `num_steps_per_level` is not positive, or `x` or `key` are not as in
        `sample_chains`.

    Source:
      Song & Ermon (2019), Algorithm 1, for annealed Langevin dynamics.
    """
    check_count("num_steps_per_level", num_steps_per_level, 1)
    levels = jax.tree.map(jnp.asarray, levels)
    shapes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(levels)}
    if len(shapes) != 1 or shapes & {(), (0,)}:
        raise ValueError(
            "levels must be arrays [levels, ...] of one length of at least 1,"
            f" got {jax.tree.map(jnp.shape, levels)}"
        )
    x = check_chains(key, x)
    energy_fns = as_pytree(energy_fns)
    layout = lay_out(x, (energy_fns, levels, key, x))
    return _sample_annealed(
        energy_fns,
        levels,
        key,
        x,
        make_sampler=make_sampler,
        num_steps=num_steps_per_level,
        layout=layout,
    )


@functools.partial(jax.jit, static_argnames=("make_sampler", "num_steps", "layout"))
def _sample_annealed(energy_fns, levels, key, x, *, make_sampler, num_steps, layout):
    num_chains = x.shape[0]
    keys = chain_keys(key, layout.num_chains)
    x = pad_chains(x, layout.num_chains)

    def local(energy_fns, levels, keys, x):
        def block(keys, x):
            def start(level, x):
                sampler, energy_fn = (
                    make_sampler(level),
                    scalar_energy(energy_fns(level)),
                )
                return jax.vmap(functools.partial(sampler.init, energy_fn))(x)

            def anneal(states, inputs):
                index, level = inputs
                sampler = make_sampler(level)
                energy_fn = scalar_energy(energy_fns(level))
                x = states.position
                walk = Walk(sampler, energy_fn, keys, None)
                means = no_means(sampler, energy_fn, x)
                moves = Segment(0, False, num_steps, 1, 0)
                states, (_, means), _ = walk.segment(
                    start(level, x), means, index * num_steps, moves
                )
                return states, means

            # Of the first state only the position is read.
            shapes = jax.eval_shape(start, jax.tree.map(lambda v: v[0], levels), x)
            states = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            states = states._replace(position=x)
            indices = jnp.arange(len(jax.tree.leaves(levels)[0]))
            return jax.lax.scan(anneal, states, (indices, levels))

        return over_blocks(block, layout, (0, 1))(keys, x)

    states, means = over_devices(local, layout, (None, None, 0, 0), (0, 1))(
        energy_fns, levels, keys, x
    )
    if layout.num_chains > num_chains:
        states = jax.tree.map(lambda leaf: leaf[:num_chains], states)
        means = jax.tree.map(lambda leaf: leaf[:, :num_chains], means)
    return states, means
