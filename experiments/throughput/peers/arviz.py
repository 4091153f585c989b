"""ArviZ, of diagnostics."""

import functools

from experiments.throughput.metric_tasks import make_metric
from experiments.throughput.tasks import Program, Task
from experiments.throughput.workload import version

PACKAGE = "arviz"
ENVIRONMENT: dict[str, str] = {}
KINDS = ("r_hat", "ess")


def make_program(task: Task) -> Program:
    import arviz

    def apply(function, method, task, draws):
        return function(draws.swapaxes(0, 1), method=method)["x"].values

    def by_array(name, method):
        def function(array, method):
            data = arviz.convert_to_dataset({"x": array})
            return getattr(arviz, name)(data, method=method)

        return functools.partial(apply, function, method)

    functions = {"r_hat": by_array("rhat", "rank"), "ess": by_array("ess", "mean")}
    return make_metric(task, functions, version("arviz"))
