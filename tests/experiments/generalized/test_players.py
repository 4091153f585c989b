"""Players and their turns: who is trained when, at which rate, on how many rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.generalized import circle
from experiments.generalized.players import (
    check_players,
    energy_floor,
    energy_optimizer,
    make_batch,
    make_config,
    make_phases,
    player_optimizer,
    players_section,
)
from experiments.run.config import adam_section


class Turns:
    """What `make_phases` and `make_batch` know of a player."""

    def __init__(self, num_updates):
        self.num_updates = num_updates

    def _replace(self, num_updates):
        return Turns(num_updates)


def test_the_energy_has_more_turns_now_and_then_and_the_last_alone():
    section = players_section(num_extra_updates=7, extra_every=3)
    config = ConfigDict(
        {
            "players": section,
            "train": {"num_joint_steps": 5},
            "data": {"batch_size": 16},
        }
    )
    players = {"energy": Turns(2), "base": Turns(1)}
    found = make_phases(config, players)
    phases = [found["phase"](step) for step in range(7)]
    assert phases == ["extra", "extra", "", "extra", "", "tuning", "tuning"]
    assert found["phases"]["extra"]["energy"].num_updates == 2 + 7
    assert list(found["phases"]["extra"]) == ["energy", "base"]
    assert list(found["phases"]["tuning"]) == ["energy"]

    def batches(key, size):
        return lambda step: (int(jax.random.bits(key, dtype="uint8")), step, size // 16)

    batch = make_batch(config, jax.random.key(0), players, batches, **found)
    orders, steps, sizes = zip(*map(batch, range(7)), strict=True)
    assert sizes == (10, 10, 3, 10, 3, 2, 2) and steps == tuple(range(7))
    # Each phase goes through the data in an order of its own.
    assert len(set(orders)) == 3 and orders[0] == orders[1] == orders[3]


def test_without_extra_turns_and_joint_steps_all_steps_are_alike():
    config = ConfigDict({"players": players_section(num_extra_updates=0), "train": {}})
    phase = make_phases(config, {"energy": Turns(1)})["phase"]
    assert {phase(step) for step in (0, 1, 500, 10**9)} == {""}


def sgd(**rate):
    """Moves that are minus the gradient, at first."""
    section = adam_section(1.0, b1=0.0, b2=0.0)
    kept = {name: section[name] for name in ("gradient_clip", "learning_rate")}
    kept["learning_rate"] |= rate
    return {"name": "sgd", **kept}


def test_rates_change_by_the_step_however_many_updates_are_in_it():
    """SGD with a rate from 1 to 0 over 4 steps: 10 updates a step see it 10 times as
    slowly."""
    config = ConfigDict({"optimizer": sgd(final=0.0, decay_steps=4)})
    for num, halfway in ((1, 2), (10, 20)):
        optimizer = player_optimizer(config, num)
        one = jnp.ones(())
        state = optimizer.init(one)
        for _ in range(halfway + 1):
            move, state = optimizer.update(one, state)
        np.testing.assert_allclose(move, -0.5, rtol=1e-5)


def test_weights_decay_and_redescend_where_they_are_the_energy_s():
    """SGD of rate 1: the move is minus the gradient, plus 2 w of l2 times w^2, then
    through 2 g / (1 + g^2); the constant has its own gradient."""
    config = ConfigDict({"optimizer": sgd(), "players": players_section()})
    params = {"energy": {"w": jnp.array(3.0)}, "log_partition": jnp.array(5.0)}
    gradients = {"energy": {"w": jnp.array(0.2)}, "log_partition": jnp.array(4.0)}
    for redescends, through in ((False, 1.4), (True, 2 * 1.4 / (1 + 1.4**2))):
        config.players.redescends = redescends
        optimizer = energy_optimizer(config, tuple(params), l2=0.2)
        moves, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_allclose(moves["energy"]["w"], -through, rtol=1e-6)
        assert moves["log_partition"] == -4


def test_a_preset_has_a_name_and_an_estimator():
    config = make_config(circle.PRESETS, "circle,donsker_varadhan")
    assert config.is_locked and config.objective.name == "donsker_varadhan"
    assert make_config(circle.PRESETS, "circle").objective.name == "kale"
    with pytest.raises(ValueError, match="preset must be one of ..circle.., got 'cir'"):
        make_config(circle.PRESETS, "cir")
    with pytest.raises(ValueError, match="estimator must be one of .*'likelihood'"):
        make_config(circle.PRESETS, "circle,likelihood")


@pytest.mark.quick
@pytest.mark.parametrize(
    "name, value",
    [("num_energy_updates", 0), ("num_extra_updates", -5), ("extra_every", -1)],
)
def test_counts_of_turns_that_make_no_sense_are_refused(name, value):
    section = players_section()
    check_players(section)
    with pytest.raises(ValueError, match=f"players.{name} must be a whole number"):
        check_players(section | {name: value})


def test_the_floor_of_the_energy_is_below_zero_or_none():
    floors = {0.0: None, -10.0: -10.0}
    for given, floor in floors.items():
        config = ConfigDict({"objective": {"energy_floor": given}})
        assert energy_floor(config) == floor
    config = ConfigDict({"objective": {"energy_floor": 1.0}})
    with pytest.raises(ValueError, match="energy_floor must be below 0.* got 1.0"):
        energy_floor(config)
