"""Recipe: the objective, data, optimizer and evaluations of a run. Run: the settings that every run has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optax

from fundax.encoders.backbone import preprocessing
from fundax.runtime.best import Best, ranking
from fundax.runtime.mesh import RULES, Rules
from fundax.tuning import BY_DEFAULT, Tuning, tuning
from fundax.types import Data, Eval, Objective, Params, UserError


@dataclass(frozen=True)
class Intervals:
    """Intervals in steps. 0 means never, but the last step is always saved and evaluated."""

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
        tune: Parameters that train: full, head, text (not the image encoder), layers:K or lora:RANK; empty takes the config's.
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
        best: Metric that selects the best checkpoint, such as val/macro_auc or val/loss:min; empty takes the config's.
        seed: Seed of all random numbers.
        smoke: Train a tiny model for two steps on a few images, to test that everything runs.
    """

    batch: int = 64
    steps: int = 0
    epochs: int = 1
    lr: float = 1e-3
    weight_decay: float = 0.0
    tune: str = ""
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
    best: str = ""
    seed: int = 0
    smoke: bool = False

    def selects(self, default: Best | None) -> Best | None:
        """The metric that selects the best checkpoint: --best, else the config's `default`.

        --best without a direction keeps the direction of `default` for the same metric.

        Raises UserError for a direction other than min and max.
        """
        if not self.best:
            return default
        name, colon, direction = self.best.partition(":")
        if not colon and default is not None:
            same, sign = ranking(default)
            direction = "min" if sign < 0 and same.rpartition("/")[2] == name.rpartition("/")[2] else ""
        found = (name, direction) if direction else name
        ranking(found)
        return found

    def scaling(self, default: Run) -> str:
        """A line about the learning rate of another batch than the config's default; "" for the same batch."""
        if self.batch == default.batch:
            return ""
        linear = self.lr * self.batch / default.batch
        return (
            f"batch {self.batch} instead of the config's {default.batch}: scaled linearly, --lr {self.lr:g} would be "
            f"{linear:g}; only configs whose help says so scale it themselves"
        )

    def total(self, epoch: int) -> int:
        """Number of steps of the run, given the number of steps of an epoch."""
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
        fields |= {"origin": getattr(start, "origin", {})}
        return fields | {"steps": steps, "mesh": parse_mesh(self.mesh), "intervals": intervals}

    def loader(self) -> dict[str, Any]:
        """The arguments of data_pipelines.pipeline.train and mix that these settings decide."""
        return {name: getattr(self, name) for name in ("batch", "seed", "workers", "on_bad_image")}

    def compute(self, *modules: type) -> tuple[dict[str, Any], ...]:
        """The fields dtype, remat and attention for each of the Linen modules of a model, as far as it has them.

        Raises UserError if a setting differs from its default and no module has such a field.
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
    """The parts of a run. Building a recipe reads no training images and uses no device."""

    objective: Objective
    train: Data
    optimizer: optax.GradientTransformation
    steps: int
    batch: int  # the global batch
    evals: Mapping[str, Eval] = field(default_factory=dict)
    init_from: Sequence[Callable[[Params], Params]] = ()  # applied in order to fresh parameters
    init_extra: Sequence[Callable[[Any], Any]] = ()  # the same for `extra`: batch statistics of a pretrained encoder
    origin: Mapping[str, Any] = field(
        default_factory=dict
    )  # JSON: where the initial weights come from, and their licence
    mesh: tuple[int, ...] = (-1, 1)  # (data, model) or (data, fsdp, model)
    rules: Rules = RULES
    tune: Tuning = BY_DEFAULT  # what trains; by default everything, or the head of an objective whose encoder is frozen
    intervals: Intervals = Intervals()
    best: Best | None = None  # keep the best step by "zero_shot*/macro_auc" (a mean), or ("val/mean_error", "min")
    keep: int = 2  # latest checkpoints kept
    accumulate: int = 1  # micro-batches per step
    seed: int = 0
    preprocessing: Mapping[str, Any] = field(default_factory=dict)  # JSON; replaces what follows from the objective
    tokenizer: Any = None  # anything with save(folder)
    writers: tuple[str, ...] = ()  # in addition to metrics.jsonl: "tensorboard", "wandb"
    profile: int = 0  # steps that the profiler traces, to <workdir>/profile
    source: Mapping[str, Any] = field(default_factory=dict)  # config path and arguments, set by fundax.config.load
    data: Mapping[str, Any] = field(default_factory=dict)  # JSON: sources, classes, split and part, set by the same

    def __post_init__(self) -> None:
        object.__setattr__(self, "preprocessing", preprocessing(self.objective) | dict(self.preprocessing))
        fixed = has_fixed_encoder(self.objective)
        if fixed and self.tune.word not in ("", "head"):
            raise UserError(
                f"--tune {self.tune.word}: this config trains a head on the features of a frozen encoder; leave it out"
            )
        if not self.tune.word:
            object.__setattr__(self, "tune", tuning("head" if fixed else "full"))


def has_fixed_encoder(objective: Any) -> bool:
    """Whether an objective trains on features of an encoder that gets no gradient, or on features computed once."""
    owners = (objective, getattr(objective, "tower", None))
    return any(getattr(one, "frozen", False) for one in owners) or "feature" in objective.batch_spec(1)
