"""Moves written by hand in PyTorch, and the search for its fastest settings."""

import math
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.throughput.torch_energies import (
    autograd,
    from_torch,
    functional,
    to_torch,
    torch_energy,
)
from experiments.throughput.workload import (
    Contender,
    Kernel,
    Workload,
    check_sampler,
    num_cores,
    version,
)

TORCH_ENVIRONMENT = {
    # The most threads; fewer are tried.
    "OMP_NUM_THREADS": str(num_cores()),
    # Compile times are those of a first run. Unset it to look at speeds alone.
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}


def torch_move(value_and_grad: Callable, sampler: Kernel) -> tuple[Callable, Callable]:
    """Returns `init(x) -> state` and `step(*state) -> state`; the position comes
    first."""
    import torch

    check_sampler("the PyTorch program", sampler)
    h = sampler.step_size
    noise_std = math.sqrt(2 * h)

    def init(x):
        return x, *value_and_grad(x)

    def choose(log_ratio, proposal, state):
        is_accepted = torch.rand_like(log_ratio).log() < log_ratio
        views = is_accepted, is_accepted.view(-1, *[1] * (state[0].ndim - 1))
        return tuple(
            torch.where(views[new.ndim > 1], new, old)
            for new, old in zip(proposal, state)
        )

    def total(array):
        return array.flatten(1).sum(-1)

    def langevin(x):
        _, gradient = value_and_grad(x)
        noise = torch.randn_like(x)
        return (torch.add(x, gradient, alpha=-h).add_(noise, alpha=noise_std),)

    def mala(x, energy, gradient):
        noise = torch.randn_like(x)
        y = torch.add(x, gradient, alpha=-h).add_(noise, alpha=noise_std)
        proposal = init(y)
        backward = (gradient + proposal[2]).mul_(h / noise_std).sub_(noise)
        log_ratio = energy - proposal[1]
        log_ratio = log_ratio + 0.5 * total((noise - backward) * (noise + backward))
        return choose(log_ratio, proposal, (x, energy, gradient))

    def hmc(x, energy, gradient):
        start = torch.randn_like(x)
        p = torch.add(start, gradient, alpha=-0.5 * h)
        y = torch.add(x, p, alpha=h)
        for _ in range(sampler.num_leapfrog - 1):
            p.sub_(value_and_grad(y)[1], alpha=h)
            y = torch.add(y, p, alpha=h)
        proposal = init(y)
        p.sub_(proposal[2], alpha=0.5 * h)
        log_ratio = energy - proposal[1] + 0.5 * total((start - p) * (start + p))
        return choose(log_ratio, proposal, (x, energy, gradient))

    if sampler.name == "langevin":
        return lambda x: (x,), langevin
    return init, {"mala": mala, "hmc": hmc}[sampler.name]


class Setting(NamedTuple):
    """Variant of a PyTorch program that is tried."""

    num_threads: int
    layout: str

    def __str__(self):
        layout = {"vector": "", "NCHW": "NCHW, ", "NHWC": "channels_last, "}
        plural = "" if self.num_threads == 1 else "s"
        return f"{layout[self.layout]}{self.num_threads} thread{plural}"


def fastest(settings: list[Setting], x0, make_step: Callable) -> Setting:
    """Returns the `make_step() -> step(x)` with which a few moves are fastest here.

    More threads are not always better: on two cores a compiled step of the mixture ran
    at a fifth of its speed with one. And which layout of images is faster depends on
    the processor.
    """
    import torch

    if len(settings) == 1:
        return settings[0]
    seconds = dict.fromkeys(settings, math.inf)
    programs = {}
    for setting in settings:  # what is compiled is for this number of threads
        torch.set_num_threads(setting.num_threads)
        programs[setting] = make_step(), to_torch(x0, setting.layout)
    for burst in range(6):
        for setting, (step, x) in programs.items():
            torch.set_num_threads(setting.num_threads)
            step(x)
            start, count = time.perf_counter(), 0
            while time.perf_counter() < start + 0.05:
                step(x)
                count += 1
            if burst > 0:  # the first ones warm up
                spent = (time.perf_counter() - start) / count
                seconds[setting] = min(seconds[setting], spent)
    return min(settings, key=seconds.get)


def torch_settings(x0, is_compiled: bool, num_threads: int | None) -> list[Setting]:
    """Returns the settings worth trying: threads and, uncompiled, layouts of images."""
    most = int(os.environ.get("OMP_NUM_THREADS", num_cores()))
    threads = sorted({1, most}) if num_threads is None else [num_threads]
    layouts = ["vector"]
    if np.ndim(x0) == 4:  # the compiler chooses layouts by itself
        layouts = ["NCHW"] if is_compiled or num_threads else ["NCHW", "NHWC"]
    return [Setting(count, layout) for count in threads for layout in layouts]


def torch_contender(
    move: Callable, x0, num_steps: int, settings: str, *, num_threads: int | None = None
) -> Contender:
    """Returns the program of a PyTorch library, at the fastest setting that is found.

    Args:
      move: `move(x, num_steps) -> x`, uncompiled moves of the library's sampler.
      x0: Starts of the chains.
      num_steps: Number of moves in a run.
      settings: The library's version and what it is given, in words.
      num_threads: Number of threads; None for the fastest.
    """
    import torch

    def make_step():
        return lambda x: move(x, 1)

    setting = fastest(torch_settings(x0, False, num_threads), x0, make_step)
    start = to_torch(x0, setting.layout)

    def run(seed: int) -> np.ndarray:
        torch.set_num_threads(setting.num_threads)
        torch.manual_seed(seed)
        # The library may change its start in place, which later runs begin from too.
        return from_torch(move(start.clone(), num_steps))

    return Contender(run, f"{settings}, {setting}")


def hand_written(
    workload: Workload,
    sampler: Kernel,
    x0,
    num_steps: int,
    *,
    is_compiled: bool,
    num_threads: int | None = None,
) -> Contender:
    """Returns the moves in PyTorch; None for the fastest settings that are found."""
    import torch

    found = torch_energy(workload, x0, is_compiled)
    differentiate = functional if is_compiled else autograd
    value_and_grad = found.value_and_grad or differentiate(found.energy)
    init, move = torch_move(value_and_grad, sampler)

    def make_move():
        if not is_compiled:
            return move
        return torch.compile(
            move,
            dynamic=False,
            fullgraph=True,
            # The compiler's own random numbers are over ten times slower on a CPU.
            options={"fallback_random": True},
        )

    def make_step():
        step = make_move()
        return torch.no_grad()(lambda x: step(*init(x)))

    setting = fastest(torch_settings(x0, is_compiled, num_threads), x0, make_step)
    if is_compiled:  # so that the first run compiles, as the others' do
        torch.compiler.reset()
    step = make_move()
    start = to_torch(x0, setting.layout)

    @torch.no_grad()
    def run(seed: int) -> np.ndarray:
        torch.set_num_threads(setting.num_threads)
        torch.manual_seed(seed)
        state = init(start)
        for _ in range(num_steps):
            state = step(*state)
        return from_torch(state[0])

    how = "torch.compile of the whole move, noise by ATen" if is_compiled else "eager"
    return Contender(run, f"{version('torch')}: {how}, {found.settings}, {setting}")
