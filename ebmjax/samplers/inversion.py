"""A chain read as a generator: from where it begins to where it ends, and back."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ebmjax.checks import check_number
from ebmjax.samplers.sampler import Sampler
from ebmjax.types import Array, EnergyFn, Key

__all__ = ["chain_generator", "invert_chain"]


def chain_generator(
    sampler: Sampler, energy_fn: EnergyFn, num_steps: int, jacobian: str = "autodiff"
) -> Callable[[Key, Array], Array]:
    """The map from a chain's beginning to its end, `generate(key, z) -> x`.

    With the key held fixed it is a deterministic function of `z`: a residual network of
    `num_steps` layers that share the energy's weights. It is a generator only with the
    number of steps it was trained with.

    Args:
      sampler: Moves the chain.
      energy_fn: Energy of one example.
      num_steps: Moves of the chain; the short-run paper's K.
      jacobian: What differentiating `generate` in `z` gives. `"autodiff"` is exact and
        runs backwards through the chain, which costs second derivatives of the energy
        (every move is recomputed, so that memory grows with the positions alone).
        `"identity"` takes dx/dz to be the identity at no cost: exact where the energy
        is piecewise linear, as leaky-ReLU networks are, if the sampler is `langevin`
        without clips; an approximation elsewhere.

    Returns:
      `generate(key, z)` for one `z: [*event]`.

    Raises:
      ValueError: For another `jacobian`.
    """
    if jacobian not in ("autodiff", "identity"):
        raise ValueError(f"jacobian must be 'autodiff' or 'identity', got {jacobian!r}")

    def run(key, z):
        # The same numbers as `sample_chain`, with every move recomputed backwards.
        @jax.checkpoint
        def move(state, step):
            step_key = jax.random.fold_in(key, step)
            return sampler.step(energy_fn, step_key, state)[0], None

        state = sampler.init(energy_fn, z)
        return jax.lax.scan(move, state, jnp.arange(num_steps))[0].position

    def run_with_identity(key, z):
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
    """Finds beginnings whose chains end at what was observed, by gradient descent.

    Minimises `|observe(generate(key, z)) - target|^2` over `z`, the chain's noise held
    fixed. With the identity for `observe` this reconstructs; with a mask it inpaints,
    with a mean over blocks it makes super-resolution. It is a point estimate: no
    uncertainty is sampled.

    What is returned is the best beginning visited, not the last: the chain of a
    piecewise linear energy jumps where `z` crosses a crease, so that a constant step
    ends in a jitter.

    Args:
      generate: From `chain_generator`.
      key: One typed key; every example has noise of its own.
      z: Where the descent begins, `[n, *event]`.
      target: What is observed of each example, `[n, ...]`, of `observe`'s shape.
      num_iterations: Descent steps.
      step_size: Of the descent; the gradient of the sum of squares is twice the
        residual, so that 0.5 with the identity Jacobian replaces `z` by
        `z - (x - target)`.
      observe: What is seen of one example.
      project: Applied to every `z` after each step, e.g. a clip to the start's range.

    Returns:
      `(z, losses)`: for each example the visited beginning with the lowest sum of
      squares, `[n, *event]`, and the sums of squares before each step,
      `[num_iterations, n]`.

    Raises:
      ValueError: If `step_size` or `num_iterations` is not positive or shapes disagree.
    """
    check_number("step_size", step_size, positive=True)
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    seen = jax.eval_shape(jax.vmap(observe), z).shape
    if seen != target.shape:
        raise ValueError(
            f"target must be what observe returns, {seen}, got {target.shape}"
        )
    keys = jax.random.split(key, z.shape[0])

    @partial(jax.vmap, in_axes=(0, 0, 0))
    def value_and_gradient(z, key, target):
        def loss(z):
            return jnp.sum((observe(generate(key, z)) - target) ** 2)

        return jax.value_and_grad(loss)(z)

    def descend(carry, _):
        z, best, least = carry
        losses, gradient = value_and_gradient(z, keys, target)
        is_better = losses < least
        column = is_better.reshape(-1, *[1] * (z.ndim - 1))
        best = jnp.where(column, z, best)
        least = jnp.where(is_better, losses, least)
        z = jax.vmap(project)(z - step_size * gradient)
        return (z, best, least), losses

    least = jnp.full(z.shape[0], jnp.inf)
    (_, best, _), losses = jax.lax.scan(descend, (z, z, least), length=num_iterations)
    return best, losses
