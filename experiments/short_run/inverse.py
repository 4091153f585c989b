"""The evaluation on images: samples, chains, inverse problems and detection.

The chain of K moves, with its noise held fixed, is a generator. Held-out images are
reconstructed, inpainted and enlarged by the start whose chain agrees with what is seen.
"""

import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import samplers
from ebmjax.types import Key
from experiments.data import Images, in_chunks
from experiments.judge import plots
from experiments.judge.detection import area_under_roc, load_foreign
from experiments.judge.inverse import InverseProblem, upper_half
from experiments.judge.judge import make_judge, record_quality
from experiments.run.config import check_counts
from experiments.run.experiment import evaluated_params
from experiments.run.workdir import save_arrays
from experiments.short_run.model import Model, draw_chunks


def make_problems(shape: tuple[int, int, int]) -> dict[str, InverseProblem]:
    """Returns the inverse problems on images `[height, width, channels]`, by name."""
    height, width, channels = shape
    everywhere, is_known = np.ones(shape, bool), upper_half(shape)

    def block_mean(x):
        """Returns an image at half the resolution: the mean over blocks of 2 x 2
        pixels."""
        x = x[: height // 2 * 2, : width // 2 * 2]
        return x.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))

    return {
        "reconstruction": InverseProblem(lambda x: x, lambda x: x, everywhere),
        "inpainting": InverseProblem(
            lambda x: x * is_known, lambda x: np.where(is_known, x, np.nan), ~is_known
        ),
        "super_resolution": InverseProblem(
            block_mean,
            lambda x: np.kron(block_mean(x), np.ones((2, 2, 1))),
            everywhere,
            # A mean over 4 pixels has a quarter of the gradient of a single pixel.
            scale=4.0,
        ),
    }


