"""Maximum entropy generators: an energy, and a generator that is held to be diverse.

Paper: Kumar, Ozair, Goyal, Courville & Bengio (2019), "Maximum entropy generators for
energy-based models".
Claim checked: with a bound on its entropy the generator covers the modes, and the
energy, with its score held down at the data, tells what is foreign.

    python -m experiments.max_entropy --workdir=runs/toy
    python -m experiments.max_entropy --workdir=runs/ablation --sweep
    python -m experiments.max_entropy --workdir=runs/kdd --sweep         --config=experiments/max_entropy.py:kdd99 --config.data.data_dir=DIR
    python -m experiments.max_entropy --workdir=runs/mine         --config=experiments/max_entropy.py:tabular         --config.data.csv=normal.csv --config.data.score_csv=all.csv

Presets: `toy` (25 normals, minutes on a CPU), `eight_gaussians`, `swiss_roll`;
`digits` (embedded images); `stacked_mnist`, `stacked_mnist_4` (the paper's scale, for
GPU or TPU) and `stacked_mnist_2` (100 modes, CPU); `kdd99`, `mnist_anomaly`, `tabular`
(any table of numbers); `cifar10`, `celeb_a` (the paper's scale). After a comma the
method: `stacked_mnist,wgan_gp`, `stacked_mnist,gan`; `max_entropy` by default. With
`--sweep`: of the plane the ablation, of `kdd99` five seeds with and without scaling, of
`mnist_anomaly` the digits, of `stacked_mnist` the ablation and the baselines.
"""

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.data import (
    image_batches,
    image_section,
    in_chunks,
    load_section,
    quantize,
)
from experiments.judge import plots
from experiments.judge.inception import Inception
from experiments.judge.judge import make_judge
from experiments.max_entropy.anomalies import (
    HELD_OUT,
    SCORES,
    _kdd99,
    _mnist_anomaly,
    _of_held_out_class,
    _of_kdd99,
    _of_tables,
    _tabular,
)
from experiments.max_entropy.plane import (
    MODE_COLUMNS,
    PLANE_COLUMNS,
    TARGETS,
    _centres,
    _in_plane,
    _plane_preset,
)
from experiments.max_entropy.players import (
    ABLATION,
    BASELINES,
    METHODS,
    Problem,
    Sweep,
    _bound,
    _drawn,
    _preset,
    _shown,
    _with_method,
)
from experiments.max_entropy.stacked import _of_stacked, _stacked, _stacked_2
from experiments.run.workdir import record_table


def _images(name: str, **nets) -> dict:
    config = _preset(
        image_section(name),
        {"name": "convnet", "widths": (64, 128, 256, 512), "hidden_width": 512} | nets,
        latent_dim=128,
        num_samples=10_000,
        num_examples=10_000,  # of the data, to compare with
        num_chains=1_000,
        chunk_size=500,  # at a time
        num_shown=100,
        classifier_steps=4_000,
        inception_weights="",  # file of Inception v3's, for FID and IS; "" for none
        num_inception=50_000,  # draws for them, beside all training images
    )
    config["objective"] |= {"score_penalty": 10.0, "reduction": "channel_mean"}
    config["train"] |= {"eval_every": 10_000}
    return config


def _celeb_a() -> dict:
    config = _images("celeb_a", widths=(64, 128, 256, 512, 512), is_normal=False)
    config["data"]["size"] = 64
    config["evaluation"] |= {"classifier_steps": 0, "num_examples": 2_000}
    return config


def _digits() -> dict:
    config = _images("digits")
    for key in ("data_dir", "download", "size"):
        del config["data"][key]
    config["networks"] = {"name": "strided", "widths": (32, 64), "hidden_width": 128}
    config["latent_dim"] = 16
    config["optimizer"]["learning_rate"] |= {
        "start": 5e-4,
        "final": 1e-5,
        "decay_steps": 12_000,
    }
    config["train"] |= {"num_steps": 12_000, "eval_every": 0, "checkpoint_every": 500}
    config["evaluation"] |= {"num_samples": 2_000, "classifier_steps": 700}
    return config


