"""Maximum entropy generators: an energy, and a generator that is held to be diverse.

Paper: Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
energy-based models".
Claim checked: with a bound on its entropy the generator covers the modes, and the
energy, with its score held down at the data, tells what is foreign.

    python -m experiments.max_entropy --workdir=runs/toy
    python -m experiments.max_entropy --workdir=runs/ablation --sweep
    python -m experiments.max_entropy --workdir=runs/kdd --sweep \
        --config=experiments/max_entropy.py:kdd99 --config.data.data_dir=DIR
    python -m experiments.max_entropy --workdir=runs/mine \
        --config=experiments/max_entropy.py:tabular \
        --config.data.csv=normal.csv --config.data.score_csv=all.csv

Presets: `toy` (25 normals, minutes on a CPU), `eight_gaussians`, `swiss_roll`;
`digits` (embedded images); `stacked_mnist`, `stacked_mnist_4` (the paper's scale, for
GPU or TPU) and `stacked_mnist_2` (100 modes, CPU); `kdd99`, `mnist_anomaly`, `tabular`
(any table of numbers); `cifar10`, `celeb_a` (the paper's scale). After a comma the
method: `stacked_mnist,wgan_gp`, `stacked_mnist,gan`; `max_entropy` by default. With
`--sweep`: of the plane the ablation, of `kdd99` five seeds with and without scaling, of
`mnist_anomaly` the digits, of `stacked_mnist` the ablation and the baselines.
"""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import metrics, networks, samplers, targets, training
from ebmjax.objectives import max_entropy
from ebmjax.types import Network
from experiments import (
    _adversarial,
    _anomaly,
    _classifier,
    _data,
    _inception,
    _plane,
    _plots,
    _run,
    _sweep,
)
from experiments._data import anomalies, stacked

TARGETS = {
    "twenty_five_gaussians": targets.twenty_five_gaussians,
    "eight_gaussians": targets.eight_gaussians,
    "swiss_roll": targets.swiss_roll,
}


# --- networks ----------------------------------------------------------------------


class Networks(NamedTuple):
    generator: Network
    energy: Network
    statistics: Network


def _mlps(event_shape, latent_dim, *, generator_widths, energy_widths, **options):
    return Networks(
        networks.mlp(
            (latent_dim,), event_shape, widths=generator_widths, activation="relu"
        ),
        networks.mlp_energy(event_shape, widths=energy_widths, **options),
        networks.mlp_statistics(
            event_shape, latent_dim=latent_dim, widths=energy_widths, **options
        ),
    )


def _of_pictures(generator, energy, statistics):
    """`(event_shape, latent_dim, *, hidden_width, ...) -> Networks`."""
    return lambda event_shape, latent_dim, *, hidden_width, **options: Networks(
        generator(event_shape, latent_dim=latent_dim, **options),
        energy(event_shape, **options),
        statistics(
            event_shape, latent_dim=latent_dim, hidden_width=hidden_width, **options
        ),
    )


NETWORKS = {
    "mlp": _mlps,
    "strided": _of_pictures(
        networks.strided_generator,
        networks.strided_energy,
        networks.strided_statistics,
    ),
    "convnet": _of_pictures(
        networks.convnet_generator,
        networks.convnet_energy,
        networks.convnet_statistics,
    ),
}


# --- methods -----------------------------------------------------------------------


def _negatives(section) -> dict:
    """Latent chains in training: none where there are no moves."""
    section = dict(section)
    step_size = section.pop("step_size")
    if section["num_steps"] == 0:
        return {}
    return section | {"sampler": samplers.mala(step_size=step_size)}


def _max_entropy(
    nets: Networks,
    latent_dim,
    negatives,
    *,
    information_weight,
    estimator,
    marginal,
    **penalty,
):
    return max_entropy.generator_objective(
        nets.energy,
        nets.generator,
        nets.statistics,
        latent_dim=latent_dim,
        information_weight=information_weight,
        estimator=estimator,
        marginal=marginal,
    ), max_entropy.energy_objective(
        nets.energy,
        nets.generator,
        latent_dim=latent_dim,
        **penalty,
        **_negatives(negatives),
    )


def _wgan_gp(nets: Networks, latent_dim, negatives, *, gradient_penalty):
    del negatives
    given = (nets.energy.apply, nets.generator)
    return _adversarial.follow_energy(
        *given, latent_dim=latent_dim
    ), _adversarial.wgan_gp_energy(
        *given, latent_dim=latent_dim, gradient_penalty=gradient_penalty
    )


