"""The rules that keep the project readable: who imports whom, how long a file may be, which names are out."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
MAX_LINES = 400
FORBIDDEN_NAMES = {"utils", "common", "misc", "helpers", "base", "manager"}
# imported only inside the function that needs them: heavy, or an optional extra
LAZY = {
    *(
        "transformers",
        "tensorflow_datasets",
        "tensorflow",
        "torch",
        "pydicom",
        "lmdb",
        "matplotlib",
        "sklearn",
        "sacrebleu",
    ),
    *("tensorboardX", "wandb", "onnx", "open_clip", "timm"),
    *("openpyxl", "pyarrow", "fastapi", "starlette", "uvicorn"),
}
# Rooms (folders, or files at a root) by level: a room imports rooms of lower levels only, and files of its own room.
LEVELS = {
    "fundax": (
        ("types",),
        ("params",),
        ("tuning",),
        ("metrics", "optim", "runtime"),
        ("encoders", "losses"),
        ("objectives", "recipe"),
        ("config", "evals", "interop", "train"),
        ("inference", "roofline"),
        ("results",),
        ("serving",),
        ("cli",),
    ),
    "data_pipelines": (
        ("geometry", "notices", "records"),
        ("files",),
        ("images", "language"),
        ("sources", "synthetic"),
        ("datasets",),
        ("transforms",),
        ("pipeline", "words"),
        ("contact_sheet", "convert", "open"),
        ("tasks",),
    ),
}
# Rooms that use both halves: tokenizer files, images to predict on, names of modalities. All above them may, too.
MEETING = ("fundax.inference", "fundax.interop", "fundax.results", "fundax.serving", "fundax.cli")
SHARED = {"data_pipelines.files.storage"}  # local copies of files at addresses: both halves read and write files
PROGRAMS = {"configs": 1, "launch": 1, "scripts": 2, "benchmarks": 3}  # above every room; levels among themselves
SIBLINGS = ("fundax.objectives", "fundax.evals")  # here a file imports only siblings that import none themselves
OURS = ("fundax", "data_pipelines", "configs", "benchmarks", "scripts", "launch")


def sources() -> list[Path]:
    folders = ("fundax", "data_pipelines", "configs", "benchmarks", "scripts")
    return sorted([p for f in folders for p in (REPO / f).rglob("*.py")] + [REPO / "launch.py"])


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """`fundax.encoders` of `fundax.encoders.vit`; programs (configs, launch) are rooms of their own."""
    return ".".join(module.split(".")[:2]) if module.split(".")[0] in LEVELS else module.split(".")[0]


def level(room: str) -> int:
    half, _, name = room.partition(".")
    if half in PROGRAMS:
        return 100 + PROGRAMS[half]
    known = [number for number, rooms in enumerate(LEVELS[half]) if name in rooms]
    assert known, f"{room} has no level: add the room to LEVELS"
    return known[0]


def imports(tree: ast.AST) -> set[str]:
    """Every module a file imports, `from a import b` counted as a.b too (b may be a module)."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_module(name: str) -> bool:
    path = REPO.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def our_imports(path: Path) -> set[str]:
    names = {n for n in imports(ast.parse(path.read_text())) if n.split(".")[0] in OURS and is_module(n)}
    return {n for n in names if not any(other.startswith(n + ".") for other in names)}


def siblings(module: str) -> set[str]:
    path = REPO.joinpath(*module.split(".")).with_suffix(".py")
    room = room_of(module)
    return {name for name in our_imports(path) if room_of(name) == room and name != room} if path.exists() else set()


def contents() -> list[Path]:
    """The files that are more than a table of contents of a half."""
    return [path for path in sources() if module_of(path) not in LEVELS]


@pytest.mark.parametrize("path", contents(), ids=module_of)
def test_imports_only_lower_levels(path):
    module = module_of(path)
    room = room_of(module)
    for name in our_imports(path) - {module}:
        if name in LEVELS:  # the package itself: its version
            continue
        other = room_of(name)
        if other == room:
            deep = room in SIBLINGS and module != room and siblings(name)
            assert not deep, f"{module} imports {name}, which imports a sibling itself"
        elif room.split(".")[0] in LEVELS and other.split(".")[0] != room.split(".")[0]:
            shares = name in SHARED and room == "fundax.runtime"
            meets = room in MEETING and other.startswith("data_pipelines.")
            assert shares or meets, f"{module} of one half imports {name}"
        else:
            assert level(other) < level(room), f"{module} (level {level(room)}) imports {name} (level {level(other)})"


@pytest.mark.parametrize("path", contents(), ids=module_of)
def test_the_two_halves_meet_in_few_rooms(path):
    module = module_of(path)
    room = room_of(module)
    tops = {name.split(".")[0] for name in imports(ast.parse(path.read_text())) if name not in SHARED}
    if module.startswith("data_pipelines"):
        assert not tops & {"jax", "flax", "optax", "orbax", "fundax"}, "data_pipelines turns images into numpy arrays"
    elif module.startswith("fundax") and room not in MEETING:
        assert "data_pipelines" not in tops, "fundax turns arrays into numbers"
    if module != "data_pipelines.pipeline.streams" and not room.startswith("benchmarks"):
        assert "grain" not in tops, "pipeline/streams.py is the only place that uses Grain"


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_heavy_packages_are_imported_where_they_are_used(path):
    body = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
    tops = {name.split(".")[0] for node in body for name in imports(ast.Module([node], []))}
    assert not tops & LAZY


@pytest.mark.parametrize("path", [*sources(), *sorted((REPO / "tests").rglob("*.py"))], ids=lambda p: p.name)
def test_length_and_name(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert path.stem not in FORBIDDEN_NAMES


@pytest.mark.parametrize("path", [p for p in sources() if "fundax" in p.parts], ids=module_of)
def test_linen_stays_in_encoders_and_objectives(path):
    module = module_of(path)
    if not module.startswith(("fundax.encoders", "fundax.objectives")):
        assert not any(n.startswith("flax.linen") for n in imports(ast.parse(path.read_text())))
    assert module.startswith("fundax")


def test_import_fundax_needs_nothing_heavy():
    code = "import sys, fundax; print(sorted({'torch', 'tensorflow', 'transformers', 'jax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    assert done.stdout.strip() == "[]"
