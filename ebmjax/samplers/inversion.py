"""Chains as generators, from an initial position to a final one, and inversion."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ebmjax.checks import check_chains, check_count, check_number
from ebmjax.samplers.sampler import Sampler
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["chain_generator", "invert_chain"]


def chain_generator(
    sampler: Sampler, energy_fn: EnergyFn, num_steps: int, jacobian: str = "autodiff"
) -> Callable[[Key, Array], Array]:
    """Returns the map from a chain's initial to its final position (short-run MCMC).

    See https://arxiv.org/abs/1904.09770.

    With the key fixed, `generate(key, z) -> x` is a deterministic function of `z`: a
    residual network of `num_steps` layers that share the energy's weights. It is a
    generator only with the number of steps with which it was trained.

    Args:
      sampler: Sampler that moves the chain.
      energy_fn: Energy of one example.
      num_steps: Number of moves of the chain; the short-run paper's K.
      jacobian: Derivative of `generate` in `z`. `"autodiff"` is exact and
        differentiates backwards through the chain, which costs second derivatives of
        the energy. Every move is recomputed, so that memory grows with the positions
        alone. `"identity"` takes dx/dz to be the identity at no cost. That is exact if
        the energy is piecewise linear, as leaky-ReLU networks are, and the sampler is
        `langevin` without clips; otherwise it is an approximation.

    Returns:
      `generate(key, z)` for one `z [*event]`.

    Raises:
      ValueError: If `jacobian` is neither of the two.

    Source:
      Nijkamp, Hill, Zhu & Wu (2019), "Learning non-convergent non-persistent short-run
      MCMC toward energy-based model", https://arxiv.org/abs/1904.09770.
    """
    if jacobian not in ("autodiff", "identity"):
        raise ValueError(f"jacobian must be 'autodiff' or 'identity', got {jacobian!r}")

    def run(key: Key, z: Array) -> Array:
        # The same numbers as `sample_chain`, with every move recomputed backwards.
        @jax.checkpoint
        def move(state: Any, step: Array) -> tuple[Any, None]:
            step_key = jax.random.fold_in(key, step)
            return sampler.step(energy_fn, step_key, state)[0], None

        state = sampler.init(energy_fn, z)
        end: Array = jax.lax.scan(move, state, jnp.arange(num_steps))[0].position
        return end

    def run_with_identity(key: Key, z: Array) -> Array:
        return z + jax.lax.stop_gradient(run(key, z) - z)

    return run if jacobian == "autodiff" else run_with_identity


def invert_chain(
    generate: Callable[[Key, Array], Array],
    key: Key,
    z: Array,
    target: Array,
    *,
    num_iterations: int,
    step_size: float,
    observe: Callable[[Array], Array] = lambda x: x,
    project: Callable[[Array], Array] = lambda z: z,
) -> tuple[Array, Array]:
    """Finds by gradient descent initial positions whose chains end at observations.

    See https://arxiv.org/abs/1904.09770.

    The descent minimises `|observe(generate(key, z)) - target|^2` over `z` with the
    chain's noise fixed. With the identity for `observe` it reconstructs, with a mask it
    inpaints, and with a mean over blocks it makes super-resolution. The result is a
    point estimate: no uncertainty is sampled.

    The function returns the best initial position visited, not the last one. The chain
    of a piecewise linear energy jumps where `z` crosses a crease, so a constant step
    does not settle.

    Args:
      generate: Generator from `chain_generator`.
      key: One typed key; every example has noise of its own.
      z: Initial positions at which the descent begins, `[n, *event]`.
      target: Observations of each example, `[n, ...]`, of the shape that `observe`
        returns.
      num_iterations: Number of descent steps.
      step_size: Step size of the descent. The gradient of the sum of squares is twice
        the residual, so 0.5 with the identity Jacobian replaces `z` by
        `z - (x - target)`.
      observe: Function from one example to its observation.
      project: Function that is applied to every `z` after each step, for example a clip
        to the range of the start.

    Returns:
      `(z, losses)`, the visited initial position with the lowest sum of squares for
      each example, `[n, *event]`, and the sums of squares before each step,
      `[num_iterations, n]`.

    Raises:
      ValueError: If `step_size` or `num_iterations` is not positive, or shapes
        disagree.

    Source:
      Nijkamp, Hill, Zhu & Wu (2019), "Learning non-convergent non-persistent short-run
      MCMC toward energy-based model", https://arxiv.org/abs/1904.09770.
    """
    step_size = check_number("step_size", step_size, positive=True)
    check_count("num_iterations", num_iterations, 1)
    z = check_chains(key, z, "z")
    projected = jax.eval_shape(jax.vmap(project), z)
    if (projected.shape, projected.dtype) != (z.shape, z.dtype):
        raise ValueError(
            "project must keep the shape and type of an example,"
            f" {z.dtype}{z.shape[1:]}, got {projected.dtype}{projected.shape[1:]}"
        )
    seen = jax.eval_shape(jax.vmap(observe), z).shape
    if seen != target.shape:
        raise ValueError(
            f"target must be what observe returns, {seen}, got {target.shape}"
        )
    keys = jax.random.split(key, z.shape[0])

    @partial(jax.vmap, in_axes=(0, 0, 0))
    def value_and_gradient(z: Array, key: Key, target: Array) -> tuple[Array, Array]:
        def loss(z: Array) -> Array:
            return jnp.sum((observe(generate(key, z)) - target) ** 2)

        return jax.value_and_grad(loss)(z)

    def descend(
        carry: tuple[Array, Array, Array], _: None
    ) -> tuple[tuple[Array, Array, Array], Array]:
        z, best, least = carry
        losses, gradient = value_and_gradient(z, keys, target)
        is_better = losses < least
        column = is_better.reshape(-1, *[1] * (z.ndim - 1))
        best = jnp.where(column, z, best)
        least = jnp.where(is_better, losses, least)
        # A hyper-parameter of another type must not change the position's.
        z = jax.vmap(project)((z - step_size * gradient).astype(z.dtype))
        return (z, best, least), losses

    least = jnp.full(z.shape[0], jnp.inf)
    (_, best, _), losses = jax.lax.scan(descend, (z, z, least), length=num_iterations)
    return best, losses