def _gan(nets: Networks, latent_dim, negatives):
    del negatives

    given = (nets.energy.apply, nets.generator)
    return _adversarial.gan_generator(
        *given, latent_dim=latent_dim
    ), _adversarial.gan_energy(*given, latent_dim=latent_dim)


METHODS = {"max_entropy": _max_entropy, "wgan_gp": _wgan_gp, "gan": _gan}
BASELINES = {"wgan_gp": {"gradient_penalty": 10.0}, "gan": {}}


# --- presets -----------------------------------------------------------------------


def _preset(data: dict, nets: dict, latent_dim: int, **evaluation) -> dict:
    """The paper's optimiser and order; what varies with the data is given."""
    return {
        "seed": 0,
        "data": data,
        "latent_dim": latent_dim,  # paper: z
        "networks": nets,
        "objective": {
            "name": "max_entropy",
            "score_penalty": 0.1,  # paper: lambda, of the squared norm, without 1/2
            "penalty_on": "data",  # or "data_and_model"
            "reduction": "sum",  # "channel_mean": the released code's, of images
            "information_weight": 0.5,  # of I_JSD; the released code's
            "estimator": "jsd",  # or "nce", "donsker_varadhan"
            "marginal": "permutation",  # or "shuffle_dimensions", "fresh"
        },
        "players": {
            "num_energy_updates": 5,  # for one of generator and statistics
            "first": "generator",  # or "energy"
        },
        "negatives": {  # latent MALA in training
            "num_steps": 0,  # moves; 0 for none, as in the released code
            "step_size": 0.01,  # latent^2 / energy; paper: alpha
            "temperature": 1.0,  # energy; the paper's beta is its inverse
            "prior": True,  # whether |latent|^2 / 2 is in the energy; paper: no
        },
        "optimizer": _run.adam_section(1e-4, b1=0.5, b2=0.9),
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": _run.train_section(100_000, eval_every=1_000),  # of the generator
        "sampler": {  # of what is evaluated beside the generator's draws
            "num_steps": 5,  # moves
            "step_size": 0.01,
            "temperature": 5.0,  # paper: beta = 0.2
            "prior": True,
            "visible_step_size": 1e-3,  # x^2 / energy; Langevin in x
            "visible_temperature": 1.0,
        },
        "evaluation": evaluation,
        "sweep": {"num_seeds": 3},  # seed, seed + 1, ...
    }


def _plane_preset(name: str) -> dict:
    config = _preset(
        {"name": name, "batch_size": 256},
        {
            "name": "mlp",
            "generator_widths": (128, 128, 128),  # paper: 512
            "energy_widths": (128, 128, 128),  # paper: 512
            "negative_slope": 0.2,
        },
        latent_dim=2,
        num_samples=10_000,
        num_chains=2_000,  # of every kind
        bound=2.0,  # densities are on [-bound, bound]^2
        num_bins=125,  # a side, each with 4 x 4 points
    )
    # Narrower networks at a higher rate than the paper's 100,000 updates: minutes.
    config["optimizer"]["learning_rate"] |= {
        "start": 1e-3,
        "final": 1e-5,
        "decay_steps": 20_000,
    }
    config["ema_decay"] = 0.999
    config["train"] |= {"num_steps": 20_000, "eval_every": 0}
    # Steeper slopes than with the paper's 0.1 and 0.5, which leave the plane's draws
    # between the modes.
    config["objective"] |= {"score_penalty": 0.01, "information_weight": 0.25}
    return config


STRIDED = {"name": "strided", "widths": (64, 128, 256, 512), "hidden_width": 512}


def _images(name: str, **nets) -> dict:
    config = _preset(
        _data.image_section(name),
        {"name": "convnet", "widths": (64, 128, 256, 512), "hidden_width": 512} | nets,
        latent_dim=128,
        num_samples=10_000,
        num_examples=10_000,  # of the data, to compare with
        num_chains=1_000,
        chunk_size=500,  # at a time
        num_shown=100,
        classifier_steps=4_000,
        inception_weights="",  # file of Inception v3's, for FID and IS; "" for none
        num_inception=50_000,  # draws for them, beside all training images
    )
    config["objective"] |= {"score_penalty": 10.0, "reduction": "channel_mean"}
    config["train"] |= {"eval_every": 10_000}
    return config


