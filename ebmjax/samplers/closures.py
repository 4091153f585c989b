"""What functions close over, and whether two functions are made of the same."""

import dis
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__: list[str] = []

ARRAYS = jax.Array | np.ndarray
NUMBERS = bool | int | float | complex | np.generic
CONSTANTS = NUMBERS | str | bytes | np.dtype | jax.tree_util.PyTreeDef | None

LARGEST = 2**20
"""Bytes of an array up to which its values are compared, and not only its identity."""


class Identity:
    """An object, for comparison by identity, which is not kept alive."""

    def __init__(self, thing: Any):
        try:
            self.reference: Callable[[], Any] = weakref.ref(thing)
        except TypeError:  # nothing is known of it later, so it equals nothing
            self.reference = lambda: None
        self.number = id(thing)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        thing = self.reference()
        is_other = isinstance(other, Identity) and thing is other.reference()
        return thing is not None and is_other


class Contents:
    """What a function or a sampler is made of, and which object it is.

    Attributes:
      key: Equal for two functions with the same code and the same contents, up to the
        values of the arrays in `arrays`.
      arrays: The arrays that are closed over, if they are not in the key by value. With
        each stands the variable of the outermost function that leads to it.
      variables: Variables that may have been compiled, `(function, name, cell, value)`:
        those with arrays, and the numbers of the outermost function. The numbers of a
        sampler are its options, which never change.
      objects: The objects that `jax.jit` compares by identity.
      source: What a warning is given of once.
    """

    def __init__(self, value: Any, *, by_value: bool):
        self.by_value = by_value
        self.is_function = callable(value)
        self.arrays: list[tuple[Hashable, Hashable]] = []
        self.variables: list[tuple[Any, str, int | None, Any]] = []
        self.seen: dict[int, int] = {}
        self.home: int | None = None
        static = value.func if isinstance(value, jax.tree_util.Partial) else value
        self.key = self._of(static, None)
        self.objects = [Identity(function) for function in _functions(value)]
        code = code_of(value)
        self.source = self.key if code is None else Identity(code)

    def is_copy(self, old: "Contents") -> bool:
        """Returns whether two functions of one key differ in nothing that matters.

        They may differ in arrays that one variable has held in turn, as in a loop.
        """
        pairs = zip(self.arrays, old.arrays, strict=True)
        return all(
            array == earlier or (holder is not None and holder == earlier_holder)
            for (array, holder), (earlier, earlier_holder) in pairs
        )

    def take_variables(self) -> list[tuple[Any, str, int | None, Any]]:
        """Returns the variables, and forgets them: they would keep functions alive."""
        variables, self.variables = self.variables, []
        return variables

    def _of(self, value: Any, holder: Hashable) -> Hashable:
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            return ("partial", *(self._of(part, holder) for part in parts))
        if isinstance(value, types.MethodType):
            function = self._of(value.__func__, holder)
            return ("method", function, Identity(value.__self__))
        if isinstance(value, ARRAYS):
            return self._of_array(value, holder)
        if isinstance(value, CONSTANTS):
            return (type(value), value)
        if isinstance(value, tuple):
            return (type(value), *(self._of(part, holder) for part in value))
        if isinstance(value, types.FunctionType | list | dict):
            if id(value) in self.seen:
                return ("seen", self.seen[id(value)])
            self.seen[id(value)] = len(self.seen)
            if isinstance(value, types.FunctionType):
                return self._of_function(value, holder)
            items = value.items() if isinstance(value, dict) else enumerate(value)
            return (type(value), *((k, self._of(part, holder)) for k, part in items))
        wrapped = getattr(value, "__wrapped__", None)
        if callable(wrapped) and not isinstance(value, type):  # as jax.jit returns
            return (type(value), self._of(wrapped, holder))
        return Identity(value)

    def _of_array(self, value: Any, holder: Hashable) -> Hashable:
        shape = ("array", value.shape, str(value.dtype))
        if not self.by_value:
            self.arrays.append((Identity(value), holder))
            return shape
        is_known = _is_readable(value) and value.nbytes <= LARGEST
        return (*shape, np.asarray(value).tobytes() if is_known else Identity(value))

    def _of_function(self, function: types.FunctionType, holder: Hashable) -> Hashable:
        module = id(function.__globals__)
        self.home = self.home or module
        defaults = (function.__defaults__, function.__kwdefaults__)
        parts = [Identity(function.__code__), module, self._of(defaults, holder)]
        assigned = _names(function.__code__)[1]
        for name, index, content in _variables(function):
            if isinstance(content, NUMBERS):
                # A counter that the function itself changes is not a value.
                is_value = holder is None and name not in assigned and self.is_function
            else:
                is_value = any(isinstance(leaf, ARRAYS) for leaf in leaves_of(content))
            if is_value:
                self.variables.append((function, name, index, content))
            cells = function.__closure__ or ()
            cell = name if index is None else id(cells[index])
            # Global functions of other modules are not the user's, and do not change.
            is_known = index is None and (
                callable(content)
                and not isinstance(content, functools.partial)
                and id(getattr(content, "__globals__", None)) != self.home
            )
            outermost = cell if holder is None else holder
            part = Identity(content) if is_known else self._of(content, outermost)
            parts.append((name, part))
        return ("function", *parts)


def _functions(value: Any) -> list[Any]:
    """Returns the functions in an argument that `jax.jit` compares by identity."""
    if isinstance(value, jax.tree_util.Partial):  # its arrays are traced
        value = value.func
    if isinstance(value, types.MethodType):  # equal by what it is bound to
        return []
    if isinstance(value, tuple):
        return [f for leaf in jax.tree.leaves(value) for f in _functions(leaf)]
    return [value] if callable(value) else []


def code_of(value: Any) -> types.CodeType | None:
    """Returns the code of a function, without its wrappers; None for a sampler."""
    if isinstance(value, tuple) or not callable(value):
        return None
    function = _functions(value)[0] if _functions(value) else value
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(inspect.unwrap(function), "__code__", None)


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


def leaves_of(content: Any) -> list[Any]:
    """Returns the leaves of a value; of a `partial`, those of its arguments."""
    if isinstance(content, functools.partial):
        content = (content.args, content.keywords)
    try:
        return jax.tree.leaves(content)
    except ValueError:  # the keys of a dict cannot be sorted: it is not a pytree
        return []


def place_of(array: Any) -> Hashable:
    """Returns what identifies an array; JAX keeps the memory of NumPy's arrays."""
    is_jax = isinstance(array, jax.Array)
    return id(array) if is_jax else (np.asarray(array).ctypes.data,)


def _is_readable(array: Any) -> bool:
    """Returns whether the numbers of an array can be compared here and now."""
    return not isinstance(array, jax.Array) or (
        not array.is_deleted()
        and array.is_fully_addressable
        and not jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    )


def is_equal(new: Any, old: Any) -> bool:
    """Returns whether two values are arrays of equal numbers and of one type."""
    if not isinstance(new, ARRAYS) or old is None or new.dtype != old.dtype:
        return False
    if not _is_readable(new) or not _is_readable(old):
        return False
    return bool(np.array_equal(new, old, equal_nan=new.dtype.kind == "f"))
