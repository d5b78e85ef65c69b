"""Relations between the rows of a batch: pairs that are not true negatives, because the patient or the text is the same.

A contrastive loss uses all other rows as negatives. This is wrong for another image of the same patient, and for a report
with the same text. The losses of contrastive.py and ring.py take two kinds of row numbers for such pairs:

    group    i32 [B]             rows with equal numbers are positives of each other
    related  tuple of i32 [B]    rows with equal numbers in any of the arrays are neither positives nor negatives
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fundax.runtime.mesh import replicate
from fundax.types import Metrics

Repeats = Literal["mask", "share", "negatives"]
REPEATS = ("mask", "share", "negatives")
Related = tuple[jax.Array, ...]


class Relations(NamedTuple):
    """The arguments `group` and `related` of a loss, and the numbers of affected pairs, for logging."""

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
    """Compute the relations of rows by their texts, patients and categories. Arguments that are None are ignored.

    Args:
        repeats: "mask": rows with equal texts or patients are not negatives of each other. "share": rows with equal texts
            are positives, and rows with equal patients are not negatives. "negatives": texts and patients are ignored, as
            in most published code.
        text: token ids i32 [B L], or numbers i32 [B] that are equal for equal texts.
        patient: i32 [B], negative if unknown.
        category: i32 [B]; rows of the same category are positives of each other, for all values of `repeats`.
        mask: bool [B], False for rows that are ignored.

    Returns:
        The relations. `counts` has same_text and same_patient, the numbers of ordered pairs of different rows that agree.
    """
    group = None if category is None else jnp.asarray(category)
    if repeats == "negatives":
        return Relations(group)
    numbers, counts = {}, {}
    for name, values in (("text", text), ("patient", patient)):
        if values is not None:
            ids = jnp.asarray(values)
            numbers[name] = replicate(known(ids if ids.ndim == 1 else equal_rows(ids), mask))
            counts[f"same_{name}"] = agreeing_pairs(numbers[name])
    if repeats == "share" and group is None:
        group = numbers.pop("text", None)
    return Relations(group, tuple(numbers.values()), counts)


def equal_rows(ids: jax.Array) -> jax.Array:
    """Numbers i32 [B] that are equal for equal rows of ids i32 [B L].

    Rows are compared by a hash of 64 bits. Among 10,000 different rows, the probability of a collision is 3e-12.
    """
    first, second = (replicate(_hash(ids, seed)) for seed in (0x9E3779B1, 0x85EBCA77))
    return _ranks((first, second))


def _hash(ids: jax.Array, seed: int) -> jax.Array:
    """Hash rows to u32 [B]. Tokens are mixed with their positions before the sum, so that the order matters."""
    x = ids.astype(jnp.uint32) * jnp.uint32(0xC2B2AE3D)
    x = x + (jnp.arange(1, ids.shape[1] + 1, dtype=jnp.uint32) * jnp.uint32(seed))[None]
    for shift, factor in ((15, 0x85EBCA6B), (13, 0xC2B2AE35)):  # the finalizer of MurmurHash3
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return (x ^ (x >> 16)).sum(1, dtype=jnp.uint32)


def _ranks(keys: Sequence[jax.Array]) -> jax.Array:
    """Rank i32 [B] of each row among the distinct rows of `keys`."""
    order = jnp.lexsort(tuple(keys))
    new = jnp.zeros(len(order), bool)
    for key in keys:
        row = key[order]
        new = new | jnp.concatenate([jnp.zeros(1, bool), row[1:] != row[:-1]])
    return jnp.zeros(len(order), jnp.int32).at[order].set(jnp.cumsum(new.astype(jnp.int32)))


def known(ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Replace the ids i32 [B] that are below 0 or outside the mask by unique numbers."""
    own = -1 - jnp.arange(len(ids), dtype=jnp.int32)
    there = ids >= 0 if mask is None else (ids >= 0) & mask
    return jnp.where(there, ids.astype(jnp.int32), own)


def agreeing_pairs(ids: jax.Array) -> jax.Array:
    """Number of ordered pairs of different rows with equal ids i32 [B]; f32 ()."""
    rank = _ranks((ids,))
    sizes = jnp.zeros(len(ids), jnp.float32).at[rank].add(1.0)
    return (sizes * (sizes - 1)).sum()


def no_negatives(group: jax.Array | None, related: Related) -> jax.Array | None:
    """Mask bool [B B], True for pairs of different related rows that are not positives; None if `related` is empty."""
    if not related:
        return None
    rows = jnp.arange(len(related[0]), dtype=jnp.int32)
    return unrelated_by((rows, *related), (rows, *related), group, group)


def unrelated_by(rows: Related, columns: Related, group: jax.Array | None, column_group: jax.Array | None) -> jax.Array:
    """no_negatives bool [r b] for a block of rows and columns. The first array of each is the row number."""
    equal = [first[:, None] == second[None] for first, second in zip(rows, columns, strict=True)]
    hidden = equal[1]
    for more in equal[2:]:
        hidden = hidden | more
    hidden = hidden & ~equal[0]
    if group is None or column_group is None:
        return hidden
    return hidden & (group[:, None] != column_group[None])
