"""TorchEBM, in PyTorch."""

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

PACKAGE, ENVIRONMENT = "torchebm", TORCH_ENVIRONMENT


def make(
    workload: Workload,
    sampler: Kernel,
    x0,
    num_steps: int,
    *,
    num_threads: int | None = None,
) -> Contender:
    import torch
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

    def make_step():
        return lambda x: chains.sample(x=x, n_steps=1)

    setting = fastest(torch_settings(x0, False, num_threads), x0, make_step)
    start = to_torch(x0, setting.layout)

    def run(seed: int) -> np.ndarray:
        torch.set_num_threads(setting.num_threads)
        torch.manual_seed(seed)
        return from_torch(chains.sample(x=start.clone(), n_steps=num_steps))

    versions = f"{version('torchebm')} on {version('torch')}"
    return Contender(run, f"{versions}: {found.settings}, {setting}")
