"""Measures of a score-based model of images, apart from the quality of its samples.

Each function returns `measure(params, key, directory) -> scalars`.
"""

import itertools
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax.types import ConditionalEnergy, ConditionalScore, Key, Params
from experiments.data import Images, dequantize, in_chunks
from experiments.judge import plots
from experiments.judge.detection import area_under_roc, load_foreign
from experiments.judge.inverse import upper_half
from experiments.judge.judge import Judge

SMALL_SCALE = 0.2  # of noise, a tenth of the data's range

Measure = Callable[[Params, Key, pathlib.Path], dict[str, float]]


def asymmetry(score: ConditionalScore, data: Images) -> Measure:
    """Measures how far a score is from the gradient of an energy.

    The asymmetry of its Jacobian J is `|J v - J^T v|^2 / |J v|^2`, a ratio of means
    over 100 held-out images and random signs v, with a noise of a tenth, half and twice
    the data's range. It is 0 for the score of an energy, and where J is 0.
    """

    @jax.jit
    def at_scale(params, x, noise, signs, noise_scale):
        def squares(example):
            x, noise, v = example

            def field(x):
                return score(params, x, noise_scale)

            noised = x + noise_scale * noise
            _, along = jax.jvp(field, (noised,), (v,))
            (against,) = jax.vjp(field, noised)[1](v)
            return jnp.sum((along - against) ** 2), jnp.sum(along**2)

        apart, whole = jax.lax.map(squares, (x, noise, signs), batch_size=20)
        whole = whole.mean()
        return jnp.where(whole > 0, apart.mean() / whole, 0.0)

    def measure(params, key, directory):
        del directory
        dequantize_key, noise_key, sign_key = jax.random.split(key, 3)
        images = data.held_out[:100]
        x = dequantize(dequantize_key, images, data.num_levels)
        noise = jax.random.normal(noise_key, x.shape)
        signs = jax.random.rademacher(sign_key, x.shape, x.dtype)
        return {
            f"asymmetry_{scale:g}": float(
                at_scale(params, x, noise, signs, jnp.float32(scale))
            )
            for scale in (SMALL_SCALE, 1.0, 4.0)
        }

    return measure


def detection(
    config: ConfigDict, energy: ConditionalEnergy, judge: Judge, key: Key
) -> Measure:
    """Measures whether the energy is higher on out-of-distribution images.

    The energy is that of a small noise scale, and no noise is added to the images. A
    score alone cannot tell.
    """
    foreign = load_foreign(key, config, judge.train)
    all_images = jax.jit(jax.vmap(energy, (None, 0, None)))

    def measure(params, key, directory):
        del key, directory

        def compute_energies(x):
            return in_chunks(
                lambda chunk: all_images(params, chunk, SMALL_SCALE),
                x,
                config.evaluation.chunk_size,
            )

        return area_under_roc(compute_energies, judge.held_out, foreign)

    return measure


def likelihood(options: ConfigDict, log_prob: Callable, data: Images) -> Measure:
    """Measures bits per dimension of held-out images, and two standard errors.

    `bits_per_dim_error` is that of the mean over images. `bits_per_dim_noise` is that
    of one image's mean over `num_probes` noises and random traces.

    Args:
      options: Section `evaluation` of the config.
      log_prob: `log_prob(params, key, x) -> ([n], Flowed)`, in nats.
      data: Images, whose first `num_likelihoods` held-out ones are measured.
    """
    images = data.held_out[: options.num_likelihoods]
    num_dims, size = math.prod(data.image_shape), min(options.chunk_size, len(images))
    # A pixel's level is 2 / num_levels wide.
    offset = math.log2(data.num_levels / 2)

    def measure(params, key, directory):
        del directory
        bits, evaluations = [], []
        for probe in range(options.num_probes):
            noise_key, flow_key = jax.random.split(jax.random.fold_in(key, probe))
            x = np.asarray(dequantize(noise_key, images, data.num_levels))
            chunks = itertools.count()

            def flow(x, flow_key=flow_key, chunks=chunks):
                chunk_key = jax.random.fold_in(flow_key, next(chunks))
                nats, flowed = log_prob(params, chunk_key, x)
                return nats, flowed.num_evaluations

            nats, counts = in_chunks(flow, x, size)
            bits.append(offset - np.asarray(nats, float) / (num_dims * math.log(2)))
            evaluations.append(counts.mean())
        bits = np.stack(bits)
        per_image = bits.mean(0)
        scalars = {
            "bits_per_dim": per_image.mean(),
            "bits_per_dim_error": per_image.std(ddof=1) / len(per_image) ** 0.5,
            "flow_evaluations": float(np.mean(evaluations)),
        }
        if len(bits) > 1:
            noise = (bits.var(0, ddof=1).mean() / len(bits)) ** 0.5
            scalars["bits_per_dim_noise"] = noise
        return scalars

    return measure


def inpainting(
    inpaint: Callable, images: np.ndarray, data: Images, chunk_size: int
) -> Measure:
    """Measures the squared error of lower halves that are drawn given the upper ones.

    Args:
      inpaint: `inpaint(params, key, x, is_known) -> [n, *event]`.
      images: Images `[n, *event]` of `data`, as integers.
      data: Data set, whose mean image is the answer to compare with.
      chunk_size: Number of images at a time.
    """
    is_known = upper_half(data.image_shape)

    def measure(params, key, directory):
        dequantize_key, chain_key = jax.random.split(key)
        x = np.asarray(dequantize(dequantize_key, images, data.num_levels))
        parts = [
            inpaint(
                params,
                jax.random.fold_in(chain_key, first),
                x[first : first + chunk_size],
                is_known,
            )
            for first in range(0, len(x), chunk_size)
        ]
        found = np.concatenate(parts).clip(-1, 1)
        plots.image_panels(
            directory / "inpainting.png",
            {"seen": np.where(is_known, x, -1.0), "inpainting": found, "truth": x},
            columns=16,
        )
        mean = data.train.mean(0) * (2 / data.num_levels) - 1 + 1 / data.num_levels
        return {
            f"inpainting_mse{name}": ((other - x) ** 2)[:, ~is_known].mean()
            for name, other in (("", found), ("_of_mean_image", mean))
        }

    return measure
