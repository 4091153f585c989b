"""The experiment on generalised energy-based models: every preset builds, trains,
resumes and is judged; judges are right where the answer is known."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from resuming import check_resumes

from experiments import generalized
from experiments.data import images
from experiments.generalized.latents import SAMPLERS, Refined
from experiments.run.config import adam_section
from experiments.run.experiment import make_keys
from experiments.run.loop import run
from experiments.run.sweep import CELLS, FAILURE

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A table of red wine in the published form, and images of noise."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = np.round(rng.normal(size=(300, 12)), 2)
    names = ";".join(f'"name {index}"' for index in range(12))
    lines = [names, *(";".join(map(str, row)) for row in rows)]
    (folder / "winequality-red.csv").write_text("\n".join(lines) + "\n")
    for split, num in (("train", 80), ("test", 40)):
        np.savez(
            images.npz_path("cifar10", split, folder, 32),
            images=rng.integers(0, 256, (num, 32, 32, 3), np.uint8),
            labels=np.arange(num, dtype=np.int32) % 10,
        )
    return folder


def tiny(preset, data_dir=None, **changes):
    """A preset cut to seconds; its method untouched."""
    config = generalized.get_config(preset).unlock()
    config.train.update(num_steps=4, log_every=1, eval_every=2, checkpoint_every=2)
    config.data.batch_size = 16
    config.players.num_energy_updates = 2
    if config.players.num_extra_updates:
        config.players.update(num_extra_updates=2, extra_every=2)
    if "data_dir" in config.data:
        config.data.data_dir = str(data_dir)
    if "download" in config.data:
        config.data.download = False
    small = {
        "num_draws": 64,
        "num_samples": 32,
        "num_examples": 40,
        "num_chains": 32,
        "num_bins": 20,
        "chunk_size": 16,
        "num_shown": 4,
        "classifier_steps": 2,
        "num_moves": 3,
    }
    for name, value in small.items():
        if name in config.evaluation:
            config.evaluation[name] = value
    if "sampling" in config.evaluation:
        config.evaluation.sampling.update(
            samplers=("mala",), chain_lengths=(2, 4), temperatures=(0.5,)
        )
    if "num_joint_steps" in config.train:
        config.train.num_joint_steps = 3
    nets = config.network
    if "latent_dim" in nets:
        if "widths" in nets:
            nets.widths = tuple(width // 16 for width in nets.widths)
        else:
            nets.width = 4
        nets.latent_dim = 4
    else:
        nets.update(widths=(8,), **({"num_layers": 2} if "num_layers" in nets else {}))
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config.lock()


FIGURES = {
    "digits": {"quality.md", "chains.png", "strips.png"},
    "red_wine": set(),
    "curve": {"curve.png"},
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", FIGURES)
def test_a_preset_runs_stops_and_resumes(preset, data_dir, tmp_path):
    check_resumes(generalized.build, tiny(preset, data_dir), tmp_path)
    figures = {path.name for path in (tmp_path / "one" / "figures").iterdir()}
    assert figures == FIGURES[preset]


@pytest.mark.slow
def test_the_paper_s_scale_runs(data_dir, tmp_path):
    config = tiny(
        "cifar10_resnet,donsker_varadhan",
        data_dir,
        train__num_steps=2,
        train__num_joint_steps=1,
        evaluation__sampling__samplers=("underdamped", "transport"),
        evaluation__sampling__chain_lengths=(2,),
    )
    scalars = run(generalized.build, config, tmp_path)
    assert all(np.isfinite(value) for value in scalars.values())
    assert {"relative_underdamped_0.5_2", "relative_transport_1_2"} <= set(scalars)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["likelihood", "contrastive_divergence"])
def test_baselines_of_tables_train_one_flow(method, data_dir, tmp_path):
    config = tiny(f"red_wine,{method}", data_dir, train__num_steps=2)
    scalars = run(generalized.build, config, tmp_path)
    assert set(scalars) == {"train_nll", "validation_nll", "test_nll"}
    experiment = generalized.build(config, make_keys(0))
    assert set(experiment.params) == {"energy"}


def test_presets_and_methods_have_names(data_dir):
    with pytest.raises(ValueError, match="preset must be one of .*'red_wine'.*'svhn'"):
        generalized.get_config("svhn")
    with pytest.raises(ValueError, match="method must be one of .*'likelihood'"):
        generalized.get_config("digits,likelihood")
    for preset in generalized.PRESETS:
        assert generalized.get_config(preset).objective.name == "kale"
    with pytest.raises(ValueError, match="data.data_dir must be the folder"):
        generalized.build(tiny("red_wine", ""), make_keys(0))
    with pytest.raises(ValueError, match="samplers must be of .*got ..gibbs"):
        generalized.build(
            tiny("digits", evaluation__sampling__samplers=("gibbs",)), make_keys(0)
        )
    with pytest.raises(ValueError, match="objective.name must be one of"):
        generalized.build(tiny("circle", objective__name="hinge"), make_keys(0))


# --- players


def test_the_energy_has_more_turns_now_and_then_and_the_last_alone(data_dir):
    config = tiny(
        "digits",
        players__num_extra_updates=7,
        players__extra_every=3,
        train__num_joint_steps=5,
    )
    experiment = generalized.build(config, make_keys(0))
    phases = [experiment.phase(step) for step in range(7)]
    assert phases == ["extra", "extra", "", "extra", "", "tuning", "tuning"]
    assert experiment.phases["extra"]["energy"].num_updates == 2 + 7
    assert list(experiment.phases["extra"]) == ["energy", "base"]
    assert list(experiment.phases["tuning"]) == ["energy"]
    sizes = [len(experiment.batch(step)) // 16 for step in range(7)]
    assert sizes == [10, 10, 3, 10, 3, 2, 2]
    # On the curve, where it has competitors, the base alone rests.
    experiment = generalized.build(tiny("curve"), make_keys(0))
    rests = set(experiment.players) - set(experiment.phases["tuning"])
    assert rests == {"base"}


@pytest.mark.parametrize(
    "preset, option, value, message",
    [
        ("digits", "players__num_extra_updates", -5, "players.num_extra_updates must"),
        ("digits", "players__num_energy_updates", 0, "players.num_energy_updates must"),
        ("digits", "evaluation__num_samples", 1, "evaluation.num_samples must be a"),
        ("digits", "evaluation__num_examples", 0, "evaluation.num_examples must be a"),
        ("digits", "evaluation__num_shown", 0, "evaluation.num_shown must be a whole"),
        ("digits", "evaluation__chunk_size", 0, "evaluation.chunk_size must be a"),
        ("red_wine", "evaluation__num_draws", 0, "evaluation.num_draws must be a"),
        (
            "red_wine",
            "objective__l2",
            -1.0,
            "objective.l2 must not be negative, got -1",
        ),
        ("red_wine", "data__split_seed", -1, "data.split_seed must be a whole number"),
        (
            "red_wine",
            "data__name",
            "red_wines",
            "data.name must be one of .*'red_wines'",
        ),
        (
            "red_wine",
            "objective__name",
            "likelihood",
            "choose it by --config=experiments/generalized.py:red_wine,likelihood",
        ),
        ("circle", "evaluation__num_chains", 0, "evaluation.num_chains must be a"),
        ("circle", "data__concentration", -1.0, "data.concentration must not be neg"),
        ("curve", "evaluation__num_moves", 0, "evaluation.num_moves must be a whole"),
        ("curve", "network__width", 0.0, "network.width must be positive, got 0.0"),
    ],
)
def test_options_that_would_fail_after_training_are_refused_before_it(
    preset, option, value, message, data_dir
):
    config = tiny(preset, data_dir, **{option: value})
    with pytest.raises(ValueError, match=message):
        generalized.build(config, make_keys(0))


def test_a_table_without_a_line_of_names_is_refused(data_dir, tmp_path):
    lines = (data_dir / "winequality-red.csv").read_text().splitlines()
    (tmp_path / "winequality-red.csv").write_text("\n".join(lines[1:]) + "\n")
    config = tiny("red_wine", tmp_path)
    with pytest.raises(ValueError, match="winequality-red.csv.* names"):
        generalized.build(config, make_keys(0))


def test_a_sharp_von_mises_law_does_not_overflow(tmp_path):
    """At k = 800 the entropy of the angle is that of N(0, 1 / k), to 1 / k."""
    config = tiny("circle", data__concentration=800.0, train__num_steps=1)
    found = run(generalized.build, config, tmp_path)
    exact = math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi * math.e / 800)
    np.testing.assert_allclose(found["kale_exact"], exact, atol=2 / 800)
    np.testing.assert_allclose(found["mean_exact"], 1 - 0.5 / 800, rtol=1e-5)


def sgd(**rate):
    """Moves that are minus the gradient, at first."""
    section = adam_section(1.0, b1=0.0, b2=0.0)
    kept = {name: section[name] for name in ("gradient_clip", "learning_rate")}
    kept["learning_rate"] |= rate
    return {"name": "sgd", **kept}


def test_rates_change_by_the_step_however_many_updates_are_in_it():
    """SGD with a rate from 1 to 0 over 4 steps: 10 updates a step see it 10 times as
    slowly."""
    config = generalized.get_config("circle").unlock()
    config.optimizer = sgd(final=0.0, decay_steps=4)
    for num, halfway in ((1, 2), (10, 20)):
        optimizer = generalized._optimizer(config, num)
        one = jnp.ones(())
        state = optimizer.init(one)
        for _ in range(halfway + 1):
            move, state = optimizer.update(one, state)
        np.testing.assert_allclose(move, -0.5, rtol=1e-5)


def test_weights_decay_and_redescend_where_they_are_the_energy_s():
    """SGD of rate 1: the move is minus the gradient, plus 2 w of l2 times w^2, then
    through 2 g / (1 + g^2); the constant has its own gradient."""
    config = generalized.get_config("circle").unlock()
    config.optimizer = sgd()
    params = {"energy": {"w": jnp.array(3.0)}, "log_partition": jnp.array(5.0)}
    gradients = {"energy": {"w": jnp.array(0.2)}, "log_partition": jnp.array(4.0)}
    for redescends, through in ((False, 1.4), (True, 2 * 1.4 / (1 + 1.4**2))):
        config.players.redescends = redescends
        optimizer = generalized._energy_optimizer(config, tuple(params), l2=0.2)
        moves, _ = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_allclose(moves["energy"]["w"], -through, rtol=1e-6)
        assert moves["log_partition"] == -4


# --- tables


@pytest.mark.parametrize("flow", generalized.FLOWS)
def test_at_first_both_flows_are_normal_and_the_constant_is_exact(
    flow, data_dir, tmp_path
):
    """T10, T18. All rows are white, so their mean likelihood under N(0, I) is that of
    11 / 2 log(2 pi e); the energy's is its exactly, the constant being -s."""
    config = tiny("red_wine", data_dir, network__name=flow)
    experiment = generalized.build(config, make_keys(0))
    state = _state(experiment)
    found = experiment.evaluate(state, jax.random.key(0), tmp_path)
    sizes = {"train": 243, "validation": 27, "test": 30}
    mean = sum(found[f"{name}_nll"] * num for name, num in sizes.items()) / 300
    np.testing.assert_allclose(mean, 5.5 * math.log(2 * math.pi * math.e), rtol=1e-4)
    for name in ("log_partition", "log_partition_of_draws"):
        np.testing.assert_allclose(found[name], found["log_partition_true"], rtol=1e-5)
    assert found["log_partition_true"] < -0.1
    for name in ("test_nll_by_kale", "base_test_nll"):
        np.testing.assert_allclose(found[name], found["test_nll"], rtol=1e-5)
    # A wrong constant is seen by KALE, and by it alone: e^d - 1 - d.
    state.params["log_partition"] -= 0.5
    wrong = experiment.evaluate(state, jax.random.key(0), tmp_path)
    np.testing.assert_allclose(
        wrong["test_nll_by_kale"] - found["test_nll"],
        math.exp(0.5) - 1 - 0.5,
        rtol=1e-3,
    )
    assert wrong["test_nll"] == found["test_nll"]
    # Donsker and Varadhan's has none to be wrong.
    config = tiny("red_wine,donsker_varadhan", data_dir)
    experiment = generalized.build(config, make_keys(0))
    assert experiment.players["energy"].trains == ("energy",)
    found = experiment.evaluate(_state(experiment), jax.random.key(0), tmp_path)
    assert found["log_partition"] == found["log_partition_of_draws"]
    np.testing.assert_allclose(found["test_nll_by_kale"], found["test_nll"], rtol=1e-5)


