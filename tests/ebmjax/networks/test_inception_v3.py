"""Inception v3, layer by layer against plain numpy, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebmjax import networks
from ebmjax.networks.inception_v3 import Inception

SIZE = 75  # the smallest image whose last map is not empty

# Branches as (name, features, kernel, stride, padding), in PyTorch's words.
A = {
    "branch1x1": [("", 64, 1)],
    "branch5x5": [("_1", 48, 1), ("_2", 64, 5, 1, 2)],
    "branch3x3dbl": [("_1", 64, 1), ("_2", 96, 3, 1, 1), ("_3", 96, 3, 1, 1)],
}
B = {
    "branch3x3": [("", 384, 3, 2)],
    "branch3x3dbl": [("_1", 64, 1), ("_2", 96, 3, 1, 1), ("_3", 96, 3, 2)],
}
D = {
    "branch3x3": [("_1", 192, 1), ("_2", 320, 3, 2)],
    "branch7x7x3": [
        ("_1", 192, 1),
        ("_2", 192, (1, 7), 1, (0, 3)),
        ("_3", 192, (7, 1), 1, (3, 0)),
        ("_4", 192, 3, 2),
    ],
}


def c_branches(width):
    row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    return {
        "branch1x1": [("", 192, 1)],
        "branch7x7": [("_1", width, 1), ("_2", width, *row), ("_3", 192, *column)],
        "branch7x7dbl": [
            ("_1", width, 1),
            ("_2", width, *column),
            ("_3", width, *row),
            ("_4", width, *column),
            ("_5", 192, *row),
        ],
    }


class Reference:
    """Maps `[channels, height, width]` in float64; weights are made when first asked
    for, and kept under their PyTorch names."""

    def __init__(self, is_fid):
        self.is_fid = is_fid
        self.rng = np.random.default_rng(0)
        self.weights = {}

    def array(self, name, shape, scale, shift=0.0):
        if name not in self.weights:
            draw = shift + scale * self.rng.standard_normal(shape)
            self.weights[name] = draw.astype(np.float32)
        return self.weights[name].astype(np.float64)

    def windows(self, x, kernel, stride, pad, fill=0.0):
        pads = [(0, 0), (pad[0],) * 2, (pad[1],) * 2]
        x = np.pad(x, pads, constant_values=fill)
        found = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
        return found[:, ::stride, ::stride]

    def unit(self, name, x, features, kernel, stride=1, pad=0):
        kernel, pad = (p if isinstance(p, tuple) else (p, p) for p in (kernel, pad))
        fan_in = len(x) * kernel[0] * kernel[1]
        shape = (features, len(x), *kernel)
        weight = self.array(f"{name}.conv.weight", shape, (2 / fan_in) ** 0.5)
        h = np.einsum(
            "chwij,fcij->fhw",
            self.windows(x, kernel, stride, pad),
            weight,
            optimize=True,
        )
        mean = self.array(f"{name}.bn.running_mean", features, 0.1)
        variance = self.array(f"{name}.bn.running_var", features, 0.1, 1.0) ** 2
        self.weights[f"{name}.bn.running_var"] = variance.astype(np.float32)
        scale = self.array(f"{name}.bn.weight", features, 0.1, 1.0)
        bias = self.array(f"{name}.bn.bias", features, 0.1)
        h = (h - mean[:, None, None]) / np.sqrt(variance + 0.001)[:, None, None]
        return np.maximum(h * scale[:, None, None] + bias[:, None, None], 0)

    def mean_pool(self, x):
        total = self.windows(x, (3, 3), 1, (1, 1)).sum((3, 4))
        inside = self.windows(np.ones_like(x[:1]), (3, 3), 1, (1, 1)).sum((3, 4))
        return total / (inside if self.is_fid else 9)

    def max_pool(self, x, stride=2, pad=0):
        return self.windows(x, (3, 3), stride, (pad, pad), -np.inf).max((3, 4))

    def block(self, name, x, branches, pooled):
        parts = []
        for branch, units in branches.items():
            h = x
            for suffix, *unit in units:
                h = self.unit(f"{name}.{branch}{suffix}", h, *unit)
            parts.append(h)
        return np.concatenate([*parts, pooled])

    def pooled(self, name, x, features):
        return self.unit(f"{name}.branch_pool", self.mean_pool(x), features, 1)

    def e_block(self, name, x, pools_by_max):
        def both(branch, index, h):
            return [
                self.unit(f"{name}.{branch}_{index}a", h, 384, (1, 3), 1, (0, 1)),
                self.unit(f"{name}.{branch}_{index}b", h, 384, (3, 1), 1, (1, 0)),
            ]

        pool = self.max_pool(x, 1, 1) if pools_by_max else self.mean_pool(x)
        double = self.unit(f"{name}.branch3x3dbl_1", x, 448, 1)
        double = self.unit(f"{name}.branch3x3dbl_2", double, 384, 3, 1, 1)
        return np.concatenate(
            [
                self.unit(f"{name}.branch1x1", x, 320, 1),
                *both("branch3x3", 2, self.unit(f"{name}.branch3x3_1", x, 384, 1)),
                *both("branch3x3dbl", 3, double),
                self.unit(f"{name}.branch_pool", pool, 192, 1),
            ]
        )

    def layers(self, x):
        """Name -> map, in their order; then features and logits."""
        found = {}

        def keep(name, value):
            found[name] = value
            return value

        def unit(name, x, *options):
            return keep(name, self.unit(name, x, *options))

        x = unit("Conv2d_1a_3x3", x, 32, 3, 2)
        x = unit("Conv2d_2a_3x3", x, 32, 3)
        x = unit("Conv2d_2b_3x3", x, 64, 3, 1, 1)
        x = unit("Conv2d_3b_1x1", self.max_pool(x), 80, 1)
        x = self.max_pool(unit("Conv2d_4a_3x3", x, 192, 3))
        for letter, num in zip("bcd", (32, 64, 64)):
            name = f"Mixed_5{letter}"
            x = keep(name, self.block(name, x, A, self.pooled(name, x, num)))
        x = keep("Mixed_6a", self.block("Mixed_6a", x, B, self.max_pool(x)))
        for letter, num in zip("bcde", (128, 160, 160, 192)):
            name = f"Mixed_6{letter}"
            pooled = self.pooled(name, x, 192)
            x = keep(name, self.block(name, x, c_branches(num), pooled))
        x = keep("Mixed_7a", self.block("Mixed_7a", x, D, self.max_pool(x)))
        x = keep("Mixed_7b", self.e_block("Mixed_7b", x, False))
        x = keep("Mixed_7c", self.e_block("Mixed_7c", x, self.is_fid))
        features = x.mean((1, 2))
        weight = self.array("fc.weight", (10, 2048), 2048**-0.5)
        logits = weight @ features + self.array("fc.bias", 10, 0.1)
        return found, features, logits


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fid", "classifier"])
def test_every_layer_is_that_of_plain_numpy(variant):
    """Both in float32's rounding, which grows with depth: 1e-5 of the largest value."""
    reference = Reference(variant == "fid")
    image = np.random.default_rng(1).uniform(-1, 1, (SIZE, SIZE, 3)).astype(np.float32)
    layers, features, logits = reference.layers(image.transpose(2, 0, 1).astype(float))
    params = networks.inception_params(
        reference.weights
        | {"AuxLogits.fc.bias": np.zeros(3), "Mixed_5b.x.num_batches_tracked": 1}
    )
    module = Inception(10, variant == "fid")
    (found, found_logits), kept = module.apply(
        {"params": params},
        jnp.asarray(image),
        capture_intermediates=lambda module, _: module.name in layers,
        mutable="intermediates",
    )
    for name, expected in layers.items():
        (value,) = kept["intermediates"][name]["__call__"]
        np.testing.assert_allclose(
            np.asarray(value).transpose(2, 0, 1),
            expected,
            atol=1e-5 * expected.max(),
            err_msg=name,
        )
    np.testing.assert_allclose(found, features, atol=1e-5 * features.max())
    np.testing.assert_allclose(found_logits, logits, atol=1e-5 * np.abs(logits).max())
    assert features.std() > 0.01  # weights that let something through
    network = networks.inception(variant=variant, num_classes=10, size=SIZE)
    np.testing.assert_allclose(
        network.apply(params, jnp.asarray(image))[0], found, rtol=1e-5, atol=1e-6
    )


