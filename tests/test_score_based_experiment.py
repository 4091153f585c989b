"""The experiment of score-based models: every process runs, resumes and is measured."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from resuming import check_resumes

from ebmjax import diffusions, energies, objectives, samplers, training
from experiments import score_based
from experiments.data import digits, images
from experiments.judge.inverse import upper_half
from experiments.judge.judge import make_judge
from experiments.run.experiment import make_keys
from experiments.run.loop import run

pytestmark = pytest.mark.usefixtures("quick_compilation")


# Compiles in less time than a U-Net.
DENSE_ENERGY = score_based.get_config("two_modes").network.to_dict()
DENSE_ENERGY |= {"widths": (8,), "activation": "swish", "is_energy": True}
DENSE_SCORE = DENSE_ENERGY | {"is_energy": False}


def tiny(preset="digits", **changes):
    """A preset cut to seconds; its method untouched."""
    config = score_based.get_config(preset).unlock()
    config.train.update(num_steps=4, log_every=1, eval_every=0, checkpoint_every=2)
    config.data.batch_size = 16
    if config.data.name == "two_modes":
        config.network.widths = (8,)
        config.evaluation.num_samples = 64
        config.sampler.num_steps_per_level = 3
    else:
        config.network.widths = (2, 4)
        config.evaluation.update(
            num_samples=16,
            num_shown=16,
            chunk_size=16,
            classifier_steps=2,
            num_likelihoods=8,
            num_probes=2,
            num_inpainted=3,
            tolerance=1e-2,
        )
        few = {"num_steps_per_level": 2, "num_steps": 5}
        config.sampler.update({k: v for k, v in few.items() if k in config.sampler})
    if "network" in changes:
        config.network = ConfigDict(changes.pop("network"))
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (config[section] if section else config)[key] = value
    return config.lock()


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_ladder_of_energies_runs_stops_and_resumes_with_its_figures(tmp_path):
    scalars = check_resumes(
        score_based.build, tiny("digits,ladder", network=DENSE_ENERGY), tmp_path
    )
    figures = tmp_path / "one" / "figures"
    assert names(figures) == {"samples.png", "inpainting.png", "quality.md"}
    rows = (figures / "quality.md").read_text().splitlines()[2:]
    found = [row.split("|")[1].strip() for row in rows]
    assert found == ["data", "gaussian", "uniform", "samples"]
    # An energy's Hessian is symmetric, to rounding; and it tells images apart.
    assert scalars["asymmetry_1"] < 1e-6
    assert 0 <= scalars["auroc_uniform"] <= 1
    lines = (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["kind"] == "eval"


@pytest.mark.slow
def test_a_diffusion_runs_stops_and_resumes(tmp_path):
    scalars = check_resumes(
        score_based.build, tiny("digits,sub_variance_preserving"), tmp_path
    )
    figures = names(tmp_path / "one" / "figures")
    assert figures == {"samples.png", "inpainting.png", "quality.md"}
    assert scalars["bits_per_dim_error"] > 0 and scalars["bits_per_dim_noise"] > 0
    # A free score is no energy's gradient, and tells nothing apart.
    assert scalars["asymmetry_1"] > 1e-4 and "auroc_uniform" not in scalars


@pytest.mark.slow
def test_two_modes_are_drawn_with_exact_and_learned_scores(tmp_path):
    config = tiny("two_modes", sampler__num_steps_per_level=20)
    config = config.unlock()
    config.evaluation.num_samples = 4_000
    scalars = check_resumes(score_based.build, config.lock(), tmp_path)
    assert names(tmp_path / "one" / "figures") == {"densities.png"}
    # Exact scores know no training; the papers' 100 moves a level come nearer to .8.
    assert 0.7 < scalars["share_annealed_exact"] < 0.84
    error = 5 * (0.25 / 4_000) ** 0.5
    np.testing.assert_allclose(scalars["share_plain_exact"], 0.5, atol=error)


def test_a_sweep_has_a_row_for_each_process_and_one_of_an_energy(tmp_path, monkeypatch):
    """Its cells have the processes' own sections, and what was given for the first
    where others have it too: a stand-in for the runs scores them by what it finds."""
    config = tiny("digits,variance_preserving", sampler__signal_to_noise=0.3)

    def scored(config):
        process, sampler = config.process, config.sampler
        found = score_based.PROCESSES.index(process.name)
        found += 10 * ("noise_max" in process) + 20 * ("rate_min" in process)
        found += 40 * (sampler.get("time_min") == 1e-5)
        found += 100 * (sampler.get("signal_to_noise") == 0.3)
        return {"bits_per_dim": found + 300 * config.network.is_energy}

    def run_cells(build, cells, workdir, report, **options):
        report({name: scored(cell) for name, cell in cells.items()})

    monkeypatch.setattr(score_based._sweep, "run_cells", run_cells)
    score_based.sweep(score_based.build, config, tmp_path)
    table = (tmp_path / "table.md").read_text().splitlines()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table]
    assert rows[0] == ["cell", "bits_per_dim", "seeds"]
    assert rows[2:] == [
        ["variance_exploding, score", "150", "1"],
        ["variance_preserving, score", "121", "1"],
        ["sub_variance_preserving, score", "122", "1"],
        ["ladder, score", "3", "1"],
        ["variance_preserving, energy", "421", "1"],
    ]


def test_averages_are_the_papers_at_their_scale():
    """.9999 for what preserves the variance, .999 for the others."""
    found = {
        process: score_based.get_config(f"cifar10,{process}").ema_decay
        for process in score_based.PROCESSES
    }
    assert found == {
        "variance_exploding": 0.999,
        "variance_preserving": 0.9999,
        "sub_variance_preserving": 0.9999,
        "ladder": 0.999,
    }


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["mnist", "cifar10", "two_modes"])
def test_presets_at_the_papers_scale_are_built_from_files(preset, tmp_path):
    """Network, ladder and objective at their own depths and narrower; traced."""
    config = score_based.get_config(
        preset if preset == "two_modes" else f"{preset},ladder"
    ).unlock()
    if "data_dir" in config.data:
        side, channels = (32, 3) if preset == "cifar10" else (28, 1)
        rng = np.random.default_rng(0)
        for split in ("train", "test"):
            np.savez(
                images.npz_path(preset, split, tmp_path, side),
                images=rng.integers(0, 9, (40, side, side, channels), np.uint8)
                + np.where(np.arange(side) < side // 2, 0, 200)[:, None].astype("u1"),
                labels=rng.integers(0, 10, 40, np.int32),
            )
        config.data.update(data_dir=str(tmp_path), download=False, batch_size=40)
        config.network.widths = tuple(width // 32 for width in config.network.widths)
    experiment = score_based.build(config.lock(), make_keys(0))
    (name,) = experiment.params
    loss = experiment.players[name].objective.loss
    value, _ = jax.eval_shape(
        loss, experiment.params, jax.random.key(0), experiment.batch(0), ()
    )
    assert value.shape == ()
    # Natural images are mirrored, and numbers are not: all are dark on the left.
    if preset != "two_modes":
        is_turned = np.asarray(experiment.batch(0))[:, 0, 0, 0] > 0
        # Of 40: five standard errors of a half are 16.
        assert 4 <= is_turned.sum() <= 36 if preset == "cifar10" else not any(is_turned)


def exact_params():
    return {"mean": jnp.float32(0.2), "variance": jnp.float32(0.3)}


def normal_score(params, x, noise_scale):
    return (params["mean"] - x) / (params["variance"] + noise_scale**2)


@pytest.mark.slow
@pytest.mark.parametrize("process", score_based.DIFFUSIONS)
def test_samples_of_an_exact_score_are_the_data_s(process):
    """The section's own sampler on a score that is known: normal data N(.2, .3)."""
    config = score_based.get_config(f"digits,{process}")
    law = score_based._diffusion(config, lambda: 8.0)
    sample, inpaint = score_based._reversed(config, normal_score, law, (4, 4, 1))
    x = np.asarray(sample(exact_params(), jax.random.key(0), 2_000))
    error = 5 * (2 / x.size) ** 0.5
    np.testing.assert_allclose(x.mean(), 0.2, atol=5 * (0.3 / x.size) ** 0.5 + 0.01)
    # The corrector widens by 1 + .16^2 at most.
    np.testing.assert_allclose(x.var(), 0.3, rtol=error + 0.05)
    # And what is given comes back, with the rest as it was: pixels are independent.
    is_known = upper_half((4, 4, 1))
    given = np.full_like(x, -0.7)
    y = np.asarray(inpaint(exact_params(), jax.random.key(1), given, is_known))
    np.testing.assert_array_equal(y[:, is_known], given[:, is_known])
    rest = y[:, ~is_known]
    np.testing.assert_allclose(
        rest.mean(), 0.2, atol=5 * (0.3 / rest.size) ** 0.5 + 0.01
    )
    np.testing.assert_allclose(rest.var(), 0.3, rtol=1.5 * error + 0.05)


