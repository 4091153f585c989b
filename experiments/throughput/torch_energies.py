"""The energies of the benchmark in PyTorch, compared with ours."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from experiments.throughput.workload import (
    Workload,
    check_energy,
    layers,
    stride_and_pad,
)


class TorchEnergy(NamedTuple):
    """An energy in PyTorch, of a batch.

    Attributes:
      energy: `energy(x) -> [n]`.
      value_and_grad: `value_and_grad(x) -> (energies, gradients)`, written by hand;
        None for what autograd does.
      settings: In words.
    """

    energy: Callable
    value_and_grad: Callable | None
    settings: str


def torch_gaussian(params: dict, is_compiled: bool) -> TorchEnergy:
    import torch

    mean, precision = (torch.tensor(params[name]) for name in ("mean", "precision"))

    def energy(x):
        return value_and_grad(x)[0]

    def value_and_grad(x):
        difference = x - mean
        gradient = precision * difference
        return 0.5 * (difference * gradient).sum(-1), gradient

    return TorchEnergy(energy, value_and_grad, "closed-form gradient")


def torch_mixture(params: dict, is_compiled: bool) -> TorchEnergy:
    import torch

    means = torch.tensor(params["means"])
    num_modes, dim = means.shape
    precision = torch.tensor(params["precisions"]).broadcast_to(num_modes)[:, None]
    log_scales = torch.tensor(params["log_weights"])[:, None]
    log_scales = log_scales + 0.5 * dim * torch.log(precision / (2 * math.pi))
    scaled_means = precision * means
    offsets = log_scales - 0.5 * precision * means.square().sum(-1, keepdim=True)

    def energy(x):
        return value_and_grad(x)[0]

    # Modes lead and chains come last in both: twice as fast as the other way.
    def products(x):
        """Returns an energy by matrix products, the fewest kernels in the eager
        mode."""
        x = x.T
        logits = torch.addmm(offsets, scaled_means, x)
        logits.sub_(0.5 * precision * x.square().sum(0))
        weights = torch.softmax(logits, 0)
        gradient = (precision.T @ weights) * x - scaled_means.T @ weights
        return -torch.logsumexp(logits, 0), gradient.T

    def differences(x):
        """Returns an energy coordinate by coordinate, all of which the compiler
        fuses."""
        steps = [x[:, i] - means[:, i : i + 1] for i in range(dim)]
        logits = log_scales - 0.5 * precision * sum(step.square() for step in steps)
        largest = logits.amax(0)
        weights = torch.exp(logits - largest)
        total = weights.sum(0)
        weights = weights * precision / total
        gradient = torch.stack([(weights * step).sum(0) for step in steps], -1)
        return -(largest + total.log()), gradient

    value_and_grad = differences if is_compiled else products
    form = "differences by coordinate" if is_compiled else "matrix products"
    return TorchEnergy(energy, value_and_grad, f"closed-form gradient by {form}")


def torch_mlp(params: dict, is_compiled: bool) -> TorchEnergy:
    import torch

    *hidden, last = [
        (torch.tensor(kernel).T.contiguous(), torch.tensor(bias))
        for kernel, bias in layers(params, "Dense")
    ]

    def energy(x):
        h = x.flatten(1)
        for kernel, bias in hidden:
            h = torch.nn.functional.linear(h, kernel, bias)
            h = torch.nn.functional.leaky_relu(h, 0.2)
        return torch.nn.functional.linear(h, *last)[:, 0]

    return TorchEnergy(energy, None, "autograd")


def torch_conv(params: dict, is_compiled: bool) -> TorchEnergy:
    import torch

    convs = [
        (torch.tensor(kernel).permute(3, 2, 0, 1).contiguous(), torch.tensor(bias))
        for kernel, bias in layers(params, "Conv")
    ]
    steps = [stride_and_pad(kernel.shape[0]) for kernel, _ in layers(params, "Conv")]
    ((kernel, bias),) = layers(params, "Dense")
    channels = len(convs[-1][1])
    # Flax's map is flattened with its channels last, PyTorch's with its channels first.
    size = math.isqrt(len(kernel) // channels)
    kernel = torch.tensor(kernel).reshape(size, size, channels).permute(2, 0, 1)
    last = kernel.reshape(1, -1).contiguous(), torch.tensor(bias)

    def energy(x):
        h = x
        for (kernel, bias), step in zip(convs, steps):
            h = torch.nn.functional.conv2d(h, kernel, bias, *step)
            h = torch.nn.functional.leaky_relu(h, 0.2)
        return torch.nn.functional.linear(h.flatten(1), *last)[:, 0]

    return TorchEnergy(energy, None, "autograd")


def torch_latent(params: dict, is_compiled: bool) -> TorchEnergy:
    import torch

    generator, energy_params = params["generator"], params["energy"]
    image_energy = torch_conv(
        energy_params["trunk"] | {"Dense_0": energy_params["Dense_0"]}, is_compiled
    ).energy
    # Kernels, and so the maps between them, have their channels last: as fast as first
    # or a little faster on the processors that were tried.
    convs = [
        (
            torch.tensor(kernel)
            .permute(3, 2, 0, 1)
            .contiguous(memory_format=torch.channels_last),
            torch.tensor(bias),
        )
        for kernel, bias in layers(generator, "TransposedConv")
    ]
    scales = []
    for index in range(len(convs)):
        # By running statistics a normalisation is a scale and a shift.
        name = f"BatchNorm_{index}"
        running = params["generator_state"]["batch_stats"][name]
        scale = generator[name]["scale"] / np.sqrt(running["var"] + 1e-5)
        shift = generator[name]["bias"] - running["mean"] * scale
        scales.append([torch.tensor(x)[:, None, None] for x in (scale, shift)])
    ((kernel, bias),) = layers(generator, "Dense")
    first = torch.tensor(kernel).T.contiguous(), torch.tensor(bias)
    channels = convs[0][0].shape[0]
    size = math.isqrt(len(bias) // channels)

    def energy(z):
        h = torch.nn.functional.linear(z, *first)
        h = h.reshape(-1, size, size, channels).permute(0, 3, 1, 2)
        # From 2x2 to 4, 7, 14 and 28: `output_padding` is 0 where the size is odd.
        for (kernel, bias), (scale, shift), extra in zip(convs, scales, (1, 0, 1, 1)):
            h = torch.relu(h * scale + shift)
            h = torch.nn.functional.conv_transpose2d(h, kernel, bias, 2, 2, extra)
        return image_energy(torch.tanh(h)) + 0.5 * z.square().sum(-1)

    return TorchEnergy(energy, None, "autograd")


TORCH_ENERGIES = {
    "gaussian": torch_gaussian,
    "mixture": torch_mixture,
    "mlp": torch_mlp,
    "conv": torch_conv,
    "latent": torch_latent,
}


def torch_energy(workload: Workload, x0, is_compiled: bool) -> TorchEnergy:
    """Returns our energy in PyTorch, after a comparison with ours."""
    import torch

    if jax.default_backend() != "cpu":
        raise NotImplementedError("the PyTorch peers are written for the CPU")
    if workload.kind not in TORCH_ENERGIES:
        raise NotImplementedError(f"no PyTorch form of the {workload.kind} energy")
    # Flax's arrays may be read-only, which PyTorch warns of.
    params = jax.tree.map(lambda leaf: np.array(leaf, np.float32), workload.params)
    with torch.no_grad():
        found = TORCH_ENERGIES[workload.kind](params, is_compiled)
        value_and_grad = found.value_and_grad or autograd(found.energy)

        def check(x):
            energy, gradient = value_and_grad(to_torch(x))
            return energy.numpy(), from_torch(gradient)

        check_energy(workload, x0, check, 1e-4)
    return found


def to_torch(x: np.ndarray, layout: str = "NCHW"):
    """Returns a copy; images have their channels first, in memory as the layout says.

    PyTorch's convolutions keep the layout of what they are given.
    """
    import torch

    x = np.array(x, np.float32)
    x = torch.tensor(np.moveaxis(x, -1, 1) if x.ndim == 4 else x).contiguous()
    is_last = layout == "NHWC" and x.ndim == 4
    return x.to(memory_format=torch.channels_last) if is_last else x


def from_torch(x) -> np.ndarray:
    x = x.numpy()
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def autograd(energy: Callable) -> Callable:
    """Returns `value_and_grad` of an energy, for the eager mode."""
    import torch

    def value_and_grad(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = energy(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    return value_and_grad


def functional(energy: Callable) -> Callable:
    """Returns `value_and_grad` of an energy, such as the compiler can trace."""
    import torch

    def total(x):
        value = energy(x)
        return value.sum(), value

    def value_and_grad(x):
        gradient, (_, value) = torch.func.grad_and_value(total, has_aux=True)(x)
        return value, gradient

    return value_and_grad
