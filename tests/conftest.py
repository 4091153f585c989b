"""Eight devices on a CPU, set up before jax is imported."""

import atexit
import itertools
import os
import shutil
import tempfile

# Forced host devices on few cores deadlock in XLA's rendezvous with a small pool.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests compile for most of their time: LLVM's first level takes a third of it away and
# leaves XLA's own passes, fusion among them, as they are. A flag given outside wins.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=1 "
    + os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count={os.environ.get('EBMJAX_DEVICES', 8)}"
)

# What stops and resumes is compiled again, here or in another process: once is enough.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="ebmjax-")
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest

NUM_TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def forget():
    """Compiled programs of some tests: those of all exceed what one process may map."""
    yield
    if next(NUM_TESTS) % 25 == 0:
        jax.clear_caches()


@pytest.fixture
def quick_compilation(monkeypatch):
    """Few optimisations, here and in processes started: for tests of what is run, which
    compile for most of their time, and not of numbers or of programs."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# A batch of [n] against one of [n, 1] is the classic silent bug of an energy's loss.
jax.config.update("jax_numpy_rank_promotion", "raise")
