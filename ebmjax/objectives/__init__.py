"""Training objectives: a loss and its memory, for `training.Player`."""

from ebmjax.objectives.base import Aux, Objective, stateless
from ebmjax.objectives.contrastive import ContrastiveCarry, contrastive_divergence

__all__ = [
    "Aux",
    "ContrastiveCarry",
    "Objective",
    "contrastive_divergence",
    "stateless",
]
