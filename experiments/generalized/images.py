r"""Generalised energy-based models of images.

Paper: Arbel, Zhou & Gretton (2021), "Generalized energy based models",
https://arxiv.org/abs/2003.05033.
Claim checked: an energy learned with a base corrects the base's weights, so that
chains in the base's latents, which follow the energy, end in better images than the
base's own draws.

    python -m experiments.generalized.images --workdir=runs/digits
    python -m experiments.generalized.images --workdir=runs/seeds --sweep
    python -m experiments.generalized.images --workdir=runs/fashion \
        --config=fashion_mnist_small

Presets: `digits` (embedded, 9 minutes of a CPU core), `fashion_mnist_small` (37 minutes
of one), `mnist_small` (an hour of one), `own` (the same for your own images, resized to
32 x 32: `data.path` is a folder of pictures, a `.npy` or an `.npz` file), and at the
paper's scale, for a GPU or a TPU, `mnist`, `fashion_mnist`, `cifar10`,
`cifar10_resnet`, `celeb_a`, `lsun` and `imagenet32`. After a comma stands the
estimator: `kale`, the default, or `donsker_varadhan`. With `--sweep`, three seeds.
Images are judged by a classifier, by Inception (`evaluation.inception_weights`), or by
their pixels if they have no labels.

Other than published: pictures have uniform noise within each level, CelebA's are cut to
140 x 140 first, rates are constant, and the log partition function begins at 0.
"""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax.types import Key, Network
from experiments.data import (
    Images,
    digest,
    fitting,
    image_batches,
    image_section,
    in_chunks,
    load_section,
    quantize,
)
from experiments.data.choices import IMAGES
from experiments.generalized.latents import (
    check_sampler,
    make_chains,
    make_refine,
    sample_model,
    sampler_section,
)
from experiments.generalized.model import NETWORKS, bind_networks, make_networks
from experiments.generalized.players import (
    base_player,
    check_players,
    energy_player,
    make_config,
    make_experiment,
    objective_section,
    players_section,
)
from experiments.judge import plots
from experiments.judge.inception import Inception
from experiments.judge.judge import make_judge
from experiments.run import cli
from experiments.run.config import adam_section, check_counts, train_section
from experiments.run.experiment import Experiment, Keys, Trained, evaluated_params
from experiments.run.sweep import Cell, Sweep
from experiments.run.workdir import format_table, save_arrays, write_atomically


def make_digits() -> dict:
    """Returns the problem's default: a narrow network at a high rate, for a CPU."""
    config = {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": {
            "name": "digits",
            "batch_size": 64,  # of all devices
            "num_examples": 0,  # first images trained on; 0 for all
        },
        "network": {
            "name": "sngan",  # base and energy; or "sngan_resnet", "dcgan", "strided"
            "widths": (16, 32),  # channels, from the image inwards
        },
        "latent_dim": 16,  # length of the base's latent
        "objective": objective_section(),
        "players": players_section(num_extra_updates=50),
        # Its lengths are in steps, however many updates a player makes in one.
        "optimizer": adam_section(5e-4, b1=0.5, b2=0.999),
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": train_section(3_000, checkpoint_every=500)
        | {"num_joint_steps": 2_250},  # then the base rests, and the energy goes on
        "evaluation": {
            "num_samples": 898,  # draws of each sampler
            "num_examples": 10_000,  # of the data and of the held-out, to compare with
            "num_shown": 10,  # latents in the strips
            "chunk_size": 500,  # images that the base makes at a time
            "classifier_steps": 700,  # updates of the classifier that judges
            "inception_weights": "",  # file of Inception v3's; "" for the classifier
            "sampler": sampler_section(chain_lengths=(10, 30, 100))
            | {"temperatures": (1.0, 0.1)},  # divide the energy; paper: 1 / beta
        },
    }
    config["optimizer"]["learning_rate"] |= {"final": 1e-5, "decay_steps": 3_000}
    return config


