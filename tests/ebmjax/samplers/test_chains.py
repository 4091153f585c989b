"""Samplers: their laws are wrong, or exact, by exactly what theory says."""

import contextlib
import dataclasses
import functools
import gc
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cases import NOT_SAMPLERS, SAMPLERS, STANDARD
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ebmjax import diffusions, energies, samplers
from ebmjax.samplers.layout import BLOCK, Layout, lay_out
from ebmjax.samplers.walk import make_segment

partial = functools.partial


def test_every_public_sampler_has_a_case():
    factories = {name for name in samplers.__all__ if name.islower()}
    cases = {name.split(",")[0] for name in SAMPLERS}
    assert factories - NOT_SAMPLERS == cases


SHOWN = {
    "langevin": "langevin(step_size=0.3, temperature=1.0, gradient_clip=None,"
    " position_clip=None, project=<lambda>)",
    "mala": "mala(step_size=0.9, temperature=1.0, precision='highest')",
    "hmc": "hmc(step_size=1.3, num_leapfrog=3, inverse_mass=None,"
    " randomize_num_leapfrog=False, temperature=1.0, precision='highest')",
    "hmc, random lengths": "hmc(step_size=1.3, num_leapfrog=2, inverse_mass=None,"
    " randomize_num_leapfrog=True, temperature=1.0, precision='highest')",
    "underdamped": "underdamped(step_size=0.5, friction=1.0, temperature=1.0)",
    "independence": "independence(proposal=(sample, <lambda>), temperature=1.0,"
    " precision='highest')",
    "replica_exchange": "replica_exchange(make_sampler=<lambda>,"
    " temperatures=(1.0, 2.0), swap_every=2)",
    "from_blackjax": "from_blackjax(algorithm=GenerateSamplingAPI(differentiable="
    "<function as_top_level..., precision='highest', step_size=0.9,"
    " inverse_mass_matrix=float32[3], max_num_doublings=3)",
    "from_blackjax, barker": "from_blackjax(algorithm=GenerateSamplingAPI("
    "differentiable=<function as_top_level..., precision='highest', step_size=0.9)",
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_repr_of_a_sampler_is_its_name_and_its_options(name):
    sampler = SAMPLERS[name].make((3,))
    assert repr(sampler) == SHOWN[name]
    init, step = sampler
    assert (init, step) == (sampler.init, sampler.step)
    assert hash(sampler) == hash((init, step))
    other = sampler._replace(step=lambda *arguments: step(*arguments))
    assert repr(other).startswith("Sampler(init=<function")


@pytest.mark.quick
def test_the_repr_of_a_sampler_abbreviates_its_arrays_and_long_options():
    sampler = samplers.hmc(
        step_size=np.float32(0.1),
        num_leapfrog=np.int64(2),
        inverse_mass=jnp.ones((2, 3)),
        temperature=jnp.array(0.5),
    )
    assert repr(sampler) == (
        "hmc(step_size=0.1, num_leapfrog=2, inverse_mass=float32[2,3],"
        " randomize_num_leapfrog=False, temperature=0.5, precision='highest')"
    )
    make = partial(samplers.mala, step_size=0.1)
    ladder = samplers.replica_exchange(
        lambda temperature: make(temperature=temperature),
        temperatures=np.arange(1.0, 40.0).tolist(),
        swap_every=1,
    )
    start, rest = repr(ladder).split("temperatures=")
    option = rest.removesuffix(", swap_every=1)")
    assert start == "replica_exchange(make_sampler=<lambda>, "
    assert option.startswith("(1.0, 2.0, 3.0") and option.endswith("...")
    assert len(option) == 60
    shown = []
    jax.jit(lambda t: shown.append(repr(make(temperature=t))))(1.0)
    assert shown == ["mala(step_size=0.1, temperature=float32[], precision='highest')"]


# --- laws --------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("step_size", [0.1, 0.8])
def test_langevin_is_biased_exactly_as_theory_says(step_size, temperature):
    """On x^2 / 2 the move is an AR(1): x' = (1 - h) x + sqrt(2 h T) n.

    Its stationary variance is T / (1 - h / 2), not T. A test that only asked for "about
    T" would pass with a wrong factor of two in the noise at small h.
    """
    num_chains, num_steps = 20_000, 100  # (1 - h)^100 < 3e-5
    sampler = samplers.langevin(step_size=step_size, temperature=temperature)
    state, _ = samplers.sample_chains(
        sampler, STANDARD, jax.random.key(0), jnp.zeros(num_chains), num_steps
    )
    expected = temperature / (1.0 - step_size / 2.0)
    # A sample variance of N normals has relative standard error sqrt(2 / N).
    np.testing.assert_allclose(
        jnp.var(state.position), expected, rtol=5.0 * (2.0 / num_chains) ** 0.5
    )


def test_langevin_follows_its_transient_move_by_move():
    """The two-constant form x - a grad E + b n by the documented conversion.

    On E = (x - 1)^2 * 0.4 with a = 0.5, b = 0.3 the mean after k moves from 0 is
    1 - 0.6^k and the variance b^2 (1 - 0.36^k) / (1 - 0.36).
    """
    a, b, num_chains = 0.5, 0.3, 20_000
    sampler = samplers.langevin(step_size=a, temperature=b**2 / (2 * a))
    energy_fn = partial(energies.gaussian, {"mean": 1.0, "precision": 0.8})
    _, positions = samplers.sample_chains(
        sampler,
        energy_fn,
        jax.random.key(1),
        jnp.zeros(num_chains),
        4,
        collect=lambda state, info: state.position,
    )
    k = np.arange(1, 5)
    variances = b**2 * (1 - 0.36**k) / (1 - 0.36)
    errors = 5 * np.sqrt(variances / num_chains)
    assert (np.abs(positions.mean(1) - (1 - 0.6**k)) < errors).all()
    np.testing.assert_allclose(
        positions.var(1), variances, rtol=5 * (2 / num_chains) ** 0.5
    )


def test_langevin_without_temperature_is_gradient_descent():
    sampler = samplers.langevin(step_size=0.25, temperature=0.0)
    state, info = samplers.sample_chain(
        sampler, STANDARD, jax.random.key(0), jnp.array([16.0, -16.0]), 2
    )
    np.testing.assert_allclose(state.position, [9.0, -9.0])
    np.testing.assert_allclose(info.energy, [144.0, 81.0])
    np.testing.assert_allclose(
        info.gradient_norm, np.sqrt(2) * np.array([12.0, 9.0]), rtol=1e-6
    )


@pytest.mark.quick
def test_clips_are_elementwise_and_projection_comes_last():
    options = {"step_size": 1.0, "temperature": 0.0}
    x = jnp.array([5.0, 0.3, -5.0])

    def after_one_move(**more):
        sampler = samplers.langevin(**options, **more)
        state, _ = samplers.sample_chain(sampler, STANDARD, jax.random.key(0), x, 1)
        return state

    clipped = after_one_move(gradient_clip=1.0)
    np.testing.assert_allclose(clipped.position, [4.0, 0.0, -4.0])
    np.testing.assert_allclose(clipped.gradient, clipped.position)  # cached unclipped
    within = after_one_move(gradient_clip=1.0, position_clip=2.0)
    np.testing.assert_allclose(within.position, [2.0, 0.0, -2.0])
    pair = after_one_move(gradient_clip=1.0, position_clip=(-1.0, 3.0))
    np.testing.assert_allclose(pair.position, [3.0, 0.0, -1.0])
    projected = after_one_move(
        gradient_clip=1.0, position_clip=2.0, project=lambda x: 10 * x
    )
    np.testing.assert_allclose(projected.position, [20.0, 0.0, -20.0])


@pytest.mark.parametrize(
    "dimension, step_size", [(2, 0.5), (2, 1.3), (8, 0.6), (128, 0.2)]
)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_mala_is_exact_and_accepts_as_theory_says(dimension, step_size, temperature):
    """On a standard normal the log ratio is (h / 4) (|x|^2 - |y|^2) / T.

    That is a difference of two independent chi-squares with weights the eigenvalues of
    [[1 - a^2, -a b], [-a b, -b^2]], a = 1 - h, b^2 = 2 h, of trace -h^2 and determinant
    -2 h. A reversible move accepts with twice the probability that the ratio exceeds 1,
    which is a tail of Fisher's F with (d, d) degrees of freedom.
    """
    num_chains, num_steps = 4_000, 30
    h = step_size
    root = np.sqrt(h**4 + 8 * h)
    expected = 2 * scipy.stats.f(dimension, dimension).sf((root + h**2) / (root - h**2))

    sampler = samplers.mala(step_size=step_size, temperature=temperature)
    start_key, key = jax.random.split(jax.random.key(2))
    # Begun in equilibrium, so that nothing but an error of the move can show.
    x = temperature**0.5 * jax.random.normal(start_key, (num_chains, dimension))
    state, info = samplers.sample_chains(sampler, STANDARD, key, x, num_steps)

    # Chains are independent; their mean acceptances give the standard error.
    rates = info.acceptance_rate.mean(0)
    error = 5 * rates.std() / num_chains**0.5
    np.testing.assert_allclose(rates.mean(), expected, atol=error)
    accepted = info.is_accepted.mean(0)
    error = 5 * accepted.std() / num_chains**0.5
    np.testing.assert_allclose(accepted.mean(), expected, atol=error)
    # |x|^2 / T is chi-square with d degrees of freedom: mean d, variance 2 d, and a
    # sample variance of relative standard error sqrt((2 + 12 / d) / N).
    squares = np.asarray((state.position**2).sum(1) / temperature)
    error = 5 * (2 * dimension / num_chains) ** 0.5
    np.testing.assert_allclose(squares.mean(), dimension, atol=error)
    error = 5 * ((2 + 12 / dimension) / num_chains) ** 0.5
    np.testing.assert_allclose(squares.var(), 2 * dimension, rtol=error)


def test_mala_forgets_a_start_far_away_and_matches_a_skewed_law():
    """E(x) = exp(x) - x: the log-gamma law of shape 1."""
    num_chains = 10_000
    sampler = samplers.mala(step_size=0.7)
    state, info = samplers.sample_chains(
        sampler,
        lambda x: jnp.exp(x) - x,
        jax.random.key(3),
        jnp.full(num_chains, 2.0),
        400,
    )
    assert 0.2 < info.is_accepted.mean() < 0.9
    # Kolmogorov-Smirnov against the exact law: a wrong one fails far below this.
    p_value = scipy.stats.kstest(np.asarray(state.position), "loggamma", (1.0,)).pvalue
    assert p_value > 1e-4


def test_mala_refuses_infinite_energy_and_shows_nan():
    """Outside of |x| < 1 the first energy is infinite, the second NaN."""
    sampler = samplers.mala(step_size=4.0)
    x = jnp.zeros(500)

    def run(outside):
        energy_fn = lambda x: jnp.where(jnp.abs(x) < 1, 0.0, outside)  # noqa: E731
        return samplers.sample_chains(sampler, energy_fn, jax.random.key(0), x, 5)

    state, info = run(jnp.inf)
    assert (jnp.abs(state.position) < 1).all()
    assert (info.acceptance_rate == info.is_accepted).all()  # 0 or 1 on a flat energy
    state, info = run(jnp.nan)
    assert (jnp.abs(state.position) < 1).all()
    assert jnp.isnan(info.acceptance_rate).any()
    assert (~info.is_accepted[jnp.isnan(info.acceptance_rate)]).all()


# --- contract ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_the_state_caches_belongs_to_where_the_state_is(name):
    sampler = SAMPLERS[name].make((3,))
    x = jax.random.normal(jax.random.key(1), (200, 3))
    state, info = samplers.sample_chains(sampler, STANDARD, jax.random.key(0), x, 5)
    fresh = jax.vmap(partial(sampler.init, STANDARD))(state.position)
    for field in ("energy", "gradient", "log_prob"):
        if hasattr(state, field):
            np.testing.assert_allclose(
                getattr(state, field), getattr(fresh, field), rtol=1e-5, atol=1e-6
            )
    if hasattr(info, "is_accepted"):  # both branches were really taken
        assert 0.05 < info.is_accepted.mean() < 0.95
    if hasattr(state, "energy") and hasattr(info, "energy"):  # after the last move
        np.testing.assert_allclose(info.energy[-1], fresh.energy, rtol=1e-5, atol=1e-6)
    if hasattr(state, "gradient") and hasattr(info, "gradient_norm"):
        norms = np.linalg.norm(fresh.gradient, axis=1)
        np.testing.assert_allclose(info.gradient_norm[-1], norms, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_move_costs_as_many_gradients_as_it_says(name):
    """Counted at run time, by a callback in the energy's gradient."""
    count = []

    @jax.custom_vjp
    def energy_fn(x):
        return 0.5 * jnp.sum(x**2)

    def backward(x, g):
        jax.debug.callback(lambda x: count.extend([1] * (x.size // 3)), x)
        return (g * x,)

    energy_fn.defvjp(lambda x: (energy_fn(x), x), backward)
    case = SAMPLERS[name]
    state, info = samplers.sample_chain(
        case.make((3,)), energy_fn, jax.random.key(0), jnp.ones(3), 7
    )
    jax.block_until_ready(state)
    jax.effects_barrier()
    expected = case.num_start_gradients
    if case.num_gradients is None:
        expected += info.num_leapfrog.sum()
    else:
        expected += 7 * case.num_gradients
    assert len(count) == expected


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_energy_is_traced_no_more_than_it_must_nor_again_for_new_parameters(name):
    traces = []

    def energy(params, x):
        traces.append(1)
        return 0.5 * jnp.sum(params * x**2)

    sampler, x = SAMPLERS[name].make((3,)), jnp.ones((10, 3))
    for scale in (1.0, 2.0):
        energy_fn = partial(energy, jnp.full(3, scale))
        samplers.sample_chains(sampler, energy_fn, jax.random.key(0), x, 5)
    assert len(traces) == SAMPLERS[name].num_traces


@pytest.mark.parametrize("name", SAMPLERS)
def test_new_parameters_are_really_used(name):
    sampler, x = SAMPLERS[name].make((3,)), jnp.ones((100, 3))
    energy = lambda params, x: 0.5 * jnp.sum(params * x**2)  # noqa: E731
    run = partial(samplers.sample_chains, sampler, key=jax.random.key(0), x=x)
    ends = [
        run(energy_fn=partial(energy, jnp.full(3, scale)), num_steps=6)[0]
        for scale in (1.0, 2.0)
    ]
    assert (ends[0].position != ends[1].position).any()
    if hasattr(ends[1], "energy"):
        np.testing.assert_allclose(
            ends[1].energy, (ends[1].position ** 2).sum(1), rtol=1e-6
        )


@pytest.mark.parametrize(
    "name", [name for name, case in SAMPLERS.items() if case.is_key_checked]
)
def test_no_key_is_used_twice(name):
    with jax.debug_key_reuse(True):
        samplers.sample_chains(
            SAMPLERS[name].make((2,)), STANDARD, jax.random.key(0), jnp.ones((5, 2)), 3
        )


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_chain_and_every_move_has_noise_of_its_own(name):
    """From one point, on a flat energy, displacements are all distinct."""
    sampler = SAMPLERS[name].make(())
    _, positions = samplers.sample_chains(
        sampler,
        lambda x: 0.0 * x,
        jax.random.key(0),
        jnp.zeros(300),
        4,
        collect=lambda state, info: state.position,
    )
    steps = np.diff(np.concatenate([np.zeros((1, 300)), positions]), axis=0)
    steps = steps[steps != 0]  # a proposal that the flat energy refuses
    assert len(np.unique(steps)) == steps.size > 800


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("event_shape", [(), (3,), (2, 3, 1)])
def test_a_position_is_any_one_array(name, event_shape):
    """Numbers do not depend on how an event's elements are arranged."""
    size = int(np.prod(event_shape))
    run = partial(
        samplers.sample_chains, energy_fn=STANDARD, key=jax.random.key(0), num_steps=3
    )
    x = jax.random.normal(jax.random.key(1), (6, *event_shape))
    state, _ = run(SAMPLERS[name].make(event_shape), x=x)
    assert state.position.shape == x.shape
    flat, _ = run(SAMPLERS[name].make((size,)), x=x.reshape(6, size))
    np.testing.assert_allclose(
        state.position.reshape(6, size), flat.position, rtol=1e-5, atol=1e-6
    )


MAKE = {
    "langevin": lambda h: samplers.langevin(step_size=h),
    "mala": lambda h: samplers.mala(step_size=h),
    "hmc": lambda h: samplers.hmc(
        step_size=h, num_leapfrog=2, inverse_mass=np.full(2, h), temperature=1 + h
    ),
    "underdamped": lambda h: samplers.underdamped(
        step_size=h, friction=h, temperature=h
    ),
    "independence": lambda h: samplers.independence(
        proposal=(lambda key: h * jax.random.normal(key, (2,)), lambda x: 0.0 * h),
        temperature=1 + h,
    ),
    "replica_exchange": lambda h: samplers.replica_exchange(
        lambda t: samplers.mala(step_size=h * t, temperature=t),
        temperatures=(1.0, 1 + h),
        swap_every=1,
    ),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_position_keeps_its_type_whatever_that_of_the_step_size(name, dtype):
    with jax.enable_x64(True):
        x = jnp.ones((4, 2), dtype)
        for step_size in (np.float64(0.1), np.float32(0.1)):
            state, _ = samplers.sample_chains(
                MAKE[name](step_size), STANDARD, jax.random.key(0), x, 2
            )
            assert state.position.dtype == dtype
            assert (state.position != x).any()


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_an_energy_may_compute_in_another_type_than_the_position(name, dtype):
    """The state stays float32, and moves as with an energy in float32.

    A bfloat16 has 8 bits: gradients differ by 2^-8 of themselves, positions after two
    moves by less than that of their size.
    """

    def energy_fn(x):
        return 0.5 * jnp.sum(x.astype(dtype) ** 2)

    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(3), (200, 2), jnp.float32)
        sampler, key = MAKE[name](np.float32(0.3)), jax.random.key(0)
        state, _ = samplers.sample_chains(sampler, energy_fn, key, x, 2)
        plain, _ = samplers.sample_chains(sampler, STANDARD, key, x, 2)
        assert state.position.dtype == jnp.float32
        gap = np.abs(state.position - plain.position).max(1)
        # A rounded energy turns a few acceptances.
        tolerance = 0.02 if dtype == jnp.bfloat16 else 1e-5
        assert (gap < tolerance).mean() > 0.97


def test_a_new_partial_of_the_same_parts_is_not_traced_again():
    traces = []

    def energy(params, x, power):
        traces.append(1)
        return jnp.sum(jnp.abs(x - params) ** power) / power

    sampler, ends = samplers.langevin(step_size=0.3), []
    for mean in (0.0, 1.0, 2.0):
        energy_fn = partial(energy, jnp.full(2, mean), power=2)
        state, _ = samplers.sample_chains(
            sampler, energy_fn, jax.random.key(0), jnp.ones((3, 2)), 30
        )
        ends.append(float(state.position.mean()))
    assert len(traces) == 2 and ends[0] < ends[1] < ends[2]


def test_what_a_function_closes_over_may_be_traced():
    """Nothing that is handed over shows it: the program that is traced decides."""
    x, key = jnp.ones((64, 2)), jax.random.key(0)
    sampler = samplers.langevin(step_size=0.3)

    def run(precision):
        energy_fn = lambda x: 0.5 * precision * jnp.sum(x**2)  # noqa: E731
        return samplers.sample_chains(sampler, energy_fn, key, x, 3)[0].position

    precision = jax.device_put(2.0, jax.devices()[3])
    inside = jax.jit(run)(precision)
    assert inside.devices() == {jax.devices()[3]}
    np.testing.assert_allclose(inside, run(2.0), rtol=1e-6)


def test_means_are_collected_inside_of_a_shard_map():
    """With JAX's own check that what varies over devices is said to vary."""
    mesh = Mesh(jax.devices()[:4], ("chains",))
    chains = PartitionSpec("chains")

    def local(x):
        return samplers.sample_chains(
            samplers.mala(step_size=0.9),
            STANDARD,
            jax.random.key(0),
            x,
            4,
            collect=None,
        )[1].energy

    spread = jax.shard_map(local, mesh=mesh, in_specs=chains, out_specs=chains)
    x = jnp.ones((8, 2))
    alone = local(x[:2])
    np.testing.assert_allclose(jax.jit(spread)(x)[:2], alone, rtol=1e-5)


def test_bound_arguments_need_not_be_arrays():
    def energy(params, x, power):
        return jnp.sum(jnp.abs(x - params) ** power) / power

    run = partial(
        samplers.sample_chains,
        samplers.langevin(step_size=0.3),
        key=jax.random.key(0),
        x=jnp.ones((3, 2)),
        num_steps=2,
    )
    plain, _ = run(energy_fn=lambda x: 0.5 * jnp.sum((x - 1.0) ** 2))
    for bind in (partial, jax.tree_util.Partial):
        state, _ = run(energy_fn=bind(energy, jnp.ones(2), power=2))
        np.testing.assert_allclose(state.position, plain.position, rtol=1e-6)


# --- sample_chains -----------------------------------------------------------------


def test_sample_chain_is_the_sampler_move_by_move():
    sampler, key, x = samplers.langevin(step_size=0.2), jax.random.key(4), jnp.ones(3)
    state, infos = samplers.sample_chain(sampler, STANDARD, key, x, 3)
    expected = sampler.init(STANDARD, x)
    for step in range(3):
        step_key = jax.random.fold_in(key, step)
        expected, info = sampler.step(STANDARD, step_key, expected)
    np.testing.assert_allclose(state.position, expected.position, rtol=1e-6)
    np.testing.assert_allclose(infos.energy[-1], info.energy, rtol=1e-6)


@pytest.mark.slow
def test_numbers_depend_on_nothing_but_key_chain_and_move():
    """Fewer chains, thinning, burn-in and collecting change no number."""
    sampler, key = samplers.mala(step_size=0.9), jax.random.key(5)
    x = jax.random.normal(jax.random.key(6), (3 * BLOCK + 5, 2))
    run = partial(samplers.sample_chains, sampler, STANDARD, key)
    collect = lambda state, info: state.position  # noqa: E731
    state, positions = run(x, 11, collect=collect)
    fewer, _ = run(x[:70], 11)
    np.testing.assert_array_equal(state.position[:70], fewer.position)
    same, kept = run(x, 11, num_burn_in=2, thin=4, collect=collect)
    np.testing.assert_array_equal(state.position, same.position)
    np.testing.assert_array_equal(positions[jnp.array([5, 9])], kept)
    last, means = run(x, 11, num_burn_in=2, thin=4, collect=None)
    np.testing.assert_array_equal(state.position, last.position)
    _, infos = run(x, 11)
    np.testing.assert_allclose(
        means.acceptance_rate,
        infos.acceptance_rate[jnp.array([5, 9])].mean(0),
        rtol=1e-6,
    )


@pytest.mark.parametrize("num_chains", [3, 192, 3_001])
def test_numbers_are_the_same_on_any_devices_and_in_any_blocks(num_chains):
    """3,001 chains of 100 elements are walked in blocks of a device's share; 3 chains
    leave most devices with nothing but what fills them up."""
    sampler, key = samplers.mala(step_size=0.15), jax.random.key(7)
    x = jax.random.normal(jax.random.key(8), (num_chains, 100))
    assert lay_out(x, (key, x)).num_blocks == (3 if num_chains == 3_001 else 1)
    matrix = jnp.zeros((64, 64))  # larger blocks, for products with it
    layout = lay_out(x, (matrix, key, x))
    assert layout.num_blocks == (2 if num_chains == 3_001 else 1)
    run = partial(samplers.sample_chains, sampler, STANDARD, key)
    there = jax.device_put(x, jax.devices()[5])  # one device walks all chains at once
    assert lay_out(there, (key, there)) == Layout((jax.devices()[5],), 1, num_chains)
    alone, info = run(there, 6)
    assert alone.position.devices() == {jax.devices()[5]}
    state, spread = run(x, 6)
    np.testing.assert_array_equal(alone.position, state.position)
    np.testing.assert_array_equal(info.is_accepted, spread.is_accepted)
    assert 0.1 < info.is_accepted.mean() < 0.95
    _, means = run(x, 6, collect=None)
    np.testing.assert_allclose(means.energy, info.energy.mean(0), rtol=1e-5)


def test_chains_run_on_all_local_devices_unless_told_otherwise():
    x = jnp.zeros((64, 2))
    run = partial(samplers.sample_chains, samplers.langevin(step_size=0.1), num_steps=2)
    key = jax.random.key(0)
    state, infos = run(STANDARD, key, x)
    assert state.position.sharding.device_set == set(jax.devices())
    assert infos.energy.sharding.device_set == set(jax.devices())
    for num_devices in (2, 8):
        mesh = Mesh(jax.devices()[:num_devices], ("chains",))
        spread = NamedSharding(mesh, PartitionSpec("chains"))
        state, _ = run(STANDARD, key, jax.device_put(x, spread))
        assert state.position.sharding.device_set == set(mesh.devices)
    # Bound parameters say where, too, and inside of a program the program does.
    precision = jax.device_put(1.0, jax.devices()[2])
    energy_fn = partial(lambda p, x: 0.5 * p * jnp.sum(x**2), precision)
    assert run(energy_fn, key, x)[0].position.devices() == {jax.devices()[2]}
    inside = jax.jit(lambda x: run(STANDARD, key, x)[0].position)(x)
    assert len(inside.devices()) == 1
    np.testing.assert_array_equal(inside, state.position)
    with jax.default_device(jax.devices()[4]):
        assert run(STANDARD, key, jnp.zeros((64, 2)))[0].position.devices() == {
            jax.devices()[4]
        }


@pytest.mark.slow
def test_progress_is_reported_and_changes_nothing():
    """However burn-in, thinning and reports fall."""
    sampler, key = samplers.langevin(step_size=0.3), jax.random.key(5)
    x = jax.random.normal(jax.random.key(6), (70, 2))
    run = partial(samplers.sample_chains, sampler, STANDARD, key, x, 23)
    keep = lambda state, info: state.position  # noqa: E731
    for num_burn_in, thin in ((0, 1), (5, 3)):
        options = {"num_burn_in": num_burn_in, "thin": thin, "collect": keep}
        state, kept = run(**options)
        calls = []
        same, pieces = run(**options, on_progress=calls.append, progress_every=7)
        assert calls == [7, 14, 21]
        np.testing.assert_array_equal(state.position, same.position)
        np.testing.assert_array_equal(kept, pieces)
    options["collect"] = None
    _, means = run(**options)
    _, same = run(**options, on_progress=calls.append, progress_every=12)
    assert calls[3:] == [12]
    np.testing.assert_allclose(means.energy, same.energy, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        *("langevin", "hmc, random lengths", "underdamped"),
        pytest.param("replica_exchange", marks=pytest.mark.slow),
    ],
)
def test_a_run_in_parts_is_one_run_bitwise(name):
    """Its states, with what no position shows, and all that it collects."""
    sampler, key = SAMPLERS[name].make((2,)), jax.random.key(5)
    there = partial(jax.device_put, device=jax.devices()[1])
    x = there(jax.random.normal(jax.random.key(6), (70, 2)))
    run = partial(samplers.sample_chains, sampler, STANDARD, key)
    options = {"num_burn_in": 1, "thin": 2, "collect": lambda state, info: info}
    whole, infos = run(x, 9, **options)
    state, first = run(x, 3, **options)
    state = there(jax.tree.map(np.asarray, state))  # as it is read from a file
    state, second = run(None, 6, state=state, first_move=3, **options)
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    parts = jax.tree.map(lambda *leaves: np.concatenate(leaves), first, second)
    jax.tree.map(np.testing.assert_array_equal, parts, infos)
    assert len(jax.tree.leaves(first)[0]) == 1 and len(jax.tree.leaves(second)[0]) == 3


def test_a_run_that_is_killed_thrice_ends_as_one_that_is_not(tmp_path):
    """Every part ends with a file of the state and the draws. What comes after the last
    file is lost and made again; the position is a tree, and chains have conditions."""
    path, sampler = tmp_path / "run.npz", samplers.mala(step_size=0.2)
    there = partial(jax.device_put, device=jax.devices()[0])
    x = there({"a": jnp.ones((5, 2)), "b": jnp.zeros(5)})
    energy_fn = lambda x, c: jnp.sum((x["a"] - c) ** 2) + x["b"] ** 4  # noqa: E731
    collect = lambda state, info: state.position["b"]  # noqa: E731
    structure = jax.tree.structure(samplers.MALAState(x, 0, 0))

    def work(part, num_parts, num_steps=30):
        """Makes parts of some moves until the run is finished, or is killed."""
        state, draws, first = None, [], 0
        if path.exists():
            *leaves, draws, first = np.load(path).values()
            state = there(structure.unflatten(leaves))
            draws, first = [draws], int(first)
        for _ in range(num_parts):
            state, new = samplers.sample_chains(
                sampler,
                energy_fn,
                jax.random.key(7),
                x if first == 0 else None,
                part,
                condition=jnp.arange(5.0),
                num_burn_in=2,
                thin=2,
                collect=collect,
                state=state,
                first_move=first,
            )
            draws, first = [np.concatenate([*draws, new])], first + part
            np.savez(path, *jax.tree.leaves(state), draws[0], first)
            if first == num_steps:
                break
        return state, draws[0]

    for num_parts in (1, 2, 1):  # and then it is killed
        work(5, num_parts)
    state, draws = work(5, 100)
    path.unlink()
    whole, expected = work(30, 1)
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    np.testing.assert_array_equal(draws, expected)
    assert draws.shape == (14, 5) and len(np.unique(draws)) > 30


def test_a_state_from_which_no_run_can_go_on_is_refused():
    x, key = jnp.ones((4, 2)), jax.random.key(0)
    run = partial(samplers.sample_chains, LANGEVIN, STANDARD, key)
    state, _ = run(x, 2)
    go_on = partial(run, None, 2, first_move=2)
    with pytest.raises(ValueError, match="with x=None, got x of type ArrayImpl"):
        run(x, 2, state=state)
    with pytest.raises(ValueError, match="with x=None, got state of type dict"):
        go_on(state=state._asdict())
    other = samplers.UnderdampedState(x, x)
    message = r"a LangevinState of float32\[2\], .*, got a UnderdampedState of float32"
    with pytest.raises(ValueError, match=message):
        go_on(state=other)
    with pytest.raises(ValueError, match=r"state.*gradient must be .* 4 .*\(3, 2\)"):
        go_on(state=state._replace(gradient=x[:3]))
    with pytest.raises(ValueError, match="at most first_move . num_steps = 4, got 5"):
        go_on(state=state, num_burn_in=5)


@pytest.mark.parametrize("num_burn_in", [0, 3, 7])
@pytest.mark.parametrize("thin", [1, 2, 5])
def test_segments_collect_every_kept_move_once(num_burn_in, thin):
    """Whatever the ends: the moves collected are those of one run, in order."""
    for every in (1, 2, 3, 4, 7, 30):
        found = []
        for first in range(0, 30, every):
            end = min(first + every, 30)
            parts = make_segment(first, end, num_burn_in, thin)
            place = first + parts.num_lead
            if parts.has_odd:
                found.append(place)
                place += 1
            for _ in range(parts.num_periods):
                place += parts.thin
                found.append(place - 1)
            assert place + parts.num_tail == end
        assert found == list(range(num_burn_in + thin - 1, 30, thin))


@pytest.mark.slow
def test_memory_does_not_grow_with_moves_unless_they_are_kept():
    """Of the compiled program: its results and what it works with."""
    sampler, x = samplers.mala(step_size=0.9), jnp.zeros((64, 100))

    def size(num_steps, **options):
        run = partial(samplers.sample_chains, sampler, num_steps=num_steps, **options)
        compiled = jax.jit(partial(run, STANDARD)).lower(jax.random.key(0), x).compile()
        memory = compiled.memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    for options in ({"collect": None}, {"collect": lambda state, info: ()}):
        few, many = size(10, **options), size(10_000, **options)
        assert many - few < 4 * 10_000 + 1_000  # the moves' numbers, and no state
    keep = lambda state, info: state.position  # noqa: E731
    kept = size(10_000, num_burn_in=1_000, thin=100, collect=keep)
    assert kept - few < 1.2 * (90 * x.nbytes) + 4 * 10_000


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_nan_shows_in_its_own_chain_only(name):
    """A chain in a place where the energy is NaN; the others move as without it."""
    sampler = SAMPLERS[name].make((2,))
    energy_fn = lambda x: jnp.where(x[0] > 99, jnp.nan, 0.5) * jnp.sum(x**2)  # noqa: E731
    x = jax.random.normal(jax.random.key(1), (300, 2))
    run = partial(samplers.sample_chains, sampler, energy_fn, jax.random.key(0))
    clean, _ = run(x, 4)
    state, infos = run(x.at[123].set(100.0), 4)
    np.testing.assert_array_equal(
        np.delete(state.position, 123, 0), np.delete(clean.position, 123, 0)
    )
    is_shown = np.zeros(300, bool)
    for leaf in jax.tree.leaves((state, infos)):
        leaf = np.asarray(leaf, np.float32)
        chains = leaf.shape.index(300)
        others = tuple(axis for axis in range(leaf.ndim) if axis != chains)
        is_shown |= np.isnan(leaf).any(others)
    np.testing.assert_array_equal(np.flatnonzero(is_shown), [123])


def test_no_moves_leave_the_start_and_collect_nothing():
    x = jnp.arange(6.0).reshape(3, 2)
    run = partial(
        samplers.sample_chains,
        samplers.langevin(step_size=0.3),
        STANDARD,
        jax.random.key(0),
        x,
        0,
    )
    state, infos = run()
    np.testing.assert_array_equal(state.position, x)
    assert infos.energy.shape == (0, 3)


def test_the_streaming_mean_loses_nothing_in_long_runs():
    """20,000 equal terms: a float32 sum would have lost the last digits."""
    sampler = samplers.langevin(step_size=1e-3, temperature=0.0)
    _, means = samplers.sample_chains(
        sampler,
        lambda x: jnp.float32(16.1) + 0.0 * x,
        jax.random.key(0),
        jnp.zeros(2),
        20_000,
        collect=None,
    )
    np.testing.assert_allclose(means.energy, 16.1, rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": -1}, "num_steps must be a whole number of at least 0, got -1"),
        ({"num_steps": 4.0}, "num_steps must be a whole number of at least 0, got 4.0"),
        ({"thin": 0}, "thin must be a whole number of at least 1, got 0"),
        ({"progress_every": 0}, "progress_every must be a whole number of at least 1"),
        ({"num_burn_in": 9}, "num_burn_in must be at most num_steps = 5, got 9"),
        ({"x": jnp.zeros(())}, r"x must be floating-point \[chains"),
        ({"x": jnp.zeros((4, 2), int)}, "x must be floating-point.*int32"),
        ({"key": jax.random.PRNGKey(0)}, "key must be a typed key.*uint32"),
        ({"key": 0}, "key must be a typed key.*int"),
        (
            {"x": jnp.zeros((0, 2))},
            r"x must have at least one chain, got shape \(0, 2\)",
        ),
        ({"energy_fn": lambda x: x}, r"must return a scalar.*\(2,\).*got shape \(2,\)"),
    ],
)
def test_sample_chains_names_what_is_wrong(options, message):
    arguments = {
        "sampler": samplers.langevin(step_size=0.3),
        "energy_fn": STANDARD,
        "key": jax.random.key(0),
        "x": jnp.zeros((4, 2)),
        "num_steps": 5,
    }
    with pytest.raises(ValueError, match=message):
        samplers.sample_chains(**arguments | options)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: samplers.langevin(step_size=0.0), "step_size must be positive, got 0"),
        (
            lambda: samplers.langevin(step_size=float("nan")),
            "step_size must be positive",
        ),
        (
            lambda: samplers.langevin(step_size=1.0, temperature=-1.0),
            "temperature must not be negative, got -1",
        ),
        (
            lambda: samplers.langevin(step_size=1.0, position_clip=(1.0, -1.0)),
            "position_clip must be",
        ),
        (
            lambda: samplers.langevin(step_size=1.0, gradient_clip=-1.0),
            "gradient_clip must be positive",
        ),
        (lambda: samplers.mala(step_size=-1.0), "step_size must be positive"),
        (
            lambda: samplers.mala(step_size=1.0, temperature=0.0),
            "temperature must be positive",
        ),
    ],
)
def test_samplers_refuse_hyper_parameters_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- functions that are made anew, and functions that are kept ---------------------

