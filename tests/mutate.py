"""Changes the code on purpose, a place at a time, and asks whether the tests see it.

python tests/mutate.py --num=100 --seed=0 --most_files=4

A copy of the checkout is changed. Tried are the test files that call most of what the
module, or one that imports it, defines; those that import it or mirror it count more.
"""

import argparse
import ast
import pathlib
import random
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
COPIED = ("ebmjax", "experiments", "tests", "docs", "results", "pyproject.toml")
COPIED += ("README.md", "CONTRIBUTING.md", "mkdocs.yml")
SWAPS = {"Add": "Sub", "Sub": "Add", "Mult": "Div", "Div": "Mult", "Pow": "Mult"}
SWAPS |= {"Lt": "LtE", "LtE": "Lt", "Gt": "GtE", "GtE": "Gt", "Eq": "NotEq"}
SWAPS |= {"NotEq": "Eq", "And": "Or", "Or": "And", "Is": "IsNot", "IsNot": "Is"}


def changes(tree):
    """Yields (node, field, its other value, description) of every place."""
    skipped = set()
    for node in ast.walk(tree):  # annotations and the texts of errors are no behaviour
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        parts += [node] if isinstance(node, ast.Raise) else []
        skipped |= {id(x) for part in filter(None, parts) for x in ast.walk(part)}
    for node in [x for x in ast.walk(tree) if id(x) not in skipped]:
        for field in ("op", "ops"):
            old = getattr(node, field, None)
            first = old[0] if isinstance(old, list) else old
            if swap := SWAPS.get(type(first).__name__):
                new = getattr(ast, swap)()
                new = [new, *old[1:]] if isinstance(old, list) else new
                yield node, field, new, f"{type(first).__name__} -> {swap}"
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            new = not node.value if type(node.value) is bool else node.value + 1
            yield node, "value", new, f"{node.value} -> {new}"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield node, "op", ast.UAdd(), "-x -> x"
        if isinstance(node, ast.IfExp | ast.If):
            yield node, "test", ast.Constant(True), "condition -> True"


def files_of_tests(path, source, most):
    """Returns the test files that call most of what a module offers."""
    package, dotted = (".".join(x.with_suffix("").parts) for x in (path.parent, path))
    sources = [file.read_text() for file in ROOT.glob(f"{path.parts[0]}/**/*.py")]
    sources = [source] + [text for text in sources if f"from {dotted} import" in text]
    names = re.findall(r"^(?:def|class) ([A-Za-z]\w+)", "\n".join(sources), re.M)
    called = rf"(?:\.|\b(?=\w+\())({'|'.join([path.stem, *names])})\b"
    imported = rf"from {package} import \(?[\w\s,]*\b{path.stem}\b|{dotted}\b"
    mirror, found = ROOT / "tests" / path.with_name(f"test_{path.name}"), {}
    for file in ROOT.glob(f"tests/{path.parts[0]}/**/test_*.py"):
        weight = 1 + 2 * (file.parent == mirror.parent)
        weight *= 1 + 2 * bool(re.search(imported, text := file.read_text()))
        found[file] = weight * len(re.findall(called, text)) + 1000 * (file == mirror)
    best = sorted(filter(found.get, found), key=found.get, reverse=True)[:most]
    return [str(f.relative_to(ROOT)) for f in best] or [f"tests/{path.parent}"]


def outcome(path, text, files):
    """Returns what the tests of `files` say where the file at `path` has this text."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["cp", "-r", *[ROOT / x for x in COPIED], folder], check=True)
        pathlib.Path(folder, path).write_text(text)
        command = ["env", f"PYTHONPATH={folder}", "timeout", "900", sys.executable]
        command += ["-m", "pytest", "-x", "-q", "-m", "not slow", *files]
        ran = subprocess.run(command, cwd=folder, capture_output=True)
    known = {0: "SURVIVED", 1: "caught", 2: "caught", 5: "SURVIVED"}  # 5: no test
    return known.get(ran.returncode, "stopped")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("num", 100), ("seed", 0), ("most_files", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    draw, places, num_caught = random.Random(args.seed), [], 0
    for path in [*ROOT.glob("ebmjax/**/*.py"), *ROOT.glob("experiments/run/*.py")]:
        num = len(list(changes(ast.parse(path.read_text()))))
        places += [(path.relative_to(ROOT), i) for i in range(num)]
    places.sort()
    for path, index in draw.sample(places, min(args.num, len(places))):
        tree = ast.parse(source := (ROOT / path).read_text())
        node, field, new, what = list(changes(tree))[index]
        setattr(node, field, new)
        files = files_of_tests(path, source, args.most_files)
        num_caught += (seen := outcome(path, ast.unparse(tree), files)) == "caught"
        place = f"{path}:{node.lineno}:{node.col_offset + 1}"
        print(seen, place, what, "by", files, flush=True)
    print(f"{num_caught} of {args.num} caught")


if __name__ == "__main__":
    main()
