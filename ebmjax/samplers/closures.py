"""The values that functions close over, and their comparison for two functions."""

import dis
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__: list[str] = []

ARRAYS = jax.Array | np.ndarray
NUMBERS = bool | int | float | complex | np.generic
CONSTANTS = NUMBERS | str | bytes | np.dtype | jax.tree_util.PyTreeDef | None

NOT_OBJECTS = ARRAYS | types.FunctionType | types.MethodType | types.ModuleType
"""Values whose attributes are not values of the user's."""

LOADS = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
"""Instructions that read an attribute, in all versions of Python."""

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
    """Contents of a function or a sampler, and the objects that it is made of.

    Attributes:
      key: Equal for two functions with the same code and the same contents, up to the
        values of the arrays in `arrays`.
      arrays: The arrays that are closed over, if they are not in the key by value. With
        each stands the variable of the outermost function that leads to it.
      variables: Variables that may have been compiled, `(owner, name, cell, value)`:
        those with arrays, and the numbers of the outermost function. The owner is a
        function, or an object whose attribute it is: one that is called, or that a
        function reads. The numbers of a sampler are its options, which never change.
      objects: The objects that `jax.jit` compares by identity.
      source: Object of which a warning is given only once.
    """

    def __init__(self, value: Any, *, by_value: bool):
        self.by_value = by_value
        self.is_function = callable(value)
        self.arrays: list[tuple[Hashable, Hashable]] = []
        self.variables: list[tuple[Any, str, int | None, Any]] = []
        self.seen: dict[int, int] = {}
        self.owners: set[int] = set()
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
            self._add_attributes(value.__self__, value.__func__, holder)
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
        call = inspect.getattr_static(type(value), "__call__", None)
        if isinstance(call, types.FunctionType) and not isinstance(value, type):
            return self._of(types.MethodType(call, value), holder)
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
            # A counter that the function itself changes is not a value.
            is_number = holder is None and name not in assigned and self.is_function
            if is_number if isinstance(content, NUMBERS) else _has_arrays(content):
                self.variables.append((function, name, index, content))
            self._add_attributes(content, function, holder)
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

    def _add_attributes(self, owner: Any, function: Any, holder: Hashable) -> None:
        """Adds the attributes of an object that a function reads to the variables."""
        is_object = hasattr(owner, "__dict__") and not isinstance(owner, NOT_OBJECTS)
        if not is_object or id(owner) in self.owners:
            return
        self.owners.add(id(owner))
        kind = owner if isinstance(owner, type) else type(owner)
        read = _attributes(kind, function)
        for name, content in list(vars(owner).items()):
            if isinstance(content, NUMBERS):
                is_value = name in read and holder is None and self.is_function
            elif isinstance(content, np.ndarray):  # which JAX may copy
                is_value = name in read
            else:
                is_value = _has_arrays(content)
            if is_value:
                self.variables.append((owner, name, None, content))


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
    for instruction in _instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(instruction.argval)
        elif instruction.opname in ("STORE_GLOBAL", "STORE_DEREF"):
            assigned.add(instruction.argval)
    return tuple(sorted(read)), frozenset(assigned)


def _attributes(kind: type, function: Any) -> set[str]:
    """Returns names of the attributes that a function reads of an object of one class.

    They include what the object's own methods read that the function calls. A counter
    that one of them changes is not included.
    """
    read: set[str] = set()
    assigned: set[str] = set()
    functions = [function, *(vars(base).get("__call__") for base in kind.__mro__)]
    for reader in functions:  # which grows
        if not isinstance(reader, types.FunctionType):
            continue
        for instruction in _instructions(reader.__code__):
            name = instruction.argval
            if instruction.opname == "STORE_ATTR":
                assigned.add(name)
            elif instruction.opname in LOADS and name not in read:
                read.add(name)
                members = (vars(base).get(name) for base in kind.__mro__)
                functions += [getattr(member, "fget", member) for member in members]
    return read - assigned


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    """Yields the instructions of code and of the functions that are defined in it."""
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _has_arrays(content: Any) -> bool:
    return any(isinstance(leaf, ARRAYS) for leaf in leaves_of(content))


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


def as_pytree(energy_fn: Callable[..., Any]) -> jax.tree_util.Partial:
    """Returns a function whose bound arrays are arguments of the compiled program.

    All other bound arguments stay static.
    """
    if not isinstance(energy_fn, functools.partial):  # which tree_util.Partial is too
        return jax.tree_util.Partial(_hashable(energy_fn))
    leaves, structure = jax.tree.flatten((energy_fn.args, energy_fn.keywords))
    kinds = jax.Array | np.ndarray | np.floating
    is_array = tuple(isinstance(leaf, kinds) for leaf in leaves)
    others = tuple(leaf for leaf, found in zip(leaves, is_array) if not found)
    kinds_of_others = tuple(map(type, others))  # because 2 == 2.0
    function = _hashable(energy_fn.func)
    bound = _Bound(function, structure, is_array, others, kinds_of_others)
    try:
        hash(bound)
    except TypeError:
        return jax.tree_util.Partial(energy_fn)
    arrays = [leaf for leaf, found in zip(leaves, is_array) if found]
    return jax.tree_util.Partial(bound, *arrays)


def _hashable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function, or its bound method if only that can be hashed.

    A dataclass that is compared by its fields has no hash. Its methods have the hash
    of the object's identity.
    """
    try:
        hash(function)
    except TypeError:
        return types.MethodType(type(function).__call__, function)
    return function


class _Bound(NamedTuple):
    """Function with all of its bound arguments except the arrays; equal by value."""

    function: Callable[..., Any]
    structure: Any
    is_array: tuple[bool, ...]
    others: tuple[Any, ...]
    types: tuple[type, ...]

    def __call__(self, *arguments: Any) -> Any:
        num_arrays = sum(self.is_array)
        arrays, rest = iter(arguments[:num_arrays]), arguments[num_arrays:]
        others = iter(self.others)
        leaves = [next(arrays) if found else next(others) for found in self.is_array]
        args, keywords = jax.tree.unflatten(self.structure, leaves)
        return self.function(*args, *rest, **keywords)
