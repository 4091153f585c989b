"""Warnings about functions that are compiled again, or that have changed since.

`jax.jit` compiles a program for every function object that it is given, and reads what
the function closes over at that moment alone. So a function that is made anew at every
call is compiled at every call, and a function that is kept goes on with old values.
Both happen silently: `watched_jit` warns of them.
"""

import dis
import functools
import inspect
import types
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["watched_jit"]

BINDABLE = {"energy_fn", "energy_fns", "score_fn"}
"""Arguments whose parameters can be bound with `functools.partial`, to be arguments of
the compiled program. Two of them that differ in their arrays alone need one program."""

ARRAYS = jax.Array | np.ndarray
NUMBERS = bool | int | float | complex | np.generic
CONSTANTS = NUMBERS | str | bytes | np.dtype | jax.tree_util.PyTreeDef | None

LARGEST = 2**20
"""Bytes of an array up to which its values are compared, and not only its identity."""

NUM_SINGLE = 4
"""Programs that served one call each, one after the other, before a warning is given of
functions that differ in their arrays: an ensemble's energies may do so in turn."""


def watched_jit(
    caller: str, functions: tuple[str, ...], *, static_argnames: tuple[str, ...]
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Returns a decorator: `jax.jit` that warns of needless programs and of old values.

    Nothing is done at a call except to compare the values that a function closes over,
    if it closes over any: this takes about a microsecond. Nothing is kept alive.

    Args:
      caller: Name of the public function, for the messages.
      functions: Names of the arguments that are functions or samplers.
      static_argnames: As `jax.jit` takes them. One of them is `layout`, which says
        whether arrays are traced; nothing is watched then.
    """

    def decorate(body: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(body)

        @functools.wraps(body)
        def traced(*args: P.args, **options: P.kwargs) -> tuple[T, Program]:
            # A jitted function returns the static parts of its result as they were when
            # it was traced. So every call returns the `Program` that ran.
            return body(*args, **options), Program()

        jitted = jax.jit(traced, static_argnames=static_argnames)

        @functools.wraps(body)
        def call(*args: P.args, **options: P.kwargs) -> T:
            results: T
            results, program = jitted(*args, **options)
            layout: Any = options["layout"]
            config: Any = jax.config  # not all versions of JAX declare its flags
            if layout.is_traced or config.jax_disable_jit:
                return results
            if program.num_calls == 0:
                bound = signature.bind(*args, **options).arguments
                watched = {name: bound[name] for name in functions}
                rest = {k: v for k, v in options.items() if k not in functions}
                message = program.begin(caller, watched, (args, rest))
                program.watch(
                    watched, lambda: jitted.trace(*args, **options).jaxpr.consts
                )
            else:
                message = program.find_old_values(caller) if program.variables else None
            program.num_calls += 1
            if message:
                # The caller of the public function, which called this.
                warnings.warn(message, UserWarning, stacklevel=3)
            return results

        return call

    return decorate


@jax.tree_util.register_static
class Program:
    """One compiled program: which functions it was compiled for, and their values."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.functions: dict[str, Contents] = {}
        self.variables: list[Variable] = []

    def begin(self, caller: str, watched: dict[str, Any], rest: Any) -> str | None:
        """Records the functions; returns a message if an earlier program would do."""
        self.functions = {
            name: Contents(value, by_value=name not in BINDABLE)
            for name, value in watched.items()
        }
        keys = tuple(contents.key for contents in self.functions.values())
        key = (caller, keys, _shapes(rest))
        try:
            earlier = _programs(key)
        except TypeError:  # something is not hashable, so nothing is known of it
            return None
        needless = self._needless(earlier)
        earlier.append(self)
        del earlier[:-NUM_SINGLE]
        found = {name: self.functions[name] for name in needless}
        if not found or {contents.source for contents in found.values()} <= _WARNED:
            return None
        _WARNED.update(contents.source for contents in found.values())
        names = " and ".join(found)
        made = "; ".join(f"{name} is {_describe(watched[name])}" for name in found)
        remedy = f"Define {'it' if len(found) == 1 else 'them'} once, outside the loop"
        if BINDABLE & set(found):
            remedy += ", and bind parameters with functools.partial(energy, params)"
        return (
            f"{caller} compiled the same program again, because {names}"
            f" {'was' if len(found) == 1 else 'were'} made anew, and every new function"
            f" is compiled anew ({made}). {remedy}."
        )

    def _needless(self, earlier: list["Program"]) -> list[str]:
        """Names of the functions that are new, if this program need not have been."""
        changed: list[str] = []
        for program in reversed(earlier):
            pairs = {
                k: (new, program.functions[k]) for k, new in self.functions.items()
            }
            changed = [k for k, pair in pairs.items() if not is_same(*pair)]
            if not changed:
                return []  # compiled again for another reason, as after clear_caches
            if all(is_copy(*pairs[name]) for name in changed):
                return changed
        # Functions of one factory differ in their arrays. They are legitimate if each
        # of them is called again and again, and needless if each serves one call.
        is_single = [program.num_calls == 1 for program in earlier]
        return changed if is_single == [True] * NUM_SINGLE else []

    def watch(self, watched: dict[str, Any], constants: Callable[[], Any]) -> None:
        """Remembers the values of the variables that were compiled into the program."""
        found = [
            (argument, function, variable)
            for argument, value in watched.items()
            # The numbers in a sampler's functions are its options, which never change.
            for function, variable in _closed_over(_functions(value), callable(value))
        ]
        if not found:
            return
        compiled = {_place(constant) for constant in constants()}

        def is_compiled(leaf: Any, content: Any) -> bool:
            if not isinstance(leaf, ARRAYS):
                return False
            # A NumPy array of a type that JAX does not keep is copied.
            is_copied = leaf is content and isinstance(leaf, np.ndarray)
            return is_copied or _place(leaf) in compiled

        for argument, function, (name, index, content, is_outer) in found:
            kept = {
                place: weakref.ref(leaf)
                for place, leaf in enumerate(_leaves(content))
                if is_compiled(leaf, content)
            }
            number = content if is_outer and isinstance(content, NUMBERS) else None
            if kept or number is not None:
                self.variables.append(
                    Variable(argument, weakref.ref(function), name, index, number, kept)
                )

    def find_old_values(self, caller: str) -> str | None:
        """Returns a message if a variable has another value than the program."""
        for variable in self.variables:
            if not variable.has_changed():
                continue
            self.variables = [v for v in self.variables if v.name != variable.name]
            if variable.argument in BINDABLE:
                remedy = "Bind it instead, with functools.partial(energy, params)"
            else:
                remedy = "Make the function anew after the change"
            return (
                f"{caller} still uses the value that {variable.name!r} had when"
                f" {variable.argument} ({_describe(variable.function())}) was compiled,"
                " and not the present one: a function's variables are read once."
                f" {remedy}."
            )
        return None


@functools.lru_cache(4096)
def _programs(key: Hashable) -> list[Program]:
    """Returns the latest programs of one key, whose functions differ in arrays at most.

    Such functions have the same code and the same contents up to the values of arrays.
    """
    return []


_WARNED: set[Hashable] = set()
"""The code of functions, and the samplers, of which a warning was given."""


class Identity:
    """An object, for comparison by identity, which is not kept alive."""

    def __init__(self, thing: Any):
        self.reference = weakref.ref(thing)
        self.number = id(thing)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        thing = self.reference()
        return (
            thing is not None
            and isinstance(other, Identity)
            and thing is other.reference()
        )


def identity(thing: Any) -> Hashable:
    """Returns an `Identity`, or an object that equals nothing if there is none."""
    try:
        return Identity(thing)
    except TypeError:
        return object()


class Contents:
    """What a function is made of, and which object it is.

    Attributes:
      key: Equal for two functions with the same code and the same contents, up to the
        values of the arrays in `arrays`.
      arrays: The arrays that are closed over, if they are not in the key by value.
      holders: For each array, the variable of the outermost function that leads to it.
      objects: The objects that `jax.jit` compares by identity.
      source: What a warning is given of once.
    """

    def __init__(self, value: Any, *, by_value: bool):
        self.by_value = by_value
        self.arrays: list[Hashable] = []
        self.holders: list[Hashable] = []
        self.seen: dict[int, int] = {}
        static = value.func if isinstance(value, jax.tree_util.Partial) else value
        self.key = self._of(static, None)
        self.objects = [identity(function) for function in _functions(value)]
        code = _code(value)
        self.source = self.key if code is None else identity(code)

    def _of(self, value: Any, holder: Hashable) -> Hashable:
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return ("partial", *(self._of(part, holder) for part in parts))
        if isinstance(value, types.MethodType):
            function = self._of(value.__func__, holder)
            return ("method", function, identity(value.__self__))
        if isinstance(value, types.FunctionType):
            return self._of_function(value, holder)
        if isinstance(value, ARRAYS):
            return self._of_array(value, holder)
        if isinstance(value, CONSTANTS):
            return (type(value), value)
        if isinstance(value, tuple):
            return (type(value), *(self._of(part, holder) for part in value))
        if isinstance(value, list | dict):
            if id(value) in self.seen:
                return ("seen", self.seen[id(value)])
            self.seen[id(value)] = len(self.seen)
            items = value.items() if isinstance(value, dict) else enumerate(value)
            return (type(value), *((k, self._of(part, holder)) for k, part in items))
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped) and not isinstance(value, type):  # as jax.jit returns
            return (type(value), self._of(wrapped, holder))
        return identity(value)

    def _of_array(self, value: Any, holder: Hashable) -> Hashable:
        shape = ("array", value.shape, str(value.dtype))
        is_known = not _is_jax(value) or (
            not value.is_deleted()
            and value.is_fully_addressable
            and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        )
        if self.by_value:
            is_known = is_known and value.nbytes <= LARGEST
            values = np.asarray(value).tobytes() if is_known else identity(value)
            return (*shape, values)
        self.arrays.append(identity(value))
        self.holders.append(holder)
        return shape

    def _of_function(self, function: types.FunctionType, holder: Hashable) -> Hashable:
        if id(function) in self.seen:
            return ("seen", self.seen[id(function)])
        self.seen[id(function)] = len(self.seen)
        parts: list[Hashable] = [identity(function.__code__), id(function.__globals__)]
        parts += [
            self._of(part, holder)
            for part in (function.__defaults__, function.__kwdefaults__)
        ]
        for name, index, content in _variables(function):
            is_partial = isinstance(content, functools.partial)
            if index is None and callable(content) and not is_partial:
                parts.append((name, identity(content)))
            else:
                cells = function.__closure__ or ()
                cell = name if index is None else id(cells[index])
                outermost = cell if holder is None else holder
                parts.append((name, self._of(content, outermost)))
        return ("function", *parts)


