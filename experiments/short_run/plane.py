"""plane"""

from ebmjax import targets
from experiments.short_run.model import _images

TARGETS = {
    "eight_gaussians": targets.eight_gaussians,
    "twenty_five_gaussians": targets.twenty_five_gaussians,
    "rings": targets.rings,
    "swiss_roll": targets.swiss_roll,
    "two_moons": targets.two_moons,
    "checkerboard": targets.checkerboard,
}


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


if __name__ == "__main__":
    main(build, __file__, sweep)
