"""Tasks of the table of training steps: updates and evaluations, on random data.

A task is that of a preset. Its networks, players and optimizers are made by the
problem's own functions, as in a run; only the data are random numbers of their shape,
so that nothing is read, and nothing of the evaluation is made.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ebmjax import training
from experiments.run.config import construct, with_options
from experiments.run.experiment import make_keys

DIGITS, MNIST = (8, 8, 1), (28, 28, 1)
KDD_COLUMNS = 121  # of the table as it is handed to the networks
WINE_COLUMNS = 11


class Task(NamedTuple):
    """An update of all players, or the evaluation of a function.

    Attributes:
      kind: Name of the programs that peers have for it, such as "short_run".
      config: The preset, from which a peer takes its options.
      params: Network name -> parameters.
      batch: `[microbatches, size, *event]` for an update. For a function, its further
        arguments.
      players: Player name -> `training.Player`; empty for a function.
      model_state: `"<network>_state"` -> mutable collections.
      function: `function(params, *batch)`, or None for an update.
      is_jitted: Whether the function is compiled as a whole.
      facts: Other facts that a peer must know.
    """

    kind: str
    config: ConfigDict
    params: dict[str, Any]
    batch: Any
    players: Mapping[str, training.Player] = {}
    model_state: dict[str, Any] = {}
    function: Callable | None = None
    is_jitted: bool = True
    facts: Mapping[str, Any] = {}


class Program(NamedTuple):
    """A contender's program for a task, ready to run.

    Attributes:
      run: `run(count) -> value`, after so many updates or evaluations are done: the
        last loss, or a number of the last result. The first call compiles.
      settings: In words, with the version.
      verify: Raises an AssertionError unless the program does what ours does.
    """

    run: Callable[[int], float]
    settings: str
    verify: Callable[[], None] = lambda: None


def random_batch(config: ConfigDict, players, shape: tuple[int, ...]) -> np.ndarray:
    """Returns uniform numbers in [-1, 1) for all inner updates of a step."""
    count = sum(player.num_updates for player in players.values())
    size = (count, config.data.batch_size, *shape)
    return 2 * np.random.default_rng(0).random(size, np.float32) - 1


def perturb(tree: Any) -> Any:
    """Returns parameters near these, of which none is zero."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.float32(x + 0.02 * random.standard_normal(np.shape(x))), tree
    )


def _keys(config: ConfigDict):
    return make_keys(config.seed)


# --- images ---------------------------------------------------------------------------


def short_run(preset: str, shape: tuple[int, ...], **changes) -> Task:
    from experiments.short_run import images, model

    config = with_options(images.get_config(preset), changes)
    made = model.make_model(config, shape)
    params, _ = made.network.init(_keys(config).params)
    players = model.make_players(config, made)
    batch = random_batch(config, players, shape)
    return Task("short_run", config, {"energy": params}, batch, players)


def _score_model(preset: str, shape: tuple[int, ...], **changes):
    from experiments.score_based import images, model

    config = with_options(images.get_config(preset), changes)
    # A measure of the data: about the distance of two images of noise.
    facts = {"largest_distance": math.sqrt(math.prod(shape))}
    made = model.make_model(config, shape, **facts)
    params, _ = made.network.init(_keys(config).params)
    return config, made, {made.name: params}, facts


def score_based(preset: str, shape: tuple[int, ...], **changes) -> Task:
    from experiments.score_based import model

    config, made, params, facts = _score_model(preset, shape, **changes)
    objective = model.make_objective(config, made)
    players = model.make_players(config, objective, made.name)
    batch = random_batch(config, players, shape)
    return Task("score_based", config, params, batch, players, facts=facts)


def score(preset: str, shape: tuple[int, ...], num: int = 100, **changes) -> Task:
    config, made, params, facts = _score_model(preset, shape, **changes)
    x = np.random.default_rng(0).standard_normal((num, *shape), np.float32)
    scales = np.geomspace(0.02, facts["largest_distance"], num).astype(np.float32)

    def scores(params, x, scales):
        return jax.vmap(made.score, (None, 0, 0))(params[made.name], x, scales)

    return Task("score", config, params, (x, scales), function=scores)


def sampling(preset: str, shape: tuple[int, ...], num: int = 100, **changes) -> Task:
    """Twenty scores of sampling: ten steps, each with a correction; and a last one."""
    changes = {"evaluation.sampler.num_steps": 10} | changes
    config, made, params, facts = _score_model(preset, shape, **changes)

    def sample(params, like, seed):
        return made.sample(params[made.name], jax.random.key(seed), len(like))

    batch = np.zeros((num, *shape), np.float32), np.int32(0)
    params = perturb(params)  # a score of zero determines no step of the corrections
    return Task("sampling", config, params, batch, function=sample, facts=facts)