KEY = jax.random.key(0)
LANGEVIN = samplers.langevin(step_size=0.1)
SCALE = jnp.ones(3)


def quadratic(params, x):
    return 0.5 * jnp.sum(params * x**2)


def _sample(energy_fn=STANDARD, sampler=LANGEVIN, num_steps=2, num_chains=4, **options):
    x = jnp.ones((num_chains, 3))
    return samplers.sample_chains(sampler, energy_fn, KEY, x, num_steps, **options)[0]


@contextlib.contextmanager
def warns_once(*words):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert len(caught) == 1, [str(one.message) for one in caught]
    assert issubclass(caught[0].category, UserWarning)
    assert caught[0].filename == __file__  # where sample_chains was called
    for word in words:
        assert word in str(caught[0].message)


@contextlib.contextmanager
def warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_function_made_anew_in_a_loop_is_named():
    once = "outside the loop"
    with warns_once("sample_chains", "collect was made anew", __file__, once):
        for _ in range(3):
            _sample(collect=lambda state, info: ())
    with warns_once("sampler was made anew", "langevin(step_size=0.11, ", once):
        for _ in range(3):
            _sample(sampler=samplers.langevin(step_size=0.11))
    params = SCALE
    bind = "functools.partial(energy, params)"
    with warns_once("energy_fn was made anew", "<lambda>", once, bind):
        for _ in range(3):
            params = params + 1
            _sample(lambda x: quadratic(params, x))  # noqa: B023
    with warns_once("energy_fn was made anew", bind):
        for _ in range(3):
            _sample(partial(lambda params, x: quadratic(params, x), params))
    with warns_once("energy_fn was made anew", bind):
        for _ in range(3):
            _sample(jax.jit(lambda x: quadratic(params, x)))
    with warns_once("sampler and energy_fn were made anew", "Define them once"):
        for _ in range(3):
            _sample(lambda x: 2 * quadratic(params, x), samplers.mala(step_size=0.11))


