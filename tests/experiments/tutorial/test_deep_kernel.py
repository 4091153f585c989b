"""The deep kernel exponential family: its weights, its normaliser, and a whole run."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ebmjax import metrics, objectives
from ebmjax.objectives import implicit_score_matching
from experiments import load
from experiments.data import tabular
from experiments.run.checkpoint import read
from experiments.run.config import with_options
from experiments.run.loop import run
from experiments.run.sweep import run_sweep
from experiments.run.workdir import read_lines
from experiments.tutorial.deep_kernel import evaluate, model
from experiments.tutorial.deep_kernel import run as tables
from experiments.tutorial.deep_kernel.objective import (
    OBJECTIVES,
    Quadratic,
    early_stopping,
    make_loss,
    solve,
    two_halves,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

DIM, NUM = 3, 7
SECTIONS = {name: {"name": name, **tables.OPTIONS.get(name, {})} for name in OBJECTIVES}
SECTIONS["projected"] = {"name": "sliced_score_matching", "variance_reduced": False}


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@functools.partial(jax.jit, static_argnames="log_ridge")
def small_params(log_ridge=-2.0):
    """With a mixture that is not even and widths that differ."""
    inducing = 1.5 * jax.random.normal(jax.random.key(1), (NUM, DIM))
    params = model.init_params(
        jax.random.key(0),
        inducing,
        width=5,
        log_widths=(0.0, 0.5),
        log_ridge=log_ridge,
    )
    return params | {"mixture": jnp.array([0.3, -0.4])}


def rows(num, dim=DIM, seed=2):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, dim)))


# Operation by operation, each would take dozens of compilations.
energy, kernels, solved = jax.jit(model.energy), jax.jit(model.kernels), jax.jit(solve)


# The density


def test_the_energy_is_this_sum(float64):
    """One inducing point, one layer that matters: written out by hand."""
    make = functools.partial(model.init_params, width=2, log_widths=(0.5,))
    params = jax.jit(make)(jax.random.key(0), jnp.array([[1.0, -2.0]]))
    # Layers of zero weights add constants, which distances do not see: the features
    # are the skip.
    params = jax.tree.map(np.zeros_like, params) | {
        "skip": jnp.array([[[1.0, 0.0], [0.0, 3.0]]]),
        "inducing": params["inducing"],
        "log_widths": params["log_widths"],
        "alpha": jnp.array([2.0]),
    }
    x = jnp.array([0.5, -1.0])
    square = 0.5**2 + 3.0**2
    expected = 2 * math.exp(-square / (2 * 10**0.5))
    log_reference = -(0.25 + 1) / 8 - 2 * math.log(2 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(energy(params, x), -log_reference - expected, rtol=1e-12)
    # A first layer of weight 1 and a second and third of 1: softplus of softplus.
    ones = np.full((1, 2, 2), 0.5)
    layers = [layer | {"kernel": ones} for layer in params["layers"]]
    deep = params | {"layers": layers, "skip": np.zeros((1, 2, 2))}
    feature = lambda t: math.log1p(math.exp(math.log1p(math.exp(t))))  # noqa: E731
    square = 2 * (feature(-0.25) - feature(-0.5)) ** 2
    np.testing.assert_allclose(
        kernels(deep, x)[0],
        math.exp(-square / (2 * 10**0.5)),
        rtol=1e-12,
    )


def test_kernels_are_mixed_by_their_weights_and_one_at_the_point_itself(float64):
    params = small_params()
    at_points = np.stack([kernels(params, x) for x in np.asarray(params["inducing"])])
    np.testing.assert_allclose(np.diag(at_points), 1.0, rtol=1e-12)
    np.testing.assert_allclose(at_points, at_points.T, rtol=1e-10)
    one = params | {"mixture": np.array([50.0, 0.0])}
    other = params | {"mixture": np.array([0.0, 50.0])}
    share = math.exp(0.3) / (math.exp(0.3) + math.exp(-0.4))
    x = np.asarray(rows(1))[0]
    mixed, *pure = (np.asarray(kernels(p, x)) for p in (params, one, other))
    np.testing.assert_allclose(
        mixed, share * pure[0] + (1 - share) * pure[1], rtol=1e-12
    )


def test_bound_to_its_parameters_it_is_the_same_energy(float64):
    params = small_params() | {"alpha": np.asarray(rows(NUM, 1))[:, 0]}

    @jax.jit
    @jax.vmap
    def at(x):
        expected, slope = jax.value_and_grad(model.energy, 1)(params, x)
        return model.bind(params)(x), expected, model.score(params, x), -slope

    found, expected, score, slope = at(rows(3))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(score, slope, rtol=1e-10)


# The weights


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_a_loss_is_its_quadratic_and_the_weights_are_its_least(section, float64):
    """At any weights, in the same draws: the loss of weights of zero, slope and matrix
    are all there is. At the weights of least loss the gradient of the loss and the
    ridge is zero, to rounding times a condition number below 1e5."""
    loss, params, batch = make_loss(section), small_params(), rows(6)
    key = jax.random.key(3)
    quadratic = loss.expand(params, key, batch)

    @jax.jit
    @jax.value_and_grad
    def at(alpha):
        fitted = {"energy": params | {"alpha": alpha}}
        return loss.objective.loss(fitted, key, batch, ())[0]

    constant, _ = at(np.zeros(NUM))
    matrix, slope = map(np.asarray, quadratic)
    for alpha in 3 * np.asarray(rows(3, NUM)):
        found = 0.5 * alpha @ matrix @ alpha + slope @ alpha
        # Finite differences divide terms by the step's square, 0.01.
        expected = at(alpha)[0] - constant
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    alpha, left = map(np.asarray, solved(quadratic, params["log_ridge"]))
    assert np.abs(alpha).max() > 0.01 and left < 1e-10
    np.testing.assert_allclose(at(alpha)[1] + 10**-2.0 * alpha, 0.0, atol=1e-8)


@pytest.mark.quick
def test_matrix_and_slope_are_the_published_formulas(float64):
    """G = mean of grad k grad k^T and b = mean of laplacian k + grad k . grad log q0,
    with each row's derivatives by central differences: their errors are of order
    h^2 = 1e-6 for h = 1e-3, and rounding of 1e-16 / h^2."""
    params, batch = small_params(), rows(4)
    loss = make_loss(SECTIONS["score_matching"])
    matrix, slope = loss.expand(params, jax.random.key(0), batch)
    batch, step = np.asarray(batch), 1e-3 * np.eye(DIM)
    points = np.concatenate([np.zeros((1, DIM)), step, -step])
    at_points = jax.jit(jax.vmap(functools.partial(model.kernels, params)))
    values = at_points((batch[:, None] + points[None]).reshape(-1, DIM))
    values = np.asarray(values).reshape(4, 7, NUM)
    here, ahead, behind = values[:, :1], values[:, 1:4], values[:, 4:]
    gradients = (ahead - behind) / 2e-3  # [rows, d, inducing]
    laplacians = np.sum(ahead + behind - 2 * here, 1) / 1e-6
    grams = np.einsum("ndi,ndj->ij", gradients, gradients) / 4
    slopes = laplacians - np.einsum("nd,ndi->ni", batch, gradients) / 4
    np.testing.assert_allclose(matrix, grams, atol=1e-5)
    np.testing.assert_allclose(slope, slopes.mean(0), atol=1e-5)


def test_sliced_matrices_are_projections_along_the_very_directions(
    float64, monkeypatch
):
    """One direction for all rows: G = mean (v . grad k)(v . grad k)^T, and whole
    gradients with variance reduction; b has the same product v . hessian v."""
    v = jnp.array([1.0, -1.0, 1.0])
    monkeypatch.setattr(implicit_score_matching, "draw_directions", lambda *_: v[None])
    params, batch = small_params(), rows(4)

    @jax.jit
    @jax.vmap
    def derivatives(x):
        first = jax.jacrev(functools.partial(model.kernels, params))
        return first(x), jax.jacfwd(first)(x) @ v @ v

    gradients, bends = map(np.asarray, derivatives(batch))  # [rows, inducing, d]
    v = np.asarray(v)
    along, base = gradients @ v, -np.asarray(batch) / 4
    reduced, projected = (
        make_loss(SECTIONS[name]).expand(params, jax.random.key(0), batch)
        for name in ("sliced_score_matching", "projected")
    )
    whole = np.einsum("nid,njd->ij", gradients, gradients) / 4
    np.testing.assert_allclose(reduced.matrix, whole, rtol=1e-9)
    np.testing.assert_allclose(projected.matrix, along.T @ along / 4, rtol=1e-9)
    slope = (bends + np.einsum("nid,nd->ni", gradients, base)).mean(0)
    np.testing.assert_allclose(reduced.slope, slope, rtol=1e-9)
    slope = (bends + along * (base @ v)[:, None]).mean(0)
    np.testing.assert_allclose(projected.slope, slope, rtol=1e-9)


def test_in_float32_a_singular_system_is_solved_all_the_same():
    """Twice the same point, and no ridge to speak of: pivots of rounding's size. The
    weights are large and equal; what is left over is a thousand roundings."""
    vector = jnp.array([[1.0, 1.0, 0.5]])
    quadratic = Quadratic(vector.T @ vector, jnp.array([1.0, 1.0, 0.5]))
    alpha, left = solved(quadratic, jnp.float32(-20.0))
    np.testing.assert_allclose(alpha, -vector[0] / 2.25, rtol=0.2)
    assert left < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sliced_score_matching", "finite_difference_score_matching"]
)
def test_the_loss_s_derivative_is_that_of_central_differences(name, float64):
    """Through the weights too: along a random direction of each parameter. The error is
    of order h^2 = 1e-8 times a third derivative, and 1e-16 / h of rounding."""
    objective = two_halves(make_loss(SECTIONS[name]))
    params, batch, key = small_params(log_ridge=-1.0), rows(12), jax.random.key(4)

    @jax.jit
    @jax.value_and_grad
    def at(params):
        return objective.loss({"energy": params}, key, batch, ())[0]

    _, gradient = at(params)
    rng = np.random.default_rng(0)
    for name, leaf in params.items():
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), leaf)

        def moved(step):
            there = jax.tree.map(lambda x, v: x + step * v, leaf, direction)  # noqa: B023
            return at(params | {name: there})[0]  # noqa: B023

        expected = (moved(1e-4) - moved(-1e-4)) / 2e-4
        products = jax.tree.map(lambda a, b: np.sum(a * b), gradient[name], direction)
        assert abs(expected) > 1e-4
        np.testing.assert_allclose(
            sum(jax.tree.leaves(products)), expected, rtol=1e-5, atol=1e-6
        )


def test_each_half_has_its_part():
    """The weights suit the first and are judged on the second, to a condition number
    of 1e3 times float32's rounding; a batch without two halves is refused."""
    loss = make_loss(SECTIONS["score_matching"])
    objective = two_halves(loss)
    params, key = small_params(), jax.random.key(0)
    first, second = rows(6), rows(6, seed=9)
    both = np.vstack([first, second])
    value, _ = jax.jit(objective.loss)({"energy": params}, key, both, ())
    quadratic = loss.expand(params, key, first)  # score matching draws nothing
    alpha, _ = solved(quadratic, params["log_ridge"])
    fitted = {"energy": params | {"alpha": alpha}}
    exact = objectives.score_matching(model.energy)
    expected, _ = jax.jit(exact.loss)(fitted, key, second, ())
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="two equal halves, got 5 rows"):
        objective.loss({"energy": params}, key, first[:5], ())


