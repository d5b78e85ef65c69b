"""Report generation from images: KeepFIT's FFA captioner (arXiv:2405.11338), a plain form of R2Gen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fundax.encoders.backbone import apply_encoder
from fundax.encoders.layers import apply
from fundax.encoders.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from fundax.encoders.report_decoder import ReportDecoder, beam_search, greedy, token_loss
from fundax.encoders.resnet import ResNet
from fundax.encoders.vit import ViT
from fundax.types import Batch, Extra, Metrics, Params, UserError

# Image size, width and units of the ResNet, fields of the decoder, and `words_every`. A ResNet sees small lesions after
# a few thousand images, a ViT of its cost does not. base is published.
SIZES: dict[str, tuple[int, tuple[int, tuple[int, ...]], dict[str, Any], int]] = {
    "smoke": (32, (8, (1,) * 4), {"width": 32, "depth": 1, "heads": 1, "hidden": 64, "visual_dropout": 0.1}, 4),
    "tiny": (96, (24, (1,) * 4), {"width": 128, "depth": 2, "heads": 4, "hidden": 256, "visual_dropout": 0.1}, 4),
    "base": (224, (64, (3, 4, 6, 3)), {}, 1),
}


@dataclass(frozen=True)
class Report:
    """Next-word prediction by a decoder that reads the tokens of an image encoder.

    A text begins with decoder.bos, ends with decoder.eos and is padded with decoder.pad. If eos and pad are the same id,
    as in FFA's captioner, the first padding of a text is its end and counts. Images are normalised with ImageNet's
    statistics, unlike those of KeepFIT's other branches.

    beams: beams of the search in `forward`; 1: greedy.
    findings: number of findings; 0: none. They are our extension. A head on the image tokens predicts which findings the
        report names, and the decoder reads the findings as an additional token: those of the report in training, the
        predicted ones when generating.
    finding_weight: weight of the cross-entropy of the findings.
    finding_threshold: probability from which a predicted finding is given to the decoder.
    words_every: compute the word loss for every n-th report only. Given the findings, the words are learned quickly, and
        this saves time.
    """

    image: ResNet | ViT
    decoder: ReportDecoder
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    beams: int = 1
    findings: int = 0
    finding_weight: float = 1.0
    finding_threshold: float = 0.3
    words_every: int = 1

    def batch_spec(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        """image u8 [B h w 3], text i32 [B L + 1] including bos, and findings f32 [B F] of 0 and 1 if they are used."""
        size = self.image.image_size
        shapes = {
            "image": jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((batch, self.decoder.context + 1), jnp.int32),
        }
        return shapes | (
            {"findings": jax.ShapeDtypeStruct((batch, self.findings), jnp.float32)} if self.findings else {}
        )

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Extra]:
        """Initial parameters {"image", "decoder", "findings"}; `extra` is {"image": batch statistics}, empty for a ViT."""
        keys = jax.random.split(rng)
        variables = self.image.init(keys[0], self._pixels(batch["image"][:1]))
        tokens = jnp.zeros((1, 2, self.image.width), jnp.float32)
        decoder = self.decoder.init(keys[1], tokens, batch["text"][:1, :-1])["params"]
        extra = {"image": variables["batch_stats"]} if "batch_stats" in variables else {}
        params = {"image": variables["params"], "decoder": decoder}
        if self.findings:
            width, f = self.image.width, self.findings
            word = jax.random.normal(jax.random.fold_in(rng, 2), (f, width))  # of the scale of an image token
            answer = {"kernel": jnp.zeros((2 * width, f)), "bias": jnp.full((f,), -2.0)}  # most findings are absent
            params["findings"] = {"answer": answer, "token": {"kernel": word, "bias": jnp.zeros((width,))}}
        return params, extra

    def forward(self, params: Params, extra: Extra, batch: Batch) -> dict[str, jax.Array]:
        """image_tokens [B N D] of `image`, and a generated report i32 [B context], without bos and padded after eos.

        With `text` in the batch, instead of the report: log_p f32 [B], of all its words, and words f32 [B], their number.
        With findings: finding_p f32 [B F]. The decoder gets the batch's `findings` if there are any, else the predicted.
        """
        tokens, _ = self._tokens(params, extra, batch["image"], train=False)
        more: dict[str, jax.Array] = {}
        if self.findings:
            probabilities = jax.nn.sigmoid(_finding_logits(params, tokens))
            known = (
                batch["findings"]
                if "findings" in batch
                else (probabilities > self.finding_threshold).astype(jnp.float32)
            )
            tokens, more = _with_findings(params, tokens, known), {"finding_p": probabilities}
        if "text" not in batch:
            return {"image_tokens": tokens, "report": self.write(params, tokens), **more}
        text = batch["text"]
        log_p = apply(self.decoder, params["decoder"], tokens, text[:, :-1])
        sums, words = token_loss(log_p, text[:, 1:], self.counted(text))
        return {"image_tokens": tokens, "log_p": -sums, "words": words, **more}

    def loss(
        self, params: Params, extra: Extra, batch: Batch, rng: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[Extra, Metrics]]:
        """Mean -log p of the words, plus the loss of the findings; reports that are not `valid` are left out."""
        tokens, extra = self._tokens(params, extra, batch["image"], train=True)
        finding_loss, metrics = self._finding_loss(params, tokens, batch) if self.findings else (0.0, {})
        tokens = _with_findings(params, tokens, batch["findings"]) if self.findings else tokens
        batch = {key: batch[key][:: self.words_every] for key in ("text", "valid") if key in batch}
        tokens, text = tokens[:: self.words_every], batch["text"]
        log_p = apply(self.decoder, params["decoder"], tokens, text[:, :-1], rngs={"dropout": rng})
        there = self.counted(text)
        if "valid" in batch:
            there = there & batch["valid"][:, None]
        sums, words = token_loss(log_p, text[:, 1:], there)
        total = jnp.maximum(words.sum(), 1)
        loss = sums.sum() / total
        right = ((jnp.argmax(log_p, axis=2) == text[:, 1:]) & there).sum() / total
        return loss + self.finding_weight * finding_loss, (extra, {"loss": loss, "next_word": right, **metrics})

    def _finding_loss(self, params: Params, tokens: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Binary cross-entropy, summed over the findings and averaged over the `valid` reports."""
        logits, true = _finding_logits(params, tokens), jnp.asarray(batch["findings"], jnp.float32)
        each = (jax.nn.softplus(logits) - logits * true).sum(1)  # [B]
        valid = jnp.asarray(batch["valid"] if "valid" in batch else jnp.ones(len(each)), jnp.float32)
        loss = (each * valid).sum() / jnp.maximum(valid.sum(), 1)
        return loss, {"loss_findings": loss}

    def write(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Generate reports i32 [B context] from image tokens [B N D]."""
        if self.beams == 1:
            return greedy(self.decoder, params["decoder"], tokens)[0]
        return beam_search(self.decoder, params["decoder"], tokens, self.beams)[0]

    def counted(self, text: jax.Array) -> jax.Array:
        """Mask bool [B L] of the positions of text[:, 1:] that are predicted: the words of the report and its end."""
        ids = text[:, 1:]
        return jnp.cumsum(ids == self.decoder.eos, axis=1) - (ids == self.decoder.eos) == 0

    def _pixels(self, image: jax.Array) -> jax.Array:
        return normalize(image, self.mean, self.std, self.image.dtype)

    def _tokens(self, params: Params, extra: Extra, image: jax.Array, train: bool) -> tuple[jax.Array, Extra]:
        out, extra = apply_encoder(self.image, params["image"], extra, self._pixels(image), train=train)
        return out["tokens"], extra


def _finding_logits(params: Params, tokens: jax.Array) -> jax.Array:
    """Logits of the findings f32 [B F] from the maximum and the mean of the image tokens [B N D].

    The maximum, because a lesion may be in one of many tokens.
    """
    pooled = jnp.concatenate([tokens.max(1), tokens.mean(1)], axis=-1).astype(jnp.float32)
    answer = params["findings"]["answer"]
    return pooled @ answer["kernel"] + answer["bias"][None]


def _with_findings(params: Params, tokens: jax.Array, known: jax.Array) -> jax.Array:
    """Append to the image tokens [B N D] one token, the sum of the embeddings of the findings that are 1 in f32 [B F]."""
    word = params["findings"]["token"]
    token = jnp.asarray(known, jnp.float32) @ word["kernel"] + word["bias"][None]  # [B D]
    return jnp.concatenate([tokens, token[:, None].astype(tokens.dtype)], axis=1)


def report(
    size: str, tokenizer: Any, *, image_size: int = 0, beams: int = 1, findings: int = 0, dtype: str = "float32"
) -> Report:
    """The model of a row of SIZES; `tokenizer` has vocab_size, start, end, pad, and one position more than a report.

    findings: number of findings to learn in addition to the words. Raises UserError for an unknown size.
    """
    if size not in SIZES:
        raise UserError(f"size is {size!r}; expected one of {', '.join(SIZES)}")
    side, (width, units), fields, every = SIZES[size]
    ids = {"bos": tokenizer.start, "eos": tokenizer.end, "pad": tokenizer.pad, "context": tokenizer.context - 1}
    decoder = ReportDecoder(tokenizer.vocab_size, dtype=dtype, **ids, **fields)
    asked: dict[str, Any] = {"findings": findings, "words_every": every} if findings else {}
    return Report(ResNet(image_size or side, width, units, dtype=dtype), decoder, beams=beams, **asked)


def amsgrad(lr: float, weight_decay: float) -> optax.GradientTransformation:
    """The published optimizer: AMSGrad with L2 regularisation, the image encoder at half the rate, gradients cut at 0.1."""
    rates = {"image": lr / 2, "decoder": lr}
    groups: dict[Any, optax.GradientTransformation] = {
        name: optax.chain(optax.add_decayed_weights(weight_decay), optax.amsgrad(rate)) for name, rate in rates.items()
    }
    split = optax.multi_transform(groups, lambda params: {n: n if n == "image" else "decoder" for n in params})
    return optax.chain(optax.clip(0.1), split)
