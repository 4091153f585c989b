"""Samplers: `(init, step)` pairs on one example, which `sample_chains` runs."""

from ebmjax.samplers.base import Sampler, sample_chain, sample_chains
from ebmjax.samplers.inversion import chain_generator, invert_chain
from ebmjax.samplers.langevin import LangevinInfo, LangevinState, langevin
from ebmjax.samplers.mala import MALAInfo, MALAState, mala

__all__ = [
    "LangevinInfo",
    "LangevinState",
    "MALAInfo",
    "MALAState",
    "Sampler",
    "chain_generator",
    "invert_chain",
    "langevin",
    "mala",
    "sample_chain",
    "sample_chains",
]
