"""Recipe: the objective, data, optimizer and evaluations of a run. Run: the settings that every run has."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import optax

from fundax.encoders.backbone import preprocessing
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


@dataclass(frozen=True)
class Run:
    """The settings that every run has, whatever it trains.

    Args:
        batch: Number of examples in a step, over all devices.
        steps: Number of optimizer steps; 0 trains for --epochs passes over the data.
        epochs: Number of passes over the training data.
        lr: Peak learning rate.
        weight_decay: Weight decay of the optimizer.
        accumulate: Number of micro-batches that each step is computed in, to save memory.
        mesh: Numbers of devices for data,model or data,fsdp,model; -1 takes all that are left.
        workers: Number of processes that read images; 0 reads in the training process and keeps synthetic images.
        on_bad_image: Stop at an image that cannot be read, or skip it and list it in bad_records.jsonl.
        dtype: Data type of the computation; parameters and losses stay in float32.
        remat: Activations to compute again in the backward pass, to save memory.
        attention: Implementation of attention; cudnn needs an NVIDIA GPU.
        eval_every: Number of steps between evaluations; 0 takes the default of the config.
        save_every: Number of steps between checkpoints; 0 takes the default of the config.
        keep: Number of latest checkpoints to keep.
        seed: Seed of all random numbers.
        smoke: Train a tiny model for two steps on a few images, to test that everything runs.
    """

    batch: int = 64
    steps: int = 0
    epochs: int = 1
    lr: float = 1e-3
    weight_decay: float = 0.0
    accumulate: int = 1
    mesh: str = "-1,1"
    workers: int = 0
    on_bad_image: Literal["error", "skip"] = "error"
    dtype: Literal["bfloat16", "float32"] = "float32"
    remat: Literal["full", "dots", "none"] = "none"
    attention: Literal["plain", "xla", "cudnn"] = "plain"
    eval_every: int = 0
    save_every: int = 0
    keep: int = 2
    seed: int = 0
    smoke: bool = False

    def total(self, epoch: int) -> int:
        """Number of steps of the run, when a pass over the data takes `epoch` steps."""
        return self.steps or max(self.epochs * epoch, 1)

    def recipe(
        self, steps: int, start: Any = None, *, log: int = 10, save: int = 500, eval: int = 500
    ) -> dict[str, Any]:
        """The fields of a Recipe that these settings decide.

        Args:
            steps: number of steps, 0 to evaluate only.
            start: where parameters come from: anything with init_from and init_extra, such as interop.warm_start gives.
            log, save, eval: the config's own intervals.

        Raises UserError for a mesh that is not a list of numbers.
        """
        fields = {name: getattr(self, name) for name in ("batch", "accumulate", "keep", "seed")}
        intervals = Intervals(log, self.save_every or save, self.eval_every or eval)
        fields |= {name: getattr(start, name, ()) for name in ("init_from", "init_extra")}
        return fields | {"steps": steps, "mesh": parse_mesh(self.mesh), "intervals": intervals}

    def loader(self) -> dict[str, Any]:
        """The arguments of data_pipelines.pipeline.train and mix that these settings decide."""
        return {name: getattr(self, name) for name in ("batch", "seed", "workers", "on_bad_image")}

    def compute(self, *modules: type) -> tuple[dict[str, Any], ...]:
        """The fields dtype, remat and attention for each of the Linen modules of a model, as far as it has them.

        Raises UserError where a setting differs from its default and no module has such a field.
        """
        names = ("dtype", "remat", "attention")
        found = tuple({n: getattr(self, n) for n in names if n in _fields(module)} for module in modules)
        for name in names[1:]:
            if getattr(self, name) != getattr(Run, name) and not any(name in fields for fields in found):
                models = " and ".join(module.__name__ for module in modules)
                raise UserError(f"--{name} {getattr(self, name)}: {models} has no such choice; leave it out")
        return found


def _fields(module: type) -> Mapping[str, Any]:
    fields = dict(getattr(module, "__dataclass_fields__", {}))
    if isinstance(getattr(module, "attention", None), tuple):  # a U-Net's: at which levels it attends
        del fields["attention"]
    return fields


def parse_mesh(text: str) -> tuple[int, ...]:
    """The numbers in "4,2" or "-1,2,1". Raises UserError for anything else."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"--mesh {text!r}: expected numbers such as 4,2 or 1,-1,2") from None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run is made of. Building a recipe reads no training images and uses no device."""

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
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # JSON; replaces what follows from the objective
    tokenizer: Any = None  # anything with save(folder)
    writers: tuple[str, ...] = ()  # "tensorboard", "wandb": beside metrics.jsonl, where installed
    source: Mapping[str, Any] = field(default_factory=dict)  # config path and arguments, set by fundax.config.load

    def __post_init__(self) -> None:
        object.__setattr__(self, "preprocessing", preprocessing(self.objective) | dict(self.preprocessing))


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
