"""Compiles a program, and estimates its memory and its time."""

import time
from typing import Any

from experiments.compile.contents import read_contents
from experiments.compile.programs import Program
from experiments.compile.topologies import Topology

PEAK_SHARE = 0.4
"""Share of a chip's peak that products are taken to reach."""

BANDWIDTH_SHARE = 0.7
"""Share of a chip's bandwidth that a program is taken to reach."""

SECONDS_A_KERNEL = 4e-6
"""Time to start a kernel of a GPU. A TPU starts a whole program."""


def compile_program(program: Program, topology: Topology) -> dict[str, Any]:
    """Compiles a program for a topology.

    Returns:
      A record of plain values, for one chip and one update or call. It has `tflop`, of
      which `highest_tflop` at the highest precision; `memory_gb` of `arguments`,
      `temporaries` and `code` together, and each of them; `fits`, whether that is
      below the chip's; `kernels`, `collectives`, `traffic_gb` and `unknown_loops`,
      loops whose length the program does not tell, of which one turn is counted; the
      milliseconds `arithmetic_ms` and `traffic_ms` at the chip's peaks, and `launch_ms`
      of a GPU; `estimated_ms`, the largest of the three at the shares of the peaks
      above; `compile_seconds`, of CPU.

    Raises:
      Exception: Whatever XLA raises when it cannot compile the program.
    """
    started = time.process_time()
    compiled = program.lower().compile()
    seconds = time.process_time() - started
    memory, chip = compiled.memory_analysis(), topology.chip
    contents = read_contents(compiled.as_text())
    parts = {
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        # Results that do not take the place of donated arguments are counted with them.
        "temporaries_gb": (
            memory.temp_size_in_bytes
            + max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)
        )
        / 1e9,
        "code_gb": memory.generated_code_size_in_bytes / 1e9,
    }
    operations = program.operations
    arithmetic = operations.seconds(chip)
    traffic = contents.traffic / chip.bandwidth
    is_gpu = topology.name.startswith("h200")
    launch = contents.num_kernels * SECONDS_A_KERNEL if is_gpu else 0.0
    estimated = max(arithmetic / PEAK_SHARE, traffic / BANDWIDTH_SHARE, launch)
    return {
        "tflop": operations.products / 1e12,
        "highest_tflop": operations.highest / 1e12,
        "memory_gb": sum(parts.values()),
        **parts,
        "donated_gb": memory.alias_size_in_bytes / 1e9,
        "fits": sum(parts.values()) < chip.memory / 1e9,
        "kernels": contents.num_kernels,
        "collectives": contents.collectives,
        "custom_calls": list(contents.custom_calls),
        "has_float64": contents.has_float64,
        "unknown_loops": operations.num_unknown_loops,
        "traffic_gb": contents.traffic / 1e9,
        "arithmetic_ms": 1e3 * arithmetic,
        "traffic_ms": 1e3 * traffic,
        "launch_ms": 1e3 * launch,
        "estimated_ms": 1e3 * estimated,
        "compile_seconds": seconds,
    }