def _celeb_a() -> dict:
    config = _images("celeb_a", widths=(64, 128, 256, 512, 512), is_normal=False)
    config["data"]["size"] = 64
    config["evaluation"] |= {"classifier_steps": 0, "num_examples": 2_000}
    return config


def _digits() -> dict:
    config = _images("digits")
    for key in ("data_dir", "download", "size"):
        del config["data"][key]
    config["networks"] = {"name": "strided", "widths": (32, 64), "hidden_width": 128}
    config["latent_dim"] = 16
    config["optimizer"]["learning_rate"] |= {
        "start": 5e-4,
        "final": 1e-5,
        "decay_steps": 12_000,
    }
    config["train"] |= {"num_steps": 12_000, "eval_every": 0, "checkpoint_every": 500}
    config["evaluation"] |= {"num_samples": 2_000, "classifier_steps": 700}
    return config


def _stacked(num_digits: int) -> dict:
    config = _preset(
        _data.image_section("stacked_mnist", num_digits=num_digits, tuple_seed=111),
        dict(STRIDED),
        latent_dim=128,
        samples_a_mode=26,
        chunk_size=1_000,
        num_chains=1_000,
        num_shown=100,
        classifier_steps=3_000,
        min_accuracy=0.994,  # of the classifier on test images, or nothing is trained
    )
    del config["data"]["num_examples"], config["data"]["size"]
    config["objective"] |= {"score_penalty": 10.0, "reduction": "channel_mean"}
    return config


def _stacked_2() -> dict:
    config = _stacked(2)
    config["networks"] |= {"widths": (16, 32, 64, 128), "hidden_width": 128}
    config["latent_dim"] = 32
    config["optimizer"]["learning_rate"]["start"] = 2e-4
    config["optimizer"]["learning_rate"]["final"] = 2e-4
    config["train"] |= {"num_steps": 4_000, "eval_every": 1_000}
    return config


# Updates: as many rows as the training set has, 256 for each. A step draws as many
# again, whose place the generator's draws take: an epoch's rows are a half each of two
# orders of the training set.
KDD_EPOCH = 775


def _kdd99() -> dict:
    config = _preset(
        {
            "name": "kdd99",
            "batch_size": 256,
            "data_dir": "",  # with kddcup.data_10_percent.gz; "" for scikit-learn's
            "download": True,
            "scaling": "none",  # or "min_max", "standard"
            "split_seed": 42,
        },
        {
            "name": "mlp",
            "generator_widths": (64, 128),
            "energy_widths": (256, 128, 128),
            "negative_slope": 0.2,
        },
        latent_dim=32,
        quantile=0.8,
        chunk_size=10_000,
        saves_scores=False,
        num_last=10,  # evaluations that a sweep's table is the mean of
    )
    config["objective"]["score_penalty"] = 100.0
    config["players"] = {"num_energy_updates": 1, "first": "energy"}
    config["train"] |= {
        "num_steps": 55 * KDD_EPOCH,
        "eval_every": KDD_EPOCH,
        "checkpoint_every": 0,
        "log_every": KDD_EPOCH,
    }
    config["sweep"]["num_seeds"] = 5
    return config


def _mnist_anomaly() -> dict:
    config = _preset(
        _data.image_section("mnist_anomaly", label=1, split_seed=0, leaks=False),
        dict(STRIDED),
        latent_dim=128,
        quantile=0.8,
        chunk_size=1_000,
        saves_scores=False,
        num_last=10,
    )
    del config["data"]["num_examples"], config["data"]["size"]
    config["objective"] |= {"score_penalty": 100.0, "reduction": "channel_mean"}
    config["players"]["first"] = "energy"
    # An epoch of about 50,000 images is 781 updates of the energy.
    config["train"] |= {"num_steps": 55 * 156, "eval_every": 156}
    return config


def _tabular() -> dict:
    config = _kdd99()
    config["data"] = {
        "name": "tabular",
        "batch_size": 256,
        "csv": "",  # rows of numbers, what is normal
        "score_csv": "",  # rows to score
        "label_column": "",  # of 0 and 1, 1 for anomalies; "" for none
        "scaling": "standard",
    }
    config["objective"]["score_penalty"] = 1.0
    config["train"] |= {"num_steps": 5_000, "eval_every": 1_000, "log_every": 100}
    config["evaluation"]["saves_scores"] = True
    return config


