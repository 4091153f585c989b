"""Workdirs that are not local: runs on them are those of a disk, and nothing torn."""

import json
import os
import pathlib
import shutil
import sys

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from small_experiment import build, config, get_config, load, state_of, step_of

import experiments
from experiments.run import record, remote
from experiments.run.errors import CheckpointError
from experiments.run.files import Occupied
from experiments.run.loop import run
from experiments.run.remote import FsspecPath, fetched, mirrored, to_path
from experiments.run.sweep import Cell, Sweep, run_sweep
from experiments.run.workdir import read_lines

assert load  # `experiments.load` finds it


@epath.register_path_cls("shelf://")
class Shelf(epath.Path):
    """A store below the folder `Shelf.root`, with the methods that `epath` asks for."""

    root: pathlib.Path

    def _local(self):
        return self.root.joinpath(*self.parts[1:])

    def __fspath__(self):
        return "shelf://" + "/".join(self.parts[1:])

    __str__ = __fspath__

    def exists(self):
        return self._local().exists()

    def is_dir(self):
        return self._local().is_dir()

    def iterdir(self):
        return (self / name for name in sorted(os.listdir(self._local())))

    def open(self, mode="r", encoding=None, errors=None):
        assert "a" not in mode and "+" not in mode
        return self._local().open(mode)

    def mkdir(self, mode=0o777, parents=False, exist_ok=False):
        self._local().mkdir(parents=parents, exist_ok=exist_ok)

    def unlink(self, missing_ok=False):
        self._local().unlink(missing_ok=missing_ok)

    def rmtree(self, missing_ok=False):
        shutil.rmtree(self._local(), ignore_errors=missing_ok)


@pytest.fixture(params=["memory", "file", "shelf"])
def workdir(request, tmp_path):
    """A workdir in memory and one on a disk, both behind fsspec, and one of `epath`."""
    Shelf.root = tmp_path / "shelf"
    Shelf.root.mkdir()
    roots = {"memory": "memory://", "file": f"file://{tmp_path}/", "shelf": "shelf://"}
    # A name that a file or folder of the run has too must not confuse a listing.
    yield f"{roots[request.param]}runs/checkpoints"
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]


in_memory = pytest.mark.parametrize("workdir", ["memory"], indirect=True)


def without_clock(workdir):
    clock = ("seconds", "_per_second")
    return [
        {name: value for name, value in line.items() if not name.endswith(clock)}
        for line in read_lines(to_path(workdir))
    ]


def names(path):
    return sorted(inner.name for inner in to_path(path).iterdir())


class Killed(BaseException):
    """Ends a run as a signal does, of which no block may take notice."""


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    run(build, config(), folder)
    return folder


def build_that_dies_at(step, monkeypatch):
    """Returns a build whose process dies at a step, and sends nothing after that."""
    is_alive, send = [True], remote.Mirror.send
    monkeypatch.setattr("experiments.run.experiment.MOST_STEPS", 1)
    monkeypatch.setattr(remote.Mirror, "send", lambda self: is_alive[0] and send(self))
    monkeypatch.setattr(remote.Mirror, "end", lambda self: None)

    def build_killed(settings, keys):
        experiment = build(settings, keys)

        def batch(at):
            if at == step:
                is_alive[0] = False
                raise Killed
            return experiment.batch(at)

        return experiment._replace(batch=batch)

    return build_killed


