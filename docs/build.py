"""Builds the site of these pages into build/site, and checks it.

    python docs/build.py

The pages are copied to build/docs with the results and CONTRIBUTING.md, which they link
to. The notebooks of docs/learn are executed and become pages, and a page of reference
is added for every module of the library. Zensical builds all of it by mkdocs.yml. The
build fails on a warning, on a link or an image that leads nowhere, on a script or a
style from another host, and on a public name that the site's inventory lacks.
"""

import hashlib
import importlib
import inspect
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGE = ROOT / "build" / "docs"
EXECUTED = ROOT / "build" / "learn"
SITE = ROOT / "build" / "site"
LINK = re.compile(r"(!?\[[^]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def staged(path: pathlib.Path, root: pathlib.Path = ROOT) -> pathlib.Path:
    """Returns where a file of the checkout lies below the folder of the pages."""
    docs = root / "docs"
    if path.is_relative_to(docs / "learn"):
        path = path.with_suffix(".md")  # a notebook
    return path.relative_to(docs if path.is_relative_to(docs) else root)


def relink(text: str, page: pathlib.Path, root: pathlib.Path = ROOT) -> str:
    """Returns a page with its relative links as they have to be below `STAGE`."""

    def moved(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = (page.parent / target).resolve()
        if not path.exists():
            raise FileNotFoundError(f"{page} links to {target}, which is missing")
        up = "../" * (len(staged(page, root).parts) - 1)
        return f"{before}{up}{staged(path, root)}{after}"

    parts = text.split("```")  # programs are left alone
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    return "```".join(parts)


def stage() -> None:
    """Copies the pages, and all that they may show or link to, to `STAGE`."""
    shutil.rmtree(STAGE, ignore_errors=True)
    pages = [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    pages += (ROOT / "results").rglob("*.md")
    files = [path for path in (ROOT / "docs" / "assets").rglob("*") if path.is_file()]
    for path in (*pages, *files, *(ROOT / "results").rglob("*.png")):
        target = STAGE / staged(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(relink(path.read_text(), path))
        else:
            shutil.copyfile(path, target)


def execute(notebook: pathlib.Path) -> pathlib.Path:
    """Executes a notebook, which is stored as text, and returns a folder of its page.

    A folder is used again while neither the notebook nor the library has changed.
    """
    sources = [notebook, *sorted((ROOT / "ebmjax").rglob("*.py"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    folder = EXECUTED / digest[:16]
    if not folder.is_dir():
        import jupytext
        import nbconvert

        print(f"executing {notebook.relative_to(ROOT)}", flush=True)
        runs = nbconvert.preprocessors.ExecutePreprocessor(timeout=1200)
        content = jupytext.read(notebook)
        for cell in content.cells:
            if cell.cell_type == "markdown":
                cell.source = relink(cell.source, notebook)
        content, _ = runs.preprocess(content, {})
        files = {"unique_key": notebook.stem, "output_files_dir": notebook.stem}
        text, found = nbconvert.MarkdownExporter().from_notebook_node(content, files)
        unfinished = pathlib.Path(f"{folder}.unfinished")
        (unfinished / notebook.stem).mkdir(parents=True, exist_ok=True)
        (unfinished / f"{notebook.stem}.md").write_text(text)
        for name, data in found["outputs"].items():
            (unfinished / name).write_bytes(data)
        unfinished.rename(folder)
    return folder


def public_names(module: str) -> Iterator[str]:
    """Yields the full names of a module's `__all__`, and of modules among them."""
    found = importlib.import_module(module)
    for name in found.__all__:
        if isinstance(getattr(found, name), types.ModuleType):
            yield from public_names(f"{module}.{name}")
        else:
            yield f"{module}.{name}"


def in_order(name: str) -> tuple[str, bool]:
    """Returns a key that puts the functions of a module before its classes."""
    owner, _, own = name.rpartition(".")
    return owner, own[0].isupper()


def write_reference() -> None:
    """Writes a page for every public module of the library, from its docstrings."""
    folder = STAGE / "reference"
    folder.mkdir()
    package = importlib.import_module("ebmjax")
    for module in package.__all__:
        lines = [f"# ebmjax.{module}", ""]
        shown = None
        for name in sorted(public_names(f"ebmjax.{module}"), key=in_order):
            owner = name.rpartition(".")[0]
            if owner != shown:
                level = "" if owner == f"ebmjax.{module}" else f"## {owner}\n\n"
                lines += [level + inspect.getdoc(importlib.import_module(owner)), ""]
                shown = owner
            lines.append(f"::: {name}")
        (folder / f"{module}.md").write_text("\n".join(lines) + "\n")


class Page(HTMLParser):
    """The anchors of a page, and all that it refers to.

    Attributes:
      anchors: Values of `id` and `name`.
      links: Targets of `href`, except those of `<link>`.
      loads: What a browser loads to show the page.
    """

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if found.get("src"):
            self.loads.append(found["src"])
        if found.get("href"):
            is_loaded = tag == "link" and found.get("rel") in ("stylesheet", "icon")
            if tag == "a":
                self.links.append(found["href"])
            elif is_loaded:
                self.loads.append(found["href"])


def find_faults(site: pathlib.Path) -> list[str]:
    """Returns a sentence for each link or file of a site's pages that is missing."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    faults = []
    for path, page in pages.items():
        if path == site / "404.html":
            continue  # its links are those of the site's address
        for target in (*page.links, *page.loads):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    faults.append(f"{path} loads {target} from the network")
                continue
            end = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            end = end / "index.html" if end.is_dir() else end
            if not end.is_file():
                faults.append(f"{path} refers to {target}, which is missing")
            elif parts.fragment and end in pages:
                if unquote(parts.fragment) not in pages[end].anchors:
                    faults.append(
                        f"{path} refers to {target}, which has no such anchor"
                    )
    return faults


def inventory(path: pathlib.Path) -> set[str]:
    """Returns the names in an inventory of Sphinx's format."""
    *_, body = path.read_bytes().split(b"\n", 4)
    return {line.split()[0] for line in zlib.decompress(body).decode().splitlines()}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["PYTHONPATH"] = str(ROOT)  # notebooks import this checkout
    stage()
    used = [
        execute(notebook) for notebook in sorted((ROOT / "docs/learn").glob("*.py"))
    ]
    for folder in used:
        shutil.copytree(folder, STAGE / "learn", dirs_exist_ok=True)
    for folder in EXECUTED.iterdir():
        if folder not in used:
            shutil.rmtree(folder)
    write_reference()
    shutil.rmtree(SITE, ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run([*command, "-f", str(ROOT / "mkdocs.yml")], cwd=ROOT)
    if done.returncode:
        sys.exit("error: Zensical ended with a warning or an error, see above")
    faults = find_faults(SITE)
    lacking = set(public_names("ebmjax")) - inventory(SITE / "objects.inv")
    faults += [f"the reference lacks {name}" for name in sorted(lacking)]
    if faults:
        sys.exit("\n".join(("error: the site has faults", *faults)))
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE}")


if __name__ == "__main__":
    main()
