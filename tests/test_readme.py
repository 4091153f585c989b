"""The programs and commands of the README and of the pages in docs run as pasted."""

import pathlib
import re
import runpy
import shlex
import sys

import jax
import numpy as np
import pytest

from ebmjax import metrics, objectives
from experiments.run.loop import run
from experiments.run.workdir import read_run
from experiments.score_based import images as score_based
from experiments.short_run import images as short_run
from experiments.tutorial.methods import METHODS

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
BLOCKS = {
    text
    for page in PAGES.values()
    for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
}
TESTED = (
    "eight_gaussians",
    "def energy(precision",
    "sliced_score_matching",
    "to_arviz",
    'load("runs/digits")',
    'load("runs/scores")',
)
"""Words by which the tests below find the programs that they run."""


def block(word):
    """Returns the program with a word in it, which several pages may show alike."""
    assert word in TESTED
    (found,) = [text for text in BLOCKS if word in text]
    return found


@pytest.mark.quick
def test_every_program_of_the_pages_is_run_by_a_test():
    assert BLOCKS == {block(word) for word in TESTED}


@pytest.mark.slow
def test_the_quickstart_prints_what_it_promises(capsys):
    with jax.numpy_rank_promotion("allow"):  # as in a user's program
        exec(compile(block("eight_gaussians"), "page.md", "exec"), {})
    printed = float(capsys.readouterr().out.split()[-1])
    # Eight separate normals: log 8 + log(2 pi e std^2) nats. Training is short, and
    # unadjusted chains are wider than their density: a tenth of a nat or two.
    entropy = np.log(8) + np.log(2 * np.pi * np.e * 0.15**2)
    assert abs(printed - entropy) < 0.3


@pytest.mark.slow
def test_ten_lines_sample_an_energy_of_ones_own(capsys):
    """x ~ N(0, 1) and y given x ~ N(sin 2x, 1/4), of variance 3/4 - exp(-8) / 2."""
    found = {}
    with jax.numpy_rank_promotion("allow"):  # as in a user's program
        exec(compile(block("def energy(precision"), "page.md", "exec"), found)
    assert "[" in capsys.readouterr().out
    draws = np.asarray(found["draws"], float)
    # Chains are independent: the spread of their means is the error of the mean of all.
    for values, expected in ((draws, 0.0), (draws**2, [1, 0.75 - np.exp(-8) / 2])):
        of_chains = values.mean(0)
        error = 5 * of_chains.std(0) / len(of_chains) ** 0.5
        assert (np.abs(of_chains.mean(0) - expected) < error).all()
    sizes = metrics.effective_sample_size(found["draws"])
    assert (sizes > 0.02 * draws.shape[0] * draws.shape[1]).all()
    # Half chains of 250 draws, of which thirty are independent: 1 + 1 / (2 x 30).
    assert (metrics.potential_scale_reduction(found["draws"]) < 1.03).all()


def test_chains_with_conditions_and_positions_of_two_arrays_reach_arviz(capsys):
    """a ~ N(centre, 1/4) and b ~ N(0, 1), by 1,000 draws of each of eight chains."""
    pytest.importorskip("arviz")
    found = {}
    with jax.numpy_rank_promotion("allow"):  # as in a user's program
        exec(compile(block("to_arviz"), "page.md", "exec"), found)
    assert "b[1]" in capsys.readouterr().out
    a, b = (np.asarray(found["draws"][name], float) for name in "ab")
    np.testing.assert_allclose(a.mean(0), [0] * 4 + [3] * 4, atol=0.1)
    np.testing.assert_allclose([a[:, :4].var(), b.var()], [0.25, 1], rtol=0.1)


