"""plane"""

import jax
import jax.numpy as jnp

from ebmjax import energies, objectives, samplers, targets
from ebmjax.checks import check_count
from experiments.data import target_batches
from experiments.judge import plots
from experiments.judge.plane import make_plane
from experiments.run.experiment import Experiment, evaluated_params
from experiments.score_based.model import (
    MODES,
    WEIGHTS,
    _family,
    _images,
    _ladder,
    _model,
    _of_model,
    _player,
    _relative_step_size,
)


def _two_modes() -> dict:
    """Two normal laws far apart: do chains find their weights, .2 and .8?"""
    config = _images("two_modes", (), 1, 5_000)
    config["data"] = {"name": "two_modes", "batch_size": 256}
    config["network"] = {
        "name": "mlp",
        "widths": (128, 128, 128),
        "activation": "softplus",
        "conditioning": "embedding",
        "is_energy": False,
    }
    config["optimizer"]["learning_rate"] |= {
        "start": 1e-3,
        "final": 1e-5,
        "warmup_steps": 100,
        "decay_steps": 5_000,
    }
    config["evaluation"] = {
        "num_samples": 8_000,
        "bound": 10.0,  # densities are compared on [-bound, bound]^2
        "num_bins": 60,  # a side
    }
    return config


def _in_plane(config, keys) -> Experiment:
    """Annealed and plain Langevin dynamics, with learned and with exact scores."""
    options, num_steps = config.evaluation, config.sampler.num_steps_per_level
    plots.check()
    check_count("evaluation.num_samples", options.num_samples, 1)
    target = targets.gaussian_mixture(means=MODES, std=1.0, weights=WEIGHTS)
    network, name, learned = _model(config, (2,))
    params, _ = network.init(keys.params)
    ladder = _ladder(
        config,
        lambda: samplers.largest_distance(target.sample(keys.evaluation, 1_000)),
        2,
    )
    relative = _relative_step_size(config, ladder)
    objective = objectives.multi_scale_denoising_score_matching(
        **_of_model(name, network), noise_scales=ladder
    )
    grid = make_plane(options.bound, options.num_bins)

    def exact(_, x, noise_scale):
        law = {
            "means": jnp.asarray(MODES),
            "precisions": 1 / (1 + noise_scale**2),
            "log_weights": jnp.log(jnp.asarray(WEIGHTS)),
        }
        return energies.score(energies.gaussian_mixture)(law, x)

    def sampler_of(noise_scale):
        # As wide as the noised data are: on them, not on the noise alone.
        return samplers.langevin(step_size=relative * (1 + noise_scale**2))

    last_sampler, last_scale = sampler_of(ladder[-1]), jnp.float32(ladder[-1])
    families = {"": _family(learned), "_exact": _family(exact)}

    def chains(which, params, key, x):
        """Positions of annealed and of plain chains of as many moves."""
        family = families[which](params)
        annealed, _ = samplers.sample_annealed(
            sampler_of, family, ladder, key, x, num_steps
        )
        plain, _ = samplers.sample_chains(
            last_sampler,
            family(last_scale),
            key,
            x,
            num_steps * len(ladder),
            collect=None,
        )
        return {"annealed": annealed.position, "plain": plain.position}

    def evaluate(state, key, directory):
        found = {"": evaluated_params(state)[name], "_exact": ()}
        start_key, chain_key, data_key = jax.random.split(key, 3)
        shape = (options.num_samples, 2)
        x = jax.random.uniform(start_key, shape, minval=-8.0, maxval=8.0)
        panels = {"data": grid.histogram(target.sample(data_key, options.num_samples))}
        scalars = {}
        for which, given in found.items():
            for how, position in chains(which, given, chain_key, x).items():
                share = float((position.sum(1) > 0).mean())
                scalars[f"share_{how}{which}"] = share
                if not which:
                    panels[f"{how} Langevin"] = grid.histogram(position)
        bounds = (-options.bound, options.bound)
        plots.densities(directory / "densities.png", panels, bounds=bounds)
        return scalars

    return Experiment(
        players=_player(config, objective, name),
        params={name: params},
        batch=target_batches(keys.data, target, config.data.batch_size),
        evaluate=evaluate,
    )


if __name__ == "__main__":
    main(build, __file__, sweep)
