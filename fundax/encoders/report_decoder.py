"""A transformer that writes reports on the tokens of an image: KeepFIT's FFA captioner (github.com/lxirich/MM-Retinal).

Pre-norm blocks of attention (arXiv:1706.03762), words with a sinusoid of their position, image tokens without one.

Reports written word by word on a decoder with a key-value cache: greedy, and by beams; both compile as one loop."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders.layers import Dense, attend, uniform
from fundax.types import Params, UserError

Cache = list[dict[str, jax.Array]]  # of each decoder block: keys and values of words so far, and of the image
_xavier = nn.initializers.xavier_uniform()


class TorchNorm(nn.Module):
    """gamma (x - mean) / (std + epsilon) + beta with the unbiased standard deviation, which is not a usual LayerNorm."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B N D], in fp32."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        spread = jnp.sqrt(jnp.maximum((y * y).sum(-1, keepdims=True) / (width - 1), 1e-24))  # its slope at 0 is finite
        y = y / (spread + self.epsilon) * scale.reshape(1, 1, -1) + bias.reshape(1, 1, -1)
        return y.astype(x.dtype)


class CrossAttention(nn.Module):
    """Attention with four projections with biases; queries and the attended may be different sequences."""

    width: int
    heads: int
    dropout: float
    dtype: str = "float32"

    def setup(self) -> None:
        dense = lambda: Dense(self.width, _xavier, uniform(self.width**-0.5), self.dtype)  # noqa: E731
        self.query, self.key, self.value, self.out = dense(), dense(), dense(), dense()
        self.drop = nn.Dropout(self.dropout)

    def memory(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values of x [B N D], [B N H d] each."""
        return self._split(self.key(x)), self._split(self.value(x))

    def __call__(self, x: jax.Array, memory: tuple[jax.Array, jax.Array], mask: jax.Array | None = None) -> jax.Array:
        """x [B n D], mask bool broadcastable to [B H n N]; returns [B n D]."""
        drop = (lambda w: self.drop(w, deterministic=False)) if self.has_rng("dropout") else None
        y = attend(self._split(self.query(x)), *memory, mask, drop)
        return self.out(y.reshape(*x.shape[:2], self.width))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


class ReportBlock(nn.Module):
    """x + attention(norm1 x), then x + cross(norm2 x, image) in a decoder, then x + mlp(norm3 x)."""

    width: int
    heads: int
    hidden: int
    dropout: float
    decoder: bool
    dtype: str = "float32"

    def setup(self) -> None:
        fields = (self.width, self.heads, self.dropout, self.dtype)
        self.norm1, self.attention = TorchNorm(), CrossAttention(*fields)
        if self.decoder:
            self.norm2, self.cross = TorchNorm(), CrossAttention(*fields)
        self.norm3 = TorchNorm()
        self.fc1 = Dense(self.hidden, _xavier, uniform(self.width**-0.5), self.dtype)
        self.fc2 = Dense(self.width, _xavier, uniform(self.hidden**-0.5), self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: jax.Array, mask: jax.Array | None, memory: Any = None) -> jax.Array:
        """x [B n D]; memory: keys and values of the image, for a decoder; mask bool of the first attention."""
        y = self.norm1(x)
        x = x + self._drop(self.attention(y, self.attention.memory(y), mask))
        return self._rest(x, memory)

    def step(self, x: jax.Array, cache: dict[str, jax.Array], at: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """One word x [B 1 D] at position `at`, with its keys and values written into the cache."""
        y = self.norm1(x)
        new = dict(zip(("key", "value"), self.attention.memory(y), strict=True))
        start = (0, at, 0, 0)
        cache = cache | {name: jax.lax.dynamic_update_slice(cache[name], new[name], start) for name in new}
        seen = (jnp.arange(cache["key"].shape[1]) <= at)[None, None, None, :]
        x = x + self.attention(y, (cache["key"], cache["value"]), seen)
        return self._rest(x, (cache["image_key"], cache["image_value"])), cache

    def _rest(self, x: jax.Array, memory: Any) -> jax.Array:
        if self.decoder:
            x = x + self._drop(self.cross(self.norm2(x), memory))
        y = self.fc2(self._drop(jax.nn.relu(self.fc1(self.norm3(x)))))
        return x + self._drop(y)

    def _drop(self, x: jax.Array) -> jax.Array:
        return self.drop(x, deterministic=not self.has_rng("dropout"))


class ReportDecoder(nn.Module):
    """Image tokens [B N D'] and the ids of a report [B L] to log-probabilities of the next ids, f32 [B L V].

    `vocab` counts every id. A report begins with `bos`, ends with `eos` and is filled up with `pad`; FFA's captioner has
    0 for all three. Dropout is active where the caller gives a "dropout" rng.
    """

    vocab: int
    context: int = 90  # the longest report that is written
    width: int = 512
    depth: int = 3  # of the encoder on image tokens and of the decoder each
    heads: int = 8
    hidden: int = 512
    dropout: float = 0.1
    visual_dropout: float = 0.5
    bos: int = 0
    eos: int = 0
    pad: int = 0
    dtype: str = "float32"

    def setup(self) -> None:
        def blocks(decoder: bool) -> list[ReportBlock]:
            return [ReportBlock(self.width, self.heads, self.hidden, self.dropout, decoder, self.dtype)
                    for _ in range(self.depth)]  # fmt: skip

        self.visual = Dense(self.width, _xavier, dtype=self.dtype)
        self.encoder, self.encoder_norm = blocks(False), TorchNorm()
        self.decoder, self.decoder_norm = blocks(True), TorchNorm()
        self.word = self.param("word", nn.initializers.normal(self.width**-0.5), (self.vocab, self.width), jnp.float32)
        self.head = Dense(self.vocab, _xavier)
        self.drop, self.visual_drop = nn.Dropout(self.dropout), nn.Dropout(self.visual_dropout)

    def __call__(self, tokens: jax.Array, ids: jax.Array) -> jax.Array:
        """log p of the id after each of ids i32 [B L], f32 [B L V]; filled-up positions are not attended to."""
        first = jnp.arange(ids.shape[1])[None] == 0
        there = (ids != self.pad) | first  # the first id counts even where bos is pad
        order = jnp.tril(jnp.ones((ids.shape[1],) * 2, bool))
        mask = (there[:, None, :] & order[None])[:, None]  # [B 1 L L]
        x = self._words(ids, sinusoid(ids.shape[1], self.width))
        memory = self.read(tokens)
        for block in self.decoder:
            x = block(x, mask, block.cross.memory(memory))
        return self._next(x)

    def read(self, tokens: jax.Array) -> jax.Array:
        """Image tokens [B N D'] to what reports are written from, [B N D]."""
        x = jax.nn.relu(self.visual(tokens.astype(self.dtype)))
        x = self.visual_drop(x, deterministic=not self.has_rng("dropout"))
        for block in self.encoder:
            x = block(x, None)
        return self.encoder_norm(x)

    def begin(self, tokens: jax.Array) -> Cache:
        """An empty cache for the reports of B images."""
        memory = self.read(tokens)
        shape = (len(tokens), self.context, self.heads, self.width // self.heads)
        empty = {"key": jnp.zeros(shape, self.dtype), "value": jnp.zeros(shape, self.dtype)}
        images = [dict(zip(("image_key", "image_value"), b.cross.memory(memory), strict=True)) for b in self.decoder]
        return [empty | image for image in images]

    def step(self, cache: Cache, ids: jax.Array, at: jax.Array) -> tuple[jax.Array, Cache]:
        """ids i32 [B] at position `at` to log p of the next ones, f32 [B V], and the cache with them in it."""
        place = jax.lax.dynamic_slice_in_dim(sinusoid(self.context, self.width), at, 1)
        x, kept = self._words(ids[:, None], place), []
        for block, each in zip(self.decoder, cache, strict=True):
            x, each = block.step(x, each, at)
            kept.append(each)
        return self._next(x)[:, 0], kept

    def _words(self, ids: jax.Array, places: jax.Array) -> jax.Array:
        if ids.shape[1] > self.context:
            raise UserError(f"a report has {ids.shape[1]} positions; this decoder has {self.context}")
        x = self.word[ids] * math.sqrt(self.width) + places[None]
        return self.drop(x.astype(self.dtype), deterministic=not self.has_rng("dropout"))

    def _next(self, x: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(self.head(self.decoder_norm(x)).astype(jnp.float32))


def sinusoid(length: int, width: int) -> jax.Array:
    """Positions as sines (even channels) and cosines (odd ones), f32 [length width] (arXiv:1706.03762, 3.5)."""
    rates = jnp.exp(jnp.arange(0, width, 2, dtype=jnp.float32) * (-math.log(10000.0) / width))
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rates[None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, -1)[:, :width]


def token_loss(log_p: jax.Array, ids: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of -log p of each report's ids i32 [B L], where `there`, and their number; log_p f32 [B L V]; f32 [B] each."""
    chosen = jnp.take_along_axis(log_p, ids[:, :, None], axis=2)[:, :, 0]
    weight = there.astype(jnp.float32)
    return -(chosen * weight).sum(1), weight.sum(1)


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
