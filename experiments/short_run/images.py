r"""Short-run MCMC on images: an energy trained for K Langevin moves from noise, and
what its chain can then do: synthesis, interpolation, reconstruction, inpainting and
super-resolution.

Paper: Nijkamp, Hill, Zhu & Wu (2019), "Learning non-convergent non-persistent short-run
MCMC toward energy-based model", https://arxiv.org/abs/1904.09770.
Claim checked: the law of a chain of K moves matches the data, and its samples are
sharper than a Gaussian fitted to the data, although `exp(-E)` need not match them.

    python -m experiments.short_run --workdir=runs/digits
    python -m experiments.short_run.images --workdir=runs/mnist --config=mnist \
        --config.data.data_dir=DIR
    python -m experiments.short_run.images --workdir=runs/own --config=own \
        --config.data.path=FOLDER
    python -m experiments.short_run --workdir=runs/sweep --sweep

Presets: `digits` (embedded 8x8 images, 3 to 9 minutes on two CPU cores), `mnist_small`
and `fashion_mnist_small` (28x28, 15 minutes of one core), `own` (your own images: a
folder of pictures, a `.npy` or an `.npz` file), `mnist`, `fashion_mnist`, and at the
paper's scale, for GPU or TPU, `cifar10`, `celeb_a` (64x64) and `celeb_a_128`. The sweep
varies the number of moves, the data noise and the width.
"""

import functools
from typing import Any

import jax
from ml_collections import ConfigDict

from ebmjax import samplers
from ebmjax.types import Key
from experiments.data import (
    digest,
    fitting,
    image_batches,
    image_section,
    load_section,
)
from experiments.data.choices import IMAGES
from experiments.run import cli
from experiments.run.config import adam_section, check_name, train_section
from experiments.run.experiment import Experiment, Keys, Trained
from experiments.run.sweep import Cell, Sweep
from experiments.short_run.inverse import make_evaluation
from experiments.short_run.model import (
    NETWORKS,
    SAMPLERS,
    STARTS,
    Model,
    bind_model,
    draw_chunks,
    make_model,
    make_players,
    run_chains,
)


def image_preset(name: str, **data) -> dict[str, Any]:
    """Returns the paper's config for a data set of images."""
    optimizer = adam_section(1e-4, b1=0.9, b2=0.999)  # paper: eta
    optimizer["learning_rate"] |= {
        "final": 1e-5,  # after the decay; paper: eta is the rate
        "decay": "exponential",
        "decay_start": 200_000,
        "decay_steps": 50_000,
    }
    # data.batch_size is also the number of chains; paper: m.
    return {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": image_section(name, **{"num_examples": 40_000, **data}),
        "network": {
            "name": "short_run",  # or "resnet", "wide_resnet", "mlp"
            "width": 64,  # channels of the first layer; paper: n_f
            "negative_slope": 0.2,  # of the leaky ReLUs
            "compute_dtype": "float32",  # or "bfloat16"; parameters stay float32
        },
        "sampler": {
            "name": "langevin",  # or "mala"
            "step_size": 1.0,  # x^2 / energy; paper: 1, its move is x - a grad E + b n
            "temperature": 5e-5,  # energy; b^2 / (2 a) with the paper's b = 0.01
        },
        "start": {
            "name": "noise",  # or "data", "replay"
            "law": "uniform",  # or "normal"; paper: uniform on [-1, 1]
            "scale": 1.0,  # x; half the width of the law, or its standard deviation
        },
        "objective": {
            "num_steps": 100,  # moves from noise; paper: K
            "energy_penalty": 0.0,  # weight of the mean squared energies
            "last_step_gradient": False,  # whether the last move is differentiated
            "entropy_weight": 0.0,  # weight of the chains' entropy
        },
        "data_noise": {
            "start": 0.03,  # x, standard deviation before the decay; paper: sigma
            "final": 0.02,  # x, standard deviation after the decay
            "decay": "exponential",  # or "cosine", "linear"
            "decay_start": 200_000,  # updates
            "decay_steps": 50_000,  # updates
        },
        "optimizer": optimizer,
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for no average
        "train": train_section(
            250_000,
            eval_every=25_000,
            checkpoint_every=5_000,
            best="samples_classifier_frechet_distance",
            abort_above=1e5,
        ),
        "evaluation": {
            "num_samples": 10_000,  # samples that the classifier judges
            "num_examples": 10_000,  # data they are compared with, of either split
            "chunk_size": 500,  # chains at a time
            "num_shown": 100,  # samples in the picture
            "num_inverted": 64,  # held-out images that are reconstructed and inpainted
            "num_iterations": 200,  # updates of the gradient descent for these
            "iteration_step": 0.05,  # step size of this descent
            "jacobian": "identity",  # exact for leaky ReLUs; else "autodiff"
            "long_run_steps": 10_000,  # moves of the long chains; 0 for no long chains
            "num_long_run": 64,  # long chains
            "classifier_steps": 4_000,  # updates of the classifier; 0 for no classifier
            "out_of_distribution": ("uniform", "gaussian"),  # or names of data sets
        },
    }


