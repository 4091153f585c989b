"""Metrics of samples, chains and models."""

from ebmjax.metrics.anomaly_detection import anomaly
from ebmjax.metrics.diagnostics import effective_sample_size, potential_scale_reduction
from ebmjax.metrics.distances import (
    frechet_distance,
    frechet_distance_from_moments,
    inception_score,
    maximum_mean_discrepancy,
)
from ebmjax.metrics.log_partition import (
    Annealed,
    annealed_importance_sampling,
    importance_sampling,
    quadrature,
    reverse_annealed_importance_sampling,
)
from ebmjax.metrics.mode_counts import modes
from ebmjax.metrics.probability_flow import probability_flow_log_prob
from ebmjax.metrics.stein import (
    SteinTest,
    kernel_stein_discrepancy,
    kernel_stein_test,
    median_distance,
    stein_kernel,
)

__all__ = [
    "Annealed",
    "SteinTest",
    "annealed_importance_sampling",
    "anomaly",
    "effective_sample_size",
    "frechet_distance",
    "frechet_distance_from_moments",
    "importance_sampling",
    "inception_score",
    "kernel_stein_discrepancy",
    "kernel_stein_test",
    "maximum_mean_discrepancy",
    "median_distance",
    "modes",
    "potential_scale_reduction",
    "probability_flow_log_prob",
    "quadrature",
    "reverse_annealed_importance_sampling",
    "stein_kernel",
]
