"""What an update costs, in gradients of the mean energy: counted, not timed.

One gradient in the parameters is an energy forwards and twice that back: three energies
(the first layer's input asks for none, which takes off a few percent). A score is two,
and differentiating it in the parameters makes three times as much of it: two gradients.
A Hessian-vector product, forward over reverse, is two scores and has the score itself
in it: four gradients. Every further one at the same place adds two.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import networks, objectives, samplers, starts
from ebmjax.objectives import (
    f_contrastive,
    flow_contrastive,
    learned_stein,
    variational,
)

NORMAL = (
    lambda key: jax.random.normal(key, (32,)),
    lambda x: -0.5 * jnp.sum(x**2),
)
FLOW = (lambda params, key: NORMAL[0](key), lambda params, x: NORMAL[1](x))


def slope(params, x):
    """A critic that costs nothing beside the energy."""
    return params * x


class Case(NamedTuple):
    make: Callable  # (energy) -> Objective
    num_gradients: int  # in 32 dimensions


CASES = {
    "score_matching": Case(objectives.score_matching, 2 + 2 * 32),
    "non_negative_score_matching": Case(
        objectives.non_negative_score_matching, 2 + 2 * 32
    ),
    "sliced_score_matching": Case(objectives.sliced_score_matching, 4),
    "sliced_score_matching, not variance-reduced": Case(
        lambda e: objectives.sliced_score_matching(e, variance_reduced=False), 4
    ),
    "sliced_score_matching, 3 projections": Case(
        lambda e: objectives.sliced_score_matching(e, num_projections=3), 2 + 3 * 2
    ),
    "finite_difference_score_matching": Case(
        lambda e: objectives.finite_difference_score_matching(e, step=0.1), 3
    ),
    "denoising_score_matching": Case(
        lambda e: objectives.denoising_score_matching(e, noise_scale=0.1), 4
    ),
    "denoising_score_matching, control variate": Case(
        lambda e: objectives.denoising_score_matching(
            e, noise_scale=0.1, variance_reduction="control_variate"
        ),
        4,
    ),
    "denoising_score_matching, one score": Case(
        lambda e: objectives.denoising_score_matching(
            e, noise_scale=0.1, variance_reduction=None
        ),
        2,
    ),
    "multi_scale_denoising_score_matching": Case(
        lambda e: objectives.multi_scale_denoising_score_matching(
            lambda params, x, scale: e.apply(params, x) / scale,
            noise_scales=[0.1, 1.0],
        ),
        2,
    ),
    # A score and an energy, three times.
    "minimum_velocity": Case(
        lambda e: objectives.minimum_velocity(e, step_size=0.01), 3
    ),
    "kernel_stein": Case(lambda e: objectives.kernel_stein(e, bandwidth=1.0), 2),
    "noise_contrastive": Case(
        lambda e: objectives.noise_contrastive(e, noise_distribution=NORMAL), 2
    ),
    "noise_contrastive, 4 of noise": Case(
        lambda e: objectives.noise_contrastive(
            e, noise_distribution=NORMAL, num_noise=4
        ),
        1 + 4,
    ),
    "conditional_noise_contrastive": Case(
        lambda e: objectives.conditional_noise_contrastive(e, noise_scale=0.1), 2
    ),
    # The energy held fixed is the same energy.
    "self_contrastive": Case(
        lambda e: objectives.self_contrastive(
            e, sample=lambda params, key: NORMAL[0](key)
        ),
        2,
    ),
    "ratio_matching": Case(objectives.ratio_matching, 1 + 32),
    "minimum_probability_flow": Case(objectives.minimum_probability_flow, 1 + 32),
    "learned_stein, energy": Case(
        lambda e: learned_stein.energy_objective(e, slope), 2
    ),
    "flow_contrastive, energy": Case(
        lambda e: flow_contrastive.energy_objective(e, FLOW), 2
    ),
    "f_contrastive, energy": Case(
        lambda e: f_contrastive.energy_objective(
            e,
            lambda params, x: params * x[0],
            sample=lambda params, key: NORMAL[0](key),
        ),
        2,
    ),
    "variational, energy": Case(lambda e: variational.energy_objective(e, FLOW), 2),
}


@functools.cache
def compiled(make, dimension=32, num_examples=64, is_gradient=True):
    """The program of an objective's loss of a wide network, or of its gradient."""
    network = networks.mlp_energy((dimension,), widths=(256, 256), activation="swish")
    objective = make(network)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    params = {
        "energy": jax.eval_shape(lambda key: network.init(key)[0], jax.random.key(0)),
        "log_partition": number,
        "flow": {},
        "critic": number,
    }
    batch = jax.ShapeDtypeStruct((num_examples, dimension), jnp.float32)

    def loss(trained, others, batch):
        params = others | {"energy": trained}
        return objective.loss(params, jax.random.key(0), batch, ())[0]

    program = jax.grad(loss) if is_gradient else loss
    lowered = jax.jit(program).lower(params["energy"], params, batch)
    # Operations and memory are XLA's, before LLVM makes machine code of them.
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


