"""Presets of all papers, and the processes that compile them."""

import importlib
import multiprocessing
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from experiments.compile.estimate import compile_program
from experiments.compile.programs import (
    build_problem,
    evaluation_programs,
    first_steps,
    update_program,
)
from experiments.compile.topologies import make_topology

EXPERIMENTS = pathlib.Path(__file__).parent.parent
NOT_PAPERS = ("compile", "gpu", "throughput")


def list_problems() -> dict[str, Any]:
    """Returns the modules of all problems, by their names below `experiments`."""
    found = {}
    for path in sorted(EXPERIMENTS.rglob("*.py")):
        parts = path.relative_to(EXPERIMENTS).with_suffix("").parts
        is_paper = len(parts) > 1 and parts[0] not in NOT_PAPERS
        if is_paper and "PRESETS = " in path.read_text() and parts[-1] != "__main__":
            name = ".".join(parts)
            found[name] = importlib.import_module(f"experiments.{name}")
    return found


def find_preset(name: str) -> tuple[str, str]:
    """Returns the problem and the preset of `<paper>.<problem>:<preset>`.

    Raises:
      ValueError: If there is none, or several of a paper's problems have the preset.
    """
    place, _, preset = name.partition(":")
    problems = list_problems()
    found = [
        problem
        for problem, module in problems.items()
        if problem == place
        or (problem.startswith(f"{place}.") and preset in module.PRESETS)
    ]
    if len(found) != 1:
        known = [f"{p}:{preset}" for p in found] or sorted(problems)
        raise ValueError(
            "preset must be <paper>.<problem>:<preset>, of one of"
            f" {', '.join(known)}; got {name!r}"
        )
    problems[found[0]].get_config(preset)  # raises for an unknown one
    return found[0], preset


def compile_preset(
    problem: str, preset: str, topology: str, *, update_only: bool = False
) -> Iterator[dict]:
    """Yields the record of every program of a preset, or of its update alone."""
    chips = make_topology(topology)
    module = importlib.import_module(f"experiments.{problem}")
    config = module.get_config(preset)
    common = {
        "preset": f"{problem}:{preset}",
        "topology": topology,
        "num_chips": len(chips.devices),
        "num_processes": chips.num_processes,
        "jax": jax.__version__,
    }
    try:
        built = build_problem(module, config, len(chips.devices))
        programs = {
            f"update {phase}".strip(): update_program(built, chips, phase)
            for phase in first_steps(built)
        }
        if not update_only:
            programs |= evaluation_programs(built, chips)
    except Exception as error:
        yield common | {"program": "update", "error": describe(error)}
        return
    for name, program in programs.items():
        record = common | {"program": name}
        if name.startswith("update"):
            record["num_steps"] = config.train.num_steps
        try:
            yield record | compile_program(program, chips)
        except Exception as error:  # of XLA; the table says why
            yield record | {"error": describe(error)}


def describe(error: Exception) -> str:
    """Returns the first line of an error."""
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text if len(text) < 300 else f"{text[:300]}..."


def _work(jobs, update_only, connection) -> None:
    """Sends the records of every job, and an end after each."""
    for job in jobs:
        try:
            for record in compile_preset(*job, update_only=update_only):
                connection.send(("record", record))
            connection.send(("end", None))
        except (ValueError, ImportError) as error:  # no compiler, or no such topology
            connection.send(("stop", str(error)))
            break
    connection.close()


def compile_presets(
    jobs: Sequence[tuple[str, str, str]], limit: float, *, update_only: bool = False
) -> Iterator[list[dict]]:
    """Yields the records of one preset after another, compiled in another process.

    A program that takes longer than `limit` seconds, or that ends the process, has a
    record that says so, and its preset's other programs are left out.

    Args:
      jobs: Problems, presets and topologies.
      limit: Seconds for one program; 0 for no limit.
      update_only: Whether the programs of the evaluation are left out.

    Raises:
      ValueError: If a topology cannot be compiled for.
    """
    jobs, context = list(jobs), multiprocessing.get_context("spawn")
    while jobs:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(jobs, update_only, sender))
        process.start()
        sender.close()
        try:
            while jobs:
                records, reason = _receive(receiver, limit)
                if reason and not records:
                    records = [_failed(jobs[0], "update", reason)]
                elif reason:
                    after = f"after {records[-1]['program']}"
                    records.append(_failed(jobs[0], after, reason))
                jobs = jobs[1:]
                yield records
                if reason:
                    break  # and begin a new process with the jobs that are left
        finally:
            process.kill()
            process.join()


def _receive(receiver, limit: float) -> tuple[list[dict], str]:
    """Returns the records of a job, and why there are no more of them, if not all."""
    records = []
    while True:
        if not receiver.poll(limit or None):
            return records, f"no end in {limit:g} s"
        try:
            kind, content = receiver.recv()
        except EOFError:
            return records, "the compiler ended the process"
        if kind == "stop":
            raise ValueError(content)
        if kind == "end":
            return records, ""
        records.append(content)


def _failed(job: tuple[str, str, str], program: str, reason: str) -> dict:
    problem, preset, topology = job
    return {
        "preset": f"{problem}:{preset}",
        "topology": topology,
        "jax": jax.__version__,
        "program": program,
        "error": reason,
    }
