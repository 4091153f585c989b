"""Arguments that would otherwise give silent wrong numbers, or errors of JAX's own."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GAUSSIAN_PARAMS, OBJECTIVES, SAMPLERS, STANDARD

from ebmjax import (
    counter_prng,
    energies,
    metrics,
    objectives,
    samplers,
    starts,
    targets,
)
from ebmjax.checks import at_precision, check_key
from ebmjax.networks import convolution
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
        lambda: samplers.sample_annealed(
            lambda level: MALA, lambda level: STANDARD, jnp.ones(2), KEY, x, 1
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
            lambda: samplers.mala(step_size=0.1, precision="float16"),
            "precision must be one of .*'highest', None.*, got 'float16'",
        ),
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


# --- keys


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_whose_draws_depend_on_vmap_are_refused(impl):
    """Two chains with keys of their own draw other numbers than each draws alone."""
    key = jax.random.key(0, impl=impl)
    draw = lambda key: jax.random.normal(key, (3,))  # noqa: E731
    keys = jax.random.split(key)
    assert (jax.vmap(draw)(keys)[1] != draw(keys[1])).any()  # why
    message = f"key must draw the same numbers in and out of jax.vmap.*got {impl}"
    with pytest.raises(ValueError, match=message):
        samplers.sample_chains(MALA, log_prob, key, BATCH, 2)
    with pytest.raises(ValueError, match=message):
        jax.jit(check_key)(key)
    for impl in ("threefry2x32", counter_prng.IMPL):
        key = jax.random.key(0, impl=impl)
        check_key(key)
        keys = jax.random.split(key)
        np.testing.assert_array_equal(jax.vmap(draw)(keys)[1], draw(keys[1]))


# --- precision of products

HIGHEST = jax.lax.Precision.HIGHEST


def equations(jaxpr):
    """Yields the equations of a program and of the programs in it."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(equation.params):
            if hasattr(part, "eqns"):
                yield from equations(getattr(part, "jaxpr", part))


def precisions(function, *arguments):
    """Returns the precisions of the convolutions and the products of matrices.

    Products with a vector are left out: samplers write their sums so.
    """
    found = []
    for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        name, params = equation.primitive.name, equation.params
        if name.startswith("convolution"):
            found.append(jax.lax.Precision(params["options"].precision or "default"))
        elif name == "dot_general" and min(x.aval.ndim for x in equation.invars) > 1:
            pair = params["precision"] or (jax.lax.Precision.DEFAULT,)
            found += [jax.lax.Precision(precision) for precision in pair]
    return found


