"""Reports written word by word on a decoder with a key-value cache: greedy, and by beams; both compile as one loop."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fundax.encoders.report_decoder import ReportDecoder
from fundax.types import Params

_DONE = -1000.0  # what a finished beam loses, as the peers' search takes it out of the race


def greedy(decoder: ReportDecoder, params: Params, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The likeliest next word at every step.

    tokens [B N D'] of images. Returns ids i32 [B context], without the first (bos), ending in eos and then pad; and the
    sum of their log-probabilities f32 [B].
    """
    rows = len(tokens)

    def step(carry: Any, at: jax.Array) -> tuple[Any, jax.Array]:
        cache, ids, score, done = carry
        log_p, cache = decoder.apply({"params": params}, cache, ids, at, method="step")
        best = jnp.argmax(log_p, axis=1).astype(jnp.int32)
        gain = jnp.take_along_axis(log_p, best[:, None], axis=1)[:, 0]
        written = jnp.where(done, decoder.pad, best)
        score = score + jnp.where(done, 0.0, gain)
        done = done | (best == decoder.eos)
        return (cache, written, score, done), written

    cache = decoder.apply({"params": params}, tokens, method="begin")
    start = (cache, jnp.full((rows,), decoder.bos, jnp.int32), jnp.zeros(rows), jnp.zeros(rows, bool))
    (_, _, score, _), ids = jax.lax.scan(step, start, jnp.arange(decoder.context))
    return ids.T, score


def beam_search(
    decoder: ReportDecoder, params: Params, tokens: jax.Array, beams: int = 3
) -> tuple[jax.Array, jax.Array]:
    """The likeliest whole report among those that `beams` open ones lead to; no length penalty.

    Arguments and results as of `greedy`. Source: the beam search of github.com/lxirich/MM-Retinal's FFA branch: a beam
    that ends is kept as a candidate and falls out of the race; at the last position every beam ends.
    """
    rows, context = len(tokens), decoder.context
    cache = decoder.apply({"params": params}, tokens, method="begin")
    cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), cache)  # rows of one image side by side
    first = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)[None]  # all beams begin alike: only one may spread

    def step(carry: Any, at: jax.Array) -> tuple[Any, None]:
        cache, ids, written, score, best, best_score = carry
        log_p, cache = decoder.apply({"params": params}, cache, ids.reshape(-1), at, method="step")
        total = (score[:, :, None] + log_p.reshape(rows, beams, -1)).reshape(rows, -1)
        score, chosen = jax.lax.top_k(total, beams)  # [B beams]
        parent, ids = jnp.divmod(chosen, decoder.vocab)
        ids = ids.astype(jnp.int32)
        written = jnp.take_along_axis(written, parent[:, :, None], axis=1).at[:, :, at].set(ids)
        flat = (parent + jnp.arange(rows)[:, None] * beams).reshape(-1)
        cache = jax.tree.map(lambda x: x[flat], cache)
        ends = (ids == decoder.eos) | (at == context - 1)
        ended = jnp.where(ends, score, -jnp.inf)
        top = jnp.argmax(ended, axis=1)[:, None]
        found = jnp.take_along_axis(ended, top, axis=1)[:, 0]
        better = found > best_score
        report = jnp.take_along_axis(written, top[:, :, None], axis=1)[:, 0]
        best = jnp.where(better[:, None], report, best)
        best_score = jnp.where(better, found, best_score)
        return (cache, ids, written, score + _DONE * ends, best, best_score), None

    blank = jnp.full((rows, beams, context), decoder.pad, jnp.int32)
    ids = jnp.full((rows, beams), decoder.bos, jnp.int32)
    start = (cache, ids, blank, jnp.broadcast_to(first, (rows, beams)), blank[:, 0], jnp.full(rows, -jnp.inf))
    (*_, best, best_score), _ = jax.lax.scan(step, start, jnp.arange(context))
    return best, best_score
