"""The one update: players, devices, memories, averages."""

import os
import pathlib
import socket
import subprocess
import sys
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import GAUSSIAN_PARAMS, OBJECTIVES
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ebmjax import training
from ebmjax.objectives import Aux, Objective, stateless
from ebmjax.training import AXES, Player
from ebmjax.types import DEVICE


def quadratic(params, key, batch):
    """Mean of (w - x)^2 / 2: gradient w - mean x."""
    return 0.5 * jnp.mean((params["energy"]["w"] - batch) ** 2), {"seen": batch.mean()}


def one_player(loss=quadratic, rate=1.0, **options):
    return {"energy": Player(("energy",), stateless(loss), optax.sgd(rate), **options)}


def w(value):
    return {"energy": {"w": jnp.array(value)}}


def under_vmap(players, **options):
    """The same update without pmap: refuses what is not replicated."""
    return jax.vmap(
        training.make_update(players, **options),
        axis_name=DEVICE,
        in_axes=(AXES, 0),
        out_axes=(AXES, None),
    )


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_a_step_is_gradient_descent_on_the_mean_over_all_devices(num_devices):
    """From w = 10 with rate 1 one step lands on the mean of all rows."""
    rows = jnp.arange(16.0) ** 2  # unequal means on the devices
    players = one_player()
    state = training.init_state(players, w(10.0), jax.random.key(0), num_devices)
    state, scalars = training.pmap_update(players)(
        state, rows.reshape(num_devices, 1, -1)
    )
    np.testing.assert_allclose(state.params["energy"]["w"], rows.mean(), rtol=1e-6)
    np.testing.assert_allclose(scalars["energy/seen"], rows.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        scalars["energy/params_gradient_norm"], rows.mean() - 10.0, rtol=1e-6
    )
    assert state.params["energy"]["w"].shape == ()  # no device axis
    assert int(state.step) == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_replicated_state_stays_replicated(name):
    """vmap refuses an unmapped output that depends on the mapped axis.

    pmap does not: it would return one device's value and let the others drift. A
    forgotten pmean fails here.
    """
    players = {"energy": Player(("energy",), OBJECTIVES[name](), optax.adam(0.1))}
    state = training.init_state(
        players, GAUSSIAN_PARAMS, jax.random.key(0), 8, ema_decay=0.9
    )
    update = under_vmap(players, ema_decay=0.9)
    jax.eval_shape(update, state, jnp.ones((8, 1, 4, 2)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_devices_copy_of_the_parameters_is_the_same(name):
    players = {"energy": Player(("energy",), OBJECTIVES[name](), optax.adam(0.1))}
    state = training.init_state(players, GAUSSIAN_PARAMS, jax.random.key(0), 8)
    update = training.pmap_update(players)
    for step in range(3):
        batch = jax.random.normal(jax.random.key(step), (8, 1, 4, 2))
        state, _ = update(state, batch)
        jax.block_until_ready(state.step)
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 8
        for copy in copies:
            np.testing.assert_array_equal(copy, copies[0])


def test_vmap_and_pmap_give_the_same_numbers():
    """Another number of devices would not: each has a key of its own."""
    players = {
        "energy": Player(
            ("energy",), OBJECTIVES["contrastive_divergence, replay"](), optax.sgd(0.1)
        )
    }
    batch = jax.random.normal(jax.random.key(3), (4, 1, 8, 2))
    ends = []
    for update in (training.pmap_update(players), jax.jit(under_vmap(players))):
        state = training.init_state(players, GAUSSIAN_PARAMS, jax.random.key(0), 4)
        for _ in range(3):
            state, scalars = update(state, batch)
            jax.block_until_ready(state.step)
        ends.append((jax.device_get(state._replace(key=None)), scalars))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *ends)


def test_eight_devices_replay_what_one_would_and_leave_other_slots_alone():
    """Each keeps 32 chains, moves 8 and leaves 24 bit by bit as they were; with the
    same keys on one device, the same slots go to the same places, to rounding."""
    objective = OBJECTIVES["contrastive_divergence, replay"]()
    players = {"energy": Player(("energy",), objective, optax.sgd(0.1))}
    batch = jax.random.normal(jax.random.key(3), (8, 1, 8, 2))
    memories = []
    for update in (training.pmap_update(players), jax.jit(under_vmap(players))):
        state = training.init_state(players, GAUSSIAN_PARAMS, jax.random.key(0), 8)
        before = np.array(state.carry["energy"].memory)
        state, _ = update(state, batch)
        memories.append(np.array(state.carry["energy"].memory))
        is_moved = (memories[-1] != before).any(2)
        np.testing.assert_array_equal(is_moved.sum(1), np.full(8, 8))
        # Other slots on every device: each draws with a key of its own.
        assert len({tuple(row) for row in is_moved}) == 8
    sharded, alone = memories
    np.testing.assert_array_equal(sharded[~is_moved], alone[~is_moved])
    np.testing.assert_allclose(sharded, alone, rtol=1e-5, atol=1e-6)


def keys_seen(num_devices, num_steps):
    """The key that each inner update of each player saw, through a metric."""
    seen = []

    def spy(params, key, batch, carry):
        jax.debug.callback(
            lambda data: seen.append(tuple(np.asarray(data).tolist())),
            jax.random.key_data(key),
        )
        loss = sum(jnp.sum(p["w"]) for p in params.values())
        return loss, Aux(carry)

    objective = Objective(lambda key: (), spy)
    players = {
        "a": Player(("a",), objective, optax.sgd(0.1), num_updates=3),
        "b": Player(("b",), objective, optax.sgd(0.1)),
    }
    params = {name: {"w": jnp.zeros(2)} for name in "ab"}
    state = training.init_state(players, params, jax.random.key(0), num_devices)
    update = training.pmap_update(players)
    for _ in range(num_steps):
        state, _ = update(state, jnp.zeros((num_devices, 4, 2)))
        jax.block_until_ready(state.step)
    jax.effects_barrier()
    return seen


def test_every_device_step_player_and_inner_update_has_a_key_of_its_own():
    seen = keys_seen(num_devices=2, num_steps=3)
    assert len(seen) == 2 * 3 * 4
    assert len(set(seen)) == len(seen)


def test_players_take_turns_and_see_each_others_moves():
    """a moves first to its batch's mean, twice; b then follows where a is."""

    def follow(params, key, batch):
        target = jax.lax.stop_gradient(params["a"]["w"])
        return 0.5 * (params["b"]["w"] - target) ** 2 + 0.0 * batch.sum(), {}

    def to_data(params, key, batch):
        return 0.5 * jnp.mean((params["a"]["w"] - batch) ** 2), {}

    players = {
        "a": Player(("a",), stateless(to_data), optax.sgd(0.5), num_updates=2),
        "b": Player(("b",), stateless(follow), optax.sgd(1.0)),
    }
    params = {name: {"w": jnp.array(0.0)} for name in "ab"}
    state = training.init_state(players, params, jax.random.key(0), 1)
    batch = jnp.array([[4.0] * 5, [8.0] * 5, [1000.0] * 5])  # b's is not a's
    state, scalars = training.pmap_update(players)(state, batch[None])
    np.testing.assert_allclose(state.params["a"]["w"], 5.0)  # 0 -> 2 -> 5
    np.testing.assert_allclose(state.params["b"]["w"], 5.0)
    # Mean over the inner updates: 4^2 / 2 and 6^2 / 2.
    np.testing.assert_allclose(scalars["a/loss"], 13.0)


def test_a_player_leaves_the_others_networks_alone():
    def both(params, key, batch):
        return params["a"]["w"] * params["b"]["w"], {}

    players = {"a": Player(("a",), stateless(both), optax.sgd(1.0))}
    params = {name: {"w": jnp.array(2.0)} for name in "ab"}
    state = training.init_state(players, params, jax.random.key(0), 1)
    state, _ = training.pmap_update(players)(state, jnp.zeros((1, 1, 1)))
    assert float(state.params["a"]["w"]) == 0.0
    assert float(state.params["b"]["w"]) == 2.0


def test_a_warm_up_with_fewer_players_keeps_the_others_state():
    players = one_player() | {
        "late": Player(("late",), stateless(lambda p, k, b: (0.0, {})), optax.adam(1.0))
    }
    params = w(1.0) | {"late": {"w": jnp.array(3.0)}}
    state = training.init_state(players, params, jax.random.key(0), 1)
    warm_up = training.pmap_update({"energy": players["energy"]})
    state, _ = warm_up(state, jnp.zeros((1, 1, 4)))
    assert set(state.opt_state) == set(state.carry) == {"energy", "late"}
    assert float(state.params["late"]["w"]) == 3.0


@pytest.mark.quick
def test_the_moving_average_is_this_number():
    """w goes 8 -> 4 -> 2 with decay 0.75: average 8 -> 7 -> 5.75."""
    players = one_player(rate=0.5)
    for given in (0.75, None):  # begun by init_state, or by the first update
        state = training.init_state(
            players, w(8.0), jax.random.key(0), 1, ema_decay=given
        )
        update = training.pmap_update(players, ema_decay=0.75)
        for expected in (7.0, 5.75):
            state, _ = update(state, jnp.zeros((1, 1, 4)))
            assert float(state.ema_params["energy"]["w"]) == expected
    state = training.init_state(players, w(8.0), jax.random.key(0), 1)
    state, _ = training.pmap_update(players)(state, jnp.zeros((1, 1, 4)))
    assert state.ema_params is None


def test_memories_have_a_device_axis_and_differ_between_devices():
    objective = OBJECTIVES["contrastive_divergence, replay"]()
    players = {"energy": Player(("energy",), objective, optax.sgd(0.1))}
    state = training.init_state(players, GAUSSIAN_PARAMS, jax.random.key(0), 8)
    memory = state.carry["energy"].memory
    assert memory.shape == (8, 32, 2)
    assert len(np.unique(memory)) == memory.size
    assert len(memory.sharding.device_set) == 8


def test_the_callers_parameters_survive_donation():
    params, players = w(3.0), one_player()
    state = training.init_state(players, params, jax.random.key(0), 2, ema_decay=0.5)
    first = state
    training.pmap_update(players, ema_decay=0.5)(state, jnp.zeros((2, 1, 4)))
    assert float(params["energy"]["w"]) == 3.0
    assert first.params["energy"]["w"].is_deleted()  # and the state was donated


class BatchNormed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Dense(4, use_bias=False)(x)
        norm = nn.BatchNorm(use_running_average=not train, axis_name=("batch", DEVICE))
        return nn.Dense(1)(norm(h))[0]


def test_model_state_is_renewed_and_does_not_depend_on_the_number_of_devices():
    """Batch statistics are over the batch of all devices together."""
    module = BatchNormed()
    variables = module.init(jax.random.key(0), jnp.zeros(3))
    params = {"energy": variables["params"]}
    model_state = {"energy_state": {"batch_stats": variables["batch_stats"]}}

    def loss(params, key, batch, carry):
        def one(x):
            found = {"params": params["energy"], **params["energy_state"]}
            return module.apply(found, x, train=True, mutable="batch_stats")

        value, state = jax.vmap(one, axis_name="batch", out_axes=(0, None))(batch)
        return (value**2).mean(), Aux(carry, {}, {"energy_state": state})

    objective = Objective(lambda key: (), loss)
    players = {"energy": Player(("energy",), objective, optax.sgd(0.1), num_updates=2)}
    rows = jax.random.normal(jax.random.key(1), (2, 32, 3))
    ends = []
    for num_devices in (1, 2, 8):
        state = training.init_state(
            players, params, jax.random.key(0), num_devices, model_state=model_state
        )
        batch = rows.reshape(2, num_devices, -1, 3).swapaxes(0, 1)
        state, _ = training.pmap_update(players)(state, batch)
        ends.append(jax.device_get((state.params, state.model_state)))
    for end in ends[1:]:
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), ends[0], end
        )
    # Two updates with momentum 0.99 of the layer's input, whose kernel moves little.
    kernel = variables["params"]["Dense_0"]["kernel"]
    mean = np.asarray((rows[0] @ kernel).mean(0))
    stats = ends[0][1]["energy_state"]["batch_stats"]["BatchNorm_0"]["mean"]
    second = (stats - 0.99 * 0.01 * mean) / 0.01
    np.testing.assert_allclose(second, (rows[1] @ kernel).mean(0), atol=0.15)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: training.init_state(
                {"energy": Player(("energy", "log_partition"), None, None)},
                w(0.0),
                jax.random.key(0),
                1,
            ),
            r"player 'energy' trains \['log_partition'\], which params lacks",
        ),
        (
            lambda: training.init_state(
                one_player(num_updates=0), w(0.0), jax.random.key(0), 1
            ),
            "num_updates of player .* must be a whole number of at least 1, got 0",
        ),
        (
            lambda: training.init_state(
                one_player(num_accumulated=0), w(0.0), jax.random.key(0)
            ),
            "num_accumulated of player .* must be a whole number of at least 1, got 0",
        ),
        (
            lambda: training.init_state(one_player(), w(0.0), jax.random.key(0), 0),
            "num_devices must be a positive multiple of the 1 processes, got 0",
        ),
        (
            lambda: training.init_state(
                one_player(), w(0.0), jax.random.key(0), 1, model_state=w(0.0)
            ),
            r"\['energy'\] are in both params and model_state",
        ),
        (lambda: training.make_update(one_player(), ema_decay=1.0), r"in \[0, 1\)"),
    ],
)
def test_what_cannot_work_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def run_once(players, batch, **options):
    state = training.init_state(players, w(0.0), jax.random.key(0), 1, **options)
    return training.pmap_update(players)(state, batch)