def test_a_loop_of_a_module_reads_its_parameters_from_globals():
    """There the lambda closes over nothing; both are one function made three times."""
    program = "for scale in scales:\n    run(lambda x: quadratic(scale, x))"
    scope = {"run": _sample, "quadratic": quadratic}
    scope["scales"] = [jnp.full(3, scale) for scale in (1.0, 2.0, 3.0)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(program, "loop.py", "exec"), scope)
    (warning,) = caught
    assert "<lambda> at loop.py:2" in str(warning.message)


def test_a_function_that_makes_an_energy_for_every_call_is_noticed_at_the_fifth():
    def evaluate(params):
        return _sample(lambda x: quadratic(params, x))

    with warns_of_nothing():
        for scale in (1.0, 2.0, 3.0, 4.0):
            evaluate(jnp.full(3, scale))
    with warns_once("energy_fn was made anew"):
        evaluate(jnp.full(3, 5.0))
    with warns_of_nothing():
        evaluate(jnp.full(3, 6.0))


def test_functions_that_are_needed_raise_no_alarm():
    def make(params):
        return lambda x: quadratic(params, x)

    ensemble = [make(jnp.full(3, float(scale))) for scale in range(3)]
    ladder = [samplers.langevin(step_size=0.1, temperature=t) for t in (1.0, 0.5)]
    masses = [np.full(3, mass) for mass in (1.0, 2.0)]
    heavy = [
        samplers.hmc(step_size=0.1, num_leapfrog=2, inverse_mass=m) for m in masses
    ]
    many = [make(jnp.full(3, float(scale))) for scale in range(7)]
    with warns_of_nothing():
        for _ in range(2):  # functions of one factory, each used again and again
            for energy_fn in ensemble:
                _sample(energy_fn)
        for energy_fn in many:
            _sample(energy_fn)
            _sample(energy_fn)
        for sampler in (*ladder, *heavy):  # samplers with other options
            _sample(sampler=sampler)
        for power in (2, 3):  # numbers that differ, which are static
            _sample(lambda x: jnp.sum(jnp.abs(x) ** power))  # noqa: B023
            _sample(partial(lambda x, power: jnp.sum(jnp.abs(x) ** power), power=power))
        kept = lambda state, info: state.position  # noqa: E731
        for num_steps, num_chains in ((2, 4), (3, 4), (2, 5)):  # other shapes
            _sample(num_steps=num_steps, num_chains=num_chains, collect=kept)
        for scale in (1.0, 2.0, 3.0):  # bound parameters
            _sample(partial(quadratic, jnp.full(3, scale)), collect=kept)
        jax.clear_caches()
        _sample(collect=kept)
        for value in (1.0, 2.0):  # what is collected needs the values
            reference = jnp.full(3, value)
            _sample(collect=lambda state, info: state.position - reference)  # noqa: B023


