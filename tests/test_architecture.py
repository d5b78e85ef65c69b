"""The rules that keep the project readable: who imports whom, how long a file may be, which names are out."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
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
}
LEVELS = {  # longest prefix wins
    "fundax.types": 0,
    "fundax.errors": 0,
    "fundax": 1,
    "fundax.objectives": 2,
    "fundax.evals": 2,
    "fundax.interop": 2,
    "fundax.checkpoint": 2,
    "fundax.encoder_layout": 2,
    "fundax.recipe": 3,
    "fundax.workdir": 3,
    "fundax.feed": 3,
    "fundax.train": 3,
    "fundax.pretrained": 3,
    "fundax.start": 3,
    "fundax.appearance": 3,
    "fundax.aot": 3,
    "fundax.predict": 4,
    "fundax.predict_flair": 4,
    "fundax.predict_landmark": 4,
    "fundax.predict_report": 4,
    "fundax.predict_segment": 4,
    "fundax.predict_ret_clip": 4,
    "fundax.predict_decoder": 4,
    "fundax.predictors": 4,
    "fundax.open_encoder": 3,
    "fundax.exchange": 4,
    "fundax.exchange_vit": 4,
    "fundax.synthesis": 4,
    "fundax.explain": 4,
    "fundax.image_text": 3,
    "fundax.run_arrays": 3,
    "fundax.run_scores": 3,
    "fundax.run_pictures": 3,
    "fundax.run_report": 4,
    "data_pipelines.records": 0,
    "data_pipelines.knowledge": 0,
    "data_pipelines": 1,
    "data_pipelines.synthetic": 2,
    "data_pipelines.pipeline": 2,
    "data_pipelines.show": 2,
    "data_pipelines.named_sources": 2,
    "data_pipelines.modality_mix": 2,
    "data_pipelines.labelled": 2,
    "data_pipelines.thirteen": 1,
    "data_pipelines.followups": 2,
    "configs": 4,
    "benchmarks": 5,
    "scripts": 4,
    "launch": 5,
}
SIBLINGS = ("fundax.objectives", "fundax.evals", "fundax.interop")
OURS = ("fundax", "data_pipelines", "configs", "benchmarks", "scripts", "launch")


def sources() -> list[Path]:
    folders = ("fundax", "data_pipelines", "configs", "benchmarks", "scripts")
    return sorted([p for f in folders for p in (REPO / f).rglob("*.py")] + [REPO / "launch.py"])


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def level(module: str) -> int:
    known = [prefix for prefix in LEVELS if module == prefix or module.startswith(prefix + ".")]
    return LEVELS[max(known, key=len)]


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


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_imports_only_lower_levels(path):
    module = module_of(path)
    part = next((s for s in SIBLINGS if module.startswith(s + ".")), None)
    for name in our_imports(path) - {module}:
        if part and name.startswith(part + "."):
            pytest.fail(f"{module} imports its sibling {name}")
        same_part = level(name) == level(module) and name.split(".")[0] == module.split(".")[0]
        assert level(name) < level(module) or same_part, f"{module} (level {level(module)}) imports {name}"


@pytest.mark.parametrize("path", sources(), ids=module_of)
def test_the_two_halves_do_not_meet_below_level_four(path):
    module = module_of(path)
    if level(module) >= 4:
        assert module.split(".")[0] in OURS
        return
    tops = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    if module.startswith("data_pipelines"):
        assert not tops & {"jax", "flax", "optax", "orbax", "fundax"}, "data_pipelines turns images into numpy arrays"
    else:
        assert not tops & {"grain", "data_pipelines"}, "fundax turns arrays into numbers"
    if module != "data_pipelines.pipeline":
        assert "grain" not in tops, "pipeline.py is the only place that speaks Grain"


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
