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
    python -m experiments.score_based --workdir=runs/ladder \
        --config=experiments/score_based.py:digits,ladder
    python -m experiments.score_based --workdir=runs/modes \
        --config=experiments/score_based.py:two_modes

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
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import (
    diffusions,
    energies,
    metrics,
    networks,
    objectives,
    samplers,
    targets,
    training,
)
from ebmjax.checks import check_count
from ebmjax.types import Array, Network
from experiments import (
    _classifier,
    _data,
    _detection,
    _evaluation,
    _plane,
    _plots,
    _run,
    _sweep,
)

# --- presets -----------------------------------------------------------------------

DIFFUSIONS = {
    "variance_exploding": diffusions.variance_exploding,
    "variance_preserving": diffusions.variance_preserving,
    "sub_variance_preserving": diffusions.sub_variance_preserving,
}
PROCESSES = (*DIFFUSIONS, "ladder")
SMALL_SCALE = 0.2  # of noise, a tenth of the data's range
NETWORKS = {"unet": networks.unet, "mlp": networks.noise_mlp}


def _process(name: str) -> tuple[dict, dict, dict]:
    """The sections `process`, `objective` and `sampler` of a process."""
    if name == "ladder":
        return (
            {
                "name": name,
                "largest": 0.0,  # x; 0 for the largest distance between examples
                "smallest": 0.02,  # x; paper: .01 on [0, 1]
                "num_scales": 0,  # 0 for as many as overlap by half
            },
            {},
            {
                "num_steps_per_level": 5,  # moves; paper: T
                "relative_step_size": 0.0,  # of a scale's square; 0 for Technique 4
            },
        )
    process = {"name": name, "rate_min": 0.1, "rate_max": 20.0}  # paper: beta
    if name == "variance_exploding":
        # x; 0 for the largest distance between examples. Paper: .01 on [0, 1]
        process = {"name": name, "noise_min": 0.02, "noise_max": 0.0}
    return (
        process,
        {"weighting": "noise"},  # or "likelihood"
        {
            "predictor": "reverse_diffusion",  # or as in `samplers.sample_diffusion`
            "num_steps": 1_000,  # paper: N
            "num_corrections": 1,
            "signal_to_noise": 0.16,  # paper: r, on CIFAR-10
            # Papers: 1e-5 for VE, which has noise of `noise_min` there.
            "time_min": 1e-5 if name == "variance_exploding" else 1e-3,
        },
    )


def _images(name: str, widths, num_blocks: int, num_steps: int) -> dict:
    optimizer = _run.adam_section(2e-4, b1=0.9, b2=0.999) | {"gradient_clip": 1.0}
    optimizer["learning_rate"]["warmup_steps"] = 5_000
    return {
        "seed": 0,
        "data": _data.image_section(
            name,
            batch_size=128,
            is_mirrored=False,  # whether half of the images are, left to right
        ),
        "network": {
            "name": "unet",
            "widths": widths,
            "num_blocks": num_blocks,
            "activation": "swish",
            "conditioning": "embedding",  # or "division", NCSNv2's Technique 3
            "is_energy": False,  # whether the score is minus an energy's gradient
        },
        "optimizer": optimizer,
        "ema_decay": 0.999,  # of the parameters that are evaluated; 0 for none
        "train": _run.train_section(num_steps),
        "evaluation": {
            "num_samples": 10_000,
            "num_examples": 10_000,  # of the data and of the held-out, to compare with
            "num_shown": 100,
            "chunk_size": 500,  # chains at a time
            "classifier_steps": 4_000,
            "num_likelihoods": 1_000,  # first held-out images, if so many; 0 for none
            "num_probes": 4,  # noises and signs for each
            "tolerance": 1e-5,  # of the flow's steps
            "num_inpainted": 16,  # first held-out images, if so many; 0 for none
            # Or names of data sets; of energies alone, a score does not say.
            "out_of_distribution": ("uniform", "gaussian"),
        },
        "sweep": {"num_seeds": 1},  # seed, seed + 1, ...
    }


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


def _sections(data: str, process: str) -> dict:
    """The sections that depend on the process, for a preset's data."""
    found = dict(zip(("process", "objective", "sampler"), _process(process)))
    is_ladder = process == "ladder"
    if data == "two_modes":
        # Song & Ermon's: 20 to 1, where the data are as wide; steps of a tenth.
        found["process"] |= {"largest": 20.0, "smallest": 0.1, "num_scales": 20}
        found["sampler"] |= {"num_steps_per_level": 100, "relative_step_size": 0.05}
    if data == "cifar10":  # papers: of VP and sub-VP over ten times as many updates
        found["ema_decay"] = 0.9999 if "preserving" in process else 0.999
    if data == "digits":  # few dimensions, and a CPU
        few = {"num_steps_per_level": 20} if is_ladder else {"num_steps": 200}
        found["sampler"] |= few
    return found


