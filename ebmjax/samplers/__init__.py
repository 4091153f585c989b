"""Samplers: pairs `(init, step)` on one example, and functions that run them."""

from ebmjax.diffusions import (
    largest_distance,
    noise_ladder,
    noise_overlap,
    relative_step_size,
)
from ebmjax.samplers.adaptation import Adapted, adapt
from ebmjax.samplers.annealed import sample_annealed
from ebmjax.samplers.arviz_data import to_arviz
from ebmjax.samplers.blackjax_kernels import from_blackjax
from ebmjax.samplers.chains import sample_chain, sample_chains
from ebmjax.samplers.coupled import (
    CoupledChains,
    coupled_chains,
    coupled_gibbs_chains,
    unbiased_weights,
)
from ebmjax.samplers.diffusion import DiffusionInfo, sample_diffusion
from ebmjax.samplers.hamiltonian import HMCInfo, HMCState, hmc
from ebmjax.samplers.independence_metropolis import (
    IndependenceInfo,
    IndependenceState,
    independence,
)
from ebmjax.samplers.inversion import chain_generator, invert_chain
from ebmjax.samplers.metropolis_langevin import MALAInfo, MALAState, mala
from ebmjax.samplers.parallel_tempering import (
    ReplicaExchangeInfo,
    ReplicaExchangeState,
    replica_exchange,
)
from ebmjax.samplers.probability_flow_ode import Flowed, probability_flow
from ebmjax.samplers.sampler import Sampler
from ebmjax.samplers.unadjusted_langevin import LangevinInfo, LangevinState, langevin
from ebmjax.samplers.underdamped_langevin import (
    UnderdampedInfo,
    UnderdampedState,
    underdamped,
)

__all__ = [
    "Adapted",
    "CoupledChains",
    "DiffusionInfo",
    "Flowed",
    "HMCInfo",
    "HMCState",
    "IndependenceInfo",
    "IndependenceState",
    "LangevinInfo",
    "LangevinState",
    "MALAInfo",
    "MALAState",
    "ReplicaExchangeInfo",
    "ReplicaExchangeState",
    "Sampler",
    "UnderdampedInfo",
    "UnderdampedState",
    "adapt",
    "chain_generator",
    "coupled_chains",
    "coupled_gibbs_chains",
    "from_blackjax",
    "hmc",
    "independence",
    "invert_chain",
    "langevin",
    "largest_distance",
    "mala",
    "noise_ladder",
    "noise_overlap",
    "probability_flow",
    "relative_step_size",
    "replica_exchange",
    "sample_annealed",
    "sample_chain",
    "sample_chains",
    "sample_diffusion",
    "to_arviz",
    "unbiased_weights",
    "underdamped",
]
