"""The unit of the benchmark: one jitted scan of batched moves, or of annealing."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.throughput.jax_programs import NAIVE_ENERGIES, jax_contender
from experiments.throughput.metric_tasks import TARGET, make_metric
from experiments.throughput.tasks import Program, Task
from experiments.throughput.workload import (
    Contender,
    Kernel,
    Workload,
    batched,
    check_energy,
    check_sampler,
    version,
)

PACKAGE = "jax"
ENVIRONMENT: dict[str, str] = {}
KINDS = ("ais",)


def make(workload: Workload, sampler: Kernel, x0, num_steps: int) -> Contender:
    check_sampler("the plain scan", sampler)
    energy = NAIVE_ENERGIES.get(workload.kind, workload.energy)
    h, num_leapfrog = sampler.step_size, sampler.num_leapfrog
    noise_std = math.sqrt(2 * h)

    def program(params, key, x0):
        value_and_grad = jax.vmap(jax.value_and_grad(functools.partial(energy, params)))

        def per_chain(array, x):
            return array.reshape(-1, *[1] * (x.ndim - 1))

        def total(array):
            return jnp.sum(array.reshape(len(array), -1), -1)

        def choose(key, log_ratio, proposal, state):
            accepted = jnp.log(jax.random.uniform(key, log_ratio.shape)) < log_ratio
            return jax.tree.map(
                lambda new, old: jnp.where(per_chain(accepted, new), new, old),
                proposal,
                state,
            )

        def langevin(key, state):
            x, _, g = state
            x = x - h * g + noise_std * jax.random.normal(key, x.shape)
            return x, *value_and_grad(x)

        def mala(key, state):
            noise_key, accept_key = jax.random.split(key)
            x, e, g = state
            noise = jax.random.normal(noise_key, x.shape)
            y = x - h * g + noise_std * noise
            new_e, new_g = value_and_grad(y)
            back = x - y + h * new_g
            log_ratio = e - new_e + 0.5 * total(noise**2) - total(back**2) / (4 * h)
            return choose(accept_key, log_ratio, (y, new_e, new_g), state)

        def hmc(key, state):
            momentum_key, accept_key = jax.random.split(key)
            start = jax.random.normal(momentum_key, state[0].shape)

            def leapfrog(_, carry):
                p, x, _, g = carry
                p = p - 0.5 * h * g
                x = x + h * p
                e, g = value_and_grad(x)
                return p - 0.5 * h * g, x, e, g

            p, *proposal = jax.lax.fori_loop(0, num_leapfrog, leapfrog, (start, *state))
            log_ratio = state[1] - proposal[1] + 0.5 * (total(start**2) - total(p**2))
            return choose(accept_key, log_ratio, tuple(proposal), state)

        move = {"langevin": langevin, "mala": mala, "hmc": hmc}[sampler.name]

        def body(state, step):
            return move(jax.random.fold_in(key, step), state), None

        state = (x0, *value_and_grad(x0))
        return jax.lax.scan(body, state, jnp.arange(num_steps))[0]

    if energy is not workload.energy:
        check = functools.partial(batched(energy), workload.params)
        check_energy(workload, x0, check, 1e-5)
    form = "our" if energy is workload.energy else "naive"
    settings = f"one jitted scan of batched moves, {form} energy, threefry"
    return jax_contender(program, workload.params, x0, settings)


def anneal(task: Task) -> Callable[[int], jax.Array]:
    """Returns annealed importance sampling by MALA, `log_partition(seed)`.

    The chains carry the energies and gradients of both ends, so that a move evaluates
    each once.
    """
    dim, h, num = (task.facts[x] for x in ("dim", "step_size", "num_fractions"))
    noise_std = math.sqrt(2 * h)

    def energy(x):
        return 0.5 * TARGET["precision"] * jnp.sum((x - TARGET["mean"]) ** 2)

    def reference(x):
        return 0.5 * jnp.sum(x**2) + 0.5 * dim * math.log(2 * math.pi)

    def ends(x):
        return [jax.vmap(jax.value_and_grad(end))(x) for end in (reference, energy)]

    def mix(fraction, ends):
        return jax.tree.map(lambda a, b: (1 - fraction) * a + fraction * b, *ends)

    def level(carry, inputs):
        x, both, log_weight = carry
        fraction, key = inputs
        log_weight -= (both[1][0] - both[0][0]) / num
        noise_key, accept_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, x.shape)
        e, g = mix(fraction, both)
        y = x - h * g + noise_std * noise
        new = ends(y)
        new_e, new_g = mix(fraction, new)
        back = x - y + h * new_g
        log_ratio = e - new_e + 0.5 * (noise**2 - back**2 / (2 * h)).sum(1)
        accepted = jnp.log(jax.random.uniform(accept_key, e.shape)) < log_ratio

        def choose(new, old):
            views = accepted.reshape(-1, *[1] * (new.ndim - 1))
            return jnp.where(views, new, old)

        x, both = jax.tree.map(choose, (y, new), (x, both))
        return (x, both, log_weight), None

    @jax.jit
    def run(seed):
        start_key, key = jax.random.split(jax.random.key(seed))
        x = jax.random.normal(start_key, (task.facts["num_chains"], dim))
        carry = x, ends(x), jnp.zeros(len(x))
        inputs = jnp.arange(1, num) / num, jax.random.split(key, num - 1)
        (_, both, log_weight), _ = jax.lax.scan(level, carry, inputs)
        log_weight -= (both[1][0] - both[0][0]) / num
        return jax.nn.logsumexp(log_weight) - math.log(len(x))

    return run


def make_program(task: Task) -> Program:
    run = anneal(task)
    # Other random numbers: the error is that of the estimates.
    return make_metric(
        task, lambda task, seed: run(seed), f"{version('jax')}: one jitted scan", 0.1
    )
