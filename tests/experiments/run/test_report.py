"""A run's page has all of the run in one file."""

import base64
import html.parser
import json
import logging
import re
import xml.etree.ElementTree

import pytest
from small_experiment import build, config

from experiments.run import report
from experiments.run.loop import run
from experiments.run.remote import to_path

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAA"
    "AElFTkSuQmCC"
)


class Page(html.parser.HTMLParser):
    """Counts the tags of a page, and keeps its text and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.text, self.sources, self.tags = "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href")]

    def handle_data(self, data):
        self.text += f"{data}\n"


@pytest.fixture
def workdir(tmp_path):
    """A run that was made by hand, with two evaluations, a figure and a table."""
    folder = tmp_path / "a & b"
    (folder / "figures").mkdir(parents=True)
    (folder / "config.json").write_text('{"seed": 7, "train": {"best": "<kl>"}}')
    lines = [
        {"kind": "train", "step": 5, "loss": 0.25},
        {"kind": "eval", "step": 5, "kl": 0.5},
        {"kind": "train", "step": 9, "loss": float("nan")},
        {"kind": "train", "step": 10, "loss": 0.125},
        {"kind": "eval", "step": 10, "kl": 0.0625},
    ]
    log = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "metrics.jsonl").write_text(log)
    (folder / "figures" / "plane.png").write_bytes(PIXEL)
    (folder / "figures" / ".half.png").write_bytes(b"half of a figure")
    table = "| name | kl |\n| --- | --- |\n| a<b | 1.5 |\n\nOver three seeds.\n"
    (folder / "figures" / "quality.md").write_text(table)
    return folder


def test_the_page_has_the_run_and_fetches_nothing(workdir):
    report.main([f"--workdir={workdir}"])
    page = Page((workdir / "report.html").read_text())
    for text in ("a & b", "train.best", "<kl>", "Evaluation of step 10", "0.0625"):
        assert f"{text}\n" in page.text
    assert "a<b\n" in page.text and "Over three seeds." in page.text
    assert page.tags.count("svg") == 2  # kl and loss, each at two steps or more
    (source,) = page.sources
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == PIXEL
    assert "http" not in (workdir / "report.html").read_text()


def test_a_curve_goes_from_corner_to_corner_of_its_axes(workdir):
    """The loss falls from 0.25 at step 5 to 0.125 at step 10, without what is NaN."""
    text = report.make_page(workdir)
    chart = re.search(r"train: loss</h4>(<svg.*?</svg>)", text)[1]
    root = xml.etree.ElementTree.fromstring(chart)
    points = root.find("polyline").get("points").split()
    left, right = report.LEFT, report.WIDTH - 10
    top, bottom = report.TOP, report.HEIGHT - report.BOTTOM
    found = [tuple(map(float, point.split(","))) for point in points]
    assert found == [(left, top), (right, bottom)]
    labels = [element.text for element in root.iter("text")]
    assert labels == ["0.25", "0.125", "step 5", "10"]


def test_a_long_curve_keeps_its_extremes():
    """At most 400 of 10,000 points are drawn, and two of these stand out."""
    points = [(step, 0.0) for step in range(10_000)]
    points[4_321], points[7_777] = (4_321, 5.0), (7_777, -3.0)
    thin = report.thin_out(points, 400)
    assert len(thin) <= 400 and thin == sorted(thin)
    assert {(4_321, 5.0), (7_777, -3.0)} <= set(thin)
    assert report.thin_out(points[:300], 400) == points[:300]


def test_an_evaluation_writes_the_page_with_the_command_and_commit(tmp_path):
    scalars = run(build, config(train__num_steps=5), tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    record = json.loads((tmp_path / "run.json").read_text())
    assert f"{record['command']}\n" in page.text
    assert f"{record['commit'] or 'unknown'}\n" in page.text
    assert f"{scalars['draw']:.6g}\n" in page.text and "step 5" in page.text


def test_a_page_that_cannot_be_written_leaves_the_run_and_the_old_page(
    workdir, monkeypatch, caplog
):
    (workdir / "report.html").write_text("old")
    (workdir / "config.json").write_text("{")
    with caplog.at_level(logging.WARNING, logger="absl"):
        report.try_report(workdir, "run")
    assert (workdir / "report.html").read_text() == "old"
    assert "report.html is not written" in caplog.text


def test_every_run_of_a_sweep_has_a_page_and_a_url_is_a_workdir(workdir, tmp_path):
    cells = tmp_path / "sweep" / "cells"
    cells.mkdir(parents=True)
    for name in ("a,0", "a #1,1"):
        (cells / name).mkdir()
        (cells / name / "config.json").write_text("{}")
    (tmp_path / "sweep" / "table.md").write_text("| cell | kl |\n|---|---|\n| a | 2 |")
    report.main([f"--workdir={tmp_path / 'sweep'}"])
    page = Page((tmp_path / "sweep" / "report.html").read_text())
    names = ["a%20%231,1", "a,0"]  # as addresses have them
    assert page.sources == [f"cells/{name}/report.html" for name in names]
    assert "kl\n" in page.text and "2\n" in page.text
    stored = to_path(f"memory://{tmp_path.name}")
    for path in [p for p in workdir.rglob("*") if p.is_file()]:
        target = stored
        for part in path.relative_to(workdir).parts:
            target = target / part
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(path.read_bytes())
    report.write_report(stored)
    expected = report.make_page(workdir).replace("a &amp; b", tmp_path.name)
    assert (stored / "report.html").read_text() == expected


@pytest.mark.quick
def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(SystemExit) as stop:
        report.main([f"--workdir={tmp_path}"])
    assert str(stop.value) == f"error: {tmp_path} holds no run to report"
