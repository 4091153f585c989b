"""model"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import diffusions, energies, networks, samplers, training
from ebmjax.checks import check_count
from ebmjax.types import Array, Network
from experiments.data import Images, dequantize, image_section
from experiments.run.config import (
    adam_section,
    construct,
    make_optimizer,
    train_section,
)
from experiments.run.experiment import make_keys

DIFFUSIONS = {
    "variance_exploding": diffusions.variance_exploding,
    "variance_preserving": diffusions.variance_preserving,
    "sub_variance_preserving": diffusions.sub_variance_preserving,
}


PROCESSES = (*DIFFUSIONS, "ladder")


SMALL_SCALE = 0.2  # of noise, a tenth of the data's range


NETWORKS = {"unet": networks.unet, "mlp": networks.noise_mlp}


def _process(name: str) -> tuple[dict, dict, dict]:
    """The sections `process`, `objective` and `sampler` of a process."""
    if name == "ladder":
        return (
            {
                "name": name,
                "largest": 0.0,  # x; 0 for the largest distance between examples
                "smallest": 0.02,  # x; paper: .01 on [0, 1]
                "num_scales": 0,  # 0 for as many as overlap by half
            },
            {},
            {
                "num_steps_per_level": 5,  # moves; paper: T
                "relative_step_size": 0.0,  # of a scale's square; 0 for Technique 4
            },
        )
    process = {"name": name, "rate_min": 0.1, "rate_max": 20.0}  # paper: beta
    if name == "variance_exploding":
        # x; 0 for the largest distance between examples. Paper: .01 on [0, 1]
        process = {"name": name, "noise_min": 0.02, "noise_max": 0.0}
    return (
        process,
        {"weighting": "noise"},  # or "likelihood"
        {
            "predictor": "reverse_diffusion",  # or as in `samplers.sample_diffusion`
            "num_steps": 1_000,  # paper: N
            "num_corrections": 1,
            "signal_to_noise": 0.16,  # paper: r, on CIFAR-10
            # Papers: 1e-5 for VE, which has noise of `noise_min` there.
            "time_min": 1e-5 if name == "variance_exploding" else 1e-3,
        },
    )


def _images(name: str, widths, num_blocks: int, num_steps: int) -> dict:
    optimizer = adam_section(2e-4, b1=0.9, b2=0.999) | {"gradient_clip": 1.0}
    optimizer["learning_rate"]["warmup_steps"] = 5_000
    return {
        "seed": 0,
        "data": image_section(
            name,
            batch_size=128,
            is_mirrored=False,  # whether half of the images are, left to right
        ),
        "network": {
            "name": "unet",
            "widths": widths,
            "num_blocks": num_blocks,
            "activation": "swish",
            "conditioning": "embedding",  # or "division", NCSNv2's Technique 3
            "is_energy": False,  # whether the score is minus an energy's gradient
        },
        "optimizer": optimizer,
        "ema_decay": 0.999,  # of the parameters that are evaluated; 0 for none
        "train": train_section(num_steps),
        "evaluation": {
            "num_samples": 10_000,
            "num_examples": 10_000,  # of the data and of the held-out, to compare with
            "num_shown": 100,
            "chunk_size": 500,  # chains at a time
            "classifier_steps": 4_000,
            "num_likelihoods": 1_000,  # first held-out images, if so many; 0 for none
            "num_probes": 4,  # noises and signs for each
            "tolerance": 1e-5,  # of the flow's steps
            "num_inpainted": 16,  # first held-out images, if so many; 0 for none
            # Or names of data sets; of energies alone, a score does not say.
            "out_of_distribution": ("uniform", "gaussian"),
        },
        "sweep": {"num_seeds": 1},  # seed, seed + 1, ...
    }


def _sections(data: str, process: str) -> dict:
    """The sections that depend on the process, for a preset's data."""
    found = dict(zip(("process", "objective", "sampler"), _process(process)))
    is_ladder = process == "ladder"
    if data == "two_modes":
        # Song & Ermon's: 20 to 1, where the data are as wide; steps of a tenth.
        found["process"] |= {"largest": 20.0, "smallest": 0.1, "num_scales": 20}
        found["sampler"] |= {"num_steps_per_level": 100, "relative_step_size": 0.05}
    if data == "cifar10":  # papers: of VP and sub-VP over ten times as many updates
        found["ema_decay"] = 0.9999 if "preserving" in process else 0.999
    if data == "digits":  # few dimensions, and a CPU
        few = {"num_steps_per_level": 20} if is_ladder else {"num_steps": 200}
        found["sampler"] |= few
    return found


