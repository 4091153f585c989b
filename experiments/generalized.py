"""Generalised energy-based models: a base that draws, and an energy that reweighs it.

Paper: Arbel, Zhou & Gretton (2021), "Generalized energy based models".
Claim checked: an energy learned beside a base corrects the base's weights; sampling its
latents gives better draws than the base's; with flows for both it is a density whose
likelihood is comparable to that of direct maximum likelihood.

    python -m experiments.generalized --workdir=runs/digits
    python -m experiments.generalized --workdir=runs/curve \
        --config=experiments/generalized.py:curve
    python -m experiments.generalized --workdir=runs/uci --sweep \
        --config=experiments/generalized.py:red_wine --config.data.data_dir=DIR

Presets: `digits` (embedded images, minutes on a CPU), `fashion_mnist_small` (CPU, half
an hour); `mnist`, `fashion_mnist`, `cifar10`, `cifar10_resnet`, `celeb_a`, `lsun`,
`imagenet32` (the paper's scale, for GPU or TPU; those without labels need
`evaluation.inception_weights`); `circle` and `curve` (thin supports, minutes);
`red_wine`, `white_wine`, `parkinsons`, `hepmass`, `miniboone` (UCI tables from files in
`data.data_dir`; the last two were run on no real file yet). After a comma the method:
`red_wine,donsker_varadhan`, `kale` by default, and for tables `likelihood` and
`contrastive_divergence`. With `--sweep`: of a table all methods, of images the seeds.

Other than published: pictures have uniform noise within each level, CelebA's are cut
to 140 x 140 first, rates are constant, and the log partition function begins at 0.
Flows of tables have one network a coupling for shift and scale, whose scale is bounded,
and an affine map at the end; they are trained for 8,200 updates of the energy at five
times the rate, and not for 26,000 and more. All rows whiten the large tables too, where
the first 10,000 were published, and HepMass is tested on a tenth of its rows. `curve`
and `circle` are ours: the paper's curve has no published formula.
"""

import functools
import math
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ebmjax import networks, objectives, samplers, starts, targets, training
from ebmjax.checks import check_number
from ebmjax.objectives import generalized
from ebmjax.types import Array
from experiments import (
    _adversarial,
    _classifier,
    _data,
    _inception,
    _latent,
    _plane,
    _plots,
    _run,
    _sweep,
)
from experiments._data import tabular

UCI = tuple(tabular.SOURCES)

# --- presets -----------------------------------------------------------------------


def _preset(data: dict, network: dict, **evaluation) -> dict:
    """The paper's training of images; what varies with the data is given."""
    return {
        "seed": 0,
        "data": data,
        "network": network,
        "objective": {
            "name": "kale",  # or "donsker_varadhan"
            "gradient_penalty": 1.0,  # paper: lambda
            "num_draws": 1,  # from the base for each example
            "transforms_log_partition": True,
            "energy_floor": 0.0,  # below 0: the energy is kept above it; 0 for none
        },
        "players": {
            "num_energy_updates": 5,  # for one of the base
            "num_extra_updates": 100,  # of the energy, at the first two steps and at
            "extra_every": 500,  # multiples of this
            "redescends": False,  # energy: 2 g / (1 + g^2), as released
        },
        # Of steps; a player with several updates in each takes as many steps.
        "optimizer": _run.adam_section(1e-4, b1=0.5, b2=0.999),
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": _run.train_section(150_000),  # of the base, and after of the energy
        "evaluation": evaluation,
        "sweep": {"num_seeds": 3},  # seed, seed + 1, ...
    }


def _sampling(**others) -> dict:
    return {
        "samplers": _latent.NAMES,
        "chain_lengths": (10, 50, 100, 200),  # moves
        "temperatures": (1.0, 0.1, 0.01),  # divide the energy; paper: beta = 100
        "step_size": 0.02,  # length^2, at temperature 1; times the temperature
        "decay": 0.1,  # of the step, every
        "decay_every": 200,  # moves
        "friction": 1.0,  # of "underdamped"
        "num_leapfrog": 2,  # of "hmc", on average
        "transport_step_size": 0.01,
        **others,
    }


def _images(name: str, network: dict, latent_dim: int = 100, **others) -> dict:
    config = _preset(
        _data.image_section(name, batch_size=128),
        network | {"latent_dim": latent_dim},
        num_samples=10_000,
        num_examples=10_000,  # of the data and of the held-out, to compare with
        num_shown=10,  # latents in the strips
        chunk_size=500,  # at a time
        classifier_steps=4_000,
        inception_weights="",  # file of Inception v3's; "" for the classifier
        sampling=_sampling(**others),
    )
    # After them the base is frozen, and the energy trained on.
    config["train"]["num_joint_steps"] = 150_000
    return config


SNGAN = {"name": "sngan", "widths": (64, 128, 256, 512)}


def _at_paper_s_scale(name: str, network: dict = SNGAN) -> dict:
    config = _images(name, network, chain_lengths=(10, 50, 100, 200, 500, 1_000))
    config["data"]["size"] = 32
    config["objective"]["energy_floor"] = -10.0
    config["players"]["redescends"] = True
    # In this convention half of the published 1e-4 at a temperature of .01.
    config["evaluation"]["sampling"]["step_size"] = 0.005
    config["evaluation"]["sampling"]["temperatures"] = (1.0, 0.1, 0.01, 0.001)
    config["train"] |= {"num_steps": 160_000, "eval_every": 20_000}
    return config