def test_nothing_is_said_of_functions_that_are_traced():
    with warns_of_nothing():
        for _ in range(3):

            def run(x):
                energy_fn, collect = lambda x: x @ x, lambda state, info: ()
                return samplers.sample_chains(
                    LANGEVIN, energy_fn, KEY, x, 2, collect=collect
                )[0].position

            jax.jit(run)(jnp.ones((4, 3)))


def test_functions_are_not_kept_alive():
    energy_fn = lambda x: quadratic(SCALE, x)  # noqa: E731
    collect = lambda state, info: ()  # noqa: E731
    sampler = samplers.langevin(step_size=0.12)
    _sample(energy_fn, sampler, collect=collect)
    made = [weakref.ref(made) for made in (energy_fn, collect, sampler.step)]
    del energy_fn, collect, sampler
    jax.clear_caches()  # jax.jit keeps its static arguments
    gc.collect()
    assert [reference() for reference in made] == [None] * 3


@pytest.mark.parametrize("is_numpy", [False, True])
def test_a_kept_function_whose_values_have_changed_is_named(is_numpy):
    array = np.asarray if is_numpy else jnp.asarray
    params = {"scale": array(np.ones(3, np.float32))}
    energy_fn = lambda x: quadratic(params["scale"], x)  # noqa: E731
    old = "still uses the value that 'params' had when energy_fn (test_a_kept"
    before = _sample(energy_fn)
    with warns_of_nothing():
        _sample(energy_fn)
    params = {"scale": array(np.full(3, 5, np.float32))}
    with warns_once(old, "functools.partial(energy, params)"):
        after = _sample(energy_fn)
    # It is as the warning says.
    np.testing.assert_array_equal(before.position, after.position)
    with warns_of_nothing():  # it is said once
        _sample(energy_fn)
        # Another shape is compiled with the present values...
        fresh = _sample(energy_fn, num_chains=5)
        assert (fresh.position[:4] != after.position).all()
    params["scale"] = 2 * params["scale"]
    with warns_once(old):  # ... which are old by now: changed in place
        _sample(energy_fn, num_chains=5)


