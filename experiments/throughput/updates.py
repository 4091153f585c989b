"""Our updates in the table of training steps, and the processes of its contenders."""

import argparse
import functools
import math
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from experiments.throughput import peers, process
from experiments.throughput.metric_tasks import METRICS
from experiments.throughput.tasks import TASKS, Program, Task
from experiments.throughput.workload import DEVICES, num_cores, version

MOST_STEPS, MOST_BYTES, MOST_SECONDS = 64, 2**22, 0.1
"""Limits of the steps that one program makes, as in a run: their number, the size of
their batches and their time."""


def ours(task: Task) -> Program:
    """Returns one program a step, on all devices that JAX has."""
    from ebmjax import training

    if task.function is not None:
        return evaluation(task)
    update = training.pmap_update(task.players, ema_decay=ema_decay(task))
    batch = lay_out(task)

    def step(state, count):
        return *update(state, batch), 1

    return training_program(task, step)


def several_steps(task: Task) -> Program:
    """Returns programs of several steps where they are short, as a run makes them."""
    from ebmjax import training

    updates = training.pmap_updates(task.players, ema_decay=ema_decay(task))
    batch = lay_out(task)[:, None]
    most = max(1, min(MOST_STEPS, MOST_BYTES // batch.nbytes))
    batches = batch.repeat(most, 1)
    pace = 1.0

    def steps(state, count):
        nonlocal pace
        begin = time.perf_counter()
        count = max(1, int(min(count, most, pace)))
        state, scalars = updates(state, batches, 0, count)
        jax.block_until_ready(state.step)
        pace = MOST_SECONDS * count / (time.perf_counter() - begin)
        return state, scalars, count

    return training_program(task, steps)


def on_every_core(task: Task) -> Program:
    """Returns the programs of `several_steps`, with a device for every core."""
    if num_cores() == 1:
        raise NotImplementedError("one core: a device a core is one device")
    return several_steps(task)


def ema_decay(task: Task) -> float | None:
    return task.config.ema_decay or None


def lay_out(task: Task) -> np.ndarray:
    """Returns the batch as a run does, `[devices, microbatches, size, *event]`."""
    num_devices = jax.local_device_count()
    shape = (len(task.batch), num_devices, -1, *task.batch.shape[2:])
    return np.reshape(task.batch, shape).swapaxes(0, 1)


def describe() -> str:
    num_devices = jax.local_device_count()
    plural = "" if num_devices == 1 else "s"
    return (
        f"{version('jax')}: {num_devices} {jax.default_backend()} device{plural},"
        f" {num_cores()} cores"
    )


def evaluation(task: Task) -> Program:
    function = jax.jit(task.function) if task.is_jitted else task.function
    arguments = jax.device_put((task.params, *task.batch))

    def run(count: int) -> float:
        for _ in range(count):
            result = jax.block_until_ready(function(*arguments))
        return float(np.ravel(result)[-1])

    return Program(run, describe())


def training_program(task: Task, step: Callable) -> Program:
    """Returns the program of `step(state, count) -> (state, scalars, steps made)`."""
    from ebmjax import training

    state = training.init_state(
        task.players,
        task.params,
        jax.random.key(0),
        jax.local_device_count(),
        model_state=task.model_state,
        ema_decay=ema_decay(task),
    )
    loss = f"{list(task.players)[-1]}/loss"

    def run(count: int) -> float:
        nonlocal state
        while count > 0:
            state, scalars, made = step(state, count)
            jax.block_until_ready(state.step)  # as the loop does on a CPU
            count -= made
        return float(scalars[loss])

    return Program(run, describe())


OURS = {
    "ebmjax": ours,
    "ebmjax steps": several_steps,
    "ebmjax devices": on_every_core,
}
"""With nothing set, which is one device with a thread for every core, a program a step
and a program for several; and with a device for every core."""

PEERS = peers.having("make_program")

WORKLOADS = TASKS | {f"metric {name}": make for name, make in METRICS.items()}
"""Name of a workload -> function that makes its task."""


def takes_part(name: str, kind: str, is_update: bool) -> bool:
    """Returns whether a contender has a program for tasks of this kind."""
    if name in OURS:
        return is_update or name == "ebmjax"
    return kind in peers.load(name).KINDS


def wanted(name: str) -> Mapping[str, str]:
    """Returns the variables that a contender wants; the cores are those of this thread
    now."""
    if name in OURS:  # compile times are those of a first run
        own = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        if name == "ebmjax devices":
            own |= {"XLA_FLAGS": f"{DEVICES}={num_cores()}", "PJRT_NPROC": "32"}
        return own
    environment = peers.load(name).ENVIRONMENT
    threads = {"OMP_NUM_THREADS": str(num_cores())}
    return environment | {k: v for k, v in threads.items() if k in environment}


def make_handle(name: str) -> Callable[[dict], dict]:
    """Returns `handle(request) -> reply` of a contender.

    Requests are "build" with the name of a `workload`, which makes the first update and
    a second one; "verify"; and "run", which makes `count` updates.
    """
    make = OURS[name] if name in OURS else peers.load(name).make_program
    program = None

    def timed(count):
        begin = time.perf_counter()
        value = program.run(count)
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "is_finite": math.isfinite(value)}

    def handle(request):
        nonlocal program
        if request["do"] == "build":
            task = WORKLOADS[request["workload"]]()
            program = make(task)
            before = process.reset_peak()
            first = timed(1)
            return timed(1) | {
                "first_seconds": first["seconds"],
                "peak_bytes": process.peak() - before,
                "device_peak_bytes": process.device_peak(),
                "settings": program.settings,
                "kind": task.kind,
                "is_update": task.function is None,
            }
        if request["do"] == "verify":
            program.verify()
            return {}
        return timed(request["count"])

    return handle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=(*OURS, *PEERS), help="of the contender")
    process.serve(parser.parse_args().name, make_handle)


Process = functools.partial(process.Process, module="updates")


if __name__ == "__main__":
    main()