def _small(name: str, widths, latent_dim: int, num_steps: int, **evaluation) -> dict:
    """A narrower network at a higher rate, for a CPU."""
    config = _images(name, {"name": "sngan", "widths": widths}, latent_dim)
    config["data"]["batch_size"] = 64
    config["optimizer"]["learning_rate"] |= {
        "start": 5e-4,
        "final": 1e-5,
        "decay_steps": num_steps,
    }
    config["players"]["num_extra_updates"] = 50
    config["train"] |= {
        "num_steps": num_steps,
        "num_joint_steps": 3 * num_steps // 4,
        "checkpoint_every": 500,
    }
    config["evaluation"] |= evaluation
    return config


def _digits() -> dict:
    config = _small(
        "digits", (16, 32), 16, 3_000, num_samples=898, classifier_steps=700
    )
    config["evaluation"]["sampling"] |= {
        "chain_lengths": (10, 30, 100),
        "temperatures": (1.0, 0.1),
    }
    for key in ("data_dir", "download", "size"):
        del config["data"][key]
    return config


def _fashion_mnist_small() -> dict:
    config = _small(
        "fashion_mnist",
        (8, 16, 32),
        32,
        2_000,
        num_samples=1_000,
        num_examples=1_000,
        classifier_steps=1_000,
    )
    # At the digits' rate and without a floor it diverges within 100 steps.
    config["optimizer"]["learning_rate"]["start"] = 2e-4
    config["objective"]["energy_floor"] = -10.0
    config["evaluation"]["sampling"] |= {
        "chain_lengths": (10, 30, 100),
        "temperatures": (0.1,),
    }
    return config


def _uci(name: str) -> dict:
    """The published split, whitened by all rows, and no noise added. The flows and the
    length of training are ours; see above."""
    config = _preset(
        {
            "name": name,
            "data_dir": "",  # the folder with the file as published
            "batch_size": 100,
            "split_seed": 1,
            "whiten": "all",  # test rows included, as published; or "train"
            "noise_scale": 0.0,
        },
        {
            "name": "real_nvp",  # or "masked_autoregressive": base and energy
            "num_layers": 5,
            "widths": (100, 100),
            "has_offset": True,  # s of E = -log q + s: for c to have something to learn
        },
        num_draws=20_000,
    )
    config["objective"] |= {"gradient_penalty": 0.1, "num_draws": 20, "l2": 0.1}
    config["players"] |= {"num_energy_updates": 50, "extra_every": 0}
    config["optimizer"]["b2"] = 0.9
    # Published: 1e-4 for 26,000 to 94,000 updates of the energy.
    config["optimizer"]["learning_rate"] |= {
        "start": 5e-4,
        "final": 1e-5,
        "decay_steps": 160,
    }
    config["train"] |= {
        "num_steps": 160,
        "eval_every": 4,
        "checkpoint_every": 0,
        "log_every": 4,
        "best": "validation_nll",
    }
    config["sweep"]["methods"] = (*ESTIMATORS, *BASELINES)
    if name not in tabular.SMALL:  # published, but for the base's rate of 1e-4
        config["data"]["batch_size"] = 2_048
        config["objective"]["num_draws"] = 1
        config["optimizer"]["learning_rate"]["start"] = 1e-3
    return config


def _thin(name: str, data: dict, num_steps: int, **evaluation) -> dict:
    config = _preset(
        {"name": name, "batch_size": 256, **data},
        {"widths": (64, 64, 64)},
        **evaluation,
    )
    config["objective"] |= {"gradient_penalty": 0.0, "num_draws": 4}
    config["players"] |= {"num_extra_updates": 0, "extra_every": 0}
    config["optimizer"]["b2"] = 0.9
    config["optimizer"]["learning_rate"] |= {
        "start": 1e-3,
        "final": 1e-5,
        "decay_steps": num_steps,
    }
    config["train"] |= {"num_steps": num_steps, "checkpoint_every": 0}
    return config


def _circle() -> dict:
    config = _thin(
        "circle",
        {"concentration": 2.0},  # of the von Mises law
        2_000,
        num_chains=4_000,
        sampling=_sampling(
            samplers=tuple(name for name in _latent.NAMES if name != "transport"),
            chain_lengths=(50, 200),
            temperatures=(1.0,),
            step_size=0.1,
            decay_every=0,
        ),
    )
    config["players"]["num_energy_updates"] = 1
    return config


def _curve() -> dict:
    config = _thin(
        "curve",
        {},
        6_000,
        num_samples=20_000,
        num_bins=60,  # a side
        bound=1.25,
        num_moves=200,  # of independence Metropolis-Hastings
    )
    config["network"]["width"] = 0.1  # sigma of the EBM's ridge
    # The base begins off the curve, where without both the energy has no bounds.
    config["objective"] |= {"gradient_penalty": 0.005, "energy_floor": -5.0}
    config["train"]["num_joint_steps"] = 4_000  # then the base rests
    return config


