"""Metrics written by hand in NumPy and SciPy, the obvious way."""

import numpy as np

from experiments.throughput.metric_tasks import make_metric
from experiments.throughput.tasks import Program, Task
from experiments.throughput.workload import version

PACKAGE = "scipy"
ENVIRONMENT: dict[str, str] = {}
KINDS = ("ksd", "mmd")


def stein(task: Task, x: np.ndarray) -> float:
    """Returns the U-statistic for a standard normal, by matrix products."""
    from scipy.spatial.distance import pdist

    bandwidth, (num, dim) = task.facts["bandwidth"], x.shape
    if bandwidth is None:
        bandwidth = np.median(pdist(x))
    scores = -x
    norms = (x**2).sum(1)
    squares = norms[:, None] + norms[None] - 2 * x @ x.T
    kernel = np.exp(squares * (-0.5 / bandwidth**2))
    pull = np.einsum("id,id->i", scores, x)[:, None] - scores @ x.T
    pull = pull + pull.T
    pairs = scores @ scores.T + pull / bandwidth**2
    pairs += dim / bandwidth**2 - squares / bandwidth**4
    pairs *= kernel
    return (pairs.sum() - np.trace(pairs)) / (num * (num - 1))


def mean_discrepancy(task: Task, a: np.ndarray, b: np.ndarray) -> float:
    """Returns the polynomial kernel's discrepancy in float64; a product beats a
    power."""
    a, b = a.astype(np.float64), b.astype(np.float64)

    def kernel(x, y):
        k = x @ y.T / x.shape[1] + 1
        return k * k * k

    def within(x):
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean()


FUNCTIONS = {"ksd": stein, "mmd": mean_discrepancy}


def make_program(task: Task) -> Program:
    settings = f"{version('numpy')}, {version('scipy')}"
    return make_metric(task, FUNCTIONS[task.kind], settings)
