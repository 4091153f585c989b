"""Experiments with the library, and trained models back from their folders.

    from experiments import load

    trained = load("runs/digits")
    images = trained.sample(jax.random.key(0), 16)

The folders of this package are papers, and the files of a folder are problems; each is
run by `python -m experiments.<paper>.<problem>`.
"""

import atexit
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import signal
import sys

if sys.argv[:1] == ["-m"]:  # `python -m` imports this package first, for seconds
    # Nothing is unsaved before a run has begun to handle signals itself.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    # All is done then, and Python's own end would take the signal's default back.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)

__all__ = ["load"]

_EIGEN = "--xla_cpu_experimental_ynn_fusion_type"
"""XLA's flag that decides which operations of a CPU go to its library YNNPACK.

By default convolutions do, and their gradients in kernels then reach half of the speed
that Eigen's have. XLA reads the flag when its first program is compiled."""

_TESTED = ("0.10.2",)
"""Versions of jaxlib that know the flag. One that does not know it ends the process."""

if importlib.metadata.version("jaxlib") in _TESTED:
    _flags = os.environ.get("XLA_FLAGS", "")
    if _EIGEN not in _flags:  # a value that the user chose is kept
        _value = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
        os.environ["XLA_FLAGS"] = f"{_flags} {_EIGEN}={_value}".strip()


def load(workdir, *, step: int | None = None, ema: bool | None = None):
    """Returns the trained model of a run, without reading its data.

    Args:
      workdir: Folder of a run of any problem: a local one, or a URL such as
        `gs://bucket/run`. A file of `experiments.models`, or the name of one that comes
        with the code, such as "digits/score_based", is a run of one step.
      step: Step of the checkpoint; the newest readable one by default.
      ema: Whether the parameters are their moving average. By default they are where
        the run keeps an average, as in its own evaluation.

    Returns:
      An `experiments.run.experiment.Trained` with the config, the parameters, the
      networks, and the functions that the model has.

    Raises:
      FileNotFoundError: If there is no run, no checkpoint, or not this step; or if the
        run was made by a version that did not record its problem.
      ValueError: If `ema` is asked of a run that keeps no average, a file is damaged,
        or the problem has no `load`.
      RuntimeError: If there are checkpoints and none can be read.
    """
    from experiments import models
    from experiments.run.checkpoint import read_config
    from experiments.run.remote import fetched, to_path
    from experiments.run.workdir import read_run

    if path := models.find(workdir):
        model = models.read(path)
        for name, wanted in (("step", step), ("ema", ema)):
            if wanted not in (None, model.record[name]):
                found = model.record[name]
                raise ValueError(f"{path} has {name} {found}, got {wanted}")
        return _bind(_find_load(path, model.problem), model)
    with fetched(to_path(workdir)) as folder:
        read_config(folder)  # whether there is a run
        # A problem that cannot be loaded is found before its checkpoint is read.
        load_problem = _find_load(folder, read_run(folder)["problem"])
        return _bind(load_problem, models.of_run(folder, step, ema))


def _bind(load_problem, model):
    """Returns the trained model that a problem's `load` makes of a `models.Model`."""
    import jax
    import jax.numpy as jnp

    arrays = jax.tree.map(jnp.asarray, (model.params, model.model_state))
    return _checked(load_problem(model.config, model.facts, *arrays))


def _find_load(source: pathlib.Path, problem: str):
    """Returns the function of a problem that makes a trained model."""
    module = _import(problem)
    if not hasattr(module, "load"):
        raise ValueError(f"{problem}, which {source} is a run of, has no load")
    return module.load


def _checked(trained):
    """Makes `sample(key, num)` refuse a wrong key or number by its name."""
    from ebmjax.checks import check_count, check_key

    if trained.sample is None:
        return trained

    def checked(key, num):
        check_key(key)
        check_count("num", num, 1)
        return trained.sample(key, num)

    return trained._replace(sample=checked)


def _import(problem: str):
    """Imports a problem by its module's name, or by its file."""
    if not problem.endswith(".py"):
        return importlib.import_module(problem)
    path = pathlib.Path(problem)
    if not path.is_file():
        raise FileNotFoundError(f"the run's problem {path} is missing")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
