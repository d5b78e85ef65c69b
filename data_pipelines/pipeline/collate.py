"""Stack examples into a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.records import DataError

Batch = dict[str, np.ndarray]


def stack(rows: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack each key along a first axis [B]. Texts that were not tokenized become an array of str.

    Raises DataError if the examples differ in keys, shapes or types. Each example needs `index` for the message.
    """
    first = rows[0]
    for row in rows[1:]:
        if row.keys() != first.keys():
            key = min(row.keys() ^ first.keys())
            raise DataError(f"key {key!r} is in some examples of a batch and not in others (row {row['index']})")
    batch = {}
    for key in first:
        values = [np.asarray(row[key]) for row in rows]
        kinds = [(v.shape, v.dtype if v.dtype.kind != "U" else str) for v in values]  # texts may differ in length
        odd = next((kind for kind in kinds if kind != kinds[0]), None)
        if odd is not None:
            raise DataError(
                f"key {key!r} is {_words(*kinds[0])} and {_words(*odd)} in one batch; "
                "a step must bring all examples to one size and type"
            )
        batch[key] = np.stack(values)
    return batch


def _words(shape: tuple[int, ...], dtype: Any) -> str:
    return f"{np.dtype(dtype).name} {list(shape)}"
