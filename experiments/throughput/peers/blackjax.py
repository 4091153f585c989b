"""BlackJAX."""

import jax
import jax.numpy as jnp

from experiments.throughput.jax_programs import jax_contender
from experiments.throughput.workload import (
    DEVICE_A_CORE,
    Contender,
    Kernel,
    Workload,
    check_sampler,
    version,
)

PACKAGE, ENVIRONMENT = "blackjax", DEVICE_A_CORE


def make(workload: Workload, sampler: Kernel, x0, num_steps: int) -> Contender:
    import blackjax

    check_sampler("blackjax", sampler)

    h = sampler.step_size

    def program(params, key, x0):
        def log_density(x):
            return -workload.energy(params, x)

        if sampler.name == "langevin":
            gradient = jax.grad(log_density)
            sgld = blackjax.sgld(lambda x, batch: gradient(x))
            init = sgld.init

            def step(key, state):
                return sgld.step(key, state, None, h)

        else:
            if sampler.name == "mala":
                algorithm = blackjax.mala(log_density, h)
            else:
                mass = jnp.ones(x0[0].size)
                algorithm = blackjax.hmc(log_density, h, mass, sampler.num_leapfrog)
            init = algorithm.init

            def step(key, state):
                return algorithm.step(key, state)[0]

        def body(states, key):
            keys = jax.random.split(key, len(x0))
            return jax.vmap(step)(keys, states), None

        keys = jax.random.split(key, num_steps)
        return jax.lax.scan(body, jax.vmap(init)(x0), keys)[0]

    kernel = {"langevin": "sgld with the full gradient"}.get(sampler.name, sampler.name)
    settings = f"{version('blackjax')}: {kernel}, vmap over chains, scan keeping the"
    settings += " last state, our energy"
    return jax_contender(program, workload.params, x0, settings)
