"""Workdirs that are not local paths, such as `gs://bucket/run`.

A store of objects cannot append or rename, and has no locks. A run whose workdir is on
one works in a local folder, and its files are sent to the store whole: see `mirrored`.
"""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import jax
from absl import logging
from etils import epath

from experiments.run.digests import NAME
from experiments.run.errors import CheckpointError, reason_of
from experiments.run.files import (
    CONFIG,
    FOLDER,
    METRICS,
    TRAINER_LOCK,
    Occupied,
    append,
    copy_file,
    occupied,
    write_atomically,
)

PREFIX, LOCK = "ebmjax-run-", ".lock"
"""Start of the names of local folders, and the lock in each that is in use."""

BEING_MADE = 60.0
"""Age in seconds below which a process may not hold the lock of its folder yet."""

READ_ONLY = ("http", "https")

_LocalPath = type(epath.Path("."))


class FsspecPath:
    """A path of a file system that fsspec knows and `epath` does not.

    It has the methods of `epath.Path` that a run needs.
    """

    def __init__(self, url: str, system: fsspec.AbstractFileSystem | None = None):
        scheme, _, path = url.partition("://")
        self._top, self._path = f"{scheme}://", path.rstrip("/")
        self._url = self._top + self._path
        # A listing that was kept would hide what another process has written.
        self._system = system or fsspec.url_to_fs(url, use_listings_cache=False)[0]

    def __truediv__(self, name: str) -> "FsspecPath":
        slash = "/" if self._path else ""
        return FsspecPath(f"{self._url}{slash}{name}", self._system)

    def __fspath__(self) -> str:
        return self._url

    __str__ = __fspath__

    def __repr__(self) -> str:
        return f"FsspecPath({self._url!r})"

    @property
    def name(self) -> str:
        return self._path.rpartition("/")[2]

    @property
    def parent(self) -> "FsspecPath":
        above = self._path.rpartition("/")[0]
        return FsspecPath(self._top + above, self._system)

    def exists(self) -> bool:
        return self._system.exists(self._url)

    def is_dir(self) -> bool:
        return self._system.isdir(self._url)

    def is_file(self) -> bool:
        return self._system.isfile(self._url)

    def iterdir(self) -> Iterator["FsspecPath"]:
        own = self._system._strip_protocol(self._url).rstrip("/")
        for found in self._system.ls(self._url, detail=False):
            if found.rstrip("/") != own:  # some stores list the folder itself
                yield self / found.rstrip("/").rpartition("/")[2]

    def open(self, mode: str = "r"):
        return self._system.open(self._url, mode)

    def read_bytes(self) -> bytes:
        return self._system.cat_file(self._url)

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        del parents
        self._system.makedirs(self._url, exist_ok=exist_ok)

    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(*[FileNotFoundError] * missing_ok):
            self._system.rm_file(self._url)

    def rmtree(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(*[FileNotFoundError] * missing_ok):
            self._system.rm(self._url, recursive=True)


AnyPath = pathlib.Path | epath.Path | FsspecPath


def to_path(workdir: Any) -> AnyPath:
    """Returns the path of a workdir, which is a local one unless it has a scheme.

    Args:
      workdir: A path, or text: a path, or a URL of a scheme that `etils.epath` or
        fsspec knows, such as `gs://bucket/run`.

    Raises:
      ValueError: If nothing here can reach the workdir, or it can only be read.
    """
    text = os.fspath(workdir)
    is_remote = "://" in text or (
        isinstance(workdir, epath.Path) and not isinstance(workdir, _LocalPath)
    )
    if not is_remote:
        if re.match(r"[A-Za-z][\w+.-]+:/", text):  # as `pathlib.Path` makes of a URL
            raise ValueError(f"workdir {text} must have two slashes after its scheme")
        return pathlib.Path(text)
    if isinstance(workdir, FsspecPath):
        return workdir
    scheme = text.partition("://")[0]
    if scheme in READ_ONLY:
        raise ValueError(
            f"workdir {text} must be one that can be written, but {scheme}:// can only"
            " be read"
        )
    try:
        path = workdir if isinstance(workdir, epath.Path) else _open(text)
        path.exists()  # imports the packages that the scheme needs
    except Exception as error:
        raise ValueError(f"workdir {text} cannot be used: {reason_of(error)}") from None
    return path


def _open(text: str) -> AnyPath:
    try:
        return epath.Path(text)
    except KeyError:  # not one of its schemes
        return FsspecPath(text)


@contextlib.contextmanager
def fetched(workdir: AnyPath) -> Iterator[pathlib.Path]:
    """Gives a local folder that holds a run: the workdir, or a copy for this block.

    The copy has the files of the workdir and its checkpoints, without figures and
    TensorBoard's events. A checkpoint that was not sent whole is left out.
    """
    if isinstance(workdir, pathlib.Path):
        yield workdir
        return
    _remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as parent:
        folder = pathlib.Path(parent) / "run"
        with occupied(pathlib.Path(parent) / LOCK, parent), _renaming(folder, workdir):
            folder.mkdir()
            _fetch(workdir, folder)
            yield folder


def _fetch(workdir: AnyPath, folder: pathlib.Path) -> None:
    try:
        for name, path in _files_to_fetch(workdir):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                copy_file(path, folder / name)
    except Exception as error:
        raise CheckpointError(
            f"{workdir} could not be read: {reason_of(error)}"
        ) from error


@contextlib.contextmanager
def filling(folder: AnyPath) -> Iterator[pathlib.Path]:
    """Gives a local folder for files that belong in `folder`: itself, or an empty one
    whose files are sent at the end."""
    if isinstance(folder, pathlib.Path):
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield pathlib.Path(name)
        for path in pathlib.Path(name).iterdir():
            copy_file(path, folder / path.name)


def _remove_leftovers() -> None:
    """Removes the local folders of processes that were killed."""
    for lock in pathlib.Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(Occupied, OSError):
            if lock.stat().st_mtime > time.time() - BEING_MADE:
                continue
            with occupied(lock, str(lock)):
                shutil.rmtree(lock.parent, ignore_errors=True)


@contextlib.contextmanager
def _renaming(folder: pathlib.Path, workdir: AnyPath) -> Iterator[None]:
    """Names the workdir in the errors that name the local folder."""
    try:
        yield
    except Exception as error:
        if error.args and isinstance(error.args[0], str):
            text = error.args[0].replace(str(folder), str(workdir))
            error.args = (text, *error.args[1:])
        raise


def _files_to_fetch(workdir: AnyPath) -> Iterator[tuple[str, AnyPath]]:
    if not workdir.is_dir():
        return
    for path in _list_shown(workdir):
        if path.name == FOLDER:
            for step in _list(path):
                if not step.name.isdigit():  # set aside as unreadable
                    continue
                found = dict(walk(step, f"{FOLDER}/{step.name}"))
                if f"{FOLDER}/{step.name}/{NAME}" in found:
                    yield from found.items()
                elif found:
                    logging.warning("%s was not sent whole, and is left out", step)
        elif path.is_file():
            yield path.name, path


def _list(folder: AnyPath) -> list[AnyPath]:
    """Returns what is in a folder; a store may list the folder itself, too."""
    return [path for path in folder.iterdir() if path != folder]


def _list_shown(workdir: AnyPath) -> list[AnyPath]:
    """Returns what is in a workdir, without locks and temporary files."""
    return [path for path in _list(workdir) if not path.name.startswith(".")]


def walk(path: AnyPath, name: str) -> Iterator[tuple[str, AnyPath]]:
    """Yields the files at and below a path, with names that begin with `name`."""
    if not path.is_dir():
        yield name, path
        return
    for inner in _list(path):
        yield from walk(inner, f"{name}/{inner.name}")


@contextlib.contextmanager
def mirrored(
    workdir: AnyPath, *, trains: bool
) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
    """Gives the local folder that a run works in, and a function that sends it.

    For a local workdir they are the workdir and a function that does nothing. For
    another one, the folder begins as a copy, and `send()` brings the workdir up to it;
    the end of the block does so, too. Every process of a run has a folder of its own,
    and the first one sends.

    Args:
      workdir: Path of the run.
      trains: Whether this process is the one that trains there from its first `send()`
        on. A store has no locks: the process that began last trains, and an earlier one
        raises `Occupied` at its next `send()`.
    """
    if isinstance(workdir, pathlib.Path):
        yield workdir, lambda: None
        return
    with fetched(workdir) as folder:
        mirror = Mirror(workdir, folder, trains)
        try:
            yield folder, mirror.send
        except BaseException:
            with contextlib.suppress(Exception):  # it would hide the error
                mirror.end()
            raise
        mirror.end()


class Mirror:
    """Sends what changes in a local folder to the workdir that it stands for."""

    def __init__(self, workdir: AnyPath, folder: pathlib.Path, trains: bool):
        self._workdir, self._folder, self._trains = workdir, folder, trains
        self._sent = self._look()
        self._lines = _read_log(folder)
        self._owner = ""

    def _look(self) -> dict[str, tuple[int, int]]:
        """Returns the files that belong in the workdir, with what a change changes."""
        found = {}
        for top in _list_shown(self._folder):
            for name, path in walk(top, top.name):
                status = path.stat()
                found[name] = status.st_mtime_ns, status.st_size
        # A checkpoint without digests is one that is being written.
        return {
            name: status
            for name, status in found.items()
            if not _step_of(name) or f"{_step_of(name)}/{NAME}" in found
        }

    def send(self) -> None:
        """Brings the workdir up to the folder.

        The log goes before the checkpoint whose steps it has, and the digests of a
        checkpoint go after its arrays, because no process reads it without them.

        Raises:
          Occupied: If another process trains there now.
          CheckpointError: If the workdir cannot be written.
        """
        if jax.process_index() != 0:
            return
        try:
            self._own()
            self._take_lines()
            self._send_changes()
        except Occupied:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{self._workdir} could not be written: {reason_of(error)}"
            ) from error

    def _own(self) -> None:
        if not self._trains:
            return
        path = self._workdir / TRAINER_LOCK
        found = path.read_bytes().decode() if path.exists() else ""
        if not self._owner:
            if found:
                logging.warning(
                    "%s was left by %s without an end; if that one still trains, it"
                    " stops when it saves",
                    self._workdir,
                    found,
                )
            host, number = socket.gethostname(), uuid.uuid4().hex[:8]
            self._owner = f"process {os.getpid()} on {host} ({number})"
            write_atomically(path, self._owner)
        elif found != self._owner:
            raise Occupied(
                f"{self._workdir} is now being trained by {found or 'another process'},"
                " which began later: this one stops"
            )

    def end(self) -> None:
        """Sends what is left, and lets go of the workdir; does nothing for a run that
        was refused before it began."""
        if self._trains and not self._owner:
            return
        self.send()
        if self._owner:
            (self._workdir / TRAINER_LOCK).unlink(missing_ok=True)

    def _take_lines(self) -> None:
        """Appends lines of the log that another process, an evaluation, has sent."""
        known = set(self._lines)
        added = [line for line in _read_log(self._workdir) if line not in known]
        if added:
            append(self._folder / METRICS, "\n".join(added) + "\n")

    def _send_changes(self) -> None:
        lines, found = _read_log(self._folder), self._look()
        changed = {name for name in found if found[name] != self._sent.get(name)}
        steps = {_step_of(name) for name in found} - {""}
        for step in {_step_of(name) for name in changed} & steps:
            if f"{step}/{NAME}" not in self._sent:  # a torn one may be there
                (self._workdir / step).rmtree(missing_ok=True)
        for name in sorted(changed, key=_order):
            copy_file(self._folder / name, self._workdir / name)
            self._sent[name] = found[name]
        self._lines = lines
        gone = set(self._sent) - set(found)
        for step in {_step_of(name) for name in gone} - steps - {""}:
            (self._workdir / step / NAME).unlink(missing_ok=True)
            (self._workdir / step).rmtree(missing_ok=True)
        for name in gone:
            if not _step_of(name) or _step_of(name) in steps:
                (self._workdir / name).unlink(missing_ok=True)
            del self._sent[name]


def _step_of(name: str) -> str:
    """Returns the checkpoint that a file belongs to, `checkpoints/<step>`, or ""."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == FOLDER else ""


def _order(name: str) -> tuple:
    """Sorts the files that are sent: the config after its record, as on a disk."""
    step = _step_of(name)
    return bool(step), name == f"{step}/{NAME}", name == CONFIG, name


def _read_log(workdir: AnyPath) -> list[str]:
    path = workdir / METRICS
    if not path.is_file():
        return []
    return path.read_bytes().decode(errors="replace").splitlines()