PRESETS = {
    "digits": _digits,
    "fashion_mnist_small": _fashion_mnist_small,
    "mnist": lambda: _at_paper_s_scale("mnist"),
    "fashion_mnist": lambda: _at_paper_s_scale("fashion_mnist"),
    "cifar10": lambda: _at_paper_s_scale("cifar10"),
    "cifar10_resnet": lambda: _at_paper_s_scale(
        "cifar10", {"name": "sngan_resnet", "width": 128}
    ),
    "celeb_a": lambda: _at_paper_s_scale("celeb_a"),
    "lsun": lambda: _at_paper_s_scale("lsun"),
    "imagenet32": lambda: _at_paper_s_scale("imagenet32"),
    "circle": _circle,
    "curve": _curve,
    **{name: functools.partial(_uci, name) for name in UCI},
}
ESTIMATORS = generalized.ESTIMATORS
# Of tables only, with the published weight of the squared parameters.
BASELINES = {
    "likelihood": {"l2": 1e-4},
    "contrastive_divergence": {
        "l2": 1e-4,
        "step_size": 0.01,  # length^2
        "num_steps": 10,
    },
}


def get_config(preset: str = "digits") -> ConfigDict:
    name, _, method = preset.partition(",")
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    methods = ESTIMATORS + (tuple(BASELINES) if name in UCI else ())
    if method and method not in methods:
        raise ValueError(f"method must be one of {sorted(methods)}, got {method!r}")
    return _with_method(ConfigDict(PRESETS[name]()), method or "kale").lock()


def _with_method(config: ConfigDict, method: str) -> ConfigDict:
    if method in BASELINES:
        config.objective = ConfigDict({"name": method, **BASELINES[method]})
        if method == "contrastive_divergence":
            # Published. At five times the rate it diverges before it learns anything.
            config.optimizer.learning_rate.start = 1e-4
            config.train.eval_every = 2
    else:
        config.objective.name = method
    return config


# --- building ----------------------------------------------------------------------


def build(config: ConfigDict, keys: _run.Keys) -> _run.Experiment:
    name = config.data.name
    if name not in KINDS and "num_examples" not in config.data:
        raise ValueError(
            f"data.name must be one of {sorted(KINDS)} in this preset, got {name!r}"
        )
    _run.check_counts(
        "players",
        config.players,
        num_energy_updates=1,
        num_extra_updates=0,
        extra_every=0,
    )
    return KINDS.get(name, _of_images)(config, keys)


def _energy_player(
    config, energy, base, latent_dim: int, l2: float = 0.0, **options
) -> training.Player:
    """KALE's or Donsker and Varadhan's energy, by the config."""
    section = config.objective
    if section.name not in ESTIMATORS:
        raise ValueError(
            f"objective.name must be one of {ESTIMATORS}, got {section.name!r}"
        )
    trains = ("energy", "log_partition")[: 2 if section.name == "kale" else 1]
    objective = generalized.energy_objective(
        energy,
        base,
        latent_dim=latent_dim,
        estimator=section.name,
        gradient_penalty=section.gradient_penalty,
        num_draws=section.num_draws,
        transforms_log_partition=section.transforms_log_partition,
        energy_floor=_floor(config),
        **options,
    )
    return training.Player(
        trains,
        objective,
        _energy_optimizer(config, trains, l2),
        config.players.num_energy_updates,
    )


def _base_player(config, energy, base, latent_dim: int, **options) -> training.Player:
    objective = generalized.base_objective(
        energy,
        base,
        latent_dim=latent_dim,
        num_draws=config.objective.num_draws,
        energy_floor=_floor(config),
        **options,
    )
    return training.Player(("base",), objective, _optimizer(config))


def _floor(config) -> float | None:
    floor = config.objective.energy_floor
    if not floor <= 0:
        raise ValueError(
            f"objective.energy_floor must be below 0, or 0 for none, got {floor}"
        )
    return floor or None


def _optimizer(config, num_updates: int = 1) -> optax.GradientTransformation:
    """Of a player with so many updates a step, in whose number its rate changes."""
    section = config.optimizer.to_dict()
    for name in ("warmup_steps", "decay_start", "decay_steps"):
        section["learning_rate"][name] *= num_updates
    return _run.make_optimizer(section)


def _energy_optimizer(config, trains, l2: float = 0.0) -> optax.GradientTransformation:
    """With `l2` times the squares of the energy's parameters in the loss, and its
    gradients redescending where the config says so; not the log partition's."""
    mask = {name: name == "energy" for name in trains}
    parts = [_optimizer(config, config.players.num_energy_updates)]
    if config.players.redescends:
        parts.insert(0, optax.masked(generalized.redescending_gradients(), mask))
    if l2 > 0:
        parts.insert(0, optax.add_decayed_weights(2 * l2, mask))
    return optax.chain(*parts)


def _phases(config, players: dict) -> dict:
    """More updates of the energy at the first two steps and every so many, and none of
    the base after the joint steps; `Experiment`'s `phases` and `phase`."""
    section = config.players
    num_joint = config.train.get("num_joint_steps", math.inf)
    energy = players["energy"]
    extra = energy._replace(num_updates=energy.num_updates + section.num_extra_updates)
    others = {name: player for name, player in players.items() if name != "base"}
    phases = {"extra": players | {"energy": extra}, "tuning": others}

    def phase(step):
        if step >= num_joint:
            return "tuning"
        every = section.extra_every
        is_extra = step < 2 or (every and step % every == 0)
        return "extra" if is_extra and section.num_extra_updates else ""

    return {"phases": phases, "phase": phase}


