"""A recipe: one objective, its data, its optimizer and its evals, put together by a Python function in a config file."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import logging
import platform
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import optax

from fundax.runtime import serialize
from fundax.runtime.mesh import RULES, Rules
from fundax.runtime.workdir import write_json
from fundax.types import Data, Eval, Objective, Params, UserError

_PACKAGES = ("fundax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
_log = logging.getLogger("fundax")


@dataclass(frozen=True)
class Intervals:
    """How often, in steps. 0 means never, but the last step is always saved and evaluated."""

    log: int = 10
    save: int = 500
    eval: int = 500


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run is made of. Building one opens no training data and touches no device."""

    objective: Objective
    train: Data
    optimizer: optax.GradientTransformation
    steps: int
    batch: int  # the global batch
    evals: Mapping[str, Eval] = field(default_factory=dict)
    init_from: Sequence[Callable[[Params], Params]] = ()  # applied in order to fresh parameters
    init_extra: Sequence[Callable[[Any], Any]] = ()  # the same for `extra`: batch statistics of a pretrained encoder
    mesh: tuple[int, ...] = (-1, 1)  # (data, model) or (data, fsdp, model)
    rules: Rules = RULES
    intervals: Intervals = Intervals()
    best: str | tuple[str, str] | None = (
        None  # keep the best step by "zero_shot/macro_auc", or ("val/mean_error", "min")
    )
    keep: int = 2  # latest checkpoints kept
    accumulate: int = 1  # micro-batches per step
    seed: int = 0
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # JSON: image_size, mean, std, resize, ...
    tokenizer: Any = None  # anything with save(folder)
    writers: tuple[str, ...] = ()  # "tensorboard", "wandb": beside metrics.jsonl, where installed
    source: Mapping[str, Any] = field(default_factory=dict)  # config path and arguments, set by load()


def load(path: str | Path, argv: Sequence[str] = ()) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a config file under these command-line arguments, and the arguments as a dict.

    The keyword arguments of the file's function `recipe` are its command line: types, defaults, and help from its
    docstring. `--help` prints and exits. Raises UserError for a missing file, an unknown name (with the nearest known
    one) or a value of the wrong type.
    """
    function = _recipe_function(Path(path))
    arguments = _parse(function, list(argv), Path(path))
    built = function(**arguments)
    if not isinstance(built, Recipe):
        raise UserError(f"{path}: recipe() returned {type(built).__name__}; expected a fundax.recipe.Recipe")
    source = {"config": str(path), "argv": list(argv), "args": json.loads(json.dumps(arguments, default=str))}
    return replace(built, source=source), arguments


def _recipe_function(path: Path) -> Callable[..., Recipe]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"config {path} does not exist{hint}")
    name = f"fundax_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"config {path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if not callable(getattr(module, "recipe", None)):
        raise UserError(f"config {path}: expected a function recipe(*, ...) -> Recipe")
    return module.recipe


def _parse(function: Callable[..., Recipe], argv: list[str], path: Path) -> dict[str, Any]:
    import tyro

    @functools.wraps(function)
    def keep(**arguments: Any) -> dict[str, Any]:
        return arguments

    _check_names(argv, list(inspect.signature(function).parameters))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(keep, args=argv, prog=f"launch.py train {path}")
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_first_sentence(said.getvalue())) from None


def _first_sentence(box: str) -> str:
    """tyro prints a box of several paragraphs; the first one says what is wrong."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    first = itertools.takewhile(lambda line: not line.startswith("─"), lines)
    return " ".join(" ".join(first).split()) + " (--help lists the arguments)"


def _check_names(argv: Sequence[str], names: Sequence[str]) -> None:
    """tyro's own message for a misspelt argument is a box; this is one line."""
    known = {f"--{name}".replace("_", "-") for name in names} | {"--help", "--workdir"}
    known |= {f"--no-{name}".replace("_", "-") for name in names}
    for word in argv:
        option = word.split("=")[0].replace("_", "-")
        if option.startswith("--") and option.split(".")[0] not in known:
            near = difflib.get_close_matches(option, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"unknown argument {word.split('=')[0]}{hint} (--help lists them)")


def describe(recipe: Recipe, workdir: str | Path) -> None:
    """Write config.json, config.py, preprocessing.json and tokenizer/ into a run directory; process 0 only.

    With `steps=0` (evaluation only), the files of an existing training run are left unchanged.
    """
    folder = Path(workdir)
    if jax.process_index() or (recipe.steps == 0 and (folder / "config.json").exists()):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"workdir {folder}: {error.strerror}") from None
    config = {
        **recipe.source,
        "objective": _objective(recipe),
        "steps": recipe.steps,
        "batch": recipe.batch,
        "seed": recipe.seed,
        "best": recipe.best,
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
    }
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessing.json", dict(recipe.preprocessing))
    original, copy = Path(str(recipe.source.get("config", ""))), folder / "config.py"
    if original.is_file() and original.resolve() != copy.resolve():
        shutil.copyfile(original, copy)
    if recipe.tokenizer is not None:
        recipe.tokenizer.save(folder / "tokenizer")


def _objective(recipe: Recipe) -> Any:
    try:
        return serialize.to_json(recipe.objective)
    except UserError as error:
        _log.warning("config.json holds no objective, so the run opens only with its config: %s", error)
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
