"""Sweeps: restartable, with each cell run once, and tables over seeds."""

import json

import numpy as np
import pytest
from small_experiment import build, config, get_config, step_of

from experiments.run import sweep
from experiments.run.sweep import (
    Cell,
    Sweep,
    mean_and_spread,
    over,
    over_seeds,
    run_sweep,
)

SHORT = {"train.num_steps": 2}


def small_config(preset="small"):
    return get_config(preset)


def run_small(plan, workdir, **options):
    return run_sweep(build, small_config, plan, workdir, given=SHORT, **options)


def test_a_table_has_the_mean_and_spread_of_the_seeds(tmp_path):
    table = run_small(Sweep({"a": Cell(""), "b": Cell("long")}, num_seeds=2), tmp_path)
    draws = []
    for seed in (0, 1):
        text = (tmp_path / "cells" / f"a,{seed}" / "metrics.jsonl").read_text()
        draws.append(json.loads(text.splitlines()[-1])["draw"])
    (row,) = [x for x in table.splitlines() if x.startswith("| a |")]
    assert mean_and_spread(draws, 4) in row and row.endswith("| 2 |")
    assert "evaluation_seconds" not in table
    # Cells of one config are one run.
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == ["a,0", "a,1"]


def test_what_has_ended_is_not_run_again(tmp_path, monkeypatch):
    plan = Sweep({"a": Cell(""), "b": Cell("", {"data.std": 3.0})}, ("draw",))
    first = run_small(plan, tmp_path, cells="a")
    assert "| draw |" in first.replace("measure", "") and "b" not in first.split()
    runs = []

    def record(build, config, folder):
        runs.append(folder.name)
        return original(build, config, folder)

    original = sweep.run
    monkeypatch.setattr(sweep, "run", record)
    run_small(plan, tmp_path)
    assert runs == ["b,0"]
    run_small(plan, tmp_path)
    assert runs == ["b,0"]


def test_a_run_that_diverges_is_left_with_its_reason(tmp_path):
    cells = {"bad": Cell("", {"nan_at": 1}), "good": Cell("")}
    seen = []
    plan = Sweep(cells, finish=lambda rows, workdir: seen.extend(rows))
    table = run_small(plan, tmp_path)
    reason = (tmp_path / "cells" / "bad,0" / "failure.txt").read_text()
    assert "step 2: energy/" in reason and "is nan" in reason
    assert [(x.name, x.num_ended, x.num_failed) for x in seen] == [
        ("bad", 0, 1),
        ("good", 1, 0),
    ]
    assert "precision" in table
    before = (tmp_path / "cells" / "bad,0" / "metrics.jsonl").read_text()
    run_small(plan, tmp_path)
    assert (tmp_path / "cells" / "bad,0" / "metrics.jsonl").read_text() == before


def test_a_plan_chooses_the_evaluation_and_writes_the_table(tmp_path):
    def choose(evaluations, has_ended):
        assert has_ended and list(evaluations) == [1, 2]
        return {"first": evaluations[1]["precision"]}

    def table(rows, columns):
        assert columns == ("x",)
        return f"{rows[0].name}: {rows[0].found[0]['first'] > 0}"

    plan = Sweep(
        {"a": Cell("", {"train.eval_every": 1})}, ("x",), choose=choose, table=table
    )
    assert run_small(plan, tmp_path) == "a: True"