def mean_energy(network):
    def loss(params, key, batch):
        return jax.vmap(network.apply, (None, 0))(params["energy"], batch).mean(), {}

    return objectives.stateless(loss)


def num_gradients(make, dimension=32):
    found, one = (
        compiled(m, dimension).cost_analysis()["flops"] for m in (make, mean_energy)
    )
    return found / one


@pytest.mark.parametrize("name", CASES)
def test_an_update_costs_as_many_gradients_as_it_should(name):
    """Products with matrices are nearly all of it. Not less, and more by what the first
    layer's input and the activations cost: 11 % and 3 % of an energy forwards. XLA's
    count depends a little on the library that it hands the products to."""
    make, expected = CASES[name]
    found = num_gradients(make)
    assert expected <= found < 1.065 * expected


def test_every_exact_slice_costs_two_gradients_and_the_slices_of_signs_none():
    """In 8 and in 32 dimensions."""
    exact, sliced = (
        [num_gradients(make, dimension) for dimension in (8, 32)]
        for make in (objectives.score_matching, objectives.sliced_score_matching)
    )
    np.testing.assert_allclose((exact[1] - exact[0]) / 24, 2, rtol=0.06)
    np.testing.assert_allclose(sliced[1], sliced[0], rtol=0.03)


def memory(make, dimension, **options):
    analysis = compiled(make, dimension, **options).memory_analysis()
    return analysis.temp_size_in_bytes


@pytest.mark.quick
def test_slices_keep_nothing_for_every_dimension():
    """From 8 to 32 dimensions an update's memory grows by no more than eight arrays of
    the batch's size; the exact trace's, which keeps what every slice made, nearly by
    their number."""
    sliced, exact = (
        [memory(make, dimension) for dimension in (8, 32)]
        for make in (objectives.sliced_score_matching, objectives.score_matching)
    )
    assert sliced[1] - sliced[0] <= 8 * 64 * (32 - 8) * 4
    assert exact[1] > 3 * exact[0]


def test_the_exact_trace_is_taken_in_blocks():
    """Of 128 dimensions each: the value of 1,024 takes less than three times the memory
    of the value of 128, for vectors that are longer and not for more of them."""
    values = [
        memory(objectives.score_matching, d, num_examples=4, is_gradient=False)
        for d in (128, 1_024)
    ]
    assert values[1] < 3 * values[0]


# --- objectives with chains: a loop's body is counted once, so energies are


def num_energies(make):
    """Evaluations of the energy for every example, in an update."""
    count = []

    def energy(params, x):
        jax.debug.callback(lambda x: count.append(1), x)
        return params * jnp.sum(x**2)

    objective, batch = make(energy), jnp.ones((3, 2))

    def loss(params):
        return objective.loss({"energy": params}, jax.random.key(0), batch, carry)[0]

    carry = objective.init(jax.random.key(1))
    jax.block_until_ready(jax.jit(jax.grad(loss))(0.5))
    jax.effects_barrier()
    assert len(count) % 3 == 0
    return len(count) / 3


@pytest.mark.parametrize("num_steps", [1, 4])
def test_contrastive_divergence_costs_two_energies_and_a_gradient_a_move(num_steps):
    """And one to start; with the last move attached, a start and an energy more."""

    def make(**options):
        return lambda energy: objectives.contrastive_divergence(
            energy,
            sampler=samplers.langevin(step_size=0.1),
            num_steps=num_steps,
            start=starts.data(),
            **options,
        )

    assert num_energies(make()) == 2 + num_steps + 1
    attached = num_energies(make(last_step_gradient=True))
    assert attached == 2 + num_steps + 1 + 2


def test_coupled_chains_cost_two_energies_a_move_and_as_many_to_differentiate():
    """Two starts, the leader's first move and both chains' others; the data, and every
    position that was kept."""
    num = 5

    def make(energy):
        return objectives.unbiased_contrastive_divergence(
            energy, step_size=1.0, start=starts.data(), num_steps=1, max_steps=num
        )

    chains = 2 + 1 + 2 * (num - 1)
    assert num_energies(make) == chains + 1 + (2 * num + 1)