def test_all_that_a_kept_function_reads_is_looked_at(monkeypatch):
    monkeypatch.setitem(globals(), "SCALE", jnp.ones(3))
    scale, power, reference = jnp.ones(3), 2, jnp.zeros(3)
    double = np.ones(3)  # float64, which is compiled as float32
    inner = lambda x: quadratic(scale, x)  # noqa: E731
    functions = {
        "SCALE": lambda x: quadratic(SCALE, x),
        "scale": lambda x: inner(x),
        "power": lambda x: jnp.sum(jnp.abs(x) ** power),
        "double": lambda x: quadratic(double, x),
    }
    bound = partial(lambda params, x: quadratic(params * scale, x), jnp.ones(3))
    collect = lambda state, info: state.position - reference  # noqa: E731
    for energy_fn in (*functions.values(), bound):
        _sample(energy_fn)
    _sample(collect=collect)
    monkeypatch.setitem(globals(), "SCALE", 2 * SCALE)
    scale, power, reference, double = 2 * scale, 3, reference + 1, 2 * double
    for name, energy_fn in functions.items():
        with warns_once(f"the value that '{name}' had when energy_fn"):
            _sample(energy_fn)
    with warns_once("the value that 'scale' had when energy_fn"):
        _sample(bound)
    with warns_once("'reference' had when collect", "Make the function anew"):
        _sample(collect=collect)