def _model(config, event_shape):
    """Network, the name of its parameters, and `score(params, x, noise_scale)`."""
    network = construct(config.network, NETWORKS, event_shape)
    if config.network.is_energy:
        return network, "energy", energies.score(network.apply)
    return network, "score", network.apply


def _of_model(name: str, function) -> dict:
    """The objectives' keyword argument for it."""
    return {"energy" if name == "energy" else "score_network": function}


def _ladder(config, largest, num_dims: int) -> np.ndarray:
    """`largest()` is of the data's distances, asked for where the config has none."""
    process = config.process
    counts = {"num_scales": process.num_scales}
    if not process.num_scales:
        if num_dims < 5:
            raise ValueError(
                "process.num_scales must be given in fewer than 5 dimensions, where any"
                f" two scales overlap by half, got 0 in {num_dims}"
            )
        counts = {"num_dims": num_dims}
    return samplers.noise_ladder(
        process.largest or largest(), process.smallest, **counts
    )


def _relative_step_size(config, ladder: np.ndarray) -> float:
    check_count("sampler.num_steps_per_level", config.sampler.num_steps_per_level, 1)
    given = config.sampler.relative_step_size
    if not 0 <= given < 2:  # from 2 on the noise alone would grow without end
        raise ValueError(
            "sampler.relative_step_size must be positive and below 2, or 0 for"
            f" Technique 4, got {given}"
        )
    return given or samplers.relative_step_size(
        ladder[0] / ladder[1], config.sampler.num_steps_per_level
    )


def _bind(score, params, noise_scale, x):
    """The energy, as far as there is one, of a level."""
    return energies.from_score(score)(params, x, noise_scale)


def _family(score):
    """`params -> level -> energy_fn`; made once, so that nothing compiles anew."""

    def of_level(params, noise_scale):
        return functools.partial(_bind, score, params, noise_scale)

    return lambda params: functools.partial(of_level, params)


def _player(config, objective, name: str) -> dict[str, training.Player]:
    optimizer = make_optimizer(config.optimizer)
    return {name: training.Player((name,), objective, optimizer)}


MODES, WEIGHTS = ((-5.0, -5.0), (5.0, 5.0)), (0.2, 0.8)


class Model(NamedTuple):
    """A score-based model of images, without its parameters.

    Attributes:
      network: From `ebmjax.networks`.
      name: Of its parameters: "score", or "energy", of which the score is minus the
        gradient.
      score: `score(params, x, noise_scale) -> [*image]` of one image. Here and below
        `params` are those under `name` alone.
      ladder: `[scales]`, or None for a diffusion.
      process: The diffusion; of a ladder the one with all scales between its ends.
      sample: `sample(params, key, num) -> [num, *image]`, not clipped to [-1, 1].
      inpaint: `inpaint(params, key, x, is_known) -> [n, *image]` that agree with `x`,
        `[n, *image]`, where the booleans `[*image]` are True.
    """

    network: Network
    name: str
    score: Callable[..., Array]
    ladder: np.ndarray | None
    process: diffusions.Diffusion
    sample: Callable[..., Array]
    inpaint: Callable[..., Array]


def make_model(config: ConfigDict, data: Images) -> Model:
    """The model of a run's config.

    Args:
      config: Of any preset of images.
      data: The config's own, `_data.from_section(config.data)`: their largest distance
        is the largest noise where the config says 0.

    Raises:
      ValueError: If an option of the network, process or sampler is none.
    """
    network, name, score = _model(config, data.image_shape)

    def largest():
        return _largest_distance(make_keys(config.seed).evaluation, data)

    if config.process.name == "ladder":
        ladder = _ladder(config, largest, math.prod(data.image_shape))
        process = diffusions.variance_exploding(
            noise_min=float(ladder[-1]), noise_max=float(ladder[0])
        )
        sample = _annealed(config, score, ladder, data.image_shape)
        inpaint = _annealed_inpainting(config, score, ladder, data.image_shape)
    else:
        ladder, process = None, _diffusion(config, largest)
        sample, inpaint = _reversed(config, score, process, data.image_shape)
    return Model(network, name, score, ladder, process, sample, inpaint)


