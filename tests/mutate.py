"""Changes the code on purpose, a place at a time, and asks whether the tests see it.

python tests/mutate.py --num=100 --seed=0 --most_files=4

A copy of the checkout is changed. Tried are the test files that name most of what the
module defines.
"""

import argparse
import ast
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
COPIED = ("ebmjax", "experiments", "tests", "pyproject.toml", "README.md")
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
    """Returns the test files that name most of what a module defines."""
    names = [path.stem, *re.findall(r"^(?:def|class) (\w+)", source, re.M)]
    pattern = re.compile(r"\b(" + "|".join(names) + r")\b")
    found = {}
    for file in ROOT.glob(f"tests/{path.parts[0]}/**/test_*.py"):
        bonus = 1000 * (file.name == f"test_{path.name}")
        found[file] = len(pattern.findall(file.read_text())) + bonus
    best = sorted((f for f in found if found[f]), key=found.get, reverse=True)[:most]
    return [str(f.relative_to(ROOT)) for f in best] or [f"tests/{path.parent}"]


def is_caught(path, text, files):
    """Whether a test of `files` fails where the file at `path` has this text."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, pathlib.Path(folder, name))
        pathlib.Path(folder, path).write_text(text)
        command = ["timeout", "900", sys.executable, "-m", "pytest", "-x", "-q"]
        command += ["-m", "not slow", "-p", "no:cacheprovider", *files]
        environment = dict(os.environ, PYTHONPATH=folder)
        options = {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL}
        return subprocess.run(command, **options).returncode != 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most_files", type=int, default=4)
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
        num_caught += (caught := is_caught(path, ast.unparse(tree), files))
        seen = "caught" if caught else "SURVIVED"
        print(f"{seen} {path}:{node.lineno} {what} by {files}", flush=True)
    print(f"{num_caught} of {args.num} caught")


if __name__ == "__main__":
    main()
