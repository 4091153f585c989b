r"""Score-based models of images: one network of scores at all noise scales, sampled by
annealed Langevin dynamics or by diffusions run backwards, with the likelihood of its
probability flow.

Papers: Song & Ermon (2019), "Generative modeling by estimating gradients of the data
distribution" (NCSN), https://arxiv.org/abs/1907.05600, and (2020), "Improved techniques
for training score-based generative models" (NCSNv2), https://arxiv.org/abs/2006.09011;
Song et al. (2021), "Score-based generative modeling through stochastic differential
equations", https://arxiv.org/abs/2011.13456; with Song & Kingma (2021), "How to train
your energy-based models", section 4.4, https://arxiv.org/abs/2101.03288.
Claim checked: the samples of a score-based model are at least as good as those of an
energy, and it has a likelihood.

    python -m experiments.score_based --workdir=runs/scores
    python -m experiments.score_based.images --workdir=runs/ladder \
        --config=digits,ladder
    python -m experiments.score_based.images --workdir=runs/energy \
        --config.network.is_energy=True
    python -m experiments.score_based --workdir=runs/processes --sweep

Presets: `digits` (embedded 8x8 images, 9 to 18 minutes on one CPU core), `mnist_small`
and `fashion_mnist_small` (28x28, a narrow network for an hour of one core), `own` (the
same for your own images: `data.path` is a folder of pictures, a `.npy` or an `.npz`
file), and for GPU or TPU `mnist`, `fashion_mnist`, and at the papers' scale `cifar10`.
After a comma follows the process: `variance_exploding`, `variance_preserving`,
`sub_variance_preserving`, or `ladder` for annealed Langevin dynamics through NCSNv2's
noise scales. With `network.is_energy` the network is an energy, and the score is minus
its gradient. The sweep runs every process, and the energy.

Differences from the papers: one network of noise scales serves every process, including
`ladder`, and it is a U-Net without attention. `cifar10` has the batches, updates, rate
and averages of the diffusions; NCSNv2 trains its ladder for 300,000 updates at 1e-4
without warm-up or gradient clipping.
"""

import functools
from typing import Any

import jax
from ml_collections import ConfigDict

from ebmjax.types import Array, Key
from experiments.data import (
    digest,
    fitting,
    image_batches,
    image_section,
    load_section,
)
from experiments.data.choices import IMAGES
from experiments.judge import plots
from experiments.judge.detection import check_names
from experiments.run import cli
from experiments.run.config import adam_section, check_counts, check_name, train_section
from experiments.run.experiment import Experiment, Keys, Trained
from experiments.run.sweep import Cell, Sweep
from experiments.score_based import measures
from experiments.score_based.model import (
    DIFFUSIONS,
    NETWORKS,
    Model,
    bind_model,
    draw_chunks,
    make_model,
    make_objective,
    make_players,
    needs_distance,
)

PROCESSES = (*DIFFUSIONS, "ladder")
CHOICES = {"data": IMAGES, "network": NETWORKS}


def image_preset(
    name: str, process: str, widths: tuple[int, ...], num_blocks: int, num_steps: int
) -> dict[str, Any]:
    """Returns the papers' config for a data set of images and a process."""
    sections = process_sections(process)
    optimizer = adam_section(2e-4, b1=0.9, b2=0.999) | {"gradient_clip": 1.0}
    optimizer["learning_rate"]["warmup_steps"] = 5_000
    return {
        "seed": 0,  # of all draws: parameters, order of the data, chains
        "data": image_section(name)
        | {
            "batch_size": 128,  # of all devices
            "is_mirrored": False,  # whether half of the images are, left to right
        },
        "network": {
            "name": "unet",  # or "mlp"
            "widths": widths,  # channels at each resolution
            "num_blocks": num_blocks,  # blocks at each resolution
            "activation": "swish",  # or "softplus", "leaky_relu"
            "conditioning": "embedding",  # or "division", NCSNv2's Technique 3
            "is_energy": False,  # whether the score is minus an energy's gradient
            "compute_dtype": "float32",  # or "bfloat16"; parameters stay float32
            "rematerialize": False,  # whether blocks are computed twice to save memory
            "num_levels": 0,  # of a pixel, whose waves the network sees; 0 for none
        },
        "process": sections["process"],
        "objective": sections["objective"],
        "optimizer": optimizer,
        "ema_decay": 0.999,  # of the parameters that are evaluated; 0 for no average
        "train": train_section(num_steps),
        "evaluation": {
            "sampler": sections["sampler"],
            "num_samples": 10_000,  # samples that the classifier judges
            "num_examples": 10_000,  # data they are compared with, of either split
            "num_shown": 100,  # samples in the picture
            "chunk_size": 500,  # chains at a time
            "classifier_steps": 4_000,  # updates of the classifier; 0 for no classifier
            "num_likelihoods": 1_000,  # first held-out images, if so many; 0 for none
            "num_probes": 4,  # noises and random traces for each of these images
            "tolerance": 1e-5,  # of the steps of the probability flow
            "num_inpainted": 16,  # first held-out images, if so many; 0 for none
            "out_of_distribution": ("uniform", "gaussian"),  # or names of data sets;
            # for energies alone
        },
    }


