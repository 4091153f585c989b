"""Short-run MCMC: an energy trained for K Langevin moves from noise, and what its chain
can then do: synthesis, interpolation, reconstruction, inpainting, super-resolution.

Paper: Nijkamp, Hill, Zhu & Wu (2019), "Learning non-convergent non-persistent short-run
MCMC toward energy-based model".
Claim checked: the law of a chain of K moves matches the data, sharper than a Gaussian
fitted to them, while `exp(-E)` need not.

    python -m experiments.short_run --workdir=runs/digits
    python -m experiments.short_run --workdir=runs/mnist \
        --config=experiments/short_run.py:mnist --config.data.data_dir=DIR
    python -m experiments.short_run --workdir=runs/sweep --sweep

Presets: `digits` (embedded 8x8 images, minutes on two CPU cores), `mnist`,
`fashion_mnist`, `cifar10`, `celeb_a`, `celeb_a_128` (the paper's scale, for GPU or
TPU), `toy_convergent` and `toy_nonconvergent` (two dimensions, minutes on a CPU).
"""

import functools

import jax
from ml_collections import ConfigDict

from ebmjax import networks, objectives, samplers, starts, targets, training
from experiments import _data, _evaluation, _run, _sweep

NETWORKS = {
    "short_run": networks.short_run_energy,
    "resnet": networks.resnet_energy,
    "wide_resnet": networks.wide_resnet_energy,
    "mlp": networks.mlp_energy,
}
SAMPLERS = {"langevin": samplers.langevin, "mala": samplers.mala}
TARGETS = {
    "eight_gaussians": targets.eight_gaussians,
    "twenty_five_gaussians": targets.twenty_five_gaussians,
    "rings": targets.rings,
    "swiss_roll": targets.swiss_roll,
    "two_moons": targets.two_moons,
    "checkerboard": targets.checkerboard,
}


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


def _images(name: str, **data) -> dict:
    """What the presets on images share; sizes and lengths are the paper's."""
    return {
        "seed": 0,
        # Paper: m, the number of chains too, is the batch's size.
        "data": _data.image_section(name, **{"num_examples": 40_000, **data}),
        "network": {
            "name": "short_run",
            "width": 64,  # paper: n_f
            "negative_slope": 0.2,
            "compute_dtype": "float32",  # or "bfloat16"; parameters stay float32
        },
        "sampler": {
            "name": "langevin",
            "step_size": 1.0,  # x^2 / energy; paper: 1, its move is x - a grad E + b n
            "temperature": 5e-5,  # energy; b^2 / (2 a) with the paper's b = 0.01
        },
        "start": {"name": "noise", "law": "uniform", "scale": 1.0},  # paper: U[-1, 1]
        "objective": {
            "num_steps": 100,  # moves; paper: K
            "energy_penalty": 0.0,
            "last_step_gradient": False,
            "entropy_weight": 0.0,
        },
        "data_noise": {  # x; paper: sigma. A schedule of updates
            "start": 0.03,
            "final": 0.02,
            "decay": "exponential",
            "decay_start": 200_000,
            "decay_steps": 50_000,
        },
        "optimizer": {
            "name": "adam",
            "b1": 0.9,
            "b2": 0.999,
            "gradient_clip": 0.0,  # largest norm; 0 for none
            "learning_rate": {
                "start": 1e-4,  # paper: eta
                "final": 1e-5,
                "warmup_steps": 0,
                "decay": "exponential",
                "decay_start": 200_000,
                "decay_steps": 50_000,
            },
        },
        "ema_decay": 0.0,  # of the parameters that are evaluated; 0 for none
        "train": _run.train_section(
            250_000,
            eval_every=25_000,
            checkpoint_every=5_000,
            best="samples_classifier_frechet_distance",
            abort_above=1e5,
        ),
        "evaluation": {
            "num_samples": 10_000,
            "num_examples": 10_000,  # of the data, train and held-out, to compare with
            "chunk_size": 500,  # chains at a time
            "num_shown": 100,  # samples in the grid
            "num_inverted": 64,  # held-out images reconstructed and inpainted
            "num_iterations": 200,  # of their gradient descent
            "iteration_step": 0.05,
            "jacobian": "identity",  # exact for leaky ReLUs; else "autodiff"
            "long_run_steps": 10_000,  # moves; 0 for none
            "num_long_run": 64,  # chains
            "classifier_steps": 4_000,
            "out_of_distribution": ("uniform", "gaussian"),  # or names of data sets
        },
    }


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


def _toy() -> dict:
    """Two recipes on the same data: which of them learns a density?"""
    config = _images("eight_gaussians")
    config["data"] = {
        "name": "eight_gaussians",
        "radius": 1.0,
        "std": 0.15,
        "batch_size": 256,
    }
    config["network"] = {
        "name": "mlp",
        "widths": (64, 64, 64),
        "activation": "leaky_relu",
        "negative_slope": 0.05,
    }
    config["data_noise"] |= {"start": 0.0, "final": 0.0, "decay": "linear"}
    config["data_noise"] |= {"decay_start": 0, "decay_steps": 0}
    config["train"] |= {"eval_every": 0, "checkpoint_every": 1_000, "best": ""}
    config["evaluation"] = {
        "num_samples": 20_000,
        "num_steps": 100,  # moves of the evaluated chains, from noise
        "long_run_steps": 10_000,
        "num_long_run": 2_000,
        "bound": 2.0,  # densities are compared on [-bound, bound]^2
        "num_bins": 40,  # a side
    }
    return config


