"""What is made from the sections of a config."""

import numpy as np
import pytest

from experiments.run.config import make_optimizer, schedule


@pytest.mark.quick
def test_schedules_are_these_numbers():
    rate = schedule(
        start=1.0, final=0.1, warmup_steps=4, decay_start=10, decay_steps=20
    )
    np.testing.assert_allclose(rate(0), 0.2)
    np.testing.assert_allclose(rate(4), 1.0)
    np.testing.assert_allclose(rate(10), 1.0)
    np.testing.assert_allclose(rate(20), 0.55, rtol=1e-6)  # half-way down a cosine
    np.testing.assert_allclose(rate(30), 0.1, rtol=1e-6)
    np.testing.assert_allclose(rate(1000), 0.1, rtol=1e-6)
    line = schedule(start=0.0, final=4.0, decay="linear", decay_steps=4)
    np.testing.assert_allclose([line(k) for k in range(6)], [0, 1, 2, 3, 4, 4])
    power = schedule(start=1.0, final=0.01, decay="exponential", decay_steps=2)
    np.testing.assert_allclose(
        [power(k) for k in range(3)], [1.0, 0.1, 0.01], rtol=1e-5
    )
    assert schedule(start=0.5)(10**6) == 0.5


def test_the_optimizer_clips_the_global_norm():
    optimizer = make_optimizer(
        {"name": "sgd", "learning_rate": {"start": 1.0}, "gradient_clip": 1.0}
    )
    gradient = {"a": np.float32(3.0), "b": np.float32(4.0)}
    change, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose([change["a"], change["b"]], [-0.6, -0.8], rtol=1e-6)
