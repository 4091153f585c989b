"""Eight devices on a CPU, set up before jax is imported."""

import itertools
import os
import pathlib
import shutil

# Forced host devices on few cores deadlock in XLA's rendezvous with a small pool.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests compile for most of their time: LLVM's first level takes a third of it away and
# leaves XLA's own passes, fusion among them, as they are. One part for each program is
# enough for programs as small as these. A flag given outside wins.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=1 --xla_cpu_parallel_codegen_split_count=1 "
    + os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count={os.environ.get('EBMJAX_DEVICES', 8)}"
)

# A program is compiled once by all tests, all processes and all runs of the tests.
# XLA knows it by its text and the versions, so that changed code is compiled anew.
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
MOST_PROGRAMS = 40_000
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    if CACHE.is_dir() and sum(1 for _ in CACHE.iterdir()) > MOST_PROGRAMS:
        shutil.rmtree(CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

import experiments  # noqa: F401 - it sets a flag of XLA before the first program

NUM_TESTS = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def classifier_cache(tmp_path_factory):
    """Keeps the classifiers that tests train apart from those of the user."""
    os.environ["EBMJAX_CACHE"] = str(tmp_path_factory.mktemp("classifiers"))


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
