"""Numbers that say how good draws are."""

from ebmjax.metrics.distances import frechet_distance, frechet_distance_from_moments

__all__ = ["frechet_distance", "frechet_distance_from_moments"]