def test_model_state_that_differs_by_device_is_averaged():
    """Without batch statistics over the device axis: means 0.5 and 2.5 of the rows."""

    def renews(params, key, batch, carry):
        state = {"energy_state": {"mean": batch.mean()}}
        return 0.0 * params["energy"]["w"], Aux(carry, {}, state)

    objective = Objective(lambda key: (), renews)
    players = {"energy": Player(("energy",), objective, optax.sgd(1.0))}
    model_state = {"energy_state": {"mean": jnp.zeros(())}}
    state = training.init_state(
        players, w(0.0), jax.random.key(0), 2, model_state=model_state
    )
    batch = jnp.array([[0.0, 1.0], [2.0, 3.0]])[:, None]
    jax.eval_shape(under_vmap(players), state, batch)  # nothing is left unreplicated
    state, _ = training.pmap_update(players)(state, batch)
    assert float(state.model_state["energy_state"]["mean"]) == 1.5


def test_an_optimizer_may_keep_the_parameters_themselves():
    """Donation wants every buffer once."""
    keeps = optax.GradientTransformation(
        init=lambda params: params, update=lambda g, state, params: (g, state)
    )
    players = {"energy": Player(("energy",), stateless(quadratic), keeps)}
    state = training.init_state(players, w(3.0), jax.random.key(0), 1)
    state, _ = training.pmap_update(players)(state, jnp.zeros((1, 1, 4)))
    assert float(state.opt_state["energy"]["energy"]["w"]) == 3.0