PRESETS = {
    "toy": lambda: _plane_preset("twenty_five_gaussians"),
    "eight_gaussians": lambda: _plane_preset("eight_gaussians"),
    "swiss_roll": lambda: _plane_preset("swiss_roll"),
    "digits": _digits,
    "stacked_mnist": lambda: _stacked(3),
    "stacked_mnist_4": lambda: _stacked(4),
    "stacked_mnist_2": _stacked_2,
    "kdd99": _kdd99,
    "mnist_anomaly": _mnist_anomaly,
    "tabular": _tabular,
    "cifar10": lambda: _images("cifar10"),
    "celeb_a": _celeb_a,
}


def get_config(preset: str = "toy") -> ConfigDict:
    name, _, method = preset.partition(",")
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    config = PRESETS[name]()
    if method and method not in METHODS:
        raise ValueError(f"method must be one of {sorted(METHODS)}, got {method!r}")
    return _with_method(ConfigDict(config), method or "max_entropy").lock()


def _of_images(config, keys) -> Problem:
    data = load_section(config.data)
    options = config.evaluation
    plots.check()
    judge = make_judge(data, options.num_examples, options.classifier_steps)
    examples = np.concatenate([judge.train, judge.held_out])
    inception = None
    if options.inception_weights:
        inception = Inception(options.inception_weights, data.num_levels)

    def evaluation(nets):
        def evaluate(state, key, directory):
            energy_fn, generator_fn = _bound(nets, state)
            num = max(options.num_samples, options.num_inception if inception else 0)
            x, sampled = _drawn(
                config, energy_fn, generator_fn, key, num, options.chunk_size
            )
            scalars = {}
            if inception is not None:
                levels = quantize(x[: options.num_inception], data.num_levels)
                scalars |= inception.measure(levels, data.train)
            x = x[: options.num_samples]
            _shown(directory, x, sampled.x, options.num_shown)
            of_batch = jax.jit(jax.vmap(energy_fn))
            in_chunks = functools.partial(in_chunks, of_batch, size=options.chunk_size)
            scalars |= sampled.scalars | {
                "energy_data": float(in_chunks(examples).mean()),
                "energy_model": float(in_chunks(x).mean()),
            }
            if not options.classifier_steps:
                return scalars
            table = judge.table({"samples": x.clip(-1, 1)})
            chained = {k: v.clip(-1, 1) for k, v in sampled.x.items()}
            table += [row for row in judge.table(chained) if row["name"] in chained]
            return scalars | record_table(directory / "quality.md", table)

        return evaluate

    batches = functools.partial(
        image_batches, keys.data, data.train, num_levels=data.num_levels
    )
    return Problem(data.image_shape, batches, evaluation)


KINDS = {name: _in_plane for name in TARGETS} | {
    "stacked_mnist": _of_stacked,
    "kdd99": _of_kdd99,
    "mnist_anomaly": _of_held_out_class,
    "tabular": _of_tables,
}


def _sweep_of(name: str) -> Sweep:
    if name in TARGETS:
        has_modes = _centres(name) is not None
        return Sweep(ABLATION, MODE_COLUMNS * has_modes + PLANE_COLUMNS)
    if name == "kdd99":
        cells = {f"scaling={x}": {"data.scaling": x} for x in ("none", "min_max")}
        names = ("precision", "recall", "f1", "auprc")
        return Sweep(cells, tuple(f"{score}_{x}" for score in SCORES for x in names))
    if name == "mnist_anomaly":
        cells = {f"digit={digit}": {"data.label": digit} for digit in HELD_OUT}
        return Sweep(cells, tuple(f"{score}_auprc" for score in SCORES))
    if name == "stacked_mnist":
        columns = ("num_modes", "num_robust_modes", "kl", "kl_floor", "kl_excess")
        cells = {k: v for k, v in ABLATION.items() if k != "neither"}
        return Sweep(cells | {method: {} for method in BASELINES}, columns)
    raise ValueError(f"there is no sweep of {name}")


if __name__ == "__main__":
    main(build, __file__, sweep)
