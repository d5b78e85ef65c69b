"""Check the shapes and values of the arrays of a result, so that figures and reports can rely on them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fundax.evals.kinds import KEEP, ByClass, Cases, ClassificationResult, FewShotResult, Horizons, Part, Result, Rows
from fundax.types import UserError

# Shapes of the arrays of each kind. A letter has the same length in all arrays of a result; a number is the length.
_SHAPES: dict[str, dict[str, str]] = {
    "classification": {"classes": "K", "probabilities": "N K", "labels": "N", "logits": "N K"},
    "multi_label": {"classes": "K", "probabilities": "N K", "labels": "N K", "logits": "N K"},
    "regression": {"names": "K", "value": "N K", "predicted": "N K"}
    | dict.fromkeys(("target_mae", "target_r2", "target_pearson", "count", "note"), "K"),
    "segmentation": {"classes": "K", **dict.fromkeys(("dice", "iou", "hd95", "sensitivity", "specificity"), "N K")},
    "landmarks": {"names": "K", "error": "N K", "error_diameters": "N K", "found": "N K 2", "truth": "N K 2"},
    "retrieval": {"image_to_text_rank": "N", "text_to_image_rank": "M"},
    "few_shot": dict.fromkeys(("method", "shots", "balanced_accuracy", "macro_auc", "seed", "note"), "D")
    | {"probabilities": "D N K", "labels": "N", "patient": "N", "classes": "K"},
    "reports": {"image": "T h w 3", "finding_group": "F", "finding": "F", "finding_count": "F 3"}
    | dict.fromkeys(("written", "true", "written_findings", "true_findings"), "T"),
    "reconstruction": {"pictures": "T h w 3", "reconstruction": "T h w 3"},
}
_WORDS = frozenset(("classes", "names", "note", "band_note", "method", "finding_group", "finding", "written", "true"))
_WORDS |= {"written_findings", "true_findings", "picture_kind", "eye", "modality", "sex", "device", "site", "camera"}
_WORDS |= {"ethnicity", "age", "patient", "index"}
_CASES = {"pictures": "T h w 3", "picture_overlay": "T h v 3"} | dict.fromkeys(
    ("picture_row", "picture_kind", "picture_score"), "T"
)


def check(result: Result) -> None:
    """Raise UserError, naming the array, if the shape or the values of an array are invalid."""
    lengths: dict[str, int] = {}
    for name, shape in _SHAPES.get(result.kind, {}).items():
        _fit(name, getattr(result, name), shape, lengths)
    rows, cases = getattr(result, "rows", None), getattr(result, "cases", None)
    by_class, horizons = getattr(result, "by_class", None), getattr(result, "horizons", None)
    _parts(rows, Rows, {"days": "N V"}, "N", lengths)
    _parts(cases, Cases, _CASES, "", {})
    _parts(by_class, ByClass, {}, "K", lengths)
    _parts(horizons, Horizons, {}, "bands", {})
    if isinstance(result, ClassificationResult):
        _check_classes(result)
    if isinstance(result, FewShotResult) and result.labels is not None and result.classes is not None:
        _in_range(result.labels, len(result.classes))
    if cases is not None and cases.picture_row.dtype.kind not in "iu":
        raise UserError(f"picture_row is {cases.picture_row.dtype}; expected row numbers")


def _parts(part: Part | None, kind: type[Part], shapes: Mapping[str, str], other: str, lengths: dict[str, int]) -> None:
    if isinstance(part, kind):
        for name, values in part.arrays().items():
            _fit(name, values, shapes.get(name, other), lengths)


def _fit(name: str, values: np.ndarray | None, shape: str, lengths: dict[str, int]) -> None:
    if values is None:
        return
    values, wanted = np.asarray(values), shape.split()
    known = [int(w) if w.isdigit() else lengths.get(w) for w in wanted]
    fits = values.ndim == len(wanted) and all(k in (None, n) for k, n in zip(known, values.shape, strict=True))
    if not fits:
        here = ", ".join(f"{w} = {k}" for w, k in zip(wanted, known, strict=True) if k is not None and w != str(k))
        raise UserError(
            f"{name} has the shape {list(values.shape)}; expected [{shape}]{f' with {here}' if here else ''}"
        )
    if values.dtype.kind not in "biuf" and name not in _WORDS and not name.startswith(KEEP):
        raise UserError(f"{name} holds {values.dtype}; expected numbers")
    lengths.update({w: n for w, n in zip(wanted, values.shape, strict=True) if not w.isdigit()})


def _check_classes(result: ClassificationResult) -> None:
    for name in ("probabilities", "logits"):
        values = getattr(result, name)
        if values is not None and not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise UserError(f"{name} of row {row} are not finite; the weights may be broken")
    if result.kind == "classification":
        _in_range(result.labels, len(result.classes))
    elif not (np.isnan(result.labels) | (result.labels == 0) | (result.labels == 1)).all():
        raise UserError("multi-label labels must be 0, 1 or NaN; this file has other values")


def _in_range(labels: np.ndarray, classes: int) -> None:
    known = np.asarray(labels, np.float64)
    wrong = np.flatnonzero(~((known >= 0) & (known < classes) & (known == np.floor(known))))
    if len(wrong):
        raise UserError(f"the label of row {wrong[0]} is {labels[wrong[0]]}; expected a class from 0 to {classes - 1}")
