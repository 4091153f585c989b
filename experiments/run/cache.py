"""A folder that a user's runs share: compiled programs, and trained classifiers.

It is the folder that the environment variable `EBMJAX_CACHE` names, or
`~/.cache/ebmjax`. Several processes may share it, and it may be deleted at any time.
"""

import contextlib
import os
import pathlib
import platform
import time
import zlib
from hashlib import sha256

import jax

from experiments.run.workdir import say

MOST_BYTES = 4 * 2**30
"""Size above which the programs that have not been used for longest are deleted."""

BEING_WRITTEN = 60.0
"""Age in seconds below which a file may be of another process that still writes it."""

CHECKED = ".checked"


def cache_folder() -> pathlib.Path:
    """Returns the folder that the runs of this user share."""
    folder = os.environ.get("EBMJAX_CACHE") or "~/.cache/ebmjax"
    return pathlib.Path(folder).expanduser()


def keep_programs() -> None:
    """Makes JAX keep every compiled program for later starts.

    Nothing is done where JAX already has a cache, or where the cache is disabled
    (`JAX_ENABLE_COMPILATION_CACHE=false`).
    """
    is_on = jax.config.jax_enable_compilation_cache
    if not is_on or jax.config.jax_compilation_cache_dir:
        return
    folder = cache_folder() / "programs" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean(folder, time.time())
    except OSError as error:
        say(f"compiled programs are not kept: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _processor() -> str:
    """Returns a digest of the processor: its programs need not run on another."""
    names = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        kinds = ("model name", "flags", "Features")
        names += sorted({line for line in lines if line.startswith(kinds)})
    return sha256("\n".join(names).encode()).hexdigest()[:16]


def clean(folder: pathlib.Path, now: float) -> None:
    """Deletes damaged programs, and the ones longest unused where there are too many.

    JAX never replaces a file. One that a killed process left behind would be reported,
    and its program compiled anew, at every start.

    Args:
      folder: Folder of the programs.
      now: Seconds since the epoch.
    """
    stamp = folder / CHECKED
    checked = stamp.stat().st_mtime if stamp.exists() else 0.0
    found = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process deletes, too
            status = path.stat()
            is_new = checked <= status.st_mtime < now - BEING_WRITTEN
            if is_new and not is_whole(path):
                path.unlink()
                continue
            found.append((max(status.st_atime, status.st_mtime), path, status.st_size))
    excess = sum(size for *_, size in found) - MOST_BYTES
    for _, path, size in sorted(found):
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size
    stamp.touch()
    os.utime(stamp, (now - BEING_WRITTEN, now - BEING_WRITTEN))


def is_whole(path: pathlib.Path) -> bool:
    """Returns whether a program of JAX's cache can be read.

    With the package zstandard, JAX compresses by that and not by zlib. Its files are
    taken as whole.
    """
    data = path.read_bytes()
    if not data.startswith(b"\x78"):
        return data.startswith(b"\x28\xb5\x2f\xfd")
    try:
        zlib.decompress(data)
    except zlib.error:
        return False
    return True
