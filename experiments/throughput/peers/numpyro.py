"""NumPyro."""

import functools

import jax

from experiments.throughput.jax_programs import jax_contender
from experiments.throughput.workload import (
    DEVICE_A_CORE,
    Contender,
    Kernel,
    Workload,
    version,
)

PACKAGE, ENVIRONMENT = "numpyro", DEVICE_A_CORE


def make(workload: Workload, sampler: Kernel, x0, num_steps: int) -> Contender:
    import numpyro.infer

    if sampler.name != "hmc":
        raise NotImplementedError(f"numpyro has no {sampler.name}")

    def program(params, key, x0):
        kernel = numpyro.infer.HMC(
            potential_fn=functools.partial(workload.energy, params),
            step_size=sampler.step_size,
            num_steps=sampler.num_leapfrog,
            trajectory_length=None,
            adapt_step_size=False,
            adapt_mass_matrix=False,
        )
        # Many keys make the kernel what `chain_method="vectorized"` makes it. `MCMC`
        # itself traces and compiles the energy anew in every run: over a second.
        states = kernel.init(jax.random.split(key, len(x0)), 0, x0, (), {})

        def body(states, _):
            return kernel.sample(states, (), {}), None

        return jax.lax.scan(body, states, None, length=num_steps)[0].z

    settings = f"{version('numpyro')}: HMC, no adaptation, vectorized chains, a scan of"
    settings += " the kernel keeping the last state, our energy"
    return jax_contender(program, workload.params, x0, settings)
