"""Training steps in PyTorch of vectors: the tutorial's methods in the plane, and flows.

As in `torch_training`, the mathematics is ours.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from experiments.throughput import torch_networks as networks
from experiments.throughput.tasks import Task
from experiments.throughput.torch_networks import Tree
from experiments.throughput.torch_programs import torch_move
from experiments.throughput.torch_training import Setting, TorchPlayer
from experiments.throughput.workload import Kernel


def make_energy(task: Task) -> Callable:
    """Returns `energy(params, x) -> [n]` of the tutorial: layers and a wide normal."""
    import torch

    mean, covariance = (task.facts[name] for name in ("mean", "covariance"))
    width = float(np.sqrt(np.trace(covariance) / len(mean)))
    mean = torch.tensor(mean.astype(np.float32))
    activation = task.config.network.activation

    def energy(params, x):
        h = (x - mean) / width
        base = 0.125 * h.square().sum(1)
        return base + networks.mlp(params["energy"], h, activation)[:, 0]

    return energy


def one_player(loss, draw=lambda batch: {}, prepare=None, trains=("energy",)):
    def take(params, draws, batch):
        return batch, *draws.values()

    return {"energy": TorchPlayer(trains, draw, prepare or take, loss)}


def draw_noise(batch):
    import torch

    return {"noise": torch.randn_like(batch)}


def denoising(task: Task, buffers: Tree, setting: Setting) -> dict[str, TorchPlayer]:
    """Returns denoising score matching with the noise of both signs."""
    import torch

    energy, scale = make_energy(task), task.config.objective.noise_scale

    def loss(params, inputs):
        batch, noise = inputs
        both = torch.cat([batch + scale * noise, batch - scale * noise])
        _, slope = setting.slope(lambda x: energy(params, x), both)
        ahead, behind = slope.chunk(2)
        value = 0.25 * slope.square().sum()
        return (value - (noise * (ahead - behind)).sum() / (2 * scale)) / len(batch)

    return one_player(loss, draw_noise)


def contrastive(task: Task, buffers: Tree, setting: Setting) -> dict[str, TorchPlayer]:
    """Returns contrastive divergence by MALA from the data, whose law `verify`
    checks."""
    import torch

    energy, section = make_energy(task), task.config.objective
    kernel = Kernel("mala", section.step_size)

    def value_and_grad(params, x):
        return setting.gradient(lambda x: energy(params, x), x)

    def move(params, *state):
        return torch_move(functools.partial(value_and_grad, params), kernel)[1](*state)

    step = setting.compile(move)

    def prepare(params, draws, batch):
        if "negatives" in draws:
            return batch, draws["negatives"]
        state = batch, *value_and_grad(params, batch)
        for _ in range(section.num_steps):
            state = step(params, *state)
        return batch, state[0]

    def loss(params, inputs):
        at_data, at_ends = energy(params, torch.cat(inputs)).chunk(2)
        return at_data.mean() - at_ends.mean()

    return one_player(loss, prepare=prepare)


def noise_contrastive(
    task: Task, buffers: Tree, setting: Setting
) -> dict[str, TorchPlayer]:
    """Returns noise contrastive estimation against the normal with the data's
    moments."""
    import torch

    energy, num_noise = make_energy(task), task.config.objective.num_noise
    mean, covariance = (task.facts[name] for name in ("mean", "covariance"))
    lower = np.linalg.cholesky(covariance)
    constant = np.log(np.diag(lower)).sum() + 0.5 * len(mean) * math.log(2 * math.pi)
    mean, lower, inverse = (
        torch.tensor(x.astype(np.float32)) for x in (mean, lower, np.linalg.inv(lower))
    )
    softplus = torch.nn.functional.softplus

    def draw(batch):
        return {"noise": torch.randn(len(batch), num_noise, len(mean))}

    def prepare(params, draws, batch):
        noise = draws["noise"].flatten(0, 1) @ lower.T + mean
        x = torch.cat([batch, noise])
        log_prob = -0.5 * ((x - mean) @ inverse.T).square().sum(1) - constant
        return x, log_prob + math.log(num_noise)

    def loss(params, inputs):
        x, log_noise = inputs
        logits = -energy(params, x) - params["log_partition"] - log_noise
        num = len(x) // (1 + num_noise)
        return (softplus(-logits[:num]).sum() + softplus(logits[num:]).sum()) / num

    return one_player(loss, draw, prepare, ("energy", "log_partition"))


def score_matching(
    task: Task, buffers: Tree, setting: Setting
) -> dict[str, TorchPlayer]:
    """Returns implicit score matching with the exact trace."""
    energy = make_energy(task)

    def loss(params, inputs):
        (batch,) = inputs
        slope, laplacian = setting.laplacian(lambda x: energy(params, x), batch)
        return (0.5 * slope.square().sum() - laplacian.sum()) / len(batch)

    return one_player(loss)


def make_log_prob(task: Task) -> Callable:
    """Returns `log_prob(params, x) -> [n]` of a flow."""
    import torch

    section = task.config.network
    if section.name == "real_nvp":
        return networks.real_nvp_log_prob
    masks = networks.made_masks(len(task.params["energy"]["mean"]), section.widths)
    masks = [torch.tensor(mask) for mask in masks]
    return functools.partial(networks.masked_log_prob, masks=masks)


def likelihood(task: Task, buffers: Tree, setting: Setting) -> dict[str, TorchPlayer]:
    log_prob = make_log_prob(task)

    def loss(params, inputs):
        (batch,) = inputs
        return -log_prob(params["energy"], batch).mean()

    return one_player(loss)


PLANE_METHODS = {
    "denoising_score_matching": denoising,
    "contrastive_divergence": contrastive,
    "noise_contrastive": noise_contrastive,
    "score_matching": score_matching,
    "likelihood": likelihood,
}


def log_prob(task: Task, setting: Setting) -> Callable:
    """Returns `evaluate(params, x)`."""
    found = setting.compile(make_log_prob(task))
    return lambda params, x: found(params["energy"], x)


PLANE_FUNCTIONS = {"log_prob": log_prob}
