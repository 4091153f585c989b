"""ebmkit, in PyTorch."""

from experiments.throughput.torch_energies import torch_energy
from experiments.throughput.torch_programs import TORCH_ENVIRONMENT, torch_contender
from experiments.throughput.workload import Kernel, Workload, check_sampler, version

PACKAGE, ENVIRONMENT = "ebm", TORCH_ENVIRONMENT


def make(workload: Workload, sampler: Kernel, x0, num_steps: int, **options):
    """Returns ebmkit's sampler; it differentiates the energy by autograd itself."""
    import ebm.samplers

    check_sampler("ebmkit", sampler)
    found = torch_energy(workload, x0, is_compiled=False)
    h = sampler.step_size
    if sampler.name == "hmc":
        chains = ebm.samplers.HMC(h, leapfrog_steps=sampler.num_leapfrog)
    else:
        names = {"langevin": "LangevinDynamics", "mala": "MALA"}
        chains = getattr(ebm.samplers, names[sampler.name])(h)

    def move(x, num_steps):
        return chains.sample(found.energy, x, steps=num_steps)

    settings = f"{version('ebmkit')} on {version('torch')}: energy by autograd"
    return torch_contender(move, x0, num_steps, settings, **options)