def test_fifteen_lines_train_an_energy_on_ones_own_array(capsys):
    """The score of N(1, 4) in three dimensions has a mean square of 3 / 4."""
    found = {}
    with jax.numpy_rank_promotion("allow"):  # as in a user's program
        exec(compile(block("sliced_score_matching"), "page.md", "exec"), found)
        gradients = jax.vmap(jax.grad(found["energy_fn"]))(found["data"])
    assert len(capsys.readouterr().out.split()) > 6
    error = ((np.asarray(gradients) - (found["data"] - 1) / 4) ** 2).sum(1).mean()
    assert error < 0.1 * 0.75


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_a_trained_energy_is_loaded_scored_and_sampled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = short_run.get_config().unlock()
    config.train.num_steps = 2
    config.network.width = 4
    config.evaluation.update(
        num_samples=16,
        chunk_size=16,
        num_shown=4,
        num_inverted=4,
        num_iterations=2,
        long_run_steps=0,
        classifier_steps=0,
    )
    run(short_run.build, config.lock(), "runs/digits")
    found = {}
    exec(compile(block('load("runs/digits")'), "page.md", "exec"), found)
    assert found["images"].shape == (100, 8, 8, 1)
    # The chains have moved from noise on [-1, 1], by noise of 0.01 at each of 20 moves.
    assert 1.0 < np.abs(found["images"]).max() < 3.0
    network, params = found["trained"].networks["energy"], found["trained"].params
    energies = jax.vmap(network.apply, (None, 0))(params["energy"], found["images"])
    np.testing.assert_allclose(found["energies"], energies, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_a_trained_score_is_loaded_sampled_and_has_likelihoods(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = score_based.get_config().unlock()
    config.train.num_steps = 2
    config.network.widths = (2,)
    config.evaluation.sampler.update(num_steps=3, num_corrections=0)
    config.evaluation.update(
        num_samples=0, num_shown=2, chunk_size=2, num_likelihoods=0, num_inpainted=0
    )
    run(score_based.build, config.lock(), "runs/scores")
    found = {}
    exec(compile(block('load("runs/scores")'), "page.md", "exec"), found)
    assert found["images"].shape == (100, 8, 8, 1)
    assert found["score"].shape == (8, 8, 1)
    # With scores of next to nothing the flow stays, to rounding: the likelihood is the
    # prior's. That it is one of flows is tested elsewhere.
    scale = read_run(pathlib.Path("runs/scores"))["facts"]["largest_distance"]
    images = np.asarray(found["images"], float)
    squares = (images**2).sum((1, 2, 3)) / scale**2
    prior = -0.5 * squares - 32 * np.log(2 * np.pi) - 64 * np.log(scale)
    assert np.abs(np.asarray(found["log_prob"]) - prior).max() < 0.01


COMMANDS = sorted(
    {
        shlex.join(shlex.split(line))
        for page in PAGES.values()
        for text in re.findall(r"^```.*\n([^`]*)^```$", page, re.MULTILINE)
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("python -m experiments")
    }
    | {
        shlex.join(shlex.split(line))
        for page in PAGES.values()
        for line in re.findall(r"`(python -m experiments[^`]* --[^`]*)`", page)
    }
    | {
        shlex.join(shlex.split(f"python -m experiments.{line}"))
        for line in re.findall(
            r"\| `([a-z_.]+ --workdir=[^`]*)` \|", PAGES["README.md"]
        )
        if "METHOD" not in line
    }
)


WITHOUT_CONFIG = (
    "experiments.compare",
    "experiments.compile",
    "experiments.data.images",
    "experiments.gpu",
    "experiments.max_entropy.baselines",
    "experiments.models",
    "experiments.run.record",
    "experiments.sample",
    "experiments.score",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_pages_has_a_config(command, monkeypatch, capsys):
    """Each is given as it stands, and asked for its config instead of a run."""
    _, _, module, *arguments = shlex.split(command)
    if module == "experiments.generalized.mine":
        module = "experiments.generalized.curve"  # the pages copy that file
    if module in WITHOUT_CONFIG:
        arguments = ["--help"]
    else:
        arguments.append("--print_config")
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        assert not stop.code, stop.code
    assert capsys.readouterr().out


def sections(text):
    """Yields the title and the text of every section of a page."""
    for section in f"\n{text}".split("\n## ")[1:]:
        yield section.splitlines()[0], section


@pytest.mark.quick
@pytest.mark.parametrize(
    "page", [name for name in PAGES if name.startswith("docs/papers/")]
)
def test_the_results_have_their_commands(page):
    found = [
        (title, text)
        for title, text in sections(PAGES[page])
        if "<!-- figures " in text or "<!-- table " in text
    ]
    assert found
    for title, text in found:
        assert "\npython -m experiments." in text or "`make demo`" in text, title


@pytest.mark.quick
def test_the_table_of_methods_names_what_exists():
    table = PAGES["README.md"].split("## Methods")[1].split("\n## ")[0]
    rows = re.findall(
        r"^\| .*?\| .*?\| `([\w.]+)`.*? \| (.*?) \|$", table, re.MULTILINE
    )
    assert len(rows) >= 20
    for name, command in rows:
        name = name.removeprefix("objectives.")
        assert name in objectives.__all__, name
        if (method := command.split("= ")[-1].strip("`")) and "--" not in method:
            assert method in METHODS, method