def test_the_update_is_traced_once():
    @chex.assert_max_traces(n=1)
    def loss(params, key, batch):
        return quadratic(params, key, batch)

    players = one_player(loss)
    state = training.init_state(players, w(0.0), jax.random.key(0), 2)
    update = training.pmap_update(players)
    for _ in range(3):
        state, _ = update(state, jnp.ones((2, 1, 4)))
        jax.block_until_ready(state.step)


def test_what_cannot_work_at_trace_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"2 microbatches for players \['energy'\].*\(1, 3, 4\)"
    ):
        run_once(one_player(num_updates=2), jnp.zeros((1, 3, 4)))
    with pytest.raises(ValueError, match="ema_params, but the update has no ema_decay"):
        run_once(one_player(), jnp.zeros((1, 1, 4)), ema_decay=0.5)
    vector = lambda params, key, batch: (0.0 * batch.sum(), {"v": batch})  # noqa: E731
    with pytest.raises(
        ValueError, match=r"metric 'v' must be a scalar, got shape \(4,\)"
    ):
        run_once(one_player(vector), jnp.zeros((1, 1, 4)))

    own = lambda params, key, batch: (0.0 * batch.sum(), {"loss": 1.0})  # noqa: E731
    with pytest.raises(ValueError, match="metric 'loss' is the update's own"):
        run_once(one_player(own), jnp.zeros((1, 1, 4)))

    def renews(params, key, batch, carry):
        return 0.0 * batch.sum(), Aux(carry, {}, {"energy_state": {"v": batch.sum()}})

    players = {
        "energy": Player(("energy",), Objective(lambda k: (), renews), optax.sgd(1))
    }
    with pytest.raises(
        ValueError, match=r"renews model state 'energy_state'.*has \[\]"
    ):
        run_once(players, jnp.zeros((1, 1, 4)))
    with pytest.raises(ValueError, match="with another structure"):
        run_once(
            players,
            jnp.zeros((1, 1, 4)),
            model_state={"energy_state": {"u": jnp.zeros(())}},
        )


