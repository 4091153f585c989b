"""Training objectives: losses, with the memory they need, for `training.Player`."""

from ebmjax.objectives import (
    entropy_gradient,
    f_contrastive,
    flow_contrastive,
    generalized,
    learned_stein,
    max_entropy,
    variational,
)
from ebmjax.objectives.base import (
    Aux,
    Objective,
    generate,
    interpolate,
    stateless,
)
from ebmjax.objectives.binary import minimum_probability_flow, ratio_matching
from ebmjax.objectives.contrastive import ContrastiveCarry, contrastive_divergence
from ebmjax.objectives.denoising import (
    denoising_score_matching,
    diffusion_score_matching,
    multi_scale_denoising_score_matching,
)
from ebmjax.objectives.implicit_score_matching import (
    finite_difference_score_matching,
    non_negative_score_matching,
    score_matching,
    sliced_score_matching,
)
from ebmjax.objectives.kernel_stein_discrepancy import kernel_stein
from ebmjax.objectives.minimum_velocity_learning import minimum_velocity
from ebmjax.objectives.noise_contrastive_estimation import (
    NoiseDistribution,
    conditional_noise_contrastive,
    noise_contrastive,
    self_contrastive,
)
from ebmjax.objectives.telescoping_ratios import telescoping, telescoping_energy
from ebmjax.objectives.unbiased import unbiased_contrastive_divergence

__all__ = [
    "Aux",
    "ContrastiveCarry",
    "NoiseDistribution",
    "Objective",
    "conditional_noise_contrastive",
    "contrastive_divergence",
    "denoising_score_matching",
    "diffusion_score_matching",
    "entropy_gradient",
    "f_contrastive",
    "finite_difference_score_matching",
    "flow_contrastive",
    "generalized",
    "generate",
    "interpolate",
    "kernel_stein",
    "learned_stein",
    "max_entropy",
    "minimum_probability_flow",
    "minimum_velocity",
    "multi_scale_denoising_score_matching",
    "noise_contrastive",
    "non_negative_score_matching",
    "ratio_matching",
    "score_matching",
    "self_contrastive",
    "sliced_score_matching",
    "stateless",
    "telescoping",
    "telescoping_energy",
    "unbiased_contrastive_divergence",
    "variational",
]
