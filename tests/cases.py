"""One line for every sampler and objective: contract tests iterate over these.

A test fails if a public factory has no line here. Networks have theirs in
test_networks.py.
"""

import functools

import jax
import jax.numpy as jnp

from ebmjax import energies, objectives, samplers, starts

STANDARD = functools.partial(energies.gaussian, {"mean": 0.0, "precision": 1.0})
"""Standard normal energy of any event."""

SAMPLERS = {
    "langevin": lambda: samplers.langevin(step_size=0.3),
    "mala": lambda: samplers.mala(step_size=0.9),
}

NOT_SAMPLERS = {"sample_chain", "sample_chains", "chain_generator", "invert_chain"}

_LANGEVIN = samplers.langevin(step_size=0.1)
_CD = functools.partial(
    objectives.contrastive_divergence, energies.gaussian, sampler=_LANGEVIN, num_steps=3
)

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
}
"""Of two-dimensional data, with `params["energy"]` those of a Gaussian energy."""

NOT_OBJECTIVES = {"stateless"}

GAUSSIAN_PARAMS = {"energy": {"mean": jnp.ones(2), "precision": jnp.full((2,), 0.5)}}