@pytest.mark.parametrize("name", ["noise_contrastive", "contrastive_divergence"])
def test_losses_that_are_not_quadratic_are_refused(name):
    with pytest.raises(ValueError, match="name must be one of.*'score_matching'"):
        make_loss({"name": name})
    with pytest.raises(ValueError, match=f"objective must be one of .*got '{name}'"):
        tables.get_config(f"{name},red_wine")


# Stopping


def run_stopped(losses, **options):
    """The memory after updates whose validation losses are given, one a parameter."""
    inner = objectives.stateless(lambda params, key, batch: (jnp.zeros(()), {}))
    table = jnp.asarray(losses)
    objective = early_stopping(
        inner, lambda params: table[params], jnp.int32(0), **options
    )
    key, loss = jax.random.key(0), jax.jit(objective.loss)
    best = objective.init(key)
    for index in range(len(losses)):
        params = {"energy": jnp.int32(index)}
        _, aux = loss(params, key, None, best)
        best = aux.carry
    return int(best.params), float(best.loss), int(best.step)


def test_the_best_parameters_are_remembered_until_patience_ends():
    losses = [5.0, 3.0, 4.0, 4.0, 4.0, 2.0, 1.0]
    assert run_stopped(losses, every=1, patience=0) == (6, 1.0, 6)
    assert run_stopped(losses, every=1, patience=4) == (6, 1.0, 6)
    # Update 4 is the last within 3 of update 1; what comes later is too late.
    assert run_stopped(losses, every=1, patience=3) == (1, 3.0, 1)
    assert run_stopped(losses, every=4, patience=0) == (4, 4.0, 4)  # looks at 0 and 4
    # What is not a number is never the best.
    assert run_stopped([5.0, math.nan, 4.0], every=1, patience=0) == (2, 4.0, 2)


