"""Report decoder: a transformer that generates text from image tokens, with greedy and beam search on a key-value cache.

The architecture is KeepFIT's FFA captioner (github.com/lxirich/MM-Retinal): pre-norm blocks (arXiv:1706.03762), words
with sinusoidal positions, image tokens without positions. Both searches compile to one loop."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fundax.encoders.layers import Dense, attend, uniform
from fundax.encoders.positions import sin_cos
from fundax.types import Params, UserError

Cache = list[dict[str, jax.Array]]  # for each decoder block: keys and values of the words so far, and of the image
_xavier = nn.initializers.xavier_uniform()


class TorchNorm(nn.Module):
    """scale (x - mean) / (std + epsilon) + bias with the unbiased standard deviation, unlike an ordinary LayerNorm."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B N D], in fp32."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        # the floor keeps the gradient of the square root finite at 0
        std = jnp.sqrt(jnp.maximum((y * y).sum(-1, keepdims=True) / (width - 1), 1e-24))
        y = y / (std + self.epsilon) * scale.reshape(1, 1, -1) + bias.reshape(1, 1, -1)
        return y.astype(x.dtype)


class CrossAttention(nn.Module):
    """Multi-head attention with separate query, key, value and output projections; for self- and cross-attention."""

    width: int
    heads: int
    dropout: float
    dtype: str = "float32"

    def setup(self) -> None:
        dense = lambda: Dense(self.width, _xavier, uniform(self.width**-0.5), self.dtype)  # noqa: E731
        self.query, self.key, self.value, self.out = dense(), dense(), dense(), dense()
        self.drop = nn.Dropout(self.dropout)

    def memory(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B N H d] of x [B N D]."""
        return self._split(self.key(x)), self._split(self.value(x))

    def __call__(self, x: jax.Array, memory: tuple[jax.Array, jax.Array], mask: jax.Array | None = None) -> jax.Array:
        """x [B n D], mask bool broadcastable to [B H n N]; returns [B n D]."""
        drop = (lambda w: self.drop(w, deterministic=False)) if self.has_rng("dropout") else None
        y = attend(self._split(self.query(x)), *memory, mask, drop)
        return self.out(y.reshape(*x.shape[:2], self.width))

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.heads, -1)


class ReportBlock(nn.Module):
    """Pre-norm block: x + attention(norm1 x), in a decoder x + cross(norm2 x, image), then x + mlp(norm3 x)."""

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
        """x [B n D]; mask: bool, of the self-attention; memory: keys and values of the image, for a decoder."""
        y = self.norm1(x)
        x = x + self._drop(self.attention(y, self.attention.memory(y), mask))
        return self._rest(x, memory)

    def step(self, x: jax.Array, cache: dict[str, jax.Array], at: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Process one word x [B 1 D] at position `at`; returns it and the cache with its keys and values."""
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
    """Log-probabilities of the next ids, f32 [B L V], from image tokens [B N D'] and the ids of a report [B L].

    A report begins with `bos`, ends with `eos` and is padded with `pad`; in FFA's captioner all three are 0. `vocab`
    counts every id. Dropout is active if the caller passes a "dropout" rng.
    """

    vocab: int
    context: int = 90  # the largest length of a generated report
    width: int = 512
    depth: int = 3  # blocks of the encoder of image tokens, and as many of the decoder
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
        """Log-probabilities f32 [B L V] of the id after each of ids i32 [B L]; padding is not attended to."""
        first = jnp.arange(ids.shape[1])[None] == 0
        there = (ids != self.pad) | first  # the first id is bos, which may equal pad
        order = jnp.tril(jnp.ones((ids.shape[1],) * 2, bool))
        mask = (there[:, None, :] & order[None])[:, None]  # [B 1 L L]
        x = self._words(ids, sinusoid(ids.shape[1], self.width))
        memory = self.read(tokens)
        for block in self.decoder:
            x = block(x, mask, block.cross.memory(memory))
        return self._next(x)

    def read(self, tokens: jax.Array) -> jax.Array:
        """Encode image tokens [B N D'] for the decoder; [B N D]."""
        x = jax.nn.relu(self.visual(tokens.astype(self.dtype)))
        x = self.visual_drop(x, deterministic=not self.has_rng("dropout"))
        for block in self.encoder:
            x = block(x, None)
        return self.encoder_norm(x)

    def begin(self, tokens: jax.Array) -> Cache:
        """A cache for the reports of B images, without any word."""
        memory = self.read(tokens)
        shape = (len(tokens), self.context, self.heads, self.width // self.heads)
        empty = {"key": jnp.zeros(shape, self.dtype), "value": jnp.zeros(shape, self.dtype)}
        images = [dict(zip(("image_key", "image_value"), b.cross.memory(memory), strict=True)) for b in self.decoder]
        return [empty | image for image in images]

    def step(self, cache: Cache, ids: jax.Array, at: jax.Array) -> tuple[jax.Array, Cache]:
        """Log-probabilities f32 [B V] of the ids after ids i32 [B] at position `at`, and the updated cache."""
        place = jax.lax.dynamic_slice_in_dim(sinusoid(self.context, self.width), at, 1)
        x, kept = self._words(ids[:, None], place), []
        for block, each in zip(self.decoder, cache, strict=True):
            x, each = block.step(x, each, at)
            kept.append(each)
        return self._next(x)[:, 0], kept

    def _words(self, ids: jax.Array, places: jax.Array) -> jax.Array:
        if ids.shape[1] > self.context:
            raise UserError(f"a report has {ids.shape[1]} positions; this decoder has {self.context}")
        x = jnp.take(self.word, ids, axis=0, mode="fill", fill_value=jnp.nan) * math.sqrt(self.width) + places[None]
        return self.drop(x.astype(self.dtype), deterministic=not self.has_rng("dropout"))

    def _next(self, x: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(self.head(self.decoder_norm(x)).astype(jnp.float32))


def sinusoid(length: int, width: int) -> jax.Array:
    """Sinusoidal positions f32 [length width]: sines in even channels, cosines in odd ones (arXiv:1706.03762, 3.5)."""
    rates = jnp.exp(jnp.arange(0, width, 2, dtype=jnp.float32) * (-math.log(10000.0) / width))  # fp32, as the original
    return sin_cos(jnp.arange(length), rates).reshape(length, -1)[:, :width]


def token_loss(log_p: jax.Array, ids: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of -log p over the ids i32 [B L] of each report where `there`, and their number; f32 [B] each.

    log_p: f32 [B L V].
    """
    chosen = jnp.take_along_axis(log_p, ids[:, :, None], axis=2)[:, :, 0]
    weight = there.astype(jnp.float32)
    return -(chosen * weight).sum(1), weight.sum(1)


_DONE = -1000.0  # added to the score of a finished beam, so that it is not extended; as in the original search


def greedy(decoder: ReportDecoder, params: Params, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Greedy search: the most likely word at every step.

    tokens: image tokens [B N D']. Returns ids i32 [B context], without bos and padded after eos, and the sum of their
    log-probabilities, f32 [B].
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
    """Beam search without length penalty. Arguments and results are those of `greedy`.

    A beam that ends becomes a candidate and is not extended; at the last position every beam ends. The best candidate
    is returned. Source: the FFA branch of github.com/lxirich/MM-Retinal.
    """
    rows, context = len(tokens), decoder.context
    cache = decoder.apply({"params": params}, tokens, method="begin")
    cache = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), cache)  # the beams of an image are neighbours
    first = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)[None]  # all beams are equal at first: extend only one

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
        top_score = jnp.take_along_axis(ended, top, axis=1)[:, 0]
        better = top_score > best_score
        report = jnp.take_along_axis(written, top[:, :, None], axis=1)[:, 0]
        best = jnp.where(better[:, None], report, best)
        best_score = jnp.where(better, top_score, best_score)
        return (cache, ids, written, score + _DONE * ends, best, best_score), None

    blank = jnp.full((rows, beams, context), decoder.pad, jnp.int32)
    ids = jnp.full((rows, beams), decoder.bos, jnp.int32)
    start = (cache, ids, blank, jnp.broadcast_to(first, (rows, beams)), blank[:, 0], jnp.full(rows, -jnp.inf))
    (*_, best, best_score), _ = jax.lax.scan(step, start, jnp.arange(context))
    return best, best_score