def pca_errors(train: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns the squared errors per pixel of `images` under PCAs of `train`.

    The errors are those of ranks 0, 1, ..., up to the number of dimensions, where the
    error is 0, or up to the number of training images less one, if that is smaller.
    """
    train = train.reshape(len(train), -1).astype(np.float64)
    rows = images.reshape(len(images), -1) - train.mean(0)
    centred = train - train.mean(0)
    if centred.shape[1] <= len(centred):
        _, vectors = np.linalg.eigh(centred.T @ centred)
        vectors = vectors[:, ::-1]
    else:  # fewer images than dimensions: the small side of the same decomposition
        squares, left = np.linalg.eigh(centred @ centred.T)
        vectors = centred.T @ left[:, :0:-1] / np.sqrt(squares[:0:-1])
    explained = ((rows @ vectors) ** 2).mean(0)
    errors = (rows**2).mean(0).sum() - np.concatenate([[0], np.cumsum(explained)])
    return np.maximum(errors, 0.0) / rows.shape[1]


def make_evaluation(
    config: ConfigDict, data: Images, model: Model, evaluation_key: Key
) -> Callable[..., dict[str, float]]:
    """Returns `evaluate(state, key, directory) -> scalars`.

    Args:
      config: Config of the run.
      data: Data set of the run.
      model: Model of the run.
      evaluation_key: Key of the noise that the energy is compared on.

    Raises:
      ValueError: If an option of the section `evaluation` is not valid.
    """
    section, num_steps = config.evaluation, config.objective.num_steps
    plots.check()
    check_counts(
        "evaluation",
        section,
        num_examples=2,  # needed for a covariance
        chunk_size=1,
        num_shown=1,
        num_inverted=1,
        num_iterations=1,
        num_long_run=1,
    )
    if section.jacobian not in ("identity", "autodiff"):
        raise ValueError(
            "evaluation.jacobian must be 'identity' or 'autodiff', got"
            f" {section.jacobian!r}"
        )
    shape = data.image_shape
    problems = make_problems(shape)
    is_judged = section.classifier_steps and section.num_samples
    judge = make_judge(
        data, section.num_examples, section.classifier_steps if is_judged else 0
    )
    train, held_out = judge.train, judge.held_out
    foreign = load_foreign(evaluation_key, config, train)

    @functools.cache
    def errors_of_pca():
        return pca_errors(train, held_out[: section.num_inverted])

    def bind(params):
        return functools.partial(model.network.apply, params)

    def make_generator(params):
        return samplers.chain_generator(
            model.sampler, bind(params), num_steps, jacobian=section.jacobian
        )

    @jax.jit
    def compute_energies(params, x):
        return jax.vmap(bind(params))(x)

    def energies_in_chunks(params, x):
        bound = functools.partial(compute_energies, params)
        return in_chunks(bound, x, section.chunk_size)

    def keep(state, info):  # once: a new function would be compiled anew
        return state.position, info

    def follow(params, key, num, length, parts):
        """Positions of chains from noise, `[parts + 1, num, *shape]`, evenly spaced."""
        start_key, chain_key = jax.random.split(key)
        z = model.draw_noise(start_key, (num, *shape))
        thin = max(length // parts, 1)
        _, (positions, infos) = samplers.sample_chains(
            model.sampler,
            bind(params),
            chain_key,
            z,
            length,
            thin=thin,
            collect=keep,
        )
        return np.concatenate([z[None], positions]), infos, thin

    @jax.jit
    def interpolate(params, key):
        """Returns rows of `rho z1 + sqrt(1 - rho^2) z2`, which keeps the start's
        variance."""
        start_key, chain_key = jax.random.split(key)
        generate = make_generator(params)

        def row(key, pair):
            # One key for a whole row: its images differ by their starts alone.
            one = lambda rho: rho * pair[0] + jnp.sqrt(1 - rho**2) * pair[1]  # noqa: E731
            return jax.vmap(lambda rho: generate(key, one(rho)))(jnp.linspace(1, 0, 10))

        pairs = model.draw_noise(start_key, (8, 2, *shape))
        return jax.vmap(row)(jax.random.split(chain_key, 8), pairs)

    @functools.partial(jax.jit, static_argnames="name")
    def invert(params, key, images, name):
        """Returns images whose chains agree with what is seen, and the losses on the
        way."""
        start_key, chain_key = jax.random.split(key)
        problem, generate = problems[name], make_generator(params)
        z, losses = samplers.invert_chain(
            generate,
            chain_key,
            model.draw_noise(start_key, images.shape),
            jax.vmap(problem.observe)(images),
            num_iterations=section.num_iterations,
            step_size=problem.scale * section.iteration_step,
            observe=problem.observe,
        )
        return jax.vmap(generate)(jax.random.split(chain_key, len(z)), z), losses

    def solve(params, key, directory):
        """Solves every inverse problem on held-out images: pictures, squared errors."""
        images = held_out[: section.num_inverted]
        scalars, curves = {}, {}
        for name, problem in problems.items():
            found, losses = map(np.asarray, invert(params, key, images, name))
            found = found.clip(-1, 1)
            curves[name] = {name: (np.arange(len(losses)), losses.mean(1))}
            judged = problem.is_judged
            scalars[f"{name}_mse"] = ((found - images) ** 2)[:, judged].mean()
            # The mean of the data as the answer, for comparison.
            scalars[f"{name}_mse_of_mean_image"] = ((train.mean(0) - images) ** 2)[
                :, judged
            ].mean()
            seen = np.stack([problem.show(x) for x in images[:16]])
            panels = {"seen": seen, name.replace("_", "-"): found[:16]}
            panels |= {"truth": images[:16]} if name != "reconstruction" else {}
            plots.image_panels(directory / f"{name}.png", panels, columns=16)
        plots.curves(
            directory / "inversion.png", curves, x_label="iteration", y_label="loss"
        )
        # A start has as many dimensions as an image, and a PCA of as many is exact. The
        # lowest rank at which a PCA has no larger error says how good the chain is.
        pca, num_dims = errors_of_pca(), images[0].size
        is_exact = len(pca) == num_dims + 1
        scalars["reconstruction_mse_of_pca_of_equal_rank"] = (
            pca[-1] if is_exact else 0.0
        )
        is_as_good = pca <= scalars["reconstruction_mse"]
        rank = int(np.argmax(is_as_good)) if is_as_good.any() else num_dims
        scalars["reconstruction_equivalent_pca_rank"] = rank
        return scalars

    def evaluate(state, key, directory: pathlib.Path):
        params = evaluated_params(state)["energy"]
        sample_key, strip_key, row_key, invert_key, long_key = jax.random.split(key, 5)
        energies = functools.partial(energies_in_chunks, params)
        num = max(section.num_samples, section.num_shown)
        samples, norm = draw_chunks(
            model, params, sample_key, num, num_steps, section.chunk_size
        )
        save_arrays(
            directory / "samples.npz",
            samples=samples[:num],
            key=jax.random.key_data(sample_key),
        )
        energy_data, energy_model = energies(held_out).mean(), energies(samples).mean()
        scalars = {
            "energy_data": energy_data,
            "energy_model": energy_model,
            "energy_difference": energy_data - energy_model,
            "gradient_norm": norm,
            "gradient_norm_times_steps": num_steps * norm,
            "samples_abs_max": np.abs(samples).max(),
        }
        plots.image_grid(
            directory / "samples.png",
            samples[: section.num_shown],
            columns=int(np.ceil(section.num_shown**0.5)),
            title=f"samples after {num_steps} moves from noise",
        )
        strips, _, thin = follow(params, strip_key, 8, num_steps, 10)
        plots.image_grid(
            directory / "chain.png",
            strips.swapaxes(0, 1).reshape(-1, *shape),
            columns=len(strips),
            title=f"eight chains, every {thin} moves from noise",
        )
        plots.image_grid(
            directory / "interpolation.png",
            np.asarray(interpolate(params, row_key)).reshape(-1, *shape),
            columns=10,
            title="rho z1 + sqrt(1 - rho^2) z2, rho from 1 to 0",
        )
        scalars |= solve(params, invert_key, directory)
        if section.long_run_steps:
            # After far more than K moves, chains still show images if training
            # converged to a density, and saturate if it did not.
            strips, infos, thin = follow(
                params, long_key, section.num_long_run, section.long_run_steps, 10
            )
            plots.image_grid(
                directory / "long_run.png",
                strips[:, :8].swapaxes(0, 1).reshape(-1, *shape),
                columns=len(strips),
                title=f"eight chains, every {thin} moves from noise",
            )
            scalars |= {
                "long_run_energy": float(infos.energy[-1].mean()),
                "long_run_abs_max": np.abs(strips[-1]).max(),
                # Hardly any pixel is outside the data's range after K moves.
                "long_run_saturated_share": (np.abs(strips[-1]) > 1.1).mean(),
            }
        scalars |= area_under_roc(energies, held_out, foreign, directory)
        if is_judged:
            drawn = {"samples": samples[: section.num_samples].clip(-1, 1)}
            scalars |= record_quality(directory, judge, drawn)
            if judge.accuracy is not None:
                scalars["classifier_accuracy"] = judge.accuracy()
        return scalars

    return evaluate