def test_the_last_ridge_is_the_one_that_suits_the_validation_set(float64, monkeypatch):
    """No other ridge within a decade has a lower validation loss, and the weights are
    those of all the training rows, in chunks of unequal sizes."""
    monkeypatch.setattr(evaluate, "CHUNK", 16)
    loss = make_loss(SECTIONS["score_matching"])
    params = small_params()
    train, validation = (np.asarray(x) for x in (rows(40), rows(16, seed=8)))
    found = evaluate.finalize(loss, params, jax.random.key(0), train, validation)
    fit, judge = (
        loss.expand(params, jax.random.key(0), x) for x in (train, validation)
    )

    def validation_loss(log_ridge):
        alpha = np.asarray(solved(fit, log_ridge)[0])
        matrix, slope = map(np.asarray, judge)
        return 0.5 * alpha @ matrix @ alpha + slope @ alpha

    log_ridge = float(found["log_ridge"])
    losses = [validation_loss(other) for other in np.linspace(-3.0, -1.0, 11)]
    # Stored in float32.
    assert validation_loss(log_ridge) <= min(losses) + 1e-6 < max(losses) - 1e-3
    alpha, _ = solved(fit, log_ridge)
    np.testing.assert_allclose(found["alpha"], alpha, rtol=1e-5, atol=1e-5)


