"""Docstrings and pages are English that people and documentation tools read alike.

The rules are in CONTRIBUTING.md. These are the ones that a program can check.
"""

import ast
import inspect
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = [
    path for name in ("ebmjax", "experiments") for path in (ROOT / name).rglob("*.py")
]
OPENINGS = ("Of", "What", "Whether", "How", "Who", "Whose", "Where", "But for")
"""Words that stand in place of a subject at the beginning of a description."""

OPENING = re.compile(rf"({'|'.join(OPENINGS)})\b")
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$")
ENTRY = re.compile(r"(?P<name>[\w*, ]+?)(?: \([^)]*\))?: +(?P<text>.*)")


PLAIN = {
    r"(?<![\w.])\.\d": "write a zero before the point",
    r"(?i)\bin place of\b": 'write "instead of"',
    r"(?i)\bbeside\b": 'write "with", "next to" or "also"',
    r"(?i)\bbut for\b": 'write "except"',
    r"(?i)\bnobody\b": "say who",
    r"(?i)\b(bits|cents|nats) a (dimension|pixel)\b": 'write "per"',
}
"""Pattern -> what to write. Patterns are not looked for in code."""


def words(text):
    """Returns a text without code, addresses and links' targets."""
    text = "".join(text.split("```")[::2])
    return re.sub(r"`[^`]*`|https?://\S+|\]\([^)]*\)|\$[^$]*\$", "", text)


def awkward(text):
    """Yields the words of a text that the rules replace, and what to write."""
    text = words(text)
    for pattern, advice in PLAIN.items():
        for match in re.finditer(pattern, text):
            around = text[max(0, match.start() - 30) : match.end() + 20]
            yield f"{advice} in {' '.join(around.split())!r}"


def docstrings(text):
    """Yields the line and the docstring of everything in a file that has one.

    A string below an assignment documents what is assigned.
    """
    for node in ast.walk(ast.parse(text)):
        if not hasattr(node, "body") or not isinstance(node.body, list):
            continue
        for statement in node.body:
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant):
                if isinstance(value.value, str):
                    yield value.lineno, inspect.cleandoc(value.value)


def sections(doc):
    """Yields (name of the section, its lines without their indentation)."""
    name, lines = None, []
    for line in doc.splitlines():
        if match := SECTION.match(line):
            if name:
                yield name, lines
            name, lines = match[1], []
        elif name and line.strip() and not line.startswith(" "):
            yield name, lines
            name, lines = None, []
        elif name:
            lines.append(line)
    if name:
        yield name, lines


def faults(doc):
    """Yields what is wrong in a docstring."""
    if match := OPENING.match(doc):
        yield f"begins with {match[1]!r}"
    for name, lines in sections(doc):
        lines = [line for line in lines if line.strip()]
        if name in ("Returns", "Yields") and lines:
            # Tools read `words: text` as a type and a text.
            if re.match(r"\s*[^`]*?:(\s|$)", re.sub(r"`[^`]*`", "", lines[0])):
                yield f"{name}: has a colon in its first line"
            if match := OPENING.match(lines[0].strip()):
                yield f"{name}: begins with {match[1]!r}"
        if name in ("Args", "Attributes") and lines:
            indent = min(len(line) - len(line.lstrip()) for line in lines)
            for line in lines:
                entry = ENTRY.fullmatch(line.strip())
                if len(line) - len(line.lstrip()) == indent and entry:
                    # "Whether it is so" is a noun phrase, and says what True means.
                    match = OPENING.match(entry["text"])
                    if match and match[1] != "Whether":
                        yield f"{entry['name']}: begins with {match[1]!r}"


@pytest.mark.quick
@pytest.mark.parametrize(
    "doc, expected",
    [
        ("Returns the score.\n\nArgs:\n  x: An example, of `[d]`.", []),
        ("Of a network, its width.", ["begins with 'Of'"]),
        ("Office hours.", []),
        ("X.\n\nArgs:\n  widths: Of the layers.", ["widths: begins with 'Of'"]),
        ("X.\n\nArgs:\n  is_on: Whether it is on.", []),
        ("X.\n\nArgs:\n  f: A function:\n    Of text.", []),
        ("X.\n\nReturns:\n  A pair: two.", ["Returns: has a colon in its first line"]),
        ("X.\n\nReturns:\n  A `Dict[a: b]` of two.", []),
        ("X.\n\nReturns:\n  A pair.\n\n  One: two.", []),
        ("X.\n\nReturns:\n  What it got.", ["Returns: begins with 'What'"]),
    ],
)
def test_a_fault_is_found(doc, expected):
    assert list(faults(doc)) == expected


@pytest.mark.quick
@pytest.mark.parametrize("package", ["ebmjax", "experiments"])
def test_docstrings_follow_the_rules(package):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in FILES
        if path.is_relative_to(ROOT / package)
        for line, doc in docstrings(path.read_text())
        for fault in (*faults(doc), *awkward(doc))
    ]
    assert not found, "\n".join(found)


def nouns(text):
    """Yields functions of a file whose documentation begins with an article and a noun.

    A property is a noun, and a function says what it does: "Returns the score."
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            is_property = any("property" in ast.unparse(x) for x in node.decorator_list)
            doc = ast.get_docstring(node) or ""
            if re.match(r"(The|A|An)\b", doc) and not is_property:
                yield f"{node.lineno}: {node.name}: {doc.splitlines()[0]}"


@pytest.mark.quick
def test_functions_say_what_they_do():
    bad = 'def f():\n    """The score."""\n'
    assert list(nouns(bad)) == ["1: f: The score."]
    assert not list(nouns(f"class X:\n  @property\n  {bad}".replace("\n  ", "\n    ")))
    found = [
        f"{path.relative_to(ROOT)}:{noun}"
        for path in FILES
        for noun in nouns(path.read_text())
    ]
    assert not found, "\n".join(found)


def comments(text):
    """Returns the Markdown cells of a notebook that is stored as text."""
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)
    return "\n".join(cell for cell in cells if cell.startswith(" [markdown]"))


@pytest.mark.quick
@pytest.mark.parametrize(
    "path",
    [
        path.relative_to(ROOT)
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.*")))
        if path.suffix == ".md" or path.parent.name == "learn"
    ],
    ids=str,
)
def test_pages_follow_the_rules(path):
    text = (ROOT / path).read_text()
    text = comments(text) if path.suffix == ".py" else text
    found = list(awkward(text))
    found += [
        f"a sentence begins with {match[1]!r}: {match[0]!r}"
        for match in re.finditer(
            r"(?:^|(?<=[.] ))(Of|What|Whether|But for)\b[^.]{0,40}", words(text), re.M
        )
    ]
    assert not found, "\n".join(found)


@pytest.mark.quick
@pytest.mark.parametrize(
    "text, expected",
    [
        ("A step of 0.5, version 1.2.3 and `x.5`.", []),
        ("A step of .5.", ["write a zero before the point"]),
        ("One in place of two.", ['write "instead of"']),
        ("All but for one.", ['write "except"']),
        ("3 bits a dimension.", ['write "per"']),
    ],
)
def test_an_awkward_word_is_found(text, expected):
    assert [found.partition(" in '")[0] for found in awkward(text)] == expected
