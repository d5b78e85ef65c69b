"""Contrastive losses as a ring over the data axis: every negative of the global batch, no B x B array anywhere.

Each device keeps its images; the texts travel from device to device, and with them what their columns have gathered so far.
A block of logits is made row chunk by row chunk, used, and forgotten; the backward pass makes it again. Memory is O(B / devices).
The permutation that fetches the next texts does not depend on the product with the present ones, so the two overlap.

Pairs: RET-CLIP contrasts three image-text pairs over one batch. They share one ring by a leading pair axis `R`.
The same losses written plainly, on global arrays, are in losses.py: they are the oracle of tests/fundax/losses/test_ring.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fundax.runtime.mesh import BATCH_AXES

BLOCK_ELEMENTS = 2**22  # 16 MiB of fp32 logits at a time
NEVER = -1e30  # the logit of a pair that does not count; finite, so that no inf - inf arises


@dataclass(frozen=True)
class Ring:
    """Where the batch is sharded: mesh axes, how many devices they span, rows of a block of logits."""

    axes: tuple[str, ...]
    devices: int
    rows: int

    def turn(self, tree: Any) -> Any:
        """Hand `tree` to the next device."""
        if self.devices == 1:
            return tree
        order = [(i, (i + 1) % self.devices) for i in range(self.devices)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, order), tree)

    def total(self, x: jax.Array) -> jax.Array:
        """Sum over devices."""
        return x if self.devices == 1 else jax.lax.psum(x, self.axes)


class Side(NamedTuple):
    """One side of the pairs on one device."""

    features: jax.Array  # [R b E]
    group: jax.Array | None  # i32 [b]; equal numbers are positives of each other. None: row i matches row i only
    present: jax.Array  # bool [R b]


class Tally(NamedTuple):
    """A running logsumexp: exp-sum `mass` relative to `peak`."""

    peak: jax.Array  # [R b]
    mass: jax.Array  # [R b]

    def add(self, logits: jax.Array, axis: int) -> Tally:
        peak = jnp.maximum(self.peak, logits.max(axis))
        fresh = jnp.exp(logits - jnp.expand_dims(peak, axis)).sum(axis)
        return Tally(peak, self.mass * jnp.exp(self.peak - peak) + fresh)

    def logsumexp(self) -> jax.Array:
        return self.peak + jnp.log(self.mass)


def _empty_tally(present: jax.Array) -> Tally:
    zeros = present * 0.0  # carries the device-varying type of its input
    return Tally(zeros + NEVER, zeros)


def block_logits(image: Side, text: Side, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """scale * cosine + bias, NEVER where either side is absent. # [R r b]"""
    product = jnp.einsum("rie,rje->rij", image.features, text.features, precision="highest")
    logits = scale[:, None, None] * product + bias[:, None, None]
    return jnp.where(image.present[:, :, None] & text.present[:, None, :], logits, NEVER)


def _positives(image: Side, text: Side) -> jax.Array:
    """1.0 where both sides are present and of one group. # [R r b]"""
    assert image.group is not None and text.group is not None
    same = image.group[:, None] == text.group[None, :]  # [r b]
    return (same[None] & image.present[:, :, None] & text.present[:, None, :]).astype(jnp.float32)


def _chunked(ring: Ring, tree: Any) -> Any:
    """[R b ...] -> [b/rows R rows ...] (and [b] -> [b/rows rows]) for a scan over row chunks."""

    def split(x: jax.Array) -> jax.Array:
        if x.ndim == 1:
            return x.reshape(-1, ring.rows)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, ring.rows, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, tree)


