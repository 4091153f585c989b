"""methods"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ebmjax import objectives, starts
from experiments.tutorial.setups import (
    Setup,
    _alone,
    contrastive_divergence,
    entropy_gradient,
    f_contrastive,
    flow_contrastive,
    learned_stein,
    maximum_likelihood,
    multi_scale,
    noise_contrastive,
    self_contrastive,
    telescoping,
    variational,
)
from experiments.tutorial.targets import HIGH, PLANE, SMOOTH, UCI


class Method(NamedTuple):
    """A line of the table.

    Attributes:
      make: `make(problem, **options) -> Setup`.
      targets: Where it applies.
      num_gradients: `num_gradients(options, dim)`: gradients of the energy for each
        example of a batch in one update. A value with its gradient in the parameters is
        one, a score one more, and differentiating a score doubles it.
      options: Of `make`, `objective.*` in the config.
      num_updates: Of training.
      overrides: Other values of the config than the common ones, dotted.
      per_target: Target -> options that differ there.
      has_opponent: Whether a flow, a critic or a generator is trained too.
    """

    make: Callable[..., Setup]
    targets: tuple[str, ...]
    num_gradients: Callable[[Mapping[str, Any], int], float]
    options: Mapping[str, Any] = {}
    num_updates: int = 10_000
    overrides: Mapping[str, Any] = {}
    per_target: Mapping[str, Mapping[str, Any]] = {}
    has_opponent: bool = False


DIFFERENTIABLE = (*SMOOTH, *HIGH)
"""Score matching and its kin compare scores, and a checkerboard has none."""


_CHAIN = {"eight_gaussians": 0.05, "rings": 0.01, "two_moons": 0.005}
_CHAIN |= {"checkerboard": 0.05, "ica_10": 0.4, "ica_50": 0.2}
_CHAIN |= {"rbm_10": 0.3}
"""Steps of the samplers: a fraction of the square of each target's narrowest width."""


STEPS = {target: {"step_size": step} for target, step in _CHAIN.items()}


FLOW = {"num_layers": 6, "width": 32}


SLOW_ENERGY = {
    # An opponent that lags behind lets the energy run away.
    "optimizer.learning_rate.start": 3e-4,
    "optimizer.b1": 0.5,
    "opponent.b1": 0.5,
}


