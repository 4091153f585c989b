"""How chains are laid out over devices and caches."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ebmjax.types import DEVICE, Array, Key

BLOCK = 64
"""Chains that share one folded key. Part of the random numbers: never change it."""


CACHE_ELEMENTS, FEWEST_CHAINS = 2**15, 16


MOST_CHAINS, MOST_CHAINS_OF_LARGE, LARGE_ELEMENTS = 128, 256, 2**12
"""How many chains a CPU core walks together, so that what a move touches stays in its
cache, and so that XLA does not divide small arrays among threads, each of which would
wait for the other device's. Products with large matrices, those of so many elements,
want more rows. Changes speed and no random number."""


class Layout(NamedTuple):
    """Where chains run; changes speed and no random number.

    Attributes:
      devices: One device or more, among which the chains are divided; None where arrays
        are traced, for the program that is being traced to decide.
      num_blocks: Blocks of chains that each device walks one after the other.
      block_size: Chains a block.
    """

    devices: tuple[Any, ...] | None
    num_blocks: int
    block_size: int

    @property
    def is_traced(self) -> bool:
        return self.devices is None

    @property
    def num_chains(self) -> int:
        """With those that only fill up the last block."""
        return len(self.devices or (None,)) * self.num_blocks * self.block_size

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (DEVICE,))


def lay_out(x: Array, arrays: Any) -> Layout:
    """The layout of chains `x`; `arrays` are all that the program will be given."""
    num_chains, *event_shape = x.shape
    leaves = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
    # What a function closes over may be traced, which no argument shows: under a trace
    # the simplest sum is.
    probe = jnp.zeros(()) + 0
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (*leaves, probe)):
        return Layout(None, 1, num_chains)
    devices = _devices([x, *leaves])
    local = -(-num_chains // len(devices))
    num_blocks = 1
    # A CPU device that is not alone is one core's. One that is alone may have many
    # threads, for which a small block is too little work.
    if devices[0].platform == "cpu" and len(devices) > 1:
        size = CACHE_ELEMENTS // max(1, math.prod(event_shape))
        sizes = [np.size(leaf) for leaf in jax.tree.leaves(arrays) if leaf is not x]
        is_large = max(sizes, default=0) >= LARGE_ELEMENTS
        most = MOST_CHAINS_OF_LARGE if is_large else MOST_CHAINS
        size = min(max(size, FEWEST_CHAINS), most)
        num_blocks = max(1, -(-local // size))
    return Layout(devices, num_blocks, -(-local // num_blocks))


def _devices(leaves: list[Array]) -> tuple[Any, ...]:
    """Those of the first array that was put somewhere on purpose, else all local."""
    for leaf in leaves:
        if leaf.committed:
            if isinstance(leaf.sharding, NamedSharding):
                return tuple(leaf.sharding.mesh.devices.flat)
            return tuple(sorted(leaf.sharding.device_set, key=lambda d: d.id))
    if jax.config.jax_default_device is not None:
        return tuple(leaves[0].devices())
    return tuple(jax.local_devices())


def over_devices(function: Callable, layout: Layout, in_axes: Any, out_axes: Any):
    """`function` of local chains, run by every device of the layout on its own.

    The axes say where an argument's or a result's chains are: 0, 1, or None for what
    every device has whole.
    """
    if layout.is_traced or len(layout.devices) == 1:
        return function

    def spec(axis):
        return P() if axis is None else P(*[None] * axis, DEVICE)

    def specs(axes):
        return jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)

    return jax.shard_map(
        function,
        mesh=layout.mesh,
        in_specs=specs(in_axes),
        out_specs=specs(out_axes),
        check_vma=False,
    )


def over_blocks(function: Callable, layout: Layout, out_axes: tuple[int, ...]):
    """`function(*chains)` of one block of chains, run on all blocks in turn.

    Takes trees of `[chains, ...]` and returns a tuple of trees, each with its chains
    at the axis that `out_axes` names.
    """
    num_blocks, size = layout.num_blocks, layout.block_size
    if num_blocks == 1:
        return function

    def mapped(*trees):
        def divide(leaf):
            return leaf.reshape(num_blocks, size, *leaf.shape[1:])

        def join(axis, leaf):
            leaf = jnp.moveaxis(leaf, 0, axis)
            shape = leaf.shape[:axis] + (num_blocks * size,) + leaf.shape[axis + 2 :]
            return leaf.reshape(shape)

        blocks = jax.tree.map(divide, trees)
        results = jax.lax.map(lambda block: function(*block), blocks)
        return tuple(
            jax.tree.map(functools.partial(join, axis), result)
            for axis, result in zip(out_axes, results)
        )

    return mapped


def chain_keys(key: Key, num_chains: int) -> Key:
    """One key a chain, `[num_chains]`.

    Keyed by fixed blocks of chains and the place in the block, so that a chain draws
    the same whatever the chains around it and the devices they are on.
    """
    blocks = jnp.arange(-(-num_chains // BLOCK))
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(blocks)
    keys = jax.vmap(functools.partial(jax.random.split, num=BLOCK))(keys)
    return keys.reshape(-1)[:num_chains]


def pad_chains(tree: Any, num_chains: int) -> Any:
    """Repeats the last chain until there are `num_chains`."""

    def pad(leaf):
        missing = num_chains - leaf.shape[0]
        widths = [(0, missing), *[(0, 0)] * (leaf.ndim - 1)]
        return jnp.pad(leaf, widths, "edge") if missing else leaf

    return jax.tree.map(pad, tree)
