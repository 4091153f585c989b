"""Score-based models: scores of noised data, sampled by annealed Langevin dynamics or
by diffusions run backwards, and likelihoods by their probability flows.

Papers: Song & Ermon (2019), "Generative modeling by estimating gradients of the data
distribution" (NCSN), and (2020), "Improved techniques for training score-based
generative models" (NCSNv2); Song et al. (2021), "Score-based generative modeling
through stochastic differential equations"; with Song & Kingma (2021), "How to train
your energy-based models", section 4.4.
Claim checked: one network of scores at all noise scales samples as well as, or better
than, an energy does, finds the weights of far modes, and has a likelihood.

    python -m experiments.score_based --workdir=runs/scores
    python -m experiments.score_based --workdir=runs/ladder         --config=experiments/score_based.py:digits,ladder
    python -m experiments.score_based --workdir=runs/modes         --config=experiments/score_based.py:two_modes

Presets: `digits` (embedded images, minutes on a CPU), `mnist`, `fashion_mnist`,
`cifar10` (the papers' scale, for GPU or TPU), `two_modes` (the plane). After a comma
the process: `variance_exploding`, `variance_preserving`, `sub_variance_preserving`, or
`ladder` for annealed Langevin dynamics through NCSNv2's noise scales; of `two_modes`
the last alone. `--config.network.is_energy=True` learns an energy instead, of which
the score is minus the gradient. With `--sweep` every process, and the energy.

Other than published: one network of noise scales serves every process
(`diffusions.with_time`), `ladder` too: a U-Net without attention. `cifar10` has the
batches, updates, rate and averages of the SDEs; NCSNv2's own, of `ladder`, are 300,000
updates at 1e-4 without warm-up or a bound on the gradient.
"""

import functools
import itertools
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import diffusions, metrics, objectives
from experiments.data import Images, dequantize, image_batches, in_chunks, load_section
from experiments.judge import plots
from experiments.judge.detection import area_under_roc, check_names, load_foreign
from experiments.judge.inverse import upper_half
from experiments.judge.judge import Judge, make_judge
from experiments.run.config import check_counts, flat
from experiments.run.experiment import Experiment, Keys, evaluated_params
from experiments.run.sweep import over_seeds, overridden, run_cells, seeds
from experiments.run.workdir import format_table, record_table, write_atomically
from experiments.score_based.model import (
    PROCESSES,
    SMALL_SCALE,
    _images,
    _of_model,
    _player,
    _process,
    _sections,
    make_model,
)
from experiments.score_based.plane import _in_plane, _two_modes


def _digits() -> dict:
    config = _images("digits", (32, 64), 1, 4_000)
    for key in ("data_dir", "download", "size", "is_mirrored"):
        del config["data"][key]
    config["data"]["batch_size"] = 64
    config["optimizer"]["learning_rate"] |= {
        "start": 2e-3,
        "final": 1e-5,
        "warmup_steps": 100,
        "decay_steps": 4_000,
    }
    config["evaluation"] |= {
        "num_samples": 1_000,  # 898 are compared, with as many of the data
        "classifier_steps": 700,
        "num_likelihoods": 297,
    }
    return config


def _cifar10() -> dict:
    config = _images("cifar10", (128, 256, 256, 256), 4, 1_300_000)
    config["data"]["is_mirrored"] = True
    return config


PRESETS = {
    "digits": _digits,
    "mnist": lambda: _images("mnist", (64, 128, 256), 2, 100_000),
    "fashion_mnist": lambda: _images("fashion_mnist", (64, 128, 256), 2, 100_000),
    "cifar10": _cifar10,
    "two_modes": _two_modes,
}


def get_config(preset: str = "digits") -> ConfigDict:
    name, _, process = preset.partition(",")
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    is_plane = name == "two_modes"
    choices = ("ladder",) if is_plane else PROCESSES
    process = process or choices[0]
    if process not in choices:
        raise ValueError(f"process must be one of {choices}, got {process!r}")
    return ConfigDict(PRESETS[name]() | _sections(name, process)).lock()


def build(config: ConfigDict, keys: Keys) -> Experiment:
    is_plane, process = config.data.name == "two_modes", config.process.name
    if is_plane != ("num_bins" in config.evaluation):
        raise ValueError(
            f"data.name {config.data.name!r} does not fit the preset: choose it by"
            f" --config=experiments/score_based.py:{config.data.name}"
        )
    if process not in PROCESSES:
        raise ValueError(f"process.name must be one of {PROCESSES}, got {process!r}")
    if set(config.process) != set(_process(process)[0]):
        raise ValueError(
            f"process.name {process!r} has options of its own: choose it by"
            f" --config=experiments/score_based.py:{config.data.name},{process}"
        )
    return (_in_plane if is_plane else _on_images)(config, keys)


