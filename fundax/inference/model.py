"""Inference with a trained model: features, zero-shot probabilities, similarity, patch tokens and attention."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.special import softmax

from data_pipelines.images import decode as files
from data_pipelines.language.prompts import prompts_of
from data_pipelines.records import MODALITIES, DataError, modality_name
from fundax.encoders.backbone import apply_encoder, encoder_of, normalized
from fundax.encoders.layers import LayerNorm, l2_normalize
from fundax.encoders.saliency import class_attention
from fundax.encoders.vit import ViT
from fundax.evals.features import class_features
from fundax.inference.photographs import compute_batches, forward, listed, power_of_two, read_photograph
from fundax.interop.checkpoint import preprocessing_of, say_once
from fundax.interop.read import load as load_checkpoint
from fundax.objectives.dense import Landmark, Segment
from fundax.objectives.ensemble import has_own_encoders
from fundax.objectives.flair import FLAIR
from fundax.types import Extra, Params, UserError

Image = files.ImageLike  # a path, encoded bytes, a Pillow image, or u8 [H W 3]
# Names of features, and the outputs of objectives that they are; `pooled` and `mean` every encoder has.
FEATURES = {"features": "image_features", "visual": "visual", "left": "left_features", "right": "right_features"}


def load(path: str | Path, checkpoint: int | str = "", batch: int = 32, *, modality: str = "") -> Model:
    """Load a model: a run, an import, or a folder or file of weights in another program's format.

    Args:
        checkpoint: the checkpoint of a run: "best", "latest" or a step; "" is the best one if the run selected one.
        batch: the largest number of images or texts in one forward pass of a device.
        modality: modality of the images ("CFP", "OCT", ...), which decides their normalisation where a model has several,
            and the wording of prompts.
    Raises:
        UserError: `path` does not hold such a model, or a part of it is missing or damaged.
    """
    if batch < 1:
        raise UserError(f"batch is {batch}; expected at least 1")
    loaded = load_checkpoint(path, checkpoint)
    if not hasattr(loaded.objective, "image"):
        raise UserError(
            f"{path} holds {type(loaded.objective).__name__}, which encodes no images; expected an image-text model, an "
            "image encoder, or what is built on one"
        )
    if has_own_encoders(loaded.objective):
        say_once(
            f"{path}: {loaded.objective.count} models with encoders of their own; features and maps are the first one's"
        )
    params, extra = jax.tree.map(jnp.asarray, (loaded.params, loaded.extra))
    devices = 1 if jax.default_backend() == "cpu" else jax.local_device_count()
    facts = _facts(loaded)
    return Model(
        loaded.objective, params, facts, loaded.tokenizer, batch, extra,
        modality_name(modality or "CFP"), dict(loaded.source) | {"origin": loaded.origin}, devices,
    )  # fmt: skip


def _facts(loaded: Any) -> dict[str, Any]:
    """The preprocessing of the images that the encoder takes; decoders of pixels also see windows of larger ones."""
    if isinstance(loaded.objective, Segment | Landmark):
        return dict(loaded.preprocessing) | {"image_size": loaded.objective.image.image_size}
    return preprocessing_of(loaded)


@dataclass(frozen=True, eq=False)
class Model:
    """A model with its preprocessing and its tokenizer; created by `load`.

    Images are paths, encoded bytes, open files, Pillow images or arrays (u8 [H W 3], [H W], 16 bits, floats), of any sizes.
    Every method raises DataError naming an image that cannot be read.
    """

    objective: Any
    params: Params
    preprocessing: Mapping[str, Any]
    tokenizer: Any  # texts -> i32 [N L], or None
    batch: int = 32
    extra: Extra = field(default_factory=dict)  # batch statistics, a teacher
    modality: str = "CFP"
    source: Mapping[str, Any] = field(default_factory=dict)
    devices: int = 1  # that share a batch

    @property
    def card(self) -> dict[str, Any]:
        """A summary of the model: objective, source, size, preprocessing and classes."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        kind, encoder = (type(one).__name__ for one in (self.objective, self.objective.image))
        classes = getattr(self.objective, "classes", None) or getattr(self.objective, "names", ())
        facts = {"objective": kind, "image_encoder": encoder, "parameters": count, "modality": self.modality}
        return facts | dict(self.source) | {"preprocessing": dict(self.preprocessing), "classes": tuple(classes)}

    def __call__(self, image: Image, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Predict with FLAIR's interface: probabilities and logits f32 [1 K] of one image over K texts.

        A FLAIR or KeepFIT computes what FLAIR's program does (inference.flair); others, the softmax of scaled cosines.
        """
        _check_texts(texts, "texts")
        if isinstance(getattr(self.objective, "base", self.objective), FLAIR):
            from fundax.inference.flair import FLAIRModel

            return FLAIRModel(self.objective, self.params, self.extra, self._words())(image, texts)
        logits = self._logits([image], self.encode_text(texts))
        return softmax(logits, axis=1), logits

    def preprocess(self, image: Image) -> np.ndarray:
        """Preprocess a photograph to u8 [S S 3]; the model itself normalises."""
        return read_photograph(image, self.preprocessing)

    def encode_image(self, images: Iterable[Image], feature: str = "") -> np.ndarray:
        """Features f32 [N E] of N images.

        Args:
            images: a list, an array [N H W 3] or any iterable, which is read as it is needed.
            feature: "features", the unit vectors that are compared with texts; "pooled", the output of the image encoder;
                "mean", the mean of its patch tokens; "visual", "left" and "right" of a RET-CLIP: its projected output,
                and the levels of an eye. "" is "features" of an image-text model and "pooled" of others.
        """
        feature = self.feature_named(feature)
        known = self._outputs[FEATURES[feature]].shape[-1] if feature in FEATURES else self.objective.image.width
        parts = self.image_features(listed(images), feature, title="images")
        return np.concatenate([np.zeros((0, known), np.float32), *parts])

    def image_features(
        self, images: Iterable[Image], feature: str = "", bad: list[int] | None = None, title: str = ""
    ) -> Iterator[np.ndarray]:
        """Yield the features f32 [B E] of images batch by batch; see `encode_image`.

        bad: a list that takes the numbers of images that cannot be read, whose features are then those of a black image.
        """
        compute = functools.partial(self._image_features, self.feature_named(feature))
        for out in self._batches(images, compute, title, bad):
            yield out["feature"]

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Unit features f32 [N E] of N texts. Raises UserError if the model takes no texts or has no tokenizer."""
        _check_texts(texts, "encode_text")
        parts = [np.zeros((0, self.objective.embed if self.reads_texts else 0), np.float32)]
        for at in range(0, len(texts), self.batch):
            ids = self._tokens(texts[at : at + self.batch])
            room = min(self.batch, power_of_two(len(ids))) - len(ids)
            padded = np.concatenate([ids, np.repeat(ids[-1:], room, axis=0)])
            parts.append(self.forward({"text": padded})["text_features"][: len(ids)])
        return np.concatenate(parts)

    def zero_shot(
        self,
        images: Iterable[Image],
        classes: Sequence[str] | Mapping[str, Sequence[str]],
        templates: Sequence[str] = ("{}",),
        *,
        knowledge: bool = False,
    ) -> np.ndarray:
        """Probabilities f32 [N K] of N images over K classes; the columns are in the order of `classes`.

        Args:
            classes: class names, or a mapping from class names to synonyms. The features of a class are the mean over
                its prompts.
            templates: sentences with {} in place of the name; every template is combined with every synonym.
            knowledge: describe the classes in the words of experts (data_pipelines.language.knowledge) and in the
                wording of the model's modality, as FLAIR does; `templates` are then not used.
        Raises:
            UserError: no classes are given, a class is given twice or has no prompts, or a template has no {}.

        Source: Radford et al. 2021 (CLIP), section 3.1.4.
        """  # fmt: skip
        return softmax(self._logits(images, self.class_features(classes, templates, knowledge=knowledge)), axis=1)

    def class_features(
        self,
        classes: Sequence[str] | Mapping[str, Sequence[str]],
        templates: Sequence[str] = ("{}",),
        *,
        knowledge: bool = False,
    ) -> np.ndarray:
        """Unit features f32 [K E] of classes, with which images are compared; see `zero_shot`."""
        words = [self._tokens(prompts) for prompts in self._prompts(classes, templates, knowledge)]
        return class_features(self.forward, words, min(self.batch, power_of_two(sum(map(len, words)))))

    def similarity(self, images: Iterable[Image], texts: Sequence[str]) -> np.ndarray:
        """Cosine similarity f32 [N M] of N images and M texts."""
        words = self.encode_text(texts)
        return self.encode_image(images) @ words.T

    def similarity_map(self, image: Image, text: str) -> np.ndarray:
        """Cosine similarity of each patch with a text, f32 [h w] on the grid of patches; row 0 is at the top.

        Patch tokens are projected like the pooled token, which the model was not trained for. The map is a
        visualisation, not a segmentation.
        """
        words = self.encode_text([text])[0]
        if "image" not in self.params.get("project", {}):
            raise UserError(f"a similarity map needs a projection of patches; this {self._kind} has none")
        pixels = self.preprocess(image)[None]
        patches = np.asarray(_patch_features(self.objective, self.params, self.extra, self.row, pixels))[0]
        return patches @ words

    def tokens(self, images: Iterable[Image]) -> dict[str, np.ndarray]:
        """patches f32 [N rows columns D] of N images, and class_token f32 [N D] of an encoder that has one."""
        compute = functools.partial(_tokens, self.objective, self.params, self.extra, self.row)
        found = list(self._batches(listed(images), compute, "images"))
        return {name: np.concatenate([out[name] for out in found]) for name in (found[0] if found else ())}

    def attention(self, images: Iterable[Image]) -> dict[str, np.ndarray]:
        """Attention of the class token of a ViT: heads f32 [N H r c], their mean and the rollout [N r c].

        Raises UserError if the image encoder is not a ViT.
        """
        if not isinstance(self.objective.image, ViT):
            raise UserError(
                f"attention is that of a ViT; this {self._kind} has a {type(self.objective.image).__name__}"
            )
        compute = functools.partial(_attention, self.objective, self.params, self.extra, self.row)
        found = list(self._batches(listed(images), compute, "images"))
        return {name: np.concatenate([out[name] for out in found]) for name in (found[0] if found else ())}

    @property
    def reads_texts(self) -> bool:
        """Whether the model has a text encoder."""
        return hasattr(self.objective, "encode")

    def feature_named(self, feature: str) -> str:
        """The name of a feature, with its default filled in. Raises UserError if this model does not have it."""
        feature = feature or ("features" if self.reads_texts else "pooled")
        known = ("pooled", "mean", *(FEATURES if self.reads_texts else ()))
        outputs = self._outputs if feature in FEATURES and feature in known else ()
        if feature not in known or (feature in FEATURES and FEATURES[feature] not in outputs):
            raise UserError(f"feature is {feature!r}; a {self._kind} has {', '.join(self._features())}")
        return feature

    def _features(self) -> list[str]:
        return [
            "pooled",
            "mean",
            *(name for name, key in FEATURES.items() if self.reads_texts and key in self._outputs),
        ]

    @functools.cached_property
    def _outputs(self) -> dict[str, Any]:
        """Shapes of what the objective gives for one image."""
        side = self.objective.image.image_size
        image = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
        keys = ("image", "left", "right") if "left" in self.objective.batch_spec(1) else ("image",)
        return jax.eval_shape(self.objective.forward, self.params, self.extra, dict.fromkeys(keys, image))

    @property
    def _kind(self) -> str:
        return type(self.objective).__name__

    @property
    def row(self) -> int:
        return MODALITIES.index(self.modality)

    def _batches(
        self, images: Iterable[Any], compute: Any, title: str = "", bad: list[int] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        size = int(self.preprocessing["image_size"])

        def read(image: Any, number: int) -> np.ndarray:
            try:
                return read_photograph(image, self.preprocessing, f"image {number}")
            except DataError:
                if bad is None:
                    raise
                bad.append(number)
                return np.zeros((size, size, 3), np.uint8)

        return compute_batches(images, read, lambda x: compute(self._placed(x)), self.batch * self.devices, title)

    def _placed(self, array: np.ndarray) -> Any:
        """The batch, divided among the devices if there are several."""
        if self.devices == 1 or len(array) % self.devices:
            return array
        mesh = Mesh(np.asarray(jax.local_devices()[: self.devices]), ("data",))
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec("data")))

    def _image_features(self, feature: str, pixels: Any) -> dict[str, Any]:
        if feature in FEATURES:
            key = feature if feature in ("left", "right") else "image"
            return {"feature": forward(self.objective, self.params, self.extra, {key: pixels})[FEATURES[feature]]}
        tokens = _encoded(self.objective, self.params, self.extra, self.row, pixels)
        return {"feature": tokens[feature]}

    def _logits(self, images: Iterable[Image], heads: np.ndarray) -> np.ndarray:
        scales = self.forward({})
        return self.encode_image(images) @ heads.T * scales["logit_scale"] + scales.get("logit_bias", 0)  # [N K]

    def _prompts(self, classes: Any, templates: Sequence[str], knowledge: bool) -> list[list[str]]:
        """The prompts of every class."""
        if not isinstance(classes, Mapping):
            _check_texts(classes, "zero-shot classes")
            if twice := sorted({name for name in classes if list(classes).count(name) > 1}):
                raise UserError(f"zero-shot: class {twice[0]!r} is named twice")
        synonyms = classes if isinstance(classes, Mapping) else {name: [name] for name in classes}
        if not synonyms or not all(synonyms.values()):
            raise UserError("zero-shot needs at least one class, and a prompt for each")
        if knowledge:
            return [[text for word in words for text in prompts_of(word, self.modality)] for words in synonyms.values()]
        if bad := [template for template in templates if "{}" not in template] or not templates:
            raise UserError(f"zero-shot templates need {{}} where the name goes; got {bad if templates else 'none'}")
        return [
            [template.replace("{}", word) for word in words for template in templates] for words in synonyms.values()
        ]

    def _words(self) -> Any:
        if not self.reads_texts:
            raise UserError(
                f"this model ({self._kind}) encodes images and takes no texts; expected an image-text model"
            )
        if self.tokenizer is None:
            raise UserError("this model came without a tokenizer, so it takes no texts; add its files to the folder")
        return self.tokenizer

    def _tokens(self, texts: Sequence[str]) -> np.ndarray:
        return self._words()(list(texts))

    def forward(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Outputs of the objective's forward pass for a batch."""
        out = forward(self.objective, self.params, self.extra, dict(batch))
        return {name: np.asarray(value) for name, value in out.items()}


def _check_texts(texts: Any, what: str) -> None:
    """Raise UserError for anything but a list of strings."""
    if isinstance(texts, str | bytes):
        raise UserError(f"{what} takes a list, not one {type(texts).__name__}: write [text]")
    if not isinstance(texts, Sequence | np.ndarray):
        raise UserError(f"{what} takes a list of texts, not {type(texts).__name__}")
    if wrong := [n for n, text in enumerate(texts) if not isinstance(text, str)]:
        one = texts[wrong[0]]
        raise UserError(f"{what}: text {wrong[0]} is {one!r} ({type(one).__name__}); expected a string")


@functools.partial(jax.jit, static_argnums=(0, 3))
def _encoded(objective: Any, params: Params, extra: Extra, row: int, image: np.ndarray) -> dict[str, jax.Array]:
    """The encoder's pooled output and the mean of its patch tokens, f32 [B D], of images u8 [B h w 3]."""
    out, patches = _encoder_outputs(objective, params, extra, row, image)
    mean = patches.reshape(len(patches), -1, patches.shape[-1]).mean(1)
    return {"pooled": out["pooled"].astype(jnp.float32), "mean": mean}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _tokens(objective: Any, params: Params, extra: Extra, row: int, image: np.ndarray) -> dict[str, jax.Array]:
    out, patches = _encoder_outputs(objective, params, extra, row, image)
    first = {"class_token": out["tokens"][:, 0].astype(jnp.float32)} if _class_tokens(objective.image) else {}
    return {"patches": patches, **first}


@functools.partial(jax.jit, static_argnums=(0, 3))
def _attention(objective: Any, params: Params, extra: Extra, row: int, image: np.ndarray) -> dict[str, jax.Array]:
    tower, weights, _ = encoder_of(objective, params, extra, row)
    return class_attention(tower, weights, normalized(objective, image, row))  # type: ignore[arg-type]


def _encoder_outputs(objective: Any, params: Params, extra: Extra, row: int, image: Any) -> tuple[Any, jax.Array]:
    """Outputs of the image encoder, and its patch tokens after the final norm, f32 [B r c D]."""
    tower, weights, stats = encoder_of(objective, params, extra, row)
    out, _ = apply_encoder(tower, weights, stats, normalized(objective, image, row))
    patches: Any = out["tokens"][:, _class_tokens(tower) :]
    if isinstance(tower, ViT) and tower.norm_after_pool:  # then the final norm has not been applied to the tokens yet
        patches = LayerNorm(tower.epsilon).apply({"params": weights["norm"]}, patches)
    grid = out["map"].shape[1:3] if "map" in out else (tower.image_size // tower.patch,) * 2  # type: ignore[union-attr]
    return out, patches.astype(jnp.float32).reshape(len(image), *grid, -1)


def _class_tokens(tower: Any) -> int:
    return int(getattr(tower, "class_token", False))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _patch_features(objective: Any, params: Params, extra: Extra, row: int, image: np.ndarray) -> jax.Array:
    """Unit features f32 [B r c E] of the patches of images u8 [B h w 3]."""
    patches, project = _encoder_outputs(objective, params, extra, row, image)[1], params["project"]
    if getattr(getattr(objective, "base", objective), "normalize", False):  # FLAIR normalises before it projects
        patches = l2_normalize(patches)
    features = patches @ project["image"]["kernel"] if "image" in project else patches
    if "patient" in project:  # RET-CLIP: one image stands for both eyes
        features = jnp.concatenate([features, features], axis=-1) @ project["patient"]["kernel"]
    return l2_normalize(features)