def is_same(new: Contents, old: Contents) -> bool:
    """Returns whether `jax.jit` takes both for one function."""
    return new.objects == old.objects


def is_copy(new: Contents, old: Contents) -> bool:
    """Returns whether two functions of one key differ in nothing that matters.

    They may differ in arrays that one variable has held in turn, as in a loop.
    """
    pairs = zip(new.arrays, old.arrays, new.holders, old.holders, strict=True)
    return all(
        array == earlier or (holder is not None and holder == earlier_holder)
        for array, earlier, holder, earlier_holder in pairs
    )


class Variable(NamedTuple):
    """A variable of a function whose value was compiled into a program.

    Attributes:
      argument: Name of the argument that is this function or that calls it.
      function: A weak reference to the function that reads the variable.
      name: Name of the variable.
      cell: Place in the function's closure; None for a global variable.
      number: Its value if it is a number, else None.
      arrays: Weak references to the arrays of its value, by their places among the
        leaves.
    """

    argument: str
    function: weakref.ref[Any]
    name: str
    cell: int | None
    number: Any
    arrays: dict[int, weakref.ref[Any]]

    def has_changed(self) -> bool:
        """Returns whether the value is another one now.

        Equal arrays that replace the former ones are remembered instead.
        """
        function = self.function()
        if function is None:
            return False
        try:
            if self.cell is None:
                content = function.__globals__[self.name]
            else:
                content = function.__closure__[self.cell].cell_contents
        except (KeyError, ValueError):  # deleted since
            return False
        if self.number is not None:
            is_nan = self.number != self.number
            return (
                isinstance(content, NUMBERS) and content != self.number and not is_nan
            )
        leaves = _leaves(content)
        for place, reference in self.arrays.items():
            old = reference()
            new = leaves[place] if place < len(leaves) else None
            if new is old:
                continue
            if not _is_equal(new, old):
                return True
            self.arrays[place] = weakref.ref(new)
        return False


