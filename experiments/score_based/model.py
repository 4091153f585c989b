"""A score-based model: its network, its process, its samplers and its likelihood.

Papers: Song & Ermon (2019), https://arxiv.org/abs/1907.05600 (NCSN), and (2020),
https://arxiv.org/abs/2006.09011 (NCSNv2); Song et al. (2021),
https://arxiv.org/abs/2011.13456 (diffusions).

One network of noise scales serves every process: `diffusions.with_time` makes of its
score one that knows a diffusion's times.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import (
    diffusions,
    energies,
    metrics,
    networks,
    objectives,
    samplers,
    training,
)
from ebmjax.checks import check_count
from ebmjax.types import Array, ConditionalScore, Key, Network, Objective, Params
from experiments.run.config import construct, make_optimizer

DIFFUSIONS = {
    "variance_exploding": diffusions.variance_exploding,
    "variance_preserving": diffusions.variance_preserving,
    "sub_variance_preserving": diffusions.sub_variance_preserving,
}

NETWORKS = {"unet": networks.unet, "mlp": networks.noise_mlp}


class Model(NamedTuple):
    """A score-based model of images, without its parameters.

    Attributes:
      network: Network of `NETWORKS`.
      name: Name of its parameters: "score", or "energy" if the score is minus the
        gradient of an energy. The `params` below are those of this name alone.
      score: `score(params, x, noise_scale) -> [*event]` of one example.
      ladder: Noise scales `[scales]`, the largest first, or None for a diffusion.
      process: The diffusion; for a ladder the one with all scales between its ends.
      sample: `sample(params, key, num) -> [num, *event]`, not clipped to [-1, 1].
      inpaint: `inpaint(params, key, x, is_known) -> [n, *event]`, draws that agree with
        `x: [n, *event]` where the booleans `[*event]` are True.
      log_prob: `log_prob(params, key, x) -> ([n], Flowed)`, log densities of examples
        `x: [n, *event]` in nats, by the probability flow with a random trace.
    """

    network: Network
    name: str
    score: ConditionalScore
    ladder: np.ndarray | None
    process: diffusions.Diffusion
    sample: Callable[[Params, Key, int], Array]
    inpaint: Callable[[Params, Key, Array, Array], Array]
    log_prob: Callable[[Params, Key, Array], tuple[Array, samplers.Flowed]]


def make_model(
    config: ConfigDict, event_shape: tuple[int, ...], largest_distance: float = 0.0
) -> Model:
    """Returns the model of a config of images.

    Args:
      config: Config of a run.
      event_shape: `(height, width, channels)`.
      largest_distance: Largest distance between two examples of the data, which is the
        largest noise scale where the config says 0.

    Raises:
      ValueError: If an option of the network, process or sampler is not valid.
    """
    shape, section = tuple(event_shape), config.evaluation.sampler
    network, name, score = make_network(config.network, shape)
    if config.process.name == "ladder":
        ladder = make_ladder(config.process, math.prod(shape), largest_distance)
        process = diffusions.variance_exploding(
            noise_min=float(ladder[-1]), noise_max=float(ladder[0])
        )
        sample = make_annealed(section, score, ladder, shape)
        inpaint = make_annealed_inpainting(section, score, ladder, shape)
    else:
        ladder, process = None, make_diffusion(config.process, largest_distance)
        sample, inpaint = make_reversed(section, score, process, shape)
    log_prob = make_log_prob(score, process, config.evaluation.tolerance)
    return Model(network, name, score, ladder, process, sample, inpaint, log_prob)


def make_network(
    section: ConfigDict, event_shape: tuple[int, ...]
) -> tuple[Network, str, ConditionalScore]:
    """Returns the network, the name of its parameters, and
    `score(params, x, noise_scale)`."""
    network = construct("network", section, NETWORKS, event_shape)
    if section.is_energy:
        return network, "energy", energies.score(network.apply)
    return network, "score", network.apply


def model_argument(name: str, function: Callable[..., Array]) -> dict[str, Any]:
    """Returns the keyword argument that gives an objective its score or its energy."""
    return {"energy" if name == "energy" else "score_network": function}


def make_players(
    config: ConfigDict, objective: Objective, name: str
) -> dict[str, training.Player]:
    """Returns the one player, which trains the network."""
    optimizer = make_optimizer(config.optimizer)
    return {name: training.Player((name,), objective, optimizer)}


def make_objective(config: ConfigDict, model: Model) -> Objective:
    """Returns denoising score matching at the scales of the ladder or the diffusion."""
    if model.ladder is not None:
        return objectives.multi_scale_denoising_score_matching(
            **model_argument(model.name, model.network),
            noise_scales=model.ladder,
            **config.objective,
        )
    is_energy = model.name == "energy"
    timed = diffusions.energy_with_time if is_energy else diffusions.with_time
    return objectives.diffusion_score_matching(
        **model_argument(model.name, timed(model.network.apply, model.process)),
        diffusion=model.process,
        **config.objective,
    )


def needs_distance(section: Mapping[str, Any]) -> bool:
    """Tells whether a section `process` takes its largest scale from the data."""
    return 0 in (section.get("largest"), section.get("noise_max"))


def make_ladder(
    section: ConfigDict, num_dims: int, largest_distance: float
) -> np.ndarray:
    """Returns the noise scales of a section `process`, the largest first."""
    counts = {"num_scales": section.num_scales}
    if not section.num_scales:
        if num_dims < 5:
            raise ValueError(
                "process.num_scales must be given in fewer than 5 dimensions, where any"
                f" two scales overlap by half, got 0 in {num_dims}"
            )
        counts = {"num_dims": num_dims}
    largest = section.largest or largest_distance
    return diffusions.noise_ladder(largest, section.smallest, **counts)


def find_step_size(section: ConfigDict, ladder: np.ndarray) -> float:
    """Returns the step size over the square of the noise scale, by
    `evaluation.sampler`."""
    name = "evaluation.sampler.num_steps_per_level"
    check_count(name, section.num_steps_per_level, 1)
    given = section.relative_step_size
    if not 0 <= given < 2:  # from 2 on the noise alone would grow without end
        raise ValueError(
            "evaluation.sampler.relative_step_size must be positive and below 2, or 0"
            f" for Technique 4, got {given}"
        )
    return given or diffusions.relative_step_size(
        ladder[0] / ladder[1], section.num_steps_per_level
    )


def make_diffusion(section: ConfigDict, largest_distance: float):
    """Returns the diffusion of a section `process`."""
    options = dict(section)
    if options.get("noise_max") == 0:
        options["noise_max"] = largest_distance
    return construct("process", options, DIFFUSIONS)


def draw_chunks(
    model: Model, params: Params, key: Key, num: int, chunk_size: int
) -> np.ndarray:
    """Draws at least `num` samples, `chunk_size` of them at a time.

    Returns:
      The samples of whole chunks, `[chunks * chunk_size, *event]`. The first samples do
      not depend on `num`.
    """
    parts = []
    for chunk in range(-(-num // chunk_size)):
        chunk_key = jax.random.fold_in(key, chunk)
        parts.append(np.asarray(model.sample(params, chunk_key, chunk_size)))
    return np.concatenate(parts)


def bind_level(score, params, noise_scale, x):
    """Returns the energy of a noise scale, of which only the gradient is known."""
    return energies.from_score(score)(params, x, noise_scale)


def make_family(score: ConditionalScore):
    """Returns `params -> noise_scale -> energy_fn`, for `samplers.sample_annealed`.

    It is made once, so that new parameters cause no new compilation.
    """

    def at_level(params, noise_scale):
        return functools.partial(bind_level, score, params, noise_scale)

    return lambda params: functools.partial(at_level, params)


def make_annealed(
    section: ConfigDict,
    score: ConditionalScore,
    ladder: np.ndarray,
    shape: tuple[int, ...],
):
    """Returns `sample(params, key, num)`, annealed Langevin dynamics: chains through
    the levels, from which the last level's noise is then taken away."""
    relative, family = find_step_size(section, ladder), make_family(score)

    def make_sampler(noise_scale):
        return samplers.langevin(step_size=relative * noise_scale**2)

    @jax.jit
    def denoise(params, x):
        last = jnp.float32(ladder[-1])
        return x + last**2 * jax.vmap(score, (None, 0, None))(params, x, last)

    def sample(params, key, num):
        start_key, chain_key = jax.random.split(key)
        # The law of the first scale, under which the data hardly matter.
        x = ladder[0] * jax.random.normal(start_key, (num, *shape))
        state, _ = samplers.sample_annealed(
            make_sampler,
            family(params),
            ladder,
            chain_key,
            x,
            section.num_steps_per_level,
        )
        return denoise(params, state.position)

    return sample