def _state(experiment):
    from ebmjax import training

    return training.TrainState(
        0, None, dict(experiment.params), experiment.model_state, None, {}, {}
    )


def test_a_sweep_chooses_by_validation(data_dir, tmp_path, monkeypatch, capsys):
    """Every method's second evaluation has the best validation, and is its row."""
    places = {}

    def runs(build, cells, workdir, report, **options):
        for place, (name, cell) in enumerate(cells.items()):
            method, seed = name.split(",")
            assert (cell.objective.name, str(cell.seed)) == (method, seed)
            places[method] = place
            folder = workdir / CELLS / name
            folder.mkdir(parents=True)
            lines = [
                {"step": 0, "validation_nll": 3.0, "test_nll": 1.0},
                {"step": 2, "validation_nll": 2.0, "test_nll": 5.0 + place},
                {"step": 4, "validation_nll": 4.0, "test_nll": 0.0},
            ]
            text = "".join(json.dumps({"kind": "eval"} | x) + "\n" for x in lines)
            (folder / "metrics.jsonl").write_text(text)
        report({})

    monkeypatch.setattr(_sweep, "run_cells", runs)
    config = tiny("red_wine", data_dir, sweep__num_seeds=1)
    generalized.sweep(generalized.build, config, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    by_method = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert set(by_method) == {*generalized.ESTIMATORS, *generalized.BASELINES}
    for method, row in by_method.items():
        assert row["test_nll"] == f"{5 + places[method]}" and row["seeds"] == "1"
    with pytest.raises(ValueError, match="baselines as cells.*'likelihood'"):
        generalized.sweep(
            generalized.build, tiny("red_wine,likelihood", data_dir), tmp_path
        )


def test_a_sweep_whose_first_run_failed_has_a_table(data_dir, tmp_path, monkeypatch):
    def fails(build, cells, workdir, report, **options):
        assert options == {"keeps_failures": True}
        report({})

    monkeypatch.setattr(_sweep, "run_cells", fails)
    generalized.sweep(generalized.build, tiny("red_wine", data_dir), tmp_path)
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert [row.replace(" ", "") for row in rows] == [
        f"|{method}|0|0|"
        for method in (*generalized.ESTIMATORS, *generalized.BASELINES)
    ]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sweep__methods": ("kale", "cd")}, "sweep.methods must be some of .*'cd'"),
        ({"sweep__methods": ()}, "sweep.methods must be some of .*got"),
        (
            {"sweep__num_seeds": 0},
            "sweep.num_seeds must be a whole number of at least 1",
        ),
    ],
)
def test_a_sweep_of_nothing_is_refused(options, message, data_dir, tmp_path):
    with pytest.raises(ValueError, match=message):
        config = tiny("red_wine", data_dir, **options)
        generalized.sweep(generalized.build, config, tmp_path)