def process_sections(name: str) -> dict[str, Any]:
    """Returns the sections of a process: itself, its objective and its sampler."""
    if name == "ladder":
        return {
            "process": {
                "name": name,  # one of PROCESSES, with its own options
                "largest": 0.0,  # x; 0 for the largest distance between examples
                "smallest": 0.02,  # x; paper: 0.01 on [0, 1]
                "num_scales": 0,  # 0 for as many as overlap by half
            },
            "objective": {},
            "sampler": {
                "num_steps_per_level": 5,  # moves; paper: T
                "relative_step_size": 0.0,  # of a scale's square; 0 for Technique 4
            },
        }
    if name == "variance_exploding":
        process = {
            "noise_min": 0.02,  # x, least noise scale; paper: 0.01 on [0, 1]
            "noise_max": 0.0,  # x, largest one; 0 for that between any two examples
        }
        time_min = 1e-5  # at which there is noise of `noise_min`
    else:
        process = {
            "rate_min": 0.1,  # of noise, at time 0; paper: beta_min
            "rate_max": 20.0,  # of noise, at time 1; paper: beta_max
        }
        time_min = 1e-3
    return {
        "process": {"name": name, **process},
        "objective": {"weighting": "noise"},  # or "likelihood"
        "sampler": {
            "predictor": "reverse_diffusion",  # or "ancestral", "euler_maruyama"
            "num_steps": 1_000,  # paper: N
            "num_corrections": 1,  # Langevin moves after each step; paper: M
            "signal_to_noise": 0.16,  # of the corrections; paper: r, on CIFAR-10
            "time_min": time_min,  # last time; papers: 1e-5 for VE, 1e-3 for the others
        },
    }


def digits(process: str = PROCESSES[0]) -> dict[str, Any]:
    config = image_preset("digits", process, (32, 64), 1, 4_000)
    for key in ("data_dir", "download", "size", "is_mirrored"):
        del config["data"][key]
    config["data"]["batch_size"] = 64
    config["optimizer"]["learning_rate"] |= {
        "start": 2e-3,
        "final": 1e-5,
        "warmup_steps": 100,
        "decay_steps": 4_000,
    }
    # The images have few dimensions, and the computer is a CPU.
    few = {"num_steps_per_level": 20} if process == "ladder" else {"num_steps": 200}
    config["evaluation"]["sampler"] |= few
    config["evaluation"] |= {
        "num_samples": 1_000,  # 898 are compared, with as many examples of the data
        "classifier_steps": 700,
        "num_likelihoods": 297,
    }
    return config


def mnist(name: str, process: str) -> dict[str, Any]:
    return image_preset(name, process, (64, 128, 256), 2, 100_000)


def mnist_small(name: str, process: str) -> dict[str, Any]:
    """Returns a config for an hour of one CPU core, and some minutes of sampling."""
    config = image_preset(name, process, (24, 48, 160), 1, 8_000)
    config["data"]["batch_size"] = 64
    config["network"]["num_levels"] = 256
    if process == "variance_exploding":
        # Bits per dimension are those of data with this noise, an eighth of a level.
        config["process"]["noise_min"] = 0.001
    config["optimizer"]["learning_rate"] |= {
        "start": 1e-3,
        "final": 1e-5,
        "warmup_steps": 200,
        "decay_steps": 8_000,
    }
    config["train"]["checkpoint_every"] = 500
    if process == "ladder":
        config["evaluation"]["sampler"]["num_steps_per_level"] = 2
    else:
        config["evaluation"]["sampler"] |= {"num_steps": 100, "num_corrections": 0}
    config["evaluation"] |= {
        "num_samples": 2_000,
        "num_likelihoods": 500,
        "num_probes": 1,
        "chunk_size": 250,
    }
    return config


def cifar10(process: str = PROCESSES[0]) -> dict[str, Any]:
    config = image_preset("cifar10", process, (128, 256, 256, 256), 4, 1_300_000)
    config["data"]["is_mirrored"] = True
    # Papers: the diffusions that preserve the variance train ten times as long.
    config["ema_decay"] = 0.9999 if "preserving" in process else 0.999
    return config


PRESETS = {
    "digits": digits,
    "own": functools.partial(mnist_small, "arrays"),
    "mnist": functools.partial(mnist, "mnist"),
    "fashion_mnist": functools.partial(mnist, "fashion_mnist"),
    "mnist_small": functools.partial(mnist_small, "mnist"),
    "fashion_mnist_small": functools.partial(mnist_small, "fashion_mnist"),
    "cifar10": cifar10,
}


