"""Arguments that would otherwise give silent wrong numbers, or errors of JAX's own."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GAUSSIAN_PARAMS, OBJECTIVES, STANDARD

from ebmjax import energies, metrics, objectives, samplers, starts
from ebmjax.objectives import (
    entropy_gradient,
    f_contrastive,
    flow_contrastive,
    generalized,
    learned_stein,
    max_entropy,
    variational,
)

KEY = jax.random.key(0)
BATCH = jnp.ones((4, 3))
PARAMS = {
    "energy": jnp.ones(()),
    "critic": jnp.ones(()),
    "flow": jnp.ones(()),
    "base": jnp.ones(()),
    "generator": jnp.ones(()),
    "statistics": jnp.ones(()),
    "log_partition": jnp.zeros(()),
    "posterior": jnp.zeros(3),
}
MALA = samplers.mala(step_size=0.1)


def sample(key):
    return jax.random.normal(key, (3,))


def log_prob(x):
    return -0.5 * jnp.sum(x**2)


def energy(params, x):
    return params * jnp.sum(x**2)


def vector(*arguments):
    """Returns a value for each element, the sum that was forgotten."""
    return arguments[-1] ** 2


def column(*arguments):
    """Returns a value of shape [1], as a last layer of one unit does."""
    return jnp.sum(arguments[-1] ** 2, keepdims=True)


def draw(params, x):
    """Returns an example from a latent or a key."""
    return params * (sample(x) if x.ndim == 0 else x)


REFERENCE = {"sampler": MALA, "key": KEY, "num_chains": 2, "fractions": 2}
NOISE = {"noise_distribution": (sample, log_prob)}
FLOW = (draw, lambda params, x: log_prob(x))

FUNCTIONS = {
    "importance_sampling": lambda f: metrics.importance_sampling(
        f, KEY, proposal=(sample, log_prob), num_samples=4
    ),
    "log_prob of proposal": lambda f: metrics.importance_sampling(
        log_prob, KEY, proposal=(sample, f), num_samples=4
    ),
    "quadrature": lambda f: metrics.quadrature(f, [(-1, 1)], 5),
    "annealed_importance_sampling": lambda f: metrics.annealed_importance_sampling(
        energy_fn=f, reference=(sample, log_prob), **REFERENCE
    ),
    "log_prob of reference": lambda f: metrics.annealed_importance_sampling(
        energy_fn=log_prob, reference=(sample, f), **REFERENCE
    ),
    "kernel_stein_test": lambda f: metrics.kernel_stein_test(f, KEY, BATCH),
    "kernel_stein_discrepancy": lambda f: metrics.kernel_stein_discrepancy(f, BATCH),
    "sample_chains": lambda f: samplers.sample_chains(MALA, f, KEY, BATCH, 2),
    "sample_chain": lambda f: samplers.sample_chain(MALA, f, KEY, BATCH[0], 2),
    "init": lambda f: MALA.init(f, BATCH[0]),
    "independence": lambda f: samplers.sample_chains(
        samplers.independence(proposal=(sample, f)), log_prob, KEY, BATCH, 2
    ),
    "coupled_chains": lambda f: samplers.coupled_chains(
        f, KEY, BATCH[0], BATCH[0], step_size=0.1, max_steps=2
    ),
    "coupled_gibbs_chains": lambda f: samplers.coupled_gibbs_chains(
        f, KEY, BATCH[0], BATCH[0], max_steps=2
    ),
    "chain_generator": lambda f: samplers.chain_generator(MALA, f, 2)(KEY, BATCH[0]),
    "reference_fn": lambda f: energies.tilt(log_prob, f, 0.5)(BATCH[0]),
    "energy_fn": lambda f: energies.latent_energy(f, lambda z: z)(BATCH[0]),
    "score": lambda f: energies.score(f)(1.0, BATCH[0]),
}


@pytest.mark.quick
@pytest.mark.parametrize("bad", [vector, column])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_density_that_is_no_scalar_is_refused_by_its_name(name, bad):
    """Each would broadcast, and give another number or an error of JAX's own."""
    argument = name if "log_prob" in name or "_fn" in name else "(energy|log_prob)"
    with pytest.raises(ValueError, match=rf"{argument}.* must return a scalar .*\("):
        FUNCTIONS[name](bad)


