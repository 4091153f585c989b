"""Training steps in PyTorch: the losses of our objectives, and their updates.

Every method has the same mathematics as ours. It is written as PyTorch is used at its
best: batches that go through a network together are concatenated, and what an energy
and its gradient share is computed once. Before anything is timed, losses and gradients
are compared with ours, at the same parameters and the same random numbers.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from experiments.throughput import torch_networks as networks
from experiments.throughput.tasks import Task
from experiments.throughput.torch_networks import Tree


class Setting(NamedTuple):
    """Form in which a program runs; `layout` is "NCHW" or "NHWC"."""

    layout: str
    is_compiled: bool

    def __str__(self):
        how = "torch.compile, noise by ATen" if self.is_compiled else "eager"
        return f"{how}, channels_last" if self.layout == "NHWC" else how

    def compile(self, function: Callable) -> Callable:
        import torch

        if not self.is_compiled:
            return function
        # The compiler's own random numbers are over ten times slower on a CPU.
        options = {"fallback_random": True}
        return torch.compile(function, dynamic=False, fullgraph=True, options=options)

    def slope(self, energy: Callable, x):
        """Returns energies and their gradients in `x`, both differentiable."""
        import torch

        if self.is_compiled:

            def total(x):
                value = energy(x)
                return value.sum(), value

            slope, (_, value) = torch.func.grad_and_value(total, has_aux=True)(x)
            return value, slope
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = energy(x)
            (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return value, slope

    def gradient(self, energy: Callable, x):
        """Returns energies and their gradients in `x`; the parameters are fixed."""
        import torch

        if self.is_compiled:
            return self.slope(energy, x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = energy(x)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    def laplacian(self, energy: Callable, x):
        """Returns gradients of an energy in `x` and its Laplacians, `[n]`."""
        import torch

        columns = range(x.shape[1])
        if self.is_compiled:

            def slope(x):
                return torch.func.grad(lambda x: energy(x).sum())(x)

            def second(x, i):
                return torch.func.grad(lambda x: slope(x)[:, i].sum())(x)[:, i]

            return slope(x), sum(second(x, i) for i in columns)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (first,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
            seconds = [
                torch.autograd.grad(first[:, i].sum(), x, create_graph=True)[0][:, i]
                for i in columns
            ]
        return first, sum(seconds)


class TorchPlayer(NamedTuple):
    """A player, whose functions take trees of tensors.

    Attributes:
      trains: Names of the parameters that it trains.
      draw: `draw(batch) -> draws`, a dict of the random numbers of an inner update.
      prepare: `prepare(params, draws, batch) -> inputs` of the loss, all of them fixed;
        its parameters are fixed too.
      loss: `loss(params, inputs) -> scalar`.
      num_updates: Inner updates a step.
    """

    trains: tuple[str, ...]
    draw: Callable[[Any], dict[str, Any]]
    prepare: Callable[[Tree, dict[str, Any], Any], Any]
    loss: Callable[[Tree, Any], Any]
    num_updates: int = 1


def frozen(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x.detach(), tree)


def only(params: Tree, trains: Sequence[str]) -> Tree:
    """Returns the parameters, of which all others are fixed."""
    return {k: v if k in trains else frozen(v) for k, v in params.items()}


# --- short runs -----------------------------------------------------------------------


def short_run(task: Task, buffers: Tree, setting: Setting) -> dict[str, TorchPlayer]:
    import torch

    config, energy = task.config, networks.conv_energy
    penalty, step_size = config.objective.energy_penalty, config.sampler.step_size
    noise_std = math.sqrt(2 * step_size * config.sampler.temperature)

    def draw(batch):
        moves = range(config.objective.num_steps)
        return {
            "start": 2 * torch.rand_like(batch) - 1,
            "data": torch.randn_like(batch),
            "noise": [torch.randn_like(batch) for _ in moves],
        }

    @setting.compile
    def move(params, x, noise):
        _, gradient = setting.gradient(lambda x: energy(params, x), x)
        x = torch.add(x, gradient, alpha=-step_size)
        return torch.add(x, noise, alpha=noise_std)

    def prepare(params, draws, batch):
        x = draws["start"]
        for noise in draws["noise"]:
            x = move(params["energy"], x, noise)
        return torch.add(batch, draws["data"], alpha=config.data_noise.start), x

    def loss(params, inputs):
        at_data, at_ends = energy(params["energy"], torch.cat(inputs)).chunk(2)
        value = at_data.mean() - at_ends.mean()
        if penalty:
            squares = at_data.square().mean() + at_ends.square().mean()
            value = value + penalty * squares
        return value

    return {"energy": TorchPlayer(("energy",), draw, prepare, loss)}


# --- denoising ------------------------------------------------------------------------


def unet_of(task: Task) -> Callable:
    """Returns `score(params, x, noise_scale)`."""
    section = task.config.network
    return functools.partial(
        networks.unet,
        frequencies=networks.make_frequencies(),
        num_levels=len(section.widths),
        num_blocks=section.num_blocks,
    )


def noise_std(task: Task, time):
    """Returns the standard deviation of a variance-exploding diffusion."""
    low = task.config.process.noise_min
    high = task.config.process.noise_max or task.facts["largest_distance"]
    return low * (math.log(high / low) * time).exp()


def score_based(task: Task, buffers: Tree, setting: Setting) -> dict[str, TorchPlayer]:
    import torch

    score = unet_of(task)

    def draw(batch):
        time = torch.rand(len(batch)) * (1 - 1e-5) + 1e-5
        return {"time": time, "noise": torch.randn_like(batch)}

    def prepare(params, draws, batch):
        return batch, draws["time"], draws["noise"]

    def loss(params, inputs):
        batch, time, noise = inputs
        std = noise_std(task, time)
        wide = std[:, None, None, None]
        found = score(params["score"], batch + wide * noise, std)
        return 0.5 * (wide * found + noise).square().sum() / len(batch)

    return {"score": TorchPlayer(("score",), draw, prepare, loss)}


def score(task: Task, setting: Setting) -> Callable:
    """Returns `evaluate(params, x, noise_scales)`."""
    found = setting.compile(unet_of(task))
    return lambda params, x, scales: found(params["score"], x, scales)


def sampling(task: Task, setting: Setting) -> Callable:
    """Returns `evaluate(params, like, seed, draws)`, a diffusion that runs backwards.

    It begins at `draws["start"]`, of the shape of `like`, and has `draws["noise"]`, two
    for each step. Without `draws`, these are drawn.
    """
    import torch

    options, unet = task.config.evaluation.sampler, unet_of(task)
    times = torch.linspace(1.0, options.time_min, options.num_steps + 1)
    stds = noise_std(task, times)
    spreads = (stds[:-1].square() - stds[1:].square()).sqrt()

    def mean_norm(x):
        return x.flatten(1).norm(dim=1).mean()

    @setting.compile
    def step(params, x, std, spread, first, second):
        scales = std.expand(len(x))
        found = unet(params, x, scales)
        signal = options.signal_to_noise * mean_norm(first) / mean_norm(found)
        x = x + 2 * signal.square() * found + 2 * signal * first
        return x + spread.square() * unet(params, x, scales) + spread * second

    @setting.compile
    def denoise(params, x, std):
        return x + std.square() * unet(params, x, std.expand(len(x)))

    def evaluate(params, like, seed, draws=None):
        params = params["score"]
        if draws is None:
            pairs = [(torch.randn_like(like), torch.randn_like(like)) for _ in spreads]
            draws = {"start": torch.randn_like(like), "noise": pairs}
        x = stds[0] * draws["start"]
        for std, spread, noise in zip(stds, spreads, draws["noise"]):
            x = step(params, x, std, spread, *noise)
        return denoise(params, x, stds[-1])

    return evaluate


# --- maximum entropy ------------------------------------------------------------------


def max_entropy(task: Task, buffers: Tree, setting: Setting) -> dict[str, TorchPlayer]:
    import torch

    config, functional = task.config, torch.nn.functional
    objective = config.objective
    is_image = config.networks.name != "mlp"

    def generate(params, z, size):
        if is_image:
            return networks.generator(
                params["generator"], buffers["generator_state"], z, size, train=True
            )
        return networks.mlp(params["generator"], z, "relu")

    def energy(params, x):
        if is_image:
            return networks.conv_energy(params["energy"], x)
        return networks.mlp(params["energy"], x)[:, 0]

    def statistics(params, x, latents):
        if is_image:
            return networks.statistics(params["statistics"], x, latents)
        pairs = torch.cat([torch.cat([x, z], 1) for z in latents])
        return networks.mlp(params["statistics"], pairs)[:, 0].split(len(x))

    def draw_latents(batch):
        return {"latents": torch.randn(len(batch), config.latent_dim)}

    @setting.compile
    def draws_of(params, z, size):
        return generate(params, z, size)

    def prepare(params, draws, batch):
        return batch, draws_of(params, draws["latents"], batch.shape[-1])

    def energy_loss(params, inputs):
        batch, negatives = inputs
        at_data, slope = setting.slope(lambda x: energy(params, x), batch)
        square = slope.square().sum() / len(batch)
        if objective.reduction == "channel_mean" and is_image:
            square = square / math.prod(batch.shape[2:])
        value = at_data.mean() - energy(params, negatives).mean()
        return value + objective.score_penalty * square

    def draw_pair(batch):
        return draw_latents(batch) | {"order": torch.randperm(len(batch))}

    def take(params, draws, batch):
        return draws["latents"], draws["order"], batch.shape[-1]

    def generator_loss(params, inputs):
        z, order, size = inputs
        x = generate(params, z, size)
        joint, marginal = statistics(params, x, [z, z[order]])
        information = -(functional.softplus(-joint) + functional.softplus(marginal))
        value = energy(params, x).mean()
        return value - objective.information_weight * information.mean()

    num_updates = config.players.num_energy_updates
    players = {
        "generator": TorchPlayer(
            ("generator", "statistics"), draw_pair, take, generator_loss
        ),
        "energy": TorchPlayer(
            ("energy",), draw_latents, prepare, energy_loss, num_updates
        ),
    }
    return {name: players[name] for name in task.players}


# --- generalised ----------------------------------------------------------------------


def generalized(task: Task, buffers: Tree, setting: Setting) -> dict[str, TorchPlayer]:
    import torch

    config, objective = task.config, task.config.objective
    floor = objective.energy_floor

    def base(params, z, size, train):
        state = buffers["base_state"]
        return networks.generator(params["base"], state, z, size, train)

    def energy_fn(params):
        normalized = networks.spectral(params["energy"], buffers["energy_state"])

        def energy(x):
            value = networks.conv_energy(normalized, x, 0.1)
            return torch.relu(value - floor) + floor if floor else value

        return energy

    def draw_latents(batch):
        return {"latents": torch.randn(len(batch), config.latent_dim)}

    def draw_energy(batch):
        return draw_latents(batch) | {"share": torch.rand(len(batch), 1, 1, 1)}

    @setting.compile
    def propose(params, z, share, batch):
        x = base(params, z, batch.shape[-1], False)
        return batch, x, share * batch + (1 - share) * x

    def prepare(params, draws, batch):
        networks.refresh(params["energy"], buffers["energy_state"])
        return propose(params, draws["latents"], draws["share"], batch)

    def energy_loss(params, inputs):
        batch, x, points = inputs
        energy, constant = energy_fn(params), params["log_partition"]
        at_data, at_draws = energy(torch.cat([batch, x])).chunk(2)
        log_mean = torch.logsumexp(-at_draws, 0).detach() - math.log(len(x))
        held = constant.detach()
        value = at_data.mean() + held + torch.exp(-(at_draws + held)).mean() - 1
        value = value + (constant - held) * torch.expm1(held - log_mean)
        _, slope = setting.slope(energy, points)
        square = slope.square().sum() / len(batch)
        return value + objective.gradient_penalty * square

    def take(params, draws, batch):
        return draws["latents"], batch

    def base_loss(params, inputs):
        z, batch = inputs
        energy = energy_fn(params)
        x = base(params, z, batch.shape[-1], True)
        with torch.no_grad():  # the value alone needs the data
            at_data = energy(batch).mean()
        return math.log(len(x)) - at_data - torch.logsumexp(-energy(x), 0)

    return {
        "energy": TorchPlayer(
            ("energy", "log_partition"),
            draw_energy,
            prepare,
            energy_loss,
            config.players.num_energy_updates,
        ),
        "base": TorchPlayer(("base",), draw_latents, take, base_loss),
    }


IMAGE_METHODS = {
    "short_run": short_run,
    "score_based": score_based,
    "max_entropy": max_entropy,
    "generalized": generalized,
}

IMAGE_FUNCTIONS = {"score": score, "sampling": sampling}
