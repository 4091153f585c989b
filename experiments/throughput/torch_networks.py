"""Our networks in PyTorch: functions of the same parameters in PyTorch's layout.

A network is `apply(params, x, ...)` of a batch, images with their channels first.
Parameters are trees of tensors with Flax's names, which `convert` makes.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.throughput.workload import stride_and_pad

Tree = Any
"""Nested dicts and lists of arrays or of tensors."""


# --- parameters -----------------------------------------------------------------------


def convert(tree: Tree) -> Tree:
    """Returns a network's parameters, or their gradients, in PyTorch's layout.

    The conversion only moves elements. Kernels of convolutions become
    `[features, channels, height, width]` and those of dense layers
    `[features, inputs]`. A dense layer from or to a flattened map takes the map with
    its channels first.
    """
    from_maps, to_maps = _flattened(tree)

    def leaf(path, x):
        x = np.array(x, np.float32)
        names = [None, None, *(getattr(part, "key", None) for part in path)]
        is_top, (layer, name) = len(names) == 4, names[-2:]
        if x.ndim == 4:
            return x.transpose(3, 2, 0, 1)
        if is_top and layer in to_maps:
            x = x.reshape(*x.shape[:-1], -1, to_maps[layer])
            x = x.swapaxes(-1, -2).reshape(*x.shape[:-2], -1)
        if name != "kernel":
            return x
        if is_top and layer in from_maps:
            x = x.reshape(-1, from_maps[layer], x.shape[-1])
            x = x.swapaxes(0, 1).reshape(-1, x.shape[-1])
        return x.reshape(len(x), -1).T

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _flattened(tree: Tree) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the dense layers from and to a flattened map, with its channels."""
    if not isinstance(tree, Mapping) or "Dense_0" not in tree:
        return {}, {}
    if "BatchNorm_0" in tree:  # a generator
        return {}, {"Dense_0": len(tree["BatchNorm_0"]["scale"])}
    trunk = tree.get("trunk", tree)
    if "Conv_0" not in trunk or "InstanceNorm_0" in tree:
        return {}, {}
    return {"Dense_0": _layers(trunk, "Conv")[-1]["kernel"].shape[-1]}, {}


def _layers(params: Tree, kind: str) -> list[Tree]:
    count = sum(name.startswith(f"{kind}_") for name in params)
    return [params[f"{kind}_{index}"] for index in range(count)]


# --- layers ---------------------------------------------------------------------------


def dense(layer: Tree, x):
    import torch

    return torch.nn.functional.linear(x, layer["kernel"], layer["bias"])


def conv(layer: Tree, x, stride: int = 1, pad: int | None = None):
    import torch

    kernel = layer["kernel"]
    pad = (kernel.shape[-1] - 1) // 2 if pad is None else pad
    return torch.nn.functional.conv2d(x, kernel, layer["bias"], stride, pad)


def trunk(params: Tree, x, slope: float):
    """Convolutions with leaky ReLUs; the last map, flattened."""
    import torch

    for layer in _layers(params, "Conv"):
        x = conv(layer, x, *stride_and_pad(layer["kernel"].shape[-1]))
        x = torch.nn.functional.leaky_relu(x, slope)
    return x.flatten(1)


ACTIVATIONS = {
    "leaky_relu": lambda functional, x: functional.leaky_relu(x, 0.2),
    "relu": lambda functional, x: functional.relu(x),
    "swish": lambda functional, x: functional.silu(x),
}


def mlp(params: Tree, x, activation: str = "leaky_relu"):
    import torch

    *hidden, last = _layers(params, "Dense")
    for layer in hidden:
        x = ACTIVATIONS[activation](torch.nn.functional, dense(layer, x))
    return dense(last, x)


# --- energies and generators ----------------------------------------------------------


def conv_energy(params: Tree, x, slope: float = 0.2):
    """Returns `short_run_energy`, `strided_energy`, and `sngan_energy` after
    `spectral`."""
    return dense(params["Dense_0"], trunk(params.get("trunk", params), x, slope))[:, 0]


