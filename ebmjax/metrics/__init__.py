"""Numbers that say how good draws are."""

from ebmjax.metrics.diagnostics import effective_sample_size, potential_scale_reduction
from ebmjax.metrics.distances import frechet_distance, frechet_distance_from_moments

__all__ = [
    "effective_sample_size",
    "frechet_distance",
    "frechet_distance_from_moments",
    "potential_scale_reduction",
]