def test_a_nan_reaches_the_metrics():
    state, scalars = run_once(one_player(), jnp.full((1, 1, 4), jnp.nan))
    assert np.isnan(scalars["energy/loss"])
    assert np.isnan(scalars["energy/params_gradient_norm"])


# --- one device, and a mesh --------------------------------------------------------


def follow(params, key, batch, carry):
    """A mean that follows the energy's, with memory and model state of its own."""
    noise = 0.1 * jax.random.normal(key, batch.shape)
    gap = jnp.tile(params["follower"]["w"], (len(batch), 1)) + noise - batch
    gap -= jnp.tile(params["energy"]["mean"], (len(batch), 1))
    average = 0.9 * params["follower_state"]["average"] + 0.1 * batch.mean(0)
    state = {"follower_state": {"average": average}}
    return jnp.mean(gap**2) + 0.01 * carry.sum(), Aux(carry + 1, {}, state)


REPLAY = OBJECTIVES["contrastive_divergence, replay"]()
ONE = {"energy": Player(("energy",), REPLAY, optax.adam(0.1))}
TWO = {
    "energy": Player(("energy",), REPLAY, optax.adam(0.1), num_updates=3),
    "follower": Player(
        ("follower",), Objective(lambda key: jnp.zeros(2), follow), optax.adam(0.1)
    ),
}
NUM_MICROBATCHES = {"one": 1, "two": 4}


def start(players, num_devices=1):
    return training.init_state(
        players,
        {"energy": GAUSSIAN_PARAMS["energy"], "follower": {"w": jnp.zeros(2)}},
        jax.random.key(0),
        num_devices,
        model_state={"follower_state": {"average": jnp.zeros(2)}},
        ema_decay=0.9,
    )


