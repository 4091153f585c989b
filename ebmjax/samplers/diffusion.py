"""Diffusions run backwards: from noise to data, by predictors and correctors."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.checks import check_chains, check_count, check_number, shaped_score
from ebmjax.diffusions import Diffusion
from ebmjax.samplers.chains import as_pytree
from ebmjax.samplers.layout import chain_keys, lay_out, over_devices, pad_chains
from ebmjax.samplers.normal import draw_normal
from ebmjax.types import DEVICE, Array, Key

__all__ = ["DiffusionInfo", "PREDICTORS", "sample_diffusion"]


class DiffusionInfo(NamedTuple):
    """Of every step, means over all chains: `[steps]`.

    Attributes:
      score_norm: Before the predictor's move.
      corrector_step_size: Mean of the corrector's moves; 0 without one.
    """

    score_norm: Array
    corrector_step_size: Array


def _euler_maruyama(diffusion, x, score, time, end):
    """The mean and deviation of a step of the reversed equation."""
    length, scale = time - end, diffusion.diffusion_scale(time)
    drift = diffusion.drift_rate(time) * x - scale**2 * score
    return x - length * drift, scale * jnp.sqrt(length)


def _reverse_diffusion(diffusion, x, score, time, end):
    """The forward step between the two times, exact, and reversed to first order.

    Forward `x_t = ratio x_s + spread n`; backward with the same two numbers.
    """
    ratio, spread = _between(diffusion, time, end)
    return (2 - ratio) * x + spread**2 * score, spread


def _ancestral(diffusion, x, score, time, end):
    """The law of `x_s` given `x_t` and the example that the score points to."""
    ratio, spread = _between(diffusion, time, end)
    here, there = diffusion.std(time), diffusion.std(end)
    example = (x + here**2 * score) / diffusion.mean_scale(time)
    mean = ratio * there**2 * x + diffusion.mean_scale(end) * spread**2 * example
    return mean / here**2, spread * there / here


def _between(diffusion, time, end):
    """`x_t` given `x_s`, from a time `end` before `time`: what its mean is multiplied
    with, and its deviation."""
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
    score_fn: Callable[[Array, Array], Array],
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
    """Runs a diffusion backwards from time 1, in equal steps, on all local devices.

    At every time first the corrector, moves of Langevin dynamics that leave the law of
    that time about as it is, then the predictor, which takes it to the next:

    - "euler_maruyama" discretises the reversed equation;
    - "reverse_diffusion" reverses the exact step of the forward one to first order;
    - "ancestral" draws from the law of the step given the example that the score
      expects, `(x + std^2 score) / mean_scale`. Exact where the data are one point; of
      VP it is DDPM's, with the smaller of its two variances.

    The corrector's step is `2 a (signal_to_noise |n| / |score|)^2` in our convention,
    where `a` is what the forward step multiplies the variance with, 1 for VE, and both
    norms are means over all chains on all devices (inside of a caller's own `pmap` or
    `shard_map` over those of one device alone). Where all scores are zero it stays. So
    chains are not independent with a corrector: a chain's numbers depend on what the
    others' scores are. Without, they depend on its key and index alone, as in
    `sample_chains`.

    With something known, inpainting by replacement: what is known is put back at every
    time, with that time's noise, drawn once, before any score is asked for. The rest
    is then drawn given noised values at every time and not given the values at all: the
    law is the conditional one only as far as the corrector brings it there, or where
    the rest does not depend on what is known.

    Args:
      diffusion: From `ebmjax.diffusions`.
      score_fn: `score_fn(x, time) -> [*event]` of one chain, made once. Arrays bound
        with `functools.partial` are arguments of the compiled program.
      key: A typed key.
      x: Draws of the prior, `[chains, *event]`: `diffusion.prior_std` times standard
        normal ones.
      num_steps: Steps from time 1 to `time_min`.
      predictor: One of the three, or None to go by the corrector alone, with the steps'
        times as levels.
      num_corrections: Moves of the corrector at every time.
      signal_to_noise: Of the corrector.
      time_min: Where to stop: at time 0 scores are not to be had.
      is_denoised: Whether to return, of the last draw, the example that the score
        expects: noise of `std(time_min)` is else left in it.
      known: `(is_known, values)`, of the example: booleans `[*event]` or `[chains,
        *event]`, and `[chains, *event]`, of which those at True are looked at and come
        back as they are.

    Returns:
      `(x, DiffusionInfo)`: `[chains, *event]` at the end.

    Raises:
      ValueError: If an option is none of these, there is neither a predictor nor a
        corrector, `known` is not of those shapes, or `x` or `key` are not as in
        `sample_chains`.

    Source:
      Song et al. (2021), "Score-based generative modeling through stochastic
      differential equations", and its released code.
    """
    if predictor is not None and predictor not in PREDICTORS:
        raise ValueError(
            f"predictor must be one of {sorted(PREDICTORS)} or None, got {predictor!r}"
        )
    check_count("num_steps", num_steps, 1)
    check_count("num_corrections", num_corrections, 0)
    check_number("signal_to_noise", signal_to_noise, positive=True)
    if predictor is None and num_corrections == 0:
        raise ValueError("num_corrections must be positive where predictor is None")
    if not 0 < time_min < 1:
        raise ValueError(f"time_min must be between 0 and 1, got {time_min}")
    x = check_chains(key, x)
    known = _check_known(known, x)
    score_fn = as_pytree(score_fn)
    # One block: a corrector sees all chains at once.
    layout = lay_out(x, (score_fn, key, x, known))
    layout = layout._replace(
        num_blocks=1, block_size=layout.num_blocks * layout.block_size
    )
    return _sample_diffusion(
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


def _check_known(known, x):
    """`(is_known, values)`, both of `x`'s shape, or None."""
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