def _is_equal(new: Any, old: Any) -> bool:
    if not isinstance(new, ARRAYS) or old is None:
        return False
    if _is_jax(old) and old.is_deleted():
        return False
    if new.shape != old.shape or new.dtype != old.dtype:
        return False
    if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        new, old = jax.random.key_data(new), jax.random.key_data(old)
    return bool(np.array_equal(new, old, equal_nan=new.dtype.kind == "f"))


def _functions(value: Any) -> list[Any]:
    """Returns the functions in an argument that `jax.jit` compares by identity."""
    if isinstance(value, jax.tree_util.Partial):  # its arrays are traced
        value = value.func
    if isinstance(value, types.MethodType):  # equal by what it is bound to
        return []
    if isinstance(value, tuple):
        return [f for leaf in jax.tree.leaves(value) for f in _functions(leaf)]
    return [value] if callable(value) else []


def _closed_over(
    functions: list[Any], is_outer: bool
) -> Iterator[tuple[Any, tuple[str, int | None, Any, bool]]]:
    """Yields variables of functions that may have been compiled.

    The functions that these functions hold are included. The variables are arrays, and
    the numbers of the outermost functions.
    """
    seen: set[int] = set()
    rest = [(function, is_outer) for function in functions]
    while rest:
        function, is_outer = rest.pop()
        if isinstance(function, functools.partial):
            rest.append((function.func, is_outer))
        elif not isinstance(function, types.FunctionType):
            wrapped = getattr(function, "__wrapped__", None)
            if isinstance(wrapped, types.FunctionType):
                rest.append((wrapped, is_outer))
        elif id(function) not in seen:
            seen.add(id(function))
            assigned = _names(function.__code__)[1]
            for name, index, content in _variables(function):
                if isinstance(content, types.FunctionType):
                    # Global functions of other modules are not the user's variables.
                    if index is not None or (
                        content.__globals__ is function.__globals__
                    ):
                        rest.append((content, False))
                elif isinstance(content, functools.partial):
                    rest.append((content.func, False))
                    yield function, (name, index, content, is_outer)
                elif isinstance(content, NUMBERS):
                    # A counter that the function itself changes is not a value.
                    if is_outer and name not in assigned:
                        yield function, (name, index, content, is_outer)
                elif any(isinstance(leaf, ARRAYS) for leaf in _leaves(content)):
                    yield function, (name, index, content, is_outer)