class Quadratic:
    """An energy with parameters of its own, called as it is or by a method."""

    def __init__(self):
        self.scale, self.power, self.weights = jnp.ones(3), 2, {"w": jnp.ones(3)}
        self.history, self.epoch, self.num_traces = np.ones(3), 0, 0

    @property
    def exponent(self):
        return self.power

    def __call__(self, x):
        self.num_traces += 1  # its own: a trace changes it
        return jnp.sum(self.scale * self.weights["w"] * jnp.abs(x) ** self._of())

    def _of(self):
        return self.exponent

    def energy(self, x):
        return self(x)

    def collect(self, state, info):
        return state.position - self.scale


class Bound(Quadratic):
    def __call__(self, params, x):
        return super().__call__(params * x)


@dataclasses.dataclass  # which has no hash, as it has __eq__
class Fields:
    scale: jax.Array
    power: int = 2

    def __call__(self, x):
        return jnp.sum(self.scale * jnp.abs(x) ** self.power)


USES = {
    "object": (Quadratic(), lambda model: model),
    "method": (Quadratic(), lambda model: model.energy),
    "lambda": (Quadratic(), lambda model: lambda x: model(x)),
    "lambda of a method": (Quadratic(), lambda model: lambda x: model.energy(x)),
    "partial": (Bound(), lambda model: partial(model, jnp.ones(3))),
}


