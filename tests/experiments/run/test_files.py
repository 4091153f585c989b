"""Files: written whole or not at all, and by one process at a time."""

import errno
import os

import pytest

from experiments.run import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full_disk(monkeypatch):
    """Every write finds the disk full after three bytes."""

    class Full:
        def __init__(self, file):
            self.file, self.name = file, file.name

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            self.file.write(data[:3])
            self.file.flush()
            if isinstance(data, str):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return 3

    opened = files.pathlib.Path.open
    monkeypatch.setattr(
        files.pathlib.Path, "open", lambda *a, **k: Full(opened(*a, **k))
    )


@pytest.mark.quick
def test_a_full_disk_leaves_a_file_as_it_was_and_nothing_else(tmp_path, full_disk):
    path = tmp_path / "config.json"
    with open(path, "w") as file:
        file.write("before\n")
    with pytest.raises(OSError, match="No space left on device: .*config.json"):
        files.write_atomically(path, "after, and longer")
    with pytest.raises(OSError, match="No space left on device: .*config.json"):
        files.append(path, "a line\n")
    assert path.read_text() == "before\n" and names(tmp_path) == ["config.json"]


def test_a_file_that_cannot_be_written_is_named_before_any_work(tmp_path, monkeypatch):
    files.check_writable(tmp_path / "new" / "x.csv")
    assert names(tmp_path) == ["new"] and not names(tmp_path / "new")
    (tmp_path / "file").write_text("")
    for name, sentence in (("file/x.csv", "Not a directory"), ("new", "Is a dir")):
        with pytest.raises(OSError, match=sentence) as caught:
            files.check_writable(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)

    def refuse(*given, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "tmp1234")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    with pytest.raises(PermissionError) as caught:
        files.check_writable(tmp_path / "x.csv")
    assert caught.value.filename == str(tmp_path / "x.csv")


def test_a_line_is_appended_below_a_torn_one(tmp_path):
    path = tmp_path / "log"
    files.append(path, "one\n")
    files.append(path, "two\n")
    path.write_text(path.read_text() + "torn")
    files.append(path, "three\n")
    assert path.read_text() == "one\ntwo\ntorn\nthree\n"


def test_a_second_holder_is_refused_by_the_first_ones_number(tmp_path):
    path = tmp_path / "lock"
    with files.occupied(path, "runs/a"):
        with pytest.raises(ValueError, match=f"runs/a is being .* {os.getpid()} on "):
            with files.occupied(path, "runs/a"):
                pass
    with files.occupied(path, "runs/a"):  # let go of at the end
        pass


def test_without_locks_a_warning_stands_for_them(tmp_path, monkeypatch, caplog):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with files.occupied(tmp_path / "a", "a"), files.locked(tmp_path / "b"):
        pass
    assert "has no locks" in caplog.text