TRAINED = {
    "energy": {
        "contrastive": lambda f: objectives.contrastive_divergence(
            f, sampler=MALA, num_steps=1, start=starts.data()
        ),
        "conditional": lambda f: objectives.conditional_noise_contrastive(
            f, noise_scale=0.1
        ),
        "denoising": lambda f: objectives.denoising_score_matching(f, noise_scale=0.1),
        "differences": lambda f: objectives.finite_difference_score_matching(
            f, step=0.1
        ),
        "entropy_gradient": lambda f: entropy_gradient.energy_objective(
            f, draw, latent_dim=3, noise_scale=0.1
        ),
        "entropy_gradient, generator": lambda f: entropy_gradient.generator_objective(
            f, draw, latent_dim=3, noise_scale=0.1
        ),
        "f_contrastive": lambda f: f_contrastive.energy_objective(
            f, energy, sample=draw
        ),
        "flow_contrastive": lambda f: flow_contrastive.energy_objective(f, FLOW),
        "generalized": lambda f: generalized.energy_objective(f, draw, latent_dim=3),
        "generalized, base": lambda f: generalized.base_objective(
            f, draw, latent_dim=3
        ),
        "kernel_stein": lambda f: objectives.kernel_stein(f),
        "learned_stein": lambda f: learned_stein.energy_objective(
            f, lambda params, x: x
        ),
        "max_entropy": lambda f: max_entropy.energy_objective(
            f, draw, latent_dim=3, score_penalty=0.1
        ),
        "minimum_probability_flow": lambda f: objectives.minimum_probability_flow(f),
        "minimum_velocity": lambda f: objectives.minimum_velocity(f, step_size=0.1),
        "noise_contrastive": lambda f: objectives.noise_contrastive(f, **NOISE),
        "ratio_matching": lambda f: objectives.ratio_matching(f),
        "score_matching": lambda f: objectives.score_matching(f),
        "self_contrastive": lambda f: objectives.self_contrastive(f, sample=draw),
        "unbiased": lambda f: objectives.unbiased_contrastive_divergence(
            f, step_size=0.1, start=starts.data(), num_steps=1, max_steps=2
        ),
        "variational": lambda f: variational.energy_objective(f, FLOW),
        "variational, flow": lambda f: variational.flow_objective(f, FLOW),
    },
    "critic": {
        "f_contrastive": lambda f: f_contrastive.critic_objective(
            energy, f, sample=draw
        ),
    },
    "statistics": {
        estimator: lambda f, estimator=estimator: max_entropy.generator_objective(
            energy, draw, f, latent_dim=3, information_weight=1.0, estimator=estimator
        )
        for estimator in ("jsd", "nce", "donsker_varadhan")
    },
    "log_prob": {
        "noise_contrastive": lambda f: objectives.noise_contrastive(
            energy, noise_distribution=(sample, f)
        ),
        "flow_contrastive": lambda f: flow_contrastive.flow_objective(
            energy, (draw, f)
        ),
        "variational": lambda f: variational.flow_objective(energy, (draw, f)),
        "generalized": lambda f: generalized.energy_objective(
            energy, draw, latent_dim=3, base_log_prob=f
        ),
        "likelihood": lambda f: generalized.likelihood(f),
    },
}


@pytest.mark.parametrize("bad", [vector, column])
@pytest.mark.parametrize(
    "argument, name", [(a, name) for a, cases in TRAINED.items() for name in cases]
)
def test_an_objective_refuses_what_is_no_scalar(argument, name, bad):
    """Binary and noise contrastive losses would be means of wrong values."""
    objective = TRAINED[argument][name](bad)
    with pytest.raises(ValueError, match=rf"{argument}.* must return a scalar .*\("):
        jax.eval_shape(objective.loss, PARAMS, KEY, BATCH, objective.init(KEY))


@pytest.mark.parametrize("shape", [(1,), (3,)])
def test_a_log_partition_of_another_shape_is_refused(shape):
    params = PARAMS | {"log_partition": jnp.zeros(shape)}
    for objective in (
        objectives.noise_contrastive(energy, **NOISE),
        flow_contrastive.energy_objective(energy, FLOW),
        generalized.energy_objective(energy, draw, latent_dim=3),
    ):
        with pytest.raises(ValueError, match=rf"log_partition .* got \({shape[0]},\)"):
            objective.loss(params, KEY, BATCH, ())


def test_a_telescoping_bridge_that_is_no_scalar_is_refused():
    """Three bridges of [1] and three constants would be summed as [3, 3]."""
    params = PARAMS | {"log_partition": jnp.zeros(3)}
    model = objectives.telescoping_energy(lambda p, x, i: column(x), **NOISE)
    with pytest.raises(ValueError, match=r"energy must return a scalar .* \(1,\)"):
        model(params, BATCH[0])


INTEGERS = {"ratio_matching", "minimum_probability_flow"}
"""Objectives of data of two values, which may be integers."""


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - INTEGERS))
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_an_objective_refuses_a_batch_of_integers(name, dtype):
    objective, batch = OBJECTIVES[name](), jnp.ones((8, 2), dtype)
    carry = jax.eval_shape(objective.init, KEY)
    with pytest.raises(ValueError, match="batch must be floating-point .*int"):
        jax.eval_shape(objective.loss, GAUSSIAN_PARAMS, KEY, batch, carry)


