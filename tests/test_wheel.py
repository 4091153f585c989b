"""The wheel holds the library alone and works without a checkout.

Each test builds or installs, so it needs a package index; without one it is skipped.
`EBMJAX_PYTHONS` names further interpreters, separated by spaces, to install it under.
"""

import email
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import ebmjax

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHONS = [sys.executable, *os.environ.get("EBMJAX_PYTHONS", "").split()]
CORE = {"jax", "flax", "optax", "chex", "numpy"}
# Packages of the extras that no core package brings along, and the largest one that
# they bring. (flax requires orbax-checkpoint; optax and chex require absl-py.)
EXTRA = {"tensorflow-datasets", "pyarrow", "ml-collections", "matplotlib", "pillow"}
EXTRA |= {"scikit-learn", "tensorboardx", "diffrax"}

FACTS = """
import importlib.metadata, json, sys
import ebmjax
from experiments import mine
print(json.dumps({
    "file": ebmjax.__file__,
    "version": ebmjax.__version__,
    "recorded": importlib.metadata.version("ebmjax"),
    "installed": [found.name for found in importlib.metadata.distributions()],
    "loaded": sorted({name.split(".")[0] for name in sys.modules}),
    "mine": mine.__file__,
}))
"""

WITHOUT_EXTRAS = """
import jax, numpy as np
from ebmjax import diffusions, metrics, samplers
try:
    metrics.anomaly(np.arange(4.0), np.array([0, 0, 1, 1]))
except ImportError as error:
    print(error)
process = diffusions.variance_preserving()
key, x = jax.random.key(0), jax.numpy.zeros((2, 1))
try:
    samplers.probability_flow(process, lambda x, t: -x, key, x, start=0.0, end=1.0)
except ImportError as error:
    print(error)
"""

# A program of the README is found by words of it; the lines are added at its end.
PROGRAMS = {
    # x ~ N(0, 1) and y given x ~ N(sin 2x, 1 / 4).
    "def energy(": "assert abs(draws.var((0, 1)) - np.array([1, 0.75])).max() < 0.1",
    # The score of N(1, 4).
    "sliced_score_matching": "slopes = jax.vmap(jax.grad(energy_fn))(data)\n"
    "assert ((slopes - (data - 1) / 4) ** 2).sum(1).mean() < 0.1 * 0.75",
}


def run(*command, cwd=None, **variables):
    """Runs a command without what the tests and the checkout set, as a user would."""
    ours = {"PYTHONPATH", "XLA_FLAGS", "VIRTUAL_ENV"}
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
    )


def printed(*command, **options):
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(python, *arguments, **variables):
    """Runs pip. Skips the test if pip fails and no package index answers it."""
    command = (python, "-m", "pip", "--disable-pip-version-check")
    done = run(*command, *arguments, **variables)
    if done.returncode != 0:
        asked = run(*command, "index", "versions", "setuptools")
        if asked.returncode != 0:
            said = asked.stderr.strip().splitlines()[-1]
            pytest.skip(f"no package index can be reached; pip says: {said}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout: setuptools would put what an older build left in it."""
    copy = tmp_path_factory.mktemp("source") / "ebmjax"
    ignored = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*ignored))
    return copy


def build(source, folder, **variables):
    arguments = ("wheel", "--no-deps", "--wheel-dir", folder, source)
    pip(sys.executable, *arguments, **variables)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("wheel"))


def read_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        return email.message_from_string(archive.read(path).decode())


def test_the_wheel_holds_the_library_and_its_types_alone(source, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    library = {path.relative_to(source) for path in source.glob("ebmjax/**/*.py")}
    assert names == {*map(str, library), "ebmjax/py.typed"}
    assert len(names) > 40


def test_the_wheel_requires_the_core_packages_alone(wheel):
    metadata = read_metadata(wheel)
    assert metadata["Version"] == ebmjax.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {ebmjax.__version__}\n" in citation
    required = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert {re.match(r"[\w-]+", text)[0] for text in required} == CORE
    extras = {"full", "experiments", "docs", "dev"}
    assert set(metadata.get_all("Provides-Extra")) == extras


LINK = re.compile(r"(!?)\[([^]]*)\]\(([^)]*)\)")


def links(text):
    """Returns (`!` of a picture, words, target) of each link outside of programs."""
    return LINK.findall("".join(text.split("```")[::2]))


def is_relative(target):
    return not target.startswith(("https:", "http:", "#"))


def test_a_package_index_sees_no_relative_link(source, wheel, tmp_path):
    relative = [link for link in links(README) if is_relative(link[2])]
    assert any(mark for mark, _, _ in relative)  # a picture
    # Without an address of the files, their words stay.
    text = read_metadata(wheel).get_payload()
    assert not [link for link in links(text) if is_relative(link[2])]
    assert all(words in text for _, words, _ in relative)
    # With an address, every file has its own.
    url = "https://files.example/ebmjax"
    text = read_metadata(build(source, tmp_path, EBMJAX_FILES_URL=url)).get_payload()
    expected = [(mark, words, f"{url}/{path}") for mark, words, path in relative]
    assert [link for link in links(text) if link[2].startswith(url)] == expected
    assert all((ROOT / path.split("#")[0]).exists() for _, _, path in relative)


@pytest.mark.parametrize("python", PYTHONS)
def test_an_installed_wheel_works_without_a_checkout(python, wheel, tmp_path):
    printed(python, "-m", "venv", tmp_path / "venv")
    inside = tmp_path / "venv" / "bin" / "python"
    pip(inside, "install", wheel)
    # A folder without __init__.py gives way to any installed package of its name.
    user = tmp_path / "user"
    (user / "experiments").mkdir(parents=True)
    (user / "experiments" / "mine.py").touch()

    facts = json.loads(printed(inside, "-c", FACTS, cwd=user))
    package = pathlib.Path(facts["file"]).parent
    assert package.parent.name == "site-packages"
    assert package.is_relative_to(tmp_path)
    assert (package / "py.typed").is_file()
    assert facts["version"] == facts["recorded"] == ebmjax.__version__
    assert pathlib.Path(facts["mine"]) == user / "experiments" / "mine.py"
    names = {re.sub("[-_.]+", "-", name).lower() for name in facts["installed"]}
    assert CORE <= names
    assert not EXTRA & names
    assert CORE <= set(facts["loaded"])
    assert "orbax" not in facts["loaded"]

    assert printed(inside, "-c", WITHOUT_EXTRAS, cwd=user).splitlines() == [
        'anomaly needs scikit-learn: pip install "ebmjax[full]"',
        'probability_flow needs diffrax: pip install "ebmjax[full]"',
    ]
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for words, check in PROGRAMS.items():
        (program,) = [text for text in blocks if words in text]
        printed(inside, "-c", f"{program}\nimport numpy as np\n{check}", cwd=user)
