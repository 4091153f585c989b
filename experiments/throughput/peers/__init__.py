"""The peers of the benchmark: the same moves and updates, by other people's programs.

A peer is a file of this folder; its name, with spaces for underscores, is the
contender's. It has one of these functions, or both, which raise `ImportError` where its
package is not installed and `NotImplementedError`, with the reason, where the package
has no such sampler or update:

- `make(workload, sampler, x0, num_steps) -> Contender`, for the table of samplers;
- `make_program(task) -> Program`, for the table of training steps, with `KINDS`, the
  kinds of tasks that it is for;

and

- `ENVIRONMENT`, the variables that its process is started with: every contender has a
  process of its own, because the packages share the cores badly;
- `PACKAGE`, the package to import, for the tests.

The unit of the benchmark is `plain scan`, the program that a competent user of JAX
writes in twenty lines, of an energy written the obvious way. The JAX peers are handed
our energies, so that they differ from us in the sampler alone. The PyTorch peers need
energies of their own, here in the fastest form that was found, and are compared with
ours, values and gradients, before anything runs.

One step size means one thing: a Langevin move, and a proposal of MALA, is
`x - h grad E(x) + sqrt(2 h) n`; a leapfrog of HMC, of unit mass, takes time `h`.
"""

import importlib
import pkgutil
from types import ModuleType

__all__ = ["PEERS", "having", "load"]

PEERS = tuple(
    module.name.replace("_", " ") for module in pkgutil.iter_modules(__path__)
)


def load(name: str) -> ModuleType:
    """Returns the module of a peer."""
    return importlib.import_module(f"{__name__}.{name.replace(' ', '_')}")


def having(function: str) -> tuple[str, ...]:
    """Returns the peers that have a function, "make" or "make_program"."""
    return tuple(name for name in PEERS if hasattr(load(name), function))