def test_samples_of_a_ladder_are_those_of_its_recursion():
    """On normal data a level's move multiplies the distance from the mean by 1 - h / V
    and adds noise of 2 h; at the end the last noise is taken away. With the paper's
    step, which is right for a point, a law as wide as this is not forgotten in time:
    the draws are wider, which is the method and no error."""
    config = score_based.get_config("digits,ladder").unlock()
    config.process.smallest = 0.2  # so that the last noise counts
    ladder = score_based._ladder(config, lambda: 8.0, 16)
    relative = score_based._relative_step_size(config, ladder)
    sample = score_based._annealed(config, normal_score, ladder, (4, 4, 1))
    x = np.asarray(sample(exact_params(), jax.random.key(0), 2_000))
    mean, variance = -0.2, ladder[0] ** 2
    for scale in ladder:
        for _ in range(config.sampler.num_steps_per_level):
            kept = 1 - relative * scale**2 / (0.3 + scale**2)
            mean = kept * mean
            variance = kept**2 * variance + 2 * relative * scale**2
    kept = 1 - ladder[-1] ** 2 / (0.3 + ladder[-1] ** 2)
    mean, variance = kept * mean, kept**2 * variance
    assert 1.1 < variance / 0.3 < 1.5
    error = 5 * (2 / x.size) ** 0.5
    np.testing.assert_allclose(x.var(), variance, rtol=error)
    error = 5 * (variance / x.size) ** 0.5
    np.testing.assert_allclose(x.mean() - 0.2, mean, atol=error)