def products(kernel, x):
    """Energy with a matrix product and a convolution."""
    image = (x[None] @ kernel[0, 0])[None, None]
    numbers = ("NHWC", "HWIO", "NHWC")
    y = convolution(image, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return jnp.sum(jnp.sin(y))


def run(sampler, kernel):
    energy_fn = functools.partial(products, kernel)
    x = jnp.ones((2, 3)) + kernel.sum()
    return samplers.sample_chains(sampler, energy_fn, KEY, x, 2)[0].position


KERNEL = jnp.ones((1, 1, 3, 3))
UNADJUSTED = {"langevin", "underdamped"}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_that_refuse_compute_all_products_in_float32(name):
    found = precisions(functools.partial(run, SAMPLERS[name].make((3,))), KERNEL)
    assert len(found) >= 4
    expected = {jax.lax.Precision.DEFAULT} if name in UNADJUSTED else {HIGHEST}
    assert set(found) == expected


@pytest.mark.parametrize("precision", ["default", "high", None])
@pytest.mark.parametrize("name", ["mala", "hmc", "independence"])
def test_the_precision_of_a_sampler_can_be_chosen(name, precision):
    make = {
        "mala": functools.partial(samplers.mala, step_size=0.1),
        "hmc": functools.partial(samplers.hmc, step_size=0.1, num_leapfrog=3),
        "independence": functools.partial(
            samplers.independence, proposal=(sample, log_prob)
        ),
    }[name]
    program = functools.partial(run, make(precision=precision))
    expected = jax.lax.Precision(precision or "default")
    assert set(precisions(program, KERNEL)) == {expected}
    # None is the precision of the caller, which the others do not ask for.
    caller = at_precision("highest")(program)
    expected = HIGHEST if precision is None else expected
    assert set(precisions(caller, KERNEL)) == {expected}
    # And of a program that differentiates the chain.
    backwards = jax.grad(lambda kernel: jnp.sum(program(kernel)))
    expected = jax.lax.Precision(precision or "default")
    assert set(precisions(backwards, KERNEL)) == {expected}


def of_energy(function):
    """Returns `function` of the energy of the kernel's products."""
    return lambda kernel: function(functools.partial(products, kernel))


def batched(energy, params):
    """Returns the energies of three examples, which are the rows of the kernel."""
    return lambda kernel: jax.vmap(functools.partial(energy, params))(kernel[0, 0])


def ais(make_sampler):
    return of_energy(
        lambda energy_fn: (
            metrics.annealed_importance_sampling(
                make_sampler(), energy_fn, **{k: REFERENCE[k] for k in ANNEAL}, **DRAW
            ).log_weights
        )
    )


ANNEAL = ("key", "num_chains", "fractions")
DRAW = {"reference": (sample, log_prob)}
MATRIX = jnp.eye(3)
MANY = jnp.ones((5, 3, 4))  # of more dimensions than are written out

PRECISE = {
    "ais, mala": ais(lambda: samplers.mala(step_size=0.1, precision=None)),
    "ais, hmc": ais(
        lambda: samplers.hmc(step_size=0.1, num_leapfrog=1, precision=None)
    ),
    "importance_sampling": of_energy(
        lambda f: metrics.importance_sampling(
            f, KEY, proposal=(sample, log_prob), num_samples=4
        )[0]
    ),
    "kernel_stein_discrepancy": of_energy(
        lambda f: metrics.kernel_stein_discrepancy(f, BATCH)
    ),
    "kernel_stein_test": of_energy(
        lambda f: metrics.kernel_stein_test(f, KEY, BATCH).statistic
    ),
    "stein_kernel": lambda kernel: metrics.stein_kernel(kernel.sum() * MANY, MANY),
    "median_distance": lambda kernel: metrics.median_distance(kernel.sum() * MANY),
    "coupled_chains": of_energy(
        lambda f: (
            samplers.coupled_chains(
                f, KEY, BATCH[0], BATCH[0], step_size=0.1, max_steps=2
            ).leader
        )
    ),
    "coupled_gibbs_chains": of_energy(
        lambda f: (
            samplers.coupled_gibbs_chains(
                f, KEY, BATCH[0], BATCH[0], max_steps=2
            ).leader
        )
    ),
    "gaussian": batched(energies.gaussian, {"mean": jnp.zeros(3), "precision": MATRIX}),
    "gaussian_mixture": batched(
        energies.gaussian_mixture,
        {
            "means": MATRIX,
            "precisions": jnp.stack([MATRIX] * 3),
            "log_weights": jnp.zeros(3),
        },
    ),
    "gaussian_bernoulli_rbm": batched(
        energies.gaussian_bernoulli_rbm,
        {
            "weights": MATRIX,
            "visible_bias": jnp.zeros(3),
            "hidden_bias": jnp.zeros(3),
        },
    ),
    "ica": batched(energies.ica, {"unmixing": MATRIX}),
    "targets.ica": lambda kernel: targets.ica(np.eye(3)).sample(KEY, 2),
}


@pytest.mark.parametrize("name", PRECISE)
def test_closed_forms_and_metrics_compute_all_products_in_float32(name):
    function = PRECISE[name]
    found = precisions(function, KERNEL)
    assert found and set(found) == {HIGHEST}
    backwards = jax.grad(lambda kernel: jnp.sum(function(kernel)).astype(jnp.float32))
    assert set(precisions(backwards, KERNEL)) <= {HIGHEST}


def test_quadrature_computes_all_products_in_float32():
    """It looks at its grid, so it cannot be traced as a whole."""
    seen = []

    def energy_fn(x):
        seen.append(jax.config.jax_default_matmul_precision)
        return jnp.sum(x**2)

    metrics.quadrature(energy_fn, (-1.0, 1.0), 5)
    assert set(seen) == {"highest"}


def test_energies_of_swaps_are_computed_in_float32():
    """The levels' states have none, and their moves need not be accurate."""
    sampler = samplers.replica_exchange(
        lambda t: samplers.underdamped(step_size=0.1, friction=1.0, temperature=t),
        temperatures=(1.0, 2.0),
        swap_every=1,
    )
    found = precisions(functools.partial(run, sampler), KERNEL)
    assert set(found) == {HIGHEST, jax.lax.Precision.DEFAULT}


def test_the_precision_reaches_programs_of_other_platforms():
    """Convolutions are lowered to those of `lax` when the context is gone."""
    program = jax.jit(functools.partial(run, MALA)).trace(KERNEL)
    for platform in ("cuda", "tpu"):
        text = program.lower(lowering_platforms=(platform,)).as_text()
        lines = [
            line
            for line in text.splitlines()
            if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
        ]
        assert len(lines) >= 8
        for line in lines:
            assert "[HIGHEST, HIGHEST]" in line or "HIGHEST>, #" in line