def _largest_distance(key, data: Images) -> float:
    """Of all pairs of training images, or of the first 10,000."""
    images = data.train[:10_000]
    return samplers.largest_distance(dequantize(key, images, data.num_levels))


def _diffusion(config, largest) -> diffusions.Diffusion:
    section = dict(config.process)
    if section.get("noise_max") == 0:
        section["noise_max"] = largest()
    return construct(section, DIFFUSIONS)


def _annealed(config, score, ladder, shape):
    """`(params, key, num) -> samples`: the chains, then the last noise taken away."""
    relative, family = _relative_step_size(config, ladder), _family(score)

    def sampler_of(noise_scale):
        return samplers.langevin(step_size=relative * noise_scale**2)

    @jax.jit
    def denoise(params, x):
        last = jnp.float32(ladder[-1])
        return x + last**2 * jax.vmap(score, (None, 0, None))(params, x, last)

    def sample(params, key, num):
        start_key, chain_key = jax.random.split(key)
        # Of the first scale: data and noise about them.
        x = ladder[0] * jax.random.normal(start_key, (num, *shape))
        state, _ = samplers.sample_annealed(
            sampler_of,
            family(params),
            ladder,
            chain_key,
            x,
            config.sampler.num_steps_per_level,
        )
        return denoise(params, state.position)

    return sample


def _reversed(config, score, process, shape):
    """`(params, key, num) -> samples` of the diffusion run backwards, and
    `(params, key, x, is_known) -> images` that agree with what is known of `x`."""
    options = config.sampler.to_dict()
    timed = diffusions.with_time(score, process)

    def sample(params, key, num, known=None):
        start_key, chain_key = jax.random.split(key)
        x = process.prior_std * jax.random.normal(start_key, (num, *shape))
        found, _ = samplers.sample_diffusion(
            process,
            functools.partial(timed, params),
            chain_key,
            x,
            known=known,
            **options,
        )
        return found

    def inpaint(params, key, x, is_known):
        return sample(params, key, len(x), (is_known, x))

    return sample, inpaint


def _annealed_inpainting(config, score, ladder, shape):
    """`(params, key, x, is_known) -> images`: at every level what is known is put back
    with that level's noise, drawn once a level, before any score is asked for."""
    relative = _relative_step_size(config, ladder)
    levels = jnp.asarray(ladder, jnp.float32)

    def of_level(params, level):
        return functools.partial(_bind, score, params, level[0])

    def one_image(params, is_known, key, image):
        def sampler_of(level):
            noise_scale, known = level

            def project(x):
                return jnp.where(is_known, known, x)

            step_size = relative * noise_scale**2
            moves = samplers.langevin(step_size=step_size, project=project)
            return samplers.Sampler(
                lambda energy_fn, x: moves.init(energy_fn, project(x)), moves.step
            )

        start_key, noise_key, chain_key = jax.random.split(key, 3)
        noise = jax.random.normal(noise_key, (len(levels), *shape))
        known = image[None] + levels.reshape(-1, 1, 1, 1) * noise
        state, _ = samplers.sample_annealed(
            sampler_of,
            functools.partial(of_level, params),
            (levels, known),
            chain_key,
            levels[0] * jax.random.normal(start_key, (1, *shape)),
            config.sampler.num_steps_per_level,
        )
        last = state.position[0]
        denoised = last + levels[-1] ** 2 * score(params, last, levels[-1])
        return jnp.where(is_known, image, denoised)

    of_images = jax.jit(jax.vmap(one_image, (None, None, 0, 0)))

    def inpaint(params, key, x, is_known):
        return of_images(params, is_known, jax.random.split(key, len(x)), x)

    return inpaint
