"""Image encoders for classifiers and decoders: `backbone` opens one from a run, folder or file, or creates one of a named size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from data_pipelines.records import MODALITIES, modality_name
from data_pipelines.sources.modality_folders import moments
from fundax.encoders import convnext, efficientnet, resnet, vit
from fundax.encoders.backbone import Backbone, Convolutional, VisionEncoder, preprocessing
from fundax.encoders.positions import pixel_centres
from fundax.encoders.vit import ViT
from fundax.interop.initial import fit_positions, own_state, same_shapes, taken_extra
from fundax.interop.pretrained import PACKAGES, located, origin
from fundax.interop.read import is_run, load, read_objective, read_preprocessing
from fundax.interop.weights import existing
from fundax.params import stack_blocks, unflatten
from fundax.runtime.checkpoint import load_params
from fundax.types import Extra, Params, UserError

IMAGENET = (Backbone.mean, Backbone.std)  # the defaults of the dataclass
_PIXELS = {"resnet-smoke": 32, "resnet-tiny": 96, "convnext-smoke": 32}  # of fresh ones; others have their own
_CONVOLUTIONAL: dict[str, Callable[..., Convolutional]] = {
    **dict.fromkeys(resnet.SIZES, resnet.resnet),
    **dict.fromkeys(efficientnet.SIZES, efficientnet.efficientnet),
    **dict.fromkeys(convnext.SIZES, convnext.convnext),
}
SIZES = (*vit.SIZES, *_CONVOLUTIONAL)


@dataclass(frozen=True)
class ImageBackbone:
    """An image encoder with its preprocessing, and the steps of a Recipe that fill it (() for a fresh one).

    Attributes:
        backbone: the encoder, the normalisation of its images, and what of it is an image's feature.
        preprocessing: image_size, mean, std, resize and interpolation; of a run also what else it stored.
        init_from, init_extra: for `Recipe`. They fill the part `image`, and `decoder` where the checkpoint has one of
            the same shapes.
        origin: where the weights come from (interop.pretrained.origin), which the run stores; {} for a fresh one.
    """

    backbone: Backbone
    preprocessing: dict[str, Any]
    init_from: tuple[Callable[[Params], Params], ...] = ()
    init_extra: tuple[Callable[[Extra], Extra], ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> VisionEncoder:
        """The encoder itself."""
        return self.backbone.image


@dataclass(frozen=True)
class Encoder:
    """The arguments of a config for the image encoder that a classifier or decoder is built on.

    Args:
        init: Weights to start from: imagenet, timm:NAME, hf:OWNER/NAME, a run, an exported folder or a weights file.
        checkpoint: Checkpoint of the run to start from: best, latest or a step; by default best if the run selected one.
        size: Size of the model; tiny trains on a laptop.
        image_size: Side of the square images in pixels; 0 takes that of the model size.
        modality: Modality of the images, which decides how they are normalised; empty takes the default.
    """

    init: str = ""
    checkpoint: str = ""
    size: str = "tiny"
    image_size: int = 0
    modality: str = ""

    def open(self, **fields: Any) -> ImageBackbone:
        """`backbone` of --init, or of --size without it; `fields` are further arguments of `backbone`."""
        given = {"checkpoint": self.checkpoint, "image_size": self.image_size, "modality": self.modality}
        return backbone(self.init or self.size, **given, **fields)

    def trained(self, tune: str | bool | None) -> bool:
        """Whether anything of the encoder trains with this --tune; empty trains it unless --init gives it.

        Configs of runs from before --tune ask with True, False or None.
        """
        return not self.init if tune in ("", None) else tune not in ("head", False)


def backbone(
    path_or_size: str | Path | Mapping[int, str],
    *,
    checkpoint: int | str = "",
    modality: str = "",
    image_size: int = 0,
    feature: Any = "token",
    blocks: int = 4,
    frozen: bool = True,
    statistics: Literal["learned", "frozen"] = "learned",
    tiles: int = 1,
    tile_pool: Literal["mean", "max"] = "mean",
    **fields: Any,
) -> ImageBackbone:
    """Load the image encoder of any path that `load` supports, or create a randomly initialised one of a size.

    For a self-distilled pretraining, this is the teacher's encoder. Weights are read when a run starts; for files, the
    shapes are read immediately.

    Args:
        path_or_size: a run, an exported folder, a file of weights, a name of interop.pretrained ("imagenet", "timm:...",
            "hf:..."), or one of SIZES ("tiny", "B/16", "resnet50", "efficientnet-lite0", "convnext-tiny", ...). A mapping
            of modality numbers to such names gives an encoder for each; all must have one architecture.
        checkpoint: which checkpoint of a run: "best", "latest" or a step; "" is the best one if the run selected one.
        modality: the modality of the images ("oct"). A run of several normalisations then uses this modality's; a file
            VisionFM's for it; "" is the run's own, or ImageNet's.
        image_size: side of the images in pixels; 0 takes the encoder's own. Positions are resized to it.
        feature: what the feature of an image is, see `encoders.Backbone`; a convolutional encoder's is always pooled.
        blocks: how many last blocks the feature `token` reads; more than there are mean all.
        frozen: the encoder is not trained.
        statistics: whether batch statistics are learned or frozen while it is trained.
        tiles, tile_pool: cut images into tiles of the encoder's size, see `encoders.Backbone`.
        fields: fields of the encoder: drop_path, dtype, remat, attention, ...
    Raises:
        UserError: neither a size nor a checkpoint, a checkpoint without an image encoder, patches that do not fill the
            image; when a run starts: tensors that do not fit.
    """
    options = {"feature": feature, "blocks": blocks, "frozen": frozen, "statistics": statistics}
    options |= {"tiles": tiles, "tile_pool": tile_pool}
    if isinstance(path_or_size, Mapping):
        shared = {"checkpoint": checkpoint, "image_size": image_size, **options, **fields}
        return _several({n: backbone(path, **shared) for n, path in path_or_size.items()}, path_or_size)
    name = str(path_or_size)
    if name in SIZES:
        return _fresh(name, modality, image_size, options, fields)
    path = str(located(name))
    if not Path(path).exists() and "/" not in name:
        raise UserError(
            f"{name!r} is not a run, a folder, a file of weights, named weights ({', '.join(PACKAGES)}, timm:NAME, "
            f"hf:OWNER/NAME) or a size; sizes are {', '.join(SIZES)}"
        )
    existing(path)
    objective, stored = _described(path, modality)
    image = getattr(objective, "image", None)
    if not isinstance(image, VisionEncoder) or getattr(getattr(objective, "tower", None), "modalities", ()):
        raise UserError(f"{name} holds {_kind(objective)}; expected a model with one image encoder")
    sized = _sized(name, image, image_size, fields)
    mean, std = _moments(objective, modality)
    defaults = {"resize": "squash", "interpolation": "bicubic", "mean": mean, "std": std}
    chosen = {"mean": mean, "std": std} if modality else {}
    facts = defaults | stored | chosen | {"image_size": sized.image_size}
    if stored.get("resize_to"):  # in proportion, where the encoder is asked for another size
        facts["resize_to"] = round(stored["resize_to"] * sized.image_size / stored["image_size"])
    fill, fill_extra = _filling(path, checkpoint, sized)
    return ImageBackbone(_backbone(sized, mean, std, options), facts, (fill,), (fill_extra,), origin(name))


def _fresh(name: str, modality: str, image_size: int, options: Mapping[str, Any], fields: Mapping[str, Any]) -> Any:
    if name in _CONVOLUTIONAL:
        image: Any = _CONVOLUTIONAL[name](name)
        side = image_size or _PIXELS.get(name) or (224 if name in resnet.SIZES else image.image_size)
        image = image.clone(image_size=side, **_known(image, fields))
    else:
        image = vit.dino_vit(name, **{"scan": vit.SIZES[name].depth >= 12, **fields})
        image = image.clone(image_size=image_size or image.image_size)
        _check_patches(name, image)
    mean, std = moments((modality,)) if modality else IMAGENET
    facts = {"image_size": image.image_size, "resize": "squash", "interpolation": "bicubic", "mean": mean, "std": std}
    return ImageBackbone(_backbone(image, mean, std, options), facts)


def _described(path: str, modality: str) -> tuple[Any, dict[str, Any]]:
    """Return the objective and the preprocessing of a checkpoint."""
    if is_run(path):
        objective = read_objective(path)
        return objective, read_preprocessing(path, objective)
    model = load(path, modality=modality)
    return model.objective, dict(model.preprocessing)


def _known(image: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that an encoder of this kind has; attention, for example, is a ViT's."""
    return {key: value for key, value in fields.items() if key in image.__dataclass_fields__}


