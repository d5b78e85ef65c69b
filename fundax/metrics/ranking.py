"""Ranks of a retrieval: the position of the first matching item for each query, and their summary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHUNK_BYTES = 64 << 20  # size of a block of similarities, so that N pairs never need an array [N N]


def ranks(queries: np.ndarray, items: np.ndarray, groups: np.ndarray, *, parity: bool = False) -> np.ndarray:
    """Position (0 = first) i64 [N] of the first matching item for each query, by descending dot product.

    Item j matches query i if groups[i] == groups[j]. Only items that do not match are counted. If they have the same
    score as the match, they are ranked first, so that collapsed features get the worst rank.

    Args:
        queries, items: f32 [N E].
        groups: i64 [N].
        parity: give the position of item i itself in a stable descending sort, as in open_clip.
    """
    n = len(queries)
    step = max(1, CHUNK_BYTES // (4 * n))
    out = np.empty(n, np.int64)
    for at in range(0, n, step):
        rows = np.arange(at, min(at + step, n))
        scores = queries[rows] @ items.T  # [b N]
        if parity:
            own = scores[np.arange(len(rows)), rows][:, None]
            before = np.arange(n)[None] < rows[:, None]
            out[rows] = (scores > own).sum(axis=1) + ((scores == own) & before).sum(axis=1)
        else:
            right = groups[rows][:, None] == groups[None]  # [b N]
            best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
            out[rows] = (~right & (scores >= best)).sum(axis=1)
    return out


def summary(rank: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Mean and median rank (from 1) and recall at k of positions i64 [N] (from 0).

    Source: open_clip 2.30.0, get_clip_metrics, which rounds the median down before it adds 1.
    """
    recall = {f"R@{k}": float((rank < k).mean()) for k in ks}
    return {"mean_rank": float(rank.mean() + 1), "median_rank": float(np.floor(np.median(rank)) + 1)} | recall
