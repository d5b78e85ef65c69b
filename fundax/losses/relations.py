"""Which pairs of a batch are no true negatives: rows of one patient, and rows with equal texts.

A contrastive loss takes every other row as a negative. That is wrong for another image of the same patient and for a report
that says the same. The losses of contrastive.py and ring.py take two kinds of row numbers for such pairs:

    group    i32 [B]             rows with an equal number are positives of each other
    related  tuple of i32 [B]    rows with an equal number in any of them are neither positives nor negatives
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fundax.types import Metrics

Repeats = Literal["mask", "share", "negatives"]
REPEATS = ("mask", "share", "negatives")
Related = tuple[jax.Array, ...]


class Relations(NamedTuple):
    """What a loss is told about the rows of a batch, and how many pairs are concerned, to log."""

    group: jax.Array | None = None
    related: Related = ()
    counts: Metrics = {}  # noqa: RUF012 (read only)


def relations(
    repeats: Repeats,
    *,
    text: Any = None,
    patient: Any = None,
    category: Any = None,
    mask: Any = None,
) -> Relations:
    """How rows are related by their texts, patients and categories; an argument that is None says nothing.

    Args:
        repeats: "mask": rows with an equal text or patient are no negatives of each other. "share": rows with an equal text
            are positives, those of one patient are no negatives. "negatives": neither is looked at, as in most published
            code.
        text: token ids i32 [B L], or numbers i32 [B] that are equal for equal texts.
        patient: i32 [B], negative if unknown.
        category: i32 [B]; rows of one category are positives of each other, with any `repeats`.
        mask: bool [B], False for rows that do not count.

    `counts` has same_text and same_patient, the numbers of ordered pairs of different rows that agree.
    """
    group = None if category is None else jnp.asarray(category)
    if repeats == "negatives":
        return Relations(group)
    found, counts = {}, {}
    for name, given in (("text", text), ("patient", patient)):
        if given is not None:
            ids = jnp.asarray(given)
            found[name] = known(ids if ids.ndim == 1 else equal_rows(ids), mask)
            counts[f"same_{name}"] = agreeing_pairs(found[name])
    if repeats == "share" and group is None:
        group = found.pop("text", None)
    return Relations(group, tuple(found.values()), counts)


def equal_rows(ids: jax.Array) -> jax.Array:
    """Numbers i32 [B] that are equal for equal rows of ids i32 [B L].

    Rows are compared by a hash of 64 bits: two different rows among 10,000 get one number with a chance of 3e-12.
    """
    first, second = (_hash(ids, seed) for seed in (0x9E3779B1, 0x85EBCA77))
    return _ranks((first, second))


def _hash(ids: jax.Array, seed: int) -> jax.Array:
    """u32 [B]: every token is mixed with its position before the sum, since a plain sum is the same in any order."""
    x = ids.astype(jnp.uint32) * jnp.uint32(0xC2B2AE3D)
    x = x + (jnp.arange(1, ids.shape[1] + 1, dtype=jnp.uint32) * jnp.uint32(seed))[None]
    for shift, factor in ((15, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finalizer of MurmurHash3
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return (x ^ (x >> 16)).sum(1, dtype=jnp.uint32)


def _ranks(keys: Sequence[jax.Array]) -> jax.Array:
    """i32 [B]: the rank of each row among the different rows of `keys`."""
    order = jnp.lexsort(tuple(keys))
    new = jnp.zeros(len(order), bool)
    for key in keys:
        row = key[order]
        new = new | jnp.concatenate([jnp.zeros(1, bool), row[1:] != row[:-1]])
    return jnp.zeros(len(order), jnp.int32).at[order].set(jnp.cumsum(new.astype(jnp.int32)))


def known(ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """ids i32 [B], with a number of its own for each row that is below 0 or not in the mask."""
    own = -1 - jnp.arange(len(ids), dtype=jnp.int32)
    there = ids >= 0 if mask is None else (ids >= 0) & mask
    return jnp.where(there, ids.astype(jnp.int32), own)


def agreeing_pairs(ids: jax.Array) -> jax.Array:
    """Number of ordered pairs of different rows with equal ids i32 [B]; f32 ()."""
    rank = _ranks((ids,))
    sizes = jnp.zeros(len(ids), jnp.float32).at[rank].add(1.0)
    return (sizes * (sizes - 1)).sum()


def no_negatives(group: jax.Array | None, related: Related) -> jax.Array | None:
    """bool [B B]: True for pairs of different related rows that are not positives of each other; None without any."""
    if not related:
        return None
    rows = jnp.arange(len(related[0]), dtype=jnp.int32)
    return unrelated_by((rows, *related), (rows, *related), group, group)


def unrelated_by(rows: Related, columns: Related, group: jax.Array | None, column_group: jax.Array | None) -> jax.Array:
    """bool [r b]: the same for a block of rows and columns. The first array of `rows` and `columns` is the row's number."""
    equal = [first[:, None] == second[None] for first, second in zip(rows, columns, strict=True)]
    found = equal[1]
    for more in equal[2:]:
        found = found | more
    found = found & ~equal[0]
    if group is None or column_group is None:
        return found
    return found & (group[:, None] != column_group[None])
