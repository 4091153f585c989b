"""What trackers and TensorBoard receive of a run."""

import json
import sys
import types

import pytest
from PIL import Image
from small_experiment import build, config
from tensorboardX.proto.event_pb2 import Event

from experiments.run.loggers import Loggers, TensorBoard, make_loggers
from experiments.run.loop import run
from experiments.run.workdir import read_lines


class Fake:
    """A package with the interfaces of wandb, trackio and mlflow, which keeps calls."""

    def __init__(self):
        self.calls = []

    def Image(self, path):
        return ("image", path)

    def __getattr__(self, name):
        return lambda *values, **named: self.calls.append((name, values, named))


def read_events(folder):
    """All values of a folder's event files: `(step, value)`."""
    found = []
    for path in folder.iterdir():
        data, place = path.read_bytes(), 0
        while place < len(data):  # length, its checksum, the record and its checksum
            length = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + length])
            found += [(event.step, value) for value in event.summary.value]
            place += 16 + length
    return found


def draw(folder):
    """Writes a figure of three rows and two columns, all of them red."""
    folder.mkdir()
    Image.new("RGB", (2, 3), (255, 0, 0)).save(folder / "plane.png")
    (folder / ".plane.png.tmp.png").write_text("half of a figure")
    return folder


def test_tensorboard_has_the_config_the_options_and_the_figures(tmp_path):
    loggers = Loggers(name="run", config={"seed": 3, "train": {"best": "kl"}})
    loggers.begin(tmp_path, 0)
    loggers.scalars("train", 1, {"loss": 0.5})
    for step in (1, 2):
        loggers.scalars("eval", step, {"kl": 0.25})
    loggers.figures(2, draw(tmp_path / "figures"))
    loggers.end()
    found = read_events(tmp_path / "tensorboard")
    by_name = {value.tag: (step, value) for step, value in found}
    assert by_name["train/loss"][1].simple_value == 0.5
    text = by_name["config/text_summary"][1].tensor.string_val[0].decode()
    assert json.loads(text.strip("`\n")) == {"seed": 3, "train.best": "kl"}
    step, picture = by_name["figures/plane"]
    assert step == 2 and (picture.image.height, picture.image.width) == (3, 2)
    start = [x for _, x in found if x.tag == "_hparams_/session_start_info"]
    content = [x.metadata.plugin_data.content for x in start]
    assert len(content) == 1 and b"train.best" in content[0]
    metrics = by_name["_hparams_/experiment"][1].metadata.plugin_data.content
    assert b"eval/kl" in metrics and b"train/loss" not in metrics


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_receives_the_log_and_the_figures(name, tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, name, fake)
    loggers = Loggers(make_loggers([name]), "digits", {"train": {"num_steps": 2}})
    loggers.begin(tmp_path, 0)
    loggers.scalars("eval", 2, {"kl": 0.25})
    loggers.figures(2, draw(tmp_path / "figures"))
    loggers.end()
    image = ("image", str(tmp_path / "figures" / "plane.png"))
    assert fake.calls == [
        (
            "init",
            (),
            {"project": "ebmjax", "name": "digits", "config": {"train.num_steps": 2}},
        ),
        ("log", ({"eval/kl": 0.25},), {"step": 2}),
        ("log", ({"figures/plane": image},), {"step": 2}),
        ("finish", (), {}),
    ]


def test_mlflow_receives_the_log_and_the_figures(tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    loggers = Loggers(make_loggers(["mlflow"]), "digits", {"seed": 1})
    loggers.begin(tmp_path, 0)
    loggers.scalars("eval", 2, {"kl": 0.25})
    loggers.figures(2, draw(tmp_path / "figures"))
    loggers.end()
    assert fake.calls == [
        ("set_experiment", ("ebmjax",), {}),
        ("start_run", (), {"run_name": "digits"}),
        ("log_params", ({"seed": 1},), {}),
        ("log_metrics", ({"eval/kl": 0.25},), {"step": 2}),
        ("log_artifact", (str(tmp_path / "figures" / "plane.png"), "figures/2"), {}),
        ("end_run", (), {}),
    ]


def test_a_run_sends_every_line_of_its_log_to_a_tracker(tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    settings = config(train__num_steps=5)
    run(build, settings, tmp_path / "small", loggers=make_loggers(["wandb"]))
    (_, _, begun), *logged, ended = fake.calls
    assert begun["name"] == "small" and begun["config"]["train.num_steps"] == 5
    expected = [
        {f"{line['kind']}/{k}": v for k, v in line.items() if k not in ("kind", "step")}
        for line in read_lines(tmp_path / "small")
    ]
    assert [values for _, (values,), _ in logged] == expected and len(expected) == 2
    assert ended[0] == "finish"


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, monkeypatch):
    """The second of two trackers still receives what the first one refused."""
    good, calls = Fake(), []

    def fail(values, step):
        calls.append(step)
        raise ConnectionError("the server is away")

    bad = types.SimpleNamespace(init=lambda **named: None, log=fail)
    monkeypatch.setitem(sys.modules, "wandb", bad)
    monkeypatch.setitem(sys.modules, "trackio", good)
    loggers = Loggers(make_loggers(["wandb", "trackio"]))
    loggers.begin(tmp_path, 0)
    for step in (1, 2):
        loggers.scalars("train", step, {"loss": 0.5})
    loggers.end()
    assert calls == [1]
    assert [named["step"] for name, _, named in good.calls if name == "log"] == [1, 2]


@pytest.mark.quick
def test_a_tracker_that_is_missing_or_unknown_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(ValueError, match="needs the package wandb: pip install wandb"):
        make_loggers(["wandb"])
    with pytest.raises(ValueError, match="--log_to must be some of .*'comet'"):
        make_loggers(["comet"])


def test_without_tensorboardx_a_run_is_logged_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    events = TensorBoard()
    events.begin(tmp_path, "run", {}, 0)
    events.scalars(1, {"train/loss": 0.5})
    events.end()
    assert not list(tmp_path.iterdir())
