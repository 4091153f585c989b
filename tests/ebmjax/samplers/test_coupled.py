"""Coupled chains: each has its law, they meet and stay, and nothing is biased."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from ebmjax import energies, objectives, samplers, starts, targets
from ebmjax.samplers import coupled

COUPLINGS = ("reflection", "maximal")


def run(coupling, num=60_000, max_steps=60, seed=0):
    """The target N(1, 1) from N(8, 1), proposals of standard deviation 1.5."""
    energy_fn = functools.partial(energies.gaussian, {"mean": 1.0, "precision": 1.0})
    keys = jax.random.split(jax.random.key(seed), 3)
    x, y = (8 + jax.random.normal(key, (num,)) for key in keys[:2])

    def pair(key, x, y):
        return samplers.coupled_chains(
            energy_fn, key, x, y, step_size=1.5, max_steps=max_steps, coupling=coupling
        )

    return jax.jit(jax.vmap(pair))(jax.random.split(keys[2], num), x, y)


@pytest.mark.slow
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_the_mean_has_no_bias_long_before_the_chains_have_arrived(coupling):
    """k = 2, m = 10 from seven standard deviations away: 1, within five standard
    errors; the plain mean of the same positions is far off. All have met by 60."""
    chains = run(coupling)
    assert (chains.meeting_time <= 60).all()
    weights = jax.vmap(lambda time: samplers.unbiased_weights(time, 2, 10, 60))(
        chains.meeting_time
    )
    parts = zip(weights, (chains.leader, chains.follower))
    values = np.asarray(sum(jnp.sum(w * x, axis=1) for w, x in parts))
    error = 5 * values.std() / len(values) ** 0.5
    np.testing.assert_allclose(values.mean(), 1.0, atol=error)
    assert error < 0.6
    assert chains.leader[:, 2:11].mean() > 2.0  # off by more than that


def test_reflected_chains_meet_after_about_seven_moves():
    assert abs(run("reflection").meeting_time.mean() - 7) < 1.5


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_chains_that_met_are_one(coupling):
    chains = run(coupling, num=500)
    times = np.arange(1, 61)
    is_equal = np.asarray(chains.leader[:, 1:] == chains.follower)
    has_met = times >= np.asarray(chains.meeting_time)[:, None]
    np.testing.assert_array_equal(is_equal, has_met)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_leader_and_follower_have_one_law(coupling):
    """The leader at t against the follower at t, both t moves from the same law: a
    two-sample Kolmogorov distance that chance passes once in 1e5."""
    chains = run(coupling, num=4_000)
    others = run(coupling, num=4_000, seed=1)
    for t in (1, 3, 8):
        distance = scipy.stats.ks_2samp(chains.leader[:, t], others.follower[:, t])
        assert distance.pvalue > 1e-5


@pytest.mark.parametrize("propose", [coupled._reflected, coupled._maximal])
def test_proposals_are_normal_and_as_often_equal_as_can_be(propose):
    """Standard deviations apart: 2 Phi(-|x - y| / (2 s)) of them are equal; both are
    normal around their own chain, in three dimensions."""
    x, y, step = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.5, 1.5]), 1.2
    num = 40_000
    keys = jax.random.split(jax.random.key(0), num)
    ahead, behind = jax.vmap(lambda key: propose(key, x, y, step))(keys)
    for draws, centre in ((ahead, x), (behind, y)):
        z = (np.asarray(draws) - np.asarray(centre)) / step
        np.testing.assert_allclose(z.mean(0), 0.0, atol=5 / num**0.5)
        np.testing.assert_allclose(z.T @ z / num, np.eye(3), atol=6 * (2 / num) ** 0.5)
    distance = float(jnp.linalg.norm(x - y)) / step
    share = 2 * scipy.stats.norm.cdf(-distance / 2)
    error = 5 * (share * (1 - share) / num) ** 0.5
    found = np.asarray((ahead == behind).all(1)).mean()
    np.testing.assert_allclose(found, share, atol=error)


@pytest.mark.quick
def test_the_weights_of_this_meeting():
    """k = 1, m = 2, met at 5: the plain mean of 1 and 2, a half of the difference at 2,
    the whole at 3 and 4."""
    leader, follower = samplers.unbiased_weights(jnp.array(5), 1, 2, 6)
    np.testing.assert_allclose(leader, [0, 0.5, 1.0, 1.0, 1.0, 0, 0])
    np.testing.assert_allclose(follower, [0, -0.5, -1.0, -1.0, 0, 0])


@pytest.mark.slow
def test_the_gradient_of_the_likelihood_is_unbiased_from_a_single_move():
    """E = a x^2 / 2 with a = .5, data of mean square 1: (1 - 1 / a) / 2 = -.5, within
    five standard errors, from chains that begin at the data."""
    make = functools.partial(
        objectives.unbiased_contrastive_divergence,
        lambda a, x: 0.5 * a * x**2,
        step_size=2.0,
        start=starts.data(),
        num_steps=1,
    )
    objective = make(max_steps=80)
    batch = jnp.tile(jnp.array([1.0, -1.0]), 8)

    def gradient(key):
        def loss(a):
            return objective.loss({"energy": a}, key, batch, ())

        return jax.grad(loss, has_aux=True)(0.5)

    found, aux = jax.jit(jax.vmap(gradient))(jax.random.split(jax.random.key(0), 2_000))
    assert aux.metrics["cut_off_rate"].max() == 0
    error = 5 * found.std() / len(found) ** 0.5
    np.testing.assert_allclose(found.mean(), -0.5, atol=error)
    assert error < 0.15
    # Cut off after two moves it is reported, and biased.
    short = make(max_steps=2)
    _, aux = short.loss({"energy": 0.5}, jax.random.key(0), jnp.tile(batch, 50), ())
    assert 0.1 < aux.metrics["cut_off_rate"] < 0.9


@pytest.mark.parametrize(
    "options, message",
    [
        ({"step_size": 0.0}, "step_size must be positive, got 0"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
        ({"coupling": "none"}, "coupling must be one of .*'none'"),
    ],
)
def test_bad_options_are_named(options, message):
    options = {"step_size": 1.0, "max_steps": 3} | options
    with pytest.raises(ValueError, match=message):
        samplers.coupled_chains(jnp.sum, jax.random.key(0), 0.0, 0.0, **options)


def test_stretches_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="must not decrease.*got 3, 2 and 5"):
        samplers.unbiased_weights(jnp.array(1), 3, 2, 5)


def machine_params():
    """Of four normal and three binary units."""
    random = np.random.default_rng(0)
    shapes = {"weights": (4, 3), "visible_bias": (4,), "hidden_bias": (3,)}
    return {name: 0.7 * random.standard_normal(shape) for name, shape in shapes.items()}


def exact_gradient(params, batch):
    """Of minus the mean log likelihood: the energy's, and central differences of a log
    partition function that is a sum of eight terms, off by 1e-8."""

    def log_partition(name, index, step):
        moved = {key: np.array(array) for key, array in params.items()}
        moved[name].flat[index] += step
        return targets.gaussian_bernoulli_rbm(**moved).log_partition

    def energy(params):
        one = functools.partial(energies.gaussian_bernoulli_rbm, params)
        return jax.vmap(one)(batch).mean()

    gradient = jax.tree.map(np.array, jax.grad(energy)(params))
    for name, leaf in gradient.items():
        for index in range(leaf.size):
            ends = (log_partition(name, index, step) for step in (1e-4, -1e-4))
            leaf.flat[index] += np.subtract(*ends) / 2e-4
    return gradient


def mean_gradient(objective, params, batch, num=150):
    """Over `num` keys: the mean, its standard errors, and the metrics of all."""

    def gradient(key):
        def loss(params):
            carry = objective.init(jax.random.key(0))
            return objective.loss({"energy": params}, key, batch, carry)

        return jax.grad(loss, has_aux=True)(params)

    keys = jax.random.split(jax.random.key(1), num)
    found, aux = jax.jit(jax.vmap(gradient))(keys)
    mean, error = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (
            jax.tree.map(lambda draws: draws.mean(0), found),
            jax.tree.map(lambda draws: draws.std(0) / num**0.5, found),
        )
    )
    return mean, error, aux.metrics


@pytest.mark.slow
def test_the_gradient_of_a_machine_s_likelihood_is_exact_and_one_move_s_is_not():
    """All 19 parameters within four standard errors, no pair cut off, from so few moves
    that most is in the differences. Contrastive divergence by one move is far off."""
    params, batch = machine_params(), jax.random.normal(jax.random.key(0), (8, 4))
    exact = exact_gradient(params, batch)
    exact = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(exact)])
    coupled_pairs = objectives.unbiased_contrastive_divergence(
        energies.gaussian_bernoulli_rbm,
        step_size=1.5,
        start=starts.data(),
        num_burn_in=2,
        num_steps=10,
        max_steps=100,
    )
    mean, error, metrics = mean_gradient(coupled_pairs, params, batch)
    assert metrics["cut_off_rate"].max() == 0
    assert (np.abs(mean - exact) < 4 * error).all()
    one_move = objectives.contrastive_divergence(
        energies.gaussian_bernoulli_rbm,
        sampler=samplers.mala(step_size=0.05),
        num_steps=1,
        start=starts.data(),
    )
    mean, error, _ = mean_gradient(one_move, params, batch)
    assert (np.abs(mean - exact) / error).max() > 8


# Binary data


def binary_machine(params, x):
    """Energy of a restricted Boltzmann machine's visible units, the hidden summed."""
    inputs = params["hidden_bias"] + x @ params["weights"]
    return -jnp.sum(params["visible_bias"] * x) - jnp.sum(jax.nn.softplus(inputs))


