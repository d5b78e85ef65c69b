"""Choose the predictor module that `launch.py predict` uses for a model, by the class of its objective.

A predictor module defines OBJECTIVE (one or several classes of fundax.objectives), add_arguments(parser) and
run(path, arguments), whose result is printed. To support a new kind of model, add its module to PREDICTORS; launch.py
does not change."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from fundax.inference import examine, labels, landmarks, segmentation, visits, zero_shot
from fundax.inference import eyes as predict_ret_clip
from fundax.inference import reports as predict_report
from fundax.interop.pretrained import located
from fundax.interop.read import is_run, load, read_objective
from fundax.interop.task_set import is_task_set
from fundax.types import UserError

PREDICTORS: tuple[ModuleType, ...] = (
    predict_ret_clip,
    predict_report,
    segmentation,
    landmarks,
    visits,
    zero_shot,
    labels,
)


def predictor_of(path: str | Path) -> ModuleType:
    """The predictor module for the model of a run, or for weights in the format of another program.

    Raises UserError if `path` does not hold a model, or if no predictor supports its objective.
    """
    if is_task_set(located(path)):
        return examine
    objective = read_objective(path) if is_run(path) else load(path).objective
    for module in PREDICTORS:
        if isinstance(objective, module.OBJECTIVE):
            return module
    several = (
        module.OBJECTIVE if isinstance(module.OBJECTIVE, tuple) else (module.OBJECTIVE,) for module in PREDICTORS
    )
    known = ", ".join(one.__name__ for classes in several for one in classes)
    hint = "; its features are written by: launch.py embed" if hasattr(objective, "image") else ""
    raise UserError(f"{path} holds {type(objective).__name__}; predict answers for {known}{hint}")
