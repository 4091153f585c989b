"""Samplers: `(init, step)` pairs on one example, which `sample_chains` runs."""

from ebmjax.samplers.adaptation import Adapted, adapt
from ebmjax.samplers.annealed import sample_annealed
from ebmjax.samplers.base import Sampler, sample_chain, sample_chains
from ebmjax.samplers.coupled import (
    CoupledChains,
    coupled_chains,
    coupled_gibbs_chains,
    unbiased_weights,
)
from ebmjax.samplers.diffusion import DiffusionInfo, sample_diffusion
from ebmjax.samplers.hmc import HMCInfo, HMCState, hmc
from ebmjax.samplers.independence import (
    IndependenceInfo,
    IndependenceState,
    independence,
)
from ebmjax.samplers.inversion import chain_generator, invert_chain
from ebmjax.samplers.ladder import (
    largest_distance,
    noise_ladder,
    noise_overlap,
    relative_step_size,
)
from ebmjax.samplers.langevin import LangevinInfo, LangevinState, langevin
from ebmjax.samplers.mala import MALAInfo, MALAState, mala
from ebmjax.samplers.probability_flow import Flowed, probability_flow
from ebmjax.samplers.replica_exchange import (
    ReplicaExchangeInfo,
    ReplicaExchangeState,
    replica_exchange,
)
from ebmjax.samplers.underdamped import (
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
    "unbiased_weights",
    "underdamped",
]