def _batch(
    config, key, players, batches, phases=None, phase=lambda step: ""
) -> Callable:
    """`step -> rows` for all updates of that step's phase, from `batches(key, size)`:
    every phase goes through the data in an order of its own."""
    of_phase = {
        name: batches(
            jax.random.fold_in(key, index),
            config.data.batch_size
            * sum(player.num_updates for player in some.values()),
        )
        for index, (name, some) in enumerate({"": players, **(phases or {})}.items())
    }
    return lambda step: of_phase[phase(step)](step)


# --- tables ------------------------------------------------------------------------

FLOWS = {
    "real_nvp": networks.real_nvp,
    "masked_autoregressive": networks.masked_autoregressive,
}


def _of_table(config, keys) -> _run.Experiment:
    _run.check_counts("evaluation", config.evaluation, num_draws=1)
    check_number("objective.l2", config.objective.get("l2", 0.0), positive=False)
    name = config.objective.name
    if name in BASELINES and set(config.objective) != {"name", *BASELINES[name]}:
        raise ValueError(
            f"objective.name {name!r} has options of its own: choose it by"
            f" --config=experiments/generalized.py:{config.data.name},{name}"
        )
    table = tabular.from_section(config.data)
    dim = table.train.shape[1]
    network = config.network.to_dict()
    has_offset = network.pop("has_offset")
    flow = _run.construct(network, FLOWS, (dim,))

    def offset(params):
        """s, a sum over arrays of their mean magnitude; paper's true `-A`."""
        if not has_offset:
            return jnp.zeros(())
        return sum(jnp.abs(leaf).mean() for leaf in jax.tree.leaves(params))

    def energy(params, x):
        """Without the base's density: `-log q + s`."""
        return offset(params) - flow.log_prob(params, x)

    energy_key, base_key = jax.random.split(keys.params)
    params = {"energy": flow.init(energy_key)}
    # Published: the squares' sum over the sum of all sides of all arrays.
    num = sum(sum(leaf.shape) for leaf in jax.tree.leaves(params["energy"]))
    l2 = config.objective.l2 / num
    if config.objective.name in BASELINES:
        players = {"energy": _baseline(config, flow, l2)}
        phases = {}
    else:
        params |= {
            "base": flow.init(base_key),
            # Both flows begin as the identity: A = -s exactly.
            "log_partition": -offset(params["energy"]),
        }

        def base(params, latent):
            return flow.forward(params, latent)[0]

        players = {
            "energy": _energy_player(
                config, energy, base, dim, l2, base_log_prob=flow.log_prob
            ),
            "base": _base_player(
                config, energy, base, dim, base_log_prob=flow.log_prob
            ),
        }
        phases = _phases(config, players)

    def batches(key, size):
        rows = _data.epoch_rows(key, len(table.train), size)
        local = _data.process_rows(size)
        return lambda step: table.train[rows(step)[local]]

    log_prob = jax.jit(jax.vmap(flow.log_prob, (None, 0)))
    energies_of = jax.jit(jax.vmap(energy, (None, 0)))
    sample = jax.jit(jax.vmap(flow.sample, (None, 0)))

    def evaluate(state, key, directory):
        del directory
        found = _run.evaluated_params(state)
        scalars = {
            f"{name}_nll": -float(log_prob(found["energy"], rows).mean())
            for name, rows in table._asdict().items()
            if name in ("train", "validation", "test")
        }
        if "base" not in found:
            return scalars
        scalars |= {
            f"base_{name}_nll": -float(log_prob(found["base"], rows).mean())
            for name, rows in (("validation", table.validation), ("test", table.test))
        }
        true = -float(offset(found["energy"]))
        draws = sample(
            found["base"], jax.random.split(key, config.evaluation.num_draws)
        )
        total = energies_of(found["energy"], draws) + log_prob(found["base"], draws)
        constant = float(found["log_partition"])
        mass = float(jnp.exp(-total - constant).mean())
        log_mean = float(jax.nn.logsumexp(-total) - math.log(len(draws)))
        if config.objective.name == "donsker_varadhan":
            constant, mass = log_mean, 1.0
        return scalars | {
            "log_partition": constant,  # learned
            "log_partition_true": true,
            "log_partition_of_draws": log_mean,
            # What KALE says of it, with nothing known of the energy: above test_nll by
            # e^d - 1 - d, d the error of the log partition, and the draws' error.
            "test_nll_by_kale": scalars["test_nll"] - true + constant + mass - 1,
        }

    return _run.Experiment(
        players=players,
        params=params,
        batch=_batch(config, keys.data, players, batches, **phases),
        evaluate=evaluate,
        **phases,
    )


def _baseline(config, flow, l2: float) -> training.Player:
    section = config.objective
    if section.name == "likelihood":
        objective = generalized.likelihood(flow.log_prob)
    else:
        objective = objectives.contrastive_divergence(
            lambda params, x: -flow.log_prob(params, x),
            sampler=samplers.langevin(step_size=section.step_size),
            num_steps=section.num_steps,
            start=starts.data(),
        )
    return training.Player(
        ("energy",),
        objective,
        _energy_optimizer(config, ("energy",), l2),
        config.players.num_energy_updates,
    )


# --- thin supports in the plane ----------------------------------------------------


