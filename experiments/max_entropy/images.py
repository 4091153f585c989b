r"""Maximum entropy generators of images, judged by a classifier or by Inception.

Paper: Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
energy-based models", https://arxiv.org/abs/1901.08508.
Claim checked: the generator's draws are as good as those of a GAN, and chains of the
energy that start from them stay among the data.

    python -m experiments.max_entropy.images --workdir=runs/digits
    python -m experiments.max_entropy.images --workdir=runs/cifar --config=cifar10 \
        --config.evaluation.inception_weights=pt_inception.pth
    python -m experiments.max_entropy.images --workdir=runs/seeds --sweep --seeds=3

Presets: `digits` (embedded images, ten minutes of a CPU core), `mnist_small` and
`fashion_mnist_small` (28 x 28, an hour of one core), `own` (your own images:
`data.path` is a folder of pictures, a `.npy` or an `.npz` file), and `cifar10` and
`celeb_a` (the paper's scale, for GPU or TPU). After a comma stands the method:
`max_entropy`, the default, `wgan_gp` or `gan`. The sweep is over seeds.
"""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.data import (
    digest,
    fitting,
    image_batches,
    image_section,
    in_chunks,
    load_section,
    quantize,
)
from experiments.data.choices import IMAGES
from experiments.judge import plots
from experiments.judge.detection import save_energies
from experiments.judge.inception import Inception
from experiments.judge.judge import make_judge, record_quality
from experiments.max_entropy.model import (
    FAMILIES,
    bind_networks,
    draw_and_move,
    load_networks,
    make_networks,
    plot_images,
)
from experiments.max_entropy.players import (
    evaluation_chains,
    image_training,
    make_config,
    make_experiment,
)
from experiments.run import cli
from experiments.run.config import check_counts, train_section
from experiments.run.experiment import Experiment, Keys, Trained, evaluated_params


def make_cifar10() -> dict:
    """Returns the problem's default, the paper's training of images."""
    return {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": image_section("cifar10"),
        "networks": {
            "name": "convnet",  # or "strided", which has no `is_normal`
            "widths": (64, 128, 256, 512),  # channels of the energy's maps
            "hidden_width": 512,  # of the statistics network
            "is_normal": True,  # whether kernels start normal, else uniform by fan-in
            "is_synchronized": True,  # whether batch statistics are of all devices
            "compute_dtype": "float32",  # or "bfloat16"; parameters stay float32
        },
        "latent_dim": 128,  # paper: the length of z
        **image_training(),
        "train": train_section(100_000, eval_every=10_000),  # of the generator
        "evaluation": {
            "num_samples": 10_000,  # draws of the generator
            "num_examples": 10_000,  # images of each split, to compare with
            "num_chains": 1_000,  # of every kind
            "chunk_size": 500,  # draws at a time
            "num_shown": 100,  # draws in the picture
            "classifier_steps": 4_000,  # of the classifier's training; 0 for no table
            "inception_weights": "",  # file of Inception v3's, for FID and IS; or ""
            "num_inception": 50_000,  # draws for them, beside all training images
            **evaluation_chains(),
        },
    }


def make_celeb_a() -> dict:
    config = make_cifar10()
    config["data"] = image_section("celeb_a", size=64)
    config["networks"] |= {"widths": (64, 128, 256, 512, 512), "is_normal": False}
    config["evaluation"] |= {"classifier_steps": 0, "num_examples": 2_000}
    return config


def make_digits() -> dict:
    config = make_cifar10()
    config["data"] = {
        "name": "digits",
        "batch_size": 64,  # of all devices
        "num_examples": 0,  # first images trained on; 0 for all
    }
    config["networks"] = {
        "name": "strided",
        "widths": (32, 64),  # channels of the energy's maps
        "hidden_width": 128,  # of the statistics network
    }
    config["latent_dim"] = 16
    config["optimizer"]["learning_rate"] |= {
        "start": 5e-4,
        "final": 1e-5,
        "decay_steps": 12_000,
    }
    config["train"] |= {"num_steps": 12_000, "eval_every": 0, "checkpoint_every": 500}
    config["evaluation"] |= {"num_samples": 2_000, "classifier_steps": 700}
    return config


