"""Image-text retrieval over a whole data set: the rank of the matching text for each image, and of the image for each text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fundax.evals.kinds import RetrievalResult
from fundax.metrics.ranking import ranks, summary
from fundax.types import Batch, Eval, Extra, Forward, Params, UserError


def retrieval(
    data: Callable[[], Iterator[Batch]],
    *,
    parity: bool = False,
    ks: Sequence[int] = (1, 5, 10),
    inputs: Sequence[str] = ("image",),
) -> Eval:
    """An eval of N image-text pairs: R@k, mean and median rank in both directions, and the loss within batches.

    All images with the same text (or category) match that text, because hundreds of eyes have the report "normal".

    Args:
        data: batches with the `inputs`, `text` i32 [B L], `valid` bool [B] if rows are padding, and `category` i32 [B]
            if texts differ in wording but not in meaning.
        parity: only the pair itself matches, as in open_clip.
        ks: numbers k for R@k.
        inputs: keys of the batches for the image encoder.

    Returns:
        A RetrievalResult with the metrics image_to_text_R@1, image_to_text_mean_rank, image_to_text_median_rank, ..., the
        same for text_to_image, clip_loss and samples. Ranks start at 1.

    Raises UserError for features that are not finite, and if there are no rows.

    Source: open_clip 2.30.0, get_clip_metrics and the validation loss of train.py.
    """

    def evaluate(forward: Forward, params: Params, extra: Extra) -> RetrievalResult:
        image, text, groups, loss = _features(forward, params, extra, data(), inputs)
        if parity:
            groups = np.arange(len(groups))
        metrics, positions = {"clip_loss": loss, "samples": float(len(groups))}, {}
        for name, queries, items in (("image_to_text", image, text), ("text_to_image", text, image)):
            rank = ranks(queries, items, groups, parity=parity)
            metrics |= {f"{name}_{key}": value for key, value in summary(rank, ks).items()}
            positions[f"{name}_rank"] = rank + 1
        return RetrievalResult(metrics=metrics, **positions)

    return evaluate


def clip_loss(image: np.ndarray, text: np.ndarray, logit_scale: float) -> float:
    """The symmetric cross entropy of one batch of pairs f32 [B E], in float64.

    Source: Radford et al. 2021 (CLIP), figure 3.
    """
    logits = float(logit_scale) * image.astype(np.float64) @ text.astype(np.float64).T  # [B B]
    losses = [np.logaddexp.reduce(logits, axis=axis) - np.diag(logits) for axis in (0, 1)]
    return float(np.mean(losses))


def _features(
    forward: Forward, params: Params, extra: Extra, data: Iterator[Batch], inputs: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Image and text features f32 [N E] and groups i64 [N] of the valid rows, and the mean loss of the batches."""
    images, texts, words, total = [], [], [], 0.0
    for batch in data:
        out = forward(params, extra, {key: batch[key] for key in (*inputs, "text")})
        ids = np.asarray(batch["text"])
        valid = np.asarray(batch.get("valid", np.ones(len(ids), bool)))
        seen = sum(map(len, words))
        rows = np.asarray(batch["index"] if "index" in batch else seen + np.arange(len(valid)))[valid]
        image, text = (np.asarray(out[f"{name}_features"], np.float32)[valid] for name in ("image", "text"))
        for name, features in (("image_features", image), ("text_features", text)):
            bad = rows[~np.isfinite(features).all(axis=1)]
            if len(bad):
                raise UserError(f"{name} of rows {', '.join(map(str, bad[:5]))} are not finite (NaN or infinity)")
        if len(image):
            total += clip_loss(image, text, float(out["logit_scale"])) * len(image)
        images.append(image)
        texts.append(text)
        meaning = np.asarray(batch["category"])[:, None] if "category" in batch else ids
        words.append(meaning[valid])
    n = sum(map(len, words))
    if not n:
        raise UserError("the retrieval set has no rows; expected at least one image with a text")
    groups = np.unique(np.concatenate(words), axis=0, return_inverse=True)[1].reshape(-1)
    return np.concatenate(images), np.concatenate(texts), groups, total / n
