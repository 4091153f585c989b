"""One line for every sampler and objective: contract tests iterate over these.

A test fails if a public factory has no line here. Networks have theirs in
test_networks.py.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ebmjax import diffusions, energies, objectives, samplers, starts

STANDARD = functools.partial(energies.gaussian, {"mean": 0.0, "precision": 1.0})
"""Standard normal energy of any event."""


class SamplerCase(NamedTuple):
    make: Callable  # (event_shape) -> Sampler
    num_start_gradients: int = 1
    num_gradients: int = 1  # a move
    num_traces: int = 2  # of the energy: in init, and in step
    is_key_checked: bool = True  # by JAX, which also refuses a choice between keys


def _normal(event_shape):
    """A proposal wider than the standard normal."""

    def sample(key):
        return 1.3 * jax.random.normal(key, event_shape)

    return sample, lambda x: -0.5 * jnp.sum((x / 1.3) ** 2)


def _exchange(event_shape):
    return samplers.replica_exchange(
        lambda temperature: samplers.mala(step_size=0.9, temperature=temperature),
        temperatures=(1.0, 2.0),
        swap_every=2,
    )


def _blackjax(name, **options):
    import blackjax

    return samplers.from_blackjax(getattr(blackjax, name), **options)


def _nuts(event_shape):
    mass = jnp.ones(max(1, math.prod(event_shape)))
    return _blackjax(
        "nuts", step_size=0.9, inverse_mass_matrix=mass, max_num_doublings=3
    )


SAMPLERS = {
    "langevin": SamplerCase(lambda shape: samplers.langevin(step_size=0.3)),
    "mala": SamplerCase(lambda shape: samplers.mala(step_size=0.9)),
    "hmc": SamplerCase(
        lambda shape: samplers.hmc(step_size=1.3, num_leapfrog=3),
        num_gradients=3,
        num_traces=3,  # and in the loop over leapfrogs
    ),
    "hmc, random lengths": SamplerCase(
        lambda shape: samplers.hmc(
            step_size=1.3, num_leapfrog=2, randomize_num_leapfrog=True
        ),
        num_gradients=None,
        num_traces=3,
    ),
    "underdamped": SamplerCase(
        lambda shape: samplers.underdamped(step_size=0.5, friction=1.0),
        num_start_gradients=0,
        num_traces=1,
    ),
    "independence": SamplerCase(
        lambda shape: samplers.independence(proposal=_normal(shape)),
        num_start_gradients=0,
        num_gradients=0,
    ),
    "replica_exchange": SamplerCase(_exchange, num_gradients=2),
    "from_blackjax": SamplerCase(_nuts, num_gradients=None, is_key_checked=False),
    "from_blackjax, barker": SamplerCase(
        lambda shape: _blackjax("barker", step_size=0.9)
    ),
}

NOT_SAMPLERS = {"sample_chain", "sample_chains", "sample_annealed", "adapt"}
NOT_SAMPLERS |= {"chain_generator", "invert_chain", "to_arviz"}
NOT_SAMPLERS |= {"sample_diffusion", "probability_flow", "noise_ladder"}
NOT_SAMPLERS |= {"largest_distance", "noise_overlap", "relative_step_size"}
NOT_SAMPLERS |= {"coupled_chains", "coupled_gibbs_chains", "unbiased_weights"}

_LANGEVIN = samplers.langevin(step_size=0.1)
_CD = functools.partial(
    objectives.contrastive_divergence, energies.gaussian, sampler=_LANGEVIN, num_steps=3
)


def _quartic(params, x):
    """Not quadratic: there slices along signs would all be equal."""
    return energies.gaussian(params, x) ** 2


def _with_constants(objective, num):
    """With the one log partition function of the cases for each of `num` constants."""

    def loss(params, key, batch, carry):
        constants = jnp.stack([params["log_partition"]] * num)
        params = params | {"log_partition": constants}
        return objective.loss(params, key, batch, carry)

    return objective._replace(loss=loss)


OBJECTIVES = {
    "contrastive_divergence": lambda: _CD(start=starts.noise(jax.random.normal)),
    "contrastive_divergence, data": lambda: _CD(start=starts.data()),
    "contrastive_divergence, replay": lambda: _CD(
        start=starts.replay(
            jax.random.normal, event_shape=(2,), capacity=32, reinit_prob=0.1
        )
    ),
    "contrastive_divergence, improved": lambda: _CD(
        start=starts.noise(jax.random.normal),
        last_step_gradient=True,
        entropy_weight=0.1,
        energy_penalty=0.1,
        data_noise_scale=lambda count: 0.1 / (1 + count),
    ),
    "score_matching": lambda: objectives.score_matching(energies.gaussian),
    "sliced_score_matching": lambda: objectives.sliced_score_matching(_quartic),
    "finite_difference_score_matching": lambda: (
        objectives.finite_difference_score_matching(_quartic, step=0.1)
    ),
    "non_negative_score_matching": lambda: objectives.non_negative_score_matching(
        energies.gaussian
    ),
    "denoising_score_matching": lambda: objectives.denoising_score_matching(
        energies.gaussian, noise_scale=0.5
    ),
    "denoising_score_matching, control variate": lambda: (
        objectives.denoising_score_matching(
            energies.gaussian, noise_scale=0.5, variance_reduction="control_variate"
        )
    ),
    "multi_scale_denoising_score_matching": lambda: (
        objectives.multi_scale_denoising_score_matching(
            lambda params, x, scale: energies.gaussian(params, x) / (1 + scale),
            noise_scales=(0.1, 1.0),
        )
    ),
    "diffusion_score_matching": lambda: objectives.diffusion_score_matching(
        lambda params, x, time: energies.gaussian(params, x) / (1 + time),
        diffusion=diffusions.variance_preserving(),
    ),
    "kernel_stein": lambda: objectives.kernel_stein(energies.gaussian),
    "ratio_matching": lambda: objectives.ratio_matching(energies.gaussian),
    "minimum_probability_flow": lambda: objectives.minimum_probability_flow(
        energies.gaussian
    ),
    "minimum_velocity": lambda: objectives.minimum_velocity(
        energies.gaussian, step_size=0.1
    ),
    "noise_contrastive": lambda: objectives.noise_contrastive(
        energies.gaussian, noise_distribution=_normal((2,)), num_noise=3
    ),
    "conditional_noise_contrastive": lambda: objectives.conditional_noise_contrastive(
        energies.gaussian, noise_scale=0.5
    ),
    "telescoping": lambda: _with_constants(
        objectives.telescoping(
            lambda params, x, index: energies.gaussian(params, x) / (1 + index),
            noise_distribution=_normal((2,)),
            waymarks=(0.5, 0.8, 1.0),
        ),
        3,
    ),
    "unbiased_contrastive_divergence": lambda: (
        objectives.unbiased_contrastive_divergence(
            energies.gaussian,
            step_size=1.0,
            start=starts.data(),
            num_steps=3,
            max_steps=6,
        )
    ),
    "self_contrastive": lambda: objectives.self_contrastive(
        energies.gaussian,
        sample=lambda params, key: params["mean"] + jax.random.normal(key, (2,)),
        num_noise=2,
    ),
}
"""Of two-dimensional data, with `params["energy"]` those of a Gaussian energy."""

DRAW_NOTHING = {"score_matching", "non_negative_score_matching", "ratio_matching"}
DRAW_NOTHING |= {"minimum_probability_flow", "kernel_stein"}

NOT_OBJECTIVES = {"generate", "interpolate", "stateless", "telescoping_energy"}

PAIRS = {"f_contrastive", "flow_contrastive", "learned_stein", "variational"}
PAIRS |= {"entropy_gradient", "generalized", "max_entropy"}
"""Modules of two objectives or three, one a player; tested in files of their own."""

GAUSSIAN_PARAMS = {
    "energy": {"mean": jnp.ones(2), "precision": jnp.full((2,), 0.5)},
    "log_partition": jnp.array(0.5),
}
