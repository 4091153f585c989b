"""The benchmark: what it refuses, what it writes, and that its processes take turns."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.run.cli import command_line
from experiments.run.errors import CommandError
from experiments.throughput import __main__ as throughput
from experiments.throughput import floors, process
from experiments.throughput.contest import PLAIN, Contest, cells
from experiments.throughput.samplers import SAMPLERS, WORKLOADS
from experiments.throughput.tables import table
from experiments.throughput.verify import verify
from experiments.throughput.workload import DEVICES


def test_every_preset_has_cells_of_every_workload_and_sampler():
    found = cells(throughput.get_config())
    assert {cell.workload for cell in found} == set(WORKLOADS)
    for cell in found:
        # The gradient with which a run begins is little of it.
        assert cell.num_steps >= (4 if cell.num_chains > 64 else 40)
        assert (cell.num_leapfrog > 0) == (cell.sampler == "hmc")
        assert process.starts(cell._replace(num_chains=3)).shape[0] == 3
    assert max(cell.num_chains for cell in found) == 100_000
    with pytest.raises(ValueError, match="preset must be.*'tiny'"):
        throughput.get_config("tiny")


@pytest.mark.quick
def test_a_number_that_cannot_be_measured_is_refused_by_its_name(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "Process", Clock)  # none is started in any case
    folder = tmp_path / "bench"
    known = throughput.get_config().to_dict()
    names = sorted(x for x, value in known.items() if isinstance(value, int | float))
    assert names == [
        "most_chains",
        "most_chains_of_all",
        "num_image_rounds",
        "num_rounds",
        "seconds",
        "seed",
        "width",
    ]
    for given, message in (
        *((f"{name}=-1", f"{name} must .*, got -1") for name in names),
        *((f"{name}=None", f"{name} must be .*, got 'None'") for name in names),
        ("num_rounds=0", "num_rounds must be a whole number of at least 1, got 0$"),
        (
            "num_image_rounds=0",
            "num_image_rounds must be a whole .* at least 1, got 0$",
        ),
        ("seconds=0", "seconds must be positive, got 0.0$"),
        ("seconds=inf", "seconds must be a finite number, got inf$"),
        ("width=0", "width must be positive, got 0$"),
        ("num_chains=64,0", r"num_chains must be a tuple of .*, got \(64, 0\)$"),
        ("num_chains=()", r"num_chains must be a tuple of one or more .*, got \(\)$"),
        ("num_image_chains=0.5,", r"num_image_chains must be a tuple.*\(0.5,\)$"),
        ("workloads=()", r"workloads must be a tuple of one or more names, got \(\)$"),
        ("samplers=1,2", r"samplers must be a tuple of .* names, got \(1, 2\)$"),
        ("preset=largst", "preset must be one of .*, got 'largst'; did you mean"),
    ):
        monkeypatch.setattr(
            "sys.argv", ["throughput", f"--workdir={folder}", f"--config.{given}"]
        )
        with pytest.raises(SystemExit, match=f"^error: {message}"):
            command_line(throughput.start, throughput, throughput.__file__)
    assert not folder.exists()


@pytest.mark.quick
def test_the_other_presets_refuse_what_they_cannot_measure(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "Process", Clock)
    for preset in ("scaling", "largest"):
        config = throughput.get_config(preset).unlock()
        config.workloads = ("banana",)
        with pytest.raises(ValueError, match="workloads must be one of.*'banana'"):
            throughput.measure_all(config, tmp_path / "bench")
    config.update(workloads=("mlp",), most_chains=63)
    with pytest.raises(ValueError, match="most_chains must be .*64, got 63"):
        throughput.measure_all(config, tmp_path / "bench")
    assert not (tmp_path / "bench").exists()


@pytest.mark.quick
def test_unknown_names_are_refused_before_anything_starts(tmp_path):
    config = throughput.get_config("small").unlock()
    config.workloads = ("gaussian", "banana")
    with pytest.raises(ValueError, match="workloads must be one of.*got 'banana'"):
        throughput.measure_all(config, tmp_path)
    config.workloads, config.samplers = ("gaussian",), ("underdampd",)
    with pytest.raises(ValueError, match="did you mean 'underdamped'"):
        throughput.measure_all(config, tmp_path)
    config.samplers, config.contenders = ("langevin",), ("ebmjax",)
    with pytest.raises(ValueError, match="contenders must have 'plain scan'"):
        throughput.measure_all(config, tmp_path)
    config.contenders = ("ebmjax", "jaxebm", PLAIN)
    with pytest.raises(ValueError, match="contenders must be one of.*got 'jaxebm'"):
        throughput.measure_all(config, tmp_path)


def test_tables_have_a_line_a_cell_and_say_who_is_missing():
    row = {"workload": "mlp", "sampler": "mala", "num_chains": 1000}
    rows = [
        row | {"contender": "plain scan", "seconds_per_move": 4e-4, "ratio": 1.0},
        row | {"contender": "torchebm", "skipped": "NotImplementedError: no MALA"},
        row
        | {
            "contender": "ebmjax",
            "seconds_per_move": 2e-4,
            "ratio": 0.5,
            "ratio_low": 0.45,
            "ratio_high": 0.6,
        },
    ]
    assert table(rows) == (
        "| cell | plain scan, µs a move | torchebm | ebmjax |\n"
        "| --- | --- | --- | --- |\n"
        "| mlp, mala, 1,000 | 400 | none | 0.50 (0.45-0.60) |\n"
    )


class Clock:
    """In place of a process: runs of known lengths, and a record of turns."""

    turns = []

    def __init__(self, name, extra=None):
        self.name = name

    def ask(self, do, **request):
        if do == "verify":
            return {"skipped": "ImportError: torch"} if self.name == "tfp" else {}
        if do == "build":
            return {
                "first_seconds": 3.0,
                "build_seconds": 0.1,
                "settings": "",
                "peak_bytes": 2**21,
                "is_finite": self.name != "numpyro",
            }
        if do == "measure":
            return {
                "gradient_seconds": 0.01,
                "noise_seconds": 0.005,
                "gradient_flops": 1e6,
                "matmul_flops_per_second": 1e9,
            }
        Clock.turns.append((request["seed"], self.name))
        seconds = {PLAIN: [0.2, 0.4, 0.8], "ebmjax": [0.1, 0.3, 0.2]}
        return {"seconds": seconds.get(self.name, [1.0] * 3)[request["seed"] - 1]}

    def close(self):
        pass


def test_ratios_are_taken_within_rounds(monkeypatch):
    monkeypatch.setattr(process, "Process", Clock)
    Clock.turns = []
    names = ["ebmjax", PLAIN, "blackjax", "tfp"]
    cell = process.Cell("mlp", "hmc", 0.1, 10, 500, 2, 32)
    with Contest(names) as contest:
        ours, plain, peer, absent = contest.rows(cell, names, 3)
    assert absent["skipped"] == "ImportError: torch" and "ratio" not in absent
    assert plain["ratio"] == 1.0
    # Ratios .5, .75, .25; medians .2 and .4 of the times.
    ratios = ours["ratio"], ours["ratio_low"], ours["ratio_high"]
    np.testing.assert_allclose(ratios, (0.5, 0.25, 0.75))
    np.testing.assert_allclose(ours["seconds_per_move"], 0.1)
    np.testing.assert_allclose(ours["compile_seconds"], 2.8)
    np.testing.assert_allclose(ours["moves_per_second"], 5_000)
    np.testing.assert_allclose(ours["gradients_per_second"], 50_000)
    np.testing.assert_allclose(ours["overhead"], 0.1 / (10 * 0.01 + 0.005))
    np.testing.assert_allclose(ours["share_of_matmul"], 10 * 1e6 / 0.1 / 1e9)
    np.testing.assert_allclose(ours["peak_mib"], 2.0)
    assert "overhead" not in peer
    # Everyone once a round, another first every time.
    firsts = [Clock.turns[3 * index][1] for index in range(3)]
    assert firsts == ["ebmjax", PLAIN, "blackjax"] and len(Clock.turns) == 9


def test_a_line_comes_before_each_long_silence(monkeypatch, capsys):
    said = []

    class Silent(Clock):
        def ask(self, do, **request):
            said.append((do, capsys.readouterr().err.splitlines()))
            return super().ask(do, **request)

    monkeypatch.setattr(process, "Process", Silent)
    cell = process.Cell("mlp", "hmc", 0.1, 10, 1_000, 2, 32)
    with Contest(["ebmjax", PLAIN]) as contest:
        contest.rows(cell, ["ebmjax", PLAIN], 2)
        first, said[:] = list(said), []
        contest.rows(cell, ["ebmjax", PLAIN], 1, measured=False)
    what = "mlp, hmc, 1,000 chains"
    assert first == [
        ("verify", ["checking the draws of ebmjax, hmc"]),
        ("verify", ["checking the draws of plain scan, hmc"]),
        ("build", [f"{what}: compiling"]),
        ("build", []),
        ("run", [f"{what}: timing 2 rounds"]),
        *[("run", [])] * 3,
        ("measure", [f"{what}: measuring gradients, random numbers and sample sizes"]),
    ]
    # Nothing is checked or measured a second time, nor announced.
    assert [do for do, _ in said] == ["build", "build", "run", "run"]
    assert said[0][1] == [f"{what}: compiling"]


def test_draws_that_are_not_finite_stop_the_benchmark(monkeypatch):
    monkeypatch.setattr(process, "Process", Clock)
    cell = process.Cell("mlp", "hmc", 0.1, 10, 500, 2, 32)
    with Contest(["numpyro"]) as contest:
        with pytest.raises(RuntimeError, match="numpyro: draws of .* are not finite"):
            contest.rows(cell, ["numpyro"], 1)


def test_the_largest_number_of_chains_is_the_last_that_fits(monkeypatch, tmp_path):
    class Small(Clock):
        def ask(self, do, **request):
            if do == "build" and request["cell"].num_chains > 300:
                raise CommandError("ebmjax: build failed: RESOURCE_EXHAUSTED: memory")
            return super().ask(do, **request)

    monkeypatch.setattr(process, "Process", Small)
    config = throughput.get_config("largest").unlock()
    config.workloads = ("mlp", "latent")
    with pytest.raises(ValueError, match="most_chains must be given on a CPU"):
        throughput.measure_all(config, tmp_path)
    for most, expected in ((200, (128, False)), (10_000, (256, True))):
        config.most_chains = most
        throughput.measure_all(config, tmp_path)
        lines = (tmp_path / "largest.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        assert [row["workload"] for row in found] == ["mlp", "latent"]
        for row in found:
            assert (row["num_chains"], row["is_full"]) == expected


@pytest.mark.slow
def test_floors_count_operations():
    """Of the MLP 2 (2 128 + 128^2 + 128) in products, twice for the gradient, and a few
    for every unit; of 4x4 convolutions and their like, by hand, too."""
    cell = process.Cell("mlp", "langevin", 1e-3, 0, 64, 2, 4)
    found = floors.measure("threefry2x32", cell)
    products = 2 * 64 * 2 * (2 * 128 + 128**2 + 128)
    assert products < found["gradient_flops"] < 1.2 * products
    # Width 4, 28x28x1: 3x3 to 4 channels; 4x4, halving, to 8, 16, 32; 3x3x32 to one.
    cell = cell._replace(workload="conv 28x28x1")
    products = 784 * 9 * 4 + 196 * 64 * 8 + 49 * 128 * 16 + 9 * 256 * 32 + 9 * 32
    counted = floors.gradient_flops(cell)
    # Less at the borders, where windows meet zeros; more for biases and slopes.
    assert 0.7 < counted / (2 * 2 * products) < 1.2
    assert 1e8 < found["matmul_flops_per_second"] < 1e15


@pytest.mark.slow
def test_the_latent_space_is_that_of_the_papers_size():
    """4,568,961 and 4,305,409 parameters of the paper's networks for 28x28x1."""
    workload = process.workload("latent", 32)
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(params))
        for name, params in workload.params.items()
        if name != "generator_state"
    }
    assert sizes == {"generator": 4_568_961, "energy": 4_305_409}
    # The prior is in it: |z|^2 / 2 of a far latent, and an energy of images in [-1, 1].
    z = jnp.full(128, 10.0)
    np.testing.assert_allclose(workload.energy(workload.params, z), 6_400, atol=10)


