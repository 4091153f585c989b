"""Positions of several arrays, and energies with a condition for each chain."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import SAMPLERS
from jax.flatten_util import ravel_pytree
from laws import check_normal

from ebmjax import samplers

KEY = jax.random.key(0)
LANGEVIN = samplers.langevin(step_size=0.1)


class Pair(NamedTuple):
    mean: jax.Array
    scale: jax.Array


def flat_energy(x):
    """Not the same in all directions: a wrong order of the elements would show."""
    return 0.1 * jnp.sum(jnp.arange(1.0, 6.0) * x**2)


def pair_energy(x):
    return flat_energy(jnp.concatenate([x.mean, x.scale.reshape(-1)]))


def pairs(num_chains):
    x = jax.random.normal(jax.random.key(1), (num_chains, 5))
    return x, Pair(x[:, :3], x[:, 3:].reshape(-1, 1, 2))


@pytest.mark.parametrize("name", ["langevin", "hmc", "underdamped", "replica_exchange"])
def test_a_tree_is_sampled_as_the_flat_array_of_its_elements(name):
    """Bitwise, with what is collected and with what the state caches."""
    x, tree = pairs(70)
    sampler = SAMPLERS[name].make((5,))
    collect = lambda state, info: (state.position, info)  # noqa: E731
    run = partial(samplers.sample_chains, sampler, key=KEY, num_steps=4)
    flat, (positions, infos) = run(energy_fn=flat_energy, x=x, collect=collect)
    state, (trees, same) = run(energy_fn=pair_energy, x=tree, collect=collect)
    assert isinstance(state.position, Pair) and isinstance(trees, Pair)
    assert state.position.scale.shape == (70, 1, 2)
    found = np.concatenate([trees.mean, trees.scale.reshape(4, 70, 2)], -1)
    np.testing.assert_array_equal(found, positions)
    np.testing.assert_array_equal(ravel_rows(state.position), flat.position)
    jax.tree.map(np.testing.assert_array_equal, same, infos)
    for field in ("energy", "gradient", "momentum"):
        if hasattr(flat, field):
            np.testing.assert_array_equal(getattr(state, field), getattr(flat, field))


def ravel_rows(tree):
    return jax.vmap(lambda one: ravel_pytree(one)[0])(tree)


def test_means_of_a_tree_are_those_of_its_elements():
    x, tree = pairs(9)
    sampler = samplers.mala(step_size=0.2)
    run = partial(samplers.sample_chains, sampler, key=KEY, num_steps=4, collect=None)
    _, flat = run(energy_fn=flat_energy, x=x)
    _, means = run(energy_fn=pair_energy, x=tree)
    jax.tree.map(np.testing.assert_array_equal, means, flat)


def test_one_chain_may_be_a_tree_too():
    x, tree = pairs(1)
    one = jax.tree.map(lambda leaf: leaf[0], tree)
    flat, _ = samplers.sample_chain(LANGEVIN, flat_energy, KEY, x[0], 3)
    state, infos = samplers.sample_chain(LANGEVIN, pair_energy, KEY, one, 3)
    np.testing.assert_array_equal(ravel_pytree(state.position)[0], flat.position)
    assert infos.energy.shape == (3,)


def test_a_tree_is_adapted_to_as_the_flat_array_of_its_elements():
    x, tree = pairs(16)
    run = partial(samplers.adapt, partial(samplers.hmc, num_leapfrog=2), key=KEY)
    run = partial(run, num_steps=100, target_acceptance_rate=0.7, adapt_mass=True)
    flat, found = run(energy_fn=flat_energy, x=x), run(energy_fn=pair_energy, x=tree)
    assert isinstance(found.position, Pair) and found.inverse_mass.shape == (5,)
    np.testing.assert_array_equal(ravel_rows(found.position), flat.position)
    np.testing.assert_array_equal(found.inverse_mass, flat.inverse_mass)
    assert found.step_size == flat.step_size


@pytest.mark.quick
@pytest.mark.parametrize(
    "x, message",
    [
        (
            {"a": jnp.ones((2, 3)), "b": jnp.ones(3)},
            r"x\['b'\] must be .* 2 chains",
        ),
        ({"a": jnp.ones((2, 3), int)}, r"x\['a'\] must be floating-point .*int32"),
        (
            {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)},
            r"x\['b'\] must be float32 as x\['a'\] is, got bfloat16",
        ),
        ({"a": jnp.ones(())}, r"x\['a'\] must be floating-point \[chains"),
        ({"a": jnp.ones((0, 2))}, r"x\['a'\] must have at least one chain"),
        ({"a": jnp.ones((2, 3)), "b": "c"}, r"x\['b'\] must be one floating-point arr"),
        ({}, "x must be one floating-point array .*got dict"),
    ],
)
def test_what_is_wrong_with_a_tree_is_named(x, message):
    with pytest.raises(ValueError, match=message):
        samplers.sample_chains(LANGEVIN, lambda x: 0.0, KEY, x, 1)


# --- conditions --------------------------------------------------------------------


def shifted(x, condition):
    return 0.5 * jnp.sum((x - condition["mean"]) ** 2) / condition["scale"] ** 2


def conditions(num_chains):
    index = jnp.arange(num_chains, dtype=jnp.float32)
    return {"mean": index[:, None] * jnp.ones((1, 2)), "scale": 1 + index % 3}


def given(condition, x):
    return shifted(x, condition)


def test_every_chain_has_its_own_condition():
    """Each chain is the one that its condition bound to the energy would give."""
    x, condition = jnp.zeros((70, 2)), conditions(70)
    state, infos = samplers.sample_chains(
        LANGEVIN, shifted, KEY, x, 4, condition=condition
    )
    for chain in (0, 1, 69):
        of_chain = jax.tree.map(lambda leaf: leaf[chain], condition)  # noqa: B023
        energy_fn = partial(given, of_chain)
        alone, found = samplers.sample_chains(LANGEVIN, energy_fn, KEY, x, 4)
        np.testing.assert_allclose(
            state.position[chain], alone.position[chain], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(
            infos.energy[:, chain], found.energy[:, chain], rtol=1e-4, atol=1e-5
        )


def test_chains_of_many_conditions_have_their_laws():
    """Exact moves from equilibrium: (x - mean) / scale stays standard normal."""
    num_chains = 4_000
    condition = conditions(num_chains)
    column = condition["scale"][:, None]
    noise = jax.random.normal(jax.random.key(1), (num_chains, 2))
    sampler = samplers.hmc(step_size=0.9, num_leapfrog=3)
    state, _ = samplers.sample_chains(
        sampler,
        shifted,
        KEY,
        condition["mean"] + column * noise,
        15,
        condition=condition,
        collect=None,
    )
    check_normal((state.position - condition["mean"]) / column, 0.0, 1.0)


def test_new_conditions_need_no_new_program():
    traces = []

    def energy_fn(x, condition):
        traces.append(1)
        return jnp.sum((x - condition) ** 2)

    run = partial(samplers.sample_chains, LANGEVIN, energy_fn, KEY, jnp.zeros((3, 2)))
    first, _ = run(2, condition=jnp.zeros(3))
    second, _ = run(2, condition=jnp.ones(3))
    assert len(traces) == 2 and (first.position < second.position).all()


def test_a_condition_has_as_many_chains_as_the_positions():
    run = partial(samplers.sample_chains, LANGEVIN, shifted, KEY, jnp.zeros((3, 2)), 1)
    with pytest.raises(ValueError, match=r"condition\['scale'\] must be .*\(4,\)"):
        run(condition={"mean": jnp.zeros((3, 2)), "scale": jnp.ones(4)})
    with pytest.raises(ValueError, match=r"condition must be .*3 chains, got .*\(\)"):
        run(condition=1.0)


def test_a_scalar_is_asked_for_from_an_energy_of_a_tree_and_a_condition():
    x = {"a": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match="energy_fn must return a scalar"):
        samplers.sample_chains(
            LANGEVIN, lambda x, c: x["a"] * c, KEY, x, 1, condition=jnp.ones(3)
        )
