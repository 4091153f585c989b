"""Options of a config with the comments that explain them, for `--help`.

The comments are those at the end of the lines of the dict literals that make the
config, in the problem's file and in the files of `experiments` that it imports.
"""

import ast
import inspect
import io
import sys
import tokenize
from types import ModuleType

from ml_collections import ConfigDict

from experiments.run.config import flat


def list_options(config: ConfigDict, problem: ModuleType) -> list[str]:
    """Returns a line for every option: path, value and comment."""
    found, sections = {}, {}
    for module in reversed([problem, *_imported(problem)]):
        _collect(module, found, sections)  # the problem's own come last and win
    comments = {}
    for path, comment in found.items():
        for full in _full_paths(path, sections):
            comments[full] = comment
    options, lines = flat(config.to_dict()), []
    for path, value in options.items():
        line = f"  {path}={value!r}"
        section, _, option = path.rpartition(".")
        # Tables of names have options too: `{"adam": {"b1": 0.9}}`.
        named = f"{options.get(f'{section}.name')}.{option}"
        if comment := _find(comments, path) or _find(comments, named):
            line = f"{line:<44}  # {comment}"
        lines.append(line)
    return lines


def _imported(module: ModuleType) -> list[ModuleType]:
    """Returns the modules of `experiments` that a module's names come from.

    A table, such as that of the methods, comes from where the types of its lines do.
    """
    found = list(vars(module).values())
    for table in [x for x in found if isinstance(x, dict)]:
        found += table.values()
    names = {getattr(x, "__module__", None) for x in found}
    names |= {x.__name__ for x in found if isinstance(x, ModuleType)}
    return [
        sys.modules[name]
        for name in sorted(names - {None, module.__name__})
        if name.startswith("experiments.") and name in sys.modules
    ]


def _find(comments: dict[str, str], path: str) -> str:
    """Returns the comment of `path`, or of its longest ending of two parts or more.

    Failing that, the comment of a path that ends with `path`, as those in tables of
    sections do.
    """
    parts = path.split(".")
    for first in range(max(len(parts) - 1, 1)):
        if found := comments.get(".".join(parts[first:])):
            return found
    if len(parts) == 1:
        return ""
    longer = (text for x, text in comments.items() if x.endswith(f".{path}"))
    return next(longer, "")


def _full_paths(path: str, sections: dict[str, set[str]], depth: int = 5) -> list[str]:
    """Returns the paths of an option of a function's dict, `"@function.option"`."""
    if not path.startswith("@"):
        return [path]
    function, _, rest = path.removeprefix("@").partition(".")
    found = [rest]
    for section in sections.get(function, ()) if depth else ():
        found += _full_paths(f"{section}.{rest}", sections, depth - 1)
    return found


def _collect(
    module: ModuleType, comments: dict[str, str], sections: dict[str, set[str]]
) -> None:
    """Adds a module's comments, path -> text, and function -> sections made by it.

    The path of an option in a function's dict begins with `"@function."`.
    """
    source = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    at_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()

    def visit(node, prefix):
        if isinstance(node, ast.FunctionDef):
            prefix = f"@{node.name}."
        elif isinstance(node, ast.AugAssign | ast.Assign):
            target = node.target if isinstance(node, ast.AugAssign) else node.targets[0]
            prefix += "".join(f"{name}." for name in _subscripts(target))
            if isinstance(target, ast.Name):  # `optimizer = ...` may be that section
                visit(node.value, f"{prefix}{target.id}.")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            sections.setdefault(node.func.id, set()).add(prefix.rstrip("."))
        elif isinstance(node, ast.keyword) and node.arg:  # `Sections(data={...})`
            prefix += f"{node.arg}."
        if not isinstance(node, ast.Dict):
            for child in ast.iter_child_nodes(node):
                visit(child, prefix)
            return
        for key, value in zip(node.keys, node.values):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                path = f"{prefix}{key.value}"
                if key.lineno in at_line:
                    comments[path] = _continued(lines, at_line, key.lineno)
                visit(value, f"{path}.")
            else:
                visit(value, prefix)

    visit(ast.parse(source), "")


def _subscripts(target: ast.expr) -> list[str]:
    """Returns the names in `config["a"]["b"]`."""
    if not isinstance(target, ast.Subscript):
        return []
    name = getattr(target.slice, "value", None)
    return [*_subscripts(target.value), *([name] if isinstance(name, str) else [])]


def _continued(lines: list[str], at_line: dict[int, str], first: int) -> str:
    """Joins a comment with the lines below that continue it."""
    text, line = at_line[first], first + 1
    while line in at_line and lines[line - 1].lstrip().startswith("#"):
        text, line = f"{text} {at_line[line]}", line + 1
    return text
