"""The file and line of a row of an evaluation, for error messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fundax.types import Batch, UserError


def where(data: Any, row: int) -> str:
    """The place of a row: "labels.csv row 7 (line 8)" in a pass over a source of records, otherwise "row 6"."""
    source = getattr(getattr(data, "examples", None), "source", None)
    named = getattr(source[row], "where", "") if source is not None and 0 <= row < len(source) else ""
    return named or f"row {row}"


def check_labels(
    label: np.ndarray, known: np.ndarray, batch: Batch, seen: int, classes: Sequence[str], data: Any
) -> None:
    """Raise UserError, naming file and row, if the label of a known row is invalid.

    Labels [B] must be indices of classes, and labels [B K] must be 0, 1 or NaN. `known` is bool [B], and `seen` the
    number of rows in earlier batches.
    """
    rows = np.asarray(batch["index"] if "index" in batch else seen + np.arange(len(label)))
    if label.ndim == 1:
        wrong = known & ~(label < len(classes))
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            listed = ", ".join(classes[:9]) + (", ..." if len(classes) > 9 else "")
            raise UserError(
                f"{where(data, int(rows[first]))}: label {label[first]}; expected 0 to {len(classes) - 1} ({listed})"
            )
        return
    if label.ndim != 2 or label.shape[1] != len(classes):
        raise UserError(f"labels have shape {label.shape}; expected [B] or [B {len(classes)}]")
    bad = np.argwhere(known[:, None] & ~(np.isnan(label) | (label == 0) | (label == 1)))
    if len(bad):
        row, column = map(int, bad[0])
        named = f"{where(data, int(rows[row]))}: {classes[column]} is {label[row, column]:g}"
        raise UserError(f"{named}; expected 0, 1 or nothing")