@pytest.mark.parametrize("use", USES)
def test_a_kept_object_whose_attributes_have_changed_is_named(use):
    model, function_of = USES[use]
    kept = function_of(model)
    # A method is another object every time, but equal.
    energy_fn = (lambda: model.energy) if use == "method" else (lambda: kept)
    before = _sample(energy_fn())
    model.epoch, model.history = 1, np.zeros(3)  # which the energy does not read
    model.scale, model.cache = jnp.ones(3), jnp.ones(3)  # an equal one, and a new one
    with warns_of_nothing():
        _sample(energy_fn())
    old = "still uses the value that '{}' had when energy_fn (of class "
    bind = "functools.partial(energy, params)"
    model.scale = 5 * jnp.ones(3)
    with warns_once(old.format("scale"), "attributes are read once", bind):
        after = _sample(energy_fn())
    # It is as the warning says.
    np.testing.assert_array_equal(before.position, after.position)
    with warns_of_nothing():  # it is said once
        _sample(energy_fn())
        # Another shape is compiled with the present values...
        fresh = _sample(energy_fn(), num_chains=5)
        assert (fresh.position[:4] != after.position).all()
    model.weights["w"] = 2 * model.weights["w"]
    with warns_once(old.format("weights")):  # ... which are old by now
        _sample(energy_fn(), num_chains=5)
    model.power = 4
    with warns_once(old.format("power")):
        _sample(energy_fn(), num_chains=5)


def test_an_object_is_looked_at_in_whatever_way_it_reaches_the_program():
    """Also one that has no hash, one in a jitted function, and that of `collect`."""
    fields, model, other = Fields(jnp.ones(3)), Quadratic(), Quadratic()
    energy_fns = (fields, partial(fields), jax.jit(model.energy))
    with warns_of_nothing():
        for energy_fn in 2 * energy_fns:
            _sample(energy_fn)
        _sample(collect=other.collect)
    fields.scale, model.scale, other.scale = 2 * fields.scale, 2 * SCALE, 2 * SCALE
    for energy_fn in energy_fns:
        with warns_once("'scale' had when energy_fn (of class"):
            _sample(energy_fn)
    with warns_once("'scale' had when collect", "Make the function anew"):
        _sample(collect=other.collect)


def test_objects_are_not_kept_alive():
    model = Quadratic()
    _sample(model)
    _sample(USES["lambda of a method"][1](model))
    reference = weakref.ref(model)
    del model
    jax.clear_caches()  # jax.jit keeps its static arguments
    gc.collect()
    assert reference() is None


def test_one_chain_is_compiled_once_and_watched_as_many_are():
    num_traces = 0

    def energy(params, x):
        nonlocal num_traces
        num_traces += 1
        return quadratic(params, x)

    def sample(energy_fn):
        return samplers.sample_chain(LANGEVIN, energy_fn, KEY, jnp.ones(3), 2)[0]

    with warns_of_nothing():
        first = sample(partial(energy, jnp.ones(3)))
        num_first, second = num_traces, sample(partial(energy, 2 * jnp.ones(3)))
        assert num_traces == num_first
        assert (second.position != first.position).all()
    params = SCALE
    with warns_once("sample_chain compiled", "energy_fn was made anew", "Define it"):
        for _ in range(3):
            params = params + 1
            sample(lambda x: quadratic(params, x))  # noqa: B023
    kept = lambda x: quadratic(params, x)  # noqa: E731
    sample(kept)
    params = params + 1
    with warns_once("sample_chain still uses the value that 'params' had"):
        sample(kept)
    with warns_of_nothing():  # where it is traced, the caller's jit decides
        for scale in (1.0, 2.0, 3.0):
            jax.jit(lambda params: sample(lambda x: quadratic(params, x)))(scale)


def test_values_that_are_not_compiled_or_are_equal_raise_no_alarm():
    num_traces, params, unused, epoch = 0, {"scale": jnp.ones(3)}, jnp.ones(3), 0
    state = (params, {"moments": jnp.zeros(3)}, epoch)

    def energy_fn(x):
        nonlocal num_traces
        num_traces += 1  # the function's own: a trace changes it
        return quadratic(state[0]["scale"], x) + (0.0 if params else unused.sum())

    _sample(energy_fn)
    _sample(energy_fn, num_chains=5)
    # Other values beside those that the energy reads, and equal ones for these.
    state = ({"scale": jnp.ones(3)}, {"moments": jnp.ones(3)}, 1)
    unused = 2 * unused
    with warns_of_nothing():
        _sample(energy_fn)
        _sample(energy_fn)
    state = ({"scale": jnp.full(3, 2.0)}, {"moments": jnp.ones(3)}, 1)
    with warns_once("'state'"):
        _sample(energy_fn)