def states(num):
    """All `[2^num, num]` of zeros and ones."""
    return ((np.arange(2**num)[:, None] >> np.arange(num)) & 1).astype(np.float32)


def log_likelihood(params, batch):
    """Sum over a batch, by enumeration."""
    one = jax.vmap(functools.partial(binary_machine, params))
    log_partition = jax.nn.logsumexp(-one(states(batch.shape[1])))
    return -one(batch).sum() - len(batch) * log_partition


def four_by_four(scale=1.0):
    """Of four visible and four hidden units."""
    random = np.random.default_rng(0)
    shapes = {"weights": (4, 4), "visible_bias": (4,), "hidden_bias": (4,)}
    return {
        name: jnp.asarray(scale * random.standard_normal(shape), jnp.float32)
        for name, shape in shapes.items()
    }


def test_gibbs_chains_have_the_machine_s_law_and_meet_for_good():
    """The leader after 30 sweeps, in 16 states: a chi-squared of 15 degrees of freedom
    that chance passes once in 1e5; the follower, 30 sweeps as well, the same."""
    params = four_by_four()
    energy_fn = functools.partial(binary_machine, params)

    def pair(key):
        return samplers.coupled_gibbs_chains(
            energy_fn, key, jnp.zeros(4), jnp.ones(4), max_steps=31
        )

    num = 20_000
    chains = jax.jit(jax.vmap(pair))(jax.random.split(jax.random.key(0), num))
    exact = np.asarray(jax.nn.softmax(-jax.vmap(energy_fn)(states(4))), np.float64)
    for x in (chains.leader[:, 30], chains.follower[:, 30]):
        counts = np.bincount(np.asarray(x @ 2.0 ** np.arange(4), int), minlength=16)
        found = scipy.stats.chisquare(counts, exact / exact.sum() * num)
        assert found.pvalue > 1e-5
    is_equal = (chains.leader[:, 1:] == chains.follower).all(-1)
    has_met = np.arange(1, 32) >= np.asarray(chains.meeting_time)[:, None]
    np.testing.assert_array_equal(is_equal, has_met)
    assert chains.meeting_time.mean() < 8  # from all zeros and all ones


