"""Which package may import which, as one table: a new edge is one line here."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

MAY_IMPORT = {
    "types": set(),
    "checks": {"types"},
    "counter_prng": {"types"},
    "energies": {"types", "checks"},
    "networks": {"types", "checks"},
    "starts": {"types", "checks"},
    "diffusions": {"types", "checks"},
    "training": {"types", "checks"},
    "targets": {"types", "checks", "energies"},
    "samplers": {"types", "checks", "diffusions", "energies"},
    "metrics": {"types", "checks", "diffusions", "energies", "samplers"},
    "objectives": {
        "types",
        "checks",
        "diffusions",
        "energies",
        "samplers",
        "starts",
        "metrics",
    },
}

NOT_IN_THE_LIBRARY = {
    "os",
    "sys",
    "time",
    "pathlib",
    "absl",
    "ml_collections",
    "matplotlib",
    "orbax",
    "tensorflow_datasets",
    "experiments",
}

SHARED = {"data": set(), "run": {"run"}, "judge": {"data", "run"}}
"""Packages of `experiments` that all papers share, and what they may import of it."""

MEASURES = {"throughput"}
"""Packages that time the papers' own updates, and import every paper."""

OF_THE_LOOP = {"experiments.run.loop"}
"""What of `run` a problem does not import: `cli` and `sweep` call it."""


def imports(path):
    """Full names of all modules and definitions that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.quick
@pytest.mark.parametrize("path", files("ebmjax"), ids=name_of)
def test_the_library_imports_only_what_the_table_allows(path):
    room = path.relative_to(ROOT / "ebmjax").parts[0].removesuffix(".py")
    for name in imports(path):
        assert name.split(".")[0] not in NOT_IN_THE_LIBRARY, f"{path} imports {name}"
        parts = name.split(".")
        if parts[0] == "ebmjax" and len(parts) > 1 and room != "__init__":
            allowed = MAY_IMPORT[room] | {room}
            assert parts[1] in allowed, (
                f"{name_of(path)} imports {name}; ebmjax.{room} may import"
                f" {sorted(allowed)}: move the definition, or add an edge to MAY_IMPORT"
            )


def test_every_room_is_in_the_table():
    rooms = {p.relative_to(ROOT / "ebmjax").parts[0] for p in files("ebmjax")}
    assert {room.removesuffix(".py") for room in rooms} - {"__init__"} == set(
        MAY_IMPORT
    )


def is_problem(path):
    """Whether a file is run by itself: it has a `get_config`."""
    return path.name != "__main__.py" and "def get_config(" in path.read_text()


PROBLEMS = [path for path in files("experiments") if is_problem(path)]


@pytest.mark.parametrize("path", files("experiments"), ids=name_of)
def test_experiments_import_only_what_is_shared_and_their_own_paper(path):
    """Every file is looked at, a fork's too: nothing here names a paper."""
    package = path.relative_to(ROOT / "experiments").parts[0]
    if package in SHARED:
        allowed = SHARED[package] | {package}
    else:
        # Trained models back from their folders, and from files of their own.
        allowed = {*SHARED, package, "load", "models"}
    if package in MEASURES:
        allowed |= {path.parent.name for path in files("experiments")}
    problems = {module_of(problem) for problem in PROBLEMS}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "experiments" or len(parts) < 2 or package == "__init__.py":
            continue
        assert parts[1] in allowed, (
            f"{name_of(path)} imports {name}: a paper imports no other paper. Put what"
            " both need into experiments/judge or experiments/data"
        )
        if path in PROBLEMS:
            assert name not in problems, (
                f"{name_of(path)} imports {name}: problems do not import each other."
                " Put what both need into a file of their paper without get_config"
            )
        if package not in SHARED:
            assert name not in OF_THE_LOOP, (
                f"{name_of(path)} imports {name}: a problem hands `build` to"
                " experiments.run.cli, which calls the loop"
            )


def test_modules_import_each_other_in_no_circle():
    paths = files("ebmjax") + files("experiments")
    known = {module_of(path) for path in paths}
    edges = {}
    for path in paths:
        found = set()
        for node in ast.parse(path.read_text()).body:  # where the module is loaded
            if isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                # `from package import module` loads the module; a name of the package
                # itself needs the package's __init__.
                found |= {name if name in known else node.module for name in names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        edges[module_of(path)] = (found & known) - {module_of(path)}
    done, ahead = set(), []

    def visit(module):
        assert module not in ahead, " -> ".join([*ahead, module])
        if module in done:
            return
        ahead.append(module)
        for other in sorted(edges[module]):
            visit(other)
        ahead.pop()
        done.add(module)

    for module in sorted(edges):
        visit(module)


@pytest.mark.parametrize("path", files("experiments"), ids=name_of)
def test_no_private_name_of_experiments_is_used_elsewhere(path):
    for name in imports(path):
        if name.startswith(("experiments.", "ebmjax.")):
            private = [x for x in name.split(".") if x.startswith("_")]
            assert set(private) <= {"__main__"}, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize(
    "path", [p for p in files("tests") if "experiments" in p.parts], ids=name_of
)
def test_tests_of_experiments_use_public_names_alone(path):
    modules = {}  # local name -> module, of what is imported from experiments
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("experiments"):
            for alias in node.names:
                is_private = alias.name.startswith("_") and alias.name != "__main__"
                assert not is_private, f"{name_of(path)} imports {alias.name}"
                modules[alias.asname or alias.name] = node.module
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules and node.attr.startswith("_"):
                assert node.attr in ("_replace", "_asdict", "_fields", "__file__") or (
                    node.attr.startswith("__")
                ), f"{name_of(path)}:{node.lineno} reads {node.value.id}.{node.attr}"


def test_pmap_is_named_in_one_function():
    """Leaving it must stay a change of ten lines."""
    named = [
        path.name
        for path in files("ebmjax") + files("experiments")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "pmap"
    ]
    assert named == ["mapped.py"]


@pytest.mark.parametrize("path", files("experiments") + files("ebmjax"), ids=name_of)
def test_heavy_packages_are_imported_where_they_are_used(path):
    """So that everything imports where they are not installed."""
    heavy = {"tensorflow_datasets", "matplotlib", "sklearn", "PIL", "tensorboardX"}
    heavy |= {"scipy", "diffrax"}
    heavy |= {"blackjax", "numpyro", "tensorflow_probability", "torch", "torchebm"}
    heavy |= {"ebmkit"}
    for node in ast.parse(path.read_text()).body:  # top level only
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                assert name.split(".")[0] not in heavy, f"{path} imports {name}"


@pytest.mark.parametrize("path", PROBLEMS, ids=name_of)
def test_every_problem_s_docstring_has_its_own_command(path):
    document = ast.get_docstring(ast.parse(path.read_text())) or ""
    module = module_of(path)
    # The default problem of a paper may be run by the name of the paper.
    package = module.rpartition(".")[0]
    main = (path.parent / "__main__.py").read_text()
    is_default = f"from {package} import {path.stem}\n" in main
    names = [module, package] if is_default else [module]
    assert any(f"python -m {name} " in document for name in names), (
        f"the docstring of {name_of(path)} must have a command python -m {module}"
    )