def get_config(preset: str = "digits") -> ConfigDict:
    """Returns the locked config of a preset, "name" or "name,process".

    Raises:
      ValueError: If the preset or the process is unknown.
    """
    name, _, process = preset.partition(",")
    check_name("preset", name, PRESETS)
    process = process or PROCESSES[0]
    check_name("process", process, PROCESSES)
    return ConfigDict(PRESETS[name](process)).lock()


def build(config: ConfigDict, keys: Keys) -> Experiment:
    """Builds the experiment of a config."""
    check_options(config)
    plots.check()
    data = load_section(config.data)
    facts: dict[str, Any] = {"event_shape": list(data.image_shape)}
    if needs_distance(config.process):
        facts["largest_distance"] = measures.measure_distance(keys.evaluation, data)
    with fitting(config.data, data.image_shape):
        model = make_model(config, **facts)
    params, _ = model.network.init(keys.params)
    # An option that does not fit the sampler is found here, before training.
    draw_one = functools.partial(model.sample, num=1)
    jax.eval_shape(draw_one, params, keys.params)
    return Experiment(
        players=make_players(config, make_objective(config, model), model.name),
        params={model.name: params},
        batch=image_batches(
            keys.data,
            data.train,
            config.data.batch_size,
            num_levels=data.num_levels,
            is_mirrored=config.data.get("is_mirrored", False),
        ),
        evaluate=measures.make_evaluation(config, data, model, keys.evaluation),
        facts=facts,
        data_digest=digest(data.train, data.held_out),
        programs=make_programs(config, model, data.image_shape),
    )


def make_programs(config: ConfigDict, model: Model, shape) -> dict[str, Any]:
    """Returns the large programs of the evaluation, see `Experiment.programs`."""
    num = config.evaluation.chunk_size

    def draw(params, model_state, key):
        return model.sample(params[model.name], key, num)

    def score(params, model_state, key):
        x = jax.random.normal(key, (num, *shape))
        return model.log_prob(params[model.name], key, x)

    return {"samples": draw, "likelihood": score}


def check_options(config: ConfigDict) -> None:
    """Raises a ValueError for an option that would only fail after training."""
    process, options = config.process.name, config.evaluation
    check_name("process.name", process, PROCESSES)
    if set(config.process) != set(process_sections(process)["process"]):
        raise ValueError(
            f"process.name {process!r} has options of its own: choose it by"
            f" --config={config.data.name},{process}"
        )
    check_counts(
        "evaluation",
        options,
        num_examples=2,  # needed for a covariance
        num_shown=1,
        chunk_size=1,
        num_probes=1,
        num_samples=0,
        num_inpainted=0,
        num_likelihoods=0,
        classifier_steps=0,
    )
    for name in ("num_samples", "num_likelihoods"):
        if options[name] == 1:
            raise ValueError(
                f"evaluation.{name} must be 0 or at least 2, to have a spread, got 1"
            )
    if not 0 < options.tolerance < 1:
        raise ValueError(
            f"evaluation.tolerance must be above 0 and below 1, got {options.tolerance}"
        )
    check_names(options.out_of_distribution)


def sweep(preset: str) -> Sweep:
    """Returns the plan with every process, and the preset's process with an energy."""
    name, _, chosen = (preset or "digits").partition(",")
    chosen = chosen or PROCESSES[0]
    cells = {process: Cell(f"{name},{process}") for process in PROCESSES}
    is_energy = {"network.is_energy": True}
    cells[f"{chosen},energy"] = Cell(f"{name},{chosen}", is_energy)
    return Sweep(
        cells,
        columns=(
            "samples_classifier_frechet_distance",
            "samples_confident_share",
            "bits_per_dim",
            "bits_per_dim_error",
            "bits_per_dim_noise",
            "flow_evaluations",
            "asymmetry_1",
            "inpainting_mse",
            "auroc_gaussian",
            "auroc_uniform",
            "sampling_seconds",
        ),
    )


def load(config: ConfigDict, facts, params, model_state) -> Trained:
    """Returns the trained model.

    Its functions are of one image: `score_fn(x, noise_scale)` is the score of data with
    noise of that scale, and so is `energy_fn(x, noise_scale)`, up to a constant, if the
    network is an energy. `log_prob(x, key)` is the log density in nats by the
    probability flow, with an unbiased estimate of the trace that depends on the key;
    `jax.vmap(log_prob)(images, jax.random.split(key, num))` is that of many images.
    `sample(key, num)` draws `config.evaluation.chunk_size` images at a time, by
    `config.evaluation.sampler`, and does not clip them to [-1, 1].
    """
    model = make_model(config, **facts)
    own = params[model.name]

    def log_prob(x: Array, key: Key) -> Array:
        return model.log_prob(own, key, x[None])[0][0]

    def sample(key: Key, num: int):
        return draw_chunks(model, own, key, num, config.evaluation.chunk_size)[:num]

    functions = bind_model(model, own)
    return Trained(
        config, params, model_state, **functions, log_prob=log_prob, sample=sample
    )


if __name__ == "__main__":
    cli.main(build, __file__, sweep)