def test_sites_of_two_other_values_are_the_same_chains():
    """Spins of -1 and 1 with the energy of (x + 1) / 2, by the same key."""
    params = four_by_four()
    binary = functools.partial(binary_machine, params)
    zeros, ones = jnp.zeros(4), jnp.ones(4)
    key = jax.random.key(3)
    one = samplers.coupled_gibbs_chains(binary, key, zeros, ones, max_steps=9)
    two = samplers.coupled_gibbs_chains(
        lambda x: binary((x + 1) / 2), key, -ones, ones, max_steps=9, values=(-1, 1)
    )
    np.testing.assert_array_equal(2 * one.leader - 1, two.leader)
    np.testing.assert_array_equal(2 * one.follower - 1, two.follower)
    assert one.meeting_time == two.meeting_time


def test_the_gradient_of_a_binary_machine_s_likelihood_is_exact():
    """T21: 24 parameters of a machine of 4 and 4 units within four standard errors of
    the gradient by enumeration, from pairs that begin at data and are corrected from
    their first sweep; contrastive divergence by one sweep, which is what the first
    position alone amounts to, is far off."""
    params = four_by_four(1.5)
    batch = states(4)[[1, 2, 4, 7, 8, 11, 13, 14]]  # odd: no machine's natural choice

    def loss(params):
        return -log_likelihood(params, batch) / len(batch)

    exact = np.concatenate(
        [np.ravel(leaf) for leaf in jax.tree.leaves(jax.grad(loss)(params))]
    )
    make = functools.partial(
        objectives.unbiased_contrastive_divergence,
        binary_machine,
        values=(0.0, 1.0),
        start=starts.data(),
        num_burn_in=1,
        num_steps=1,
    )
    mean, error, metrics = mean_gradient(make(max_steps=80), params, batch, 600)
    assert metrics["cut_off_rate"].max() == 0
    assert (np.abs(mean - exact) < 4 * error).all()
    mean, error, metrics = mean_gradient(make(max_steps=1), params, batch, 600)
    assert metrics["cut_off_rate"].max() > 0.5  # and it says so
    assert (np.abs(mean - exact) / error).max() > 8


