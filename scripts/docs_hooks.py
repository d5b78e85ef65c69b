"""MkDocs hooks: generate the API pages, insert benchmark tables, and check that files and names in the documents exist.

The API pages are generated from the public names of `fundax` and its subpackages (`fundax/<room>/__init__.py`), which are
parsed but not imported. A document that mentions a missing file or name causes a warning, which `mkdocs build --strict`
turns into an error.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
ROOTS = ("fundax", "data_pipelines", "configs", "benchmarks", "scripts", "tests", "docs")
FILE = re.compile(rf"(?:{'|'.join(ROOTS)})/[\w./*-]*\w\.\w+|(?:{'|'.join(ROOTS)})/[\w/]+/")
NAME = re.compile(r"\b(?:fundax|data_pipelines)(?:\.\w+)+")
RESULT = re.compile(r"^\[[^\]]+\]\((?:\.\./)+benchmarks/results/(\w+)\.json\)$", re.MULTILINE)
log = logging.getLogger("mkdocs.hooks.fundax")


def exported(init: Path) -> list[str]:
    """Public names of a package: the imports and definitions of its `__init__.py`, in order."""
    names = []
    for node in ast.walk(ast.parse(init.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == init.relative_to(REPO).parts[0]:
            names += [alias.asname or alias.name for alias in node.names]
    return [name for name in names if not name.startswith("_")]


def rooms() -> list[str]:
    """Packages directly below fundax."""
    return sorted(path.parent.name for path in (REPO / "fundax").glob("*/__init__.py"))


def api_pages() -> dict[str, str]:
    """The Markdown of the API pages, by path below docs/."""
    modules = {*rooms(), "optim"}
    top = [name for name in exported(REPO / "fundax/__init__.py") if name not in modules]
    pages = {"reference/index.md": _page("fundax", REPO / "fundax/__init__.py", top)}
    for room in rooms():
        init = REPO / "fundax" / room / "__init__.py"
        pages[f"reference/{room}.md"] = _page(f"fundax.{room}", init, exported(init))
    public = "::: fundax.optim\n    options:\n      show_root_heading: false\n"
    return pages | {"reference/optim.md": f"# fundax.optim\n\n{public}"}


def _page(module: str, init: Path, names: list[str]) -> str:
    text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
    return "\n\n".join([f"# {module}", text, *(f"::: {module}.{name}" for name in names)]) + "\n"


def with_tables(markdown: str) -> str:
    """Replace every line that is a link to `benchmarks/results/NAME.json` by the tables of that file."""
    return RESULT.sub(lambda match: result_tables(match[1]), markdown)


def result_tables(name: str) -> str:
    """Markdown tables of a benchmark, with its command, machine and date."""
    result = json.loads((REPO / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    origin = f"`{result['command']}` ({result['machine']}; {result['date']}). {result.get('note', '')}"
    blocks = []
    for table in result["tables"]:
        lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
        blocks += [f"**{table['title']}**", "\n".join("| " + " | ".join(cells) + " |" for cells in lines)]
    return "\n\n".join([*blocks, origin.strip()])


def missing(text: str) -> Iterator[str]:
    """Files and dotted names of this repository that a document mentions but that do not exist."""
    for path in sorted(set(FILE.findall(text))):
        if not any(REPO.glob(path.rstrip("/"))):
            yield path
    for name in sorted(set(NAME.findall(text))):
        if not _exists(name):
            yield name


def _exists(name: str) -> bool:
    place, parts = REPO, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    file = place / f"{parts[0]}.py" if parts and (place / f"{parts[0]}.py").is_file() else place / "__init__.py"
    inside = parts[1:] if file.name != "__init__.py" else parts
    return not inside or inside[0] in _names(file)


def _names(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def on_config(config: Any) -> Any:
    """Add the generated pages to the navigation."""
    for section in config.nav:
        if "Reference" in section:
            pages = [path for path in api_pages() if path != "reference/index.md"]
            section["Reference"] += [{f"fundax.{Path(path).stem}": path} for path in sorted(pages)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for path, text in api_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Warn about missing files and names, and insert the tables of benchmarks."""
    if not page.file.src_uri.startswith("reference/"):
        for name in missing(markdown):
            log.warning("%s mentions %s, which does not exist", page.file.src_uri, name)
    return with_tables(markdown)