@pytest.mark.parametrize(
    "objective",
    [
        f_contrastive.critic_objective(energy, energy, sample=draw),
        flow_contrastive.flow_objective(energy, FLOW),
        variational.flow_objective(energy, FLOW),
        learned_stein.critic_objective(energy, lambda p, x: x, l2_weight=1.0),
        entropy_gradient.posterior_objective(draw, latent_dim=3, noise_scale=0.1),
        generalized.energy_objective(energy, draw, latent_dim=3),
        generalized.base_objective(energy, draw, latent_dim=3),
        generalized.likelihood(energy),
        max_entropy.energy_objective(energy, draw, latent_dim=3, score_penalty=0.0),
        max_entropy.generator_objective(
            energy, draw, None, latent_dim=3, information_weight=0.0
        ),
    ],
)
def test_an_objective_of_several_players_refuses_a_batch_of_integers(objective):
    with pytest.raises(ValueError, match="batch must be floating-point .*int32"):
        jax.eval_shape(objective.loss, PARAMS, KEY, jnp.ones((4, 3), int), ())


def test_metrics_of_examples_refuse_integers():
    for metric in (
        functools.partial(metrics.kernel_stein_test, STANDARD, KEY),
        functools.partial(metrics.kernel_stein_discrepancy, STANDARD),
        metrics.median_distance,
    ):
        with pytest.raises(ValueError, match="x must be floating-point .*int32"):
            metric(jnp.ones((4, 3), int))


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


@pytest.mark.parametrize(
    "x",
    [
        {"a": jnp.ones((4, 2))},
        (jnp.ones(4), jnp.ones(4)),
        [jnp.ones(4), np.ones(4)],
        Pair(jnp.ones(4), jnp.ones(4)),
        Pair(1.0, 2.0),
        None,
    ],
)
def test_positions_that_are_not_one_array_are_refused(x):
    """Two arrays [4] would be stacked to two chains of four elements."""
    reference = {"reference": (sample, log_prob), "fractions": 2}
    for run in (
        lambda: samplers.sample_chains(MALA, STANDARD, KEY, x, 5),
        lambda: samplers.sample_chain(MALA, STANDARD, KEY, x, 5),
        lambda: samplers.sample_annealed(
            lambda level: MALA, lambda level: STANDARD, jnp.ones(2), KEY, x, 1
        ),
        lambda: samplers.adapt(
            samplers.mala, STANDARD, KEY, x, 50, target_acceptance_rate=0.5
        ),
        lambda: metrics.reverse_annealed_importance_sampling(
            MALA, STANDARD, KEY, x, **reference
        ),
        lambda: samplers.coupled_chains(
            STANDARD, KEY, x, jnp.ones(4), step_size=1.0, max_steps=2
        ),
        lambda: metrics.kernel_stein_test(STANDARD, KEY, x),
    ):
        with pytest.raises(ValueError, match=r"x must be one .* array .*, got .*ravel"):
            run()


def test_draws_of_a_reference_that_are_no_array_are_refused_by_its_name():
    with pytest.raises(ValueError, match="draws of reference must be one .* dict"):
        metrics.annealed_importance_sampling(
            MALA,
            STANDARD,
            KEY,
            reference=(lambda key: {"a": sample(key)}, log_prob),
            num_chains=2,
        )


def test_a_list_of_numbers_is_one_array():
    x = [[0.0, 1.0], [2.0, 3.0]]
    state, _ = samplers.sample_chains(MALA, STANDARD, KEY, x, 3)
    same, _ = samplers.sample_chains(MALA, STANDARD, KEY, jnp.asarray(x), 3)
    np.testing.assert_array_equal(state.position, same.position)


def test_one_position_without_an_axis_of_chains_is_noticed():
    """It is as many chains of one number, if the energy takes those as well."""
    with pytest.warns(UserWarning, match=r"\(3,\), which is 3 chains of one number"):
        samplers.sample_chains(MALA, log_prob, KEY, jnp.zeros(3), 1)


def test_chains_of_numbers_are_fine_if_the_energy_takes_nothing_else(recwarn):
    samplers.sample_chains(MALA, lambda x: 0.5 * x**2, KEY, jnp.zeros(3), 1)
    samplers.sample_chains(MALA, log_prob, KEY, jnp.zeros((1, 3)), 1)
    assert not [w for w in recwarn if "chains of one number" in str(w.message)]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: samplers.langevin(step_size=jnp.inf), "step_size must be finite"),
        (lambda: samplers.mala(step_size="0.1"), "step_size must be one number"),
        (lambda: samplers.mala(step_size=jnp.ones(2)), "step_size must be one number"),
        (
            lambda: samplers.hmc(step_size=0.1, num_leapfrog=1, temperature=np.inf),
            "temperature must be finite, got inf",
        ),
        (
            lambda: starts.replay(
                jax.random.normal, event_shape=(2,), capacity=1e3, reinit_prob=0.1
            ),
            "capacity must be a whole number of at least 1, got 1000.0",
        ),
        (
            lambda: objectives.denoising_score_matching(energy, noise_scale=np.inf),
            "noise_scale must be finite",
        ),
        (
            lambda: metrics.stein_kernel(BATCH, BATCH, bandwidth=np.inf),
            "bandwidth must be finite",
        ),
    ],
)
def test_numbers_that_are_not_finite_or_not_one_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