def test_a_run_trains_is_killed_resumes_and_is_evaluated_as_on_a_disk(
    workdir, straight, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        run(build_that_dies_at(33, patch), config(), workdir)
    assert step_of(workdir) == 30
    scalars = run(build, config(), workdir)
    jax.tree.map(np.testing.assert_array_equal, state_of(straight), state_of(workdir))
    assert without_clock(workdir) == without_clock(straight)
    assert names(f"{workdir}/checkpoints") == names(straight / "checkpoints")
    assert (to_path(workdir) / "figures" / "seen.txt").read_bytes() == b"40"
    assert {"tensorboard", "samples.npz"} <= set(names(workdir))
    page = (to_path(workdir) / "report.html").read_text()
    assert f"<h1>{to_path(workdir).name}</h1>" in page
    assert not (to_path(workdir) / ".trainer.lock").exists()
    assert run(build, config(), workdir, evaluate_only=True) == scalars
    assert without_clock(workdir)[-1] == without_clock(straight)[-1]
    trained, known = experiments.load(workdir), experiments.load(straight)
    key = jax.random.key(3)
    np.testing.assert_array_equal(trained.sample(key, 4), known.sample(key, 4))
    assert not pathlib.Path(workdir.partition("/")[0]).exists()  # a folder `memory:`


@in_memory
@pytest.mark.parametrize("num_files", [1, 4, 19, 35, 45])
def test_a_copy_that_a_kill_tore_is_never_used(num_files, workdir, monkeypatch):
    """The store takes so many files, and half of another one that is an array: it has
    the log alone, a part of the first checkpoint, all but its digests, or the second.
    """
    settings, taken = config(train__num_steps=10, train__eval_every=0), []

    def copy_until_killed(source, target):
        taken.append(target)
        if len(taken) > num_files:
            is_array = target.parent.name == "d"
            if len(taken) == num_files + 1 and is_array:
                data = source.read_bytes()
                with target.open("wb") as file:
                    file.write(data[: len(data) // 2])
            raise Killed
        copy_file(source, target)

    with monkeypatch.context() as patch:
        copy_file = remote.copy_file
        patch.setattr(remote, "copy_file", copy_until_killed)
        with pytest.raises(Killed):
            run(build, settings, workdir)
    run(build, settings, workdir)
    whole = f"{workdir}-whole"
    run(build, settings, whole)
    jax.tree.map(np.testing.assert_array_equal, state_of(whole), state_of(workdir))
    assert without_clock(workdir) == without_clock(whole)
    # What is left of the torn copy is gone.
    for step in names(f"{workdir}/checkpoints"):
        found = dict(remote.walk(to_path(f"{workdir}/checkpoints/{step}"), ""))
        digests = json.loads(found["/digests.json"].read_bytes())
        assert {f"/{name}" for name in digests} | {"/digests.json"} == set(found)


@in_memory
def test_a_checkpoint_that_has_changed_in_the_store_is_set_aside(workdir, caplog):
    settings = config(train__num_steps=10, train__eval_every=0)
    run(build, settings, workdir)
    whole = state_of(workdir)
    for _, path in remote.walk(to_path(f"{workdir}/checkpoints/10/params"), ""):
        data = bytearray(path.read_bytes())
        if data:
            data[len(data) // 2] ^= 1
            with path.open("wb") as file:
                file.write(bytes(data))
    assert step_of(workdir) == 5
    run(build, settings, workdir)
    jax.tree.map(np.testing.assert_array_equal, whole, state_of(workdir))
    assert names(f"{workdir}/checkpoints") == ["10", "10.unreadable", "5"]


@in_memory
def test_a_process_that_began_later_trains_and_the_earlier_one_stops(
    workdir, monkeypatch
):
    monkeypatch.setattr("experiments.run.experiment.MOST_STEPS", 1)
    settings = config(train__num_steps=15, train__eval_every=0)

    def build_overtaken(settings, keys):
        experiment = build(settings, keys)

        def batch(step):
            if step == 7 and not ended:
                ended.append(run(build, settings, workdir))
            return experiment.batch(step)

        return experiment._replace(batch=batch)

    ended = []
    with pytest.raises(Occupied, match=f"{workdir} is now being trained by another"):
        run(build_overtaken, settings, workdir)
    assert ended and step_of(workdir) == 15
    steps = [line["step"] for line in read_lines(to_path(workdir))]
    assert steps == [5, 10, 15, 15]


@in_memory
def test_an_evaluation_and_the_training_beside_it_lose_no_line(workdir, monkeypatch):
    monkeypatch.setattr("experiments.run.experiment.MOST_STEPS", 1)
    settings = config(train__num_steps=15, train__eval_every=0)

    def build_evaluated(settings, keys):
        experiment = build(settings, keys)

        def batch(step):
            if step == 7 and not found:
                found.update(run(build, settings, workdir, evaluate_only=True))
            return experiment.batch(step)

        return experiment._replace(batch=batch)

    found = {}
    run(build_evaluated, settings, workdir)
    seen = {(line["kind"], line["step"]) for line in read_lines(to_path(workdir))}
    assert seen == {
        ("train", 5),
        ("train", 10),
        ("train", 15),
        ("eval", 5),
        ("eval", 15),
    }


@in_memory
def test_another_run_and_no_run_are_refused_and_nothing_is_written(workdir):
    with pytest.raises(FileNotFoundError, match=f"{workdir} holds no run to evaluate"):
        run(build, config(), workdir, evaluate_only=True)
    with pytest.raises(FileNotFoundError, match=f"{workdir} holds no run: {workdir}/"):
        experiments.load(workdir)
    with pytest.raises(Killed), mirrored(to_path(workdir), trains=True) as (folder, _):
        (folder / "written.txt").touch()
        raise Killed  # before it has begun to train
    assert not to_path(workdir).exists()
    run(build, config(train__num_steps=2), workdir)
    with pytest.raises(ValueError, match=f"(?s){workdir} holds another .* 0 -> 1"):
        run(build, config(seed=1), workdir)
    with pytest.raises(
        FileNotFoundError, match=f"{workdir}/checkpoints holds .* not 1"
    ):
        experiments.load(workdir, step=1)


@pytest.mark.quick
@pytest.mark.parametrize(
    "place, message",
    [
        ("foo://bar/run", "foo://bar/run cannot be used: Protocol not known: foo"),
        ("gs://bucket/run", "gs://bucket/run cannot be used: Please install gcsfs"),
        (epath.Path("gs://b/run"), "gs://b/run cannot be used: Please install gcsfs"),
        ("http://host/run", "but http:// can only be read"),
        ("https://host/run", "but https:// can only be read"),
        (
            pathlib.Path("gs://b/run"),
            "gs:/b/run must have two slashes after its scheme",
        ),
    ],
)
def test_a_workdir_that_nothing_can_write_is_refused_and_nothing_is_made(
    place, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=f"^workdir .*{message}"):
        run(build, config(), place)
    with pytest.raises(ValueError, match=f"^workdir .*{message}"):
        run_sweep(build, get_config, Sweep({"a": Cell("")}), place)
    with pytest.raises(ValueError, match=f"^workdir .*{message}"):
        experiments.load(place)
    assert not list(tmp_path.iterdir())


def test_a_path_of_fsspec_has_parts():
    top = to_path("memory://")
    path = top / "a" / "b/c"
    assert (str(path), path.name) == ("memory://a/b/c", "c")
    assert [str(x) for x in (path.parent, path.parent.parent)] == [
        "memory://a/b",
        "memory://a",
    ]
    assert str(to_path("memory://a/b/")) == "memory://a/b"
    assert top.is_dir() and not path.exists()
    assert not any(top.iterdir())


def test_paths_without_a_scheme_are_local(tmp_path):
    for place in (tmp_path, str(tmp_path), epath.Path(tmp_path)):
        assert to_path(place) == tmp_path and isinstance(to_path(place), pathlib.Path)
    with mirrored(tmp_path, trains=True) as (folder, send), fetched(tmp_path) as other:
        assert folder is other is tmp_path and send() is None


@in_memory
def test_a_store_that_fails_is_one_sentence(workdir, monkeypatch):
    def fail(self, *options, **others):
        raise OSError("the bucket is gone")

    monkeypatch.setattr(FsspecPath, "open", fail)
    with pytest.raises(CheckpointError, match="could not be written: the bucket"):
        run(build, config(), workdir)
    monkeypatch.undo()
    run(build, config(train__num_steps=2), workdir)
    monkeypatch.setattr(FsspecPath, "open", fail)
    with pytest.raises(CheckpointError, match="could not be read: the bucket"):
        experiments.load(workdir)


@in_memory
def test_a_sweep_is_shared_by_machines_and_recorded(workdir, capsys):
    """Two of the four runs on each; the last one to end draws the picture."""
    cells = {"a": Cell(""), "b": Cell("", {"data.std": 3.0})}
    drawn = []

    def finish(rows, folder):
        drawn.append([row.num_ended for row in rows])
        (folder / "picture.txt").write_text("drawn")
        assert load_first(rows) == 2

    def load_first(rows):
        return len(experiments.load(rows[0].folders[0]).params["energy"]["mean"])

    plan = Sweep(cells, num_seeds=2, finish=finish)
    options = {"given": {"train.num_steps": 2}}
    run_sweep(build, get_config, plan, workdir, cells="1/2", **options)
    assert names(f"{workdir}/cells") == ["a,0", "b,0"] and not drawn
    table = run_sweep(build, get_config, plan, workdir, cells="2/2", **options)
    assert names(f"{workdir}/cells") == ["a,0", "a,1", "b,0", "b,1"]
    assert drawn == [[2, 2]] and f"{workdir}/cells" not in capsys.readouterr().err
    assert names(workdir) == ["cells", "picture.txt", "table.md"]
    assert (to_path(workdir) / "table.md").read_text() == table
    assert record.record(to_path(workdir)).startswith(table)


def test_the_folder_of_a_process_that_was_killed_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"{remote.PREFIX}left"
    left.mkdir()
    (left / remote.LOCK).touch()
    with fetched(to_path("memory://none")) as folder:
        assert len(names(tmp_path)) == 2  # another process may be making it
    os.utime(left / remote.LOCK, (0, 0))
    with fetched(to_path("memory://none")) as folder:
        assert names(tmp_path) == [folder.parent.name]
        with fetched(to_path("memory://none")):  # one that is in use stays
            assert len(names(tmp_path)) == 2
    assert not names(tmp_path)
