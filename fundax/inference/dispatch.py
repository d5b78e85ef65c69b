"""Which file answers `launch.py predict` for a model: the one whose OBJECTIVE the model's is.

Such a file has OBJECTIVE (a class of fundax.objectives, or several), add_arguments(parser) and run(path, arguments), whose
result is printed. A new kind of model adds its file to PREDICTORS, and launch.py stays as it is."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from fundax.inference import eyes as predict_ret_clip
from fundax.inference import labels, landmarks, segmentation
from fundax.inference import reports as predict_report
from fundax.interop.read import is_run, load, read_objective
from fundax.types import UserError

PREDICTORS: tuple[ModuleType, ...] = (
    predict_ret_clip,
    predict_report,
    segmentation,
    landmarks,
    labels,
)


def predictor_of(path: str | Path) -> ModuleType:
    """The file for the model of a run, by its config.json, or of another program's folder.

    Raises UserError where there is no model, or none that predictions of one image are written for.
    """
    objective = read_objective(path) if is_run(path) else load(path).objective
    for module in PREDICTORS:
        if isinstance(objective, module.OBJECTIVE):
            return module
    several = (
        module.OBJECTIVE if isinstance(module.OBJECTIVE, tuple) else (module.OBJECTIVE,) for module in PREDICTORS
    )
    known = ", ".join(one.__name__ for classes in several for one in classes)
    raise UserError(f"{path} holds {type(objective).__name__}; predict answers for {known}")