PRESETS = {
    "toy": lambda: _plane_preset("twenty_five_gaussians"),
    "eight_gaussians": lambda: _plane_preset("eight_gaussians"),
    "swiss_roll": lambda: _plane_preset("swiss_roll"),
    "digits": _digits,
    "stacked_mnist": lambda: _stacked(3),
    "stacked_mnist_4": lambda: _stacked(4),
    "stacked_mnist_2": _stacked_2,
    "kdd99": _kdd99,
    "mnist_anomaly": _mnist_anomaly,
    "tabular": _tabular,
    "cifar10": lambda: _images("cifar10"),
    "celeb_a": _celeb_a,
}


def get_config(preset: str = "toy") -> ConfigDict:
    name, _, method = preset.partition(",")
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    config = PRESETS[name]()
    if method and method not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, got {method!r}")
    return _with_method(ConfigDict(config), method or "max_entropy").lock()


def _with_method(config: ConfigDict, method: str) -> ConfigDict:
    """With a baseline's objective in place of its own."""
    if method in BASELINES:
        config.objective = ConfigDict({"name": method, **BASELINES[method]})
    return config


# --- building ----------------------------------------------------------------------


def build(config: ConfigDict, keys: _run.Keys) -> _run.Experiment:
    problem = KINDS.get(config.data.name, _of_images)(config, keys)
    nets = _run.construct(
        config.networks, NETWORKS, problem.event_shape, config.latent_dim
    )
    generator_objective, energy_objective = _run.construct(
        config.objective, METHODS, nets, config.latent_dim, config.negatives
    )
    trained, model_state = {}, {}
    for index, (name, network) in enumerate(nets._asdict().items()):
        trained[name], state = network.init(jax.random.fold_in(keys.params, index))
        if state:
            model_state[f"{name}_state"] = state
    trains = ("generator", "statistics")
    if config.objective.name in BASELINES:
        trains = ("generator",)
        del trained["statistics"]
    order = config.players.first
    if order not in ("generator", "energy"):
        raise ValueError(
            f"players.first must be 'generator' or 'energy', got {order!r}"
        )
    players = {
        "generator": training.Player(
            trains, generator_objective, _run.make_optimizer(config.optimizer)
        ),
        "energy": training.Player(
            ("energy",),
            energy_objective,
            _run.make_optimizer(config.optimizer),
            config.players.num_energy_updates,
        ),
    }
    if order == "energy":
        players = dict(reversed(players.items()))
    return _run.Experiment(
        players=players,
        params=trained,
        batch=problem.batches(
            config.data.batch_size * (1 + config.players.num_energy_updates)
        ),
        evaluate=problem.evaluation(nets),
        model_state=model_state,
    )


class Problem(NamedTuple):
    """Data, and how what has learned them is judged.

    Attributes:
      event_shape: Of one example.
      batches: `batches(size) -> (step -> [rows, *event])`.
      evaluation: `evaluation(networks) -> evaluate`, as `_run.Experiment` has it.
    """

    event_shape: tuple[int, ...]
    batches: Callable[[int], Callable]
    evaluation: Callable[[Networks], Callable]


def _bound(nets: Networks, state):
    """`(energy_fn, generator_fn)` of what is evaluated."""
    params = _run.evaluated_params(state)
    generator_state = state.model_state.get("generator_state")
    return (
        functools.partial(nets.energy.apply, params["energy"]),
        _adversarial.bind(nets.generator, params["generator"], generator_state),
    )


def _drawn(config, energy_fn, generator_fn, key, num: int, chunk_size: int):
    """So many draws of the generator, and chains in the latent and visible space."""
    draw_key, chain_key = jax.random.split(key)
    x = _adversarial.draw(
        generator_fn,
        draw_key,
        num,
        latent_dim=config.latent_dim,
        chunk_size=chunk_size,
    )
    return x, _adversarial.sample(
        config.sampler,
        energy_fn,
        generator_fn,
        chain_key,
        config.evaluation.num_chains,
        latent_dim=config.latent_dim,
    )


# --- the plane ---------------------------------------------------------------------


