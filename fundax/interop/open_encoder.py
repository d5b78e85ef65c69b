"""Former names, until the configs use `interop.backbone` (fundax/interop/backbones.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fundax.interop.backbones import ImageBackbone, backbone

_SIZES = {"mini": "tiny/8", "small": "small/8", "mini/16": "tiny"}


class Opened(ImageBackbone):
    """An ImageBackbone with the former names of its fields."""

    @property
    def tower(self) -> Any:
        """The former name of `image`."""
        return self.image

    @property
    def mean(self) -> Any:
        """The mean of RGB, one row."""
        return self.backbone.mean[0]

    @property
    def std(self) -> Any:
        """The deviation of RGB, one row."""
        return self.backbone.std[0]


def new_encoder(name: str, image_size: int, **fields: Any) -> Opened:
    """Former name of `backbone(size)`."""
    return Opened(**vars(backbone(_SIZES.get(name, name), image_size=image_size, **fields)))


def open_encoder(
    path: str | Path, image_size: int, moments: Any = None, row: int = 0, checkpoint: Any = "latest", **fields: Any
) -> Opened:
    """Former name of `backbone(path)`."""
    from data_pipelines.records import MODALITIES

    modality = MODALITIES[row] if moments is not None or row else ""
    return Opened(**vars(backbone(path, image_size=image_size, modality=modality, checkpoint=checkpoint, **fields)))