def _joined(tree: Any) -> Any:
    """Inverse of _chunked for [chunks R rows ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), tree)


def go_round(ring: Ring, visit: Callable, image: Any, text: Any, at_rows: Any, at_columns: Any) -> tuple[Any, Any]:
    """Bring every text to every image. `visit(image_rows, text, row_state, column_state) -> (row_state, column_state)`
    sees one chunk of rows; the column state travels with its texts and is home again at the end."""

    def block(rows: Any, text: Any, columns: Any) -> tuple[Any, Any]:
        def chunk(columns: Any, x: tuple) -> tuple[Any, Any]:
            row_state, columns = visit(x[0], text, x[1], columns)
            return columns, row_state

        columns, rows = jax.lax.scan(chunk, columns, (_chunked(ring, image), _chunked(ring, rows)))
        return _joined(rows), columns

    def stop(_: Any, carry: tuple) -> tuple:
        text, rows, columns = carry
        following = ring.turn(text)  # independent of the product below: they overlap
        rows, columns = block(rows, text, columns)
        return following, rows, ring.turn(columns)

    _, at_rows, at_columns = jax.lax.fori_loop(0, ring.devices, stop, (text, at_rows, at_columns))
    return at_rows, at_columns


# --- softmax ------------------------------------------------------------------------------------------------------


def _softmax_forward(ring: Ring, image: Side, text: Side, scale: jax.Array) -> tuple[jax.Array, tuple]:
    """Loss [R] and what the backward pass needs: both logsumexp, positives per row, rows that count."""
    no_bias = jnp.zeros_like(scale)

    def visit(image: Side, text: Side, rows: tuple, columns: Tally) -> tuple[tuple, Tally]:
        tally, matched, positives = rows
        logits = block_logits(image, text, scale, no_bias)
        if image.group is not None:
            same = _positives(image, text)
            matched, positives = matched + (same * logits).sum(-1), positives + same.sum(-1)
        return (tally.add(logits, -1), matched, positives), columns.add(logits, -2)

    zeros = image.present * 0.0
    start = (_empty_tally(image.present), zeros, zeros)
    (rows, matched, positives), columns = go_round(ring, visit, image, text, start, _empty_tally(text.present))
    if image.group is None:
        matched = scale[:, None] * jnp.sum(image.features * text.features, -1)
        positives = jnp.ones_like(matched)
    count = ring.total(image.present.sum(-1).astype(jnp.float32))  # [R]
    row_lse, column_lse = rows.logsumexp(), columns.logsumexp()
    each = jnp.where(image.present, 0.5 * (row_lse + column_lse) - matched / jnp.maximum(positives, 1), 0.0)
    loss = ring.total(each.sum(-1)) / jnp.maximum(count, 1)
    return loss, (row_lse, column_lse, positives, count)


def _softmax_backward(ring: Ring, image: Side, text: Side, scale: jax.Array, kept: tuple, g: jax.Array) -> tuple:
    """Gradients of sum_r g_r loss_r with respect to image features, text features, scale."""
    row_lse, column_lse, positives, count = kept
    weight = (g / jnp.maximum(count, 1))[:, None, None]
    no_bias = jnp.zeros_like(scale)
    own = scale[:, None] * jnp.sum(image.features * text.features, -1)  # logits of the pairs themselves [R b]

    def visit(rows: tuple, columns: tuple, at_rows: tuple, d_text: jax.Array) -> tuple[tuple, jax.Array]:
        (image, row_lse, positives, own), (d_image, slope) = rows, at_rows
        text, column_lse, text_own = columns
        logits = block_logits(image, text, scale, no_bias)
        there = image.present[:, :, None] & text.present[:, None, :]
        to_text = jnp.where(there, 0.5 * jnp.exp(logits - row_lse[:, :, None]), 0.0)
        to_image = jnp.where(there, 0.5 * jnp.exp(logits - column_lse[:, None, :]), 0.0)
        pull = to_text + to_image
        if image.group is None:
            # probabilities sum to one, so the scale's slope is a sum of differences from the own logit: where almost
            # all probability is there already, nothing large cancels
            slope = slope + (to_text * (logits - own[:, :, None]) + to_image * (logits - text_own[:, None, :])).sum(-1)
        else:
            pull = pull - _positives(image, text) / jnp.maximum(positives, 1)[:, :, None]
            slope = slope + jnp.where(there, pull * logits, 0.0).sum(-1)
        return (d_image + _times(pull, text.features), slope), d_text + _times(pull.mT, image.features)

    start = image.features * 0.0, image.present * 0.0
    rows, columns = (image, row_lse, positives, own), (text, column_lse, own)
    (d_image, slope), d_text = go_round(ring, visit, rows, columns, start, text.features * 0.0)
    if image.group is None:
        d_image = d_image - jnp.where(image.present[..., None], text.features, 0.0)
        d_text = d_text - jnp.where(image.present[..., None], image.features, 0.0)
    d_scale = ring.total(jnp.sum(weight[..., 0] * slope, -1)) / scale
    weight = weight * scale[:, None, None]
    return weight * d_image, weight * d_text, d_scale


def _times(pull: jax.Array, features: jax.Array) -> jax.Array:
    return jnp.einsum("rij,rje->rie", pull, features, precision="highest")


# --- sigmoid ------------------------------------------------------------------------------------------------------


def _sigmoid_both(
    ring: Ring, image: Side, text: Side, scale: jax.Array, bias: jax.Array, with_gradient: bool
) -> tuple[jax.Array, tuple]:
    """Loss [R] and, in the same turn of the ring, its gradients: softplus needs no normaliser, so one pass is enough."""

    def visit(image: Side, text: Side, rows: tuple, d_text: Any) -> tuple[tuple, Any]:
        loss, pulls, d_image = rows
        logits = block_logits(image, text, scale, bias)
        pull = jnp.where(logits > NEVER, jax.nn.sigmoid(logits), 0.0)
        loss = loss + jax.nn.softplus(logits).sum(-1)
        if image.group is not None:
            same = _positives(image, text)
            loss, pull = loss - (same * logits).sum(-1), pull - same
        if with_gradient:
            d_image, d_text = d_image + _times(pull, text.features), d_text + _times(pull.mT, image.features)
            pulls = pulls + pull.sum(-1)
        return (loss, pulls, d_image), d_text

    zeros = image.present * 0.0
    start = (zeros, zeros, image.features * 0.0 if with_gradient else zeros)
    travelling = text.features * 0.0 if with_gradient else zeros
    (loss, pulls, d_image), d_text = go_round(ring, visit, image, text, start, travelling)
    if image.group is None:
        there = image.present.astype(jnp.float32)
        diagonal = scale[:, None] * jnp.sum(image.features * text.features, -1) + bias[:, None]
        loss, pulls = loss - there * diagonal, pulls - there
        if with_gradient:
            d_image = d_image - there[..., None] * text.features
            d_text = d_text - there[..., None] * image.features
    count = jnp.maximum(ring.total(image.present.sum(-1).astype(jnp.float32)), 1)
    loss = ring.total(loss.sum(-1)) / count
    if not with_gradient:
        return loss, ()
    d_scale = ring.total(jnp.sum(image.features * d_image, (-2, -1))) / count
    each = (scale / count)[:, None, None]
    return loss, (each * d_image, each * d_text, d_scale, ring.total(pulls.sum(-1)) / count)


# --- on global arrays ---------------------------------------------------------------------------------------------


def mapped(ring: Ring, function: Callable, sharded: tuple, replicated: tuple, out: Any) -> Any:
    """Run `function(ring, *sharded, *replicated)` on each device's rows. Sharded arrays are [R B ...] or [B]."""
    if ring.devices == 1:
        return function(ring, *sharded, *replicated)
    spec = jax.tree.map(lambda x: P(ring.axes) if x.ndim == 1 else P(None, ring.axes), sharded)
    specs = (*spec, *jax.tree.map(lambda _: P(), replicated))
    return jax.shard_map(partial(function, ring), in_specs=specs, out_specs=out, check_vma=False)(*sharded, *replicated)


