"""Warnings about functions that are compiled again, or that have changed since.

`jax.jit` compiles a program for every function object that it is given, and reads what
the function closes over, and the attributes of an object, at that moment alone. So a
function that is made anew at every call is compiled at every call, and a function that
is kept goes on with old values. Both happen silently: `watched_jit` warns of them.
"""

import functools
import inspect
import types
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

from ebmjax.samplers.closures import (
    ARRAYS,
    NUMBERS,
    Contents,
    Identity,
    code_of,
    is_equal,
    leaves_of,
    place_of,
)

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["watched_jit"]

BINDABLE = {"energy_fn", "energy_fns", "score_fn"}
"""Arguments whose parameters can be bound with `functools.partial`, to be arguments of
the compiled program. Two of them that differ in their arrays alone need one program."""

NUM_SINGLE = 4
"""Programs that served one call each, one after the other, before a warning is given of
functions that differ in their arrays: an ensemble's energies may do so in turn."""


def watched_jit(
    caller: str, functions: tuple[str, ...], *, static_argnames: tuple[str, ...]
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Returns a decorator: `jax.jit` that warns of needless programs and of old values.

    Nothing is done at a call except to compare the values that a function closes over,
    and the attributes of an object, if there are any: about a microsecond for each.
    Nothing is kept alive.

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
                program.watch(watched, lambda: jitted.trace(*args, **options).jaxpr)
                message = program.find_needless(caller, watched, (args, rest))
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

    def watch(self, watched: dict[str, Any], trace: Callable[[], Any]) -> None:
        """Remembers what the functions are, and the values that were compiled."""
        self.functions = {
            name: Contents(value, by_value=name not in BINDABLE)
            for name, value in watched.items()
        }
        found = [
            (argument, *variable)
            for argument, contents in self.functions.items()
            for variable in contents.take_variables()
        ]
        if not found:
            return
        compiled = {place_of(constant) for constant in _constants(trace())}

        def is_compiled(leaf: Any, content: Any) -> bool:
            if not isinstance(leaf, ARRAYS):
                return False
            # A NumPy array of a type that JAX does not keep is copied.
            is_copied = leaf is content and isinstance(leaf, np.ndarray)
            return is_copied or place_of(leaf) in compiled

        for argument, owner, name, index, content in found:
            kept = {
                place: weakref.ref(leaf)
                for place, leaf in enumerate(leaves_of(content))
                if is_compiled(leaf, content)
            }
            number = content if isinstance(content, NUMBERS) else None
            if kept or number is not None:
                reference = Identity(owner).reference
                self.variables.append(
                    Variable(argument, reference, name, index, number, kept)
                )

    def find_needless(
        self, caller: str, watched: dict[str, Any], rest: Any
    ) -> str | None:
        """Returns a message if an earlier program of the caller would have done."""
        keys = tuple(contents.key for contents in self.functions.values())
        try:
            earlier = _programs((caller, keys, _shapes(rest)))
        except TypeError:  # something is not hashable, so nothing is known of it
            return None
        names = self._new_functions(earlier)
        earlier.append(self)
        del earlier[:-NUM_SINGLE]
        sources = {self.functions[name].source for name in names}
        if sources <= _WARNED:
            return None
        _WARNED.update(sources)
        verb, them = ("was", "it") if len(names) == 1 else ("were", "them")
        made = "; ".join(f"{name} is {_describe(watched[name])}" for name in names)
        remedy = f"Define {them} once, outside the loop"
        if BINDABLE & set(names):
            remedy += ", and bind parameters with functools.partial(energy, params)"
        return (
            f"{caller} compiled the same program again, because {' and '.join(names)}"
            f" {verb} made anew, and every new function is compiled anew ({made})."
            f" {remedy}."
        )

    def _new_functions(self, earlier: list["Program"]) -> list[str]:
        """Names of the functions that are new, if this program need not have been."""
        changed: list[str] = []
        for program in reversed(earlier):
            old = program.functions
            changed = [
                name
                for name, new in self.functions.items()
                if new.objects != old[name].objects  # jax.jit takes them for others
            ]
            if not changed:
                return []  # compiled again for another reason, as after clear_caches
            if all(self.functions[name].is_copy(old[name]) for name in changed):
                return changed
        # Functions of one factory differ in their arrays. They are legitimate if each
        # of them is called again and again, and needless if each serves one call.
        is_single = [program.num_calls == 1 for program in earlier]
        return changed if is_single == [True] * NUM_SINGLE else []

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
            kind = "variables" if variable.is_of_function() else "attributes"
            return (
                f"{caller} still uses the value that {variable.name!r} had when"
                f" {variable.argument} ({_describe(variable.owner())}) was compiled,"
                f" and not the present one: {kind} are read once. {remedy}."
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


class Variable(NamedTuple):
    """A variable of a function, or an attribute, that was compiled into a program.

    Attributes:
      argument: Name of the argument that is this function or that calls it.
      owner: A weak reference to the function that reads the variable, or to the object
        that has the attribute.
      name: Name of the variable or the attribute.
      cell: Place in the function's closure; None for a global variable or an attribute.
      number: Its value if it is a number, else None.
      arrays: Weak references to the arrays of its value, by their places among the
        leaves.
    """

    argument: str
    owner: Callable[[], Any]
    name: str
    cell: int | None
    number: Any
    arrays: dict[int, weakref.ref[Any]]

    def is_of_function(self) -> bool:
        return isinstance(self.owner(), types.FunctionType)

    def has_changed(self) -> bool:
        """Returns whether the value is another one now.

        Equal arrays that replace the former ones are remembered instead.
        """
        owner = self.owner()
        if owner is None:
            return False
        try:
            if not self.is_of_function():
                content = vars(owner)[self.name]
            elif self.cell is None:
                content = owner.__globals__[self.name]
            else:
                content = owner.__closure__[self.cell].cell_contents
        except (KeyError, ValueError):  # deleted since
            return False
        if self.number is not None:
            is_nan = self.number != self.number
            return (
                isinstance(content, NUMBERS) and content != self.number and not is_nan
            )
        leaves = leaves_of(content)
        for place, reference in self.arrays.items():
            old = reference()
            new = leaves[place] if place < len(leaves) else None
            if new is old:
                continue
            if not is_equal(new, old):
                return True
            self.arrays[place] = weakref.ref(new)
        return False


def _constants(jaxpr: Any) -> Iterator[Any]:
    """Yields the constants of a traced program, and of the programs in it."""
    yield from getattr(jaxpr, "consts", ())
    for equation in jaxpr.eqns:
        for part in jax.tree.leaves(equation.params):  # a function that is jitted, ...
            if hasattr(part, "eqns"):
                yield from _constants(part)


def _shapes(rest: Any) -> Hashable:
    """Returns what a program depends on besides functions: shapes, types, options."""
    args, options = rest
    leaves = jax.tree.leaves(args)
    # The functions are static parts of the structure, and are compared elsewhere.
    shapes = tuple((np.shape(x), str(getattr(x, "dtype", type(x)))) for x in leaves)
    return shapes, tuple(sorted(options.items()))


def _describe(value: Any) -> str:
    """Returns a function's name, file and line, a sampler's repr, or a class's name."""
    code = code_of(value)
    if code is None:
        is_sampler = isinstance(value, tuple)
        return repr(value) if is_sampler else f"of class {type(value).__qualname__}"
    return f"{code.co_qualname} at {code.co_filename}:{code.co_firstlineno}"
