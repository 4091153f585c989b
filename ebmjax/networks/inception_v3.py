"""Inception v3, the network of FID and of the Inception score."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ebmjax.networks.base import from_module
from ebmjax.types import Array, Network, Params

__all__ = ["inception", "inception_params"]

VARIANTS = ("fid", "classifier")


class Unit(nn.Module):
    """Convolution, normalisation by fixed statistics, and ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    pad: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Conv(
            self.features,
            self.kernel,
            (self.stride, self.stride),
            [(pad, pad) for pad in self.pad],
            use_bias=False,
            name="conv",
        )(x)
        return nn.relu(Normalization(name="bn")(x))


class Normalization(nn.Module):
    """Batch normalisation whose statistics are parameters."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape, ones, zeros = (x.shape[-1],), nn.initializers.ones, nn.initializers.zeros
        mean = self.param("running_mean", zeros, shape)
        variance = self.param("running_var", ones, shape)
        scale = self.param("weight", ones, shape)
        bias = self.param("bias", zeros, shape)
        scale = scale / jnp.sqrt(variance + 1e-3)
        return (x - mean[None, None]) * scale[None, None] + bias[None, None]


SAME = {3: ((3, 3), 1, (1, 1)), 5: ((5, 5), 1, (2, 2))}
ROW = {3: ((1, 3), 1, (0, 1)), 7: ((1, 7), 1, (0, 3))}
COLUMN = {3: ((3, 1), 1, (1, 0)), 7: ((7, 1), 1, (3, 0))}
HALVED = ((3, 3), 2)


def _chain(name: str, x: Array, *units: tuple[Any, ...]) -> Array:
    """Applies units in order, named `name_1`, `name_2`, ..., or `name` if single."""
    for index, unit in enumerate(units, 1):
        suffix = f"_{index}" if len(units) > 1 else ""
        x = Unit(*unit, name=f"{name}{suffix}")(x)
    return x


def _max_pool(x: Array, stride: int = 2, pad: int = 0) -> Array:
    pooled: Array = nn.max_pool(x, (3, 3), (stride, stride), [(pad, pad)] * 2)
    return pooled


def _mean_pool(x: Array, is_fid: bool) -> Array:
    """Returns means over 3 x 3 pixels, with or without the padding by variant."""
    pooled: Array = nn.avg_pool(
        x, (3, 3), (1, 1), [(1, 1), (1, 1)], count_include_pad=not is_fid
    )
    return pooled


class BlockA(nn.Module):
    """Branches of 1x1, 5x5 and doubled 3x3 convolutions, and a mean pool."""

    num_pooled: int
    is_fid: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        parts = [
            _chain("branch1x1", x, (64,)),
            _chain("branch5x5", x, (48,), (64, *SAME[5])),
            _chain("branch3x3dbl", x, (64,), (96, *SAME[3]), (96, *SAME[3])),
            _chain("branch_pool", _mean_pool(x, self.is_fid), (self.num_pooled,)),
        ]
        return jnp.concatenate(parts, axis=-1)


class BlockB(nn.Module):
    """Branches of strided 3x3 convolutions and a maximum pool that halve the sides."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        parts = [
            _chain("branch3x3", x, (384, *HALVED)),
            _chain("branch3x3dbl", x, (64,), (96, *SAME[3]), (96, *HALVED)),
            _max_pool(x),
        ]
        return jnp.concatenate(parts, axis=-1)


class BlockC(nn.Module):
    """Branches of 1x1 and factorised 7x7 convolutions, and a mean pool."""

    width: int
    is_fid: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        row, column, num = ROW[7], COLUMN[7], self.width
        parts = [
            _chain("branch1x1", x, (192,)),
            _chain("branch7x7", x, (num,), (num, *row), (192, *column)),
            _chain(
                "branch7x7dbl",
                x,
                (num,),
                (num, *column),
                (num, *row),
                (num, *column),
                (192, *row),
            ),
            _chain("branch_pool", _mean_pool(x, self.is_fid), (192,)),
        ]
        return jnp.concatenate(parts, axis=-1)


