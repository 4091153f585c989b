"""Players, the train state, and the update that all methods share."""

from ebmjax.training.mapped import (
    jit_update,
    pmap_update,
    pmap_updates,
    shard_update,
)
from ebmjax.training.state import AXES, Player, TrainState, init_state, place
from ebmjax.training.update import count_updates, make_update

__all__ = [
    "AXES",
    "Player",
    "TrainState",
    "count_updates",
    "init_state",
    "jit_update",
    "make_update",
    "place",
    "pmap_update",
    "pmap_updates",
    "shard_update",
]