def _centres(name: str) -> tuple[np.ndarray, float] | None:
    """Of a target's modes, with their standard deviation; None without modes."""
    if name == "twenty_five_gaussians":
        line = math.sqrt(0.5) * np.arange(-2.0, 3.0)
        grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1)
        return grid.reshape(25, 2), 0.05 / math.sqrt(8.0)
    if name == "eight_gaussians":
        angles = np.arange(8) * (math.pi / 4)
        circle = np.stack([np.cos(angles), np.sin(angles)], 1)
        return math.sqrt(2.0) * circle, 0.02 / math.sqrt(2.0)
    return None


def _coverage(x: np.ndarray, centres: np.ndarray, std: float) -> dict[str, float]:
    """Modes found and the share of good draws: those within three deviations.

    A mode counts where a tenth of its due number of draws are good.
    """
    distances = np.linalg.norm(x[:, None] - centres[None], axis=-1)
    is_good = distances.min(1) < 3 * std
    counts = np.bincount(distances.argmin(1)[is_good], minlength=len(centres))
    return {
        "num_modes": float((counts >= len(x) / (10 * len(centres))).sum()),
        "good_share": float(is_good.mean()),
    }


def _in_plane(config, keys) -> Problem:
    section = {k: v for k, v in config.data.items() if k != "batch_size"}
    target = _run.construct(section, TARGETS)
    options = config.evaluation
    _plots.check()
    grid = _plane.plane(options.bound, options.num_bins)
    truth = grid.probabilities(target.energy_fn)
    modes = _centres(config.data.name)

    def evaluation(nets):
        def evaluate(state, key, directory):
            energy_fn, generator_fn = _bound(nets, state)
            num = options.num_samples
            x, sampled = _drawn(config, energy_fn, generator_fn, key, num, num)
            _, _, data_key = jax.random.split(key, 3)
            data = np.asarray(target.sample(data_key, num))
            density = grid.probabilities(energy_fn)
            slope = jax.jit(jax.vmap(jax.grad(energy_fn)))
            of_batch = jax.jit(jax.vmap(energy_fn))
            scalars = dict(sampled.scalars)
            for name, points in (("data", data), ("model", x)):
                scalars[f"energy_{name}"] = float(of_batch(points).mean())
                norms = np.linalg.norm(slope(points), axis=1)
                scalars[f"score_norm_{name}_max"] = float(norms.max())
            scalars["energy_difference"] = (
                scalars["energy_data"] - scalars["energy_model"]
            )
            histogram, data_histogram = grid.histogram(x), grid.histogram(data)
            scalars |= {
                "total_variation": _plane.total_variation(histogram, data_histogram),
                # Off zero by one part in 1e12 of the grid, as a cold one underflows.
                "density_kl": _plane.kl_divergence(
                    truth, (density + 1e-12) / (1 + 1e-12 * density.size)
                ),
            }
            if modes is not None:
                scalars |= _coverage(x, *modes)
                for name, points in sampled.x.items():
                    found = _coverage(points, *modes)
                    scalars |= {f"{name}_chains_{k}": v for k, v in found.items()}
                distances = np.linalg.norm(
                    np.asarray(grid.points)[:, None] - modes[0][None], axis=-1
                )
                is_near = distances.min(1) < 3 * modes[1]
                scalars["density_mass_near_modes"] = float(density[is_near].sum())
            panels = {
                "data": data_histogram,
                "generator": histogram,
                "exp(-E) / Z": grid.binned(density),
            }
            energy = np.asarray(_plane.at_points(energy_fn, grid.points), np.float64)
            # The landscape: what is high is dark, cut where it is flat and far.
            landscape = -energy.reshape([4 * options.num_bins] * 2)
            panels["-E"] = landscape.clip(np.quantile(landscape, 0.05))
            _plots.densities(
                directory / "plane.png", panels, bounds=(-options.bound, options.bound)
            )
            return scalars

        return evaluate

    return Problem(
        (2,), functools.partial(_data.target_batches, keys.data, target), evaluation
    )


# --- images ------------------------------------------------------------------------


def _shown(directory, x: np.ndarray, sampled: dict[str, np.ndarray], num: int) -> None:
    _plots.image_grid(
        directory / "samples.png", x[:num], columns=math.ceil(num**0.5), title="draws"
    )
    _plots.image_panels(
        directory / "chains.png",
        {name.replace("_", " "): images[:32] for name, images in sampled.items()},
        columns=16,
    )


