"""Energy-based models in JAX: energies, samplers, objectives, training.

Pure functions throughout: nothing here touches a disk, a flag or a clock.
"""

from ebmjax import (
    counter_prng,
    diffusions,
    energies,
    metrics,
    networks,
    objectives,
    samplers,
    starts,
    targets,
    training,
    types,
)

__all__ = [
    "counter_prng",
    "diffusions",
    "energies",
    "metrics",
    "networks",
    "objectives",
    "samplers",
    "starts",
    "targets",
    "training",
    "types",
]
__version__ = "0.2.0.dev0"
