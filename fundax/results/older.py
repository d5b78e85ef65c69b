"""Convert evaluations that were written before results declared their kind to the present names of arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import expit, softmax

Arrays = dict[str, np.ndarray]


def with_kind(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Add the kind to the arrays of a file without one, and rename the arrays accordingly."""
    out = dict(arrays)
    if "group" in out:
        out.setdefault("patient", out.pop("group"))
    if {"method", "shots", "macro_auc", "balanced_accuracy"} <= set(out):
        return _few_shot(out)
    if "labels" in out and {"probabilities", "logits"} & set(out):
        return _classification(_with_rows(out, len(out["labels"])))
    if {"value", "predicted"} <= set(out):
        return _regression(_with_rows(out, len(out["value"])))
    for kind, main in (("segmentation", "dice"), ("landmarks", "error")):
        if main in out:
            return _columns(_with_rows(out, len(out[main])), kind, main)
    if {"written", "true", "image"} <= set(out):
        return _reports(out)
    if {"pictures", "rebuilt"} <= set(out):
        return out | {"kind": np.array("reconstruction"), "reconstruction": out.pop("rebuilt")}
    if {"image_to_text_rank", "text_to_image_rank"} <= set(out):
        return out | {"kind": np.array("retrieval")}
    return out | {"kind": np.array("scores")}


def _with_rows(out: Arrays, rows: int) -> Arrays:
    """Convert picture_index, which was a row of the arrays or, for thumbnails with scores, a row of the source."""
    if "picture_index" in out and "pictures" in out:
        at = out.pop("picture_index")
        if "picture_score" in out and len(out.get("index", ())) == rows:
            at = np.array([next(iter(np.flatnonzero(out["index"] == value)), -1) for value in at])
        out["picture_row"] = at
    return out


def _classification(out: Arrays) -> Arrays:
    labels = out["labels"]
    if "probabilities" not in out:
        out["probabilities"] = expit(out["logits"]) if labels.ndim == 2 or out["logits"].shape[-1] == 1 else softmax(
            np.asarray(out["logits"], np.float64), axis=1
        )  # fmt: skip
    scores = out["probabilities"]
    if labels.ndim == 1 and (scores.ndim == 1 or scores.shape[-1] == 1):  # only the second of two classes
        out["probabilities"] = np.stack([1 - scores.reshape(-1), scores.reshape(-1)], 1)
        out.pop("logits", None)
    if "classes" not in out:
        out["classes"] = np.array([f"class {k}" for k in range(out["probabilities"].shape[-1])])
    zero_shot = "auc" in out and "precision" not in out  # the only evaluation that ranked by logits
    out["ranked_by"] = np.array("logits" if zero_shot and "logits" in out else "probabilities")
    return out | {"kind": np.array("multi_label" if labels.ndim == 2 else "classification")}


def _regression(out: Arrays) -> Arrays:
    for key in ("value", "predicted"):
        out[key] = out[key].reshape(len(out[key]), -1)
    named = out.get("names", ())
    if len(named) != out["value"].shape[1]:
        out["names"] = np.array([f"value {k + 1}" for k in range(out["value"].shape[1])])
    return out | {"kind": np.array("regression")}


def _columns(out: Arrays, kind: str, main: str) -> Arrays:
    for key in ("dice", "iou", "hd95", "sensitivity", "specificity", "error", "error_diameters"):
        if key in out and out[key].dtype.kind == "f":
            out[key] = out[key].reshape(len(out[key]), -1)
    names = "classes" if kind == "segmentation" else "names"
    if len(out.get(names, ())) != out[main].shape[1]:
        out[names] = np.array([f"{kind} {k + 1}" for k in range(out[main].shape[1])])
    return out | {"kind": np.array(kind)}


def _few_shot(out: Arrays) -> Arrays:
    """Merge probabilities, which had a key for each method and number of images."""
    kept = [
        out.pop(f"{m}_{n}_probabilities", None) for m, n in dict.fromkeys(zip(out["method"], out["shots"], strict=True))
    ]
    if kept and all(array is not None for array in kept):
        out["probabilities"] = np.concatenate(kept)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return out | {"kind": np.array("few_shot")}


def _reports(out: Arrays) -> Arrays:
    """Merge the groups of findings, which had separate keys, and rename the scores, which were `names` and `values`."""
    groups = [key.removesuffix("_count") for key in out if key.endswith("_count")]
    out["metric_name"], out["metric_value"] = out.pop("names", np.zeros(0, str)), out.pop("values", np.zeros(0))
    out["finding_group"] = np.array([group for group in groups for _ in out[group]], dtype=str)
    out["finding"] = np.concatenate([np.zeros(0, str), *(out[group] for group in groups)])
    out["finding_count"] = np.concatenate([np.zeros((0, 3), np.int64), *(out[f"{group}_count"] for group in groups)])
    for side in ("written", "true"):
        lists = (
            zip(*(out[f"{group}_{side}"] for group in groups), strict=True) if groups else [("",)] * len(out["image"])
        )
        out[f"{side}_findings"] = np.array(["; ".join(filter(None, parts)) for parts in lists], dtype=str)
    return out | {"kind": np.array("reports")}