def _of_images(config, keys) -> Problem:
    data = _data.from_section(config.data)
    options = config.evaluation
    _plots.check()
    judge = _classifier.judge(data, options.num_examples, options.classifier_steps)
    examples = np.concatenate([judge.train, judge.held_out])
    inception = None
    if options.inception_weights:
        inception = _inception.Inception(options.inception_weights, data.num_levels)

    def evaluation(nets):
        def evaluate(state, key, directory):
            energy_fn, generator_fn = _bound(nets, state)
            num = max(options.num_samples, options.num_inception if inception else 0)
            x, sampled = _drawn(
                config, energy_fn, generator_fn, key, num, options.chunk_size
            )
            scalars = {}
            if inception is not None:
                levels = _data.quantize(x[: options.num_inception], data.num_levels)
                scalars |= inception.measure(levels, data.train)
            x = x[: options.num_samples]
            _shown(directory, x, sampled.x, options.num_shown)
            of_batch = jax.jit(jax.vmap(energy_fn))
            in_chunks = functools.partial(
                _data.in_chunks, of_batch, size=options.chunk_size
            )
            scalars |= sampled.scalars | {
                "energy_data": float(in_chunks(examples).mean()),
                "energy_model": float(in_chunks(x).mean()),
            }
            if not options.classifier_steps:
                return scalars
            table = judge.table({"samples": x.clip(-1, 1)})
            chained = {k: v.clip(-1, 1) for k, v in sampled.x.items()}
            table += [row for row in judge.table(chained) if row["name"] in chained]
            return scalars | _run.record_table(directory / "quality.md", table)

        return evaluate

    batches = functools.partial(
        _data.image_batches, keys.data, data.train, num_levels=data.num_levels
    )
    return Problem(data.image_shape, batches, evaluation)


# --- stacked digits ----------------------------------------------------------------


def _tuple_labels(digits: np.ndarray) -> np.ndarray:
    """`[n, num_digits]`, as numbers below `10^num_digits`."""
    return digits @ 10 ** np.arange(digits.shape[1])


def count_modes(classifier, x: np.ndarray) -> dict[str, float]:
    """Modes of stacked images `[n, height, width, num_digits]` in [-1, 1]."""
    digits = [
        classifier.log_probs(x[..., place, None]).argmax(-1)
        for place in range(x.shape[-1])
    ]
    return metrics.modes(_tuple_labels(np.stack(digits, 1)), 10 ** len(digits))