def _circle_of(latent: Array) -> Array:
    """`[1] -> [2]`: a uniform angle, from a normal latent through its rank."""
    angle = 2 * math.pi * jax.scipy.stats.norm.cdf(latent[0])
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def von_mises(concentration: float) -> targets.Target:
    """`exp(k cos t)` on the unit circle, drawn through a table of its ranks."""
    angles = np.linspace(-math.pi, math.pi, 20_001)
    density = np.exp(concentration * (np.cos(angles) - 1))
    ranks = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    table = jnp.asarray(ranks / ranks[-1]), jnp.asarray(angles)

    def sample(key, num):
        angle = jnp.interp(jax.random.uniform(key, (num,)), *table)
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)

    return targets.Target(sample, None, None)


def _on_circle(config, keys) -> _run.Experiment:
    from scipy import special

    k = config.data.concentration
    check_number("data.concentration", k, positive=False)
    _run.check_counts("evaluation", config.evaluation, num_chains=1)
    _latent.check(config.evaluation.sampling)
    network = networks.mlp_energy((2,), widths=config.network.widths)
    params, _ = network.init(keys.params)

    def base(params, latent):
        del params
        return _circle_of(latent)

    player = _energy_player(config, network, base, 1)
    # Bessel functions over exp(k), which alone is too large from k = 700 on.
    mean = special.i1e(k) / special.i0e(k)
    exact = {"kale": k * (mean - 1) - math.log(special.i0e(k)), "mean": mean}
    angles = (np.arange(4_096) + 0.5) * (2 * math.pi / 4_096)
    points = jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], 1), jnp.float32)
    truth = np.exp(k * (np.cos(angles) - 1))
    truth /= truth.sum()

    def evaluate(state, key, directory):
        found = _run.evaluated_params(state)
        energy_fn = generalized.floored(
            functools.partial(network.apply, found["energy"]), _floor(config)
        )
        energy = np.asarray(jax.vmap(energy_fn)(points), np.float64)
        log_partition = float(special.logsumexp(-energy) - math.log(len(energy)))
        model = np.exp(-energy - log_partition) / len(energy)
        # By quadrature on the circle: no draws in it.
        kale = -float(truth @ energy) - log_partition
        scalars = {
            "kale": kale,
            "kale_exact": exact["kale"],
            "kl_of_refined": _plane.kl_divergence(truth, model),
            "log_partition": log_partition,
            "mean_exact": exact["mean"],
            "mean_of_refined": float(model @ np.cos(angles)),
        }
        if config.objective.name == "kale":
            scalars["log_partition_learned"] = float(found["log_partition"])
        latent_key, *chain_keys = jax.random.split(key, 1 + len(_latent.NAMES))
        section = config.evaluation.sampling
        latents = jax.random.normal(latent_key, (config.evaluation.num_chains, 1))
        scalars["mean_base"] = float(jax.vmap(_circle_of)(latents)[:, 0].mean())
        panels = {}
        for name, chain_key in zip(section.samplers, chain_keys):
            refined = _latent.refine(
                name,
                section,
                energy_fn,
                _circle_of,
                chain_key,
                latents,
                chain_lengths=section.chain_lengths,
            )
            last = refined[max(refined)]
            scalars[f"mean_{name}"] = float(last.x[:, 0].mean())
            shares, edges = np.histogram(
                np.arctan2(last.x[:, 1], last.x[:, 0]), 40, (-math.pi, math.pi)
            )
            shares = shares / len(last.x) / np.diff(edges)
            panels[name] = (0.5 * (edges[1:] + edges[:-1]), shares)
        order = np.argsort(np.where(angles > math.pi, angles - 2 * math.pi, angles))
        turned = np.where(angles > math.pi, angles - 2 * math.pi, angles)[order]
        scale = len(angles) / (2 * math.pi)
        panels |= {
            "von Mises": (turned, truth[order] * scale),
            "exp(-E) / Z": (turned, model[order] * scale),
        }
        _plots.curves(
            directory / "circle.png", {"density of the angle": panels}, x_label="angle"
        )
        return scalars

    players = {"energy": player}
    phases = _phases(config, players)
    return _run.Experiment(
        players=players,
        params={"energy": params, "base": {}, "log_partition": jnp.zeros(())},
        batch=_batch(
            config, keys.data, players, _target_batches(von_mises(k)), **phases
        ),
        evaluate=evaluate,
        **phases,
    )


def _target_batches(target: targets.Target):
    return lambda key, size: _data.target_batches(key, target, size)


def wave(first: Array) -> Array:
    """The second coordinate of the curve, of the first."""
    return 0.6 * jnp.sin(1.5 * math.pi * first)


def curve() -> targets.Target:
    """A wave in the plane, its first coordinate by the arcsine law on (-1, 1): most of
    it at the two ends."""

    def sample(key, num):
        first = jnp.sin(math.pi * (jax.random.uniform(key, (num,)) - 0.5))
        return jnp.stack([first, wave(first)], 1)

    return targets.Target(sample, None, None)


def _renamed(objective: objectives.Objective, **names: str) -> objectives.Objective:
    """An objective whose networks have other names in `params`: its own=another."""

    def loss(params, key, batch, carry):
        renamed = {own: params[other] for own, other in names.items()}
        return objective.loss(renamed, key, batch, carry)

    return objectives.Objective(objective.init, loss)


