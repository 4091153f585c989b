"""The site is built without faults, and a browser shows every page of it.

The last tests need the site that `make docs` builds, and Chromium, and are skipped
without them.
"""

import functools
import html
import http.server
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import threading
import zlib

import pytest

import ebmjax

ROOT = pathlib.Path(__file__).parent.parent
SITE = ROOT / "build" / "site"

_spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)


@pytest.mark.quick
def test_links_are_those_of_the_site(tmp_path):
    for name in ("docs/a/page.md", "docs/b.md", "results/x.png", "CONTRIBUTING.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    page = tmp_path / "docs" / "a" / "page.md"
    text = (
        "![x](../../results/x.png) [b](../b.md#part) [c](../../CONTRIBUTING.md)"
        " [d](#here) [e](https://host/x) `` ``` ``"
    )
    assert build.relink(text, page, tmp_path) == (
        "![x](../results/x.png) [b](../b.md#part) [c](../CONTRIBUTING.md)"
        " [d](#here) [e](https://host/x) `` ``` ``"
    )
    with pytest.raises(FileNotFoundError, match="links to gone.md, which is missing"):
        build.relink("[x](gone.md)", page, tmp_path)


@pytest.mark.quick
def test_faults_of_a_site_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<h2 id="part"><img src="gone.png">')
    (tmp_path / "index.html").write_text(
        '<a href="a/#part"><a href="a/#other"><a href="b/"><a href="https://host">'
        '<script src="https://host/x.js"></script><link rel="stylesheet" href="x.css">'
    )
    faults = "\n".join(build.find_faults(tmp_path))
    assert "a/#other, which has no such anchor" in faults
    for missing in ("gone.png", "b/", "x.css"):
        assert f"refers to {missing}, which is missing" in faults
    assert "loads https://host/x.js from the network" in faults
    assert len(faults.splitlines()) == 5


@pytest.mark.quick
def test_the_public_names_are_those_of_every_all():
    names = set(build.public_names("ebmjax"))
    for name in (
        "samplers.hmc",
        "objectives.max_entropy.energy_objective",
        "types.Key",
    ):
        assert f"ebmjax.{name}" in names
    assert len(names) > 150
    for module in ebmjax.__all__:  # every one has a place in the navigation
        assert f" reference/{module}.md" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.quick
def test_every_page_is_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text()
    docs = ROOT / "docs"
    for page in (*docs.rglob("*.md"), *(docs / "learn").glob("*.py")):
        name = page.relative_to(docs).with_suffix(".md")
        assert f": {name}\n" in listed, page


def test_an_inventory_is_read(tmp_path):
    body = zlib.compress(b"a.b py:function 1 x/#$ -\nc py:class 1 x/#$ -\n")
    head = b"# Sphinx inventory version 2\n# Project: x\n# Version: 1\n# zlib\n"
    (tmp_path / "objects.inv").write_bytes(head + body)
    assert build.inventory(tmp_path / "objects.inv") == {"a.b", "c"}


@pytest.fixture(scope="module")
def site():
    """The site that `make docs` built, unless a source of it is newer."""
    built = SITE / "objects.inv"
    if not built.is_file():
        pytest.skip("there is no site in build/site; make docs builds it")
    for folder in ("docs", "ebmjax", "results"):
        for path in (ROOT / folder).rglob("*.*"):
            is_newer = path.stat().st_mtime > built.stat().st_mtime
            if is_newer and path.suffix in (".md", ".py", ".png", ".js", ".css"):
                pytest.skip(f"the site is older than {path}; make docs builds it")
    return SITE


@pytest.mark.slow
def test_the_reference_has_every_public_name(site):
    assert set(build.public_names("ebmjax")) <= build.inventory(site / "objects.inv")


@pytest.mark.slow
@pytest.mark.parametrize("words", ["DSM", "PCD", "VERA", "NCSN"])
def test_the_search_finds_the_names_of_methods(site, words):
    """The browser searches this index."""
    items = json.loads((site / "search.json").read_text())["items"]
    assert [x for x in items if words in x["title"] + re.sub("<.*?>", "", x["text"])]


# Opens the pages one after the other, at the width of a desk and of a phone.
OPENER = """<!doctype html><body><script>
const pages = %s, faults = [];
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
async function open(page, width) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900;
  document.body.append(frame);
  const loaded = new Promise(done => frame.onload = done);
  frame.src = page;
  const early = setInterval(() => {
    if (frame.contentWindow && !frame.contentWindow.watched) {
      frame.contentWindow.watched = true;
      frame.contentWindow.addEventListener("error", event =>
        faults.push(`${page}: ${event.message || event.target.src}`), true);
    }
  }, 1);
  await loaded; clearInterval(early); await wait(50);
  const inside = frame.contentDocument;
  for (const image of inside.images) {
    image.loading = "eager";
    if (!image.complete) await new Promise(done => image.onload = image.onerror = done);
    if (!image.naturalWidth) faults.push(`${page}: no image ${image.src}`);
  }
  for (const formula of inside.querySelectorAll(".arithmatex"))
    if (!formula.querySelector(".katex") || formula.querySelector(".katex-error"))
      faults.push(`${page}: raw formula ${formula.textContent}`);
  if (!inside.querySelector("h1")) faults.push(`${page}: no heading`);
  if (inside.documentElement.scrollWidth > width + 1)
    faults.push(`${page}: wider than ${width}`);
  frame.remove();
}
(async () => {
  for (const page of pages) for (const width of [1280, 390])
    try { await open(page, width); } catch (error) { faults.push(`${page}: ${error}`); }
  const end = document.createElement("pre");
  end.id = "end"; end.textContent = JSON.stringify({opened: pages.length, faults});
  document.body.append(end);
})();
</script></body>"""


@pytest.mark.slow
def test_a_browser_shows_every_page(site, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    pages = [
        f"/{path.parent.relative_to(site)}/".replace("/./", "/")
        for path in sorted(site.rglob("index.html"))
    ]
    opener = (OPENER % json.dumps(pages)).encode()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/opener":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(opener)

        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        flags += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=600000"]
        done = subprocess.run(
            [browser, *flags, f"http://127.0.0.1:{server.server_port}/opener"],
            capture_output=True,
            text=True,
            timeout=900,
        )
        server.shutdown()
    found = re.search(r'<pre id="end">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    end = json.loads(html.unescape(found[1]))
    assert end == {"opened": len(pages), "faults": []}
