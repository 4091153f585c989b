"""Options of a config with the comments that explain them, for `--help`.

The comments are those at the end of the lines of the dict literals that make the
config, in the problem's file and in the files of `experiments` that it imports.
"""

import ast
import inspect
import io
import sys
import textwrap
import tokenize
from types import ModuleType

from ml_collections import ConfigDict

from experiments.run.config import flat


def list_options(config: ConfigDict, problem: ModuleType) -> list[str]:
    """Returns a line for every option: path, value and comment."""
    comments = {}
    for module in reversed([problem, *_imported(problem)]):
        comments |= _comments(module)  # the problem's own come last and win
    lines = []
    for path, value in flat(config.to_dict()).items():
        line = f"  {path}={value!r}"
        if comment := _find(comments, path):
            line = f"{line:<44}  # {comment}"
        lines.append(line)
    return lines


def _imported(module: ModuleType) -> list[ModuleType]:
    """Returns the modules of `experiments` that a module's names come from."""
    names = {getattr(x, "__module__", None) for x in vars(module).values()}
    names |= {x.__name__ for x in vars(module).values() if isinstance(x, ModuleType)}
    return [
        sys.modules[name]
        for name in sorted(names - {None, module.__name__})
        if name.startswith("experiments.") and name in sys.modules
    ]


def _find(comments: dict[str, str], path: str) -> str:
    """Returns the comment of the longest ending of `path` that has one."""
    parts = path.split(".")
    for first in range(len(parts)):
        if found := comments.get(".".join(parts[first:])):
            return found
    return ""


def _comments(module: ModuleType) -> dict[str, str]:
    """Returns the end of an option's path -> its comment."""
    source = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    at_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    found = {}

    def visit(node, prefix):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    path = f"{prefix}{key.value}"
                    if key.lineno in at_line:
                        text = _continued(lines, at_line, key.lineno)
                        found[path] = text
                    visit(value, f"{path}.")
                else:
                    visit(value, prefix)
            return
        for child in ast.iter_child_nodes(node):
            # A dict that a call or a function makes stands at a place of its own.
            visit(child, "" if not isinstance(child, ast.Dict) else prefix)

    visit(ast.parse(textwrap.dedent(source)), "")
    return found


def _continued(lines: list[str], at_line: dict[int, str], first: int) -> str:
    """Joins a comment with the lines below that continue it."""
    text, line = at_line[first], first + 1
    while line in at_line and lines[line - 1].lstrip().startswith("#"):
        text, line = f"{text} {at_line[line]}", line + 1
    return text