def check_evaluator(
    predicted: np.ndarray, labels: np.ndarray, num_digits: int, num: int
) -> dict[str, float]:
    """What the count makes of real digits: of all tuples, and of half of them.

    The first should find all, at the floor but for the digits' own frequencies; what
    the second finds beyond a half are the classifier's errors.

    Args:
      predicted: `[m]`, the classifier's digits of real images.
      labels: `[m]`, what they are.
      num_digits: In a tuple.
      num: Tuples to draw.
    """
    rng = np.random.RandomState(0)
    num_tuples = 10**num_digits
    anything = rng.randint(0, len(labels), (num, num_digits))
    half = rng.permutation(num_tuples)[: num_tuples // 2]
    chosen = rng.choice(half, num)[:, None] // 10 ** np.arange(num_digits) % 10
    of_digit = [np.flatnonzero(labels == digit) for digit in range(10)]
    places = np.empty_like(chosen)
    for digit, rows in enumerate(of_digit):
        is_digit = chosen == digit
        places[is_digit] = rows[rng.randint(0, len(rows), is_digit.sum())]
    found = {}
    for name, rows in (("data", anything), ("half", places)):
        counted = metrics.modes(_tuple_labels(predicted[rows]), num_tuples)
        found |= {f"{name}_{k}": v for k, v in counted.items() if k != "kl_floor"}
    return found


class Judge(NamedTuple):
    """Digits, and what reads them in samples.

    Attributes:
      digits: The images that tuples are made of.
      classifier: Trained on them.
      accuracy: On the test images.
      predicted: Its digits of the test images.
    """

    digits: _data.Images
    classifier: _classifier.Classifier
    accuracy: float
    predicted: np.ndarray


@functools.lru_cache(maxsize=1)  # the runs of a sweep have one judge
def _judge(data_dir: str, download: bool, num_steps: int) -> Judge:
    digits = _data.load("mnist", data_dir=data_dir or None, download=download)
    # The same for all seeds, which are the generator's.
    key, data_key = jax.random.split(jax.random.key(0))
    classifier = _classifier.train(
        key,
        digits.train,
        digits.labels_train,
        num_classes=10,
        num_levels=digits.num_levels,
        num_steps=num_steps,
        batch_size=128,
        learning_rate=2e-3,
        width=128,
    )
    x = _data.dequantize(data_key, digits.held_out, digits.num_levels)
    predicted = classifier.log_probs(x).argmax(-1)
    accuracy = float(np.mean(predicted == digits.labels_held_out))
    return Judge(digits, classifier, accuracy, predicted)


def _of_stacked(config, keys) -> Problem:
    section = config.data
    options = config.evaluation
    _plots.check()
    judge = _judge(section.data_dir, section.download, options.classifier_steps)
    if judge.accuracy < options.min_accuracy:
        raise ValueError(
            f"the classifier is right on {judge.accuracy:.4f} of the test digits, below"
            f" evaluation.min_accuracy = {options.min_accuracy}: its errors would"
            " be counted as modes"
        )
    digits, num_digits = judge.digits, section.num_digits
    tuples = stacked.draw_tuples(len(digits.train), num_digits, section.tuple_seed)
    num_samples = options.samples_a_mode * 10**num_digits
    checks = {"classifier_accuracy": judge.accuracy} | check_evaluator(
        judge.predicted, digits.labels_held_out, num_digits, num_samples
    )

    def evaluation(nets):
        def evaluate(state, key, directory):
            energy_fn, generator_fn = _bound(nets, state)
            x, sampled = _drawn(
                config, energy_fn, generator_fn, key, num_samples, options.chunk_size
            )
            _shown_stacked(directory, x, sampled.x, options.num_shown)
            scalars = sampled.scalars | count_modes(judge.classifier, x)
            for name, chained in sampled.x.items():
                counted = count_modes(judge.classifier, chained.clip(-1, 1))
                scalars[f"{name}_chains_num_modes"] = counted["num_modes"]
                scalars[f"{name}_chains_kl_excess"] = counted["kl_excess"]
            return scalars | checks

        return evaluate

    batches = functools.partial(
        stacked.stacked_batches,
        keys.data,
        digits.train,
        tuples,
        num_levels=digits.num_levels,
    )
    return Problem((28, 28, num_digits), batches, evaluation)


def _shown_stacked(directory, x, sampled, num: int) -> None:
    """Three channels as colours; of two, or four, the digits side by side."""
    if x.shape[-1] == 3:
        _shown(directory, x, sampled, num)
        return

    def beside(images):
        return np.concatenate(np.split(images, images.shape[-1], axis=-1), axis=2)

    _shown(
        directory, beside(x[:num]), {k: beside(v[:32]) for k, v in sampled.items()}, num
    )


# --- anomalies ---------------------------------------------------------------------


def _of_kdd99(config, keys) -> Problem:
    section = {k: v for k, v in config.data.items() if k not in ("name", "batch_size")}
    return _of_rows(config, keys, anomalies.kdd99(**section))


def _of_tables(config, keys) -> Problem:
    section = config.data
    for name in ("csv", "score_csv"):
        if not section[name]:
            raise ValueError(f"data.{name} must be the path of a file, got ''")
    data = anomalies.tables(
        section.csv,
        section.score_csv,
        label_column=section.label_column,
        scaling=section.scaling,
    )
    return _of_rows(config, keys, data)


def _of_rows(config, keys, data: anomalies.Anomalies) -> Problem:
    def batches(size):
        rows = _data.epoch_rows(keys.data, len(data.train), size)
        local = _data.process_rows(size)
        return lambda step: data.train[rows(step)[local]]

    def evaluation(nets):
        return _anomaly.evaluation(config.evaluation, nets.energy.apply, data)

    return Problem(data.train.shape[1:], batches, evaluation)


def _of_held_out_class(config, keys) -> Problem:
    section = config.data
    mnist = _data.load(
        "mnist", data_dir=section.data_dir or None, download=section.download
    )
    data = anomalies.held_out_class(
        np.concatenate([mnist.train, mnist.held_out]),
        np.concatenate([mnist.labels_train, mnist.labels_held_out]),
        section.label,
        split_seed=section.split_seed,
        leaks=section.leaks,
    )

    def convert(images):
        """The middle of each level: scores are then functions of the image alone."""
        return (images.astype(np.float32) + 0.5) * (2 / mnist.num_levels) - 1

    def evaluation(nets):
        return _anomaly.evaluation(config.evaluation, nets.energy.apply, data, convert)

    batches = functools.partial(
        _data.image_batches, keys.data, data.train, num_levels=mnist.num_levels
    )
    return Problem(data.train.shape[1:], batches, evaluation)


KINDS = {name: _in_plane for name in TARGETS} | {
    "stacked_mnist": _of_stacked,
    "kdd99": _of_kdd99,
    "mnist_anomaly": _of_held_out_class,
    "tabular": _of_tables,
}


# --- sweeps ------------------------------------------------------------------------

ABLATION = {
    "whole": {},
    "no information": {"objective.information_weight": 0.0},
    "no penalty": {"objective.score_penalty": 0.0},
    "neither": {"objective.information_weight": 0.0, "objective.score_penalty": 0.0},
}
PLANE_COLUMNS = (
    "total_variation",
    "density_kl",
    "energy_difference",
    "score_norm_data_max",
    "score_norm_model_max",
)
MODE_COLUMNS = ("num_modes", "good_share", "density_mass_near_modes")  # where there are
SCORES = ("energy", "score_norm")
HELD_OUT = (1, 4, 5, 7, 9)  # digits; the published ones


class Sweep(NamedTuple):
    """Cells, name -> overrides, and the scalars of their table.

    The name of a baseline is a cell of that method, which overrides nothing.
    """

    cells: dict[str, dict]
    columns: tuple[str, ...]


def _sweep_of(name: str) -> Sweep:
    if name in TARGETS:
        has_modes = _centres(name) is not None
        return Sweep(ABLATION, MODE_COLUMNS * has_modes + PLANE_COLUMNS)
    if name == "kdd99":
        cells = {f"scaling={x}": {"data.scaling": x} for x in ("none", "min_max")}
        names = ("precision", "recall", "f1", "auprc")
        return Sweep(cells, tuple(f"{score}_{x}" for score in SCORES for x in names))
    if name == "mnist_anomaly":
        cells = {f"digit={digit}": {"data.label": digit} for digit in HELD_OUT}
        return Sweep(cells, tuple(f"{score}_auprc" for score in SCORES))
    if name == "stacked_mnist":
        columns = ("num_modes", "num_robust_modes", "kl", "kl_floor", "kl_excess")
        cells = {k: v for k, v in ABLATION.items() if k != "neither"}
        return Sweep(cells | {method: {} for method in BASELINES}, columns)
    raise ValueError(f"there is no sweep of {name}")


def sweep(build, config: ConfigDict, workdir) -> None:
    """Cells times seeds, and a table of means over seeds."""
    found = _sweep_of(config.data.name)
    if config.objective.name in BASELINES:
        raise ValueError(
            "a sweep is of the method max_entropy, and has the baselines as cells where"
            f" they are compared; got {config.objective.name!r}"
        )
    workdir, seeds = pathlib.Path(workdir), _sweep.seeds(config)
    base = config.to_dict()
    del base["sweep"]  # a cell is the same run in any sweep
    cells = {
        f"{cell},{seed}": _sweep.overridden(
            _with_method(ConfigDict(base), cell), values | {"seed": seed}
        )
        for cell, values in found.cells.items()
        for seed in seeds
    }
    num_last = config.evaluation.get("num_last", 1)

    def report(_):
        values = {}
        for cell in found.cells:
            of_seeds = [
                _last_evaluations(
                    workdir / _sweep.CELLS / name, cells[name].train.num_steps, num_last
                )
                for name in (f"{cell},{seed}" for seed in seeds)
            ]
            values[cell] = [value for value in of_seeds if value]
        rows = _sweep.over_seeds(values, found.columns)
        _run.write_atomically(workdir / "table.md", _run.format_table(rows))

    _sweep.run_cells(build, cells, workdir, report, keeps_failures=True)
    print((workdir / "table.md").read_text())


def _last_evaluations(
    folder: pathlib.Path, num_steps: int, num: int
) -> dict[str, float] | None:
    """Means over the last so many evaluations of a run; None if it has not ended, or
    has fewer."""
    evaluations = _run.finite_evaluations(_run.read_lines(folder))
    last = [evaluations[step] for step in sorted(evaluations)[-num:]]
    if num_steps not in evaluations or len(last) < num:
        return None
    return {name: float(np.mean([x[name] for x in last])) for name in last[0]}


if __name__ == "__main__":
    _run.main(build, __file__, sweep, untrained=("sampler",))
