"""Files that are written whole, and locks between processes."""

import contextlib
import errno
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

from absl import logging

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

CONFIG = "config.json"
RUN = "run.json"
METRICS = "metrics.jsonl"
FOLDER = "checkpoints"
TRAINER_LOCK = ".trainer.lock"

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTSUP)
"""Errors of a file system that has no locks."""


@contextlib.contextmanager
def replacing(path: Any, suffix: str = "") -> Iterator[pathlib.Path]:
    """Gives the path of a temporary file that replaces `path` when all went well.

    A failure, such as a full disk, leaves `path` as it was and removes the temporary
    file.

    Args:
      path: File to write: a local one, or one of `remote.to_path`, whose store replaces
        files whole.
      suffix: End of the temporary file's name, for writers that add one of their own.
    """
    if not isinstance(path, pathlib.Path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = pathlib.Path(folder) / f"{path.name}{suffix}"
            yield temporary
            copy_file(temporary, path)
        return
    # Machines that share the folder may have processes of the same number.
    owner = f"{socket.gethostname()}.{os.getpid()}"
    temporary = path.with_name(f".{path.name}.{owner}.tmp{suffix}")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Names a file in the errors of the file system that name none, as a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def copy_file(source: Any, target: Any) -> None:
    """Copies a file from or to a path of `remote.to_path`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 2**24)


def check_writable(path: Any) -> None:
    """Makes the folder of a file, and raises an error if the file cannot be written.

    A command calls this before its work, which it would otherwise lose at the end.

    Args:
      path: File to write, or folder to make. A path of a store is not checked.

    Raises:
      OSError: If the file cannot be written; the error has its path.
    """
    if not isinstance(path, pathlib.Path):
        return
    code = errno.EISDIR if path.is_dir() else 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        code = errno.ENOTDIR if error.errno == errno.EEXIST else error.errno or 0
    if code:
        raise OSError(code, os.strerror(code), str(path))


def write_atomically(path: Any, text: str) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as temporary, temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave an empty file


def append(path: pathlib.Path, text: str) -> None:
    """Appends to a file by one write, whole or not at all.

    A last line that a killed process left torn is ended first.
    """
    data = text.encode()
    with naming(path), path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                data = b"\n" + data
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Waits for the lock of a file, which is made if missing, and holds it."""
    with path.open("a") as file:
        _lock(file, path, waits=True)
        yield  # closing the file releases the lock, as the end of a process does


class Occupied(ValueError):
    """A workdir that another process trains."""


@contextlib.contextmanager
def occupied(path: pathlib.Path, what: str) -> Iterator[None]:
    """Holds the lock of a file, and refuses at once if another process holds it.

    The operating system releases the lock when the process ends, in whatever way.

    Args:
      path: File of the lock; holds the process that has it.
      what: Name of what must have one process, for the error.

    Raises:
      Occupied: If another process holds the lock, with its number and machine.
    """
    with path.open("a+b", buffering=0) as file:
        try:
            _lock(file, path, waits=False)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip()
            raise Occupied(
                f"{what} is being trained by {holder or 'another process'}:"
                " wait until it ends, or stop it"
            ) from None
        with naming(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def _lock(file, path: pathlib.Path, *, waits: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logging.log_first_n(
            logging.WARNING,
            "%s: this file system has no locks; run one process at a time on it",
            1,
            path,
        )
