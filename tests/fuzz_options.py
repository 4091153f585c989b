"""Sets every option of a preset to bad values: each is refused by name, or trains.

python tests/fuzz_options.py --num_runs=200 --seed=0
python tests/fuzz_options.py --problem=short_run.plane:toy_convergent --option=sampler

Every value is built and its update traced; some, chosen at random, run for two updates
and an evaluation. A line is printed for each fault, and the exit status is their number
up to 100. A fault is any error that is not one sentence which names the option, and one
that comes after training began.
"""

import argparse
import contextlib
import importlib
import io
import math
import os
import pathlib
import random
import tempfile

import jax

from ebmjax import training
from experiments.run.config import flat, with_options
from experiments.run.experiment import make_keys
from experiments.run.limits import check_options
from experiments.run.loop import run

# Problems that need no file.
PROBLEMS = (
    "short_run.plane:toy_convergent",
    "short_run.images:digits",
    "tutorial.run:contrastive_divergence,eight_gaussians",
    "tutorial.run:multi_scale_denoising_score_matching,rings",
    "tutorial.run:noise_contrastive_flow,two_moons",
    "max_entropy.plane:toy",
    "max_entropy.images:digits",
    "generalized.circle:circle",
    "generalized.curve:curve",
    "generalized.images:digits",
    "score_based.plane:two_modes",
    "score_based.images:digits",
)
SMALL = {  # the last part of a path, or two parts of it -> its value in a run
    "train.num_steps": 2,
    "num_joint_steps": 1,
    "batch_size": max(8, 2 * jax.device_count()),  # two on each device
    "num_energy_updates": 2,
    "num_extra_updates": 1,
    "widths": (8, 8),
    "network.width": 8,
    "capacity": 64,
    "num_bins": 4,
    "objective.num_steps": 2,
    "evaluation.num_steps": 2,
    "sampler.num_steps": 2,
    "chain_lengths": (2, 3),
    "num_samples": 16,
    "chunk_size": 16,
    "num_chains": 16,
    "num_draws": 16,
    "num_examples": 64,
    "num_points": 16,
    "num_inverted": 4,
    "num_iterations": 2,
    "num_inpainted": 2,
    "num_likelihoods": 2,
    "num_long_run": 4,
    "long_run_steps": 2,
    "num_saved": 4,
    "num_shown": 2,
    "num_scales": 3,
    "classifier_steps": 2,
    "tolerance": 1e-2,
    "data.size": 0,
}


def make_small(config):
    """Returns the config with few updates, narrow networks and short chains."""
    given = {}
    for path, value in flat(config.to_dict()).items():
        parts = path.split(".")
        for name in (".".join(parts[-2:]), parts[-1]):
            if name in SMALL and value and not isinstance(value, str | bool):
                given[path] = SMALL[name]
                break
    return with_options(config, given)


def bad_values(value):
    """Values of an option that are wrong for most options of its type."""
    if isinstance(value, bool):
        return ["text"]
    if isinstance(value, str):
        return ["", "no_such_name", 3]
    if isinstance(value, int):
        return [-1, 0, 2**31, "text"]
    if isinstance(value, float):
        return [-1.0, 0.0, math.nan, math.inf, 1e30, "text"]
    if isinstance(value, tuple):
        wrong = [(), (*value, *value[:1]), tuple(["text"] * len(value))]
        if value and isinstance(value[0], int | float):
            wrong += [tuple([x] * len(value)) for x in (-1, 0, math.nan)]
        return wrong
    return ["text"]


def load(problem):
    """Returns the module of `folder.file:preset` and its small config."""
    name, _, preset = problem.partition(":")
    module = importlib.import_module(f"experiments.{name}")
    return module, make_small(module.get_config(preset))


def trace(module, config):
    """Builds the experiment and traces its update, which no device runs."""
    check_options(config.to_dict())
    keys, num = make_keys(config.seed), jax.device_count()
    experiment = module.build(config, keys)
    state = training.init_state(
        experiment.players,
        experiment.params,
        keys.train,
        num,
        model_state=experiment.model_state,
        ema_decay=config.ema_decay or None,
    )
    players = experiment.phases.get(experiment.phase(0), experiment.players)
    batch = experiment.batch(0)
    micro = sum(player.num_updates for player in players.values())
    shape = (num, micro, batch.shape[0] // num // micro, *batch.shape[1:])
    update = training.pmap_update(players, ema_decay=config.ema_decay or None)
    jax.eval_shape(update, state, jax.ShapeDtypeStruct(shape, batch.dtype))


def find_fault(problem, path, value, is_run):
    """Returns what is wrong with the answer to a bad value; "" if nothing is."""
    module, small = load(problem)
    has_trained = False
    try:
        config = with_options(small, {path: value})
        if not is_run:
            trace(module, config)
            return ""
        with tempfile.TemporaryDirectory() as folder:
            os.environ["EBMJAX_CACHE"] = folder  # no classifier is stored for the user
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    run(module.build, config, folder)
            finally:
                log = pathlib.Path(folder, "metrics.jsonl")
                has_trained = log.is_file() and '"train"' in log.read_text()
        return ""
    except FloatingPointError:
        return ""  # training that diverges stops by name
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        if has_trained:
            return f"refused after training: {text}"
        if path.rpartition(".")[2] not in text:
            return f"the option is not named: {text}"
        return "" if len(text) < 1000 and "\n" not in text else f"not one line: {text}"
    except Exception as error:  # any other is the fault that is looked for
        return f"{type(error).__name__}: {str(error)[:300]}"


def cases(problems, option=""):
    """Returns (problem, path, value) of every option and bad value."""
    found = []
    for problem in problems:
        for path, value in flat(load(problem)[1].to_dict()).items():
            if option in path:
                found += [(problem, path, bad) for bad in bad_values(value)]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", default="", help="folder.file:preset; else all")
    parser.add_argument("--option", default="", help="a part of the options' paths")
    parser.add_argument("--num_runs", type=int, default=0, help="values that are run")
    parser.add_argument("--num_traced", type=int, default=None, help="else all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    every = cases([args.problem] if args.problem else PROBLEMS, args.option)
    chosen = draw.sample(every, min(args.num_runs, len(every)))
    num = len(every) if args.num_traced is None else min(args.num_traced, len(every))
    todo = [(*case, False) for case in draw.sample(every, num)]
    todo += [(*case, True) for case in chosen]
    num_faults = 0
    for problem, path, value, is_run in todo:
        if fault := find_fault(problem, path, value, is_run):
            num_faults += 1
            what = "run" if is_run else "traced"
            print(f"{problem} {path}={value!r} ({what}): {fault}", flush=True)
    print(f"{len(todo)} values, {num_faults} faults")
    raise SystemExit(min(num_faults, 100))


if __name__ == "__main__":
    main()
