"""Chains in a generator's latents: their laws, their lengths and steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generalized import latents as latents_module
from experiments.generalized.latents import (
    REFUSING,
    SAMPLERS,
    check_sampler,
    make_refine,
    sample_model,
    sampler_section,
)

SECTION = {
    "step_size": 0.1,
    "decay": 0.1,
    "decay_every": 0,
    "friction": 1.0,
    "num_leapfrog": 3,
    "transport_step_size": 0.05,
}


def quadratic(x):
    return 2 * jnp.sum(x**2)


def identity(z):
    return z


def refine(
    name,
    section,
    energy_fn,
    generator_fn,
    key,
    latents,
    *,
    chain_lengths,
    temperature=1,
):
    section = section | {"chain_lengths": chain_lengths}
    refine = make_refine(section, energy_fn, generator_fn)
    return refine(name, key, latents, temperature)


def refined(name, energy_fn, latents, chain_lengths, temperature=1.0, **section):
    """What `refine` has at the last length, of images that are their latents."""
    found = refine(
        name,
        SECTION | section,
        energy_fn,
        identity,
        jax.random.key(1),
        latents,
        chain_lengths=chain_lengths,
        temperature=temperature,
    )
    return found[chain_lengths[-1]]


@pytest.mark.parametrize("temperature", [2.0])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_has_the_posterior_of_its_temperature(name, temperature):
    """E = 2 |x|^2 of x = z: precision 1 + 4 / T, images the latents."""
    latents = jax.random.normal(jax.random.key(0), (4_000, 2))
    found = refined(name, quadratic, latents, (100,), temperature, step_size=0.05)
    variance = 1 / (1 + 4 / temperature)
    bias = 1.0
    if name == "langevin":  # unadjusted: 1 / (1 - h p / 2), the step times T
        bias = 1 / (1 - 0.05 * temperature / variance / 2)
    np.testing.assert_allclose(
        found.latents.var(), variance * bias, rtol=4 * (2 / 8_000) ** 0.5 + 0.01
    )
    np.testing.assert_array_equal(found.x, found.latents)
    assert np.isnan(found.acceptance_rate) == (name in ("langevin", "underdamped"))


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_what_is_looked_at_does_not_change_the_law(name):
    """From the posterior N(0, .2), and measured every ten moves: it is still there.
    With a momentum that began at 0 each time its variance would be .172."""
    latents = 0.2**0.5 * jax.random.normal(jax.random.key(0), (4_000, 2))
    found = refined(name, quadratic, latents, range(10, 101, 10), step_size=0.02)
    bias = 1 / (1 - 0.02 * 5 / 2) if name == "langevin" else 1.0
    error = 5 * (2 / 8_000) ** 0.5
    np.testing.assert_allclose(found.latents.var(), 0.2 * bias, rtol=error)


@pytest.mark.parametrize("name", ["langevin", "underdamped"])
def test_chains_that_leave_all_numbers_are_named(name):
    with pytest.raises(FloatingPointError, match=f"{name} at temperature 1: latents"):
        refined(name, quadratic, jnp.ones((4, 2)), (200,), step_size=50.0)


@pytest.mark.parametrize("name", REFUSING)
def test_energies_that_are_no_numbers_are_refused_and_named_where_all_are(name):
    """Of an energy that is a number for x > 0 alone, and there 0: the prior's half.
    From 1 all proposals that are not are refused, and count as such; where it is a
    number at the start alone, nothing is left to go to."""
    ones = jnp.ones((2_000, 1))
    found = refined(name, lambda x: jnp.where(x[0] > 0, 0.0, jnp.nan), ones, (60,))
    assert np.all(found.latents > 0) and 0 < found.acceptance_rate < 1
    if name == "independence":  # half of the prior's draws
        error = 5 * (0.25 / 120_000) ** 0.5
        np.testing.assert_allclose(found.acceptance_rate, 0.5, atol=error)
    mean = (2 / np.pi) ** 0.5
    error = 5 * ((1 - mean**2) / 2_000) ** 0.5
    np.testing.assert_allclose(found.latents.mean(), mean, atol=error)
    with pytest.raises(
        FloatingPointError, match=f"{name} at temperature 1: the energy of no"
    ):
        refined(name, lambda x: jnp.where(x[0] == 1.0, 0.0, jnp.nan), ones, (60,))


def test_momentum_is_zero_at_the_start():
    """Of E = 0 on the prior a move of h takes x to x - h^2 x (1 + a) / 4, a = exp(-h),
    on average; a momentum of 2 would add h and more."""
    ones, step_size = jnp.ones((4_000, 2)), 0.02  # h = .2
    found = refined(
        "underdamped", lambda x: jnp.zeros(()), ones, (1,), step_size=step_size
    )
    damping = np.exp(-0.2)
    spread = 0.1 * (1 - damping**2) ** 0.5
    error = 5 * spread / 8_000**0.5
    expected = 1 - 0.01 * (1 + damping)
    np.testing.assert_allclose(found.latents.mean(), expected, atol=error)
    np.testing.assert_allclose(found.latents.std(), spread, rtol=5 / 16_000**0.5)


def test_images_are_the_generator_s_and_lengths_go_on_from_each_other():
    """At step 0 nothing moves; the images at every length are of its latents."""
    latents = jax.random.normal(jax.random.key(0), (10, 2))
    found = refine(
        "langevin",
        SECTION | {"decay_every": 20},
        quadratic,
        lambda z: 3 * z[:1],
        jax.random.key(1),
        latents,
        chain_lengths=(10, 35),
    )
    assert list(found) == [10, 35]
    for chains in found.values():
        np.testing.assert_allclose(chains.x, 3 * chains.latents[:, :1], rtol=1e-6)
    assert np.any(found[10].latents != found[35].latents)


def test_steps_are_a_tenth_after_every_two_hundred_moves(monkeypatch):
    """Over 1,000 moves they sum to 222.222 first steps, whatever is measured when."""
    moves = []

    def recorded(*given):
        def move(key, position, num_steps, scale):
            moves.append((num_steps, scale))
            return position, float(len(moves) == 1)

        return move

    monkeypatch.setattr(latents_module, "make_chains", recorded)
    found = refine(
        "mala",
        SECTION | {"decay_every": 200},
        quadratic,
        identity,
        jax.random.key(0),
        jnp.zeros((1, 2)),
        chain_lengths=(10, 250, 1_000),
    )
    assert sum(num for num, _ in moves) == 1_000
    total = sum(num * scale for num, scale in moves)
    np.testing.assert_allclose(total, 222.22, rtol=1e-6)
    rates = [chains.acceptance_rate for chains in found.values()]
    assert rates == [1, 10 / 250, 10 / 1_000]


@pytest.mark.parametrize("name", ["langevin", "transport"])
def test_a_step_that_has_decayed_to_nothing_moves_nothing(name):
    latents = jax.random.normal(jax.random.key(0), (10, 2))
    found = refine(
        name,
        SECTION | {"decay_every": 10, "decay": 1e-14, "transport_step_size": 0.005},
        quadratic,
        identity,
        jax.random.key(1),
        latents,
        chain_lengths=(10, 20),
    )
    assert np.abs(found[10].latents - latents).max() > 0.01
    # A step of 1e-15: noise of 4e-8 a move.
    np.testing.assert_allclose(found[20].latents, found[10].latents, atol=1e-6)


def test_transport_needs_a_slope():
    with pytest.raises(FloatingPointError, match="whose largest is 0.0 among 500"):
        refine(
            "transport",
            SECTION,
            lambda x: 0 * jnp.sum(x),
            identity,
            jax.random.key(0),
            jnp.zeros((1, 2)),
            chain_lengths=(1,),
        )


def test_acceptance_rates_are_means_over_all_moves():
    latents = jax.random.normal(jax.random.key(0), (500, 2))
    keys = jax.random.key(1)
    found = refine(
        "independence",
        SECTION,
        lambda x: 0 * jnp.sum(x),
        identity,
        keys,
        latents,
        chain_lengths=(1, 5),
    )
    # Proposals of the very law are always taken, and move everything.
    assert [chains.acceptance_rate for chains in found.values()] == [1, 1]
    assert np.all(found[1].latents != latents)


def test_transport_descends_as_on_paper():
    """E = a . x has the slope |a| everywhere. From z the distance's gradient is that of
    (.001, .001), 1 / sqrt 2 each way; of the sum g the part (g . z) z / sqrt 2 goes."""
    slope = jnp.array([3.0, 4.0])
    latents = jnp.array([[1.0, 2.0], [-0.5, 0.3]])
    found = refine(
        "transport",
        SECTION,
        lambda x: jnp.sum(slope * x),
        identity,
        jax.random.key(0),
        latents,
        chain_lengths=(1,),
    )[1]
    gradient = np.array([0.6, 0.8]) + 0.5**0.5
    for before, after in zip(np.asarray(latents), found.latents, strict=True):
        moved = gradient - (gradient @ before) / 2**0.5 * before
        np.testing.assert_allclose(after, before - 0.05 * moved, rtol=1e-4)
    assert np.isnan(found.acceptance_rate)


def test_transport_makes_every_step_of_stretches_of_different_lengths():
    """One coordinate, of which d = 1 leaves g - g z^2; steps decay after 4 and 8."""
    latents = jnp.array([[0.5], [-1.5]])
    section = SECTION | {"decay_every": 4, "decay": 0.5}
    arguments = (lambda x: 3 * x[0], identity, jax.random.key(0), latents)
    found = refine("transport", section, *arguments, chain_lengths=(2, 6, 10))
    z = start = np.asarray(latents)
    for step in range(10):
        gradient = 1.0 + np.sign(z - start + 0.001)
        z = z - 0.05 * 0.5 ** (step // 4) * (gradient - gradient * z**2)
        if step + 1 in found:
            np.testing.assert_allclose(found[step + 1].latents, z, rtol=1e-4)


def test_the_loop_of_transport_has_a_length_that_its_program_knows():
    section = SECTION | {"chain_lengths": (4, 6), "decay_every": 0}
    latents = jnp.zeros((3, 2))
    move = latents_module.make_transport(
        section, quadratic, identity, jax.random.key(0), latents
    )
    program = str(jax.make_jaxpr(lambda z: move(None, z, 4, 1.0)[0])(latents))
    assert "while[" not in program and "length=2" in program


@pytest.mark.parametrize(
    "name, lengths, message",
    [
        ("gibbs", (1,), "sampler must be one of .*'transport'.*'gibbs'"),
        ("mala", (), "must rise from above 0"),
        ("mala", (5, 5), "must rise from above 0, got .5, 5"),
        ("mala", (0, 5), "must rise from above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(name, lengths, message):
    with pytest.raises(ValueError, match=message):
        refine(
            name,
            SECTION,
            quadratic,
            identity,
            jax.random.key(0),
            jnp.zeros((1, 2)),
            chain_lengths=lengths,
        )


def test_the_model_s_draws_are_the_first_sampler_s_at_its_first_temperature(
    monkeypatch,
):
    """After the last of the lengths, by the very chains that were judged."""
    made, make_chains = [], latents_module.make_chains

    def recorded(name, section, energy_fn, generator_fn, temperature):
        made.append((name, temperature))
        return make_chains(name, section, energy_fn, generator_fn, temperature)

    monkeypatch.setattr(latents_module, "make_chains", recorded)
    latents = jax.random.normal(jax.random.key(0), (20, 2))
    section = sampler_section(
        names=("mala", "transport"), chain_lengths=(3, 7), temperatures=(0.5, 1.0)
    )
    refine = make_refine(section, quadratic, lambda z: 3 * z)
    found = refine("mala", jax.random.key(1), latents, 0.5)
    drawn = sample_model(section, refine, jax.random.key(1), latents)
    np.testing.assert_array_equal(drawn, found[7].x)
    other = sample_model(section, refine, jax.random.key(2), latents)
    assert np.any(other != drawn) and made == [("mala", 0.5)]


@pytest.mark.quick
@pytest.mark.parametrize(
    "change, message",
    [
        ({"names": ("gibbs",)}, "sampler.names must be some of .*got ..gibbs"),
        ({"names": ()}, "sampler.names must be some of .*got"),
        ({"chain_lengths": (50, 10)}, "must rise from above 0, got .50, 10"),
        ({"temperatures": (1.0, 0.0)}, r"temperatures\[1\] must be positive, got 0"),
        ({"temperatures": ()}, "temperatures must not be empty"),
        ({"step_size": -1.0}, "sampler.step_size must be positive, got -1"),
        ({"num_leapfrog": 0}, "sampler.num_leapfrog must be a whole"),
        ({"decay_every": -200}, "sampler.decay_every must be a whole"),
    ],
)
def test_a_section_that_makes_no_sense_is_refused(change, message):
    section = sampler_section()
    check_sampler(section)
    with pytest.raises(ValueError, match=message):
        check_sampler(section | change)


def test_a_trajectory_has_the_length_of_a_langevin_move():
    """From the mode of E = 0 a leapfrog of h goes to h p, with p standard normal, and
    moves of h^2 / 2 of the others add h n to a place: both variances are h^2 = 2 step
    of long latents, to order h^4, and the acceptance is near 1."""
    step, latents = 0.005, jnp.zeros((20_000, 4))
    moved = {
        name: refined(
            name,
            lambda x: 0.0 * jnp.sum(x),
            latents,
            (1,),
            step_size=step,
            num_leapfrog=1,
        ).latents
        for name in ("langevin", "hmc")
    }
    for name, found in moved.items():
        # A mean of 80,000 squares, relative to h^2, whose own error is of order h^2.
        tolerance = 5 * (2 / 80_000) ** 0.5 + 2 * step
        variance = (found**2).mean() / (2 * step)
        np.testing.assert_allclose(variance, 1.0, atol=tolerance, err_msg=name)
