"""Checkpoints: atomic, read on other numbers of devices, never half-read."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import GAUSSIAN_PARAMS, OBJECTIVES
from small_experiment import build, config, get_config, state_of, step_of

from ebmjax import energies, objectives, samplers, starts, training
from ebmjax.training import Player
from experiments.run import checkpoint
from experiments.run.checkpoint import Checkpoints, load_run, read
from experiments.run.errors import CheckpointError
from experiments.run.loop import run


def make(num_devices, capacity=64, params=GAUSSIAN_PARAMS, seed=0, **options):
    """A state with a replay buffer of `capacity` on all devices together."""
    objective = objectives.contrastive_divergence(
        energies.gaussian,
        sampler=samplers.langevin(step_size=0.1),
        num_steps=2,
        start=starts.replay(
            jax.random.normal,
            event_shape=(2,),
            capacity=capacity // num_devices,
            reinit_prob=0.1,
        ),
    )
    players = {"energy": Player(("energy",), objective, optax.adam(0.1))}
    state = training.init_state(
        players, params, jax.random.key(seed), num_devices, **options
    )
    return players, state


def step(players, state, num_devices, **options):
    batch = jax.random.normal(jax.random.key(5), (num_devices, 1, 16 // num_devices, 2))
    state, _ = training.pmap_update(players, **options)(state, batch)
    jax.block_until_ready(state.step)
    return state


def host(state):
    return jax.device_get(state._replace(key=jax.random.key_data(state.key)))


def reopened(workdir):
    return Checkpoints(workdir)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    model_state = {"energy_state": {"spectral": {"Dense_0/kernel/u": jnp.ones(3)}}}
    options = {"ema_decay": 0.9, "model_state": model_state}
    players, state = make(2, **options)
    state = step(players, state, 2, ema_decay=0.9)
    saving = reopened(tmp_path)
    saving.save(1, state)
    saving.close()
    checkpoints = reopened(tmp_path)
    assert checkpoints.latest_step() == 1
    _, template = make(2, **options)
    found = checkpoints.restore(template, 2)
    jax.tree.map(np.testing.assert_array_equal, host(found), host(state))
    # And it can be trained from: nothing in it is donated twice or misplaced.
    step(players, found, 2, ema_decay=0.9)


def test_a_process_with_a_copy_of_the_folder_leaves_saving_to_the_first(
    tmp_path, monkeypatch
):
    """Orbax's own signals between two that write would mix up their folders."""
    _, state = make(2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    checkpoints = Checkpoints(tmp_path, is_shared=False)
    assert checkpoints.latest_step() is None
    checkpoints.save(1, state)
    checkpoints.prune()
    assert checkpoints.latest_step() == 1
    checkpoints.close()
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("saved_on, read_on", [(8, 1), (1, 8), (8, 2)])
def test_a_memory_is_split_anew_over_other_devices(saved_on, read_on, tmp_path):
    players, state = make(saved_on)
    state = step(players, state, saved_on)
    saving = reopened(tmp_path)
    saving.save(1, state)
    saving.close()
    players, template = make(read_on)
    found = reopened(tmp_path).restore(template, read_on)
    memory = found.carry["energy"].memory
    assert memory.shape == (read_on, 64 // read_on, 2)
    np.testing.assert_array_equal(
        np.asarray(memory).reshape(64, 2),
        np.asarray(state.carry["energy"].memory).reshape(64, 2),
    )
    np.testing.assert_array_equal(found.carry["energy"].count, np.ones(read_on))
    assert int(step(players, found, read_on).step) == 2


@pytest.mark.quick
def test_a_memory_that_cannot_be_split_is_refused(tmp_path):
    """64 chains on 8 devices, and one device that remembers 8."""
    _, state = make(8)
    saving = reopened(tmp_path)
    saving.save(1, state)
    saving.close()
    _, template = make(1, capacity=8)
    with pytest.raises(ValueError, match=r"carry/energy/memory is float32\(8, 8, 2\)"):
        reopened(tmp_path).restore(template, 1)


def test_another_model_is_refused_by_leaf(tmp_path):
    _, state = make(1)
    saving = reopened(tmp_path)
    saving.save(1, state)
    saving.close()
    wider = {"energy": {"mean": jnp.ones(2), "precision": jnp.ones((2, 2))}}
    _, template = make(1, params=wider)
    with pytest.raises(
        ValueError,
        match=r"energy/precision is float32\(2,\), expected float32\(2, 2\)",
    ):
        reopened(tmp_path).restore(template, 1)
    _, template = make(1, params={"energy": {"mean": jnp.ones(2)}})
    with pytest.raises(ValueError, match="has unknown energy/precision"):
        reopened(tmp_path).restore(template, 1)
    _, template = make(1, seed=1)
    with pytest.raises(ValueError, match="another root key"):
        reopened(tmp_path).restore(template, 1)


def test_nothing_that_is_not_finite_is_saved(tmp_path):
    _, state = make(1)
    broken = state._replace(params={"energy": {"mean": jnp.array([0.0, jnp.inf])}})
    with pytest.raises(FloatingPointError, match="step 3: params energy/mean"):
        reopened(tmp_path).save(3, broken)
    memory = state.carry["energy"].memory.at[0, 0, 0].set(jnp.nan)
    carry = {"energy": state.carry["energy"]._replace(memory=memory)}
    with pytest.raises(FloatingPointError, match="carry/energy/memory"):
        reopened(tmp_path).save(3, state._replace(carry=carry))
    assert reopened(tmp_path).latest_step() is None


@pytest.fixture
def torn(tmp_path):
    """A run of 40 steps whose newest checkpoint is damaged; returns how."""
    run(build, config(), tmp_path)
    return tmp_path


def damage_empty(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def damage_truncated(folder):
    largest = max(
        (p for p in (folder / "params").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def damage_half_copied(folder):
    damage_empty(folder / "training")
    (folder / "training").rmdir()


@pytest.mark.parametrize("damage", [damage_empty, damage_truncated, damage_half_copied])
def test_a_torn_checkpoint_is_never_read_and_the_run_goes_on(damage, torn):
    """The step before is taken, the torn one set aside, and the end is the same."""
    whole = state_of(torn)
    damage(torn / "checkpoints" / "40")
    config_found, params, _ = load_run(torn)
    assert config_found == get_config()
    assert step_of(torn) == 35
    run(build, config(), torn)
    assert (torn / "checkpoints" / "40.unreadable").is_dir()
    jax.tree.map(np.testing.assert_array_equal, state_of(torn), whole)


@pytest.mark.quick
def test_all_processes_read_what_the_first_sees_and_all_find_sound(monkeypatch):
    """As the second of two processes, which lists another folder than the first."""
    answers = [np.int32(2), np.array([40, 35], np.int32)]

    def of_first(mine):
        answer = answers.pop(0)
        assert np.shape(mine) == answer.shape
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        utils = checkpoint.multihost_utils
        patch.setattr(utils, "broadcast_one_to_all", of_first)
        assert checkpoint.first_process([35, 30, 25]) == [40, 35]
        patch.setattr(utils, "process_allgather", lambda mine: [np.True_, mine])
        assert checkpoint.by_all(True) and not checkpoint.by_all(False)
        patch.setattr(utils, "process_allgather", lambda mine: [np.False_, mine])
        assert not checkpoint.by_all(True)


def test_a_flipped_bit_is_never_loaded(torn, caplog):
    """One bit of each file in turn; then the run goes on from the step before."""
    whole, before = state_of(torn), read(torn, step=35)
    rng = random.Random(0)
    folder = torn / "checkpoints" / "40"
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(paths) > 20
    for path in paths:
        content = path.read_bytes()
        bit = rng.randrange(8 * len(content))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        jax.tree.map(np.testing.assert_array_equal, state_of(torn), before)
        if path != paths[-1]:
            path.write_bytes(content)
    caplog.clear()
    run(build, config(), torn)
    name = paths[-1].relative_to(folder)
    assert f"40 is unreadable: {name} has changed since it was saved" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, state_of(torn), whole)


def test_a_checkpoint_of_an_older_version_has_no_digests_and_is_read(torn):
    (torn / "checkpoints" / "40" / "digests.json").unlink()
    assert step_of(torn) == 40


def test_without_digests_what_is_not_finite_is_not_read(tmp_path, monkeypatch):
    _, state = make(1)
    broken = {"energy": {"mean": jnp.ones(2), "precision": jnp.eye(2) * jnp.inf}}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_digests", lambda folder: None)
        patch.setattr(checkpoint, "_find_not_finite", lambda items: "")
        saving = reopened(tmp_path)
        saving.save(1, state)
        saving.save(2, state._replace(params=broken))
        saving.close()
    jax.tree.map(
        np.testing.assert_array_equal, read(tmp_path)["params"], host(state).params
    )


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    """A full disk, as the store reports it: on many lines."""
    _, state = make(1)
    saving = reopened(tmp_path)
    saving.save(1, state)
    saving.wait()

    def fail(step, **options):
        raise ValueError("RESOURCE_EXHAUSTED: ...\n...: No space left on device [28]")

    monkeypatch.setattr(saving._manager, "save", fail)
    with pytest.raises(CheckpointError) as error:
        saving.save(2, state)
    assert str(error.value) == "step 2 could not be saved: No space left on device"
    shutil.rmtree(saving.folder)
    with pytest.raises(CheckpointError, match="step 3 .*/checkpoints is missing$"):
        saving.save(3, state)


def test_load_gives_the_config_and_the_parameters(tmp_path):
    run(build, config(train__num_steps=20), tmp_path)
    found, params, model_state = load_run(tmp_path)
    assert found.data.std == 2.0 and model_state == {}
    state = state_of(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, params, state["params"])
    _, average, _ = load_run(tmp_path, ema=True)
    jax.tree.map(np.testing.assert_array_equal, average, state["ema_params"])
    assert (average["energy"]["mean"] != params["energy"]["mean"]).any()
    _, earlier, _ = load_run(tmp_path, step=15)
    assert (earlier["energy"]["mean"] != params["energy"]["mean"]).any()


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run(tmp_path)
    run(build, config(train__num_steps=10, ema_decay=0.0), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds steps \[5, 10\], not 7"):
        load_run(tmp_path, step=7)
    with pytest.raises(ValueError, match="keeps no moving average"):
        load_run(tmp_path, ema=True)
    damage_empty(tmp_path / "checkpoints" / "10")
    damage_empty(tmp_path / "checkpoints" / "5")
    with pytest.raises(RuntimeError, match=r"none of \[10, 5\] can be read"):
        load_run(tmp_path)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objectives_memory_round_trips(name, tmp_path):
    players = {"energy": Player(("energy",), OBJECTIVES[name](), optax.adam(0.1))}

    def fresh():
        return training.init_state(players, GAUSSIAN_PARAMS, jax.random.key(0), 2)

    state = step(players, fresh(), 2)
    saving = reopened(tmp_path)
    saving.save(1, state)
    saving.close()
    found = reopened(tmp_path).restore(fresh(), 2)
    jax.tree.map(np.testing.assert_array_equal, host(found), host(state))
