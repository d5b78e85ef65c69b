"""Image encoders out to other programs and in from them; fundax.exchange asks here first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from data_pipelines.sources.modality_folders import moments
from fundax.encoders.backbone import Encoder
from fundax.interop import dinov2, retfound, timm, visionfm
from fundax.interop import encoder as encoder_layout
from fundax.interop.bundle import Bundle, read_json
from fundax.interop.weights import load_torch, read_state
from fundax.objectives.ibot import IBOT
from fundax.types import UserError

LAYOUTS = {"visionfm": visionfm, "timm": timm, "retfound": retfound, "huggingface": dinov2}


def family_of(to: str, bundle: Bundle) -> tuple[ModuleType, Bundle] | None:
    """Which layout `to` is for an image encoder, and what of the model goes there; None for models of other kinds.

    Every layout but VisionFM's takes the encoder alone, of the teacher. Raises UserError for a layout without a place.
    """
    if not isinstance(bundle.objective, IBOT | Encoder):
        return None
    if to not in LAYOUTS:
        raise UserError(f"an image encoder cannot be written as '{to}'; expected {', '.join(LAYOUTS)}")
    return LAYOUTS[to], bundle if to == "visionfm" else encoder_of(bundle)


def encoder_of(bundle: Bundle) -> Bundle:
    """The encoder of a pretraining: its teacher's."""
    objective = bundle.objective
    if isinstance(objective, Encoder):
        return bundle
    encoder = Encoder(encoder_layout.bare(objective.image), objective.mean, objective.std)
    return Bundle(encoder, {"image": bundle.extra["teacher"]["image"]}, bundle.preprocessing, source=bundle.source)


def bundle_of(path: str | Path, modality: str = "") -> Bundle | None:
    """The VisionFM, DINO, iBOT, timm, RETFound or Dinov2Model checkpoint at `path`; None where it is something else.

    modality: whose images the encoder takes, which decides their normalisation; "" is ImageNet's, which all but
        VisionFM's were trained with.
    Raises UserError for a damaged file, and for one of these layouts that is not whole.
    """
    path = Path(path)
    fields: dict[str, Any] = {}
    if modality:
        fields["mean"], fields["std"] = moments((modality,))
    if path.is_dir():
        if dinov2.detect_folder(path):
            return dinov2.read_folder(path)
        config = path / timm.CONFIG
        return timm.read_folder(path) if config.is_file() and "architecture" in read_json(config) else None
    if path.suffix in (".pth", ".pt", ".bin"):
        return _of_torch(load_torch(path), path, fields)
    state = read_state(path)
    if visionfm.detect(state):
        return visionfm.bundle_of(state, **fields)
    return _encoder(path, fields) if encoder_layout.detect(state) else None


def _of_torch(loaded: Any, path: Path, fields: Mapping[str, Any]) -> Bundle | None:
    if not isinstance(loaded, Mapping):
        return None
    if {"student", "teacher"} <= set(loaded) and "ibot_loss" in loaded:
        return visionfm.bundle_of(visionfm.flat_state(loaded, str(path)), **fields)
    part = next((loaded[name] for name in encoder_layout.PARTS if isinstance(loaded.get(name), Mapping)), loaded)
    keys = {str(key).replace("module.", "").removeprefix("backbone.") for key in part}
    return _encoder(path, fields) if {"cls_token", "patch_embed.proj.weight"} <= keys else None


def _encoder(path: Path, fields: Mapping[str, Any]) -> Bundle:
    objective, params = encoder_layout.to_fundax(encoder_layout.load_encoder(path), str(path), **fields)
    return Bundle(objective, params, {"image_size": objective.image.image_size})
