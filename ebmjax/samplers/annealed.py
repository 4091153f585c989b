"""Chains that pass through a sequence of energies, as in annealed Langevin dynamics."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ebmjax.checks import (
    check_chains,
    check_count,
    scalar_energy,
    warn_of_chain_axis,
)
from ebmjax.samplers.closures import as_pytree
from ebmjax.samplers.layout import (
    Layout,
    chain_keys,
    lay_out,
    over_blocks,
    over_devices,
    pad_chains,
)
from ebmjax.samplers.recompilation import watched_jit
from ebmjax.samplers.sampler import Sampler
from ebmjax.samplers.walk import Segment, Walk, no_means
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
    """Runs many chains through a sequence of energies, as in annealed Langevin (NCSN).

    See https://arxiv.org/abs/1907.05600.

    At each level in turn, the chains continue from where they are and make
    `num_steps_per_level` moves with that level's sampler and energy. Everything that a
    sampler keeps besides the position (cached energies, a momentum) starts anew at
    every level. The chains reach the last level's law only as far as that level's own
    moves bring them there. This function anneals but computes no weights; for annealed
    importance sampling see `metrics.annealed_importance_sampling`.

    Annealed Langevin dynamics over noise scales looks as follows, with `step_size` in
    this library's convention. The functions are made once, so new parameters cause no
    new compilation:

        def sampler_of(noise_scale):
            return langevin(step_size=c * noise_scale**2)

        def energy_of(params, noise_scale):
            return functools.partial(energy, params, noise_scale)

        sample_annealed(sampler_of, functools.partial(energy_of, params),
                        noise_scales, key, x, num_steps_per_level=100)

    Args:
      make_sampler: `make_sampler(level)` returns the sampler of a level; all must be of
        one kind. It is called with a traced level.
      energy_fns: `energy_fns(level)` returns the `energy_fn` of a level; it is also
        called with a traced level. Arrays bound with `functools.partial` are arguments
        of the compiled program.
      levels: Array `[levels, ...]`, or a tree of such arrays, which is scanned in
        order.
      key: Typed key.
      x: Initial positions, `[chains, *event]`.
      num_steps_per_level: Number of moves at every level.

    Returns:
      `(state, infos)`, the states at the end of the last level, `[chains, ...]`, and
      the means of the infos over the moves of each level, `[levels, chains, ...]`.

    Raises:
      ValueError: If there is no level, the levels' arrays differ in length,
        `num_steps_per_level` is not positive, or `x` or `key` do not satisfy the
        requirements of `sample_chains`.

    Source:
      Song & Ermon (2019), "Generative modeling by estimating gradients of the data
      distribution", Algorithm 1, https://arxiv.org/abs/1907.05600.
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
    sampled: tuple[Any, Any] = _sample_annealed(
        energy_fns,
        levels,
        key,
        x,
        make_sampler=make_sampler,
        num_steps=num_steps_per_level,
        layout=layout,
    )
    return sampled


@watched_jit(
    "sample_annealed",
    ("make_sampler", "energy_fns"),
    static_argnames=("make_sampler", "num_steps", "layout"),
)
def _sample_annealed(
    energy_fns: Callable[[Any], EnergyFn],
    levels: Any,
    key: Key,
    x: Array,
    *,
    make_sampler: Callable[[Any], Sampler],
    num_steps: int,
    layout: Layout,
) -> tuple[Any, Any]:
    warn_of_chain_axis(energy_fns(jax.tree.map(lambda leaf: leaf[0], levels)), x)
    num_chains = x.shape[0]
    keys = chain_keys(key, layout.num_chains)
    x = pad_chains(x, layout.num_chains)

    def local(
        energy_fns: Callable[[Any], EnergyFn], levels: Any, keys: Key, x: Array
    ) -> tuple[Any, ...]:
        def block(keys: Key, x: Array) -> tuple[Any, Any]:
            def start(level: Any, x: Array) -> Any:
                sampler, energy_fn = (
                    make_sampler(level),
                    scalar_energy(energy_fns(level)),
                )
                return jax.vmap(functools.partial(sampler.init, energy_fn))(x)

            def anneal(states: Any, inputs: tuple[Array, Any]) -> tuple[Any, Any]:
                index, level = inputs
                sampler = make_sampler(level)
                energy_fn = scalar_energy(energy_fns(level))
                x = states.position
                walk = Walk(sampler, energy_fn, keys, None)
                means = no_means(sampler, energy_fn, x)
                moves = Segment(0, False, num_steps, 1, 0)
                (states, _), (_, means), _ = walk.segment(
                    (start(level, x), None), means, index * num_steps, moves
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