def _variables(
    function: types.FunctionType,
) -> Iterator[tuple[str, int | None, Any]]:
    """Yields names and values of the variables and globals that a function reads."""
    cells = function.__closure__ or ()
    for index, (name, cell) in enumerate(zip(function.__code__.co_freevars, cells)):
        try:
            yield name, index, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in _names(function.__code__)[0]:
        if name in function.__globals__:
            yield name, None, function.__globals__[name]


def _names(code: types.CodeType) -> tuple[tuple[str, ...], frozenset[str]]:
    """Returns names of the globals that code reads, and of the variables it assigns."""
    read: set[str] = set()
    assigned: set[str] = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(instruction.argval)
        elif instruction.opname in ("STORE_GLOBAL", "STORE_DEREF"):
            assigned.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner_read, inner_assigned = _names(constant)
            read.update(inner_read)
            assigned.update(inner_assigned)
    return tuple(sorted(read)), frozenset(assigned)


def _is_jax(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)


def _place(array: Any) -> Hashable:
    """Returns what identifies an array; JAX keeps the memory of NumPy's arrays."""
    return id(array) if _is_jax(array) else (np.asarray(array).ctypes.data,)


def _leaves(content: Any) -> list[Any]:
    if isinstance(content, functools.partial):
        content = (content.args, content.keywords)
    try:
        return jax.tree.leaves(content)
    except ValueError:  # the keys of a dict cannot be sorted: it is not a pytree
        return []


def _shapes(rest: Any) -> Hashable:
    """Returns what a program depends on besides functions: shapes, types, options."""
    args, options = rest
    leaves = jax.tree.leaves(args)
    # The functions are static parts of the structure, and are compared elsewhere.
    shapes = tuple((np.shape(x), str(getattr(x, "dtype", type(x)))) for x in leaves)
    return shapes, tuple(sorted(options.items()))


def _code(value: Any) -> types.CodeType | None:
    """Returns the code of a function, without its wrappers; None for a sampler."""
    if isinstance(value, tuple) or not callable(value):
        return None
    function = _functions(value)[0] if _functions(value) else value
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(inspect.unwrap(function), "__code__", None)


def _describe(value: Any) -> str:
    """Returns a function's name, file and line, or a sampler's repr."""
    code = _code(value)
    if code is None:
        return repr(value)
    return f"{code.co_qualname} at {code.co_filename}:{code.co_firstlineno}"