def _on_curve(config, keys) -> _run.Experiment:
    """Three models of one family of curves `(u, g(u))`, trained side by side: a GAN,
    whose u is uniform; an energy-based model of the plane, a ridge along the curve
    with any weights; and a generalised one, uniform draws with any weights."""
    network, options = config.network, config.evaluation
    _run.check_counts("evaluation", options, num_samples=1, num_bins=1, num_moves=1)
    for name, value in (
        ("network.width", network.width),
        ("evaluation.bound", options.bound),
    ):
        check_number(name, value, positive=True)
    graph = networks.mlp((1,), (1,), widths=network.widths)
    critic = networks.mlp_energy((2,), widths=network.widths)
    weights = networks.mlp_energy((1,), widths=network.widths)

    def generator(params, latent):
        first = 2 * jax.scipy.stats.norm.cdf(latent) - 1
        return jnp.concatenate([first, graph.apply(params, first)])

    def ridge_energy(params, x):
        distance = x[1] - graph.apply(params["graph"], x[:1])[0]
        square = (distance / network.width) ** 2
        return square / 2 + weights.apply(params["weights"], x[:1])

    line = jnp.linspace(-1, 1, 1_001)
    middles = 0.5 * (line[1:] + line[:-1])

    def ridge_weights(params):
        """`[1000]`: logarithms of the weights along the first coordinate."""
        return -jax.vmap(weights.apply, (None, 0))(params["weights"], middles[:, None])

    def ridge_log_prob(params, x):
        # The integral over the second coordinate is a normal's, over the first a sum.
        log_integral = jax.nn.logsumexp(ridge_weights(params)) + math.log(2 / 1_000)
        log_partition = log_integral + math.log(network.width * (2 * math.pi) ** 0.5)
        return -ridge_energy(params, x) - log_partition

    gan = {"energy": "critic", "generator": "generator"}
    num = config.players.num_energy_updates
    players = {
        "energy": _energy_player(config, critic, generator, 1),
        "base": _base_player(config, critic, generator, 1),
        "ridge": training.Player(
            ("ridge",),
            generalized.likelihood(ridge_log_prob, name="ridge"),
            _optimizer(config),
        ),
        "critic": training.Player(
            ("critic",),
            _renamed(
                _adversarial.gan_energy(critic.apply, generator, latent_dim=1), **gan
            ),
            _optimizer(config, num),
            num,
        ),
        "generator": training.Player(
            ("generator",),
            _renamed(
                _adversarial.gan_generator(critic.apply, generator, latent_dim=1), **gan
            ),
            _optimizer(config),
        ),
    }
    names = iter(jax.random.split(keys.params, 6))
    params = {
        "energy": critic.init(next(names))[0],
        "base": graph.init(next(names))[0],
        "log_partition": jnp.zeros(()),
        "ridge": {
            "graph": graph.init(next(names))[0],
            "weights": weights.init(next(names))[0],
        },
        "critic": critic.init(next(names))[0],
        "generator": graph.init(next(names))[0],
    }
    phases = _phases(config, players)
    target, num_samples = curve(), options.num_samples
    grid = _plane.plane(options.bound, options.num_bins)
    edges = np.linspace(-1, 1, options.num_bins + 1)
    truth = np.diff(np.arcsin(edges)) / math.pi

    def judged(x):
        shares = np.histogram(np.asarray(x)[:, 0], edges)[0] / len(x)
        off = np.asarray(x[:, 1] - wave(x[:, 0]))
        return {
            "weights_total_variation": _plane.total_variation(shares, truth),
            "distance_off_support": float(np.sqrt((off**2).mean())),
        }

    def evaluate(state, key, directory):
        found = _run.evaluated_params(state)
        draw_key, noise_key, latent_key, chain_key, ridge_key, width_key = (
            jax.random.split(key, 6)
        )
        latents = jax.random.normal(latent_key, (num_samples, 1))
        drawn = jax.jit(jax.vmap(generator, (None, 0)))
        energy_fn = generalized.floored(
            functools.partial(critic.apply, found["energy"]), _floor(config)
        )
        generator_fn = functools.partial(generator, found["base"])
        refined = _latent.refine(
            "independence",
            _sampling(decay_every=0),
            energy_fn,
            generator_fn,
            chain_key,
            latents,
            chain_lengths=(options.num_moves,),
        )[options.num_moves]
        place = jax.random.categorical(
            ridge_key, ridge_weights(found["ridge"]), shape=(num_samples,)
        )
        first = middles[place] + (2 / 1_000) * (
            jax.random.uniform(width_key, (num_samples,)) - 0.5
        )
        second = jax.vmap(graph.apply, (None, 0))(
            found["ridge"]["graph"], first[:, None]
        )[:, 0]
        noise = jax.random.normal(noise_key, (num_samples,))
        sampled = {
            "data": np.asarray(target.sample(draw_key, num_samples)),
            "ebm": np.asarray(jnp.stack([first, second + network.width * noise], 1)),
            "gan": np.asarray(drawn(found["generator"], latents)),
            "base": np.asarray(drawn(found["base"], latents)),
            "gebm": refined.x,
        }
        _plots.densities(
            directory / "curve.png",
            {
                name if name in ("data", "base") else name.upper(): np.sqrt(
                    grid.histogram(x)
                )
                for name, x in sampled.items()
            },
            bounds=(-options.bound, options.bound),
        )
        return {
            f"{name}_{measure}": value
            for name, x in sampled.items()
            for measure, value in judged(x).items()
        } | {"gebm_acceptance_rate": refined.acceptance_rate}

    return _run.Experiment(
        players=players,
        params=params,
        batch=_batch(config, keys.data, players, _target_batches(target), **phases),
        evaluate=evaluate,
        **phases,
    )


