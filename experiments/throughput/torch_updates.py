"""Programs of PyTorch for a task, compared with ours."""

import functools

import jax
import numpy as np

from ebmjax.types import DEVICE
from experiments.throughput.draws import DRAWS
from experiments.throughput.tasks import Program, Task, perturb
from experiments.throughput.torch_energies import from_torch, to_torch
from experiments.throughput.torch_networks import Tree, convert
from experiments.throughput.torch_plane import PLANE_FUNCTIONS, PLANE_METHODS
from experiments.throughput.torch_training import (
    IMAGE_FUNCTIONS,
    IMAGE_METHODS,
    Setting,
    frozen,
    only,
)
from experiments.throughput.workload import num_cores, version

METHODS = IMAGE_METHODS | PLANE_METHODS
FUNCTIONS = IMAGE_FUNCTIONS | PLANE_FUNCTIONS
IMAGE_KINDS = (*IMAGE_METHODS, *IMAGE_FUNCTIONS)
ALL_KINDS = (*METHODS, *FUNCTIONS)

TOLERANCE, GRADIENT_TOLERANCE, NUM_DRAWS = 1e-4, 3e-3, 3
"""Relative errors of values and of gradients, in the best of so many draws. Gradients
are within 1e-5, except where the activations of wide networks are so many that rounding
puts some of them on the other side of zero."""


def to_tensors(tree: Tree, layout: str) -> Tree:
    """Returns copies of arrays as tensors; images with their channels first."""
    import torch

    def leaf(x):
        x = np.asarray(x)
        if np.issubdtype(x.dtype, np.integer):
            return torch.tensor(x)
        return to_torch(x, layout)

    return jax.tree.map(leaf, tree)


def to_params(tree: Tree, layout: str, trains: bool) -> Tree:
    """Returns parameters, or statistics, as tensors."""
    import torch

    def leaf(x):
        x = torch.tensor(np.ascontiguousarray(x))
        if x.ndim == 4 and layout == "NHWC":
            x = x.contiguous(memory_format=torch.channels_last)
        return x.requires_grad_(trains)

    return jax.tree.map(leaf, tree)


def make_state(task: Task, layout: str, params: Tree | None = None):
    """Returns the parameters and the statistics in PyTorch."""
    params = task.params if params is None else params
    params = {name: convert(tree) for name, tree in params.items()}
    buffers = jax.tree.map(lambda x: np.array(x, np.float32), task.model_state)
    return to_params(params, layout, True), to_params(buffers, layout, False)


def make_optimizer(task: Task, leaves):
    import torch

    section = task.config.optimizer
    return torch.optim.Adam(
        leaves,
        lr=section.learning_rate.start,
        betas=(section.b1, section.b2),
        eps=1e-8,
        fused=True,
    )


def make_update(task: Task, setting: Setting) -> Program:
    import torch

    params, buffers = make_state(task, setting.layout)
    players = {
        name: player._replace(loss=setting.compile(player.loss))
        for name, player in METHODS[task.kind](task, buffers, setting).items()
    }
    batches = [to_tensors(batch, setting.layout) for batch in task.batch]
    trained = {
        name: jax.tree.leaves({k: params[k] for k in player.trains})
        for name, player in players.items()
    }
    optimizers = {name: make_optimizer(task, x) for name, x in trained.items()}
    clip, decay = task.config.optimizer.gradient_clip, task.config.ema_decay
    # Views of the same memory, which the optimizers change in place.
    fixed = frozen(params)
    views = {name: only(params, player.trains) for name, player in players.items()}
    everything = jax.tree.leaves(params)
    average = [x.detach().clone() for x in everything] if decay else []

    def inner_update(name, batch):
        player, leaves = players[name], trained[name]
        with torch.no_grad():
            draws = player.draw(batch)
            inputs = player.prepare(fixed, draws, batch)
        loss = player.loss(views[name], inputs)
        optimizers[name].zero_grad()
        loss.backward(inputs=leaves)
        if clip:
            torch.nn.utils.clip_grad_norm_(leaves, clip)
        optimizers[name].step()
        return loss

    def run(count: int) -> float:
        for _ in range(count):
            index = 0
            for name, player in players.items():
                for _ in range(player.num_updates):
                    loss = inner_update(name, batches[index])
                    index += 1
            if decay:
                with torch.no_grad():
                    torch._foreach_lerp_(average, everything, 1 - decay)
        return float(loss.detach())

    return Program(
        run, describe(setting), functools.partial(verify_update, task, setting)
    )


def make_evaluation(task: Task, setting: Setting) -> Program:
    import torch

    params, _ = make_state(task, setting.layout)
    evaluate = FUNCTIONS[task.kind](task, setting)
    inputs = to_tensors(task.batch, setting.layout)

    @torch.no_grad()
    def run(count: int) -> float:
        for _ in range(count):
            result = evaluate(params, *inputs)
        return float(result.flatten()[-1])

    return Program(
        run, describe(setting), functools.partial(verify_function, task, setting)
    )


def describe(setting: Setting) -> str:
    return f"{version('torch')}: {setting}, {num_cores()} threads"


def hand_written_update(task: Task, *, layout: str, is_compiled: bool) -> Program:
    """Returns the program of a task, which may be an evaluation.

    Raises:
      NotImplementedError: If it has no such layout.
    """
    import torch

    is_update = task.function is None
    arrays = [task.batch[0]] if is_update else task.batch
    if layout == "NHWC" and not any(np.ndim(x) == 4 for x in arrays):
        raise NotImplementedError("there are no images, whose channels could be last")
    torch.set_num_threads(num_cores())
    make = make_update if is_update else make_evaluation
    return make(task, Setting(layout, is_compiled))


