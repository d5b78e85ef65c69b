"""Image processors of transformers: settings for resizing, cropping and normalising photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.geometry import INTERPOLATIONS
from fundax.objectives.clip import MEAN, STD
from fundax.runtime.workdir import read_optional_json
from fundax.types import UserError

FILE, NEW_FILE = "preprocessor_config.json", "processor_config.json"  # transformers 4, and 5
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
# What a file may leave out: the defaults of CLIPImageProcessor and BitImageProcessor, which are equal.
DEFAULTS: dict[str, Any] = {
    **{f"do_{what}": True for what in ("resize", "center_crop", "rescale", "normalize")},
    "size": {"shortest_edge": 224}, "crop_size": 224, "resample": 3, "rescale_factor": 1 / 255,
    "image_mean": list(MEAN), "image_std": list(STD),
}  # fmt: skip
SQUARES = ("ViTImageProcessor", "SiglipImageProcessor", "DeiTImageProcessor")  # an int as size is a square there


def read(folder: Path) -> dict[str, Any]:
    """The image processor's settings in a folder, where transformers looks for them; {} if there are none."""
    nested = read_optional_json(folder / NEW_FILE).get("image_processor")
    return nested if isinstance(nested, dict) else read_optional_json(folder / FILE)


def preprocessing_of(config: Mapping[str, Any], where: str | Path) -> dict[str, Any]:
    """The preprocessing that an image processor's settings in the folder `where` describe: the inverse of `config_of`.

    transformers rounds the place of a centre crop down, which `round_down` says where there is a crop. Raises UserError
    for settings that no square of one size comes out of, and for rules without a counterpart here.
    """
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "CLIPImageProcessor")))
    known = dict(config) if any(name in kind for name in SQUARES) else DEFAULTS | dict(config)
    kind = f"{where}: {kind}"
    try:
        return _moments(known) | _sizes(known, kind)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{kind}: {error!r} in its settings; expected those that save_pretrained writes") from error


def _moments(known: Mapping[str, Any]) -> dict[str, Any]:
    """mean and std of RGB in [0, 1]; other scales of the pixels are brought to it."""
    mean, std = ([0.0] * 3, [1.0] * 3)
    if known.get("do_normalize", True):
        mean, std = (list(map(float, known[name])) for name in ("image_mean", "image_std"))
    scale = 255 * (known.get("rescale_factor", 1 / 255) if known.get("do_rescale", True) else 1)
    if abs(scale - 1) < 1e-6:
        return {"mean": mean, "std": std}
    return {"mean": [value / scale for value in mean], "std": [value / scale for value in std]}


def _sizes(known: Mapping[str, Any], kind: str) -> dict[str, Any]:
    if not known.get("do_resize", True):
        raise UserError(f"{kind} does not resize (do_resize is false); expected a processor that does")
    size = known["size"]
    if isinstance(size, int):
        size = {"height": size, "width": size} if any(name in kind for name in SQUARES) else {"shortest_edge": size}
    if set(size) not in ({"shortest_edge"}, {"height", "width"}) or len(set(size.values())) != 1:
        raise UserError(f"{kind} resizes to {size}; expected a shortest edge or a square")
    edge, squash = int(next(iter(size.values()))), "height" in size
    crop = known["crop_size"] if known.get("do_center_crop") else None
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if crop is None and not squash:
        raise UserError(f"{kind} resizes the shortest edge and crops nothing; expected squares of one size")
    if crop is not None and crop["height"] != crop["width"]:
        raise UserError(f"{kind} crops to {crop}; expected a square")
    interpolation = RESAMPLE[known["resample"]]
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"{kind} resizes by {interpolation}; expected one of {', '.join(INTERPOLATIONS)}")
    final = int(crop["height"]) if crop else edge
    cut = {"resize_to": edge} if final != edge else {}
    cut |= {"round_down": True} if cut or not squash else {}
    return {"image_size": final, "resize": "squash" if squash else "shortest", "interpolation": interpolation, **cut}


def config_of(facts: Mapping[str, Any], kind: str = "CLIPImageProcessor") -> dict[str, Any]:
    """preprocessor_config.json of a preprocessing. Raises UserError for a resize that image processors do not have."""
    size, resize, resample = int(facts["image_size"]), facts["resize"], facts["interpolation"]
    if resize not in ("squash", "shortest") or resample not in RESAMPLE:
        raise UserError(f"{kind} has no resize '{resize}' with interpolation '{resample}'")
    edge = int(facts.get("resize_to") or size)
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": edge, "width": edge} if resize == "squash" else {"shortest_edge": edge},
        "resample": RESAMPLE.index(resample),
        "do_center_crop": resize == "shortest" or edge != size,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": facts["mean"],
        "image_std": facts["std"],
    }