def _sized(path: str, image: VisionEncoder, image_size: int, fields: Mapping[str, Any]) -> VisionEncoder:
    size = {"image_size": image_size or image.image_size}
    if isinstance(image, Convolutional):
        return image.clone(**size, **_known(image, fields))
    sized = image.clone(**{"mask_token": False, "mask_ratio": 0.0, "drop_path": 0.0, **fields, **size})
    _check_patches(path, sized)
    return sized


def _check_patches(path: str, image: ViT) -> None:
    if image.image_size % image.patch:
        raise UserError(f"{path} has patches of {image.patch} pixels, which do not fill an image of {image.image_size}")


def _kind(objective: Any) -> str:
    image = getattr(objective, "image", None)
    encoder = "no image encoder" if image is None else f"an image encoder of type {type(image).__name__}"
    if getattr(getattr(objective, "tower", None), "modalities", ()):
        encoder = "an image encoder for each modality"
    return f"{type(objective).__name__}, {encoder}"


def _moments(objective: Any, modality: str) -> tuple[Any, Any]:
    """Rows of means and deviations: one for all images or one for each modality."""
    own = preprocessing(objective)
    mean, std = (_rows(own.get(name), default) for name, default in zip(("mean", "std"), IMAGENET, strict=True))
    if modality and len(mean) > 1:
        row = MODALITIES.index(modality_name(modality))
        if row >= len(mean):
            raise UserError(f"the encoder normalises {len(mean)} modalities, and {modality} is none of them")
        mean, std = (mean[row],), (std[row],)
    return mean, std