# The normaliser


OPTIONS = ConfigDict(
    {
        "num_chains": 400,
        "num_fractions": 60,
        "num_leapfrog": 4,
        "num_long": 50,
        "num_importance": 100_000,
        "chunk_size": 20_000,
    }
)


@pytest.fixture
def one_device():
    with jax.default_device(jax.devices()[0]):
        yield


@pytest.mark.slow
def test_with_weights_of_zero_the_density_is_the_reference(one_device):
    """Every weight is 1: all estimates are 0, and all draws effective, to rounding of
    energies of size 10 in 60 steps."""
    energy_fn = model.bind(small_params() | {"alpha": jnp.zeros(NUM)})
    found = evaluate.estimate_log_partition(
        energy_fn, jax.random.key(0), np.asarray(rows(50)), OPTIONS
    )
    for name in ("log_partition", "log_partition_reverse", "importance_log_partition"):
        assert abs(found[name]) < 1e-4
    np.testing.assert_allclose(found["ais_effective_sample_size"], 400, rtol=1e-4)
    np.testing.assert_allclose(
        found["importance_effective_sample_size"], 100_000, rtol=1e-4
    )
    truth = metrics.quadrature(model.reference_energy, [(-16, 16)] * 2, 200)
    assert abs(truth) < 1e-5


@pytest.fixture(scope="module")
def ring():
    """A model of a ring of radius 2, its weights fitted with the features it began
    with: far from normal."""
    key = jax.random.key(0)
    angle = 2 * math.pi * jax.random.uniform(key, (600,))
    x = 2 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
    x = x + 0.3 * jax.random.normal(jax.random.fold_in(key, 1), x.shape)
    loss = make_loss(SECTIONS["score_matching"])
    params = model.init_params(jax.random.key(1), x[:60])
    x = np.asarray(x)
    return evaluate.finalize(loss, params, key, x[60:400], x[400:]), x