@pytest.mark.parametrize("name", score_based.DIFFUSIONS)
def test_bits_of_a_known_density_are_right(name):
    """Data of two levels uniform within [-1, 1], of which the model is N(0, 1/3) a
    pixel: no bits for the width of 1, and the cross-entropy of the two in bits, which
    is log2(2 pi / 3) / 2 + 1 / (2 log 2); with pixels at their levels' middles, 1/12
    less of x^2 and .18 bits less. Both errors are then of where in its level a pixel
    is: of x^2, on [0, 1], the variance is 4 / 45, and its share in bits 3/2 / log 2."""
    config = score_based.get_config(f"digits,{name}").unlock()
    config.evaluation.update(num_likelihoods=200, num_probes=2, tolerance=1e-4)
    config.evaluation.chunk_size = 120
    rng = np.random.default_rng(0)
    data = digits.load()._replace(
        held_out=rng.integers(0, 2, (200, 8, 8, 1), np.uint8), num_levels=2
    )
    law = score_based._diffusion(config, lambda: 30.0)
    params = {"mean": jnp.float32(0.0), "variance": jnp.float32(1 / 3)}
    measure = score_based._likelihood(config, normal_score, law, data)
    scalars = measure(params, jax.random.key(0), None)
    expected = 0.5 * math.log2(2 * math.pi / 3) + 0.5 / math.log(2)
    error = 5 * scalars["bits_per_dim_error"]
    # And 0.02 ^ 2 of noise that the exploding one begins with.
    np.testing.assert_allclose(scalars["bits_per_dim"], expected, atol=error + 2e-3)
    # Of one image's mean over two noises and its 64 pixels; the signs add nothing, as
    # the Jacobian is diagonal. Of the mean of 200 images, whose levels are no matter.
    one = 1.5 / math.log(2) * (4 / 45 / 64 / 2) ** 0.5
    np.testing.assert_allclose(scalars["bits_per_dim_noise"], one, rtol=5 / 400**0.5)
    known = one / 200**0.5
    np.testing.assert_allclose(scalars["bits_per_dim_error"], known, rtol=5 / 400**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["ladder", "variance_exploding"])
