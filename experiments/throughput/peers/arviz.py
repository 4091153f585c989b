"""ArviZ, of diagnostics."""

import functools

from experiments.throughput.metric_tasks import make_metric
from experiments.throughput.tasks import Program, Task
from experiments.throughput.workload import version

PACKAGE = "arviz"
ENVIRONMENT: dict[str, str] = {}
KINDS = ("r_hat", "ess")


def diagnose(name: str, method: str, task: Task, draws):
    import arviz

    data = arviz.convert_to_dataset({"x": draws.swapaxes(0, 1)})
    return getattr(arviz, name)(data, method=method)["x"].values


FUNCTIONS = {
    "r_hat": functools.partial(diagnose, "rhat", "rank"),
    "ess": functools.partial(diagnose, "ess", "mean"),
}


def make_program(task: Task) -> Program:
    return make_metric(task, FUNCTIONS[task.kind], version("arviz"))