def test_a_sweep_over_seeds_has_a_measure_a_line(tmp_path, monkeypatch):
    def runs(build, cells, workdir, report, **options):
        assert list(cells) == ["kale,3", "kale,4"]
        for name, value in zip(cells, (1.0, 2.0)):
            folder = workdir / CELLS / name
            folder.mkdir(parents=True)
            line = f'{{"kind": "eval", "step": 4, "relative_mala_1_2": {value}}}'
            (folder / "metrics.jsonl").write_text(line + "\n")
        report({})

    monkeypatch.setattr(_sweep, "run_cells", runs)
    config = tiny("digits", seed=3, sweep__num_seeds=2)
    generalized.sweep(generalized.build, config, tmp_path)
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert rows == [
        "| cell | kale |",
        "| relative_mala_1_2 | 1.5 ± 0.7 |",
        "| seeds | 2 |",
        "| ended | 2 |",
    ]


def test_a_run_that_has_not_ended_is_in_no_table(tmp_path):
    lines = [(1, 3.0), (2, 1.0), (3, 2.0)]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            f'{{"kind": "eval", "step": {step}, "validation_nll": {value}}}\n'
            for step, value in lines
        )
    )
    assert generalized._chosen(tmp_path, 4) == (None, False)
    assert generalized._chosen(tmp_path, 3) == ({"validation_nll": 1.0}, True)
    (tmp_path / FAILURE).write_text("step 4: diverged")
    assert generalized._chosen(tmp_path, 4) == ({"validation_nll": 1.0}, False)
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "eval", "step": 1, "a": 1.0}\n{"kind": "eval", "step": 2, "a": 2.0}\n'
    )
    assert generalized._chosen(tmp_path, 2) == ({"a": 2.0}, True)
    assert generalized._chosen(tmp_path, 3) == (None, False)