def statistics(params: Tree, x, latents, slope: float = 0.2):
    """Returns values of `strided_statistics` of images with several latents each.

    Args:
      params: Parameters.
      x: Images, `[n, channels, height, width]`, whose trunk is computed once.
      latents: Latents, a list of `[n, latent_dim]`.
      slope: Slope of the leaky ReLUs.
    """
    import torch

    features = dense(params["Dense_0"], trunk(params["trunk"], x, slope))
    h = torch.cat([torch.cat([features, z], 1) for z in latents])
    h = torch.nn.functional.leaky_relu(dense(params["Dense_1"], h), slope)
    return dense(params["Dense_2"], h)[:, 0].split(len(x))


def generator(params: Tree, stats: Tree, z, image_size: int, train: bool):
    """Returns `strided_generator` and `sngan_base`: normalise, ReLU, convolve and
    so on.

    Args:
      params: Parameters.
      stats: Running statistics, which training changes in place.
      z: Latents.
      image_size: Height of an image, which is its width.
      train: Whether to normalise by the batch.
    """
    import torch

    functional = torch.nn.functional
    transposed = _layers(params, "TransposedConv")
    is_odd = transposed[0]["kernel"].shape[-1] == 5
    sizes = [image_size]
    for _ in transposed:
        sizes.append(-(-sizes[-1] // 2))
    h = dense(params["Dense_0"], z).reshape(len(z), -1, sizes[-1], sizes[-1])
    norms = _layers(params, "BatchNorm")
    for index, norm in enumerate(norms):
        running = stats["batch_stats"][f"BatchNorm_{index}"]
        h = functional.batch_norm(
            h, running["mean"], running["var"], norm["scale"], norm["bias"], train, 0.1
        )
        h = torch.relu(h)
        if index == len(transposed):
            h = conv(params["Conv_0"], h)
            continue
        layer, size = transposed[index], sizes[-2 - index]
        # Normalisation removes a bias, which then is fixed.
        is_normalized = index + 1 < len(norms)
        bias = layer["bias"].detach() if is_normalized else layer["bias"]
        pad = 2 if is_odd else 1
        extra = size - 2 * (h.shape[-1] - 1) + 2 * pad - layer["kernel"].shape[-1]
        h = functional.conv_transpose2d(h, layer["kernel"], bias, 2, pad, extra)
    return torch.tanh(h)


def spectral(params: Tree, state: Tree) -> Tree:
    """Returns the parameters of `sngan_energy` with kernels of largest singular value
    one, by one step of power iteration from the state."""
    import torch

    found = dict(params)
    for index in range(len(_layers(params, "Conv"))):
        layer = params[f"Conv_{index}"]
        matrix = layer["kernel"].flatten(1)  # its columns in another order than ours
        u, v = power_iteration(matrix, _vector(state, index))
        found[f"Conv_{index}"] = {
            "kernel": layer["kernel"] / torch.dot(u, matrix @ v),
            "bias": layer["bias"],
        }
    return found


def _vector(state: Tree, index: int):
    return state["spectral"][f"SpectralNorm_{index}"][f"Conv_{index}/kernel/u"]


def power_iteration(matrix, u):
    """Returns the next vectors `(u, v)`, which are fixed."""
    import torch

    with torch.no_grad():
        v = torch.nn.functional.normalize(matrix.T @ u[0], dim=0, eps=1e-12)
        return torch.nn.functional.normalize(matrix @ v, dim=0, eps=1e-12), v


def refresh(params: Tree, state: Tree) -> None:
    """Renews the vectors of `spectral` in place."""
    for index, layer in enumerate(_layers(params, "Conv")):
        u = _vector(state, index)
        u.copy_(power_iteration(layer["kernel"].detach().flatten(1), u)[0])


# --- scores ---------------------------------------------------------------------------


def instance_norm(params: Tree, x, embedding, epsilon: float = 1e-5):
    """Returns `InstanceNorm` of our U-Net: one scale and one shift for each channel."""
    import torch

    gain, shift, again = (
        dense(params[name], embedding) for name in ("gain", "shift", "again")
    )
    var, mean = torch.var_mean(x, (2, 3), correction=0)
    spread, middle = torch.var_mean(mean, 1, correction=0, keepdim=True)
    apart = (mean - middle) * torch.rsqrt(spread + epsilon)
    scale = gain * torch.rsqrt(var + epsilon)
    shift = shift + again * apart - scale * mean
    return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])


