"""KeepFIT's cross-modal reference loss (arXiv:2405.11338): the texts of similar elite images guide a public image's text.

V1 is the published computation; golden tests compare with it. V2, which also uses similarity of appearance, is our
design: the formula of KeepFIT V2 (arXiv:2501.15798) is not public."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from fundax.encoders.layers import l2_normalize, uniform
from fundax.types import Params, UserError

_EXACT = jax.lax.Precision.HIGHEST
CHOICES = {"similarity": ("attention", "cosine"), "softmax": ("keys", "heads"), "loss": ("mse", "cosine")}


@dataclass(frozen=True)
class Attention:
    """Multi-head attention of B queries to K examples, without biases.

    softmax: "keys" normalises over the examples, as usual. "heads" normalises over the heads, as the published code
        does: the weights of a query's examples do not sum to 1, and with one head all of them are 1.
    dropout: dropout rate of the weights; active if a random key is given.
    """

    heads: int = 2
    softmax: Literal["keys", "heads"] = "keys"
    dropout: float = 0.5

    def init(self, rng: jax.Array, width: int) -> Params:
        """Kernels [E E] of query, key, value and out, with PyTorch's initial values."""
        names = ("query", "key", "value", "out")
        draw = uniform(width**-0.5)
        return {
            name: {"kernel": draw(key, (width, width))}
            for name, key in zip(names, jax.random.split(rng, 4), strict=True)
        }

    def logits(self, params: Params, query: jax.Array, key: jax.Array) -> jax.Array:
        """Logits f32 [H B K] of query f32 [B E] and key f32 [K E]."""
        q = self._split(matmul(query, params["query"]["kernel"]))  # [B H d]
        k = self._split(matmul(key, params["key"]["kernel"]))
        return jnp.einsum("bhd,khd->hbk", q, k, precision=_EXACT) * q.shape[-1] ** -0.5

    def weigh(self, logits: jax.Array, mask: jax.Array | None = None, rng: jax.Array | None = None) -> jax.Array:
        """Weights f32 [H B K] of logits; mask bool [B K] is True for examples that may be used."""
        weights = jax.nn.softmax(hide(logits, mask), axis=0 if self.softmax == "heads" else -1)
        if mask is not None:
            weights = weights * mask[None]
        if rng is None or not self.dropout:
            return weights
        keep = jax.random.bernoulli(rng, 1 - self.dropout, weights.shape)
        return weights * keep / (1 - self.dropout)

    def combine(self, params: Params, weights: jax.Array, value: jax.Array) -> jax.Array:
        """Output f32 [B E] of weights [H B K] and value f32 [K E]."""
        v = self._split(matmul(value, params["value"]["kernel"]))
        y = jnp.einsum("hbk,khd->bhd", weights, v, precision=_EXACT)
        return matmul(y.reshape(len(y), -1), params["out"]["kernel"])

    def __call__(
        self, params: Params, query: jax.Array, key: jax.Array, value: jax.Array, rng: jax.Array | None = None
    ) -> jax.Array:
        """Output f32 [B E] of query [B E], key and value [K E]."""
        return self.combine(params, self.weigh(self.logits(params, query, key), None, rng), value)

    def _split(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] % self.heads:
            raise UserError(f"a width of {x.shape[-1]} does not divide among {self.heads} heads")
        return x.reshape(len(x), self.heads, -1)