def make_fashion_mnist_small() -> dict:
    config = make_digits()
    config["data"] = image_section("fashion_mnist", batch_size=64)
    config["network"]["widths"] = (8, 16, 32)
    config["latent_dim"] = 32
    # At the digits' rate and without a floor it diverges within 100 steps.
    config["objective"]["energy_floor"] = -10.0
    config["optimizer"]["learning_rate"] |= {"start": 2e-4, "decay_steps": 2_000}
    config["train"] |= {"num_steps": 2_000, "num_joint_steps": 1_500}
    evaluation = config["evaluation"]
    evaluation |= {"num_samples": 1_000, "num_examples": 1_000}
    evaluation["classifier_steps"] = 1_000
    evaluation["sampler"]["temperatures"] = (0.1,)
    return config


def make_own() -> dict:
    return make_fashion_mnist_small() | {"data": image_section("arrays")}


def make_mnist_small() -> dict:
    """Returns a config for an hour of one CPU core."""
    config = make_fashion_mnist_small()
    config["data"] = image_section("mnist", batch_size=64)
    config["network"]["widths"] = (16, 32, 64)
    config["optimizer"]["learning_rate"] |= {"start": 3e-4, "decay_steps": 3_000}
    config["ema_decay"] = 0.99
    config["train"] |= {"num_steps": 3_000, "num_joint_steps": 2_250}
    config["evaluation"] |= {"num_samples": 2_000, "num_examples": 10_000}
    config["evaluation"]["classifier_steps"] = 4_000
    config["evaluation"]["sampler"] |= {
        "names": ("langevin", "underdamped"),
        "chain_lengths": (10, 30, 60, 100),
    }
    return config


def make_paper_scale(name: str, network: dict | None = None) -> dict:
    config = make_digits()
    config["data"] = image_section(name, batch_size=128, size=32)
    config["network"] = network or {"name": "sngan", "widths": (64, 128, 256, 512)}
    config["network"] |= {
        "is_synchronized": True,  # whether batch statistics are of all devices
        "compute_dtype": "float32",  # or "bfloat16"; parameters stay float32
    }
    config["latent_dim"] = 100
    config["objective"]["energy_floor"] = -10.0
    config["players"] |= {"num_extra_updates": 100, "redescends": True}
    config["optimizer"] = adam_section(1e-4, b1=0.5, b2=0.999)
    config["train"] |= {"num_steps": 160_000, "num_joint_steps": 150_000}
    config["train"] |= {"eval_every": 20_000, "checkpoint_every": 1_000}
    config["evaluation"] |= {"num_samples": 10_000, "classifier_steps": 4_000}
    config["evaluation"]["sampler"] |= {
        "chain_lengths": (10, 50, 100, 200, 500, 1_000),
        "temperatures": (1.0, 0.1, 0.01, 0.001),
        # In this convention half of the published 1e-4 at a temperature of .01.
        "step_size": 0.005,
    }
    return config


PRESETS = {
    "digits": make_digits,
    "own": make_own,
    "fashion_mnist_small": make_fashion_mnist_small,
    "mnist_small": make_mnist_small,
    "mnist": lambda: make_paper_scale("mnist"),
    "fashion_mnist": lambda: make_paper_scale("fashion_mnist"),
    "cifar10": lambda: make_paper_scale("cifar10"),
    "cifar10_resnet": lambda: make_paper_scale(
        "cifar10",
        network={
            "name": "sngan_resnet",
            "width": 128,  # channels of every block
        },
    ),
    "celeb_a": lambda: make_paper_scale("celeb_a"),
    "lsun": lambda: make_paper_scale("lsun"),
    "imagenet32": lambda: make_paper_scale("imagenet32"),
}

CHOICES = {"data": IMAGES, "network": NETWORKS}


def get_config(preset: str = "digits") -> ConfigDict:
    """Returns the locked config of `"preset"` or of `"preset,estimator"`."""
    return make_config(PRESETS, preset)