# --- building ----------------------------------------------------------------------


def build(config: ConfigDict, keys: _run.Keys) -> _run.Experiment:
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


def _model(config, event_shape):
    """Network, the name of its parameters, and `score(params, x, noise_scale)`."""
    network = _run.construct(config.network, NETWORKS, event_shape)
    if config.network.is_energy:
        return network, "energy", energies.score(network.apply)
    return network, "score", network.apply


def _of_model(name: str, function) -> dict:
    """The objectives' keyword argument for it."""
    return {"energy" if name == "energy" else "score_network": function}


def _ladder(config, largest, num_dims: int) -> np.ndarray:
    """`largest()` is of the data's distances, asked for where the config has none."""
    process = config.process
    counts = {"num_scales": process.num_scales}
    if not process.num_scales:
        if num_dims < 5:
            raise ValueError(
                "process.num_scales must be given in fewer than 5 dimensions, where any"
                f" two scales overlap by half, got 0 in {num_dims}"
            )
        counts = {"num_dims": num_dims}
    return samplers.noise_ladder(
        process.largest or largest(), process.smallest, **counts
    )


def _relative_step_size(config, ladder: np.ndarray) -> float:
    check_count("sampler.num_steps_per_level", config.sampler.num_steps_per_level, 1)
    given = config.sampler.relative_step_size
    if not 0 <= given < 2:  # from 2 on the noise alone would grow without end
        raise ValueError(
            "sampler.relative_step_size must be positive and below 2, or 0 for"
            f" Technique 4, got {given}"
        )
    return given or samplers.relative_step_size(
        ladder[0] / ladder[1], config.sampler.num_steps_per_level
    )


def _bind(score, params, noise_scale, x):
    """The energy, as far as there is one, of a level."""
    return energies.from_score(score)(params, x, noise_scale)


def _family(score):
    """`params -> level -> energy_fn`; made once, so that nothing compiles anew."""

    def of_level(params, noise_scale):
        return functools.partial(_bind, score, params, noise_scale)

    return lambda params: functools.partial(of_level, params)


def _player(config, objective, name: str) -> dict[str, training.Player]:
    optimizer = _run.make_optimizer(config.optimizer)
    return {name: training.Player((name,), objective, optimizer)}


# --- the plane ---------------------------------------------------------------------

MODES, WEIGHTS = ((-5.0, -5.0), (5.0, 5.0)), (0.2, 0.8)


def _in_plane(config, keys) -> _run.Experiment:
    """Annealed and plain Langevin dynamics, with learned and with exact scores."""
    options, num_steps = config.evaluation, config.sampler.num_steps_per_level
    _plots.check()
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
    grid = _plane.plane(options.bound, options.num_bins)

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
        found = {"": _run.evaluated_params(state)[name], "_exact": ()}
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
        _plots.densities(directory / "densities.png", panels, bounds=bounds)
        return scalars

    return _run.Experiment(
        players=_player(config, objective, name),
        params={name: params},
        batch=_data.target_batches(keys.data, target, config.data.batch_size),
        evaluate=evaluate,
    )


# --- images ------------------------------------------------------------------------


class Model(NamedTuple):
    """A score-based model of images, without its parameters.

    Attributes:
      network: From `ebmjax.networks`.
      name: Of its parameters: "score", or "energy", of which the score is minus the
        gradient.
      score: `score(params, x, noise_scale) -> [*image]` of one image. Here and below
        `params` are those under `name` alone.
      ladder: `[scales]`, or None for a diffusion.
      process: The diffusion; of a ladder the one with all scales between its ends.
      sample: `sample(params, key, num) -> [num, *image]`, not clipped to [-1, 1].
      inpaint: `inpaint(params, key, x, is_known) -> [n, *image]` that agree with `x`,
        `[n, *image]`, where the booleans `[*image]` are True.
    """

    network: Network
    name: str
    score: Callable[..., Array]
    ladder: np.ndarray | None
    process: diffusions.Diffusion
    sample: Callable[..., Array]
    inpaint: Callable[..., Array]