@dataclass(frozen=True)
class Reference:
    """A reference text R for every public image, a weighted mean of elite texts, and its distance from the image's text T.

    The logits of the weights are lam * semantic similarity + (1 - lam) * cosine of appearances / tau_appearance.

    similarity: the semantic similarity. "attention": learned queries, keys and values of the image features, in heads.
        "cosine": cosine of the features / tau_semantic, without gradient to the elite image, and
        R = normalise(W_o sum_j w_j T'_j).
    attention: the attention; its softmax and dropout are used for both similarities.
    loss: "mse", the mean over all B E entries, or "cosine", 1 - cos(T, R).
    weight: weight of the loss in the total.
    stop_gradient: treat R as a constant.
    """

    similarity: Literal["attention", "cosine"] = "cosine"
    attention: Attention = Attention(heads=1, dropout=0.0)
    lam: float = 0.5
    tau_semantic: float = 0.07
    tau_appearance: float = 0.1
    loss: Literal["mse", "cosine"] = "cosine"
    weight: float = 1.0
    stop_gradient: bool = False

    def __post_init__(self) -> None:
        for name in ("similarity", "loss"):
            if getattr(self, name) not in CHOICES[name]:
                raise UserError(f"Reference: {name} is {getattr(self, name)!r}; expected {' or '.join(CHOICES[name])}")
        if not 0 <= self.lam <= 1:
            raise UserError(f"Reference: lam is {self.lam}; expected 0 to 1")

    def init(self, rng: jax.Array, width: int) -> Params:
        """Kernels [E E]; "cosine" only has `out`, which starts as the identity."""
        if self.similarity == "attention":
            return self.attention.init(rng, width)
        return {"out": {"kernel": jnp.eye(width, dtype=jnp.float32)}}

    def text(
        self,
        params: Params,
        image: jax.Array,
        elite: tuple[jax.Array, jax.Array],
        *,
        appearance: jax.Array | None = None,
        mask: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """R f32 [B E].

        Args:
            params: see init.
            image: features of public images, f32 [B E].
            elite: image and text features of the elite examples, f32 [K E] each.
            appearance: cosines of the appearances of public and elite images, f32 [B K]; needed unless lam is 1.
            mask: bool [B K], True where the elite example may be used as a reference for the image.
            rng: key for dropout.
        """
        if self.lam < 1 and appearance is None:
            raise UserError("a reference with lam < 1 compares appearances, but the batch has none")
        images, texts = elite
        if self.similarity == "attention":
            logits = self.attention.logits(params, image, images)
        else:
            logits = matmul(image, jax.lax.stop_gradient(images).T)[None] / self.tau_semantic
        if self.lam < 1 and appearance is not None:
            logits = self.lam * logits + (1 - self.lam) * (appearance / self.tau_appearance)[None]
        weights = self.attention.weigh(logits, mask, rng)  # [H B K]
        if self.similarity == "attention":
            return self.attention.combine(params, weights, texts)
        return l2_normalize(matmul(matmul(weights[0], texts), params["out"]["kernel"]))

    def distance(self, text: jax.Array, reference: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """The unweighted loss of T and R, f32 [B E] each; fp32 (). mask: bool [B], the rows that count."""
        if self.stop_gradient:
            reference = jax.lax.stop_gradient(reference)
        if self.loss == "mse":
            rows = jnp.square(text - reference).mean(1)
        else:
            rows = 1 - (l2_normalize(text) * l2_normalize(reference)).sum(1)
        if mask is None:
            return rows.mean()
        return (rows * mask).sum() / jnp.maximum(mask.sum(), 1)


V1 = Reference("attention", Attention(2, "heads", 0.5), lam=1.0, loss="mse", weight=100.0)  # the published KeepFIT
V2 = Reference()  # our design after the abstract of KeepFIT V2


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """Matrix product in full fp32."""
    return jnp.matmul(x, y, precision=_EXACT)


def hide(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Set logits [H B K] to the lowest number where mask bool [B K] is False."""
    if mask is None:
        return logits
    return jnp.where(jnp.broadcast_to(mask[None], logits.shape), logits, jnp.finfo(jnp.float32).min)


def agreeing(status: jax.Array, elite: jax.Array) -> jax.Array:
    """Whether images agree: not one known to be normal and the other to be abnormal; bool [B K].

    status i32 [B], elite i32 [K]: 0 normal, 1 abnormal, negative unknown.
    """
    known = (status >= 0)[:, None] & (elite >= 0)[None, :]
    return ~known | (status[:, None] == elite[None, :])