def test_a_cell_with_a_reason_is_left_out(tmp_path, capsys):
    plan = Sweep(
        {"a": Cell(""), "b": Cell("", {"data.std": 3.0})},
        skip=lambda config: "too wide" if config.data.std > 2 else "",
    )
    run_small(plan, tmp_path)
    assert [p.name for p in (tmp_path / "cells").iterdir()] == ["a,0"]
    assert "cell b is left out: too wide" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cells": "c*"}, "--cells must match some of"),
        ({"cells": "0/2"}, "--cells=i/n must have 1 <= i <= n, got '0/2'"),
        ({"cells": "3/2"}, "--cells=i/n must have 1 <= i <= n, got '3/2'"),
        ({"cells": "1/0"}, "--cells=i/n must have 1 <= i <= n, got '1/0'"),
        ({"cells": "-1/2"}, "--cells=i/n must have 1 <= i <= n, got '-1/2'"),
        ({"cells": "1.5/2"}, "or be a share 'i/n', got '1.5/2'"),
        ({"given": {"data.width": 1}}, "no cell of the sweep has the options"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_run(
    options, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        run_sweep(build, small_config, Sweep({"a": Cell("")}), tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_machines_that_share_a_sweep_run_every_nth_of_its_runs(tmp_path):
    """Four runs on three machines, of which the last one draws the picture."""
    drawn = []
    plan = Sweep(
        {"a": Cell(""), "same": Cell("long"), "b": Cell("", {"data.std": 3.0})},
        finish=lambda rows, workdir: drawn.append([row.num_ended for row in rows]),
    )
    cells = tmp_path / "cells"
    options = {"num_seeds": 2, "cells": "1/3"}
    table = run_small(plan, tmp_path, **options)
    assert sorted(p.name for p in cells.iterdir()) == ["a,0", "b,1"]
    assert "| a |" in table and "| b |" in table and not drawn
    run_small(plan, tmp_path, **options | {"cells": "3/3"})
    run_small(plan, tmp_path, **options | {"cells": "2/3"})
    assert sorted(p.name for p in cells.iterdir()) == ["a,0", "a,1", "b,0", "b,1"]
    assert drawn == [[2, 2, 2]]
    run_small(plan, tmp_path, **options | {"cells": "9/9"})  # has no run to make
    assert len(drawn) == 2


def test_another_run_in_a_cell_s_folder_is_refused(tmp_path):
    run_small(Sweep({"a": Cell("")}), tmp_path)
    with pytest.raises(ValueError, match="data.std: 2.0 -> 3.0"):
        run_small(Sweep({"a": Cell("", {"data.std": 3.0})}), tmp_path)
    assert step_of(tmp_path / "cells" / "a,0") == 2


def test_a_cell_s_own_overrides_win_over_what_is_given(tmp_path):
    plan = Sweep({"a": Cell("", {"train.num_steps": 1})})
    run_small(plan, tmp_path)
    assert step_of(tmp_path / "cells" / "a,0") == 1


def test_axes_are_crossed_and_tuples_stay_whole():
    plan = over(None, "small", ["a.b=1,2", "c=(3, 4),(5,)"])
    assert [cell.overrides for cell in plan.cells.values()] == [
        {"a.b": 1, "c": (3, 4)},
        {"a.b": 1, "c": (5,)},
        {"a.b": 2, "c": (3, 4)},
        {"a.b": 2, "c": (5,)},
    ]
    assert {cell.preset for cell in plan.cells.values()} == {"small"}
    assert list(over(None, "small", ()).cells) == ["small"]


def test_the_spread_is_the_standard_deviation_over_seeds():
    assert mean_and_spread([1.0, 3.0]) == f"2 ± {np.sqrt(2):.1g}"
    assert mean_and_spread([1.23456]) == "1.23"
    assert mean_and_spread([]) == "-"


def test_a_table_over_seeds_has_every_cell_and_a_dash_for_what_it_lacks():
    """The mean of 1, 2 and 3 is 2, and their standard deviation is 1."""
    found = {
        "a": [{"x": 1.0, "y": 5.0}, {"x": 2.0, "y": 5.0}, {"x": 3.0, "y": 5.0}],
        "b": [{"x": 7.0}],
        "c": [],
    }
    rows = [
        {"cell": "a", "x": "2 ± 1", "y": "5 ± 0", "seeds": "3"},
        {"cell": "b", "x": "7", "y": "-", "seeds": "1"},
        {"cell": "c", "x": "-", "y": "-", "seeds": "0"},
    ]
    assert over_seeds(found, ["x", "y"]) == rows
    only = [{k: v for k, v in row.items() if k != "y"} for row in rows]
    assert over_seeds(found, ["x"]) == only


@pytest.mark.quick
def test_a_wrong_type_in_a_cell_names_the_option():
    with pytest.raises(ValueError, match="data.std must be"):
        run_sweep(build, small_config, over(None, "", ["data.std=wide"]), "unused")
    assert config().data.std == 2.0
