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
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ebmjax import networks, objectives, samplers, starts, targets, training
from experiments import (
    _classifier,
    _data,
    _detection,
    _plane,
    _plots,
    _run,
    _sweep,
)

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

SWEEP = {
    # The paper's table: K with the data noise that each K needs, noise, width.
    **{
        f"K={num_steps}": {"objective.num_steps": num_steps, "data_noise.final": noise}
        for num_steps, noise in ((5, 0.05), (10, 0.025), (20, 0.01), (40, 0.01))
    },
    **{
        f"noise={noise}": {
            "data_noise.final": noise,
            "data_noise.start": max(noise, 0.1),
        }
        for noise in (0.4, 0.2, 0.1, 0.05, 0.01)
    },
    **{f"width={width}": {"network.width": width} for width in (8, 16, 32, 64)},
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
        "data": {
            "name": name,
            "batch_size": 64,  # of all devices; paper: m, also the number of chains
            "num_examples": 40_000,  # first images trained on; 0 for all
            "data_dir": "",  # prepared data; "" for TFDS's default folder
            "download": True,  # whether TFDS may fetch what is not there
            "size": 0,  # pixels a side; 0 for the data set's own
            **data,
        },
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
        "train": {
            "num_steps": 250_000,  # updates
            "log_every": 100,
            "eval_every": 25_000,
            "checkpoint_every": 5_000,
            "keep": 2,  # newest checkpoints
            "best": "samples_classifier_frechet_distance",  # kept too, where lowest
            "abort_above": 1e5,  # a metric this large: training has diverged
        },
        "evaluation": {
            "num_samples": 10_000,
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
    config["network"] |= {"width": 32, "negative_slope": 0.05}
    config["objective"]["num_steps"] = 20
    config["data_noise"] |= {"start": 0.1, "final": 0.03}
    config["data_noise"] |= {"decay_start": 0, "decay_steps": 2_400}
    config["optimizer"]["learning_rate"] |= {
        "start": 5e-3,
        "final": 2.5e-4,
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
    config["evaluation"] |= {"classifier_steps": 0, "num_samples": 0}
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
        "chunk_size": 20_000,
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
        data = _load_images(config)
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
    params, model_state = network.init(keys.params)
    evaluate = _evaluate_toy if is_toy else _evaluate_images
    return _run.Experiment(
        players={"energy": training.Player(("energy",), objective, optimizer)},
        params={"energy": params},
        model_state={"energy_state": model_state} if model_state else {},
        batch=batch,
        evaluate=evaluate(config, data, network, sampler, draw_noise, keys.evaluation),
    )


def _load_images(config: ConfigDict) -> _data.Images:
    section = dict(config.data)
    num_examples = section.pop("num_examples")
    del section["batch_size"]
    if "data_dir" in section:
        section |= {
            "data_dir": section["data_dir"] or None,
            "size": section["size"] or None,
        }
    data = _data.load(**section)
    if num_examples:
        if num_examples > len(data.train):
            raise ValueError(
                f"data.num_examples must be at most {len(data.train)},"
                f" got {num_examples}"
            )
        labels = data.labels_train
        data = data._replace(
            train=data.train[:num_examples],
            labels_train=None if labels is None else labels[:num_examples],
        )
    return data


def _evaluated(state: training.TrainState):
    """The averaged parameters where there are any."""
    params = state.params if state.ema_params is None else state.ema_params
    return jax.tree.map(jnp.asarray, params["energy"])


# --- evaluation in the plane -------------------------------------------------------


def _evaluate_toy(config, target, network, sampler, draw_noise, evaluation_key):
    """Short-run samples, long-run samples and `exp(-E / temperature)` against data."""
    del evaluation_key
    section, temperature = config.evaluation, config.sampler.temperature
    grid = _plane.plane(section.bound, section.num_bins)
    truth = grid.probabilities(target.energy_fn)

    def evaluate(state, key, directory):
        data_key, start_key, short_key, long_key = jax.random.split(key, 4)
        energy_fn = functools.partial(network.apply, _evaluated(state))

        def chains(key, num, num_steps):
            z = draw_noise(jax.random.fold_in(start_key, num_steps), (num, 2))
            state, _ = samplers.sample_chains(
                sampler, energy_fn, key, z, num_steps, collect=None
            )
            return grid.histogram(state.position)

        density = grid.probabilities(lambda x: energy_fn(x) / temperature)
        draws = target.sample(data_key, section.num_samples)
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
        _plots.densities(
            directory / "densities.png", panels, bounds=(-section.bound, section.bound)
        )
        data, short, model, long = panels.values()
        return {
            "samples_total_variation": _plane.total_variation(short, data),
            "density_total_variation": _plane.total_variation(model, data),
            "long_run_total_variation": _plane.total_variation(long, data),
            # What as many exact draws would have, for comparison.
            "data_total_variation": _plane.total_variation(grid.histogram(draws), data),
            # Nats, KL(data || density), with the density kept off zero by one part in
            # 1e12 of the grid: a cold one underflows, and infinity would stop the run.
            "density_kl": _plane.kl_divergence(
                truth, (density + 1e-12) / (1 + 1e-12 * density.size)
            ),
        }

    return evaluate


# --- evaluation on images ----------------------------------------------------------


def _block_mean(x):
    """Half the resolution: the mean over blocks of 2 x 2 pixels."""
    height, width, channels = x.shape
    x = x[: height // 2 * 2, : width // 2 * 2]
    return x.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))


def _pca_errors(train: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Per-pixel squared error of `images` by a PCA of `train`, for ranks 0, 1, ...."""
    train = train.reshape(len(train), -1).astype(np.float64)
    rows = images.reshape(len(images), -1).astype(np.float64) - train.mean(0)
    _, vectors = np.linalg.eigh(np.cov(train, rowvar=False))
    explained = ((rows @ vectors[:, ::-1]) ** 2).mean(0)
    errors = (rows**2).mean(0).sum() - np.concatenate([[0], np.cumsum(explained)])
    return np.maximum(errors, 0.0) / rows.shape[1]


def _evaluate_images(config, data, network, sampler, draw_noise, evaluation_key):
    section, num_steps = config.evaluation, config.objective.num_steps
    if section.jacobian not in ("identity", "autodiff"):
        raise ValueError(
            "evaluation.jacobian must be 'identity' or 'autodiff', got"
            f" {section.jacobian!r}"
        )
    shape = data.image_shape
    data_key, classifier_key, reference_key = jax.random.split(evaluation_key, 3)
    train = np.asarray(_data.dequantize(data_key, data.train[:10_000], data.num_levels))
    held_out = _data.dequantize(
        jax.random.fold_in(data_key, 1), data.held_out[:10_000], data.num_levels
    )

    @functools.cache
    def classifier():
        return _classifier.train(
            classifier_key,
            data.train,
            data.labels_train,
            num_classes=data.num_classes,
            num_levels=data.num_levels,
            noise_scale=config.data_noise.final,
            num_steps=section.classifier_steps,
        )

    foreign = _detection.foreign_images(
        reference_key,
        section.out_of_distribution,
        train,
        data_dir=config.data.get("data_dir") or None,
        download=config.data.get("download", False),
    )

    def generator(params):
        energy_fn = functools.partial(network.apply, params)
        return samplers.chain_generator(
            sampler, energy_fn, num_steps, jacobian=section.jacobian
        )

    @jax.jit
    def interpolate(params, key, z_pairs, fractions):
        """`fractions * z1 + sqrt(1 - fractions^2) * z2`, one key for a whole row."""

        def row(key, pair):
            def one(rho):
                z = rho * pair[0] + jnp.sqrt(1 - rho**2) * pair[1]
                return generator(params)(key, z)

            return jax.vmap(one)(fractions)

        return jax.vmap(row)(jax.random.split(key, len(z_pairs)), z_pairs)

    # What is seen of an image in each of the inverse problems.
    is_known = np.ones(shape, np.float32)
    is_known[shape[0] // 2 :] = 0.0  # the lower half is to be filled in
    tasks = {
        "reconstruction": lambda x: x,
        "inpainting": lambda x: x * is_known,
        "super_resolution": _block_mean,
    }

    @functools.partial(jax.jit, static_argnames="task")
    def invert(params, key, images, task):
        start_key, noise_key = jax.random.split(key)
        observe, generate = tasks[task], generator(params)
        # The gradient of a mean over 4 pixels is 4 times smaller than that of a pixel.
        scale = 4.0 if task == "super_resolution" else 1.0
        z, losses = samplers.invert_chain(
            generate,
            noise_key,
            draw_noise(start_key, images.shape),
            jax.vmap(observe)(images),
            num_iterations=section.num_iterations,
            step_size=scale * section.iteration_step,
            observe=observe,
        )
        keys = jax.random.split(noise_key, len(z))
        return jax.vmap(generate)(keys, z), losses.mean(1)

    @jax.jit
    def batched_energy(params, x):
        return jax.vmap(functools.partial(network.apply, params))(x)

    def energies_in_chunks(params, x):
        chunks = np.split(
            np.asarray(x), range(section.chunk_size, len(x), section.chunk_size)
        )
        return np.concatenate([np.asarray(batched_energy(params, x)) for x in chunks])

    def evaluate(state, key, directory):
        params = _evaluated(state)
        energy_fn = functools.partial(network.apply, params)
        keys = dict(
            zip(
                ("start", "samples", "strip", "pairs", "invert", "long"),
                jax.random.split(key, 6),
                strict=True,
            )
        )
        scalars = {}

        def chains(name, num, moves, **options):
            z = draw_noise(jax.random.fold_in(keys["start"], num), (num, *shape))
            return samplers.sample_chains(
                sampler, energy_fn, keys[name], z, moves, **options
            )

        # Samples, in chunks that fit.
        samples, infos = [], []
        num_chunks = -(
            -max(section.num_samples, section.num_shown) // section.chunk_size
        )
        for chunk in range(num_chunks):
            chunk_keys = [
                jax.random.fold_in(keys[k], chunk) for k in ("start", "samples")
            ]
            z = draw_noise(chunk_keys[0], (section.chunk_size, *shape))
            final, info = samplers.sample_chains(
                sampler, energy_fn, chunk_keys[1], z, num_steps, collect=None
            )
            samples.append(np.asarray(final.position))
            infos.append(float(info.gradient_norm.mean()))
        samples = np.concatenate(samples)
        _plots.image_grid(
            directory / "samples.png",
            samples[: section.num_shown],
            columns=int(np.ceil(section.num_shown**0.5)),
            title=f"samples after {num_steps} moves from noise",
        )
        energies = functools.partial(energies_in_chunks, params)
        energy_data, energy_model = energies(held_out).mean(), energies(samples).mean()
        scalars |= {
            "energy_data": energy_data,
            "energy_model": energy_model,
            "energy_difference": energy_data - energy_model,
            "gradient_norm": np.mean(infos),
            "gradient_norm_times_steps": num_steps * np.mean(infos),
            "samples_abs_max": np.abs(samples).max(),
        }

        # How a chain gets there.
        thin = max(num_steps // 10, 1)
        _, positions = chains(
            "strip", 8, num_steps, thin=thin, collect=lambda state, info: state.position
        )
        z = draw_noise(jax.random.fold_in(keys["start"], 8), (8, *shape))
        strip = jnp.concatenate([z[None], positions]).swapaxes(0, 1)
        _plots.image_grid(
            directory / "chain.png",
            strip.reshape(-1, *shape),
            columns=strip.shape[1],
            title=f"eight chains, every {thin} moves from noise",
        )

        # Interpolation that keeps the variance of the start.
        z_pairs = draw_noise(keys["pairs"], (8, 2, *shape))
        rows = interpolate(params, keys["pairs"], z_pairs, jnp.linspace(1.0, 0.0, 10))
        _plots.image_grid(
            directory / "interpolation.png",
            rows.reshape(-1, *shape),
            columns=10,
            title="rho z1 + sqrt(1 - rho^2) z2, rho from 1 to 0",
        )

        # Inverse problems on held-out images.
        images = held_out[: section.num_inverted]
        mean_image = jnp.asarray(train.mean(0))
        curves = {}
        for task in tasks:
            found, losses = invert(params, keys["invert"], images, task)
            curves[task] = {task: (np.arange(len(losses)), np.asarray(losses))}
            errors = np.asarray((jnp.clip(found, -1, 1) - images) ** 2)
            mean_errors = np.asarray((mean_image - images) ** 2)
            if task == "inpainting":
                errors, mean_errors = (
                    errors[:, is_known == 0],
                    mean_errors[:, is_known == 0],
                )
            scalars[f"{task}_mse"] = errors.mean()
            scalars[f"{task}_mse_of_mean_image"] = mean_errors.mean()
            seen = (
                images * is_known - (1 - is_known) if task == "inpainting" else images
            )
            if task == "super_resolution":
                seen = jax.vmap(_block_mean)(images)
                seen = jnp.repeat(jnp.repeat(seen, 2, 1), 2, 2)[
                    :, : shape[0], : shape[1]
                ]
            _plots.image_panels(
                directory / f"{task}.png",
                {"observed": seen[:16], task.replace("_", "-"): found[:16]}
                | ({} if task == "reconstruction" else {"truth": images[:16]}),
                columns=16,
            )
        pca = _pca_errors(train, np.asarray(images))
        # The latent has as many dimensions as the image, so that a PCA of equal rank
        # is exact; the rank at which a PCA errs as much tells more.
        scalars["reconstruction_mse_of_pca_of_equal_rank"] = pca[-1]
        scalars["reconstruction_equivalent_pca_rank"] = int(
            np.argmax(pca <= scalars["reconstruction_mse"])
        )
        _plots.curves(directory / "inversion.png", curves, x_label="iteration")

        if section.long_run_steps:
            scalars |= _long_run(chains, config, directory)
        scalars |= _detection.area_under_roc(energies, held_out, foreign)
        if section.classifier_steps and section.num_samples:
            table = _classifier.reference_table(
                classifier(),
                reference_key,
                np.concatenate([train, held_out])[:20_000],
                {"samples": samples[: section.num_samples].clip(-1, 1)},
            )
            _run.write_atomically(directory / "quality.md", _run.format_table(table))
            print(_run.format_table(table))
            for row in table:
                name = row.pop("name")
                scalars |= {f"{name}_{key}": value for key, value in row.items()}
            scalars["classifier_accuracy"] = _classifier.accuracy(
                classifier(), held_out, data.labels_held_out[: len(held_out)]
            )
        return scalars

    return evaluate


def _long_run(chains, config, directory: pathlib.Path) -> dict[str, float]:
    """Chains far beyond K: images if learning converged, saturation if it did not."""
    section = config.evaluation
    thin = max(section.long_run_steps // 10, 1)
    _, (positions, infos) = chains(
        "long",
        section.num_long_run,
        section.long_run_steps,
        thin=thin,
        collect=lambda state, info: (state.position, info),
    )
    positions = np.asarray(positions)
    shown = positions[:, :8].swapaxes(0, 1)
    _plots.image_grid(
        directory / "long_run.png",
        shown.reshape(-1, *positions.shape[2:]),
        columns=len(positions),
        title=f"eight chains, every {thin} moves",
    )
    return {
        "long_run_energy": float(infos.energy[-1].mean()),
        "long_run_abs_max": float(np.abs(positions[-1]).max()),
        # Elements outside the data's range: 0 for data, and near 0 after K moves.
        "long_run_saturated_share": float((np.abs(positions[-1]) > 1.1).mean()),
    }


def sweep(build, config, workdir):
    """The paper's table over K, data noise and width, in small."""
    return _sweep.sweep(build, config, workdir, SWEEP, SWEEP_COLUMNS)


if __name__ == "__main__":
    _run.main(build, __file__, sweep)