def test_bars_and_stripes_are_learned_up_to_their_own_entropy():
    """T21: 32 images of 4 x 4, 30 of them distinct, whose log likelihood is at most 28
    log(1 / 32) + 4 log(2 / 32) = -108.13; evenly over all images it is -354.9. A
    machine with 16 hidden units, by enumeration of its 65,536 states. (That there is no
    bias is the test above's to show.)"""
    lines = states(4)
    columns = np.repeat(lines[:, None], 4, axis=1)
    images = np.concatenate([columns, columns.swapaxes(1, 2)]).reshape(32, 16)
    _, counts = np.unique(images, axis=0, return_counts=True)
    assert len(counts) == 30
    most = float((counts * np.log(counts / 32)).sum())
    np.testing.assert_allclose(most, -108.13096, atol=1e-5)
    objective = objectives.unbiased_contrastive_divergence(
        binary_machine,
        values=(0.0, 1.0),
        start=starts.data(),
        num_burn_in=0,
        num_steps=2,
        max_steps=12,
    )
    random = np.random.default_rng(0)
    params = {
        "weights": jnp.asarray(0.5 * random.standard_normal((16, 16)), jnp.float32),
        "visible_bias": jnp.zeros(16),
        "hidden_bias": jnp.zeros(16),
    }
    optimizer = optax.adam(0.05, b1=0.5)

    def update(carry, key):
        params, opt_state = carry
        slope = jax.grad(
            lambda p: objective.loss({"energy": p}, key, jnp.asarray(images), ())[0]
        )(params)
        move, opt_state = optimizer.update(slope, opt_state)
        return (optax.apply_updates(params, move), opt_state), ()

    keys = jax.random.split(jax.random.key(0), 400)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(update, c, keys))(
        (params, optimizer.init(params))
    )
    found = float(log_likelihood(params, images))
    assert -200 < found <= most