def train(update, state, shape, arrange=lambda batch: batch):
    """The state and the scalars after three steps, on the host."""
    for step in range(3):
        batch = jax.random.normal(jax.random.key(step), (*shape, 8, 2))
        state, scalars = update(state, arrange(batch))
        jax.block_until_ready(state.step)
    # Of several processes each has its own rows.
    return jax.tree.map(
        lambda x: np.stack([shard.data for shard in x.addressable_shards]),
        (state._replace(key=None), scalars),
    )


@pytest.mark.parametrize("players", [ONE, TWO], ids=NUM_MICROBATCHES)
def test_one_device_needs_no_axis_for_devices(players):
    """Bitwise as `pmap` of one device. `jit(vmap)` lacks the operation that adds up one
    device's gradient, around which XLA fuses and rounds otherwise."""
    num = sum(player.num_updates for player in players.values())
    options = {"ema_decay": 0.9}
    update = training.jit_update(players, **options)
    shape = (8, 2) if num == 1 else (num, 8, 2)
    ends = train(update, start(players), (num,), lambda batch: batch.reshape(shape))
    pmapped = train(training.pmap_update(players, **options), start(players), (1, num))
    jax.tree.map(np.testing.assert_array_equal, ends, pmapped)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    mapped = jax.jit(under_vmap(players, **options))
    jax.tree.map(close, ends, train(mapped, start(players), (1, num)))
    # The energy, the follower, the memories and the statistics have all moved.
    first = jax.device_get(start(players)._replace(key=None))
    moved = jax.tree.map(lambda new, old: (new != old).any(), ends[0], first)
    frozen = () if num > 1 else ("follower", "follower_state")
    for path, is_moved in jax.tree.leaves_with_path(moved):
        is_frozen = any(name in jax.tree_util.keystr(path) for name in frozen)
        assert is_moved != is_frozen, path


@pytest.mark.parametrize("players", [ONE, TWO], ids=NUM_MICROBATCHES)
@pytest.mark.parametrize("num_devices", [1, 4])
def test_several_steps_in_one_program_give_the_bits_of_single_ones(
    players, num_devices
):
    """In whatever groups they come, and from whatever place among the batches."""
    shape = (num_devices, sum(player.num_updates for player in players.values()))
    options = {"ema_decay": 0.9}
    expected = train(
        training.pmap_update(players, **options), start(players, num_devices), shape
    )
    updates = training.pmap_updates(players, **options)
    batches = [jax.random.normal(jax.random.key(s), (*shape, 8, 2)) for s in range(3)]
    stacked = jnp.stack([jnp.full_like(batches[0], jnp.nan), *batches], 1)
    for counts in ((3,), (1, 2), (2, 1)):
        state, first = start(players, num_devices), 1
        for count in counts:
            state, scalars = updates(state, stacked, first, count)
            first += count
        found = jax.tree.map(
            lambda x: np.stack([shard.data for shard in x.addressable_shards]),
            (state._replace(key=None), scalars),
        )
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_steps_that_the_batches_do_not_have_are_refused():
    updates = training.pmap_updates(one_player())
    state = training.init_state(one_player(), w(0.0), jax.random.key(0), 1)
    for first, count in ((0, 0), (-1, 2), (2, 2), (3, 1)):
        message = (
            f"from first = {first} to first \\+ count = {first + count}, with count at"
            " least 1, got 3 steps"
        )
        with pytest.raises(ValueError, match=message):
            updates(state, jnp.ones((1, 3, 1, 4)), first, count)
    with pytest.raises(
        ValueError, match=r"pmap_updates: .* \[devices, steps, microbatches, size"
    ):
        updates(state, jnp.ones((1, 3, 2, 4)), 0, 1)
    state, scalars = updates(state, jnp.ones((1, 3, 1, 4)), 0, 3)
    # Of a rate of 1 the first step is at the mean, where the loss is 0 from then on.
    assert float(state.params["energy"]["w"]) == 1.0
    assert int(state.step) == 3 and float(scalars["energy/loss"]) == 0.0


@pytest.mark.parametrize("players", [ONE, TWO], ids=NUM_MICROBATCHES)
@pytest.mark.parametrize("num_devices", [4, 8])
def test_a_mesh_gives_the_numbers_of_pmap(players, num_devices):
    shape = (num_devices, sum(player.num_updates for player in players.values()))
    options = {"ema_decay": 0.9}
    pmapped = training.pmap_update(players, **options)
    expected = train(pmapped, start(players, num_devices), shape)
    mesh = jax.make_mesh(
        (num_devices,), ("batch",), devices=jax.devices()[:num_devices]
    )
    update = training.shard_update(players, mesh, **options)
    plain = train(update, start(players, num_devices), shape)
    jax.tree.map(np.testing.assert_array_equal, plain, expected)
    # The same with a batch that lies on the devices already.
    sharding = NamedSharding(Mesh(mesh.devices, ("rows",)), PartitionSpec("rows"))
    spread = train(
        update,
        start(players, num_devices),
        shape,
        lambda batch: jax.device_put(batch, sharding),
    )
    jax.tree.map(np.testing.assert_array_equal, spread, expected)


