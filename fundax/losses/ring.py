"""Contrastive losses and retrieval accuracy over the global batch, computed as a ring: no B x B array on any device.

Each device keeps its images. The texts are passed from device to device, together with the running sums of their columns
of the logits. A device computes its block of logits in chunks of rows, and uses and discards each chunk; the backward
pass recomputes the chunks. Memory per device is O(B E / devices).
RET-CLIP contrasts three image-text pairs over one batch; they share one ring, along a leading pair axis R.

The tests compare with the same losses on global arrays (contrastive.py). The gradients are written by hand, because
autodiff through the ring stores the texts of every hop: at batch 65,536 and width 512 on eight devices, 278 instead of
145 MiB per device for the softmax loss, and 241 instead of 113 MiB and 1.45 times the time for the sigmoid loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fundax.losses.relations import Related, unrelated_by

BLOCK_ELEMENTS = 2**22  # size of a chunk of logits: 16 MiB in fp32
NEVER = -1e30  # logit of an ignored pair; finite, because inf - inf is NaN


@dataclass(frozen=True)
class Ring:
    """The sharding of the batch: the mesh axes, their number of devices, and the number of rows in a chunk of logits."""

    axes: tuple[str, ...]
    devices: int
    rows: int

    def rotate(self, tree: Any) -> Any:
        """Pass `tree` to the next device."""
        if self.devices == 1:
            return tree
        order = [(i, (i + 1) % self.devices) for i in range(self.devices)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, order), tree)

    def total(self, x: jax.Array) -> jax.Array:
        """Sum over the devices."""
        return x if self.devices == 1 else jax.lax.psum(x, self.axes)


class Side(NamedTuple):
    """The images or the texts of one device."""

    features: jax.Array  # [R b E]
    present: jax.Array  # bool [R b]
    group: jax.Array | None = None  # i32 [b]; equal numbers are positives of each other. None: row i matches only row i
    related: Related = ()  # i32 [b] each: the row number, then the relations of rows that are not negatives (relations.py)


class LogSumExp(NamedTuple):
    """A running logsumexp: the largest logit so far, and the sum of exp(logit - peak)."""

    peak: jax.Array  # [R b]
    mass: jax.Array  # [R b]

    def add(self, logits: jax.Array, axis: int) -> LogSumExp:
        peak = jnp.maximum(self.peak, logits.max(axis))
        fresh = jnp.exp(logits - jnp.expand_dims(peak, axis)).sum(axis)
        # the peak may have increased, so rescale the old sum to the new peak
        return LogSumExp(peak, self.mass * jnp.exp(self.peak - peak) + fresh)

    def value(self) -> jax.Array:
        return self.peak + jnp.log(self.mass)

    @staticmethod
    def empty(present: jax.Array) -> LogSumExp:
        # `present * 0.0` instead of zeros, because inside shard_map the carry of the loop must vary between devices
        return LogSumExp(present * 0.0 + NEVER, present * 0.0)


class Nearest(NamedTuple):
    """A running argmax: the largest cosine so far, and the group of that example."""

    cosine: jax.Array  # [R b]
    group: jax.Array  # i32 [R b]

    def add(self, cosine: jax.Array, group: jax.Array, axis: int) -> Nearest:
        fresh, top = group[jnp.argmax(cosine, axis)], cosine.max(axis)
        return Nearest(jnp.maximum(self.cosine, top), jnp.where(top > self.cosine, fresh, self.group))


def _block_logits(image: Side, text: Side, scale: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """scale * cosine + bias, or NEVER if the image or the text is absent or the pair is ignored. # [R r b]"""
    # "highest": on TPUs and GPUs the default precision rounds the features, and logits at scale 100 would be off by 0.1
    product = jnp.einsum("rie,rje->rij", image.features, text.features, precision="highest")
    logits = scale[:, None, None] * product
    logits = logits if bias is None else logits + bias[:, None, None]
    logits = jnp.where(image.present[:, :, None] & text.present[:, None, :], logits, NEVER)
    if not image.related:
        return logits
    return jnp.where(unrelated_by(image.related, text.related, image.group, text.group)[None], NEVER, logits)


