"""Measures of a score-based model of images.

Each function returns `measure(params, key, directory) -> scalars`, and
`make_evaluation` applies them, and judges samples.
"""

import itertools
import math
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import diffusions
from ebmjax.types import ConditionalEnergy, ConditionalScore, Key, Params
from experiments.data import Images, dequantize, in_chunks
from experiments.judge import plots
from experiments.judge.detection import area_under_roc, load_foreign
from experiments.judge.inverse import upper_half
from experiments.judge.judge import Judge, make_judge, record_quality
from experiments.run.experiment import evaluated_params
from experiments.run.workdir import save_arrays, save_columns
from experiments.score_based.model import Model, draw_chunks

SMALL_SCALE = 0.2  # of noise, a tenth of the data's range

Measure = Callable[[Params, Key, pathlib.Path], dict[str, float]]


def measure_distance(key: Key, data: Images) -> float:
    """Returns the largest distance between two of the first 10,000 training images."""
    images = data.train[:10_000]
    return diffusions.largest_distance(dequantize(key, images, data.num_levels))


def make_evaluation(
    config: ConfigDict, data: Images, model: Model, evaluation_key: Key
):
    """Returns `evaluate(state, key, directory) -> scalars`."""
    options = config.evaluation
    is_judged = options.classifier_steps and options.num_samples
    judge = make_judge(
        data, options.num_examples, options.classifier_steps if is_judged else 0
    )
    # Measures besides the samples: `measure(params, key, directory) -> scalars`.
    measured = [asymmetry(model.score, data)]
    if options.num_inpainted:
        images = data.held_out[: options.num_inpainted]
        measured.append(inpainting(model.inpaint, images, data, options.chunk_size))
    if options.num_likelihoods:
        measured.append(likelihood(options, model.log_prob, data))
    if model.name == "energy":
        measured.append(detection(config, model.network.apply, judge, evaluation_key))

    def evaluate(state, key, directory):
        params = evaluated_params(state)[model.name]
        sample_key, *measure_keys = jax.random.split(key, 1 + len(measured))
        num = max(options.num_samples, options.num_shown)
        started = time.monotonic()
        samples = draw_chunks(model, params, sample_key, num, options.chunk_size)
        scalars = {
            "sampling_seconds": time.monotonic() - started,
            "samples_abs_max": np.abs(samples).max(),
        }
        save_arrays(
            directory / "samples.npz",
            samples=samples[:num],
            key=jax.random.key_data(sample_key),
        )
        plots.image_grid(
            directory / "samples.png",
            samples[: options.num_shown].clip(-1, 1),
            columns=math.ceil(options.num_shown**0.5),
            title=f"samples, {config.process.name}",
        )
        for measure, measure_key in zip(measured, measure_keys):
            scalars |= measure(params, measure_key, directory)
        if is_judged:
            drawn = {"samples": samples[: options.num_samples].clip(-1, 1)}
            scalars |= record_quality(directory, judge, drawn)
        return scalars

    return evaluate


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
        del key

        def compute_energies(x):
            return in_chunks(
                lambda chunk: all_images(params, chunk, SMALL_SCALE),
                x,
                config.evaluation.chunk_size,
            )

        return area_under_roc(compute_energies, judge.held_out, foreign, directory)

    return measure


def likelihood(options: ConfigDict, log_prob: Callable, data: Images) -> Measure:
    """Measures bits per dimension of held-out images, and two standard errors.

    `bits_per_dim_error` is that of the mean over images. `bits_per_dim_noise` is that
    of one image's mean over `num_probes` noises and random traces. Every image has a
    row in `log_likelihoods.csv`: its mean log density in nats, and its bits per
    dimension.

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
        log_probs = (offset - per_image) * (num_dims * math.log(2))
        save_columns(
            directory / "log_likelihoods.csv",
            {"log_likelihood": log_probs, "bits_per_dim": per_image},
        )
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
            {"seen": np.where(is_known, x, np.nan), "inpainting": found, "truth": x},
            columns=16,
        )
        mean = data.train.mean(0) * (2 / data.num_levels) - 1 + 1 / data.num_levels
        return {
            f"inpainting_mse{name}": ((other - x) ** 2)[:, ~is_known].mean()
            for name, other in (("", found), ("_of_mean_image", mean))
        }

    return measure
