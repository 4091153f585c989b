"""All names in the `__all__` lists of the library are reachable and documented.

Names are read from the source and compared with the imported package. An import that
hides a module, or a class whose docstring lacks a field, fails here.
"""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import types

import pytest

import ebmjax

ROOT = pathlib.Path(ebmjax.__file__).parent.parent

MODULES = ["ebmjax"] + [
    module.name for module in pkgutil.walk_packages(ebmjax.__path__, "ebmjax.")
]

PACKAGES = [
    name for name in MODULES if hasattr(importlib.import_module(name), "__path__")
]

NAMES = [
    (module, name)
    for module in MODULES
    for name in getattr(importlib.import_module(module), "__all__", [])
]


def tree_of(module):
    path = inspect.getsourcefile(importlib.import_module(module))
    return ast.parse(pathlib.Path(path).read_text())


def imported_by(package):
    """Yields `(module, name)` of all that a package's `__init__` takes from its own
    modules."""
    for node in tree_of(package).body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith(f"{package}."):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.quick
@pytest.mark.parametrize("module", MODULES)
def test_all_is_a_sorted_list_of_names_that_exist(module):
    found = importlib.import_module(module)
    assert hasattr(found, "__all__"), f"{module} needs an __all__"
    assert found.__all__ == sorted(set(found.__all__)), f"sort {module}.__all__"
    missing = [name for name in found.__all__ if not hasattr(found, name)]
    assert not missing, f"{module}.__all__ has {missing}, which {module} lacks"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_exports_all_that_its_modules_export(package):
    """A package exports a module as a whole, or every name of its `__all__`, or none.
    Modules of which it exports nothing serve the other modules of the package."""
    found = importlib.import_module(package)
    taken = list(imported_by(package))
    for module, name in taken:
        assert name in importlib.import_module(module).__all__, (
            f"{package} takes {name} of {module}, whose __all__ lacks it"
        )
    assert {name for _, name in taken} <= set(found.__all__)
    for module in {module for module, _ in taken}:
        for name in importlib.import_module(module).__all__:
            assert name in found.__all__, f"{package}.__all__ needs {name} of {module}"
            assert getattr(found, name) is getattr(
                importlib.import_module(module), name
            ), f"{package}.{name} is not that of {module}"


@pytest.mark.parametrize("module", MODULES)
def test_no_name_hides_a_module(module):
    """`import ebmjax.samplers.layout` binds the module to the name of the package."""
    package, _, name = module.rpartition(".")
    if package:
        found = getattr(importlib.import_module(package), name)
        assert isinstance(found, types.ModuleType), f"{module} is hidden by {found}"
        assert found.__name__ == module


def used_by_experiments():
    """Yields `(module, name, file)` of all names of the library that a file of
    `experiments` imports or reads from a module."""
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        tree, modules = ast.parse(path.read_text()), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in MODULES:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    if full in MODULES:
                        modules[alias.asname or alias.name] = full
                    else:
                        yield node.module, alias.name, path
        for node in ast.walk(tree):
            names, inner = [], node
            while isinstance(inner, ast.Attribute):
                names.insert(0, inner.attr)
                inner = inner.value
            if names and isinstance(inner, ast.Name) and inner.id in modules:
                module = modules[inner.id]
                while names and f"{module}.{names[0]}" in MODULES:
                    module = f"{module}.{names.pop(0)}"
                if names:
                    yield module, names[0], path


def test_all_has_what_experiments_use():
    """The exceptions are constants of the generator, which its test battery changes."""
    uses = list(used_by_experiments())
    assert ("ebmjax.samplers", "sample_chains") in {use[:2] for use in uses}
    for module, name, path in uses:
        if module != "ebmjax.counter_prng" or not name.endswith("_ROUNDS"):
            assert name in importlib.import_module(module).__all__, (
                f"{path.relative_to(ROOT)} uses {module}.{name}, which is not public"
            )


def automatic_docstrings(found):
    """Yields what Python shows for a class that has no docstring of its own."""
    yield None
    if inspect.isclass(found):
        yield from (base.__doc__ for base in found.__mro__[1:])
        yield f"{found.__name__}({', '.join(getattr(found, '_fields', ()))})"


def is_documentable(found):
    is_alias = getattr(found, "__module__", "").partition(".")[0] != "ebmjax"
    return (inspect.isclass(found) or inspect.isfunction(found)) and not is_alias