def test_it_has_as_many_parameters_as_published():
    """PyTorch's has 27,161,264 with an auxiliary classifier of 3,326,696; running
    statistics are parameters here, and are none there."""
    network = networks.inception(variant="classifier", num_classes=1000)
    params, state = jax.eval_shape(network.init, jax.random.key(0))
    assert state == {}
    sizes = {
        jax.tree_util.keystr(path): leaf.size
        for path, leaf in jax.tree.leaves_with_path(params)
    }
    statistics = sum(size for name, size in sizes.items() if "running" in name)
    assert sum(sizes.values()) - statistics == 27_161_264 - 3_326_696


@pytest.mark.quick
def test_weights_that_do_not_fit_are_refused_by_name():
    shapes, _ = jax.eval_shape(
        networks.inception(num_classes=10).init, jax.random.key(0)
    )
    weights = {}
    for path, leaf in jax.tree.leaves_with_path(shapes):
        name = ".".join(key.key for key in path).replace(".kernel", ".weight")
        shape = leaf.shape
        if path[-1].key == "kernel":
            shape = shape[::-1] if len(shape) == 2 else [shape[i] for i in (3, 2, 0, 1)]
        weights[name] = np.broadcast_to(np.float32(0), shape)
    networks.inception_params(weights)
    name = "Mixed_6b.branch7x7_2.conv.weight"
    without = {k: v for k, v in weights.items() if k != name}
    with pytest.raises(ValueError, match=r"lack 1 arrays: \['Mixed_6b.branch7x7_2"):
        networks.inception_params(without)
    with pytest.raises(ValueError, match=r"1 unknown arrays: \['more'\]"):
        networks.inception_params(weights | {"more": np.zeros(3)})
    with pytest.raises(ValueError, match=rf"weights\['{name}'\] must have"):
        networks.inception_params(weights | {name: np.zeros((128, 128, 7, 1))})
    with pytest.raises(ValueError, match="must have 'fc.bias'"):
        networks.inception_params({"a": np.zeros(3)})
    with pytest.raises(ValueError, match="variant must be one of"):
        networks.inception(variant="v4")
    with pytest.raises(ValueError, match="at least 75"):
        networks.inception(size=64)