def _rows(found: Any, default: Any) -> Any:
    if found is None:
        return default
    return tuple(map(tuple, found)) if isinstance(found[0], tuple | list) else (tuple(found),)


def _backbone(image: VisionEncoder, mean: Any, std: Any, options: Mapping[str, Any]) -> Backbone:
    wanted = dict(options)
    if isinstance(image, Convolutional) and wanted["feature"] not in ("mean", "pooled"):
        wanted["feature"] = "pooled"
    return Backbone(image, mean, std, **wanted | {"blocks": min(wanted["blocks"], getattr(image, "depth", 1))})


def _filling(
    path: str, checkpoint: int | str, image: VisionEncoder
) -> tuple[Callable[[Params], Params], Callable[[Extra], Extra]]:
    """Steps of init_from and init_extra: the encoder of a checkpoint on the grid of `image`."""

    def fill(params: Params) -> Params:
        owner, whole, _ = _weights(path, checkpoint)
        tree = {"image": {name: leaf for name, leaf in owner["image"].items() if name != "mask_token"}}
        state = own_state(tree)
        if isinstance(image, ViT):
            shapes = {"image/position": (image.patches + int(image.class_token), image.width)}
            shapes |= {"image/class_token": (image.width,)} if image.class_token else {}
            state = fit_positions(state, shapes, pixel_centres)
        found = unflatten(state)["image"]
        filled = {**params, "image": stack_blocks(found) if "blocks" in params["image"] else found}
        fits = "decoder" in params and "decoder" in whole and same_shapes(whole["decoder"], params["decoder"])
        return {**filled, "decoder": whole["decoder"]} if fits else filled

    def fill_extra(extra: Extra) -> Extra:
        return taken_extra(_weights(path, checkpoint)[2], extra, ("image", "decoder")) if extra else extra

    return fill, fill_extra


def _weights(path: str, checkpoint: int | str) -> tuple[Params, Params, Extra]:
    """The parameters that hold the encoder, all parameters, and the extra state."""
    if is_run(path):
        params, extra = load_params(path, checkpoint)
    else:
        model = load(path)
        params, extra = model.params, model.extra
    averages = extra.get("average") or extra.get("teacher")  # of the weights, which are better than the latest
    owner = averages if averages and "image" in averages else params.get("model", params)  # "model": behind an adapter
    return owner, params, extra.get("model", extra)


def _several(starts: dict[int, ImageBackbone], names: Mapping[int, str]) -> ImageBackbone:
    """One backbone with an encoder for each modality."""
    number, first = next(iter(starts.items()))
    for other, one in starts.items():
        if one.image != first.image:
            raise UserError(f"{names[other]} has another encoder than {names[number]}; expected one architecture")

    def fill(params: Params) -> Params:
        image = dict(params["image"])
        for other, one in starts.items():
            held = {"image": image[f"m{other}"]}
            for step in one.init_from:
                held = step(held)
            image[f"m{other}"] = held["image"]
        return {**params, "image": image}

    return ImageBackbone(replace(first.backbone, modalities=tuple(starts)), first.preprocessing, (fill,))
