"""The table of methods and targets: its cells, its figures, its evaluation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import energies, objectives, training
from experiments import tutorial
from experiments.run.config import flat
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import overridden
from experiments.run.workdir import read_lines

pytestmark = pytest.mark.usefixtures("quick_compilation")


def small(preset, **overrides):
    """A cell of a few updates."""
    values = {
        "train.num_steps": 3,
        "train.log_every": 1,
        "data.batch_size": 32,
        "evaluation.num_points": 80,
        "evaluation.num_examples": 200,
    }
    config = tutorial.get_config(preset)
    known = flat(config.to_dict())
    for name, value in (
        ("objective.capacity", 64),
        ("objective.num_updates", 2),
        ("objective.num_critic_updates", 1),
        ("objective.num_flow_updates", 1),
        ("objective.num_layers", 2),
        ("objective.max_steps", 10),
        ("objective.num_importance", 4),
    ):
        if name in known:
            values[name] = value
    values |= {name.replace("__", "."): value for name, value in overrides.items()}
    return overridden(config, values)


def state_of(params):
    """What an evaluation is handed, of these parameters."""
    fields = dict.fromkeys(training.TrainState._fields) | {"params": params}
    return training.TrainState(**fields)


PLAIN = {"score_matching", "sliced_score_matching", "denoising_score_matching"}
PLAIN |= {"finite_difference_score_matching", "minimum_velocity", "kernel_stein"}
PLAIN |= {"conditional_noise_contrastive"}
"""Methods that are an objective and nothing else, of which one is run."""


def one_target_each():
    names = set(tutorial.METHODS) - PLAIN | {"sliced_score_matching"}
    return [(name, tutorial.METHODS[name].targets[0]) for name in sorted(names)]


@pytest.mark.slow
@pytest.mark.parametrize("name, target", one_target_each())
def test_every_method_trains_and_is_evaluated(tmp_path, name, target):
    scalars = run(tutorial.build, small(f"{name},{target}"), tmp_path)
    assert scalars["kl"] > 0  # of a model that has barely begun
    lines = read_lines(tmp_path)
    players = {key.split("/")[0] for key in lines[0] if "/" in key}
    assert "energy" in players
    learns = {"noise_contrastive", "noise_contrastive_flow", "flow_contrastive"}
    assert ("learned_log_partition" in scalars) == (name in learns)


def test_every_objective_has_a_method_or_data_of_another_kind():
    elsewhere = {"ratio_matching", "minimum_probability_flow"}
    elsewhere |= {"non_negative_score_matching", "max_entropy", "generalized"}
    elsewhere |= {"diffusion_score_matching"}  # of times, in `score_based`
    public = set(objectives.__all__) - elsewhere
    public -= {"Aux", "ContrastiveCarry", "NoiseDistribution", "Objective"}
    public -= {"generate", "interpolate", "stateless", "telescoping_energy"}
    assert public <= set(tutorial.METHODS), public - set(tutorial.METHODS)


def test_where_the_model_is_the_target_all_divergences_are_zero(tmp_path):
    config = small("noise_contrastive,rings", evaluation__num_points=400)
    keys = make_keys(0)
    problem, target = tutorial.make_problem(config, keys)

    def shifted(params, x):
        return target.energy_fn(x) + params

    problem = problem._replace(model=problem.model._replace(energy=shifted))
    evaluate = tutorial.in_plane(config, problem, target)
    params = {"energy": np.float32(1.5), "log_partition": np.float32(-1.4)}
    found = evaluate(state_of(params), keys.evaluation, tmp_path)
    # float32 energies of about 10 are off by 1e-6.
    assert abs(found["kl"]) < 1e-5 and abs(found["kl_within_modes"]) < 1e-5
    assert found["fisher_divergence"] < 1e-6
    np.testing.assert_allclose(found["log_partition"], -1.5, atol=1e-4)
    assert found["mass_off_grid"] < 1e-4
    np.testing.assert_allclose(found["learned_log_partition"], -1.4, rtol=1e-6)


def test_a_model_off_the_grid_is_as_far_from_the_data_as_it_is_off(tmp_path):
    """Half of its mass 9 to the right: log 2, and none of it within modes."""
    config = small("noise_contrastive,two_moons", evaluation__num_points=400)
    problem, target = tutorial.make_problem(config, make_keys(0))

    def halved(params, x):
        away = target.energy_fn(x - jnp.array([9.0, 0.0]))
        return -jnp.logaddexp(-target.energy_fn(x), -away)

    problem = problem._replace(model=problem.model._replace(energy=halved))
    evaluate = tutorial.in_plane(config, problem, target)
    found = evaluate(state_of({"energy": 0.0}), jax.random.key(0), tmp_path)
    np.testing.assert_allclose(found["kl"], math.log(2), atol=1e-4)
    np.testing.assert_allclose(found["mass_off_grid"], 0.5, atol=1e-4)
    np.testing.assert_allclose(found["log_partition"], math.log(2), atol=1e-4)
    assert abs(found["kl_within_modes"]) < 1e-4


def test_wrong_weights_of_modes_are_a_divergence_between_and_not_within(tmp_path):
    config = small(
        "noise_contrastive,eight_gaussians", data__std=0.1, evaluation__num_points=800
    )
    problem, target = tutorial.make_problem(config, make_keys(0))
    weights = np.arange(1.0, 9.0) / 36
    angles = np.arange(8) * (math.pi / 4)
    params = {
        "means": 2.0 * np.stack([np.cos(angles), np.sin(angles)], 1),
        "precisions": np.asarray(0.1**-2),
        "log_weights": np.log(weights),
    }
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    model = problem.model._replace(energy=energies.gaussian_mixture)
    evaluate = tutorial.in_plane(config, problem._replace(model=model), target)
    found = evaluate(state_of({"energy": params}), jax.random.key(0), tmp_path)
    # Modes 15 standard deviations apart share nothing that float32 could hold.
    expected = np.mean(np.log(1 / 8) - np.log(weights))
    np.testing.assert_allclose(found["kl"], expected, rtol=1e-4)
    assert abs(found["kl_within_modes"]) < 1e-4
    assert (tmp_path / "densities.png").is_file()


def test_divergences_of_the_exact_models_are_zero_at_the_truth_and_this_elsewhere():
    config = small("sliced_score_matching,ica_10", evaluation__num_examples=20_000)
    problem, target = tutorial.make_problem(config, make_keys(0))
    evaluate = tutorial.by_draws(config, problem, target)
    mixing = tutorial.ica_mixing(dim=10, matrix_seed=0)
    unmixing = jnp.asarray(np.linalg.inv(mixing), jnp.float32)

    def at(scale):
        params = {"energy": {"unmixing": scale * unmixing}}
        return evaluate(state_of(params), jax.random.key(1), None)

    truth = at(1.0)
    assert abs(truth["kl"]) < 1e-4 and truth["fisher_divergence"] < 1e-6
    np.testing.assert_allclose(
        truth["test_log_likelihood"],
        -20 + np.linalg.slogdet(np.asarray(unmixing))[1],
        # 2 nats are a logistic's entropy; its -log density has a variance below 2.
        atol=4 * math.sqrt(10 * 2 / 20_000),
    )
    scale, nodes = 1.3, np.linspace(-60, 60, 200_001)
    density = 0.25 / np.cosh(nodes / 2) ** 2
    energy = np.logaddexp(0, scale * nodes) + np.logaddexp(0, -scale * nodes)
    mean = (density * energy).sum() * (nodes[1] - nodes[0])
    expected = 10 * (mean - 2 - math.log(scale))
    wrong = at(scale)
    error = abs(wrong["kl"] - expected)
    assert error < 4 * wrong["kl_standard_error"] < 0.1 * expected


@pytest.mark.parametrize("target", ["ica_10", "rbm_10"])
def test_a_model_s_exact_draws_have_its_density(target):
    """The mean score of draws is 0, and score times position minus one, by parts."""
    config = small(f"maximum_likelihood,{target}")
    problem, _ = tutorial.make_problem(config, make_keys(0))
    params = problem.model.init(jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), 20_000)
    x = jax.vmap(problem.model.sample, (None, 0))(params, keys)
    scores = jax.vmap(lambda x: -jax.grad(problem.model.energy, 1)(params, x))(x)
    products = np.asarray(scores[:, :, None] * x[:, None, :])
    errors = products.std(0) / math.sqrt(len(x))
    # 100 entries: 5 standard errors are exceeded by chance once in 20,000 tests.
    assert np.all(np.abs(products.mean(0) + np.eye(10)) < 5 * errors)
    # The slope of log Z is minus the mean slope of the energy over the model.
    of_energy = jax.vmap(jax.grad(problem.model.energy), (None, 0))(params, x)
    slopes = jax.grad(problem.model.log_partition)(params)
    for name, slope in slopes.items():
        error = of_energy[name].std(0) / math.sqrt(len(x))
        assert np.all(np.abs(slope + of_energy[name].mean(0)) < 5 * error)


SMALL_SWEEP = (
    "train.num_steps=3",
    "train.log_every=1",
    "data.batch_size=32",
    "evaluation.num_points=80",
)


def sweep_config(preset, **section):
    config = tutorial.get_config(preset).unlock()
    config.sweep.update({"num_seeds": 1, "overrides": SMALL_SWEEP} | section)
    return config.lock()


@pytest.mark.slow
def test_a_sweep_keeps_what_failed_and_repeats_nothing(tmp_path, capsys):
    config = sweep_config(
        "all,two_moons",
        methods=("noise_contrastive", "kernel_stein"),
        overrides=(*SMALL_SWEEP, "train.abort_above=2.5", "ema_decay=0.0"),
    )
    with config.unlocked():
        config.seed = 2
    tutorial.sweep(tutorial.build, config, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "### two_moons" in table and "`noise_contrastive` |" in table
    assert (tmp_path / "densities.png").is_file()
    capsys.readouterr()
    tutorial.sweep(tutorial.build, config, tmp_path)
    assert "cell 1/" not in capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == table
    failures = {path.parent.name for path in tmp_path.glob("cells/*/failure.txt")}
    assert failures == {"noise_contrastive,two_moons,2"}
    (row,) = [line for line in table.splitlines() if "`noise_contrastive`" in line]
    assert row.endswith("| 0 (1 failed) |")
    (row,) = [line for line in table.splitlines() if "`kernel_stein`" in line]
    assert row.endswith("| 3 | 1 |")


@pytest.mark.parametrize(
    "section, message",
    [
        ({"targets": ("ringz",)}, "'ringz' must be one of"),
        ({"methods": ("nce",)}, "'nce' must be one of"),
        ({"num_seeds": 0}, "sweep.num_seeds must be at least 1, got 0"),
        ({"methods": ("score_matching",), "targets": ("checkerboard",)}, "no method"),
        ({"overrides": ("train.num_step=1",)}, r"no cell has .*'train.num_step'"),
        ({"overrides": ("train.num_steps",)}, "must be 'option=value'"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(tmp_path, section, message):
    config = sweep_config("noise_contrastive,rings", **section)
    with pytest.raises(ValueError, match=message):
        tutorial.sweep(tutorial.build, config, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_sweep_looks_for_its_files_first_and_leaves_out_what_has_none(
    tmp_path, capsys
):
    config = sweep_config(
        "all,red_wine",
        methods=("score_matching",),
        overrides=("data.data_dir=nowhere",),
    )
    with pytest.raises(FileNotFoundError, match="red_wine is not in nowhere"):
        tutorial.sweep(tutorial.build, config, tmp_path)
    assert not any(tmp_path.iterdir())
    tutorial._cells(sweep_config("score_matching,red_wine", overrides=()))
    assert "left out, without a data.data_dir" in capsys.readouterr().out


def test_what_a_sweep_would_not_pass_on_is_refused(tmp_path):
    config = sweep_config("all,rings").unlock()
    config.train.num_steps = 7
    with pytest.raises(ValueError, match="put train.num_steps=7 into sweep"):
        tutorial.sweep(tutorial.build, config, tmp_path)
    with pytest.raises(ValueError, match="is a table of runs: add --sweep"):
        tutorial.build(tutorial.get_config("all,rings"), make_keys(0))


@pytest.mark.parametrize(
    "preset, message",
    [
        ("rings", "preset must be 'method,target', got 'rings'"),
        ("magic,rings", "'magic' must be one of"),
        ("score_matching,moon", "'moon' must be one of"),
        (
            "score_matching,checkerboard",
            "score_matching does not apply to checkerboard; it does to",
        ),
    ],
)
def test_presets_that_make_no_sense_are_named(preset, message):
    with pytest.raises(ValueError, match=message):
        tutorial.get_config(preset)


def test_points_belong_to_the_mode_they_lie_in():
    def mode(target, points):
        return tutorial.modes_of(tutorial.TARGETS[target], np.array(points)).tolist()

    assert mode("eight_gaussians", [[2.0, 0.1], [0.1, 2], [-1.4, -1.4]]) == [0, 2, 5]
    assert mode("rings", [[0.0, 1.2], [-2.6, 0], [9, 9]]) == [0, 2, 3]
    upper = [[math.cos(t), math.sin(t)] for t in np.linspace(0, math.pi, 50)]
    lower = [[1 - math.cos(t), 0.5 - math.sin(t)] for t in np.linspace(0, math.pi, 50)]
    assert mode("two_moons", upper + lower) == [0] * 50 + [1] * 50
    board = mode("checkerboard", [[-3.9, -3.9], [-2.1, -2.1], [-1, -1], [3, 3]])
    assert board[0] == board[1] and len(set(board)) == 3