METHODS = {
    "score_matching": Method(
        _alone(objectives.score_matching),
        (*DIFFERENTIABLE, *UCI),
        lambda options, dim: 2 * (1 + dim),
    ),
    "sliced_score_matching": Method(
        _alone(objectives.sliced_score_matching),
        (*DIFFERENTIABLE, *UCI),
        lambda options, dim: 2 + 2 * options["num_projections"],
        {"num_projections": 1, "projection": "rademacher", "variance_reduced": True},
    ),
    "finite_difference_score_matching": Method(
        _alone(objectives.finite_difference_score_matching),
        (*DIFFERENTIABLE, *UCI),
        lambda options, dim: 3,
        {"step": 0.05},
    ),
    "denoising_score_matching": Method(
        _alone(objectives.denoising_score_matching),
        (*PLANE, *HIGH, *UCI),
        lambda options, dim: 4 if options["variance_reduction"] else 2,
        {"noise_scale": 0.03, "variance_reduction": "antithetic"},
        per_target={"checkerboard": {"noise_scale": 0.1}},
    ),
    "multi_scale_denoising_score_matching": Method(
        multi_scale,
        PLANE,  # the exact models have no noise scale to be a function of
        lambda options, dim: 2,
        {"noise_scales": (0.03, 0.08, 0.2, 0.5, 1.3)},
        num_updates=30_000,
    ),
    "minimum_velocity": Method(
        _alone(objectives.minimum_velocity),
        DIFFERENTIABLE,
        lambda options, dim: 3,
        {"step_size": 1e-4},
    ),
    "kernel_stein": Method(
        _alone(objectives.kernel_stein),
        DIFFERENTIABLE,
        lambda options, dim: 2,
        {"kernel": "rbf", "bandwidth": 0.3, "statistic": "u"},
        per_target={name: {"bandwidth": None} for name in HIGH},
    ),
    "learned_stein": Method(
        learned_stein,
        DIFFERENTIABLE,
        lambda options, dim: 2 + options["num_critic_updates"],
        {"l2_weight": 0.1, "num_critic_updates": 5, "width": 64},
        num_updates=15_000,
        has_opponent=True,
        overrides=SLOW_ENERGY,
        per_target={name: {"l2_weight": 0.5, "width": 128} for name in HIGH},
    ),
    "conditional_noise_contrastive": Method(
        _alone(objectives.conditional_noise_contrastive),
        (*PLANE, *HIGH),
        lambda options, dim: 2,
        {"noise_scale": 0.3},
    ),
    "noise_contrastive": Method(
        noise_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: 1 + options["num_noise"],
        {"noise": "gaussian", "num_noise": 4},
    ),
    "noise_contrastive_flow": Method(
        noise_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: 1 + options["num_noise"],
        {"noise": "flow", "num_noise": 4, "num_updates": 3000, **FLOW},
        per_target={name: {"num_layers": 2, "width": 64} for name in HIGH},
    ),
    "flow_contrastive": Method(
        flow_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: 4,
        FLOW,
        num_updates=15_000,
        has_opponent=True,
        overrides={"opponent.learning_rate.start": 1e-3},
    ),
    "telescoping": Method(
        telescoping,
        PLANE,  # its model is a sum of energies, and none of the exact ones
        lambda options, dim: 2 * len(options["waymarks"]),
        {"waymarks": (0.6, 0.9, 1.0)},
        num_updates=20_000,
    ),
    "self_contrastive": Method(
        self_contrastive,
        HIGH,  # where the model can be drawn from
        lambda options, dim: 1 + options["num_noise"],
        {"num_noise": 1},
    ),
    "contrastive_divergence": Method(
        contrastive_divergence,
        (*PLANE, *HIGH),
        lambda options, dim: 3 + options["num_steps"],
        {"start": "data", "num_steps": 5, "step_size": 0.0},
        per_target=STEPS,
    ),
    "persistent_contrastive_divergence": Method(
        contrastive_divergence,
        (*PLANE, *HIGH),
        lambda options, dim: 3 + options["num_steps"],
        {
            "start": "replay",
            "num_steps": 20,
            "step_size": 0.0,
            # So few that each moves every fourth update: of chains that lag behind,
            # some are stuck where the energy is steep, and raise it further.
            "capacity": 1024,
            "reinit_prob": 0.002,
        },
        num_updates=20_000,
        per_target=STEPS,
    ),
    "short_run": Method(
        contrastive_divergence,
        PLANE,  # elsewhere its chains end where those of the others do
        lambda options, dim: 3 + options["num_steps"],
        {
            "start": "noise",
            "num_steps": 50,
            "step_size": 0.0,
            "energy_penalty": 0.001,
        },
        per_target=STEPS,
    ),
    "unbiased_contrastive_divergence": Method(
        _alone(objectives.unbiased_contrastive_divergence, start=starts.data()),
        (*PLANE, "rbm_10"),  # in many dimensions the chains do not meet
        lambda options, dim: 2 + 2 * options["max_steps"],
        {"num_burn_in": 0, "num_steps": 10, "max_steps": 40, "step_size": 0.0},
        overrides={"data.batch_size": 64},
        per_target={
            "eight_gaussians": {"step_size": 0.4},
            "rings": {"step_size": 0.2},
            "two_moons": {"step_size": 0.15},
            "checkerboard": {"step_size": 0.5},
            "rbm_10": {"step_size": 0.5},
        },
    ),
    "variational": Method(
        variational,
        (*PLANE, *HIGH),
        lambda options, dim: 2 + options["num_flow_updates"],
        {"num_flow_updates": 2, **FLOW},
        has_opponent=True,
        overrides=SLOW_ENERGY,
    ),
    "entropy_gradient": Method(
        entropy_gradient,
        (*PLANE, *HIGH),
        lambda options, dim: 2 + options["num_generator_updates"],
        {
            "noise_scale": 0.1,
            "num_generator_updates": 1,
            "num_importance": 20,
            "widening": 2.0,
            "width": 128,
            "score_penalty": 0.0,
        },
        has_opponent=True,
        overrides=SLOW_ENERGY,
    ),
    "f_contrastive": Method(
        f_contrastive,
        (*PLANE, *HIGH),
        lambda options, dim: (
            (1 + options["num_critic_updates"])
            * (3 + options["num_steps"] if options["num_steps"] else 2)
        ),
        {
            "divergence": "js",
            "num_critic_updates": 1,
            "num_steps": 50,
            "step_size": 0.0,
        },
        num_updates=5_000,
        has_opponent=True,
        overrides=SLOW_ENERGY,
        per_target=STEPS | {name: {"num_steps": 0} for name in HIGH},  # exact draws
    ),
    "maximum_likelihood": Method(maximum_likelihood, HIGH, lambda options, dim: 1),
}
"""What applies where. Not here, for want of data of their kind: `ratio_matching` and
`minimum_probability_flow` (two values), `non_negative_score_matching` (no negative
values); they are in the tests."""