@functools.partial(
    jax.jit,
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
    score_fn,
    key,
    x,
    known,
    *,
    diffusion,
    times,
    predictor,
    num_corrections,
    signal_to_noise,
    is_denoised,
    layout,
):
    num_chains = x.shape[0]
    keys = chain_keys(key, layout.num_chains)
    is_real = jnp.arange(layout.num_chains) < num_chains
    x, known = pad_chains((x, known), layout.num_chains)
    times = jnp.asarray(times, jnp.promote_types(x.dtype, jnp.float32))
    has_axis = not layout.is_traced and len(layout.devices) > 1

    def local(score_fn, keys, x, known, is_real):
        def scores_of(x, time):
            return jax.vmap(lambda x: shaped_score(score_fn)(x, time))(x)

        def mean_norm(vectors):
            """Over the chains of all devices, without those that fill up."""
            norms = jnp.sqrt(jnp.sum(vectors.reshape(len(vectors), -1) ** 2, axis=1))
            total = jnp.sum(jnp.where(is_real, norms, 0.0))
            return (jax.lax.psum(total, DEVICE) if has_axis else total) / num_chains

        def noise_of(index, place):
            def draw(key):
                key = jax.random.fold_in(jax.random.fold_in(key, index), place)
                return draw_normal(key, x.shape[1:], x.dtype)

            return jax.vmap(draw)(keys)

        def replacement(index, time):
            """Puts what is known, with noise of a time, in its place."""
            if known is None:
                return lambda x: x
            is_known, values = known
            noise = noise_of(index, 1 + num_corrections)
            noised = diffusion.mean_scale(time) * values + diffusion.std(time) * noise
            return lambda x: jnp.where(is_known, noised, x).astype(x.dtype)

        def step(x, inputs):
            index, time, end = inputs
            ratio, _ = _between(diffusion, time, end)
            put_back = replacement(index, time)

            def correct(x, place):
                x = put_back(x)
                score, noise = scores_of(x, time), noise_of(index, place)
                norm = mean_norm(score)
                signal = signal_to_noise * mean_norm(noise) / norm
                # A score of zero, as networks begin with, says nothing of a step.
                length = jnp.where(norm == 0, 0.0, 2 * ratio**2 * signal**2)
                moved = x + length * score + jnp.sqrt(2 * length) * noise
                return moved.astype(x.dtype), length

            length = jnp.zeros((), times.dtype)
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

        indices = jnp.arange(len(times) - 1)
        x, info = jax.lax.scan(step, x, (indices, times[:-1], times[1:]))
        last = times[-1]
        x = replacement(len(times) - 1, last)(x)
        if is_denoised:
            example = x + diffusion.std(last) ** 2 * scores_of(x, last)
            x = (example / diffusion.mean_scale(last)).astype(x.dtype)
        if known is not None:
            x = jnp.where(*known, x)
        return x, info

    x, info = over_devices(local, layout, (None, 0, 0, 0, 0), (0, None))(
        score_fn, keys, x, known, is_real
    )
    return x[:num_chains], info