def _positives(image: Side, text: Side) -> jax.Array:
    """1.0 where the image and the text are present and have the same group. # [R r b]"""
    assert image.group is not None and text.group is not None
    same = image.group[:, None] == text.group[None, :]  # [r b]
    return (same[None] & image.present[:, :, None] & text.present[:, None, :]).astype(jnp.float32)


def _chunk(ring: Ring, tree: Any) -> Any:
    """Reshape [R b ...] to [b/rows R rows ...] and [b] to [b/rows rows], for a scan over chunks of rows."""

    def split(x: jax.Array) -> jax.Array:
        if x.ndim == 1:
            return x.reshape(-1, ring.rows)
        return jnp.moveaxis(x.reshape(x.shape[0], -1, ring.rows, *x.shape[2:]), 1, 0)

    return jax.tree.map(split, tree)


def _unchunk(tree: Any) -> Any:
    """The inverse of _chunk for [chunks R rows ...]."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:]), tree)


def _ring_scan(ring: Ring, visit: Callable, image: Any, text: Any, at_rows: Any, at_columns: Any) -> tuple[Any, Any]:
    """Visit every pair of an image and a text, and accumulate per-row and per-column state.

    visit(image_rows, text, row_state, column_state) -> (row_state, column_state) is called for each chunk of rows. The
    per-text state is passed around the ring with its texts and returns to its device."""

    def block(rows: Any, text: Any, columns: Any) -> tuple[Any, Any]:
        def chunk(columns: Any, x: tuple) -> tuple[Any, Any]:
            row_state, columns = visit(x[0], text, x[1], columns)
            return columns, row_state

        columns, rows = jax.lax.scan(chunk, columns, (_chunk(ring, image), _chunk(ring, rows)))
        return _unchunk(rows), columns

    def hop(_: Any, carry: tuple) -> tuple:
        text, rows, columns = carry
        # The next texts do not depend on this hop's product, so XLA can overlap their transfer with it. The column state
        # depends on the product and is sent afterwards; it is E times smaller.
        following = ring.rotate(text)
        rows, columns = block(rows, text, columns)
        return following, rows, ring.rotate(columns)

    _, at_rows, at_columns = jax.lax.fori_loop(0, ring.devices, hop, (text, at_rows, at_columns))
    return at_rows, at_columns


def _softmax_forward(ring: Ring, image: Side, text: Side, scale: jax.Array) -> tuple[jax.Array, tuple]:
    """Loss [R], and the residuals for the backward pass: both logsumexp, positives per row, number of present rows."""

    def visit(image: Side, text: Side, rows: tuple, columns: LogSumExp) -> tuple[tuple, LogSumExp]:
        running, matched, positives = rows
        logits = _block_logits(image, text, scale)
        if image.group is not None:
            same = _positives(image, text)
            matched, positives = matched + (same * logits).sum(-1), positives + same.sum(-1)
        return (running.add(logits, -1), matched, positives), columns.add(logits, -2)

    zeros = image.present * 0.0
    start = (LogSumExp.empty(image.present), zeros, zeros)
    (rows, matched, positives), columns = _ring_scan(ring, visit, image, text, start, LogSumExp.empty(text.present))
    if image.group is None:  # the positive of row i is text i, which is on the same device
        matched = scale[:, None] * jnp.sum(image.features * text.features, -1)
        positives = jnp.ones_like(matched)
    count = ring.total(image.present.sum(-1).astype(jnp.float32))  # [R]
    row_lse, column_lse = rows.value(), columns.value()
    each = jnp.where(image.present, 0.5 * (row_lse + column_lse) - matched / jnp.maximum(positives, 1), 0.0)
    loss = ring.total(each.sum(-1)) / jnp.maximum(count, 1)
    return loss, (row_lse, column_lse, positives, count)


def _softmax_backward(ring: Ring, image: Side, text: Side, scale: jax.Array, kept: tuple, g: jax.Array) -> tuple:
    """Gradients of sum_r g_r loss_r with respect to image features, text features and scale."""
    row_lse, column_lse, positives, count = kept
    weight = (g / jnp.maximum(count, 1))[:, None, None]
    own = scale[:, None] * jnp.sum(image.features * text.features, -1)  # logits of the matching pairs [R b]

    def visit(rows: tuple, columns: tuple, at_rows: tuple, d_text: jax.Array) -> tuple[tuple, jax.Array]:
        (image, row_lse, positives, own), (d_image, slope) = rows, at_rows
        text, column_lse, text_own = columns
        logits = _block_logits(image, text, scale)
        there = image.present[:, :, None] & text.present[:, None, :]
        # With the stored logsumexp, a probability is a single exp, independent of the order of the blocks.
        to_text = jnp.where(there, 0.5 * jnp.exp(logits - row_lse[:, :, None]), 0.0)
        to_image = jnp.where(there, 0.5 * jnp.exp(logits - column_lse[:, None, :]), 0.0)
        pull = to_text + to_image
        if image.group is None:
            # Probabilities sum to one, so the derivative by the scale is a sum of differences from the matching logit.
            # This avoids the cancellation of large terms late in training, when the matching pair has probability near 1.
            slope = slope + (to_text * (logits - own[:, :, None]) + to_image * (logits - text_own[:, None, :])).sum(-1)
        else:
            pull = pull - _positives(image, text) / jnp.maximum(positives, 1)[:, :, None]
            slope = slope + jnp.where(there, pull * logits, 0.0).sum(-1)
        return (d_image + _times(pull, text.features), slope), d_text + _times(pull.mT, image.features)

    start = image.features * 0.0, image.present * 0.0
    rows, columns = (image, row_lse, positives, own), (text, column_lse, own)
    (d_image, slope), d_text = _ring_scan(ring, visit, rows, columns, start, text.features * 0.0)
    if image.group is None:
        d_image = d_image - jnp.where(image.present[..., None], text.features, 0.0)
        d_text = d_text - jnp.where(image.present[..., None], image.features, 0.0)
    d_scale = ring.total(jnp.sum(weight[..., 0] * slope, -1)) / scale  # slope is a sum over logits, not cosines
    weight = weight * scale[:, None, None]
    return weight * d_image, weight * d_text, d_scale


def _times(pull: jax.Array, features: jax.Array) -> jax.Array:
    return jnp.einsum("rij,rje->rie", pull, features, precision="highest")


def _sigmoid_both(
    ring: Ring, image: Side, text: Side, scale: jax.Array, bias: jax.Array, with_gradient: bool
) -> tuple[jax.Array, tuple]:
    """Loss [R] and its gradients in a single pass, which suffices because softplus has no normaliser."""

    def visit(image: Side, text: Side, rows: tuple, d_text: Any) -> tuple[tuple, Any]:
        loss, pulls, d_image = rows
        logits = _block_logits(image, text, scale, bias)
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
    column_start = text.features * 0.0 if with_gradient else zeros
    (loss, pulls, d_image), d_text = _ring_scan(ring, visit, image, text, start, column_start)
    if image.group is None:  # the diagonal was summed as negatives: -log sigmoid(x) = softplus(x) - x
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


def _accuracy(ring: Ring, image: Side, text: Side) -> tuple[jax.Array, jax.Array]:
    def visit(image: Side, text: Side, rows: Nearest, columns: Nearest) -> tuple[Nearest, Nearest]:
        assert image.group is not None and text.group is not None
        cosine = _block_logits(image, text, jnp.ones(len(image.features)))
        return rows.add(cosine, text.group, -1), columns.add(cosine, image.group, -2)

    def no_match(side: Side) -> Nearest:
        return Nearest(side.present * 0.0 + 2 * NEVER, side.present * 0 - 1)

    rows, columns = _ring_scan(ring, visit, image, text, no_match(image), no_match(text))
    count = jnp.maximum(ring.total(image.present.sum(-1).astype(jnp.float32)), 1)
    assert image.group is not None
    own = image.group[None]  # an image and its text have the same group
    right = [(nearest.group == own) & image.present for nearest in (rows, columns)]
    to_text, to_image = (ring.total(hits.sum(-1).astype(jnp.float32)) / count for hits in right)
    return to_text, to_image


def _on_devices(ring: Ring, function: Callable, sharded: tuple, replicated: tuple, out: Any) -> Any:
    """Run `function(ring, *sharded, *replicated)` on each device's rows. Sharded arrays are [R B ...] or [B]."""
    if ring.devices == 1:
        return function(ring, *sharded, *replicated)
    spec = jax.tree.map(lambda x: P(ring.axes) if x.ndim == 1 else P(None, ring.axes), sharded)
    specs = (*spec, *jax.tree.map(lambda _: P(), replicated))
    return jax.shard_map(partial(function, ring), in_specs=specs, out_specs=out, check_vma=False)(*sharded, *replicated)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _softmax(ring: Ring, image: Any, text: Any, scale: Any, about: Any) -> jax.Array:
    return _softmax_fwd(ring, image, text, scale, about)[0]