@pytest.mark.parametrize("name", process.OURS)
@pytest.mark.parametrize("kernel", SAMPLERS)
def test_ours_are_verified_like_the_peers(name, kernel):
    verify(name, kernel, process.OURS[name])


def test_a_sampler_that_only_ours_has_makes_cells_and_a_table_without_ratios():
    config = throughput.get_config("small").unlock()
    config.samplers = ("underdamped",)
    (cell,) = cells(config)  # of vectors alone
    assert (cell.workload, cell.sampler) == ("gaussian", "underdamped")
    row = cell._asdict() | {"contender": "ebmjax", "seconds_per_move": 2e-4}
    missing = cell._asdict() | {"contender": PLAIN, "skipped": "no underdamped"}
    assert table([row, missing]).splitlines()[-1] == (
        "| gaussian, underdamped, 100 | none | 200 µs |"
    )
    config.workloads = ("latent",)
    with pytest.raises(ValueError, match="samplers must have one that runs on"):
        cells(config)


@pytest.mark.filterwarnings("error")
def test_times_without_ratios_make_no_figure(monkeypatch, tmp_path, capsys):
    class Without(Clock):
        def ask(self, do, **request):
            if do == "verify" and self.name == PLAIN:
                reason = "NotImplementedError: the plain scan has no underdamped"
                return {"skipped": reason}
            return super().ask(do, **request)

    monkeypatch.setattr(process, "Process", Without)
    config = throughput.get_config("small").unlock()
    config.update(samplers=("underdamped",), contenders=("ebmjax", PLAIN))
    rows = throughput.measure_all(config, tmp_path)
    assert not any("ratio" in row for row in rows)
    assert not list(tmp_path.glob("*.png"))
    text = (tmp_path / "table.md").read_text()
    # Medians of 0.1 and 0.3 s, of as many moves as take 0.01 s.
    microseconds = f"{0.2 / rows[0]['num_steps'] * 1e6:,.0f} µs"
    assert f"| gaussian, underdamped, 100 | none | {microseconds} |\n" in text
    assert "plain scan, underdamped: NotImplementedError" in text
    assert f"chains: ebmjax {microseconds} (" in capsys.readouterr().out