def _rows(ring: Ring) -> P:
    return P(None, ring.axes)


def _softmax_primal(ring: Ring, image: Any, text: Any, scale: Any, group: Any, present: Any) -> jax.Array:
    return _softmax_fwd(ring, image, text, scale, group, present)[0]


def _softmax_fwd(ring, image, text, scale, group, present):
    rows, sides = _rows(ring), (Side(image, group, present), Side(text, group, present))
    loss, kept = mapped(ring, _softmax_forward, sides, (scale,), (P(), (rows, rows, rows, P())))
    return loss, (sides, scale, kept)


def _softmax_bwd(ring, residuals, g):
    sides, scale, kept = residuals

    def backward(ring, image, text, row_lse, column_lse, positives, scale, count, g):
        return _softmax_backward(ring, image, text, scale, (row_lse, column_lse, positives, count), g)

    out = (_rows(ring), _rows(ring), P())
    return *mapped(ring, backward, (*sides, *kept[:3]), (scale, kept[3], g), out), None, None


_softmax = jax.custom_vjp(_softmax_primal, nondiff_argnums=(0,))


_softmax.defvjp(_softmax_fwd, _softmax_bwd)


def _sigmoid_primal(ring: Ring, image: Any, text: Any, scale: Any, bias: Any, group: Any, present: Any) -> jax.Array:
    sides = Side(image, group, present), Side(text, group, present)
    return mapped(ring, partial(_sigmoid_both, with_gradient=False), sides, (scale, bias), (P(), ()))[0]