# --- thin supports


@pytest.mark.parametrize("concentration", [0.5, 2.0])
def test_the_von_mises_law_has_its_mean_and_lies_on_the_circle(concentration):
    x = generalized.von_mises(concentration).sample(jax.random.key(0), 100_000)
    exact = scipy.special.i1(concentration) / scipy.special.i0(concentration)
    np.testing.assert_allclose(x[:, 0].mean(), exact, atol=4 / (2 * 100_000) ** 0.5)
    np.testing.assert_allclose(x[:, 1].mean(), 0, atol=4 / 100_000**0.5)
    np.testing.assert_allclose(jnp.sum(x**2, 1), 1, rtol=1e-5)


def test_the_curve_s_first_coordinate_has_the_arcsine_law():
    x = np.asarray(generalized.curve().sample(jax.random.key(0), 100_000))
    np.testing.assert_array_equal(x[:, 1], generalized.wave(x[:, 0]))
    for place in (-0.9, 0.0, 0.5):
        share = 0.5 + math.asin(place) / math.pi
        np.testing.assert_allclose(
            (x[:, 0] < place).mean(), share, atol=4 * (0.25 / 100_000) ** 0.5
        )


@pytest.mark.slow
def test_on_the_circle_the_energy_is_von_mises_s(tmp_path):
    """KALE by quadrature is within .01 of the divergence, and what every sampler
    draws has the mean of the refined law."""
    config = generalized.get_config("circle").unlock()
    config.train.num_steps = 400
    config.optimizer.learning_rate.decay_steps = 400
    found = run(generalized.build, config.lock(), tmp_path)
    np.testing.assert_allclose(found["kale"], found["kale_exact"], atol=0.01)
    assert found["kale"] <= found["kale_exact"] and found["kl_of_refined"] < 0.01
    np.testing.assert_allclose(
        found["log_partition_learned"], found["log_partition"], atol=0.05
    )
    # What is bounded by 1 moves by at most sqrt(2 KL), Pinsker's.
    np.testing.assert_allclose(
        found["mean_of_refined"],
        found["mean_exact"],
        atol=(2 * found["kl_of_refined"]) ** 0.5,
    )
    for name in SAMPLERS:
        # A deviation of .41 of cos t under von Mises's law of 2; and of Langevin the
        # bias of a step of .1.
        np.testing.assert_allclose(
            found[f"mean_{name}"],
            found["mean_of_refined"],
            atol=4 * 0.41 / 4_000**0.5 + 0.03 * (name == "langevin"),
        )


