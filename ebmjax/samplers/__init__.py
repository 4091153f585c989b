"""Markov chain samplers: `(init, step)` pairs on one example, run by `sample_chains`."""

from ebmjax.samplers.base import Sampler, sample_chain, sample_chains
from ebmjax.samplers.langevin import LangevinInfo, LangevinState, langevin
from ebmjax.samplers.mala import MALAInfo, MALAState, mala

__all__ = [
    "LangevinInfo",
    "LangevinState",
    "MALAInfo",
    "MALAState",
    "Sampler",
    "langevin",
    "mala",
    "sample_chain",
    "sample_chains",
]