def max_entropy(problem: str, preset: str, shape: tuple[int, ...], **changes) -> Task:
    from experiments.max_entropy import anomalies, images, model, players, stacked

    modules = {"images": images, "stacked": stacked, "anomalies": anomalies}
    config = with_options(modules[problem].get_config(preset), changes)
    nets = model.make_networks(config, shape)
    made = players.make_experiment(
        config, _keys(config), nets, batches=lambda size: None, evaluate=None, facts={}
    )
    batch = random_batch(config, made.players, shape)
    return Task(
        "max_entropy", config, made.params, batch, made.players, made.model_state
    )


def generalized(preset: str, shape: tuple[int, ...], **changes) -> Task:
    from experiments.generalized import images, players

    config = with_options(images.get_config(preset), changes)
    built = images.make_networks(config, shape)
    params, model_state = {"log_partition": np.zeros((), np.float32)}, {}
    for index, (name, network) in enumerate(built.items()):
        key = jax.random.fold_in(_keys(config).params, index)
        params[name], model_state[f"{name}_state"] = network.init(key)
    arguments = config, built["energy"], built["base"], config.latent_dim
    made = {
        "energy": players.energy_player(*arguments),
        "base": players.base_player(*arguments),
    }
    batch = random_batch(config, made, shape)
    return Task("generalized", config, params, batch, made, model_state)


# --- the plane and tables -------------------------------------------------------------


def tutorial(method: str, **changes) -> Task:
    from experiments.tutorial import run
    from experiments.tutorial.models import MODELS

    config = with_options(run.get_config(f"{method},two_moons"), changes)
    made = run.build(config, _keys(config))
    batch = np.asarray(made.batch(0)).reshape(1, config.data.batch_size, -1)
    facts = {name: np.array(value) for name, value in made.facts.items()}
    moments = facts["mean"], facts["covariance"]
    model = construct("network", config.network, MODELS, moments)
    facts["energy"] = model.energy
    return Task(method, config, made.params, batch, made.players, facts=facts)


def _flow(name: str, **changes):
    from experiments.generalized import tables

    # Rows of the red wines, by the likelihood of one flow.
    config = tables.get_config("red_wine,likelihood")
    changes = {"network.name": name} | changes
    config = with_options(config, changes, tables.CHOICES)
    flow = tables.make_flow(config, WINE_COLUMNS)
    return config, flow, {"energy": flow.init(_keys(config).params)}


def flow_update(name: str, **changes) -> Task:
    from experiments.generalized import tables

    config, flow, params = _flow(name, **changes)
    player = tables.baseline_player(config, flow, 0.0)._replace(num_updates=1)
    batch = random_batch(config, {"energy": player}, (WINE_COLUMNS,))
    return Task("likelihood", config, params, batch, {"energy": player})


def flow_log_prob(name: str, num: int = 10_000, **changes) -> Task:
    config, flow, params = _flow(name, **changes)
    x = np.random.default_rng(0).standard_normal((num, WINE_COLUMNS), np.float32)

    def log_prob(params, x):
        return jax.vmap(flow.log_prob, (None, 0))(params["energy"], x)

    return Task("log_prob", config, params, (x,), function=log_prob)


# --- the list -------------------------------------------------------------------------

TASKS: dict[str, Callable[[], Task]] = {
    "max_entropy stacked_mnist": functools.partial(
        max_entropy, "stacked", "stacked_mnist", (28, 28, 3)
    ),
    "score_based mnist": functools.partial(score_based, "mnist", MNIST),
    "short_run 32x32x3": functools.partial(
        short_run,
        "cifar10",
        (32, 32, 3),
        **{"network.width": 64, "objective.num_steps": 5},
    ),
    "generalized fashion_mnist_small": functools.partial(
        generalized, "fashion_mnist_small", MNIST
    ),
    "score_based digits": functools.partial(score_based, "digits", DIGITS),
    "short_run digits": functools.partial(short_run, "digits", DIGITS),
    "short_run mnist": functools.partial(
        short_run, "mnist", MNIST, **{"objective.num_steps": 20}
    ),
    "max_entropy digits": functools.partial(max_entropy, "images", "digits", DIGITS),
    "generalized digits": functools.partial(generalized, "digits", DIGITS),
    "score digits": functools.partial(score, "digits", DIGITS),
    "sampling digits": functools.partial(sampling, "digits", DIGITS),
    "max_entropy kdd99": functools.partial(
        max_entropy, "anomalies", "kdd99", (KDD_COLUMNS,)
    ),
    **{
        f"tutorial {method}": functools.partial(tutorial, method)
        for method in (
            "denoising_score_matching",
            "contrastive_divergence",
            "noise_contrastive",
            "score_matching",
        )
    },
    **{
        f"{name} {what}": functools.partial(make, name)
        for name in ("real_nvp", "masked_autoregressive")
        for what, make in (("update", flow_update), ("log_prob", flow_log_prob))
    },
}
"""Name of a workload -> its task."""
