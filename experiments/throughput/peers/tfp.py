"""TensorFlow Probability on JAX."""

import functools
import warnings

import jax

from experiments.throughput.jax_programs import jax_contender
from experiments.throughput.workload import (
    DEVICE_A_CORE,
    Contender,
    Kernel,
    Workload,
    check_sampler,
    version,
)

PACKAGE, ENVIRONMENT = "tensorflow_probability", DEVICE_A_CORE


def make(workload: Workload, sampler: Kernel, x0, num_steps: int) -> Contender:
    import tensorflow_probability.substrates.jax as tfp

    check_sampler("tfp", sampler)

    def program(params, key, x0):
        def log_density(x):
            return -jax.vmap(functools.partial(workload.energy, params))(x)

        # TFP moves by `step_size / 2` gradients and `sqrt(step_size)` noises.
        h = sampler.step_size
        kernel = {
            "langevin": lambda: tfp.mcmc.UncalibratedLangevin(
                log_density, 2 * h, compute_acceptance=False
            ),
            "mala": lambda: tfp.mcmc.MetropolisAdjustedLangevinAlgorithm(
                log_density, 2 * h
            ),
            "hmc": lambda: tfp.mcmc.HamiltonianMonteCarlo(
                log_density, h, sampler.num_leapfrog
            ),
        }[sampler.name]()
        with warnings.catch_warnings():  # that unadjusted Langevin is not calibrated
            warnings.simplefilter("ignore", UserWarning)
            return tfp.mcmc.sample_chain(
                num_results=1,
                num_burnin_steps=num_steps - 1,
                current_state=x0,
                kernel=kernel,
                trace_fn=None,
                seed=key,
            )[0]

    settings = f"{version('tfp-nightly')}: jitted sample_chain keeping the last state,"
    settings += " batched chains, our energy"
    return jax_contender(program, workload.params, x0, settings)