def test_on_the_circle_there_is_no_constant_that_was_not_learned(tmp_path):
    config = tiny("circle,donsker_varadhan", train__num_steps=1)
    found = run(generalized.build, config, tmp_path)
    assert "log_partition_learned" not in found and "log_partition" in found


# --- images


def test_images_are_judged_by_temperature_and_length_in_percent_of_the_base_s(
    data_dir, tmp_path, monkeypatch
):
    """Chains that take a tenth off each image's size at every length; the distance is
    the mean square."""
    seen = []

    def refine(name, section, energy_fn, generator_fn, key, latents, **options):
        lowest = float(energy_fn(jnp.zeros((8, 8, 1))))
        seen.append((name, options["temperature"], lowest))
        x = np.asarray(jax.vmap(generator_fn)(latents))
        return {
            length: Refined(
                latents,
                x * (1 - length / 10),
                length / 10 if name == "mala" else math.nan,
            )
            for length in options["chain_lengths"]
        }

    def judge(config, data):
        return lambda sets: {n: float(np.mean(x**2)) for n, x in sets.items()}

    monkeypatch.setattr(_latent, "refine", refine)
    monkeypatch.setattr(generalized, "_judge", judge)
    config = tiny(
        "digits",
        objective__energy_floor=-1.5,
        evaluation__sampling__samplers=("mala", "transport"),
        evaluation__sampling__temperatures=(1.0, 0.1),
    )
    experiment = generalized.build(config, make_keys(0))
    state = _state(experiment)
    state.params["energy"]["Dense_0"]["bias"] -= 1e6  # of the last layer
    found = experiment.evaluate(state, jax.random.key(0), tmp_path)
    assert seen == [
        ("mala", 1.0, -1.5),
        ("mala", 0.1, -1.5),
        ("transport", 1.0, -1.5),
    ]
    cells = [
        (f"{cell}_{length}", length)
        for cell in ("mala_1", "mala_0.1", "transport_1")
        for length in (2, 4)
    ]
    relative = {f"relative_{x}": 100 * (1 - length / 10) ** 2 for x, length in cells}
    relative |= {
        f"acceptance_rate_{x}": length / 10 for x, length in cells if "mala" in x
    }
    base = found.pop("base_frechet_distance")
    assert found == pytest.approx(relative | {"relative_base": 100}, rel=1e-5)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "quality.md").read_text().splitlines()
    ]
    table = {row[0]: row[1:] for row in rows[2:]}
    assert table["base"][1:] == ["100", "-"] and table["transport_1_4"][2] == "-"
    found = [float(cell) for cell in table["mala_0.1_4"]]
    np.testing.assert_allclose(found, [0.36 * base, 36, 0.4], rtol=5e-3)


