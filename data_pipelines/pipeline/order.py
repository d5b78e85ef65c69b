"""Random numbers of positions, and the order in which the sources of a mix take turns."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

_WHEEL = 10_000  # slots of a mix whose weights are not whole numbers


@functools.lru_cache(maxsize=4096)
def derive(seed: int, *words: int) -> int:
    """A 32-bit number that depends on the seed and the words."""
    return int(np.random.SeedSequence((seed, *words)).generate_state(1)[0])


def wheel(weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spread the parts evenly over slots: (owner [S], rank among the owner's slots [S], number of slots per part)."""
    times = np.asarray(weights, np.float64) / min(weights)  # 1/6 and 5/6 are 1:5, to the last bit of a float
    if all(float(w).is_integer() for w in weights):
        whole = np.array([int(w) for w in weights])
    elif times.max() < _WHEEL and np.abs(times - times.round()).max() < 1e-9:
        whole = times.round().astype(np.int64)
    else:
        exact = np.asarray(weights, np.float64) / math.fsum(weights) * _WHEEL
        whole = np.maximum(np.floor(exact + 1e-9).astype(np.int64), 1)
        for part in np.argsort(whole - exact, kind="stable")[: max(0, _WHEEL - int(whole.sum()))]:
            whole[part] += 1  # the largest remainders get the slots that rounding down left over
    share = whole // np.gcd.reduce(whole)
    owner = np.repeat(np.arange(len(share)), share)
    rank = np.concatenate([np.arange(n) for n in share])
    order = np.lexsort((owner, (rank + 0.5) / share[owner]))
    return owner[order], rank[order], share


@functools.lru_cache(maxsize=16)
def order(length: int, seed: int) -> np.ndarray:
    """A permutation i32 [length] that is the same with every version of NumPy."""
    # NumPy guarantees the raw bits of its generators across versions, but not permutation()
    return np.argsort(np.random.Philox(key=seed).random_raw(length), kind="stable").astype(np.int32)