def make_model(config: ConfigDict, data: _data.Images) -> Model:
    """The model of a run's config.

    Args:
      config: Of any preset of images.
      data: The config's own, `_data.from_section(config.data)`: their largest distance
        is the largest noise where the config says 0.

    Raises:
      ValueError: If an option of the network, process or sampler is none.
    """
    network, name, score = _model(config, data.image_shape)

    def largest():
        return _largest_distance(_run.make_keys(config.seed).evaluation, data)

    if config.process.name == "ladder":
        ladder = _ladder(config, largest, math.prod(data.image_shape))
        process = diffusions.variance_exploding(
            noise_min=float(ladder[-1]), noise_max=float(ladder[0])
        )
        sample = _annealed(config, score, ladder, data.image_shape)
        inpaint = _annealed_inpainting(config, score, ladder, data.image_shape)
    else:
        ladder, process = None, _diffusion(config, largest)
        sample, inpaint = _reversed(config, score, process, data.image_shape)
    return Model(network, name, score, ladder, process, sample, inpaint)


def _on_images(config, keys) -> _run.Experiment:
    _check(config.evaluation)
    data = _data.from_section(config.data)
    options = config.evaluation
    _plots.check()
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
    judge = _classifier.judge(data, options.num_examples, options.classifier_steps)
    _detection.check(options.out_of_distribution)
    if name == "energy":
        measures.append(_detecting(config, network.apply, judge, keys.evaluation))
    is_judged = (
        data.labels_train is not None
        and options.classifier_steps
        and options.num_samples
    )

    def evaluate(state, key, directory):
        found = _run.evaluated_params(state)[name]
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
        _plots.image_grid(
            directory / "samples.png",
            samples[: options.num_shown].clip(-1, 1),
            columns=math.ceil(options.num_shown**0.5),
            title=f"samples, {config.process.name}",
        )
        for measure, measure_key in zip(measures, measure_keys):
            scalars |= measure(found, measure_key, directory)
        if is_judged:
            drawn = {"samples": samples[: options.num_samples].clip(-1, 1)}
            scalars |= _run.record_table(directory / "quality.md", judge.table(drawn))
        return scalars

    return _run.Experiment(
        players=_player(config, objective, name),
        params={name: params},
        batch=_data.image_batches(
            keys.data,
            data.train,
            config.data.batch_size,
            num_levels=data.num_levels,
            is_mirrored=config.data.get("is_mirrored", False),
        ),
        evaluate=evaluate,
    )


