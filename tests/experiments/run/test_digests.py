"""Digests: whatever changes in a folder is found, and what was added is no damage."""

import numpy as np
import pytest

from experiments.run.digests import find_damage, has_digests, write_digests


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b/c", "b/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(rng.bytes(8))
    (tmp_path / "empty").touch()
    write_digests(tmp_path)
    return tmp_path


@pytest.mark.quick
def test_every_single_bit_is_covered(folder):
    """All bits of all files, and every 11th of the digests themselves."""
    assert find_damage(folder) == "" and has_digests(folder)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), 11 if path.suffix == ".json" else 1):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert find_damage(folder), (path, bit)
        path.write_bytes(whole)
    assert find_damage(folder) == ""


def test_what_is_wrong_is_said(folder):
    (folder / "added").touch()
    assert find_damage(folder) == ""
    (folder / "a").write_bytes(b"longer than it was before")
    assert find_damage(folder) == "a has changed since it was saved"
    (folder / "a").unlink()
    assert find_damage(folder) == "a cannot be read"
    for text in ("", "[]", "{}", "[" * 10**5, '{"b/c": 1}', '{"\\u0000": ""}'):
        (folder / "digests.json").write_text(text)
        assert find_damage(folder)
    (folder / "digests.json").unlink()
    assert find_damage(folder) == "" and not has_digests(folder)
