"""The methods: how each is set up, where it applies, and its options."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ebmjax import objectives, starts
from ebmjax.types import Energy
from experiments.tutorial import setups
from experiments.tutorial.setups import Setup, single_player
from experiments.tutorial.targets import HIGH, PLANE, SMOOTH


class Method(NamedTuple):
    """A line of the table.

    Attributes:
      make: `make(problem, **options) -> Setup`.
      targets: Names of the targets that the method applies to.
      num_gradients: `num_gradients(options, dim)`: gradients of the energy for each
        example of a batch in one update. A value with its gradient in the parameters is
        one, a score one more, and differentiating a score doubles it.
      objective: Options of `make`, the section `objective` of the config.
      num_updates: Number of training steps.
      overrides: Dotted path -> value of the config that differs from the common one.
      per_target: Target -> options that differ there.
      has_opponent: True if a flow, a critic or a generator is trained too.
      energy: `energy(problem, **options) -> Energy` of all trained parameters.
    """

    make: Callable[..., Setup]
    targets: tuple[str, ...]
    num_gradients: Callable[[Mapping[str, Any], int], float]
    objective: Mapping[str, Any] = {}
    num_updates: int = 10_000
    overrides: Mapping[str, Any] = {}
    per_target: Mapping[str, Mapping[str, Any]] = {}
    has_opponent: bool = False
    energy: Callable[..., Energy] = setups.model_energy


DIFFERENTIABLE = (*SMOOTH, *HIGH)
"""Targets of score matching and its kin, which compare scores: a checkerboard has none.
"""

_CHAIN = {"eight_gaussians": 0.05, "rings": 0.01, "two_moons": 0.005}
_CHAIN |= {"checkerboard": 0.05, "ica_10": 0.4, "ica_50": 0.2}
_CHAIN |= {"rbm_10": 0.3, "own": 0.02}
"""Step sizes of the samplers: a fraction of the square of a target's least width."""

STEPS = {target: {"step_size": step} for target, step in _CHAIN.items()}


def flow_section() -> dict[str, Any]:
    """Returns the options of a flow in the section `objective`."""
    return {
        "num_layers": 6,  # coupling layers of the flow
        "width": 32,  # units of each hidden layer of the flow, critic or generator
    }


SLOW_ENERGY = {
    # An opponent that lags behind lets the energy run away.
    "optimizer.learning_rate.start": 3e-4,
    "optimizer.b1": 0.5,
    "opponent.b1": 0.5,
}

