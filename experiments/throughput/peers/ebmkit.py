"""ebmkit, in PyTorch."""

import numpy as np

from experiments.throughput.torch_energies import from_torch, to_torch, torch_energy
from experiments.throughput.torch_programs import (
    TORCH_ENVIRONMENT,
    fastest,
    torch_settings,
)
from experiments.throughput.workload import (
    Contender,
    Kernel,
    Workload,
    check_sampler,
    version,
)

PACKAGE, ENVIRONMENT = "ebm", TORCH_ENVIRONMENT


def make(
    workload: Workload,
    sampler: Kernel,
    x0,
    num_steps: int,
    *,
    num_threads: int | None = None,
) -> Contender:
    """Returns ebmkit's sampler; it differentiates the energy by autograd itself."""
    import ebm.samplers
    import torch

    check_sampler("ebmkit", sampler)
    found = torch_energy(workload, x0, is_compiled=False)
    h = sampler.step_size
    if sampler.name == "hmc":
        chains = ebm.samplers.HMC(h, leapfrog_steps=sampler.num_leapfrog)
    else:
        names = {"langevin": "LangevinDynamics", "mala": "MALA"}
        chains = getattr(ebm.samplers, names[sampler.name])(h)

    def make_step():
        return lambda x: chains.sample(found.energy, x, steps=1)

    setting = fastest(torch_settings(x0, False, num_threads), x0, make_step)
    start = to_torch(x0, setting.layout)

    def run(seed: int) -> np.ndarray:
        torch.set_num_threads(setting.num_threads)
        torch.manual_seed(seed)
        return from_torch(chains.sample(found.energy, start, steps=num_steps))

    versions = f"{version('ebmkit')} on {version('torch')}"
    return Contender(run, f"{versions}: energy by autograd, {setting}")