# --- images ------------------------------------------------------------------------


def _resnet(shape, latent_dim, *, width, num_blocks=3):
    return (
        networks.sngan_resnet_base(
            shape, latent_dim=latent_dim, width=width, num_blocks=num_blocks
        ),
        networks.sngan_resnet_energy(shape, width=width),
    )


def _pair(base, energy):
    """`(shape, latent_dim, *, widths) -> (base, energy)`."""
    return lambda shape, latent_dim, *, widths: (
        base(shape, latent_dim=latent_dim, widths=widths),
        energy(shape, widths=widths),
    )


NETWORKS = {
    "sngan": _pair(networks.sngan_base, networks.sngan_energy),
    "sngan_resnet": _resnet,
    "dcgan": _pair(networks.dcgan_base, networks.dcgan_energy),
    "strided": _pair(networks.strided_generator, networks.strided_energy),
}


def _of_images(config, keys) -> _run.Experiment:
    data = _data.from_section(config.data)
    options, sampling = config.evaluation, config.evaluation.sampling
    _plots.check()
    _latent.check(sampling)
    _run.check_counts(
        "evaluation",
        options,
        num_samples=2,  # a covariance's
        num_examples=2,
        num_shown=1,
        chunk_size=1,
        classifier_steps=1,
    )
    section = config.network.to_dict()
    latent_dim = section.pop("latent_dim")
    base, energy = _run.construct(section, NETWORKS, data.image_shape, latent_dim)
    params, model_state = {"log_partition": jnp.zeros(())}, {}
    for index, (name, network) in enumerate((("base", base), ("energy", energy))):
        params[name], state = network.init(jax.random.fold_in(keys.params, index))
        if state:
            model_state[f"{name}_state"] = state
    players = {
        "energy": _energy_player(config, energy, base, latent_dim),
        "base": _base_player(config, energy, base, latent_dim),
    }
    phases = _phases(config, players)
    judge = _judge(config, data)
    # The same latents for the base and for every chain, at every evaluation.
    latents = jax.random.normal(keys.evaluation, (options.num_samples, latent_dim))

    def evaluate(state, key, directory):
        found = _run.evaluated_params(state)
        generator_fn, energy_fn = (
            _adversarial.bind(
                network, found[name], state.model_state.get(f"{name}_state")
            )
            for name, network in (("base", base), ("energy", energy))
        )
        energy_fn = generalized.floored(energy_fn, _floor(config))
        of_chunk = jax.jit(jax.vmap(generator_fn))
        distances, shown, rates = {}, {}, {}
        chained = []

        def record(drawn):
            """All samplers' images together would be more than fits in memory."""
            distances.update(judge(drawn))
            shown.update({k: x[: options.num_shown] for k, x in drawn.items()})

        record({"base": _data.in_chunks(of_chunk, latents, options.chunk_size)})
        for index, name in enumerate(sampling.samplers):
            temperatures = sampling.temperatures if name != "transport" else (1.0,)
            for place, temperature in enumerate(temperatures):
                refined = _latent.refine(
                    name,
                    sampling,
                    energy_fn,
                    generator_fn,
                    jax.random.fold_in(jax.random.fold_in(key, index), place),
                    latents,
                    chain_lengths=sampling.chain_lengths,
                    temperature=temperature,
                )
                record(
                    {
                        _cell(name, temperature, length): chains.x
                        for length, chains in refined.items()
                    }
                )
                rates |= {
                    _cell(name, temperature, length): chains.acceptance_rate
                    for length, chains in refined.items()
                    if not math.isnan(chains.acceptance_rate)
                }
                chained.append((name, temperature))
        of_base = distances["base"]
        relative = {name: 100 * value / of_base for name, value in distances.items()}
        _report(directory, config, distances, relative, rates, chained, shown)
        return (
            {
                f"{name}_frechet_distance": value
                for name, value in distances.items()
                if name in ("base", "data")
            }
            | {
                f"relative_{name}": share
                for name, share in relative.items()
                if name in shown
            }
            | {f"acceptance_rate_{name}": rate for name, rate in rates.items()}
        )

    def batches(key, size):
        return _data.image_batches(key, data.train, size, num_levels=data.num_levels)

    return _run.Experiment(
        players=players,
        params=params,
        batch=_batch(config, keys.data, players, batches, **phases),
        evaluate=evaluate,
        model_state=model_state,
        **phases,
    )