def test_ratios_are_a_figure_for_each_workload(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "Process", Clock)
    config = throughput.get_config("small").unlock()
    config.update(contenders=("ebmjax", PLAIN))
    throughput.measure_all(config, tmp_path)
    figures = {path.name for path in tmp_path.glob("*.png")}
    assert figures == {"ratios_gaussian.png", "ratios_conv_28x28x1.png"}


def test_a_wrong_sampler_is_not_timed():
    """Half of the step: the law of MALA is right all the same, its moves are not."""

    def shy(workload, kernel, x0, num_steps):
        half = kernel._replace(step_size=0.5 * kernel.step_size)
        return process.OURS["ebmjax"](workload, half, x0, num_steps)

    for kernel in ("langevin", "mala"):  # one by its law, one by its moves
        with pytest.raises(AssertionError, match=f"shy, {kernel}"):
            verify("shy", kernel, shy)


@pytest.mark.slow
def test_it_runs_in_processes_and_writes_what_it_says(tmp_path):
    config = throughput.get_config("small").unlock()
    config.update(workloads=("gaussian",), contenders=("ebmjax", PLAIN))
    rows = throughput.measure_all(config, tmp_path)
    assert [row["contender"] for row in rows] == ["ebmjax", PLAIN]
    lines = (tmp_path / "throughput.jsonl").read_text().splitlines()
    assert [json.loads(line)["workload"] for line in lines] == ["gaussian"] * 2
    for row in map(json.loads, lines):
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["moves_per_second"] > 0 and row["jax"] and row["load"] >= 0
    assert rows[0]["ess_per_second"] > 0 and rows[0]["overhead"] > 0
    assert (tmp_path / "ratios_gaussian.png").read_bytes()[1:4] == b"PNG"
    assert "## Ours over the floors" in (tmp_path / "table.md").read_text()


def test_a_process_that_fails_says_what_and_why():
    contender = process.Process("ebmjax")
    cell = process.Cell("mlp", "mala", -1.0, 0, 4, 2, 4)
    with pytest.raises(RuntimeError, match="ebmjax: build failed: .*step_size must be"):
        contender.ask("build", cell=cell)
    contender.process.kill()
    contender.process.wait()
    with pytest.raises(RuntimeError, match="ended, with exit status -9, when asked to"):
        contender.ask("run", seed=0)


@pytest.mark.quick
def test_the_default_has_nothing_set_and_the_others_a_device_for_each_core():
    assert process.wanted(process.DEFAULT) == {}
    for name in ("ebmjax", "ebmjax threefry"):
        assert list(process.wanted(name)) == ["XLA_FLAGS"]
        assert DEVICES in process.wanted(name)["XLA_FLAGS"]