def _check(options) -> None:
    _run.check_counts(
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


def _largest_distance(key, data: _data.Images) -> float:
    """Of all pairs of training images, or of the first 10,000."""
    images = data.train[:10_000]
    return samplers.largest_distance(_data.dequantize(key, images, data.num_levels))


def _diffusion(config, largest) -> diffusions.Diffusion:
    section = dict(config.process)
    if section.get("noise_max") == 0:
        section["noise_max"] = largest()
    return _run.construct(section, DIFFUSIONS)


def _annealed(config, score, ladder, shape):
    """`(params, key, num) -> samples`: the chains, then the last noise taken away."""
    relative, family = _relative_step_size(config, ladder), _family(score)

    def sampler_of(noise_scale):
        return samplers.langevin(step_size=relative * noise_scale**2)

    @jax.jit
    def denoise(params, x):
        last = jnp.float32(ladder[-1])
        return x + last**2 * jax.vmap(score, (None, 0, None))(params, x, last)

    def sample(params, key, num):
        start_key, chain_key = jax.random.split(key)
        # Of the first scale: data and noise about them.
        x = ladder[0] * jax.random.normal(start_key, (num, *shape))
        state, _ = samplers.sample_annealed(
            sampler_of,
            family(params),
            ladder,
            chain_key,
            x,
            config.sampler.num_steps_per_level,
        )
        return denoise(params, state.position)

    return sample


def _reversed(config, score, process, shape):
    """`(params, key, num) -> samples` of the diffusion run backwards, and
    `(params, key, x, is_known) -> images` that agree with what is known of `x`."""
    options = config.sampler.to_dict()
    timed = diffusions.with_time(score, process)

    def sample(params, key, num, known=None):
        start_key, chain_key = jax.random.split(key)
        x = process.prior_std * jax.random.normal(start_key, (num, *shape))
        found, _ = samplers.sample_diffusion(
            process,
            functools.partial(timed, params),
            chain_key,
            x,
            known=known,
            **options,
        )
        return found

    def inpaint(params, key, x, is_known):
        return sample(params, key, len(x), (is_known, x))

    return sample, inpaint


def _asymmetry(score, data: _data.Images):
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
        x = _data.dequantize(dequantize_key, images, data.num_levels)
        noise = jax.random.normal(noise_key, x.shape)
        signs = jax.random.rademacher(sign_key, x.shape, x.dtype)
        return {
            f"asymmetry_{scale:g}": float(
                of_scale(params, x, noise, signs, jnp.float32(scale))
            )
            for scale in (SMALL_SCALE, 1.0, 4.0)
        }

    return measure


def _detecting(config, energy, judge: _classifier.Judge, key):
    """Is the energy higher on what is foreign? At a small noise scale, with no noise
    put on the images. A score alone does not say."""
    options = config.evaluation
    foreign = _detection.from_config(key, config, judge.train)
    of_images = jax.jit(jax.vmap(energy, (None, 0, None)))

    def measure(params, key, directory):
        del key, directory

        def energies_of(x):
            def of_chunk(x):
                return of_images(params, x, SMALL_SCALE)

            return _data.in_chunks(of_chunk, x, options.chunk_size)

        return _detection.area_under_roc(energies_of, judge.held_out, foreign)

    return measure


def _likelihood(config, score, process, data: _data.Images):
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
            x = np.asarray(_data.dequantize(noise_key, images, data.num_levels))
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

            nats, counts = _data.in_chunks(of_chunk, x, size)
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


def _annealed_inpainting(config, score, ladder, shape):
    """`(params, key, x, is_known) -> images`: at every level what is known is put back
    with that level's noise, drawn once a level, before any score is asked for."""
    relative = _relative_step_size(config, ladder)
    levels = jnp.asarray(ladder, jnp.float32)

    def of_level(params, level):
        return functools.partial(_bind, score, params, level[0])

    def one_image(params, is_known, key, image):
        def sampler_of(level):
            noise_scale, known = level

            def project(x):
                return jnp.where(is_known, known, x)

            step_size = relative * noise_scale**2
            moves = samplers.langevin(step_size=step_size, project=project)
            return samplers.Sampler(
                lambda energy_fn, x: moves.init(energy_fn, project(x)), moves.step
            )

        start_key, noise_key, chain_key = jax.random.split(key, 3)
        noise = jax.random.normal(noise_key, (len(levels), *shape))
        known = image[None] + levels.reshape(-1, 1, 1, 1) * noise
        state, _ = samplers.sample_annealed(
            sampler_of,
            functools.partial(of_level, params),
            (levels, known),
            chain_key,
            levels[0] * jax.random.normal(start_key, (1, *shape)),
            config.sampler.num_steps_per_level,
        )
        last = state.position[0]
        denoised = last + levels[-1] ** 2 * score(params, last, levels[-1])
        return jnp.where(is_known, image, denoised)

    of_images = jax.jit(jax.vmap(one_image, (None, None, 0, 0)))

    def inpaint(params, key, x, is_known):
        return of_images(params, is_known, jax.random.split(key, len(x)), x)

    return inpaint


def _inpainting(inpaint, images, data: _data.Images, chunk_size: int):
    """The lower halves of images, drawn given the upper ones: pictures and errors."""
    is_known = _evaluation.upper_half(data.image_shape)

    def measure(params, key, directory):
        dequantize_key, chain_key = jax.random.split(key)
        x = _data.dequantize(dequantize_key, images, data.num_levels)
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
        _plots.image_panels(
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


# --- sweep -------------------------------------------------------------------------

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
    workdir, seeds = pathlib.Path(workdir), _sweep.seeds(config)
    base = config.to_dict()
    del base["sweep"]  # a cell is the same run in any sweep
    rows = {f"{name}, score": (name, False) for name in PROCESSES}
    rows[f"{config.process.name}, energy"] = (config.process.name, True)
    # What was given for the config's own process holds for others that have it too.
    own = _run.flat(_sections(config.data.name, config.process.name))
    given = {k: v for k, v in _run.flat(base).items() if k in own and v != own[k]}
    cells = {}
    for row, (name, is_energy) in rows.items():
        sections = base
        if name != config.process.name:
            sections = base | _sections(config.data.name, name)
        shared = {k: v for k, v in given.items() if k in _run.flat(sections)}
        for seed in seeds:
            values = shared | {"seed": seed, "network.is_energy": is_energy}
            cell = _sweep.overridden(ConfigDict(sections), values)
            cells[f"{row}, {seed}"] = cell

    def report(found):
        of_rows = {
            row: [found[cell] for cell in found if cell.startswith(f"{row}, ")]
            for row in rows
        }
        columns = [
            x for x in SWEEP_COLUMNS if any(x in cell for cell in found.values())
        ]
        table = _sweep.over_seeds(of_rows, columns, digits=4)
        _run.write_atomically(workdir / "table.md", _run.format_table(table))

    _sweep.run_cells(build, cells, workdir, report, keeps_failures=True)
    print((workdir / "table.md").read_text())


if __name__ == "__main__":
    _run.main(build, __file__, sweep, untrained=("sampler",))