def test_the_ridge_is_a_density_of_the_plane():
    """Its likelihood, one point at a time, integrates to 1 over [-1, 1] x R."""
    config = tiny("curve")
    experiment = generalized.build(config, make_keys(3))
    objective = experiment.players["ridge"].objective
    first = (np.arange(200) + 0.5) / 100 - 1
    second = (np.arange(400) + 0.5) / 100 - 2
    points = np.stack(np.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)

    def log_prob(x):
        value, _ = objective.loss(
            experiment.params, jax.random.key(0), x[None].astype(jnp.float32), ()
        )
        return -value

    density = np.exp(np.asarray(jax.jit(jax.vmap(log_prob))(points), np.float64))
    np.testing.assert_allclose(density.sum() * 0.01**2, 1, rtol=1e-3)


def test_names_of_networks_are_changed_for_an_objective_alone():
    from ebmjax import objectives

    def loss(params, key, batch, carry):
        return params["energy"] * 2, objectives.Aux(carry)

    objective = objectives.Objective(lambda key: (), loss)
    renamed = generalized._renamed(objective, energy="critic")
    slope = jax.grad(lambda p: renamed.loss(p, None, None, ())[0])(
        {"critic": 3.0, "energy": 5.0}
    )
    assert slope == {"critic": 2.0, "energy": 0.0}