def draw_samples(config, refine, key: Key, num: int) -> np.ndarray:
    """Returns draws of the model, `[num, *image_shape]`: see `load`."""
    latent_key, chain_key = jax.random.split(key)
    latents = jax.random.normal(latent_key, (num, config.latent_dim))
    return sample_model(config.evaluation.sampler, refine, chain_key, latents)


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment: base and energy are trained, and chains are judged."""
    data = load_section(config.data)
    options, section = config.evaluation, config.evaluation.sampler
    plots.check()
    check_players(config.players)
    check_sampler(section)
    check_counts(
        "evaluation",
        options,
        num_samples=2,  # a covariance's
        num_examples=2,
        num_shown=1,
        chunk_size=1,
        classifier_steps=1,
    )
    with fitting(config.data, data.image_shape):
        built, latent_dim = make_networks(config, data.image_shape), config.latent_dim
    params, model_state = {"log_partition": jnp.zeros(())}, {}
    for index, (name, network) in enumerate(built.items()):
        params[name], state = network.init(jax.random.fold_in(keys.params, index))
        if state:
            model_state[f"{name}_state"] = state
    energy, base = built["energy"], built["base"]
    players = {
        "energy": energy_player(config, energy, base, latent_dim),
        "base": base_player(config, energy, base, latent_dim),
    }
    measure = make_measure(config, data)
    # The same latents for the base and for every chain, at every evaluation.
    latents = jax.random.normal(keys.evaluation, (options.num_samples, latent_dim))

    def evaluate(state, key, directory):
        energy_fn, generator_fn = bind_networks(
            config, built, evaluated_params(state), state.model_state
        )
        refine = make_refine(section, energy_fn, generator_fn)
        generate = jax.jit(jax.vmap(generator_fn))
        measured, shown, rates = {}, {}, {}
        chained = []

        def record(drawn):
            """Measures images and forgets them: all of them would not fit in memory."""
            measured.update(measure(drawn))
            shown.update({k: x[: options.num_shown] for k, x in drawn.items()})

        record({"base": in_chunks(generate, latents, options.chunk_size)})
        for index, name in enumerate(section.names):
            temperatures = section.temperatures if name != "transport" else (1.0,)
            for place, temperature in enumerate(temperatures):
                chain_key = jax.random.fold_in(jax.random.fold_in(key, index), place)
                refined = refine(name, chain_key, latents, temperature)
                cells = {
                    _cell(name, temperature, length): chains
                    for length, chains in refined.items()
                }
                record({cell: chains.x for cell, chains in cells.items()})
                rates |= {
                    cell: chains.acceptance_rate
                    for cell, chains in cells.items()
                    if not math.isnan(chains.acceptance_rate)
                }
                chained.append((name, temperature))
        distances = {name: row["frechet_distance"] for name, row in measured.items()}
        relative = {
            name: 100 * value / distances["base"] for name, value in distances.items()
        }
        _report(directory, config, measured, relative, rates, chained, shown)
        sample_key = jax.random.fold_in(key, len(section.names))
        save_arrays(
            directory / "samples.npz",
            samples=draw_samples(config, refine, sample_key, options.num_samples),
            key=jax.random.key_data(sample_key),
        )
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
            | describe_chosen(measured, shown, relative)
            | {f"acceptance_rate_{name}": rate for name, rate in rates.items()}
        )

    def batches(key, size):
        return image_batches(key, data.train, size, num_levels=data.num_levels)

    return make_experiment(
        config,
        keys,
        players,
        batches,
        params=params,
        evaluate=evaluate,
        model_state=model_state,
        facts={"image_shape": list(data.image_shape)},
        programs=make_programs(config, built),
    )._replace(data_digest=digest(data.train, data.held_out))


def make_programs(config, built: dict[str, Network]) -> dict:
    """Returns the large programs of the evaluation, see `Experiment.programs`."""
    options, section = config.evaluation, config.evaluation.sampler

    def draw(params, model_state, key):
        _, generator_fn = bind_networks(config, built, params, model_state)
        latents = jax.random.normal(key, (options.chunk_size, config.latent_dim))
        return jax.vmap(generator_fn)(latents)

    def move(params, model_state, key):
        bound = bind_networks(config, built, params, model_state)
        chains = make_chains("langevin", section, *bound, section.temperatures[0])
        latents = jax.random.normal(key, (options.num_samples, config.latent_dim))
        return chains(key, latents, section.chain_lengths[-1], 1.0)[0]

    return {"base": draw, "latent chains": move}


def describe_chosen(measured, shown, relative) -> dict[str, float]:
    """Returns scalars of the base's draws, and of the chains that are chosen.

    Chains are chosen by `distance_to_choose`, and `relative_chosen` is the percentage
    of the base's distance that is left in the data which chose nothing. Inception's
    distances are to all training images, and nothing is chosen by them.
    """
    chains = [name for name in shown if name != "base"]
    if not chains or "distance_to_choose" not in measured[chains[0]]:
        return {}
    chosen = min(chains, key=lambda name: measured[name]["distance_to_choose"])
    scalars = {"relative_chosen": relative[chosen]}
    for name, row in (("base", measured["base"]), ("chosen", measured[chosen])):
        scalars |= {f"{name}_{column}": value for column, value in row.items()}
    return scalars


def make_measure(config, data: Images):
    """Returns `measure(name -> images) -> (name -> row)` with a `frechet_distance`.

    The distance is in Inception's features if its weights are given, else in those of a
    classifier, or of pixels if there are no labels. The judge then has its references
    in the names, and the other columns of its table in the rows.
    """
    options = config.evaluation
    if options.inception_weights:
        inception = Inception(options.inception_weights, data.num_levels)
        return lambda x: {
            name: {
                "frechet_distance": inception.measure(
                    quantize(images, data.num_levels), data.train
                )["frechet_inception_distance"]
            }
            for name, images in x.items()
        }
    judge = make_judge(data, options.num_examples, options.classifier_steps)

    def measure(x):
        clipped = {name: images.clip(-1, 1) for name, images in x.items()}
        return {
            row.pop("name"): {"frechet_distance": row.pop(judge.distance)} | row
            for row in judge.table(clipped, chooses=True)
        }

    return measure


def _cell(name: str, temperature: float, length: int) -> str:
    return f"{name}_{temperature:g}_{length}"


def _report(
    directory: pathlib.Path, config, measured, relative, rates, chained, shown
) -> None:
    """Writes a table, curves over the chains' length and strips of the same latents."""
    options, section = config.evaluation, config.evaluation.sampler
    table = [
        {
            "name": name,
            "frechet_distance": row["frechet_distance"],
            "percent_of_base": relative[name],
            "acceptance_rate": rates.get(name, "-"),
        }
        | {k: row[k] for k in ("confident_share", "distance_to_choose") if k in row}
        for name, row in measured.items()
    ]
    write_atomically(directory / "quality.md", format_table(table))
    lengths = np.array([0, *section.chain_lengths])
    panels = {}
    for name, temperature in chained:
        shares = [relative[_cell(name, temperature, n)] for n in section.chain_lengths]
        panel = panels.setdefault(f"temperature {temperature:g}", {})
        panel[name] = (lengths, np.array([100.0, *shares]))
    plots.curves(
        directory / "chains.png",
        panels,
        x_label="moves",
        y_label="Fréchet distance, percent of the base's",
    )
    # Each sampler is shown at its best temperature, from the base's draw to the last.
    strips = {}
    for name in section.names:
        best = min(
            (temperature for other, temperature in chained if other == name),
            key=lambda t: relative[_cell(name, t, section.chain_lengths[-1])],
        )
        cells = [_cell(name, best, length) for length in section.chain_lengths]
        images = np.stack([shown[cell] for cell in ("base", *cells)])
        title = f"{name}, temperature {best:g}: after 0, " + ", ".join(
            map(str, section.chain_lengths)
        )
        strips[title] = images.reshape(-1, *images.shape[2:])
    plots.image_panels(directory / "strips.png", strips, columns=options.num_shown)


def sweep(preset: str) -> Sweep:
    """Returns the plan of three seeds of a preset."""
    return Sweep({preset or "digits": Cell(preset)}, num_seeds=3)


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model.

    The model is the base's law, reweighed by `exp(-energy_fn(x))`: it has an energy
    and no density of images. `sample` begins at latents of its own and moves them by
    the first of `evaluation.sampler.names` at the first of its temperatures, to the
    last of its lengths.
    """
    built = make_networks(config, facts["image_shape"])
    energy_fn, generator_fn = bind_networks(config, built, params, model_state)
    refine = make_refine(config.evaluation.sampler, energy_fn, generator_fn)
    sample = functools.partial(draw_samples, config, refine)
    return Trained(
        config, params, model_state, built, energy_fn=energy_fn, sample=sample
    )


if __name__ == "__main__":
    cli.main(build, __file__, sweep)
