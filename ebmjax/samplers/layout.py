"""Layout of chains over devices and caches."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ebmjax.types import DEVICE, Array, Key

__all__ = [
    "BLOCK",
    "Layout",
    "chain_keys",
    "lay_out",
    "over_blocks",
    "over_devices",
    "pad_chains",
]

BLOCK = 64
"""Number of chains that share one folded key. It is part of the random numbers, so it
must never change."""


CACHE_ELEMENTS, FEWEST_CHAINS = 2**15, 16


MOST_CHAINS, MOST_CHAINS_OF_LARGE, LARGE_ELEMENTS = 128, 256, 2**12
"""Bounds on the number of chains that a CPU core runs together. The data of a move then
stay in its cache, and XLA does not divide small arrays among threads, each of which
would wait for the threads of the other device. Products with matrices of at least
`LARGE_ELEMENTS` elements are faster with more rows. These constants change speed and no
random number."""


MOST_BYTES = 2**32
"""Largest memory, in bytes a device, of the values of chains that an accelerator moves
together. It is a quarter of the memory of the smallest devices in use (TPU v5e), where
parameters and results need room too. Blocks of this size still occupy a device."""


class Layout(NamedTuple):
    """Division of chains among devices and blocks; changes speed and no random number.

    Attributes:
      devices: Devices, at least one, among which the chains are divided; None if arrays
        are traced, so that the program being traced decides.
      num_blocks: Number of blocks of chains that each device runs one after the other;
        where memory may demand more, the least number.
      block_size: Number of chains in a block.
    """

    devices: tuple[Any, ...] | None
    num_blocks: int
    block_size: int

    @property
    def is_traced(self) -> bool:
        return self.devices is None

    @property
    def num_devices(self) -> int:
        """Number of devices, 1 if arrays are traced."""
        return len(self.devices or (None,))

    @property
    def num_chains(self) -> int:
        """Number of chains, including those that only fill up the last block."""
        return self.num_devices * self.num_blocks * self.block_size

    @property
    def is_on_cpu(self) -> bool:
        """True if the devices are CPUs; False if arrays are traced, because the program
        may then be compiled for another platform than this process has."""
        return self.devices is not None and self.devices[0].platform == "cpu"

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (DEVICE,))


def lay_out(x: Any, arrays: Any, of_chains: Any = None) -> Layout:
    """Returns the layout of chains.

    Args:
      x: Positions, an array or a tree of arrays `[chains, ...]`.
      arrays: All other arguments of the program; may include the positions.
      of_chains: Further arguments `[chains, ...]`, which are no matrices of the energy.
    """
    positions = jax.tree.leaves(x)
    num_chains = positions[0].shape[0]
    others = jax.tree.leaves(of_chains)
    leaves = [*jax.tree.leaves(arrays), *others]
    leaves = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    # A function may close over traced arrays, which no argument shows. Under a trace,
    # the sum below is traced too.
    probe = jnp.zeros(()) + 0
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (*leaves, probe)):
        return Layout(None, 1, num_chains)
    devices = _devices([*positions, *leaves])
    local = -(-num_chains // len(devices))
    num_blocks = 1
    # One of several CPU devices has one core. A single CPU device may have many
    # threads, for which a small block is too little work.
    if devices[0].platform == "cpu" and len(devices) > 1:
        elements = sum(math.prod(leaf.shape[1:]) for leaf in positions)
        size = CACHE_ELEMENTS // max(1, elements)
        ours = set(map(id, positions))
        shared = [leaf for leaf in jax.tree.leaves(arrays) if id(leaf) not in ours]
        sizes = [np.size(leaf) for leaf in shared]
        is_large = max(sizes, default=0) >= LARGE_ELEMENTS
        most = MOST_CHAINS_OF_LARGE if is_large else MOST_CHAINS
        size = min(max(size, FEWEST_CHAINS), most)
        num_blocks = max(1, -(-local // size))
    return Layout(devices, num_blocks, -(-local // num_blocks))


def _devices(leaves: list[Array]) -> tuple[Any, ...]:
    """Returns the devices of the first committed array, or else all local devices."""
    for leaf in leaves:
        if leaf.committed:
            if isinstance(leaf.sharding, NamedSharding):
                return tuple(leaf.sharding.mesh.devices.flat)
            return tuple(sorted(leaf.sharding.device_set, key=lambda d: d.id))
    config: Any = jax.config  # not all versions of JAX declare its flags
    if config.jax_default_device is not None:
        return tuple(leaves[0].devices())
    return tuple(jax.local_devices())


def over_devices(
    function: Callable[..., Any], layout: Layout, in_axes: Any, out_axes: Any
) -> Callable[..., Any]:
    """Runs `function` of local chains on every device of the layout separately.

    The axes say which axis of an argument or of a result holds the chains: 0, 1, or
    None if every device has the whole array.
    """
    if layout.num_devices == 1:
        return function

    def spec(axis: int | None) -> P:
        return P() if axis is None else P(*[None] * axis, DEVICE)

    def specs(axes: Any) -> Any:
        return jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)

    return jax.shard_map(
        function,
        mesh=layout.mesh,
        in_specs=specs(in_axes),
        out_specs=specs(out_axes),
        check_vma=False,
    )


def over_blocks(
    function: Callable[..., tuple[Any, ...]], layout: Layout, out_axes: tuple[int, ...]
) -> Callable[..., tuple[Any, ...]]:
    """Runs `function(*chains)`, which takes one block of chains, on all blocks in turn.

    The returned function takes trees of `[chains, ...]` and returns a tuple of trees,
    each with its chains at the axis that `out_axes` names. Where all chains together
    would need more memory of an accelerator than `MOST_BYTES`, there are more blocks
    than the layout has, all of one size, the last of which may be filled up.
    """
    is_cpu = layout.is_on_cpu
    if is_cpu and layout.num_blocks == 1:
        return function

    def mapped(*trees: Any) -> tuple[Any, ...]:
        num_chains = jax.tree.leaves(trees)[0].shape[0]
        num_blocks = layout.num_blocks
        if not is_cpu:
            needed = num_bytes(jax.make_jaxpr(function)(*trees).jaxpr)
            num_blocks = max(num_blocks, min(num_chains, -(-needed // MOST_BYTES)))
        if num_blocks == 1:
            return function(*trees)
        size = -(-num_chains // num_blocks)

        def divide(leaf: Array) -> Array:
            return leaf.reshape(num_blocks, size, *leaf.shape[1:])

        def join(axis: int, leaf: Array) -> Array:
            leaf = jnp.moveaxis(leaf, 0, axis)
            shape = leaf.shape[:axis] + (num_blocks * size,) + leaf.shape[axis + 2 :]
            return leaf.reshape(shape)[(slice(None),) * axis + (slice(num_chains),)]

        blocks = jax.tree.map(divide, pad_chains(trees, num_blocks * size))
        results = jax.lax.map(lambda block: function(*block), blocks)
        return tuple(
            jax.tree.map(functools.partial(join, axis), result)
            for axis, result in zip(out_axes, results)
        )

    return mapped


def num_bytes(jaxpr: Any) -> int:
    """Returns the memory of a traced program, in bytes, if it computes what it says.

    It is the largest sum of values that are kept at one time for later use. Arguments
    and results are not counted. A compiler fuses operations, and needs less.
    """
    results = {var for var in jaxpr.outvars if isinstance(var, Var)}
    last_uses = {
        var: index
        for index, equation in enumerate(jaxpr.eqns)
        for var in equation.invars
        if isinstance(var, Var)
    }
    live: dict[Var, int] = {}
    most = 0
    for index, equation in enumerate(jaxpr.eqns):
        live |= {var: _size(var) for var in equation.outvars if var not in results}
        # Loops, branches and jitted functions have programs among their parameters.
        parts = jax.tree.leaves(equation.params)
        parts = [getattr(x, "jaxpr", x) for x in parts if hasattr(x, "eqns")]
        most = max(most, sum(live.values()) + max(map(num_bytes, parts), default=0))
        live = {var: n for var, n in live.items() if last_uses.get(var, -1) > index}
    return most


def _size(var: Var) -> int:
    """Returns the bytes of a value of a traced program, 0 if it is no array."""
    aval: Any = var.aval
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "shape") else 0


def chain_keys(key: Key, num_chains: int) -> Key:
    """Returns one key for each chain, `[num_chains]`.

    A key depends on a fixed block of chains and on the place in the block. A chain thus
    draws the same numbers whatever the number of chains and devices.
    """
    blocks = jnp.arange(-(-num_chains // BLOCK))
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(blocks)
    keys = jax.vmap(functools.partial(jax.random.split, num=BLOCK))(keys)
    return keys.reshape(-1)[:num_chains]


def pad_chains(tree: Any, num_chains: int) -> Any:
    """Repeats the last chain until there are `num_chains`."""

    def pad(leaf: Array) -> Array:
        missing = num_chains - leaf.shape[0]
        widths = [(0, missing), *[(0, 0)] * (leaf.ndim - 1)]
        return jnp.pad(leaf, widths, "edge") if missing else leaf

    return jax.tree.map(pad, tree)
