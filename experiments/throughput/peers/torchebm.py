"""TorchEBM, in PyTorch."""

import numpy as np

from experiments.throughput.torch_energies import torch_energy
from experiments.throughput.torch_programs import TORCH_ENVIRONMENT, torch_contender
from experiments.throughput.workload import Kernel, Workload, check_sampler, version

PACKAGE, ENVIRONMENT = "torchebm", TORCH_ENVIRONMENT


def make(workload: Workload, sampler: Kernel, x0, num_steps: int, **options):
    """Returns TorchEBM's sampler, with our gradient where we have one."""
    import torchebm.core
    import torchebm.samplers

    check_sampler("torchebm", sampler)

    if sampler.name == "mala":
        raise NotImplementedError("torchebm has no MALA")
    if sampler.name == "hmc" and np.ndim(x0) > 2:
        raise NotImplementedError("torchebm's HMC rejects states that are not vectors")
    found = torch_energy(workload, x0, is_compiled=False)

    class Model(torchebm.core.BaseModel):
        def forward(self, x):
            return found.energy(x)

        if found.value_and_grad is not None:

            def gradient(self, x):
                return found.value_and_grad(x)[1]

    if sampler.name == "langevin":
        chains = torchebm.samplers.LangevinDynamics(Model(), sampler.step_size)
    else:
        chains = torchebm.samplers.HamiltonianMonteCarlo(
            Model(), sampler.step_size, sampler.num_leapfrog
        )

    def move(x, num_steps):
        return chains.sample(x=x, n_steps=num_steps)

    settings = f"{version('torchebm')} on {version('torch')}: {found.settings}"
    return torch_contender(move, x0, num_steps, settings, **options)