def make_annealed_inpainting(
    section: ConfigDict,
    score: ConditionalScore,
    ladder: np.ndarray,
    shape: tuple[int, ...],
):
    """Returns `inpaint(params, key, x, is_known)` by annealed Langevin dynamics: at
    every level, before any score is computed, the known pixels are put back with that
    level's noise, which is drawn once a level."""
    relative = find_step_size(section, ladder)
    levels = jnp.asarray(ladder, jnp.float32)

    def at_level(params, level):
        return functools.partial(bind_level, score, params, level[0])

    def one_image(params, is_known, key, image):
        def make_sampler(level):
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
            make_sampler,
            functools.partial(at_level, params),
            (levels, known),
            chain_key,
            levels[0] * jax.random.normal(start_key, (1, *shape)),
            section.num_steps_per_level,
        )
        last = state.position[0]
        denoised = last + levels[-1] ** 2 * score(params, last, levels[-1])
        return jnp.where(is_known, image, denoised)

    all_images = jax.jit(jax.vmap(one_image, (None, None, 0, 0)))

    def inpaint(params, key, x, is_known):
        return all_images(params, is_known, jax.random.split(key, len(x)), x)

    return inpaint


def make_reversed(
    section: ConfigDict,
    score: ConditionalScore,
    process: diffusions.Diffusion,
    shape: tuple[int, ...],
):
    """Returns `sample(params, key, num)`, the diffusion run backwards, and
    `inpaint(params, key, x, is_known)`, the same given some pixels."""
    options = section.to_dict()
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


def make_log_prob(
    score: ConditionalScore, process: diffusions.Diffusion, tolerance: float
):
    """Returns `log_prob(params, key, x) -> ([n], Flowed)` by the probability flow."""
    timed = diffusions.with_time(score, process)

    def log_prob(params, key, x):
        score_fn = functools.partial(timed, params)
        return metrics.probability_flow_log_prob(
            process, score_fn, key, x, tolerance=tolerance
        )

    return log_prob


def bind_model(model, params) -> dict[str, Any]:
    """Returns `networks`, `energy_fn` and `score_fn` of a `Trained`.

    Args:
      model: A model with a network, its name and its score: of images or of the plane.
      params: Parameters of the network.
    """
    functions = {"score_fn": functools.partial(model.score, params)}
    if model.name == "energy":
        functions["energy_fn"] = functools.partial(model.network.apply, params)
    return {"networks": {model.name: model.network}, **functions}