def make_mnist_small(name: str) -> dict:
    """Returns a config for an hour of one CPU core."""
    config = make_digits()
    config["data"] = image_section(name, batch_size=64)
    config["latent_dim"] = 32
    # A mean over the pixels: a tenth of the squared norm of the slope. The paper's 10
    # is an eighth of this, and weaker than in its predecessor.
    config["objective"]["score_penalty"] = 78.4
    config["ema_decay"] = 0.999
    config["evaluation"] |= {"num_samples": 10_000, "classifier_steps": 4_000}
    return config


def make_own() -> dict:
    config = make_mnist_small("arrays")
    config["evaluation"]["num_samples"] = 2_000
    return config


PRESETS = {
    "digits": make_digits,
    "mnist_small": lambda: make_mnist_small("mnist"),
    "fashion_mnist_small": lambda: make_mnist_small("fashion_mnist"),
    "own": make_own,
    "cifar10": make_cifar10,
    "celeb_a": make_celeb_a,
}

CHOICES = {"data": IMAGES, "networks": FAMILIES}


def get_config(preset: str = "digits") -> ConfigDict:
    """Returns the locked config of `"preset"` or of `"preset,method"`."""
    return make_config(PRESETS, preset)


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment of a config."""
    data = load_section(config.data)
    with fitting(config.data, data.image_shape):
        nets = make_networks(config, data.image_shape)
    return make_experiment(
        config,
        keys,
        nets,
        batches=functools.partial(
            image_batches, keys.data, data.train, num_levels=data.num_levels
        ),
        evaluate=make_evaluation(config, data, nets),
        facts={"event_shape": list(data.image_shape)},
    )._replace(data_digest=digest(data.train, data.held_out))


def make_evaluation(config, data, nets):
    """Returns `evaluate(state, key, directory) -> scalars`."""
    options = config.evaluation
    plots.check()
    check_counts(
        "evaluation",
        options,
        num_samples=1,
        num_examples=1,
        num_chains=1,
        chunk_size=1,
        num_shown=1,
        classifier_steps=0,
    )
    judge = make_judge(data, options.num_examples, options.classifier_steps)
    examples = np.concatenate([judge.train, judge.held_out])
    inception = None
    if options.inception_weights:
        inception = Inception(options.inception_weights, data.num_levels)

    def evaluate(state, key, directory):
        energy_fn, generator_fn = bind_networks(
            nets, evaluated_params(state), state.model_state
        )
        x, sampled = draw_and_move(
            config,
            energy_fn,
            generator_fn,
            key,
            max(options.num_samples, options.num_inception if inception else 0),
            directory / "samples.npz",
            num_saved=options.num_samples,
            chunk_size=options.chunk_size,
        )
        scalars = {}
        if inception is not None:
            levels = quantize(x[: options.num_inception], data.num_levels)
            scalars |= inception.measure(levels, data.train)
        x = x[: options.num_samples]
        plot_images(directory, x, sampled.x, options.num_shown)
        energies = functools.partial(
            in_chunks, jax.jit(jax.vmap(energy_fn)), size=options.chunk_size
        )
        of_examples, of_samples = energies(examples), energies(x)
        scalars |= sampled.scalars | {
            "energy_data": float(of_examples.mean()),
            "energy_model": float(of_samples.mean()),
        }
        of_train, of_held_out = np.split(of_examples, [len(judge.train)])
        found = {"train": of_train, "held_out": of_held_out, "samples": of_samples}
        save_energies(directory, found)
        if not options.classifier_steps:
            return scalars
        chained = {k: v.clip(-1, 1) for k, v in sampled.x.items()}
        drawn = {"samples": x.clip(-1, 1)}
        return scalars | record_quality(directory, judge, drawn, chained)

    return evaluate


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model: `exp(-energy_fn(x))` is its density up to a constant,
    of images in [-1, 1], and `sample` makes draws of its generator."""
    return load_networks(config, facts["event_shape"], params, model_state)


if __name__ == "__main__":
    cli.main(build, __file__)
