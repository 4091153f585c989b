"""plane"""

import functools
import math

import jax
import numpy as np

from ebmjax import targets
from experiments.data import target_batches
from experiments.judge import plots
from experiments.judge.plane import (
    at_points,
    kl_divergence,
    make_plane,
    total_variation,
)
from experiments.max_entropy.players import Problem, _bound, _drawn, _preset
from experiments.run.config import construct

TARGETS = {
    "twenty_five_gaussians": targets.twenty_five_gaussians,
    "eight_gaussians": targets.eight_gaussians,
    "swiss_roll": targets.swiss_roll,
}


def _plane_preset(name: str) -> dict:
    config = _preset(
        {"name": name, "batch_size": 256},
        {
            "name": "mlp",
            "generator_widths": (128, 128, 128),  # paper: 512
            "energy_widths": (128, 128, 128),  # paper: 512
            "negative_slope": 0.2,
        },
        latent_dim=2,
        num_samples=10_000,
        num_chains=2_000,  # of every kind
        bound=2.0,  # densities are on [-bound, bound]^2
        num_bins=125,  # a side, each with 4 x 4 points
    )
    # Narrower networks at a higher rate than the paper's 100,000 updates: minutes.
    config["optimizer"]["learning_rate"] |= {
        "start": 1e-3,
        "final": 1e-5,
        "decay_steps": 20_000,
    }
    config["ema_decay"] = 0.999
    config["train"] |= {"num_steps": 20_000, "eval_every": 0}
    # Steeper slopes than with the paper's 0.1 and 0.5, which leave the plane's draws
    # between the modes.
    config["objective"] |= {"score_penalty": 0.01, "information_weight": 0.25}
    return config


def _centres(name: str) -> tuple[np.ndarray, float] | None:
    """Of a target's modes, with their standard deviation; None without modes."""
    if name == "twenty_five_gaussians":
        line = math.sqrt(0.5) * np.arange(-2.0, 3.0)
        grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1)
        return grid.reshape(25, 2), 0.05 / math.sqrt(8.0)
    if name == "eight_gaussians":
        angles = np.arange(8) * (math.pi / 4)
        circle = np.stack([np.cos(angles), np.sin(angles)], 1)
        return math.sqrt(2.0) * circle, 0.02 / math.sqrt(2.0)
    return None


def _coverage(x: np.ndarray, centres: np.ndarray, std: float) -> dict[str, float]:
    """Modes found and the share of good draws: those within three deviations.

    A mode counts where a tenth of its due number of draws are good.
    """
    distances = np.linalg.norm(x[:, None] - centres[None], axis=-1)
    is_good = distances.min(1) < 3 * std
    counts = np.bincount(distances.argmin(1)[is_good], minlength=len(centres))
    return {
        "num_modes": float((counts >= len(x) / (10 * len(centres))).sum()),
        "good_share": float(is_good.mean()),
    }


def _in_plane(config, keys) -> Problem:
    section = {k: v for k, v in config.data.items() if k != "batch_size"}
    target = construct(section, TARGETS)
    options = config.evaluation
    plots.check()
    grid = make_plane(options.bound, options.num_bins)
    truth = grid.probabilities(target.energy_fn)
    modes = _centres(config.data.name)

    def evaluation(nets):
        def evaluate(state, key, directory):
            energy_fn, generator_fn = _bound(nets, state)
            num = options.num_samples
            x, sampled = _drawn(config, energy_fn, generator_fn, key, num, num)
            _, _, data_key = jax.random.split(key, 3)
            data = np.asarray(target.sample(data_key, num))
            density = grid.probabilities(energy_fn)
            slope = jax.jit(jax.vmap(jax.grad(energy_fn)))
            of_batch = jax.jit(jax.vmap(energy_fn))
            scalars = dict(sampled.scalars)
            for name, points in (("data", data), ("model", x)):
                scalars[f"energy_{name}"] = float(of_batch(points).mean())
                norms = np.linalg.norm(slope(points), axis=1)
                scalars[f"score_norm_{name}_max"] = float(norms.max())
            scalars["energy_difference"] = (
                scalars["energy_data"] - scalars["energy_model"]
            )
            histogram, data_histogram = grid.histogram(x), grid.histogram(data)
            scalars |= {
                "total_variation": total_variation(histogram, data_histogram),
                # Off zero by one part in 1e12 of the grid, as a cold one underflows.
                "density_kl": kl_divergence(
                    truth, (density + 1e-12) / (1 + 1e-12 * density.size)
                ),
            }
            if modes is not None:
                scalars |= _coverage(x, *modes)
                for name, points in sampled.x.items():
                    found = _coverage(points, *modes)
                    scalars |= {f"{name}_chains_{k}": v for k, v in found.items()}
                distances = np.linalg.norm(
                    np.asarray(grid.points)[:, None] - modes[0][None], axis=-1
                )
                is_near = distances.min(1) < 3 * modes[1]
                scalars["density_mass_near_modes"] = float(density[is_near].sum())
            panels = {
                "data": data_histogram,
                "generator": histogram,
                "exp(-E) / Z": grid.binned(density),
            }
            energy = np.asarray(at_points(energy_fn, grid.points), np.float64)
            # The landscape: what is high is dark, cut where it is flat and far.
            landscape = -energy.reshape([4 * options.num_bins] * 2)
            panels["-E"] = landscape.clip(np.quantile(landscape, 0.05))
            plots.densities(
                directory / "plane.png", panels, bounds=(-options.bound, options.bound)
            )
            return scalars

        return evaluate

    return Problem(
        (2,), functools.partial(target_batches, keys.data, target), evaluation
    )


PLANE_COLUMNS = (
    "total_variation",
    "density_kl",
    "energy_difference",
    "score_norm_data_max",
    "score_norm_model_max",
)


MODE_COLUMNS = ("num_modes", "good_share", "density_mass_near_modes")  # where there are


if __name__ == "__main__":
    main(build, __file__, sweep)
