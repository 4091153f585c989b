"""Energy-based models in JAX: energies, samplers, objectives and training.

All functions are pure: nothing here uses a disk, a flag or a clock.
"""

from ebmjax import (
    checks,
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
    "checks",
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