def _judge(config, data: _data.Images):
    """`name -> images` to `name -> Frechet distance`, by Inception's features where its
    weights are given, else by a classifier's, with its references beside."""
    options = config.evaluation
    if options.inception_weights:
        inception = _inception.Inception(options.inception_weights, data.num_levels)
        return lambda x: {
            name: inception.measure(
                _data.quantize(images, data.num_levels), data.train
            )["frechet_inception_distance"]
            for name, images in x.items()
        }
    if data.labels_train is None:
        raise ValueError(
            f"{config.data.name} has no labels for a classifier:"
            " evaluation.inception_weights must be the file of Inception v3's, got ''"
        )
    judge = _classifier.judge(data, options.num_examples, options.classifier_steps)
    return lambda x: {
        row["name"]: row["classifier_frechet_distance"]
        for row in judge.table({name: images.clip(-1, 1) for name, images in x.items()})
    }


def _cell(name: str, temperature: float, length: int) -> str:
    return f"{name}_{temperature:g}_{length}"


def _report(
    directory: pathlib.Path, config, distances, relative, rates, chained, shown
) -> None:
    """Table, curves over the chains' length, and strips of the same latents."""
    options, sampling = config.evaluation, config.evaluation.sampling
    table = [
        {
            "name": name,
            "frechet_distance": value,
            "percent_of_base": relative[name],
            "acceptance_rate": rates.get(name, "-"),
        }
        for name, value in distances.items()
    ]
    _run.write_atomically(directory / "quality.md", _run.format_table(table))
    lengths = np.array([0, *sampling.chain_lengths])
    panels = {}
    for name, temperature in chained:
        shares = [relative[_cell(name, temperature, n)] for n in sampling.chain_lengths]
        panel = panels.setdefault(f"temperature {temperature:g}", {})
        panel[name] = (lengths, np.array([100.0, *shares]))
    _plots.curves(directory / "chains.png", panels, x_label="moves")
    # Of each sampler at its best temperature, from the base's draw to the last.
    strips = {}
    for name in sampling.samplers:
        coldest = min(
            (temperature for other, temperature in chained if other == name),
            key=lambda t: relative[_cell(name, t, sampling.chain_lengths[-1])],
        )
        cells = [_cell(name, coldest, length) for length in sampling.chain_lengths]
        images = np.stack([shown[cell] for cell in ("base", *cells)])
        title = f"{name}, temperature {coldest:g}: after 0, " + ", ".join(
            map(str, sampling.chain_lengths)
        )
        strips[title] = images.reshape(-1, *images.shape[2:])
    _plots.image_panels(directory / "strips.png", strips, columns=options.num_shown)


KINDS = {name: _of_table for name in UCI} | {
    "circle": _on_circle,
    "curve": _on_curve,
}


# --- sweeps ------------------------------------------------------------------------


def sweep(build, config: ConfigDict, workdir) -> None:
    """Of a table methods times seeds, each at its best validation; of what else the
    seeds; and `table.md` with means over seeds. A run that diverges has what was best
    before it did, and is not counted under `ended`. The baselines' sections `objective`
    are `BASELINES`, whatever the config has in its own, and contrastive divergence has
    the rate and the interval of evaluations of its preset."""
    if config.objective.name in BASELINES:
        raise ValueError(
            "a sweep has the baselines as cells, and begins from another method; got"
            f" {config.objective.name!r}"
        )
    workdir, seeds = pathlib.Path(workdir), _sweep.seeds(config)
    is_table = config.data.name in UCI
    base = config.to_dict()
    del base["sweep"]  # a cell is the same run in any sweep
    methods = (config.objective.name,)
    if is_table:
        methods, known = tuple(config.sweep.methods), (*ESTIMATORS, *BASELINES)
        if not methods or not set(methods) <= set(known):
            raise ValueError(f"sweep.methods must be some of {known}, got {methods}")
    cells = {
        f"{method},{seed}": _sweep.overridden(
            _with_method(ConfigDict(base), method), {"seed": seed}
        )
        for method in methods
        for seed in seeds
    }

    def report(_):
        found, ended = {}, {}
        for method in methods:
            chosen = [
                _chosen(workdir / _sweep.CELLS / name, cells[name].train.num_steps)
                for name in (f"{method},{seed}" for seed in seeds)
            ]
            found[method] = [scalars for scalars, _ in chosen if scalars]
            ended[method] = str(sum(has_ended for _, has_ended in chosen))
        rows = [
            row | {"ended": ended[row["cell"]]}
            for row in _sweep.over_seeds(found, digits=4)
        ]
        for row in rows:
            row.pop("evaluation_seconds", None)
        if not is_table:  # one method: many measures of it, one below another
            rows = [{"measure": k, "value": v} for k, v in rows[0].items()]
        _run.write_atomically(workdir / "table.md", _run.format_table(rows))

    _sweep.run_cells(build, cells, workdir, report, keeps_failures=True)
    print((workdir / "table.md").read_text())


def _chosen(
    folder: pathlib.Path, num_steps: int
) -> tuple[dict[str, float] | None, bool]:
    """The evaluation with the best validation likelihood, of a run that has ended or
    diverged, or the last where there is none, of one that has ended; else None. And
    whether it has ended."""
    evaluations = _run.finite_evaluations(_run.read_lines(folder))
    has_ended = num_steps in evaluations
    has_choice = any("validation_nll" in scalars for scalars in evaluations.values())
    if not has_ended and not (has_choice and (folder / _sweep.FAILURE).is_file()):
        return None, False
    best = min(
        reversed(evaluations.values()),
        key=lambda scalars: scalars.get("validation_nll", 0.0),
    )
    return best, has_ended


if __name__ == "__main__":
    _run.main(build, __file__, sweep)