@pytest.mark.parametrize("module, name", NAMES)
def test_what_is_public_has_a_docstring_of_its_own(module, name):
    found = inspect.unwrap(getattr(importlib.import_module(module), name))
    if not is_documentable(found):
        return
    document = inspect.getdoc(found) if found.__doc__ else None
    assert found.__doc__ not in automatic_docstrings(found), f"{name} has no docstring"
    first = document.partition("\n\n")[0]
    assert "\n" not in first and first.endswith("."), f"the summary of {name}: {first}"
    returns = re.search(r"\nReturns:\n +([^\n]*)", document)
    # Documentation tools read "type: description" where there is a colon.
    assert not returns or ":" not in returns[1], f"{name} returns: {returns[1]}"


LINK = re.compile(r"https://[^\s,;]*[^\s,;.]")

METHODS = {
    "AIS": "metrics.annealed_importance_sampling",
    "BDMC": "metrics.reverse_annealed_importance_sampling",
    "CD-k": "objectives.contrastive_divergence",
    "CNCE": "objectives.conditional_noise_contrastive",
    "DSM": "objectives.denoising_score_matching",
    "ESS": "metrics.effective_sample_size",
    "FCE": "objectives.flow_contrastive.energy_objective",
    "FD-SSM": "objectives.finite_difference_score_matching",
    "FID": "metrics.frechet_distance",
    "HMC": "samplers.hmc",
    "IMH": "samplers.independence",
    "ISM": "objectives.score_matching",
    "KALE": "objectives.generalized.energy_objective",
    "KID": "metrics.maximum_mean_discrepancy",
    "KSD": "metrics.kernel_stein_discrepancy",
    "LSD": "objectives.learned_stein.critic_objective",
    "MALA": "samplers.mala",
    "MEG": "objectives.max_entropy.generator_objective",
    "MMD": "metrics.maximum_mean_discrepancy",
    "MPF": "objectives.minimum_probability_flow",
    "MVL": "objectives.minimum_velocity",
    "NCE": "objectives.noise_contrastive",
    "NUTS": "samplers.adapt",
    "PC": "samplers.sample_diffusion",
    "PCD": "starts.replay",
    "PT": "samplers.replica_exchange",
    "RAISE": "metrics.reverse_annealed_importance_sampling",
    "RM": "objectives.ratio_matching",
    "SCE": "objectives.self_contrastive",
    "SSM": "objectives.sliced_score_matching",
    "TRE": "objectives.telescoping",
    "UCD": "objectives.unbiased_contrastive_divergence",
    "ULA": "samplers.langevin",
    "VERA": "objectives.entropy_gradient.generator_objective",
    "f-EBM": "objectives.f_contrastive.energy_objective",
}


def first_lines(document):
    """The summary of a docstring, and two lines of the paragraph after it."""
    return "\n".join(document.splitlines()[:4])


@pytest.mark.parametrize("acronym", METHODS)
def test_a_method_is_found_by_its_acronym_in_the_first_lines(acronym):
    found = ebmjax
    for name in METHODS[acronym].split("."):
        importlib.import_module(f"ebmjax.{METHODS[acronym].partition('.')[0]}")
        found = getattr(found, name)
    words = re.findall(r"[\w-]+", first_lines(inspect.getdoc(found)))
    assert acronym in words, f"{METHODS[acronym]} does not say {acronym} at first"


@pytest.mark.parametrize("module, name", [(name, None) for name in MODULES] + NAMES)
def test_what_has_a_source_links_it_in_the_first_lines(module, name):
    """The link follows the summary, and is one of those of the section `Source`."""
    found = importlib.import_module(module)
    if name is not None:
        found = inspect.unwrap(getattr(found, name))
    document, _, source = (inspect.getdoc(found) or "").partition("\nSource:\n")
    known = LINK.findall(source)
    if not source or (isinstance(found, types.ModuleType) and not known):
        return
    links = LINK.findall(first_lines(document))
    assert links, f"{module} {name or ''} has no link in its first lines"
    assert set(links) <= set(known), f"{links} are not all among {known}"


def fields(found):
    """The fields of a NamedTuple or of a Flax module, in their order."""
    if hasattr(found, "_fields"):
        return found._fields
    if not hasattr(found, "__dataclass_fields__"):
        return []
    own = inspect.get_annotations(found)
    return [name for name in own if name not in ("parent", "name")]  # Flax's own


@pytest.mark.parametrize("module, name", NAMES)
def test_the_docstring_of_a_class_names_its_fields(module, name):
    found = getattr(importlib.import_module(module), name)
    if not inspect.isclass(found) or not is_documentable(found):
        return
    document = inspect.getdoc(found) or ""
    _, _, attributes = document.partition("\nAttributes:\n")
    named = re.findall(r"^  (\w+): ", attributes, re.MULTILINE)
    assert named == list(fields(found)), f"{name} documents {named}"