class BlockD(nn.Module):
    """Branches of strided convolutions and a maximum pool, which halve the sides."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        parts = [
            _chain("branch3x3", x, (192,), (320, *HALVED)),
            _chain(
                "branch7x7x3",
                x,
                (192,),
                (192, *ROW[7]),
                (192, *COLUMN[7]),
                (192, *HALVED),
            ),
            _max_pool(x),
        ]
        return jnp.concatenate(parts, axis=-1)


class BlockE(nn.Module):
    """Branches of 1x1 and forked 3x3 convolutions, and a pool."""

    is_fid: bool
    pools_by_max: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def forked(name: str, index: int, h: Array) -> list[Array]:
            row = Unit(384, *ROW[3], name=f"{name}_{index}a")(h)
            column = Unit(384, *COLUMN[3], name=f"{name}_{index}b")(h)
            return [row, column]

        single = Unit(384, name="branch3x3_1")(x)
        double = Unit(448, name="branch3x3dbl_1")(x)
        double = Unit(384, *SAME[3], name="branch3x3dbl_2")(double)
        pooled = _max_pool(x, 1, 1) if self.pools_by_max else _mean_pool(x, self.is_fid)
        parts = [
            _chain("branch1x1", x, (320,)),
            *forked("branch3x3", 2, single),
            *forked("branch3x3dbl", 3, double),
            _chain("branch_pool", pooled, (192,)),
        ]
        return jnp.concatenate(parts, axis=-1)


class Inception(nn.Module):
    """Network from an image to 2048 features, and to a linear layer's logits."""

    num_classes: int
    is_fid: bool

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        fid = self.is_fid
        x = Unit(32, *HALVED, name="Conv2d_1a_3x3")(x)
        x = Unit(32, (3, 3), name="Conv2d_2a_3x3")(x)
        x = Unit(64, *SAME[3], name="Conv2d_2b_3x3")(x)
        x = Unit(80, name="Conv2d_3b_1x1")(_max_pool(x))
        x = Unit(192, (3, 3), name="Conv2d_4a_3x3")(x)
        x = _max_pool(x)
        for letter, num in (("b", 32), ("c", 64), ("d", 64)):
            x = BlockA(num, fid, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for letter, num in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = BlockC(num, fid, name=f"Mixed_6{letter}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(fid, False, name="Mixed_7b")(x)
        x = BlockE(fid, fid, name="Mixed_7c")(x)
        features = jnp.mean(x, axis=(0, 1))
        return features, nn.Dense(self.num_classes, name="fc")(features)


def inception(
    *, variant: str = "fid", num_classes: int = 1008, size: int = 299
) -> Network:
    """Returns Inception v3: features of an image for FID, and logits for a score.

    See https://arxiv.org/abs/1512.00567 and https://arxiv.org/abs/1706.08500.

    Images have values in [-1, 1] and the network's own size. Resize them by
    `jax.image.resize(x, (299, 299, 3), "bilinear", antialias=False)`.

    Args:
      variant: "fid" is the network in which published distances are measured; its mean
        pools leave out the padding, and its last block pools by the maximum.
        "classifier" is the usual network, as PyTorch has it. The same weights fit both,
        and give different features.
      num_classes: Number of classes, 1008 for the "fid" weights and 1000 for the usual
        ones.
      size: Number of pixels along a side, at least 75.

    Returns:
      A stateless `Network` with `apply(params, x) -> (features [2048], logits
      [num_classes])`. Its parameters come from `inception_params`; those of `init` are
      useful only for tests.

    Raises:
      ValueError: If there is no such variant or the size is too small.

    Source:
      Szegedy, Vanhoucke, Ioffe, Shlens & Wojna (2016), "Rethinking the Inception
      architecture for computer vision", https://arxiv.org/abs/1512.00567. FID: Heusel,
      Ramsauer, Unterthiner, Nessler & Hochreiter (2017), "GANs trained by a two
      time-scale update rule converge to a local Nash equilibrium",
      https://arxiv.org/abs/1706.08500.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
    if size < 75:
        raise ValueError(f"size must be at least 75, got {size}")
    module = Inception(num_classes, variant == "fid")
    return from_module(module, (size, size, 3))


def inception_params(weights: Mapping[str, np.ndarray]) -> Params:
    """Returns parameters of `inception` from arrays with their PyTorch names.

    Args:
      weights: State dict as numpy arrays: "Conv2d_1a_3x3.conv.weight" of shape
        `[features, channels, height, width]`, "...bn.running_mean" of shape
        `[features]`, "fc.weight" of shape `[num_classes, 2048]` and so on. Auxiliary
        classifiers and counters of batches are ignored.

    Returns:
      Parameters, float32, of `inception(num_classes=...)` with as many classes as
      "fc.bias" has.

    Raises:
      ValueError: If arrays are missing, left over, or of a wrong shape; the message has
        their names.
    """
    if "fc.bias" not in weights:
        raise ValueError(
            f"weights must have 'fc.bias', got {len(weights)} arrays:"
            f" {sorted(weights)[:3]}"
        )
    network = inception(num_classes=len(weights["fc.bias"]))
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten_with_path(shapes)
    names = [".".join(key.key for key in path) for path, _ in leaves]
    names = [name.replace(".kernel", ".weight") for name in names]
    ignored = ("AuxLogits.", "num_batches_tracked")
    extra = {
        name
        for name in set(weights) - set(names)
        if not name.startswith(ignored[0]) and not name.endswith(ignored[1])
    }
    if missing := sorted(set(names) - set(weights)):
        raise ValueError(f"weights lack {len(missing)} arrays: {missing[:3]}")
    if extra:
        raise ValueError(
            f"weights have {len(extra)} unknown arrays: {sorted(extra)[:3]}"
        )
    found = []
    for name, (path, leaf) in zip(names, leaves, strict=True):
        array = np.asarray(weights[name], np.float32)
        if path[-1].key == "kernel":
            array = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
        if array.shape != leaf.shape:
            raise ValueError(
                f"weights[{name!r}] must have {math.prod(leaf.shape)} elements as"
                f" {leaf.shape}, got {array.shape}"
            )
        found.append(jnp.asarray(array))
    return jax.tree.unflatten(tree, found)
