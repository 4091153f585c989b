"""Blocks of chains on an accelerator: less memory and the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import STANDARD

from ebmjax import diffusions, metrics, samplers
from ebmjax.samplers import layout

KEY = jax.random.key(0)
WIDTH = 500


@pytest.fixture
def small_accelerator(monkeypatch):
    """Programs are divided as on an accelerator with room for a few chains."""
    monkeypatch.setattr(layout.Layout, "is_on_cpu", False)
    monkeypatch.setattr(layout, "MOST_BYTES", 10 * 4 * WIDTH)


def energy(params, x):
    """Energy whose `WIDTH` hidden values are kept for its gradient."""
    return 0.1 * jnp.sum(jnp.sin(params @ x)) + 0.5 * jnp.sum(x**2)


PARAMS = jax.random.normal(jax.random.key(1), (WIDTH, 3))
ENERGY = functools.partial(energy, PARAMS)
X = jax.random.normal(jax.random.key(2), (37, 3))


def make_mala():
    """Returns a new sampler, for which a new program is traced."""
    return samplers.mala(step_size=0.1)


def sample(**options):
    state, infos = samplers.sample_chains(make_mala(), ENERGY, KEY, X, 4, **options)
    return state.position, infos.acceptance_rate


def anneal():
    state, infos = samplers.sample_annealed(
        lambda level: samplers.mala(step_size=0.1 * level),
        lambda level: ENERGY,
        jnp.array([1.0, 2.0]),
        KEY,
        X,
        3,
    )
    return state.position, infos.acceptance_rate


def weigh():
    found = metrics.annealed_importance_sampling(
        make_mala(),
        ENERGY,
        KEY,
        reference=(lambda key: jax.random.normal(key, (3,)), lambda x: -STANDARD(x)),
        num_chains=37,
        fractions=3,
    )
    return found.position, found.log_weights


def adapt():
    found = samplers.adapt(
        lambda step_size: samplers.mala(step_size=step_size),
        ENERGY,
        KEY,
        X,
        50,
        target_acceptance_rate=0.574,
    )
    return found.position, found.step_size


def diffuse():
    return samplers.sample_diffusion(
        diffusions.variance_preserving(),
        lambda x, time: -jax.grad(ENERGY)(x),
        KEY,
        X,
        3,
        num_corrections=1,
    )


PROGRAMS = {
    "sample_chains": sample,
    "sample_chains, means": functools.partial(sample, collect=None),
    "sample_chains, thinned": functools.partial(sample, num_burn_in=1, thin=2),
    "sample_chains, progress": functools.partial(
        sample, on_progress=lambda count: None, progress_every=3
    ),
    "sample_chains, traced": lambda: jax.jit(lambda: sample())(),
    "sample_annealed": anneal,
    "annealed_importance_sampling": weigh,
    "adapt": adapt,
    "sample_diffusion": diffuse,
}


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.filterwarnings("ignore:.*compiled the same program again")
@pytest.mark.parametrize("name", PROGRAMS)
def test_blocks_of_an_accelerator_change_no_number(name, monkeypatch, request):
    two = tuple(jax.devices()[:2])
    monkeypatch.setattr(layout, "_devices", lambda leaves: two)
    expected = PROGRAMS[name]()
    request.getfixturevalue("small_accelerator")
    numbers = []
    run_in_turn = jax.lax.map

    def counting(function, blocks, **options):
        numbers.append(len(jax.tree.leaves(blocks)[0]))
        return run_in_turn(function, blocks, **options)

    monkeypatch.setattr(jax.lax, "map", counting)
    found = PROGRAMS[name]()
    # Sums of blocks of other sizes are rounded differently. Another chain's numbers
    # would differ by about 1.
    assert numbers and all(1 < number <= 37 for number in numbers)
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert np.shape(new) == np.shape(old)
        np.testing.assert_allclose(new, old, rtol=2e-4, atol=2e-4)


def test_an_accelerator_moves_no_more_chains_together_than_fit(small_accelerator):
    """By the memory that XLA says the compiled program needs."""

    def num_bytes(num_chains):
        run = functools.partial(samplers.sample_chains, make_mala(), ENERGY)
        program = jax.jit(functools.partial(run, num_steps=2, collect=None))
        x = jax.ShapeDtypeStruct((num_chains, 3), jnp.float32)
        compiled = program.lower(KEY, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Hidden values of ten chains, which are kept at one time, and less than twenty
    # numbers of the state, the key and the means of every chain.
    assert num_bytes(1_000) < 10 * 4 * WIDTH + 1_000 * 4 * 20


def test_a_traced_program_may_be_for_another_platform_than_this_one():
    """Its chains are divided by memory here too, where the host is a CPU."""
    seen = []

    def look(x):
        seen.append(layout.lay_out(x, x))
        return x

    jax.jit(look)(X)
    assert not seen[0].is_on_cpu
    assert layout.lay_out(X, X).is_on_cpu


def test_chains_that_fit_are_moved_together(monkeypatch):
    monkeypatch.setattr(layout.Layout, "is_on_cpu", False)
    monkeypatch.setattr(jax.lax, "map", None)
    sample()


def test_a_program_needs_what_it_keeps():
    """Two hidden layers: the gradient needs the values of both and of one cotangent."""

    def function(x):
        h = jnp.broadcast_to(x, (1_000,))  # 1,000 numbers
        first = jnp.sin(h)  # beside h, which is needed no more
        second = jnp.cos(first)
        return jnp.sum(first * second)  # three of them, with their product

    def num_bytes(function, *arguments):
        return layout.num_bytes(jax.make_jaxpr(function)(*arguments).jaxpr)

    assert num_bytes(function, 1.0) == 3 * 4_000
    # As much within a jitted function and in every turn of a loop; results that a loop
    # stacks are counted until they are used, and those of the program are not.
    assert num_bytes(lambda x: jax.jit(function)(x) + 1, 1.0) == 3 * 4_000 + 4
    looped = lambda x: jax.lax.map(function, x)  # noqa: E731
    assert num_bytes(looped, jnp.ones(50)) == 3 * 4_000
    summed = lambda x: jnp.sum(looped(x) ** 2)  # noqa: E731
    assert num_bytes(summed, jnp.ones(50)) == 3 * 4_000 + 50 * 4
    # Keys are values too, of 8 bytes.
    split = lambda key: jax.random.split(key, 5)[0]  # noqa: E731
    assert num_bytes(split, KEY) >= 5 * 8
