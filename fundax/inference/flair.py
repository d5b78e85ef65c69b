"""Zero-shot prediction with FLAIR's interface: probabilities and logits of one photograph over a list of categories.

    model = load("flair_resnet.pth", vocab="vocab.txt")
    probabilities, logits = model(image, ["normal", "glaucoma"], with_knowledge=True)

The results match github.com/jusiro/FLAIR, including its quirks. Padding is averaged into the features of a text, so they
depend on the other texts in the batch. The mean features of an ensemble of prompts are not normalised again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import softmax

from data_pipelines.images import decode as files
from data_pipelines.language import knowledge, tokenizers
from data_pipelines.transforms.flair import flair_pixels
from fundax.inference.photographs import forward
from fundax.interop.flair import to_fundax
from fundax.interop.weights import read_state
from fundax.objectives.flair import FLAIR
from fundax.types import Extra, Params, UserError


def load(path: str | Path, vocab: str | Path, **sizes: Any) -> FLAIRModel:
    """Load a FLAIR, KeepFIT or RetiXfer checkpoint.

    Args:
        path: the .pth or .safetensors file.
        vocab: vocab.txt of Bio_ClinicalBERT, or a folder with its tokenizer.
        sizes: size arguments of `interop.flair.to_fundax`, for models that do not have the published sizes.
    Raises:
        UserError, DataError: a file is missing, damaged or belongs to another model.
    """
    objective, params, extra = to_fundax(read_state(path), **sizes)
    params, extra = jax.tree.map(jax.numpy.asarray, (params, extra))
    return FLAIRModel(objective, params, extra, tokenizers.wordpiece(vocab, objective.context))


@dataclass(frozen=True, eq=False)
class FLAIRModel:
    """FLAIR with its tokenizer and expert knowledge about categories; created by `load`."""

    objective: FLAIR
    params: Params
    extra: Extra
    tokenizer: Any  # texts -> i32 [N L]
    known: knowledge.Knowledge = field(default_factory=knowledge.bundled)

    def __call__(
        self, image: files.ImageLike, texts: Sequence[str], *, with_knowledge: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and logits, each f32 [1 K], of one image (a path, bytes, or u8 [H W 3]) over K categories.

        Raises DataError if the image cannot be read, and UserError if there are no categories.
        """
        _check(texts)
        if with_knowledge:
            features = self.text_features(texts)
        else:
            features = self._features("text", self.tokens([self.known.prompt(name) for name in texts]))
        scale = np.asarray(forward(self.objective, self.params, self.extra, {})["logit_scale"])
        logits = scale * self.image_features([image]) @ features.T
        return softmax(logits, axis=1), logits

    def image_features(self, images: Sequence[files.ImageLike]) -> np.ndarray:
        """Unit features f32 [N E] of N images."""
        size = self.objective.image.image_size
        pixels = np.stack([flair_pixels(files.load(image), size) for image in images])
        return self._features("image", pixels)

    def text_features(self, categories: Sequence[str], *, with_knowledge: bool = True) -> np.ndarray:
        """Features f32 [K E] of K categories.

        with_knowledge: average the features of each category's expert descriptions; otherwise use its single prompt.
        Each category is encoded as a separate batch, as in the original implementation. In contrast, `__call__` without
        knowledge encodes all texts as one batch.
        """
        _check(categories)
        ask = self.known.ensemble if with_knowledge else lambda name: (self.known.prompt(name),)
        return np.stack([self._features("text", self.tokens(ask(name))).mean(0) for name in categories])

    def tokens(self, prompts: Sequence[str]) -> np.ndarray:
        """Token ids i32 [N L], where L is the length of the longest prompt, because padding changes the features."""
        ids = self.tokenizer(list(prompts))
        return ids[:, : int((ids != self.tokenizer.pad).sum(1).max())]

    def _features(self, key: str, values: np.ndarray) -> np.ndarray:
        return np.asarray(forward(self.objective, self.params, self.extra, {key: values})[f"{key}_features"])


def _check(categories: Sequence[str]) -> None:
    if isinstance(categories, str) or not len(categories):
        raise UserError("expected a list with at least one category")