def _softmax_fwd(ring, image, text, scale, about):
    rows, sides = P(None, ring.axes), (Side(image, *about), Side(text, *about))
    loss, kept = _on_devices(ring, _softmax_forward, sides, (scale,), (P(), (rows, rows, rows, P())))
    return loss, (sides, scale, kept)


def _softmax_bwd(ring, residuals, g):
    sides, scale, kept = residuals

    def backward(ring, image, text, row_lse, column_lse, positives, scale, count, g):
        return _softmax_backward(ring, image, text, scale, (row_lse, column_lse, positives, count), g)

    out = (P(None, ring.axes), P(None, ring.axes), P())
    return *_on_devices(ring, backward, (*sides, *kept[:3]), (scale, kept[3], g), out), None


_softmax.defvjp(_softmax_fwd, _softmax_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid(ring: Ring, image: Any, text: Any, scale: Any, bias: Any, about: Any) -> jax.Array:
    sides = Side(image, *about), Side(text, *about)
    return _on_devices(ring, partial(_sigmoid_both, with_gradient=False), sides, (scale, bias), (P(), ()))[0]


def _sigmoid_fwd(ring, image, text, scale, bias, about):
    sides = Side(image, *about), Side(text, *about)
    out = (P(), (P(None, ring.axes), P(None, ring.axes), P(), P()))
    return _on_devices(ring, partial(_sigmoid_both, with_gradient=True), sides, (scale, bias), out)


def _sigmoid_bwd(ring, gradients, g):
    d_image, d_text, d_scale, d_bias = gradients
    each = g[:, None, None]
    return each * d_image, each * d_text, g * d_scale, g * d_bias, None


_sigmoid.defvjp(_sigmoid_fwd, _sigmoid_bwd)


def make_ring(batch: int, pairs: int = 1, rows: int | None = None) -> Ring:
    """The ring over all devices of the current mesh (jax.set_mesh), or over one device without a mesh.

    Raises ValueError if the batch is not divisible by the number of devices."""
    mesh = jax.sharding.get_abstract_mesh()
    devices, axes = mesh.size or 1, mesh.axis_names
    if batch % devices:  # each device of the model axis repeats the ring
        axes = tuple(axis for axis in axes if axis != "model")
        devices = math.prod(mesh.shape[axis] for axis in axes)
    if batch % devices:
        raise ValueError(f"a batch of {batch} does not divide among {devices} devices (mesh axes {axes})")
    local = batch // devices
    wanted = rows or max(1, BLOCK_ELEMENTS // (local * pairs))
    fitting = next(r for r in range(min(wanted, local), 0, -1) if local % r == 0)
    return Ring(axes, devices, fitting)


def _prepare(
    image: jax.Array, text: jax.Array, present: jax.Array | None, group: jax.Array | None, related: Related
) -> tuple[jax.Array, jax.Array, tuple]:
    """The features [R B E], zero where absent, and the other fields of Side."""
    present = jnp.ones(image.shape[:2], bool) if present is None else jnp.asarray(present, bool)
    there = present[..., None]  # zeros elsewhere: those logits are hidden, but 0 * NaN is NaN
    numbered = (jnp.arange(image.shape[1], dtype=jnp.int32), *related) if related else ()
    features = (jnp.where(there, x, 0.0).astype(jnp.float32) for x in (image, text))
    return *features, (present, group, numbered)


def softmax_pairs(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, *, group: jax.Array | None = None,
    related: Related = (), present: jax.Array | None = None, rows: int | None = None,
) -> jax.Array:  # fmt: skip
    """Symmetric InfoNCE of R pairs in one ring; f32 [R].

    image, text f32 [R B E] with unit rows; logit_scale f32 [R], the factor itself. group i32 [B]: rows of one group are
    positives of each other, weighted equally (FLAIR's label-aware targets). related: see relations.py. present bool [R B]:
    the other pairs are left out as rows, columns and in the mean. Sources: arXiv:2103.00020, figure 3; for the soft
    targets github.com/jusiro/FLAIR."""
    image, text, about = _prepare(image, text, present, group, related)
    ring = make_ring(image.shape[1], image.shape[0], rows)
    return _softmax(ring, image, text, logit_scale, about)


def softmax(image: jax.Array, text: jax.Array, logit_scale: jax.Array, **options: Any) -> jax.Array:
    """softmax_pairs of one pair: image, text [B E]; logit_scale (); present [B]. Returns a scalar."""
    if options.get("present") is not None:
        options["present"] = options["present"][None]
    return softmax_pairs(image[None], text[None], jnp.reshape(logit_scale, (1,)), **options)[0]


def sigmoid(
    image: jax.Array, text: jax.Array, logit_scale: jax.Array, logit_bias: jax.Array, *, group: jax.Array | None = None,
    related: Related = (), present: jax.Array | None = None, rows: int | None = None,
) -> jax.Array:  # fmt: skip
    """Sum of the sigmoid losses of all pairs, divided by B; a scalar. Arguments are those of `softmax`.

    Source: arXiv:2303.15343, algorithm 1."""
    image, text, about = _prepare(image[None], text[None], None if present is None else present[None], group, related)
    ring = make_ring(image.shape[1], 1, rows)
    scale, bias = jnp.reshape(logit_scale, (1,)), jnp.reshape(logit_bias, (1,))
    return _sigmoid(ring, image, text, scale, bias, about)[0]  # pyright: ignore[reportIndexIssue]


def accuracy(
    image: jax.Array, text: jax.Array, *, group: jax.Array | None = None, related: Related = (),
    present: jax.Array | None = None, rows: int | None = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Image-to-text and text-to-image accuracy as a ring, see contrastive_accuracy; fp32 () each.

    Arguments are those of `softmax`."""
    group = jnp.arange(len(image), dtype=jnp.int32) if group is None else group
    image, text, about = _prepare(image[None], text[None], None if present is None else present[None], group, related)
    ring = make_ring(image.shape[1], 1, rows)
    sides = Side(image, *about), Side(text, *about)
    to_text, to_image = _on_devices(ring, _accuracy, sides, (), (P(), P()))
    return to_text[0], to_image[0]