def _sigmoid_fwd(ring, image, text, scale, bias, group, present):
    sides = Side(image, group, present), Side(text, group, present)
    out = (P(), (_rows(ring), _rows(ring), P(), P()))
    return mapped(ring, partial(_sigmoid_both, with_gradient=True), sides, (scale, bias), out)


def _sigmoid_bwd(ring, gradients, g):
    d_image, d_text, d_scale, d_bias = gradients
    each = g[:, None, None]
    return each * d_image, each * d_text, g * d_scale, g * d_bias, None, None


_sigmoid = jax.custom_vjp(_sigmoid_primal, nondiff_argnums=(0,))


_sigmoid.defvjp(_sigmoid_fwd, _sigmoid_bwd)


def make_ring(batch: int, pairs: int = 1, axes: tuple[str, ...] = BATCH_AXES, rows: int | None = None) -> Ring:
    """The ring of the mesh in force (jax.set_mesh), or of one device where there is none.

    Raises ValueError if the batch does not divide among the devices."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in axes if axis in mesh.axis_names)
    devices = 1
    for axis in axes:
        devices *= mesh.shape[axis]
    if batch % devices:
        raise ValueError(f"a batch of {batch} does not divide among {devices} devices (mesh axes {axes})")
    local = batch // devices
    wanted = rows or max(1, BLOCK_ELEMENTS // (local * pairs))
    fitting = next(r for r in range(min(wanted, local), 0, -1) if local % r == 0)
    return Ring(axes, devices, fitting)


def paired(image: jax.Array, text: jax.Array, present: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    image, text = jnp.asarray(image, jnp.float32), jnp.asarray(text, jnp.float32)
    present = jnp.ones(image.shape[:2], bool) if present is None else jnp.asarray(present, bool)
    return image, text, present


def softmax_pairs(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    *,
    group: jax.Array | None = None,
    present: jax.Array | None = None,
    axes: tuple[str, ...] = BATCH_AXES,
    rows: int | None = None,
) -> jax.Array:
    """Symmetric InfoNCE of R pairs in one ring.

    image, text f32 [R B E], unit rows; logit_scale f32 [R], the factor itself; group i32 [B]: rows of one group are each
    other's positives, weighted equally (FLAIR's label-aware targets); present bool [R B]: pairs left out of rows, columns
    and the mean. Returns f32 [R]. Source: Radford et al. 2021 (CLIP), figure 3; the soft targets as jusiro/FLAIR."""
    image, text, present = paired(image, text, present)
    ring = make_ring(image.shape[1], image.shape[0], axes, rows)
    return _softmax(ring, image, text, logit_scale, group, present)


def softmax(image: jax.Array, text: jax.Array, logit_scale: jax.Array, **options: Any) -> jax.Array:
    """softmax_pairs of one pair: image, text [B E]; logit_scale (); present [B]. Returns a scalar."""
    if options.get("present") is not None:
        options["present"] = options["present"][None]
    return softmax_pairs(image[None], text[None], jnp.reshape(logit_scale, (1,)), **options)[0]


def sigmoid(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array,
    *,
    group: jax.Array | None = None,
    present: jax.Array | None = None,
    axes: tuple[str, ...] = BATCH_AXES,
    rows: int | None = None,
) -> jax.Array:
    """Sigmoid loss over all pairs, divided by B.

    image, text f32 [B E], unit rows; logit_scale, logit_bias (). Returns a scalar.
    Source: Zhai et al. 2023 (SigLIP), algorithm 1."""
    image, text, present = paired(image[None], text[None], None if present is None else present[None])
    ring = make_ring(image.shape[1], 1, axes, rows)
    scale, bias = jnp.reshape(logit_scale, (1,)), jnp.reshape(logit_bias, (1,))
    return _sigmoid(ring, image, text, scale, bias, group, present)[0]
