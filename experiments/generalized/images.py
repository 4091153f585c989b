"""Generalised energy-based models: a base that draws, and an energy that reweighs it.

Paper: Arbel, Zhou & Gretton (2021), "Generalized energy based models".
Claim checked: an energy learned beside a base corrects the base's weights; sampling its
latents gives better draws than the base's; with flows for both it is a density whose
likelihood is comparable to that of direct maximum likelihood.

    python -m experiments.generalized --workdir=runs/digits
    python -m experiments.generalized --workdir=runs/curve         --config=experiments/generalized.py:curve
    python -m experiments.generalized --workdir=runs/uci --sweep         --config=experiments/generalized.py:red_wine --config.data.data_dir=DIR

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

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import networks
from ebmjax.objectives import generalized
from experiments.data import (
    Images,
    image_batches,
    image_section,
    in_chunks,
    load_section,
    quantize,
)
from experiments.generalized.circle import _circle, _on_circle
from experiments.generalized.curve import _curve, _on_curve
from experiments.generalized.latents import check_sampling, refine
from experiments.generalized.players import (
    ESTIMATORS,
    _base_player,
    _batch,
    _energy_player,
    _floor,
    _phases,
    _preset,
    _sampling,
)
from experiments.generalized.tables import BASELINES, UCI, _of_table, _uci, _with_method
from experiments.judge import generators, plots
from experiments.judge.inception import Inception
from experiments.judge.judge import make_judge
from experiments.run.config import check_counts, construct
from experiments.run.experiment import Experiment, Keys, evaluated_params
from experiments.run.workdir import format_table, write_atomically


def _images(name: str, network: dict, latent_dim: int = 100, **others) -> dict:
    config = _preset(
        image_section(name, batch_size=128),
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


def get_config(preset: str = "digits") -> ConfigDict:
    name, _, method = preset.partition(",")
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    methods = ESTIMATORS + (tuple(BASELINES) if name in UCI else ())
    if method and method not in methods:
        raise ValueError(f"method must be one of {sorted(methods)}, got {method!r}")
    return _with_method(ConfigDict(PRESETS[name]()), method or "kale").lock()


def build(config: ConfigDict, keys: Keys) -> Experiment:
    name = config.data.name
    if name not in KINDS and "num_examples" not in config.data:
        raise ValueError(
            f"data.name must be one of {sorted(KINDS)} in this preset, got {name!r}"
        )
    check_counts(
        "players",
        config.players,
        num_energy_updates=1,
        num_extra_updates=0,
        extra_every=0,
    )
    return KINDS.get(name, _of_images)(config, keys)


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


def _of_images(config, keys) -> Experiment:
    data = load_section(config.data)
    options, sampling = config.evaluation, config.evaluation.sampling
    plots.check()
    check_sampling(sampling)
    check_counts(
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
    base, energy = construct(section, NETWORKS, data.image_shape, latent_dim)
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
        found = evaluated_params(state)
        generator_fn, energy_fn = (
            generators.bind(
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

        record({"base": in_chunks(of_chunk, latents, options.chunk_size)})
        for index, name in enumerate(sampling.samplers):
            temperatures = sampling.temperatures if name != "transport" else (1.0,)
            for place, temperature in enumerate(temperatures):
                refined = refine(
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
        return image_batches(key, data.train, size, num_levels=data.num_levels)

    return Experiment(
        players=players,
        params=params,
        batch=_batch(config, keys.data, players, batches, **phases),
        evaluate=evaluate,
        model_state=model_state,
        **phases,
    )


def _judge(config, data: Images):
    """`name -> images` to `name -> Frechet distance`, by Inception's features where its
    weights are given, else by a classifier's, with its references beside."""
    options = config.evaluation
    if options.inception_weights:
        inception = Inception(options.inception_weights, data.num_levels)
        return lambda x: {
            name: inception.measure(quantize(images, data.num_levels), data.train)[
                "frechet_inception_distance"
            ]
            for name, images in x.items()
        }
    if data.labels_train is None:
        raise ValueError(
            f"{config.data.name} has no labels for a classifier:"
            " evaluation.inception_weights must be the file of Inception v3's, got ''"
        )
    judge = make_judge(data, options.num_examples, options.classifier_steps)
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
    write_atomically(directory / "quality.md", format_table(table))
    lengths = np.array([0, *sampling.chain_lengths])
    panels = {}
    for name, temperature in chained:
        shares = [relative[_cell(name, temperature, n)] for n in sampling.chain_lengths]
        panel = panels.setdefault(f"temperature {temperature:g}", {})
        panel[name] = (lengths, np.array([100.0, *shares]))
    plots.curves(directory / "chains.png", panels, x_label="moves")
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
    plots.image_panels(directory / "strips.png", strips, columns=options.num_shown)


KINDS = {name: _of_table for name in UCI} | {
    "circle": _on_circle,
    "curve": _on_curve,
}


if __name__ == "__main__":
    main(build, __file__, sweep)
