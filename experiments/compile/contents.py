"""Contents of a compiled program, read from its text.

XLA's own analysis takes a loop for one turn. Here a loop has as many turns as XLA has
noted or its condition says, and one turn if neither tells the number.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(
    r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b(pred|bf16|f16|f32|f64|[suc]\d+)\[([\d,]*)\](\{[^}]*\})?")
_TILE = re.compile(r"^\{([\d,]*).*?T\((\d+),(\d+)\)")

# Instructions that move and compute nothing.
_FREE = set(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id"
    " replica-id iota opt-barrier add-dependency".split()
)
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
)
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}


class Contents(NamedTuple):
    """Work of a program in one call, where a loop of unknown length has one turn.

    Attributes:
      num_kernels: Number of kernels (on a TPU, of instructions) that run.
      num_unknown_loops: Number of loops whose length XLA does not know.
      collectives: Kind -> how often it runs.
      custom_calls: Names of the functions of libraries that it calls.
      has_float64: Whether an array is of float64, which a TPU emulates.
      traffic: Bytes that kernels read and write in the chip's main memory.
    """

    num_kernels: int
    num_unknown_loops: int
    collectives: dict[str, int]
    custom_calls: tuple[str, ...]
    has_float64: bool
    traffic: float


class _Instruction(NamedTuple):
    name: str
    result: str
    kind: str
    rest: str


def read_contents(text: str) -> Contents:
    """Reads the text of an optimised HLO module, `compiled.as_text()`."""
    computations, entry = _parse(text)
    kernels: Counter[str] = Counter()
    custom, traffic, unknown = set(), 0.0, 0
    shapes = {
        instruction.name: instruction.result
        for instructions in computations.values()
        for instruction in instructions
    }
    for instruction, turns in _walk(computations, entry, 1):
        if instruction.kind == "while":
            unknown += _count_turns(computations, instruction) is None
            continue
        kernels[instruction.kind] += turns
        if instruction.kind == "custom-call":
            found = re.search(r'custom_call_target="([^"]+)"', instruction.rest)
            custom.add(found.group(1) if found else "?")
        traffic += turns * _traffic(computations, shapes, instruction)
    collectives = {
        kind: kernels[kind] + kernels[f"{kind}-start"]
        for kind in _COLLECTIVES
        if kernels[kind] + kernels[f"{kind}-start"]
    }
    return Contents(
        num_kernels=kernels.total(),
        num_unknown_loops=unknown,
        collectives=collectives,
        custom_calls=tuple(sorted(custom)),
        has_float64="f64[" in text,
        traffic=traffic,
    )


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        start = _COMPUTATION.match(line)
        if start:
            current = computations.setdefault(start.group(2), [])
            entry = start.group(2) if start.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_Instruction(*found.groups()))
    return computations, entry


def _walk(computations, name: str, turns: int) -> Iterator[tuple[_Instruction, int]]:
    """Yields what runs, and how often; of a `while` also the instruction itself."""
    for instruction in computations.get(name, ()):
        kind, rest = instruction.kind, instruction.rest
        if kind in _FREE or kind.endswith("-done"):
            continue
        if kind == "while":
            yield instruction, turns
            body = re.search(r"body=%?([\w.\-]+)", rest).group(1)
            more = _count_turns(computations, instruction)
            yield from _walk(computations, body, turns * (1 if more is None else more))
        elif kind in ("call", "conditional", "async-start"):
            called = _CALLED.findall(rest)
            if branches := _BRANCHES.search(rest):
                called += re.findall(r"%?([\w.\-]+)", branches.group(1))
            for other in called:
                yield from _walk(computations, other, turns)
        else:
            yield instruction, turns


def _operands(instruction: _Instruction) -> list[str]:
    """Returns the names of what an instruction reads."""
    return re.findall(r"%([\w.\-]+)", instruction.rest.partition("), ")[0])


def _traffic(computations, shapes: dict[str, str], instruction: _Instruction) -> float:
    """Returns the bytes that a kernel reads and writes in the main memory.

    Of an array of which it takes a slice, or updates one in place, only the slice.
    """

    def size(name: str) -> int:
        return count_bytes(shapes.get(name, ""))

    read = _operands(instruction)
    if instruction.kind == "dynamic-slice":
        return 2 * count_bytes(instruction.result)
    if instruction.kind == "dynamic-update-slice":
        return 2 * size(read[1])
    called = _CALLED.search(instruction.rest)
    inner = computations.get(called.group(1), []) if called else []
    if instruction.kind != "fusion" or not inner:
        return count_bytes(instruction.result) + sum(map(size, read))
    slices: dict[str, float] = {}  # parameter -> bytes of its slices alone
    written = float(count_bytes(instruction.result))
    for parameter in inner:
        users = [x for x in inner if parameter.name in _operands(x)]
        if parameter.kind != "parameter" or not users:
            continue
        index = re.match(r"(\d+)", parameter.rest).group(1)
        kinds = {
            x.kind if _operands(x)[0] == parameter.name else "other" for x in users
        }
        if kinds == {"dynamic-slice"}:
            slices[index] = float(sum(count_bytes(x.result) for x in users))
        elif kinds == {"dynamic-update-slice"}:
            slices[index] = 0.0
            written -= count_bytes(parameter.result)
            written += sum(size(_operands(x)[1]) for x in users)
    parts = [slices.get(str(index), size(name)) for index, name in enumerate(read)]
    return max(written, 0.0) + sum(parts)


def _count_turns(computations, loop: _Instruction) -> int | None:
    """Returns the number of turns of a loop; None if the program does not tell it."""
    if found := _TRIP_COUNT.search(loop.rest):
        return int(found.group(1))
    # A scan counts from 0 to a constant.
    condition = computations[re.search(r"condition=%?([\w.\-]+)", loop.rest).group(1)]
    if not condition or "direction=LT" not in condition[-1].rest:
        return None
    limit = re.search(r", %?([\w.\-]+)\)", condition[-1].rest)
    for instruction in condition:
        if limit and instruction.name == limit.group(1):
            number = re.match(r"(\d+)\)", instruction.rest)
            is_constant = instruction.kind == "constant" and number
            return int(number.group(1)) if is_constant else None
    return None


def count_bytes(shape: str) -> int:
    """Returns the bytes of the arrays of a shape in the main memory, as HLO writes it.

    Arrays in a TPU's on-chip memory, which have the space `S(1)`, are left out, and the
    last two axes of the others are padded to their tiles.
    """
    total = 0
    for kind, dims, layout in _ARRAY.findall(shape):
        if "S(1)" in layout:
            continue
        sizes = [int(size) for size in dims.split(",") if size]
        tile = _TILE.match(layout)
        order = [int(i) for i in tile.group(1).split(",") if i] if tile else []
        for axis, multiple in zip(order, (int(tile[3]), int(tile[2])) if tile else ()):
            sizes[axis] = -(-sizes[axis] // multiple) * multiple
        bits = _BITS[kind] if kind in _BITS else int(kind[1:])
        total += math.prod(sizes) * bits // 8
    return total
