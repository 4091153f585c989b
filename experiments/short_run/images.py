"""Short-run MCMC: an energy trained for K Langevin moves from noise, and what its chain
can then do: synthesis, interpolation, reconstruction, inpainting, super-resolution.

Paper: Nijkamp, Hill, Zhu & Wu (2019), "Learning non-convergent non-persistent short-run
MCMC toward energy-based model".
Claim checked: the law of a chain of K moves matches the data, sharper than a Gaussian
fitted to them, while `exp(-E)` need not.

    python -m experiments.short_run --workdir=runs/digits
    python -m experiments.short_run --workdir=runs/mnist         --config=experiments/short_run.py:mnist --config.data.data_dir=DIR
    python -m experiments.short_run --workdir=runs/sweep --sweep

Presets: `digits` (embedded 8x8 images, minutes on two CPU cores), `mnist`,
`fashion_mnist`, `cifar10`, `celeb_a`, `celeb_a_128` (the paper's scale, for GPU or
TPU), `toy_convergent` and `toy_nonconvergent` (two dimensions, minutes on a CPU).
"""

from ml_collections import ConfigDict

from ebmjax import objectives, training
from experiments.data import image_batches, load_section, target_batches
from experiments.run.config import construct, make_optimizer, schedule
from experiments.run.experiment import Experiment, Keys
from experiments.run.sweep import run_sweep
from experiments.short_run.evaluate_plane import in_plane
from experiments.short_run.inverse import on_images
from experiments.short_run.model import STARTS, _images, make_model
from experiments.short_run.plane import TARGETS, _toy_convergent, _toy_nonconvergent


def _cell(**overrides) -> dict:
    """A cell of the sweep, without what the table does not show."""
    return {"evaluation.long_run_steps": 0, "evaluation.num_iterations": 50} | {
        name.replace("__", "."): value for name, value in overrides.items()
    }


SWEEP = {
    # The paper's tables in small: K, with the larger noise that a smaller K needs; the
    # data noise; the width.
    **{
        f"K={num_steps}": _cell(objective__num_steps=num_steps, data_noise__final=noise)
        for num_steps, noise in ((5, 0.1), (10, 0.05), (20, 0.03), (40, 0.03))
    },
    **{
        f"noise={noise}": _cell(
            data_noise__final=noise, data_noise__start=max(noise, 0.1)
        )
        for noise in (0.4, 0.2, 0.1, 0.05, 0.03)
    },
    **{f"width={width}": _cell(network__width=width) for width in (8, 16, 32, 64)},
}


SWEEP_COLUMNS = (
    "samples_classifier_frechet_distance",
    "samples_confident_share",
    "reconstruction_mse",
    "gradient_norm_times_steps",
)


def _digits() -> dict:
    config = _images("digits")
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


def _mnist(name: str, others: tuple[str, ...]) -> dict:
    config = _images(name, num_examples=0)
    config["network"]["width"] = 32
    config["train"] |= {"num_steps": 60_000, "eval_every": 10_000}
    config["data_noise"] |= {"decay_start": 40_000, "decay_steps": 20_000}
    config["optimizer"]["learning_rate"] |= {
        "decay_start": 40_000,
        "decay_steps": 20_000,
    }
    config["evaluation"]["out_of_distribution"] = ("uniform", "gaussian", *others)
    return config


def _cifar10() -> dict:
    config = _images("cifar10")
    config["network"]["width"] = 128
    config["evaluation"]["num_samples"] = 40_000
    return config


def _celeb_a(size: int) -> dict:
    config = _images("celeb_a", size=size)
    # No labels, hence no classifier: quality is looked at, not measured.
    config["evaluation"] |= {
        "classifier_steps": 0,
        "num_samples": 0,
        "num_examples": 2_000,
        "out_of_distribution": ("uniform",),
    }
    config["train"]["best"] = ""
    return config


PRESETS = {
    "digits": _digits,
    "mnist": lambda: _mnist("mnist", ("fashion_mnist", "kmnist", "omniglot")),
    "fashion_mnist": lambda: _mnist("fashion_mnist", ("mnist", "kmnist", "omniglot")),
    "cifar10": _cifar10,
    "celeb_a": lambda: _celeb_a(64),
    "celeb_a_128": lambda: _celeb_a(128),
    "toy_convergent": _toy_convergent,
    "toy_nonconvergent": _toy_nonconvergent,
}


def get_config(preset: str = "digits") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}")
    return ConfigDict(PRESETS[preset]()).lock()


def build(config: ConfigDict, keys: Keys) -> Experiment:
    is_toy = config.data.name in TARGETS
    if is_toy:
        section = {k: v for k, v in config.data.items() if k != "batch_size"}
        data = construct(section, TARGETS)
        event_shape = (2,)
        batch = target_batches(keys.data, data, config.data.batch_size)
    else:
        data = load_section(config.data)
        event_shape = data.image_shape
        batch = image_batches(
            keys.data, data.train, config.data.batch_size, num_levels=data.num_levels
        )
    network, sampler, draw_noise = make_model(config, event_shape)
    start_section = {k: v for k, v in config.start.items() if k not in ("law", "scale")}
    objective = objectives.contrastive_divergence(
        network,
        sampler=sampler,
        start=construct(start_section, STARTS, event_shape, draw_noise),
        data_noise_scale=schedule(**config.data_noise),
        **config.objective,
    )
    optimizer = make_optimizer(config.optimizer)
    params, _ = network.init(keys.params)  # none of NETWORKS has a mutable state
    evaluate = in_plane if is_toy else on_images
    return Experiment(
        players={"energy": training.Player(("energy",), objective, optimizer)},
        params={"energy": params},
        batch=batch,
        evaluate=evaluate(config, data, network, sampler, draw_noise, keys.evaluation),
    )


def sweep(build, config, workdir):
    """The paper's table over K, data noise and width, in small."""
    return run_sweep(build, config, workdir, SWEEP, SWEEP_COLUMNS)


if __name__ == "__main__":
    main(build, __file__, sweep)