def test_a_mesh_may_have_any_devices():
    mesh = Mesh(jax.devices()[4:], ("anything",))
    update = training.shard_update(ONE, mesh, ema_decay=0.9)
    with pytest.raises(ValueError, match=r"state must lie on the 4 devices.*place"):
        update(start(ONE, 4), jnp.zeros((4, 1, 8, 2)))
    state = training.place(start(ONE, 4), mesh=mesh)
    memory = state.carry["energy"].memory
    assert memory.sharding.device_set == set(jax.devices()[4:])
    pmapped = training.pmap_update(ONE, ema_decay=0.9)
    jax.tree.map(
        np.testing.assert_array_equal,
        train(update, state, (4, 1)),
        train(pmapped, start(ONE, 4), (4, 1)),
    )
    with pytest.raises(ValueError, match="as carry has rows, 2, got 4"):
        training.place(start(ONE, 2), mesh=mesh)
    two_axes = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    with pytest.raises(ValueError, match=r"mesh must have one axis, got \('a', 'b'\)"):
        training.shard_update(ONE, two_axes)


TWO_PROCESSES = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ebmjax import training
from test_training import TWO, start, train

mesh = Mesh(jax.devices(), ("device",))
assert mesh.is_multi_process and len(mesh.local_devices) == 2
update = training.shard_update(TWO, mesh, ema_decay=0.9)
state = training.place(start(TWO, 4), mesh=mesh)
first = 4 * jax.process_index()
sharded = train(update, state, (2, 4), lambda batch: batch + first)
pmapped = train(
    training.pmap_update(TWO, ema_decay=0.9),
    start(TWO, 4),
    (2, 4),
    lambda batch: batch + first,
)
jax.tree.map(np.testing.assert_array_equal, sharded, pmapped)


def spread(batch):  # as a batch that lies on the devices already
    sharding = NamedSharding(mesh, PartitionSpec("device"))
    rows = np.asarray(batch + first)
    return jax.make_array_from_process_local_data(sharding, rows)