def _on_images(config, keys) -> Experiment:
    _check(config.evaluation)
    data = load_section(config.data)
    options = config.evaluation
    plots.check()
    model = make_model(config, data)
    network, name, score = model.network, model.name, model.score
    process, sample = model.process, model.sample
    params, _ = network.init(keys.params)
    if model.ladder is not None:
        objective = objectives.multi_scale_denoising_score_matching(
            **_of_model(name, network), noise_scales=model.ladder, **config.objective
        )
    else:
        is_energy = name == "energy"
        timed = diffusions.energy_with_time if is_energy else diffusions.with_time
        objective = objectives.diffusion_score_matching(
            **_of_model(name, timed(network.apply, process)),
            diffusion=process,
            **config.objective,
        )
    # What is measured besides samples: `measure(params, key, directory) -> scalars`.
    measures = [_asymmetry(score, data)]
    if options.num_inpainted:
        measures.append(
            _inpainting(
                model.inpaint,
                data.held_out[: options.num_inpainted],
                data,
                options.chunk_size,
            )
        )
    if options.num_likelihoods:
        measures.append(_likelihood(config, score, process, data))
    # Whatever does not fit the sampler is found before training.
    jax.eval_shape(lambda params, key: sample(params, key, 1), params, keys.params)
    judge = make_judge(data, options.num_examples, options.classifier_steps)
    check_names(options.out_of_distribution)
    if name == "energy":
        measures.append(_detecting(config, network.apply, judge, keys.evaluation))
    is_judged = (
        data.labels_train is not None
        and options.classifier_steps
        and options.num_samples
    )

    def evaluate(state, key, directory):
        found = evaluated_params(state)[name]
        sample_key, *measure_keys = jax.random.split(key, 1 + len(measures))
        num = max(options.num_samples, options.num_shown)
        parts, started = [], time.monotonic()
        for chunk in range(-(-num // options.chunk_size)):
            chunk_key = jax.random.fold_in(sample_key, chunk)
            parts.append(np.asarray(sample(found, chunk_key, options.chunk_size)))
        samples = np.concatenate(parts)
        scalars = {
            "sampling_seconds": time.monotonic() - started,
            "samples_abs_max": np.abs(samples).max(),
        }
        plots.image_grid(
            directory / "samples.png",
            samples[: options.num_shown].clip(-1, 1),
            columns=math.ceil(options.num_shown**0.5),
            title=f"samples, {config.process.name}",
        )
        for measure, measure_key in zip(measures, measure_keys):
            scalars |= measure(found, measure_key, directory)
        if is_judged:
            drawn = {"samples": samples[: options.num_samples].clip(-1, 1)}
            scalars |= record_table(directory / "quality.md", judge.table(drawn))
        return scalars

    return Experiment(
        players=_player(config, objective, name),
        params={name: params},
        batch=image_batches(
            keys.data,
            data.train,
            config.data.batch_size,
            num_levels=data.num_levels,
            is_mirrored=config.data.get("is_mirrored", False),
        ),
        evaluate=evaluate,
    )


def _check(options) -> None:
    check_counts(
        "evaluation",
        options,
        num_examples=2,  # a covariance's
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


def _asymmetry(score, data: Images):
    """How far the score is from being any energy's: `|J v - J^T v|^2 / |J v|^2`, means
    over images with a noise of a tenth, half and twice the data's range; 0 where the
    score does not change at all."""

    @jax.jit
    def of_scale(params, x, noise, signs, noise_scale):
        def squares(example):
            x, noise, v = example

            def field(x):
                return score(params, x, noise_scale)

            at = x + noise_scale * noise
            _, along = jax.jvp(field, (at,), (v,))
            (against,) = jax.vjp(field, at)[1](v)
            return jnp.sum((along - against) ** 2), jnp.sum(along**2)

        apart, whole = jax.lax.map(squares, (x, noise, signs), batch_size=20)
        whole = whole.mean()
        return jnp.where(whole > 0, apart.mean() / whole, 0.0)

    def measure(params, key, directory):
        del directory
        dequantize_key, noise_key, sign_key = jax.random.split(key, 3)
        images = data.held_out[:100]
        x = dequantize(dequantize_key, images, data.num_levels)
        noise = jax.random.normal(noise_key, x.shape)
        signs = jax.random.rademacher(sign_key, x.shape, x.dtype)
        return {
            f"asymmetry_{scale:g}": float(
                of_scale(params, x, noise, signs, jnp.float32(scale))
            )
            for scale in (SMALL_SCALE, 1.0, 4.0)
        }

    return measure


def _detecting(config, energy, judge: Judge, key):
    """Is the energy higher on what is foreign? At a small noise scale, with no noise
    put on the images. A score alone does not say."""
    options = config.evaluation
    foreign = load_foreign(key, config, judge.train)
    of_images = jax.jit(jax.vmap(energy, (None, 0, None)))

    def measure(params, key, directory):
        del key, directory

        def energies_of(x):
            def of_chunk(x):
                return of_images(params, x, SMALL_SCALE)

            return in_chunks(of_chunk, x, options.chunk_size)

        return area_under_roc(energies_of, judge.held_out, foreign)

    return measure


def _likelihood(config, score, process, data: Images):
    """Bits a dimension of held-out images, by the flow, and two standard errors: of the
    mean over images, and of one image's mean over noises and signs."""
    options = config.evaluation
    images = data.held_out[: options.num_likelihoods]
    num_dims, size = math.prod(data.image_shape), min(options.chunk_size, len(images))
    timed = diffusions.with_time(score, process)
    # A pixel's level is 2 / num_levels wide.
    offset = math.log2(data.num_levels / 2)

    def measure(params, key, directory):
        del directory
        bits, evaluations = [], []
        for probe in range(options.num_probes):
            noise_key, flow_key = jax.random.split(jax.random.fold_in(key, probe))
            x = np.asarray(dequantize(noise_key, images, data.num_levels))
            chunks = itertools.count()

            def of_chunk(x, flow_key=flow_key, chunks=chunks):
                nats, flowed = metrics.probability_flow_log_prob(
                    process,
                    functools.partial(timed, params),
                    jax.random.fold_in(flow_key, next(chunks)),
                    x,
                    tolerance=options.tolerance,
                )
                return nats, flowed.num_evaluations

            nats, counts = in_chunks(of_chunk, x, size)
            bits.append(offset - np.asarray(nats, float) / (num_dims * math.log(2)))
            evaluations.append(counts.mean())
        bits = np.stack(bits)
        of_images = bits.mean(0)
        scalars = {
            "bits_per_dim": of_images.mean(),
            "bits_per_dim_error": of_images.std(ddof=1) / len(of_images) ** 0.5,
            "flow_evaluations": float(np.mean(evaluations)),
        }
        if len(bits) > 1:
            noise = (bits.var(0, ddof=1).mean() / len(bits)) ** 0.5
            scalars["bits_per_dim_noise"] = noise
        return scalars

    return measure


def _inpainting(inpaint, images, data: Images, chunk_size: int):
    """The lower halves of images, drawn given the upper ones: pictures and errors."""
    is_known = upper_half(data.image_shape)

    def measure(params, key, directory):
        dequantize_key, chain_key = jax.random.split(key)
        x = dequantize(dequantize_key, images, data.num_levels)
        x = np.asarray(x)
        parts = [
            inpaint(
                params,
                jax.random.fold_in(chain_key, first),
                x[first : first + chunk_size],
                is_known,
            )
            for first in range(0, len(x), chunk_size)
        ]
        found = np.concatenate(parts).clip(-1, 1)
        plots.image_panels(
            directory / "inpainting.png",
            {"seen": np.where(is_known, x, -1.0), "inpainting": found, "truth": x},
            columns=16,
        )
        mean = data.train.mean(0) * (2 / data.num_levels) - 1 + 1 / data.num_levels
        return {
            f"inpainting_mse{name}": ((other - x) ** 2)[:, ~is_known].mean()
            for name, other in (("", found), ("_of_mean_image", mean))
        }

    return measure


SWEEP_COLUMNS = (
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
)


def sweep(build, config: ConfigDict, workdir) -> None:
    """Every process with a score of its own, and the config's process with an energy;
    `table.md` has means over the seeds."""
    if config.data.name == "two_modes":
        raise ValueError("a sweep is of images, got data.name = 'two_modes'")
    workdir, seeds = pathlib.Path(workdir), seeds(config)
    base = config.to_dict()
    del base["sweep"]  # a cell is the same run in any sweep
    rows = {f"{name}, score": (name, False) for name in PROCESSES}
    rows[f"{config.process.name}, energy"] = (config.process.name, True)
    # What was given for the config's own process holds for others that have it too.
    own = flat(_sections(config.data.name, config.process.name))
    given = {k: v for k, v in flat(base).items() if k in own and v != own[k]}
    cells = {}
    for row, (name, is_energy) in rows.items():
        sections = base
        if name != config.process.name:
            sections = base | _sections(config.data.name, name)
        shared = {k: v for k, v in given.items() if k in flat(sections)}
        for seed in seeds:
            values = shared | {"seed": seed, "network.is_energy": is_energy}
            cell = overridden(ConfigDict(sections), values)
            cells[f"{row}, {seed}"] = cell

    def report(found):
        of_rows = {
            row: [found[cell] for cell in found if cell.startswith(f"{row}, ")]
            for row in rows
        }
        columns = [
            x for x in SWEEP_COLUMNS if any(x in cell for cell in found.values())
        ]
        table = over_seeds(of_rows, columns, digits=4)
        write_atomically(workdir / "table.md", format_table(table))

    run_cells(build, cells, workdir, report, keeps_failures=True)
    print((workdir / "table.md").read_text())


if __name__ == "__main__":
    main(build, __file__, sweep)
