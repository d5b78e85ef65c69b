"""Reports of images, word by word: KeepFIT's FFA captioner (arXiv:2405.11338) and R2Gen's plain form of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fundax.encoders.pixels import normalize
from fundax.encoders.report_decoder import ReportDecoder, beam_search, greedy, token_loss
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.types import Batch, Extra, Metrics, Params, UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# Image size, width and units of the ResNet, fields of the decoder, and `words_every`. A ResNet sees small lesions after
# a few thousand images, a ViT of its cost does not. base is published.
SIZES: dict[str, tuple[int, tuple[int, tuple[int, ...]], dict[str, Any], int]] = {
    "smoke": (32, (8, (1,) * 4), {"width": 32, "depth": 1, "heads": 1, "hidden": 64, "visual_dropout": 0.1}, 4),
    "tiny": (96, (24, (1,) * 4), {"width": 128, "depth": 2, "heads": 4, "hidden": 256, "visual_dropout": 0.1}, 4),
    "base": (224, (64, (3, 4, 6, 3)), {}, 1),
}


@dataclass(frozen=True)
class Report:
    """An image tower whose tokens a decoder reads, taught to predict every next word of the report.

    A text begins with decoder.bos, ends with decoder.eos and is filled up with decoder.pad. Where eos and pad are one id
    (FFA's captioner), the first pad of a text is its end and counts. Images are normalised as ImageNet's, which this
    branch of the peer does and its others do not. `beams` are those that `forward` writes reports with, 1 is greedy.

    With `findings` (how many there are; ours, the peer has none) the image tokens answer for each finding whether the
    report names it, a cross-entropy of its own (`finding_weight`), and the decoder reads the answer as one more token:
    the report's own findings while it learns, those above `told` when it writes. Words that follow from findings are
    learnt soon, so that only every `words_every`-th report of a batch needs to teach them.
    """

    needs: ClassVar[tuple[str, ...]] = ("image", "text")

    image: ResNet | ViT
    decoder: ReportDecoder
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    beams: int = 1
    findings: int = 0
    finding_weight: float = 1.0
    told: float = 0.3
    words_every: int = 1

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3], text i32 [B L + 1] with the first word's bos, findings f32 [B F] of 0 and 1 where asked for."""
        size = self.image.image_size
        shapes = {
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((batch, self.decoder.context + 1), jnp.int32),
        }
        return shapes | (
            {"findings": jax.ShapeDtypeStruct((batch, self.findings), jnp.float32)} if self.findings else {}
        )

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Fresh parameters {"image", "decoder", "findings"}; `extra` is {"image": batch statistics}, or empty for a ViT."""
        keys = jax.random.split(rng)
        variables = self.image.init(keys[0], self._pixels(batch["image"][:1]))
        tokens = jnp.zeros((1, 2, self.image.width), jnp.float32)
        decoder = self.decoder.init(keys[1], tokens, batch["text"][:1, :-1])["params"]
        extra = {"image": variables["batch_stats"]} if "batch_stats" in variables else {}
        params = {"image": variables["params"], "decoder": decoder}
        if self.findings:
            width, f = self.image.width, self.findings
            word = jax.random.normal(jax.random.fold_in(rng, 2), (f, width))  # as long as an image token
            answer = {"kernel": jnp.zeros((2 * width, f)), "bias": jnp.full((f,), -2.0)}  # most findings are absent
            params["findings"] = {"answer": answer, "token": {"kernel": word, "bias": jnp.zeros((width,))}}
        return params, extra

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """For `image`: image_tokens [B N D], and report i32 [B context], written word by word.

        With `text` instead of the report: log_p f32 [B], of all words of the text given, and words f32 [B], their number.
        A written report is without bos and ends in eos, behind which there is pad. Beside it, where findings are asked
        for: finding_p f32 [B F], by which the report is written; of a text given the batch's `findings` are told.
        """
        tokens, _ = self._tokens(params, extra, batch["image"], train=False)
        beside: dict[str, jax.Array] = {}
        if self.findings:
            chances = jax.nn.sigmoid(_answered(params, tokens))
            known = batch["findings"] if "findings" in batch else (chances > self.told).astype(jnp.float32)
            tokens, beside = _with_findings(params, tokens, known), {"finding_p": chances}
        if "text" not in batch:
            return {"image_tokens": tokens, "report": self.write(params, tokens), **beside}
        text = batch["text"]
        log_p: Any = self.decoder.apply({"params": params["decoder"]}, tokens, text[:, :-1])
        sums, words = token_loss(log_p, text[:, 1:], self.counted(text))
        return {"image_tokens": tokens, "log_p": -sums, "words": words, **beside}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean -log p over the words of all reports, and of the findings; needs `image` and `text`, honours `valid`."""
        del step
        tokens, extra = self._tokens(params, extra, batch["image"], train=True)
        missed, metrics = self._missed(params, tokens, batch) if self.findings else (0.0, {})
        tokens = _with_findings(params, tokens, batch["findings"]) if self.findings else tokens
        batch = {key: batch[key][:: self.words_every] for key in ("text", "valid") if key in batch}
        tokens, text = tokens[:: self.words_every], batch["text"]
        log_p: Any = self.decoder.apply({"params": params["decoder"]}, tokens, text[:, :-1], rngs={"dropout": rng})
        there = self.counted(text)
        if "valid" in batch:
            there = there & batch["valid"][:, None]
        sums, words = token_loss(log_p, text[:, 1:], there)
        total = jnp.maximum(words.sum(), 1)
        loss = sums.sum() / total
        right = ((jnp.argmax(log_p, axis=2) == text[:, 1:]) & there).sum() / total
        return loss + self.finding_weight * missed, (extra, {"loss": loss, "next_word": right, **metrics})

    def _missed(self, params: Params, tokens: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The cross-entropy of the findings, summed over them; mean over the reports that are `valid`."""
        logits, true = _answered(params, tokens), jnp.asarray(batch["findings"], jnp.float32)
        each = (jax.nn.softplus(logits) - logits * true).sum(1)  # [B]
        valid = jnp.asarray(batch["valid"] if "valid" in batch else jnp.ones(len(each)), jnp.float32)
        missed = (each * valid).sum() / jnp.maximum(valid.sum(), 1)
        return missed, {"loss_findings": missed}

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
        return normalize(image, self.mean, self.std, self.image.dtype)

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


def _answered(params: Params, tokens: jax.Array) -> jax.Array:
    """Logits of the findings f32 [B F] from the largest of each channel and the mean of the image tokens [B N D].

    The largest, since a lesion may lie in one token of many.
    """
    pooled = jnp.concatenate([tokens.max(1), tokens.mean(1)], axis=-1).astype(jnp.float32)
    answer = params["findings"]["answer"]
    return pooled @ answer["kernel"] + answer["bias"][None]


def _with_findings(params: Params, tokens: jax.Array, known: jax.Array) -> jax.Array:
    """The image tokens [B N D] and one more, the sum of the words of the findings that are there (f32 [B F])."""
    word = params["findings"]["token"]
    told = jnp.asarray(known, jnp.float32) @ word["kernel"] + word["bias"][None]  # [B D]
    return jnp.concatenate([tokens, told[:, None].astype(tokens.dtype)], axis=1)


def report(
    size: str, tokenizer: Any, *, image_size: int = 0, beams: int = 1, findings: int = 0, dtype: str = "float32"
) -> Report:
    """The model of a row of SIZES; `tokenizer` has vocab_size, start, end, pad, and one position more than a report.

    findings: how many of them it learns besides the words. Raises UserError for an unknown size.
    """
    if size not in SIZES:
        raise UserError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    side, (width, units), fields, every = SIZES[size]
    ids = {"bos": tokenizer.start, "eos": tokenizer.end, "pad": tokenizer.pad, "context": tokenizer.context - 1}
    decoder = ReportDecoder(tokenizer.vocab_size, dtype=dtype, **ids, **fields)
    asked = {"findings": findings, "words_every": every} if findings else {}
    return Report(ResNet(image_size or side, width, units, dtype=dtype), decoder, beams=beams, **asked)