def test_inpainting_draws_the_unknown_half_given_the_known(process, tmp_path):
    """Normal data whose pixels are mirror images, but for noise of .1: the lower half
    is the upper one's mirror, as far as it can be known."""
    config = tiny(f"digits,{process}").unlock()
    if process == "ladder":
        config.process.update(largest=8.0, smallest=0.02, num_scales=60)
        config.sampler.num_steps_per_level = 20
    else:
        config.sampler.update(num_steps=60, num_corrections=40, signal_to_noise=0.1)
    rng = np.random.default_rng(0)
    half = rng.normal(0.0, 0.3, (100, 4, 8, 1))
    noise = rng.normal(0.0, 0.1, (100, 8, 8, 1))
    x = np.concatenate([half, half[:, ::-1]], 1) + noise
    levels = 2**8
    held_out = np.clip((x + 1) * levels / 2, 0, levels - 1).astype(np.uint8)
    data = digits.load()._replace(num_levels=levels)

    def score(params, x, noise_scale):
        same, other = x, x[::-1]
        common, apart = (same + other) / 2, (same - other) / 2
        own = params["noise"] + noise_scale**2
        return -common / (2 * params["signal"] + own) - apart / own

    params = {"signal": jnp.float32(0.09), "noise": jnp.float32(0.01)}
    if process == "ladder":
        ladder = score_based._ladder(config, None, 64)
        inpaint = score_based._annealed_inpainting(config, score, ladder, (8, 8, 1))
    else:
        law = score_based._diffusion(config, lambda: 8.0)
        _, inpaint = score_based._reversed(config, score, law, (8, 8, 1))
    measure = score_based._inpainting(inpaint, held_out, data, 60)
    scalars = measure(params, jax.random.key(0), tmp_path)
    # Of the lower given the upper, s + n - s^2 / (s + n): of the draw about its mean,
    # and of the truth.
    s, n = 0.09, 0.01
    conditional = (s + n) - s**2 / (s + n)
    error = 5 * (2 / (100 * 32)) ** 0.5
    np.testing.assert_allclose(scalars["inpainting_mse"], 2 * conditional, rtol=error)


def test_energies_tell_what_is_further_from_the_data_s_mean():
    """Of |x|^2 / 2 at the noise's scale: noise of the whole range is further from grey
    than grey images are, and a normal law of the data's moments as far as they."""
    config = tiny("digits,ladder").unlock()
    config.evaluation.update(num_examples=400, chunk_size=100)
    rng = np.random.default_rng(0)
    grey = rng.integers(5, 12, (800, 8, 8, 1), np.uint8)
    data = digits.load()._replace(train=grey[:400], held_out=grey[400:])
    judge = make_judge(data, 400, 2)

    def energy(params, x, noise_scale):
        # No number but at a tenth of the range.
        return params * jnp.sum(x**2) / jnp.where(noise_scale == 0.2, 2.0, jnp.nan)

    measure = score_based._detecting(config, energy, judge, jax.random.key(0))
    found = measure(jnp.float32(1.0), jax.random.key(1), None)
    assert found["auroc_uniform"] > 0.999
    # Sums of 64 squares: means agree, so that the area is a half, but for the skews
    # and the fit of a law to 400 images.
    np.testing.assert_allclose(found["auroc_gaussian"], 0.5, atol=0.1)
    opposite = measure(jnp.float32(-1.0), jax.random.key(1), None)
    assert opposite["auroc_uniform"] < 0.001
    # It is the held-out images that are known, and not those trained on.
    white = judge._replace(train=np.ones_like(judge.train))
    measure = score_based._detecting(config, energy, white, jax.random.key(0))
    found = measure(jnp.float32(1.0), jax.random.key(1), None)
    assert found["auroc_uniform"] > 0.999


