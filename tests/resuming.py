"""What every experiment must do: stop, go on as if it had not, and be evaluated."""

import functools

import jax
import numpy as np

from experiments.run.checkpoint import read
from experiments.run.loop import run


def check_resumes(build, config, folder):
    """Half and then the rest is bitwise the whole, which is then evaluated; returns the
    evaluation's scalars. The run is in `folder / "one"`."""

    @functools.wraps(build)
    def unjudged(config, keys):
        found = {config.train.best: 0.0} if config.train.best else {}
        return build(config, keys)._replace(evaluate=lambda *_: found)

    half = config.copy_and_resolve_references().unlock()
    half.train.num_steps //= 2
    run(unjudged, half.lock(), folder / "two")
    run(unjudged, config, folder / "two")
    run(unjudged, config, folder / "one")
    one, two = (read(folder / name) for name in ("one", "two"))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    scalars = run(build, config, folder / "one", evaluate_only=True)
    assert all(np.isfinite(value) for value in scalars.values())
    return scalars
