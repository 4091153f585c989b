"""Who may import whom, as one table; a new edge is one line here."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
EBMJAX = {
    "types",
    "energies",
    "targets",
    "starts",
    "networks",
    "samplers",
    "objectives",
}
EBMJAX |= {"training", "metrics", "counter_prng", "diffusions", "checks"}

MAY_IMPORT = {
    "types": set(),
    "checks": {"types"},
    "counter_prng": {"types"},
    "energies": {"types"},
    "networks": {"types"},
    "starts": {"types"},
    "diffusions": {"types", "checks"},
    "samplers": {"types", "checks", "diffusions"},
    "training": {"types"},
    "targets": {"types", "energies"},
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


def imports(path):
    """Full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
    "path", files("ebmjax"), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_library_imports_only_what_the_table_allows(path):
    room = path.relative_to(ROOT / "ebmjax").parts[0].removesuffix(".py")
    for name in imports(path):
        assert name.split(".")[0] not in NOT_IN_THE_LIBRARY, f"{path} imports {name}"
        parts = name.split(".")
        if parts[0] == "ebmjax" and len(parts) > 1 and room != "__init__":
            allowed = MAY_IMPORT[room] | {room}
            assert parts[1] in allowed, f"{path} imports {name}"


def test_every_room_is_in_the_table():
    rooms = {p.relative_to(ROOT / "ebmjax").parts[0] for p in files("ebmjax")}
    assert {room.removesuffix(".py") for room in rooms} - {"__init__"} == set(
        MAY_IMPORT
    )


def test_papers_never_import_papers():
    papers = {p.stem for p in (ROOT / "experiments").glob("[a-z]*.py")}
    for path in files("experiments"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "experiments" and len(parts) > 1:
                assert parts[1] not in papers, f"{path} imports {name}"


def test_pmap_is_named_in_one_function():
    """Leaving it must stay a change of ten lines."""
    named = [
        path.name
        for path in files("ebmjax") + files("experiments")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "pmap"
    ]
    assert named == ["training.py"]


@pytest.mark.parametrize(
    "path",
    files("experiments") + files("ebmjax"),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_heavy_packages_are_imported_where_they_are_used(path):
    """So that everything imports where they are not installed."""
    heavy = {"tensorflow_datasets", "matplotlib", "sklearn", "PIL", "tensorboardX"}
    heavy |= {"scipy", "diffrax"}
    heavy |= {"blackjax", "numpyro", "tensorflow_probability", "torch", "torchebm"}
    for node in ast.parse(path.read_text()).body:  # top level only
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                assert name.split(".")[0] not in heavy, f"{path} imports {name}"