state = training.place(start(TWO, 4), mesh=mesh)
jax.tree.map(
    np.testing.assert_array_equal, train(update, state, (2, 4), spread), pmapped
)
print("equal")
"""


@pytest.mark.slow
def test_a_mesh_may_hold_the_devices_of_several_processes():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    here = pathlib.Path(__file__).parent
    root = here.parents[2]
    environment = dict(
        os.environ,
        PYTHONPATH=f"{root}:{root}/tests:{here}",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, address, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    for process in pair:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "equal" in output, output


def updates(players, num_devices):
    mesh = Mesh(jax.devices()[:num_devices], ("device",))
    return {
        "pmap": training.pmap_update(players),
        "shard": training.shard_update(players, mesh),
        "jit": training.jit_update(players),
    }


DEVICES = "[devices, microbatches, size, *event] with 2 devices and 2 microbatches"
ROWS = "[microbatches, size, *event] with 2 microbatches"


@pytest.mark.parametrize(
    "name, num_devices, shape, axes, hint",
    [
        ("pmap", 2, (256,), DEVICES, "; jit_update takes a batch without an axis for"),
        ("pmap", 2, (2, 256), DEVICES, ""),
        ("pmap", 2, (4, 2, 256), DEVICES, ""),
        ("pmap", 2, (2, 3, 256), DEVICES, ""),
        ("shard", 2, (2, 256), DEVICES, ""),
        ("shard", 2, (4, 2, 256), DEVICES, ""),
        ("shard", 2, (2, 3, 256), DEVICES, ""),
        ("pmap", 2, (2, 2, 0), DEVICES, ""),
        ("shard", 2, (2, 2, 0, 3), DEVICES, ""),
        ("jit", 1, (2, 0, 3), ROWS, ""),  # no examples have no mean
        ("jit", 1, (2,), ROWS, ""),
        ("jit", 1, (256, 3), ROWS, ""),
        ("jit", 1, (1, 2, 256), ROWS, ""),
    ],
)
def test_a_batch_of_the_wrong_shape_is_refused_before_a_trace(
    name, num_devices, shape, axes, hint
):
    def loss(params, key, batch):
        raise AssertionError("traced")

    players = one_player(loss, num_updates=2)
    state = training.init_state(players, w(0.0), jax.random.key(0), num_devices)
    update = updates(players, num_devices)[name]
    for batch in (np.zeros(shape), {"x": jnp.zeros(shape)}):
        with pytest.raises(ValueError) as caught:
            update(state, batch)
        assert str(caught.value).startswith(
            f"{name}_update: batch must have shape {axes} for players ['energy'],"
            f" got shape {shape}{hint}"
        )
    assert not state.step.is_deleted()


def test_one_update_takes_one_batch_without_axes_before_it():
    update = training.jit_update(one_player())
    state = training.init_state(one_player(), w(10.0), jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"\[size, \*event\] for players.*got shape \(\)"
    ):
        update(state, 3.0)
    with pytest.raises(ValueError, match="state must be of one device, got one of 2"):
        update(
            training.init_state(one_player(), w(10.0), jax.random.key(0), 2),
            jnp.zeros(4),
        )
    state, _ = update(state, np.arange(4.0, dtype=np.float32))
    assert float(state.params["energy"]["w"]) == 1.5


@pytest.mark.parametrize("name, num_devices", [("pmap", 2), ("shard", 2), ("jit", 1)])
def test_a_batch_of_another_rank_than_the_first_is_refused(name, num_devices):
    """This loss takes events of any rank, and says nothing itself but to scalars."""

    def loss(params, key, batch):
        x, y = batch["x"], batch["y"]
        assert x.ndim > 1, "an error of the network"
        return (0.5 * (params["energy"]["w"] - x) ** 2).mean() + 0 * y.mean(), {}

    lead = (5,) if name == "jit" else (num_devices, 1, 5)
    num_axes = len(lead) + 1

    def batch(*event):
        return {"x": jnp.ones((*lead, *event)), "y": jnp.ones(lead)}

    players = one_player(loss)
    update = updates(players, num_devices)[name]
    state = training.init_state(players, w(0.0), jax.random.key(0), num_devices)
    with pytest.raises(AssertionError, match="of the network"):
        update(state, batch())  # which is not remembered, because it failed
    for size in (3, 4):  # the event's shape may change, as that of a growing image
        state, _ = update(state, batch(size))
    for event in ((), (3, 1)):
        with pytest.raises(ValueError) as caught:
            update(state, batch(*event))
        assert str(caught.value) == (
            f"{name}_update: batch must have {num_axes} axes as at the first call,"
            f" got shape {(*lead, *event)}"
        )
    # Another tree is another batch.
    with pytest.raises(TypeError):
        update(state, jnp.ones((*lead, 3, 1)))
    state, _ = update(state, batch(3))
    assert int(state.step) == 3


@pytest.mark.parametrize("name, num_devices", [("pmap", 2), ("shard", 2), ("jit", 1)])
def test_every_update_is_traced_once_and_donates_its_state(name, num_devices):
    num_traces = []

    def loss(params, key, batch):
        num_traces.append(1)
        return quadratic(params, key, batch)

    players = one_player(loss)
    update = updates(players, num_devices)[name]
    shape = (8,) if name == "jit" else (num_devices, 1, 4)
    state = training.init_state(players, w(0.0), jax.random.key(0), num_devices)
    assert update.lower(state, jnp.ones(shape)).compile().cost_analysis()
    for _ in range(3):
        former = state
        state, _ = update(state, jnp.ones(shape))
        jax.block_until_ready(state.step)
        assert former.params["energy"]["w"].is_deleted()
    assert len(num_traces) == 1


# --- microbatches in parts ---------------------------------------------------------


@pytest.mark.parametrize("name, num_devices", [("pmap", 2), ("shard", 2), ("jit", 1)])
@pytest.mark.parametrize("num_updates", [1, 2])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(
    name, num_devices, num_updates
):
    """From w = 10 with rate 1, every update lands on the mean of all its rows."""
    rows = jnp.arange(8.0 * num_updates * num_devices) ** 2  # parts of unequal means
    batch = rows.reshape(num_devices, num_updates, 8)
    ends = []
    for num_parts in (1, 2, 4):
        players = one_player(num_updates=num_updates, num_accumulated=num_parts)
        update = updates(players, num_devices)[name]
        state = training.init_state(players, w(10.0), jax.random.key(0), num_devices)
        leads = (
            jnp.squeeze(batch, (0, 1)[: 3 - num_updates]) if name == "jit" else batch
        )
        state, scalars = update(state, leads)
        ends.append((state.params["energy"]["w"], scalars))
    assert float(ends[0][0]) == pytest.approx(float(batch[:, -1].mean()), rel=1e-6)
    for end in ends[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), end, ends[0])


def remember(params, key, batch, carry):
    """A loss that is its own key's number, and writes it and the rows to its carry."""
    number = jax.random.uniform(key)
    value = params["energy"]["w"] * number + 0.0 * batch.sum()
    place = carry["calls"]
    carry = {
        "calls": place + 1,
        "numbers": carry["numbers"].at[place].set(number),
        "rows": carry["rows"].at[place].set(batch),
    }
    state = {"energy_state": {"mean": params["energy_state"]["mean"] + batch.mean()}}
    return value, Aux(carry, {"number": number}, state)


