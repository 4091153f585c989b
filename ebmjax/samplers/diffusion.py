"""Reverse-time sampling of diffusions by predictors and correctors."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import check_chains, check_count, check_number, shaped_score
from ebmjax.diffusions import Diffusion
from ebmjax.samplers.closures import as_pytree
from ebmjax.samplers.layout import (
    Layout,
    chain_keys,
    lay_out,
    over_blocks,
    over_devices,
    pad_chains,
)
from ebmjax.samplers.normal import draw_normal
from ebmjax.samplers.recompilation import watched_jit
from ebmjax.types import DEVICE, Array, Key, TimedScoreFn

__all__ = ["DiffusionInfo", "sample_diffusion"]


class DiffusionInfo(NamedTuple):
    """Means over all chains at every step of `sample_diffusion`.

    Attributes:
      score_norm: Mean norm of the score before the predictor's move, `[steps]`, in 1 /
        units of x.
      corrector_step_size: Mean step size of the corrector's moves, `[steps]`, in units
        of x^2; 0 without a corrector.
    """

    score_norm: Array
    corrector_step_size: Array


def _euler_maruyama(
    diffusion: Diffusion, x: Array, score: Array, time: Array, end: Array
) -> tuple[Array, Array]:
    """Returns the mean and the deviation of a step of the reversed equation."""
    length, scale = time - end, diffusion.diffusion_scale(time)
    drift = diffusion.drift_rate(time) * x - scale**2 * score
    return x - length * drift, scale * jnp.sqrt(length)


def _reverse_diffusion(
    diffusion: Diffusion, x: Array, score: Array, time: Array, end: Array
) -> tuple[Array, Array]:
    """Reverses the exact forward step between the two times to first order.

    The forward step is `x_t = ratio x_s + spread n`; the backward one uses the same two
    numbers.
    """
    ratio, spread = _between(diffusion, time, end)
    return (2 - ratio) * x + spread**2 * score, spread


def _ancestral(
    diffusion: Diffusion, x: Array, score: Array, time: Array, end: Array
) -> tuple[Array, Array]:
    """Returns the law of `x_s` given `x_t` and the example that the score predicts."""
    ratio, spread = _between(diffusion, time, end)
    here, there = diffusion.std(time), diffusion.std(end)
    example = (x + here**2 * score) / diffusion.mean_scale(time)
    mean = ratio * there**2 * x + diffusion.mean_scale(end) * spread**2 * example
    return mean / here**2, spread * there / here


def _between(diffusion: Diffusion, time: Array, end: Array) -> tuple[Array, Array]:
    """Returns the law of `x_t` given `x_s`, where `end` is the time s before `time`.

    The result is the factor of `x_s` in the mean, and the standard deviation.
    """
    ratio = diffusion.mean_scale(time) / diffusion.mean_scale(end)
    variance = diffusion.std(time) ** 2 - (ratio * diffusion.std(end)) ** 2
    return ratio, jnp.sqrt(jnp.maximum(variance, 0.0))


PREDICTORS = {
    "reverse_diffusion": _reverse_diffusion,
    "euler_maruyama": _euler_maruyama,
    "ancestral": _ancestral,
}


def sample_diffusion(
    diffusion: Diffusion,
    score_fn: TimedScoreFn,
    key: Key,
    x: Array,
    num_steps: int,
    *,
    predictor: str | None = "reverse_diffusion",
    num_corrections: int = 0,
    signal_to_noise: float = 0.16,
    time_min: float = 1e-3,
    is_denoised: bool = True,
    known: tuple[Array, Array] | None = None,
) -> tuple[Array, DiffusionInfo]:
    """Runs a diffusion (VE, VP or sub-VP SDE) backwards, on all local devices.

    This is the predictor-corrector (PC) sampler of https://arxiv.org/abs/2011.13456,
    which takes equal steps from time 1 on.

    At every time, the corrector comes first: moves of Langevin dynamics that leave the
    law of that time approximately unchanged. Then the predictor takes the chains to the
    next time:

    - "euler_maruyama" discretises the reversed equation;
    - "reverse_diffusion" reverses the exact step of the forward equation to first
      order;
    - "ancestral" draws from the law of the step given the example that the score
      predicts, `(x + std^2 score) / mean_scale`. It is exact if the data are one point.
      For the variance-preserving diffusion it is the step of DDPM
      (https://arxiv.org/abs/2006.11239) with the smaller of its two variances.

    The corrector's step is `2 a (signal_to_noise |n| / |score|)^2` in this library's
    convention. Here `a` is the factor by which the forward step multiplies the
    variance, which is 1 for VE. Both norms are means over all chains on all devices;
    inside a caller's own `pmap` or `shard_map` they are means over the chains of one
    device. If all scores are zero, the corrector does not move. With a corrector,
    chains are therefore not independent: the numbers of a chain depend on the scores of
    the others. Without one, they depend on the chain's key and index alone, as in
    `sample_chains`.

    If `known` is given, this function inpaints by replacement. At every time, before
    any score is computed, the known elements are replaced by their values with that
    time's noise, drawn once. The other elements are thus drawn given noised values at
    every time and never given the values themselves. The law is the conditional one
    only as far as the corrector brings it there, or if the other elements do not depend
    on the known ones.

    Args:
      diffusion: Diffusion from `ebmjax.diffusions`.
      score_fn: `score_fn(x, time) -> [*event]` of one chain. Make it once. Arrays bound
        with `functools.partial` are arguments of the compiled program.
      key: Typed key.
      x: Draws of the prior, `[chains, *event]`, which are `diffusion.prior_std` times
        standard normal numbers.
      num_steps: Number of steps from time 1 to `time_min`.
      predictor: One of the three, or None to use the corrector alone, with the steps'
        times as its levels.
      num_corrections: Number of moves of the corrector at every time.
      signal_to_noise: Signal-to-noise ratio of the corrector.
      time_min: Time at which to stop. It is above 0, because scores do not exist at
        time 0.
      is_denoised: Whether to return, for the last draw, the example that the score
        predicts. Otherwise noise of `std(time_min)` is left in the result.
      known: `(is_known, values)` of the examples. `is_known` is boolean, `[*event]` or
        `[chains, *event]`; `values` is `[chains, *event]`. Only the values at True are
        used, and they are returned unchanged.

    Returns:
      `(x, DiffusionInfo)`, where `x` holds the chains at the end, `[chains, *event]`.

    Raises:
      ValueError: If an option is none of these, there is neither a predictor nor a
        corrector, `known` does not have those shapes, or `x` or `key` do not satisfy
        the requirements of `sample_chains`.

    Source:
      Song et al. (2021), "Score-based generative modeling through stochastic
      differential equations", https://arxiv.org/abs/2011.13456, and its released code.
      "ancestral" is from Ho, Jain & Abbeel (2020), "Denoising diffusion probabilistic
      models", https://arxiv.org/abs/2006.11239.
    """
    if predictor is not None and predictor not in PREDICTORS:
        raise ValueError(
            f"predictor must be one of {sorted(PREDICTORS)} or None, got {predictor!r}"
        )
    check_count("num_steps", num_steps, 1)
    check_count("num_corrections", num_corrections, 0)
    signal_to_noise = check_number("signal_to_noise", signal_to_noise, positive=True)
    if predictor is None and num_corrections == 0:
        raise ValueError("num_corrections must be positive where predictor is None")
    if not 0 < time_min < 1:
        raise ValueError(f"time_min must be between 0 and 1, got {time_min}")
    x = check_chains(key, x)
    known = _check_known(known, x)
    score_fn = as_pytree(score_fn)
    # One block: a corrector sees all chains at once. An accelerator may still compute
    # their scores in blocks.
    layout = lay_out(x, (score_fn, key, x, known))
    layout = layout._replace(
        num_blocks=1, block_size=layout.num_blocks * layout.block_size
    )
    sampled: tuple[Array, DiffusionInfo] = _sample_diffusion(
        score_fn,
        key,
        x,
        known,
        diffusion=diffusion,
        times=tuple(np.linspace(1.0, time_min, num_steps + 1)),
        predictor=predictor,
        num_corrections=num_corrections,
        signal_to_noise=float(signal_to_noise),
        is_denoised=bool(is_denoised),
        layout=layout,
    )
    return sampled


def _check_known(
    known: tuple[Array, Array] | None, x: Array
) -> tuple[Array, Array] | None:
    """Returns `(is_known, values)`, both of `x`'s shape, or None."""
    if known is None:
        return None
    is_known, values = map(jnp.asarray, known)
    if is_known.dtype != bool or is_known.shape not in (x.shape, x.shape[1:]):
        raise ValueError(
            f"known must begin with booleans of shape {x.shape[1:]} or {x.shape}, got"
            f" {is_known.dtype} of shape {is_known.shape}"
        )
    if values.shape != x.shape:
        raise ValueError(f"known values must have shape {x.shape}, got {values.shape}")
    return jnp.broadcast_to(is_known, x.shape), values.astype(x.dtype)


@watched_jit(
    "sample_diffusion",
    ("diffusion", "score_fn"),
    static_argnames=(
        "diffusion",
        "times",
        "predictor",
        "num_corrections",
        "signal_to_noise",
        "is_denoised",
        "layout",
    ),
)
def _sample_diffusion(
    score_fn: TimedScoreFn,
    key: Key,
    x: Array,
    known: tuple[Array, Array] | None,
    *,
    diffusion: Diffusion,
    times: tuple[float, ...],
    predictor: str | None,
    num_corrections: int,
    signal_to_noise: float,
    is_denoised: bool,
    layout: Layout,
) -> tuple[Array, DiffusionInfo]:
    num_chains = x.shape[0]
    keys = chain_keys(key, layout.num_chains)
    is_real = jnp.arange(layout.num_chains) < num_chains
    x, known = pad_chains((x, known), layout.num_chains)
    path = jnp.asarray(times, jnp.promote_types(x.dtype, jnp.float32))

    def local(
        score_fn: TimedScoreFn,
        keys: Key,
        x: Array,
        known: tuple[Array, Array] | None,
        is_real: Array,
    ) -> tuple[Array, DiffusionInfo]:
        def scores_of(x: Array, time: Array) -> Array:
            def block(x: Array) -> tuple[Array]:
                return (jax.vmap(lambda x: shaped_score(score_fn)(x, time))(x),)

            scores: Array = over_blocks(block, layout, (0,))(x)[0]
            return scores

        def mean_norm(vectors: Array) -> Array:
            """Returns the mean norm over the chains of all devices except padding."""
            norms = jnp.sqrt(jnp.sum(vectors.reshape(len(vectors), -1) ** 2, axis=1))
            total = jnp.sum(jnp.where(is_real, norms, 0.0))
            if layout.num_devices > 1:
                total = jax.lax.psum(total, DEVICE)
            return total / num_chains

        def noise_of(index: int | Array, place: int | Array) -> Array:
            def draw(key: Key) -> Array:
                key = jax.random.fold_in(jax.random.fold_in(key, index), place)
                return draw_normal(key, x.shape[1:], x.dtype)

            return jax.vmap(draw)(keys)

        def replacement(index: int | Array, time: Array) -> Callable[[Array], Array]:
            """Returns a function that puts noised known values in their place."""
            if known is None:
                return lambda x: x
            is_known, values = known
            noise = noise_of(index, 1 + num_corrections)
            noised = diffusion.mean_scale(time) * values + diffusion.std(time) * noise
            return lambda x: jnp.where(is_known, noised, x).astype(x.dtype)

        def step(
            x: Array, inputs: tuple[Array, Array, Array]
        ) -> tuple[Array, DiffusionInfo]:
            index, time, end = inputs
            ratio, _ = _between(diffusion, time, end)
            put_back = replacement(index, time)

            def correct(x: Array, place: Array) -> tuple[Array, Array]:
                x = put_back(x)
                score, noise = scores_of(x, time), noise_of(index, place)
                norm = mean_norm(score)
                signal = signal_to_noise * mean_norm(noise) / norm
                # A score of zero, with which networks begin, determines no step.
                length = jnp.where(norm == 0, 0.0, 2 * ratio**2 * signal**2)
                moved = x + length * score + jnp.sqrt(2 * length) * noise
                return moved.astype(x.dtype), length

            length = jnp.zeros((), path.dtype)
            if num_corrections:
                places = 1 + jnp.arange(num_corrections)
                x, lengths = jax.lax.scan(correct, x, places)
                length = lengths.mean()
            x = put_back(x)
            score = scores_of(x, time)
            norm = mean_norm(score)
            if predictor is not None:
                mean, spread = PREDICTORS[predictor](diffusion, x, score, time, end)
                x = (mean + spread * noise_of(index, 0)).astype(x.dtype)
            return x, DiffusionInfo(norm, length)

        indices = jnp.arange(len(path) - 1)
        x, info = jax.lax.scan(step, x, (indices, path[:-1], path[1:]))
        last = path[-1]
        x = replacement(len(path) - 1, last)(x)
        if is_denoised:
            example = x + diffusion.std(last) ** 2 * scores_of(x, last)
            x = (example / diffusion.mean_scale(last)).astype(x.dtype)
        if known is not None:
            is_known, values = known
            x = jnp.where(is_known, values, x)
        return x, info

    x, info = over_devices(local, layout, (None, 0, 0, 0, 0), (0, None))(
        score_fn, keys, x, known, is_real
    )
    return x[:num_chains], info