def test_the_last_positions_of_leaders_are_what_is_remembered():
    """Replay from 8 of N(0, 1): a step that moves on leaves it near 0."""
    start = starts.replay(
        lambda key, shape: 8.0 + jnp.zeros(shape),
        event_shape=(1,),
        capacity=64,
        reinit_prob=0.0,
    )
    objective = objectives.unbiased_contrastive_divergence(
        lambda a, x: 0.5 * a * jnp.sum(x**2),
        step_size=1.5,
        start=start,
        num_steps=30,
        max_steps=60,
    )
    carry = objective.init(jax.random.key(0))
    batch = jnp.zeros((64, 1))
    _, aux = objective.loss({"energy": 1.0}, jax.random.key(1), batch, carry)
    found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(aux.carry)])
    found = found[found != 8.0]
    # 64 slots drawn with or without repetition: most have moved, and far.
    assert len(found) > 30 and np.abs(found).max() < 5


def test_a_pair_that_meets_at_the_last_move_has_met():
    """One site, any energy: the second move draws both from one law by one number. So
    they meet at 2 at the latest, and at 1 where the first move stays: with a flat
    energy for half of them."""
    make = functools.partial(
        objectives.unbiased_contrastive_divergence,
        lambda params, x: params * jnp.sum(x),
        values=(0.0, 1.0),
        start=starts.data(),
        num_steps=1,
    )
    batch = jnp.zeros((2_000, 1))
    for max_steps, share in ((1, 0.5), (2, 0.0), (3, 0.0)):
        _, aux = make(max_steps=max_steps).loss(
            {"energy": 0.0}, jax.random.key(0), batch, ()
        )
        error = 4 * (share * (1 - share) / 2_000) ** 0.5
        np.testing.assert_allclose(aux.metrics["cut_off_rate"], share, atol=error)


def test_positions_without_weight_need_no_finite_energy():
    """Of a law on [-1, 1] from a start outside: what is left out is not looked at."""
    objective = objectives.unbiased_contrastive_divergence(
        lambda a, x: jnp.where(jnp.abs(x) < 1, a * x**2, jnp.inf),
        step_size=1.0,
        start=starts.noise(lambda key, shape: 1.5 + jnp.zeros(shape)),
        num_burn_in=59,
        num_steps=60,
        max_steps=60,
    )
    batch = jnp.zeros(16)
    (value, aux), slope = jax.value_and_grad(
        lambda a: objective.loss({"energy": a}, jax.random.key(0), batch, ()),
        has_aux=True,
    )(0.5)
    assert aux.metrics["cut_off_rate"] == 0
    # Mean of a x^2 on [-1, 1] is between 0 and a.
    assert -0.5 < value < 0 and -1 < slope < 0


def test_values_that_the_data_cannot_have_are_refused():
    for x, values in ((jnp.zeros(3, int), (-0.5, 0.5)), (jnp.zeros(3, bool), (-1, 1))):
        with pytest.raises(ValueError, match="values must be .* as x is"):
            samplers.coupled_gibbs_chains(
                jnp.sum, jax.random.key(0), x, x, max_steps=3, values=values
            )
    with pytest.raises(ValueError, match="num_steps must be a whole number"):
        samplers.unbiased_weights(jnp.array(1), 0, 2.5, 5)


def test_an_energy_that_is_no_number_is_seen():
    def energy(x):
        return jnp.where(x[0] > 0, jnp.nan, 0.0)

    chains = samplers.coupled_gibbs_chains(
        energy, jax.random.key(0), jnp.zeros(2), jnp.zeros(2), max_steps=3
    )
    assert np.isnan(chains.leader[-1]).any()


def test_one_kind_of_chain_is_asked_for():
    make = functools.partial(
        objectives.unbiased_contrastive_divergence,
        binary_machine,
        start=starts.data(),
        num_steps=1,
        max_steps=3,
    )
    for options, given in (
        ({}, "neither"),
        ({"step_size": 1, "values": (0, 1)}, "both"),
    ):
        with pytest.raises(TypeError, match=f"exactly one .* got {given}"):
            make(**options)
    with pytest.raises(ValueError, match="values must be two"):
        samplers.coupled_gibbs_chains(
            jnp.sum, jax.random.key(0), *jnp.zeros((2, 1)), max_steps=3, values=(1, 1)
        )