def test_parts_take_turns_with_a_key_of_their_own_and_pass_the_carry_on():
    """The key of part p is fold_in(fold_in(key of the player, inner update), p)."""
    memory = {"calls": 0, "numbers": jnp.zeros(8), "rows": jnp.zeros((8, 2))}
    objective = Objective(lambda key: jax.tree.map(jnp.asarray, memory), remember)
    player = Player(("energy",), objective, optax.sgd(1.0), 2, num_accumulated=3)
    players = {"energy": player}
    state = training.init_state(
        players,
        w(0.0),
        jax.random.key(5),
        model_state={"energy_state": {"mean": jnp.zeros(())}},
    )
    rows = jnp.arange(12.0).reshape(2, 6)
    state, scalars = training.jit_update(players)(state, rows)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 0)
    key = jax.random.fold_in(key, 0)
    numbers = [
        jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, index), part))
        for index in range(2)
        for part in range(3)
    ]
    carry = jax.tree.map(lambda x: x[0], state.carry["energy"])
    assert int(carry["calls"]) == 6
    np.testing.assert_array_equal(carry["numbers"][:6], numbers)
    np.testing.assert_array_equal(carry["rows"][:6], rows.reshape(6, 2))
    # Gradients, metrics and model state are means over the parts.
    mean = np.mean(numbers)
    np.testing.assert_allclose(state.params["energy"]["w"], -2 * mean, rtol=1e-6)
    np.testing.assert_allclose(scalars["energy/number"], mean, rtol=1e-6)
    # Each part starts from the former state: it adds 2.5, and then 8.5.
    assert float(state.model_state["energy_state"]["mean"]) == 11.0


def test_a_count_in_the_model_state_is_exact_in_parts():
    """Counts above 2^24 are none of float32's numbers."""
    most = 20_000_001

    def loss(params, key, batch):
        count = params["energy_state"]["count"] + 1
        value = jnp.mean(params["energy"]["w"] * batch)
        return value, {}, {"energy_state": {"count": count}}

    def objective_loss(params, key, batch, carry):
        value, metrics, renewed = loss(params, key, batch)
        return value, Aux(carry, metrics, renewed)

    objective = Objective(lambda key: (), objective_loss)
    for num_parts in (1, 3):
        player = Player(("energy",), objective, optax.sgd(1.0), 1, num_parts)
        count = {"energy_state": {"count": jnp.array(most - 1, jnp.int32)}}
        state = training.init_state(
            {"energy": player}, w(0.0), jax.random.key(0), model_state=count
        )
        state, _ = training.jit_update({"energy": player})(state, jnp.ones(6))
        if num_parts > 1:  # the mean over devices is one of float32's numbers
            assert abs(int(state.model_state["energy_state"]["count"]) - most) <= 1


def test_parts_replay_chains_one_part_after_another():
    """Two parts of four chains each move at most eight slots, and at least four."""
    players = {"energy": ONE["energy"]._replace(num_accumulated=2)}
    state = start(players)
    before = np.array(state.carry["energy"].memory)
    update = training.jit_update(players, ema_decay=0.9)
    state, scalars = update(state, jax.random.normal(jax.random.key(0), (8, 2)))
    moved = (np.asarray(state.carry["energy"].memory) != before).any(2).sum()
    assert 4 <= moved <= 8
    assert np.isfinite(list(scalars.values())).all()


def test_one_part_alone_takes_memory():
    """A layer's activations are 4 MiB for 4,096 rows, and 0.25 MiB for a part."""

    def loss(params, key, batch):
        hidden = jnp.tanh(jnp.tanh(batch @ params["energy"]["w"]))
        return jnp.mean(jnp.tanh(hidden @ params["energy"]["w"]) ** 2), {}

    temporary = []
    for num_parts in (1, 16):
        players = one_player(loss, num_accumulated=num_parts)
        params = {"energy": {"w": jnp.ones((256, 256))}}
        state = training.init_state(players, params, jax.random.key(0))
        program = training.jit_update(players).lower(state, jnp.ones((4096, 256)))
        temporary.append(program.compile().memory_analysis().temp_size_in_bytes)
    assert temporary[1] < temporary[0] / 4


@pytest.mark.parametrize("name, num_devices", [("pmap", 2), ("shard", 2), ("jit", 1)])
def test_a_size_that_does_not_divide_into_parts_is_refused(name, num_devices):
    def loss(params, key, batch):
        raise AssertionError("traced")

    players = one_player(loss, num_accumulated=3)
    state = training.init_state(players, w(0.0), jax.random.key(0), num_devices)
    batch = jnp.zeros((8,) if name == "jit" else (num_devices, 1, 8))
    message = (
        "player 'energy': the size of a microbatch on each device must be a multiple of"
        " num_accumulated = 3, got 8"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        updates(players, num_devices)[name](state, batch)
    with pytest.raises(ValueError, match=f"^{message}"):  # make_update, at its trace
        jax.eval_shape(under_vmap(players), state, jnp.zeros((num_devices, 1, 8)))
