"""The pages in docs: their figures are those of results, and their links exist."""

import pathlib
import re

import pytest

from experiments.run.record import PLACE, fill

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TEXTS = {name: page.read_text() for name, page in zip(NAMES, PAGES, strict=True)}
MEASURED = [
    name
    for name in NAMES
    if name.startswith(("docs/papers/", "docs/benchmarks/")) or name == "README.md"
]
"""Pages in which every table with figures has to say which files they are from."""

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
FIGURES = re.compile(r"<!-- figures (?P<paths>[^>]*) -->\n$")
NO_FIGURES = r"!?\[[^]]*\]\([^)]*\)|`[^`]*`|\$[^$]*\$"
"""Links, code and formulas, whose numbers are no measurements."""

LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")


def tables(text):
    """Yields the text before each table of a page, and the rows of its body."""
    for match in re.finditer(r"(?:^\|.*\n)+", text, re.MULTILINE):
        yield text[: match.start()], match[0].splitlines()[2:]


def values(text):
    """Returns the numbers of a text as (value, half a unit of the last digit).

    With thousands separated, as in 23,000, trailing zeros may come from rounding.
    """
    found = []
    # A range such as 0.0003-0.0026 is two numbers, and 36-40 is no subtraction.
    for token in NUMBER.findall(re.sub(r"(?<=\d)-(?=\d)", " to ", text)):
        plain = token.replace(",", "")
        mantissa, _, exponent = plain.partition("e")
        unit = -len(mantissa.partition(".")[2]) + int(exponent or 0)
        if "," in token:
            unit = len(plain) - len(plain.rstrip("0"))
        found.append((float(plain), 0.5 * 10.0**unit))
    return found


def is_known(value, half, known, scales):
    """Returns whether a known number, or a share as a percentage, rounds to a value."""
    return any(
        abs(scale * x - value) <= 1.0001 * half + 1e-12
        for x in known
        for scale in scales
    )


def unknown(rows, sources):
    """Returns the cells of rows with a number that no source has.

    A percentage may be a share in the source. The first cell is the name of a row.
    """
    known = [value for text in sources for value, _ in values(text)]
    return [
        cell
        for row in rows
        for cell in re.sub(NO_FIGURES, "", row).strip("| ").split("|")[1:]
        for value, half in values(cell)
        if not is_known(
            value, half, known, (1, 100) if "%" in cell or half >= 0.5 else (1,)
        )
    ]


@pytest.mark.quick
@pytest.mark.parametrize(
    "row, source, expected",
    [
        ("| a | 0.94 ± 0.01 |", "| 0.941 ± 0.01 |", []),
        ("| a | 0.95 |", "| 0.941 |", [" 0.95"]),
        ("| a | 99 % |", "| 0.9866 |", []),
        ("| a | 23,000 |", "| 2.3e+04 |", []),
        ("| a | 0.0003-0.0026 |", "| 0.0003-0.0025 |", [" 0.0003-0.0026"]),
        ("| 17 | -3.112, -3.081 |", "| -3.112 ± 0.01 | -3.081 |", []),
        ("| a | [x](y1.md) 8 `17` |", "| 9 |", ["  8"]),
    ],
)
def test_a_figure_that_no_file_has_is_found(row, source, expected):
    assert [cell.rstrip() for cell in unknown([row], [source])] == [
        cell.rstrip() for cell in expected
    ]


@pytest.mark.quick
@pytest.mark.parametrize("name", MEASURED)
def test_the_figures_of_a_table_are_in_files(name):
    for before, rows in tables(TEXTS[name]):
        if not unknown(rows, []) or "<!-- table " in before.rstrip().split("\n")[-1]:
            continue
        place = FIGURES.search(before)
        assert place, f"{name}: say before the table which files {rows[0]!r} is from"
        sources = [(ROOT / path).read_text() for path in place["paths"].split()]
        wrong = unknown(rows, sources)
        assert not wrong, f"{name}: {wrong} are not in {place['paths']}"


@pytest.mark.quick
@pytest.mark.parametrize("name", MEASURED)
def test_the_decimals_of_the_text_are_in_files(name):
    """Each must be in some file of results: a sentence does not say in which."""
    known = [
        value
        for path in (ROOT / "results").rglob("*.md")
        for value, _ in values(path.read_text())
    ]
    text = "".join(TEXTS[name].split("```")[::2])
    text = re.sub(r"(?s:<!--.*?-->|\$\$.*?\$\$)|(?m:^[|#].*$)", "", text)
    wrong = [
        value
        for value, half in values(re.sub(NO_FIGURES, "", text))
        if half < 0.5 and not is_known(value, half, known, (1, 100))
    ]
    assert not wrong, f"{name}: {wrong} are in no file of results"


@pytest.mark.quick
@pytest.mark.parametrize("name", [name for name in NAMES if PLACE.search(TEXTS[name])])
def test_a_page_shows_the_recorded_tables(name, tmp_path):
    """`python -m experiments.run.record --pages PAGE` writes them anew."""
    copy = tmp_path / "page.md"
    copy.write_text(TEXTS[name])
    fill(copy, ROOT)
    assert copy.read_text() == TEXTS[name]


def anchors(text):
    """Returns the anchors of a page's headings, as GitHub and the site form them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


@pytest.mark.quick
@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_has_an_end(name):
    text = "".join(TEXTS[name].split("```")[::2])
    for target in LINK.findall(text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), f"{name} links to {target}, which is missing"
        if anchor:
            assert anchor in anchors(page.read_text()), f"{name} links to {target}"


@pytest.mark.quick
def test_the_readme_is_a_front_page():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 180
    assert lines.index("```python") < 40
    assert "Explainable Boosting Machines" in "".join(lines[:6])
