"""Reports of images, word by word: KeepFIT's FFA captioner (arXiv:2405.11338) and R2Gen's plain form of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fundax.decoding import beam_search, greedy
from fundax.encoders import layers
from fundax.encoders.report_decoder import ReportDecoder, token_loss
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.types import Batch, Extra, Metrics, Params

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Report:
    """An image tower whose tokens a decoder reads, taught to predict every next word of the report.

    A text begins with decoder.bos, ends with decoder.eos and is filled up with decoder.pad. Where eos and pad are one id
    (FFA's captioner), the first pad of a text is its end and counts. Images are normalised as ImageNet's, which this
    branch of the peer does and its others do not. `beams` are those that `forward` writes reports with, 1 is greedy.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "text")

    image: ResNet | ViT
    decoder: ReportDecoder
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    beams: int = 1

    def spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3], text i32 [B L + 1] with the first word's bos."""
        size = self.image.image_size
        return {
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((batch, self.decoder.context + 1), jnp.int32),
        }

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters {"image", "decoder"}; `extra` is {"image": batch statistics}, or empty for a ViT."""
        keys = jax.random.split(rng)
        variables = self.image.init(keys[0], self._pixels(batch["image"][:1]))
        tokens = jnp.zeros((1, 2, self.image.width), jnp.float32)
        decoder = self.decoder.init(keys[1], tokens, batch["text"][:1, :-1])["params"]
        extra = {"image": variables["batch_stats"]} if "batch_stats" in variables else {}
        return {"image": variables["params"], "decoder": decoder}, extra

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """For `image`: image_tokens [B N D], and report i32 [B context], written word by word.

        With `text` instead of the report: log_p f32 [B], of all words of the text given, and words f32 [B], their number.
        A written report is without bos and ends in eos, behind which there is pad.
        """
        tokens, _ = self._tokens(params, extra, batch["image"], train=False)
        if "text" not in batch:
            return {"image_tokens": tokens, "report": self.write(params, tokens)}
        text = batch["text"]
        log_p: Any = self.decoder.apply({"params": params["decoder"]}, tokens, text[:, :-1])
        sums, words = token_loss(log_p, text[:, 1:], self.counted(text))
        return {"image_tokens": tokens, "log_p": -sums, "words": words}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean -log p over the words of all reports; needs `image` and `text`, honours `valid`."""
        del step
        tokens, extra = self._tokens(params, extra, batch["image"], train=True)
        text = batch["text"]
        log_p: Any = self.decoder.apply({"params": params["decoder"]}, tokens, text[:, :-1], rngs={"dropout": rng})
        there = self.counted(text)
        if "valid" in batch:
            there = there & batch["valid"][:, None]
        sums, words = token_loss(log_p, text[:, 1:], there)
        total = jnp.maximum(words.sum(), 1)
        loss = sums.sum() / total
        right = ((jnp.argmax(log_p, axis=2) == text[:, 1:]) & there).sum() / total
        return loss, (extra, {"loss": loss, "next_word": right})

    def write(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Reports i32 [B context] on the tokens of images [B N D]."""
        if self.beams == 1:
            return greedy(self.decoder, params["decoder"], tokens)[0]
        return beam_search(self.decoder, params["decoder"], tokens, self.beams)[0]

    def counted(self, text: jax.Array) -> jax.Array:
        """bool [B L]: which of text[:, 1:] are words to predict: those of the report and its end."""
        ids = text[:, 1:]
        return jnp.cumsum(ids == self.decoder.eos, axis=1) - (ids == self.decoder.eos) == 0

    def _pixels(self, image: jax.Array) -> jax.Array:
        return layers.normalize(image, self.mean, self.std, self.image.dtype)

    def _tokens(self, params: Params, extra: Extra, image: jax.Array, train: bool) -> tuple[jax.Array, Extra]:
        pixels = self._pixels(image)
        if isinstance(self.image, ViT):
            out: Any = self.image.apply({"params": params["image"]}, pixels)
            return out["tokens"], extra
        variables = {"params": params["image"], "batch_stats": extra["image"]}
        if not train:
            out = self.image.apply(variables, pixels)
            return out["tokens"], extra
        out, new = self.image.apply(variables, pixels, True, mutable=["batch_stats"])
        return out["tokens"], extra | {"image": new["batch_stats"]}
