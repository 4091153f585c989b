"""The commands that a borrowed GPU runs, in the order of their worth."""

from collections.abc import Sequence
from typing import NamedTuple

# The tests choose a CPU unless they are told otherwise.
DEVICE = {"JAX_PLATFORMS": "{platform}"}
HIGHEST = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
NUMBERS = ("energies", "metrics", "objectives", "samplers/test_exactness.py")
SMALL_IMAGES = ("evaluation.classifier_steps=50", "evaluation.chunk_size=50")


class Item(NamedTuple):
    """One command.

    Attributes:
      name: Name in the record, and of its folder.
      command: Arguments of Python. "{workdir}" and "{data_dir}" are replaced.
      limit: Share of the whole time that it may take.
      small: Arguments that cut its sizes.
      environment: Variables that it is given besides. "{platform}" is replaced.
      data: Data set that it needs, as `experiments.data.images` has it; "" for none.
      ends_with: Exit statuses of an item that has ended. Tests that fail are a result.
    """

    name: str
    command: Sequence[str]
    limit: float
    small: Sequence[str] = ()
    environment: dict[str, str] = {}
    data: str = ""
    ends_with: Sequence[int] = (0,)


def _tests(name: str, environment: dict[str, str]) -> Item:
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow")
    return Item(
        name,
        (*command, *(f"tests/ebmjax/{place}" for place in NUMBERS)),
        0.1,
        ("-k", "gaussian"),
        DEVICE | environment,
        ends_with=(0, 1),
    )


def _table(name: str, config: str) -> Item:
    command = ("-m", "experiments.throughput", "--workdir={workdir}")
    return Item(
        name,
        (*command, f"--config={config}"),
        0.12,
        ("--config=small" if config == "default" else "--config=training_small",),
    )


def _run(problem: str, preset: str, data: str, limit: float, *small: str) -> Item:
    command = (
        "-m",
        f"experiments.{problem}",
        "--workdir={workdir}",
        f"--config={preset}",
        "--config.data.data_dir={data_dir}",
        "--config.data.download=False",
    )
    cut = ("train.num_steps=3", "data.batch_size=8", *small)
    options = tuple(f"--config.{option}" for option in cut)
    return Item(f"{problem}_{preset}", command, limit, options, data=data)


ITEMS = (
    # The same tests twice: what fails at the default precision alone is no fault.
    _tests("tests_default", {}),
    _tests("tests_highest", HIGHEST),
    _table("samplers", "default"),
    _table("training", "training"),
    _run(
        "short_run.images",
        "mnist",
        "mnist",
        0.3,
        *SMALL_IMAGES,
        "network.width=4",
        "objective.num_steps=3",
        "evaluation.num_samples=100",
        "evaluation.num_inverted=4",
        "evaluation.num_iterations=2",
        "evaluation.long_run_steps=0",
        "evaluation.out_of_distribution=('uniform',)",
    ),
    _run(
        "max_entropy.stacked",
        "stacked_mnist",
        "mnist",
        0.3,
        "networks.widths=(4,4,4,4)",
        "networks.hidden_width=8",
        "evaluation.classifier_steps=50",
        "evaluation.chunk_size=500",
        "evaluation.samples_a_mode=1",
        "evaluation.num_chains=10",
        "evaluation.min_accuracy=0.0",
    ),
    _run(
        "score_based.images",
        "mnist",
        "mnist",
        0.3,
        *SMALL_IMAGES,
        "network.widths=(4,4)",
        "network.num_blocks=1",
        "evaluation.num_samples=100",
        "evaluation.sampler.num_steps=3",
        "evaluation.num_likelihoods=0",
        "evaluation.num_inpainted=0",
    ),
    _run(
        "max_entropy.images",
        "cifar10",
        "cifar10",
        0.5,
        *SMALL_IMAGES,
        "networks.widths=(4,4,4,4)",
        "networks.hidden_width=8",
        "evaluation.num_samples=100",
        "evaluation.num_chains=10",
    ),
    _run(
        "generalized.images",
        "cifar10",
        "cifar10",
        1.0,
        *SMALL_IMAGES,
        "network.widths=(4,4,4,4)",
        "players.num_extra_updates=1",
        "train.num_joint_steps=2",
        "evaluation.num_samples=100",
        "evaluation.sampler.names=('langevin',)",
        "evaluation.sampler.chain_lengths=(2,)",
        "evaluation.sampler.temperatures=(1.0,)",
    ),
)