@pytest.mark.slow
def test_the_bracket_holds_the_value_of_quadrature(ring, one_device):
    """Each estimate within five of its own standard errors, those of a mean of weights
    with the effective sample size found; and mean log weights on their sides."""
    params, x = ring
    energy_fn = model.bind(params)
    truth = float(metrics.quadrature(energy_fn, [(-16, 16)] * 2, 400))
    assert abs(truth) > 0.5  # the weights do something
    found = evaluate.estimate_log_partition(energy_fn, jax.random.key(3), x, OPTIONS)
    size = found["ais_effective_sample_size"]
    error = 5 * (1 / size - 1 / 400) ** 0.5 + 1e-3
    assert error < 0.2
    assert abs(found["log_partition"] - truth) < error
    assert abs(found["log_partition_reverse"] - truth) < 2 * error
    difference = found["log_partition_reverse"] - found["log_partition"]
    np.testing.assert_allclose(found["ais_bracket"], difference, atol=1e-6)
    assert 0 < found["ais_bound_gap"] < 1
    assert found["ais_acceptance_rate"] > 0.5
    size = found["importance_effective_sample_size"]
    assert 1_000 < size < 100_000
    assert abs(found["importance_log_partition"] - truth) < 5 / size**0.5


# A whole run


@pytest.fixture
def data_dir(tmp_path):
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=(120, 11)) @ rng.normal(size=(11, 11)), 2)
    lines = [";".join([*map(str, row), "5"]) for row in values.tolist()]
    head = ";".join(f"c{index}" for index in range(12))
    (tmp_path / "winequality-red.csv").write_text("\n".join([head, *lines]))
    return tmp_path


TINY = {
    "data.batch_size": 32,
    "network.num_inducing": 6,
    "network.width": 4,
    "validation.every": 2,
    "validation.num_examples": 20,
    "validation.num_draws": 2,
    "train.num_steps": 4,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "evaluation.num_chains": 16,
    "evaluation.num_fractions": 4,
    "evaluation.num_long": 3,
    "evaluation.num_importance": 64,
    "evaluation.chunk_size": 32,
}


def tiny(data_dir, preset="score_matching,red_wine", **changes):
    """Returns the config of a run of a few updates."""
    values = TINY | {"data.data_dir": str(data_dir)}
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return with_options(tables.get_config(preset), values)


@pytest.fixture
def no_normaliser(monkeypatch):
    """The normaliser has tests of its own, and takes the longest."""
    monkeypatch.setattr(
        tables, "estimate_log_partition", lambda *_: {"log_partition": 1.5}
    )


@pytest.mark.slow
def test_a_run_stopped_half_way_ends_bitwise_as_one_that_was_not(
    data_dir, tmp_path, no_normaliser
):
    """And the model that it evaluated is loaded without its data."""
    preset = "finite_difference_score_matching,red_wine"
    config = tiny(data_dir, preset)
    half = tiny(data_dir, preset, train__num_steps=2)
    run(tables.build, half, tmp_path / "two")
    resumed = run(tables.build, config, tmp_path / "two")
    scalars = run(tables.build, config, tmp_path / "one")
    one, two = (read(tmp_path / name) for name in ("one", "two"))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert resumed == scalars
    assert scalars["best_step"] in (0, 2)
    assert scalars["test_log_likelihood"] < 0
    lines = [x for x in read_lines(tmp_path / "one") if x["kind"] == "train"]
    assert [line["energy/best_step"] for line in lines][0] == 0
    assert lines[-1]["energy/validation_loss"] == pytest.approx(
        scalars["validation_loss"]
    )
    assert max(line["energy/weights_residual"] for line in lines) < 1e-3

    test_rows = tabular.from_section(config.data).test
    (data_dir / "winequality-red.csv").unlink()
    trained = load(tmp_path / "one")
    likelihood = np.mean(jax.vmap(trained.log_prob)(test_rows))
    np.testing.assert_allclose(likelihood, scalars["test_log_likelihood"], rtol=1e-5)
    assert trained.params["energy"]["log_ridge"] == np.float32(scalars["log_ridge"])
    x = test_rows[0]
    expected = model.score(trained.params["energy"], jnp.asarray(x))
    np.testing.assert_allclose(trained.score_fn(x), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="this checkpoint has none: run the command"):
        load(tmp_path / "one", step=2)