def test_chains_through_energies_and_diffusions_are_watched_too():
    x, levels = jnp.ones((4, 3)), jnp.array([1.0, 2.0])
    diffusion = diffusions.variance_preserving()
    score_fn = lambda x, time: -x  # noqa: E731
    with warns_once("sample_annealed", "make_sampler was made anew"):
        for _ in range(3):
            samplers.sample_annealed(
                lambda level: samplers.langevin(step_size=0.1 * level),
                _scaled,
                levels,
                KEY,
                x,
                2,
            )
    with warns_once("sample_diffusion", "score_fn was made anew"):
        for _ in range(3):
            samplers.sample_diffusion(diffusion, lambda x, time: -x, KEY, x, 2)
    with warns_once("sample_diffusion", "diffusion was made anew"):
        for _ in range(3):
            samplers.sample_diffusion(
                diffusion._replace(std=lambda time: 1 + time), score_fn, KEY, x, 3
            )


def _scaled(level):
    return partial(quadratic, level)


# --- the chain as a generator ------------------------------------------------------


def _network_energy(activation):
    """Two random layers; piecewise linear for a leaky ReLU."""
    w1 = jax.random.normal(jax.random.key(10), (6, 16)) / 6**0.5
    w2 = jax.random.normal(jax.random.key(11), (16, 16)) / 4
    w3 = jax.random.normal(jax.random.key(12), (16,)) / 4

    def energy_fn(x):
        return activation(activation(x @ w1) @ w2) @ w3

    return energy_fn


LEAKY = _network_energy(partial(jax.nn.leaky_relu, negative_slope=0.2))
SMOOTH = _network_energy(jax.nn.silu)


def test_the_chain_of_a_piecewise_linear_energy_has_the_identity_for_jacobian():
    """Every move is x + constant + noise where the energy is linear; 0.35 is typical of
    a smooth activation."""
    sampler = samplers.langevin(step_size=0.1, temperature=5e-5)
    z = jax.random.uniform(jax.random.key(1), (6,), minval=-1.0)

    def jacobian(energy_fn, kind):
        generate = samplers.chain_generator(sampler, energy_fn, 20, jacobian=kind)
        return jax.jacrev(partial(generate, jax.random.key(0)))(z)

    np.testing.assert_allclose(jacobian(LEAKY, "autodiff"), np.eye(6), atol=1e-6)
    np.testing.assert_array_equal(jacobian(LEAKY, "identity"), np.eye(6))
    np.testing.assert_array_equal(jacobian(SMOOTH, "identity"), np.eye(6))
    assert np.abs(jacobian(SMOOTH, "autodiff") - np.eye(6)).max() > 0.05


def test_a_generator_is_the_chain_with_the_same_key():
    sampler = samplers.langevin(step_size=0.1)
    z, key = jnp.ones(6), jax.random.key(3)
    expected, _ = samplers.sample_chain(sampler, SMOOTH, key, z, 9)
    for kind in ("autodiff", "identity"):
        generate = samplers.chain_generator(sampler, SMOOTH, 9, jacobian=kind)
        np.testing.assert_allclose(generate(key, z), expected.position, rtol=1e-5)


def test_the_jacobian_of_a_linear_chain_is_this_number():
    """On |x|^2 / 2 a move multiplies by 1 - h: dx/dz = 0.9^5."""
    generate = samplers.chain_generator(samplers.langevin(step_size=0.1), STANDARD, 5)
    got = jax.jacrev(partial(generate, jax.random.key(0)))(jnp.ones(2))
    np.testing.assert_allclose(got, 0.9**5 * np.eye(2), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["autodiff", "identity"])
def test_inversion_finds_the_beginning_of_what_a_chain_made(kind):
    """A linear energy shifts z by a constant and noise: the residual halves a step."""
    energy_fn = lambda x: x @ jnp.arange(6.0)  # noqa: E731
    sampler = samplers.langevin(step_size=0.05, temperature=1.0)
    generate = samplers.chain_generator(sampler, energy_fn, 10, jacobian=kind)
    key = jax.random.key(5)
    truth = jax.random.uniform(jax.random.key(6), (4, 6), minval=-1.0)
    target = jax.vmap(generate)(jax.random.split(key, 4), truth)
    z, losses = samplers.invert_chain(
        generate, key, jnp.zeros((4, 6)), target, num_iterations=30, step_size=0.25
    )
    np.testing.assert_allclose(z, truth, atol=1e-5)
    # Down to float32's resolution of positions of order 1: 1e-14 for a square.
    np.testing.assert_allclose(losses[1:9], losses[:8] / 4, rtol=1e-2)


def test_inversion_returns_the_best_beginning_it_visited():
    """On a piecewise linear energy the loss jumps; the last step is not the best."""
    sampler = samplers.langevin(step_size=0.5, temperature=5e-5)
    generate = samplers.chain_generator(sampler, LEAKY, 10, jacobian="identity")
    key, target = jax.random.key(5), jnp.full((32, 6), 0.3)
    z, losses = samplers.invert_chain(
        generate, key, jnp.zeros((32, 6)), target, num_iterations=40, step_size=0.4
    )
    ends = jax.vmap(generate)(jax.random.split(key, 32), z)
    reached = ((ends - target) ** 2).sum(1)
    np.testing.assert_allclose(reached, losses.min(0), rtol=1e-4, atol=1e-9)
    assert (reached < losses[-1]).any()


def test_inversion_of_a_linear_chain_contracts_as_theory_says():
    """x = c z without noise: the residual shrinks by 1 - 2 eta c^2 a step."""
    sampler = samplers.langevin(step_size=0.1, temperature=0.0)
    generate = samplers.chain_generator(sampler, STANDARD, 5)
    c, eta = 0.9**5, 0.3
    _, losses = samplers.invert_chain(
        generate,
        jax.random.key(0),
        jnp.zeros((1, 2)),
        jnp.ones((1, 2)),
        num_iterations=6,
        step_size=eta,
    )
    expected = 2.0 * (1 - 2 * eta * c**2) ** (2 * np.arange(6))
    np.testing.assert_allclose(losses[:, 0], expected, rtol=1e-4)


def test_inversion_moves_only_what_is_observed():
    sampler = samplers.langevin(step_size=0.05, temperature=5e-5)
    generate = samplers.chain_generator(sampler, LEAKY, 3, jacobian="identity")
    mask = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    z0 = jax.random.uniform(jax.random.key(1), (2, 6), minval=-1.0)
    z, losses = samplers.invert_chain(
        generate,
        jax.random.key(0),
        z0,
        0.5 * jnp.stack([mask, mask]),
        num_iterations=30,
        step_size=0.25,
        observe=lambda x: x * mask,
        project=lambda z: jnp.clip(z, -1, 1),
    )
    np.testing.assert_array_equal(z[:, 3:], z0[:, 3:])
    assert (losses[-1] < 1e-3).all()


def test_inversion_names_what_is_wrong():
    generate = samplers.chain_generator(samplers.langevin(step_size=0.3), STANDARD, 2)
    run = partial(samplers.invert_chain, generate, jax.random.key(0), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(2, 4\)"):
        run(jnp.zeros((2, 4)), num_iterations=1, step_size=0.1)
    with pytest.raises(ValueError, match="step_size must be positive"):
        run(jnp.zeros((2, 3)), num_iterations=1, step_size=0.0)
    with pytest.raises(ValueError, match="jacobian must be.*'exact'"):
        samplers.chain_generator(
            samplers.langevin(step_size=0.3), STANDARD, 2, jacobian="exact"
        )