METHODS = {
    "score_matching": Method(
        single_player(objectives.score_matching),
        DIFFERENTIABLE,
        lambda options, dim: 2 * (1 + dim),
    ),
    "sliced_score_matching": Method(
        single_player(objectives.sliced_score_matching),
        DIFFERENTIABLE,
        lambda options, dim: 2 + 2 * options["num_projections"],
        objective={
            "num_projections": 1,  # directions for an example; paper: M
            "projection": "rademacher",  # law of the directions; or "gaussian"
            "variance_reduced": True,  # whether the score's square is exact
        },
    ),
    "finite_difference_score_matching": Method(
        single_player(objectives.finite_difference_score_matching),
        DIFFERENTIABLE,
        lambda options, dim: 3,
        objective={"step": 0.05},  # x; step of the finite differences
    ),
    "denoising_score_matching": Method(
        single_player(objectives.denoising_score_matching),
        (*PLANE, *HIGH),
        lambda options, dim: 4 if options["variance_reduction"] else 2,
        objective={
            "noise_scale": 0.03,  # standard deviation of the added noise, x
            "variance_reduction": "antithetic",  # or "control_variate"; None for none
        },
        per_target={"checkerboard": {"noise_scale": 0.1}},
    ),
    "multi_scale_denoising_score_matching": Method(
        setups.multi_scale,
        PLANE,  # the exact models are no functions of a noise scale
        lambda options, dim: 2,
        objective={
            "noise_scales": (0.03, 0.08, 0.2, 0.5, 1.3),  # x; paper: sigma_i
        },
        num_updates=30_000,
        energy=setups.least_scale_energy,
    ),
    "minimum_velocity": Method(
        single_player(objectives.minimum_velocity),
        DIFFERENTIABLE,
        lambda options, dim: 3,
        objective={"step_size": 1e-4},
    ),
    "kernel_stein": Method(
        single_player(objectives.kernel_stein),
        DIFFERENTIABLE,
        lambda options, dim: 2,
        objective={
            "kernel": "rbf",  # Gaussian; or "imq", inverse multiquadric
            "bandwidth": 0.3,  # x; None for the median distance
            "statistic": "u",  # takes pairs of different examples; or "v", all pairs
        },
        per_target={name: {"bandwidth": None} for name in (*HIGH, "own")},
    ),
    "learned_stein": Method(
        setups.learned_stein,
        DIFFERENTIABLE,
        lambda options, dim: 2 + options["num_critic_updates"],
        objective={
            "l2_weight": 0.1,  # penalty on the critic's square; paper: lambda
            "num_critic_updates": 5,  # updates of the critic a step
            "width": 64,
        },
        num_updates=15_000,
        has_opponent=True,
        overrides=SLOW_ENERGY,
        per_target={name: {"l2_weight": 0.5, "width": 128} for name in HIGH},
    ),
    "conditional_noise_contrastive": Method(
        single_player(objectives.conditional_noise_contrastive),
        (*PLANE, *HIGH),
        lambda options, dim: 2,
        objective={"noise_scale": 0.3},
    ),
    "noise_contrastive": Method(
        setups.noise_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: 1 + options["num_noise"],
        objective={"num_noise": 4},  # noise examples for one of the data; paper: nu
    ),
    "noise_contrastive_flow": Method(
        setups.noise_contrastive_flow,
        (*PLANE, *HIGH),
        lambda options, dim: 1 + options["num_noise"],
        objective={
            "num_noise": 4,
            "num_updates": 3000,  # updates of the flow, before training
            **flow_section(),
        },
        per_target={name: {"num_layers": 2, "width": 64} for name in HIGH},
    ),
    "flow_contrastive": Method(
        setups.flow_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: 4,
        objective=flow_section(),
        num_updates=15_000,
        has_opponent=True,
        overrides={"opponent.learning_rate.start": 1e-3},
    ),
    "telescoping": Method(
        setups.telescoping,
        PLANE,  # the model is a sum of energies, which no exact model is
        lambda options, dim: 2 * len(options["waymarks"]),
        objective={"waymarks": (0.6, 0.9, 1.0)},  # share of the data; paper: alpha_k
        num_updates=20_000,
        energy=setups.summed_energy,
    ),
    "self_contrastive": Method(
        setups.self_contrastive,
        HIGH,  # the model must have exact draws
        lambda options, dim: 1 + options["num_noise"],
        objective={"num_noise": 1},
    ),
    "contrastive_divergence": Method(
        setups.contrastive_divergence,
        (*PLANE, *HIGH),
        lambda options, dim: 3 + options["num_steps"],
        objective={
            "start": "data",  # where chains start; or "noise", "replay"
            "num_steps": 5,  # moves of a chain
            "step_size": 0.0,  # of a move, x^2 / energy; x for coupled chains
        },
        per_target=STEPS,
    ),
    "persistent_contrastive_divergence": Method(
        setups.contrastive_divergence,
        (*PLANE, *HIGH),
        lambda options, dim: 3 + options["num_steps"],
        objective={
            "start": "replay",
            "num_steps": 20,
            "step_size": 0.0,
            # With so few, each moves every fourth update. With more, some lag behind,
            # are stuck where the energy is steep, and raise it further.
            "capacity": 1024,  # chains that are kept
            "reinit_prob": 0.002,  # probability that a chain starts again
        },
        num_updates=20_000,
        per_target=STEPS,
    ),
    "short_run": Method(
        setups.contrastive_divergence,
        PLANE,  # elsewhere its chains end where those of the other methods do
        lambda options, dim: 3 + options["num_steps"],
        objective={
            "start": "noise",
            "num_steps": 50,
            "step_size": 0.0,
            "energy_penalty": 0.001,  # weight of the squared energies
        },
        per_target=STEPS,
    ),
    "unbiased_contrastive_divergence": Method(
        single_player(objectives.unbiased_contrastive_divergence, start=starts.data()),
        (*PLANE, "rbm_10"),  # in many dimensions the chains do not meet
        lambda options, dim: 2 + 2 * options["max_steps"],
        objective={
            "num_burn_in": 0,  # first position that counts; paper: k
            "num_steps": 10,
            "max_steps": 40,  # moves after which a pair of chains is cut off
            "step_size": 0.0,
        },
        overrides={"data.batch_size": 64},
        per_target={
            "eight_gaussians": {"step_size": 0.4},
            "rings": {"step_size": 0.2},
            "two_moons": {"step_size": 0.15},
            "checkerboard": {"step_size": 0.5},
            "rbm_10": {"step_size": 0.5},
            "own": {"step_size": 0.2},
        },
    ),
    "variational": Method(
        setups.variational,
        (*PLANE, *HIGH),
        lambda options, dim: 2 + options["num_flow_updates"],
        objective={
            "num_flow_updates": 2,  # updates of the flow a step
            **flow_section(),
        },
        has_opponent=True,
        overrides=SLOW_ENERGY,
    ),
    "entropy_gradient": Method(
        setups.entropy_gradient,
        (*PLANE, *HIGH),
        lambda options, dim: 2 + options["num_generator_updates"],
        objective={
            "noise_scale": 0.1,
            "num_generator_updates": 1,  # updates of the generator a step
            "num_importance": 20,  # importance samples of a score
            "widening": 2.0,  # factor of the proposal's width
            "width": 128,
            "score_penalty": 0.0,  # weight of the squared score at the data
        },
        has_opponent=True,
        overrides=SLOW_ENERGY,
    ),
    "f_contrastive": Method(
        setups.f_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: (
            (1 + options["num_critic_updates"])
            * (3 + options["num_steps"] if options["num_steps"] else 2)
        ),
        objective={
            "divergence": "js",  # or "kl", "pearson", ...: see f_contrastive
            "num_critic_updates": 1,
            "num_steps": 50,
            "step_size": 0.0,
        },
        num_updates=5_000,
        has_opponent=True,
        overrides=SLOW_ENERGY,
        per_target=STEPS | {name: {"num_steps": 0} for name in HIGH},  # exact draws
    ),
    "maximum_likelihood": Method(
        setups.maximum_likelihood, HIGH, lambda options, dim: 1
    ),
}
"""Methods of `ebmjax.objectives` for which there are no data of their kind here:
`ratio_matching` and `minimum_probability_flow` (two values), and
`non_negative_score_matching` (no negative values)."""

OWN_METHODS = tuple(name for name in METHODS if "two_moons" in METHODS[name].targets)
"""Methods that apply to the target `own`: they need nothing but its rows."""
