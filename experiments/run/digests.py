"""Digests of files, so that one that has changed is never read.

Orbax's store has no checksum of large values, and JSON has none at all: a flipped bit
would be loaded as another number.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.run.files import write_atomically

NAME = "digests.json"
CHANGED = "it has changed since it was written"


def digest_of(path: Any) -> str:
    """Returns the SHA-256 of a file, which need not be local, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**18):
            found.update(block)
    return found.hexdigest()


def write_digests(folder: pathlib.Path) -> None:
    """Writes the digests of all files below a folder into it, whole or not at all."""
    found = {name: digest_of(folder / name) for name in sorted(_names(folder))}
    write_atomically(folder / NAME, json.dumps(found, indent=0) + "\n")


def has_digests(folder: pathlib.Path) -> bool:
    """Returns whether the folder's digests were written; old checkpoints have none."""
    return (folder / NAME).exists()


def find_damage(folder: pathlib.Path) -> str:
    """Returns what has changed in a folder, or "" if nothing has.

    A folder without digests has no known damage. Files that were added are not read by
    anyone, and are no damage.
    """
    if not has_digests(folder):
        return ""
    try:
        wanted = json.loads((folder / NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return f"{NAME} is damaged"
    if not isinstance(wanted, dict) or not wanted:
        return f"{NAME} is damaged"
    for name, digest in wanted.items():
        try:
            if digest_of(folder / name) != digest:
                return f"{name} has changed since it was saved"
        except (OSError, ValueError):  # ValueError: a null character in the name
            return f"{name} cannot be read"
    return ""


def sign(record: dict[str, Any]) -> dict[str, Any]:
    """Returns JSON values with the digest of them all, as `digest`."""
    return record | {"digest": _digest_of_values(record)}


def read_json(path: Any) -> dict[str, Any]:
    """Returns the object in a file, without the digest of `sign`.

    Raises:
      ValueError: If the file is damaged.
    """
    try:
        found = json.loads(path.read_bytes().decode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it must be an object, got {found!r}")
    digest = found.pop("digest", None)  # older files have none
    if digest is not None and digest != _digest_of_values(found):
        raise ValueError(f"{path} is damaged: it has changed since the run wrote it")
    return found


def read_signed(
    path: Any, kind: str = ""
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays of an `.npz` file, and the signed record among them.

    Digests of the arrays are in the record, and the caller compares them.

    Args:
      path: File with a JSON text of `sign` as `record`.
      kind: Words that follow "cannot be read" in messages, such as " as a model".

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: If it cannot be read, or the record has changed.
    """
    try:
        with np.load(path) as found:
            arrays = dict(found)
        if "record" not in arrays:
            raise ValueError("it has no 'record'")
        record = json.loads(str(arrays.pop("record")))
        signed = sign({k: v for k, v in record.items() if k != "digest"})
    except FileNotFoundError:
        raise
    except Exception as error:  # of the file system, zipfile, zlib, numpy and json
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read{kind}: {reason}") from error
    if signed != record:
        raise ValueError(f"{path} is damaged: {CHANGED}")
    return arrays, record


def _digest_of_values(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _names(folder: pathlib.Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != NAME:
            yield path.relative_to(folder).as_posix()
