"""Compiled programs that later starts use again."""

import os
import pathlib
import subprocess
import sys
import zlib

import jax
import pytest

from experiments.run import cache

NOW = 1_000_000.0

PROGRAM = """
import jax, jax.numpy as jnp
from experiments.run.cache import keep_programs
keep_programs()
jax.config.update("jax_explain_cache_misses", False)
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))[0, 0])
"""


def write(path: pathlib.Path, data: bytes, age: float, used: float | None = None):
    path.write_bytes(data)
    os.utime(path, (NOW - (age if used is None else used), NOW - age))


@pytest.mark.quick
def test_damaged_programs_are_deleted_and_no_others(tmp_path):
    whole = zlib.compress(bytes(range(256)) * 40)
    flipped = bytearray(whole)
    flipped[-1] ^= 1  # of the checksum
    write(tmp_path / "whole-cache", whole, age=500)
    write(tmp_path / "torn-cache", whole[:-9], age=500)
    write(tmp_path / "flipped-cache", bytes(flipped), age=500)
    write(tmp_path / "empty-cache", b"", age=500)
    write(tmp_path / "being_written-cache", whole[:-9], age=5)
    write(tmp_path / "of_zstandard-cache", b"\x28\xb5\x2f\xfd...", age=500)
    cache.clean(tmp_path, NOW)
    names = {path.name for path in tmp_path.glob("*-cache")}
    assert names == {"whole-cache", "being_written-cache", "of_zstandard-cache"}
    # The process that wrote it was killed. It is of the files not yet looked at.
    cache.clean(tmp_path, NOW + 100)
    assert not (tmp_path / "being_written-cache").exists()


def test_programs_that_were_looked_at_are_not_read_again(tmp_path, monkeypatch):
    write(tmp_path / "old-cache", zlib.compress(b"old"), age=500)
    cache.clean(tmp_path, NOW)
    write(tmp_path / "new-cache", zlib.compress(b"new"), age=-50)
    read = []
    monkeypatch.setattr(cache, "is_whole", lambda path: read.append(path.name) or True)
    cache.clean(tmp_path, NOW + 200)
    assert read == ["new-cache"]


def test_programs_longest_unused_make_room(tmp_path, monkeypatch):
    """Four of 10 bytes where 25 fit: the one used last stays, however old it is."""
    monkeypatch.setattr(cache, "MOST_BYTES", 25)
    monkeypatch.setattr(cache, "is_whole", lambda path: True)
    for name, age, used in (("a", 900, 100), ("b", 800, 800), ("c", 700, 700)):
        write(tmp_path / f"{name}-cache", bytes(10), age, used)
    write(tmp_path / "d-cache", bytes(10), 300)
    cache.clean(tmp_path, NOW)
    assert {path.name for path in tmp_path.glob("*-cache")} == {"a-cache", "d-cache"}


def start(folder: pathlib.Path, **others: str) -> subprocess.CompletedProcess:
    inherited = {
        name: value for name, value in os.environ.items() if "CACHE" not in name
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=inherited | {"EBMJAX_CACHE": str(folder)} | others,
        capture_output=True,
        text=True,
        check=True,
    )


def programs(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*-cache")}


def test_a_second_start_compiles_nothing_and_a_torn_file_is_replaced(tmp_path):
    first = start(tmp_path)
    kept = programs(tmp_path)
    assert kept and all(map(cache.is_whole, tmp_path.rglob("*-cache")))
    second = start(tmp_path)
    assert programs(tmp_path) == kept
    for path in tmp_path.rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:100])
        os.utime(path, (NOW, NOW))
    for path in tmp_path.rglob(cache.CHECKED):
        os.utime(path, (0, 0))
    third = start(tmp_path)
    assert programs(tmp_path).keys() == kept.keys()
    assert all(map(cache.is_whole, tmp_path.rglob("*-cache")))
    assert first.stdout == second.stdout == third.stdout
    assert not second.stderr and not third.stderr


def test_a_cache_of_the_user_s_own_or_none_is_left_alone(tmp_path):
    folder, own = tmp_path / "ebmjax", tmp_path / "own"
    start(folder, JAX_COMPILATION_CACHE_DIR=str(own))
    assert not folder.exists()
    start(folder, JAX_ENABLE_COMPILATION_CACHE="false")
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_said_and_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    done = start(tmp_path / "file")
    assert "compiled programs are not kept" in done.stderr
    assert done.stdout == start(tmp_path / "folder").stdout


def test_here_the_tests_have_a_cache_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setenv("EBMJAX_CACHE", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    assert before
    cache.keep_programs()
    assert jax.config.jax_compilation_cache_dir == before
    assert not list(tmp_path.iterdir())
