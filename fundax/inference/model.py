"""Inference with image-text models: image and text features, zero-shot probabilities, similarity maps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import softmax

from data_pipelines.images import decode as files
from data_pipelines.transforms.steps import preprocess
from fundax.encoders.layers import LayerNorm
from fundax.encoders.pixels import normalize
from fundax.encoders.vit import ViT
from fundax.evals.features import class_features
from fundax.interop.checkpoint import preprocessing_of
from fundax.interop.read import load as load_checkpoint
from fundax.types import Extra, Params, UserError

Image = files.ImageLike  # a path, encoded bytes, or u8 [H W 3]


def load(path: str | Path, checkpoint: int | str = "", batch: int = 32) -> Model:
    """Load the model of a run, an import, or an exported open_clip or Hugging Face CLIP folder.

    Args:
        checkpoint: the checkpoint of a run: "best", "latest" or a step; "" is the best one if the run selected one.
        batch: the largest number of images or texts in one forward pass.
    Raises:
        UserError: there is no such model at `path`, or a part of it is missing or damaged.
    """
    loaded = load_checkpoint(path, checkpoint)
    if not hasattr(loaded.objective, "encode"):
        raise UserError(f"{path} holds {type(loaded.objective).__name__}; expected an image-text model")
    params = jax.tree.map(jax.numpy.asarray, loaded.params)
    extra = jax.tree.map(jax.numpy.asarray, loaded.extra)
    return Model(loaded.objective, params, preprocessing_of(loaded), loaded.tokenizer, batch, extra)


@dataclass(frozen=True, eq=False)
class Model:
    """An image-text model with its preprocessing and its tokenizer; created by `load`."""

    objective: Any
    params: Params
    preprocessing: Mapping[str, Any]
    tokenizer: Any  # texts -> i32 [N L], or None
    batch: int = 32
    extra: Extra = field(default_factory=dict)  # batch statistics

    def encode_image(self, images: Sequence[Image]) -> np.ndarray:
        """Unit features f32 [N E] of N images: paths, encoded bytes or arrays u8 [H W 3], of any sizes.

        Raises DataError naming an image that cannot be read.
        """
        return self._batched(images, "image", self._pixels)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit features f32 [N E] of N texts. Raises UserError if the model has no tokenizer."""
        return self._batched(texts, "text", self._tokens)

    def zero_shot(
        self,
        images: Sequence[Image],
        classes: Sequence[str] | Mapping[str, Sequence[str]],
        templates: Sequence[str] = ("{}",),
    ) -> np.ndarray:
        """Probabilities f32 [N K] of N images over K classes; the columns are in the order of `classes`.

        Args:
            classes: class names, or a mapping from class names to synonyms. The features of a class are the mean over
                its prompts.
            templates: sentences with {} in place of the name; every template is combined with every synonym.
        Raises:
            UserError: there is no class, a class has no prompts, or a template has no {}.

        Source: Radford et al. 2021 (CLIP), section 3.1.4.
        """  # fmt: skip
        synonyms = classes if isinstance(classes, Mapping) else {name: [name] for name in classes}
        if not synonyms or not all(synonyms.values()) or isinstance(classes, str):
            raise UserError("zero-shot needs at least one class, and a prompt for each")
        if bad := [template for template in templates if "{}" not in template] or not templates:
            raise UserError(f"zero-shot templates need {{}} where the name goes; got {bad if templates else 'none'}")
        prompts = [
            self._tokens([template.replace("{}", word) for word in words for template in templates])
            for words in synonyms.values()
        ]
        heads = class_features(self._forward, prompts, min(self.batch, _power(sum(map(len, prompts)))))  # [K E]
        scales = self._forward({})
        logits = self.encode_image(images) @ heads.T * scales["logit_scale"] + scales.get("logit_bias", 0)
        return softmax(logits, axis=1)  # [N K]

    def similarity_map(self, image: Image, text: str) -> np.ndarray:
        """Cosine similarity of each patch with a text, f32 [h w] on the grid of patches; row 0 is at the top.

        Patch tokens are projected like the pooled token, which the model was not trained for. The map is a
        visualisation, not a segmentation.
        """
        if not isinstance(self.objective.image, ViT):
            raise UserError(f"a similarity map is of a ViT's patches; this is {type(self.objective.image).__name__}")
        pixels, words = self._pixels([image]), self.encode_text([text])[0]
        patches = np.asarray(_patch_features(self.objective, self.params, pixels))[0]  # [N E]
        side = self.objective.image.image_size // self.objective.image.patch
        return (patches @ words).reshape(side, side)

    def _pixels(self, images: Sequence[Image]) -> np.ndarray:
        size = int(self.preprocessing["image_size"])
        return np.stack([preprocess(files.load(image, at_least=size), self.preprocessing) for image in images])

    def _tokens(self, texts: Sequence[str]) -> np.ndarray:
        if self.tokenizer is None:
            raise UserError("this model came without a tokenizer, so it takes no texts; add its files to the folder")
        return self.tokenizer(list(texts))

    def _forward(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(value)
            for name, value in _forward(self.objective, self.params, self.extra, dict(batch)).items()
        }

    def _batched(self, items: Sequence[Any], key: str, read: Callable[[Sequence[Any]], np.ndarray]) -> np.ndarray:
        """Read and encode all items batch by batch; small batches are padded to a power of two."""
        if isinstance(items, str | bytes | Path):
            raise UserError(f"encode_{key} takes a list, not one {type(items).__name__}: write [{key}]")
        parts = [np.zeros((0, self.objective.embed), np.float32)]
        for at in range(0, len(items), self.batch):
            array = read(items[at : at + self.batch])
            room = min(self.batch, _power(len(array))) - len(array)
            padded = np.concatenate([array, np.repeat(array[-1:], room, axis=0)])
            parts.append(self._forward({key: padded})[f"{key}_features"][: len(array)])
        return np.concatenate(parts)


def _power(n: int) -> int:
    """Round up to a power of two, so that few shapes are compiled."""
    return 1 << max(n - 1, 0).bit_length()


@functools.partial(jax.jit, static_argnums=0)
def _forward(objective: Any, params: Params, extra: Extra, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    return objective.forward(params, extra, batch)


@functools.partial(jax.jit, static_argnums=0)
def _patch_features(objective: Any, params: Params, image: np.ndarray) -> jax.Array:
    """Unit features f32 [B N E] of the patches of images u8 [B h w 3], without the class token."""
    vit = objective.image
    pixels = normalize(image, objective.mean, objective.std, vit.dtype)
    tokens: Any = vit.apply({"params": params["image"]}, pixels)["tokens"][:, int(vit.class_token) :]
    if vit.norm_after_pool:  # then the final norm has not been applied to the tokens yet
        tokens = LayerNorm(vit.epsilon).apply({"params": params["image"]["norm"]}, tokens)
    features = tokens.astype(jax.numpy.float32) @ params["project"]["image"]["kernel"]
    return features / jax.numpy.linalg.norm(features, axis=-1, keepdims=True)