@pytest.mark.slow
def test_a_sweep_leaves_out_tables_that_are_not_there(
    data_dir, tmp_path, no_normaliser, capsys
):
    plan = tables.sweep("all,all")
    published = [name for name in tables.PRESETS if not name.endswith(",own")]
    assert list(plan.cells) == published and len(plan.cells) == 12
    given = TINY | {"data.data_dir": str(data_dir), "train.num_steps": 1}
    options = {"given": given, "num_seeds": 1, "cells": "finite*"}
    table = run_sweep(tables.build, tables.get_config, plan, tmp_path, **options)
    assert "score_matching" in table and "test_log_likelihood" in table
    names = [path.name for path in (tmp_path / "cells").iterdir()]
    assert names == ["finite_difference_score_matching,red_wine,0"]
    said = capsys.readouterr().err
    assert "finite_difference_score_matching,parkinsons is left out" in said
    assert "parkinsons is not in" in said
    del given["data.data_dir"]
    with pytest.raises(ValueError, match="every cell of the sweep is left out"):
        run_sweep(tables.build, tables.get_config, plan, tmp_path, **options)
    assert "data.data_dir is empty" in capsys.readouterr().err


def test_a_table_of_your_own_is_modelled_in_its_units(
    data_dir, tmp_path, no_normaliser
):
    """The same rows as published, without the column that is not measured."""
    names = ",".join(f"c{index}" for index in range(11))
    path = str(data_dir / "winequality-red.csv")
    given = {"data.csv": path, "data.score_csv": path, "data.columns": names}
    values = {k: v for k, v in TINY.items() if not k.startswith("data.")}
    values |= given | {"train.num_steps": 1, "data.batch_size": 32}
    config = with_options(tables.get_config("score_matching,own"), values)
    scalars = run(tables.build, config, tmp_path / "run")
    assert scalars["test_log_likelihood_error"] > 0
    table = tabular.from_section(config.data)
    trained = load(tmp_path / "run")
    rows = np.stack(
        [line.split(";")[:11] for line in open(path).read().split()[1:]]
    ).astype(np.float32)
    lines = (tmp_path / "run" / "figures" / "log_likelihoods.csv").read_text().split()
    scored = np.array(lines[1:], float)
    np.testing.assert_allclose(
        jax.vmap(trained.log_prob)(rows), scored, rtol=1e-3, atol=1e-3
    )
    # Without the normaliser: minus the energy of the white rows less the constant.
    test = table.encoding.undo(table.test)
    at_test = jax.vmap(trained.log_prob)(test)
    np.testing.assert_allclose(
        scalars["test_log_likelihood"], at_test.mean(), rtol=1e-3
    )
    # The score is the gradient in the units of the file.
    slope = jax.grad(trained.log_prob)(jnp.asarray(rows[0]))
    np.testing.assert_allclose(trained.score_fn(rows[0]), slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__data_dir": ""}, "data.data_dir must be the folder with red_wine"),
        ({"network__num_inducing": 500}, "num_inducing must be from 1 to 98, got 500"),
        ({"data__whiten": "none"}, "whiten must be one of"),
        ({"objective__name": "kernel_stein"}, "name must be one of"),
        ({"validation__num_draws": 0}, "validation.num_draws must be a whole number"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(data_dir, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tables.build, tiny(data_dir, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_table_and_objective_has_a_preset():
    for table in tabular.SMALL:
        for objective in OBJECTIVES:
            config = tables.get_config(f"{objective},{table}")
            assert config.data.name == table
            assert config.objective.name == objective
            make_loss(config.objective)
    assert tables.get_config("all,parkinsons") == tables.get_config(
        "score_matching,parkinsons"
    )
    with pytest.raises(ValueError, match="got 'rose_wine'; did you mean 'red_wine'"):
        tables.get_config("score_matching,rose_wine")
    with pytest.raises(ValueError, match="'objective,table', such as .*'red_wine'$"):
        tables.get_config("red_wine")
    near = "did you mean 'sliced_score_matching,red_wine'"
    with pytest.raises(ValueError, match=near):
        tables.get_config("sliced_score_matching_red_wine")
    with pytest.raises(ValueError, match="'all,all' is a table of runs: add --sweep"):
        tables.check_single("all,all")