def block(params: Tree, x, embedding):
    import torch

    h = x
    for index in range(2):
        h = instance_norm(params[f"InstanceNorm_{index}"], h, embedding)
        h = conv(params[f"Conv_{index}"], torch.nn.functional.silu(h))
    if "Conv_2" in params:
        x = conv(params["Conv_2"], x)
    return x + h


def make_frequencies():
    """Returns the frequencies of the embedding of a noise scale's logarithm."""
    import torch

    return torch.tensor(np.geomspace(0.1, 10.0, 16).astype(np.float32))


def unet(params: Tree, x, noise_scale, frequencies, num_levels: int, num_blocks: int):
    """Returns the score of our U-Net with swish and an embedded noise scale, `[n]`."""
    import torch

    functional = torch.nn.functional
    angles = frequencies * noise_scale.log()[:, None]
    embedding = torch.cat([angles.sin(), angles.cos()], 1)
    for layer in _layers(params, "Dense"):
        embedding = functional.silu(dense(layer, embedding))
    noise_scale = noise_scale[:, None, None, None]
    h = conv(params["Conv_0"], x * torch.rsqrt(1 + noise_scale**2))
    blocks = iter(_layers(params, "_Block"))
    skips = []
    for level in range(num_levels):
        if level:
            h = functional.avg_pool2d(h, 2)
        for _ in range(num_blocks):
            h = block(next(blocks), h, embedding)
        skips.append(h)
    for skip in skips[-2::-1]:
        h = torch.cat([functional.interpolate(h, scale_factor=2), skip], 1)
        for _ in range(num_blocks):
            h = block(next(blocks), h, embedding)
    h = functional.silu(instance_norm(params["InstanceNorm_0"], h, embedding))
    return conv(params["Conv_1"], h) / noise_scale


# --- flows ----------------------------------------------------------------------------


def _normal_log_prob(z, log_det):
    constant = 0.5 * z.shape[1] * math.log(2 * math.pi)
    return log_det - 0.5 * z.square().sum(1) - constant


def _undo_affine(params: Tree, x):
    import torch

    diagonal = params["lower"].diagonal()
    lower = params["lower"].tril(-1) + torch.diag(diagonal.exp())
    z = torch.linalg.solve_triangular(lower, (x - params["mean"]).T, upper=False)
    return z.T, -diagonal.sum()


def real_nvp_log_prob(params: Tree, x, bound: float = 2.0):
    import torch

    z, log_det = _undo_affine(params, x)
    halves = [z[:, 0::2], z[:, 1::2]]
    for index, coupling in reversed(list(enumerate(params["couplings"]))):
        moved, fixed = halves[index % 2], halves[1 - index % 2]
        shift, raw = mlp(coupling, fixed, "swish").chunk(2, 1)
        log_scale = bound * torch.tanh(raw / bound)
        halves[index % 2] = (moved - shift) * torch.exp(-log_scale)
        log_det = log_det - log_scale.sum(1)
    return _normal_log_prob(torch.cat(halves, 1), log_det)


def made_masks(dim: int, widths) -> list[np.ndarray]:
    """Returns the masks of a masked autoregressive layer, `[outputs, inputs]`."""
    degrees = [np.arange(dim), *(np.arange(width) % (dim - 1) for width in widths)]
    masks = [b[None] <= a[:, None] for b, a in zip(degrees, degrees[1:])]
    last = degrees[-1][None] < np.tile(np.arange(dim), 2)[:, None]
    return [mask.astype(np.float32) for mask in (*masks, last)]


def masked_log_prob(params: Tree, x, masks, bound: float = 2.0):
    """Returns the log density of a masked autoregressive flow; `masks` are tensors."""
    import torch

    linear, silu = torch.nn.functional.linear, torch.nn.functional.silu
    z, log_det = _undo_affine(params, x)
    for layers in reversed(params["layers"]):
        h = z
        for mask, layer in zip(masks[:-1], layers):
            h = silu(linear(h, layer["kernel"] * mask, layer["bias"]))
        last = layers[-1]
        out = linear(h, last["kernel"] * masks[-1], last["bias"].flatten())
        shift, raw = out.chunk(2, 1)
        log_scale = bound * torch.tanh(raw / bound)
        z = ((z - shift) * torch.exp(-log_scale)).flip(1)
        log_det = log_det - log_scale.sum(1)
    return _normal_log_prob(z, log_det)
