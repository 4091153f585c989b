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
from ebmjax.samplers.hmc import HMCInfo, HMCState, hmc
from ebmjax.samplers.independence import (
    IndependenceInfo,
    IndependenceState,
    independence,
)
from ebmjax.samplers.inversion import chain_generator, invert_chain
from ebmjax.samplers.langevin import LangevinInfo, LangevinState, langevin
from ebmjax.samplers.mala import MALAInfo, MALAState, mala
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
    "mala",
    "replica_exchange",
    "sample_annealed",
    "sample_chain",
    "sample_chains",
    "unbiased_weights",
    "underdamped",
]