def test_a_ladder_s_section_gives_the_papers_numbers():
    """From 0: largest distance, overlap and step; else as given."""
    config = score_based.get_config("digits,ladder").unlock()
    ladder = score_based._ladder(config, lambda: 9.0, 64)
    overlaps = samplers.noise_overlap(ladder[0] / ladder[1], 64)
    assert ladder[0] == 9.0 and 0.5 <= overlaps < 0.56
    expected = samplers.relative_step_size(ladder[0] / ladder[1], 20)
    assert score_based._relative_step_size(config, ladder) == expected
    config.process.update(largest=2.0, num_scales=7)
    config.sampler.relative_step_size = 0.1
    ladder = score_based._ladder(config, lambda: 9.0, 64)
    assert ladder[0] == 2.0 and len(ladder) == 7
    assert score_based._relative_step_size(config, ladder) == 0.1


@pytest.mark.parametrize(
    "preset, changes, message",
    [
        ("digit", {}, "preset must be one of"),
        ("digits,ve", {}, "process must be one of .* got 've'"),
        ("two_modes,variance_preserving", {}, r"process must be one of \('ladder',\)"),
        ("digits", {"process__noise_min": 50.0}, "noise_min and noise_max must be"),
        ("digits,ladder", {"process__smallest": 50.0}, "smallest and largest must be"),
        (
            "digits,ladder",
            {"sampler__relative_step_size": -1.0},
            "sampler.relative_step_size must be positive and below 2, or 0 .* got -1",
        ),
        (
            "two_modes",
            {"sampler__relative_step_size": 2.0},
            "sampler.relative_step_size must be positive and below 2, or 0 .* got 2",
        ),
        ("two_modes", {"data__name": "nope"}, "data.name 'nope' does not fit the pres"),
        ("digits", {"data__name": "two_modes"}, "py:two_modes"),
        ("digits", {"data__num_examples": -1}, "data.num_examples must be a whole num"),
        ("digits", {"process__name": "ve"}, "process.name must be one of .* got 've'"),
        ("digits", {"process__name": "ladder"}, "py:digits,ladder"),
        (
            "digits",
            {"evaluation__out_of_distribution": ("mnits",)},
            r"evaluation.out_of_distribution must be of .*got \['mnits'\]",
        ),
        (
            "digits",
            {"evaluation__num_examples": 1},
            "evaluation.num_examples must be a",
        ),
        ("digits", {"optimizer__b1": 1.0}, "b1 must be from 0 to below 1, got 1.0"),
        (
            "digits",
            {"optimizer__learning_rate": ConfigDict({"start": -1.0})},
            "learning_rate.start must be a number of at least 0, got -1.0",
        ),
        ("digits", {"sampler__predictor": "heun"}, "predictor must be one of"),
        ("digits", {"sampler__num_steps": 0}, "num_steps must be a whole number"),
        ("two_modes", {"sampler__num_steps_per_level": 0}, "num_steps_per_level must"),
        ("two_modes", {"evaluation__num_samples": 0}, "evaluation.num_samples must be"),
        ("digits", {"evaluation__num_likelihoods": 1}, "num_likelihoods must be 0 or"),
        ("digits", {"evaluation__chunk_size": 0}, "evaluation.chunk_size must be a"),
        ("digits", {"evaluation__num_probes": 0}, "evaluation.num_probes must be a"),
        ("digits", {"evaluation__tolerance": 0.0}, "evaluation.tolerance must be abo"),
        ("digits", {"evaluation__tolerance": math.inf}, "tolerance must be above 0 an"),
        ("two_modes", {"process__num_scales": 0}, "process.num_scales must be given"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(preset, changes, message):
    with pytest.raises(ValueError, match=message):
        score_based.build(tiny(preset, **changes), make_keys(0))


def test_a_sweep_of_the_plane_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a sweep is of images"):
        score_based.sweep(score_based.build, tiny("two_modes"), tmp_path)


@pytest.mark.parametrize("process", score_based.DIFFUSIONS)
def test_an_energy_is_trained_on_the_score_that_is_sampled(process):
    """The objective of an energy with the normal score has the loss of that score:
    with the process's own times, a division too many is seen where little is left of
    the example."""
    config = tiny(f"digits,{process}", network=DENSE_ENERGY)
    law = score_based._diffusion(config, lambda: 8.0)

    def energy(params, x, noise_scale):
        distance = jnp.sum((x - params["mean"]) ** 2)
        return 0.5 * distance / (params["variance"] + noise_scale**2)

    timed = diffusions.energy_with_time(energy, law)
    sampled = diffusions.with_time(energies.score(energy), law)
    x = jnp.array([0.3, -1.0])
    for time in (0.1, 0.5, 1.0):
        found = -jax.grad(timed, 1)(exact_params(), x, jnp.float32(time))
        expected = sampled(exact_params(), x, jnp.float32(time))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    network, name, score = score_based._model(config, (8, 8, 1))
    experiment = score_based.build(config, make_keys(0))
    assert name == "energy" and set(experiment.params) == {"energy"}
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32),
        experiment.params["energy"],
    )
    law = score_based._diffusion(config, lambda: 8.0)
    free = objectives.diffusion_score_matching(
        score_network=diffusions.with_time(score, law), diffusion=law
    )
    batch = experiment.batch(0)
    if process != "variance_exploding":  # whose scale is the data's largest distance
        loss = experiment.players["energy"].objective.loss
        found, _ = jax.jit(loss)({"energy": params}, jax.random.key(0), batch, ())
        expected, _ = jax.jit(free.loss)(
            {"score": params}, jax.random.key(0), batch, ()
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_a_network_that_has_learned_nothing_is_evaluated(tmp_path):
    """Its score is zero: the corrector stays, and nothing is asymmetric."""
    config = tiny("digits", evaluation__num_likelihoods=0).unlock()
    config.train.num_steps = 0
    config.evaluation.classifier_steps = 0
    scalars = run(score_based.build, config.lock(), tmp_path)
    assert scalars["asymmetry_1"] == 0 and np.isfinite(scalars["samples_abs_max"])


def test_inpainting_asks_for_scores_where_the_known_has_its_level_s_noise(tmp_path):
    """Of data that are known throughout what is asked for is the known and nothing
    else: a score that is NaN elsewhere leaves the upper half as it is."""
    config = tiny("digits,ladder").unlock()
    config.process.update(largest=2.0, smallest=0.1, num_scales=3)
    data = digits.load()

    def score(params, x, noise_scale):
        # Zero, and no number where the farthest of 32 known pixels is not 1 to 4.5 of
        # the level's deviations from the image: without noise, with that of the level
        # before, 4.5 times as large, or where pure noise is.
        distance = jnp.abs(x[:4] - params[:4]).max()
        is_noised = (distance > noise_scale) & (distance < 4.5 * noise_scale)
        return jnp.where(is_noised, 0.0, jnp.nan) * x

    ladder = score_based._ladder(config, None, 64)
    inpaint = score_based._annealed_inpainting(config, score, ladder, (8, 8, 1))
    images = np.full((3, 8, 8, 1), 16, np.uint8)
    measure = score_based._inpainting(inpaint, images, data, 500)
    scalars = measure(jnp.ones((8, 8, 1)), jax.random.key(0), tmp_path)
    assert np.isfinite(scalars["inpainting_mse"])


def test_inpainting_puts_back_the_known_with_a_noise_of_its_own_at_every_level():
    """Of two levels with one move of step h each: where the lower half's score is the
    upper half over h s^2, a move adds the upper half as it is put back, and the last
    denoising adds it once more over h. So the lower half is the start, the noises of
    two moves, and s1 n1 + (1 + 1 / h) s2 n2 of the known's noises: with one noise for
    both the variance would be 30 and not 22."""
    config = tiny("digits,ladder").unlock()
    config.process.update(largest=2.0, smallest=1.0, num_scales=2)
    config.sampler.update(num_steps_per_level=1, relative_step_size=1.0)

    def score(params, x, noise_scale):
        return params * jnp.concatenate([0 * x[:4], x[:4]]) / noise_scale**2

    ladder = score_based._ladder(config, None, 64)
    inpaint = score_based._annealed_inpainting(config, score, ladder, (8, 8, 1))
    is_known = upper_half((8, 8, 1))
    x = np.zeros((500, 8, 8, 1), np.float32)
    found = np.asarray(inpaint(jnp.float32(1), jax.random.key(0), x, is_known))
    # Start 4, moves 2 h s^2 of 8 and 2, and 4 and 2^2 of the known.
    rest = found[:, 4:]
    np.testing.assert_allclose(rest.var(), 22, rtol=5 * (2 / rest.size) ** 0.5)


@pytest.mark.parametrize("process", ["ladder", "variance_preserving"])
def test_what_is_evaluated_is_the_average_in_draws_that_differ(process, monkeypatch):
    """Not the parameters it is the average of; and another chunk has other draws."""
    config = tiny(f"digits,{process}", network=DENSE_SCORE).unlock()
    config.evaluation.update(
        num_samples=0, num_shown=4, chunk_size=2, num_likelihoods=0, num_inpainted=0
    )
    experiment = score_based.build(config.lock(), make_keys(0))
    ones = jax.tree.map(jnp.ones_like, experiment.params)

    def drawn(params, ema_params):
        state = training.TrainState(
            step=0,
            params=params,
            opt_state={},
            carry={},
            key=None,
            model_state={},
            ema_params=ema_params,
        )
        shown = []
        monkeypatch.setattr(
            score_based._plots,
            "image_grid",
            lambda path, images, **options: shown.append(np.asarray(images)),
        )
        experiment.evaluate(state, jax.random.key(0), pathlib.Path())
        return shown[0]

    first = drawn(ones, experiment.params)
    np.testing.assert_array_equal(first, drawn(experiment.params, experiment.params))
    assert np.abs(first - drawn(experiment.params, ones)).max() > 0.01
    assert np.abs(first[:2] - first[2:]).max() > 0.01


@pytest.mark.parametrize("weighting", ["noise", "likelihood"])
def test_the_objective_has_the_section_s_weighting(weighting):
    config = tiny(
        "digits,variance_preserving",
        network=DENSE_SCORE,
        objective__weighting=weighting,
    )
    experiment = score_based.build(config, make_keys(0))
    law = score_based._diffusion(config, None)
    _, _, score = score_based._model(config, (8, 8, 1))
    expected = objectives.diffusion_score_matching(
        score_network=diffusions.with_time(score, law),
        diffusion=law,
        weighting=weighting,
    )
    arguments = experiment.params, jax.random.key(0), experiment.batch(0), ()
    found, _ = jax.jit(experiment.players["score"].objective.loss)(*arguments)
    np.testing.assert_allclose(found, jax.jit(expected.loss)(*arguments)[0], rtol=1e-6)


def test_a_ladder_s_likelihood_is_of_all_scales_between_its_ends(monkeypatch):
    config = tiny("digits,ladder", network=DENSE_SCORE, process__largest=7.0)
    given = []
    monkeypatch.setattr(
        score_based,
        "_likelihood",
        lambda config, score, process, data: given.append(process),
    )
    score_based.build(config, make_keys(0))
    (process,) = given
    assert process.prior_std == pytest.approx(7.0)
    np.testing.assert_allclose(process.std(1.0), 7.0, rtol=1e-6)
    np.testing.assert_allclose(process.std(0.0), config.process.smallest, rtol=1e-6)


def test_asymmetry_is_of_the_jacobian_where_images_have_the_noise():
    """Of a shift by one of 64, with signs v: |J v|^2 is 64, and |J v - J^T v|^2 is 128
    less twice the sum of 64 products of signs. The score is a shift far out and the
    identity, which is symmetric, near the images: there are noises of 4 and of .2."""

    def score(params, x, noise_scale):
        is_far = jnp.mean(x**2) > 1.2 + noise_scale**2 / 4
        return params * jnp.where(is_far, jnp.roll(x.ravel(), 1).reshape(x.shape), x)

    measure = score_based._asymmetry(score, digits.load())
    scalars = measure(jnp.float32(3.0), jax.random.key(0), None)
    assert scalars["asymmetry_0.2"] == 0
    # Of 100 images; a product's sum has the deviation 8.
    error = 5 * 2 * 8 / 64 / 100**0.5
    np.testing.assert_allclose(scalars["asymmetry_4"], 2, atol=error)


def test_a_level_s_energy_has_the_score_s_gradient():
    """Of a score of noise scales the energy's gradient at a level."""
    family = score_based._family(normal_score)(exact_params())
    gradient = jax.grad(family(jnp.float32(0.5)))(jnp.ones(3))
    np.testing.assert_allclose(gradient, 0.8 / 0.55, rtol=1e-5)
