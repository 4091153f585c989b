"""model"""

import functools

import jax
from ml_collections import ConfigDict

from ebmjax import networks, samplers, starts
from experiments.data import image_section
from experiments.run.config import construct, train_section

NETWORKS = {
    "short_run": networks.short_run_energy,
    "resnet": networks.resnet_energy,
    "wide_resnet": networks.wide_resnet_energy,
    "mlp": networks.mlp_energy,
}


SAMPLERS = {"langevin": samplers.langevin, "mala": samplers.mala}


def _images(name: str, **data) -> dict:
    """What the presets on images share; sizes and lengths are the paper's."""
    return {
        "seed": 0,
        # Paper: m, the number of chains too, is the batch's size.
        "data": image_section(name, **{"num_examples": 40_000, **data}),
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
        "train": train_section(
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
    network = construct(config.network, NETWORKS, event_shape)
    sampler = construct(config.sampler, SAMPLERS)
    return network, sampler, _draw_noise(config.start.law, config.start.scale)