def _toy_nonconvergent() -> dict:
    config = _toy()
    config["start"] = {"name": "noise", "law": "normal", "scale": 1.0}
    config["objective"]["num_steps"] = 100
    config["optimizer"]["learning_rate"] |= {
        "start": 1e-3,
        "final": 1e-4,
        "decay": "cosine",
        "decay_start": 0,
        "decay_steps": 5_000,
    }
    config["ema_decay"] = 0.99
    config["train"]["num_steps"] = 5_000
    return config


def _toy_convergent() -> dict:
    config = _toy()
    # The Langevin step of the density itself, with a chain that is never begun anew
    # but for a few: what its samples match, exp(-E) has to match too.
    config["sampler"] |= {"step_size": 0.0078125, "temperature": 1.0}  # e = 0.125
    config["start"] = {
        "name": "replay",
        "law": "normal",
        "scale": 1.0,
        "capacity": 8_192,  # chains on all devices
        "reinit_prob": 0.01,
    }
    config["objective"]["num_steps"] = 40
    config["optimizer"]["learning_rate"] |= {
        "start": 3e-3,
        "final": 1e-5,
        "decay": "cosine",
        "decay_start": 0,
        "decay_steps": 10_000,
    }
    config["ema_decay"] = 0.999
    config["train"]["num_steps"] = 10_000
    config["evaluation"]["num_steps"] = 1_000
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


# --- building ----------------------------------------------------------------------


def _draw_noise(law: str, scale: float):
    """`draw(key, shape)`: uniform on [-scale, scale], or normal with that deviation."""
    if not scale > 0:
        raise ValueError(f"start.scale must be positive, got {scale}")
    if law == "uniform":
        return functools.partial(jax.random.uniform, minval=-scale, maxval=scale)
    if law == "normal":
        return lambda key, shape: scale * jax.random.normal(key, shape)
    raise ValueError(f"start.law must be 'uniform' or 'normal', got {law!r}")


def _replay(event_shape, draw_noise, *, capacity: int, reinit_prob: float):
    if capacity % jax.device_count():
        raise ValueError(
            f"start.capacity must be a multiple of the {jax.device_count()} devices,"
            f" got {capacity}"
        )
    return starts.replay(
        draw_noise,
        event_shape=event_shape,
        capacity=capacity // jax.device_count(),
        reinit_prob=reinit_prob,
    )


STARTS = {
    "noise": lambda event_shape, draw_noise: starts.noise(draw_noise),
    "data": lambda event_shape, draw_noise: starts.data(),
    "replay": _replay,
}


def make_model(config: ConfigDict, event_shape: tuple[int, ...]):
    """Network, sampler and the law of the noise: all that sampling needs."""
    network = _run.construct(config.network, NETWORKS, event_shape)
    sampler = _run.construct(config.sampler, SAMPLERS)
    return network, sampler, _draw_noise(config.start.law, config.start.scale)


def build(config: ConfigDict, keys: _run.Keys) -> _run.Experiment:
    is_toy = config.data.name in TARGETS
    if is_toy:
        section = {k: v for k, v in config.data.items() if k != "batch_size"}
        data = _run.construct(section, TARGETS)
        event_shape = (2,)
        batch = _data.target_batches(keys.data, data, config.data.batch_size)
    else:
        data = _data.from_section(config.data)
        event_shape = data.image_shape
        batch = _data.image_batches(
            keys.data, data.train, config.data.batch_size, num_levels=data.num_levels
        )
    network, sampler, draw_noise = make_model(config, event_shape)
    start_section = {k: v for k, v in config.start.items() if k not in ("law", "scale")}
    objective = objectives.contrastive_divergence(
        network,
        sampler=sampler,
        start=_run.construct(start_section, STARTS, event_shape, draw_noise),
        data_noise_scale=_run.schedule(**config.data_noise),
        **config.objective,
    )
    optimizer = _run.make_optimizer(config.optimizer)
    params, _ = network.init(keys.params)  # none of NETWORKS has a mutable state
    evaluate = _evaluation.in_plane if is_toy else _evaluation.on_images
    return _run.Experiment(
        players={"energy": training.Player(("energy",), objective, optimizer)},
        params={"energy": params},
        batch=batch,
        evaluate=evaluate(config, data, network, sampler, draw_noise, keys.evaluation),
    )


def sweep(build, config, workdir):
    """The paper's table over K, data noise and width, in small."""
    return _sweep.sweep(build, config, workdir, SWEEP, SWEEP_COLUMNS)


if __name__ == "__main__":
    _run.main(build, __file__, sweep)