def digits() -> dict[str, Any]:
    config = image_preset("digits")
    for key in ("data_dir", "download", "size"):
        del config["data"][key]
    config["data"] |= {"num_examples": 0}
    config["network"]["width"] = 32
    # A high learning rate buys the most in minutes; the penalty and the clip keep it
    # from running away, which it otherwise does for some seeds.
    config["objective"] |= {"num_steps": 20, "energy_penalty": 0.01}
    config["optimizer"]["gradient_clip"] = 1.0
    config["data_noise"] |= {"start": 0.1, "final": 0.03}
    config["data_noise"] |= {"decay_start": 0, "decay_steps": 2_400}
    config["optimizer"]["learning_rate"] |= {
        "start": 3e-3,
        "final": 1.5e-4,
        "warmup_steps": 100,
        "decay": "cosine",
        "decay_start": 0,
        "decay_steps": 3_000,
    }
    config["ema_decay"] = 0.99
    config["train"] |= {
        "num_steps": 3_000,
        "eval_every": 0,
        "checkpoint_every": 500,
    }
    config["evaluation"] |= {"num_samples": 2_000, "classifier_steps": 700}
    return config


def mnist(name: str, others: tuple[str, ...]) -> dict[str, Any]:
    config = image_preset(name, num_examples=0)
    config["network"]["width"] = 32
    config["train"] |= {"num_steps": 60_000, "eval_every": 10_000}
    for schedule in (config["data_noise"], config["optimizer"]["learning_rate"]):
        schedule |= {"decay_start": 40_000, "decay_steps": 20_000}
    config["evaluation"]["out_of_distribution"] = ("uniform", "gaussian", *others)
    return config


def mnist_small(name: str, others: tuple[str, ...]) -> dict[str, Any]:
    """Returns a config for 15 minutes of one CPU core: short chains, and a high rate.

    The penalty, the clip and the average are not in the paper. Training ends before the
    schedules do: the slope of the energy grows until chains of these few moves lose the
    data, here after 2,100 updates, and after 1,200 at a rate of 0.001. With a penalty
    of 0.05 chains never reach the data, because the energy then differs by 20 nats.
    """
    config = mnist(name, others)
    config["network"]["width"] = 24
    config["objective"] |= {"num_steps": 20, "energy_penalty": 0.01}
    config["optimizer"]["gradient_clip"] = 1.0
    config["data_noise"] |= {"start": 0.1, "final": 0.05}
    config["data_noise"] |= {"decay_start": 0, "decay_steps": 3_000}
    config["optimizer"]["learning_rate"] |= {
        "start": 4e-4,
        "final": 2e-5,
        "warmup_steps": 100,
        "decay": "cosine",
        "decay_start": 0,
        "decay_steps": 3_000,
    }
    config["ema_decay"] = 0.995
    config["train"] |= {"num_steps": 1_800, "eval_every": 0, "checkpoint_every": 300}
    config["train"]["best"] = ""
    config["evaluation"]["long_run_steps"] = 2_000
    return config


def cifar10() -> dict[str, Any]:
    config = image_preset("cifar10")
    config["network"]["width"] = 128
    config["evaluation"]["num_samples"] = 40_000
    return config


def celeb_a(size: int) -> dict[str, Any]:
    config = image_preset("celeb_a", size=size)
    # There are no labels, hence no classifier: the samples are looked at, not measured.
    config["evaluation"] |= {
        "classifier_steps": 0,
        "num_samples": 0,
        "num_examples": 2_000,
        "out_of_distribution": ("uniform",),
    }
    config["train"]["best"] = ""
    return config


def own() -> dict[str, Any]:
    """Returns a config for images of your own, with the settings of `mnist_small`."""
    config = mnist_small("arrays", ())
    config["evaluation"] |= {"num_samples": 2_000, "num_iterations": 100}
    return config


