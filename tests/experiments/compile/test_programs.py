"""Every paper's update, every sampler and every objective compiles for a TPU.

These tests compile for a TPU v5e, of which none is needed, and fail for a change that
compiles on a CPU alone. They need libtpu: `pip install "jax[tpu]"`.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from cases import GAUSSIAN_PARAMS, OBJECTIVES, SAMPLERS
from jax.sharding import SingleDeviceSharding

from ebmjax import energies, samplers, training
from ebmjax.networks import convolution_forms
from ebmjax.types import DEVICE
from experiments.compile.estimate import compile_program
from experiments.compile.presets import (
    compile_preset,
    compile_presets,
    find_preset,
    list_problems,
)
from experiments.compile.programs import (
    build_problem,
    first_steps,
    state_shapes,
    update_program,
)
from experiments.compile.topologies import make_topology
from experiments.tutorial.methods import METHODS

needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jax[tpu]'",
)

PRESETS = [
    "short_run.images:digits",
    "short_run.plane:toy_nonconvergent",
    "score_based.images:digits",
    "score_based.plane:two_modes",
    "max_entropy.images:digits",
    "max_entropy.anomalies:kdd99",
    "generalized.images:digits",
    "generalized.tables:red_wine",
    "tutorial.deep_kernel.run:sliced_score_matching,red_wine",
]
PROBLEMS = list_problems()
# Every method's objectives, those of two players among them.
PRESETS += [f"tutorial.run:{name},{METHODS[name].targets[0]}" for name in METHODS]


@pytest.fixture(scope="module")
def chips():
    return make_topology("v5e:2x2")


def on_chip(chips, tree):
    sharding = SingleDeviceSharding(chips.devices[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: tree),
    )


@needs_tpu_compiler
@pytest.mark.parametrize("name", PRESETS)
def test_the_update_of_every_paper_and_method_compiles(chips, name):
    problem, preset = find_preset(name)
    module = list_problems()[problem]
    built = build_problem(module, module.get_config(preset), len(chips.devices))
    record = compile_program(update_program(built, chips), chips)
    assert record["fits"] and not record["has_float64"]
    # Four chips share a batch, and their gradients meet.
    assert record["collectives"].get("all-reduce", 0) >= 1
    # The parameters, the optimizer and the chains take the place of the old ones.
    state = state_shapes(built)
    trained = jax.tree.leaves((state.params, state.opt_state))
    size = sum(x.size * x.dtype.itemsize for x in trained if x.ndim)
    assert record["donated_gb"] * 1e9 >= 0.9 * size


@pytest.mark.parametrize("name", PRESETS[:9])
def test_the_update_of_every_paper_is_lowered_for_a_gpu(name, monkeypatch):
    """Without the plugin, whose wheels have gigabytes: to the language before XLA."""

    def refuse(*args):
        raise AssertionError("a form of a convolution for a CPU is in the program")

    monkeypatch.setattr(convolution_forms, "is_product", refuse)
    problem, preset = find_preset(name)
    module = list_problems()[problem]
    built = build_problem(module, module.get_config(preset), 1)
    players, ema_decay = built.experiment.players, built.config.ema_decay or None
    rows = built.experiment.batch(first_steps(built).get("", 0))
    num = sum(player.num_updates for player in players.values())
    batch = jax.ShapeDtypeStruct(
        (1, num, rows.shape[0] // num, *rows.shape[1:]), rows.dtype
    )
    update = jax.vmap(
        training.make_update(players, ema_decay=ema_decay),
        in_axes=(training.AXES, 0),
        out_axes=(training.AXES, None),
        axis_name=DEVICE,
    )
    traced = jax.jit(update).trace(state_shapes(built), batch)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "xf64>" not in text and "callback" not in text


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_programs_of_every_problem_can_be_traced(name):
    """From shapes alone, with the options of its first preset."""
    preset = next(iter(PROBLEMS[name].PRESETS))
    built = build_problem(PROBLEMS[name], PROBLEMS[name].get_config(preset), 1)
    state, key = state_shapes(built), jax.eval_shape(lambda: jax.random.key(0))
    for program in built.experiment.programs.values():
        shapes = jax.eval_shape(program, state.params, state.model_state, key)
        assert jax.tree.leaves(shapes)


@needs_tpu_compiler
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_compiles(chips, name):
    sampler = SAMPLERS[name].make((3,))
    energy = functools.partial(energies.gaussian, {"mean": 0.0, "precision": 1.0})
    key, x = on_chip(chips, (jax.random.key(0), jnp.zeros((64, 3))))
    run = jax.jit(lambda key, x: samplers.sample_chains(sampler, energy, key, x, 5))
    assert "f64[" not in run.lower(key, x).compile().as_text()


@needs_tpu_compiler
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_compiles(chips, name):
    objective = OBJECTIVES[name]()

    def step(params, key, batch):
        carry = objective.init(key)
        return jax.value_and_grad(objective.loss, has_aux=True)(
            params, key, batch, carry
        )

    arguments = on_chip(chips, (GAUSSIAN_PARAMS, jax.random.key(0), jnp.ones((4, 2))))
    assert "f64[" not in jax.jit(step).lower(*arguments).compile().as_text()


@needs_tpu_compiler
def test_the_programs_of_an_evaluation_are_compiled_for_one_chip():
    name = ("short_run.images", "digits", "v5e:2x2")
    (alone,) = compile_preset(*name, update_only=True)
    assert alone["program"] == "update"
    records = list(compile_preset(*name))
    assert [r["program"] for r in records] == ["update", "samples", "reconstruction"]
    assert all("error" not in record for record in records)
    assert records[0]["num_steps"] == 3_000
    assert records[0]["num_chips"] == 4 and records[1]["collectives"] == {}


@needs_tpu_compiler
def test_chips_of_two_processes_are_compiled_for():
    chips = make_topology("v6e:2x4")
    assert (len(chips.devices), chips.num_processes) == (8, 2)
    module = list_problems()["generalized.circle"]
    built = build_problem(module, module.get_config(), 8)
    assert compile_program(update_program(built, chips), chips)["fits"]


@needs_tpu_compiler
def test_a_batch_that_chips_cannot_share_is_a_record_and_no_crash():
    (record,) = compile_preset("short_run.images", "digits", "v5e:16x16")
    assert "multiple of the 256 chips, got 64" in record["error"]


@needs_tpu_compiler
@pytest.mark.slow
def test_a_program_that_takes_too_long_is_a_record():
    jobs = [("short_run.images", "digits", "v5e:2x2")] * 2
    for (record,) in compile_presets(jobs, 0.01):
        assert (record["program"], record["error"]) == ("update", "no end in 0.01 s")


@pytest.mark.parametrize(
    "name, words",
    [
        ("short_run", "short_run.images:, short_run.plane:"),
        ("short_run:nothing", "<paper>.<problem>:<preset>"),
        ("nothing:digits", "<paper>.<problem>:<preset>"),
        ("short_run.images:nothing", "nothing"),
    ],
)
def test_a_preset_that_is_none_is_refused(name, words):
    with pytest.raises(ValueError) as error:
        find_preset(name)
    assert words in str(error.value) or "preset" in str(error.value)


@pytest.mark.parametrize("name", ["v5e", "v5e:", ":2x2", "v5e:2by2", "h200"])
def test_a_topology_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="topology must be such as 'v5e:2x2'"):
        make_topology(name)


def test_a_preset_is_found_by_its_paper_alone():
    assert find_preset("max_entropy:kdd99") == ("max_entropy.anomalies", "kdd99")
