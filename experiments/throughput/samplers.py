"""Our samplers in the benchmark, a line each."""

from collections.abc import Callable
from typing import NamedTuple

from ebmjax import samplers
from experiments.throughput.workload import Kernel

WORKLOADS = ("gaussian", "mixture", "mlp", "conv 28x28x1", "conv 32x32x3", "latent")


class Ours(NamedTuple):
    """One of our samplers.

    Attributes:
      make: `make(step_size, num_leapfrog) -> Sampler`.
      step_sizes: Step size of each of `WORKLOADS`.
      check: Step size, leapfrogs and moves with which its law is checked on a Gaussian
        with precisions from 1 to 10: see `verify`.
      num_leapfrog: Gradients a move; 0 for one.
      is_for_images: Whether it runs on the energies of images too.
    """

    make: Callable[[float, int], samplers.Sampler]
    step_sizes: tuple[float, ...]
    check: tuple[float, int, int]
    num_leapfrog: int = 0
    is_for_images: bool = False


# Step sizes give an acceptance of 0.5 to 0.9 where there is one. Checks are far from
# the small steps at which any sampler looks right: on the coordinate with precision 10,
# unadjusted Langevin has twice the variance, and leapfrogs without their accept-reject
# step 1.2 times. A sampler of your own is one line more.
SAMPLERS = {
    "langevin": Ours(
        lambda step_size, _: samplers.langevin(step_size=step_size),
        (1e-3, 5e-3, 1e-2, 1e-3, 1e-3, 1e-2),
        (0.1, 0, 150),
        is_for_images=True,
    ),
    "mala": Ours(
        lambda step_size, _: samplers.mala(step_size=step_size),
        (6e-3, 2e-2, 1e-2, 1e-3, 1e-3, 1e-2),
        (0.1, 0, 300),
    ),
    "hmc": Ours(
        lambda step_size, num_leapfrog: samplers.hmc(
            step_size=step_size, num_leapfrog=num_leapfrog
        ),
        (0.1, 0.2, 0.1, 0.02, 0.02, 0.1),
        (0.27, 3, 100),
        num_leapfrog=10,
    ),
    "underdamped": Ours(
        lambda step_size, _: samplers.underdamped(step_size=step_size, friction=1.0),
        (0.05, 0.1, 0.1, 0.02, 0.02, 0.1),
        (0.05, 0, 400),
    ),
}


def make_sampler(kernel: Kernel) -> samplers.Sampler:
    """Returns our sampler of that name, step size and number of leapfrogs."""
    return SAMPLERS[kernel.name].make(kernel.step_size, kernel.num_leapfrog)


def gradients_per_move(kernel: Kernel) -> int:
    """Returns the gradients that a move evaluates."""
    return max(kernel.num_leapfrog, 1)