PRESETS = {
    "digits": digits,
    "own": own,
    "mnist": lambda: mnist("mnist", ("fashion_mnist", "kmnist", "omniglot")),
    "fashion_mnist": lambda: mnist("fashion_mnist", ("mnist", "kmnist", "omniglot")),
    "mnist_small": lambda: mnist_small("mnist", ("fashion_mnist", "kmnist")),
    "fashion_mnist_small": lambda: mnist_small("fashion_mnist", ("mnist", "kmnist")),
    "cifar10": cifar10,
    "celeb_a": lambda: celeb_a(64),
    "celeb_a_128": lambda: celeb_a(128),
}

CHOICES = {
    "data": IMAGES,
    "network": NETWORKS,
    "sampler": SAMPLERS,
    "start": STARTS,
}


def get_config(preset: str = "digits") -> ConfigDict:
    """Returns the locked config of a preset."""
    check_name("preset", preset, PRESETS)
    return ConfigDict(PRESETS[preset]()).lock()


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment of a config."""
    data = load_section(config.data)
    with fitting(config.data, data.image_shape):
        model = make_model(config, data.image_shape)
    params, _ = model.network.init(keys.params)  # no network here has a mutable state
    return Experiment(
        players=make_players(config, model),
        params={"energy": params},
        batch=image_batches(
            keys.data, data.train, config.data.batch_size, num_levels=data.num_levels
        ),
        evaluate=make_evaluation(config, data, model, keys.evaluation),
        facts={"event_shape": list(data.image_shape)},
        data_digest=digest(data.train, data.held_out),
        programs=make_programs(config, model),
    )


def make_programs(config: ConfigDict, model: Model) -> dict[str, Any]:
    """Returns the large programs of the evaluation, see `Experiment.programs`."""
    options = config.evaluation

    def draw(params, model_state, key):
        start_key, chain_key = jax.random.split(key)
        num, num_steps = options.chunk_size, config.objective.num_steps
        energy = params["energy"]
        return run_chains(model, energy, start_key, chain_key, num, num_steps)

    def reconstruct(params, model_state, key):
        energy_fn = functools.partial(model.network.apply, params["energy"])
        z = model.draw_noise(key, (options.num_inverted, *model.event_shape))
        generate = samplers.chain_generator(
            model.sampler,
            energy_fn,
            config.objective.num_steps,
            jacobian=options.jacobian,
        )
        return samplers.invert_chain(
            generate,
            key,
            z,
            z,
            num_iterations=options.num_iterations,
            step_size=options.iteration_step,
        )

    return {"samples": draw, "reconstruction": reconstruct}


# The paper's three tables in small: the number of moves K, with the larger data noise
# that fewer moves need; the data noise; and the width.
CELLS = {
    **{
        f"K={num_steps}": {
            "objective.num_steps": num_steps,
            "data_noise.final": noise,
        }
        for num_steps, noise in ((5, 0.1), (10, 0.05), (20, 0.03), (40, 0.03))
    },
    **{
        f"noise={noise}": {
            "data_noise.final": noise,
            "data_noise.start": max(noise, 0.1),
        }
        for noise in (0.4, 0.2, 0.1, 0.05, 0.03)
    },
    **{f"width={width}": {"network.width": width} for width in (8, 16, 32, 64)},
}

# The table does not show these parts of the evaluation, so they are cut short.
CUT = {"evaluation.long_run_steps": 0, "evaluation.num_iterations": 50}


def sweep(preset: str) -> Sweep:
    """Returns the plan of the paper's tables over K, data noise and width."""
    return Sweep(
        cells={name: Cell(preset, CUT | values) for name, values in CELLS.items()},
        columns=(
            "samples_classifier_frechet_distance",
            "samples_confident_share",
            "reconstruction_mse",
            "gradient_norm_times_steps",
        ),
    )


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model.

    Its density is `exp(-energy_fn(x) / config.sampler.temperature)` up to a constant.
    The model is the chain, though: `sample(key, num)` runs `config.objective.num_steps`
    moves from noise, `config.evaluation.chunk_size` chains at a time. Samples are not
    clipped to [-1, 1].
    """
    model = make_model(config, tuple(facts["event_shape"]))

    def sample(key: Key, num: int):
        num_steps, size = config.objective.num_steps, config.evaluation.chunk_size
        return draw_chunks(model, params["energy"], key, num, num_steps, size)[0][:num]

    return bind_model(config, model, params, model_state, sample)


if __name__ == "__main__":
    cli.main(build, __file__, sweep)