# --- comparison -----------------------------------------------------------------------


def our_gradients(task: Task, params, name: str):
    """Returns `evaluate(key, batch) -> (loss, gradients)` of a player."""
    player = task.players[name]
    trained = {k: params[k] for k in player.trains}

    def one(key, batch):
        def loss(trained):
            carry = player.objective.init(key)
            entries = params | task.model_state | trained
            return player.objective.loss(entries, key, batch, carry)

        (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        return value, gradients

    # Batch statistics are means over devices, of which there is one here.
    mapped = jax.jit(jax.vmap(one, (None, 0), axis_name=DEVICE))

    def evaluate(key, batch):
        return jax.tree.map(lambda x: np.asarray(x[0]), mapped(key, batch[None]))

    return evaluate


def verify_update(task: Task, setting: Setting) -> None:
    """Raises unless losses and gradients are ours, of every player.

    Raises:
      AssertionError: Naming the player and the parameters.
    """
    arrays, first = perturb(task.params), 0
    for name, player in task.players.items():
        ours = our_gradients(task, arrays, name)
        theirs = their_gradients(task, arrays, name, setting)
        batch = task.batch[first]
        first += player.num_updates
        # Where a rounding error puts a leaky ReLU on its other side, a gradient jumps.
        # What is wrong is wrong in every draw.
        least = {}
        for seed in range(NUM_DRAWS):
            key = jax.random.key(seed)
            errors = compare(theirs(key, batch), ours(key, batch))
            least = {k: min(x, least.get(k, np.inf)) for k, x in errors.items()}
            if max(least.values()) <= 1:
                break
        worst = max(least, key=least.get)
        if not least[worst] <= 1:
            raise AssertionError(
                f"{name}: {worst} is off by {least[worst]:.2g} times what is allowed"
            )


def verify_function(task: Task, setting: Setting) -> None:
    """Raises an AssertionError unless the function's values are ours."""
    import torch

    arrays = perturb(task.params)
    params, _ = make_state(task, setting.layout, arrays)
    inputs = to_tensors(task.batch, setting.layout)
    if task.kind in DRAWS:
        draws = DRAWS[task.kind](task, arrays, "", jax.random.key(0), task.batch[0])
        inputs = *inputs, to_tensors(draws, setting.layout)
    with torch.no_grad():
        found = from_torch(FUNCTIONS[task.kind](task, setting)(params, *inputs))
    expected = np.asarray(jax.jit(task.function)(arrays, *task.batch))
    error = relative_error(found, expected)
    if not error <= TOLERANCE:
        raise AssertionError(f"the result is off by {error:.1e}")


def relative_error(found, expected, floor: float = 0.0) -> float:
    """Returns the norm of the error over that of what is expected, or over a floor."""
    norm = max(np.linalg.norm(np.ravel(expected)), floor)
    return float(np.linalg.norm(np.ravel(found - expected)) / norm)


def their_gradients(task: Task, arrays, name: str, setting: Setting):
    """Returns `evaluate(key, batch) -> (loss, gradients, errors)` of a player in
    PyTorch, with errors of what is neither of the two."""
    import torch

    params, buffers = make_state(task, setting.layout, arrays)
    before = jax.tree.map(torch.clone, buffers)
    player = METHODS[task.kind](task, buffers, setting)[name]
    program = setting.compile(player.loss)
    trained = {k: params[k] for k in player.trains}

    def evaluate(key, batch):
        jax.tree.map(lambda x, y: x.copy_(y), buffers, before)
        draws = to_tensors(
            DRAWS[task.kind](task, arrays, name, key, batch), setting.layout
        )
        with torch.no_grad():
            batch = to_tensors(batch, setting.layout)
            inputs = player.prepare(frozen(params), draws, batch)
        apart = {}
        if "negatives" in draws:
            # Chains that end within rounding of ours are then taken to end there:
            # some activation of one of them would be on the other side of zero.
            ends, negatives = inputs[1].numpy(), draws["negatives"]
            apart["the ends of the chains"] = relative_error(ends, negatives.numpy())
            inputs = inputs[0], negatives
        loss = program(only(params, player.trains), inputs)
        leaves, structure = jax.tree.flatten(trained)
        found = torch.autograd.grad(
            loss, leaves, allow_unused=True, materialize_grads=True
        )
        found = [x.numpy() for x in found]
        return loss.detach().numpy(), jax.tree.unflatten(structure, found), apart

    return evaluate


def compare(found, expected) -> dict[str, float]:
    """Returns errors of a loss and of its gradients, one for what is allowed.

    The error of a gradient is relative to its norm, or to a hundredth of that of all
    gradients if it is smaller, and that of the loss to its size, or to one.
    """
    gradients = {name: convert(tree) for name, tree in expected[1].items()}
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    whole = np.sqrt(sum(np.sum(x**2) for _, x in leaves))
    errors = {"the loss": relative_error(found[0], expected[0], 1.0)} | found[2]
    errors = {what: error / TOLERANCE for what, error in errors.items()}
    for (path, leaf), own in zip(leaves, jax.tree.leaves(found[1])):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        error = relative_error(own, leaf, 0.01 * whole)
        errors[f"the gradient in {where}"] = error / GRADIENT_TOLERANCE
    return errors
