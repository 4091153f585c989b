"""evaluate_plane"""

import functools

import jax

from ebmjax import samplers
from experiments.judge import plots
from experiments.judge.plane import kl_divergence, make_plane, total_variation
from experiments.run.config import check_counts
from experiments.run.experiment import evaluated_params


def in_plane(config, target, network, sampler, draw_noise, evaluation_key):
    """Short-run samples, long-run samples and `exp(-E / temperature)` against data."""
    del evaluation_key
    section, temperature = config.evaluation, config.sampler.temperature
    plots.check()
    names = ("num_samples", "num_steps", "num_long_run", "long_run_steps")
    check_counts("evaluation", section, **dict.fromkeys(names, 1))
    grid = make_plane(section.bound, section.num_bins)
    truth = grid.probabilities(target.energy_fn)

    def evaluate(state, key, directory):
        data_key, start_key, short_key, long_key = jax.random.split(key, 4)
        energy_fn = functools.partial(network.apply, evaluated_params(state)["energy"])

        def chains(key, num, num_steps):
            z = draw_noise(jax.random.fold_in(start_key, num_steps), (num, 2))
            state, _ = samplers.sample_chains(
                sampler, energy_fn, key, z, num_steps, collect=None
            )
            return grid.histogram(state.position)

        density = grid.probabilities(lambda x: energy_fn(x) / temperature)
        draws = grid.histogram(target.sample(data_key, section.num_samples))
        fewer = grid.histogram(target.sample(data_key, section.num_long_run))
        panels = {
            "data": grid.binned(truth),
            f"{section.num_steps} moves": chains(
                short_key, section.num_samples, section.num_steps
            ),
            "exp(-E / T) / Z": grid.binned(density),
            f"{section.long_run_steps} moves": chains(
                long_key, section.num_long_run, section.long_run_steps
            ),
        }
        plots.densities(
            directory / "densities.png", panels, bounds=(-section.bound, section.bound)
        )
        data, short, model, long = panels.values()
        return {
            "samples_total_variation": total_variation(short, data),
            "density_total_variation": total_variation(model, data),
            "long_run_total_variation": total_variation(long, data),
            # What as many exact draws have, for comparison.
            "data_total_variation": total_variation(draws, data),
            "long_run_data_total_variation": total_variation(fewer, data),
            # Nats, KL(data || density), with the density kept off zero by one part in
            # 1e12 of the grid: a cold one underflows, and infinity would stop the run.
            "density_kl": kl_divergence(
                truth, (density + 1e-12) / (1 + 1e-12 * density.size)
            ),
        }

    return evaluate
